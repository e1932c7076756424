//! What a controller does to the world, and what the world can answer. Each effect is written down as an intent before it is
//! done, carries its author's epoch, is refused by the database if that epoch is stale, and can be done again.

use changelog::Lsn;
use serde::{Deserialize, Serialize};

use super::event::{Event, Mode, Side, Version};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Sets the side's fence row. Never waits in a lock queue beyond a bound. Under the epoch that the row has already, the
    /// stricter of the two modes stays: a close that comes late must not let writers in again.
    CloseFence {
        side: Side,
        mode: Mode,
    },
    /// Sets a fence that is closed to `Sealed`, the last thing before the commit record. Fails where it is not closed any more.
    SealFence {
        side: Side,
    },
    /// Emits a marker on the closing side and yields its LSN. Once more is harmless: the last one recorded counts.
    EmitBarrier {
        side: Side,
    },
    /// Makes the opening side fit to be written to: sequences set ahead of the other side's with a margin and never
    /// backwards, triggers and foreign keys on, statistics there.
    Ready {
        side: Side,
    },
    /// Compares, while nobody can write, the keys that changed since they were last proved equal. Changes nothing.
    VerifyDelta,
    /// Yields a position in the opening side's WAL that the slot of the lane back durably covers. Only reads: the lane back
    /// begins where the journal says. Were it the effect that moves its beginning, one that arrives late would skip writes
    /// (the model check found that).
    RecordReturn {
        side: Side,
    },
    OpenFence {
        side: Side,
    },
    /// Compare-and-swap, once, with the version that was read before the fence closed.
    SwitchConfig {
        expected: Version,
        to: Side,
    },
    /// A write by the application's own path, to a table of ours.
    WriteCanary {
        side: Side,
    },
    EndSessions {
        side: Side,
    },
    /// Removes what was installed for the way back: slots, lanes, triggers; only what carries our name and epoch.
    End,
}

/// What came of performing an effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Done,
    /// Done, and this is the position that it yields.
    At(Lsn),
    /// Of a comparison: how many keys, and how many of them differ.
    Compared {
        keys: u64,
        different: u64,
    },
    /// The config store refused the swap: its version is another.
    NotApplied,
    /// The config store did not say whether it has applied the swap.
    Ambiguous,
    /// Nothing is known but that it may be tried again: a lock not got in time, a connection lost.
    Failed,
    /// The database has seen a higher epoch: another controller is at work.
    Stale,
}

/// The event to record for an effect's answer. None if there is nothing to record: look again and decide anew.
///
/// A swap that was applied is not recorded here: only what is read back counts.
pub fn answered(effect: &Effect, answer: &Answer) -> Option<Event> {
    match (effect, answer) {
        (Effect::CloseFence { side, mode }, Answer::Done) => Some(Event::FenceClosed { side: *side, mode: *mode }),
        (Effect::SealFence { side }, Answer::Done) => Some(Event::FenceClosed { side: *side, mode: Mode::Sealed }),
        (Effect::EmitBarrier { .. }, Answer::At(lsn)) => Some(Event::BarrierEmitted { lsn: *lsn }),
        (Effect::Ready { .. }, Answer::Done) => Some(Event::Readied),
        (Effect::VerifyDelta, Answer::Compared { keys, different }) => {
            Some(Event::DeltaVerified { keys: *keys, different: *different })
        }
        (Effect::RecordReturn { .. }, Answer::At(lsn)) => Some(Event::ReturnRecorded { lsn: *lsn }),
        (Effect::OpenFence { side }, Answer::Done) => Some(Event::FenceOpened { side: *side }),
        (Effect::SwitchConfig { .. }, Answer::Ambiguous) => Some(Event::ConfigAmbiguous),
        (Effect::WriteCanary { .. }, Answer::Done) => Some(Event::CanaryWritten),
        (Effect::EndSessions { .. }, Answer::Done) => Some(Event::SessionsEnded),
        (Effect::End, Answer::Done) => Some(Event::Ended),
        // Failed, stale, or an answer to another question: nothing has been learnt that the next look would not show.
        (
            Effect::CloseFence { .. }
            | Effect::SealFence { .. }
            | Effect::EmitBarrier { .. }
            | Effect::Ready { .. }
            | Effect::VerifyDelta
            | Effect::RecordReturn { .. }
            | Effect::OpenFence { .. }
            | Effect::SwitchConfig { .. }
            | Effect::WriteCanary { .. }
            | Effect::EndSessions { .. }
            | Effect::End,
            _,
        ) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_the_question_is_recorded() {
        let switch = Effect::SwitchConfig { expected: Version("1".into()), to: Side::Target };
        assert_eq!(answered(&switch, &Answer::Done), None, "only what is read back counts");
        assert_eq!(answered(&switch, &Answer::NotApplied), None);
        assert_eq!(answered(&switch, &Answer::Ambiguous), Some(Event::ConfigAmbiguous));
        let open = Effect::OpenFence { side: Side::Target };
        assert_eq!(answered(&open, &Answer::Done), Some(Event::FenceOpened { side: Side::Target }));
        for nothing in [Answer::Failed, Answer::Stale, Answer::At(Lsn(1)), Answer::Ambiguous] {
            assert_eq!(answered(&open, &nothing), None, "{nothing:?}");
        }
        assert_eq!(answered(&Effect::EmitBarrier { side: Side::Source }, &Answer::Done), None);
    }
}
