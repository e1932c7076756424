//! The service: rounds over everything, rounds over what has changed between them, and the lag all the while.

use std::time::{Duration, Instant};

use service::program::Context;

use super::Validator;
use crate::error::Remedy;
use crate::session::{Endpoint, Session};
use crate::tail::Tail;
use crate::{Error, lane, observe};

const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// The service: rounds until it is told to stop.
///
/// # Errors
/// What was wrong from the start.
pub async fn run(context: Context) -> Result<(), Error> {
    let mut validator = Validator::new(context.config, context.shutdown)?;
    validator.run(&context.health).await
}

impl Validator {
    /// Rounds until the shutdown. What fails is tried again in the next round.
    ///
    /// # Errors
    /// None while it runs; only what was wrong from the start.
    pub async fn run(&mut self, health: &service::telemetry::Health) -> Result<(), Error> {
        observe::describe();
        let mut observer = Observer { source: self.source.clone(), target: self.target.clone(), sessions: None };
        let shutdown = self.shutdown.clone();
        while !shutdown.begun() {
            self.round(true, health).await?;
            let next = Instant::now() + self.settings.interval;
            let mut look = self.settings.changed_interval.map(|interval| Instant::now() + interval);
            while Instant::now() < next && !shutdown.begun() {
                observer.look(self.tail.as_ref(), &self.settings.lane).await;
                if look.is_some_and(|look| Instant::now() >= look) && !self.covered.is_empty() {
                    let began = Instant::now();
                    self.round(false, health).await?;
                    // Most of the time it rests, whatever it costs.
                    let rest = self.settings.changed_interval.map(|interval| interval.max(began.elapsed() * 4));
                    look = rest.map(|rest| Instant::now() + rest);
                }
                tokio::select! {
                    () = tokio::time::sleep(OBSERVE_EVERY.min(self.settings.interval)) => {}
                    () = shutdown.wait() => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// One round of the service: of everything, or of what has changed.
    async fn round(&mut self, full: bool, health: &service::telemetry::Health) -> Result<(), Error> {
        let shutdown = self.shutdown.clone();
        let round = async { if full { self.check(None).await } else { self.check_changed(None).await } };
        let round = tokio::select! {
            round = round => round,
            () = shutdown.wait() => return Ok(()),
        };
        match round {
            Ok(report) => {
                observe::round_verified(&report, full);
                health.ready(&format!("{} at the newest round", report.verdict.name()));
            }
            Err(error) if error.remedy() == Remedy::Stop => return Err(error),
            Err(error) => {
                observe::round_failed(&error);
                self.tail = None;
                health.unwell(&format!("the newest round failed: {error}"));
            }
        }
        Ok(())
    }
}

/// Between rounds: the lag, and what the window may forget.
struct Observer {
    source: Endpoint,
    target: Endpoint,
    sessions: Option<(Session, Session)>,
}

impl Observer {
    async fn look(&mut self, tail: Option<&Tail>, lane: &str) {
        let Some(tail) = tail else { return };
        observe::window(tail.window().bytes());
        if let Err(error) = self.measure(tail, lane).await {
            self.sessions = None;
            tracing::debug!(%error, "the lag could not be measured");
        }
    }

    async fn measure(&mut self, tail: &Tail, lane: &str) -> Result<(), Error> {
        if self.sessions.is_none() {
            self.sessions = Some(tokio::try_join!(self.source.open(), self.target.open())?);
        }
        let Some((source, target)) = self.sessions.as_mut() else { return Ok(()) };
        let (snapshot, _) = crate::reader::position(source).await?;
        tail.window().passed(snapshot);
        if let Some(lag) = lane::lag(source, target, lane).await? {
            observe::lag(&lag);
        }
        Ok(())
    }
}
