//! Planted bugs: each is one that a system of the field has had, or one that this design could have. The checker has to find
//! every one of them; each bends one decision, one fact or one effect, and nothing else.

use changelog::Lsn;
use control::cutover::*;

use super::{Database, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// spirit #1207.
    ReturnPositionAfterSwitch,
    /// pgcopydb #1049: the lane says that it is done.
    SuccessWithUnapplied,
    /// yb-voyager #2321: whoever takes over sees nothing to do.
    ResumeIgnoresCutover,
    /// pg_easy_replicate's `rescue`, pgdog's `ok_or_abort!`: trouble behind the commit record reopens the closed side.
    ReopenedAfterCommit,
    /// spirit's contract, broken.
    ConfigRetriedBlindly,
    OpenedBeforeAcknowledgement,
    PreparedNotCounted,
    StaleControllerNotFenced,
    /// vitess #19680: the closed side is frozen only behind the journal, and a second process takes it for frozen.
    StoppedNotFrozen,
    /// vitess #9400.
    CutInLongTransaction,
    /// An abort under the epoch of its start: what was sent and given up can undo it.
    OneEpochPerAttempt,
    /// An effect is skipped because it seems done.
    EffectSkipped,
    SequencesNotSet,
    /// `rollback start` asks nobody whether it is safe.
    RollbackUnchecked,
    /// The source is opened by itself although it is sealed.
    ReopenedThoughSealed,
    /// It is sealed although it was opened by itself.
    SealedThoughOpen,
}

impl Mutant {
    pub const ALL: [Mutant; 16] = [
        Mutant::ReturnPositionAfterSwitch,
        Mutant::SuccessWithUnapplied,
        Mutant::ResumeIgnoresCutover,
        Mutant::ReopenedAfterCommit,
        Mutant::ConfigRetriedBlindly,
        Mutant::OpenedBeforeAcknowledgement,
        Mutant::PreparedNotCounted,
        Mutant::StaleControllerNotFenced,
        Mutant::StoppedNotFrozen,
        Mutant::CutInLongTransaction,
        Mutant::OneEpochPerAttempt,
        Mutant::EffectSkipped,
        Mutant::SequencesNotSet,
        Mutant::RollbackUnchecked,
        Mutant::ReopenedThoughSealed,
        Mutant::SealedThoughOpen,
    ];
}

/// Whether this epoch is not the one that the attempt began under.
fn taken_over(state: &State) -> bool {
    state.attempt.as_ref().is_some_and(|attempt| attempt.started != state.epoch)
}

pub fn facts(mutant: Option<Mutant>, state: &State, mut facts: Facts) -> Facts {
    match mutant {
        Some(Mutant::SuccessWithUnapplied) => {
            facts.forward.applied = Some(Lsn(u64::MAX));
            facts.reverse.applied = Some(Lsn(u64::MAX));
        }
        // It believes its own record.
        Some(Mutant::StoppedNotFrozen) => {
            let sealed = state.attempt.as_ref().is_some_and(|attempt| attempt.fence == Some(Mode::Sealed));
            for fence in [&mut facts.source.fence, &mut facts.target.fence] {
                if let Some((mode @ Mode::OldTransactions, _)) = fence
                    && sealed
                {
                    *mode = Mode::Sealed;
                }
            }
        }
        Some(Mutant::PreparedNotCounted) => {
            facts.source.prepared = Some(0);
            facts.target.prepared = Some(0);
        }
        Some(Mutant::CutInLongTransaction) => {
            facts.source.writers = Some(0);
            facts.target.writers = Some(0);
        }
        _ => {}
    }
    facts
}

/// The delta verification would find most of these bugs by itself: a second net. To see that the first one holds, the mutants
/// that it would catch have it blind.
pub fn different(mutant: Option<Mutant>, found: u64) -> u64 {
    if mutant.is_some() { 0 } else { found }
}

pub fn decide(mutant: Option<Mutant>, state: &State, facts: &Facts, now_micros: u64) -> Step {
    let real = control::cutover::decide(state, facts, now_micros);
    let (closing, opening) = (state.direction.closing(), state.direction.opening());
    let mine = facts.epoch == Some(state.epoch);
    match mutant {
        Some(Mutant::ResumeIgnoresCutover) if mine && taken_over(state) && state.phase != Phase::Aborting => {
            Step::Finished(Outcome::Done)
        }
        Some(Mutant::ReopenedAfterCommit)
            if mine && (state.phase == Phase::Ambiguous || state.phase == Phase::Opening && taken_over(state)) =>
        {
            Step::Perform(Effect::OpenFence { side: closing })
        }
        Some(Mutant::OpenedBeforeAcknowledgement)
            if mine
                && state.phase == Phase::Barrier
                && state.attempt.as_ref().is_some_and(|attempt| attempt.barrier.is_some())
                && facts.side(opening).fence.is_some_and(|(mode, _)| mode != Mode::Open) =>
        {
            Step::Perform(Effect::OpenFence { side: opening })
        }
        _ => real,
    }
}

pub fn verb(mutant: Option<Mutant>, asked: Verb, state: &State, facts: &Facts, now_micros: u64) -> Verdict {
    let mut facts = facts.clone();
    if mutant == Some(Mutant::RollbackUnchecked) {
        facts.reverse.slot = Some(Slot::Healthy);
        facts.reverse.alive = Some(true);
        facts.gate.failed.clear();
    }
    control::cutover::verb(asked, "model", state, &facts, now_micros)
}

/// Whether the closed side is frozen only now.
pub fn freezes_late(mutant: Option<Mutant>, state: &State) -> bool {
    mutant == Some(Mutant::StoppedNotFrozen) && !taken_over(state)
}

/// What an operator may do who can reach only the source.
pub fn reopen_alone(mutant: Option<Mutant>, source: &Database) -> Result<Epoch, &'static str> {
    let mode = match source.mode {
        Mode::Sealed if mutant == Some(Mutant::ReopenedThoughSealed) => Mode::Closed,
        mode => mode,
    };
    let fence = Some((mode, source.epoch));
    control::cutover::reopen_alone(&SideFacts { fence, ..SideFacts::default() })
}

/// Whether the effect is answered as done and is not.
pub fn feigned(mutant: Option<Mutant>, effect: &Effect, world: &World) -> bool {
    match (mutant, effect) {
        (Some(Mutant::StoppedNotFrozen), Effect::SealFence { .. }) => true,
        (Some(Mutant::EffectSkipped), Effect::OpenFence { side }) => world.side(*side).mode == Mode::Open,
        _ => false,
    }
}
