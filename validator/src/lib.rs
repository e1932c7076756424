//! The validator: proves that the target holds what the source holds, while both are written to.
//!
//! ```text
//!  source snapshot ──> sums of a key range ──┐
//!        │ pg_current_snapshot, WAL position  ├─ compare ─ equal ───────────────────────────> match
//!  lane applied past it? ── wait              │     └─ unequal: which keys were in flight?
//!  target snapshot ──> position in it, sums ──┘                   │
//!  change topics ──> tail ──> window of recent events ── settle ──┘
//!                              keys in flight: subtracted from both sums, and each checked against its newest event;
//!                              the rest must be equal, else the differing rows are named
//! ```
//!
//! Why it is exact: a row state is decided by the transactions in it. The source snapshot says which transactions it
//! sees (`pg_current_snapshot`), the target says in its own snapshot up to which position it has applied. A transaction
//! is in both, in neither, or its keys are known from the topics. Nothing rests on time, on retries, or on a tolerance.
//!
//! One scan a side yields levels 1, 2 and 4, and the sample for 3 and 5: aligned snapshots and rows in flight are settled once for all of
//! them, and no second read costs the source anything. What they found is put together when the whole table was read (`depth`).
//!
//! `canonical`, `definition`, `level0`, `selection`, `settle`, `window`, `compare`, `cause`, `difference`, `statistics`, `depth`, `coverage`,
//! `verdict`, `report` and `html` are pure: no socket, no clock.
//! What it must never do: write to either database, use the consumer's code, or take an error for a match.

pub mod attempt;
pub mod canonical;
pub mod catalog;
pub mod cause;
pub mod changed;
pub mod compare;
pub mod config;
pub mod coverage;
pub mod definition;
pub mod depth;
pub mod difference;
pub mod error;
pub mod html;
pub mod images;
pub mod lane;
pub mod level0;
pub mod levels;
pub mod localise;
pub mod observe;
pub mod pipeline;
pub mod range;
pub mod reader;
pub mod report;
pub mod selection;
pub mod sequence;
pub mod session;
pub mod settle;
pub mod statistics;
pub mod tail;
pub mod trace;
pub mod verdict;
pub mod window;

pub use error::Error;
