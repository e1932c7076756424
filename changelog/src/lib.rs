//! The contract: what flows between producer, consumer and validator, and how it is written on Kafka.
//!
//! One example, followed through the pipeline:
//!
//! ```text
//! UPDATE accounts SET balance = 7 WHERE id = 1;        -- on the source, first change of its transaction
//!   pgoutput Update ─> Cell::{Text, Null, Unchanged}   -- tuple slices
//!     EventEncoder  ─> Kafka record in m.forward.public.accounts, key = {id: 1}, value = Envelope (Avro)
//!     Manifest      ─> m.forward-transactions: xid, commit LSN, "1 event in partition 0 of that topic"
//!   EventDecoder    ─> Event { op: Update, position, before, after } with typed `Value`s
//! ```
//!
//! Pure: no tokio, no sockets, no clock, no environment. Bytes in, values out. `tests/system/tidy.rs` keeps it so.

pub mod avro;
pub mod block;
pub mod control;
pub mod decode;
pub mod encode;
pub mod error;
pub mod fence;
pub mod ledger;
pub mod lsn;
pub mod origin;
pub mod piece;
pub mod position;
pub mod schema;
pub mod sequence;
pub mod table;
pub mod text;
pub mod topics;

pub use block::Block;
pub use control::{Birth, LaneRecord, Manifest, Marker, PartitionCount, SchemaChange, Sequences, TableChange};
pub use decode::{Event, EventDecoder, Head, Header};
pub use encode::{Cell, EventEncoder};
pub use error::Error;
pub use ledger::LedgerRecord;
pub use lsn::Lsn;
pub use piece::Joiner;
pub use position::Position;
pub use sequence::Sequence;
pub use table::{Column, Definition, Identity, Kind, Op, TableName, TableShape, Value};
pub use topics::{Lane, Topics};
