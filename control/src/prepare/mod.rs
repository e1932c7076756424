//! `dflux prepare`: makes both databases ready, and later builds what was left for after the catch-up.
//!
//! ```text
//! first run, in this order                                          undone when a later one fails
//!   target: schema dflux, and what will be changed on the source    dropped again, if this run made it
//!   target: pre-data, the list of later steps (open transaction)    rolled back
//!   source: replica identities, publication                         restored, dropped
//!   target: commit
//! later runs: tables that are new; and once the lane is level with the source, the `post` and `cutover` steps
//! ```
//!
//! Of a target that follows (`[target] follows`) nothing on the source is changed: that is the other target's.
//!
//! What will be changed on the source is written down before it is changed, so that `dflux cleanup` knows it whatever happens. What
//! exists on the target already is left as it is: `assess` has judged whether it fits.

pub mod archive;
pub mod dump;
mod post;
mod schema;
pub mod select;
pub mod source;
pub mod steps;
pub mod waiting;

use service::Config;

use crate::error::Exit;
use crate::tables::Table;
use crate::{Database, Error, assess, finding, tables};

/// # Errors
/// `Blocked` when `assess` finds what would make it fail; then nothing was changed.
pub async fn run(config: &Config) -> Result<Exit, Error> {
    let seen = assess::check(config).await;
    let findings = seen.findings.clone().sorted();
    let blockers = finding::blockers(&findings);
    let (Some(source), Some(target)) = (&seen.source, &seen.target) else {
        print!("{}", finding::render(&findings));
        return Err(Error::Blocked { what: "prepare", count: blockers });
    };
    if blockers > 0 {
        print!("{}", finding::render(&findings));
        return Err(Error::Blocked { what: "prepare", count: blockers });
    }
    lock(target, config).await?;
    let lane = crate::status::lane::read(target, config).await?;
    let selected = tables::selected(&seen.tables, &config.migration);
    if selected.is_empty() {
        return Err(Error::NoTables { patterns: config.migration.tables.clone() });
    }
    let held = tables::held(target, &selected).await?;
    let compared = tables::compare(&selected, &held);
    if lane.is_none() || !compared.missing.is_empty() {
        first(config, (source, target), &seen, &compared.wanted, lane.is_some()).await?;
    }
    if !config.target.follows {
        source::tell_changes(config, source).await?;
    }
    let Some(lane) = lane else {
        let services = if config.target.follows { "the consumer" } else { "the producer and the consumer" };
        println!("prepared: start {services}, then dflux status --watch");
        return Ok(Exit::Done);
    };
    let (now, _, _) = crate::status::lane::read_source(source, &config.migration.slot, None).await?;
    let lag_ms = lane.lag_ms(now);
    for table in crate::status::unpublished(source, config).await? {
        println!("source: {table} is not published, so it has no rows on the target\nhint: dflux resync {table}");
    }
    if lane.is_level(lag_ms) {
        post::run(config, target).await?;
    } else {
        let (phase, waiting) = (lane.phase(), waiting::steps(target, config).await?.len());
        let behind = lag_ms.map_or(String::new(), |lag| format!(", {:.0} s behind", lag / 1000.0));
        println!(
            "the lane is {phase}{behind}: {waiting} step(s) wait until it is level with the source; run dflux prepare again then"
        );
    }
    Ok(Exit::Done)
}

/// One at a time. The lock is the session's: it goes with the process.
async fn lock(target: &Database, config: &Config) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('dflux prepare ' || $1::text, 0))";
    let row = target.row("taking the lock of prepare", sql, &[&config.migration.name]).await?;
    if target.get(&row, 0)? { Ok(()) } else { Err(Error::Busy { migration: config.migration.name.clone() }) }
}

async fn first(
    config: &Config,
    (source, target): (&Database, &Database),
    seen: &assess::Seen,
    selected: &[&Table],
    running: bool,
) -> Result<(), Error> {
    let folder = dump::programs(seen.source_major).await?;
    println!("reading the schema of the source with {}", folder.join("pg_dump").display());
    let dump = dump::read(&folder, &config.source.url, &seen.tables, selected).await?;
    let plan = schema::plan(source, target, dump, selected).await?;
    let worker = Database::connect("target", &config.target.url).await?;
    let made_schema = !target.has("dflux.lane").await?;
    let recorded = source::record(config, (source, target)).await?;
    let outcome = async {
        let counted = schema::make(config, &worker, &plan).await?;
        // The publication of a lane that runs is the producer's: a table added there needs a copy of its own.
        let changed = if running || config.target.follows { None } else { Some(source::change(config, source).await?) };
        worker.batch("committing the schema", "COMMIT").await?;
        Ok((counted, changed))
    }
    .await;
    match outcome {
        Ok((counted, changed)) => {
            schema::say(&plan, &counted);
            if let Some(changed) = changed {
                source::say(config, &changed);
            }
            // Before the lane's birth the backfill reads them all.
            if running { source::say_filled(source, &counted.joined).await } else { Ok(()) }
        }
        Err(error) => {
            // Leaves no half: the first error is what counts.
            let _ = worker.client.batch_execute("ROLLBACK").await;
            drop(worker);
            if let Err(second) = source::undo(config, (source, target), &recorded, made_schema).await {
                eprintln!("undoing what was done failed too: {}", service::report(&second, None));
            }
            Err(error)
        }
    }
}
