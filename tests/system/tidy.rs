//! What STYLE and DESIGN demand and a machine can check. No server is started. Each rule is a function from a file's text
//! to findings (`rules`), and is shown here both to hold for the checkout and to fail on a snippet that breaks it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/rust_text.rs"]
mod rust_text;

use std::path::Path;

/// A file of the checkout: its path from the root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

/// What is no part of the project: built, fetched, started or git's own.
const LEFT_OUT: [&str; 4] = [".git", "target", ".run", ".cache"];
const BYTES_MAX: u64 = 1 << 20;

/// All text files of the checkout, up to 1 MB each.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies in its workspace").to_owned();
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let (path, kind, name) = (entry.path(), entry.file_type().unwrap(), entry.file_name());
            // In a further work tree `.git` is a file.
            if LEFT_OUT.iter().any(|left_out| name == *left_out) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && entry.metadata().unwrap().len() <= BYTES_MAX
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                found.push(Source { path: relative(&root, &path), text });
            }
        }
    }
    assert!(found.iter().any(|source| source.path == "Cargo.toml"), "{} is not the checkout", root.display());
    found
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).expect("it was found below the root").to_string_lossy().replace('\\', "/")
}

/// Applies a rule to every file and fails with all findings at once.
fn check(rule: impl Fn(&str, &str) -> Vec<String>) {
    let findings: Vec<String> = sources().iter().flat_map(|source| rule(&source.path, &source.text)).collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[track_caller]
fn breaks(findings: Vec<String>, word: &str) {
    assert!(findings.iter().any(|finding| finding.contains(word)), "no finding names {word}: {findings:?}");
}

#[test]
fn pure_modules_use_no_clock_socket_runtime_or_environment() {
    check(rules::purity);
    breaks(rules::purity("changelog/src/lsn.rs", "use tokio::time;"), "tokio");
    breaks(rules::purity("consumer/src/plan/rows.rs", "use std::{fmt, net::TcpStream};"), "std::net");
    breaks(rules::purity("producer/src/acknowledge.rs", "fn f() { let now = std::time::Instant::now(); }"), "Instant");
    breaks(rules::purity("consumer/src/merge.rs", "use std::time::{Duration, SystemTime};"), "SystemTime");
    breaks(
        rules::purity("validator/src/settle.rs", "fn f() -> Option<String> { std::env::var(\"A\").ok() }"),
        "std::env",
    );
    let harmless = "//! no tokio here\nuse std::time::Duration; // not std::env\nconst A: &str = \"tokio::spawn\";\n\
                    #[cfg(test)]\nmod tests { use std::env; }";
    assert!(rules::purity("changelog/src/lsn.rs", harmless).is_empty());
    assert!(rules::purity("consumer/src/pipeline.rs", "use tokio::time;").is_empty());
}

#[test]
fn crates_depend_only_downwards_and_changelog_on_nothing_that_does_io() {
    check(rules::dependencies);
    breaks(rules::dependencies("changelog/Cargo.toml", "[dependencies]\ntokio.workspace = true"), "tokio");
    breaks(rules::dependencies("changelog/Cargo.toml", "[dependencies.sqlx]\nworkspace = true"), "sqlx");
    breaks(rules::dependencies("service/Cargo.toml", "[dependencies]\nchangelog.workspace = true"), "changelog");
    breaks(
        rules::dependencies("validator/Cargo.toml", "[dependencies]\nconsumer = { path = \"../consumer\" }"),
        "consumer",
    );
    let allowed = "[dependencies]\nchangelog.workspace = true\n[dev-dependencies]\ntokio.workspace = true";
    assert!(rules::dependencies("producer/Cargo.toml", allowed).is_empty());
    assert!(rules::dependencies("changelog/Cargo.toml", "[dev-dependencies]\ntokio-postgres = \"1\"").is_empty());
}

#[test]
fn no_module_is_a_grab_bag() {
    check(rules::grab_bags);
    breaks(rules::grab_bags("consumer/src/utils.rs", ""), "utils");
    breaks(rules::grab_bags("consumer/src/common/mod.rs", ""), "common");
    assert!(rules::grab_bags("consumer/src/plan.rs", "").is_empty());
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    check(rules::opening);
    breaks(rules::opening("consumer/src/plan.rs", "use std::fmt;\n//! late"), "//!");
    breaks(rules::opening("consumer/src/plan.rs", "//! placeholder\n"), "placeholder");
    assert!(rules::opening("consumer/src/plan.rs", "//! Plans.\n").is_empty());
}

#[test]
fn a_long_file_says_why_in_its_header() {
    check(rules::length);
    let long = "fn f() {}\n".repeat(601);
    breaks(rules::length("consumer/src/plan.rs", &format!("//! Plans.\n{long}")), "602");
    assert!(
        rules::length("consumer/src/plan.rs", &format!("//! Plans. Long, because it is one table.\n{long}")).is_empty()
    );
}

#[test]
fn every_error_variant_has_a_remedy_or_a_hint() {
    check(rules::remedies);
    let without = "pub enum Error {\n #[error(\"a\")]\n A,\n}\n";
    breaks(rules::remedies("consumer/src/error.rs", without), "neither");
    let partly = "pub enum Error {\n #[error(\"a\")]\n A,\n #[error(\"b {x}\")]\n Bad { x: u8 },\n}\n\
                  impl Error { fn hint(&self) -> u8 { match self { Error::A => 1, _ => 2 } } }";
    breaks(rules::remedies("consumer/src/error.rs", partly), "Bad");
    let whole = partly.replace("_ => 2", "Error::Bad { .. } => 2");
    assert!(rules::remedies("consumer/src/error.rs", &whole).is_empty());
}

#[test]
fn every_metric_is_in_the_readme_and_every_dashboard_query_names_a_metric() {
    let all = sources();
    let pairs: Vec<(&str, &str)> = all.iter().map(|source| (source.path.as_str(), source.text.as_str())).collect();
    let findings = rules::metrics(&pairs);
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));

    let observe = ("consumer/src/observe.rs", "const A: &str = \"dflux_consumer_rows_total\";");
    breaks(rules::metrics(&[observe, ("README.md", "no such")]), "dflux_consumer_rows_total");
    breaks(rules::metrics(&[observe, ("README.md", "dflux_consumer_rows_total_ever")]), "dflux_consumer_rows_total");
    let readme = ("README.md", "| `dflux_consumer_rows_total` | how many? |");
    let dashboard = ("deploy/grafana/dflux.json", "rate(dflux_consumer_rows_total[1m]) dflux_producer_gone_bucket");
    breaks(rules::metrics(&[observe, readme, dashboard]), "dflux_producer_gone");
    assert!(rules::metrics(&[observe, readme]).is_empty());
    assert!(rules::metrics(&[observe]).is_empty(), "without a README there is nothing to compare with");
}

#[test]
fn every_field_of_every_schema_is_documented() {
    check(rules::documented_schemas);
    let bare = r#"{"type":"record","name":"R","doc":"d","fields":[{"name":"inner","doc":"d","type":["null",
        {"type":"record","name":"I","doc":"d","fields":[{"name":"deep","type":"int"}]}]}]}"#;
    breaks(rules::documented_schemas("schemas/r.avsc", bare), "deep");
    breaks(rules::documented_schemas("schemas/r.avsc", "{"), "JSON");
    let told = bare.replace("\"deep\",", "\"deep\",\"doc\":\"d\",");
    assert!(rules::documented_schemas("schemas/r.avsc", &told).is_empty());
}

#[test]
fn no_registry_and_no_folder_of_one_machine_is_named() {
    check(rules::places);
    let host = ["registry", "npmjs", "org"].join(".");
    breaks(rules::places("dev", &format!("npm --registry {host}")), "host");
    let folder = ["", "root", "x"].join("/");
    breaks(rules::places("README.md", &format!("see {folder}")), "one machine");
    assert!(rules::places("README.md", "see /usr/lib/postgresql/15/bin").is_empty());
}

#[test]
fn tests_and_their_harness_wait_for_conditions_and_do_not_sleep() {
    check(rules::sleeps);
    breaks(rules::sleeps("tests/system/kill.rs", "fn f() { std::thread::sleep(LONG); }"), "sleep");
    breaks(rules::sleeps("tests/src/demo.rs", "fn f() { std::thread::sleep(LONG); }"), "sleep");
    assert!(rules::sleeps("tests/system/kill.rs", "tests::wait::pace(PAUSE); // not sleep()").is_empty());
    assert!(rules::sleeps("tests/src/wait.rs", "std::thread::sleep(pause);").is_empty());
}
