//! What can go wrong in the consumer: each with what the program does about it, and what a person can do.

use changelog::table::quote_literal;
use changelog::{Position, TableName};
use service::Hint;

use crate::enums;
use crate::evolve::Refusal;

/// What the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again, for ever, with growing pauses.
    Retry,
    /// Another instance leads: wait for one's turn.
    StandBy,
    /// Nobody but a person can help: the lane stops where it is and says why.
    Stop,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Service(#[from] service::Error),
    #[error("{what}")]
    Contract { what: String, source: changelog::Error },
    #[error("target database: {what}")]
    Target { what: String, source: sqlx::Error },
    #[error("source database: {what}")]
    Source { what: String, source: tokio_postgres::Error },
    #[error("Kafka: {what}: {message}")]
    Kafka { what: String, message: String },
    #[error("lane {lane}: another instance leads now (epoch {epoch} has passed)")]
    Fenced { lane: String, epoch: i64 },
    #[error("partition {partition} of topic {topic}: {what}; it was deleted, made anew or cut off")]
    TopicReplaced { topic: String, partition: i32, what: String },
    #[error(
        "lane {lane} in the target was made from {field} {expected}, the topics of the same name come from {found}"
    )]
    SourceReplaced { lane: String, field: &'static str, expected: String, found: String },
    #[error("a manifest at {position} comes from {field} {found}, the lane from {expected}")]
    ForeignManifest { position: Position, field: &'static str, expected: String, found: String },
    #[error("topic {topic} had {expected} partitions, and a manifest names partition {partition}")]
    PartitionsChanged { topic: String, expected: i32, partition: i32 },
    #[error(
        "partition {partition} of topic {topic}: the manifest at {manifest} lists {missing} more events, and the next \
         event there is at {found}: events are lost"
    )]
    LostEvent { topic: String, partition: i32, manifest: Position, missing: u64, found: Position },
    #[error("partition {partition} of topic {topic}: the event at {found} stands in no manifest (next is {manifest})")]
    UnlistedEvent { topic: String, partition: i32, manifest: Position, found: Position },
    #[error("partition {partition} of topic {topic}, offset {offset}: a record without a value")]
    EmptyRecord { topic: String, partition: i32, offset: i64 },
    #[error("table {table} is not in the target database")]
    TableMissing { table: String },
    #[error("table {table} in the target lacks column {column}, which the events have")]
    ColumnMissing { table: String, column: String },
    #[error("the lane stops before {position}: table {table} in the source {}", refusal.what)]
    SchemaChange { table: TableName, position: Position, refusal: Box<Refusal> },
    #[error("table {table}: the target cannot be written: {what}")]
    TableUnfit { table: String, what: String },
    #[error("table {table} in the target has no partition for a row of {what}")]
    PartitionMissing { table: String, what: String, source: sqlx::Error },
    #[error("{op} on {table} at {position}{} was refused by the target", hashed(key_hash))]
    Refused {
        table: Box<str>,
        op: &'static str,
        position: Position,
        /// Where one event is at fault: `md5` of its key, as in `dflux.divergence`. Keys may be personal.
        key_hash: Option<Box<str>>,
        source: sqlx::Error,
    },
    #[error("{op} on {table} at {position} has no {image} image")]
    ImageMissing { table: String, op: &'static str, position: Position, image: &'static str },
    #[error("update of {table} at {position} sets column {column}, which is GENERATED ALWAYS in the target")]
    IdentityAlways { table: String, column: String, position: Position },
    #[error("chunk {chunk}: {what}")]
    Chunk { chunk: String, what: String },
    #[error("table {table} has another name within a transaction, while it is copied anew: that is waited for")]
    Held { table: TableName },
    #[error(
        "table {table}: values of its rows were computed anew at {at}, after a part of its copy was read, and no event tells them"
    )]
    Stale { table: String, at: String },
    #[error("table {table} cannot be made in the target")]
    Unmade { table: Box<str>, statement: Box<str>, source: sqlx::Error },
    #[error("{what} failed in the target")]
    Index { what: String, statement: String, source: sqlx::Error },
    #[error("the thread that {what} has ended")]
    Thread { what: &'static str },
}

/// SQLSTATEs that mean: the same statements may pass a moment later.
const PASSING: [&str; 10] = ["40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03"];

/// Whether a session or server went away, or answers that it will be back.
pub fn transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(_) => {
            code(error).is_some_and(|code| PASSING.contains(&code.as_str()) || code.starts_with("08"))
        }
        _ => false,
    }
}

/// Whether the session or the server is gone, and not only busy with something.
fn away(error: &sqlx::Error) -> bool {
    transient(error) && code(error).is_none_or(|code| code.starts_with("08") || code.starts_with("57P"))
}

/// The SQLSTATE, if the server sent one.
pub fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned())
}

fn hashed(key_hash: &Option<Box<str>>) -> String {
    key_hash.as_ref().map(|hash| format!(" (key hash {hash})")).unwrap_or_default()
}

/// Whether a partitioned table has no place for a row: a check that failed and has no name.
pub fn lacks_partition(error: &sqlx::Error) -> bool {
    let lacks = |error: &dyn sqlx::error::DatabaseError| {
        error.code().as_deref() == Some("23514") && error.constraint().is_none()
    };
    error.as_database_error().is_some_and(lacks)
}

impl Error {
    /// What the target's server said.
    pub fn of_target(&self) -> Option<&sqlx::Error> {
        match self {
            Error::Target { source, .. } | Error::Refused { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether what one table alone needs has failed: it may be tried again while the rest goes on.
    pub fn is_of_table(&self) -> bool {
        match self {
            Error::Target { source, .. } | Error::Refused { source, .. } | Error::Index { source, .. } => !away(source),
            error => error.remedy() == Remedy::Stop,
        }
    }

    /// The table that is at fault, as it is printed.
    pub fn table(&self) -> Option<String> {
        match self {
            Error::TableMissing { table }
            | Error::ColumnMissing { table, .. }
            | Error::TableUnfit { table, .. }
            | Error::PartitionMissing { table, .. }
            | Error::ImageMissing { table, .. }
            | Error::IdentityAlways { table, .. } => Some(table.clone()),
            Error::Refused { table, .. } => Some(table.to_string()),
            Error::SchemaChange { table, .. } => Some(table.to_string()),
            _ => None,
        }
    }

    pub fn remedy(&self) -> Remedy {
        match self {
            Error::Service(error) if error.transient() => Remedy::Retry,
            Error::Target { source, .. } | Error::Refused { source, .. } | Error::Index { source, .. }
                if transient(source) =>
            {
                Remedy::Retry
            }
            Error::Source { source, .. } if source.code().is_none() || source.is_closed() => Remedy::Retry,
            Error::Unmade { source, .. } if away(source) => Remedy::Retry,
            Error::Kafka { .. } | Error::Thread { .. } | Error::Held { .. } => Remedy::Retry,
            Error::Fenced { .. } => Remedy::StandBy,
            Error::Service(_)
            | Error::Contract { .. }
            | Error::Target { .. }
            | Error::Source { .. }
            | Error::TopicReplaced { .. }
            | Error::SourceReplaced { .. }
            | Error::ForeignManifest { .. }
            | Error::PartitionsChanged { .. }
            | Error::LostEvent { .. }
            | Error::UnlistedEvent { .. }
            | Error::EmptyRecord { .. }
            | Error::TableMissing { .. }
            | Error::ColumnMissing { .. }
            | Error::SchemaChange { .. }
            | Error::TableUnfit { .. }
            | Error::PartitionMissing { .. }
            | Error::Refused { .. }
            | Error::ImageMissing { .. }
            | Error::IdentityAlways { .. }
            | Error::Chunk { .. }
            | Error::Stale { .. }
            | Error::Unmade { .. }
            | Error::Index { .. } => Remedy::Stop,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Service(error) => return error.hint(),
            Error::Contract { source, .. } => return source.hint(),
            Error::Target { source, .. } => match code(source).as_deref() {
                Some("42501") => {
                    "GRANT the role in [target] url CREATE on the database and all rights on its tables, or \
                                  make it the tables' owner"
                        .into()
                }
                Some("42P01" | "42703") => "SELECT * FROM dflux.lane: if its columns are of another version, \
                                            DROP SCHEMA dflux CASCADE and begin the migration anew"
                    .into(),
                _ => "look into the target server's log; the consumer goes on where it was once it is started again"
                    .into(),
            },
            Error::Source { .. } => "check [source] url and the role's right to SELECT from the tables".into(),
            Error::Kafka { .. } => "check [kafka] brokers and properties, and that a broker is up".into(),
            Error::Fenced { .. } => "none needed: this instance stands by".into(),
            Error::TopicReplaced { .. } | Error::SourceReplaced { .. } | Error::ForeignManifest { .. } => {
                "give the migration a new name in [migration] name, or DELETE the lane's row from dflux.lane after \
                 emptying the target's tables, and begin anew"
                    .into()
            }
            Error::PartitionsChanged { topic, .. } => {
                format!("partitions are pinned: delete topic {topic} and run dflux resync for its table")
            }
            Error::LostEvent { topic, .. } | Error::UnlistedEvent { topic, .. } | Error::EmptyRecord { topic, .. } => {
                format!(
                    "check the retention and who writes: kafka-configs --describe --topic {topic}; then dflux resync the table"
                )
            }
            Error::TableMissing { table } => {
                format!(
                    "dflux prepare makes it, where it was to be copied. If the source has renamed it: ALTER TABLE … RENAME TO {table} in \
                     the target; else dflux resync {table}. Then start the consumer again: it goes on there"
                )
            }
            Error::ColumnMissing { table, column } => {
                format!(
                    "ALTER TABLE {table} ADD COLUMN {column} … in the target, then start the consumer again; if the source \
                     added it with a DEFAULT, also dflux resync {table}: the rows that were there have it without an event"
                )
            }
            Error::PartitionMissing { .. } => {
                "dflux prepare makes the partitions that the source has; then start the consumer again".into()
            }
            Error::SchemaChange { table, refusal, .. } if let Some(said) = &refusal.said => {
                let first = match refusal.statement.as_str() {
                    "" => String::new(),
                    statement => format!("run in the target: {statement}; "),
                };
                format!(
                    "{first}dflux resync {table}, for the rows that were there, or give them the same values in the target and say so there: \
                     {said}; then start the consumer again: it goes on there"
                )
            }
            Error::SchemaChange { table, refusal, .. } => match (refusal.statement.as_str(), refusal.copy_again) {
                ("", _) => format!("dflux resync {table}, then start the consumer again: it goes on there"),
                (statement, true) => format!(
                    "run in the target: {statement}; dflux resync {table}, for the rows that were there; then start the \
                     consumer again: it goes on there"
                ),
                (statement, false) => {
                    format!("run in the target: {statement}; then start the consumer again: it goes on there")
                }
            },
            Error::TableUnfit { table, .. } => format!("make {table} in the target as it is in the source"),
            Error::Refused { table, source, .. } => match code(source).as_deref() {
                Some("23505" | "23P01") => format!(
                    "the target holds a row that the source does not have: compare with validator check --table {table}, \
                     then dflux resync {table}"
                ),
                Some("22P02") if let Some((type_name, value)) = enums::refused(source) => format!(
                    "run in the target: ALTER TYPE {type_name} ADD VALUE {}, BEFORE or AFTER its neighbour as in the source; then \
                     start the consumer again: it goes on there",
                    quote_literal(value)
                ),
                Some("42501") => {
                    format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {table} to the target's role")
                }
                _ => format!("make {table} in the target take the value, or dflux resync {table}"),
            },
            Error::ImageMissing { table, .. } => {
                format!("ALTER TABLE {table} REPLICA IDENTITY FULL on the source, then dflux resync {table}")
            }
            Error::IdentityAlways { table, column, .. } => format!(
                "ALTER TABLE {table} ALTER COLUMN {column} SET GENERATED BY DEFAULT in the target, or let its role SET \
                 session_replication_role; then start the consumer again"
            ),
            Error::Chunk { .. } => {
                "check that only one producer writes to the snapshot topic; then dflux resync the table".into()
            }
            Error::Unmade { statement, .. } => {
                format!(
                    "dflux prepare makes it with all that it needs; by hand: {statement}. It is tried again by itself"
                )
            }
            Error::Index { statement, .. } => format!("run it by hand to see why: {statement}"),
            Error::Stale { table, .. } => format!("dflux resync {table} once more: the copy that begins then has them"),
            Error::Thread { .. } | Error::Held { .. } => return None,
        })
    }
}

/// `map_err` for statements on the target.
pub fn target(what: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Target { what: what.into(), source }
}

/// `map_err` for bytes from Kafka.
pub fn contract(what: impl Into<String>) -> impl FnOnce(changelog::Error) -> Error {
    move |source| Error::Contract { what: what.into(), source }
}
