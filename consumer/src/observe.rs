//! Every metric and every log line of the consumer.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

pub const CHANGES_APPLIED: &str = "dflux_consumer_changes_applied_total";
pub const TRANSACTIONS_APPLIED: &str = "dflux_consumer_transactions_applied_total";
pub const EVENTS_DROPPED: &str = "dflux_consumer_events_dropped_total";
pub const BATCH_CHANGES: &str = "dflux_consumer_batch_changes";
pub const FLUSH_SECONDS: &str = "dflux_consumer_flush_seconds";
pub const REPLAYS: &str = "dflux_consumer_replays_total";
pub const LAG_SECONDS: &str = "dflux_consumer_lag_seconds";
pub const LAG_NEWEST: &str = "dflux_consumer_lag_newest_seconds";
pub const PHASE: &str = "dflux_consumer_phase";
pub const CHUNKS_LOADED: &str = "dflux_consumer_chunks_loaded_total";
pub const ROWS_LOADED: &str = "dflux_consumer_rows_loaded_total";
pub const BYTES_LOADED: &str = "dflux_consumer_loaded_bytes_total";
pub const DIVERGED: &str = "dflux_consumer_diverged_total";
pub const EPOCH: &str = "dflux_consumer_epoch";
pub const LEADING: &str = "dflux_consumer_leading";
pub const APPLIED_LSN: &str = "dflux_consumer_applied_lsn_bytes";
pub const SEQUENCES_SET: &str = "dflux_consumer_sequences_set_total";
pub const ROGUE: &str = "dflux_consumer_rogue_transactions_total";
pub const SEQUENCES_BEHIND: &str = "dflux_consumer_sequences_behind";
pub const UNFILLED_COLUMNS: &str = "dflux_consumer_unfilled_columns";

const PHASES: [&str; 5] = ["loading", "indexing", "tolerant", "exact", "stopped"];

/// Says what each metric means; once, at start.
pub fn describe() {
    describe_counter!(CHANGES_APPLIED, "Changes committed to the target");
    describe_counter!(TRANSACTIONS_APPLIED, "Source transactions committed to the target");
    describe_counter!(EVENTS_DROPPED, "Resent events and control records that were dropped");
    describe_gauge!(BATCH_CHANGES, "Changes of the last target transaction");
    describe_histogram!(FLUSH_SECONDS, "Time from the first statement of a batch to its commit");
    describe_counter!(
        REPLAYS,
        "Batches applied again row by row, because their net effect was refused or missed a row"
    );
    describe_histogram!(
        LAG_SECONDS,
        "Age of a marker by hop: source to producer, producer to consumer, consumer to target, total"
    );
    describe_gauge!(LAG_NEWEST, "The newest marker's lag by hop");
    describe_gauge!(PHASE, "1 for the phase that the lane is in");
    describe_counter!(CHUNKS_LOADED, "Chunks of the backfill committed to the target");
    describe_counter!(ROWS_LOADED, "Rows of the backfill committed to the target");
    describe_counter!(BYTES_LOADED, "COPY bytes of the backfill committed to the target");
    describe_counter!(DIVERGED, "Changes that found no row in an exact lane");
    describe_gauge!(EPOCH, "Epoch of this instance's leadership");
    describe_gauge!(LEADING, "1 if this instance leads the lane, 0 if it stands by");
    describe_gauge!(APPLIED_LSN, "Commit LSN up to which the target has everything, as a byte position");
    describe_gauge!(
        UNFILLED_COLUMNS,
        "Columns of the target that the events of their table do not have and no default fills"
    );
    describe_counter!(SEQUENCES_SET, "Times that a sequence of the target was set");
    describe_gauge!(SEQUENCES_BEHIND, "Sequences that the target lacks or that could not be set");
    describe_counter!(ROGUE, "Transactions of the target that were written while the application was on the source");
    counter!(ROGUE).absolute(0);
    counter!(SEQUENCES_SET).absolute(0);
    gauge!(SEQUENCES_BEHIND).set(0.0);
    counter!(DIVERGED).absolute(0);
    counter!(CHANGES_APPLIED).absolute(0);
    gauge!(LEADING).set(0.0);
    gauge!(UNFILLED_COLUMNS).set(0.0);
}

pub fn phase(name: &str) {
    tracing::info!(phase = name, "phase of the lane");
    for phase in PHASES {
        gauge!(PHASE, "phase" => phase).set(if phase == name { 1.0 } else { 0.0 });
    }
}

pub fn batch(changes: u64, transactions: u64, seconds: f64) {
    counter!(CHANGES_APPLIED).increment(changes);
    counter!(TRANSACTIONS_APPLIED).increment(transactions);
    gauge!(BATCH_CHANGES).set(changes as f64);
    histogram!(FLUSH_SECONDS).record(seconds);
    tracing::debug!(changes, transactions, seconds, "batch committed");
}

pub fn applied_lsn(bytes: u64) {
    gauge!(APPLIED_LSN).set(bytes as f64);
}

/// One hop of one marker, in microseconds.
pub fn lag(hop: &'static str, micros: i64) {
    let seconds = micros as f64 / 1e6;
    histogram!(LAG_SECONDS, "hop" => hop).record(seconds);
    gauge!(LAG_NEWEST, "hop" => hop).set(seconds);
}

pub fn dropped() {
    counter!(EVENTS_DROPPED).increment(1);
}

pub fn replay(reason: &dyn std::fmt::Display) {
    counter!(REPLAYS).increment(1);
    tracing::debug!(%reason, "batch is applied row by row");
}

pub fn diverged(table: &str, position: &changelog::Position, op: &str) {
    counter!(DIVERGED).increment(1);
    tracing::error!(table, %position, op, "divergence: the change found no row");
}

pub fn chunk_loaded(chunk: &str, rows: u64, bytes: u64) {
    counter!(CHUNKS_LOADED).increment(1);
    counter!(ROWS_LOADED).increment(rows);
    counter!(BYTES_LOADED).increment(bytes);
    tracing::info!(chunk, rows, bytes, "chunk loaded");
}

pub fn chunk_abandoned(chunk: &str, attempt: u32) {
    tracing::info!(chunk, attempt, "half a chunk was left behind and is not loaded");
}

pub fn leading(epoch: i64, instance: &str) {
    gauge!(EPOCH).set(epoch as f64);
    gauge!(LEADING).set(1.0);
    tracing::info!(epoch, instance, "leading");
}

pub fn standing_by() {
    gauge!(LEADING).set(0.0);
    tracing::info!("another instance leads: standing by");
}

pub fn taking_over(reason: &str, ended: i64) {
    tracing::info!(reason, sessions_ended = ended, "taking over");
}

pub fn waiting(what: &str) {
    tracing::info!(what, "waiting");
}

pub fn trouble(error: &dyn std::error::Error) {
    tracing::warn!("{}", service::report(error_static(error).as_ref(), None));
}

/// The error's texts without its type, so that it can be reported from any lifetime.
fn error_static(error: &dyn std::error::Error) -> Box<dyn std::error::Error + 'static> {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("; caused by: {cause}"));
        source = cause.source();
    }
    text.into()
}

pub fn stopped(text: &str) {
    tracing::error!(error = text, "the lane stops");
}

pub fn index_built(what: &str, seconds: f64) {
    tracing::info!(what, seconds, "index built");
}

pub fn backfill_loaded(chunks: usize) {
    tracing::info!(chunks, "all chunks of the backfill are loaded");
}

pub fn reread(table: &str, keys: usize) {
    tracing::info!(table, keys, "rows with columns that were never sent are read again from the source");
}

pub fn resync(table: &str, generation: u32, state: &str) {
    tracing::info!(table, generation, state, "resync");
}

pub fn resync_failed(table: &str, error: &crate::Error) {
    tracing::error!(
        table,
        error = service::report(error, service::Hint::hint(error)),
        "the table is not built: it is tried again"
    );
}

pub fn unasked() {
    tracing::warn!("a marker in the source's WAL begins a copy of a table that nobody asked for: it is passed over");
}

pub fn rogue(table: &str, at: changelog::Position) {
    counter!(ROGUE).increment(1);
    tracing::error!(table, position = %at, "somebody writes to the target while the application is on the source: it is not brought to the source");
}

pub fn sequences_set(count: usize) {
    counter!(SEQUENCES_SET).increment(count as u64);
}

pub fn sequences_behind(count: usize) {
    gauge!(SEQUENCES_BEHIND).set(count as f64);
}

pub fn sequence_not_set(sequence: &str, reason: &str) {
    tracing::error!(
        sequence,
        reason,
        "the target's sequence is not kept in step: after a switch it would give values again"
    );
}

pub fn sequence_set_again(sequence: &str) {
    tracing::info!(sequence, "the target's sequence is in step again");
}

/// `all`: over all tables.
pub fn unfilled(table: &str, columns: &[&str], all: usize) {
    gauge!(UNFILLED_COLUMNS).set(all as f64);
    if !columns.is_empty() {
        let columns = columns.join(", ");
        tracing::warn!(
            table,
            columns,
            "the target has columns that the events lack: if the source dropped them, drop them in the target too"
        );
    }
}

/// A table of the target was changed as the source's was.
pub fn altered(table: &str, position: &changelog::Position, statement: &str) {
    tracing::info!(table, %position, statement, "table altered as in the source");
}

/// An enum of the target got a value that the source's has.
pub fn enum_altered(statement: &str) {
    tracing::info!(statement, "enum altered as in the source");
}

pub fn replica_role_not_granted() {
    tracing::warn!(
        "session_replication_role cannot be set by this role: keep user triggers and foreign keys out of the target until the cutover"
    );
}

pub fn origin_not_granted(error: &dyn std::fmt::Display) {
    tracing::info!(%error, "no replication origin: transactions are marked by a message");
}
