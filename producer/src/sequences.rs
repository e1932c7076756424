//! Sequences kept in step: every few seconds those that have changed go through the slot, as a marker with content.
//!
//! ```text
//!  source: read (a few at a time) ─> pg_logical_emit_message ─> WAL ─> stream ─> LaneRecord::Sequences ─> consumer
//! ```
//! Straight to Kafka would be one hop less, and would need a second writer of `…-transactions`, records without a position,
//! and a rule of its own for what a restart may have lost. So they take the way of everything else.
//!
//! All of them are said at the start of a session, when a table is copied again, and now and then: a target's sequence that was missing, or
//! was put back by hand, is mended by the next such round. Only the forward lane does so: with both lanes, each would move
//! the other's source ahead by its margin, for ever. After a switch, the sequences of the other side are its fence's to set.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::sequence::{ANNOUNCED_MAX, announce};
use changelog::table::quote_identifier;
use changelog::{Lane as Direction, Sequence, TableName, origin};
use tokio_postgres::Client;

use crate::error::Error;
use crate::kept_session::KeptSession;
use crate::lane::Lane;
use crate::source::sequences::{self, Reading};
use crate::{markers, observe};

const INTERVAL: Duration = Duration::from_secs(3);
/// A reading that takes long is followed by a pause that is longer by this: many sequences never keep the source busy.
const PAUSE_FACTOR: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(10);
const ALL_EVERY: Duration = Duration::from_secs(300);

/// Reads for ever; in the other direction, waits for ever.
///
/// # Errors
/// What trying again does not mend.
pub async fn run(lane: Arc<Lane>) -> Result<(), Error> {
    if lane.direction == Direction::Reverse {
        return std::future::pending().await;
    }
    let mut said = Said::default();
    let mut session = KeptSession::new(lane.clone(), "look at the sequences", INTERVAL);
    loop {
        let began = Instant::now();
        let outcome = match session.client().await {
            Ok(client) => look(&lane, client, &mut said).await,
            Err(error) => Err(error),
        };
        let rest = || (began.elapsed() * PAUSE_FACTOR).clamp(INTERVAL, PAUSE_MAX);
        let pause = session.judge(outcome)?.unwrap_or_else(rest);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = lane.sequences_wanted.notified() => said.all_at = None,
        }
    }
}

/// What this session has announced and logged.
#[derive(Default)]
struct Said {
    values: HashMap<TableName, Sequence>,
    all_at: Option<Instant>,
    unreadable: HashSet<TableName>,
}

impl Said {
    /// What the reading has anew.
    fn news(&mut self, sequences: Vec<Sequence>) -> Vec<Sequence> {
        if self.all_at.is_none_or(|at| at.elapsed() >= ALL_EVERY) {
            self.all_at = Some(Instant::now());
            self.values.clear();
        }
        sequences.into_iter().filter(|sequence| self.values.get(&sequence.name()) != Some(sequence)).collect()
    }
}

async fn look(lane: &Lane, client: &Client, said: &mut Said) -> Result<(), Error> {
    let Reading { sequences, unreadable, skipped } = sequences::read(client, &lane.config.migration).await?;
    observe::set(observe::SEQUENCES, sequences.len() as f64);
    observe::set(observe::UNREADABLE_SEQUENCES, unreadable.len() as f64);
    for name in unreadable {
        if said.unreadable.insert(name.clone()) {
            let user = lane.source.config.get_user().map(quote_identifier).unwrap_or_default();
            let hint = format!("GRANT SELECT ON SEQUENCE {} TO {user} on the source", name.quoted());
            tracing::error!(sequence = %name, hint, "our user may not read the sequence: the target's is not kept in step");
        }
    }
    for (name, what) in skipped {
        tracing::debug!(sequence = %name, what, "the sequence is read in the next round");
    }
    let name = origin::lane_name(&lane.config.migration.name, lane.direction);
    for some in said.news(sequences).chunks(ANNOUNCED_MAX) {
        let sql = markers::emit_sql(&announce(&name, some));
        client.batch_execute(&sql).await.map_err(Error::source("announce sequences"))?;
        said.values.extend(some.iter().map(|sequence| (sequence.name(), sequence.clone())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_said_again() {
        let sequence = |last_value| Sequence {
            schema: "s".into(),
            name: "q".into(),
            last_value,
            is_called: true,
            increment: 1,
            min: 1,
            max: 9,
            cache: 1,
            cycle: false,
        };
        let mut said = Said::default();
        assert_eq!(said.news(vec![sequence(1)]), [sequence(1)]);
        assert_eq!(said.news(vec![sequence(1)]), [sequence(1)], "it was not announced");
        said.values.insert(sequence(1).name(), sequence(1));
        assert_eq!(said.news(vec![sequence(1)]), []);
        assert_eq!(said.news(vec![sequence(2)]), [sequence(2)]);
        said.all_at = None;
        assert_eq!(said.news(vec![sequence(1)]), [sequence(1)]);
    }
}
