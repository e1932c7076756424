//! Events as they travel from the reading thread to the target: undecoded, in parcels that own their bytes.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use changelog::{Header, Manifest, Marker};

/// Index of a partition in the order in which the reader met them.
pub type PartitionIndex = u16;

/// A slice of a parcel's bytes. Cheap to clone; keeps the parcel alive.
#[derive(Clone, Debug)]
pub struct Slice {
    arena: Arc<Vec<u8>>,
    start: u32,
    length: u32,
}

impl Slice {
    pub fn new(arena: Arc<Vec<u8>>, start: usize, length: usize) -> Slice {
        Slice { arena, start: start as u32, length: length as u32 }
    }

    pub fn of(bytes: &[u8]) -> Slice {
        Slice::new(Arc::new(bytes.to_vec()), 0, bytes.len())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.arena[self.start as usize..(self.start + self.length) as usize]
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Slice) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Slice {}

impl Hash for Slice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

/// One event, undecoded but for its header.
#[derive(Clone, Debug)]
pub struct RawEvent {
    pub header: Header,
    pub schema_id: u32,
    pub partition: PartitionIndex,
    pub offset: i64,
    /// The Kafka key without its frame; empty for a keyless table.
    pub key: Slice,
    pub value: Slice,
}

/// What the merge gives out, in source order.
#[derive(Clone, Debug)]
pub enum Item {
    /// A partition that later items name by index.
    Partition {
        index: PartitionIndex,
        topic: Arc<str>,
        partition: i32,
    },
    Event(RawEvent),
    /// All events of a segment were given; of the transaction, if it is the last one.
    End {
        manifest: Manifest,
        offset: i64,
    },
    Marker {
        marker: Marker,
        received_at_micros: i64,
        offset: i64,
    },
}

/// A run of items, sent at once.
pub type Parcel = Vec<Item>;
