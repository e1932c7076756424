//! The statements that make a table where there is none: what its rows and its events need. The types of its columns, the
//! sequences of its defaults, its columns, checks, partitions and key. What else belongs to it (other indexes and constraints,
//! triggers) comes with `dflux prepare`, which has pg_dump's word for it.

use changelog::table::schema_sql;
use tokio_postgres::Client;

use super::{field, rows};
use crate::error::Error;

const DOING: &str = "read a table's definition";

/// `CREATE SEQUENCE`'s options, of `pg_sequence s`.
const OPTIONS: &str = "' INCREMENT BY ' || s.seqincrement || ' MINVALUE ' || s.seqmin || ' MAXVALUE ' || s.seqmax || ' START WITH ' \
    || s.seqstart || ' CACHE ' || s.seqcache || CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END";

/// Of relation `c` and namespace `n`.
const NAME: &str = "pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)";

/// In the order in which they must be run. Each may find that what it makes is there. Pure.
fn sql(table: u32) -> String {
    format!(
        "WITH RECURSIVE tree (relid, level) AS (
    -- A table, or a partitioned table with all that is below it.
    SELECT {table}::pg_catalog.oid, 0 UNION SELECT t.relid, t.level FROM pg_catalog.pg_partition_tree({table}::pg_catalog.oid) t
), types (oid) AS (
    SELECT a.atttypid FROM pg_catalog.pg_attribute a JOIN tree ON tree.relid = a.attrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT u.oid FROM types y JOIN pg_catalog.pg_type t ON t.oid = y.oid CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typelem <> 0 UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS u (oid)
), own AS (
    SELECT t.*, n.nspname, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) AS name
    FROM types y JOIN pg_catalog.pg_type t ON t.oid = y.oid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND (t.typtype IN ('e', 'd') OR t.typtype = 'c'
            AND EXISTS (SELECT FROM pg_catalog.pg_class k WHERE k.oid = t.typrelid AND k.relkind = 'c'))
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
            AND d.objid = t.oid AND d.deptype = 'e')
), columns AS (
    SELECT a.*, d.oid AS default_oid, pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression
    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE a.attrelid = {table} AND a.attnum > 0 AND NOT a.attisdropped
), sequences AS (
    -- Those of defaults; an identity's comes with its column.
    SELECT DISTINCT s.*, {NAME} AS name, n.nspname FROM columns a JOIN pg_catalog.pg_depend d ON
        d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = a.default_oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.refobjid JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
), parts (place, statement) AS (
    SELECT array[1, o.oid::pg_catalog.int8], CASE o.typtype
        WHEN 'e' THEN 'CREATE TYPE ' || o.name || ' AS ENUM (' || coalesce((SELECT pg_catalog.string_agg(
            pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = o.oid), '') || ')'
        WHEN 'd' THEN 'CREATE DOMAIN ' || o.name || ' AS ' || pg_catalog.format_type(o.typbasetype, o.typtypmod)
            || coalesce((SELECT ' COLLATE ' || pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(l.collname)
                FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
                JOIN pg_catalog.pg_type b ON b.oid = o.typbasetype WHERE l.oid = o.typcollation AND o.typcollation <> b.typcollation), '')
            || coalesce(' DEFAULT ' || o.typdefault, '') || CASE WHEN o.typnotnull THEN ' NOT NULL' ELSE '' END
            || coalesce((SELECT pg_catalog.string_agg(' CONSTRAINT ' || pg_catalog.quote_ident(k.conname) || ' '
                || pg_catalog.pg_get_constraintdef(k.oid), '' ORDER BY k.oid) FROM pg_catalog.pg_constraint k
                WHERE k.contypid = o.oid AND k.contype = 'c' AND k.convalidated), '')
        ELSE 'CREATE TYPE ' || o.name || ' AS (' || coalesce((SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' '
            || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = o.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '') || ')'
        END FROM own o
    UNION ALL
    SELECT array[2, s.seqrelid::pg_catalog.int8], 'CREATE SEQUENCE ' || s.name || ' AS ' || pg_catalog.format_type(s.seqtypid, NULL) || {OPTIONS} FROM sequences s
    UNION ALL
    SELECT array[3]::pg_catalog.int8[], 'CREATE TABLE ' || {NAME} || CASE WHEN c.relispartition THEN (
            SELECT ' PARTITION OF ' || pg_catalog.quote_ident(pn.nspname) || '.' || pg_catalog.quote_ident(p.relname) || ' '
                || pg_catalog.pg_get_expr(c.relpartbound, c.oid) FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
                JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid)
        ELSE ' (' || pg_catalog.concat_ws(', ', (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' '
                || pg_catalog.format_type(a.atttypid, a.atttypmod)
                || coalesce((SELECT ' COLLATE ' || pg_catalog.quote_ident(ln.nspname) || '.' || pg_catalog.quote_ident(l.collname)
                    FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
                    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation), '')
                || CASE WHEN a.attgenerated = 's' THEN ' GENERATED ALWAYS AS (' || a.expression || ') STORED'
                    WHEN a.attgenerated = 'v' THEN ' GENERATED ALWAYS AS (' || a.expression || ') VIRTUAL'
                    WHEN a.attidentity <> '' THEN ' GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END
                        || ' AS IDENTITY' || coalesce((SELECT ' (SEQUENCE NAME ' || {sequence_name} || {OPTIONS} || ')'
                            FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.objid
                            JOIN pg_catalog.pg_class q ON q.oid = s.seqrelid JOIN pg_catalog.pg_namespace qn ON qn.oid = q.relnamespace
                            WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = a.attrelid
                            AND d.refobjsubid = a.attnum AND d.deptype = 'i'), '')
                    ELSE coalesce(' DEFAULT ' || a.expression, '') END
                || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END, ', ' ORDER BY a.attnum) FROM columns a),
            (SELECT pg_catalog.string_agg('CONSTRAINT ' || pg_catalog.quote_ident(k.conname) || ' ' || pg_catalog.pg_get_constraintdef(k.oid),
                ', ' ORDER BY k.oid) FROM pg_catalog.pg_constraint k
                WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conislocal AND k.convalidated)) || ')'
            || coalesce((SELECT ' INHERITS (' || pg_catalog.string_agg(pg_catalog.quote_ident(pn.nspname) || '.'
                || pg_catalog.quote_ident(p.relname), ', ' ORDER BY i.inhseqno) || ')' FROM pg_catalog.pg_inherits i
                JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
                WHERE i.inhrelid = c.oid), '') END
        || CASE WHEN c.relkind = 'p' THEN ' PARTITION BY ' || pg_catalog.pg_get_partkeydef(c.oid) ELSE '' END
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {table}
    UNION ALL
    SELECT array[4, d.objid::pg_catalog.int8], 'ALTER SEQUENCE ' || s.name || ' OWNED BY ' || {NAME} || '.' || pg_catalog.quote_ident(a.attname)
    FROM sequences s JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = s.seqrelid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'a'
    JOIN columns a ON (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    -- The key, before the partitions, which get theirs from it.
    SELECT array[5, i.indexrelid::pg_catalog.int8], CASE WHEN k.oid IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid)
        ELSE 'ALTER TABLE ' || CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY ' END || {NAME} || ' ADD CONSTRAINT '
            || pg_catalog.quote_ident(k.conname) || ' ' || pg_catalog.pg_get_constraintdef(k.oid) END
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
    WHERE i.indrelid = {table} AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid)
    UNION ALL
    SELECT array[6, tree.level, c.oid::pg_catalog.int8], 'CREATE TABLE ' || {NAME} || ' PARTITION OF ' || pg_catalog.quote_ident(pn.nspname) || '.'
        || pg_catalog.quote_ident(p.relname) || ' ' || pg_catalog.pg_get_expr(c.relpartbound, c.oid)
        || CASE WHEN c.relkind = 'p' THEN ' PARTITION BY ' || pg_catalog.pg_get_partkeydef(c.oid) ELSE '' END
    FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
        JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
    WHERE tree.level > 0 AND c.relkind IN ('r', 'p')
), namespaces (nspname) AS (
    SELECT o.nspname FROM own o UNION SELECT s.nspname FROM sequences s
    UNION SELECT n.nspname FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
)
SELECT kind, text FROM (
    SELECT array[0]::pg_catalog.int8[], 'schema', nspname::pg_catalog.text FROM namespaces UNION ALL SELECT place, 'statement', statement FROM parts
) AS answer (place, kind, text) ORDER BY place, text",
        sequence_name = "pg_catalog.quote_ident(qn.nspname) || '.' || pg_catalog.quote_ident(q.relname)",
    )
}

/// # Errors
/// The catalog could not be read.
pub async fn statements(client: &Client, table: u32) -> Result<Vec<String>, Error> {
    let mut statements = Vec::new();
    for row in rows(client, DOING, &sql(table)).await? {
        let text: String = field(&row, 1, DOING)?;
        let schema = field::<String>(&row, 0, DOING)? == "schema";
        statements.push(if schema { schema_sql(&text) } else { text });
    }
    Ok(statements)
}
