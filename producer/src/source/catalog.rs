//! The tables of the source: what the patterns select, with columns, keys, partitions and sizes.
//!
//! Reading is I/O; what is published, what is left out and what needs REPLICA IDENTITY FULL are pure functions of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::{Column, Definition, Identity, TableName, TableShape};
use service::config::Migration;
use tokio_postgres::Client;

use super::description;
use super::{field, oid_array, rows};
use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    Ordinary,
    Partitioned,
    Foreign,
}

/// A column as `pg_attribute` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogColumn {
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
    /// `pg_catalog.int4`: schema-qualified, quoted where needed, without a modifier.
    pub type_name: String,
    pub generated: Generated,
    pub definition: Definition,
}

/// Whether the server computes a column, on both sides, so that it is neither sent nor copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generated {
    No,
    Stored,
    /// Computed when it is read, from version 18 on. No publication can have it.
    Virtual,
}

/// The operators by which the index of a key orders one column, each written `OPERATOR(schema.name)`: the sessions'
/// search_path is empty, and an extension's type has its own elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators {
    pub less: String,
    pub at_most: String,
    pub equal: String,
    pub at_least: String,
    pub greater: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub oid: u32,
    pub name: TableName,
    pub kind: TableKind,
    pub logged: bool,
    pub identity: Identity,
    /// Key columns in key order: of the replica identity index where one is named (a before image holds no others), else of
    /// the primary key. Empty for a keyless table. An index that is not valid, deferrable, or has a generated column serves
    /// for nothing.
    pub key: Vec<String>,
    /// Of each key column.
    pub operators: Vec<Operators>,
    pub columns: Vec<CatalogColumn>,
    /// The partitioned table that it is a direct part of.
    pub parent: Option<u32>,
    /// Of a partition, what CREATE TABLE … PARTITION OF says of it: its parent, its bound, and what it is itself partitioned by.
    pub partition_of: Option<String>,
    pub estimated_rows: u64,
    pub estimated_bytes: u64,
}

impl Table {
    /// Whether an UPDATE or DELETE would be refused, or would say too little to find the row, once it is published.
    pub fn needs_full_identity(&self) -> bool {
        match self.identity {
            Identity::Full => false,
            Identity::Nothing => true,
            Identity::Default | Identity::Index => self.key.is_empty(),
        }
    }

    /// The same for a leaf whose changes are published as its root's: a before image by another key than the root's would
    /// have nulls where the root's key is looked for.
    fn needs_full_identity_under(&self, root: &Table) -> bool {
        let same = || self.key.len() == root.key.len() && self.key.iter().all(|name| root.key.contains(name));
        self.needs_full_identity() || (self.identity != Identity::Full && !same())
    }

    /// Whether PostgreSQL would refuse its UPDATEs and DELETEs under REPLICA IDENTITY FULL, which wants every column
    /// published: a virtual one cannot be.
    fn computes_virtually(&self) -> bool {
        self.columns.iter().any(|column| column.generated == Generated::Virtual)
    }

    /// As its events describe it when its definition is the catalog's.
    pub fn shape(&self, database: &str) -> TableShape {
        let columns = self.columns.iter().filter(|column| column.generated == Generated::No);
        let columns = columns.map(|column| Column {
            name: column.name.clone(),
            type_oid: column.type_oid,
            typmod: column.typmod,
            type_name: column.type_name.clone(),
            key: self.key.iter().position(|name| *name == column.name).and_then(|place| u16::try_from(place).ok()),
            definition: column.definition.clone(),
        });
        TableShape {
            database: database.to_owned(),
            table: self.name.clone(),
            oid: self.oid,
            identity: self.identity,
            columns: columns.collect(),
        }
    }
}

/// What the patterns come to.
#[derive(Debug, Default)]
pub struct Selection {
    /// Tables that are published by name: ordinary tables, partitioned tables with a primary key, and the leaves of those
    /// without.
    pub published: Vec<Arc<Table>>,
    /// Every table that must get REPLICA IDENTITY FULL first: of `published`, and leaves of published partitioned tables.
    pub need_full: Vec<Arc<Table>>,
    /// Matching tables that cannot be published, with the reason.
    pub left_out: Vec<(TableName, &'static str)>,
    /// Leaves of each published partitioned table.
    pub leaves: HashMap<u32, Vec<u32>>,
}

/// Decides what to publish of all tables of the database. Pure.
pub fn select(all: &[Arc<Table>], migration: &Migration) -> Selection {
    let by_oid: HashMap<u32, &Arc<Table>> = all.iter().map(|table| (table.oid, table)).collect();
    let matches = |table: &Table| migration.selects(&table.name.schema, &table.name.name);
    let covered = |table: &Table| {
        let mut parent = table.parent;
        while let Some(above) = parent.and_then(|oid| by_oid.get(&oid)) {
            if matches(above) {
                return true;
            }
            parent = above.parent;
        }
        false
    };
    let mut children: HashMap<u32, Vec<&Arc<Table>>> = HashMap::new();
    for table in all {
        if let Some(parent) = table.parent {
            children.entry(parent).or_default().push(table);
        }
    }
    let mut selection = Selection::default();
    for table in all.iter().filter(|table| matches(table) && !covered(table)) {
        match table.kind {
            TableKind::Ordinary => selection.take(table),
            TableKind::Foreign => selection.leave_out(table, "it is a foreign table"),
            TableKind::Partitioned => {
                let leaves = leaves_of(table, &children);
                for leaf in leaves.iter().filter(|leaf| leaf.kind == TableKind::Foreign) {
                    selection.leave_out(leaf, "it is a foreign table");
                }
                let leaves: Vec<&Arc<Table>> =
                    leaves.into_iter().filter(|leaf| leaf.kind == TableKind::Ordinary).collect();
                if table.key.is_empty() || table.identity == Identity::Index {
                    // A leaf added later to a published root would have no identity: its UPDATEs would be refused. Of a root's
                    // keys only the primary key is every leaf's identity too.
                    leaves.into_iter().for_each(|leaf| selection.take(leaf));
                } else {
                    selection.take_root(table, leaves);
                }
            }
        }
    }
    selection.published.sort_by(|a, b| a.name.cmp(&b.name));
    selection
}

fn leaves_of<'a>(root: &Table, children: &HashMap<u32, Vec<&'a Arc<Table>>>) -> Vec<&'a Arc<Table>> {
    let (mut leaves, mut open) = (Vec::new(), vec![root.oid]);
    while let Some(oid) = open.pop() {
        for child in children.get(&oid).into_iter().flatten() {
            match child.kind {
                TableKind::Partitioned => open.push(child.oid),
                TableKind::Ordinary | TableKind::Foreign => leaves.push(*child),
            }
        }
    }
    leaves
}

impl Selection {
    fn take(&mut self, table: &Arc<Table>) {
        if !table.logged {
            return self.leave_out(table, "it is unlogged: its changes are not in the WAL");
        }
        let needs_full = table.needs_full_identity();
        if (needs_full || table.identity == Identity::Full) && table.computes_virtually() {
            return self.leave_out(table, VIRTUAL);
        }
        if needs_full {
            self.need_full.push(table.clone());
        }
        self.published.push(table.clone());
    }

    fn take_root(&mut self, root: &Arc<Table>, leaves: Vec<&Arc<Table>>) {
        let weak = || leaves.iter().filter(|leaf| leaf.needs_full_identity_under(root)).map(|leaf| (*leaf).clone());
        let mut full =
            weak().chain(leaves.iter().filter(|leaf| leaf.identity == Identity::Full).map(|leaf| (*leaf).clone()));
        if full.any(|leaf| leaf.computes_virtually()) {
            // A published root publishes all of its leaves.
            return self.leave_out(root, VIRTUAL_LEAF);
        }
        self.need_full.extend(weak());
        if root.identity == Identity::Nothing {
            // The root stores no row, but its own identity is what the stream describes.
            self.need_full.push(root.clone());
        }
        let mut whole = Table::clone(root);
        whole.estimated_rows = leaves.iter().map(|leaf| leaf.estimated_rows).sum();
        whole.estimated_bytes = leaves.iter().map(|leaf| leaf.estimated_bytes).sum();
        self.leaves.insert(root.oid, leaves.iter().map(|leaf| leaf.oid).collect());
        self.published.push(Arc::new(whole));
    }

    fn leave_out(&mut self, table: &Table, reason: &'static str) {
        self.left_out.push((table.name.clone(), reason));
    }
}

const VIRTUAL: &str = "it has a virtual generated column, and PostgreSQL refuses UPDATE and DELETE on a published table with \
    such a column and REPLICA IDENTITY FULL: give it a primary key and REPLICA IDENTITY DEFAULT, or make the column STORED";
const VIRTUAL_LEAF: &str = "one of its partitions has a virtual generated column and needs REPLICA IDENTITY FULL, and \
    PostgreSQL refuses UPDATE and DELETE on it once it is published: set REPLICA IDENTITY DEFAULT on the partition";

/// What the tables of a user are, of `pg_class c` and `pg_namespace n`: not the system's, ours, or an extension's own, which
/// CREATE EXTENSION makes on the target. Whoever lists tables uses this.
pub const USER_TABLES: &str = "c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
    AND n.nspname NOT IN ('information_schema', 'dflux') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
      AND d.objid = c.oid AND d.deptype = 'e')";

/// Every user table of the database.
///
/// # Errors
/// The catalog could not be read.
pub async fn all_tables(client: &Client) -> Result<Vec<Arc<Table>>, Error> {
    description::read(client, USER_TABLES).await
}

const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// A wait that is worth a word.
const LONG: Duration = Duration::from_secs(5);

/// Waits until a transaction that the stream has sent is visible to other sessions. Its commit is in the WAL, and so may be with us,
/// a moment before: the catalog would be read as it was before the change of a table that comes with it.
///
/// # Errors
/// The locks could not be read.
pub async fn ended(client: &Client, xid: u32) -> Result<(), Error> {
    const DOING: &str = "wait for a transaction to end";
    // A session holds the lock on its transaction until the transaction is visible.
    let sql = format!(
        "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'transactionid' AND transactionid = '{xid}'::pg_catalog.xid \
         AND granted"
    );
    let began = Instant::now();
    let mut told = false;
    while rows(client, DOING, &sql).await?.first().is_some_and(|row| row.get(0) != Some("0")) {
        let waited = began.elapsed();
        if waited > LONG && !told {
            told = true;
            // One that waits for a synchronous standby holds its lock as long.
            tracing::warn!(
                xid,
                "a transaction that has changed a table is in the WAL and not yet visible: the stream waits for it"
            );
        }
        tokio::time::sleep(if waited > LONG { PAUSE_MAX } else { PAUSE }).await;
    }
    Ok(())
}

/// One table by OID; `None` if it is there no more.
///
/// # Errors
/// The catalog could not be read.
pub async fn table(client: &Client, oid: u32) -> Result<Option<Arc<Table>>, Error> {
    Ok(description::read(client, &format!("{USER_TABLES} AND c.oid = {oid}")).await?.into_iter().next())
}

/// Those of these tables that our role may not read, or not publish because it is not their owner.
///
/// # Errors
/// The catalog could not be read.
pub async fn not_ours(client: &Client, oids: impl IntoIterator<Item = u32>) -> Result<HashSet<u32>, Error> {
    const DOING: &str = "read the rights on new tables";
    let sql = format!(
        "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = ANY({}) AND NOT (pg_catalog.pg_has_role(c.relowner, 'USAGE') \
         AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))",
        oid_array(oids)
    );
    rows(client, DOING, &sql).await?.iter().map(|row| field(row, 0, DOING)).collect()
}

/// Names of types by OID, for columns whose catalog entry has changed since the stream wrote them.
///
/// # Errors
/// The catalog could not be read.
pub async fn type_names(client: &Client, oids: &[u32]) -> Result<HashMap<u32, String>, Error> {
    const DOING: &str = "read the types of the catalog";
    let sql = format!(
        "SELECT t.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) \
         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY({})",
        oid_array(oids.iter().copied())
    );
    let mut names = HashMap::new();
    for row in rows(client, DOING, &sql).await? {
        names.insert(field(&row, 0, DOING)?, field(&row, 1, DOING)?);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(
        oid: u32,
        name: &str,
        kind: TableKind,
        identity: Identity,
        key: &[&str],
        parent: Option<u32>,
    ) -> Arc<Table> {
        Arc::new(Table {
            oid,
            name: TableName::new("public", name),
            kind,
            logged: true,
            identity,
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            operators: Vec::new(),
            columns: Vec::new(),
            parent,
            partition_of: None,
            estimated_rows: 10,
            estimated_bytes: 100,
        })
    }

    fn names(tables: &[Arc<Table>]) -> Vec<&str> {
        tables.iter().map(|table| table.name.name.as_str()).collect()
    }

    #[test]
    fn a_table_without_an_identity_gets_one_before_it_is_published() {
        use Identity::{Default, Full, Index, Nothing};
        for (identity, key, full) in [
            (Default, &["id"][..], false),
            (Default, &[], true),
            (Index, &["a"], false),
            (Index, &[], true),
            (Nothing, &["id"], true),
            (Full, &[], false),
        ] {
            let table = made(1, "t", TableKind::Ordinary, identity, key, None);
            let selection = select(&[table], &Migration::default());
            assert_eq!(selection.need_full.len(), usize::from(full), "{identity:?} {key:?}");
            assert_eq!(names(&selection.published), ["t"]);
        }
    }

    #[test]
    fn a_partitioned_table_with_a_key_is_published_as_one_and_without_a_key_by_its_leaves() {
        let all = [
            made(1, "keyed", TableKind::Partitioned, Identity::Default, &["id"], None),
            made(2, "keyed_1", TableKind::Ordinary, Identity::Default, &["id"], Some(1)),
            made(3, "keyed_2", TableKind::Ordinary, Identity::Nothing, &["id"], Some(1)),
            made(4, "bare", TableKind::Partitioned, Identity::Default, &[], None),
            made(5, "bare_middle", TableKind::Partitioned, Identity::Default, &[], Some(4)),
            made(6, "bare_1", TableKind::Ordinary, Identity::Default, &[], Some(5)),
            made(7, "bare_far", TableKind::Foreign, Identity::Default, &[], Some(5)),
        ];
        let selection = select(&all, &Migration::default());
        assert_eq!(names(&selection.published), ["bare_1", "keyed"]);
        let mut full = names(&selection.need_full);
        full.sort_unstable();
        assert_eq!(full, ["bare_1", "keyed_2"]);
        assert_eq!(selection.leaves[&1], [2, 3]);
        assert_eq!(selection.published[1].estimated_rows, 20);
        assert_eq!(selection.left_out.len(), 1);
    }

    #[test]
    fn only_a_primary_key_is_every_leafs_identity_present_and_future() {
        let index = [
            made(1, "root", TableKind::Partitioned, Identity::Index, &["code"], None),
            made(2, "leaf", TableKind::Ordinary, Identity::Default, &["id"], Some(1)),
        ];
        assert_eq!(names(&select(&index, &Migration::default()).published), ["leaf"]);
        // A leaf that identifies its rows by something else would send before images without the root's key.
        for (identity, key, full) in [
            (Identity::Default, &["b", "a"][..], false),
            (Identity::Index, &["a", "b"], false),
            (Identity::Index, &["code"], true),
            (Identity::Full, &["a", "b"], false),
        ] {
            let root = made(1, "root", TableKind::Partitioned, Identity::Default, &["a", "b"], None);
            let leaf = made(2, "leaf", TableKind::Ordinary, identity, key, Some(1));
            let selection = select(&[root, leaf], &Migration::default());
            assert_eq!(names(&selection.published), ["root"]);
            assert_eq!(names(&selection.need_full), if full { vec!["leaf"] } else { vec![] }, "{identity:?} {key:?}");
        }
    }

    #[test]
    fn unlogged_and_foreign_tables_are_left_out_by_name() {
        let mut unlogged = Table::clone(&made(1, "u", TableKind::Ordinary, Identity::Default, &["id"], None));
        unlogged.logged = false;
        let foreign = made(2, "f", TableKind::Foreign, Identity::Default, &[], None);
        let selection = select(&[Arc::new(unlogged), foreign], &Migration::default());
        assert!(selection.published.is_empty() && selection.need_full.is_empty());
        assert_eq!(selection.left_out.len(), 2);
    }

    #[test]
    fn a_virtual_column_and_a_full_identity_are_never_published_together() {
        use Identity::{Default, Full, Nothing};
        let with_virtual = |oid, identity, key: &[&str], parent| {
            let mut table = Table::clone(&made(oid, "t", TableKind::Ordinary, identity, key, parent));
            let (type_oid, typmod, type_name) = (23, -1, "pg_catalog.int4".to_owned());
            let generated = Generated::Virtual;
            table.columns = vec![CatalogColumn {
                name: "twice".into(),
                type_oid,
                typmod,
                type_name,
                generated,
                definition: Definition::default(),
            }];
            Arc::new(table)
        };
        for (identity, key, published) in [
            (Default, &["id"][..], true),
            (Default, &[], false),
            (Full, &["id"], false),
            (Full, &[], false),
            (Nothing, &["id"], false),
        ] {
            let selection = select(&[with_virtual(1, identity, key, None)], &Migration::default());
            assert_eq!(selection.published.len(), usize::from(published), "{identity:?} {key:?}");
            assert_eq!(selection.left_out.len(), usize::from(!published), "{identity:?} {key:?}");
            assert!(selection.need_full.is_empty(), "{identity:?} {key:?}");
            // A published root publishes its leaves with it.
            let root = made(1, "root", TableKind::Partitioned, Default, &["id"], None);
            let selection = select(&[root, with_virtual(2, identity, key, Some(1))], &Migration::default());
            assert_eq!(selection.published.len(), usize::from(published), "{identity:?} {key:?}");
            assert!(selection.need_full.is_empty(), "{identity:?} {key:?}");
        }
    }
}
