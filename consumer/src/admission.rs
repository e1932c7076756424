//! From where on the reverse lane carries the application's writes: from the position that the journal of the cutover names. Before that
//! the application is on the source, so that whatever else writes to the target is nobody's that the source knows.

use changelog::{Lane, Lsn};
use service::session::Address;

use crate::Error;

/// What the journal says: the position of the first cutover that was committed.
const FROM: &str = "WITH e AS (SELECT sequence, line::json AS j FROM dflux.cutover WHERE migration = $1),
    returns AS (SELECT (r.j ->> 'lsn')::pg_lsn AS lsn,
        (SELECT s.j ->> 'direction' FROM e s WHERE s.sequence < r.sequence AND s.j ->> 'event' = 'started' ORDER BY s.sequence DESC LIMIT 1) AS direction,
        (SELECT n.j ->> 'event' FROM e n WHERE n.sequence > r.sequence AND n.j ->> 'event' IN ('committed', 'started', 'abort_started')
            ORDER BY n.sequence LIMIT 1) AS next
        FROM e r WHERE r.j ->> 'event' = 'return_recorded')
    SELECT min(lsn)::text FROM returns WHERE direction = 'forward' AND next = 'committed'";

/// Asks the journal, where a lane needs it.
#[derive(Debug)]
pub struct Admission {
    lane: Lane,
    migration: String,
    source_url: String,
    from: Option<Lsn>,
}

impl Admission {
    /// `source_url`: of the database that the lane comes from, which has the journal if it is the reverse lane.
    pub fn new(lane: Lane, migration: &str, source_url: &str) -> Admission {
        let (migration, source_url) = (migration.to_owned(), source_url.to_owned());
        Admission { lane, migration, source_url, from: None }
    }

    /// Whether a transaction of the application that was committed there is to be applied. The commit record of a cutover is durable
    /// before the target takes writes: it is there when the first of them is met.
    ///
    /// # Errors
    /// `Source`.
    pub async fn admits(&mut self, commit_lsn: Lsn) -> Result<bool, Error> {
        if self.lane == Lane::Forward || self.from.is_some_and(|from| commit_lsn >= from) {
            return Ok(true);
        }
        let failed = |source| Error::Source { what: "the journal of the cutover".into(), source };
        let client = Address::parse("source", &self.source_url)?.connect("dflux consumer admission").await?;
        let there = client.query_one("SELECT pg_catalog.to_regclass('dflux.cutover') IS NOT NULL", &[]).await;
        if there.and_then(|row| row.try_get::<_, bool>(0)).map_err(failed)? {
            let row = client.query_one(FROM, &[&self.migration]).await.map_err(failed)?;
            self.from = row.try_get::<_, Option<String>>(0).map_err(failed)?.and_then(|lsn| lsn.parse().ok());
        }
        Ok(self.from.is_some_and(|from| commit_lsn >= from))
    }
}
