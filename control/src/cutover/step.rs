//! What `decide` can say: one step, what is waited for, or why nobody can go on by himself.

use std::fmt;

use changelog::Lsn;

use super::effect::Effect;
use super::event::{Direction, Epoch, Event};
use super::verb::Outcome;

/// One step of a controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Append this to the journal. A commit record, too, is just this.
    Record(Event),
    /// Do this, under the state's epoch; it is written down as intended.
    Perform(Effect),
    /// Look again a little later.
    Wait(Waiting),
    /// The process ends here, and a person must look first.
    Ambiguous(Doubt),
    /// Nothing is left to do: the process ends with this.
    Finished(Outcome),
}

/// What is waited for, for `status` and for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// Something could not be read.
    Unknown(&'static str),
    Writers {
        writers: u64,
        prepared: u64,
    },
    Lane {
        barrier: Lsn,
        applied: Lsn,
    },
    Conflicts(u64),
    Sessions {
        sessions: u64,
        until_micros: u64,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Unknown(what) => write!(out, "{what} cannot be read"),
            Waiting::Writers { writers, prepared } => {
                write!(out, "{writers} writer(s) and {prepared} prepared transaction(s) are left")
            }
            Waiting::Lane { barrier, applied } => write!(out, "the lane has applied {applied} of {barrier}"),
            Waiting::Conflicts(count) => write!(out, "{count} conflict(s) of the lane are unresolved"),
            Waiting::Sessions { sessions, until_micros } => {
                write!(out, "{sessions} session(s) on the closed side, until {until_micros} µs")
            }
        }
    }
}

/// Why nobody can say by himself how things stand. In each case the closed side stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    ConfigUnreadable,
    /// It holds what neither the application nor this attempt had put there.
    ConfigForeign,
    /// Another controller has gone on from here, with another attempt or not yet to its end.
    Superseded {
        epoch: Epoch,
    },
}

impl Doubt {
    /// The one command that is safe now. It looks again before it does anything.
    pub fn next(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Doubt::Superseded { .. }, _) => "dflux cutover status",
            (Doubt::ConfigUnreadable | Doubt::ConfigForeign, Direction::Forward) => "dflux cutover start",
            (Doubt::ConfigUnreadable | Doubt::ConfigForeign, Direction::Back) => "dflux rollback start",
        }
    }
}
