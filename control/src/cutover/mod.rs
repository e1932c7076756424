//! Cutover and rollback: who may write, decided by one pure machine, and done to the two databases and the config store.
//!
//! ```text
//!   journal (dflux.event on the target, appended by compare-and-set on the sequence, under an epoch)
//!      │ fold                         facts: what was read just now (gate, fences, writers, lanes, config store)
//!      v                              │
//!    State ──────────────────────> decide(state, facts, now) ──> Step
//!      ^                                                          │ Record(event)  ── appended ──┐
//!      │                                                          │ Perform(effect) ── answer ── event
//!      └──────────────────────────────────────────────────────────┴──────────────────────────────┘
//! ```
//!
//! A controller is this loop and nothing else: read the journal, look, decide, do one thing. It remembers nothing, so
//! that any process can go on where another died. Why two of them, one of which sleeps at the worst moment, do no harm:
//!
//! - *The journal is a compare-and-set*: a record is appended at the sequence its author had read up to, or not at all. So of
//!   the commit record and the record that begins an abort, both possible at one sequence, exactly one is ever written.
//! - *Every effect carries the epoch of its author*, and a database refuses one below the highest that it has seen.
//! - *Within one epoch a fence moves one way only*: whatever begins to move fences the other way (a start, an abort) raises the
//!   epoch first. So a statement that was sent and given up can arrive later and still not undo anything.
//! - *Close before open*: a commit opens a side only where the other was closed and seen quiet; an abort closes the one side for
//!   certain before it opens the other.
//! - *No effect is skipped because it seems done*: performing it again under one's own epoch is what shuts the others out.
//! - *The config store is only advice to clients.* It changes by compare-and-swap from the version read before the fence, and
//!   what it holds is read back; an answer that says neither yes nor no is a phase of its own.
//!
//! `now` is the clock of the journal's database, the same that stamps the records: controllers' clocks take no part.
//!
//! Pure: `attempt`, `decide`, `effect`, `event`, `facts`, `state`, `step`, `verb`. The rest reads, writes and says.

pub mod attempt;
pub mod decide;
pub mod drive;
pub mod effect;
pub mod effects;
pub mod event;
pub mod facts;
pub mod fence;
pub mod gate;
pub mod journal;
pub mod rollback;
pub mod state;
pub mod step;
mod tell;
pub mod verb;

#[cfg(test)]
mod fixture;

pub use attempt::{Attempt, Phase, Window};
pub use decide::decide;
pub use effect::{Answer, Effect, answered};
pub use event::{AbortReason, Direction, Epoch, Event, Limits, Mode, Policy, Record, Side, Version};
pub use facts::{ConfigFacts, Facts, GateFacts, LaneFacts, SideFacts, Slot};
pub use rollback::{Unsafe, rollback_safe};
pub use state::{FoldError, State, fold};
pub use step::{Doubt, Step, Waiting};
pub use verb::{Outcome, Refusal, Verb, Verdict, reopen_alone, verb};
