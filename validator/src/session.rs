//! A read-only session of one database: the pinned settings, bounded statements, snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryFutureExt as _;
use service::session::{Address, pinned_settings_sql};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Postgres, Row as _};

use crate::Error;
use crate::config::STATEMENT_SECONDS_MAX;

const APPLICATION_NAME: &str = "dflux validator";

/// A statement with its parameters.
pub type Statement = Query<'static, Postgres, PgArguments>;

/// A statement from text that this crate has composed of quoted names, quoted literals and its own expressions.
pub fn statement(sql: String) -> Statement {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

/// Where a session goes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `source` or `target`.
    pub role: &'static str,
    address: Address,
    options: PgConnectOptions,
    /// Time of statements of all its sessions, in microseconds.
    busy: Arc<AtomicU64>,
}

impl Endpoint {
    /// # Errors
    /// `Url`. Nothing is connected.
    pub fn parse(role: &'static str, url: &str) -> Result<Endpoint, Error> {
        let address = Address::parse(role, url)?;
        let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| service::Error::Url {
            role,
            url: address.printable.clone(),
            message: error.to_string(),
        })?;
        let options = options.application_name(APPLICATION_NAME).disable_statement_logging();
        Ok(Endpoint { role, address, options, busy: Arc::default() })
    }

    /// Connects once as every program of dflux does, so that what is wrong is said in the same words with the same hints.
    ///
    /// # Errors
    /// `Connect`.
    pub async fn check(&self) -> Result<(), Error> {
        self.address.connect(APPLICATION_NAME).await?;
        Ok(())
    }

    /// How long statements of all its sessions took since this was asked last.
    pub fn take_busy(&self) -> Duration {
        Duration::from_micros(self.busy.swap(0, Ordering::Relaxed))
    }

    /// # Errors
    /// `Database`.
    pub async fn open(&self) -> Result<Session, Error> {
        let failed = |source| Error::Database { role: self.role, doing: "connecting".into(), source };
        let connecting = tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&self.options));
        let silent = |_| Error::DatabaseSilent { role: self.role, doing: "connecting".into(), seconds: 10 };
        let mut connection = connecting.await.map_err(silent)?.map_err(failed)?;
        let mut settings = pinned_settings_sql();
        // Wide expressions cost more to compile than to run.
        settings.push_str(&format!(
            "SET jit = off; SET default_transaction_read_only = on; \
             SET max_parallel_workers_per_gather = 0; SET statement_timeout = '{STATEMENT_SECONDS_MAX}s'; \
             SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '{STATEMENT_SECONDS_MAX}s';"
        ));
        connection.execute(AssertSqlSafe(settings)).await.map_err(failed)?;
        Ok(Session { role: self.role, connection, in_snapshot: false, busy: self.busy.clone() })
    }
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    pub role: &'static str,
    connection: PgConnection,
    in_snapshot: bool,
    /// Of all sessions of the endpoint, in microseconds.
    busy: Arc<AtomicU64>,
}

impl Session {
    /// Begins a transaction whose statements all see the same; the first statement takes the snapshot.
    ///
    /// # Errors
    /// `Database`.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.end().await?;
        self.command("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        self.in_snapshot = true;
        Ok(())
    }

    /// Ends the snapshot, if there is one.
    ///
    /// # Errors
    /// `Database`.
    pub async fn end(&mut self) -> Result<(), Error> {
        if self.in_snapshot {
            self.in_snapshot = false;
            self.command("ROLLBACK").await?;
        }
        Ok(())
    }

    async fn command(&mut self, sql: &'static str) -> Result<(), Error> {
        let role = self.role;
        let failed = |source| Error::Database { role, doing: sql.into(), source };
        let silent = |_| Error::DatabaseSilent { role, doing: sql.into(), seconds: 30 };
        let running = tokio::time::timeout(Duration::from_secs(30), self.connection.execute(sql));
        running.await.map_err(silent)?.map_err(failed)?;
        Ok(())
    }

    /// All rows of a statement.
    ///
    /// # Errors
    /// `Database`, `DatabaseSilent`.
    pub async fn rows(&mut self, doing: &str, statement: Statement) -> Result<Vec<PgRow>, Error> {
        let role = self.role;
        let seconds = STATEMENT_SECONDS_MAX + 10;
        let running = statement.fetch_all(&mut self.connection).map_err(|source| Error::Database {
            role,
            doing: doing.to_owned(),
            source,
        });
        let silent = |_| Error::DatabaseSilent { role, doing: doing.to_owned(), seconds };
        let began = Instant::now();
        let rows = tokio::time::timeout(Duration::from_secs(seconds), running).await;
        self.busy.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        rows.map_err(silent)?
    }

    /// The only row of a statement.
    ///
    /// # Errors
    /// As `rows`; `Answer` if there is not exactly one.
    pub async fn row(&mut self, doing: &str, statement: Statement) -> Result<PgRow, Error> {
        let mut rows = self.rows(doing, statement).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (_, others) => Err(self.unexpected(doing, format!("{} rows instead of one", others + 1))),
        }
    }

    pub fn unexpected(&self, doing: &str, what: String) -> Error {
        Error::Answer { role: self.role, doing: doing.to_owned(), what }
    }

    /// A column of a row.
    ///
    /// # Errors
    /// `Answer` if it is of another type.
    pub fn get<'r, T>(&self, doing: &str, row: &'r PgRow, at: usize) -> Result<T, Error>
    where
        T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        row.try_get(at).map_err(|error| self.unexpected(doing, error.to_string()))
    }
}
