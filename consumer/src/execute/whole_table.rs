//! What is done to a table as a whole, in the lane's order: it is emptied for another copy, or altered as the source's was.

use changelog::table::{quote_identifier, schema_sql};
use changelog::{Position, SchemaChange, TableName};
use sqlx::Connection;

use super::Applier;
use crate::catalog::Alteration;
use crate::error::{code, target, transient};
use crate::evolve::Refusal;
use crate::target::run;
use crate::{Error, catalog, identity, observe};

/// SQLSTATEs that say: it is there already.
const THERE: [&str; 3] = ["42P06", "42P07", "42710"];
/// A change of a table waits so long for the sessions that read it, and is then tried again: others would queue behind it.
const ALTER_WITHIN: &str = "SET LOCAL lock_timeout = '5s'";

impl Applier {
    /// `<migration>/<lane>`.
    pub fn lane(&self) -> &str {
        &self.lane
    }

    /// Empties a table of which a copy will be loaded, and says so in the target: from here on the lane leaves it alone.
    /// `anew`: the copy was made after what the table was last known to be like, from the source's table of this OID (0: not known).
    ///
    /// # Errors
    /// `Target`, `Fenced`.
    pub async fn suspend(&mut self, table: &TableName, generation: u32, anew: Option<u32>) -> Result<(), Error> {
        self.begin().await?;
        self.empty(table).await?;
        let sql = "DELETE FROM dflux.incomplete WHERE lane = $1 AND schema_name = $2 AND table_name = $3";
        let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name);
        query.execute(&mut self.connection).await.map_err(target("dflux.incomplete"))?;
        // Of a copy that is loaded once more, nothing is there any longer.
        let sql =
            "DELETE FROM dflux.chunk WHERE lane = $1 AND schema_name = $2 AND table_name = $3 AND generation = $4";
        let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name).bind(generation as i32);
        query.execute(&mut self.connection).await.map_err(target("dflux.chunk"))?;
        if let Some(oid) = anew {
            identity::set(&mut self.connection, &self.lane, (table, oid), generation).await?;
            let sql = "INSERT INTO dflux.table_schema (lane, schema_name, table_name, commit_lsn, ordinal, part) \
                       VALUES ($1, $2, $3, '0/0', 0, 0) ON CONFLICT (lane, schema_name, table_name) DO UPDATE SET schema_id = NULL";
            let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name);
            query.execute(&mut self.connection).await.map_err(target("dflux.table_schema"))?;
        }
        let sql = "INSERT INTO dflux.table_state AS held (lane, schema_name, table_name, generation, state) \
                   VALUES ($1, $2, $3, $4, 'resyncing') ON CONFLICT (lane, schema_name, table_name) DO UPDATE SET \
                   generation = excluded.generation, state = excluded.state, replay_from = NULL, error = NULL, next_generation = \
                   CASE WHEN held.next_generation > excluded.generation THEN held.next_generation END \
                   WHERE held.generation <= excluded.generation";
        let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name).bind(generation as i32);
        query.execute(&mut self.connection).await.map_err(target("dflux.table_state"))?;
        self.still_leading().await?;
        run(&mut self.connection, "COMMIT").await.map_err(target("the commit"))?;
        self.open = false;
        Ok(())
    }

    /// Removes the rows of a table, if they are ours: a table of the same name that was never copied keeps its own, and the copy finds
    /// them. So it does where they cannot be removed.
    async fn empty(&mut self, table: &TableName) -> Result<(), Error> {
        let there = match catalog::table(&mut self.connection, table).await {
            Ok(there) => there,
            // It is new; the copy brings its definition.
            Err(Error::TableMissing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let sql = "SELECT EXISTS (SELECT FROM dflux.chunk WHERE (lane, schema_name, table_name) = ($1, $2, $3)) \
                   OR EXISTS (SELECT FROM dflux.table_state WHERE (lane, schema_name, table_name) = ($1, $2, $3)) \
                   OR EXISTS (SELECT FROM dflux.table_schema WHERE (lane, schema_name, table_name) = ($1, $2, $3))";
        let ours = sqlx::query_scalar::<_, bool>(sql).bind(&self.lane).bind(&table.schema).bind(&table.name);
        if !ours.fetch_one(&mut self.connection).await.map_err(target("what is known of a table"))? {
            return Ok(());
        }
        // Not TRUNCATE, which a foreign key of another table forbids.
        let sql = format!("SAVEPOINT rows; DELETE FROM {}", there.rows_of(table));
        match run(&mut self.connection, &sql).await {
            Err(source) if !transient(&source) => {
                observe::trouble(&Error::Target { what: format!("emptying {table}"), source });
                run(&mut self.connection, "ROLLBACK TO rows").await.map_err(target("ROLLBACK TO"))
            }
            emptied => emptied.map_err(target(format!("emptying {table}"))),
        }
    }

    /// Makes a table that is not there, with what it needs. What of that is there stays as it is.
    ///
    /// # Errors
    /// `Unmade` with the statement.
    pub async fn make(&mut self, table: &TableName, definition: &[String]) -> Result<(), Error> {
        self.begin().await?;
        run(&mut self.connection, ALTER_WITHIN).await.map_err(target("SET lock_timeout"))?;
        for statement in definition {
            run(&mut self.connection, "SAVEPOINT part").await.map_err(target("SAVEPOINT"))?;
            if let Err(source) = run(&mut self.connection, statement).await {
                if !code(&source).is_some_and(|code| THERE.contains(&code.as_str())) {
                    let _ = run(&mut self.connection, "ROLLBACK").await;
                    self.open = false;
                    let (table, statement) = (table.to_string().into(), statement.as_str().into());
                    return Err(Error::Unmade { table, statement, source });
                }
                run(&mut self.connection, "ROLLBACK TO part").await.map_err(target("ROLLBACK TO"))?;
            }
        }
        self.still_leading().await?;
        run(&mut self.connection, "COMMIT").await.map_err(target("the commit"))?;
        self.open = false;
        Ok(())
    }

    /// Makes a table like the events that follow, in the transaction that is open, or in one that it opens.
    ///
    /// # Errors
    /// `SchemaChange` with the statement that was refused; `Target` if it may pass later.
    pub async fn alter(&mut self, alteration: &Alteration) -> Result<(), Error> {
        let Alteration { table, position, statements, .. } = alteration;
        self.as_the_source(table, *position, statements).await?;
        catalog::set_current(&mut self.connection, &self.lane, alteration).await
    }

    /// Drops tables that the source has dropped together: one may hang on another.
    ///
    /// # Errors
    /// As [`Applier::alter`].
    pub async fn drop_tables(&mut self, tables: &[&TableName], change: &SchemaChange) -> Result<(), Error> {
        let Some(first) = tables.first() else { return Ok(()) };
        let names: Vec<String> = tables.iter().map(|table| table.quoted()).collect();
        // Without CASCADE: what the target has beside the source's is not the source's to drop.
        let statements = [format!("DROP TABLE IF EXISTS {}", names.join(", "))];
        self.as_the_source(first, change.position, &statements).await?;
        for table in tables {
            for sql in [
                "DELETE FROM dflux.incomplete WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
                "DELETE FROM dflux.table_schema WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
                "DELETE FROM dflux.table_identity WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
                // The copies that the ledger knows of are none of a later table's, but for one that may still begin.
                "UPDATE dflux.table_state SET state = 'live', generation = greatest(generation - 1, 0), replay_from = NULL, \
                 next_generation = NULL, error = NULL \
                 WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
            ] {
                let query = sqlx::query(sql).bind(&self.lane).bind(&table.schema).bind(&table.name);
                query.execute(&mut self.connection).await.map_err(target("what is known of a dropped table"))?;
            }
        }
        Ok(())
    }

    /// Makes a partition, unless the target is partitioned otherwise: then its rows have a place already, or none and are
    /// refused by name.
    ///
    /// # Errors
    /// As [`Applier::alter`].
    pub async fn add_partition(&mut self, table: &TableName, of: &str, change: &SchemaChange) -> Result<(), Error> {
        if catalog::exists(&mut self.connection, table).await? {
            return Ok(());
        }
        let statements = [schema_sql(&table.schema), format!("CREATE TABLE {} PARTITION OF {of}", table.quoted())];
        if !self.open {
            self.begin().await?;
        }
        run(&mut self.connection, "SAVEPOINT partition").await.map_err(target("SAVEPOINT"))?;
        match self.as_the_source(table, change.position, &statements).await {
            Err(Error::SchemaChange { refusal, .. }) => {
                let undo = "ROLLBACK TO partition; SET LOCAL lock_timeout = 0";
                run(&mut self.connection, undo).await.map_err(target("ROLLBACK TO"))?;
                tracing::warn!(%table, of, why = refusal.what, "a new partition of the source is not made on the target");
                Ok(())
            }
            made => made,
        }
    }

    /// Gives a table another name or schema, and what is known of it. What was copied stays known by both: the ledger speaks
    /// of the one, later events of the other. `built`: false of a table whose copy is not there, and perhaps not even the table.
    ///
    /// # Errors
    /// As [`Applier::alter`].
    pub async fn rename_table(
        &mut self,
        (from, built): (&TableName, bool),
        to: &TableName,
        at: Position,
    ) -> Result<(), Error> {
        let mut statements = Vec::new();
        let there = catalog::exists(&mut self.connection, from).await?;
        if there || (built && !catalog::exists(&mut self.connection, to).await?) {
            let mut named = from.clone();
            if from.schema != to.schema {
                statements.push(schema_sql(&to.schema));
                statements.push(format!("ALTER TABLE {} SET SCHEMA {}", named.quoted(), quote_identifier(&to.schema)));
                named.schema.clone_from(&to.schema);
            }
            if from.name != to.name {
                statements.push(format!("ALTER TABLE {} RENAME TO {}", named.quoted(), quote_identifier(&to.name)));
            }
        }
        self.as_the_source(from, at, &statements).await?;
        for sql in [
            // Of a table that once had the name.
            "DELETE FROM dflux.table_state WHERE lane = $1 AND (schema_name, table_name) = ($4, $5) AND ($2::text, $3::text) IS NOT NULL",
            "DELETE FROM dflux.incomplete WHERE lane = $1 AND (schema_name, table_name) = ($4, $5) AND ($2::text, $3::text) IS NOT NULL",
            "DELETE FROM dflux.table_schema WHERE lane = $1 AND (schema_name, table_name) = ($4, $5) AND ($2::text, $3::text) IS NOT NULL",
            "DELETE FROM dflux.table_identity WHERE lane = $1 AND (schema_name, table_name) = ($4, $5) AND ($2::text, $3::text) IS NOT NULL",
            "UPDATE dflux.table_identity SET schema_name = $4, table_name = $5 WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
            "UPDATE dflux.incomplete SET schema_name = $4, table_name = $5 WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
            "UPDATE dflux.table_schema SET schema_name = $4, table_name = $5 WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)",
            "INSERT INTO dflux.table_state AS held (lane, schema_name, table_name, generation, state, replay_from) \
             SELECT lane, $4, $5, generation, state, replay_from FROM dflux.table_state \
             WHERE lane = $1 AND (schema_name, table_name) = ($2, $3) ON CONFLICT (lane, schema_name, table_name) DO UPDATE SET \
             generation = greatest(held.generation, excluded.generation), state = excluded.state, replay_from = excluded.replay_from",
            "UPDATE dflux.table_state SET state = 'live', replay_from = NULL \
             WHERE lane = $1 AND (schema_name, table_name) = ($2, $3) AND ($4::text, $5::text) IS NOT NULL",
            "INSERT INTO dflux.chunk (lane, schema_name, table_name, generation, chunk, attempt, snapshot_lsn, exact_snapshot, row_count, loaded_at) \
             SELECT lane, $4, $5, generation, chunk, attempt, snapshot_lsn, exact_snapshot, row_count, loaded_at FROM dflux.chunk \
             WHERE lane = $1 AND (schema_name, table_name) = ($2, $3) ON CONFLICT DO NOTHING",
        ] {
            let query = sqlx::query(sql).bind(&self.lane).bind(&from.schema).bind(&from.name);
            let query = query.bind(&to.schema).bind(&to.name);
            query.execute(&mut self.connection).await.map_err(target("what is known of a renamed table"))?;
        }
        if !built {
            let sql = "UPDATE dflux.table_state SET state = 'resyncing', error = $4 WHERE lane = $1 AND (schema_name, table_name) = ($2, $3)";
            let query = sqlx::query(sql).bind(&self.lane).bind(&to.schema).bind(&to.name);
            let query =
                query.bind(format!("error: it was {from} when its copy was asked for\nhint: dflux resync {to}"));
            query.execute(&mut self.connection).await.map_err(target("dflux.table_state"))?;
        }
        Ok(())
    }

    /// Runs what the source ran, in the transaction that is open, or in one that it opens.
    async fn as_the_source(&mut self, table: &TableName, at: Position, statements: &[String]) -> Result<(), Error> {
        if !self.open {
            self.begin().await?;
        }
        run(&mut self.connection, ALTER_WITHIN).await.map_err(target("SET lock_timeout"))?;
        for statement in statements {
            run(&mut self.connection, statement).await.map_err(|source| match transient(&source) {
                true => Error::Target { what: statement.clone(), source },
                false => Error::SchemaChange {
                    table: table.clone(),
                    position: at,
                    refusal: Box::new(Refusal {
                        what: format!("has changed, and the target refuses the same: {source}"),
                        statement: statement.clone(),
                        copy_again: false,
                        said: None,
                    }),
                },
            })?;
            observe::altered(&table.to_string(), &at, statement);
        }
        run(&mut self.connection, "SET LOCAL lock_timeout = 0").await.map_err(target("SET lock_timeout"))?;
        // What was prepared for the table as it was.
        self.connection.clear_cached_statements().await.map_err(target("DEALLOCATE"))
    }
}
