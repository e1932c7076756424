//! `dflux.toml`: one file for all programs. Unknown keys are errors; `DFLUX__SECTION__KEY` in the environment overrides.
//!
//! It is read once. Whoever has settings that may change while it runs follows the file ([`Watched`]) and takes those alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;
pub use crate::config_store::{Command, ConfigStore, Etcd, Held, Pgbouncer};

const ENVIRONMENT_PREFIX: &str = "DFLUX__";

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from.
    #[serde(skip)]
    pub path: PathBuf,
    #[serde(default)]
    pub migration: Migration,
    pub source: Endpoint,
    pub target: Target,
    pub kafka: Kafka,
    pub registry: Registry,
    #[serde(default)]
    pub producer: Producer,
    #[serde(default)]
    pub consumer: Consumer,
    #[serde(default)]
    pub validator: Validator,
    #[serde(default)]
    pub cutover: Cutover,
    #[serde(default)]
    pub config_store: Option<ConfigStore>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Migration {
    /// Names the topics and the progress rows; two migrations of one name are one migration.
    pub name: String,
    /// `schema.table` patterns, `*` stands for any characters.
    pub tables: Vec<String>,
    pub exclude: Vec<String>,
    /// Whether tables that match and are created while the migration runs become part of it by themselves.
    pub join_new_tables: bool,
    pub slot: String,
    pub publication: String,
}

impl Default for Migration {
    fn default() -> Self {
        Migration {
            name: "dflux".into(),
            tables: vec!["public.*".into()],
            exclude: Vec::new(),
            join_new_tables: true,
            slot: "dflux_migration_slot".into(),
            publication: "dflux_migration".into(),
        }
    }
}

impl Migration {
    /// Whether a table is part of the migration by name. System schemas and dflux's own never are.
    pub fn selects(&self, schema: &str, table: &str) -> bool {
        let ours = schema == "dflux" || schema == "information_schema" || schema.starts_with("pg_");
        !ours && any(&self.tables, schema, table) && !self.excludes(schema, table)
    }

    /// Whether a table, or a sequence that belongs to none, is excluded by its own name.
    pub fn excludes(&self, schema: &str, name: &str) -> bool {
        any(&self.exclude, schema, name)
    }
}

fn any(patterns: &[String], schema: &str, name: &str) -> bool {
    let name = format!("{schema}.{name}");
    patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
}

/// `*` stands for any run of characters; linear in the product of the lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        Some((byte, rest)) => name.first() == Some(byte) && matches(rest, &name[1..]),
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `postgresql://user:password@host:port/database?sslmode=…&sslrootcert=…`
    pub url: String,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Endpoint({})", without_password(&self.url))
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As [`Endpoint::url`].
    pub url: String,
    /// A further target: it reads what the migration of another configuration of the same name writes, and has no part in the source,
    /// Kafka and the registry.
    #[serde(default)]
    pub follows: bool,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Target({}, follows {})", without_password(&self.url), self.follows)
    }
}

/// A URL that may be printed.
pub fn without_password(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) => {
            if parsed.password().is_some() {
                let _ = parsed.set_password(Some("***"));
            }
            parsed.to_string()
        }
        Err(_) => "(not a URL)".into(),
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port`, several with commas.
    pub brokers: String,
    /// Any librdkafka property (security, compression …) but those that dflux's exactness rests on.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Replication factor of the topics that are made.
    #[serde(default = "one")]
    pub replication_factor: u16,
    /// The largest record of the topics that are made, pinned then: their `max.message.bytes`. What is larger is cut into several.
    #[serde(default = "eight_mebibytes")]
    pub record_bytes_max: usize,
}

/// The largest `record_bytes_max`. More would be refused by most clusters, and be held several times by every client.
pub const RECORD_BYTES_MOST: usize = 32 << 20;

impl std::fmt::Debug for Kafka {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Properties may hold passwords.
        write!(out, "Kafka({}, properties {:?})", self.brokers, self.properties.keys().collect::<Vec<_>>())
    }
}

fn one() -> u16 {
    1
}

fn eight_mebibytes() -> usize {
    8 << 20
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Base of the Confluent-compatible API.
    pub url: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Producer {
    /// Where /metrics, /health and /ready answer.
    pub listen: String,
    /// Chunks read at once during the backfill.
    pub backfill_workers: u16,
    /// Rows that a chunk aims at.
    pub chunk_rows: u64,
    /// Bytes on the source's disk that a chunk aims at; the smaller of the two counts.
    pub chunk_bytes: u64,
    /// COPY bytes that all workers together may read in a second; 0: as many as they can. May change while the producer runs.
    pub backfill_bytes_per_second: u64,
    /// The backfill waits while the stream's newest marker is older than this; 0: never. May change while the producer runs.
    pub backfill_lag_seconds: u64,
    /// Seconds after which a snapshot is replaced, so that a long copy does not hold back vacuum.
    pub snapshot_seconds_max: u64,
    pub marker_interval_ms: u64,
    /// Bytes that may wait for Kafka's acknowledgement. No record may be larger than half of it.
    pub queue_bytes_max: u64,
    /// Bytes of changes that the source's WAL sender holds of open transactions before it writes them to the source's disk.
    pub decoding_bytes_max: u64,
    /// Partitions of a table's topic, pinned when it is made.
    pub partitions: i32,
}

impl Default for Producer {
    fn default() -> Self {
        Producer {
            listen: "127.0.0.1:9401".into(),
            backfill_workers: 4,
            chunk_rows: 100_000,
            chunk_bytes: 64 << 20,
            backfill_bytes_per_second: 0,
            backfill_lag_seconds: 10,
            snapshot_seconds_max: 300,
            marker_interval_ms: 100,
            queue_bytes_max: 64 << 20,
            decoding_bytes_max: 256 << 20,
            partitions: 1,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Consumer {
    pub listen: String,
    /// Changes of one target transaction when behind.
    pub batch_changes_max: usize,
    /// Encoded bytes of one target transaction's statements in memory.
    pub batch_bytes_max: usize,
    /// Bytes fetched from Kafka and not yet applied.
    pub fetch_bytes_max: u64,
    /// Chunks loaded at once.
    pub load_workers: u16,
    /// Seconds without a sign of life after which a standby takes over.
    pub lease_seconds: u64,
    /// Values by which a sequence of the target is kept ahead of the source's, in steps of its increment.
    pub sequence_margin: u64,
}

impl Default for Consumer {
    fn default() -> Self {
        Consumer {
            listen: "127.0.0.1:9402".into(),
            batch_changes_max: 20_000,
            batch_bytes_max: 16 << 20,
            fetch_bytes_max: 48 << 20,
            load_workers: 4,
            lease_seconds: 10,
            sequence_margin: 1_000,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Validator {
    pub listen: String,
    /// Rows compared by one pair of statements.
    pub chunk_rows: u64,
    /// Seconds between two rounds of the service.
    pub interval_seconds: u64,
    /// Seconds between two comparisons of the rows that have changed, between two rounds; 0: none.
    pub changed_interval_seconds: u64,
    /// Seconds of statements that the source may run for comparisons within one second: 0.25 is a quarter of one session.
    pub max_source_load: f64,
    /// Seconds that one comparison may wait for the lane before it is inconclusive.
    pub settle_seconds_max: u64,
}

impl Default for Validator {
    fn default() -> Self {
        Validator {
            listen: "127.0.0.1:9403".into(),
            chunk_rows: 100_000,
            interval_seconds: 60,
            changed_interval_seconds: 10,
            max_source_load: 2.0,
            settle_seconds_max: 60,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    Fenced,
    Drain,
    Dual,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cutover {
    pub policy: Policy,
    pub max_lag_ms: u64,
    /// For so long the lag has to stay below `max_lag_ms` before a side is closed.
    pub gate_seconds: u64,
    /// From the fence to the point of no return; longer, and it is given up.
    pub max_outage_ms: u64,
    pub drain_seconds: u64,
    pub rollback_minutes: u64,
    /// What the application's config store holds while it is on the source, where that is not `[source] url`.
    pub source_url: Option<String>,
    /// The same of the target.
    pub target_url: Option<String>,
}

impl Default for Cutover {
    fn default() -> Self {
        Cutover {
            policy: Policy::Drain,
            max_lag_ms: 100,
            gate_seconds: 30,
            max_outage_ms: 10_000,
            drain_seconds: 300,
            rollback_minutes: 30,
            source_url: None,
            target_url: None,
        }
    }
}

impl Config {
    /// Reads the file, lays the environment over it, and checks it.
    ///
    /// # Errors
    /// `ConfigRead`, or `ConfigInvalid` that names the key.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::ConfigRead { path: path.to_owned(), source })?;
        Config::parse(path, &text, std::env::vars())
    }

    fn parse(path: &Path, text: &str, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Error> {
        let invalid = |message: String| Error::ConfigInvalid { path: path.to_owned(), message };
        // Without the line itself, which may hold a password.
        let malformed = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            invalid(format!("line {}: {}", before.matches('\n').count() + 1, error.message()))
        };
        let mut table: toml::Table = toml::from_str(text).map_err(malformed)?;
        for (name, value) in environment {
            if let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                lay_over(&mut table, &key.to_lowercase(), value).map_err(|what| invalid(format!("{name}: {what}")))?;
            }
        }
        let one_line = |error: toml::de::Error| invalid(error.to_string().trim_end().replace('\n', " "));
        let mut config: Config = toml::Value::Table(table).try_into().map_err(one_line)?;
        config.path = path.to_owned();
        config.check().map_err(invalid)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let migration = &self.migration;
        // The longest of the names that are made of it, `dflux rewrite <name>`, is an identifier of PostgreSQL.
        if migration.name.is_empty() || migration.name.len() > 49 {
            return Err("migration.name must have 1 to 49 bytes".into());
        }
        for pattern in migration.tables.iter().chain(&migration.exclude) {
            if !pattern.contains('.') || pattern.len() > 200 || pattern.matches('*').count() > 4 {
                return Err(format!("migration: `{pattern}` is not a pattern `schema.table` with at most 4 `*`"));
            }
        }
        let slot_fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if migration.slot.is_empty() || migration.slot.len() > 63 || !migration.slot.chars().all(slot_fits) {
            return Err(format!("migration.slot: `{}` may hold a-z, 0-9 and _ only, 1 to 63", migration.slot));
        }
        if migration.publication.is_empty() || migration.publication.len() > 63 {
            return Err("migration.publication must have 1 to 63 bytes".into());
        }
        let bounds = [
            ("producer.backfill_workers", u64::from(self.producer.backfill_workers), 1, 64),
            ("producer.chunk_rows", self.producer.chunk_rows, 1, 10_000_000),
            ("producer.chunk_bytes", self.producer.chunk_bytes, 64 << 10, 64 << 30),
            ("producer.backfill_bytes_per_second", self.producer.backfill_bytes_per_second, 0, 1 << 40),
            ("producer.backfill_lag_seconds", self.producer.backfill_lag_seconds, 0, 86_400),
            ("producer.snapshot_seconds_max", self.producer.snapshot_seconds_max, 1, 86_400),
            ("producer.marker_interval_ms", self.producer.marker_interval_ms, 10, 10_000),
            ("producer.queue_bytes_max", self.producer.queue_bytes_max, 1 << 20, 1 << 30),
            ("producer.decoding_bytes_max", self.producer.decoding_bytes_max, 64 << 10, 64 << 30),
            ("producer.partitions", self.producer.partitions.max(0) as u64, 1, 256),
            ("consumer.batch_changes_max", self.consumer.batch_changes_max as u64, 1, 1_000_000),
            ("consumer.batch_bytes_max", self.consumer.batch_bytes_max as u64, 64 << 10, 256 << 20),
            ("consumer.fetch_bytes_max", self.consumer.fetch_bytes_max, 1 << 20, 1 << 30),
            ("consumer.load_workers", u64::from(self.consumer.load_workers), 1, 64),
            ("consumer.lease_seconds", self.consumer.lease_seconds, 2, 3600),
            ("consumer.sequence_margin", self.consumer.sequence_margin, 0, 1_000_000_000),
            ("validator.chunk_rows", self.validator.chunk_rows, 1, 10_000_000),
            ("validator.interval_seconds", self.validator.interval_seconds, 1, 86_400),
            ("validator.changed_interval_seconds", self.validator.changed_interval_seconds, 0, 86_400),
            ("validator.settle_seconds_max", self.validator.settle_seconds_max, 1, 3600),
            ("kafka.replication_factor", u64::from(self.kafka.replication_factor), 1, 15),
            ("kafka.record_bytes_max", self.kafka.record_bytes_max as u64, 64 << 10, RECORD_BYTES_MOST as u64),
        ];
        let load = self.validator.max_source_load;
        if !(0.01..=2.0).contains(&load) {
            return Err(format!("validator.max_source_load = {load} is outside of 0.01 to 2"));
        }
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return Err(format!("{name} = {value} is outside of {least} to {most}"));
            }
        }
        Ok(())
    }
}

/// A file that may change while a program runs. It is told by its content: the time of a change is as coarse as the disk has it.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    /// Of the last look. `None`: it could not be read.
    seen: Option<String>,
    /// Whether that was told.
    told: bool,
}

impl Watched {
    /// Nothing is read yet: what the file holds by then is told first.
    pub fn new(path: &Path) -> Watched {
        Watched { path: path.to_owned(), seen: None, told: true }
    }

    /// A look at the file, to be taken every second or so: `Some` once for each content, when two looks have found it. A
    /// file is written in pieces, and a piece may be a valid file that lacks a key.
    ///
    /// # Errors
    /// As [`Config::load`]; likewise once.
    pub fn look(&mut self) -> Option<Result<Config, Error>> {
        let read = std::fs::read_to_string(&self.path);
        let found = self.take(read.as_ref().ok().cloned())?;
        Some(match (found, read) {
            (Some(text), _) => Config::parse(&self.path, &text, std::env::vars()),
            (None, Err(source)) => Err(Error::ConfigRead { path: self.path.clone(), source }),
            (None, Ok(_)) => return None,
        })
    }

    /// What is to be told now. Pure.
    fn take(&mut self, text: Option<String>) -> Option<Option<String>> {
        if text != self.seen {
            (self.seen, self.told) = (text, false);
            return None;
        }
        let news = !self.told;
        self.told = true;
        news.then(|| self.seen.clone())
    }
}

/// Sets `section__key` (or deeper); a value is TOML where it parses as such and a string otherwise.
fn lay_over(table: &mut toml::Table, key: &str, value: String) -> Result<(), String> {
    let mut parts: Vec<&str> = key.split("__").collect();
    let Some(last) = parts.pop().filter(|last| !last.is_empty()) else { return Err("no key".into()) };
    if parts.is_empty() {
        return Err("write DFLUX__SECTION__KEY".into());
    }
    let mut at = table;
    for part in parts {
        let entry = at.entry(part.to_owned()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().ok_or_else(|| format!("{part} is not a section"))?;
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    at.insert(last.to_owned(), parsed.unwrap_or(toml::Value::String(value)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[source]\nurl='a'\n[target]\nurl='b'\n[kafka]\nbrokers='c'\n[registry]\nurl='d'\n";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(Path::new("dflux.toml"), text, environment).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = parse(&format!("{MINIMAL}[producer]\nbackfil_workers = 2\n"), &[]).unwrap_err();
        assert!(error.contains("backfil_workers"), "{error}");
    }

    #[test]
    fn the_environment_overrides_and_knows_types() {
        let environment =
            [("DFLUX__PRODUCER__CHUNK_ROWS", "7"), ("DFLUX__SOURCE__URL", "postgresql://x/y"), ("OTHER", "1")];
        let config = parse(MINIMAL, &environment).unwrap();
        assert_eq!(config.producer.chunk_rows, 7);
        assert_eq!(config.source.url, "postgresql://x/y");
        let error = parse(MINIMAL, &[("DFLUX__PRODUCER__CHUNKS", "7")]).unwrap_err();
        assert!(error.contains("chunks"), "{error}");
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for (text, part) in [
            ("[producer]\nchunk_rows = 0\n", "producer.chunk_rows"),
            ("[producer]\nchunk_bytes = 1\n", "producer.chunk_bytes"),
            ("[producer]\nbackfill_lag_seconds = 100000\n", "producer.backfill_lag_seconds"),
            ("[producer]\nbackfill_bytes_per_second = -1\n", "backfill_bytes_per_second"),
            ("[producer]\nbackfill_bytes_per_second = 'much'\n", "backfill_bytes_per_second"),
            ("[migration]\nslot = 'A'\n", "migration.slot"),
            ("[migration]\ntables = ['x']\n", "pattern"),
        ] {
            let error = parse(&format!("{MINIMAL}{text}"), &[]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_malformed_line_is_told_by_its_number_and_not_shown() {
        let error = parse("[source]\nurl = 'postgresql://u:secret@h/d\n", &[]).unwrap_err();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_changed_file_is_told_once_and_only_when_it_has_come_to_rest() {
        let mut watched = Watched::new(Path::new("dflux.toml"));
        let mut look = |text: Option<&str>| watched.take(text.map(str::to_owned));
        let told = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(look(Some("a")), None);
        assert_eq!(look(Some("a")), told("a"));
        assert_eq!(look(Some("a")), None);
        // Written in pieces.
        assert_eq!(look(Some("")), None);
        assert_eq!(look(Some("b")), None);
        assert_eq!(look(Some("b")), told("b"));
        // Gone, and there again.
        assert_eq!(look(None), None);
        assert_eq!(look(None), Some(None));
        assert_eq!(look(None), None);
        assert_eq!(look(Some("b")), None);
        assert_eq!(look(Some("b")), told("b"));
    }

    #[test]
    fn patterns_select_tables_but_never_system_schemas() {
        let mut migration =
            Migration { tables: vec!["*.*".into()], exclude: vec!["a.tmp_*".into()], ..Migration::default() };
        assert!(migration.selects("a", "b"));
        assert!(!migration.selects("a", "tmp_x"));
        assert!(!migration.selects("pg_catalog", "pg_class"));
        assert!(!migration.selects("dflux", "lane"));
        migration.tables = vec!["public.order*s".into()];
        assert!(migration.selects("public", "orders"));
        assert!(!migration.selects("public", "order"));
    }

    #[test]
    fn a_password_is_never_printed() {
        let endpoint = Endpoint { url: "postgresql://u:secret@h/d".into() };
        assert!(!format!("{endpoint:?}").contains("secret"));
        let target = Target { url: "postgresql://u:secret@h/d".into(), follows: true };
        assert!(!format!("{target:?}").contains("secret"));
    }
}
