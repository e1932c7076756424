//! Change events from Avro: a header that is cheap to read, and rows that are decoded only when they are needed.

use std::sync::Arc;

use crate::avro::{Reader, frame};
use crate::table::{Column, Kind, Op, TableShape, Value};
use crate::{Error, Lsn, Position, schema};

/// What the envelope says before the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub op: Op,
    pub xid: u32,
    /// WAL position of the change itself (for a row of the backfill, the snapshot's).
    pub lsn: Lsn,
    pub position: Position,
    /// Commit time on the source, microseconds since 1970-01-01 UTC.
    pub commit_time_micros: i64,
}

/// What can be read of an event without its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub schema_id: u32,
    pub header: Header,
    /// Whether there are columns that were not sent in `after`.
    pub has_unchanged: bool,
}

/// One event, its images still encoded.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    pub header: Header,
    /// Indexes of the columns that were not sent in `after`.
    pub unchanged: Vec<usize>,
    exact: Vec<(usize, &'a str)>,
    before_exact: Vec<(usize, &'a str)>,
    images: Reader<'a>,
}

/// Reads the events of one schema.
#[derive(Clone, Debug)]
pub struct EventDecoder {
    shape: Arc<TableShape>,
    kinds: Vec<Kind>,
    schema_id: u32,
}

impl EventDecoder {
    /// # Errors
    /// `ForeignSchema` if the schema is not one of dflux's.
    pub fn new(schema_id: u32, schema: &str) -> Result<EventDecoder, Error> {
        let shape = Arc::new(schema::shape_of(schema, schema_id)?);
        Ok(EventDecoder { kinds: shape.columns.iter().map(Column::kind).collect(), shape, schema_id })
    }

    pub fn shape(&self) -> &Arc<TableShape> {
        &self.shape
    }

    pub fn schema_id(&self) -> u32 {
        self.schema_id
    }

    /// The head of a framed record of any dflux schema: enough for order and counting, without its schema.
    pub fn head(record: &[u8]) -> Result<Head, Error> {
        let (schema_id, body) = frame(record)?;
        let mut reader = Reader::new(body);
        let header = header(&mut reader)?;
        // A piece goes on with something else.
        Ok(Head { schema_id, header, has_unchanged: header.op != Op::Piece && reader.long()? != 0 })
    }

    /// # Errors
    /// Corrupt bytes, or a record of another schema.
    pub fn event<'a>(&self, record: &'a [u8]) -> Result<Event<'a>, Error> {
        let (id, body) = frame(record)?;
        if id != self.schema_id {
            return Err(Error::SchemaId { found: id, expected: self.schema_id });
        }
        let mut reader = Reader::new(body);
        let header = header(&mut reader)?;
        let mut unchanged = Vec::new();
        reader.items(|r| {
            unchanged.push(self.column(r)?);
            Ok(())
        })?;
        let exact = self.texts(&mut reader)?;
        let before_exact = self.texts(&mut reader)?;
        Ok(Event { header, unchanged, exact, before_exact, images: reader })
    }

    /// Decodes both images: `before` and `after` are filled with one value per column and told apart from absent.
    /// Checks that the record ends there.
    pub fn images<'a>(
        &self,
        event: &Event<'a>,
        before: &mut Vec<Value<'a>>,
        after: &mut Vec<Value<'a>>,
    ) -> Result<(bool, bool), Error> {
        let mut reader = event.images;
        let has_before = self.image(&mut reader, &event.before_exact, &[], before)?;
        let has_after = self.image(&mut reader, &event.exact, &event.unchanged, after)?;
        reader.finish()?;
        Ok((has_before, has_after))
    }

    fn image<'a>(
        &self,
        reader: &mut Reader<'a>,
        exact: &[(usize, &'a str)],
        unchanged: &[usize],
        out: &mut Vec<Value<'a>>,
    ) -> Result<bool, Error> {
        out.clear();
        if !reader.present()? {
            return Ok(false);
        }
        for kind in &self.kinds {
            out.push(if reader.present()? { value(reader, *kind)? } else { Value::Null });
        }
        for (at, text) in exact {
            out[*at] = Value::Exact(text);
        }
        for at in unchanged {
            out[*at] = Value::Unchanged;
        }
        Ok(true)
    }

    fn texts<'a>(&self, reader: &mut Reader<'a>) -> Result<Vec<(usize, &'a str)>, Error> {
        let mut texts = Vec::new();
        reader.items(|r| {
            let at = self.column(r)?;
            texts.push((at, r.string()?));
            Ok(())
        })?;
        Ok(texts)
    }

    fn column(&self, reader: &mut Reader<'_>) -> Result<usize, Error> {
        let name = reader.string()?;
        let at = self.shape.columns.iter().position(|column| column.name == name);
        at.ok_or_else(|| reader.corrupt("it names a column that the schema lacks"))
    }
}

pub(crate) fn header(reader: &mut Reader<'_>) -> Result<Header, Error> {
    let op = Op::from_code(reader.bytes()?).ok_or_else(|| reader.corrupt("unknown op"))?;
    for _name in 0..3 {
        reader.bytes()?;
    }
    let xid = u32::try_from(reader.long()?).map_err(|_| reader.corrupt("xid out of range"))?;
    let lsn = Lsn(reader.unsigned()?);
    let commit_lsn = Lsn(reader.unsigned()?);
    let ordinal = reader.unsigned()?;
    let part = u32::try_from(reader.long()?).map_err(|_| reader.corrupt("part out of range"))?;
    let commit_time_micros = reader.long()?;
    reader.bytes()?; // lane
    reader.boolean()?; // snapshot: the op says it
    Ok(Header { op, xid, lsn, position: Position { commit_lsn, ordinal, part }, commit_time_micros })
}

fn value<'a>(reader: &mut Reader<'a>, kind: Kind) -> Result<Value<'a>, Error> {
    Ok(match kind {
        Kind::Boolean => Value::Boolean(reader.boolean()?),
        Kind::Int => Value::Int(reader.int()?),
        Kind::Long => Value::Long(reader.long()?),
        Kind::Float => Value::Float(reader.float()?),
        Kind::Double => Value::Double(reader.double()?),
        Kind::Decimal { .. } => Value::Decimal(reader.bytes()?),
        Kind::Text => Value::Text(reader.string()?),
        Kind::Bytes => Value::Bytes(reader.bytes()?),
        Kind::Uuid => Value::Uuid(reader.string()?),
        Kind::Date => Value::Date(reader.int()?),
        Kind::Time => Value::Time(reader.long()?),
        Kind::TimestampTz => Value::TimestampTz(reader.long()?),
        Kind::Timestamp => Value::Timestamp(reader.long()?),
    })
}
