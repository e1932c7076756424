//! One-dimensional PostgreSQL arrays in binary form, built value by value: what a set-based statement takes as a parameter.
//!
//! The wire form (`array_recv` of PostgreSQL): dimensions, whether there are nulls, element OID, length, lower bound, then
//! each element as a length and its bytes. The header is written first and corrected at the end.

use changelog::text::format_value;
use changelog::{Column, Value};

const HEADER_BYTES: usize = 20;
/// Microseconds and days from 1970-01-01, the events' epoch, to 2000-01-01, the server's.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;

/// How a column's values are passed: in their own binary form, or as text for the target's input function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    Boolean,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Text,
}

impl Carrier {
    /// By the type that the events' column has in the source.
    pub fn of(column: &Column) -> Carrier {
        match column.type_oid {
            16 => Carrier::Boolean,
            17 => Carrier::Bytea,
            20 => Carrier::Int8,
            21 => Carrier::Int2,
            23 => Carrier::Int4,
            700 => Carrier::Float4,
            701 => Carrier::Float8,
            1082 => Carrier::Date,
            1083 => Carrier::Time,
            1114 => Carrier::Timestamp,
            1184 => Carrier::Timestamptz,
            2950 => Carrier::Uuid,
            _ => Carrier::Text,
        }
    }

    /// OID of the element type, OID of its array type, and the array type in SQL.
    fn catalog(self) -> (u32, u32, &'static str) {
        match self {
            Carrier::Boolean => (16, 1000, "bool[]"),
            Carrier::Int2 => (21, 1005, "int2[]"),
            Carrier::Int4 => (23, 1007, "int4[]"),
            Carrier::Int8 => (20, 1016, "int8[]"),
            Carrier::Float4 => (700, 1021, "float4[]"),
            Carrier::Float8 => (701, 1022, "float8[]"),
            Carrier::Bytea => (17, 1001, "bytea[]"),
            Carrier::Uuid => (2950, 2951, "uuid[]"),
            Carrier::Date => (1082, 1182, "date[]"),
            Carrier::Time => (1083, 1183, "time[]"),
            Carrier::Timestamp => (1114, 1115, "timestamp[]"),
            Carrier::Timestamptz => (1184, 1185, "timestamptz[]"),
            Carrier::Text => (25, 1009, "text[]"),
        }
    }

    pub fn element_oid(self) -> u32 {
        self.catalog().0
    }

    pub fn array_name(self) -> &'static str {
        self.catalog().2
    }
}

/// A parameter, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawArray {
    pub bytes: Vec<u8>,
    pub array_oid: u32,
}

/// A value that the carrier cannot pass; the column goes as text then.
#[derive(Debug, PartialEq, Eq)]
pub struct NeedsText;

const NULL: [u8; 4] = (-1_i32).to_be_bytes();

fn put(out: &mut Vec<u8>, element: &[u8]) {
    out.extend_from_slice(&(element.len() as i32).to_be_bytes());
    out.extend_from_slice(element);
}

/// Appends a value of `column` as its length and its bytes, the form of an array's elements and of a binary COPY's fields;
/// one that was not sent counts as null.
///
/// # Errors
/// `NeedsText`; nothing was appended.
pub fn put_element(
    carrier: Carrier,
    value: &Value<'_>,
    column: &Column,
    out: &mut Vec<u8>,
    scratch: &mut String,
) -> Result<(), NeedsText> {
    match (carrier, *value) {
        (_, Value::Null | Value::Unchanged) => out.extend_from_slice(&NULL),
        (Carrier::Boolean, Value::Boolean(value)) => put(out, &[u8::from(value)]),
        (Carrier::Int2, Value::Int(number)) => {
            put(out, &i16::try_from(number).map_err(|_| NeedsText)?.to_be_bytes());
        }
        (Carrier::Int4, Value::Int(number)) => put(out, &number.to_be_bytes()),
        (Carrier::Int8, Value::Long(number)) => put(out, &number.to_be_bytes()),
        (Carrier::Float4, Value::Float(number)) => put(out, &number.to_be_bytes()),
        (Carrier::Float8, Value::Double(number)) => put(out, &number.to_be_bytes()),
        (Carrier::Bytea, Value::Bytes(bytes)) => put(out, bytes),
        (Carrier::Uuid, Value::Uuid(text)) => {
            let mut digits = text.bytes().filter(|digit| *digit != b'-');
            let number = digits
                .try_fold(0_u128, |number, digit| Some(number << 4 | u128::from(char::from(digit).to_digit(16)?)));
            put(out, &number.ok_or(NeedsText)?.to_be_bytes());
        }
        (Carrier::Date, Value::Date(days)) => put(out, &(days - EPOCH_DAYS).to_be_bytes()),
        (Carrier::Time, Value::Time(micros)) => put(out, &micros.to_be_bytes()),
        (Carrier::Timestamp, Value::Timestamp(micros)) | (Carrier::Timestamptz, Value::TimestampTz(micros)) => {
            put(out, &(micros - EPOCH_MICROS).to_be_bytes());
        }
        (Carrier::Text, Value::Text(text)) => put(out, text.as_bytes()),
        (Carrier::Text, value) => {
            scratch.clear();
            format_value(&value, column.kind(), scratch);
            put(out, scratch.as_bytes());
        }
        _ => return Err(NeedsText),
    }
    Ok(())
}

/// Grows by one element at a time.
#[derive(Debug)]
pub struct ArrayBuilder {
    carrier: Carrier,
    bytes: Vec<u8>,
    length: u32,
    has_null: bool,
    scratch: String,
}

impl ArrayBuilder {
    pub fn new(carrier: Carrier) -> ArrayBuilder {
        ArrayBuilder { carrier, bytes: vec![0; HEADER_BYTES], length: 0, has_null: false, scratch: String::new() }
    }

    pub fn push_null(&mut self) {
        self.length += 1;
        self.has_null = true;
        self.bytes.extend_from_slice(&NULL);
    }

    /// Appends a value of `column`; one that was not sent counts as null.
    ///
    /// # Errors
    /// `NeedsText`; nothing was appended.
    pub fn push(&mut self, value: &Value<'_>, column: &Column) -> Result<(), NeedsText> {
        self.has_null |= matches!(value, Value::Null | Value::Unchanged);
        put_element(self.carrier, value, column, &mut self.bytes, &mut self.scratch)?;
        self.length += 1;
        Ok(())
    }

    pub fn push_count(&mut self, count: i64) {
        put(&mut self.bytes, &count.to_be_bytes());
        self.length += 1;
    }

    pub fn finish(mut self) -> RawArray {
        let (element_oid, array_oid, _) = self.carrier.catalog();
        let mut header = [0_u8; HEADER_BYTES];
        let words = [1, u32::from(self.has_null), element_oid, self.length, 1];
        for (place, word) in header.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
        RawArray { bytes: self.bytes, array_oid }
    }
}
