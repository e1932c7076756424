//! The lane's ledger, read once from its beginning and followed: the load, the lane's rules and the re-syncs go by it.
//!
//! One thread and one fold for a whole leadership, so that all of them see the same. Nothing of the lane begins before everything
//! that was there is in: a request to read a table again must be known before the table's first event is met.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changelog::LedgerRecord;
use rdkafka::{Message, Offset};
use tokio::sync::mpsc;

use crate::Error;
use crate::error::contract;
use crate::event::Stop;
use crate::ledger::Ledger;
use crate::load::Loading;
use crate::reader::{Reader, poll};
use crate::target::now_micros;

const POLL: Duration = Duration::from_millis(200);

enum Told {
    /// With the offset behind it.
    Record(LedgerRecord, i64),
    /// What was there when the reading began has been told.
    Level,
}

/// The ledger as far as it was read, and the thread that reads on.
pub struct Following {
    pub ledger: Ledger,
    told: mpsc::Receiver<Result<Told, Error>>,
    /// Offset of the next record.
    next_offset: i64,
    _stop: Stop,
}

impl Following {
    /// Reads all that is there. `None` if the process is to stop.
    ///
    /// # Errors
    /// `Contract`, `Kafka`, `TopicReplaced`.
    pub async fn start(loading: &Loading) -> Result<Option<Following>, Error> {
        let (sender, told) = mpsc::channel(64);
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let (reading, seen) = (loading.clone(), stop.0.clone());
        std::thread::spawn(move || {
            if let Err(error) = read(&reading, &seen, &sender) {
                // Nobody listens any more if the lane was given up.
                let _ = sender.blocking_send(Err(error));
            }
        });
        let mut following = Following { ledger: Ledger::default(), told, next_offset: 0, _stop: stop };
        loop {
            loading.pulse.store(now_micros(), Ordering::Relaxed);
            tokio::select! {
                told = following.told.recv() => {
                    if following.take(told)? {
                        return Ok(Some(following));
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = loading.shutdown.wait() => return Ok(None),
            }
        }
    }

    /// Takes everything that the ledger has by now.
    ///
    /// # Errors
    /// As [`Following::start`].
    pub async fn catch_up(&mut self, loading: &Loading) -> Result<(), Error> {
        let (kafka, client, topic) = (loading.kafka.clone(), loading.client.clone(), loading.topics.ledger());
        let asked = tokio::task::spawn_blocking(move || Reader::new(&kafka, &client, 1 << 20, 1)?.end(&topic, 0));
        let end = asked.await.map_err(|_| Error::Thread { what: "reads the ledger" })??;
        while self.next_offset < end {
            loading.pulse.store(now_micros(), Ordering::Relaxed);
            tokio::select! {
                followed = self.next() => followed?,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = loading.shutdown.wait() => break,
            }
        }
        Ok(())
    }

    /// Takes the next record and those that have come with it. Cancel-safe.
    ///
    /// # Errors
    /// As [`Following::start`].
    pub async fn next(&mut self) -> Result<(), Error> {
        let told = self.told.recv().await;
        self.take(told)?;
        while let Ok(told) = self.told.try_recv() {
            self.take(Some(told))?;
        }
        Ok(())
    }

    /// True when everything that was there is in.
    fn take(&mut self, told: Option<Result<Told, Error>>) -> Result<bool, Error> {
        match told.ok_or(Error::Thread { what: "reads the ledger" })?? {
            Told::Record(record, next_offset) => {
                self.ledger.accept(record);
                self.next_offset = next_offset;
            }
            Told::Level => return Ok(true),
        }
        Ok(false)
    }
}

fn read(loading: &Loading, stop: &AtomicBool, sender: &mpsc::Sender<Result<Told, Error>>) -> Result<(), Error> {
    let topic = loading.topics.ledger();
    let mut reader = Reader::new(&loading.kafka, &loading.client, 1 << 20, 1)?;
    let stopped = || stop.load(Ordering::Relaxed) || sender.is_closed();
    while reader.partitions(&topic)? == 0 {
        if stopped() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    let end = reader.end(&topic, 0)?;
    let queue = reader.assign(&topic, 0, Offset::Beginning)?;
    let (mut next, mut level) = (0, false);
    while !stopped() {
        if !level && next >= end {
            level = true;
            if sender.blocking_send(Ok(Told::Level)).is_err() {
                break;
            }
        }
        reader.serve()?;
        let Some(message) = poll(&queue, &topic, 0, POLL)? else { continue };
        next = message.offset() + 1;
        // The ledger is compacted; a record without a value deletes one, and none of ours is ever deleted.
        let Some(payload) = message.payload() else { continue };
        let record = LedgerRecord::decode(payload)
            .map_err(|error| contract(format!("{topic}, offset {}", message.offset()))(error))?;
        if sender.blocking_send(Ok(Told::Record(record, next))).is_err() {
            break;
        }
    }
    Ok(())
}
