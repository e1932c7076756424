//! Holding PgBouncer's clients back until no connection to the server is left, or letting them go in time.
//!
//! PAUSE goes out on a console of its own and its answer is not waited for (the header of the module above tells why).

use std::time::{Duration, Instant};

use service::config::Held;

use super::console::{Console, Row, Running, quoted};
use super::{LOOKS_EVERY, PgbouncerStore, SOON};
use crate::store::{Error, Paused};

/// How long a login on its way is waited for before the pause, which would make it count as failed.
const LOGINS_WITHIN: Duration = Duration::from_millis(500);

impl PgbouncerStore {
    /// # Errors
    /// Nobody waits, or it is `StillPaused`.
    pub(super) async fn hold(&self, limit: Duration) -> Result<Paused, Error> {
        let (watch, pause) = (Console::connect(&self.admin).await?, Console::connect(&self.admin).await?);
        let quiet = Instant::now() + LOGINS_WITHIN.min(limit);
        while Instant::now() < quiet && self.servers(&watch, |state| state == "new").await? > 0 {
            tokio::time::sleep(LOOKS_EVERY).await;
        }
        match self.hold_with(&watch, &pause, limit).await {
            Ok(Some(paused)) => {
                self.keep(watch).await;
                Ok(paused)
            }
            Ok(None) => {
                let holders = self.holders(&watch).await;
                self.let_go(&watch, pause).await?;
                Err(Error::PauseHeld { database: self.database.clone(), seconds: limit.as_secs(), holders })
            }
            Err(error) => {
                self.let_go(&watch, pause).await?;
                Err(error)
            }
        }
    }

    /// `None`: not in time.
    async fn hold_with(&self, watch: &Console, pause: &Console, limit: Duration) -> Result<Option<Paused>, Error> {
        let command = format!("PAUSE {}", quoted(&self.database));
        let refused = async {
            match pause.send(&command).await {
                Err(error) => error,
                Ok(_) => std::future::pending().await,
            }
        };
        let held = |running: &Running| running.paused && running.connections == 0;
        let in_time = tokio::select! {
            error = refused => return Err(error),
            in_time = self.until(watch, limit, held) => in_time?,
        };
        if in_time {
            return Ok(Some(Paused::Held { ended: 0 }));
        }
        if self.held == Held::Resume {
            return Ok(None);
        }
        let clients = watch.run("SHOW CLIENTS").await?;
        let ended = clients.iter().filter(|row| self.ours(row)).count();
        watch.run(&format!("KILL {}", quoted(&self.database))).await?;
        Ok(self.until(watch, SOON, held).await?.then_some(Paused::Held { ended }))
    }

    /// Takes the pause back. On the console that paused, since the commands of two consoles have no order: a PgBouncer that
    /// stood still could take the PAUSE up after the RESUME.
    async fn let_go(&self, watch: &Console, pause: Console) -> Result<(), Error> {
        let stuck = |why: String| Error::StillPaused { database: self.database.clone(), why };
        let command = format!("RESUME {}", quoted(&self.database));
        // The answer is not waited for: it is taken for that of the PAUSE.
        let _ = tokio::time::timeout(LOOKS_EVERY, pause.send(&command)).await;
        let free = |running: &Running| !running.paused;
        let outcome = match self.until(watch, SOON, free).await {
            Ok(true) => return Ok(()),
            Ok(false) => watch.run(&command).await.map(|_| ()),
            Err(error) => Err(error),
        };
        outcome.map_err(|error| stuck(service::report(&error, None)))
    }

    async fn servers(&self, console: &Console, state: impl Fn(&str) -> bool) -> Result<usize, Error> {
        let rows = console.run("SHOW SERVERS").await?;
        Ok(rows.iter().filter(|row| self.ours(row) && row.get("state").is_some_and(|found| state(found))).count())
    }

    /// Who holds connections, for a person.
    async fn holders(&self, console: &Console) -> String {
        let rows = console.run("SHOW SERVERS").await.unwrap_or_default();
        let column = |row: &Row, name: &str| row.get(name).cloned().unwrap_or_default();
        let named = rows.iter().filter(|row| self.ours(row) && column(row, "state") == "active");
        let mut named: Vec<String> =
            named.map(|row| format!("{} {}", column(row, "user"), column(row, "application_name"))).collect();
        let count = named.len();
        named.sort();
        named.dedup();
        named.truncate(5);
        format!("{count} connection(s) held by {}", named.join(", "))
    }
}
