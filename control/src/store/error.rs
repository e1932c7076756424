//! What can go wrong at a config store. Every error says that the store was left as it was, or else what it is in.
//!
//! No variant holds a value unmasked, nor what another program said before it was scrubbed.

use std::path::PathBuf;

use service::Hint;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{place} holds no connection URL: {reason}")]
    NotAValue { place: String, reason: String },
    #[error("{place} holds no value")]
    Absent { place: String },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {}: nothing was changed", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot give the new {} to user {user} and group {group}: nothing was changed", path.display())]
    Owner { path: PathBuf, user: u32, group: u32, source: std::io::Error },
    #[error("{} was locked by another for {seconds} s: nothing was changed", path.display())]
    Busy { path: PathBuf, seconds: u64 },
    #[error("[config_store] {key}: {reason}")]
    Section { key: &'static str, reason: String },
    #[error("etcd: cannot {what}: {tried}")]
    EtcdSilent { what: &'static str, tried: String },
    #[error("etcd at {endpoint} refused to {what}: HTTP {status}: {message}")]
    EtcdRefused { endpoint: String, what: &'static str, status: u16, message: String },
    #[error("etcd at {endpoint} answered what this dflux does not understand: {message}")]
    EtcdAnswer { endpoint: String, message: String },
    #[error("PgBouncer's console")]
    ConsoleConnect { source: service::Error },
    #[error("PgBouncer's console failed at {command}")]
    Console { command: String, source: tokio_postgres::Error },
    #[error("PgBouncer's console gave no answer to {command} within {seconds} s")]
    ConsoleSlow { command: String, seconds: u64 },
    #[error("PgBouncer's console answered {command} with what this dflux does not understand: {message}")]
    ConsoleAnswer { command: String, message: String },
    #[error("{} has no entry {database} in [databases]", path.display())]
    NoEntry { path: PathBuf, database: String },
    #[error("{}, line {line}: {reason}", path.display())]
    Entry { path: PathBuf, line: usize, reason: String },
    #[error("database {database} of PgBouncer could not be paused within {seconds} s: {holders}; it was resumed")]
    PauseHeld { database: String, seconds: u64, holders: String },
    #[error("database {database} of PgBouncer is not paused: nothing was changed")]
    NotPaused { database: String },
    #[error("database {database} of PgBouncer may still be paused, and its clients wait: {why}")]
    StillPaused { database: String, why: String },
    #[error("PgBouncer sends clients of {database} to {running}, and {} says {file}", path.display())]
    NotLoaded { database: String, path: PathBuf, file: String, running: String },
    #[error("{count} connection(s) of PgBouncer's {database} to the address before are still held by clients")]
    Survivors { database: String, count: usize },
    #[error("{program} cannot be started")]
    HookStart { program: String, source: std::io::Error },
    #[error("{program} {verb} ended with {status}: {said}")]
    HookFailed { program: String, verb: &'static str, status: String, said: String },
    #[error("{program} {verb} was killed after {seconds} s")]
    HookSlow { program: String, verb: &'static str, seconds: u64 },
    #[error("{program} {verb} wrote what this dflux does not understand: {reason}")]
    HookAnswer { program: String, verb: &'static str, reason: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NotAValue { .. } => {
                "write postgresql://user:password@host:5432/database there, in one line and nothing else".into()
            }
            Error::Absent { .. } => "write the application's present connection URL there first".into(),
            Error::Read { path, .. } => {
                format!("check [config_store], and that {} can be read by this user", path.display())
            }
            Error::Write { .. } => "let this user write into the folder of the file, then run it again".into(),
            Error::Owner { user, group, .. } => {
                format!("run dflux as user {user} with group {group}, or as root")
            }
            Error::Busy { .. } => "wait until the other dflux has ended, then run it again".into(),
            Error::Section { .. } => "README, \"Configuration\", lists every key of [config_store]".into(),
            Error::EtcdSilent { .. } => "check [config_store] endpoints, then etcdctl endpoint health".into(),
            Error::EtcdRefused { status, message, .. }
                if [401, 403].contains(status)
                    || ["authentication", "user name"].iter().any(|word| message.contains(word)) =>
            {
                "correct user and password in [config_store], or etcdctl role grant-permission ROLE readwrite KEY"
                    .into()
            }
            Error::EtcdRefused { .. } => "mend what etcd names, then run it again".into(),
            Error::EtcdAnswer { .. } => "name etcd 3.4 or later in [config_store] endpoints".into(),
            Error::ConsoleConnect { source } => match source.hint() {
                Some(hint) => hint.replace("[pgbouncer] url", "[config_store] admin_url"),
                None => "check [config_store] admin_url".into(),
            },
            Error::Console { .. } => {
                "the user of [config_store] admin_url has to be one of admin_users in pgbouncer.ini".into()
            }
            Error::ConsoleSlow { .. } | Error::ConsoleAnswer { .. } => {
                "check that [config_store] admin_url is PgBouncer's console (database pgbouncer), 1.18 or later".into()
            }
            Error::NoEntry { database, path } => {
                format!("write `{database} = host=… port=… dbname=…` into {}, then RELOAD", path.display())
            }
            Error::Entry { .. } => "mend that line, then RELOAD on PgBouncer's console".into(),
            Error::PauseHeld { .. } => {
                "end those sessions, or set [config_store] held = \"kill\", then run it again".into()
            }
            Error::NotPaused { .. } => "run the command again: it pauses first".into(),
            Error::StillPaused { database, .. } => format!("on PgBouncer's console: RESUME \"{database}\""),
            Error::NotLoaded { .. } => "on PgBouncer's console: RELOAD; its log says if that fails".into(),
            Error::Survivors { database, .. } => {
                format!(
                    "end those sessions, or on PgBouncer's console: KILL \"{database}\", then RESUME \"{database}\""
                )
            }
            Error::HookStart { .. } => "check [config_store] command: a path, and executable".into(),
            Error::HookFailed { .. } | Error::HookSlow { .. } => {
                "run it by hand with `get`: it has to exit with 0".into()
            }
            Error::HookAnswer { .. } => {
                "it has to write {\"value\": \"postgresql://…\", \"version\": \"…\"} (README, \"Config stores\")".into()
            }
        })
    }
}
