//! What the comparison takes from `dflux.toml`, and the bounds that are not the user's.

use std::time::Duration;

use changelog::Lane;
use changelog::origin::lane_name;
use service::Config;

use crate::levels::Levels;

/// Pairs of sessions that compare ranges at once.
pub const PAIRS: usize = 2;
/// Bytes of recent changes that are remembered.
pub const WINDOW_BYTES_MAX: usize = 64 << 20;
/// Keys in flight that one range settles by their events; more make it smaller.
pub const IN_FLIGHT_MAX: usize = 20_000;
/// A range is not cut below so many rows.
pub const CHUNK_ROWS_MIN: u64 = 1_000;
/// Change topics are read from so long before the start: a transaction may be in the WAL, and here, before snapshots see it.
pub const OVERLAP: Duration = Duration::from_secs(10);
/// One statement's bound, on the server and here.
pub const STATEMENT_SECONDS_MAX: u64 = 600;
/// A comparison that says nothing is tried so often.
pub const ATTEMPTS_MAX: u32 = 12;

/// Settings of one validator.
#[derive(Clone, Debug)]
pub struct Settings {
    pub chunk_rows: u64,
    pub settle: Duration,
    /// Seconds of statements on the source within a second, of all sessions together.
    pub max_source_load: f64,
    pub interval: Duration,
    /// Between two comparisons of what has changed; none between rounds.
    pub changed_interval: Option<Duration>,
    /// The lane that fills the target; of the reverse lane the two databases are exchanged.
    pub direction: Lane,
    /// `<migration>/<direction>`, the key of `dflux.lane`.
    pub lane: String,
    pub levels: Levels,
    /// Values of differing records are shown and not masked.
    pub show_values: bool,
}

impl Settings {
    pub fn of(config: &Config) -> Settings {
        Settings {
            chunk_rows: config.validator.chunk_rows,
            settle: Duration::from_secs(config.validator.settle_seconds_max),
            max_source_load: config.validator.max_source_load,
            interval: Duration::from_secs(config.validator.interval_seconds),
            changed_interval: Some(Duration::from_secs(config.validator.changed_interval_seconds))
                .filter(|interval| !interval.is_zero()),
            direction: Lane::Forward,
            lane: lane_name(&config.migration.name, Lane::Forward),
            levels: Levels::ALL,
            show_values: false,
        }
    }
}
