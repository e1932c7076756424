//! A world in which everything goes well, for unit tests: it answers every effect and keeps the facts true.

use changelog::Lsn;

use super::*;

pub const SECOND: u64 = 1_000_000;
pub const LIMITS: Limits =
    Limits { max_outage_micros: 5 * SECOND, drain_micros: 300 * SECOND, rollback_micros: 1800 * SECOND };

/// Facts under which everything may be done, with the application on `side`.
pub fn facts(side: Side, now_micros: u64) -> Facts {
    let fence = |mine| if mine == side { (Mode::Open, Epoch(0)) } else { (Mode::Closed, Epoch(0)) };
    let quiet = |mine| SideFacts { fence: Some(fence(mine)), writers: Some(0), prepared: Some(0), sessions: Some(0) };
    let lane = LaneFacts {
        alive: Some(true),
        slot: Some(Slot::Healthy),
        retained: Some(true),
        applied: Some(Lsn(u64::MAX)),
        conflicts: Some(0),
    };
    Facts {
        epoch: None,
        holder_seen_at_micros: None,
        gate: GateFacts { measured_at_micros: Some(now_micros), failed: Vec::new() },
        source: quiet(Side::Source),
        target: quiet(Side::Target),
        forward: lane.clone(),
        reverse: lane,
        config: ConfigFacts::Read { version: Version("v1".into()), names: Some(side) },
        schema_differs: Some(false),
    }
}

/// One controller that is never disturbed.
pub struct Play {
    pub state: State,
    pub records: Vec<Record>,
    pub facts: Facts,
    pub now_micros: u64,
}

impl Play {
    pub fn new() -> Play {
        Play { state: State::default(), records: Vec::new(), facts: facts(Side::Source, 0), now_micros: 0 }
    }

    pub fn append(&mut self, event: Event) {
        let record = self.state.record(event, self.now_micros);
        self.state = self.state.clone().apply(&record).unwrap();
        self.facts.epoch = Some(record.epoch);
        self.records.push(record);
    }

    pub fn begin(&mut self, asked: Verb) {
        self.facts.gate.measured_at_micros = Some(self.now_micros);
        match verb(asked, "test", &self.state, &self.facts, self.now_micros) {
            Verdict::Begin(event) => self.append(event),
            other => panic!("{other:?}"),
        }
    }

    pub fn next(&self) -> Step {
        decide(&self.state, &self.facts, self.now_micros)
    }

    /// One step; its end, if it was the last.
    pub fn step(&mut self) -> Option<Outcome> {
        match self.next() {
            Step::Record(event) => self.append(event),
            Step::Perform(effect) => {
                if let Some(event) = answered(&effect, &self.answer(&effect)) {
                    self.append(event);
                }
            }
            Step::Wait(Waiting::Sessions { until_micros, .. }) => self.now_micros = until_micros,
            Step::Finished(outcome) => return Some(outcome),
            other => panic!("{other:?}"),
        }
        None
    }

    pub fn run(&mut self) -> Outcome {
        (0..100).find_map(|_| self.step()).expect("it ends")
    }

    /// Steps until `phase` is reached.
    pub fn run_to(&mut self, phase: Phase) {
        for _ in 0..100 {
            if self.state.phase == phase {
                return;
            }
            assert_eq!(self.step(), None, "it ended before {phase:?}");
        }
        panic!("{phase:?} is not reached");
    }

    pub fn answer(&mut self, effect: &Effect) -> Answer {
        let epoch = self.state.epoch;
        match effect {
            Effect::CloseFence { side, mode } => {
                self.side(*side).fence = Some((*mode, epoch));
                Answer::Done
            }
            Effect::SealFence { side } => {
                self.side(*side).fence = Some((Mode::Sealed, epoch));
                Answer::Done
            }
            Effect::OpenFence { side } => {
                self.side(*side).fence = Some((Mode::Open, epoch));
                Answer::Done
            }
            Effect::EmitBarrier { .. } | Effect::RecordReturn { .. } => Answer::At(Lsn(self.state.sequence)),
            Effect::VerifyDelta => Answer::Compared { keys: 10, different: 0 },
            Effect::SwitchConfig { to, .. } => {
                let version = Version(format!("v{}", self.state.sequence));
                self.facts.config = ConfigFacts::Read { version, names: Some(*to) };
                Answer::Done
            }
            Effect::Ready { .. } | Effect::WriteCanary { .. } | Effect::EndSessions { .. } | Effect::End => {
                Answer::Done
            }
        }
    }

    fn side(&mut self, side: Side) -> &mut SideFacts {
        match side {
            Side::Source => &mut self.facts.source,
            Side::Target => &mut self.facts.target,
        }
    }
}

/// Cut over, rolled back, cut over again, finalized.
pub fn whole_story() -> Vec<Record> {
    let mut play = Play::new();
    let cutover = Verb::CutoverStart { policy: Policy::Drain, limits: LIMITS };
    for verb in [cutover, Verb::RollbackStart { policy: Policy::Drain, limits: LIMITS }, cutover, Verb::Finalize] {
        play.begin(verb);
        assert_eq!(play.run(), Outcome::Done);
    }
    play.records
}
