//! Every metric and log line of the validator.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::report::{LagReport, Report, TableReport};

pub const ROWS_VERIFIED: &str = "dflux_validator_verified_rows";
pub const CHUNKS_VERIFIED: &str = "dflux_validator_verified_chunks";
pub const SETTLED_BY_EVENT: &str = "dflux_validator_settled_by_event_rows";
pub const MISMATCHES: &str = "dflux_validator_mismatches_rows";
pub const RETRIES: &str = "dflux_validator_unsettled_attempts";
pub const ROUNDS: &str = "dflux_validator_rounds_total";
pub const CHANGED_ROUNDS: &str = "dflux_validator_changed_rounds_total";
pub const TABLE_VERIFIED_THROUGH: &str = "dflux_validator_table_verified_through_bytes";
pub const ROUND_ERRORS: &str = "dflux_validator_round_errors_total";
pub const ROUND_SECONDS: &str = "dflux_validator_round_seconds";
pub const TABLE_VERDICT: &str = "dflux_validator_table_verdict_code";
pub const VERDICT: &str = "dflux_validator_verdict_code";
pub const VERIFIED_THROUGH: &str = "dflux_validator_verified_through_bytes";
pub const VERIFIED_AT: &str = "dflux_validator_verified_timestamp_seconds";
pub const WINDOW_BYTES: &str = "dflux_validator_window_bytes";
pub const LAG_SECONDS: &str = "dflux_validator_lag_seconds";
pub const LAG_BYTES: &str = "dflux_validator_lag_bytes";

pub fn describe() {
    describe_counter!(ROWS_VERIFIED, Unit::Count, "Rows compared in both databases");
    describe_counter!(CHUNKS_VERIFIED, Unit::Count, "Ranges compared in both databases");
    describe_counter!(SETTLED_BY_EVENT, Unit::Count, "Rows in flight that were checked against their newest event");
    describe_counter!(MISMATCHES, Unit::Count, "Differences found, by table, level and cause");
    describe_counter!(RETRIES, Unit::Count, "Comparisons that said nothing and were tried again");
    describe_counter!(ROUNDS, Unit::Count, "Rounds over all tables that came to a verdict");
    describe_counter!(CHANGED_ROUNDS, Unit::Count, "Comparisons of what has changed since, between rounds");
    describe_gauge!(
        TABLE_VERIFIED_THROUGH,
        Unit::Bytes,
        "Source WAL position below which everything committed was verified, by table"
    );
    describe_counter!(ROUND_ERRORS, Unit::Count, "Rounds that failed");
    describe_gauge!(ROUND_SECONDS, Unit::Seconds, "Time that the newest round took");
    describe_gauge!(
        TABLE_VERDICT,
        Unit::Count,
        "Newest verdict of a table: 0 match, 1 mismatch, 2 inconclusive, 3 error"
    );
    describe_gauge!(VERDICT, Unit::Count, "Newest verdict over all: 0 match, 1 mismatch, 2 inconclusive, 3 error");
    describe_gauge!(VERIFIED_THROUGH, Unit::Bytes, "Source WAL position below which everything committed was verified");
    describe_gauge!(VERIFIED_AT, Unit::Seconds, "When the newest matching round began, as seconds since 1970");
    describe_gauge!(WINDOW_BYTES, Unit::Bytes, "Recent changes remembered");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "Lag by hop: capture, queue, apply, end_to_end, behind");
    describe_gauge!(LAG_BYTES, Unit::Bytes, "WAL written on the source and not yet applied on the target");
}

pub fn chunk_verified(rows: u64, settled_by_event: u64) {
    counter!(CHUNKS_VERIFIED).increment(1);
    counter!(ROWS_VERIFIED).increment(rows);
    counter!(SETTLED_BY_EVENT).increment(settled_by_event);
}

pub fn unsettled(table: &str, reason: &crate::settle::Unsettled) {
    counter!(RETRIES).increment(1);
    tracing::debug!(table, %reason, "nothing can be said yet");
}

pub fn table_verified(table: &TableReport) {
    gauge!(TABLE_VERDICT, "table" => table.table.clone()).set(f64::from(table.verdict.code()));
    for finding in table.findings.iter().filter(|finding| !finding.note) {
        let labels =
            [("table", table.table.clone()), ("level", finding.level.to_string()), ("cause", finding.cause.clone())];
        counter!(MISMATCHES, &labels).increment(finding.count);
    }
}

/// A round of the service, of everything or of what has changed; a single check says the same on its standard output.
pub fn round_verified(report: &Report, full: bool) {
    if full {
        counter!(ROUNDS).increment(1);
        gauge!(ROUND_SECONDS).set(report.seconds);
    } else {
        counter!(CHANGED_ROUNDS).increment(1);
    }
    gauge!(VERDICT).set(f64::from(report.verdict.code()));
    if let Some(through) = report.verified_through.as_deref().and_then(|text| text.parse::<changelog::Lsn>().ok()) {
        gauge!(VERIFIED_THROUGH).set(through.0 as f64);
        gauge!(VERIFIED_AT).set(report.started_at_micros as f64 / 1e6);
    }
    for table in &report.tables {
        let through = table.coverage.as_ref().and_then(|coverage| coverage.through.parse::<changelog::Lsn>().ok());
        if let Some(through) = through {
            gauge!(TABLE_VERIFIED_THROUGH, "table" => table.table.clone()).set(through.0 as f64);
        }
        for finding in table.findings.iter().filter(|finding| !finding.note) {
            let (level, cause, count, column) =
                (finding.level, &finding.cause, finding.count, finding.column.as_deref());
            tracing::error!(table = table.table, level, cause, count, column, "source and target differ");
        }
        if let Some(reason) = &table.reason {
            tracing::warn!(table = table.table, verdict = table.verdict.name(), reason, "not compared to the end");
        }
    }
    if !full && report.verdict == crate::verdict::Verdict::Match {
        return;
    }
    tracing::info!(
        verdict = report.verdict.name(),
        mode = report.mode,
        full,
        tables = report.tables.len(),
        seconds = report.seconds,
        verified_through = report.verified_through.as_deref().unwrap_or("-"),
        "round done"
    );
}

pub fn round_failed(error: &crate::Error) {
    counter!(ROUND_ERRORS).increment(1);
    gauge!(VERDICT).set(3.0);
    let text = service::report(error, service::Hint::hint(error));
    tracing::error!(error = text, "round failed");
}

pub fn lag(lag: &LagReport) {
    let hops = [
        ("capture", lag.capture_ms),
        ("queue", lag.queue_ms),
        ("apply", lag.apply_ms),
        ("end_to_end", lag.end_to_end_ms),
        ("behind", lag.behind_ms),
    ];
    for (hop, milliseconds) in hops {
        if let Some(milliseconds) = milliseconds {
            gauge!(LAG_SECONDS, "hop" => hop).set(milliseconds / 1000.0);
        }
    }
    if let Some(bytes) = lag.bytes {
        gauge!(LAG_BYTES).set(bytes as f64);
    }
}

pub fn window(bytes: usize) {
    gauge!(WINDOW_BYTES).set(bytes as f64);
}
