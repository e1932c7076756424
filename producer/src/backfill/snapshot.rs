//! Snapshots that several sessions read under, and how they are replaced. I/O.
//!
//! A session that holds a transaction open exports its snapshot; workers import it. Importing needs the exporter only for a
//! moment, so a snapshot is replaced by putting another holder in its place: the old one ends with its last user, and vacuum
//! is held back for minutes and not for the whole backfill.
//!
//! *Exact*: taken with a slot at its consistent point: exactly the transactions with a commit LSN below it are in the rows.
//! Otherwise C2 is read after the snapshot was taken: whatever committed at or after C2 is not in it; below, it may be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::Lsn;
use changelog::table::quote_literal;
use tokio_postgres::Client;

use crate::error::Error;
use crate::lane::Lane;
use crate::source::{field, rows};
use crate::walsender::{SnapshotAction, Walsender};

/// How long a temporary slot may wait for the transactions that are open in the cluster.
const SLOT_WAIT_SECONDS: u64 = 900;
const SLOT_LOG_SECONDS: u64 = 10;

/// An exported snapshot, kept alive by its session.
pub struct Snapshot {
    /// Its transaction is open until it is dropped.
    _holder: Client,
    pub name: String,
    pub lsn: Lsn,
    pub exact: bool,
    pub taken: Instant,
}

const BEGIN: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Snapshot {
    /// Takes over a slot's exported snapshot: `lsn` is its consistent point.
    ///
    /// # Errors
    /// The session failed, or the snapshot is gone.
    pub async fn import(lane: &Lane, exported: &str, lsn: Lsn) -> Result<Arc<Snapshot>, Error> {
        let client = lane.source.connect(&lane.application_name()).await?;
        begin_under(&client, exported).await?;
        let name = export(&client).await?;
        tracing::info!(snapshot = name, %lsn, exact = true, "snapshot taken with its slot");
        Ok(Arc::new(Snapshot { _holder: client, name, lsn, exact: true, taken: Instant::now() }))
    }

    /// Takes one beside the running slot.
    ///
    /// # Errors
    /// The session failed.
    pub async fn take(lane: &Lane) -> Result<Arc<Snapshot>, Error> {
        const DOING: &str = "read the end of the WAL";
        let client = lane.source.connect(&lane.application_name()).await?;
        client.batch_execute(BEGIN).await.map_err(Error::source("begin a snapshot"))?;
        let name = export(&client).await?;
        // After the snapshot: what commits from here on is not in it.
        let found = rows(&client, DOING, "SELECT pg_catalog.pg_current_wal_insert_lsn()").await?;
        let row = found.first().ok_or_else(|| Error::Answer { doing: DOING.into(), what: "no row".into() })?;
        let lsn = field(row, 0, DOING)?;
        tracing::info!(snapshot = name, %lsn, exact = false, "snapshot taken");
        Ok(Arc::new(Snapshot { _holder: client, name, lsn, exact: false, taken: Instant::now() }))
    }

    /// Takes one at the consistent point of a temporary slot, which is dropped at once.
    ///
    /// # Errors
    /// `SnapshotTimeout` if transactions stay open for too long, or the server refused the slot.
    pub async fn take_exact(lane: &Lane) -> Result<Arc<Snapshot>, Error> {
        let mut walsender = Walsender::connect(&lane.source_url, &lane.application_name()).await?;
        let slot = format!("dflux_copy_{}", uuid::Uuid::new_v4().simple());
        let began = Instant::now();
        let created = {
            let creating = walsender.create_slot(&slot, true, SnapshotAction::Export);
            tokio::pin!(creating);
            loop {
                match tokio::time::timeout(Duration::from_secs(SLOT_LOG_SECONDS), &mut creating).await {
                    Ok(created) => break created?,
                    Err(_) if began.elapsed().as_secs() >= SLOT_WAIT_SECONDS => {
                        return Err(Error::SnapshotTimeout { slot: slot.clone(), seconds: SLOT_WAIT_SECONDS });
                    }
                    Err(_) => tracing::info!(
                        slot,
                        seconds = began.elapsed().as_secs(),
                        "waiting for open transactions of the source: a slot's snapshot needs them to end"
                    ),
                }
            }
        };
        let exported = created.snapshot_name.unwrap_or_default();
        let snapshot = Snapshot::import(lane, &exported, created.consistent_point).await?;
        walsender.close().await?;
        Ok(snapshot)
    }
}

async fn export(client: &Client) -> Result<String, Error> {
    const DOING: &str = "export a snapshot";
    let found = rows(client, DOING, "SELECT pg_catalog.pg_export_snapshot()").await?;
    let row = found.first().ok_or_else(|| Error::Answer { doing: DOING.into(), what: "no row".into() })?;
    field(row, 0, DOING)
}

/// Opens a transaction that sees what the snapshot sees.
///
/// # Errors
/// The snapshot is gone, or the session.
pub async fn begin_under(client: &Client, snapshot: &str) -> Result<(), Error> {
    let sql = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot));
    client.batch_execute(&sql).await.map_err(Error::source(format!("read under snapshot {snapshot}")))
}

/// The snapshot that chunks of keyed tables are read under; replaced when it is old.
pub struct Shared {
    lane: Arc<Lane>,
    age_max: Duration,
    current: tokio::sync::Mutex<Option<Arc<Snapshot>>>,
}

impl Shared {
    pub fn new(lane: Arc<Lane>, initial: Option<Arc<Snapshot>>) -> Shared {
        let age_max = Duration::from_secs(lane.config.producer.snapshot_seconds_max);
        Shared { lane, age_max, current: tokio::sync::Mutex::new(initial) }
    }

    /// A snapshot that is not too old, and not `stale` (a table was rewritten since).
    ///
    /// # Errors
    /// None could be taken.
    pub async fn current(&self, stale: Option<&Arc<Snapshot>>) -> Result<Arc<Snapshot>, Error> {
        let mut current = self.current.lock().await;
        let usable = |held: &&Arc<Snapshot>| {
            held.taken.elapsed() < self.age_max && !stale.is_some_and(|stale| Arc::ptr_eq(held, stale))
        };
        if let Some(held) = current.as_ref().filter(usable) {
            return Ok(held.clone());
        }
        let taken = Snapshot::take(&self.lane).await?;
        *current = Some(taken.clone());
        Ok(taken)
    }

    /// Ends the current one: held on, it would hold back vacuum on the source for as long as this process lives.
    pub async fn release(&self) {
        *self.current.lock().await = None;
    }

    /// The current one if it is exact, for a keyless table; else one of its own.
    ///
    /// # Errors
    /// None could be taken.
    pub async fn exact(&self, stale: Option<&Arc<Snapshot>>) -> Result<Arc<Snapshot>, Error> {
        let held = self.current.lock().await.clone();
        let held = held.filter(|held| held.exact && held.taken.elapsed() < self.age_max);
        match held.filter(|held| !stale.is_some_and(|stale| Arc::ptr_eq(held, stale))) {
            Some(held) => Ok(held),
            None => Snapshot::take_exact(&self.lane).await,
        }
    }
}
