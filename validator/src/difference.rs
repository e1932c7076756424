//! The rows and values of one table that differ, gathered over its ranges within bounds, and what is reported of them. Pure.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use crate::cause::column::{self, Facts};
use crate::cause::{Kind, Read};
use crate::definition::TableDefinition;
use crate::report::{Finding, KEYS_MAX, RECORDS_MAX, Record, RecordValue};

/// Bytes of differing values that are kept of one table; those beyond are counted.
const VALUES_BYTES_MAX: usize = 16 << 20;

/// One row that only one side has, or that the target has too often.
#[derive(Clone, Debug, PartialEq)]
pub struct LoneRow {
    pub key: Json,
    /// Of all fields; empty if they were not read.
    pub values: Vec<Option<Read>>,
}

/// One value that is not the same on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueDifference {
    pub key: Json,
    /// Index into the layout's fields.
    pub field: usize,
    pub source: Option<Read>,
    pub target: Option<Read>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    pub missing: Vec<LoneRow>,
    pub extra: Vec<LoneRow>,
    pub duplicate: Vec<LoneRow>,
    pub values: Vec<ValueDifference>,
    /// Values that differ and were not read, by field: how many, and the first keys.
    pub unread: BTreeMap<usize, (u64, Vec<Json>)>,
    /// Rows counted beyond those that are kept: missing, extra, duplicate.
    pub beyond: [u64; 3],
    /// Not all differing rows were looked at.
    pub minimum: bool,
    /// Of the values that are kept.
    pub bytes: usize,
}

impl Differences {
    pub fn is_empty(&self) -> bool {
        let rows = self.missing.len() + self.extra.len() + self.duplicate.len() + self.values.len();
        rows == 0 && self.unread.is_empty()
    }

    pub fn unread(&mut self, field: usize, key: Json) {
        let (count, keys) = self.unread.entry(field).or_default();
        *count += 1;
        if keys.len() < KEYS_MAX {
            keys.push(key);
        }
    }

    /// Takes another range's, within the bounds of a table.
    pub fn extend(&mut self, other: Differences) {
        self.minimum |= other.minimum;
        let kinds = [
            (&mut self.missing, other.missing),
            (&mut self.extra, other.extra),
            (&mut self.duplicate, other.duplicate),
        ];
        for (at, (rows, more)) in kinds.into_iter().enumerate() {
            self.beyond[at] += other.beyond[at];
            for row in more {
                self.bytes += row.values.iter().flatten().map(|value| value.start.len() + 48).sum::<usize>();
                if rows.len() < RECORDS_MAX && self.bytes <= VALUES_BYTES_MAX {
                    rows.push(row);
                } else {
                    self.beyond[at] += 1;
                }
            }
        }
        for value in other.values {
            let length = |read: &Option<Read>| read.as_ref().map_or(0, |read| read.start.len());
            self.bytes += length(&value.source) + length(&value.target) + 96;
            if self.bytes <= VALUES_BYTES_MAX {
                self.values.push(value);
            } else {
                self.unread(value.field, value.key);
            }
        }
        for (field, (count, keys)) in other.unread {
            let (known, held) = self.unread.entry(field).or_default();
            *known += count;
            held.extend(keys);
            held.truncate(KEYS_MAX);
        }
    }
}

/// What a row has beside its key.
type Rest = Vec<Option<String>>;

/// A table as its differences are explained.
#[derive(Clone, Copy, Debug)]
pub struct Explaining<'a> {
    pub source: &'a TableDefinition,
    pub target: &'a TableDefinition,
    /// Names of the fields that both sides have, in the layout's order.
    pub fields: &'a [String],
    /// Indexes of the key's.
    pub key: &'a [usize],
    pub rows_source: u64,
    pub show_values: bool,
}

/// What there is to report: findings, records, and how many records were left out.
#[derive(Debug, Default)]
pub struct Reported {
    pub findings: Vec<Finding>,
    pub records: Vec<Record>,
    pub left_out: u64,
    /// Columns that share the records, so that one does not take them all; 0 stands for one.
    columns: usize,
}

impl Reported {
    fn record(&mut self, record: Record) {
        if self.records.len() < RECORDS_MAX {
            self.records.push(record);
        } else {
            self.left_out += 1;
        }
    }
}

impl Explaining<'_> {
    /// Findings of levels 1 and 2, by cause.
    pub fn report(&self, mut differences: Differences) -> Reported {
        let mut reported = Reported::default();
        self.changed_keys(&mut differences, &mut reported);
        let Differences { missing, extra, duplicate, beyond, minimum, .. } = &differences;
        let kinds = [("missing_row", missing), ("extra_row", extra), ("duplicate_row", duplicate)];
        for ((cause, rows), beyond) in kinds.into_iter().zip(beyond) {
            if rows.is_empty() && *beyond == 0 {
                continue;
            }
            let mut finding = Finding::rows(1, None, cause, rows.iter().map(|row| row.key.clone()).collect());
            finding.count += beyond;
            reported.findings.push(finding);
            rows.iter().for_each(|row| reported.record(Record::row(1, row.key.clone(), cause)));
            reported.left_out += beyond;
        }
        self.values(&differences, &mut reported);
        reported.findings.iter_mut().for_each(|finding| finding.count_is_minimum |= minimum);
        reported
    }

    /// A missing and an extra row that are equal but for the key are one row whose key changed.
    fn changed_keys(&self, differences: &mut Differences, reported: &mut Reported) {
        let rest = |row: &LoneRow| -> Option<Rest> {
            let of_rest = |(at, value): (usize, &Option<Read>)| {
                (!self.key.contains(&at)).then(|| value.as_ref().map(|value| value.start.clone()))
            };
            let rest: Rest = row.values.iter().enumerate().filter_map(of_rest).collect();
            rest.iter().any(Option::is_some).then_some(rest)
        };
        let mut by_rest: HashMap<Rest, (Vec<usize>, Vec<usize>)> = HashMap::new();
        for (at, row) in differences.missing.iter().enumerate() {
            rest(row).into_iter().for_each(|rest| by_rest.entry(rest).or_default().0.push(at));
        }
        for (at, row) in differences.extra.iter().enumerate() {
            rest(row).into_iter().for_each(|rest| by_rest.entry(rest).or_default().1.push(at));
        }
        let mut pairs: Vec<(usize, usize)> = by_rest
            .into_values()
            .filter_map(|(missing, extra)| match (missing.as_slice(), extra.as_slice()) {
                ([one], [other]) => Some((*one, *other)),
                _ => None,
            })
            .collect();
        if pairs.is_empty() || self.key.is_empty() {
            return;
        }
        pairs.sort_unstable();
        let key_of = |row: &LoneRow, at: usize| row.values.get(at).cloned().flatten();
        let mut changed: BTreeMap<usize, Vec<ValueDifference>> = BTreeMap::new();
        for (missing, extra) in &pairs {
            let (row, other) = (&differences.missing[*missing], &differences.extra[*extra]);
            for at in self.key.iter().filter(|at| key_of(row, **at) != key_of(other, **at)) {
                let (source, target) = (key_of(row, *at), key_of(other, *at));
                changed.entry(*at).or_default().push(ValueDifference {
                    key: row.key.clone(),
                    field: *at,
                    source,
                    target,
                });
            }
        }
        for (field, values) in changed {
            self.column(1, Some("key_changed"), field, &values.iter().collect::<Vec<_>>(), 0, reported);
        }
        let (gone, come): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
        let without = |rows: &mut Vec<LoneRow>, places: &[usize]| {
            let mut at = 0;
            rows.retain(|_| {
                at += 1;
                !places.contains(&(at - 1))
            });
        };
        without(&mut differences.missing, &gone);
        without(&mut differences.extra, &come);
    }

    fn values(&self, differences: &Differences, reported: &mut Reported) {
        let mut by_field: BTreeMap<usize, Vec<&ValueDifference>> = BTreeMap::new();
        for value in &differences.values {
            by_field.entry(value.field).or_default().push(value);
        }
        reported.columns = by_field.len();
        for (field, other) in exchanged(&by_field) {
            let rows = by_field.remove(&field).unwrap_or_default();
            let keys = rows.iter().map(|row| row.key.clone()).collect();
            let mut finding = Finding::rows(2, Some(&self.fields[field]), "columns_swapped", keys);
            finding.detail = Some(format!("with column {}", self.fields[other]));
            for row in rows {
                reported.record(self.record(2, row, "columns_swapped", finding.detail.as_deref()));
            }
            finding.count += differences.unread.get(&field).map_or(0, |(count, _)| *count);
            reported.findings.push(finding);
        }
        let unread = |field: &usize| differences.unread.get(field).map_or(0, |(count, _)| *count);
        for (field, mut rows) in by_field {
            // In the order of the key: what stands in a neighbour's row is seen then.
            rows.sort_by_cached_key(|row| order(&row.key));
            self.column(2, None, field, &rows, unread(&field), reported);
        }
        for (field, (count, keys)) in &differences.unread {
            reported.left_out += count;
            if !differences.values.iter().any(|value| value.field == *field) {
                let mut finding = Finding::rows(2, Some(&self.fields[*field]), "value_differs", keys.clone());
                finding.count = *count;
                reported.findings.push(finding);
            }
        }
    }

    /// One column's findings. `cause` is said in place of what the values show, which then goes into the detail; `unread`
    /// more values count with the cause of most.
    pub fn column(
        &self,
        level: u8,
        cause: Option<&str>,
        field: usize,
        values: &[&ValueDifference],
        unread: u64,
        reported: &mut Reported,
    ) {
        let name = self.fields[field].as_str();
        let rows: Vec<column::Row<'_>> = values.iter().map(|value| row_of(value)).collect();
        let (Some(source), Some(target)) = (self.source.column(name), self.target.column(name)) else { return };
        let facts = Facts {
            kind: Kind { source: &source.base, target: &target.base, labels: &source.labels },
            defaults: [source.default.as_deref(), target.default.as_deref()],
            some_equal: self.rows_source > values.len() as u64 + unread,
        };
        let mut kept = 0;
        for (nth, part) in column::of(facts, &rows).into_iter().enumerate() {
            let keys = part.rows.iter().map(|at| values[*at].key.clone()).collect();
            let mut finding = Finding::rows(level, Some(name), cause.unwrap_or(part.name), keys);
            finding.detail = match cause {
                Some(_) => {
                    Some([Some(part.name.to_owned()), part.detail].into_iter().flatten().collect::<Vec<_>>().join(" "))
                }
                None => part.detail,
            };
            finding.count += if nth == 0 { unread } else { 0 };
            let share = (RECORDS_MAX / reported.columns.max(1)).saturating_sub(kept);
            kept += part.rows.len().min(share);
            reported.left_out += part.rows.len().saturating_sub(share) as u64;
            for at in part.rows.iter().take(share) {
                reported.record(self.record(level, values[*at], &finding.cause, finding.detail.as_deref()));
            }
            reported.findings.push(finding);
        }
    }

    /// A value that differs, as the report shows it.
    pub fn record(&self, level: u8, value: &ValueDifference, cause: &str, detail: Option<&str>) -> Record {
        let name = &self.fields[value.field];
        let shown = |definition: &TableDefinition, read: &Option<Read>| {
            let kind = definition.column(name).map_or("", |column| column.type_name.as_str());
            RecordValue::of(kind, read.as_ref().map(Read::text), self.show_values)
        };
        Record {
            level,
            key: value.key.clone(),
            column: Some(name.clone()),
            cause: cause.to_owned(),
            detail: detail.map(str::to_owned),
            source: Some(shown(self.source, &value.source)),
            target: Some(shown(self.target, &value.target)),
            differs_at: value
                .source
                .as_ref()
                .zip(value.target.as_ref())
                .map(|(a, b)| first_difference(&a.start, &b.start)),
        }
    }
}

fn row_of(value: &ValueDifference) -> column::Row<'_> {
    column::Row { source: value.source.as_ref().map(Read::text), target: value.target.as_ref().map(Read::text) }
}

/// Characters from 0 up to the first that is not the same.
fn first_difference(a: &str, b: &str) -> u64 {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count() as u64
}

/// Numbers by their value, texts by their bytes.
fn order(key: &Json) -> (i128, String) {
    let text = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
    (text.parse().unwrap_or(0), text)
}

/// Columns whose values stand in each other's place in nearly all rows in which they differ: each with its other.
fn exchanged(by_field: &BTreeMap<usize, Vec<&ValueDifference>>) -> Vec<(usize, usize)> {
    let mut by_key: HashMap<String, Vec<&ValueDifference>> = HashMap::new();
    for value in by_field.values().flatten() {
        by_key.entry(value.key.to_string()).or_default().push(value);
    }
    let mut pairs: HashMap<(usize, usize), usize> = HashMap::new();
    // Wide rows that differ throughout are not two columns swapped.
    for values in by_key.values().filter(|values| (2..=16).contains(&values.len())) {
        for (at, a) in values.iter().enumerate() {
            for b in values[at + 1..].iter().filter(|b| column::exchanged(&row_of(a), &row_of(b))) {
                *pairs.entry((a.field, b.field)).or_default() += 1;
            }
        }
    }
    let most = |field: &usize, count: usize| by_field.get(field).is_some_and(|rows| count * 10 >= rows.len() * 9);
    let mut found: Vec<(usize, usize)> = pairs
        .into_iter()
        .filter(|((a, b), count)| most(a, *count) && most(b, *count))
        .flat_map(|((a, b), _)| [(a, b), (b, a)])
        .collect();
    found.sort_unstable();
    found.dedup_by_key(|(field, _)| *field);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{BaseType, ColumnDefinition};

    fn table() -> TableDefinition {
        let base = BaseType { schema: "pg_catalog".into(), name: "text".into(), ..BaseType::default() };
        let column = |name: &str| ColumnDefinition {
            name: name.into(),
            type_name: "text".into(),
            base: base.clone(),
            ..ColumnDefinition::default()
        };
        TableDefinition { columns: ["id", "a", "b"].map(column).to_vec(), ..TableDefinition::default() }
    }

    fn read(text: &str) -> Option<Read> {
        Some(Read { start: text.into(), length: text.chars().count() as u64 })
    }

    fn reported(differences: Differences, show_values: bool) -> Reported {
        let (table, fields) = (table(), ["id", "a", "b"].map(str::to_owned));
        let (source, target) = (&table, &table);
        Explaining { source, target, fields: &fields, key: &[0], rows_source: 9_999, show_values }.report(differences)
    }

    #[test]
    fn a_missing_and_an_extra_row_that_are_equal_otherwise_are_one_changed_key() {
        let row = |key: &str, a: &str| LoneRow { key: Json::from(key), values: vec![read(key), read(a), None] };
        let differences = Differences {
            missing: vec![row("k1", "x"), row("k2", "y")],
            extra: vec![row("K1", "x"), row("k3", "z")],
            ..Differences::default()
        };
        let reported = reported(differences, false);
        let found: Vec<(&str, u64, Option<&str>)> =
            reported.findings.iter().map(|f| (f.cause.as_str(), f.count, f.detail.as_deref())).collect();
        let key = ("key_changed", 1, Some("case_changed to upper case"));
        assert_eq!(found, [key, ("missing_row", 1, None), ("extra_row", 1, None)]);
    }

    #[test]
    fn records_are_shared_among_columns_and_what_is_left_out_is_counted() {
        let mut differences = Differences::default();
        for row in 0..RECORDS_MAX {
            for field in [1, 2] {
                let (source, target) = (read("Abc"), read("abc"));
                let key = Json::from(row.to_string());
                differences.values.push(ValueDifference { key, field, source, target });
            }
        }
        differences.unread(1, Json::from("beyond"));
        let reported = reported(differences, false);
        let of = |column: &str| reported.records.iter().filter(|r| r.column.as_deref() == Some(column)).count();
        assert_eq!((of("a"), of("b"), reported.left_out), (RECORDS_MAX / 2, RECORDS_MAX / 2, RECORDS_MAX as u64 + 1));
        assert_eq!(reported.findings[0].count, RECORDS_MAX as u64 + 1);
        assert!(reported.records.iter().all(|record| record.source.as_ref().is_some_and(|value| value.text.is_none())));
    }

    #[test]
    fn values_beyond_the_bound_are_counted_and_not_kept() {
        let large = || Some(Read { start: "x".repeat(1 << 20), length: 1 << 20 });
        let mut all = Differences::default();
        for key in 0..20 {
            let value = ValueDifference { key: Json::from(key), field: 1, source: large(), target: large() };
            all.extend(Differences { values: vec![value], ..Differences::default() });
        }
        assert!(all.values.len() < 8 && all.bytes > VALUES_BYTES_MAX);
        assert_eq!(all.values.len() as u64 + all.unread[&1].0, 20);
    }
}
