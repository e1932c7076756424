//! The validator on real databases: every injected corruption is named with its level, column and key, and equal data in another
//! shape is a match. PostgreSQL makes and judges the values.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use tests::services;
use tests::sql::Session;
use tests::stack::Migration;

/// One table with a column of every type that corruptions like to hide in.
const TABLE: &str = "
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE t (
  id bigint PRIMARY KEY,
  price numeric, exact numeric(12,4), at timestamptz, local timestamp, name text, code varchar(20), pad bpchar, fixed char(8),
  f8 double precision, f4 real, doc jsonb, raw json, bin bytea, mood mood, span interval, cash money, list text[], flag boolean,
  day date, addr inet, u uuid
);";
const ROWS: &str = "
INSERT INTO t SELECT i, (i * 1.10)::numeric(20,2), i / 7.0, '2024-03-31 01:30:00+00'::timestamptz + i * interval '1 second 1 microsecond',
  '2024-03-31 02:30:00'::timestamp + i * interval '1 minute', 'Zoë ' || i, 'code' || i, 'p' || i, 'f' || (i % 10),
  i * 0.1, i * 0.1, jsonb_build_object('a', i, 'b', 1.00), '{\"z\": 1, \"a\":  2}', int8send(i), (ARRAY['sad','ok','happy'])[1 + i % 3]::mood,
  make_interval(months => i % 5, secs => i), (i || '.50')::numeric::money, ARRAY['x', NULL, 'y' || i], i % 2 = 0,
  '2024-01-01'::date + (i % 50000)::int, ('10.0.0.' || i % 250)::inet, md5(i::text)::uuid
FROM generate_series(1, 5000) AS i;
INSERT INTO t (id, name, f8, f4, price, at) VALUES
  (-1, NULL, 'NaN', '-Infinity', 'NaN', 'infinity'), (-2, '', 0, 0, 0, '-infinity'), (-3, E'a\\\\b\\n\\'', 1e300, 1e-30, 1e20, '0044-03-15 BC');
CREATE TABLE bag (a int, b text);
INSERT INTO bag SELECT i % 100, 'x' || i % 100 FROM generate_series(1, 1000) AS i;
CREATE TABLE pair (a text, b int, v int, PRIMARY KEY (a, b));
INSERT INTO pair SELECT 'k' || i, i, i FROM generate_series(1, 100) AS i;
CREATE TABLE parts (id int, day int, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM (0) TO (5);
CREATE TABLE parts_b PARTITION OF parts FOR VALUES FROM (5) TO (10);
INSERT INTO parts SELECT i, i % 10, i FROM generate_series(1, 100) AS i;";

fn check(migration: &Migration, arguments: &[&str]) -> (i32, Json) {
    let json = migration.folder.join("report.json");
    let path = json.display().to_string();
    let all = ["check", "--json", &path].into_iter().chain(arguments.iter().copied()).map(str::to_owned);
    let said = services::run("validator", &migration.config(), all).unwrap();
    let code = said.code.unwrap();
    let text = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("code {code}: {}{}", said.stdout, said.stderr));
    (code, serde_json::from_str(&text).unwrap())
}

fn table<'a>(report: &'a Json, name: &str) -> &'a Json {
    report["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap()
}

/// `level column cause keys` of what levels 0 to 2 found and is no note.
fn found(report: &Json, name: &str) -> Vec<String> {
    let findings = table(report, name)["findings"].as_array().unwrap();
    let line = |finding: &Json| {
        let keys: Vec<String> = finding["keys"].as_array().unwrap().iter().map(Json::to_string).collect();
        let column = finding["column"].as_str().unwrap_or("-");
        format!("{} {column} {} {}", finding["level"], finding["cause"].as_str().unwrap(), keys.join(","))
    };
    let proved = |finding: &&Json| finding["note"] != true && finding["level"].as_u64() <= Some(2);
    findings.iter().filter(proved).map(line).collect()
}

fn twins(label: &str) -> Migration {
    let migration = Migration::shared(label).unwrap();
    for session in [migration.source().unwrap(), migration.target().unwrap()] {
        session.run(TABLE).unwrap();
        session.run(ROWS).unwrap();
    }
    migration
}

#[test]
fn every_injected_corruption_is_named_with_level_column_and_key() {
    let migration = twins("injections");
    migration.configure(&[("validator", "chunk_rows", 700.into())]).unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!((code, &report["verdict"], &report["mode"]), (0, &"match".into(), &"offline".into()), "{report:#}");
    assert_eq!(table(&report, "public.t")["rows_source"], 5003);
    let target = migration.target().unwrap();
    // SQL on the target, the table, and what is found.
    let cases: &[(&str, &str, &[&str])] = &[
        ("UPDATE t SET price = 'x'::text || '' WHERE false", "public.t", &[]),
        ("UPDATE t SET price = trim_scale(price) WHERE id = 100", "public.t", &["2 price scale_lost \"100\""]),
        (
            "UPDATE t SET exact = exact::float4::numeric WHERE id = 4001",
            "public.t",
            &["2 exact decimal_through_float4 \"4001\""],
        ),
        (
            "UPDATE t SET at = at + interval '5 hours 30 minutes' WHERE id IN (7, 4000)",
            "public.t",
            &["2 at constant_offset \"7\",\"4000\""],
        ),
        ("UPDATE t SET at = date_trunc('milliseconds', at) WHERE id = 9", "public.t", &["2 at time_truncated \"9\""]),
        ("UPDATE t SET name = normalize(name, NFD) WHERE id = 11", "public.t", &["2 name nfc_became_nfd \"11\""]),
        (
            "UPDATE t SET name = CASE id WHEN 12 THEN 'Zoë 13' ELSE 'Zoë 12' END WHERE id IN (12, 13)",
            "public.t",
            &["2 name swapped_between_rows \"12\",\"13\""],
        ),
        ("UPDATE t SET name = '' WHERE id = -1", "public.t", &["2 name null_became_empty \"-1\""]),
        ("UPDATE t SET name = NULL WHERE id = 14", "public.t", &["2 name value_became_null \"14\""]),
        ("UPDATE t SET name = upper(name) WHERE id = 15", "public.t", &["2 name case_changed \"15\""]),
        ("UPDATE t SET name = 'Zo? 16' WHERE id = 16", "public.t", &["2 name characters_replaced \"16\""]),
        ("UPDATE t SET code = 'cod' WHERE id = 17", "public.t", &["2 code truncated \"17\""]),
        ("UPDATE t SET f8 = '-0' WHERE id = -2", "public.t", &["2 f8 negative_zero \"-2\""]),
        ("UPDATE t SET f8 = 0.30000000000000004 + 1e-16 WHERE id = 3", "public.t", &["2 f8 precision_lost \"3\""]),
        ("UPDATE t SET pad = pad || '  '::text WHERE id = 18", "public.t", &["2 pad blanks_padded \"18\""]),
        ("UPDATE t SET doc = '{\"a\": 19, \"b\": 1}' WHERE id = 19", "public.t", &["2 doc json_number_scale \"19\""]),
        ("UPDATE t SET raw = '{\"z\": 1, \"a\": 2}' WHERE id = 20", "public.t", &["2 raw json_reformatted \"20\""]),
        ("UPDATE t SET bin = bin || '\\x00' WHERE id = 21", "public.t", &["2 bin bytea_padded \"21\""]),
        ("UPDATE t SET mood = 'sad' WHERE id = 22", "public.t", &["2 mood enum_label_moved \"22\""]),
        ("UPDATE t SET span = '1 day' WHERE id = 23", "public.t", &["2 span value_differs \"23\""]),
        (
            "UPDATE t SET list = ARRAY['x', 'NULL', 'y24'] WHERE id = 24",
            "public.t",
            &["2 list array_null_became_text \"24\""],
        ),
        ("UPDATE t SET cash = cash + '0.01' WHERE id = 25", "public.t", &["2 cash value_differs \"25\""]),
        ("DELETE FROM t WHERE id = 26", "public.t", &["1 - missing_row \"26\""]),
        ("INSERT INTO t (id) VALUES (99999)", "public.t", &["1 - extra_row \"99999\""]),
        ("UPDATE t SET id = 27000 WHERE id = 27", "public.t", &["1 id key_changed \"27\""]),
        ("UPDATE pair SET v = v + 1 WHERE b = 5", "public.pair", &["2 v value_differs [\"k5\",\"5\"]"]),
    ];
    for (sql, name, expected) in cases.iter().skip(1) {
        target.run(&format!("CREATE TABLE saved AS SELECT * FROM {name}; {sql}")).unwrap();
        let (code, report) = check(&migration, &["--table", name]);
        let mut lines = found(&report, name);
        lines.sort();
        assert_eq!((code, lines.iter().map(String::as_str).collect::<Vec<_>>()), (1, expected.to_vec()), "{sql}");
        target.run(&format!("TRUNCATE {name}; INSERT INTO {name} SELECT * FROM saved; DROP TABLE saved")).unwrap();
    }
    let (code, report) = check(&migration, &[]);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn a_pattern_that_names_a_partitioned_table_takes_its_partitions_however_the_target_divides_it() {
    let migration = twins("parts");
    let only = |pattern: &str| {
        let patterns = toml::Value::Array(vec![pattern.into()]);
        migration.configure(&[("migration", "tables", patterns)]).unwrap();
    };
    only("public.parts");
    let (code, report) = check(&migration, &[]);
    assert_eq!((code, report["tables"].as_array().unwrap().len()), (0, 1), "{report:#}");
    assert_eq!(table(&report, "public.parts")["rows_source"], 100);
    let target = migration.target().unwrap();
    target.run("DELETE FROM parts_a WHERE id = 11").unwrap();
    // A partition is compared as a part of its table.
    for arguments in [&[][..], &["--table", "public.parts"], &["--table", "public.parts_a"]] {
        let (code, report) = check(&migration, arguments);
        assert_eq!((code, found(&report, "public.parts")), (1, vec!["1 - missing_row [\"11\",\"1\"]".to_owned()]));
    }
    target
        .run(
            "INSERT INTO parts VALUES (11, 1, 11); CREATE TABLE rows AS SELECT * FROM parts; DROP TABLE parts_a, parts_b;
             CREATE TABLE parts_all PARTITION OF parts DEFAULT; INSERT INTO parts SELECT * FROM rows; DROP TABLE rows",
        )
        .unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!((code, &table(&report, "public.parts")["rows_target"]), (0, &100.into()), "{report:#}");
    // Without a key its partitions are tables of their own.
    for session in [&migration.source().unwrap(), &target] {
        session
            .run("CREATE TABLE loose (v int) PARTITION BY LIST (v); CREATE TABLE loose_1 PARTITION OF loose DEFAULT; INSERT INTO loose VALUES (1)")
            .unwrap();
    }
    only("public.loose");
    let (code, report) = check(&migration, &[]);
    assert_eq!((code, &table(&report, "public.loose_1")["rows_target"]), (0, &1.into()), "{report:#}");
    target.run("DELETE FROM loose").unwrap();
    assert_eq!(check(&migration, &[]).0, 1);
}

#[test]
fn copies_in_a_keyless_table_are_counted_and_a_changed_row_is_recognised() {
    let migration = twins("keyless");
    let target = migration.target().unwrap();
    target.run("INSERT INTO bag VALUES (5, 'x5')").unwrap();
    let (code, report) = check(&migration, &["--table", "public.bag"]);
    assert_eq!(code, 1);
    assert_eq!(found(&report, "public.bag").len(), 1, "{report:#}");
    assert!(found(&report, "public.bag")[0].starts_with("1 - extra_row \"row hash "), "{report:#}");
    assert_eq!(table(&report, "public.bag")["rows_target"], 1001);
    target.run("DELETE FROM bag WHERE ctid = (SELECT max(ctid) FROM bag)").unwrap();
    target.run("UPDATE bag SET b = 'X5' WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 5)").unwrap();
    let (code, report) = check(&migration, &["--table", "public.bag"]);
    assert_eq!(code, 1);
    assert!(found(&report, "public.bag")[0].starts_with("2 b case_changed"), "{report:#}");
    // Values exchanged between rows leave every column's own values as they were.
    target.run("UPDATE bag SET b = 'x5' WHERE b = 'X5'").unwrap();
    assert_eq!(check(&migration, &[]).0, 0);
    target.run("UPDATE bag SET b = CASE a WHEN 1 THEN 'x2' ELSE 'x1' END WHERE a IN (1, 2)").unwrap();
    assert_eq!(check(&migration, &["--table", "public.bag"]).0, 1);
}

#[test]
fn equal_data_in_another_physical_shape_is_a_match() {
    let migration = Migration::shared("shapes").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    let name = source.value("SELECT current_database()").unwrap();
    // Another default collation, other OIDs, a dropped column, columns and rows in another order, TOAST or not.
    let elsewhere = &tests::stack::shared().unwrap().target;
    drop(target);
    let admin = elsewhere.session("postgres").unwrap();
    admin.run(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    admin.run(&format!("CREATE DATABASE {name} TEMPLATE template0 LOCALE 'C' ENCODING 'UTF8'")).unwrap();
    let target = migration.target().unwrap();
    target.run("CREATE TYPE pushes_oids AS ENUM ('a'); CREATE TYPE m AS ENUM ('lo', 'hi');").unwrap();
    source.run("CREATE TYPE m AS ENUM ('lo', 'hi')").unwrap();
    source.run("CREATE TABLE s (k text PRIMARY KEY, v text, e m)").unwrap();
    target.run("CREATE TABLE s (gone int, e m, v text, k text PRIMARY KEY); ALTER TABLE s DROP COLUMN gone").unwrap();
    target.run("ALTER TABLE s ALTER v SET STORAGE EXTERNAL").unwrap();
    let rows = "SELECT chr(64 + i % 60) || i, repeat('é' || i, 1 + (i % 7) * 500), (ARRAY['lo','hi'])[1 + i % 2]::m FROM generate_series(1, 3000) AS i";
    source.run(&format!("INSERT INTO s (k, v, e) {rows}")).unwrap();
    target.run(&format!("INSERT INTO s (k, v, e) {rows} ORDER BY md5(i::text)")).unwrap();
    migration.configure(&[("validator", "chunk_rows", 500.into())]).unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(table(&report, "public.s")["rows_target"], 3000);
}

#[test]
fn a_schema_that_was_mapped_wrongly_is_named_at_level_0() {
    let migration = Migration::shared("schema").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    source.run("CREATE TABLE a (id int PRIMARY KEY, n numeric, t timestamptz, s text NOT NULL, c text COLLATE \"C\" DEFAULT 'x'); CREATE INDEX a_s ON a (s); CREATE TABLE only_source (i int)").unwrap();
    target.run("CREATE TABLE a (id int PRIMARY KEY, n double precision, t timestamp, s varchar(10), c text, more int); CREATE TABLE only_target (i int)").unwrap();
    source.run("INSERT INTO a VALUES (1, 1.10, '2024-01-01', 's', 'c')").unwrap();
    target.run("INSERT INTO a VALUES (1, 1.10, '2024-01-01', 's', 'c')").unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!(code, 1);
    let lines = found(&report, "public.a");
    for expected in [
        "0 n type_differs ",
        "0 t type_differs ",
        "0 s type_differs ",
        "0 s nullability_differs ",
        "0 c collation_differs ",
        "0 c default_lost ",
        "0 more column_extra ",
        "0 - index_missing ",
        "2 n value_differs \"1\"",
    ] {
        let alike = |line: &String| line == expected || (expected.starts_with("2 n") && line.starts_with("2 n "));
        assert!(lines.iter().any(alike), "{expected}: {lines:?}");
    }
    assert_eq!(found(&report, "public.only_source"), ["0 - table_missing "]);
    assert_eq!(found(&report, "public.only_target"), ["0 - table_extra "]);
}

#[test]
fn what_cannot_be_compared_is_never_a_match() {
    let migration = Migration::shared("never").unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!((code, report["verdict"].as_str()), (2, Some("inconclusive")), "no table");
    let run = |arguments: &[&str]| {
        let arguments = ["check"].into_iter().chain(arguments.iter().copied()).map(str::to_owned);
        services::run("validator", &migration.config(), arguments).unwrap()
    };
    let said = run(&["--table", "public.nosuch"]);
    assert!(said.code == Some(3) && said.stderr.contains("hint: "), "{}", said.stderr);
    assert_eq!(run(&["--nosuch"]).code, Some(3));
    // A table that the validator may not read is an error, and the others are still compared.
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    for session in [&source, &target] {
        session.run("CREATE TABLE a (i int PRIMARY KEY); CREATE TABLE b (i int PRIMARY KEY)").unwrap();
        session.run("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").unwrap();
    }
    let shared = tests::stack::shared().unwrap();
    let role = format!("reader_{}", migration.name);
    shared.source.login(&role, tests::postgres::Proof::Scram, "").unwrap();
    source.run(&format!("GRANT SELECT ON b TO {role}")).unwrap();
    migration.configure(&[("source", "url", shared.source.url_as(&role, &migration.name).into())]).unwrap();
    let (code, report) = check(&migration, &[]);
    assert_eq!(code, 3, "{report:#}");
    assert_eq!(table(&report, "public.a")["verdict"], "error");
    assert!(table(&report, "public.a")["reason"].as_str().unwrap().contains("grant SELECT"), "{report:#}");
    assert_eq!(table(&report, "public.b")["verdict"], "match");
    migration.configure(&[("source", "url", "postgresql://nobody:wrong@127.0.0.1:1/none".into())]).unwrap();
    let said = run(&[]);
    assert!(said.code == Some(3) && said.stderr.contains("hint: "), "{}", said.stderr);
}

#[test]
fn servers_of_different_versions_are_compared() {
    let old = tests::postgres::Server::start(tests::postgres::Options::new("oldest").version(14)).unwrap();
    let new = tests::postgres::Server::start(tests::postgres::Options::new("newest").version(17)).unwrap();
    let shared = tests::stack::shared().unwrap();
    let addresses = tests::stack::Addresses {
        source: old.url("postgres"),
        target: new.url("postgres"),
        brokers: shared.broker.bootstrap(),
        registry: shared.registry.url(),
    };
    let migration = Migration::between(&tests::stack::unique("versions"), addresses).unwrap();
    for session in [migration.source().unwrap(), migration.target().unwrap()] {
        session.run(TABLE).unwrap();
        session.run(ROWS).unwrap();
    }
    let (code, report) = check(&migration, &[]);
    assert_eq!(code, 0, "{report:#}");
}

/// One random change of every kind: rows made, changed (with large values that are then not sent again), deleted, renumbered, and
/// equal rows without a key.
const WRITE: &str = "DO $$
DECLARE i int := 1 + random() * 300; j int := 1 + random() * 99;
BEGIN
  UPDATE tale SET n = n + 1 WHERE id = 1;
  IF j = 1 THEN UPDATE tale SET id = -id WHERE id IN (2, -2); END IF;
  CASE (random() * 9)::int
  WHEN 0 THEN INSERT INTO t (id, name, price, f8, at, doc) VALUES (i, repeat(md5(random()::text), 300), random()::numeric, random() * 1e30, now(), '{\"n\": 1.00}')
    ON CONFLICT (id) DO UPDATE SET name = excluded.name;
  WHEN 1 THEN UPDATE t SET f4 = random() / 1e20, f8 = -0.0, span = make_interval(mins => i), list = ARRAY[md5(i::text), NULL] WHERE id = i;
  WHEN 2 THEN DELETE FROM t WHERE id = i;
  WHEN 3 THEN UPDATE t SET id = id + 100000 WHERE id = i AND NOT EXISTS (SELECT FROM t WHERE id = i + 100000);
  WHEN 4 THEN INSERT INTO bag VALUES (j, 'x' || j), (j, 'x' || j);
  WHEN 5 THEN DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = j);
  WHEN 6 THEN UPDATE bag SET b = b || '!' WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = j);
  WHEN 7 THEN UPDATE pair SET b = b + 1000, v = v + 1 WHERE a = 'k' || j;
  WHEN 8 THEN UPDATE parts SET day = (day + 5) % 10, v = v + 1 WHERE id = j;
  ELSE INSERT INTO parts VALUES (i + 100, i % 10, 1) ON CONFLICT (id, day) DO UPDATE SET v = parts.v + 1;
  END CASE;
END $$";

/// A migration that runs, with TPC-B tables beside those of [`TABLE`].
struct Running {
    migration: Migration,
    consumer: services::Service,
    _producer: services::Service,
}

fn running(label: &str) -> Running {
    let migration = Migration::shared(label).unwrap();
    let servers = tests::stack::shared().unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    servers.source.tool("pgbench", ["-i", "-q", "-s", "1", &migration.addresses.source]).run().unwrap();
    source.run(TABLE).unwrap();
    source.run(ROWS).unwrap();
    source
        .run(
            "CREATE TABLE tale (id int PRIMARY KEY, n int, told text); ALTER TABLE tale ALTER told SET STORAGE EXTERNAL;
             INSERT INTO tale SELECT i, 0, repeat('told', 2000) FROM generate_series(1, 2) i",
        )
        .unwrap();
    let dump = servers.source.tool("pg_dump", ["--schema-only", &migration.addresses.source]).run().unwrap();
    // Newer versions write commands of psql around their SQL.
    let sql: Vec<&str> = dump.lines().filter(|line| !line.starts_with('\\')).collect();
    target.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
    Session::connect(&migration.addresses.target)
        .unwrap()
        .run(&sql.join("\n").replace("CREATE SCHEMA public;", ""))
        .unwrap();
    migration
        .configure(&[("validator", "chunk_rows", 20_000.into()), ("validator", "interval_seconds", 1.into())])
        .unwrap();
    let producer = migration.service("producer").start().unwrap();
    let consumer = migration.service("consumer").start().unwrap();
    let running = Running { migration, consumer, _producer: producer };
    tests::wait::until_true("the lane is exact", Duration::from_secs(120), || {
        target.value("SELECT phase FROM dflux.lane").is_ok_and(|phase| phase == "exact")
    })
    .unwrap();
    running
}

#[test]
fn under_load_no_row_in_flight_is_a_mismatch_and_every_real_difference_is_one() {
    let running = running("load");
    let (migration, servers) = (&running.migration, tests::stack::shared().unwrap());
    let url = migration.addresses.source.as_str();
    let load = servers.source.tool("pgbench", ["-n", "-c", "2", "-T", "600", "-R", "150", url]).start().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let session = Session::connect(url).unwrap();
            while !stop.load(Ordering::Relaxed) {
                session.run(WRITE).unwrap();
            }
        });
        // Whatever fails below, the writer ends first.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compare_under_load(migration)));
        stop.store(true, Ordering::Relaxed);
        load.kill();
        outcome.unwrap();
    });
}

fn compare_under_load(migration: &Migration) {
    let mut settled = 0;
    for _round in 0..6 {
        let (code, report) = check(migration, &[]);
        assert_eq!((code, report["mode"].as_str()), (0, Some("online")), "{report:#}");
        settled += report["tables"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|t| t["rows_settled_by_event"].as_u64())
            .sum::<u64>();
    }
    assert!(settled > 0, "no row was ever in flight, so nothing was tried");
    let target = migration.target().unwrap();
    // A cold row, a missing one, and a hot one that is spoilt again at every change.
    target
        .run("UPDATE pgbench_accounts SET filler = 'spoilt' WHERE aid = 4242; DELETE FROM t WHERE id = 4999")
        .unwrap();
    target
        .run(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN NEW.filler := 'spoilt'; RETURN NEW; END $$;
             CREATE TRIGGER spoil BEFORE UPDATE ON pgbench_branches FOR EACH ROW EXECUTE FUNCTION spoil();
             ALTER TABLE pgbench_branches ENABLE ALWAYS TRIGGER spoil",
        )
        .unwrap();
    // A hot one whose value is in no event.
    target.run("UPDATE tale SET told = repeat('tolt', 2000) WHERE id = 1").unwrap();
    tests::wait::until_true("the hot row is spoilt", Duration::from_secs(30), || {
        target.number("SELECT count(*) FROM pgbench_branches WHERE filler = 'spoilt'").is_ok_and(|count| count == 1)
    })
    .unwrap();
    let (code, report) = check(migration, &[]);
    assert_eq!(code, 1, "{report:#}");
    let has = |table: &str, start: &str| found(&report, table).iter().any(|line| line.starts_with(start));
    assert!(has("public.pgbench_accounts", "2 filler value_differs \"4242\""), "{report:#}");
    assert!(has("public.t", "1 - missing_row \"4999\""), "{report:#}");
    assert!(has("public.pgbench_branches", "2 filler "), "{report:#}");
    assert!(has("public.tale", "2 told "), "{report:#}");
    for name in ["public.bag", "public.pair", "public.parts", "public.pgbench_tellers", "public.pgbench_history"] {
        assert_eq!(table(&report, name)["verdict"], "match", "{report:#}");
    }
    target.run("DROP FUNCTION spoil() CASCADE").unwrap();
}

#[test]
fn a_lane_that_stands_still_is_inconclusive_and_a_truncate_settles() {
    let running = running("still");
    let migration = &running.migration;
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    let (code, report) = check(migration, &[]);
    assert_eq!(code, 0, "{report:#}");
    migration.configure(&[("validator", "settle_seconds_max", 2.into())]).unwrap();
    running.consumer.pause();
    source.run("UPDATE pair SET v = v + 1").unwrap();
    let (code, report) = check(migration, &[]);
    assert_eq!((code, report["verdict"].as_str()), (2, Some("inconclusive")), "{report:#}");
    assert!(table(&report, "public.pair")["reason"].as_str().unwrap().contains("did not reach"), "{report:#}");
    running.consumer.resume();
    migration.configure(&[("validator", "interval_seconds", 1.into())]).unwrap();
    source.run("TRUNCATE pair; INSERT INTO pair VALUES ('a', 1, 1)").unwrap();
    assert_eq!(check(migration, &[]).0, 0);
    // PostgreSQL does not send a TRUNCATE of a single partition; reading the table again mends it.
    source.run("TRUNCATE parts_a").unwrap();
    assert!(source.number("SELECT count(*) FROM parts").unwrap() > 0);
    let (code, report) = check(migration, &["--table", "public.parts"]);
    assert!(code == 1 && found(&report, "public.parts")[0].starts_with("1 - extra_row"), "{report:#}");
    services::run("dflux", &migration.config(), ["resync", "public.parts", "--wait", "--timeout", "120"])
        .unwrap()
        .expect_code(0)
        .unwrap();
    let (code, report) = check(migration, &["--table", "public.parts"]);
    assert_eq!(code, 0, "{report:#}");
    // A transaction larger than what is remembered of changes.
    source.run("UPDATE pgbench_accounts SET abalance = abalance + 1").unwrap();
    let (code, report) = check(migration, &[]);
    assert_eq!(code, 0, "{report:#}");
    // The service says the same, and by its metrics.
    let service = migration.service("validator").start().unwrap();
    let verdict = |wanted: f64| {
        tests::wait::until_true("the service has come to its verdict", Duration::from_secs(60), || {
            service.metric("dflux_validator_verdict_code").is_ok_and(|code| code == Some(wanted))
        })
        .unwrap();
    };
    verdict(0.0);
    assert!(service.ready().unwrap().contains("match at the newest round"));
    for name in ["lag_seconds", "lag_bytes", "verified_through_bytes", "verified_rows"] {
        let name = format!("dflux_validator_{name}");
        tests::wait::until_true(&name, Duration::from_secs(30), || service.metric(&name).is_ok_and(|v| v.is_some()))
            .unwrap();
    }
    target.run("UPDATE pair SET v = 7").unwrap();
    verdict(1.0);
    source.run("UPDATE pair SET v = 8").unwrap();
    verdict(0.0);
    assert_eq!(service.terminate().unwrap(), Some(0));
}
