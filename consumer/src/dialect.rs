//! Steps to SQL: one statement per (table, operation, column shape), its rows as array parameters.
//!
//! The text depends on table, operation and shape only, so that prepared statements are few and stay. Values go in their
//! binary form where the type is a builtin scalar, else as text that the target's own input function reads, by a cast
//! without a modifier (`'12345'::varchar(3)` would truncate silently); the assignment to the column then applies it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use changelog::table::{quote_identifier, quote_literal};
use changelog::{Op, Position, TableName, Value};

use crate::Error;
use crate::array::{ArrayBuilder, Carrier, RawArray};
use crate::event::RawEvent;
use crate::plan::{Change, Image, Mode, Net, Row, Step, TableChanges, after_image, decode};
use crate::relation::{Relation, TargetColumn, printed};

mod copy;
mod keyless;

/// What the count of affected rows means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Exactly this many, else the target differs from what the event says.
    Rows(u64),
    /// Any number.
    Any,
    /// The statement returns the keys (as text arrays) of rows that were there; keys of this many rows were asked for.
    Found,
}

/// One statement with its parameters.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Each parameter's number stands behind a NUL, which no identifier can hold; see [`Statement::text`].
    sql: String,
    pub arrays: Vec<RawArray>,
    /// For a COPY, which has no parameters.
    pub rows: Option<copy::Rows>,
    pub expect: Expect,
    pub table: TableName,
    pub op: &'static str,
    /// Of the first event in it.
    pub position: Position,
    /// Key texts per row, for `Expect::Found`.
    pub keys: Vec<Vec<String>>,
    /// An update of a keyless row is a delete and an insert: without the first there is no second.
    pub only_after_success: bool,
}

impl Statement {
    /// The SQL, its parameters numbered from `before + 1` on.
    pub fn text(&self, before: usize) -> String {
        let mut text = String::with_capacity(self.sql.len());
        for (at, part) in self.sql.split('\0').enumerate() {
            if at == 0 {
                text.push_str(part);
                continue;
            }
            let digits = part.len() - part.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let number: usize = part[..digits].parse().unwrap_or(0);
            let _ = write!(text, "${}{}", number + before, &part[digits..]);
        }
        text
    }

    /// Whether it can stand among others in one statement: it only counts rows, is no COPY and has no WITH of its own.
    pub fn joins(&self) -> bool {
        matches!(self.expect, Expect::Rows(_)) && self.rows.is_none() && !self.sql.starts_with("WITH")
    }
}

/// The statements of one step, in order.
///
/// # Errors
/// Corrupt bytes, or an image that is missing.
pub fn statements(step: &Step<'_>) -> Result<Vec<Statement>, Error> {
    let mut out = Vec::new();
    match step {
        Step::Truncate(tables) => {
            let Some(first) = tables.first() else { return Ok(out) };
            out.push(Statement {
                sql: truncate(tables),
                arrays: Vec::new(),
                rows: None,
                expect: Expect::Any,
                table: first.relation.name().clone(),
                op: "truncate",
                position: first.event.header.position,
                keys: Vec::new(),
                only_after_success: false,
            });
        }
        Step::KeyChange { relation, mode, delete, create } => key_change(relation, *mode, delete, create, &mut out)?,
        Step::Set(tables) => {
            for changes in tables {
                if changes.relation.keyless() {
                    keyless::changes(changes, &mut out)?;
                } else {
                    keyed(changes, &mut out)?;
                }
            }
        }
    }
    Ok(out)
}

/// A foreign key of a table that is not among these forbids it: one of the two is replayed by itself. Where no foreign key fires,
/// the rows can go one by one instead.
fn truncate(tables: &[&Change]) -> String {
    let mut names: Vec<&str> = tables.iter().map(|change| change.relation.rows.as_str()).collect();
    names.dedup();
    let truncate = format!("TRUNCATE {}", names.join(", "));
    if !tables.iter().all(|change| change.relation.replica_role) {
        return truncate;
    }
    let deletes: String = names.iter().map(|name| format!(" DELETE FROM {name};")).collect();
    let body = format!("BEGIN {truncate}; EXCEPTION WHEN feature_not_supported THEN{deletes} END");
    format!("DO {}", quote_literal(&body))
}

/// Which columns are parameters, and how each is carried. Text forces itself where a value needs it.
struct Parameters<'r> {
    relation: &'r Relation,
    columns: Vec<usize>,
    carriers: Vec<Carrier>,
}

impl<'r> Parameters<'r> {
    fn new(relation: &'r Relation, columns: Vec<usize>) -> Parameters<'r> {
        let shape = relation.shape();
        let carriers = columns.iter().map(|at| Carrier::of(&shape.columns[*at])).collect();
        Parameters { relation, columns, carriers }
    }

    /// Builds the arrays from rows that hold one value per parameter; begins anew with a column as text if need be.
    fn arrays(
        &mut self,
        mut rows: impl FnMut(&mut dyn FnMut(&[Value<'_>])) -> Result<(), Error>,
    ) -> Result<Vec<RawArray>, Error> {
        loop {
            let mut builders: Vec<ArrayBuilder> = self.carriers.iter().map(|c| ArrayBuilder::new(*c)).collect();
            let mut to_text = None;
            let shape = self.relation.shape().clone();
            rows(&mut |values| {
                for (at, (builder, value)) in builders.iter_mut().zip(values).enumerate() {
                    if to_text.is_none() && builder.push(value, &shape.columns[self.columns[at]]).is_err() {
                        to_text = Some(at);
                    }
                }
            })?;
            match to_text {
                Some(at) => self.carriers[at] = Carrier::Text,
                None => return Ok(builders.into_iter().map(ArrayBuilder::finish).collect()),
            }
        }
    }

    /// `unnest($1::int4[], $2::text[]) AS u(c0, c1)`, with `more` parameters after them.
    fn source(&self, more: &[&str]) -> String {
        let mut text = String::from("unnest(");
        let types = self.carriers.iter().map(|carrier| carrier.array_name()).chain(more.iter().copied());
        for (at, name) in types.enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            let _ = write!(text, "{comma}\0{}::pg_catalog.{name}", at + 1);
        }
        text.push_str(") AS u(");
        for at in 0..self.columns.len() + more.len() {
            let comma = if at > 0 { ", " } else { "" };
            let _ = write!(text, "{comma}c{at}");
        }
        text.push(')');
        text
    }

    fn target(&self, at: usize) -> &TargetColumn {
        &self.relation.columns[self.columns[at]]
    }

    /// The parameter as a value of the target's column.
    fn value(&self, at: usize) -> String {
        let target = self.target(at);
        let carrier = self.carriers[at];
        let texts = carrier == Carrier::Text && matches!(target.type_oid, 25 | 1043);
        if texts || carrier.element_oid() == target.type_oid {
            format!("u.c{at}")
        } else if carrier == Carrier::Text {
            target.input(&format!("u.c{at}"))
        } else {
            format!("u.c{at}::{}", target.type_name)
        }
    }

    fn name(&self, at: usize) -> String {
        quote_identifier(&self.target(at).name)
    }

    /// `t.key = u.c0 AND …` over the first `count` parameters.
    fn matches(&self, count: usize) -> String {
        let condition = |at: usize| {
            let equals = self.target(at).equals();
            format!("t.{} {equals} {}", self.name(at), self.value(at))
        };
        (0..count).map(condition).collect::<Vec<_>>().join(" AND ")
    }
}

/// An update that finds its rows by the first `key_columns` parameters and sets those from `set` on; of a key change the new
/// key is among these. Tolerant, it gives back the keys that it left.
struct Update<'r> {
    parameters: Parameters<'r>,
    set: usize,
    key_columns: usize,
    mode: Mode,
    position: Position,
}

impl Update<'_> {
    fn sql(&self) -> Result<String, Error> {
        let relation = self.parameters.relation;
        let column = |at: usize| &relation.columns[self.parameters.columns[at]];
        let set = self.set..self.parameters.columns.len();
        let mut sql = match set.clone().map(column).find(|column| column.identity_always) {
            None => self.in_place(set),
            Some(_) if relation.replica_role => self.anew(),
            // Foreign keys would see the delete: a cascade would take rows that no event speaks of.
            Some(column) => {
                return Err(Error::IdentityAlways {
                    table: relation.name().to_string(),
                    column: column.name.clone(),
                    position: self.position,
                });
            }
        };
        if self.mode == Mode::Tolerant {
            let texts: Vec<String> =
                (0..self.key_columns).map(|at| printed(&format!("t.{}", self.parameters.name(at)))).collect();
            let _ = write!(sql, " RETURNING ARRAY[{}]", texts.join(", "));
        }
        Ok(sql)
    }

    fn in_place(&self, set: std::ops::Range<usize>) -> String {
        let parameters = &self.parameters;
        let set: Vec<String> = set.map(|at| format!("{} = {}", parameters.name(at), parameters.value(at))).collect();
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {}",
            parameters.relation.rows,
            set.join(", "),
            parameters.source(&[]),
            parameters.matches(self.key_columns)
        )
    }

    /// No UPDATE may set a column that is GENERATED ALWAYS AS IDENTITY; an insert may. So the row is taken out and put back in
    /// one statement, with the values that no event has as they were.
    fn anew(&self) -> String {
        let (parameters, relation) = (&self.parameters, self.parameters.relation);
        let new_key = parameters.columns[self.set..].iter().any(|at| relation.key.contains(at));
        let given: Vec<usize> = (if new_key { self.set } else { 0 }..parameters.columns.len()).collect();
        let is_given = |column: &usize| given.iter().any(|at| parameters.columns[*at] == *column);
        let kept = relation.writable().filter(|at| !is_given(at)).map(|at| &relation.columns[at]);
        let kept: Vec<String> = kept.chain(&relation.others).map(|column| quote_identifier(&column.name)).collect();
        let taken: String = kept.iter().enumerate().map(|(at, name)| format!(", t.{name} AS k{at}")).collect();
        let names: Vec<String> = given.iter().map(|at| parameters.name(*at)).chain(kept.iter().cloned()).collect();
        let values = given.iter().map(|at| parameters.value(*at));
        let values: Vec<String> = values.chain((0..kept.len()).map(|at| format!("u.k{at}"))).collect();
        format!(
            "WITH gone AS (DELETE FROM {} AS t USING {} WHERE {} RETURNING u.*{taken}) \
             INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone AS u",
            relation.rows,
            parameters.source(&[]),
            parameters.matches(self.key_columns),
            relation.name().quoted(),
            names.join(", "),
            values.join(", "),
        )
    }
}

fn statement(relation: &Relation, op: &'static str, position: Position, expect: Expect) -> Statement {
    Statement {
        sql: String::new(),
        arrays: Vec::new(),
        rows: None,
        expect,
        table: relation.name().clone(),
        op,
        position,
        keys: Vec::new(),
        only_after_success: false,
    }
}

fn position_of(rows: &[&Row<'_>]) -> Position {
    rows.iter().map(|row| row.newest.header.position).min().unwrap_or_default()
}

fn keyed(changes: &TableChanges<'_>, out: &mut Vec<Statement>) -> Result<(), Error> {
    let relation = changes.relation;
    let of = |wanted: &[Net]| -> Vec<&Row<'_>> { changes.rows().filter(|row| wanted.contains(&row.net)).collect() };
    let deleted = of(&[Net::Delete]);
    if !deleted.is_empty() {
        let expect = Expect::Rows(deleted.len() as u64);
        out.push(delete(relation, &deleted, expect)?);
    }
    // Tolerant: whatever was there goes first. (ON CONFLICT would need to know the index.)
    let (whole, partial): (Vec<&Row<'_>>, Vec<&Row<'_>>) = of(&[Net::Put]).into_iter().partition(|row| row.complete);
    let mut gone = of(&[Net::Gone]);
    gone.extend(&whole);
    if !gone.is_empty() {
        out.push(delete(relation, &gone, Expect::Any)?);
    }
    updates(relation, &of(&[Net::Update]), changes.mode, out)?;
    updates(relation, &partial, changes.mode, out)?;
    let mut inserted = of(&[Net::Insert]);
    inserted.extend(&whole);
    if !inserted.is_empty() {
        out.push(insert(relation, &inserted)?);
    }
    Ok(())
}

/// The key's values of a row, from whichever image has them.
fn key_image<'a>(relation: &Relation, event: &'a RawEvent, image: &mut Vec<Value<'a>>) -> Result<(), Error> {
    let side = if event.header.op == Op::Delete { Image::Before } else { Image::After };
    decode(relation, event, side, image)
}

fn picked<'a>(image: &[Value<'a>], columns: &[usize], values: &mut Vec<Value<'a>>) {
    values.clear();
    values.extend(columns.iter().map(|at| image[*at]));
}

fn delete(relation: &Relation, rows: &[&Row<'_>], expect: Expect) -> Result<Statement, Error> {
    let mut parameters = Parameters::new(relation, relation.key.clone());
    let columns = parameters.columns.clone();
    let arrays = parameters.arrays(|push| {
        let (mut image, mut values) = (Vec::new(), Vec::new());
        for row in rows {
            key_image(relation, row.newest, &mut image)?;
            picked(&image, &columns, &mut values);
            push(&values);
        }
        Ok(())
    })?;
    let mut statement = statement(relation, "delete", position_of(rows), expect);
    statement.sql = format!(
        "DELETE FROM {} AS t USING {} WHERE {}",
        relation.rows,
        parameters.source(&[]),
        parameters.matches(columns.len())
    );
    statement.arrays = arrays;
    Ok(statement)
}

fn insert(relation: &Relation, rows: &[&Row<'_>]) -> Result<Statement, Error> {
    let columns: Vec<usize> = relation.writable().collect();
    inserted(relation, position_of(rows), rows.len(), |push| {
        let (mut image, mut values) = (Vec::new(), Vec::new());
        for row in rows {
            after_image(relation, row, &mut image)?;
            picked(&image, &columns, &mut values);
            push(&values);
        }
        Ok(())
    })
}

/// New rows of all writable columns; `rows` gives the same `count` of them each time it is asked.
fn inserted(
    relation: &Relation,
    position: Position,
    count: usize,
    rows: impl FnMut(&mut dyn FnMut(&[Value<'_>])) -> Result<(), Error>,
) -> Result<Statement, Error> {
    let mut statement = statement(relation, "insert", position, Expect::Rows(count as u64));
    let mut parameters = Parameters::new(relation, relation.writable().collect());
    let names = |parameters: &Parameters<'_>| -> String {
        (0..parameters.columns.len()).map(|at| parameters.name(at)).collect::<Vec<_>>().join(", ")
    };
    let table = relation.name().quoted();
    if parameters.columns.is_empty() {
        // Rows of no columns: an array says how many.
        let mut numbers = ArrayBuilder::new(Carrier::Int8);
        (0..count).for_each(|number| numbers.push_count(number as i64));
        statement.arrays = vec![numbers.finish()];
        statement.sql = format!("INSERT INTO {table} SELECT FROM {}", parameters.source(&["int8[]"]));
        return Ok(statement);
    }
    if count >= copy::ROWS_MIN && copy::fits(&parameters) {
        let rows = copy::rows(&parameters, rows)?;
        statement.sql = format!("COPY {table} ({}) FROM STDIN (FORMAT {})", names(&parameters), rows.format());
        statement.rows = Some(rows);
        return Ok(statement);
    }
    statement.arrays = parameters.arrays(rows)?;
    let values: Vec<String> = (0..parameters.columns.len()).map(|at| parameters.value(at)).collect();
    statement.sql = format!(
        "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        names(&parameters),
        values.join(", "),
        parameters.source(&[])
    );
    Ok(statement)
}

/// Updates grouped by which columns have no value.
fn updates(relation: &Relation, rows: &[&Row<'_>], mode: Mode, out: &mut Vec<Statement>) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut shapes: BTreeMap<Vec<usize>, Vec<&Row<'_>>> = BTreeMap::new();
    let mut image = Vec::new();
    for row in rows {
        let missing = if row.complete {
            Vec::new()
        } else {
            after_image(relation, row, &mut image)?;
            (0..image.len()).filter(|at| image[*at] == Value::Unchanged).collect()
        };
        shapes.entry(missing).or_default().push(row);
    }
    for (missing, rows) in shapes {
        out.push(update(relation, &missing, &rows, mode)?);
    }
    Ok(())
}

fn update(relation: &Relation, missing: &[usize], rows: &[&Row<'_>], mode: Mode) -> Result<Statement, Error> {
    let mut columns = relation.key.clone();
    let key_columns = columns.len();
    columns.extend(relation.writable().filter(|at| !relation.key.contains(at) && !missing.contains(at)));
    let mut parameters = Parameters::new(relation, columns.clone());
    let mut keys = Vec::new();
    let arrays = parameters.arrays(|push| {
        let (mut image, mut values) = (Vec::new(), Vec::new());
        keys.clear();
        for row in rows {
            after_image(relation, row, &mut image)?;
            picked(&image, &columns, &mut values);
            if mode == Mode::Tolerant {
                keys.push(key_texts(relation, &image));
            }
            push(&values);
        }
        Ok(())
    })?;
    let expect = if mode == Mode::Tolerant { Expect::Found } else { Expect::Rows(rows.len() as u64) };
    let mut statement = statement(relation, "update", position_of(rows), expect);
    // A table of key columns only: the update changes nothing, and still must find its row.
    let set = if columns.len() == key_columns { 0 } else { key_columns };
    statement.sql = Update { parameters, set, key_columns, mode, position: statement.position }.sql()?;
    statement.arrays = arrays;
    statement.keys = keys;
    Ok(statement)
}

/// The key as PostgreSQL prints it, one text per column.
pub fn key_texts(relation: &Relation, image: &[Value<'_>]) -> Vec<String> {
    let shape = relation.shape();
    let text = |at: &usize| {
        let mut text = String::new();
        changelog::text::format_value(&image[*at], shape.columns[*at].kind(), &mut text);
        text
    };
    relation.key.iter().map(text).collect()
}

/// A key change whose new image lacks columns that were not sent: an update by the old key.
fn key_change(
    relation: &Relation,
    mode: Mode,
    delete: &RawEvent,
    create: &RawEvent,
    out: &mut Vec<Statement>,
) -> Result<(), Error> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    decode(relation, delete, Image::Before, &mut old)?;
    decode(relation, create, Image::After, &mut new)?;
    let key_columns = relation.key.len();
    if mode == Mode::Tolerant {
        // The new key may be there already, from a later snapshot.
        let mut parameters = Parameters::new(relation, relation.key.clone());
        let mut values = Vec::new();
        picked(&new, &relation.key, &mut values);
        let arrays = parameters.arrays(|push| {
            push(&values);
            Ok(())
        })?;
        let mut first = statement(relation, "delete", create.header.position, Expect::Any);
        first.sql = format!(
            "DELETE FROM {} AS t USING {} WHERE {}",
            relation.rows,
            parameters.source(&[]),
            parameters.matches(key_columns)
        );
        first.arrays = arrays;
        out.push(first);
    }
    let mut columns = relation.key.clone();
    columns.extend(relation.writable().filter(|at| new[*at] != Value::Unchanged));
    let mut parameters = Parameters::new(relation, columns.clone());
    let mut values = Vec::new();
    picked(&old, &relation.key, &mut values);
    values.extend(columns[key_columns..].iter().map(|at| new[*at]));
    let arrays = parameters.arrays(|push| {
        push(&values);
        Ok(())
    })?;
    let expect = if mode == Mode::Tolerant { Expect::Found } else { Expect::Rows(1) };
    let mut update = statement(relation, "update", create.header.position, expect);
    update.sql = Update { parameters, set: key_columns, key_columns, mode, position: update.position }.sql()?;
    if mode == Mode::Tolerant {
        update.keys = vec![key_texts(relation, &new)];
    }
    update.arrays = arrays;
    out.push(update);
    Ok(())
}

#[cfg(test)]
#[path = "dialect_tests.rs"]
mod tests;
