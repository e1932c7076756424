//! The backfill: every table copied chunk by chunk beside the running stream, resumable at any chunk; then re-syncs.
//!
//! ```text
//!  planner ── Plan ──> ledger
//!     └─ jobs ──> workers (one per partition of the snapshot topic) ── blocks ──> Kafka
//!                     └─ read ──> recorder: all blocks acknowledged ── Chunk, TableCopied, BackfillCompleted ──> ledger
//! ```
//!
//! A chunk in the ledger is never read again. An unfinished one is, under a new snapshot: events from the slot's consistent
//! point on converge with it (DESIGN 3).

pub mod copy;
pub mod ledger;
pub mod pace;
pub mod plan;
mod resync;
pub mod snapshot;
pub mod throttle;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use changelog::block::ChunkId;
use changelog::ledger::{BackfillCompleted, Plan, TableCopied};
use changelog::{LedgerRecord, Lsn, TableName};
use service::retry::Backoff;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::error::Error;
use crate::lane::Lane;
use crate::observe;
use crate::publish::{Outstanding, TrackedPublisher};
use crate::source::catalog::{self, Generated, Selection, Table, TableKind};
use crate::source::{self, definition};
use crate::topics::Made;
use copy::{Job, Read, Under, Worker};
use ledger::Ledger;
use plan::ChunkSize;
use snapshot::{Shared, Snapshot};
use throttle::Throttle;

/// Planned chunks that wait for a worker.
const JOBS_WAITING: usize = 64;

/// What the backfill is given.
pub struct Start {
    pub lane: Arc<Lane>,
    pub publisher: TrackedPublisher,
    pub throttle: Arc<Throttle>,
    /// Tables published, with the leaves of the partitioned ones.
    pub selection: Arc<Selection>,
    pub consistent_point: Lsn,
    /// The slot's, right after it was made.
    pub snapshot: Option<Arc<Snapshot>>,
    pub ledger: Ledger,
    /// Where the ledger's next record will stand when it was read.
    pub ledger_offset: i64,
    /// The snapshot topic.
    pub topic: Made,
    pub first_attempt: u32,
    /// Tables that match and are not published: [`crate::watch`] tells of them again and again.
    pub new: mpsc::Receiver<Vec<TableName>>,
}

struct Backfill {
    lane: Arc<Lane>,
    publisher: TrackedPublisher,
    throttle: Arc<Throttle>,
    workers: Vec<Arc<Mutex<Worker>>>,
    /// Types of the target's columns, by table and column; empty if the target does not answer.
    target: HashMap<TableName, HashMap<String, u32>>,
    ledger: Ledger,
    /// Records of the ledger that need not be waited for one by one.
    noted: Arc<Outstanding>,
    /// When it was said that tables are not copied, and why.
    refused: HashMap<TableName, Instant>,
}

/// Copies what is not copied, then waits for re-syncs, for ever.
///
/// # Errors
/// The source or Kafka failed; a new run goes on at the first unfinished chunk.
pub async fn run(start: Start) -> Result<(), Error> {
    let requests = ledger::follow(&start.lane, start.ledger_offset)?;
    let Start { lane, publisher, throttle, selection, consistent_point, snapshot, ledger, new, .. } = start;
    let shared = Arc::new(Shared::new(lane.clone(), snapshot));
    let workers = (0..start.topic.partitions).map(|partition| {
        let (partition, snapshots) = (i32::try_from(partition).unwrap_or(0), shared.clone());
        let (throttle, first_attempt) = (throttle.clone(), start.first_attempt);
        let place = (partition, start.topic.record_bytes_max);
        let worker = Worker::new(lane.clone(), publisher.clone(), throttle, snapshots, place, first_attempt);
        Arc::new(Mutex::new(worker))
    });
    let mut backfill = Backfill {
        workers: workers.collect(),
        target: target_types(&lane).await,
        lane: lane.clone(),
        publisher,
        throttle,
        ledger,
        noted: Arc::default(),
        refused: HashMap::new(),
    };
    match &backfill.ledger.completed {
        Some(completed) => tracing::info!(exact_from = %completed.exact_from, "backfill completed by an earlier run"),
        None => backfill.initial(&selection, consistent_point).await?,
    }
    shared.release().await;
    backfill.resyncs(requests, new).await
}

impl Backfill {
    async fn initial(&mut self, selection: &Selection, consistent_point: Lsn) -> Result<(), Error> {
        let mut tables = selection.published.clone();
        if self.lane.direction == changelog::Lane::Reverse {
            // The other database was filled by the forward lane; this one begins with the slot.
            tables.clear();
        }
        // Keyless tables need the slot's own snapshot, so they come while it is there; then the large ones.
        tables.sort_by_key(|table| (!table.key.is_empty(), std::cmp::Reverse(table.estimated_bytes)));
        tracing::info!(tables = tables.len(), workers = self.workers.len(), "backfill begins");
        let began = std::time::Instant::now();
        let copies = tables.iter().map(|table| {
            let under = if table.key.is_empty() { Under::Exact } else { Under::Shared };
            (table.clone(), 0, under)
        });
        self.copy(copies.collect(), &selection.leaves).await?;
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        let exact_from = exact_from(&self.ledger, consistent_point);
        let rows: u64 = self.ledger.copied.values().map(|copied| copied.row_count).sum();
        let completed = BackfillCompleted { tables: names, exact_from };
        self.record(LedgerRecord::BackfillCompleted(completed)).await?;
        tracing::info!(rows, seconds = began.elapsed().as_secs_f64(), %exact_from, "backfill completed");
        Ok(())
    }

    async fn record(&mut self, record: LedgerRecord) -> Result<(), Error> {
        ledger::write(&self.lane, &self.publisher, &record).await?;
        self.ledger.take(record);
        Ok(())
    }

    /// Writes a record that nothing hangs on before the copy ends: the ledger keeps their order.
    async fn note(&mut self, record: LedgerRecord) -> Result<(), Error> {
        ledger::send(&self.lane, &self.publisher, &record, &self.noted).await?;
        self.ledger.take(record);
        Ok(())
    }

    /// Copies what is missing of these tables and generations, several chunks at once.
    async fn copy(
        &mut self,
        copies: Vec<(Arc<Table>, u32, Under)>,
        leaves: &HashMap<u32, Vec<u32>>,
    ) -> Result<(), Error> {
        let (jobs, waiting) = mpsc::channel::<Job>(JOBS_WAITING);
        let (finished, mut reads) = mpsc::channel::<Read>(self.workers.len() * 2);
        let mut tasks = JoinSet::new();
        let waiting = Arc::new(Mutex::new(waiting));
        for worker in &self.workers {
            tasks.spawn(work(worker.clone(), waiting.clone(), finished.clone()));
        }
        drop((waiting, finished));
        let client = self.lane.source.connect(&self.lane.application_name()).await?;
        self.throttle.begin(&client).await?;
        let mut remaining: HashMap<ledger::Copy, u32> = HashMap::new();
        let mut copies = copies.into_iter();
        let mut queue: std::collections::VecDeque<Job> = std::collections::VecDeque::new();
        let mut jobs = Some(jobs);
        loop {
            while queue.is_empty() && jobs.is_some() {
                match copies.next() {
                    Some((table, generation, under)) => {
                        let planned = self.plan(&client, &table, generation, under, leaves).await?;
                        let copy = (table.name.clone(), generation);
                        remaining.insert(copy.clone(), planned.len() as u32);
                        if planned.is_empty() {
                            self.table_copied(&copy).await?;
                        }
                        queue.extend(planned);
                    }
                    None => jobs = None, // The workers end when their queue is empty.
                }
            }
            tokio::select! {
                biased;
                Some(ended) = tasks.join_next() => {
                    ended.map_err(|error| Error::Task { what: error.to_string() })??;
                }
                read = reads.recv() => match read {
                    Some(read) => self.chunk_read(read, &mut remaining).await?,
                    None if jobs.is_none() => {
                        self.throttle.end();
                        return self.publisher.acknowledged(&self.noted).await;
                    }
                    None => return Err(Error::Task { what: "the backfill's workers ended early".into() }),
                },
                permit = reserve(jobs.as_ref()), if jobs.is_some() && !queue.is_empty() => {
                    if let (Some(permit), Some(job)) = (permit, queue.pop_front()) {
                        permit.send(job);
                    }
                }
            }
        }
    }

    /// The unfinished chunks of a table; writes its plan if there is none.
    async fn plan(
        &mut self,
        client: &Client,
        table: &Arc<Table>,
        generation: u32,
        under: Under,
        leaves: &HashMap<u32, Vec<u32>>,
    ) -> Result<Vec<Job>, Error> {
        let copy = (table.name.clone(), generation);
        // The initial copy's tables are made by `dflux prepare`. Of a later one columns and definition are of one moment.
        let (table, definition) = match generation {
            0 => (table.clone(), Vec::new()),
            _ => {
                let now = catalog::table(client, table.oid).await?;
                let now = now.ok_or_else(|| Error::TableMissing { table: table.name.clone() })?;
                let Table { key, operators, columns, .. } = Table::clone(&now);
                let table = Table { key, operators, columns, ..Table::clone(table) };
                (Arc::new(table), definition::statements(client, now.oid).await?)
            }
        };
        let known = self.ledger.plans.get(&copy).filter(|plan| plan.key == table.key).cloned();
        let own = vec![table.oid];
        let files: Arc<[u32]> = match table.kind {
            TableKind::Partitioned => leaves.get(&table.oid).cloned().unwrap_or_default().into(),
            TableKind::Ordinary | TableKind::Foreign => own.into(),
        };
        let plan = match known {
            Some(plan) if plan.definition == definition => plan,
            // The chunks stay: some may be in the target.
            Some(plan) => {
                let plan = Plan { definition, ..plan };
                self.record(LedgerRecord::Plan(plan.clone())).await?;
                plan
            }
            None => self.make_plan(client, &table, &files, (generation, definition)).await?,
        };
        observe::add_planned(u64::from(plan.chunks()), plan.estimated_rows);
        let plan = Arc::new(plan);
        let columns = table.columns.iter().filter(|column| column.generated == Generated::No);
        let on_target = self.target.get(&table.name);
        let binary = plan::binary(columns.map(|column| (column.name.as_str(), column.type_oid)), |name| {
            on_target.and_then(|columns| columns.get(name)).copied()
        });
        // Chunks of a fixed snapshot are of one moment: those of an earlier, interrupted copy are of another.
        let all = matches!(under, Under::Fixed(_));
        let unfinished = (0..plan.chunks()).filter(|chunk| {
            let id = ChunkId { table: table.name.clone(), generation, chunk: *chunk };
            all || !self.ledger.chunks.contains_key(&id)
        });
        let jobs = unfinished.map(|chunk| Job {
            table: table.clone(),
            files: files.clone(),
            plan: plan.clone(),
            chunk,
            binary,
            under: under.clone(),
        });
        Ok(jobs.collect())
    }

    /// `files`: the relations whose pages hold the rows.
    async fn make_plan(
        &mut self,
        client: &Client,
        table: &Table,
        files: &[u32],
        (generation, definition): (u32, Vec<String>),
    ) -> Result<Plan, Error> {
        let doing = format!("sample the keys of {}", table.name);
        let settings = &self.lane.config.producer;
        let chunks = plan::chunk_count(table, ChunkSize { rows: settings.chunk_rows, bytes: settings.chunk_bytes });
        let mut bounds = Vec::new();
        if chunks > 1 {
            let sizes = source::rows(client, &doing, &plan::heap_bytes_sql(files)).await?;
            let heap_bytes = sizes.first().map_or(Ok(0), |row| source::field(row, 0, &doing))?;
            for row in source::rows(client, &doing, &plan::bounds_sql(table, chunks, heap_bytes)).await? {
                let bound: Result<Vec<String>, Error> =
                    (0..table.key.len()).map(|at| source::field(&row, at, &doing)).collect();
                bounds.push(bound?);
            }
        }
        let plan = Plan {
            table: table.name.clone(),
            generation,
            oid: table.oid,
            key: table.key.clone(),
            bounds,
            estimated_rows: table.estimated_rows,
            estimated_bytes: table.estimated_bytes,
            definition,
        };
        tracing::debug!(table = %plan.table, chunks = plan.chunks(), rows = plan.estimated_rows, "table planned");
        self.record(LedgerRecord::Plan(plan.clone())).await?;
        Ok(plan)
    }

    async fn chunk_read(&mut self, read: Read, remaining: &mut HashMap<ledger::Copy, u32>) -> Result<(), Error> {
        self.publisher.acknowledged(&read.outstanding).await?;
        let mut chunk = read.chunk;
        (chunk.first_offset, chunk.last_offset) = read.outstanding.offsets();
        let copy = (chunk.id.table.clone(), chunk.id.generation);
        tracing::debug!(table = %copy.0, chunk = chunk.id.chunk, rows = chunk.row_count, bytes = chunk.bytes, "chunk read");
        observe::add(observe::BACKFILL_ROWS, chunk.row_count);
        observe::add(observe::BACKFILL_BYTES, chunk.bytes);
        observe::add(observe::BACKFILL_CHUNKS, 1);
        self.note(LedgerRecord::Chunk(chunk)).await?;
        if let Some(left) = remaining.get_mut(&copy) {
            *left -= 1;
            if *left == 0 {
                self.table_copied(&copy).await?;
            }
        }
        Ok(())
    }

    async fn table_copied(&mut self, copy: &ledger::Copy) -> Result<(), Error> {
        let (table, generation) = copy;
        if self.ledger.copied.contains_key(copy) {
            return Ok(());
        }
        let Some(plan) = self.ledger.plans.get(copy) else { return Ok(()) };
        let chunks = plan.chunks();
        let ids = (0..chunks).map(|chunk| ChunkId { table: table.clone(), generation: *generation, chunk });
        let parts = ids.filter_map(|id| self.ledger.chunks.get(&id));
        let (rows, snapshot_lsn) =
            parts.fold((0, Lsn::ZERO), |(rows, lsn), chunk| (rows + chunk.row_count, lsn.max(chunk.snapshot_lsn)));
        tracing::info!(%table, generation, rows, chunks, "table copied");
        let copied =
            TableCopied { table: table.clone(), generation: *generation, chunks, row_count: rows, snapshot_lsn };
        self.note(LedgerRecord::TableCopied(copied)).await
    }
}

/// Highest point of a chunk: below it some table is ahead of the others, one that was copied under an exact snapshot of its own
/// too. From there on every table is at one position. Pure.
fn exact_from(ledger: &Ledger, consistent_point: Lsn) -> Lsn {
    let initial = ledger.chunks.values().filter(|chunk| chunk.id.generation == 0);
    initial.map(|chunk| chunk.snapshot_lsn).max().unwrap_or(consistent_point).max(consistent_point)
}

async fn reserve(jobs: Option<&mpsc::Sender<Job>>) -> Option<mpsc::Permit<'_, Job>> {
    match jobs {
        Some(jobs) => jobs.reserve().await.ok(),
        None => None,
    }
}

async fn work(
    worker: Arc<Mutex<Worker>>,
    waiting: Arc<Mutex<mpsc::Receiver<Job>>>,
    finished: mpsc::Sender<Read>,
) -> Result<(), Error> {
    let mut worker = worker.lock().await;
    loop {
        let job = waiting.lock().await.recv().await;
        let Some(job) = job else { return Ok(()) };
        let read = worker.read(&job).await?;
        if finished.send(read).await.is_err() {
            return Ok(());
        }
    }
}

/// Types of the target's columns. The target may not answer or not be prepared: then everything is copied as text.
async fn target_types(lane: &Lane) -> HashMap<TableName, HashMap<String, u32>> {
    match read_target_types(lane).await {
        Ok(types) => types,
        Err(error) => {
            tracing::warn!(%error, "the target's column types are not known: rows are copied as text");
            HashMap::new()
        }
    }
}

async fn read_target_types(lane: &Lane) -> Result<HashMap<TableName, HashMap<String, u32>>, Error> {
    const DOING: &str = "read the target's column types";
    let mut backoff = Backoff::new(std::time::Duration::from_millis(500));
    let mut attempt = 0;
    let client = loop {
        attempt += 1;
        match lane.target.connect(&lane.application_name()).await {
            Ok(client) => break client,
            Err(error) if attempt == 4 || !error.transient() => return Err(error.into()),
            Err(_) => tokio::time::sleep(backoff.next_delay()).await,
        }
    };
    let sql = "SELECT n.nspname, c.relname, a.attname, a.atttypid FROM pg_catalog.pg_attribute a \
               JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname !~ '^pg_' \
               AND n.nspname <> 'information_schema'";
    let mut types: HashMap<TableName, HashMap<String, u32>> = HashMap::new();
    for row in source::rows(&client, DOING, sql).await? {
        let table = TableName::new(source::field::<String>(&row, 0, DOING)?, source::field::<String>(&row, 1, DOING)?);
        types.entry(table).or_default().insert(source::field(&row, 2, DOING)?, source::field(&row, 3, DOING)?);
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use changelog::ledger::Chunk;

    use super::*;

    #[test]
    fn apply_is_strict_from_where_no_table_is_ahead() {
        let chunk = |number, lsn, exact_snapshot, generation| {
            LedgerRecord::Chunk(Chunk {
                id: ChunkId { table: TableName::new("public", "t"), generation, chunk: number },
                attempt: 1,
                snapshot_lsn: Lsn(lsn),
                exact_snapshot,
                row_count: 0,
                bytes: 0,
                partition: 0,
                first_offset: 0,
                last_offset: 0,
            })
        };
        assert_eq!(exact_from(&Ledger::of(vec![chunk(0, 100, true, 0)]), Lsn(100)), Lsn(100));
        let mixed = vec![chunk(0, 100, true, 0), chunk(1, 300, false, 0), chunk(2, 250, false, 0)];
        assert_eq!(exact_from(&Ledger::of(mixed), Lsn(100)), Lsn(300));
        // A keyless table that was copied after a restart: exact, and ahead of the tables that stand at 100.
        let ahead = vec![chunk(0, 100, true, 0), chunk(1, 300, false, 0), chunk(2, 900, true, 0)];
        assert_eq!(exact_from(&Ledger::of(ahead), Lsn(100)), Lsn(900));
        assert_eq!(exact_from(&Ledger::of(vec![chunk(0, 900, false, 1)]), Lsn(100)), Lsn(100));
    }
}
