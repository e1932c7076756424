//! What the state is made of: the phase, and what an attempt has reached.

use changelog::Lsn;

use super::event::{Epoch, Limits, Mode, Policy, Version};

/// How far the current attempt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The application writes to the source; nothing is under way.
    #[default]
    Prepared,
    /// The gate was passed; the closing side is untouched.
    Gated,
    /// The fence is being closed, or its last writers end.
    Fencing,
    /// A marker is under way through the lane.
    Barrier,
    /// The opening side is made ready and compared.
    Sealing,
    /// Behind the point of no return: there is only one way now.
    Committed,
    /// The opening side takes writes; the config store is being switched.
    Opening,
    /// Sessions on the closing side end.
    Draining,
    /// The application writes to the target, and can go back.
    Reversible,
    /// The closing side is being opened again.
    Aborting,
    /// What the config store holds is not known.
    Ambiguous,
    /// The application writes to the target, and can't go back.
    Finalized,
}

impl Phase {
    /// As `status --json` shows it, beside the direction.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prepared => "prepared",
            Phase::Gated => "gated",
            Phase::Fencing => "fencing",
            Phase::Barrier => "barrier",
            Phase::Sealing => "sealing",
            Phase::Committed => "committed",
            Phase::Opening => "opening",
            Phase::Draining => "draining",
            Phase::Reversible => "reversible",
            Phase::Aborting => "aborting",
            Phase::Ambiguous => "ambiguous",
            Phase::Finalized => "finalized",
        }
    }
}

/// What one attempt, forward or back, has reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The epoch that its start raised: it counts the attempts.
    pub started: Epoch,
    pub policy: Policy,
    pub limits: Limits,
    pub gate_passed_at_micros: u64,
    /// The config store's version before the fence was closed.
    pub config_expected: Version,
    pub config_written: Option<Version>,
    /// When closing the fence was first intended: the application's outage begins.
    pub fencing_at_micros: Option<u64>,
    /// How the closing side's fence was last closed.
    pub fence: Option<Mode>,
    pub quiet: bool,
    pub barrier: Option<Lsn>,
    pub acknowledged: bool,
    pub ready: bool,
    /// Keys that differed at the delta verification.
    pub different: Option<u64>,
    /// Where the lane back begins.
    pub return_from: Option<Lsn>,
    pub drain_deadline_micros: Option<u64>,
    pub sessions_ended: bool,
    /// Of an abort: the side that was to be opened is closed for certain.
    pub shut: bool,
}

impl Attempt {
    /// One that has reached nothing yet.
    pub fn new(
        started: Epoch,
        policy: Policy,
        limits: Limits,
        gate_passed_at_micros: u64,
        config_expected: Version,
    ) -> Attempt {
        Attempt {
            started,
            policy,
            limits,
            gate_passed_at_micros,
            config_expected,
            config_written: None,
            fencing_at_micros: None,
            fence: None,
            quiet: false,
            barrier: None,
            acknowledged: false,
            ready: false,
            different: None,
            return_from: None,
            drain_deadline_micros: None,
            sessions_ended: false,
            shut: false,
        }
    }

    /// The last moment at which its commit record may be written.
    pub fn commit_deadline_micros(&self) -> Option<u64> {
        self.fencing_at_micros.map(|at| at.saturating_add(self.limits.max_outage_micros))
    }
}

/// How long the application can go back. From the commit record, so that no restart moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub cutover_at_micros: u64,
    pub rollback_deadline_micros: u64,
}
