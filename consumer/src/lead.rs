//! Who leads the lane: one instance at a time, the others stand by.
//!
//! ```text
//!  stand by ──advisory lock free────────────────────────────┐
//!     │                                                     ▼
//!     └─no sign of life for lease_seconds─> end its sessions ─> lock ─> epoch + 1 ─> lead
//! ```
//! The lock is a session's, so it is free as soon as the leader's process or connection dies. A leader that hangs keeps its
//! connections: its signs of life stop (they come from the same process, and only while the loop moves or the server is
//! busy with one of its statements), and the successor ends its sessions in the server. When it wakes up, every session it
//! had is gone and its epoch has passed: it can commit nothing, and stands by. Only the target's clock is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use service::Shutdown;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::sync::oneshot;

use crate::error::target;
use crate::pipeline::Pulse;
use crate::target::{Purpose, Sessions, make_schema, now_micros, run};
use crate::{Error, observe};

const LOOK: Duration = Duration::from_millis(250);
const BEAT: Duration = Duration::from_secs(1);

/// Leadership of the lane; given up when dropped.
#[derive(Debug)]
pub struct Leader {
    pub epoch: i64,
    pub pulse: Pulse,
    /// Yields when the leadership is lost.
    pub lost: oneshot::Receiver<Error>,
    beating: tokio::task::JoinHandle<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// Waits until this instance leads. `None` if the process is to stop.
///
/// # Errors
/// `Target`.
pub async fn stand_by(
    sessions: &Sessions,
    instance: &str,
    lease_seconds: u64,
    shutdown: &Shutdown,
    standing_by: impl Fn(bool),
) -> Result<Option<Leader>, Error> {
    let mut connection = sessions.open(Purpose::Standby).await?;
    make_schema(&mut connection).await?;
    let mut told = false;
    loop {
        let lock = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('dflux ' || $1, 1))";
        let locked: bool = sqlx::query_scalar(lock)
            .bind(&sessions.lane)
            .fetch_one(&mut connection)
            .await
            .map_err(target("the lock"))?;
        if locked {
            break;
        }
        if !told {
            observe::standing_by();
            told = true;
        }
        let silent = silent(&mut connection, sessions, lease_seconds).await?;
        standing_by(silent == Some(false));
        if silent == Some(true) {
            let ended = end_sessions(&mut connection, sessions).await?;
            observe::taking_over("the leader gives no sign of life", ended);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.wait() => return Ok(None),
        }
    }
    // Whatever sessions a former leader left behind: none of them may hold a lock or a transaction.
    let ended = end_sessions(&mut connection, sessions).await?;
    if told || ended > 0 {
        observe::taking_over("the lock is free", ended);
    }
    lead(connection, sessions, instance, lease_seconds).await.map(Some)
}

/// Whether the leader has given no sign of life for as long as its lease; `None` if it never gave one.
async fn silent(connection: &mut PgConnection, sessions: &Sessions, lease_seconds: u64) -> Result<Option<bool>, Error> {
    let sql = "SELECT heartbeat_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) FROM dflux.lane \
               WHERE lane = $1";
    let row = sqlx::query(sql).bind(&sessions.lane).bind(lease_seconds as f64).fetch_optional(connection).await;
    let row = row.map_err(target("dflux.lane"))?;
    Ok(row.and_then(|row| row.try_get::<Option<bool>, _>(0).ok().flatten()))
}

async fn end_sessions(connection: &mut PgConnection, sessions: &Sessions) -> Result<i64, Error> {
    let sql = "SELECT count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
               WHERE application_name = $1 AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()";
    let ended: i64 = sqlx::query_scalar(sql)
        .bind(sessions.leader_name())
        .fetch_one(&mut *connection)
        .await
        .map_err(target("ending the former leader's sessions"))?;
    for _look in 0..40 {
        if ended == 0 {
            break;
        }
        let left = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name = $1 \
                    AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()";
        let left: i64 = sqlx::query_scalar(left)
            .bind(sessions.leader_name())
            .fetch_one(&mut *connection)
            .await
            .map_err(target("pg_stat_activity"))?;
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(ended)
}

async fn lead(
    mut connection: PgConnection,
    sessions: &Sessions,
    instance: &str,
    lease_seconds: u64,
) -> Result<Leader, Error> {
    let name = changelog::table::quote_literal(&sessions.leader_name());
    run(&mut connection, &format!("SET application_name = {name}")).await.map_err(target("the session's name"))?;
    let sql = "INSERT INTO dflux.lane AS l (lane, epoch, phase, backend_pid, instance, heartbeat_at) \
               VALUES ($1, 1, 'loading', pg_catalog.pg_backend_pid(), $2, pg_catalog.clock_timestamp()) \
               ON CONFLICT (lane) DO UPDATE SET epoch = l.epoch + 1, backend_pid = excluded.backend_pid, \
               instance = excluded.instance, heartbeat_at = excluded.heartbeat_at RETURNING epoch";
    let epoch: i64 = sqlx::query_scalar(sql)
        .bind(&sessions.lane)
        .bind(instance)
        .fetch_one(&mut connection)
        .await
        .map_err(target("dflux.lane"))?;
    observe::leading(epoch, instance);
    let pulse = Arc::new(AtomicI64::new(now_micros()));
    let (lose, lost) = oneshot::channel();
    let beat = Beat {
        connection,
        lane: sessions.lane.clone(),
        name: sessions.leader_name(),
        epoch,
        pulse: pulse.clone(),
        fresh_micros: (lease_seconds * 500_000) as i64,
    };
    let beating = tokio::spawn(async move {
        let error = beat.run().await;
        let _ = lose.send(error);
    });
    Ok(Leader { epoch, pulse, lost, beating })
}

struct Beat {
    connection: PgConnection,
    lane: String,
    name: String,
    epoch: i64,
    pulse: Pulse,
    fresh_micros: i64,
}

impl Beat {
    async fn run(mut self) -> Error {
        loop {
            if let Err(error) = self.beat().await {
                return error;
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn beat(&mut self) -> Result<(), Error> {
        let fresh = now_micros() - self.pulse.load(Ordering::Relaxed) < self.fresh_micros;
        let sql = "WITH alive AS (SELECT $3 OR EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = $4 \
                   AND state = 'active' AND pid <> pg_catalog.pg_backend_pid()) AS yes) \
                   UPDATE dflux.lane SET heartbeat_at = CASE WHEN alive.yes THEN pg_catalog.clock_timestamp() \
                   ELSE heartbeat_at END FROM alive WHERE lane = $1 AND epoch = $2";
        let done = sqlx::query(sql).bind(&self.lane).bind(self.epoch).bind(fresh).bind(&self.name);
        let done = done.execute(&mut self.connection).await.map_err(target("a sign of life"))?;
        if done.rows_affected() == 1 {
            return Ok(());
        }
        Err(Error::Fenced { lane: self.lane.clone(), epoch: self.epoch })
    }
}
