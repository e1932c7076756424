//! The section of one table: what was found, what to run, its columns, the rows that differ. Pure.

use maud::{Markup, html};

use super::{column, explained, head, icon, number, record, remedy, text};
use crate::report::{Finding, Report, TableReport};
use crate::verdict::Verdict;

/// Findings written in full; those beyond are folded.
const FINDINGS_OPEN_MAX: usize = 25;

pub fn section(at: usize, table: &TableReport, report: &Report) -> Markup {
    let class = table.verdict.name();
    let open = table.verdict != Verdict::Match;
    let (found, notes) = split(table);
    html! {
        details.table.(class) id=(format!("t{at}")) open[open] {
            summary { h2 { (icon(table.verdict)) bdi { (text::shown(&table.table)) } } span.mark.(class) { (text::sentence(class)) } }
            div.body {
                @if let Some(reason) = &table.reason { p.reason { (text::sentence(&text::shown(reason))) } }
                @let steps = remedy::of_table(table, report);
                @if !steps.is_empty() {
                    div.next {
                        @for step in &steps { p { (step.why) } @if let Some(command) = &step.command { pre tabindex="0" { code { (text::shown(command)) } } } }
                    }
                }
                @if let Some(since) = &table.since { p { "Only rows that have changed since " code { (text::shown(since)) } " were compared." } }
                dl.facts {
                    (head::fact("Rows, source", &number::known(table.rows_source), ""))
                    (head::fact("Rows, target", &number::known(table.rows_target), ""))
                    (head::fact("Ranges", &number::count(table.chunks), ""))
                    (head::fact("Proved by event", &number::count(table.rows_settled_by_event), ""))
                    (head::fact("Sampled", &number::count(table.records_sampled), ""))
                    (head::fact("Took", &number::duration(table.seconds), ""))
                }
                @if !table.traced.is_empty() {
                    h3 { "Where it went wrong" }
                    ul { @for traced in &table.traced { li { (number::counted(traced.rows, "row", "rows")) " " (traced.hop.words()) } } }
                }
                @if !found.is_empty() {
                    h3 { "What differs" }
                    (findings(&found[..found.len().min(FINDINGS_OPEN_MAX)]))
                    @if found.len() > FINDINGS_OPEN_MAX {
                        details { summary { (number::counted((found.len() - FINDINGS_OPEN_MAX) as u64, "more finding", "more findings")) } (findings(&found[FINDINGS_OPEN_MAX..])) }
                    }
                }
                (record::records(table))
                (column::columns(table))
                @if !notes.is_empty() {
                    details { summary { "Worth knowing, and no difference (" (notes.len()) ")" } (findings(&notes)) }
                }
            }
        }
    }
}

/// Findings and notes, what is proved first.
fn split(table: &TableReport) -> (Vec<&Finding>, Vec<&Finding>) {
    let (notes, mut found): (Vec<&Finding>, Vec<&Finding>) = table.findings.iter().partition(|finding| finding.note);
    found.sort_by_key(|finding| match finding.level {
        1 => 0,
        2 => 1,
        0 => 2,
        5 => 3,
        4 => 4,
        _ => 5,
    });
    (found, notes)
}

fn level(level: u8) -> &'static str {
    match level {
        0 => "Schema",
        1 => "Rows",
        2 => "Values",
        3 => "Distribution",
        4 => "Null rates",
        _ => "Sample",
    }
}

fn findings(findings: &[&Finding]) -> Markup {
    html! {
        ul.findings {
            @for finding in findings {
                li {
                    span.level { (level(finding.level)) small { "level " (finding.level) } }
                    div {
                        p {
                            @if let Some(column) = &finding.column { code.name { (text::shown(column)) } " " }
                            strong { (explained(&finding.cause)) }
                            @if let Some(detail) = &finding.detail { span.detail { (text::brief(detail, 600)) } }
                        }
                        p.note {
                            @if finding.level > 0 && finding.count > 0 {
                                @if finding.count_is_minimum { "at least " }
                                @if finding.level == 3 { "in a sample of " }
                                (number::counted(finding.count, "row", "rows")) ", "
                            }
                            code { (text::shown(&finding.cause)) }
                            @if !finding.keys.is_empty() { (keys(finding)) }
                        }
                    }
                }
            }
        }
    }
}

fn keys(finding: &Finding) -> Markup {
    const OPEN_MAX: usize = 5;
    let written: Vec<String> = finding.keys.iter().take(OPEN_MAX).map(text::key).collect();
    html! {
        ", " (if finding.count == 1 { "key" } else { "keys" })
        @for (at, key) in written.iter().enumerate() { " " code.key { (key) } @if at + 1 < written.len() { "," } }
        @if finding.count > written.len() as u64 { " …" }
    }
}
