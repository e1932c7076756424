//! Rows that are larger than a record of their topic: by the real programs, in the backfill and in the stream, whoever dies.

use std::time::Duration;

use changelog::avro::{Reader, frame};
use changelog::{EventDecoder, Lane, Op, TableName, Topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tests::stack::shared;
use tests::wait;

use crate::moving::Moving;

const LIMIT: Duration = Duration::from_secs(120);
const RECORD_BYTES_MAX: i64 = 512 << 10;
const MEMORY_MAX: u64 = 512 << 20;

/// `large(seed, bytes)`: a text that does not compress to nothing and has characters of several bytes.
const SCHEMA: &str = "
    CREATE FUNCTION large(seed text, bytes int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
      SELECT replace(string_agg(md5(seed || i), ''), '7', 'é') FROM generate_series(1, bytes / 34) i $$;
    CREATE TABLE keyed (id int PRIMARY KEY, t text, raw bytea, j jsonb, n int);
    CREATE TABLE whole (LIKE keyed INCLUDING ALL);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE keyless (t text, n int);
    ALTER TABLE keyless REPLICA IDENTITY FULL;
    INSERT INTO keyed SELECT i, large('t' || i, 10000000), convert_to(large('r' || i, 10000000), 'UTF8'),
      jsonb_build_object('a', large('j' || i, 10000000)), i FROM generate_series(1, 2) i;
    INSERT INTO keyed VALUES (3, large('forty', 40000000), NULL, NULL, 3);
    INSERT INTO whole SELECT * FROM keyed WHERE id = 1;
    INSERT INTO whole SELECT 2, large('w', 3000000), NULL, '{}', 2;
    INSERT INTO keyless VALUES (large('k', 3000000), 1), ('small', 2);";

const DIGESTS: [&str; 3] = [
    "SELECT id, md5(t), octet_length(t), md5(raw), octet_length(raw), md5(j::text), n FROM keyed ORDER BY id",
    "SELECT id, md5(t), octet_length(t), md5(raw), octet_length(raw), md5(j::text), n FROM whole ORDER BY id",
    "SELECT md5(t), octet_length(t), n FROM keyless ORDER BY n",
];

fn moving(label: &str) -> Moving {
    let mut moving = Moving::shared(label);
    moving.migration.configure(&[("kafka", "record_bytes_max", RECORD_BYTES_MAX.into())]).unwrap();
    moving.source.run(SCHEMA).unwrap();
    moving.prepare();
    moving.start();
    moving
}

fn topic(moving: &Moving, table: &str) -> String {
    Topics::new(&moving.migration.name, Lane::Forward).table(&TableName::new("public", table))
}

/// The records of a table's topic that are pieces: where the fragment of each ends, and how large its event is.
fn pieces(moving: &Moving, table: &str) -> Vec<Option<(u64, u64)>> {
    let records = shared().unwrap().broker.records(&topic(moving, table)).unwrap();
    let ends = |value: &[u8]| {
        assert!(value.len() as i64 <= RECORD_BYTES_MAX);
        if EventDecoder::head(value).unwrap().header.op != Op::Piece {
            return None;
        }
        let mut reader = Reader::new(frame(value).unwrap().1);
        for _name in ["op", "database", "schema", "table"] {
            reader.bytes().unwrap();
        }
        for _number in ["xid", "lsn", "commit_lsn", "ordinal", "part", "commit_time"] {
            reader.long().unwrap();
        }
        reader.bytes().unwrap();
        reader.boolean().unwrap();
        let (offset, size) = (reader.unsigned().unwrap(), reader.unsigned().unwrap());
        Some((offset + reader.bytes().unwrap().len() as u64, size))
    };
    records.iter().map(|record| ends(record.value.as_deref().unwrap())).collect()
}

#[test]
fn rows_that_are_larger_than_a_record_arrive_to_the_byte() {
    let moving = moving("large");
    moving.caught_up();
    moving.assert_same(DIGESTS);
    for statement in [
        "INSERT INTO keyed SELECT 10, large('a', 10000000), convert_to(large('b', 10000000), 'UTF8'), j, 1 FROM keyed WHERE id = 1",
        "INSERT INTO keyed VALUES (11, large('another', 40000000), NULL, NULL, 1)",
        "INSERT INTO whole SELECT * FROM keyed WHERE id = 10",
        "INSERT INTO keyless VALUES (large('m', 3000000), 3)",
        // Values that are not sent, and some that are, in both kinds of identity.
        "UPDATE keyed SET n = n + 1",
        "UPDATE whole SET n = n + 1",
        "UPDATE keyless SET n = n + 10",
        "UPDATE keyed SET t = large('c', 10000000) WHERE id IN (1, 10)",
        "UPDATE whole SET raw = convert_to(large('d', 3000000), 'UTF8'), j = NULL",
        // Key changes: delete and create, one of them or both in pieces.
        "UPDATE keyed SET id = id + 100 WHERE id IN (1, 3)",
        "UPDATE keyed SET id = id + 100, t = large('e', 3000000) WHERE id = 2",
        "UPDATE whole SET id = id + 100",
        "BEGIN; UPDATE keyed SET t = t || 'x', n = 0 WHERE id < 20; UPDATE whole SET t = 'small'; DELETE FROM keyless WHERE n < 12; COMMIT",
        "DELETE FROM keyed WHERE id = 101",
        "DELETE FROM whole WHERE id = 101",
    ] {
        moving.source.run(statement).unwrap();
    }
    moving.caught_up();
    moving.assert_same(DIGESTS);
    for table in ["keyed", "whole", "keyless"] {
        assert!(pieces(&moving, table).iter().flatten().count() > 5, "{table}");
    }
    for (service, peak) in moving.resident_peaks() {
        eprintln!("{service}: {} MB at most", peak >> 20);
        assert!(peak < MEMORY_MAX, "{service} held {peak} bytes");
    }
}

#[test]
fn a_producer_that_dies_between_two_pieces_and_a_consumer_that_dies_anywhere_change_nothing() {
    let mut moving = moving("largecrash");
    let mut between = 0;
    let client: BaseConsumer = shared().unwrap().broker.client().create().unwrap();
    let topic = topic(&moving, "whole");
    let end = || client.fetch_watermarks(&topic, 0, LIMIT).unwrap().1;
    for round in 1..=12 {
        let begun = end();
        moving
            .source
            .run(&format!(
                "BEGIN; UPDATE whole SET t = large('{round}', 10000000), n = {round};
                 UPDATE keyed SET raw = convert_to(large('r{round}', 5000000), 'UTF8'), id = id + 10 WHERE id % 10 <> 3; COMMIT"
            ))
            .unwrap();
        let grown = || if end() > begun { Ok(()) } else { Err("no piece yet") };
        wait::until("the first pieces lie in Kafka", LIMIT, grown).unwrap();
        moving.services[0].kill();
        let open = pieces(&moving, "whole").last().copied().flatten().is_some_and(|(end, size)| end < size);
        between += usize::from(open);
        moving.restart(0);
        if round % 2 == 0 {
            moving.restart(1);
        }
        if between >= 3 {
            break;
        }
    }
    assert!(between > 0, "the producer was never killed between two pieces");
    moving.restart(1);
    moving.caught_up();
    moving.assert_same(DIGESTS);
}
