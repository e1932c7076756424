//! What can be wrong with bytes, names and values. Every variant says what and where; `hint` says what to do.

use crate::{Lsn, Position};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is not a WAL position such as 16/B374D848")]
    Lsn(String),
    #[error("record ends early: {needed} more bytes expected at byte {at}")]
    Truncated { at: usize, needed: usize },
    #[error("record is corrupt at byte {at}: {what}")]
    Corrupt { at: usize, what: &'static str },
    #[error("schema {id} is not one that dflux writes: {what}")]
    ForeignSchema { id: u32, what: String },
    #[error("schema id {found} where {expected} was expected")]
    SchemaId { found: u32, expected: u32 },
    #[error("{table}: {columns} columns in the change and {expected} in the table's shape at {lsn}")]
    ColumnCount { table: String, columns: usize, expected: usize, lsn: Lsn },
    #[error("{table}.{column} of type {type_name}: the server sent a value that is not of this type at {position}")]
    Value { table: String, column: String, type_name: String, position: Position },
    #[error("{table}.{column}: value is not UTF-8 at {position}")]
    Encoding { table: String, column: String, position: Position },
    #[error("{table}: key column {column} was not sent at {position}")]
    KeyUnchanged { table: String, column: String, position: Position },
    #[error("the pieces of an event do not fit together at {position}: {what}")]
    Piece { position: Position, what: String },
}

impl Error {
    /// What the operator can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Lsn(_) => Some("write it as two hexadecimal numbers with a slash between".into()),
            Error::Truncated { .. } | Error::Corrupt { .. } | Error::ForeignSchema { .. } | Error::SchemaId { .. } => {
                Some(
                    "another program writes to this topic, or it was damaged: give the migration a name of its own"
                        .into(),
                )
            }
            Error::ColumnCount { table, .. } => Some(format!("dflux resync {table}")),
            Error::Value { table, .. } | Error::Encoding { table, .. } => {
                Some(format!("report this with the column's type, then dflux resync {table}"))
            }
            Error::Piece { .. } => Some(
                "max.message.bytes of a table's topic may not be changed while the producer is in the middle of a transaction; \
                 begin the migration anew"
                    .into(),
            ),
            Error::KeyUnchanged { table, .. } => Some(format!("ALTER TABLE {table} REPLICA IDENTITY FULL")),
        }
    }
}
