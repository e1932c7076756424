//! Post-data after the catch-up: indexes built concurrently, foreign keys validated, triggers, views, one after the other beside
//! the running lane.
//!
//! A step and its `done_at` are one transaction, except for what PostgreSQL runs in none: an index that was left invalid by
//! a crash is dropped and built again, one that is there is taken as done.

use std::collections::HashSet;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use service::Config;

use super::steps::runs_alone;
use crate::{Database, Error};

#[derive(Debug)]
struct Waiting {
    id: i64,
    schema: String,
    table: String,
    name: String,
    statement: String,
}

const WAITING: &str = "SELECT id, coalesce(schema_name, ''), coalesce(table_name, ''), coalesce(name, ''), statement
    FROM dflux.schema_step WHERE migration = $1 AND kind = ANY ($2) AND done_at IS NULL ORDER BY id";
const ALL: [&str; 2] = ["post", "cutover"];
/// How long a step waits for a lock before it gives the lane way.
const LOCK_WAIT: &str = "SET lock_timeout = '5s'";
const LOCK_TRIES: u32 = 12;

/// Number of steps that are not done.
///
/// # Errors
/// `Sql`.
pub async fn waiting(target: &Database, config: &Config) -> Result<usize, Error> {
    Ok(steps(target, config, &ALL).await?.len())
}

async fn steps(target: &Database, config: &Config, kinds: &[&str]) -> Result<Vec<Waiting>, Error> {
    let rows = target.rows("the steps that wait", WAITING, &[&config.migration.name, &kinds]).await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                id: target.get(row, 0)?,
                schema: target.get(row, 1)?,
                table: target.get(row, 2)?,
                name: target.get(row, 3)?,
                statement: target.get(row, 4)?,
            })
        })
        .collect()
}

/// Runs what is left. Steps of one object stop at its first error; the others go on.
///
/// # Errors
/// `Steps` when any failed; each has said why and stands with its error in `dflux.schema_step`.
pub async fn run(config: &Config, target: &Database) -> Result<(), Error> {
    let granted = target.may_replicate().await?;
    let steps = steps(target, config, if granted { &ALL } else { &ALL[..1] }).await?;
    if granted {
        renew_sessions(config, target).await?;
    } else {
        say_held_back(config, target).await?;
    }
    if steps.is_empty() {
        println!("prepared: every {} is done", if granted { "step" } else { "other step" });
        return Ok(());
    }
    let total = steps.len();
    let bar = ProgressBar::new(total as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    target.batch("its lock timeout", LOCK_WAIT).await?;
    let mut failed: HashSet<(String, String, String)> = HashSet::new();
    let mut failures = 0;
    for step in &steps {
        let object = (step.schema.clone(), step.table.clone(), step.name.clone());
        let title = format!("{}.{} {}", step.schema, step.table, step.name);
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
    if failures > 0 {
        return Err(Error::Steps { failed: failures, total });
    }
    println!("prepared: {total} step(s) done");
    Ok(())
}

/// The right may be newer than the consumer's sessions, which ask for it when they begin: they end, and it opens others. A
/// superuser's always had it.
async fn renew_sessions(config: &Config, target: &Database) -> Result<(), Error> {
    let lane = format!("{}/forward", config.migration.name);
    // With a URL that the consumer cannot read there is none.
    let Ok(sessions) = consumer::target::Sessions::new(&config.target.url, &lane) else { return Ok(()) };
    if steps(target, config, &ALL[1..]).await?.is_empty() {
        return Ok(());
    }
    let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
        JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid WHERE a.application_name = $1
        AND a.datname = pg_catalog.current_database() AND NOT r.rolsuper";
    target.rows("ending the consumer's sessions", sql, &[&sessions.leader_name()]).await.map(|_| ())
}

/// What is not built, because it would fire on what the lane applies.
async fn say_held_back(config: &Config, target: &Database) -> Result<(), Error> {
    let held = steps(target, config, &ALL[1..]).await?;
    for step in &held {
        println!("waits  {}.{} {}", step.schema, step.table, step.name);
    }
    if !held.is_empty() {
        println!(
            "{} step(s) wait for the cutover: triggers, rules and foreign keys would fire on what the lane applies\nhint: {}",
            held.len(),
            target.replicate_hint().await?
        );
    }
    Ok(())
}

/// Tries again where a lock was not to be had.
async fn patiently(target: &Database, step: &Waiting) -> Result<(), Error> {
    for _ in 1..LOCK_TRIES {
        match one(target, step).await {
            Err(Error::Sql { source, .. })
                if source.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => {}
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
        let sql = "SELECT indisvalid FROM pg_catalog.pg_index WHERE indexrelid = to_regclass($1::text)";
        let there = match target.rows(&what, sql, &[&index]).await?.first() {
            Some(row) => Some(target.get::<bool>(row, 0)?),
            None => None,
        };
        let drop_half = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
        if there == Some(false) {
            target.batch(&what, &drop_half).await?;
        }
        if there != Some(true)
            && let Err(error) = target.batch(&what, &step.statement).await
        {
            // What is left of it would be kept up to date by every write and used by none.
            target.batch(&what, &drop_half).await?;
            return Err(error);
        }
        return target.batch(&what, &done).await;
    }
    let outcome = target.batch(&what, &format!("BEGIN; {}\n; {done}; COMMIT", step.statement)).await;
    if outcome.is_err() {
        target.batch("ending a transaction", "ROLLBACK").await?;
    }
    outcome
}
