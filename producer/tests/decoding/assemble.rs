//! Transactions: a table of protocol errors, and properties over generated streams.

use std::sync::Arc;

use changelog::Lsn;
use producer::assemble::{AssembleError, Assembled, Assembler, Change, ChangeKind};
use producer::pgoutput::decode;
use proptest::prelude::*;

use crate::model::{Model, Value, encode};
use crate::pgoutput::corpus;

const TABLES: u32 = 3;

fn begin(lsn: u64) -> Model {
    Model::Begin { final_lsn: lsn, time: 0, xid: u32::try_from(lsn).unwrap() }
}

fn commit(lsn: u64) -> Model {
    Model::Commit { flags: 0, commit_lsn: lsn, end_lsn: lsn + 8, time: 0 }
}

fn relation(id: u32, columns: usize) -> Model {
    let columns = (0..columns).map(|number| (number == 0, format!("c{number}"), 23, -1)).collect();
    Model::Relation { id, schema: "public".into(), name: format!("t{id}"), identity: b'd', columns }
}

fn row(columns: usize) -> Vec<Value> {
    vec![Value::Text(b"1".to_vec()); columns]
}

fn insert(id: u32) -> Model {
    Model::Insert { id, after: row(2) }
}

fn marker(prefix: &str, flags: u8) -> Model {
    Model::Logical { flags, lsn: 5, prefix: prefix.into(), content: b"x".to_vec() }
}

fn accept(assembler: &mut Assembler, model: &Model, out: &mut Vec<Assembled>) -> Result<(), AssembleError> {
    assembler.accept(Lsn(1), decode(encode(model)).unwrap(), out)
}

fn run(models: &[Model]) -> Result<Vec<Assembled>, AssembleError> {
    let (mut assembler, mut out) = (Assembler::new(), Vec::new());
    for model in models {
        let before = out.len();
        if let Err(error) = accept(&mut assembler, model, &mut out) {
            assert_eq!(out.len(), before, "an error leaves no half of a message");
            return Err(error);
        }
    }
    Ok(out)
}

fn changes(events: &[Assembled]) -> Vec<&Change> {
    events.iter().filter_map(|event| if let Assembled::Change(change) = event { Some(change) } else { None }).collect()
}

#[test]
fn a_stream_that_breaks_the_protocol_is_a_named_error_with_its_lsn() {
    let cases: Vec<(Vec<Model>, &str)> = vec![
        (vec![relation(1, 2), insert(1)], "Insert message at 0/1 stands outside of a transaction"),
        (vec![Model::Truncate { flags: 0, ids: vec![] }], "Truncate message at 0/1 stands outside of a transaction"),
        (vec![commit(9)], "Commit message at 0/1 stands outside of a transaction"),
        (vec![Model::Origin { lsn: 1, name: "o".into() }], "Origin message at 0/1 stands outside of a transaction"),
        (vec![marker("dflux.marker", 1)], "Message message at 0/1 stands outside of a transaction"),
        (
            vec![begin(16), begin(32)],
            "transaction 32 with commit LSN 0/20 begins inside of transaction 16 with commit LSN 0/10",
        ),
        (vec![begin(16), commit(17)], "transaction 16 began with commit LSN 0/10 and commits with 0/11"),
        (
            vec![begin(16), Model::Commit { flags: 0, commit_lsn: 16, end_lsn: 16, time: 0 }],
            "transaction 16 with commit LSN 0/10 has the end LSN 0/10, which is not behind it",
        ),
        (
            vec![begin(16), commit(16), begin(16)],
            "transaction 16 with commit LSN 0/10 follows one with commit LSN 0/10: the stream went backwards",
        ),
        (
            vec![begin(16), relation(1, 2), insert(1), insert(7)],
            "change at 0/10 (ordinal 1) names relation 7, which no Relation message described",
        ),
        (
            vec![begin(16), relation(1, 2), Model::Truncate { flags: 0, ids: vec![1, 7] }],
            "change at 0/10 (ordinal 1) names relation 7, which no Relation message described",
        ),
        (
            vec![begin(16), relation(1, 3), insert(1)],
            "change of public.t1 at 0/10 (ordinal 0) has 2 columns, its Relation message 3",
        ),
        (
            vec![begin(16), relation(1, 2), Model::Update { id: 1, before: Some((b'K', row(1))), after: row(2) }],
            "change of public.t1 at 0/10 (ordinal 0) has 1 columns, its Relation message 2",
        ),
    ];
    for (models, expected) in cases {
        let error = run(&models).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn each_relation_of_a_truncate_is_a_change_in_the_order_of_the_message() {
    let truncate = Model::Truncate { flags: 1, ids: vec![2, 1] };
    let events = run(&[begin(16), relation(1, 2), insert(1), relation(2, 2), truncate, insert(2), commit(16)]).unwrap();
    let seen: Vec<_> = changes(&events).iter().map(|change| (change.ordinal, change.relation.id)).collect();
    assert_eq!(seen, [(0, 1), (1, 2), (2, 1), (3, 2)]);
    assert_eq!(changes(&events)[1].kind, ChangeKind::Truncate { cascade: true, restart_identity: false });
    assert!(matches!(events.last(), Some(Assembled::Commit(commit)) if commit.changes == 4 && commit.xid == 16));
}

#[test]
fn messages_of_ours_come_out_in_place_and_take_no_ordinal() {
    let models = [
        marker("dflux.marker", 0),
        begin(16),
        Model::Origin { lsn: 3, name: "other".into() },
        marker("dflux.origin", 1),
        relation(1, 2),
        marker("dflux.marker", 1),
        marker("someone.else", 1),
        insert(1),
        marker("dflux.schema", 1),
        commit(16),
    ];
    let events = run(&models).unwrap();
    let content = bytes::Bytes::from_static(b"x");
    assert!(matches!(events[0], Assembled::Begin(_)));
    assert_eq!(events[1], Assembled::Origin { lsn: Lsn(3), name: "other".into() });
    assert_eq!(events[2], Assembled::OriginMessage { content: content.clone() });
    assert_eq!(events[3], Assembled::Marker { lsn: Lsn(5), content });
    assert_eq!(changes(&events)[0].ordinal, 0);
    assert!(matches!(events[5], Assembled::Schema { ordinal: 1, .. }), "it has its place among the changes");
    assert_eq!(events.len(), 7);
}

#[test]
fn each_description_is_a_new_one_and_an_event_keeps_its_own() {
    let models = [
        begin(16),
        relation(1, 2),
        insert(1),
        relation(1, 2),
        insert(1),
        relation(1, 3),
        Model::Insert { id: 1, after: row(3) },
    ];
    let events = run(&models).unwrap();
    let seen = changes(&events);
    assert!(!Arc::ptr_eq(&seen[0].relation, &seen[1].relation), "a column may be another of the same name");
    assert_eq!(seen[0].relation, seen[1].relation);
    assert!(!Arc::ptr_eq(&seen[1].relation, &seen[2].relation));
    assert_eq!(seen[2].relation.columns.len(), 3);
    assert_eq!(seen[0].relation.columns.len(), 2, "an event keeps the description that it was made under");
}

#[test]
fn the_real_stream_is_assembled_into_whole_transactions() {
    let (mut assembler, mut out) = (Assembler::new(), Vec::new());
    for bytes in corpus() {
        assembler.accept(Lsn(1), decode(bytes).unwrap(), &mut out).unwrap();
    }
    assert_eq!(assembler.open_transaction(), None);
    assert!(out.iter().any(|event| matches!(event, Assembled::Marker { .. })));
    assert!(out.iter().any(|event| matches!(event, Assembled::Origin { .. })));
    check_ordinals(&out);
}

fn check_ordinals(events: &[Assembled]) {
    let (mut next, mut announced) = (0, None);
    for event in events {
        match event {
            Assembled::Begin(begin) => {
                next = 0;
                announced = Some(begin.final_lsn);
            }
            Assembled::Change(change) => {
                assert_eq!(change.ordinal, next);
                next += 1;
            }
            Assembled::Schema { ordinal, .. } => {
                assert_eq!(*ordinal, next);
                next += 1;
            }
            Assembled::Commit(commit) => {
                assert_eq!(commit.changes, next);
                assert_eq!(announced.take(), Some(commit.commit_lsn));
            }
            Assembled::Origin { .. } | Assembled::OriginMessage { .. } | Assembled::Marker { .. } => {
                assert!(announced.is_some());
            }
        }
    }
}

fn inner() -> impl Strategy<Value = Model> {
    let id = || 0..TABLES;
    prop_oneof![
        id().prop_map(insert),
        id().prop_map(|id| Model::Update { id, before: None, after: row(2) }),
        id().prop_map(|id| Model::Update { id, before: Some((b'O', row(2))), after: row(2) }),
        id().prop_map(|id| Model::Delete { id, before: (b'K', row(2)) }),
        (0_u8..4, proptest::collection::vec(id(), 0..4)).prop_map(|(flags, ids)| Model::Truncate { flags, ids }),
        id().prop_map(|id| relation(id, 2)),
        Just(marker("dflux.marker", 1)),
        Just(marker("dflux.schema", 1)),
        Just(marker("foreign", 1)),
    ]
}

/// A stream as a server sends it: transactions with rising commit LSNs, every relation described first.
fn stream() -> impl Strategy<Value = Vec<Model>> {
    proptest::collection::vec((1_u64..50, proptest::collection::vec(inner(), 0..12)), 1..6).prop_map(|transactions| {
        let (mut lsn, mut models) = (0, Vec::new());
        for (step, inside) in transactions {
            lsn += step + 8;
            models.push(begin(lsn));
            models.extend((0..TABLES).map(|id| relation(id, 2)));
            models.extend(inside);
            models.push(commit(lsn));
        }
        models
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn ordinals_count_every_change_from_zero_without_a_gap(models in stream()) {
        let events = run(&models).unwrap();
        check_ordinals(&events);
        let sent: usize = models.iter().map(|model| match model {
            Model::Insert { .. } | Model::Update { .. } | Model::Delete { .. } => 1,
            Model::Truncate { ids, .. } => ids.len(),
            _ => 0,
        }).sum();
        prop_assert_eq!(changes(&events).len(), sent);
    }

    /// A restart decodes a transaction again from its beginning: the same events, so the same positions.
    #[test]
    fn a_transaction_decoded_again_gives_the_same_events(models in stream(), skip in 0_usize..5) {
        let begins: Vec<usize> =
            models.iter().enumerate().filter(|(_, model)| matches!(model, Model::Begin { .. })).map(|(index, _)| index).collect();
        let from = begins[skip % begins.len()];
        let (whole, again) = (run(&models).unwrap(), run(&models[from..]).unwrap());
        prop_assert_eq!(&whole[whole.len() - again.len()..], &again[..]);
    }

    /// Any order of messages gives events whose transactions are whole, or an error.
    #[test]
    fn any_order_of_messages_gives_whole_transactions_or_an_error(
        models in proptest::collection::vec(prop_oneof![inner(), Just(begin(9)), Just(begin(99)), Just(commit(9)), Just(commit(99))], 0..30),
    ) {
        let (mut assembler, mut out) = (Assembler::new(), Vec::new());
        for model in &models {
            if accept(&mut assembler, model, &mut out).is_err() {
                break;
            }
        }
        check_ordinals(&out);
    }
}
