//! One change to one or two events: which op, which images, which key. Pure.

use changelog::{Cell, Op};

use crate::assemble::ChangeKind;
use crate::pgoutput::{self, Before, TupleData};

/// Which columns of a tuple belong to the shape: the server may send generated columns, which are not carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// `None`: all of them.
    pub kept: Option<Vec<bool>>,
}

/// An event before it is encoded. Its key is in `after` if there is one, else in `before`.
#[derive(Debug, PartialEq, Eq)]
pub struct Image<'a> {
    pub op: Op,
    pub before: Option<Vec<Cell<'a>>>,
    pub after: Option<Vec<Cell<'a>>>,
}

/// What a change becomes.
#[derive(Debug, PartialEq, Eq)]
pub enum Images<'a> {
    One(Image<'a>),
    /// The update moved the row to another key: delete, then create.
    KeyChange(Image<'a>, Image<'a>),
}

/// A value came in the binary form, which we never ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct BinaryValue;

/// `key`: indexes of the key columns in the shape.
pub fn images<'a>(kind: &'a ChangeKind, columns: &Columns, key: &[usize]) -> Result<Images<'a>, BinaryValue> {
    let image = |op, before, after| Image { op, before, after };
    Ok(Images::One(match kind {
        ChangeKind::Insert { after } => image(Op::Create, None, Some(cells(after, columns)?)),
        ChangeKind::Delete { before } => image(Op::Delete, Some(before_cells(before, columns)?), None),
        ChangeKind::Truncate { .. } => image(Op::Truncate, None, None),
        ChangeKind::Update { before: Before::Absent, after } => image(Op::Update, None, Some(cells(after, columns)?)),
        ChangeKind::Update { before, after } => {
            let before = before_cells(before, columns)?;
            let mut after = cells(after, columns)?;
            fill_unchanged(&mut after, &before);
            if key.iter().any(|at| before.get(*at) != after.get(*at)) {
                let deleted = Image { op: Op::Delete, before: Some(before), after: None };
                let created = Image { op: Op::Create, before: None, after: Some(after) };
                return Ok(Images::KeyChange(deleted, created));
            }
            image(Op::Update, Some(before), Some(after))
        }
    }))
}

/// A value that was not sent stands in the old image, where the server sent it: all of them under REPLICA IDENTITY FULL,
/// the key's otherwise.
fn fill_unchanged<'a>(after: &mut [Cell<'a>], before: &[Cell<'a>]) {
    for (value, old) in after.iter_mut().zip(before) {
        if let (Cell::Unchanged, Cell::Text(_)) = (&*value, old) {
            *value = *old;
        }
    }
}

fn before_cells<'a>(before: &'a Before, columns: &Columns) -> Result<Vec<Cell<'a>>, BinaryValue> {
    before.tuple().map_or_else(|| Ok(Vec::new()), |tuple| cells(tuple, columns))
}

fn cells<'a>(tuple: &'a TupleData, columns: &Columns) -> Result<Vec<Cell<'a>>, BinaryValue> {
    let mut cells = Vec::with_capacity(tuple.len());
    for (at, cell) in tuple.iter().enumerate() {
        if columns.kept.as_ref().is_some_and(|kept| !kept.get(at).copied().unwrap_or(true)) {
            continue;
        }
        cells.push(match cell {
            pgoutput::Cell::Null => Cell::Null,
            pgoutput::Cell::Unchanged => Cell::Unchanged,
            pgoutput::Cell::Text(text) => Cell::Text(text),
            pgoutput::Cell::Binary(_) => return Err(BinaryValue),
        });
    }
    Ok(cells)
}

/// Murmur2 of the key columns' text, as Kafka's own default partitioner hashes, modulo the partitions. Not of the encoded
/// key: that holds a schema id, and a key must keep its partition when its table gets another column.
pub fn partition(image: &[Cell<'_>], key: &[usize], partitions: i32) -> i32 {
    if partitions <= 1 || key.is_empty() {
        return 0;
    }
    let mut text = Vec::new();
    for at in key {
        if let Some(Cell::Text(value)) = image.get(*at) {
            text.extend_from_slice(value);
        }
        text.push(0x1f);
    }
    (murmur2(&text) & 0x7fff_ffff) as i32 % partitions
}

/// Austin Appleby's MurmurHash2 with the seed that Kafka's Java client uses.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (at, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_kafkas_java_client() {
        // From org.apache.kafka.common.utils.UtilsTest.testMurmur2.
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }

    #[test]
    fn a_value_that_was_not_sent_is_filled_only_from_one_that_was() {
        let mut after = [Cell::Unchanged, Cell::Unchanged, Cell::Null, Cell::Text(b"n")];
        fill_unchanged(&mut after, &[Cell::Text(b"old"), Cell::Null, Cell::Text(b"x"), Cell::Text(b"y")]);
        assert_eq!(after, [Cell::Text(b"old"), Cell::Unchanged, Cell::Null, Cell::Text(b"n")]);
    }

    #[test]
    fn keys_spread_over_partitions_and_keyless_rows_stay_in_the_first() {
        let row = |id: &'static str| [Cell::Text(id.as_bytes()), Cell::Null];
        assert_eq!(partition(&row("1"), &[], 8), 0);
        let seen: std::collections::HashSet<i32> =
            ["1", "2", "3", "4", "5", "6", "7", "8", "9"].iter().map(|id| partition(&row(id), &[0], 4)).collect();
        assert!(seen.len() > 1 && seen.iter().all(|at| (0..4).contains(at)));
    }
}
