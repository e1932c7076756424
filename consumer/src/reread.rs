//! Rows that no event completes: read again from the source, before the lane counts as exact.
//!
//! A tolerant update found no row (it was moved by a key change between two snapshots) and did not carry its TOAST columns.
//! Its key is in `dflux.incomplete`. The row is read under a snapshot of its own; the point C2 is taken after the snapshot,
//! so every transaction below C2 that is in it or not is applied again, tolerantly, up to C2. Then the lane is exact.

use std::collections::BTreeMap;

use changelog::table::{quote_identifier, quote_literal};
use changelog::{Lsn, TableName};
use service::session::Address;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::error::target;
use crate::relation::rows_of;
use crate::target::{Marking, run};
use crate::{Error, catalog, observe};

/// Keys read by one statement.
const PAGE: usize = 1000;

fn source(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
    move |source| Error::Source { what: what.into(), source }
}

/// Reads what is incomplete again. The point up to which the lane stays tolerant; `None` if nothing was incomplete.
///
/// # Errors
/// `Source`, `Target`, `Fenced`.
pub async fn run_once(
    connection: &mut PgConnection,
    marking: &Marking,
    lane: &str,
    epoch: i64,
    source_url: &str,
) -> Result<Option<Lsn>, Error> {
    let incomplete = incomplete(connection, lane).await?;
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
    }
    let sql = "DELETE FROM dflux.incomplete WHERE lane = $1";
    sqlx::query(sql).bind(lane).execute(&mut *connection).await.map_err(target("dflux.incomplete"))?;
    let sql = "UPDATE dflux.lane SET exact_from = $3::pg_lsn WHERE lane = $1 AND epoch = $2";
    let query = sqlx::query(sql).bind(lane).bind(epoch).bind(point.to_string());
    if query.execute(&mut *connection).await.map_err(target("dflux.lane"))?.rows_affected() != 1 {
        return Err(Error::Fenced { lane: lane.to_owned(), epoch });
    }
    run(connection, "COMMIT").await.map_err(target("the commit"))?;
    Ok(Some(point))
}

async fn incomplete(connection: &mut PgConnection, lane: &str) -> Result<BTreeMap<TableName, Vec<Vec<String>>>, Error> {
    let sql = "SELECT schema_name, table_name, key FROM dflux.incomplete WHERE lane = $1";
    let rows = sqlx::query(sql).bind(lane).fetch_all(connection).await.map_err(target("dflux.incomplete"))?;
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

/// Columns of the primary key, else of the replica identity, in index order, with their types.
const KEY: &str = "
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1)
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = pg_catalog.to_regclass($1) AND k.place <= i.indnkeyatts
  AND i.indexrelid = (SELECT j.indexrelid FROM pg_catalog.pg_index j WHERE j.indrelid = i.indrelid
                      AND (j.indisprimary OR j.indisreplident) ORDER BY j.indisprimary DESC LIMIT 1)
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
    let key: Vec<(String, String)> = key.iter().map(|row| (row.get(0), row.get(1))).collect();
    let found = catalog::table(connection, table).await?;
    let rows_here = found.rows_of(table);
    let columns: Vec<_> = found.columns.into_iter().filter(|column| !column.generated).collect();
    let matches: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(at, (name, type_name))| format!("t.{} = u.c{at}::{type_name}", quote_identifier(name)))
        .collect();
    let wanted: Vec<String> =
        (0..key.len()).map(|at| texts(keys.iter().map(|key| key.get(at).map(String::as_str)))).collect();
    let from = |arrays: &[String]| {
        let names: Vec<String> = (0..arrays.len()).map(|at| format!("c{at}")).collect();
        format!("unnest({}) AS u({})", arrays.join(", "), names.join(", "))
    };
    let list: Vec<String> =
        columns.iter().map(|column| format!("t.{}::pg_catalog.text", quote_identifier(&column.name))).collect();
    let sql =
        format!("SELECT {} FROM {rows_there} t, {} WHERE {}", list.join(", "), from(&wanted), matches.join(" AND "));
    let rows = client.query(&sql, &[]).await.map_err(source(format!("rows of {table}")))?;
    let delete = format!("DELETE FROM {rows_here} t USING {} WHERE {}", from(&wanted), matches.join(" AND "));
    run(connection, &delete).await.map_err(target(format!("rows of {table}")))?;
    if rows.is_empty() {
        return Ok(());
    }
    let arrays: Vec<String> =
        (0..columns.len()).map(|at| texts(rows.iter().map(|row| row.get::<_, Option<&str>>(at)))).collect();
    let names: Vec<String> = columns.iter().map(|column| quote_identifier(&column.name)).collect();
    let values: Vec<String> =
        columns.iter().enumerate().map(|(at, column)| format!("u.c{at}::{}", column.type_name)).collect();
    let insert = format!(
        "INSERT INTO {quoted} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        names.join(", "),
        values.join(", "),
        from(&arrays)
    );
    let insert = sqlx::raw_sql(AssertSqlSafe(insert)).execute(connection).await;
    insert.map(|_| ()).map_err(target(format!("rows of {table}")))
}

/// `ARRAY['a', NULL]::text[]`.
fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    let values: Vec<String> = values.map(|value| value.map_or_else(|| "NULL".to_owned(), quote_literal)).collect();
    format!("ARRAY[{}]::pg_catalog.text[]", values.join(", "))
}
