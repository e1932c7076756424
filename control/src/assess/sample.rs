//! Measures the source: how fast rows can be read from it, and how much is written to it. Bounded in time; changes nothing.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::estimate::Measured;
use crate::tables::Table;
use crate::{Database, Error};

/// All samples together; the write rate is measured over the same span.
const SAMPLED_FOR: Duration = Duration::from_millis(2_000);
/// Tables that are sampled, the biggest first.
const TABLES_SAMPLED: usize = 3;
/// A sample is a copy in COPY's text format: a line break in it ends a row, values have theirs escaped.
const LINE_BREAK: u8 = b'\n';

#[derive(Clone, Copy, Debug, Default)]
struct Read {
    bytes: u64,
    rows: u64,
    seconds: f64,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    at: Instant,
    wal_bytes: f64,
    changes: f64,
    transactions: f64,
    since_seconds: f64,
}

/// Counts what is selected and measures both rates, over about two seconds. `reader` is a second session, for the copies.
///
/// # Errors
/// `Sql`.
pub async fn measure(source: &Database, reader: &Database, selected: &[&Table]) -> Result<Measured, Error> {
    let holding: Vec<&Table> = selected.iter().copied().filter(|table| table.holds_rows()).collect();
    let largest = holding.iter().max_by_key(|table| table.bytes);
    let before = counters(source).await?;
    let ends = before.at + SAMPLED_FOR;
    let read = read_sample(source, reader, &holding, ends).await?;
    tokio::time::sleep_until(ends.into()).await;
    let after = counters(source).await?;
    let seconds = after.at.duration_since(before.at).as_secs_f64().max(0.001);
    let rate = |now: f64, then: f64| ((now - then) / seconds).max(0.0);
    let per_second = |amount: u64| (read.seconds > 0.0 && amount > 0).then(|| amount as f64 / read.seconds);
    Ok(Measured {
        tables: holding.len(),
        rows: holding.iter().map(|table| table.rows()).sum(),
        bytes: holding.iter().map(|table| table.bytes.max(0) as u64).sum(),
        largest_table_rows: largest.map_or(0, |table| table.rows()),
        largest_table_bytes: largest.map_or(0, |table| table.bytes.max(0) as u64),
        read_bytes_per_second: per_second(read.bytes),
        read_rows_per_second: per_second(read.rows),
        wal_bytes_per_second: rate(after.wal_bytes, before.wal_bytes),
        changes_per_second: rate(after.changes, before.changes),
        transactions_per_second: rate(after.transactions, before.transactions),
        changes_per_second_average: after.changes / after.since_seconds.max(1.0),
        changes_per_transaction_average: after.changes / after.transactions.max(1.0),
    })
}

async fn counters(source: &Database) -> Result<Counters, Error> {
    // A standby has no insert position; it is a blocker elsewhere, the sample goes on.
    let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0
          ELSE pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0') END::float8,
        (tup_inserted + tup_updated + tup_deleted)::float8, (xact_commit + xact_rollback)::float8,
        extract(epoch FROM pg_catalog.clock_timestamp()
          - coalesce(stats_reset, pg_catalog.pg_postmaster_start_time()))::float8
      FROM pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database()";
    let row = source.row("its write rate cannot be measured", sql, &[]).await?;
    Ok(Counters {
        at: Instant::now(),
        wal_bytes: source.get(&row, 0)?,
        changes: source.get(&row, 1)?,
        transactions: source.get(&row, 2)?,
        since_seconds: source.get(&row, 3)?,
    })
}

/// Reads the biggest tables, each for its share of the time that is left.
async fn read_sample(control: &Database, reader: &Database, tables: &[&Table], ends: Instant) -> Result<Read, Error> {
    let row = reader.row("its process id", "SELECT pg_catalog.pg_backend_pid()", &[]).await?;
    let pid: i32 = reader.get(&row, 0)?;
    let mut biggest: Vec<&&Table> = tables.iter().filter(|table| table.readable && table.bytes > 0).collect();
    biggest.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    biggest.truncate(TABLES_SAMPLED);
    let mut total = Read::default();
    for (index, table) in biggest.iter().enumerate() {
        let left = ends.saturating_duration_since(Instant::now());
        let share = left / (biggest.len() - index) as u32;
        let read = read_table(control, (reader, pid), table, Instant::now() + share).await?;
        total.bytes += read.bytes;
        total.rows += read.rows;
        total.seconds += read.seconds;
    }
    Ok(total)
}

async fn read_table(
    control: &Database,
    (source, pid): (&Database, i32),
    table: &Table,
    until: Instant,
) -> Result<Read, Error> {
    let what = format!("reading a sample of {}", table.name);
    let failed = |error| source.failed(&what, error);
    let sql = format!("COPY {} TO STDOUT", table.name.quoted());
    let began = Instant::now();
    let mut read = Read::default();
    {
        let stream = source.client.copy_out(&sql).await.map_err(failed)?;
        let mut stream = std::pin::pin!(stream);
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(failed)?;
            read.bytes += piece.len() as u64;
            read.rows += piece.iter().filter(|byte| **byte == LINE_BREAK).count() as u64;
            if Instant::now() >= until {
                break;
            }
        }
        read.seconds = began.elapsed().as_secs_f64();
        if Instant::now() < until {
            return Ok(read);
        }
    }
    // The rest of the copy is not wanted; the other session ends it, over whatever TLS it has.
    control.execute("ending the sample", "SELECT pg_catalog.pg_cancel_backend($1)", &[&pid]).await?;
    Ok(read)
}
