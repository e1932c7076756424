//! Values of the source's sequences. I/O, thin: what belongs to a migration is decided in [`changelog::sequence`].
//!
//! A sequence is never waited for longer than a moment. TRUNCATE … RESTART IDENTITY and ALTER SEQUENCE hold theirs until their
//! transaction ends; to wait for one while holding another could make two transactions of the application a deadlock's
//! victims. So the wait ends before the server would look for a deadlock, and what was locked is read in the next round.

use changelog::sequence::{self, LIST, Listed, READ_MAX, Value};
use changelog::{Sequence, TableName};
use service::config::Migration;
use tokio_postgres::Client;

use super::{field, rows};
use crate::error::Error;

const LOCK_WAIT_MS: u64 = 100;

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub sequences: Vec<Sequence>,
    /// Our user may not read them.
    pub unreadable: Vec<TableName>,
    /// Locked or dropped meanwhile, with the server's words.
    pub skipped: Vec<(TableName, String)>,
}

/// The sequences of a migration, readable or not.
///
/// # Errors
/// `Source`, `Answer`.
pub async fn list(client: &Client, migration: &Migration) -> Result<Vec<Listed>, Error> {
    let doing = "list the sequences";
    let parsed = |what: serde_json::Error| Error::Answer { doing: doing.to_owned(), what: what.to_string() };
    let mut listed = Vec::new();
    for row in rows(client, doing, LIST).await? {
        listed.push(serde_json::from_str(&field::<String>(&row, 0, doing)?).map_err(parsed)?);
    }
    if listed.is_empty() {
        return Ok(listed);
    }
    let tables = rows(client, doing, sequence::TABLES).await?;
    let tables = tables.first().map(|row| field::<String>(row, 0, doing)).transpose()?.unwrap_or_default();
    let tables: Vec<(String, String)> = serde_json::from_str(&tables).map_err(parsed)?;
    let migrates = |schema: &str, name: &str| migration.selects(schema, name);
    let excludes = |schema: &str, name: &str| migration.excludes(schema, name);
    Ok(sequence::selected(listed, &tables, migrates, excludes))
}

/// Lists and reads them. Each statement reads a few and holds the lightest lock of them while it runs.
///
/// # Errors
/// `Source`, `Answer`. What concerns one sequence is in the reading.
pub async fn read(client: &Client, migration: &Migration) -> Result<Reading, Error> {
    let (readable, unreadable): (Vec<Listed>, Vec<Listed>) =
        list(client, migration).await?.into_iter().partition(|sequence| sequence.readable);
    let mut reading = Reading { unreadable: unreadable.iter().map(Listed::name).collect(), ..Reading::default() };
    for some in readable.chunks(READ_MAX) {
        match values(client, some).await {
            Ok(sequences) => reading.sequences.extend(sequences),
            Err(error) if !of_one(&error) => return Err(error),
            // One of them is at fault: each by itself.
            Err(_) => {
                for one in some {
                    match values(client, std::slice::from_ref(one)).await {
                        Ok(sequences) => reading.sequences.extend(sequences),
                        Err(error) if of_one(&error) => {
                            reading.skipped.push((one.name(), service::report(&error, None)));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    Ok(reading)
}

async fn values(client: &Client, listed: &[Listed]) -> Result<Vec<Sequence>, Error> {
    let doing = "read the sequences";
    let names: Vec<TableName> = listed.iter().map(Listed::name).collect();
    // Two statements of one message are one transaction.
    let sql = format!("SET LOCAL lock_timeout = {LOCK_WAIT_MS}; {}", sequence::read_sql(&names));
    let mut sequences = Vec::with_capacity(listed.len());
    for row in rows(client, doing, &sql).await? {
        let of = listed.get(field::<usize>(&row, 0, doing)?);
        let value =
            Value { last_value: field(&row, 1, doing)?, is_called: field::<String>(&row, 2, doing)?.as_str() == "t" };
        sequences.extend(of.map(|listed| listed.with(value)));
    }
    Ok(sequences)
}

/// Whether the server refused a sequence, and not the session: locked, dropped, renamed, a right that was taken away.
fn of_one(error: &Error) -> bool {
    let Error::Source { source, .. } = error else { return false };
    source.code().is_some_and(|code| matches!(code.code(), "55P03" | "42P01" | "3F000" | "42501" | "42809" | "42703"))
}
