//! Everything that can go wrong in the producer, each with its remedy and, where a person can act, the very command.

use changelog::{Lsn, TableName};
use service::Hint;

pub use crate::walsender::Remedy;

use crate::assemble::AssembleError;
use crate::pgoutput::DecodeError;
use crate::walsender::WalsenderError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Service(#[from] service::Error),
    #[error("source database: replication connection")]
    Walsender(#[from] WalsenderError),
    #[error("source database: cannot {doing}")]
    Source { doing: String, source: tokio_postgres::Error },
    #[error("source database: {doing} gave an answer that is not understood: {what}")]
    Answer { doing: String, what: String },
    #[error("stream of slot {slot} at {lsn}")]
    Decode { slot: String, lsn: Lsn, source: DecodeError },
    #[error("stream of slot {slot}")]
    Assemble { slot: String, source: AssembleError },
    #[error("change events")]
    Changelog(#[from] changelog::Error),

    #[error("[target] follows = true: the producer of this migration runs with another target's configuration")]
    Follows,
    #[error("no table matches [migration] tables = {patterns:?}")]
    NoTables { patterns: Vec<String> },
    #[error("the source runs PostgreSQL {version}; at least 14 is needed")]
    ServerTooOld { version: String },
    #[error("wal_level of the source is {found}, not logical")]
    WalLevel { found: String },
    #[error(
        "{table} must get REPLICA IDENTITY FULL before it is published, and its lock was not free in {attempts} attempts"
    )]
    IdentityLocked { table: TableName, attempts: u32 },
    #[error("publication {publication} is missing, and slot {slot} of this migration exists")]
    PublicationMissing { publication: String, slot: String },
    #[error("publication {publication} is not as dflux makes it: {what}")]
    PublicationAltered {
        publication: String,
        what: String,
        /// That would make it so, as ALTER PUBLICATION … SET takes it.
        setting: Option<&'static str>,
    },
    #[error("table {table} was not found on the source")]
    TableMissing { table: TableName },
    #[error("{table} was rewritten (TRUNCATE or ALTER TABLE) during each of {attempts} readings of chunk {chunk}")]
    RewrittenTooOften { table: TableName, chunk: u32, attempts: u32 },
    #[error("temporary slot {slot} was not ready after {seconds} s: creating a slot waits for every open transaction")]
    SnapshotTimeout { slot: String, seconds: u64 },

    #[error("slot {slot} is in use by process {pid} ({application})")]
    SlotHeld { slot: String, pid: i32, application: String },
    #[error("slot {slot} belongs to {what}")]
    SlotForeign { slot: String, what: String },
    #[error("slot {slot} is lost: its WAL was removed")]
    SlotLost { slot: String },
    #[error("slot {slot} is missing, and topic {topic} says that this lane began with it at {consistent_point}")]
    SlotMissing { slot: String, topic: String, consistent_point: Lsn },
    #[error(
        "slot {slot} is confirmed up to {confirmed}, beyond the end of topic {topic} ({tail}): changes between are lost"
    )]
    SlotAhead { slot: String, confirmed: Lsn, topic: String, tail: Lsn },
    #[error("the source's system identifier is {found}; topic {topic} was begun from {expected}")]
    OtherServer { topic: String, expected: String, found: String },
    #[error("topic {topic} was begun with {what} {expected}, and the configuration says {found}")]
    OtherLane { topic: String, what: &'static str, expected: String, found: String },
    #[error(
        "the source's timeline {timeline} left timeline {old_timeline} at {fork}, below {tail} in topic {topic}: a standby \
         that lagged behind was promoted"
    )]
    LaggingStandby { timeline: i32, old_timeline: i32, fork: Lsn, topic: String, tail: Lsn },
    #[error(
        "the source has written WAL up to {flushed} only, below {tail} in topic {topic}: it was set back to an earlier state"
    )]
    SourceBehind { flushed: Lsn, topic: String, tail: Lsn },
    #[error("the source's timeline {timeline} does not descend from timeline {old_timeline} of topic {topic}")]
    ForeignTimeline { timeline: i32, old_timeline: i32, topic: String },

    #[error("topic {topic} was made anew or lost records: {what}")]
    TopicLost { topic: String, what: String },
    #[error("topic {topic} has {name} = {found}; it must be {expected}")]
    TopicConfig { topic: String, name: &'static str, found: String, expected: &'static str, brokers: String },
    #[error("topic {topic} has {found} partitions; it was pinned to {expected} when it was made")]
    TopicPartitions { topic: String, found: usize, expected: usize },
    #[error("topic {topic} has max.message.bytes = {found}, and [kafka] record_bytes_max is {expected}")]
    TopicRecordBytes { topic: String, found: usize, expected: usize },
    #[error("topic {topic} cannot be made: {message}")]
    TopicCreate { topic: String, message: String },
    #[error("Kafka refused a record of topic {topic}: {message}")]
    Delivery { topic: String, message: String },
    #[error("a record of {bytes} bytes for topic {topic} does not fit into the queue of {queue_bytes} bytes")]
    RecordTooLarge { topic: String, bytes: usize, queue_bytes: u64 },
    #[error(
        "{table}: {what} of {bytes} bytes leaves too little room for a row in records of {record_bytes_max} bytes at most"
    )]
    NoRoom { table: TableName, what: &'static str, bytes: usize, record_bytes_max: usize },
    #[error("a task of the producer ended without an answer: {what}")]
    Task { what: String },
}

impl Error {
    pub fn source(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Source { doing, source }
    }

    /// Whether a new session may get further without anybody doing anything.
    pub fn remedy(&self) -> Remedy {
        let retry = match self {
            Error::Service(error) => error.transient(),
            Error::Walsender(error) => return error.remedy(),
            Error::Source { source, .. } => transient(source),
            Error::SnapshotTimeout { .. } | Error::IdentityLocked { .. } => true,
            Error::Answer { .. }
            | Error::Decode { .. }
            | Error::Assemble { .. }
            | Error::Changelog(_)
            | Error::Follows
            | Error::NoTables { .. }
            | Error::ServerTooOld { .. }
            | Error::WalLevel { .. }
            | Error::PublicationMissing { .. }
            | Error::PublicationAltered { .. }
            | Error::TableMissing { .. }
            | Error::RewrittenTooOften { .. }
            | Error::SlotHeld { .. }
            | Error::SlotForeign { .. }
            | Error::SlotLost { .. }
            | Error::SlotMissing { .. }
            | Error::SlotAhead { .. }
            | Error::OtherServer { .. }
            | Error::OtherLane { .. }
            | Error::LaggingStandby { .. }
            | Error::SourceBehind { .. }
            | Error::ForeignTimeline { .. }
            | Error::TopicLost { .. }
            | Error::TopicConfig { .. }
            | Error::TopicPartitions { .. }
            | Error::TopicRecordBytes { .. }
            | Error::TopicCreate { .. }
            | Error::Delivery { .. }
            | Error::RecordTooLarge { .. }
            | Error::NoRoom { .. }
            | Error::Task { .. } => false,
        };
        if retry { Remedy::Retry } else { Remedy::Stop }
    }

    /// Nothing at this address has answered: perhaps it is the wrong one. A server that says that it is starting or stopping has.
    pub fn nobody_answered(&self) -> bool {
        match self {
            Error::Service(service::Error::Connect { source, .. }) => source.code().is_none(),
            Error::Service(_) => true,
            _ => false,
        }
    }
}

/// A broken connection, a server that stops or starts, a lock or a serialization that may go through later.
fn transient(error: &tokio_postgres::Error) -> bool {
    match error.code().map(|code| code.code()) {
        None => error.is_closed() || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>()),
        // A table that was dropped or renamed meanwhile: a new session reads which there are.
        Some("57P01" | "57P02" | "57P03" | "57P05" | "53300" | "55P03" | "40001" | "40P01" | "42P01") => true,
        Some(code) => code.starts_with("08"),
    }
}

const ANEW: &str = "dflux cleanup, then begin the migration anew (the target's copy is not continued)";

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Service(error) => return error.hint(),
            Error::Walsender(error) => return error.hint(),
            Error::Source { source, .. } => return source_hint(source),
            Error::Decode { source, .. } => source.hint().into(),
            Error::Assemble { source, .. } => source.hint().into(),
            Error::Changelog(error) => return error.hint(),
            Error::Answer { .. } | Error::Task { .. } => {
                "report this with the server's version: SELECT version()".into()
            }
            Error::Follows => {
                "none needed; if this is the migration's only target, remove `follows` from the configuration".into()
            }
            Error::NoTables { .. } => {
                "SELECT schemaname, tablename FROM pg_tables, then correct [migration] tables (schema.table, * for any)"
                    .into()
            }
            Error::ServerTooOld { .. } => "upgrade the source to PostgreSQL 14 or newer".into(),
            Error::WalLevel { .. } => "ALTER SYSTEM SET wal_level = logical, then restart the server".into(),
            Error::IdentityLocked { table, .. } => {
                format!("ALTER TABLE {} REPLICA IDENTITY FULL at a quiet moment, then start again", table.quoted())
            }
            Error::PublicationMissing { .. } => ANEW.into(),
            Error::PublicationAltered { publication, setting: Some(setting), .. } => format!(
                "ALTER PUBLICATION \"{publication}\" SET ({setting}) on the source if nothing else needs it as it is, or set \
                 another [migration] publication"
            ),
            Error::PublicationAltered { publication, .. } => {
                format!(
                    "DROP PUBLICATION \"{publication}\" if nothing else needs it, or set another [migration] publication"
                )
            }
            Error::TableMissing { table } => {
                format!("exclude it: [migration] exclude = [\"{table}\"], or check its name with \\dt {table}")
            }
            Error::RewrittenTooOften { table, .. } => format!("dflux resync {table} when it is no longer rewritten"),
            Error::SnapshotTimeout { .. } => {
                "SELECT pid, xact_start, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
                                              ORDER BY xact_start, and end the oldest; SELECT * FROM pg_prepared_xacts"
                    .into()
            }
            Error::SlotHeld { pid, .. } => format!(
                "if that is not a running producer: SELECT pg_terminate_backend({pid}); else stop one of the two producers"
            ),
            Error::SlotForeign { slot, .. } => format!(
                "SELECT pg_drop_replication_slot('{slot}') if nothing needs it, or set another [migration] slot"
            ),
            Error::SlotLost { .. } => format!("raise max_slot_wal_keep_size, then {ANEW}"),
            Error::SlotMissing { .. }
            | Error::SlotAhead { .. }
            | Error::LaggingStandby { .. }
            | Error::SourceBehind { .. }
            | Error::ForeignTimeline { .. }
            | Error::TopicLost { .. } => ANEW.into(),
            Error::OtherServer { .. } => {
                format!("correct [source] url, or set another [migration] name; if the server was replaced: {ANEW}")
            }
            Error::OtherLane { what, expected, .. } => {
                format!("set {what} back to {expected}, or give this migration another [migration] name")
            }
            Error::TopicConfig { topic, name, expected, brokers, .. } => format!(
                "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} \
                 --add-config {name}={expected}"
            ),
            Error::TopicPartitions { .. } => ANEW.into(),
            Error::TopicRecordBytes { found, .. } => format!("set [kafka] record_bytes_max = {found}"),
            Error::TopicCreate { .. } => {
                "check the broker's rights, that [kafka] replication_factor is not above the number of brokers, and that the \
                 cluster allows [kafka] record_bytes_max"
                    .into()
            }
            Error::Delivery { topic, .. } => {
                format!("check that topic {topic} exists, may be written, and its max.message.bytes; then start again")
            }
            Error::RecordTooLarge { .. } => "raise [producer] queue_bytes_max".into(),
            Error::NoRoom { .. } => {
                format!("raise [kafka] record_bytes_max before the topics are made: {ANEW}")
            }
        })
    }
}

fn source_hint(error: &tokio_postgres::Error) -> Option<String> {
    let server = error.as_db_error();
    match error.code().map(|code| code.code()) {
        Some("42501") => Some(
            "the role must own the tables and have CREATE on the database: GRANT owner TO role; GRANT CREATE ON DATABASE …; \
             to read: GRANT SELECT ON ALL TABLES IN SCHEMA … TO role; where row-level security is forced: \
             ALTER ROLE role BYPASSRLS, or ALTER TABLE … NO FORCE ROW LEVEL SECURITY"
                .into(),
        ),
        _ => server.and_then(|error| error.hint()).map(str::to_owned),
    }
}
