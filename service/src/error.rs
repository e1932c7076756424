//! What can go wrong in the shell, and how any program's error is printed: text, causes, hint.

use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {path}")]
    ConfigRead { path: PathBuf, source: std::io::Error },
    #[error("configuration {path}: {message}")]
    ConfigInvalid { path: PathBuf, message: String },
    #[error("{role} database: `{url}` is not a PostgreSQL URL: {message}")]
    Url { role: &'static str, url: String, message: String },
    #[error("{role} database at {address}: cannot connect")]
    Connect { role: &'static str, address: String, source: tokio_postgres::Error },
    #[error("{role} database: TLS cannot be set up: {message}")]
    Tls { role: &'static str, message: String },
    #[error("Kafka at {brokers}: {message}")]
    Kafka { brokers: String, message: String },
    #[error("[kafka] properties: {name} is set by dflux and cannot be changed")]
    KafkaProperty { name: String },
    #[error("schema registry at {url} does not answer")]
    Registry { url: String, source: reqwest::Error },
    #[error("schema registry at {url} refused {what}: HTTP {status}: {message}")]
    RegistryRefused { url: String, what: String, status: u16, message: String },
    #[error("the process cannot start")]
    Runtime { source: std::io::Error },
    #[error("metrics cannot be recorded: {message}")]
    Metrics { message: String },
    #[error("cannot listen on {address} for /metrics, /health and /ready")]
    Listen { address: String, source: std::io::Error },
}

/// An error that knows what a person can do about it.
pub trait Hint {
    /// The very command, where there is one.
    fn hint(&self) -> Option<String>;
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::ConfigRead { .. } => {
                "name the file with --config, or make ./dflux.toml (README, \"Configuration\")".into()
            }
            Error::ConfigInvalid { .. } => "README, \"Configuration\", lists every section and key".into(),
            Error::Url { .. } => "write postgresql://user:password@host:5432/database?sslmode=require".into(),
            Error::Connect { role, source, .. } => connect_hint(role, source),
            Error::Tls { .. } => "check sslmode and sslrootcert in the URL".into(),
            Error::Kafka { .. } => "check [kafka] brokers and properties, and that a broker is up".into(),
            Error::KafkaProperty { name } => format!("remove {name} from [kafka] properties"),
            Error::Registry { .. } => "check [registry] url and that the registry is up".into(),
            Error::RegistryRefused { .. } => {
                "check [registry] url (its Confluent-compatible API) and the subject's compatibility rule".into()
            }
            Error::Runtime { .. } => "check the limits of the process (ulimit -a)".into(),
            Error::Metrics { .. } => return None,
            Error::Listen { .. } => {
                "set `listen` in the program's section to a free address, or end the other program".into()
            }
        })
    }
}

impl Error {
    /// Whether the same call may go through later without anybody doing anything.
    pub fn transient(&self) -> bool {
        match self {
            Error::Connect { source, .. } => {
                let starting = [
                    tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW,
                    tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS,
                ];
                source.code().is_none_or(|code| starting.contains(code))
            }
            Error::Kafka { .. } | Error::Registry { .. } => true,
            Error::RegistryRefused { status, .. } => *status >= 500,
            Error::ConfigRead { .. }
            | Error::ConfigInvalid { .. }
            | Error::Url { .. }
            | Error::Tls { .. }
            | Error::KafkaProperty { .. }
            | Error::Runtime { .. }
            | Error::Metrics { .. }
            | Error::Listen { .. } => false,
        }
    }
}

fn connect_hint(role: &str, error: &tokio_postgres::Error) -> String {
    match error.code().map(|code| code.code()) {
        Some("28P01") => format!("correct the user or password in [{role}] url"),
        Some("28000") => {
            "add a line for this user, database and address to pg_hba.conf, then SELECT pg_reload_conf()".into()
        }
        Some("3D000") => format!("correct the database in [{role}] url, or CREATE DATABASE it"),
        Some("53300") => "raise max_connections, or end idle sessions".into(),
        _ => format!("check host and port in [{role}] url and that the server accepts connections"),
    }
}

/// One rendered report of an error: what happened, its causes, and the hint, for standard error.
pub fn report(error: &(dyn std::error::Error + 'static), hint: Option<String>) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let this = error.to_string();
        // Wrappers that print their source too would say everything twice.
        if !last.contains(&this) {
            let _ = write!(text, "\n  caused by: {this}");
        }
        last = this;
        cause = error.source();
    }
    if let Some(hint) = hint {
        let _ = write!(text, "\nhint: {hint}");
    }
    text
}
