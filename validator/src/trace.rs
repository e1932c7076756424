//! Where a row went wrong: its newest event in the change topic says what the row must be. A target that is otherwise lost it
//! behind the topic, a source that is otherwise before it. It explains and never judges.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use changelog::Position;
use serde::Serialize;

use crate::Error;
use crate::attempt::{Online, Pair, Subject};
use crate::changed;
use crate::images::{self, Image};
use crate::lane;
use crate::reader::{self, Checked, Given};
use crate::report::KEYS_MAX;
use crate::settle::SourceSnapshot;
use crate::window::Change;

/// Rows of one table whose events are looked for.
const ROWS_MAX: usize = 500;
/// The topic is read from its beginning; a long one says nothing.
const LOOKS_FOR: Duration = Duration::from_secs(60);

/// The part of the way in which rows were lost or altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// The topic has no event of the row: it was not right in the copy, or was changed in the target by somebody else since.
    Copy,
    /// The topic's newest event is the target's row and not the source's.
    SourceToTopic,
    /// The topic's newest event is the source's row and not the target's; or somebody else has changed the target.
    TopicToTarget,
    /// The newest event says neither, or does not have what differs, or came while it was looked for.
    Unknown,
}

impl Hop {
    pub fn words(self) -> &'static str {
        match self {
            Hop::Copy => "in the first copy, or by another writer on the target (no event of them since)",
            Hop::SourceToTopic => "between source and topic (the newest event is what the target has)",
            Hop::TopicToTarget => {
                "between topic and target, or by another writer there (the newest event is what the source has)"
            }
            Hop::Unknown => "not known (the newest event is neither side's, or does not have what differs)",
        }
    }
}

/// Rows that went wrong in one hop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traced {
    pub hop: Hop,
    pub rows: u64,
    pub keys: Vec<Vec<String>>,
}

/// Where these rows went wrong; nothing where the topic could not be read in time.
///
/// # Errors
/// `Topic`, `Event`, `Database`.
pub async fn rows(
    pair: &mut Pair,
    online: &Online<'_>,
    subject: &Subject<'_>,
    wrong: &BTreeSet<Vec<String>>,
) -> Result<Vec<Traced>, Error> {
    let wanted: BTreeSet<&Vec<String>> = wrong.iter().take(ROWS_MAX).collect();
    let Some((snapshot, applied)) = aligned(pair, online).await? else { return Ok(Vec::new()) };
    let Some(newest) = newest(online, subject, &wanted).await? else { return Ok(Vec::new()) };
    let moving = |change: &Change| !snapshot.sees(change.xid) || change.position > applied;
    let (moving, newest): (Vec<Change>, Vec<Change>) = newest.into_iter().partition(moving);
    let (images, moving) = {
        let decoders = online.decoders.lock().await;
        let images = images::newest(&decoders, &newest, &subject.target, subject.definition)?;
        // Else the table has changed since.
        let Ok(images) = images else { return Ok(Vec::new()) };
        (images, images::keys(&decoders, &moving, &subject.target)?.unwrap_or_default())
    };
    let given = Given::new((0..subject.target.fields.len()).collect(), images.iter().map(Image::texts));
    let flags = |layout| images.iter().map(|image: &Image| image.flags(layout)).collect();
    let (source, target) = tokio::try_join!(
        reader::check_images(&mut pair.source, &subject.source, &given, flags(&subject.source)),
        reader::check_images(&mut pair.target, &subject.target, &given, flags(&subject.target))
    )?;
    pair.source.end().await?;
    pair.target.end().await?;
    let (source, target) = (as_said(&images, &source), as_said(&images, &target));
    let mut hops: HashMap<Hop, Vec<Vec<String>>> = HashMap::new();
    for (place, image) in images.iter().enumerate() {
        hops.entry(hop(source[place], target[place])).or_default().push(image.key.clone());
    }
    let told: BTreeSet<&Vec<String>> = images.iter().map(|image| &image.key).chain(&moving).collect();
    let silent = wanted.difference(&told).map(|key| (*key).clone());
    hops.entry(Hop::Copy).or_default().extend(silent);
    hops.entry(Hop::Unknown).or_default().extend(moving.iter().cloned());
    let mut traced: Vec<Traced> = hops
        .into_iter()
        .filter(|(_, keys)| !keys.is_empty())
        .map(|(hop, mut keys)| {
            let rows = keys.len() as u64;
            keys.sort();
            keys.truncate(KEYS_MAX);
            Traced { hop, rows, keys }
        })
        .collect();
    traced.sort_by_key(|traced| traced.hop);
    Ok(traced)
}

/// Opens both snapshots, the target's when the lane has applied what the source's sees; none if it does not in time.
async fn aligned(pair: &mut Pair, online: &Online<'_>) -> Result<Option<(SourceSnapshot, Position)>, Error> {
    pair.source.begin().await?;
    let (snapshot, through) = reader::position(&mut pair.source).await?;
    if !lane::reaches(&mut pair.target, &online.lane, through, Instant::now() + LOOKS_FOR / 6).await? {
        return Ok(None);
    }
    pair.target.begin().await?;
    let state = lane::read(&mut pair.target, &online.lane).await?;
    Ok(state.map(|state| (snapshot, state.applied)))
}

/// Pure.
fn hop(source: bool, target: bool) -> Hop {
    match (source, target) {
        (true, false) => Hop::TopicToTarget,
        (false, true) => Hop::SourceToTopic,
        _ => Hop::Unknown,
    }
}

/// Of each image, whether the row is as it says. Pure.
fn as_said(images: &[Image], rows: &[Checked]) -> Vec<bool> {
    let of = |(place, image): (usize, &Image)| {
        let mut found = rows.iter().filter(|row| row.place == place && row.found).peekable();
        if image.present {
            found.peek().is_some() && found.all(|row| row.differing.is_empty())
        } else {
            found.peek().is_none()
        }
    };
    images.iter().enumerate().map(of).collect()
}

/// The newest change of each of these keys, in source order; none if the topic is too long.
async fn newest(
    online: &Online<'_>,
    subject: &Subject<'_>,
    wanted: &BTreeSet<&Vec<String>>,
) -> Result<Option<Vec<Change>>, Error> {
    let topic = online.tail.topics().table(&subject.target.table);
    let table = subject.target.table.to_string();
    let ends = online.tail.ends(&topic).await?;
    let ranges = ends.into_iter().map(|(partition, end)| (partition, (0, end))).filter(|(_, (from, end))| from < end);
    let mut reading = changed::read(online.tail, topic, ranges.collect())?;
    let mut newest: HashMap<Vec<String>, Change> = HashMap::new();
    let mut truncated = None::<Position>;
    let deadline = Instant::now() + LOOKS_FOR;
    while let Some(batch) = reading.batches.recv().await {
        if Instant::now() > deadline {
            return Ok(None);
        }
        let mut decoders = online.decoders.lock().await;
        decoders.prepare(&table, &batch).await?;
        for change in batch {
            let Some(keys) = images::keys(&decoders, std::slice::from_ref(&change), &subject.target)? else {
                if change.op == changelog::Op::Truncate {
                    truncated = truncated.max(Some(change.position));
                }
                continue;
            };
            let Some(key) = keys.into_iter().next().filter(|key| wanted.contains(key)) else { continue };
            if newest.get(&key).is_none_or(|known| known.position < change.position) {
                newest.insert(key, change);
            }
        }
    }
    reading.ended().await?;
    let mut newest: Vec<Change> =
        newest.into_values().filter(|change| truncated.is_none_or(|truncated| change.position > truncated)).collect();
    newest.sort_by_key(|change| change.position);
    Ok(Some(newest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Cell;

    #[test]
    fn the_side_that_is_not_what_the_newest_event_says_is_behind_the_hop() {
        assert_eq!(hop(true, false), Hop::TopicToTarget);
        assert_eq!(hop(false, true), Hop::SourceToTopic);
        assert_eq!((hop(true, true), hop(false, false)), (Hop::Unknown, Hop::Unknown));
    }

    #[test]
    fn a_row_is_as_its_event_says_when_it_is_there_and_equal_or_deleted_and_gone() {
        let image =
            |present| Image { key: vec!["1".into()], present, updated: false, cells: vec![Cell::Text("1".into())] };
        let row = |place, found, differing: &[usize]| Checked { place, found, differing: differing.to_vec() };
        let images = [image(true), image(true), image(true), image(false), image(false)];
        let rows = [row(0, true, &[]), row(1, true, &[0]), row(2, false, &[]), row(3, false, &[]), row(4, true, &[])];
        assert_eq!(as_said(&images, &rows), [true, false, false, true, false]);
    }
}
