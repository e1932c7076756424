//! `./dev demo`: a pgbench database is migrated while it is written to, and the copy is proved exact.
//!
//! What is proved is asked of the two databases from outside (sums, digests of whole tables, a probe row's journey), beside
//! what the validator says. Any claim that does not hold ends the demo with an error.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use tests::measure::{self, human};
use tests::process::Process;
use tests::services::{self, Service};
use tests::sql::Session;
use tests::stack::{self, Migration};
use tests::{Failure, Result, wait};

/// Without tables of their own key: history has none.
const TABLES: [(&str, &str); 4] =
    [("pgbench_accounts", "aid"), ("pgbench_branches", "bid"), ("pgbench_tellers", "tid"), ("pgbench_history", "h")];
const BACKFILL_WITHIN: Duration = Duration::from_secs(300);
const LAG_MEASURED: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Arguments {
    /// pgbench scale: 100,000 accounts each
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Transactions per second of the application's load
    #[arg(long, default_value_t = 300)]
    tps: u32,
    /// Where the JSON report goes
    #[arg(long, default_value = ".run/demo.json")]
    json: PathBuf,
}

struct Demo {
    began: Instant,
    migration: Migration,
    report: serde_json::Map<String, Value>,
}

impl Demo {
    fn say(&self, text: &str) {
        println!("[{:5.1}s] {text}", self.began.elapsed().as_secs_f64());
    }

    fn note(&mut self, name: &str, value: Value) {
        self.report.insert(name.to_owned(), value);
    }

    fn dflux(&self, arguments: &[&str]) -> Result<services::Said> {
        services::run("dflux", &self.migration.config(), arguments.iter().copied())
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    println!("[  0.0s] starting PostgreSQL twice, Kafka and the schema registry on loopback");
    let servers = stack::shared()?;
    let mut demo = Demo { began, migration: Migration::shared("demo")?, report: serde_json::Map::new() };

    demo.say(&format!("pgbench -i, scale {}: {} accounts", arguments.scale, u64::from(arguments.scale) * 100_000));
    let url = demo.migration.addresses.source.clone();
    let scale = arguments.scale.to_string();
    servers.source.tool("pgbench", ["-i", "-q", "-s", &scale, &url]).run()?;
    demo.migration.source()?.run(measure::PROBE_TABLE)?;

    demo.say(&format!("load starts: TPC-B, {} transactions per second, until the end", arguments.tps));
    let rate = arguments.tps.to_string();
    let load = servers.source.tool("pgbench", ["-n", "-c", "4", "-j", "1", "-T", "3600", "-R", &rate, &url]).start()?;

    prepare(&mut demo)?;
    let running = start_services(&demo)?;
    backfill(&mut demo, &running)?;
    load.still_running()?;
    let watch = InvariantWatch::start(demo.migration.target()?);
    post_data(&mut demo)?;
    under_load(&mut demo)?;
    load.still_running()?;
    let checked = watch.stop()?;
    demo.say(&format!("TPC-B invariant on the target, while it is written to: held in all {checked} snapshots"));
    demo.note("invariant_snapshots_on_target", json!(checked));

    load_stops(&demo, &load)?;
    exact(&mut demo)?;
    let mut peaks = serde_json::Map::new();
    for service in &running {
        let peak = service.resident_bytes().map(|resident| resident.peak);
        demo.say(&format!("{}: at most {} MB resident", service.process().name(), peak.unwrap_or(0) >> 20));
        peaks.insert(service.process().name().to_owned(), json!(peak));
        service.terminate()?;
    }
    demo.note("resident_bytes_max", Value::Object(peaks));
    demo.dflux(&["cleanup", "--yes"])?.expect_code(0)?;
    demo.note("seconds", json!(demo.began.elapsed().as_secs_f64()));
    write_report(&arguments.json, &Value::Object(demo.report.clone()))?;
    demo.say(&format!("proved: the copy is exact. Report: {}", arguments.json.display()));
    Ok(())
}

/// The report's folder is made if it is not there.
pub fn write_report(path: &std::path::Path, report: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(report).map_err(|error| Failure::Other(error.to_string()))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Failure::io(format!("making {}", folder.display())))?;
    }
    std::fs::write(path, text + "\n").map_err(Failure::io(format!("writing {}", path.display())))
}

fn prepare(demo: &mut Demo) -> Result<()> {
    demo.say("dflux assess");
    let said = demo.dflux(&["assess"])?.expect_code(0)?;
    for line in said.stdout.lines() {
        println!("         | {line}");
    }
    demo.say("dflux prepare: schema on the target, keys and indexes later");
    demo.dflux(&["prepare"])?.expect_code(0)?;
    Ok(())
}

fn start_services(demo: &Demo) -> Result<Vec<Service>> {
    demo.say("producer, consumer and validator start");
    let mut running = Vec::new();
    for program in ["producer", "consumer", "validator"] {
        running.push(demo.migration.service(program).start()?);
    }
    for service in &running {
        service.wait_healthy(Duration::from_secs(60))?;
    }
    Ok(running)
}

/// The lane's phase on the target; empty before the consumer has made its row.
pub fn phase(target: &Session) -> Result<String> {
    if target.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'dflux' AND tablename = 'lane'")? == 0 {
        return Ok(String::new());
    }
    Ok(target.column("SELECT phase FROM dflux.lane")?.pop().unwrap_or_default())
}

fn backfill(demo: &mut Demo, running: &[Service]) -> Result<()> {
    let (source, target) = (demo.migration.source()?, demo.migration.target()?);
    let rows = source.number("SELECT count(*) FROM pgbench_accounts")?;
    let began = Instant::now();
    let mut retained_max = 0;
    let mut next_line = Duration::from_secs(2);
    let retained_query = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn))::bigint, 0) \
                          FROM pg_replication_slots WHERE database = current_database()";
    let seconds = measure::seconds_until("backfill and catch-up", BACKFILL_WITHIN, || {
        for service in running {
            service.process().still_running()?;
        }
        let retained = source.number(retained_query)?;
        retained_max = retained.max(retained_max);
        let phase = phase(&target)?;
        if began.elapsed() > next_line {
            next_line += Duration::from_secs(2);
            demo.say(&format!("phase {phase}, WAL retained {} MB", retained >> 20));
        }
        Ok(phase == "exact")
    })?;
    let rate = rows as f64 / seconds;
    demo.say(&format!(
        "backfill, key indexes and catch-up of {rows} accounts in {seconds:.1} s under load: {} rows/s, at most {} MB of WAL retained",
        human(rate),
        retained_max >> 20
    ));
    demo.note(
        "backfill",
        json!({"rows": rows, "seconds": seconds, "rows_per_second": rate, "wal_retained_bytes_max": retained_max}),
    );
    Ok(())
}

fn post_data(demo: &mut Demo) -> Result<()> {
    demo.say("dflux prepare again: the rest of the schema, while changes flow");
    demo.dflux(&["prepare"])?.expect_code(0)?;
    let status = demo.dflux(&["status", "--json"])?.expect_code(0)?;
    let status: Value =
        serde_json::from_str(&status.stdout).map_err(|error| Failure::Other(format!("status --json: {error}")))?;
    demo.note("status", status);
    Ok(())
}

fn under_load(demo: &mut Demo) -> Result<()> {
    let addresses = demo.migration.addresses.clone();
    demo.say("measuring lag (commit on the source to visible on the target) under the load");
    let lag = measure::lag(&addresses.source, &addresses.target, LAG_MEASURED)?;
    demo.say(&format!(
        "lag: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} probes)",
        lag.p50_ms, lag.p99_ms, lag.max_ms, lag.samples
    ));
    demo.note("lag", json!(lag));
    let verdict = validate(demo, "while writing")?;
    demo.note("verdict_while_writing", verdict);
    Ok(())
}

fn validate(demo: &Demo, when: &str) -> Result<Value> {
    let file = demo.migration.folder.join("check.json");
    let began = Instant::now();
    let said = services::run("validator", &demo.migration.config(), ["check", "--json", &file.display().to_string()])?;
    let said = said.expect_code(0)?;
    let text = std::fs::read_to_string(&file).map_err(Failure::io(format!("reading {}", file.display())))?;
    let report: Value =
        serde_json::from_str(&text).map_err(|error| Failure::Other(format!("the validator's JSON: {error}")))?;
    if report["verdict"] != "match" {
        return Err(Failure::Other(format!("exit code 0, but the verdict is {}\n{}", report["verdict"], said.stdout)));
    }
    let rows: u64 =
        report["tables"].as_array().into_iter().flatten().filter_map(|table| table["rows_source"].as_u64()).sum();
    demo.say(&format!("validator check, {when}: match, {rows} rows in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(report)
}

fn load_stops(demo: &Demo, load: &Process) -> Result<()> {
    load.kill();
    let source = demo.migration.source()?;
    // The application's sessions are gone, and what they had committed is in the WAL.
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgbench'";
    wait::until_true("pgbench's sessions are gone", Duration::from_secs(30), || {
        source.number(sessions).is_ok_and(|n| n == 0)
    })?;
    let end = source.value("SELECT pg_current_wal_insert_lsn()")?;
    let target = demo.migration.target()?;
    let applied = format!("SELECT (commit_lsn >= '{end}'::pg_lsn)::int FROM dflux.lane");
    wait::until_true("everything written is applied", Duration::from_secs(60), || {
        target.number(&applied).is_ok_and(|n| n == 1)
    })?;
    demo.say("load stopped, everything applied");
    Ok(())
}

/// The last check: the validator's, and a digest of every whole table computed here.
fn exact(demo: &mut Demo) -> Result<()> {
    let verdict = validate(demo, "load stopped")?;
    demo.note("verdict_at_rest", verdict);
    let (source, target) = (demo.migration.source()?, demo.migration.target()?);
    let mut digests = serde_json::Map::new();
    for (table, order) in TABLES {
        let order = if order == "h" { "t::text COLLATE \"C\"" } else { order };
        let query = format!(
            "SELECT count(*) || ' rows, md5 ' || md5(string_agg(md5(t::text), '' ORDER BY {order})) FROM {table} t"
        );
        let (ours, theirs) = (source.value(&query)?, target.value(&query)?);
        if ours != theirs {
            return Err(Failure::Other(format!("{table} differs: source {ours}, target {theirs}")));
        }
        demo.say(&format!("{table}: {ours}, the same on both sides"));
        digests.insert(table.to_owned(), json!(ours));
    }
    demo.note("digests", Value::Object(digests));
    for (name, session) in [("source", &source), ("target", &target)] {
        if !invariant_holds(session)? {
            return Err(Failure::Other(format!("the TPC-B invariant does not hold on the {name}")));
        }
    }
    Ok(())
}

/// Every transaction of TPC-B moves the same amount in three tables and writes it down in a fourth.
fn invariant_holds(session: &Session) -> Result<bool> {
    let query = "SELECT (a = b AND b = t AND t = h)::int FROM \
                 (SELECT sum(abalance) a FROM pgbench_accounts) x, (SELECT sum(bbalance) b FROM pgbench_branches) y, \
                 (SELECT sum(tbalance) t FROM pgbench_tellers) z, (SELECT coalesce(sum(delta), 0) h FROM pgbench_history) w";
    Ok(session.number(query)? == 1)
}

/// Asks the target again and again, each time in one snapshot, whether whole transactions are all that is visible.
struct InvariantWatch {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    asking: JoinHandle<Result<()>>,
}

impl InvariantWatch {
    fn start(target: Session) -> InvariantWatch {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (flag, count) = (stop.clone(), asked.clone());
        let asking = std::thread::spawn(move || {
            while !flag.load(Ordering::Acquire) {
                if !invariant_holds(&target)? {
                    return Err(Failure::Other("the target showed part of a transaction: the sums differ".to_owned()));
                }
                count.fetch_add(1, Ordering::Relaxed);
                wait::pace(Duration::from_millis(500));
            }
            Ok(())
        });
        InvariantWatch { stop, asked, asking }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.asking.join().map_err(|_| Failure::Other("the invariant's watch panicked".to_owned()))??;
        match self.asked.load(Ordering::Relaxed) {
            0 => Err(Failure::Other("the invariant was never looked at".to_owned())),
            asked => Ok(asked),
        }
    }
}
