//! `dflux prepare`: makes both databases ready, and later builds what was left for after the catch-up.
//!
//! ```text
//! first run, in this order                                          undone when a later one fails
//!   target: schema dflux, and what will be changed on the source    dropped again, if this run made it
//!   target: pre-data, the list of later steps (open transaction)    rolled back
//!   source: replica identities, publication                         restored, dropped
//!   target: commit
//! later runs, beside the lane
//!   source: the schema again, and then the end of its WAL
//!   wait until the lane has applied all before that end, for a while
//!   target: pre-data that it lacks, the list of steps as the source has them now (one transaction)
//!   if the lane has got there: the `post` and `cutover` steps
//! ```
//!
//! What was read of the schema holds for the source's rows as they were then, not as they were before; and a table that is
//! missing may be on its way under its new name. So the schema is read first, and what follows from it waits for the lane.
//!
//! Of a target that follows (`[target] follows`) nothing on the source is changed: that is the other target's.
//!
//! What will be changed on the source is written down before it is changed, so that `dflux cleanup` knows it whatever happens. What
//! exists on the target already is left as it is: `assess` has judged whether it fits.

pub mod archive;
pub mod checks;
pub mod dump;
mod level;
mod list;
mod post;
pub mod reconcile;
mod schema;
pub mod select;
pub mod source;
pub mod steps;
pub mod waiting;

use std::collections::{HashMap, HashSet};

use changelog::{Lane as Direction, TableName, Topics};
use producer::backfill::ledger::Ledger;
use service::Config;

use self::reconcile::Reach;
use crate::error::Exit;
use crate::status::lane::Lane;
use crate::tables::Table;
use crate::topics::Kafka;
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
    let selected = tables::selected(&seen.tables, &config.migration);
    if selected.is_empty() {
        return Err(Error::NoTables { patterns: config.migration.tables.clone() });
    }
    let schema = read(config, (source, target), &seen, &selected).await?;
    let end = level::end(source).await?;
    let (reach, lane) = level::wait(config, target, end).await?;
    let topic = Topics::new(&config.migration.name, Direction::Forward).ledger();
    let records = if lane.is_some() { Kafka::new(&config.kafka).ledger(&topic).await? } else { Vec::new() };
    let ledger = Ledger::of(records);
    // The lane may have brought tables meanwhile. Nothing slow from here on: it may go on doing so.
    let held = tables::held(target, &selected).await?;
    let compared = tables::compare(&selected, &held);
    let early = match &lane {
        Some(lane) => early(config, source, (lane, reach), (&compared, &ledger)).await?,
        None => HashSet::new(),
    };
    let wanted: Vec<&Table> = compared.wanted.into_iter().filter(|table| !early.contains(&table.oid)).collect();
    let mut plan = schema::plan(schema, &wanted);
    plan.there = wanted.iter().map(|table| table.oid).collect();
    plan.there.retain(|oid| compared.missing.iter().all(|missing| missing.oid != *oid));
    make(config, (source, target), &plan, reach, early.is_empty()).await?;
    if !config.target.follows {
        source::tell_changes(config, source).await?;
    }
    let Some(lane) = lane else {
        let services = if config.target.follows { "the consumer" } else { "the producer and the consumer" };
        println!("prepared: start {services}, then dflux status --watch");
        return Ok(Exit::Done);
    };
    for table in crate::status::unpublished(source, config).await? {
        match config.migration.join_new_tables {
            true => println!("source: {table} is not published yet: it joins while the producer runs"),
            false => {
                println!(
                    "source: {table} is not published, so it has no rows on the target\nhint: dflux resync {table}"
                )
            }
        }
    }
    if reach == Reach::Level {
        post::run(config, target).await?;
    } else {
        let (now, _, _) = crate::status::lane::read_source(source, &config.migration.slot, None).await?;
        let (phase, waiting) = (lane.phase(), waiting::steps(target, config).await?.len());
        let behind = lane.lag_ms(now).map_or(String::new(), |lag| format!(", {:.0} s behind", lag / 1000.0));
        println!(
            "the lane is {phase}{behind}: {waiting} step(s) wait until it has applied what the source had committed at {end}; \
             run dflux prepare again then"
        );
    }
    Ok(Exit::Done)
}

async fn read(
    config: &Config,
    (source, target): (&Database, &Database),
    seen: &assess::Seen,
    selected: &[&Table],
) -> Result<schema::Schema, Error> {
    let folder = dump::programs(seen.source_major).await?;
    println!("reading the schema of the source with {}", folder.join("pg_dump").display());
    let dump = dump::read(&folder, &config.source.url, &seen.tables, selected).await?;
    schema::read(source, target, dump).await
}

/// Tables that the target lacks and that are not to be made: one that was would be in the way of a rename that the lane has
/// applied already, or is to apply. That is so for those that the source calls otherwise by now; and beside a lane that is past
/// its load but not level, for those that are published. A lane that has stopped may want the table itself.
async fn early(
    config: &Config,
    source: &Database,
    (lane, reach): (&Lane, Reach),
    (compared, ledger): (&tables::Compared<'_>, &Ledger),
) -> Result<HashSet<u32>, Error> {
    let coming = reach == Reach::Behind && matches!(lane.phase.as_str(), "exact" | "tolerant");
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
          JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $2 AND r.prrelid = c.oid)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)";
    let oids: Vec<u32> = compared.missing.iter().map(|table| table.oid).collect();
    let rows = source.rows("tables as it calls them now", sql, &[&oids, &config.migration.publication]).await?;
    let mut called = HashMap::new();
    for row in &rows {
        let name = TableName::new(source.get::<String>(row, 1)?, source.get::<String>(row, 2)?);
        called.insert(source.get::<u32>(row, 0)?, (name, source.get::<bool>(row, 3)?));
    }
    let mut early = HashSet::new();
    for table in &compared.missing {
        let why = match called.get(&table.oid) {
            Some((name, _)) if *name != table.name => "the source has renamed it meanwhile",
            None => "the source has dropped it meanwhile",
            Some((_, true)) if coming && table.parent.is_none() => "it is published, so the lane may bring it",
            // Empty, it would take the events of a table whose rows the target has under another name.
            Some((_, true)) if table.parent.is_none() && !ledger.knows(&table.name) => {
                "it is published, and was never copied under this name: if the source has renamed it, rename it on the target; \
                 else dflux resync brings it"
            }
            Some(_) => continue,
        };
        println!("target: {} is not made yet: {why}", table.name);
        early.insert(table.oid);
    }
    Ok(early)
}

/// One at a time. The lock is the session's: it goes with the process.
async fn lock(target: &Database, config: &Config) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('dflux prepare ' || $1::text, 0))";
    let row = target.row("taking the lock of prepare", sql, &[&config.migration.name]).await?;
    if target.get(&row, 0)? { Ok(()) } else { Err(Error::Busy { migration: config.migration.name.clone() }) }
}

/// What is new of the schema, and the list of steps. `whole` says whether the plan is of all tables.
async fn make(
    config: &Config,
    (source, target): (&Database, &Database),
    plan: &schema::Plan,
    reach: Reach,
    whole: bool,
) -> Result<(), Error> {
    let running = reach != Reach::Unborn;
    let worker = Database::connect("target", &config.target.url).await?;
    let made_schema = !target.has("dflux.lane").await?;
    let recorded = source::record(config, (source, target)).await?;
    let outcome = async {
        let counted = schema::make(&worker, plan, running).await?;
        let listed = list::refresh(config, &worker, &plan.steps, reach, whole).await?;
        // The publication of a lane that runs is the producer's: a table added there needs a copy of its own.
        let changed = if running || config.target.follows { None } else { Some(source::change(config, source).await?) };
        worker.batch("committing the schema", "COMMIT").await?;
        Ok((counted, listed, changed))
    }
    .await;
    match outcome {
        Ok((counted, listed, changed)) => {
            schema::say(plan, &counted);
            list::say(&listed, running);
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
