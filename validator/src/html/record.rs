//! The rows and values that differ, one by one: the two sides beside each other, the difference marked. Pure.

use maud::{Markup, html};

use super::{explained, number, text};
use crate::report::{Record, TableReport};

/// Of one table.
const RECORDS_MAX: usize = 200;
/// Of one column and cause; the other columns are to be seen, too.
const OF_GROUP_MAX: usize = 6;
const GROUPS_MAX: usize = 40;
/// Rows that one side lacks are named by their keys alone.
const KEYS_MAX: usize = 60;

/// Records of one column and cause.
struct Group<'a> {
    first: &'a Record,
    records: Vec<&'a Record>,
}

fn groups(records: &[Record]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for record in records {
        let alike = |group: &&mut Group<'_>| {
            let first = group.first;
            (first.level, &first.column, &first.cause, &first.detail)
                == (record.level, &record.column, &record.cause, &record.detail)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.records.push(record),
            None => groups.push(Group { first: record, records: vec![record] }),
        }
    }
    groups
}

pub fn records(table: &TableReport) -> Markup {
    let all = groups(&table.records);
    let mut room = RECORDS_MAX;
    let mut shown = 0;
    let blocks: Vec<Markup> = all
        .iter()
        .take(GROUPS_MAX)
        .filter_map(|group| {
            let values = group.first.column.is_some()
                && group.records.iter().any(|record| record.source.is_some() || record.target.is_some());
            let taken = group.records.len().min(if values { OF_GROUP_MAX } else { KEYS_MAX }).min(room);
            (room, shown) = (room - taken, shown + taken);
            let records = &group.records[..taken];
            (taken > 0).then(|| if values { beside(group, records) } else { named(group, records) })
        })
        .collect();
    let left_out = table.records.len() as u64 - shown as u64 + table.records_left_out;
    html! {
        @if !table.records.is_empty() {
            h3 { "Rows that differ" }
            @for block in &blocks { (block) }
            @if left_out > 0 {
                p.note { (number::count(left_out)) " more are known. The report in JSON (" code { "--json FILE" } ") has up to 1 000 of a table." }
            }
        }
    }
}

fn title(group: &Group<'_>) -> Markup {
    let first = group.first;
    html! {
        @if let Some(column) = &first.column { code.name { (text::shown(column)) } " " }
        strong { (explained(&first.cause)) }
        @if let Some(detail) = &first.detail { span.detail { (text::brief(detail, 200)) } }
    }
}

fn of(shown: usize, group: &Group<'_>) -> Markup {
    let all = group.records.len();
    html! { @if shown < all { span.note { (number::count(shown as u64)) " of " (number::count(all as u64)) } } }
}

fn beside(group: &Group<'_>, records: &[&Record]) -> Markup {
    let masked = records
        .iter()
        .all(|record| [&record.source, &record.target].into_iter().flatten().all(|value| value.text.is_none()));
    html! {
        div.records {
            table role="table" {
                caption { (title(group)) " " (of(records.len(), group)) }
                thead role="rowgroup" {
                    tr role="row" {
                        th scope="col" role="columnheader" { "Key" }
                        th scope="col" role="columnheader" { span.key-source {} "Source" }
                        th scope="col" role="columnheader" { span.key-target {} "Target" }
                        @if masked { th.n scope="col" role="columnheader" { "Differs from character" } }
                    }
                }
                tbody role="rowgroup" {
                    @for record in records {
                        @let (source, target) = text::compared(record.source.as_ref(), record.target.as_ref(), record.differs_at);
                        tr role="row" {
                            th scope="row" role="rowheader" { code.key { (text::key(&record.key)) } }
                            td role="cell" data-side="Source" { (source) }
                            td role="cell" data-side="Target" { (target) }
                            @if masked { td.n role="cell" data-side="Differs from character" { (record.differs_at.map_or_else(|| "–".to_owned(), |at| number::count(at + 1))) } }
                        }
                    }
                }
            }
        }
    }
}

fn named(group: &Group<'_>, records: &[&Record]) -> Markup {
    html! {
        div.records.named {
            p { (title(group)) " " (of(records.len(), group)) }
            p.keys { @for record in records { code.key { (text::key(&record.key)) } " " } }
        }
    }
}
