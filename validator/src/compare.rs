//! Sums and rows of two sides, compared. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

/// What one side says of a range of rows: how many, the sum of their key hashes, and of each column's keyed hashes, all
/// modulo 2^64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aggregates {
    pub rows: u64,
    pub key: u64,
    pub sums: Vec<u64>,
    /// Of each field; none if they were not asked for. They are sums as well, so that rows in flight can be taken off.
    pub counts: Vec<Counts>,
}

/// Values of a column that have no place among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub nulls: u64,
    pub empty: u64,
    pub nan: u64,
    pub infinite: u64,
}

impl Counts {
    fn combined(self, other: Counts, operation: fn(u64, u64) -> u64) -> Counts {
        Counts {
            nulls: operation(self.nulls, other.nulls),
            empty: operation(self.empty, other.empty),
            nan: operation(self.nan, other.nan),
            infinite: operation(self.infinite, other.infinite),
        }
    }
}

impl Aggregates {
    pub fn minus(&self, other: &Aggregates) -> Aggregates {
        self.combined(other, u64::wrapping_sub)
    }

    pub fn plus(&self, other: &Aggregates) -> Aggregates {
        self.combined(other, u64::wrapping_add)
    }

    fn combined(&self, other: &Aggregates, operation: fn(u64, u64) -> u64) -> Aggregates {
        Aggregates {
            rows: operation(self.rows, other.rows),
            key: operation(self.key, other.key),
            sums: self.sums.iter().zip(&other.sums).map(|(a, b)| operation(*a, *b)).collect(),
            counts: self.counts.iter().zip(&other.counts).map(|(a, b)| a.combined(*b, operation)).collect(),
        }
    }
}

/// A sum of signed 64-bit hashes, printed by `numeric`, modulo 2^64; no sum (of no rows) is 0.
pub fn modular(text: Option<&str>) -> Option<u64> {
    match text {
        None => Some(0),
        // 2^64 rows of 2^63 each still fit.
        Some(text) => text.parse::<i128>().ok().map(|sum| sum as u64),
    }
}

/// Rows and sum of each bucket of key hashes.
pub type Buckets = BTreeMap<i64, (u64, u64)>;

/// Buckets whose rows differ, in order.
pub fn differing_buckets(source: &Buckets, target: &Buckets) -> Vec<i64> {
    let mut all: Vec<i64> = source.keys().chain(target.keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    let nothing = (0, 0);
    all.retain(|bucket| source.get(bucket).unwrap_or(&nothing) != target.get(bucket).unwrap_or(&nothing));
    all
}

/// One row by its hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowHash {
    /// Hash of the key, or of the whole row in a keyless table.
    pub key_hash: i64,
    /// Of the summed columns; empty in a keyless table.
    pub hashes: Vec<i64>,
    pub key: Vec<Option<String>>,
}

/// A row that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowDifference {
    Missing(RowHash),
    Extra(RowHash),
    /// A key that the target has more than once.
    Duplicate(RowHash),
    /// Indexes into the summed columns.
    Changed {
        row: RowHash,
        columns: Vec<usize>,
    },
}

/// The rows that differ, by key hash; rows of one key hash are told apart by their other hashes, so that copies count.
pub fn differing_rows(source: Vec<RowHash>, target: Vec<RowHash>) -> Vec<RowDifference> {
    let mut by_key: BTreeMap<i64, (Vec<RowHash>, Vec<RowHash>)> = BTreeMap::new();
    for row in source {
        by_key.entry(row.key_hash).or_default().0.push(row);
    }
    for row in target {
        by_key.entry(row.key_hash).or_default().1.push(row);
    }
    let mut differences = Vec::new();
    for (_, (source, target)) in by_key {
        differ(source, target, &mut differences);
    }
    differences
}

fn differ(source: Vec<RowHash>, target: Vec<RowHash>, differences: &mut Vec<RowDifference>) {
    let existed = !source.is_empty();
    let mut left: HashMap<Vec<i64>, Vec<RowHash>> = HashMap::new();
    for row in source {
        left.entry(row.hashes.clone()).or_default().push(row);
    }
    let mut right = Vec::new();
    for row in target {
        if left.get_mut(&row.hashes).and_then(Vec::pop).is_none() {
            right.push(row);
        }
    }
    let mut left: Vec<RowHash> = left.into_values().flatten().collect();
    while let (Some(_), Some(_)) = (left.last(), right.last()) {
        if let (Some(wanted), Some(found)) = (left.pop(), right.pop()) {
            let pairs = wanted.hashes.iter().zip(&found.hashes);
            let columns = pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
            differences.push(RowDifference::Changed { row: wanted, columns });
        }
    }
    differences.extend(left.into_iter().map(RowDifference::Missing));
    let beyond = |row| if existed { RowDifference::Duplicate(row) } else { RowDifference::Extra(row) };
    differences.extend(right.into_iter().map(beyond));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(key_hash: i64, hashes: &[i64]) -> RowHash {
        RowHash { key_hash, hashes: hashes.to_vec(), key: vec![Some(key_hash.to_string())] }
    }

    #[test]
    fn sums_are_reduced_modulo_two_to_the_sixty_fourth() {
        assert_eq!(modular(None), Some(0));
        assert_eq!(modular(Some("-1")), Some(u64::MAX));
        assert_eq!(modular(Some("36893488147419103233")), Some(1));
        assert_eq!(modular(Some("1.5")), None);
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let differences = differing_rows(
            vec![row(1, &[1, 2]), row(2, &[5, 5]), row(3, &[7, 7])],
            vec![row(1, &[1, 3]), row(3, &[7, 7]), row(3, &[7, 7]), row(4, &[9, 9])],
        );
        assert_eq!(
            differences,
            [
                RowDifference::Changed { row: row(1, &[1, 2]), columns: vec![1] },
                RowDifference::Missing(row(2, &[5, 5])),
                RowDifference::Duplicate(row(3, &[7, 7])),
                RowDifference::Extra(row(4, &[9, 9])),
            ]
        );
    }

    #[test]
    fn copies_of_a_keyless_row_are_counted() {
        let differences = differing_rows(vec![row(1, &[]), row(1, &[])], vec![row(1, &[])]);
        assert_eq!(differences, [RowDifference::Missing(row(1, &[]))]);
    }

    #[test]
    fn buckets_that_only_one_side_has_differ() {
        let source: Buckets = [(1, (1, 1)), (2, (1, 2)), (3, (2, 2))].into();
        let target: Buckets = [(1, (1, 1)), (3, (1, 2)), (4, (1, 1))].into();
        assert_eq!(differing_buckets(&source, &target), [2, 3, 4]);
    }

    proptest! {
        #[test]
        fn subtracting_what_was_added_leaves_the_same(rows: u64, key: u64, sums: Vec<u64>, more: u64) {
            let counts = vec![Counts { nulls: key, ..Counts::default() }];
            let all = Aggregates { rows, key, sums: sums.clone(), counts: counts.clone() };
            let part = Aggregates { rows: more, key: more, sums: vec![more; sums.len()], counts };
            prop_assert_eq!(all.plus(&part).minus(&part), all);
        }

        #[test]
        fn equal_rows_in_any_order_do_not_differ(mut rows in prop::collection::vec((0_i64..9, 0_i64..3), 0..30)) {
            let source: Vec<RowHash> = rows.iter().map(|(key, hash)| row(*key, &[*hash])).collect();
            rows.reverse();
            let target = rows.iter().map(|(key, hash)| row(*key, &[*hash])).collect();
            prop_assert_eq!(differing_rows(source, target), []);
        }
    }
}
