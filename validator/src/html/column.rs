//! The columns of one table: types, counts, statistics, and the plot. Open where they differ. Pure.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::number::{self, Unit};
use super::{plot, text};
use crate::report::{ColumnReport, Counted, TableReport};
use crate::statistics::{CHARACTER_CLASSES, Distribution, Measure, SideStatistics};

/// Columns of one table with their plots; a table may have 1,600.
const COLUMNS_MAX: usize = 200;
/// Columns that are open at once.
const OPEN_MAX: usize = 12;

pub fn columns(table: &TableReport) -> Markup {
    let differing: BTreeSet<&str> =
        table.findings.iter().filter(|finding| !finding.note).filter_map(|finding| finding.column.as_deref()).collect();
    let (differ, same): (Vec<&ColumnReport>, Vec<&ColumnReport>) =
        table.columns.iter().partition(|column| differing.contains(column.column.as_str()));
    html! {
        @if !differ.is_empty() {
            h3 { "Columns that differ" }
            @for (at, column) in differ.iter().take(COLUMNS_MAX).enumerate() { (one(column, at < OPEN_MAX)) }
        }
        @if !same.is_empty() {
            details.columns {
                summary { (number::counted(same.len() as u64, "column", "columns")) " without a difference" }
                @for column in same.iter().take(COLUMNS_MAX.saturating_sub(differ.len())) { (one(column, false)) }
            }
        }
        @if table.columns.len() > COLUMNS_MAX { p.note { "Of " (table.columns.len()) " columns " (COLUMNS_MAX) " are shown: the report in JSON has all of them." } }
    }
}

fn one(column: &ColumnReport, open: bool) -> Markup {
    let unit = |found: &Distribution| Unit { measure: found.measure, type_name: &column.type_name };
    let drawn = column.distribution.as_ref().and_then(|found| plot::distribution(&column.column, unit(found), found));
    let rows = statistics(column);
    html! {
        details.column open[open] {
            summary { code.name { (text::shown(&column.column)) } " " span.type { (text::shown(&column.type_name)) @if let Some(other) = &column.type_target { ", in the target " (text::shown(other)) } } }
            div.pair {
                @if let Some(drawn) = drawn { (drawn) }
                @if rows.is_empty() { p.note { "No counts and no sample were taken." } } @else { (sides(&column.column, &rows)) }
            }
        }
    }
}

/// A statistic of both sides.
struct Row {
    name: String,
    source: String,
    target: String,
}

impl Row {
    fn new(name: &str, source: String, target: String) -> Row {
        Row { name: name.to_owned(), source, target }
    }

    fn differs(&self) -> bool {
        self.source != self.target
    }
}

fn sides(column: &str, rows: &[Row]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(format!("Statistics of {}", text::shown(column))) {
            table.sides {
                thead { tr { th scope="col" { "" } th.n scope="col" { span.key-source {} "Source" } th.n scope="col" { span.key-target {} "Target" } } }
                tbody {
                    @for row in rows {
                        tr.differs[row.differs()] {
                            th scope="row" { (row.name) @if row.differs() { span.sign title="differs" { " ≠" } } }
                            td.n { (row.source) }
                            td.n { (row.target) }
                        }
                    }
                }
            }
        }
    }
}

fn statistics(column: &ColumnReport) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(counted) = &column.counted {
        counts(counted, &mut rows);
    }
    if let Some(found) = &column.distribution {
        sampled(Unit { measure: found.measure, type_name: &column.type_name }, found, &mut rows);
    }
    rows
}

fn counts(Counted { source, target }: &Counted, rows: &mut Vec<Row>) {
    let all = [
        ("Rows", source.rows, target.rows, true),
        ("Null", source.counts.nulls, target.counts.nulls, true),
        ("Empty", source.counts.empty, target.counts.empty, false),
        ("NaN", source.counts.nan, target.counts.nan, false),
        ("Infinite", source.counts.infinite, target.counts.infinite, false),
    ];
    // What a column has none of on both sides says nothing.
    let telling = all.into_iter().filter(|(_, source, target, always)| *always || source + target > 0);
    rows.extend(telling.map(|(name, source, target, _)| Row::new(name, number::count(source), number::count(target))));
}

fn sampled(unit: Unit<'_>, found: &Distribution, rows: &mut Vec<Row>) {
    let (source, target) = (&found.source, &found.target);
    let mut both = |name: &str, of: &dyn Fn(&SideStatistics) -> Option<String>| {
        if let (Some(source), Some(target)) = (of(source), of(target)) {
            rows.push(Row::new(name, source, target));
        }
    };
    both("In the sample", &|side| Some(number::count(side.sampled)));
    both("Different values", &|side| Some(number::count(side.distinct)));
    if unit.measure == Measure::Category {
        return;
    }
    let written = |value: Option<f64>| value.map(|value| unit.written(value));
    let prefix = if unit.measure == Measure::Length { "Length, " } else { "" };
    let named = |name: &str| if prefix.is_empty() { text::sentence(name) } else { format!("{prefix}{name}") };
    both(&named("least"), &|side| written(side.minimum));
    for (at, name) in ["1 %", "5 %", "25 %", "median", "75 %", "95 %", "99 %"].into_iter().enumerate() {
        both(&named(name), &|side| written(side.quantiles.get(at).copied()));
    }
    both(&named("greatest"), &|side| written(side.maximum));
    both(&named("mean"), &|side| written(side.mean));
    for (at, class) in CHARACTER_CLASSES.into_iter().enumerate() {
        let share = |side: &SideStatistics| side.characters.get(at).copied().unwrap_or(0.0);
        if (share(source) - share(target)).abs() >= 0.0005 {
            let name = format!("Characters: {}", class.replace('_', " "));
            both(&name, &|side| Some(format!("{:.1} %", share(side) * 100.0)));
        }
    }
}
