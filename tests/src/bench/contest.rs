//! Two contestants on one source database: PostgreSQL's own logical replication and dflux. Both have a slot and a target
//! database of their own and take turns: while one drains, the other is stopped, so each gets the whole machine and the very
//! same backlog.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use tests::measure::{self, Percentiles, human};
use tests::services::{self, Service};
use tests::sql::Session;
use tests::stack::{self, Migration, Shared};
use tests::{Failure, Result};

use crate::demo::phase;

pub const PATIENCE: Duration = Duration::from_secs(3_600);
const SLOT: &str = "bench_native";
/// The workload of pgbench is its own, or this script.
pub type Script<'a> = Option<&'a str>;

/// CPU seconds by part.
type Used = BTreeMap<String, f64>;

/// The two contestants and what they share.
pub struct Contest<'r> {
    pub servers: &'static Shared,
    pub migration: Migration,
    pub source: Session,
    native: Session,
    native_url: String,
    dflux: Session,
    services: Vec<Service>,
    /// What no service should hold more of; a figure to look at, nothing fails.
    resident_bar: u64,
    report: &'r mut Map<String, Value>,
}

impl<'r> Contest<'r> {
    /// New, empty databases. `resident_bar`: megabytes that no service should exceed.
    pub fn open(label: &str, resident_bar: u64, report: &'r mut Map<String, Value>) -> Result<Contest<'r>> {
        let servers = stack::shared()?;
        let migration = Migration::shared(label)?;
        let native_database = format!("{}native", migration.name);
        let native = servers.target.database(&native_database)?;
        Ok(Contest {
            servers,
            source: migration.source()?,
            native,
            native_url: servers.target.url(&native_database),
            dflux: migration.target()?,
            migration,
            services: Vec::new(),
            resident_bar: resident_bar << 20,
            report,
        })
    }

    /// Initial copy of everything: native with the schema that its users give it, dflux as it is, its `prepare` apart.
    pub fn backfill(&mut self, name: &str, unit: &str, amount: f64) -> Result<()> {
        self.source.run("VACUUM ANALYZE")?;
        let source = &self.migration.addresses.source;
        let dump = self.servers.source.tool("pg_dump", ["--schema-only", "--no-owner", source]).run()?;
        let dump: String = dump
            .lines()
            .filter(|line| !line.starts_with("CREATE SCHEMA public") && !line.starts_with('\\'))
            .fold(String::new(), |all, line| all + line + "\n");
        self.native.run(&dump)?;
        self.native.run("RESET search_path")?;
        self.source.run("CREATE PUBLICATION bench_native FOR ALL TABLES")?;
        let connection = source.replace('\'', "''");
        self.native.run(&format!(
            "CREATE SUBSCRIPTION {SLOT} CONNECTION '{connection}' PUBLICATION bench_native WITH (slot_name = '{SLOT}')"
        ))?;
        let pending = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
        let native = &self.native;
        let native_seconds =
            measure::seconds_until("native initial copy", PATIENCE, || Ok(native.number(pending)? == 0))?;
        self.native.run(&format!("ALTER SUBSCRIPTION {SLOT} DISABLE"))?;

        let began = Instant::now();
        services::run("dflux", &self.migration.config(), ["prepare"])?.expect_code(0)?;
        let prepare_seconds = began.elapsed().as_secs_f64();
        let before = self.used();
        let began = Instant::now();
        self.start()?;
        let target = &self.dflux;
        let services = &self.services;
        measure::seconds_until("dflux backfill", PATIENCE, || {
            services.iter().try_for_each(|service| service.process().still_running())?;
            Ok(phase(target)? == "exact")
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let used = self.used_since(&before);
        self.result(name, unit, amount / native_seconds, amount / seconds);
        println!("  seconds: native {native_seconds:.1}; dflux {seconds:.1} after {prepare_seconds:.1} of prepare");
        println!("  CPU seconds: dflux: {}", line(&used));
        self.report[name]["cpu_seconds"] = json!({"dflux": used});
        self.report[name]["seconds"] =
            json!({"native": native_seconds, "dflux": seconds, "dflux_prepare": prepare_seconds});
        self.pause_both(name)
    }

    /// `dflux COMMAND`, and how long it took.
    pub fn command(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let began = Instant::now();
        services::run("dflux", &self.migration.config(), arguments.iter().copied())?.expect_code(0)?;
        let seconds = began.elapsed().as_secs_f64();
        println!("  dflux {}: {seconds:.1} s", arguments.join(" "));
        self.report.insert(name.to_owned(), json!({"seconds": seconds}));
        Ok(())
    }

    /// The services run, and `look` is taken meanwhile.
    pub fn running(&mut self, name: &str, look: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.start()?;
        look(self)?;
        self.pause_both(name)
    }

    /// pgbench's own workload, or a script's; `clients` do `transactions` together.
    pub fn pgbench(&self, script: Script<'_>, clients: u64, transactions: u64, more: &[&str]) -> Result<()> {
        let (clients_text, each) = (clients.to_string(), (transactions / clients).to_string());
        let mut arguments = vec!["-n", "-j", "1", "-c", &clients_text, "-t", &each];
        arguments.extend(more);
        let file = self.migration.folder.join("script.sql");
        let file_name = file.display().to_string();
        if let Some(script) = script {
            std::fs::write(&file, script).map_err(Failure::io(format!("writing {file_name}")))?;
            arguments.extend(["-f", &file_name]);
        }
        arguments.push(&self.migration.addresses.source);
        self.servers.source.tool("pgbench", arguments).run().map(|_| ())
    }

    fn start(&mut self) -> Result<()> {
        for program in ["producer", "consumer"] {
            self.services.push(self.migration.service(program).start()?);
        }
        Ok(())
    }

    /// Ends the services and notes the most memory that each held.
    fn stop(&mut self, phase: &str) -> Result<()> {
        for service in self.services.drain(..) {
            // The kernel keeps the peak of the process, so that one look at its end misses nothing.
            let Some(resident) = service.resident_bytes() else { continue };
            let name = service.process().name();
            let peaks = self.report.entry("resident_bytes_max").or_insert_with(|| json!({}));
            let held = peaks[phase][name].as_u64().unwrap_or(0);
            peaks[phase][name] = json!(resident.peak.max(held));
            peaks[phase]["bar"] = json!(self.resident_bar);
            let over = if resident.peak > self.resident_bar { ", over it" } else { "" };
            println!(
                "  {phase}: {name} at most {} MB resident (bar {} MB{over})",
                resident.peak >> 20,
                self.resident_bar >> 20
            );
            service.terminate()?;
        }
        Ok(())
    }

    fn pause_both(&mut self, phase: &str) -> Result<()> {
        self.stop(phase)?;
        self.native.run(&format!("ALTER SUBSCRIPTION {SLOT} DISABLE"))?;
        let source = &self.source;
        let active = "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()";
        measure::seconds_until("both slots are free", PATIENCE, || Ok(source.number(active)? == 0)).map(|_| ())
    }

    /// Both are stopped; `work` fills the WAL with `changes` row changes; each drains it alone.
    pub fn backlog(
        &mut self,
        name: &str,
        what: &str,
        changes: u64,
        work: impl FnOnce(&Contest<'_>) -> Result<()>,
    ) -> Result<()> {
        println!("{what}: {changes} row changes");
        work(self)?;
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'end of the backlog')")?;
        let before = self.used();
        let native_seconds = self.drain_native(&end)?;
        let native = self.used_since(&before);
        self.pause_both(name)?;
        let before = self.used();
        let seconds = self.drain_dflux(&end)?;
        let ours = self.used_since(&before);
        self.result(name, "changes/s", changes as f64 / native_seconds, changes as f64 / seconds);
        println!("  seconds: native {native_seconds:.2}, dflux {seconds:.2}");
        println!("  CPU seconds: native: {}; dflux: {}", line(&native), line(&ours));
        self.report[name]["seconds"] = json!({"native": native_seconds, "dflux": seconds});
        self.report[name]["cpu_seconds"] = json!({"native": native, "dflux": ours});
        self.pause_both(name)
    }

    /// CPU seconds of each part until now. A service that is not there yet has used none.
    fn used(&self) -> Used {
        let parts = [
            ("source", self.servers.source.pid()),
            ("target", self.servers.target.pid()),
            ("kafka", self.servers.broker.pid()),
            ("registry", self.servers.registry.pid()),
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
    pub fn lag(&mut self, tps: u32, length: Duration) -> Result<()> {
        println!("lag at {tps} transactions per second");
        let phase = format!("lag_{tps}");
        let end = || self.source.value("SELECT pg_current_wal_insert_lsn()");
        self.drain_native(&end()?)?;
        let native = self.lag_under_load(tps, length, &self.native_url)?;
        self.pause_both(&phase)?;
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'end of the backlog')")?;
        self.drain_dflux(&end)?;
        let ours = self.lag_under_load(tps, length, &self.migration.addresses.target)?;
        self.pause_both(&phase)?;
        println!(
            "  native p50 {:.1} ms, p99 {:.1} ms; dflux p50 {:.1} ms, p99 {:.1} ms",
            native.p50_ms, native.p99_ms, ours.p50_ms, ours.p99_ms
        );
        self.report.insert(phase, json!({"native": native, "dflux": ours}));
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

    /// After all of it the two targets answer `query` as the source does. Then what was made is taken away.
    pub fn same(mut self, queries: &[String]) -> Result<()> {
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()")?;
        self.source.run("SELECT pg_logical_emit_message(true, 'bench', 'the end')")?;
        self.drain_native(&end)?;
        self.drain_dflux(&end)?;
        self.services.drain(..).try_for_each(|service| service.terminate().map(|_| ()))?;
        for query in queries {
            let source = self.source.value(query)?;
            for (name, session) in [("native", &self.native), ("dflux", &self.dflux)] {
                if session.value(query)? != source {
                    return Err(Failure::Other(format!(
                        "{name} differs from the source in {query}: its figures count for nothing"
                    )));
                }
            }
        }
        println!("both targets equal the source");
        self.native.run(&format!("DROP SUBSCRIPTION {SLOT}"))?;
        let began = Instant::now();
        services::run("dflux", &self.migration.config(), ["cleanup", "--yes"])?.expect_code(0)?;
        println!("dflux cleanup: {:.1} s", began.elapsed().as_secs_f64());
        // The next contest has the disk of this one.
        let Contest { servers, migration, source, native, dflux, .. } = self;
        drop((source, native, dflux));
        servers.source.session("postgres")?.run(&format!("DROP DATABASE {} WITH (FORCE)", migration.name))?;
        for database in [migration.name.clone(), format!("{}native", migration.name)] {
            servers.target.session("postgres")?.run(&format!("DROP DATABASE {database} WITH (FORCE)"))?;
        }
        Ok(())
    }

    fn result(&mut self, name: &str, unit: &str, native: f64, ours: f64) {
        println!("  {name}: native {} {unit}, dflux {} {unit}: ratio {:.2}", human(native), human(ours), ours / native);
        self.report
            .insert(name.to_owned(), json!({"unit": unit, "native": native, "dflux": ours, "ratio": ours / native}));
    }
}

/// Rows of a table and a hash of all of them.
pub fn content(table: &str) -> String {
    format!("SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t")
}

fn line(used: &Used) -> String {
    let each = used.iter().filter(|(_, seconds)| **seconds > 0.0);
    each.map(|(name, seconds)| format!("{name} {seconds:.1}")).collect::<Vec<_>>().join(", ")
}
