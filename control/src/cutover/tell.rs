//! What an operator reads while a switch goes on, and of one that is over.

use serde_json::json;
use service::Hint as _;

use super::Facts;
use super::Phase;
use super::State;
use super::Waiting;
use super::{Direction, Event, Record, Side};
use super::{Outcome, Refusal, rollback_safe};
use crate::{Error, Exit};

/// Says that a verb is not in order, and which one is.
pub fn refused(why: &Refusal, next: &str) -> Exit {
    println!("refused: {}\nhint: {next}", refusal(why));
    Exit::Refused
}

fn refusal(why: &Refusal) -> String {
    match why {
        Refusal::NotNow(why) => (*why).to_owned(),
        Refusal::Gate(failed) => format!("checks of the gate that did not pass: {}", failed.join(", ")),
        Refusal::GateVoid => "the gate was passed too long ago".to_owned(),
        Refusal::Held { holder } => format!("another process is at work: {holder}"),
        Refusal::ConfigUnreadable => "the config store cannot be read".to_owned(),
        Refusal::ConfigElsewhere => "the config store does not name the side that the application is on".to_owned(),
        Refusal::Fence(side) => format!("the fence of the {} is not as it must be before a start", side.name()),
        Refusal::Rollback(why) => format!("no way back: {why}"),
    }
}

/// Something that is tried again.
pub fn trouble(error: &Error) {
    eprintln!("{}; it is tried again", service::report(error, error.hint()));
}

/// What a record means, as it is written.
pub fn recorded(state: &State, record: &Record) {
    let since = state.attempt.as_ref().and_then(|attempt| attempt.fencing_at_micros);
    let outage = since.map(|since| format!(" ({} ms after the fence)", record.at_micros.saturating_sub(since) / 1000));
    let outage = outage.unwrap_or_default();
    match &record.event {
        Event::FenceClosed { side, .. } => println!("{}: takes no new writes", side.name()),
        Event::Quiet => println!("{}: every writer has ended{outage}", state.direction.closing().name()),
        Event::BarrierAcknowledged => println!("lane: everything is applied and durable{outage}"),
        Event::Readied => println!("{}: sequences set{outage}", state.direction.opening().name()),
        Event::DeltaVerified { keys, different: 0 } => {
            println!("compared: {keys} row(s) that changed are equal{outage}")
        }
        Event::DeltaVerified { different, .. } => {
            println!("compared: {different} table(s) are not proved equal{outage}")
        }
        Event::Committed { .. } => println!("committed: the point of no return{outage}"),
        Event::FenceOpened { side } if state.phase == Phase::Committed => {
            println!("{}: takes writes{outage}", side.name())
        }
        Event::FenceOpened { side } => println!("{}: takes writes again", side.name()),
        Event::ConfigSwitched { .. } => {
            println!("config store: names the {}{outage}", state.direction.opening().name())
        }
        Event::ConfigAmbiguous => println!("config store: it is not known what it holds"),
        Event::AbortStarted { reason, .. } => println!("given up: {reason:?}"),
        Event::CanaryWritten => println!("{}: a write of ours passed", state.direction.opening().name()),
        Event::SessionsEnded => println!("{}: its sessions have ended", state.direction.closing().name()),
        _ => {}
    }
}

/// Only what takes long is told.
pub fn waiting(waiting: &Waiting, draining: bool, now_micros: u64) {
    if draining && (now_micros / 500_000).is_multiple_of(20) {
        println!("draining: {waiting}");
    }
}

/// How it ended.
pub fn finished(state: &State, records: &[Record], outcome: Outcome) -> Exit {
    match (outcome, state.phase) {
        (Outcome::Aborted, _) => println!("aborted: the application stays on the {}", on(state).name()),
        (Outcome::Done, Phase::Finalized) => println!("finalized: there is no way back from here"),
        (Outcome::Done, _) => {
            let outage =
                outage_micros(state, records).map(|micros| format!("; writes were refused for {} ms", micros / 1000));
            println!("done: the application is on the {}{}", on(state).name(), outage.unwrap_or_default());
        }
        (Outcome::Refused | Outcome::Ambiguous, _) => {}
    }
    outcome.into()
}

/// From the fence of one side to the opening of the other, in the last attempt.
fn outage_micros(state: &State, records: &[Record]) -> Option<u64> {
    let since = state.attempt.as_ref()?.fencing_at_micros?;
    let opened = records.iter().rev().find(|record| matches!(record.event, Event::FenceOpened { .. }))?;
    Some(opened.at_micros.saturating_sub(since))
}

/// The side that the application is on, by the journal.
fn on(state: &State) -> Side {
    match (state.phase, state.direction) {
        (Phase::Reversible | Phase::Finalized, _) => Side::Target,
        (Phase::Prepared, _) => Side::Source,
        (Phase::Committed | Phase::Opening | Phase::Draining | Phase::Ambiguous, direction) => direction.opening(),
        (_, direction) => direction.closing(),
    }
}

/// `dflux cutover status`.
pub fn status(state: &State, facts: &Facts, now_micros: u64, as_json: bool) {
    let phase = format!("{:?}", state.phase).to_lowercase();
    let direction = if state.direction == Direction::Forward { "forward" } else { "back" };
    let safe = rollback_safe(state, facts, now_micros);
    let fence = |side: Side| facts.side(side).fence.map(|(mode, epoch)| json!({"mode": mode, "epoch": epoch}));
    let deadline = state.window.map(|window| window.rollback_deadline_micros.saturating_sub(now_micros) / 1_000_000);
    if as_json {
        let told = json!({
            "phase": phase, "direction": direction, "epoch": state.epoch, "application_on": on(state).name(),
            "rollback_safe": safe.is_ok(), "rollback_unsafe_reason": safe.err().map(|why| why.to_string()),
            "rollback_seconds_left": deadline, "fence": {"source": fence(Side::Source), "target": fence(Side::Target)},
            "abort_reason": state.abort_reason,
        });
        println!("{told:#}");
        return;
    }
    println!("phase: {phase}; the application is on the {}", on(state).name());
    match safe {
        Ok(left) => println!("rollback: safe, for {} s", left / 1_000_000),
        Err(why) => println!("rollback: not safe: {why}"),
    }
    if let Some(reason) = &state.abort_reason {
        println!("the last attempt was given up: {reason:?}");
    }
}
