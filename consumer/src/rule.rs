//! What holds for one table besides the lane's own rules: it follows from the snapshots that its rows were read under. The
//! lane asks for it at its start and when a table rejoins it, so both get the same answer.

use changelog::{Lsn, TableName};
use foldhash::{HashMap, HashMapExt as _};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::Error;
use crate::error::target;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Events of transactions below this commit LSN are in the copy already.
    pub skip_below: Lsn,
    /// The table is being read again: its events are left to that.
    pub suspended: bool,
    /// Tolerant below this commit LSN, whatever the lane is.
    pub tolerant_below: Lsn,
}

/// A snapshot that chunks of a table were read under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Snapshot {
    pub lsn: Lsn,
    /// Exactly the transactions below `lsn` are in it. Otherwise none above is, and below it nothing is sure.
    pub exact: bool,
}

impl Rule {
    /// Of a table that the source has no more, so that its copy never comes: nothing is applied to it.
    pub const GONE: Rule = Rule { skip_below: Lsn(u64::MAX), suspended: false, tolerant_below: Lsn::ZERO };

    /// Of a table that is being read again.
    pub const SUSPENDED: Rule = Rule { skip_below: Lsn::ZERO, suspended: true, tolerant_below: Lsn::ZERO };

    /// Whether the target's table is not the copy that the lane's events follow, and perhaps not there at all.
    pub fn unbuilt(&self) -> bool {
        self.suspended || *self == Rule::GONE
    }

    /// The rule of a table with these snapshots' rows.
    pub fn of(snapshots: &[Snapshot]) -> Rule {
        let (Some(lowest), Some(highest)) = (snapshots.iter().min(), snapshots.iter().max()) else {
            return Rule::default();
        };
        let skip_below = if lowest.exact { lowest.lsn } else { Lsn::ZERO };
        let tolerant_below = if lowest.exact && lowest.lsn == highest.lsn { Lsn::ZERO } else { highest.lsn };
        Rule { skip_below, tolerant_below, suspended: false }
    }
}

/// The rules of all tables that were copied, or of one, by their newest generation.
///
/// # Errors
/// `Target`.
pub async fn of_copies(
    connection: &mut PgConnection,
    lane: &str,
    table: Option<&TableName>,
) -> Result<HashMap<TableName, Rule>, Error> {
    let sql = "SELECT DISTINCT c.schema_name, c.table_name, c.snapshot_lsn::text, c.exact_snapshot FROM dflux.chunk c \
               WHERE c.lane = $1 AND ($2::text IS NULL OR (c.schema_name, c.table_name) = ($2, $3)) AND c.generation = (SELECT max(g.generation) FROM dflux.chunk g \
               WHERE (g.lane, g.schema_name, g.table_name) = (c.lane, c.schema_name, c.table_name))";
    let query = sqlx::query(sql).bind(lane).bind(table.map(|table| &table.schema)).bind(table.map(|table| &table.name));
    let rows = query.fetch_all(connection).await.map_err(target("dflux.chunk"))?;
    let mut snapshots: HashMap<TableName, Vec<Snapshot>> = HashMap::new();
    for row in &rows {
        let read = || -> Result<(TableName, Snapshot), sqlx::Error> {
            let table = TableName::new(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
            let lsn = row.try_get::<String, _>(2)?.parse().unwrap_or_default();
            Ok((table, Snapshot { lsn, exact: row.try_get(3)? }))
        };
        let (table, snapshot) = read().map_err(target("dflux.chunk"))?;
        snapshots.entry(table).or_default().push(snapshot);
    }
    Ok(snapshots.into_iter().map(|(table, snapshots)| (table, Rule::of(&snapshots))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_skipped_below_what_is_surely_copied_and_tolerated_below_what_may_be() {
        let rule = |snapshots: &[(u64, bool)]| {
            let snapshots: Vec<Snapshot> =
                snapshots.iter().map(|(lsn, exact)| Snapshot { lsn: Lsn(*lsn), exact: *exact }).collect();
            let Rule { skip_below, suspended, tolerant_below } = Rule::of(&snapshots);
            assert!(!suspended);
            (skip_below.0, tolerant_below.0)
        };
        assert_eq!(rule(&[]), (0, 0));
        assert_eq!(rule(&[(7, true)]), (7, 0), "exact at one point");
        assert_eq!(rule(&[(9, true), (7, true)]), (7, 9), "each chunk exact, at points of its own");
        assert_eq!(rule(&[(7, true), (9, false)]), (7, 9), "a chunk read later");
        // A commit just below a point that is not exact may have come after the snapshot.
        assert_eq!(rule(&[(7, false), (9, true)]), (0, 9));
        assert_eq!(rule(&[(7, false)]), (0, 7));
        assert_eq!(rule(&[(7, true), (7, false)]), (0, 7));
    }
}
