//! The columns of one row as they came: checked once when the message is decoded, walked without copying afterwards.

use bytes::Bytes;

/// One column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// A TOAST value that the server did not send because the update did not touch it.
    Unchanged,
    /// The type's output function, in the client encoding.
    Text(&'a [u8]),
    /// The type's send function; only with `binary 'true'`.
    Binary(&'a [u8]),
}

/// The columns of one row, in the order of the Relation message.
///
/// Holds the whole message's [`Bytes`]: cheap to clone, and alive as long as the read buffer.
#[derive(Clone)]
pub struct TupleData {
    message: Bytes,
    /// First cell and first byte after the last one. A frame is shorter than 1 GiB (PostgreSQL's MaxAllocSize).
    start: u32,
    end: u32,
    columns: u16,
}

impl TupleData {
    /// `start..end` of `message` must hold exactly `columns` cells: the decoder has walked them.
    pub(super) fn checked(message: Bytes, start: u32, end: u32, columns: u16) -> Self {
        Self { message, start, end, columns }
    }

    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes on the wire: the unit for byte budgets.
    pub fn wire_bytes(&self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    pub fn iter(&self) -> Cells<'_> {
        let rest = self.message.get(self.start as usize..self.end as usize).unwrap_or(&[]);
        Cells { rest, left: self.columns }
    }

    /// The same bytes as a slice that shares the read buffer, for who must keep one value beyond the tuple.
    pub fn share(&self, cell: &[u8]) -> Bytes {
        if cell.is_empty() { Bytes::new() } else { self.message.slice_ref(cell) }
    }
}

/// The tuple's cells, first column first.
#[derive(Debug, Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        if self.left == 0 {
            return None;
        }
        let (&tag, rest) = self.rest.split_first()?;
        self.left -= 1;
        match tag {
            b'n' => {
                self.rest = rest;
                Some(Cell::Null)
            }
            b'u' => {
                self.rest = rest;
                Some(Cell::Unchanged)
            }
            _ => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.rest = rest;
                Some(if tag == b't' { Cell::Text(value) } else { Cell::Binary(value) })
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}

impl<'a> IntoIterator for &'a TupleData {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;
    fn into_iter(self) -> Cells<'a> {
        self.iter()
    }
}

impl PartialEq for TupleData {
    fn eq(&self, other: &Self) -> bool {
        self.columns == other.columns && self.iter().eq(other.iter())
    }
}

impl Eq for TupleData {}

/// Never the values: a log line must not carry a cell.
impl std::fmt::Debug for TupleData {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TupleData({} columns, {} bytes)", self.columns, self.wire_bytes())
    }
}
