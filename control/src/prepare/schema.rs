//! What the source's schema says, and pre-data on the target, in one transaction that the caller commits.

use std::collections::{HashMap, HashSet};

use changelog::TableName;

use super::archive::Entry;
use super::dump::Dump;
use super::select::{self, World};
use super::steps::{self, Catalog, Constraint, Index, Step};
use crate::tables::Table;
use crate::{Database, Error};

/// The source's schema, as far as the dump does not say it.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    pub dump: Dump,
    pub catalog: Catalog,
    /// Extensions that the target does not offer.
    pub missing_extensions: HashSet<String>,
}

/// What will be made.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub pre: Vec<Entry>,
    /// Keys and indexes, as pg_dump wrote them: a partition that joins a table that is there needs its own before.
    pub indexes: Vec<Entry>,
    pub steps: Vec<Step>,
    pub left_out: Vec<String>,
    /// OIDs of tables that the target has. One that the lane renames meanwhile is not missed, and not made again.
    pub there: HashSet<u32>,
}

/// What was made, and what was there already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub made: usize,
    pub present: usize,
    /// Titles of what a running lane may still bring what it needs for, with the server's words.
    pub not_yet: Vec<(String, String)>,
    /// Partitions that were made for a partitioned table that was there.
    pub joined: Vec<TableName>,
}

/// SQLSTATEs that say that an object is there already: nothing is changed then. Of a text search object, only the unique index
/// of its catalog says so (23505).
const PRESENT: [&str; 6] = ["42P06", "42P07", "42710", "42723", "42712", "23505"];

/// SQLSTATEs that say that something it needs is not there: a column, a relation, a function, a type, a schema.
const LACKING: [&str; 5] = ["42703", "42P01", "42883", "42704", "3F000"];

/// # Errors
/// `Sql`.
pub async fn read(source: &Database, target: &Database, dump: Dump) -> Result<Schema, Error> {
    let missing_extensions = missing_extensions(source, target).await?;
    Ok(Schema { dump, catalog: catalog(source).await?, missing_extensions })
}

/// What of it belongs to these tables. Pure.
pub fn plan(schema: Schema, selected: &[&Table]) -> Plan {
    let world = World {
        selected: selected.iter().map(|table| table.oid).collect(),
        schemas: selected.iter().map(|table| table.name.schema.clone()).collect(),
        missing_extensions: schema.missing_extensions,
    };
    let before_data: HashSet<u32> = schema.dump.pre.iter().map(|entry| entry.id).collect();
    let mut entries = schema.dump.pre;
    // A comment may stand in both sections' texts.
    entries.extend(schema.dump.post.into_iter().filter(|entry| !before_data.contains(&entry.id)));
    let selection = select::select(entries, &world);
    let (pre, post): (Vec<Entry>, Vec<Entry>) =
        selection.kept.into_iter().partition(|entry| before_data.contains(&entry.id));
    let steps = steps::split(&post, &pre, &schema.catalog);
    let of_index = |entry: &Entry| matches!(entry.kind.as_str(), "CONSTRAINT" | "INDEX");
    let indexes = post.into_iter().filter(of_index).collect();
    Plan { pre, indexes, steps, left_out: selection.left_out, there: HashSet::new() }
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
        o.condeferred, o.convalidated, c.relkind = 'p', coalesce((pg_catalog.to_jsonb(o)->>'conperiod')::bool, false),
        coalesce(i.indisreplident, false),
        CASE WHEN o.contype IN ('p', 'u') THEN pg_catalog.pg_get_indexdef(o.conindid) END,
        CASE WHEN o.contype = 'c' AND o.conislocal THEN pg_catalog.pg_get_constraintdef(o.oid) END
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
            validated: source.get(&row, 7)?,
            partitioned: source.get(&row, 8)?,
            period: source.get(&row, 9)?,
            identity: source.get(&row, 10)?,
            index_definition: source.get::<Option<String>>(&row, 11)?.unwrap_or_default(),
            check: source.get(&row, 12)?,
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

/// Makes what is not there on `worker` and leaves the transaction open. Beside a running lane it may be too early for an
/// object: it is passed over then, for the next time.
///
/// # Errors
/// `PreData` with the object that could not be made.
pub async fn make(worker: &Database, plan: &Plan, running: bool) -> Result<Counted, Error> {
    // What pg_dump's own script sets, as far as our pinned settings do not say the same.
    let begin = "BEGIN; SET LOCAL check_function_bodies = false; SET LOCAL xmloption = content;
        SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '10s'";
    worker.batch("beginning", begin).await?;
    let (mut counted, mut there) = (Counted::default(), There::read(worker, plan).await?);
    for entry in &plan.pre {
        if let Some(partition) = there.joining(entry) {
            // Else the server would make them with names of its own, as it attaches it.
            for index in plan.indexes.iter().filter(|index| index.depends_on.contains(&partition.id)) {
                one(worker, index).await?;
            }
            counted.joined.push(TableName::new(partition.schema.clone(), partition.name.clone()));
        }
        let made = if there.settles(entry) { Ok(false) } else { one(worker, entry).await };
        match made {
            Ok(true) => counted.made += 1,
            Ok(false) => {
                there.present.insert(entry.id);
                counted.present += 1;
            }
            Err(Error::PreData { object, source }) if running && lacks(entry, &source) => {
                let words = source.as_db_error().map_or_else(|| source.to_string(), |said| said.message().to_owned());
                counted.not_yet.push((object, words));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(counted)
}

/// Whether what it needs may come with the lane: a column that no row has told of yet, or what another of these makes.
fn lacks(entry: &Entry, error: &tokio_postgres::Error) -> bool {
    let lacking = error.code().is_some_and(|code| LACKING.contains(&code.code()));
    lacking && !entry.kind.starts_with("TABLE")
}

/// What the target had before.
struct There<'a> {
    tables: HashMap<u32, &'a Entry>,
    held: &'a HashSet<u32>,
    present: HashSet<u32>,
    /// Every partition of any table.
    partitions: HashSet<TableName>,
}

impl<'a> There<'a> {
    async fn read(worker: &Database, plan: &'a Plan) -> Result<There<'a>, Error> {
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relispartition AND c.relkind IN ('r', 'p')";
        let rows = worker.rows("its partitions", sql, &[]).await?;
        let name = |row| Ok(TableName::new(worker.get::<String>(row, 0)?, worker.get::<String>(row, 1)?));
        let tables = plan.pre.iter().filter(|entry| entry.kind == "TABLE").map(|entry| (entry.id, entry));
        Ok(There {
            tables: tables.collect(),
            held: &plan.there,
            present: HashSet::new(),
            partitions: rows.iter().map(name).collect::<Result<_, Error>>()?,
        })
    }

    /// A new partition that is to be attached to a table that was there.
    fn joining(&self, entry: &Entry) -> Option<&'a Entry> {
        let present = |id: &u32| self.present.contains(id);
        if entry.kind != "TABLE ATTACH" || !entry.depends_on.iter().any(present) {
            return None;
        }
        let new = entry.depends_on.iter().filter(|id| !present(id)).filter_map(|id| self.tables.get(id));
        new.copied().find(|table| (&table.schema, &table.name) == (&entry.schema, &entry.name))
    }

    /// Whether an entry belongs to a table (or a sequence) that was there: that is left as it is, with its identity, its
    /// defaults, its place among partitions and its comments.
    fn settles(&self, entry: &Entry) -> bool {
        let present = |id: &u32| self.present.contains(id);
        match entry.kind.as_str() {
            "TABLE" => self.held.contains(&entry.oid),
            "TABLE ATTACH" => self.partitions.contains(&TableName::new(entry.schema.clone(), entry.name.clone())),
            "SEQUENCE" if !entry.sql.starts_with("ALTER TABLE ") => false,
            "SEQUENCE" | "DEFAULT" => entry.depends_on.iter().any(|id| self.tables.contains_key(id) && present(id)),
            "SEQUENCE OWNED BY" | "COMMENT" => entry.depends_on.iter().any(present),
            _ => false,
        }
    }
}

/// True if it was made, false if it was there. After an error of its own the transaction is as it was before.
async fn one(worker: &Database, entry: &Entry) -> Result<bool, Error> {
    let failed = |source| Error::PreData { object: entry.title(), source };
    worker.client.batch_execute("SAVEPOINT entry").await.map_err(failed)?;
    let Err(error) = worker.client.batch_execute(&entry.sql).await else {
        worker.client.batch_execute("RELEASE entry").await.map_err(failed)?;
        return Ok(true);
    };
    worker.client.batch_execute("ROLLBACK TO entry; RELEASE entry").await.map_err(failed)?;
    if error.code().is_some_and(|code| PRESENT.contains(&code.code())) { Ok(false) } else { Err(failed(error)) }
}

pub fn say(plan: &Plan, counted: &Counted) {
    println!("target: {} object(s) made, {} were there", counted.made, counted.present);
    for (title, words) in &counted.not_yet {
        println!(
            "target: {title} cannot be made yet: {words}\nhint: dflux prepare, when the lane has brought what it needs"
        );
    }
    for title in &plan.left_out {
        println!("target: left out, because it belongs to what is not moved: {title}");
    }
}
