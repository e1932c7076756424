//! Each change of a table that a person can make, with the target as it was, as it will be, and in between.

use changelog::{Definition, Identity, TableName};

use super::*;
use crate::relation::TargetColumn;

fn column(name: &str, attnum: i16) -> Column {
    typed(name, attnum, "pg_catalog.int4")
}

fn typed(name: &str, attnum: i16, type_name: &str) -> Column {
    Column {
        name: name.into(),
        type_oid: 0,
        typmod: -1,
        type_name: type_name.into(),
        key: None,
        definition: Definition { attnum, ..Definition::default() },
    }
}

fn shape(columns: &[Column]) -> TableShape {
    let columns = columns.to_vec();
    TableShape { database: "d".into(), table: TableName::new("s", "t"), oid: 0, identity: Identity::Default, columns }
}

fn target(names: &[&str]) -> TargetTable {
    let column =
        |name: &&str| TargetColumn { name: (*name).into(), declared: "integer".into(), ..TargetColumn::default() };
    TargetTable { columns: names.iter().map(column).collect(), ..TargetTable::default() }
}

fn asked(
    prior: Option<&[Column]>,
    next: &[Column],
    there: &[&str],
    statement: Option<&str>,
) -> Result<Vec<String>, Refusal> {
    let declared = |column: &Column| match column.type_name.as_str() {
        "pg_catalog.int4" => Some((column.name.clone(), "integer".to_owned())),
        "pg_catalog.int8" => Some((column.name.clone(), "bigint".to_owned())),
        "pg_catalog.timestamptz" => Some((column.name.clone(), "timestamp with time zone".to_owned())),
        _ => None,
    };
    let (prior, next) = (prior.map(shape), shape(next));
    let declared = next.columns.iter().filter_map(declared).collect();
    let (prior, target) = (prior.as_ref(), target(there));
    let plain = next.columns.iter().filter(|column| column.type_name != "pg_catalog.timestamptz");
    let plain = plain.map(|column| column.name.clone()).collect();
    let (next, target, declared, plain) = (&next, &target, &declared, &plain);
    let rewritten = statement.filter(|statement| statement.contains("USING")).map(|_| "it has them");
    let statements = Evolution { prior, next, target, declared, plain, statement, rewritten }.statements()?;
    let short = |statement: String| statement.strip_prefix("ALTER TABLE \"s\".\"t\" ").unwrap().to_owned();
    Ok(statements.into_iter().map(short).collect())
}

fn done(prior: &[Column], next: &[Column], there: &[&str]) -> Vec<String> {
    asked(Some(prior), next, there, None).unwrap()
}

fn refused(prior: &[Column], next: &[Column], there: &[&str]) -> Refusal {
    asked(Some(prior), next, there, None).unwrap_err()
}

#[test]
fn columns_are_added_dropped_and_renamed_by_their_number() {
    let (id, a, b) = (column("id", 1), column("a", 2), column("b", 3));
    assert_eq!(done(&[id.clone(), a.clone()], &[id.clone(), a.clone()], &["id", "a"]), [""; 0]);
    let added = done(&[id.clone(), a.clone()], &[id.clone(), a.clone(), b.clone()], &["id", "a"]);
    assert_eq!(added, ["ADD COLUMN \"b\" integer"]);
    assert_eq!(done(&[id.clone(), a.clone()], std::slice::from_ref(&id), &["id", "a"]), ["DROP COLUMN \"a\""]);
    let renamed = done(&[id.clone(), a.clone()], &[id.clone(), column("z", 2)], &["id", "a"]);
    assert_eq!(renamed, ["RENAME COLUMN \"a\" TO \"z\""]);
    // One name passes on: the old column goes before the other takes it.
    let passed = done(&[id.clone(), a.clone(), b.clone()], &[id.clone(), column("a", 3)], &["id", "a", "b"]);
    assert_eq!(passed, ["DROP COLUMN \"a\"", "RENAME COLUMN \"b\" TO \"a\""]);
    let swapped = done(&[a.clone(), b.clone()], &[column("b", 2), column("a", 3)], &["a", "b"]);
    assert_eq!(swapped.len(), 4);
    assert_eq!(swapped[0], "RENAME COLUMN \"a\" TO \"dflux_renamed_0\"");
    assert_eq!(swapped[3], "RENAME COLUMN \"dflux_renamed_1\" TO \"a\"");
    // A new column under a name that was vacated.
    let reused = done(&[id.clone(), a], &[id, column("z", 2), column("a", 3)], &["id", "a"]);
    assert_eq!(reused, ["RENAME COLUMN \"a\" TO \"z\"", "ADD COLUMN \"a\" integer"]);
}

#[test]
fn what_a_person_has_done_already_is_not_done_again() {
    let (id, a, b) = (column("id", 1), column("a", 2), column("b", 3));
    assert_eq!(done(&[id.clone(), a.clone()], &[id.clone(), a.clone(), b.clone()], &["id", "a", "b"]), [""; 0]);
    assert_eq!(done(&[id.clone(), a.clone()], std::slice::from_ref(&id), &["id"]), [""; 0]);
    assert_eq!(done(&[id.clone(), a.clone()], &[id.clone(), column("z", 2)], &["id", "z"]), [""; 0]);
    // A column that only the target has is nobody's business.
    assert_eq!(done(&[id.clone(), a.clone()], &[id, a, b], &["id", "a", "more"]), ["ADD COLUMN \"b\" integer"]);
}

#[test]
fn rows_that_were_there_get_the_value_of_that_time_and_later_ones_the_default() {
    let id = column("id", 1);
    let mut at = column("at", 2);
    at.definition.missing = Some("it's 7".into());
    at.definition.default = Some("pg_catalog.now()".into());
    let (prior, next) = ([id.clone()], [id.clone(), at.clone()]);
    let expected =
        ["ADD COLUMN \"at\" integer DEFAULT 'it''s 7'::integer", "ALTER COLUMN \"at\" SET DEFAULT pg_catalog.now()"];
    assert_eq!(done(&prior, &next, &["id"]), expected);
    at.definition.default = None;
    assert_eq!(done(&prior, &[id.clone(), at.clone()], &["id"])[1], "ALTER COLUMN \"at\" DROP DEFAULT");
    // Rewritten: each row has its own.
    at.definition = Definition { attnum: 2, default: Some("random()".into()), ..Definition::default() };
    let refusal = refused(&prior, &[id.clone(), at.clone()], &["id"]);
    assert!(
        refusal.copy_again && refusal.statement.ends_with("ADD COLUMN \"at\" integer DEFAULT random()"),
        "{refusal:?}"
    );
    // Adding it by hand does not give the rows their values.
    assert!(refused(&prior, &[id.clone(), at.clone()], &["id", "at"]).copy_again);
    // Copied anew since: nothing is known, and nothing is missing.
    assert_eq!(asked(None, &[id, at], &["id", "at"], None).unwrap(), [""; 0]);
}

#[test]
fn a_type_changes_only_where_the_statement_is_known_to_cast() {
    let (old, new) = ([column("a", 1)], [typed("a", 1, "pg_catalog.int8")]);
    let refusal = refused(&old, &new, &["a"]);
    assert_eq!(refusal.statement, "ALTER TABLE \"s\".\"t\" ALTER COLUMN \"a\" TYPE bigint");
    let by = |statement: &str| asked(Some(&old), &new, &["a"], Some(statement));
    assert_eq!(by("ALTER TABLE t ALTER a TYPE bigint").unwrap(), ["ALTER COLUMN \"a\" TYPE bigint"]);
    for unknown in ["alter table t alter a type bigint using a * 2", "SELECT migrate()", "DO $$ alter type $$"] {
        assert!(by(unknown).is_err(), "{unknown}");
    }
    let lacking = [typed("a", 1, "s.mood")];
    assert!(refused(&old, &lacking, &["a"]).statement.ends_with("TYPE s.mood"));
}

#[test]
fn values_that_an_expression_gave_are_copied_again_also_where_no_type_tells_of_them() {
    let (a, b) = (column("a", 1), column("b", 2));
    let by = |next: &[Column]| {
        asked(Some(std::slice::from_ref(&a)), next, &["a"], Some("ALTER TABLE t ALTER a TYPE int USING -a"))
    };
    let added = "ALTER TABLE \"s\".\"t\" ADD COLUMN \"b\" integer";
    let retyped = "ALTER TABLE \"s\".\"t\" ALTER COLUMN \"a\" TYPE bigint USING …, as the source did";
    for (next, statement) in
        [(&[a.clone()][..], ""), (&[a.clone(), b], added), (&[typed("a", 1, "pg_catalog.int8")], retyped)]
    {
        let refusal = by(next).unwrap_err();
        assert!(
            refusal.copy_again && refusal.statement == statement && refusal.what.contains("USING -a"),
            "{refusal:?}"
        );
        assert_eq!(refusal.said.as_deref(), Some("it has them"));
    }
}

#[test]
fn nothing_is_guessed() {
    let (id, a) = (column("id", 1), column("a", 2));
    // Of the time before nothing is known: added, or the target's under a new name?
    assert_eq!(asked(None, &[id.clone(), a.clone()], &["id"], None).unwrap(), ["ADD COLUMN \"a\" integer"]);
    let refusal = asked(None, &[id.clone(), a.clone()], &["id", "z"], None).unwrap_err();
    assert!(refusal.statement.ends_with("RENAME COLUMN \"z\" TO \"a\""));
    // Dropped and made again: the rows' values are gone, and no event said so.
    let refusal = refused(&[id.clone(), a.clone()], &[id.clone(), column("a", 3)], &["id", "a"]);
    assert!(refusal.copy_again && refusal.statement.is_empty());
    assert!(refused(&[id.clone(), a], &[id.clone(), column("z", 2)], &["id", "a", "z"]).what.contains("has both"));
    // The catalog does not know the column any more, and so not what its rows held.
    assert!(refused(std::slice::from_ref(&id), &[id.clone(), column("gone", 0)], &["id"]).copy_again);
    let refusal = refused(std::slice::from_ref(&id), &[id.clone(), typed("m", 2, "s.mood")], &["id"]);
    assert!(refusal.what.contains("s.mood"));
}

#[test]
fn defaults_follow_and_not_null_where_it_was_told_with_the_change() {
    let old = column("a", 1);
    let mut new = old.clone();
    new.definition.default = Some("7".into());
    assert_eq!(
        done(std::slice::from_ref(&old), std::slice::from_ref(&new), &["a"]),
        ["ALTER COLUMN \"a\" SET DEFAULT 7"]
    );
    assert_eq!(done(&[new], std::slice::from_ref(&old), &["a"]), ["ALTER COLUMN \"a\" DROP DEFAULT"]);
    let mut filled = old.clone();
    filled.definition.not_null = Some(true);
    assert_eq!(done(&[old], &[filled], &["a"]), ["ALTER COLUMN \"a\" SET NOT NULL"]);
}

#[test]
fn a_cast_that_depends_on_a_session_is_left_to_a_person_and_the_rows_to_a_copy() {
    let prior = [typed("at", 1, "pg_catalog.timestamp")];
    let next = [typed("at", 1, "pg_catalog.timestamptz")];
    let refusal = asked(Some(&prior), &next, &["at"], Some("ALTER TABLE t ALTER at TYPE timestamptz")).unwrap_err();
    assert!(refusal.copy_again && refusal.what.contains("settings"), "{refusal:?}");
    // Told, but not how.
    let refusal = asked(Some(&[column("a", 1)]), &[typed("a", 1, "pg_catalog.int8")], &["a"], Some("")).unwrap_err();
    assert!(!refusal.copy_again && refusal.statement.contains("TYPE bigint"), "{refusal:?}");
}

#[test]
fn a_column_of_which_nothing_was_told_comes_with_the_next_change_that_is() {
    let prior = [column("a", 1), column("b", 2)];
    let next = [column("a", 1), column("b", 2), column("c", 3)];
    let statements = asked(Some(&prior), &next, &["a"], Some("ALTER TABLE t ADD COLUMN c int")).unwrap();
    assert_eq!(statements, ["ADD COLUMN \"b\" integer", "ADD COLUMN \"c\" integer"]);
}
