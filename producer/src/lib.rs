//! The producer: source database to Kafka. DESIGN 2 to 4; the picture is in `stream` and `backfill`.

pub mod acknowledge;
pub mod assemble;
pub mod backfill;
pub mod error;
pub mod kept_session;
pub mod lane;
pub mod markers;
pub mod observe;
pub mod pgoutput;
pub mod pipeline;
pub mod publish;
pub mod resume;
pub mod sequences;
pub mod source;
pub mod stream;
pub mod tails;
pub mod topics;
pub mod walsender;
pub mod watch;

pub use error::Error;
pub use source::publication::{Prepared, prepare};
