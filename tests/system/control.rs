//! `dflux` on real servers: what assess finds, what prepare makes, what cleanup leaves.

use std::time::Duration;

use tests::postgres::{Options, Proof, Server};
use tests::services::{Said, run};
use tests::sql::Session;
use tests::stack::{self, Addresses, Migration};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn dflux<const N: usize>(migration: &Migration, arguments: [&str; N]) -> Said {
    run("dflux", &migration.config(), arguments).unwrap()
}

/// The findings of an assess run: `severity check`, and the whole report.
pub(crate) fn assess(migration: &Migration) -> (Option<i32>, Vec<String>, serde_json::Value) {
    let file = migration.folder.join("assess.json");
    let said = dflux(migration, ["assess", "--json", file.to_str().unwrap()]);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap();
    for finding in findings.iter().filter(|finding| word(finding, "severity") != "note") {
        assert!(!word(finding, "remedy").is_empty(), "no remedy: {finding}");
        assert!(said.stdout.contains(&word(finding, "text")), "not shown: {finding}\n{}", said.stdout);
    }
    let list = findings.iter().map(|finding| format!("{} {}", word(finding, "severity"), word(finding, "check")));
    (said.code, list.collect(), report)
}

pub(crate) fn assert_holds(found: &[String], wanted: &[&str]) {
    for finding in wanted {
        assert!(found.iter().any(|held| held == finding), "{finding} is missing in {found:#?}");
    }
}

pub(crate) fn shop(session: &Session) {
    session
        .run(
            "CREATE SCHEMA other;
             CREATE TYPE mood AS ENUM ('fine', 'bad');
             CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'begin return new; end';
             CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE, m mood DEFAULT 'fine');
             CREATE TABLE orders (id serial PRIMARY KEY, customer bigint REFERENCES customers, total numeric(10,2));
             CREATE INDEX orders_customer ON orders (customer);
             CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
             CREATE TABLE days (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE days_2026 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
             CREATE INDEX days_day ON days (day);
             CREATE TABLE \"Keyless one\" (a int, b text);
             CREATE TABLE indexed (a int NOT NULL, b int);
             CREATE UNIQUE INDEX indexed_a ON indexed (a);
             ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a;
             CREATE TABLE other.stays (id int PRIMARY KEY, o int REFERENCES orders);
             CREATE VIEW order_totals AS SELECT sum(total) FROM orders;
             CREATE VIEW over_other AS SELECT * FROM other.stays;
             INSERT INTO customers (name) SELECT 'n' || n FROM generate_series(1, 1000) n;
             INSERT INTO orders (customer, total) SELECT 1 + n % 1000, n FROM generate_series(1, 5000) n;
             ANALYZE",
        )
        .unwrap();
}

/// Everything of a schema that pg_dump would write, from the catalogs, to compare before and after.
const OBJECTS: &str = "SELECT string_agg(o, ',' ORDER BY o) FROM (
    SELECT 'relation ' || n.nspname || '.' || c.relname || ' ' || c.relkind::text || c.relreplident::text FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND n.nspname <> 'dflux'
    UNION ALL SELECT 'schema ' || nspname FROM pg_namespace
    UNION ALL SELECT 'publication ' || pubname FROM pg_publication
    UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()) AS x(o)";

#[test]
fn assess_finds_every_planted_problem_at_once() {
    let source = Server::start(
        Options::new("planted").setting("wal_level", "replica").setting("max_prepared_transactions", "5"),
    )
    .unwrap();
    let session = source.database("app").unwrap();
    session
        .run(
            "CREATE EXTENSION postgres_fdw; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw;
             CREATE TABLE plain (id int PRIMARY KEY, a text); CREATE TABLE keyless (a int);
             CREATE UNLOGGED TABLE volatile (id int PRIMARY KEY); CREATE SEQUENCE lone;
             CREATE FOREIGN TABLE far (a int) SERVER elsewhere;
             CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM plain;
             CREATE TABLE computed (id serial PRIMARY KEY, twice int GENERATED ALWAYS AS (2) STORED);
             SELECT lo_create(16999);",
        )
        .unwrap();
    source.login("weak", Proof::Scram, "").unwrap();
    session.run("BEGIN; INSERT INTO plain VALUES (1, 'x'); PREPARE TRANSACTION 'left open'").unwrap();

    let servers = stack::shared().unwrap();
    let name = stack::unique("planted");
    servers.target.database(&name).unwrap().run("CREATE TABLE plain (id int PRIMARY KEY)").unwrap();
    let migration = Migration::between(
        &name,
        Addresses {
            source: source.url_as("weak", "app"),
            target: servers.target.url(&name),
            brokers: servers.broker.bootstrap(),
            registry: "http://127.0.0.1:1/apis/ccompat/v7".to_owned(),
        },
    )
    .unwrap();
    let topic = format!("{name}.forward.public.plain");
    servers.broker.create_topic(&topic, 1, &[("retention.ms", "1000")]).unwrap();
    let patterns = ["public.*", "public.nowhere", "nothing*.*", "public.*"].map(toml::Value::from).to_vec();
    migration.configure(&[("migration", "tables", toml::Value::Array(patterns))]).unwrap();

    let (code, found, report) = assess(&migration);
    assert_eq!(code, Some(2));
    assert_eq!(report["verdict"], "blocked");
    assert_holds(
        &found,
        &[
            "blocker wal_level",
            "blocker privilege_replication",
            "blocker privilege_create",
            "blocker privilege_select",
            "blocker privilege_owner",
            "blocker privilege_sequences",
            "blocker unlogged_tables",
            "blocker prepared_transactions",
            "blocker pattern",
            "blocker target_table",
            "blocker topic_retention",
            "blocker registry",
            "warning pattern",
            "warning foreign_tables",
            "warning large_objects",
            "note replica_identity",
            "note sequences",
            "note materialized_views",
            "note generated_columns",
        ],
    );
    assert_eq!(found.iter().filter(|finding| *finding == "blocker pattern").count(), 2);
    let report = report.to_string();
    for (what, remedy) in [
        ("wal_level of the source is replica, and must be logical", "ALTER SYSTEM SET wal_level = 'logical'"),
        ("user weak of the source may not replicate", "ALTER ROLE weak REPLICATION on the source"),
        ("user weak may not read public.computed", "GRANT SELECT ON"),
        ("user weak does not own public.computed", "OWNER TO weak on the source"),
        (
            "unlogged, so their changes are not in the WAL: public.volatile",
            "ALTER TABLE \\\"public\\\".\\\"volatile\\\" SET LOGGED",
        ),
        ("1 large object(s) are on the source", "SELECT lo_from_bytea(16999"),
        ("filled by dflux prepare after the catch-up: public.summary", "REFRESH MATERIALIZED VIEW on the target"),
        (
            "may not read the values of public.computed_id_seq, public.lone:",
            "GRANT SELECT ON SEQUENCE \\\"public\\\".\\\"computed_id_seq\\\"",
        ),
        ("table public.plain of the target lacks column a text", "ADD COLUMN \\\"a\\\" text on the target"),
        ("may lose records before they are applied: retention.ms = 1000", "--add-config retention.ms=-1"),
        ("schema registry at http://127.0.0.1:1/apis/ccompat/v7", "check [registry] url"),
    ] {
        assert!(report.contains(what) && report.contains(remedy), "no {what:?} or {remedy:?} in {report}");
    }
    // And prepare refuses, and changes nothing.
    let before = session.value(OBJECTS).unwrap();
    assert_eq!(dflux(&migration, ["prepare"]).code, Some(2));
    assert_eq!(session.value(OBJECTS).unwrap(), before);
    let made = migration.target().unwrap().number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dflux'").unwrap();
    assert_eq!(made, 0);
    servers.broker.delete_topic(&topic).unwrap();
}

#[test]
fn assess_measures_a_healthy_source_and_says_how_long_it_will_take() {
    let migration = Migration::shared("healthy").unwrap();
    shop(&migration.source().unwrap());
    let (code, found, report) = assess(&migration);
    assert_eq!(code, Some(0), "{found:?}");
    assert_eq!(report["verdict"], "ready");
    assert_eq!(report["measured"]["rows"], 6000);
    assert!(report["measured"]["read_bytes_per_second"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["plan"]["backfill_workers"].as_u64().unwrap() >= 1);
    assert_eq!(report["plan"]["lanes"], 1);
    assert_eq!(report["tables"][0]["table"], "public.orders");
    assert_holds(&found, &["warning partition_truncate"]);
}

#[test]
fn prepare_makes_the_schema_once_and_finds_it_made_the_second_time() {
    let migration = Migration::shared("prepared").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let count = |session: &Session, sql: &str| session.number(sql).unwrap();
    let tables = target.column(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace ORDER BY 1",
    );
    assert_eq!(tables.unwrap(), ["Keyless one", "customers", "days", "days_2026", "indexed", "orders"]);
    // What belongs to a table that is not moved stays behind, and so do all keys and indexes, until the load is done.
    assert_eq!(count(&target, "SELECT count(*) FROM pg_class WHERE relname IN ('stays', 'over_other')"), 0);
    assert_eq!(count(&target, "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'"), 0);
    assert_eq!(count(&target, "SELECT count(*) FROM pg_trigger"), 0);
    let keys = target.column("SELECT name FROM dflux.schema_step WHERE kind = 'key' ORDER BY name").unwrap();
    assert_eq!(keys, ["customers_pkey", "days_2026_pkey", "days_2026_pkey", "days_pkey", "indexed_a", "orders_pkey"]);
    assert_eq!(count(&target, "SELECT count(*) FROM dflux.source_change WHERE kind = 'replica_identity'"), 1);
    assert_eq!(source.value("SELECT relreplident FROM pg_class WHERE relname = 'Keyless one'").unwrap(), "f");
    // No write of the application fails.
    source.run("INSERT INTO \"Keyless one\" VALUES (1, 'a'); UPDATE \"Keyless one\" SET b = 'c'; DELETE FROM \"Keyless one\"").unwrap();

    let before = (source.value(OBJECTS).unwrap(), target.value(OBJECTS).unwrap());
    let steps = count(&target, "SELECT count(*) FROM dflux.schema_step");
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_eq!((source.value(OBJECTS).unwrap(), target.value(OBJECTS).unwrap()), before);
    assert_eq!(count(&target, "SELECT count(*) FROM dflux.schema_step"), steps);
}

/// Plays the consumer: the lane's row, ahead of any source, every table loaded, and the key steps.
pub(crate) fn level(target: &Session, name: &str) {
    let steps = target.column("SELECT statement FROM dflux.schema_step WHERE kind = 'key' ORDER BY id").unwrap();
    steps.iter().for_each(|statement| target.run(statement).unwrap());
    target
        .run(&format!(
            "UPDATE dflux.schema_step SET done_at = now() WHERE kind = 'key';
             INSERT INTO dflux.chunk (lane, schema_name, table_name, generation, chunk, row_count)
               SELECT '{name}/forward', schemaname, tablename, 0, 0, 0 FROM pg_tables WHERE schemaname <> 'dflux'
               ON CONFLICT DO NOTHING;
             INSERT INTO dflux.lane (lane, phase, commit_lsn) VALUES ('{name}/forward', 'exact', 'FFFFFFFF/0')
               ON CONFLICT (lane) DO UPDATE SET phase = 'exact', commit_lsn = excluded.commit_lsn"
        ))
        .unwrap();
}

#[test]
fn prepare_builds_what_was_left_once_the_lane_is_level_and_never_before() {
    let migration = Migration::shared("post").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let lane = format!("{}/forward", migration.name);
    target.run(&format!("INSERT INTO dflux.lane (lane, phase) VALUES ('{lane}', 'tolerant')")).unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert!(said.stdout.contains("catching_up"), "{said:?}");
    let waiting = "SELECT count(*) FROM dflux.schema_step WHERE kind <> 'key' AND done_at IS NULL";
    assert!(target.number(waiting).unwrap() > 0);

    level(&target, &migration.name);
    // A row that breaks the foreign key makes its validation fail; the other steps are done all the same.
    target.run("INSERT INTO orders (id, customer) VALUES (1, 999)").unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(1).unwrap();
    assert!(said.stdout.contains("orders_customer_fkey") && said.stderr.contains("hint:"), "{said:?}");
    assert_eq!(target.number(waiting).unwrap(), 1);
    target.run("DELETE FROM orders").unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_eq!(target.number(waiting).unwrap(), 0);

    // PostgreSQL judges: its own dumps of both sides are the same.
    let definitions = "SELECT string_agg(d, E'\\n' ORDER BY d) FROM (
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) || convalidated
          FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_viewdef(oid) FROM pg_class WHERE relname = 'order_totals') AS x(d)";
    assert_eq!(source.value(definitions).unwrap(), target.value(definitions).unwrap());
}

/// Rows and indexes with what each is attached to, as PostgreSQL tells them; the same on both sides, in time.
pub(crate) fn arrives(migration: &Migration, tables: &[&str]) {
    let rows = tables.iter().map(|table| {
        format!("SELECT '{table} ' || count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t")
    });
    let sql = format!(
        "SELECT string_agg(x, E'\\n' ORDER BY x) FROM ({} UNION ALL SELECT pg_get_indexdef(i.indexrelid) || ' ' ||
           i.indisprimary || i.indisvalid || ' ' || coalesce((SELECT inhparent::regclass::text FROM pg_inherits
           WHERE inhrelid = i.indexrelid), '-') FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
           WHERE c.relnamespace = 'public'::regnamespace) AS all_of_it(x)",
        rows.collect::<Vec<_>>().join(" UNION ALL ")
    );
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    let wanted = source.value(&sql).unwrap();
    wait::until("the target is as the source", LIMIT, || {
        let error = target.value("SELECT coalesce(string_agg(phase || coalesce(error, ''), ''), '') FROM dflux.lane");
        match target.value(&sql) {
            Ok(found) if found == wanted => Ok(()),
            found => Err(format!("{found:?} and not {wanted}; the lane: {error:?}")),
        }
    })
    .unwrap();
}

#[test]
fn a_partitioned_table_and_one_that_is_created_later_arrive_with_their_keys() {
    let migration = Migration::shared("partitioned").unwrap();
    let source = migration.source().unwrap();
    source
        .run(
            "CREATE TABLE root (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE leaf_a PARTITION OF root FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
             CREATE TABLE leaf_b PARTITION OF root FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
             INSERT INTO root SELECT n, date '2026-01-01' + n % 360, 'v' FROM generate_series(1, 100000) n",
        )
        .unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let _producer = migration.service("producer").start().unwrap();
    let _consumer = migration.service("consumer").start().unwrap();
    let target = migration.target().unwrap();
    wait::until("the lane is exact", LIMIT, || {
        let phase = target.value("SELECT phase || coalesce(' ' || error, '') FROM dflux.lane");
        if phase.as_ref().is_ok_and(|phase| phase == "exact") { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .unwrap();
    source.run("UPDATE root SET v = 'w' WHERE id % 7 = 0; DELETE FROM root WHERE id % 11 = 0").unwrap();
    arrives(&migration, &["root", "leaf_a", "leaf_b"]);

    source
        .run(
            "CREATE TABLE later (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE later_leaf PARTITION OF later FOR VALUES FROM (0) TO (10000);
             INSERT INTO later SELECT n, 'v' FROM generate_series(1, 1000) n",
        )
        .unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    dflux(&migration, ["resync", "later", "--wait"]).expect_code(0).unwrap();
    source.run("UPDATE later SET v = 'w' WHERE id % 7 = 0; DELETE FROM later WHERE id % 11 = 0").unwrap();
    arrives(&migration, &["root", "later", "later_leaf"]);
}

#[test]
fn without_the_right_to_silence_them_triggers_rules_and_foreign_keys_wait_for_the_cutover() {
    let migration = Migration::shared("unsilenced").unwrap();
    let servers = stack::shared().unwrap();
    let (source, target, name) = (migration.source().unwrap(), migration.target().unwrap(), &migration.name);
    source
        .run(
            "CREATE TABLE noted (id int PRIMARY KEY, counted int NOT NULL DEFAULT 0);
             CREATE TABLE notes (id serial PRIMARY KEY, noted int REFERENCES noted ON DELETE CASCADE);
             CREATE TABLE ruled (id int PRIMARY KEY);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               'begin insert into notes (noted) values (new.id); return null; end';
             CREATE TRIGGER note AFTER INSERT ON noted FOR EACH ROW EXECUTE FUNCTION note();
             COMMENT ON TRIGGER note ON noted IS 'waits too';
             CREATE RULE ruled AS ON INSERT TO ruled DO ALSO UPDATE noted SET counted = counted + 1;
             CREATE INDEX notes_noted ON notes (noted);
             INSERT INTO noted SELECT i FROM generate_series(1, 10) AS i",
        )
        .unwrap();
    servers.target.login(name, Proof::Scram, "").unwrap();
    target.run(&format!("GRANT CREATE ON DATABASE {name} TO {name}; GRANT ALL ON SCHEMA public TO {name}")).unwrap();
    migration.configure(&[("target", "url", servers.target.url_as(name, name).into())]).unwrap();
    let (_, found, _) = assess(&migration);
    assert_holds(&found, &["warning target_replication_role"]);
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let producer = migration.service("producer").start().unwrap();
    let consumer = migration.service("consumer").start().unwrap();
    let limit = std::time::Duration::from_secs(120);
    let applied = |sql: &str| {
        source.run(sql).unwrap();
        let all = "SELECT string_agg(t::text, ' ' ORDER BY t) FROM
            (SELECT 'noted ' || x::text FROM noted x UNION ALL SELECT 'notes ' || x::text FROM notes x) AS s(t)";
        let wanted = source.value(all).unwrap();
        let there = || target.value(all).map_err(|failure| failure.to_string());
        tests::wait::until("the target is the source", limit, || match there()? {
            held if held == wanted => Ok(()),
            held => Err(format!("{held} instead of {wanted}")),
        })
        .unwrap();
    };
    tests::wait::until_true("the lane is exact", limit, || {
        target.value("SELECT phase FROM dflux.lane").is_ok_and(|phase| phase == "exact")
    })
    .unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {name}");
    assert!(said.stdout.contains("public.noted note\n") && said.stdout.contains(&grant), "{said:?}");
    let fires =
        "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal) || ' ' || (SELECT count(*) FROM pg_constraint
        WHERE contype = 'f') || ' ' || (SELECT count(*) FROM pg_rules WHERE schemaname = 'public')";
    assert_eq!(target.value(fires).unwrap(), "0 0 0");
    assert_eq!(target.number("SELECT count(*) FROM pg_indexes WHERE indexname = 'notes_noted'").unwrap(), 1);
    let said = dflux(&migration, ["status"]).expect_code(0).unwrap();
    assert!(said.stdout.contains("wait for the cutover") && said.stdout.contains(&grant), "{said:?}");
    applied("INSERT INTO noted SELECT i FROM generate_series(11, 20) AS i; INSERT INTO ruled VALUES (1)");

    // With the right they are built, and the lane that runs does not fire them.
    target.run(&format!("GRANT SET ON PARAMETER session_replication_role TO {name}")).unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_eq!(target.value(fires).unwrap(), "1 1 1");
    applied(
        "INSERT INTO noted SELECT i FROM generate_series(21, 30) AS i; INSERT INTO ruled VALUES (2); DELETE FROM noted WHERE id = 12",
    );
    assert!(producer.process().ended().is_none() && consumer.process().ended().is_none());
}

#[test]
fn a_prepare_that_fails_leaves_nothing_behind() {
    let migration = Migration::shared("halfway").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    // A type of the same name that is not the same: the table's default has no such label.
    target.run("CREATE TYPE mood AS ENUM ('other')").unwrap();
    let before = (source.value(OBJECTS).unwrap(), target.value(OBJECTS).unwrap());
    let said = dflux(&migration, ["prepare"]).expect_code(1).unwrap();
    assert!(said.stderr.contains("TABLE public.customers") && said.stderr.contains("hint:"), "{said:?}");
    assert_eq!((source.value(OBJECTS).unwrap(), target.value(OBJECTS).unwrap()), before);
}

#[test]
fn cleanup_removes_what_dflux_made_and_nothing_else() {
    let migration = Migration::shared("cleaned").unwrap();
    let servers = stack::shared().unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    source.run("CREATE PUBLICATION somebody_elses FOR TABLE orders").unwrap();
    let others_slot = format!("other_{}", migration.name);
    source.value(&format!("SELECT pg_create_logical_replication_slot('{others_slot}', 'pgoutput')")).unwrap();
    let before = source.value(OBJECTS).unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    // What the services make besides.
    let slot = format!("dflux_{}", migration.name);
    source.value(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).unwrap();
    let name = &migration.name;
    let origin = |name: &str| format!("SELECT pg_replication_origin_create('dflux {name}/forward')");
    target.value(&origin(name)).unwrap();
    target.value(&origin(&format!("{name}x"))).unwrap();
    let (mine, theirs) = (format!("{name}.forward.public.orders"), format!("{name}.forwarded"));
    for topic in [&mine, &theirs] {
        servers.broker.create_topic(topic, 1, &[("retention.ms", "-1")]).unwrap();
        servers.registry.register(&format!("{topic}-value"), "{\"type\":\"string\"}").unwrap();
    }

    let said = dflux(&migration, ["cleanup"]).expect_code(2).unwrap();
    assert!(said.stdout.contains(&slot) && said.stdout.contains(&mine), "{said:?}");
    assert!(!said.stdout.contains(&others_slot) && !said.stdout.contains("somebody_elses"), "{said:?}");
    dflux(&migration, ["cleanup", "--yes"]).expect_code(0).unwrap();

    assert_eq!(source.value(OBJECTS).unwrap(), before);
    assert_eq!(target.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dflux'").unwrap(), 0);
    assert_eq!(target.number("SELECT count(*) FROM pg_class WHERE relname = 'orders'").unwrap(), 1);
    let topics: Vec<String> = servers.broker.topics().unwrap().into_iter().map(|(topic, _)| topic).collect();
    assert!(!topics.contains(&mine) && topics.contains(&theirs), "{topics:?}");
    // Not even hidden, as a registry keeps what was deleted once.
    assert!(!servers.registry.has(&format!("{mine}-value")));
    assert!(servers.registry.has(&format!("{theirs}-value")));
    let origins = format!("SELECT roname FROM pg_replication_origin WHERE starts_with(roname, 'dflux {name}')");
    assert_eq!(target.column(&origins).unwrap(), [format!("dflux {name}x/forward")]);
    let again = dflux(&migration, ["cleanup", "--yes"]).expect_code(0).unwrap();
    assert!(again.stdout.contains("nothing of migration"), "{again:?}");
}

#[test]
fn a_slot_of_our_name_that_is_anothers_is_refused_and_stays() {
    let migration = Migration::shared("foreignslot").unwrap();
    let source = migration.source().unwrap();
    shop(&source);
    let slot = format!("dflux_{}", migration.name);
    source.value(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")).unwrap();
    let (code, found, _) = assess(&migration);
    assert_eq!(code, Some(2));
    assert_holds(&found, &["blocker slot"]);
    dflux(&migration, ["cleanup", "--yes"]).expect_code(0).unwrap();
    let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(source.number(&left).unwrap(), 1);
    source.value(&format!("SELECT pg_drop_replication_slot('{slot}')")).unwrap();
}

#[test]
fn a_publication_of_our_name_that_is_not_as_we_make_it_is_refused_and_stays() {
    let migration = Migration::shared("foreignpublication").unwrap();
    let source = migration.source().unwrap();
    shop(&source);
    let via_root = "WITH (publish_via_partition_root = true)";
    for (what, said) in [
        (format!("FOR ALL TABLES {via_root}"), "FOR ALL TABLES"),
        (format!("FOR TABLES IN SCHEMA public {via_root}"), "FOR TABLES IN SCHEMA"),
        (format!("FOR TABLE customers WHERE (id > 1) {via_root}"), "public.customers has a row filter"),
        (format!("FOR TABLE customers, other.stays {via_root}"), "do not select: other.stays"),
        ("FOR TABLE customers".to_owned(), "publish_via_partition_root"),
    ] {
        source.run(&format!("CREATE PUBLICATION dflux_migration {what}")).unwrap();
        let before = source.value(OBJECTS).unwrap();
        let (code, found, report) = assess(&migration);
        assert_eq!(code, Some(2), "{what}");
        assert_holds(&found, &["blocker publication"]);
        assert!(report["findings"].to_string().contains(said), "{what}: {report}");
        assert_eq!(dflux(&migration, ["prepare"]).code, Some(2), "{what}");
        assert_eq!(source.value(OBJECTS).unwrap(), before);
        source.run("DROP PUBLICATION dflux_migration").unwrap();
    }
    // One that publishes some of what is moved is taken; and it is not ours to remove.
    source.run(&format!("CREATE PUBLICATION dflux_migration FOR TABLE customers {via_root}")).unwrap();
    let (code, found, _) = assess(&migration);
    assert_eq!(code, Some(0));
    assert_holds(&found, &["note publication"]);
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let left = "SELECT count(*) FROM pg_publication WHERE pubname = 'dflux_migration'";
    let said = dflux(&migration, ["cleanup", "--yes"]).expect_code(0).unwrap();
    assert_eq!(source.number(left).unwrap(), 1, "{said:?}");
    assert!(said.stdout.contains("publication dflux_migration stays"), "{said:?}");
    dflux(&migration, ["cleanup", "--yes"]).expect_code(0).unwrap();
    assert_eq!(source.number(left).unwrap(), 1);
}

#[test]
fn status_follows_the_lane_and_resync_asks_for_the_next_generation() {
    let migration = Migration::shared("followed").unwrap();
    let servers = stack::shared().unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    let status = || -> serde_json::Value {
        let said = dflux(&migration, ["status", "--json"]).expect_code(0).unwrap();
        serde_json::from_str(&said.stdout).unwrap()
    };
    assert_eq!(status()["phase"], "unprepared");
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_eq!(status()["phase"], "prepared");

    let name = &migration.name;
    let ledger = format!("{name}.forward-ledger");
    servers.broker.create_topic(&ledger, 1, &[("cleanup.policy", "compact")]).unwrap();
    target
        .run(&format!(
            "INSERT INTO dflux.lane (lane, phase, commit_lsn, ordinal, marker_emitted_at, marker_applied_at, error, error_hint)
             VALUES ('{name}/forward', 'stopped', '0/10', 3, now() - interval '1 hour', now() - interval '1 hour', 'broke', 'mend')"
        ))
        .unwrap();
    dflux(&migration, ["resync", "days_2026"]).expect_code(0).unwrap();
    dflux(&migration, ["resync", "public.days"]).expect_code(0).unwrap();
    let keys: Vec<String> = servers
        .broker
        .records(&ledger)
        .unwrap()
        .into_iter()
        .map(|record| String::from_utf8(record.key.unwrap()).unwrap())
        .collect();
    // A partition's rows flow under its partitioned table's name.
    assert_eq!(keys, ["resync/1/\"public\".\"days\"", "resync/2/\"public\".\"days\""]);
    let now = status();
    assert_eq!(now["phase"], "stopped");
    let lane = &now["lanes"][0];
    assert!(lane["lag_ms"].as_f64().unwrap() > 3_000_000.0, "{lane}");
    assert!(lane["lag_bytes"].as_i64().unwrap() > 0);
    assert_eq!(
        (lane["position"]["commit_lsn"].as_str(), lane["position"]["ordinal"].as_i64()),
        (Some("0/10"), Some(3))
    );
    assert_eq!((lane["error"].as_str(), lane["hint"].as_str()), (Some("broke"), Some("mend")));
    assert_eq!(lane["backfill"]["tables"][0]["generation"], 2);
    assert_eq!(dflux(&migration, ["resync", "stays"]).code, Some(2));
    // What came after the publication: a table of its own is named, a partition of a table with a key flows as its table.
    assert_eq!(now["unpublished"], serde_json::json!([]));
    source
        .run("CREATE TABLE latecomer (id int PRIMARY KEY); CREATE TABLE days_2027 PARTITION OF days FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')")
        .unwrap();
    assert_eq!(status()["unpublished"], serde_json::json!(["public.latecomer"]));
    let said = dflux(&migration, ["status"]).expect_code(0).unwrap();
    assert!(said.stdout.contains("not published yet: public.latecomer\n  hint: none needed"), "{said:?}");
    migration.configure(&[("migration", "join_new_tables", false.into())]).unwrap();
    let said = dflux(&migration, ["status"]).expect_code(0).unwrap();
    assert!(said.stdout.contains("hint: dflux prepare, then dflux resync public.latecomer"), "{said:?}");
}
