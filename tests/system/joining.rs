//! Tables that are created while the migration runs become part of it, whoever makes them and in whatever moment; one that cannot
//! holds up nothing but itself.

use tests::services::run;
use tests::sql::Session;
use tests::wait;

use crate::moving::Moving;

/// A migration that runs, with a table that is written to all the while.
fn flowing(label: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.source.run("CREATE TABLE flow (id int PRIMARY KEY, v text); INSERT INTO flow VALUES (0, 'first')").unwrap();
    moving.prepare();
    moving.start();
    moving
}

impl Moving {
    /// Returns when a table of this generation, or a later one, is the lane's.
    fn joined(&self, table: &str, generation: u32) {
        self.settled_again(table, generation);
    }

    /// The first generation that a table that is created now can have.
    fn next(&self) -> u32 {
        self.target.number("SELECT coalesce(max(generation), 0) + 1 FROM dflux.table_state").unwrap() as u32
    }

    fn state(&self, table: &str) -> String {
        let sql =
            format!("SELECT state || coalesce(' ' || error, '') FROM dflux.table_state WHERE table_name = '{table}'");
        self.target.value(&sql).unwrap_or_default()
    }

    fn told(&self, what: &str, said: impl Fn(&Moving) -> bool) {
        wait::until_true(what, std::time::Duration::from_secs(120), || said(self)).unwrap();
    }
}

const NEW: &str = "
CREATE SCHEMA \"New one\";
CREATE TYPE mood AS ENUM ('it''s fine', 'bad');
CREATE DOMAIN \"New one\".score AS numeric(8,2) DEFAULT 1.5 NOT NULL CHECK (VALUE >= 0);
CREATE TYPE pair AS (a mood, b \"New one\".score[]);
CREATE TABLE everything (
    id bigserial PRIMARY KEY, name varchar(40) COLLATE \"C\" NOT NULL DEFAULT 'it''s \\ new', m mood DEFAULT 'bad', p pair,
    score \"New one\".score, twice numeric GENERATED ALWAYS AS (score * 2) STORED, place int GENERATED ALWAYS AS IDENTITY (START WITH 7),
    CONSTRAINT \"Positive\" CHECK (id > 0)
);
CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parted_2026 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY HASH (id);
CREATE TABLE parted_2026_0 PARTITION OF parted_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_2026_1 PARTITION OF parted_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE bare (a int, b text);
CREATE TABLE by_index (a int NOT NULL, b text);
CREATE UNIQUE INDEX by_index_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a;
CREATE TABLE filled AS SELECT n AS id, 'v' || n AS v FROM generate_series(1, 5000) n;
CREATE TABLE \"Odd.Näme\" (\"Kéy\" text PRIMARY KEY, \"v w\" int);
CREATE TABLE none ();
";

const TABLES: [&str; 7] = ["everything", "parted", "bare", "by_index", "filled", "\"Odd.Näme\"", "none"];

/// As PostgreSQL itself describes the columns, the checks and the keys.
const DEFINITIONS: [&str; 3] = [
    "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, \
     pg_get_expr(d.adbin, d.adrelid), (SELECT collname FROM pg_collation WHERE oid = a.attcollation), pg_get_expr(c.relpartbound, c.oid), \
     pg_get_partkeydef(c.oid) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2",
    "SELECT conrelid::regclass::text COLLATE \"C\", conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace \
     AND contype IN ('c', 'p') ORDER BY 1, 2",
    "SELECT typname, typtype, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid), \
     format_type(typbasetype, typtypmod), typdefault, typnotnull FROM pg_type t WHERE typname IN ('mood', 'score', 'pair') ORDER BY 1",
];

fn write(source: &Session) {
    source
        .run(
            "INSERT INTO everything (name, p, score) SELECT 'n' || n, ROW('bad', ARRAY[n])::pair, n FROM generate_series(1, 300) n;
             UPDATE everything SET m = 'it''s fine' WHERE id % 3 = 0; DELETE FROM everything WHERE id % 7 = 0;
             INSERT INTO parted SELECT n, '2026-05-01', 'v' FROM generate_series(1, 200) n; UPDATE parted SET v = 'w' WHERE id % 3 = 0;
             INSERT INTO bare SELECT n % 5, 'x' FROM generate_series(1, 50) n; UPDATE bare SET b = 'y' WHERE a = 2; DELETE FROM bare WHERE a = 3;
             INSERT INTO by_index SELECT n, 'x' FROM generate_series(1, 50) n; UPDATE by_index SET b = 'y', a = -a WHERE a % 4 = 0;
             UPDATE filled SET v = 'changed' WHERE id % 9 = 0; DELETE FROM filled WHERE id % 11 = 0;
             INSERT INTO \"Odd.Näme\" VALUES ('a', 1), ('b', 2); UPDATE \"Odd.Näme\" SET \"Kéy\" = 'c' WHERE \"Kéy\" = 'a';
             INSERT INTO none DEFAULT VALUES; INSERT INTO flow SELECT max(id) + 1, 'w' FROM flow",
        )
        .unwrap();
}

#[test]
fn tables_of_every_kind_that_are_created_while_the_lane_runs_join_by_themselves() {
    for trigger in [true, false] {
        let moving = flowing(if trigger { "joins" } else { "joinsuntold" });
        if !trigger {
            moving.without_trigger();
        }
        moving.source.run(NEW).unwrap();
        write(&moving.source);
        for table in ["everything", "parted", "bare", "by_index", "filled", "Odd.Näme", "none"] {
            moving.joined(table, 1);
        }
        moving
            .source
            .run("DELETE FROM filled WHERE id % 13 = 0; UPDATE everything SET score = score + 1; UPDATE bare SET b = b || 'z'; UPDATE parted SET v = v || 'z'")
            .unwrap();
        moving.caught_up();
        moving.assert_tables_same(&TABLES);
        moving.assert_tables_same(&["flow"]);
        moving.assert_same(DEFINITIONS);
        let ready = run("dflux", &moving.migration.config(), ["status"]).unwrap().expect_code(0).unwrap();
        assert!(!ready.stdout.contains("not published"), "{ready:?}");
    }
}

#[test]
fn a_table_that_takes_the_name_of_another_takes_none_of_its_rows() {
    let moving = flowing("swapped");
    moving.source.run("CREATE TABLE t (id int PRIMARY KEY, old text)").unwrap();
    moving.joined("t", 1);
    // The lane stands, so that it meets all of it when the new table's copy is there already.
    moving.target.run("BEGIN; LOCK TABLE flow IN ACCESS EXCLUSIVE MODE").unwrap();
    moving
        .source
        .run(
            "INSERT INTO flow VALUES (1, 'held'); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 500) n;
             BEGIN; ALTER TABLE t RENAME TO t_before; CREATE TABLE t (id int PRIMARY KEY, fresh text); INSERT INTO t VALUES (1, 'within'); COMMIT;
             INSERT INTO t SELECT n, 'new' FROM generate_series(2, 300) n; UPDATE t_before SET old = 'older' WHERE id % 2 = 0",
        )
        .unwrap();
    moving.told("the new table is published", |moving| {
        moving.source.value("SELECT count(*) FROM pg_publication_tables WHERE tablename IN ('t', 't_before')").unwrap()
            == "2"
    });
    moving.source.run("UPDATE t SET fresh = 'newer' WHERE id % 3 = 0; DELETE FROM t_before WHERE id % 5 = 0").unwrap();
    moving.captured();
    moving.target.run("COMMIT").unwrap();
    moving.joined("t", 2);
    moving.caught_up();
    moving.assert_tables_same(&["t", "t_before", "flow"]);
    assert_eq!(moving.target.number("SELECT count(*) FROM t_before").unwrap(), 400);

    // Dropped, and made anew with other columns.
    moving
        .source
        .run("DROP TABLE t; CREATE TABLE t (name text PRIMARY KEY, n numeric); INSERT INTO t VALUES ('a', 1)")
        .unwrap();
    moving.joined("t", 3);
    moving.source.run("INSERT INTO t VALUES ('b', 2)").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["t", "t_before"]);
}

#[test]
fn a_table_that_cannot_join_says_why_and_holds_up_nothing_else() {
    let moving = flowing("refusing");
    // The target has another of this name, and lacks what the default of the next calls.
    moving.target.run("CREATE TABLE taken (other int)").unwrap();
    moving
        .source
        .run(
            "CREATE FUNCTION number() RETURNS int LANGUAGE sql AS 'SELECT 5';
             CREATE TABLE taken (id int PRIMARY KEY, v text); INSERT INTO taken VALUES (1, 'a');
             CREATE TABLE calls (id int PRIMARY KEY, n int DEFAULT number()); INSERT INTO calls VALUES (1);
             CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1)",
        )
        .unwrap();
    moving.joined("plain", 1);
    moving.told("both say why", |moving| {
        moving.state("calls").contains("number()") && moving.state("taken").contains("taken")
    });
    moving.source.run("INSERT INTO plain VALUES (2); UPDATE flow SET v = 'w'; INSERT INTO calls VALUES (2); INSERT INTO taken VALUES (2, 'b')").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["plain", "flow"]);
    let said = run("dflux", &moving.migration.config(), ["status"]).unwrap().expect_code(0).unwrap();
    assert!(
        said.stdout.contains("public.calls: ")
            && said.stdout.contains("error: table public.calls cannot be made in the target"),
        "{said:?}"
    );

    moving.target.run("DROP TABLE taken; CREATE FUNCTION number() RETURNS int LANGUAGE sql AS 'SELECT 5'").unwrap();
    for table in ["calls", "taken"] {
        moving.joined(table, 1);
    }
    moving.caught_up();
    moving.assert_tables_same(&["plain", "flow", "calls", "taken"]);

    // Gone before its copy was there.
    let held = moving.migration.source().unwrap();
    held.run("BEGIN; INSERT INTO flow VALUES (77, 'open')").unwrap();
    moving.source.run("CREATE TABLE fleeting (id int PRIMARY KEY); INSERT INTO fleeting VALUES (1)").unwrap();
    moving.told("it is published", |moving| {
        moving.source.value("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'fleeting'").unwrap() == "1"
    });
    moving
        .source
        .run("DROP TABLE fleeting; CREATE TABLE stays (id int PRIMARY KEY); INSERT INTO stays VALUES (1)")
        .unwrap();
    held.run("COMMIT").unwrap();
    moving.joined("stays", 1);
    moving.caught_up();
    moving.assert_tables_same(&["stays", "flow"]);
    moving.told("it is the lane's no more", |moving| ["gone", "live"].contains(&moving.state("fleeting").as_str()));
    moving.becomes("it is not on the target", "SELECT to_regclass('fleeting') IS NULL");
    // The name is free for another.
    let next = moving.next();
    moving
        .source
        .run("CREATE TABLE fleeting (id int PRIMARY KEY, v text); INSERT INTO fleeting VALUES (1, 'again')")
        .unwrap();
    moving.joined("fleeting", next);
    moving.caught_up();
    moving.assert_tables_same(&["fleeting"]);
}

#[test]
fn tables_of_others_rows_of_others_and_what_is_dropped_before_it_is_built_stop_nothing() {
    let moving = flowing("others");
    // The target's own table of this name has rows, which nobody may remove; the other's default cannot be made.
    moving
        .target
        .run("CREATE TABLE noted (id int PRIMARY KEY, own text); INSERT INTO noted VALUES (7, 'the target''s')")
        .unwrap();
    moving
        .source
        .run(
            "CREATE FUNCTION number() RETURNS int LANGUAGE sql AS 'SELECT 5';
             CREATE TABLE noted (id int PRIMARY KEY, own text); INSERT INTO noted VALUES (1, 'the source''s');
             CREATE TABLE calls (id int PRIMARY KEY, n int DEFAULT number()); INSERT INTO calls VALUES (1);
             CREATE TABLE calls_too (id int PRIMARY KEY, n int DEFAULT number()); INSERT INTO calls_too VALUES (1);
             CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1)",
        )
        .unwrap();
    moving.joined("plain", 1);
    moving.told("all say why", |moving| {
        let state = |table: &str| moving.state(table);
        state("calls").contains("number()")
            && state("calls_too").contains("number()")
            && state("noted").contains("holds rows")
    });
    assert_eq!(moving.target.value("SELECT n::text FROM noted n").unwrap(), "(7,\"the target's\")");
    // None of them is a match, and none a corruption.
    run("validator", &moving.migration.config(), ["check"]).unwrap().expect_code(2).unwrap();
    // The lane goes on over a drop and a rename of what is not built.
    moving
        .source
        .run("INSERT INTO calls VALUES (2); DROP TABLE calls; ALTER TABLE calls_too RENAME TO called; UPDATE flow SET v = 'after'")
        .unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["flow", "plain"]);
    assert_eq!(moving.state("calls"), "live");
    assert!(moving.state("called").contains("dflux resync public.called"), "{}", moving.state("called"));
    moving.target.run("TRUNCATE noted; CREATE FUNCTION number() RETURNS int LANGUAGE sql AS 'SELECT 5'").unwrap();
    moving.joined("noted", 1);
    run("dflux", &moving.migration.config(), ["resync", "called", "--wait"]).unwrap().expect_code(0).unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["flow", "plain", "noted", "called"]);
}

#[test]
fn a_table_that_the_role_may_not_read_is_named_and_the_stream_goes_on() {
    let moving = Moving::shared("foreign");
    let role = format!("{}_mover", moving.migration.name);
    moving
        .source
        .run(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'mover'; GRANT CREATE ON DATABASE {database} TO {role};
             GRANT CREATE, USAGE ON SCHEMA public TO {role}; SET ROLE {role}; CREATE TABLE flow (id int PRIMARY KEY, v text); RESET ROLE;
             INSERT INTO flow VALUES (0, 'first')",
            database = moving.source.value("SELECT quote_ident(current_database())").unwrap()
        ))
        .unwrap();
    let url = moving.source.value("SELECT current_setting('port')").unwrap();
    let database = moving.source.value("SELECT current_database()").unwrap();
    let url = format!("postgresql://{role}:mover@127.0.0.1:{url}/{database}");
    moving.migration.configure(&[("source", "url", url.into())]).unwrap();
    let mut moving = moving;
    moving.prepare();
    moving.start();
    moving
        .source
        .run(&format!(
            "CREATE TABLE backup AS SELECT 1 AS a; SET ROLE {role}; CREATE TABLE ours (id int PRIMARY KEY); INSERT INTO ours VALUES (1); RESET ROLE"
        ))
        .unwrap();
    moving.joined("ours", 1);
    moving.source.run("UPDATE flow SET v = 'after'; INSERT INTO ours VALUES (2)").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["flow", "ours"]);
    let log = moving.services[0].log();
    assert!(log.contains("a new table does not join table=public.backup"), "{log}");
    // One that it may publish and not read is refused when it is copied.
    moving
        .source
        .run(&format!(
            "ALTER TABLE backup OWNER TO {role}; REVOKE ALL ON backup FROM {role};
             SET ROLE {role}; CREATE TABLE last (id int PRIMARY KEY); RESET ROLE; UPDATE flow SET v = 'later'"
        ))
        .unwrap();
    let next = moving.next();
    moving.joined("last", next);
    moving.caught_up();
    moving.assert_tables_same(&["flow", "ours", "last"]);
}

#[test]
fn a_table_that_gets_its_name_while_it_is_copied_arrives_under_it() {
    let moving = flowing("renaming");
    moving
        .source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 300) n",
        )
        .unwrap();
    moving.joined("t", 1);
    // The one that is made, and that under its later name.
    let next = moving.next() + 1;
    // The snapshot of the copy waits for this transaction.
    let held = moving.migration.source().unwrap();
    held.run("BEGIN; INSERT INTO flow VALUES (77, 'open')").unwrap();
    moving.source.run("CREATE TABLE t_new (id int PRIMARY KEY, v text, w int); INSERT INTO t_new SELECT n, 'new', n FROM generate_series(1, 500) n").unwrap();
    moving.told("it is published", |moving| {
        moving.source.value("SELECT count(*) FROM pg_publication_tables WHERE tablename = 't_new'").unwrap() == "1"
    });
    moving
        .source
        .run(
            "INSERT INTO t_new VALUES (1000, 'before', 1);
             BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; UPDATE t SET w = 0 WHERE id % 2 = 0; COMMIT;
             INSERT INTO t VALUES (1001, 'after', 1); UPDATE t_old SET v = 'older' WHERE id % 2 = 0; UPDATE flow SET v = 'w'",
        )
        .unwrap();
    held.run("COMMIT").unwrap();
    moving.joined("t", next);
    moving.caught_up();
    moving.assert_tables_same(&["t", "t_old", "flow"]);
}

#[test]
fn a_lane_that_stopped_at_a_table_goes_on_when_a_copy_of_that_is_asked_for() {
    let mut moving = flowing("freed");
    moving.source.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").unwrap();
    moving.joined("t", 1);
    moving.target.run("ALTER TABLE t ADD CHECK (v <> 'bad')").unwrap();
    moving.source.run("UPDATE flow SET v = 'x'; INSERT INTO t VALUES (2, 'bad'); UPDATE flow SET v = 'y'").unwrap();
    moving.services[1].process().wait_ended(std::time::Duration::from_secs(60)).unwrap();
    moving.source.run("DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, 'good')").unwrap();
    run("dflux", &moving.migration.config(), ["resync", "t"]).unwrap().expect_code(0).unwrap();
    moving.restart(1);
    moving.joined("t", 2);
    moving.caught_up();
    moving.assert_tables_same(&["t", "flow"]);
}

#[test]
fn a_marker_that_nobody_asked_for_begins_nothing() {
    let moving = flowing("forged");
    moving
        .source
        .run("SELECT pg_logical_emit_message(true, 'dflux.marker', '1 resync 0123'); UPDATE flow SET v = 'w'")
        .unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["flow"]);
    assert_eq!(moving.target.number("SELECT count(*) FROM dflux.table_state").unwrap(), 0);
}

#[test]
fn killed_in_any_moment_of_a_join_both_services_bring_the_table_whole() {
    use rand::{RngExt, SeedableRng};
    let seed = 0x6a6f_696e;
    println!("seed {seed:#x}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut moving = flowing("joinkills");
    for round in 0..6 {
        let table = format!("round_{round}");
        let key = if round % 2 == 0 { "PRIMARY KEY" } else { "" };
        moving
            .source
            .run(&format!(
                "CREATE TABLE {table} (id int {key}, v text); INSERT INTO {table} SELECT n, 'v' FROM generate_series(1, 20000) n"
            ))
            .unwrap();
        for _kill in 0..3 {
            let moment = std::time::Duration::from_millis(random.random_range(300..4_000));
            let began = std::time::Instant::now();
            let mut written = 0;
            while began.elapsed() < moment {
                written += 1;
                let (id, gone) =
                    (20_000 + round * 1_000_000 + written * 7 + moment.as_millis() as i32 * 100, written * 31);
                moving
                    .source
                    .run(&format!(
                        "INSERT INTO {table} VALUES ({id}, 'n') {conflict}; UPDATE {table} SET v = v || 'u' WHERE id = {gone}; DELETE FROM {table} WHERE id = {gone} + 1",
                        conflict = if key.is_empty() { "" } else { "ON CONFLICT DO NOTHING" }
                    ))
                    .unwrap();
                wait::pace(std::time::Duration::from_millis(20));
            }
            moving.restart(usize::from(random.random_bool(0.5)));
        }
        moving.joined(&table, 1);
        moving.caught_up();
        moving.assert_tables_same(&[&table]);
    }
}
