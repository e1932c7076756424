//! The model check: every state that the real machine and a small world can reach, within bounds, against the invariants; and
//! the same for planted bugs, each of which must be found. `cargo test --test model -- --nocapture` shows the numbers.

use std::time::Instant;

use control::cutover::*;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use world::{Action, Left, Mutant, Scenario, World, invariant};

mod world;

/// That a scenario gets as far as it was made for; else its bounds prove nothing.
const REACHED: &str = "its last switch is reached";

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(self, action, &mut Vec::new()).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Scenario>> {
        let always = |(name, condition)| Property { expectation: Expectation::Always, name, condition };
        let real = self.mutant.is_none().then_some(invariant::CONVERGES);
        let mut properties: Vec<Property<Scenario>> = invariant::ALL.into_iter().chain(real).map(always).collect();
        properties.push(Property::sometimes(REACHED, |scenario: &Scenario, world: &World| {
            world.state.at_rest() && world.seen.switches == scenario.switches
        }));
        properties
    }
}

fn base() -> Scenario {
    Scenario {
        name: "",
        policy: Policy::Drain,
        controllers: 1,
        split: false,
        switches: 1,
        left: Left::default(),
        mutant: None,
    }
}

/// Each wide in one respect and narrow in the others: the product of all of them has no end.
fn scenarios() -> Vec<Scenario> {
    let left = Left::default();
    vec![
        Scenario {
            name: "one controller that dies or aborts",
            left: Left { writes: 2, prepares: 1, launches: 2, aborts: 1, crashes: 1, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "what was sent and given up arrives later",
            left: Left { writes: 1, launches: 2, aborts: 1, delays: 1, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "an operator opens the source by itself",
            left: Left { writes: 2, launches: 2, crashes: 1, delays: 1, reopenings: 1, ..left },
            ..base()
        },
        Scenario {
            name: "the config store is silent, gone, or written to by somebody else",
            switches: 2,
            left: Left { writes: 1, launches: 3, crashes: 1, ambiguities: 2, meddles: 1, outages: 1, ..left },
            ..base()
        },
        Scenario {
            name: "two controllers, one of them asleep",
            controllers: 2,
            split: true,
            left: Left { writes: 1, launches: 2, aborts: 1, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "a cutover, a rollback, a cutover",
            switches: 3,
            left: Left { writes: 3, launches: 4, crashes: 1, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "the reverse lane is lost, the deadline passes",
            policy: Policy::Fenced,
            switches: 2,
            left: Left { writes: 1, launches: 3, crashes: 1, ticks: 2, losses: 1, ..left },
            ..base()
        },
        Scenario {
            name: "both sides write while the source drains",
            policy: Policy::Dual,
            switches: 2,
            left: Left { writes: 2, prepares: 1, launches: 3, crashes: 1, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "the same round, with two controllers and what arrives late",
            controllers: 2,
            switches: 3,
            left: Left { writes: 1, launches: 4, delays: 1, ..left },
            ..base()
        },
    ]
}

/// The number of states, and the first invariant that was found broken, with the number of steps to it.
fn check(scenario: Scenario) -> (usize, Option<(&'static str, usize)>) {
    let started = Instant::now();
    let name = scenario.name;
    let checker = scenario.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let (count, seconds) = (checker.unique_state_count(), started.elapsed().as_secs_f32());
    println!("{count:>9} states, {:>3} steps deep, {seconds:.1} s: {name}", checker.max_depth());
    let broken = invariant::ALL
        .iter()
        .chain([&invariant::CONVERGES])
        .find_map(|(name, _)| Some((*name, discoveries.get(name)?)));
    if let Some((name, path)) = &broken
        && std::env::var_os("SHOW").is_some()
    {
        let path = (*path).clone();
        println!("  {name}: {:?}\n{:#?}", path.last_state().clone(), path.into_actions());
    }
    assert!(broken.is_some() || discoveries.contains_key(REACHED), "{name}: never gets to its last switch");
    (count, broken.map(|(name, path)| (name, (*path).clone().into_actions().len())))
}

#[test]
fn no_reachable_state_breaks_an_invariant() {
    let mut total = 0;
    for scenario in scenarios() {
        let name = scenario.name;
        let (count, broken) = check(scenario);
        assert_eq!(broken, None, "{name}");
        total += count;
    }
    println!("{total:>9} states in all");
}

/// The same with wider bounds: for a night, or after a change of the machine.
#[test]
#[ignore = "takes minutes"]
fn no_state_within_wider_bounds_breaks_an_invariant() {
    let left = Left::default();
    let wide = [
        Scenario {
            name: "two controllers, one asleep; crashes, an abort, a late statement",
            controllers: 2,
            split: true,
            left: Left { writes: 1, launches: 3, aborts: 1, crashes: 1, delays: 1, ..left },
            ..base()
        },
        Scenario {
            name: "a rollback by two controllers, each record apart from its look",
            controllers: 2,
            split: true,
            switches: 2,
            left: Left { writes: 2, launches: 3, ticks: 1, ..left },
            ..base()
        },
        Scenario {
            name: "a cutover, a rollback, a cutover; prepared, late, crashed",
            switches: 3,
            left: Left { writes: 2, prepares: 1, launches: 4, crashes: 1, delays: 1, ticks: 1, ..left },
            ..base()
        },
    ];
    for scenario in wide {
        let name = scenario.name;
        assert_eq!(check(scenario).1, None, "{name}");
    }
}

#[test]
fn every_mutant_is_found() {
    for mutant in Mutant::ALL {
        println!("{mutant:?}");
        let found = scenarios().into_iter().find_map(|scenario| check(Scenario { mutant: Some(mutant), ..scenario }).1);
        let (name, steps) = found.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?} is found after {steps} steps: {name}");
    }
}
