//! `dflux status`: where the migration stands, from what the services leave behind: `dflux.lane` and `dflux.chunk` on the
//! target, the ledger on Kafka, the slot on the source. Reads only.
//!
//! A part that does not answer is shown as such and does not hide the others: status is asked for when something is wrong.

pub mod lane;
pub mod progress;
mod watch;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use changelog::{Lane as Direction, TableName, Topics};
use producer::source::{catalog, publication};
use serde::Serialize;
use service::Config;

use crate::error::Exit;
use crate::prepare::source::failed;
use crate::topics::Kafka;
use crate::{Database, Error, tables};
use lane::{Lane, Slot};
use progress::{Backfill, Loaded};

const CATALOG_EVERY: Duration = Duration::from_secs(10);

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub migration: String,
    /// `unprepared`, `prepared`, `starting`, `backfill`, `indexing`, `catching_up`, `streaming`, `stopped`, `unknown`.
    pub phase: &'static str,
    pub lanes: Vec<LaneStatus>,
    /// Tables that the patterns select and the publication lacks: created later, or partitions of a table without a key.
    pub unpublished: Vec<String>,
    /// Whether those join by themselves.
    #[serde(skip)]
    joins: bool,
    /// Partitions of published tables that the target has no place for: the lane stops at their first row.
    pub missing_partitions: Vec<String>,
    /// Partitions of the target that the source dropped or detached: their rows stay.
    pub left_over_partitions: Vec<String>,
    /// Parts that did not answer.
    pub unreachable: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LaneStatus {
    pub lane: String,
    pub phase: &'static str,
    /// Commit on the source to commit on the target.
    pub lag_ms: Option<f64>,
    pub lag_by_hop_ms: Hops,
    /// WAL of the source that is not applied yet.
    pub lag_bytes: Option<i64>,
    pub position: Option<Position>,
    pub slot: Option<Slot>,
    pub backfill: Option<Backfill>,
    pub changes_applied: i64,
    pub transactions_applied: i64,
    /// Rows that must be read again before the lane is exact.
    pub incomplete: i64,
    pub diverged: i64,
    /// Steps that `dflux prepare` will do after the catch-up.
    pub pending_steps: i64,
    /// Triggers, rules and foreign keys that must not fire on what the lane applies.
    pub cutover_steps: i64,
    /// Why those wait for the cutover, as what would let `dflux prepare` build them; none where it may.
    pub cutover_steps_hint: Option<String>,
    pub instance: Option<String>,
    pub heartbeat_age_seconds: Option<f64>,
    pub error: Option<String>,
    pub hint: Option<String>,
}

/// The newest applied marker, hop by hop; clocks of different machines take part.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Hops {
    pub source_to_producer: Option<f64>,
    pub producer_to_consumer: Option<f64>,
    pub consumer_to_target: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Position {
    pub commit_lsn: String,
    pub ordinal: i64,
    pub part: i32,
}

/// # Errors
/// `Service` when neither database answers; otherwise what does not answer is part of the answer.
pub async fn run(config: &Config, json: bool, watching: bool) -> Result<Exit, Error> {
    if watching {
        return watch::run(config).await;
    }
    let mut reader = Reader::new(config);
    let status = reader.read().await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        print!("{}", text(&status));
    }
    Ok(Exit::Done)
}

/// Keeps its sessions from one look to the next, and makes them anew when they break.
pub(crate) struct Reader<'a> {
    config: &'a Config,
    source: Option<Database>,
    target: Option<Database>,
    /// When the catalogs were asked, and what they said.
    differences: Option<(Instant, Differences)>,
}

/// What the two catalogs and the publication say of tables that came or went since the migration began.
#[derive(Clone, Debug, Default)]
struct Differences {
    unpublished: Vec<String>,
    missing: Vec<String>,
    left_over: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(config: &'a Config) -> Reader<'a> {
        Reader { config, source: None, target: None, differences: None }
    }

    pub(crate) async fn read(&mut self) -> Result<Status, Error> {
        let mut unreachable = Vec::new();
        let target = match self.read_target().await {
            Ok(held) => Some(held),
            Err(error) => {
                self.target = None;
                note(&mut unreachable, &error);
                None
            }
        };
        let (prepared, lane, loaded) = target.clone().unwrap_or_default();
        let applied = lane.as_ref().and_then(|lane| lane.commit_lsn.clone());
        let source = match self.read_source(applied.as_deref()).await {
            Ok(held) => Some(held),
            Err(error) => {
                self.source = None;
                note(&mut unreachable, &error);
                if target.is_none() {
                    return Err(error);
                }
                None
            }
        };
        let differences = match self.read_differences(prepared).await {
            Ok(differences) => differences,
            Err(error) => {
                // A database that does not answer is named already.
                if source.is_some() && target.is_some() {
                    note(&mut unreachable, &error);
                }
                Differences::default()
            }
        };
        let ledger = Topics::new(&self.config.migration.name, Direction::Forward).ledger();
        let backfill = match Kafka::new(&self.config.kafka).ledger(&ledger).await {
            Ok(records) if records.is_empty() => None,
            Ok(records) => Some(progress::fold(&records, &loaded)),
            Err(error) => {
                note(&mut unreachable, &error);
                None
            }
        };
        let phase = match (&lane, prepared, &backfill) {
            _ if target.is_none() => "unknown",
            (Some(lane), _, _) => lane.phase(),
            (None, _, Some(_)) => "backfill",
            (None, true, None) => "prepared",
            (None, false, None) => "unprepared",
        };
        let name = format!("{}/forward", self.config.migration.name);
        let lanes = if lane.is_some() || backfill.is_some() {
            vec![lane_status(name, phase, lane.unwrap_or_default(), source, backfill)]
        } else {
            Vec::new()
        };
        let Differences { unpublished, missing, left_over } = differences;
        Ok(Status {
            migration: self.config.migration.name.clone(),
            phase,
            lanes,
            unpublished,
            joins: self.config.migration.join_new_tables,
            missing_partitions: missing,
            left_over_partitions: left_over,
            unreachable,
        })
    }

    async fn read_target(&mut self) -> Result<(bool, Option<Lane>, BTreeMap<TableName, Vec<Loaded>>), Error> {
        let target = connected(&mut self.target, "target", &self.config.target.url).await?;
        let prepared = target.has("dflux.schema_step").await?;
        let lane = lane::read(target, self.config).await?;
        let loaded = if prepared { loaded(target, &self.config.migration.name).await? } else { BTreeMap::new() };
        Ok((prepared, lane, loaded))
    }

    /// Looks into the catalogs every few looks of `--watch`.
    async fn read_differences(&mut self, prepared: bool) -> Result<Differences, Error> {
        if let Some((_, held)) = self.differences.as_ref().filter(|(asked, _)| asked.elapsed() < CATALOG_EVERY) {
            return Ok(held.clone());
        }
        let source = connected(&mut self.source, "source", &self.config.source.url).await?;
        let mut found = Differences { unpublished: unpublished(source, self.config).await?, ..Differences::default() };
        if prepared {
            let target = connected(&mut self.target, "target", &self.config.target.url).await?;
            let all = tables::read(source).await?;
            let selected = tables::selected(&all, &self.config.migration);
            let compared = tables::compare(&selected, &tables::held(target, &selected).await?);
            // A table of its own is not published before it is made.
            let parts = compared.missing.iter().filter(|table| table.parent.is_some());
            let names = parts.map(|table| table.name.to_string());
            found.missing = names.filter(|name| !found.unpublished.contains(name)).collect();
            found.left_over = compared.left_over.iter().map(|(_, part)| part.to_string()).collect();
        }
        self.differences = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    async fn read_source(&mut self, applied: Option<&str>) -> Result<(f64, Slot, Option<i64>), Error> {
        let source = connected(&mut self.source, "source", &self.config.source.url).await?;
        lane::read_source(source, &self.config.migration.slot, applied).await
    }
}

/// By the producer's rule; none before there is a publication.
///
/// # Errors
/// `Sql`, `Source`.
pub(crate) async fn unpublished(source: &Database, config: &Config) -> Result<Vec<String>, Error> {
    let migration = &config.migration;
    let published = publication::published(&source.client, &migration.publication).await.map_err(failed)?;
    let Some(published) = published else { return Ok(Vec::new()) };
    let selection = catalog::select(&catalog::all_tables(&source.client).await.map_err(failed)?, migration);
    let missing = selection.published.iter().filter(|table| !published.contains(&table.name));
    Ok(missing.map(|table| table.name.to_string()).collect())
}

async fn connected<'a>(held: &'a mut Option<Database>, role: &'static str, url: &str) -> Result<&'a Database, Error> {
    if held.as_ref().is_none_or(|database| database.client.is_closed()) {
        *held = None;
    }
    match held {
        Some(database) => Ok(database),
        None => Ok(held.insert(Database::connect(role, url).await?)),
    }
}

fn note(unreachable: &mut Vec<String>, error: &Error) {
    unreachable.push(service::report(error, None).replacen("error: ", "", 1).replace("\n  caused by", ""));
}

fn lane_status(
    name: String,
    phase: &'static str,
    lane: Lane,
    source: Option<(f64, Slot, Option<i64>)>,
    backfill: Option<Backfill>,
) -> LaneStatus {
    let (now, slot, behind) = match source {
        Some((now, slot, behind)) => (Some(now), Some(slot), behind),
        None => (None, None, None),
    };
    let between = |from: Option<f64>, to: Option<f64>| Some(((to? - from?).max(0.0) * 10.0).round() / 10.0);
    LaneStatus {
        lane: name,
        phase,
        lag_ms: now.and_then(|now| lane.lag_ms(now)).map(|lag| (lag * 10.0).round() / 10.0),
        lag_by_hop_ms: Hops {
            source_to_producer: between(lane.emitted_ms, lane.decoded_ms),
            producer_to_consumer: between(lane.decoded_ms, lane.received_ms),
            consumer_to_target: between(lane.received_ms, lane.applied_ms),
        },
        lag_bytes: behind,
        position: lane.commit_lsn.clone().map(|commit_lsn| Position {
            commit_lsn,
            ordinal: lane.ordinal,
            part: lane.part,
        }),
        slot,
        backfill,
        changes_applied: lane.changes_applied,
        transactions_applied: lane.transactions_applied,
        incomplete: lane.incomplete,
        diverged: lane.diverged,
        pending_steps: lane.pending_steps,
        cutover_steps: lane.cutover_steps,
        cutover_steps_hint: lane.cutover_steps_hint,
        instance: lane.instance,
        heartbeat_age_seconds: lane.heartbeat_age_seconds.map(|age| (age * 10.0).round() / 10.0),
        error: lane.error,
        hint: lane.error_hint,
    }
}

/// Chunks and rows that the target has, by table and generation, and the table's state.
pub(crate) async fn loaded(target: &Database, migration: &str) -> Result<BTreeMap<TableName, Vec<Loaded>>, Error> {
    let lane = format!("{migration}/forward");
    let sql =
        "SELECT schema_name, table_name, generation, count(*)::bigint, coalesce(sum(row_count), 0)::bigint, '', NULL
        FROM dflux.chunk WHERE lane = $1 GROUP BY 1, 2, 3
      UNION ALL SELECT schema_name, table_name, coalesce(generation, -1), 0, 0, coalesce(state, ''), error
        FROM dflux.table_state WHERE lane = $1";
    let mut loaded: BTreeMap<TableName, Vec<Loaded>> = BTreeMap::new();
    for row in target.rows("its chunks", sql, &[&lane]).await? {
        let table = TableName::new(target.get::<String>(&row, 0)?, target.get::<String>(&row, 1)?);
        let generation = u32::try_from(target.get::<i32>(&row, 2)?).unwrap_or(0);
        let (chunks, rows): (i64, i64) = (target.get(&row, 3)?, target.get(&row, 4)?);
        let (state, error): (String, Option<String>) = (target.get(&row, 5)?, target.get(&row, 6)?);
        let held = loaded.entry(table).or_default();
        match held.iter_mut().find(|held| held.generation == generation) {
            Some(held) if !state.is_empty() => (held.state, held.error) = (state, error),
            Some(held) => (held.chunks, held.rows) = (chunks as u32, rows as u64),
            None => held.push(Loaded { generation, chunks: chunks as u32, rows: rows as u64, state, error }),
        }
    }
    Ok(loaded)
}

/// What came or went since the migration began, each with the command that brings both sides together.
fn differences(status: &Status) -> Vec<(String, String)> {
    let unpublished = status.unpublished.iter().map(|table| match status.joins {
        true => (format!("not published yet: {table}"), "none needed: it joins while the producer runs".into()),
        false => {
            (format!("not published, so not migrated: {table}"), format!("dflux prepare, then dflux resync {table}"))
        }
    });
    let missing = status.missing_partitions.iter().map(|partition| {
        (format!("the target lacks partition {partition}: the lane stops at its first row"), "dflux prepare".into())
    });
    let left_over = status.left_over_partitions.iter().map(|partition| {
        (
            format!("the source has dropped or detached partition {partition}, and the target holds its rows"),
            format!("DROP TABLE {partition} on the target, or ALTER TABLE … DETACH PARTITION {partition}"),
        )
    });
    unpublished.chain(missing).chain(left_over).collect()
}

/// The answer for people.
pub(crate) fn text(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut out = format!("migration {}: {}\n", status.migration, status.phase);
    for lane in &status.lanes {
        let lag = lane.lag_ms.map_or("unknown".into(), |lag| format!("{lag:.0} ms"));
        let bytes = lane.lag_bytes.map_or("unknown".into(), |bytes| crate::assess::estimate::size(bytes.max(0) as u64));
        let at = lane.position.as_ref().map_or("nothing yet".into(), |position| position.commit_lsn.clone());
        let _ = writeln!(out, "lane {}: {}, applied up to {at}, lag {lag}, {bytes} of WAL", lane.lane, lane.phase);
        if let Some(slot) = &lane.slot {
            let state = match (slot.exists, slot.active) {
                (false, _) => "missing".to_owned(),
                (true, active) => {
                    let retained = crate::assess::estimate::size(slot.retained_bytes.unwrap_or(0).max(0) as u64);
                    format!("{}, keeps {retained} of WAL", if active { "in use" } else { "not in use" })
                }
            };
            let _ = writeln!(out, "  slot {}: {state}", slot.name);
        }
        if let Some(backfill) = &lane.backfill {
            let _ = writeln!(
                out,
                "  backfill: {} of {} chunk(s) copied, {} loaded; {} of about {} rows loaded",
                backfill.chunks_copied,
                backfill.chunks_planned,
                backfill.chunks_loaded,
                backfill.rows_loaded,
                backfill.rows_expected
            );
            for table in
                backfill.tables.iter().filter(|table| !table.loaded() || !matches!(table.state.as_str(), "" | "live"))
            {
                let _ = writeln!(
                    out,
                    "    {}: {}/{} {}",
                    table.table, table.chunks_loaded, table.chunks_planned, table.state
                );
                if let Some(error) = &table.error {
                    let _ = writeln!(out, "      {}", error.replace('\n', "\n      "));
                }
            }
        }
        if lane.diverged > 0 {
            let _ = writeln!(
                out,
                "  diverged: {} change(s) found no row: SELECT * FROM dflux.divergence on the target",
                lane.diverged
            );
        }
        let (waiting, held) = match lane.cutover_steps_hint {
            Some(_) => (lane.pending_steps, lane.cutover_steps),
            None => (lane.pending_steps + lane.cutover_steps, 0),
        };
        if waiting > 0 {
            let _ = writeln!(out, "  {waiting} step(s) wait for dflux prepare");
        }
        if held > 0 {
            let _ = writeln!(out, "  {held} trigger(s), rule(s) and foreign key step(s) wait for the cutover");
            let _ = writeln!(out, "  hint: {}", lane.cutover_steps_hint.as_deref().unwrap_or_default());
        }
        if let Some(error) = &lane.error {
            let _ = writeln!(out, "  error: {error}");
            if let Some(hint) = &lane.hint {
                let _ = writeln!(out, "  hint: {hint}");
            }
        }
    }
    for (what, hint) in differences(status) {
        let _ = writeln!(out, "{what}\n  hint: {hint}");
    }
    for part in &status.unreachable {
        let _ = writeln!(out, "no answer: {part}");
    }
    out
}
