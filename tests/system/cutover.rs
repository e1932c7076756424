//! The operator's whole story on real servers, with the application writing through it.

use std::time::Duration;

use serde_json::Value as Json;
use tests::cache;
use tests::process::{Launch, Process};
use tests::services::{Said, run};
use tests::wait;

use crate::moving::Moving;
use crate::reverse::{Application, Both, SCHEMA, TABLES};

fn both(label: &str) -> Both {
    let mut moving = Moving::shared(label);
    let store = moving.migration.folder.join("database.url");
    std::fs::write(&store, moving.migration.addresses.source.as_bytes()).unwrap();
    let path = store.display().to_string();
    let settings = [
        ("config_store", "kind", "file".into()),
        ("config_store", "path", path.into()),
        ("cutover", "gate_seconds", 2.into()),
        ("cutover", "max_lag_ms", 5_000.into()),
        ("cutover", "max_outage_ms", 60_000.into()),
        ("cutover", "drain_seconds", 2.into()),
    ];
    moving.migration.configure(&settings).unwrap();
    moving.source.run(SCHEMA).unwrap();
    moving.prepare();
    moving.start();
    moving.prepare();
    Both::start(moving)
}

fn dflux(both: &Both, arguments: &[&str]) -> Said {
    let said = run("dflux", &both.moving.migration.config(), arguments.iter().copied()).unwrap();
    println!("dflux {}\n{}{}", arguments.join(" "), said.stdout, said.stderr);
    said
}

fn status(both: &Both) -> Json {
    serde_json::from_str(&dflux(both, &["cutover", "status", "--json"]).stdout).unwrap()
}

#[test]
fn an_application_is_moved_there_and_back_and_there_again_and_loses_nothing() {
    let mut both = both("story");
    let moving = &both.moving;
    let store = moving.migration.folder.join("database.url");
    let read = || std::fs::read_to_string(&store).unwrap();
    let application = Application::new(&read);
    let addresses = moving.migration.addresses.clone();
    assert_eq!(status(&both)["rollback_safe"], false);
    dflux(&both, &["rollback", "start"]).expect_code(2).unwrap();
    application.beside(|| {
        application.writes(50);
        dflux(&both, &["cutover", "check"]).expect_code(0).unwrap();
        for round in 0..2 {
            dflux(&both, &["cutover", "start"]).expect_code(0).unwrap();
            assert_eq!(read(), addresses.target);
            let told = status(&both);
            assert_eq!(
                (&told["phase"], &told["application_on"], &told["rollback_safe"]),
                (&"reversible".into(), &"target".into(), &true.into()),
                "{told:#}"
            );
            application.writes(50);
            dflux(&both, &["cutover", "start"]).expect_code(2).unwrap();
            if round == 0 {
                dflux(&both, &["rollback", "check"]).expect_code(0).unwrap();
                dflux(&both, &["rollback", "start"]).expect_code(0).unwrap();
                assert_eq!(read(), addresses.source);
                assert_eq!(status(&both)["application_on"], "source");
                application.writes(50);
            }
        }
    });
    // The sessions that the sides had are ended with the application's.
    (both.moving.source, both.moving.target) =
        (both.moving.migration.source().unwrap(), both.moving.migration.target().unwrap());
    let moving = &both.moving;
    both.settled();
    moving.assert_tables_same(&TABLES);
    application.assert_kept(&moving.source);
    application.assert_kept(&moving.target);
    // Who kept the old address is told so.
    let late = moving.source.run("INSERT INTO loose VALUES (1, 'late')").expect_err("a late client").to_string();
    assert!(late.contains("takes no writes"), "{late}");
    dflux(&both, &["finalize"]).expect_code(0).unwrap();
    assert_eq!(status(&both)["rollback_unsafe_reason"], "the migration is finalized");
    dflux(&both, &["rollback", "start"]).expect_code(2).unwrap();
    assert_eq!(moving.target.number("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%reverse' AND database = current_database()").unwrap(), 0);
}

#[test]
fn a_gate_that_is_not_passed_refuses_and_a_store_that_somebody_changed_gives_it_up() {
    let both = both("gate");
    let moving = &both.moving;
    let session = tests::sql::Session::connect(&moving.migration.addresses.source).unwrap();
    session.run("BEGIN; UPDATE loose SET b = 'long'").unwrap();
    let said = tests::wait::until("the transaction is old", std::time::Duration::from_secs(60), || {
        let said = dflux(&both, &["cutover", "check"]);
        if said.stdout.contains("gate: transactions: postgres") { Ok(said) } else { Err("not yet") }
    });
    said.unwrap().expect_code(2).unwrap();
    session.run("COMMIT").unwrap();
    // Silent: it has the mark of the lane.
    let lane = format!("{}/forward", moving.migration.name);
    moving.target.run(&format!("BEGIN; SELECT pg_logical_emit_message(true, 'dflux.origin', '{lane}'); UPDATE account SET story = 'wrong' WHERE id = 3; COMMIT")).unwrap();
    let said = dflux(&both, &["cutover", "start"]);
    assert!(said.stdout.contains("gate: rows: not proved equal: public.account"), "{}", said.stdout);
    assert_eq!(said.code, Some(2));
    moving.source.run("UPDATE account SET story = 'right' WHERE id = 3").unwrap();
    moving.caught_up();
    std::fs::write(moving.migration.folder.join("database.url"), "postgresql://else@127.0.0.1:1/where").unwrap();
    let said = dflux(&both, &["cutover", "start"]);
    assert_eq!(said.code, Some(2), "{}", said.stdout);
    moving.source.run("INSERT INTO loose VALUES (5, 'the source is open')").unwrap();
    // What somebody writes to the target past its fence is not brought to the source, and named.
    std::fs::write(moving.migration.folder.join("database.url"), &moving.migration.addresses.source).unwrap();
    moving
        .target
        .run(&format!(
            "SET dflux.applier = '{}'; UPDATE account SET owner = 'rogue' WHERE id = 9",
            moving.migration.name
        ))
        .unwrap();
    both.becomes(
        "it is counted",
        "SELECT diverged = 1 AND (SELECT count(*) FROM dflux.divergence WHERE op = 'rogue') = 1 FROM dflux.lane",
    );
    assert_eq!(moving.source.value("SELECT owner FROM account WHERE id = 9").unwrap(), "o9");
    let said = dflux(&both, &["cutover", "check"]);
    assert!(said.code == Some(2) && said.stdout.contains("1 change(s) found no row"), "{}", said.stdout);
}

/// A controller of its own, to be killed.
fn begun(both: &Both, arguments: &[&str]) -> Process {
    let config = both.moving.migration.config().display().to_string();
    let arguments = arguments.iter().copied().chain(["--config", &config]).map(str::to_owned).collect::<Vec<_>>();
    Launch::new("dflux", cache::program("dflux").unwrap(), &both.moving.migration.folder)
        .arguments(arguments)
        .start()
        .unwrap()
}

/// Run until nobody holds it any more: who was killed is waited for until he has been silent for ten seconds.
fn carried(both: &Both, arguments: &[&str], on: &str) {
    wait::until(&format!("dflux {}", arguments.join(" ")), Duration::from_secs(120), || {
        let said = dflux(both, arguments);
        match said.code {
            Some(0) => Ok(()),
            Some(2) if said.stdout.contains("another process is at work") => Err("held"),
            // It had come to its end before it was killed.
            Some(2) if status(both)["application_on"] == on => Ok(()),
            code => panic!("{code:?}: {}{}", said.stdout, said.stderr),
        }
    })
    .unwrap();
    assert_eq!(status(both)["application_on"], on);
}

#[test]
fn a_controller_that_is_killed_at_any_moment_is_carried_on_by_the_next() {
    let both = both("killed");
    let store = both.moving.migration.folder.join("database.url");
    let read = || std::fs::read_to_string(&store).unwrap();
    let application = Application::new(&read);
    application.beside(|| {
        for round in 0..4_u64 {
            let (verb, on) = if round % 2 == 0 { ("cutover", "target") } else { ("rollback", "source") };
            application.writes(50);
            let before = status(&both)["epoch"].clone();
            let controller = begun(&both, &[verb, "start"]);
            wait::until_true("it is past its gate", Duration::from_secs(60), || status(&both)["epoch"] != before)
                .unwrap();
            wait::pace(Duration::from_millis(130 * round));
            controller.kill();
            carried(&both, &[verb, "start"], on);
        }
        application.writes(50);
    });
    let (source, target) = (both.moving.migration.source().unwrap(), both.moving.migration.target().unwrap());
    application.assert_kept(&source);
    wait::until_true("the target has it all", Duration::from_secs(60), || {
        let count = "SELECT count(*) FROM loose";
        source.value(count).unwrap() == target.value(count).unwrap()
    })
    .unwrap();
    application.assert_kept(&target);
}
