//! Bad input and wrong moments: each gives one clear error with its hint and exit code, and changes nothing.

use std::path::Path;
use std::time::Duration;

use tests::postgres::PASSWORD;
use tests::services::run;
use tests::stack::{self, Migration};

use crate::control::{assert_holds, assess, dflux, shop};

#[test]
fn bad_input_gives_one_clear_error_with_its_hint_and_exit_code() {
    let migration = Migration::shared("badinput").unwrap();
    shop(&migration.source().unwrap());
    let good = migration.addresses.source.clone();
    let write = |section: &str, key: &str, value: &str| migration.configure(&[(section, key, value.into())]).unwrap();
    let refused = |arguments: &[&str], code: i32, parts: &[&str]| {
        let said = run("dflux", &migration.config(), arguments.iter().copied()).unwrap();
        let text = format!("{}{}", said.stdout, said.stderr);
        assert_eq!(said.code, Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
        assert!(text.contains("hint:") || text.contains("remedy:"), "{text}");
        assert!(!text.contains(&format!(":{PASSWORD}@")), "a password is shown:\n{text}");
    };
    write("source", "url", "nonsense");
    refused(&["cleanup"], 1, &["not a PostgreSQL URL", "hint: write postgresql://"]);
    write("source", "url", &good.replace(&format!(":{PASSWORD}@"), ":wrong@"));
    refused(
        &["cleanup"],
        1,
        &["cannot connect", "password authentication failed", "hint: correct the user or password"],
    );
    refused(&["assess"], 2, &["blocker", "password authentication failed", "remedy: correct the user or password"]);
    refused(&["prepare"], 2, &["password authentication failed", "1 blocker"]);
    write("source", "url", &good.replace(&migration.name, "no_such_database"));
    refused(&["assess"], 2, &["does not exist", "CREATE DATABASE"]);
    write("producer", "backfil_workers", "2");
    refused(&["assess"], 1, &["backfil_workers", "Configuration"]);
    write("migration", "tables", "x");
    refused(&["assess"], 1, &["tables"]);
    let one = |pattern: &str| {
        let patterns = toml::Value::Array(vec![pattern.into()]);
        migration.configure(&[("migration", "tables", patterns)]).unwrap();
    };
    one("public.no_such_table");
    refused(&["prepare"], 2, &["table public.no_such_table is not in the source database"]);
    write("registry", "url", "http://127.0.0.1:1/apis/ccompat/v7");
    refused(&["prepare"], 2, &["schema registry at http://127.0.0.1:1", "does not answer"]);
    write("kafka", "brokers", "127.0.0.1:1");
    refused(&["prepare"], 2, &["Kafka at 127.0.0.1:1"]);
    migration.configure(&[]).unwrap();
    refused(&["resync", "orders"], 2, &["no lane", "hint: dflux prepare"]);
    refused(&["resync", "nothing"], 2, &["table nothing is not in the source database"]);
    assert_eq!(run("dflux", &migration.config(), ["no-such-command"]).unwrap().code, Some(1));
    let missing = run("dflux", Path::new("/no/such/file.toml"), ["assess"]).unwrap();
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("/no/such/file.toml") && missing.stderr.contains("hint:"), "{missing:?}");
    // Nothing of all this has changed anything.
    let made = "SELECT count(*) FROM pg_publication";
    assert_eq!(migration.source().unwrap().number(made).unwrap(), 0);
}

#[test]
fn a_slot_or_a_lane_that_is_in_use_is_refused_with_its_process_and_stays() {
    let migration = Migration::shared("inuse").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    source.run("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let [producer, consumer] = ["producer", "consumer"].map(|program| migration.service(program).start().unwrap());
    tests::wait::until_true("the lane is exact", Duration::from_secs(120), || {
        target.value("SELECT phase FROM dflux.lane").is_ok_and(|phase| phase == "exact")
    })
    .unwrap();
    let slot = format!("dflux_{}", migration.name);
    let state = "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()";
    let pid = source.value(state).unwrap();

    // Another migration that is told to use the same slot.
    let other = Migration::between(&stack::unique("thief"), migration.addresses.clone()).unwrap();
    other.configure(&[("migration", "slot", slot.as_str().into())]).unwrap();
    let (code, found, report) = assess(&other);
    assert_eq!(code, Some(2));
    assert_holds(&found, &["blocker slot"]);
    let report = report.to_string();
    assert!(report.contains(&format!("slot {slot} is in use by process {pid} of the source")), "{report}");
    assert!(report.contains("choose another name in [migration] slot"), "{report}");
    assert_eq!(dflux(&other, ["prepare"]).code, Some(2));

    let said = dflux(&migration, ["cleanup", "--yes"]).expect_code(2).unwrap();
    assert!(said.stderr.contains(&format!("slot {slot} is in use by process {pid}")), "{said:?}");
    assert!(said.stderr.contains("hint: stop the producer of this migration"), "{said:?}");
    assert_eq!(source.value(state).unwrap(), pid);
    producer.kill();
    let said = dflux(&migration, ["cleanup", "--yes"]).expect_code(2).unwrap();
    assert!(
        said.stderr.contains("a consumer applies lane") && said.stderr.contains("hint: stop the consumers"),
        "{said:?}"
    );
    assert_eq!(source.number("SELECT count(*) FROM pg_publication").unwrap(), 1);
    assert!(consumer.process().ended().is_none());
}
