//! `dflux prepare` again while the lane runs: what the source has made, dropped and renamed since the first one.

use std::time::Duration;

use tests::services::{Said, run};

use crate::moving::Moving;

/// What PostgreSQL says of the schema, the same on both sides.
const DEFINITIONS: [&str; 4] = [
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname IN ('public', 'moved') ORDER BY 1, 2",
    "SELECT conrelid::regclass::text, conname, convalidated, pg_get_constraintdef(oid) FROM pg_constraint
       WHERE connamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'moved')) ORDER BY 1, 2",
    "SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    "SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
];

const UNDONE: &str =
    "SELECT schema_name || '.' || table_name || ' ' || name FROM dflux.schema_step WHERE done_at IS NULL ORDER BY 1";

fn again(moving: &Moving) -> Said {
    run("dflux", &moving.migration.config(), ["prepare"]).unwrap().expect_code(0).unwrap()
}

#[track_caller]
fn assert_says(said: &Said, parts: &[&str]) {
    for part in parts {
        assert!(said.stdout.contains(part), "no {part:?} in:\n{}{}", said.stdout, said.stderr);
    }
}

/// New tables come when they are asked for.
fn started(label: &str, schema: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.migration.configure(&[("migration", "join_new_tables", false.into())]).unwrap();
    moving.source.run(schema).unwrap();
    moving.prepare();
    moving.start();
    moving
}

const SCHEMA: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, mail text, age int);
    CREATE TABLE orders (id int PRIMARY KEY, customer int, total int, note text);
    CREATE TABLE keyless (a int NOT NULL, b text);
    CREATE TABLE days (id int, day int, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (100);
    CREATE TABLE base (id int PRIMARY KEY, n int); CREATE TABLE derived () INHERITS (base);
    CREATE TEXT SEARCH CONFIGURATION plain_words (COPY = simple);
    CREATE INDEX orders_total ON orders (total);
    INSERT INTO customers SELECT g, 'm' || g % 50, g % 90 FROM generate_series(1, 100) g;
    INSERT INTO orders SELECT g, 1 + g % 100, g, 'n' FROM generate_series(1, 500) g;
    INSERT INTO keyless SELECT g, 'k' FROM generate_series(1, 50) g;
    INSERT INTO days SELECT g, g, g FROM generate_series(1, 50) g;
    INSERT INTO derived SELECT g, g FROM generate_series(1, 50) g;";

/// What an application adds to its schema in the course of time.
const LATER: &str = "
    CREATE INDEX orders_customer ON orders (customer) WHERE total > 10;
    CREATE FUNCTION positive(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 0';
    ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (public.positive(total));
    ALTER TABLE orders ADD CONSTRAINT note_short CHECK (length(note) < 5) NOT VALID;
    ALTER TABLE customers ADD CONSTRAINT \"Grown up\" CHECK (age >= 0) NO INHERIT;
    ALTER TABLE days ADD CONSTRAINT v_positive CHECK (v > 0);
    ALTER TABLE base ADD CONSTRAINT n_positive CHECK (n > 0);
    ALTER TABLE orders ADD CONSTRAINT orders_customer_fkey FOREIGN KEY (customer) REFERENCES customers;
    ALTER TABLE days ADD COLUMN w int; CREATE INDEX days_w ON days (w);
    CREATE VIEW totals AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
    CREATE VIEW ws AS SELECT id, w FROM days;
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'begin new.total := new.total + 1; return new; end';
    CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
    ALTER TABLE keyless ADD CONSTRAINT keyless_pkey PRIMARY KEY (a);";

#[test]
fn what_the_source_makes_while_the_lane_runs_is_made_on_the_target_by_the_next_prepare() {
    let mut moving = started("again", SCHEMA);
    assert_says(&again(&moving), &["done   public.orders orders_total", "none is left"]);
    assert_says(&again(&moving), &["target: 0 object(s) made", "(0 new)", "prepared: every step is done"]);

    // A unique constraint holds only behind the de-duplication, which the lane is kept from applying for now.
    moving.services[1].pause();
    moving
        .source
        .run("DELETE FROM customers c WHERE EXISTS (SELECT FROM customers d WHERE d.mail = c.mail AND d.id < c.id)")
        .unwrap();
    moving
        .source
        .run("DELETE FROM orders o WHERE NOT EXISTS (SELECT FROM customers c WHERE c.id = o.customer)")
        .unwrap();
    moving.source.run("ALTER TABLE customers ADD CONSTRAINT customers_mail UNIQUE (mail)").unwrap();
    moving.source.run(LATER).unwrap();
    let said = again(&moving);
    assert_says(
        &said,
        &[
            "waiting up to 30 s until the lane has applied what the source has committed so far",
            "added  public.customers customers_mail",
            "the lane is streaming",
            "run dflux prepare again then",
        ],
    );
    assert!(!said.stdout.contains("done   "), "{said:?}");
    // It needs a column that the lane is to bring.
    assert_says(&said, &["VIEW public.ws cannot be made yet"]);
    assert_eq!(moving.target.number("SELECT count(*) FROM pg_indexes WHERE indexname = 'customers_mail'").unwrap(), 0);

    moving.services[1].resume();
    let said = again(&moving);
    assert_says(
        &said,
        &["done   public.customers customers_mail", "done   public.orders total_positive", "none is left"],
    );
    moving.caught_up();
    moving.assert_same(DEFINITIONS);
    moving.assert_same(["SELECT attrelid::regclass::text, attname, attnotnull FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2"]);
    assert_eq!(moving.target.number("SELECT count(*) FROM pg_type WHERE typname = 'mood'").unwrap(), 1);

    // Nothing of it disturbs the lane, nor is any of it done a second time.
    moving.source.run("UPDATE orders SET total = total + 1; UPDATE keyless SET b = 'l' WHERE a = 3; DELETE FROM keyless WHERE a = 4").unwrap();
    moving.source.run("UPDATE days SET w = v; INSERT INTO customers VALUES (1000, 'new', 1)").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["customers", "orders", "keyless", "days", "base", "derived"]);
    let rows = moving.target.number("SELECT count(*) FROM dflux.schema_step").unwrap();
    assert_says(&again(&moving), &["target: 0 object(s) made", "(0 new)", "prepared: every step is done"]);
    assert_eq!(moving.target.number("SELECT count(*) FROM dflux.schema_step").unwrap(), rows);
    moving.restart(1);
    moving.source.run("UPDATE orders SET total = total + 1").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["orders"]);
}

#[test]
fn steps_of_what_the_source_has_dropped_or_renamed_meanwhile_are_removed_or_renamed() {
    let moving = started(
        "renamed",
        "CREATE SCHEMA moved;
         CREATE TABLE goods (id int PRIMARY KEY, kind int, name text UNIQUE, n int);
         CREATE INDEX goods_kind ON goods (kind); CREATE INDEX goods_gone ON goods (n); CREATE INDEX goods_other ON goods (n);
         CREATE TABLE sales (id int PRIMARY KEY, goods int REFERENCES goods, n int);
         CREATE INDEX sales_n ON sales (n); CREATE TABLE ended (id int PRIMARY KEY, n int UNIQUE);
         CREATE MATERIALIZED VIEW kinds AS SELECT kind, count(*) FROM goods GROUP BY kind;
         CREATE POLICY all_of_it ON sales USING (true); COMMENT ON INDEX goods_kind IS 'by kind';
         INSERT INTO goods SELECT g, g % 5, 'n' || g, g FROM generate_series(1, 100) g;
         INSERT INTO sales SELECT g, g, g FROM generate_series(1, 100) g; REFRESH MATERIALIZED VIEW kinds",
    );
    let config = toml::Value::Array(vec!["public.*".into(), "moved.*".into()]);
    moving.migration.configure(&[("migration", "tables", config)]).unwrap();
    assert!(moving.target.column(UNDONE).unwrap().contains(&"public.goods goods_gone".to_owned()));

    // One index is there already, by hand, when its table gets another name.
    moving.target.run("CREATE INDEX goods_kind ON goods (kind)").unwrap();
    moving
        .source
        .run(
            "DROP INDEX goods_gone; DROP TABLE ended; DROP INDEX goods_other; CREATE INDEX goods_other ON goods (kind, n);
             ALTER TABLE goods RENAME TO \"Wares\"; ALTER TABLE \"Wares\" SET SCHEMA moved;
             UPDATE moved.\"Wares\" SET n = n + 1 WHERE id < 5",
        )
        .unwrap();
    let said = again(&moving);
    assert_says(
        &said,
        &[
            "removed public.goods goods_gone: the source has it no more",
            "removed public.goods goods_name_key: the source has it no more",
            "removed public.ended ended_n_key: the source has it no more",
            "added  moved.Wares goods_name_key",
            "done   moved.Wares goods_name_key",
            "done   moved.Wares goods_other",
            "done   public.sales sales_goods_fkey",
            "done   public.sales sales_n",
            "none is left",
        ],
    );
    for part in
        ["done   moved.Wares goods_kind (", "added  public.sales sales_n\n", "removed public.sales sales_n:", "failed"]
    {
        assert!(!said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    moving.caught_up();
    moving.assert_same(DEFINITIONS);
    moving.assert_same([
        "SELECT kind, count FROM kinds ORDER BY 1",
        "SELECT obj_description('moved.goods_kind'::regclass)",
    ]);
    assert_says(&again(&moving), &["(0 new)", "prepared: every step is done"]);

    // All of them are done: under the new name they are neither run again nor missed.
    moving
        .source
        .run("ALTER TABLE sales RENAME TO sold; ALTER TABLE sold RENAME n TO pieces; UPDATE sold SET pieces = 0")
        .unwrap();
    let said = again(&moving);
    assert_says(&said, &["prepared: "]);
    assert!(!said.stdout.contains("failed") && !said.stdout.contains("removed"), "{}", said.stdout);
    moving.caught_up();
    moving.assert_same(DEFINITIONS);
    moving.assert_same(["SELECT polrelid::regclass::text, polname FROM pg_policy ORDER BY 1"]);
    moving.assert_tables_same(&["sold", "moved.\"Wares\""]);
    assert_says(&again(&moving), &["prepared: every step is done"]);
}

#[test]
fn a_table_whose_rename_the_lane_has_yet_to_apply_is_not_made_in_its_way() {
    let moving = started(
        "ontheway",
        "CREATE TABLE before (id int PRIMARY KEY, n int); CREATE INDEX by_n ON before (n);
         INSERT INTO before SELECT g, g FROM generate_series(1, 10) g",
    );
    moving.services[1].pause();
    moving.source.run("ALTER TABLE before RENAME TO after; UPDATE after SET n = 0 WHERE id = 1; CREATE TABLE fresh (id int PRIMARY KEY)").unwrap();
    let said = again(&moving);
    assert_says(&said, &["public.after is not made yet", "run dflux prepare again then"]);
    assert!(!said.stdout.contains("removed"), "{}", said.stdout);
    let made = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    assert_eq!(moving.target.value(made).unwrap(), "before fresh");
    moving.services[1].resume();
    let said = again(&moving);
    assert_says(&said, &["removed public.before by_n", "added  public.after by_n", "done   public.after by_n"]);
    run("dflux", &moving.migration.config(), ["resync", "fresh", "--wait"]).unwrap().expect_code(0).unwrap();
    assert_says(&again(&moving), &["prepared: every step is done"]);
    moving.caught_up();
    moving.assert_same(DEFINITIONS);
    moving.assert_tables_same(&["after", "fresh"]);

    // Renamed behind the reading of the schema, while prepare waits for the lane.
    moving.services[1].pause();
    moving.source.run("CREATE INDEX later ON after (n); UPDATE after SET n = 1").unwrap();
    let config = moving.migration.config();
    let waiting = std::thread::spawn(move || run("dflux", &config, ["prepare"]));
    moving.becomes(
        "prepare looks at the lane",
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT coalesce(phase%')",
    );
    moving.source.run("ALTER TABLE after RENAME TO last; UPDATE last SET n = 2").unwrap();
    moving.services[1].resume();
    waiting.join().unwrap().unwrap();
    moving.caught_up();
    assert_eq!(moving.target.value(made).unwrap(), "fresh last");
    again(&moving);
    assert_says(&again(&moving), &["prepared: every step is done"]);
    moving.assert_same(DEFINITIONS);
    moving.assert_tables_same(&["last"]);
}

#[test]
fn an_index_of_a_partition_that_the_lane_has_made_may_have_a_name_of_its_own() {
    let moving = started(
        "ownname",
        "CREATE TABLE days (id int, day int, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); CREATE INDEX days_v ON days (v);
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (100); INSERT INTO days SELECT g, g, g FROM generate_series(1, 50) g",
    );
    assert_says(&again(&moving), &["none is left"]);
    moving
        .source
        .run(
            "CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM (100) TO (200); INSERT INTO days VALUES (150, 150, 1);
             ALTER INDEX days_2_v_idx RENAME TO second_by_v; ALTER TABLE days_2 RENAME CONSTRAINT days_2_pkey TO second_pkey",
        )
        .unwrap();
    assert_says(&again(&moving), &["(0 new)", "prepared: every step is done"]);
    let of_days = "SELECT count(*) FROM pg_indexes WHERE tablename LIKE 'days%'";
    moving.assert_same([of_days]);
    // An index of the whole comes to that partition as well.
    moving.source.run("CREATE INDEX days_both ON days (v, id)").unwrap();
    assert_says(&again(&moving), &["done   public.days_2 days_2_v_id_idx", "none is left"]);
    moving.source.run("UPDATE days SET v = v + 1").unwrap();
    moving.caught_up();
    moving.assert_same([
        of_days,
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relkind = 'I' ORDER BY 1",
    ]);
    moving.assert_tables_same(&["days"]);
}

/// Writes of an application, each of which must succeed, until the schema on both sides is the same.
#[test]
fn a_unique_constraint_comes_over_under_load() {
    let moving = started(
        "underload",
        "CREATE TABLE slots (id serial PRIMARY KEY, place int); INSERT INTO slots (place) SELECT g % 500 FROM generate_series(1, 1000) g",
    );
    let (stop, writer) = (std::sync::atomic::AtomicBool::new(false), moving.migration.source().unwrap());
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Two rows exchange their places; the constraint is checked at the end.
                let sql = format!(
                    "UPDATE slots SET place = place + 10000 WHERE place = {0}; UPDATE slots SET place = place - 10000 WHERE place >= 10000;
                     INSERT INTO slots (place) VALUES ({1}); DELETE FROM slots WHERE place = {1}",
                    round % 500,
                    5000 + round % 7
                );
                writer.run(&sql).unwrap();
                round += 1;
                tests::wait::pace(Duration::from_millis(2));
            }
            round
        });
        moving
            .source
            .run(
                "BEGIN; LOCK slots; DELETE FROM slots s WHERE EXISTS (SELECT FROM slots t WHERE t.place = s.place AND t.id < s.id);
                 ALTER TABLE slots ADD CONSTRAINT one_each UNIQUE (place); COMMIT",
            )
            .unwrap();
        let said = again(&moving);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writing.join().unwrap() > 0);
        assert_says(&said, &["done   public.slots one_each", "none is left"]);
    });
    moving.caught_up();
    moving.assert_same(DEFINITIONS);
    moving.assert_tables_same(&["slots"]);
}
