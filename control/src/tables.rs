//! The source's tables as its catalog knows them, and which of them the migration moves.

use std::collections::{HashMap, HashSet};

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
        [table] if named(tables, migration).iter().any(|named| named.name == table.name) => Ok(table),
        [table] => Err(Error::NotSelected { table: table.name.clone(), migration: migration.name.clone() }),
        several => Err(Error::AmbiguousTable { name: argument.to_owned(), count: several.len() }),
    }
}

/// A relation of the target under the name of one of the source's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub partitioned: bool,
    /// Its direct partitions.
    pub partitions: Vec<TableName>,
}

/// What of the source's tables the target has, by name.
///
/// # Errors
/// `Sql`.
pub async fn held(target: &Database, tables: &[&Table]) -> Result<HashMap<TableName, Held>, Error> {
    let sql = "SELECT w.s, w.t, c.relkind = 'p',
        ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class x ON x.oid = i.inhrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace WHERE i.inhparent = c.oid AND c.relkind = 'p' ORDER BY x.oid),
        ARRAY(SELECT x.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class x ON x.oid = i.inhrelid
          WHERE i.inhparent = c.oid AND c.relkind = 'p' ORDER BY x.oid)
      FROM unnest($1::text[], $2::text[]) AS w (s, t)
        JOIN pg_catalog.pg_class c ON c.oid = to_regclass(quote_ident(w.s) || '.' || quote_ident(w.t))";
    let schemas: Vec<&str> = tables.iter().map(|table| table.name.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.name.as_str()).collect();
    let rows = target.rows("its tables", sql, &[&schemas, &names]).await?;
    rows.iter()
        .map(|row| {
            let name = TableName::new(target.get::<String>(row, 0)?, target.get::<String>(row, 1)?);
            let (schemas, names): (Vec<String>, Vec<String>) = (target.get(row, 3)?, target.get(row, 4)?);
            let partitions = schemas.into_iter().zip(names).map(|(schema, name)| TableName::new(schema, name));
            Ok((name, Held { partitioned: target.get(row, 2)?, partitions: partitions.collect() }))
        })
        .collect()
}

/// The source's tables beside the target's. Pure.
#[derive(Debug, Default, PartialEq)]
pub struct Compared<'a> {
    /// What the target should have: without the partitions of a table that it divides otherwise, or not at all.
    pub wanted: Vec<&'a Table>,
    /// Those of them that it lacks, or has beside the table that they are a partition of.
    pub missing: Vec<&'a Table>,
    /// Its partitions that are none of the source's: those were dropped or detached there. With the partitioned table.
    pub left_over: Vec<(TableName, TableName)>,
}

/// A target's partitioned table that has partitions and none of the source's is divided otherwise on purpose.
pub fn compare<'a>(selected: &[&'a Table], held: &HashMap<TableName, Held>) -> Compared<'a> {
    let parts: HashSet<(u32, &TableName)> =
        selected.iter().filter_map(|table| Some((table.parent?, &table.name))).collect();
    let is_part = |parent: &Table, name| parts.contains(&(parent.oid, name));
    let divided_alike = |parent: &Table| {
        held.get(&parent.name).is_none_or(|held| {
            let alike = held.partitions.is_empty() || held.partitions.iter().any(|part| is_part(parent, part));
            held.partitioned && alike
        })
    };
    let by_oid: HashMap<u32, &Table> = selected.iter().map(|table| (table.oid, *table)).collect();
    let mut compared = Compared::default();
    for table in selected.iter().copied() {
        let above = std::iter::successors(table.parent, |oid| by_oid.get(oid).and_then(|above| above.parent));
        if !above.take(100).filter_map(|oid| by_oid.get(&oid)).all(|above| divided_alike(above)) {
            continue;
        }
        compared.wanted.push(table);
        let above = table.parent.and_then(|oid| by_oid.get(&oid)).and_then(|above| held.get(&above.name));
        match held.get(&table.name) {
            None => compared.missing.push(table),
            Some(_) if above.is_some_and(|above| !above.partitions.contains(&table.name)) => {
                compared.missing.push(table);
            }
            Some(held) if table.kind == 'p' && divided_alike(table) => {
                let over = held.partitions.iter().filter(|part| !is_part(table, part));
                compared.left_over.extend(over.map(|part| (table.name.clone(), part.clone())));
            }
            Some(_) => {}
        }
    }
    compared
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
    fn a_target_lacks_a_partition_only_of_a_table_that_it_divides_alike() {
        let root = Table { oid: 1, kind: 'p', ..table("public", "root") };
        let part = |oid, name| Table { oid, parent: Some(1), ..table("public", name) };
        let (a, b) = (part(2, "a"), part(3, "b"));
        let selected = [&root, &a, &b];
        let names =
            |tables: &[&Table]| tables.iter().map(|table| table.name.name.clone()).collect::<Vec<_>>().join(" ");
        let found = |partitioned: bool, partitions: &[&str], alone: &[&str]| {
            let partitions = partitions.iter().map(|name| TableName::new("public", *name)).collect();
            let mut held = HashMap::from([(root.name.clone(), Held { partitioned, partitions })]);
            held.extend(alone.iter().map(|name| (TableName::new("public", *name), Held::default())));
            let compared = compare(&selected, &held);
            let over = compared.left_over.iter().map(|(_, part)| part.name.clone()).collect::<Vec<_>>().join(" ");
            (names(&compared.wanted), names(&compared.missing), over)
        };
        let answer = |wanted: &str, missing: &str, over: &str| (wanted.to_owned(), missing.to_owned(), over.to_owned());
        assert_eq!(found(true, &["a", "b"], &["a", "b"]), answer("root a b", "", ""));
        assert_eq!(found(true, &["a"], &["a"]), answer("root a b", "b", ""));
        assert_eq!(found(true, &["a"], &["a", "b"]), answer("root a b", "b", ""));
        assert_eq!(found(true, &["a", "old"], &["a"]), answer("root a b", "b", "old"));
        assert_eq!(found(true, &[], &[]), answer("root a b", "a b", ""));
        assert_eq!(found(true, &["x", "y"], &[]), answer("root", "", ""));
        assert_eq!(found(false, &[], &[]), answer("root", "", ""));
        let all_missing = compare(&selected, &HashMap::new());
        assert_eq!(names(&all_missing.missing), "root a b");
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
        // A partition comes with its table, whatever the patterns say of its own name.
        let root = Table { oid: 7, kind: 'p', ..table("public", "root") };
        let tables = [root, Table { oid: 8, parent: Some(7), ..table("other", "part") }];
        assert_eq!(find(&tables, &migration, "part").unwrap().name, tables[1].name);
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
