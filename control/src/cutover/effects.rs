//! What a switch does to the two databases, each of it idempotent: it may be done again by another process after any crash. I/O, thin;
//! what comes when is not decided here.
//!
//! A lane fills the side that is not its own: the forward lane the target from the source, the reverse lane back.

use std::time::{Duration, Instant};

use changelog::sequence::{Held, advance};
use changelog::table::quote_literal;
use changelog::{Lane, Lsn, Sequence, TableName, fence, origin};
use producer::markers;
use producer::source::{publication, sequences};
use service::Config;
use tokio_postgres::error::SqlState;

use super::Side;
use super::fence::Fence;
use crate::prepare::source::failed;
use crate::{Database, Error};

const LOOKS_EVERY: Duration = Duration::from_millis(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// The two databases of a migration.
#[derive(Debug)]
pub struct Sides {
    config: Config,
    source: Database,
    target: Database,
}

/// A lane as its row on the side that it fills shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneRow {
    pub exact: bool,
    pub applied: Option<Lsn>,
    pub diverged: i64,
    pub incomplete: i64,
    pub heartbeat_age_seconds: Option<f64>,
    pub error: Option<String>,
}

/// A lane's slot on the side that it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotRow {
    pub active: bool,
    pub wal_status: String,
    pub confirmed: Option<Lsn>,
}

/// A transaction that a switch would have to wait for.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    pub who: String,
    pub age_seconds: f64,
}

impl Sides {
    /// # Errors
    /// `Service`: one of them does not answer.
    pub async fn connect(config: &Config) -> Result<Sides, Error> {
        let source = Database::connect("source", &config.source.url).await?;
        let target = Database::connect("target", &config.target.url).await?;
        Ok(Sides { config: config.clone(), source, target })
    }

    pub fn at(&self, side: Side) -> &Database {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Connects anew what has broken, each by itself: one that stays away does not keep the other from being used.
    pub async fn revive(&mut self) {
        let urls = [&self.config.source.url, &self.config.target.url];
        for (database, url) in [&mut self.source, &mut self.target].into_iter().zip(urls) {
            if database.client.is_closed()
                && let Ok(Ok(new)) = tokio::time::timeout(CONNECT_WITHIN, Database::connect(database.role, url)).await
            {
                *database = new;
            }
        }
    }

    pub fn fence(&self, side: Side) -> Fence<'_> {
        Fence::new(self.at(side), &self.config.migration.name)
    }

    /// The tables that are published on the source: partitions stand under their roots.
    ///
    /// # Errors
    /// `Source`.
    pub async fn tables(&self) -> Result<Vec<TableName>, Error> {
        let name = &self.config.migration.publication;
        Ok(publication::published(&self.source.client, name).await.map_err(failed)?.unwrap_or_default())
    }

    /// None where nothing was ever applied by it.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn lane(&self, from: Side) -> Result<Option<LaneRow>, Error> {
        let to = self.at(from.other());
        if !to.has("dflux.lane").await? {
            return Ok(None);
        }
        let sql = "SELECT coalesce(phase, '') = 'exact', commit_lsn::text, diverged,
                 (SELECT count(*) FROM dflux.incomplete i WHERE i.lane = l.lane),
                 extract(epoch FROM clock_timestamp() - heartbeat_at)::float8, error
             FROM dflux.lane l WHERE lane = $1";
        let rows = to.rows("its lane", sql, &[&self.lane_name(from)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(LaneRow {
            exact: to.get(row, 0)?,
            applied: to.get::<Option<String>>(row, 1)?.and_then(|lsn| lsn.parse().ok()),
            diverged: to.get(row, 2)?,
            incomplete: to.get(row, 3)?,
            heartbeat_age_seconds: to.get(row, 4)?,
            error: to.get(row, 5)?,
        }))
    }

    /// Of the lane that comes from this side.
    pub fn lane_name(&self, from: Side) -> String {
        origin::lane_name(&self.config.migration.name, lane_of(from))
    }

    /// None where it is not there.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn slot(&self, from: Side) -> Result<Option<SlotRow>, Error> {
        let side = self.at(from);
        let sql = "SELECT active, coalesce(wal_status, ''), confirmed_flush_lsn::text
             FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()";
        let slot = lane_of(from).own(&self.config.migration.slot);
        let rows = side.rows("its slot", sql, &[&slot]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(SlotRow {
            active: side.get(row, 0)?,
            wal_status: side.get(row, 1)?,
            confirmed: side.get::<Option<String>>(row, 2)?.and_then(|lsn| lsn.parse().ok()),
        }))
    }

    /// Transactions of the side that is to be closed which are older than this and have written, and all prepared ones.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn long_transactions(&self, from: Side, older: Duration) -> Result<Vec<Transaction>, Error> {
        let side = self.at(from);
        let sql = "SELECT a.usename || ' (' || a.application_name || ', process ' || a.pid || ')',
                 extract(epoch FROM clock_timestamp() - a.xact_start)::float8
             FROM pg_stat_activity a WHERE a.datname = current_database() AND a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
               AND a.application_name NOT LIKE 'dflux %' AND a.xact_start < clock_timestamp() - $1 * interval '1 second'
             UNION ALL SELECT 'prepared transaction ' || quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::float8
             FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 2 DESC";
        let rows = side.rows("its transactions", sql, &[&older.as_secs_f64()]).await?;
        let transaction = |row| Ok(Transaction { who: side.get(row, 0)?, age_seconds: side.get(row, 1)? });
        rows.iter().map(transaction).collect()
    }

    /// Says in the WAL of the closing side that this is the end, and where that is. Everything that was committed before lies before it.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn mark(&self, from: Side, content: &str) -> Result<Lsn, Error> {
        let side = self.at(from);
        side.batch("a marker cannot be written", &markers::emit_sql(content)).await?;
        let row = side.row("its WAL position", "SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        let lsn: String = side.get(&row, 0)?;
        lsn.parse().map_err(|error: changelog::Error| Error::Source { source: Box::new(error), hint: None })
    }

    /// How long something that is committed now takes until it is applied, by this process's clock: no two clocks are compared. None if
    /// that is longer than `within`.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn lag(&self, from: Side, within: Duration) -> Result<Option<Duration>, Error> {
        let began = Instant::now();
        let marker = self.mark(from, "").await?;
        Ok(self.applied(from, marker, within).await?.then(|| began.elapsed()))
    }

    /// Waits until the lane has applied everything up to a marker; false if that takes longer.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn applied(&self, from: Side, marker: Lsn, within: Duration) -> Result<bool, Error> {
        let to = self.at(from.other());
        let (lane, ends) = (self.lane_name(from), Instant::now() + within);
        // The marker's commit lies below the position that was read behind it, and above everything before.
        let sql = "SELECT coalesce(commit_lsn >= $2::text::pg_lsn, false) FROM dflux.lane WHERE lane = $1";
        loop {
            let rows = to.rows("its lane", sql, &[&lane, &marker.to_string()]).await?;
            if rows.first().map(|row| to.get::<bool>(row, 0)).transpose()? == Some(true) {
                return Ok(true);
            }
            if Instant::now() > ends {
                return Ok(false);
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }

    /// Puts the sequences of the side that is to be opened ahead of the other's, which nobody draws from any more.
    ///
    /// # Errors
    /// `Source`, `Sql`; `SequenceUnfit` names one that cannot be set.
    pub async fn sequences(&self, from: Side) -> Result<usize, Error> {
        let (drawn_at, to) = (self.at(from), self.at(from.other()));
        let migration = &self.config.migration;
        let drawn = sequences::read(&drawn_at.client, migration).await.map_err(failed)?;
        let held = sequences::read(&to.client, migration).await.map_err(failed)?;
        if let Some((name, why)) = drawn.skipped.first() {
            return Err(Error::SequenceUnfit { role: drawn_at.role, sequence: name.clone(), why: why.clone() });
        }
        let unread = drawn.unreadable.first().map(|name| (drawn_at.role, name, "our user may not read it"));
        let unread = unread.or(held.unreadable.first().map(|name| (to.role, name, "our user may not read it")));
        if let Some((role, name, why)) = unread {
            return Err(Error::SequenceUnfit { role, sequence: name.clone(), why: why.to_owned() });
        }
        let mut calls = Vec::new();
        for sequence in &drawn.sequences {
            let name = sequence.name();
            let unfit = |why: String| Error::SequenceUnfit { role: to.role, sequence: name.clone(), why };
            let Some(there) = held.sequences.iter().find(|held| held.name() == name) else {
                return Err(unfit("it is not there".to_owned()));
            };
            let value = advance(sequence, &of(there), self.config.consumer.sequence_margin, 0);
            let Some(value) = value.map_err(|why| unfit(why.to_string()))? else { continue };
            let name = quote_literal(&name.quoted());
            calls.push(format!("PERFORM pg_catalog.setval({name}, {}, {});", value.last_value, value.is_called));
        }
        // An effect that comes late must not take back what the application has drawn since.
        let open = fence::open_sql(&self.config.migration.name);
        let sql = format!(
            "BEGIN; DO $dflux$ BEGIN IF ({open}) THEN RAISE serialization_failure USING MESSAGE = 'it is open'; END IF; {} END $dflux$; COMMIT",
            calls.concat()
        );
        to.transaction("its sequences cannot be set", &sql).await.map(|()| calls.len())
    }

    /// Makes durable what is committed on a side, also by sessions that do not wait for that.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn flush(&self, side: Side) -> Result<(), Error> {
        // Only a transaction that has written waits for its WAL, and so for all WAL before.
        let sql = "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_catalog.pg_logical_emit_message(true, 'dflux.flush', ''); COMMIT";
        self.at(side).batch("its WAL cannot be flushed", sql).await
    }

    /// The end of a side's WAL, and whether the slot of the lane that comes from it holds everything behind that.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn covered(&self, from: Side) -> Result<Option<Lsn>, Error> {
        let Some(SlotRow { confirmed: Some(confirmed), wal_status, .. }) = self.slot(from).await? else {
            return Ok(None);
        };
        let side = self.at(from);
        let row = side.row("its WAL position", "SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        let end: Option<Lsn> = side.get::<String>(&row, 0)?.parse().ok();
        Ok(end.filter(|end| confirmed <= *end && wal_status != "lost"))
    }

    /// Whether the columns of the migrated tables are the same on both sides.
    ///
    /// # Errors
    /// `Sql`, `Source`.
    pub async fn same_columns(&self) -> Result<bool, Error> {
        let tables = self.tables().await?;
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let sql = "SELECT coalesce(md5(string_agg(concat_ws(' ', quote_ident(w.s), quote_ident(w.n), quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)),
                 E'\n' ORDER BY w.s COLLATE \"C\", w.n COLLATE \"C\", a.attname)), '')
             FROM unnest($1::text[], $2::text[]) AS w (s, n) JOIN pg_namespace k ON k.nspname = w.s
             JOIN pg_class c ON c.relnamespace = k.oid AND c.relname = w.n
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
        let columns = async |side: &Database| {
            let row = side.row("its columns", sql, &[&schemas, &names]).await?;
            side.get::<String>(&row, 0)
        };
        Ok(columns(&self.source).await? == columns(&self.target).await?)
    }

    /// A write to a table of ours, as the application would make it.
    ///
    /// # Errors
    /// `Sql`: the side takes no writes.
    pub async fn canary(&self, side: Side, epoch: u64) -> Result<(), Error> {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS dflux.canary (migration text, epoch bigint, at timestamptz NOT NULL DEFAULT clock_timestamp()); \
             INSERT INTO dflux.canary VALUES ({}, {epoch})",
            quote_literal(&self.config.migration.name)
        );
        self.at(side).batch("it takes no writes", &sql).await
    }

    /// Drops the slot of the lane back, with whoever reads it.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn drop_slot(&self, from: Side) -> Result<(), Error> {
        let side = self.at(from);
        let slot = lane_of(from).own(&self.config.migration.slot);
        let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL";
        for _attempt in 0..50 {
            side.execute("ending its reader", sql, &[&slot]).await?;
            let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
            if side.execute("dropping the slot", drop, &[&slot]).await.is_ok() && self.slot(from).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Error::SlotInUse { slot, pid: 0 })
    }

    /// Ends the application's sessions of the side that was closed, but those that are not ours to end: the fence keeps them out anyway.
    /// Yields how many there were.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn terminate(&self, from: Side) -> Result<i64, Error> {
        let side = self.at(from);
        let rows = side.rows("the application's sessions", &format!("SELECT pid {APPLICATION}"), &[]).await?;
        let mut ended = 0;
        for row in &rows {
            let pid: i32 = side.get(row, 0)?;
            match side.execute("ending a session", "SELECT pg_terminate_backend($1)", &[&pid]).await {
                Ok(_) => ended += 1,
                Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    /// How many sessions of the application the side that was closed has.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn sessions(&self, from: Side) -> Result<i64, Error> {
        let side = self.at(from);
        let row = side.row("the application's sessions", &format!("SELECT count(*) {APPLICATION}"), &[]).await?;
        side.get(&row, 0)
    }
}

/// Client sessions in this database that are none of ours.
const APPLICATION: &str = "FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
                           AND pid <> pg_backend_pid() AND application_name <> 'dflux' AND application_name NOT LIKE 'dflux %'";

fn of(sequence: &Sequence) -> Held {
    let Sequence { increment, min, max, .. } = *sequence;
    Held { value: sequence.value(), increment, min, max }
}

/// The lane that comes from this side.
pub fn lane_of(from: Side) -> Lane {
    match from {
        Side::Source => Lane::Forward,
        Side::Target => Lane::Reverse,
    }
}
