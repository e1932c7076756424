//! Where a start goes on. Pure: what the topics and the source say comes in, a decision or a named error goes out.
//!
//! ```text
//!  topics        slot        decision
//!  empty         none        Fresh: publication, slot, snapshot, birth
//!  empty         unused      Adopt: birth at its confirmed LSN; no snapshot, so the backfill takes the resume path
//!  birth …       there       Resume, if server, database, timeline and positions agree
//!  birth …       none        error: changes since the birth are lost
//!  no birth, but records     error: a topic was made anew
//! ```
//!
//! At a start `confirmed_flush_lsn <=` the end of the manifests, because only acknowledged ends are confirmed; otherwise
//! slot, topic or broker has lost something. A timeline that forks below anything published (a lagging standby was promoted)
//! gives other transactions the same LSNs, so going on would mix two histories. So does a source that was restored from a copy
//! of its disk; it keeps its timeline, and is known only by WAL that ends below what was published. (A walsender sends only
//! WAL that is flushed, so that a crash of the source never brings this about.)

use std::collections::HashMap;

use changelog::{Birth, LaneRecord, Lsn, PartitionCount, Position};

use crate::error::Error;
use crate::source::slot::Slot;
use crate::tails::Place;

/// What `…-transactions` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneTail {
    pub birth: Option<Birth>,
    /// Its first record is not a birth.
    pub headless: bool,
    pub position: Option<Position>,
    /// Highest end of a transaction that it lists.
    pub end_lsn: Lsn,
    /// Timeline of the highest record.
    pub timeline: Option<i32>,
    /// What the highest manifest counts.
    pub newest: Option<(Position, Vec<PartitionCount>)>,
}

impl LaneTail {
    pub fn take(&mut self, record: LaneRecord) {
        let Some(position) = record.position() else { return };
        if self.position.is_some_and(|highest| position <= highest) {
            return;
        }
        self.position = Some(position);
        match record {
            LaneRecord::Birth(_) => {}
            LaneRecord::Manifest(manifest) => {
                self.end_lsn = self.end_lsn.max(manifest.end_lsn);
                self.timeline = Some(manifest.timeline);
                self.newest = Some((manifest.position, manifest.partitions));
            }
            LaneRecord::Marker(marker) => {
                self.end_lsn = self.end_lsn.max(marker.end_lsn);
                self.timeline = Some(marker.timeline);
            }
            LaneRecord::Sequences(sequences) => {
                self.end_lsn = self.end_lsn.max(sequences.end_lsn);
                self.timeline = Some(sequences.timeline);
            }
            LaneRecord::Schema(change) => {
                self.end_lsn = self.end_lsn.max(change.end_lsn);
                self.timeline = Some(change.timeline);
            }
        }
    }
}

impl LaneTail {
    /// The partitions that the newest manifest counts. A table among them may be dropped, renamed or excluded by now.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let counts = self.newest.iter().flat_map(|(_, counts)| counts);
        counts.map(|count| (count.topic.clone(), count.partition))
    }
}

/// One line of a timeline's history: the timeline was left at this LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    pub timeline: i32,
    pub at: Lsn,
}

/// Parses a timeline history file. Lines that are not of its form are comments.
pub fn parse_history(text: &str) -> Vec<Fork> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Fork { timeline: words.next()?.parse().ok()?, at: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

/// Everything that the decision rests on.
#[derive(Debug)]
pub struct Facts<'a> {
    pub migration: &'a str,
    pub lane: &'a str,
    pub transactions_topic: &'a str,
    pub slot_name: &'a str,
    pub publication: &'a str,
    pub publication_exists: bool,
    pub system_identifier: &'a str,
    pub timeline: i32,
    /// Up to where the source's WAL is on its disk; asked after the topics were read.
    pub flushed: Lsn,
    /// The history of `timeline`, oldest first; needed only where it is not the tail's.
    pub history: &'a [Fork],
    pub database: &'a str,
    pub slot: Option<&'a Slot>,
    pub tail: &'a LaneTail,
    /// The last position in each partition that was read: of every selected table, and of every one that the newest manifest
    /// counts ([`LaneTail::places`]).
    pub events: &'a HashMap<Place, Position>,
    pub ledger_empty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Fresh,
    /// The slot is there, unused: begin with it at this consistent point.
    Adopt(Lsn),
    Resume(Birth),
}

/// # Errors
/// Every state in which going on would lose or mix changes.
pub fn decide(facts: &Facts<'_>) -> Result<Decision, Error> {
    let topic = || facts.transactions_topic.to_owned();
    if let Some(slot) = facts.slot {
        check_slot(facts, slot)?;
    }
    let Some(birth) = &facts.tail.birth else {
        let lost = |what: &str| Err(Error::TopicLost { topic: topic(), what: what.to_owned() });
        if facts.tail.headless {
            return lost("its first record is not the lane's birth");
        }
        if let Some(((events, _), position)) = facts.events.iter().next() {
            return lost(&format!("it has no birth record, and topic {events} has events up to {position}"));
        }
        if !facts.ledger_empty {
            return lost("it has no birth record, and the ledger has records");
        }
        return match facts.slot {
            None => Ok(Decision::Fresh),
            // Made before the publication it cannot be read with it: the slot decodes with the catalog of its time.
            Some(_) if !facts.publication_exists => Err(Error::SlotForeign {
                slot: facts.slot_name.to_owned(),
                what: format!("something else: publication {} does not exist", facts.publication),
            }),
            Some(slot) => Ok(Decision::Adopt(slot.confirmed_flush)),
        };
    };
    check_birth(facts, birth)?;
    check_timeline(facts, birth)?;
    check_flushed(facts, birth)?;
    let Some(slot) = facts.slot else {
        let (slot, consistent_point) = (facts.slot_name.to_owned(), birth.consistent_point);
        return Err(Error::SlotMissing { slot, topic: topic(), consistent_point });
    };
    if !facts.publication_exists {
        let (publication, slot) = (facts.publication.to_owned(), facts.slot_name.to_owned());
        return Err(Error::PublicationMissing { publication, slot });
    }
    let tail = facts.tail.end_lsn.max(birth.consistent_point);
    if slot.confirmed_flush > tail {
        let (slot, confirmed) = (facts.slot_name.to_owned(), slot.confirmed_flush);
        return Err(Error::SlotAhead { slot, confirmed, topic: topic(), tail });
    }
    check_events(facts)?;
    Ok(Decision::Resume(birth.clone()))
}

fn check_slot(facts: &Facts<'_>, slot: &Slot) -> Result<(), Error> {
    let foreign = |what: String| Err(Error::SlotForeign { slot: facts.slot_name.to_owned(), what });
    if slot.plugin != "pgoutput" {
        return foreign(format!("the plugin {}", slot.plugin));
    }
    if slot.database != facts.database {
        return foreign(format!("the database {}", slot.database));
    }
    if slot.temporary {
        return foreign("another session, which made it as a temporary slot".into());
    }
    if slot.lost {
        return Err(Error::SlotLost { slot: facts.slot_name.to_owned() });
    }
    Ok(())
}

fn check_birth(facts: &Facts<'_>, birth: &Birth) -> Result<(), Error> {
    let topic = || facts.transactions_topic.to_owned();
    if birth.system_identifier != facts.system_identifier {
        let (expected, found) = (birth.system_identifier.clone(), facts.system_identifier.to_owned());
        return Err(Error::OtherServer { topic: topic(), expected, found });
    }
    for (what, expected, found) in [
        ("[migration] name", birth.migration.as_str(), facts.migration),
        ("lane", &birth.lane, facts.lane),
        ("database", &birth.database, facts.database),
        ("[migration] slot", &birth.slot, facts.slot_name),
        ("[migration] publication", &birth.publication, facts.publication),
    ] {
        if expected != found {
            let (expected, found) = (expected.to_owned(), found.to_owned());
            return Err(Error::OtherLane { topic: topic(), what, expected, found });
        }
    }
    Ok(())
}

fn check_timeline(facts: &Facts<'_>, birth: &Birth) -> Result<(), Error> {
    let old_timeline = facts.tail.timeline.unwrap_or(birth.timeline);
    let timeline = facts.timeline;
    if timeline == old_timeline {
        return Ok(());
    }
    let topic = || facts.transactions_topic.to_owned();
    let Some(since) = facts.history.iter().position(|fork| fork.timeline == old_timeline) else {
        return Err(Error::ForeignTimeline { timeline, old_timeline, topic: topic() });
    };
    let tail = published_end(facts, birth);
    let fork = facts.history[since..].iter().map(|fork| fork.at).min().unwrap_or_default();
    if fork < tail {
        return Err(Error::LaggingStandby { timeline, old_timeline, fork, topic: topic(), tail });
    }
    Ok(())
}

/// Nothing that was published ends above this.
fn published_end(facts: &Facts<'_>, birth: &Birth) -> Lsn {
    let events = facts.events.values().map(|position| position.commit_lsn).max().unwrap_or_default();
    // An event's transaction ends behind its commit LSN, so WAL that ends at that very place is already without its end.
    facts.tail.end_lsn.max(birth.consistent_point).max(Lsn(events.0.saturating_add(1)))
}

/// Below, new transactions would get positions that the topics have already, and would be skipped and confirmed.
fn check_flushed(facts: &Facts<'_>, birth: &Birth) -> Result<(), Error> {
    let (tail, flushed) = (published_end(facts, birth), facts.flushed);
    if flushed < tail {
        return Err(Error::SourceBehind { flushed, topic: facts.transactions_topic.to_owned(), tail });
    }
    Ok(())
}

/// The newest manifest's events were acknowledged before it was confirmed; they may be missing only if it was not.
fn check_events(facts: &Facts<'_>) -> Result<(), Error> {
    let (Some(slot), Some((position, partitions))) = (facts.slot, &facts.tail.newest) else { return Ok(()) };
    if slot.confirmed_flush <= position.commit_lsn {
        return Ok(()); // The server sends this transaction again, and what is missing is published again.
    }
    for count in partitions {
        // Only emptiness proves it: the last record may be a zombie's resend of a lower position.
        if !facts.events.contains_key(&(count.topic.clone(), count.partition)) {
            let what = format!(
                "the manifest of {position} counts events in partition {}, which is empty or gone",
                count.partition
            );
            return Err(Error::TopicLost { topic: count.topic.clone(), what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth() -> Birth {
        Birth {
            migration: "m".into(),
            lane: "forward".into(),
            system_identifier: "77".into(),
            timeline: 1,
            database: "shop".into(),
            slot: "s".into(),
            publication: "p".into(),
            consistent_point: Lsn(100),
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "shop".into(),
            temporary: false,
            active_pid: None,
            confirmed_flush: Lsn(confirmed),
            lost: false,
        }
    }

    /// A lane with its birth at 100, one transaction with commit LSN 200 and end 210 in topic t.
    struct Case {
        slot: Option<Slot>,
        tail: LaneTail,
        events: HashMap<Place, Position>,
        ledger_empty: bool,
        publication_exists: bool,
        system_identifier: &'static str,
        timeline: i32,
        flushed: u64,
        history: Vec<Fork>,
    }

    impl Case {
        fn running() -> Case {
            let position = Position::new(Lsn(200), 3);
            let counts = vec![PartitionCount { topic: "t".into(), partition: 0, events: 4 }];
            Case {
                slot: Some(slot(210)),
                tail: LaneTail {
                    birth: Some(birth()),
                    headless: false,
                    position: Some(position),
                    end_lsn: Lsn(210),
                    timeline: Some(1),
                    newest: Some((position, counts)),
                },
                events: HashMap::from([(("t".to_owned(), 0), position)]),
                ledger_empty: false,
                publication_exists: true,
                system_identifier: "77",
                timeline: 1,
                flushed: 1_000,
                history: Vec::new(),
            }
        }

        fn empty() -> Case {
            let (tail, events) = (LaneTail::default(), HashMap::new());
            Case { slot: None, tail, events, ledger_empty: true, publication_exists: false, ..Case::running() }
        }

        fn decide(&self) -> Result<Decision, Error> {
            decide(&Facts {
                migration: "m",
                lane: "forward",
                transactions_topic: "m.forward-transactions",
                slot_name: "s",
                publication: "p",
                publication_exists: self.publication_exists,
                system_identifier: self.system_identifier,
                timeline: self.timeline,
                flushed: Lsn(self.flushed),
                history: &self.history,
                database: "shop",
                slot: self.slot.as_ref(),
                tail: &self.tail,
                events: &self.events,
                ledger_empty: self.ledger_empty,
            })
        }
    }

    fn with(change: impl FnOnce(&mut Case), mut case: Case) -> Result<Decision, Error> {
        change(&mut case);
        case.decide()
    }

    #[test]
    fn nothing_there_is_a_fresh_start_and_a_lane_that_agrees_goes_on() {
        assert_eq!(Case::empty().decide().unwrap(), Decision::Fresh);
        assert_eq!(with(|case| case.publication_exists = true, Case::empty()).unwrap(), Decision::Fresh);
        assert_eq!(Case::running().decide().unwrap(), Decision::Resume(birth()));
        // Killed between the acknowledgement and the confirmation.
        assert_eq!(with(|case| case.slot = Some(slot(100)), Case::running()).unwrap(), Decision::Resume(birth()));
    }

    #[test]
    fn an_unused_slot_is_adopted_only_where_its_publication_was_before_it() {
        let adopted = |case: &mut Case| (case.slot, case.publication_exists) = (Some(slot(90)), true);
        assert_eq!(with(adopted, Case::empty()).unwrap(), Decision::Adopt(Lsn(90)));
        let error = with(|case| case.slot = Some(slot(90)), Case::empty()).unwrap_err();
        assert!(matches!(error, Error::SlotForeign { .. }), "{error}");
    }

    #[test]
    fn a_slot_that_is_not_ours_to_use_is_refused() {
        type Change = fn(&mut Slot);
        let changes: [Change; 3] = [
            |slot| slot.plugin = "test_decoding".into(),
            |slot| slot.database = "other".into(),
            |slot| slot.temporary = true,
        ];
        for change in changes {
            let error = with(|case| change(case.slot.as_mut().unwrap()), Case::running()).unwrap_err();
            assert!(matches!(error, Error::SlotForeign { .. }), "{error}");
        }
        let error = with(|case| case.slot.as_mut().unwrap().lost = true, Case::running()).unwrap_err();
        assert!(matches!(error, Error::SlotLost { .. }), "{error}");
    }

    #[test]
    fn a_slot_made_anew_or_gone_is_a_named_error() {
        let ahead = with(|case| case.slot = Some(slot(211)), Case::running()).unwrap_err();
        assert!(matches!(ahead, Error::SlotAhead { .. }), "{ahead}");
        let gone = with(|case| case.slot = None, Case::running()).unwrap_err();
        assert!(matches!(gone, Error::SlotMissing { .. }), "{gone}");
        let unpublished = with(|case| case.publication_exists = false, Case::running()).unwrap_err();
        assert!(matches!(unpublished, Error::PublicationMissing { .. }), "{unpublished}");
    }

    #[test]
    fn a_topic_made_anew_is_a_named_error() {
        let transactions = with(|case| case.tail = LaneTail::default(), Case::running()).unwrap_err();
        assert!(matches!(transactions, Error::TopicLost { .. }), "{transactions}");
        let only_ledger = with(|case| case.ledger_empty = false, Case::empty()).unwrap_err();
        assert!(matches!(only_ledger, Error::TopicLost { .. }), "{only_ledger}");
        let headless = with(|case| (case.tail.birth, case.tail.headless) = (None, true), Case::running()).unwrap_err();
        assert!(matches!(headless, Error::TopicLost { .. }), "{headless}");
        let table = with(|case| case.events.clear(), Case::running()).unwrap_err();
        assert!(matches!(&table, Error::TopicLost { topic, .. } if topic == "t"), "{table}");
        // Not confirmed: the server sends the transaction again and its events are published then.
        let resent = with(|case| (case.events, case.slot) = (HashMap::new(), Some(slot(200))), Case::running());
        assert_eq!(resent.unwrap(), Decision::Resume(birth()));
    }

    #[test]
    fn another_server_or_lane_is_a_named_error() {
        let server = with(|case| case.system_identifier = "78", Case::running()).unwrap_err();
        assert!(matches!(server, Error::OtherServer { .. }), "{server}");
        let renamed = with(|case| case.tail.birth.as_mut().unwrap().slot = "x".into(), Case::running()).unwrap_err();
        assert!(matches!(renamed, Error::OtherLane { what: "[migration] slot", .. }), "{renamed}");
    }

    #[test]
    fn a_promoted_standby_goes_on_only_if_it_had_everything_that_was_published() {
        let promoted = |fork: u64| {
            let change = |case: &mut Case| {
                (case.timeline, case.history) = (2, vec![Fork { timeline: 1, at: Lsn(fork) }]);
            };
            with(change, Case::running())
        };
        assert_eq!(promoted(210).unwrap(), Decision::Resume(birth()));
        assert_eq!(promoted(500).unwrap(), Decision::Resume(birth()));
        assert!(matches!(promoted(209).unwrap_err(), Error::LaggingStandby { .. }));
        // Twice promoted: each fork since the tail's timeline counts.
        let twice = |case: &mut Case| {
            let history = vec![Fork { timeline: 1, at: Lsn(300) }, Fork { timeline: 2, at: Lsn(205) }];
            (case.timeline, case.history) = (3, history);
        };
        assert!(matches!(with(twice, Case::running()).unwrap_err(), Error::LaggingStandby { .. }));
        // An event without its manifest counts too.
        let event_only = |case: &mut Case| {
            case.events.insert(("t".into(), 0), Position::new(Lsn(300), 0));
            (case.timeline, case.history) = (2, vec![Fork { timeline: 1, at: Lsn(300) }]);
        };
        assert!(matches!(with(event_only, Case::running()).unwrap_err(), Error::LaggingStandby { .. }));
        let foreign = |case: &mut Case| (case.timeline, case.history) = (4, vec![Fork { timeline: 3, at: Lsn(900) }]);
        assert!(matches!(with(foreign, Case::running()).unwrap_err(), Error::ForeignTimeline { .. }));
    }

    #[test]
    fn a_source_that_was_set_back_below_what_was_published_is_a_named_error() {
        let restored = |flushed: u64| with(|case| case.flushed = flushed, Case::running());
        assert_eq!(restored(210).unwrap(), Decision::Resume(birth()));
        assert!(matches!(restored(209).unwrap_err(), Error::SourceBehind { .. }));
        let event_only = |case: &mut Case| {
            case.events.insert(("t".into(), 0), Position::new(Lsn(300), 0));
            case.flushed = 300;
        };
        assert!(matches!(with(event_only, Case::running()).unwrap_err(), Error::SourceBehind { .. }));
        // Its slot is as old as the rest of it.
        let with_slot = |case: &mut Case| (case.flushed, case.slot) = (150, Some(slot(120)));
        assert!(matches!(with(with_slot, Case::running()).unwrap_err(), Error::SourceBehind { .. }));
    }

    #[test]
    fn the_partitions_to_read_are_those_that_the_newest_manifest_counts() {
        assert_eq!(Case::running().tail.places().collect::<Vec<_>>(), [("t".to_owned(), 0)]);
        assert_eq!(LaneTail::default().places().count(), 0);
    }

    #[test]
    fn a_history_file_is_read_with_its_comments() {
        let text = "1\t0/3000060\tno recovery target specified\n\n# note\n2\t16/B374D848\tbefore 2026\n";
        let forks = [Fork { timeline: 1, at: Lsn(0x300_0060) }, Fork { timeline: 2, at: Lsn(0x16_B374_D848) }];
        assert_eq!(parse_history(text), forks);
    }
}
