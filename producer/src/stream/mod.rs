//! The stream: frames of the slot become events, manifests and markers on Kafka, in order.
//!
//! ```text
//!  FrameReader ─> pgoutput ─> Assembler ─> images ─> EventEncoder ─> StreamPublisher ─> Kafka
//!                                  └─> Segments ─> Manifest ─────────────┘  └─ acknowledged ─> Feedback ─> StatusWriter
//! ```
//!
//! An event is sent as it is decoded: pgoutput's protocol 1 sends only committed transactions, so memory does not grow with
//! the transaction. After a restart the server sends again from the confirmed LSN; whatever is not above the last position of
//! its partition is there already and is skipped. What is larger than a record goes in pieces. A full queue stops this loop, and so the reading; keepalives are answered
//! by the feedback task all the same.

pub mod feedback;
pub mod images;
pub mod segment;
pub mod tables;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use changelog::piece::Cut;
use changelog::{
    Cell, Header, Lane as Direction, LaneRecord, Lsn, Manifest, Marker, Op, PartitionCount, Position, SchemaChange,
    Sequences, origin, sequence,
};
use tokio::sync::Notify;

use crate::assemble::{Assembled, Assembler, Change, ChangeKind, Committed, SCHEMA_PREFIX};
use crate::error::Error;
use crate::lane::Lane;
use crate::markers;
use crate::observe::{self, StreamCounts};
use crate::pgoutput::{self, Begin};
use crate::publish::{Outgoing, StreamPublisher};
use crate::source::schema_trigger;
use crate::walsender::{Frame, FrameReader};
use images::{Image, Images};
use segment::{PartitionIndex, Segment, Segments};
use tables::{StreamTable, StreamTables};

/// What is sent so long after its commit is a backlog.
const BEHIND_MICROS: i64 = 500_000;

/// How this migration's consumer of the other lane marks what it writes into our source. Every other origin is the
/// application's: a source that is itself a subscriber, or the target of another migration.
#[derive(Debug)]
struct OtherLane {
    origin: String,
    message: String,
}

impl OtherLane {
    fn of(migration: &str, direction: Direction) -> OtherLane {
        let message = origin::lane_name(migration, direction.other());
        OtherLane { origin: origin::origin_name(&message), message }
    }

    fn wrote(&self, event: &Assembled) -> bool {
        match event {
            Assembled::Origin { name, .. } => *name == self.origin,
            Assembled::OriginMessage { content } => **content == *self.message.as_bytes(),
            Assembled::Begin(_) | Assembled::Change(_) | Assembled::Schema { .. } => false,
            Assembled::Marker { .. } | Assembled::Commit(_) => false,
        }
    }
}

/// What the loop is given.
pub struct Start {
    pub lane: Arc<Lane>,
    pub reader: FrameReader,
    pub publisher: StreamPublisher,
    pub tables: StreamTables,
    /// The highest manifest or marker that is there already.
    pub lane_tail: Option<Position>,
    pub system_identifier: String,
    pub timeline: i32,
    /// Wakes the feedback: the server wants an answer.
    pub reply: Arc<Notify>,
}

struct OpenTransaction {
    begin: Begin,
    /// Written by the other lane: its changes count but are not published.
    ours: bool,
    markers: Vec<String>,
    /// Not sent before it is known whether the transaction ends with it.
    held: Option<Held>,
}

/// What a change of tables closes, and what tells of it.
enum Held {
    Segment(Segment),
    Schema(SchemaChange),
}

/// The loop's state.
pub struct Stream {
    start: Start,
    assembler: Assembler,
    assembled: Vec<Assembled>,
    open: Option<OpenTransaction>,
    segments: Segments,
    key: Vec<u8>,
    value: Vec<u8>,
    counts: StreamCounts,
    transactions_topic: String,
    lane_name: String,
    other_lane: OtherLane,
}

impl Stream {
    pub fn new(start: Start) -> Stream {
        let transactions_topic = start.lane.topics.transactions();
        let migration = &start.lane.config.migration.name;
        let other_lane = OtherLane::of(migration, start.lane.direction);
        let lane_name = origin::lane_name(migration, start.lane.direction);
        Stream {
            start,
            assembler: Assembler::new(),
            assembled: Vec::new(),
            open: None,
            segments: Segments::default(),
            key: Vec::new(),
            value: Vec::new(),
            counts: StreamCounts::default(),
            transactions_topic,
            lane_name,
            other_lane,
        }
    }

    /// Runs until the shutdown.
    ///
    /// # Errors
    /// The connection broke, the server sent what cannot be, or Kafka refused a record.
    pub async fn run(mut self) -> Result<(), Error> {
        let shutdown = self.start.lane.shutdown.clone();
        loop {
            let frame = tokio::select! {
                frame = self.start.reader.next() => frame?,
                () = shutdown.wait() => return Ok(()),
            };
            self.frame(frame).await?;
            // What is buffered is taken without asking the runtime each time, but never for ever.
            for _frame in 0..4_096 {
                let Some(frame) = self.start.reader.try_next_buffered()? else { break };
                self.frame(frame).await?;
            }
            self.counts.flush();
            tokio::task::yield_now().await;
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Error> {
        let (lsn, sent_at_micros, data) = match frame {
            Frame::XLogData { wal_start, server_time_micros, data, .. } => (wal_start, server_time_micros, data),
            Frame::Keepalive { reply_requested, .. } => {
                if reply_requested {
                    self.start.reply.notify_one();
                }
                return Ok(());
            }
        };
        let slot = || self.start.lane.slot.clone();
        let message = pgoutput::decode(data).map_err(|source| Error::Decode { slot: slot(), lsn, source })?;
        let mut assembled = std::mem::take(&mut self.assembled);
        self.assembler
            .accept(lsn, message, &mut assembled)
            .map_err(|source| Error::Assemble { slot: slot(), source })?;
        for event in &assembled {
            self.event(lsn, event).await?;
        }
        if let Some(open) = &self.open {
            // Both by the source's clock; at each frame, since a large transaction lies behind only while it is sent.
            self.start.reader.set_behind(sent_at_micros - open.begin.commit_time_micros > BEHIND_MICROS);
        }
        assembled.clear();
        self.assembled = assembled;
        Ok(())
    }

    /// What is rare is boxed: the future of a change would else be copied about with the room for it.
    async fn event(&mut self, lsn: Lsn, event: &Assembled) -> Result<(), Error> {
        match event {
            Assembled::Begin(begin) => {
                self.segments.begin();
                self.open = Some(OpenTransaction { begin: *begin, ours: false, markers: Vec::new(), held: None });
            }
            Assembled::Origin { .. } | Assembled::OriginMessage { .. } => {
                if let Some(open) = self.open.as_mut() {
                    open.ours |= self.other_lane.wrote(event);
                }
            }
            Assembled::Change(change) => return self.change(lsn, change).await,
            Assembled::Marker { content, .. } => {
                if let Some(open) = self.open.as_mut() {
                    open.markers.push(String::from_utf8_lossy(content).into_owned());
                }
            }
            Assembled::Schema { ordinal, content } => return Box::pin(self.schema(*ordinal, content)).await,
            Assembled::Commit(committed) => return self.commit(committed).await,
        }
        Ok(())
    }

    /// What the event trigger told. The manifest of what is before it goes out first, whatever becomes of the message: a
    /// manifest depends on nothing but the WAL.
    async fn schema(&mut self, ordinal: u64, content: &[u8]) -> Result<(), Error> {
        let Some(OpenTransaction { begin, ours: false, .. }) = self.open else { return Ok(()) };
        let position = Position::new(begin.final_lsn, ordinal);
        if let (Some(segment), Some(open)) = (self.segments.close(), self.open.as_mut()) {
            open.held = Some(Held::Segment(segment));
        }
        if content.is_empty() {
            tracing::warn!(%position, "the event trigger could not tell of a change (see the source's log); it is known by its rows");
            self.start.tables.forget_told();
            return Ok(());
        }
        let told = match schema_trigger::told(content) {
            Ok(told) if told.lane == self.lane_name => told,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::warn!(%position, error, "a message {SCHEMA_PREFIX} that the event trigger did not emit is passed over");
                return Ok(());
            }
        };
        if !self.start.tables.knows(&told.secret).await? {
            let hint =
                "if another user ran dflux prepare, give the producer's a user mapping: README, Tables that change";
            tracing::warn!(%position, hint, "a change of tables was told by nobody that we know; it is known by its rows");
            self.start.tables.forget_told();
            return Ok(());
        }
        let tables = self.start.tables.tell(told.changes, &told.statement).await?;
        if tables.is_empty() {
            return Ok(());
        }
        for change in &tables {
            tracing::info!(%position, table = %change.table, "the source has changed a table");
        }
        let change = SchemaChange {
            system_identifier: self.start.system_identifier.clone(),
            timeline: self.start.timeline,
            position,
            end_lsn: begin.final_lsn,
            commit_time_micros: begin.commit_time_micros,
            last: false,
            statement: told.statement,
            tables,
        };
        self.send_held(None).await?;
        if let Some(open) = self.open.as_mut() {
            open.held = Some(Held::Schema(change));
        }
        Ok(())
    }

    /// Sends what is held: with the transaction's end, as the last record of it.
    async fn send_held(&mut self, end_lsn: Option<Lsn>) -> Result<(), Error> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let begin = open.begin;
        match open.held.take() {
            None => return Ok(()),
            Some(Held::Segment(segment)) => self.manifest(begin, segment, end_lsn).await?,
            Some(Held::Schema(mut change)) => {
                change.last = end_lsn.is_some();
                change.end_lsn = end_lsn.unwrap_or(change.end_lsn);
                let position = change.position;
                self.lane_record(&LaneRecord::Schema(change), position).await?;
                if let Some(end_lsn) = end_lsn {
                    self.start.publisher.point(end_lsn);
                }
            }
        }
        self.counts.transactions += u64::from(end_lsn.is_some());
        Ok(())
    }

    async fn change(&mut self, lsn: Lsn, change: &Change) -> Result<(), Error> {
        let Some(OpenTransaction { begin, ours: false, ref held, .. }) = self.open else { return Ok(()) };
        if held.is_some() {
            Box::pin(self.send_held(None)).await?;
        }
        if self.start.tables.known(&change.relation).is_none() {
            Box::pin(self.start.tables.learn(&change.relation, begin.xid)).await?;
        }
        let Some(table) = self.start.tables.known(&change.relation) else { return Ok(()) };
        let images = images::images(&change.kind, &table.columns, &table.key).map_err(|_| Error::Answer {
            doing: format!("the stream at {lsn}"),
            what: format!("{}.{} has a binary value", change.relation.schema, change.relation.name),
        })?;
        let at = EventPlace { begin, ordinal: change.ordinal, lsn };
        match images {
            Images::One(image) => self.publish(change, at, image, 0).await?,
            Images::KeyChange(deleted, created) => {
                let part = self.publish(change, at, deleted, 0).await?;
                self.publish(change, at, created, part).await?
            }
        };
        Ok(())
    }

    /// One event, from this part of its change on. Yields the part behind it.
    async fn publish(&mut self, change: &Change, at: EventPlace, image: Image<'_>, part: u32) -> Result<u32, Error> {
        let position = Position { commit_lsn: at.begin.final_lsn, ordinal: at.ordinal, part };
        let Some(table) = self.start.tables.known(&change.relation) else { return Ok(part) };
        let keyed = image.after.as_deref().or(image.before.as_deref());
        let partition = images::partition(keyed.unwrap_or_default(), &table.key, table.partitions);
        let index = table.first_partition + partition as u32;
        if let Some(segment) = self.segments.event(position, index) {
            self.manifest(at.begin, segment, None).await?;
        }
        let place = &self.start.tables.partitions[index as usize];
        let (topic, partition, record_bytes_max) = (place.topic.clone(), place.partition, place.record_bytes_max);
        let there = place.tail.is_some_and(|tail| position <= tail);
        let Some(table) = self.start.tables.known(&change.relation) else { return Ok(part) };
        // Half of it, because the key has some of the cells once more.
        let small =
            || table.encoder.value_bytes_most(image.before.as_deref(), image.after.as_deref()) <= record_bytes_max / 2;
        if there && small() {
            return Ok(part + 1);
        }
        self.key.clear();
        self.value.clear();
        let header = at.header(image.op, position);
        let has_key = encode(table, &header, &image, change, &mut self.key, &mut self.value)?;
        if self.value.len() + self.key.len() > record_bytes_max {
            return Box::pin(self.pieces(change, &header, index, has_key)).await;
        }
        if there {
            return Ok(part + 1);
        }
        let key = if has_key { Some(self.key.as_slice()) } else { None };
        self.counts.changes += 1;
        self.counts.bytes += (self.value.len() + self.key.len()) as u64;
        let record = Outgoing { topic: &topic, partition, key, value: &self.value };
        if let Some(refused) = self.start.publisher.offer(record)? {
            Box::pin(refused.insist(record)).await?;
        }
        Ok(part + 1)
    }

    /// An event that is larger than a record: several. All are counted, because their manifest does not depend on what is there
    /// already; the first one was. They are of one ordinal, so of one segment.
    async fn pieces(
        &mut self,
        change: &Change,
        header: &Header,
        index: PartitionIndex,
        has_key: bool,
    ) -> Result<u32, Error> {
        // Not kept for the next one: its memory is that of a row, and may be a gigabyte.
        let value = std::mem::take(&mut self.value);
        let first = header.position.part;
        let place = &self.start.tables.partitions[index as usize];
        let (topic, partition, tail, record_bytes_max) =
            (place.topic.clone(), place.partition, place.tail, place.record_bytes_max);
        let Some(table) = self.start.tables.known(&change.relation) else { return Ok(first) };
        table.encoder.release();
        let cut = Cut::new(&table.encoder, value.len(), self.key.len(), record_bytes_max);
        let cut = cut.ok_or_else(|| {
            let (table, bytes) = (table.encoder.shape().table.clone(), self.key.len());
            Error::NoRoom { table, what: "a key", bytes, record_bytes_max }
        })?;
        for number in 0..cut.pieces() {
            let position = Position { part: first + number, ..header.position };
            if number > 0 {
                let _none_is_closed = self.segments.event(position, index);
            }
            if tail.is_some_and(|tail| position <= tail) {
                continue;
            }
            let Some(table) = self.start.tables.known(&change.relation) else { return Ok(first) };
            self.value.clear();
            table.encoder.piece(&mut self.value, self.start.lane.schemas.piece, header, (cut, number), &value);
            self.counts.bytes += (self.value.len() + self.key.len()) as u64;
            let key = if has_key { Some(self.key.as_slice()) } else { None };
            send(&self.start.publisher, Outgoing { topic: &topic, partition, key, value: &self.value }).await?;
        }
        self.counts.changes += 1;
        self.value = Vec::new();
        Ok(first + cut.pieces())
    }

    async fn commit(&mut self, committed: &Committed) -> Result<(), Error> {
        Box::pin(self.send_held(Some(committed.end_lsn))).await?;
        let Some(open) = self.open.take() else { return Ok(()) };
        observe::set(observe::RECEIVED, committed.commit_lsn.0 as f64);
        if open.ours {
            self.counts.filtered += 1;
        }
        if let Some(segment) = self.segments.close() {
            self.counts.transactions += 1;
            self.manifest(open.begin, segment, Some(committed.end_lsn)).await?;
        }
        for (part, content) in open.markers.iter().enumerate() {
            let part = u32::try_from(part).unwrap_or(u32::MAX);
            let position = Position { commit_lsn: committed.commit_lsn, ordinal: committed.changes, part };
            self.marker(committed, position, content).await?;
        }
        Ok(())
    }

    /// `end_lsn`: of the transaction, for its last segment; the end is not known before.
    async fn manifest(&mut self, begin: Begin, segment: Segment, end_lsn: Option<Lsn>) -> Result<(), Error> {
        let partitions = segment.counts.iter().map(|(index, events)| {
            let place = &self.start.tables.partitions[*index as usize];
            PartitionCount { topic: place.topic.to_string(), partition: place.partition, events: *events }
        });
        let manifest = LaneRecord::Manifest(Manifest {
            system_identifier: self.start.system_identifier.clone(),
            timeline: self.start.timeline,
            xid: begin.xid,
            position: segment.position,
            end_lsn: end_lsn.unwrap_or(begin.final_lsn),
            commit_time_micros: begin.commit_time_micros,
            last: end_lsn.is_some(),
            partitions: partitions.collect(),
        });
        self.lane_record(&manifest, segment.position).await?;
        if let Some(end_lsn) = end_lsn {
            self.start.publisher.point(end_lsn);
        }
        Ok(())
    }

    async fn marker(&mut self, committed: &Committed, position: Position, text: &str) -> Result<(), Error> {
        let (emitted_at, mut content) = markers::parse(text);
        let decoded_at_micros = now_micros();
        let emitted_at_micros = emitted_at.unwrap_or(committed.commit_time_micros);
        self.start.lane.newest_marker_micros.store(emitted_at_micros, Ordering::Relaxed);
        if let Some((lane, sequences)) = sequence::announced(content) {
            if lane == self.lane_name {
                return self.sequences(committed, position, emitted_at_micros, sequences).await;
            }
            // Another migration's of the same database.
            content = "";
        }
        observe::capture_lag((decoded_at_micros - emitted_at_micros).max(0) as f64 / 1e6);
        let marker = LaneRecord::Marker(Marker {
            system_identifier: self.start.system_identifier.clone(),
            timeline: self.start.timeline,
            position,
            end_lsn: committed.end_lsn,
            emitted_at_micros,
            decoded_at_micros,
            content: content.to_owned(),
        });
        self.counts.markers += 1;
        self.lane_record(&marker, position).await?;
        self.start.publisher.point(committed.end_lsn);
        Ok(())
    }

    async fn sequences(
        &mut self,
        committed: &Committed,
        position: Position,
        read_at_micros: i64,
        sequences: Vec<changelog::Sequence>,
    ) -> Result<(), Error> {
        let read = LaneRecord::Sequences(Sequences {
            system_identifier: self.start.system_identifier.clone(),
            timeline: self.start.timeline,
            position,
            end_lsn: committed.end_lsn,
            read_at_micros,
            sequences,
        });
        self.lane_record(&read, position).await?;
        self.start.publisher.point(committed.end_lsn);
        Ok(())
    }

    async fn lane_record(&mut self, record: &LaneRecord, position: Position) -> Result<(), Error> {
        if self.start.lane_tail.is_some_and(|tail| position <= tail) {
            return Ok(());
        }
        self.value.clear();
        record.encode(self.start.lane.schemas.lane, &mut self.value);
        self.counts.bytes += self.value.len() as u64;
        let record = Outgoing { topic: &self.transactions_topic, partition: 0, key: None, value: &self.value };
        send(&self.start.publisher, record).await
    }
}

async fn send(publisher: &StreamPublisher, record: Outgoing<'_>) -> Result<(), Error> {
    match publisher.offer(record)? {
        None => Ok(()),
        Some(refused) => Box::pin(refused.insist(record)).await,
    }
}

#[derive(Clone, Copy)]
struct EventPlace {
    begin: Begin,
    ordinal: u64,
    lsn: Lsn,
}

impl EventPlace {
    fn header(&self, op: Op, position: Position) -> Header {
        let Begin { xid, commit_time_micros, .. } = self.begin;
        Header { op, xid, lsn: self.lsn, position, commit_time_micros }
    }
}

/// Appends key and value; false if the event has no key.
fn encode(
    table: &mut StreamTable,
    header: &Header,
    image: &Image<'_>,
    change: &Change,
    key: &mut Vec<u8>,
    value: &mut Vec<u8>,
) -> Result<bool, Error> {
    let before: Option<&[Cell<'_>]> = image.before.as_deref();
    let after: Option<&[Cell<'_>]> = image.after.as_deref();
    table.encoder.value(value, header, before, after)?;
    if matches!(change.kind, ChangeKind::Truncate { .. }) {
        return Ok(false);
    }
    Ok(table.encoder.key(key, &header.position, after.or(before).unwrap_or_default())?)
}

/// Microseconds since 1970-01-01 UTC.
pub fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_other_lane_of_this_migration_is_known_by_its_marks() {
        let other = OtherLane::of("shop", Direction::Forward);
        for (mark, ours) in [
            ("shop/reverse", true),
            ("shop/forward", false),
            ("shop2/reverse", false),
            ("another/forward", false),
            ("", false),
        ] {
            let origin = Assembled::Origin { lsn: Lsn::ZERO, name: format!("dflux {mark}") };
            let message = Assembled::OriginMessage { content: mark.as_bytes().to_vec().into() };
            assert_eq!((other.wrote(&origin), other.wrote(&message)), (ours, ours), "{mark}");
        }
        assert!(!other.wrote(&Assembled::Origin { lsn: Lsn::ZERO, name: "dflux".into() }));
        assert!(OtherLane::of("shop", Direction::Reverse).origin.ends_with("shop/forward"));
    }
}
