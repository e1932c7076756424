//! The controllers of the small world, and what their effects do to it. A controller is the loop that the real command has:
//! look, decide, do one thing.

use changelog::Lsn;
use control::cutover::*;

use super::{
    Action, Controller, LIMITS, Left, Manner, Mutant, Pending, Scenario, Store, Want, World, invariant, mutant,
};

impl World {
    /// What a process can do next, or what it can be started for.
    pub fn controller_actions(
        &self,
        scenario: &Scenario,
        index: usize,
        controller: &Controller,
        actions: &mut Vec<Action>,
    ) {
        if controller.epoch.is_none() {
            // Idle processes are alike: only the first of them is started.
            if self.controllers[..index].iter().any(|other| other.epoch.is_none()) {
                return;
            }
            if self.left.aborts > 0 {
                actions.push(Action::Launch(index, Want::Abort));
            }
            let over = self.state.at_rest() && self.seen.switches >= scenario.switches;
            if self.left.launches > 0 && !over {
                actions.push(Action::Launch(index, Want::Forward));
                if scenario.switches > 1 {
                    actions.push(Action::Launch(index, Want::Back));
                }
            }
            return;
        }
        // Where there is room for one process only, the operator's takes its place.
        if self.left.aborts > 0 && self.controllers.len() == 1 {
            actions.push(Action::Launch(index, Want::Abort));
        }
        match &controller.pending {
            Pending::Nothing => actions.push(Action::Turn(index)),
            Pending::Append(..) => actions.push(Action::Append(index)),
            Pending::Perform(effect) => {
                actions.push(Action::Perform(index, Manner::Done));
                if self.left.ambiguities > 0 && matches!(effect, Effect::SwitchConfig { .. }) {
                    actions.push(Action::Perform(index, Manner::AppliedUnsaid));
                    actions.push(Action::Perform(index, Manner::LostUnsaid));
                }
                if self.left.delays > 0 && self.late.is_none() && !matches!(effect, Effect::VerifyDelta) {
                    actions.push(Action::Perform(index, Manner::Late));
                }
            }
            Pending::Blind(_) => actions.push(Action::Perform(index, Manner::Done)),
        }
        if self.left.crashes > 0 {
            actions.push(Action::Crash(index));
        }
    }

    pub fn launch(&mut self, scenario: &Scenario, index: usize, want: Want, journal: &mut Vec<Record>) -> bool {
        let (policy, limits) = (scenario.policy, LIMITS);
        let asked = match want {
            Want::Forward => Verb::CutoverStart { policy, limits },
            Want::Back => Verb::RollbackStart { policy, limits },
            Want::Abort => Verb::CutoverAbort,
            Want::Finalize => Verb::Finalize,
        };
        let facts = self.look(None, scenario);
        let safe = self.clock <= self.seen.rollback_until && !self.target.slot_lost;
        let Verdict::Begin(event) = mutant::verb(scenario.mutant, asked, &self.state, &facts, self.clock) else {
            return false;
        };
        if want == Want::Abort {
            self.left.aborts -= 1;
        } else {
            self.left.launches -= 1;
        }
        let back = matches!(event, Event::Started { direction: Direction::Back, .. });
        let sequence = self.state.sequence;
        self.controllers[index] = Controller { epoch: None, pending: Pending::Nothing };
        self.append(index, event, sequence, journal);
        self.seen.unsafe_start |= back && !safe && self.controllers[index].epoch.is_some();
        true
    }

    pub fn turn(&mut self, scenario: &Scenario, index: usize, journal: &mut Vec<Record>) -> bool {
        let facts = self.look(Some(index), scenario);
        match mutant::decide(scenario.mutant, &self.state, &facts, self.clock) {
            Step::Record(event) => {
                let sequence = self.state.sequence;
                if scenario.split {
                    self.controllers[index].pending = Pending::Append(event, sequence);
                } else {
                    self.append(index, event, sequence, journal);
                }
            }
            Step::Perform(effect) => self.controllers[index].pending = Pending::Perform(effect),
            Step::Wait(_) => return false,
            Step::Ambiguous(_) => self.report(index, Outcome::Ambiguous),
            Step::Finished(outcome) => self.report(index, outcome),
        }
        true
    }

    fn report(&mut self, index: usize, outcome: Outcome) {
        self.seen.false_report |= !invariant::report_is_true(self, outcome);
        self.controllers[index] = Controller { epoch: None, pending: Pending::Nothing };
    }

    /// As the journal's table does it: the sequence is the key, and the time is the database's.
    pub fn append(&mut self, index: usize, event: Event, sequence: u64, journal: &mut Vec<Record>) {
        if sequence != self.state.sequence {
            return;
        }
        let record = self.state.record(event, self.clock);
        if let Ok(state) = self.state.clone().apply(&record) {
            self.state = state;
            if let Event::ReturnRecorded { lsn } = record.event {
                self.begin_lane(self.state.direction.opening(), lsn.0 as usize);
            }
            if matches!(record.event, Event::Committed { .. }) {
                self.seen.switches += 1;
                self.seen.rollback_until = self.clock + LIMITS.rollback_micros;
            }
            self.controllers[index].epoch = Some(record.epoch);
            journal.push(record);
        }
    }

    pub fn perform(&mut self, scenario: &Scenario, index: usize, manner: Manner, journal: &mut Vec<Record>) {
        let pending = std::mem::replace(&mut self.controllers[index].pending, Pending::Nothing);
        let (Pending::Perform(effect) | Pending::Blind(effect)) = &pending else { return };
        let Some(mut epoch) = self.controllers[index].epoch else { return };
        if scenario.mutant == Some(Mutant::OneEpochPerAttempt) {
            epoch = self.state.attempt.as_ref().map_or(epoch, |attempt| attempt.started.min(epoch));
        }
        let answer = match manner {
            _ if matches!(pending, Pending::Blind(_)) => self.put(effect),
            Manner::Done => self.effect(scenario, epoch, effect),
            Manner::AppliedUnsaid => {
                self.left.ambiguities -= 1;
                self.effect(scenario, epoch, effect);
                Answer::Ambiguous
            }
            Manner::LostUnsaid => {
                self.left.ambiguities -= 1;
                Answer::Ambiguous
            }
            Manner::Late => {
                self.left.delays -= 1;
                self.late = Some((epoch, effect.clone()));
                let store = matches!(effect, Effect::SwitchConfig { .. });
                if store { Answer::Ambiguous } else { Answer::Failed }
            }
        };
        if answer == Answer::Ambiguous && scenario.mutant == Some(Mutant::ConfigRetriedBlindly) {
            self.controllers[index].pending = Pending::Blind(effect.clone());
        } else if let Some(event) = answered(effect, &answer) {
            // Its author has read up to here, unless another has written meanwhile: then its epoch is stale.
            if scenario.split {
                self.controllers[index].pending = match self.controllers[index].epoch {
                    Some(mine) if mine == self.state.epoch => Pending::Append(event, self.state.sequence),
                    _ => Pending::Nothing,
                };
            } else if self.controllers[index].epoch == Some(self.state.epoch) {
                self.append(index, event, self.state.sequence, journal);
            }
        }
    }

    /// What the mutant does: writes whatever the store holds.
    fn put(&mut self, effect: &Effect) -> Answer {
        if let Effect::SwitchConfig { expected, to } = effect {
            self.seen.overwrote |= expected.0 != self.store.version.to_string();
            self.store = Store { version: self.store.version + 1, names: Some(*to), ..self.store };
        }
        Answer::Done
    }

    pub fn effect(&mut self, scenario: &Scenario, epoch: Epoch, effect: &Effect) -> Answer {
        let guarded = match effect {
            Effect::CloseFence { side, .. }
            | Effect::SealFence { side }
            | Effect::EmitBarrier { side }
            | Effect::Ready { side }
            | Effect::RecordReturn { side }
            | Effect::OpenFence { side }
            | Effect::WriteCanary { side }
            | Effect::EndSessions { side } => Some(*side),
            Effect::VerifyDelta | Effect::SwitchConfig { .. } | Effect::End => None,
        };
        if mutant::feigned(scenario.mutant, effect, self) {
            return Answer::Done;
        }
        let mut same_epoch = false;
        if let Some(side) = guarded {
            let database = self.side_mut(side);
            if epoch < database.epoch && scenario.mutant != Some(Mutant::StaleControllerNotFenced) {
                return Answer::Stale;
            }
            same_epoch = epoch == database.epoch;
            database.epoch = database.epoch.max(epoch);
        }
        match effect {
            Effect::CloseFence { side, mode } => {
                let database = self.side_mut(*side);
                database.mode = if same_epoch { database.mode.max(*mode) } else { *mode };
                Answer::Done
            }
            Effect::SealFence { side } => {
                let blind = scenario.mutant == Some(Mutant::SealedThoughOpen);
                let database = self.side_mut(*side);
                if database.mode == Mode::Open && !blind {
                    return Answer::Failed;
                }
                database.mode = Mode::Sealed;
                Answer::Done
            }
            Effect::OpenFence { side } => {
                self.side_mut(*side).mode = Mode::Open;
                Answer::Done
            }
            Effect::EmitBarrier { side } => Answer::At(Lsn(self.side(*side).commits.len() as u64)),
            Effect::Ready { side } => {
                if scenario.mutant != Some(Mutant::SequencesNotSet) {
                    // Under `dual` the margin is what old sessions may still draw.
                    let margin = if scenario.policy == Policy::Dual { scenario.left.writes } else { 0 };
                    let ahead = self.side(side.other()).sequence + margin;
                    let database = self.side_mut(*side);
                    database.sequence = database.sequence.max(ahead);
                }
                Answer::Done
            }
            Effect::VerifyDelta => {
                let different = self.missing_from(Side::Source) + self.missing_from(Side::Target);
                Answer::Compared { keys: 0, different: mutant::different(scenario.mutant, different) }
            }
            Effect::RecordReturn { side } => {
                let here = self.side(*side).commits.len() as u64;
                Answer::At(Lsn(if scenario.mutant == Some(Mutant::ReturnPositionAfterSwitch) { 0 } else { here }))
            }
            Effect::SwitchConfig { expected, to } => {
                if self.store.down {
                    return Answer::Failed;
                }
                if expected.0 != self.store.version.to_string() {
                    return Answer::NotApplied;
                }
                self.store = Store { version: self.store.version + 1, names: Some(*to), ..self.store };
                Answer::Done
            }
            Effect::WriteCanary { side } => {
                if scenario.mutant == Some(Mutant::ReturnPositionAfterSwitch) {
                    let here = self.side(*side).commits.len();
                    self.begin_lane(*side, here);
                }
                Answer::Done
            }
            Effect::EndSessions { side } => {
                if mutant::freezes_late(scenario.mutant, &self.state) {
                    self.side_mut(*side).mode = Mode::Sealed;
                }
                self.side_mut(*side).open = None;
                Answer::Done
            }
            Effect::End => Answer::Done,
        }
    }

    /// How many of the other side's rows are not on `side`.
    fn missing_from(&self, side: Side) -> u64 {
        let here = &self.side(side).commits;
        let others = self.side(side.other()).commits.iter();
        others.filter(|(value, _)| here.iter().all(|(there, _)| there != value)).count() as u64
    }

    /// The lane from `side` carries nothing that lies before `from`.
    fn begin_lane(&mut self, side: Side, from: usize) {
        let database = self.side_mut(side);
        database.carried = database.carried.max(from);
    }

    /// What an undisturbed process makes of it: clients finish, lanes catch up, the config store answers, every other process is
    /// gone. Yields how that one ended, or nothing if it did not.
    pub fn recover(&mut self, scenario: &Scenario, journal: &mut Vec<Record>) -> Option<Outcome> {
        let calm = Scenario { split: false, ..scenario.clone() };
        self.controllers = vec![Controller { epoch: None, pending: Pending::Nothing }];
        self.left = Left { launches: 1, ticks: u8::MAX, ..Left::default() };
        self.store.down = false;
        if matches!(self.state.phase, Phase::Prepared | Phase::Reversible) {
            return Some(Outcome::Done);
        }
        let want = match self.state.direction {
            _ if self.state.phase == Phase::Finalized => Want::Finalize,
            Direction::Forward => Want::Forward,
            Direction::Back => Want::Back,
        };
        if !self.act(&calm, Action::Launch(0, want), journal) {
            return None;
        }
        for _ in 0..200 {
            self.settle(&calm, journal);
            let facts = self.look(Some(0), &calm);
            if let Step::Finished(outcome) = decide(&self.state, &facts, self.clock) {
                return Some(outcome);
            }
            if let Step::Ambiguous(_) = decide(&self.state, &facts, self.clock) {
                return Some(Outcome::Ambiguous);
            }
            if !self.act(&calm, Action::Turn(0), journal) {
                self.act(&calm, Action::Tick, journal);
            }
            if self.controllers[0].pending != Pending::Nothing {
                self.act(&calm, Action::Perform(0, Manner::Done), journal);
            }
        }
        None
    }
}
