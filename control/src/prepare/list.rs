//! `dflux.schema_step` brought up to date with the source's schema, in the transaction that makes what is new of it.

use std::collections::{BTreeSet, HashMap, HashSet};

use changelog::TableName;
use service::Config;

use super::reconcile::{self, Change, Reach, Row, Seen, Shown};
use super::steps::{self, Kind, Step};
use super::waiting;
use crate::database::Parameter;
use crate::{Database, Error};

/// What was changed in the list.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Titles of steps that are to be run.
    pub added: Vec<String>,
    /// Titles of steps that the source has no more.
    pub removed: Vec<String>,
    /// Steps of the source's schema, by kind.
    pub counted: HashMap<&'static str, usize>,
}

/// Of a step, whether the target shows that its work is done. The index of a partitioned table is valid only with all its
/// parts; that of a partition may have another name than the source's.
const PRESENT: &str = "SELECT w.place FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
      AS w (s, t, name, yields, joins, place),
    LATERAL (SELECT CASE WHEN w.t <> '' THEN to_regclass(quote_ident(w.s) || '.' || quote_ident(w.t)) END AS oid) t
  WHERE CASE w.yields
      WHEN 'primary' THEN EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = t.oid AND contype = 'p')
      WHEN 'constraint' THEN EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = t.oid AND conname = w.name)
      WHEN 'validated' THEN
        EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = t.oid AND conname = w.name AND convalidated)
      WHEN 'trigger' THEN EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = t.oid AND tgname = w.name)
      WHEN 'index' THEN EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
        WHERE i.indrelid = t.oid AND x.relname = w.name AND (i.indisvalid OR x.relkind = 'I'))
      WHEN 'attached' THEN EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
        JOIN pg_catalog.pg_inherits h ON h.inhrelid = x.oid WHERE i.indrelid = t.oid AND x.relname = w.name)
      ELSE false END
    OR w.joins <> '' AND EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_inherits h ON h.inhrelid = i.indexrelid
      WHERE i.indrelid = t.oid AND h.inhparent = to_regclass(w.joins))";

/// `whole` says whether the steps are of all tables. The caller commits.
///
/// # Errors
/// `Sql`.
pub async fn refresh(
    config: &Config,
    worker: &Database,
    steps: &[Step],
    reach: Reach,
    whole: bool,
) -> Result<Changed, Error> {
    let rows = rows(config, worker).await?;
    let tables = steps.iter().map(|step| &step.table).chain(rows.iter().map(|row| &row.table));
    let tables: BTreeSet<String> = tables.filter(|table| !table.name.is_empty()).map(TableName::quoted).collect();
    let obstacles = waiting::obstacles(worker, config, &Vec::from_iter(&tables)).await?;
    let present = present(worker, steps).await?;
    let seen = Seen { rows: &rows, present: &present, obstacles: &obstacles, reach, whole };
    let mut changed = Changed::default();
    for step in steps {
        *changed.counted.entry(step.kind.name()).or_default() += 1;
    }
    for change in reconcile::changes(steps, &seen) {
        apply(config, worker, change, &mut changed).await?;
    }
    // An object of two steps is told once.
    changed.added.dedup();
    changed.removed.dedup();
    Ok(changed)
}

async fn rows(config: &Config, worker: &Database) -> Result<Vec<Row>, Error> {
    let sql = "SELECT id, kind, coalesce(schema_name, ''), coalesce(table_name, ''), coalesce(name, ''), statement,
        coalesce(needs, '{}'), done_at IS NOT NULL FROM dflux.schema_step WHERE migration = $1 ORDER BY id";
    let rows = worker.rows("the list of steps", sql, &[&config.migration.name]).await?;
    rows.iter()
        .map(|row| {
            Ok(Row {
                id: worker.get(row, 0)?,
                kind: worker.get(row, 1)?,
                table: TableName::new(worker.get::<String>(row, 2)?, worker.get::<String>(row, 3)?),
                name: worker.get(row, 4)?,
                statement: worker.get(row, 5)?,
                needs: worker.get(row, 6)?,
                done: worker.get(row, 7)?,
            })
        })
        .collect()
}

async fn present(worker: &Database, steps: &[Step]) -> Result<HashSet<Shown>, Error> {
    let with_posts = |step: &Step| std::iter::once(step.clone()).chain(step.posts()).collect::<Vec<_>>();
    let asked: Vec<Step> = steps.iter().flat_map(with_posts).collect();
    let schemas: Vec<&str> = asked.iter().map(|step| step.table.schema.as_str()).collect();
    let tables: Vec<&str> = asked.iter().map(|step| step.table.name.as_str()).collect();
    let names: Vec<&str> = asked.iter().map(|step| step.name.as_str()).collect();
    let yields: Vec<&str> = asked.iter().map(|step| step.yields.name()).collect();
    let joins: Vec<String> =
        asked.iter().map(|step| step.joins.as_ref().map_or(String::new(), TableName::quoted)).collect();
    let parameters: [Parameter<'_>; 5] = [&schemas, &tables, &names, &yields, &joins];
    let rows = worker.rows("what is done of the steps", PRESENT, &parameters).await?;
    let places = rows.iter().map(|row| worker.get::<i64>(row, 0)).collect::<Result<HashSet<i64>, _>>()?;
    let there = asked.into_iter().zip(1_i64..).filter(|(_, place)| places.contains(place));
    Ok(there.map(|(step, _)| (step.table, step.name, step.yields)).collect())
}

async fn apply(config: &Config, worker: &Database, change: Change, changed: &mut Changed) -> Result<(), Error> {
    match change {
        Change::Add { step, done } => {
            let sql = "INSERT INTO dflux.schema_step (migration, kind, schema_name, table_name, name, statement, needs, done_at)
                SELECT $1, $2, $3, $4, $5, $6, $7, CASE WHEN $8 THEN now() END";
            let needs: Vec<String> = step.needs.iter().map(TableName::quoted).collect();
            let parameters: [Parameter<'_>; 8] = [
                &config.migration.name,
                &step.kind.name(),
                &step.table.schema,
                &step.table.name,
                &step.name,
                &step.statement,
                &needs,
                &done,
            ];
            worker.execute(&format!("writing down step {}", step.title()), sql, &parameters).await?;
            if !done {
                changed.added.push(step.title());
            }
        }
        Change::Finish { id } => {
            let sql = "UPDATE dflux.schema_step SET done_at = now(), error = NULL WHERE id = $1 AND done_at IS NULL";
            worker.execute("writing down what is done", sql, &[&id]).await?;
        }
        Change::Renew { id, needs, last } => {
            let sql = "UPDATE dflux.schema_step SET needs = $2, id = CASE WHEN $3 THEN
                nextval(pg_catalog.pg_get_serial_sequence('dflux.schema_step', 'id')) ELSE id END WHERE id = $1 AND done_at IS NULL";
            worker.execute("writing down what a step needs", sql, &[&id, &needs, &last]).await?;
        }
        Change::Remove(row) => {
            // One that was run meanwhile stays as done.
            let sql = "DELETE FROM dflux.schema_step WHERE id = $1 AND done_at IS NULL";
            if worker.execute("removing a step", sql, &[&row.id]).await? > 0 {
                changed.removed.push(steps::title(&row.table, &row.name));
            }
        }
    }
    Ok(())
}

/// Beside a running lane, what is new by its name; before it, how many they are.
pub fn say(changed: &Changed, running: bool) {
    let count = |kind: Kind| changed.counted.get(kind.name()).copied().unwrap_or(0);
    println!(
        "target: {} key step(s) for after the load, {} step(s) for after the catch-up ({} new)",
        count(Kind::Key),
        count(Kind::Post) + count(Kind::Cutover),
        changed.added.len()
    );
    for title in changed.added.iter().filter(|_| running) {
        println!("added  {title}");
    }
    for title in &changed.removed {
        println!("removed {title}: the source has it no more");
    }
}
