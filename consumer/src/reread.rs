//! Rows that no event completes: read again from the source, before the lane counts as exact, or a replayed table as the lane's; and
//! rows that an operator has found to be wrong (`dflux resync TABLE --rows`), while the lane is exact.
//!
//! A tolerant update found no row (it was moved by a key change between two snapshots) and did not carry its TOAST columns.
//! Its key is in `dflux.incomplete`, and so are those that the operator named. The row is read under a snapshot of its own; the point C2 is taken after the snapshot,
//! so every transaction below C2 that is in it or not is applied again, tolerantly, up to C2. Then the lane is exact. A replayed table
//! has its own C2: its copy counts as read there.

use std::collections::BTreeMap;

use changelog::table::{quote_identifier, quote_literal};
use changelog::{Lsn, TableName};
use service::session::Address;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::error::target;
use crate::execute::Scope;
use crate::relation::{TargetColumn, printed, rows_of};
use crate::target::{Marking, run};
use crate::{Error, catalog, observe};

/// Keys read by one statement.
const PAGE: usize = 1000;

fn source(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
    move |source| Error::Source { what: what.into(), source }
}

/// Reads again what is incomplete of the lane's tables, or of the one that is replayed. The point up to which events are still
/// tolerated; `None` if nothing was incomplete.
///
/// # Errors
/// `Source`, `Target`, `Fenced`.
pub async fn run_once(
    connection: &mut PgConnection,
    marking: &Marking,
    (lane, epoch): (&str, i64),
    scope: &Scope,
    source_url: &str,
) -> Result<Option<Lsn>, Error> {
    let incomplete = incomplete(connection, lane, scope).await?;
    if incomplete.is_empty() {
        return Ok(None);
    }
    let client = Address::parse("source", source_url)?.connect(&format!("dflux consumer {lane}")).await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1")
        .await
        .map_err(source("opening a snapshot"))?;
    let point = client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await;
    let point: String = point.map_err(source("its WAL position"))?.get(0);
    let point: Lsn = point.parse().unwrap_or_default();
    run(connection, &marking.begin(lane)).await.map_err(target("opening a transaction"))?;
    for (table, keys) in &incomplete {
        observe::reread(&table.to_string(), keys.len());
        for page in keys.chunks(PAGE) {
            one_page(connection, &client, table, page).await?;
        }
        let sql = "DELETE FROM dflux.incomplete WHERE lane = $1 AND schema_name = $2 AND table_name = $3";
        let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name);
        query.execute(&mut *connection).await.map_err(target("dflux.incomplete"))?;
    }
    let noted = match scope {
        Scope::Lane => {
            let sql = "UPDATE dflux.lane SET exact_from = $3::pg_lsn WHERE lane = $1 AND epoch = $2";
            sqlx::query(sql).bind(lane).bind(epoch).bind(point.to_string()).execute(&mut *connection).await
        }
        Scope::Table(table) => {
            let sql = "WITH l AS (SELECT lane FROM dflux.lane WHERE lane = $1 AND epoch = $2 FOR SHARE) \
                       UPDATE dflux.chunk c SET snapshot_lsn = $3::pg_lsn, exact_snapshot = false FROM l \
                       WHERE c.lane = l.lane AND c.schema_name = $4 AND c.table_name = $5 AND (c.generation, c.chunk) = \
                       (SELECT x.generation, x.chunk FROM dflux.chunk x WHERE (x.lane, x.schema_name, x.table_name) = ($1, $4, $5) \
                       ORDER BY 1 DESC, 2 DESC LIMIT 1)";
            let query = sqlx::query(sql).bind(lane).bind(epoch).bind(point.to_string());
            query.bind(&table.schema).bind(&table.name).execute(&mut *connection).await
        }
    };
    if noted.map_err(target("noting what was read again"))?.rows_affected() != 1 {
        return Err(Error::Fenced { lane: lane.to_owned(), epoch });
    }
    run(connection, "COMMIT").await.map_err(target("the commit"))?;
    Ok(Some(point))
}

/// Gives up what an operator has asked for, who finds that it still differs and asks again. False if the lane itself cannot do
/// without some of it.
///
/// # Errors
/// `Target`.
pub async fn give_up(connection: &mut PgConnection, lane: &str) -> Result<bool, Error> {
    run(connection, "ROLLBACK").await.map_err(target("ROLLBACK"))?;
    let sql = "DELETE FROM dflux.incomplete i WHERE lane = $1 AND NOT EXISTS \
               (SELECT FROM dflux.incomplete n WHERE n.lane = $1 AND n.asked_at IS NULL)";
    let query = sqlx::query(sql).bind(lane).execute(connection).await;
    Ok(query.map_err(target("dflux.incomplete"))?.rows_affected() > 0)
}

/// Whether there are rows to be read again of tables that are the lane's.
///
/// # Errors
/// `Target`.
pub async fn asked(connection: &mut PgConnection, lane: &str) -> Result<bool, Error> {
    Ok(!incomplete(connection, lane, &Scope::Lane).await?.is_empty())
}

/// A table that is not the lane's at this moment is not the lane's to complete.
async fn incomplete(
    connection: &mut PgConnection,
    lane: &str,
    scope: &Scope,
) -> Result<BTreeMap<TableName, Vec<Vec<String>>>, Error> {
    let sql = "SELECT schema_name, table_name, key FROM dflux.incomplete i WHERE lane = $1 AND CASE WHEN $2::text IS NULL \
               THEN NOT EXISTS (SELECT FROM dflux.table_state s WHERE (s.lane, s.schema_name, s.table_name) = \
               (i.lane, i.schema_name, i.table_name) AND s.state <> 'live') ELSE (schema_name, table_name) = ($2, $3) END";
    let table = match scope {
        Scope::Lane => None,
        Scope::Table(table) => Some(table),
    };
    let query = sqlx::query(sql).bind(lane).bind(table.map(|t| &t.schema)).bind(table.map(|t| &t.name));
    let rows = query.fetch_all(connection).await.map_err(target("dflux.incomplete"))?;
    let mut tables: BTreeMap<TableName, Vec<Vec<String>>> = BTreeMap::new();
    for row in rows {
        let read = || -> Result<(String, String, Vec<String>), sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (schema, name, key) = read().map_err(target("dflux.incomplete"))?;
        tables.entry(TableName::new(schema, name)).or_default().push(key);
    }
    Ok(tables)
}

/// Columns of the replica identity index, else of the primary key (as the producer has it), in index order, with their types and the index's own `=`.
const KEY: &str = "
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1),
  (SELECT 'OPERATOR(' || pg_catalog.quote_ident(n.nspname) || '.' || o.oprname || ')' FROM pg_catalog.pg_amop m
   JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
   WHERE m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
   AND m.amoppurpose = 's')
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.place - 1]
WHERE i.indrelid = pg_catalog.to_regclass($1) AND k.place <= i.indnkeyatts
  AND i.indexrelid = (SELECT j.indexrelid FROM pg_catalog.pg_index j WHERE j.indrelid = i.indrelid
                      AND (j.indisprimary OR j.indisreplident) ORDER BY j.indisreplident DESC LIMIT 1)
ORDER BY k.place";

async fn one_page(
    connection: &mut PgConnection,
    client: &tokio_postgres::Client,
    table: &TableName,
    keys: &[Vec<String>],
) -> Result<(), Error> {
    let quoted = table.quoted();
    let kind = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
    let kind = client.query_opt(kind, &[&quoted]).await.map_err(source(format!("the kind of {table}")))?;
    let rows_there = rows_of(table, kind.is_some_and(|row| row.get(0)));
    let key = client.query(KEY, &[&quoted]).await.map_err(source(format!("the key of {table}")))?;
    let key: Vec<(String, String, String)> = key.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let found = catalog::table(connection, table).await?;
    let rows_here = found.rows_of(table);
    // A column that only the target has keeps its default, as in every other row.
    let sql = "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = pg_catalog.to_regclass($1) AND attnum > 0 \
               AND NOT attisdropped";
    let names = client.query(sql, &[&quoted]).await.map_err(source(format!("the columns of {table}")))?;
    let names: Vec<String> = names.iter().map(|row| row.get(0)).collect();
    let both = |column: &TargetColumn| !column.generated && names.contains(&column.name);
    let columns: Vec<_> = found.columns.into_iter().filter(both).collect();
    let there = key
        .iter()
        .enumerate()
        .map(|(at, (name, type_name, equals))| format!("t.{} {equals} u.c{at}::{type_name}", quote_identifier(name)));
    let there = there.collect::<Vec<_>>().join(" AND ");
    let here = key.iter().enumerate().filter_map(|(at, (name, _, _))| {
        let column = columns.iter().find(|column| column.name == *name)?;
        let value = column.input(&format!("u.c{at}"));
        Some(format!("t.{} {} {value}", quote_identifier(name), column.equals()))
    });
    let here = here.collect::<Vec<_>>().join(" AND ");
    // A part of a key would take other rows with it.
    let whole = |name: &String| columns.iter().any(|column| column.name == *name);
    let fits = |named: &Vec<String>| named.len() == key.len();
    if key.is_empty() || !key.iter().all(|(name, ..)| whole(name)) || !keys.iter().all(fits) {
        let what = "its key is another on the source since, or the target does not have it".to_owned();
        return Err(Error::TableUnfit { table: table.to_string(), what });
    }
    let wanted: Vec<String> =
        (0..key.len()).map(|at| texts(keys.iter().map(|key| key.get(at).map(String::as_str)))).collect();
    let from = |arrays: &[String]| {
        let names: Vec<String> = (0..arrays.len()).map(|at| format!("c{at}")).collect();
        format!("unnest({}) AS u({})", arrays.join(", "), names.join(", "))
    };
    let list = columns.iter().map(|column| {
        let value = format!("t.{}", quote_identifier(&column.name));
        // `IS NULL` would take a row of nulls for none.
        format!("CASE pg_catalog.num_nulls({value}) WHEN 0 THEN {} END", printed(&value))
    });
    let list = list.collect::<Vec<_>>().join(", ");
    let sql = format!("SELECT {list} FROM {rows_there} t, {} WHERE {there}", from(&wanted));
    let rows = client.query(&sql, &[]).await.map_err(source(format!("rows of {table}")))?;
    let arrays: Vec<String> =
        (0..columns.len()).map(|at| texts(rows.iter().map(|row| row.get::<_, Option<&str>>(at)))).collect();
    // All at once, so that they may exchange unique values; but where foreign keys are checked, others may hang on what stays.
    let stays = if found.replica_role {
        String::new()
    } else {
        let same = key.iter().filter_map(|(name, ..)| {
            let at = columns.iter().position(|column| column.name == *name)?;
            let value = columns[at].input(&format!("v.c{at}"));
            Some(format!("t.{} {} {value}", quote_identifier(name), columns[at].equals()))
        });
        let same = same.collect::<Vec<_>>().join(" AND ");
        format!(" AND NOT EXISTS (SELECT FROM {} WHERE {same})", from(&arrays).replace(" AS u(", " AS v("))
    };
    let delete = format!("DELETE FROM {rows_here} t USING {} WHERE {here}{stays}", from(&wanted));
    run(connection, &delete).await.map_err(target(format!("rows of {table}")))?;
    if rows.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = columns.iter().map(|column| quote_identifier(&column.name)).collect();
    let values: Vec<String> =
        columns.iter().enumerate().map(|(at, column)| column.input(&format!("u.c{at}"))).collect();
    let conflict = if found.replica_role { String::new() } else { on_conflict(&key, &columns) };
    let insert = format!(
        "INSERT INTO {quoted} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}{conflict}",
        names.join(", "),
        values.join(", "),
        from(&arrays)
    );
    let insert = sqlx::raw_sql(AssertSqlSafe(insert)).execute(connection).await;
    insert.map(|_| ()).map_err(target(format!("rows of {table}")))
}

/// A row that stays takes the values of the one that comes.
fn on_conflict(key: &[(String, String, String)], columns: &[TargetColumn]) -> String {
    let names: Vec<String> = key.iter().map(|(name, ..)| quote_identifier(name)).collect();
    let others =
        columns.iter().filter(|column| !column.identity_always && key.iter().all(|(name, ..)| *name != column.name));
    let sets: Vec<String> =
        others.map(|column| quote_identifier(&column.name)).map(|name| format!("{name} = excluded.{name}")).collect();
    match sets.as_slice() {
        [] => format!(" ON CONFLICT ({}) DO NOTHING", names.join(", ")),
        sets => format!(" ON CONFLICT ({}) DO UPDATE SET {}", names.join(", "), sets.join(", ")),
    }
}

/// `ARRAY['a', NULL]::text[]`.
fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    let values: Vec<String> = values.map(|value| value.map_or_else(|| "NULL".to_owned(), quote_literal)).collect();
    format!("ARRAY[{}]::pg_catalog.text[]", values.join(", "))
}
