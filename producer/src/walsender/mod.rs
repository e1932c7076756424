//! The replication connection: a session in walsender mode on a database, and the stream of a logical slot.
//!
//! tokio-postgres has no replication mode and postgres-protocol no CopyBoth, so the connection is ours; framing, SCRAM and
//! md5 are postgres-protocol's, TLS is rustls. It is thin: it must never know what pgoutput says, when to confirm,
//! or whether to try again. [`WalsenderError::remedy`] says what a failure calls for; the caller decides and counts.
//!
//! ```text
//!   connect ──> simple_query, identify_system, create_slot … ──> start_replication ──> FrameReader ──> frames
//!                                                                                 └──> StatusWriter <── confirmed LSN
//! ```
//!
//! Commands have no time limit here: creating a slot waits for every transaction that was open in the cluster. A caller
//! that gives up drops the connection; the server's end of it may go on waiting, see [`Walsender::backend_pid`].

mod endpoint;
mod error;
mod frame;
mod handshake;
mod stream;
mod tls;
mod wire;

use std::collections::HashMap;

use changelog::Lsn;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator;

use endpoint::{Address, Endpoint, TlsMode};
use handshake::{Session, shake_hands};
use wire::{Received, Wire};

pub use error::{Doing, Refusal, Refused, Remedy, ServerError, WalsenderError};
pub use frame::{Frame, Status};
pub use stream::{FrameReader, ReplicationStream, StatusWriter};

/// One row of a command's answer, as text.
pub type Row = Vec<Option<String>>;

/// What happens to the snapshot at a new slot's consistent point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotAction {
    /// Other sessions may import it until this connection's next command (or its end).
    Export,
    Nothing,
    /// This connection's open transaction reads under it: `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY` must be its only
    /// command before.
    Use,
}

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by initdb, kept by every physical copy.
    pub system_identifier: String,
    pub timeline: i32,
    /// Flushed so far.
    pub xlogpos: Lsn,
    pub dbname: Option<String>,
}

/// The answer to CREATE_REPLICATION_SLOT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions with a commit LSN at or above are streamed, those below are in the snapshot.
    pub consistent_point: Lsn,
    pub snapshot_name: Option<String>,
}

/// An idle session in walsender mode.
pub struct Walsender {
    wire: Wire,
    backend_pid: i32,
    parameters: HashMap<String, String>,
    /// From the sending of a command to its ReadyForQuery. If a caller drops the future in between, the answer is still to come
    /// and would be taken for the next command's.
    busy: bool,
}

impl Walsender {
    /// Connects as the libpq url says. `application_name` is what pg_stat_replication shows.
    ///
    /// Several hosts are tried in order. Each try is bounded by the url's connect_timeout (15 s if it has none).
    ///
    /// # Errors
    /// The last host's error; never contains the password.
    pub async fn connect(url: &str, application_name: &str) -> Result<Self, WalsenderError> {
        let endpoint = Endpoint::parse(url)?;
        let mut last = None;
        for address in &endpoint.addresses {
            match connect_address(&endpoint, address, application_name).await {
                Ok(mut walsender) => {
                    // Not among the options of the start: a version that does not know one would refuse the connection.
                    walsender.simple_query(service::session::LATER_TIMEOUTS_SQL).await?;
                    return Ok(walsender);
                }
                // Not there or not ready: perhaps the next is. A refusal of ours would be the same there.
                Err(error) if error.remedy() == Remedy::Retry => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| WalsenderError::Url { reason: "it names no host".to_owned() }))
    }

    /// The server process behind this connection, to cancel or terminate it from another session.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Whether the connection is TLS.
    pub fn encrypted(&self) -> bool {
        self.wire.encrypted
    }

    /// A parameter that the server reported at the start (`server_version`, `server_encoding`, …).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Runs a replication command or, as walsenders allow it, SQL. All rows of the answer are held in memory.
    ///
    /// # Errors
    /// The server refused, or the connection broke. After a refusal the connection is still usable.
    pub async fn simple_query(&mut self, command: &str) -> Result<Vec<Row>, WalsenderError> {
        self.run(command, &Doing::Query).await
    }

    /// # Errors
    /// As [`simple_query`](Self::simple_query).
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, WalsenderError> {
        let rows = self.run("IDENTIFY_SYSTEM", &Doing::Query).await?;
        let identity = || {
            let row = rows.first()?;
            Some(SystemIdentity {
                system_identifier: row.first()?.clone()?,
                timeline: row.get(1)?.as_deref()?.parse().ok()?,
                xlogpos: row.get(2)?.as_deref()?.parse().ok()?,
                dbname: row.get(3)?.clone(),
            })
        };
        identity().ok_or_else(|| unreadable(&Doing::Query, "IDENTIFY_SYSTEM"))
    }

    /// Creates a logical slot with the plugin pgoutput. Waits for every transaction that is open in the cluster.
    ///
    /// The syntax is that of PostgreSQL 10, which 14 to 18 take too.
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query), or the name is not a slot's.
    pub async fn create_slot(
        &mut self,
        name: &str,
        temporary: bool,
        snapshot: SnapshotAction,
    ) -> Result<CreatedSlot, WalsenderError> {
        check_slot_name(name)?;
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let snapshot = match snapshot {
            SnapshotAction::Export => "EXPORT_SNAPSHOT",
            SnapshotAction::Nothing => "NOEXPORT_SNAPSHOT",
            SnapshotAction::Use => "USE_SNAPSHOT",
        };
        let doing = Doing::CreateSlot { slot: name.to_owned() };
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\"{temporary} LOGICAL pgoutput {snapshot}");
        let rows = self.run(&command, &doing).await?;
        let created = || {
            let row = rows.first()?;
            let consistent_point = row.get(1)?.as_deref()?.parse().ok()?;
            Some(CreatedSlot { consistent_point, snapshot_name: row.get(2)?.clone() })
        };
        created().ok_or_else(|| unreadable(&doing, "CREATE_REPLICATION_SLOT"))
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query); a missing slot is [`Refusal::NoSuchSlot`].
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), WalsenderError> {
        check_slot_name(name)?;
        let doing = Doing::DropSlot { slot: name.to_owned() };
        self.run(&format!("DROP_REPLICATION_SLOT \"{name}\""), &doing).await.map(drop)
    }

    /// Begins to stream. The server starts with the first transaction that commits at or after the later of `start_lsn` and
    /// the slot's `confirmed_flush_lsn`. `options` are the plugin's (`proto_version`, `publication_names`, …).
    ///
    /// # Errors
    /// The server refused or the connection broke; the connection is gone in both cases.
    pub async fn start_replication(
        mut self,
        slot: &str,
        start_lsn: Lsn,
        options: &[(&str, &str)],
    ) -> Result<ReplicationStream, WalsenderError> {
        check_slot_name(slot)?;
        let doing = Doing::Stream { slot: slot.to_owned() };
        let command = start_command(slot, start_lsn, options);
        self.send(&command, &doing).await?;
        loop {
            match self.receive(&doing).await? {
                Received::CopyBoth => return Ok(ReplicationStream::new(self.wire, slot)),
                Received::Message(Message::ErrorResponse(body)) => {
                    return Err(WalsenderError::refused(doing, ServerError::read(body.fields())));
                }
                Received::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                Received::Message(_) => return Err(unreadable(&doing, "START_REPLICATION")),
            }
        }
    }

    /// Says goodbye, so that the server does not log a lost client.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(mut self) -> Result<(), WalsenderError> {
        frontend::terminate(&mut self.wire.output);
        self.wire.flush().await.map_err(|source| WalsenderError::Io { doing: Doing::Query, source })
    }

    async fn send(&mut self, command: &str, doing: &Doing) -> Result<(), WalsenderError> {
        if self.busy {
            return Err(WalsenderError::Abandoned);
        }
        frontend::query(command, &mut self.wire.output)
            .map_err(|error| WalsenderError::Protocol { doing: doing.clone(), reason: error.to_string() })?;
        self.busy = true;
        self.wire.flush().await.map_err(|source| WalsenderError::Io { doing: doing.clone(), source })
    }

    async fn receive(&mut self, doing: &Doing) -> Result<Received, WalsenderError> {
        self.wire.receive().await.map_err(|source| WalsenderError::Io { doing: doing.clone(), source })
    }

    async fn run(&mut self, command: &str, doing: &Doing) -> Result<Vec<Row>, WalsenderError> {
        self.send(command, doing).await?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            match self.receive(doing).await? {
                Received::Message(Message::DataRow(body)) => {
                    rows.push(read_row(&body).ok_or_else(|| unreadable(doing, "a row"))?);
                }
                Received::Message(Message::ErrorResponse(body)) => {
                    let server = ServerError::read(body.fields());
                    // After a FATAL no ReadyForQuery follows.
                    if server.severity == "FATAL" || server.severity == "PANIC" {
                        return Err(WalsenderError::refused(doing.clone(), server));
                    }
                    refused = Some(server);
                }
                Received::Message(Message::ReadyForQuery(_)) => {
                    self.busy = false;
                    return match refused {
                        Some(server) => Err(WalsenderError::refused(doing.clone(), server)),
                        None => Ok(rows),
                    };
                }
                Received::Message(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::NoticeResponse(_)
                    | Message::ParameterStatus(_),
                ) => {}
                Received::Message(_) | Received::CopyBoth => return Err(unreadable(doing, "a command")),
            }
        }
    }
}

async fn connect_address(
    endpoint: &Endpoint,
    address: &Address,
    application_name: &str,
) -> Result<Walsender, WalsenderError> {
    match connect_once(endpoint, address, application_name, endpoint.tls).await {
        // As libpq under sslmode=prefer: TLS that fails, or that pg_hba.conf does not let in, is tried again without.
        Err(error)
            if endpoint.tls == TlsMode::Prefer
                && matches!(address, Address::Tcp { .. })
                && (matches!(error, WalsenderError::Tls { .. }) || error.refusal() == Some(Refusal::NotAdmitted)) =>
        {
            connect_once(endpoint, address, application_name, TlsMode::Disable).await.map_err(|second| match second {
                // Both were refused: the first text is the one about the usual way in.
                WalsenderError::Refused(..) => second,
                _ => error,
            })
        }
        other => other,
    }
}

async fn connect_once(
    endpoint: &Endpoint,
    address: &Address,
    application_name: &str,
    mode: TlsMode,
) -> Result<Walsender, WalsenderError> {
    let connecting = async {
        let mut wire = Wire::open(endpoint, address, mode).await?;
        let Session { backend_pid, parameters } = shake_hands(&mut wire, endpoint, address, application_name).await?;
        Ok(Walsender { wire, backend_pid, parameters, busy: false })
    };
    let timeout = endpoint.connect_timeout;
    match tokio::time::timeout(timeout, connecting).await {
        Ok(result) => result,
        Err(_) => Err(WalsenderError::ConnectTimeout { endpoint: address.to_string(), timeout }),
    }
}

fn start_command(slot: &str, start_lsn: Lsn, options: &[(&str, &str)]) -> String {
    let mut command = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {start_lsn}");
    for (index, (name, value)) in options.iter().enumerate() {
        command.push_str(if index == 0 { " (" } else { ", " });
        command.push_str(&format!("\"{}\" '{}'", name.replace('"', "\"\""), value.replace('\'', "''")));
    }
    if !options.is_empty() {
        command.push(')');
    }
    command
}

/// As `ReplicationSlotValidateName`, so that no name needs quoting.
fn check_slot_name(name: &str) -> Result<(), WalsenderError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(WalsenderError::SlotName { name: name.to_owned() })
    }
}

fn read_row(body: &DataRowBody) -> Option<Row> {
    let mut row = Row::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().ok()? {
        row.push(match range {
            Some(range) => Some(String::from_utf8(body.buffer().get(range)?.to_vec()).ok()?),
            None => None,
        });
    }
    Some(row)
}

fn unreadable(doing: &Doing, what: &str) -> WalsenderError {
    WalsenderError::Protocol { doing: doing.clone(), reason: format!("its answer to {what} is not one that we know") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_of_options_are_quoted() {
        let options = [("proto_version", "1"), ("publication_names", "\"it's\"")];
        assert_eq!(
            start_command("s", Lsn(0x16_B374_D848), &options),
            "START_REPLICATION SLOT \"s\" LOGICAL 16/B374D848 (\"proto_version\" '1', \"publication_names\" '\"it''s\"')"
        );
        assert_eq!(start_command("s", Lsn::ZERO, &[]), "START_REPLICATION SLOT \"s\" LOGICAL 0/0");
    }

    #[test]
    fn only_names_that_postgresql_takes_are_slot_names() {
        assert!(check_slot_name("dflux_migration_slot").is_ok());
        for bad in ["", "Upper", "a-b", "a\"; DROP", &"x".repeat(64)] {
            assert!(check_slot_name(bad).is_err(), "{bad}");
        }
    }
}
