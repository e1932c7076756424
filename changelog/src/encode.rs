//! Change events to Avro: tuple slices into one buffer.

use std::sync::Arc;

use crate::avro::{put_boolean, put_bytes, put_frame, put_items, put_long};
use crate::table::{Column, Kind, Op, TableShape};
use crate::{Error, Header, Lane, Position, text};

/// One value as the server sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// A TOAST value that was not sent.
    Unchanged,
    /// PostgreSQL's text form.
    Text(&'a [u8]),
}

/// What a cell takes beside its text: its name (PostgreSQL's have at most 255 bytes), two lengths, or a number in eight bytes.
const CELL_BYTES_MOST: usize = 288;
/// The envelope without the names of database and table, the images and what is said of their columns.
const HEAD_BYTES_MOST: usize = 256;

/// Writes the events of one table, as one schema describes them. Buffers are kept between calls.
#[derive(Debug)]
pub struct EventEncoder {
    shape: Arc<TableShape>,
    kinds: Vec<Kind>,
    key_columns: Vec<usize>,
    value_schema_id: u32,
    key_schema_id: u32,
    /// `source`'s first three fields, the same in every event.
    origin: Vec<u8>,
    lane: Vec<u8>,
    rows: Vec<u8>,
    exact: Vec<(usize, Vec<u8>)>,
    before_exact: Vec<(usize, Vec<u8>)>,
}

impl EventEncoder {
    /// `key_schema_id` is not used for a keyless table.
    pub fn new(shape: Arc<TableShape>, lane: Lane, value_schema_id: u32, key_schema_id: u32) -> EventEncoder {
        let mut origin = Vec::new();
        put_bytes(&mut origin, shape.database.as_bytes());
        put_bytes(&mut origin, shape.table.schema.as_bytes());
        put_bytes(&mut origin, shape.table.name.as_bytes());
        let mut lane_name = Vec::new();
        put_bytes(&mut lane_name, lane.name().as_bytes());
        EventEncoder {
            kinds: shape.columns.iter().map(Column::kind).collect(),
            key_columns: shape.key_columns(),
            shape,
            value_schema_id,
            key_schema_id,
            origin,
            lane: lane_name,
            rows: Vec::new(),
            exact: Vec::new(),
            before_exact: Vec::new(),
        }
    }

    pub fn shape(&self) -> &Arc<TableShape> {
        &self.shape
    }

    /// Appends a framed value. `before` and `after` have one cell per column of the shape (a key-only before image has
    /// null in the others). In `after`, `Cell::Unchanged` is named in `unchanged`; in `before` it is null.
    ///
    /// # Errors
    /// A value that is not of its column's type, or not UTF-8; nothing usable is in `out` then.
    pub fn value(
        &mut self,
        out: &mut Vec<u8>,
        header: &Header,
        before: Option<&[Cell<'_>]>,
        after: Option<&[Cell<'_>]>,
    ) -> Result<(), Error> {
        self.rows.clear();
        self.exact.clear();
        self.before_exact.clear();
        let mut rows = std::mem::take(&mut self.rows);
        let mut exact = std::mem::take(&mut self.exact);
        let mut before_exact = std::mem::take(&mut self.before_exact);
        self.row(&mut rows, before, &mut before_exact, header)?;
        self.row(&mut rows, after, &mut exact, header)?;

        self.put_head(out, self.value_schema_id, header);
        self.put_unchanged(out, after);
        let names = |out: &mut Vec<u8>, (at, text): &(usize, Vec<u8>)| {
            put_bytes(out, self.shape.columns[*at].name.as_bytes());
            put_bytes(out, text);
        };
        put_items(out, &exact, names);
        put_items(out, &before_exact, names);
        out.extend_from_slice(&rows);
        (self.rows, self.exact, self.before_exact) = (rows, exact, before_exact);
        Ok(())
    }

    /// The frame, and the fields with which every record of the topic begins.
    pub(crate) fn put_head(&self, out: &mut Vec<u8>, schema_id: u32, header: &Header) {
        put_frame(out, schema_id);
        put_bytes(out, header.op.code().as_bytes());
        out.extend_from_slice(&self.origin);
        put_long(out, i64::from(header.xid));
        put_long(out, header.lsn.0 as i64);
        put_long(out, header.position.commit_lsn.0 as i64);
        put_long(out, header.position.ordinal as i64);
        put_long(out, i64::from(header.position.part));
        put_long(out, header.commit_time_micros);
        out.extend_from_slice(&self.lane);
        put_boolean(out, header.op == Op::Read);
    }

    /// No value of these cells has more bytes, so that what must be small need not be encoded to be known as such.
    pub fn value_bytes_most(&self, before: Option<&[Cell<'_>]>, after: Option<&[Cell<'_>]>) -> usize {
        let cell = |cell: &Cell<'_>| match cell {
            Cell::Null | Cell::Unchanged => CELL_BYTES_MOST,
            Cell::Text(text) => text.len() + CELL_BYTES_MOST,
        };
        let cells: usize = [before, after].into_iter().flatten().flatten().map(cell).sum();
        cells + self.head_bytes_most()
    }

    /// The same of an event without images.
    pub(crate) fn head_bytes_most(&self) -> usize {
        self.origin.len() + HEAD_BYTES_MOST
    }

    /// Gives back the memory that a large event took.
    pub fn release(&mut self) {
        (self.rows, self.exact, self.before_exact) = Default::default();
    }

    fn put_unchanged(&self, out: &mut Vec<u8>, after: Option<&[Cell<'_>]>) {
        let cells = after.unwrap_or_default();
        let count = cells.iter().filter(|cell| **cell == Cell::Unchanged).count();
        if count > 0 {
            put_long(out, count as i64);
            for (column, cell) in self.shape.columns.iter().zip(cells) {
                if *cell == Cell::Unchanged {
                    put_bytes(out, column.name.as_bytes());
                }
            }
        }
        out.push(0);
    }

    /// Appends a framed key, taken from an image that has the key columns. False for a keyless table: nothing appended.
    ///
    /// # Errors
    /// A key column that was not sent or is not of its type.
    pub fn key(&self, out: &mut Vec<u8>, position: &Position, image: &[Cell<'_>]) -> Result<bool, Error> {
        if self.key_columns.is_empty() {
            return Ok(false);
        }
        put_frame(out, self.key_schema_id);
        for at in &self.key_columns {
            let column = &self.shape.columns[*at];
            match image.get(*at) {
                Some(Cell::Text(text)) => {
                    out.push(2);
                    let kind = if self.kinds[*at].typed_in_key() { self.kinds[*at] } else { Kind::Text };
                    if put_typed(out, kind, text) != Typed::Written {
                        return Err(self.value_error(*at, position));
                    }
                }
                Some(Cell::Null) => out.push(0),
                Some(Cell::Unchanged) | None => {
                    return Err(Error::KeyUnchanged {
                        table: self.shape.table.to_string(),
                        column: column.name.clone(),
                        position: *position,
                    });
                }
            }
        }
        Ok(true)
    }

    fn row(
        &self,
        out: &mut Vec<u8>,
        image: Option<&[Cell<'_>]>,
        exact: &mut Vec<(usize, Vec<u8>)>,
        header: &Header,
    ) -> Result<(), Error> {
        let Some(cells) = image else {
            out.push(0);
            return Ok(());
        };
        if cells.len() != self.kinds.len() {
            return Err(Error::ColumnCount {
                table: self.shape.table.to_string(),
                columns: cells.len(),
                expected: self.kinds.len(),
                lsn: header.position.commit_lsn,
            });
        }
        out.push(2);
        for (at, (cell, kind)) in cells.iter().zip(&self.kinds).enumerate() {
            let Cell::Text(text) = cell else {
                out.push(0);
                continue;
            };
            let start = out.len();
            out.push(2);
            match put_typed(out, *kind, text) {
                Typed::Written => {}
                Typed::NeedsText => {
                    out.truncate(start);
                    out.push(0);
                    std::str::from_utf8(text).map_err(|_| self.value_error(at, &header.position))?;
                    exact.push((at, text.to_vec()));
                }
                Typed::Refused => return Err(self.value_error(at, &header.position)),
            }
        }
        Ok(())
    }

    fn value_error(&self, at: usize, position: &Position) -> Error {
        let column = &self.shape.columns[at];
        Error::Value {
            table: self.shape.table.to_string(),
            column: column.name.clone(),
            type_name: column.type_name.clone(),
            position: *position,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Typed {
    Written,
    /// A value of the type that the Avro type cannot hold: it is carried as text.
    NeedsText,
    /// Not a value of the type at all.
    Refused,
}

/// Appends a value after its union branch; leaves garbage behind unless `Written`.
fn put_typed(out: &mut Vec<u8>, kind: Kind, text: &[u8]) -> Typed {
    fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
        std::str::from_utf8(text).ok()?.parse().ok()
    }
    fn long(out: &mut Vec<u8>, number: Option<i64>, otherwise: Typed) -> Typed {
        match number {
            Some(number) => {
                put_long(out, number);
                Typed::Written
            }
            None => otherwise,
        }
    }
    match kind {
        Kind::Boolean => match text {
            b"t" => {
                out.push(1);
                Typed::Written
            }
            b"f" => {
                out.push(0);
                Typed::Written
            }
            _ => Typed::Refused,
        },
        Kind::Int => long(out, number::<i32>(text).map(i64::from), Typed::Refused),
        Kind::Long => long(out, number::<i64>(text), Typed::Refused),
        Kind::Float => match number::<f32>(text) {
            Some(value) => {
                out.extend_from_slice(&value.to_le_bytes());
                Typed::Written
            }
            None => Typed::Refused,
        },
        Kind::Double => match number::<f64>(text) {
            Some(value) => {
                out.extend_from_slice(&value.to_le_bytes());
                Typed::Written
            }
            None => Typed::Refused,
        },
        Kind::Decimal { scale, .. } => {
            let mut bytes = Vec::with_capacity(17);
            match text::parse_decimal(text, scale, &mut bytes) {
                Some(()) => {
                    put_bytes(out, &bytes);
                    Typed::Written
                }
                None => Typed::NeedsText,
            }
        }
        Kind::Text => match std::str::from_utf8(text) {
            Ok(_) => {
                put_bytes(out, text);
                Typed::Written
            }
            Err(_) => Typed::Refused,
        },
        Kind::Bytes => {
            // The length is known before the bytes are: two hexadecimal digits each after `\x`.
            put_long(out, (text.len().saturating_sub(2) / 2) as i64);
            match text::parse_bytea(text, out) {
                Some(()) => Typed::Written,
                None => Typed::Refused,
            }
        }
        Kind::Uuid if text::is_uuid(text) => {
            put_bytes(out, text);
            Typed::Written
        }
        Kind::Uuid => Typed::Refused,
        Kind::Date => long(out, text::parse_date(text).map(i64::from), Typed::NeedsText),
        Kind::Time => long(out, text::parse_time(text), Typed::NeedsText),
        Kind::TimestampTz => long(out, text::parse_timestamptz(text), Typed::NeedsText),
        Kind::Timestamp => long(out, text::parse_timestamp(text), Typed::NeedsText),
    }
}
