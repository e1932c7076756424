//! The consumer: events from Kafka become rows of the target, in source order, each transaction whole, exactly once.
//!
//! ```text
//!  -transactions ─┐                ┌─ Relation (catalog)
//!  table topics ──┴ subscribe ─ merge ─ plan ─ dialect ─ target: rows + dflux.lane in one transaction
//!  -snapshot, -ledger ─ load: one chunk = one COPY = one transaction
//! ```
//!
//! Pure modules (no tokio, rdkafka, sqlx or clock): `merge`, `event`, `ledger`, `relation`, `evolve`, `plan`, `array`, `dialect`. Progress is
//! kept only in the target, in the schema `dflux`; a process holds nothing that another could miss.

pub mod admission;
pub mod array;
pub mod catalog;
pub mod dialect;
pub mod enums;
pub mod error;
pub mod event;
pub mod evolve;
pub mod execute;
pub mod follow;
pub mod identity;
pub mod index;
pub mod lane;
pub mod lead;
pub mod ledger;
pub mod load;
pub mod merge;
pub mod observe;
pub mod pipeline;
pub mod plan;
pub mod reader;
pub mod relation;
pub mod reread;
pub mod resync;
pub mod rule;
pub mod schema;
pub mod sequence;
pub mod subscribe;
pub mod target;

pub use error::Error;
