//! Changes of tables that the source's event trigger tells: carried in their transaction, with no row that follows, whatever the
//! catalog says by the time that they are decoded; and never at the cost of the application's statement.

use tests::services::run;
use tests::sql::Session;
use tests::wait;

use crate::evolving::{COLUMNS, rows_by_name, stopped};
use crate::moving::Moving;

const SCHEMA: &str = "
    CREATE SCHEMA shop; CREATE SCHEMA old;
    CREATE TABLE public.item (id int PRIMARY KEY, a int, b text, n numeric(8,2) DEFAULT 1);
    CREATE TABLE public.loose (a int, b text);
    CREATE TABLE public.parted (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
    CREATE TABLE public.parted_1 PARTITION OF public.parted FOR VALUES FROM (0) TO (1000);
    CREATE TABLE public.base (id int PRIMARY KEY, a int);
    CREATE TABLE public.derived (d int, PRIMARY KEY (id)) INHERITS (public.base);
    CREATE TABLE public.quiet (id int PRIMARY KEY, a int, b int);
    CREATE TABLE old.moved (id int PRIMARY KEY, a int);
    CREATE TABLE public.ended (id int PRIMARY KEY);
    INSERT INTO item SELECT g, g, 'b' || g FROM generate_series(1, 100) g;
    INSERT INTO loose SELECT g % 10, 'l' || g % 5 FROM generate_series(1, 50) g;
    INSERT INTO parted SELECT g, g FROM generate_series(1, 50) g;
    INSERT INTO base SELECT g, g FROM generate_series(1, 9) g;
    INSERT INTO derived SELECT g, g, g FROM generate_series(11, 19) g;
    INSERT INTO quiet SELECT g, g, g FROM generate_series(1, 9) g;
    INSERT INTO old.moved SELECT g, g FROM generate_series(1, 20) g;
    INSERT INTO ended VALUES (1);";

/// A change, and the tables to compare behind it beside those of before.
const CHANGES: &[&str] = &[
    // No row follows.
    "ALTER TABLE item ADD COLUMN c text DEFAULT 'c' || 1",
    "ALTER TABLE quiet DROP COLUMN a",
    "ALTER TABLE quiet ALTER b SET NOT NULL, ALTER b SET DEFAULT 7",
    "ALTER TABLE quiet ALTER b DROP NOT NULL, ALTER b TYPE text",
    // Types: each row as its column was then.
    "BEGIN; UPDATE item SET a = 1 WHERE id = 1; ALTER TABLE item ALTER a TYPE bigint; UPDATE item SET a = 5000000000 WHERE id = 2; \
     ALTER TABLE item ALTER a TYPE text; UPDATE item SET a = 'three' WHERE id = 3; COMMIT",
    "ALTER TABLE item ALTER n TYPE numeric(12,4); INSERT INTO item (id, n) VALUES (200, 12345678.1234)",
    "ALTER TABLE item ALTER n TYPE numeric(9,1); UPDATE item SET n = 2 WHERE id = 5",
    "BEGIN; ALTER TABLE item DROP COLUMN b; ALTER TABLE item ADD COLUMN b int DEFAULT 4; UPDATE item SET b = 5 WHERE id < 4; COMMIT",
    "ALTER TABLE item DROP COLUMN b, ADD COLUMN b date DEFAULT '2020-01-01'",
    // What is rolled back was never told.
    "BEGIN; INSERT INTO item (id) VALUES (201); SAVEPOINT s; ALTER TABLE item ADD COLUMN never int; INSERT INTO item (id, never) VALUES (202, 1); \
     ROLLBACK TO s; INSERT INTO item (id) VALUES (203); SAVEPOINT t; ALTER TABLE item ADD COLUMN kept int; RELEASE t; \
     INSERT INTO item (id, kept) VALUES (204, 1); COMMIT",
    "BEGIN; ALTER TABLE item ADD COLUMN x int; ALTER TABLE item RENAME x TO y; ALTER TABLE item DROP COLUMN y; INSERT INTO item (id) VALUES (205); COMMIT",
    // Tables that hang on others.
    "ALTER TABLE parted ADD COLUMN p int DEFAULT 3; ALTER TABLE parted ALTER a TYPE bigint; INSERT INTO parted VALUES (60, 7000000000, 1)",
    "ALTER TABLE base ADD COLUMN e text DEFAULT 'e'; ALTER TABLE base RENAME a TO f; UPDATE derived SET e = 'd' WHERE id = 11; UPDATE ONLY base SET f = 0",
    "ALTER TABLE loose ALTER a TYPE bigint; UPDATE loose SET a = 9000000000 WHERE a = 1; DELETE FROM loose WHERE b = 'l2'",
    // Partitions: made in their place, of partitions, attached while they are empty; rows follow at once.
    "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (1000) TO (2000); INSERT INTO parted VALUES (1500, 1, 1)",
    "BEGIN; CREATE TABLE old.parted_3 PARTITION OF parted FOR VALUES FROM (2000) TO (3000) PARTITION BY RANGE (id); \
     CREATE TABLE old.parted_3_1 PARTITION OF old.parted_3 DEFAULT; INSERT INTO parted VALUES (2500, 1, 1); COMMIT",
    "CREATE TABLE parted_4 (LIKE parted INCLUDING ALL); ALTER TABLE parted ATTACH PARTITION parted_4 FOR VALUES FROM (3000) TO (4000); \
     INSERT INTO parted VALUES (3500, 1, 1)",
    // Names.
    "BEGIN; UPDATE old.moved SET a = 1 WHERE id = 1; ALTER TABLE old.moved RENAME TO goods; UPDATE old.goods SET a = 2 WHERE id = 2; \
     ALTER TABLE old.goods SET SCHEMA shop; UPDATE shop.goods SET a = 3 WHERE id = 3; ALTER TABLE shop.goods ADD COLUMN s text; \
     UPDATE shop.goods SET s = 's' WHERE id = 4; DELETE FROM shop.goods WHERE id = 5; COMMIT",
    "ALTER TABLE shop.goods RENAME TO \"G.oods\"; INSERT INTO shop.\"G.oods\" VALUES (100, 1, 'x')",
    "ALTER SCHEMA shop RENAME TO store; UPDATE store.\"G.oods\" SET a = 9 WHERE id < 9",
    "INSERT INTO ended VALUES (2); DROP TABLE ended",
];

const TABLES: [&str; 6] = ["item", "loose", "parted", "ONLY base", "derived", "quiet"];

/// Tables, their columns, and which of them may be null.
const SHAPES: &str = "SELECT c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid) \
     FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
     WHERE n.nspname IN ('public', 'old', 'shop', 'store') AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2";

fn started(label: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.source.run(SCHEMA).unwrap();
    let everything = toml::Value::Array(vec!["*.*".into()]);
    moving.migration.configure(&[("migration", "tables", everything)]).unwrap();
    moving.prepare();
    moving.start();
    moving
}

fn assert_all_same(moving: &Moving, goods: Option<&str>) {
    moving.caught_up();
    moving.assert_same([SHAPES, COLUMNS]);
    moving.assert_same(TABLES.map(rows_by_name));
    if let Some(goods) = goods {
        moving.assert_same([rows_by_name(goods)]);
    }
}

/// What the moved table is called once this change was made.
fn goods(moving: &Moving) -> String {
    let sql = "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND relname IN ('moved', 'goods', 'G.oods')";
    moving.source.value(sql).unwrap()
}

#[test]
fn every_change_of_a_table_reaches_the_target_in_its_transaction_and_without_a_row() {
    let mut moving = started("tell");
    for sql in CHANGES {
        moving.source.run(sql).unwrap_or_else(|failure| panic!("{sql}: {failure}"));
        moving.caught_up();
        moving.assert_same([SHAPES]);
    }
    assert_all_same(&moving, Some(&goods(&moving)));
    assert_eq!(moving.target.value("SELECT to_regclass('ended') IS NULL").unwrap(), "t");
    // What is known of a table goes with its name.
    for place in [1, 0] {
        moving.restart(place);
        moving.source.run(&format!("UPDATE {} SET a = a + 1; UPDATE item SET kept = 2", goods(&moving))).unwrap();
        assert_all_same(&moving, Some(&goods(&moving)));
    }
}

#[test]
fn a_backlog_of_changes_is_read_as_the_tables_were_and_kills_lose_none_of_them() {
    let mut moving = started("tellback");
    moving.services[0].kill();
    for sql in CHANGES {
        moving.source.run(sql).unwrap();
    }
    // The catalog is at the end of all of them while they are decoded.
    let service = moving.services.remove(0).start_again().unwrap();
    moving.services.insert(0, service);
    for round in 0..6 {
        wait::pace(std::time::Duration::from_millis(300 + 170 * round));
        moving.restart((round % 2) as usize);
    }
    assert_all_same(&moving, Some(&goods(&moving)));
}

#[test]
fn a_statement_of_the_application_never_fails_by_the_event_trigger() {
    let mut moving = started("tellsafe");
    let name = moving.migration.name.clone();
    // An owner without any other right, in a transaction that sees no schema but its own.
    moving
        .source
        .run(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD 'dflux'; ALTER TABLE item OWNER TO {name}; GRANT ALL ON SCHEMA public TO {name}"
        ))
        .unwrap();
    let url = moving.migration.addresses.source.replacen("//postgres:", &format!("//{name}:"), 1);
    let owner = Session::connect(&url).unwrap();
    owner.run("SET search_path = public; SET default_transaction_isolation = 'repeatable read'; ALTER TABLE item ADD COLUMN o int").unwrap();
    moving.caught_up();
    moving.assert_same([SHAPES]);
    // The transaction ends with what is not told, or is no change for the events: its rows are whole all the same.
    for sql in [
        "BEGIN; UPDATE item SET o = 3 WHERE id = 3; SELECT pg_logical_emit_message(true, 'dflux.schema', ''); COMMIT",
        "BEGIN; UPDATE item SET o = 4 WHERE id = 4; ALTER TABLE item ADD COLUMN u int; SELECT pg_logical_emit_message(true, 'dflux.schema', '{}'); COMMIT",
        "BEGIN; SELECT pg_logical_emit_message(true, 'dflux.schema', '{}'); UPDATE item SET u = 4 WHERE id = 4; COMMIT",
    ] {
        moving.source.run(sql).unwrap();
        moving.caught_up();
        moving.assert_same([SHAPES]);
        moving.assert_same([rows_by_name("item")]);
    }
    // In a serializable transaction, and by a function, which may have given an expression: known by the rows, or not at all by guess.
    owner.run("SET default_transaction_isolation = 'serializable'; ALTER TABLE item ADD COLUMN t int; UPDATE item SET t = 1 WHERE id = 1").unwrap();
    moving.caught_up();
    moving.assert_same([SHAPES]);
    moving.source.run("ALTER TABLE item ADD COLUMN at timestamp DEFAULT '2020-06-01 12:00'").unwrap();
    for sql in [
        "SET TimeZone = 'Europe/Berlin'; ALTER TABLE item ALTER at TYPE timestamptz; RESET TimeZone",
        "DO $$ BEGIN ALTER TABLE item ALTER id TYPE bigint USING -id; END $$",
    ] {
        moving.source.run(sql).unwrap();
        let (error, hint) = stopped(&moving, sql);
        assert!(error.contains("has had values of all its rows computed anew"), "{error}");
        assert!(hint.contains("TYPE ") && hint.contains("dflux resync public.item"), "{hint}");
        moving.target.run(sql).unwrap();
        moving.target.run(said(&hint)).unwrap();
        moving.restart(1);
        moving.caught_up();
        moving.assert_same([SHAPES]);
        moving.assert_same([rows_by_name("item")]);
    }
    // Any owner's backup passes.
    owner.run("SELECT * FROM dflux.source_table").unwrap();
    // Nobody who reads all tables of the source gets ours, and a server that has crashed fills them again.
    let ours = "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'everything' AND schemaname = 'dflux'";
    moving.source.run("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
    assert_eq!(moving.source.number(ours).unwrap(), 0);
    moving.source.run("DROP PUBLICATION everything; TRUNCATE dflux.source_table").unwrap();
    moving
        .source
        .run("ALTER TABLE item ADD COLUMN p int; UPDATE item SET p = 1 WHERE id = 1; ALTER TABLE item ADD COLUMN s int")
        .unwrap();
    moving.caught_up();
    moving.assert_same([SHAPES]);
    // What it needs is gone: the change is known by the row that follows.
    moving.source.run("ALTER TABLE dflux.source_table RENAME TO away; ALTER TABLE item ADD COLUMN q int DEFAULT 5; UPDATE item SET o = 1 WHERE id = 1").unwrap();
    moving.source.run("ALTER TABLE dflux.away RENAME TO source_table; ALTER TABLE item ADD COLUMN r int").unwrap();
    moving.caught_up();
    moving.assert_same([SHAPES]);
    // Anybody may emit a message: what is none of the trigger's is passed over.
    for content in [
        "",
        "{}",
        "[1]",
        "{\"lane\":\"x\",\"statement\":\"\",\"tables\":[{\"before\":{\"tables\":[[\"1\"]],\"columns\":[],\"keys\":[]},\"after\":null}]}",
    ] {
        moving
            .source
            .run(&format!(
                "SELECT pg_logical_emit_message(true, 'dflux.schema', '{content}'); UPDATE item SET r = 2 WHERE id = 2"
            ))
            .unwrap();
    }
    assert_all_same(&moving, None);
    // A value that no cast gives stops the lane before the change.
    moving.source.run("ALTER TABLE item ALTER b TYPE int USING length(b)").unwrap();
    let (error, hint) = stopped(&moving, "USING");
    assert!(
        error.contains("public.item")
            && hint.contains("ALTER TABLE \"public\".\"item\" ALTER COLUMN \"b\" TYPE integer"),
        "{error}\n{hint}"
    );
    moving.target.run("ALTER TABLE item ALTER b TYPE int USING length(b)").unwrap();
    // Nothing shows that the expression was the source's: a person has to say so.
    moving.restart(1);
    stopped(&moving, "USING");
    moving.target.run(said(&hint)).unwrap();
    moving.restart(1);
    assert_all_same(&moving, None);
    moving.services.drain(..).for_each(|service| {
        service.terminate().unwrap();
    });
    run("dflux", &moving.migration.config(), ["cleanup", "--yes"]).unwrap().expect_code(0).unwrap();
    assert_eq!(moving.source.value("SELECT to_regnamespace('dflux') IS NULL").unwrap(), "t");
    assert_eq!(moving.source.number("SELECT count(*) FROM pg_event_trigger").unwrap(), 0);
    moving
        .source
        .run(&format!("REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}"))
        .unwrap();
}

#[test]
fn values_that_are_rewritten_without_another_type_stop_the_lane_until_they_are_copied() {
    let mut moving = Moving::shared("rewritten");
    moving
        .source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 900) i;
             CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (50); CREATE TABLE high PARTITION OF parted DEFAULT;
             INSERT INTO parted SELECT i, 'p' || i FROM generate_series(1, 100) i",
        )
        .unwrap();
    moving.prepare();
    moving.start();
    // Where the values stay as they are, nothing is to be copied.
    for sql in ["ALTER TABLE t ALTER v TYPE text USING v", "VACUUM FULL t", "ALTER TABLE t ALTER v SET DEFAULT 'd'"] {
        moving.source.run(sql).unwrap();
        moving.caught_up();
    }
    for (table, sql) in [
        (
            "t",
            "BEGIN; UPDATE t SET v = 'before' WHERE id = 1; ALTER TABLE t ALTER v TYPE text USING upper(v); UPDATE t SET v = 'behind' WHERE id = 2; COMMIT",
        ),
        ("parted", "ALTER TABLE parted ADD COLUMN more int, ALTER v TYPE text USING v || '!'"),
        ("t", "DO $$ BEGIN ALTER TABLE t ALTER id TYPE int USING -id; END $$"),
        ("t", "BEGIN ISOLATION LEVEL SERIALIZABLE; ALTER TABLE t ALTER v TYPE text USING v || '?'; COMMIT"),
    ] {
        moving.source.run(sql).unwrap();
        let (error, hint) = stopped(&moving, sql);
        assert!(
            error.contains(&format!("public.{table} in the source has had values of all its rows computed anew")),
            "{error}"
        );
        assert!(hint.contains(&format!("dflux resync public.{table}")), "{hint}");
        // Started again before it is copied, it stops again.
        moving.restart(1);
        stopped(&moving, sql);
        if let Some(statement) = hint.strip_prefix("run in the target: ").and_then(|hint| hint.split(';').next()) {
            moving.target.run(statement).unwrap();
        }
        moving
            .source
            .run(&format!("INSERT INTO {table} (id, v) VALUES (7000 + (SELECT count(*) FROM {table}), 'later')"))
            .unwrap();
        run("dflux", &moving.migration.config(), ["resync", table]).unwrap().expect_code(0).unwrap();
        moving.restart(1);
        moving.caught_up();
        moving.assert_tables_same(&["t", "parted"]);
    }
}

#[test]
fn values_that_are_rewritten_while_the_table_is_copied_again_are_in_the_copy_or_it_is_none() {
    let mut moving = Moving::shared("restale");
    moving.source.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 500) i").unwrap();
    moving.prepare();
    moving.start();
    let resync = || run("dflux", &moving.migration.config(), ["resync", "t"]).unwrap().expect_code(0).unwrap();
    moving.services[1].pause();
    resync();
    wait::until_true("it is copied", std::time::Duration::from_secs(120), || {
        moving.services[0].log().matches("table copied table=public.t").count() == 2
    })
    .unwrap();
    moving
        .source
        .run("ALTER TABLE t ALTER v TYPE text USING upper(v); UPDATE t SET v = 'behind' WHERE id = 1")
        .unwrap();
    moving.captured();
    moving.services[1].resume();
    moving.becomes("the copy is refused", "SELECT coalesce(bool_or(error LIKE '%computed anew at%dflux resync public.t once more%'), false) FROM dflux.table_state");
    resync();
    moving.settled_again("t", 2);
    moving.caught_up();
    moving.assert_tables_same(&["t"]);
    assert_eq!(moving.target.value("SELECT v FROM t WHERE id = 2").unwrap(), "V2");
}

/// The statement of a hint by which a person says that the rows have their values.
fn said(hint: &str) -> &str {
    let start = hint.find("INSERT INTO dflux.rewritten").unwrap_or_else(|| panic!("{hint}"));
    hint[start..].split(';').next().unwrap_or_default()
}
