//! The table of tables: one line each, the worst first; those that match are folded where they are many. Pure.

use maud::{Markup, html};

use super::{explained, icon, number, proved, text};
use crate::report::TableReport;
use crate::verdict::Verdict;

/// Tables that match are listed openly up to so many lines in all.
const OPEN_MAX: usize = 25;
/// Lines in all.
const LINES_MAX: usize = 10_000;

/// `sections`: how many of the first have a section of their own.
pub fn tables(worst_first: &[&TableReport], sections: usize) -> Markup {
    let shown = &worst_first[..worst_first.len().min(LINES_MAX)];
    let proved_equal = shown.iter().position(|table| table.verdict == Verdict::Match).unwrap_or(shown.len());
    let (open, folded) = if shown.len() <= OPEN_MAX { (shown, &[][..]) } else { shown.split_at(proved_equal) };
    html! {
        section aria-labelledby="tables" {
            h2 #tables { "Tables" }
            @if !open.is_empty() { (lines(open, 0, sections)) }
            @if !folded.is_empty() {
                details {
                    summary { (number::counted(folded.len() as u64, "table matches", "tables match")) }
                    (lines(folded, open.len(), sections))
                }
            }
            @if worst_first.len() > LINES_MAX {
                p.note { (number::count((worst_first.len() - LINES_MAX) as u64)) " further tables are not listed: the report in JSON has all of them." }
            }
            @if worst_first.is_empty() { p { "No table was compared." } }
        }
    }
}

fn lines(tables: &[&TableReport], first: usize, sections: usize) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Table of tables" {
            table.overview role="table" {
                thead role="rowgroup" { tr { th scope="col" { "Verdict" } th scope="col" { "Table" } th.n scope="col" { "Rows, source" } th.n scope="col" { "Rows, target" } th scope="col" { "What" } } }
                tbody role="rowgroup" {
                    @for (at, table) in tables.iter().enumerate() {
                        @let class = table.verdict.name();
                        tr role="row" {
                            td.mark.(class) role="cell" { (icon(table.verdict)) (text::sentence(class)) }
                            th scope="row" role="rowheader" {
                                @if first + at < sections { a href=(format!("#t{}", first + at)) { (text::shown(&table.table)) } } @else { (text::shown(&table.table)) }
                            }
                            td.n role="cell" { (number::known(table.rows_source)) }
                            td.n.(if table.rows_source == table.rows_target { "same" } else { "other" }) role="cell" { (number::known(table.rows_target)) }
                            td role="cell" { (what(table)) }
                        }
                    }
                }
            }
        }
    }
}

/// The worst of it, in a line.
pub fn what(table: &TableReport) -> String {
    let findings: Vec<_> = table.findings.iter().filter(|finding| !finding.note).collect();
    let Some(worst) = proved(table).next().or(findings.first().copied()) else {
        return table.reason.as_deref().map_or_else(String::new, |reason| text::brief(&text::sentence(reason), 160));
    };
    let column = worst.column.as_deref().map(|column| format!("{}: ", text::brief(column, 60))).unwrap_or_default();
    let others = findings.len() - 1;
    let more = if others == 0 {
        String::new()
    } else {
        format!(", and {}", number::counted(others as u64, "other finding", "other findings"))
    };
    format!("{column}{}{more}", explained(&worst.cause))
}
