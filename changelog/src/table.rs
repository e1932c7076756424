//! Tables and values as they flow: names, columns, and how a PostgreSQL type is carried in Avro.

use std::fmt;

/// Schema and name of a table, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }

    /// `"schema"."table"`, safe in SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.schema, self.name)
    }
}

/// An identifier in double quotes, safe in SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string in single quotes, safe in SQL whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        return format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// Makes a schema that is not there. Not `IF NOT EXISTS`, which asks for the right to make one even where it has nothing to do.
pub fn schema_sql(name: &str) -> String {
    let make = quote_literal(&format!("CREATE SCHEMA {}", quote_identifier(name)));
    let body = format!(
        "BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {}) THEN EXECUTE {make}; END IF; END",
        quote_literal(name)
    );
    format!("DO {}", quote_literal(&body))
}

/// What a change event says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Create,
    Update,
    Delete,
    Truncate,
    /// A row of the backfill.
    Read,
    /// No change, but a piece of an event that is too large for a record ([`crate::piece`]).
    Piece,
}

impl Op {
    pub fn code(self) -> &'static str {
        match self {
            Op::Create => "c",
            Op::Update => "u",
            Op::Delete => "d",
            Op::Truncate => "t",
            Op::Read => "r",
            Op::Piece => "p",
        }
    }

    pub fn from_code(code: &[u8]) -> Option<Op> {
        Some(match code {
            b"c" => Op::Create,
            b"u" => Op::Update,
            b"d" => Op::Delete,
            b"t" => Op::Truncate,
            b"r" => Op::Read,
            b"p" => Op::Piece,
            _ => return None,
        })
    }
}

/// REPLICA IDENTITY of the source table: what a before image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The primary key, or nothing if there is none.
    Default,
    /// A unique index.
    Index,
    /// The whole row.
    Full,
    Nothing,
}

impl Identity {
    pub fn name(self) -> &'static str {
        match self {
            Identity::Default => "default",
            Identity::Index => "index",
            Identity::Full => "full",
            Identity::Nothing => "nothing",
        }
    }

    pub fn from_name(name: &str) -> Option<Identity> {
        [Identity::Default, Identity::Index, Identity::Full, Identity::Nothing].into_iter().find(|i| i.name() == name)
    }

    /// From `pg_class.relreplident`, which pgoutput's Relation message carries too.
    pub fn from_relreplident(code: u8) -> Option<Identity> {
        Some(match code {
            b'd' => Identity::Default,
            b'i' => Identity::Index,
            b'f' => Identity::Full,
            b'n' => Identity::Nothing,
            _ => return None,
        })
    }
}

/// One column of a table, in the order that the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
    /// The type as SQL names it, schema-qualified and quoted where needed, without a modifier
    /// (`pg_catalog.int4`, `public.mood`): a cast to it never truncates.
    pub type_name: String,
    /// Place of the column in the table's key (0-based), if it is in it.
    pub key: Option<u16>,
    pub definition: Definition,
}

/// What the source's catalog says of a column beside its type. A change of it is carried to the target; values need none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definition {
    /// `pg_attribute.attnum`, which stays when the column is renamed; 0 where the catalog did not know the column any more.
    pub attnum: i16,
    /// Known only where the description was taken with the change itself: else a later one might be told too early.
    pub not_null: Option<bool>,
    /// The default's expression.
    pub default: Option<String>,
    /// What rows hold that were there before the column, as text (`attmissingval`): none where it is null or where the
    /// table was rewritten.
    pub missing: Option<String>,
    /// `pg_attribute.attidentity`: 'a' or 'd'.
    pub identity: Option<char>,
    /// Where it is not the type's own; quoted and with its schema.
    pub collation: Option<String>,
}

impl Column {
    pub fn kind(&self) -> Kind {
        Kind::of(self.type_oid, self.typmod)
    }
}

/// A table as its events describe it. The key is the primary key; where there is none, the replica identity index;
/// where there is neither, empty (a keyless table: a row is found by its whole image).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShape {
    pub database: String,
    pub table: TableName,
    /// `pg_class.oid` on the source, which stays when the table is renamed; 0: not known.
    pub oid: u32,
    pub identity: Identity,
    pub columns: Vec<Column>,
}

impl TableShape {
    /// Indexes into `columns`, in key order.
    pub fn key_columns(&self) -> Vec<usize> {
        let mut key: Vec<usize> = (0..self.columns.len()).filter(|i| self.columns[*i].key.is_some()).collect();
        key.sort_by_key(|i| self.columns[*i].key);
        key
    }

    pub fn keyless(&self) -> bool {
        self.columns.iter().all(|column| column.key.is_none())
    }
}

/// How a column's values are carried in Avro. Everything that is not typed is PostgreSQL's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Decimal { precision: u16, scale: u16 },
    Text,
    Bytes,
    Uuid,
    Date,
    Time,
    TimestampTz,
    Timestamp,
}

impl Kind {
    /// By type OID (those below 10,000 are the same in every cluster) and modifier.
    pub fn of(type_oid: u32, typmod: i32) -> Kind {
        match type_oid {
            16 => Kind::Boolean,
            17 => Kind::Bytes,
            20 => Kind::Long,
            21 | 23 => Kind::Int,
            700 => Kind::Float,
            701 => Kind::Double,
            1082 => Kind::Date,
            1083 => Kind::Time,
            1114 => Kind::Timestamp,
            1184 => Kind::TimestampTz,
            2950 => Kind::Uuid,
            1700 => Kind::numeric(typmod),
            _ => Kind::Text,
        }
    }

    /// numeric(p,s) with an ordinary scale; anything else (no modifier, negative scale, scale above precision, which
    /// PostgreSQL 15 allows and Avro does not) is text.
    fn numeric(typmod: i32) -> Kind {
        if typmod < 4 {
            return Kind::Text;
        }
        let packed = (typmod - 4) as u32;
        let precision = (packed >> 16) & 0xffff;
        // Eleven bits, signed: make_numeric_typmod of PostgreSQL's numeric.c.
        let scale = ((packed & 0x7ff) ^ 1024) as i32 - 1024;
        match u16::try_from(scale) {
            Ok(scale) if precision > 0 && u32::from(scale) <= precision => {
                Kind::Decimal { precision: precision as u16, scale }
            }
            _ => Kind::Text,
        }
    }

    /// Whether a key column of this kind is typed in a Kafka key; others are text there.
    pub fn typed_in_key(self) -> bool {
        matches!(self, Kind::Boolean | Kind::Int | Kind::Long | Kind::Uuid)
    }
}

/// One decoded value. Text is PostgreSQL's text form under the pinned session settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    /// A TOAST value that was not sent; neither null nor absent.
    Unchanged,
    Boolean(bool),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    /// Big-endian two's complement, to be divided by 10^scale.
    Decimal(&'a [u8]),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// 36 characters, lower case.
    Uuid(&'a str),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight; 24:00:00 is `Exact`.
    Time(i64),
    /// Microseconds since 1970-01-01 00:00 UTC.
    TimestampTz(i64),
    /// Microseconds since 1970-01-01 00:00, of no zone.
    Timestamp(i64),
    /// PostgreSQL's text of a value that the Avro type cannot hold (NaN of a decimal, infinity, BC …).
    Exact(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typmod(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7ff)) + 4
    }

    #[test]
    fn only_a_numeric_with_an_ordinary_scale_is_a_decimal() {
        assert_eq!(Kind::of(1700, typmod(10, 4)), Kind::Decimal { precision: 10, scale: 4 });
        assert_eq!(Kind::of(1700, typmod(1000, 1000)), Kind::Decimal { precision: 1000, scale: 1000 });
        assert_eq!(Kind::of(1700, typmod(5, 0)), Kind::Decimal { precision: 5, scale: 0 });
        for text in [-1, typmod(3, -2), typmod(3, 5), typmod(2, -1000), typmod(1, 1000)] {
            assert_eq!(Kind::of(1700, text), Kind::Text, "{text}");
        }
    }

    #[test]
    fn quoting_is_safe_for_quotes_and_backslashes() {
        assert_eq!(TableName::new("a\"b", "c.d").quoted(), "\"a\"\"b\".\"c.d\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}
