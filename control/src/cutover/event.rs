//! The journal: what has happened, one event a record, never changed and never removed. It is the authority and the audit
//! log in one.
//!
//! A record is kept as one line of JSON that carries the SHA-256 of the line before it. The digest is taken of the text as it
//! was written, not of its meaning: a later version that writes more fields can still verify what an earlier one wrote.
//! The chain shows that a record was changed, lost or put in between; that the last ones are missing it can't show, as
//! nobody keeps the head elsewhere.

use std::fmt::{self, Write as _};

use changelog::Lsn;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::effect::Effect;

/// One of the two databases, by its part in the migration, which a rollback does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Source,
    Target,
}

impl Side {
    pub fn other(self) -> Side {
        match self {
            Side::Source => Side::Target,
            Side::Target => Side::Source,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

/// Which way the application is moved. A rollback is the same steps with the roles exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    #[default]
    Forward,
    Back,
}

impl Direction {
    /// The side that is closed.
    pub fn closing(self) -> Side {
        match self {
            Direction::Forward => Side::Source,
            Direction::Back => Side::Target,
        }
    }

    /// The side that is opened.
    pub fn opening(self) -> Side {
        self.closing().other()
    }
}

/// What sessions on the closing side may still do (DESIGN.md, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Nothing: their next write is refused, and they are ended at once.
    Fenced,
    /// Transactions that are open complete; sessions may read until the drain's deadline.
    Drain,
    /// Sessions opened before the switch write until the drain's deadline, both lanes live. Forward only.
    Dual,
}

impl Policy {
    /// How the fence is closed first.
    pub fn first_mode(self) -> Mode {
        match self {
            Policy::Fenced => Mode::Closed,
            Policy::Drain => Mode::OldTransactions,
            Policy::Dual => Mode::OldSessions,
        }
    }
}

/// Whose writes a fence lets through, each fewer than the one before. The lanes' own writes always pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Open,
    /// Those of sessions that were opened before the fence closed.
    OldSessions,
    /// Those of transactions that had begun before the fence closed.
    OldTransactions,
    Closed,
    /// Closed, and not to be opened again but by the journal. What comes before it on the source can be undone there alone, by
    /// `reopen_alone`, should the target, and the journal with it, be lost while the source is closed.
    Sealed,
}

/// Grows with every change of what is wanted or of who wants it; a fencing token for every effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What a config store calls a version: etcd's `mod_revision`, a file's generation. Only ever compared for equality. A store must
/// not give one version to two writes, even of the same content, or an old compare-and-swap could pass after a round trip.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub String);

/// Bounds of one attempt, microseconds. Recorded, so that a later process with another configuration keeps to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// From the first intent to close the fence to the commit record; beyond it the attempt is aborted.
    pub max_outage_micros: u64,
    pub drain_micros: u64,
    pub rollback_micros: u64,
}

/// Why an attempt was given up. Always before its commit record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AbortReason {
    /// `dflux cutover abort`.
    Operator,
    /// The gate's pass grew older than `GATE_MICROS_MAX` before the fence was closed.
    GateVoid,
    OutageExceeded,
    /// Rows that the lane should have made equal are not.
    DeltaDiffers {
        keys: u64,
    },
    /// The config store was changed, or does not answer.
    ConfigChanged,
    /// Somebody else moved a fence.
    FenceMoved {
        side: Side,
    },
    /// The lane that a rollback would need is not there.
    ReturnLaneLost,
}

/// What has happened. Times in microseconds of the journal's clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The gate was passed and an attempt begins. Raises the epoch.
    Started {
        holder: String,
        direction: Direction,
        policy: Policy,
        limits: Limits,
        gate_passed_at_micros: u64,
        config_version: Version,
    },
    /// Another process goes on. Raises the epoch.
    TakenOver {
        holder: String,
    },
    /// The attempt is given up; the closing side will be opened again. Raises the epoch.
    AbortStarted {
        holder: String,
        reason: AbortReason,
    },
    /// An effect is about to be performed, perhaps again.
    Intended {
        effect: Effect,
    },
    FenceClosed {
        side: Side,
        mode: Mode,
    },
    /// No writer that the fence lets through, and no prepared transaction, is left.
    Quiet,
    BarrierEmitted {
        #[serde(with = "lsn_text")]
        lsn: Lsn,
    },
    /// The lane has durably applied everything up to the barrier.
    BarrierAcknowledged,
    /// The opening side's sequences, triggers, foreign keys and statistics are ready for the application.
    Readied,
    DeltaVerified {
        keys: u64,
        different: u64,
    },
    /// Where the lane back begins: both sides are closed, so no write of the application lies below and is not carried.
    ReturnRecorded {
        #[serde(with = "lsn_text")]
        lsn: Lsn,
    },
    /// The point of no return.
    Committed {
        cutover_at_micros: u64,
        drain_deadline_micros: u64,
        rollback_deadline_micros: Option<u64>,
    },
    FenceOpened {
        side: Side,
    },
    /// Read back from the store.
    ConfigSwitched {
        version: Version,
    },
    /// The store said neither yes nor no, or holds what nobody here wrote.
    ConfigAmbiguous,
    /// The store was read and is as it was: the write had no effect and may be tried again.
    ConfigUnchanged,
    CanaryWritten,
    /// The drain's deadline is brought forward, because a rollback is wanted. Raises the epoch.
    DrainHastened {
        holder: String,
        deadline_micros: u64,
    },
    SessionsEnded,
    /// No rollback from here on. Raises the epoch.
    Finalized {
        holder: String,
    },
    /// What was installed for the way back is gone.
    Ended,
}

impl Event {
    /// Whether it is written under an epoch of its own.
    pub fn raises_epoch(&self) -> bool {
        match self {
            Event::Started { .. }
            | Event::TakenOver { .. }
            | Event::AbortStarted { .. }
            | Event::DrainHastened { .. }
            | Event::Finalized { .. } => true,
            Event::Intended { .. }
            | Event::FenceClosed { .. }
            | Event::Quiet
            | Event::BarrierEmitted { .. }
            | Event::BarrierAcknowledged
            | Event::Readied
            | Event::DeltaVerified { .. }
            | Event::ReturnRecorded { .. }
            | Event::Committed { .. }
            | Event::FenceOpened { .. }
            | Event::ConfigSwitched { .. }
            | Event::ConfigAmbiguous
            | Event::ConfigUnchanged
            | Event::CanaryWritten
            | Event::SessionsEnded
            | Event::Ended => false,
        }
    }
}

/// One line of the journal without its link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// From 0, without gaps: the journal's key, and so what an append is compared against.
    pub sequence: u64,
    pub epoch: Epoch,
    pub at_micros: u64,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Serialize, Deserialize)]
struct Line {
    previous: String,
    #[serde(flatten)]
    record: Record,
}

/// What is wrong with a journal's text.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("record {index} of the journal cannot be read")]
    Unreadable { index: usize, source: serde_json::Error },
    #[error("record {index} of the journal says that it is number {found}: one is missing or was put in between")]
    Misplaced { index: usize, found: u64 },
    #[error("record {index} of the journal does not follow from the one before it: one of the two was changed")]
    Broken { index: usize },
}

/// The text that is stored for `record`, behind the line `previous` (none for the first).
pub fn line(previous: Option<&str>, record: &Record) -> String {
    let line = Line { previous: link(previous), record: record.clone() };
    serde_json::to_string(&line).expect("texts and numbers are always JSON")
}

/// The records of a journal, in order.
///
/// # Errors
/// Names the first record that does not follow from the one before it.
pub fn verify<T: AsRef<str>>(lines: &[T]) -> Result<Vec<Record>, ChainError> {
    let mut records = Vec::with_capacity(lines.len());
    let mut previous = None;
    for (index, text) in lines.iter().map(AsRef::as_ref).enumerate() {
        let line: Line = serde_json::from_str(text).map_err(|source| ChainError::Unreadable { index, source })?;
        if line.record.sequence != index as u64 {
            return Err(ChainError::Misplaced { index, found: line.record.sequence });
        }
        if line.previous != link(previous) {
            return Err(ChainError::Broken { index });
        }
        previous = Some(text);
        records.push(line.record);
    }
    Ok(records)
}

/// SHA-256 of a line, lower-case hexadecimal; of the empty text before the first.
fn link(line: Option<&str>) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, line.unwrap_or_default().as_bytes()).as_ref() {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// LSNs as PostgreSQL prints them: the journal is read by people.
mod lsn_text {
    use changelog::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::fixture;

    fn journal() -> (Vec<Record>, Vec<String>) {
        let records = fixture::whole_story();
        let mut lines: Vec<String> = Vec::new();
        for record in &records {
            lines.push(line(lines.last().map(String::as_str), record));
        }
        (records, lines)
    }

    #[test]
    fn a_journal_reads_back_as_it_was_written() {
        let (records, lines) = journal();
        assert_eq!(verify(&lines).unwrap(), records);
        assert!(verify::<&str>(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_the_happy_story_lacks_reads_back_too() {
        let holder = || "host:17".to_owned();
        let reasons = [
            AbortReason::Operator,
            AbortReason::DeltaDiffers { keys: 2 },
            AbortReason::FenceMoved { side: Side::Target },
        ];
        let aborts = reasons.map(|reason| Event::AbortStarted { holder: holder(), reason });
        let others = [
            Event::TakenOver { holder: holder() },
            Event::DrainHastened { holder: holder(), deadline_micros: u64::MAX },
            Event::ConfigAmbiguous,
            Event::ConfigUnchanged,
            Event::Intended { effect: Effect::SwitchConfig { expected: Version("\"7\"".into()), to: Side::Target } },
        ];
        for event in aborts.into_iter().chain(others) {
            let record = Record { sequence: 0, epoch: Epoch(1), at_micros: 1, event };
            assert_eq!(verify(&[line(None, &record)]).unwrap(), [record]);
        }
    }

    #[test]
    fn a_line_is_flat_json_with_lsns_as_postgresql_prints_them() {
        let event = Event::BarrierEmitted { lsn: Lsn(0x16_B374_D848) };
        let text = line(None, &Record { sequence: 0, epoch: Epoch(3), at_micros: 7, event });
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let rest = r#""sequence":0,"epoch":3,"at_micros":7,"event":"barrier_emitted","lsn":"16/B374D848""#;
        assert_eq!(text, format!(r#"{{"previous":"{empty}",{rest}}}"#));
    }

    #[test]
    fn every_change_of_a_line_before_the_last_is_found() {
        let (_, lines) = journal();
        for index in 0..lines.len() - 1 {
            let mut changed = lines.clone();
            changed[index] = changed[index].replace("\"at_micros\":", "\"at_micros\":9");
            assert!(matches!(verify(&changed), Err(ChainError::Broken { index: found }) if found == index + 1));
            changed.remove(index);
            assert!(matches!(verify(&changed), Err(ChainError::Misplaced { index: found, .. }) if found == index));
            changed.clone_from(&lines);
            changed.swap(index, index + 1);
            assert!(verify(&changed).is_err());
        }
    }

    #[test]
    fn what_is_no_record_is_an_error_that_names_its_place() {
        let (_, mut lines) = journal();
        lines[2] = "{\"sequence\":2}".into();
        assert!(matches!(verify(&lines), Err(ChainError::Unreadable { index: 2, .. })));
    }
}
