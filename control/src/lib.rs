//! The `dflux` command: pre-flight, schema copy, status, resync, cleanup.
//!
//! It runs beside the services and never between them: it reads their tables and topics, and writes only what `prepare`,
//! `resync` and `cleanup` are asked for. Each command says what it did, and ends with the exit code of `error::Exit`.

pub mod assess;
pub mod cleanup;
pub mod cutover;
pub mod database;
pub mod error;
pub mod finding;
pub mod prepare;
pub mod repair;
pub mod resync;
pub mod status;
pub mod store;
pub mod tables;
pub mod topics;

pub use database::Database;
pub use error::{Error, Exit};
