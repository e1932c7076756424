//! Every metric and the log lines of state changes. Names are `dflux_producer_<what>_<unit>`.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

pub const CHANGES: &str = "dflux_producer_changes_total";
pub const BYTES: &str = "dflux_producer_bytes_total";
pub const TRANSACTIONS: &str = "dflux_producer_transactions_total";
pub const FILTERED: &str = "dflux_producer_transactions_filtered_total";
pub const MARKERS: &str = "dflux_producer_markers_total";
pub const CONFIRMED: &str = "dflux_producer_confirmed_lsn_bytes";
pub const RECEIVED: &str = "dflux_producer_received_lsn_bytes";
pub const QUEUED: &str = "dflux_producer_queue_records";
pub const CAPTURE_LAG: &str = "dflux_producer_capture_lag_seconds";
pub const RETAINED: &str = "dflux_producer_slot_retained_bytes";
pub const UNPUBLISHED: &str = "dflux_producer_unpublished_tables";
pub const SEQUENCES: &str = "dflux_producer_followed_sequences";
pub const UNREADABLE_SEQUENCES: &str = "dflux_producer_unreadable_sequences";
pub const RESTARTS: &str = "dflux_producer_session_restarts_total";
pub const BACKFILL_ROWS: &str = "dflux_producer_backfill_rows_total";
pub const BACKFILL_BYTES: &str = "dflux_producer_backfill_bytes_total";
pub const BACKFILL_CHUNKS: &str = "dflux_producer_backfill_chunks_total";
pub const BACKFILL_CHUNKS_PLANNED: &str = "dflux_producer_backfill_chunks_planned";
pub const BACKFILL_ROWS_PLANNED: &str = "dflux_producer_backfill_rows_planned";
pub const BACKFILL_REREAD: &str = "dflux_producer_backfill_chunks_reread_total";
pub const BACKFILL_THROTTLED: &str = "dflux_producer_backfill_throttled_seconds_total";

/// Describes every metric; once, after the recorder is installed.
pub fn describe() {
    describe_counter!(CHANGES, Unit::Count, "Change events published");
    describe_counter!(BYTES, Unit::Bytes, "Encoded bytes of change events, manifests and markers published");
    describe_counter!(TRANSACTIONS, Unit::Count, "Source transactions published");
    describe_counter!(FILTERED, Unit::Count, "Transactions that the other lane applied, not published");
    describe_counter!(MARKERS, Unit::Count, "Markers published");
    describe_gauge!(CONFIRMED, Unit::Bytes, "LSN confirmed to the slot, as a number");
    describe_gauge!(RECEIVED, Unit::Bytes, "Commit LSN of the newest transaction received, as a number");
    describe_gauge!(QUEUED, Unit::Count, "Records that wait for Kafka's acknowledgement");
    describe_histogram!(CAPTURE_LAG, Unit::Seconds, "Marker emitted on the source until decoded by the producer");
    describe_gauge!(RETAINED, Unit::Bytes, "WAL that the slot holds back on the source");
    describe_gauge!(UNPUBLISHED, Unit::Count, "Tables that match the patterns and are not published");
    describe_gauge!(SEQUENCES, Unit::Count, "Sequences of the migration whose values are read");
    describe_gauge!(UNREADABLE_SEQUENCES, Unit::Count, "Sequences of the migration that our user may not read");
    describe_counter!(RESTARTS, Unit::Count, "Sessions with the source begun again after a transient failure");
    describe_counter!(BACKFILL_ROWS, Unit::Count, "Rows of finished backfill chunks");
    describe_counter!(BACKFILL_BYTES, Unit::Bytes, "COPY bytes of finished backfill chunks");
    describe_counter!(BACKFILL_CHUNKS, Unit::Count, "Backfill chunks finished");
    describe_gauge!(BACKFILL_CHUNKS_PLANNED, Unit::Count, "Backfill chunks planned, finished ones included");
    describe_gauge!(BACKFILL_ROWS_PLANNED, Unit::Count, "Rows that the backfill's plans estimate");
    describe_counter!(BACKFILL_REREAD, Unit::Count, "Chunks read again because their table was rewritten");
    describe_counter!(BACKFILL_THROTTLED, Unit::Seconds, "Time that workers of the backfill waited for its limits");
    // A metric without a sample is not rendered: a reader could not tell 0 from unknown.
    for name in [
        CHANGES,
        BYTES,
        TRANSACTIONS,
        FILTERED,
        MARKERS,
        RESTARTS,
        BACKFILL_ROWS,
        BACKFILL_BYTES,
        BACKFILL_CHUNKS,
        BACKFILL_THROTTLED,
    ] {
        counter!(name).absolute(0);
    }
}

/// What the stream counts between two flushes: the recorder is not touched per change.
#[derive(Debug, Default)]
pub struct StreamCounts {
    pub changes: u64,
    pub bytes: u64,
    pub transactions: u64,
    pub filtered: u64,
    pub markers: u64,
}

impl StreamCounts {
    pub fn flush(&mut self) {
        for (name, count) in [
            (CHANGES, self.changes),
            (BYTES, self.bytes),
            (TRANSACTIONS, self.transactions),
            (FILTERED, self.filtered),
            (MARKERS, self.markers),
        ] {
            if count > 0 {
                counter!(name).increment(count);
            }
        }
        *self = StreamCounts::default();
    }
}

pub fn capture_lag(seconds: f64) {
    histogram!(CAPTURE_LAG).record(seconds);
}

pub fn set(name: &'static str, value: f64) {
    gauge!(name).set(value);
}

pub fn add(name: &'static str, count: u64) {
    counter!(name).increment(count);
}

/// A table's plan: chunks and rows to come.
pub fn add_planned(chunks: u64, rows: u64) {
    gauge!(BACKFILL_CHUNKS_PLANNED).increment(chunks as f64);
    gauge!(BACKFILL_ROWS_PLANNED).increment(rows as f64);
}
