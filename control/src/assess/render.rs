//! The report as text.

use std::fmt::Write as _;

use super::Report;
use super::estimate::{Shape, duration, size};
use crate::finding::{self, Severity};

const TABLES_SHOWN: usize = 10;

pub fn text(report: &Report) -> String {
    let mut out = finding::render(&report.findings);
    let _ = write_sizes(&mut out, report);
    let _ = write_plan(&mut out, report);
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let _ = writeln!(
        out,
        "\n{}: {} blocker(s), {} warning(s), {} note(s)",
        report.verdict,
        count(Severity::Blocker),
        count(Severity::Warning),
        count(Severity::Note)
    );
    out
}

fn write_sizes(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(measured) = &report.measured else { return Ok(()) };
    writeln!(out, "\nsizes: {} table(s), about {} rows, {}", measured.tables, measured.rows, size(measured.bytes))?;
    for table in report.tables.iter().take(TABLES_SHOWN) {
        writeln!(out, "  {:<50} {:>14} rows {:>12}", table.table, table.estimated_rows, size(table.bytes))?;
    }
    if report.tables.len() > TABLES_SHOWN {
        writeln!(out, "  and {} more", report.tables.len() - TABLES_SHOWN)?;
    }
    if let (Some(bytes), Some(rows)) = (measured.read_bytes_per_second, measured.read_rows_per_second) {
        writeln!(out, "measured: one reader gets {}/s, {rows:.0} rows/s", size(bytes as u64))?;
    }
    writeln!(
        out,
        "measured: the source writes {}/s of WAL, {:.0} changes/s in {:.0} transactions/s (average {:.0} changes/s)",
        size(measured.wal_bytes_per_second as u64),
        measured.changes_per_second,
        measured.transactions_per_second,
        measured.changes_per_second_average
    )
}

fn write_plan(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(plan) = &report.plan else { return Ok(()) };
    let shape = match plan.shape {
        Shape::Small => "small",
        Shape::Oltp => "OLTP",
        Shape::Warehouse => "warehouse",
    };
    writeln!(out, "\nplan ({shape}{}):", if plan.batches { ", written in batches" } else { "" })?;
    let (workers, rows) = (plan.backfill_workers, plan.chunk_rows);
    writeln!(
        out,
        "  backfill    {workers} workers, chunks of {rows} rows, about {} chunk(s), {} lane(s)",
        plan.chunks, plan.lanes
    )?;
    let (least, most) = (duration(plan.backfill_seconds_least), duration(plan.backfill_seconds_most));
    writeln!(out, "  duration    backfill {least} to {most}, then {}", catch_up(plan.catch_up_seconds))?;
    writeln!(out, "  Kafka       {} per replica, retention unlimited until cleanup", size(plan.kafka_bytes))?;
    writeln!(
        out,
        "  source WAL  released from the first minute; keep at least {} for outages",
        size(plan.wal_keep_bytes)
    )?;
    writeln!(out, "  target      {} with indexes", size(plan.target_bytes))
}

fn catch_up(seconds: Option<u64>) -> String {
    match seconds {
        Some(seconds) => format!("catch-up within {}", duration(seconds.max(1))),
        None => "no catch-up with this many lanes".into(),
    }
}
