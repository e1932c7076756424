//! Post-data after the catch-up: indexes built concurrently, foreign keys validated, triggers, views, one after the other beside
//! the running lane, as far as nothing that they need is missing.
//!
//! A step and its `done_at` are one transaction, except for what PostgreSQL runs in none: an index that was left invalid by
//! a crash is dropped and built again, one that is there is taken as done.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use service::Config;
use tokio_postgres::error::SqlState;

use super::steps::{Kind, runs_alone};
use super::waiting::{self, Obstacle, Rights, Verdict, Waiting};
use crate::{Database, Error};

/// How long a step waits for a lock before it gives the lane way.
const LOCK_WAIT: &str = "SET lock_timeout = '5s'";
const LOCK_TRIES: u32 = 12;

/// What this run cannot do, with the reason.
#[derive(Debug, Default)]
struct Left {
    tables: Vec<(Waiting, String, Obstacle)>,
    fires: Vec<Waiting>,
    hides: Vec<Waiting>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.fires.is_empty() && self.hides.is_empty()
    }
}

/// Runs what can be run. Steps of one object stop at its first error; the others go on. Says what is left, and why.
///
/// # Errors
/// `Steps` when any failed; each has said why and stands with its error in `dflux.schema_step`.
pub async fn run(config: &Config, target: &Database) -> Result<(), Error> {
    let rights = Rights { replicate: target.may_replicate().await? };
    let steps = waiting::steps(target, config).await?;
    let needed: Vec<&String> = steps.iter().flat_map(|step| &step.needs).collect();
    let obstacles = waiting::obstacles(target, config, &needed).await?;
    let (mut ready, mut left) = (Vec::new(), Left::default());
    for step in steps {
        match waiting::judge(&step, rights, &obstacles) {
            Verdict::Run => ready.push(step),
            Verdict::Table(table, obstacle) => left.tables.push((step, table, obstacle)),
            Verdict::Fires => left.fires.push(step),
            Verdict::Hides => left.hides.push(step),
        }
    }
    if rights.replicate && ready.iter().any(|step| step.kind == Kind::Cutover.name()) {
        renew_sessions(config, target).await?;
    }
    say_left(target, &left).await?;
    let failed = build(target, &ready).await?;
    if failed > 0 {
        return Err(Error::Steps { failed, total: ready.len() });
    }
    match (ready.len(), left.is_empty()) {
        (0, true) => println!("prepared: every step is done"),
        (0, false) => println!("prepared: every other step is done"),
        (done, true) => println!("prepared: {done} step(s) done, none is left"),
        (done, false) => println!("prepared: {done} step(s) done, the others wait"),
    }
    Ok(())
}

/// Returns how many failed.
async fn build(target: &Database, steps: &[Waiting]) -> Result<usize, Error> {
    if steps.is_empty() {
        return Ok(0);
    }
    let bar = ProgressBar::new(steps.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    target.batch("its lock timeout", LOCK_WAIT).await?;
    let mut failed: HashSet<(&str, &str, &str)> = HashSet::new();
    let mut failures = 0;
    for step in steps {
        let object = (step.schema.as_str(), step.table.as_str(), step.name.as_str());
        let title = step.title();
        bar.set_message(title.clone());
        if failed.contains(&object) {
            failures += 1;
        } else {
            let began = std::time::Instant::now();
            match patiently(target, step).await {
                Ok(()) => bar.suspend(|| println!("done   {title} ({:.1} s)", began.elapsed().as_secs_f64())),
                Err(error) => {
                    failures += 1;
                    failed.insert(object);
                    let text = service::report(&error, None);
                    let sql = "UPDATE dflux.schema_step SET error = $2 WHERE id = $1";
                    target.execute("writing down an error", sql, &[&step.id, &text]).await?;
                    bar.suspend(|| println!("failed {title}: {text}"));
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(failures)
}

/// The right may be newer than the consumer's sessions, which ask for it when they begin: they end, and it opens others. A
/// superuser's always had it.
async fn renew_sessions(config: &Config, target: &Database) -> Result<(), Error> {
    let lane = format!("{}/forward", config.migration.name);
    // With a URL that the consumer cannot read there is none.
    let Ok(sessions) = consumer::target::Sessions::new(&config.target.url, &lane) else { return Ok(()) };
    let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
        JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid WHERE a.application_name = $1
        AND a.datname = pg_catalog.current_database() AND NOT r.rolsuper";
    target.rows("ending the consumer's sessions", sql, &[&sessions.leader_name()]).await.map(|_| ())
}

/// Each step that is not built, and what would let it be.
async fn say_left(target: &Database, left: &Left) -> Result<(), Error> {
    let mut hints: BTreeMap<&str, Obstacle> = BTreeMap::new();
    for (step, table, obstacle) in &left.tables {
        println!("waits  {}: {} {}", step.title(), waiting::argument(table), obstacle.text());
        hints.insert(table, *obstacle);
    }
    for (table, obstacle) in hints {
        println!("hint: {}", obstacle.hint(table));
    }
    for step in left.fires.iter().chain(&left.hides) {
        println!("waits  {}", step.title());
    }
    if !left.fires.is_empty() {
        println!(
            "{} step(s) wait for the cutover: triggers, rules and foreign keys would fire on what the lane applies\nhint: {}",
            left.fires.len(),
            target.replicate_hint().await?
        );
    }
    if !left.hides.is_empty() {
        println!(
            "{} step(s) wait for the cutover: row security is forced there, and would refuse what the lane applies\nhint: {}",
            left.hides.len(),
            target.bypass_hint().await?
        );
    }
    Ok(())
}

/// Tries again where a lock was not to be had.
async fn patiently(target: &Database, step: &Waiting) -> Result<(), Error> {
    for _ in 1..LOCK_TRIES {
        match one(target, step).await {
            Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            outcome => return outcome,
        }
    }
    one(target, step).await
}

async fn one(target: &Database, step: &Waiting) -> Result<(), Error> {
    let what = format!("step {} of {}.{}", step.name, step.schema, step.table);
    let done = format!("UPDATE dflux.schema_step SET done_at = clock_timestamp(), error = NULL WHERE id = {}", step.id);
    if runs_alone(&step.statement) {
        let index = changelog::TableName::new(step.schema.clone(), step.name.clone()).quoted();
        let drop_half = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
        let there = built(target, step, &index).await?;
        if there == Some(false) {
            target.batch(&what, &drop_half).await?;
        }
        if there != Some(true)
            && let Err(error) = target.batch(&what, &step.statement).await
        {
            // What is left of it would be kept up to date by every write and used by none.
            if built(target, step, &index).await? == Some(false) {
                target.batch(&what, &drop_half).await?;
            }
            return Err(error);
        }
        return target.batch(&what, &done).await;
    }
    match target.transaction(&what, &format!("BEGIN; {}\n; {done}; COMMIT", step.statement)).await {
        // What the catalog does not show as a step's work (a policy, a rule) was made under its table's earlier name.
        Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::DUPLICATE_OBJECT) => {
            target.batch(&what, &done).await
        }
        outcome => outcome,
    }
}

/// Whether the step's index is valid, if its table has it: another one may have an index of that name.
async fn built(target: &Database, step: &Waiting, index: &str) -> Result<Option<bool>, Error> {
    let table = changelog::TableName::new(step.schema.clone(), step.table.clone()).quoted();
    let sql = "SELECT indisvalid FROM pg_catalog.pg_index
        WHERE indexrelid = to_regclass($1::text) AND indrelid = to_regclass($2::text)";
    let rows = target.rows("an index", sql, &[&index, &table]).await?;
    rows.first().map(|row| target.get(row, 0)).transpose()
}
