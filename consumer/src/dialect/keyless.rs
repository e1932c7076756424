//! Keyless rows are a multiset of images: an update takes one row away and adds one. Of n equal rows exactly as many go as
//! events say.

use std::collections::HashMap;

use changelog::{Op, Position, Value};

use super::{Expect, Parameters, Statement, inserted, picked, statement};
use crate::Error;
use crate::array::{ArrayBuilder, Carrier};
use crate::event::RawEvent;
use crate::plan::{Image, TableChanges, decode};
use crate::relation::Relation;

/// What becomes of equal rows of a keyless table: how many more or fewer there are, and an event that has the image.
struct Balance<'a> {
    delta: i64,
    values: Vec<Value<'a>>,
    position: Position,
}

/// The net count of each image, taken from or added to the table.
///
/// # Errors
/// Corrupt bytes, or an image that is missing.
pub fn changes(changes: &TableChanges<'_>, out: &mut Vec<Statement>) -> Result<(), Error> {
    let relation = changes.relation;
    let columns: Vec<usize> = relation.writable().collect();
    if changes.keyless.iter().all(|event| event.header.op == Op::Create) {
        out.push(only_inserts(relation, &columns, &changes.keyless)?);
        return Ok(());
    }
    let mut balances: Vec<Balance<'_>> = Vec::new();
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut count = |event: &RawEvent, values: Vec<Value<'_>>, delta: i64, balances: &mut Vec<Balance<'_>>| {
        let place = *places.entry(image_bytes(relation, &values)).or_insert_with(|| {
            balances.push(Balance { delta: 0, values: Vec::new(), position: event.header.position });
            balances.len() - 1
        });
        balances[place].delta += delta;
        place
    };
    for event in &changes.keyless {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        if event.header.op != Op::Create {
            decode(relation, event, Image::Before, &mut before)?;
            let place = count(event, before.clone(), -1, &mut balances);
            balances[place].values = before.clone();
        }
        if event.header.op != Op::Delete {
            decode(relation, event, Image::After, &mut after)?;
            for (value, before) in after.iter_mut().zip(&before) {
                if *value == Value::Unchanged {
                    *value = *before;
                }
            }
            let place = count(event, after.clone(), 1, &mut balances);
            balances[place].values = after;
        }
    }
    let fewer: Vec<&Balance<'_>> = balances.iter().filter(|balance| balance.delta < 0).collect();
    let more: Vec<&Balance<'_>> = balances.iter().filter(|balance| balance.delta > 0).collect();
    if !fewer.is_empty() {
        out.push(delete_keyless(relation, &columns, &fewer)?);
    }
    if !more.is_empty() {
        let mut statement = insert_keyless(relation, &columns, &more)?;
        statement.only_after_success = !fewer.is_empty();
        out.push(statement);
    }
    Ok(())
}

/// Equal for equal images only: the text of each value, with its length.
fn image_bytes(relation: &Relation, values: &[Value<'_>]) -> Vec<u8> {
    let shape = relation.shape();
    let mut bytes = Vec::new();
    let mut text = String::new();
    for (value, column) in values.iter().zip(&shape.columns) {
        text.clear();
        if changelog::text::format_value(value, column.kind(), &mut text) {
            bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        } else {
            bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        }
    }
    bytes
}

fn delete_keyless(relation: &Relation, columns: &[usize], rows: &[&Balance<'_>]) -> Result<Statement, Error> {
    let mut parameters = Parameters::new(relation, columns.to_vec());
    let mut arrays = parameters.arrays(|push| {
        let mut values = Vec::new();
        for row in rows {
            picked(&row.values, columns, &mut values);
            push(&values);
        }
        Ok(())
    })?;
    let mut counts = ArrayBuilder::new(Carrier::Int8);
    for row in rows {
        counts.push_count(-row.delta);
    }
    arrays.push(counts.finish());
    let total: i64 = rows.iter().map(|row| -row.delta).sum();
    let position = rows.iter().map(|row| row.position).min().unwrap_or_default();
    let mut statement = statement(relation, "delete", position, Expect::Rows(total.unsigned_abs()));
    let table = &relation.rows;
    let values = (0..columns.len()).map(|at| parameters.value(at)).collect::<Vec<_>>().join(", ");
    let stored = (0..columns.len()).map(|at| format!("t.{}", parameters.name(at))).collect::<Vec<_>>().join(", ");
    // Equal means printed alike under the pinned settings, which is what the event says of the row: 1.0 is not 1.00.
    statement.sql = format!(
        "WITH w AS MATERIALIZED (SELECT ROW({values})::pg_catalog.text AS image, u.c{count} AS n FROM {source}), \
         s AS MATERIALIZED (SELECT t.tableoid AS o, t.ctid AS c, ROW({stored})::pg_catalog.text AS image, \
         pg_catalog.row_number() OVER (PARTITION BY ROW({stored})::pg_catalog.text) AS i FROM {table} AS t \
         WHERE ROW({stored})::pg_catalog.text IN (SELECT w.image FROM w)) \
         DELETE FROM {table} AS t USING s, w WHERE s.image = w.image AND s.i <= w.n AND t.ctid = s.c AND t.tableoid = s.o",
        count = columns.len(),
        source = parameters.source(&["int8[]"]),
    );
    statement.arrays = arrays;
    Ok(statement)
}

/// What most keyless tables are for: nothing to weigh against each other.
fn only_inserts(relation: &Relation, columns: &[usize], events: &[&RawEvent]) -> Result<Statement, Error> {
    let position = events.iter().map(|event| event.header.position).min().unwrap_or_default();
    inserted(relation, position, events.len(), |push| {
        let (mut image, mut values) = (Vec::new(), Vec::new());
        for event in events {
            decode(relation, event, Image::After, &mut image)?;
            picked(&image, columns, &mut values);
            push(&values);
        }
        Ok(())
    })
}

fn insert_keyless(relation: &Relation, columns: &[usize], rows: &[&Balance<'_>]) -> Result<Statement, Error> {
    let total: i64 = rows.iter().map(|row| row.delta).sum();
    let position = rows.iter().map(|row| row.position).min().unwrap_or_default();
    inserted(relation, position, total.unsigned_abs() as usize, |push| {
        let mut values = Vec::new();
        for row in rows {
            picked(&row.values, columns, &mut values);
            for _copy in 0..row.delta {
                push(&values);
            }
        }
        Ok(())
    })
}
