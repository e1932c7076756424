//! The same machine and world as the model check's, at random and for longer: many writes, many round trips, crashes, late
//! statements, silent answers, two controllers, and clients that know what clients know. The journal is kept as text, and what
//! it folds to is compared with what the controllers went by.
//!
//! `DFLUX_SEED=17 cargo test --test simulation -- --nocapture` runs that one seed and prints what happened.

use std::collections::BTreeMap;

use control::cutover::event::{line, verify};
use control::cutover::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use world::{Action, Left, Manner, Mutant, Scenario, Want, World, invariant};

#[expect(dead_code, reason = "the model check uses the rest")]
mod world;

const SEEDS: u64 = 600;
const STEPS: usize = 1500;

/// One that writes where it believes the database to be.
struct Client {
    address: Side,
    /// Reads the config store after a refusal. One that does not is the late client.
    follows: bool,
}

struct Run {
    scenario: Scenario,
    world: World,
    random: StdRng,
    clients: Vec<Client>,
    /// Against the other weights: a slow lane is seldom level.
    lane_speed: u32,
    client_speed: u32,
    journal: Vec<Record>,
    lines: Vec<String>,
    verbose: bool,
}

/// What a run came to.
struct Tally {
    switches: u8,
    aborts: usize,
    takeovers: usize,
    acknowledged: usize,
}

impl Run {
    fn new(seed: u64, mutant: Option<Mutant>) -> Run {
        let mut random = StdRng::seed_from_u64(seed);
        let policy = [Policy::Fenced, Policy::Drain, Policy::Dual][random.random_range(0..3)];
        let left = Left {
            writes: 120,
            prepares: 6,
            launches: u8::MAX,
            aborts: 4,
            crashes: 20,
            delays: 12,
            ambiguities: 8,
            ticks: 12,
            outages: 2,
            reopenings: 6,
            meddles: u8::from(random.random_bool(0.1)),
            losses: u8::from(random.random_bool(0.1)),
        };
        let scenario =
            Scenario { name: "random", policy, controllers: 2, split: true, switches: u8::MAX, left, mutant };
        let client = |follows| Client { address: Side::Source, follows };
        Run {
            world: World::new(&scenario),
            scenario,
            lane_speed: [2, 10, 60][random.random_range(0..3)],
            client_speed: [3, 25][random.random_range(0..2)],
            clients: vec![client(true), client(true), client(false)],
            journal: Vec::new(),
            lines: Vec::new(),
            random,
            verbose: std::env::var_os("DFLUX_SEED").is_some(),
        }
    }

    /// How often an action is taken when it can be: the disturbances are rare, so that in between something gets done.
    fn weight(&self, action: Action) -> u32 {
        let alone = self.world.controllers.iter().all(|controller| controller.epoch.is_none());
        match action {
            // Clients have their own turn.
            Action::Begin(_) => 0,
            Action::Turn(_) | Action::Append(_) | Action::Perform(_, Manner::Done) => 60,
            Action::Carry(_) => self.lane_speed,
            Action::Commit(_) => self.client_speed,
            Action::CommitPrepared(_) => 2,
            Action::Launch(_, Want::Forward | Want::Back) if alone => 20,
            Action::Perform(..) | Action::Prepare(_) | Action::Land | Action::StoreUp | Action::ReopenAlone => 3,
            Action::Launch(..)
            | Action::Crash(_)
            | Action::Tick
            | Action::Meddle
            | Action::LoseReverseSlot
            | Action::StoreDown => 1,
        }
    }

    fn step(&mut self) {
        if self.random.random_bool(0.2) {
            return self.client();
        }
        let mut actions = Vec::new();
        self.world.actions(&self.scenario, &mut actions);
        let weights: Vec<(Action, u32)> = actions.into_iter().map(|action| (action, self.weight(action))).collect();
        if let Ok((action, _)) = weights.choose_weighted(&mut self.random, |(_, weight)| *weight) {
            self.act(*action);
        }
    }

    fn client(&mut self) {
        let index = self.random.random_range(0..self.clients.len());
        let mut actions = Vec::new();
        self.world.actions(&self.scenario, &mut actions);
        let client = &mut self.clients[index];
        if actions.contains(&Action::Begin(client.address)) {
            let address = client.address;
            self.act(Action::Begin(address));
        } else if client.follows {
            client.address = self.world.store.names.unwrap_or(client.address);
        }
    }

    fn act(&mut self, action: Action) {
        if self.world.act(&self.scenario, action, &mut self.journal) && self.verbose {
            println!("{action:?}");
        }
    }

    /// # Errors
    /// The invariant that does not hold.
    fn check(&mut self) -> Result<(), String> {
        while self.lines.len() < self.journal.len() {
            let record = &self.journal[self.lines.len()];
            if self.verbose {
                println!("    {record:?}");
            }
            self.lines.push(line(self.lines.last().map(String::as_str), record));
        }
        match invariant::ALL.iter().find(|(_, holds)| !holds(&self.scenario, &self.world)) {
            Some((name, _)) => Err((*name).to_owned()),
            None => Ok(()),
        }
    }

    /// Lets everything come to rest, as an operator would, finalizes where it can be, and looks at the history.
    fn finish(&mut self) -> Result<Tally, String> {
        for _ in 0..2 {
            match self.world.recover(&self.scenario, &mut self.journal) {
                Some(Outcome::Ambiguous) => {
                    // The one safe command says so: put the address right by hand, then go on.
                    let opening = self.world.state.direction.opening();
                    self.world.store.version += 1;
                    self.world.store.names = Some(opening);
                }
                Some(_) => break,
                None => return Err("I6 it does not come to an end".into()),
            }
        }
        self.world.settle(&self.scenario, &mut self.journal);
        self.check()?;
        let records = verify(&self.lines).map_err(|error| error.to_string())?;
        let folded = fold(&records).map_err(|error| error.to_string())?;
        if folded != self.world.state {
            return Err("the journal's text folds to something else".into());
        }
        let side = if folded.phase == Phase::Prepared { Side::Source } else { Side::Target };
        let mut times: BTreeMap<u16, usize> = BTreeMap::new();
        for (value, _) in &self.world.side(side).commits {
            *times.entry(*value).or_default() += 1;
        }
        let acknowledged = &self.world.seen.acknowledged;
        if let Some(value) = acknowledged.iter().find(|value| times.get(*value) != Some(&1)) {
            return Err(format!("I10 acknowledged write {value} is {:?} times on the {side:?}", times.get(value)));
        }
        if times.len() != acknowledged.len() {
            return Err("I10 there is what nobody wrote".into());
        }
        if !self.world.side(side).admits() {
            return Err("I5 the application cannot write".into());
        }
        let count = |wanted: fn(&Event) -> bool| self.journal.iter().filter(|record| wanted(&record.event)).count();
        Ok(Tally {
            switches: self.world.seen.switches,
            aborts: count(|event| matches!(event, Event::AbortStarted { .. })),
            takeovers: count(|event| matches!(event, Event::TakenOver { .. })),
            acknowledged: acknowledged.len(),
        })
    }
}

/// # Errors
/// The invariant that does not hold, and the step.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<Tally, String> {
    let mut run = Run::new(seed, mutant);
    for step in 0..STEPS {
        run.step();
        run.check().map_err(|broken| format!("seed {seed}, step {step}: {broken}"))?;
    }
    run.finish().map_err(|broken| format!("seed {seed}, at the end: {broken}"))
}

#[test]
fn every_acknowledged_write_is_on_the_surviving_side_exactly_once() {
    if let Some(seed) = std::env::var("DFLUX_SEED").ok().and_then(|text| text.parse().ok()) {
        run(seed, None).unwrap_or_else(|broken| panic!("{broken}"));
        return;
    }
    let (mut switches, mut aborts, mut takeovers, mut acknowledged, mut trips) = (0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let tally = run(seed, None).unwrap_or_else(|broken| panic!("{broken}"));
        switches += usize::from(tally.switches);
        trips = trips.max(tally.switches / 2);
        aborts += tally.aborts;
        takeovers += tally.takeovers;
        acknowledged += tally.acknowledged;
    }
    println!("{SEEDS} seeds: {switches} switches, {aborts} aborts, {takeovers} takeovers, {acknowledged} writes,");
    println!("at most {trips} round trips in one run");
    assert!(switches > 1000 && aborts > 500 && takeovers > 500 && trips >= 3, "the runs do too little");
}

/// A simulation that finds nothing proves little; this is how much it finds. Some bugs need a chance so rare that only the model
/// check is sure to meet it.
#[test]
fn random_runs_find_nearly_every_mutant_too() {
    let mut found = 0;
    for mutant in Mutant::ALL {
        let broken = (0..SEEDS).find_map(|seed| run(seed, Some(mutant)).err());
        found += usize::from(broken.is_some());
        println!("{mutant:?}: {}", broken.as_deref().unwrap_or("not found"));
    }
    assert!(found >= Mutant::ALL.len() - 3, "only {found} are found");
}
