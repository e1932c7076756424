//! The controller: read the journal, look, decide, do one thing; again. It remembers nothing that matters, so that any process goes
//! on where another died.

use std::time::Duration;

use service::Config;

use super::effects::Sides;
use super::gate::{self, Comparison};
use super::journal::{Journal, Read};
use super::{
    Answer, ConfigFacts, Direction, Effect, Epoch, Event, Facts, GateFacts, LaneFacts, Limits, Mode, Outcome, Phase,
    Policy, Record, Refusal, Side, SideFacts, Slot, State, Step, Verb, Verdict, Version, answered, decide, tell, verb,
};
use crate::store::{self, ConfigStore as _, Store, Swapped, Value};
use crate::{Error, Exit};

/// Between two looks while something is waited for inside the outage, and while sessions drain.
const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(500);
/// After a failure: a server that is away.
const AGAIN: Duration = Duration::from_millis(200);
/// A consumer that was silent for longer is not alive.
const SILENT_SECONDS: f64 = 15.0;
/// Letting clients go is tried so often.
const RELEASE_TRIES: usize = 25;
/// Clients are held back this long at most before the fence closes, where the store can.
const PAUSE_WITHIN: Duration = Duration::from_secs(5);

/// One process that carries a switch through.
#[derive(Debug)]
pub struct Controller<'a> {
    config: &'a Config,
    sides: Sides,
    store: Store,
    /// Of source and target: what the store is to hold, where that is not its present value with another host and database.
    own: [Option<Value>; 2],
    databases: [Value; 2],
    holder: String,
    /// Of the last record that this process wrote.
    epoch: Option<Epoch>,
    comparison: Option<Comparison>,
    paused: bool,
}

impl<'a> Controller<'a> {
    /// # Errors
    /// `NoConfigStore`, `Store`, `Service`: a database does not answer.
    pub async fn new(config: &'a Config) -> Result<Controller<'a>, Error> {
        let section = config.config_store.as_ref().ok_or(Error::NoConfigStore)?;
        let value = |text: &String| Value::new("[cutover]", text.clone());
        let own = [&config.cutover.source_url, &config.cutover.target_url];
        let [source, target] = own.map(|url| url.as_ref().map(value).transpose());
        Ok(Controller {
            config,
            sides: Sides::connect(config).await?,
            store: Store::new(section)?,
            own: [source?, target?],
            databases: [value(&config.source.url)?, value(&config.target.url)?],
            holder: format!("dflux {} {}", std::process::id(), uuid::Uuid::new_v4().simple()),
            epoch: None,
            comparison: None,
            paused: false,
        })
    }

    fn journal(&self) -> Journal<'_> {
        Journal::new(self.sides.at(Side::Target), &self.config.migration.name)
    }

    /// What the store holds when the application is to be on this side, where it holds `present` now: the application keeps its own
    /// user, password and parameters.
    fn address(&self, present: &Value, side: Side) -> Result<Value, store::Error> {
        let at = usize::from(side == Side::Target);
        self.own[at].clone().map_or_else(|| present.readdressed(&self.databases[at]), Ok)
    }

    fn limits(&self) -> Limits {
        let cutover = &self.config.cutover;
        Limits {
            max_outage_micros: cutover.max_outage_ms * 1_000,
            drain_micros: cutover.drain_seconds * 1_000_000,
            rollback_micros: cutover.rollback_minutes * 60_000_000,
        }
    }

    fn policy(&self) -> Result<Policy, Error> {
        match self.config.cutover.policy {
            service::config::Policy::Fenced => Ok(Policy::Fenced),
            service::config::Policy::Drain => Ok(Policy::Drain),
            service::config::Policy::Dual => Err(Error::NoDual),
        }
    }

    /// Whether a switch in this direction could begin now. Changes nothing.
    ///
    /// # Errors
    /// A database or the store does not answer.
    pub async fn check(&mut self, direction: Direction) -> Result<Exit, Error> {
        let read = self.journal().read().await?;
        let asked = if direction == Direction::Forward { Verb::CutoverCheck } else { Verb::RollbackCheck };
        if let Err(exit) = self.in_order(asked, &read).await? {
            return Ok(exit);
        }
        let facts = self.gated(&read.state, direction).await?;
        self.judge(asked, &read, &facts).await.map(|begun| if begun.is_ok() { Exit::Done } else { Exit::Refused })
    }

    /// Begins a switch, or goes on with one that another process has left, and carries it through.
    ///
    /// # Errors
    /// A database does not answer before anything was begun.
    pub async fn start(&mut self, direction: Direction) -> Result<Exit, Error> {
        loop {
            let exit = self.started(direction).await?;
            // Asked for while the cutover still drained, the drain was brought to its end first.
            let reversible = exit == Exit::Done && self.journal().read().await?.state.phase == Phase::Reversible;
            if direction == Direction::Forward || !reversible {
                return Ok(exit);
            }
        }
    }

    async fn started(&mut self, direction: Direction) -> Result<Exit, Error> {
        let (policy, limits) = (self.policy()?, self.limits());
        self.journal().make().await?;
        let read = self.journal().read().await?;
        let asked = match direction {
            Direction::Forward => Verb::CutoverStart { policy, limits },
            Direction::Back => Verb::RollbackStart { policy, limits },
        };
        if let Err(exit) = self.in_order(asked, &read).await? {
            return Ok(exit);
        }
        let facts = if read.state.at_rest() {
            self.install(&read.state).await?;
            self.gated(&read.state, direction).await?
        } else {
            self.ask(&read.state, GateFacts::default()).await?
        };
        self.begin(asked, read, &facts).await
    }

    /// # Errors
    /// A database does not answer before anything was begun.
    pub async fn abort(&mut self) -> Result<Exit, Error> {
        self.short(Verb::CutoverAbort).await
    }

    /// # Errors
    /// A database does not answer before anything was begun.
    pub async fn finalize(&mut self) -> Result<Exit, Error> {
        self.short(Verb::Finalize).await
    }

    async fn short(&mut self, asked: Verb) -> Result<Exit, Error> {
        let read = self.journal().read().await?;
        let facts = self.ask(&read.state, GateFacts::default()).await?;
        self.begin(asked, read, &facts).await
    }

    /// Where things stand.
    ///
    /// # Errors
    /// A database does not answer.
    pub async fn status(&self, json: bool) -> Result<Exit, Error> {
        let read = self.journal().read().await?;
        let facts = self.ask(&read.state, GateFacts::default()).await?;
        tell::status(&read.state, &facts, self.journal().now().await?, json);
        Ok(Exit::Done)
    }

    /// Appends what a verb begins with, and follows it to its end.
    async fn begin(&mut self, asked: Verb, read: Read, facts: &Facts) -> Result<Exit, Error> {
        let event = match self.judge(asked, &read, facts).await? {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Exit::Done),
            Err(exit) => return Ok(exit),
        };
        match self.journal().append(&read, event).await {
            Ok(Some(record)) => self.wrote(&record),
            Ok(None) => {
                println!("refused: another process has begun something in this moment\nhint: dflux cutover status");
                return Ok(Exit::Refused);
            }
            // It may have been written all the same: then it is this process's to carry on.
            Err(error) => {
                self.sides.revive().await;
                let read = self.journal().read().await?;
                if read.state.holder != self.holder {
                    return Err(error);
                }
                self.epoch = Some(read.state.epoch);
            }
        }
        Ok(self.follow().await)
    }

    /// Whether a verb is in order, the gate's checks aside, which take their time.
    async fn in_order(&self, asked: Verb, read: &Read) -> Result<Result<(), Exit>, Error> {
        let facts = self.ask(&read.state, gate::facts(&[], self.journal().now().await?)).await?;
        Ok(match verb(asked, &self.holder, &read.state, &facts, self.journal().now().await?) {
            // The fences are put up with the start.
            Verdict::Refused { why: Refusal::Fence(_), .. } | Verdict::Read | Verdict::Begin(_) => Ok(()),
            Verdict::Refused { why, next } => Err(tell::refused(&why, next)),
        })
    }

    async fn judge(&self, asked: Verb, read: &Read, facts: &Facts) -> Result<Result<Option<Event>, Exit>, Error> {
        Ok(match verb(asked, &self.holder, &read.state, facts, self.journal().now().await?) {
            Verdict::Read => Ok(None),
            Verdict::Begin(event) => Ok(Some(event)),
            Verdict::Refused { why, next } => Err(tell::refused(&why, next)),
        })
    }

    /// The fences, before anything is closed: the side with the application open, the other closed. The closed one first.
    async fn install(&self, state: &State) -> Result<(), Error> {
        let open = if state.phase == Phase::Reversible { Side::Target } else { Side::Source };
        let tables = self.sides.tables().await?;
        println!("fence: before {} table(s) on each side", tables.len());
        self.sides.fence(open.other()).install(&tables, Mode::Closed).await?;
        self.sides.fence(open).install(&tables, Mode::Open).await
    }

    async fn gated(&mut self, state: &State, direction: Direction) -> Result<Facts, Error> {
        let mut comparison = Comparison::new(self.config, direction)?;
        let checks = gate::gate(self.config, &self.sides, direction, &mut comparison).await?;
        self.comparison = Some(comparison);
        let now = self.journal().now().await?;
        self.ask(state, gate::facts(&checks, now)).await
    }

    /// From the first record on only the journal ends it: nothing here is given up because a connection is lost.
    async fn follow(&mut self) -> Exit {
        loop {
            match self.bounded().await {
                Ok(None) => {}
                // Of another controller's attempt the clients are its own business.
                Ok(Some(Exit::Ambiguous)) => return Exit::Ambiguous,
                Ok(Some(exit)) => {
                    self.release().await;
                    return exit;
                }
                Err(error) => {
                    tell::trouble(&error);
                    tokio::time::sleep(AGAIN).await;
                }
            }
            self.sides.revive().await;
        }
    }

    /// A turn that takes longer than the whole outage may is given up, with its sessions: the next one sees what time it is.
    async fn bounded(&mut self) -> Result<Option<Exit>, Error> {
        let limit = Duration::from_millis(self.config.cutover.max_outage_ms) + Duration::from_secs(1);
        if let Ok(turned) = tokio::time::timeout(limit, self.turn()).await {
            return turned;
        }
        self.sides = Sides::connect(self.config).await?;
        Ok(None)
    }

    async fn turn(&mut self) -> Result<Option<Exit>, Error> {
        let read = self.journal().read().await?;
        self.journal().beat(&self.holder).await?;
        let facts = self.look(&read.state).await;
        let now = self.journal().now().await?;
        match decide(&read.state, &facts, now) {
            Step::Record(event) => self.record(&read, event).await?,
            Step::Perform(effect) => {
                let answer = self.perform(&read.state, &effect).await;
                if let Some(event) = answered(&effect, &answer) {
                    self.record(&read, event).await?;
                } else if answer == Answer::Failed {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Step::Wait(waiting) => {
                let draining = read.state.phase == Phase::Draining;
                tell::waiting(&waiting, draining, now);
                tokio::time::sleep(if draining { LATER } else { SOON }).await;
            }
            Step::Ambiguous(doubt) => {
                println!("ambiguous: {doubt:?}\nhint: {}", doubt.next(read.state.direction));
                return Ok(Some(Exit::Ambiguous));
            }
            Step::Finished(outcome) => return Ok(Some(tell::finished(&read.state, &read.records, outcome))),
        }
        Ok(None)
    }

    async fn record(&mut self, read: &Read, event: Event) -> Result<(), Error> {
        if let Some(record) = self.journal().append(read, event).await? {
            self.wrote(&record);
            tell::recorded(&read.state, &record);
        }
        Ok(())
    }

    fn wrote(&mut self, record: &Record) {
        self.epoch = Some(record.epoch);
    }

    /// Holds clients back, where the store can and this process does not already.
    async fn hold(&mut self) -> Result<(), Error> {
        if !self.paused {
            self.store.pause(PAUSE_WITHIN).await?;
            self.paused = true;
        }
        Ok(())
    }

    /// Lets clients go that were held back.
    async fn release(&mut self) {
        for _attempt in 0..RELEASE_TRIES {
            match self.store.resume().await {
                Ok(()) => {
                    self.paused = false;
                    return;
                }
                Err(error) => tell::trouble(&error.into()),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn perform(&mut self, state: &State, effect: &Effect) -> Answer {
        match self.effect(state, effect).await {
            Ok(answer) => answer,
            Err(Error::StaleEpoch { .. }) => Answer::Stale,
            Err(error) => {
                tell::trouble(&error);
                Answer::Failed
            }
        }
    }

    async fn effect(&mut self, state: &State, effect: &Effect) -> Result<Answer, Error> {
        Ok(match effect {
            Effect::CloseFence { side, mode } => {
                if state.phase == Phase::Fencing {
                    self.hold().await?;
                }
                self.sides.fence(*side).set(state.epoch, *mode).await?;
                Answer::Done
            }
            Effect::OpenFence { side } => {
                self.sides.fence(*side).set(state.epoch, Mode::Open).await?;
                if state.phase == Phase::Aborting {
                    // Before it is written down: behind that nobody would look after them.
                    self.store.resume().await?;
                    self.paused = false;
                }
                Answer::Done
            }
            Effect::SealFence { side } => {
                self.sides.fence(*side).set(state.epoch, Mode::Sealed).await?;
                Answer::Done
            }
            Effect::EmitBarrier { side } => Answer::At(self.sides.mark(*side, "barrier").await?),
            Effect::Ready { side } => {
                self.sides.sequences(side.other()).await?;
                Answer::Done
            }
            Effect::VerifyDelta => {
                let comparison = match self.comparison.take() {
                    Some(comparison) => comparison,
                    None => Comparison::new(self.config, state.direction)?,
                };
                let (keys, different) = self.comparison.insert(comparison).changed().await?;
                Answer::Compared { keys, different }
            }
            Effect::RecordReturn { side } => match self.sides.covered(*side).await? {
                Some(lsn) => Answer::At(lsn),
                None => Answer::Failed,
            },
            Effect::SwitchConfig { expected, to } => {
                let expected = store::Version(expected.0.clone());
                // Another process had held the clients back, or nobody.
                self.hold().await?;
                let address = self.address(&self.store.get().await?.value, *to)?;
                match self.store.compare_and_swap(&expected, &address).await? {
                    Swapped::Applied(_) => {
                        // Clients that were held back go where it says by now; only then can it be read back.
                        self.release().await;
                        Answer::Done
                    }
                    Swapped::NotApplied { .. } => Answer::NotApplied,
                    Swapped::Ambiguous { .. } => Answer::Ambiguous,
                }
            }
            Effect::WriteCanary { side } => {
                self.sides.canary(*side, state.epoch.0).await?;
                Answer::Done
            }
            Effect::EndSessions { side } => {
                self.sides.terminate(*side).await?;
                Answer::Done
            }
            Effect::End => {
                self.sides.drop_slot(Side::Target).await?;
                self.sides.fence(Side::Target).remove().await?;
                Answer::Done
            }
        })
    }

    /// What a verb rests on: what a decision does, and what only a beginning asks for.
    async fn ask(&self, state: &State, gate: GateFacts) -> Result<Facts, Error> {
        Ok(Facts {
            holder_seen_at_micros: self.journal().seen(&state.holder).await?,
            gate,
            schema_differs: match state.at_rest() || state.phase == Phase::Draining {
                true => self.sides.same_columns().await.ok().map(|same| !same),
                false => None,
            },
            ..self.look(state).await
        })
    }

    /// Everything that a decision rests on, read now.
    async fn look(&self, state: &State) -> Facts {
        let (source, target, forward, reverse, config) = tokio::join!(
            self.side(Side::Source),
            self.side(Side::Target),
            self.lane(Side::Source, state),
            self.lane(Side::Target, state),
            self.stored(),
        );
        Facts {
            epoch: self.epoch,
            holder_seen_at_micros: None,
            gate: GateFacts::default(),
            // What could not be read is not known, and no decision takes that for a yes.
            source: source.unwrap_or_default(),
            target: target.unwrap_or_default(),
            forward: forward.unwrap_or_default(),
            reverse: reverse.unwrap_or_default(),
            config,
            schema_differs: None,
        }
    }

    async fn side(&self, side: Side) -> Result<SideFacts, Error> {
        let fence = self.sides.fence(side);
        let sessions = Some(self.sides.sessions(side).await?.max(0) as u64);
        let Some(standing) = fence.standing().await? else { return Ok(SideFacts { sessions, ..SideFacts::default() }) };
        let writers = fence.writers().await?;
        let prepared = writers.iter().filter(|writer| writer.pid.is_none()).count();
        Ok(SideFacts {
            fence: Some((standing.mode, standing.epoch)),
            writers: Some((writers.len() - prepared) as u64),
            prepared: Some(prepared as u64),
            sessions,
        })
    }

    async fn lane(&self, from: Side, state: &State) -> Result<LaneFacts, Error> {
        let slot = self.sides.slot(from).await?;
        let Some(row) = self.sides.lane(from).await? else { return Ok(LaneFacts::default()) };
        if state.phase == Phase::Barrier && from == state.direction.closing() {
            // The consumer does not wait for its commits; an acknowledgement must outlive a crash of the server.
            self.sides.flush(from.other()).await?;
        }
        let healthy = slot.as_ref().is_some_and(|slot| slot.wal_status != "lost");
        let lives = row.heartbeat_age_seconds.is_some_and(|age| age < SILENT_SECONDS);
        Ok(LaneFacts {
            alive: Some(lives && row.error.is_none() && slot.is_some_and(|slot| slot.active)),
            slot: Some(if healthy { Slot::Healthy } else { Slot::Lost }),
            retained: Some(healthy),
            applied: row.applied,
            conflicts: Some(row.diverged.max(0) as u64),
        })
    }

    async fn stored(&self) -> ConfigFacts {
        let Ok(found) = self.store.get().await else { return ConfigFacts::Unreadable };
        let there =
            |side: &Side| self.address(&found.value, *side).is_ok_and(|there| self.store.same(&found.value, &there));
        let names = [Side::Source, Side::Target].into_iter().find(there);
        ConfigFacts::Read { version: Version(found.version.0), names }
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Exit {
        match outcome {
            Outcome::Done => Exit::Done,
            Outcome::Refused => Exit::Refused,
            Outcome::Aborted => Exit::Aborted,
            Outcome::Ambiguous => Exit::Ambiguous,
        }
    }
}
