//! A table that is built while the rest keeps flowing, again or for the first time: from a new copy of the source, asked for in the
//! ledger (for all targets that read it), or from the newest copy that lies in the topics, asked for in the target (for this one).
//!
//! ```text
//!  lane      ──┤ marker: suspends it, empty ├───(its events passed over)────────┤ pauses ├──── its events again ──>
//!  this task        loads generation g's chunks ─> replays its topic from the snapshot on ─> the last stretch ┘
//! ```
//! The copy of the source begins with a marker in the lane, behind which everything of the table belongs to it; what was before, a
//! table of the same name perhaps, is applied first. A table that cannot be built stays suspended, with the reason in the target,
//! and is tried again; the lane goes on.
//! The table's own topic has all its events; those from the snapshot's point up to the lane's position are applied here,
//! with progress of their own (`dflux.table_state`). At the end the lane waits, between two transactions, for the stretch
//! that is left, which is short by then; both are at one position when the table is the lane's again. State is only in the target, so a
//! restart goes on where this was.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::block::ChunkId;
use changelog::{Joiner, Lsn, Position, TableName};
use rdkafka::{Message, Offset};
use service::{Hint as _, config};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::sync::{mpsc, oneshot};

use crate::catalog::{Met, Relations};
use crate::error::{contract, target};
use crate::event::{Arena, RawEvent};
use crate::execute::{Applier, Batch, Scope, prepare};
use crate::follow::Following;
use crate::index::Building;
use crate::ledger::Generations;
use crate::load::{Loading, range, shared_for};
use crate::merge::Applied;
use crate::plan::{Change, Mode};
use crate::reader::{Queue, Reader, poll};
use crate::relation::Relation;
use crate::rule::{self, Rule};
use crate::target::{Marking, Purpose, lane_row};
use crate::{Error, catalog, observe, reread};

/// The lane waits so long at most for the last stretch.
pub const REJOIN_WITHIN: Duration = Duration::from_secs(30);
/// A round of the replay as short as this is the last one before the lane is asked to wait.
const SHORT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(100);
/// A request in the target is seen within this time.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// What a person has to mend is tried again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What the lane is asked, between two transactions.
#[derive(Debug)]
pub enum Request {
    /// Empty the table, forget what is loaded of the copy, and pass its events over from now on.
    /// `anew`: the copy was made for this, from the table as it is now, which has this OID (0: not known).
    Suspend { table: TableName, generation: u32, anew: Option<u32>, done: oneshot::Sender<()> },
    /// Say where the lane is, wait, and take the table back under its copy's rule, unless it is not to be.
    Rejoin { table: TableName, rule: Rule, at: oneshot::Sender<Applied>, rejoined: oneshot::Receiver<bool> },
    /// Its copy never comes.
    Gone { table: TableName },
    /// Rows of the lane's tables are to be read again.
    Reread,
}

/// A row of `dflux.table_state`: `requested` (by a person, from the topics), `resyncing` (empty, or half loaded), `rejoining` (being
/// replayed), `live`, `gone` (the source has no such table).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub table: TableName,
    pub generation: u32,
    pub state: String,
    pub replay_from: Option<Lsn>,
    /// Of a copy that began while another was loaded.
    pub next_generation: Option<u32>,
    /// It could not be built so far.
    pub failed: bool,
}

impl State {
    /// Of the copies that have begun.
    pub fn newest(&self) -> u32 {
        self.next_generation.map_or(self.generation, |next| next.max(self.generation))
    }

    /// Whether the table is another's than the lane's, or is to be.
    fn open(&self) -> bool {
        !matches!(self.state.as_str(), "live" | "gone") || self.next_generation.is_some()
    }
}

/// # Errors
/// `Target`.
pub async fn states(connection: &mut PgConnection, lane: &str) -> Result<Vec<State>, Error> {
    let sql = "SELECT schema_name, table_name, coalesce(generation, 0), coalesce(state, 'live'), replay_from::text, next_generation, error IS NOT NULL \
               FROM dflux.table_state WHERE lane = $1";
    let rows = sqlx::query(sql).bind(lane).fetch_all(connection).await.map_err(target("dflux.table_state"))?;
    let state = |row: &sqlx::postgres::PgRow| -> Result<State, sqlx::Error> {
        Ok(State {
            table: TableName::new(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?),
            generation: row.try_get::<i32, _>(2)? as u32,
            state: row.try_get(3)?,
            replay_from: row.try_get::<Option<String>, _>(4)?.and_then(|text| text.parse().ok()),
            next_generation: row.try_get::<Option<i32>, _>(5)?.map(|generation| generation as u32),
            failed: row.try_get(6)?,
        })
    };
    rows.iter().map(state).collect::<Result<_, _>>().map_err(target("dflux.table_state"))
}

/// Says of tables whose load took a later copy than the first that they are the lane's.
///
/// # Errors
/// `Target`.
pub async fn loaded(connection: &mut PgConnection, lane: &str, copies: &Generations) -> Result<(), Error> {
    for (table, generation) in copies.repeated() {
        let sql = "INSERT INTO dflux.table_state (lane, schema_name, table_name, generation, state) \
                   VALUES ($1, $2, $3, $4, 'live') ON CONFLICT (lane, schema_name, table_name) DO NOTHING";
        let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(generation as i32);
        query.execute(&mut *connection).await.map_err(target("dflux.table_state"))?;
    }
    Ok(())
}

pub struct Resyncing {
    pub loading: Loading,
    pub migration: String,
    pub registry_url: String,
    pub batch: config::Consumer,
    /// Rows that no event completes are read there.
    pub source_url: String,
}

/// Watches the ledger and the target and builds what they ask for, one table at a time. Ends only by an error.
pub async fn run(resyncing: Resyncing, mut following: Following, requests: mpsc::Sender<Request>) -> Error {
    match watch(&resyncing, &mut following, &requests).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn watch(
    resyncing: &Resyncing,
    following: &mut Following,
    requests: &mpsc::Sender<Request>,
) -> Result<std::convert::Infallible, Error> {
    let sessions = &resyncing.loading.sessions;
    let mut connection = sessions.open(Purpose::Heartbeat).await?;
    let mut failed: HashMap<TableName, (Instant, u32)> = HashMap::new();
    loop {
        let states = states(&mut connection, &sessions.lane).await?;
        let open: Vec<State> = states.into_iter().filter(State::open).collect();
        let alone = open.len() == 1;
        for state in open {
            let table = state.table.clone();
            let waits = |(at, times): &(Instant, u32)| at.elapsed() < AGAIN_AFTER * 2_u32.pow(*times.min(&4));
            // A copy that is still being made is loaded beside that only where nothing else waits.
            let settled = state.state != "resyncing"
                || state.next_generation.is_some()
                || following.ledger.settled(&state.table, state.generation);
            if failed.get(&table).is_some_and(waits) || !(alone || settled) {
                continue;
            }
            match one(resyncing, requests, following, state).await {
                Ok(()) => {
                    failed.remove(&table);
                }
                // It is this table's alone: the lane leaves it.
                Err(error) if error.is_of_table() => {
                    observe::resync_failed(&table.to_string(), &error);
                    note(&mut connection, &sessions.lane, &table, &error).await?;
                    let times = failed.get(&table).map_or(0, |(_, times)| times + 1);
                    failed.insert(table, (Instant::now(), times));
                }
                Err(error) => return Err(error),
            }
        }
        if reread::asked(&mut connection, &sessions.lane).await? {
            requests.send(Request::Reread).await.map_err(|_| Error::Thread { what: "applies the lane" })?;
        }
        tokio::select! {
            followed = following.next() => followed?,
            () = tokio::time::sleep(LOOKS_EVERY) => {}
        }
    }
}

/// One table, from wherever it is.
async fn one(
    resyncing: &Resyncing,
    requests: &mpsc::Sender<Request>,
    following: &mut Following,
    state: State,
) -> Result<(), Error> {
    let loading = &resyncing.loading;
    let lane = &loading.sessions.lane;
    let mut connection = loading.sessions.open(Purpose::Apply).await?;
    let Some(mut state) = begun(resyncing, requests, following, &mut connection, state).await? else { return Ok(()) };
    let (table, generation) = (state.table.clone(), state.generation);
    if state.state == "resyncing" {
        match load(resyncing, &mut connection, following, &state).await? {
            Loaded::All => {}
            Loaded::Later => return Ok(()),
            Loaded::Refused(reason) => {
                if !set_state(&mut connection, lane, &state, ("gone", None)).await? {
                    return Ok(());
                }
                let gone = Request::Gone { table: table.clone() };
                requests.send(gone).await.map_err(|_| Error::Thread { what: "applies the lane" })?;
                observe::resync(&table.to_string(), generation, &format!("gone: {reason}"));
                return Ok(());
            }
        }
        // A table that joins a running lane may have no key yet; the replay finds its rows by it.
        let workers = usize::from(resyncing.batch.load_workers);
        let building = Building { sessions: &loading.sessions, migration: &resyncing.migration, workers };
        building.one(&table, following.ledger.plans.get(&(table.clone(), state.generation))).await?;
        let from = of_copy(&mut connection, lane, &table).await?.skip_below;
        if !set_state(&mut connection, lane, &state, ("rejoining", Some(from))).await? {
            return Ok(());
        }
        observe::resync(&table.to_string(), generation, "rejoining");
        state = State { state: "rejoining".into(), replay_from: Some(from), ..state };
    }
    let tolerant_below = of_copy(&mut connection, lane, &table).await?.tolerant_below;
    let mut replay = Replay::new(resyncing, connection, &state, tolerant_below).await?;
    let scope = Scope::Table(table.clone());
    loop {
        replay.catch_up(lane).await?;
        let (session, leads) = (&mut replay.applier.connection, (lane.as_str(), loading.epoch));
        match reread::run_once(session, &Marking::Message, leads, &scope, &resyncing.source_url).await? {
            Some(point) => replay.tolerant_below = point,
            None => break,
        }
    }
    let rule = of_copy(&mut replay.applier.connection, lane, &table).await?;
    fresh(&mut replay.applier.connection, lane, &state).await?;
    let (at, reached) = oneshot::channel();
    let (resume, rejoined) = oneshot::channel();
    let request = Request::Rejoin { table: table.clone(), rule, at, rejoined };
    requests.send(request).await.map_err(|_| Error::Thread { what: "applies the lane" })?;
    // It was dropped or renamed meanwhile.
    let Ok(reached) = reached.await else { return Ok(()) };
    replay.up_to(reached).await?;
    // The lane has passed everything before that by now, and stands.
    if let Err(stale) = fresh(&mut replay.applier.connection, lane, &state).await {
        let _ = resume.send(false);
        return Err(stale);
    }
    set_state(&mut replay.applier.connection, lane, &state, ("live", None)).await?;
    let _ = resume.send(true);
    observe::resync(&table.to_string(), generation, "live");
    Ok(())
}

/// The table suspended and empty, unless it is further already. None: somebody else has gone on with it meanwhile.
async fn begun(
    resyncing: &Resyncing,
    requests: &mpsc::Sender<Request>,
    following: &Following,
    connection: &mut PgConnection,
    state: State,
) -> Result<Option<State>, Error> {
    let (loading, table) = (&resyncing.loading, &state.table);
    let lane = &loading.sessions.lane;
    let replayed = state.state == "requested";
    let generation = match state.next_generation {
        Some(next) => next,
        None if replayed => state.generation,
        None => return Ok(Some(state)),
    };
    observe::resync(&table.to_string(), generation, "resyncing");
    let asked = following.requests.newest(&table.to_string()).filter(|asked| asked.generation == generation);
    let oid = asked.map_or(0, |asked| asked.oid);
    if replayed || state.state == "live" {
        let (done, suspended) = oneshot::channel();
        let request = Request::Suspend { table: table.clone(), generation, anew: (!replayed).then_some(oid), done };
        requests.send(request).await.map_err(|_| Error::Thread { what: "applies the lane" })?;
        suspended.await.map_err(|_| Error::Thread { what: "applies the lane" })?;
    } else {
        // The lane leaves it alone already.
        applier(loading, table).await?.suspend(table, generation, Some(oid)).await?;
    }
    Ok(states(connection, lane).await?.into_iter().find(|known| known.table == *table))
}

/// Says in the target that a statement, committed here, has computed values of a table anew that is being built from a copy.
///
/// # Errors
/// `Target`.
pub async fn rewritten(connection: &mut PgConnection, lane: &str, table: &TableName, at: Lsn) -> Result<(), Error> {
    let sql = "UPDATE dflux.table_state SET rewritten_lsn = greatest(rewritten_lsn, $4::pg_lsn) \
               WHERE lane = $1 AND schema_name = $2 AND table_name = $3";
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(at.to_string());
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_state"))
}

/// # Errors
/// `Stale`: values were computed anew since a part of the copy was read, and no event tells them.
async fn fresh(connection: &mut PgConnection, lane: &str, state: &State) -> Result<(), Error> {
    let sql = "SELECT s.rewritten_lsn::text FROM dflux.table_state s WHERE s.lane = $1 AND s.schema_name = $2 AND s.table_name = $3 \
               AND s.rewritten_lsn >= (SELECT min(c.snapshot_lsn) FROM dflux.chunk c WHERE (c.lane, c.schema_name, c.table_name) = ($1, $2, $3) \
               AND c.generation = $4)";
    let query = sqlx::query_scalar::<_, String>(sql).bind(lane).bind(&state.table.schema).bind(&state.table.name);
    let stale =
        query.bind(state.generation as i32).fetch_optional(connection).await.map_err(target("dflux.table_state"))?;
    match stale {
        Some(at) => Err(Error::Stale { table: state.table.to_string(), at }),
        None => Ok(()),
    }
}

/// Says in the target that another copy of a table that is being built has begun.
///
/// # Errors
/// `Target`.
pub async fn supersede(
    connection: &mut PgConnection,
    lane: &str,
    table: &TableName,
    generation: u32,
) -> Result<(), Error> {
    let sql =
        "UPDATE dflux.table_state SET next_generation = $4 WHERE lane = $1 AND schema_name = $2 AND table_name = $3";
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(generation as i32);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_state"))
}

/// Leaves word of why a table is not built.
async fn note(connection: &mut PgConnection, lane: &str, table: &TableName, error: &Error) -> Result<(), Error> {
    let sql = "UPDATE dflux.table_state SET error = $4 WHERE lane = $1 AND schema_name = $2 AND table_name = $3 \
               AND state NOT IN ('live', 'gone')";
    let text = service::report(error, error.hint());
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(text);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_state"))
}

async fn of_copy(connection: &mut PgConnection, lane: &str, table: &TableName) -> Result<Rule, Error> {
    Ok(rule::of_copies(connection, lane, Some(table)).await?.remove(table).unwrap_or_default())
}

enum Loaded {
    All,
    /// Another copy has begun, or other tables wait while this one is still being copied.
    Later,
    /// The source cannot give it, for this reason.
    Refused(String),
}

/// Makes the table where it is not there, and loads the generation's chunks as the ledger tells where they lie.
async fn load(
    resyncing: &Resyncing,
    connection: &mut PgConnection,
    following: &mut Following,
    state: &State,
) -> Result<Loaded, Error> {
    let (loading, copy) = (&resyncing.loading, (state.table.clone(), state.generation));
    let lane = &loading.sessions.lane;
    while !catalog::exists(connection, &state.table).await? {
        // Of a table that is dropped on the source meanwhile the definition is empty.
        if let Some(plan) = following.ledger.plans.get(&copy).filter(|plan| !plan.definition.is_empty()) {
            make(loading, &state.table, &plan.definition).await?;
            if !catalog::exists(connection, &state.table).await? {
                let what = "something else has its name, or its partitioned table is none there".to_owned();
                return Err(Error::TableUnfit { table: state.table.to_string(), what });
            }
        } else if let Some(ended) = further(connection, lane, following, state).await? {
            return Ok(ended);
        }
    }
    let shared = shared_for(connection, lane, (&state.table, state.generation)).await?;
    loop {
        let ledger = &following.ledger;
        let wanted = |id: &&ChunkId| id.table == state.table && id.generation == state.generation;
        let ids: Vec<ChunkId> = ledger.chunks.keys().filter(wanted).cloned().collect();
        for id in ids {
            if !shared.lock().await.loaded.contains(&id) {
                range(loading, &shared, &ledger.chunks[&id]).await?;
            }
        }
        let missing = ledger.missing(&state.table, state.generation, &shared.lock().await.loaded);
        if missing.is_some_and(|missing| missing.is_empty()) {
            return Ok(Loaded::All);
        }
        if let Some(ended) = further(connection, lane, following, state).await? {
            return Ok(ended);
        }
    }
}

/// Makes a table of which the copy has the definition.
///
/// # Errors
/// `Unmade`.
pub async fn make(loading: &Loading, table: &TableName, definition: &[String]) -> Result<(), Error> {
    applier(loading, table).await?.make(table, definition).await
}

/// A session for what is done to one table beside the lane.
///
/// # Errors
/// `Target`.
pub async fn applier(loading: &Loading, table: &TableName) -> Result<Applier, Error> {
    let (session, scope) = (loading.sessions.open(Purpose::Apply).await?, Scope::Table(table.clone()));
    Ok(Applier::new(session, Marking::Message, scope, &loading.sessions.lane, loading.epoch))
}

/// Waits for what the ledger says next, for a moment. What it comes to if that ends the load.
async fn further(
    connection: &mut PgConnection,
    lane: &str,
    following: &mut Following,
    state: &State,
) -> Result<Option<Loaded>, Error> {
    if let Some(reason) = following.ledger.refused.get(&(state.table.clone(), state.generation)) {
        return Ok(Some(Loaded::Refused(reason.clone())));
    }
    tokio::select! {
        followed = following.next() => followed?,
        () = tokio::time::sleep(LOOKS_EVERY) => {
            let states = states(connection, lane).await?;
            let goes_on = |known: &State| (known.generation, known.next_generation) == (state.generation, None);
            let mut open = states.iter().filter(|state| state.open());
            if !open.all(|known| known.table == state.table && goes_on(known)) {
                return Ok(Some(Loaded::Later));
            }
        }
    }
    Ok(None)
}

/// False if it is not this copy's any more.
async fn set_state(
    connection: &mut PgConnection,
    lane: &str,
    state: &State,
    (to, replay_from): (&str, Option<Lsn>),
) -> Result<bool, Error> {
    let sql = "UPDATE dflux.table_state SET state = $5, replay_from = coalesce($6::pg_lsn, replay_from), error = NULL WHERE lane = $1 \
               AND schema_name = $2 AND table_name = $3 AND generation = $4 AND state IN ('resyncing', 'rejoining') \
               AND ($5 <> 'gone' OR next_generation IS NULL)";
    let query = sqlx::query(sql).bind(lane).bind(&state.table.schema).bind(&state.table.name);
    let query = query.bind(state.generation as i32).bind(to).bind(replay_from.map(|lsn| lsn.to_string()));
    Ok(query.execute(connection).await.map_err(target("dflux.table_state"))?.rows_affected() == 1)
}

/// One partition of the table's topic.
struct Source {
    partition: i32,
    queue: Queue,
    /// Offset behind the last record that was taken.
    next_offset: i64,
    seen: Option<Position>,
    head: Option<RawEvent>,
}

struct Replay {
    reader: Arc<Reader>,
    topic: String,
    sources: Vec<Source>,
    arena: Arena,
    joiner: Joiner,
    applier: Applier,
    relations: Relations,
    from: Lsn,
    tolerant_below: Lsn,
    limits: config::Consumer,
}

impl Replay {
    async fn new(
        resyncing: &Resyncing,
        connection: PgConnection,
        state: &State,
        tolerant_below: Lsn,
    ) -> Result<Replay, Error> {
        let loading = &resyncing.loading;
        let topic = loading.topics.table(&state.table);
        let opened = {
            let (kafka, client, topic, bytes) =
                (loading.kafka.clone(), loading.client.clone(), topic.clone(), loading.bytes_max / 4);
            tokio::task::spawn_blocking(move || -> Result<(Reader, Vec<Source>), Error> {
                let reader = Reader::new(&kafka, &client, bytes, 1)?;
                let mut sources = Vec::new();
                for partition in 0..reader.partitions(&topic)? {
                    let queue = reader.assign(&topic, partition, Offset::Beginning)?;
                    sources.push(Source { partition, queue, next_offset: 0, seen: None, head: None });
                }
                Ok((reader, sources))
            })
        };
        let (reader, sources) = opened.await.map_err(|_| Error::Thread { what: "opens a table's topic" })??;
        let scope = Scope::Table(state.table.clone());
        let lane = &loading.sessions.lane;
        Ok(Replay {
            reader: Arc::new(reader),
            topic,
            sources,
            arena: Arena::default(),
            joiner: Joiner::default(),
            applier: Applier::new(connection, Marking::Message, scope, lane, loading.epoch),
            relations: Relations::new(&resyncing.registry_url, lane, &loading.topics),
            from: state.replay_from.unwrap_or_default(),
            tolerant_below,
            limits: resyncing.batch.clone(),
        })
    }

    /// Comes so near to the lane that the rest takes a moment only, and as far as events are tolerated.
    async fn catch_up(&mut self, lane: &str) -> Result<(), Error> {
        loop {
            let began = Instant::now();
            let at = lane_row(&mut self.applier.connection, lane).await?;
            let at = at.map(|row| row.applied).ok_or(Error::Thread { what: "leads the lane" })?;
            self.up_to(at).await?;
            if began.elapsed() < SHORT {
                if at.position.commit_lsn >= self.tolerant_below {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Applies every event of the table that the lane's position covers and that is not applied yet.
    async fn up_to(&mut self, at: Applied) -> Result<(), Error> {
        // Events that the position covers were written before their manifest was applied: they lie before these ends.
        let mut ends = HashMap::new();
        for source in &self.sources {
            let (reader, topic, partition) = (self.reader.clone(), self.topic.clone(), source.partition);
            let end = tokio::task::spawn_blocking(move || reader.end(&topic, partition)).await;
            ends.insert(partition, end.map_err(|_| Error::Thread { what: "asks for a topic's end" })??);
        }
        let mut batch = Batch::default();
        loop {
            for place in 0..self.sources.len() {
                let end = ends[&self.sources[place].partition];
                // In short waits: between them the lane may end.
                while !tokio::task::block_in_place(|| self.fill(place, end))? {
                    tokio::task::yield_now().await;
                }
            }
            let position = |source: &Source| source.head.as_ref().map(|event| event.header.position);
            let heads = self.sources.iter().enumerate().filter_map(|(place, source)| Some((position(source)?, place)));
            let Some((position, place)) = heads.min().filter(|(position, _)| at.covers(position)) else { break };
            let Some(event) = self.sources[place].head.take() else { break };
            let begins = batch.applied.is_some_and(|applied| applied.position.commit_lsn != position.commit_lsn);
            let full =
                batch.changes.len() >= self.limits.batch_changes_max || batch.bytes >= self.limits.batch_bytes_max;
            // Not between the two events of a key change.
            if full && position.begins_change() {
                let prepared = prepare(&batch.changes)?;
                self.applier.flush(&mut batch, prepared, begins).await?;
                let applied = batch.applied.filter(|_| !begins);
                batch = Batch { applied, ..Batch::default() };
            }
            let joined = event.join(&mut self.joiner);
            let Some(event) = joined.map_err(contract(format!("the events of {}", self.topic)))? else { continue };
            if position.commit_lsn >= self.from {
                let relation = self.meet(&mut batch, event.schema_id, position).await?;
                let tolerant = position.commit_lsn < self.tolerant_below && !relation.keyless();
                let mode = if tolerant { Mode::Tolerant } else { Mode::Strict };
                batch.bytes += event.size();
                batch.changes.push(Change { relation, mode, event });
                batch.applied = Some(Applied::through(position));
            }
        }
        if batch.applied.is_some() {
            let prepared = prepare(&batch.changes)?;
            self.applier.flush(&mut batch, prepared, true).await?;
        }
        Ok(())
    }

    /// As the lane does it, while it leaves the table alone.
    async fn meet(&mut self, batch: &mut Batch, schema_id: u32, at: Position) -> Result<Arc<Relation>, Error> {
        loop {
            match self.relations.meet(&mut self.applier.connection, schema_id, at, None).await? {
                Met::Relation(relation) => return Ok(relation),
                // The lane renames; what has the name here now is another table.
                Met::Renamed { to, .. } => return Err(catalog::another(&to, at)),
                Met::Alter(alteration) => {
                    let prepared = prepare(&batch.changes)?;
                    self.applier.flush(batch, prepared, false).await?;
                    *batch = Batch { applied: batch.applied, ..Batch::default() };
                    self.applier.alter(&alteration).await?;
                    self.relations.altered(&alteration);
                }
            }
        }
    }

    /// Takes the partition's next event that is no resend, if one lies before `end`. False if Kafka has not given it yet.
    fn fill(&mut self, place: usize, end: i64) -> Result<bool, Error> {
        let topic = self.topic.clone();
        let source = &mut self.sources[place];
        while source.head.is_none() && source.next_offset < end {
            let Some(message) = poll(&source.queue, &topic, source.partition, POLL)? else { return Ok(false) };
            let offset = message.offset();
            source.next_offset = offset + 1;
            let Some(payload) = message.payload() else {
                return Err(Error::EmptyRecord { topic, partition: source.partition, offset });
            };
            let event = RawEvent::read(&mut self.arena, message.key(), payload, 0, offset)
                .map_err(|error| contract(format!("{topic}, offset {offset}"))(error))?;
            let position = event.header.position;
            if source.seen.is_none_or(|seen| position > seen) {
                source.seen = Some(position);
                source.head = Some(event);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_lanes_is_built_and_what_a_later_copy_has_begun_of() {
        let open = |state: &str, next_generation| {
            let table = TableName::new("s", "t");
            State { table, generation: 1, state: state.into(), replay_from: None, next_generation, failed: false }
                .open()
        };
        assert!(["requested", "resyncing", "rejoining"].iter().all(|state| open(state, None)));
        assert!(!open("live", None) && !open("gone", None));
        assert!(open("live", Some(2)));
    }
}
