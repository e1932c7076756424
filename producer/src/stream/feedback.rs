//! Answers to the server: up to where Kafka has acknowledged. A task of its own, so that keepalives are answered also while
//! the stream waits for a full queue.

use std::sync::Arc;
use std::time::Duration;

use changelog::Lsn;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::Error;
use crate::observe;
use crate::publish::StreamPublisher;
use crate::walsender::{Status, StatusWriter};

/// At least this often, whether or not there is news: well below any wal_sender_timeout.
const INTERVAL: Duration = Duration::from_secs(1);
/// At most this often for progress alone.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

pub struct Feedback {
    pub writer: StatusWriter,
    pub publisher: StreamPublisher,
    /// The server wants an answer at once.
    pub reply: Arc<Notify>,
    /// The slot's own position at the start: nothing lower is ever said.
    pub floor: Lsn,
    /// Set when the stream has ended and everything is acknowledged.
    pub stop: watch::Receiver<bool>,
}

impl Feedback {
    /// Runs until `stop`, then says the last word and ends the stream politely.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut timer = tokio::time::interval(INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_sent = Instant::now();
        loop {
            let stopping = tokio::select! {
                _ = timer.tick() => false,
                () = self.reply.notified() => false,
                () = self.publisher.confirmed_grew() => {
                    tokio::time::sleep_until(last_sent + PROGRESS_INTERVAL).await;
                    false
                }
                () = stopped(&mut self.stop) => true,
            };
            let confirmed = self.publisher.confirmed().max(self.floor);
            observe::set(observe::CONFIRMED, confirmed.0 as f64);
            observe::set(observe::QUEUED, self.publisher.outstanding() as f64);
            self.writer.send_status(Status::at(confirmed), false).await?;
            last_sent = Instant::now();
            if stopping {
                return Ok(self.writer.close().await?);
            }
        }
    }
}

/// Returns nothing of the channel's guard, which may not be held across an await.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _sender_gone_counts_too = stop.wait_for(|stop| *stop).await.map(|_| ());
}
