//! The head of the page: the verdict, what it means, what to do next; then when, how far, how much. Pure.

use maud::{Markup, html};

use super::{icon, number, proved, remedy, text, worst_first};
use crate::report::{LagReport, Report};
use crate::verdict::Verdict;

pub fn verdict(report: &Report) -> Markup {
    let class = report.verdict.name();
    let tables = worst_first(report);
    let steps = remedy::of_report(report, &tables);
    html! {
        header.verdict.(class) {
            div.inner {
                div.said {
                    p.migration { "Migration " bdi { (text::shown(&report.migration)) } ", validation of " (number::instant(report.started_at_micros)) }
                    h1 { (icon(report.verdict)) span { (text::sentence(class)) } }
                    p.meaning { (meaning(report)) }
                    @if let Some(reason) = &report.reason { p.reason { (text::sentence(&text::shown(reason))) } }
                }
                section.next aria-labelledby="next" {
                    h2 #next { "What to do next" }
                    @for step in &steps {
                        @if !step.why.is_empty() { p { (step.why) } }
                        @if let Some(command) = &step.command { pre tabindex="0" { code { (text::shown(command)) } } }
                    }
                }
            }
        }
    }
}

fn meaning(report: &Report) -> String {
    let of = |verdict: Verdict| report.tables.iter().filter(|table| table.verdict == verdict).count() as u64;
    let all = report.tables.len() as u64;
    let unproved = of(Verdict::Inconclusive) + of(Verdict::Error);
    match report.verdict {
        Verdict::Match => {
            let tables =
                if all == 1 { "The one table".to_owned() } else { format!("All {} tables", number::count(all)) };
            let partly = report.tables.iter().filter(|table| table.since.is_some()).count() as u64;
            let what = match partly {
                0 => "every row and every value, were compared and are the same.".to_owned(),
                _ => format!(
                    "every value, are the same: of {} only the rows that have changed since an earlier comparison were compared, \
                     and the others were then.",
                    number::counted(partly, "table", "tables")
                ),
            };
            format!("The target is equal to the source. {tables}, {what}")
        }
        Verdict::Mismatch => {
            let differ = of(Verdict::Mismatch);
            let verb = if differ == 1 { "differs" } else { "differ" };
            let rest = if unproved == 0 {
                String::new()
            } else {
                format!(" Of {} nothing is proved.", number::counted(unproved, "further table", "further tables"))
            };
            format!(
                "The target is not equal to the source: {} of {} {verb}.{rest}",
                number::count(differ),
                number::counted(all, "table", "tables")
            )
        }
        Verdict::Inconclusive => format!(
            "No difference was found, and equality is not proved: of {} nothing can be said. This is neither good nor bad news.",
            if unproved == 0 {
                "the whole".to_owned()
            } else {
                format!("{} of {}", number::count(unproved), number::counted(all, "table", "tables"))
            }
        ),
        Verdict::Error => format!(
            "The check itself failed{}. Nothing is said about the rows that it could not read.",
            if of(Verdict::Error) == 0 {
                String::new()
            } else {
                format!(" for {} of {}", number::count(of(Verdict::Error)), number::counted(all, "table", "tables"))
            }
        ),
    }
}

pub fn facts(report: &Report) -> Markup {
    let sum = |of: fn(&crate::report::TableReport) -> u64| report.tables.iter().map(of).sum::<u64>();
    let matching = report.tables.iter().filter(|table| table.verdict == Verdict::Match).count() as u64;
    let rows = sum(|table| table.rows_source.unwrap_or(0));
    let differing: u64 = report.tables.iter().flat_map(proved).map(|finding| finding.count).sum();
    let (mode, mode_means) =
        if report.mode == "online" { ("Online", "while writes went on") } else { ("Offline", "both as they stood") };
    html! {
        section.facts aria-label="Facts" {
            dl {
                (fact("Tables proved equal", &format!("{} of {}", number::count(matching), number::count(report.tables.len() as u64)), ""))
                (fact("Rows of the source", &number::count(rows), &format!("in {}", number::counted(sum(|table| table.chunks), "range", "ranges"))))
                (fact("Differences", &number::count(differing), "rows and values"))
                @if let Some(through) = &report.verified_through {
                    (fact("Verified through", through, "all that the source had committed below it"))
                } @else if report.mode == "online" {
                    (fact("Verified through", "–", "not every table was proved equal"))
                }
                (fact("Mode", mode, mode_means))
                (fact("Took", &number::duration(report.seconds), ""))
                @let settled = sum(|table| table.rows_settled_by_event);
                @if report.mode == "online" { (fact("Rows in flight", &number::count(settled), "proved by their newest event")) }
                (fact("Looked at one by one", &number::count(sum(|table| table.records_sampled)), "sampled rows"))
            }
            @if let Some(lag) = &report.lag { (hops(lag)) }
        }
    }
}

pub fn fact(name: &str, value: &str, below: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) @if !below.is_empty() { small { (below) } } } } }
}

/// The way of a change, and how long each part of it took.
fn hops(lag: &LagReport) -> Markup {
    let shown = |milliseconds: Option<f64>| milliseconds.map_or_else(|| "–".to_owned(), number::milliseconds);
    html! {
        div.lag {
            h2 { "Lag by hop" }
            ol.hops {
                li { b { "Source" } }
                li.hop { span { "capture" } (shown(lag.capture_ms)) }
                li { b { "Producer" } }
                li.hop { span { "queue" } (shown(lag.queue_ms)) }
                li { b { "Consumer" } }
                li.hop { span { "apply" } (shown(lag.apply_ms)) }
                li { b { "Target" } }
            }
            p.note {
                "End to end " (shown(lag.end_to_end_ms)) "; a reader of the target is " (shown(lag.behind_ms)) " behind the source"
                @if let Some(bytes) = lag.bytes { "; " (number::bytes(bytes)) " of WAL not yet applied" }
                "."
            }
        }
    }
}
