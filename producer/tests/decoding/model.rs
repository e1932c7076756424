//! An encoder of our own for tests, written from the manual and not from the decoder, and the messages as plain values.

use bytes::{BufMut, Bytes};
use producer::pgoutput::{Before, Cell, Message, POSTGRES_EPOCH_UNIX_MICROS, ReplicaIdentity, TupleData};
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

pub type Tuple = Vec<Value>;

#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    Begin {
        final_lsn: u64,
        time: i64,
        xid: u32,
    },
    Commit {
        flags: u8,
        commit_lsn: u64,
        end_lsn: u64,
        time: i64,
    },
    Origin {
        lsn: u64,
        name: String,
    },
    Relation {
        id: u32,
        schema: String,
        name: String,
        identity: u8,
        columns: Vec<(bool, String, u32, i32)>,
    },
    Type {
        oid: u32,
        schema: String,
        name: String,
    },
    Insert {
        id: u32,
        after: Tuple,
    },
    /// The tag ('K' or 'O') and the old tuple.
    Update {
        id: u32,
        before: Option<(u8, Tuple)>,
        after: Tuple,
    },
    Delete {
        id: u32,
        before: (u8, Tuple),
    },
    Truncate {
        flags: u8,
        ids: Vec<u32>,
    },
    Logical {
        flags: u8,
        lsn: u64,
        prefix: String,
        content: Vec<u8>,
    },
}

pub fn encode(model: &Model) -> Bytes {
    let mut out = Vec::new();
    match model {
        Model::Begin { final_lsn, time, xid } => {
            out.put_u8(b'B');
            out.put_u64(*final_lsn);
            out.put_i64(*time);
            out.put_u32(*xid);
        }
        Model::Commit { flags, commit_lsn, end_lsn, time } => {
            out.put_u8(b'C');
            out.put_u8(*flags);
            out.put_u64(*commit_lsn);
            out.put_u64(*end_lsn);
            out.put_i64(*time);
        }
        Model::Origin { lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(*lsn);
            put_text(name, &mut out);
        }
        Model::Relation { id, schema, name, identity, columns } => {
            out.put_u8(b'R');
            out.put_u32(*id);
            put_schema(schema, &mut out);
            put_text(name, &mut out);
            out.put_u8(*identity);
            out.put_i16(i16::try_from(columns.len()).unwrap());
            for (key, name, oid, modifier) in columns {
                out.put_u8(u8::from(*key));
                put_text(name, &mut out);
                out.put_u32(*oid);
                out.put_i32(*modifier);
            }
        }
        Model::Type { oid, schema, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_schema(schema, &mut out);
            put_text(name, &mut out);
        }
        Model::Insert { id, after } => {
            out.put_u8(b'I');
            out.put_u32(*id);
            put_tuple(b'N', after, &mut out);
        }
        Model::Update { id, before, after } => {
            out.put_u8(b'U');
            out.put_u32(*id);
            if let Some((tag, before)) = before {
                put_tuple(*tag, before, &mut out);
            }
            put_tuple(b'N', after, &mut out);
        }
        Model::Delete { id, before: (tag, before) } => {
            out.put_u8(b'D');
            out.put_u32(*id);
            put_tuple(*tag, before, &mut out);
        }
        Model::Truncate { flags, ids } => {
            out.put_u8(b'T');
            out.put_i32(i32::try_from(ids.len()).unwrap());
            out.put_u8(*flags);
            ids.iter().for_each(|id| out.put_u32(*id));
        }
        Model::Logical { flags, lsn, prefix, content } => {
            out.put_u8(b'M');
            out.put_u8(*flags);
            out.put_u64(*lsn);
            put_text(prefix, &mut out);
            out.put_i32(i32::try_from(content.len()).unwrap());
            out.put_slice(content);
        }
    }
    out.into()
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_schema(schema: &str, out: &mut Vec<u8>) {
    put_text(if schema == "pg_catalog" { "" } else { schema }, out);
}

fn put_tuple(tag: u8, tuple: &Tuple, out: &mut Vec<u8>) {
    out.put_u8(tag);
    out.put_i16(i16::try_from(tuple.len()).unwrap());
    for value in tuple {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(bytes) | Value::Binary(bytes) => {
                out.put_u8(if matches!(value, Value::Text(_)) { b't' } else { b'b' });
                out.put_i32(i32::try_from(bytes.len()).unwrap());
                out.put_slice(bytes);
            }
        }
    }
}

/// What the decoder made, as plain values again.
pub fn plain(message: &Message) -> Model {
    let time = |unix: i64| unix - POSTGRES_EPOCH_UNIX_MICROS;
    match message {
        Message::Begin(begin) => {
            Model::Begin { final_lsn: begin.final_lsn.0, time: time(begin.commit_time_micros), xid: begin.xid }
        }
        Message::Commit(commit) => Model::Commit {
            flags: commit.flags,
            commit_lsn: commit.commit_lsn.0,
            end_lsn: commit.end_lsn.0,
            time: time(commit.commit_time_micros),
        },
        Message::Origin(origin) => Model::Origin { lsn: origin.lsn.0, name: origin.name.clone() },
        Message::Relation(relation) => Model::Relation {
            id: relation.id,
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            identity: match relation.replica_identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            },
            columns: relation
                .columns
                .iter()
                .map(|column| (column.key, column.name.clone(), column.type_oid, column.type_modifier))
                .collect(),
        },
        Message::Type(name) => Model::Type { oid: name.oid, schema: name.schema.clone(), name: name.name.clone() },
        Message::Insert { relation_id, after } => Model::Insert { id: *relation_id, after: values(after) },
        Message::Update { relation_id, before, after } => {
            Model::Update { id: *relation_id, before: before_values(before), after: values(after) }
        }
        Message::Delete { relation_id, before } => {
            Model::Delete { id: *relation_id, before: before_values(before).expect("a delete has an old tuple") }
        }
        Message::Truncate(truncate) => Model::Truncate {
            flags: u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1,
            ids: truncate.relation_ids.clone(),
        },
        Message::Logical(message) => Model::Logical {
            flags: u8::from(message.transactional),
            lsn: message.lsn.0,
            prefix: message.prefix.clone(),
            content: message.content.to_vec(),
        },
    }
}

pub fn values(tuple: &TupleData) -> Tuple {
    let cells = tuple.iter().map(|cell| match cell {
        Cell::Null => Value::Null,
        Cell::Unchanged => Value::Unchanged,
        Cell::Text(bytes) => Value::Text(bytes.to_vec()),
        Cell::Binary(bytes) => Value::Binary(bytes.to_vec()),
    });
    cells.collect()
}

fn before_values(before: &Before) -> Option<(u8, Tuple)> {
    match before {
        Before::Absent => None,
        Before::Key(tuple) => Some((b'K', values(tuple))),
        Before::Row(tuple) => Some((b'O', values(tuple))),
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..24)
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        bytes().prop_map(Value::Text),
        bytes().prop_map(Value::Binary)
    ];
    proptest::collection::vec(value, 0..8)
}

fn name() -> impl Strategy<Value = String> {
    "[^\\x00]{1,12}"
}

fn tagged() -> impl Strategy<Value = (u8, Tuple)> {
    (prop_oneof![Just(b'K'), Just(b'O')], tuple())
}

/// Times on both sides of the epoch, as far as PostgreSQL's own range goes.
fn time() -> impl Strategy<Value = i64> {
    -211_813_488_000_000_000_i64..9_000_000_000_000_000_000
}

pub fn message() -> impl Strategy<Value = Model> {
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>());
    let identity = prop_oneof![Just(b'd'), Just(b'n'), Just(b'f'), Just(b'i')];
    prop_oneof![
        (any::<u64>(), time(), any::<u32>()).prop_map(|(final_lsn, time, xid)| Model::Begin { final_lsn, time, xid }),
        (any::<u8>(), any::<u64>(), any::<u64>(), time())
            .prop_map(|(flags, commit_lsn, end_lsn, time)| Model::Commit { flags, commit_lsn, end_lsn, time }),
        (any::<u64>(), name()).prop_map(|(lsn, name)| Model::Origin { lsn, name }),
        (any::<u32>(), name(), name(), identity, proptest::collection::vec(column, 0..6))
            .prop_map(|(id, schema, name, identity, columns)| Model::Relation { id, schema, name, identity, columns }),
        (any::<u32>(), prop_oneof![name(), Just("pg_catalog".to_owned())], name())
            .prop_map(|(oid, schema, name)| Model::Type { oid, schema, name }),
        (any::<u32>(), tuple()).prop_map(|(id, after)| Model::Insert { id, after }),
        (any::<u32>(), proptest::option::of(tagged()), tuple()).prop_map(|(id, before, after)| Model::Update {
            id,
            before,
            after
        }),
        (any::<u32>(), tagged()).prop_map(|(id, before)| Model::Delete { id, before }),
        (0_u8..4, proptest::collection::vec(any::<u32>(), 0..6))
            .prop_map(|(flags, ids)| Model::Truncate { flags, ids }),
        (0_u8..2, any::<u64>(), name(), bytes()).prop_map(|(flags, lsn, prefix, content)| Model::Logical {
            flags,
            lsn,
            prefix,
            content
        }),
    ]
}
