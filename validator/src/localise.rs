//! Names the rows and columns in which two snapshots differ, and why: buckets of key hashes, then rows, then values.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use crate::Error;
use crate::canonical::{BUCKETS, Layout};
use crate::cause::{self, Cause, Pair};
use crate::compare::{RowDifference, RowHash, differing_buckets, differing_rows};
use crate::images::Delta;
use crate::reader::{self, Given, Selection};
use crate::report::{Finding, key_json};
use crate::session::Session;

/// Buckets whose rows are looked at one by one; beyond, counts are minima.
const BUCKETS_MAX: usize = 32;
/// Differing rows whose values are read to explain them.
const EXPLAINED_MAX: usize = 500;

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
pub async fn keyed(sides: &mut Sides<'_>, selection: &Selection<'_>) -> Result<Vec<Finding>, Error> {
    let (rows, partial) = rows(sides, selection).await?;
    let mut findings = Vec::new();
    let mut changed: Vec<(RowHash, Vec<usize>)> = Vec::new();
    let mut kinds: BTreeMap<&'static str, Vec<Json>> = BTreeMap::new();
    for difference in rows {
        match difference {
            RowDifference::Missing(row) => kinds.entry("missing_row").or_default().push(key_json(&row.key)),
            RowDifference::Extra(row) => kinds.entry("extra_row").or_default().push(key_json(&row.key)),
            RowDifference::Duplicate(row) => kinds.entry("duplicate_row").or_default().push(key_json(&row.key)),
            RowDifference::Changed { row, columns } => changed.push((row, columns)),
        }
    }
    findings.extend(kinds.into_iter().map(|(cause, keys)| Finding::rows(1, None, cause, keys)));
    let changed: Vec<Changed> = changed
        .into_iter()
        .map(|(row, columns)| Changed { key: key_json(&row.key), source: row.key_hash, target: row.key_hash, columns })
        .collect();
    findings.extend(explain(sides, selection.condition, &changed).await?);
    findings.iter_mut().for_each(|finding| finding.count_is_minimum = partial);
    Ok(findings)
}

/// The differing rows of a keyless table, whose changes in flight are `delta`.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn keyless(sides: &mut Sides<'_>, selection: &Selection<'_>, delta: &Delta) -> Result<Vec<Finding>, Error> {
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
    let mut buckets = differing_buckets(&source, &target);
    let partial = buckets.len() > BUCKETS_MAX;
    buckets.truncate(BUCKETS_MAX);
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
    let mut findings = pair(sides, selection.condition, differing_rows(wanted, found)).await?;
    findings.iter_mut().for_each(|finding| finding.count_is_minimum |= partial);
    Ok(findings)
}

/// Differing rows, and whether there are more in buckets that were not looked at.
async fn rows(sides: &mut Sides<'_>, selection: &Selection<'_>) -> Result<(Vec<RowDifference>, bool), Error> {
    let (source, target) = tokio::try_join!(
        reader::buckets(sides.source, sides.source_layout, selection),
        reader::buckets(sides.target, sides.target_layout, selection)
    )?;
    let mut buckets = differing_buckets(&source, &target);
    let partial = buckets.len() > BUCKETS_MAX;
    buckets.truncate(BUCKETS_MAX);
    let (source, target) = tokio::try_join!(
        reader::row_hashes(sides.source, sides.source_layout, selection, &buckets),
        reader::row_hashes(sides.target, sides.target_layout, selection, &buckets)
    )?;
    Ok((differing_rows(source, target), partial))
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
async fn pair(sides: &mut Sides<'_>, condition: &str, rows: Vec<RowDifference>) -> Result<Vec<Finding>, Error> {
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            RowDifference::Missing(row) | RowDifference::Changed { row, .. } => missing.push(row.key_hash),
            RowDifference::Extra(row) | RowDifference::Duplicate(row) => extra.push(row.key_hash),
        }
    }
    let mut changed = Vec::new();
    if !missing.is_empty() && !extra.is_empty() && missing.len().max(extra.len()) <= EXPLAINED_MAX {
        let source: HashMap<i64, _> =
            reader::values(sides.source, sides.source_layout, condition, &missing).await?.into_iter().collect();
        let target: HashMap<i64, _> =
            reader::values(sides.target, sides.target_layout, condition, &extra).await?.into_iter().collect();
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
    let names = |hashes: &[i64]| hashes.iter().map(|hash| row_name(*hash)).collect::<Vec<_>>();
    let mut findings = Vec::new();
    for (cause, hashes) in [("missing_row", &missing), ("extra_row", &extra)] {
        if !hashes.is_empty() {
            findings.push(Finding::rows(1, None, cause, names(hashes)));
        }
    }
    findings.extend(explain(sides, condition, &changed).await?);
    Ok(findings)
}

/// How a report calls a row that has no key.
fn row_name(hash: i64) -> Json {
    Json::from(format!("row hash {hash:016x}"))
}

/// Findings by column and cause. Of many rows only the first are read; the others count with the column's first cause.
async fn explain(sides: &mut Sides<'_>, condition: &str, changed: &[Changed]) -> Result<Vec<Finding>, Error> {
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let read = &changed[..changed.len().min(EXPLAINED_MAX)];
    let source: Vec<i64> = read.iter().map(|row| row.source).collect();
    let target: Vec<i64> = read.iter().map(|row| row.target).collect();
    let (source, target) = tokio::try_join!(
        reader::values(sides.source, sides.source_layout, condition, &source),
        reader::values(sides.target, sides.target_layout, condition, &target)
    )?;
    let (source, target): (HashMap<i64, _>, HashMap<i64, _>) =
        (source.into_iter().collect(), target.into_iter().collect());
    let mut findings = Vec::new();
    let layout = sides.target_layout;
    for (nth, at) in layout.summed().into_iter().enumerate() {
        let rows: Vec<&Changed> = changed.iter().filter(|row| row.columns.contains(&nth)).collect();
        if rows.is_empty() {
            continue;
        }
        let text = |side: &HashMap<i64, Vec<Option<String>>>, hash: i64| {
            side.get(&hash).and_then(|row| row.get(at).cloned()).flatten()
        };
        let pairs: Vec<(Option<String>, Option<String>)> =
            rows.iter().take(EXPLAINED_MAX).map(|row| (text(&source, row.source), text(&target, row.target))).collect();
        let causes = causes(sides.target, &sides.source_layout.fields[at].base, &pairs).await?;
        let mut by_cause: Vec<(Cause, Vec<Json>)> = Vec::new();
        for (place, row) in rows.iter().enumerate() {
            let cause = causes.get(place).or(causes.first()).cloned().unwrap_or_else(|| "value_differs".into());
            match by_cause.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, keys)) => keys.push(row.key.clone()),
                None => by_cause.push((cause, vec![row.key.clone()])),
            }
        }
        for (cause, keys) in by_cause {
            let mut finding = Finding::rows(2, Some(&layout.fields[at].name), cause.name, keys);
            finding.detail = cause.detail;
            findings.push(finding);
        }
    }
    Ok(findings)
}

/// The cause of each pair.
async fn causes(
    target: &mut Session,
    base: &crate::definition::BaseType,
    pairs: &[(Option<String>, Option<String>)],
) -> Result<Vec<Cause>, Error> {
    if cause::swapped(pairs) {
        return Ok(vec!["swapped_between_rows".into(); pairs.len()]);
    }
    // Only a server knows the normal forms; only texts beyond ASCII have several.
    let asked: Vec<usize> = (0..pairs.len())
        .filter(|at| matches!(&pairs[*at], (Some(a), Some(b)) if !a.is_ascii() && !b.is_ascii()))
        .collect();
    let (left, right): (Vec<String>, Vec<String>) = asked
        .iter()
        .map(|at| (pairs[*at].0.clone().unwrap_or_default(), pairs[*at].1.clone().unwrap_or_default()))
        .unzip();
    let same = if asked.is_empty() { Vec::new() } else { reader::same_normalized(target, left, right).await? };
    let same: HashMap<usize, bool> = asked.into_iter().zip(same).collect();
    let of_pair = |(at, (a, b)): (usize, &(Option<String>, Option<String>))| {
        let same_normalized = same.get(&at).copied().unwrap_or(false);
        cause::of(base, Pair { source: a.as_deref(), target: b.as_deref(), same_normalized })
    };
    Ok(pairs.iter().enumerate().map(of_pair).collect())
}
