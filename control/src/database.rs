//! A session with one of the two databases that names its role and the question in every error.

use service::session::Address;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::Error;

pub type Parameter<'a> = &'a (dyn ToSql + Sync);

#[derive(Debug)]
pub struct Database {
    pub role: &'static str,
    pub client: Client,
}

impl Database {
    /// # Errors
    /// `Service` with the server's words.
    pub async fn connect(role: &'static str, url: &str) -> Result<Database, Error> {
        let client = Address::parse(role, url)?.connect("dflux").await?;
        Ok(Database { role, client })
    }

    /// `what` completes "the … could not be …" in the error.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn rows(&self, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        self.client.query(sql, parameters).await.map_err(|source| self.failed(what, source))
    }

    /// # Errors
    /// `Sql`, also when there is not exactly one row.
    pub async fn row(&self, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, Error> {
        self.client.query_one(sql, parameters).await.map_err(|source| self.failed(what, source))
    }

    /// # Errors
    /// `Sql`.
    pub async fn execute(&self, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, Error> {
        self.client.execute(sql, parameters).await.map_err(|source| self.failed(what, source))
    }

    /// # Errors
    /// `Sql`.
    pub async fn batch(&self, what: &str, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|source| self.failed(what, source))
    }

    /// A batch that begins and commits a transaction of its own; one that fails leaves it not open.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn transaction(&self, what: &str, sql: &str) -> Result<(), Error> {
        let done = self.batch(what, sql).await;
        if done.is_err() {
            self.batch("ending a transaction", "ROLLBACK").await?;
        }
        done
    }

    /// Whether a relation exists, by its quoted name.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn has(&self, quoted: &str) -> Result<bool, Error> {
        let row = self.row(quoted, "SELECT to_regclass($1::text) IS NOT NULL", &[&quoted]).await?;
        self.get(&row, 0)
    }

    /// A column of a row: a catalog that answers with another type is an error and no panic.
    ///
    /// # Errors
    /// `Sql`.
    pub fn get<'a, T: tokio_postgres::types::FromSql<'a>>(&self, row: &'a Row, column: usize) -> Result<T, Error> {
        row.try_get(column).map_err(|source| self.failed("an answer has another type than expected", source))
    }

    /// Whether its user may set `session_replication_role`, without which triggers, rules and foreign keys fire on what the
    /// lane applies. Tried in a transaction that is rolled back: the right comes in several ways, by version.
    ///
    /// # Errors
    /// `Sql` if the session is lost.
    pub async fn may_replicate(&self) -> Result<bool, Error> {
        let tried = "BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK";
        if self.client.batch_execute(tried).await.is_ok() {
            return Ok(true);
        }
        // The failed statement leaves the transaction open.
        self.batch("ending a transaction", "ROLLBACK").await?;
        Ok(false)
    }

    /// The command that gives that right.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn replicate_hint(&self) -> Result<String, Error> {
        let sql = "SELECT pg_catalog.quote_ident(current_user), pg_catalog.current_setting('server_version_num')::int";
        let row = self.row("its user", sql, &[]).await?;
        let (user, version): (String, i32) = (self.get(&row, 0)?, self.get(&row, 1)?);
        Ok(if version >= 150_000 {
            format!(
                "GRANT SET ON PARAMETER session_replication_role TO {user} on the {}, then dflux prepare",
                self.role
            )
        } else {
            format!("name a superuser in [{}] url, restart the consumer, then dflux prepare", self.role)
        })
    }

    /// The command that lets its user pass row security by.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn bypass_hint(&self) -> Result<String, Error> {
        let row = self.row("its user", "SELECT pg_catalog.quote_ident(current_user)", &[]).await?;
        let user: String = self.get(&row, 0)?;
        Ok(format!("ALTER ROLE {user} BYPASSRLS on the {}, then dflux prepare", self.role))
    }

    pub fn failed(&self, what: &str, source: tokio_postgres::Error) -> Error {
        Error::Sql { role: self.role, what: what.to_owned(), source }
    }
}
