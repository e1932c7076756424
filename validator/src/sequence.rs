//! Level 0 of sequences: would the target's give a value that the source's has given?
//!
//! The lane keeps the target's ahead, and it comes some seconds after the source's. So the source is read first, and the
//! target is looked at until it is there, or until the lane has long passed that point: writes in between can only put it further.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use changelog::sequence::{self, Held, LIST, Listed, READ_MAX, TABLES, Value, is_behind, read_sql};
use changelog::{Lsn, Sequence, TableName};
use service::config::Migration;

use crate::report::{Finding, TableReport};
use crate::selection::Unit;
use crate::session::{Session, statement};
use crate::{Error, lane, observe, reader};

/// The producer reads every few seconds.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// After so long it has read again, and written that into the WAL.
const READ_WITHIN: Duration = Duration::from_secs(12);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What there is to say of one sequence.
#[derive(Clone, Debug)]
pub struct Judged {
    pub sequence: TableName,
    /// The tables whose columns have it, and those above them; none of a lone one.
    pub ties: Vec<TableName>,
    pub outcome: Outcome,
}

impl Judged {
    /// Whether a column of the unit's tables has it.
    pub fn of(&self, unit: &Unit<'_>) -> bool {
        self.ties.iter().any(|tie| unit.holds(&tie.to_string()))
    }

    pub fn report(&self, report: &mut TableReport) {
        match &self.outcome {
            Outcome::Finding(finding) => report.find(finding.clone()),
            Outcome::Inconclusive(why) => report.inconclusive(why.as_str()),
        }
    }
}

/// Reports of those of no table that is compared, each for itself.
pub fn lone(all: &[Judged], units: &[Unit<'_>]) -> Vec<TableReport> {
    let lone = all.iter().filter(|judged| !units.iter().any(|unit| judged.of(unit)));
    let reported = |judged: &Judged| {
        let mut report = TableReport::new(judged.sequence.to_string());
        judged.report(&mut report);
        observe::table_verified(&report);
        report
    };
    lone.map(reported).collect()
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Finding(Finding),
    /// Why nothing can be said.
    Inconclusive(String),
}

/// `lane`: of a lane that runs between the two, how it is called and how long may be waited for it.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn check(
    (source, target): (&mut Session, &mut Session),
    migration: &Migration,
    lane: Option<(&str, Duration)>,
) -> Result<Vec<Judged>, Error> {
    let (readable, unreadable): (Vec<Listed>, Vec<Listed>) =
        list(source, Some(migration)).await?.into_iter().partition(|listed| listed.readable);
    let mut judged: Vec<Judged> =
        unreadable.iter().map(|listed| inconclusive(listed, "our user may not read it on the source")).collect();
    let of_source = values(source, &readable).await?;
    let mut open = Vec::new();
    for listed in &readable {
        match of_source.get(&listed.name()) {
            Some(value) => open.push((listed, listed.with(*value))),
            None => judged.push(inconclusive(listed, "it is locked, or was dropped meanwhile")),
        }
    }
    let began = Instant::now();
    let settle = lane.map_or(Duration::ZERO, |(_, settle)| settle.min(SETTLE_MAX));
    let mut passed = None::<Lsn>;
    let on_target: HashMap<TableName, Listed> =
        list(target, None).await?.into_iter().map(|listed| (listed.name(), listed)).collect();
    loop {
        let held = held(target, &open, &on_target).await?;
        open.retain(|(listed, sequence)| held.get(&listed.name()).is_none_or(|held| is_behind(sequence, held)));
        let waits = open.iter().any(|(listed, _)| held.contains_key(&listed.name()));
        if !waits || began.elapsed() >= settle {
            let arrived = waits && arrived(target, lane, passed).await?;
            judged.extend(
                open.iter().map(|(listed, sequence)| verdict(listed, sequence, held.get(&listed.name()), arrived)),
            );
            return Ok(judged);
        }
        if passed.is_none() && began.elapsed() >= READ_WITHIN {
            passed = Some(reader::position(source).await?.1);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the lane has applied what the producer wrote after the source was read; always where none runs.
async fn arrived(target: &mut Session, lane: Option<(&str, Duration)>, passed: Option<Lsn>) -> Result<bool, Error> {
    let Some((name, _)) = lane else { return Ok(true) };
    let applied = lane::read(target, name).await?.map(|state| state.applied.commit_lsn);
    Ok(applied.zip(passed).is_some_and(|(applied, passed)| applied >= passed))
}

fn verdict(listed: &Listed, sequence: &Sequence, held: Option<&Held>, arrived: bool) -> Judged {
    let at = |value: Value| value.last_value;
    let name = listed.name();
    let outcome = match held {
        None => Outcome::Finding(Finding::schema(None, "sequence_missing", name.to_string()).as_note()),
        Some(held) if arrived => {
            let detail = format!("{name}: source {}, target {}", sequence.last_value, at(held.value));
            Outcome::Finding(Finding::schema(None, "sequence_behind", detail))
        }
        Some(_) => Outcome::Inconclusive(format!("sequence {name}: the lane has not come so far")),
    };
    Judged { sequence: name, ties: ties(listed), outcome }
}

fn inconclusive(listed: &Listed, why: &str) -> Judged {
    let outcome = Outcome::Inconclusive(format!("sequence {}: {why}", listed.name()));
    Judged { sequence: listed.name(), ties: ties(listed), outcome }
}

fn ties(listed: &Listed) -> Vec<TableName> {
    listed.ties.iter().map(|(schema, table)| TableName::new(schema.clone(), table.clone())).collect()
}

/// Those of the migration, or all.
async fn list(session: &mut Session, migration: Option<&Migration>) -> Result<Vec<Listed>, Error> {
    let doing = "listing the sequences";
    let mut listed = Vec::new();
    for row in session.rows(doing, statement(LIST.into())).await? {
        let json: String = session.get(doing, &row, 0)?;
        listed.push(serde_json::from_str(&json).map_err(|error| session.unexpected(doing, error.to_string()))?);
    }
    let Some(migration) = migration else { return Ok(listed) };
    let row = session.row(doing, statement(TABLES.into())).await?;
    let json: String = session.get(doing, &row, 0)?;
    let tables: Vec<(String, String)> =
        serde_json::from_str(&json).map_err(|error| session.unexpected(doing, error.to_string()))?;
    let migrates = |schema: &str, name: &str| migration.selects(schema, name);
    let excludes = |schema: &str, name: &str| migration.excludes(schema, name);
    Ok(sequence::selected(listed, &tables, migrates, excludes))
}

/// Where they stand, as far as they can be read.
async fn values(session: &mut Session, listed: &[Listed]) -> Result<HashMap<TableName, Value>, Error> {
    let names: Vec<TableName> = listed.iter().map(Listed::name).collect();
    let mut values = HashMap::new();
    for some in names.chunks(READ_MAX) {
        match read(session, some).await {
            Ok(read) => values.extend(read),
            Err(Error::Database { source, .. }) if source.as_database_error().is_some() => {
                for one in some.chunks(1) {
                    match read(session, one).await {
                        Ok(read) => values.extend(read),
                        Err(Error::Database { source, .. }) if source.as_database_error().is_some() => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(values)
}

async fn read(session: &mut Session, names: &[TableName]) -> Result<Vec<(TableName, Value)>, Error> {
    let doing = "reading the sequences";
    let mut values = Vec::with_capacity(names.len());
    for row in session.rows(doing, statement(read_sql(names))).await? {
        let at: i32 = session.get(doing, &row, 0)?;
        let value = Value { last_value: session.get(doing, &row, 1)?, is_called: session.get(doing, &row, 2)? };
        let name = usize::try_from(at).ok().and_then(|at| names.get(at));
        values.extend(name.map(|name| (name.clone(), value)));
    }
    Ok(values)
}

async fn held(
    target: &mut Session,
    open: &[(&Listed, Sequence)],
    on_target: &HashMap<TableName, Listed>,
) -> Result<HashMap<TableName, Held>, Error> {
    let listed: Vec<Listed> =
        open.iter().filter_map(|(listed, _)| on_target.get(&listed.name())).filter(|l| l.readable).cloned().collect();
    let values = values(target, &listed).await?;
    let held = listed.iter().filter_map(|listed| {
        let value = *values.get(&listed.name())?;
        let held = Held { value, increment: listed.increment, min: listed.min, max: listed.max };
        Some((listed.name(), held))
    });
    Ok(held.collect())
}
