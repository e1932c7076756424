//! `dflux resync TABLE --rows`: what the validator finds to be wrong is read again, row by row, while the lane runs on.

use std::sync::atomic::{AtomicBool, Ordering};

use tests::services::run;

use crate::moving::Moving;

const TABLES: &str = "
CREATE TABLE t (id bigint PRIMARY KEY, v text, price numeric(10,2), tag text UNIQUE, big text, n int GENERATED ALWAYS AS IDENTITY,
  twice numeric GENERATED ALWAYS AS (price * 2) STORED);
INSERT INTO t (id, v, price, tag, big) SELECT n, 'v' || n, n * 1.1, 'tag' || n, repeat(md5(n::text), 200) FROM generate_series(1, 4000) n;
CREATE TABLE child (id int PRIMARY KEY, of bigint REFERENCES t);
INSERT INTO child SELECT n, n FROM generate_series(1, 50) n;
CREATE TABLE pair (a text, b int, v text, PRIMARY KEY (a, b));
INSERT INTO pair SELECT 'it''s \\ ' || n, n, 'x' FROM generate_series(1, 100) n;
CREATE TABLE bag (v text);
INSERT INTO bag VALUES ('a'), ('a'), ('b');";

/// Also when the test fails meanwhile.
#[derive(Default)]
struct Stop(AtomicBool);

struct Ends<'a>(&'a Stop);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

fn moving(label: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.source.run(TABLES).unwrap();
    moving.prepare();
    moving.start();
    moving.becomes(
        "prepare is done",
        "SELECT count(*) = 0 FROM dflux.schema_step WHERE kind = 'key' AND done_at IS NULL",
    );
    moving
}

fn repair(moving: &Moving, table: &str, code: i32) -> String {
    let said = run("dflux", &moving.migration.config(), ["resync", table, "--rows", "--timeout", "120"]).unwrap();
    assert_eq!(said.code, Some(code), "{}{}", said.stdout, said.stderr);
    said.stdout + &said.stderr
}

/// What damages the target, behind the lane's back.
const DAMAGE: &str = "SET session_replication_role = replica;
  UPDATE t SET v = upper(v) WHERE id <= 40;
  UPDATE t SET big = left(big, 100), price = price + 0.01 WHERE id BETWEEN 30 AND 60;
  DELETE FROM t WHERE id BETWEEN 100 AND 120;
  INSERT INTO t (id, v, tag) VALUES (-1, 'extra', 'extra'), (-2, NULL, NULL);
  UPDATE t SET tag = 'aside' WHERE id = 200; UPDATE t SET tag = 'tag200' WHERE id = 201; UPDATE t SET tag = 'tag201' WHERE id = 200;
  UPDATE pair SET v = 'y' WHERE b % 10 = 0; DELETE FROM pair WHERE b = 7;";

#[test]
fn exactly_the_wrong_rows_are_read_again_while_the_table_is_written_to() {
    let moving = moving("repaired");
    moving.target.run(DAMAGE).unwrap();
    // A row that is right must not be touched.
    let untouched = "SELECT xmin::text || ' ' || ctid::text FROM t WHERE id = 3000";
    let before = moving.target.value(untouched).unwrap();
    let stop = Stop::default();
    let (said, writes) = std::thread::scope(|scope| {
        let ends = Ends(&stop);
        let writing = scope.spawn(|| {
            let session = moving.migration.source().unwrap();
            let mut writes = 0;
            while !stop.0.load(Ordering::Relaxed) {
                writes += 1;
                session
                    .run(&format!(
                        "UPDATE t SET price = price + 1 WHERE id % 97 = {writes} % 97 AND id < 300; DELETE FROM t WHERE id = 60 + {writes} % 40; \
                         INSERT INTO t (id, v, tag) VALUES (60 + {writes} % 40, 'again', NULL); UPDATE pair SET b = b + 1000 WHERE b = {writes} % 2000"
                    ))
                    .unwrap();
                tests::wait::pace(std::time::Duration::from_millis(15));
            }
            writes
        });
        let said = repair(&moving, "t", 0) + &repair(&moving, "pair", 0);
        drop(ends);
        (said, writing.join().unwrap())
    });
    assert!(writes > 3 && said.contains("public.t matches") && said.contains("public.pair matches"), "{said}");
    assert_eq!(moving.target.value(untouched).unwrap(), before);
    moving.caught_up();
    moving.assert_tables_same(&["t", "child", "pair", "bag"]);
    assert!(repair(&moving, "t", 0).contains("0 row(s) were read again"));
}

#[test]
fn a_repair_that_is_killed_in_the_middle_is_made_whole() {
    let mut moving = moving("killed");
    moving.target.run(DAMAGE).unwrap();
    // What a repair asks for, while nobody applies.
    moving.services.remove(1).kill();
    moving
        .target
        .run("INSERT INTO dflux.incomplete SELECT lane, 'public', 't', ARRAY[n::text] FROM dflux.lane, generate_series(-2, 250) n")
        .unwrap();
    moving.source.run("UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id = 133").unwrap();
    moving.services.push(moving.migration.service("consumer").start().unwrap());
    for _ in 0..3 {
        moving.restart(1);
    }
    moving.becomes("they are read again", "SELECT count(*) = 0 FROM dflux.incomplete");
    moving.caught_up();
    moving.assert_tables_same(&["t"]);
}

#[test]
fn what_cannot_be_mended_row_by_row_is_refused_with_what_to_do() {
    let moving = moving("unmended");
    moving.target.run("DELETE FROM bag WHERE v = 'b'").unwrap();
    let said = repair(&moving, "bag", 2);
    assert!(said.contains("has no key") && said.contains("dflux resync public.bag"), "{said}");
    moving.target.run("ALTER TABLE t ALTER v SET DEFAULT 'x'; ALTER TABLE pair ADD COLUMN more int").unwrap();
    let said = repair(&moving, "pair", 1);
    assert!(said.contains("no row is named for") && said.contains("validator check --table public.pair"), "{said}");
}

#[test]
fn what_cannot_be_read_again_stops_no_lane() {
    let moving = moving("unreadable");
    // As if the table's key had become another between the check and the reading.
    moving
        .target
        .run("INSERT INTO dflux.incomplete SELECT lane, 'public', 't', ARRAY['1', 'x'], now() FROM dflux.lane")
        .unwrap();
    moving.becomes("it is given up", "SELECT count(*) = 0 FROM dflux.incomplete");
    moving.source.run("UPDATE t SET v = 'on' WHERE id = 1").unwrap();
    moving.caught_up();
    moving.becomes("the lane is exact", "SELECT phase = 'exact' FROM dflux.lane");
    moving.assert_tables_same(&["t"]);
}
