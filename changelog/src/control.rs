//! The records of `…-transactions`: a lane's birth, the manifests of its transactions, its markers, values of sequences, and
//! changes of tables.
//!
//! Written as Avro with the schema `schemas/lane.avsc` (one record, its body a union of the five), in Confluent's frame. A
//! branch is only ever added at the end: what was written before is read as it was.

use crate::avro::{Reader, frame, put_boolean, put_bytes, put_frame, put_items, put_long};
use crate::{Error, Lsn, Position, Sequence, TableName, sequence};

/// The Avro schema of the topic's values.
pub const SCHEMA: &str = include_str!("../../schemas/lane.avsc");

/// The first record of a lane: which server, which slot, from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    pub migration: String,
    pub lane: String,
    /// `system_identifier` of the source, as `IDENTIFY_SYSTEM` prints it.
    pub system_identifier: String,
    pub timeline: i32,
    pub database: String,
    pub slot: String,
    pub publication: String,
    /// Transactions with a commit LSN at or above this point are in the lane, those below are in the slot's snapshot.
    pub consistent_point: Lsn,
}

/// How many events of a segment went to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCount {
    pub topic: String,
    pub partition: i32,
    pub events: u64,
}

/// Lists the events of one transaction, or of one segment of it. Its position is that of the last event that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub system_identifier: String,
    pub timeline: i32,
    pub xid: u32,
    /// Of the last event covered. Every event of this transaction above the previous manifest's position and at
    /// or below this one is covered.
    pub position: Position,
    /// The end of the transaction in the WAL, what is confirmed to the slot when this is the last segment.
    pub end_lsn: Lsn,
    /// Commit time on the source, microseconds since 1970-01-01 UTC.
    pub commit_time_micros: i64,
    /// Whether the transaction ends with this segment.
    pub last: bool,
    /// At least one; none has 0 events.
    pub partitions: Vec<PartitionCount>,
}

/// A logical message that passed through the slot; it measures each hop, moves an idle slot and proves a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub system_identifier: String,
    pub timeline: i32,
    /// commit LSN, and as ordinal the number of changes before it in its transaction (0 for a lone marker).
    pub position: Position,
    pub end_lsn: Lsn,
    /// The source's clock when it was emitted, microseconds since 1970-01-01 UTC.
    pub emitted_at_micros: i64,
    /// The producer's clock when it was decoded.
    pub decoded_at_micros: i64,
    /// Free text: empty for a periodic marker, else what the emitter wants to find again.
    pub content: String,
}

/// Values of sequences of the source, as they were read shortly before the record's place in the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    pub system_identifier: String,
    pub timeline: i32,
    /// As of a marker.
    pub position: Position,
    pub end_lsn: Lsn,
    /// The source's clock after they were read, microseconds since 1970-01-01 UTC.
    pub read_at_micros: i64,
    /// Those that have changed; after a start of the producer, and now and then, all.
    pub sequences: Vec<Sequence>,
}

/// Tables of the source that a statement changed, as its event trigger told it in the transaction: what is before it in the lane
/// was written to the tables as they were, what is behind it to the tables as they are described here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaChange {
    pub system_identifier: String,
    pub timeline: i32,
    /// Its own: it counts as a change of its transaction.
    pub position: Position,
    /// As in a [`Manifest`].
    pub end_lsn: Lsn,
    pub commit_time_micros: i64,
    /// Whether the transaction ends with it.
    pub last: bool,
    /// What the source's session had sent, perhaps with more statements; empty if it was long, or the change was made within
    /// something that it called.
    pub statement: String,
    pub tables: Vec<TableChange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChange {
    pub table: TableName,
    /// The same unless the table got another name or schema.
    pub previous: TableName,
    /// Of the events of the table as it was; none of a new partition.
    pub previous_schema_id: Option<u32>,
    /// Of the table as it is now; none if it was dropped, and none of a new partition.
    pub schema_id: Option<u32>,
    /// Whether the values of its rows were computed anew for the type of a column, perhaps by an expression and with the type as it
    /// was: no event tells them.
    pub rewritten: bool,
    /// Of a new partition, what follows PARTITION OF: its parent, its bound, and what it is itself partitioned by. Else empty.
    pub partition_of: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneRecord {
    Birth(Birth),
    Manifest(Manifest),
    Marker(Marker),
    Sequences(Sequences),
    Schema(SchemaChange),
}

impl LaneRecord {
    /// The record's place in the lane; a birth has none.
    pub fn position(&self) -> Option<Position> {
        match self {
            LaneRecord::Birth(_) => None,
            LaneRecord::Manifest(manifest) => Some(manifest.position),
            LaneRecord::Marker(marker) => Some(marker.position),
            LaneRecord::Sequences(sequences) => Some(sequences.position),
            LaneRecord::Schema(change) => Some(change.position),
        }
    }

    /// Appends the framed record.
    pub fn encode(&self, schema_id: u32, out: &mut Vec<u8>) {
        put_frame(out, schema_id);
        match self {
            LaneRecord::Birth(birth) => {
                put_long(out, 0);
                for text in [&birth.migration, &birth.lane, &birth.system_identifier] {
                    put_bytes(out, text.as_bytes());
                }
                put_long(out, i64::from(birth.timeline));
                for text in [&birth.database, &birth.slot, &birth.publication] {
                    put_bytes(out, text.as_bytes());
                }
                put_long(out, birth.consistent_point.0 as i64);
            }
            LaneRecord::Manifest(manifest) => {
                put_long(out, 1);
                put_bytes(out, manifest.system_identifier.as_bytes());
                put_long(out, i64::from(manifest.timeline));
                put_long(out, i64::from(manifest.xid));
                put_position(out, &manifest.position);
                put_long(out, manifest.end_lsn.0 as i64);
                put_long(out, manifest.commit_time_micros);
                put_boolean(out, manifest.last);
                put_items(out, &manifest.partitions, |out, count| {
                    put_bytes(out, count.topic.as_bytes());
                    put_long(out, i64::from(count.partition));
                    put_long(out, count.events as i64);
                });
            }
            LaneRecord::Marker(marker) => {
                put_long(out, 2);
                put_bytes(out, marker.system_identifier.as_bytes());
                put_long(out, i64::from(marker.timeline));
                put_position(out, &marker.position);
                put_long(out, marker.end_lsn.0 as i64);
                put_long(out, marker.emitted_at_micros);
                put_long(out, marker.decoded_at_micros);
                put_bytes(out, marker.content.as_bytes());
            }
            LaneRecord::Sequences(read) => {
                put_long(out, 3);
                put_bytes(out, read.system_identifier.as_bytes());
                put_long(out, i64::from(read.timeline));
                put_position(out, &read.position);
                put_long(out, read.end_lsn.0 as i64);
                put_long(out, read.read_at_micros);
                put_items(out, &read.sequences, sequence::put);
            }
            LaneRecord::Schema(change) => {
                put_long(out, 4);
                put_bytes(out, change.system_identifier.as_bytes());
                put_long(out, i64::from(change.timeline));
                put_position(out, &change.position);
                put_long(out, change.end_lsn.0 as i64);
                put_long(out, change.commit_time_micros);
                put_boolean(out, change.last);
                put_bytes(out, change.statement.as_bytes());
                put_items(out, &change.tables, |out, table| {
                    for name in [&table.table, &table.previous] {
                        put_bytes(out, name.schema.as_bytes());
                        put_bytes(out, name.name.as_bytes());
                    }
                    put_long(out, table.previous_schema_id.map_or(0, i64::from));
                    put_long(out, table.schema_id.map_or(0, i64::from));
                    put_boolean(out, table.rewritten);
                    put_bytes(out, table.partition_of.as_bytes());
                });
            }
        }
    }

    /// # Errors
    /// Corrupt bytes.
    pub fn decode(record: &[u8]) -> Result<LaneRecord, Error> {
        let (_schema_id, body) = frame(record)?;
        let mut reader = Reader::new(body);
        let r = &mut reader;
        let decoded = match r.long()? {
            0 => LaneRecord::Birth(Birth {
                migration: r.string()?.to_owned(),
                lane: r.string()?.to_owned(),
                system_identifier: r.string()?.to_owned(),
                timeline: r.int()?,
                database: r.string()?.to_owned(),
                slot: r.string()?.to_owned(),
                publication: r.string()?.to_owned(),
                consistent_point: Lsn(r.unsigned()?),
            }),
            1 => LaneRecord::Manifest(Manifest {
                system_identifier: r.string()?.to_owned(),
                timeline: r.int()?,
                xid: u32::try_from(r.long()?).map_err(|_| r.corrupt("xid out of range"))?,
                position: position(r)?,
                end_lsn: Lsn(r.unsigned()?),
                commit_time_micros: r.long()?,
                last: r.boolean()?,
                partitions: r.list(partition_count)?,
            }),
            2 => LaneRecord::Marker(Marker {
                system_identifier: r.string()?.to_owned(),
                timeline: r.int()?,
                position: position(r)?,
                end_lsn: Lsn(r.unsigned()?),
                emitted_at_micros: r.long()?,
                decoded_at_micros: r.long()?,
                content: r.string()?.to_owned(),
            }),
            3 => LaneRecord::Sequences(Sequences {
                system_identifier: r.string()?.to_owned(),
                timeline: r.int()?,
                position: position(r)?,
                end_lsn: Lsn(r.unsigned()?),
                read_at_micros: r.long()?,
                sequences: r.list(sequence::take)?,
            }),
            4 => LaneRecord::Schema(SchemaChange {
                system_identifier: r.string()?.to_owned(),
                timeline: r.int()?,
                position: position(r)?,
                end_lsn: Lsn(r.unsigned()?),
                commit_time_micros: r.long()?,
                last: r.boolean()?,
                statement: r.string()?.to_owned(),
                tables: r.list(table_change)?,
            }),
            _ => return Err(r.corrupt("none of the records that this dflux knows: a later one wrote it")),
        };
        reader.finish()?;
        Ok(decoded)
    }
}

fn partition_count(r: &mut Reader<'_>) -> Result<PartitionCount, Error> {
    Ok(PartitionCount { topic: r.string()?.to_owned(), partition: r.int()?, events: r.unsigned()? })
}

fn table_change(r: &mut Reader<'_>) -> Result<TableChange, Error> {
    let table = TableName::new(r.string()?, r.string()?);
    let previous = TableName::new(r.string()?, r.string()?);
    let mut schema_id = || -> Result<Option<u32>, Error> {
        let id = u32::try_from(r.long()?).map_err(|_| r.corrupt("schema id out of range"))?;
        Ok(Some(id).filter(|id| *id != 0))
    };
    let (previous_schema_id, schema_id) = (schema_id()?, schema_id()?);
    let (rewritten, partition_of) = (r.boolean()?, r.string()?.to_owned());
    Ok(TableChange { table, previous, previous_schema_id, schema_id, rewritten, partition_of })
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    put_long(out, position.commit_lsn.0 as i64);
    put_long(out, position.ordinal as i64);
    put_long(out, i64::from(position.part));
}

fn position(reader: &mut Reader<'_>) -> Result<Position, Error> {
    let commit_lsn = Lsn(reader.unsigned()?);
    let ordinal = reader.unsigned()?;
    let part = u32::try_from(reader.long()?).map_err(|_| reader.corrupt("part out of range"))?;
    Ok(Position { commit_lsn, ordinal, part })
}
