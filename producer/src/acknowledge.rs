//! What may be confirmed to the slot. Pure.
//!
//! Every record handed to Kafka gets a sequence number. A *point* is an LSN that may be confirmed once every record before
//! it is acknowledged: the end of a manifest's transaction, or of a marker. Kafka acknowledges per partition, so out of
//! order over all; only the contiguous prefix counts. Never a keepalive's LSN, never a position in the middle.

use std::collections::VecDeque;

use changelog::Lsn;

#[derive(Debug, Default)]
pub struct Acknowledgements {
    /// Sequence number of the first record that is not acknowledged.
    base: u64,
    /// Whether record `base + index` is acknowledged; the first never is.
    acknowledged: VecDeque<bool>,
    /// `(sequence, LSN)`: confirmed when `base >= sequence`. Both grow.
    points: VecDeque<(u64, Lsn)>,
    confirmed: Lsn,
}

impl Acknowledgements {
    /// Gives the next record its number.
    pub fn sent(&mut self) -> u64 {
        self.acknowledged.push_back(false);
        self.base + self.acknowledged.len() as u64 - 1
    }

    /// Takes back the newest number: its record was never handed over.
    pub fn withdraw(&mut self, sequence: u64) {
        if sequence + 1 == self.base + self.acknowledged.len() as u64 {
            self.acknowledged.pop_back();
        }
    }

    /// Everything sent until now must be acknowledged before `lsn` is confirmed.
    pub fn point(&mut self, lsn: Lsn) {
        let sequence = self.base + self.acknowledged.len() as u64;
        match self.points.back_mut() {
            Some((last, point)) if *last == sequence => *point = lsn.max(*point),
            _ => self.points.push_back((sequence, lsn)),
        }
        self.advance();
    }

    /// True if the confirmed LSN grew.
    pub fn acknowledge(&mut self, sequence: u64) -> bool {
        let Some(index) = sequence.checked_sub(self.base) else { return false };
        match usize::try_from(index).ok().and_then(|index| self.acknowledged.get_mut(index)) {
            Some(record) => *record = true,
            None => return false,
        }
        while self.acknowledged.front() == Some(&true) {
            self.acknowledged.pop_front();
            self.base += 1;
        }
        self.advance()
    }

    /// Never goes back; [`Lsn::ZERO`] before the first point.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    pub fn outstanding(&self) -> usize {
        self.acknowledged.len()
    }

    fn advance(&mut self) -> bool {
        let before = self.confirmed;
        while let Some((sequence, lsn)) = self.points.front() {
            if *sequence > self.base {
                break;
            }
            self.confirmed = self.confirmed.max(*lsn);
            self.points.pop_front();
        }
        self.confirmed > before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_point_is_confirmed_only_when_everything_before_it_is_acknowledged() {
        let mut acknowledgements = Acknowledgements::default();
        let records: Vec<u64> = (0..3).map(|_| acknowledgements.sent()).collect();
        acknowledgements.point(Lsn(10));
        let later = acknowledgements.sent();
        acknowledgements.point(Lsn(20));
        assert!(!acknowledgements.acknowledge(later));
        assert!(!acknowledgements.acknowledge(records[2]));
        assert!(!acknowledgements.acknowledge(records[0]));
        assert_eq!(acknowledgements.confirmed(), Lsn::ZERO);
        assert!(acknowledgements.acknowledge(records[1]));
        assert_eq!(acknowledgements.confirmed(), Lsn(20));
        assert_eq!(acknowledgements.outstanding(), 0);
    }

    #[test]
    fn a_record_that_was_never_handed_over_holds_nothing_back() {
        let mut acknowledgements = Acknowledgements::default();
        let first = acknowledgements.sent();
        let abandoned = acknowledgements.sent();
        acknowledgements.withdraw(abandoned);
        acknowledgements.point(Lsn(5));
        assert!(acknowledgements.acknowledge(first));
        assert_eq!((acknowledgements.outstanding(), acknowledgements.confirmed()), (0, Lsn(5)));
        assert_eq!(acknowledgements.sent(), abandoned);
    }

    #[test]
    fn a_point_with_nothing_before_it_is_confirmed_at_once() {
        let mut acknowledgements = Acknowledgements::default();
        acknowledgements.point(Lsn(7));
        assert_eq!(acknowledgements.confirmed(), Lsn(7));
    }

    proptest! {
        /// The model: a point holds when every record sent before it is in the set of the acknowledged.
        #[test]
        fn in_any_order_of_acknowledgement_the_confirmed_lsn_is_the_models(
            points in proptest::collection::vec(any::<bool>(), 1..60),
            order in proptest::collection::vec(any::<u16>(), 60),
        ) {
            let mut acknowledgements = Acknowledgements::default();
            let mut model = Vec::new(); // (records before, lsn)
            let mut sent = Vec::new();
            for (at, point) in points.iter().enumerate() {
                sent.push(acknowledgements.sent());
                if *point {
                    let lsn = Lsn(at as u64 + 1);
                    acknowledgements.point(lsn);
                    model.push((sent.len(), lsn));
                }
            }
            let mut waiting: Vec<usize> = (0..sent.len()).collect();
            let mut done = vec![false; sent.len()];
            for pick in order.iter().cycle().take(sent.len()) {
                let record = waiting.remove(usize::from(*pick) % waiting.len());
                done[record] = true;
                acknowledgements.acknowledge(sent[record]);
                let expected = model.iter().filter(|(n, _)| done[..*n].iter().all(|d| *d)).map(|(_, lsn)| *lsn).max();
                prop_assert_eq!(acknowledgements.confirmed(), expected.unwrap_or_default());
            }
            prop_assert_eq!(acknowledgements.outstanding(), 0);
        }
    }
}
