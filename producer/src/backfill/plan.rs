//! Cutting a table into key ranges. Pure: SQL out, bounds in.
//!
//! Key ranges and not ctid ranges: an update moves a row to another ctid between two snapshots, and a row read twice or never
//! would be wrong; a key stays. Chunk n holds the keys above bound n-1 and at or below bound n, compared as rows by the
//! source itself with the operators of the key's own index, so any key type with a btree order will do. They are named with
//! their schema: our sessions have no search_path, and there an extension's type has no operator, or silently another type's
//! (citext falls back to text's, whose order is not that of its index).

use changelog::ledger::Plan;
use changelog::table::{quote_identifier, quote_literal};

use crate::source::catalog::{Operators, Table, TableKind};

/// Pages sampled per chunk: enough that a chunk is rarely twice its size.
const SAMPLED_PAGES_PER_CHUNK: u64 = 30;
const PAGE_BYTES: u64 = 8_192;
/// A plan is one ledger record.
const CHUNKS_MAX: u64 = 20_000;

/// What a chunk aims at. What gives the smaller chunks counts: many narrow rows, or few with values of megabytes.
#[derive(Clone, Copy, Debug)]
pub struct ChunkSize {
    pub rows: u64,
    /// On the source's disk, TOAST included.
    pub bytes: u64,
}

/// How many chunks a table is cut into.
pub fn chunk_count(table: &Table, size: ChunkSize) -> u64 {
    if table.key.is_empty() {
        return 1;
    }
    let by_rows = table.estimated_rows.div_ceil(size.rows.max(1));
    by_rows.max(table.estimated_bytes.div_ceil(size.bytes.max(1))).clamp(1, CHUNKS_MAX)
}

/// A statement that yields the bytes of the pages that are sampled: those of the rows without their TOAST values, which may be
/// a thousandth of the table, so that a share of its pages by the table's whole size would be none.
pub fn heap_bytes_sql(files: &[u32]) -> String {
    let oids: Vec<String> = files.iter().map(u32::to_string).collect();
    format!(
        "SELECT coalesce(sum(pg_catalog.pg_relation_size(oid::pg_catalog.regclass)), 0)::pg_catalog.int8 \
         FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) AS f(oid)",
        oids.join(",")
    )
}

/// A statement that yields at most `chunks - 1` bounds in order, each one text per key column. `heap_bytes`: without TOAST.
pub fn bounds_sql(table: &Table, chunks: u64, heap_bytes: u64) -> String {
    let pages = (heap_bytes / PAGE_BYTES).max(1);
    let percent = (chunks * SAMPLED_PAGES_PER_CHUNK) as f64 * 100.0 / pages as f64;
    let sample = if percent < 100.0 { format!(" TABLESAMPLE SYSTEM ({percent:.6})") } else { String::new() };
    let key: Vec<String> = table.key.iter().map(|name| quote_identifier(name)).collect();
    let using = |(name, operators): (&String, &Operators)| format!("{name} USING {}", operators.less);
    let order = key.iter().zip(&table.operators).map(using).collect::<Vec<_>>().join(", ");
    let (list, texts) = (key.join(", "), key.iter().map(|name| format!("{name}::text")).collect::<Vec<_>>().join(", "));
    // The last row of each chunk but the last one is its bound.
    format!(
        "SELECT {texts} FROM (SELECT {list}, pg_catalog.row_number() OVER (ORDER BY {order}) AS \"dflux place\", \
         pg_catalog.count(*) OVER () AS \"dflux total\" FROM {}{sample}) AS sampled \
         WHERE \"dflux place\" < \"dflux total\" \
         AND (\"dflux place\" * {chunks}) / \"dflux total\" > ((\"dflux place\" - 1) * {chunks}) / \"dflux total\" \
         ORDER BY \"dflux place\"",
        from(table)
    )
}

fn from(table: &Table) -> String {
    match table.kind {
        // Rows of children by inheritance belong to the children.
        TableKind::Ordinary | TableKind::Foreign => format!("ONLY {}", table.name.quoted()),
        TableKind::Partitioned => table.name.quoted(),
    }
}

/// The condition of one chunk; empty for a table of one chunk.
pub fn range_sql(table: &Table, plan: &Plan, chunk: u32) -> String {
    let chunk = chunk as usize;
    let above = chunk.checked_sub(1).and_then(|before| plan.bounds.get(before));
    let up_to = plan.bounds.get(chunk);
    let above = above.map(|bound| beyond_sql(table, plan, bound, Side::Above));
    above
        .into_iter()
        .chain(up_to.map(|bound| beyond_sql(table, plan, bound, Side::UpTo)))
        .collect::<Vec<_>>()
        .join(" AND ")
}

#[derive(Clone, Copy)]
enum Side {
    Above,
    UpTo,
}

/// That a row's key is above a bound, or at or below it.
fn beyond_sql(table: &Table, plan: &Plan, bound: &[String], side: Side) -> String {
    let typed = |(name, text): (&String, &String)| {
        let column = table.columns.iter().find(|column| column.name == *name);
        let type_name = column.map_or("pg_catalog.text", |column| column.type_name.as_str());
        format!("{}::{type_name}", quote_literal(text))
    };
    let names: Vec<String> = plan.key.iter().map(|name| quote_identifier(name)).collect();
    let bounds: Vec<String> = plan.key.iter().zip(bound).map(typed).collect();
    // Strictly beyond, for all columns but the last; beyond as the side says, for the last; not before, for the first.
    let strict = |operators: &Operators| match side {
        Side::Above => operators.greater.clone(),
        Side::UpTo => operators.less.clone(),
    };
    let last = |operators: &Operators| match side {
        Side::Above => operators.greater.clone(),
        Side::UpTo => operators.at_most.clone(),
    };
    let first = |operators: &Operators| match side {
        Side::Above => operators.at_least.clone(),
        Side::UpTo => operators.at_most.clone(),
    };
    let row = |items: &[String]| if items.len() == 1 { items.concat() } else { format!("({})", items.join(", ")) };
    let Some((one, others)) = table.operators.split_first() else { return "true".to_owned() };
    if others.iter().all(|operators| operators == one) {
        return format!("{} {} {}", row(&names), last(one), row(&bounds));
    }
    // A comparison of rows has one operator name for all columns. Written out, the condition on the first column alone is
    // what the index can use.
    let columns: Vec<_> = names.iter().zip(&bounds).zip(&table.operators).collect();
    let mut condition = String::new();
    for (place, ((name, bound), operators)) in columns.iter().enumerate().rev() {
        condition = if place + 1 == columns.len() {
            format!("{name} {} {bound}", last(operators))
        } else {
            format!("({name} {} {bound} OR ({name} {} {bound} AND {condition}))", strict(operators), operators.equal)
        };
    }
    format!("({} {} {} AND {condition})", names[0], first(one), bounds[0])
}

/// The COPY of one chunk. `columns`: names, in the order in which the blocks list them.
pub fn copy_sql(table: &Table, plan: &Plan, chunk: u32, columns: &[&str], binary: bool) -> String {
    let columns: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
    let (list, condition) = (columns.join(", "), range_sql(table, plan, chunk));
    let format = if binary { "binary" } else { "text" };
    if condition.is_empty() && table.kind == TableKind::Ordinary && !columns.is_empty() {
        // Without a query the server skips its executor; COPY of a table never reads its children.
        return format!("COPY {} ({list}) TO STDOUT (FORMAT {format})", table.name.quoted());
    }
    let condition = if condition.is_empty() { String::new() } else { format!(" WHERE {condition}") };
    format!("COPY (SELECT {list} FROM {}{condition}) TO STDOUT (FORMAT {format})", from(table))
}

/// Types whose binary form is the same in every supported version and needs nothing of the database.
const BINARY_TYPES: [u32; 25] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 650, 700, 701, 829, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266,
    1700, 2950,
];

/// Whether the binary form may be used: every column's type is built in and the target's column has the very same.
pub fn binary<'a>(columns: impl IntoIterator<Item = (&'a str, u32)>, target: impl Fn(&str) -> Option<u32>) -> bool {
    columns.into_iter().all(|(name, oid)| BINARY_TYPES.contains(&oid) && target(name) == Some(oid))
}

#[cfg(test)]
mod tests {
    use changelog::{Identity, TableName};

    use super::*;
    use crate::source::catalog::{CatalogColumn, Generated};

    fn operators(schema: &str) -> Operators {
        let named = |name: &str| format!("OPERATOR({schema}.{name})");
        Operators {
            less: named("<"),
            at_most: named("<="),
            equal: named("="),
            at_least: named(">="),
            greater: named(">"),
        }
    }

    fn table(key: &[(&str, &str)]) -> Table {
        let column = |(name, type_name): &(&str, &str)| CatalogColumn {
            name: (*name).to_owned(),
            type_oid: 23,
            typmod: -1,
            type_name: (*type_name).to_owned(),
            generated: Generated::No,
            definition: changelog::Definition::default(),
        };
        Table {
            oid: 1,
            name: TableName::new("public", "t"),
            kind: TableKind::Ordinary,
            logged: true,
            identity: Identity::Default,
            key: key.iter().map(|(name, _)| (*name).to_owned()).collect(),
            operators: key.iter().map(|(_, of)| operators(of.split('.').next().unwrap())).collect(),
            columns: key.iter().map(column).collect(),
            parent: None,
            partition_of: None,
            estimated_rows: 1_000,
            estimated_bytes: 10 << 20,
        }
    }

    fn plan(table: &Table, bounds: &[&[&str]]) -> Plan {
        let text = |bound: &&[&str]| bound.iter().map(|text| (*text).to_owned()).collect();
        Plan {
            table: table.name.clone(),
            generation: 0,
            oid: table.oid,
            key: table.key.clone(),
            bounds: bounds.iter().map(text).collect(),
            estimated_rows: 0,
            estimated_bytes: 0,
            definition: Vec::new(),
        }
    }

    #[test]
    fn ranges_of_one_column_meet_without_gap_or_overlap() {
        let table = table(&[("id", "pg_catalog.int4")]);
        let plan = plan(&table, &[&["10"], &["20"]]);
        let ranges: Vec<String> = (0..plan.chunks()).map(|chunk| range_sql(&table, &plan, chunk)).collect();
        assert_eq!(
            ranges,
            [
                "\"id\" OPERATOR(pg_catalog.<=) '10'::pg_catalog.int4",
                "\"id\" OPERATOR(pg_catalog.>) '10'::pg_catalog.int4 AND \"id\" OPERATOR(pg_catalog.<=) '20'::pg_catalog.int4",
                "\"id\" OPERATOR(pg_catalog.>) '20'::pg_catalog.int4",
            ]
        );
    }

    #[test]
    fn composite_keys_compare_as_rows_and_texts_are_quoted() {
        let table = table(&[("a b", "pg_catalog.text"), ("n", "pg_catalog.int8")]);
        let plan = plan(&table, &[&["it's", "7"]]);
        assert_eq!(
            range_sql(&table, &plan, 1),
            "(\"a b\", \"n\") OPERATOR(pg_catalog.>) ('it''s'::pg_catalog.text, '7'::pg_catalog.int8)"
        );
    }

    #[test]
    fn a_key_of_types_of_several_schemas_is_compared_column_by_column() {
        let table = table(&[("a", "ext.citext"), ("n", "pg_catalog.int4")]);
        let plan = plan(&table, &[&["x", "7"]]);
        let (a, n) = ("'x'::ext.citext", "'7'::pg_catalog.int4");
        let condition = |first: &str, strict: &str, last: &str| {
            format!(
                "(\"a\" OPERATOR(ext.{first}) {a} AND (\"a\" OPERATOR(ext.{strict}) {a} OR \
                 (\"a\" OPERATOR(ext.=) {a} AND \"n\" OPERATOR(pg_catalog.{last}) {n})))"
            )
        };
        assert_eq!(range_sql(&table, &plan, 0), condition("<=", "<", "<="));
        assert_eq!(range_sql(&table, &plan, 1), condition(">=", ">", ">"));
        let bounds = bounds_sql(&table, 2, 0);
        let order = "ORDER BY \"a\" USING OPERATOR(ext.<), \"n\" USING OPERATOR(pg_catalog.<)";
        assert!(bounds.contains(order), "{bounds}");
    }

    #[test]
    fn a_table_of_one_chunk_is_copied_without_a_query() {
        let table = table(&[("id", "pg_catalog.int4")]);
        let whole = plan(&table, &[]);
        assert_eq!(whole.chunks(), 1);
        assert_eq!(
            copy_sql(&table, &whole, 0, &["id"], true),
            "COPY \"public\".\"t\" (\"id\") TO STDOUT (FORMAT binary)"
        );
        let mut root = table.clone();
        root.kind = TableKind::Partitioned;
        assert_eq!(
            copy_sql(&root, &whole, 0, &["id"], false),
            "COPY (SELECT \"id\" FROM \"public\".\"t\") TO STDOUT (FORMAT text)"
        );
    }

    #[test]
    fn a_keyless_table_is_one_chunk_whatever_its_size() {
        assert_eq!(chunk_count(&table(&[]), ChunkSize { rows: 10, bytes: 1 }), 1);
    }

    #[test]
    fn rows_or_bytes_cut_a_table_whichever_makes_the_smaller_chunks() {
        let megabytes = |megabytes: u64| megabytes << 20;
        for (estimated_rows, estimated_bytes, chunks) in [
            (0, 0, 1),
            (1_000, 8_192, 1),
            (100_001, megabytes(20), 2),
            (100_000_000, megabytes(4_000), 1_000),
            // A hundred values of 10 MB.
            (100, megabytes(1_000), 16),
            (100_000, megabytes(64) + 1, 2),
            (1 << 40, u64::MAX, CHUNKS_MAX),
        ] {
            let table = Table { estimated_rows, estimated_bytes, ..table(&[("id", "pg_catalog.int4")]) };
            let size = ChunkSize { rows: 100_000, bytes: megabytes(64) };
            assert_eq!(chunk_count(&table, size), chunks, "{estimated_rows} rows, {estimated_bytes} bytes");
        }
    }

    #[test]
    fn the_sample_is_a_share_of_the_rows_pages_and_not_of_their_toast_values() {
        let table = Table { estimated_bytes: 1 << 30, ..table(&[("id", "pg_catalog.int4")]) };
        assert!(bounds_sql(&table, 10, 30_000 * PAGE_BYTES).contains("TABLESAMPLE SYSTEM (1.000000)"));
        assert!(!bounds_sql(&table, 10, 300 * PAGE_BYTES).contains("TABLESAMPLE"), "all of a small heap is read");
    }

    #[test]
    fn binary_needs_built_in_types_that_agree() {
        let target =
            |name: &str| [("a", 23), ("b", 25), ("e", 90_000)].iter().find(|(n, _)| *n == name).map(|(_, oid)| *oid);
        assert!(binary([("a", 23), ("b", 25)], target));
        assert!(!binary([("a", 20)], target), "another type on the target");
        assert!(!binary([("c", 23)], target), "not there on the target");
        assert!(!binary([("e", 90_000)], target), "not built in");
    }
}
