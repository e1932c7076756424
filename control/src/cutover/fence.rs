//! The fence: in the database itself, for every role, so that what a config store says is only advice.
//!
//! ```text
//!  a write ─> trigger: is it open? ─ shared lock, to the transaction's end ─ is it still open? ─> passes
//!  close   ─> setval(closed) ── nobody holds the lock any more: whoever passed before has ended ──> L, nothing is written behind it
//! ```
//! Whether it is open is the value of a sequence: it outlives every crash, costs a write a few microseconds, and is seen at once by a
//! session whose snapshot is older, which no row would be. Whoever passed holds an advisory lock until its transaction ends, a prepared
//! one too: whose locks there are says who is left, whatever the isolation level, and no writer ever waits. A value holds the epoch,
//! so that a controller that another has taken over from changes nothing; within one epoch a fence only closes further.
//!
//! The triggers fire for replica-mode writers as well. Sessions of the consumer say who they are (`dflux.applier`) and pass; a role that
//! says so too, or that disables triggers, has been told what it does.

use std::time::{Duration, Instant};

use changelog::TableName;
use changelog::fence::{self, LOCK_CLASS, MODE_BITS, PASS, TRIGGER};
use changelog::table::{quote_identifier, quote_literal};
use tokio_postgres::error::SqlState;

use super::{Epoch, Mode};
use crate::{Database, Error};

/// Of the epoch in the sequence's value.
const EPOCH_SHIFT: u32 = MODE_BITS.trailing_ones();
/// A table's lock is not waited for longer than this: behind us, the application's writes would wait too.
const TABLE_LOCK_MS: u32 = 300;
const TABLE_LOCK_TRIES: u32 = 40;
const LOOKS_EVERY: Duration = Duration::from_millis(5);

/// By the value of its bits in the sequence: the stricter the greater.
const MODES: [Mode; 5] = [Mode::Open, Mode::OldSessions, Mode::OldTransactions, Mode::Closed, Mode::Sealed];

fn bits(mode: Mode) -> usize {
    MODES.iter().position(|known| *known == mode).unwrap_or(MODES.len() - 1)
}

/// What the fence of a database says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub epoch: Epoch,
    pub mode: Mode,
}

/// Somebody who passed the fence before it closed and has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Writer {
    /// None of a prepared transaction.
    pub pid: Option<i32>,
    /// The prepared transaction's identifier, or the role and application.
    pub who: String,
    /// Of the transaction.
    pub age_seconds: f64,
}

/// What a barrier came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Barrier {
    /// Nothing is written behind it, and everything that was is committed or undone.
    Reached,
    /// These have not ended in time.
    Busy(Vec<Writer>),
}

/// One migration's fence in one of the two databases.
#[derive(Debug)]
pub struct Fence<'a> {
    database: &'a Database,
    migration: &'a str,
}

impl<'a> Fence<'a> {
    pub fn new(database: &'a Database, migration: &'a str) -> Fence<'a> {
        Fence { database, migration }
    }

    fn name(&self) -> String {
        fence::quoted(self.migration)
    }

    /// The sequence as a `regclass` literal.
    fn sequence(&self) -> String {
        format!("{}::pg_catalog.regclass", quote_literal(&self.name()))
    }

    fn lock(&self) -> String {
        format!(
            "{LOCK_CLASS}, ({}::pg_catalog.oid)::pg_catalog.int8::pg_catalog.bit(32)::pg_catalog.int4",
            self.sequence()
        )
    }

    /// Makes the fence if it is not there, in this mode, and puts it up before each of the tables and their partitions. Writers wait
    /// a moment for each table's trigger.
    ///
    /// # Errors
    /// `Sql`; `FenceBusy` where a table's lock was not to be had.
    pub async fn install(&self, tables: &[TableName], mode: Mode) -> Result<(), Error> {
        let (name, sequence) = (self.name(), self.sequence());
        let made = format!(
            "BEGIN; SET LOCAL client_min_messages = warning; SELECT pg_catalog.pg_advisory_xact_lock({ddl_lock});
CREATE SCHEMA IF NOT EXISTS dflux;
GRANT USAGE ON SCHEMA dflux TO PUBLIC;
DO $dflux$ BEGIN
    IF pg_catalog.to_regclass({literal}) IS NULL THEN
        CREATE SEQUENCE {name} MINVALUE 0 START 0;
        GRANT SELECT ON SEQUENCE {name} TO PUBLIC;
        PERFORM pg_catalog.setval({literal}, {bits}, true);
    END IF;
END $dflux$;
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $dflux$
BEGIN
    -- These are expressions that need no statement of their own.
    IF pg_catalog.pg_sequence_last_value({sequence}) & {MODE_BITS} = 0 THEN
        IF pg_catalog.pg_try_advisory_xact_lock_shared({lock}) AND pg_catalog.pg_sequence_last_value({sequence}) & {MODE_BITS} = 0 THEN
            RETURN NULL;
        END IF;
        -- Closed between the two looks: the lock does not show that it was held before.
    ELSIF pg_catalog.pg_sequence_last_value({sequence}) & {MODE_BITS} = {draining} AND EXISTS (SELECT FROM pg_catalog.pg_locks l
        WHERE l.locktype = 'advisory' AND l.pid = pg_catalog.pg_backend_pid() AND l.granted AND l.objsubid = 2
        AND (l.classid, l.objid) = ({class}::pg_catalog.oid, {sequence}::pg_catalog.oid)) THEN
        RETURN NULL;
    END IF;
    IF pg_catalog.current_setting('{PASS}', true) = {migration} THEN
        RETURN NULL;
    END IF;
    RAISE read_only_sql_transaction USING MESSAGE = 'dflux: this database takes no writes: migration ' || {migration} || ' has closed it',
        HINT = 'The application''s database is the one that its config store names. Connect anew.';
END $dflux$;
COMMIT",
            ddl_lock = consumer::schema::DDL_LOCK,
            literal = quote_literal(&name),
            bits = bits(mode),
            draining = bits(Mode::OldTransactions),
            class = LOCK_CLASS,
            lock = self.lock(),
            migration = quote_literal(self.migration),
        );
        self.database.transaction("the fence cannot be made", &made).await?;
        for table in self.lacking(tables).await? {
            self.put_up(&table).await?;
        }
        Ok(())
    }

    /// Those of the tables and their partitions before which it does not stand. One that is not there needs none.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn lacking(&self, tables: &[TableName]) -> Result<Vec<TableName>, Error> {
        let sql = "WITH RECURSIVE part (oid) AS (
               SELECT c.oid FROM unnest($1::text[], $2::text[]) AS w (schema, name) JOIN pg_namespace n ON n.nspname = w.schema
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
               UNION SELECT i.inhrelid FROM part p JOIN pg_class k ON k.oid = p.oid AND k.relkind = 'p' JOIN pg_inherits i ON i.inhparent = p.oid)
             SELECT n.nspname::text, c.relname::text FROM part p JOIN pg_class c ON c.oid = p.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
               JOIN pg_namespace s ON s.oid = f.pronamespace WHERE t.tgrelid = p.oid AND t.tgname = $3 AND t.tgenabled = 'A'
               AND s.nspname = 'dflux' AND f.proname = $4)
             ORDER BY 1, 2";
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let rows =
            self.database.rows("its fence", sql, &[&schemas, &names, &TRIGGER, &fence::name(self.migration)]).await?;
        let table =
            |row| Ok(TableName::new(self.database.get::<String>(row, 0)?, self.database.get::<String>(row, 1)?));
        rows.iter().map(table).collect()
    }

    async fn put_up(&self, table: &TableName) -> Result<(), Error> {
        let (quoted, trigger, function) = (table.quoted(), quote_identifier(TRIGGER), self.name());
        let sql = format!(
            "DROP TRIGGER IF EXISTS {trigger} ON {quoted};
             CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {quoted} FOR EACH STATEMENT EXECUTE FUNCTION {function}();
             ALTER TABLE {quoted} ENABLE ALWAYS TRIGGER {trigger}"
        );
        self.at(table, &sql).await
    }

    /// Changes a table's trigger. Its lock conflicts with writers, so that it is asked for often and never waited for long.
    async fn at(&self, table: &TableName, statements: &str) -> Result<(), Error> {
        let sql = format!(
            "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = {TABLE_LOCK_MS}; {statements}; COMMIT"
        );
        for attempt in 0.. {
            match self.database.transaction("the fence cannot be changed", &sql).await {
                Err(Error::Sql { source, .. })
                    if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && attempt < TABLE_LOCK_TRIES =>
                {
                    tokio::time::sleep(Duration::from_millis(u64::from(TABLE_LOCK_MS) * 2)).await;
                }
                Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    return Err(Error::FenceBusy { role: self.database.role, table: table.clone() });
                }
                done => return done,
            }
        }
        Ok(())
    }

    /// None where it was never made.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn standing(&self) -> Result<Option<Standing>, Error> {
        let sql = "SELECT CASE WHEN pg_catalog.to_regclass($1) IS NOT NULL THEN pg_catalog.pg_sequence_last_value(pg_catalog.to_regclass($1)) END";
        let row = self.database.row("its fence", sql, &[&self.name()]).await?;
        Ok(self.database.get::<Option<i64>>(&row, 0)?.map(|value| {
            let mode = MODES.get((value & MODE_BITS) as usize).copied().unwrap_or(Mode::Sealed);
            Standing { epoch: Epoch((value >> EPOCH_SHIFT).max(0) as u64), mode }
        }))
    }

    /// Opens or closes it under an epoch; under the one that it has already it only closes further. It holds at once, and through a
    /// crash of the server. One that is open is not sealed.
    ///
    /// # Errors
    /// `Sql`; `StaleEpoch` where a later one has been here, or this one has closed it.
    pub async fn set(&self, epoch: Epoch, mode: Mode) -> Result<(), Error> {
        let (epoch, sequence) = (epoch.0, self.sequence());
        // One at a time, and not while the consumer sets sequences.
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '2s';
             SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, 0);
             DO $dflux$ BEGIN
                 IF pg_catalog.pg_sequence_last_value({sequence}) >> {EPOCH_SHIFT} > {epoch} THEN
                     RAISE serialization_failure USING MESSAGE = 'epoch ' || (pg_catalog.pg_sequence_last_value({sequence}) >> {EPOCH_SHIFT});
                 END IF;
                 IF {sealed} AND pg_catalog.pg_sequence_last_value({sequence}) & {MODE_BITS} = 0 THEN
                     RAISE serialization_failure USING MESSAGE = 'it is open';
                 END IF;
                 PERFORM pg_catalog.setval({sequence}, greatest({value}, pg_catalog.pg_sequence_last_value({sequence})), true);
             END $dflux$; COMMIT",
            sealed = mode == Mode::Sealed,
            value = epoch << EPOCH_SHIFT | bits(mode) as u64,
        );
        let stale = || Error::StaleEpoch { role: self.database.role, epoch };
        match self.database.transaction("the fence cannot be set", &sql).await {
            Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                return Err(stale());
            }
            done => done?,
        }
        match self.standing().await? {
            Some(standing) if standing.mode == Mode::Open || mode != Mode::Open => Ok(()),
            _ => Err(stale()),
        }
    }

    /// Waits until everybody who passed it before it closed has ended, for this long at most.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn barrier(&self, within: Duration) -> Result<Barrier, Error> {
        let ends = Instant::now() + within;
        loop {
            let writers = self.writers().await?;
            if writers.is_empty() {
                return Ok(Barrier::Reached);
            }
            if Instant::now() > ends {
                return Ok(Barrier::Busy(writers));
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }

    /// Transactions that have passed the fence and have not ended, the oldest first.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn writers(&self) -> Result<Vec<Writer>, Error> {
        // A prepared transaction's locks have no process; its transaction is found by its own lock on its id.
        let sql = format!(
            "SELECT l.pid, coalesce(a.usename || ' (' || a.application_name || ')', 'prepared transaction ' || quote_literal(p.gid), '?'),
                 coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float8
             FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             LEFT JOIN pg_locks x ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid'
             LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
             WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ShareLock' AND l.objsubid = 2
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (l.classid, l.objid) = ({LOCK_CLASS}::oid, {}::oid) ORDER BY 3 DESC",
            self.sequence()
        );
        let rows = self.database.rows("its writers", &sql, &[]).await?;
        let writer = |row| {
            Ok(Writer {
                pid: self.database.get(row, 0)?,
                who: self.database.get(row, 1)?,
                age_seconds: self.database.get(row, 2)?,
            })
        };
        rows.iter().map(writer).collect()
    }

    /// Removes all of it, table by table: behind a long reader, no table's writers wait longer than a moment.
    ///
    /// # Errors
    /// `Sql`, `FenceBusy`.
    pub async fn remove(&self) -> Result<(), Error> {
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
             JOIN pg_namespace s ON s.oid = f.pronamespace JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE t.tgname = $1 AND s.nspname = 'dflux' AND f.proname = $2 ORDER BY 1, 2";
        let rows = self.database.rows("its fence", sql, &[&TRIGGER, &fence::name(self.migration)]).await?;
        for row in &rows {
            let table = TableName::new(self.database.get::<String>(row, 0)?, self.database.get::<String>(row, 1)?);
            self.at(&table, &format!("DROP TRIGGER IF EXISTS {} ON {}", quote_identifier(TRIGGER), table.quoted()))
                .await?;
        }
        let name = self.name();
        let sql = format!(
            "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '5s';
             DROP FUNCTION IF EXISTS {name}(); DROP SEQUENCE IF EXISTS {name}; COMMIT"
        );
        self.database.transaction("the fence cannot be removed", &sql).await
    }
}
