//! Events as they travel from the reading thread to the target: undecoded, in parcels that own their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use changelog::{EventDecoder, Head, Header, Joiner, Manifest, Marker, Op, SchemaChange, Sequences, avro};

/// Index of a partition in the order in which the reader met them.
pub type PartitionIndex = u16;

/// Where the bytes of many events lie together: an allocation of their own for each would cost more than reading them.
#[derive(Debug, Default)]
pub struct Arena {
    free: BytesMut,
}

impl Arena {
    /// Room made at once; an event that is larger gets its own.
    const BYTES: usize = 256 << 10;

    /// Copies both parts, one behind the other.
    fn hold(&mut self, first: &[u8], second: &[u8]) -> Bytes {
        let bytes = first.len() + second.len();
        if self.free.capacity() < bytes {
            self.free = BytesMut::with_capacity(bytes.max(Arena::BYTES));
        }
        self.free.extend_from_slice(first);
        self.free.extend_from_slice(second);
        self.free.split().freeze()
    }
}

/// One event, undecoded but for its head.
#[derive(Clone, Debug)]
pub struct RawEvent {
    /// The position of one that came in pieces is its last piece's: there the partition is left.
    pub header: Header,
    /// Whether it is the first event of its change: what lies before it can be applied by itself.
    pub begins_change: bool,
    pub has_unchanged: bool,
    pub schema_id: u32,
    pub partition: PartitionIndex,
    pub offset: i64,
    key_bytes: u32,
    /// Key, then value.
    bytes: Bytes,
}

impl RawEvent {
    /// Copies a record as it was read.
    ///
    /// # Errors
    /// It does not begin as an event does.
    pub fn read(
        arena: &mut Arena,
        key: Option<&[u8]>,
        value: &[u8],
        partition: PartitionIndex,
        offset: i64,
    ) -> Result<RawEvent, changelog::Error> {
        let Head { schema_id, header, has_unchanged } = EventDecoder::head(value)?;
        let key = key.and_then(|key| key.get(avro::FRAME_BYTES..)).unwrap_or_default();
        let (key_bytes, bytes) = (key.len() as u32, arena.hold(key, value));
        let begins_change = header.position.begins_change();
        Ok(RawEvent { header, begins_change, has_unchanged, schema_id, partition, offset, key_bytes, bytes })
    }

    /// An event that is whole, as it is; of one in pieces the last piece gives the whole, the others give nothing.
    ///
    /// # Errors
    /// `Piece` if they do not fit together.
    pub fn join(self, joiner: &mut Joiner) -> Result<Option<RawEvent>, changelog::Error> {
        if self.header.op != Op::Piece {
            joiner.whole()?;
            return Ok(Some(self));
        }
        let Some(bytes) = joiner.piece(self.value(), self.key())? else { return Ok(None) };
        let bytes = Bytes::from(bytes);
        let Head { schema_id, header, has_unchanged } = EventDecoder::head(&bytes[self.key_bytes as usize..])?;
        let begins_change = header.position.begins_change();
        let header = Header { position: self.header.position, ..header };
        Ok(Some(RawEvent { header, begins_change, has_unchanged, schema_id, bytes, ..self }))
    }

    /// The Kafka key without its frame; empty for a keyless table.
    pub fn key(&self) -> &[u8] {
        &self.bytes[..self.key_bytes as usize]
    }

    /// The record's value, its frame included.
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.key_bytes as usize..]
    }

    /// What it takes in memory, about.
    pub fn size(&self) -> usize {
        self.bytes.len() + size_of::<RawEvent>()
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
    /// Values of the source's sequences.
    Sequences {
        read: Sequences,
        offset: i64,
    },
    /// Tables of the source were changed.
    Schema {
        change: Box<SchemaChange>,
        offset: i64,
    },
}

/// Stops a thread when dropped.
#[derive(Debug)]
pub struct Stop(pub Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A run of items, sent at once.
pub type Parcel = Vec<Item>;
