//! An event that is larger than a record of its topic may be: cut into pieces, and put together again.
//!
//! ```text
//!  event (the framed value, n bytes)   ├──────────────┼──────────────┼──────┤
//!  records of its partition             op p, part 0    op p, part 1   op p, part 2     offset, size = n, fragment
//! ```
//! Cut are the bytes of the value and not its columns: whatever is large in it (either image, `exact`) is covered, and no reader can
//! take a fragment for a value or a value that is elsewhere for null, because a piece has no image at all. Where it is
//! cut depends on nothing but the event and the topic's limit, so a producer that restarts between two pieces goes on at the next
//! one. A reader that finds anything but the next piece of the same event says so; it never gives out half an event.

use crate::avro::{Reader, frame, put_bytes, put_long};
use crate::decode::header;
use crate::{Error, EventEncoder, Header, Op, Position};

/// The Avro schema of a piece, the same for all tables.
pub const SCHEMA: &str = include_str!("../../schemas/piece.avsc");

/// PostgreSQL sends no row change of more than 1 GB, and what we write of it is not much longer.
const SIZE_MAX: u64 = 5 << 28;

/// Bytes of a batch that Kafka adds to a record, and by which a compressed one may be longer than it was.
fn framing_bytes(message_bytes_max: usize) -> usize {
    1024 + message_bytes_max / 128
}

/// Key and value of a record together have at most so many bytes, where the topic's `max.message.bytes` is this.
pub fn record_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_sub(framing_bytes(message_bytes_max))
}

/// How an event is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Of the event's value.
    size: usize,
    /// Of each piece but the last.
    fragment: usize,
}

impl Cut {
    /// `record_bytes_max`: of key and value. `None`: the key leaves no room for a sensible piece.
    pub fn new(encoder: &EventEncoder, size: usize, key_bytes: usize, record_bytes_max: usize) -> Option<Cut> {
        let fragment = record_bytes_max.checked_sub(key_bytes + encoder.head_bytes_most())?;
        (fragment >= record_bytes_max / 4).then_some(Cut { size, fragment })
    }

    /// How many pieces there are, one at least.
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.fragment).max(1)).unwrap_or(u32::MAX)
    }
}

impl EventEncoder {
    /// Appends the framed piece of this number, from 0. `header`: of the event.
    pub fn piece(&self, out: &mut Vec<u8>, schema_id: u32, header: &Header, (cut, number): (Cut, u32), value: &[u8]) {
        let Position { part, .. } = header.position;
        let position = Position { part: part.saturating_add(number), ..header.position };
        let start = (number as usize).saturating_mul(cut.fragment).min(value.len());
        let fragment = &value[start..value.len().min(start + cut.fragment)];
        out.reserve(fragment.len() + self.head_bytes_most());
        self.put_head(out, schema_id, &Header { op: Op::Piece, position, ..*header });
        put_long(out, start as i64);
        put_long(out, value.len() as i64);
        put_bytes(out, fragment);
    }
}

/// Puts the pieces of one partition's (or one lane's) events together. Records come in order, resends taken out.
#[derive(Debug, Default)]
pub struct Joiner {
    open: Option<Open>,
    /// What begins in the middle of an event passes its end over.
    midway: bool,
}

#[derive(Debug)]
struct Open {
    position: Position,
    size: usize,
    /// Bytes before the event.
    lead: usize,
    bytes: Vec<u8>,
}

impl Joiner {
    /// For a reader that may begin in the middle of an event: what is left of that one is passed over.
    pub fn midway() -> Joiner {
        Joiner { open: None, midway: true }
    }

    /// Takes the next piece. With the last one: the event's framed value behind `lead`, which is what the caller wants to have
    /// in the same buffer.
    ///
    /// # Errors
    /// `Piece` if it is not the next one of the same event, or corrupt bytes. What there was of the event is forgotten.
    pub fn piece(&mut self, record: &[u8], lead: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let (_schema_id, body) = frame(record)?;
        let mut reader = Reader::new(body);
        let Header { position, .. } = header(&mut reader)?;
        let (offset, size) = (reader.unsigned()?, reader.unsigned()?);
        let fragment = reader.bytes()?;
        reader.finish()?;
        let unfit = |what: String| Err(Error::Piece { position, what });
        let mut open = match self.open.take() {
            Some(open) => open,
            None if offset == 0 && size <= SIZE_MAX => {
                let mut bytes = Vec::with_capacity(lead.len() + size as usize);
                bytes.extend_from_slice(lead);
                Open { position, size: size as usize, lead: lead.len(), bytes }
            }
            None if offset == 0 => return unfit(format!("an event of {size} bytes")),
            None if self.midway => return Ok(None),
            None => return unfit(format!("its pieces begin at byte {offset}")),
        };
        self.midway = false;
        let begun = open.position;
        if (position.commit_lsn, position.ordinal) != (begun.commit_lsn, begun.ordinal) {
            return unfit(format!("the event of {begun} is not complete"));
        }
        let (held, expected) = (open.bytes.len() - open.lead, open.size);
        if (offset, size) != (held as u64, expected as u64) || fragment.len() > expected - held {
            let found = format!("bytes {offset} to {} of {size}", offset.saturating_add(fragment.len() as u64));
            return unfit(format!("{found} follow the first {held} of {expected}"));
        }
        open.bytes.extend_from_slice(fragment);
        if open.bytes.len() - open.lead < open.size {
            self.open = Some(open);
            return Ok(None);
        }
        Ok(Some(open.bytes))
    }

    /// Before anything that is no piece.
    ///
    /// # Errors
    /// `Piece` if an event is not complete.
    pub fn whole(&mut self) -> Result<(), Error> {
        self.midway = false;
        match self.open.take() {
            None => Ok(()),
            Some(Open { position, size, lead, bytes }) => {
                let what = format!("only {} of {size} bytes are there", bytes.len() - lead);
                Err(Error::Piece { position, what })
            }
        }
    }
}
