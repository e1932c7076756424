//! `dflux resync TABLE --rows`: exactly the rows that the validator finds to be wrong are read again from the source, by the lane itself
//! and in its order, and checked again. The request is rows of `dflux.incomplete` in the target.

use std::time::{Duration, Instant};

use changelog::{Lane as Direction, TableName};
use service::{Config, Shutdown};
use validator::pipeline::{DIVERGENCE, Validator};
use validator::report::TableReport;
use validator::verdict::Verdict;

use crate::error::Exit;
use crate::resync::published;
use crate::status::lane;
use crate::{Database, Error};

const LOOKS_EVERY: Duration = Duration::from_millis(200);
/// A check names so many rows at most; what it named is mended, and the next one names others.
const PASSES_MAX: usize = 20;

/// # Errors
/// A refusal when the table is not part of a running migration; `NoKey`, `RowsUnchecked`, `RowsUnnamed`, `RowsRemain` when it does not come to
/// match, `RowsSlow` after `limit`.
pub async fn run(config: &Config, argument: &str, limit: Duration) -> Result<Exit, Error> {
    let ends = Instant::now() + limit;
    let target = Database::connect("target", &config.target.url).await?;
    let published = published(config, argument).await?;
    let table = published.name.clone();
    if published.key.is_empty() {
        return Err(Error::NoKey { table });
    }
    if lane::read(&target, config).await?.is_none() {
        return Err(Error::NoLane { migration: config.migration.name.clone(), what: "resync" });
    }
    let lane = changelog::origin::lane_name(&config.migration.name, Direction::Forward);
    let mut validator = Validator::new(config.clone(), Shutdown::default())?;
    let mut read_again = 0;
    for _ in 0..PASSES_MAX {
        let row = target.row("the divergences", "SELECT coalesce(max(id), 0) FROM dflux.divergence", &[]).await?;
        let newest: i64 = target.get(&row, 0)?;
        let report = validator.check(Some(&table.to_string())).await?;
        let mut found = report.tables.into_iter();
        let Some(found) = found.find(|found| found.table == table.to_string()) else { break };
        match found.verdict {
            Verdict::Match => {
                println!("checked: {table} matches; {read_again} row(s) were read again");
                return Ok(Exit::Done);
            }
            Verdict::Inconclusive | Verdict::Error => {
                let reason = found.reason.unwrap_or_default();
                return Err(Error::RowsUnchecked { table, reason });
            }
            Verdict::Mismatch => {}
        }
        if found.wrong_rows.is_empty() && only_divergences(&found) {
            forgive(&target, &lane, &table, newest).await?;
            continue;
        }
        if found.wrong_rows.is_empty() {
            return Err(Error::RowsUnnamed { table, causes: causes(&found) });
        }
        println!("found: {} row(s) of {table} that differ", found.wrong_rows.len());
        ask(&target, &lane, &table, &found).await?;
        read(&target, &lane, &table, ends).await?;
        read_again += found.wrong_rows.len();
    }
    Err(Error::RowsRemain { table, read_again })
}

/// Whether every row was compared and is right, and only changes that once found no row are held against the table.
fn only_divergences(found: &TableReport) -> bool {
    found.reason.is_none() && found.findings.iter().all(|finding| finding.note || finding.cause == DIVERGENCE)
}

/// The rows that those changes missed are there now.
async fn forgive(target: &Database, lane: &str, table: &TableName, newest: i64) -> Result<(), Error> {
    let sql = "WITH forgiven AS (DELETE FROM dflux.divergence WHERE (lane, schema_name, table_name) = ($1, $2, $3) AND id <= $4 RETURNING 1)
        UPDATE dflux.lane SET diverged = greatest(diverged - (SELECT count(*) FROM forgiven), 0) WHERE lane = $1";
    target.execute("forgetting what found no row", sql, &[&lane, &table.schema, &table.name, &newest]).await?;
    println!("mended: changes of {table} that once found no row (dflux.divergence); every row is right now");
    Ok(())
}

fn causes(found: &TableReport) -> String {
    let names = found.findings.iter().filter(|finding| !finding.note).map(|finding| match &finding.column {
        Some(column) => format!("{} of column {column}", finding.cause),
        None => finding.cause.clone(),
    });
    names.collect::<Vec<_>>().join(", ")
}

async fn ask(target: &Database, lane: &str, table: &TableName, found: &TableReport) -> Result<(), Error> {
    let keys = serde_json::json!(found.wrong_rows).to_string();
    let sql = "INSERT INTO dflux.incomplete (lane, schema_name, table_name, key, asked_at)
        SELECT $1, $2, $3, ARRAY(SELECT part FROM jsonb_array_elements_text(key) WITH ORDINALITY AS p (part, place) ORDER BY place), now()
        FROM jsonb_array_elements($4::text::jsonb) AS key ON CONFLICT DO NOTHING";
    target
        .execute("asking for rows to be read again", sql, &[&lane, &table.schema, &table.name, &keys])
        .await
        .map(|_| ())
}

/// Returns when they are in the target, and the lane is as far as they are.
async fn read(target: &Database, lane: &str, table: &TableName, ends: Instant) -> Result<(), Error> {
    let sql = "SELECT NOT EXISTS (SELECT FROM dflux.incomplete WHERE (lane, schema_name, table_name) = ($1, $2, $3))
        AND phase = 'exact' AND commit_lsn >= exact_from FROM dflux.lane WHERE lane = $1";
    loop {
        let rows = target.rows("waiting for rows", sql, &[&lane, &table.schema, &table.name]).await?;
        let there = rows.first().map_or(Ok(None), |row| target.get::<Option<bool>>(row, 0))?;
        if there == Some(true) {
            return Ok(());
        }
        if Instant::now() >= ends {
            // Nobody reads them at some later moment unasked.
            let sql = "DELETE FROM dflux.incomplete WHERE (lane, schema_name, table_name) = ($1, $2, $3) AND asked_at IS NOT NULL";
            target.execute("giving up", sql, &[&lane, &table.schema, &table.name]).await?;
            return Err(Error::RowsSlow { table: table.clone() });
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}
