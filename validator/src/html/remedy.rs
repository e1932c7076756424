//! What to run next, for each verdict. Pure.

use super::{differences, proved, text};
use crate::report::{Report, TableReport};
use crate::verdict::Verdict;

/// Commands named at the head of the page.
const COMMANDS_MAX: usize = 4;

/// A command, and what it is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub why: String,
    pub command: Option<String>,
}

fn step(why: &str, command: Option<String>) -> Step {
    Step { why: why.to_owned(), command }
}

fn check_again(table: Option<&TableReport>) -> String {
    table.map_or_else(
        || "validator check".into(),
        |table| format!("validator check --table {}", text::quoted(&table.table)),
    )
}

/// For one table.
pub fn of_table(table: &TableReport, report: &Report) -> Vec<Step> {
    let mut steps = Vec::new();
    let name = text::quoted(&table.table);
    let has = |level: u8| table.findings.iter().any(|finding| !finding.note && finding.level == level);
    match table.verdict {
        Verdict::Match => {}
        Verdict::Inconclusive => {
            steps.push(step("See whether the lane runs and how far it is behind:", Some("dflux status".into())));
            steps.push(step("Then compare the table again:", Some(check_again(Some(table)))));
        }
        Verdict::Error => {
            steps.push(step("Mend what the error names, then compare the table again:", Some(check_again(Some(table)))))
        }
        Verdict::Mismatch => {
            if has(1) || has(2) {
                steps.extend(repair(table, &name, report.mode == "online"));
            } else if !has(0) {
                steps.push(step(
                    "Only samples or counts were asked for, and they differ. Find the rows by all levels:",
                    Some(check_again(Some(table))),
                ));
            }
            if has(0) {
                let why = "The definition of a table differs. What is only not built yet (indexes, keys, constraints, triggers) is built by \
                           this; the rest needs an ALTER in the target, as the details say:";
                steps.push(step(why, Some("dflux prepare".into())));
            }
        }
    }
    steps
}

fn repair(table: &TableReport, name: &str, online: bool) -> Vec<Step> {
    // A key that is the hash of its row is that of a table without one.
    let keyless = proved(table)
        .flat_map(|finding| &finding.keys)
        .any(|key| key.as_str().is_some_and(|key| key.starts_with("row hash ")));
    if !online {
        let why = "No lane runs between the two databases. Where one does, this has the rows that differ read again:";
        let rows = if keyless { "" } else { " --rows" };
        return vec![step(why, Some(format!("dflux resync {name}{rows}")))];
    }
    if keyless {
        return vec![step(
            "Have the whole table read again (it has no key):",
            Some(format!("dflux resync {name} --wait")),
        )];
    }
    let mut steps = vec![step(
        "Have exactly the rows that differ read again, and checked again:",
        Some(format!("dflux resync {name} --rows")),
    )];
    if differences(table) > 100_000 {
        steps.push(step(
            "They are many, so that the whole table may be faster:",
            Some(format!("dflux resync {name} --wait")),
        ));
    }
    steps
}

/// For the whole, at the head of the page.
pub fn of_report(report: &Report, worst_first: &[&TableReport]) -> Vec<Step> {
    let online = report.mode == "online";
    match report.verdict {
        Verdict::Match if online => vec![step(
            "Nothing. The validator goes on comparing while the source is written to; ask again at any time:",
            Some(check_again(None)),
        )],
        Verdict::Match => vec![step(
            "Nothing. This holds for the moment of the comparison, as nothing runs between the two databases.",
            None,
        )],
        Verdict::Error | Verdict::Inconclusive if worst_first.iter().all(|table| table.verdict == Verdict::Match) => {
            let why = "Mend what the reason names, then compare again:";
            vec![
                step("See whether the lane runs and how far it is behind:", Some("dflux status".into())),
                step(why, Some(check_again(None))),
            ]
        }
        Verdict::Error => vec![step("Mend what the tables' errors name, then compare again:", Some(check_again(None)))],
        Verdict::Inconclusive => vec![
            step("See whether the lane runs and how far it is behind:", Some("dflux status".into())),
            step("Then compare again:", Some(check_again(None))),
        ],
        Verdict::Mismatch => {
            let mut steps: Vec<Step> = Vec::new();
            for next in worst_first.iter().flat_map(|table| of_table(table, report)) {
                let checks = next.command.as_deref().is_some_and(|command| command.starts_with("validator"));
                if !checks && steps.len() < COMMANDS_MAX && steps.iter().all(|known| known.command != next.command) {
                    steps.push(next);
                }
            }
            grouped(steps)
        }
    }
}

/// Commands for the same reason stand together below it.
fn grouped(steps: Vec<Step>) -> Vec<Step> {
    let mut reasons: Vec<String> = Vec::new();
    steps.iter().for_each(|step| {
        if !reasons.contains(&step.why) {
            reasons.push(step.why.clone())
        }
    });
    let mut ordered = steps;
    ordered.sort_by_key(|step| reasons.iter().position(|why| *why == step.why));
    for at in (1..ordered.len()).rev() {
        if ordered[at].why == ordered[at - 1].why {
            ordered[at].why.clear();
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::report::Finding;

    fn report(mode: &'static str, tables: Vec<TableReport>) -> Report {
        let mut report = Report::new("m", mode, tables);
        report.conclude();
        report
    }

    fn commands(table: TableReport) -> Vec<String> {
        of_table(&table, &report("online", vec![table.clone()])).into_iter().filter_map(|step| step.command).collect()
    }

    #[test]
    fn each_kind_of_difference_has_its_command() {
        let with = |finding: Finding| {
            let mut table = TableReport::new("public.t");
            table.find(finding);
            table
        };
        assert_eq!(
            commands(with(Finding::rows(2, Some("v"), "rounded", vec![Json::from("1")]))),
            ["dflux resync public.t --rows"]
        );
        assert_eq!(
            commands(with(Finding::rows(1, None, "extra_row", vec![Json::from("row hash 5")]))),
            ["dflux resync public.t --wait"]
        );
        assert_eq!(commands(with(Finding::schema(None, "index_missing", "i"))), ["dflux prepare"]);
        assert_eq!(
            commands(with(Finding::rows(4, Some("v"), "null_rate", vec![]))),
            ["validator check --table public.t"]
        );
        let mut unread = TableReport::new("public.t");
        unread.inconclusive("lag");
        assert_eq!(commands(unread), ["dflux status", "validator check --table public.t"]);
        assert!(commands(TableReport { chunks: 1, ..TableReport::new("public.t") }).is_empty());
    }

    #[test]
    fn the_head_names_few_commands_and_each_once() {
        let tables: Vec<TableReport> = (0..20)
            .map(|at| {
                let mut table = TableReport::new(format!("public.t{at}"));
                table.find(Finding::rows(2, Some("v"), "rounded", vec![Json::from("1")]));
                table
            })
            .collect();
        let report = report("online", tables);
        let steps = of_report(&report, &report.tables.iter().collect::<Vec<_>>());
        assert_eq!(steps.len(), COMMANDS_MAX);
        assert!(steps[0].why.len() > 10 && steps[1].why.is_empty());
    }
}
