//! The publication: an explicit list of tables, never FOR ALL TABLES, so that a table created later is not published and its
//! writes never fail. Made before the slot: the slot decodes with the catalog of its time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use changelog::TableName;
use changelog::table::{quote_identifier, quote_literal};
use service::config::Migration;
use service::retry::Backoff;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{self, Selection, Table, TableKind};
use super::identity::{self, ChangedIdentity};
use super::{field, rows};
use crate::error::Error;

const LOCK_WAIT_MS: u32 = 2_000;
const ATTEMPTS_MAX: u32 = 30;

/// What `prepare` found and changed on the source.
#[derive(Debug)]
pub struct Prepared {
    pub selection: Selection,
    /// Replica identities that were changed, for `dflux cleanup`.
    pub identities: Vec<ChangedIdentity>,
    /// False if the publication was there already.
    pub publication_created: bool,
    /// Tables that the publication lacked and that were added.
    pub added: Vec<TableName>,
}

/// Brings the source into the state in which a slot may be made: identities, then the publication. Idempotent. Must not be
/// called for a lane that already runs with its slot: a table added then has no copy (see the resync procedure).
///
/// # Errors
/// Nothing matches, a privilege is missing, a lock was not free, or the publication is not as we make it.
pub async fn prepare(client: &Client, migration: &Migration, publication: &str) -> Result<Prepared, Error> {
    let all = catalog::all_tables(client).await?;
    let selection = catalog::select(&all, migration);
    for (table, reason) in &selection.left_out {
        tracing::warn!(%table, reason, "table is left out of the migration");
    }
    if selection.published.is_empty() {
        return Err(Error::NoTables { patterns: migration.tables.clone() });
    }
    let mut identities = Vec::new();
    for table in &selection.need_full {
        identities.push(identity::set_full(client, table).await?);
    }
    let existing = published(client, publication).await?;
    let mut added = Vec::new();
    match &existing {
        None => create(client, publication, &selection.published).await?,
        Some(present) => {
            let present: HashSet<&TableName> = present.iter().collect();
            let missing: Vec<Arc<Table>> =
                selection.published.iter().filter(|table| !present.contains(&table.name)).cloned().collect();
            if !missing.is_empty() {
                add(client, publication, &missing).await?;
                added = missing.iter().map(|table| table.name.clone()).collect();
            }
        }
    }
    // The identities are what the stream will say from now on.
    let all = catalog::all_tables(client).await?;
    let selection = catalog::select(&all, migration);
    Ok(Prepared { selection, identities, publication_created: existing.is_none(), added })
}

/// Names of the published tables; `None` if there is no such publication.
///
/// # Errors
/// `PublicationAltered` if it publishes less or other than what we make (an operation, a row filter, a column list).
pub async fn published(client: &Client, publication: &str) -> Result<Option<Vec<TableName>>, Error> {
    const DOING: &str = "read the publication";
    let name = quote_literal(publication);
    let sql = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
         coalesce(pg_catalog.to_jsonb(p) ->> 'pubgencols', 's') FROM pg_catalog.pg_publication p WHERE pubname = {name}"
    );
    let found = rows(client, DOING, &sql).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let altered = |what: &str, setting| Error::PublicationAltered {
        publication: publication.to_owned(),
        what: what.to_owned(),
        setting,
    };
    if field::<String>(row, 0, DOING)? == "t" {
        return Err(altered("it is FOR ALL TABLES: writes to a table created later without a key would fail", None));
    }
    if field::<String>(row, 1, DOING)? != "t" {
        let setting = Some("publish = 'insert, update, delete, truncate'");
        return Err(altered("it does not publish all of insert, update, delete and truncate", setting));
    }
    if field::<String>(row, 2, DOING)? != "t" {
        return Err(altered("publish_via_partition_root is off", Some("publish_via_partition_root = true")));
    }
    // A setting since version 18: we give a keyless table REPLICA IDENTITY FULL, which its generated columns are part of.
    if field::<String>(row, 3, DOING)? != "s" {
        return Err(altered(
            "publish_generated_columns is not `stored`: UPDATE and DELETE would fail on a table with a stored generated column \
             and REPLICA IDENTITY FULL",
            Some("publish_generated_columns = stored"),
        ));
    }
    // Row filters and column lists came with version 15; to_jsonb asks for them without naming them.
    let sql = format!(
        "SELECT n.nspname, c.relname, \
         coalesce(pg_catalog.to_jsonb(r) ->> 'prqual', pg_catalog.to_jsonb(r) ->> 'prattrs') IS NULL \
         FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE p.pubname = {name} ORDER BY 1, 2"
    );
    let mut tables = Vec::new();
    for row in rows(client, DOING, &sql).await? {
        let table = TableName::new(field::<String>(&row, 0, DOING)?, field::<String>(&row, 1, DOING)?);
        if field::<String>(&row, 2, DOING)? != "t" {
            return Err(altered(&format!("{table} has a row filter or a column list"), None));
        }
        tables.push(table);
    }
    Ok(Some(tables))
}

/// Adds tables. Their identities must have been seen to before.
///
/// # Errors
/// A privilege or a lock.
pub async fn add(client: &Client, publication: &str, tables: &[Arc<Table>]) -> Result<(), Error> {
    let sql = format!("ALTER PUBLICATION {} ADD TABLE {}", quote_identifier(publication), list(tables));
    run(client, &format!("add tables to publication {publication}"), &sql).await?;
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    tracing::info!(publication, tables = names.join(", "), "tables added to the publication");
    Ok(())
}

async fn create(client: &Client, publication: &str, tables: &[Arc<Table>]) -> Result<(), Error> {
    const DOING: &str = "read the server's version";
    let version: u32 = match rows(client, DOING, "SHOW server_version_num").await?.first() {
        Some(row) => field(row, 0, DOING)?,
        None => 0,
    };
    // From 18 on a table under REPLICA IDENTITY FULL with an unpublished generated column refuses UPDATEs; we drop
    // such columns when they come.
    let generated = if version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
    let sql = format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert, update, delete, truncate', \
         publish_via_partition_root = true{generated})",
        quote_identifier(publication),
        list(tables)
    );
    run(client, &format!("create publication {publication}"), &sql).await?;
    tracing::info!(publication, tables = tables.len(), "publication created");
    Ok(())
}

fn list(tables: &[Arc<Table>]) -> String {
    let names: Vec<String> = tables
        .iter()
        .map(|table| match table.kind {
            // Children by inheritance are tables of their own: the patterns say whether they are taken.
            TableKind::Ordinary | TableKind::Foreign => format!("ONLY {}", table.name.quoted()),
            TableKind::Partitioned => table.name.quoted(),
        })
        .collect();
    names.join(", ")
}

/// With a bounded wait for the locks: they hold back DDL and vacuum, not writes.
async fn run(client: &Client, doing: &str, sql: &str) -> Result<(), Error> {
    let statement = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_WAIT_MS}; {sql}; COMMIT");
    let mut backoff = Backoff::new(Duration::from_secs(2));
    let mut attempt = 1;
    loop {
        let Err(error) = client.batch_execute(&statement).await else { return Ok(()) };
        client.batch_execute("ROLLBACK").await.map_err(Error::source("end a transaction"))?;
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) || attempt == ATTEMPTS_MAX {
            return Err(Error::source(doing)(error));
        }
        attempt += 1;
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
