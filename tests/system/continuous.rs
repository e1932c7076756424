//! Between two comparisons of everything only what has changed is compared: by the service all the time, and by
//! `validator check --since`.

use std::time::Duration;

use serde_json::Value as Json;
use tests::services;
use tests::wait;

use crate::moving::Moving;

const LIMIT: Duration = Duration::from_secs(120);

const TABLES: &str = "
CREATE TABLE t (id bigint PRIMARY KEY, v text, n numeric);
INSERT INTO t SELECT n, 'v' || n, n FROM generate_series(1, 20000) n;
CREATE TABLE pair (a text, b uuid, v text, PRIMARY KEY (b, a));
INSERT INTO pair SELECT 'it''s \\ ' || n, md5(n::text)::uuid, 'x' FROM generate_series(1, 500) n;
CREATE TABLE bag (v text);
INSERT INTO bag VALUES ('a'), ('a');
CREATE TABLE still (id int PRIMARY KEY);
INSERT INTO still VALUES (1);";

fn moving(label: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.source.run(TABLES).unwrap();
    moving.prepare();
    moving.start();
    moving
}

/// Exit code and report.
fn check(moving: &Moving, since: Option<&str>, name: &str) -> (i32, Json) {
    let folder = &moving.migration.folder;
    let json = folder.join(name).display().to_string();
    let mut arguments = vec!["check".to_owned(), "--json".into(), json.clone()];
    if let Some(since) = since {
        arguments.extend(["--since".to_owned(), folder.join(since).display().to_string()]);
    }
    let said = services::run("validator", &moving.migration.config(), arguments).unwrap();
    let text = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("{}{}", said.stdout, said.stderr));
    (said.code.unwrap(), serde_json::from_str(&text).unwrap())
}

fn table<'a>(report: &'a Json, name: &str) -> &'a Json {
    let tables = report["tables"].as_array().unwrap();
    tables.iter().find(|table| table["table"] == format!("public.{name}")).unwrap()
}

fn compared(report: &Json, name: &str) -> (bool, i64) {
    let table = table(report, name);
    (table.get("since").is_some(), table["rows_source"].as_i64().unwrap_or(0))
}

#[test]
fn only_what_has_changed_since_an_earlier_report_is_compared() {
    let moving = moving("since");
    let (code, report) = check(&moving, None, "first.json");
    assert_eq!(code, 0, "{report:#}");
    assert_eq!((compared(&report, "t"), compared(&report, "bag")), ((false, 20_000), (false, 2)));
    // Every kind of change; a row in pieces; keys that move.
    moving
        .source
        .run(
            "UPDATE t SET v = 'w' WHERE id <= 10; DELETE FROM t WHERE id BETWEEN 11 AND 15; INSERT INTO t VALUES (30000, 'new', 'NaN'); \
             UPDATE t SET id = id + 100000 WHERE id = 20; UPDATE t SET v = repeat(md5(random()::text), 400000) WHERE id = 21; \
             UPDATE pair SET a = a || '!' WHERE a LIKE '%7'; INSERT INTO bag VALUES ('b')",
        )
        .unwrap();
    let (code, report) = check(&moving, Some("first.json"), "second.json");
    assert_eq!(code, 0, "{report:#}");
    // Of a deleted key there is no row on either side; of a moved one at its new place.
    assert_eq!(compared(&report, "t"), (true, 10 + 1 + 1 + 1));
    assert_eq!((compared(&report, "pair"), compared(&report, "bag")), ((true, 50), (false, 3)));
    assert_eq!(compared(&report, "still"), (true, 0));
    assert!(report["verified_through"].is_string(), "{report:#}");

    // What did not change is not looked at, which is said; what did is, and nothing else is covered from then on.
    moving.target.run("UPDATE t SET v = 'wrong' WHERE id IN (5, 5000)").unwrap();
    moving.source.run("UPDATE t SET n = -n WHERE id < 8; INSERT INTO still VALUES (2)").unwrap();
    moving.caught_up();
    moving.target.run("UPDATE t SET v = 'wrong' WHERE id = 5; DELETE FROM still WHERE id = 2").unwrap();
    let (code, report) = check(&moving, Some("second.json"), "third.json");
    let keys = |report: &Json, name: &str| {
        let findings = table(report, name)["findings"].as_array().unwrap().clone();
        findings.iter().flat_map(|finding| finding["keys"].as_array().unwrap().clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (code, keys(&report, "t"), keys(&report, "still")),
        (1, vec!["5".into()], vec!["2".into()]),
        "{report:#}"
    );
    let (_, report) = check(&moving, Some("third.json"), "fourth.json");
    assert_eq!((compared(&report, "t"), compared(&report, "pair")), ((false, 20_000 - 5 + 1), (true, 0)));
    assert_eq!(keys(&report, "t"), ["5", "5000"]);
}

#[test]
fn what_no_event_tells_is_compared_whole() {
    let moving = moving("whole");
    assert_eq!(check(&moving, None, "first.json").0, 0);
    // A truncate, a column, another copy of the rows, single rows read again.
    moving
        .source
        .run("TRUNCATE pair; ALTER TABLE t ADD COLUMN more int DEFAULT 7; INSERT INTO t VALUES (0, 'x', 1)")
        .unwrap();
    services::run("dflux", &moving.migration.config(), ["resync", "still", "--wait"]).unwrap().expect_code(0).unwrap();
    moving.caught_up();
    let (code, report) = check(&moving, Some("first.json"), "second.json");
    assert_eq!(code, 0, "{report:#}");
    for name in ["t", "pair", "still"] {
        assert!(!compared(&report, name).0, "{name}: {report:#}");
    }
    services::run("dflux", &moving.migration.config(), ["resync", "t", "--rows"]).unwrap().expect_code(0).unwrap();
    let (code, report) = check(&moving, Some("second.json"), "third.json");
    assert_eq!((code, compared(&report, "t")), (0, (true, 0)), "nothing was read again: {report:#}");
    moving.target.run("UPDATE t SET v = 'wrong' WHERE id = 9").unwrap();
    services::run("dflux", &moving.migration.config(), ["resync", "t", "--rows"]).unwrap().expect_code(0).unwrap();
    let (code, report) = check(&moving, Some("third.json"), "fourth.json");
    assert_eq!((code, compared(&report, "t").0), (0, false), "{report:#}");

    let said = services::run(
        "validator",
        &moving.migration.config(),
        ["check", "--since", &moving.migration.config().display().to_string()],
    );
    let said = said.unwrap();
    assert_eq!(said.code, Some(3));
    assert!(
        said.stderr.contains("is no report of an earlier check") && said.stderr.contains("hint:"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_row_that_went_wrong_behind_the_topic_is_told_from_one_that_went_wrong_before_it() {
    let moving = moving("traced");
    moving.source.run("UPDATE t SET v = 'event' WHERE id <= 30; DELETE FROM t WHERE id = 31").unwrap();
    moving.caught_up();
    moving.target.run("UPDATE t SET v = 'x' WHERE id IN (1, 2, 3, 500); DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (31, 'back', 1)").unwrap();
    let publication = moving.source.value("SELECT quote_ident(pubname) FROM pg_publication").unwrap();
    // A change that the slot never sends: what a producer that loses a record would leave behind.
    moving
        .source
        .run(&format!(
            "ALTER PUBLICATION {publication} DROP TABLE t; UPDATE t SET v = 'unseen' WHERE id IN (20, 21); \
             ALTER PUBLICATION {publication} ADD TABLE t"
        ))
        .unwrap();
    moving.caught_up();
    let (code, report) = check(&moving, None, "report.json");
    assert_eq!(code, 1);
    let traced: Vec<String> = table(&report, "t")["traced"]
        .as_array()
        .unwrap()
        .iter()
        .map(|traced| format!("{} {} {}", traced["hop"].as_str().unwrap(), traced["rows"], traced["keys"]))
        .collect();
    assert_eq!(
        traced,
        [
            "copy 1 [[\"500\"]]",
            "source_to_topic 2 [[\"20\"],[\"21\"]]",
            "topic_to_target 5 [[\"1\"],[\"2\"],[\"3\"],[\"31\"],[\"4\"]]"
        ],
        "{report:#}"
    );
    let said = services::run("validator", &moving.migration.config(), ["check"]).unwrap();
    assert!(said.stdout.contains("2 rows went wrong between source and topic"), "{}", said.stdout);
}

#[test]
fn the_service_verifies_what_is_written_long_before_its_next_round() {
    let moving = moving("running");
    moving
        .migration
        .configure(&[
            ("validator", "interval_seconds", 3600.into()),
            ("validator", "changed_interval_seconds", 1.into()),
        ])
        .unwrap();
    let validator = moving.migration.service("validator").start().unwrap();
    let metric = |name: &str| validator.metric(name).ok().flatten().unwrap_or(-1.0);
    let verdict = |code: f64| {
        wait::until_true(&format!("verdict {code}"), LIMIT, || metric("dflux_validator_verdict_code") == code).unwrap();
    };
    wait::until_true("a full round", LIMIT, || metric("dflux_validator_rounds_total") == 1.0).unwrap();
    verdict(0.0);
    let through = || {
        let of_table = |name: &String| {
            name.starts_with("dflux_validator_table_verified_through_bytes{") && name.contains("\"public.t\"")
        };
        let metrics = validator.metrics().unwrap_or_default();
        metrics.iter().find(|(name, _)| of_table(name)).map_or(-1.0, |(_, through)| *through)
    };
    for round in 0..3 {
        moving
            .source
            .run(&format!(
                "UPDATE t SET v = 'round {round}' WHERE id % 100 = {round}; UPDATE bag SET v = v || '{round}'"
            ))
            .unwrap();
        let end = moving.source.number("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").unwrap() as f64;
        wait::until_true("what was written is verified", LIMIT, || through() >= end).unwrap();
    }
    verdict(0.0);
    // The change that follows does not carry the column, so that it heals nothing.
    moving.source.run("UPDATE t SET v = repeat(md5(random()::text), 100000) WHERE id = 77").unwrap();
    moving.caught_up();
    moving.target.run("UPDATE t SET v = left(v, 5) WHERE id = 77").unwrap();
    moving.source.run("UPDATE t SET n = 0 WHERE id = 77").unwrap();
    verdict(1.0);
    assert!(validator.log().contains("source and target differ"), "{}", validator.log());
    assert_eq!(metric("dflux_validator_rounds_total"), 1.0);
}

#[test]
fn what_is_not_the_lanes_is_no_match_and_what_was_rewritten_is_compared_whole() {
    let moving = moving("covered");
    moving.without_trigger();
    assert_eq!(check(&moving, None, "first.json").0, 0);
    // No event tells of either.
    moving.target.run("INSERT INTO dflux.table_state (lane, schema_name, table_name, generation, state) SELECT lane, 'public', 'still', 0, 'gone' FROM dflux.lane").unwrap();
    moving.source.run("ALTER TABLE pair ALTER v TYPE text USING upper(v)").unwrap();
    moving.caught_up();
    let (code, report) = check(&moving, Some("first.json"), "second.json");
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(table(&report, "still")["verdict"], "inconclusive", "{report:#}");
    assert_eq!((table(&report, "pair")["verdict"].clone(), compared(&report, "pair").0), ("mismatch".into(), false));
    assert_eq!(compared(&report, "t"), (true, 0));
}
