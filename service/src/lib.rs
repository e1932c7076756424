//! The shell: how a process loads its configuration, reports, measures, connects, retries and stops.
//!
//! Knows nothing of rows or WAL.

pub mod config;
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
