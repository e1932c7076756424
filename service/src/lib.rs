//! The shell: how a process loads its configuration, reports, measures, connects, retries and stops.
//!
//! Knows nothing of rows or WAL.

pub mod config;
mod config_store;
pub mod error;
pub mod kafka;
pub mod program;
pub mod registry;
pub mod retry;
pub mod session;
pub mod shutdown;
pub mod telemetry;

pub use config::Config;
pub use error::{Error, Hint, report};
pub use shutdown::Shutdown;

/// For librdkafka too (the feature that leaves malloc its name): records are allocated by one thread and freed by another,
/// which takes glibc's allocator twice as long.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
