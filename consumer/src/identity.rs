//! Which table of the source each table of the target stands for, by `pg_class.oid`, which stays when a table is renamed:
//! `dflux.table_identity`. Where no event trigger tells of a rename, the first event behind it shows it; and rows of a table
//! that has taken another's name are never taken for the other's.

use std::collections::HashMap;

use changelog::TableName;
use changelog::ledger::Plan;
use sqlx::postgres::PgConnection;

use crate::Error;
use crate::error::target;

/// The longest name that PostgreSQL takes, in bytes.
const NAME_MAX: usize = 63;

/// What the table's name says by what is known of its OID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the table of that name.
    Same,
    /// Nothing is known of either.
    New,
    /// It had another name. `taken`: of the table that has the name in the target.
    Renamed { from: TableName, taken: Option<u32> },
    /// The name is another table's, and of this one nothing is known.
    Another,
}

/// Of all tables of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities(HashMap<TableName, u32>);

impl Identities {
    /// # Errors
    /// `Target`.
    pub async fn read(connection: &mut PgConnection, lane: &str) -> Result<Identities, Error> {
        let sql = "SELECT schema_name, table_name, source_oid FROM dflux.table_identity WHERE lane = $1";
        let query = sqlx::query_as::<_, (String, String, i64)>(sql).bind(lane);
        let rows = query.fetch_all(connection).await.map_err(target("dflux.table_identity"))?;
        Ok(Identities(rows.into_iter().map(|(schema, name, oid)| (TableName::new(schema, name), oid as u32)).collect()))
    }

    pub fn standing(&self, table: &TableName, oid: u32) -> Standing {
        let named = self.0.get(table).copied();
        if oid == 0 || named == Some(oid) {
            return Standing::Same;
        }
        match (self.0.iter().find(|(_, known)| **known == oid), named) {
            (Some((from, _)), taken) => Standing::Renamed { from: from.clone(), taken },
            (None, Some(_)) => Standing::Another,
            (None, None) => Standing::New,
        }
    }
}

/// Says which table of the source a table is from here on; 0: whichever its next event says.
///
/// # Errors
/// `Target`.
pub async fn set(connection: &mut PgConnection, lane: &str, table: &TableName, oid: u32) -> Result<(), Error> {
    let sql = "WITH gone AS (DELETE FROM dflux.table_identity WHERE $4 = 0 AND (lane, schema_name, table_name) = ($1, $2, $3)) \
               INSERT INTO dflux.table_identity SELECT $1, $2, $3, $4 WHERE $4 <> 0 \
               ON CONFLICT (lane, schema_name, table_name) DO UPDATE SET source_oid = excluded.source_oid";
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(i64::from(oid));
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_identity"))
}

/// Of the copies that a target begins with.
///
/// # Errors
/// `Target`.
pub async fn copied(connection: &mut PgConnection, lane: &str, plans: &[&Plan]) -> Result<(), Error> {
    let known: Vec<&&Plan> = plans.iter().filter(|plan| plan.oid != 0).collect();
    let sql = "INSERT INTO dflux.table_identity SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[]) \
               ON CONFLICT (lane, schema_name, table_name) DO NOTHING";
    let query = sqlx::query(sql).bind(lane);
    let query = query.bind(known.iter().map(|plan| plan.table.schema.as_str()).collect::<Vec<_>>());
    let query = query.bind(known.iter().map(|plan| plan.table.name.as_str()).collect::<Vec<_>>());
    let query = query.bind(known.iter().map(|plan| i64::from(plan.oid)).collect::<Vec<_>>());
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_identity"))
}

/// A name for a table whose own is taken by another while its next is not known yet.
pub fn aside(table: &TableName, oid: u32) -> TableName {
    let suffix = format!("_dflux_{oid}");
    let mut end = table.name.len().min(NAME_MAX - suffix.len());
    while !table.name.is_char_boundary(end) {
        end -= 1;
    }
    TableName::new(table.schema.clone(), format!("{}{suffix}", &table.name[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableName {
        TableName::new("s", name)
    }

    #[test]
    fn a_table_is_known_by_its_oid_whatever_it_is_called() {
        let known = Identities([(table("a"), 1), (table("b"), 2)].into());
        assert_eq!(known.standing(&table("a"), 1), Standing::Same);
        assert_eq!(known.standing(&table("a"), 0), Standing::Same, "events of a version that did not say it");
        assert_eq!(known.standing(&table("c"), 1), Standing::Renamed { from: table("a"), taken: None });
        assert_eq!(known.standing(&table("a"), 2), Standing::Renamed { from: table("b"), taken: Some(1) });
        assert_eq!(known.standing(&table("a"), 3), Standing::Another);
        assert_eq!(known.standing(&table("c"), 3), Standing::New);
        let twice = Identities([(table("a"), 1), (table("b"), 1)].into());
        assert_eq!(twice.standing(&table("b"), 1), Standing::Same, "a later copy of it stands beside the first");
    }

    #[test]
    fn a_name_that_is_made_fits_and_is_cut_between_characters() {
        assert_eq!(aside(&table("t"), 7).name, "t_dflux_7");
        let long = aside(&table(&"ä".repeat(31)), u32::MAX).name;
        assert!(long.len() <= NAME_MAX && long.starts_with("ää") && long.ends_with("_dflux_4294967295"), "{long}");
    }
}
