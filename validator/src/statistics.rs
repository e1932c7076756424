//! Level 3: what a sample says of a column's distribution, on each side and between the two. Pure.
//!
//! The sample is of the rows whose key hash ends in so many zero bits: the same keys on both sides, and a subset of itself
//! when one more bit is asked for, so that it is thinned without reading again. Distances are reported and no p-values:
//! over thousands of rows every p-value rejects. They explain what level 2 proves, and prove nothing themselves.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cause::Read;
use crate::cause::micros_of;
use crate::definition::ColumnDefinition;

/// Rows of one table's sample.
pub const SAMPLE_ROWS_MAX: usize = 2_000;
/// Bytes of one side's sample.
const SAMPLE_BYTES_MAX: usize = 16 << 20;
const BINS: usize = 20;
/// More different values than this are no categories.
const CATEGORIES_MAX: usize = 50;

/// A row of the sample: every field as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledRow {
    pub key_hash: i64,
    pub values: Vec<Option<Read>>,
}

impl SampledRow {
    fn bytes(&self) -> usize {
        48 + self.values.iter().map(|value| 40 + value.as_ref().map_or(0, |value| value.start.len())).sum::<usize>()
    }
}

/// The same keys' rows on both sides.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    mask: i64,
    pub source: Vec<SampledRow>,
    pub target: Vec<SampledRow>,
}

/// The mask that leaves about half of the bound of so many rows.
pub fn mask_for(rows: u64) -> i64 {
    let parts = (rows / (SAMPLE_ROWS_MAX as u64)).max(1).next_power_of_two();
    i64::try_from(parts - 1).unwrap_or(i64::MAX)
}

impl Samples {
    pub fn extend(&mut self, source: Vec<SampledRow>, target: Vec<SampledRow>) {
        self.source.extend(source);
        self.target.extend(target);
        self.thin();
        let bytes = |rows: &[SampledRow]| rows.iter().map(SampledRow::bytes).sum::<usize>();
        let many = |rows: &[SampledRow]| rows.len() > SAMPLE_ROWS_MAX || bytes(rows) > SAMPLE_BYTES_MAX;
        while (many(&self.source) || many(&self.target)) && self.mask < 1 << 40 {
            self.mask = self.mask << 1 | 1;
            self.thin();
        }
    }

    fn thin(&mut self) {
        let mask = self.mask;
        self.source.retain(|row| row.key_hash & mask == 0);
        self.target.retain(|row| row.key_hash & mask == 0);
    }
}

/// What a column's statistics are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    Number,
    /// Seconds since 1970-01-01 UTC, or since midnight.
    Seconds,
    Category,
    /// Characters of the value's text.
    Length,
}

/// One side of one column in the sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SideStatistics {
    /// Sampled rows, and of these the values that are measured: neither null, NaN nor infinite.
    pub sampled: u64,
    pub measured: u64,
    pub distinct: u64,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub mean: Option<f64>,
    /// At 1, 5, 25, 50, 75, 95 and 99 %.
    pub quantiles: Vec<f64>,
    /// Of texts: shares of characters, in the order of `CHARACTER_CLASSES`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub characters: Vec<f64>,
}

/// Letters, digits and the rest of ASCII, blanks, control characters, then what is not ASCII.
pub const CHARACTER_CLASSES: [&str; 8] =
    ["lower", "upper", "digit", "blank", "other_ascii", "control", "not_ascii", "beyond_bmp"];
const QUANTILES: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];

/// Both sides' counts in the same bins. The first and the last bin hold what lies beyond, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// One more than there are bins; empty for categories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<f64>,
    /// Of categories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    pub source: Vec<u64>,
    pub target: Vec<u64>,
}

/// A column in the sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    pub measure: Measure,
    pub source: SideStatistics,
    pub target: SideStatistics,
    pub histogram: Histogram,
    /// Kolmogorov-Smirnov distance, 0 to 1; none of categories.
    pub ks: Option<f64>,
    /// Population stability index; below 0.1 is called stable.
    pub psi: f64,
    /// Half the sum of the differences of the character classes' shares.
    pub characters_distance: Option<f64>,
}

/// Of field `at` in a sample.
pub fn distribution(column: &ColumnDefinition, at: usize, samples: &Samples) -> Distribution {
    let measure = measure_of(column);
    let values = |rows: &[SampledRow]| -> Vec<Option<Read>> {
        rows.iter().map(|row| row.values.get(at).cloned().flatten()).collect()
    };
    let (of_source, of_target) = (values(&samples.source), values(&samples.target));
    let (source, source_numbers) = side(measure, &of_source);
    let (target, target_numbers) = side(measure, &of_target);
    let texts = measure == Measure::Length && is_text(column);
    let (mut source, mut target) = (source, target);
    if texts {
        source.characters = characters(&of_source);
        target.characters = characters(&of_target);
    }
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0;
    let characters_distance = texts.then(|| distance(&source.characters, &target.characters));
    let (histogram, ks, psi) = if measure == Measure::Category {
        let histogram = categories(column, &of_source, &of_target);
        let psi = psi(&histogram.source, &histogram.target);
        (histogram, None, psi)
    } else {
        let bins = deciles(&source_numbers);
        let psi = psi(&binned(&bins, &source_numbers), &binned(&bins, &target_numbers));
        (histogram(&source_numbers, &target_numbers), Some(ks(&source_numbers, &target_numbers)), psi)
    };
    Distribution { measure, source, target, histogram, ks, psi, characters_distance }
}

fn is_text(column: &ColumnDefinition) -> bool {
    matches!(column.base.name.as_str(), "text" | "varchar" | "bpchar" | "citext" | "name")
}

fn measure_of(column: &ColumnDefinition) -> Measure {
    match column.base.name.as_str() {
        "int2" | "int4" | "int8" | "oid" | "numeric" | "float4" | "float8" | "money" => Measure::Number,
        "timestamp" | "timestamptz" | "date" | "time" | "timetz" => Measure::Seconds,
        "bool" => Measure::Category,
        _ if column.base.kind == "e" => Measure::Category,
        _ => Measure::Length,
    }
}

fn number(measure: Measure, value: &Read) -> Option<f64> {
    match measure {
        Measure::Length => Some(value.length as f64),
        Measure::Seconds => micros_of(&value.start).map(|micros| micros as f64 / 1e6),
        Measure::Category => None,
        Measure::Number => {
            let bare = |c: &char| c.is_ascii_digit() || matches!(c, '.' | '-' | 'e' | 'E' | '+');
            value.start.chars().filter(bare).collect::<String>().parse::<f64>().ok().filter(|number| number.is_finite())
        }
    }
}

/// Statistics, and the measured values in order.
fn side(measure: Measure, values: &[Option<Read>]) -> (SideStatistics, Vec<f64>) {
    let known = values.iter().flatten();
    let mut numbers: Vec<f64> = known.clone().filter_map(|value| number(measure, value)).collect();
    numbers.sort_by(f64::total_cmp);
    let mut distinct: Vec<(&str, u64)> = known.map(|value| (value.start.as_str(), value.length)).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let measured = if measure == Measure::Category { values.iter().flatten().count() } else { numbers.len() };
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let statistics = SideStatistics {
        sampled: values.len() as u64,
        measured: measured as u64,
        distinct: distinct.len() as u64,
        minimum: numbers.first().copied(),
        maximum: numbers.last().copied(),
        mean: Some(mean).filter(|mean| mean.is_finite()),
        quantiles: if numbers.is_empty() { Vec::new() } else { QUANTILES.map(|p| quantile(&numbers, p)).to_vec() },
        characters: Vec::new(),
    };
    (statistics, numbers)
}

/// Of sorted numbers, at least one: the nearest rank.
fn quantile(numbers: &[f64], share: f64) -> f64 {
    let at = (share * (numbers.len() - 1) as f64).round() as usize;
    numbers[at.min(numbers.len() - 1)]
}

fn characters(values: &[Option<Read>]) -> Vec<f64> {
    let mut counts = [0_u64; CHARACTER_CLASSES.len()];
    for c in values.iter().flatten().flat_map(|value| value.start.chars()) {
        counts[match c {
            'a'..='z' => 0,
            'A'..='Z' => 1,
            '0'..='9' => 2,
            ' ' => 3,
            _ if c.is_control() => 5,
            _ if c.is_ascii() => 4,
            _ if c > '\u{ffff}' => 7,
            _ => 6,
        }] += 1;
    }
    let all = counts.iter().sum::<u64>().max(1) as f64;
    counts.iter().map(|count| *count as f64 / all).collect()
}

/// The largest distance between the two sorted samples' distribution functions.
fn ks(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return if a.len() == b.len() { 0.0 } else { 1.0 };
    }
    let (mut at, mut of_b, mut greatest) = (0, 0, 0.0_f64);
    while at < a.len() && of_b < b.len() {
        let next = a[at].min(b[of_b]);
        at += a[at..].iter().take_while(|value| **value <= next).count();
        of_b += b[of_b..].iter().take_while(|value| **value <= next).count();
        greatest = greatest.max((at as f64 / a.len() as f64 - of_b as f64 / b.len() as f64).abs());
    }
    greatest
}

/// Over bins; an empty one counts as half a value, so that the index stays finite.
fn psi(source: &[u64], target: &[u64]) -> f64 {
    let (of_source, of_target) = (source.iter().sum::<u64>(), target.iter().sum::<u64>());
    if of_source == 0 || of_target == 0 {
        return 0.0;
    }
    let share = |count: u64, all: u64| if count == 0 { 0.5 } else { count as f64 } / all as f64;
    let parts = source.iter().zip(target).filter(|(a, b)| a != b).map(|(a, b)| {
        let (a, b) = (share(*a, of_source), share(*b, of_target));
        (b - a) * (b / a).ln()
    });
    // Adding nothing to 0 gives -0.
    parts.sum::<f64>() + 0.0
}

/// Inner edges at the tenths of the source.
fn deciles(numbers: &[f64]) -> Vec<f64> {
    if numbers.is_empty() {
        return Vec::new();
    }
    let mut edges: Vec<f64> = (1..10).map(|tenth| quantile(numbers, f64::from(tenth) / 10.0)).collect();
    edges.dedup();
    edges
}

/// Counts between inner edges; a value on an edge is below it.
fn binned(inner: &[f64], numbers: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; inner.len() + 1];
    for number in numbers {
        counts[inner.partition_point(|edge| edge < number)] += 1;
    }
    counts
}

/// Bins of equal width over all but the outermost half percents of both sides, so that one outlier does not leave one bar.
fn histogram(source: &[f64], target: &[f64]) -> Histogram {
    let mut all: Vec<f64> = source.iter().chain(target).copied().collect();
    all.sort_by(f64::total_cmp);
    if all.is_empty() {
        return Histogram::default();
    }
    let (low, high) = (quantile(&all, 0.005), quantile(&all, 0.995));
    let bins = if high > low { BINS } else { 1 };
    let width = (high - low) / bins as f64;
    let inner: Vec<f64> = (1..bins).map(|bin| low + width * bin as f64).collect();
    let (counts_source, counts_target) = (binned(&inner, source), binned(&inner, target));
    let edges = [vec![low], inner, vec![high]].concat();
    Histogram { edges, labels: Vec::new(), source: counts_source, target: counts_target }
}

fn categories(column: &ColumnDefinition, source: &[Option<Read>], target: &[Option<Read>]) -> Histogram {
    let mut counts: BTreeMap<&str, (u64, u64)> = column.labels.iter().map(|label| (label.as_str(), (0, 0))).collect();
    for value in source.iter().flatten() {
        counts.entry(&value.start).or_default().0 += 1;
    }
    for value in target.iter().flatten() {
        counts.entry(&value.start).or_default().1 += 1;
    }
    let mut found: Vec<(&str, (u64, u64))> = counts.into_iter().collect();
    let place = |label: &str| column.labels.iter().position(|known| known == label).unwrap_or(usize::MAX);
    found.sort_by_key(|(label, _)| place(label));
    found.truncate(CATEGORIES_MAX);
    Histogram {
        edges: Vec::new(),
        labels: found.iter().map(|(label, _)| (*label).to_owned()).collect(),
        source: found.iter().map(|(_, counts)| counts.0).collect(),
        target: found.iter().map(|(_, counts)| counts.1).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_values_have_no_distance_and_disjoint_ones_the_greatest() {
        let low: Vec<f64> = (0..100).map(f64::from).collect();
        let high: Vec<f64> = (100..200).map(f64::from).collect();
        assert_eq!((ks(&low, &low), ks(&low, &high)), (0.0, 1.0));
        let bins = deciles(&low);
        assert_eq!(psi(&binned(&bins, &low), &binned(&bins, &low)), 0.0);
        assert!(psi(&binned(&bins, &low), &binned(&bins, &high)) > 1.0);
        assert_eq!(ks(&[1.0, 1.0, 2.0, 2.0], &[1.0, 2.0, 2.0, 2.0]), 0.25);
    }

    #[test]
    fn bins_of_both_sides_hold_every_value_and_share_their_edges() {
        let source: Vec<f64> = (0..1000).map(f64::from).collect();
        let target = [vec![1e9], source.clone()].concat();
        let found = histogram(&source, &target);
        assert_eq!((found.edges.len(), found.source.len(), found.target.len()), (BINS + 1, BINS, BINS));
        assert_eq!((found.source.iter().sum::<u64>(), found.target.iter().sum::<u64>()), (1000, 1001));
        assert!(found.source.iter().all(|count| *count >= 40), "an outlier leaves one bar: {found:?}");
        assert_eq!(histogram(&[5.0], &[5.0]).source, [1]);
    }

    #[test]
    fn a_sample_is_thinned_alike_on_both_sides_and_bounded() {
        let rows = |count: i64| -> Vec<SampledRow> {
            (0..count).map(|key_hash| SampledRow { key_hash, values: Vec::new() }).collect()
        };
        let mut samples = Samples::default();
        for _ in 0..5 {
            samples.extend(rows(1500), rows(1500));
        }
        assert!(samples.source.len() <= SAMPLE_ROWS_MAX && !samples.source.is_empty());
        assert_eq!(samples.source, samples.target);
        assert_eq!((mask_for(0), mask_for(1_000), mask_for(10_000_000)), (0, 0, 8191));
    }
}
