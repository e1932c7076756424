//! What can go wrong in a command, its exit code and its remedy.

use std::process::ExitCode;

use changelog::TableName;
use service::Hint;

/// Exit codes of `dflux`, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// A wrong use, a server that does not answer, a failure: nothing is known to be half done.
    Failed,
    /// The state of things does not allow it; nothing was changed.
    Refused,
    /// Given up before the point of no return: the application is where it was.
    Aborted,
    /// A person has to look first; the side that was closed stays closed.
    Ambiguous,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Refused => 2,
            Exit::Aborted => 3,
            Exit::Ambiguous => 4,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Service(#[from] service::Error),
    #[error("{role} database: {what}")]
    Sql { role: &'static str, what: String, source: tokio_postgres::Error },
    #[error("{what} was refused: {count} blocker(s)")]
    Blocked { what: &'static str, count: usize },
    #[error("no table is selected by [migration] tables = {patterns:?}")]
    NoTables { patterns: Vec<String> },
    #[error("table {table} is not in the source database")]
    NoSuchTable { table: String },
    #[error("table {table} is not part of migration {migration}: [migration] tables and exclude do not select it")]
    NotSelected { table: TableName, migration: String },
    #[error("`{name}` names {count} tables")]
    AmbiguousTable { name: String, count: usize },
    #[error("migration {migration} has no lane on the target yet: there is nothing to {what}")]
    NoLane { migration: String, what: &'static str },
    #[error("the topics hold no whole copy of a table {table}")]
    NotCopied { table: String },
    #[error("table {table} is being built again already")]
    Resyncing { table: TableName },
    #[error("the newest copy of table {table} in the topics is older than a change of the table at {changed}")]
    CopyOutdated { table: TableName, changed: changelog::Lsn },
    #[error("slot {slot} is in use by process {pid} of the source")]
    SlotInUse { slot: String, pid: i32 },
    #[error("a consumer applies lane {lane} on the target (process {pid})")]
    LaneInUse { lane: String, pid: i32 },
    #[error("{program} of PostgreSQL {needed} or later was not found: looked in {looked}")]
    NoProgram { program: &'static str, needed: i32, looked: String },
    #[error("{program} failed: {message}")]
    Program { program: String, message: String },
    #[error("{program} wrote what this dflux does not understand: {message}")]
    Archive { program: &'static str, message: String },
    #[error("target database: {object} cannot be made")]
    PreData { object: String, source: tokio_postgres::Error },
    #[error("{failed} of {total} steps failed on the target; the others are done")]
    Steps { failed: usize, total: usize },
    #[error("topic {topic}, offset {offset}: a record cannot be read")]
    Ledger { topic: String, offset: i64, source: Box<changelog::Error> },
    #[error("topic {topic} is not there")]
    NoTopic { topic: String },
    #[error("Kafka at {brokers}: {what} took longer than {seconds} s")]
    KafkaSlow { brokers: String, what: String, seconds: u64 },
    #[error("resync of {table} as generation {generation} did not finish within {seconds} s")]
    ResyncSlow { table: TableName, generation: u32, seconds: u64 },
    #[error("{table} cannot be built on the target: {error}")]
    ResyncFailed { table: TableName, error: String },
    #[error("{table} is not built: the source does not have it any more")]
    ResyncGone { table: TableName },
    #[error("{table} has no key by which single rows could be read again")]
    NoKey { table: TableName },
    #[error("{table} could not be checked: {reason}")]
    RowsUnchecked { table: TableName, reason: String },
    #[error("{table} differs in what no row is named for: {causes}")]
    RowsUnnamed { table: TableName, causes: String },
    #[error("{table} still differs after {read_again} row(s) were read again")]
    RowsRemain { table: TableName, read_again: usize },
    #[error("the rows of {table} are not read again yet")]
    RowsSlow { table: TableName },
    #[error(transparent)]
    Validator(#[from] validator::Error),
    #[error("cannot write {path}")]
    Write { path: String, source: std::io::Error },
    #[error("the source cannot be prepared")]
    Source { source: Box<dyn std::error::Error + Send + Sync>, hint: Option<String> },
    #[error("cleanup removes things and was not confirmed: nothing was changed")]
    Unconfirmed,
    #[error("{role} database: no lock on {table} was to be had for the fence")]
    FenceBusy { role: &'static str, table: TableName },
    #[error("{role} database: sequence {sequence} cannot be set: {why}")]
    SequenceUnfit { role: &'static str, sequence: TableName, why: String },
    #[error("{role} database: epoch {epoch} has passed: another controller has taken over")]
    StaleEpoch { role: &'static str, epoch: u64 },
    #[error("the configuration names no config store")]
    NoConfigStore,
    #[error("[cutover] policy = \"dual\" is not there yet")]
    NoDual,
    #[error("the journal of the cutover")]
    Journal { source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    #[error("another dflux prepare of migration {migration} is running")]
    Busy { migration: String },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Error::Blocked { .. }
            | Error::NoTables { .. }
            | Error::NoSuchTable { .. }
            | Error::NotSelected { .. }
            | Error::AmbiguousTable { .. }
            | Error::NoLane { .. }
            | Error::NotCopied { .. }
            | Error::Resyncing { .. }
            | Error::NoKey { .. }
            | Error::CopyOutdated { .. }
            | Error::SlotInUse { .. }
            | Error::LaneInUse { .. }
            | Error::Unconfirmed
            | Error::FenceBusy { .. }
            | Error::NoConfigStore
            | Error::NoDual
            | Error::SequenceUnfit { .. }
            | Error::StaleEpoch { .. }
            | Error::Busy { .. } => Exit::Refused,
            Error::Service(_)
            | Error::Sql { .. }
            | Error::NoProgram { .. }
            | Error::Program { .. }
            | Error::Archive { .. }
            | Error::PreData { .. }
            | Error::Steps { .. }
            | Error::Ledger { .. }
            | Error::NoTopic { .. }
            | Error::KafkaSlow { .. }
            | Error::ResyncSlow { .. }
            | Error::ResyncFailed { .. }
            | Error::ResyncGone { .. }
            | Error::RowsUnchecked { .. }
            | Error::RowsUnnamed { .. }
            | Error::RowsRemain { .. }
            | Error::RowsSlow { .. }
            | Error::Validator(_)
            | Error::Journal { .. }
            | Error::Store(_)
            | Error::Write { .. }
            | Error::Source { .. } => Exit::Failed,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Service(error) => return error.hint(),
            Error::Sql { role, source, .. } => return sql_hint(role, source),
            Error::Blocked { .. } => "do what each blocker's remedy says, then run it again".into(),
            Error::NoTables { .. } => "write patterns `schema.table`, \"*.*\" for all, into [migration] tables".into(),
            Error::NoSuchTable { .. } | Error::AmbiguousTable { .. } => {
                "name it schema.table, as dflux status lists it".into()
            }
            Error::NotSelected { table, .. } => format!("add \"{table}\" to [migration] tables, then dflux prepare"),
            Error::NoLane { .. } => "dflux prepare, then start producer and consumer".into(),
            Error::NotCopied { .. } => {
                "name it schema.table, as dflux status lists it; of a partition, its partitioned table".into()
            }
            Error::Resyncing { .. } => "dflux status --watch shows how far it is".into(),
            Error::CopyOutdated { table, .. } => format!("dflux resync {table}, without --replay: it is copied as it is now"),
            Error::SlotInUse { slot, .. } => {
                format!("stop the producer of this migration, or choose another name than {slot} in [migration] slot")
            }
            Error::LaneInUse { .. } => "stop the consumers of this migration first".into(),
            Error::NoProgram { needed, .. } => {
                format!("apt-get install postgresql-client-{needed}, or set DFLUX_PG_BIN to the folder of its programs")
            }
            Error::Program { message, .. } if message.contains("permission denied") => {
                "GRANT SELECT on what it names to the user of [source] url, or exclude it, then dflux prepare".into()
            }
            Error::Program { .. } => "mend what it names, then dflux prepare".into(),
            Error::Archive { .. } => "use PostgreSQL's own pg_dump and pg_restore (DFLUX_PG_BIN)".into(),
            Error::PreData { source, .. } if source.code().is_some_and(|code| code.code() == "23514") => {
                "the target's default partition holds rows of it: move them into it and attach it in one transaction by \
                 hand, then dflux prepare; nothing was changed"
                    .into()
            }
            Error::PreData { source, .. } => match sql_hint("target", source) {
                Some(hint) => hint,
                None => "make it by hand on the target, then dflux prepare; nothing was changed".into(),
            },
            Error::Steps { .. } => "mend what each error names, then dflux prepare: it does what is left".into(),
            Error::Ledger { .. } => "the topic was written by another version of dflux, or by somebody else".into(),
            Error::NoTopic { .. } => "start the producer: it makes the topics".into(),
            Error::KafkaSlow { .. } => "check the brokers, then run it again".into(),
            Error::ResyncSlow { .. } => {
                "dflux status --watch shows how far it is; the request stands, it needs no repetition".into()
            }
            Error::ResyncFailed { .. } => "mend that on the target; it is tried again by itself".into(),
            Error::ResyncGone { .. } => "DROP the table on the target, or rename it as on the source".into(),
            Error::NoKey { table } => format!("dflux resync {table}"),
            Error::RowsUnchecked { .. } => "dflux status shows what keeps the lane from being exact; then ask again".into(),
            Error::RowsUnnamed { table, .. } => {
                format!("validator check --table {table} shows what differs; rows without a key come again with dflux resync {table}")
            }
            Error::RowsRemain { table, .. } => {
                format!("the consumer's log says if rows could not be read again, or something writes to the target beside dflux; dflux resync {table} copies all of it")
            }
            Error::RowsSlow { .. } => {
                "dflux status shows whether the lane runs; then ask again".into()
            }
            Error::Validator(error) => return error.hint(),
            Error::Write { .. } => "choose a file that can be written".into(),
            Error::Source { hint, .. } => return hint.clone(),
            Error::Unconfirmed => "dflux cleanup --yes".into(),
            Error::FenceBusy { table, .. } => {
                format!("a transaction holds {table} for long: end it, then ask again; nothing is closed")
            }
            Error::SequenceUnfit { role, sequence, .. } => {
                format!("make {sequence} on the {role} as it is on the other side, or exclude it; then ask again")
            }
            Error::NoConfigStore => {
                "write [config_store] with kind = \"file\", \"etcd\", \"pgbouncer\" or \"command\": where the application learns its address".into()
            }
            Error::NoDual => "policy = \"drain\" or \"fenced\"".into(),
            Error::Journal { .. } => {
                "dflux.cutover on the target was changed by hand: restore its rows; nothing is done before".into()
            }
            Error::Store(error) => return error.hint(),
            Error::StaleEpoch { .. } => "dflux cutover status".into(),
            Error::Busy { .. } => "wait for it, then dflux prepare".into(),
        })
    }
}

fn sql_hint(role: &str, error: &tokio_postgres::Error) -> Option<String> {
    match error.code()?.code() {
        "42501" => {
            Some(format!("GRANT what it names to the user of [{role}] url (dflux assess lists every privilege)"))
        }
        "55P03" => Some("another session holds a lock on that table: end it, or run it again later".into()),
        "53100" => Some(format!("free disk space on the {role} server")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_and_a_failure_have_different_exit_codes() {
        assert_eq!(Error::Unconfirmed.exit().code(), 2);
        assert_eq!(Error::Blocked { what: "prepare", count: 1 }.exit().code(), 2);
        assert_eq!(Error::NoTopic { topic: "t".into() }.exit().code(), 1);
        assert_eq!(Exit::Done.code(), 0);
    }
}
