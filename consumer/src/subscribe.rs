//! The reading side: a thread of its own per use, partitions assigned by hand, exactly those polled that are needed next.
//!
//! No consumer group: progress is in the target. Where a partition begins is a hint that is checked: the record before
//! the hinted offset must have the hinted position, else the topic is not the one that was read before. librdkafka's
//! defaults hold 64 MB per partition; here a byte budget is divided among the partitions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use changelog::{LaneRecord, Position, Topics};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use service::config;
use tokio::sync::mpsc;

use crate::error::contract;
use crate::event::{Arena, Item, Parcel, PartitionIndex, RawEvent, Stop};
use crate::merge::{Applied, Merge, Merged, PartitionName, Place};
use crate::target::now_micros;
use crate::{Error, observe};

/// A parcel is sent at the latest at this size.
const PARCEL_BYTES: usize = 512 << 10;
const PARCEL_ITEMS: usize = 2_000;
/// How far `-transactions` is read ahead when a new partition is met: records, and the partitions that they list.
const AHEAD_MAX: usize = 10_000;
/// How long a poll waits for a record; it is woken at once by one, and looks at the stop sign in between.
const POLL: Duration = Duration::from_millis(200);
const ASKED_WITHIN: Duration = Duration::from_secs(10);

pub type Queue = PartitionQueue<DefaultConsumerContext>;

fn kafka(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
    move |error| Error::Kafka { what: what.into(), message: error.to_string() }
}

/// Where a partition was left: the next offset, and the position of the record before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    pub next_offset: i64,
    pub position: Position,
}

impl Hint {
    /// Of the record that is checked.
    fn offset(self) -> Offset {
        Offset::Offset(self.next_offset - 1)
    }
}

/// A client with its budget; partitions are added one by one.
pub struct Reader {
    consumer: Arc<BaseConsumer>,
    polled_at: Instant,
}

impl Reader {
    /// `partitions` is how many will share the budget.
    ///
    /// # Errors
    /// `Service(Kafka)`.
    pub fn new(kafka: &config::Kafka, client: &str, bytes_max: u64, partitions: usize) -> Result<Reader, Error> {
        let partitions = partitions.max(1) as u64;
        // What librdkafka holds may exceed the limit by one answer of the broker, so an answer is a part of the budget too.
        let queued_kilobytes = (bytes_max / 2 / partitions / 1024).clamp(16, 65_536);
        let answer_bytes = (bytes_max / 4).clamp(1 << 20, 16 << 20);
        // A partition with less than its share queued is given this much more: of thousands, each a little. A record or a batch
        // that is larger comes nevertheless, one to an answer.
        let partition_bytes = (bytes_max / partitions).clamp(16 << 10, (answer_bytes / 2).clamp(512 << 10, 2 << 20));
        // Besides its bytes each queued record costs some hundred bytes of bookkeeping.
        let queued_records = (60_000 / partitions).clamp(500, 10_000);
        let ours = [
            // Manual assignment needs the name of a group, and nothing else of it.
            ("group.id", format!("{client}-none")),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
            ("check.crcs", "true".to_owned()),
            ("queued.max.messages.kbytes", queued_kilobytes.to_string()),
            ("queued.min.messages", queued_records.to_string()),
            ("fetch.wait.max.ms", "50".to_owned()),
            ("fetch.error.backoff.ms", "10".to_owned()),
            ("fetch.queue.backoff.ms", "5".to_owned()),
            ("fetch.message.max.bytes", partition_bytes.to_string()),
            ("message.max.bytes", answer_bytes.to_string()),
            ("fetch.max.bytes", answer_bytes.to_string()),
            ("receive.message.max.bytes", (answer_bytes + (128 << 20)).to_string()),
            ("reconnect.backoff.ms", "50".to_owned()),
            ("reconnect.backoff.max.ms", "1000".to_owned()),
            ("topic.metadata.refresh.interval.ms", "30000".to_owned()),
        ];
        let config = service::kafka::client_config(kafka, client, &ours)?;
        let consumer: BaseConsumer = service::kafka::create(kafka, &config)?;
        Ok(Reader { consumer: Arc::new(consumer), polled_at: Instant::now() })
    }

    /// Number of partitions of a topic; 0 if there is no such topic.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn partitions(&self, topic: &str) -> Result<i32, Error> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ASKED_WITHIN);
        let metadata = metadata.map_err(kafka(format!("asking for topic {topic}")))?;
        Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len() as i32))
    }

    /// All topics that the lane owns, with their numbers of partitions.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn topics_owned(&self, topics: &Topics) -> Result<HashMap<String, i32>, Error> {
        let metadata = self.consumer.fetch_metadata(None, ASKED_WITHIN).map_err(kafka("asking for the topics"))?;
        let owned = metadata.topics().iter().filter(|topic| topics.owns(topic.name()));
        Ok(owned.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
    }

    /// Offset behind the last record.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn end(&self, topic: &str, partition: i32) -> Result<i64, Error> {
        let ends = self.consumer.fetch_watermarks(topic, partition, ASKED_WITHIN);
        ends.map(|ends| ends.1).map_err(kafka(format!("asking for the end of {topic}/{partition}")))
    }

    /// Begins to fetch a partition and gives its queue.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn assign(&self, topic: &str, partition: i32, from: Offset) -> Result<Queue, Error> {
        let mut queues = self.assign_all(&[(topic, partition, from)])?;
        queues.pop().ok_or_else(|| Error::Kafka { what: format!("assigning {topic}"), message: "no queue".into() })
    }

    /// Begins to fetch several partitions at once and gives their queues in the same order.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn assign_all(&self, partitions: &[(&str, i32, Offset)]) -> Result<Vec<Queue>, Error> {
        let mut list = TopicPartitionList::new();
        let mut queues = Vec::new();
        for (topic, partition, from) in partitions {
            let what = format!("assigning partition {partition} of {topic}");
            list.add_partition_offset(topic, *partition, *from).map_err(kafka(what))?;
            queues.push(self.consumer.split_partition_queue(topic, *partition));
        }
        self.consumer.incremental_assign(&list).map_err(kafka("assigning partitions"))?;
        let again = partitions.iter().zip(queues).map(|((topic, partition, _), queue)| {
            // Taken again: assigning may have led the queue back to the consumer's own.
            let queue = self.consumer.split_partition_queue(topic, *partition).or(queue);
            let what = format!("assigning partition {partition} of {topic}");
            queue.ok_or_else(|| Error::Kafka { what, message: "no queue".into() })
        });
        again.collect()
    }

    /// Ends fetching a partition.
    ///
    /// # Errors
    /// `Kafka`.
    pub fn unassign(&self, topic: &str, partition: i32) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        self.consumer.incremental_unassign(&list).map_err(kafka(format!("leaving partition {partition} of {topic}")))
    }

    /// Serves the client's own events now and then; a message there would be one that escaped its queue.
    pub fn serve(&mut self) -> Result<(), Error> {
        if self.polled_at.elapsed() < Duration::from_millis(500) {
            return Ok(());
        }
        self.polled_at = Instant::now();
        match self.consumer.poll(Duration::ZERO) {
            Some(Ok(message)) => Err(Error::Kafka {
                what: format!("partition {} of {}", message.partition(), message.topic()),
                message: "a record came outside of its queue".into(),
            }),
            Some(Err(error)) => judge(error, "", -1).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// An error that will pass is none (librdkafka goes on by itself); one that says that the log is another is named.
fn judge(error: KafkaError, topic: &str, partition: i32) -> Result<(), Error> {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    let replaced = |what: &str| Error::TopicReplaced { topic: topic.to_owned(), partition, what: what.to_owned() };
    match code {
        Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
            Err(replaced("it has no record at the expected offset"))
        }
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) if partition >= 0 => {
            Err(replaced("it is gone"))
        }
        Some(
            Code::TopicAuthorizationFailed | Code::SaslAuthenticationFailed | Code::Authentication | Code::BadMessage,
        ) => Err(Error::Kafka { what: format!("partition {partition} of {topic}"), message: error.to_string() }),
        _ => {
            tracing::debug!(%error, topic, partition, "librdkafka");
            Ok(())
        }
    }
}

/// Polls one partition's queue.
///
/// # Errors
/// `TopicReplaced`, `Kafka`.
pub fn poll<'q>(
    queue: &'q Queue,
    topic: &str,
    partition: i32,
    wait: Duration,
) -> Result<Option<BorrowedMessage<'q>>, Error> {
    match queue.poll(wait) {
        Some(Ok(message)) => Ok(Some(message)),
        Some(Err(error)) => judge(error, topic, partition).map(|()| None),
        None => Ok(None),
    }
}

/// What the reading thread of a lane is told.
pub struct LaneParameters {
    pub kafka: config::Kafka,
    pub topics: Topics,
    pub client: String,
    pub bytes_max: u64,
    pub system_identifier: String,
    pub timeline: i32,
    pub applied: Applied,
    pub hints: HashMap<(String, i32), Hint>,
}

/// Starts the reading thread. The channel's last word is its error, if it ended with one.
pub fn start(parameters: LaneParameters) -> (mpsc::Receiver<Result<Parcel, Error>>, Stop) {
    let (sender, receiver) = mpsc::channel(8);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    std::thread::spawn(move || {
        // What was read before an error goes first.
        let run = |mut thread: LaneThread| thread.run().or_else(|error| thread.send().and(Err(error)));
        let result = LaneThread::new(parameters, sender.clone(), seen).and_then(run);
        if let Err(error) = result {
            // Nobody listens any more if the lane was given up.
            let _ = sender.blocking_send(Err(error));
        }
    });
    (receiver, Stop(stop))
}

struct Source {
    name: PartitionName,
    queue: Queue,
    index: PartitionIndex,
    /// The record before the first one wanted: checked and dropped.
    expected: Option<Hint>,
}

/// A record of `-transactions`, in its turn or read before it.
struct ControlRecord {
    record: LaneRecord,
    offset: i64,
    received_at_micros: i64,
}

struct LaneThread {
    reader: Reader,
    parameters: LaneParameters,
    merge: Merge<RawEvent>,
    sender: mpsc::Sender<Result<Parcel, Error>>,
    stop: Arc<AtomicBool>,
    /// `-transactions`.
    control: Option<Source>,
    /// Read before their turn, to know which partitions will be wanted.
    ahead: VecDeque<ControlRecord>,
    /// By the merge's place.
    sources: Vec<Option<Source>>,
    /// How many there are, the control partition among them.
    opened: usize,
    partition_counts: HashMap<String, i32>,
    arena: Arena,
    parcel: Parcel,
    parcel_bytes: usize,
    /// Offset and time of arrival of the control records that are merged now.
    control_offset: i64,
    received_at_micros: i64,
}

impl LaneThread {
    fn new(
        parameters: LaneParameters,
        sender: mpsc::Sender<Result<Parcel, Error>>,
        stop: Arc<AtomicBool>,
    ) -> Result<LaneThread, Error> {
        let probe = Reader::new(&parameters.kafka, &parameters.client, 1 << 20, 1)?;
        let partition_counts = probe.topics_owned(&parameters.topics)?;
        drop(probe);
        let partitions = partition_counts.values().sum::<i32>();
        let reader = Reader::new(&parameters.kafka, &parameters.client, parameters.bytes_max, partitions as usize)?;
        // A client asks once a second for topics that it has not heard of: the first events of many tables would wait for it.
        reader.topics_owned(&parameters.topics)?;
        let merge = Merge::new(&parameters.system_identifier, parameters.timeline, parameters.applied);
        Ok(LaneThread {
            reader,
            merge,
            sender,
            stop,
            control: None,
            ahead: VecDeque::new(),
            sources: Vec::new(),
            opened: 0,
            partition_counts,
            parameters,
            arena: Arena::default(),
            parcel: Parcel::new(),
            parcel_bytes: 0,
            control_offset: 0,
            received_at_micros: 0,
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        let control = PartitionName { topic: self.parameters.topics.transactions(), partition: 0 };
        self.control = self.open(vec![control])?.pop();
        self.open_hinted()?;
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(merged) = self.merge.advance() {
                self.put(merged)?;
                continue;
            }
            let wanted = self.merge.needs();
            if let Some(place) = wanted {
                self.prepare(place)?;
            } else {
                self.reader.serve()?;
            }
            if !self.take(wanted, Duration::ZERO)? {
                // Nothing is there yet: what is ready must not wait for it.
                self.send()?;
                self.reader.serve()?;
                self.take(wanted, POLL)?;
            }
        }
        Ok(())
    }

    /// Opens at once every partition that was read before: one after the other, as manifests name them, would cost a
    /// restart the round trips of each. One whose topic is gone is not missed before a manifest names it.
    fn open_hinted(&mut self) -> Result<(), Error> {
        let control = self.parameters.topics.transactions();
        let mut hinted = Vec::new();
        for ((topic, partition), hint) in &self.parameters.hints {
            let present = self.partition_counts.get(topic).is_some_and(|count| partition < count);
            if present && *topic != control {
                hinted.push((PartitionName { topic: topic.clone(), partition: *partition }, Some(*hint)));
            }
        }
        let sources = self.assign(hinted)?;
        sources.into_iter().for_each(|source| self.put_source(source));
        Ok(())
    }

    fn put_source(&mut self, source: Source) {
        let place = self.merge.place(&source.name.topic, source.name.partition);
        if self.sources.len() <= place {
            self.sources.resize_with(place + 1, || None);
        }
        self.sources[place] = Some(source);
    }

    /// Opens the place's partition if this is its first event, and with it what else this and the next manifests list: each by
    /// itself would cost the round trips of a new partition.
    fn prepare(&mut self, place: Place) -> Result<(), Error> {
        let opened = |sources: &[Option<Source>], place: Place| sources.get(place).is_some_and(Option::is_some);
        if opened(&self.sources, place) {
            return Ok(());
        }
        self.look_ahead()?;
        let mut wanted: Vec<Place> = self.merge.listed().filter(|place| !opened(&self.sources, *place)).collect();
        let mut seen: HashSet<Place> = wanted.iter().copied().collect();
        for ControlRecord { record, .. } in &self.ahead {
            let LaneRecord::Manifest(manifest) = record else { continue };
            for count in &manifest.partitions {
                // One that is not there, or not yet, is for its own turn.
                let present = self.partition_counts.get(&count.topic).is_some_and(|all| count.partition < *all);
                let next = if present { self.merge.place(&count.topic, count.partition) } else { continue };
                if !opened(&self.sources, next) && seen.insert(next) {
                    wanted.push(next);
                }
            }
        }
        let names = wanted.iter().map(|place| self.merge.name(*place).clone()).collect();
        let sources = self.open(names)?;
        sources.into_iter().for_each(|source| self.put_source(source));
        Ok(())
    }

    /// Reads what is there already of `-transactions`.
    fn look_ahead(&mut self) -> Result<(), Error> {
        let weight = |ahead: &ControlRecord| match &ahead.record {
            LaneRecord::Manifest(manifest) => 1 + manifest.partitions.len(),
            LaneRecord::Birth(_) | LaneRecord::Marker(_) | LaneRecord::Sequences(_) => 1,
        };
        let mut held: usize = self.ahead.iter().map(weight).sum();
        while held < AHEAD_MAX {
            let Some(next) = self.control_record(Duration::ZERO)? else { break };
            held += weight(&next);
            self.ahead.push_back(next);
        }
        Ok(())
    }

    /// The next record of `-transactions`; `None` if none came.
    fn control_record(&mut self, wait: Duration) -> Result<Option<ControlRecord>, Error> {
        let Some(Source { name, queue, expected, .. }) = self.control.as_mut() else { return Ok(None) };
        while let Some(message) = poll(queue, &name.topic, name.partition, wait)? {
            let offset = message.offset();
            let payload = payload(&message, name)?;
            let record = LaneRecord::decode(payload).map_err(|error| contract(described(name, offset))(error))?;
            match expected.take() {
                Some(hint) => check(name, hint, offset, record.position())?,
                None => return Ok(Some(ControlRecord { record, offset, received_at_micros: now_micros() })),
            }
        }
        Ok(None)
    }

    /// Takes one record of a place's partition, or else of the control partition. False if none came.
    fn take(&mut self, place: Option<Place>, wait: Duration) -> Result<bool, Error> {
        let Some(place) = place else { return self.take_control(wait) };
        let Some(Source { name, queue, index, expected }) = self.sources[place].as_mut() else { return Ok(false) };
        let Some(message) = poll(queue, &name.topic, name.partition, wait)? else { return Ok(false) };
        let offset = message.offset();
        let payload = payload(&message, name)?;
        let event = RawEvent::read(&mut self.arena, message.key(), payload, *index, offset);
        let event = event.map_err(|error| contract(described(name, offset))(error))?;
        if let Some(hint) = expected.take() {
            return check(name, hint, offset, Some(event.header.position)).map(|()| true);
        }
        if !self.merge.event(event.header, event)? {
            observe::dropped();
        }
        Ok(true)
    }

    fn take_control(&mut self, wait: Duration) -> Result<bool, Error> {
        let next = match self.ahead.pop_front() {
            Some(next) => Some(next),
            None => self.control_record(wait)?,
        };
        let Some(ControlRecord { record, offset, received_at_micros }) = next else { return Ok(false) };
        (self.control_offset, self.received_at_micros) = (offset, received_at_micros);
        if !self.merge.control(record)? {
            observe::dropped();
        }
        Ok(true)
    }

    fn put(&mut self, merged: Merged<RawEvent>) -> Result<(), Error> {
        let (offset, received_at_micros) = (self.control_offset, self.received_at_micros);
        let item = match merged {
            Merged::Event(_, event) => {
                self.parcel_bytes += event.size();
                Item::Event(event)
            }
            Merged::End(manifest) => Item::End { manifest, offset },
            Merged::Marker(marker) => Item::Marker { marker, received_at_micros, offset },
            Merged::Sequences(read) => Item::Sequences { read, offset },
        };
        self.parcel.push(item);
        if self.parcel_bytes >= PARCEL_BYTES || self.parcel.len() >= PARCEL_ITEMS {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Error> {
        if self.parcel.is_empty() {
            return Ok(());
        }
        self.parcel_bytes = 0;
        let parcel = std::mem::take(&mut self.parcel);
        if self.sender.blocking_send(Ok(parcel)).is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Begins partitions where they were left, or at their beginning.
    fn open(&mut self, names: Vec<PartitionName>) -> Result<Vec<Source>, Error> {
        let mut wanted = Vec::with_capacity(names.len());
        for name in names {
            let count = match self.partition_counts.get(&name.topic) {
                Some(count) => *count,
                None => {
                    let count = self.reader.partitions(&name.topic)?;
                    self.partition_counts.insert(name.topic.clone(), count);
                    count
                }
            };
            if count == 0 {
                let what = "there is no such topic".to_owned();
                return Err(Error::TopicReplaced { topic: name.topic, partition: name.partition, what });
            }
            if name.partition >= count {
                let PartitionName { topic, partition } = name;
                return Err(Error::PartitionsChanged { topic, expected: count, partition });
            }
            let hint = self.parameters.hints.get(&(name.topic.clone(), name.partition)).copied();
            wanted.push((name, hint));
        }
        self.assign(wanted)
    }

    fn assign(&mut self, wanted: Vec<(PartitionName, Option<Hint>)>) -> Result<Vec<Source>, Error> {
        let from = |hint: &Option<Hint>| hint.map_or(Offset::Beginning, Hint::offset);
        let places: Vec<(&str, i32, Offset)> =
            wanted.iter().map(|(name, hint)| (name.topic.as_str(), name.partition, from(hint))).collect();
        let queues = self.reader.assign_all(&places)?;
        let wanted = wanted.into_iter().zip(queues);
        wanted.map(|((name, hint), queue)| self.admit(name, queue, hint)).collect()
    }

    /// Gives an opened partition its index.
    fn admit(&mut self, name: PartitionName, queue: Queue, expected: Option<Hint>) -> Result<Source, Error> {
        let index = PartitionIndex::try_from(self.opened).map_err(|_| Error::Kafka {
            what: format!("partition {} of {}", name.partition, name.topic),
            message: "more partitions than one lane can have (65,535)".into(),
        })?;
        self.parcel.push(Item::Partition { index, topic: Arc::from(name.topic.as_str()), partition: name.partition });
        self.opened += 1;
        Ok(Source { name, queue, index, expected })
    }
}

fn payload<'m>(message: &'m BorrowedMessage<'_>, name: &PartitionName) -> Result<&'m [u8], Error> {
    message.payload().ok_or_else(|| Error::EmptyRecord {
        topic: name.topic.clone(),
        partition: name.partition,
        offset: message.offset(),
    })
}

fn described(name: &PartitionName, offset: i64) -> String {
    format!("partition {} of topic {}, offset {offset}", name.partition, name.topic)
}

/// Whether the record before the hinted offset is the one that was applied.
fn check(name: &PartitionName, hint: Hint, offset: i64, position: Option<Position>) -> Result<(), Error> {
    if offset == hint.next_offset - 1 && position == Some(hint.position) {
        return Ok(());
    }
    let found = position.map_or_else(|| "none".to_owned(), |position| position.to_string());
    let what = format!(
        "the record at offset {} was of {}, and the first one there now is at offset {offset} and of {found}",
        hint.next_offset - 1,
        hint.position
    );
    Err(Error::TopicReplaced { topic: name.topic.clone(), partition: name.partition, what })
}

/// The first record of `-transactions`; `None` while the producer has not written it. Blocks up to some seconds.
///
/// # Errors
/// `Kafka`, `TopicReplaced` if the first record is no birth.
pub fn birth(kafka: &config::Kafka, topics: &Topics, client: &str) -> Result<Option<changelog::Birth>, Error> {
    let topic = topics.transactions();
    let reader = Reader::new(kafka, client, 1 << 20, 1)?;
    if reader.partitions(&topic)? == 0 || reader.end(&topic, 0)? == 0 {
        return Ok(None);
    }
    let queue = reader.assign(&topic, 0, Offset::Beginning)?;
    let began = Instant::now();
    while began.elapsed() < ASKED_WITHIN {
        if let Some(message) = poll(&queue, &topic, 0, POLL)? {
            let payload = message.payload().unwrap_or_default();
            let record =
                LaneRecord::decode(payload).map_err(|error| contract(format!("first record of {topic}"))(error))?;
            let LaneRecord::Birth(birth) = record else {
                let what = "its first record is not the lane's birth".to_owned();
                return Err(Error::TopicReplaced { topic, partition: 0, what });
            };
            return Ok(Some(birth));
        }
    }
    Err(Error::Kafka { what: format!("reading the first record of {topic}"), message: "no answer".into() })
}
