//! The alert rules, judged by Prometheus's own tool. No server is started.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tests::process::Launch;
use tests::{cache, scratch};

fn promtool(arguments: &[&str]) -> String {
    let program = cache::part(&["promtool"]).unwrap().join("promtool");
    let folder = cache::checkout().join("deploy");
    Launch::new("promtool", program, &folder).arguments(arguments.iter().copied()).run().unwrap()
}

fn deployed(file: &str) -> String {
    std::fs::read_to_string(cache::checkout().join("deploy").join(file)).unwrap()
}

#[test]
fn the_rules_and_what_refers_to_them_are_valid() {
    assert!(promtool(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"]).contains("SUCCESS"));
    assert!(
        promtool(&["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"]).contains("1 rule files found")
    );
    // A rule that is broken is found, or the check says nothing.
    let folder = scratch::folder("alerts").unwrap();
    let broken: PathBuf = folder.join("broken.yml");
    std::fs::write(&broken, deployed("alerts.yml").replace("max by (table) (", "max by (table) ((")).unwrap();
    let program = cache::part(&["promtool"]).unwrap().join("promtool");
    let said = Launch::new("promtool", program, &folder).arguments(["check", "rules", "broken.yml"]).run();
    assert!(said.is_err());
    assert!(deployed("../docker-compose.yml").contains("./deploy/alerts.yml:/etc/prometheus/alerts.yml"));
}

#[test]
fn each_rule_fires_when_it_should_and_not_otherwise() {
    promtool(&["test", "rules", "alerts_test.yml"]);
    let names = |text: &str, before: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.trim().strip_prefix(before)).map(str::to_owned).collect()
    };
    let rules = names(&deployed("alerts.yml"), "- alert: ");
    let tested = deployed("alerts_test.yml");
    // The first case is a migration that is well: there all are silent.
    assert!(
        tested
            .split("- name: ")
            .nth(1)
            .is_some_and(|well| well.contains("ALERTS{") && !well.contains("exp_samples:\n"))
    );
    let fired: BTreeSet<String> =
        tested.split("alertname=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    assert_eq!(rules, fired, "left: the rules; right: those that a case shows to fire");
}

#[test]
fn every_rule_says_what_happened_and_what_to_run() {
    let text = deployed("alerts.yml");
    for rule in text.split("- alert: ").skip(1) {
        for field in ["expr: ", "severity: ", "summary: ", "description: ", "command: "] {
            assert!(rule.contains(field), "no {field} in {rule}");
        }
        let command = rule.split("command: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert!(command.starts_with("dflux ") || command.starts_with("validator check"), "{command}");
    }
}

#[test]
fn every_metric_of_the_rules_is_in_the_readme() {
    let readme = std::fs::read_to_string(cache::checkout().join("README.md")).unwrap();
    let told: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("dflux_"))
        .collect();
    let text = deployed("alerts.yml");
    let words = text
        .lines()
        .filter(|line| line.trim().starts_with("expr: "))
        .flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("dflux_")).collect();
    assert!(asked.len() > 12, "{asked:?}");
    for rule in text.split("- alert: ").skip(1).filter_map(|rule| rule.lines().next()) {
        assert!(readme.contains(&format!("`{rule}`")), "the README does not name {rule}");
    }
    let unknown: Vec<&&str> = asked.difference(&told).collect();
    assert!(unknown.is_empty(), "the README's table of metrics has no {unknown:?}");
}
