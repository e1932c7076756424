//! Statements and parameters, compared with what PostgreSQL takes.

use std::sync::Arc;

use changelog::{
    Cell, Column, Definition, EventDecoder, EventEncoder, Header, Identity, Lane, Lsn, TableName, TableShape, schema,
};

use super::*;
use crate::event::Arena;
use crate::plan::{Change, Planner};
use crate::relation::{TargetColumn, TargetTable};

/// id, an extension's type, a date, a column that the target computes.
fn shape() -> TableShape {
    let column = |name: &str, type_oid, key| Column {
        name: name.into(),
        type_oid,
        typmod: -1,
        type_name: "x".into(),
        key,
        definition: Definition::default(),
    };
    TableShape {
        database: "d".into(),
        table: TableName::new("s", "t\"q"),
        oid: 0,
        identity: Identity::Default,
        columns: vec![
            column("id", 23, Some(1)),
            column("name", 90_001, Some(0)),
            column("day", 1082, None),
            column("sum", 20, None),
        ],
    }
}

fn relation() -> Arc<Relation> {
    relation_in(TargetTable { replica_role: true, ..TargetTable::default() }, false)
}

/// `identity`: whether the day (of all columns) is an identity.
fn relation_in(table: TargetTable, identity: bool) -> Arc<Relation> {
    let target = |name: &str, type_oid, type_name: &str, schema: &str, generated| TargetColumn {
        name: name.into(),
        type_name: type_name.into(),
        type_oid,
        equals_schema: schema.into(),
        generated,
        ..TargetColumn::default()
    };
    let mut columns = vec![
        target("sum", 20, "bigint", "pg_catalog", true),
        target("day", 1082, "date", "pg_catalog", false),
        target("name", 80_001, "public.citext", "public", false),
        target("id", 20, "bigint", "pg_catalog", false),
    ];
    columns[1].identity_always = identity;
    if identity {
        columns.push(target("other", 25, "text", "pg_catalog", false));
    }
    let decoder = EventDecoder::new(1, &schema::value_schema(&shape())).unwrap();
    Arc::new(Relation::new(0, 0, decoder, &TargetTable { columns, ..table }, None).unwrap())
}

type Texts<'a> = Option<[&'a str; 4]>;

fn sql(events: &[(Op, Texts<'_>, Texts<'_>)]) -> Vec<Statement> {
    sql_in(&relation(), events).unwrap()
}

fn sql_in(relation: &Arc<Relation>, events: &[(Op, Texts<'_>, Texts<'_>)]) -> Result<Vec<Statement>, Error> {
    let mut encoder = EventEncoder::new(Arc::new(shape()), Lane::Forward, 1, 2);
    let mut changes = Vec::new();
    for (ordinal, (op, before, after)) in events.iter().enumerate() {
        let position = Position::new(Lsn(1), ordinal as u64);
        let header = Header { op: *op, xid: 1, lsn: Lsn(1), position, commit_time_micros: 0 };
        let cells = |row: &[&'static str; 4]| -> Vec<Cell<'static>> {
            row.map(|text| if text == "~" { Cell::Unchanged } else { Cell::Text(text.as_bytes()) }).to_vec()
        };
        let fixed =
            |row: &Option<[&str; 4]>| row.map(|row| row.map(|text| &*Box::leak(text.to_owned().into_boxed_str())));
        let (before, after) = (fixed(before).map(|row| cells(&row)), fixed(after).map(|row| cells(&row)));
        let mut value = Vec::new();
        encoder.value(&mut value, &header, before.as_deref(), after.as_deref()).unwrap();
        let mut key = Vec::new();
        encoder.key(&mut key, &position, after.as_deref().or(before.as_deref()).unwrap()).unwrap();
        let event = RawEvent::read(&mut Arena::default(), Some(&key), &value, 0, 0).unwrap();
        changes.push(Change { relation: relation.clone(), mode: Mode::Strict, event });
    }
    let mut planner = Planner::new(true);
    changes.iter().for_each(|change| planner.add(change));
    let mut all = Vec::new();
    for step in planner.finish() {
        all.extend(statements(&step)?);
    }
    Ok(all)
}

#[test]
fn statements_cast_to_the_targets_types_and_leave_out_what_it_computes() {
    let row = |id, day| Some([id, "Ann", day, "7"]);
    let statements = sql(&[
        (Op::Create, None, row("1", "2024-02-29")),
        (Op::Update, None, row("2", "2024-02-29")),
        (Op::Update, None, row("3", "~")),
        (Op::Delete, row("4", "2024-02-29"), None),
    ]);
    let texts: Vec<String> = statements.iter().map(|statement| statement.text(0)).collect();
    let matches = "t.\"name\" OPERATOR(\"public\".=) u.c0::public.citext AND t.\"id\" = u.c1::bigint";
    assert_eq!(
        texts,
        [
            format!("DELETE FROM ONLY \"s\".\"t\"\"q\" AS t USING unnest($1::pg_catalog.text[], $2::pg_catalog.int4[]) AS u(c0, c1) WHERE {matches}"),
            format!("UPDATE ONLY \"s\".\"t\"\"q\" AS t SET \"day\" = u.c2 FROM unnest($1::pg_catalog.text[], $2::pg_catalog.int4[], $3::pg_catalog.date[]) AS u(c0, c1, c2) WHERE {matches}"),
            format!("UPDATE ONLY \"s\".\"t\"\"q\" AS t SET \"name\" = u.c0::public.citext, \"id\" = u.c1::bigint FROM unnest($1::pg_catalog.text[], $2::pg_catalog.int4[]) AS u(c0, c1) WHERE {matches}"),
            "INSERT INTO \"s\".\"t\"\"q\" (\"id\", \"name\", \"day\") OVERRIDING SYSTEM VALUE SELECT u.c0::bigint, u.c1::public.citext, u.c2 FROM unnest($1::pg_catalog.int4[], $2::pg_catalog.text[], $3::pg_catalog.date[]) AS u(c0, c1, c2)".to_owned(),
        ]
    );
}

#[test]
fn rows_of_children_are_not_the_parents_and_those_of_partitions_are() {
    let events = [
        (Op::Delete, Some(["1", "Ann", "2024-02-29", "7"]), None),
        (Op::Update, None, Some(["2", "Ann", "2024-02-29", "7"])),
        (Op::Truncate, None, Some(["3", "Ann", "2024-02-29", "7"])),
    ];
    for (partitioned, table) in [(false, "ONLY \"s\".\"t\"\"q\""), (true, "\"s\".\"t\"\"q\"")] {
        let relation = relation_in(TargetTable { partitioned, ..TargetTable::default() }, false);
        let texts: Vec<String> = sql_in(&relation, &events).unwrap().iter().map(|s| s.text(0)).collect();
        for start in ["DELETE FROM", "UPDATE", "TRUNCATE"] {
            let start = format!("{start} {table}");
            assert!(texts.iter().any(|text| text.starts_with(&start)), "{start}: {texts:?}");
        }
    }
}

#[test]
fn an_identity_that_no_update_may_set_is_written_by_an_insert_that_keeps_the_rest() {
    let free = relation_in(TargetTable { replica_role: true, ..TargetTable::default() }, true);
    let whole = (Op::Update, None, Some(["2", "Ann", "2024-02-29", "7"]));
    let statements = sql_in(&free, &[whole]).unwrap();
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0].expect, Expect::Rows(1));
    assert!(!statements[0].joins());
    assert_eq!(
        statements[0].text(0),
        "WITH gone AS (DELETE FROM ONLY \"s\".\"t\"\"q\" AS t USING unnest($1::pg_catalog.text[], $2::pg_catalog.int4[], $3::pg_catalog.date[]) AS u(c0, c1, c2) WHERE t.\"name\" OPERATOR(\"public\".=) u.c0::public.citext AND t.\"id\" = u.c1::bigint RETURNING u.*, t.\"other\" AS k0) INSERT INTO \"s\".\"t\"\"q\" AS t (\"name\", \"id\", \"day\", \"other\") OVERRIDING SYSTEM VALUE SELECT u.c0::public.citext, u.c1::bigint, u.c2, u.k0 FROM gone AS u"
    );
    // The identity is not set: an update like any other.
    let without = sql_in(&free, &[(Op::Update, None, Some(["2", "Ann", "~", "7"]))]).unwrap();
    assert!(without[0].text(0).starts_with("UPDATE ONLY"), "{}", without[0].text(0));
    // Where foreign keys fire, a delete could take more than the row.
    let bound = relation_in(TargetTable::default(), true);
    let error = sql_in(&bound, &[whole]).unwrap_err();
    let hint = service::Hint::hint(&error).unwrap();
    assert!(matches!(&error, Error::IdentityAlways { column, .. } if column == "day"), "{error}");
    assert!(hint.contains("ALTER COLUMN day SET GENERATED BY DEFAULT"), "{hint}");
}

#[test]
fn a_column_goes_as_text_where_a_value_does_not_fit_its_type() {
    let statements = sql(&[
        (Op::Create, None, Some(["1", "Ann", "2024-02-29", "7"])),
        (Op::Create, None, Some(["2", "Ann", "infinity", "7"])),
    ]);
    assert_eq!(statements.len(), 1);
    assert!(
        statements[0]
            .text(0)
            .contains("u.c2::date FROM unnest($1::pg_catalog.int4[], $2::pg_catalog.text[], $3::pg_catalog.text[])")
    );
    let dates = &statements[0].arrays[2].bytes;
    assert!(dates.windows(10).any(|window| window == b"2024-02-29") && dates.ends_with(b"infinity"));
}

#[test]
fn arrays_have_the_servers_binary_form() {
    let mut builder = ArrayBuilder::new(Carrier::Int4);
    let column = &shape().columns[0];
    builder.push(&Value::Int(7), column).unwrap();
    builder.push_null();
    let array = builder.finish();
    let words: Vec<i32> = array.bytes.chunks(4).map(|word| i32::from_be_bytes(word.try_into().unwrap())).collect();
    // dimensions, nulls, element type, length, lower bound, then length and value, then null
    assert_eq!((array.array_oid, words), (1007, vec![1, 1, 23, 2, 1, 4, 7, -1]));
}

#[test]
fn a_missing_column_or_a_computed_key_is_refused_by_name() {
    let decoder = || EventDecoder::new(1, &schema::value_schema(&shape())).unwrap();
    let error = Relation::new(0, 0, decoder(), &TargetTable::default(), None).unwrap_err();
    assert!(matches!(&error, Error::ColumnMissing { column, .. } if column == "id"), "{error}");
    let mut columns = relation().columns.clone();
    columns[0].generated = true;
    let error = Relation::new(0, 0, decoder(), &TargetTable { columns, ..TargetTable::default() }, None).unwrap_err();
    assert!(matches!(error, Error::TableUnfit { .. }), "{error}");
}

#[test]
fn parameters_are_numbered_behind_those_of_the_statements_before() {
    let statements = sql(&[(Op::Delete, Some(["4", "Ann", "2024-02-29", "7"]), None)]);
    assert!(statements[0].joins());
    assert!(
        statements[0].text(9).contains("unnest($10::pg_catalog.text[], $11::pg_catalog.int4[])"),
        "{}",
        statements[0].text(9)
    );
}

#[test]
fn many_new_rows_are_copied_as_text_where_the_binary_form_is_not_known() {
    let rows: Vec<String> = (0..copy::ROWS_MIN).map(|id| id.to_string()).collect();
    let events: Vec<(Op, Texts<'_>, Texts<'_>)> =
        rows.iter().map(|id| (Op::Create, None, Some([id.as_str(), "Ann\t\\N", "2024-02-29", "7"]))).collect();
    // The target's id is wider than the source's: only a cast makes one of the other.
    assert!(sql(&events)[0].rows.is_none());
    let mut columns = relation().columns.clone();
    columns[0].type_oid = 23;
    let same = relation_in(TargetTable::default(), false);
    let same = Arc::new(
        Relation::new(0, 0, same.decoder.clone(), &TargetTable { columns, ..TargetTable::default() }, None).unwrap(),
    );
    let statements = sql_in(&same, &events).unwrap();
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0].expect, Expect::Rows(copy::ROWS_MIN as u64));
    assert!(!statements[0].joins());
    assert_eq!(statements[0].text(0), "COPY \"s\".\"t\"\"q\" (\"id\", \"name\", \"day\") FROM STDIN (FORMAT text)");
    assert!(statements[0].rows.as_ref().unwrap().bytes.starts_with(b"0\tAnn\\t\\\\N\t2024-02-29\n1\t"));
    assert!(sql_in(&same, &events[1..]).unwrap()[0].rows.is_none());
}
