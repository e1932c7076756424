//! The lane as its row on the target and its slot on the source show it.

use serde::Serialize;
use service::Config;

use crate::{Database, Error};

/// Between the newest marker and now lie the marker's interval and our own questions: below this, lag is what markers measured.
const MARKER_AGE_MS_FRESH: f64 = 2_000.0;

/// The row of `dflux.lane`, times in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    pub phase: String,
    pub commit_lsn: Option<String>,
    pub ordinal: i64,
    pub part: i32,
    pub emitted_ms: Option<f64>,
    pub decoded_ms: Option<f64>,
    pub received_ms: Option<f64>,
    pub applied_ms: Option<f64>,
    pub changes_applied: i64,
    pub transactions_applied: i64,
    pub diverged: i64,
    pub error: Option<String>,
    pub error_hint: Option<String>,
    pub instance: Option<String>,
    pub heartbeat_age_seconds: Option<f64>,
    pub incomplete: i64,
    pub pending_steps: i64,
    pub cutover_steps: i64,
    /// What would let `dflux prepare` build these; none where it may.
    pub cutover_steps_hint: Option<String>,
}

/// The slot, and the source's clock and WAL at the moment of asking.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Slot {
    pub name: String,
    pub exists: bool,
    pub active: bool,
    pub wal_status: String,
    pub confirmed_lsn: Option<String>,
    /// WAL that the source keeps for it.
    pub retained_bytes: Option<i64>,
    /// WAL written and not yet confirmed.
    pub unconfirmed_bytes: Option<i64>,
}

impl Lane {
    /// The lane's part of `status --json`'s `phase`.
    pub fn phase(&self) -> &'static str {
        match self.phase.as_str() {
            "" => "starting",
            "loading" => "backfill",
            "indexing" => "indexing",
            "tolerant" => "catching_up",
            "exact" => "streaming",
            "stopped" => "stopped",
            _ => "unknown",
        }
    }

    /// From commit on the source to commit on the target. While markers arrive, what the newest one measured; when they
    /// stay away, how long ago the source emitted the newest one that was applied.
    pub fn lag_ms(&self, source_now_ms: f64) -> Option<f64> {
        let emitted = self.emitted_ms?;
        let age = (source_now_ms - emitted).max(0.0);
        let measured = self.applied_ms.map(|applied| (applied - emitted).max(0.0));
        Some(match measured {
            Some(measured) if age < MARKER_AGE_MS_FRESH => measured,
            _ => age,
        })
    }
}

const LANE: &str = "SELECT coalesce(phase, ''), commit_lsn::text, coalesce(ordinal, 0), coalesce(part, 0),
    (extract(epoch FROM marker_emitted_at) * 1000)::float8, (extract(epoch FROM marker_decoded_at) * 1000)::float8,
    (extract(epoch FROM marker_received_at) * 1000)::float8, (extract(epoch FROM marker_applied_at) * 1000)::float8,
    changes_applied, transactions_applied, diverged, error, error_hint, instance,
    extract(epoch FROM clock_timestamp() - heartbeat_at)::float8,
    (SELECT count(*) FROM dflux.incomplete i WHERE i.lane = l.lane),
    (SELECT count(*) FROM dflux.schema_step s WHERE s.migration = $2 AND s.kind = 'post' AND s.done_at IS NULL),
    (SELECT count(*) FROM dflux.schema_step s WHERE s.migration = $2 AND s.kind = 'cutover' AND s.done_at IS NULL)
  FROM dflux.lane l WHERE lane = $1";

/// # Errors
/// `Sql`. `None` while the target knows no such lane.
pub async fn read(target: &Database, config: &Config) -> Result<Option<Lane>, Error> {
    if !target.has("dflux.lane").await? {
        return Ok(None);
    }
    let migration = &config.migration.name;
    let lane = format!("{migration}/forward");
    let rows = target.rows("its lane", LANE, &[&lane, migration]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let cutover_steps: i64 = target.get(row, 17)?;
    let held = cutover_steps > 0 && !target.may_replicate().await?;
    let cutover_steps_hint = if held { Some(target.replicate_hint().await?) } else { None };
    Ok(Some(Lane {
        phase: target.get(row, 0)?,
        commit_lsn: target.get(row, 1)?,
        ordinal: target.get(row, 2)?,
        part: target.get(row, 3)?,
        emitted_ms: target.get(row, 4)?,
        decoded_ms: target.get(row, 5)?,
        received_ms: target.get(row, 6)?,
        applied_ms: target.get(row, 7)?,
        changes_applied: target.get(row, 8)?,
        transactions_applied: target.get(row, 9)?,
        diverged: target.get(row, 10)?,
        error: target.get(row, 11)?,
        error_hint: target.get(row, 12)?,
        instance: target.get(row, 13)?,
        heartbeat_age_seconds: target.get(row, 14)?,
        incomplete: target.get(row, 15)?,
        pending_steps: target.get(row, 16)?,
        cutover_steps,
        cutover_steps_hint,
    }))
}

/// The source's side, read in one statement: its clock in milliseconds, its slot, and how far it is ahead of `applied`.
///
/// # Errors
/// `Sql`.
pub async fn read_source(
    source: &Database,
    slot: &str,
    applied: Option<&str>,
) -> Result<(f64, Slot, Option<i64>), Error> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8, s.slot_name IS NOT NULL, coalesce(s.active, false),
        coalesce(s.wal_status, ''), s.confirmed_flush_lsn::text,
        (pg_wal_lsn_diff(w.lsn, s.restart_lsn))::bigint, (pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn))::bigint,
        greatest(pg_wal_lsn_diff(w.lsn, $2::text::pg_lsn), 0)::bigint
      FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn) w
        LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";
    let row = source.row("its slot", sql, &[&slot, &applied]).await?;
    let held = Slot {
        name: slot.to_owned(),
        exists: source.get(&row, 1)?,
        active: source.get(&row, 2)?,
        wal_status: source.get(&row, 3)?,
        confirmed_lsn: source.get(&row, 4)?,
        retained_bytes: source.get(&row, 5)?,
        unconfirmed_bytes: source.get(&row, 6)?,
    };
    Ok((source.get(&row, 0)?, held, source.get(&row, 7)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_measured_while_markers_arrive_and_grows_when_they_stay_away() {
        let lane = Lane { emitted_ms: Some(10_000.0), applied_ms: Some(10_012.0), ..Lane::default() };
        assert_eq!(lane.lag_ms(10_050.0), Some(12.0));
        assert_eq!(lane.lag_ms(75_000.0), Some(65_000.0));
        assert_eq!(Lane::default().lag_ms(1.0), None);
    }
}
