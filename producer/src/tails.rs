//! Reading what the lane's topics hold: the last record of each partition, the first of the transactions, the whole ledger.
//! I/O, blocking: call it from `spawn_blocking`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use changelog::{EventDecoder, LaneRecord, LedgerRecord, Position};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use service::config;

use crate::error::Error;
use crate::resume::LaneTail;

const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// Of the transactions this many last records are read: a zombie's resend may lie behind the highest position.
const LANE_RECORDS: i64 = 1_000;

/// `topic` and partition.
pub type Place = (String, i32);

/// A reader without a group.
pub struct TailReader {
    consumer: BaseConsumer,
    kafka: config::Kafka,
}

impl TailReader {
    /// # Errors
    /// A property is unknown or reserved.
    pub fn new(kafka: &config::Kafka, client_id: &str) -> Result<TailReader, Error> {
        let ours = [
            ("group.id", client_id.to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            // A few records are wanted: the defaults would fetch 64 MB of each partition ahead.
            ("queued.max.messages.kbytes", "4096".to_owned()),
            ("fetch.message.max.bytes", (1 << 20).to_string()),
            ("fetch.wait.max.ms", "20".to_owned()),
        ];
        let config = service::kafka::client_config(kafka, client_id, &ours)?;
        Ok(TailReader { consumer: service::kafka::create(kafka, &config)?, kafka: kafka.clone() })
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        service::kafka::failed(&self.kafka, error).into()
    }

    /// Offsets of the first record and after the last.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        self.consumer.fetch_watermarks(topic, partition, ASKED_WITHIN).map_err(|error| self.failed(error))
    }

    /// The offset that each partition begins or ends with. One request for all that a broker leads: thousands of tables would
    /// wait for thousands of round trips.
    fn offsets(&self, places: &[Place], which: Offset) -> Result<HashMap<Place, i64>, Error> {
        if places.is_empty() {
            return Ok(HashMap::new());
        }
        let mut asked = TopicPartitionList::with_capacity(places.len());
        for (topic, partition) in places {
            asked.add_partition_offset(topic, *partition, which).map_err(|error| self.failed(error))?;
        }
        // The protocol names both ends by the times that librdkafka's constants for them are.
        let found = self.consumer.offsets_for_times(asked, ASKED_WITHIN).map_err(|error| self.failed(error))?;
        let offset = |element: TopicPartitionListElem<'_>| {
            element.error().map_err(|error| self.failed(error))?;
            let place = (element.topic().to_owned(), element.partition());
            match element.offset() {
                Offset::Offset(offset) => Ok((place, offset)),
                other => Err(self.failed(format!("{}/{} has {other:?} for an offset", place.0, place.1))),
            }
        };
        found.elements().into_iter().map(offset).collect()
    }

    /// The position of the last event of each partition; none for an empty one.
    ///
    /// # Errors
    /// Kafka does not answer, a record is not one of ours, or a partition has lost its first records.
    pub fn events(&self, places: &[Place]) -> Result<HashMap<Place, Position>, Error> {
        let lows = self.offsets(places, Offset::Beginning)?;
        if let Some((place, low)) = lows.iter().find(|(_, low)| **low > 0) {
            return Err(lost(&place.0, *low));
        }
        let highs = self.offsets(places, Offset::End)?.into_iter().filter(|(_, high)| *high > 0);
        let from: Vec<_> = highs.map(|(place, high)| (place, high - 1, high)).collect();
        let mut tails = HashMap::new();
        self.read(&from, |place, value| {
            let header = EventDecoder::head(value)?.header;
            tails.insert(place.clone(), header.position);
            Ok(())
        })?;
        Ok(tails)
    }

    /// Birth, and the highest manifest or marker.
    ///
    /// # Errors
    /// As [`events`](Self::events).
    pub fn lane(&self, topic: &str) -> Result<LaneTail, Error> {
        let (low, high) = self.watermarks(topic, 0)?;
        if low > 0 {
            return Err(lost(topic, low));
        }
        let mut tail = LaneTail::default();
        if high == 0 {
            return Ok(tail);
        }
        let place = (topic.to_owned(), 0);
        self.read(&[(place.clone(), 0, 1)], |_, value| {
            match LaneRecord::decode(value)? {
                LaneRecord::Birth(birth) => tail.birth = Some(birth),
                LaneRecord::Manifest(_) | LaneRecord::Marker(_) => tail.headless = true,
                LaneRecord::Sequences(_) | LaneRecord::Schema(_) => tail.headless = true,
            }
            Ok(())
        })?;
        self.read(&[(place, (high - LANE_RECORDS).max(0), high)], |_, value| {
            tail.take(LaneRecord::decode(value)?);
            Ok(())
        })?;
        Ok(tail)
    }

    /// Every record of the ledger in order, and the offset after the last.
    ///
    /// # Errors
    /// As [`events`](Self::events).
    pub fn ledger(&self, topic: &str) -> Result<(Vec<LedgerRecord>, i64), Error> {
        let (low, high) = self.watermarks(topic, 0)?;
        let mut records = Vec::new();
        if high > low {
            self.read(&[((topic.to_owned(), 0), low, high)], |_, value| {
                records.push(LedgerRecord::decode(value)?);
                Ok(())
            })?;
        }
        Ok((records, high))
    }

    /// Calls `take` for each record from an offset (inclusive) to another (exclusive). The last offset may hold no record
    /// (compaction); then the partition's end is awaited by its position.
    fn read(
        &self,
        from: &[(Place, i64, i64)],
        mut take: impl FnMut(&Place, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut open: HashMap<&Place, i64> = from.iter().map(|(place, _, high)| (place, *high)).collect();
        let mut assignment = TopicPartitionList::new();
        for ((topic, partition), first, _) in from {
            assignment
                .add_partition_offset(topic, *partition, Offset::Offset(*first))
                .map_err(|error| self.failed(error))?;
        }
        self.consumer.assign(&assignment).map_err(|error| self.failed(error))?;
        let mut progressed = Instant::now();
        while !open.is_empty() {
            let Some(message) = self.consumer.poll(Duration::from_millis(100)) else {
                if progressed.elapsed() > ASKED_WITHIN {
                    return Err(self.failed("the last records of its topics could not be read in time"));
                }
                self.close_ended(&mut open);
                continue;
            };
            progressed = Instant::now();
            // An error here is a broker that is away for a moment; the client goes on by itself.
            let Ok(message) = message else { continue };
            let place = (message.topic().to_owned(), message.partition());
            let Some((known, high)) = open.get_key_value(&place).map(|(known, high)| (*known, *high)) else { continue };
            if let Some(value) = message.payload().filter(|_| message.offset() < high) {
                take(known, value)?;
            }
            if message.offset() + 1 >= high {
                open.remove(&place);
            }
        }
        self.consumer.unassign().map_err(|error| self.failed(error))
    }

    fn close_ended(&self, open: &mut HashMap<&Place, i64>) {
        let Ok(positions) = self.consumer.position() else { return };
        open.retain(|(topic, partition), high| {
            let at = positions.find_partition(topic, *partition).map(|element| element.offset());
            !matches!(at, Some(Offset::Offset(at)) if at >= *high)
        });
    }
}

fn lost(topic: &str, low: i64) -> Error {
    Error::TopicLost { topic: topic.to_owned(), what: format!("its first record is at offset {low}") }
}
