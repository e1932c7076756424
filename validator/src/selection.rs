//! Which tables are compared, and each as what. Pure.
//!
//! A table is in the migration when a pattern names it or a partitioned table above it. It is compared as what it is
//! published as, because topics, resyncs and rows to be read again go by that name: a partitioned table with a key as one,
//! read through its root, however either side divides it (a unique key over partitions holds the partition key, so it is
//! unique over all of them); the partitions of one without a key each for itself. What the publication names decides; the
//! rest goes by the producer's rule, which made the publication.

use std::collections::{HashMap, HashSet};

use changelog::TableName;
use service::config::Migration;

use crate::definition::TableDefinition;

/// One table to compare.
#[derive(Debug)]
pub struct Unit<'a> {
    pub table: &'a TableDefinition,
    /// Its partitions of all levels, which have no comparison of their own.
    pub partitions: Vec<&'a TableDefinition>,
}

impl Unit<'_> {
    /// Whether `schema.table` is it, or a part of it.
    pub fn holds(&self, name: &str) -> bool {
        std::iter::once(&self.table).chain(&self.partitions).any(|table| table.table().to_string() == name)
    }
}

/// Every table of the migration, followed by the partitioned tables above it, the nearest first.
pub fn members<'a>(tables: &'a [TableDefinition], migration: &Migration) -> Vec<Vec<&'a TableDefinition>> {
    let by_name: HashMap<(&str, &str), &TableDefinition> =
        tables.iter().map(|table| ((table.schema.as_str(), table.name.as_str()), table)).collect();
    let above = |table: &&'a TableDefinition| {
        let (schema, name) = table.parent.as_ref()?;
        by_name.get(&(schema.as_str(), name.as_str())).copied()
    };
    tables
        .iter()
        // A catalog has no cycles; the bound is for an answer that has.
        .map(|table| std::iter::successors(Some(table), above).take(100).collect::<Vec<_>>())
        .filter(|chain| chain.iter().any(|table| migration.selects(&table.schema, &table.name)))
        .collect()
}

/// What is compared, in the order of `tables`.
pub fn units<'a>(tables: &'a [TableDefinition], migration: &Migration) -> Vec<Unit<'a>> {
    let members = members(tables, migration);
    // Partitioned tables of which a part is compared for itself: so is every other part then, and they themselves are not.
    let mut divided: HashSet<TableName> = HashSet::new();
    for chain in &members {
        let compared = compared_as(chain, migration).table();
        divided.extend(chain[1..].iter().map(|above| above.table()).filter(|above| *above != compared));
    }
    let mut units: Vec<Unit<'a>> = Vec::new();
    let mut parts: HashMap<TableName, Vec<&'a TableDefinition>> = HashMap::new();
    for chain in &members {
        let compared = compared_as(chain, migration).table();
        if compared != chain[0].table() && !divided.contains(&compared) {
            parts.entry(compared).or_default().push(chain[0]);
        } else if !divided.contains(&chain[0].table()) {
            units.push(Unit { table: chain[0], partitions: Vec::new() });
        }
    }
    for unit in &mut units {
        unit.partitions = parts.remove(&unit.table.table()).unwrap_or_default();
    }
    units
}

/// The table itself, or the partitioned table above it that its rows are published as.
fn compared_as<'a>(chain: &[&'a TableDefinition], migration: &Migration) -> &'a TableDefinition {
    if let Some(published) = chain.iter().rev().find(|table| table.published) {
        return published;
    }
    let top = chain.iter().rev().find(|table| migration.selects(&table.schema, &table.name));
    top.filter(|top| top.partitioned() && top.identified).unwrap_or(&chain[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, kind: &str, parent: Option<&str>) -> TableDefinition {
        TableDefinition {
            schema: "public".into(),
            name: name.into(),
            kind: kind.into(),
            parent: parent.map(|parent| ("public".to_owned(), parent.to_owned())),
            identified: true,
            ..TableDefinition::default()
        }
    }

    fn compared(tables: &[TableDefinition], pattern: &str) -> Vec<String> {
        let migration = Migration { tables: vec![pattern.into()], ..Migration::default() };
        let units = units(tables, &migration);
        let names = |tables: &[&TableDefinition]| tables.iter().map(|t| t.name.clone()).collect::<Vec<_>>().join("+");
        units.iter().map(|unit| format!("{}({})", unit.table.name, names(&unit.partitions))).collect()
    }

    #[test]
    fn a_partitioned_table_is_compared_as_what_it_is_published_as() {
        let mut tables = vec![
            table("orders", "p", None),
            table("orders_2025", "r", Some("orders")),
            table("orders_2026", "p", Some("orders")),
            table("orders_2026_a", "r", Some("orders_2026")),
            table("other", "r", None),
        ];
        let whole = "orders(orders_2025+orders_2026+orders_2026_a)";
        // A pattern that names the root takes its partitions; one that names a partition takes that alone.
        assert_eq!(compared(&tables, "public.orders"), [whole]);
        assert_eq!(compared(&tables, "public.*"), [whole, "other()"]);
        assert_eq!(compared(&tables, "public.orders_2025"), ["orders_2025()"]);
        // Without a key the root stands for nothing.
        tables[0].identified = false;
        assert_eq!(compared(&tables, "public.orders"), ["orders_2025()", "orders_2026_a()"]);
        // What is published decides over what would be published today.
        tables[0].published = true;
        assert_eq!(compared(&tables, "public.orders"), [whole]);
        (tables[0].published, tables[0].identified, tables[1].published, tables[3].published) =
            (false, true, true, true);
        assert_eq!(compared(&tables, "public.orders"), ["orders_2025()", "orders_2026_a()"]);
        // No partition is in no comparison.
        tables.push(table("orders_new", "r", Some("orders")));
        assert_eq!(compared(&tables, "public.orders"), ["orders_2025()", "orders_2026_a()", "orders_new()"]);
    }

    #[test]
    fn a_partition_is_found_by_its_own_name() {
        let tables = [table("orders", "p", None), table("orders_2025", "r", Some("orders"))];
        let migration = Migration { tables: vec!["public.*".into()], ..Migration::default() };
        let units = units(&tables, &migration);
        assert!(units[0].holds("public.orders_2025") && units[0].holds("public.orders"));
        assert!(!units[0].holds("public.orders_2026"));
    }
}
