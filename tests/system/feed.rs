//! A lane's topics written by hand, with the contract's own encoders: what a producer would write, and what one that is
//! killed, replaced or confused would.

use std::cell::Cell as Place;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use changelog::block::{Block, ChunkId, CopyFormat};
use changelog::control::PartitionCount;
use changelog::ledger::{BackfillCompleted, Chunk, Plan, ResyncRequested, TableCopied};
use changelog::{
    Birth, Cell, Column, EventEncoder, Header, Identity, Lane, LaneRecord, LedgerRecord, Lsn, Manifest, Marker, Op,
    Position, TableName, TableShape, Topics, block, control, ledger, schema,
};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tests::kafka::Broker;
use tests::services::Service;
use tests::sql::Session;
use tests::stack::{Migration, shared};
use tests::wait;

pub const LIMIT: Duration = Duration::from_secs(60);
const SYSTEM: &str = "7000000000000000001";

/// One change of a transaction; rows are `a|b|c`, `\N` a null, `~` a value that was not sent.
#[derive(Clone, Debug)]
pub enum Change {
    Insert(&'static str, String),
    /// Table, before image or nothing, after image.
    Update(&'static str, String, String),
    Delete(&'static str, String),
    /// Table, old row, new row: a delete and a create of one ordinal.
    Rekey(&'static str, String, String),
    Truncate(Vec<&'static str>),
}

pub fn insert(table: &'static str, row: &str) -> Change {
    Change::Insert(table, row.into())
}

pub fn update(table: &'static str, row: &str) -> Change {
    Change::Update(table, String::new(), row.into())
}

pub fn update_full(table: &'static str, before: &str, after: &str) -> Change {
    Change::Update(table, before.into(), after.into())
}

pub fn delete(table: &'static str, row: &str) -> Change {
    Change::Delete(table, row.into())
}

pub fn rekey(table: &'static str, before: &str, after: &str) -> Change {
    Change::Rekey(table, before.into(), after.into())
}

/// A record to be written to a partition.
#[derive(Clone, Debug)]
pub struct Written {
    pub topic: String,
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
}

pub struct Feed {
    pub migration: Migration,
    pub topics: Topics,
    pub target: Session,
    producer: ThreadedProducer<DefaultProducerContext>,
    encoders: HashMap<String, EventEncoder>,
    lane_schema: u32,
    block_schema: u32,
    ledger_schema: u32,
    lsn: Place<u64>,
    pub consistent_point: Lsn,
}

fn broker() -> &'static Broker {
    &shared().unwrap().broker
}

/// `name type [key]` by OID: the types that the tests use.
fn column(text: &str) -> Column {
    let mut words = text.split(' ');
    let (name, type_name) = (words.next().unwrap(), words.next().unwrap());
    let key = words.next().map(|place| place.strip_prefix("key").unwrap().parse().unwrap_or(0));
    let (type_oid, typmod) = match type_name {
        "int4" => (23, -1),
        "int8" => (20, -1),
        "text" => (25, -1),
        "numeric" => (1700, -1),
        "money2" => (1700, ((10 << 16) | 2) + 4),
        "timestamptz" => (1184, -1),
        "timestamp" => (1114, -1),
        "date" => (1082, -1),
        "bytea" => (17, -1),
        "bool" => (16, -1),
        "float8" => (701, -1),
        "uuid" => (2950, -1),
        "bpchar5" => (1042, 9),
        "varchar3" => (1043, 7),
        "int4array" => (1007, -1),
        "jsonb" => (3802, -1),
        other => panic!("{other}"),
    };
    Column {
        name: name.into(),
        type_oid,
        typmod,
        type_name: format!("pg_catalog.{type_name}"),
        key,
        definition: changelog::Definition::default(),
    }
}

impl Feed {
    /// A migration with an empty ledger and no event but the birth; the tables are made in the target by `ddl`.
    pub fn new(label: &str, ddl: &str) -> Feed {
        let migration = Migration::shared(label).unwrap();
        let target = migration.target().unwrap();
        target.run(ddl).unwrap();
        let topics = Topics::new(&migration.name, Lane::Forward);
        let broker = broker();
        let forever = [("retention.ms", "-1"), ("retention.bytes", "-1")];
        broker.create_topic(&topics.transactions(), 1, &forever).unwrap();
        broker.create_topic(&topics.snapshot(), 2, &forever).unwrap();
        broker.create_topic(&topics.ledger(), 1, &[("cleanup.policy", "compact")]).unwrap();
        let registry = &shared().unwrap().registry;
        let register = |topic: String, schema: &str| registry.register(&format!("{topic}-value"), schema).unwrap();
        let mut config = broker.client();
        config.set("linger.ms", "1").set("queue.buffering.max.messages", "2000000");
        let feed = Feed {
            lane_schema: register(topics.transactions(), control::SCHEMA),
            block_schema: register(topics.snapshot(), block::SCHEMA),
            ledger_schema: register(topics.ledger(), ledger::SCHEMA),
            producer: config.create().unwrap(),
            encoders: HashMap::new(),
            lsn: Place::new(0x1000),
            consistent_point: Lsn(0x1000),
            topics,
            target,
            migration,
        };
        feed.lane(&LaneRecord::Birth(feed.birth()));
        feed
    }

    /// Describes a table of schema public: `table("t", &["id int4 key", "v text"])`.
    pub fn table(&mut self, name: &'static str, columns: &[&str]) {
        self.table_of(name, columns, 1);
    }

    pub fn table_of(&mut self, name: &'static str, columns: &[&str], partitions: i32) {
        let shape = TableShape {
            database: "d".into(),
            table: TableName::new("public", name),
            oid: 0,
            identity: Identity::Default,
            columns: columns.iter().map(|text| column(text)).collect(),
        };
        let topic = self.topic(name);
        broker().create_topic(&topic, partitions, &[("retention.ms", "-1")]).unwrap();
        let registry = &shared().unwrap().registry;
        let value = registry.register(&format!("{topic}-value"), &schema::value_schema(&shape)).unwrap();
        let key = schema::key_schema(&shape).map(|schema| registry.register(&format!("{topic}-key"), &schema).unwrap());
        let encoder = EventEncoder::new(Arc::new(shape), Lane::Forward, value, key.unwrap_or(0));
        self.encoders.insert(name.into(), encoder);
    }

    pub fn topic(&self, table: &str) -> String {
        self.topics.table(&TableName::new("public", table))
    }

    pub fn birth(&self) -> Birth {
        Birth {
            migration: self.migration.name.clone(),
            lane: "forward".into(),
            system_identifier: SYSTEM.into(),
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            publication: "p".into(),
            consistent_point: self.consistent_point,
        }
    }

    /// A backfill of nothing; strict from `exact_from` on.
    pub fn no_backfill(&self, exact_from: Lsn) {
        self.ledger(LedgerRecord::BackfillCompleted(BackfillCompleted { tables: Vec::new(), exact_from }));
    }

    /// Nothing to load, and a running consumer.
    pub fn started(&self) -> Service {
        self.no_backfill(self.consistent_point);
        self.consumer()
    }

    pub fn consumer(&self) -> Service {
        self.migration.service("consumer").arguments(["--lane", "forward"]).start().unwrap()
    }

    pub fn lane(&self, record: &LaneRecord) {
        self.write(&[self.lane_record(record)]);
    }

    pub fn lane_record(&self, record: &LaneRecord) -> Written {
        let mut value = Vec::new();
        record.encode(self.lane_schema, &mut value);
        Written { topic: self.topics.transactions(), partition: 0, key: None, value }
    }

    pub fn ledger(&self, record: LedgerRecord) {
        let mut value = Vec::new();
        record.encode(self.ledger_schema, &mut value);
        let key = Some(record.key().into_bytes());
        self.write(&[Written { topic: self.topics.ledger(), partition: 0, key, value }]);
    }

    pub fn write(&self, records: &[Written]) {
        for written in records {
            let mut record =
                BaseRecord::<[u8], [u8]>::to(&written.topic).partition(written.partition).payload(&written.value);
            record.key = written.key.as_deref();
            let mut attempt = self.producer.send(record);
            while let Err((error, record)) = attempt {
                assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull), "{error}");
                self.producer.flush(LIMIT).unwrap();
                attempt = self.producer.send(record);
            }
        }
        self.producer.flush(LIMIT).unwrap();
    }

    pub fn next_lsn(&self) -> Lsn {
        self.lsn.set(self.lsn.get() + 0x100);
        Lsn(self.lsn.get())
    }

    /// Writes a transaction as the producer does: events, then the manifest. Returns its commit LSN.
    pub fn transaction(&mut self, changes: &[Change]) -> Lsn {
        let lsn = self.next_lsn();
        let records = self.records(lsn, changes);
        self.write(&records);
        lsn
    }

    /// Events in order, then the manifest.
    pub fn records(&mut self, lsn: Lsn, changes: &[Change]) -> Vec<Written> {
        let (mut records, mut next, mut last) = (Vec::new(), 0, Position::default());
        for change in changes {
            last = self.events(Position::new(lsn, next), change, &mut records);
            next = last.ordinal + 1;
        }
        let manifest = self.manifest(last, true, &records);
        records.push(self.lane_record(&LaneRecord::Manifest(manifest)));
        records
    }

    pub fn manifest(&self, position: Position, last: bool, events: &[Written]) -> Manifest {
        let mut partitions: Vec<PartitionCount> = Vec::new();
        for event in events {
            match partitions.iter_mut().find(|c| c.topic == event.topic && c.partition == event.partition) {
                Some(count) => count.events += 1,
                None => partitions.push(PartitionCount {
                    topic: event.topic.clone(),
                    partition: event.partition,
                    events: 1,
                }),
            }
        }
        Manifest {
            system_identifier: SYSTEM.into(),
            timeline: 1,
            xid: 7,
            position,
            end_lsn: Lsn(position.commit_lsn.0 + 0x30),
            commit_time_micros: 1,
            last,
            partitions,
        }
    }

    /// The events of one change; returns the position of the last one.
    pub fn events(&mut self, position: Position, change: &Change, out: &mut Vec<Written>) -> Position {
        match change {
            Change::Insert(table, row) => self.event(table, Op::Create, position, None, Some(row), out),
            Change::Update(table, before, after) => {
                let before = (!before.is_empty()).then_some(before);
                self.event(table, Op::Update, position, before, Some(after), out);
            }
            Change::Delete(table, row) => self.event(table, Op::Delete, position, Some(row), None, out),
            Change::Rekey(table, before, after) => {
                self.event(table, Op::Delete, position, Some(before), None, out);
                let second = Position { part: 1, ..position };
                self.event(table, Op::Create, second, None, Some(after), out);
                return second;
            }
            Change::Truncate(tables) => {
                let mut at = position;
                for (place, table) in tables.iter().enumerate() {
                    at.ordinal = position.ordinal + place as u64;
                    self.event(table, Op::Truncate, at, None, None, out);
                }
                return at;
            }
        }
        position
    }

    fn event(
        &mut self,
        table: &str,
        op: Op,
        position: Position,
        before: Option<&String>,
        after: Option<&String>,
        out: &mut Vec<Written>,
    ) {
        let topic = self.topic(table);
        let encoder = self.encoders.get_mut(table).unwrap();
        let header = Header { op, xid: 7, lsn: position.commit_lsn, position, commit_time_micros: 1 };
        let (before, after) = (before.map(|row| cells(row)), after.map(|row| cells(row)));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        encoder.value(&mut value, &header, before.as_deref(), after.as_deref()).unwrap();
        let image = after.as_deref().or(before.as_deref());
        let keyed = match image {
            Some(image) => encoder.key(&mut key, &position, image).unwrap(),
            None => false,
        };
        out.push(Written { topic, partition: 0, key: keyed.then_some(key), value });
    }

    pub fn marker(&self, content: &str) -> Lsn {
        let lsn = self.next_lsn();
        self.lane(&LaneRecord::Marker(Marker {
            system_identifier: SYSTEM.into(),
            timeline: 1,
            position: Position::new(lsn, 0),
            end_lsn: Lsn(lsn.0 + 0x30),
            emitted_at_micros: 1,
            decoded_at_micros: 2,
            content: content.into(),
        }));
        lsn
    }

    /// The plan of a table with some chunks, and that it is copied.
    pub fn copied(&self, table: &str, key: &[&str], chunks: u32, rows: u64) {
        self.copied_as(table, 0, key, chunks, rows);
    }

    pub fn copied_as(&self, table: &str, generation: u32, key: &[&str], chunks: u32, rows: u64) {
        let table = TableName::new("public", table);
        self.ledger(LedgerRecord::Plan(Plan {
            table: table.clone(),
            generation,
            oid: 0,
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            bounds: (1..chunks).map(|bound| vec![bound.to_string()]).collect(),
            estimated_rows: rows,
            estimated_bytes: rows * 10,
            definition: Vec::new(),
        }));
        let snapshot_lsn = self.consistent_point;
        self.ledger(LedgerRecord::TableCopied(TableCopied {
            table,
            generation,
            chunks,
            row_count: rows,
            snapshot_lsn,
        }));
    }

    pub fn completed(&self, tables: &[&str], exact_from: Lsn) {
        let tables = tables.iter().map(|name| TableName::new("public", *name)).collect();
        self.ledger(LedgerRecord::BackfillCompleted(BackfillCompleted { tables, exact_from }));
    }

    /// One block of text rows of a chunk. `place`: sequence, and whether it is the last, with the chunk's rows.
    pub fn block(&self, chunk: &TestChunk<'_>, place: (u32, Option<u64>), rows: &str) -> Written {
        let block = Block {
            id: ChunkId {
                table: TableName::new("public", chunk.table),
                generation: chunk.generation,
                chunk: chunk.number,
            },
            attempt: chunk.attempt,
            snapshot_lsn: chunk.snapshot_lsn,
            exact_snapshot: chunk.exact,
            columns: chunk.columns.to_vec(),
            format: CopyFormat::Text,
            sequence: place.0,
            last: place.1.is_some(),
            row_count: place.1.unwrap_or(0),
            rows: rows.as_bytes(),
        };
        let mut value = Vec::new();
        block.encode(self.block_schema, &mut value);
        Written { topic: self.topics.snapshot(), partition: chunk.partition, key: None, value }
    }

    /// Waits until the lane has applied everything up to a commit LSN.
    pub fn reached(&self, service: &Service, lsn: Lsn) {
        let sql = format!("SELECT count(*) FROM dflux.lane WHERE commit_lsn >= '{lsn}'");
        let outcome = wait::until(&format!("the lane reaches {lsn}"), LIMIT, || match self.target.number(&sql) {
            Ok(1) => Ok(Ok(())),
            // The answer is known: the lane stands still.
            Ok(_) if service.process().ended().is_some() => Ok(Err(self.lane_row())),
            Ok(_) => Err(self.lane_row()),
            Err(failure) => Err(failure.to_string()),
        });
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(row)) => panic!("the consumer has ended: {row}\n{}", service.log()),
            Err(failure) => panic!("{failure}\n{}", service.log()),
        }
    }

    fn lane_row(&self) -> String {
        self.target.value("SELECT l::text FROM dflux.lane l").unwrap_or_default()
    }

    pub fn resync(&mut self, table: &str, generation: u32) {
        let token = format!("{table} {generation}");
        let begins = changelog::ledger::begins(&token);
        let table = TableName::new("public", table);
        self.ledger(LedgerRecord::ResyncRequested(ResyncRequested { table, generation, oid: 0, token }));
        self.marker(&begins);
    }

    /// The ledger's word on a chunk that lies somewhere in its partition.
    pub fn ledger_chunk(&self, chunk: &TestChunk<'_>, rows: u64) {
        let records = broker().records(&self.topics.snapshot()).unwrap();
        let offsets = records.iter().filter(|record| {
            record.partition == chunk.partition && {
                let block = Block::decode(record.value.as_deref().unwrap()).unwrap();
                (block.id.generation, block.id.chunk, block.attempt) == (chunk.generation, chunk.number, chunk.attempt)
            }
        });
        let offsets: Vec<i64> = offsets.map(|record| record.offset).collect();
        self.ledger(LedgerRecord::Chunk(Chunk {
            id: ChunkId {
                table: TableName::new("public", chunk.table),
                generation: chunk.generation,
                chunk: chunk.number,
            },
            attempt: chunk.attempt,
            snapshot_lsn: chunk.snapshot_lsn,
            exact_snapshot: chunk.exact,
            row_count: rows,
            bytes: 1,
            partition: chunk.partition,
            first_offset: offsets[0],
            last_offset: offsets[offsets.len() - 1],
        }));
    }

    /// All rows of a query, columns joined by `|`.
    pub fn rows(&self, query: &str) -> Vec<String> {
        self.target.column(query).unwrap()
    }

    /// Waits for the end of a service that cannot go on.
    pub fn ends(&self, service: &Service) -> String {
        let status =
            service.process().wait_ended(LIMIT).unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
        assert_eq!(status.code(), Some(1), "{}", service.log());
        service.log()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct TestChunk<'a> {
    pub table: &'a str,
    pub number: u32,
    pub generation: u32,
    pub attempt: u32,
    pub partition: i32,
    pub snapshot_lsn: Lsn,
    pub exact: bool,
    pub columns: &'a [&'a str],
}

fn cells(row: &str) -> Vec<Cell<'_>> {
    row.split('|')
        .map(|cell| match cell {
            "\\N" => Cell::Null,
            "~" => Cell::Unchanged,
            text => Cell::Text(text.as_bytes()),
        })
        .collect()
}
