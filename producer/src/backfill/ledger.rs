//! The ledger: what was planned, what is finished, what was asked for. The state is a pure fold of the records.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use changelog::block::ChunkId;
use changelog::ledger::{BackfillCompleted, Chunk, Plan, ResyncRefused, ResyncRequested, TableCopied};
use changelog::{LedgerRecord, TableName};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::error::Error;
use crate::lane::Lane;
use crate::publish::{Outgoing, Outstanding, TrackedPublisher};

/// A copy of a table.
pub type Copy = (TableName, u32);

#[derive(Debug, Default)]
pub struct Ledger {
    pub plans: HashMap<Copy, Plan>,
    pub chunks: HashMap<ChunkId, Chunk>,
    pub copied: HashMap<Copy, TableCopied>,
    pub completed: Option<BackfillCompleted>,
    pub resyncs: Vec<ResyncRequested>,
    pub refused: HashSet<Copy>,
}

impl Ledger {
    pub fn of(records: Vec<LedgerRecord>) -> Ledger {
        let mut ledger = Ledger::default();
        records.into_iter().for_each(|record| ledger.take(record));
        ledger
    }

    /// The newest record of each key counts.
    pub fn take(&mut self, record: LedgerRecord) {
        match record {
            LedgerRecord::Plan(plan) => {
                self.plans.insert((plan.table.clone(), plan.generation), plan);
            }
            LedgerRecord::Chunk(chunk) => {
                self.chunks.insert(chunk.id.clone(), chunk);
            }
            LedgerRecord::TableCopied(copied) => {
                self.copied.insert((copied.table.clone(), copied.generation), copied);
            }
            LedgerRecord::BackfillCompleted(completed) => self.completed = Some(completed),
            LedgerRecord::ResyncRequested(request) => {
                if !self.resyncs.contains(&request) {
                    self.resyncs.push(request);
                }
            }
            LedgerRecord::ResyncRefused(ResyncRefused { table, generation, .. }) => {
                self.refused.insert((table, generation));
            }
        }
    }

    /// Requests that have not been carried out, oldest first.
    pub fn open_resyncs(&self) -> Vec<ResyncRequested> {
        self.resyncs.iter().filter(|request| self.is_open(request)).cloned().collect()
    }

    pub fn is_open(&self, request: &ResyncRequested) -> bool {
        let copy = (request.table.clone(), request.generation);
        !self.copied.contains_key(&copy) && !self.refused.contains(&copy)
    }

    /// Whether the table was ever to be copied.
    pub fn knows(&self, table: &TableName) -> bool {
        self.plans.keys().any(|(planned, _)| planned == table)
    }

    /// The generation that a new request gets: above those of all tables, which may have the name of another tomorrow.
    pub fn next_generation(&self) -> u32 {
        let planned = self.plans.keys().map(|(_, generation)| *generation);
        planned.chain(self.resyncs.iter().map(|request| request.generation)).max().unwrap_or(0) + 1
    }
}

/// Appends a record and waits until Kafka has acknowledged it.
///
/// # Errors
/// Kafka refused it for good.
pub async fn write(lane: &Lane, publisher: &TrackedPublisher, record: &LedgerRecord) -> Result<(), Error> {
    let outstanding = Arc::default();
    send(lane, publisher, record, &outstanding).await?;
    publisher.acknowledged(&outstanding).await
}

/// Appends a record and counts it in `outstanding`.
///
/// # Errors
/// Kafka refused one for good.
pub async fn send(
    lane: &Lane,
    publisher: &TrackedPublisher,
    record: &LedgerRecord,
    outstanding: &Arc<Outstanding>,
) -> Result<(), Error> {
    let (topic, key) = (lane.topics.ledger(), record.key());
    let mut value = Vec::new();
    record.encode(lane.schemas.ledger, &mut value);
    let record = Outgoing { topic: &topic, partition: 0, key: Some(key.as_bytes()), value: &value };
    publisher.send(record, outstanding).await
}

/// Reports requests written from `offset` on. The reading thread ends with the receiver.
///
/// # Errors
/// A Kafka property is unknown.
pub fn follow(lane: &Arc<Lane>, offset: i64) -> Result<mpsc::UnboundedReceiver<ResyncRequested>, Error> {
    let ours = [
        ("group.id", lane.client_id()),
        ("enable.auto.commit", "false".to_owned()),
        ("fetch.wait.max.ms", "500".to_owned()),
        ("queued.max.messages.kbytes", "1024".to_owned()),
    ];
    let kafka = &lane.config.kafka;
    let config = service::kafka::client_config(kafka, &lane.client_id(), &ours)?;
    let consumer: BaseConsumer = service::kafka::create(kafka, &config)?;
    let mut assignment = TopicPartitionList::new();
    let topic = lane.topics.ledger();
    assignment
        .add_partition_offset(&topic, 0, Offset::Offset(offset))
        .and_then(|()| consumer.assign(&assignment))
        .map_err(|error| service::kafka::failed(kafka, error))?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || {
        while !sender.is_closed() {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else { continue };
            match message.payload().map(LedgerRecord::decode) {
                Some(Ok(LedgerRecord::ResyncRequested(request))) => {
                    if sender.send(request).is_err() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, offset = message.offset(), "a ledger record is not readable")
                }
                Some(Ok(_)) | None => {}
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;

    use super::*;

    #[test]
    fn a_request_is_open_until_its_generation_is_copied() {
        let table = TableName::new("public", "t");
        let request = |generation: u32| {
            let token = generation.to_string();
            LedgerRecord::ResyncRequested(ResyncRequested { table: table.clone(), generation, oid: 0, token })
        };
        let copied = TableCopied { table: table.clone(), generation: 1, chunks: 1, row_count: 5, snapshot_lsn: Lsn(9) };
        let ledger = Ledger::of(vec![request(1), request(1), request(2), LedgerRecord::TableCopied(copied)]);
        let open = ledger.open_resyncs();
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].generation, 2);
        let mut ledger = ledger;
        assert_eq!(ledger.next_generation(), 3);
        let refused = ResyncRefused { table, generation: 2, reason: "it is gone".into() };
        ledger.take(LedgerRecord::ResyncRefused(refused));
        assert!(ledger.open_resyncs().is_empty());
    }
    #[test]
    fn a_request_gets_a_generation_above_all_others() {
        let (table, other) = (TableName::new("public", "t"), TableName::new("public", "u"));
        let request = |generation| {
            let (table, token) = (table.clone(), String::new());
            LedgerRecord::ResyncRequested(ResyncRequested { table, generation, oid: 0, token })
        };
        let plan = |table: &TableName, generation| {
            let (table, key, bounds, definition) = (table.clone(), vec!["id".into()], Vec::new(), Vec::new());
            LedgerRecord::Plan(Plan {
                table,
                generation,
                oid: 0,
                key,
                bounds,
                estimated_rows: 1,
                estimated_bytes: 1,
                definition,
            })
        };
        let next = |records| Ledger::of(records).next_generation();
        assert_eq!(next(vec![plan(&table, 0), plan(&other, 7)]), 8);
        assert_eq!(next(vec![request(3), plan(&table, 2)]), 4);
    }
}
