//! Events as they travel from the reading thread to the target: undecoded, in parcels that own their bytes.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use changelog::{EventDecoder, Head, Header, Manifest, Marker, avro};

/// Index of a partition in the order in which the reader met them.
pub type PartitionIndex = u16;

/// A slice of an event's bytes. Cheap to clone; keeps the event's bytes alive.
#[derive(Clone, Debug)]
pub struct Slice {
    arena: Arc<[u8]>,
    start: u32,
    length: u32,
}

impl Slice {
    fn new(arena: Arc<[u8]>, start: usize, length: usize) -> Slice {
        Slice { arena, start: start as u32, length: length as u32 }
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

/// One event, undecoded but for its head.
#[derive(Clone, Debug)]
pub struct RawEvent {
    pub header: Header,
    pub has_unchanged: bool,
    pub schema_id: u32,
    pub partition: PartitionIndex,
    pub offset: i64,
    /// The Kafka key without its frame; empty for a keyless table.
    pub key: Slice,
    pub value: Slice,
}

impl RawEvent {
    /// Copies a record as it was read.
    ///
    /// # Errors
    /// It does not begin as an event does.
    pub fn read(
        key: Option<&[u8]>,
        value: &[u8],
        partition: PartitionIndex,
        offset: i64,
    ) -> Result<RawEvent, changelog::Error> {
        let Head { schema_id, header, has_unchanged } = EventDecoder::head(value)?;
        let key = key.and_then(|key| key.get(avro::FRAME_BYTES..)).unwrap_or_default();
        let mut bytes = Vec::with_capacity(key.len() + value.len());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        let bytes: Arc<[u8]> = Arc::from(bytes);
        Ok(RawEvent {
            header,
            has_unchanged,
            schema_id,
            partition,
            offset,
            key: Slice::new(bytes.clone(), 0, key.len()),
            value: Slice::new(bytes, key.len(), value.len()),
        })
    }
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
