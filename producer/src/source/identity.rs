//! REPLICA IDENTITY FULL for tables whose UPDATEs and DELETEs PostgreSQL would refuse once they are published.
//!
//! ALTER TABLE takes an exclusive lock. While it waits for it, everybody behind it waits too, so it waits only briefly and
//! tries again: the application is never held for longer than [`LOCK_WAIT_MS`] at a time.

use std::time::Duration;

use changelog::{Identity, TableName};
use service::retry::Backoff;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::Table;
use crate::error::Error;

const LOCK_WAIT_MS: u32 = 200;
const ATTEMPTS_MAX: u32 = 60;

/// One change that was made, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedIdentity {
    pub table: TableName,
    pub before: Identity,
}

/// Sets it and returns what was before.
///
/// # Errors
/// `IdentityLocked` after a minute of tries, or what the server said (42501: not the owner).
pub async fn set_full(client: &Client, table: &Table) -> Result<ChangedIdentity, Error> {
    let statement = format!(
        "BEGIN; SET LOCAL lock_timeout = {LOCK_WAIT_MS}; ALTER TABLE ONLY {} REPLICA IDENTITY FULL; COMMIT",
        table.name.quoted()
    );
    let mut backoff = Backoff::new(Duration::from_secs(1));
    for _attempt in 0..ATTEMPTS_MAX {
        let Err(error) = client.batch_execute(&statement).await else {
            tracing::info!(table = %table.name, before = table.identity.name(), "replica identity set to FULL");
            return Ok(ChangedIdentity { table: table.name.clone(), before: table.identity });
        };
        client.batch_execute("ROLLBACK").await.map_err(Error::source("end a transaction"))?;
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return Err(Error::source(format!("set REPLICA IDENTITY FULL on {}", table.name))(error));
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Err(Error::IdentityLocked { table: table.name.clone(), attempts: ATTEMPTS_MAX })
}
