//! The rules. Each takes a file's path from the root and its text and yields what is wrong, one line a finding, with the
//! line number where there is one and what to do instead.

use std::collections::BTreeSet;

use super::rust_text;

/// Files whose path begins so decide and compute; they are called by loops that do I/O, and do none (DESIGN 1).
const PURE: [&str; 19] = [
    "changelog/src/",
    "producer/src/pgoutput",
    "producer/src/assemble",
    "producer/src/acknowledge",
    "producer/src/backfill/pace",
    "producer/src/backfill/plan",
    "consumer/src/merge",
    "consumer/src/plan",
    "consumer/src/dialect",
    "validator/src/canonical",
    "validator/src/cause",
    "validator/src/compare",
    "validator/src/difference",
    "validator/src/html",
    "validator/src/selection",
    "validator/src/settle",
    "validator/src/statistics",
    "control/src/decide",
    "control/src/journal",
];

/// What a pure module may not name: runtimes and clients, sockets and files, the clock, the environment.
const IMPURE: [&str; 14] = [
    "tokio",
    "tokio_postgres",
    "rdkafka",
    "sqlx",
    "reqwest",
    "rand",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::SystemTime",
    "std::time::Instant",
    "SystemTime::now",
];

pub fn purity(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".rs") || !PURE.iter().any(|pure| path.starts_with(pure)) {
        return Vec::new();
    }
    let code = rust_text::code(text);
    let named = |found: &str, impure: &str| found == impure || found.starts_with(&format!("{impure}::"));
    let findings = rust_text::paths(&code).into_iter().filter_map(|(line, found)| {
        let found = found.trim_start_matches("::");
        // A single word is a variable or a keyword, unless it is all of a `use`.
        let impure = IMPURE.iter().find(|impure| found.contains("::") && named(found, impure))?;
        Some(format!("{path}:{line}: a pure module uses {impure}: let the caller pass the value in"))
    });
    findings.collect()
}

/// What each of our crates may depend on among our own; `control` and `tests` may depend on all, nothing on them.
const BELOW: [(&str, &[&str]); 5] = [
    ("changelog", &[]),
    ("service", &[]),
    ("producer", &["changelog", "service"]),
    ("consumer", &["changelog", "service"]),
    ("validator", &["changelog", "service"]),
];
const OURS: [&str; 7] = ["changelog", "service", "producer", "consumer", "validator", "control", "tests"];
const DOES_IO: [&str; 8] =
    ["tokio", "rdkafka", "sqlx", "tokio-postgres", "reqwest", "tokio-util", "tokio-rustls", "axum"];

pub fn dependencies(path: &str, text: &str) -> Vec<String> {
    let Some(name) = path.strip_suffix("/Cargo.toml") else { return Vec::new() };
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("{path}: {error}")],
    };
    let named = |section: &str| -> Vec<String> {
        let table = manifest.get(section).and_then(toml::Value::as_table);
        table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    };
    let depends_on: Vec<String> = [named("dependencies"), named("build-dependencies")].concat();
    let mut findings = Vec::new();
    if let Some((_, below)) = BELOW.iter().find(|(ours, _)| *ours == name) {
        let upwards =
            depends_on.iter().filter(|other| OURS.contains(&other.as_str()) && !below.contains(&other.as_str()));
        findings.extend(upwards.map(|other| format!("{path}: {name} may not depend on {other} (DESIGN 1)")));
    }
    if name == "changelog" {
        let impure = depends_on.iter().filter(|other| DOES_IO.contains(&other.as_str()));
        findings.extend(impure.map(|other| format!("{path}: changelog is pure and may not depend on {other}")));
    }
    findings
}

const GRAB_BAGS: [&str; 10] =
    ["utils", "util", "common", "helpers", "helper", "core", "types", "misc", "manager", "shared"];

pub fn grab_bags(path: &str, _text: &str) -> Vec<String> {
    let Some(module) = path.strip_suffix(".rs") else { return Vec::new() };
    let found = module.split('/').find(|part| GRAB_BAGS.contains(part));
    found
        .map(|part| format!("{path}: no module is called {part}: name it for the idea that it holds"))
        .into_iter()
        .collect()
}

pub fn opening(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//! ") {
        return vec![format!("{path}:1: does not open with `//!`: what it is for and what it must never do")];
    }
    if first.contains("placeholder") {
        return vec![format!("{path}:1: is still a placeholder")];
    }
    Vec::new()
}

const LINES_MAX: usize = 600;

pub fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if !path.ends_with(".rs") || lines <= LINES_MAX {
        return Vec::new();
    }
    let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let header = header.join("\n").to_lowercase();
    if header.contains("long") || header.contains("lines") {
        return Vec::new();
    }
    vec![format!("{path}: {lines} lines: split it, or say in its header why it is so long")]
}

pub fn remedies(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with("/error.rs") {
        return Vec::new();
    }
    let code = rust_text::code(text);
    let variants = rust_text::error_variants(&code);
    let bodies = rust_text::bodies(&code, "remedy") + &rust_text::bodies(&code, "hint");
    if variants.is_empty() {
        return Vec::new();
    }
    if bodies.is_empty() {
        return vec![format!("{path}: has neither `fn remedy` nor `fn hint`: what can a person do?")];
    }
    let handled: BTreeSet<String> = rust_text::paths(&bodies)
        .into_iter()
        .filter_map(|(_, path)| path.rsplit("::").next().map(str::to_owned))
        .collect();
    let missing = variants.into_iter().filter(|variant| !handled.contains(variant));
    missing.map(|variant| format!("{path}: {variant} is in no `remedy` or `hint` match")).collect()
}

/// Both ways: what is measured is documented, and what a dashboard or an alert asks for is measured. `files` are all.
pub fn metrics(files: &[(&str, &str)]) -> Vec<String> {
    let mut measured = BTreeSet::new();
    for (_, text) in files.iter().filter(|(path, _)| path.ends_with("/observe.rs") || path.ends_with("/telemetry.rs")) {
        measured.extend(metric_names(text));
    }
    let mut findings = Vec::new();
    if let Some((_, readme)) = files.iter().find(|(path, _)| *path == "README.md") {
        let told = metric_names(readme);
        let untold = measured.iter().filter(|metric| !told.contains(*metric));
        findings.extend(untold.map(|metric| format!("README.md: the metric {metric} is not in the table of metrics")));
    }
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".json") || path.ends_with(".yml")) {
        let asked = metric_names(text).into_iter().filter(|metric| {
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
            !measured.contains(metric) && !bare.is_some_and(|bare| measured.contains(bare))
        });
        findings.extend(asked.map(|metric| format!("{path}: asks for {metric}, which nothing measures")));
    }
    findings
}

/// Words such as `dflux_consumer_lag_seconds`; not `dflux_migration_slot`, which is no metric.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let components = ["producer", "consumer", "validator", "control", "service", "process", "kafka"];
    let of_a_component = |word: &str| {
        let rest = word.strip_prefix("dflux_").unwrap_or_default();
        components
            .iter()
            .any(|component| rest.strip_prefix(component).is_some_and(|what| what.len() > 1 && what.starts_with('_')))
    };
    words.filter(|word| of_a_component(word)).map(str::to_owned).collect()
}

pub fn documented_schemas(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".avsc") {
        return Vec::new();
    }
    let schema: serde_json::Value = match serde_json::from_str(text) {
        Ok(schema) => schema,
        Err(error) => return vec![format!("{path}: is not JSON: {error}")],
    };
    let mut findings = Vec::new();
    undocumented(&schema, path, &mut findings);
    findings
}

fn undocumented(schema: &serde_json::Value, path: &str, findings: &mut Vec<String>) {
    let name = schema.get("name").and_then(serde_json::Value::as_str).unwrap_or("?");
    let told = |value: &serde_json::Value| value["doc"].as_str().is_some_and(|doc| !doc.trim().is_empty());
    if let Some(fields) = schema.get("fields").and_then(serde_json::Value::as_array) {
        if !told(schema) {
            findings.push(format!("{path}: the record {name} has no doc"));
        }
        for field in fields.iter().filter(|field| !told(field)) {
            findings.push(format!("{path}: the field {} of {name} has no doc", field["name"]));
        }
    }
    let inner: Vec<&serde_json::Value> = match schema {
        serde_json::Value::Object(object) => object.values().collect(),
        serde_json::Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    for value in inner {
        undocumented(value, path, findings);
    }
}

/// Hosts of package registries, written backwards and in parts so that this file does not name them.
const HOSTS: [&[&str]; 8] = [
    &["io", "crates"],
    &["org", "npmjs"],
    &["org", "maven", "repo1"],
    &["org", "apache", "maven", "repo"],
    &["org", "pypi"],
    &["org", "pythonhosted"],
    &["org", "debian", "deb"],
    &["org", "golang", "proxy"],
];

/// Folders that only one machine has, in parts for the same reason.
const FOLDERS: [&[&str]; 4] = [&["", "root", ""], &["", "home", ""], &["", "work", "main"], &["", "work", "shared"]];

pub fn places(path: &str, text: &str) -> Vec<String> {
    // Cargo writes its registry's name into its lock file; nobody else may.
    if path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let hosts: Vec<String> =
        HOSTS.iter().map(|parts| parts.iter().rev().copied().collect::<Vec<_>>().join(".")).collect();
    let folders: Vec<String> = FOLDERS.iter().map(|parts| parts.join("/")).collect();
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let host = hosts.iter().filter(|host| line.contains(host.as_str()));
        findings.extend(host.map(|host| format!("{path}:{line_number}: names a registry's host, {host}")));
        let folder = folders.iter().filter(|folder| line.contains(folder.as_str()));
        findings.extend(folder.map(|folder| format!("{path}:{line_number}: {folder} is a folder of one machine")));
    }
    findings
}

pub fn sleeps(path: &str, text: &str) -> Vec<String> {
    // The rule's own text names it, and one place has to do it.
    let exempt = path.starts_with("tests/system/tidy") || path == "tests/src/wait.rs";
    if !path.starts_with("tests/") || exempt || !path.ends_with(".rs") {
        return Vec::new();
    }
    let findings = text.lines().enumerate().filter_map(|(index, line)| {
        let sleeps = line.split("//").next().is_some_and(|code| code.contains("sleep("));
        let advice = "wait for a condition (tests::wait::until); a load or a fault keeps its time by tests::wait::pace";
        sleeps.then(|| format!("{path}:{}: sleep: {advice}", index + 1))
    });
    findings.collect()
}
