//! The loop of the process: sessions with the source, one after the other.
//!
//! A session begins at what the topics and the slot say ([`crate::resume`]), so it makes no difference whether it follows a
//! kill, a restart of the source, or a broken connection. Errors that may go away begin a new session after a pause; all
//! others end the process. Before the first session has begun to stream, nobody answering ends the process too: a wrong URL is to be
//! seen at once.
//!
//! ```text
//!  stream's thread (a runtime of its own): the socket of the slot, decoding, encoding, handing over, feedback
//!  the process's runtime (all cores):      backfill, markers, watching, sequences
//! ```
//! The stream has a thread of its own because it pauses by sleeping in it (see [`crate::walsender::FrameReader::next`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use changelog::{Birth, Lane as Direction, LaneRecord, LedgerRecord, Lsn, Position};
use futures_util::TryStreamExt;
use service::program::Context;
use service::retry::Backoff;
use service::telemetry::Health;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::backfill::ledger::Ledger;
use crate::backfill::snapshot::Snapshot;
use crate::backfill::throttle::{self, Throttle};
use crate::backfill::{self};
use crate::error::{Error, Remedy};
use crate::lane::Lane;
use crate::publish::{self, Outgoing, StreamPublisher, TrackedPublisher};
use crate::resume::{self, Decision, Facts, LaneTail};
use crate::source::catalog::{self, Selection};
use crate::source::publication;
use crate::source::slot;
use crate::stream::feedback::Feedback;
use crate::stream::tables::StreamTables;
use crate::stream::{self, Stream};
use crate::tails::Place;
use crate::topics::{Made, Wanted};
use crate::walsender::{Refusal, ReplicationStream, SnapshotAction, SystemIdentity, Walsender};
use crate::{markers, observe, sequences, watch as watching};

/// A predecessor of ours may hold the slot until the server has noticed its end.
const SLOT_HELD_MAX: Duration = Duration::from_secs(15);
/// Tables whose schemas are registered at once before their first events.
const REGISTERED_TOGETHER: usize = 8;
const SESSION_PAUSE_MAX: Duration = Duration::from_secs(5);
/// At the end: Kafka's last acknowledgements, and the last word to the server.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Runs a lane until the shutdown.
///
/// # Errors
/// Whatever a new session would not mend.
pub async fn run(context: Context, direction: Direction) -> Result<(), Error> {
    observe::describe();
    let process = Handle::current();
    let streaming = tokio::task::spawn_blocking(move || {
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let own = own.map_err(|source| service::Error::Runtime { source })?;
        own.block_on(sessions(context, direction, &process))
    });
    streaming.await.map_err(|error| Error::Task { what: error.to_string() })?
}

async fn sessions(context: Context, direction: Direction, process: &Handle) -> Result<(), Error> {
    let Context { config, health, shutdown } = context;
    let lane = Lane::new(config, direction, shutdown.clone()).await?;
    let queue_bytes = publish::queue_bytes(&lane.config.producer);
    let kafka = &lane.config.kafka;
    let partitions = tokio::select! {
        partitions = partitions(&lane) => partitions?,
        () = shutdown.wait() => return Ok(()),
    };
    let publishers = Publishers {
        stream: StreamPublisher::new(kafka, &lane.client_id(), queue_bytes, partitions)?,
        tracked: TrackedPublisher::new(kafka, &format!("{}-backfill", lane.client_id()), queue_bytes)?,
    };
    let throttle = Throttle::new(lane.clone());
    process.spawn(throttle::follow(throttle.clone()));
    let mut backoff = Backoff::new(SESSION_PAUSE_MAX);
    let mut established = false;
    let mut next_attempt = 1;
    while !shutdown.begun() {
        let began = std::time::Instant::now();
        let outcome =
            session(&lane, &publishers, &throttle, process, (&health, &mut established, &mut next_attempt)).await;
        let Err(error) = outcome else { break };
        if began.elapsed() > 2 * SESSION_PAUSE_MAX {
            backoff.reset();
        }
        if error.remedy() == Remedy::Stop || (!established && error.nobody_answered()) {
            return Err(error);
        }
        health.unwell("the source or Kafka is away");
        tracing::warn!(error = service::report(&error, None), "the session ended; beginning another");
        observe::add(observe::RESTARTS, 1);
        if !backoff.wait(&shutdown).await {
            break;
        }
    }
    health.well("stopped");
    Ok(())
}

/// Partitions of all tables that are selected now.
async fn partitions(lane: &Lane) -> Result<usize, Error> {
    let client = lane.source.connect(&lane.application_name()).await?;
    slot::check_server(&client).await?;
    let selection = catalog::select(&catalog::all_tables(&client).await?, &lane.config.migration);
    Ok(selection.published.len() * usize::try_from(lane.config.producer.partitions).unwrap_or(1))
}

#[derive(Clone)]
struct Publishers {
    stream: StreamPublisher,
    tracked: TrackedPublisher,
}

/// What a session begins with.
struct Begun {
    stream: ReplicationStream,
    identity: SystemIdentity,
    birth: Birth,
    selection: Arc<Selection>,
    snapshot: Option<Arc<Snapshot>>,
    lane_tail: LaneTail,
    events: HashMap<Place, Position>,
    ledger: Ledger,
    ledger_offset: i64,
    /// Every topic.
    made: HashMap<String, Made>,
    first_attempt: u32,
    floor: Lsn,
}

async fn session(
    lane: &Arc<Lane>,
    publishers: &Publishers,
    throttle: &Arc<Throttle>,
    process: &Handle,
    (health, established, next_attempt): (&Health, &mut bool, &mut u32),
) -> Result<(), Error> {
    // What an earlier session sent must lie in Kafka before the tails are read.
    tokio::select! {
        drained = publishers.stream.drained() => drained?,
        () = lane.shutdown.wait() => return Ok(()),
    }
    let begun = tokio::select! {
        begun = begin(lane, publishers, health) => begun?,
        () = lane.shutdown.wait() => return Ok(()),
    };
    *established = true;
    // Blocks of an earlier session may not lie in Kafka yet, and still come.
    let first_attempt = begun.first_attempt.max(*next_attempt);
    *next_attempt = first_attempt.saturating_add(backfill::copy::ATTEMPTS_MAX);
    health.ready("streaming");
    let (reader, writer) = begun.stream.into_split();
    let reply = Arc::new(Notify::new());
    let (stop, stopping) = watch::channel(false);
    let feedback = Feedback {
        writer,
        publisher: publishers.stream.clone(),
        reply: reply.clone(),
        floor: begun.floor,
        stop: stopping,
    };
    let stream = Stream::new(stream::Start {
        lane: lane.clone(),
        reader,
        publisher: publishers.stream.clone(),
        tables: StreamTables::new(lane.clone(), begun.events, begun.made.clone()),
        lane_tail: begun.lane_tail.position,
        system_identifier: begun.identity.system_identifier,
        timeline: begun.identity.timeline,
        reply,
    });
    let (new, joining) = mpsc::channel(1);
    let backfill = backfill::run(backfill::Start {
        lane: lane.clone(),
        publisher: publishers.tracked.clone(),
        throttle: throttle.clone(),
        selection: begun.selection.clone(),
        consistent_point: begun.birth.consistent_point,
        snapshot: begun.snapshot,
        ledger: begun.ledger,
        ledger_offset: begun.ledger_offset,
        topic: begun
            .made
            .get(&lane.topics.snapshot())
            .copied()
            .ok_or_else(|| Error::TopicLost { topic: lane.topics.snapshot(), what: "it does not exist".into() })?,
        first_attempt,
        new: joining,
    });
    // Every task ends only with an error, or with the shutdown. They end together.
    let mut tasks = JoinSet::new();
    let feedback = tasks.spawn(feedback.run()).id();
    tasks.spawn(stream.run());
    tasks.spawn_on(backfill, process);
    tasks.spawn_on(markers::run(lane.clone()), process);
    tasks.spawn_on(watching::run(lane.clone(), new), process);
    tasks.spawn_on(sequences::run(lane.clone()), process);
    process.spawn(register_all(lane.clone(), begun.selection.clone()));
    let publishers_failed = publishers.clone();
    tasks.spawn(async move {
        tokio::select! {
            error = publishers_failed.stream.failed() => Err(error),
            error = publishers_failed.tracked.failed() => Err(error),
        }
    });
    let ended = tokio::select! {
        Some(ended) = tasks.join_next() => ended,
        () = lane.shutdown.wait() => Ok(Ok(())),
    };
    ended.map_err(|error| Error::Task { what: error.to_string() })??;
    health.well("stopping");
    let end = async {
        publishers.stream.drained().await?;
        stop.send_replace(true);
        while let Some(ended) = tasks.join_next_with_id().await {
            match ended {
                Ok((id, outcome)) if id == feedback => return outcome,
                _ => {}
            }
        }
        Ok(())
    };
    match tokio::time::timeout(DRAIN_MAX, end).await {
        Ok(ended) => ended,
        // Kafka is away; what it has not acknowledged is not confirmed, and so not lost.
        Err(_) => Ok(()),
    }
}

/// Registers every table's schemas before its first event waits for it. Whatever goes wrong here, goes wrong again there.
async fn register_all(lane: Arc<Lane>, selection: Arc<Selection>) {
    let tables = futures_util::stream::iter(selection.published.clone().into_iter().map(Ok));
    let register = |table: Arc<catalog::Table>| {
        let (lane, shape) = (lane.clone(), table.shape(&lane.database));
        async move { if lane.shutdown.begun() { Err(()) } else { lane.register(&shape).await.map(|_| ()).map_err(|_| ()) } }
    };
    let _ended = tables.try_for_each_concurrent(REGISTERED_TOGETHER, register).await;
}

/// Reads where things stand, decides, and opens the stream.
async fn begin(lane: &Arc<Lane>, publishers: &Publishers, health: &Health) -> Result<Begun, Error> {
    let client = lane.source.connect(&lane.application_name()).await?;
    slot::check_server(&client).await?;
    let mut walsender = Walsender::connect(&lane.source_url, &lane.application_name()).await?;
    let identity = walsender.identify_system().await?;
    let found_slot = slot::read(&client, &lane.slot).await?;
    let published = publication::published(&client, &lane.publication).await?;
    let selection = published_selection(lane, &client, published.as_deref()).await?;
    let wanted = wanted_topics(lane, &selection);
    let missing = lane.admin.missing(&wanted).await?;
    let held = read_topics(lane, &wanted, &missing).await?;
    // Asked now and not before: a predecessor that still streams may have published what was written meanwhile.
    let flushed = walsender.identify_system().await?.xlogpos;
    let history = history(&mut walsender, &identity, &held.lane_tail).await?;
    let transactions_topic = lane.topics.transactions();
    let decision = resume::decide(&Facts {
        migration: &lane.config.migration.name,
        lane: lane.direction.name(),
        transactions_topic: &transactions_topic,
        slot_name: &lane.slot,
        publication: &lane.publication,
        publication_exists: published.is_some(),
        system_identifier: &identity.system_identifier,
        timeline: identity.timeline,
        flushed,
        history: &history,
        database: &lane.database,
        slot: found_slot.as_ref(),
        tail: &held.lane_tail,
        events: &held.events,
        ledger_empty: held.records.is_empty(),
    })?;
    let ledger = Ledger::of(held.records);
    if let (Decision::Resume(_), Some(topic)) = (&decision, lost_topic(lane, &missing, &selection, &ledger)) {
        return Err(Error::TopicLost { topic, what: "it does not exist any more".into() });
    }
    let mut made = lane.admin.ensure(&wanted).await?;
    let entry = Entry { lane, publishers, client: &client, identity: &identity };
    let (birth, selection, snapshot) = match decision {
        Decision::Fresh => {
            health.well("creating the slot");
            let (birth, selection, snapshot) = entry.fresh(&mut walsender).await?;
            // Tables may have come since the topics were made.
            made = lane.admin.ensure(&wanted_topics(lane, &selection)).await?;
            (birth, selection, snapshot)
        }
        Decision::Adopt(point) => {
            // Whoever streams from it now would lose what we take.
            if let Some((pid, application)) = slot::holder(&client, &lane.slot).await? {
                return Err(Error::SlotHeld { slot: lane.slot.clone(), pid, application });
            }
            tracing::info!(slot = lane.slot, %point, "slot is there and unused: the lane begins with it");
            let selection =
                Arc::new(publication::prepare(&client, &lane.config.migration, &lane.publication).await?.selection);
            (entry.birth(point).await?, selection, None)
        }
        Decision::Resume(birth) => {
            tracing::info!(slot = lane.slot, tail = ?held.lane_tail.position.map(|p| p.to_string()), "the lane goes on");
            (birth, Arc::new(selection), None)
        }
    };
    let floor = found_slot.map_or(birth.consistent_point, |slot| slot.confirmed_flush);
    let stream = start_stream(lane, &client, walsender).await?;
    Ok(Begun {
        stream,
        identity,
        birth,
        selection,
        snapshot,
        lane_tail: held.lane_tail,
        events: held.events,
        ledger,
        ledger_offset: held.ledger_offset,
        made,
        first_attempt: held.first_attempt,
        floor,
    })
}

/// A missing topic that was there: of the lane itself, or of a table that was planned. One that somebody has just added to the
/// publication by hand has none yet.
fn lost_topic(lane: &Lane, missing: &[String], selection: &Selection, ledger: &Ledger) -> Option<String> {
    let new: Vec<String> = selection
        .published
        .iter()
        .filter(|table| !ledger.plans.keys().any(|(planned, _)| *planned == table.name))
        .map(|table| lane.topics.table(&table.name))
        .collect();
    missing.iter().find(|topic| !new.contains(topic)).cloned()
}

/// What is selected, without what the publication lacks: a table added later comes by a re-sync.
async fn published_selection(
    lane: &Lane,
    client: &Client,
    published: Option<&[changelog::TableName]>,
) -> Result<Selection, Error> {
    let mut selection = catalog::select(&catalog::all_tables(client).await?, &lane.config.migration);
    if let Some(published) = published {
        selection.published.retain(|table| published.contains(&table.name));
    } else if selection.published.is_empty() {
        return Err(Error::NoTables { patterns: lane.config.migration.tables.clone() });
    }
    Ok(selection)
}

fn wanted_topics(lane: &Lane, selection: &Selection) -> Vec<Wanted> {
    let made_with = usize::try_from(lane.config.producer.partitions).unwrap_or(1);
    let workers = usize::from(lane.config.producer.backfill_workers);
    let mut wanted = vec![
        Wanted::single(lane.topics.transactions()),
        Wanted::single(lane.topics.ledger()).compacted(),
        Wanted::about(lane.topics.snapshot(), workers),
    ];
    wanted.extend(selection.published.iter().map(|table| Wanted::of(lane.topics.table(&table.name), made_with)));
    wanted
}

struct Held {
    lane_tail: LaneTail,
    events: HashMap<Place, Position>,
    records: Vec<LedgerRecord>,
    ledger_offset: i64,
    first_attempt: u32,
}

/// What the topics that exist hold.
async fn read_topics(lane: &Lane, wanted: &[Wanted], missing: &[String]) -> Result<Held, Error> {
    let (transactions, ledger, snapshot) = (lane.topics.transactions(), lane.topics.ledger(), lane.topics.snapshot());
    let existing: Vec<Wanted> = wanted.iter().filter(|topic| !missing.contains(&topic.name)).cloned().collect();
    // Checks partitions and settings of those that exist before anything is changed.
    let made = lane.admin.ensure(&existing).await?;
    let control = [transactions.clone(), ledger.clone(), snapshot.clone()];
    let tables = existing.iter().filter(|topic| !control.contains(&topic.name));
    let places: Vec<Place> = tables
        .flat_map(|topic| {
            let count = made.get(&topic.name).map_or(0, |made| made.partitions);
            (0..count).map(|at| (topic.name.clone(), at as i32))
        })
        .collect();
    let there = |topic: &String| made.contains_key(topic);
    let lane_tail = match there(&transactions) {
        true => lane.with_reader(move |reader| reader.lane(&transactions)).await?,
        false => LaneTail::default(),
    };
    let places = with_counted(lane, places, &lane_tail).await?;
    let has_ledger = there(&ledger);
    let snapshot_partitions = made.get(&snapshot).map_or(0, |made| made.partitions) as i32;
    lane.with_reader(move |reader| {
        let (records, ledger_offset) = if has_ledger { reader.ledger(&ledger)? } else { (Vec::new(), 0) };
        // Every attempt wrote at least one block, so this is above all of them.
        let mut blocks = 0;
        for partition in 0..snapshot_partitions {
            blocks += reader.watermarks(&snapshot, partition)?.1;
        }
        Ok(Held {
            lane_tail,
            events: reader.events(&places)?,
            records,
            ledger_offset,
            first_attempt: u32::try_from(blocks).unwrap_or(u32::MAX / 2).saturating_add(1),
        })
    })
    .await
}

/// These partitions, and those of the newest manifest whose tables are not selected any more, as far as their topics exist.
async fn with_counted(lane: &Lane, mut places: Vec<Place>, tail: &LaneTail) -> Result<Vec<Place>, Error> {
    let others: Vec<Place> = tail.places().filter(|place| !places.contains(place)).collect();
    if others.is_empty() {
        return Ok(places);
    }
    let topics: Vec<Wanted> = others.iter().map(|(topic, _)| Wanted::about(topic.clone(), 1)).collect();
    let missing = lane.admin.missing(&topics).await?;
    places.extend(others.into_iter().filter(|(topic, _)| !missing.contains(topic)));
    Ok(places)
}

async fn history(
    walsender: &mut Walsender,
    identity: &SystemIdentity,
    tail: &LaneTail,
) -> Result<Vec<resume::Fork>, Error> {
    let known = tail.timeline.or(tail.birth.as_ref().map(|birth| birth.timeline));
    if identity.timeline <= 1 || known.is_none_or(|known| known == identity.timeline) {
        return Ok(Vec::new());
    }
    let found = walsender.simple_query(&format!("TIMELINE_HISTORY {}", identity.timeline)).await?;
    let text = found.first().and_then(|row| row.get(1)).and_then(Option::as_deref).unwrap_or_default();
    Ok(resume::parse_history(text))
}

/// The beginning of a lane.
struct Entry<'a> {
    lane: &'a Arc<Lane>,
    publishers: &'a Publishers,
    client: &'a Client,
    identity: &'a SystemIdentity,
}

impl Entry<'_> {
    async fn fresh(&self, walsender: &mut Walsender) -> Result<(Birth, Arc<Selection>, Option<Arc<Snapshot>>), Error> {
        let lane = self.lane;
        let prepared = publication::prepare(self.client, &lane.config.migration, &lane.publication).await?;
        tracing::info!(slot = lane.slot, "creating the slot: this waits for every transaction that is open now");
        let created = walsender.create_slot(&lane.slot, false, SnapshotAction::Export).await?;
        let exported = created.snapshot_name.clone().unwrap_or_default();
        let snapshot = Snapshot::import(lane, &exported, created.consistent_point).await?;
        // Killed between slot and birth, the next start adopts the slot.
        let birth = self.birth(created.consistent_point).await?;
        Ok((birth, Arc::new(prepared.selection), Some(snapshot)))
    }

    async fn birth(&self, consistent_point: Lsn) -> Result<Birth, Error> {
        let lane = self.lane;
        let birth = Birth {
            migration: lane.config.migration.name.clone(),
            lane: lane.direction.name().to_owned(),
            system_identifier: self.identity.system_identifier.clone(),
            timeline: self.identity.timeline,
            database: lane.database.clone(),
            slot: lane.slot.clone(),
            publication: lane.publication.clone(),
            consistent_point,
        };
        let (topic, mut value) = (lane.topics.transactions(), Vec::new());
        LaneRecord::Birth(birth.clone()).encode(lane.schemas.lane, &mut value);
        let record = Outgoing { topic: &topic, partition: 0, key: None, value: &value };
        self.publishers.tracked.send_and_wait(record).await?;
        tracing::info!(slot = lane.slot, %consistent_point, "the lane is born");
        Ok(birth)
    }
}

/// Opens the stream; waits for a predecessor of ours that still holds the slot.
async fn start_stream(lane: &Lane, client: &Client, walsender: Walsender) -> Result<ReplicationStream, Error> {
    let publication = format!("\"{}\"", lane.publication.replace('"', "\"\""));
    let options = [("proto_version", "1"), ("publication_names", publication.as_str()), ("messages", "true")];
    let began = std::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(500));
    let mut walsender = Some(walsender);
    loop {
        let mut ready = match walsender.take() {
            Some(ready) => ready,
            None => Walsender::connect(&lane.source_url, &lane.application_name()).await?,
        };
        ready.simple_query(&decoding_memory_sql(lane.config.producer.decoding_bytes_max)).await?;
        let error = match ready.start_replication(&lane.slot, Lsn::ZERO, &options).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if error.refusal() != Some(Refusal::SlotInUse) {
            return Err(error.into());
        }
        if let Some((pid, application)) = slot::holder(client, &lane.slot).await? {
            if application != lane.application_name() {
                return Err(Error::SlotHeld { slot: lane.slot.clone(), pid, application });
            }
            if began.elapsed() > SLOT_HELD_MAX {
                return Err(error.into());
            }
            tracing::info!(slot = lane.slot, pid, "slot is still held by a producer of this lane; waiting");
        } else if began.elapsed() > SLOT_HELD_MAX {
            return Err(error.into());
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// For this session; where the server's own setting is higher, it stays.
fn decoding_memory_sql(bytes_max: u64) -> String {
    format!(
        "SELECT pg_catalog.set_config(name, greatest(setting::pg_catalog.int8, {})::pg_catalog.text, false) \
         FROM pg_catalog.pg_settings WHERE name = 'logical_decoding_work_mem'",
        bytes_max >> 10
    )
}
