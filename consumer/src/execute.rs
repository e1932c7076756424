//! Batches into the target: set-based first, row by row where that is refused, rows and progress in one transaction.
//!
//! A transaction larger than a batch is flushed several times inside one target transaction; each flush stands behind a
//! savepoint, so that only it is replayed. Only the last one commits.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::{Marker, Position, Sequence, TableName};
use foldhash::{HashMap, HashMapExt};
use md5::{Digest, Md5};
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Arguments, AssertSqlSafe, Row};

use crate::dialect::{Expect, Statement, statements};
use crate::error::{Remedy, code, lacks_partition, target, transient};
use crate::event::{PartitionIndex, RawEvent};
use crate::merge::Applied;
use crate::plan::{Change, Planner, Step, op_name};
use crate::sequence::Sequences;
use crate::target::{Marking, migration_of, now_micros, run};
use crate::{Error, observe};

mod whole_table;

/// How often a deadlock or serialization failure is tried again before the session is given up.
const PASSING_ATTEMPTS: u32 = 20;

/// A batch of at most so many changes and statements goes as one statement, so in one round trip.
const JOINED_CHANGES_MAX: usize = 500;
const JOINED_STATEMENTS_MAX: usize = 8;
/// So many different ones are prepared at most; what comes then goes statement by statement.
const JOINED_TEXTS_MAX: usize = 300;

/// What one flush applies.
#[derive(Debug, Default)]
pub struct Batch {
    pub changes: Vec<Change>,
    pub bytes: usize,
    pub transactions: u64,
    /// What is reached when the batch is committed.
    pub applied: Option<Applied>,
    pub marker: Option<(Marker, i64)>,
    /// Values of the source's sequences, in lane order.
    pub sequences: Vec<Sequence>,
    /// The last record of each partition that the batch has; a hint once it is committed.
    pub tails: HashMap<PartitionIndex, Tail>,
    /// Partitions that the batch is the first to name.
    pub partitions: Vec<(PartitionIndex, Arc<str>, i32)>,
}

/// The statements of the changes' net effect.
///
/// # Errors
/// Corrupt bytes, or an image that is missing.
pub fn prepare(changes: &[Change]) -> Result<Vec<Statement>, Error> {
    let mut planner = Planner::new(true);
    for change in changes {
        planner.add(change);
    }
    let mut prepared = Vec::new();
    for step in planner.finish() {
        prepared.extend(statements(&step)?);
    }
    Ok(prepared)
}

/// A partition's last applied record, to begin behind it after a restart.
#[derive(Clone, Debug)]
pub struct Tail {
    pub next_offset: i64,
    pub position: Position,
}

/// Whose progress commits with the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Lane,
    /// One table that is replayed beside the lane.
    Table(TableName),
}

#[derive(Debug)]
pub struct Applier {
    pub connection: PgConnection,
    marking: Marking,
    scope: Scope,
    lane: String,
    epoch: i64,
    /// A transaction is open: earlier flushes of it are in the target, uncommitted.
    open: bool,
    began: Instant,
    changes: u64,
    diverged: u64,
    partitions: Vec<(Arc<str>, i32)>,
    /// Hashes of the joined statements that were sent: each is prepared once, so there are not too many of them.
    joined: HashSet<u64>,
    tails: HashMap<PartitionIndex, Tail>,
    hinted_at: Instant,
    sequences: Sequences,
}

enum Failure {
    /// A count was not as expected, or a constraint refused the net effect: the single changes may pass.
    Replay(String),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Applier {
    pub fn new(connection: PgConnection, marking: Marking, scope: Scope, lane: &str, epoch: i64) -> Applier {
        Applier {
            connection,
            marking,
            scope,
            lane: lane.to_owned(),
            epoch,
            open: false,
            began: Instant::now(),
            changes: 0,
            diverged: 0,
            partitions: Vec::new(),
            joined: HashSet::new(),
            tails: HashMap::new(),
            hinted_at: Instant::now(),
            sequences: Sequences::default(),
        }
    }

    pub fn with_sequence_margin(self, margin: u64) -> Applier {
        let sequences = Sequences::new(migration_of(&self.lane), margin);
        Applier { sequences, ..self }
    }

    fn absorb(&mut self, batch: &mut Batch) {
        for (index, topic, partition) in batch.partitions.drain(..) {
            let place = usize::from(index);
            if self.partitions.len() <= place {
                self.partitions.resize(place + 1, (Arc::from(""), 0));
            }
            self.partitions[place] = (topic, partition);
        }
        self.tails.extend(batch.tails.drain());
    }

    /// Applies what the batch holds; commits if it ends with a whole transaction. `prepared` is what [`prepare`] makes of its
    /// changes.
    ///
    /// # Errors
    /// `Fenced`, `Refused` (with the record), `Target`. Whatever was not committed is undone with the session.
    pub async fn flush(&mut self, batch: &mut Batch, prepared: Vec<Statement>, commit: bool) -> Result<(), Error> {
        self.absorb(batch);
        let alone = !self.open;
        match self.whole(batch, prepared, commit).await {
            Err(error) if alone && commit && error.remedy() == Remedy::Stop && self.scope == Scope::Lane => {
                run(&mut self.connection, "ROLLBACK").await.map_err(target("rolling back"))?;
                self.open = false;
                self.singly(std::mem::take(&mut batch.changes), batch.applied).await
            }
            other => other,
        }
    }

    /// One transaction after the other: the lane stops at the one that is at fault, and not where the batch began. Not for the
    /// end of a transaction whose beginning is in the target already. `end`: what is reached behind the last one.
    ///
    /// # Errors
    /// Those of the first that cannot be applied.
    pub async fn singly(&mut self, mut changes: Vec<Change>, end: Option<Applied>) -> Result<(), Error> {
        let commit_lsn = |change: &Change| change.event.header.position.commit_lsn;
        // Of these a part may stay behind; hints that are missing cost a search.
        self.tails.clear();
        while let Some(lsn) = changes.first().map(commit_lsn) {
            let rest = changes.split_off(changes.partition_point(|change| commit_lsn(change) <= lsn));
            let applied = rest.first().map(|next| Applied::before(commit_lsn(next))).or(end);
            let batch = Batch { changes, transactions: 1, applied, ..Batch::default() };
            let prepared = prepare(&batch.changes)?;
            self.attempt(&batch, prepared, true).await?;
            changes = rest;
        }
        Ok(())
    }

    /// Whether a transaction of the source is in the target in part.
    pub fn inside(&self) -> bool {
        self.open
    }

    async fn whole(&mut self, batch: &Batch, prepared: Vec<Statement>, commit: bool) -> Result<(), Error> {
        if commit && self.joins(batch, &prepared) && self.together(batch, &prepared).await? {
            return Ok(());
        }
        let mut prepared = Some(prepared);
        let bare = batch.changes.is_empty() && batch.sequences.is_empty();
        if bare && !self.open && commit && self.hinted_at.elapsed() < Duration::from_secs(1) {
            // Only a marker or filtered transactions: one statement, a transaction of its own.
            return self.progress(batch).await;
        }
        let alone = !self.open;
        let mut attempt = 0;
        loop {
            let statements = match prepared.take() {
                Some(prepared) => prepared,
                None => prepare(&batch.changes)?,
            };
            match self.attempt(batch, statements, commit).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    attempt += 1;
                    let passing = matches!(&error, Error::Refused { source, .. } | Error::Target { source, .. }
                        if code(source).is_some_and(|code| matches!(code.as_str(), "40001" | "40P01" | "55P03")));
                    if !(passing && alone && attempt < PASSING_ATTEMPTS) {
                        return Err(error);
                    }
                    observe::trouble(&error);
                    run(&mut self.connection, "ROLLBACK").await.map_err(target("rolling back"))?;
                    self.open = false;
                    tokio::time::sleep(Duration::from_millis(u64::from(5 * attempt * attempt))).await;
                }
            }
        }
    }

    /// Whether a batch is small and plain enough to be one statement: each table once, since the parts see one snapshot.
    fn joins(&self, batch: &Batch, prepared: &[Statement]) -> bool {
        let alone = |at: usize| !prepared[..at].iter().any(|earlier| earlier.table == prepared[at].table);
        !self.open
            && batch.sequences.is_empty()
            && self.scope == Scope::Lane
            && self.marking == Marking::Origin
            && self.hinted_at.elapsed() < Duration::from_secs(1)
            && (1..=JOINED_STATEMENTS_MAX).contains(&prepared.len())
            && batch.changes.len() <= JOINED_CHANGES_MAX
            && (0..prepared.len()).all(|at| prepared[at].joins() && alone(at))
    }

    /// Rows and progress as one statement, which is its own transaction. Its counts are checked inside it, by a division that
    /// fails, because afterwards it is committed. False if it was refused: nothing happened.
    async fn together(&mut self, batch: &Batch, prepared: &[Statement]) -> Result<bool, Error> {
        let (mut sql, mut counts) = (String::from("WITH "), String::new());
        let mut arguments = PgArguments::default();
        let mut add = |arguments: &mut PgArguments, at: usize| -> Result<(), sqlx::error::BoxDynError> {
            let statement = &prepared[at];
            let _ = write!(sql, "s{at} AS ({} RETURNING 1), ", statement.text(arguments.len()));
            for array in &statement.arrays {
                arguments.add(array)?;
            }
            let expected = if let Expect::Rows(expected) = statement.expect { expected } else { 0 };
            arguments.add(expected as i64)?;
            let _ = write!(counts, "(SELECT count(*) FROM s{at}) = ${} AND ", arguments.len());
            Ok(())
        };
        let encoded = |error| Error::Target { what: "a batch".into(), source: sqlx::Error::Encode(error) };
        for at in 0..prepared.len() {
            add(&mut arguments, at).map_err(encoded)?;
        }
        (self.changes, self.diverged, self.began) = (batch.changes.len() as u64, 0, Instant::now());
        let _ = write!(sql, "p AS ({} RETURNING 1) ", progress_sql(batch, arguments.len()));
        self.add_progress(batch, &mut arguments).map_err(encoded)?;
        let _ = write!(sql, "SELECT 1 / CASE WHEN {counts}(SELECT count(*) FROM p) = 1 THEN 1 ELSE 0 END");
        let mut hasher = DefaultHasher::new();
        sql.hash(&mut hasher);
        let hash = hasher.finish();
        if !self.joined.contains(&hash) {
            if self.joined.len() >= JOINED_TEXTS_MAX {
                return Ok(false);
            }
            self.joined.insert(hash);
        }
        match sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut self.connection).await {
            Ok(_) => {
                observe::batch(self.changes, batch.transactions, self.began.elapsed().as_secs_f64());
                self.changes = 0;
                Ok(true)
            }
            Err(error) if transient(&error) && code(&error).is_none() => {
                Err(Error::Target { what: "a batch".into(), source: error })
            }
            // Whatever it was, the statements will say it one by one.
            Err(error) => {
                observe::replay(&error);
                Ok(false)
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch, prepared: Vec<Statement>, commit: bool) -> Result<(), Error> {
        let first = !self.open;
        if first {
            self.begin().await?;
        } else {
            run(&mut self.connection, "SAVEPOINT flush").await.map_err(target("a savepoint"))?;
        }
        let diverged_before = self.diverged;
        match self.prepared(prepared).await {
            Ok(()) => {}
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Replay(reason)) => {
                observe::replay(&reason);
                self.diverged = diverged_before;
                if first {
                    run(&mut self.connection, "ROLLBACK").await.map_err(target("rolling back"))?;
                    self.begin().await?;
                } else {
                    let back = "ROLLBACK TO SAVEPOINT flush";
                    run(&mut self.connection, back).await.map_err(target("rolling back"))?;
                }
                match self.one_by_one(&batch.changes).await {
                    Ok(()) => {}
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Replay(what)) => {
                        return Err(Error::TableUnfit { table: "(any)".into(), what });
                    }
                }
            }
        }
        if !first {
            run(&mut self.connection, "RELEASE SAVEPOINT flush").await.map_err(target("a savepoint"))?;
        }
        self.changes += batch.changes.len() as u64;
        if commit {
            self.sequences.set(&mut self.connection, &batch.sequences).await?;
            if self.scope == Scope::Lane && self.hinted_at.elapsed() >= Duration::from_secs(1) {
                self.hints().await?;
            }
            self.progress(batch).await?;
            run(&mut self.connection, "COMMIT").await.map_err(target("the commit"))?;
            self.open = false;
            observe::batch(self.changes, batch.transactions, self.began.elapsed().as_secs_f64());
            self.changes = 0;
            self.diverged = 0;
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), Error> {
        self.began = Instant::now();
        self.changes = 0;
        self.diverged = 0;
        run(&mut self.connection, &self.marking.begin(&self.lane)).await.map_err(target("opening a transaction"))?;
        self.open = true;
        Ok(())
    }

    async fn prepared(&mut self, prepared: Vec<Statement>) -> Result<(), Failure> {
        for statement in prepared {
            let (expect, op, table) = (statement.expect, statement.op, statement.table.clone());
            let affected = self.statement(statement, true).await?;
            if let Expect::Rows(expected) = expect
                && affected != expected
            {
                return Err(Failure::Replay(format!("{op} on {table} found {affected} of {expected} rows")));
            }
        }
        Ok(())
    }

    /// In source order, each change by itself, so that what is at fault has a name.
    async fn one_by_one(&mut self, changes: &[Change]) -> Result<(), Failure> {
        let mut planner = Planner::new(false);
        for change in changes {
            planner.add(change);
        }
        for step in planner.finish() {
            let mut missed = false;
            for statement in statements(&step)? {
                if missed && statement.only_after_success {
                    continue;
                }
                let (expect, table, position) = (statement.expect, statement.table.clone(), statement.position);
                let affected = self.statement(statement, false).await.map_err(|failure| named(failure, &step))?;
                if matches!(expect, Expect::Rows(expected) if affected != expected) {
                    missed = true;
                    self.divergence(&step, &table, position).await?;
                }
            }
        }
        Ok(())
    }

    async fn statement(&mut self, statement: Statement, fold: bool) -> Result<u64, Failure> {
        let sql = statement.text(0);
        let Statement { arrays, rows, expect, table, op, position, keys, .. } = statement;
        let refused = |source: sqlx::Error| {
            let class = code(&source).unwrap_or_default();
            // Data (22) and constraints (23): one change of many is at fault, or none is but their order.
            if fold && (class.starts_with("22") || class.starts_with("23")) {
                return Failure::Replay(format!("{op} on {table}: {source}"));
            }
            let table = table.to_string();
            Failure::Final(match lacks_partition(&source) {
                true => Error::PartitionMissing { table, what: format!("the {op} at {position}"), source },
                false => Error::Refused { table: table.into(), op, position, key_hash: None, source },
            })
        };
        if let Some(rows) = rows {
            let mut copy = self.connection.copy_in_raw(&sql).await.map_err(refused)?;
            copy.send(rows.bytes).await.map_err(refused)?;
            return copy.finish().await.map_err(refused);
        }
        let mut arguments = PgArguments::default();
        for array in arrays {
            arguments.add(array).map_err(|error| Error::Target {
                what: format!("{op} on {table}"),
                source: sqlx::Error::Encode(error),
            })?;
        }
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
        if expect != Expect::Found {
            let done = query.execute(&mut self.connection).await.map_err(refused)?;
            return Ok(done.rows_affected());
        }
        let rows = query.fetch_all(&mut self.connection).await.map_err(refused)?;
        let found: Result<Vec<Vec<String>>, sqlx::Error> = rows.iter().map(|row| row.try_get(0)).collect();
        let found = found.map_err(target(format!("{op} on {table}")))?;
        for key in keys.iter().filter(|key| !found.contains(key)) {
            self.incomplete(&table, key).await?;
        }
        Ok(found.len() as u64)
    }

    /// A row whose missing columns no event has: it is read again from the source before the lane counts as exact.
    async fn incomplete(&mut self, table: &TableName, key: &[String]) -> Result<(), Error> {
        let sql = "INSERT INTO dflux.incomplete (lane, schema_name, table_name, key) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name).bind(key);
        query.execute(&mut self.connection).await.map(|_| ()).map_err(target("dflux.incomplete"))
    }

    async fn divergence(&mut self, step: &Step<'_>, table: &TableName, position: Position) -> Result<(), Error> {
        let event = sole_event(step);
        let op = event.map_or("update", |event| op_name(event.header.op));
        let position = event.map_or(position, |event| event.header.position);
        self.diverged += 1;
        observe::diverged(&table.to_string(), &position, op);
        // The key's hash and not the key: these rows are looked at, and keys may be personal.
        let key_hash = key_hash(event.map_or(&[][..], |event| event.key()));
        let sql = "INSERT INTO dflux.divergence (lane, schema_name, table_name, commit_lsn, ordinal, op, key_hash) \
                   VALUES ($1, $2, $3, $4::pg_lsn, $5, $6, $7)";
        sqlx::query(sql)
            .bind(&self.lane)
            .bind(&table.schema)
            .bind(&table.name)
            .bind(position.commit_lsn.to_string())
            .bind(position.ordinal as i64)
            .bind(op)
            .bind(key_hash)
            .execute(&mut self.connection)
            .await
            .map(|_| ())
            .map_err(target("dflux.divergence"))
    }

    async fn hints(&mut self) -> Result<(), Error> {
        let (mut topics, mut partitions, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut lsns, mut ordinals, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (index, tail) in self.tails.drain() {
            let (topic, partition) = &self.partitions[usize::from(index)];
            topics.push(topic.to_string());
            partitions.push(*partition);
            offsets.push(tail.next_offset);
            lsns.push(tail.position.commit_lsn.to_string());
            ordinals.push(tail.position.ordinal as i64);
            parts.push(tail.position.part as i32);
        }
        let sql = "INSERT INTO dflux.offset_hint (lane, topic, kafka_partition, next_offset, commit_lsn, ordinal, part) \
                   SELECT $1, * FROM unnest($2::text[], $3::int4[], $4::int8[], $5::text[]::pg_lsn[], $6::int8[], $7::int4[]) \
                   ON CONFLICT (lane, topic, kafka_partition) DO UPDATE SET next_offset = excluded.next_offset, \
                   commit_lsn = excluded.commit_lsn, ordinal = excluded.ordinal, part = excluded.part";
        sqlx::query(sql)
            .bind(&self.lane)
            .bind(topics)
            .bind(partitions)
            .bind(offsets)
            .bind(lsns)
            .bind(ordinals)
            .bind(parts)
            .execute(&mut self.connection)
            .await
            .map_err(target("dflux.offset_hint"))?;
        self.hinted_at = Instant::now();
        Ok(())
    }

    async fn still_leading(&mut self) -> Result<(), Error> {
        let sql = "SELECT 1 FROM dflux.lane WHERE lane = $1 AND epoch = $2 FOR SHARE";
        let query = sqlx::query(sql).bind(&self.lane).bind(self.epoch);
        match query.fetch_optional(&mut self.connection).await.map_err(target("dflux.lane"))? {
            Some(_) => Ok(()),
            None => Err(Error::Fenced { lane: self.lane.clone(), epoch: self.epoch }),
        }
    }

    /// A replayed table's own progress: what is below `replay_from` is in it.
    async fn progress_of_table(&mut self, table: &TableName, batch: &Batch) -> Result<(), Error> {
        if let Some(applied) = batch.applied {
            let sql = "UPDATE dflux.table_state SET replay_from = $4::pg_lsn WHERE lane = $1 AND schema_name = $2 AND table_name = $3";
            let from = changelog::Lsn(applied.position.commit_lsn.0 + 1);
            let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name).bind(from.to_string());
            query.execute(&mut self.connection).await.map_err(target("dflux.table_state"))?;
        }
        if self.diverged > 0 {
            let sql = "UPDATE dflux.lane SET diverged = diverged + $2 WHERE lane = $1";
            let query = sqlx::query(sql).bind(&self.lane).bind(self.diverged as i64);
            query.execute(&mut self.connection).await.map_err(target("dflux.lane"))?;
        }
        self.still_leading().await
    }

    fn add_progress(&self, batch: &Batch, arguments: &mut PgArguments) -> Result<(), sqlx::error::BoxDynError> {
        let ordinal = |applied: &Applied| if applied.complete { applied.position.ordinal as i64 } else { -1 };
        arguments.add(self.lane.as_str())?;
        arguments.add(self.epoch)?;
        arguments.add(self.changes as i64)?;
        arguments.add(batch.transactions as i64)?;
        arguments.add(self.diverged as i64)?;
        arguments.add(batch.applied.map(|applied| applied.position.commit_lsn.to_string()))?;
        arguments.add(batch.applied.as_ref().map(ordinal))?;
        arguments.add(batch.applied.map(|applied| applied.position.part as i32))?;
        if let Some((marker, received)) = &batch.marker {
            for micros in [marker.emitted_at_micros, marker.decoded_at_micros, *received, now_micros()] {
                arguments.add(micros)?;
            }
        }
        Ok(())
    }

    /// The lane's row: position, counts, marker. One row, or another instance leads.
    async fn progress(&mut self, batch: &Batch) -> Result<(), Error> {
        if let Scope::Table(table) = self.scope.clone() {
            return self.progress_of_table(&table, batch).await;
        }
        let mut arguments = PgArguments::default();
        self.add_progress(batch, &mut arguments)
            .map_err(|error| Error::Target { what: "dflux.lane".into(), source: sqlx::Error::Encode(error) })?;
        let query = sqlx::query_with(AssertSqlSafe(progress_sql(batch, 0)), arguments);
        let done = query.execute(&mut self.connection).await.map_err(target("dflux.lane"))?;
        if done.rows_affected() != 1 {
            return Err(Error::Fenced { lane: self.lane.clone(), epoch: self.epoch });
        }
        Ok(())
    }
}

/// The update of the lane's row, its parameters (see `add_progress`) numbered from `before + 1` on.
fn progress_sql(batch: &Batch, before: usize) -> String {
    let at = |number: usize| format!("${}", before + number);
    let mut sql = format!(
        "UPDATE dflux.lane SET changes_applied = changes_applied + {}, transactions_applied = transactions_applied + {}, \
         diverged = diverged + {}, commit_lsn = coalesce({}::pg_lsn, commit_lsn), ordinal = coalesce({}, ordinal), \
         part = coalesce({}, part)",
        at(3),
        at(4),
        at(5),
        at(6),
        at(7),
        at(8)
    );
    if batch.marker.is_some() {
        for (place, column) in ["emitted", "decoded", "received", "applied"].iter().enumerate() {
            let value = format!("timestamptz 'epoch' + {}::int8 * interval '1 microsecond'", at(place + 9));
            let _ = write!(sql, ", marker_{column}_at = {value}");
        }
    }
    let _ = write!(sql, " WHERE lane = {} AND epoch = {}", at(1), at(2));
    sql
}

fn sole_event<'a>(step: &Step<'a>) -> Option<&'a RawEvent> {
    match step {
        Step::Set(tables) => {
            let changes = tables.first()?;
            changes.keyless.first().copied().or_else(|| changes.rows().next().map(|row| row.newest))
        }
        Step::KeyChange { delete, .. } => Some(delete),
        Step::Truncate(_) => None,
    }
}

/// The failure of a step that is one event, with what tells its record from others.
fn named(mut failure: Failure, step: &Step<'_>) -> Failure {
    if let (Failure::Final(Error::Refused { key_hash, position, .. }), Some(event)) = (&mut failure, sole_event(step)) {
        *position = event.header.position;
        *key_hash = Some(self::key_hash(event.key()).into());
    }
    failure
}

/// What stands for a key where people read it: as PostgreSQL's `md5`.
fn key_hash(key: &[u8]) -> String {
    Md5::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}
