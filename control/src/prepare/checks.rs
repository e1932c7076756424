//! CHECK constraints of the source as steps: a table's CREATE has only those that it had when it was made on the target. Pure.

use std::collections::HashSet;

use changelog::TableName;
use changelog::table::quote_identifier;

use super::archive::Entry;
use super::steps::{Catalog, Constraint, Kind, PG_CONSTRAINT, Step, Work, Yields, in_two};

/// Of the tables among `pre`, in the order of their names; without those that are entries of their own (NOT VALID ones), and those
/// that a table inherits.
pub fn steps(entries: &[Entry], pre: &[Entry], catalog: &Catalog) -> Vec<Step> {
    let apart: HashSet<u32> =
        entries.iter().filter(|entry| entry.class == PG_CONSTRAINT).map(|entry| entry.oid).collect();
    let tables: HashSet<TableName> = pre
        .iter()
        .filter(|entry| entry.kind == "TABLE")
        .map(|entry| TableName::new(entry.schema.clone(), entry.name.clone()))
        .collect();
    let mut checks: Vec<(&Constraint, &String)> = catalog
        .constraints
        .iter()
        .filter(|(oid, constraint)| !apart.contains(oid) && tables.contains(&constraint.table))
        .filter_map(|(_, constraint)| Some((constraint, constraint.check.as_ref()?)))
        .collect();
    checks.sort_by_key(|(constraint, _)| (&constraint.table, &constraint.name));
    checks.into_iter().flat_map(|(constraint, definition)| of_check(constraint, definition)).collect()
}

fn of_check(constraint: &Constraint, definition: &str) -> Vec<Step> {
    let (table, name) = (constraint.table.quoted(), quote_identifier(&constraint.name));
    // Without ONLY: partitions and children inherit it.
    let added = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition};");
    let works = if constraint.validated { in_two(&added, constraint) } else { vec![(added, Yields::Constraint)] };
    let step = |(statement, yields): Work| Step {
        kind: Kind::Post,
        table: constraint.table.clone(),
        name: constraint.name.clone(),
        statement,
        needs: vec![constraint.table.clone()],
        yields,
        beside: Vec::new(),
        within_table: true,
        joins: None,
    };
    works.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn check(table: &str, name: &str, validated: bool, check: Option<&str>) -> Constraint {
        Constraint {
            table: TableName::new("public", table),
            name: name.into(),
            kind: 'c',
            deferrable: false,
            deferred: false,
            validated,
            partitioned: false,
            period: false,
            identity: false,
            index_definition: String::new(),
            check: check.map(str::to_owned),
        }
    }

    #[test]
    fn a_check_is_added_without_a_look_at_the_rows_and_then_validated() {
        let table =
            Entry { id: 1, kind: "TABLE".into(), schema: "public".into(), name: "t".into(), ..Entry::default() };
        let apart = Entry { id: 2, class: PG_CONSTRAINT, oid: 12, kind: "CHECK CONSTRAINT".into(), ..Entry::default() };
        let catalog = Catalog {
            constraints: HashMap::from([
                (11, check("t", "b", true, Some("CHECK ((a > 0)) NO INHERIT"))),
                (12, check("t", "entry of its own", false, Some("CHECK ((a > 1)) NOT VALID"))),
                (13, check("t", "inherited", true, None)),
                (14, check("not moved", "c", true, Some("CHECK (true)"))),
                (15, check("t", "a", false, Some("CHECK ((a > 2)) NOT ENFORCED"))),
            ]),
            ..Catalog::default()
        };
        let steps = steps(&[apart], &[table], &catalog);
        let found: Vec<(&str, Yields)> = steps.iter().map(|step| (step.statement.as_str(), step.yields)).collect();
        assert_eq!(
            found,
            [
                ("ALTER TABLE \"public\".\"t\" ADD CONSTRAINT \"a\" CHECK ((a > 2)) NOT ENFORCED;", Yields::Constraint),
                (
                    "ALTER TABLE \"public\".\"t\" ADD CONSTRAINT \"b\" CHECK ((a > 0)) NO INHERIT NOT VALID;",
                    Yields::Constraint
                ),
                ("ALTER TABLE \"public\".\"t\" VALIDATE CONSTRAINT \"b\";", Yields::Validated),
            ]
        );
    }
}
