//! Whether the application can still go back, and for how long: shown by `status` at any time, asked before a rollback.

use std::fmt;

use super::attempt::Phase;
use super::facts::{Facts, Slot};
use super::state::State;

/// Why the application cannot go back without a loss, or may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsafe {
    /// It has not been cut over, or has been rolled back.
    NothingToRollBack,
    Finalized,
    DeadlinePassed,
    SlotLost,
    RetentionPassed,
    SchemaDiffers,
    Conflicts(u64),
    /// Holds until the lane lives again, as the slot keeps its WAL meanwhile.
    LaneDead,
    /// It could not be read.
    Unknown(&'static str),
}

impl fmt::Display for Unsafe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsafe::NothingToRollBack => write!(out, "the application is on the source"),
            Unsafe::Finalized => write!(out, "the migration is finalized"),
            Unsafe::DeadlinePassed => write!(out, "the rollback's deadline has passed"),
            Unsafe::SlotLost => write!(out, "the reverse lane's slot on the target is lost"),
            Unsafe::RetentionPassed => write!(out, "slot or topics no longer hold all of the target's changes"),
            Unsafe::SchemaDiffers => write!(out, "a table was changed on one side only"),
            Unsafe::Conflicts(count) => write!(out, "{count} conflict(s) of the reverse lane are unresolved"),
            Unsafe::LaneDead => write!(out, "the reverse lane does not run"),
            Unsafe::Unknown(what) => write!(out, "{what} cannot be read"),
        }
    }
}

/// Microseconds for which a rollback may still be started and would lose nothing.
///
/// # Errors
/// The gravest reason against it: what cannot be mended before what can.
pub fn rollback_safe(state: &State, facts: &Facts, now_micros: u64) -> Result<u64, Unsafe> {
    let window = match (state.phase, state.window) {
        (Phase::Finalized, _) => return Err(Unsafe::Finalized),
        (_, None) => return Err(Unsafe::NothingToRollBack),
        (_, Some(window)) => window,
    };
    let remaining = window.rollback_deadline_micros.checked_sub(now_micros).ok_or(Unsafe::DeadlinePassed)?;
    let lane = &facts.reverse;
    match (lane.slot, lane.retained, facts.schema_differs, lane.conflicts, lane.alive) {
        (Some(Slot::Lost), ..) => Err(Unsafe::SlotLost),
        (_, Some(false), ..) => Err(Unsafe::RetentionPassed),
        (_, _, Some(true), ..) => Err(Unsafe::SchemaDiffers),
        (_, _, _, Some(count), _) if count > 0 => Err(Unsafe::Conflicts(count)),
        (.., Some(false)) => Err(Unsafe::LaneDead),
        (Some(Slot::Healthy), Some(true), Some(false), Some(_), Some(true)) => Ok(remaining),
        (None, ..) => Err(Unsafe::Unknown("the reverse lane's slot")),
        (_, None, ..) => Err(Unsafe::Unknown("the retention of slot and topics")),
        (_, _, None, ..) => Err(Unsafe::Unknown("the two schemas")),
        (_, _, _, None, _) => Err(Unsafe::Unknown("the reverse lane's conflicts")),
        (.., None) => Err(Unsafe::Unknown("the reverse lane's life")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::event::Policy;
    use crate::cutover::fixture::{LIMITS, Play, SECOND};
    use crate::cutover::verb::{Refusal, Verb, Verdict, verb};

    #[test]
    fn rollback_safe_says_how_long_or_gives_the_gravest_reason() {
        let rollback = Verb::RollbackStart { policy: Policy::Drain, limits: LIMITS };
        let mut play = Play::new();
        let safe = |play: &Play| rollback_safe(&play.state, &play.facts, play.now_micros);
        assert_eq!(safe(&play), Err(Unsafe::NothingToRollBack));
        play.begin(Verb::CutoverStart { policy: Policy::Drain, limits: LIMITS });
        play.run();
        play.now_micros = 600 * SECOND;
        assert_eq!(safe(&play), Ok(1200 * SECOND));
        // Each is graver than those before it, which stay.
        type Case = (Unsafe, fn(&mut Play), &'static str);
        let cases: [Case; 7] = [
            (
                Unsafe::Unknown("the reverse lane's life"),
                |play| play.facts.reverse.alive = None,
                "dflux rollback check",
            ),
            (Unsafe::LaneDead, |play| play.facts.reverse.alive = Some(false), "dflux rollback check"),
            (Unsafe::Conflicts(2), |play| play.facts.reverse.conflicts = Some(2), "dflux rollback check"),
            (Unsafe::SchemaDiffers, |play| play.facts.schema_differs = Some(true), "dflux rollback check"),
            (Unsafe::RetentionPassed, |play| play.facts.reverse.retained = Some(false), "dflux finalize"),
            (Unsafe::SlotLost, |play| play.facts.reverse.slot = Some(Slot::Lost), "dflux finalize"),
            (Unsafe::DeadlinePassed, |play| play.now_micros = 1800 * SECOND + 1, "dflux finalize"),
        ];
        for (reason, disturb, instead) in cases {
            disturb(&mut play);
            assert_eq!(safe(&play), Err(reason));
            let refused = Verdict::Refused { why: Refusal::Rollback(reason), next: instead };
            assert_eq!(verb(rollback, "test", &play.state, &play.facts, play.now_micros), refused);
        }
        play.begin(Verb::Finalize);
        assert_eq!(safe(&play), Err(Unsafe::Finalized));
    }
}
