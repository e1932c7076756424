//! PgBouncer's admin console: a session in the database `pgbouncer` that knows the simple query protocol alone.
//!
//! Commands that are sent together are carried out together, in one turn of PgBouncer's loop: no client comes in between.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use service::session::Address;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::store::Error;

const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A row by its columns' names, which are more with each version.
pub type Row = BTreeMap<String, String>;

#[derive(Debug)]
pub struct Console {
    client: Client,
}

/// A database as PgBouncer runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// `None`: its default folder of sockets.
    pub host: Option<String>,
    pub port: String,
    pub database: String,
    pub paused: bool,
    /// Connections to the server, in whatever state.
    pub connections: usize,
}

impl std::fmt::Display for Running {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}/{}", self.host.as_deref().unwrap_or("(socket)"), self.port, self.database)
    }
}

impl Console {
    /// # Errors
    /// `ConsoleConnect`, `ConsoleSlow`.
    pub async fn connect(address: &Address) -> Result<Console, Error> {
        let connect = async { address.connect_plain("dflux").await.map_err(|source| Error::ConsoleConnect { source }) };
        Ok(Console { client: within("the login", connect).await? })
    }

    /// Waits for the answer as long as it takes: `PAUSE` may never give one.
    ///
    /// # Errors
    /// `Console`.
    pub async fn send(&self, command: &str) -> Result<Vec<Row>, Error> {
        let answer = self.client.simple_query(command).await;
        let messages = answer.map_err(|source| Error::Console { command: command.to_owned(), source })?;
        Ok(messages.iter().filter_map(row).collect())
    }

    /// # Errors
    /// `Console`, `ConsoleSlow`.
    pub async fn run(&self, command: &str) -> Result<Vec<Row>, Error> {
        within(command, self.send(command)).await
    }

    /// Sends all at once and returns the answer of each, in their order.
    ///
    /// # Errors
    /// `ConsoleSlow`: any of them may have been carried out.
    pub async fn together(&self, commands: &[String]) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        // They are polled in their order, which queues each for the connection before the first answer is waited for.
        let all = join_all(commands.iter().map(|command| self.send(command)));
        within(&commands.join("; "), async { Ok(all.await) }).await
    }

    /// # Errors
    /// As `run`; `ConsoleAnswer` when PgBouncer has no such database.
    pub async fn running(&self, database: &str) -> Result<Running, Error> {
        running(&self.run(SHOW_DATABASES).await?, database)
    }
}

pub const SHOW_DATABASES: &str = "SHOW DATABASES";

/// # Errors
/// `ConsoleAnswer`.
pub fn running(rows: &[Row], database: &str) -> Result<Running, Error> {
    let malformed = |message: String| Error::ConsoleAnswer { command: SHOW_DATABASES.to_owned(), message };
    let row = rows.iter().find(|row| row.get("name").is_some_and(|name| name == database));
    let row = row.ok_or_else(|| malformed(format!("it has no database {database}")))?;
    let text = |column: &str| row.get(column).cloned().ok_or_else(|| malformed(format!("no column {column}")));
    let connections = text("current_connections")?;
    Ok(Running {
        host: row.get("host").cloned(),
        port: text("port")?,
        database: text("database")?,
        paused: text("paused")? != "0",
        connections: connections.parse().map_err(|_| malformed(format!("{connections} connections")))?,
    })
}

/// A name as the console takes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Without the columns that are null.
fn row(message: &SimpleQueryMessage) -> Option<Row> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let named = row.columns().iter().enumerate();
    Some(named.filter_map(|(at, column)| Some((column.name().to_owned(), row.get(at)?.to_owned()))).collect())
}

async fn within<T>(command: &str, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWERS_WITHIN, answer).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::ConsoleSlow { command: command.to_owned(), seconds: ANSWERS_WITHIN.as_secs() }),
    }
}
