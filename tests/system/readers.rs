//! The topics belong to everybody: programs that are not ours, with the schemas from the registry. What runs here is the README's
//! own text, so what it shows is true.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tests::process::{Launch, Process};
use tests::services::Service;
use tests::sql::Session;
use tests::stack::{self, Migration};
use tests::{cache, connect, wait};

const LIMIT: Duration = Duration::from_secs(120);

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

/// The README's first block of code in a language.
fn shown(language: &str) -> String {
    let readme = std::fs::read_to_string(cache::checkout().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language} in it"));
    rest.split_once("\n```").unwrap().0.to_owned()
}

/// A migration whose producer streams, with these tables.
fn streaming(label: &str, tables: &str) -> (Migration, Session, Service) {
    streaming_in(Migration::shared(label).unwrap(), tables)
}

fn streaming_in(migration: Migration, tables: &str) -> (Migration, Session, Service) {
    let source = migration.source().unwrap();
    source.run(tables).unwrap();
    let producer = migration.service("producer").start().unwrap();
    producer.wait_healthy(LIMIT).unwrap();
    // It is active while it is made, too.
    let slot = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'dflux_{}' AND active AND confirmed_flush_lsn IS NOT NULL",
        migration.name
    );
    wait::until_true("the slot streams", LIMIT, || source.number(&slot).is_ok_and(|n| n == 1)).unwrap();
    (migration, source, producer)
}

fn run_one_by_one(source: &Session, statements: &str) {
    for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
        source.run(statement).unwrap();
    }
}

/// The events that a reader prints, one JSON object a line.
fn printed(reader: &Process, count: usize) -> Vec<Value> {
    let events = || -> Vec<Value> {
        let log = reader.log();
        log.lines()
            .filter(|line| line.starts_with("{\"key\""))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let all = reader.wait_until(&format!("{count} events are printed"), LIMIT, || {
        let events = events();
        if events.len() >= count { Ok(events) } else { Err(format!("{} so far", events.len())) }
    });
    all.unwrap()
}

/// What every reader must have seen of `ROW`, whatever it makes of the types.
fn check(events: &[Value]) {
    let ops: Vec<&str> = events.iter().map(|event| event["value"]["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["c", "u", "d", "c", "d"]);
    let keys: Vec<&Value> = events.iter().map(|event| &event["key"]["id"]).collect();
    assert_eq!(keys, [1, 1, 1, 2, 2]);
    let created = &events[0]["value"]["after"];
    let expected = json!({
        "id": 1, "small": -2, "flag": true, "f4": 1.5, "f8": -0.25, "big": "12345678901234567890.0001", "t": "é \"x\"",
        "c": "ab   ", "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "j": "{\"a\": 1.00}", "m": "so so", "a": "{1,NULL}",
        "i": "1 mon -2 days", "two_20_words": "yes"
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&created[name], value, "{name}");
    }
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

/// Writes the README's program into the migration's folder.
fn written(migration: &Migration, name: &str, language: &str) -> PathBuf {
    let path = migration.folder.join(name);
    std::fs::write(&path, shown(language)).unwrap();
    path
}

/// The README's Python program on a table's topic.
fn python(migration: &Migration, topic: &str) -> Process {
    let script = written(migration, "read.py", "python");
    let python = cache::part(&["python"]).unwrap().join("bin/python");
    let topic = format!("{}.forward.public.{topic}", migration.name);
    let addresses = &migration.addresses;
    Launch::new("python", python, &migration.folder)
        .arguments([script.to_str().unwrap(), &addresses.brokers, &addresses.registry, &topic])
        .start()
        .unwrap()
}

#[test]
fn python_puts_together_what_came_in_pieces() {
    let migration = Migration::shared("pieces").unwrap();
    migration.configure(&[("kafka", "record_bytes_max", 65_536.into())]).unwrap();
    let table = "CREATE TABLE large (id int PRIMARY KEY, t text); ALTER TABLE large REPLICA IDENTITY FULL";
    let (migration, source, _producer) = streaming_in(migration, table);
    run_one_by_one(
        &source,
        "INSERT INTO large VALUES (1, repeat('aé', 100000)), (2, 'small'); UPDATE large SET t = repeat('ü', 50000), id = 3 WHERE id = 1;
         UPDATE large SET t = t || 'x'",
    );
    let reader = python(&migration, "large");
    let (first, second) = ("aé".repeat(100_000), "ü".repeat(50_000));
    let expected = json!([
        ["c", 1, null, first],
        ["c", 2, null, "small"],
        ["d", 1, first, null],
        ["c", 3, null, second],
        ["u", 2, "small", "smallx"],
        ["u", 3, second, format!("{second}x")]
    ]);
    let events: Vec<Value> = printed(&reader, 6)
        .iter()
        .map(|event| {
            let value = &event["value"];
            json!([value["op"], event["key"]["id"], value["before"]["t"], value["after"]["t"]])
        })
        .collect();
    let short = |value: &Value| value.to_string().chars().take(60).collect::<String>();
    for (found, expected) in events.iter().zip(expected.as_array().unwrap()) {
        assert!(found == expected, "{} and not {}", short(found), short(expected));
    }
}

#[test]
fn python_reads_a_topic_by_confluents_client_and_deserializer() {
    let (migration, source, _producer) = streaming("python", TABLE);
    run_one_by_one(&source, ROW);
    let reader = python(&migration, "-4dixed");
    let events = printed(&reader, 5);
    check(&events);
    // Its types have the logical ones.
    let created = &events[0]["value"]["after"];
    assert_eq!(created["price"], "-1.5000");
    assert_eq!(created["d"], "2024-02-29");
    assert_eq!(created["ts"], "2024-02-29 10:34:56.789000+00:00");
    assert_eq!(created["l"], "1969-12-31 23:59:59.999999");
}

#[test]
fn java_reads_a_topic_by_kafkas_client_and_apicurios_deserializer() {
    let (migration, source, _producer) = streaming("java", TABLE);
    run_one_by_one(&source, ROW);
    let program = written(&migration, "Read.java", "java");
    let jars = format!("{}/*", cache::part(&["connect"]).unwrap().display());
    let topic = format!("{}.forward.public.-4dixed", migration.name);
    let reader = Launch::new("java", "java", &migration.folder)
        .arguments(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
        .arguments(["-cp", &jars, program.to_str().unwrap()])
        .arguments([&migration.addresses.brokers, &connect::native_registry(&migration.addresses.registry), &topic])
        .start()
        .unwrap();
    let events = printed(&reader, 5);
    check(&events);
    // Numbers of the logical types: days and microseconds.
    let created = &events[0]["value"]["after"];
    assert_eq!(created["d"], 19_782);
    assert_eq!(created["ts"], 1_709_202_896_789_000_i64);
    assert_eq!(created["l"], -1);
}

/// Tables that the sink can write, of every type that has a text or a type of its own in Avro.
const COPIED: &str = "
    CREATE TYPE mood AS ENUM ('so so', 'fine');
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE \"Copied\" (id bigint PRIMARY KEY, small smallint, n int, flag boolean, f4 real, f8 double precision, price numeric(10,4),
      big numeric, t text, v varchar(20), c char(5), raw bytea, u uuid, d date, tm time, tz timetz, ts timestamptz, l timestamp, j json,
      jb jsonb, x xml, m mood, a int[], moods mood[], p pair, i interval, \"two words\" text, net inet, mac macaddr, r int4range, b bit(3),
      vb varbit, cash money, place point, tsv tsvector, o oid, at pg_lsn);
    CREATE TABLE keyed (u uuid, day date, v text, PRIMARY KEY (u, day));";

const CHANGES: &str = "
    INSERT INTO \"Copied\" VALUES (1, -2, 7, true, 1.1, -0.1, -1.5000, 12345678901234567890.0001, 'é \"x\" ''q'' \\', 'v', 'ab', '\\x00ff',
      'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-02-29', '23:59:59.999999', '12:00:00+02', '2024-02-29 12:34:56.789012+02',
      '1969-12-31 23:59:59.999999', '{\"b\": 1.00,  \"a\": 2}', '{\"b\": 1.00, \"a\": 2}', '<a>b</a>', 'so so', '{1,NULL,3}', '{fine,\"so so\"}',
      '(1,\"x, y\")', '1 mon -2 days 03:00', 'yes', '10.0.0.1/8', '08:00:2b:01:02:03', '[1,5)', '101', '10', 1234.5, '(1,2)', 'a:1 b:2',
      4294967295, '16/B374D848');
    INSERT INTO \"Copied\" (id, f4, f8, d, l) VALUES (2, 'NaN', '-Infinity', '9999-12-31', '9999-12-31 23:59:59.999999'), (3, 0, 0, NULL, NULL);
    INSERT INTO \"Copied\" (id, t) SELECT n, 'row ' || n FROM generate_series(10, 500) n;
    INSERT INTO keyed SELECT gen_random_uuid(), date '2020-01-01' + n, 'v' || n FROM generate_series(1, 50) n;
    UPDATE \"Copied\" SET t = 'updated', \"two words\" = 'no', jb = '[1, null]', m = 'fine' WHERE id % 3 = 0;
    UPDATE keyed SET v = v || '!' WHERE day > '2020-01-20';
    DELETE FROM \"Copied\" WHERE id % 7 = 0;
    DELETE FROM keyed WHERE day < '2020-01-05';
    UPDATE \"Copied\" SET id = -id WHERE id % 5 = 0;
    UPDATE keyed SET day = day + 1000 WHERE day > '2020-02-10';";

#[test]
fn debeziums_jdbc_sink_writes_a_third_database_from_the_topics() {
    let (migration, source, _producer) = streaming("sink", COPIED);
    let target = &stack::shared().unwrap().target;
    let name = stack::unique("sinkcopy");
    let copy = target.database(&name).unwrap();
    copy.run(COPIED).unwrap();
    let topics = ["-43opied", "keyed"].map(|table| format!("{}.forward.public.{table}", migration.name)).join(",");
    // The README's text, with this stack's addresses.
    let text = shown("properties");
    let mut sink = text.clone();
    for (shown, here) in [
        ("app.forward.public.orders", topics),
        ("copy:5432/copy", format!("127.0.0.1:{}/{name}", target.port())),
        ("connection.password=secret", format!("connection.password={}", tests::postgres::PASSWORD)),
        ("http://registry:8080/apis/registry/v2", connect::native_registry(&migration.addresses.registry)),
    ] {
        assert!(sink.contains(shown), "{shown} is not in the README's text");
        sink = sink.replace(shown, &here);
    }
    let worker = connect::Worker::start(&migration.addresses.brokers, &sink).unwrap();
    source.run("BEGIN").unwrap();
    run_one_by_one(&source, CHANGES);
    source.run("COMMIT").unwrap();
    let digest = "SELECT md5(coalesce(string_agg(t, E'\\n' ORDER BY t), '')) || ' ' || count(*) FROM (SELECT \"Copied\"::text FROM \"Copied\"
        UNION ALL SELECT keyed::text FROM keyed) AS x(t)";
    let same = |what: &str| {
        let outcome = worker.wait_until(what, LIMIT, || {
            let (wanted, found) = (source.value(digest).unwrap(), copy.value(digest).unwrap());
            if wanted == found { Ok(()) } else { Err(format!("{found} and not {wanted}")) }
        });
        outcome.unwrap_or_else(|failure| {
            let first = "SELECT \"Copied\"::text FROM \"Copied\" WHERE id = 1";
            panic!("{failure}\n{:?}\n{:?}\n{}", source.column(first), copy.column(first), worker.log())
        });
    };
    same("the third database is as the source");
    assert!(source.number("SELECT count(*) FROM \"Copied\"").unwrap() > 400);
    // What the README says of values that Avro cannot hold.
    source.run("UPDATE \"Copied\" SET price = 'NaN', t = 'last' WHERE id = 1").unwrap();
    let last = "SELECT count(*) FROM \"Copied\" WHERE id = 1 AND t = 'last' AND price IS NULL";
    worker
        .wait_until("it is null there", LIMIT, || if copy.number(last).unwrap() == 1 { Ok(()) } else { Err("no") })
        .unwrap();
    source.run("UPDATE \"Copied\" SET price = 1 WHERE id = 1; TRUNCATE keyed; INSERT INTO keyed VALUES (gen_random_uuid(), '2021-01-01', 'a')").unwrap();
    same("a truncate and what follows have arrived");
}
