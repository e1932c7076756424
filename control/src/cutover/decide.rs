//! What a controller does next. One function of what the journal says, what was just read, and the time; called again after
//! every single step, by whoever holds the epoch.
//!
//! Before the commit record whatever is wrong leads to an abort, or to waiting, which the outage's bound ends in an abort.
//! Behind it there is no path that opens the closed side: it waits or is ambiguous, and says why.

use changelog::Lsn;

use super::attempt::{Attempt, Phase};
use super::effect::Effect;
use super::event::{AbortReason, Direction, Event, Mode, Policy};
use super::facts::{ConfigFacts, Facts, Slot};
use super::state::{GATE_MICROS_MAX, State};
use super::step::{Doubt, Step, Waiting};
use super::verb::Outcome;

/// The next step of the process that wrote under `facts.epoch`. `now_micros` is the journal's clock.
pub fn decide(state: &State, facts: &Facts, now_micros: u64) -> Step {
    let Some(attempt) = &state.attempt else { return Step::Finished(Outcome::Done) };
    // Of an attempt that another controller brought to its end, too, the outcome is known; of anything else it is not.
    let same_attempt = facts.epoch.is_some_and(|epoch| epoch >= attempt.started);
    if facts.epoch != Some(state.epoch) && !(same_attempt && state.at_rest()) {
        return Step::Ambiguous(Doubt::Superseded { epoch: state.epoch });
    }
    let turn = Turn { state, attempt, facts, now_micros };
    match state.phase {
        Phase::Prepared | Phase::Reversible => Step::Finished(match state.abort_reason {
            Some(_) => Outcome::Aborted,
            None => Outcome::Done,
        }),
        Phase::Finalized if state.ended => Step::Finished(Outcome::Done),
        Phase::Finalized => turn.perform(Effect::End),
        Phase::Gated | Phase::Fencing | Phase::Barrier | Phase::Sealing => match turn.hazard() {
            Some(reason) => Step::Record(Event::AbortStarted { holder: state.holder.clone(), reason }),
            None => turn.forward(),
        },
        Phase::Aborting => turn.aborting(),
        Phase::Committed => turn.perform(Effect::OpenFence { side: state.direction.opening() }),
        Phase::Opening => turn.opening(),
        Phase::Ambiguous => turn.ambiguous(),
        Phase::Draining => turn.draining(),
    }
}

struct Turn<'a> {
    state: &'a State,
    attempt: &'a Attempt,
    facts: &'a Facts,
    now_micros: u64,
}

impl Turn<'_> {
    /// The intent first, then the effect itself.
    fn perform(&self, effect: Effect) -> Step {
        if self.state.intended.as_ref() == Some(&effect) {
            Step::Perform(effect)
        } else {
            Step::Record(Event::Intended { effect })
        }
    }

    fn dual(&self) -> bool {
        self.attempt.policy == Policy::Dual
    }

    /// What makes an attempt that is not committed be given up. What is merely not known does not: its time runs anyway.
    fn hazard(&self) -> Option<AbortReason> {
        let (direction, facts) = (self.state.direction, self.facts);
        match self.attempt.commit_deadline_micros() {
            None if self.now_micros.saturating_sub(self.attempt.gate_passed_at_micros) > GATE_MICROS_MAX => {
                return Some(AbortReason::GateVoid);
            }
            Some(deadline) if self.now_micros > deadline => return Some(AbortReason::OutageExceeded),
            _ => {}
        }
        if let Some(keys) = self.attempt.different.filter(|keys| *keys > 0) {
            return Some(AbortReason::DeltaDiffers { keys });
        }
        if let ConfigFacts::Read { version, .. } = &facts.config
            && *version != self.attempt.config_expected
        {
            return Some(AbortReason::ConfigChanged);
        }
        let return_lane = facts.return_lane(direction);
        if direction == Direction::Forward && (return_lane.alive == Some(false) || return_lane.slot == Some(Slot::Lost))
        {
            return Some(AbortReason::ReturnLaneLost);
        }
        let mode = |side| facts.side(side).fence.map(|(mode, _)| mode);
        let (closing, opening) = (direction.closing(), direction.opening());
        match (mode(closing), mode(opening), self.attempt.fence) {
            (Some(found), _, Some(left)) if found < left => Some(AbortReason::FenceMoved { side: closing }),
            (_, Some(found), _) if found < Mode::Closed => Some(AbortReason::FenceMoved { side: opening }),
            _ => None,
        }
    }

    /// From the gate to the commit record.
    fn forward(&self) -> Step {
        let (closing, opening) = (self.state.direction.closing(), self.state.direction.opening());
        match (self.state.phase, self.attempt.barrier) {
            (Phase::Gated, _) => {
                self.perform(Effect::CloseFence { side: closing, mode: self.attempt.policy.first_mode() })
            }
            (Phase::Fencing, _) => match self.attempt.fence {
                None => self.perform(Effect::CloseFence { side: closing, mode: self.attempt.policy.first_mode() }),
                Some(_) => self.quiet(),
            },
            (Phase::Barrier, None) => self.perform(Effect::EmitBarrier { side: closing }),
            (Phase::Barrier, Some(barrier)) => self.acknowledged(barrier),
            _ if !self.attempt.ready => self.perform(Effect::Ready { side: opening }),
            // With both lanes live there is no moment at which the two sides must be equal; before-images find conflicts.
            _ if self.attempt.different.is_none() && !self.dual() => self.perform(Effect::VerifyDelta),
            _ if self.attempt.return_from.is_none() && self.return_wanted() => {
                self.perform(Effect::RecordReturn { side: opening })
            }
            _ if self.attempt.fence != Some(Mode::Sealed) && !self.dual() => {
                self.perform(Effect::SealFence { side: closing })
            }
            _ => self.commit(),
        }
    }

    /// A rollback goes on although the way forward is lost: it is what the application needs now.
    fn return_wanted(&self) -> bool {
        self.state.direction == Direction::Forward || self.facts.return_lane(Direction::Back).slot != Some(Slot::Lost)
    }

    /// Zero writers, zero prepared transactions, seen while the fence stands.
    fn quiet(&self) -> Step {
        let side = self.facts.side(self.state.direction.closing());
        if side.fence.map(|(mode, _)| Some(mode)) != Some(self.attempt.fence) {
            return Step::Wait(Waiting::Unknown("the closing side's fence"));
        }
        match (side.writers, side.prepared) {
            (Some(0), Some(0)) => Step::Record(Event::Quiet),
            (Some(writers), Some(prepared)) => Step::Wait(Waiting::Writers { writers, prepared }),
            _ => Step::Wait(Waiting::Unknown("the closing side's writers")),
        }
    }

    fn acknowledged(&self, barrier: Lsn) -> Step {
        let lane = self.facts.lane(self.state.direction);
        match (lane.applied, lane.conflicts) {
            (Some(applied), _) if applied < barrier => Step::Wait(Waiting::Lane { barrier, applied }),
            (Some(_), Some(0)) => Step::Record(Event::BarrierAcknowledged),
            (_, Some(count)) if count > 0 => Step::Wait(Waiting::Conflicts(count)),
            _ => Step::Wait(Waiting::Unknown("the lane's progress")),
        }
    }

    /// Everything that can be seen is seen once more, at the same look; then the point of no return.
    fn commit(&self) -> Step {
        let (direction, facts) = (self.state.direction, self.facts);
        if !matches!(facts.config, ConfigFacts::Read { .. }) {
            return Step::Wait(Waiting::Unknown("the config store"));
        }
        let stands = |side, at_least| facts.side(side).fence.is_some_and(|(mode, _)| Some(mode) >= at_least);
        if !stands(direction.closing(), self.attempt.fence) || !stands(direction.opening(), Some(Mode::Closed)) {
            return Step::Wait(Waiting::Unknown("a fence"));
        }
        let return_lane = facts.return_lane(direction);
        if direction == Direction::Forward && (return_lane.alive.is_none() || return_lane.slot.is_none()) {
            return Step::Wait(Waiting::Unknown("the lane back"));
        }
        let Attempt { limits, policy, .. } = self.attempt;
        let drain_micros = if *policy == Policy::Fenced { 0 } else { limits.drain_micros };
        let back_micros = (direction == Direction::Forward).then_some(limits.rollback_micros);
        Step::Record(Event::Committed {
            cutover_at_micros: self.now_micros,
            drain_deadline_micros: self.now_micros.saturating_add(drain_micros),
            rollback_deadline_micros: back_micros.map(|micros| self.now_micros.saturating_add(micros)),
        })
    }

    /// One side is closed for certain before the other is opened: somebody may have opened it meanwhile.
    fn aborting(&self) -> Step {
        if self.attempt.shut {
            self.perform(Effect::OpenFence { side: self.state.direction.closing() })
        } else {
            self.perform(Effect::CloseFence { side: self.state.direction.opening(), mode: Mode::Sealed })
        }
    }

    /// The opening side takes writes; the application is told so.
    fn opening(&self) -> Step {
        let to = self.state.direction.opening();
        if self.attempt.config_written.is_some() {
            return self.perform(Effect::WriteCanary { side: to });
        }
        match &self.facts.config {
            ConfigFacts::Read { version, names } if *names == Some(to) => {
                Step::Record(Event::ConfigSwitched { version: version.clone() })
            }
            ConfigFacts::Read { version, .. } if *version == self.attempt.config_expected => {
                self.perform(Effect::SwitchConfig { expected: version.clone(), to })
            }
            ConfigFacts::Read { .. } | ConfigFacts::Unreadable => Step::Record(Event::ConfigAmbiguous),
        }
    }

    /// Only reading the store ends this.
    fn ambiguous(&self) -> Step {
        match &self.facts.config {
            ConfigFacts::Read { version, names } if *names == Some(self.state.direction.opening()) => {
                Step::Record(Event::ConfigSwitched { version: version.clone() })
            }
            // A swap that is still on its way names this version too: it and the next one exclude each other.
            ConfigFacts::Read { version, .. } if *version == self.attempt.config_expected => {
                Step::Record(Event::ConfigUnchanged)
            }
            ConfigFacts::Read { .. } => Step::Ambiguous(Doubt::ConfigForeign),
            ConfigFacts::Unreadable => Step::Ambiguous(Doubt::ConfigUnreadable),
        }
    }

    /// Sessions on the closed side end at the deadline, or when there are none. Under `dual` it is then closed to all of them.
    fn draining(&self) -> Step {
        let closing = self.state.direction.closing();
        let until_micros = self.attempt.drain_deadline_micros.unwrap_or(0);
        let sessions = self.facts.side(closing).sessions;
        let due = self.now_micros >= until_micros || sessions == Some(0) || self.attempt.sessions_ended;
        match (self.attempt.fence, self.attempt.barrier) {
            _ if !due => Step::Wait(match sessions {
                Some(sessions) => Waiting::Sessions { sessions, until_micros },
                None => Waiting::Unknown("the closed side's sessions"),
            }),
            (fence, _) if fence != Some(Mode::Sealed) => {
                self.perform(Effect::CloseFence { side: closing, mode: Mode::Sealed })
            }
            _ if !self.attempt.sessions_ended => self.perform(Effect::EndSessions { side: closing }),
            // Only `dual` comes here: what its old sessions wrote must arrive before it counts as done.
            _ if !self.attempt.quiet => self.quiet(),
            (_, None) => self.perform(Effect::EmitBarrier { side: closing }),
            (_, Some(barrier)) => self.acknowledged(barrier),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::event::{Epoch, Side, Version};
    use crate::cutover::fixture::{LIMITS, Play, SECOND};
    use crate::cutover::verb::Verb;

    fn started(policy: Policy) -> Play {
        let mut play = Play::new();
        play.begin(Verb::CutoverStart { policy, limits: LIMITS });
        play
    }

    /// Its effects, in order.
    fn effects(play: &mut Play) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..100 {
            if let Step::Perform(effect) = play.next() {
                effects.push(effect);
            }
            if play.step().is_some() {
                return effects;
            }
        }
        panic!("it does not end");
    }

    fn aborts(play: &Play, wanted: &AbortReason) -> bool {
        matches!(play.next(), Step::Record(Event::AbortStarted { reason, .. }) if reason == *wanted)
    }

    #[test]
    fn the_effects_come_in_the_one_order_that_is_safe() {
        let close = |mode| Effect::CloseFence { side: Side::Source, mode };
        let rest = [
            Effect::EmitBarrier { side: Side::Source },
            Effect::Ready { side: Side::Target },
            Effect::VerifyDelta,
            Effect::RecordReturn { side: Side::Target },
            Effect::SealFence { side: Side::Source },
            Effect::OpenFence { side: Side::Target },
            Effect::SwitchConfig { expected: Version("v1".into()), to: Side::Target },
            Effect::WriteCanary { side: Side::Target },
        ];
        let end = Effect::EndSessions { side: Side::Source };
        let fenced = [&[close(Mode::Closed)][..], &rest, std::slice::from_ref(&end)].concat();
        assert_eq!(effects(&mut started(Policy::Fenced)), fenced);
        let drain = [&[close(Mode::OldTransactions)][..], &rest, std::slice::from_ref(&end)].concat();
        assert_eq!(effects(&mut started(Policy::Drain)), drain);
        let barrier = rest[0].clone();
        let both = |effect: &Effect| !matches!(effect, Effect::VerifyDelta | Effect::SealFence { .. });
        let rest: Vec<Effect> = rest.into_iter().filter(both).collect();
        let dual = [&[close(Mode::OldSessions)][..], &rest, &[close(Mode::Sealed), end, barrier]].concat();
        assert_eq!(effects(&mut started(Policy::Dual)), dual);
    }

    #[test]
    fn every_effect_is_intended_before_it_is_performed_and_a_new_holder_intends_it_anew() {
        let mut play = started(Policy::Drain);
        loop {
            if let Step::Perform(effect) = play.next() {
                let last = play.records.last().map(|record| &record.event);
                assert_eq!(last, Some(&Event::Intended { effect: effect.clone() }));
                let mut other = Play { state: play.state.clone(), records: Vec::new(), ..Play::new() };
                other.facts = play.facts.clone();
                other.now_micros = play.now_micros;
                other.append(Event::TakenOver { holder: "other".into() });
                assert_eq!(other.next(), Step::Record(Event::Intended { effect }));
            }
            if play.step().is_some() {
                return;
            }
        }
    }

    #[test]
    fn a_controller_whose_epoch_was_raised_by_another_does_nothing_more() {
        let mut play = started(Policy::Drain);
        while !play.state.at_rest() {
            play.facts.epoch = Some(Epoch(play.state.epoch.0 - 1));
            assert_eq!(play.next(), Step::Ambiguous(Doubt::Superseded { epoch: play.state.epoch }));
            play.facts.epoch = Some(play.state.epoch);
            play.step();
        }
        play.facts.epoch = Some(Epoch(0));
        assert!(matches!(play.next(), Step::Ambiguous(_)), "of a later attempt it knows nothing");
    }

    #[test]
    fn whoever_began_an_attempt_learns_that_another_aborted_it() {
        let mut play = started(Policy::Drain);
        play.run_to(Phase::Barrier);
        let first = play.facts.epoch;
        play.begin(Verb::CutoverAbort);
        assert_eq!(play.run(), Outcome::Aborted);
        play.facts.epoch = first;
        assert_eq!(play.next(), Step::Finished(Outcome::Aborted));
    }

    #[test]
    fn before_the_commit_record_every_hazard_leads_to_an_abort_that_opens_the_source() {
        type Case = (AbortReason, fn(&mut Play));
        let cases: [Case; 6] = [
            (AbortReason::OutageExceeded, |play| play.now_micros += 5 * SECOND + 1),
            (AbortReason::ConfigChanged, |play| {
                play.facts.config = ConfigFacts::Read { version: Version("v9".into()), names: None };
            }),
            (AbortReason::ReturnLaneLost, |play| play.facts.reverse.slot = Some(Slot::Lost)),
            (AbortReason::ReturnLaneLost, |play| play.facts.reverse.alive = Some(false)),
            (AbortReason::FenceMoved { side: Side::Source }, |play| {
                play.facts.source.fence = Some((Mode::Open, Epoch(1)));
            }),
            (AbortReason::FenceMoved { side: Side::Target }, |play| {
                play.facts.target.fence = Some((Mode::Open, Epoch(1)));
            }),
        ];
        for (reason, disturb) in cases {
            let mut play = started(Policy::Drain);
            play.run_to(Phase::Barrier);
            disturb(&mut play);
            assert!(aborts(&play, &reason), "{reason:?}: {:?}", play.next());
            let epoch = play.state.epoch;
            assert_eq!(play.run(), Outcome::Aborted);
            assert!(play.state.epoch > epoch, "a fence moves the other way only under a new epoch");
            assert_eq!(play.facts.source.fence, Some((Mode::Open, play.state.epoch)));
            assert_eq!(play.facts.target.fence, Some((Mode::Sealed, play.state.epoch)));
        }
    }

    #[test]
    fn behind_the_commit_record_the_same_hazards_stop_nothing() {
        let mut play = started(Policy::Drain);
        play.run_to(Phase::Committed);
        play.now_micros += 60 * SECOND;
        play.facts.reverse.slot = Some(Slot::Lost);
        play.facts.reverse.alive = Some(false);
        assert_eq!(play.run(), Outcome::Done);
        assert_eq!(play.state.phase, Phase::Reversible);
    }

    #[test]
    fn a_gate_that_grew_old_before_the_fence_is_void() {
        let mut play = started(Policy::Drain);
        play.now_micros += GATE_MICROS_MAX;
        assert!(matches!(play.next(), Step::Record(Event::Intended { .. })));
        play.now_micros += 1;
        assert!(aborts(&play, &AbortReason::GateVoid));
    }

    #[test]
    fn a_difference_found_by_the_delta_verification_aborts() {
        let mut play = started(Policy::Fenced);
        while play.next() != Step::Perform(Effect::VerifyDelta) {
            play.step();
        }
        play.append(Event::DeltaVerified { keys: 10, different: 2 });
        assert!(aborts(&play, &AbortReason::DeltaDiffers { keys: 2 }));
    }

    #[test]
    fn what_cannot_be_read_is_waited_for_and_never_taken_for_a_yes() {
        let mut play = started(Policy::Drain);
        play.run_to(Phase::Fencing);
        play.step();
        let good = play.facts.clone();
        let writers = |writers, prepared| Step::Wait(Waiting::Writers { writers, prepared });
        play.facts.source.writers = None;
        assert!(matches!(play.next(), Step::Wait(Waiting::Unknown(_))));
        play.facts.source.writers = Some(1);
        assert_eq!(play.next(), writers(1, 0));
        (play.facts.source.writers, play.facts.source.prepared) = (Some(0), Some(1));
        assert_eq!(play.next(), writers(0, 1));
        play.facts.source.prepared = None;
        assert!(matches!(play.next(), Step::Wait(Waiting::Unknown(_))));
        play.facts = good.clone();
        play.facts.source.fence = None;
        assert!(matches!(play.next(), Step::Wait(Waiting::Unknown(_))), "zero writers count only behind a fence");
        play.facts = good.clone();
        play.run_to(Phase::Barrier);
        play.step();
        play.step();
        let good = play.facts.clone();
        play.facts.forward.applied = Some(Lsn(0));
        assert!(matches!(play.next(), Step::Wait(Waiting::Lane { .. })));
        play.facts.forward.applied = None;
        assert!(matches!(play.next(), Step::Wait(Waiting::Unknown(_))));
        play.facts = good.clone();
        play.facts.forward.conflicts = Some(3);
        assert_eq!(play.next(), Step::Wait(Waiting::Conflicts(3)));
        play.facts = good;
        while !matches!(play.next(), Step::Record(Event::Committed { .. })) {
            play.step();
        }
        let unreadable: [fn(&mut Facts); 4] = [
            |facts| facts.config = ConfigFacts::Unreadable,
            |facts| facts.source.fence = None,
            |facts| facts.target.fence = None,
            |facts| facts.reverse.slot = None,
        ];
        for blind in unreadable {
            let good = play.facts.clone();
            blind(&mut play.facts);
            assert!(matches!(play.next(), Step::Wait(Waiting::Unknown(_))), "{:?}", play.next());
            play.facts = good;
        }
    }

    #[test]
    fn an_ambiguous_answer_is_ended_by_reading_the_store_and_by_nothing_else() {
        let read = |version: &str, names| ConfigFacts::Read { version: Version(version.into()), names };
        let mut play = started(Policy::Drain);
        play.run_to(Phase::Opening);
        play.append(Event::ConfigAmbiguous);
        let cases = [
            (read("v2", Some(Side::Target)), Step::Record(Event::ConfigSwitched { version: Version("v2".into()) })),
            (read("v1", Some(Side::Source)), Step::Record(Event::ConfigUnchanged)),
            (read("v2", Some(Side::Source)), Step::Ambiguous(Doubt::ConfigForeign)),
            (read("v2", None), Step::Ambiguous(Doubt::ConfigForeign)),
            (ConfigFacts::Unreadable, Step::Ambiguous(Doubt::ConfigUnreadable)),
        ];
        for (config, step) in cases {
            play.facts.config = config;
            assert_eq!(play.next(), step);
        }
        assert_eq!(Doubt::ConfigForeign.next(Direction::Forward), "dflux cutover start");
        assert_eq!(Doubt::ConfigUnreadable.next(Direction::Back), "dflux rollback start");
    }

    #[test]
    fn sessions_may_read_until_the_deadline_and_no_restart_moves_it() {
        let mut play = started(Policy::Drain);
        play.run_to(Phase::Draining);
        play.facts.source.sessions = Some(7);
        let until_micros = LIMITS.drain_micros;
        assert_eq!(play.next(), Step::Wait(Waiting::Sessions { sessions: 7, until_micros }));
        play.now_micros = until_micros - 1;
        play.append(Event::TakenOver { holder: "other".into() });
        assert_eq!(play.next(), Step::Wait(Waiting::Sessions { sessions: 7, until_micros }));
        play.now_micros = until_micros;
        assert_eq!(play.run(), Outcome::Done);
    }

    #[test]
    fn a_rollback_does_without_a_lane_forward_that_is_lost() {
        let mut play = started(Policy::Drain);
        play.run();
        play.facts.forward.slot = Some(Slot::Lost);
        play.begin(Verb::RollbackStart { policy: Policy::Drain, limits: LIMITS });
        assert!(!effects(&mut play).iter().any(|effect| matches!(effect, Effect::RecordReturn { .. })));
        assert_eq!(play.state.phase, Phase::Prepared);
    }
}
