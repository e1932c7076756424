//! What was gathered over a table's ranges becomes its report: differences with their causes, records, and per column the exact
//! counts (level 4) and the sample's distribution (level 3). Pure.
//!
//! Levels 3 and 4 raise no alarm of their own while level 2 runs: a column whose keyed sums are equal is equal, whatever a
//! sample says. They say how a column differs that level 2 has found. Level 5 compares the sampled rows value by value as
//! this process has read them, which rests on no hash: what it finds in an equal column would be a fault of level 2.

use std::collections::{BTreeMap, HashMap};

use crate::attempt::Verified;
use crate::compare::{Aggregates, Counts};
use crate::difference::{Differences, Explaining, Reported, ValueDifference};
use crate::levels::Levels;
use crate::report::{ColumnReport, Counted, Finding, Record, SideCounts, TableReport, key_json};
use crate::statistics::{Distribution, Measure, SampledRow, Samples, distribution};

/// Distances from which on a distribution is called another one: the usual bound of the PSI, and as much for KS.
const SHIFTED: f64 = 0.1;
/// Half the sum of differences between the shares of character classes.
const CHARACTERS_SHIFTED: f64 = 0.05;

/// What the ranges of one table have yielded so far.
#[derive(Debug, Default)]
pub struct Gathered {
    compared: Option<(Aggregates, Aggregates)>,
    samples: Samples,
    differences: Differences,
}

impl Gathered {
    pub fn add(&mut self, verified: &mut Verified) {
        if let Some((source, target)) = verified.compared.take() {
            self.compared = Some(match self.compared.take() {
                None => (source, target),
                Some((a, b)) => (a.plus(&source), b.plus(&target)),
            });
        }
        let (source, target) = std::mem::take(&mut verified.sample);
        self.samples.extend(source, target);
        self.differences.extend(std::mem::take(&mut verified.differences));
    }

    /// Puts everything into the table's report.
    pub fn conclude(self, explaining: &Explaining<'_>, levels: Levels, report: &mut TableReport) {
        let reported = explaining.report(self.differences);
        let Reported { findings, records, left_out, .. } = reported;
        findings.into_iter().filter(|finding| levels.has(finding.level)).for_each(|finding| report.find(finding));
        if levels.has(5) {
            report.records = records.into_iter().filter(|record| levels.has(record.level)).collect();
            report.records_left_out = left_out;
            sampled_records(explaining, levels, &self.samples, report);
        }
        let differing = |report: &TableReport, column: &str| {
            let named = |finding: &Finding| finding.level == 2 && finding.column.as_deref() == Some(column);
            !levels.has(2) || report.findings.iter().any(named)
        };
        for (at, name) in explaining.fields.iter().enumerate() {
            let (Some(source), Some(target)) = (explaining.source.column(name), explaining.target.column(name)) else {
                continue;
            };
            let counted = self.compared.as_ref().and_then(|(a, b)| Counted::of(a, b, at)).filter(|_| levels.has(4));
            let sampled = levels.has(3) && !self.samples.source.is_empty() && !self.samples.target.is_empty();
            let distribution = sampled.then(|| distribution(source, at, &self.samples));
            if differing(report, name) {
                let found = counted.iter().flat_map(|counted| of_counts(name, counted));
                let shifted = distribution.iter().flat_map(|distribution| of_distribution(name, distribution));
                found.chain(shifted).collect::<Vec<_>>().into_iter().for_each(|finding| report.find(finding));
            }
            report.columns.push(ColumnReport {
                column: name.clone(),
                type_name: source.type_name.clone(),
                type_target: Some(target.type_name.clone()).filter(|target| *target != source.type_name),
                counted,
                distribution,
            });
        }
        if !levels.prove() && report.chunks > 0 {
            report.inconclusive("level 2 was not run: counts and samples prove no equality");
        }
    }
}

/// Level 4: counts over the same rows of both sides that differ.
fn of_counts(column: &str, counted: &Counted) -> Vec<Finding> {
    type Count = fn(&Counts) -> u64;
    let kinds: [(&str, Count); 4] = [
        ("null_rate", |counts| counts.nulls),
        ("empty_rate", |counts| counts.empty),
        ("nan_rate", |counts| counts.nan),
        ("infinity_rate", |counts| counts.infinite),
    ];
    let rate = |side: &SideCounts, count: u64| 100.0 * count as f64 / side.rows.max(1) as f64;
    let one = |(cause, count): (&str, Count)| {
        let (source, target) = (count(&counted.source.counts), count(&counted.target.counts));
        let mut finding = Finding::rows(4, Some(column), cause, Vec::new());
        finding.count = source.abs_diff(target);
        finding.detail = Some(format!(
            "source {:.2} % ({source}), target {:.2} % ({target})",
            rate(&counted.source, source),
            rate(&counted.target, target)
        ));
        (source != target).then_some(finding)
    };
    kinds.into_iter().filter_map(one).collect()
}

/// Level 3: distances between the two sides of the sample.
fn of_distribution(column: &str, found: &Distribution) -> Vec<Finding> {
    let sampled = found.source.sampled.min(found.target.sampled);
    let finding = |cause: &str, detail: String| {
        let mut finding = Finding::rows(3, Some(column), cause, Vec::new());
        (finding.count, finding.detail) = (sampled, Some(detail));
        finding
    };
    let mut findings = Vec::new();
    let ks = found.ks.unwrap_or(0.0);
    if ks >= SHIFTED || found.psi >= SHIFTED {
        let what = if found.measure == Measure::Length { "lengths: " } else { "" };
        let ks = found.ks.map_or(String::new(), |ks| format!("KS {ks:.2}, "));
        findings.push(finding("distribution_shifted", format!("{what}{ks}PSI {:.2}", found.psi)));
    }
    if let Some(distance) = found.characters_distance.filter(|distance| *distance >= CHARACTERS_SHIFTED) {
        findings.push(finding(
            "characters_shifted",
            format!("{:.0} % of the characters are of other classes", distance * 100.0),
        ));
    }
    let (source, target) = (found.source.distinct, found.target.distinct);
    if source.abs_diff(target) * 10 > source.max(target) {
        findings.push(finding("distinct_values_changed", format!("source {source}, target {target}")));
    }
    findings
}

/// Level 5: the sampled rows of both sides, value by value.
fn sampled_records(explaining: &Explaining<'_>, levels: Levels, samples: &Samples, report: &mut TableReport) {
    if explaining.key.is_empty() {
        // Rows without a key are known by their content alone: a changed one is not the same row.
        return;
    }
    let key = |row: &SampledRow| {
        let part = |at: &usize| row.values.get(*at).cloned().flatten().map(|read| read.start);
        key_json(&explaining.key.iter().map(part).collect::<Vec<_>>())
    };
    let by_key = |rows: &'_ [SampledRow]| -> HashMap<i64, usize> {
        rows.iter().enumerate().map(|(at, row)| (row.key_hash, at)).collect()
    };
    let (source, target) = (by_key(&samples.source), by_key(&samples.target));
    if !levels.has(1) {
        for (cause, rows, others) in
            [("missing_row", &samples.source, &target), ("extra_row", &samples.target, &source)]
        {
            let lone: Vec<_> = rows.iter().filter(|row| !others.contains_key(&row.key_hash)).map(key).collect();
            report.records.extend(lone.iter().map(|key| Record::row(5, key.clone(), cause)));
            if !lone.is_empty() {
                report.find(Finding::rows(5, None, cause, lone));
            }
        }
    }
    let mut by_field: BTreeMap<usize, Vec<ValueDifference>> = BTreeMap::new();
    for row in &samples.source {
        let Some(other) = target.get(&row.key_hash).and_then(|at| samples.target.get(*at)) else { continue };
        report.records_sampled += 1;
        for (field, (a, b)) in row.values.iter().zip(&other.values).enumerate().filter(|(_, (a, b))| a != b) {
            let (source, target) = (a.clone(), b.clone());
            by_field.entry(field).or_default().push(ValueDifference { key: key(row), field, source, target });
        }
    }
    for (field, values) in by_field {
        let known = |finding: &Finding| {
            matches!(finding.level, 1 | 2)
                && finding.column.as_ref().is_none_or(|column| *column == explaining.fields[field])
                && (finding.level == 2 || finding.cause == "duplicate_row")
        };
        if report.findings.iter().any(known) {
            continue;
        }
        let mut reported = Reported::default();
        explaining.column(5, None, field, &values.iter().collect::<Vec<_>>(), 0, &mut reported);
        reported.findings.into_iter().for_each(|finding| report.find(finding));
        report.records.extend(reported.records);
    }
    let surplus = report.records.len().saturating_sub(crate::report::RECORDS_MAX);
    report.records.truncate(crate::report::RECORDS_MAX);
    report.records_left_out += surplus as u64;
}
