//! Handing records to Kafka, and learning what it has acknowledged. I/O.
//!
//! Idempotent and gapless: each partition holds the records in the order in which they were sent, with no hole, or the process
//! ends. `message.timeout.ms = 0` waits for ever: a record that timed out would be a hole that nobody sees. Memory is
//! bounded by the client's queue; a full queue makes the sender wait, nothing else.
//!
//! Two clients, so that the blocks of a backfill do not stand before the events of the stream: [`StreamPublisher`] (the opaque
//! value of a record is its sequence number, no allocation) and [`TrackedPublisher`] (a shared counter per chunk).

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use changelog::{Lsn, piece};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, ProducerContext, ThreadedProducer};
use rdkafka::util::IntoOpaque;
use service::config;
use tokio::sync::Notify;

use crate::acknowledge::Acknowledgements;
use crate::error::Error;

/// A full queue is tried again at each acknowledgement, and after this if one was missed.
const FULL_WAIT: Duration = Duration::from_millis(20);

/// librdkafka sends a request per partition, and five at most are under way: at 1 ms and 500 transactions per second over five
/// partitions the requests alone queued for 100 ms and the broker was busy with nothing else.
const STREAM_LINGER_MS: f32 = 5.0;

const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one batch of the stream. A reader takes batches whole and, of partitions that are all busy, one of each at least: what
/// thousands of them hold together is to be what a few hold.
fn batch_bytes(queue_bytes: u64, partitions: usize) -> u64 {
    (queue_bytes / partitions.max(1) as u64).clamp(16 << 10, BATCH_BYTES_MAX)
}

/// What each of the two publishers may hold.
pub fn queue_bytes(producer: &config::Producer) -> u64 {
    producer.queue_bytes_max / 2
}

/// Once set, the process ends: after a hole nothing may follow.
#[derive(Debug, Default)]
struct Failure {
    what: OnceLock<(String, String)>,
    happened: Notify,
}

impl Failure {
    fn report(&self, topic: &str, message: String) {
        let _first_counts = self.what.set((topic.to_owned(), message));
        self.happened.notify_waiters();
        self.happened.notify_one();
    }

    fn check(&self) -> Result<(), Error> {
        match self.what.get() {
            Some((topic, message)) => Err(Error::Delivery { topic: topic.clone(), message: message.clone() }),
            None => Ok(()),
        }
    }

    async fn wait(&self) -> Error {
        loop {
            let happened = self.happened.notified();
            if let Err(error) = self.check() {
                return error;
            }
            happened.await;
        }
    }
}

fn client_config(
    kafka: &config::Kafka,
    client_id: &str,
    queue_bytes: u64,
    linger_ms: f32,
    batch_bytes_max: u64,
) -> Result<ClientConfig, Error> {
    // Kafka's limit is one of batches.
    let batch_bytes = batch_bytes_max.min(piece::record_bytes_max(kafka.record_bytes_max) as u64);
    let ours = [
        ("acks", "all".to_owned()),
        ("enable.idempotence", "true".to_owned()),
        ("enable.gapless.guarantee", "true".to_owned()),
        ("message.timeout.ms", "0".to_owned()),
        ("max.in.flight.requests.per.connection", "5".to_owned()),
        ("message.max.bytes", (config::RECORD_BYTES_MOST + (64 << 10)).to_string()),
        ("queue.buffering.max.kbytes", (queue_bytes >> 10).max(1).to_string()),
        ("queue.buffering.max.messages", "1000000".to_owned()),
        ("linger.ms", linger_ms.to_string()),
        ("batch.size", batch_bytes.to_string()),
        ("batch.num.messages", "100000".to_owned()),
        ("socket.nagle.disable", "true".to_owned()),
        ("reconnect.backoff.max.ms", "2000".to_owned()),
        ("topic.metadata.propagation.max.ms", "60000".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
        ("log_level", "3".to_owned()),
    ];
    Ok(service::kafka::client_config(kafka, client_id, &ours)?)
}

fn create<C: ProducerContext + 'static>(
    kafka: &config::Kafka,
    config: &ClientConfig,
    context: C,
) -> Result<ThreadedProducer<C>, Error> {
    ThreadedProducer::<C, NoCustomPartitioner>::from_config_and_context(config, context)
        .map_err(|error| service::kafka::failed(kafka, error).into())
}

/// One record to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: &'a [u8],
}

/// Tries to enqueue. `Ok(false)`: the queue is full.
fn enqueue<C>(producer: &ThreadedProducer<C>, record: Outgoing<'_>, opaque: C::DeliveryOpaque) -> Result<bool, Error>
where
    C: ProducerContext + 'static,
    C::DeliveryOpaque: IntoOpaque,
{
    let mut outgoing: BaseRecord<'_, [u8], [u8], C::DeliveryOpaque> =
        BaseRecord::with_opaque_to(record.topic, opaque).partition(record.partition).payload(record.value);
    if let Some(key) = record.key {
        outgoing = outgoing.key(key);
    }
    match producer.send(outgoing) {
        Ok(()) => Ok(true),
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
        Err((error, _)) => Err(Error::Delivery { topic: record.topic.to_owned(), message: error.to_string() }),
    }
}

/// A record beyond the whole queue would wait for ever.
fn check_size(record: Outgoing<'_>, queue_bytes: u64) -> Result<(), Error> {
    let bytes = record.value.len() + record.key.map_or(0, <[u8]>::len);
    if bytes as u64 > queue_bytes {
        return Err(Error::RecordTooLarge { topic: record.topic.to_owned(), bytes, queue_bytes });
    }
    Ok(())
}

#[derive(Debug, Default)]
struct StreamState {
    acknowledgements: Mutex<Acknowledgements>,
    /// Each acknowledgement, for a sender that waits.
    acknowledged: Notify,
    /// The confirmed LSN grew.
    confirmed: Notify,
    failure: Failure,
}

impl StreamState {
    fn acknowledgements(&self) -> std::sync::MutexGuard<'_, Acknowledgements> {
        self.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct StreamContext {
    state: Arc<StreamState>,
}

impl ClientContext for StreamContext {}

impl ProducerContext for StreamContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        match result {
            Ok(_) => {
                let grew = self.state.acknowledgements().acknowledge(sequence as u64);
                self.state.acknowledged.notify_one();
                if grew {
                    self.state.confirmed.notify_one();
                }
            }
            Err((error, message)) => {
                self.state.failure.report(message.topic(), error.to_string());
                self.state.acknowledged.notify_one();
            }
        }
    }
}

/// Events, manifests and markers, in stream order. One sender. Cheap to clone.
#[derive(Clone)]
pub struct StreamPublisher {
    producer: Arc<ThreadedProducer<StreamContext>>,
    state: Arc<StreamState>,
    queue_bytes: u64,
}

impl StreamPublisher {
    /// Connects to nothing yet.
    ///
    /// `partitions`: of all tables together, about.
    ///
    /// # Errors
    /// A property is unknown or reserved.
    pub fn new(
        kafka: &config::Kafka,
        client_id: &str,
        queue_bytes: u64,
        partitions: usize,
    ) -> Result<StreamPublisher, Error> {
        let batch_bytes = batch_bytes(queue_bytes, partitions);
        let config = client_config(kafka, client_id, queue_bytes, STREAM_LINGER_MS, batch_bytes)?;
        let state = Arc::new(StreamState::default());
        let producer = create(kafka, &config, StreamContext { state: state.clone() })?;
        Ok(StreamPublisher { producer: Arc::new(producer), state, queue_bytes })
    }

    /// Enqueues a record. `Some`: the queue is full, and nothing else may be sent before the record was insisted on. Apart
    /// from that, so that the common case is no future.
    ///
    /// # Errors
    /// `Delivery`: this or an earlier record was refused for good; nothing may follow. `RecordTooLarge`.
    pub fn offer(&self, record: Outgoing<'_>) -> Result<Option<Refused>, Error> {
        check_size(record, self.queue_bytes)?;
        self.state.failure.check()?;
        let sequence = self.state.acknowledgements().sent();
        match enqueue(&self.producer, record, sequence as usize) {
            Ok(true) => Ok(None),
            Ok(false) => Ok(Some(Refused { publisher: self.clone(), sequence, enqueued: false })),
            Err(error) => {
                self.state.acknowledgements().withdraw(sequence);
                Err(error)
            }
        }
    }

    /// `lsn` may be confirmed when everything sent until now is acknowledged.
    pub fn point(&self, lsn: Lsn) {
        self.state.acknowledgements().point(lsn);
        self.state.confirmed.notify_one();
    }

    pub fn confirmed(&self) -> Lsn {
        self.state.acknowledgements().confirmed()
    }

    /// Returns when the confirmed LSN may have grown. One waiter.
    pub async fn confirmed_grew(&self) {
        self.state.confirmed.notified().await;
    }

    pub fn outstanding(&self) -> usize {
        self.state.acknowledgements().outstanding()
    }

    /// Returns when nothing is outstanding.
    ///
    /// # Errors
    /// `Delivery`.
    pub async fn drained(&self) -> Result<(), Error> {
        while self.outstanding() > 0 {
            self.state.failure.check()?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.state.failure.check()
    }

    /// Returns only when a record was refused for good.
    pub async fn failed(&self) -> Error {
        self.state.failure.wait().await
    }
}

/// A record that found the queue full. Dropped before it went in (its session ended), its number is taken back: it would
/// hold back every later confirmation.
#[must_use]
pub struct Refused {
    publisher: StreamPublisher,
    sequence: u64,
    enqueued: bool,
}

impl Refused {
    /// Waits until the queue takes the record, which must be the one that was offered.
    ///
    /// # Errors
    /// `Delivery`.
    pub async fn insist(mut self, record: Outgoing<'_>) -> Result<(), Error> {
        let state = self.publisher.state.clone();
        loop {
            tokio::select! {
                () = state.acknowledged.notified() => {}
                () = tokio::time::sleep(FULL_WAIT) => {}
            }
            state.failure.check()?;
            if enqueue(&self.publisher.producer, record, self.sequence as usize)? {
                self.enqueued = true;
                return Ok(());
            }
        }
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        if !self.enqueued {
            self.publisher.state.acknowledgements().withdraw(self.sequence);
        }
    }
}

/// What is outstanding of one chunk, or of any other group of records.
#[derive(Debug)]
pub struct Outstanding {
    records: AtomicUsize,
    first_offset: AtomicI64,
    last_offset: AtomicI64,
    acknowledged: Notify,
}

impl Default for Outstanding {
    fn default() -> Self {
        Outstanding {
            records: AtomicUsize::new(0),
            first_offset: AtomicI64::new(i64::MAX),
            last_offset: AtomicI64::new(-1),
            acknowledged: Notify::new(),
        }
    }
}

impl Outstanding {
    /// Offsets of the first and the last record; sensible once all are acknowledged.
    pub fn offsets(&self) -> (i64, i64) {
        (self.first_offset.load(Ordering::Acquire), self.last_offset.load(Ordering::Acquire))
    }
}

#[derive(Debug, Default)]
struct TrackedState {
    room: Notify,
    failure: Failure,
}

struct TrackedContext {
    state: Arc<TrackedState>,
}

impl ClientContext for TrackedContext {}

impl ProducerContext for TrackedContext {
    type DeliveryOpaque = Arc<Outstanding>;

    fn delivery(&self, result: &DeliveryResult<'_>, outstanding: Arc<Outstanding>) {
        match result {
            Ok(message) => {
                outstanding.first_offset.fetch_min(message.offset(), Ordering::AcqRel);
                outstanding.last_offset.fetch_max(message.offset(), Ordering::AcqRel);
            }
            Err((error, message)) => self.state.failure.report(message.topic(), error.to_string()),
        }
        if outstanding.records.fetch_sub(1, Ordering::AcqRel) == 1 {
            outstanding.acknowledged.notify_one();
        }
        self.state.room.notify_waiters();
    }
}

/// Blocks, ledger records and the birth, each followed by whoever sent it. Cheap to clone, many senders.
#[derive(Clone)]
pub struct TrackedPublisher {
    producer: Arc<ThreadedProducer<TrackedContext>>,
    state: Arc<TrackedState>,
    queue_bytes: u64,
}

impl TrackedPublisher {
    /// # Errors
    /// A property is unknown or reserved.
    pub fn new(kafka: &config::Kafka, client_id: &str, queue_bytes: u64) -> Result<TrackedPublisher, Error> {
        let config = client_config(kafka, client_id, queue_bytes, 2.0, BATCH_BYTES_MAX)?;
        let state = Arc::new(TrackedState::default());
        let producer = create(kafka, &config, TrackedContext { state: state.clone() })?;
        Ok(TrackedPublisher { producer: Arc::new(producer), state, queue_bytes })
    }

    /// Enqueues a record and counts it in `outstanding`; waits while the queue is full.
    ///
    /// # Errors
    /// As [`StreamPublisher::offer`].
    pub async fn send(&self, record: Outgoing<'_>, outstanding: &Arc<Outstanding>) -> Result<(), Error> {
        check_size(record, self.queue_bytes)?;
        outstanding.records.fetch_add(1, Ordering::AcqRel);
        loop {
            let room = self.state.room.notified();
            self.state.failure.check()?;
            if enqueue(&self.producer, record, outstanding.clone())? {
                return Ok(());
            }
            tokio::select! {
                () = room => {}
                () = tokio::time::sleep(FULL_WAIT) => {}
            }
        }
    }

    /// Returns when all of `outstanding` is acknowledged. One waiter.
    ///
    /// # Errors
    /// `Delivery`.
    pub async fn acknowledged(&self, outstanding: &Outstanding) -> Result<(), Error> {
        while outstanding.records.load(Ordering::Acquire) > 0 {
            self.state.failure.check()?;
            tokio::select! {
                () = outstanding.acknowledged.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        self.state.failure.check()
    }

    /// Sends one record and waits for it.
    ///
    /// # Errors
    /// As [`StreamPublisher::offer`].
    pub async fn send_and_wait(&self, record: Outgoing<'_>) -> Result<(), Error> {
        let outstanding = Arc::new(Outstanding::default());
        self.send(record, &outstanding).await?;
        self.acknowledged(&outstanding).await
    }

    /// Returns only when a record was refused for good.
    pub async fn failed(&self) -> Error {
        self.state.failure.wait().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kafka(property: Option<(&str, &str)>) -> config::Kafka {
        let properties = property.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        config::Kafka { brokers: "b:1".into(), properties, replication_factor: 1, record_bytes_max: 1 << 20 }
    }

    /// librdkafka gives a record up after five minutes by default, and one that it gave up would be a hole.
    #[test]
    fn no_record_times_out_however_long_kafka_is_away_and_whatever_the_user_sets() {
        let config = client_config(&kafka(None), "test", 1 << 20, 5.0, BATCH_BYTES_MAX).unwrap();
        for (name, value) in [
            ("message.timeout.ms", "0"),
            ("enable.idempotence", "true"),
            ("enable.gapless.guarantee", "true"),
            ("acks", "all"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        assert_eq!(config.get("retries").or(config.get("message.send.max.retries")), None, "as often as needed");
        // Under each of librdkafka's names for it.
        for name in ["message.timeout.ms", "delivery.timeout.ms", "retries", "message.send.max.retries"] {
            let refused = client_config(&kafka(Some((name, "1000"))), "test", 1 << 20, 5.0, BATCH_BYTES_MAX);
            assert!(matches!(refused, Err(Error::Service(service::Error::KafkaProperty { .. }))), "{name}");
        }
        // librdkafka itself agrees with the whole of it.
        let state = Arc::new(StreamState::default());
        assert!(create(&kafka(None), &config, StreamContext { state }).is_ok());
    }

    #[test]
    fn a_record_as_large_as_the_topics_take_fits_into_the_queue_by_default() {
        let value = vec![0; config::RECORD_BYTES_MOST];
        let record = Outgoing { topic: "t", partition: 0, key: None, value: &value };
        let queue_bytes = queue_bytes(&config::Producer::default());
        assert!(check_size(record, queue_bytes).is_ok());
        let error = check_size(Outgoing { key: Some(&[0]), ..record }, queue_bytes).unwrap_err();
        assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    }
}
