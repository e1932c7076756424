//! What a look at the world yields: read after the journal, at every turn, remembered by nobody. What could not be read is
//! `None`, and no decision ever takes that for a yes.

use changelog::Lsn;

use super::event::{Direction, Epoch, Mode, Side, Version};

/// All that `decide` and the verbs are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The epoch of the last record that the asking process wrote. A verb's asker has none.
    pub epoch: Option<Epoch>,
    /// When the holder of the current epoch last showed that it lives.
    pub holder_seen_at_micros: Option<u64>,
    /// The gate for the direction in question.
    pub gate: GateFacts,
    pub source: SideFacts,
    pub target: SideFacts,
    pub forward: LaneFacts,
    pub reverse: LaneFacts,
    pub config: ConfigFacts,
    /// A table was changed on one side only since the last switch.
    pub schema_differs: Option<bool>,
}

impl Facts {
    pub fn side(&self, side: Side) -> &SideFacts {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// The lane that brings the closing side's writes to the opening side.
    pub fn lane(&self, direction: Direction) -> &LaneFacts {
        self.lane_from(direction.closing())
    }

    /// The lane that would bring them back.
    pub fn return_lane(&self, direction: Direction) -> &LaneFacts {
        self.lane_from(direction.opening())
    }

    fn lane_from(&self, side: Side) -> &LaneFacts {
        match side {
            Side::Source => &self.forward,
            Side::Target => &self.reverse,
        }
    }
}

/// The gate: every check of `dflux cutover check`, made at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateFacts {
    pub measured_at_micros: Option<u64>,
    /// Checks that did not pass, or could not be made. Each is named by a stable word.
    pub failed: Vec<&'static str>,
}

impl GateFacts {
    /// When it was passed.
    pub fn passed_at_micros(&self) -> Option<u64> {
        self.measured_at_micros.filter(|_| self.failed.is_empty())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideFacts {
    pub fence: Option<(Mode, Epoch)>,
    /// Transactions and sessions that the fence, as it stands, still lets write, and every transaction that could have begun
    /// before it was closed.
    pub writers: Option<u64>,
    /// Prepared transactions. COMMIT PREPARED passes every fence, so they must be gone.
    pub prepared: Option<u64>,
    /// Sessions of the application.
    pub sessions: Option<u64>,
}

/// A lane's replication slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Healthy,
    /// Invalidated, dropped, or not taken along by a failover.
    Lost,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneFacts {
    /// Producer and consumer have both shown life.
    pub alive: Option<bool>,
    pub slot: Option<Slot>,
    /// Slot and topics still hold everything from the recorded position on.
    pub retained: Option<bool>,
    /// Everything at or below it is durable on the other side.
    pub applied: Option<Lsn>,
    /// Divergences and quarantined transactions that nobody has resolved.
    pub conflicts: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigFacts {
    Unreadable,
    /// `names` is none where the content is neither side's address.
    Read {
        version: Version,
        names: Option<Side>,
    },
}
