//! One session with a PostgreSQL server, for tests: everything goes as text (the simple protocol), so that PostgreSQL
//! renders and judges values and not the code under test. Synchronous from any thread, also inside an async test.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{Failure, Result};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A row as text; `None` is null.
pub type Row = Vec<Option<String>>;

/// A connected session. It ends when it is dropped.
#[derive(Debug)]
pub struct Session {
    client: std::sync::Arc<Client>,
    name: String,
}

impl Session {
    /// Connects without TLS.
    ///
    /// # Errors
    /// What the server or the network said.
    pub fn connect(url: &str) -> Result<Session> {
        let mut config: tokio_postgres::Config = url.parse().map_err(Failure::sql(format!("reading the URL {url}")))?;
        config.connect_timeout(CONNECT_LIMIT);
        let name = config.get_dbname().unwrap_or_default().to_owned();
        let client = blocking(async move {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        })
        .map_err(Failure::sql(format!("connecting to {}", without_password(url))))?;
        Ok(Session { client: std::sync::Arc::new(client), name })
    }

    /// Runs any number of statements, as one implicit transaction if they hold no transaction command.
    ///
    /// # Errors
    /// What the server said, with the statement.
    pub fn run(&self, statements: &str) -> Result<()> {
        self.rows(statements).map(|_| ())
    }

    /// Runs statements and returns all rows of all of them.
    ///
    /// # Errors
    /// What the server said, with the statement.
    pub fn rows(&self, statements: &str) -> Result<Vec<Row>> {
        let (client, text) = (self.client.clone(), statements.to_owned());
        let messages = blocking(async move { client.simple_query(&text).await });
        let messages =
            messages.map_err(Failure::sql(format!("in database {}: {}", self.name, shortened(statements))))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first column of the only row.
    ///
    /// # Errors
    /// What the server said; also when there is not exactly one row, or the value is null.
    pub fn value(&self, query: &str) -> Result<String> {
        match self.rows(query)?.as_slice() {
            [row] => row
                .first()
                .cloned()
                .flatten()
                .ok_or_else(|| Failure::Other(format!("{}: the value is null", shortened(query)))),
            rows => Err(Failure::Other(format!("{}: {} rows instead of one", shortened(query), rows.len()))),
        }
    }

    /// The value of the only row as a number.
    ///
    /// # Errors
    /// As `value`; also when it is no number.
    pub fn number(&self, query: &str) -> Result<i64> {
        let value = self.value(query)?;
        value.parse().map_err(|_| Failure::Other(format!("{}: {value:?} is no number", shortened(query))))
    }

    /// The first column of all rows; null is the empty string.
    ///
    /// # Errors
    /// What the server said.
    pub fn column(&self, query: &str) -> Result<Vec<String>> {
        let rows = self.rows(query)?;
        Ok(rows.into_iter().map(|row| row.into_iter().next().flatten().unwrap_or_default()).collect())
    }

    /// The asynchronous client beneath, for what is not here (COPY, parameters). It may be awaited in any runtime.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// A URL that may be shown.
pub fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            let user = url[scheme + 3..at].split(':').next().unwrap_or_default();
            format!("{}{user}{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

fn shortened(statement: &str) -> String {
    if statement.chars().count() <= 300 {
        return statement.to_owned();
    }
    statement.chars().take(300).chain("…".chars()).collect()
}

/// Runs a future on the harness's own runtime and waits for it on this thread. `Runtime::block_on` would panic inside
/// an asynchronous test; a channel does not.
pub(crate) fn blocking<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime can be made")
    });
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let _asker_gone = sender.send(future.await);
    });
    receiver.recv().expect("the future runs to its end")
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(without_password("postgresql://me:secret@127.0.0.1:5/db"), "postgresql://me@127.0.0.1:5/db");
        assert_eq!(without_password("postgresql://me:s@cret@127.0.0.1:5/db"), "postgresql://me@127.0.0.1:5/db");
        assert_eq!(without_password("postgresql://127.0.0.1:5/db"), "postgresql://127.0.0.1:5/db");
    }
}
