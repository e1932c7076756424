//! The target's sequences: set ahead of what the source's were read at, in the transaction that moves the lane's position.
//!
//! `setval` is not undone by a rollback; that it is idempotent and never goes back makes this harmless. Nobody else may draw from them before
//! the switch: between the look at a sequence and its `setval` another's `nextval` would be taken back. Once the application may write
//! to the target none is set any more.
//!
//! It must never stop the lane. A sequence that is missing, is not ours to set, or is another one is named, counted, and tried
//! again with the next values that come, which the producer sends now and then whether or not anything changed.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use changelog::sequence::{Held, READ_MAX, Value, advance, read_sql};
use changelog::{Sequence, TableName, fence};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::error::{code, target};
use crate::target::run;
use crate::{Error, observe};

/// Each that is set holds a lock until the commit, and the server's table of locks is small: a batch ends with so many.
pub const BATCH_MAX: usize = 500;
/// What the producer has not told of for so long is no more: it tells of all every five minutes.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);

/// What is known of them between two batches. Lost in a restart, and learned again.
#[derive(Debug, Default)]
pub struct Sequences {
    migration: String,
    margin: u64,
    /// Where the source's stood last, and by how much it had grown then.
    seen: HashMap<TableName, (i64, u64)>,
    /// Those that could not be set.
    troubled: BTreeMap<TableName, Troubled>,
}

#[derive(Debug)]
struct Troubled {
    sequence: Sequence,
    reason: String,
    told_at: Instant,
}

/// One that is to be set.
struct Wanted {
    name: TableName,
    sequence: Sequence,
    growth: u64,
    told_at: Instant,
}

/// A sequence that the target has.
struct Found {
    oid: i64,
    held: Held,
}

type Troubles = Vec<(TableName, String)>;

impl Sequences {
    pub fn new(migration: &str, margin: u64) -> Sequences {
        Sequences { migration: migration.to_owned(), margin, ..Sequences::default() }
    }

    /// Within the open transaction. `read` in lane order: the last of a name counts.
    ///
    /// # Errors
    /// `Target`, for what the whole transaction must be tried again for.
    pub async fn set(&mut self, connection: &mut PgConnection, read: &[Sequence]) -> Result<(), Error> {
        if read.is_empty() {
            return Ok(());
        }
        let open =
            sqlx::query_scalar(AssertSqlSafe(fence::open_sql(&self.migration))).fetch_one(&mut *connection).await;
        if open.map_err(target("its fence"))? {
            return Ok(());
        }
        let now = Instant::now();
        self.troubled.retain(|_, troubled| troubled.told_at.elapsed() < FORGOTTEN_AFTER);
        let again = self.troubled.iter().take(BATCH_MAX);
        let again = again.map(|(name, troubled)| (name.clone(), (troubled.sequence.clone(), troubled.told_at)));
        let mut newest: BTreeMap<TableName, (Sequence, Instant)> = again.collect();
        newest.extend(read.iter().map(|sequence| (sequence.name(), (sequence.clone(), now))));
        let wanted = newest.into_iter().map(|(name, (sequence, told_at))| {
            let growth = self.growth(&name, &sequence);
            Wanted { name, sequence, growth, told_at }
        });
        let wanted: Vec<Wanted> = wanted.collect();
        run(connection, "SAVEPOINT sequences").await.map_err(target("a savepoint"))?;
        let troubles = match self.set_all(connection, &wanted).await {
            Ok(troubles) => {
                run(connection, "RELEASE SAVEPOINT sequences").await.map_err(target("a savepoint"))?;
                troubles
            }
            Err(error) if passes(&error) => return Err(target("its sequences")(error)),
            Err(error) => {
                let back = "ROLLBACK TO SAVEPOINT sequences; RELEASE SAVEPOINT sequences";
                run(connection, back).await.map_err(target("rolling back"))?;
                wanted.iter().map(|wanted| (wanted.name.clone(), error.to_string())).collect()
            }
        };
        self.tell(wanted, troubles);
        Ok(())
    }

    /// What the source's sequence gained between its last two readings; the same again where nothing was gained since.
    fn growth(&mut self, name: &TableName, sequence: &Sequence) -> u64 {
        let (last, growth) = self.seen.get(name).copied().unwrap_or((sequence.last_value, 0));
        let growth = if last == sequence.last_value { growth } else { sequence.last_value.abs_diff(last) };
        self.seen.insert(name.clone(), (sequence.last_value, growth));
        growth
    }

    async fn set_all(&self, connection: &mut PgConnection, wanted: &[Wanted]) -> Result<Troubles, sqlx::Error> {
        let names: Vec<&TableName> = wanted.iter().map(|wanted| &wanted.name).collect();
        let (found, mut troubles) = find(connection, &names).await?;
        let (mut oids, mut values, mut called) = (Vec::new(), Vec::new(), Vec::new());
        for Wanted { name, sequence, growth, .. } in wanted {
            let Some(Found { oid, held }) = found.get(name) else { continue };
            match advance(sequence, held, self.margin, *growth) {
                Ok(Some(value)) => {
                    oids.push(*oid);
                    values.push(value.last_value);
                    called.push(value.is_called);
                }
                Ok(None) => {}
                Err(unfit) => troubles.push((name.clone(), unfit.to_string())),
            }
        }
        if !oids.is_empty() {
            let sql = "SELECT pg_catalog.setval(w.o::pg_catalog.oid::pg_catalog.regclass, w.v, w.c) \
                       FROM unnest($1::int8[], $2::int8[], $3::bool[]) AS w (o, v, c)";
            sqlx::query(sql).bind(&oids).bind(&values).bind(&called).fetch_all(&mut *connection).await?;
            observe::sequences_set(oids.len());
        }
        Ok(troubles)
    }

    /// Each trouble is logged once, and its end too.
    fn tell(&mut self, wanted: Vec<Wanted>, troubles: Troubles) {
        let mut troubles: HashMap<TableName, String> = troubles.into_iter().collect();
        for Wanted { name, sequence, told_at, .. } in wanted {
            let before = self.troubled.remove(&name).map(|troubled| troubled.reason);
            match troubles.remove(&name) {
                Some(reason) => {
                    if before.as_ref() != Some(&reason) {
                        observe::sequence_not_set(&name.to_string(), &reason);
                    }
                    self.troubled.insert(name, Troubled { sequence, reason, told_at });
                }
                None if before.is_some() => observe::sequence_set_again(&name.to_string()),
                None => {}
            }
        }
        observe::sequences_behind(self.troubled.len());
    }
}

/// The whole transaction is tried again, or the session is gone: a deadlock, a server that stops.
fn passes(error: &sqlx::Error) -> bool {
    code(error).is_none_or(|code| ["40", "57", "08"].iter().any(|class| code.starts_with(class)))
}

/// Which of them the target has and we may set, and where they stand; of the others the reason.
async fn find(
    connection: &mut PgConnection,
    names: &[&TableName],
) -> Result<(HashMap<TableName, Found>, Troubles), sqlx::Error> {
    let sql = "SELECT w.at - 1, c.oid::int8, s.seqincrement, s.seqmin, s.seqmax, \
                 pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT') \
                   AND pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') \
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (s, n, at) \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = w.s \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.n \
                 JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid";
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let own: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = sqlx::query(sql).bind(schemas).bind(own).fetch_all(&mut *connection).await?;
    let (mut listed, mut reasons) = (Vec::new(), HashMap::new());
    for row in &rows {
        let Some(name) = usize::try_from(row.try_get::<i64, _>(0)?).ok().and_then(|at| names.get(at)) else { continue };
        if row.try_get(5)? {
            listed.push((*name, row.try_get::<i64, _>(1)?, (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)));
        } else {
            reasons.insert(
                *name,
                format!("our user may not set it: GRANT SELECT, UPDATE ON SEQUENCE {} on the target", name.quoted()),
            );
        }
    }
    let mut found = HashMap::new();
    for some in listed.chunks(READ_MAX) {
        let sql = read_sql(some.iter().map(|(name, ..)| *name));
        let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await?;
        for row in rows {
            let at = usize::try_from(row.try_get::<i32, _>(0)?).ok();
            let Some((name, oid, (increment, min, max))) = at.and_then(|at| some.get(at)) else { continue };
            let value = Value { last_value: row.try_get(1)?, is_called: row.try_get(2)? };
            let held = Held { value, increment: *increment, min: *min, max: *max };
            found.insert((*name).clone(), Found { oid: *oid, held });
        }
    }
    let lacking = names.iter().filter(|name| !found.contains_key(**name));
    let reason = |name: &&TableName| match reasons.remove(*name) {
        Some(reason) => ((*name).clone(), reason),
        None => ((*name).clone(), "the target has no such sequence: dflux prepare makes it".to_owned()),
    };
    let troubles = lacking.map(reason).collect();
    Ok((found, troubles))
}
