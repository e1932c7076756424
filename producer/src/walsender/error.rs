//! Everything that can go wrong on a replication connection, each with what to do about it.
//!
//! The server's own text may be translated (`lc_messages`), so a refusal is told apart by its SQLSTATE, by what was being
//! done, and by names that are never translated (`wal_level`, `max_wal_senders`, `pg_hba.conf`, quoted identifiers).

use std::fmt;
use std::time::Duration;

use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// An ErrorResponse as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    /// Lossy: before authentication the server may not yet know our encoding.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut read = Self {
            severity: String::new(),
            sqlstate: String::new(),
            message: "(no message)".to_owned(),
            detail: None,
            hint: None,
        };
        while let Ok(Some(field)) = fields.next() {
            let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' if read.severity.is_empty() => read.severity = value(),
                // The severity that is never translated.
                b'V' => read.severity = value(),
                b'C' => read.sqlstate = value(),
                b'M' => read.message = value(),
                b'D' => read.detail = Some(value()),
                b'H' => read.hint = Some(value()),
                _ => {}
            }
        }
        read
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        match &self.detail {
            Some(detail) => write!(formatter, ": {detail}"),
            None => Ok(()),
        }
    }
}

/// What was being done when the server refused; also what tells refusals with one SQLSTATE apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    Connect { endpoint: String, user: String, database: String },
    Query,
    CreateSlot { slot: String },
    DropSlot { slot: String },
    Stream { slot: String },
}

impl fmt::Display for Doing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { endpoint, user, database } => {
                write!(formatter, "connect to database {database} at {endpoint} as {user}")
            }
            Self::Query => formatter.write_str("run a replication command"),
            Self::CreateSlot { slot } => write!(formatter, "create slot {slot}"),
            Self::DropSlot { slot } => write!(formatter, "drop slot {slot}"),
            Self::Stream { slot } => write!(formatter, "stream from slot {slot}"),
        }
    }
}

/// Why the server said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 28P01
    WrongPassword,
    /// 28000: no line of pg_hba.conf lets this connection in.
    NotAdmitted,
    /// 28000: the role does not exist or may not log in.
    NoSuchRole,
    /// 3D000
    NoSuchDatabase,
    /// 42501 at connect: no CONNECT privilege on the database.
    NoConnectPrivilege,
    /// 42501: the role lacks REPLICATION.
    NotReplicationRole,
    /// 55000: wal_level is not logical.
    WalLevel,
    /// 55006: another connection streams from the slot.
    SlotInUse,
    /// 42704
    NoSuchSlot,
    /// 42710
    SlotExists,
    /// 53400
    AllSlotsInUse,
    /// 53300: max_wal_senders.
    TooManySenders,
    /// 53300: max_connections.
    TooManyConnections,
    /// 55000, 58P01: the WAL that the slot needs is gone.
    SlotLost,
    /// 57P01, 57P02, 57P03, 57P05 and class 08: the server stops, starts, or ended this session.
    Unavailable,
    Other,
}

/// A refusal in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub doing: Doing,
    pub refusal: Refusal,
    pub server: ServerError,
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.fmt(formatter)
    }
}

impl std::error::Error for Refused {}

/// What the caller should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Connect again after a pause; it may go away by itself.
    Retry,
    /// A person must act first.
    Stop,
}

#[derive(Debug, thiserror::Error)]
pub enum WalsenderError {
    /// Never carries the url: a password may be in it.
    #[error("the connection url is not usable: {reason}")]
    Url { reason: String },
    #[error("cannot connect to {endpoint}")]
    Connect { endpoint: String, source: std::io::Error },
    #[error("no answer from {endpoint} within {} s while connecting", .timeout.as_secs())]
    ConnectTimeout { endpoint: String, timeout: Duration },
    #[error("cannot read {path} named by {parameter}: {reason}")]
    CertificateFile { parameter: &'static str, path: String, reason: String },
    #[error("TLS with {endpoint} failed")]
    Tls { endpoint: String, source: std::io::Error },
    #[error("{endpoint} does not speak TLS, and sslmode={sslmode} demands it")]
    TlsRefused { endpoint: String, sslmode: &'static str },
    #[error("{endpoint} asks for a password for {user} and the url has none")]
    PasswordMissing { endpoint: String, user: String },
    #[error("authentication with {endpoint} failed: {reason}")]
    Authentication { endpoint: String, reason: String },
    #[error("cannot {}", .0.doing)]
    Refused(#[source] Box<Refused>),
    #[error("cannot {doing}: the connection broke")]
    Io { doing: Doing, source: std::io::Error },
    #[error("cannot {doing}: the server broke the protocol: {reason}")]
    Protocol { doing: Doing, reason: String },
    #[error("the server ended the stream of slot {slot}")]
    StreamEnded { slot: String },
    #[error("slot name {name:?} is not valid")]
    SlotName { name: String },
    #[error("this replication connection was left in the middle of a command and cannot be used again")]
    Abandoned,
}

impl WalsenderError {
    pub(super) fn refused(doing: Doing, server: ServerError) -> Self {
        let refusal = classify(&doing, &server);
        Self::Refused(Box::new(Refused { doing, refusal, server }))
    }

    /// The server's SQLSTATE, where the server spoke.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused(refused) => Some(&refused.server.sqlstate),
            _ => None,
        }
    }

    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refused) => Some(refused.refusal),
            _ => None,
        }
    }

    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Io { .. }
            | Self::StreamEnded { .. }
            | Self::Abandoned => Remedy::Retry,
            Self::Url { .. }
            | Self::CertificateFile { .. }
            | Self::Tls { .. }
            | Self::TlsRefused { .. }
            | Self::PasswordMissing { .. }
            | Self::Authentication { .. }
            | Self::Protocol { .. }
            | Self::SlotName { .. } => Remedy::Stop,
            Self::Refused(refused) => match refused.refusal {
                // A zombie of ours may still hold the slot, or a sender's place, until wal_sender_timeout.
                Refusal::SlotInUse | Refusal::TooManySenders | Refusal::TooManyConnections | Refusal::Unavailable => {
                    Remedy::Retry
                }
                Refusal::WrongPassword
                | Refusal::NotAdmitted
                | Refusal::NoSuchRole
                | Refusal::NoSuchDatabase
                | Refusal::NoConnectPrivilege
                | Refusal::NotReplicationRole
                | Refusal::WalLevel
                | Refusal::NoSuchSlot
                | Refusal::SlotExists
                | Refusal::AllSlotsInUse
                | Refusal::SlotLost
                | Refusal::Other => Remedy::Stop,
            },
        }
    }

    /// The very command where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Url { .. } => {
                "postgres://user:password@host:5432/database?sslmode=prefer, with % escapes for special \
                                 characters in the parts"
                    .to_owned()
            }
            Self::Connect { endpoint, .. } | Self::ConnectTimeout { endpoint, .. } => format!(
                "check host and port of the url and that the server listens there ({endpoint}): SHOW listen_addresses"
            ),
            Self::CertificateFile { parameter, .. } => {
                format!("{parameter} must name a readable PEM file of certificates or of one private key")
            }
            Self::Tls { .. } => "sslrootcert=FILE must name the authority that signed the server's certificate; \
                                 sslmode=verify-full also needs the url's host among its subject alternative names \
                                 (X.509 version 3); sslmode=require checks neither"
                .to_owned(),
            Self::TlsRefused { .. } => {
                "ALTER SYSTEM SET ssl = on (with a certificate) and pg_reload_conf(), or sslmode=prefer in the url"
                    .to_owned()
            }
            Self::PasswordMissing { user, .. } => format!("postgres://{user}:PASSWORD@… in the url"),
            Self::Authentication { .. } => {
                "the server must offer scram-sha-256, md5, password or trust to this connection: see pg_hba.conf"
                    .to_owned()
            }
            Self::SlotName { .. } => {
                "a slot's name has 1 to 63 lower case letters, digits and underscores: [migration] slot".to_owned()
            }
            Self::Refused(refused) => return refused_hint(refused),
            Self::Io { .. } | Self::Protocol { .. } | Self::StreamEnded { .. } | Self::Abandoned => return None,
        })
    }
}

fn classify(doing: &Doing, server: &ServerError) -> Refusal {
    let says =
        |what: &str| server.message.contains(what) || server.detail.as_deref().is_some_and(|text| text.contains(what));
    match server.sqlstate.as_str() {
        "28P01" => Refusal::WrongPassword,
        "28000" if says("pg_hba.conf") => Refusal::NotAdmitted,
        "28000" => Refusal::NoSuchRole,
        "3D000" => Refusal::NoSuchDatabase,
        "42501" => match doing {
            Doing::Connect { database, .. } if says(&format!("\"{database}\"")) => Refusal::NoConnectPrivilege,
            _ => Refusal::NotReplicationRole,
        },
        "55000" if says("wal_level") => Refusal::WalLevel,
        "55000" if says("no longer") || says("invalidated") || says("max_slot_wal_keep_size") => Refusal::SlotLost,
        "58P01" if matches!(doing, Doing::Stream { .. }) => Refusal::SlotLost,
        "55006" => Refusal::SlotInUse,
        "42704" if matches!(doing, Doing::Stream { .. } | Doing::DropSlot { .. }) => Refusal::NoSuchSlot,
        "42710" => Refusal::SlotExists,
        "53400" => Refusal::AllSlotsInUse,
        "53300" if says("max_wal_senders") => Refusal::TooManySenders,
        "53300" => Refusal::TooManyConnections,
        "57P01" | "57P02" | "57P03" | "57P05" => Refusal::Unavailable,
        state if state.starts_with("08") => Refusal::Unavailable,
        _ => Refusal::Other,
    }
}

fn refused_hint(refused: &Refused) -> Option<String> {
    let server = &refused.server;
    let (user, database) = match &refused.doing {
        Doing::Connect { user, database, .. } => (user.as_str(), database.as_str()),
        _ => ("current_user", "current_database"),
    };
    let slot = match &refused.doing {
        Doing::CreateSlot { slot } | Doing::DropSlot { slot } | Doing::Stream { slot } => slot.as_str(),
        Doing::Connect { .. } | Doing::Query => "",
    };
    Some(match refused.refusal {
        Refusal::WrongPassword => format!("check the password in the url, or: ALTER ROLE \"{user}\" PASSWORD '…'"),
        Refusal::NotAdmitted => format!(
            "add to pg_hba.conf `host {database} {user} <our address>/32 scram-sha-256` (hostssl for TLS only), then \
             SELECT pg_reload_conf()"
        ),
        Refusal::NoSuchRole => format!("CREATE ROLE \"{user}\" LOGIN REPLICATION PASSWORD '…'"),
        Refusal::NoSuchDatabase => {
            format!("check the database in the url ({database}): SELECT datname FROM pg_database")
        }
        Refusal::NoConnectPrivilege => format!("GRANT CONNECT ON DATABASE \"{database}\" TO \"{user}\""),
        Refusal::NotReplicationRole => match user {
            "current_user" => "ALTER ROLE current_user REPLICATION".to_owned(),
            _ => format!("ALTER ROLE \"{user}\" REPLICATION"),
        },
        Refusal::WalLevel => "ALTER SYSTEM SET wal_level = logical, then restart the server".to_owned(),
        Refusal::SlotInUse => match last_number(&server.message) {
            Some(pid) => format!(
                "if that is not a running producer: SELECT pg_terminate_backend({pid}); else stop one of the two producers"
            ),
            None => format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        },
        Refusal::NoSuchSlot => format!(
            "SELECT slot_name, database FROM pg_replication_slots; without slot {slot} the lane has a gap: dflux cleanup, \
             then begin the migration anew"
        ),
        Refusal::SlotExists => {
            format!("SELECT pg_drop_replication_slot('{slot}') if nothing needs it, or set another [migration] slot")
        }
        Refusal::AllSlotsInUse => {
            "ALTER SYSTEM SET max_replication_slots = <more>, then restart the server; or drop one of: \
                                   SELECT slot_name, active FROM pg_replication_slots"
                .to_owned()
        }
        Refusal::TooManySenders => {
            "ALTER SYSTEM SET max_wal_senders = <more>, then restart the server; now connected: \
                                    SELECT pid, application_name FROM pg_stat_replication"
                .to_owned()
        }
        Refusal::TooManyConnections => "ALTER SYSTEM SET max_connections = <more>, then restart the server".to_owned(),
        Refusal::SlotLost => format!(
            "the WAL that slot {slot} needs is gone (max_slot_wal_keep_size): dflux cleanup, raise max_slot_wal_keep_size, \
             then begin the migration anew"
        ),
        Refusal::Unavailable | Refusal::Other => return server.hint.clone(),
    })
}

/// The process id at the end of `replication slot "x" is active for PID 123`, in any language.
fn last_number(text: &str) -> Option<u32> {
    let end = text.rfind(|letter: char| letter.is_ascii_digit())? + 1;
    let head = text.get(..end)?;
    let start = head.rfind(|letter: char| !letter.is_ascii_digit()).map_or(0, |before| before + 1);
    head.get(start..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(doing: Doing, sqlstate: &str, message: &str) -> WalsenderError {
        let server = ServerError {
            severity: "FATAL".into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
        };
        WalsenderError::refused(doing, server)
    }

    #[test]
    fn each_refusal_is_told_apart_and_has_the_command_that_helps() {
        let connect = || Doing::Connect { endpoint: "db:5432".into(), user: "mover".into(), database: "shop".into() };
        let create = || Doing::CreateSlot { slot: "s".into() };
        let stream = || Doing::Stream { slot: "s".into() };
        let cases = [
            (
                connect(),
                "28P01",
                "password authentication failed for user \"mover\"",
                Refusal::WrongPassword,
                "ALTER ROLE \"mover\" PASSWORD",
            ),
            (connect(), "28000", "no pg_hba.conf entry for host", Refusal::NotAdmitted, "host shop mover"),
            (connect(), "28000", "role \"mover\" does not exist", Refusal::NoSuchRole, "CREATE ROLE \"mover\""),
            (connect(), "3D000", "database \"shop\" does not exist", Refusal::NoSuchDatabase, "pg_database"),
            (
                connect(),
                "42501",
                "must be superuser or replication role to start walsender",
                Refusal::NotReplicationRole,
                "ALTER ROLE \"mover\" REPLICATION",
            ),
            (
                connect(),
                "42501",
                "permission denied for database \"shop\"",
                Refusal::NoConnectPrivilege,
                "GRANT CONNECT ON DATABASE \"shop\"",
            ),
            (
                connect(),
                "53300",
                "number of requested standby connections exceeds max_wal_senders (currently 1)",
                Refusal::TooManySenders,
                "max_wal_senders",
            ),
            (connect(), "53300", "sorry, too many clients already", Refusal::TooManyConnections, "max_connections"),
            (
                create(),
                "55000",
                "logical decoding requires wal_level >= logical",
                Refusal::WalLevel,
                "ALTER SYSTEM SET wal_level = logical",
            ),
            (create(), "53400", "all replication slots are in use", Refusal::AllSlotsInUse, "max_replication_slots"),
            (
                create(),
                "42710",
                "replication slot \"s\" already exists",
                Refusal::SlotExists,
                "pg_drop_replication_slot('s')",
            ),
            (
                stream(),
                "55006",
                "replication slot \"s2\" is active for PID 4711",
                Refusal::SlotInUse,
                "pg_terminate_backend(4711)",
            ),
            (stream(), "42704", "replication slot \"s\" does not exist", Refusal::NoSuchSlot, "pg_replication_slots"),
            (
                stream(),
                "55000",
                "can no longer get changes from replication slot \"s\"",
                Refusal::SlotLost,
                "max_slot_wal_keep_size",
            ),
            (
                stream(),
                "58P01",
                "requested WAL segment 00 has already been removed",
                Refusal::SlotLost,
                "max_slot_wal_keep_size",
            ),
        ];
        for (doing, sqlstate, message, expected, hint) in cases {
            let error = refusal(doing, sqlstate, message);
            assert_eq!(error.refusal(), Some(expected), "{message}");
            assert_eq!(error.sqlstate(), Some(sqlstate));
            let given = error.hint().unwrap();
            assert!(given.contains(hint), "{message}: {given}");
        }
    }

    #[test]
    fn a_slot_in_use_is_retried_and_a_wrong_password_is_not() {
        let stream = Doing::Stream { slot: "s".into() };
        assert_eq!(refusal(stream.clone(), "55006", "active").remedy(), Remedy::Retry);
        assert_eq!(refusal(stream.clone(), "57P01", "terminating").remedy(), Remedy::Retry);
        assert_eq!(refusal(stream, "28P01", "password").remedy(), Remedy::Stop);
    }
}
