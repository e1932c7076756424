//! Source order, restored: manifests say how many events of which partitions make a segment; heads are merged by position.
//!
//! ```text
//!  manifest (100, 3): accounts/0 ×2, history/0 ×1
//!    accounts/0 : (100,0) (100,2)          ──┐
//!    history/0  : (099,5)x (100,1)         ──┴─> (100,0) (100,1) (100,2) End
//! ```
//! x: not above what was seen or applied: a resend of a producer that was restarted, or that does not know that it was
//! replaced; dropped. What is above must be exactly what the manifest lists: anything else is lost or foreign, an error.
//!
//! Pure: it says which partition it needs the next event of, and holds at most one event per partition.

use std::collections::HashMap;

use changelog::{Header, LaneRecord, Lsn, Manifest, Marker, Position, SchemaChange, Sequences};

use crate::Error;

/// How far the target is. `complete` is false where only a marker was reached: it stands before the change of its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied {
    pub position: Position,
    pub complete: bool,
}

impl Applied {
    /// Before the first change at `lsn`.
    pub fn before(lsn: Lsn) -> Applied {
        Applied { position: Position::new(lsn, 0), complete: false }
    }

    pub fn through(position: Position) -> Applied {
        Applied { position, complete: true }
    }

    pub fn covers(&self, position: &Position) -> bool {
        *position < self.position || (self.complete && *position == self.position)
    }
}

/// Topic and partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionName {
    pub topic: String,
    pub partition: i32,
}

/// What comes out, in order.
#[derive(Debug, PartialEq)]
pub enum Merged<E> {
    Event(Header, E),
    End(Manifest),
    Marker(Marker),
    Sequences(Sequences),
    Schema(SchemaChange),
}

/// Index of a partition in the order of its first mention.
pub type Place = usize;

struct Part<E> {
    place: Place,
    left: u64,
    head: Option<(Header, E)>,
}

struct Open<E> {
    manifest: Manifest,
    /// Events at or below are not of this segment.
    after: Applied,
    parts: Vec<Part<E>>,
}

struct PartitionState {
    name: PartitionName,
    last_seen: Option<Position>,
}

/// The merge of one lane.
pub struct Merge<E> {
    system_identifier: String,
    timeline: i32,
    /// What every earlier record covers.
    reached: Applied,
    places: HashMap<PartitionName, Place>,
    partitions: Vec<PartitionState>,
    open: Option<Open<E>>,
    /// A marker (or sequences) from within a transaction waits for the end of it. With its commit LSN.
    held: Vec<(Lsn, Merged<E>)>,
    ready: Vec<Merged<E>>,
}

impl<E> Merge<E> {
    pub fn new(system_identifier: &str, timeline: i32, applied: Applied) -> Merge<E> {
        Merge {
            system_identifier: system_identifier.to_owned(),
            timeline,
            reached: applied,
            places: HashMap::new(),
            partitions: Vec::new(),
            open: None,
            held: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Takes the next record of `-transactions`; only when [`Merge::idle`]. False if it was dropped as a resend.
    ///
    /// # Errors
    /// `ForeignManifest` if it comes from another server.
    pub fn control(&mut self, record: LaneRecord) -> Result<bool, Error> {
        match record {
            // Checked where the lane is opened; one that comes again is a resend like any other.
            LaneRecord::Birth(_) => Ok(false),
            LaneRecord::Manifest(manifest) => {
                if self.reached.covers(&manifest.position) {
                    return Ok(false);
                }
                self.check_origin(&manifest.system_identifier, manifest.timeline, manifest.position)?;
                self.release_held(manifest.position.commit_lsn);
                let mut parts = Vec::with_capacity(manifest.partitions.len());
                for count in &manifest.partitions {
                    parts.push(Part {
                        place: self.place(&count.topic, count.partition),
                        left: count.events,
                        head: None,
                    });
                }
                self.open = Some(Open { after: self.reached, parts, manifest });
                Ok(true)
            }
            LaneRecord::Marker(marker) => {
                let origin = (marker.system_identifier.clone(), marker.timeline);
                self.message(origin, marker.position, Merged::Marker(marker))
            }
            LaneRecord::Sequences(read) => {
                let origin = (read.system_identifier.clone(), read.timeline);
                self.message(origin, read.position, Merged::Sequences(read))
            }
            LaneRecord::Schema(change) => {
                if self.reached.covers(&change.position) {
                    return Ok(false);
                }
                self.check_origin(&change.system_identifier, change.timeline, change.position)?;
                self.release_held(change.position.commit_lsn);
                self.reached = Applied::through(change.position);
                let last = change.last;
                self.ready.push(Merged::Schema(change));
                if last {
                    self.release_all();
                }
                Ok(true)
            }
        }
    }

    /// What came as a logical message and is no change.
    fn message(&mut self, origin: (String, i32), position: Position, merged: Merged<E>) -> Result<bool, Error> {
        let here = Applied { position, complete: false };
        if self.reached.covers(&position) || here <= self.reached {
            return Ok(false);
        }
        self.check_origin(&origin.0, origin.1, position)?;
        self.release_held(position.commit_lsn);
        if position.ordinal == 0 {
            self.reached = here;
            self.ready.push(merged);
        } else {
            self.held.push((position.commit_lsn, merged));
        }
        Ok(true)
    }

    /// The place of a partition, a new one at its first mention.
    pub fn place(&mut self, topic: &str, partition: i32) -> Place {
        let name = PartitionName { topic: topic.to_owned(), partition };
        if let Some(place) = self.places.get(&name) {
            return *place;
        }
        self.places.insert(name.clone(), self.partitions.len());
        self.partitions.push(PartitionState { name, last_seen: None });
        self.partitions.len() - 1
    }

    /// The partition of a place that [`Merge::needs`] gave.
    pub fn name(&self, place: Place) -> &PartitionName {
        &self.partitions[place].name
    }

    fn check_origin(&mut self, system_identifier: &str, timeline: i32, position: Position) -> Result<(), Error> {
        let foreign =
            |field, expected: String, found: String| Error::ForeignManifest { position, field, expected, found };
        if system_identifier != self.system_identifier {
            return Err(foreign("system identifier", self.system_identifier.clone(), system_identifier.to_owned()));
        }
        if timeline < self.timeline {
            return Err(foreign("timeline", self.timeline.to_string(), timeline.to_string()));
        }
        self.timeline = timeline;
        Ok(())
    }

    /// Markers of an earlier transaction whose end no manifest told (none of its changes was of a table of ours).
    fn release_held(&mut self, commit_lsn: Lsn) {
        let held = std::mem::take(&mut self.held);
        for (of, merged) in held {
            if of < commit_lsn {
                self.ready.push(merged);
            } else {
                self.held.push((of, merged));
            }
        }
    }

    /// Markers of a transaction that ends are reached.
    fn release_all(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.ready.extend(held.into_iter().map(|(_, merged)| merged));
    }

    /// Whether the next record of `-transactions` is what is needed.
    pub fn idle(&self) -> bool {
        self.open.is_none() && self.ready.is_empty()
    }

    /// The partition whose next event is needed.
    pub fn needs(&self) -> Option<Place> {
        let open = self.open.as_ref()?;
        open.parts.iter().find(|part| part.left > 0 && part.head.is_none()).map(|part| part.place)
    }

    /// The partitions of the segment that is merged now.
    pub fn listed(&self) -> impl Iterator<Item = Place> {
        self.open.iter().flat_map(|open| open.parts.iter().map(|part| part.place))
    }

    /// Takes the next event of the partition that [`Merge::needs`] named. False if it was dropped.
    ///
    /// # Errors
    /// `LostEvent`, `UnlistedEvent`.
    pub fn event(&mut self, header: Header, event: E) -> Result<bool, Error> {
        let Some(open) = self.open.as_mut() else { return Ok(false) };
        let Some(part) = open.parts.iter_mut().find(|part| part.left > 0 && part.head.is_none()) else {
            return Ok(false);
        };
        let position = header.position;
        let PartitionState { name, last_seen } = &mut self.partitions[part.place];
        if open.after.covers(&position) || last_seen.is_some_and(|seen| position <= seen) {
            return Ok(false);
        }
        let manifest = open.manifest.position;
        if position > manifest || position.commit_lsn != manifest.commit_lsn {
            let (topic, partition) = (name.topic.clone(), name.partition);
            return Err(if position > manifest {
                Error::LostEvent { topic, partition, manifest, missing: part.left, found: position }
            } else {
                Error::UnlistedEvent { topic, partition, manifest, found: position }
            });
        }
        *last_seen = Some(position);
        part.left -= 1;
        part.head = Some((header, event));
        Ok(true)
    }

    /// The next item, if everything that it depends on is there.
    pub fn advance(&mut self) -> Option<Merged<E>> {
        if !self.ready.is_empty() {
            return Some(self.ready.remove(0));
        }
        let open = self.open.as_mut()?;
        if open.parts.iter().any(|part| part.left > 0 && part.head.is_none()) {
            return None;
        }
        let position = |part: &Part<E>| part.head.as_ref().map(|(header, _)| header.position);
        let least = open.parts.iter().enumerate().filter_map(|(at, part)| Some((position(part)?, at))).min();
        if let Some((_, at)) = least {
            let (header, event) = open.parts[at].head.take()?;
            return Some(Merged::Event(header, event));
        }
        let manifest = self.open.take()?.manifest;
        self.reached = Applied::through(manifest.position);
        if manifest.last {
            self.release_all();
        }
        Some(Merged::End(manifest))
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
