//! Whether the lane has applied everything that the source had committed when its schema was read. What is unique, checked or
//! referred to there now may not have been so before, and the lane brings the states before one after the other.

use std::time::{Duration, Instant};

use changelog::Lsn;
use service::Config;

use super::reconcile::Reach;
use crate::status::lane::{self, Lane};
use crate::{Database, Error};

const LOOKS_EVERY: Duration = Duration::from_millis(200);
/// A lane that needs longer is catching up: what is built meanwhile would slow it down.
const WAIT: Duration = Duration::from_secs(30);

/// The end of the source's WAL. Taken after the schema was read, it is behind every commit that made it what it is.
///
/// # Errors
/// `Sql`.
pub async fn end(source: &Database) -> Result<Lsn, Error> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text";
    let row = source.row("its position", sql, &[]).await?;
    let text: String = source.get(&row, 0)?;
    // PostgreSQL's own text; one that were none would never be reached.
    Ok(text.parse().unwrap_or(Lsn(u64::MAX)))
}

/// The applied position is a commit's: everything that was committed before it is applied as well.
fn reach(lane: &Lane, end: Lsn) -> Reach {
    let applied: Option<Lsn> = lane.commit_lsn.as_ref().and_then(|text| text.parse().ok());
    if lane.phase == "exact" && applied >= Some(end) { Reach::Level } else { Reach::Behind }
}

/// Waits for it while the lane is exact. Returns the lane as it is then; none while there is none.
///
/// # Errors
/// `Sql`.
pub async fn wait(config: &Config, target: &Database, end: Lsn) -> Result<(Reach, Option<Lane>), Error> {
    let ends = Instant::now() + WAIT;
    let mut told = false;
    loop {
        let Some(lane) = lane::read(target, config).await? else { return Ok((Reach::Unborn, None)) };
        let reach = reach(&lane, end);
        if reach == Reach::Level || lane.phase != "exact" || Instant::now() >= ends {
            return Ok((reach, Some(lane)));
        }
        if !told {
            told = true;
            println!(
                "waiting up to {} s until the lane has applied what the source has committed so far ({end})",
                WAIT.as_secs()
            );
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_level_only_when_it_is_exact_and_has_applied_the_end_of_the_wal_that_was_seen() {
        for (phase, applied, wanted) in [
            ("exact", Some("0/20"), Reach::Level),
            ("exact", Some("1/0"), Reach::Level),
            ("exact", Some("0/1F"), Reach::Behind),
            ("exact", None, Reach::Behind),
            ("tolerant", Some("0/20"), Reach::Behind),
            ("stopped", Some("0/20"), Reach::Behind),
        ] {
            let lane = Lane { phase: phase.into(), commit_lsn: applied.map(str::to_owned), ..Lane::default() };
            assert_eq!(reach(&lane, Lsn(0x20)), wanted, "{phase} {applied:?}");
        }
    }
}
