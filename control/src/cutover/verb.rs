//! The operator's verbs: which are allowed now, by which first record, and what to say where one is not.

use super::attempt::Phase;
use super::event::{AbortReason, Direction, Epoch, Event, Limits, Mode, Policy, Side};
use super::facts::{ConfigFacts, Facts, SideFacts};
use super::rollback::{Unsafe, rollback_safe};
use super::state::{GATE_MICROS_MAX, State};

/// A holder that has been silent for so long may be replaced. Only politeness: what makes two of them harmless is the epoch.
pub const HOLDER_SILENT_MICROS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    CutoverCheck,
    CutoverStart {
        policy: Policy,
        limits: Limits,
    },
    /// Of a rollback too, as long as it is not committed.
    CutoverAbort,
    CutoverStatus,
    RollbackCheck,
    RollbackStart {
        policy: Policy,
        limits: Limits,
    },
    Finalize,
}

/// How a command ended; its exit code says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    Refused,
    /// Given up before the point of no return: the closing side is open again.
    Aborted,
    Ambiguous,
}

impl Outcome {
    pub fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Refused => 2,
            Outcome::Aborted => 3,
            Outcome::Ambiguous => 4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Only reads.
    Read,
    /// Append this, then follow `decide` until it is finished. It raises the epoch, and so shuts out every other controller.
    Begin(Event),
    Refused {
        why: Refusal,
        /// The verb that would be in order.
        next: &'static str,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Wrong order of verbs.
    NotNow(&'static str),
    /// Checks of the gate that did not pass.
    Gate(Vec<&'static str>),
    GateVoid,
    /// Another process is at work.
    Held {
        holder: String,
    },
    ConfigUnreadable,
    /// The config store does not name the side that the application is on.
    ConfigElsewhere,
    /// The fence of this side is not as it must be before a start.
    Fence(Side),
    Rollback(Unsafe),
}

/// Breaks the glass: the target is lost, and with it the journal, while the source is closed. The source may be opened without
/// them as long as it is not sealed: no commit record can be written for it then, nor later, as sealing fails where the fence
/// is open. Yields the epoch under which to open it, in one statement that checks the same again; what was sent to close it
/// under a lower one comes too late.
///
/// # Errors
/// Why not.
pub fn reopen_alone(source: &SideFacts) -> Result<Epoch, &'static str> {
    match source.fence {
        Some((Mode::OldTransactions | Mode::Closed, epoch)) => Ok(epoch.next()),
        Some((Mode::Open, _)) => Err("the source is open"),
        Some((Mode::OldSessions, _)) => Err("under policy dual the target may be open too"),
        Some((Mode::Sealed, _)) => Err("the source is sealed: the target may be open, only its journal can tell"),
        None => Err("the source's fence cannot be read"),
    }
}

/// Whether `verb` may be done now, by the process that calls itself `holder`.
pub fn verb(verb: Verb, holder: &str, state: &State, facts: &Facts, now_micros: u64) -> Verdict {
    let asked = Asked { holder, state, facts, now_micros };
    let result = match verb {
        Verb::CutoverStatus => Ok(Verdict::Read),
        Verb::CutoverCheck => asked.check(Direction::Forward),
        Verb::RollbackCheck => asked.check(Direction::Back),
        Verb::CutoverStart { policy, limits } => asked.start(Direction::Forward, policy, limits),
        Verb::RollbackStart { policy, limits } => asked.start(Direction::Back, policy, limits),
        Verb::CutoverAbort => asked.abort(),
        Verb::Finalize => asked.finalize(),
    };
    result.unwrap_or_else(|(why, next)| Verdict::Refused { why, next })
}

struct Asked<'a> {
    holder: &'a str,
    state: &'a State,
    facts: &'a Facts,
    now_micros: u64,
}

type Judged = Result<Verdict, (Refusal, &'static str)>;

impl Asked<'_> {
    fn check(&self, direction: Direction) -> Judged {
        self.order(direction)?;
        self.gate(direction).map(|_| Verdict::Read)
    }

    fn start(&self, direction: Direction, policy: Policy, limits: Limits) -> Judged {
        let under_way = !self.state.at_rest() && self.state.phase != Phase::Finalized;
        if under_way && self.state.direction == direction {
            return self.take_over();
        }
        self.order(direction)?;
        let holder = self.holder.to_owned();
        if self.state.phase == Phase::Draining {
            self.safe()?;
            return Ok(Verdict::Begin(Event::DrainHastened { holder, deadline_micros: self.now_micros }));
        }
        let gate_passed_at_micros = self.gate(direction)?;
        let Some(config_version) = self.config(direction) else {
            let unreadable = self.facts.config == ConfigFacts::Unreadable;
            let why = if unreadable { Refusal::ConfigUnreadable } else { Refusal::ConfigElsewhere };
            return Err((why, check_verb(direction)));
        };
        let mode = |side| self.facts.side(side).fence.map(|(mode, _)| mode);
        if mode(direction.closing()) != Some(Mode::Open) {
            return Err((Refusal::Fence(direction.closing()), "dflux cutover status"));
        }
        if mode(direction.opening()).is_none_or(|mode| mode < Mode::Closed) {
            return Err((Refusal::Fence(direction.opening()), "dflux cutover status"));
        }
        // A rollback has no dual form: the target's writers are what it must not lose.
        let policy = if direction == Direction::Back && policy == Policy::Dual { Policy::Drain } else { policy };
        Ok(Verdict::Begin(Event::Started { holder, direction, policy, limits, gate_passed_at_micros, config_version }))
    }

    fn abort(&self) -> Judged {
        let holder = self.holder.to_owned();
        match (self.state.phase, self.state.direction) {
            _ if self.state.can_abort() => {
                Ok(Verdict::Begin(Event::AbortStarted { holder, reason: AbortReason::Operator }))
            }
            (Phase::Aborting, _) => self.take_over(),
            (Phase::Prepared, _) => Err((Refusal::NotNow("nothing is under way"), "dflux cutover check")),
            (Phase::Reversible, _) => Err((Refusal::NotNow("nothing is under way"), "dflux rollback check")),
            (Phase::Finalized, _) => Err((Refusal::NotNow("the migration is finalized"), "dflux cleanup")),
            (_, Direction::Forward) if self.state.phase == Phase::Draining => {
                Err((Refusal::NotNow("the cutover is past its point of no return"), "dflux rollback start"))
            }
            (_, direction) => {
                Err((Refusal::NotNow("it is past its point of no return and must be completed"), start_verb(direction)))
            }
        }
    }

    fn finalize(&self) -> Judged {
        match self.state.phase {
            Phase::Reversible => Ok(Verdict::Begin(Event::Finalized { holder: self.holder.to_owned() })),
            Phase::Finalized if self.state.ended => {
                Err((Refusal::NotNow("the migration is finalized"), "dflux cleanup"))
            }
            Phase::Finalized => self.take_over(),
            Phase::Prepared => Err((Refusal::NotNow("the application is on the source"), "dflux cutover check")),
            _ => Err((Refusal::NotNow("a switch is under way"), start_verb(self.state.direction))),
        }
    }

    /// Whether a start in this direction is in order at all.
    fn order(&self, direction: Direction) -> Result<(), (Refusal, &'static str)> {
        match (direction, self.state.phase) {
            (Direction::Forward, Phase::Prepared) | (Direction::Back, Phase::Reversible) => Ok(()),
            (Direction::Back, Phase::Draining) if self.state.direction == Direction::Forward => Ok(()),
            (_, Phase::Finalized) => Err((Refusal::NotNow("the migration is finalized"), "dflux cleanup")),
            (Direction::Forward, Phase::Reversible) => {
                Err((Refusal::NotNow("the application is on the target already"), "dflux rollback check"))
            }
            (Direction::Back, Phase::Prepared) => {
                Err((Refusal::NotNow("the application is on the source already"), "dflux cutover check"))
            }
            _ => Err((Refusal::NotNow("a switch is under way"), start_verb(self.state.direction))),
        }
    }

    /// When the gate was passed.
    fn gate(&self, direction: Direction) -> Result<u64, (Refusal, &'static str)> {
        if direction == Direction::Back {
            self.safe()?;
        }
        let Some(passed) = self.facts.gate.passed_at_micros() else {
            return Err((Refusal::Gate(self.facts.gate.failed.clone()), check_verb(direction)));
        };
        if self.now_micros.saturating_sub(passed) > GATE_MICROS_MAX {
            return Err((Refusal::GateVoid, check_verb(direction)));
        }
        Ok(passed)
    }

    fn safe(&self) -> Result<(), (Refusal, &'static str)> {
        match rollback_safe(self.state, self.facts, self.now_micros) {
            Ok(_) => Ok(()),
            Err(reason @ (Unsafe::LaneDead | Unsafe::Conflicts(_) | Unsafe::SchemaDiffers | Unsafe::Unknown(_))) => {
                Err((Refusal::Rollback(reason), "dflux rollback check"))
            }
            Err(reason) => Err((Refusal::Rollback(reason), "dflux finalize")),
        }
    }

    fn config(&self, direction: Direction) -> Option<super::event::Version> {
        match &self.facts.config {
            ConfigFacts::Read { version, names } if *names == Some(direction.closing()) => Some(version.clone()),
            ConfigFacts::Read { .. } | ConfigFacts::Unreadable => None,
        }
    }

    /// Goes on where another process stopped, if it has stopped.
    fn take_over(&self) -> Judged {
        let silent = |seen: u64| self.now_micros.saturating_sub(seen) > HOLDER_SILENT_MICROS;
        if self.holder != self.state.holder && self.facts.holder_seen_at_micros.is_some_and(|seen| !silent(seen)) {
            let next = if self.state.can_abort() { "dflux cutover abort" } else { "dflux cutover status" };
            return Err((Refusal::Held { holder: self.state.holder.clone() }, next));
        }
        Ok(Verdict::Begin(Event::TakenOver { holder: self.holder.to_owned() }))
    }
}

fn start_verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "dflux cutover start",
        Direction::Back => "dflux rollback start",
    }
}

fn check_verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "dflux cutover check",
        Direction::Back => "dflux rollback check",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::event::{Epoch, Version};
    use crate::cutover::fixture::{LIMITS, Play, SECOND};
    use crate::cutover::state::State;

    const CUTOVER: Verb = Verb::CutoverStart { policy: Policy::Drain, limits: LIMITS };
    const ROLLBACK: Verb = Verb::RollbackStart { policy: Policy::Drain, limits: LIMITS };

    fn ask(play: &Play, asked: Verb) -> Verdict {
        verb(asked, "test", &play.state, &play.facts, play.now_micros)
    }

    fn begins(play: &Play, asked: Verb) -> bool {
        matches!(ask(play, asked), Verdict::Begin(_))
    }

    fn next(play: &Play, asked: Verb) -> &'static str {
        match ask(play, asked) {
            Verdict::Refused { next, .. } => next,
            other => panic!("{other:?}"),
        }
    }

    fn why(play: &Play, asked: Verb) -> Refusal {
        match ask(play, asked) {
            Verdict::Refused { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn verbs_out_of_order_are_refused_with_the_one_that_is_in_order() {
        let mut play = Play::new();
        for (asked, instead) in [
            (ROLLBACK, "dflux cutover check"),
            (Verb::RollbackCheck, "dflux cutover check"),
            (Verb::CutoverAbort, "dflux cutover check"),
            (Verb::Finalize, "dflux cutover check"),
        ] {
            assert_eq!(next(&play, asked), instead, "{asked:?}");
        }
        play.begin(CUTOVER);
        play.run_to(Phase::Committed);
        for asked in [ROLLBACK, Verb::CutoverAbort, Verb::Finalize, Verb::CutoverCheck] {
            assert_eq!(next(&play, asked), "dflux cutover start", "{asked:?}");
        }
        play.run_to(Phase::Draining);
        assert_eq!(next(&play, Verb::CutoverAbort), "dflux rollback start");
        play.run();
        for (asked, instead) in [(CUTOVER, "dflux rollback check"), (Verb::CutoverAbort, "dflux rollback check")] {
            assert_eq!(next(&play, asked), instead, "{asked:?}");
        }
        play.begin(ROLLBACK);
        for asked in [CUTOVER, Verb::CutoverCheck, Verb::Finalize] {
            assert_eq!(next(&play, asked), "dflux rollback start", "{asked:?}");
        }
        play.run();
        play.begin(CUTOVER);
        play.run();
        play.begin(Verb::Finalize);
        assert_eq!(next(&play, CUTOVER), "dflux cleanup");
        assert!(begins(&play, Verb::Finalize), "half finalized is taken up again");
        play.run();
        for asked in [CUTOVER, ROLLBACK, Verb::CutoverAbort, Verb::Finalize] {
            assert_eq!(next(&play, asked), "dflux cleanup", "{asked:?}");
        }
        assert_eq!(ask(&play, Verb::CutoverStatus), Verdict::Read);
    }

    #[test]
    fn an_interrupted_switch_is_taken_up_by_the_verb_that_began_it() {
        let mut play = Play::new();
        play.begin(CUTOVER);
        while !play.state.at_rest() {
            assert!(matches!(ask(&play, CUTOVER), Verdict::Begin(Event::TakenOver { .. })), "{:?}", play.state.phase);
            play.step();
        }
    }

    #[test]
    fn a_holder_that_lives_is_not_replaced_but_can_be_told_to_abort() {
        let mut play = Play::new();
        play.begin(CUTOVER);
        play.facts.holder_seen_at_micros = Some(0);
        play.state.holder = "other".into();
        play.now_micros = HOLDER_SILENT_MICROS;
        assert_eq!(why(&play, CUTOVER), Refusal::Held { holder: "other".into() });
        assert_eq!(next(&play, CUTOVER), "dflux cutover abort");
        assert!(begins(&play, Verb::CutoverAbort));
        play.now_micros += 1;
        assert!(begins(&play, CUTOVER));
    }

    #[test]
    fn a_start_needs_a_fresh_gate_the_config_store_and_both_fences() {
        let good = Play::new();
        assert!(begins(&good, CUTOVER));
        assert_eq!(ask(&good, Verb::CutoverCheck), Verdict::Read);
        type Case = (Refusal, fn(&mut Play));
        let cases: [Case; 7] = [
            (Refusal::Gate(vec!["lag"]), |play| play.facts.gate.failed.push("lag")),
            (Refusal::Gate(Vec::new()), |play| play.facts.gate.measured_at_micros = None),
            (Refusal::GateVoid, |play| play.now_micros = 5 * SECOND + 1),
            (Refusal::ConfigUnreadable, |play| play.facts.config = ConfigFacts::Unreadable),
            (Refusal::ConfigElsewhere, |play| {
                play.facts.config = ConfigFacts::Read { version: Version("v1".into()), names: Some(Side::Target) };
            }),
            (Refusal::Fence(Side::Target), |play| play.facts.target.fence = Some((Mode::Open, Epoch(0)))),
            (Refusal::Fence(Side::Source), |play| play.facts.source.fence = None),
        ];
        for (refusal, disturb) in cases {
            let mut play = Play::new();
            disturb(&mut play);
            assert_eq!(why(&play, CUTOVER), refusal);
        }
    }

    #[test]
    fn a_rollback_asked_for_during_the_drain_ends_the_drain_first() {
        let mut play = Play::new();
        play.begin(CUTOVER);
        play.run_to(Phase::Draining);
        play.facts.source.sessions = Some(3);
        play.now_micros = 7;
        assert_eq!(
            ask(&play, ROLLBACK),
            Verdict::Begin(Event::DrainHastened { holder: "test".into(), deadline_micros: 7 })
        );
        play.begin(ROLLBACK);
        assert_eq!((play.run(), play.now_micros), (Outcome::Done, 7));
        play.begin(ROLLBACK);
        assert_eq!(play.run(), Outcome::Done);
        assert_eq!(play.state.phase, Phase::Prepared);
    }

    #[test]
    fn the_last_moment_of_the_window_counts_and_a_start_recorded_later_is_refused() {
        let mut play = Play::new();
        play.begin(CUTOVER);
        play.run();
        play.now_micros = LIMITS.rollback_micros;
        play.facts.gate.measured_at_micros = Some(play.now_micros);
        let Verdict::Begin(event) = ask(&play, ROLLBACK) else { panic!("it is allowed") };
        let started =
            |at| play.state.clone().apply(&play.state.record(event.clone(), at)).map(|state: State| state.phase);
        assert!(matches!(started(play.now_micros), Ok(Phase::Gated)));
        assert!(started(play.now_micros + 1).is_err());
    }

    #[test]
    fn the_source_is_reopened_alone_only_before_it_is_sealed() {
        let mut play = Play::new();
        play.begin(CUTOVER);
        let mut modes = Vec::new();
        while !play.state.at_rest() {
            let allowed = reopen_alone(&play.facts.source);
            let (mode, epoch) = play.facts.source.fence.unwrap();
            assert_eq!(allowed.is_ok(), mode == Mode::OldTransactions, "{mode:?}");
            assert!(allowed.is_err() || allowed == Ok(epoch.next()) && play.state.can_abort());
            modes.push(mode);
            play.step();
        }
        modes.dedup();
        assert_eq!(modes, [Mode::Open, Mode::OldTransactions, Mode::Sealed]);
    }

    #[test]
    fn a_rollback_has_no_dual_form() {
        let mut play = Play::new();
        play.begin(Verb::CutoverStart { policy: Policy::Dual, limits: LIMITS });
        play.run();
        play.begin(Verb::RollbackStart { policy: Policy::Dual, limits: LIMITS });
        assert_eq!(play.state.attempt.as_ref().map(|attempt| attempt.policy), Some(Policy::Drain));
    }

    #[test]
    fn exit_codes_are_those_of_the_documents() {
        let codes = [Outcome::Done, Outcome::Refused, Outcome::Aborted, Outcome::Ambiguous].map(Outcome::code);
        assert_eq!(codes, [0, 2, 3, 4]);
    }
}
