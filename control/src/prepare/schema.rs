//! Pre-data on the target, and post-data as rows of `dflux.schema_step`, in one transaction that the caller commits.

use std::collections::{HashMap, HashSet};

use changelog::TableName;
use service::Config;

use super::archive::Entry;
use super::dump::Dump;
use super::select::{self, World};
use super::steps::{self, Catalog, Constraint, Index, Step};
use crate::tables::Table;
use crate::{Database, Error};

/// What will be made.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub pre: Vec<Entry>,
    pub steps: Vec<Step>,
    pub left_out: Vec<String>,
}

/// What was made, and what was there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub made: usize,
    pub present: usize,
    pub steps: u64,
}

/// SQLSTATEs that say that an object is there already: nothing is changed then.
const PRESENT: [&str; 5] = ["42P06", "42P07", "42710", "42723", "42712"];

/// # Errors
/// `Sql`.
pub async fn lacks_a_table(target: &Database, selected: &[&Table]) -> Result<bool, Error> {
    let names: Vec<String> = selected.iter().map(|table| table.name.quoted()).collect();
    let sql = "SELECT EXISTS (SELECT FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL)";
    let row = target.row("its tables", sql, &[&names]).await?;
    target.get(&row, 0)
}

/// # Errors
/// `Sql`.
pub async fn plan(source: &Database, target: &Database, dump: Dump, selected: &[&Table]) -> Result<Plan, Error> {
    let world = World {
        selected: selected.iter().map(|table| table.oid).collect(),
        schemas: selected.iter().map(|table| table.name.schema.clone()).collect(),
        missing_extensions: missing_extensions(source, target).await?,
    };
    let before_data: HashSet<u32> = dump.pre.iter().map(|entry| entry.id).collect();
    let mut entries = dump.pre;
    // A comment may stand in both sections' texts.
    entries.extend(dump.post.into_iter().filter(|entry| !before_data.contains(&entry.id)));
    let selection = select::select(entries, &world);
    let (pre, post): (Vec<Entry>, Vec<Entry>) =
        selection.kept.into_iter().partition(|entry| before_data.contains(&entry.id));
    let catalog = catalog(source).await?;
    let steps = steps::split(&post, &pre, &catalog);
    Ok(Plan { pre, steps, left_out: selection.left_out })
}

async fn missing_extensions(source: &Database, target: &Database) -> Result<HashSet<String>, Error> {
    let offered =
        target.rows("its extensions", "SELECT name::text FROM pg_catalog.pg_available_extensions", &[]).await?;
    let offered = offered.iter().map(|row| target.get(row, 0)).collect::<Result<HashSet<String>, _>>()?;
    let held = source.rows("its extensions", "SELECT extname::text FROM pg_catalog.pg_extension", &[]).await?;
    let held = held.iter().map(|row| source.get(row, 0)).collect::<Result<HashSet<String>, _>>()?;
    Ok(held.difference(&offered).cloned().collect())
}

/// Constraints and indexes by OID. `to_jsonb` asks for a column that only PostgreSQL 18 has.
async fn catalog(source: &Database) -> Result<Catalog, Error> {
    let sql = "SELECT o.oid, n.nspname::text, c.relname::text, o.conname::text, o.contype::text, o.condeferrable,
        o.condeferred, c.relkind = 'p', coalesce((pg_catalog.to_jsonb(o)->>'conperiod')::bool, false),
        coalesce(i.indisreplident, false),
        CASE WHEN o.contype = 'u' THEN pg_catalog.pg_get_indexdef(o.conindid) ELSE '' END
      FROM pg_catalog.pg_constraint o JOIN pg_catalog.pg_class c ON c.oid = o.conrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = o.conindid AND o.contype IN ('p', 'u', 'x')
      WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let mut catalog = Catalog::default();
    for row in source.rows("its constraints", sql, &[]).await? {
        let constraint = Constraint {
            table: TableName::new(source.get::<String>(&row, 1)?, source.get::<String>(&row, 2)?),
            name: source.get(&row, 3)?,
            kind: source.get::<String>(&row, 4)?.chars().next().unwrap_or(' '),
            deferrable: source.get(&row, 5)?,
            deferred: source.get(&row, 6)?,
            partitioned: source.get(&row, 7)?,
            period: source.get(&row, 8)?,
            identity: source.get(&row, 9)?,
            index_definition: source.get::<Option<String>>(&row, 10)?.unwrap_or_default(),
        };
        catalog.constraints.insert(source.get(&row, 0)?, constraint);
    }
    let sql =
        "SELECT i.indexrelid, n.nspname::text, c.relname::text, x.relname::text, c.relkind = 'p', i.indisreplident
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
        JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    for row in source.rows("its indexes", sql, &[]).await? {
        let index = Index {
            table: TableName::new(source.get::<String>(&row, 1)?, source.get::<String>(&row, 2)?),
            name: source.get(&row, 3)?,
            partitioned: source.get(&row, 4)?,
            identity: source.get(&row, 5)?,
        };
        catalog.indexes.insert(source.get(&row, 0)?, index);
    }
    Ok(catalog)
}

/// Makes it all on `worker` and leaves the transaction open.
///
/// # Errors
/// `PreData` with the object that could not be made.
pub async fn make(config: &Config, worker: &Database, plan: &Plan) -> Result<Counted, Error> {
    // What pg_dump's own script sets, as far as our pinned settings do not say the same.
    let begin = "BEGIN; SET LOCAL check_function_bodies = false; SET LOCAL xmloption = content;
        SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '10s'";
    worker.batch("beginning", begin).await?;
    let mut counted = Counted::default();
    let mut there: HashSet<u32> = HashSet::new();
    for entry in &plan.pre {
        if one(worker, entry, &there).await? {
            counted.made += 1;
        } else {
            there.insert(entry.id);
            counted.present += 1;
        }
    }
    counted.steps = write_steps(config, worker, &plan.steps).await?;
    Ok(counted)
}

/// True if it was made, false if it was there.
async fn one(worker: &Database, entry: &Entry, there: &HashSet<u32>) -> Result<bool, Error> {
    let failed = |source| Error::PreData { object: entry.title(), source };
    worker.client.batch_execute("SAVEPOINT entry").await.map_err(failed)?;
    let Err(error) = worker.client.batch_execute(&entry.sql).await else {
        worker.client.batch_execute("RELEASE entry").await.map_err(failed)?;
        return Ok(true);
    };
    let code = error.code().map_or("", |code| code.code());
    // The identity, the partition or the comment of a table that was there: 55000 "is already an identity column",
    // 42809 "is already a partition".
    let of_present =
        matches!(entry.kind.as_str(), "SEQUENCE" | "TABLE ATTACH" | "SEQUENCE OWNED BY" | "DEFAULT" | "COMMENT")
            && entry.depends_on.iter().any(|id| there.contains(id));
    if PRESENT.contains(&code) || of_present {
        worker.client.batch_execute("ROLLBACK TO entry; RELEASE entry").await.map_err(failed)?;
        return Ok(false);
    }
    Err(failed(error))
}

/// Steps that are not written down yet. One whose index or constraint is on the target already counts as done.
async fn write_steps(config: &Config, worker: &Database, steps: &[Step]) -> Result<u64, Error> {
    let sql = "INSERT INTO dflux.schema_step (migration, kind, schema_name, table_name, name, statement, done_at)
      SELECT $1::text, $2::text, $3::text, $4::text, $5::text, $6::text, CASE WHEN EXISTS (
          SELECT FROM pg_catalog.pg_constraint o WHERE o.conrelid = t.oid AND o.conname = $5 AND o.convalidated
          UNION ALL SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = t.oid AND g.tgname = $5
          UNION ALL SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = t.oid AND x.relname = $5 AND i.indisvalid) THEN now() END
      FROM (SELECT CASE WHEN $4::text <> '' THEN to_regclass(quote_ident($3::text) || '.' || quote_ident($4::text)) END AS oid) t
      WHERE NOT EXISTS (SELECT FROM dflux.schema_step s WHERE s.migration = $1 AND s.kind = $2 AND s.schema_name = $3
        AND s.table_name = $4 AND s.name = $5 AND s.statement = $6)";
    let mut written = 0;
    for step in steps {
        let parameters: [crate::database::Parameter<'_>; 6] = [
            &config.migration.name,
            &step.kind.name(),
            &step.table.schema,
            &step.table.name,
            &step.name,
            &step.statement,
        ];
        let what = format!("writing down step {} of {}", step.name, step.table);
        written += worker.execute(&what, sql, &parameters).await?;
    }
    Ok(written)
}

pub fn say(plan: &Plan, counted: &Counted) {
    println!("target: {} object(s) made, {} were there", counted.made, counted.present);
    let mut kinds: HashMap<&str, usize> = HashMap::new();
    for step in &plan.steps {
        *kinds.entry(step.kind.name()).or_default() += 1;
    }
    let count = |kind| kinds.get(kind).copied().unwrap_or(0);
    println!(
        "target: {} key step(s) for after the load, {} step(s) for after the catch-up ({} new)",
        count("key"),
        count("post") + count("cutover"),
        counted.steps
    );
    for title in &plan.left_out {
        println!("target: left out, because it belongs to what is not moved: {title}");
    }
}
