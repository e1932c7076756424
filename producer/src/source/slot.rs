//! What the source says of itself and of the slot.

use changelog::Lsn;
use changelog::table::quote_literal;
use tokio_postgres::Client;

use super::{field, rows};
use crate::error::Error;

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub plugin: String,
    pub database: String,
    pub temporary: bool,
    pub active_pid: Option<i32>,
    pub confirmed_flush: Lsn,
    pub lost: bool,
}

/// # Errors
/// The view could not be read.
pub async fn read(client: &Client, slot: &str) -> Result<Option<Slot>, Error> {
    const DOING: &str = "read the slot";
    let sql = format!(
        "SELECT coalesce(plugin, ''), coalesce(database, ''), temporary, coalesce(active_pid, 0), \
         coalesce(confirmed_flush_lsn, '0/0'), coalesce(wal_status, '') = 'lost' \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        quote_literal(slot)
    );
    let found = rows(client, DOING, &sql).await?;
    let Some(row) = found.first() else { return Ok(None) };
    Ok(Some(Slot {
        plugin: field(row, 0, DOING)?,
        database: field(row, 1, DOING)?,
        temporary: field::<String>(row, 2, DOING)? == "t",
        active_pid: Some(field(row, 3, DOING)?).filter(|pid| *pid != 0),
        confirmed_flush: field(row, 4, DOING)?,
        lost: field::<String>(row, 5, DOING)? == "t",
    }))
}

/// Whether the server can serve us at all.
///
/// # Errors
/// `ServerTooOld` or `WalLevel`.
pub async fn check_server(client: &Client) -> Result<(), Error> {
    const DOING: &str = "read the server's settings";
    let sql =
        "SELECT current_setting('server_version_num'), current_setting('server_version'), current_setting('wal_level')";
    let found = rows(client, DOING, sql).await?;
    let Some(row) = found.first() else { return Ok(()) };
    if field::<u32>(row, 0, DOING)? < 140_000 {
        return Err(Error::ServerTooOld { version: field(row, 1, DOING)? });
    }
    let found: String = field(row, 2, DOING)?;
    if found == "logical" { Ok(()) } else { Err(Error::WalLevel { found }) }
}

/// Who uses the slot: process and application name.
///
/// # Errors
/// The view could not be read.
pub async fn holder(client: &Client, slot: &str) -> Result<Option<(i32, String)>, Error> {
    const DOING: &str = "read who uses the slot";
    let sql = format!(
        "SELECT s.active_pid, coalesce(a.application_name, '') FROM pg_catalog.pg_replication_slots s \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = {} AND s.active_pid IS NOT NULL",
        quote_literal(slot)
    );
    let found = rows(client, DOING, &sql).await?;
    let Some(row) = found.first() else { return Ok(None) };
    Ok(Some((field(row, 0, DOING)?, field(row, 1, DOING)?)))
}

/// Bytes of WAL that the slot holds back.
///
/// # Errors
/// The view could not be read.
pub async fn retained(client: &Client, slot: &str) -> Result<u64, Error> {
    const DOING: &str = "read the WAL that the slot holds";
    let sql = format!(
        "SELECT greatest(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), restart_lsn), 0)::pg_catalog.int8 \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {} AND restart_lsn IS NOT NULL",
        quote_literal(slot)
    );
    match rows(client, DOING, &sql).await?.first() {
        Some(row) => field(row, 0, DOING),
        None => Ok(0),
    }
}
