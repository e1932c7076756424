//! The loop of a leading instance: items from the reading thread into batches, batches into the target.
//!
//! Caught up, a batch is whatever has arrived, applied at once; behind, it grows to its bounds. It never waits for more.

mod tables;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use changelog::{Lsn, Manifest, Op, Position, TableName, ledger};
use service::{Shutdown, config};
use tokio::sync::mpsc;

use crate::admission::Admission;
use crate::catalog::{Met, Relations, Told};
use crate::error::Remedy;
use crate::event::{Item, Parcel, PartitionIndex, RawEvent};
use crate::execute::{Applier, Batch, Tail, prepare};
use crate::follow::Requests;
use crate::merge::Applied;
use crate::plan::{Change, Mode};
use crate::relation::Relation;
use crate::resync::Request;
use crate::rule::Rule;
use crate::target::now_micros;
use crate::{Error, observe, sequence, target};

/// When the loop last moved, by this machine's clock; what signs of life rest on.
pub type Pulse = Arc<AtomicI64>;

/// Why the loop ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Shutdown,
    /// The applied position has reached the lane's `exact_from`, or the next transaction has.
    Tolerated,
}

/// A batch on its way into the target; the next one is planned meanwhile. Given up when dropped.
pub struct Flight(tokio::task::JoinHandle<(Applier, Batch, Result<(), Error>)>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub struct Pipeline<'a> {
    pub config: &'a config::Consumer,
    /// Not here while a batch is on its way.
    pub applier: Option<Applier>,
    pub flight: Option<Flight>,
    pub receiver: mpsc::Receiver<Result<Parcel, Error>>,
    pub shutdown: Shutdown,
    pub pulse: Pulse,
    pub exact_from: Lsn,
    /// False while tolerant: the loop ends when `exact_from` is reached.
    pub exact: bool,
    pub rules: foldhash::HashMap<TableName, Rule>,
    pub relations: Relations,
    /// What the re-sync of a table asks of the lane.
    pub requests: mpsc::Receiver<Request>,
    /// What the ledger has of that.
    pub asked: Requests,
    /// Suspended tables of which a later copy has begun than the one that is being loaded.
    pub superseded: foldhash::HashSet<TableName>,
    /// Received and not taken yet.
    pub queue: VecDeque<Item>,
    pub batch: Batch,
    /// Within a source transaction.
    pub inside: bool,
    /// The commit LSN of that, or of the last one.
    pub at: Lsn,
    /// The target has refused a batch: what is pending stands behind it.
    pub refused: bool,
    /// A part of it is in the target, in an open transaction.
    pub uncommitted: bool,
    pub control: Option<u16>,
    /// Whether the application's writes are carried already.
    pub admission: Admission,
    /// The last transaction that was not.
    pub rogue: Option<Lsn>,
    /// What is committed in the target.
    pub applied: Applied,
}

impl Pipeline<'_> {
    /// Runs until the shutdown, an error, or the end of tolerance.
    ///
    /// # Errors
    /// Everything that the lane can meet.
    pub async fn run(&mut self) -> Result<Ended, Error> {
        match self.items().await {
            Err(error) if error.remedy() == Remedy::Stop && !self.refused => {
                self.complete().await?;
                Err(error)
            }
            ended => ended,
        }
    }

    /// Nobody but a person can help: what is whole goes into the target, so that the lane stops at the transaction that is at
    /// fault.
    async fn complete(&mut self) -> Result<(), Error> {
        self.settle().await?;
        let Some(applier) = self.applier.as_mut().filter(|applier| !applier.inside()) else { return Ok(()) };
        let mut batch = std::mem::take(&mut self.batch);
        let mut end = batch.applied;
        if self.inside {
            batch.changes.retain(|change| change.event.header.position.commit_lsn < self.at);
            end = Some(Applied::before(self.at));
        }
        applier.singly(batch.changes, end).await
    }

    async fn items(&mut self) -> Result<Ended, Error> {
        loop {
            self.pulse.store(now_micros(), Ordering::Relaxed);
            if !self.inside
                && let Ok(request) = self.requests.try_recv()
            {
                self.serve(request).await?;
            }
            if self.queue.is_empty() {
                let parcel = match self.receiver.try_recv() {
                    Ok(parcel) => parcel?,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        return Err(Error::Thread { what: "reads the lane" });
                    }
                    Err(mpsc::error::TryRecvError::Empty) => match self.wait().await? {
                        Waited::Parcel(parcel) => parcel,
                        Waited::Again => continue,
                        Waited::Ended(ended) => return Ok(ended),
                    },
                };
                self.queue.extend(parcel);
                self.expect().await?;
            }
            while let Some(item) = self.queue.pop_front() {
                if self.turns(&item) {
                    self.queue.push_front(item);
                    self.drain().await?;
                    return Ok(Ended::Tolerated);
                }
                self.take(item).await?;
            }
            if self.shutdown.begun() && !self.inside {
                self.drain().await?;
                return Ok(Ended::Shutdown);
            }
        }
    }

    /// Nothing is queued: what there is goes into the target at once, unless a batch is on its way; then whatever
    /// arrives until that is through makes the next one.
    async fn wait(&mut self) -> Result<Waited, Error> {
        if self.flight.is_none() {
            if !self.inside && self.pending() {
                self.flush(true).await?;
                return Ok(Waited::Again);
            }
            if self.tolerated() {
                return Ok(Waited::Ended(Ended::Tolerated));
            }
        }
        tokio::select! {
            biased;
            landed = landing(&mut self.flight) => {
                self.landed(landed)?;
                Ok(Waited::Again)
            }
            received = self.receiver.recv() => match received {
                Some(parcel) => Ok(Waited::Parcel(parcel?)),
                None => Err(Error::Thread { what: "reads the lane" }),
            },
            Some(request) = self.requests.recv(), if !self.inside => {
                self.serve(request).await?;
                Ok(Waited::Again)
            }
            () = tokio::time::sleep(Duration::from_millis(500)) => Ok(Waited::Again),
            () = self.shutdown.wait() => {
                self.settle().await?;
                Ok(Waited::Ended(Ended::Shutdown))
            }
        }
    }

    /// Waits until no batch is on its way.
    async fn settle(&mut self) -> Result<(), Error> {
        if self.flight.is_some() {
            let landed = landing(&mut self.flight).await;
            self.landed(landed)?;
        }
        Ok(())
    }

    /// Between two transactions: everything that is pending into the target.
    async fn drain(&mut self) -> Result<(), Error> {
        if self.pending() {
            self.flush(true).await?;
        }
        self.settle().await
    }

    fn landed(&mut self, landed: Landed) -> Result<(), Error> {
        self.flight = None;
        self.pulse.store(now_micros(), Ordering::Relaxed);
        let (applier, batch, result) = landed.map_err(|_| Error::Thread { what: "applies a batch" })?;
        self.applier = Some(applier);
        self.refused = result.is_err();
        result?;
        if let Some(applied) = batch.applied {
            self.applied = applied;
            observe::applied_lsn(applied.position.commit_lsn.0);
        }
        if let Some((marker, received)) = &batch.marker {
            let now = now_micros();
            observe::lag("decode", marker.decoded_at_micros - marker.emitted_at_micros);
            observe::lag("fetch", received - marker.decoded_at_micros);
            observe::lag("apply", now - received);
            observe::lag("total", now - marker.emitted_at_micros);
        }
        Ok(())
    }

    /// The session, when no batch is on its way.
    ///
    /// # Errors
    /// Those of the batch that was.
    pub async fn applier(&mut self) -> Result<&mut Applier, Error> {
        self.settle().await?;
        self.applier.as_mut().ok_or(Error::Thread { what: "applies a batch" })
    }

    fn pending(&self) -> bool {
        self.batch.applied.is_some() || self.batch.marker.is_some() || !self.batch.changes.is_empty()
    }

    fn tolerated(&self) -> bool {
        !self.exact && !self.inside && self.applied.position.commit_lsn >= self.exact_from
    }

    /// Whether the item begins the first transaction that must be applied strictly, while the lane is still tolerant.
    fn turns(&self, item: &Item) -> bool {
        let position = match item {
            Item::Event(event) => event.header.position,
            Item::Schema { change, .. } => change.position,
            _ => return false,
        };
        !self.exact && !self.inside && position.commit_lsn >= self.exact_from
    }

    fn full(&self) -> bool {
        self.batch.changes.len() >= self.config.batch_changes_max || self.batch.bytes >= self.config.batch_bytes_max
    }

    /// So full that not even the end of the transaction is waited for: half as much again, so that a batch of small
    /// transactions ends, and commits, with one of them.
    fn overfull(&self) -> bool {
        self.batch.changes.len() >= self.config.batch_changes_max * 3 / 2
            || self.batch.bytes >= self.config.batch_bytes_max * 3 / 2
    }

    async fn take(&mut self, item: Item) -> Result<(), Error> {
        match item {
            Item::Partition { index, topic, partition } => {
                if self.control.is_none() {
                    self.control = Some(index); // the reader opens it first
                }
                self.batch.partitions.push((index, topic, partition));
            }
            Item::Event(event) => {
                // Neither between the two events of a key change nor between tables that one TRUNCATE names.
                let apart = event.begins_change && event.header.op != Op::Truncate;
                if self.inside && apart && self.overfull() {
                    self.uncommitted = true;
                    self.flush(false).await?;
                }
                self.inside = true;
                self.at = event.header.position.commit_lsn;
                self.tail(event.partition, event.offset, event.header.position);
                // What was said of a transaction holds for all of it; the journal is asked once.
                if self.rogue == Some(self.at) {
                    return Ok(());
                }
                match self.admission.admits(self.at).await? {
                    true => self.event(event).await?,
                    false => self.rogue(&event).await?,
                }
            }
            Item::End { manifest, offset } => self.end(manifest, offset).await?,
            Item::Schema { change, offset } => Box::pin(self.schema(&change, offset)).await?,
            Item::Marker { marker, received_at_micros, offset } => {
                if let Some(token) = ledger::begun(&marker.content).filter(|_| !self.inside) {
                    self.begins(token).await?;
                }
                self.passed(marker.position, offset);
                self.batch.marker = Some((marker, received_at_micros));
            }
            Item::Sequences { read, offset } => {
                self.passed(read.position, offset);
                self.batch.sequences.extend(read.sequences);
                if self.batch.sequences.len() >= sequence::BATCH_MAX && !self.inside {
                    self.flush(true).await?;
                }
            }
        }
        Ok(())
    }

    /// A message of the lane. Behind the end of a transaction that has it inside, the position and the offset are further already.
    fn passed(&mut self, position: Position, offset: i64) {
        if position.ordinal == 0 {
            self.mark_control(offset, position);
            let here = Applied { position, complete: false };
            self.batch.applied = Some(self.batch.applied.map_or(here, |applied| applied.max(here)));
        }
    }

    fn tail(&mut self, partition: PartitionIndex, offset: i64, position: Position) {
        self.batch.tails.insert(partition, Tail { next_offset: offset + 1, position });
    }

    fn mark_control(&mut self, offset: i64, position: Position) {
        if let Some(control) = self.control {
            self.tail(control, offset, position);
        }
    }

    async fn end(&mut self, manifest: Manifest, offset: i64) -> Result<(), Error> {
        if manifest.last { self.ended(manifest.position, offset).await } else { Ok(()) }
    }

    /// The last record of a source transaction was taken.
    async fn ended(&mut self, position: Position, offset: i64) -> Result<(), Error> {
        self.inside = false;
        self.mark_control(offset, position);
        self.batch.transactions += 1;
        self.batch.applied = Some(Applied::through(position));
        if self.full() || self.uncommitted {
            self.uncommitted = false;
            self.flush(true).await?;
        }
        Ok(())
    }

    /// Somebody wrote to the target while the application was on the source: that is not brought to the source, but counted, once for each
    /// transaction.
    async fn rogue(&mut self, event: &RawEvent) -> Result<(), Error> {
        let at = event.header.position;
        self.rogue = Some(at.commit_lsn);
        let table = self.relations.table_of(event.schema_id).await?;
        let applier = self.whole_table().await?;
        let lane = applier.lane().to_owned();
        target::rogue(&mut applier.connection, &lane, &table, at).await?;
        observe::rogue(&table.to_string(), at);
        Ok(())
    }

    async fn event(&mut self, event: RawEvent) -> Result<(), Error> {
        let commit_lsn = event.header.position.commit_lsn;
        let relation = match self.relations.known(event.schema_id) {
            Some(relation) => relation,
            None => {
                // An event that is left to others says nothing of the target's table.
                let table = self.relations.table_of(event.schema_id).await?;
                if self.rules.get(&table).is_some_and(|rule| left(rule, commit_lsn)) {
                    return Ok(());
                }
                let met = self.meet(event.schema_id, event.header.position, None).await?;
                let Some(relation) = met else { return Ok(()) };
                relation
            }
        };
        let mut tolerant = commit_lsn < self.exact_from;
        if let Some(rule) = self.rules.get(relation.name()) {
            if left(rule, commit_lsn) {
                return Ok(());
            }
            tolerant |= commit_lsn < rule.tolerant_below;
        }
        // Keyless rows cannot be tolerated: their copy is exact at its point.
        let mode = if tolerant && !relation.keyless() { Mode::Tolerant } else { Mode::Strict };
        self.batch.bytes += event.size();
        self.batch.changes.push(Change { relation, mode, event });
        Ok(())
    }

    /// Prepares for the schemas of what was received that were not met before.
    async fn expect(&mut self) -> Result<(), Error> {
        let event = |item: &Item| if let Item::Event(event) = item { Some(event.schema_id) } else { None };
        let mut new: Vec<u32> = self.queue.iter().filter_map(event).collect();
        new.dedup();
        new.retain(|schema_id| self.relations.known(*schema_id).is_none());
        if new.len() < 2 {
            return Ok(());
        }
        self.settle().await?;
        let applier = self.applier.as_mut().ok_or(Error::Thread { what: "applies a batch" })?;
        match self.relations.expect(&mut applier.connection, new.into_iter()).await {
            // The schema of a later event: what is before that is applied first, and then it is asked for again.
            Err(error) if error.of_target().is_none() => {
                tracing::debug!(%error, "schemas could not be asked for beforehand");
                Ok(())
            }
            asked => asked,
        }
    }

    /// A schema that was not met before; if the target's table must be altered for it, then behind all that is pending, and in
    /// the transaction of the event.
    async fn meet(
        &mut self,
        schema_id: u32,
        position: Position,
        told: Option<Told<'_>>,
    ) -> Result<Option<Arc<Relation>>, Error> {
        loop {
            self.settle().await?;
            let applier = self.applier.as_mut().ok_or(Error::Thread { what: "applies a batch" })?;
            match self.relations.meet(&mut applier.connection, schema_id, position, told).await? {
                Met::Relation(relation) => return Ok(Some(relation)),
                Met::Renamed { from, to, taken } => {
                    if !Box::pin(self.renamed((&from, &to), taken, position)).await? {
                        return Ok(None);
                    }
                }
                Met::Alter(alteration) => {
                    self.whole_table().await?.alter(&alteration).await?;
                    self.relations.altered(&alteration);
                }
            }
        }
    }

    /// Plans the batch while the one before is on its way, then sends it after it.
    async fn flush(&mut self, commit: bool) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let prepared = match prepare(&batch.changes) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.batch = batch;
                return Err(error);
            }
        };
        self.settle().await?;
        let mut applier = self.applier.take().ok_or(Error::Thread { what: "applies a batch" })?;
        if !commit {
            // These are told when the transaction is whole.
            self.batch.transactions = batch.transactions;
            self.batch.applied = batch.applied.take();
            self.batch.marker = batch.marker.take();
            self.batch.sequences = std::mem::take(&mut batch.sequences);
            self.batch.tails = std::mem::take(&mut batch.tails);
        }
        self.flight = Some(Flight(tokio::spawn(async move {
            let result = applier.flush(&mut batch, prepared, commit).await;
            batch.changes.clear();
            (applier, batch, result)
        })));
        Ok(())
    }
}

/// Whether the events of a transaction are left to the table's copy.
fn left(rule: &Rule, commit_lsn: Lsn) -> bool {
    rule.suspended || commit_lsn < rule.skip_below
}

type Landed = Result<(Applier, Batch, Result<(), Error>), tokio::task::JoinError>;

/// Cancel-safe: the flight stays where it is.
async fn landing(flight: &mut Option<Flight>) -> Landed {
    match flight {
        Some(flight) => (&mut flight.0).await,
        None => std::future::pending().await,
    }
}

enum Waited {
    Parcel(Parcel),
    Again,
    Ended(Ended),
}
