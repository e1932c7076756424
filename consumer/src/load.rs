//! The backfill's side: blocks from the snapshot topic into the target, each chunk one COPY in one transaction.
//!
//! ```text
//!  snapshot/0 ─ thread ─> worker ─ COPY ─> table         one worker per partition, since a chunk lies in one partition
//!  snapshot/1 ─ thread ─> worker ─ COPY ─> table
//!  ledger ─ follow ─> coordinator: which copy of which table, how many chunks, is all there
//! ```
//! Of a table that was copied more than once the newest whole copy is loaded, so that a new target takes nothing twice. A chunk commits with its row in `dflux.chunk` and a check that this instance still leads. A chunk that is there already is
//! passed over, whatever attempt comes; the first block of another chunk means that the open one was left unfinished.
//! COPY's bytes go from the record to the server as they are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use changelog::block::{Block, ChunkId};
use changelog::ledger::Chunk;
use changelog::table::quote_identifier;
use changelog::{TableName, Topics};
use rdkafka::{Message, Offset};
use service::{Shutdown, config};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::sync::{Mutex, mpsc};

use crate::error::{code, contract, lacks_partition, target};
use crate::event::Stop;
use crate::follow::Following;
use crate::ledger::Generations;
use crate::pipeline::Pulse;
use crate::reader::{Queue, Reader, poll};
use crate::target::{Marking, Purpose, Sessions, now_micros, run};
use crate::{Error, catalog, observe, resync};

const POLL: Duration = Duration::from_millis(200);
/// Without a new chunk for so long, what is missing is looked for where the ledger says.
const QUIET: Duration = Duration::from_secs(10);

/// What a loading instance works with.
#[derive(Clone)]
pub struct Loading {
    pub sessions: Sessions,
    pub epoch: i64,
    pub kafka: config::Kafka,
    pub topics: Topics,
    pub client: String,
    pub bytes_max: u64,
    pub pulse: Pulse,
    pub shutdown: Shutdown,
}

/// A record of the snapshot topic.
struct Raw {
    offset: i64,
    payload: Vec<u8>,
}

enum Told {
    Loaded,
    Failed(Error),
}

#[derive(Default)]
pub struct Shared {
    pub loaded: HashSet<ChunkId>,
    /// The copies that are loaded; blocks of others are passed over.
    wanted: Generations,
    /// Attempts that a worker is loading at this moment.
    open: HashSet<(ChunkId, u32)>,
    /// Tables that were found empty before their first chunk, with their columns.
    tables: HashMap<TableName, HashSet<String>>,
}

impl Shared {
    /// Whether the caller is to load this attempt: it is wanted, not there, and nobody else has it open.
    fn claim(&mut self, id: &ChunkId, attempt: u32) -> bool {
        let wanted = self.wanted.of(&id.table) == id.generation;
        wanted && !self.loaded.contains(id) && self.open.insert((id.clone(), attempt))
    }

    /// The claimed attempt has ended.
    fn release(&mut self, id: &ChunkId, attempt: u32, loaded: bool) {
        self.open.remove(&(id.clone(), attempt));
        if loaded {
            self.loaded.insert(id.clone());
        }
    }
}

/// Loads until the backfill is complete and everything is in the target; yields the copies that it has now. `None` if the process is
/// to stop.
///
/// # Errors
/// `Chunk`, `TableMissing`, `ColumnMissing`, `Target`, `Kafka`.
pub async fn backfill(loading: &Loading, following: &mut Following) -> Result<Option<Generations>, Error> {
    let mut connection = loading.sessions.open(Purpose::Load).await?;
    let loaded = loaded(&mut connection, &loading.sessions.lane).await?;
    let wanted = following.ledger.generations(&loaded);
    // One that joined the lane and has been dropped on the source since was none of the tables that `dflux prepare` made.
    for (table, generation) in wanted.repeated() {
        let plan = following.ledger.plans.get(&(table.clone(), generation));
        if let Some(plan) = plan.filter(|plan| !plan.definition.is_empty())
            && !catalog::exists(&mut connection, table).await?
        {
            resync::make(loading, table, &plan.definition).await?;
        }
    }
    let shared = Shared { loaded, wanted: wanted.clone(), ..Shared::default() };
    let shared = Arc::new(Mutex::new(shared));
    let offsets = offsets(&mut connection, loading).await?;
    drop(connection);
    let (tell, mut told) = mpsc::channel(64);
    let stop = Stop(Arc::new(AtomicBool::new(false)));
    start(loading, offsets, &shared, tell, stop.0.clone());
    let mut moved_at = Instant::now();
    loop {
        loading.pulse.store(now_micros(), Ordering::Relaxed);
        tokio::select! {
            next = told.recv() => match next {
                Some(Told::Loaded) => moved_at = Instant::now(),
                Some(Told::Failed(error)) => return Err(error),
                None => return Err(Error::Thread { what: "reads the backfill" }),
            },
            followed = following.next() => followed?,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = loading.shutdown.wait() => return Ok(None),
        }
        let ledger = &following.ledger;
        if ledger.completed.is_some() {
            if moved_at.elapsed() > QUIET {
                // Blocks of two producers lay between each other, and a chunk was taken for abandoned: the ledger knows where it is.
                // One that a worker has open is on its way, however long the target takes.
                let missing = {
                    let held = shared.lock().await;
                    let mut missing = ledger.missing_of(&wanted, &held.loaded).unwrap_or_default();
                    let waits = |chunk: &Chunk| !held.open.contains(&(chunk.id.clone(), chunk.attempt));
                    missing.retain(|id| ledger.chunks.get(id).is_some_and(waits));
                    missing
                };
                for chunk in missing.iter().filter_map(|id| ledger.chunks.get(id)) {
                    range(loading, &shared, chunk).await?;
                }
                moved_at = Instant::now();
            }
            let held = shared.lock().await;
            if ledger.missing_of(&wanted, &held.loaded).is_some_and(|missing| missing.is_empty()) {
                observe::backfill_loaded(held.loaded.len());
                return Ok(Some(wanted));
            }
        }
    }
}

async fn loaded(connection: &mut PgConnection, lane: &str) -> Result<HashSet<ChunkId>, Error> {
    let sql = "SELECT schema_name, table_name, generation, chunk FROM dflux.chunk WHERE lane = $1";
    let rows = sqlx::query(sql).bind(lane).fetch_all(connection).await.map_err(target("dflux.chunk"))?;
    let id = |row: &sqlx::postgres::PgRow| -> Result<ChunkId, sqlx::Error> {
        Ok(ChunkId {
            table: TableName::new(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?),
            generation: row.try_get::<i32, _>(2)? as u32,
            chunk: row.try_get::<i32, _>(3)? as u32,
        })
    };
    rows.iter().map(id).collect::<Result<_, _>>().map_err(target("dflux.chunk"))
}

/// What is loaded already of one copy of one table.
///
/// # Errors
/// `Target`.
pub async fn shared_for(
    connection: &mut PgConnection,
    lane: &str,
    (table, generation): (&TableName, u32),
) -> Result<Arc<Mutex<Shared>>, Error> {
    let mut loaded = loaded(connection, lane).await?;
    // Of this copy alone: before its first chunk the table must be empty.
    loaded.retain(|id| (&id.table, id.generation) == (table, generation));
    let wanted = Generations::only(table, generation);
    Ok(Arc::new(Mutex::new(Shared { loaded, wanted, ..Shared::default() })))
}

/// Loads one chunk from where the ledger says that it lies, unless a worker has come to it meanwhile.
///
/// # Errors
/// `Chunk` if it is not there.
pub async fn range(loading: &Loading, shared: &Arc<Mutex<Shared>>, chunk: &Chunk) -> Result<(), Error> {
    let (sender, blocks) = mpsc::channel(2);
    let (tell, mut told) = mpsc::channel(4);
    let stop = Stop(Arc::new(AtomicBool::new(false)));
    let (reading, wanted, seen, failed) = (loading.clone(), chunk.clone(), stop.0.clone(), tell.clone());
    std::thread::spawn(move || {
        if let Err(error) = read_range(&reading, &wanted, &seen, &sender) {
            let _ = failed.blocking_send(Told::Failed(error));
        }
    });
    let mut worker = Worker {
        loading: loading.clone(),
        shared: shared.clone(),
        tell,
        partition: chunk.partition,
        blocks,
        connection: None,
        abandoned: HashSet::new(),
    };
    worker.load().await?;
    drop(worker);
    while let Some(next) = told.recv().await {
        if let Told::Failed(error) = next {
            return Err(error);
        }
    }
    let held = shared.lock().await;
    if held.loaded.contains(&chunk.id) || held.open.contains(&(chunk.id.clone(), chunk.attempt)) {
        return Ok(());
    }
    drop(held);
    let name = format!("{} of {} (generation {})", chunk.id.chunk, chunk.id.table, chunk.id.generation);
    let what = format!("it is not at offsets {} to {}", chunk.first_offset, chunk.last_offset);
    Err(Error::Chunk { chunk: name, what })
}

/// Gives only the blocks of the attempt that the ledger names.
fn read_range(loading: &Loading, chunk: &Chunk, stop: &AtomicBool, sender: &mpsc::Sender<Raw>) -> Result<(), Error> {
    let topic = loading.topics.snapshot();
    let reader = Reader::new(&loading.kafka, &loading.client, loading.bytes_max / 4, 1)?;
    let queue = reader.assign(&topic, chunk.partition, Offset::Offset(chunk.first_offset))?;
    while !stop.load(Ordering::Relaxed) && !sender.is_closed() {
        let Some(message) = poll(&queue, &topic, chunk.partition, POLL)? else { continue };
        let offset = message.offset();
        if offset > chunk.last_offset {
            break;
        }
        let payload = message.payload().unwrap_or_default();
        let block = Block::decode(payload).map_err(|error| contract(format!("{topic}, offset {offset}"))(error))?;
        if (block.id, block.attempt) == (chunk.id.clone(), chunk.attempt)
            && sender.blocking_send(Raw { offset, payload: payload.to_vec() }).is_err()
        {
            break;
        }
        if offset == chunk.last_offset {
            break;
        }
    }
    Ok(())
}

/// Where each partition of the snapshot topic was left: behind the last chunk that is committed.
async fn offsets(connection: &mut PgConnection, loading: &Loading) -> Result<HashMap<i32, i64>, Error> {
    let sql = "SELECT kafka_partition, next_offset FROM dflux.offset_hint WHERE lane = $1 AND topic = $2";
    let query = sqlx::query(sql).bind(&loading.sessions.lane).bind(loading.topics.snapshot());
    let rows = query.fetch_all(connection).await.map_err(target("dflux.offset_hint"))?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(target("dflux.offset_hint"))
}

/// Starts the threads that read and the workers that load. All end with the channel or the stop sign.
fn start(
    loading: &Loading,
    offsets: HashMap<i32, i64>,
    shared: &Arc<Mutex<Shared>>,
    tell: mpsc::Sender<Told>,
    stop: Arc<AtomicBool>,
) {
    let (loading, shared) = (loading.clone(), shared.clone());
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let result = read(&loading, &offsets, &stop, &tell, |partition, blocks| {
            let worker = Worker {
                loading: loading.clone(),
                shared: shared.clone(),
                tell: tell.clone(),
                partition,
                blocks,
                connection: None,
                abandoned: HashSet::new(),
            };
            runtime.spawn(worker.run());
        });
        if let Err(error) = result {
            let _ = tell.blocking_send(Told::Failed(error));
        }
    });
}

/// Reads each partition of blocks on a thread of its own; this one serves their client.
fn read(
    loading: &Loading,
    offsets: &HashMap<i32, i64>,
    stop: &Arc<AtomicBool>,
    tell: &mpsc::Sender<Told>,
    mut worker: impl FnMut(i32, mpsc::Receiver<Raw>),
) -> Result<(), Error> {
    let probe = Reader::new(&loading.kafka, &loading.client, 1 << 20, 1)?;
    let snapshot = loading.topics.snapshot();
    let partitions = probe.partitions(&snapshot)?;
    drop(probe);
    let mut reader = Reader::new(&loading.kafka, &loading.client, loading.bytes_max, partitions.max(1) as usize)?;
    for partition in 0..partitions {
        let from = offsets.get(&partition).map_or(Offset::Beginning, |offset| Offset::Offset(*offset));
        let queue = reader.assign(&snapshot, partition, from)?;
        let (sender, receiver) = mpsc::channel(2);
        worker(partition, receiver);
        let (topic, stop, tell) = (snapshot.clone(), stop.clone(), tell.clone());
        std::thread::spawn(move || {
            if let Err(error) = read_blocks(&queue, &topic, partition, &stop, &sender) {
                let _ = tell.blocking_send(Told::Failed(error));
            }
        });
    }
    while !stop.load(Ordering::Relaxed) {
        reader.serve()?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn read_blocks(
    queue: &Queue,
    topic: &str,
    partition: i32,
    stop: &AtomicBool,
    sender: &mpsc::Sender<Raw>,
) -> Result<(), Error> {
    while !stop.load(Ordering::Relaxed) {
        let Some(message) = poll(queue, topic, partition, POLL)? else {
            if sender.is_closed() {
                break;
            }
            continue;
        };
        let offset = message.offset();
        let payload =
            message.payload().ok_or_else(|| Error::EmptyRecord { topic: topic.to_owned(), partition, offset })?;
        let raw = Raw { offset, payload: payload.to_vec() };
        drop(message);
        if sender.blocking_send(raw).is_err() {
            break;
        }
    }
    Ok(())
}

struct Worker {
    loading: Loading,
    shared: Arc<Mutex<Shared>>,
    tell: mpsc::Sender<Told>,
    partition: i32,
    blocks: mpsc::Receiver<Raw>,
    connection: Option<PgConnection>,
    /// Attempts that were left behind by another chunk's first block; what still comes of them is passed over.
    abandoned: HashSet<(ChunkId, u32)>,
}

/// How a chunk ended.
enum Outcome {
    /// It is in the target, by this attempt or by another one that was faster.
    Loaded,
    /// Another chunk's first block came.
    Abandoned(Raw),
    /// No more blocks come: the process stops or the loading is given up.
    Cut,
}

impl Worker {
    async fn run(mut self) {
        if let Err(error) = self.load().await {
            let _ = self.tell.send(Told::Failed(error)).await;
        }
    }

    async fn load(&mut self) -> Result<(), Error> {
        let mut next = None;
        loop {
            let raw = match next.take() {
                Some(raw) => raw,
                None => match self.blocks.recv().await {
                    Some(raw) => raw,
                    None => return Ok(()),
                },
            };
            let block = self.decode(&raw)?;
            // Remains of an attempt that was left behind; a chunk of another copy, one that is there or that another worker is loading.
            if block.sequence != 0 || !self.shared.lock().await.claim(&block.id, block.attempt) {
                continue;
            }
            self.check_table(&block).await?;
            let outcome = self.chunk(&raw).await?;
            let loaded = matches!(outcome, Outcome::Loaded);
            self.shared.lock().await.release(&block.id, block.attempt, loaded);
            match outcome {
                Outcome::Loaded => {
                    let _ = self.tell.send(Told::Loaded).await;
                }
                Outcome::Abandoned(raw) => next = Some(raw),
                Outcome::Cut => return Ok(()),
            }
        }
    }

    fn decode<'b>(&self, raw: &'b Raw) -> Result<Block<'b>, Error> {
        let what =
            || format!("partition {} of {}, offset {}", self.partition, self.loading.topics.snapshot(), raw.offset);
        Block::decode(&raw.payload).map_err(|error| contract(what())(error))
    }

    /// Before a table's first chunk: it must be there, have the columns, and be empty.
    async fn check_table(&mut self, block: &Block<'_>) -> Result<(), Error> {
        let table = &block.id.table;
        let mut connection = self.connection().await?;
        let mut shared = self.shared.lock().await;
        if !shared.tables.contains_key(table) {
            let found = catalog::table(&mut connection, table).await?;
            let begun = shared.loaded.iter().any(|id| id.table == *table);
            if !begun {
                let sql = format!("SELECT EXISTS (SELECT FROM {})", found.rows_of(table));
                let filled: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                    .fetch_one(&mut connection)
                    .await
                    .map_err(target(format!("reading {table}")))?;
                if filled {
                    let what =
                        format!("it holds rows before its first chunk is loaded: TRUNCATE {table} if they may go");
                    return Err(Error::TableUnfit { table: table.to_string(), what });
                }
            }
            shared.tables.insert(table.clone(), found.columns.into_iter().map(|column| column.name).collect());
        }
        let columns = &shared.tables[table];
        if let Some(missing) = block.columns.iter().find(|name| !columns.contains(**name)) {
            return Err(Error::ColumnMissing { table: table.to_string(), column: (*missing).to_owned() });
        }
        drop(shared);
        self.connection = Some(connection);
        Ok(())
    }

    async fn connection(&mut self) -> Result<PgConnection, Error> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.loading.sessions.open(Purpose::Load).await,
        }
    }

    /// One chunk, from its first block on.
    async fn chunk(&mut self, first: &Raw) -> Result<Outcome, Error> {
        let block = self.decode(first)?;
        let (id, attempt) = (block.id.clone(), block.attempt);
        let chunk = format!("{} of {} (generation {}, attempt {attempt})", id.chunk, id.table, id.generation);
        let refused = |source: sqlx::Error| match code(&source).as_deref() {
            _ if lacks_partition(&source) => {
                Error::PartitionMissing { table: id.table.to_string(), what: format!("chunk {chunk}"), source }
            }
            Some(class) if class.starts_with("22") || class.starts_with("23") || class.starts_with("42") => {
                Error::Chunk { chunk: chunk.clone(), what: format!("the target refuses its rows: {source}") }
            }
            _ => Error::Target { what: format!("loading chunk {chunk}"), source },
        };
        let mut connection = self.connection().await?;
        run(&mut connection, &Marking::Message.begin(&self.loading.sessions.lane)).await.map_err(refused)?;
        let columns: Vec<String> = block.columns.iter().map(|name| quote_identifier(name)).collect();
        // An empty list is no list, and none means every column that is not computed: of these there are none either.
        let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        let sql = format!("COPY {}{list} FROM STDIN (FORMAT {})", id.table.quoted(), block.format.name());
        let mut copy = connection.copy_in_raw(&sql).await.map_err(refused)?;
        let mut bytes = block.rows.len() as u64;
        copy.send(block.rows).await.map_err(refused)?;
        let (mut sequence, mut last, mut row_count) = (0, block.last, block.row_count);
        let mut offset = first.offset;
        let (snapshot_lsn, exact) = (block.snapshot_lsn, block.exact_snapshot);
        while !last {
            self.loading.pulse.store(now_micros(), Ordering::Relaxed);
            let Some(raw) = self.blocks.recv().await else {
                let _ = copy.abort("the loading is given up").await;
                return Ok(Outcome::Cut);
            };
            let block = self.decode(&raw)?;
            if (&block.id, block.attempt) != (&id, attempt) {
                if block.sequence != 0 || self.abandoned.contains(&(block.id.clone(), block.attempt)) {
                    continue; // remains of an earlier attempt
                }
                copy.abort("another chunk begins").await.map_err(refused)?;
                run(&mut connection, "ROLLBACK").await.map_err(refused)?;
                observe::chunk_abandoned(&chunk, attempt);
                self.abandoned.insert((id, attempt));
                self.connection = Some(connection);
                return Ok(Outcome::Abandoned(raw));
            }
            if block.sequence <= sequence {
                continue; // sent twice
            }
            if block.sequence != sequence + 1 {
                let _ = copy.abort("a block is missing").await;
                let what = format!("block {} follows block {sequence} at offset {}", block.sequence, raw.offset);
                return Err(Error::Chunk { chunk, what });
            }
            copy.send(block.rows).await.map_err(refused)?;
            bytes += block.rows.len() as u64;
            (sequence, last, row_count, offset) = (block.sequence, block.last, block.row_count, raw.offset);
        }
        let rows = copy.finish().await.map_err(refused)?;
        if rows != row_count {
            return Err(Error::Chunk {
                chunk,
                what: format!("it holds {rows} rows and was announced with {row_count}"),
            });
        }
        let committed = Committed { id: &id, attempt, snapshot_lsn, exact, rows, next_offset: offset + 1 };
        if self.commit(&mut connection, &committed).await? {
            observe::chunk_loaded(&chunk, rows, bytes);
        } else {
            observe::chunk_abandoned(&chunk, attempt);
        }
        self.connection = Some(connection);
        Ok(Outcome::Loaded)
    }

    /// False if another attempt of the chunk was committed meanwhile: then nothing of this one stays.
    async fn commit(&self, connection: &mut PgConnection, chunk: &Committed<'_>) -> Result<bool, Error> {
        let lane = &self.loading.sessions.lane;
        let sql = "INSERT INTO dflux.chunk (lane, schema_name, table_name, generation, chunk, attempt, snapshot_lsn, \
                   exact_snapshot, row_count, loaded_at) VALUES ($1, $2, $3, $4, $5, $6, $7::pg_lsn, $8, $9, now()) \
                   ON CONFLICT (lane, schema_name, table_name, generation, chunk) DO NOTHING";
        let noted = sqlx::query(sql)
            .bind(lane)
            .bind(&chunk.id.table.schema)
            .bind(&chunk.id.table.name)
            .bind(chunk.id.generation as i32)
            .bind(chunk.id.chunk as i32)
            .bind(chunk.attempt as i32)
            .bind(chunk.snapshot_lsn.to_string())
            .bind(chunk.exact)
            .bind(chunk.rows as i64)
            .execute(&mut *connection)
            .await
            .map_err(target("dflux.chunk"))?;
        if noted.rows_affected() == 0 {
            run(connection, "ROLLBACK").await.map_err(target("rolling back"))?;
            return Ok(false);
        }
        let sql = "INSERT INTO dflux.offset_hint (lane, topic, kafka_partition, next_offset) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (lane, topic, kafka_partition) DO UPDATE SET next_offset = excluded.next_offset";
        sqlx::query(sql)
            .bind(lane)
            .bind(self.loading.topics.snapshot())
            .bind(self.partition)
            .bind(chunk.next_offset)
            .execute(&mut *connection)
            .await
            .map_err(target("dflux.offset_hint"))?;
        let sql = "SELECT 1 FROM dflux.lane WHERE lane = $1 AND epoch = $2 FOR SHARE";
        let query = sqlx::query(sql).bind(lane).bind(self.loading.epoch);
        if query.fetch_optional(&mut *connection).await.map_err(target("dflux.lane"))?.is_none() {
            return Err(Error::Fenced { lane: lane.clone(), epoch: self.loading.epoch });
        }
        run(connection, "COMMIT").await.map_err(target("the commit"))?;
        Ok(true)
    }
}

struct Committed<'a> {
    id: &'a ChunkId,
    attempt: u32,
    snapshot_lsn: changelog::Lsn,
    exact: bool,
    rows: u64,
    next_offset: i64,
}
