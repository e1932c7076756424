//! `dflux assess`: everything that stands in the way of a migration, at once, with its remedy; how long it will take; and
//! the plan that follows. Changes nothing, anywhere.
//!
//! A check that cannot be made is a finding too, so a wrong password of the target does not hide a missing right on the
//! source. The judgments are pure functions beside the queries that feed them; `estimate` is pure as a whole.

pub mod estimate;
mod publication;
mod render;
mod row_security;
mod sample;
mod sequences;
pub mod source;
pub mod target;
mod transport;

use std::path::Path;

use changelog::TableName;
use serde::Serialize;
use service::{Config, Hint};

use crate::error::Exit;
use crate::finding::{self, Finding, Findings};
use crate::tables::{self, Table};
use crate::{Database, Error};

/// One selected table in the report.
#[derive(Clone, Debug, Serialize)]
pub struct TableSize {
    pub table: String,
    pub estimated_rows: u64,
    pub bytes: u64,
}

/// What `--json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub verdict: &'static str,
    pub findings: Vec<Finding>,
    pub tables: Vec<TableSize>,
    pub measured: Option<estimate::Measured>,
    pub plan: Option<estimate::Plan>,
}

/// What the checks saw, for `prepare`, which goes on from there.
#[derive(Debug, Default)]
pub struct Seen {
    pub findings: Findings,
    pub source: Option<Database>,
    pub target: Option<Database>,
    pub tables: Vec<Table>,
    pub source_major: i32,
}

/// Prints the report, and writes it as JSON where a file is named.
///
/// # Errors
/// `Write`. What cannot be checked is a finding and no error.
pub async fn run(config: &Config, json: Option<&Path>) -> Result<Exit, Error> {
    let mut seen = check(config).await;
    let mut measured = None;
    if let Some(source) = &seen.source {
        match measure(config, source, &seen.tables).await {
            Ok(rates) => measured = Some(rates),
            Err(error) => seen.findings.failed("sample", &error, error.hint()),
        }
    }
    let plan = measured.as_ref().map(estimate::plan);
    if let Some(plan) = &plan {
        advise(config, plan, &mut seen.findings);
    }
    let mut sizes: Vec<TableSize> = tables::selected(&seen.tables, &config.migration)
        .iter()
        .filter(|table| table.holds_rows())
        .map(|table| TableSize {
            table: table.name.to_string(),
            estimated_rows: table.rows(),
            bytes: table.bytes.max(0) as u64,
        })
        .collect();
    sizes.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    let findings = seen.findings.sorted();
    let exit = finding::exit(&findings);
    let verdict = if exit == Exit::Done { "ready" } else { "blocked" };
    let report = Report { verdict, findings, tables: sizes, measured, plan };
    print!("{}", render::text(&report));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        std::fs::write(path, text).map_err(|source| Error::Write { path: path.display().to_string(), source })?;
    }
    Ok(exit)
}

async fn measure(config: &Config, source: &Database, all: &[Table]) -> Result<estimate::Measured, Error> {
    let reader = Database::connect("source", &config.source.url).await?;
    sample::measure(source, &reader, &tables::selected(all, &config.migration)).await
}

/// All checks; each failure is a finding.
pub async fn check(config: &Config) -> Seen {
    let mut seen = Seen::default();
    let (source, target) =
        tokio::join!(Database::connect("source", &config.source.url), Database::connect("target", &config.target.url));
    seen.source = kept(source, "source", &mut seen.findings);
    seen.target = kept(target, "target", &mut seen.findings);
    let mut findings = std::mem::take(&mut seen.findings);
    let mut servers = (None, None);
    let mut lane = None;
    if let Some(target) = &seen.target {
        servers.1 = kept(source::server(target, &mut findings).await, "target", &mut findings);
        let outcome = target::privileges(target, &mut findings).await;
        kept(outcome, "target", &mut findings);
        lane = kept(target::lane_slot(target, config).await, "target", &mut findings).flatten();
    }
    if let Some(source) = &seen.source {
        servers.0 = kept(source::server(source, &mut findings).await, "source", &mut findings);
        seen.tables = kept(tables::read(source).await, "source", &mut findings).unwrap_or_default();
        let outcome =
            check_source(config, source, &seen.tables, lane.is_some() || config.target.follows, &mut findings).await;
        kept(outcome, "source", &mut findings);
    }
    if let (Some(source), Some(target)) = &servers {
        seen.source_major = source.major();
        source::idle_timeout(source, &mut findings);
        target::compare(source, target, &mut findings);
    }
    if let (Some(source), Some(target)) = (&seen.source, &seen.target) {
        let outcome = check_pair(config, (source, target), &seen.tables, lane.is_none(), &mut findings).await;
        kept(outcome, "target", &mut findings);
    }
    let brokers = transport::brokers(config, &mut findings).await;
    kept(brokers, "kafka", &mut findings);
    transport::registry(config, &mut findings).await;
    seen.findings = findings;
    seen
}

fn kept<T>(outcome: Result<T, Error>, check: &'static str, findings: &mut Findings) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            findings.failed(check, &error, error.hint());
            None
        }
    }
}

async fn check_source(
    config: &Config,
    source: &Database,
    all: &[Table],
    ours: bool,
    findings: &mut Findings,
) -> Result<(), Error> {
    source::patterns(all, &sequences::names(source).await?, config, findings);
    source::kinds(all, config, findings);
    source::replication(source, config, findings).await?;
    source::privileges(source, &tables::selected(all, &config.migration), findings).await?;
    source::slot(source, config, ours, findings).await?;
    publication::existing(source, config, all, findings).await?;
    publication::selected(source, config, findings).await?;
    sequences::followed(source, config, findings).await?;
    source::large_objects(source, findings).await?;
    source::activity(source, findings).await
}

async fn check_pair(
    config: &Config,
    (source, target): (&Database, &Database),
    all: &[Table],
    unborn: bool,
    findings: &mut Findings,
) -> Result<(), Error> {
    let selected = tables::selected(all, &config.migration);
    let names: Vec<&TableName> = selected.iter().map(|table| &table.name).collect();
    target::extensions(source, target, &selected, findings).await?;
    let wanted = target::columns(source, &names).await?;
    let held = target::columns(target, &names).await?;
    target::shapes(&wanted, &held, !unborn, findings);
    row_security::writing((source, target), &names, findings).await?;
    if unborn {
        let holding = selected.iter().filter(|table| table.holds_rows() && held.contains_key(&table.name));
        let holding: Vec<&TableName> = holding.map(|table| &table.name).collect();
        target::empty(target, &holding, findings).await?;
    }
    Ok(())
}

/// What the plan asks for and the configuration does not say.
fn advise(config: &Config, plan: &estimate::Plan, findings: &mut Findings) {
    let size = estimate::size;
    if plan.lanes > 1 {
        findings.warning(
            "lanes",
            format!("the source writes more than one lane applies ({:.0} changes/s with room to catch up)", estimate::LANE_CHANGES_PER_SECOND * 0.7),
            format!("split it into {} migrations by groups of tables that no foreign key joins: one dflux.toml each, with its own name, slot, publication and tables", plan.lanes),
        );
    }
    findings.note(
        "disk",
        format!(
            "room needed: target about {}, Kafka about {} per replica, source WAL up to {} if Kafka is away for hours (free space is not visible by SQL)",
            size(plan.target_bytes),
            size(plan.kafka_bytes),
            size(plan.wal_keep_bytes)
        ),
        "df -h on the data folders of the target, the brokers and the source",
    );
    if config.producer.backfill_workers < plan.backfill_workers && plan.shape != estimate::Shape::Small {
        findings.note(
            "workers",
            format!(
                "[producer] backfill_workers is {}; {} fit this size",
                config.producer.backfill_workers, plan.backfill_workers
            ),
            format!(
                "set backfill_workers = {0} in [producer] and load_workers = {0} in [consumer]",
                plan.backfill_workers
            ),
        );
    }
    if plan.batches {
        findings.note(
            "batches",
            "the statistics show loads in batches: lag grows during each and shrinks after it",
            "begin the backfill after a batch, cut over well before the next",
        );
    }
}
