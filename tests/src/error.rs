//! What can go wrong while starting and driving real servers. A failure names the server and carries the end of its log,
//! because the log is in a folder that is removed when the test process ends.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{what} ended with {status}{log}")]
    Ended { what: String, status: String, log: LogTail },
    #[error("{what}: not so after {seconds} s; last: {last}")]
    Deadline { what: String, seconds: u64, last: String },
    #[error("{what}: {source}{detail}")]
    Sql { what: String, detail: String, source: tokio_postgres::Error },
    #[error("{what}: {source}")]
    Kafka { what: String, source: rdkafka::error::KafkaError },
    #[error("{what}: {source}")]
    Http { what: String, source: reqwest::Error },
    #[error("{what} is missing: {}", path.display())]
    Missing { what: String, path: PathBuf },
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What a person can do about it; empty where the text says it all.
    pub fn hint(&self) -> &'static str {
        match self {
            Failure::Missing { .. } => "./dev setup, then cargo build --release --workspace",
            Failure::Io { .. } => "check that the disk has room and that this user may write there",
            Failure::Ended { .. } | Failure::Deadline { .. } => {
                "read the log above; DFLUX_KEEP=1 keeps the folder with all of it"
            }
            Failure::Sql { .. } | Failure::Kafka { .. } | Failure::Http { .. } | Failure::Other(_) => "",
        }
    }

    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        let what = what.into();
        move |source| Failure::Io { what, source }
    }

    pub fn sql(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Failure {
        let what = what.into();
        move |source| {
            // The Display of tokio_postgres::Error is "db error": what the server said is one level down.
            let detail = source.as_db_error().map(|said| format!(": {said}")).unwrap_or_default();
            Failure::Sql { what, detail, source }
        }
    }

    pub fn kafka(what: impl Into<String>) -> impl FnOnce(rdkafka::error::KafkaError) -> Failure {
        let what = what.into();
        move |source| Failure::Kafka { what, source }
    }

    pub fn http(what: impl Into<String>) -> impl FnOnce(reqwest::Error) -> Failure {
        let what = what.into();
        move |source| Failure::Http { what, source }
    }
}

/// The last lines of a log, printed under the message.
#[derive(Debug)]
pub struct LogTail(pub String);

impl std::fmt::Display for LogTail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, "; its log ends:\n{}", self.0) }
    }
}
