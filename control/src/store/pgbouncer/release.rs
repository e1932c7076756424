//! Letting PgBouncer's clients go, to where the file says, in one turn of its loop.
//!
//! Whatever else fails, RESUME is sent.

use std::time::Instant;

use super::console::{Console, Row, SHOW_DATABASES, quoted, running};
use super::{LOOKS_EVERY, PgbouncerStore, SOON, sends_to};
use crate::store::Error;

/// Seconds after which a pool whose login failed tries again, until it is up.
const LOGIN_RETRY: &str = "0.02";

impl PgbouncerStore {
    /// # Errors
    /// Clients wait, or are at the old server.
    pub(super) async fn release(&self) -> Result<(), Error> {
        let stuck =
            |error: Error| Error::StillPaused { database: self.database.clone(), why: service::report(&error, None) };
        let written = self.written().await;
        let (console, before) = self.console().await.map_err(stuck)?;
        let reload = written.as_ref().is_ok_and(|(_, file)| !sends_to(&before, file));
        if reload || before.paused {
            self.load_and_release(&console, reload).await?;
        }
        // A file that cannot be read holds nobody back; it is told now.
        let (_, file) = written?;
        let now = console.running(&self.database).await?;
        if now.paused {
            return Err(Error::StillPaused { database: self.database.clone(), why: "somebody paused it again".into() });
        }
        if sends_to(&now, &file) { Ok(()) } else { Err(self.not_loaded(&file, &now)) }
    }

    /// In one turn of PgBouncer's loop (see the module's header).
    async fn load_and_release(&self, console: &Console, reload: bool) -> Result<(), Error> {
        let stuck =
            |error: Error| Error::StillPaused { database: self.database.clone(), why: service::report(&error, None) };
        let mut commands: Vec<String> = reload.then(|| "RELOAD".to_owned()).into_iter().collect();
        commands.push("SHOW CONFIG".to_owned());
        commands.push(format!("SET server_login_retry = '{LOGIN_RETRY}'"));
        commands.push(format!("RESUME {}", quoted(&self.database)));
        commands.push(SHOW_DATABASES.to_owned());
        let mut answers = console.together(&commands).await.map_err(stuck)?;
        let now = answers.pop().unwrap_or_else(|| Ok(Vec::new())).map_err(stuck)?;
        let resumed = answers.pop().unwrap_or_else(|| Ok(Vec::new()));
        if running(&now, &self.database).map_err(stuck)?.paused {
            let why =
                resumed.err().map_or_else(|| "it says that it resumed".into(), |error| service::report(&error, None));
            return Err(Error::StillPaused { database: self.database.clone(), why });
        }
        let config = answers.get(commands.len() - 4).and_then(|answer| answer.as_ref().ok());
        self.restore(console, config).await;
        if reload { self.outlive(console).await } else { Ok(()) }
    }

    /// Waits until the connections to the address before are gone. After a whole pause there are none; but somebody may have
    /// resumed in between, and then a client has its own until it lets go of it.
    async fn outlive(&self, console: &Console) -> Result<(), Error> {
        let ends = Instant::now() + SOON;
        loop {
            let servers = console.run("SHOW SERVERS").await?;
            let outdated = |row: &&Row| self.ours(row) && row.get("close_needed").is_some_and(|needed| needed != "0");
            match servers.iter().filter(outdated).count() {
                0 => return Ok(()),
                count if Instant::now() >= ends => {
                    return Err(Error::Survivors { database: self.database.clone(), count });
                }
                _ => tokio::time::sleep(LOOKS_EVERY).await,
            }
        }
    }

    /// Waits until a connection is up or nobody asks for one, and puts `server_login_retry` back.
    async fn restore(&self, console: &Console, config: Option<&Vec<Row>>) {
        let number = |row: &Row, column: &str| row.get(column).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let ends = Instant::now() + SOON;
        while Instant::now() < ends {
            let Ok(pools) = console.run("SHOW POOLS").await else { break };
            let served =
                |row: &Row| ["sv_active", "sv_idle", "sv_used", "sv_tested"].iter().any(|state| number(row, state) > 0);
            if pools.iter().filter(|row| self.ours(row)).all(|row| served(row) || number(row, "cl_waiting") == 0) {
                break;
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
        let mut rows = config.into_iter().flatten();
        let row = rows.find(|row| row.get("key").is_some_and(|key| key == "server_login_retry"));
        let Some(before) = row.and_then(|row| row.get("value")) else { return };
        if let Err(error) = console.run(&format!("SET server_login_retry = '{before}'")).await {
            // It does no harm: a server that is down is asked more often, until the next RELOAD.
            tracing::warn!(%error, "server_login_retry of PgBouncer is still short; RELOAD on its console sets it back");
        }
    }
}
