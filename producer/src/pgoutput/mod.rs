//! pgoutput, protocol version 1, with logical messages and origins: the bytes of one frame in, one [`Message`] out.
//!
//! Pure: it must never do I/O, keep state between messages, or know what a table means to us. State (open transaction,
//! known relations) is the business of [`crate::assemble`].
//!
//! The bytes come over a wire, so they are checked as input from a stranger: every read is bounded, a length is compared
//! with what is left before anything is taken or allocated, and a message must be used up to its last byte. A wrong byte
//! is a [`DecodeError`] that names the message and the offset; nothing here panics.
//!
//! Values are not copied. A [`TupleData`] keeps the frame's [`Bytes`] (a reference count on the read buffer) and where its
//! columns begin and end; its cells are slices of it. So a held tuple holds the read buffer that it came in.
//!
//! Format: PostgreSQL manual, "Logical Replication Message Formats"; `src/backend/replication/logical/proto.c`.

mod decode;
mod tuple;

use bytes::Bytes;
use changelog::Lsn;

pub use decode::decode;
pub use tuple::{Cell, Cells, TupleData};

/// Microseconds from the Unix epoch to PostgreSQL's (2000-01-01 00:00 UTC).
pub const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// One message of the plugin. Times are microseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin),
    Relation(Relation),
    Type(TypeName),
    Insert {
        relation_id: u32,
        after: TupleData,
    },
    Update {
        relation_id: u32,
        before: Before,
        after: TupleData,
    },
    /// `before` is never [`Before::Absent`].
    Delete {
        relation_id: u32,
        before: Before,
    },
    Truncate(Truncate),
    Logical(LogicalMessage),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Start of the commit record: the commit LSN.
    pub final_lsn: Lsn,
    pub commit_time_micros: i64,
    pub xid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Unused by the server so far (0).
    pub flags: u8,
    pub commit_lsn: Lsn,
    /// First byte after the commit record: what is confirmed to the slot.
    pub end_lsn: Lsn,
    pub commit_time_micros: i64,
}

/// The transaction was replayed from elsewhere (`pg_replication_origin_session_setup`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Commit LSN on the origin server.
    pub lsn: Lsn,
    pub name: String,
}

/// Sent before the first change of a table in a session and again after its definition may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    /// `pg_catalog` is spelled out (on the wire it is the empty string).
    pub schema: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Belongs to the replica identity. All columns do under REPLICA IDENTITY FULL.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key; nothing, where there is none.
    Default,
    Nothing,
    Full,
    Index,
}

/// Sent before the Relation message of a table that uses a type that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeName {
    pub oid: u32,
    pub schema: String,
    pub name: String,
}

/// What an update or delete says about the row as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// An update that changes no column of the replica identity.
    Absent,
    /// The replica identity's columns; the others are null because they were not sent.
    Key(TupleData),
    /// The whole row (REPLICA IDENTITY FULL).
    Row(TupleData),
}

impl Before {
    pub fn tuple(&self) -> Option<&TupleData> {
        match self {
            Self::Absent => None,
            Self::Key(tuple) | Self::Row(tuple) => Some(tuple),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    pub cascade: bool,
    pub restart_identity: bool,
    pub relation_ids: Vec<u32>,
}

/// What `pg_logical_emit_message` wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Part of a transaction; else it stands alone, at once, whatever becomes of the transaction that wrote it.
    pub transactional: bool,
    pub lsn: Lsn,
    pub prefix: String,
    pub content: Bytes,
}

/// Why the bytes are not a message. `offset` counts from the first byte (the tag) of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("an empty pgoutput message")]
    Empty,
    #[error("unknown pgoutput message tag {tag:#04x}; protocol version 1 has no such message")]
    UnknownTag { tag: u8 },
    #[error("pgoutput {message} message ends at offset {offset} where {what} ({needed} bytes) should stand")]
    Truncated { message: &'static str, what: &'static str, offset: usize, needed: usize },
    #[error("pgoutput {message} message has {what} {value} at offset {offset}")]
    Invalid { message: &'static str, what: &'static str, offset: usize, value: i64 },
    #[error("pgoutput {message} message has text that is not UTF-8 as {what} at offset {offset}")]
    NotUtf8 { message: &'static str, what: &'static str, offset: usize },
    #[error("pgoutput {message} message has {count} bytes too many from offset {offset}")]
    TrailingBytes { message: &'static str, offset: usize, count: usize },
}

impl DecodeError {
    /// What a person can do. All of these mean that server and decoder do not speak the same protocol.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "SHOW server_encoding; a SQL_ASCII database may hold names that are not UTF-8",
            Self::Empty
            | Self::UnknownTag { .. }
            | Self::Truncated { .. }
            | Self::Invalid { .. }
            | Self::TrailingBytes { .. } => {
                "the slot's plugin must be pgoutput and START_REPLICATION must ask for proto_version '1': \
                 SELECT slot_name, plugin FROM pg_replication_slots"
            }
        }
    }
}
