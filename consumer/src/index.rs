//! Between load and apply: the key indexes, which every update and delete needs to find its row.
//!
//! The statements are those that `dflux prepare` took from the source's schema (`dflux.schema_step`, kind `key`). Where it
//! was not used, a keyed table without a unique index on its key gets a primary key. Several are built at once; what joins them
//! comes behind. A table that joins a running lane is built when its own load is done.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use changelog::TableName;
use changelog::ledger::Plan;
use changelog::table::quote_identifier;
use futures_util::future::try_join_all;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::error::{code, target};
use crate::relation::rows_of;
use crate::target::{Purpose, Sessions, run};
use crate::{Error, observe};

/// SQLSTATEs that say: it is there already.
const THERE: [&str; 3] = ["42P07", "42710", "42P16"];

struct Build {
    step: Option<i64>,
    what: String,
    statement: String,
}

/// Where indexes are built, and how many at once.
#[derive(Clone, Copy, Debug)]
pub struct Building<'a> {
    pub sessions: &'a Sessions,
    pub migration: &'a str,
    pub workers: usize,
}

impl Building<'_> {
    /// After the initial load: whatever is missing.
    ///
    /// # Errors
    /// `Index`, `Target`.
    pub async fn all(&self, plans: &[&Plan]) -> Result<(), Error> {
        self.build(None, plans).await
    }

    /// After the load of one table, its partitions included.
    ///
    /// # Errors
    /// `Index`, `Target`.
    pub async fn one(&self, table: &TableName, plan: Option<&Plan>) -> Result<(), Error> {
        self.build(Some(table), plan.as_slice()).await
    }

    async fn build(&self, table: Option<&TableName>, plans: &[&Plan]) -> Result<(), Error> {
        let mut connection = self.sessions.open(Purpose::Load).await?;
        let steps = steps(&mut connection, self.migration, table).await?;
        let (bindings, builds): (Vec<Build>, Vec<Build>) = steps.into_iter().partition(|step| binds(&step.statement));
        each(self.sessions, builds, self.workers).await?;
        // Each takes a moment and locks a parent that others want too.
        each(self.sessions, bindings, 1).await?;
        let mut missing = Vec::new();
        for plan in plans.iter().filter(|plan| !plan.key.is_empty()) {
            let Some(partitioned) = lacks_key(&mut connection, &plan.table, &plan.key).await? else { continue };
            // ONLY for a table of its own: the key would make its children by inheritance NOT NULL.
            let columns: Vec<String> = plan.key.iter().map(|name| quote_identifier(name)).collect();
            let (table, columns) = (rows_of(&plan.table, partitioned), columns.join(", "));
            missing.push(Build {
                step: None,
                what: format!("primary key of {}", plan.table),
                statement: format!("ALTER TABLE {table} ADD PRIMARY KEY ({columns})"),
            });
        }
        each(self.sessions, missing, self.workers).await
    }
}

/// Whether a step needs what other steps build: a partition's index is attached to its parent's once both are there. Everything
/// else (constraints, indexes with their replica identity) stands for itself.
fn binds(statement: &str) -> bool {
    statement.starts_with("ALTER INDEX ")
}

/// Several at once, each worker with one session for all that it builds.
async fn each(sessions: &Sessions, builds: Vec<Build>, workers: usize) -> Result<(), Error> {
    let workers = workers.clamp(1, builds.len().max(1));
    let waiting = &Mutex::new(builds.into_iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = |_worker| async move {
        let mut connection = None;
        while let Some(build) = next() {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(sessions.open(Purpose::Load).await?),
            };
            one(connection, build).await?;
        }
        Ok(())
    };
    try_join_all((0..workers).map(work)).await.map(|_| ())
}

async fn one(connection: &mut PgConnection, build: Build) -> Result<(), Error> {
    let began = Instant::now();
    run(connection, "BEGIN; SET LOCAL maintenance_work_mem = '128MB'").await.map_err(target("a transaction"))?;
    match run(connection, &build.statement).await {
        Ok(()) => {}
        Err(error) if code(&error).is_some_and(|code| THERE.contains(&code.as_str())) => {
            run(connection, "ROLLBACK; BEGIN").await.map_err(target("a transaction"))?;
        }
        Err(source) => {
            let text = source.to_string();
            let _ = run(connection, "ROLLBACK").await;
            if let Some(id) = build.step {
                let sql = "UPDATE dflux.schema_step SET error = $2 WHERE id = $1";
                let _ = sqlx::query(sql).bind(id).bind(text).execute(&mut *connection).await;
            }
            return Err(Error::Index { what: build.what, statement: build.statement, source });
        }
    }
    if let Some(id) = build.step {
        let sql = "UPDATE dflux.schema_step SET done_at = pg_catalog.clock_timestamp(), error = NULL WHERE id = $1";
        sqlx::query(sql).bind(id).execute(&mut *connection).await.map_err(target("dflux.schema_step"))?;
    }
    run(connection, "COMMIT").await.map_err(target("the commit"))?;
    observe::index_built(&build.what, began.elapsed().as_secs_f64());
    Ok(())
}

/// In the order of the dump; those of one table and its partitions, if it is named.
async fn steps(connection: &mut PgConnection, migration: &str, table: Option<&TableName>) -> Result<Vec<Build>, Error> {
    let sql = "SELECT id, coalesce(schema_name, ''), coalesce(table_name, ''), coalesce(name, ''), statement \
               FROM dflux.schema_step WHERE migration = $1 AND kind = 'key' AND done_at IS NULL AND ($2::text IS NULL \
               OR pg_catalog.to_regclass(quote_ident(schema_name) || '.' || quote_ident(nullif(table_name, ''))) IN \
               (SELECT pg_catalog.to_regclass($2) UNION ALL SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass($2)))) \
               ORDER BY id";
    let query = sqlx::query(sql).bind(migration).bind(table.map(TableName::quoted));
    let rows = query.fetch_all(connection).await.map_err(target("dflux.schema_step"))?;
    let build = |row: &sqlx::postgres::PgRow| -> Result<Build, sqlx::Error> {
        let (schema, table, name): (String, String, String) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok(Build {
            step: Some(row.try_get(0)?),
            what: format!("{name} of {schema}.{table}"),
            statement: row.try_get(4)?,
        })
    };
    rows.iter().map(build).collect::<Result<_, _>>().map_err(target("dflux.schema_step"))
}

/// Whether the table is partitioned, if it is there and no complete unique index has exactly these columns.
async fn lacks_key(connection: &mut PgConnection, table: &TableName, key: &[String]) -> Result<Option<bool>, Error> {
    let sql = "SELECT c.relkind = 'p' FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1) AND NOT EXISTS ( \
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique \
               AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND (SELECT pg_catalog.array_agg(a.attname::text \
                 ORDER BY a.attname::text COLLATE \"C\") FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) = $2)";
    let mut names = key.to_vec();
    names.sort();
    let query = sqlx::query_scalar(sql).bind(table.quoted()).bind(names);
    query.fetch_optional(connection).await.map_err(target(format!("the indexes of {table}")))
}

#[cfg(test)]
mod tests {
    use super::binds;

    #[test]
    fn a_partitions_index_is_attached_after_what_it_joins_is_built() {
        assert!(binds("ALTER INDEX public.root_pkey ATTACH PARTITION public.leaf_pkey;"));
        for built in [
            "ALTER TABLE ONLY public.leaf\n    ADD CONSTRAINT leaf_pkey PRIMARY KEY (id);",
            "CREATE UNIQUE INDEX a ON public.t USING btree (a);\n\nALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX a;",
        ] {
            assert!(!binds(built), "{built}");
        }
    }
}
