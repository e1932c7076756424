//! Whole stacks: what all tests of a process share, and a migration of its own for each test.
//!
//! Kafka, the registry and two PostgreSQL servers are started once for a process, when the first test asks. A test gets
//! databases, a migration name (so topics), a slot and a folder that no other test has. A test that restarts or breaks
//! a server, or holds a transaction open (a slot's creation waits for every transaction of its server), starts its own.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::kafka::{self, Broker};
use crate::postgres::{self, Server};
use crate::process::Life;
use crate::registry::Registry;
use crate::services::Start;
use crate::sql::Session;
use crate::{Failure, Result, scratch};

/// The servers that all tests of this process share. They end with the process.
#[derive(Debug)]
pub struct Shared {
    pub broker: Broker,
    pub registry: Registry,
    pub source: Server,
    pub target: Server,
}

/// Starts them at the first call; every later call gets the same.
///
/// # Errors
/// When one of them did not start: the same text at every call, without trying again.
pub fn shared() -> Result<&'static Shared> {
    static SHARED: OnceLock<std::result::Result<Shared, String>> = OnceLock::new();
    let outcome = SHARED.get_or_init(|| start_shared().map_err(|failure| failure.to_string()));
    outcome.as_ref().map_err(|text| Failure::Other(format!("the shared servers did not start: {text}")))
}

fn start_shared() -> Result<Shared> {
    std::thread::scope(|scope| {
        let broker = scope.spawn(|| Broker::start(kafka::Options::default()));
        let registry = scope.spawn(|| Registry::start(None, Life::Bound));
        let source = Server::start(postgres::Options::new("source"))?;
        let target = Server::start(postgres::Options::new("target"))?;
        let broker = broker.join().map_err(|_| Failure::Other("starting Kafka panicked".to_owned()))??;
        let registry = registry.join().map_err(|_| Failure::Other("starting the registry panicked".to_owned()))??;
        Ok(Shared { broker, registry, source, target })
    })
}

/// The addresses that a configuration names.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub source: String,
    pub target: String,
    pub brokers: String,
    pub registry: String,
}

/// One migration: its names, its databases' URLs, its folder with `dflux.toml` and the logs of its services.
#[derive(Debug)]
pub struct Migration {
    pub name: String,
    pub folder: PathBuf,
    pub addresses: Addresses,
}

impl Migration {
    /// A migration between two new, empty databases on the shared servers, its configuration written.
    ///
    /// # Errors
    /// When the shared servers or the databases could not be had.
    pub fn shared(label: &str) -> Result<Migration> {
        let servers = shared()?;
        let name = unique(label);
        servers.source.database(&name)?;
        servers.target.database(&name)?;
        let addresses = Addresses {
            source: servers.source.url(&name),
            target: servers.target.url(&name),
            brokers: servers.broker.bootstrap(),
            registry: servers.registry.url(),
        };
        Migration::between(&name, addresses)
    }

    /// A migration between the addresses given, for a test with servers of its own.
    ///
    /// # Errors
    /// When its folder or configuration cannot be written.
    pub fn between(name: &str, addresses: Addresses) -> Result<Migration> {
        let folder = scratch::folder(name)?;
        let migration = Migration { name: name.to_owned(), folder, addresses };
        migration.configure(&[])?;
        Ok(migration)
    }

    /// Writes `dflux.toml` anew. `extra` are settings on top: `("consumer", "batch_rows_max", 100.into())`; a value that
    /// is given here wins.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, extra: &[(&str, &str, toml::Value)]) -> Result<()> {
        let slot = format!("dflux_{}", self.name);
        let mut table = configuration(&self.name, &slot, &self.addresses);
        for (section, key, value) in extra {
            let entry = table.entry((*section).to_owned()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(section) = entry.as_table_mut() {
                section.insert((*key).to_owned(), value.clone());
            }
        }
        write_configuration(&self.config(), &table)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("dflux.toml")
    }

    /// A new session in the source database.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn source(&self) -> Result<Session> {
        Session::connect(&self.addresses.source)
    }

    /// A new session in the target database.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn target(&self) -> Result<Session> {
        Session::connect(&self.addresses.target)
    }

    /// A service of this migration, to be started: `migration.service("producer").start()?`.
    pub fn service(&self, program: &str) -> Start {
        Start::new(program, &self.config())
    }
}

/// A name that no other test of this process has: letters of the label and a number.
pub fn unique(label: &str) -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let letters: String = label.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    format!("{}{}", letters.to_lowercase(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The sections of a `dflux.toml` (DESIGN 8) with these names and addresses and no other setting.
pub fn configuration(migration: &str, slot: &str, addresses: &Addresses) -> toml::Table {
    let mut table = toml::Table::new();
    let mut section = |name: &str, entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), toml::Value::from(*value)));
        table.insert(name.to_owned(), toml::Value::Table(entries.collect()));
    };
    section("migration", &[("name", migration), ("slot", slot)]);
    section("source", &[("url", &addresses.source)]);
    section("target", &[("url", &addresses.target)]);
    section("kafka", &[("brokers", &addresses.brokers)]);
    section("registry", &[("url", &addresses.registry)]);
    table
}

/// # Errors
/// When it cannot be written.
pub fn write_configuration(path: &Path, table: &toml::Table) -> Result<()> {
    let text = toml::to_string(table).map_err(|error| Failure::Other(format!("writing the configuration: {error}")))?;
    std::fs::write(path, text).map_err(Failure::io(format!("writing {}", path.display())))
}
