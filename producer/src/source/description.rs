//! A table's description from the catalog: what is asked of it, and what the answer means.
//!
//! It is asked in two places: by a session of ours, of the catalog as it is now ([`read`]), and by the source's event trigger in
//! the transaction that changes a table ([`super::schema_trigger`]). So an answer is text, cell by cell, and says the same in both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use changelog::{Definition, Identity, TableName};
use tokio_postgres::Client;

use super::catalog::{CatalogColumn, Generated, Operators, Table, TableKind};
use super::{oid_array, rows};
use crate::error::Error;

const DOING: &str = "read the tables of the catalog";

/// A row of an answer.
type Cells = Vec<Option<String>>;

/// A question: its cells, and what they are asked of. Every cell's text is the same by the simple protocol and by a cast.
struct Query {
    cells: &'static [&'static str],
    from: &'static str,
    order: &'static str,
}

impl Query {
    fn sql(&self, condition: &str) -> String {
        format!("SELECT {} FROM {} AND {condition}{}", self.cells.join(", "), self.from, self.order)
    }

    /// An expression that gives all rows as one JSON array of arrays of texts.
    fn json(&self, condition: &str) -> String {
        let cells: Vec<String> = self.cells.iter().map(|cell| format!("({cell})::pg_catalog.text")).collect();
        let cells = cells.join(", ");
        format!(
            "(SELECT coalesce(pg_catalog.json_agg(answer.cells), '[]') FROM (SELECT pg_catalog.json_build_array({cells}) AS cells \
             FROM {} AND {condition}{}) AS answer)",
            self.from, self.order
        )
    }
}

/// Of `pg_class c` and `pg_namespace n`.
const TABLES: Query = Query {
    cells: &[
        "c.oid",
        "n.nspname",
        "c.relname",
        "c.relkind",
        "c.relpersistence",
        "c.relreplident",
        "(SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition LIMIT 1)",
        "(SELECT pg_catalog.quote_ident(pn.nspname) || '.' || pg_catalog.quote_ident(p.relname) || ' ' \
           || pg_catalog.pg_get_expr(c.relpartbound, c.oid) \
           || CASE WHEN c.relkind = 'p' THEN ' PARTITION BY ' || pg_catalog.pg_get_partkeydef(c.oid) ELSE '' END \
         FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
         JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid AND c.relispartition LIMIT 1)",
    ],
    from: "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','f')",
    order: "",
};

/// Rows and bytes, estimated, by the table's OID `c.oid`: no part of what the table is.
const SIZES: Query = Query {
    cells: &[
        "c.oid",
        "greatest(c.reltuples, 0)::pg_catalog.int8",
        "CASE WHEN c.relkind = 'r' THEN coalesce(pg_catalog.pg_table_size(c.oid), 0) ELSE 0 END",
    ],
    from: "pg_catalog.pg_class c WHERE c.relkind IN ('r','p','f')",
    order: "",
};

/// Of `pg_attribute a`, by the table's OID `a.attrelid`. A partitioned table has no missing values of its own: its leaves' are.
const COLUMNS: Query = Query {
    cells: &[
        "a.attrelid",
        "a.attname",
        "a.atttypid",
        "a.atttypmod",
        "pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname)",
        "a.attgenerated",
        "a.attnum",
        "pg_catalog.pg_get_expr(d.adbin, d.adrelid)",
        "CASE WHEN c.relkind = 'r' THEN (a.attmissingval::pg_catalog.text::pg_catalog.text[])[1] \
         WHEN a.atthasdef THEN (SELECT (l.attmissingval::pg_catalog.text::pg_catalog.text[])[1] \
           FROM pg_catalog.pg_partition_tree(c.oid) p JOIN pg_catalog.pg_attribute l ON l.attrelid = p.relid \
           WHERE p.isleaf AND l.attname = a.attname AND l.atthasmissing LIMIT 1) END",
        "a.attidentity",
        "CASE WHEN a.attcollation <> t.typcollation THEN \
         (SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) \
          FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace \
          WHERE co.oid = a.attcollation) END",
        "CASE WHEN a.attnotnull THEN 't' ELSE 'f' END",
    ],
    from: "pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
           LEFT JOIN pg_catalog.pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) AND a.attgenerated = '' \
           WHERE a.attnum > 0 AND NOT a.attisdropped",
    order: " ORDER BY a.attrelid, a.attnum",
};

/// Of `pg_index i`, by the table's OID `i.indrelid`: the columns of primary keys and replica identities, in key order.
const KEYS: Query = Query {
    cells: &[
        "i.indrelid",
        "CASE WHEN i.indisprimary THEN 't' ELSE 'f' END",
        "CASE WHEN i.indisreplident THEN 't' ELSE 'f' END",
        "a.attname",
        "o.less",
        "o.at_most",
        "o.equal",
        "o.at_least",
        "o.greater",
    ],
    from: "pg_catalog.pg_index i \
         CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
         JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.place - 1] \
         CROSS JOIN LATERAL (SELECT max(w) FILTER (WHERE s = 1) AS less, max(w) FILTER (WHERE s = 2) AS at_most, \
           max(w) FILTER (WHERE s = 3) AS equal, max(w) FILTER (WHERE s = 4) AS at_least, max(w) FILTER (WHERE s = 5) AS greater \
           FROM (SELECT m.amopstrategy AS s, \
             'OPERATOR(' || pg_catalog.quote_ident(h.nspname) || '.' || p.oprname || ')' AS w \
             FROM pg_catalog.pg_amop m JOIN pg_catalog.pg_operator p ON p.oid = m.amopopr \
             JOIN pg_catalog.pg_namespace h ON h.oid = p.oprnamespace \
             WHERE m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype \
             AND m.amoppurpose = 's') AS named) AS o \
         WHERE (i.indisprimary OR i.indisreplident) \
         AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND k.place <= i.indnkeyatts",
    order: " ORDER BY i.indrelid, i.indexrelid, k.place",
};

/// The tables that the condition names, as the catalog has them now.
///
/// # Errors
/// The catalog could not be read.
pub async fn read(client: &Client, condition: &str) -> Result<Vec<Arc<Table>>, Error> {
    let tables = answer(client, &TABLES.sql(condition)).await?;
    let oids = oid_array(tables.iter().filter_map(|cells| cells.first()?.as_deref()?.parse().ok()));
    let columns = answer(client, &COLUMNS.sql(&format!("a.attrelid = ANY({oids})"))).await?;
    let keys = answer(client, &KEYS.sql(&format!("i.indrelid = ANY({oids})"))).await?;
    let sizes = answer(client, &SIZES.sql(&format!("c.oid = ANY({oids})"))).await?;
    let mut sizes = sizes_of(&sizes)?;
    let mut described = described(&Answers { tables, columns, keys })?;
    for table in &mut described {
        (table.estimated_rows, table.estimated_bytes) = sizes.remove(&table.oid).unwrap_or_default();
        if table.estimated_rows == 0 && table.estimated_bytes > 0 {
            // Never analysed: a guess that only sizes chunks and progress bars.
            table.estimated_rows = (table.estimated_bytes / 100).max(1);
        }
        // The stream is behind: it may become so only later.
        table.columns.iter_mut().for_each(|column| column.definition.not_null = None);
    }
    Ok(described.into_iter().map(Arc::new).collect())
}

/// An SQL expression of all that is asked of the table with this OID, as one JSON object: [`Answers`].
pub fn json(oid: &str) -> String {
    format!(
        "pg_catalog.json_build_object('tables', {}, 'columns', {}, 'keys', {})",
        TABLES.json(&format!("c.oid = {oid}")),
        COLUMNS.json(&format!("a.attrelid = {oid}")),
        KEYS.json(&format!("i.indrelid = {oid}"))
    )
}

/// What was answered of some tables.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Answers {
    tables: Vec<Cells>,
    columns: Vec<Cells>,
    keys: Vec<Cells>,
}

async fn answer(client: &Client, sql: &str) -> Result<Vec<Cells>, Error> {
    let found = rows(client, DOING, sql).await?;
    Ok(found.iter().map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect())
}

fn text(cells: &Cells, at: usize) -> Option<&str> {
    cells.get(at)?.as_deref()
}

fn cell<T: std::str::FromStr>(cells: &Cells, at: usize) -> Result<T, Error> {
    let text = text(cells, at);
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::Answer {
        doing: DOING.to_owned(),
        what: format!("column {at} is {}", if text.is_some() { "malformed" } else { "null" }),
    })
}

/// What the answers mean. Pure.
///
/// # Errors
/// `Answer`.
pub fn described(answers: &Answers) -> Result<Vec<Table>, Error> {
    let (mut columns, mut keys) = (columns_of(&answers.columns)?, keys_of(&answers.keys)?);
    let mut out = Vec::with_capacity(answers.tables.len());
    for cells in &answers.tables {
        let kind: char = cell(cells, 3)?;
        let persistence: char = cell(cells, 4)?;
        let identity: char = cell(cells, 5)?;
        let unknown = || Error::Answer { doing: DOING.into(), what: "relreplident".into() };
        let mut table = Table {
            oid: cell(cells, 0)?,
            name: TableName::new(cell::<String>(cells, 1)?, cell::<String>(cells, 2)?),
            kind: match kind {
                'p' => TableKind::Partitioned,
                'f' => TableKind::Foreign,
                _ => TableKind::Ordinary,
            },
            logged: persistence == 'p',
            identity: Identity::from_relreplident(identity as u8).ok_or_else(unknown)?,
            key: Vec::new(),
            operators: Vec::new(),
            columns: Vec::new(),
            parent: text(cells, 6).and_then(|oid| oid.parse().ok()),
            partition_of: text(cells, 7).map(str::to_owned),
            estimated_rows: 0,
            estimated_bytes: 0,
        };
        table.columns = columns.remove(&table.oid).unwrap_or_default();
        let Keys { primary, identity } = keys.remove(&table.oid).unwrap_or_default();
        let key = if table.identity == Identity::Index { identity } else { primary };
        let computed = table.columns.iter().filter(|column| column.generated != Generated::No);
        let computed: HashSet<&str> = computed.map(|column| column.name.as_str()).collect();
        if !key.iter().any(|(name, _)| computed.contains(name.as_str())) {
            (table.key, table.operators) = key.into_iter().unzip();
        }
        out.push(table);
    }
    Ok(out)
}

fn sizes_of(answer: &[Cells]) -> Result<HashMap<u32, (u64, u64)>, Error> {
    answer.iter().map(|cells| Ok((cell(cells, 0)?, (cell(cells, 1)?, cell(cells, 2)?)))).collect()
}

fn columns_of(answer: &[Cells]) -> Result<HashMap<u32, Vec<CatalogColumn>>, Error> {
    let mut columns: HashMap<u32, Vec<CatalogColumn>> = HashMap::new();
    for cells in answer {
        let optional = |at: usize| text(cells, at).map(str::to_owned);
        columns.entry(cell(cells, 0)?).or_default().push(CatalogColumn {
            name: cell(cells, 1)?,
            type_oid: cell(cells, 2)?,
            typmod: cell(cells, 3)?,
            type_name: cell(cells, 4)?,
            generated: match text(cells, 5).unwrap_or_default() {
                "" => Generated::No,
                "v" => Generated::Virtual,
                _ => Generated::Stored,
            },
            definition: Definition {
                attnum: cell(cells, 6)?,
                not_null: Some(text(cells, 11) == Some("t")),
                default: optional(7),
                missing: optional(8),
                identity: text(cells, 9).and_then(|kind| kind.chars().next()),
                collation: optional(10),
            },
        });
    }
    Ok(columns)
}

#[derive(Default)]
struct Keys {
    primary: Vec<(String, Operators)>,
    identity: Vec<(String, Operators)>,
}

fn keys_of(answer: &[Cells]) -> Result<HashMap<u32, Keys>, Error> {
    let mut keys: HashMap<u32, Keys> = HashMap::new();
    for cells in answer {
        let of_table = keys.entry(cell(cells, 0)?).or_default();
        let operators = Operators {
            less: cell(cells, 4)?,
            at_most: cell(cells, 5)?,
            equal: cell(cells, 6)?,
            at_least: cell(cells, 7)?,
            greater: cell(cells, 8)?,
        };
        let column: (String, Operators) = (cell(cells, 3)?, operators);
        if text(cells, 1) == Some("t") {
            of_table.primary.push(column.clone());
        }
        if text(cells, 2) == Some("t") {
            of_table.identity.push(column);
        }
    }
    Ok(keys)
}
