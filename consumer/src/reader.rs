//! A client of Kafka's topics with a budget of bytes, its partitions assigned by hand and polled one by one. I/O.
//!
//! No consumer group: progress is in the target. librdkafka's defaults hold 64 MB per partition; here the budget is divided
//! among the partitions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::Topics;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use service::config;

use crate::Error;

const ASKED_WITHIN: Duration = Duration::from_secs(10);

pub type Queue = PartitionQueue<DefaultConsumerContext>;

fn kafka(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
    move |error| Error::Kafka { what: what.into(), message: error.to_string() }
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
