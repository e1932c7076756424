//! The recent changes of every table, bounded in bytes. Pure: `tail` fills it, comparisons ask it.
//!
//! A change may be forgotten when every snapshot that may still ask sees its transaction: visibility only grows, so what
//! is visible in one snapshot is visible in all later ones. A comparison therefore takes a *lease* before it opens its
//! snapshot; while a lease has no snapshot, nothing is forgotten. When the bound is exceeded the oldest changes go all the
//! same, and their transaction ids are kept: a comparison whose snapshot does not see one of them says nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use changelog::{EventDecoder, Joiner, Op, Position};

use crate::settle::{SourceSnapshot, Unsettled, in_flight};

/// Transaction ids of forgotten changes that are remembered for one partition; beyond, the window must be made anew.
const LOST_MAX: usize = 1_000_000;
/// What a change costs beside its record.
const OVERHEAD_BYTES: usize = 96;

/// One event, still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub position: Position,
    pub xid: u32,
    pub op: Op,
    pub payload: Arc<[u8]>,
}

impl Change {
    fn bytes(&self) -> usize {
        self.payload.len() + OVERHEAD_BYTES
    }

    /// This change; of one in pieces the last piece gives the whole, the others give nothing.
    pub fn join(self, joiner: &mut Joiner) -> Result<Option<Change>, changelog::Error> {
        if self.op != Op::Piece {
            joiner.whole()?;
            return Ok(Some(self));
        }
        let Some(payload) = joiner.piece(&self.payload, &[])? else { return Ok(None) };
        let op = EventDecoder::head(&payload)?.header.op;
        Ok(Some(Change { op, payload: payload.into(), ..self }))
    }
}

#[derive(Debug, Default)]
struct Partition {
    changes: VecDeque<Change>,
    /// Of the newest change; a record at or below it was sent twice.
    last: Position,
    next_offset: i64,
    /// Behind the last event that is whole.
    whole_offset: i64,
    lost: HashSet<u32>,
    joiner: Joiner,
}

/// A promise to forget nothing that a comparison may ask for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub struct LeaseId(u64);

#[derive(Debug)]
pub struct Window {
    /// topic -> partition -> changes
    topics: HashMap<String, BTreeMap<i32, Partition>>,
    bytes: usize,
    bytes_max: usize,
    leases: BTreeMap<LeaseId, Option<SourceSnapshot>>,
    next_lease: u64,
    /// The newest snapshot known to be past, for when nobody holds a lease.
    horizon: Option<SourceSnapshot>,
}

impl Window {
    pub fn new(bytes_max: usize) -> Window {
        Window { topics: HashMap::new(), bytes: 0, bytes_max, leases: BTreeMap::new(), next_lease: 0, horizon: None }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A partition is read from this offset on.
    pub fn assign(&mut self, topic: &str, partition: i32, next_offset: i64) {
        // Where reading begins, an event may have begun before. Every snapshot has seen it, as all that lies there.
        let assigned =
            Partition { next_offset, whole_offset: next_offset, joiner: Joiner::midway(), ..Partition::default() };
        self.topics.entry(topic.to_owned()).or_default().entry(partition).or_insert(assigned);
    }

    pub fn partitions(&self, topic: &str) -> Vec<i32> {
        self.topics.get(topic).map(|partitions| partitions.keys().copied().collect()).unwrap_or_default()
    }

    /// Whether everything below `offset` was read.
    pub fn reached(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.partition(topic, partition).is_some_and(|held| held.next_offset >= offset)
    }

    /// By partition, the offset from which on a later reader meets every event that was not read here.
    pub fn offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        let of = |partitions: &BTreeMap<i32, Partition>| {
            partitions.iter().map(|(partition, held)| (*partition, held.whole_offset)).collect()
        };
        self.topics.get(topic).map(of).unwrap_or_default()
    }

    fn partition(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.get(&partition)
    }

    /// Takes the record at `offset`. `None` where it is no change (a row of the backfill).
    ///
    /// # Errors
    /// `Piece` for a change whose pieces do not fit together.
    pub fn push(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        change: Option<Change>,
    ) -> Result<(), changelog::Error> {
        let Some(held) = self.topics.get_mut(topic).and_then(|partitions| partitions.get_mut(&partition)) else {
            return Ok(());
        };
        if offset < held.next_offset {
            return Ok(());
        }
        // What was sent twice leaves the event that it stands in as it is.
        let mut whole = held.whole_offset >= held.next_offset;
        if let Some(change) = change.filter(|change| change.position > held.last) {
            held.last = change.position;
            let change = change.join(&mut held.joiner)?;
            whole = change.is_some();
            if let Some(change) = change {
                self.bytes += change.bytes();
                held.changes.push_back(change);
            }
        }
        held.next_offset = offset + 1;
        if whole {
            held.whole_offset = held.next_offset;
        }
        if self.bytes > self.bytes_max {
            self.forget();
        }
        Ok(())
    }

    /// The bound is exceeded: forget what nobody can ask for, then the oldest of the fullest partition.
    fn forget(&mut self) {
        self.purge();
        // Some room at once, so that not every further change comes here again.
        while self.bytes > self.bytes_max / 4 * 3 {
            let fullest = self.topics.values_mut().flat_map(BTreeMap::values_mut).max_by_key(|held| held.changes.len());
            let Some((held, change)) = fullest.and_then(|held| held.changes.pop_front().map(|change| (held, change)))
            else {
                return;
            };
            self.bytes -= change.bytes();
            held.lost.insert(change.xid);
            // All of it at once: a transaction of which a part is lost cannot be settled anyway.
            while held.changes.front().is_some_and(|next| next.xid == change.xid) {
                if let Some(next) = held.changes.pop_front() {
                    self.bytes -= next.bytes();
                }
            }
        }
    }

    /// Before a snapshot is opened.
    pub fn lease(&mut self) -> LeaseId {
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, None);
        id
    }

    /// The snapshot that was opened under the lease.
    pub fn hold(&mut self, id: LeaseId, snapshot: SourceSnapshot) {
        if let Some(held) = self.leases.get_mut(&id) {
            *held = Some(snapshot);
        }
    }

    pub fn release(&mut self, id: LeaseId) {
        if let Some(Some(snapshot)) = self.leases.remove(&id) {
            self.horizon = Some(snapshot);
        }
        self.purge();
    }

    /// A snapshot that was taken just now, and leased by nobody: forgets what it sees if nobody holds a lease.
    pub fn passed(&mut self, snapshot: SourceSnapshot) {
        if self.leases.is_empty() {
            self.horizon = Some(snapshot);
            self.purge();
        }
    }

    fn purge(&mut self) {
        let held: Vec<&SourceSnapshot> = if self.leases.is_empty() {
            self.horizon.iter().collect()
        } else {
            self.leases.values().flatten().collect()
        };
        if held.is_empty() || held.len() < self.leases.len() {
            return;
        }
        let forgettable = |xid: u32| held.iter().all(|snapshot| snapshot.sees(xid));
        for partition in self.topics.values_mut().flat_map(BTreeMap::values_mut) {
            while partition.changes.front().is_some_and(|change| forgettable(change.xid)) {
                if let Some(change) = partition.changes.pop_front() {
                    self.bytes -= change.bytes();
                }
            }
            partition.lost.retain(|xid| !forgettable(*xid));
        }
    }

    /// The changes of a topic that are in flight between two snapshots.
    ///
    /// # Errors
    /// `WindowLost` if one that may be was forgotten, `Truncated`.
    pub fn in_flight(&self, topic: &str, source: &SourceSnapshot, applied: Position) -> Result<Vec<Change>, Unsettled> {
        let Some(partitions) = self.topics.get(topic) else { return Ok(Vec::new()) };
        for held in partitions.values() {
            if held.lost.len() > LOST_MAX || held.lost.iter().any(|xid| !source.sees(*xid)) {
                return Err(Unsettled::WindowLost);
            }
        }
        in_flight(partitions.values().flat_map(|held| &held.changes), source, applied)
    }

    /// Whether so much was lost that the window must be made anew.
    pub fn broken(&self) -> bool {
        self.topics.values().flat_map(BTreeMap::values).any(|held| held.lost.len() > LOST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;

    use super::*;

    fn change(xid: u32, bytes: usize) -> Change {
        let position = Position::new(Lsn(u64::from(xid) * 10), 0);
        Change { position, xid, op: Op::Update, payload: vec![0; bytes].into() }
    }

    fn window(bytes_max: usize) -> Window {
        let mut window = Window::new(bytes_max);
        window.assign("t", 0, 0);
        window
    }

    fn snapshot(next: u64) -> SourceSnapshot {
        format!("{next}:{next}:").parse().unwrap()
    }

    fn flying(window: &Window, next: u64) -> Result<Vec<u32>, Unsettled> {
        let all = Position::new(Lsn(u64::MAX), 0);
        Ok(window.in_flight("t", &snapshot(next), all)?.iter().map(|change| change.xid).collect())
    }

    #[test]
    fn what_a_lease_may_ask_for_is_kept_until_it_is_released() {
        let mut window = window(1 << 20);
        let lease = window.lease();
        for (offset, xid) in [3, 4, 5].into_iter().enumerate() {
            window.push("t", 0, offset as i64, Some(change(xid, 10))).unwrap();
        }
        let other = window.lease();
        window.hold(other, snapshot(6));
        window.release(other);
        assert_eq!(flying(&window, 4), Ok(vec![4, 5]), "the first lease has no snapshot yet: all is kept");
        window.hold(lease, snapshot(4));
        window.release(lease);
        assert_eq!(flying(&window, 4), Ok(vec![4, 5]));
        window.passed(snapshot(5));
        assert_eq!(flying(&window, 5), Ok(vec![5]));
        assert_eq!(window.bytes(), 10 + OVERHEAD_BYTES);
    }

    #[test]
    fn a_change_that_was_forgotten_for_want_of_room_makes_only_those_blind_who_do_not_see_it() {
        let mut window = window(3 * (100 + OVERHEAD_BYTES));
        for xid in 3..8_u32 {
            window.push("t", 0, i64::from(xid), Some(change(xid, 100))).unwrap();
        }
        assert!(window.bytes() <= 3 * (100 + OVERHEAD_BYTES));
        assert_eq!(flying(&window, 3), Err(Unsettled::WindowLost));
        assert_eq!(flying(&window, 5), Ok(vec![5, 6, 7]));
        window.passed(snapshot(5));
        assert!(!window.broken());
    }

    #[test]
    fn a_record_that_was_sent_twice_is_taken_once() {
        let mut window = window(1 << 20);
        window.push("t", 0, 0, Some(change(3, 1))).unwrap();
        window.push("t", 0, 1, Some(change(3, 1))).unwrap();
        assert_eq!(flying(&window, 3), Ok(vec![3]));
        assert!(window.reached("t", 0, 2) && !window.reached("t", 0, 3));
        assert!(!window.reached("t", 1, 0) && !window.reached("u", 0, 0));
    }
}
