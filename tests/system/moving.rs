//! A whole migration by the real programs, for tests that compare what came out of it: PostgreSQL renders both sides, and the
//! answers must be the same.

use std::time::Duration;

use tests::postgres::Server;
use tests::services::{Service, run};
use tests::sql::Session;
use tests::stack::{Addresses, Migration, shared, unique};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(240);
/// Differences shown of one comparison.
const SHOWN_MAX: usize = 30;

/// A migration with a session on both sides and, once started, its services.
pub struct Moving {
    pub migration: Migration,
    pub source: Session,
    pub target: Session,
    pub services: Vec<Service>,
}

impl Moving {
    /// Between two new databases on the servers that all tests share.
    pub fn shared(label: &str) -> Moving {
        Moving::of(Migration::shared(label).unwrap())
    }

    /// Between two new databases on these servers.
    pub fn between(label: &str, source: &Server, target: &Server) -> Moving {
        let (name, servers) = (unique(label), shared().unwrap());
        source.database(&name).unwrap();
        target.database(&name).unwrap();
        let addresses = Addresses {
            source: source.url(&name),
            target: target.url(&name),
            brokers: servers.broker.bootstrap(),
            registry: servers.registry.url(),
        };
        Moving::of(Migration::between(&name, addresses).unwrap())
    }

    fn of(migration: Migration) -> Moving {
        let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
        Moving { migration, source, target, services: Vec::new() }
    }

    /// The target's schema by `dflux prepare`.
    pub fn prepare(&self) {
        run("dflux", &self.migration.config(), ["prepare"]).unwrap().expect_code(0).unwrap();
    }

    /// Producer and consumer; returns when the copy is loaded and the lane applies strictly.
    pub fn start(&mut self) {
        for program in ["producer", "consumer"] {
            self.services.push(self.migration.service(program).start().unwrap());
        }
        self.becomes("the lane is exact", "SELECT phase = 'exact' FROM dflux.lane");
    }

    /// Returns when everything that is committed on the source is committed on the target. Nothing may have diverged.
    pub fn caught_up(&self) {
        let end = self.source.value("SELECT pg_current_wal_insert_lsn()").unwrap();
        self.becomes("the lane catches up", &format!("SELECT commit_lsn >= '{end}' FROM dflux.lane"));
        let diverged = "SELECT diverged + (SELECT count(*) FROM dflux.divergence) FROM dflux.lane";
        assert_eq!(self.target.number(diverged).unwrap(), 0, "changes found no row\n{}", self.logs());
    }

    /// Returns when the producer has read what is committed on the source.
    pub fn captured(&self) {
        let end: u64 = self.source.number("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").unwrap() as u64;
        let producer = &self.services[0];
        let received = || match producer.metric("dflux_producer_received_lsn_bytes") {
            Ok(Some(lsn)) if lsn as u64 >= end => Ok(()),
            other => Err(format!("{other:?} of {end}")),
        };
        producer.process().wait_until("the producer has read it", LIMIT, received).unwrap();
    }

    /// Returns when a table that is built again is live as this generation.
    pub fn settled_again(&self, table: &str, generation: u32) {
        let live = format!(
            "SELECT coalesce(bool_or(state = 'live' AND generation >= {generation}), false) FROM dflux.table_state \
             WHERE table_name = '{table}'"
        );
        self.becomes("the table is live again", &live);
    }

    /// The source tells of no change of its tables from here on.
    pub fn without_trigger(&self) {
        let sql = "SELECT string_agg(format('DROP EVENT TRIGGER %I', evtname), '; ') FROM pg_event_trigger WHERE evtname LIKE 'dflux %'";
        self.source.run(&self.source.value(sql).unwrap()).unwrap();
    }

    /// Starts a service again, killed now if it was not before.
    pub fn restart(&mut self, place: usize) {
        let service = self.services.remove(place);
        service.kill();
        self.services.insert(place, service.start_again().unwrap());
    }

    /// Returns when a query on the target says `t`. No service may end meanwhile.
    pub fn becomes(&self, what: &str, query: &str) {
        let outcome = wait::until(what, LIMIT, || {
            if let Err(ended) = self.services.iter().try_for_each(|service| service.process().still_running()) {
                return Ok(Err(ended));
            }
            match self.target.value(query).as_deref() {
                Ok("t") => Ok(Ok(())),
                _ => Err(self.target.value("SELECT l::text FROM dflux.lane l").unwrap_or_default()),
            }
        });
        let logs = || if self.services.is_empty() { String::new() } else { self.logs() };
        outcome.and_then(|told| told).unwrap_or_else(|failure| panic!("{failure}\n{}", logs()));
    }

    fn logs(&self) -> String {
        self.services.iter().map(Service::log).collect::<Vec<_>>().join("\n")
    }

    /// Each query gives the same rows on both sides. All differences are told at once.
    pub fn assert_same(&self, queries: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut differences = Vec::new();
        for query in queries {
            let query = query.as_ref();
            let told = |session: &Session| session.rows(query).unwrap_or_else(|failure| panic!("{failure}\n{query}"));
            let (source, target) = (told(&self.source), told(&self.target));
            if source.len() != target.len() {
                differences.push(format!("{} rows and {} on the target: {query}", source.len(), target.len()));
            }
            let unlike = source.iter().zip(&target).filter(|(left, right)| left != right);
            differences.extend(unlike.take(3).map(|(left, right)| format!("{query}\n  {left:?}\n  {right:?}")));
        }
        let shown = &differences[..differences.len().min(SHOWN_MAX)];
        assert!(differences.is_empty(), "{} differences:\n{}\n{}", differences.len(), shown.join("\n"), self.logs());
    }

    /// As [`assert_same`](Self::assert_same), of whole tables: every row as text, all columns' own output functions.
    pub fn assert_tables_same(&self, tables: &[&str]) {
        self.assert_same(tables.iter().map(|table| rows_sql(table)));
    }

    /// Peaks of what the services hold in memory, in bytes.
    pub fn resident_peaks(&self) -> Vec<(String, u64)> {
        let peak = |service: &Service| {
            let resident = service.resident_bytes().unwrap();
            (service.process().name().to_owned(), resident.peak)
        };
        self.services.iter().map(peak).collect()
    }
}

/// Every row of a table (as SQL names it) as one text.
pub fn rows_sql(table: &str) -> String {
    format!("SELECT r::text FROM (SELECT * FROM {table}) AS r ORDER BY r::text COLLATE \"C\"")
}
