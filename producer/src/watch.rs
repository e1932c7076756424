//! A look at the source every few seconds: tables that match and are not published (they join, if they may), identities that were
//! taken away, and the WAL that the slot holds back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::{Lane as Direction, TableName};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::error::Error;
use crate::kept_session::KeptSession;
use crate::lane::Lane;
use crate::observe;
use crate::source::catalog::{self, Selection};
use crate::source::{identity, publication, slot};

const INTERVAL: Duration = Duration::from_secs(5);
/// A look that takes long, of thousands of tables, is followed by a pause that is longer by this: it never keeps the source busy.
const PAUSE_FACTOR: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Looks for ever, and tells `new` of the tables that match and are not published.
///
/// # Errors
/// What trying again does not mend.
pub async fn run(lane: Arc<Lane>, new: mpsc::Sender<Vec<TableName>>) -> Result<(), Error> {
    let mut said: HashSet<TableName> = HashSet::new();
    let mut session = KeptSession::new(lane.clone(), "look at the source", INTERVAL);
    loop {
        let began = Instant::now();
        let outcome = match session.client().await {
            Ok(client) => look(&lane, client, &new, &mut said).await,
            Err(error) => Err(error),
        };
        let rest = || (began.elapsed() * PAUSE_FACTOR).clamp(INTERVAL, PAUSE_MAX);
        tokio::time::sleep(session.judge(outcome)?.unwrap_or_else(rest)).await;
    }
}

async fn look(
    lane: &Lane,
    client: &Client,
    new: &mpsc::Sender<Vec<TableName>>,
    said: &mut HashSet<TableName>,
) -> Result<(), Error> {
    observe::set(observe::RETAINED, slot::retained(client, &lane.slot).await? as f64);
    let selection = catalog::select(&catalog::all_tables(client).await?, &lane.config.migration);
    let Some(published) = publication::published(client, &lane.publication).await? else { return Ok(()) };
    let published: HashSet<TableName> = published.into_iter().collect();
    let missing = unpublished(&selection, &published);
    observe::set(observe::UNPUBLISHED, missing.len() as f64);
    // The reverse lane's tables are the forward lane's.
    if lane.direction == Direction::Forward && lane.config.migration.join_new_tables {
        if !missing.is_empty() {
            // While others are copied nobody takes it, and the next look says it again.
            let _full = new.try_send(missing);
        }
    } else {
        for table in missing {
            if said.insert(table.clone()) {
                let hint = format!("dflux resync {table}");
                tracing::warn!(%table, hint, "table matches and is not published: it is not migrated");
            }
        }
    }
    for (table, reason) in selection.left_out.iter().filter(|(table, _)| published.contains(table)) {
        if said.insert(table.clone()) {
            let hint = format!("ALTER PUBLICATION \"{}\" DROP TABLE {}", lane.publication, table.quoted());
            tracing::error!(%table, reason, hint, "table is published and can no longer be: it is not migrated whole");
        }
    }
    // A key dropped or a leaf attached after the start: PostgreSQL would refuse the application's next UPDATE.
    for table in &selection.need_full {
        let root = selection.leaves.iter().find(|(_, leaves)| leaves.contains(&table.oid)).map(|(root, _)| *root);
        let root = root.and_then(|root| selection.published.iter().find(|published| published.oid == root));
        if published.contains(&table.name) || root.is_some_and(|root| published.contains(&root.name)) {
            identity::set_full(client, table).await?;
        }
    }
    Ok(())
}

/// Selected tables that the publication lacks. Pure.
fn unpublished(selection: &Selection, published: &HashSet<TableName>) -> Vec<TableName> {
    let names = selection.published.iter().map(|table| &table.name);
    names.filter(|name| !published.contains(*name)).cloned().collect()
}
