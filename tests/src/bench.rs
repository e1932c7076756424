//! `./dev bench`: dflux beside PostgreSQL's own logical replication, in one run, on the same data.
//!
//! Both have a slot and a target database of their own and take turns: while one drains, the other is stopped, so each gets
//! the whole machine and the very same backlog. Figures are ratios to native; nothing here fails because a machine is slow.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use tests::measure::{self, Percentiles, human};
use tests::services::{self, Service};
use tests::sql::Session;
use tests::stack::{self, Migration, Shared};
use tests::{Failure, Result};

use crate::demo::{phase, write_report};

const PATIENCE: Duration = Duration::from_secs(1_800);
const SLOT: &str = "bench_native";

#[derive(clap::Args)]
pub struct Arguments {
    /// pgbench scale: 100,000 accounts each
    #[arg(long, default_value_t = 50)]
    scale: u32,
    /// Rows of the wide table of mixed types, and of each multi-row transaction
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// TPC-B transactions of the backlog, four row changes each
    #[arg(long, default_value_t = 100_000)]
    transactions: u64,
    /// Seconds of each lag measurement
    #[arg(long, default_value_t = 20)]
    lag_seconds: u64,
    /// Where the JSON report goes
    #[arg(long, default_value = ".run/bench.json")]
    json: PathBuf,
}

/// CPU seconds by part.
type Used = BTreeMap<String, f64>;

/// The two contestants and what they share.
struct Bench {
    servers: &'static Shared,
    migration: Migration,
    source: Session,
    native: Session,
    native_url: String,
    dflux: Session,
    services: Vec<Service>,
    report: Map<String, Value>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let servers = stack::shared()?;
    let migration = Migration::shared("bench")?;
    let native_database = format!("{}native", migration.name);
    let native = servers.target.database(&native_database)?;
    let mut bench = Bench {
        servers,
        source: migration.source()?,
        native,
        native_url: servers.target.url(&native_database),
        dflux: migration.target()?,
        migration,
        services: Vec::new(),
        report: Map::new(),
    };
    bench.load(arguments)?;
    bench.backfill(arguments)?;
    bench.pause_both()?;
    bench.backlog("tpcb", "TPC-B backlog", arguments.transactions * 4, |bench| {
        let per_client = (arguments.transactions / 4).to_string();
        bench
            .servers
            .source
            .tool("pgbench", ["-n", "-c", "4", "-j", "1", "-t", &per_client, &bench.migration.addresses.source])
            .run()?;
        Ok(())
    })?;
    let rows = arguments.rows;
    bench.backlog("update", "one statement updates", rows, |bench| {
        bench.source.run(&format!("UPDATE public.pgbench_accounts SET abalance = abalance + 1 WHERE aid <= {rows}"))
    })?;
    bench.backlog("insert", "one statement inserts", rows, |bench| {
        bench.source.run(&format!(
            "INSERT INTO public.bulk SELECT i, md5(i::text), now(), i * 1.5 FROM generate_series(1, {rows}) i"
        ))
    })?;
    for tps in [500, 1_000] {
        bench.lag(tps, Duration::from_secs(arguments.lag_seconds))?;
    }
    bench.same()?;
    write_report(&arguments.json, &Value::Object(bench.report.clone()))?;
    println!("report: {}", arguments.json.display());
    Ok(())
}

impl Bench {
    fn load(&mut self, arguments: &Arguments) -> Result<()> {
        println!("loading: pgbench scale {}, a wide table of {} rows", arguments.scale, arguments.rows);
        let scale = arguments.scale.to_string();
        self.servers.source.tool("pgbench", ["-i", "-q", "-s", &scale, &self.migration.addresses.source]).run()?;
        self.source.run(&format!(
            "CREATE TABLE public.wide (id bigint PRIMARY KEY, n numeric(12,2), m numeric, t text, ts timestamptz, d date,
               u uuid, j jsonb, b bytea, f double precision, a int[], flag boolean);
             INSERT INTO public.wide SELECT i, i * 1.01, i / 7.0, md5(i::text), now() + i * interval '1 second', date '2020-01-01' + (i % 3000)::int,
               gen_random_uuid(), jsonb_build_object('i', i, 's', md5(i::text)), decode(md5(i::text), 'hex'), i / 3.0, ARRAY[i, i + 1]::int[], i % 2 = 0
               FROM generate_series(1::bigint, {}) i;
             CREATE TABLE public.bulk (id bigint PRIMARY KEY, t text, at timestamptz, n numeric(20,4));
             {};
             ALTER TABLE public.pgbench_history REPLICA IDENTITY FULL;",
            arguments.rows,
            measure::PROBE_TABLE
        ))?;
        self.source.run("VACUUM ANALYZE")
    }

    /// Initial copy of everything: native with the schema that its users give it, dflux as it is.
    fn backfill(&mut self, arguments: &Arguments) -> Result<()> {
        let rows = u64::from(arguments.scale) * 100_000 + arguments.rows;
        let dump = self
            .servers
            .source
            .tool("pg_dump", ["--schema-only", "--no-owner", "--schema=public", &self.migration.addresses.source])
            .run()?;
        let dump: String = dump
            .lines()
            .filter(|line| !line.starts_with("CREATE SCHEMA") && !line.starts_with('\\'))
            .fold(String::new(), |all, line| all + line + "\n");
        self.native.run(&dump)?;
        self.native.run("RESET search_path")?;
        self.source.run("CREATE PUBLICATION bench_native FOR ALL TABLES")?;
        let connection = self.migration.addresses.source.replace('\'', "''");
        self.native.run(&format!(
            "CREATE SUBSCRIPTION {SLOT} CONNECTION '{connection}' PUBLICATION bench_native WITH (slot_name = '{SLOT}')"
        ))?;
        let pending = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
        let native = &self.native;
        let native_seconds =
            measure::seconds_until("native initial copy", PATIENCE, || Ok(native.number(pending)? == 0))?;
        self.native.run(&format!("ALTER SUBSCRIPTION {SLOT} DISABLE"))?;

        services::run("dflux", &self.migration.config(), ["prepare"])?.expect_code(0)?;
        let began = std::time::Instant::now();
        self.start()?;
        let target = &self.dflux;
        let services = &self.services;
        measure::seconds_until("dflux backfill", PATIENCE, || {
            services.iter().try_for_each(|service| service.process().still_running())?;
            Ok(phase(target)? == "exact")
        })?;
        let seconds = began.elapsed().as_secs_f64();
        self.result("backfill", "rows/s", rows as f64 / native_seconds, rows as f64 / seconds);
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        for program in ["producer", "consumer"] {
            self.services.push(self.migration.service(program).start()?);
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        for service in self.services.drain(..) {
            // The kernel keeps the peak of the process, so that one look at its end misses nothing.
            if let Some(resident) = service.resident_bytes() {
                let name = service.process().name();
                let peaks = self.report.entry("resident_bytes_max").or_insert_with(|| json!({}));
                peaks[name] = json!(resident.peak.max(peaks[name].as_u64().unwrap_or(0)));
            }
            service.terminate()?;
        }
        Ok(())
    }

    fn pause_both(&mut self) -> Result<()> {
        self.stop()?;
        self.native.run(&format!("ALTER SUBSCRIPTION {SLOT} DISABLE"))?;
        let source = &self.source;
        let active = "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()";
        measure::seconds_until("both slots are free", PATIENCE, || Ok(source.number(active)? == 0)).map(|_| ())
    }

    /// Both are stopped; `work` fills the WAL; each drains it alone.
    fn backlog(&mut self, name: &str, what: &str, changes: u64, work: impl FnOnce(&Bench) -> Result<()>) -> Result<()> {
        println!("{what}: {changes} row changes");
        work(self)?;
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'end of the backlog')")?;
        let before = self.used();
        let native_seconds = self.drain_native(&end)?;
        let native = self.used_since(&before);
        self.pause_both()?;
        let before = self.used();
        let seconds = self.drain_dflux(&end)?;
        let ours = self.used_since(&before);
        self.pause_both()?;
        self.result(name, "changes/s", changes as f64 / native_seconds, changes as f64 / seconds);
        let line = |used: &Used| {
            let each = used.iter().filter(|(_, seconds)| **seconds > 0.0);
            each.map(|(name, seconds)| format!("{name} {seconds:.1}")).collect::<Vec<_>>().join(", ")
        };
        println!("  CPU seconds: native: {}; dflux: {}", line(&native), line(&ours));
        self.report[name]["cpu_seconds"] = json!({"native": native, "dflux": ours});
        Ok(())
    }

    /// CPU seconds of each part until now. A service that is not there yet has used none.
    fn used(&self) -> Used {
        let parts = [
            ("source", self.servers.source.pid()),
            ("target", self.servers.target.pid()),
            ("kafka", self.servers.broker.pid()),
        ];
        let services = self.services.iter().map(|service| {
            let process = service.process();
            (process.name(), Some(process.pid()))
        });
        let parts = parts.into_iter().chain(services);
        parts.filter_map(|(name, pid)| Some((name.to_owned(), measure::cpu_seconds(pid?)))).collect()
    }

    fn used_since(&self, before: &Used) -> Used {
        let now = self.used().into_iter();
        now.map(|(name, seconds)| (name.clone(), seconds - before.get(&name).unwrap_or(&0.0))).collect()
    }

    fn drain_native(&self, end: &str) -> Result<f64> {
        self.native.run(&format!("ALTER SUBSCRIPTION {SLOT} ENABLE"))?;
        let applied = format!(
            "SELECT coalesce((SELECT (remote_lsn >= '{end}')::int FROM pg_replication_origin_status s JOIN pg_replication_origin o ON o.roident = s.local_id JOIN pg_subscription p ON o.roname = 'pg_' || p.oid WHERE p.subname = '{SLOT}'), 0)"
        );
        let confirmed = format!(
            "SELECT (confirmed_flush_lsn >= '{end}')::int FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        );
        let (native, source) = (&self.native, &self.source);
        // An empty transaction moves the slot and not the origin: whichever says so first.
        measure::seconds_until("native has applied the backlog", PATIENCE, || {
            Ok(native.number(&applied)? == 1 || source.number(&confirmed)? == 1)
        })
    }

    fn drain_dflux(&mut self, end: &str) -> Result<f64> {
        let began = std::time::Instant::now();
        self.start()?;
        let applied = format!("SELECT (commit_lsn >= '{end}')::int FROM dflux.lane");
        let (target, services) = (&self.dflux, &self.services);
        measure::seconds_until("dflux has applied the backlog", PATIENCE, || {
            services.iter().try_for_each(|service| service.process().still_running())?;
            Ok(target.number(&applied)? == 1)
        })?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// One after the other under the same steady load; the other's backlog is drained before its turn.
    fn lag(&mut self, tps: u32, length: Duration) -> Result<()> {
        println!("lag at {tps} transactions per second");
        let end = || self.source.value("SELECT pg_current_wal_insert_lsn()");
        self.drain_native(&end()?)?;
        let native = self.lag_under_load(tps, length, &self.native_url)?;
        self.pause_both()?;
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'end of the backlog')")?;
        self.drain_dflux(&end)?;
        let ours = self.lag_under_load(tps, length, &self.migration.addresses.target)?;
        self.pause_both()?;
        println!(
            "  native p50 {:.1} ms, p99 {:.1} ms; dflux p50 {:.1} ms, p99 {:.1} ms",
            native.p50_ms, native.p99_ms, ours.p50_ms, ours.p99_ms
        );
        self.report.insert(format!("lag_{tps}"), json!({"native": native, "dflux": ours}));
        Ok(())
    }

    fn lag_under_load(&self, tps: u32, length: Duration, target: &str) -> Result<Percentiles> {
        let url = &self.migration.addresses.source;
        let load = self
            .servers
            .source
            .tool("pgbench", ["-n", "-c", "8", "-j", "1", "-T", "3600", "-R", &tps.to_string(), url])
            .start()?;
        let measured = measure::lag(url, target, length)?;
        load.still_running()?;
        load.kill();
        Ok(measured)
    }

    /// After all of it the two targets are the same as the source.
    fn same(&mut self) -> Result<()> {
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'the end')")?;
        self.drain_native(&end)?;
        self.drain_dflux(&end)?;
        self.stop()?;
        for table in ["pgbench_accounts", "pgbench_history", "wide", "bulk"] {
            let query = format!(
                "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM public.{table} t"
            );
            let source = self.source.value(&query)?;
            for (name, session) in [("native", &self.native), ("dflux", &self.dflux)] {
                if session.value(&query)? != source {
                    return Err(Failure::Other(format!(
                        "{table} of {name} differs from the source: its figures count for nothing"
                    )));
                }
            }
        }
        println!("both targets equal the source");
        self.native.run(&format!("DROP SUBSCRIPTION {SLOT}"))?;
        services::run("dflux", &self.migration.config(), ["cleanup", "--yes"])?.expect_code(0).map(|_| ())
    }

    fn result(&mut self, name: &str, unit: &str, native: f64, ours: f64) {
        println!("  {name}: native {} {unit}, dflux {} {unit}: ratio {:.2}", human(native), human(ours), ours / native);
        self.report
            .insert(name.to_owned(), json!({"unit": unit, "native": native, "dflux": ours, "ratio": ours / native}));
    }
}
