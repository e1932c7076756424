//! One comparison of one range: two snapshots, and what settles the rows between them. See the picture in `lib`.
//!
//! Nothing here judges by time or by trying again: an attempt ends with equality, with a proved difference, or with the reason
//! why it says nothing ([`Unsettled`]).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use changelog::{Lsn, Position};
use tokio::sync::Mutex;

use crate::Error;
use crate::canonical::{BUCKETS, Layout};
use crate::compare::{Aggregates, RowHash};
use crate::definition::TableDefinition;
use crate::difference::Differences;
use crate::images::{self, Decoders, Delta, Image};
use crate::lane;
use crate::localise::{self, Sides};
use crate::range::Range;
use crate::reader::{self, Given, Membership, Scanned, Selection};
use crate::report::{Finding, key_json};
use crate::session::Session;
use crate::settle::{SourceSnapshot, Unsettled};
use crate::statistics::SampledRow;
use crate::tail::Tail;

/// What runs between the two databases.
#[derive(Debug)]
pub struct Online<'a> {
    pub tail: &'a Tail,
    /// Key of `dflux.lane`.
    pub lane: String,
    pub decoders: Mutex<Decoders>,
}

/// A table as both sides are asked about it.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    pub definition: &'a TableDefinition,
    pub source: Layout,
    pub target: Layout,
}

/// A pair of sessions.
#[derive(Debug)]
pub struct Pair {
    pub source: Session,
    pub target: Session,
}

/// What one attempt has proved.
#[derive(Debug, Default)]
pub struct Verified {
    pub rows_source: u64,
    pub rows_target: u64,
    pub settled_by_event: u64,
    /// All that was committed on the source below this position is in the comparison.
    pub through: Option<Lsn>,
    pub findings: Vec<Finding>,
    pub differences: Differences,
    /// Sums and counts of the rows that were compared, source and target: all but those in flight.
    pub compared: Option<(Aggregates, Aggregates)>,
    /// The sampled ones of these rows.
    pub sample: (Vec<SampledRow>, Vec<SampledRow>),
}

impl Verified {
    fn equal(source: Scanned, target: Scanned, through: Option<Lsn>) -> Verified {
        Verified {
            rows_source: source.aggregates.rows,
            rows_target: source.aggregates.rows,
            through,
            compared: Some((source.aggregates, target.aggregates)),
            sample: (source.sample, target.sample),
            ..Verified::default()
        }
    }
}

type Settled<T> = Result<Result<T, Unsettled>, Error>;

/// Unwraps a settled value, or returns why it is not.
macro_rules! settled {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(unsettled) => return Ok(Err(unsettled)),
        }
    };
}

/// Compares a range in two snapshots that are opened and closed here.
///
/// # Errors
/// Outer: `Database` and the like. Inner: why nothing can be said.
pub async fn compare(
    pair: &mut Pair,
    online: Option<&Online<'_>>,
    subject: &Subject<'_>,
    range: &Range,
    deadline: Instant,
) -> Settled<Verified> {
    let outcome = match online {
        Some(online) => compare_online(pair, online, subject, range, deadline).await,
        None => compare_offline(pair, subject, range).await,
    };
    if outcome.is_ok() {
        pair.source.end().await?;
        pair.target.end().await?;
    }
    outcome
}

async fn compare_offline(pair: &mut Pair, subject: &Subject<'_>, range: &Range) -> Settled<Verified> {
    let condition = range.condition(&subject.source, |at| subject.source.stored(at));
    let selection = Selection { condition: &condition, keys: None };
    let (source, target) = tokio::try_join!(
        read(&mut pair.source, &subject.source, &selection),
        read(&mut pair.target, &subject.target, &selection)
    )?;
    let (source, target) = (settled!(source), settled!(target));
    if source.aggregates == target.aggregates {
        return Ok(Ok(Verified::equal(source, target, None)));
    }
    let mut sides = sides(pair, subject);
    let differences = if subject.source.keyless() {
        localise::keyless(&mut sides, &selection, &Delta::default()).await?
    } else {
        localise::keyed(&mut sides, &selection).await?
    };
    let verified = Verified {
        rows_source: source.aggregates.rows,
        rows_target: target.aggregates.rows,
        differences,
        sample: (source.sample, target.sample),
        ..Verified::default()
    };
    Ok(Ok(proved(verified, subject, source.aggregates, target.aggregates)))
}

fn sides<'a>(pair: &'a mut Pair, subject: &'a Subject<'_>) -> Sides<'a> {
    Sides {
        source: &mut pair.source,
        target: &mut pair.target,
        source_layout: &subject.source,
        target_layout: &subject.target,
    }
}

/// Opens a snapshot and sums in it.
async fn read(session: &mut Session, layout: &Layout, selection: &Selection<'_>) -> Settled<Scanned> {
    session.begin().await?;
    sums(session, layout, selection).await
}

async fn sums(session: &mut Session, layout: &Layout, selection: &Selection<'_>) -> Settled<Scanned> {
    let scanned = reader::aggregates(session, layout, selection).await?;
    // Asked after reading: the read holds a lock that keeps the file from now on.
    if !reader::same_file(session, &layout.table).await? {
        return Ok(Err(Unsettled::Rewritten));
    }
    Ok(Ok(scanned))
}

/// Sums differ, so there is a difference, also where no single row was named.
fn proved(mut verified: Verified, subject: &Subject<'_>, source: Aggregates, target: Aggregates) -> Verified {
    if verified.differences.is_empty() {
        if source.rows != target.rows || source.key != target.key {
            verified.findings.push(unnamed(1, None, "rows_differ"));
        }
        let layout = &subject.source;
        let sums = layout.scanned().into_iter().zip(source.sums.iter().zip(&target.sums));
        for (at, _) in sums.filter(|(_, (a, b))| a != b) {
            verified.findings.push(unnamed(2, Some(&layout.fields[at].name), "value_differs"));
        }
    }
    verified.compared = Some((source, target));
    verified
}

fn unnamed(level: u8, column: Option<&str>, cause: &str) -> Finding {
    let mut finding = Finding::rows(level, column, cause, Vec::new());
    (finding.count, finding.count_is_minimum) = (1, true);
    finding
}

async fn compare_online(
    pair: &mut Pair,
    online: &Online<'_>,
    subject: &Subject<'_>,
    range: &Range,
    deadline: Instant,
) -> Settled<Verified> {
    let condition = range.condition(&subject.source, |at| subject.source.stored(at));
    let selection = Selection { condition: &condition, keys: None };
    let lease = online.tail.lease();
    pair.source.begin().await?;
    let (snapshot, through) = reader::position(&mut pair.source).await?;
    lease.hold(snapshot.clone());
    let (source, target) = tokio::try_join!(
        sums(&mut pair.source, &subject.source, &selection),
        read_applied(&mut pair.target, online, subject, &selection, through, deadline)
    )?;
    let (source, (target, applied)) = (settled!(source), settled!(target));
    if source.aggregates == target.aggregates {
        // Equal sums are equal rows, those in flight included.
        return Ok(Ok(Verified::equal(source, target, Some(through))));
    }
    let context = Unequal { online, subject, range, condition: &condition, source, target, through };
    let changes = settled!(context.changes(&snapshot, applied, deadline).await?);
    let outcome = if subject.source.keyless() {
        context.settle_keyless(pair, &changes).await
    } else {
        context.settle_keyed(pair, &changes).await
    };
    drop(lease);
    outcome
}

/// Waits until the lane has applied what the source snapshot sees, then opens the target's snapshot: its sums, and the position
/// that it is at.
async fn read_applied(
    target: &mut Session,
    online: &Online<'_>,
    subject: &Subject<'_>,
    selection: &Selection<'_>,
    through: Lsn,
    deadline: Instant,
) -> Settled<(Scanned, Position)> {
    let began = Instant::now();
    target.end().await?;
    loop {
        let state = settled!(exact(target, &online.lane).await?);
        if reader::covers(state.applied, through) {
            break;
        }
        if Instant::now() > deadline {
            let mut detail = format!("applied {}, source at {through}", state.applied.commit_lsn);
            if let Some(error) = &state.error {
                detail.push_str(&format!("; the lane's error: {error}"));
            }
            return Ok(Err(Unsettled::Lag { waited_seconds: began.elapsed().as_secs(), detail }));
        }
        tokio::time::sleep(lane::POSITION_POLL).await;
    }
    target.begin().await?;
    let state = settled!(exact(target, &online.lane).await?);
    if let Some(why) = lane::table_blocked(target, &online.lane, &subject.target.table).await? {
        return Ok(Err(Unsettled::NotExact(why)));
    }
    let scanned = settled!(sums(target, &subject.target, selection).await?);
    Ok(Ok((scanned, state.applied)))
}

async fn exact(target: &mut Session, lane: &str) -> Settled<lane::LaneState> {
    let Some(state) = lane::read(target, lane).await? else {
        return Ok(Err(Unsettled::NotExact("the lane's row is gone".into())));
    };
    settled!(state.exact());
    Ok(Ok(state))
}

/// Two sums that differ, both snapshots still open.
struct Unequal<'a> {
    online: &'a Online<'a>,
    subject: &'a Subject<'a>,
    range: &'a Range,
    condition: &'a str,
    source: Scanned,
    target: Scanned,
    through: Lsn,
}

impl Unequal<'_> {
    /// The changes in flight between the snapshots.
    async fn changes(
        &self,
        snapshot: &SourceSnapshot,
        applied: Position,
        deadline: Instant,
    ) -> Settled<Vec<crate::window::Change>> {
        let tail = self.online.tail;
        let topic = tail.topics().table(&self.subject.source.table);
        // A moment at least: the position that is to be reached has been applied already.
        let deadline = deadline.max(Instant::now() + Duration::from_secs(5));
        settled!(tail.reach(&topic, deadline).await?);
        let changes = settled!(tail.window().in_flight(&topic, snapshot, applied));
        let table = self.subject.source.table.to_string();
        self.online.decoders.lock().await.prepare(&table, &changes).await?;
        Ok(Ok(changes))
    }

    async fn settle_keyed(&self, pair: &mut Pair, changes: &[crate::window::Change]) -> Settled<Verified> {
        let (definition, layout) = (self.subject.definition, &self.subject.target);
        let images = {
            let decoders = self.online.decoders.lock().await;
            settled!(images::newest(&decoders, changes, layout, definition)?)
        };
        let images = self.within(pair, images).await?;
        let keys =
            Given::new(layout.key.clone(), images.iter().map(|image| image.key.iter().cloned().map(Some).collect()));
        if images.is_empty() {
            return self.settle_rest(pair, None, &Scanned::default(), &Scanned::default(), Verified::default()).await;
        }
        let flying = Selection { condition: self.condition, keys: Some((&keys, Membership::Only)) };
        let (source, target) = tokio::try_join!(
            reader::aggregates(&mut pair.source, &self.subject.source, &flying),
            reader::aggregates(&mut pair.target, layout, &flying)
        )?;
        let checked = settled!(self.check(pair, &images).await?);
        self.settle_rest(pair, Some(&keys), &source, &target, checked).await
    }

    /// The images whose key is in the range.
    async fn within(&self, pair: &mut Pair, images: Vec<Image>) -> Result<Vec<Image>, Error> {
        let layout = &self.subject.target;
        if self.range.everything() || images.is_empty() {
            return Ok(images);
        }
        let keys =
            Given::new(layout.key.clone(), images.iter().map(|image| image.key.iter().cloned().map(Some).collect()));
        let condition = self.range.condition(layout, |at| layout.given(at));
        let places = reader::keys_within(&mut pair.target, layout, &keys, &condition).await?;
        Ok(places.into_iter().filter_map(|place| images.get(place).cloned()).collect())
    }

    /// Every row in flight against the image of its newest event, and what that does not have against the source's snapshot.
    async fn check(&self, pair: &mut Pair, images: &[Image]) -> Settled<Verified> {
        let layout = &self.subject.target;
        let mut verified = Verified { settled_by_event: images.len() as u64, ..Verified::default() };
        let given = Given::new((0..layout.fields.len()).collect(), images.iter().map(Image::texts));
        let flags = images.iter().map(|image| image.flags(layout)).collect();
        let checked = reader::check_images(&mut pair.target, layout, &given, flags).await?;
        let mut times_found = vec![0_u64; images.len()];
        for row in checked {
            let Some(image) = images.get(row.place) else { continue };
            let key = key_json(&image.key.iter().cloned().map(Some).collect::<Vec<_>>());
            let times = &mut times_found[row.place];
            *times += u64::from(row.found);
            let cause = match (image.present, row.found, *times) {
                (true, false, _) => Some("missing_row"),
                (false, true, _) => Some("extra_row"),
                (_, true, 2..) => Some("duplicate_row"),
                _ => None,
            };
            if let Some(cause) = cause {
                verified.findings.push(Finding::rows(1, None, cause, vec![key]));
                continue;
            }
            for nth in row.differing {
                let name = layout.summed().get(nth).map(|at| layout.fields[*at].name.clone());
                // The image is an event's, so there is no stored value of the source to explain by.
                verified.findings.push(Finding::rows(2, name.as_deref(), "value_differs", vec![key.clone()]));
            }
        }
        verified.rows_source = images.iter().filter(|image| image.present).count() as u64;
        verified.rows_target = times_found.iter().sum();
        verified.findings.extend(settled!(self.unsent(pair, images).await?));
        Ok(Ok(verified))
    }

    /// Values that no event in flight has: they are in the source's snapshot as they must be in the target's.
    async fn unsent(&self, pair: &mut Pair, images: &[Image]) -> Settled<Vec<Finding>> {
        let (definition, layout) = (self.subject.definition, &self.subject.target);
        let unsent = images.iter().map(|image| (image, image.unsent(layout, definition)));
        let unsent: Vec<(&Image, Vec<usize>)> = unsent.filter(|(_, columns)| !columns.is_empty()).collect();
        if unsent.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let moved = unsent.iter().filter(|(image, _)| !image.updated).count();
        if moved > 0 {
            return Ok(Err(Unsettled::Unsent(moved)));
        }
        let key = |image: &Image| -> Vec<Option<String>> { image.key.iter().cloned().map(Some).collect() };
        let keys = Given::new(layout.key.clone(), unsent.iter().map(|(image, _)| key(image)));
        let selection = Selection { condition: "true", keys: Some((&keys, Membership::Only)) };
        let buckets: Vec<i64> = (0..BUCKETS).collect();
        let (source, target) = tokio::try_join!(
            reader::row_hashes(&mut pair.source, &self.subject.source, &selection, &buckets),
            reader::row_hashes(&mut pair.target, layout, &selection, &buckets)
        )?;
        let by_key = |rows: Vec<RowHash>| -> HashMap<Vec<Option<String>>, RowHash> {
            rows.into_iter().map(|row| (row.key.clone(), row)).collect()
        };
        let (source, target) = (by_key(source), by_key(target));
        let mut findings = Vec::new();
        for (image, columns) in &unsent {
            // One that the target lacks is a missing row, which was said.
            let Some(found) = target.get(&key(image)) else { continue };
            let Some(wanted) = source.get(&key(image)) else { return Ok(Err(Unsettled::Unsent(1))) };
            for nth in columns.iter().filter(|nth| wanted.hashes.get(**nth) != found.hashes.get(**nth)) {
                let name = layout.summed().get(*nth).map(|at| layout.fields[*at].name.clone());
                findings.push(Finding::rows(2, name.as_deref(), "value_differs", vec![key_json(&key(image))]));
            }
        }
        Ok(Ok(findings))
    }

    /// The rows that are not in flight (`source` and `target` are of those that are): equal sums, or a difference that is named.
    /// `checked` is what the others came to.
    async fn settle_rest(
        &self,
        pair: &mut Pair,
        flying: Option<&Given>,
        source: &Scanned,
        target: &Scanned,
        mut checked: Verified,
    ) -> Settled<Verified> {
        // A row in flight is no sign of anything: not in the sample either, on neither side.
        let flying_rows: HashSet<i64> = source.sample.iter().chain(&target.sample).map(|row| row.key_hash).collect();
        let rest = |all: &[SampledRow]| -> Vec<SampledRow> {
            all.iter().filter(|row| !flying_rows.contains(&row.key_hash)).cloned().collect()
        };
        checked.sample = (rest(&self.source.sample), rest(&self.target.sample));
        let less = |all: &Scanned, flying: &Scanned| {
            if flying.aggregates.rows == 0 { all.aggregates.clone() } else { all.aggregates.minus(&flying.aggregates) }
        };
        let (source, target) = (less(&self.source, source), less(&self.target, target));
        checked.through = Some(self.through);
        checked.rows_source += source.rows;
        checked.rows_target += target.rows;
        if source == target {
            checked.compared = Some((source, target));
            return Ok(Ok(checked));
        }
        let keys = flying.map(|keys| (keys, Membership::Without));
        let selection = Selection { condition: self.condition, keys };
        checked.differences = localise::keyed(&mut sides(pair, self.subject), &selection).await?;
        Ok(Ok(proved(checked, self.subject, source, target)))
    }

    /// A keyless table is a bag of rows: what the changes in flight add and take is added to the source's sums and taken.
    async fn settle_keyless(&self, pair: &mut Pair, changes: &[crate::window::Change]) -> Settled<Verified> {
        let (definition, layout) = (self.subject.definition, &self.subject.target);
        let delta = {
            let decoders = self.online.decoders.lock().await;
            settled!(images::delta(&decoders, changes, layout, definition)?)
        };
        let all: Vec<usize> = (0..layout.fields.len()).collect();
        let mut expected = self.source.aggregates.clone();
        for (rows, add) in [(&delta.added, true), (&delta.removed, false)] {
            let given = Given::new(all.clone(), rows.iter().cloned());
            if given.is_empty() {
                continue;
            }
            let part = reader::given_aggregates(&mut pair.target, layout, &given).await?;
            expected = if add { expected.plus(&part) } else { expected.minus(&part) };
        }
        let mut verified = Verified {
            rows_source: expected.rows,
            rows_target: self.target.aggregates.rows,
            settled_by_event: changes.len() as u64,
            through: Some(self.through),
            // Which of its rows are in flight cannot be told from the sample of rows without a key, so that it is left out.
            ..Verified::default()
        };
        if expected != self.target.aggregates {
            let selection = Selection { condition: self.condition, keys: None };
            verified.differences = localise::keyless(&mut sides(pair, self.subject), &selection, &delta).await?;
            verified = proved(verified, self.subject, expected, self.target.aggregates.clone());
        } else {
            verified.compared = Some((expected, self.target.aggregates.clone()));
        }
        Ok(Ok(verified))
    }
}
