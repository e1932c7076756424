//! What a full comparison of a table has proved, and from where on its change topic tells what must be compared again. Pure.
//!
//! Every event below the offsets was in its topic before the comparison's first snapshot, so it was committed below the position
//! that the comparison reached: it is in what was compared, or was settled there. What changes the target's rows without an
//! event (another copy of the table, rows read again, another lane) changes the fingerprint, and then nothing is covered. So does a
//! change of the columns. Whoever writes to the target beside dflux is found by the next full comparison only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::definition::TableDefinition;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Everything committed on the source below this position was in the comparison.
    pub through: String,
    /// By partition of the table's change topic, the first offset that was not; a partition that is not named, from its beginning.
    pub offsets: BTreeMap<i32, i64>,
    /// Of what the comparison rested on.
    pub fingerprint: String,
}

/// What the target says of the table's copy and of its lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub consistent_point: Option<String>,
    /// It moves when rows are read again.
    pub exact_from: Option<String>,
    pub state: Option<String>,
    /// Its chunks, and when the last of them was loaded.
    pub copy: Option<String>,
    /// OIDs and files of the two tables: a rewritten or exchanged table is another.
    pub files: Vec<String>,
}

/// Hexadecimal; equal as long as the columns, the key and the copy are the same.
pub fn fingerprint(source: &TableDefinition, target: &TableDefinition, standing: &Standing) -> String {
    let columns = |of: &TableDefinition| {
        let named = |column: &crate::definition::ColumnDefinition| format!("{:?} {:?}", column.name, column.base);
        of.columns.iter().map(named).collect::<Vec<_>>()
    };
    let all = format!("{:?} {:?} {:?} {:?} {standing:?}", columns(source), columns(target), source.key, target.key);
    // FNV-1a: what must never collide by accident within one table's history, and be the same in every build.
    let hash = all
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::ColumnDefinition;

    #[test]
    fn what_a_comparison_rested_on_is_told_from_anything_else() {
        let table = |columns: &[&str]| TableDefinition {
            columns: columns
                .iter()
                .map(|name| ColumnDefinition { name: (*name).into(), ..Default::default() })
                .collect(),
            key: vec!["a".into()],
            ..TableDefinition::default()
        };
        let (plain, more) = (table(&["a", "b"]), table(&["a", "b", "c"]));
        let first = Standing::default();
        let of = |source: &TableDefinition, standing: &Standing| fingerprint(source, &plain, standing);
        assert_eq!(of(&plain, &first), of(&plain, &first));
        assert_ne!(of(&plain, &first), of(&more, &first));
        assert_ne!(of(&plain, &first), of(&plain, &Standing { state: Some("1 live".into()), ..first.clone() }));
        assert_ne!(of(&plain, &first), of(&plain, &Standing { exact_from: Some("0/1".into()), ..first.clone() }));
    }
}
