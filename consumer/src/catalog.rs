//! The target's catalog: which columns a table has, and their types.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use changelog::table::quote_literal;
use changelog::{Column, EventDecoder, Position, TableName, TableShape, Topics};
use futures_util::{StreamExt, TryStreamExt, stream};
use service::registry::RegistryClient;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::error::{contract, target};
use crate::evolve::{Evolution, Refusal, retyped, same};
use crate::identity::{self, Identities, Standing};
use crate::relation::{Relation, TargetColumn, TargetTable};
use crate::{Error, observe};

/// Requests to the registry that are under way at once.
const ASKED_TOGETHER: usize = 16;

/// A domain's base type, followed to its end; the schema of the type's own `=`; how the column gets a value; and of the table
/// what each row repeats.
const COLUMNS: &str = "
WITH RECURSIVE wanted AS (
    SELECT a.attname, a.attnum, a.atttypid, a.attgenerated <> '' AS generated, a.attidentity = 'a' AS always,
        a.atthasdef OR a.attidentity <> '' AS filled, c.relkind = 'p' AS partitioned, a.attnotnull AS not_null,
        pg_catalog.format_type(a.atttypid, a.atttypmod) AS declared
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
), base AS (
    SELECT attnum, atttypid AS oid FROM wanted
    UNION ALL
    SELECT b.attnum, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype = 'd'
)
SELECT w.attname::text, pg_catalog.format_type(b.oid, -1), b.oid, w.generated,
    coalesce((SELECT n.nspname::text FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
              WHERE o.oprname = '=' AND o.oprleft = b.oid AND o.oprright = b.oid LIMIT 1), 'pg_catalog'),
    w.always, w.filled, w.partitioned, pg_catalog.current_setting('session_replication_role') = 'replica', w.not_null, w.declared
FROM wanted w
JOIN base b ON b.attnum = w.attnum
JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype <> 'd'
ORDER BY w.attnum";

/// # Errors
/// `TableMissing`, `Target`.
pub async fn table(connection: &mut PgConnection, name: &TableName) -> Result<TargetTable, Error> {
    let rows = sqlx::query(COLUMNS).bind(&name.schema).bind(&name.name).fetch_all(&mut *connection).await;
    let rows = rows.map_err(target(format!("the columns of {name}")))?;
    if rows.is_empty() {
        return without_columns(connection, name).await;
    }
    let column = |row: &sqlx::postgres::PgRow| -> Result<TargetColumn, sqlx::Error> {
        Ok(TargetColumn {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            type_oid: row.try_get::<sqlx::postgres::types::Oid, _>(2)?.0,
            generated: row.try_get(3)?,
            equals_schema: row.try_get(4)?,
            identity_always: row.try_get(5)?,
            filled: row.try_get(6)?,
            not_null: row.try_get(9)?,
            declared: row.try_get(10)?,
        })
    };
    let read = || -> Result<TargetTable, sqlx::Error> {
        Ok(TargetTable {
            columns: rows.iter().map(column).collect::<Result<_, _>>()?,
            partitioned: rows[0].try_get(7)?,
            replica_role: rows[0].try_get(8)?,
        })
    };
    read().map_err(target(format!("the columns of {name}")))
}

/// Whether there is a table of this name.
///
/// # Errors
/// `Target`.
pub async fn exists(connection: &mut PgConnection, name: &TableName) -> Result<bool, Error> {
    match table(connection, name).await {
        Ok(_) => Ok(true),
        Err(Error::TableMissing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A table may have no column at all.
async fn without_columns(connection: &mut PgConnection, name: &TableName) -> Result<TargetTable, Error> {
    let sql = "SELECT relkind = 'p', pg_catalog.current_setting('session_replication_role') = 'replica' \
               FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1) AND relkind IN ('r', 'p')";
    let found = sqlx::query_as::<_, (bool, bool)>(sql).bind(name.quoted()).fetch_optional(connection).await;
    let found = found.map_err(target(format!("the columns of {name}")))?;
    let (partitioned, replica_role) = found.ok_or_else(|| Error::TableMissing { table: name.to_string() })?;
    Ok(TargetTable { columns: Vec::new(), partitioned, replica_role })
}

/// What makes a table of the target like the events that follow.
#[derive(Clone, Debug)]
pub struct Alteration {
    pub table: TableName,
    pub position: Position,
    /// What the table is like then.
    pub schema_id: u32,
    pub shape: Arc<TableShape>,
    pub statements: Vec<String>,
    /// The table was another before: a copy from then does not fit any more.
    pub changed: bool,
}

/// What the target's table is like, in the source's terms, and from where on.
#[derive(Clone, Debug)]
struct Current {
    schema_id: u32,
    since: Position,
    shape: Arc<TableShape>,
}

/// What the source told of a change of a table, beside what the table is like then.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Of the table as it was.
    pub previous_schema_id: Option<u32>,
    pub statement: &'a str,
    /// Values of its rows were computed anew.
    pub rewritten: bool,
}

/// What came of a schema that is met for the first time.
#[derive(Debug)]
pub enum Met {
    Relation(Arc<Relation>),
    /// The source's table had another name so far: to be done before, then ask again. `taken`: of the table that has its new name.
    Renamed {
        from: TableName,
        to: TableName,
        taken: Option<u32>,
    },
    /// To be done before, in the transaction of the events; then ask again.
    Alter(Alteration),
}

/// The schemas that events were met with, each matched with its table in the target.
#[derive(Debug)]
pub struct Relations {
    registry: RegistryClient,
    lane: String,
    topics: Topics,
    by_schema: foldhash::HashMap<u32, Arc<Relation>>,
    /// Every schema that was asked for, also those of events that are left to others.
    decoders: foldhash::HashMap<u32, EventDecoder>,
    /// Of schemas that were asked for before they were met: what their tables were like before.
    earlier: foldhash::HashMap<u32, Option<Arc<TableShape>>>,
    /// How many were made.
    made: usize,
    tables: Vec<TableName>,
    /// None: copied anew, and not known since; the copy's columns are there.
    current: HashMap<TableName, Option<Current>>,
    /// As read; none after a change of them.
    identities: Option<Identities>,
    /// By table's place: columns of the target that nothing fills.
    unfilled: HashMap<usize, usize>,
}

impl Relations {
    pub fn new(registry_url: &str, lane: &str, topics: &Topics) -> Relations {
        Relations {
            registry: RegistryClient::new(registry_url),
            lane: lane.to_owned(),
            topics: topics.clone(),
            by_schema: foldhash::HashMap::default(),
            decoders: foldhash::HashMap::default(),
            earlier: foldhash::HashMap::default(),
            made: 0,
            tables: Vec::new(),
            current: HashMap::new(),
            identities: None,
            unfilled: HashMap::new(),
        }
    }

    /// A schema that was met before.
    pub fn known(&self, schema_id: u32) -> Option<Arc<Relation>> {
        self.by_schema.get(&schema_id).cloned()
    }

    /// Asks the registry at once for all that it will be asked of these schemas, in any order and as often as they come: the first
    /// changes of thousands of tables would wait for the round trips of each.
    ///
    /// # Errors
    /// `Service(Registry…)`, `Contract`, `Target`.
    pub async fn expect(
        &mut self,
        connection: &mut PgConnection,
        schema_ids: impl Iterator<Item = u32>,
    ) -> Result<(), Error> {
        let mut new: Vec<u32> = schema_ids.filter(|id| !self.decoders.contains_key(id)).collect();
        new.sort_unstable();
        new.dedup();
        if new.len() < 2 {
            return Ok(());
        }
        let sql = "SELECT schema_name, table_name FROM dflux.table_schema WHERE lane = $1";
        let held = sqlx::query_as::<_, (String, String)>(sql).bind(&self.lane).fetch_all(connection).await;
        let held = held.map_err(target("dflux.table_schema"))?.into_iter();
        let held: HashSet<TableName> = held.map(|(schema, name)| TableName::new(schema, name)).collect();
        let (registry, topics, current) = (&self.registry, &self.topics, &self.current);
        let ask = |id: u32| {
            let held = &held;
            async move {
                let decoder = decoder(registry, id).await?;
                let name = &decoder.shape().table;
                // What the target itself says of its table counts more.
                let known = held.contains(name) || current.contains_key(name);
                let earlier = if known { None } else { Some(earlier(registry, topics, name, id).await?) };
                Ok::<_, Error>((id, decoder, earlier))
            }
        };
        let asked: Vec<_> = stream::iter(new).map(ask).buffer_unordered(ASKED_TOGETHER).try_collect().await?;
        for (id, decoder, earlier) in asked {
            self.decoders.insert(id, decoder);
            self.earlier.extend(earlier.map(|earlier| (id, earlier)));
        }
        Ok(())
    }

    /// Matches a schema that is met for the first time, at this position, with the target's table.
    ///
    /// # Errors
    /// `Service(Registry…)`, `TableMissing`, `ColumnMissing`, `TableUnfit`, `SchemaChange`.
    pub async fn meet(
        &mut self,
        connection: &mut PgConnection,
        schema_id: u32,
        position: Position,
        told: Option<Told<'_>>,
    ) -> Result<Met, Error> {
        let rewritten = told.is_some_and(|told| told.rewritten);
        if let Some(relation) = self.by_schema.get(&schema_id).filter(|_| !rewritten) {
            return Ok(Met::Relation(relation.clone()));
        }
        let decoder = self.decoder(schema_id).await?.clone();
        let shape = decoder.shape().clone();
        let name = shape.table.clone();
        let standing = self.standing(connection, &shape).await?;
        match standing {
            Standing::Same | Standing::New => {}
            Standing::Renamed { from, taken } => return Ok(Met::Renamed { from, to: name, taken }),
            Standing::Another => return Err(another(&name, position)),
        }
        let target = table(connection, &name).await?;
        if standing == Standing::New {
            identity::set(connection, &self.lane, (&name, shape.oid), 0).await?;
            if let Some(known) = &mut self.identities {
                known.learn(&name, shape.oid);
            }
        }
        self.read_current(connection, &name).await?;
        let known = self.current.get(&name);
        let current = known.and_then(Option::as_ref);
        let older = current.is_some_and(|current| position < current.since);
        let anew = |current: &Current| rewritten && current.since < position;
        if !older && current.is_none_or(|current| current.schema_id != schema_id || anew(current)) {
            let before = told.and_then(|told| told.previous_schema_id);
            // What was told was said in the change's own transaction; what a row said before, perhaps of a later catalog.
            let prior = match (before, current) {
                (Some(before), _) => Some(self.decoder(before).await?.shape().clone()),
                (None, Some(current)) => Some(current.shape.clone()),
                (None, None) if known.is_some() => None,
                (None, None) => match self.earlier.remove(&schema_id) {
                    Some(asked) => asked,
                    None => earlier(&self.registry, &self.topics, &name, schema_id).await?,
                },
            };
            let rewritten = match rewritten {
                true => unsaid(connection, &self.lane, (&name, position)).await?,
                false => None,
            };
            let told = (told.map(|told| told.statement), rewritten.as_deref());
            let statements = statements(connection, (prior.as_deref(), &shape), &target, told, position).await?;
            let changed = prior.is_some() || !statements.is_empty();
            let (table, shape) = (name.clone(), shape.clone());
            let alteration = Alteration { table, position, schema_id, shape, statements, changed };
            if !alteration.statements.is_empty() {
                return Ok(Met::Alter(alteration));
            }
            set_current(connection, &self.lane, &alteration).await?;
            self.altered(&alteration);
        }
        let now = self.current.get(&name).and_then(Option::as_ref);
        let now = now.filter(|current| older && current.schema_id != schema_id);
        let place = match self.tables.iter().position(|known| *known == name) {
            Some(place) => place,
            None => {
                self.tables.push(name);
                self.tables.len() - 1
            }
        };
        let relation = Relation::new(self.made, place, decoder, &target, now.map(|now| &*now.shape))?;
        self.made += 1;
        let relation = Arc::new(relation);
        let unfilled: Vec<&str> = relation.unfilled().collect();
        self.unfilled.insert(place, unfilled.len());
        observe::unfilled(&relation.name().to_string(), &unfilled, self.unfilled.values().sum());
        self.by_schema.insert(schema_id, relation.clone());
        Ok(Met::Relation(relation))
    }

    /// What was matched with the table before it was altered is matched again.
    pub fn altered(&mut self, alteration: &Alteration) {
        self.by_schema.retain(|_, relation| *relation.name() != alteration.table);
        let Alteration { position, schema_id, shape, .. } = alteration;
        let current = Current { schema_id: *schema_id, since: *position, shape: shape.clone() };
        self.current.insert(alteration.table.clone(), Some(current));
    }

    async fn standing(&mut self, connection: &mut PgConnection, shape: &TableShape) -> Result<Standing, Error> {
        let known = match self.identities.take() {
            Some(known) => known,
            None => Identities::read(connection, &self.lane).await?,
        };
        Ok(self.identities.insert(known).standing(&shape.table, shape.oid))
    }

    /// The target's table has another name now.
    pub fn renamed(&mut self, from: &TableName, to: &TableName) {
        self.identities = None;
        self.by_schema.retain(|_, relation| relation.name() != from);
        if let Some(current) = self.current.remove(from) {
            self.current.insert(to.clone(), current);
        }
    }

    /// Somebody else has applied events of the table.
    pub fn forget(&mut self, table: &TableName) {
        self.by_schema.retain(|_, relation| relation.name() != table);
        self.current.remove(table);
        self.identities = None;
    }

    /// The table that events of this schema are of.
    ///
    /// # Errors
    /// `Service(Registry…)`, `Contract`.
    pub async fn table_of(&mut self, schema_id: u32) -> Result<TableName, Error> {
        Ok(self.decoder(schema_id).await?.shape().table.clone())
    }

    async fn decoder(&mut self, schema_id: u32) -> Result<&EventDecoder, Error> {
        match self.decoders.entry(schema_id) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(decoder(&self.registry, schema_id).await?)),
        }
    }

    async fn read_current(&mut self, connection: &mut PgConnection, name: &TableName) -> Result<(), Error> {
        if self.current.contains_key(name) {
            return Ok(());
        }
        let sql = "SELECT schema_id, commit_lsn::text, ordinal, part FROM dflux.table_schema \
                   WHERE (lane, schema_name, table_name) = ($1, $2, $3)";
        let query = sqlx::query_as::<_, (Option<i32>, String, i64, i32)>(sql)
            .bind(&self.lane)
            .bind(&name.schema)
            .bind(&name.name);
        let found = query.fetch_optional(connection).await.map_err(target("dflux.table_schema"))?;
        let Some((schema_id, commit_lsn, ordinal, part)) = found else { return Ok(()) };
        let Some(schema_id) = schema_id else {
            self.current.insert(name.clone(), None);
            return Ok(());
        };
        let since =
            Position { commit_lsn: commit_lsn.parse().unwrap_or_default(), ordinal: ordinal as u64, part: part as u32 };
        let shape = self.decoder(schema_id as u32).await?.shape().clone();
        self.current.insert(name.clone(), Some(Current { schema_id: schema_id as u32, since, shape }));
        Ok(())
    }
}

/// What the table was like before its first event, if the producer had described it by then.
async fn earlier(
    registry: &RegistryClient,
    topics: &Topics,
    name: &TableName,
    schema_id: u32,
) -> Result<Option<Arc<TableShape>>, Error> {
    let subject = format!("{}-value", topics.table(name));
    let Some(schema) = registry.earlier(&subject, schema_id).await? else { return Ok(None) };
    let decoder = EventDecoder::new(schema_id, &schema);
    Ok(decoder.ok().map(|decoder| decoder.shape().clone()).filter(|shape| shape.table == *name))
}

async fn decoder(registry: &RegistryClient, schema_id: u32) -> Result<EventDecoder, Error> {
    let schema = registry.schema(schema_id).await?;
    EventDecoder::new(schema_id, &schema).map_err(contract(format!("schema {schema_id} of the registry")))
}

/// Pairs of types between which a value becomes the same in every session: no cast at all, one that cannot fail to be the same, or
/// the text of a type whose text depends on nothing. Arrays are as their elements.
const PLAIN_CASTS: &str = "
SELECT w.name FROM unnest($1::text[], $2::text[], $3::text[]) AS w (name, old, new)
JOIN pg_catalog.pg_type o ON o.oid = pg_catalog.to_regtype(w.old) JOIN pg_catalog.pg_type n ON n.oid = pg_catalog.to_regtype(w.new),
LATERAL (SELECT CASE WHEN o.typcategory = 'A' THEN o.typelem ELSE o.oid END AS old, CASE WHEN n.typcategory = 'A' THEN n.typelem ELSE n.oid END AS new) e
WHERE (o.typcategory = 'A') = (n.typcategory = 'A') AND (e.old = e.new OR EXISTS (
        SELECT FROM pg_catalog.pg_cast c LEFT JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
        WHERE (c.castsource, c.casttarget) = (e.old, e.new) AND (c.castmethod = 'b' OR (c.castmethod = 'f' AND p.provolatile = 'i')))
    OR (NOT EXISTS (SELECT FROM pg_catalog.pg_cast c WHERE (c.castsource, c.casttarget) = (e.old, e.new))
        AND e.new IN (25, 1043, 1042) AND (o.typtype = 'e' OR e.old IN (16, 19, 20, 21, 23, 26, 114, 1042, 1043, 25, 1700, 2950, 3802))))";

/// What [`Evolution`] says, with the types of the next columns as the target writes them.
async fn statements(
    connection: &mut PgConnection,
    (prior, next): (Option<&TableShape>, &TableShape),
    target_table: &TargetTable,
    (statement, rewritten): (Option<&str>, Option<&str>),
    position: Position,
) -> Result<Vec<String>, Error> {
    let wanted = |column: &&Column| {
        let old = prior.and_then(|prior| same(prior, column));
        let there = target_table.columns.iter().any(|target| target.name == column.name);
        !there || rewritten.is_some() || old.is_none_or(|old| retyped(old, column))
    };
    let wanted: Vec<&Column> = next.columns.iter().filter(wanted).collect();
    let mut declared = HashMap::new();
    if !wanted.is_empty() {
        let sql = "SELECT name, pg_catalog.format_type(pg_catalog.to_regtype(type_name), typmod) \
                   FROM unnest($1::text[], $2::text[], $3::int4[]) AS wanted (name, type_name, typmod) \
                   WHERE pg_catalog.to_regtype(type_name) IS NOT NULL";
        let query = sqlx::query_as::<_, (String, String)>(sql)
            .bind(wanted.iter().map(|column| column.name.as_str()).collect::<Vec<_>>())
            .bind(wanted.iter().map(|column| column.type_name.as_str()).collect::<Vec<_>>())
            .bind(wanted.iter().map(|column| column.typmod).collect::<Vec<_>>());
        declared.extend(query.fetch_all(&mut *connection).await.map_err(target("the types of the columns"))?);
    }
    let retyped = next.columns.iter().filter_map(|column| Some((column, prior.and_then(|prior| same(prior, column))?)));
    let retyped: Vec<(&Column, &Column)> = retyped.filter(|(new, old)| new.type_name != old.type_name).collect();
    let mut plain: HashSet<String> = next.columns.iter().map(|column| column.name.clone()).collect();
    if statement.is_some() && !retyped.is_empty() {
        let query = sqlx::query_scalar::<_, String>(PLAIN_CASTS)
            .bind(retyped.iter().map(|(new, _)| new.name.as_str()).collect::<Vec<_>>())
            .bind(retyped.iter().map(|(_, old)| old.type_name.as_str()).collect::<Vec<_>>())
            .bind(retyped.iter().map(|(new, _)| new.type_name.as_str()).collect::<Vec<_>>());
        let found = query.fetch_all(&mut *connection).await.map_err(target("the casts of the columns"))?;
        plain.retain(|name| !retyped.iter().any(|(new, _)| new.name == *name) || found.contains(name));
    }
    let evolution =
        Evolution { prior, next, target: target_table, declared: &declared, plain: &plain, statement, rewritten };
    evolution.statements().map_err(|refusal| Error::SchemaChange {
        table: next.table.clone(),
        position,
        refusal: Box::new(refusal),
    })
}

/// None if a person has said that the target's rows have the values that were computed anew here; else how to say it.
async fn unsaid(
    connection: &mut PgConnection,
    lane: &str,
    (name, position): (&TableName, Position),
) -> Result<Option<String>, Error> {
    let sql =
        "SELECT 1 FROM dflux.rewritten WHERE (lane, schema_name, table_name, commit_lsn) = ($1, $2, $3, $4::pg_lsn)";
    let query = sqlx::query(sql).bind(lane).bind(&name.schema).bind(&name.name).bind(position.commit_lsn.to_string());
    let said = query.fetch_optional(connection).await.map_err(target("dflux.rewritten"))?.is_some();
    let row = [lane, &name.schema, &name.name, &position.commit_lsn.to_string()].map(quote_literal).join(", ");
    Ok((!said).then(|| format!("INSERT INTO dflux.rewritten VALUES ({row})")))
}

/// The table's name in the target is that of another one, which is no more called so on the source.
pub fn another(table: &TableName, position: Position) -> Error {
    let what = "is another table of the source than the one whose rows the target has under this name: it was dropped or renamed, and \
                this one made or renamed in its place";
    let refusal = Refusal { what: what.into(), statement: String::new(), copy_again: true, said: None };
    Error::SchemaChange { table: table.clone(), position, refusal: Box::new(refusal) }
}

/// Says in the target what its table is like now.
///
/// # Errors
/// `Target`.
pub async fn set_current(connection: &mut PgConnection, lane: &str, alteration: &Alteration) -> Result<(), Error> {
    let sql = "INSERT INTO dflux.table_schema AS held (lane, schema_name, table_name, schema_id, commit_lsn, ordinal, part, changed_lsn) \
               VALUES ($1, $2, $3, $4, $5::pg_lsn, $6, $7, CASE WHEN $8 THEN $5::pg_lsn END) \
               ON CONFLICT (lane, schema_name, table_name) DO UPDATE SET schema_id = excluded.schema_id, \
               commit_lsn = excluded.commit_lsn, ordinal = excluded.ordinal, part = excluded.part, \
               changed_lsn = coalesce(excluded.changed_lsn, held.changed_lsn)";
    let Position { commit_lsn, ordinal, part } = alteration.position;
    let query = sqlx::query(sql).bind(lane).bind(&alteration.table.schema).bind(&alteration.table.name);
    let query = query.bind(alteration.schema_id as i32).bind(commit_lsn.to_string());
    let query = query.bind(ordinal as i64).bind(part as i32).bind(alteration.changed);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_schema"))
}
