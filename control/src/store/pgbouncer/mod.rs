//! An entry of `[databases]` in PgBouncer's configuration. Its clients see a pause and no error: they wait in PgBouncer while
//! the server behind it is exchanged.
//!
//! ```text
//! pause                PAUSE "db" on a console of its own; on another, SHOW DATABASES until it is paused with no connection left
//!   not in time        RESUME on the first console, where it comes after the PAUSE for certain, and an error (or KILL, if so set)
//! compare_and_swap     only while it is paused: the entry in the file, as `replace` does it. PgBouncer has not read it yet.
//! resume               RELOAD, SET server_login_retry, RESUME "db", SHOW DATABASES: sent together; then it is checked
//! ```
//!
//! What of PgBouncer's ways is behind this (seen in its source, and in the tests):
//! - PAUSE waits for ever for a client that holds its connection, and that wait cannot be called off: after a RESUME the console
//!   that sent it gets no answer any more (pgbouncer#369, #715). So the answer is not waited for; the state is looked at.
//! - A client that logs in between RELOAD and RESUME makes PgBouncer connect to the new server, and the pause closes that at
//!   once: it counts as a failed login, for which the pool is closed `server_login_retry` long, 15 s (pgbouncer#498). So RELOAD
//!   and RESUME come in one turn of its loop, and the retry is shortened until the pool is up, against those that come from the
//!   pause itself. This is why the file is written first and loaded last, and why it is checked after RESUME: should PgBouncer
//!   not have taken it, clients are at the old server, whose fence answers them.
//! - Until 1.24 a RELOAD that fails says RELOAD all the same, so SHOW DATABASES decides; and one with TLS to the servers renews
//!   the connections of all databases (pgbouncer#1145, #1157). So there is one RELOAD, and none to abort.
//! - RECONNECT leaves a client its connection until it lets go of it (pgbouncer#1311). After a whole pause there is none.
//!
//! It never leaves clients waiting on a path of its own: should this process be killed, any `resume` frees them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use service::config::Held;
use service::session::Address as Url;
use tokio::sync::{Mutex, oneshot};

use self::address::{Address, address, url};
use self::console::{Console, Row, Running};
use self::ini::{Entry, Fault};
use super::file::off_the_runtime;
use super::replace::{self, Locked, NO_CRASH, Outcome, Seen};
use super::value::fingerprint;
use super::{ConfigStore, Error, Paused, Swapped, Value, Version, Versioned};

mod address;
mod console;
mod hold;
mod ini;
mod release;

const LOOKS_EVERY: Duration = Duration::from_millis(5);
/// For what PgBouncer does in one turn of its loop, and for a pool to come up.
const SOON: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct PgbouncerStore {
    admin: Url,
    ini: PathBuf,
    database: String,
    held: Held,
    /// The console of the pause: a login costs milliseconds, and now clients wait.
    kept: Arc<Mutex<Option<Console>>>,
}

/// The file as it was read, and the entry in it.
struct Found {
    seen: Seen,
    text: String,
    entry: Entry,
}

impl PgbouncerStore {
    /// # Errors
    /// `ConsoleConnect` if `admin_url` is no URL.
    pub fn new(section: &service::config::Pgbouncer) -> Result<PgbouncerStore, Error> {
        let admin = Url::parse("pgbouncer", &section.admin_url).map_err(|source| Error::ConsoleConnect { source })?;
        let (ini, database) = (section.ini.clone(), section.database.clone());
        if database.is_empty() || database == "*" {
            return Err(Error::Section { key: "database", reason: "name an entry; `*` stands for many".into() });
        }
        Ok(PgbouncerStore { admin, ini, database, held: section.held, kept: Arc::default() })
    }

    fn fault(&self, fault: Fault) -> Error {
        let path = self.ini.clone();
        match fault {
            Fault::NoEntry => Error::NoEntry { path, database: self.database.clone() },
            Fault::Line { line, reason } => Error::Entry { path, line, reason },
        }
    }

    fn find(&self, seen: Seen) -> Result<Found, Error> {
        let text = String::from_utf8(seen.content.clone()).map_err(|_| Error::NotAValue {
            place: self.ini.display().to_string(),
            reason: "it is not UTF-8".into(),
        })?;
        let entry = Entry::find(&text, &self.database).map_err(|fault| self.fault(fault))?;
        Ok(Found { seen, text, entry })
    }

    /// What the file says, whatever PgBouncer has read of it.
    async fn written(&self) -> Result<(Versioned, Address), Error> {
        let store = self.clone();
        off_the_runtime(move || {
            let found = store.find(replace::read(&store.ini)?)?;
            Ok((store.versioned(&found.entry)?, found.entry.address()))
        })
        .await
    }

    /// The version is that of the entry, so that somebody may change another one meanwhile.
    fn versioned(&self, entry: &Entry) -> Result<Versioned, Error> {
        let value = url(&self.place(), &entry.address())?;
        let version = Version(fingerprint(&entry.without_password()));
        Ok(Versioned { value, version })
    }

    fn swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let address = address(value)?;
        let locked = Locked::take(&self.ini)?;
        let found = self.find(locked.read()?)?;
        let versioned = self.versioned(&found.entry)?;
        if versioned.version != *expected {
            return Ok(Swapped::NotApplied { found: Some(versioned) });
        }
        let text = found.entry.rewritten(&found.text, &address).map_err(|fault| self.fault(fault))?;
        // PgBouncer reads by the same rules; that both agree is not left to hope.
        let now = Entry::find(&text, &self.database).map_err(|fault| self.fault(fault))?;
        Ok(match locked.replace(&found.seen, text.as_bytes(), &NO_CRASH)? {
            Outcome::Done(_) => Swapped::Applied(self.versioned(&now)?.version),
            Outcome::Changed => {
                let found = locked.read().and_then(|seen| self.find(seen));
                Swapped::NotApplied { found: found.and_then(|found| self.versioned(&found.entry)).ok() }
            }
            Outcome::Unsure(why) => Swapped::Ambiguous { why },
        })
    }

    fn not_loaded(&self, file: &Address, running: &Running) -> Error {
        let database = self.database.clone();
        Error::NotLoaded { database, path: self.ini.clone(), file: file.to_string(), running: running.to_string() }
    }

    /// Waits until PgBouncer is as `enough` says, for so long.
    async fn until(
        &self,
        console: &Console,
        limit: Duration,
        enough: impl Fn(&Running) -> bool,
    ) -> Result<bool, Error> {
        let ends = Instant::now() + limit;
        loop {
            if enough(&console.running(&self.database).await?) {
                return Ok(true);
            }
            if Instant::now() >= ends {
                return Ok(false);
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }

    /// The console that was kept, if it still answers, or a new one; and how the database runs.
    async fn console(&self) -> Result<(Console, Running), Error> {
        let kept = self.kept.lock().await.take();
        if let Some(console) = kept
            && let Ok(running) = console.running(&self.database).await
        {
            return Ok((console, running));
        }
        let console = Console::connect(&self.admin).await?;
        let running = console.running(&self.database).await?;
        Ok((console, running))
    }

    async fn keep(&self, console: Console) {
        *self.kept.lock().await = Some(console);
    }

    fn ours(&self, row: &Row) -> bool {
        row.get("database") == Some(&self.database)
    }
}

impl ConfigStore for PgbouncerStore {
    fn place(&self) -> String {
        format!("entry {} of PgBouncer ({})", self.database, self.ini.display())
    }

    async fn get(&self) -> Result<Versioned, Error> {
        let (versioned, file) = self.written().await?;
        let running = Console::connect(&self.admin).await?.running(&self.database).await?;
        if sends_to(&running, &file) { Ok(versioned) } else { Err(self.not_loaded(&file, &running)) }
    }

    /// `Applied`: it is in the file, and `resume` makes PgBouncer read it.
    async fn compare_and_swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let (console, running) = self.console().await?;
        if !running.paused {
            return Err(Error::NotPaused { database: self.database.clone() });
        }
        self.keep(console).await;
        let (store, expected, value) = (self.clone(), expected.clone(), value.clone());
        off_the_runtime(move || store.swap(&expected, &value)).await
    }

    /// Of the file: before `resume` PgBouncer itself still has the address before, and `get` says so.
    async fn read_back(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let (found, _) = self.written().await?;
        if found.version != *expected && self.same(&found.value, value) {
            return Ok(Swapped::Applied(found.version));
        }
        Ok(Swapped::NotApplied { found: Some(found) })
    }

    /// By host, port and database: an entry has no more, and clients bring their users.
    fn same(&self, one: &Value, other: &Value) -> bool {
        match (address(one), address(other)) {
            (Ok(one), Ok(other)) => (one.host, one.port, one.database) == (other.host, other.port, other.database),
            _ => false,
        }
    }

    async fn pause(&self, limit: Duration) -> Result<Paused, Error> {
        let store = self.clone();
        let (sender, receiver) = oneshot::channel();
        let (taken, was_taken) = oneshot::channel();
        // A task of its own: it takes the pause back also when its caller is gone before it has taken the answer.
        tokio::spawn(async move {
            let held = store.hold(limit).await;
            let holds = held.is_ok();
            // Nobody there to take it is told by the other channel.
            let _ = sender.send(held);
            if holds
                && was_taken.await.is_err()
                && let Err(error) = store.release().await
            {
                tracing::error!(error = service::report(&error, None), "PgBouncer was paused and could not be resumed");
            }
        });
        let held = receiver.await.unwrap_or_else(|_| {
            let why = "the task that pauses it ended".to_owned();
            Err(Error::StillPaused { database: self.database.clone(), why })
        });
        let _ = taken.send(());
        held
    }

    async fn resume(&self) -> Result<(), Error> {
        self.release().await
    }
}

fn sends_to(running: &Running, file: &Address) -> bool {
    running.host == file.host && running.port == file.port && running.database == file.database
}
