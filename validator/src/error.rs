//! What can go wrong, with its remedy. An error is never a match: a table that meets one has the verdict `error`.

use service::Hint;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Service(#[from] service::Error),
    #[error("{role} database: {doing}: {source}")]
    Database { role: &'static str, doing: String, source: sqlx::Error },
    #[error("{role} database: {doing}: no answer within {seconds} s")]
    DatabaseSilent { role: &'static str, doing: String, seconds: u64 },
    #[error("{role} database: {doing}: unexpected answer: {what}")]
    Answer { role: &'static str, doing: String, what: String },
    #[error("change event of {table} at {position} cannot be read: {source}")]
    Event { table: String, position: String, source: Box<changelog::Error> },
    #[error("topic {topic}: {message}")]
    Topic { topic: String, message: String },
    #[error("the reader of the change topics ended")]
    TailEnded,
    #[error("table {table} is not on the source, or [migration] tables does not select it")]
    NoSuchTable { table: String },
    #[error("{path} is no report of an earlier check")]
    Earlier { path: String, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: String, source: std::io::Error },
    #[error("the two servers hash differently even with md5: {detail}")]
    HashDiffers { detail: String },
}

/// What to do with the comparison that met the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same with new sessions may go through.
    Again,
    /// The table cannot be compared until somebody acts; the others can.
    HaltTable,
    /// Nothing can be compared.
    Stop,
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Error::Service(error) if error.transient() => Remedy::Again,
            Error::Service(_)
            | Error::NoSuchTable { .. }
            | Error::Earlier { .. }
            | Error::Write { .. }
            | Error::HashDiffers { .. } => Remedy::Stop,
            Error::Database { source, .. } => of_database(source),
            Error::DatabaseSilent { .. } | Error::Topic { .. } | Error::TailEnded => Remedy::Again,
            Error::Answer { .. } | Error::Event { .. } => Remedy::HaltTable,
        }
    }
}

/// The SQLSTATE, if the server said one.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned())
}

fn of_database(error: &sqlx::Error) -> Remedy {
    match sqlstate(error).as_deref() {
        // Connection and operator's interventions, resources, serialization, lock and statement timeouts.
        Some(code) if ["08", "57", "53", "40", "55"].iter().any(|class| code.starts_with(class)) => Remedy::Again,
        // A relation or column that is not there any more, or not yet: the catalog is read again.
        Some("42P01" | "42703") => Remedy::Again,
        Some(_) => Remedy::HaltTable,
        None => match error {
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => {
                Remedy::Again
            }
            _ => Remedy::HaltTable,
        },
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Service(error) => return error.hint(),
            Error::Database { role, source, .. } => match sqlstate(source).as_deref() {
                Some("42501") => {
                    format!("grant SELECT on the tables, and USAGE on their schemas, to the user of [{role}] url")
                }
                Some("57014") => "lower [validator] chunk_rows: one comparison took too long".into(),
                _ => format!("check the {role} server's log, then run validator check again"),
            },
            Error::DatabaseSilent { role, .. } => {
                format!(
                    "SELECT pid, wait_event, query FROM pg_stat_activity WHERE application_name = 'dflux validator' on the {role}"
                )
            }
            Error::Answer { .. } => "report this with the versions of both servers".into(),
            Error::Event { table, .. } => format!("dflux resync {table}"),
            Error::Topic { .. } => "check [kafka] brokers and that the topics of the migration exist".into(),
            Error::TailEnded => "run validator check again; see its log for why Kafka's reader ended".into(),
            Error::NoSuchTable { .. } => "name it as schema.table, and see [migration] tables in dflux.toml".into(),
            Error::Earlier { .. } => "name a file that validator check --json has written".into(),
            Error::Write { .. } => "name a file in a folder that exists and can be written".into(),
            Error::HashDiffers { .. } => "report this with the versions and encodings of both servers".into(),
        })
    }
}
