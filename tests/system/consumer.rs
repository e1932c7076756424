//! The consumer alone, against real Kafka and a real target: topics are written by hand, as a producer would and as
//! producers in trouble would. Long, because each way that a lane can be written wrong is a case of one table of tests.

use changelog::{Lsn, Position};
use tests::services::Service;
use tests::wait;

use crate::feed::{Change, Feed, LIMIT, TestChunk, Written, delete, insert, rekey, update, update_full};

const ACCOUNTS: &str =
    "CREATE TABLE a (id int PRIMARY KEY, v text, n numeric); CREATE TABLE b (id int PRIMARY KEY, v text)";

fn accounts(label: &str) -> Feed {
    let mut feed = Feed::new(label, ACCOUNTS);
    feed.table("a", &["id int4 key", "v text", "n numeric"]);
    feed.table("b", &["id int4 key", "v text"]);
    feed
}

fn all(feed: &Feed, table: &str) -> Vec<String> {
    let sql = format!("SELECT {table}::text FROM {table} ORDER BY 1");
    feed.rows(&sql)
}

#[test]
fn transactions_are_applied_whole_and_in_source_order_over_all_tables() {
    let mut feed = accounts("order");
    let service = feed.started();
    feed.transaction(&[insert("a", "1|one|1.50"), insert("b", "1|x"), insert("a", "2|two|\\N")]);
    feed.transaction(&[update("a", "1|eins|2"), delete("b", "1|\\N"), insert("b", "2|y")]);
    // The manifest of the later transaction is there before the events of it are.
    let lsn = feed.next_lsn();
    let mut records =
        feed.records(lsn, &[delete("a", "2|\\N|\\N"), insert("a", "3|'quoted\"|NaN"), update("b", "2|z")]);
    let manifest = records.pop().unwrap();
    feed.write(&[manifest]);
    feed.write(&records);
    feed.reached(&service, lsn);
    assert_eq!(all(&feed, "a"), ["(1,eins,2)", "(3,\"'quoted\"\"\",NaN)"]);
    assert_eq!(all(&feed, "b"), ["(2,z)"]);
    assert_eq!(
        feed.rows("SELECT changes_applied || ' ' || transactions_applied || ' ' || phase FROM dflux.lane"),
        ["9 3 exact"]
    );
    assert_eq!(service.terminate().unwrap(), Some(0), "{}", service.log());
}

#[test]
fn a_transaction_whose_events_are_not_all_there_is_not_seen() {
    let mut feed = accounts("whole");
    let service = feed.started();
    let lsn = feed.next_lsn();
    let records = feed.records(lsn, &[insert("a", "1|one|1"), insert("b", "1|x")]);
    let (first, rest) = records.split_at(1);
    feed.write(first);
    let marker = rest[1].clone();
    feed.write(&[marker]); // the manifest
    let before = feed.next_lsn();
    let later = feed.records(before, &[insert("a", "2|two|2")]);
    feed.write(&later);
    wait::until_true("the first event is fetched", LIMIT, || service.wait_healthy(LIMIT).is_ok()).unwrap();
    assert!(all(&feed, "a").is_empty());
    feed.write(&rest[..1]);
    feed.reached(&service, before);
    assert_eq!(all(&feed, "a").len(), 2);
}

#[test]
fn what_a_restarted_or_replaced_producer_sends_again_is_dropped() {
    let mut feed = accounts("resent");
    let service = feed.started();
    let first = feed.next_lsn();
    let one = feed.records(first, &[insert("a", "1|one|1"), insert("b", "1|x"), update("a", "1|uno|1")]);
    let second = feed.next_lsn();
    let two = feed.records(second, &[delete("a", "1|\\N|\\N"), insert("a", "2|two|2")]);
    // A producer dies after two events of the first transaction; the next one skips what is there, and the first, which
    // does not know that it is dead, sends all of it again between and behind the others.
    feed.write(&one[..2]);
    feed.write(&one[2..]);
    feed.write(&one[..1]);
    feed.write(&two[..1]);
    feed.write(&one);
    feed.write(&two[1..]);
    feed.write(&one);
    feed.write(&two);
    let last = feed.transaction(&[insert("b", "3|z")]);
    feed.reached(&service, last);
    assert_eq!(all(&feed, "a"), ["(2,two,2)"]);
    assert_eq!(all(&feed, "b"), ["(1,x)", "(3,z)"]);
    assert_eq!(feed.rows("SELECT changes_applied || ' ' || diverged FROM dflux.lane"), ["6 0"]);
}

#[test]
fn a_consumer_that_is_killed_goes_on_where_the_target_is() {
    let mut feed = accounts("killed");
    let mut service = feed.started();
    for round in 0..5 {
        for row in 0..20 {
            let id = round * 100 + row;
            feed.transaction(&[insert("a", &format!("{id}|v|{id}")), insert("b", &format!("{id}|w"))]);
        }
        service = service.start_again().unwrap();
    }
    let last = feed.transaction(&[update("a", "0|last|0")]);
    feed.reached(&service, last);
    assert_eq!(feed.rows("SELECT count(*)::text FROM a"), ["100"]);
    assert_eq!(feed.rows("SELECT changes_applied || ' ' || transactions_applied FROM dflux.lane"), ["201 101"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
}

#[test]
fn changes_of_one_key_in_one_batch_have_the_effect_of_each_in_turn() {
    let mut feed = Feed::new(
        "folded",
        "CREATE TABLE t (id int PRIMARY KEY, big text, v text); CREATE TABLE u (id int PRIMARY KEY, x int UNIQUE)",
    );
    feed.table("t", &["id int4 key", "big text", "v text"]);
    feed.table("u", &["id int4 key", "x int4"]);
    // Everything is there before the consumer starts: one batch.
    feed.transaction(&[insert("t", "1|toast|a"), insert("t", "2|gone|b"), insert("t", "9|stays|q")]);
    feed.transaction(&[update("t", "1|~|b"), delete("t", "2|\\N|\\N"), insert("t", "2|again|c"), update("t", "2|~|d")]);
    feed.transaction(&[rekey("t", "1|\\N|\\N", "3|~|e"), update("t", "3|~|f"), rekey("t", "2|\\N|\\N", "4|whole|g")]);
    feed.transaction(&[insert("t", "5|x|y"), delete("t", "5|\\N|\\N"), update("t", "9|~|\\N")]);
    // Swapped unique values, possible only step by step.
    feed.transaction(&[insert("u", "1|10"), insert("u", "2|20")]);
    feed.transaction(&[update("u", "1|-1"), update("u", "2|10"), update("u", "1|20")]);
    feed.transaction(&[delete("u", "1|\\N"), insert("u", "3|20")]);
    let last = feed.transaction(&[insert("t", "6|é|\\N")]);
    let service = feed.started();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(3,toast,f)", "(4,whole,g)", "(6,é,)", "(9,stays,)"]);
    assert_eq!(all(&feed, "u"), ["(2,10)", "(3,20)"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
}

/// So many new rows of one table go by COPY, in its binary form where the types are the same, else in its text form.
#[test]
fn many_new_rows_of_one_table_arrive_as_they_are() {
    const ROWS: usize = 600;
    let mut feed = Feed::new(
        "many",
        "CREATE TABLE plain (id int PRIMARY KEY, t text, at timestamptz, b bytea, f float8);
         CREATE TABLE other (id int PRIMARY KEY, t varchar(40), n numeric(12,2), d date, a int[]);
         CREATE TABLE days (id int PRIMARY KEY, d date); CREATE TABLE heap (t text);
         CREATE TABLE u (id int PRIMARY KEY, x int UNIQUE)",
    );
    feed.table("plain", &["id int4 key", "t text", "at timestamptz", "b bytea", "f float8"]);
    feed.table("other", &["id int4 key", "t text", "n numeric", "d date", "a text"]);
    // Its binary form has no infinity: all of it goes as text then.
    feed.table("days", &["id int4 key", "d date"]);
    feed.table("heap", &["t text"]);
    feed.table("u", &["id int4 key", "x int4"]);
    let hostile = ["a\tb", "c\nd\r", "x\\N", "\\", "", "\\.", "é\u{2028}'\"", "tail\\"];
    let text = |at: usize| hostile[at % hostile.len()];
    let mut expected = (Vec::new(), Vec::new());
    let mut changes = Vec::new();
    for at in 0..ROWS {
        let day = if at == 7 { "infinity".to_owned() } else { format!("2024-02-{:02}", at % 28 + 1) };
        let double = if at % 5 == 0 { "NaN".to_owned() } else { format!("{}.5", at) };
        changes.push(insert(
            "plain",
            &format!("{at}|{}|2024-01-01 00:00:00.{:06}+00|\\x{at:04x}|{double}", text(at), at + 1),
        ));
        changes.push(insert("other", &format!("{at}|{}|{at}.25|{day}|{{{at},NULL}}", text(at))));
        changes.push(insert("days", &format!("{at}|{day}")));
        changes.push(insert("heap", &format!("{}x", text(at))));
        expected.0.push(text(at).to_owned());
        expected.1.push(format!("{at} {at}.25 {day} {{{at},NULL}} {}", text(at)));
    }
    feed.transaction(&changes);
    // Both orders of one unique value in one batch: refused as a whole, right one by one.
    let mut swapped: Vec<Change> = (0..ROWS).map(|at| insert("u", &format!("{at}|{at}"))).collect();
    swapped.extend([delete("u", "5|\\N"), insert("u", &format!("{ROWS}|5"))]);
    feed.transaction(&swapped);
    let last = feed.transaction(&[update("u", "6|-6"), insert("u", &format!("{}|6", ROWS + 1))]);
    let service = feed.started();
    feed.reached(&service, last);
    assert_eq!(feed.rows("SELECT t FROM plain ORDER BY id"), expected.0);
    let odd = "SELECT count(*)::text FROM plain WHERE b <> decode(lpad(to_hex(id), 4, '0'), 'hex') \
               OR extract(microseconds FROM at) <> id + 1 OR (id % 5 = 0) <> (f = 'NaN')";
    assert_eq!(feed.rows(odd), ["0"]);
    assert_eq!(feed.rows("SELECT concat_ws(' ', id, n, d, a, t) FROM other ORDER BY id"), expected.1);
    assert_eq!(feed.rows("SELECT count(*)::text FROM days JOIN other USING (id, d)"), [ROWS.to_string()]);
    assert_eq!(feed.rows("SELECT count(*)::text FROM heap WHERE right(t, 1) = 'x'"), [ROWS.to_string()]);
    assert_eq!(
        feed.rows("SELECT count(*) || ' ' || min(x) || ' ' || (SELECT x FROM u WHERE id = 600) FROM u"),
        ["601 -6 5"]
    );
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
}

#[test]
fn a_truncate_stands_between_what_came_before_and_after() {
    let mut feed = accounts("truncated");
    feed.transaction(&[insert("a", "1|x|1"), insert("b", "1|x")]);
    feed.transaction(&[insert("a", "2|x|1"), Change::Truncate(vec!["a", "b"]), insert("a", "1|y|2")]);
    let last = feed.transaction(&[update("a", "1|z|3")]);
    let service = feed.started();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "a"), ["(1,z,3)"]);
    assert!(all(&feed, "b").is_empty());
}

#[test]
fn of_equal_rows_of_a_keyless_table_as_many_go_as_events_say() {
    let mut feed = Feed::new("keyless", "CREATE TABLE k (n numeric, v text)");
    feed.table("k", &["n numeric", "v text"]);
    let service = feed.started();
    let first = feed.transaction(&[
        insert("k", "1.0|x"),
        insert("k", "1.0|x"),
        insert("k", "1.0|x"),
        insert("k", "1.00|x"),
        insert("k", "\\N|\\N"),
        insert("k", "\\N|\\N"),
    ]);
    feed.reached(&service, first);
    assert_eq!(all(&feed, "k"), ["(,)", "(,)", "(1.0,x)", "(1.0,x)", "(1.0,x)", "(1.00,x)"]);
    let second = feed.transaction(&[
        delete("k", "1.0|x"),
        delete("k", "1.0|x"),
        delete("k", "\\N|\\N"),
        update_full("k", "1.00|x", "2|y"),
        update_full("k", "2|y", "3|z"),
    ]);
    feed.reached(&service, second);
    assert_eq!(all(&feed, "k"), ["(,)", "(1.0,x)", "(3,z)"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
    let third = feed.transaction(&[delete("k", "7|no"), delete("k", "3|z")]);
    feed.reached(&service, third);
    assert_eq!(all(&feed, "k"), ["(,)", "(1.0,x)"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["1"]);
}

#[test]
fn a_change_that_finds_no_row_is_a_divergence_and_the_rest_of_its_batch_is_applied() {
    let mut feed = accounts("diverged");
    feed.transaction(&[insert("a", "1|x|1"), insert("a", "2|x|1")]);
    feed.transaction(&[update("a", "7|x|1"), delete("b", "8|\\N"), update("a", "1|y|2")]);
    let last = feed.transaction(&[delete("a", "2|\\N|\\N")]);
    let service = feed.started();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "a"), ["(1,y,2)"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["2"]);
    let found = feed.rows("SELECT table_name || ' ' || op || ' ' || ordinal FROM dflux.divergence ORDER BY ordinal");
    assert_eq!(found, ["a update 0", "b delete 1"]);
    assert_eq!(service.metric("dflux_consumer_diverged_total").unwrap(), Some(2.0));
}

#[test]
fn a_transaction_of_several_segments_is_applied_at_once_in_bounded_batches() {
    let mut feed = accounts("segments");
    feed.migration.configure(&[("consumer", "batch_changes_max", 100.into())]).unwrap();
    let service = feed.started();
    let lsn = feed.next_lsn();
    let (mut written, mut manifests): (Vec<Vec<Written>>, Vec<Written>) = (Vec::new(), Vec::new());
    for segment in 0..4_u64 {
        let mut events = Vec::new();
        let mut last = Position::default();
        for ordinal in segment * 250..segment * 250 + 250 {
            let change =
                if ordinal % 250 == 249 { update("a", "0|updated|0") } else { insert("a", &format!("{ordinal}|v|1")) };
            last = feed.events(Position::new(lsn, ordinal), &change, &mut events);
        }
        let manifest = feed.manifest(last, segment == 3, &events);
        manifests.push(feed.lane_record(&changelog::LaneRecord::Manifest(manifest)));
        written.push(events);
    }
    for segment in 0..3 {
        feed.write(&written[segment]);
        feed.write(&manifests[segment..=segment]);
    }
    wait::until_true("three segments are in the open transaction", LIMIT, || {
        let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()";
        feed.target.number(active).is_ok_and(|count| count > 0)
    })
    .unwrap();
    assert!(all(&feed, "a").is_empty());
    feed.write(&written[3]);
    feed.write(&manifests[3..]);
    feed.reached(&service, lsn);
    assert_eq!(feed.rows("SELECT count(*)::text || (SELECT v FROM a WHERE id = 0) FROM a"), ["996updated"]);
    assert_eq!(
        feed.rows("SELECT changes_applied || ' ' || transactions_applied || ' ' || diverged FROM dflux.lane"),
        ["1000 1 0"]
    );
}

fn second_instance(feed: &Feed) -> Service {
    let standby = feed.migration.service("consumer").name("standby").arguments(["--lane", "forward"]).start().unwrap();
    // Ready: it has seen the leader's sign of life.
    wait::until("it stands by", LIMIT, || match standby.ready() {
        Ok(state) if state.trim() == "standing by" => Ok(()),
        Ok(state) => Err(state),
        Err(failure) => Err(failure.to_string()),
    })
    .unwrap();
    standby
}

#[test]
fn a_second_instance_takes_over_when_the_first_is_killed() {
    let mut feed = accounts("takeover");
    let service = feed.started();
    let first = feed.transaction(&[insert("a", "1|x|1")]);
    feed.reached(&service, first);
    let standby = second_instance(&feed);
    service.kill();
    let second = feed.transaction(&[insert("a", "2|x|1")]);
    feed.reached(&standby, second);
    assert_eq!(feed.rows("SELECT epoch::text FROM dflux.lane"), ["2"]);
    assert_eq!(all(&feed, "a").len(), 2);
}

#[test]
fn a_hung_instance_is_replaced_and_commits_nothing_when_it_wakes_up() {
    let mut feed = accounts("hung");
    feed.migration.configure(&[("consumer", "lease_seconds", 2.into())]).unwrap();
    let service = feed.started();
    let first = feed.transaction(&[insert("a", "1|x|1")]);
    feed.reached(&service, first);
    let standby = second_instance(&feed);
    service.pause();
    let second = feed.transaction(&[insert("a", "2|x|1"), update("a", "1|y|1")]);
    feed.reached(&standby, second);
    service.resume();
    wait::until("the first stands by", LIMIT, || match service.health() {
        Ok(health) if health.contains("standing by") => Ok(()),
        Ok(health) => Err(health),
        Err(failure) => Err(failure.to_string()),
    })
    .unwrap();
    let third = feed.transaction(&[insert("a", "3|x|1")]);
    feed.reached(&standby, third);
    assert_eq!(all(&feed, "a").len(), 3);
    assert_eq!(feed.rows("SELECT epoch || ' ' || changes_applied || ' ' || diverged FROM dflux.lane"), ["2 4 0"]);
}

#[test]
fn a_topic_made_anew_under_the_same_name_is_a_named_error() {
    let mut feed = accounts("anew");
    let service = feed.started();
    for row in 0..5 {
        feed.transaction(&[insert("a", &format!("{row}|x|1"))]);
    }
    let marker = feed.marker("");
    feed.reached(&service, marker);
    wait::until_true("the offsets are noted", LIMIT, || {
        feed.marker("");
        feed.target
            .number("SELECT count(*) FROM dflux.offset_hint WHERE commit_lsn IS NOT NULL AND topic LIKE '%.a'")
            .is_ok_and(|n| n == 1)
    })
    .unwrap();
    service.kill();
    let broker = &tests::stack::shared().unwrap().broker;
    broker.delete_topic(&feed.topic("a")).unwrap();
    broker.create_topic(&feed.topic("a"), 1, &[("retention.ms", "-1")]).unwrap();
    for row in 10..20 {
        feed.transaction(&[insert("a", &format!("{row}|x|1"))]);
    }
    let log = feed.ends(&feed.consumer());
    assert!(log.contains("deleted, made anew or cut off") && log.contains("hint: "), "{log}");
    assert_eq!(all(&feed, "a").len(), 5);
    assert_eq!(feed.rows("SELECT phase || (error LIKE '%made anew%') FROM dflux.lane"), ["stoppedtrue"]);
}

#[test]
fn a_lost_event_is_a_named_error() {
    let mut feed = accounts("lost");
    let lsn = feed.next_lsn();
    let records = feed.records(lsn, &[insert("a", "1|x|1"), insert("a", "2|x|1")]);
    feed.write(&[records[0].clone(), records[2].clone()]);
    feed.transaction(&[insert("a", "3|x|1")]);
    let log = feed.ends(&feed.started());
    assert!(log.contains("events are lost"), "{log}");
    assert!(all(&feed, "a").is_empty());
}

#[test]
fn an_event_that_cannot_be_read_stops_the_lane_before_its_transaction_and_is_named() {
    // Cut off, of a schema that the registry does not know, of no frame at all.
    type Breaks = fn(&mut Vec<u8>);
    let broken: [(&str, Breaks); 3] = [
        ("public.a at 0/1200 (ordinal 0)", |value| value.truncate(value.len() - 3)),
        ("schema id 2000000000", |value| value[1..5].copy_from_slice(&2_000_000_000_u32.to_be_bytes())),
        ("offset 1", |value| value[0] = 9),
    ];
    for (at, (named, breaks)) in broken.into_iter().enumerate() {
        let mut feed = accounts(&format!("broken{at}"));
        feed.transaction(&[insert("a", "1|x|1")]);
        let lsn = feed.next_lsn();
        let mut records = feed.records(lsn, &[insert("a", "2|x|1"), insert("b", "1|y")]);
        breaks(&mut records[0].value);
        feed.write(&records);
        let log = feed.ends(&feed.started());
        assert!(log.contains(named) && log.contains("hint: "), "{named}: {log}");
        assert_eq!(all(&feed, "a"), ["(1,x,1)"], "{named}: {log}");
        assert!(all(&feed, "b").is_empty());
        assert!(feed.rows("SELECT error FROM dflux.lane")[0].contains(named));
    }
}

#[test]
fn another_source_under_the_same_name_is_a_named_error() {
    let mut feed = accounts("foreign");
    let service = feed.started();
    let lsn = feed.transaction(&[insert("a", "1|x|1")]);
    feed.reached(&service, lsn);
    service.kill();
    feed.target.run("UPDATE dflux.lane SET system_identifier = '1'").unwrap();
    let log = feed.ends(&feed.consumer());
    assert!(log.contains("system identifier"), "{log}");
}

#[test]
fn a_column_that_the_target_lacks_is_named_before_anything_is_applied() {
    let mut feed = accounts("lacks");
    feed.target.run("ALTER TABLE a DROP COLUMN v").unwrap();
    feed.transaction(&[insert("b", "1|x"), insert("a", "1|x|1")]);
    let log = feed.ends(&feed.started());
    assert!(
        log.contains("has got column v") && log.contains("ALTER TABLE \"public\".\"a\" ADD COLUMN \"v\" text"),
        "{log}"
    );
    assert!(log.contains("dflux resync public.a"), "{log}");
    assert!(all(&feed, "b").is_empty());
    feed.target.run("ALTER TABLE a ADD COLUMN v text").unwrap();
    // The other way round, as after a DROP COLUMN on the source: told, not stopped.
    feed.target.run("ALTER TABLE b ADD COLUMN dropped_there text, ADD COLUMN own int DEFAULT 5").unwrap();
    let last = feed.marker("");
    let service = feed.consumer();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "b"), ["(1,x,,5)"]);
    assert_eq!(service.metric("dflux_consumer_unfilled_columns").unwrap(), Some(1.0));
    assert!(service.log().contains("dropped_there"), "{}", service.log());
}

#[test]
fn every_type_arrives_as_it_was() {
    let mut feed = Feed::new(
        "types",
        "CREATE TABLE y (id int PRIMARY KEY, b bool, i8 int8, f float8, m numeric(10,2), d date, ts timestamp, tz timestamptz, \
         by bytea, u uuid, c char(5), vc varchar(3), ar int[], j jsonb, gen int GENERATED ALWAYS AS (id * 2) STORED, extra int DEFAULT 5)",
    );
    let columns = [
        "id int4 key",
        "b bool",
        "i8 int8",
        "f float8",
        "m money2",
        "d date",
        "ts timestamp",
        "tz timestamptz",
        "by bytea",
        "u uuid",
        "c bpchar5",
        "vc varchar3",
        "ar int4array",
        "j jsonb",
    ];
    feed.table("y", &columns);
    let ordinary = "1|t|-9223372036854775808|-0|-12345678.90|2024-02-29|1999-12-31 23:59:59.999999|0001-01-01 00:00:00+00|\\x00ff|\
                    a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|ab   |xyz|{1,NULL,3}|{\"a\": 1}";
    let odd = "2|f|1|NaN|NaN|infinity|-infinity|0044-03-15 10:00:00+00 BC|\\x|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|     ||{}|null";
    feed.transaction(&[
        insert("y", ordinary),
        insert("y", odd),
        insert("y", "3|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N|\\N"),
    ]);
    let last = feed.transaction(&[update("y", &ordinary.replacen("1|t", "1|f", 1))]);
    let service = feed.started();
    feed.reached(&service, last);
    let rows = feed.rows("SET timezone = 'UTC'; SELECT y::text FROM y ORDER BY id");
    let expected = [
        "(1,f,-9223372036854775808,-0,-12345678.90,2024-02-29,\"1999-12-31 23:59:59.999999\",\"0001-01-01 00:00:00+00\",\"\\\\x00ff\",\
         a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,\"ab   \",xyz,\"{1,NULL,3}\",\"{\"\"a\"\": 1}\",2,5)",
        "(2,f,1,NaN,NaN,infinity,-infinity,\"0044-03-15 10:00:00+00 BC\",\"\\\\x\",a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,\"     \",\"\",{},null,4,5)",
        "(3,,,,,,,,,,,,,,6,5)",
    ];
    assert_eq!(rows, expected);
    let long = feed.transaction(&[insert("y", &odd.replacen("||{}", "|toolong|{}", 1).replacen("2|", "4|", 1))]);
    let log = feed.ends(&service);
    assert!(log.contains(&format!("insert on public.y at {}", Position::new(long, 0))), "{log}");
}

fn chunk<'a>(table: &'a str, number: u32, partition: i32, lsn: Lsn) -> TestChunk<'a> {
    TestChunk {
        table,
        number,
        generation: 0,
        attempt: 1,
        partition,
        snapshot_lsn: lsn,
        exact: true,
        columns: &["id", "v"],
    }
}

#[test]
fn a_chunk_is_loaded_once_whatever_attempts_come_and_half_a_chunk_leaves_nothing() {
    let mut feed = Feed::new("chunks", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    let c = feed.consistent_point;
    let (one, two) = (chunk("t", 0, 0, c), chunk("t", 1, 1, c));
    let half = TestChunk { number: 2, ..one };
    let again = TestChunk { attempt: 2, ..half };
    feed.write(&[
        feed.block(&one, (0, None), "1\ta\n"),
        feed.block(&one, (1, Some(2)), "2\tb\n"),
        feed.block(&two, (0, Some(1)), "11\tk\n"),
        feed.block(&half, (0, None), "21\thalf\n"),
        // The producer died and reads it again, in the same partition; and sends the first one twice.
        feed.block(&again, (0, None), "21\tu\n"),
        feed.block(&half, (1, Some(2)), "22\thalf\n"),
        feed.block(&again, (1, Some(2)), "22\tw\n"),
        feed.block(&TestChunk { attempt: 2, ..one }, (0, Some(1)), "1\twrong\n"),
        feed.block(&TestChunk { attempt: 3, ..two }, (0, Some(1)), "1\twrong\n"),
    ]);
    feed.copied("t", &["id"], 3, 5);
    feed.completed(&["t"], c);
    let last = feed.transaction(&[update("t", "1|A"), delete("t", "11|\\N"), insert("t", "12|l")]);
    let service = feed.consumer();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(1,A)", "(12,l)", "(2,b)", "(21,u)", "(22,w)"]);
    assert_eq!(
        feed.rows("SELECT chunk || ':' || attempt || ':' || row_count FROM dflux.chunk ORDER BY 1"),
        ["0:1:2", "1:1:1", "2:2:2"]
    );
    let keys = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = 't'::regclass";
    assert_eq!(feed.rows(keys), ["PRIMARY KEY (id)"]);
}

#[test]
fn a_load_that_is_killed_goes_on_with_the_chunks_that_are_missing() {
    let mut feed = Feed::new("loadkill", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    let c = feed.consistent_point;
    let mut service = feed.consumer();
    for number in 0..6 {
        let part = chunk("t", number, (number % 2) as i32, c);
        feed.write(&[feed.block(&part, (0, None), &format!("{number}\ta\n"))]);
        if number == 2 || number == 4 {
            service = service.start_again().unwrap();
        }
        feed.write(&[feed.block(&part, (1, Some(2)), &format!("{}\tb\n", number + 100))]);
    }
    feed.copied("t", &["id"], 6, 12);
    feed.completed(&["t"], c);
    let marker = feed.marker("");
    feed.reached(&service, marker);
    assert_eq!(feed.rows("SELECT count(*)::text FROM t"), ["12"]);
}

#[test]
fn a_missing_block_or_a_wrong_count_of_rows_is_a_named_error() {
    for (label, sequence, rows, part) in [("gap", 2, 2, "block 2 follows block 0"), ("count", 1, 3, "holds 2 rows")] {
        let mut feed = Feed::new(label, "CREATE TABLE t (id int, v text)");
        feed.table("t", &["id int4 key", "v text"]);
        let one = chunk("t", 0, 0, feed.consistent_point);
        feed.write(&[feed.block(&one, (0, None), "1\ta\n"), feed.block(&one, (sequence, Some(rows)), "2\tb\n")]);
        let log = feed.ends(&feed.consumer());
        assert!(log.contains(part), "{log}");
        assert!(all(&feed, "t").is_empty());
    }
}

#[test]
fn changes_that_the_copy_may_have_already_are_tolerated_until_it_is_passed() {
    let mut feed = Feed::new("tolerant", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    let c = feed.consistent_point;
    // Chunk 0 was read at C, chunk 1 under a later snapshot, when the two transactions below were in it already.
    feed.transaction(&[insert("t", "11|new"), delete("t", "12|\\N"), update("t", "1|changed"), update("t", "13|v")]);
    let second = feed.transaction(&[update("t", "11|newer"), rekey("t", "2|\\N", "14|moved")]);
    let later = Lsn(second.0 + 0x10);
    let one = chunk("t", 0, 0, c);
    let two = TestChunk { exact: false, snapshot_lsn: later, ..chunk("t", 1, 1, c) };
    feed.write(&[
        feed.block(&one, (0, Some(2)), "1\ta\n2\tb\n"),
        feed.block(&two, (0, Some(3)), "11\tnewer\n13\tv\n14\tmoved\n"),
    ]);
    feed.copied("t", &["id"], 2, 5);
    feed.completed(&["t"], later);
    let service = feed.consumer();
    feed.reached(&service, second);
    let last = feed.transaction(&[update("t", "14|strict")]);
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(1,changed)", "(11,newer)", "(13,v)", "(14,strict)"]);
    assert_eq!(feed.rows("SELECT phase || diverged FROM dflux.lane"), ["exact0"]);
    let diverging = feed.transaction(&[delete("t", "99|\\N")]);
    feed.reached(&service, diverging);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["1"]);
}

#[test]
fn changes_of_a_keyless_table_below_its_snapshot_are_skipped() {
    let mut feed = Feed::new("below", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4", "v text"]);
    let c = feed.consistent_point;
    let first = feed.transaction(&[insert("t", "1|a"), insert("t", "1|a")]);
    let copy = TestChunk { snapshot_lsn: Lsn(first.0 + 1), ..chunk("t", 0, 0, c) };
    feed.write(&[feed.block(&copy, (0, Some(2)), "1\ta\n1\ta\n")]);
    feed.copied("t", &[], 1, 2);
    feed.completed(&["t"], c);
    let last = feed.transaction(&[insert("t", "1|a"), update_full("t", "1|a", "2|b")]);
    let service = feed.consumer();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(1,a)", "(1,a)", "(2,b)"]);
}

#[test]
fn columns_that_no_event_has_are_read_again_from_the_source() {
    let mut feed = Feed::new("incomplete", "CREATE TABLE t (id int, big text, v text)");
    feed.table("t", &["id int4 key", "big text", "v text"]);
    let source = feed.migration.source().unwrap();
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, big text, v text); INSERT INTO t VALUES (5, 'toast''\\', 'b')")
        .unwrap();
    let point: Lsn = source.value("SELECT pg_current_wal_insert_lsn()").unwrap().parse().unwrap();
    let c = feed.consistent_point;
    // The row moved from chunk 1 to chunk 0 between their snapshots: no chunk has it, and its change not its TOAST column.
    let first = feed.transaction(&[rekey("t", "50|\\N|\\N", "5|~|a"), update("t", "5|~|b")]);
    feed.copied("t", &["id"], 1, 0);
    let empty = TestChunk { columns: &["id", "big", "v"], exact: false, ..chunk("t", 0, 0, c) };
    feed.write(&[feed.block(&empty, (0, Some(0)), "")]);
    feed.completed(&["t"], Lsn(first.0 + 1));
    let service = feed.consumer();
    feed.marker("");
    wait::until("the row is read again", LIMIT, || {
        let rows = all(&feed, "t");
        if rows.len() == 1 { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
    assert_eq!(all(&feed, "t"), ["(5,\"toast'\\\\\",b)"]);
    assert_eq!(feed.rows("SELECT count(*)::text FROM dflux.incomplete"), ["0"]);
    let tolerant = format!("SELECT phase || (exact_from >= '{point}') FROM dflux.lane");
    assert_eq!(feed.rows(&tolerant), ["toleranttrue"]);
    // An error of the run before is not told while the lane catches up again.
    service.kill();
    feed.target.run("UPDATE dflux.lane SET phase = 'stopped', error = 'broke', error_hint = 'mend'").unwrap();
    let service = feed.consumer();
    wait::until("the old error is gone", LIMIT, || {
        let told = feed.rows("SELECT phase || coalesce(error, '') || coalesce(error_hint, '') FROM dflux.lane");
        if told == ["tolerant"] { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
}

/// Of these types the cast to text is not what they print, or there is no `=` without their schema.
#[test]
fn a_row_that_is_read_again_is_found_and_is_as_it_was_whatever_its_types() {
    let columns = "id ltree, flag bool, host inet, big bpchar, c regclass, r r";
    let types = "CREATE EXTENSION ltree; CREATE TYPE r AS (a int, b text);";
    let mut feed = Feed::new("typed", &format!("{types} CREATE TABLE t ({columns})"));
    feed.table("t", &["id text key0", "flag bool key1", "host text key2", "big text", "c text", "r text"]);
    let source = feed.migration.source().unwrap();
    source.run(&format!("{types} CREATE TABLE t ({columns}, PRIMARY KEY (id, flag, host))")).unwrap();
    source.run("INSERT INTO t VALUES ('a.b', true, '1.2.3.4', 'padded  ', '-', '(,)'), ('a.c', false, '::1', '', NULL, NULL)").unwrap();
    let c = feed.consistent_point;
    let first = feed.transaction(&[update("t", "a.b|t|1.2.3.4|~|~|~"), update("t", "a.c|f|::1|~|~|~")]);
    feed.copied("t", &["id", "flag", "host"], 1, 1);
    // One of the two is there: it is found by its key, and left.
    let names = &["id", "flag", "host", "big", "c", "r"];
    let one = TestChunk { columns: names, exact: false, ..chunk("t", 0, 0, c) };
    feed.write(&[feed.block(&one, (0, Some(1)), "a.c\tf\t::1\tleft\t\\N\t\\N\n")]);
    feed.completed(&["t"], Lsn(first.0 + 1));
    let service = feed.consumer();
    feed.marker("");
    let read = "SELECT x::text || octet_length(big) FROM t x ORDER BY 1";
    let expected = ["(a.b,t,1.2.3.4,\"padded  \",-,\"(,)\")8", "(a.c,f,::1,left,,)4"];
    wait::until("the row is read again", LIMIT, || {
        let rows = feed.rows(read);
        if rows == expected { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
}

#[test]
fn a_replayed_table_is_completed_from_the_source_and_waits_for_the_lane_to_come_there() {
    let mut feed = Feed::new("replayincomplete", "CREATE TABLE t (id int, big text, v text)");
    feed.table("t", &["id int4 key", "big text", "v text"]);
    let source = feed.migration.source().unwrap();
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, big text, v text); INSERT INTO t VALUES (5, 'toast', 'b')")
        .unwrap();
    // As above: the copy is later than the change, and has the row neither where it was nor where it went.
    let first = feed.transaction(&[rekey("t", "50|\\N|\\N", "5|~|a"), update("t", "5|~|b")]);
    feed.copied("t", &["id"], 1, 0);
    let late = Lsn(first.0 + 1);
    let empty = TestChunk { columns: &["id", "big", "v"], exact: false, ..chunk("t", 0, 0, late) };
    feed.write(&[feed.block(&empty, (0, Some(0)), "")]);
    feed.ledger_chunk(&empty, 0);
    feed.completed(&["t"], late);
    let mut service = feed.consumer();
    feed.marker("");
    let beyond = |source: &tests::sql::Session| {
        let now: Lsn = source.value("SELECT pg_current_wal_insert_lsn()").unwrap().parse().unwrap();
        Lsn(now.0 + (1 << 30))
    };
    let holds = |service: &Service, question: &str| {
        wait::until(question, LIMIT, || match feed.target.value(question) {
            Ok(answer) if answer == "t" => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
        .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
    };
    holds(&service, "SELECT exact_from > '0/100000' FROM dflux.lane");
    feed.target
        .run("INSERT INTO dflux.table_state SELECT lane, 'public', 't', 0, 'requested' FROM dflux.lane")
        .unwrap();
    // The row is there again; the table is the lane's only where the lane has come to the moment at which it was read.
    holds(&service, "SELECT snapshot_lsn > '0/100000' FROM dflux.chunk");
    service = service.start_again().unwrap();
    holds(&service, "SELECT state = 'rejoining' FROM dflux.table_state");
    assert_eq!(all(&feed, "t"), ["(5,toast,b)"]);
    let last = beyond(&source);
    let records = feed.records(last, &[update("t", "5|~|c")]);
    feed.write(&records);
    feed.reached(&service, last);
    let live = "SELECT state = 'live' FROM dflux.table_state";
    wait::until_true("the table is the lane's again", LIMIT, || feed.target.value(live).is_ok_and(|live| live == "t"))
        .unwrap();
    assert_eq!(all(&feed, "t"), ["(5,toast,c)"]);
    assert_eq!(
        feed.rows("SELECT diverged + (SELECT count(*) FROM dflux.incomplete) || phase FROM dflux.lane"),
        ["0exact"]
    );
}

#[test]
fn a_new_target_takes_a_table_that_was_copied_twice_once() {
    // Without a key, what is loaded twice is there twice, and nobody would notice.
    let mut feed = Feed::new("twice", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4", "v text"]);
    let c = feed.consistent_point;
    let before = feed.transaction(&[insert("t", "2|b")]);
    let (first, again) = (chunk("t", 0, 0, c), TestChunk { generation: 1, ..chunk("t", 0, 1, Lsn(before.0 + 1)) });
    feed.write(&[feed.block(&first, (0, Some(1)), "1\ta\n"), feed.block(&again, (0, Some(2)), "1\ta\n2\tb\n")]);
    feed.ledger_chunk(&first, 1);
    feed.copied("t", &[], 1, 1);
    feed.completed(&["t"], c);
    feed.resync("t", 1);
    feed.ledger_chunk(&again, 2);
    feed.copied_as("t", 1, &[], 1, 2);
    let last = feed.transaction(&[update_full("t", "1|a", "1|A"), delete("t", "2|b"), insert("t", "3|c")]);
    let service = feed.consumer();
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(1,A)", "(3,c)"]);
    assert_eq!(feed.rows("SELECT generation || state FROM dflux.table_state"), ["1live"]);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
}

#[test]
fn a_table_that_is_still_to_be_copied_is_left_alone_from_the_lanes_first_transaction_on() {
    // It was created later; its rows come with the copy, and its events must wait for them.
    let mut feed = Feed::new("later", "CREATE TABLE t (id int PRIMARY KEY, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    feed.no_backfill(feed.consistent_point);
    feed.resync("t", 1);
    for round in 0..50 {
        feed.transaction(&[update("t", &format!("1|{round}"))]);
    }
    let last = feed.transaction(&[update("t", "1|last")]);
    let service = feed.consumer();
    feed.reached(&service, last);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
    let copy = TestChunk { generation: 1, ..chunk("t", 0, 1, Lsn(last.0 + 1)) };
    feed.write(&[feed.block(&copy, (0, Some(1)), "1\tlast\n")]);
    feed.ledger_chunk(&copy, 1);
    feed.copied_as("t", 1, &["id"], 1, 1);
    wait::until_true("it is the lane's", LIMIT, || feed.rows("SELECT state FROM dflux.table_state") == ["live"])
        .unwrap();
    let last = feed.transaction(&[update("t", "1|on")]);
    feed.reached(&service, last);
    assert_eq!(all(&feed, "t"), ["(1,on)"]);
}

#[test]
fn a_chunk_that_another_producer_wrote_between_is_found_where_the_ledger_says() {
    let mut feed = Feed::new("between", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    let c = feed.consistent_point;
    let (one, two) = (chunk("t", 0, 0, c), TestChunk { attempt: 2, ..chunk("t", 1, 0, c) });
    feed.write(&[
        feed.block(&one, (0, None), "1\ta\n"),
        feed.block(&two, (0, None), "11\tk\n"),
        feed.block(&one, (1, Some(2)), "2\tb\n"),
        feed.block(&two, (1, Some(2)), "12\tl\n"),
    ]);
    feed.ledger_chunk(&one, 2);
    feed.ledger_chunk(&two, 2);
    feed.copied("t", &["id"], 2, 4);
    feed.completed(&["t"], c);
    let marker = feed.marker("");
    let service = feed.consumer();
    feed.reached(&service, marker);
    assert_eq!(all(&feed, "t"), ["(1,a)", "(11,k)", "(12,l)", "(2,b)"]);
}

#[test]
fn a_chunk_that_takes_longer_than_the_search_for_missing_ones_is_loaded_once() {
    let mut feed = Feed::new("slow", "CREATE TABLE t (id int, v text)");
    feed.table("t", &["id int4 key", "v text"]);
    let c = feed.consistent_point;
    let (one, two) = (chunk("t", 0, 0, c), chunk("t", 1, 0, c));
    let service = feed.consumer();
    feed.write(&[feed.block(&one, (0, Some(1)), "1\ta\n")]);
    wait::until_true("the first chunk is loaded", LIMIT, || {
        feed.target.number("SELECT count(*) FROM dflux.chunk").is_ok_and(|count| count == 1)
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
    let other = feed.migration.target().unwrap();
    other.run("BEGIN; LOCK TABLE t IN SHARE MODE").unwrap();
    feed.write(&[feed.block(&two, (0, Some(1)), "2\tb\n")]);
    feed.ledger_chunk(&one, 1);
    feed.ledger_chunk(&two, 1);
    feed.copied("t", &["id"], 2, 2);
    feed.completed(&["t"], c);
    // Longer than the 10 seconds without a chunk after which missing ones are looked for.
    wait::pace(std::time::Duration::from_secs(16));
    other.run("COMMIT").unwrap();
    let marker = feed.marker("");
    feed.reached(&service, marker);
    assert_eq!(all(&feed, "t"), ["(1,a)", "(2,b)"]);
}

#[test]
fn a_parent_and_the_tables_that_inherit_from_it_are_tables_of_their_own() {
    let ddl = "CREATE TABLE p (id int, v text); CREATE TABLE c (extra int) INHERITS (p)";
    let mut feed = Feed::new("inherited", ddl);
    feed.table("p", &["id int4 key", "v text"]);
    feed.table("c", &["id int4 key", "v text", "extra int4"]);
    let point = feed.consistent_point;
    let (child, parent) =
        (TestChunk { columns: &["id", "v", "extra"], ..chunk("c", 0, 0, point) }, chunk("p", 0, 0, point));
    feed.write(&[
        feed.block(&child, (0, Some(2)), "1\tx\t7\n2\ty\t8\n"),
        feed.block(&parent, (0, Some(2)), "1\ta\n2\tb\n"),
    ]);
    feed.copied("c", &["id"], 1, 2);
    feed.copied("p", &["id"], 1, 2);
    feed.completed(&["c", "p"], point);
    let service = feed.consumer();
    let children = ["(1,x,7)", "(2,y,8)"];
    let alone = "SELECT p::text FROM ONLY p ORDER BY 1";
    let last = feed.transaction(&[update("p", "1|A"), delete("p", "2|\\N"), insert("p", "3|c")]);
    feed.reached(&service, last);
    assert_eq!(feed.rows(alone), ["(1,A)", "(3,c)"]);
    assert_eq!(all(&feed, "c"), children);
    let last = feed.transaction(&[Change::Truncate(vec!["p"]), insert("p", "4|d")]);
    feed.reached(&service, last);
    assert_eq!(feed.rows(alone), ["(4,d)"]);
    assert_eq!(all(&feed, "c"), children);
    feed.resync("p", 1);
    wait::until_true("the parent is emptied", LIMIT, || feed.rows(alone).is_empty()).unwrap();
    assert_eq!(all(&feed, "c"), children);
    assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
}

#[test]
fn without_prepare_a_key_is_made_of_a_whole_partitioned_table_and_of_a_parent_alone() {
    let ddl = "CREATE TABLE p (id int, v text); CREATE TABLE c (extra int) INHERITS (p);
               CREATE TABLE r (id int, v text) PARTITION BY RANGE (id);
               CREATE TABLE r_1 PARTITION OF r FOR VALUES FROM (0) TO (100);
               CREATE TABLE r_2 PARTITION OF r FOR VALUES FROM (100) TO (200)";
    let mut feed = Feed::new("fallback", ddl);
    feed.table("p", &["id int4 key", "v text"]);
    feed.table("c", &["id int4", "v text", "extra int4"]);
    feed.table("r", &["id int4 key", "v text"]);
    let point = feed.consistent_point;
    // The child has what the parent's key would refuse: a row without an id, and one id twice.
    let child = TestChunk { columns: &["id", "v", "extra"], ..chunk("c", 0, 0, point) };
    feed.write(&[
        feed.block(&child, (0, Some(3)), "\\N\tx\t7\n2\ty\t8\n2\tz\t9\n"),
        feed.block(&chunk("p", 0, 0, point), (0, Some(1)), "1\ta\n"),
        feed.block(&chunk("r", 0, 0, point), (0, Some(2)), "1\ta\n101\tb\n"),
    ]);
    for (table, key, rows) in [("c", &[][..], 3), ("p", &["id"], 1), ("r", &["id"], 2)] {
        feed.copied(table, key, 1, rows);
    }
    feed.completed(&["c", "p", "r"], point);
    let service = feed.consumer();
    let last = feed.transaction(&[update("p", "1|A"), update("r", "101|B"), insert("r", "2|c")]);
    feed.reached(&service, last);
    assert_eq!(feed.rows("SELECT p::text FROM ONLY p"), ["(1,A)"]);
    assert_eq!(all(&feed, "c"), ["(,x,7)", "(2,y,8)", "(2,z,9)"]);
    assert_eq!(feed.rows("SELECT r::text FROM r ORDER BY 1"), ["(1,a)", "(101,B)", "(2,c)"]);
    let keys = "SELECT c.relname || ' ' || i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE i.indisprimary AND c.relnamespace = 'public'::regnamespace ORDER BY 1";
    assert_eq!(feed.rows(keys), ["p true", "r true", "r_1 true", "r_2 true"]);
}

#[test]
fn an_identity_that_no_update_may_set_arrives_as_it_is_in_the_source() {
    let [one, two, three] = [1, 2, 3].map(|n| format!("00000000-0000-0000-0000-00000000000{n}"));
    for (label, tolerant) in [("identity", false), ("identitytolerant", true)] {
        let ddl = "CREATE TABLE t (id uuid PRIMARY KEY, seq bigint GENERATED ALWAYS AS IDENTITY, big text, v text, \
                   own text DEFAULT 'own')";
        let mut feed = Feed::new(label, ddl);
        feed.table("t", &["id uuid key", "seq int8", "big text", "v text"]);
        feed.no_backfill(if tolerant { Lsn(0x10_0000) } else { feed.consistent_point });
        let service = feed.consumer();
        let first = feed.transaction(&[insert("t", &format!("{one}|7|toast|a")), insert("t", &format!("{two}|8|x|b"))]);
        feed.reached(&service, first);
        feed.target.run("UPDATE t SET own = 'kept'").unwrap();
        let second = feed.transaction(&[update("t", &format!("{one}|7|~|A")), update("t", &format!("{two}|70|y|B"))]);
        feed.reached(&service, second);
        let before = format!("{two}|\\N|\\N|\\N");
        let third = feed.transaction(&[rekey("t", &before, &format!("{three}|70|~|C"))]);
        feed.reached(&service, third);
        // Tolerant, a row with a whole image is made anew.
        let own = if tolerant { "own" } else { "kept" };
        assert_eq!(all(&feed, "t"), [format!("({one},7,toast,A,kept)"), format!("({three},70,y,C,{own})")]);
        let untold = "SELECT diverged + (SELECT count(*) FROM dflux.incomplete) FROM dflux.lane";
        assert_eq!(feed.target.number(untold).unwrap(), 0);
    }
}

#[test]
fn a_copy_that_is_ahead_of_the_lane_is_not_applied_twice() {
    for keyed in [true, false] {
        let mut feed = Feed::new(if keyed { "ahead" } else { "aheadkeyless" }, "CREATE TABLE t (id int, v text)");
        feed.table("t", if keyed { &["id int4 key", "v text"] } else { &["id int4", "v text"] });
        let service = feed.started();
        let first = feed.transaction(&[insert("t", "1|a")]);
        feed.reached(&service, first);
        feed.resync("t", 1);
        // Two transactions are in the snapshot that the lane has not come to when the table is its own again.
        let ahead = [feed.next_lsn(), feed.next_lsn()];
        let copy = TestChunk { generation: 1, ..chunk("t", 0, 1, Lsn(ahead[1].0 + 1)) };
        feed.write(&[feed.block(&copy, (0, Some(2)), "1\tA\n2\tb\n")]);
        feed.ledger_chunk(&copy, 2);
        feed.copied_as("t", 1, if keyed { &["id"] } else { &[] }, 1, 2);
        wait::until("the table is the lane's again", LIMIT, || {
            let states = feed.rows("SELECT state FROM dflux.table_state");
            if states == ["live"] { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
        for (lsn, change) in ahead.into_iter().zip([insert("t", "2|b"), update_full("t", "1|a", "1|A")]) {
            let records = feed.records(lsn, &[change]);
            feed.write(&records);
        }
        let last = feed.transaction(&[insert("t", "3|c")]);
        feed.reached(&service, last);
        assert_eq!(all(&feed, "t"), ["(1,A)", "(2,b)", "(3,c)"]);
        assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
    }
}

#[test]
fn a_table_is_read_again_while_the_rest_keeps_flowing() {
    for keyed in [true, false] {
        let mut feed = accounts(if keyed { "resync" } else { "resynckeyless" });
        feed.target.run("CREATE TABLE t (id int, v text)").unwrap();
        feed.table("t", if keyed { &["id int4 key", "v text"] } else { &["id int4", "v text"] });
        let mut service = feed.started();
        let first = feed.transaction(&[insert("t", "1|a"), insert("t", "2|b"), insert("b", "1|x")]);
        feed.reached(&service, first);
        feed.target.run("UPDATE t SET v = 'spoilt'; INSERT INTO t VALUES (77, 'foreign')").unwrap();
        feed.resync("t", 1);
        wait::until("the table is suspended", LIMIT, || {
            let states = feed.rows("SELECT state FROM dflux.table_state");
            if states == ["resyncing"] { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .unwrap();
        assert!(all(&feed, "t").is_empty());
        // One transaction before the snapshot, one in it, two behind it.
        let below = feed.transaction(&[insert("t", "3|c"), insert("a", "1|x|1")]);
        feed.reached(&service, below);
        let copy = TestChunk { generation: 1, ..chunk("t", 0, 1, Lsn(below.0 + 1)) };
        feed.transaction(&[update_full("t", "1|a", "1|A"), delete("t", "2|b"), update("b", "1|y")]);
        let before_load = feed.transaction(&[insert("t", "4|d"), insert("t", "5|e"), insert("a", "2|x|1")]);
        feed.reached(&service, before_load);
        assert!(all(&feed, "t").is_empty());
        service = service.start_again().unwrap();
        feed.write(&[feed.block(&copy, (0, Some(3)), "1\ta\n2\tb\n3\tc\n")]);
        feed.ledger_chunk(&copy, 3);
        feed.copied_as("t", 1, if keyed { &["id"] } else { &[] }, 1, 3);
        wait::until("the table is the lane's again", LIMIT, || {
            feed.transaction(&[update("a", "2|y|2")]);
            let states = feed.rows("SELECT state FROM dflux.table_state");
            if states == ["live"] { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .unwrap_or_else(|failure| panic!("{failure}\n{}", service.log()));
        let last = feed.transaction(&[delete("t", "4|d"), insert("t", "6|f")]);
        feed.reached(&service, last);
        assert_eq!(all(&feed, "t"), ["(1,A)", "(3,c)", "(5,e)", "(6,f)"]);
        assert_eq!(feed.rows("SELECT diverged::text FROM dflux.lane"), ["0"]);
        // Behind a restart the table is as any other.
        let service = service.start_again().unwrap();
        let last = feed.transaction(&[insert("t", "7|g")]);
        feed.reached(&service, last);
        assert_eq!(all(&feed, "t").len(), 5);
    }
}
