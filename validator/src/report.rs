//! What a check says: JSON for machines, a table for people. Pure.
//!
//! Keys are named. Values are shown only where `--show-values` asks for them; the statistics of a column of numbers or times
//! have its least and greatest, as statistics do.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value as Json;

use crate::cause::Text;
use crate::compare::{Aggregates, Counts};
use crate::coverage::Coverage;
use crate::statistics::Distribution;
use crate::trace::Traced;
use crate::verdict::Verdict;

/// Keys named in one finding; the count goes on.
pub const KEYS_MAX: usize = 20;
/// Keys that one check hands on to be mended.
const WRONG_ROWS_MAX: usize = 10_000;
/// Differing values kept as records of one table.
pub const RECORDS_MAX: usize = 1_000;
/// Differing columns, causes and objects listed for one table.
const FINDINGS_MAX: usize = 500;

/// One kind of difference in one column of one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// 0 schema and types, 1 rows, 2 values, 3 distributions, 4 null rates, 5 sampled records.
    pub level: u8,
    pub column: Option<String>,
    pub cause: String,
    pub count: u64,
    /// True when not all differing rows were looked at one by one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub count_is_minimum: bool,
    /// One text for a key of one column, else a list; at most [`KEYS_MAX`].
    pub keys: Vec<Json>,
    /// Names and types of the two sides; never a value of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Worth knowing, but no difference (an index that is built later).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub note: bool,
}

impl Finding {
    /// A level 0 finding.
    pub fn schema(column: Option<&str>, cause: &str, detail: impl Into<String>) -> Finding {
        Finding {
            level: 0,
            column: column.map(str::to_owned),
            cause: cause.to_owned(),
            count: 1,
            count_is_minimum: false,
            keys: Vec::new(),
            detail: Some(detail.into()),
            note: false,
        }
    }

    pub fn rows(level: u8, column: Option<&str>, cause: &str, keys: Vec<Json>) -> Finding {
        Finding {
            level,
            column: column.map(str::to_owned),
            cause: cause.to_owned(),
            count: keys.len() as u64,
            count_is_minimum: false,
            keys,
            detail: None,
            note: false,
        }
    }

    pub fn as_note(mut self) -> Finding {
        self.note = true;
        self
    }

    fn alike(&self, other: &Finding) -> bool {
        self.level != 0
            && (self.level, &self.column, &self.cause, &self.detail)
                == (other.level, &other.column, &other.cause, &other.detail)
    }
}

/// A key as the report shows it.
pub fn key_json(parts: &[Option<String>]) -> Json {
    match parts {
        [only] => Json::from(only.clone()),
        several => Json::from(several.to_vec()),
    }
}

/// The parts of a key that the report shows; none of a row without a key.
fn key_texts(key: &Json) -> Option<Vec<String>> {
    let parts = match key {
        Json::String(only) => vec![only.clone()],
        Json::Array(several) => several.iter().map(|part| part.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        _ => return None,
    };
    Some(parts).filter(|parts| !parts.is_empty())
}

/// One value, as the report shows it: masked it is its type and its length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordValue {
    pub kind: String,
    /// In characters; none of a null.
    pub length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl RecordValue {
    pub fn of(kind: &str, value: Option<Text<'_>>, show: bool) -> RecordValue {
        let Some(value) = value else { return RecordValue { kind: "null".into(), length: None, text: None } };
        let text = show.then(|| value.start.to_owned());
        RecordValue { kind: kind.to_owned(), length: Some(value.length), text }
    }
}

/// One row, or one value of it, that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    pub level: u8,
    pub key: Json,
    /// None of a whole row.
    pub column: Option<String>,
    pub cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<RecordValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<RecordValue>,
    /// The first character, from 0, that is not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs_at: Option<u64>,
}

impl Record {
    /// A row that one side has and the other has not, or not so often.
    pub fn row(level: u8, key: Json, cause: &str) -> Record {
        let cause = cause.to_owned();
        Record { level, key, column: None, cause, detail: None, source: None, target: None, differs_at: None }
    }
}

/// Exact counts of one side of a column, and of how many rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideCounts {
    pub rows: u64,
    #[serde(flatten)]
    pub counts: Counts,
}

/// Both sides' counts, of the rows that were compared with each other: all but those in flight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    pub source: SideCounts,
    pub target: SideCounts,
}

impl Counted {
    /// Of field `at`; none if they were not counted.
    pub fn of(source: &Aggregates, target: &Aggregates, at: usize) -> Option<Counted> {
        let side = |of: &Aggregates| Some(SideCounts { rows: of.rows, counts: *of.counts.get(at)? });
        Some(Counted { source: side(source)?, target: side(target)? })
    }
}

/// One column of both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ColumnReport {
    pub column: String,
    pub type_name: String,
    /// If it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_target: Option<String>,
    /// Level 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
    /// Level 3, of a sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
}

/// The result for one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableReport {
    pub table: String,
    pub verdict: Verdict,
    /// Why it is inconclusive, or the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub rows_source: Option<u64>,
    pub rows_target: Option<u64>,
    pub findings: Vec<Finding>,
    pub columns: Vec<ColumnReport>,
    /// Rows and values that differ, at most [`RECORDS_MAX`].
    pub records: Vec<Record>,
    /// Those known beyond; a minimum where a finding's count is one.
    pub records_left_out: u64,
    /// Rows of the sample that were compared value by value.
    pub records_sampled: u64,
    /// Where the rows that differ went wrong, while a lane runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traced: Vec<Traced>,
    /// Only rows that have changed since this position were compared; what was before was verified then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Of a table that matches, while a lane runs: what `--since` needs of this report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// Ranges compared, and rows in flight that were checked against their newest event.
    pub chunks: u64,
    pub rows_settled_by_event: u64,
    pub seconds: f64,
    /// Keys of the rows that differ, for who mends them; at most [`WRONG_ROWS_MAX`].
    #[serde(skip)]
    pub wrong_rows: BTreeSet<Vec<String>>,
}

impl TableReport {
    pub fn new(table: impl Into<String>) -> TableReport {
        TableReport {
            table: table.into(),
            verdict: Verdict::Match,
            reason: None,
            rows_source: None,
            rows_target: None,
            findings: Vec::new(),
            columns: Vec::new(),
            records: Vec::new(),
            records_left_out: 0,
            records_sampled: 0,
            traced: Vec::new(),
            since: None,
            coverage: None,
            chunks: 0,
            rows_settled_by_event: 0,
            seconds: 0.0,
            wrong_rows: BTreeSet::new(),
        }
    }

    /// Adds a finding to its like; anything but a note is a mismatch.
    pub fn find(&mut self, finding: Finding) {
        if !finding.note {
            self.verdict = self.verdict.worst(Verdict::Mismatch);
            let room = WRONG_ROWS_MAX.saturating_sub(self.wrong_rows.len());
            self.wrong_rows.extend(finding.keys.iter().filter_map(key_texts).take(room));
        }
        if let Some(known) = self.findings.iter_mut().find(|known| known.alike(&finding)) {
            known.count += finding.count;
            known.count_is_minimum |= finding.count_is_minimum;
            known.keys.extend(finding.keys);
            known.keys.truncate(KEYS_MAX);
        } else if self.findings.len() < FINDINGS_MAX {
            let mut finding = finding;
            finding.keys.truncate(KEYS_MAX);
            self.findings.push(finding);
        }
    }

    /// A table of which nothing was read is no match, however it came to that.
    pub fn conclude(&mut self) {
        if self.verdict == Verdict::Match && self.chunks == 0 && self.since.is_none() {
            self.inconclusive("no row of it was compared");
        }
    }

    pub fn inconclusive(&mut self, reason: impl Into<String>) {
        self.verdict = self.verdict.worst(Verdict::Inconclusive);
        self.reason.get_or_insert_with(|| reason.into());
    }

    pub fn failed(&mut self, error: impl Into<String>) {
        self.verdict = self.verdict.worst(Verdict::Error);
        self.reason = Some(error.into());
    }
}

/// Lag of each hop, from the newest applied marker, and of the lane in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LagReport {
    /// Emitted on the source to decoded by the producer.
    pub capture_ms: Option<f64>,
    /// Decoded to fetched by the consumer.
    pub queue_ms: Option<f64>,
    /// Fetched to committed on the target.
    pub apply_ms: Option<f64>,
    /// Emitted on the source to committed on the target.
    pub end_to_end_ms: Option<f64>,
    /// Source clock now, less the emission of the newest applied marker: what a reader of the target may miss.
    pub behind_ms: Option<f64>,
    /// WAL written on the source and not yet applied.
    pub bytes: Option<u64>,
}

/// The whole check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub version: u32,
    pub migration: String,
    /// `online` while a lane runs between the two, else `offline`: compared as they stand.
    pub mode: &'static str,
    pub verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Microseconds since 1970-01-01 UTC.
    pub started_at_micros: i64,
    pub seconds: f64,
    /// Everything committed on the source below this WAL position was verified in every table.
    pub verified_through: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagReport>,
    pub tables: Vec<TableReport>,
}

impl Report {
    /// Of these tables, before [`conclude`](Report::conclude).
    pub fn new(migration: &str, mode: &'static str, tables: Vec<TableReport>) -> Report {
        Report {
            version: 1,
            migration: migration.to_owned(),
            mode,
            verdict: Verdict::Match,
            reason: None,
            started_at_micros: 0,
            seconds: 0.0,
            verified_through: None,
            lag: None,
            tables,
        }
    }

    /// The verdict over all tables and the whole's own.
    pub fn conclude(&mut self) {
        let tables = Verdict::of(self.tables.iter().map(|table| table.verdict));
        for table in &mut self.tables {
            table.coverage.take_if(|_| table.verdict != Verdict::Match);
        }
        self.verdict = if self.tables.is_empty() { self.verdict.worst(tables) } else { self.verdict.max(tables) };
        if self.tables.is_empty() && self.reason.is_none() {
            self.reason = Some("no table is selected by [migration] tables".into());
        }
    }

    /// For people: one line a table, findings below it.
    pub fn printed(&self) -> String {
        let mut text = String::new();
        let width = self.tables.iter().map(|table| table.table.len()).max().unwrap_or(5).clamp(5, 60);
        let _ = writeln!(text, "{:width$}  {:>14}  {:>14}  verdict", "table", "rows source", "rows target");
        for table in &self.tables {
            let rows = |rows: Option<u64>| rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string());
            let _ = write!(
                text,
                "{:width$}  {:>14}  {:>14}  {}",
                table.table,
                rows(table.rows_source),
                rows(table.rows_target),
                table.verdict.name()
            );
            let _ = match &table.reason {
                Some(reason) => writeln!(text, ": {reason}"),
                None => writeln!(text),
            };
            if let Some(since) = &table.since {
                let _ = writeln!(text, "    only rows that have changed since {since}");
            }
            for finding in &table.findings {
                print_finding(&mut text, finding);
            }
            for Traced { hop, rows, .. } in &table.traced {
                let _ = writeln!(text, "    {rows} rows went wrong {}", hop.words());
            }
        }
        if let Some(reason) = &self.reason {
            let _ = writeln!(text, "{reason}");
        }
        let _ = writeln!(text, "{} ({}, {:.1} s)", self.verdict.name(), self.mode, self.seconds);
        text
    }
}

fn print_finding(text: &mut String, finding: &Finding) {
    let note = if finding.note { "note" } else { "DIFFERS" };
    let column = finding.column.as_deref().map(|column| format!(" column {column}")).unwrap_or_default();
    let _ = write!(text, "    {note}: level {}{column}: {}", finding.level, finding.cause);
    if finding.level > 0 {
        let least = if finding.count_is_minimum { "at least " } else { "" };
        let _ = write!(text, ", {least}{} rows", finding.count);
    }
    if let Some(detail) = &finding.detail {
        let _ = write!(text, " ({detail})");
    }
    if !finding.keys.is_empty() {
        let keys: Vec<String> = finding.keys.iter().take(5).map(Json::to_string).collect();
        let more = if finding.count > keys.len() as u64 { ", …" } else { "" };
        let _ = write!(text, ", keys {}{more}", keys.join(", "));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_one_kind_are_gathered_and_their_keys_bounded() {
        let mut table = TableReport::new("public.t");
        for chunk in 0..5_u32 {
            let keys = (0..10).map(|key| Json::from(chunk * 10 + key)).collect();
            table.find(Finding::rows(2, Some("v"), "value_differs", keys));
        }
        assert_eq!((table.findings.len(), table.findings[0].count, table.findings[0].keys.len()), (1, 50, KEYS_MAX));
        assert_eq!(table.verdict, Verdict::Mismatch);
    }

    #[test]
    fn a_note_is_no_mismatch_and_a_reason_is_no_match() {
        let mut table = TableReport::new("t");
        table.find(Finding::schema(None, "index_missing", "i").as_note());
        assert_eq!(table.verdict, Verdict::Match);
        table.inconclusive("lag");
        table.inconclusive("later reasons do not hide the first");
        assert_eq!((table.verdict, table.reason.as_deref()), (Verdict::Inconclusive, Some("lag")));
        table.find(Finding::schema(None, "index_missing", "i"));
        assert_eq!(table.verdict, Verdict::Mismatch);
    }

    #[test]
    fn a_table_of_which_no_range_was_compared_is_no_match() {
        let mut table = TableReport::new("t");
        table.conclude();
        assert_eq!(table.verdict, Verdict::Inconclusive);
        let mut table = TableReport { chunks: 1, ..TableReport::new("t") };
        table.conclude();
        assert_eq!(table.verdict, Verdict::Match);
    }

    #[test]
    fn the_json_has_the_fields_that_are_held_stable() {
        let mut report = Report::new("m", "offline", vec![TableReport::new("public.t")]);
        report.tables[0].find(Finding::rows(2, Some("v"), "scale_lost", vec![Json::from("1")]));
        report.conclude();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["verdict"], "mismatch");
        let table = &json["tables"][0];
        for field in ["table", "verdict", "rows_source", "rows_target", "findings"] {
            assert!(table.get(field).is_some(), "{field}");
        }
        for field in ["level", "column", "cause", "count", "keys"] {
            assert!(table["findings"][0].get(field).is_some(), "{field}");
        }
        report.tables.clear();
        report.verdict = Verdict::Match;
        report.conclude();
        assert_eq!(report.verdict, Verdict::Inconclusive);
    }
}
