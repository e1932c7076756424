//! Interleavings of manifests and events, resends and losses among them: what comes out is source order or a named error.

use changelog::{Op, PartitionCount};
use proptest::prelude::*;

use super::*;

const SYSTEM: &str = "7";

fn position(lsn: u64, ordinal: u64) -> Position {
    Position::new(Lsn(lsn), ordinal)
}

fn header(position: Position) -> Header {
    Header { op: Op::Create, xid: 1, lsn: position.commit_lsn, position, commit_time_micros: 0 }
}

fn manifest(position: Position, last: bool, counts: &[(&str, i32, u64)]) -> LaneRecord {
    let partitions = counts.iter().map(|(topic, partition, events)| PartitionCount {
        topic: (*topic).to_owned(),
        partition: *partition,
        events: *events,
    });
    LaneRecord::Manifest(Manifest {
        system_identifier: SYSTEM.into(),
        timeline: 1,
        xid: 1,
        position,
        end_lsn: Lsn(position.commit_lsn.0 + 1),
        commit_time_micros: 0,
        last,
        partitions: partitions.collect(),
    })
}

fn marker(position: Position) -> LaneRecord {
    LaneRecord::Marker(Marker {
        system_identifier: SYSTEM.into(),
        timeline: 1,
        position,
        end_lsn: Lsn(position.commit_lsn.0 + 1),
        emitted_at_micros: 0,
        decoded_at_micros: 0,
        content: String::new(),
    })
}

/// What comes out of given logs: positions of events, `None` at the end of a segment; or the error.
fn merged(
    applied: Applied,
    control: &[LaneRecord],
    partitions: &[(&str, Vec<Position>)],
) -> Result<Vec<Option<Position>>, Error> {
    let mut merge: Merge<()> = Merge::new(SYSTEM, 1, applied);
    let mut logs: HashMap<String, std::vec::IntoIter<Position>> =
        partitions.iter().map(|(topic, log)| ((*topic).to_owned(), log.clone().into_iter())).collect();
    let (mut control, mut out) = (control.iter(), Vec::new());
    loop {
        if let Some(item) = merge.advance() {
            match item {
                Merged::Event(header, ()) => out.push(Some(header.position)),
                Merged::End(_) => out.push(None),
                Merged::Schema(change) => out.push(Some(change.position)),
                Merged::Marker(_) | Merged::Sequences(_) => {}
            }
        } else if let Some(needed) = merge.needs() {
            match logs.get_mut(&merge.name(needed).topic).and_then(Iterator::next) {
                Some(position) => {
                    merge.event(header(position), ())?;
                }
                None => return Ok(out),
            }
        } else {
            match control.next() {
                Some(record) => {
                    merge.control(record.clone())?;
                }
                None => return Ok(out),
            }
        }
    }
}

#[test]
fn events_of_many_partitions_come_in_the_order_of_their_transaction() {
    let control = [manifest(position(100, 3), true, &[("a", 0, 2), ("b", 0, 2)])];
    let logs = [("a", vec![position(100, 0), position(100, 2)]), ("b", vec![position(100, 1), position(100, 3)])];
    let out = merged(Applied::before(Lsn(1)), &control, &logs).unwrap();
    let expected: Vec<_> = (0..4).map(|ordinal| Some(position(100, ordinal))).chain([None]).collect();
    assert_eq!(out, expected);
}

#[test]
fn what_is_applied_already_is_dropped_after_a_restart() {
    let control = [
        manifest(position(100, 0), true, &[("a", 0, 1)]),
        marker(position(110, 0)),
        manifest(position(120, 0), true, &[("a", 0, 1)]),
    ];
    let logs = [("a", vec![position(100, 0), position(120, 0)])];
    let out = merged(Applied::through(position(100, 0)), &control, &logs).unwrap();
    assert_eq!(out, [Some(position(120, 0)), None]);
    assert!(merged(Applied::through(position(120, 0)), &control, &logs).unwrap().is_empty());
}

#[test]
fn a_marker_before_the_first_change_of_its_transaction_does_not_hide_it() {
    let control = [marker(position(100, 0)), manifest(position(100, 0), true, &[("a", 0, 1)])];
    let logs = [("a", vec![position(100, 0)])];
    assert_eq!(merged(Applied::before(Lsn(1)), &control, &logs).unwrap(), [Some(position(100, 0)), None]);
    // Restarted between the two.
    assert_eq!(merged(Applied::before(Lsn(100)), &control, &logs).unwrap(), [Some(position(100, 0)), None]);
}

#[test]
fn a_change_of_tables_stands_between_the_rows_before_and_behind_it_and_comes_once() {
    let schema = |ordinal, last| {
        LaneRecord::Schema(SchemaChange {
            system_identifier: SYSTEM.into(),
            timeline: 1,
            position: position(100, ordinal),
            end_lsn: Lsn(101),
            commit_time_micros: 0,
            last,
            statement: String::new(),
            tables: Vec::new(),
        })
    };
    let control = [
        manifest(position(100, 1), false, &[("a", 0, 2)]),
        schema(2, false),
        // A producer that was started again sends what it had not seen acknowledged.
        schema(2, false),
        manifest(position(100, 3), false, &[("a", 0, 1)]),
        schema(4, true),
        schema(4, true),
        manifest(position(120, 0), true, &[("a", 0, 1)]),
    ];
    let logs = [("a", vec![position(100, 0), position(100, 1), position(100, 3), position(120, 0)])];
    let at = |ordinal| Some(position(100, ordinal));
    let out = merged(Applied::before(Lsn(1)), &control, &logs).unwrap();
    assert_eq!(out, [at(0), at(1), None, at(2), at(3), None, at(4), Some(position(120, 0)), None]);
    let out = merged(Applied::through(position(100, 4)), &control, &logs).unwrap();
    assert_eq!(out, [Some(position(120, 0)), None], "its transaction is whole");
}

#[test]
fn lost_unlisted_and_foreign_records_are_errors() {
    let control = [manifest(position(100, 1), true, &[("a", 0, 2)]), manifest(position(200, 0), true, &[("a", 0, 1)])];
    let lost = merged(Applied::before(Lsn(1)), &control, &[("a", vec![position(100, 0), position(200, 0)])]);
    assert!(matches!(lost, Err(Error::LostEvent { missing: 1, .. })));
    let unlisted = merged(Applied::before(Lsn(1)), &control, &[("a", vec![position(50, 0), position(100, 0)])]);
    assert!(matches!(unlisted, Err(Error::UnlistedEvent { .. })));
    let mut merge: Merge<()> = Merge::new("8", 1, Applied::before(Lsn(1)));
    assert!(matches!(
        merge.control(control[0].clone()),
        Err(Error::ForeignManifest { field: "system identifier", .. })
    ));
    let mut merge: Merge<()> = Merge::new(SYSTEM, 2, Applied::before(Lsn(1)));
    assert!(matches!(merge.control(control[0].clone()), Err(Error::ForeignManifest { field: "timeline", .. })));
}

proptest! {
    /// A random history over three partitions; each partition's log holds resends of random earlier stretches (a zombie) at
    /// random places; the reader restarts from a random transaction. What comes out is the history behind that point.
    #[test]
    fn resends_and_restarts_change_nothing(
        transactions in prop::collection::vec(prop::collection::vec(0_usize..3, 1..6), 1..12),
        resends in prop::collection::vec((0_usize..3, 0_usize..40, 0_usize..40, 0_usize..60), 0..12),
        control_resends in prop::collection::vec((0_usize..12, 0_usize..12), 0..4),
        start in 0_usize..12,
    ) {
        let names = ["a", "b", "c"];
        let mut logs: Vec<Vec<Position>> = vec![Vec::new(); 3];
        let (mut control, mut history) = (Vec::new(), Vec::new());
        for (number, events) in transactions.iter().enumerate() {
            let lsn = 100 * (number as u64 + 1);
            for (ordinal, at) in events.iter().enumerate() {
                logs[*at].push(position(lsn, ordinal as u64));
                history.push(position(lsn, ordinal as u64));
            }
            let counts: Vec<(&str, i32, u64)> = (0..3)
                .map(|at| (names[at], 0, events.iter().filter(|event| **event == at).count() as u64))
                .filter(|(_, _, events)| *events > 0)
                .collect();
            control.push(manifest(position(lsn, events.len() as u64 - 1), true, &counts));
        }
        // A resend repeats what is there before the place where it stands, in order.
        for (at, from, length, place) in resends {
            let log = &mut logs[at];
            let place = place.min(log.len());
            let from = from.min(place);
            let again: Vec<Position> = log[from..(from + length).min(place)].to_vec();
            log.splice(place..place, again);
        }
        for (from, place) in control_resends {
            let place = place.min(control.len());
            if from < place {
                let again = control[from].clone();
                control.insert(place, again);
            }
        }
        let start = start.min(transactions.len());
        let applied = if start == 0 {
            Applied::before(Lsn(1))
        } else {
            Applied::through(position(100 * start as u64, transactions[start - 1].len() as u64 - 1))
        };
        let partitions: Vec<(&str, Vec<Position>)> = names.iter().copied().zip(logs).collect();
        let out: Vec<Position> = merged(applied, &control, &partitions).unwrap().into_iter().flatten().collect();
        let expected: Vec<Position> = history.into_iter().filter(|position| !applied.covers(position)).collect();
        prop_assert_eq!(out, expected);
    }
}
