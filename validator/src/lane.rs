//! What the target says of the lane that feeds it: position, phase, tables that are not live. Only read.

use std::time::{Duration, Instant};

use changelog::table::TableName;
use changelog::{Lsn, Position};
use sqlx::Row as _;

use crate::Error;
use crate::coverage::Standing;
use crate::reader;
use crate::report::LagReport;
use crate::session::{Session, statement};
use crate::settle::Unsettled;

/// How often the lane's position is asked for while waiting.
pub const POSITION_POLL: Duration = Duration::from_millis(10);

/// The lane's row.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneState {
    pub phase: String,
    /// Everything at or below it is applied.
    pub applied: Position,
    pub exact_from: Option<Lsn>,
    pub diverged: i64,
    pub error: Option<String>,
    pub system_identifier: Option<String>,
}

impl LaneState {
    /// Whether what the target holds is promised to be the source's state at the applied position.
    ///
    /// # Errors
    /// `NotExact` with the reason.
    pub fn exact(&self) -> Result<(), Unsettled> {
        let why = |what: String| {
            let error = self.error.as_deref().map(|error| format!("; its error: {error}")).unwrap_or_default();
            Err(Unsettled::NotExact(format!("{what}{error}")))
        };
        if self.phase != "exact" {
            return why(format!("the lane is not exact yet: phase {}", self.phase));
        }
        match self.exact_from {
            // A lane that begins at its point has applied all that lies before it, and has met nothing behind it yet.
            Some(point) if self.applied < before(point) => {
                why(format!("the lane is at {} and exact from {point}", self.applied.commit_lsn))
            }
            _ => Ok(()),
        }
    }
}

/// Whether dflux has a schema on this server.
///
/// # Errors
/// `Database`.
pub async fn installed(session: &mut Session) -> Result<bool, Error> {
    let doing = "looking for the lane";
    let row = session.row(doing, statement("SELECT to_regclass('dflux.lane') IS NOT NULL".into())).await?;
    session.get(doing, &row, 0)
}

fn lsn(session: &Session, doing: &str, text: Option<String>) -> Result<Option<Lsn>, Error> {
    text.map(|text| text.parse().map_err(|error: changelog::Error| session.unexpected(doing, error.to_string())))
        .transpose()
}

/// The lane's row as this session sees it now, or in its snapshot.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn read(session: &mut Session, lane: &str) -> Result<Option<LaneState>, Error> {
    let doing = "reading dflux.lane";
    let sql = "SELECT coalesce(phase, ''), commit_lsn::text, coalesce(ordinal, -1)::bigint, coalesce(part, 0)::int4, \
               exact_from::text, coalesce(diverged, 0)::bigint, error, system_identifier FROM dflux.lane WHERE lane = $1";
    let rows = session.rows(doing, statement(sql.into()).bind(lane.to_owned())).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let commit_lsn = lsn(session, doing, session.get(doing, row, 1)?)?.unwrap_or(Lsn::ZERO);
    let ordinal: i64 = session.get(doing, row, 2)?;
    let part: i32 = session.get(doing, row, 3)?;
    let applied = match u64::try_from(ordinal) {
        Ok(ordinal) => Position { commit_lsn, ordinal, part: part.max(0) as u32 },
        // Nothing of the transaction at this position yet.
        Err(_) => before(commit_lsn),
    };
    Ok(Some(LaneState {
        phase: session.get(doing, row, 0)?,
        applied,
        exact_from: lsn(session, doing, session.get(doing, row, 4)?)?,
        diverged: session.get(doing, row, 5)?,
        error: session.get(doing, row, 6)?,
        system_identifier: session.get(doing, row, 7)?,
    }))
}

/// Waits until the lane has applied everything below a position of the source; false if it does not before the deadline.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn reaches(session: &mut Session, lane: &str, through: Lsn, deadline: Instant) -> Result<bool, Error> {
    while Instant::now() < deadline {
        let state = read(session, lane).await?;
        if state.is_some_and(|state| reader::covers(state.applied, through)) {
            return Ok(true);
        }
        tokio::time::sleep(POSITION_POLL).await;
    }
    Ok(false)
}

/// Why a table is not what the lane promises, as this session's snapshot sees it.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn table_blocked(session: &mut Session, lane: &str, table: &TableName) -> Result<Option<String>, Error> {
    let doing = "reading dflux.table_state";
    let sql = "SELECT (SELECT state FROM dflux.table_state WHERE lane = $1 AND schema_name = $2 AND table_name = $3), \
               (SELECT count(*) FROM dflux.incomplete WHERE lane = $1 AND schema_name = $2 AND table_name = $3)";
    let bound = statement(sql.into()).bind(lane.to_owned()).bind(table.schema.clone()).bind(table.name.clone());
    let row = session.row(doing, bound).await?;
    let state: Option<String> = session.get(doing, &row, 0)?;
    let incomplete: i64 = session.get(doing, &row, 1)?;
    Ok(match state {
        Some(state) if state != "live" => Some(format!("the table is {state}")),
        _ if incomplete > 0 => Some(format!("{incomplete} rows are still to be read again (dflux.incomplete)")),
        _ => None,
    })
}

/// What a comparison of a table rests on beside its columns.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn standing(session: &mut Session, lane: &str, table: &TableName) -> Result<Standing, Error> {
    let doing = "reading dflux.lane";
    let sql = "SELECT consistent_point::text, exact_from::text, (SELECT concat_ws(' ', generation, next_generation, state, replay_from) \
               FROM dflux.table_state s WHERE (s.lane, s.schema_name, s.table_name) = (l.lane, $2, $3)), \
               (SELECT concat_ws(' ', max(generation), count(*), max(loaded_at)) FROM dflux.chunk c \
               WHERE (c.lane, c.schema_name, c.table_name) = (l.lane, $2, $3)) FROM dflux.lane l WHERE l.lane = $1";
    let bound = statement(sql.into()).bind(lane.to_owned()).bind(table.schema.clone()).bind(table.name.clone());
    let row = session.row(doing, bound).await?;
    Ok(Standing {
        consistent_point: session.get(doing, &row, 0)?,
        exact_from: session.get(doing, &row, 1)?,
        state: session.get(doing, &row, 2)?,
        copy: session.get(doing, &row, 3)?,
        files: Vec::new(),
    })
}

/// Why a table that only the source has may still come to the target; none if it was there once.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn awaited(session: &mut Session, lane: &str, table: &TableName) -> Result<Option<String>, Error> {
    let doing = "reading dflux.table_state";
    let sql = "SELECT (SELECT state FROM dflux.table_state WHERE lane = $1 AND schema_name = $2 AND table_name = $3), \
               EXISTS (SELECT FROM dflux.chunk WHERE lane = $1 AND schema_name = $2 AND table_name = $3)";
    let bound = statement(sql.into()).bind(lane.to_owned()).bind(table.schema.clone()).bind(table.name.clone());
    let row = session.row(doing, bound).await?;
    let state: Option<String> = session.get(doing, &row, 0)?;
    let copied: bool = session.get(doing, &row, 1)?;
    Ok(match state {
        Some(state) if state != "live" => Some(format!("the target does not have the table, which is {state}")),
        None if !copied => Some("the table is new and has not joined the lane yet".to_owned()),
        _ => None,
    })
}

/// What the target's bookkeeping says beside positions.
#[derive(Clone, Debug, Default)]
pub struct Bookkeeping {
    pub post_data_pending: bool,
    pub key_pending: bool,
    /// Divergences that the consumer saw, by table.
    pub divergences: Vec<(TableName, u64, Vec<String>)>,
}

/// # Errors
/// `Database`, `Answer`.
pub async fn bookkeeping(session: &mut Session, migration: &str, lane: &str) -> Result<Bookkeeping, Error> {
    let doing = "reading dflux.schema_step and dflux.divergence";
    let sql = "SELECT to_regclass('dflux.schema_step') IS NOT NULL, to_regclass('dflux.divergence') IS NOT NULL";
    let row = session.row(doing, statement(sql.into())).await?;
    let (steps, divergence): (bool, bool) = (session.get(doing, &row, 0)?, session.get(doing, &row, 1)?);
    let mut found = Bookkeeping::default();
    if steps {
        let sql = "SELECT coalesce(bool_or(kind IN ('post', 'cutover')), false), coalesce(bool_or(kind = 'key'), false) \
                   FROM dflux.schema_step WHERE migration = $1 AND done_at IS NULL";
        let row = session.row(doing, statement(sql.into()).bind(migration.to_owned())).await?;
        found.post_data_pending = session.get(doing, &row, 0)?;
        found.key_pending = session.get(doing, &row, 1)?;
    }
    if divergence {
        let sql = "SELECT schema_name, table_name, count(*)::bigint, (array_agg(DISTINCT commit_lsn::text))[1:5] \
                   FROM dflux.divergence WHERE lane = $1 GROUP BY 1, 2";
        for row in session.rows(doing, statement(sql.into()).bind(lane.to_owned())).await? {
            let table = TableName::new(session.get::<String>(doing, &row, 0)?, session.get::<String>(doing, &row, 1)?);
            let count: i64 = session.get(doing, &row, 2)?;
            found.divergences.push((table, count.max(0) as u64, session.get(doing, &row, 3)?));
        }
    }
    Ok(found)
}

/// Lag of each hop by the newest applied marker, which carries its times; the age by the source's own clock.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn lag(source: &mut Session, target: &mut Session, lane: &str) -> Result<Option<LagReport>, Error> {
    let doing = "measuring the lag";
    let micros = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::bigint");
    let sql = format!(
        "SELECT {}, {}, {}, {}, commit_lsn::text FROM dflux.lane WHERE lane = $1",
        micros("marker_emitted_at"),
        micros("marker_decoded_at"),
        micros("marker_received_at"),
        micros("marker_applied_at")
    );
    let rows = target.rows(doing, statement(sql).bind(lane.to_owned())).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let times: Vec<Option<i64>> = (0..4).map(|at| row.try_get(at).ok().flatten()).collect();
    let applied = lsn(target, doing, target.get(doing, row, 4)?)?;
    let sql = format!("SELECT pg_current_wal_lsn()::text, {}", micros("clock_timestamp()"));
    let row = source.row(doing, statement(sql)).await?;
    let (written, now) = (lsn(source, doing, source.get(doing, &row, 0)?)?, source.get::<i64>(doing, &row, 1)?);
    let between = |from: Option<i64>, to: Option<i64>| Some((to? - from?) as f64 / 1000.0);
    Ok(Some(LagReport {
        capture_ms: between(times[0], times[1]),
        queue_ms: between(times[1], times[2]),
        apply_ms: between(times[2], times[3]),
        end_to_end_ms: between(times[0], times[3]),
        behind_ms: between(times[0], Some(now)),
        bytes: applied.zip(written).map(|(applied, written)| written.bytes_since(applied)),
    }))
}

/// The last position below a commit LSN.
fn before(commit_lsn: Lsn) -> Position {
    Position { commit_lsn: Lsn(commit_lsn.0.saturating_sub(1)), ordinal: u64::MAX, part: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_promises_exactness_only_in_its_phase_and_from_its_point() {
        let mut lane = LaneState {
            phase: "tolerant".into(),
            applied: Position::new(Lsn(10), 0),
            exact_from: Some(Lsn(20)),
            diverged: 0,
            error: Some("unique violation".into()),
            system_identifier: None,
        };
        let reason = lane.exact().unwrap_err().to_string();
        assert!(reason.contains("tolerant") && reason.contains("unique violation"), "{reason}");
        lane.phase = "exact".into();
        assert!(lane.exact().is_err());
        lane.applied = before(Lsn(20));
        assert!(lane.exact().is_ok(), "it begins at its point");
        lane.applied = Position::new(Lsn(20), 0);
        assert!(lane.exact().is_ok());
    }
}
