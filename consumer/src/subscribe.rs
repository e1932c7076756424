//! The reading side: a thread of its own per use, partitions assigned by hand, exactly those polled that are needed next.
//!
//! No consumer group: progress is in the target. Where a partition begins is a hint that is checked: the record before
//! the hinted offset must have the hinted position, else the topic is not the one that was read before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use changelog::{Joiner, LaneRecord, Position, Topics};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset};
use service::config;
use tokio::sync::mpsc;

use crate::error::contract;
use crate::event::{Arena, Item, Parcel, PartitionIndex, RawEvent, Stop};
use crate::merge::{Applied, Merge, Merged, PartitionName, Place};
use crate::reader::{Queue, Reader, poll};
use crate::target::now_micros;
use crate::{Error, observe};

/// A parcel is sent at the latest at this size.
const PARCEL_BYTES: usize = 512 << 10;
const PARCEL_ITEMS: usize = 2_000;
/// A parcel of megabytes looks so often whether there is room for it.
const LARGE_WAIT: Duration = Duration::from_millis(2);
/// How far `-transactions` is read ahead when a new partition is met: records, and the partitions that they list.
const AHEAD_MAX: usize = 10_000;
/// How long a poll waits for a record; it is woken at once by one, and looks at the stop sign in between.
const POLL: Duration = Duration::from_millis(200);
const ASKED_WITHIN: Duration = Duration::from_secs(10);

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
    joiner: Joiner,
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
            joiner: Joiner::default(),
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
            LaneRecord::Birth(_) | LaneRecord::Marker(_) | LaneRecord::Sequences(_) | LaneRecord::Schema(_) => 1,
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
                let Some(event) = event.join(&mut self.joiner).map_err(contract("the lane's events"))? else {
                    return Ok(());
                };
                self.parcel_bytes += event.size();
                Item::Event(event)
            }
            Merged::End(manifest) => {
                self.joiner.whole().map_err(contract("the lane's events"))?;
                Item::End { manifest, offset }
            }
            Merged::Marker(marker) => Item::Marker { marker, received_at_micros, offset },
            Merged::Sequences(read) => Item::Sequences { read, offset },
            Merged::Schema(change) => Item::Schema { change: Box::new(change), offset },
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
        // The channel is bounded by parcels. One that holds a row of megabytes waits until it is the only one.
        let waits = |thread: &LaneThread| {
            let sender = &thread.sender;
            !sender.is_closed() && sender.capacity() < sender.max_capacity() && !thread.stop.load(Ordering::Relaxed)
        };
        while self.parcel_bytes > 2 * PARCEL_BYTES && waits(self) {
            std::thread::sleep(LARGE_WAIT);
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
