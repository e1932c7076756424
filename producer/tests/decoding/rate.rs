//! How fast: `cargo test --release -p producer --test decoding -- --ignored --nocapture rate`.

use std::hint::black_box;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use changelog::Lsn;
use producer::assemble::{Assembled, Assembler};
use producer::pgoutput::{Cell, decode};

use crate::model::{Model, Value, encode};

const CHANGES: usize = 1_000_000;

/// Updates as pgbench makes them (four columns, about 60 bytes), each a slice of a shared buffer as in the stream.
fn updates() -> Vec<Bytes> {
    let text = |text: &str| Value::Text(text.as_bytes().to_vec());
    let after = vec![text("1234567"), text("15"), text("-48211"), text("                                        ")];
    let one = encode(&Model::Update { id: 1, before: None, after });
    let mut buffer = BytesMut::new();
    (0..CHANGES).for_each(|_| buffer.extend_from_slice(&one));
    let mut buffer = buffer.freeze();
    (0..CHANGES).map(|_| buffer.split_to(one.len())).collect()
}

#[test]
#[ignore = "a measurement"]
fn rate_of_a_million_updates() {
    let messages = updates();
    let began = Instant::now();
    for message in &messages {
        black_box(decode(message.clone()).unwrap());
    }
    report("decode", began);

    let began = Instant::now();
    let (mut assembler, mut out, mut bytes) = (Assembler::new(), Vec::new(), 0_usize);
    let columns = (0..4).map(|number| (number == 0, format!("c{number}"), 23, -1)).collect();
    let relation = Model::Relation { id: 1, schema: "public".into(), name: "t".into(), identity: b'd', columns };
    for model in [Model::Begin { final_lsn: 9, time: 0, xid: 1 }, relation] {
        assembler.accept(Lsn(1), decode(encode(&model)).unwrap(), &mut out).unwrap();
    }
    for message in &messages {
        assembler.accept(Lsn(1), decode(message.clone()).unwrap(), &mut out).unwrap();
        for event in out.drain(..) {
            let Assembled::Change(change) = event else { continue };
            let producer::assemble::ChangeKind::Update { after, .. } = &change.kind else { continue };
            for cell in after {
                if let Cell::Text(text) = cell {
                    bytes += text.len();
                }
            }
        }
    }
    report("decode, assemble, walk the cells", began);
    assert!(black_box(bytes) > CHANGES);
}

fn report(what: &str, began: Instant) {
    let nanos = began.elapsed().as_nanos() / CHANGES as u128;
    println!("{what}: {nanos} ns a change");
}
