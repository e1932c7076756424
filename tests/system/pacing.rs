//! How fast the backfill reads: chunks by rows and bytes, limits that hold and that change while it runs.
//!
//! A limit is judged by what may be through at most after the time that has passed: a slow machine is only further below.

use std::time::{Duration, Instant};

use tests::services::Service;
use tests::stack::Migration;
use tests::wait;

use crate::moving::Moving;

const LIMIT: Duration = Duration::from_secs(240);
/// The producer's blocks are a little smaller.
const BLOCK_BYTES: f64 = 400_000.0;

fn logs(producer: &Service, what: &str) {
    producer
        .process()
        .wait_until(what, LIMIT, || if producer.log().contains(what) { Ok(()) } else { Err("not in the log") })
        .unwrap();
}

fn counted(producer: &Service, metric: &str) -> f64 {
    producer.metric(metric).unwrap().unwrap_or(0.0)
}

fn reaches(producer: &Service, metric: &str, least: f64) {
    let reached = || match producer.metric(metric) {
        Ok(Some(value)) if value >= least => Ok(()),
        other => Err(format!("{other:?} of {least}")),
    };
    producer.process().wait_until(&format!("{metric} is {least}"), LIMIT, reached).unwrap();
}

const BYTES: &str = "dflux_producer_backfill_bytes_total";
const CHUNKS: &str = "dflux_producer_backfill_chunks_total";
const THROTTLED: &str = "dflux_producer_backfill_throttled_seconds_total";

#[test]
fn a_limit_holds_until_the_file_takes_it_away_and_an_invalid_file_changes_nothing() {
    let mut moving = Moving::shared("limited");
    // All of it would take twenty minutes.
    let per_second = 50_000_i64;
    moving
        .source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, pad text, n int);
             INSERT INTO t SELECT g, repeat(md5(g::text), 31), 0 FROM generate_series(1, 60000) g;
             CREATE TABLE keyless (pad text);
             INSERT INTO keyless SELECT repeat(md5(g::text), 31) FROM generate_series(1, 1000) g; ANALYZE",
        )
        .unwrap();
    // The server's own limits are shorter than any chunk here takes.
    let name = &moving.migration.name;
    for timeout in ["statement_timeout", "idle_in_transaction_session_timeout"] {
        moving.source.run(&format!("ALTER DATABASE {name} SET {timeout} = '1s'")).unwrap();
    }
    let configure = |moving: &Moving, limit: toml::Value| {
        let settings =
            [("producer", "chunk_bytes", (256 << 10).into()), ("producer", "backfill_bytes_per_second", limit)];
        moving.migration.configure(&settings).unwrap();
    };
    configure(&moving, per_second.into());
    moving.prepare();
    let began = Instant::now();
    for program in ["producer", "consumer"] {
        moving.services.push(moving.migration.service(program).start().unwrap());
    }
    let producer = &moving.services[0];
    let assert_limited = || {
        let bytes = counted(producer, BYTES);
        let passed = began.elapsed().as_secs_f64() + 1.0;
        assert!(bytes <= passed * per_second as f64 + BLOCK_BYTES, "{bytes} bytes in {passed} s");
    };
    reaches(producer, CHUNKS, 3.0);
    reaches(producer, THROTTLED, 10.0);
    assert_limited();
    assert!(producer.log().contains("the backfill is throttled"), "{}", producer.log());
    // The stream is not.
    moving.source.run("UPDATE t SET n = n + 1 WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0").unwrap();
    moving.captured();

    for (limit, problem) in [("much".into(), "invalid type"), ((-1).into(), "`-1`")] {
        configure(&moving, limit);
        let told = || {
            let log = producer.log();
            let naming = |line: &&str| line.contains("is not applied") && line.contains("backfill_bytes_per_second");
            log.lines().filter(naming).filter(|line| line.contains(problem)).count()
        };
        let waited = || if told() > 0 { Ok(()) } else { Err("not told") };
        producer.process().wait_until("the invalid value is told", LIMIT, waited).unwrap();
        reaches(producer, THROTTLED, counted(producer, THROTTLED) + 3.0);
        assert_eq!(told(), 1, "{}", producer.log());
    }
    assert_limited();
    assert!(!producer.log().contains("limits were changed"), "{}", producer.log());

    configure(&moving, 0.into());
    logs(producer, "limits were changed backfill_bytes_per_second=0");
    logs(producer, "backfill completed");
    assert!(producer.log().contains("throttled no more"), "{}", producer.log());
    for ended in ["statement timeout", "idle-in-transaction timeout"] {
        assert!(!producer.log().contains(ended), "{}", producer.log());
    }
    moving.becomes("the lane is exact", "SELECT phase = 'exact' FROM dflux.lane");
    moving.caught_up();
    moving.assert_tables_same(&["t", "keyless"]);
}

#[test]
fn a_throttled_worker_holds_up_no_shutdown_and_a_stream_that_is_behind_holds_up_the_backfill() {
    let migration = Migration::shared("behind").unwrap();
    let source = migration.source().unwrap();
    source
        .run(
            "CREATE TABLE keyless (pad text);
             INSERT INTO keyless SELECT repeat(md5(g::text), 31) FROM generate_series(1, 4000) g; ANALYZE",
        )
        .unwrap();
    let configure = |bytes_per_second: i64, lag_seconds: i64| {
        let settings = [
            ("producer", "backfill_bytes_per_second", bytes_per_second.into()),
            ("producer", "backfill_lag_seconds", lag_seconds.into()),
            // So seldom that the newest is nearly always older than a second.
            ("producer", "marker_interval_ms", 10_000.into()),
        ];
        migration.configure(&settings).unwrap();
    };
    // The second block would go after minutes; till then its COPY is open.
    configure(1_000, 0);
    let producer = migration.service("producer").start().unwrap();
    logs(&producer, "throttled: it waits for its limit limit=\"producer.backfill_bytes_per_second\"");
    let copying = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND query LIKE 'COPY%' AND xact_start IS NOT NULL",
        migration.name
    );
    wait::until_true("a COPY is open", LIMIT, || source.number(&copying).is_ok_and(|open| open == 1)).unwrap();
    assert_eq!(producer.terminate().unwrap(), Some(0), "{}", producer.log());

    configure(1_000, 1);
    let producer = producer.start_again().unwrap();
    logs(&producer, "throttled: it waits for its limit limit=\"producer.backfill_lag_seconds\"");
    assert!(!producer.log().contains("backfill completed"));
    configure(0, 0);
    logs(&producer, "backfill completed rows=4000");
    assert_eq!(producer.terminate().unwrap(), Some(0), "{}", producer.log());
}

#[test]
fn a_table_of_large_values_makes_several_chunks() {
    let mut moving = Moving::shared("megabytes");
    moving
        .source
        .run(
            "CREATE TABLE big (id int PRIMARY KEY, v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
             INSERT INTO big SELECT g, repeat(md5(g::text), 32768 * (1 + g % 10)) FROM generate_series(1, 12) g;
             CREATE TABLE small (id int PRIMARY KEY, v text);
             INSERT INTO small SELECT g, 'x' FROM generate_series(1, 1000) g; ANALYZE",
        )
        .unwrap();
    moving.migration.configure(&[("producer", "chunk_bytes", (8 << 20).into())]).unwrap();
    moving.prepare();
    moving.start();
    let log = moving.services[0].log();
    let chunks = |table: &str| -> u64 {
        let begins = format!("table copied table=public.{table} generation=0 rows=");
        let line = log.lines().find(|line| line.contains(&begins)).unwrap_or_else(|| panic!("{table}: {log}"));
        line.rsplit("chunks=").next().unwrap().trim().parse().unwrap()
    };
    assert!(chunks("big") >= 4, "{log}");
    assert_eq!(chunks("small"), 1);
    moving.caught_up();
    moving.assert_same(["SELECT id, length(v), md5(v) FROM big ORDER BY id"]);
    moving.assert_tables_same(&["small"]);
}
