//! Follows the change topics into the [`Window`]. A reader of its own: no group, no commits, nothing of the consumer's.
//!
//! It starts a little before the end of each topic ([`OVERLAP`]): what lies further back was visible to every snapshot long
//! ago. That everything up to the target's position was read is known from the partitions' ends: the position was applied, so
//! its events are in the partitions, below the ends that are asked for after the position was read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use changelog::{EventDecoder, Lane, Op, Topics};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::Config;

use crate::Error;
use crate::config::{OVERLAP, WINDOW_BYTES_MAX};
use crate::settle::{SourceSnapshot, Unsettled};
use crate::window::{Change, LeaseId, Window};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
pub const POLL: Duration = Duration::from_millis(100);

/// A running reader; it ends when this is dropped.
pub struct Tail {
    shared: Arc<Shared>,
    topics: Topics,
    config: Config,
}

struct Shared {
    consumer: BaseConsumer,
    window: Mutex<Window>,
    stop: AtomicBool,
    /// Why the reader ended, if it did.
    failure: Mutex<Option<String>>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Tail({:?})", self.topics)
    }
}

/// Held while a comparison may ask for changes.
#[derive(Debug)]
pub struct Lease<'a> {
    tail: &'a Tail,
    id: LeaseId,
}

impl Lease<'_> {
    pub fn hold(&self, snapshot: SourceSnapshot) {
        self.tail.window().hold(self.id, snapshot);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.tail.window().release(self.id);
    }
}

impl Tail {
    /// Starts following; none if the migration has no change topics.
    ///
    /// # Errors
    /// `Kafka`, `Topic`.
    pub async fn start(config: &Config, lane: Lane) -> Result<Option<Tail>, Error> {
        let config = config.clone();
        blocking(move || Tail::start_blocking(&config, lane)).await
    }

    fn start_blocking(config: &Config, lane: Lane) -> Result<Option<Tail>, Error> {
        let kafka = &config.kafka;
        let topics = Topics::new(&config.migration.name, lane);
        let consumer = consumer(config)?;
        let failed = |error: KafkaError| Error::Service(service::kafka::failed(kafka, error));
        let metadata = consumer.fetch_metadata(None, REQUEST_TIMEOUT).map_err(failed)?;
        let control = [topics.transactions(), topics.snapshot(), topics.ledger()];
        let mut partitions: Vec<(String, i32)> = Vec::new();
        let mut lane_exists = false;
        for topic in metadata.topics() {
            lane_exists |= topic.name() == topics.transactions();
            if topics.owns(topic.name()) && !control.iter().any(|name| name == topic.name()) {
                partitions.extend(topic.partitions().iter().map(|p| (topic.name().to_owned(), p.id())));
            }
        }
        if !lane_exists {
            return Ok(None);
        }
        let mut window = Window::new(WINDOW_BYTES_MAX);
        let assignment = starting_offsets(&consumer, &partitions).map_err(failed)?;
        for element in assignment.elements() {
            let Offset::Offset(offset) = element.offset() else { continue };
            window.assign(element.topic(), element.partition(), offset);
        }
        consumer.assign(&assignment).map_err(failed)?;
        let shared = Arc::new(Shared {
            consumer,
            window: Mutex::new(window),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let followed = shared.clone();
        std::thread::Builder::new()
            .name("tail".into())
            .spawn(move || follow(&followed))
            .map_err(|source| service::Error::Runtime { source })?;
        Ok(Some(Tail { shared, topics, config: config.clone() }))
    }

    pub fn window(&self) -> MutexGuard<'_, Window> {
        self.shared.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// From here on nothing is forgotten that a snapshot opened now may ask for.
    pub fn lease(&self) -> Lease<'_> {
        let id = self.window().lease();
        Lease { tail: self, id }
    }

    /// Whether it must be started anew.
    pub fn ended(&self) -> bool {
        self.window().broken() || self.failure().is_some()
    }

    fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A reader of its own, of nothing so far.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn another(&self) -> Result<BaseConsumer, Error> {
        consumer(&self.config)
    }

    /// The ends of a topic's partitions now; none of a table that was never changed.
    ///
    /// # Errors
    /// `Topic`.
    pub async fn ends(&self, topic: &str) -> Result<Vec<(i32, i64)>, Error> {
        let (shared, name) = (self.shared.clone(), topic.to_owned());
        blocking(move || ends(&shared, &name)).await
    }

    /// Waits until everything that is in a topic now was read.
    ///
    /// # Errors
    /// `TailEnded`, `Topic`. Inner: `TailBehind` when the deadline has passed.
    pub async fn reach(&self, topic: &str, deadline: Instant) -> Result<Result<(), Unsettled>, Error> {
        let ends = self.ends(topic).await?;
        loop {
            if self.failure().is_some() {
                return Err(Error::TailEnded);
            }
            if ends.iter().all(|(partition, end)| self.window().reached(topic, *partition, *end)) {
                return Ok(Ok(()));
            }
            if Instant::now() > deadline {
                return Ok(Err(Unsettled::TailBehind));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn consumer(config: &Config) -> Result<BaseConsumer, Error> {
    let ours = [
        ("group.id", format!("dflux-validator-{}", config.migration.name)),
        ("enable.auto.commit", "false".into()),
        ("enable.auto.offset.store", "false".into()),
        ("auto.offset.reset", "error".into()),
        ("allow.auto.create.topics", "false".into()),
        ("enable.partition.eof", "false".into()),
        ("fetch.wait.max.ms", "50".into()),
        ("fetch.queue.backoff.ms", "20".into()),
        ("queued.max.messages.kbytes", "8192".into()),
        ("queued.min.messages", "2000".into()),
        ("fetch.message.max.bytes", (1 << 20).to_string()),
        ("fetch.max.bytes", (8 << 20).to_string()),
    ];
    let client = service::kafka::client_config(&config.kafka, "dflux-validator", &ours)?;
    Ok(service::kafka::create(&config.kafka, &client)?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::TailEnded),
    }
}

/// The first offset of each partition from [`OVERLAP`] before now. The ends are asked for first: a record that arrives between the
/// two questions is read, not missed.
fn starting_offsets(consumer: &BaseConsumer, partitions: &[(String, i32)]) -> Result<TopicPartitionList, KafkaError> {
    let mut wanted = TopicPartitionList::new();
    let since = SystemTime::now().checked_sub(OVERLAP).unwrap_or(UNIX_EPOCH);
    let since = since.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64);
    let mut ends = Vec::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        let (_, end) = consumer.fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)?;
        ends.push(end);
        wanted.add_partition_offset(topic, *partition, Offset::Offset(since))?;
    }
    let mut assignment = TopicPartitionList::new();
    if partitions.is_empty() {
        return Ok(assignment);
    }
    let found = consumer.offsets_for_times(wanted, REQUEST_TIMEOUT)?;
    for ((topic, partition), end) in partitions.iter().zip(ends) {
        let at = found.find_partition(topic, *partition).map(|element| element.offset());
        let offset = match at {
            Some(Offset::Offset(offset)) if offset >= 0 => offset,
            _ => end,
        };
        assignment.add_partition_offset(topic, *partition, Offset::Offset(offset))?;
    }
    Ok(assignment)
}

/// The ends of a topic's partitions now; a partition that was made after the start is followed from its beginning.
fn ends(shared: &Shared, topic: &str) -> Result<Vec<(i32, i64)>, Error> {
    let failed = |error: KafkaError| Error::Topic { topic: topic.to_owned(), message: error.to_string() };
    let metadata = shared.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(failed)?;
    let Some(found) = metadata.topics().first() else { return Ok(Vec::new()) };
    if let Some(code) = found.error() {
        let code = RDKafkaErrorCode::from(code);
        if matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) {
            // Nothing was ever changed in this table.
            return Ok(Vec::new());
        }
        return Err(Error::Topic { topic: topic.to_owned(), message: code.to_string() });
    }
    let mut ends = Vec::new();
    for partition in found.partitions() {
        let partition = partition.id();
        let known = {
            let mut window = shared.window.lock().unwrap_or_else(PoisonError::into_inner);
            let known = window.partitions(topic).contains(&partition);
            window.assign(topic, partition, 0);
            known
        };
        if !known {
            let mut added = TopicPartitionList::new();
            added.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
            shared.consumer.incremental_assign(&added).map_err(failed)?;
        }
        let (_, end) = shared.consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).map_err(failed)?;
        ends.push((partition, end));
    }
    Ok(ends)
}

/// Reads until told to stop. librdkafka reconnects by itself; what it calls fatal ends the reader, and what cannot be read too.
fn follow(shared: &Shared) {
    let ended = |why: String| {
        tracing::error!(why, "the reader of the change topics ended");
        *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    };
    while !shared.stop.load(Ordering::Relaxed) {
        let message = match shared.consumer.poll(POLL) {
            None => continue,
            Some(Ok(message)) => message,
            Some(Err(error)) if retried(&error) => {
                tracing::debug!(%error, "Kafka does not answer; going on");
                continue;
            }
            Some(Err(error)) => return ended(error.to_string()),
        };
        let change = match message.payload().map(change).transpose() {
            Ok(change) => change.flatten(),
            Err(error) => return ended(format!("{} offset {}: {error}", message.topic(), message.offset())),
        };
        let mut window = shared.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = window.push(message.topic(), message.partition(), message.offset(), change) {
            drop(window);
            return ended(format!("{} offset {}: {error}", message.topic(), message.offset()));
        }
    }
}

/// An offset that is gone can never be read; anything else may come back.
pub fn retried(error: &KafkaError) -> bool {
    let lost = [RDKafkaErrorCode::OffsetOutOfRange, RDKafkaErrorCode::AutoOffsetReset, RDKafkaErrorCode::Fatal];
    error.rdkafka_error_code().is_none_or(|code| !lost.contains(&code))
}

/// The change that a record holds; none of a row of the backfill.
///
/// # Errors
/// `Corrupt`.
pub fn change(payload: &[u8]) -> Result<Option<Change>, changelog::Error> {
    let header = EventDecoder::head(payload)?.header;
    if header.op == Op::Read {
        return Ok(None);
    }
    Ok(Some(Change { position: header.position, xid: header.xid, op: header.op, payload: payload.into() }))
}
