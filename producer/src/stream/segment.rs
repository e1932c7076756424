//! Counting the events of a transaction into manifests. Pure.
//!
//! A manifest covers the events of one segment of `SEGMENT_CHANGES` ordinals. A segment is closed by the first event of a later
//! one, by a change of tables, or by the commit: only then it is known whether it is the last. Counts do not depend on what a restart skips, so a
//! producer that starts again in the middle of a transaction writes the very same manifests.

use changelog::Position;

/// Index into the stream's list of partitions.
pub type PartitionIndex = u32;

/// The events that one manifest lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Of its last event.
    pub position: Position,
    pub counts: Vec<(PartitionIndex, u64)>,
}

/// The open segment of the open transaction.
#[derive(Debug, Default)]
pub struct Segments {
    open: Option<Segment>,
}

impl Segments {
    /// Forgets a transaction that will be sent again.
    pub fn begin(&mut self) {
        self.open = None;
    }

    /// Counts an event. Returns the segment before it if it begins another one: its manifest goes out before the event.
    pub fn event(&mut self, position: Position, partition: PartitionIndex) -> Option<Segment> {
        let closed = self.open.take_if(|open| open.position.segment() != position.segment());
        let open = self.open.get_or_insert_with(|| Segment { position, counts: Vec::new() });
        open.position = position;
        // The partition of the last event is the likeliest of the next.
        match open.counts.iter_mut().rev().find(|(index, _)| *index == partition) {
            Some((_, count)) => *count += 1,
            None => open.counts.push((partition, 1)),
        }
        closed
    }

    /// The open segment, whose last event was counted; none if there was no event since the one before.
    pub fn close(&mut self) -> Option<Segment> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;
    use changelog::position::SEGMENT_CHANGES;
    use proptest::prelude::*;

    use super::*;

    fn at(ordinal: u64, part: u32) -> Position {
        Position { commit_lsn: Lsn(9), ordinal, part }
    }

    #[test]
    fn a_transaction_without_events_has_no_manifest() {
        assert_eq!(Segments::default().close(), None);
    }

    #[test]
    fn both_parts_of_a_key_change_stand_in_one_segment() {
        let mut segments = Segments::default();
        let last = SEGMENT_CHANGES - 1;
        assert_eq!(segments.event(at(last, 0), 0), None);
        assert_eq!(segments.event(at(last, 1), 1), None);
        let closed = segments.event(at(SEGMENT_CHANGES, 0), 1).unwrap();
        assert_eq!(closed, Segment { position: at(last, 1), counts: vec![(0, 1), (1, 1)] });
        assert_eq!(segments.close().unwrap().position, at(SEGMENT_CHANGES, 0));
    }

    proptest! {
        #[test]
        fn every_event_is_counted_once_and_in_its_own_segment(steps in proptest::collection::vec((1_u64..9_000, 0_u32..4), 0..40)) {
            let (mut segments, mut ordinal, mut manifests) = (Segments::default(), 0, Vec::new());
            let mut expected = std::collections::BTreeMap::<(u64, u32), u64>::new();
            for (step, partition) in steps {
                ordinal += step;
                *expected.entry((at(ordinal, 0).segment(), partition)).or_default() += 1;
                manifests.extend(segments.event(at(ordinal, 0), partition));
            }
            manifests.extend(segments.close());
            prop_assert!(manifests.windows(2).all(|pair| pair[0].position < pair[1].position));
            let mut counted = std::collections::BTreeMap::new();
            for manifest in manifests {
                for (partition, count) in manifest.counts {
                    counted.insert((manifest.position.segment(), partition), count);
                }
            }
            prop_assert_eq!(counted, expected);
        }
    }
}
