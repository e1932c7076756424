//! What `dflux prepare` makes and when: steps that wait for what they need, partitions that come while the lane runs, row
//! security, and sources of the newer versions.

use std::path::Path;
use std::time::Duration;

use tests::postgres::{Options, Proof, Server};
use tests::services::{Said, Service, run_with};
use tests::sql::Session;
use tests::stack::{self, Addresses, Migration};
use tests::{cache, wait};

use crate::control::{arrives, assert_holds, assess, dflux, level, shop};

const LIMIT: Duration = Duration::from_secs(120);

/// What a schema comes to, as PostgreSQL tells it; without the shop's view over a table that is not moved.
const DEFINITIONS: &str = "SELECT string_agg(d, E'\\n' ORDER BY d) FROM (
    SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) || convalidated
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT relname || relrowsecurity || relforcerowsecurity FROM pg_class
      WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    UNION ALL SELECT inhparent::regclass || ' ' || inhrelid::regclass FROM pg_inherits
    UNION ALL SELECT attrelid::regclass || attname || attnotnull || attgenerated::text FROM pg_attribute
      JOIN pg_class c ON c.oid = attrelid WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND attnum > 0
    UNION ALL SELECT relname || pg_get_viewdef(oid) FROM pg_class
      WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace AND relname <> 'over_other') AS x(d)";

fn exact(target: &Session) {
    wait::until("the lane is exact", LIMIT, || {
        let phase = target.value("SELECT phase || coalesce(' ' || error, '') FROM dflux.lane");
        if phase.as_ref().is_ok_and(|phase| phase == "exact") { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .unwrap();
}

fn status(migration: &Migration) -> serde_json::Value {
    let said = dflux(migration, ["status", "--json"]).expect_code(0).unwrap();
    serde_json::from_str(&said.stdout).unwrap()
}

/// New tables come when they are asked for.
fn by_request(label: &str) -> Migration {
    let migration = Migration::shared(label).unwrap();
    migration.configure(&[("migration", "join_new_tables", false.into())]).unwrap();
    migration
}

fn running(migration: &Migration) -> (Service, Service) {
    dflux(migration, ["prepare"]).expect_code(0).unwrap();
    let services = ["producer", "consumer"].map(|program| migration.service(program).start().unwrap());
    exact(&migration.target().unwrap());
    let [producer, consumer] = services;
    (producer, consumer)
}

fn assert_says(said: &Said, parts: &[&str]) {
    for part in parts {
        assert!(said.stdout.contains(part), "no {part:?} in:\n{}{}", said.stdout, said.stderr);
    }
}

#[test]
fn a_step_waits_for_the_rows_and_the_key_of_every_table_that_it_needs() {
    let migration = by_request("waits");
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    source.run("CREATE TABLE orders (id int PRIMARY KEY, later int); INSERT INTO orders VALUES (1, NULL)").unwrap();
    let services = running(&migration);
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["prepared: every step is done"]);

    source
        .run(
            "CREATE TABLE later (id int PRIMARY KEY, name text UNIQUE);
             CREATE TABLE keyless (a int); CREATE INDEX keyless_a ON keyless (a);
             CREATE VIEW laters AS SELECT id, name FROM later GROUP BY id;
             ALTER TABLE orders ADD CONSTRAINT orders_later FOREIGN KEY (later) REFERENCES later;
             CREATE INDEX orders_later_index ON orders (later);
             INSERT INTO later VALUES (1, 'a'), (2, 'b'); UPDATE orders SET later = 2",
        )
        .unwrap();
    // What needs nothing of the new table is built; the rest says what it waits for, and what brings it.
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(
        &said,
        &[
            "public.later is not published, so it has no rows on the target\nhint: dflux resync public.later",
            "waits  public.later later_pkey: public.later has no rows on the target yet",
            "waits  public.later later_name_key: public.later has no rows on the target yet",
            "waits  public.orders orders_later: public.later has no rows on the target yet",
            "waits  public.keyless keyless_a: public.keyless has no rows on the target yet",
            "hint: dflux resync public.later --wait, then dflux prepare",
            "done   public.orders orders_later_index",
            "the others wait",
        ],
    );
    assert!(!said.stdout.contains("failed"), "{said:?}");
    let built =
        "SELECT count(*) FROM pg_constraint WHERE contype IN ('f', 'u') AND connamespace = 'public'::regnamespace";
    assert_eq!(target.number(built).unwrap(), 0);
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["waits  public.orders orders_later", "every other step is done"]);
    assert!(!said.stdout.contains("every step is done"), "{said:?}");

    for table in ["later", "keyless"] {
        dflux(&migration, ["resync", table, "--wait"]).expect_code(0).unwrap();
    }
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["step(s) done, none is left"]);
    assert_eq!(target.value(DEFINITIONS).unwrap(), source.value(DEFINITIONS).unwrap());
    arrives(&migration, &["orders", "later", "keyless"]);
    // A table that is read again holds back what refers to it as well. (The consumer would end that at once.)
    drop(services);
    target.run("UPDATE dflux.table_state SET state = 'rejoining' WHERE table_name = 'later'").unwrap();
    target.run("UPDATE dflux.lane SET commit_lsn = 'FFFFFFFF/0'").unwrap();
    target.run("ALTER TABLE orders DROP CONSTRAINT orders_later").unwrap();
    target.run("UPDATE dflux.schema_step SET done_at = NULL WHERE name = 'orders_later'").unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["waits  public.orders orders_later: public.later is being read again"]);
}

#[test]
fn a_step_counts_as_done_only_when_its_own_work_is_there() {
    let migration = Migration::shared("judged").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    shop(&source);
    // Somebody has made the tables, and of the unique constraint, the foreign key and the attached index a part each.
    target
        .run(
            "CREATE TYPE mood AS ENUM ('fine', 'bad');
             CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY, name text, m mood DEFAULT 'fine');
             CREATE UNIQUE INDEX customers_name_key ON customers (name);
             CREATE TABLE days (id int NOT NULL, day date NOT NULL) PARTITION BY RANGE (day);
             CREATE TABLE days_2026 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
             CREATE INDEX days_2026_day_idx ON days_2026 (day)",
        )
        .unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    level(&target, &migration.name);
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["none is left"]);
    assert_eq!(target.value(DEFINITIONS).unwrap(), source.value(DEFINITIONS).unwrap());
}

#[test]
fn a_partition_that_is_made_while_the_lane_runs_is_told_and_none_of_its_rows_is_lost() {
    let migration = by_request("newpart");
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    source
        .run(
            "CREATE TABLE root (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
             CREATE TABLE leaf_a PARTITION OF root FOR VALUES FROM (0) TO (100);
             CREATE INDEX root_v ON root (v); ALTER INDEX leaf_a_v_idx RENAME TO leaf_a_by_v;
             CREATE TABLE bare (a int, v text) PARTITION BY RANGE (a);
             CREATE TABLE bare_a PARTITION OF bare FOR VALUES FROM (0) TO (100);
             INSERT INTO root SELECT n, 'v' FROM generate_series(1, 50) n;
             INSERT INTO bare SELECT n, 'v' FROM generate_series(1, 50) n",
        )
        .unwrap();
    let (_producer, consumer) = running(&migration);
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["none is left"]);

    // Published as its root: its rows flow from the first on, and the target must have a place for them.
    let untold = format!("DROP EVENT TRIGGER \"dflux {}\"", migration.name);
    source.run(&untold).unwrap();
    source
        .run(
            "CREATE TABLE leaf_b PARTITION OF root FOR VALUES FROM (100) TO (200);
             ALTER INDEX leaf_b_v_idx RENAME TO leaf_b_by_v",
        )
        .unwrap();
    let now = status(&migration);
    assert_eq!(now["missing_partitions"], serde_json::json!(["public.leaf_b"]));
    assert_eq!(now["unpublished"], serde_json::json!([]));
    let said = dflux(&migration, ["status"]).expect_code(0).unwrap();
    assert_says(&said, &["the target lacks partition public.leaf_b", "hint: dflux prepare\n"]);
    source.run("INSERT INTO root VALUES (150, 'new'), (151, 'new'); UPDATE root SET v = 'w' WHERE id = 150").unwrap();
    source.run("DELETE FROM root WHERE id = 151; UPDATE root SET v = 'w' WHERE id = 7").unwrap();
    consumer.process().wait_ended(LIMIT).unwrap();
    let log = consumer.log();
    assert!(log.contains("table public.root in the target has no partition for a row of the insert at"), "{log}");
    assert!(log.contains("hint: dflux prepare makes the partitions that the source has"), "{log}");
    assert_eq!(status(&migration)["lanes"][0]["phase"], "stopped");
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert!(!said.stdout.contains("was attached to"), "it was born where it is: {said:?}");
    let consumer = consumer.start_again().unwrap();
    arrives(&migration, &["root", "leaf_a", "leaf_b"]);
    assert_eq!(status(&migration)["missing_partitions"], serde_json::json!([]));

    // Published alone, because its root has no key: it is not in the stream before it is asked for.
    source.run("CREATE TABLE bare_b PARTITION OF bare FOR VALUES FROM (100) TO (200)").unwrap();
    source.run("INSERT INTO bare VALUES (150, 'new'), (150, 'new'); UPDATE bare SET v = 'w' WHERE a = 150").unwrap();
    assert_eq!(status(&migration)["unpublished"], serde_json::json!(["public.bare_b"]));
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["public.bare_b is not published", "hint: dflux resync public.bare_b"]);
    dflux(&migration, ["resync", "bare_b", "--wait"]).expect_code(0).unwrap();
    source.run("DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare_b)").unwrap();
    arrives(&migration, &["root", "bare", "bare_b"]);

    // Rows that were in it before it was attached are in no stream.
    source
        .run(
            "CREATE TABLE filled (LIKE root INCLUDING ALL); INSERT INTO filled VALUES (250, 'before');
             ALTER TABLE root ATTACH PARTITION filled FOR VALUES FROM (200) TO (300)",
        )
        .unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["public.filled was attached to public.root", "hint: dflux resync public.root"]);
    dflux(&migration, ["resync", "root", "--wait"]).expect_code(0).unwrap();
    arrives(&migration, &["root", "filled"]);

    source.run("DROP TABLE leaf_a; ALTER TABLE root DETACH PARTITION leaf_b").unwrap();
    let now = status(&migration);
    assert_eq!(now["left_over_partitions"], serde_json::json!(["public.leaf_a", "public.leaf_b"]));
    assert!(consumer.process().ended().is_none());
    assert_eq!(target.number("SELECT diverged FROM dflux.lane").unwrap(), 0);
}

#[test]
fn row_security_is_found_before_it_hides_anything_and_waits_where_it_would_refuse_the_lane() {
    let migration = Migration::shared("hidden").unwrap();
    let servers = stack::shared().unwrap();
    let (source, target, name) = (migration.source().unwrap(), migration.target().unwrap(), &migration.name);
    servers.source.login(name, Proof::Scram, "REPLICATION").unwrap();
    servers.target.login(name, Proof::Scram, "").unwrap();
    for side in [&source, &target] {
        side.run(&format!("GRANT CREATE ON DATABASE {name} TO {name}; GRANT ALL ON SCHEMA public TO {name}")).unwrap();
    }
    target.run(&format!("GRANT SET ON PARAMETER session_replication_role TO {name}")).unwrap();
    source
        .run(&format!(
            "SET ROLE {name}; CREATE TABLE plain (id int PRIMARY KEY);
             CREATE TABLE hidden (id int PRIMARY KEY, a int); INSERT INTO hidden VALUES (1, 1), (2, 2);
             CREATE POLICY odd ON hidden USING (id % 2 = 1);
             ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;
             RESET ROLE"
        ))
        .unwrap();
    let as_role = |server: &Server| toml::Value::from(server.url_as(name, name));
    let urls = [("source", "url", as_role(&servers.source)), ("target", "url", as_role(&servers.target))];
    migration.configure(&urls).unwrap();
    target.run("CREATE TABLE plain (id int); ALTER TABLE plain ENABLE ROW LEVEL SECURITY").unwrap();
    target.run(&format!("GRANT ALL ON plain TO {name}")).unwrap();

    let (code, found, report) = assess(&migration);
    assert_eq!(code, Some(2));
    assert_holds(&found, &["blocker row_security", "blocker target_row_security", "warning target_row_security"]);
    let report = report.to_string();
    for said in [
        format!("row security applies to user {name} of the source, and PostgreSQL refuses to copy: public.hidden"),
        format!("ALTER ROLE {name} BYPASSRLS on the source"),
        format!("row security applies to user {name} of the target, and PostgreSQL refuses COPY into: public.plain"),
        "row security is forced on the owner of public.hidden".to_owned(),
        format!("ALTER ROLE {name} BYPASSRLS on the target"),
    ] {
        assert!(report.contains(&said), "no {said:?} in {report}");
    }
    source.run(&format!("ALTER ROLE {name} BYPASSRLS")).unwrap();
    target.run("DROP TABLE plain").unwrap();
    let (code, found, _) = assess(&migration);
    assert_eq!(code, Some(0), "{found:?}");
    assert_holds(&found, &["warning target_row_security"]);

    let _services = running(&migration);
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["waits  public.hidden hidden\n", &format!("hint: ALTER ROLE {name} BYPASSRLS on the target")]);
    source.run("INSERT INTO hidden VALUES (3, 3), (4, 4); UPDATE hidden SET a = 9 WHERE id = 2").unwrap();
    arrives(&migration, &["hidden"]);
    target.run(&format!("ALTER ROLE {name} BYPASSRLS")).unwrap();
    let said = dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    assert_says(&said, &["done   public.hidden hidden"]);
    assert_eq!(target.value(DEFINITIONS).unwrap(), source.value(DEFINITIONS).unwrap());
    source.run("INSERT INTO hidden VALUES (5, 5), (6, 6); DELETE FROM hidden WHERE id = 2").unwrap();
    arrives(&migration, &["hidden"]);
    assert_eq!(target.number("SELECT diverged FROM dflux.lane").unwrap(), 0);
}

/// A migration between two servers of one version, with a pg_dump of that version.
struct Versioned {
    migration: Migration,
    client: std::path::PathBuf,
    _servers: [Server; 2],
}

impl Versioned {
    fn start(version: u16) -> Versioned {
        let servers = ["from", "to"].map(|role| {
            let name = format!("{role}{version}");
            let server = Server::start(Options::new(&name).version(version)).unwrap();
            server.database("app").unwrap();
            server
        });
        let shared = stack::shared().unwrap();
        let addresses = Addresses {
            source: servers[0].url("app"),
            target: servers[1].url("app"),
            brokers: shared.broker.bootstrap(),
            registry: shared.registry.url(),
        };
        let migration = Migration::between(&stack::unique(&format!("version{version}")), addresses).unwrap();
        let client = cache::part(&["client", &version.to_string()]).unwrap().join("bin");
        Versioned { migration, client, _servers: servers }
    }

    fn prepare(&self) -> Said {
        let environment = [("DFLUX_PG_BIN", Path::new(&self.client))];
        run_with("dflux", &self.migration.config(), ["prepare"], &environment).unwrap()
    }
}

#[test]
fn a_schema_of_every_newer_version_comes_over_whole() {
    for version in [16, 17, 18] {
        let versioned = Versioned::start(version);
        let migration = &versioned.migration;
        let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
        shop(&source);
        source
            .run(
                "CREATE TABLE parent (id int PRIMARY KEY, n int); CREATE TABLE child (b int NOT NULL) INHERITS (parent);
                 ALTER TABLE parent ADD CONSTRAINT positive CHECK (id > 0) NOT VALID;
                 ALTER TABLE orders ADD CONSTRAINT unchecked FOREIGN KEY (customer) REFERENCES customers NOT VALID;
                 CREATE STATISTICS of_orders ON id, customer FROM orders;
                 CREATE VIEW grouped AS SELECT o.id, o.total FROM orders o GROUP BY o.id;
                 CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM orders; CREATE INDEX counted_i ON counted (count);
                 CREATE POLICY all_of_it ON orders USING (true); ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
                 ALTER TABLE orders FORCE ROW LEVEL SECURITY; ALTER TABLE customers CLUSTER ON customers_pkey;
                 COMMENT ON TABLE orders IS 'x'; COMMENT ON CONSTRAINT positive ON parent IS 'y'; ANALYZE",
            )
            .unwrap();
        if version >= 18 {
            source
                .run(
                    "CREATE EXTENSION btree_gist;
                     CREATE TABLE booked (room int, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS));
                     CREATE TABLE used (room int, during daterange,
                       FOREIGN KEY (room, PERIOD during) REFERENCES booked (room, PERIOD during));
                     CREATE TABLE computed (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id * 2) VIRTUAL,
                       s int GENERATED ALWAYS AS (id * 3) STORED);
                     ALTER TABLE parent ADD CONSTRAINT n_there NOT NULL n NOT VALID;
                     ALTER TABLE orders ADD CONSTRAINT loose FOREIGN KEY (customer) REFERENCES customers NOT ENFORCED;
                     COMMENT ON CONSTRAINT n_there ON parent IS 'z'",
                )
                .unwrap();
        }
        versioned.prepare().expect_code(0).unwrap();
        // No write of the application fails.
        source.run("INSERT INTO \"Keyless one\" VALUES (1, 'a'); UPDATE \"Keyless one\" SET b = 'c'").unwrap();
        level(&target, &migration.name);
        let said = versioned.prepare().expect_code(0).unwrap();
        assert_says(&said, &["none is left"]);
        assert_eq!(target.value(DEFINITIONS).unwrap(), source.value(DEFINITIONS).unwrap(), "version {version}");
        let said = versioned.prepare().expect_code(0).unwrap();
        assert_says(&said, &["every step is done"]);
    }
}

#[test]
fn a_publication_that_leaves_generated_columns_out_is_refused_because_writes_would_fail() {
    let versioned = Versioned::start(18);
    let migration = &versioned.migration;
    let source = migration.source().unwrap();
    source
        .run("CREATE TABLE keyless (a int, b int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO keyless VALUES (1)")
        .unwrap();
    let via_root = "publish_via_partition_root = true";
    source.run(&format!("CREATE PUBLICATION dflux_migration FOR TABLE keyless WITH ({via_root})")).unwrap();
    let (code, found, report) = assess(migration);
    assert_eq!(code, Some(2));
    assert_holds(&found, &["blocker publication"]);
    let set = "SET (publish_generated_columns = stored)";
    let report = report.to_string();
    assert!(report.contains("publish_generated_columns is not `stored`") && report.contains(set), "{report}");
    let producer = migration.service("producer").start().unwrap();
    assert_eq!(producer.process().wait_ended(LIMIT).unwrap().code(), Some(1));
    assert!(producer.log().contains("publish_generated_columns is not `stored`"), "{}", producer.log());
    // What is refused is what would fail.
    source.run("ALTER TABLE keyless REPLICA IDENTITY FULL").unwrap();
    let refused = source.run("UPDATE keyless SET a = 3").unwrap_err().to_string();
    assert!(refused.contains("cannot update table"), "{refused}");
    source.run(&format!("ALTER PUBLICATION dflux_migration {set}")).unwrap();
    let (code, found, _) = assess(migration);
    assert_eq!(code, Some(0), "{found:?}");
    versioned.prepare().expect_code(0).unwrap();
    source.run("UPDATE keyless SET a = 3; DELETE FROM keyless").unwrap();
}
