//! The harness: real PostgreSQL servers, a real Kafka broker, a real schema registry and the real programs, started on
//! loopback on free ports, and ended with whoever started them.
//!
//! Everything here is synchronous and may be called from any thread, inside an asynchronous test or not: I/O that needs
//! a runtime has its own (`sql`, `kafka`). It must never touch a server that it did not start.
//!
//! ```text
//! stack ── postgres ─┐
//!       ├─ kafka ────┼─ process (a child that dies with us) ── scratch (its folder) ── ports (its address)
//!       ├─ registry ─┤   connect (a foreign reader of the topics)
//!       └─ services ─┘   wait (conditions with a deadline)   sql (a session)   cache (what ./dev fetched)   browser (looks at a page)
//! ```

pub mod browser;
pub mod cache;
pub mod connect;
pub mod error;
pub mod etcd;
pub mod kafka;
pub mod measure;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod registry;
pub mod scratch;
pub mod server;
pub mod services;
pub mod sql;
pub mod stack;
pub mod wait;

pub use error::{Failure, Result};
