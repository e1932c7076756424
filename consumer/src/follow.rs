//! The lane's ledger, read once from its beginning and followed: the load, the lane's rules and the re-syncs go by it.
//!
//! One thread and one fold for a whole leadership, so that all of them see the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use changelog::LedgerRecord;
use changelog::ledger::ResyncRequested;
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
const SOON: Duration = Duration::from_millis(20);

enum Told {
    Record(LedgerRecord),
    /// What was there when the reading began has been told.
    Level,
}

/// The ledger as far as it was read, and the thread that reads on.
pub struct Following {
    pub ledger: Ledger,
    pub requests: Requests,
    told: mpsc::UnboundedReceiver<Result<Told, Error>>,
    _stop: Stop,
}

impl Following {
    /// Reads all that is there. `None` if the process is to stop.
    ///
    /// # Errors
    /// `Contract`, `Kafka`, `TopicReplaced`.
    pub async fn start(loading: &Loading) -> Result<Option<Following>, Error> {
        // Without a bound: who folds it may be waiting for the lane, and the lane for a request. All of it is held anyway.
        let (sender, told) = mpsc::unbounded_channel();
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let (reading, seen) = (loading.clone(), stop.0.clone());
        let requests = Requests { seen: Arc::default(), loading: loading.clone() };
        let noting = requests.clone();
        std::thread::spawn(move || {
            if let Err(error) = read(&reading, &seen, &sender, &noting) {
                // Nobody listens any more if the lane was given up.
                let _ = sender.send(Err(error));
            }
        });
        let mut following = Following { ledger: Ledger::default(), requests, told, _stop: stop };
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
            Told::Record(record) => self.ledger.accept(record),
            Told::Level => return Ok(true),
        }
        Ok(false)
    }
}

/// Offset behind the ledger's last record.
async fn end(loading: &Loading) -> Result<i64, Error> {
    let (kafka, client, topic) = (loading.kafka.clone(), loading.client.clone(), loading.topics.ledger());
    let asked = tokio::task::spawn_blocking(move || Reader::new(&kafka, &client, 1 << 20, 1)?.end(&topic, 0));
    asked.await.map_err(|_| Error::Thread { what: "reads the ledger" })?
}

/// The copies that were asked for, as the lane needs them: it meets the marker with which one begins, and knows by the ledger that it is
/// none that anybody has put into the source's WAL.
#[derive(Clone)]
pub struct Requests {
    seen: Arc<Mutex<Seen>>,
    loading: Loading,
}

#[derive(Default)]
struct Seen {
    by_token: HashMap<String, ResyncRequested>,
    next_offset: i64,
}

impl Requests {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, record: &LedgerRecord, next_offset: i64) {
        let mut seen = self.seen();
        if let LedgerRecord::ResyncRequested(request) = record {
            seen.by_token.insert(request.token.clone(), request.clone());
        }
        seen.next_offset = next_offset;
    }

    /// The newest request of a table, by its printed name.
    pub fn newest(&self, table: &str) -> Option<ResyncRequested> {
        let seen = self.seen();
        let of_table = seen.by_token.values().filter(|request| request.table.to_string() == table);
        of_table.max_by_key(|request| request.generation).cloned()
    }

    /// The request of a marker's token. It was in the ledger before the marker was in the WAL, so one that is not in the ledger
    /// now never was.
    ///
    /// # Errors
    /// `Kafka`; `Thread` at the shutdown.
    pub async fn of(&self, token: &str) -> Result<Option<ResyncRequested>, Error> {
        let mut end_offset = None;
        loop {
            {
                let seen = self.seen();
                if let Some(request) = seen.by_token.get(token) {
                    return Ok(Some(request.clone()));
                }
                if end_offset.is_some_and(|end| seen.next_offset >= end) {
                    return Ok(None);
                }
            }
            if self.loading.shutdown.begun() {
                return Err(Error::Thread { what: "reads the ledger" });
            }
            self.loading.pulse.store(now_micros(), Ordering::Relaxed);
            match end_offset {
                None => end_offset = Some(end(&self.loading).await?),
                Some(_) => tokio::time::sleep(SOON).await,
            }
        }
    }
}

fn read(
    loading: &Loading,
    stop: &AtomicBool,
    sender: &mpsc::UnboundedSender<Result<Told, Error>>,
    requests: &Requests,
) -> Result<(), Error> {
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
            if sender.send(Ok(Told::Level)).is_err() {
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
        requests.note(&record, next);
        if sender.send(Ok(Told::Record(record))).is_err() {
            break;
        }
    }
    Ok(())
}
