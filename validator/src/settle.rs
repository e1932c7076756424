//! Which changes stand between two snapshots. Pure.
//!
//! A transaction's effect is in the source snapshot when the snapshot sees its id, and in the target snapshot when its
//! position is at or below the position that the target holds in that same snapshot. The comparison makes sure that
//! the target has applied all that the source snapshot sees (it waits for the WAL position taken after the snapshot). What
//! remains are transactions that the target has and the source snapshot does not see: they were committed after it, or were
//! already in the WAL while new snapshots did not see them yet (long under synchronous replication). Their keys are
//! *in flight*. The transaction id decides and not the LSN, because of the second kind.

use std::str::FromStr;

use changelog::{Op, Position};

use crate::window::Change;

/// What a snapshot of the source sees, as `pg_current_snapshot()` prints it: `xmin:xmax:xid,xid,…`, ids of 64 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSnapshot {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl FromStr for SourceSnapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<SourceSnapshot, String> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let mut running = Vec::new();
            for id in list.split(',').filter(|id| !id.is_empty()) {
                running.push(id.parse().ok()?);
            }
            running.sort_unstable();
            Some(SourceSnapshot { xmin, xmax, running })
        };
        parse().ok_or_else(|| format!("`{text}` is not a snapshot as pg_current_snapshot() prints it"))
    }
}

impl SourceSnapshot {
    /// Whether it sees a transaction whose id is known by its low 32 bits. PostgreSQL keeps all ids in use within 2^31 of
    /// each other, so the one nearest to the snapshot's end is meant.
    pub fn sees(&self, xid: u32) -> bool {
        let from_end = i64::from(xid.wrapping_sub(self.xmax as u32) as i32);
        let Some(full) = self.xmax.checked_add_signed(from_end) else { return true };
        if full >= self.xmax {
            return false;
        }
        full < self.xmin || self.running.binary_search(&full).is_err()
    }
}

/// Why a comparison says nothing; it is tried again, and in the end reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// The lane did not reach the source snapshot's position in time.
    Lag { waited_seconds: u64, detail: String },
    /// Recent changes outgrew the window that remembers them.
    WindowLost,
    /// More keys in flight than one comparison takes.
    TooManyInFlight(usize),
    /// Truncated between the two snapshots.
    Truncated,
    /// A row image in flight lacks a column, or holds one that the table lacks.
    SchemaChanged(String),
    /// The key of a row in flight was changed, and a value of it was not sent.
    Unsent(usize),
    /// A row of a keyless table is in flight and its image is not whole.
    BusyKeyless,
    /// The table's file was replaced under the snapshot, which so reads it as empty.
    Rewritten,
    /// The topics' end was not reached in time.
    TailBehind,
    /// The lane or the table is not in a state in which it promises exactness.
    NotExact(String),
}

impl std::fmt::Display for Unsettled {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unsettled::Lag { waited_seconds, detail } => {
                write!(out, "the lane did not reach the source's position within {waited_seconds} s ({detail})")
            }
            Unsettled::WindowLost => write!(out, "too many changes at once to remember them all"),
            Unsettled::TooManyInFlight(keys) => write!(out, "{keys} rows in flight at once"),
            Unsettled::Truncated => write!(out, "the table was truncated meanwhile"),
            Unsettled::SchemaChanged(what) => write!(out, "the table's columns changed meanwhile: {what}"),
            Unsettled::Unsent(rows) => {
                write!(out, "{rows} rows in flight have got another key, and values that no event has")
            }
            Unsettled::BusyKeyless => {
                write!(out, "busy keyless table: a change in flight does not carry the whole row")
            }
            Unsettled::Rewritten => write!(out, "the table was rewritten meanwhile"),
            Unsettled::TailBehind => write!(out, "the change topics could not be read to their end in time"),
            Unsettled::NotExact(why) => out.write_str(why),
        }
    }
}

/// The changes of a table that the target snapshot has and the source snapshot does not see, in order.
///
/// # Errors
/// `Truncated` if one of them is a truncate.
pub fn in_flight<'a>(
    changes: impl Iterator<Item = &'a Change>,
    source: &SourceSnapshot,
    applied: Position,
) -> Result<Vec<Change>, Unsettled> {
    let mut flying = Vec::new();
    for change in changes {
        if change.position > applied || source.sees(change.xid) {
            continue;
        }
        if change.op == Op::Truncate {
            return Err(Unsettled::Truncated);
        }
        flying.push(change.clone());
    }
    flying.sort_by_key(|change| change.position);
    Ok(flying)
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;
    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> SourceSnapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_transaction_is_seen_if_it_ended_before_the_snapshot() {
        let snapshot = snapshot("10:20:12,15");
        for (xid, seen) in [(9, true), (10, true), (11, true), (12, false), (15, false), (19, true), (20, false)] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
        }
    }

    #[test]
    fn ids_are_told_apart_across_the_wraparound() {
        let epoch = 1_u64 << 32;
        let after = snapshot(&format!("{}:{}:{}", epoch - 2, epoch + 10, epoch - 1));
        for (xid, seen) in [(u32::MAX - 5, true), (u32::MAX - 1, true), (u32::MAX, false), (5, true), (10, false)] {
            assert_eq!(after.sees(xid), seen, "{xid}");
        }
        let before = snapshot(&format!("{}:{}:", epoch - 4, epoch - 4));
        for (xid, seen) in [(u32::MAX - 4, true), (u32::MAX - 3, false), (3, false)] {
            assert_eq!(before.sees(xid), seen, "{xid}");
        }
        assert!(snapshot("3:3:").sees(u32::MAX), "before the first epoch nothing can be running");
    }

    #[test]
    fn text_that_is_no_snapshot_is_refused() {
        for bad in ["", "1", "1:2", "a:b:", "1:2:x", "1:2:3;4"] {
            assert!(bad.parse::<SourceSnapshot>().is_err(), "{bad}");
        }
    }

    fn change(xid: u32, commit_lsn: u64, op: Op) -> Change {
        Change { position: Position::new(Lsn(commit_lsn), 0), xid, op, payload: Vec::new().into() }
    }

    #[test]
    fn only_what_the_target_has_and_the_source_does_not_see_is_in_flight() {
        let source = snapshot("10:20:12");
        let applied = Position::new(Lsn(100), 0);
        let changes = [
            change(11, 50, Op::Update),  // in both
            change(12, 90, Op::Update),  // committed in the WAL, not visible yet: in flight
            change(20, 100, Op::Update), // committed after the snapshot: in flight
            change(21, 101, Op::Update), // in neither
        ];
        let flying = in_flight(changes.iter(), &source, applied).unwrap();
        assert_eq!(flying.iter().map(|change| change.xid).collect::<Vec<_>>(), [12, 20]);
        let truncated = [change(22, 99, Op::Truncate)];
        assert_eq!(in_flight(truncated.iter(), &source, applied), Err(Unsettled::Truncated));
        let later = [change(22, 101, Op::Truncate)];
        assert_eq!(in_flight(later.iter(), &source, applied), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_one_snapshot_sees_every_later_one_sees(
            xmin in 0_u64..1 << 33, length in 0_u64..40, more in 0_u64..40, seed: u64, at in 0_u64..40,
        ) {
            let xmax = xmin + length;
            let running: Vec<u64> = (xmin..xmax).filter(|id| (seed >> (id % 64)) & 1 == 1).collect();
            let earlier = SourceSnapshot { xmin, xmax, running: running.clone() };
            let still: Vec<u64> = running.iter().copied().filter(|id| id % 2 == 0).collect();
            let later = SourceSnapshot { xmin, xmax: xmax + more, running: still };
            let xid = (xmin + at) as u32;
            prop_assert!(!earlier.sees(xid) || later.sees(xid));
        }
    }
}
