//! The report as one page of HTML, complete in itself: the verdict first, then every table, the worst first. Pure.
//!
//! For who is called at night (what is wrong, what to run next) and who asks next morning (is it proved, since when). It asks for
//! nothing from elsewhere and runs no script, and its own policy forbids both, so that no value of a row can change that. Sizes are
//! bounded: what does not fit is counted, and stands in the JSON.
//!
//! ```text
//! page ─┬─ head (verdict, what to do, facts, lag) ── overview (one line a table)
//!       └─ table ─┬─ column ── plot
//!                 └─ record ── text (the only way of a name or value onto the page), number
//! ```

mod column;
mod head;
mod number;
mod overview;
mod plot;
mod record;
mod remedy;
mod table;
mod text;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::cause::words;
use crate::report::{Finding, Report, TableReport};
use crate::verdict::Verdict;

const STYLE: &str = include_str!("page.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
/// Sections of tables are written while the page is smaller than this.
const PAGE_BYTES_MAX: usize = 12 << 20;

/// The whole page.
pub fn page(report: &Report) -> String {
    let tables = worst_first(report);
    let mut sections = Vec::new();
    let mut written = 0;
    for (at, table) in tables.iter().enumerate() {
        let section = table::section(at, table, report).into_string();
        written += section.len();
        if written > PAGE_BYTES_MAX {
            break;
        }
        sections.push(section);
    }
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (text::sentence(report.verdict.name())) ": " (text::shown(&report.migration)) " – dflux validation" }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                (head::verdict(report))
                main {
                    (head::facts(report))
                    (overview::tables(&tables, sections.len()))
                    @for section in &sections { (PreEscaped(section)) }
                    @if sections.len() < tables.len() {
                        p.note { (number::counted((tables.len() - sections.len()) as u64, "further table is", "further tables are")) " too many for this page: the report in JSON has all of them." }
                    }
                }
                footer {
                    p { "Written by " code { "validator check --html" } ". Values of rows are masked unless " code { "--show-values" } " was given; keys are named. Nothing on this page comes from elsewhere." }
                }
            }
        }
    };
    markup.into_string()
}

/// The order of the page.
fn worst_first(report: &Report) -> Vec<&TableReport> {
    let mut tables: Vec<&TableReport> = report.tables.iter().collect();
    tables.sort_by(|a, b| {
        b.verdict.cmp(&a.verdict).then_with(|| differences(b).cmp(&differences(a))).then_with(|| a.table.cmp(&b.table))
    });
    tables
}

/// Rows and values that differ, of levels that prove it.
fn differences(table: &TableReport) -> u64 {
    proved(table).map(|finding| finding.count).sum()
}

fn proved(table: &TableReport) -> impl Iterator<Item = &Finding> {
    table.findings.iter().filter(|finding| !finding.note && matches!(finding.level, 1 | 2))
}

/// The words of a cause that this version does not know are its name.
fn explained(cause: &str) -> String {
    text::sentence(&words::of(cause).map_or_else(|| text::shown(cause).replace('_', " "), str::to_owned))
}

/// The verdict's shape: told apart without colour.
fn icon(verdict: Verdict) -> Markup {
    html! {
        svg.icon viewBox="0 0 24 24" aria-hidden="true" {
            @match verdict {
                Verdict::Match => { circle cx="12" cy="12" r="11" {} path d="M6.5 12.5l3.8 3.8 7.2-8" {} },
                Verdict::Mismatch => { path.body d="M7.6 1.5h8.8l6.1 6.1v8.8l-6.1 6.1H7.6l-6.1-6.1V7.6z" {} path d="M6.5 9.5h11M6.5 14.5h11M15 6l-6 12" {} },
                Verdict::Inconclusive => { path.body d="M12 1.5L23 21.5H1z" {} path d="M9.6 11.2a2.4 2.4 0 1 1 3.6 2.1c-.9.5-1.2.9-1.2 1.9M12 18v.1" {} },
                Verdict::Error => { rect.body x="1.5" y="1.5" width="21" height="21" rx="2" {} path d="M12 6v7.5M12 17.6v.1" {} },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    fn report(tables: Vec<TableReport>) -> Report {
        let mut report = Report::new("m", "offline", tables);
        report.conclude();
        report
    }

    #[test]
    fn names_and_keys_cannot_write_html() {
        let mut table = TableReport::new("public.<b>");
        table.find(Finding::rows(2, Some("a&b"), "value_differs", vec![Json::from("</style><script>")]));
        let page = page(&report(vec![table]));
        assert!(page.contains("public.&lt;b&gt;") && page.contains("a&amp;b") && !page.contains("<script"), "{page}");
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        let page = page(&report(vec![TableReport::new("t")]));
        for outside in ["http://", "https://", "@import", "url(", "<script", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_worst_table_is_the_first() {
        let with = |name: &str, count: u32| {
            let mut table = TableReport { chunks: 1, ..TableReport::new(name) };
            (0..count)
                .for_each(|key| table.find(Finding::rows(2, Some("v"), "rounded", vec![Json::from(key.to_string())])));
            table
        };
        let mut unread = TableReport::new("unread");
        unread.inconclusive("lag");
        let report = report(vec![with("a", 0), unread, with("b", 1), with("c", 5)]);
        let names: Vec<&str> = worst_first(&report).iter().map(|table| table.table.as_str()).collect();
        assert_eq!(names, ["c", "b", "unread", "a"]);
    }

    #[test]
    fn thousands_of_tables_make_a_page_that_a_browser_can_show() {
        let wide = |at: usize| {
            let mut table = TableReport { chunks: 1, ..TableReport::new(format!("public.table_{at}")) };
            if at < 2_000 {
                for column in 0..100 {
                    table.find(Finding::rows(
                        2,
                        Some(&format!("c{column}")),
                        "rounded",
                        (0..20).map(Json::from).collect(),
                    ));
                }
            }
            table
        };
        let page = page(&report((0..6_000).map(wide).collect()));
        assert!(page.len() < 2 * PAGE_BYTES_MAX, "{} bytes", page.len());
        assert!(page.contains("public.table_5999") && page.contains("too many for this page"));
    }
}
