//! What a comparison of a table proved is kept, so that the next one looks at what has changed since; and where rows went wrong.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use changelog::Lsn;

use super::{Round, Validator};
use crate::attempt::{Online, Pair, Subject};
use crate::changed::{self, Changed};
use crate::coverage::{self, Coverage};
use crate::definition::TableDefinition;
use crate::range::Range;
use crate::session::Session;
use crate::trace::{self, Traced};
use crate::{Error, lane, reader};

/// Keys of changed rows that one pair of statements compares.
const KEYS_TOGETHER: usize = 2_000;

/// Only what changed since is compared, of tables that were covered.
pub(super) struct Delta<'a> {
    pub(super) covered: &'a HashMap<String, Coverage>,
    /// A WAL position of the source that the lane has applied: every event below it is in the topics.
    pub(super) through: Lsn,
}

impl Validator {
    /// None if the lane does not come in time to what is committed on the source now: the comparison of everything says why.
    pub(super) async fn delta(&self, source: &mut Session, target: &mut Session) -> Result<Option<Delta<'_>>, Error> {
        let (_, through) = reader::position(source).await?;
        let deadline = Instant::now() + self.settings.settle;
        let reached = lane::reaches(target, &self.settings.lane, through, deadline).await?;
        Ok(reached.then_some(Delta { covered: &self.covered, through }))
    }
}

impl Round<'_> {
    /// Where rows went wrong. That it cannot be said takes nothing from what was found.
    pub(super) async fn trace(
        &self,
        online: &Online<'_>,
        subject: &Subject<'_>,
        pairs: &mut [Option<Pair>],
        wrong: &BTreeSet<Vec<String>>,
    ) -> Vec<Traced> {
        if subject.source.keyless() {
            return Vec::new();
        }
        let traced = async { trace::rows(self.pair(pairs).await?, online, subject, wrong).await };
        match traced.await {
            Ok(traced) => traced,
            Err(error) => {
                pairs.iter_mut().for_each(|pair| *pair = None);
                tracing::warn!(table = %subject.source.table, %error, "where the rows went wrong cannot be said");
                Vec::new()
            }
        }
    }

    /// What a comparison that begins now will cover, but for how far it comes.
    pub(super) async fn covering(
        &self,
        (source, target): (&TableDefinition, &TableDefinition),
        pairs: &mut [Option<Pair>],
    ) -> Result<Option<Coverage>, Error> {
        let Some(online) = &self.online else { return Ok(None) };
        let (table, pair) = (source.table(), self.pair(pairs).await?);
        let mut standing = lane::standing(&mut pair.target, &online.lane, &table).await?;
        let (here, there) = (reader::files(&mut pair.source, &table), reader::files(&mut pair.target, &table));
        standing.files = <[String; 2]>::from(tokio::try_join!(here, there)?).to_vec();
        let offsets = online.tail.window().offsets(&online.tail.topics().table(&table));
        let fingerprint = coverage::fingerprint(source, target, &standing);
        Ok(Some(Coverage { through: String::new(), offsets, fingerprint }))
    }

    /// The ranges of what has changed since the table was covered, what they will cover, and since when; none if all of it must
    /// be compared.
    pub(super) async fn changed(
        &self,
        subject: &Subject<'_>,
        covering: Option<&Coverage>,
        pairs: &mut [Option<Pair>],
    ) -> Result<Option<(Vec<Range>, Coverage, String)>, Error> {
        let (Some(online), Some(delta), Some(now)) = (&self.online, &self.delta, covering) else { return Ok(None) };
        let table = subject.source.table.to_string();
        let before = delta.covered.get(&table).filter(|before| before.fingerprint == now.fingerprint);
        let Some(before) = before.filter(|_| !subject.source.keyless()) else { return Ok(None) };
        // Where no row has changed, no comparison would ask.
        let target = &mut self.pair(pairs).await?.target;
        let exact = lane::read(target, &online.lane).await?.is_some_and(|state| state.exact().is_ok());
        if !exact || lane::table_blocked(target, &online.lane, &subject.target.table).await?.is_some() {
            return Ok(None);
        }
        let mut decoders = online.decoders.lock().await;
        match changed::since(online.tail, &mut decoders, &subject.target, &before.offsets).await? {
            Changed::Keys { keys, offsets } => {
                let keys: Vec<Vec<String>> = keys.into_iter().collect();
                let ranges = keys.chunks(KEYS_TOGETHER).map(Range::of).collect();
                Ok(Some((ranges, Coverage { offsets, ..now.clone() }, before.through.clone())))
            }
            Changed::All(why) => {
                tracing::info!(table, why, "all of it is compared again");
                Ok(None)
            }
        }
    }
}
