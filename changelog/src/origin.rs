//! How the consumer marks the transactions that it writes, and how the producer of the other lane knows them again.
//!
//! A mark names the migration and the lane. A database may be the target of one migration and the source of another: what the
//! first one's consumer writes there, the second one's producer must carry. So marks are compared whole, never by a prefix.

use crate::Lane;

/// Prefix of the message that begins a transaction where replication origins are not granted. Its content is the lane's name.
pub const MESSAGE_PREFIX: &str = "dflux.origin";

/// `<migration>/<lane>`.
pub fn lane_name(migration: &str, lane: Lane) -> String {
    format!("{migration}/{lane}")
}

/// The replication origin of the consumer of the lane of this name.
pub fn origin_name(lane_name: &str) -> String {
    format!("dflux {lane_name}")
}
