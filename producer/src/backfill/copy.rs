//! Reading chunks: one worker per partition of the snapshot topic, one COPY per chunk, its bytes cut into blocks. I/O.
//!
//! The bytes are COPY's own, unread. A chunk's last block is held back until it is known that the table was not rewritten
//! under the snapshot (TRUNCATE, ALTER TABLE): such a table reads as empty without any error. Only with its last block a
//! chunk is whole, so an attempt without it leaves nothing behind.

use std::sync::Arc;

use bytes::Bytes;
use changelog::Block;
use changelog::block::{ChunkId, CopyFormat};
use changelog::ledger::{Chunk, Plan};
use futures_util::StreamExt;
use tokio_postgres::Client;

use super::plan;
use super::snapshot::{Shared, Snapshot, begin_under};
use super::throttle::Throttle;
use crate::error::Error;
use crate::lane::Lane;
use crate::observe;
use crate::publish::{Outgoing, Outstanding, TrackedPublisher};
use crate::source::catalog::{Generated, Table};
use crate::source::{field, rows};

/// Rows are gathered up to this. Larger blocks save little and hold more memory.
const BLOCK_BYTES: usize = 384 << 10;
pub const ATTEMPTS_MAX: u32 = 20;

/// Which snapshot a chunk is read under.
#[derive(Clone)]
pub enum Under {
    /// Any; replaced when old. Events at and after its point converge with the rows, because their key says which row.
    Shared,
    /// One of a slot.
    Exact,
    /// This one: all chunks of a re-sync are of one moment.
    Fixed(Arc<Snapshot>),
}

/// A chunk to be read.
#[derive(Clone)]
pub struct Job {
    pub table: Arc<Table>,
    /// The partitions whose files hold the rows; the table itself where it is none.
    pub files: Arc<[u32]>,
    pub plan: Arc<Plan>,
    pub chunk: u32,
    pub binary: bool,
    pub under: Under,
}

/// A chunk whose blocks are all sent.
pub struct Read {
    pub chunk: Chunk,
    pub outstanding: Arc<Outstanding>,
}

/// One session and one partition.
pub struct Worker {
    pub lane: Arc<Lane>,
    pub publisher: TrackedPublisher,
    pub throttle: Arc<Throttle>,
    pub snapshots: Arc<Shared>,
    pub partition: i32,
    pub topic: String,
    record_bytes_max: usize,
    /// The first attempt's number: above every attempt of earlier runs.
    pub first_attempt: u32,
    client: Option<Client>,
}

impl Worker {
    pub fn new(
        lane: Arc<Lane>,
        publisher: TrackedPublisher,
        throttle: Arc<Throttle>,
        snapshots: Arc<Shared>,
        (partition, record_bytes_max): (i32, usize),
        first_attempt: u32,
    ) -> Worker {
        let topic = lane.topics.snapshot();
        Worker { lane, publisher, throttle, snapshots, partition, topic, record_bytes_max, first_attempt, client: None }
    }

    /// Reads one chunk, again if its table was rewritten meanwhile.
    ///
    /// # Errors
    /// The source or Kafka failed, or the table is rewritten again and again.
    pub async fn read(&mut self, job: &Job) -> Result<Read, Error> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        // Here nothing is held: no snapshot, no transaction.
        self.throttle.pass(0).await;
        let mut stale: Option<Arc<Snapshot>> = None;
        for attempt in self.first_attempt..self.first_attempt.saturating_add(ATTEMPTS_MAX) {
            let snapshot = match &job.under {
                Under::Shared => self.snapshots.current(stale.as_ref()).await?,
                Under::Exact => self.snapshots.exact(stale.as_ref()).await?,
                Under::Fixed(fixed) => match &stale {
                    None => fixed.clone(),
                    Some(_) => Snapshot::take_exact(&self.lane).await?,
                },
            };
            if let Some(read) = self.attempt(&client, job, attempt, &snapshot).await? {
                self.client = Some(client);
                return Ok(read);
            }
            tracing::warn!(table = %job.table.name, chunk = job.chunk, "table was rewritten; reading the chunk again");
            observe::add(observe::BACKFILL_REREAD, 1);
            stale = Some(snapshot);
        }
        let table = job.table.name.clone();
        Err(Error::RewrittenTooOften { table, chunk: job.chunk, attempts: ATTEMPTS_MAX })
    }

    async fn connect(&self) -> Result<Client, Error> {
        let client = self.lane.source.connect(&self.lane.application_name()).await?;
        // We bring our own parallelism, and a backfill must not take the application's workers. A throttled COPY does not take
        // what the server sends for as long as it likes, which that time-out would count as a dead peer; the others are pinned.
        let sql = "SET max_parallel_workers_per_gather = 0; SET tcp_user_timeout = 0";
        client.batch_execute(sql).await.map_err(Error::source("prepare a copy session"))?;
        Ok(client)
    }

    /// `None`: the table was rewritten under the snapshot; nothing of this attempt counts.
    async fn attempt(
        &self,
        client: &Client,
        job: &Job,
        attempt: u32,
        snapshot: &Snapshot,
    ) -> Result<Option<Read>, Error> {
        begin_under(client, &snapshot.name).await?;
        let columns: Vec<&str> = job.columns().collect();
        let sql = plan::copy_sql(&job.table, &job.plan, job.chunk, &columns, job.binary);
        let doing = format!("copy chunk {} of {}", job.chunk, job.table.name);
        let copying = client.copy_out(&sql).await.map_err(Error::source(doing.clone()))?;
        futures_util::pin_mut!(copying);
        let mut blocks = Blocks::new(self, job, attempt, snapshot, columns)?;
        let mut messages = 0_u64;
        while let Some(data) = copying.next().await {
            let data: Bytes = data.map_err(Error::source(doing.clone()))?;
            messages += 1;
            blocks.take(&data).await?;
        }
        let intact = self.intact(client, job).await?;
        client.batch_execute("COMMIT").await.map_err(Error::source(doing))?;
        if !intact {
            return Ok(None);
        }
        // The server sends one message for each row; in binary the header stands before the first row and the trailer alone.
        let row_count = if job.binary { messages.saturating_sub(1) } else { messages };
        blocks.finish(row_count).await.map(Some)
    }

    /// Whether the files that the snapshot knows are those of now. The COPY's lock keeps a rewrite out until the transaction ends.
    async fn intact(&self, client: &Client, job: &Job) -> Result<bool, Error> {
        const DOING: &str = "check whether a table was rewritten";
        let oids: Vec<String> = job.files.iter().map(u32::to_string).collect();
        let sql = format!(
            "SELECT count(*) FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) AS f(oid) \
             LEFT JOIN pg_catalog.pg_class c ON c.oid = f.oid \
             WHERE c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(f.oid::pg_catalog.regclass) \
             AND pg_catalog.pg_relation_filenode(f.oid::pg_catalog.regclass) IS NOT NULL",
            oids.join(",")
        );
        match rows(client, DOING, &sql).await?.first() {
            Some(row) => Ok(field::<u64>(row, 0, DOING)? == 0),
            None => Ok(false),
        }
    }
}

impl Job {
    fn columns(&self) -> impl Iterator<Item = &str> {
        self.table.columns.iter().filter(|column| column.generated == Generated::No).map(|column| column.name.as_str())
    }
}

/// Cuts the bytes of one COPY into blocks and sends them.
struct Blocks<'a> {
    worker: &'a Worker,
    block: Block<'a>,
    rows: Vec<u8>,
    rows_bytes_max: usize,
    record: Vec<u8>,
    bytes: u64,
    outstanding: Arc<Outstanding>,
}

impl<'a> Blocks<'a> {
    fn new(
        worker: &'a Worker,
        job: &Job,
        attempt: u32,
        snapshot: &Snapshot,
        columns: Vec<&'a str>,
    ) -> Result<Blocks<'a>, Error> {
        let id = ChunkId { table: job.table.name.clone(), generation: job.plan.generation, chunk: job.chunk };
        let block = Block {
            id,
            attempt,
            snapshot_lsn: snapshot.lsn,
            exact_snapshot: snapshot.exact,
            columns,
            format: if job.binary { CopyFormat::Binary } else { CopyFormat::Text },
            sequence: 0,
            last: false,
            row_count: 0,
            rows: &[],
        };
        let rows_bytes_max = rows_bytes_max(&block, worker.record_bytes_max)?;
        Ok(Blocks {
            worker,
            block,
            rows: Vec::with_capacity(rows_bytes_max),
            rows_bytes_max,
            record: Vec::with_capacity(rows_bytes_max + 1024),
            bytes: 0,
            outstanding: Arc::default(),
        })
    }

    async fn take(&mut self, data: &[u8]) -> Result<(), Error> {
        self.bytes += data.len() as u64;
        let mut rest = data;
        // A row larger than a block is cut: the blocks are put together again before COPY reads them.
        while self.rows.len() + rest.len() > self.rows_bytes_max {
            let room = if rest.len() > self.rows_bytes_max { self.rows_bytes_max - self.rows.len() } else { 0 };
            let (head, tail) = rest.split_at(room);
            self.rows.extend_from_slice(head);
            rest = tail;
            self.send().await?;
        }
        self.rows.extend_from_slice(rest);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Error> {
        self.worker.throttle.pass(self.rows.len() as u64).await;
        self.record.clear();
        let block = Block { rows: &self.rows, ..self.block.clone() };
        block.encode(self.worker.lane.schemas.block, &mut self.record);
        let (topic, partition) = (self.worker.topic.as_str(), self.worker.partition);
        let record = Outgoing { topic, partition, key: None, value: &self.record };
        self.worker.publisher.send(record, &self.outstanding).await?;
        self.block.sequence += 1;
        self.rows.clear();
        Ok(())
    }

    async fn finish(mut self, row_count: u64) -> Result<Read, Error> {
        (self.block.last, self.block.row_count) = (true, row_count);
        self.send().await?;
        let chunk = Chunk {
            id: self.block.id,
            attempt: self.block.attempt,
            snapshot_lsn: self.block.snapshot_lsn,
            exact_snapshot: self.block.exact_snapshot,
            row_count,
            bytes: self.bytes,
            partition: self.worker.partition,
            first_offset: 0,
            last_offset: 0,
        };
        Ok(Read { chunk, outstanding: self.outstanding })
    }
}

/// How many bytes of rows go into a block like this one. Its columns may be 1,600, with long names.
fn rows_bytes_max(block: &Block<'_>, record_bytes_max: usize) -> Result<usize, Error> {
    let mut bare = Vec::new();
    let widest = Block { sequence: u32::MAX, row_count: i64::MAX as u64, ..block.clone() };
    widest.encode(0, &mut bare);
    let room = record_bytes_max.saturating_sub(bare.len() + 10).min(BLOCK_BYTES);
    if room < record_bytes_max.min(BLOCK_BYTES) / 4 {
        let (table, what) = (block.id.table.clone(), "the list of its columns");
        return Err(Error::NoRoom { table, what, bytes: bare.len(), record_bytes_max });
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<'a>(columns: Vec<&'a str>, rows: &'a [u8]) -> Block<'a> {
        let id = ChunkId { table: changelog::TableName::new("s", "t"), generation: 1, chunk: 2 };
        let (snapshot_lsn, format) = (changelog::Lsn(u64::MAX >> 1), CopyFormat::Binary);
        let (sequence, row_count) = (u32::MAX, i64::MAX as u64);
        let (attempt, last) = (u32::MAX, true);
        Block { id, attempt, snapshot_lsn, exact_snapshot: true, columns, format, sequence, last, row_count, rows }
    }

    #[test]
    fn a_full_block_is_no_larger_than_a_record_whatever_its_columns_are_called() {
        let names: Vec<String> = (0..700).map(|at| format!("{at:063}")).collect();
        for (columns, record_bytes_max) in [(1, 64_000), (300, 64_000), (700, 64_000), (700, 1 << 20), (1, 8 << 20)] {
            let columns: Vec<&str> = names.iter().take(columns).map(String::as_str).collect();
            let Ok(room) = rows_bytes_max(&block(columns.clone(), &[]), record_bytes_max) else {
                assert_eq!((columns.len(), record_bytes_max), (700, 64_000));
                continue;
            };
            let mut record = Vec::new();
            block(columns, &vec![0; room]).encode(u32::MAX, &mut record);
            assert!(record.len() <= record_bytes_max && room <= BLOCK_BYTES, "{} bytes", record.len());
        }
    }
}
