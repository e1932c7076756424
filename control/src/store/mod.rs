//! Where the application learns its database's address, and how that is changed: by compare-and-swap, and read back.
//!
//! ```text
//!  cutover ── pause ──(fence, barrier, journal, open the target)── compare_and_swap ── resume ── get
//!                                                                   │
//!                        Applied ── it holds the new value          │
//!                        NotApplied ── it holds what somebody else wrote, nothing was changed
//!                        Ambiguous ── unknown: never tried again; read_back tells, and makes sure that it stays so
//! ```
//!
//! An error always means: nothing was changed. What may have been changed is `Ambiguous`. Values are connection URLs with
//! passwords and are shown masked only (`value`); versions hold no secret and go into the journal.
//! A store never decides whether to switch, and never tries a swap twice.

use std::future::Future;
use std::time::Duration;

pub mod command;
pub mod error;
pub mod etcd;
pub mod file;
pub mod pgbouncer;
mod replace;
mod value;

pub use error::Error;
pub use value::{Value, Version};

/// A value and the version that a swap must expect to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    pub value: Value,
    pub version: Version,
}

/// What a swap came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The store holds the new value, durably, under this version.
    Applied(Version),
    /// Somebody else changed it since: this is there, and was left alone. `None`: there is none any more.
    NotApplied { found: Option<Versioned> },
    /// It is not known which of the two, and may not be decided yet. See [`ConfigStore::read_back`].
    Ambiguous { why: String },
}

/// What holding the clients back came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Paused {
    /// Applications read this store when they connect: there is nobody to hold back.
    NotNeeded,
    /// Every client waits, and no connection to the database is left. `ended`: clients that would not let go and were
    /// disconnected, where the configuration says so.
    Held { ended: usize },
}

pub trait ConfigStore: Send + Sync {
    /// What it is, for messages: `file /etc/app/database.url`.
    fn place(&self) -> String;

    /// What applications are sent to now.
    ///
    /// # Errors
    /// When it cannot be read, or holds no value.
    fn get(&self) -> impl Future<Output = Result<Versioned, Error>> + Send;

    /// Replaces the value if its version is still `expected`; sent at most once.
    ///
    /// # Errors
    /// Nothing was changed.
    fn compare_and_swap(
        &self,
        expected: &Version,
        value: &Value,
    ) -> impl Future<Output = Result<Swapped, Error>> + Send;

    /// What an ambiguous swap with these arguments came to. It may be asked by another process, after any crash, any number of
    /// times. After `NotApplied` the swap does not come true any more, also if it was still on its way.
    ///
    /// # Errors
    /// When it cannot be read: as ambiguous as before.
    fn read_back(&self, expected: &Version, value: &Value) -> impl Future<Output = Result<Swapped, Error>> + Send {
        async move {
            let found = self.get().await?;
            if found.version != *expected && self.same(&found.value, value) {
                return Ok(Swapped::Applied(found.version));
            }
            Ok(Swapped::NotApplied { found: Some(found) })
        }
    }

    /// Whether two values send applications to the same place, as far as this store can tell.
    fn same(&self, one: &Value, other: &Value) -> bool {
        one == other
    }

    /// Holds clients back before a switch, where the store can. Whatever comes of it, `resume` lets them go.
    ///
    /// # Errors
    /// Nobody is held back.
    fn pause(&self, _limit: Duration) -> impl Future<Output = Result<Paused, Error>> + Send {
        async { Ok(Paused::NotNeeded) }
    }

    /// Lets the clients go, to wherever the store says by now. Idempotent; any process may do it after any crash.
    ///
    /// # Errors
    /// Clients may still be waiting, or be at the old address: the error says which.
    fn resume(&self) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }
}

/// The store that `[config_store]` names.
#[derive(Debug)]
pub enum Store {
    File(file::FileStore),
    Etcd(etcd::EtcdStore),
    Pgbouncer(Box<pgbouncer::PgbouncerStore>),
    Command(command::CommandStore),
}

impl Store {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// When the section cannot mean anything.
    pub fn new(config: &service::config::ConfigStore) -> Result<Store, Error> {
        use service::config::ConfigStore as Section;
        Ok(match config {
            Section::File { path } => Store::File(file::FileStore::new(path)),
            Section::Etcd(section) => Store::Etcd(etcd::EtcdStore::new(section)?),
            Section::Pgbouncer(section) => Store::Pgbouncer(Box::new(pgbouncer::PgbouncerStore::new(section)?)),
            Section::Command(section) => Store::Command(command::CommandStore::new(section)?),
        })
    }
}

macro_rules! each {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            Store::File($inner) => $call,
            Store::Etcd($inner) => $call,
            Store::Pgbouncer($inner) => $call,
            Store::Command($inner) => $call,
        }
    };
}

impl ConfigStore for Store {
    fn place(&self) -> String {
        each!(self, store => store.place())
    }

    async fn get(&self) -> Result<Versioned, Error> {
        each!(self, store => store.get().await)
    }

    async fn compare_and_swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        each!(self, store => store.compare_and_swap(expected, value).await)
    }

    async fn read_back(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        each!(self, store => store.read_back(expected, value).await)
    }

    fn same(&self, one: &Value, other: &Value) -> bool {
        each!(self, store => store.same(one, other))
    }

    async fn pause(&self, limit: Duration) -> Result<Paused, Error> {
        each!(self, store => store.pause(limit).await)
    }

    async fn resume(&self) -> Result<(), Error> {
        each!(self, store => store.resume().await)
    }
}
