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
pub struct Identities(HashMap<TableName, Known>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    oid: u32,
    /// Of the copy that has told it: of two names of one table the later is the one that it has.
    generation: i32,
}

impl Identities {
    /// # Errors
    /// `Target`.
    pub async fn read(connection: &mut PgConnection, lane: &str) -> Result<Identities, Error> {
        let sql = "SELECT schema_name, table_name, source_oid, generation FROM dflux.table_identity WHERE lane = $1";
        let query = sqlx::query_as::<_, (String, String, i64, i32)>(sql).bind(lane);
        let rows = query.fetch_all(connection).await.map_err(target("dflux.table_identity"))?;
        let known = |(schema, name, oid, generation): (String, String, i64, i32)| {
            (TableName::new(schema, name), Known { oid: oid as u32, generation })
        };
        Ok(Identities(rows.into_iter().map(known).collect()))
    }

    /// A table of which nothing was known is that of this OID.
    pub fn learn(&mut self, table: &TableName, oid: u32) {
        self.0.insert(table.clone(), Known { oid, generation: 0 });
    }

    pub fn standing(&self, table: &TableName, oid: u32) -> Standing {
        let named = self.0.get(table).map(|known| known.oid);
        if oid == 0 || named == Some(oid) {
            return Standing::Same;
        }
        let same = self.0.iter().filter(|(_, known)| known.oid == oid);
        match (same.max_by_key(|(name, known)| (known.generation, *name)), named) {
            (Some((from, _)), taken) => Standing::Renamed { from: from.clone(), taken },
            (None, Some(_)) => Standing::Another,
            (None, None) => Standing::New,
        }
    }
}

/// Says which table of the source a table is from here on, and no other is any more; 0: whichever its next event says.
///
/// # Errors
/// `Target`.
pub async fn set(
    connection: &mut PgConnection,
    lane: &str,
    (table, oid): (&TableName, u32),
    generation: u32,
) -> Result<(), Error> {
    let sql = "WITH gone AS (DELETE FROM dflux.table_identity WHERE lane = $1 AND CASE WHEN (schema_name, table_name) = ($2, $3) \
               THEN $4 = 0 ELSE source_oid = $4 END) \
               INSERT INTO dflux.table_identity SELECT $1, $2, $3, $4, $5 WHERE $4 <> 0 ON CONFLICT (lane, schema_name, table_name) \
               DO UPDATE SET source_oid = excluded.source_oid, generation = excluded.generation";
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name).bind(i64::from(oid));
    let query = query.bind(generation as i32);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.table_identity"))
}

/// Of the copies that a target begins with.
///
/// # Errors
/// `Target`.
pub async fn copied(connection: &mut PgConnection, lane: &str, plans: &[&Plan]) -> Result<(), Error> {
    let known: Vec<&&Plan> = plans.iter().filter(|plan| plan.oid != 0).collect();
    let sql = "INSERT INTO dflux.table_identity SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::int[]) \
               ON CONFLICT (lane, schema_name, table_name) DO NOTHING";
    let query = sqlx::query(sql).bind(lane);
    let query = query.bind(known.iter().map(|plan| plan.table.schema.as_str()).collect::<Vec<_>>());
    let query = query.bind(known.iter().map(|plan| plan.table.name.as_str()).collect::<Vec<_>>());
    let query = query.bind(known.iter().map(|plan| i64::from(plan.oid)).collect::<Vec<_>>());
    let query = query.bind(known.iter().map(|plan| plan.generation as i32).collect::<Vec<_>>());
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
        let of = |oid, generation| Known { oid, generation };
        let known = Identities([(table("a"), of(1, 0)), (table("b"), of(2, 0))].into());
        assert_eq!(known.standing(&table("a"), 1), Standing::Same);
        assert_eq!(known.standing(&table("a"), 0), Standing::Same, "events of a version that did not say it");
        assert_eq!(known.standing(&table("c"), 1), Standing::Renamed { from: table("a"), taken: None });
        assert_eq!(known.standing(&table("a"), 2), Standing::Renamed { from: table("b"), taken: Some(1) });
        assert_eq!(known.standing(&table("a"), 3), Standing::Another);
        assert_eq!(known.standing(&table("c"), 3), Standing::New);
        let twice = Identities([(table("a"), of(1, 2)), (table("b"), of(1, 1))].into());
        assert_eq!(twice.standing(&table("c"), 1), Standing::Renamed { from: table("a"), taken: None });
        assert_eq!(twice.standing(&table("b"), 1), Standing::Same, "a later copy of it stands beside the first");
    }

    #[test]
    fn a_name_that_is_made_fits_and_is_cut_between_characters() {
        assert_eq!(aside(&table("t"), 7).name, "t_dflux_7");
        let long = aside(&table(&"ä".repeat(31)), u32::MAX).name;
        assert!(long.len() <= NAME_MAX && long.starts_with("ää") && long.ends_with("_dflux_4294967295"), "{long}");
    }
}
