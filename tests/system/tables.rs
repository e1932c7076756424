//! Tables of every shape, each copied and then changed by the stream: keys of several columns and none, names of every kind,
//! no column and 1,600, columns that are dropped, computed or counted, partitions, inheritance, many schemas, many tables.

use std::fmt::Write as _;
use std::time::Instant;

use changelog::table::{TableName, quote_literal};
use tests::services::run;
use tests::sql::Session;

use crate::moving::{Moving, rows_sql};

/// A table, what it holds before the backfill, and what happens to it in the stream.
struct Shape {
    ddl: &'static str,
    rows: &'static str,
    changes: &'static str,
}

const SHAPES: &[Shape] = &[
    // Composite keys.
    Shape {
        ddl: "CREATE TABLE composite (v text, b text, a int, c date, PRIMARY KEY (c, a, b))",
        rows: "INSERT INTO composite SELECT 'v' || g, 'b' || g % 3, g % 7, date '2024-01-01' + g FROM generate_series(1, 50) g",
        changes: "UPDATE composite SET v = v || '!' WHERE a = 1; UPDATE composite SET c = c - 1000, b = 'moved' WHERE a = 2;
                  DELETE FROM composite WHERE a = 3; INSERT INTO composite VALUES (NULL, '', 0, '-infinity')",
    },
    // No key, one way or another.
    Shape {
        ddl: "CREATE TABLE bare (a int, b text); ALTER TABLE bare REPLICA IDENTITY FULL",
        rows: "INSERT INTO bare SELECT g % 4, CASE WHEN g % 2 = 0 THEN 'same' END FROM generate_series(1, 40) g",
        changes: "UPDATE bare SET b = 'x' WHERE ctid IN (SELECT min(ctid) FROM bare GROUP BY a);
                  DELETE FROM bare WHERE ctid IN (SELECT max(ctid) FROM bare GROUP BY a); INSERT INTO bare VALUES (1, NULL), (1, NULL);
                  UPDATE bare SET a = a; DELETE FROM bare WHERE a = 3",
    },
    Shape {
        ddl: "CREATE TABLE nothing_keyed (id int PRIMARY KEY, v text); ALTER TABLE nothing_keyed REPLICA IDENTITY NOTHING;
              CREATE TABLE nothing_bare (a int, v text); ALTER TABLE nothing_bare REPLICA IDENTITY NOTHING;
              CREATE TABLE default_bare (a int, v text)",
        rows: "INSERT INTO nothing_keyed VALUES (1, 'a'), (2, 'b'); INSERT INTO nothing_bare VALUES (1, 'a'), (1, 'a'), (2, NULL);
               INSERT INTO default_bare VALUES (1, 'a'), (1, 'a')",
        changes: "UPDATE nothing_keyed SET v = 'c' WHERE id = 1; UPDATE nothing_keyed SET id = 5 WHERE id = 2; INSERT INTO nothing_keyed VALUES (2, 'd');
                  UPDATE nothing_bare SET v = 'z' WHERE a = 2; DELETE FROM nothing_bare WHERE a = 1; INSERT INTO nothing_bare VALUES (3, '');
                  UPDATE default_bare SET a = 2",
    },
    Shape {
        ddl: "CREATE TABLE by_index (id int PRIMARY KEY, a int NOT NULL, b text NOT NULL, v text);
              CREATE UNIQUE INDEX by_index_ba ON by_index (b, a) INCLUDE (v); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_ba;
              CREATE TABLE only_index (a int NOT NULL, v text); CREATE UNIQUE INDEX only_index_a ON only_index (a DESC);
              ALTER TABLE only_index REPLICA IDENTITY USING INDEX only_index_a;
              CREATE TABLE full_keyed (id int PRIMARY KEY, v text); ALTER TABLE full_keyed REPLICA IDENTITY FULL;
              CREATE TABLE late_key (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)",
        rows: "INSERT INTO by_index SELECT g, g % 5, 'b' || g, 'v' FROM generate_series(1, 20) g; INSERT INTO only_index VALUES (1, 'a'), (2, 'b');
               INSERT INTO full_keyed VALUES (1, 'a'), (2, NULL), (3, 'c'); INSERT INTO late_key VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        changes: "UPDATE by_index SET id = id + 100 WHERE a = 1; UPDATE by_index SET b = 'moved', v = NULL WHERE id = 2; DELETE FROM by_index WHERE a = 3;
                  UPDATE only_index SET a = 3 WHERE a = 1; DELETE FROM only_index WHERE a = 2; INSERT INTO only_index VALUES (2, 'again');
                  UPDATE full_keyed SET v = 'b' WHERE id = 2; UPDATE full_keyed SET id = 9 WHERE id = 3; DELETE FROM full_keyed WHERE id = 1;
                  UPDATE late_key SET id = 4 - id; DELETE FROM late_key WHERE id = 2",
    },
    // Names.
    Shape {
        ddl: r#"CREATE SCHEMA "Odd. ""Schema"" ñ\"; CREATE SCHEMA a; CREATE SCHEMA "a.b"; CREATE SCHEMA a_b;
              CREATE TABLE "Odd. ""Schema"" ñ\"."Up.Per ""q"" 'x' \ 😀" ("Col.1" int PRIMARY KEY, "C""q" text, "select" text, "ñ😀" text, "a'b\c" text,
                "$1" text, "c0" text, "dflux place" int, "t" text, " " text);
              CREATE TABLE a."b.c" (id int PRIMARY KEY, "u" text); CREATE TABLE "a.b".c (id int PRIMARY KEY, "U" text, u text);
              CREATE TABLE a_b.c (id int PRIMARY KEY); CREATE TABLE "a_b.c" (id int PRIMARY KEY);
              CREATE TABLE "UPPER" (id int PRIMARY KEY, "ID" int); CREATE TABLE upper (id int PRIMARY KEY);
              CREATE TABLE "ünïcödé_nämé_ünïcödé_nämé_ünïcödé_nämé_äöü" ("ünïcödé_nämé_ünïcödé_nämé_ünïcödé_nämé_äöü" int PRIMARY KEY);
              CREATE TABLE xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx (id int PRIMARY KEY,
                yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy text)"#,
        rows: r#"INSERT INTO "Odd. ""Schema"" ñ\"."Up.Per ""q"" 'x' \ 😀" SELECT g, 'a', 'b', 'c', 'd', 'e', 'f', g, 'g', 'h' FROM generate_series(1, 9) g;
               INSERT INTO a."b.c" VALUES (1, 'x'); INSERT INTO "a.b".c VALUES (2, 'X', 'x'); INSERT INTO a_b.c VALUES (3); INSERT INTO "a_b.c" VALUES (4);
               INSERT INTO "UPPER" VALUES (5, 55); INSERT INTO upper VALUES (6);
               INSERT INTO "ünïcödé_nämé_ünïcödé_nämé_ünïcödé_nämé_äöü" VALUES (7);
               INSERT INTO xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx VALUES (8, 'y')"#,
        changes: r#"UPDATE "Odd. ""Schema"" ñ\"."Up.Per ""q"" 'x' \ 😀" SET "C""q" = 'A', "ñ😀" = NULL, "$1" = '$1', "c0" = 'u.c0' WHERE "Col.1" < 5;
                  DELETE FROM "Odd. ""Schema"" ñ\"."Up.Per ""q"" 'x' \ 😀" WHERE "Col.1" = 6;
                  UPDATE a."b.c" SET u = 'y'; UPDATE "a.b".c SET "U" = 'Y', u = 'y'; UPDATE a_b.c SET id = 33; UPDATE "a_b.c" SET id = 44;
                  UPDATE "UPPER" SET "ID" = 56; UPDATE upper SET id = 66; INSERT INTO upper VALUES (67);
                  UPDATE "ünïcödé_nämé_ünïcödé_nämé_ünïcödé_nämé_äöü" SET "ünïcödé_nämé_ünïcödé_nämé_ünïcödé_nämé_äöü" = 77;
                  UPDATE xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
                    SET yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy = 'z'"#,
    },
    // Columns: none, only computed ones, dropped, computed, counted.
    Shape {
        ddl: "CREATE TABLE zero (); CREATE TABLE computed (a int GENERATED ALWAYS AS (7) STORED);
              CREATE TABLE emptied (a int, b text); ALTER TABLE emptied DROP a, DROP b",
        rows: "INSERT INTO zero SELECT FROM generate_series(1, 5); INSERT INTO computed SELECT FROM generate_series(1, 5);
               INSERT INTO emptied SELECT FROM generate_series(1, 3)",
        changes: "INSERT INTO zero DEFAULT VALUES; INSERT INTO zero DEFAULT VALUES; DELETE FROM zero WHERE ctid = (SELECT min(ctid) FROM zero);
                  INSERT INTO computed DEFAULT VALUES; DELETE FROM computed WHERE ctid IN (SELECT ctid FROM computed LIMIT 3);
                  DELETE FROM emptied; INSERT INTO emptied DEFAULT VALUES",
    },
    Shape {
        ddl: "CREATE TABLE dropped (x text, id int PRIMARY KEY, y text, v text, z int); ALTER TABLE dropped DROP x, DROP y, ADD w text DEFAULT 'w', DROP z;
              CREATE TABLE dropped_bare (x text, a int, v text); ALTER TABLE dropped_bare DROP x",
        rows: "INSERT INTO dropped SELECT g, 'v' FROM generate_series(1, 9) g; INSERT INTO dropped_bare VALUES (1, 'a'), (2, 'b')",
        changes: "UPDATE dropped SET v = w, w = NULL WHERE id < 5; DELETE FROM dropped WHERE id = 6; INSERT INTO dropped VALUES (10, NULL, 'q');
                  UPDATE dropped_bare SET v = 'c' WHERE a = 1; DELETE FROM dropped_bare WHERE a = 2",
    },
    Shape {
        ddl: "CREATE TABLE twice (id int PRIMARY KEY, n int GENERATED ALWAYS AS (a * 2) STORED, a int, v text);
              CREATE TABLE twice_bare (n text GENERATED ALWAYS AS (a || '!') STORED, a text);
              CREATE TABLE always (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
              CREATE TABLE by_default (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
              CREATE TABLE aside (id int PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v text, big text); ALTER TABLE aside ALTER big SET STORAGE EXTERNAL;
              CREATE TABLE serials (id bigserial PRIMARY KEY, v text)",
        rows: "INSERT INTO twice (id, a) SELECT g, g FROM generate_series(1, 9) g; INSERT INTO twice_bare (a) VALUES ('a'), ('b'), (NULL);
               INSERT INTO always (v) SELECT 'v' FROM generate_series(1, 9); INSERT INTO by_default (v) SELECT 'v' FROM generate_series(1, 9);
               INSERT INTO aside (id, v, big) SELECT g, 'v', repeat('x', 9000) FROM generate_series(1, 9) g; INSERT INTO serials (v) SELECT 'v' FROM generate_series(1, 9)",
        changes: "UPDATE twice SET a = 100 WHERE id = 1; UPDATE twice SET id = 50 WHERE id = 2; DELETE FROM twice WHERE id = 3; INSERT INTO twice (id, a) VALUES (3, 33);
                  UPDATE twice_bare SET a = 'c' WHERE a = 'a'; DELETE FROM twice_bare WHERE a IS NULL;
                  UPDATE always SET v = 'w' WHERE id < 4; UPDATE always SET id = DEFAULT WHERE id = 5; INSERT INTO always OVERRIDING SYSTEM VALUE VALUES (-7, 'x'); DELETE FROM always WHERE id = 6;
                  UPDATE by_default SET id = 70 WHERE id = 7; INSERT INTO by_default (v) VALUES ('y');
                  UPDATE aside SET v = 'w' WHERE id < 4; UPDATE aside SET n = DEFAULT WHERE id = 5; UPDATE aside SET id = 60 WHERE id = 6; UPDATE aside SET big = 'small' WHERE id = 7;
                  UPDATE serials SET v = 'w' WHERE id = 1; INSERT INTO serials (v) VALUES ('z')",
    },
    // Partitions: of partitions, with other columns' order, a default one, by hash, without a key; rows move among them.
    Shape {
        ddl: "CREATE TABLE days (id int, gone text, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); ALTER TABLE days DROP gone;
              CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
              CREATE TABLE days_2 (v text, day date NOT NULL, extra int, id int NOT NULL); ALTER TABLE days_2 DROP extra;
              ALTER TABLE days ATTACH PARTITION days_2 FOR VALUES FROM ('2024-07-01') TO ('2025-01-01');
              CREATE TABLE days_3 PARTITION OF days FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (id);
              CREATE TABLE days_3_1 PARTITION OF days_3 FOR VALUES IN (1, 2, 3); CREATE TABLE days_3_x PARTITION OF days_3 DEFAULT;
              CREATE TABLE days_x PARTITION OF days DEFAULT;
              CREATE TABLE hashed (id bigint PRIMARY KEY, v text) PARTITION BY HASH (id);
              CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
              CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1); ALTER TABLE hashed_1 REPLICA IDENTITY FULL;
              CREATE TABLE loose (id int, v text) PARTITION BY RANGE (id);
              CREATE TABLE loose_1 PARTITION OF loose FOR VALUES FROM (0) TO (10); CREATE TABLE loose_2 PARTITION OF loose FOR VALUES FROM (10) TO (20)",
        rows: "INSERT INTO days SELECT g, date '2023-12-01' + g * 20, 'v' || g FROM generate_series(1, 60) g;
               INSERT INTO hashed SELECT g, 'v' FROM generate_series(1, 40) g; INSERT INTO loose SELECT g % 20, 'v' FROM generate_series(1, 40) g",
        changes: "UPDATE days SET v = 'w' WHERE id % 3 = 0; UPDATE days SET day = day + 200 WHERE id % 4 = 0; DELETE FROM days WHERE id % 5 = 0;
                  UPDATE days_2 SET v = 'direct'; INSERT INTO days_3 VALUES (2, '2025-05-05', 'new'); UPDATE days SET id = id + 1000 WHERE id = 7;
                  UPDATE hashed SET id = id + 1000 WHERE id % 3 = 0; UPDATE hashed SET v = NULL WHERE id % 2 = 0; DELETE FROM hashed WHERE id = 1;
                  UPDATE loose SET id = 19 - id WHERE id % 3 = 0; UPDATE loose SET v = 'w' WHERE id = 5; DELETE FROM loose WHERE ctid = '(0,1)'",
    },
    // Inheritance: every table holds its own rows.
    Shape {
        ddl: "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
              CREATE TABLE grandchild (more text) INHERITS (child); CREATE TABLE other_parent (w text DEFAULT 'w');
              CREATE TABLE both_of () INHERITS (parent, other_parent)",
        rows: "INSERT INTO parent VALUES (1, 'p'), (2, 'p'); INSERT INTO child VALUES (1, 'c', 7), (3, 'c', 8); INSERT INTO grandchild VALUES (1, 'g', 9, 'm'), (1, 'g', 9, 'm');
               INSERT INTO other_parent VALUES ('o'); INSERT INTO both_of VALUES (1, 'b', 'x')",
        changes: "UPDATE parent SET v = v || '!'; UPDATE ONLY parent SET id = 10 WHERE id = 1; DELETE FROM ONLY child WHERE id = 1; INSERT INTO child VALUES (5, 'new', 1);
                  UPDATE grandchild SET more = NULL; UPDATE other_parent SET w = 'all'; DELETE FROM ONLY parent WHERE id = 2",
    },
];

/// 1,600 columns, the most that a table can have, with a key and without; 200 columns were dropped in between elsewhere.
fn wide() -> String {
    let columns = |count: usize| (1..count).map(|at| format!("c{at} int")).collect::<Vec<_>>().join(", ");
    format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {}); INSERT INTO wide (id, c1, c1599) SELECT g, g, -g FROM generate_series(1, 20) g;
         CREATE TABLE wide_bare (id int, {}); INSERT INTO wide_bare (id, c1, c1599) SELECT g % 3, g % 3, 5 FROM generate_series(1, 9) g",
        columns(1_600),
        columns(1_600)
    )
}

const WIDE_CHANGES: &str = "UPDATE wide SET c800 = 8 WHERE id < 10; UPDATE wide SET id = 100, c2 = 2 WHERE id = 11; DELETE FROM wide WHERE id = 12;
    INSERT INTO wide (id, c1598) VALUES (200, 7); UPDATE wide_bare SET c2 = 2 WHERE id = 1; DELETE FROM wide_bare WHERE id = 2";

/// Every table of the source that holds rows, as SQL names it, its own rows only.
fn holding(session: &Session) -> Vec<String> {
    let query = "SELECT format('ONLY %I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'dflux') AND n.nspname !~ '^pg_' ORDER BY 1";
    session.column(query).unwrap()
}

fn everything(moving: &Moving) {
    moving.migration.configure(&[("migration", "tables", toml::Value::Array(vec!["*.*".into()]))]).unwrap();
}

/// A verdict of the validator on the whole, but for tables without a column, of which it has none.
fn verified(moving: &Moving) {
    let all = ["*.*"].map(Into::into).to_vec();
    let without = ["public.zero", "public.emptied"].map(Into::into).to_vec();
    let settings =
        [("migration", "tables", toml::Value::Array(all)), ("migration", "exclude", toml::Value::Array(without))];
    moving.migration.configure(&settings).unwrap();
    run("validator", &moving.migration.config(), ["check"]).unwrap().expect_code(0).unwrap();
}

#[test]
fn tables_of_every_shape_arrive_and_follow() {
    let mut moving = Moving::shared("shapes");
    everything(&moving);
    let mut schemas = String::new();
    for number in 1..=40 {
        let _ = write!(
            schemas,
            "CREATE SCHEMA s{number}; CREATE TABLE s{number}.t (id int PRIMARY KEY, v text); INSERT INTO s{number}.t VALUES ({number}, 'v');"
        );
    }
    for shape in SHAPES {
        moving.source.run(shape.ddl).unwrap();
        moving.source.run(shape.rows).unwrap();
    }
    moving.source.run(&wide()).unwrap();
    moving.source.run(&schemas).unwrap();
    moving.prepare();
    moving.start();
    moving.caught_up();
    let tables = holding(&moving.source);
    assert!(tables.len() > 80, "{tables:?}");
    let queries: Vec<String> = tables.iter().map(|table| rows_sql(table)).collect();
    moving.assert_same(&queries);
    for shape in SHAPES {
        moving.source.run(shape.changes).unwrap();
    }
    moving.source.run(WIDE_CHANGES).unwrap();
    for number in 1..=40 {
        moving
            .source
            .run(&format!("UPDATE s{number}.t SET v = 'w'; INSERT INTO s{number}.t VALUES (-{number})"))
            .unwrap();
    }
    moving.caught_up();
    moving.assert_same(&queries);
    verified(&moving);
}

#[test]
fn a_partitioned_table_arrives_where_the_target_divides_it_otherwise_or_not_at_all() {
    let mut moving = Moving::shared("divided");
    let columns = "id int, day date, v text, PRIMARY KEY (id, day)";
    moving
        .source
        .run(&format!(
            "CREATE TABLE one ({columns}) PARTITION BY RANGE (day); CREATE TABLE one_1 PARTITION OF one FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
             CREATE TABLE one_2 PARTITION OF one FOR VALUES FROM ('2024-07-01') TO ('2025-07-01');
             CREATE TABLE two ({columns}) PARTITION BY HASH (id); CREATE TABLE two_1 PARTITION OF two FOR VALUES WITH (MODULUS 1, REMAINDER 0);
             CREATE TABLE three ({columns});
             INSERT INTO one SELECT g, date '2024-01-01' + g, 'v' FROM generate_series(1, 300) g; INSERT INTO two SELECT * FROM one; INSERT INTO three SELECT * FROM one"
        ))
        .unwrap();
    moving
        .target
        .run(&format!(
            "CREATE TABLE one ({columns}) PARTITION BY LIST (id); CREATE TABLE one_3 PARTITION OF one FOR VALUES IN (1, 2, 3);
             CREATE TABLE one_x PARTITION OF one DEFAULT PARTITION BY HASH (day); CREATE TABLE one_x1 PARTITION OF one_x FOR VALUES WITH (MODULUS 1, REMAINDER 0);
             CREATE TABLE two ({columns}); CREATE TABLE three ({columns}) PARTITION BY RANGE (id); CREATE TABLE three_x PARTITION OF three DEFAULT"
        ))
        .unwrap();
    moving.start();
    for table in ["one", "two", "three"] {
        moving
            .source
            .run(&format!(
                "UPDATE {table} SET v = 'w' WHERE id % 3 = 0; UPDATE {table} SET day = day + 150 WHERE id % 4 = 0; UPDATE {table} SET id = id + 1000 WHERE id % 5 = 0;
                 DELETE FROM {table} WHERE id % 7 = 0; INSERT INTO {table} VALUES (2, '2024-12-31', NULL)"
            ))
            .unwrap();
    }
    moving.caught_up();
    moving.assert_tables_same(&["one", "two", "three"]);
    moving.source.run("TRUNCATE one, two; INSERT INTO one VALUES (1, '2024-02-02', 'after')").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["one", "two", "three"]);
    verified(&moving);
}

/// `DFLUX_TABLES=5000` for the size that the limits speak of.
#[test]
fn a_thousand_small_tables_are_moved_in_little_memory() {
    let count: u32 = std::env::var("DFLUX_TABLES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000);
    let mut moving = Moving::shared("many");
    for first in (0..count).step_by(250) {
        let tables = (first..count.min(first + 250)).map(|number| {
            format!("CREATE TABLE t{number} (id int PRIMARY KEY, v text); INSERT INTO t{number} VALUES ({number}, 'v'), (-1, NULL);")
        });
        moving.source.run(&tables.collect::<String>()).unwrap();
    }
    let mut timed = String::new();
    let mut time = |what: &str, began: Instant| {
        let _ = write!(timed, "{what} {:.1} s; ", began.elapsed().as_secs_f64());
    };
    let began = Instant::now();
    moving.prepare();
    time("prepare", began);
    let began = Instant::now();
    moving.start();
    time("backfill", began);
    let began = Instant::now();
    for first in (0..count).step_by(250) {
        let changes = (first..count.min(first + 250)).map(|number| {
            format!("UPDATE t{number} SET v = 'w' WHERE id = -1; INSERT INTO t{number} VALUES (-2, 'x');")
        });
        moving.source.run(&changes.collect::<String>()).unwrap();
    }
    moving.caught_up();
    time("first change of each", began);
    let began = Instant::now();
    moving.services =
        std::mem::take(&mut moving.services).into_iter().map(|service| service.start_again().unwrap()).collect();
    moving.source.run("UPDATE t1 SET v = 'again'").unwrap();
    moving.caught_up();
    time("restart", began);
    println!("{count} tables: {timed}{:?}", moving.resident_peaks());
    // One answer for all: 1,000 queries would be most of this test.
    let each = (0..count).map(|number| {
        format!(
            "SELECT {} AS t, r::text AS row FROM t{number} r",
            quote_literal(&TableName::new("public", format!("t{number}")).to_string())
        )
    });
    let each: Vec<String> = each.collect();
    moving.assert_same(
        each.chunks(250).map(|some| format!("SELECT t, row FROM ({}) AS x ORDER BY t, row", some.join(" UNION ALL "))),
    );
    for (service, peak) in moving.resident_peaks() {
        assert!(peak < 256 << 20, "{service} held {peak} bytes");
    }
}

/// The consumer reads ahead of what it needs, in each partition: of hundreds that are all busy it once held two megabytes each.
#[test]
fn a_transaction_of_300000_rows_over_hundreds_of_tables_passes_in_bounded_memory_and_verifies() {
    const TABLES: usize = 400;
    const ROWS: usize = 750;
    let mut moving = Moving::shared("busy");
    moving.migration.configure(&[("migration", "tables", vec!["busy_*.*"].into())]).unwrap();
    let names: Vec<String> = (0..TABLES).map(|number| format!("busy_{}.t{number}", number % 8)).collect();
    moving.source.run(&(0..8).map(|schema| format!("CREATE SCHEMA busy_{schema};")).collect::<String>()).unwrap();
    let made = names.iter().map(|name| {
        format!("CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} VALUES (0, 'v'), (-1, NULL);")
    });
    moving.source.run(&made.collect::<String>()).unwrap();
    moving.prepare();
    moving.start();
    // A consumer that was away has all of it before it at once.
    moving.services[1].kill();
    let changes = names.iter().map(|name| {
        format!(
            "INSERT INTO {name} SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, {ROWS}) g;
             UPDATE {name} SET v = 'w' WHERE id = -1;"
        )
    });
    moving.source.run(&changes.collect::<String>()).unwrap();
    moving.captured();
    moving.restart(1);
    moving.caught_up();
    verified(&moving);
    println!("{:?}", moving.resident_peaks());
    for (service, peak) in moving.resident_peaks() {
        assert!(peak < 256 << 20, "{service} held {peak} bytes");
    }
}
