//! Changes of many transactions become few steps: the net effect per key, cut where order could be seen.
//!
//! ```text
//!  c(1) u(1) d(2) c(3) d(3)  ─>  Set { insert 1 (second image), delete 2 }      nothing of 3
//!  truncate                  ─>  Truncate, alone: what came before stays before
//!  key change, TOAST not sent ─> KeyChange, alone: an update by the old key
//! ```
//! Inside a Set a key stands once, so its statements may run in any order (deletes, updates, inserts, table by table) as
//! far as the key can tell. What else could tell, another unique constraint, makes the statement fail, and then the
//! caller plans the same events again with `fold` off: each one a Set of its own, in source order.
//!
//! Events are borrowed and images stay encoded; only what survives is ever decoded. A row whose newest image lacks unchanged columns keeps the older
//! events that have them.

use std::sync::Arc;

use changelog::{Op, Value};
use foldhash::{HashMap, HashMapExt};

use crate::Error;
use crate::error::contract;
use crate::event::RawEvent;
use crate::relation::Relation;

/// How strict a table's changes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each update and delete finds its row, each insert finds none.
    Strict,
    /// The copy may be ahead of the stream: whatever was there, what the event says is there after it.
    Tolerant,
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// Was not there, is there.
    Insert,
    /// Was there, has new values; all of them if it was deleted and inserted between.
    Update,
    /// Was there, is gone.
    Delete,
    /// Was not there and is not.
    Nothing,
    /// Tolerant: is there, whatever was.
    Put,
    /// Tolerant: is gone, whatever was.
    Gone,
}

#[derive(Debug)]
pub struct Row<'a> {
    pub net: Net,
    pub newest: &'a RawEvent,
    /// Newest first; only as far back as columns are missing.
    pub older: Vec<&'a RawEvent>,
    /// Whether the newest image and the older ones together have every column.
    pub complete: bool,
}

/// The changes of one table in one Set.
#[derive(Debug)]
pub struct TableChanges<'a> {
    pub relation: &'a Relation,
    pub mode: Mode,
    rows: Vec<Row<'a>>,
    places: HashMap<&'a [u8], usize>,
    /// Of a keyless table: every event, in order.
    pub keyless: Vec<&'a RawEvent>,
}

impl<'a> TableChanges<'a> {
    pub fn rows(&self) -> impl Iterator<Item = &Row<'a>> {
        self.rows.iter().filter(|row| row.net != Net::Nothing)
    }
}

#[derive(Debug)]
pub enum Step<'a> {
    Set(Vec<TableChanges<'a>>),
    Truncate(Vec<&'a Change>),
    KeyChange { relation: &'a Relation, mode: Mode, delete: &'a RawEvent, create: &'a RawEvent },
}

/// An event with what is known of its table.
#[derive(Debug)]
pub struct Change {
    pub relation: Arc<Relation>,
    pub mode: Mode,
    pub event: RawEvent,
}

/// Collects changes in source order; `finish` yields the steps.
#[derive(Debug)]
pub struct Planner<'a> {
    fold: bool,
    steps: Vec<Step<'a>>,
    set: Vec<TableChanges<'a>>,
    /// By table index: place in `set`.
    places: HashMap<usize, usize>,
    /// A delete that may be the first part of a key change.
    pending: Option<&'a Change>,
}

impl<'a> Planner<'a> {
    pub fn new(fold: bool) -> Planner<'a> {
        Planner { fold, steps: Vec::new(), set: Vec::new(), places: HashMap::new(), pending: None }
    }

    pub fn add(&mut self, change: &'a Change) {
        if let Some(delete) = self.pending.take() {
            let (first, second) = (&delete.event.header, &change.event.header);
            let pair = second.op == Op::Create
                && second.position.part > first.position.part
                && (first.position.commit_lsn, first.position.ordinal)
                    == (second.position.commit_lsn, second.position.ordinal);
            if pair && change.event.has_unchanged {
                self.close();
                self.steps.push(Step::KeyChange {
                    relation: &change.relation,
                    mode: change.mode,
                    delete: &delete.event,
                    create: &change.event,
                });
                return;
            }
            self.place(delete);
        }
        match change.event.header.op {
            Op::Delete if !change.relation.keyless() => {
                self.pending = Some(change);
            }
            Op::Truncate => self.truncate(change),
            Op::Create | Op::Update | Op::Delete => self.place(change),
            // A row of the backfill in the table's topic is loaded elsewhere, and pieces are put together before.
            Op::Read | Op::Piece => {}
        }
    }

    /// The steps, in order.
    pub fn finish(mut self) -> Vec<Step<'a>> {
        if let Some(delete) = self.pending.take() {
            self.place(delete);
        }
        self.close();
        self.steps
    }

    fn close(&mut self) {
        if !self.set.is_empty() {
            self.steps.push(Step::Set(std::mem::take(&mut self.set)));
            self.places.clear();
        }
    }

    /// Tables truncated by one statement have consecutive ordinals: one statement again, for their foreign keys.
    fn truncate(&mut self, change: &'a Change) {
        self.close();
        if let Some(Step::Truncate(tables)) = self.steps.last_mut() {
            tables.push(change);
            return;
        }
        self.steps.push(Step::Truncate(vec![change]));
    }

    fn place(&mut self, change: &'a Change) {
        if !self.fold {
            self.close();
        }
        let table = self.changes_of(change);
        if change.relation.keyless() {
            self.set[table].keyless.push(&change.event);
            return;
        }
        if !self.set[table].fold(&change.event) {
            // The order can be seen: this event begins a new Set, where it is the key's first, and that always fits.
            self.close();
            let table = self.changes_of(change);
            self.set[table].fold(&change.event);
        }
    }

    /// The place of the change's table in the open Set; a changed shape or mode closes it first.
    fn changes_of(&mut self, change: &'a Change) -> usize {
        if let Some(place) = self.places.get(&change.relation.table) {
            let open = &self.set[*place];
            if open.relation.id == change.relation.id && open.mode == change.mode {
                return *place;
            }
            self.close();
        }
        self.set.push(TableChanges {
            relation: &change.relation,
            mode: change.mode,
            rows: Vec::new(),
            places: HashMap::new(),
            keyless: Vec::new(),
        });
        self.places.insert(change.relation.table, self.set.len() - 1);
        self.set.len() - 1
    }
}

impl<'a> TableChanges<'a> {
    /// Takes the event into the key's net effect; false if the two do not follow each other in any correct history.
    fn fold(&mut self, event: &'a RawEvent) -> bool {
        let (op, unchanged) = (event.header.op, event.has_unchanged);
        let Some(place) = self.places.get(event.key()) else {
            let net = match (self.mode, op) {
                (Mode::Tolerant, Op::Delete) => Net::Gone,
                (Mode::Tolerant, _) => Net::Put,
                (Mode::Strict, Op::Delete) => Net::Delete,
                (Mode::Strict, Op::Create) => Net::Insert,
                (Mode::Strict, _) => Net::Update,
            };
            self.places.insert(event.key(), self.rows.len());
            self.rows.push(Row { net, newest: event, older: Vec::new(), complete: !unchanged });
            return true;
        };
        let row = &mut self.rows[*place];
        let net = match (row.net, op) {
            (Net::Put | Net::Gone, Op::Delete) => Net::Gone,
            (Net::Put | Net::Gone, _) => Net::Put,
            (Net::Insert, Op::Update) => Net::Insert,
            (Net::Insert, Op::Delete) => Net::Nothing,
            (Net::Update, Op::Update) => Net::Update,
            (Net::Update, Op::Delete) => Net::Delete,
            (Net::Delete, Op::Create) => Net::Update,
            (Net::Nothing, Op::Create) => Net::Insert,
            _ => return false,
        };
        if unchanged && row.newest.header.op == Op::Delete {
            // No image in this Set has the missing columns.
            return false;
        }
        let previous = std::mem::replace(&mut row.newest, event);
        if unchanged {
            row.older.insert(0, previous);
        } else {
            row.older.clear();
            row.complete = true;
        }
        row.net = net;
        true
    }
}

/// The row's image after the step: the newest value of each column. `Unchanged` is left where no event has it.
///
/// # Errors
/// Corrupt bytes, or no after image.
pub fn after_image<'a>(relation: &Relation, row: &Row<'a>, out: &mut Vec<Value<'a>>) -> Result<(), Error> {
    decode(relation, row.newest, Image::After, out)?;
    let mut older = Vec::new();
    for event in &row.older {
        if !out.contains(&Value::Unchanged) {
            break;
        }
        decode(relation, event, Image::After, &mut older)?;
        for (value, older) in out.iter_mut().zip(&older) {
            if *value == Value::Unchanged {
                *value = *older;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Before,
    After,
}

/// Decodes one image of one event.
///
/// # Errors
/// Corrupt bytes, or the image is not there.
pub fn decode<'a>(relation: &Relation, raw: &'a RawEvent, image: Image, out: &mut Vec<Value<'a>>) -> Result<(), Error> {
    let what = || format!("{} at {}", relation.name(), raw.header.position);
    let event = relation.decoder.event(raw.value()).map_err(|error| contract(what())(error))?;
    let mut other = Vec::new();
    let (before, after) = match image {
        Image::Before => relation.decoder.images(&event, out, &mut other),
        Image::After => relation.decoder.images(&event, &mut other, out),
    }
    .map_err(|error| contract(what())(error))?;
    let (there, name) = match image {
        Image::Before => (before, "before"),
        Image::After => (after, "after"),
    };
    if there {
        return Ok(());
    }
    Err(Error::ImageMissing {
        table: relation.name().to_string(),
        op: op_name(raw.header.op),
        position: raw.header.position,
        image: name,
    })
}

pub fn op_name(op: Op) -> &'static str {
    match op {
        Op::Create => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::Truncate => "truncate",
        Op::Read => "read",
        Op::Piece => "piece",
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
