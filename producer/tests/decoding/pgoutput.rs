//! The decoder against an encoder of our own, against random and mutated bytes, and against another decoder.

use bytes::Bytes;
use pg_walstream::{LogicalReplicationMessage as Theirs, LogicalReplicationParser};
use producer::pgoutput::{DecodeError, decode};
use proptest::prelude::*;

use crate::model::{Model, Tuple, Value, encode, message, plain};

/// What a real server sent: length (u32) and bytes, again and again.
const CORPUS: &[u8] = include_bytes!("corpus.bin");

pub fn corpus() -> Vec<Bytes> {
    let (mut rest, mut messages) = (Bytes::from_static(CORPUS), Vec::new());
    while !rest.is_empty() {
        let length = rest.split_to(4);
        let length = u32::from_be_bytes(length.as_ref().try_into().unwrap());
        messages.push(rest.split_to(length as usize));
    }
    messages
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_is_encoded_is_decoded(model in message()) {
        prop_assert_eq!(plain(&decode(encode(&model)).unwrap()), model);
    }

    /// Every byte of a message is needed and none is overlooked.
    #[test]
    fn a_message_cut_short_or_too_long_is_an_error(model in message(), extra in any::<u8>()) {
        let bytes = encode(&model);
        for length in 0..bytes.len() {
            prop_assert!(decode(bytes.slice(..length)).is_err(), "{} of {} bytes were taken", length, bytes.len());
        }
        let mut longer = bytes.to_vec();
        longer.push(extra);
        let error = decode(longer.into()).unwrap_err();
        let trailing = matches!(error, DecodeError::TrailingBytes { count: 1, offset, .. } if offset == bytes.len());
        prop_assert!(trailing, "{}", error);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn random_bytes_are_a_message_or_an_error_and_never_a_panic(
        tag in prop_oneof![any::<u8>(), proptest::sample::select(b"BCORYIUDTM".to_vec())],
        rest in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0), proptest::sample::select(b"nutbNKO".to_vec())], 0..64),
    ) {
        let bytes: Bytes = [vec![tag], rest].concat().into();
        if let Ok(message) = decode(bytes.clone()) {
            // What is taken at all is taken whole: encoding it again gives the same bytes.
            prop_assert_eq!(encode(&plain(&message)), canonical(&message, bytes));
        }
    }

    #[test]
    fn a_real_message_with_bytes_changed_is_a_message_or_an_error_and_never_a_panic(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = which.get(&corpus()).to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(message) = decode(bytes.into()) {
            let _ = plain(&message);
        }
    }

    /// pg_walstream's parser, where both take the bytes. It is laxer (it does not mind trailing bytes), so
    /// only what we take is compared.
    #[test]
    fn another_decoder_reads_the_same(model in message()) {
        let bytes = encode(&model);
        let theirs = LogicalReplicationParser::with_protocol_version(1).parse_wal_message_bytes(bytes).unwrap();
        prop_assert_eq!(from_theirs(theirs.message), model);
    }
}

/// The schema pg_catalog has two spellings on the wire; all else has one.
fn canonical(message: &producer::pgoutput::Message, bytes: Bytes) -> Bytes {
    match plain(message) {
        Model::Relation { .. } | Model::Type { .. } => encode(&plain(message)),
        _ => bytes,
    }
}

fn from_theirs(message: Theirs) -> Model {
    let tuple = |tuple: pg_walstream::TupleData| -> Tuple {
        let value = |column: &pg_walstream::ColumnData| match column.data_type {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => Value::Text(column.as_bytes().to_vec()),
            _ => Value::Binary(column.as_bytes().to_vec()),
        };
        (0..tuple.column_count()).map(|index| value(tuple.get_column(index).unwrap())).collect()
    };
    let schema = |name: &str| if name.is_empty() { "pg_catalog".to_owned() } else { name.to_owned() };
    match message {
        Theirs::Begin { final_lsn, timestamp, xid } => Model::Begin { final_lsn, time: timestamp, xid },
        Theirs::Commit { flags, commit_lsn, end_lsn, timestamp } => {
            Model::Commit { flags, commit_lsn, end_lsn, time: timestamp }
        }
        Theirs::Origin { origin_lsn, origin_name } => Model::Origin { lsn: origin_lsn, name: origin_name },
        Theirs::Relation { relation_id, namespace, relation_name, replica_identity, columns } => Model::Relation {
            id: relation_id,
            schema: schema(&namespace),
            name: relation_name.to_string(),
            identity: replica_identity,
            columns: columns
                .iter()
                .map(|column| (column.is_key(), column.name.to_string(), column.type_id, column.type_modifier))
                .collect(),
        },
        Theirs::Type { type_id, namespace, type_name } => {
            Model::Type { oid: type_id, schema: schema(&namespace), name: type_name }
        }
        Theirs::Insert { relation_id, tuple: after } => Model::Insert { id: relation_id, after: tuple(after) },
        Theirs::Update { relation_id, old_tuple, new_tuple, key_type } => Model::Update {
            id: relation_id,
            before: key_type.map(|tag| tag as u8).zip(old_tuple.map(tuple)),
            after: tuple(new_tuple),
        },
        Theirs::Delete { relation_id, old_tuple, key_type } => {
            Model::Delete { id: relation_id, before: (key_type as u8, tuple(old_tuple)) }
        }
        Theirs::Truncate { relation_ids, flags } => Model::Truncate { flags, ids: relation_ids },
        Theirs::Message { flags, lsn, prefix, content } => {
            Model::Logical { flags, lsn, prefix, content: content.to_vec() }
        }
        other => panic!("not of protocol version 1: {other:?}"),
    }
}

#[test]
fn the_real_messages_are_of_every_kind_and_are_read_as_another_decoder_reads_them() {
    let mut kinds = Vec::new();
    let mut parser = LogicalReplicationParser::with_protocol_version(1);
    for bytes in corpus() {
        kinds.push(char::from(bytes[0]));
        let ours = plain(&decode(bytes.clone()).unwrap());
        assert_eq!(ours, from_theirs(parser.parse_wal_message_bytes(bytes.clone()).unwrap().message));
        assert_eq!(encode(&ours), bytes);
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.iter().collect::<String>(), "BCDIMORTUY");
}

const FUZZED: usize = 1_200_000;
/// Numbers that lengths and counts should never be.
const EXTREMES: [&[u8]; 5] = [&[0xff; 4], &[0x7f, 0xff, 0xff, 0xff], &[0x80, 0, 0, 0], &[0; 8], &[0xff, 0xff]];

/// xorshift64*: the same inputs in each run, so a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

/// One thing that goes wrong on a wire or in a hostile server.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Bytes]) {
    let place = random.below(bytes.len());
    match random.below(7) {
        0 => bytes.truncate(place),
        1 => bytes.insert(place, random.below(256) as u8),
        2 if !bytes.is_empty() => drop(bytes.remove(place)),
        3 => {
            let other = &corpus[random.below(corpus.len())];
            bytes.truncate(place);
            bytes.extend_from_slice(&other[random.below(other.len())..]);
        }
        4 => {
            let extreme = EXTREMES[random.below(EXTREMES.len())];
            let end = (place + extreme.len()).min(bytes.len());
            bytes.splice(place..end, extreme.iter().copied());
        }
        5 if !bytes.is_empty() => bytes[place] ^= 1 << random.below(8),
        _ if !bytes.is_empty() => bytes[place] = random.below(256) as u8,
        _ => {}
    }
}

/// More than a million inputs, each real messages damaged one to four times: never a panic, and what is taken is taken whole.
#[test]
fn damaged_messages_are_messages_or_errors_and_never_a_panic() {
    let (corpus, mut random, mut taken) = (corpus(), Random(0x00df_10ef), 0);
    for _input in 0..FUZZED {
        let mut bytes = corpus[random.below(corpus.len())].to_vec();
        for _damage in 0..=random.below(4) {
            damage(&mut random, &mut bytes, &corpus);
        }
        let bytes = Bytes::from(bytes);
        match decode(bytes.clone()) {
            Ok(message) => {
                taken += 1;
                assert_eq!(encode(&plain(&message)), canonical(&message, bytes));
            }
            Err(error) => assert!(!error.hint().is_empty(), "{error}"),
        }
    }
    assert!(
        (FUZZED / 50..FUZZED).contains(&taken),
        "{taken} of {FUZZED} were messages: too few or too many to tell anything"
    );
}

#[test]
fn an_error_names_the_message_and_the_offset() {
    let cases: [(&[u8], &str); 12] = [
        (b"", "an empty pgoutput message"),
        (b"S", "unknown pgoutput message tag 0x53; protocol version 1 has no such message"),
        (b"B\0\0", "pgoutput Begin message ends at offset 1 where final LSN (8 bytes) should stand"),
        (b"I\0\0\0\x01K", "pgoutput Insert message has kind of tuple 75 at offset 5"),
        (b"I\0\0\0\x01N\xff\xff", "pgoutput Insert message has number of columns -1 at offset 6"),
        (b"I\0\0\0\x01N\0\x01x", "pgoutput Insert message has kind of column 120 at offset 8"),
        (b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff", "pgoutput Insert message has column length -1 at offset 9"),
        (
            b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xff",
            "pgoutput Insert message ends at offset 13 where column value (2147483647 bytes) should stand",
        ),
        (
            b"T\x7f\xff\xff\xff\0",
            "pgoutput Truncate message ends at offset 6 where relation ids (8589934588 bytes) should stand",
        ),
        (b"O\0\0\0\0\0\0\0\0\xff\0", "pgoutput Origin message has text that is not UTF-8 as origin name at offset 9"),
        (b"R\0\0\0\x01a\0b\0q", "pgoutput Relation message has replica identity 113 at offset 9"),
        (b"T\0\0\0\0\0!", "pgoutput Truncate message has 1 bytes too many from offset 6"),
    ];
    for (bytes, expected) in cases {
        let error = decode(Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn cells_are_slices_of_the_message() {
    let bytes = encode(&Model::Insert { id: 1, after: vec![Value::Text(b"abc".to_vec()), Value::Null] });
    let producer::pgoutput::Message::Insert { after, .. } = decode(bytes.clone()).unwrap() else { panic!("an insert") };
    let Some(producer::pgoutput::Cell::Text(text)) = after.iter().next() else { panic!("a text") };
    assert!(bytes.as_ptr_range().contains(&text.as_ptr()));
    assert_eq!(after.share(text), "abc");
    assert_eq!((after.len(), after.iter().len(), after.wire_bytes()), (2, 2, 9));
    assert_eq!(format!("{after:?}"), "TupleData(2 columns, 9 bytes)");
}
