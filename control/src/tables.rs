//! The source's tables as its catalog knows them, and which of them the migration moves.

use std::collections::HashMap;

use changelog::TableName;
use producer::source::catalog::USER_TABLES;
use service::config::Migration;

use crate::{Database, Error};

/// One relation of kind r (table), p (partitioned), f (foreign) or m (materialized view).
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub oid: u32,
    pub name: TableName,
    pub kind: char,
    pub unlogged: bool,
    /// The partitioned table that it is a direct part of.
    pub parent: Option<u32>,
    /// `pg_class.relreplident`.
    pub identity: char,
    pub has_primary_key: bool,
    /// A primary key that is DEFERRABLE identifies no row for a publication.
    pub deferrable_key: bool,
    pub has_identity_index: bool,
    /// The planner's estimate; -1 when the table was never analysed.
    pub estimated_rows: f64,
    /// Main relation and TOAST, without indexes.
    pub bytes: i64,
    pub readable: bool,
    pub owned: bool,
    pub generated_columns: i64,
    /// Those of them that are computed when they are read (version 18).
    pub virtual_columns: i64,
    /// User objects of the type `oid` or `lo`: where large objects are referred to.
    pub oid_columns: i64,
}

impl Table {
    /// Whether rows of this relation itself are copied and streamed.
    pub fn holds_rows(&self) -> bool {
        self.kind == 'r'
    }

    pub fn movable(&self) -> bool {
        matches!(self.kind, 'r' | 'p')
    }

    /// Whether PostgreSQL would refuse UPDATE and DELETE on it once it is published.
    pub fn lacks_identity(&self) -> bool {
        match self.identity {
            'd' => !self.has_primary_key || self.deferrable_key,
            'i' => !self.has_identity_index,
            'f' => false,
            _ => true,
        }
    }

    /// Whether PostgreSQL would refuse UPDATE and DELETE on it once it is published, whatever dflux sets: REPLICA IDENTITY
    /// FULL wants every column published, and a virtual one cannot be.
    pub fn unpublishable(&self) -> bool {
        self.holds_rows() && self.virtual_columns > 0 && (self.identity == 'f' || self.lacks_identity())
    }

    /// Rows for estimates: from the size where the planner knows nothing.
    pub fn rows(&self) -> u64 {
        if self.estimated_rows >= 0.0 { self.estimated_rows as u64 } else { (self.bytes.max(0) / 100) as u64 }
    }
}

const QUERY: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'u',
  (SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition LIMIT 1), c.relreplident::text,
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident),
  c.reltuples::float8,
  CASE WHEN c.relkind IN ('r', 'm') THEN coalesce(pg_catalog.pg_table_size(c.oid), 0) ELSE 0 END,
  pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
  pg_catalog.pg_has_role(c.relowner, 'USAGE'),
  (SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated <> ''
    AND NOT a.attisdropped),
  (SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = 'v'
    AND NOT a.attisdropped),
  (SELECT count(*) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('oid', 'lo'))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f', 'm') AND ";

/// Every relation of the database but system's, dflux's and extensions' own.
///
/// # Errors
/// `Sql`.
pub async fn read(database: &Database) -> Result<Vec<Table>, Error> {
    let query = format!("{QUERY}{USER_TABLES} ORDER BY 2, 3");
    let rows = database.rows("the tables cannot be listed", &query, &[]).await?;
    let letter = |text: String| text.chars().next().unwrap_or(' ');
    rows.iter()
        .map(|row| {
            Ok(Table {
                oid: database.get(row, 0)?,
                name: TableName::new(database.get::<String>(row, 1)?, database.get::<String>(row, 2)?),
                kind: letter(database.get(row, 3)?),
                unlogged: database.get(row, 4)?,
                parent: database.get(row, 5)?,
                identity: letter(database.get(row, 6)?),
                has_primary_key: database.get(row, 7)?,
                deferrable_key: database.get(row, 8)?,
                has_identity_index: database.get(row, 9)?,
                estimated_rows: database.get(row, 10)?,
                bytes: database.get(row, 11)?,
                readable: database.get(row, 12)?,
                owned: database.get(row, 13)?,
                generated_columns: database.get(row, 14)?,
                virtual_columns: database.get(row, 15)?,
                oid_columns: database.get(row, 16)?,
            })
        })
        .collect()
}

/// Those that the patterns name, of whatever kind, and the partitions of those: a partitioned table is moved whole.
pub fn named<'a>(tables: &'a [Table], migration: &Migration) -> Vec<&'a Table> {
    let by_oid: HashMap<u32, &Table> = tables.iter().map(|table| (table.oid, table)).collect();
    let matches = |table: &Table| migration.selects(&table.name.schema, &table.name.name);
    let named = |table: &&Table| {
        // The catalog has no cycles; the bound is for an answer that has.
        let above = std::iter::successors(Some(*table), |table| table.parent.and_then(|oid| by_oid.get(&oid).copied()));
        above.take(100).any(matches)
    };
    tables.iter().filter(named).collect()
}

/// Those that are moved: tables and partitioned tables that the patterns name.
pub fn selected<'a>(tables: &'a [Table], migration: &Migration) -> Vec<&'a Table> {
    named(tables, migration).into_iter().filter(|table| table.movable()).collect()
}

/// A table of an argument: `schema.table`, or a name that only one selected table has.
///
/// # Errors
/// `NoSuchTable`, `AmbiguousTable`, `NotSelected`.
pub fn find<'a>(tables: &'a [Table], migration: &Migration, argument: &str) -> Result<&'a Table, Error> {
    let movable = || tables.iter().filter(|table| table.movable());
    let mut matching: Vec<&Table> =
        movable().filter(|t| t.name.to_string() == argument || t.name.quoted() == argument).collect();
    if matching.is_empty() {
        matching = movable().filter(|table| table.name.name == argument).collect();
    }
    match matching.as_slice() {
        [] => Err(Error::NoSuchTable { table: argument.to_owned() }),
        [table] if migration.selects(&table.name.schema, &table.name.name) => Ok(table),
        [table] => Err(Error::NotSelected { table: table.name.clone(), migration: migration.name.clone() }),
        several => Err(Error::AmbiguousTable { name: argument.to_owned(), count: several.len() }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn table(schema: &str, name: &str) -> Table {
        Table {
            oid: 1,
            name: TableName::new(schema, name),
            kind: 'r',
            unlogged: false,
            parent: None,
            identity: 'd',
            has_primary_key: true,
            deferrable_key: false,
            has_identity_index: false,
            estimated_rows: 10.0,
            bytes: 8192,
            readable: true,
            owned: true,
            generated_columns: 0,
            virtual_columns: 0,
            oid_columns: 0,
        }
    }

    #[test]
    fn a_table_lacks_an_identity_exactly_where_postgresql_refuses_its_updates() {
        let plain = table("public", "t");
        assert!(!plain.lacks_identity());
        for (identity, key, deferrable, index, lacks) in [
            ('d', false, false, false, true),
            ('d', true, true, false, true),
            ('i', true, false, false, true),
            ('i', false, false, true, false),
            ('f', false, false, false, false),
            ('n', true, false, false, true),
        ] {
            let table = Table {
                identity,
                has_primary_key: key,
                deferrable_key: deferrable,
                has_identity_index: index,
                ..plain.clone()
            };
            assert_eq!(table.lacks_identity(), lacks, "{identity} {key} {deferrable} {index}");
        }
    }

    #[test]
    fn an_argument_names_a_table_by_its_full_name_or_by_one_that_is_its_alone() {
        let tables = [table("public", "a"), table("public", "b"), table("other", "b")];
        let migration = Migration { tables: vec!["public.*".into()], ..Migration::default() };
        assert_eq!(find(&tables, &migration, "a").unwrap().name, tables[0].name);
        assert_eq!(find(&tables, &migration, "public.b").unwrap().name, tables[1].name);
        assert!(matches!(find(&tables, &migration, "b"), Err(Error::AmbiguousTable { count: 2, .. })));
        assert!(matches!(find(&tables, &migration, "other.b"), Err(Error::NotSelected { .. })));
        assert!(matches!(find(&tables, &migration, "c"), Err(Error::NoSuchTable { .. })));
    }

    #[test]
    fn a_virtual_column_stands_in_the_way_only_of_a_full_identity() {
        let with_virtual = Table { virtual_columns: 1, ..table("public", "t") };
        assert!(!with_virtual.unpublishable() && !table("public", "t").unpublishable());
        assert!(Table { has_primary_key: false, ..with_virtual.clone() }.unpublishable());
        assert!(Table { identity: 'f', ..with_virtual.clone() }.unpublishable());
        assert!(!Table { identity: 'f', kind: 'p', ..with_virtual }.unpublishable(), "it holds no rows of its own");
    }
}
