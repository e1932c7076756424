//! The state: what the journal says, folded record by record. It knows which record can follow which; one that can't is an
//! error that names it, both when a journal is read and before a record is appended.
//!
//! ```text
//!   Prepared ─> Gated ─> Fencing ─> Barrier ─> Sealing ═> Committed ─> Opening ─> Draining ─> Reversible ─> Finalized
//!      ^          └────────┴──────────┴───────────┘  ║                  │   ^                   │
//!      │                        v                    ║              Ambiguous                  │ the same steps with the
//!      └──(source open)─────  Aborting               ║                                         │ roles exchanged: the
//!      └──────────────────────────────────── point of no return ───────────────────────────────┘ direction is Back
//! ```
//!
//! A rollback has no phases of its own. It starts from Reversible, an abort of it leads back there, and it ends at Prepared.

use super::attempt::{Attempt, Phase, Window};
use super::effect::Effect;
use super::event::{AbortReason, Direction, Epoch, Event, Mode, Policy, Record};

/// A gate's pass that is older says nothing any more.
pub const GATE_MICROS_MAX: u64 = 5_000_000;

/// What the journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// The next record's.
    pub sequence: u64,
    pub epoch: Epoch,
    /// Who raised the epoch last.
    pub holder: String,
    pub phase: Phase,
    /// Of the current attempt, or of the last one.
    pub direction: Direction,
    /// The current one, or the last.
    pub attempt: Option<Attempt>,
    /// The effect that was begun and is not known to be done.
    pub intended: Option<Effect>,
    pub window: Option<Window>,
    /// Why the last attempt was given up; none if it was not.
    pub abort_reason: Option<AbortReason>,
    /// Behind Finalized: the way back is cleared away.
    pub ended: bool,
}

/// A journal that cannot have been written by this machine.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("record {found} of the journal stands where {expected} was expected")]
    Sequence { expected: u64, found: u64 },
    #[error("record {sequence} of the journal has epoch {found}, expected {expected}")]
    Epoch { sequence: u64, expected: Epoch, found: Epoch },
    #[error("record {sequence} of the journal cannot follow in phase {phase:?}: {why}: {event:?}")]
    Impossible { sequence: u64, phase: Phase, why: &'static str, event: Box<Event> },
}

/// # Errors
/// Names the first record that cannot follow from those before it.
pub fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<State, FoldError> {
    records.into_iter().try_fold(State::default(), |state, record| state.apply(record))
}

impl State {
    /// The record by which `event` would be appended now.
    pub fn record(&self, event: Event, at_micros: u64) -> Record {
        let epoch = if event.raises_epoch() { self.epoch.next() } else { self.epoch };
        Record { sequence: self.sequence, epoch, at_micros, event }
    }

    /// The state behind `record`. An append is checked with it first; its statement in the database must hold what can change
    /// between this check and the insert: the sequence is free, and of a commit record that its deadline has not passed.
    ///
    /// # Errors
    /// Names the record and why it cannot follow.
    pub fn apply(mut self, record: &Record) -> Result<State, FoldError> {
        let sequence = record.sequence;
        if sequence != self.sequence {
            return Err(FoldError::Sequence { expected: self.sequence, found: sequence });
        }
        let expected = if record.event.raises_epoch() { self.epoch.next() } else { self.epoch };
        if record.epoch != expected {
            return Err(FoldError::Epoch { sequence, expected, found: record.epoch });
        }
        let phase = self.phase;
        self.epoch = record.epoch;
        self.sequence += 1;
        match self.follow(&record.event, record.at_micros) {
            Ok(()) => Ok(self),
            Err(why) => Err(FoldError::Impossible { sequence, phase, why, event: Box::new(record.event.clone()) }),
        }
    }

    /// Whether no attempt is under way and nothing is left to do.
    pub fn at_rest(&self) -> bool {
        match self.phase {
            Phase::Prepared | Phase::Reversible => true,
            Phase::Finalized => self.ended,
            _ => false,
        }
    }

    /// Whether the attempt under way can still be given up.
    pub fn can_abort(&self) -> bool {
        matches!(self.phase, Phase::Gated | Phase::Fencing | Phase::Barrier | Phase::Sealing)
    }

    fn follow(&mut self, event: &Event, at_micros: u64) -> Result<(), &'static str> {
        match event {
            Event::Started { .. } => self.start(event, at_micros),
            Event::TakenOver { holder } => {
                require(!self.at_rest(), "nothing is under way")?;
                self.hold(holder);
                Ok(())
            }
            Event::AbortStarted { holder, reason } => {
                require(self.can_abort(), "it is not between its gate and its commit record")?;
                self.hold(holder);
                self.phase = Phase::Aborting;
                self.abort_reason = Some(reason.clone());
                Ok(())
            }
            Event::DrainHastened { holder, deadline_micros } => {
                require(self.phase == Phase::Draining, "nothing drains")?;
                self.hold(holder);
                let attempt = self.attempt_mut()?;
                let deadline = attempt.drain_deadline_micros.unwrap_or(*deadline_micros);
                attempt.drain_deadline_micros = Some(deadline.min(*deadline_micros));
                Ok(())
            }
            Event::Finalized { holder } => {
                require(self.phase == Phase::Reversible, "it is not reversible")?;
                self.hold(holder);
                self.phase = Phase::Finalized;
                self.window = None;
                self.abort_reason = None;
                Ok(())
            }
            Event::Committed { .. } => self.commit(event, at_micros),
            Event::Intended { effect } => self.intend(effect, at_micros),
            Event::Quiet | Event::BarrierAcknowledged => self.observe(event),
            Event::ConfigSwitched { .. } | Event::ConfigAmbiguous | Event::ConfigUnchanged => self.read_config(event),
            Event::FenceClosed { .. }
            | Event::BarrierEmitted { .. }
            | Event::Readied
            | Event::DeltaVerified { .. }
            | Event::ReturnRecorded { .. }
            | Event::FenceOpened { .. }
            | Event::CanaryWritten
            | Event::SessionsEnded
            | Event::Ended => self.finish(event),
        }
    }

    fn start(&mut self, event: &Event, at_micros: u64) -> Result<(), &'static str> {
        let Event::Started { holder, direction, policy, limits, gate_passed_at_micros, config_version } = event else {
            return Err("it starts nothing");
        };
        require(self.phase == home(*direction), "it starts from elsewhere")?;
        require(at_micros.saturating_sub(*gate_passed_at_micros) <= GATE_MICROS_MAX, "its gate is void")?;
        if *direction == Direction::Back {
            require(*policy != Policy::Dual, "a rollback closes the target at once")?;
            let window = self.window.ok_or("there is no way back")?;
            require(at_micros <= window.rollback_deadline_micros, "the rollback's deadline has passed")?;
        }
        self.hold(holder);
        self.phase = Phase::Gated;
        self.direction = *direction;
        self.abort_reason = None;
        self.attempt = Some(Attempt::new(self.epoch, *policy, *limits, *gate_passed_at_micros, config_version.clone()));
        Ok(())
    }

    fn commit(&mut self, event: &Event, at_micros: u64) -> Result<(), &'static str> {
        let Event::Committed { cutover_at_micros, drain_deadline_micros, rollback_deadline_micros } = event else {
            return Err("it commits nothing");
        };
        require(self.phase == Phase::Sealing, "nothing is sealed")?;
        let direction = self.direction;
        let attempt = self.attempt_mut()?;
        require(attempt.ready, "the opening side is not ready")?;
        require(attempt.policy == Policy::Dual || attempt.quiet, "writers may be left")?;
        require(attempt.policy == Policy::Dual || attempt.different == Some(0), "the delta is not proved equal")?;
        require(attempt.policy == Policy::Dual || attempt.fence == Some(Mode::Sealed), "the fence is not sealed")?;
        require(at_micros <= attempt.commit_deadline_micros().unwrap_or(0), "its time is over")?;
        // Without a lane forward a rollback is still worth having: the next cutover then needs a new copy.
        require(direction == Direction::Back || attempt.return_from.is_some(), "there is no way back")?;
        attempt.drain_deadline_micros = Some(*drain_deadline_micros);
        self.window = match (direction, rollback_deadline_micros) {
            (Direction::Forward, Some(deadline)) => {
                Some(Window { cutover_at_micros: *cutover_at_micros, rollback_deadline_micros: *deadline })
            }
            (Direction::Back, None) => None,
            (Direction::Forward, None) => return Err("it has no rollback deadline"),
            (Direction::Back, Some(_)) => return Err("a rollback has no rollback deadline"),
        };
        self.phase = Phase::Committed;
        Ok(())
    }

    fn intend(&mut self, effect: &Effect, at_micros: u64) -> Result<(), &'static str> {
        let (closing, opening) = (self.direction.closing(), self.direction.opening());
        let phase = self.phase;
        let attempt = self.attempt_mut()?;
        let dual = attempt.policy == Policy::Dual;
        let belongs = match effect {
            Effect::CloseFence { side, mode } => match phase {
                Phase::Gated | Phase::Fencing => *side == closing && *mode == attempt.policy.first_mode(),
                Phase::Draining => *side == closing && *mode == Mode::Sealed,
                Phase::Aborting => *side == opening && *mode == Mode::Sealed,
                _ => false,
            },
            Effect::SealFence { side } => *side == closing && phase == Phase::Sealing && !dual,
            Effect::EmitBarrier { side } => {
                *side == closing && (phase == Phase::Barrier || phase == Phase::Draining && dual && attempt.quiet)
            }
            Effect::Ready { side } => *side == opening && phase == Phase::Sealing,
            Effect::VerifyDelta => phase == Phase::Sealing,
            Effect::RecordReturn { side } => *side == opening && phase == Phase::Sealing,
            Effect::OpenFence { side } => match phase {
                Phase::Committed => *side == opening,
                Phase::Aborting => *side == closing && attempt.shut,
                _ => false,
            },
            Effect::SwitchConfig { expected, to } => {
                phase == Phase::Opening && *to == opening && *expected == attempt.config_expected
            }
            Effect::WriteCanary { side } => {
                phase == Phase::Opening && *side == opening && attempt.config_written.is_some()
            }
            Effect::EndSessions { side } => {
                phase == Phase::Draining && *side == closing && attempt.fence == Some(Mode::Sealed)
            }
            Effect::End => phase == Phase::Finalized,
        };
        require(belongs, "this is not the effect's time or side")?;
        if phase == Phase::Gated {
            attempt.fencing_at_micros = Some(at_micros);
            self.phase = Phase::Fencing;
        }
        self.intended = Some(effect.clone());
        Ok(())
    }

    /// What is seen, not done.
    fn observe(&mut self, event: &Event) -> Result<(), &'static str> {
        let phase = self.phase;
        let attempt = self.attempt_mut()?;
        let draining = phase == Phase::Draining && attempt.policy == Policy::Dual && attempt.sessions_ended;
        if *event == Event::Quiet {
            require(phase == Phase::Fencing && attempt.fence.is_some() || draining, "no fence is closed for it")?;
            attempt.quiet = true;
            if phase == Phase::Fencing {
                self.phase = Phase::Barrier;
            }
        } else {
            require(phase == Phase::Barrier || draining, "no barrier is awaited")?;
            require(attempt.barrier.is_some(), "no barrier was emitted")?;
            attempt.acknowledged = true;
            if phase == Phase::Barrier {
                self.phase = Phase::Sealing;
            } else {
                self.arrive();
            }
        }
        Ok(())
    }

    fn read_config(&mut self, event: &Event) -> Result<(), &'static str> {
        let (phase, attempt) = (self.phase, self.attempt_mut()?);
        let open = phase == Phase::Opening && attempt.config_written.is_none();
        match event {
            Event::ConfigSwitched { version } => {
                require(open || phase == Phase::Ambiguous, "no switch is under way")?;
                attempt.config_written = Some(version.clone());
                self.phase = Phase::Opening;
            }
            Event::ConfigAmbiguous => {
                require(open, "no switch is under way")?;
                self.phase = Phase::Ambiguous;
            }
            _ => {
                require(phase == Phase::Ambiguous, "nothing is ambiguous")?;
                self.phase = Phase::Opening;
            }
        }
        self.intended = None;
        Ok(())
    }

    /// What was intended is done. That it was its time and side was checked with the intent.
    fn finish(&mut self, event: &Event) -> Result<(), &'static str> {
        let phase = self.phase;
        let intended = self.intended.take().ok_or("nothing was intended")?;
        let attempt = self.attempt_mut()?;
        match (event, &intended) {
            (Event::FenceClosed { side, mode }, Effect::CloseFence { side: intended, mode: as_intended })
                if side == intended && mode == as_intended =>
            {
                if phase == Phase::Aborting {
                    attempt.shut = true;
                    return Ok(());
                }
                attempt.fence = Some(*mode);
                if attempt.policy == Policy::Dual {
                    (attempt.quiet, attempt.barrier, attempt.acknowledged) = (false, None, false);
                    if phase == Phase::Fencing {
                        self.phase = Phase::Barrier;
                    }
                }
            }
            (Event::FenceClosed { side, mode: Mode::Sealed }, Effect::SealFence { side: intended })
                if side == intended =>
            {
                attempt.fence = Some(Mode::Sealed);
            }
            (Event::BarrierEmitted { lsn }, Effect::EmitBarrier { .. }) => attempt.barrier = Some(*lsn),
            (Event::Readied, Effect::Ready { .. }) => attempt.ready = true,
            (Event::DeltaVerified { different, .. }, Effect::VerifyDelta) => attempt.different = Some(*different),
            (Event::ReturnRecorded { lsn }, Effect::RecordReturn { .. }) => attempt.return_from = Some(*lsn),
            (Event::FenceOpened { side }, Effect::OpenFence { side: intended }) if side == intended => {
                self.phase = if phase == Phase::Committed { Phase::Opening } else { home(self.direction) };
            }
            (Event::CanaryWritten, Effect::WriteCanary { .. }) => self.phase = Phase::Draining,
            (Event::SessionsEnded, Effect::EndSessions { .. }) => {
                attempt.sessions_ended = true;
                if attempt.policy != Policy::Dual {
                    self.arrive();
                }
            }
            (Event::Ended, Effect::End) => self.ended = true,
            _ => return Err("something else was intended"),
        }
        Ok(())
    }

    /// Its last step is done.
    fn arrive(&mut self) {
        self.phase = match self.direction {
            Direction::Forward => Phase::Reversible,
            Direction::Back => Phase::Prepared,
        };
    }

    /// Another epoch: its holder intends anew what is to be done.
    fn hold(&mut self, holder: &str) {
        holder.clone_into(&mut self.holder);
        self.intended = None;
    }

    fn attempt_mut(&mut self) -> Result<&mut Attempt, &'static str> {
        self.attempt.as_mut().ok_or("nothing was ever started")
    }
}

/// Where an attempt begins, and where its abort leads.
fn home(direction: Direction) -> Phase {
    match direction {
        Direction::Forward => Phase::Prepared,
        Direction::Back => Phase::Reversible,
    }
}

fn require(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::event::Side;
    use crate::cutover::fixture::{self, LIMITS, Play, SECOND};
    use crate::cutover::verb::Verb;

    fn cutover(policy: Policy) -> Verb {
        Verb::CutoverStart { policy, limits: LIMITS }
    }

    #[test]
    fn the_whole_story_folds_to_its_end() {
        let records = fixture::whole_story();
        let state = fold(&records).unwrap();
        assert_eq!((state.phase, state.ended, state.sequence), (Phase::Finalized, true, records.len() as u64));
        assert_eq!(state.window, None);
    }

    #[test]
    fn a_journal_that_lacks_a_record_or_repeats_one_is_refused() {
        let records = fixture::whole_story();
        for index in 0..records.len() {
            let mut lacking = records.clone();
            lacking.remove(index);
            if index < lacking.len() {
                assert!(
                    matches!(fold(&lacking), Err(FoldError::Sequence { expected, .. }) if expected == index as u64)
                );
            }
            let mut twice = records.clone();
            twice.insert(index, records[index].clone());
            assert!(fold(&twice).is_err(), "{index}");
        }
    }

    /// But for intents, which may be repeated, and what a second process may add at any time.
    #[test]
    fn no_event_can_follow_itself_but_an_intent_or_a_takeover() {
        let mut state = State::default();
        for record in fixture::whole_story() {
            state = state.apply(&record).unwrap();
            let again = state.record(record.event.clone(), record.at_micros);
            let allowed = matches!(record.event, Event::Intended { .. });
            assert_eq!(state.clone().apply(&again).is_ok(), allowed, "{:?}", record.event);
        }
    }

    #[test]
    fn a_stale_epoch_and_one_that_was_never_raised_are_refused() {
        let mut play = Play::new();
        play.begin(cutover(Policy::Drain));
        let real = play.state.record(Event::TakenOver { holder: "other".into() }, 0);
        for epoch in [0, 1, 3] {
            let record = Record { epoch: Epoch(epoch), ..real.clone() };
            assert!(matches!(play.state.clone().apply(&record), Err(FoldError::Epoch { .. })), "{epoch}");
        }
        let state = play.state.clone().apply(&real).unwrap();
        assert_eq!((state.epoch, state.holder.as_str()), (Epoch(2), "other"));
    }

    #[test]
    fn behind_the_commit_record_no_abort_can_be_recorded() {
        for policy in [Policy::Fenced, Policy::Drain, Policy::Dual] {
            let mut play = Play::new();
            play.facts.source.sessions = Some(1);
            play.begin(cutover(policy));
            loop {
                let abort = Event::AbortStarted { holder: "test".into(), reason: AbortReason::Operator };
                let record = play.state.record(abort, play.now_micros);
                let before = play.state.window.is_none();
                assert_eq!(play.state.clone().apply(&record).is_ok(), before, "{policy:?} {:?}", play.state.phase);
                if play.step().is_some() {
                    break;
                }
            }
            assert_eq!(play.state.phase, Phase::Reversible);
        }
    }

    #[test]
    fn a_commit_record_that_comes_too_late_is_refused() {
        let mut play = Play::new();
        play.begin(cutover(Policy::Drain));
        play.run_to(Phase::Sealing);
        while !matches!(play.next(), crate::cutover::Step::Record(Event::Committed { .. })) {
            assert_eq!(play.step(), None);
        }
        let crate::cutover::Step::Record(commit) = play.next() else { unreachable!() };
        let just = play.state.record(commit.clone(), 5 * SECOND);
        assert!(play.state.clone().apply(&just).is_ok());
        let late = play.state.record(commit, 5 * SECOND + 1);
        let error = play.state.clone().apply(&late).unwrap_err().to_string();
        assert!(error.contains(&format!("record {} ", late.sequence)) && error.contains("its time is over"), "{error}");
    }

    #[test]
    fn an_effect_for_the_wrong_side_or_time_is_refused() {
        let mut play = Play::new();
        play.begin(cutover(Policy::Drain));
        play.run_to(Phase::Sealing);
        let wrong = [
            Effect::OpenFence { side: Side::Source },
            Effect::OpenFence { side: Side::Target },
            Effect::CloseFence { side: Side::Target, mode: Mode::Closed },
            Effect::SealFence { side: Side::Target },
            Effect::Ready { side: Side::Source },
            Effect::RecordReturn { side: Side::Source },
            Effect::WriteCanary { side: Side::Target },
            Effect::End,
        ];
        for effect in wrong {
            let record = play.state.record(Event::Intended { effect }, 0);
            assert!(matches!(play.state.clone().apply(&record), Err(FoldError::Impossible { .. })), "{record:?}");
        }
        let done = play.state.record(Event::FenceOpened { side: Side::Source }, 0);
        assert!(play.state.clone().apply(&done).is_err(), "what was not intended cannot be done");
    }

    #[test]
    fn an_aborted_rollback_is_reversible_again_and_keeps_its_deadline() {
        let mut play = Play::new();
        play.begin(cutover(Policy::Drain));
        play.run();
        let window = play.state.window;
        assert!(window.is_some());
        play.begin(Verb::RollbackStart { policy: Policy::Drain, limits: LIMITS });
        play.run_to(Phase::Barrier);
        play.begin(Verb::CutoverAbort);
        play.run();
        assert_eq!((play.state.phase, play.state.window), (Phase::Reversible, window));
        assert_eq!(play.facts.target.fence.map(|(mode, _)| mode), Some(Mode::Open));
    }
}
