//! The life of one lane in one process: stand by, lead, load, apply; what passes is tried again, what does not stops it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use changelog::ledger::ResyncRequested;
use changelog::{Birth, Lane, Lsn, TableName, Topics};
use service::program::Context;
use service::registry::RegistryClient;
use service::retry::Backoff;
use service::session::Address;
use service::{Config, Hint as _, Shutdown};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::admission::Admission;
use crate::catalog::Relations;
use crate::error::{Remedy, target};
use crate::execute::{Applier, Batch, Scope};
use crate::follow::Following;
use crate::index::Building;
use crate::lead::{Leader, stand_by};
use crate::load::{Loading, backfill};
use crate::pipeline::{Ended, Pipeline, Pulse};
use crate::reader::Reader;
use crate::resync::{self, Resyncing};
use crate::rule::{self, Rule};
use crate::subscribe::{self, Hint, LaneParameters};
use crate::target::{LaneRow, Purpose, Sessions, begin_lane, lane_row, mark, record_error, set_phase};
use crate::{Error, enums, identity, observe, reread};

/// Runs until the shutdown, or until an error that only a person can mend.
///
/// # Errors
/// That error; it stands in `dflux.lane` too.
pub async fn run(context: Context, lane: Lane) -> Result<(), Error> {
    observe::describe();
    let Context { config, health, shutdown } = context;
    let (source_url, target_url) = match lane {
        Lane::Forward => (config.source.url.clone(), config.target.url.clone()),
        Lane::Reverse => (config.target.url.clone(), config.source.url.clone()),
    };
    check_endpoints(&config, &target_url).await?;
    let name = changelog::origin::lane_name(&config.migration.name, lane);
    let sessions = Sessions::new(&target_url, &name)?;
    let instance = format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
    let life = Life {
        direction: lane,
        sessions,
        topics: Topics::new(&config.migration.name, lane),
        instance,
        source_url,
        config,
        shutdown,
        held: Mutex::default(),
    };
    let mut backoff = Backoff::new(Duration::from_secs(5));
    while !life.shutdown.begun() {
        let led = life.once(&health).await;
        let Err((error, epoch)) = led else { return Ok(()) };
        if let Error::Held { table } = &error {
            *life.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(table.clone());
        }
        match error.remedy() {
            Remedy::StandBy => observe::trouble(&error),
            Remedy::Retry => {
                health.unwell(&format!("trying again: {error}"));
                observe::trouble(&error);
                if !backoff.wait(&life.shutdown).await {
                    return Ok(());
                }
                if epoch.is_some() {
                    backoff.reset();
                }
            }
            Remedy::Stop if life.mended(&error, epoch).await => {}
            Remedy::Stop => {
                health.unwell(&format!("stopped: {error}"));
                observe::stopped(&error.to_string());
                if let Some(epoch) = epoch {
                    life.record(&error, epoch).await;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What is wrong from the start is said at the start: later the same would only be tried again.
async fn check_endpoints(config: &Config, target_url: &str) -> Result<(), Error> {
    let client = Address::parse("target", target_url)?.connect("dflux consumer check").await?;
    drop(client);
    RegistryClient::new(&config.registry.url).ping().await?;
    let kafka = config.kafka.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let reader = Reader::new(&kafka, "dflux-consumer-check", 1 << 20, 1)?;
        reader.partitions("dflux-is-there").map(|_| ()).map_err(|error| service::kafka::failed(&kafka, error).into())
    });
    asked.await.map_err(|_| Error::Thread { what: "asks Kafka" })?
}

/// A task that ends with its owner.
struct Ending(tokio::task::JoinHandle<Error>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Life {
    direction: Lane,
    sessions: Sessions,
    topics: Topics,
    instance: String,
    source_url: String,
    config: Config,
    shutdown: Shutdown,
    /// A table whose copy the next leadership waits for before it applies anything.
    held: Mutex<Option<TableName>>,
}

/// An error, with the epoch if this instance led when it came.
type Led<T> = Result<T, (Error, Option<i64>)>;

impl Life {
    /// One leadership, from standing by to its end.
    async fn once(&self, health: &service::telemetry::Health) -> Led<()> {
        let standing = |led: bool| match led {
            true => health.ready("standing by"),
            false => health.well("standing by, and no sign of life of a leader"),
        };
        let lease = self.config.consumer.lease_seconds;
        let leader = stand_by(&self.sessions, &self.instance, lease, &self.shutdown, standing).await;
        let Some(mut leader) = leader.map_err(|error| (error, None))? else { return Ok(()) };
        let epoch = leader.epoch;
        let (_never, lost) = tokio::sync::oneshot::channel();
        let lost = std::mem::replace(&mut leader.lost, lost);
        let ended = tokio::select! {
            ended = self.lead(&leader, health) => ended,
            // The signs of life are the first to notice that another instance leads, or that the target is gone.
            error = lost => Err(error.unwrap_or(Error::Thread { what: "gives signs of life" })),
        };
        ended.map_err(|error| (error, Some(epoch)))
    }

    async fn lead(&self, leader: &Leader, health: &service::telemetry::Health) -> Result<(), Error> {
        let lane = &self.sessions.lane;
        health.ready("waiting for the producer");
        let Some(birth) = self.birth(leader).await? else { return Ok(()) };
        let mut connection = self.sessions.open(Purpose::Apply).await?;
        if lane_row(&mut connection, lane).await?.is_none() {
            begin_lane(&mut connection, lane, leader.epoch, &birth).await?;
        }
        let Some(row) = lane_row(&mut connection, lane).await? else {
            return Err(Error::Fenced { lane: lane.clone(), epoch: leader.epoch });
        };
        self.same_source(&row, &birth)?;
        let Some(mut following) = Following::start(&self.loading(leader.epoch, &leader.pulse)).await? else {
            return Ok(());
        };
        let exact_from = match row.exact_from {
            Some(exact_from) => {
                // An error of the last run is over, or will be met again; until then the lane is on its way.
                if row.phase != "exact" {
                    set_phase(&mut connection, lane, leader.epoch, "tolerant", None).await?;
                }
                exact_from
            }
            None => {
                set_phase(&mut connection, lane, leader.epoch, "loading", None).await?;
                health.ready("loading");
                let loaded = self.load(leader, &mut following, &mut connection, health).await?;
                let Some(exact_from) = loaded else { return Ok(()) };
                exact_from
            }
        };
        self.apply(leader, following, connection, (&row, exact_from), health).await
    }

    /// The lane's birth record, once the producer has written it.
    async fn birth(&self, leader: &Leader) -> Result<Option<Birth>, Error> {
        let mut told = false;
        loop {
            leader.pulse.store(crate::target::now_micros(), std::sync::atomic::Ordering::Relaxed);
            let (kafka, topics, client) = (self.config.kafka.clone(), self.topics.clone(), self.client());
            let asked = tokio::task::spawn_blocking(move || subscribe::birth(&kafka, &topics, &client)).await;
            if let Some(birth) = asked.map_err(|_| Error::Thread { what: "reads the birth" })?? {
                return Ok(Some(birth));
            }
            if !told {
                observe::waiting("the producer's birth record");
                told = true;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
                () = self.shutdown.wait() => return Ok(None),
            }
        }
    }

    fn client(&self) -> String {
        format!("dflux-consumer-{}", self.sessions.lane)
    }

    /// The topics must come from the slot that the target's rows come from.
    fn same_source(&self, row: &LaneRow, birth: &Birth) -> Result<(), Error> {
        let fields = [
            ("system identifier", row.system_identifier.clone(), birth.system_identifier.clone()),
            ("slot", row.slot.clone(), birth.slot.clone()),
            ("consistent point", row.consistent_point.to_string(), birth.consistent_point.to_string()),
        ];
        for (field, expected, found) in fields {
            if expected != found {
                return Err(Error::SourceReplaced { lane: self.sessions.lane.clone(), field, expected, found });
            }
        }
        Ok(())
    }

    fn loading(&self, epoch: i64, pulse: &Pulse) -> Loading {
        Loading {
            sessions: self.sessions.clone(),
            epoch,
            kafka: self.config.kafka.clone(),
            topics: self.topics.clone(),
            client: self.client(),
            bytes_max: self.config.consumer.fetch_bytes_max,
            pulse: pulse.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    async fn load(
        &self,
        leader: &Leader,
        following: &mut Following,
        connection: &mut PgConnection,
        health: &service::telemetry::Health,
    ) -> Result<Option<Lsn>, Error> {
        let Some(copies) = backfill(&self.loading(leader.epoch, &leader.pulse), following).await? else {
            return Ok(None);
        };
        set_phase(connection, &self.sessions.lane, leader.epoch, "indexing", None).await?;
        health.ready("indexing");
        let workers = usize::from(self.config.consumer.load_workers);
        let building = Building { sessions: &self.sessions, migration: &self.config.migration.name, workers };
        let plans = following.ledger.plans_of(&copies);
        building.all(&plans).await?;
        identity::copied(connection, &self.sessions.lane, &plans).await?;
        resync::loaded(connection, &self.sessions.lane, &copies).await?;
        let exact_from = following.ledger.exact_from(&copies).unwrap_or_default();
        set_phase(connection, &self.sessions.lane, leader.epoch, "tolerant", Some(exact_from)).await?;
        Ok(Some(exact_from))
    }

    async fn apply(
        &self,
        leader: &Leader,
        following: Following,
        mut connection: PgConnection,
        (row, mut exact_from): (&LaneRow, Lsn),
        health: &service::telemetry::Health,
    ) -> Result<(), Error> {
        let lane = &self.sessions.lane;
        let marking = mark(&mut connection, lane).await?;
        let hints = hints(&mut connection, lane, &self.topics).await?;
        let rules = rules(&mut connection, lane).await?;
        let asked = following.requests.clone();
        let (receiver, _stop) = subscribe::start(LaneParameters {
            kafka: self.config.kafka.clone(),
            topics: self.topics.clone(),
            client: self.client(),
            bytes_max: self.config.consumer.fetch_bytes_max,
            system_identifier: row.system_identifier.clone(),
            timeline: row.timeline,
            applied: row.applied,
            hints,
        });
        let (asking, requests) = tokio::sync::mpsc::channel(1);
        let mut resync = Ending(tokio::spawn(resync::run(
            Resyncing {
                loading: self.loading(leader.epoch, &leader.pulse),
                migration: self.config.migration.name.clone(),
                registry_url: self.config.registry.url.clone(),
                batch: self.config.consumer.clone(),
                source_url: self.source_url.clone(),
            },
            following,
            asking,
        )));
        let mut pipeline = Pipeline {
            config: &self.config.consumer,
            applier: Some(
                Applier::new(connection, marking.clone(), Scope::Lane, lane, leader.epoch)
                    .with_sequence_margin(self.config.consumer.sequence_margin),
            ),
            flight: None,
            receiver,
            shutdown: self.shutdown.clone(),
            pulse: leader.pulse.clone(),
            exact_from,
            exact: false,
            rules,
            relations: Relations::new(&self.config.registry.url, lane, &self.topics),
            requests,
            asked,
            superseded: foldhash::HashSet::default(),
            queue: std::collections::VecDeque::new(),
            batch: Batch::default(),
            inside: false,
            at: Lsn::ZERO,
            refused: false,
            uncommitted: false,
            control: None,
            admission: Admission::new(self.direction, &self.config.migration.name, &self.source_url),
            rogue: None,
            applied: row.applied,
        };
        observe::phase("tolerant");
        health.ready("tolerant");
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(table) = held {
            tokio::select! {
                held = pipeline.hold(&table) => held?,
                error = &mut resync.0 => return Err(error.unwrap_or(Error::Thread { what: "reads tables again" })),
            }
        }
        loop {
            let ended = tokio::select! {
                ended = pipeline.run() => ended?,
                // It never ends but by an error.
                error = &mut resync.0 => return Err(error.unwrap_or(Error::Thread { what: "reads tables again" })),
            };
            match ended {
                Ended::Shutdown => return Ok(()),
                Ended::Tolerated => {
                    let connection = &mut pipeline.applier().await?.connection;
                    let again =
                        reread::run_once(connection, &marking, (lane, leader.epoch), &Scope::Lane, &self.source_url)
                            .await;
                    let again = match again {
                        // What the operator asked for must not stop a lane that was exact without it.
                        Err(error) if error.remedy() == Remedy::Stop && reread::give_up(connection, lane).await? => {
                            observe::trouble(&error);
                            None
                        }
                        again => again?,
                    };
                    match again {
                        Some(point) => exact_from = point,
                        None => {
                            set_phase(connection, lane, leader.epoch, "exact", None).await?;
                            pipeline.exact = true;
                            health.ready("exact");
                        }
                    }
                    pipeline.exact_from = exact_from;
                }
            }
        }
    }

    /// Whether the lane can go on where it was: an enum has got the value that the target refused, or the table is left to a copy.
    async fn mended(&self, error: &Error, epoch: Option<i64>) -> bool {
        let Some(epoch) = epoch else { return false };
        let mended = async { Ok::<_, Error>(self.carried(error).await? || self.left(error, epoch).await?) };
        mended.await.unwrap_or_else(|error| {
            observe::trouble(&error);
            false
        })
    }

    async fn carried(&self, error: &Error) -> Result<bool, Error> {
        let Some(refused) = error.of_target().and_then(enums::refused) else { return Ok(false) };
        let client = Address::parse("source", &self.source_url)?.connect("dflux consumer").await?;
        let mut connection = self.sessions.open(Purpose::Heartbeat).await?;
        enums::carry(&client, &mut connection, refused).await
    }

    /// A copy was asked for of the table that is at fault. It begins further on, where the lane cannot come; whatever is before
    /// that is in the copy.
    async fn left(&self, error: &Error, epoch: i64) -> Result<bool, Error> {
        let Some(table) = error.table() else { return Ok(false) };
        let loading = self.loading(epoch, &Pulse::default());
        let Some(following) = Following::start(&loading).await? else { return Ok(false) };
        let Some(ResyncRequested { table, generation, oid, .. }) = following.requests.newest(&table) else {
            return Ok(false);
        };
        let mut applier = resync::applier(&loading, &table).await?;
        let states = resync::states(&mut applier.connection, &self.sessions.lane).await?;
        if states.iter().any(|state| state.table == table && state.generation >= generation) {
            return Ok(false);
        }
        applier.suspend(&table, generation, Some(oid)).await?;
        observe::resync(&table.to_string(), generation, "resyncing");
        Ok(true)
    }

    /// Leaves word in the target; that this fails too must not hide the error itself.
    async fn record(&self, error: &Error, epoch: i64) {
        let recorded = async {
            let mut connection = self.sessions.open(Purpose::Heartbeat).await?;
            let text = service::report(error, None);
            record_error(&mut connection, &self.sessions.lane, epoch, &text, error.hint().as_deref()).await
        };
        if let Err(error) = recorded.await {
            observe::trouble(&error);
        }
    }
}

async fn hints(
    connection: &mut PgConnection,
    lane: &str,
    topics: &Topics,
) -> Result<HashMap<(String, i32), Hint>, Error> {
    let sql = "SELECT topic, kafka_partition, next_offset, commit_lsn::text, ordinal, part FROM dflux.offset_hint \
               WHERE lane = $1 AND commit_lsn IS NOT NULL AND topic <> $2";
    let query = sqlx::query(sql).bind(lane).bind(topics.snapshot());
    let rows = query.fetch_all(connection).await.map_err(target("dflux.offset_hint"))?;
    let hint = |row: &sqlx::postgres::PgRow| -> Result<((String, i32), Hint), sqlx::Error> {
        let commit_lsn = row.try_get::<String, _>(3)?.parse().unwrap_or_default();
        let position = changelog::Position {
            commit_lsn,
            ordinal: row.try_get::<i64, _>(4)?.max(0) as u64,
            part: row.try_get::<i32, _>(5)?.max(0) as u32,
        };
        Ok(((row.try_get(0)?, row.try_get(1)?), Hint { next_offset: row.try_get(2)?, position }))
    };
    rows.iter().map(hint).collect::<Result<_, _>>().map_err(target("dflux.offset_hint"))
}

/// What follows from the tables' copies; a table that is being read again is left alone.
async fn rules(connection: &mut PgConnection, lane: &str) -> Result<foldhash::HashMap<TableName, Rule>, Error> {
    let mut rules = rule::of_copies(connection, lane, None).await?;
    for state in resync::states(connection, lane).await? {
        match state.state.as_str() {
            "live" if state.next_generation.is_none() => {}
            "gone" => {
                rules.insert(state.table, Rule::GONE);
            }
            _ => {
                rules.insert(state.table, Rule::SUSPENDED);
            }
        }
    }
    Ok(rules)
}
