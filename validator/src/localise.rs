//! Names the rows and columns in which two snapshots differ, and why: buckets of key hashes, then rows, then values.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::Error;
use crate::canonical::{BUCKETS, Layout};
use crate::cause::Read;
use crate::compare::{Buckets, RowDifference, RowHash, differing_buckets, differing_rows};
use crate::difference::{Differences, LoneRow, ValueDifference};
use crate::images::Delta;
use crate::reader::{self, Given, Selection};
use crate::report::{RECORDS_MAX, key_json};
use crate::session::Session;

/// Rows of differing buckets that are looked at one by one, if one bucket has not more; beyond, counts are minima.
const LOOKED_AT_MAX: u64 = 10_000;
/// Differing rows whose values are read to explain them.
const EXPLAINED_MAX: usize = RECORDS_MAX;

/// The two open snapshots and how each is asked.
#[derive(Debug)]
pub struct Sides<'a> {
    pub source: &'a mut Session,
    pub target: &'a mut Session,
    pub source_layout: &'a Layout,
    pub target_layout: &'a Layout,
}

/// The differing rows of a keyed table among the selected rows.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn keyed(sides: &mut Sides<'_>, selection: &Selection<'_>) -> Result<Differences, Error> {
    let (rows, minimum) = rows(sides, selection).await?;
    let mut differences = Differences { minimum, ..Differences::default() };
    let (mut missing, mut extra, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for difference in rows {
        match difference {
            RowDifference::Missing(row) => missing.push(row),
            RowDifference::Extra(row) => extra.push(row),
            RowDifference::Duplicate(row) => {
                differences.duplicate.push(LoneRow { key: key_json(&row.key), values: Vec::new() });
            }
            RowDifference::Changed { row, columns } => {
                changed.push(Changed { key: key_json(&row.key), source: row.key_hash, target: row.key_hash, columns })
            }
        }
    }
    let hashes = |rows: &[RowHash]| rows.iter().take(EXPLAINED_MAX).map(|row| row.key_hash).collect::<Vec<_>>();
    // The values show whether a missing and an extra row are one whose key changed.
    let (lost, come) = (hashes(&missing), hashes(&extra));
    let (of_missing, of_extra) = tokio::try_join!(
        reader::values(sides.source, sides.source_layout, selection.condition, &lost),
        reader::values(sides.target, sides.target_layout, selection.condition, &come)
    )?;
    let lone = |rows: Vec<RowHash>, mut values: HashMap<i64, Vec<Option<Read>>>| {
        let one = |row: RowHash| LoneRow {
            key: key_json(&row.key),
            values: values.remove(&row.key_hash).unwrap_or_default(),
        };
        rows.into_iter().map(one).collect::<Vec<_>>()
    };
    differences.missing = lone(missing, of_missing);
    differences.extra = lone(extra, of_extra);
    explain(sides, selection.condition, changed, &mut differences).await?;
    Ok(differences)
}

/// The differing rows of a keyless table, whose changes in flight are `delta`.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn keyless(sides: &mut Sides<'_>, selection: &Selection<'_>, delta: &Delta) -> Result<Differences, Error> {
    let layout = sides.target_layout;
    let all: Vec<usize> = (0..layout.fields.len()).collect();
    let given = |rows: &[Vec<Option<String>>]| Given::new(all.clone(), rows.iter().cloned());
    let added = reader::given_hashes(sides.target, layout, &given(&delta.added)).await?;
    let removed = reader::given_hashes(sides.target, layout, &given(&delta.removed)).await?;
    let (mut source, target) = tokio::try_join!(
        reader::buckets(sides.source, sides.source_layout, selection),
        reader::buckets(sides.target, sides.target_layout, selection)
    )?;
    for (hashes, sign) in [(&added, 1_u64), (&removed, u64::MAX)] {
        for hash in hashes {
            let bucket = source.entry(hash & (BUCKETS - 1)).or_default();
            bucket.0 = bucket.0.wrapping_add(sign);
            bucket.1 = bucket.1.wrapping_add((*hash as u64).wrapping_mul(sign));
        }
    }
    source.retain(|_, held| *held != (0, 0));
    let (buckets, partial) = looked_at(&source, &target);
    let (mut wanted, found) = tokio::try_join!(
        reader::row_hashes(sides.source, sides.source_layout, selection, &buckets),
        reader::row_hashes(sides.target, sides.target_layout, selection, &buckets)
    )?;
    let within = |hash: &&i64| buckets.contains(&(**hash & (BUCKETS - 1)));
    wanted.extend(added.iter().filter(within).map(|hash| RowHash { key_hash: *hash, hashes: vec![], key: vec![] }));
    for hash in removed.iter().filter(within) {
        if let Some(at) = wanted.iter().position(|row| row.key_hash == *hash) {
            wanted.swap_remove(at);
        }
    }
    let mut differences = pair(sides, selection.condition, differing_rows(wanted, found)).await?;
    differences.minimum |= partial;
    Ok(differences)
}

/// Differing rows, and whether there are more in buckets that were not looked at.
async fn rows(sides: &mut Sides<'_>, selection: &Selection<'_>) -> Result<(Vec<RowDifference>, bool), Error> {
    let (source, target) = tokio::try_join!(
        reader::buckets(sides.source, sides.source_layout, selection),
        reader::buckets(sides.target, sides.target_layout, selection)
    )?;
    let (buckets, partial) = looked_at(&source, &target);
    let (source, target) = tokio::try_join!(
        reader::row_hashes(sides.source, sides.source_layout, selection, &buckets),
        reader::row_hashes(sides.target, sides.target_layout, selection, &buckets)
    )?;
    Ok((differing_rows(source, target), partial))
}

/// The differing buckets whose rows are read, and whether there are more.
fn looked_at(source: &Buckets, target: &Buckets) -> (Vec<i64>, bool) {
    let mut buckets = differing_buckets(source, target);
    let all = buckets.len();
    let mut rows = 0;
    let held = |side: &Buckets, bucket: &i64| side.get(bucket).map_or(0, |(rows, _)| *rows);
    buckets.retain(|bucket| {
        let first = rows == 0;
        rows += held(source, bucket).max(held(target, bucket)).max(1);
        first || rows <= LOOKED_AT_MAX
    });
    let partial = buckets.len() < all;
    (buckets, partial)
}

/// A row that both sides have and that differs.
struct Changed {
    key: Json,
    source: i64,
    target: i64,
    /// Indexes into the summed columns.
    columns: Vec<usize>,
}

/// A row of a keyless table is known by its whole image, so a changed one is a missing and an extra one: the two that have
/// the most columns in common are taken for one.
async fn pair(sides: &mut Sides<'_>, condition: &str, rows: Vec<RowDifference>) -> Result<Differences, Error> {
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            RowDifference::Missing(row) | RowDifference::Changed { row, .. } => missing.push(row.key_hash),
            RowDifference::Extra(row) | RowDifference::Duplicate(row) => extra.push(row.key_hash),
        }
    }
    let mut changed = Vec::new();
    if !missing.is_empty() && !extra.is_empty() && missing.len().max(extra.len()) <= EXPLAINED_MAX {
        let source = reader::values(sides.source, sides.source_layout, condition, &missing).await?;
        let target = reader::values(sides.target, sides.target_layout, condition, &extra).await?;
        missing.retain(|hash| {
            let Some(wanted) = source.get(hash) else { return true };
            let common = |at: &usize| -> usize {
                let found = extra.get(*at).and_then(|hash| target.get(hash));
                found.map_or(0, |found| wanted.iter().zip(found).filter(|(a, b)| a == b).count())
            };
            let Some(best) = (0..extra.len()).max_by_key(common).filter(|best| common(best) > 0) else { return true };
            let other = extra.swap_remove(best);
            let Some(found) = target.get(&other) else { return true };
            let columns = wanted.iter().zip(found).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
            changed.push(Changed { key: row_name(*hash), source: *hash, target: other, columns });
            false
        });
    }
    let lone = |hashes: Vec<i64>| {
        hashes.into_iter().map(|hash| LoneRow { key: row_name(hash), values: Vec::new() }).collect::<Vec<_>>()
    };
    let mut differences = Differences { missing: lone(missing), extra: lone(extra), ..Differences::default() };
    explain(sides, condition, changed, &mut differences).await?;
    Ok(differences)
}

/// How a report calls a row that has no key.
fn row_name(hash: i64) -> Json {
    Json::from(format!("row hash {hash:016x}"))
}

/// Reads the values of the first of the changed rows; the others are counted.
async fn explain(
    sides: &mut Sides<'_>,
    condition: &str,
    changed: Vec<Changed>,
    differences: &mut Differences,
) -> Result<(), Error> {
    if changed.is_empty() {
        return Ok(());
    }
    let read = &changed[..changed.len().min(EXPLAINED_MAX)];
    let source: Vec<i64> = read.iter().map(|row| row.source).collect();
    let target: Vec<i64> = read.iter().map(|row| row.target).collect();
    let (source, target) = tokio::try_join!(
        reader::values(sides.source, sides.source_layout, condition, &source),
        reader::values(sides.target, sides.target_layout, condition, &target)
    )?;
    let summed = sides.target_layout.summed();
    for row in changed {
        let values = source.get(&row.source).zip(target.get(&row.target));
        for field in row.columns.iter().filter_map(|nth| summed.get(*nth).copied()) {
            let Some((source, target)) = values else {
                differences.unread(field, row.key.clone());
                continue;
            };
            let value = |of: &[Option<Read>]| of.get(field).cloned().flatten();
            let (source, target) = (value(source), value(target));
            differences.values.push(ValueDifference { key: row.key.clone(), field, source, target });
        }
    }
    Ok(())
}
