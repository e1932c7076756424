//! The invariants of reference/cutover-and-rollback.md, section 6.3, as far as this world knows of what they speak.

use control::cutover::*;

use super::{Database, Pending, Scenario, World};

/// A name, and what must hold in every state.
pub type Invariant = (&'static str, fn(&Scenario, &World) -> bool);

pub const ALL: [Invariant; 9] = [
    ("I1 at most one side admits the application", one_side_open),
    ("I2 nothing that a lane has passed is missing on the other side", lanes_lose_nothing),
    ("I3 the opened side has what was acknowledged before", opened_side_is_whole),
    ("I5 behind the commit record the closed side stays closed", closed_stays_closed),
    ("I5 at rest one side is open and the other is frozen", rest_is_rest),
    ("I8 the config store is never written over unread", |_, world| !world.seen.overwrote),
    ("I10 at rest every acknowledged write is there exactly once", exactly_once),
    ("I11 no sequence gives out a value twice", sequences_ahead),
    ("I13 I14 what is reported is so; no rollback begins that can't keep its promise", |_, world| {
        !world.seen.false_report && !world.seen.unsafe_start
    }),
];

/// Of the real machine only: from a mutant's state it would say more about the real one than about the mutant.
pub const CONVERGES: Invariant = ("I6 from here one undisturbed process comes to an end", converges);

fn one_side_open(scenario: &Scenario, world: &World) -> bool {
    scenario.policy == Policy::Dual || !(world.source.admits() && world.target.admits())
}

fn lanes_lose_nothing(_: &Scenario, world: &World) -> bool {
    let whole = |from: &Database, to: &Database| {
        let passed = &from.commits[..from.carried];
        passed.iter().all(|(value, _)| to.commits.iter().any(|(there, _)| there == value))
    };
    whole(&world.source, &world.target) && whole(&world.target, &world.source)
}

/// While both sides write, only the end of the drain can say so (I10).
fn opened_side_is_whole(scenario: &Scenario, world: &World) -> bool {
    let open = |side: &Database| side.mode == Mode::Open;
    scenario.policy == Policy::Dual
        || [&world.source, &world.target].into_iter().filter(|side| open(side)).all(|side| whole(world, side))
}

fn whole(world: &World, side: &Database) -> bool {
    let times = |value: &u16| side.commits.iter().filter(|(there, _)| there == value).count();
    world.seen.acknowledged.iter().all(|value| times(value) == 1)
}

fn closed_stays_closed(_: &Scenario, world: &World) -> bool {
    let closing = world.side(world.state.direction.closing());
    match world.state.phase {
        Phase::Committed | Phase::Opening | Phase::Ambiguous | Phase::Draining => closing.mode != Mode::Open,
        _ => true,
    }
}

/// The side that the application is on while nothing is under way.
fn resting_side(state: &State) -> Option<Side> {
    match state.phase {
        Phase::Prepared => Some(Side::Source),
        Phase::Reversible | Phase::Finalized => Some(Side::Target),
        _ => None,
    }
}

/// The application is on `side`, and the other is closed; the source for good.
fn frozen(world: &World, side: Side) -> bool {
    let least = if side == Side::Target { Mode::Sealed } else { Mode::Closed };
    world.side(side).mode == Mode::Open && world.side(side.other()).mode >= least
}

fn rest_is_rest(_: &Scenario, world: &World) -> bool {
    resting_side(&world.state).is_none_or(|side| {
        let named = world.store.names == Some(side) || world.seen.meddled;
        named && frozen(world, side)
    })
}

fn exactly_once(_: &Scenario, world: &World) -> bool {
    resting_side(&world.state).is_none_or(|side| whole(world, world.side(side)))
}

fn sequences_ahead(scenario: &Scenario, world: &World) -> bool {
    let ahead = |mine: &Database, other: &Database| mine.mode != Mode::Open || mine.sequence >= other.sequence;
    let apart = ahead(&world.source, &world.target) && ahead(&world.target, &world.source);
    !world.seen.repeated && (apart || scenario.policy == Policy::Dual)
}

/// Only a config store that somebody else wrote to may leave a person something to decide.
///
/// The processes of the state end first. So one that has decided and not yet acted differs in nothing from one that has not
/// decided, and of the two only the latter is looked at.
fn converges(scenario: &Scenario, world: &World) -> bool {
    if world.controllers.iter().any(|controller| matches!(controller.pending, Pending::Perform(_))) {
        return true;
    }
    let mut world = world.clone();
    let end = world.recover(scenario, &mut Vec::new());
    match end {
        Some(Outcome::Ambiguous) => world.seen.meddled,
        Some(_) => rest_is_rest(scenario, &world) && exactly_once(scenario, &world),
        None => false,
    }
}

/// I13, for one controller's last word.
pub fn report_is_true(world: &World, outcome: Outcome) -> bool {
    let state = &world.state;
    let arrived = |side: Side| frozen(world, side);
    match (outcome, resting_side(state)) {
        (Outcome::Done, Some(side)) => state.abort_reason.is_none() && arrived(side) && whole(world, world.side(side)),
        (Outcome::Aborted, Some(side)) => {
            state.abort_reason.is_some() && arrived(side) && whole(world, world.side(side))
        }
        (Outcome::Done | Outcome::Aborted, None) => false,
        (Outcome::Refused | Outcome::Ambiguous, _) => true,
    }
}
