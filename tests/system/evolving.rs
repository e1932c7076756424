//! Tables that the source changes while they are migrated: the target's become the same, in order and with their rows, or
//! the lane stops before the change, shows the statement to run, and goes on after it.

use std::time::Duration;

use tests::services::run;

use crate::moving::Moving;

const LIMIT: Duration = Duration::from_secs(90);

/// Columns as a person sees them, in the order of their names: numbers differ once one was dropped.
pub const COLUMNS: &str = "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), \
     (SELECT collname FROM pg_collation l WHERE l.oid = a.attcollation) \
     FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2";

/// Every row of a table, its columns in the order of their names.
pub fn rows_by_name(table: &str) -> String {
    format!("SELECT to_jsonb(r)::text FROM {table} AS r ORDER BY to_jsonb(r)::text COLLATE \"C\"")
}

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE plain (id int PRIMARY KEY, a int, b text, c text);
    CREATE TABLE keyless (a int, b text);
    CREATE TABLE whole (id int PRIMARY KEY, a int, big text); ALTER TABLE whole REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE parted (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
    CREATE TABLE \"Odd.Name\" (\"Id x\" int PRIMARY KEY, \"\"\"q\" text);
    INSERT INTO plain SELECT g, g, 'b' || g, 'c' || g FROM generate_series(1, 100) g;
    INSERT INTO keyless SELECT g % 10, 'k' FROM generate_series(1, 50) g;
    INSERT INTO whole SELECT g, g, repeat('w' || g, 3000) FROM generate_series(1, 20) g;
    INSERT INTO parted SELECT g, g FROM generate_series(1, 100) g;
    INSERT INTO \"Odd.Name\" SELECT g, 'q' FROM generate_series(1, 10) g;";

const TABLES: [&str; 5] = ["plain", "keyless", "whole", "parted", "\"Odd.Name\""];

/// Each change with rows before and behind it, in transactions of their own and in one.
const CHANGES: &[&str] = &[
    "UPDATE plain SET a = a + 1 WHERE id < 5; UPDATE keyless SET b = 'l' WHERE a = 1; UPDATE whole SET a = 0 WHERE id = 1;
     UPDATE parted SET a = 0 WHERE id = 1; UPDATE \"Odd.Name\" SET \"\"\"q\" = 'r' WHERE \"Id x\" = 1",
    "ALTER TABLE plain ADD COLUMN d int; INSERT INTO plain VALUES (201, 1, 'b', 'c', 7); UPDATE plain SET d = 9 WHERE id < 3",
    "BEGIN; UPDATE plain SET b = 'before' WHERE id = 10; ALTER TABLE plain ADD COLUMN at timestamptz DEFAULT now();
     INSERT INTO plain (id, b) VALUES (202, 'after'); UPDATE plain SET b = 'after' WHERE id = 11; COMMIT",
    "ALTER TABLE plain ADD COLUMN word varchar(12) COLLATE \"C\" DEFAULT 'it''s \\ so', ADD COLUMN n numeric(9,3)[] DEFAULT '{1.5,NULL}';
     UPDATE plain SET a = 3 WHERE id = 20; INSERT INTO plain (id) VALUES (203)",
    "ALTER TABLE plain ALTER word DROP DEFAULT, ALTER d SET DEFAULT 5; INSERT INTO plain (id) VALUES (204)",
    "ALTER TABLE plain ADD COLUMN m mood DEFAULT 'glad'; INSERT INTO plain (id, m) VALUES (205, 'sad')",
    "ALTER TABLE plain DROP COLUMN c; INSERT INTO plain (id, b) VALUES (206, 'no c'); DELETE FROM plain WHERE id = 30",
    "ALTER TABLE plain RENAME b TO label; UPDATE plain SET label = 'named' WHERE id = 40",
    "ALTER TABLE plain RENAME COLUMN id TO number; UPDATE plain SET label = 'keyed' WHERE number = 41; DELETE FROM plain WHERE number = 42",
    "BEGIN; ALTER TABLE plain RENAME a TO z; ALTER TABLE plain RENAME d TO a; ALTER TABLE plain RENAME z TO d; COMMIT;
     INSERT INTO plain (number, a, d) VALUES (207, 1, 2); UPDATE plain SET a = 100 WHERE number = 50",
    "ALTER TABLE keyless ADD COLUMN x int DEFAULT 4; INSERT INTO keyless VALUES (1, 'x', 1); UPDATE keyless SET b = 'y' WHERE a = 2; DELETE FROM keyless WHERE a = 3",
    "ALTER TABLE keyless DROP COLUMN b; UPDATE keyless SET x = 6 WHERE a = 4; DELETE FROM keyless WHERE a = 5",
    "ALTER TABLE whole ADD COLUMN more text DEFAULT 'm'; UPDATE whole SET a = 2 WHERE id < 5; UPDATE whole SET big = NULL WHERE id = 6",
    "ALTER TABLE parted ADD COLUMN p text DEFAULT 'p'; INSERT INTO parted VALUES (500, 1, 'q'); UPDATE parted SET a = 7 WHERE id < 9",
    "ALTER TABLE parted DROP COLUMN a; INSERT INTO parted VALUES (501, 'r')",
    "ALTER TABLE \"Odd.Name\" ADD COLUMN \"new;--\" int DEFAULT 3; ALTER TABLE \"Odd.Name\" RENAME \"\"\"q\" TO \"Q.q\"; INSERT INTO \"Odd.Name\" VALUES (20, 'z', 1)",
    "ALTER TYPE mood ADD VALUE 'new'",
    "UPDATE plain SET m = 'new' WHERE number < 3",
];

/// How the producer learns of a change of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// What the source's event trigger says in the transaction.
    Trigger,
    /// The rows that follow.
    Rows,
}

fn started(label: &str, by: By) -> Moving {
    let mut moving = Moving::shared(label);
    moving.source.run(SCHEMA).unwrap();
    moving.prepare();
    if by == By::Rows {
        moving.source.run(&format!("DROP EVENT TRIGGER \"dflux {}\"", moving.migration.name)).unwrap();
    }
    moving.start();
    moving
}

/// The consumer ends by itself; what `dflux status` then shows of the lane: the error and the hint.
pub fn stopped(moving: &Moving, sql: &str) -> (String, String) {
    let ended = moving.services[1].process().wait_ended(LIMIT).unwrap_or_else(|failure| panic!("{sql}: {failure}"));
    assert_eq!(ended.code(), Some(1), "{sql}");
    let status = run("dflux", &moving.migration.config(), ["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let told = |name: &str| status["lanes"][0][name].as_str().unwrap_or_else(|| panic!("{sql}: {status:#}")).to_owned();
    (told("error"), told("hint"))
}

fn change(moving: &Moving, at: usize) {
    moving.source.run(CHANGES[at]).unwrap();
    // A catalog that is ahead of the stream may make the lane stop: here it is not.
    moving.captured();
}

fn assert_all_same(moving: &Moving) {
    moving.caught_up();
    moving.assert_same(TABLES.map(rows_by_name));
    moving.assert_same([COLUMNS]);
}

#[test]
fn columns_added_dropped_and_renamed_reach_the_target_in_order_and_with_their_rows() {
    columns_reach_the_target(started("evolve", By::Rows));
}

#[test]
fn and_so_they_do_where_the_event_trigger_tells_of_them() {
    columns_reach_the_target(started("evolvetold", By::Trigger));
}

fn columns_reach_the_target(mut moving: Moving) {
    for at in 0..CHANGES.len() {
        change(&moving, at);
        // One by one first; the later ones while the consumer is away, or is killed in the middle of them.
        match at {
            0..8 => assert_all_same(&moving),
            8 => moving.services[1].kill(),
            14 => moving.restart(1),
            15 => moving.restart(1),
            _ => {}
        }
    }
    assert_all_same(&moving);
    // A copy from before does not fit; one that is made now does.
    let outdated = run("dflux", &moving.migration.config(), ["resync", "plain", "--replay"]).unwrap();
    let outdated = outdated.expect_code(2).unwrap();
    assert!(outdated.stderr.contains("older than a change of the table"), "{}", outdated.stderr);
    run("dflux", &moving.migration.config(), ["resync", "plain"]).unwrap().expect_code(0).unwrap();
    moving.settled_again("plain", 1);
    assert_all_same(&moving);
    moving.restart(0);
    moving.source.run("INSERT INTO plain (number) VALUES (300); ALTER TABLE plain ADD COLUMN last int DEFAULT 1; UPDATE plain SET a = 1").unwrap();
    assert_all_same(&moving);
}

/// What the target is, the change that it cannot take, what its server says, and the remedy.
const UNFIT: [(&str, &str, &str, &str); 5] = [
    (
        "ALTER TABLE plain ADD CHECK (a < 1000)",
        "INSERT INTO plain VALUES (400, 1000, 'b', 'c')",
        "check constraint",
        "ALTER TABLE plain DROP CONSTRAINT plain_a_check",
    ),
    (
        "ALTER TABLE plain ALTER b SET NOT NULL",
        "UPDATE plain SET b = NULL WHERE id = 400",
        "not-null constraint",
        "ALTER TABLE plain ALTER b DROP NOT NULL",
    ),
    (
        "ALTER TABLE plain ALTER a TYPE smallint",
        "UPDATE plain SET a = 70000 WHERE id = 400",
        "out of range",
        "ALTER TABLE plain ALTER a TYPE int",
    ),
    (
        "ALTER TABLE plain ALTER c TYPE varchar(9)",
        "UPDATE plain SET c = 'ten letters' WHERE id = 400",
        "too long",
        "ALTER TABLE plain ALTER c TYPE text",
    ),
    (
        "CREATE UNIQUE INDEX more ON plain (b)",
        "UPDATE plain SET b = 'b5' WHERE id = 400",
        "unique constraint",
        "DROP INDEX more",
    ),
];

#[test]
fn what_the_target_cannot_hold_stops_the_lane_at_that_record_and_it_goes_on_there_after_the_remedy() {
    let mut moving = started("unfit", By::Trigger);
    for (unfit, sql, said, remedy) in UNFIT {
        moving.caught_up();
        moving.services[1].kill();
        moving.target.run(unfit).unwrap();
        // One transaction: the rest of it waits with the change that is refused.
        moving.source.run("UPDATE whole SET a = a + 1").unwrap();
        moving.source.run(&format!("BEGIN; UPDATE keyless SET a = a + 1; {sql}; COMMIT")).unwrap();
        moving.source.run("UPDATE parted SET a = a + 1").unwrap();
        moving.restart(1);
        let (error, hint) = stopped(&moving, sql);
        // The key: a union's branch 1, then 400 in Avro's zigzag.
        let hash = moving.source.value("SELECT md5('\\x02a006'::bytea)").unwrap();
        for part in [&format!("key hash {hash}"), "public.plain", said] {
            assert!(error.contains(part), "{sql}: {part} is not in {error}");
        }
        assert!(hint.contains("public.plain"), "{hint}");
        moving.assert_same(["SELECT sum(a) FROM whole"]);
        let behind = |table: &str| format!("SELECT sum(a) FROM {table}");
        for table in ["keyless", "parted"] {
            let sums = (moving.source.value(&behind(table)).unwrap(), moving.target.value(&behind(table)).unwrap());
            assert_ne!(sums.0, sums.1, "{sql}: {table} was changed behind the record that is refused");
        }
        moving.target.run(remedy).unwrap();
        moving.restart(1);
        moving.caught_up();
        moving.assert_tables_same(&TABLES);
    }
}

#[test]
fn a_change_that_no_event_explains_stops_the_lane_before_it_and_the_statement_shown_lets_it_go_on() {
    let mut moving = started("stops", By::Rows);
    change(&moving, 0);
    moving.caught_up();
    let cases = [
        (
            "ALTER TABLE plain ALTER a TYPE bigint",
            "INSERT INTO plain VALUES (301, 5000000000, 'b', 'c')",
            "ALTER TABLE \"public\".\"plain\" ALTER COLUMN \"a\" TYPE bigint",
            false,
        ),
        (
            "ALTER TABLE plain ALTER b TYPE varchar(5) USING left(b, 5)",
            "UPDATE plain SET b = 'short' WHERE id = 1",
            "ALTER COLUMN \"b\" TYPE character varying(5)",
            true,
        ),
        (
            "ALTER TABLE plain ADD COLUMN r float8 DEFAULT random()",
            "UPDATE plain SET a = 1 WHERE id = 2",
            "ADD COLUMN \"r\" double precision DEFAULT random()",
            true,
        ),
        (
            "ALTER TABLE parted ADD COLUMN s bigserial",
            "INSERT INTO parted (id) VALUES (700)",
            "ADD COLUMN \"s\" bigint DEFAULT nextval('public.parted_s_seq'::regclass)",
            true,
        ),
    ];
    for (sql, row, statement, again) in cases {
        moving.source.run("UPDATE whole SET a = a + 1; UPDATE keyless SET a = a + 1").unwrap();
        moving.source.run(sql).unwrap();
        moving.source.run(row).unwrap();
        moving.source.run("UPDATE whole SET a = a + 1").unwrap();
        let (error, hint) = stopped(&moving, sql);
        assert!(hint.contains(statement), "{sql}: {hint}");
        assert_eq!(hint.contains("dflux resync public."), again && sql.contains("ADD"), "{hint}");
        assert!(error.contains("the lane stops before"), "{error}");
        // What was before is there.
        moving.assert_same(["SELECT sum(a) FROM keyless"]);
        let start = hint.find("ALTER TABLE").unwrap();
        let sequence = if sql.contains("serial") { "CREATE SEQUENCE public.parted_s_seq; " } else { "" };
        let statement = hint[start..].split(';').next().unwrap();
        let using = if sql.contains("USING") { " USING left(b, 5)" } else { "" };
        moving.target.run(&format!("{sequence}{statement}{using}")).unwrap();
        if again && sql.contains("ADD") {
            let table = sql.split(' ').nth(2).unwrap();
            run("dflux", &moving.migration.config(), ["resync", &format!("public.{table}")])
                .unwrap()
                .expect_code(0)
                .unwrap();
            moving.restart(1);
            moving.settled_again(table, 1);
        } else {
            moving.restart(1);
        }
        moving.caught_up();
        moving.assert_same(TABLES.map(rows_by_name));
    }
}
