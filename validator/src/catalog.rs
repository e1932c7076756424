//! Reads the definitions of a database's tables from its catalog (PostgreSQL 14 and later).

use crate::Error;
use crate::canonical::HashLane;
use crate::definition::{DatabaseDefinition, TableDefinition};
use crate::session::{Session, statement};

/// One JSON document a table. Catalog columns that differ between versions (`datlocprovider`, `colllocale`) are read through
/// `to_jsonb`, which yields null for what is not there.
const TABLES: &str = r#"
WITH RECURSIVE root(oid, root) AS (
  SELECT t.oid, t.oid FROM pg_type t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT d.oid, r.root FROM pg_type d JOIN root r ON d.typbasetype = r.oid WHERE d.typtype = 'd'
),
collations AS (
  SELECT c.oid,
    CASE WHEN c.oid = 100 THEN coalesce(to_jsonb(d)->>'datlocprovider', 'c') ELSE c.collprovider::text END AS provider,
    CASE WHEN c.oid = 100
      THEN CASE coalesce(to_jsonb(d)->>'datlocprovider', 'c')
        WHEN 'c' THEN d.datcollate ELSE coalesce(to_jsonb(d)->>'daticulocale', to_jsonb(d)->>'datlocale') END
      ELSE CASE c.collprovider WHEN 'c' THEN c.collcollate
        ELSE coalesce(to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'colllocale', c.collcollate) END
    END AS locale,
    c.collisdeterministic AS deterministic
  FROM pg_collation c, pg_database d WHERE d.datname = current_database()
),
orders AS (
  SELECT l.oid,
    CASE
      WHEN l.provider IN ('c', 'b') AND l.locale IN ('C', 'POSIX') THEN 'C'
      WHEN l.provider = 'b' THEN 'b:' || l.locale
      ELSE l.provider || ':' || lower(replace(l.locale, '-', '')) || ':' || l.deterministic || ':' || (
        SELECT pg_collation_actual_version(v.oid) FROM pg_collation v
        WHERE v.collprovider::text = l.provider AND v.collname NOT IN ('C', 'POSIX', 'default', 'ucs_basic')
          AND pg_collation_actual_version(v.oid) IS NOT NULL LIMIT 1)
    END AS ordering
  FROM collations l
),
attributes AS (
  SELECT a.attrelid, a.attnum, jsonb_build_object(
    'name', a.attname,
    'type_name', format_type(a.atttypid, a.atttypmod),
    'base', jsonb_build_object('schema', bn.nspname, 'name', bt.typname, 'kind', bt.typtype, 'output', bt.typoutput::regproc::text),
    'not_null', a.attnotnull,
    'collation', CASE WHEN a.attcollation IN (0, t.typcollation) THEN ''
      ELSE (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_collation c
            JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) END,
    'order', CASE WHEN a.attcollation = 0 THEN '' ELSE (SELECT o.ordering FROM orders o WHERE o.oid = a.attcollation) END,
    'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum),
    'identity', a.attidentity,
    'generated', a.attgenerated,
    'labels', coalesce((SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = bt.oid), '[]'),
    'comment', col_description(a.attrelid, a.attnum)
  ) AS definition
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN root r ON r.oid = a.atttypid
  JOIN pg_type bt ON bt.oid = r.root
  JOIN pg_namespace bn ON bn.oid = bt.typnamespace
  WHERE a.attnum > 0 AND NOT a.attisdropped
)
SELECT jsonb_build_object(
  'schema', n.nspname,
  'name', c.relname,
  'kind', c.relkind,
  'persistence', c.relpersistence,
  'rows_estimate', c.reltuples,
  'columns', coalesce((SELECT jsonb_agg(a.definition ORDER BY a.attnum) FROM attributes a WHERE a.attrelid = c.oid), '[]'),
  'key', coalesce((
    SELECT jsonb_agg(a.attname ORDER BY k.place)
    FROM (SELECT i.* FROM pg_index i
          WHERE i.indrelid = c.oid AND (i.indisprimary OR (i.indisreplident AND c.relreplident = 'i'))
          ORDER BY i.indisreplident AND c.relreplident = 'i' DESC LIMIT 1) i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts), '[]'),
  'primary', coalesce((
    SELECT jsonb_agg(a.attname ORDER BY k.place)
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts), '[]'),
  'indexes', coalesce((
    SELECT jsonb_agg(jsonb_build_object('name', ic.relname, 'definition', pg_get_indexdef(i.indexrelid), 'active', i.indisvalid)
      ORDER BY ic.relname)
    FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = c.oid)), '[]'),
  'constraints', coalesce((
    SELECT jsonb_agg(jsonb_build_object('name', k.conname, 'definition', pg_get_constraintdef(k.oid), 'active', k.convalidated)
      ORDER BY k.conname)
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype NOT IN ('n', 't')), '[]'),
  'triggers', coalesce((
    SELECT jsonb_agg(jsonb_build_object('name', g.tgname, 'definition', pg_get_triggerdef(g.oid), 'active', g.tgenabled <> 'D')
      ORDER BY g.tgname)
    FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgname <> 'dflux fence'), '[]'),
  'policies', coalesce((
    SELECT jsonb_agg(jsonb_build_object('name', p.polname, 'definition', concat_ws(' ', p.polcmd, p.polpermissive,
      'USING', pg_get_expr(p.polqual, p.polrelid), 'CHECK', pg_get_expr(p.polwithcheck, p.polrelid)), 'active', true)
      ORDER BY p.polname)
    FROM pg_policy p WHERE p.polrelid = c.oid), '[]'),
  'row_security', CASE WHEN c.relforcerowsecurity THEN 'forced' WHEN c.relrowsecurity THEN 'on' ELSE 'off' END,
  'comment', obj_description(c.oid, 'pg_class'),
  'parent', (SELECT jsonb_build_array(pn.nspname, p.relname) FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
    JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid AND c.relispartition LIMIT 1),
  'published', EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE r.prrelid = c.oid AND p.pubname = $1),
  'identified', EXISTS (SELECT FROM pg_index i
    WHERE i.indrelid = c.oid AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
      AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
      AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> ''
        AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))
)::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname <> 'dflux' AND n.nspname NOT LIKE 'pg\_%'
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"#;

/// Version, encoding and all tables of a database, in the order of their names. `publication` is the migration's.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn read(session: &mut Session, publication: &str) -> Result<DatabaseDefinition, Error> {
    let doing = "reading the catalog";
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding')";
    let row = session.row(doing, statement(sql.into())).await?;
    let (version, encoding) = (session.get(doing, &row, 0)?, session.get(doing, &row, 1)?);
    let mut tables = Vec::new();
    for row in session.rows(doing, statement(TABLES.into()).bind(publication.to_owned())).await? {
        let json: String = session.get(doing, &row, 0)?;
        let table: TableDefinition =
            serde_json::from_str(&json).map_err(|error| session.unexpected(doing, error.to_string()))?;
        tables.push(table);
    }
    Ok(DatabaseDefinition { version, encoding, tables })
}

/// The hashes of fixed texts in a lane; none if the server cannot compute them (another encoding).
///
/// # Errors
/// `Database` if the session is gone.
pub async fn probe(session: &mut Session, lane: HashLane) -> Result<Option<(i64, i64)>, Error> {
    let doing = "probing its hash functions";
    match session.row(doing, statement(lane.probe())).await {
        Ok(row) => Ok(Some((session.get(doing, &row, 0)?, session.get(doing, &row, 1)?))),
        Err(Error::Database { source, .. }) if source.as_database_error().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}
