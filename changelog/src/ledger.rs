//! The records of `…-ledger` (compacted): what the backfill planned, what is finished and where it lies, what was asked for.
//!
//! Written as Avro with the schema `schemas/ledger.avsc`, one record whose body is a union; the Kafka key is
//! [`LedgerRecord::key`], so that the newest state of each thing stays.

use crate::avro::{Reader, frame, put_boolean, put_bytes, put_frame, put_items, put_long};
use crate::block::ChunkId;
use crate::{Error, Lsn, TableName};

/// The Avro schema of the topic's values.
pub const SCHEMA: &str = include_str!("../../schemas/ledger.avsc");

/// How a table is cut into chunks. Fixed once written: chunk n is the keys above bound n-1 and at or below bound n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub table: TableName,
    pub generation: u32,
    /// `pg_class.oid` on the source; 0: not known.
    pub oid: u32,
    /// Key columns in key order; empty for a keyless table, which is one chunk.
    pub key: Vec<String>,
    /// Upper bounds of all chunks but the last, each one text per key column: n bounds make n + 1 chunks.
    pub bounds: Vec<Vec<String>>,
    /// Estimates when it was planned, for progress.
    pub estimated_rows: u64,
    pub estimated_bytes: u64,
    /// Statements that make the table as it is copied, where there is none; what is there already stays as it is. Empty in the
    /// initial backfill, before which `dflux prepare` makes the tables.
    pub definition: Vec<String>,
}

impl Plan {
    pub fn chunks(&self) -> u32 {
        self.bounds.len() as u32 + 1
    }
}

/// A chunk whose blocks Kafka has all acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub id: ChunkId,
    pub attempt: u32,
    pub snapshot_lsn: Lsn,
    pub exact_snapshot: bool,
    pub row_count: u64,
    pub bytes: u64,
    /// Partition of the snapshot topic, and the offsets of the first and the last block in it.
    pub partition: i32,
    pub first_offset: i64,
    pub last_offset: i64,
}

/// All chunks of one generation of one table are in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCopied {
    pub table: TableName,
    pub generation: u32,
    pub chunks: u32,
    pub row_count: u64,
    /// The highest snapshot LSN of its chunks.
    pub snapshot_lsn: Lsn,
}

/// The initial backfill is complete: every table of it is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillCompleted {
    pub tables: Vec<TableName>,
    /// Apply is tolerant below this point and strict from it on: the highest snapshot LSN of a chunk. Below it tables may be
    /// ahead of each other.
    pub exact_from: Lsn,
}

/// A table is to be read as this generation: again, because the operator asked for it, or for the first time, because it is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncRequested {
    pub table: TableName,
    pub generation: u32,
    /// `pg_class.oid` on the source, where it has another name by now; 0: not known.
    pub oid: u32,
    /// What only readers of the ledger know: the marker in the source's WAL that begins it names it ([`begins`]).
    pub token: String,
}

/// The source cannot give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncRefused {
    pub table: TableName,
    pub generation: u32,
    pub reason: String,
}

const BEGINS: &str = "resync ";

/// The text of the marker with which a copy that was asked for begins: what the lane has of the table before it belongs to the
/// table as it was, what is behind it to the copy.
pub fn begins(token: &str) -> String {
    format!("{BEGINS}{token}")
}

/// The token, if the text of a marker is that of a beginning.
pub fn begun(marker: &str) -> Option<&str> {
    marker.strip_prefix(BEGINS)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerRecord {
    Plan(Plan),
    Chunk(Chunk),
    TableCopied(TableCopied),
    BackfillCompleted(BackfillCompleted),
    ResyncRequested(ResyncRequested),
    ResyncRefused(ResyncRefused),
}

impl LedgerRecord {
    /// The Kafka key: two records with one key are two states of one thing.
    pub fn key(&self) -> String {
        match self {
            LedgerRecord::Plan(plan) => format!("plan/{}/{}", plan.generation, plan.table.quoted()),
            LedgerRecord::Chunk(chunk) => {
                format!("chunk/{}/{}/{}", chunk.id.generation, chunk.id.chunk, chunk.id.table.quoted())
            }
            LedgerRecord::TableCopied(copied) => format!("copied/{}/{}", copied.generation, copied.table.quoted()),
            LedgerRecord::BackfillCompleted(_) => "completed".to_owned(),
            LedgerRecord::ResyncRequested(request) => {
                format!("resync/{}/{}", request.generation, request.table.quoted())
            }
            LedgerRecord::ResyncRefused(refused) => {
                format!("refused/{}/{}", refused.generation, refused.table.quoted())
            }
        }
    }

    /// Appends the framed record.
    pub fn encode(&self, schema_id: u32, out: &mut Vec<u8>) {
        put_frame(out, schema_id);
        match self {
            LedgerRecord::Plan(plan) => {
                put_long(out, 0);
                put_table(out, &plan.table);
                put_long(out, i64::from(plan.generation));
                put_texts(out, &plan.key);
                put_items(out, &plan.bounds, |out, bound| put_texts(out, bound));
                put_long(out, plan.estimated_rows as i64);
                put_long(out, plan.estimated_bytes as i64);
                put_texts(out, &plan.definition);
                put_long(out, i64::from(plan.oid));
            }
            LedgerRecord::Chunk(chunk) => {
                put_long(out, 1);
                put_table(out, &chunk.id.table);
                put_long(out, i64::from(chunk.id.generation));
                put_long(out, i64::from(chunk.id.chunk));
                put_long(out, i64::from(chunk.attempt));
                put_long(out, chunk.snapshot_lsn.0 as i64);
                put_boolean(out, chunk.exact_snapshot);
                put_long(out, chunk.row_count as i64);
                put_long(out, chunk.bytes as i64);
                put_long(out, i64::from(chunk.partition));
                put_long(out, chunk.first_offset);
                put_long(out, chunk.last_offset);
            }
            LedgerRecord::TableCopied(copied) => {
                put_long(out, 2);
                put_table(out, &copied.table);
                put_long(out, i64::from(copied.generation));
                put_long(out, i64::from(copied.chunks));
                put_long(out, copied.row_count as i64);
                put_long(out, copied.snapshot_lsn.0 as i64);
            }
            LedgerRecord::BackfillCompleted(completed) => {
                put_long(out, 3);
                put_items(out, &completed.tables, put_table);
                put_long(out, completed.exact_from.0 as i64);
            }
            LedgerRecord::ResyncRequested(request) => {
                put_long(out, 4);
                put_table(out, &request.table);
                put_long(out, i64::from(request.generation));
                put_long(out, i64::from(request.oid));
                put_bytes(out, request.token.as_bytes());
            }
            LedgerRecord::ResyncRefused(refused) => {
                put_long(out, 5);
                put_table(out, &refused.table);
                put_long(out, i64::from(refused.generation));
                put_bytes(out, refused.reason.as_bytes());
            }
        }
    }

    /// # Errors
    /// Corrupt bytes.
    pub fn decode(record: &[u8]) -> Result<LedgerRecord, Error> {
        let (_schema_id, body) = frame(record)?;
        let mut reader = Reader::new(body);
        let r = &mut reader;
        let decoded = match r.long()? {
            0 => LedgerRecord::Plan(plan(r)?),
            1 => LedgerRecord::Chunk(Chunk {
                id: ChunkId { table: table(r)?, generation: small(r)?, chunk: small(r)? },
                attempt: small(r)?,
                snapshot_lsn: Lsn(r.unsigned()?),
                exact_snapshot: r.boolean()?,
                row_count: r.unsigned()?,
                bytes: r.unsigned()?,
                partition: r.int()?,
                first_offset: r.long()?,
                last_offset: r.long()?,
            }),
            2 => LedgerRecord::TableCopied(TableCopied {
                table: table(r)?,
                generation: small(r)?,
                chunks: small(r)?,
                row_count: r.unsigned()?,
                snapshot_lsn: Lsn(r.unsigned()?),
            }),
            3 => {
                let tables = r.list(table)?;
                LedgerRecord::BackfillCompleted(BackfillCompleted { tables, exact_from: Lsn(r.unsigned()?) })
            }
            4 => LedgerRecord::ResyncRequested(ResyncRequested {
                table: table(r)?,
                generation: small(r)?,
                oid: if r.ended() { 0 } else { small(r)? },
                token: if r.ended() { String::new() } else { r.string()?.to_owned() },
            }),
            5 => LedgerRecord::ResyncRefused(ResyncRefused {
                table: table(r)?,
                generation: small(r)?,
                reason: r.string()?.to_owned(),
            }),
            _ => return Err(r.corrupt("an unknown kind of ledger record")),
        };
        reader.finish()?;
        Ok(decoded)
    }
}

fn plan(reader: &mut Reader<'_>) -> Result<Plan, Error> {
    let table = table(reader)?;
    let generation = small(reader)?;
    let key = texts(reader)?;
    let bounds = reader.list(texts)?;
    let (estimated_rows, estimated_bytes) = (reader.unsigned()?, reader.unsigned()?);
    let definition = if reader.ended() { Vec::new() } else { texts(reader)? };
    let oid = if reader.ended() { 0 } else { small(reader)? };
    Ok(Plan { table, generation, oid, key, bounds, estimated_rows, estimated_bytes, definition })
}

fn small(reader: &mut Reader<'_>) -> Result<u32, Error> {
    u32::try_from(reader.long()?).map_err(|_| reader.corrupt("a number out of range"))
}

fn put_table(out: &mut Vec<u8>, table: &TableName) {
    put_bytes(out, table.schema.as_bytes());
    put_bytes(out, table.name.as_bytes());
}

fn table(reader: &mut Reader<'_>) -> Result<TableName, Error> {
    Ok(TableName::new(reader.string()?, reader.string()?))
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_items(out, texts, |out, text| put_bytes(out, text.as_bytes()));
}

fn texts(reader: &mut Reader<'_>) -> Result<Vec<String>, Error> {
    reader.list(|r| Ok(r.string()?.to_owned()))
}
