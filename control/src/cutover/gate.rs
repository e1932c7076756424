//! The gate: everything that has to be true before a side is closed. Each check that does not pass says why and what to do.

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use service::{Config, Shutdown};
use validator::levels::Levels;
use validator::pipeline::Validator;
use validator::report::Report;
use validator::verdict::Verdict;

use super::GateFacts;
use super::effects::Sides;
use super::{Direction, Side};
use crate::Error;
use crate::status::lane;

/// A transaction that has written and is older would be waited for inside the outage.
const OLD: Duration = Duration::from_secs(1);
/// A consumer shows that it lives more often than this.
const HEARTBEAT_SECONDS_MAX: f64 = 10.0;
const LAG_MEASURED_EVERY: Duration = Duration::from_millis(200);
const SHRUNK_ROWS: u64 = 1_000;
const SHRUNK_PASSES_MAX: usize = 4;
const CANARY_WITHIN: Duration = Duration::from_secs(10);

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// A stable word.
    pub name: &'static str,
    /// Why it did not pass, and what to do; none if it did.
    pub failed: Option<(String, String)>,
}

/// The comparison that a switch rests on: whole before the gate, then only what has changed since.
pub struct Comparison {
    validator: Validator,
    /// The whole was compared by this process.
    whole: bool,
}

impl std::fmt::Debug for Comparison {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Comparison").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl Comparison {
    /// Of the lane that fills the side which a switch in this direction opens.
    ///
    /// # Errors
    /// `Validator`: a URL is malformed.
    pub fn new(config: &Config, direction: Direction) -> Result<Comparison, Error> {
        let mut validator = Validator::new(config.clone(), Shutdown::default())?;
        if direction == Direction::Back {
            validator = validator.of_reverse_lane();
        }
        // A schema is not what a write can change; its differences are the validator's own report.
        let levels = Levels::from_str("1,2").unwrap_or(Levels::ALL);
        Ok(Comparison { validator: validator.with(levels, false), whole: false })
    }

    /// # Errors
    /// `Validator`.
    pub async fn whole(&mut self) -> Result<Report, Error> {
        let report = self.validator.check(None).await?;
        self.whole = true;
        Ok(report)
    }

    /// Rows that were compared, and tables that are not proved equal.
    ///
    /// # Errors
    /// `Validator`.
    pub async fn changed(&mut self) -> Result<(u64, u64), Error> {
        let report = match self.whole {
            true => self.validator.check_changed(None).await?,
            false => self.whole().await?,
        };
        let rows = report.tables.iter().filter_map(|table| table.rows_source).sum();
        let unequal = report.tables.iter().filter(|table| table.verdict != Verdict::Match).count() as u64;
        Ok((rows, unequal.max(u64::from(report.verdict != Verdict::Match))))
    }
}

/// Makes every check, and prints each as it comes.
///
/// # Errors
/// What keeps a check from being made is a check that did not pass; only a database that is gone is an error.
pub async fn gate(
    config: &Config,
    sides: &Sides,
    direction: Direction,
    comparison: &mut Comparison,
) -> Result<Vec<Check>, Error> {
    let (closing, opening) = (direction.closing(), direction.opening());
    let mut checks = Vec::new();
    let mut take = |name: &'static str, failed: Option<(String, String)>| {
        match &failed {
            None => println!("gate: {name}: passed"),
            Some((why, remedy)) => println!("gate: {name}: {why}\nhint: {remedy}"),
        }
        checks.push(Check { name, failed });
    };
    take("lane", lane_check(sides, closing).await?);
    if direction == Direction::Forward {
        // A rollback is worth having also where there is no way forward again.
        take("lane_back", lane_check(sides, opening).await?);
        take("lane_back_canary", canary(sides, opening).await?);
        take("schema_steps", steps(config, sides).await?);
        take("columns", columns(sides).await?);
    }
    take("rows", rows(comparison).await);
    take("lag", lag(config, sides, closing).await?);
    // What is left to compare inside the outage is what is written from here on.
    take("changed_rows", shrunk(comparison).await);
    take("transactions", transactions(sides, closing).await?);
    Ok(checks)
}

/// What the state machine is told of it, as of now.
pub fn facts(checks: &[Check], now_micros: u64) -> GateFacts {
    let failed = checks.iter().filter(|check| check.failed.is_some()).map(|check| check.name).collect();
    GateFacts { measured_at_micros: Some(now_micros), failed }
}

async fn lane_check(sides: &Sides, from: Side) -> Result<Option<(String, String)>, Error> {
    let name = sides.lane_name(from);
    let start = || format!("start producer and consumer with --lane {}; dflux status", super::effects::lane_of(from));
    let Some(row) = sides.lane(from).await? else {
        return Ok(Some((format!("lane {name} has never run"), start())));
    };
    let Some(slot) = sides.slot(from).await? else {
        return Ok(Some((format!("lane {name} has no slot"), start())));
    };
    Ok(if let Some(error) = row.error {
        Some((format!("lane {name} has stopped: {error}"), "dflux status".to_owned()))
    } else if !row.exact || row.incomplete > 0 {
        Some((format!("lane {name} is not exact yet"), "wait; dflux status --watch".to_owned()))
    } else if row.diverged > 0 {
        let why = format!("lane {name}: {} change(s) found no row", row.diverged);
        Some((why, "SELECT * FROM dflux.divergence; dflux resync TABLE --rows".to_owned()))
    } else if row.heartbeat_age_seconds.is_none_or(|age| age > HEARTBEAT_SECONDS_MAX) {
        Some((format!("the consumer of lane {name} gives no sign of life"), start()))
    } else if !slot.active {
        Some((format!("the producer of lane {name} is not connected"), start()))
    } else if slot.wal_status == "lost" {
        Some((format!("the slot of lane {name} is lost"), "dflux cleanup, then begin anew".to_owned()))
    } else {
        None
    })
}

/// A round trip through the lane back: slot, producer, Kafka, consumer.
async fn canary(sides: &Sides, from: Side) -> Result<Option<(String, String)>, Error> {
    if sides.slot(from).await?.is_none() {
        return Ok(Some((
            "there is no lane back".to_owned(),
            "start producer and consumer with --lane reverse".to_owned(),
        )));
    }
    Ok(match sides.lag(from, CANARY_WITHIN).await? {
        Some(_) => None,
        None => {
            let why = format!("what is written does not come back within {} s", CANARY_WITHIN.as_secs());
            Some((why, "dflux status; the logs of the lane's producer and consumer".to_owned()))
        }
    })
}

async fn steps(config: &Config, sides: &Sides) -> Result<Option<(String, String)>, Error> {
    let Some(row) = lane::read(sides.at(Side::Target), config).await? else {
        return Ok(Some(("the lane has never run".to_owned(), "dflux prepare".to_owned())));
    };
    let left = row.pending_steps + row.cutover_steps;
    Ok((left > 0).then(|| {
        let why = format!("{left} index(es), keys, triggers or other objects are not built on the target");
        (why, row.cutover_steps_hint.unwrap_or_else(|| "dflux prepare".to_owned()))
    }))
}

/// What differs now would refuse every rollback.
async fn columns(sides: &Sides) -> Result<Option<(String, String)>, Error> {
    Ok((!sides.same_columns().await?).then(|| {
        let why = "a table has other columns or types on the target than on the source".to_owned();
        (why, "validator check --levels 0 names them: make them alike".to_owned())
    }))
}

async fn rows(comparison: &mut Comparison) -> Option<(String, String)> {
    let remedy = || "validator check; dflux resync TABLE --rows".to_owned();
    match comparison.whole().await {
        Ok(report) if report.verdict == Verdict::Match => None,
        Ok(report) => {
            let unequal = report.tables.iter().filter(|table| table.verdict != Verdict::Match);
            let named: Vec<String> = unequal
                .take(5)
                .map(|table| {
                    format!(
                        "{} ({:?}{})",
                        table.table,
                        table.verdict,
                        table.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default()
                    )
                })
                .collect();
            let why = report.reason.map(|reason| format!("; {reason}")).unwrap_or_default();
            Some((format!("not proved equal: {}{why}", named.join(", ")), remedy()))
        }
        Err(error) => Some((format!("the comparison failed: {error}"), remedy())),
    }
}

/// Compares what has changed meanwhile, until little is left of it or it grows no smaller.
async fn shrunk(comparison: &mut Comparison) -> Option<(String, String)> {
    let mut before = u64::MAX;
    for _pass in 0..SHRUNK_PASSES_MAX {
        match comparison.changed().await {
            Ok((rows, 0)) if rows <= SHRUNK_ROWS || rows >= before => return None,
            Ok((rows, 0)) => before = rows,
            Ok((_, unequal)) => {
                let why = format!("{unequal} table(s) are not proved equal in what has changed since");
                return Some((why, "validator check; dflux resync TABLE --rows".to_owned()));
            }
            Err(error) => return Some((format!("the comparison failed: {error}"), "validator check".to_owned())),
        }
    }
    None
}

async fn lag(config: &Config, sides: &Sides, from: Side) -> Result<Option<(String, String)>, Error> {
    let bound = Duration::from_millis(config.cutover.max_lag_ms);
    let ends = Instant::now() + Duration::from_secs(config.cutover.gate_seconds);
    let mut longest = Duration::ZERO;
    loop {
        match sides.lag(from, bound.max(Duration::from_secs(1))).await? {
            Some(lag) => longest = longest.max(lag),
            None => longest = Duration::MAX,
        }
        if longest > bound {
            let seen = if longest == Duration::MAX {
                "more than a second".to_owned()
            } else {
                format!("{} ms", longest.as_millis())
            };
            let why = format!("{seen}, where {} ms are allowed ([cutover] max_lag_ms)", bound.as_millis());
            return Ok(Some((why, "dflux status --watch; less load, or a larger bound".to_owned())));
        }
        if Instant::now() >= ends {
            return Ok(None);
        }
        tokio::time::sleep(LAG_MEASURED_EVERY).await;
    }
}

async fn transactions(sides: &Sides, closing: Side) -> Result<Option<(String, String)>, Error> {
    let long = sides.long_transactions(closing, OLD).await?;
    Ok(long.first().map(|first| {
        let why = format!("{} has been open for {:.0} s ({} such)", first.who, first.age_seconds, long.len());
        (why, "end it, or wait; a prepared one: COMMIT PREPARED or ROLLBACK PREPARED".to_owned())
    }))
}
