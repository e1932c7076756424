//! A small world for the real machine: two databases with fences, two lanes, a config store, clients, and controllers that do
//! nothing but `fold` and `decide`. The model check walks through all of its states, the simulation through random ones.
//!
//! What is simplified, and in which direction:
//! - A client is a transaction that may begin on either side at any moment at which the fence there lets it. So every
//!   client is in it: the one that follows the config store, the late one that never does, the one that comes back after a
//!   round trip. Nothing that holds here rests on what clients know.
//! - Kafka is the distance between a commit and its being applied. Lanes are in order, durable, and may lag for ever.
//! - An LSN is the number of commits before it.
//! - The journal is its fold: a record is appended if the sequence is free and the real `apply` takes it.

use changelog::Lsn;
use control::cutover::*;

mod controller;
pub mod invariant;
pub mod mutant;

pub use mutant::Mutant;

pub const SECOND: u64 = 1_000_000;
/// One step of the clock: longer than the outage's bound and a gate's life.
pub const TICK: u64 = 6 * SECOND;
pub const LIMITS: Limits = Limits { max_outage_micros: 5 * SECOND, drain_micros: TICK, rollback_micros: TICK };

/// How much of everything may happen: what bounds the state space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    pub writes: u16,
    pub prepares: u8,
    pub launches: u8,
    pub aborts: u8,
    pub crashes: u8,
    /// Effects that are given up by their sender and arrive later.
    pub delays: u8,
    /// Answers of the config store that say neither yes nor no.
    pub ambiguities: u8,
    pub ticks: u8,
    /// Writes to the config store by somebody else.
    pub meddles: u8,
    /// Losses of the reverse lane's slot.
    pub losses: u8,
    /// Times that an operator opens the source by itself.
    pub reopenings: u8,
    /// Times at which the config store is gone for a while.
    pub outages: u8,
}

/// What is walked through.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub policy: Policy,
    pub controllers: usize,
    /// Whether others may act between a controller's look and the record that it appends for it.
    pub split: bool,
    /// How many commit records there may be: beyond one there are rollbacks.
    pub switches: u8,
    pub left: Left,
    pub mutant: Option<Mutant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    pub mode: Mode,
    pub epoch: Epoch,
    /// In commit order; whether a lane applied it.
    pub commits: Vec<(u16, bool)>,
    /// A transaction of a client that has written and is open.
    pub open: Option<u16>,
    pub prepared: Option<u16>,
    /// The last value that its sequence gave out: every transaction takes one, and is known by it.
    pub sequence: u16,
    /// How many of its commits its lane has carried to the other side.
    pub carried: usize,
    /// Its lane's slot is gone, and the lane with it.
    pub slot_lost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub version: u8,
    pub names: Option<Side>,
    pub down: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pending {
    Nothing,
    /// With the sequence that its author had read up to.
    Append(Event, u64),
    Perform(Effect),
    /// The mutant's second write to the config store.
    Blind(Effect),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    /// None: no process.
    pub epoch: Option<Epoch>,
    pub pending: Pending,
}

/// What only the checker sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Values of committed transactions whose clients were told so.
    pub acknowledged: Vec<u16>,
    /// A controller reported what was not so.
    pub false_report: bool,
    /// The config store was written over by one who had not read what he overwrote.
    pub overwrote: bool,
    /// A sequence gave out a value twice.
    pub repeated: bool,
    /// A rollback was begun that could not keep its promise.
    pub unsafe_start: bool,
    /// Somebody else wrote to the config store.
    pub meddled: bool,
    /// By the checker's own reckoning.
    pub rollback_until: u64,
    /// Commit records: 1 behind a cutover, 2 behind a rollback, 3 behind the next cutover.
    pub switches: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub state: State,
    pub clock: u64,
    pub source: Database,
    pub target: Database,
    pub store: Store,
    pub controllers: Vec<Controller>,
    /// Sent, given up, and still under way.
    pub late: Option<(Epoch, Effect)>,
    pub left: Left,
    pub seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    Forward,
    Back,
    Abort,
    Finalize,
}

/// How an effect comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Manner {
    Done,
    /// The config store applied it and did not say so.
    AppliedUnsaid,
    /// The config store did not apply it and did not say so.
    LostUnsaid,
    /// It arrives later, or never.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Begin(Side),
    Commit(Side),
    Prepare(Side),
    CommitPrepared(Side),
    /// The lane from this side carries its next commit.
    Carry(Side),
    Launch(usize, Want),
    /// Looks and decides.
    Turn(usize),
    Append(usize),
    Perform(usize, Manner),
    Crash(usize),
    Land,
    Tick,
    Meddle,
    LoseReverseSlot,
    StoreDown,
    StoreUp,
    ReopenAlone,
}

const SIDES: [Side; 2] = [Side::Source, Side::Target];

impl Database {
    fn new(mode: Mode) -> Database {
        Database {
            mode,
            epoch: Epoch(0),
            commits: Vec::new(),
            open: None,
            prepared: None,
            sequence: 0,
            carried: 0,
            slot_lost: false,
        }
    }

    /// Whether a transaction of some client may begin to write.
    pub fn admits(&self) -> bool {
        matches!(self.mode, Mode::Open | Mode::OldSessions)
    }

    /// Commits that a lane applied are never carried back.
    fn pass_carried(&mut self) {
        while self.commits.get(self.carried).is_some_and(|(_, applied)| *applied) {
            self.carried += 1;
        }
    }
}

impl World {
    pub fn new(scenario: &Scenario) -> World {
        let idle = Controller { epoch: None, pending: Pending::Nothing };
        World {
            state: State::default(),
            clock: 0,
            source: Database::new(Mode::Open),
            target: Database::new(Mode::Closed),
            store: Store { version: 0, names: Some(Side::Source), down: false },
            controllers: vec![idle; scenario.controllers],
            late: None,
            left: scenario.left,
            seen: Seen::default(),
        }
    }

    pub fn side(&self, side: Side) -> &Database {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub fn side_mut(&mut self, side: Side) -> &mut Database {
        match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        }
    }

    /// What a controller reads, all at one moment.
    pub fn look(&self, controller: Option<usize>, scenario: &Scenario) -> Facts {
        let side = |side| {
            let database = self.side(side);
            let open = u64::from(database.open.is_some());
            SideFacts {
                fence: Some((database.mode, database.epoch)),
                writers: Some(open),
                prepared: Some(u64::from(database.prepared.is_some())),
                // Under `dual` an idle session may yet write: it is there until it is ended.
                sessions: Some(if scenario.policy == Policy::Dual { 1 } else { open }),
            }
        };
        let lane = |side| {
            let database = self.side(side);
            let slot = if database.slot_lost { Slot::Lost } else { Slot::Healthy };
            LaneFacts {
                alive: Some(!database.slot_lost),
                slot: Some(slot),
                retained: Some(true),
                applied: Some(Lsn(database.carried as u64)),
                conflicts: Some(0),
            }
        };
        let version = Version(self.store.version.to_string());
        let read = ConfigFacts::Read { version, names: self.store.names };
        let failed = if self.target.slot_lost { vec!["reverse_lane"] } else { Vec::new() };
        let facts = Facts {
            epoch: controller.and_then(|index| self.controllers[index].epoch),
            holder_seen_at_micros: None,
            gate: GateFacts { measured_at_micros: Some(self.clock), failed },
            source: side(Side::Source),
            target: side(Side::Target),
            forward: lane(Side::Source),
            reverse: lane(Side::Target),
            config: if self.store.down { ConfigFacts::Unreadable } else { read },
            schema_differs: Some(false),
        };
        mutant::facts(scenario.mutant, &self.state, facts)
    }

    /// Everything that can happen next.
    pub fn actions(&self, scenario: &Scenario, actions: &mut Vec<Action>) {
        for side in SIDES {
            let database = self.side(side);
            if self.left.writes > 0 && database.open.is_none() && database.admits() {
                actions.push(Action::Begin(side));
            }
            if database.open.is_some() {
                actions.push(Action::Commit(side));
                if self.left.prepares > 0 && database.prepared.is_none() {
                    actions.push(Action::Prepare(side));
                }
            }
            if database.prepared.is_some() {
                actions.push(Action::CommitPrepared(side));
            }
            if database.carried < database.commits.len() && !database.slot_lost {
                actions.push(Action::Carry(side));
            }
        }
        for (index, controller) in self.controllers.iter().enumerate() {
            self.controller_actions(scenario, index, controller, actions);
        }
        if self.late.is_some() {
            actions.push(Action::Land);
        }
        if self.left.ticks > 0 {
            actions.push(Action::Tick);
        }
        if self.left.meddles > 0 {
            actions.push(Action::Meddle);
        }
        if self.left.losses > 0 && !self.target.slot_lost {
            actions.push(Action::LoseReverseSlot);
        }
        if self.left.reopenings > 0 && mutant::reopen_alone(scenario.mutant, &self.source).is_ok() {
            actions.push(Action::ReopenAlone);
        }
        if self.store.down {
            actions.push(Action::StoreUp);
        } else if self.left.outages > 0 {
            actions.push(Action::StoreDown);
        }
    }

    /// Does it. False if it changes nothing. The record that was appended, if one was, goes to `journal`.
    pub fn act(&mut self, scenario: &Scenario, action: Action, journal: &mut Vec<Record>) -> bool {
        match action {
            Action::Begin(side) => self.begin(side),
            Action::Commit(side) => {
                let value = self.side_mut(side).open.take();
                self.commit(side, value);
            }
            Action::Prepare(side) => {
                self.left.prepares -= 1;
                let database = self.side_mut(side);
                database.prepared = database.open.take();
            }
            Action::CommitPrepared(side) => {
                let value = self.side_mut(side).prepared.take();
                self.commit(side, value);
            }
            Action::Carry(side) => self.carry(side),
            Action::Launch(index, want) => return self.launch(scenario, index, want, journal),
            Action::Turn(index) => return self.turn(scenario, index, journal),
            Action::Append(index) => {
                let pending = std::mem::replace(&mut self.controllers[index].pending, Pending::Nothing);
                if let Pending::Append(event, sequence) = pending {
                    self.append(index, event, sequence, journal);
                }
            }
            Action::Perform(index, manner) => self.perform(scenario, index, manner, journal),
            Action::Crash(index) => {
                self.left.crashes -= 1;
                self.controllers[index] = Controller { epoch: None, pending: Pending::Nothing };
            }
            Action::Land => {
                if let Some((epoch, effect)) = self.late.take() {
                    self.effect(scenario, epoch, &effect);
                }
            }
            Action::Tick => {
                self.left.ticks -= 1;
                self.clock += TICK;
            }
            Action::Meddle => {
                self.left.meddles -= 1;
                self.seen.meddled = true;
                self.store = Store { version: self.store.version + 1, names: None, ..self.store };
            }
            Action::LoseReverseSlot => {
                self.left.losses -= 1;
                self.target.slot_lost = true;
            }
            Action::StoreDown => {
                self.left.outages -= 1;
                self.store.down = true;
            }
            Action::StoreUp => self.store.down = false,
            Action::ReopenAlone => {
                self.left.reopenings -= 1;
                if let Ok(epoch) = mutant::reopen_alone(scenario.mutant, &self.source) {
                    self.source.epoch = epoch;
                    self.source.mode = Mode::Open;
                }
            }
        }
        true
    }

    fn begin(&mut self, side: Side) {
        self.left.writes -= 1;
        let other = self.side(side.other());
        let value = self.side(side).sequence + 1;
        let used = |database: &Database| {
            database.open == Some(value)
                || database.prepared == Some(value)
                || database.commits.iter().any(|(used, _)| *used == value)
        };
        if used(other) || used(self.side(side)) {
            self.seen.repeated = true;
        }
        let database = self.side_mut(side);
        database.sequence = value;
        database.open = Some(value);
    }

    fn commit(&mut self, side: Side, value: Option<u16>) {
        if let Some(value) = value {
            self.side_mut(side).commits.push((value, false));
            self.seen.acknowledged.push(value);
        }
    }

    /// The applier passes every fence.
    fn carry(&mut self, side: Side) {
        let database = self.side_mut(side);
        let next = database.commits[database.carried].0;
        database.carried += 1;
        database.pass_carried();
        let other = self.side_mut(side.other());
        other.commits.push((next, true));
        other.pass_carried();
    }

    /// Clients finish what they have begun, and the lanes catch up.
    pub fn settle(&mut self, scenario: &Scenario, journal: &mut Vec<Record>) {
        for side in SIDES {
            if self.side(side).open.is_some() {
                self.act(scenario, Action::Commit(side), journal);
            }
            if self.side(side).prepared.is_some() {
                self.act(scenario, Action::CommitPrepared(side), journal);
            }
            while !self.side(side).slot_lost && self.side(side).carried < self.side(side).commits.len() {
                self.act(scenario, Action::Carry(side), journal);
            }
        }
    }
}
