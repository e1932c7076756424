//! The apache-avro crate judges what we write: our schemas parse, our bytes are read by it, and say the same.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use changelog::avro::frame;
use changelog::block::{ChunkId, CopyFormat};
use changelog::control::PartitionCount;
use changelog::ledger::{BackfillCompleted, Chunk, Plan, ResyncRefused, ResyncRequested, TableCopied};
use changelog::table::{Column, Identity};
use changelog::{
    Birth, Block, Cell, Definition, EventDecoder, EventEncoder, Header, Kind, Lane, LaneRecord, LedgerRecord, Lsn,
    Manifest, Marker, Op, Position, SchemaChange, Sequence, Sequences, TableChange, TableName, TableShape, Value,
    control, ledger, schema, text,
};

const DECIMAL_10_4: i32 = ((10 << 16) | 4) + 4;

/// Name, type OID, typmod, PostgreSQL's text of an ordinary value, and one that only text can hold.
const COLUMNS: &[(&str, u32, i32, &str, Option<&str>)] = &[
    ("id", 20, -1, "9223372036854775807", None),
    ("small", 21, -1, "-32768", None),
    ("flag", 16, -1, "t", None),
    ("real", 700, -1, "1.1754944e-38", None),
    ("double", 701, -1, "-0", None),
    ("price", 1700, DECIMAL_10_4, "-123456.7890", Some("NaN")),
    ("big", 1700, -1, "123456789012345678901234567890.00", None),
    ("text", 25, -1, "it's \"é\" \u{1F600}", None),
    ("raw", 17, -1, "\\x00ff10", None),
    ("uuid", 2950, -1, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None),
    ("day", 1082, -1, "2024-02-29", Some("0044-03-15 BC")),
    ("clock", 1083, -1, "23:59:59.5", Some("24:00:00")),
    ("moment", 1184, -1, "2024-02-29 12:34:56.789+00", Some("infinity")),
    ("local", 1114, -1, "1969-12-31 23:59:59.999999", Some("294276-12-31 23:59:59")),
    ("two words", 25, -1, "x", None),
    ("two_20_words", 3802, -1, "{\"a\": 1.00}", None),
];

fn shape() -> TableShape {
    let columns = COLUMNS.iter().enumerate().map(|(at, (name, type_oid, typmod, _, _))| Column {
        name: (*name).into(),
        type_oid: *type_oid,
        typmod: *typmod,
        type_name: format!("pg_catalog.t{type_oid}"),
        key: match at {
            0 => Some(1),
            9 => Some(0),
            _ => None,
        },
        definition: match at {
            0 => Definition { attnum: 1, ..Definition::default() },
            1 => Definition {
                attnum: 3,
                not_null: Some(false),
                default: Some("'it''s'::text".into()),
                missing: Some(String::new()),
                identity: Some('d'),
                collation: Some("pg_catalog.\"C\"".into()),
            },
            _ => Definition::default(),
        },
    });
    TableShape {
        database: "db".into(),
        table: TableName::new("public", "Order.Lines"),
        oid: 16_400,
        identity: Identity::Full,
        columns: columns.collect(),
    }
}

fn header(op: Op) -> Header {
    Header {
        op,
        xid: 4_000_000_000,
        lsn: Lsn(0x16_B374_D848),
        position: Position { commit_lsn: Lsn(0x16_B374_D900), ordinal: 12_345_678_901, part: 1 },
        commit_time_micros: 1_700_000_000_123_456,
    }
}

fn parsed(schema: &str) -> Schema {
    Schema::parse_str(schema).unwrap_or_else(|error| panic!("{error}\n{schema}"))
}

fn read(schema: &str, record: &[u8]) -> Avro {
    let (id, mut body) = frame(record).unwrap();
    assert_eq!(id, 7);
    let schema = parsed(schema);
    let value = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut body).unwrap();
    assert!(body.is_empty(), "{} bytes left over", body.len());
    value
}

fn field<'a>(record: &'a Avro, name: &str) -> &'a Avro {
    let Avro::Record(fields) = record else { panic!("no record: {record:?}") };
    let found = &fields.iter().find(|(field, _)| field == name).unwrap_or_else(|| panic!("no {name}")).1;
    if let Avro::Union(_, inner) = found { inner } else { found }
}

fn event(op: Op, before: Option<&[Cell<'_>]>, after: Option<&[Cell<'_>]>) -> Vec<u8> {
    let mut encoder = EventEncoder::new(Arc::new(shape()), Lane::Forward, 7, 7);
    let mut record = Vec::new();
    encoder.value(&mut record, &header(op), before, after).unwrap();
    record
}

fn cells(pick: impl Fn(usize) -> Cell<'static>) -> Vec<Cell<'static>> {
    (0..COLUMNS.len()).map(pick).collect()
}

fn ordinary(at: usize) -> Cell<'static> {
    Cell::Text(COLUMNS[at].3.as_bytes())
}

fn texts_of(decoder: &EventDecoder, values: &[Value<'_>]) -> Vec<Option<String>> {
    let kinds = decoder.shape().columns.iter().map(Column::kind);
    let format = |(value, kind): (&Value<'_>, Kind)| {
        let mut out = String::new();
        text::format_value(value, kind, &mut out).then_some(out)
    };
    values.iter().zip(kinds).map(format).collect()
}

#[test]
fn the_shape_of_a_table_comes_back_from_its_schema() {
    let shape = shape();
    assert_eq!(schema::shape_of(&schema::value_schema(&shape), 7).unwrap(), shape);
    assert!(schema::shape_of("{\"type\": \"string\"}", 7).is_err());
}

#[test]
fn every_value_comes_back_to_the_letter() {
    let exact = cells(|at| Cell::Text(COLUMNS[at].4.unwrap_or(COLUMNS[at].3).as_bytes()));
    let record = event(Op::Update, Some(&cells(ordinary)), Some(&exact));
    let decoder = EventDecoder::new(7, &schema::value_schema(&shape())).unwrap();
    let event = decoder.event(&record).unwrap();
    assert_eq!(event.header, header(Op::Update));
    let head = EventDecoder::head(&record).unwrap();
    assert_eq!((head.schema_id, head.header), (7, header(Op::Update)));
    let (mut before, mut after) = (Vec::new(), Vec::new());
    assert_eq!(decoder.images(&event, &mut before, &mut after).unwrap(), (true, true));
    for (at, (column, _, _, ordinary, exact)) in COLUMNS.iter().enumerate() {
        // The formatter writes floats as Rust does: the same number in other digits.
        let same =
            |text: &str, expected: &str| text == expected || text.parse::<f64>().ok() == expected.parse::<f64>().ok();
        let found = texts_of(&decoder, &before)[at].clone().unwrap();
        assert!(same(&found, ordinary), "{column}: {found}");
        assert_eq!(matches!(after[at], Value::Exact(_)), exact.is_some(), "{column}");
        assert!(same(&texts_of(&decoder, &after)[at].clone().unwrap(), exact.unwrap_or(ordinary)), "{column}");
    }
    assert_eq!(after[4], Value::Double(-0.0));
    let Value::Double(zero) = after[4] else { panic!("{:?}", after[4]) };
    assert!(zero.is_sign_negative());
}

#[test]
fn null_unchanged_and_absent_stay_three_things() {
    let decoder = EventDecoder::new(7, &schema::value_schema(&shape())).unwrap();
    let sparse = cells(|at| match at {
        7 => Cell::Unchanged,
        8 | 5 => Cell::Null,
        _ => ordinary(at),
    });
    let record = event(Op::Create, None, Some(&sparse));
    let event = decoder.event(&record).unwrap();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    assert_eq!(decoder.images(&event, &mut before, &mut after).unwrap(), (false, true));
    assert_eq!((after[7], after[8], after[5]), (Value::Unchanged, Value::Null, Value::Null));
    assert_eq!(event.unchanged, [7]);
    let avro = read(&schema::value_schema(&shape()), &record);
    assert_eq!(field(&avro, "unchanged"), &Avro::Array(vec![Avro::String("text".into())]));
    assert_eq!(field(&avro, "before"), &Avro::Null);
}

#[test]
fn the_avro_library_reads_an_event_as_we_wrote_it() {
    let exact = cells(|at| Cell::Text(COLUMNS[at].4.unwrap_or(COLUMNS[at].3).as_bytes()));
    let avro = read(&schema::value_schema(&shape()), &event(Op::Update, Some(&cells(ordinary)), Some(&exact)));
    assert_eq!(field(&avro, "op"), &Avro::String("u".into()));
    let source = field(&avro, "source");
    assert_eq!(field(source, "commit_lsn"), &Avro::Long(0x16_B374_D900));
    assert_eq!(field(source, "ordinal"), &Avro::Long(12_345_678_901));
    assert_eq!(field(source, "commit_time"), &Avro::TimestampMicros(1_700_000_000_123_456));
    let before = field(&avro, "before");
    assert_eq!(field(before, "id"), &Avro::Long(i64::MAX));
    assert_eq!(field(before, "day"), &Avro::Date(19_782));
    assert_eq!(field(before, "clock"), &Avro::TimeMicros(86_399_500_000));
    assert_eq!(field(before, "raw"), &Avro::Bytes(vec![0, 0xff, 0x10]));
    assert_eq!(field(before, "two_20_words"), &Avro::String("{\"a\": 1.00}".into()));
    assert_eq!(field(before, "two_20_words_2"), &Avro::String("x".into()));
    let Avro::Decimal(price) = field(before, "price") else { panic!("{before:?}") };
    assert_eq!(Vec::<u8>::try_from(price).unwrap(), (-1_234_567_890_i32).to_be_bytes());
    let after = field(&avro, "after");
    assert_eq!(field(after, "price"), &Avro::Null);
    let Avro::Map(texts) = field(&avro, "exact") else { panic!("{avro:?}") };
    assert_eq!(texts.get("moment"), Some(&Avro::String("infinity".into())));
    assert_eq!(texts.len(), 5);
}

#[test]
fn a_key_is_typed_where_it_may_be_and_in_key_order() {
    let encoder = EventEncoder::new(Arc::new(shape()), Lane::Forward, 7, 7);
    let mut key = Vec::new();
    assert!(encoder.key(&mut key, &Position::ZERO, &cells(ordinary)).unwrap());
    let avro = read(&schema::key_schema(&shape()).unwrap(), &key);
    let Avro::Record(fields) = &avro else { panic!("{avro:?}") };
    assert_eq!(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["uuid", "id"]);
    assert!(encoder.key(&mut Vec::new(), &Position::ZERO, &cells(|_| Cell::Unchanged)).is_err());
}

#[test]
fn a_value_that_is_not_of_its_type_is_refused_by_name() {
    let mut encoder = EventEncoder::new(Arc::new(shape()), Lane::Forward, 7, 7);
    for (at, bad) in [(0, "1.5"), (2, "true"), (8, "\\xf"), (9, "no"), (1, "")] {
        let row = cells(|column| if column == at { Cell::Text(bad.as_bytes()) } else { ordinary(column) });
        let error = encoder.value(&mut Vec::new(), &header(Op::Create), None, Some(&row)).unwrap_err().to_string();
        assert!(error.contains(COLUMNS[at].0) && !error.contains("1.5"), "{error}");
    }
}

#[test]
fn damaged_records_are_errors_and_never_a_panic() {
    let record = event(Op::Update, Some(&cells(ordinary)), Some(&cells(ordinary)));
    let decoder = EventDecoder::new(7, &schema::value_schema(&shape())).unwrap();
    let decode =
        |bytes: &[u8]| decoder.event(bytes).and_then(|event| decoder.images(&event, &mut Vec::new(), &mut Vec::new()));
    for length in 0..record.len() {
        assert!(decode(&record[..length]).is_err(), "cut at {length}");
    }
    for at in 0..record.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut damaged = record.clone();
            damaged[at] ^= bits;
            let _ = decode(&damaged);
        }
    }
}

fn control_records() -> Vec<LaneRecord> {
    let position = Position { commit_lsn: Lsn(5), ordinal: 9_999, part: 1 };
    vec![
        LaneRecord::Birth(Birth {
            migration: "m".into(),
            lane: "forward".into(),
            system_identifier: "7".into(),
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            publication: "p".into(),
            consistent_point: Lsn(3),
        }),
        LaneRecord::Manifest(Manifest {
            system_identifier: "7".into(),
            timeline: 2,
            xid: 4_000_000_000,
            position,
            end_lsn: Lsn(6),
            commit_time_micros: -1,
            last: true,
            partitions: vec![PartitionCount { topic: "t".into(), partition: 3, events: 10_001 }],
        }),
        LaneRecord::Marker(Marker {
            system_identifier: "7".into(),
            timeline: 2,
            position,
            end_lsn: Lsn(6),
            emitted_at_micros: 1,
            decoded_at_micros: 2,
            content: "drain".into(),
        }),
        LaneRecord::Sequences(Sequences {
            system_identifier: "7".into(),
            timeline: 2,
            position,
            end_lsn: Lsn(6),
            read_at_micros: 3,
            sequences: vec![Sequence {
                schema: "s".into(),
                name: "q".into(),
                last_value: i64::MIN,
                is_called: true,
                increment: -2,
                min: i64::MIN,
                max: -1,
                cache: 9,
                cycle: true,
            }],
        }),
        LaneRecord::Schema(SchemaChange {
            system_identifier: "7".into(),
            timeline: 2,
            position,
            end_lsn: Lsn(6),
            commit_time_micros: 4,
            last: false,
            statement: "ALTER TABLE t RENAME TO u".into(),
            tables: vec![
                TableChange {
                    table: TableName::new("s", "u"),
                    previous: TableName::new("s", "t"),
                    previous_schema_id: Some(7),
                    schema_id: Some(8),
                    rewritten: true,
                    partition_of: String::new(),
                },
                TableChange {
                    table: TableName::new("s", "v"),
                    previous: TableName::new("s", "v"),
                    previous_schema_id: None,
                    schema_id: None,
                    rewritten: false,
                    partition_of: "s.t DEFAULT".into(),
                },
            ],
        }),
    ]
}

#[test]
fn control_records_round_trip_and_the_avro_library_reads_them() {
    for record in control_records() {
        let mut bytes = Vec::new();
        record.encode(7, &mut bytes);
        assert_eq!(LaneRecord::decode(&bytes).unwrap(), record);
        let body = read(control::SCHEMA, &bytes);
        let named = field(&body, "body");
        match record {
            LaneRecord::Birth(_) => assert_eq!(field(named, "consistent_point"), &Avro::Long(3)),
            LaneRecord::Manifest(_) => assert_eq!(field(named, "last"), &Avro::Boolean(true)),
            LaneRecord::Marker(_) => assert_eq!(field(named, "decoded_at"), &Avro::TimestampMicros(2)),
            LaneRecord::Sequences(_) => assert_eq!(field(named, "read_at"), &Avro::TimestampMicros(3)),
            LaneRecord::Schema(_) => assert_eq!(field(named, "commit_time"), &Avro::TimestampMicros(4)),
        }
        for length in 0..bytes.len() {
            assert!(LaneRecord::decode(&bytes[..length]).is_err());
        }
    }
}

#[test]
fn ledger_records_round_trip_and_the_avro_library_reads_them() {
    let table = || TableName::new("s", "t");
    let id = ChunkId { table: table(), generation: 1, chunk: 2 };
    let records = [
        LedgerRecord::Plan(Plan {
            table: table(),
            generation: 1,
            oid: 16_400,
            key: vec!["a".into(), "b".into()],
            bounds: vec![vec!["1".into(), "x".into()]],
            estimated_rows: 5,
            estimated_bytes: 6,
            definition: vec!["CREATE TABLE s.t ()".into()],
        }),
        LedgerRecord::Chunk(Chunk {
            id,
            attempt: 1,
            snapshot_lsn: Lsn(9),
            exact_snapshot: true,
            row_count: 3,
            bytes: 4,
            partition: 0,
            first_offset: 1,
            last_offset: 2,
        }),
        LedgerRecord::TableCopied(TableCopied {
            table: table(),
            generation: 1,
            chunks: 2,
            row_count: 3,
            snapshot_lsn: Lsn(9),
        }),
        LedgerRecord::BackfillCompleted(BackfillCompleted { tables: vec![table()], exact_from: Lsn(9) }),
        LedgerRecord::ResyncRequested(ResyncRequested { table: table(), generation: 2, oid: 16384, token: "a".into() }),
        LedgerRecord::ResyncRefused(ResyncRefused { table: table(), generation: 2, reason: "it is gone".into() }),
    ];
    let keys: std::collections::HashSet<String> = records.iter().map(LedgerRecord::key).collect();
    assert_eq!(keys.len(), records.len());
    for record in records {
        let mut bytes = Vec::new();
        record.encode(7, &mut bytes);
        assert_eq!(LedgerRecord::decode(&bytes).unwrap(), record);
        read(ledger::SCHEMA, &bytes);
    }
}

#[test]
fn a_block_round_trips_and_the_avro_library_reads_it() {
    let block = Block {
        id: ChunkId { table: TableName::new("s", "t"), generation: 0, chunk: 4 },
        attempt: 2,
        snapshot_lsn: Lsn(9),
        exact_snapshot: false,
        columns: vec!["a", "b"],
        format: CopyFormat::Binary,
        sequence: 3,
        last: true,
        row_count: 7,
        rows: &[1, 2, 3],
    };
    let mut bytes = Vec::new();
    block.encode(7, &mut bytes);
    assert_eq!(Block::decode(&bytes).unwrap(), block);
    assert_eq!(field(&read(changelog::block::SCHEMA, &bytes), "rows"), &Avro::Bytes(vec![1, 2, 3]));
}

#[test]
fn the_documented_schema_has_the_fields_that_are_written() {
    let documented = parsed(include_str!("../../schemas/change-event.avsc"));
    let written = parsed(&schema::value_schema(&shape()));
    let names = |schema: &Schema| -> Vec<String> {
        let Schema::Record(record) = schema else { panic!("{schema:?}") };
        record.fields.iter().map(|field| field.name.clone()).collect()
    };
    assert_eq!(names(&documented), names(&written));
    let source = |schema: &Schema| {
        let Schema::Record(record) = schema else { panic!("{schema:?}") };
        names(&record.fields[1].schema)
    };
    assert_eq!(source(&documented), source(&written));
}

#[test]
fn kafka_connect_is_told_what_values_mean_and_our_own_reader_does_not_look_at_it() {
    let read = |schema: &str| serde_json::from_str::<serde_json::Value>(schema).unwrap();
    let value = read(&schema::value_schema(&shape()));
    assert_eq!(value["name"], "Envelope");
    let fields = value["fields"][5]["type"][1]["fields"].as_array().unwrap();
    let told = |name: &str, property: &str| {
        let field = fields.iter().find(|field| field["pg.name"] == name).unwrap();
        field["type"][1][property].as_str().unwrap_or_default().to_owned()
    };
    for (column, name) in [
        ("clock", "io.debezium.time.MicroTime"),
        ("moment", "io.debezium.time.MicroTimestamp"),
        ("local", "io.debezium.time.MicroTimestamp"),
        ("uuid", "io.debezium.data.Uuid"),
        ("two_20_words", "io.debezium.data.Json"),
        // Connect knows these by their logical types, and a second name is an error there.
        ("day", ""),
        ("price", ""),
        ("text", ""),
    ] {
        assert_eq!(told(column, "connect.name"), name, "{column}");
    }
    assert_eq!(told("moment", "logicalType"), "timestamp-micros");
    let escaped = fields.iter().find(|field| field["pg.name"] == "two words").unwrap();
    assert_eq!(escaped["type"][1]["connect.parameters"]["__debezium.source.column.name"], "two words");
    // A topic that was begun before there were such properties is read as before.
    let bare = bare(value).to_string();
    assert!(!bare.contains("connect."));
    assert_eq!(schema::shape_of(&bare, 7).unwrap(), shape());
}

fn bare(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match json {
        Json::Object(object) => {
            let kept = object.into_iter().filter(|(name, _)| !name.starts_with("connect."));
            let kept: serde_json::Map<String, Json> = kept.map(|(name, value)| (name, bare(value))).collect();
            match kept.get("type") {
                Some(plain) if kept.len() == 1 => plain.clone(),
                _ => Json::Object(kept),
            }
        }
        Json::Array(items) => items.into_iter().map(bare).collect(),
        other => other,
    }
}
