//! The session of a task that returns to the source again and again: made when it is needed, given up when it fails.

use std::sync::Arc;
use std::time::Duration;

use service::retry::Backoff;
use tokio_postgres::Client;

use crate::error::{Error, Remedy};
use crate::lane::Lane;

pub struct KeptSession {
    lane: Arc<Lane>,
    /// What is not done when a try fails, for the log.
    what: &'static str,
    session: Option<Client>,
    backoff: Backoff,
}

impl KeptSession {
    pub fn new(lane: Arc<Lane>, what: &'static str, pause_max: Duration) -> KeptSession {
        KeptSession { lane, what, session: None, backoff: Backoff::new(pause_max) }
    }

    /// # Errors
    /// The source lets nobody in.
    pub async fn client(&mut self) -> Result<&Client, Error> {
        let client = match self.session.take() {
            Some(client) => client,
            None => self.lane.source.connect(&self.lane.application_name()).await?,
        };
        Ok(self.session.insert(client))
    }

    /// What a try came to: if it may pass later, how long to wait before.
    ///
    /// # Errors
    /// What trying again does not mend.
    pub fn judge(&mut self, outcome: Result<(), Error>) -> Result<Option<Duration>, Error> {
        match outcome {
            Ok(()) => {
                self.backoff.reset();
                Ok(None)
            }
            Err(error) if error.remedy() == Remedy::Retry => {
                tracing::debug!(%error, "no {} this time", self.what);
                self.session = None;
                Ok(Some(self.backoff.next_delay()))
            }
            Err(error) => Err(error),
        }
    }
}
