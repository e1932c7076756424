//! Changes of every kind, through each of the ways in which the lane applies them: on a copy that is ahead of the stream
//! (tolerant), one by one as they are committed, and many at once after a pause.

use tests::services::run;

use crate::moving::{Moving, rows_sql};

const SCHEMA: &str = "
    CREATE EXTENSION btree_gist;
    CREATE TABLE toast (id int PRIMARY KEY, v int, big text, other bytea);
    CREATE TABLE toast_full (id int PRIMARY KEY, v int, big text, other bytea);
    CREATE TABLE toast_bare (id int, v int, big text, other bytea);
    CREATE TABLE toast_index (id int PRIMARY KEY, k text NOT NULL, v int, big text); CREATE UNIQUE INDEX toast_index_k ON toast_index (k);
    ALTER TABLE toast ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
    ALTER TABLE toast_full ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    ALTER TABLE toast_bare ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
    ALTER TABLE toast_index ALTER big SET STORAGE EXTERNAL, ALTER k SET STORAGE EXTERNAL, SET (toast_tuple_target = 128), REPLICA IDENTITY USING INDEX toast_index_k;
    CREATE TABLE unique_now (id int PRIMARY KEY, u int UNIQUE, v text);
    CREATE TABLE unique_later (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE, v text);
    CREATE TABLE unique_parts (id int PRIMARY KEY, u int, v text); CREATE UNIQUE INDEX unique_parts_u ON unique_parts (lower(v), (u + 1)) WHERE u > 0;
    CREATE TABLE excluded (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (room WITH =, during WITH &&));
    CREATE TABLE shifted (id int PRIMARY KEY, v text);
    CREATE TABLE flags (id boolean PRIMARY KEY, v int, big text); ALTER TABLE flags ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE hosts (id inet PRIMARY KEY, v int, big text); ALTER TABLE hosts ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE padded (id char(5) PRIMARY KEY, v int, big text); ALTER TABLE padded ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE parents (id int PRIMARY KEY, v text);
    CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
      other int REFERENCES parents ON DELETE SET NULL);
    CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE DEFERRABLE);
    CREATE TABLE cut_a (id serial PRIMARY KEY, v text); CREATE TABLE cut_b (id int PRIMARY KEY, a int REFERENCES cut_a);
    CREATE TABLE cut_c (a int, v text);
    CREATE TABLE cut_p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE cut_p1 PARTITION OF cut_p FOR VALUES FROM (0) TO (100);
    CREATE TABLE counted (id int PRIMARY KEY, n int); CREATE TABLE log (n int, v text);
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.log VALUES (NEW.n, TG_OP); RETURN NEW; END $$;
    CREATE TRIGGER noted AFTER INSERT OR UPDATE ON counted FOR EACH ROW EXECUTE FUNCTION noted();";

const TABLES: &[&str] = &[
    "toast",
    "toast_full",
    "toast_bare",
    "toast_index",
    "unique_now",
    "unique_later",
    "unique_parts",
    "excluded",
    "shifted",
    "flags",
    "hosts",
    "padded",
    "parents",
    "children",
    "tree",
    "cut_a",
    "cut_b",
    "cut_c",
    "cut_p",
    "counted",
    "log",
];

/// Each runs again and again: it begins by making its own rows. Statements between `;;` are sent by themselves.
const SCENARIOS: &[(&str, &str)] = &[
    (
        "TOAST values that no update touches",
        "DELETE FROM toast; DELETE FROM toast_full; DELETE FROM toast_bare;
         INSERT INTO toast SELECT g, g, repeat('big' || g, 40000), convert_to(repeat('other' || g, 20000), 'UTF8') FROM generate_series(1, 8) g;
         INSERT INTO toast_full SELECT * FROM toast; INSERT INTO toast_bare SELECT * FROM toast; INSERT INTO toast_bare SELECT * FROM toast WHERE id = 1;;
         UPDATE toast SET v = v + 100; UPDATE toast_full SET v = v + 100; UPDATE toast_bare SET v = v + 100;;
         BEGIN; UPDATE toast SET v = 0 WHERE id = 1; UPDATE toast SET big = 'short' WHERE id = 1; UPDATE toast SET v = 1 WHERE id = 1;
         UPDATE toast SET big = repeat('new', 50000) WHERE id = 2; UPDATE toast SET v = 2 WHERE id = 2; UPDATE toast SET other = NULL WHERE id = 2;
         UPDATE toast SET id = 30 WHERE id = 3; UPDATE toast SET v = 3 WHERE id = 30; UPDATE toast SET id = 3 WHERE id = 30;
         UPDATE toast SET id = 40, big = NULL WHERE id = 4; DELETE FROM toast WHERE id = 5; INSERT INTO toast VALUES (5, 5, NULL, NULL);
         UPDATE toast SET id = 60 WHERE id = 6; DELETE FROM toast WHERE id = 60;
         UPDATE toast SET id = 6 WHERE id = 7; UPDATE toast SET id = 7 WHERE id = 8; COMMIT;;
         BEGIN; UPDATE toast_full SET v = 0 WHERE id = 1; UPDATE toast_full SET id = 30 WHERE id = 3; UPDATE toast_full SET big = NULL WHERE id = 2;
         UPDATE toast_full SET v = 7 WHERE id = 2; DELETE FROM toast_full WHERE id = 5; COMMIT;;
         BEGIN; UPDATE toast_bare SET v = 0 WHERE id = 1; UPDATE toast_bare SET big = NULL WHERE id = 2; UPDATE toast_bare SET v = 7 WHERE id = 2;
         DELETE FROM toast_bare WHERE ctid = (SELECT min(ctid) FROM toast_bare WHERE id = 1); COMMIT",
    ),
    (
        "a key that is itself a TOAST value",
        "DELETE FROM toast_index; INSERT INTO toast_index SELECT g, repeat('k' || g, 700), g, repeat('b', 90000) FROM generate_series(1, 4) g;;
         UPDATE toast_index SET v = v + 1; UPDATE toast_index SET k = 'plain' WHERE id = 1; UPDATE toast_index SET id = 20 WHERE id = 2;
         DELETE FROM toast_index WHERE id = 3",
    ),
    (
        "keys whose cast to text is not how they are printed",
        "DELETE FROM flags; DELETE FROM hosts; DELETE FROM padded;
         INSERT INTO flags VALUES (true, 1, repeat('t', 9000)), (false, 2, repeat('f', 9000));
         INSERT INTO hosts VALUES ('1.2.3.4', 1, repeat('h', 9000)), ('::1/64', 2, repeat('i', 9000)); INSERT INTO padded VALUES ('ab', 1, repeat('p', 9000));;
         UPDATE flags SET v = v + 1; UPDATE hosts SET v = v + 1; UPDATE padded SET v = v + 1; UPDATE hosts SET id = '1.2.3.5' WHERE id = '1.2.3.4'",
    ),
    (
        "deleted and inserted again in one transaction",
        "DELETE FROM unique_now; INSERT INTO unique_now SELECT g, g * 10, 'v' FROM generate_series(1, 9) g;;
         BEGIN; DELETE FROM unique_now WHERE id < 4; INSERT INTO unique_now VALUES (1, 10, 'again'), (2, 30, 'other'), (3, 20, NULL);
         DELETE FROM unique_now WHERE id = 2; INSERT INTO unique_now VALUES (2, 31, 'third'); COMMIT;;
         BEGIN; INSERT INTO unique_now VALUES (50, 500); DELETE FROM unique_now WHERE id = 50; DELETE FROM unique_now WHERE id = 9;
         INSERT INTO unique_now VALUES (50, 90, 'took it'); COMMIT",
    ),
    (
        "unique values swapped in one transaction",
        "DELETE FROM unique_now; DELETE FROM unique_later; DELETE FROM unique_parts; DELETE FROM excluded;
         INSERT INTO unique_now SELECT g, g, 'v' FROM generate_series(1, 9) g; INSERT INTO unique_later SELECT * FROM unique_now; INSERT INTO unique_parts SELECT * FROM unique_now;
         INSERT INTO excluded SELECT g, 1, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 4) g;;
         BEGIN; UPDATE unique_now SET u = NULL WHERE id = 1; UPDATE unique_now SET u = 1 WHERE id = 2; UPDATE unique_now SET u = 2 WHERE id = 1; COMMIT;;
         BEGIN; UPDATE unique_now SET u = -1 WHERE id = 3; UPDATE unique_now SET u = 3 WHERE id = 4; UPDATE unique_now SET u = 4 WHERE id = 5; UPDATE unique_now SET u = 5 WHERE id = 3; COMMIT;;
         BEGIN; UPDATE unique_now SET id = 100 WHERE id = 6; UPDATE unique_now SET id = 6 WHERE id = 7; UPDATE unique_now SET id = 7 WHERE id = 100; COMMIT;;
         UPDATE unique_later SET u = 10 - u;; BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE unique_later SET u = 2 WHERE id = 1; UPDATE unique_later SET u = 9 WHERE id = 8; COMMIT;;
         BEGIN; UPDATE unique_parts SET u = -u WHERE id = 1; UPDATE unique_parts SET u = 1, v = 'V' WHERE id = 2; UPDATE unique_parts SET u = 2 WHERE id = 1; COMMIT;;
         BEGIN; UPDATE excluded SET room = 2 WHERE id = 1; UPDATE excluded SET during = '[10,20)' WHERE id = 2; UPDATE excluded SET room = 1, during = '[20,30)' WHERE id = 1; COMMIT",
    ),
    (
        "every key moved by one statement",
        "DELETE FROM shifted; INSERT INTO shifted SELECT g, 'v' || g FROM generate_series(20, 1, -1) g;; UPDATE shifted SET id = id + 1;;
         UPDATE shifted SET id = -id; UPDATE shifted SET id = -id, v = upper(v);; BEGIN; UPDATE shifted SET id = id + 1; UPDATE shifted SET id = id + 1 WHERE id > 15; COMMIT",
    ),
    (
        "deferred foreign keys, cascades",
        "DELETE FROM children; DELETE FROM parents; DELETE FROM tree;;
         BEGIN; INSERT INTO children VALUES (1, 10, NULL), (2, 20, NULL); INSERT INTO parents VALUES (10, 'a'), (20, 'b'), (30, 'c'); COMMIT;;
         INSERT INTO children SELECT g, 30, 20 FROM generate_series(3, 30) g;; UPDATE parents SET id = id + 100 WHERE id = 10; DELETE FROM parents WHERE id = 20;;
         BEGIN; UPDATE children SET parent = 500 WHERE id = 3; INSERT INTO parents VALUES (500, 'late'); DELETE FROM parents WHERE id = 30; COMMIT;;
         INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, 1), (6, 6);; DELETE FROM tree WHERE id = 2;;
         BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO tree VALUES (7, 8), (8, 7); DELETE FROM tree WHERE id = 6; COMMIT",
    ),
    (
        "TRUNCATE of one table and of several, CASCADE, RESTART IDENTITY",
        "INSERT INTO cut_a (v) VALUES ('x'); INSERT INTO cut_b SELECT id + 1000, id FROM cut_a ON CONFLICT DO NOTHING; INSERT INTO cut_c VALUES (1, 'a'), (1, 'a');
         INSERT INTO cut_p VALUES (1, 'a') ON CONFLICT DO NOTHING;;
         TRUNCATE cut_a, cut_b, cut_c RESTART IDENTITY;; INSERT INTO cut_a (v) VALUES ('one'), ('two'); INSERT INTO cut_b VALUES (1, 1), (2, 2); INSERT INTO cut_c VALUES (2, 'b');;
         TRUNCATE cut_a CASCADE;; BEGIN; INSERT INTO cut_a (v) VALUES ('gone'); INSERT INTO cut_c VALUES (3, 'c'), (3, 'c'); TRUNCATE cut_a, cut_c, cut_p CASCADE; INSERT INTO cut_a (id, v) VALUES (1, 'stays');
         INSERT INTO cut_b VALUES (7, 1); INSERT INTO cut_c VALUES (4, 'd'); INSERT INTO cut_p VALUES (2, 'b'); COMMIT;;
         BEGIN; SAVEPOINT s; TRUNCATE cut_c; ROLLBACK TO s; INSERT INTO cut_c VALUES (5, 'e'); COMMIT;; TRUNCATE cut_p; TRUNCATE cut_p; INSERT INTO cut_p VALUES (3, 'c');;
         DELETE FROM cut_b; DELETE FROM cut_a; INSERT INTO cut_c SELECT * FROM cut_c",
    ),
    (
        "subtransactions and savepoints that are rolled back",
        "DELETE FROM counted; DELETE FROM log;; BEGIN; INSERT INTO counted VALUES (1, 1); SAVEPOINT a; INSERT INTO counted VALUES (2, 2); UPDATE counted SET n = 11 WHERE id = 1; ROLLBACK TO a;
         INSERT INTO counted VALUES (3, 3); SAVEPOINT b; DELETE FROM counted WHERE id = 1; SAVEPOINT c; INSERT INTO counted VALUES (1, 12); ROLLBACK TO c; ROLLBACK TO b; UPDATE counted SET n = 13 WHERE id = 1;
         RELEASE b; INSERT INTO counted VALUES (4, 4); COMMIT;;
         DO $$ BEGIN FOR i IN 10..200 LOOP BEGIN INSERT INTO public.counted VALUES (i, i); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN
           INSERT INTO public.counted VALUES (-i, i); END; END LOOP; END $$;; BEGIN; UPDATE counted SET n = n + 1; ROLLBACK",
    ),
    (
        "transactions prepared in two phases",
        "DELETE FROM counted WHERE id BETWEEN 300 AND 399;; BEGIN; INSERT INTO counted VALUES (300, 1), (301, 1); SAVEPOINT a; INSERT INTO counted VALUES (302, 1); ROLLBACK TO a; PREPARE TRANSACTION 'kept';;
         BEGIN; INSERT INTO counted VALUES (310, 1); PREPARE TRANSACTION 'dropped';; INSERT INTO counted VALUES (320, 1);; ROLLBACK PREPARED 'dropped';; COMMIT PREPARED 'kept';; UPDATE counted SET n = 2 WHERE id >= 300",
    ),
];

impl Moving {
    fn scenarios(&self, mut after_each: impl FnMut()) {
        for (name, work) in SCENARIOS {
            for statements in work.split(";;") {
                self.source.run(statements).unwrap_or_else(|failure| panic!("{name}: {failure}"));
            }
            after_each();
        }
    }
}

#[test]
fn changes_of_every_kind_arrive_on_a_copy_that_is_ahead_one_by_one_and_many_at_once() {
    let mut moving = Moving::shared("changes");
    moving.source.run(SCHEMA).unwrap();
    moving.scenarios(|| {});
    moving.prepare();

    // The copy is read after these changes, and the stream brings them all the same.
    let producer = moving.migration.service("producer").start().unwrap();
    producer
        .process()
        .wait_until("the lane is born", std::time::Duration::from_secs(60), || {
            if producer.log().contains("is born") { Ok(()) } else { Err("not yet") }
        })
        .unwrap();
    producer.kill();
    moving.scenarios(|| {});
    moving.start();
    moving.caught_up();
    moving.assert_tables_same(TABLES);

    moving.scenarios(|| {
        moving.caught_up();
        moving.assert_tables_same(TABLES);
    });

    let consumer = moving.services.pop().unwrap();
    consumer.terminate().unwrap();
    for _time in 0..3 {
        moving.scenarios(|| {});
    }
    moving.services.push(moving.migration.service("consumer").start().unwrap());
    moving.caught_up();
    moving.assert_tables_same(TABLES);
}

#[test]
fn a_prepared_transaction_outlives_a_restart_of_the_producer_and_arrives_when_it_is_committed() {
    let mut moving = Moving::shared("prepared");
    moving.source.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").unwrap();
    moving.prepare();
    moving.start();
    moving.source.run("BEGIN; UPDATE t SET v = 'prepared' WHERE id = 1; INSERT INTO t VALUES (2, 'b'); PREPARE TRANSACTION 'long'").unwrap();
    moving.source.run("INSERT INTO t VALUES (3, 'c')").unwrap();
    moving.caught_up();
    assert_eq!(moving.target.column("SELECT id FROM t ORDER BY 1").unwrap(), ["1", "3"]);
    moving.services =
        std::mem::take(&mut moving.services).into_iter().map(|service| service.start_again().unwrap()).collect();
    moving.source.run("INSERT INTO t VALUES (4, 'd')").unwrap();
    moving.caught_up();
    moving.source.run("COMMIT PREPARED 'long'").unwrap();
    moving.caught_up();
    moving.assert_same([rows_sql("t")]);
}

#[test]
fn values_of_ten_megabytes_pass_in_bounded_memory_and_updates_beside_them_do_not_send_them() {
    let mut moving = Moving::shared("large");
    let big = |letter: &str| format!("repeat('{letter}', 10 << 20)");
    moving
        .source
        .run(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, v int, big text, bytes bytea); ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL;
             INSERT INTO t SELECT g, g, {}, convert_to({}, 'UTF8') FROM generate_series(1, 8) g",
            big("a"),
            big("b")
        ))
        .unwrap();
    moving.prepare();
    moving.start();
    moving.caught_up();
    for changes in [
        "UPDATE t SET v = v + 1",
        "UPDATE t SET id = id + 100 WHERE id < 4",
        "BEGIN; UPDATE t SET v = 0; UPDATE t SET big = 'x' || big WHERE id > 100; UPDATE t SET v = 1; COMMIT",
        "INSERT INTO t SELECT id + 1000, v, big, bytes FROM t WHERE id > 100",
        "DELETE FROM t WHERE id = 5; UPDATE t SET bytes = NULL WHERE id = 6",
    ] {
        moving.source.run(changes).unwrap();
    }
    moving.caught_up();
    let digest = "SELECT id, v, md5(big), md5(bytes), length(big) FROM t ORDER BY id";
    moving.assert_same([digest]);
    println!("{:?}", moving.resident_peaks());
    for (service, peak) in moving.resident_peaks() {
        assert!(peak < 512 << 20, "{service} held {peak} bytes");
    }
}

/// Between the two events of a key change nothing may be flushed; a transaction of deletes alone looks like so many first halves.
#[test]
fn a_transaction_that_deletes_a_million_rows_passes_in_bounded_memory_in_the_lane_and_in_a_replay() {
    let mut moving = Moving::shared("emptied");
    moving
        .source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY);
             INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 1000010) g",
        )
        .unwrap();
    moving.prepare();
    moving.start();
    let emptying = "BEGIN; INSERT INTO u VALUES (1); DELETE FROM t WHERE id > 10; INSERT INTO u VALUES (2); COMMIT";
    moving.source.run(emptying).unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["t", "u"]);
    run("dflux", &moving.migration.config(), ["resync", "t", "--replay", "--wait"]).unwrap().expect_code(0).unwrap();
    moving.assert_tables_same(&["t", "u"]);
    println!("{:?}", moving.resident_peaks());
    for (service, peak) in moving.resident_peaks() {
        assert!(peak < 256 << 20, "{service} held {peak} bytes");
    }
}

/// The stream has a TRUNCATE as what it did to each table, and the foreign key between them stands on the target.
#[test]
fn a_truncate_of_tables_that_refer_to_each_other_is_replayed_for_one_of_them() {
    let mut moving = Moving::shared("cutalone");
    moving
        .source
        .run(
            "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents);
             INSERT INTO parents SELECT generate_series(1, 9); INSERT INTO children SELECT g, g FROM generate_series(1, 9) g",
        )
        .unwrap();
    moving.prepare();
    moving.start();
    moving.caught_up();
    moving.prepare();
    let built = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated";
    assert_eq!(moving.target.number(built).unwrap(), 1);
    moving
        .source
        .run("TRUNCATE parents, children; INSERT INTO parents VALUES (7), (8); INSERT INTO children VALUES (70, 7)")
        .unwrap();
    moving.caught_up();
    let replay = ["resync", "parents", "--replay", "--wait", "--timeout", "60"];
    run("dflux", &moving.migration.config(), replay).unwrap().expect_code(0).unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["parents", "children"]);
}
