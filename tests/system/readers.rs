//! The topics belong to everybody: a reader in another language, with the schema from the registry and nothing of ours.

use std::time::Duration;

use serde_json::{Value, json};
use tests::stack::Migration;
use tests::{cache, wait};

const TABLE: &str = "
    CREATE TYPE mood AS ENUM ('so so', 'fine');
    CREATE TABLE \"Mixed\" (id bigint PRIMARY KEY, small smallint, flag boolean, f4 real, f8 double precision, price numeric(10,4),
      big numeric, t text, c char(5), raw bytea, u uuid, d date, tm time, ts timestamptz, l timestamp, j jsonb, m mood, a int[], i interval,
      \"two words\" text);
    ALTER TABLE \"Mixed\" REPLICA IDENTITY FULL;";

const ROW: &str = "
    INSERT INTO \"Mixed\" VALUES (1, -2, true, 1.5, -0.25, -1.5000, 12345678901234567890.0001, 'é \"x\"', 'ab', '\\x00ff',
      'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-02-29', '24:00', '2024-02-29 12:34:56.789+02', '1969-12-31 23:59:59.999999',
      '{\"a\": 1.00}', 'so so', '{1,NULL}', '1 mon -2 days', 'yes');
    UPDATE \"Mixed\" SET price = 'NaN', d = 'infinity', l = '0044-03-15 BC', t = NULL WHERE id = 1;
    UPDATE \"Mixed\" SET id = 2 WHERE id = 1;
    DELETE FROM \"Mixed\";";

fn read(migration: &Migration, topic: &str) -> Vec<Value> {
    let python = cache::part(&["python"]).unwrap().join("bin/python");
    let script = cache::checkout().join("tests/system/read_topic.py");
    let addresses = &migration.addresses;
    let output = std::process::Command::new(python)
        .arg(script)
        .args([&addresses.brokers, &addresses.registry, topic])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn python_reads_a_topic_with_the_schema_from_the_registry() {
    let migration = Migration::shared("readers").unwrap();
    let source = migration.source().unwrap();
    source.run(TABLE).unwrap();
    let producer = migration.service("producer").start().unwrap();
    producer.wait_healthy(Duration::from_secs(60)).unwrap();
    let slot =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'dflux_{}' AND active", migration.name);
    wait::until_true("the slot streams", Duration::from_secs(60), || source.number(&slot).is_ok_and(|n| n == 1))
        .unwrap();
    for statement in ROW.split(';').filter(|statement| !statement.trim().is_empty()) {
        source.run(statement).unwrap();
    }
    let topic = format!("{}.forward.public.-4dixed", migration.name);
    let mut events = Vec::new();
    wait::until_true("five events are in the topic", Duration::from_secs(60), || {
        events = read(&migration, &topic);
        events.len() >= 5
    })
    .unwrap();

    let ops: Vec<&str> = events.iter().map(|event| event["value"]["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["c", "u", "d", "c", "d"]);
    let keys: Vec<&Value> = events.iter().map(|event| &event["key"]["id"]).collect();
    assert_eq!(keys, [1, 1, 1, 2, 2]);

    let created = &events[0]["value"]["after"];
    let expected = json!({
        "id": 1, "small": -2, "flag": true, "f4": 1.5, "price": "-1.5000", "big": "12345678901234567890.0001", "t": "é \"x\"",
        "c": "ab   ", "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "d": "2024-02-29", "j": "{\"a\": 1.00}", "m": "so so",
        "a": "{1,NULL}", "i": "1 mon -2 days", "ts": "2024-02-29 10:34:56.789000+00:00"
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&created[name], value, "{name}");
    }
    assert_eq!(created["two_20_words"], "yes");

    let updated = &events[1]["value"];
    assert_eq!(updated["before"]["t"], "é \"x\"");
    assert_eq!(updated["after"]["t"], Value::Null);
    assert_eq!(updated["after"]["price"], Value::Null);
    assert_eq!(
        updated["exact"],
        json!({"price": "NaN", "d": "infinity", "l": "0044-03-15 00:00:00 BC", "tm": "24:00:00"})
    );

    // A key change: delete and create share commit LSN and ordinal, and differ in part.
    let (deleted, recreated) = (&events[2]["value"], &events[3]["value"]);
    assert_eq!(deleted["source"]["commit_lsn"], recreated["source"]["commit_lsn"]);
    assert_eq!(deleted["source"]["ordinal"], recreated["source"]["ordinal"]);
    assert_eq!((&deleted["source"]["part"], &recreated["source"]["part"]), (&json!(0), &json!(1)));
}
