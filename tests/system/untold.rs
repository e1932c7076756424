//! Tables that the source renames without an event trigger that tells of it: their next event shows it.

use std::time::Duration;

use tests::services::run;

use crate::moving::Moving;

/// Without the event trigger; nothing has been written since the copy.
fn quiet(label: &str, tables: &[&str]) -> Moving {
    let mut moving = Moving::shared(label);
    for table in tables {
        moving
            .source
            .run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT n, '{table}' FROM generate_series(1, 50) n"))
            .unwrap();
    }
    moving.prepare();
    moving.start();
    moving.without_trigger();
    moving
}

fn tables_of(moving: &Moving) -> Vec<String> {
    let sql = "SELECT n.nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
               WHERE relkind = 'r' AND nspname NOT LIKE 'pg%' AND nspname NOT IN ('information_schema', 'dflux') ORDER BY 1";
    moving.target.rows(sql).unwrap().into_iter().map(|row| row.into_iter().flatten().collect()).collect()
}

#[test]
fn a_table_that_had_no_event_since_its_copy_gets_its_new_name_with_the_first_one() {
    let mut moving = quiet("untold", &["flow"]);
    let consumer = moving.services.remove(1);
    consumer.kill();
    moving
        .source
        .run("ALTER TABLE flow RENAME TO stream; UPDATE stream SET v = 'w' WHERE id < 9; INSERT INTO stream VALUES (0, 'new')")
        .unwrap();
    moving.captured();
    // Made empty, it would take the rows that come, and those from before would be missing.
    let said = run("dflux", &moving.migration.config(), ["prepare"]).unwrap();
    assert!(said.stdout.contains("public.stream is not made yet: it is published"), "{said:?}");
    // It has made the trigger again.
    moving.without_trigger();
    moving.services.push(consumer.start_again().unwrap());
    moving.caught_up();
    moving.assert_tables_same(&["stream"]);
    // Again after events, and into another schema, with a column that is renamed in the same transaction.
    moving
        .source
        .run(
            "CREATE SCHEMA other; BEGIN; ALTER TABLE stream SET SCHEMA other; ALTER TABLE other.stream RENAME TO \"The Stream\"; \
             ALTER TABLE other.\"The Stream\" RENAME v TO text; UPDATE other.\"The Stream\" SET text = 'x' WHERE id < 3; COMMIT",
        )
        .unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["other.\"The Stream\""]);
    assert_eq!(tables_of(&moving), ["other.The Stream"]);
}

#[test]
fn tables_that_exchange_their_names_keep_their_rows_apart() {
    let mut moving = quiet("swapped", &["a", "b", "c"]);
    moving
        .source
        .run(
            "UPDATE a SET v = v || '1' WHERE id < 5; \
             BEGIN; ALTER TABLE a RENAME TO between; ALTER TABLE b RENAME TO a; ALTER TABLE between RENAME TO b; COMMIT; \
             UPDATE a SET v = v || '2' WHERE id < 7; DELETE FROM b WHERE id = 50; \
             BEGIN; ALTER TABLE c RENAME TO between; ALTER TABLE b RENAME TO c; ALTER TABLE a RENAME TO b; ALTER TABLE between RENAME TO a; \
             INSERT INTO b VALUES (60, 'of b'); COMMIT",
        )
        .unwrap();
    moving.restart(1);
    moving.source.run("UPDATE a SET v = v || '3'; UPDATE c SET v = v || '3'; TRUNCATE b").unwrap();
    moving.restart(0);
    moving.caught_up();
    moving.assert_tables_same(&["a", "b", "c"]);
    assert_eq!(tables_of(&moving), ["public.a", "public.b", "public.c"]);
}

#[test]
fn a_name_that_passes_on_waits_for_the_next_event_of_the_table_that_had_it() {
    let moving = quiet("passed", &["a", "b"]);
    moving.source.run("ALTER TABLE b RENAME TO c; ALTER TABLE a RENAME TO b; UPDATE b SET v = 'w'").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["b"]);
    moving.source.run("INSERT INTO c VALUES (51, 'x')").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["b", "c"]);
    assert_eq!(tables_of(&moving), ["public.b", "public.c"]);
}

#[test]
fn a_table_in_the_place_of_another_takes_none_of_its_rows() {
    let mut moving = quiet("replaced", &["flow", "rest"]);
    // Published at once, so that no copy of it begins by itself.
    let publication = moving.source.value("SELECT quote_ident(pubname) FROM pg_publication").unwrap();
    moving
        .source
        .run(&format!(
            "BEGIN; DROP TABLE flow; CREATE TABLE flow (id int PRIMARY KEY, v text); ALTER PUBLICATION {publication} ADD TABLE flow; \
             INSERT INTO flow VALUES (1, 'another'), (2, 'row'); COMMIT"
        ))
        .unwrap();
    moving.services[1].process().wait_ended(Duration::from_secs(60)).unwrap();
    let log = moving.services[1].log();
    assert!(log.contains("is another table of the source") && log.contains("dflux resync public.flow"), "{log}");
    run("dflux", &moving.migration.config(), ["resync", "flow"]).unwrap().expect_code(0).unwrap();
    moving.restart(1);
    moving.settled_again("flow", 1);
    moving.source.run("UPDATE flow SET v = v || '!'").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["flow", "rest"]);
}

#[test]
fn a_rename_in_the_middle_of_a_second_copy_waits_for_it() {
    let mut moving = quiet("amid", &["flow"]);
    moving.source.run("INSERT INTO flow SELECT n, 'many' FROM generate_series(100, 60000) n").unwrap();
    moving.caught_up();
    run("dflux", &moving.migration.config(), ["resync", "flow"]).unwrap().expect_code(0).unwrap();
    moving.becomes("it is copied again", "SELECT count(*) = 1 FROM dflux.table_state WHERE table_name = 'flow'");
    moving.source.run("ALTER TABLE flow RENAME TO stream; UPDATE stream SET v = 'w' WHERE id % 3 = 0").unwrap();
    moving.restart(1);
    moving.becomes(
        "it is the lane's",
        "SELECT count(*) = 1 FROM dflux.table_state WHERE table_name = 'stream' AND state = 'live'",
    );
    moving.caught_up();
    moving.assert_tables_same(&["stream"]);
}

#[test]
fn a_rename_that_is_told_behind_one_that_was_not_finds_the_table() {
    let moving = quiet("mixed", &["a"]);
    moving.source.run("ALTER TABLE a RENAME TO b").unwrap();
    run("dflux", &moving.migration.config(), ["prepare"]).unwrap();
    assert_eq!(moving.source.number("SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'dflux %'").unwrap(), 2);
    moving.source.run("ALTER TABLE b RENAME TO c; UPDATE c SET v = 'w' WHERE id < 5").unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["c"]);
    assert_eq!(tables_of(&moving), ["public.c"]);
}

#[test]
fn a_table_that_was_copied_under_its_new_name_is_the_one_that_is_renamed_next() {
    let moving = quiet("twice", &["a"]);
    moving.source.run("ALTER TABLE a RENAME TO b").unwrap();
    run("dflux", &moving.migration.config(), ["resync", "b", "--wait"]).unwrap().expect_code(0).unwrap();
    moving
        .source
        .run("ALTER TABLE b RENAME TO c; UPDATE c SET v = 'w' WHERE id < 5; DELETE FROM c WHERE id = 9")
        .unwrap();
    moving.caught_up();
    moving.assert_tables_same(&["c"]);
    assert_eq!(tables_of(&moving), ["public.a", "public.c"], "what it was called before stays as it was");
}
