//! `Position`: the one key for order, idempotence and resumption.

use std::fmt;

use crate::Lsn;

/// A manifest covers at most this many changes (ordinals) of one transaction; a longer transaction is cut into
/// segments at its multiples. Fixed and not configurable: a producer that restarts in the middle of a
/// transaction must cut it at the very same places.
pub const SEGMENT_CHANGES: u64 = 10_000;

/// The place of one event in a lane; grows strictly.
///
/// `ordinal` is the 0-based place of the change in its transaction, counted over every change that the server sends, before
/// any filter, so that decoding a transaction again yields the same positions. `part` tells apart what one change becomes:
/// delete (0) and create (1) of a key change, or the pieces of these ([`crate::piece`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub commit_lsn: Lsn,
    pub ordinal: u64,
    pub part: u32,
}

impl Position {
    /// Before every event of every lane.
    pub const ZERO: Position = Position { commit_lsn: Lsn::ZERO, ordinal: 0, part: 0 };

    /// The position of part 0 of a change.
    pub fn new(commit_lsn: Lsn, ordinal: u64) -> Position {
        Position { commit_lsn, ordinal, part: 0 }
    }

    /// Whether it is the first event of its change: what lies before it can be applied by itself.
    pub fn begins_change(&self) -> bool {
        self.part == 0
    }

    /// The segment of the transaction that holds this change, from 0.
    pub fn segment(&self) -> u64 {
        self.ordinal / SEGMENT_CHANGES
    }
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (ordinal {}", self.commit_lsn, self.ordinal)?;
        if self.part > 0 {
            write!(out, ", part {}", self.part)?;
        }
        write!(out, ")")
    }
}
