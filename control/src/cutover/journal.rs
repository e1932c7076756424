//! Where the journal is kept: a table on the target, appended by compare-and-set and durable before it is answered.

use changelog::table::quote_literal;
use tokio_postgres::error::SqlState;

use super::event::{line, verify};
use super::{Event, Record};
use super::{State, fold};
use crate::{Database, Error};

const MAKE: &str = "BEGIN; SET LOCAL client_min_messages = warning;
    CREATE TABLE IF NOT EXISTS dflux.cutover (migration text, sequence bigint, line text NOT NULL, PRIMARY KEY (migration, sequence));
    CREATE TABLE IF NOT EXISTS dflux.cutover_holder (migration text PRIMARY KEY, holder text NOT NULL, seen_at timestamptz NOT NULL);
    COMMIT";

/// One migration's.
#[derive(Debug)]
pub struct Journal<'a> {
    target: &'a Database,
    migration: &'a str,
}

/// As it was read.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub state: State,
    pub records: Vec<Record>,
    last: Option<String>,
}

impl<'a> Journal<'a> {
    pub fn new(target: &'a Database, migration: &'a str) -> Journal<'a> {
        Journal { target, migration }
    }

    /// # Errors
    /// `Sql`.
    pub async fn make(&self) -> Result<(), Error> {
        self.target.batch("the journal cannot be made", MAKE).await
    }

    /// Empty where none was ever made.
    ///
    /// # Errors
    /// `Sql`; `Journal` names the record that cannot be one.
    pub async fn read(&self) -> Result<Read, Error> {
        if !self.target.has("dflux.cutover").await? {
            return Ok(Read::default());
        }
        let sql = "SELECT line FROM dflux.cutover WHERE migration = $1 ORDER BY sequence";
        let rows = self.target.rows("the journal", sql, &[&self.migration]).await?;
        let lines: Vec<String> = rows.iter().map(|row| self.target.get(row, 0)).collect::<Result<_, _>>()?;
        let records = verify(&lines).map_err(|source| Error::Journal { source: Box::new(source) })?;
        let state = fold(&records).map_err(|source| Error::Journal { source: Box::new(source) })?;
        Ok(Read { state, records, last: lines.last().cloned() })
    }

    /// Appends an event behind what was read. None: another process has appended meanwhile, or the time for it is over. Read again.
    ///
    /// # Errors
    /// `Sql`; `Journal` if it cannot follow.
    pub async fn append(&self, read: &Read, event: Event) -> Result<Option<Record>, Error> {
        let record = read.state.record(event, self.now().await?);
        let next = read.state.clone().apply(&record);
        next.map_err(|source| Error::Journal { source: Box::new(source) })?;
        // Between the look at the clock and here the attempt's time may have run out.
        let deadline = match (&record.event, &read.state.attempt) {
            (Event::Committed { .. }, Some(attempt)) => attempt.commit_deadline_micros(),
            _ => None,
        };
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO dflux.cutover SELECT {}, {}, {} WHERE {CLOCK} <= {}; COMMIT",
            quote_literal(self.migration),
            record.sequence,
            quote_literal(&line(read.last.as_deref(), &record)),
            deadline.unwrap_or(i64::MAX as u64),
        );
        match self.target.transaction("the journal", &sql).await {
            Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::UNIQUE_VIOLATION) => return Ok(None),
            done => done?,
        }
        let there = self.read().await?;
        Ok(Some(record.clone()).filter(|_| there.records.contains(&record)))
    }

    /// The journal's clock, microseconds since 1970.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn now(&self) -> Result<u64, Error> {
        let row = self.target.row("its clock", &format!("SELECT {CLOCK}"), &[]).await?;
        Ok(self.target.get::<i64>(&row, 0)?.max(0) as u64)
    }

    /// Shows that the holder of the epoch lives.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn beat(&self, holder: &str) -> Result<(), Error> {
        let sql = "INSERT INTO dflux.cutover_holder VALUES ($1, $2, clock_timestamp()) ON CONFLICT (migration) DO UPDATE \
                   SET holder = excluded.holder, seen_at = excluded.seen_at";
        self.target.execute("its holder", sql, &[&self.migration, &holder]).await.map(|_| ())
    }

    /// When the holder last did.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn seen(&self, holder: &str) -> Result<Option<u64>, Error> {
        if !self.target.has("dflux.cutover_holder").await? {
            return Ok(None);
        }
        let sql = "SELECT (extract(epoch FROM seen_at) * 1000000)::bigint FROM dflux.cutover_holder WHERE (migration, holder) = ($1, $2)";
        let rows = self.target.rows("its holder", sql, &[&self.migration, &holder]).await?;
        let seen = rows.first().map(|row| self.target.get::<i64>(row, 0)).transpose()?;
        Ok(seen.map(|micros| micros.max(0) as u64))
    }
}

const CLOCK: &str = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";
