//! The report as one page of HTML without anything from elsewhere. Pure.

use std::fmt::Write as _;

use crate::report::{Finding, Report, TableReport};

const STYLE: &str = "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35em .7em;border-bottom:1px solid #ddd;vertical-align:top}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.match{color:#176b2c}.mismatch,.error{color:#b3261e;font-weight:600}\
.inconclusive{color:#8a5a00;font-weight:600}.note{color:#666}code{font-size:90%}";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page =
        String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>dflux validation</title>");
    let verdict = report.verdict.name();
    let _ = write!(
        page,
        "<style>{STYLE}</style><h1>{}: <span class=\"{verdict}\">{verdict}</span></h1><p>{}, {:.1} s",
        escaped(&report.migration),
        report.mode,
        report.seconds
    );
    if let Some(through) = &report.verified_through {
        let _ =
            write!(page, "; everything committed on the source below <code>{}</code> is verified", escaped(through));
    }
    if let Some(reason) = &report.reason {
        let _ = write!(page, "</p><p class=\"{verdict}\">{}", escaped(reason));
    }
    page.push_str("</p>");
    if let Some(lag) = &report.lag {
        let milliseconds = |lag: Option<f64>| lag.map_or_else(|| "–".to_owned(), |lag| format!("{lag:.1} ms"));
        let _ = write!(
            page,
            "<p>Lag: capture {}, queue {}, apply {}, end to end {}.</p>",
            milliseconds(lag.capture_ms),
            milliseconds(lag.queue_ms),
            milliseconds(lag.apply_ms),
            milliseconds(lag.end_to_end_ms)
        );
    }
    page.push_str(
        "<table><tr><th>table<th class=\"n\">rows, source<th class=\"n\">rows, target<th class=\"n\">proved by event\
         <th>verdict</tr>",
    );
    report.tables.iter().for_each(|table| table_rows(&mut page, table));
    page.push_str("</table></html>\n");
    page
}

fn table_rows(page: &mut String, table: &TableReport) {
    let rows = |rows: Option<u64>| rows.map_or_else(|| "–".to_owned(), |rows| rows.to_string());
    let verdict = table.verdict.name();
    let _ = write!(
        page,
        "<tr><td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"{verdict}\">{verdict}",
        escaped(&table.table),
        rows(table.rows_source),
        rows(table.rows_target),
        table.rows_settled_by_event
    );
    if let Some(reason) = &table.reason {
        let _ = write!(page, ": {}", escaped(reason));
    }
    page.push_str("</tr>");
    for finding in &table.findings {
        finding_row(page, finding);
    }
}

fn finding_row(page: &mut String, finding: &Finding) {
    let class = if finding.note { "note" } else { "mismatch" };
    let column = finding.column.as_deref().map(|column| format!("column <code>{}</code>: ", escaped(column)));
    let _ = write!(
        page,
        "<tr><td><td colspan=\"4\" class=\"{class}\">level {}, {}{}",
        finding.level,
        column.unwrap_or_default(),
        escaped(&finding.cause)
    );
    if finding.level > 0 {
        let least = if finding.count_is_minimum { "at least " } else { "" };
        let _ = write!(page, ", {least}{} rows", finding.count);
    }
    if let Some(detail) = &finding.detail {
        let _ = write!(page, " ({})", escaped(detail));
    }
    for key in &finding.keys {
        let _ = write!(page, " <code>{}</code>", escaped(&key.to_string()));
    }
    page.push_str("</tr>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::verdict::Verdict;

    #[test]
    fn names_and_keys_cannot_write_html() {
        let mut table = TableReport::new("public.<b>");
        table.find(Finding::rows(2, Some("a&b"), "value_differs", vec![Json::from("<script>")]));
        let report = Report {
            version: 1,
            migration: "m".into(),
            mode: "offline",
            verdict: Verdict::Mismatch,
            reason: None,
            started_at_micros: 0,
            seconds: 0.0,
            verified_through: None,
            lag: None,
            tables: vec![table],
        };
        let page = page(&report);
        assert!(page.contains("public.&lt;b&gt;") && page.contains("a&amp;b") && !page.contains("<script>"), "{page}");
    }
}
