//! A real PgBouncer on loopback, as user postgres, its log and its configuration in a folder of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::postgres::PASSWORD;
use crate::process::{Launch, Life};
use crate::server::Place;
use crate::sql::Session;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(30);
const OPERATING_SYSTEM_USER: &str = "postgres";
/// The user of its console, with `PASSWORD`.
const ADMIN: &str = "bouncer";

/// It ends when this is dropped.
#[derive(Debug)]
pub struct Pgbouncer {
    folder: PathBuf,
    port: u16,
    place: Place,
}

impl Pgbouncer {
    /// Starts one; returns when its console answers. `databases` are lines of `[databases]`, `settings` lines of `[pgbouncer]`;
    /// user `postgres` logs in with `PASSWORD`, here and at the server.
    ///
    /// # Errors
    /// When it cannot be fetched, or did not come up, with its log.
    pub fn start(databases: &str, settings: &str) -> Result<Pgbouncer> {
        let bouncer =
            Pgbouncer { folder: scratch::folder("pgbouncer")?, port: ports::free()?, place: Place::new(Life::Bound) };
        let users = format!("\"postgres\" \"{PASSWORD}\"\n\"{ADMIN}\" \"{PASSWORD}\"\n");
        let configuration = format!(
            "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\nadmin_users = {ADMIN}\nmax_client_conn = 1000\n{settings}\n",
            bouncer.port,
            bouncer.folder.join("users.txt").display(),
        );
        for (path, text) in [(bouncer.folder.join("users.txt"), users), (bouncer.ini(), configuration)] {
            std::fs::write(&path, text).map_err(Failure::io(format!("writing {}", path.display())))?;
        }
        bouncer.start_again()?;
        Ok(bouncer)
    }

    /// # Errors
    /// When it did not come up, with its log.
    pub fn start_again(&self) -> Result<()> {
        let launch = || {
            let program = cache::part(&["pgbouncer"])?.join("pgbouncer");
            let ini = self.ini().display().to_string();
            Ok(Launch::new("pgbouncer", program, &self.folder).arguments([ini]).user(OPERATING_SYSTEM_USER))
        };
        self.place.start(STARTED_WITHIN, launch, || self.console().map(|_| ()))
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.place.kill();
    }

    /// SIGSTOP: connections are made and no command is answered.
    ///
    /// # Errors
    /// When it runs on.
    pub fn pause_process(&self) -> Result<()> {
        self.place.freeze()
    }

    pub fn resume_process(&self) {
        self.place.signal(Signal::SIGCONT);
    }

    pub fn ini(&self) -> PathBuf {
        self.folder.join("pgbouncer.ini")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.join("pgbouncer.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The URL of the console.
    pub fn admin_url(&self) -> String {
        format!("postgresql://{ADMIN}:{PASSWORD}@127.0.0.1:{}/pgbouncer", self.port)
    }

    /// The URL of clients.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// A session of the console.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn console(&self) -> Result<Session> {
        Session::connect(&self.admin_url())
    }
}
