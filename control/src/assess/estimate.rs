//! How long it will take, and the plan that follows: from sizes and two measured rates to numbers. Pure.
//!
//! The rates are the source's own, measured. What lies behind them (Kafka, the target) is not measured here, so the duration
//! is a range: from what the source can deliver to [`PIPELINE_FACTOR`] times that.

use serde::Serialize;

/// Changes per second that one lane applies, with room to catch up (DESIGN 5: 49 k/s at 100 transactions per commit).
pub const LANE_CHANGES_PER_SECOND: f64 = 50_000.0;
/// The share of a lane that a steady load may use, so that a backlog ever shrinks.
const LANE_LOAD_MAX: f64 = 0.7;
/// What each reader after the first adds to the rate of one.
const WORKER_GAIN: f64 = 0.6;
const PIPELINE_FACTOR: f64 = 3.0;
/// Where nothing could be measured: a slow disk's sequential read.
const READ_BYTES_PER_SECOND_FALLBACK: f64 = 50e6;
/// Work of a chunk that is lost when it must be read again, and a target transaction's size.
const CHUNK_BYTES_OLTP: u64 = 64 << 20;
const CHUNK_BYTES_WAREHOUSE: u64 = 256 << 20;
const WAREHOUSE_BYTES: u64 = 1 << 40;
const SMALL_BYTES: u64 = 10 << 30;
/// A backlog is a record a change on Kafka, and a change event is about this much more than its WAL.
const EVENT_BYTES_PER_WAL_BYTE: f64 = 1.5;
/// How long Kafka may be away without the source dropping the slot's WAL.
const OUTAGE_SECONDS: f64 = 4.0 * 3600.0;
/// Rows per transaction from which the load is one of batches.
const BATCH_CHANGES_PER_TRANSACTION: f64 = 100.0;

/// What was counted and measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    pub tables: usize,
    pub rows: u64,
    pub bytes: u64,
    pub largest_table_rows: u64,
    pub largest_table_bytes: u64,
    /// One reader's rate over the sample; `None` where there was nothing to read.
    pub read_bytes_per_second: Option<f64>,
    pub read_rows_per_second: Option<f64>,
    pub wal_bytes_per_second: f64,
    pub changes_per_second: f64,
    pub transactions_per_second: f64,
    /// Over the life of the statistics.
    pub changes_per_second_average: f64,
    pub changes_per_transaction_average: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Below 10 GB: the defaults do.
    Small,
    /// Many small transactions.
    Oltp,
    /// At least 1 TB, or loaded in batches.
    Warehouse,
}

/// The plan: what to set, what it costs, how long it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub shape: Shape,
    /// The load comes in batches: it is far above its average at times and near nothing at others.
    pub batches: bool,
    pub backfill_workers: u16,
    pub chunk_rows: u64,
    pub chunks: u64,
    pub lanes: u32,
    pub backfill_seconds_least: u64,
    pub backfill_seconds_most: u64,
    /// From the end of the backfill until the lane is level with the source; `None`: one lane never gets there.
    pub catch_up_seconds: Option<u64>,
    /// Disk that Kafka needs for one copy: the snapshot, and the changes until the lane is level.
    pub kafka_bytes: u64,
    /// What `max_slot_wal_keep_size` should allow at least.
    pub wal_keep_bytes: u64,
    /// Disk that the target needs.
    pub target_bytes: u64,
}

pub fn plan(measured: &Measured) -> Plan {
    let changes = measured.changes_per_second.max(measured.changes_per_second_average);
    let batches = batch_shaped(measured);
    let shape = shape(measured.bytes, batches);
    let workers = workers(measured.bytes);
    let chunk_rows = chunk_rows(measured, shape);
    let rate = measured.read_bytes_per_second.filter(|rate| *rate > 0.0).unwrap_or(READ_BYTES_PER_SECOND_FALLBACK);
    let parallel = 1.0 + WORKER_GAIN * f64::from(workers - 1);
    let least = measured.bytes as f64 / (rate * parallel);
    let most = least * PIPELINE_FACTOR;
    let lanes = (changes / (LANE_CHANGES_PER_SECOND * LANE_LOAD_MAX)).ceil().clamp(1.0, 64.0);
    let catch_up = catch_up_seconds(changes, most, lanes);
    let span = most + catch_up.map_or(most, |seconds| seconds as f64);
    let kafka = measured.bytes as f64 + measured.wal_bytes_per_second * span * EVENT_BYTES_PER_WAL_BYTE;
    Plan {
        shape,
        batches,
        backfill_workers: workers,
        chunk_rows,
        chunks: measured.rows.div_ceil(chunk_rows).max(measured.tables as u64),
        lanes: lanes as u32,
        backfill_seconds_least: least.ceil() as u64,
        backfill_seconds_most: most.ceil() as u64,
        catch_up_seconds: catch_up,
        kafka_bytes: kafka as u64,
        wal_keep_bytes: ((measured.wal_bytes_per_second * OUTAGE_SECONDS) as u64).max(1 << 30),
        target_bytes: measured.bytes + measured.bytes / 2,
    }
}

/// Large transactions on average, or a load whose average is far above what flows at this moment although something ran.
fn batch_shaped(measured: &Measured) -> bool {
    let many_at_once = measured.changes_per_transaction_average >= BATCH_CHANGES_PER_TRANSACTION
        && measured.changes_per_second_average > 100.0;
    let quiet_now = measured.changes_per_second_average > 1_000.0
        && measured.changes_per_second * 10.0 < measured.changes_per_second_average;
    many_at_once || quiet_now
}

fn shape(bytes: u64, batches: bool) -> Shape {
    match bytes {
        0..SMALL_BYTES => Shape::Small,
        WAREHOUSE_BYTES.. => Shape::Warehouse,
        _ if batches => Shape::Warehouse,
        _ => Shape::Oltp,
    }
}

fn workers(bytes: u64) -> u16 {
    match bytes {
        0..SMALL_BYTES => 4,
        WAREHOUSE_BYTES.. => 16,
        _ => 8,
    }
}

/// Rows of one chunk, so that it has about the bytes that fit the shape; the default where rows are small.
fn chunk_rows(measured: &Measured, shape: Shape) -> u64 {
    let aim = match shape {
        Shape::Small => return 100_000,
        Shape::Oltp => CHUNK_BYTES_OLTP,
        Shape::Warehouse => CHUNK_BYTES_WAREHOUSE,
    };
    let width = measured.bytes.checked_div(measured.rows).unwrap_or(100).max(1);
    let rows = (aim / width).clamp(10_000, 5_000_000);
    // Round figures are easier to read and to say.
    let magnitude = 10_u64.pow(rows.ilog10());
    rows / magnitude * magnitude
}

/// The backlog is what was written while the rows were copied; it shrinks by what the lanes apply beyond the load.
fn catch_up_seconds(changes: f64, backfill_seconds: f64, lanes: f64) -> Option<u64> {
    let spare = LANE_CHANGES_PER_SECOND * lanes - changes;
    if spare <= 0.0 {
        return None;
    }
    Some((changes * backfill_seconds / spare).ceil() as u64)
}

/// `1 h 5 min`, `40 s`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Binary units with one digit.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bytes: u64, rows: u64, changes: f64) -> Measured {
        Measured {
            tables: 20,
            rows,
            bytes,
            read_bytes_per_second: Some(100e6),
            wal_bytes_per_second: changes * 300.0,
            changes_per_second: changes,
            changes_per_second_average: changes / 2.0,
            changes_per_transaction_average: 4.0,
            ..Measured::default()
        }
    }

    #[test]
    fn a_100_gb_oltp_database_and_a_10_tb_warehouse_get_different_plans() {
        let oltp = plan(&measured(100 << 30, 500_000_000, 5_000.0));
        assert_eq!((oltp.shape, oltp.backfill_workers, oltp.lanes), (Shape::Oltp, 8, 1));
        let warehouse = plan(&measured(10 << 40, 20_000_000_000, 2_000.0));
        assert_eq!((warehouse.shape, warehouse.backfill_workers), (Shape::Warehouse, 16));
        assert!(warehouse.chunk_rows > oltp.chunk_rows);
        assert!(warehouse.backfill_seconds_least > oltp.backfill_seconds_most);
    }

    #[test]
    fn a_load_beyond_one_lane_asks_for_more_lanes() {
        assert_eq!(plan(&measured(50 << 30, 1 << 28, 34_000.0)).lanes, 1);
        assert_eq!(plan(&measured(50 << 30, 1 << 28, 36_000.0)).lanes, 2);
        assert_eq!(plan(&measured(50 << 30, 1 << 28, 200_000.0)).lanes, 6);
    }

    #[test]
    fn more_to_copy_or_more_written_never_takes_less_time_or_room() {
        let mut before = plan(&measured(1 << 20, 1000, 10.0));
        for step in 1..30 {
            let next = plan(&measured((1 << 20) << (step / 2), 1000 << (step / 2), 10.0 + f64::from(step) * 500.0));
            assert!(next.kafka_bytes >= before.kafka_bytes, "{step}");
            assert!(next.lanes >= before.lanes);
            before = next;
        }
    }

    #[test]
    fn nightly_batches_are_seen_in_the_statistics() {
        let mut nightly = measured(200 << 30, 1 << 30, 0.0);
        nightly.changes_per_second_average = 8_000.0;
        assert!(plan(&nightly).batches);
        assert_eq!(plan(&nightly).shape, Shape::Warehouse);
        let mut loads = measured(200 << 30, 1 << 30, 1_000.0);
        loads.changes_per_transaction_average = 5_000.0;
        assert!(plan(&loads).batches);
        assert!(!plan(&measured(200 << 30, 1 << 30, 100.0)).batches);
    }

    #[test]
    fn an_empty_database_has_a_plan_too() {
        let plan = plan(&Measured::default());
        assert_eq!((plan.lanes, plan.backfill_seconds_most, plan.catch_up_seconds), (1, 0, Some(0)));
    }

    #[test]
    fn durations_and_sizes_read_well() {
        assert_eq!(
            (duration(59), duration(61), duration(3_700)),
            ("59 s".into(), "1 min 1 s".into(), "1 h 1 min".into())
        );
        assert_eq!((size(12), size(1536), size(10 << 40)), ("12 B".into(), "1.5 kB".into(), "10.0 TB".into()));
    }
}
