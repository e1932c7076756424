//! The target's catalog: which columns a table has, and their types.

use std::collections::HashMap;
use std::sync::Arc;

use changelog::{EventDecoder, TableName};
use service::registry::RegistryClient;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::error::{contract, target};
use crate::relation::{Relation, TargetColumn, TargetTable};
use crate::{Error, observe};

/// A domain's base type, followed to its end; the schema of the type's own `=`; how the column gets a value; and of the table
/// what each row repeats.
const COLUMNS: &str = "
WITH RECURSIVE wanted AS (
    SELECT a.attname, a.attnum, a.atttypid, a.attgenerated <> '' AS generated, a.attidentity = 'a' AS always,
        a.atthasdef OR a.attidentity <> '' AS filled, c.relkind = 'p' AS partitioned
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
    w.always, w.filled, w.partitioned, pg_catalog.current_setting('session_replication_role') = 'replica'
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

/// A table may have no column at all.
async fn without_columns(connection: &mut PgConnection, name: &TableName) -> Result<TargetTable, Error> {
    let sql = "SELECT relkind = 'p', pg_catalog.current_setting('session_replication_role') = 'replica' \
               FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1) AND relkind IN ('r', 'p')";
    let found = sqlx::query_as::<_, (bool, bool)>(sql).bind(name.quoted()).fetch_optional(connection).await;
    let found = found.map_err(target(format!("the columns of {name}")))?;
    let (partitioned, replica_role) = found.ok_or_else(|| Error::TableMissing { table: name.to_string() })?;
    Ok(TargetTable { columns: Vec::new(), partitioned, replica_role })
}

/// The schemas that events were met with, each matched with its table in the target.
#[derive(Debug)]
pub struct Relations {
    registry: RegistryClient,
    by_schema: foldhash::HashMap<u32, Arc<Relation>>,
    tables: Vec<TableName>,
    /// By table's place: columns of the target that nothing fills.
    unfilled: HashMap<usize, usize>,
}

impl Relations {
    pub fn new(registry_url: &str) -> Relations {
        Relations {
            registry: RegistryClient::new(registry_url),
            by_schema: foldhash::HashMap::default(),
            tables: Vec::new(),
            unfilled: HashMap::new(),
        }
    }

    /// A schema that was met before.
    pub fn known(&self, schema_id: u32) -> Option<Arc<Relation>> {
        self.by_schema.get(&schema_id).cloned()
    }

    /// Matches a schema that is met for the first time with the target's table, before any of its events is applied.
    ///
    /// # Errors
    /// `Service(Registry…)`, `TableMissing`, `ColumnMissing`, `TableUnfit`.
    pub async fn get(&mut self, connection: &mut PgConnection, schema_id: u32) -> Result<Arc<Relation>, Error> {
        if let Some(relation) = self.by_schema.get(&schema_id) {
            return Ok(relation.clone());
        }
        let schema = self.registry.schema(schema_id).await?;
        let decoder =
            EventDecoder::new(schema_id, &schema).map_err(contract(format!("schema {schema_id} of the registry")))?;
        let name = decoder.shape().table.clone();
        let target = table(connection, &name).await?;
        let place = match self.tables.iter().position(|known| *known == name) {
            Some(place) => place,
            None => {
                self.tables.push(name);
                self.tables.len() - 1
            }
        };
        let relation = Arc::new(Relation::new(self.by_schema.len(), place, decoder, &target)?);
        let unfilled: Vec<&str> = relation.unfilled().collect();
        self.unfilled.insert(place, unfilled.len());
        observe::unfilled(&relation.name().to_string(), &unfilled, self.unfilled.values().sum());
        self.by_schema.insert(schema_id, relation.clone());
        Ok(relation)
    }
}
