//! The throttle that all workers of the backfill share: the clocks and the sleeping around [`super::pace`], and the following of
//! the configuration file, whose limits may change while the process runs. I/O.
//!
//! A worker waits before a chunk, holding nothing, and before each block, holding its transaction. There it takes nothing
//! from the server, which has no time-out left to end the session by (`service::session` puts them off). Waiting is
//! cancelled with the worker's task: a shutdown does not wait for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use service::config::{self, Watched};
use tokio_postgres::Client;

use super::pace::{Limits, Notice, Pace, Turn};
use crate::error::Error;
use crate::lane::Lane;
use crate::observe;
use crate::source::{field, rows};

/// Whoever waits asks again after this at the latest, and so learns of other limits and of the lag.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Between two looks at the file; two of them must agree.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Lives as long as the process, through all its sessions.
pub struct Throttle {
    lane: Arc<Lane>,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    notices: Vec<Notice>,
    /// The source's clock in microseconds at a moment of ours: markers carry its time, and the two clocks may be far apart.
    source_clock: (i64, Instant),
    /// Less than a second of waiting, not counted yet.
    waited: Duration,
}

impl Throttle {
    pub fn new(lane: Arc<Lane>) -> Arc<Throttle> {
        let began = Instant::now();
        let state = State {
            pace: Pace::new(limits(&lane.config.producer)),
            notices: Vec::new(),
            source_clock: (0, began),
            waited: Duration::ZERO,
        };
        Arc::new(Throttle { lane, began, state: Mutex::new(state) })
    }

    /// Begins to measure the lag: by the next marker, or from now on if none comes.
    ///
    /// # Errors
    /// The session failed.
    pub async fn begin(&self, client: &Client) -> Result<(), Error> {
        const DOING: &str = "read the source's clock";
        let sql = "SELECT (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8";
        let found = rows(client, DOING, sql).await?;
        let row = found.first().ok_or_else(|| Error::Answer { doing: DOING.into(), what: "no row".into() })?;
        let micros = field(row, 0, DOING)?;
        self.state().source_clock = (micros, Instant::now());
        self.lane.newest_marker_micros.store(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Returns when a worker may go on, with so many bytes of COPY.
    pub async fn pass(&self, bytes: u64) {
        while let Turn::Wait(unpaid) = self.turn(bytes) {
            let asked = Instant::now();
            tokio::time::sleep(unpaid.unwrap_or(ASK_AGAIN).min(ASK_AGAIN)).await;
            self.waited(asked.elapsed());
        }
    }

    /// Everything is copied.
    pub fn end(&self) {
        let state = &mut *self.state();
        state.pace.end(&mut state.notices);
        tell(state, Duration::ZERO);
    }

    fn turn(&self, bytes: u64) -> Turn {
        let state = &mut *self.state();
        let (source_micros, at) = state.source_clock;
        let source_now = source_micros.saturating_add(i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX));
        let age_micros = source_now.saturating_sub(self.lane.newest_marker_micros.load(Ordering::Relaxed));
        let lag = Duration::from_micros(u64::try_from(age_micros).unwrap_or(0));
        let turn = state.pace.turn(self.began.elapsed(), lag, bytes, &mut state.notices);
        tell(state, lag);
        turn
    }

    fn waited(&self, waited: Duration) {
        let mut state = self.state();
        let all = state.waited + waited;
        state.waited = Duration::from_nanos(u64::from(all.subsec_nanos()));
        observe::add(observe::BACKFILL_THROTTLED, all.as_secs());
    }

    fn change(&self, limits: Limits) {
        let mut state = self.state();
        let before = state.pace.limits();
        if state.pace.change(self.began.elapsed(), limits) {
            tracing::info!(
                backfill_bytes_per_second = limits.bytes_per_second,
                backfill_lag_seconds = limits.lag_seconds,
                bytes_per_second_before = before.bytes_per_second,
                lag_seconds_before = before.lag_seconds,
                "the backfill's limits were changed"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(state: &mut State, lag: Duration) {
    for notice in state.notices.drain(..) {
        match notice {
            Notice::Begins(reason) => {
                tracing::info!(
                    limit = reason.key(),
                    lag_seconds = lag.as_secs_f64(),
                    "the backfill is throttled: it waits for its limit"
                );
            }
            Notice::Ends(reason) => tracing::info!(limit = reason.key(), "the backfill is throttled no more"),
        }
    }
}

fn limits(producer: &config::Producer) -> Limits {
    Limits { bytes_per_second: producer.backfill_bytes_per_second, lag_seconds: producer.backfill_lag_seconds }
}

/// Applies the limits that the configuration file comes to say, until the shutdown. Nothing else of it is applied.
pub async fn follow(throttle: Arc<Throttle>) {
    let mut watched = Watched::new(&throttle.lane.config.path);
    while !throttle.lane.shutdown.begun() {
        // A file on a disk that hangs may not hold a thread of the runtime.
        let looked = tokio::task::spawn_blocking(move || {
            let found = watched.look();
            (watched, found)
        });
        let Ok((back, found)) = looked.await else { return };
        watched = back;
        match found {
            Some(Ok(config)) => throttle.change(limits(&config.producer)),
            Some(Err(error)) => tracing::warn!(
                error = service::report(&error, None),
                "the changed configuration is not applied: the backfill keeps its limits"
            ),
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = throttle.lane.shutdown.wait() => return,
        }
    }
}
