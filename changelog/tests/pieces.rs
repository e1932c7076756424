//! Cutting an event into pieces and putting it together: whatever the row and the limit, every byte comes back, or an error.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use changelog::avro::frame;
use changelog::piece::{self, Cut};
use changelog::table::{Column, Identity};
use changelog::{
    Cell, Definition, Error, EventDecoder, EventEncoder, Header, Joiner, Lane, Lsn, Op, Position, TableName, TableShape,
};
use proptest::prelude::*;

const PIECE_SCHEMA: u32 = 9;
const RECORD_BYTES_MAX: usize = 2_000;

fn encoder() -> EventEncoder {
    let column = |name: &str, type_oid| Column {
        name: name.into(),
        type_oid,
        typmod: -1,
        type_name: format!("pg_catalog.t{type_oid}"),
        key: (name == "id").then_some(0),
        definition: Definition::default(),
    };
    let shape = TableShape {
        database: "db".into(),
        table: TableName::new("public", "large"),
        oid: 0,
        identity: Identity::Full,
        columns: vec![column("id", 25), column("t", 25), column("raw", 17), column("n", 1700)],
    };
    EventEncoder::new(Arc::new(shape), Lane::Forward, 7, 8)
}

fn at(ordinal: u64, part: u32) -> Header {
    let position = Position { commit_lsn: Lsn(90), ordinal, part };
    Header { op: Op::Update, xid: 1, lsn: Lsn(80), position, commit_time_micros: 5 }
}

fn cells<'a>(row: &'a [Option<String>; 4]) -> Vec<Cell<'a>> {
    row.iter().map(|value| value.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))).collect()
}

/// The event, and the pieces that it is cut into.
fn pieces(header: &Header, rows: [Option<&[Option<String>; 4]>; 2], limit: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut encoder = encoder();
    let [before, after] = rows.map(|row| row.map(cells));
    let (mut value, mut key) = (Vec::new(), Vec::new());
    encoder.value(&mut value, header, before.as_deref(), after.as_deref()).unwrap();
    assert!(value.len() <= encoder.value_bytes_most(before.as_deref(), after.as_deref()));
    encoder.key(&mut key, &header.position, after.as_deref().or(before.as_deref()).unwrap()).unwrap();
    let cut = Cut::new(&encoder, value.len(), key.len(), limit).unwrap();
    let piece = |number| {
        let mut record = Vec::new();
        encoder.piece(&mut record, PIECE_SCHEMA, header, (cut, number), &value);
        assert!(record.len() + key.len() <= limit, "{} bytes", record.len());
        record
    };
    let pieces = (0..cut.pieces()).map(piece).collect();
    (value, pieces)
}

fn large(length: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let row = [Some("1".into()), Some("é".repeat(length / 2)), None, None];
    pieces(&at(3, 0), [None, Some(&row)], RECORD_BYTES_MAX)
}

fn join(joiner: &mut Joiner, records: &[Vec<u8>]) -> Result<Option<Vec<u8>>, Error> {
    let mut joined = None;
    for record in records {
        assert!(joined.is_none(), "more pieces than the event has");
        joined = joiner.piece(record, b"key")?;
    }
    Ok(joined)
}

fn row() -> impl Strategy<Value = [Option<String>; 4]> {
    let text = || proptest::option::of("[aé\u{1F600}\\\\]{0,4000}");
    let raw = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4000));
    let raw =
        raw.prop_map(|raw| raw.map(|raw| raw.iter().fold("\\x".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))));
    ("[a-z]{1,30}", text(), raw, proptest::option::of("[1-9][0-9]{0,5000}"))
        .prop_map(|(id, text, raw, number)| [Some(id), text, raw, number])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_event_comes_back_to_the_byte_whatever_the_limit(
        before in proptest::option::of(row()), after in proptest::option::of(row()), limit in 1_500_usize..9_000, part in 0_u32..9,
    ) {
        prop_assume!(before.is_some() || after.is_some());
        let header = at(3, part);
        let (value, records) = pieces(&header, [before.as_ref(), after.as_ref()], limit);
        for (number, record) in records.iter().enumerate() {
            let head = EventDecoder::head(record).unwrap();
            prop_assert_eq!((head.schema_id, head.header.op, head.has_unchanged), (PIECE_SCHEMA, Op::Piece, false));
            prop_assert_eq!(head.header.position, Position { part: part + number as u32, ..header.position });
        }
        let mut joiner = Joiner::default();
        let joined = join(&mut joiner, &records).unwrap().unwrap();
        prop_assert_eq!(&joined[..3], b"key");
        prop_assert_eq!(&joined[3..], value.as_slice());
        prop_assert_eq!(EventDecoder::head(&joined[3..]).unwrap().header, header);
        joiner.whole().unwrap();
    }

    #[test]
    fn pieces_that_lack_one_or_are_of_two_cuttings_are_an_error_and_never_an_event(
        lengths in (8_000_usize..20_000, 8_000_usize..20_000), lost in 0_usize..9, from in 1_usize..9,
    ) {
        let (_, records) = large(lengths.0);
        let lost = lost % records.len();
        let mut some = records.clone();
        some.remove(lost);
        let mut joiner = Joiner::default();
        prop_assert!(join(&mut joiner, &some).and_then(|joined| joiner.whole().map(|()| joined)).is_err());
        // The first pieces of one limit, the others of another, as after a restart that knows only the number of the last one.
        let row = [Some("1".into()), Some("é".repeat(lengths.1 / 2)), None, None];
        let (_, others) = pieces(&at(3, 0), [None, Some(&row)], RECORD_BYTES_MAX + 100);
        let from = from % records.len().min(others.len());
        prop_assume!(from > 0);
        let mixed: Vec<Vec<u8>> = records[..from].iter().chain(&others[from..]).cloned().collect();
        let mut joiner = Joiner::default();
        prop_assert!(join(&mut joiner, &mixed).and_then(|joined| joiner.whole().map(|()| joined)).is_err());
    }

    #[test]
    fn bytes_of_strangers_are_an_error_and_no_panic(bytes: Vec<u8>) {
        let (_, records) = large(8_000);
        let mut joiner = Joiner::default();
        joiner.piece(&records[0], &[]).unwrap();
        prop_assert!(joiner.piece(&bytes, &[]).is_err());
    }
}

#[test]
fn what_is_no_piece_or_of_another_change_does_not_pass_before_an_event_is_complete() {
    let (value, records) = large(8_000);
    let mut joiner = Joiner::default();
    joiner.piece(&records[0], &[]).unwrap();
    assert!(matches!(joiner.whole(), Err(Error::Piece { .. })));
    let row = [Some("1".into()), Some("é".repeat(4_000)), None, None];
    let (_, others) = pieces(&at(4, 0), [None, Some(&row)], RECORD_BYTES_MAX);
    joiner.piece(&records[0], &[]).unwrap();
    let told = joiner.piece(&others[1], &[]).unwrap_err().to_string();
    assert!(told.contains("is not complete"), "{told}");
    // What was refused is forgotten; the next event is whole again.
    assert_eq!(&join(&mut joiner, &records).unwrap().unwrap()[3..], value.as_slice());
}

#[test]
fn a_reader_that_begins_in_the_middle_of_an_event_takes_the_next_one() {
    let (value, records) = large(8_000);
    let mut joiner = Joiner::midway();
    assert_eq!(joiner.piece(records.last().unwrap(), b"key").unwrap(), None);
    assert_eq!(&join(&mut joiner, &records).unwrap().unwrap()[3..], value.as_slice());
    // Once it has begun, the end of an event without its beginning is an error.
    assert!(joiner.piece(records.last().unwrap(), b"key").is_err());
}

#[test]
fn a_key_that_fills_the_record_leaves_no_room() {
    let encoder = encoder();
    assert!(Cut::new(&encoder, 100_000, 100, RECORD_BYTES_MAX).is_some());
    assert!(Cut::new(&encoder, 100_000, 1_400, RECORD_BYTES_MAX).is_none());
    assert!(Cut::new(&encoder, 100_000, 9_000, RECORD_BYTES_MAX).is_none());
}

#[test]
fn the_avro_library_reads_a_piece_as_we_wrote_it() {
    let (value, records) = large(8_000);
    let schema = Schema::parse_str(piece::SCHEMA).unwrap();
    let (id, mut body) = frame(&records[1]).unwrap();
    assert_eq!(id, PIECE_SCHEMA);
    let read = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut body).unwrap();
    assert!(body.is_empty());
    let Avro::Record(fields) = read else { panic!("{read:?}") };
    let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["op", "source", "offset", "size", "fragment"]);
    assert_eq!(fields[0].1, Avro::String("p".into()));
    let Avro::Record(source) = &fields[1].1 else { panic!("{:?}", fields[1]) };
    let source: Vec<&str> = source.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(source, changelog::schema::SOURCE_FIELDS);
    let (Avro::Long(offset), Avro::Bytes(fragment)) = (&fields[2].1, &fields[4].1) else { panic!("{fields:?}") };
    assert_eq!(fields[3].1, Avro::Long(value.len() as i64));
    assert_eq!(fragment.as_slice(), &value[*offset as usize..*offset as usize + fragment.len()]);
}
