//! Folded plans against a model that applies the same changes one by one.

use std::collections::BTreeMap;

use changelog::{
    Cell, Column, Definition, EventDecoder, EventEncoder, Header, Identity, Lane, Lsn, Position, TableName, TableShape,
    avro, schema,
};
use proptest::prelude::*;

use super::*;
use crate::dialect::{Expect, statements};
use crate::event::Arena;
use crate::relation::{TargetColumn, TargetTable};

fn shape(key: bool) -> TableShape {
    let column = |name: &str, type_oid, type_name: &str, key| Column {
        name: name.into(),
        type_oid,
        typmod: -1,
        type_name: format!("pg_catalog.{type_name}"),
        key,
        definition: Definition::default(),
    };
    TableShape {
        database: "d".into(),
        table: TableName::new("s", "t"),
        oid: 0,
        identity: Identity::Default,
        columns: vec![
            column("id", 23, "int4", key.then_some(0)),
            column("big", 25, "text", None),
            column("v", 25, "text", None),
        ],
    }
}

fn relation(key: bool) -> Arc<Relation> {
    let decoder = EventDecoder::new(1, &schema::value_schema(&shape(key))).unwrap();
    let columns = [("id", 23, "integer"), ("big", 25, "text"), ("v", 25, "text")];
    let columns = columns.map(|(name, type_oid, type_name)| TargetColumn {
        name: name.into(),
        type_name: type_name.into(),
        type_oid,
        equals_schema: "pg_catalog".into(),
        generated: false,
        ..TargetColumn::default()
    });
    Arc::new(
        Relation::new(0, 0, decoder, &TargetTable { columns: columns.to_vec(), ..TargetTable::default() }, None)
            .unwrap(),
    )
}

/// A row of the model: `big` may be absent in an event's image.
type Image = (i32, Option<String>, String);

#[derive(Clone, Debug)]
enum Made {
    Create(Image),
    Update(Image),
    Delete(i32),
    Rekey(i32, Image),
}

fn raw(encoder: &mut EventEncoder, op: Op, position: Position, before: Option<i32>, after: Option<&Image>) -> RawEvent {
    let header = Header { op, xid: 1, lsn: position.commit_lsn, position, commit_time_micros: 0 };
    let id = before.or(after.map(|image| image.0)).unwrap_or_default().to_string();
    let before_cells = [Cell::Text(id.as_bytes()), Cell::Null, Cell::Null];
    let after_cells = after.map(|(_, big, v)| {
        let big = big.as_ref().map_or(Cell::Unchanged, |big| Cell::Text(big.as_bytes()));
        [Cell::Text(id.as_bytes()), big, Cell::Text(v.as_bytes())]
    });
    let mut value = Vec::new();
    encoder
        .value(
            &mut value,
            &header,
            before.is_some().then_some(&before_cells[..]),
            after_cells.as_ref().map(|cells| &cells[..]),
        )
        .unwrap();
    let key = [&[0; avro::FRAME_BYTES], id.as_bytes()].concat();
    RawEvent::read(&mut Arena::default(), Some(&key), &value, 0, 0).unwrap()
}

fn events(made: &[Made]) -> Vec<RawEvent> {
    let mut encoder = EventEncoder::new(Arc::new(shape(true)), Lane::Forward, 1, 2);
    let mut events = Vec::new();
    for (ordinal, made) in made.iter().enumerate() {
        let at = Position::new(Lsn(100), ordinal as u64);
        let second = Position { part: 1, ..at };
        match made {
            Made::Create(image) => events.push(raw(&mut encoder, Op::Create, at, None, Some(image))),
            Made::Update(image) => events.push(raw(&mut encoder, Op::Update, at, None, Some(image))),
            Made::Delete(id) => events.push(raw(&mut encoder, Op::Delete, at, Some(*id), None)),
            Made::Rekey(old, image) => {
                events.push(raw(&mut encoder, Op::Delete, at, Some(*old), None));
                events.push(raw(&mut encoder, Op::Create, second, None, Some(image)));
            }
        }
    }
    events
}

fn changes(made: &[Made], mode: Mode) -> Vec<Change> {
    let relation = relation(true);
    events(made).into_iter().map(|event| Change { relation: relation.clone(), mode, event }).collect()
}

fn steps(changes: &[Change], fold: bool) -> Vec<Step<'_>> {
    let mut planner = Planner::new(fold);
    changes.iter().for_each(|change| planner.add(change));
    planner.finish()
}

type Rows = BTreeMap<i32, (String, String)>;

fn text(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Text(text) => Some((*text).to_owned()),
        _ => None,
    }
}

fn id_of(value: &Value<'_>) -> i32 {
    if let Value::Int(id) = value { *id } else { panic!("{value:?}") }
}

/// Does to the model what the statements of each step do to a table; panics where the target would refuse.
fn apply(rows: &mut Rows, steps: &[Step<'_>]) {
    for step in steps {
        match step {
            Step::KeyChange { relation, delete, create, .. } => {
                let (mut old, mut new) = (Vec::new(), Vec::new());
                decode(relation, delete, Image_::Before, &mut old).unwrap();
                decode(relation, create, Image_::After, &mut new).unwrap();
                let row = rows.remove(&id_of(&old[0])).expect("the old key is there");
                let changed = (text(&new[1]).unwrap_or(row.0), text(&new[2]).unwrap());
                assert!(rows.insert(id_of(&new[0]), changed).is_none());
            }
            Step::Truncate(_) => rows.clear(),
            Step::Set(tables) => {
                let mut image = Vec::new();
                for row in tables[0].rows().filter(|row| row.net == Net::Delete) {
                    decode(tables[0].relation, row.newest, Image_::Before, &mut image).unwrap();
                    assert!(rows.remove(&id_of(&image[0])).is_some());
                }
                for row in tables[0].rows().filter(|row| matches!(row.net, Net::Update | Net::Insert)) {
                    after_image(tables[0].relation, row, &mut image).unwrap();
                    let (id, big, v) = (id_of(&image[0]), text(&image[1]), text(&image[2]).unwrap());
                    match row.net {
                        Net::Insert => assert!(rows.insert(id, (big.expect("whole"), v)).is_none()),
                        _ => {
                            let held = rows.get_mut(&id).expect("the row is there");
                            *held = (big.unwrap_or(held.0.clone()), v);
                        }
                    }
                }
            }
        }
    }
}

use super::Image as Image_;

/// A correct history: each choice becomes whatever is possible on the rows that are there then.
fn history(choices: &[(u8, i32, i32, bool)]) -> (Vec<Made>, Rows) {
    let (mut rows, mut made) = (Rows::new(), Vec::new());
    for (number, (choice, id, other, whole)) in choices.iter().enumerate() {
        let (v, big) = (format!("v{number}"), format!("b{number}"));
        match rows.get(id).cloned() {
            None => {
                made.push(Made::Create((*id, Some(big.clone()), v.clone())));
                rows.insert(*id, (big, v));
            }
            Some(_) if *choice == 0 => {
                made.push(Made::Delete(*id));
                rows.remove(id);
            }
            Some(held) if *choice == 1 && !rows.contains_key(other) => {
                let sent = whole.then(|| big.clone());
                made.push(Made::Rekey(*id, (*other, sent.clone(), v.clone())));
                rows.remove(id);
                rows.insert(*other, (sent.unwrap_or(held.0), v));
            }
            Some(held) => {
                let sent = whole.then(|| big.clone());
                made.push(Made::Update((*id, sent.clone(), v.clone())));
                rows.insert(*id, (sent.unwrap_or(held.0), v));
            }
        }
    }
    (made, rows)
}

proptest! {
    #[test]
    fn the_net_effect_is_that_of_each_change_in_turn(
        before in prop::collection::vec((0_u8..3, 0_i32..6, 0_i32..6, any::<bool>()), 0..10),
        choices in prop::collection::vec((0_u8..3, 0_i32..6, 0_i32..6, any::<bool>()), 1..60),
    ) {
        let mut all = before.clone();
        all.extend(choices);
        let (_, start) = history(&before);
        let (made, expected) = history(&all);
        let changes = changes(&made[before.len()..], Mode::Strict);
        for fold in [true, false] {
            let mut rows = start.clone();
            let planned = steps(&changes, fold);
            apply(&mut rows, &planned);
            prop_assert_eq!(&rows, &expected, "fold {}", fold);
            // A statement never touches one key twice, and each step has statements that can be built.
            for step in &planned {
                for statement in statements(step).unwrap() {
                    prop_assert!(matches!(statement.expect, Expect::Rows(count) if count > 0));
                }
            }
        }
    }
}

#[test]
fn tolerant_changes_are_told_by_their_last_state() {
    let made = [
        Made::Update((1, None, "a".into())),
        Made::Create((2, Some("x".into()), "b".into())),
        Made::Create((2, Some("y".into()), "c".into())),
        Made::Delete(3),
        Made::Delete(3),
        Made::Update((2, None, "d".into())),
    ];
    let changes = changes(&made, Mode::Tolerant);
    let planned = steps(&changes, true);
    let statements: Vec<(String, Expect)> = planned
        .iter()
        .flat_map(|step| statements(step).unwrap())
        .map(|statement| (statement.text(0).split(' ').next().unwrap().to_owned(), statement.expect))
        .collect();
    assert_eq!(
        statements,
        [
            ("DELETE".to_owned(), Expect::Any),
            ("UPDATE".to_owned(), Expect::Found),
            ("INSERT".to_owned(), Expect::Rows(1))
        ]
    );
}

#[test]
fn a_history_that_cannot_be_is_kept_in_order() {
    let twice = [Made::Create((1, Some("x".into()), "a".into())), Made::Create((1, Some("y".into()), "b".into()))];
    assert_eq!(steps(&changes(&twice, Mode::Strict), true).len(), 2);
    let after_delete = [Made::Delete(1), Made::Update((1, Some("y".into()), "b".into()))];
    assert_eq!(steps(&changes(&after_delete, Mode::Strict), true).len(), 2);
}
