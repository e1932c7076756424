//! `Block`: a few hundred kilobytes of COPY output of one chunk, verbatim.
//!
//! A chunk is a range of a table's key, read by one COPY; its blocks lie in one partition, in order, `sequence` counting from 0 and
//! the last one marked. The bytes of a chunk's blocks, put together, are what COPY FROM takes.

use crate::avro::{Reader, frame, put_boolean, put_bytes, put_frame, put_items, put_long};
use crate::{Error, Lsn, TableName};

/// The Avro schema of the topic's values.
pub const SCHEMA: &str = include_str!("../../schemas/block.avsc");

/// How COPY wrote the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyFormat {
    Binary,
    Text,
}

impl CopyFormat {
    pub fn name(self) -> &'static str {
        match self {
            CopyFormat::Binary => "binary",
            CopyFormat::Text => "text",
        }
    }
}

/// Which reading of which chunk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChunkId {
    pub table: TableName,
    /// Counts the copies of the table: 0 for the first, one more for each re-sync.
    pub generation: u32,
    /// Place of the range in the plan, from 0.
    pub chunk: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    pub id: ChunkId,
    /// Counts the readings of this chunk, from 1.
    pub attempt: u32,
    /// Events with a commit LSN at or above this are not in the rows; see `exact_snapshot` for those below.
    pub snapshot_lsn: Lsn,
    /// True under a slot's snapshot: every transaction below `snapshot_lsn` is in the rows. False: some may not be.
    pub exact_snapshot: bool,
    pub columns: Vec<&'a str>,
    pub format: CopyFormat,
    pub sequence: u32,
    pub last: bool,
    /// Rows of the whole chunk, in the last block; 0 before.
    pub row_count: u64,
    pub rows: &'a [u8],
}

impl<'a> Block<'a> {
    /// Appends the framed record.
    pub fn encode(&self, schema_id: u32, out: &mut Vec<u8>) {
        out.reserve(self.rows.len() + 256);
        put_frame(out, schema_id);
        put_bytes(out, self.id.table.schema.as_bytes());
        put_bytes(out, self.id.table.name.as_bytes());
        put_long(out, i64::from(self.id.generation));
        put_long(out, i64::from(self.id.chunk));
        put_long(out, i64::from(self.attempt));
        put_long(out, self.snapshot_lsn.0 as i64);
        put_boolean(out, self.exact_snapshot);
        put_items(out, &self.columns, |out, name| put_bytes(out, name.as_bytes()));
        put_bytes(out, self.format.name().as_bytes());
        put_long(out, i64::from(self.sequence));
        put_boolean(out, self.last);
        put_long(out, self.row_count as i64);
        put_bytes(out, self.rows);
    }

    /// # Errors
    /// Corrupt bytes.
    pub fn decode(record: &'a [u8]) -> Result<Block<'a>, Error> {
        let (_schema_id, body) = frame(record)?;
        let mut reader = Reader::new(body);
        let r = &mut reader;
        let unsigned = |r: &mut Reader<'a>| u32::try_from(r.long()?).map_err(|_| r.corrupt("a number out of range"));
        let table = TableName::new(r.string()?, r.string()?);
        let id = ChunkId { table, generation: unsigned(r)?, chunk: unsigned(r)? };
        let attempt = unsigned(r)?;
        let snapshot_lsn = Lsn(r.unsigned()?);
        let exact_snapshot = r.boolean()?;
        let columns = r.list(Reader::string)?;
        let format = match r.string()? {
            "binary" => CopyFormat::Binary,
            "text" => CopyFormat::Text,
            _ => return Err(r.corrupt("a format that is neither binary nor text")),
        };
        let sequence = unsigned(r)?;
        let last = r.boolean()?;
        let row_count = r.unsigned()?;
        let rows = r.bytes()?;
        reader.finish()?;
        Ok(Block { id, attempt, snapshot_lsn, exact_snapshot, columns, format, sequence, last, row_count, rows })
    }
}
