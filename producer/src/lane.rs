//! One lane: its names, its endpoints and the clients that every part of the producer uses.

use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use changelog::{Lane as Direction, Position, TableShape, Topics, piece, schema};
use service::registry::RegistryClient;
use service::retry::Backoff;
use service::session::Address;
use service::{Config, Shutdown};
use tokio::sync::Notify;

use crate::error::{Error, Remedy};
use crate::tails::{Place, TailReader};
use crate::topics::TopicAdmin;

const REGISTRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// About five minutes of tries while a registry is away.
const REGISTRY_ATTEMPTS: u32 = 150;

/// Schema ids of the control topics.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlSchemas {
    pub lane: u32,
    pub block: u32,
    pub ledger: u32,
    /// Of pieces of events, in the topics of all tables.
    pub piece: u32,
}

/// What does not change while the process runs.
pub struct Lane {
    pub config: Config,
    pub direction: Direction,
    /// Where changes come from: `[source]` forward, `[target]` in reverse.
    pub source: Address,
    pub source_url: String,
    /// Where they go, to compare column types.
    pub target: Address,
    pub database: String,
    pub slot: String,
    pub publication: String,
    pub topics: Topics,
    registry: RegistryClient,
    /// Ids by subject and schema: a registry takes tens of milliseconds for each.
    registered: Mutex<HashMap<(String, String), u32>>,
    pub admin: TopicAdmin,
    pub schemas: ControlSchemas,
    /// Somebody wants the values of all sequences soon.
    pub sequences_wanted: Notify,
    /// When the newest marker of the stream was emitted, by the source's clock, in microseconds.
    pub newest_marker_micros: AtomicI64,
    pub shutdown: Shutdown,
}

impl Lane {
    /// Reads the names from the configuration and registers the schemas of the control topics.
    ///
    /// # Errors
    /// The configuration is a further target's, a URL is malformed, a Kafka property is unknown, or the registry does not answer.
    pub async fn new(config: Config, direction: Direction, shutdown: Shutdown) -> Result<Arc<Lane>, Error> {
        if config.target.follows {
            return Err(Error::Follows);
        }
        let (source_url, target_url) = match direction {
            Direction::Forward => (config.source.url.clone(), config.target.url.clone()),
            Direction::Reverse => (config.target.url.clone(), config.source.url.clone()),
        };
        let source = Address::parse(role(direction), &source_url)?;
        let target = Address::parse(if direction == Direction::Forward { "target" } else { "source" }, &target_url)?;
        let topics = Topics::new(&config.migration.name, direction);
        let registry = RegistryClient::new(&config.registry.url);
        let schemas = ControlSchemas {
            lane: registry.register(&format!("{}-value", topics.transactions()), changelog::control::SCHEMA).await?,
            block: registry.register(&format!("{}-value", topics.snapshot()), changelog::block::SCHEMA).await?,
            ledger: registry.register(&format!("{}-value", topics.ledger()), changelog::ledger::SCHEMA).await?,
            piece: registry.register(&topics.piece_subject(), piece::SCHEMA).await?,
        };
        let client_id = format!("dflux-producer-{}-{direction}", config.migration.name);
        Ok(Arc::new(Lane {
            admin: TopicAdmin::new(&config.kafka, &client_id)?,
            direction,
            database: source.config.get_dbname().unwrap_or_default().to_owned(),
            source,
            source_url,
            target,
            slot: direction.own(&config.migration.slot),
            publication: direction.own(&config.migration.publication),
            topics,
            registry,
            registered: Mutex::default(),
            schemas,
            sequences_wanted: Notify::new(),
            newest_marker_micros: AtomicI64::new(0),
            shutdown,
            config,
        }))
    }

    /// What `pg_stat_activity` shows; tells our own sessions from strangers'.
    pub fn application_name(&self) -> String {
        format!("dflux producer {}/{}", self.config.migration.name, self.direction)
    }

    pub fn client_id(&self) -> String {
        format!("dflux-producer-{}-{}", self.config.migration.name, self.direction)
    }

    /// Ids of a table's value and key schemas; the key's is 0 for a keyless table. A registry that is away is asked again.
    ///
    /// # Errors
    /// The registry refuses, or stays away for minutes.
    pub async fn register(&self, shape: &TableShape) -> Result<(u32, u32), Error> {
        let topic = self.topics.table(&shape.table);
        let value = self.register_schema(format!("{topic}-value"), schema::value_schema(shape));
        let key = async {
            match schema::key_schema(shape) {
                Some(schema) => self.register_schema(format!("{topic}-key"), schema).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(value, key)
    }

    async fn register_schema(&self, subject: String, schema: String) -> Result<u32, Error> {
        let known = (subject, schema);
        if let Some(id) = self.registered.lock().unwrap_or_else(PoisonError::into_inner).get(&known) {
            return Ok(*id);
        }
        let (subject, schema) = (&known.0, &known.1);
        let mut backoff = Backoff::new(REGISTRY_PAUSE_MAX);
        let mut attempt = 1;
        let id = loop {
            let error = match self.registry.register(subject, schema).await {
                Ok(id) => break id,
                Err(error) => Error::from(error),
            };
            if error.remedy() == Remedy::Stop || attempt == REGISTRY_ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%error, subject, attempt, "registering a schema failed; trying again");
            attempt += 1;
            tokio::time::sleep(backoff.next_delay()).await;
        };
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).insert(known, id);
        Ok(id)
    }

    /// The last position in each partition.
    ///
    /// # Errors
    /// Kafka does not answer, or a partition has lost records.
    pub async fn read_tails(&self, places: Vec<Place>) -> Result<HashMap<Place, Position>, Error> {
        self.with_reader(move |reader| reader.events(&places)).await
    }

    /// Runs a blocking read of topics beside the runtime.
    ///
    /// # Errors
    /// What the read says.
    pub async fn with_reader<T: Send + 'static>(
        &self,
        read: impl FnOnce(&TailReader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (kafka, client_id) = (self.config.kafka.clone(), self.client_id());
        let reading = tokio::task::spawn_blocking(move || read(&TailReader::new(&kafka, &client_id)?));
        reading.await.map_err(|error| Error::Task { what: error.to_string() })?
    }
}

fn role(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "source",
        Direction::Reverse => "target",
    }
}
