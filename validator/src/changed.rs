//! Reads a table's change topic for the keys that changed since a comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use changelog::{Joiner, Position};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::Error;
use crate::canonical::Layout;
use crate::images::{self, Decoders};
use crate::tail::{self, Tail};
use crate::window::Change;

/// More keys than that are no less work than the whole table.
const KEYS_MAX: usize = 500_000;
/// Changes decoded at once.
const BATCH: usize = 5_000;

/// So long nothing may come of what lies in the topic.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// What changed in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These keys, and from where on to read the next time.
    Keys { keys: BTreeSet<Vec<String>>, offsets: BTreeMap<i32, i64> },
    /// All of it must be compared.
    All(&'static str),
}

/// The keys of all changes from these offsets to the topic's ends. The caller has made sure that what it asks for is there.
///
/// # Errors
/// `Kafka`, `Topic`, `Event`, `Registry`.
pub async fn since(
    tail: &Tail,
    decoders: &mut Decoders,
    layout: &Layout,
    offsets: &BTreeMap<i32, i64>,
) -> Result<Changed, Error> {
    let topic = tail.topics().table(&layout.table);
    let ends = tail.ends(&topic).await?;
    let mut read = BTreeMap::new();
    for (partition, end) in &ends {
        let from = offsets.get(partition).copied().unwrap_or(0);
        if from > *end {
            return Ok(Changed::All("its change topic was made anew"));
        }
        read.insert(*partition, (from, *end));
    }
    if offsets.keys().any(|partition| !read.contains_key(partition)) {
        return Ok(Changed::All("its change topic was made anew"));
    }
    let mut keys = BTreeSet::new();
    let next: BTreeMap<i32, i64> = read.iter().map(|(partition, (_, end))| (*partition, *end)).collect();
    read.retain(|_, (from, end)| from < end);
    if read.is_empty() {
        return Ok(Changed::Keys { keys, offsets: next });
    }
    let mut reading = self::read(tail, topic, read)?;
    let table = layout.table.to_string();
    while let Some(batch) = reading.batches.recv().await {
        decoders.prepare(&table, &batch).await?;
        let Some(found) = images::keys(decoders, &batch, layout)? else {
            return Ok(Changed::All("it was truncated, or an event does not have its key"));
        };
        keys.extend(found);
        if keys.len() > KEYS_MAX {
            return Ok(Changed::All("too many rows have changed"));
        }
    }
    // The pieces of an event that is not whole yet are read again with the rest of it.
    let unfinished = reading.ended().await?;
    let offset = |(partition, end)| (partition, unfinished.get(&partition).copied().unwrap_or(end));
    Ok(Changed::Keys { keys, offsets: next.into_iter().map(offset).collect() })
}

/// A reader of ranges of a topic's partitions, on a thread of its own that ends with the last record or with this.
pub struct Reading {
    /// Every change, in its partition's order.
    pub batches: mpsc::Receiver<Vec<Change>>,
    task: tokio::task::JoinHandle<Result<BTreeMap<i32, i64>, Error>>,
}

impl Reading {
    /// When all was read: by partition, the offset of the first piece of an event that is not whole at the end.
    ///
    /// # Errors
    /// `Topic`.
    pub async fn ended(self) -> Result<BTreeMap<i32, i64>, Error> {
        drop(self.batches);
        self.task.await.map_err(|_| Error::TailEnded)?
    }
}

/// Reads from the first offset of each partition to the second.
///
/// # Errors
/// `Kafka`.
pub fn read(tail: &Tail, topic: String, ranges: BTreeMap<i32, (i64, i64)>) -> Result<Reading, Error> {
    let consumer = tail.another()?;
    let (sender, batches) = mpsc::channel(2);
    let task = tokio::task::spawn_blocking(move || read_all(&consumer, &topic, &ranges, &sender));
    Ok(Reading { batches, task })
}

/// A partition that is not read to its end.
struct Open {
    end: i64,
    last: Option<Position>,
    joiner: Joiner,
}

/// Sends every change; offsets of the first piece of an event that is not whole at the end.
fn read_all(
    consumer: &BaseConsumer,
    topic: &str,
    ranges: &BTreeMap<i32, (i64, i64)>,
    sender: &mpsc::Sender<Vec<Change>>,
) -> Result<BTreeMap<i32, i64>, Error> {
    let failed = |message: String| Error::Topic { topic: topic.to_owned(), message };
    let mut assignment = TopicPartitionList::new();
    for (partition, (from, _)) in ranges {
        let added = assignment.add_partition_offset(topic, *partition, Offset::Offset(*from));
        added.map_err(|error| failed(error.to_string()))?;
    }
    consumer.assign(&assignment).map_err(|error| failed(error.to_string()))?;
    // An event of which only later pieces are here was sent twice: the first time it lay before.
    let begun = |(partition, (_, end)): (&i32, &(i64, i64))| {
        (*partition, Open { end: *end, last: None, joiner: Joiner::midway() })
    };
    let mut open: BTreeMap<i32, Open> = ranges.iter().map(begun).collect();
    let (mut batch, mut unfinished) = (Vec::new(), BTreeMap::new());
    let mut heard = Instant::now();
    while !open.is_empty() && !sender.is_closed() {
        let message = match consumer.poll(tail::POLL) {
            Some(Ok(message)) => message,
            Some(Err(error)) if !tail::retried(&error) => return Err(failed(error.to_string())),
            Some(Err(_)) | None if heard.elapsed() < SILENT_MAX => continue,
            Some(Err(_)) | None => return Err(failed(format!("no record within {} s", SILENT_MAX.as_secs()))),
        };
        heard = Instant::now();
        let (partition, offset) = (message.partition(), message.offset());
        let Some(held) = open.get_mut(&partition) else { continue };
        if offset < held.end
            && let Some(payload) = message.payload()
        {
            let broken = |error: changelog::Error| failed(format!("offset {offset}: {error}"));
            let change = tail::change(payload).map_err(broken)?;
            if let Some(change) = change.filter(|change| held.last.is_none_or(|last| change.position > last)) {
                held.last = Some(change.position);
                match change.join(&mut held.joiner).map_err(broken)? {
                    Some(change) => {
                        unfinished.remove(&partition);
                        batch.push(change);
                    }
                    None => {
                        unfinished.entry(partition).or_insert(offset);
                    }
                }
            }
        }
        if offset + 1 >= held.end {
            open.remove(&partition);
        }
        if batch.len() >= BATCH && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
            return Ok(unfinished);
        }
    }
    let _ = sender.blocking_send(batch);
    Ok(unfinished)
}
