//! Sessions on the target and the lane's row: who leads, how far the rows are, what went wrong.
//!
//! Rows and `UPDATE dflux.lane … WHERE lane = $1 AND epoch = $2` commit together; an instance whose epoch has passed finds no row and
//! commits nothing. Every transaction of ours is marked, by a replication origin or, where that is not granted, by a
//! first statement `pg_logical_emit_message(true, 'dflux.origin', …)`, so that the other lane does not send it back.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use changelog::table::quote_literal;
use changelog::{Birth, Lsn, Position, TableName, fence};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgTypeInfo};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Encode, Postgres, Row, Type};

use crate::array::RawArray;
use crate::error::{code, target};
use crate::merge::Applied;
use crate::{Error, schema};

impl Type<Postgres> for RawArray {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(sqlx::postgres::types::Oid(1009))
    }
}

impl Encode<'_, Postgres> for RawArray {
    fn encode_by_ref(
        &self,
        out: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        out.extend_from_slice(&self.bytes);
        Ok(sqlx::encode::IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(sqlx::postgres::types::Oid(self.array_oid)))
    }

    fn size_hint(&self) -> usize {
        self.bytes.len()
    }
}

/// Microseconds since 1970 by this machine's clock.
pub fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}

/// The migration of a lane of this name.
pub fn migration_of(lane: &str) -> &str {
    lane.rsplit_once('/').map_or(lane, |(migration, _)| migration)
}

/// Opens sessions on the target for one lane.
#[derive(Clone, Debug)]
pub struct Sessions {
    options: PgConnectOptions,
    /// `<migration>/<lane>`.
    pub lane: String,
}

/// What a session is for; decides its settings and who may end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Waits for its turn; never ended by another instance.
    Standby,
    /// Applies changes.
    Apply,
    /// Loads chunks and builds indexes.
    Load,
    /// Writes signs of life.
    Heartbeat,
}

impl Sessions {
    /// # Errors
    /// `Service(Url)`.
    pub fn new(url: &str, lane: &str) -> Result<Sessions, Error> {
        let options = PgConnectOptions::from_str(url).map_err(|error| {
            Error::Service(service::Error::Url {
                role: "target",
                url: service::config::without_password(url),
                message: error.to_string(),
            })
        })?;
        let options = options.statement_cache_capacity(1000).disable_statement_logging();
        Ok(Sessions { options, lane: lane.to_owned() })
    }

    /// Every session of a leading instance has this name; a successor ends them by it. At most 63 bytes, as the server cuts it.
    pub fn leader_name(&self) -> String {
        let full = format!("dflux consumer {}", self.lane);
        if full.len() <= 63 && full.is_ascii() {
            return full;
        }
        let hash = self
            .lane
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("dflux consumer {hash:016x}")
    }

    /// # Errors
    /// `Target`.
    pub async fn open(&self, purpose: Purpose) -> Result<PgConnection, Error> {
        let name = match purpose {
            Purpose::Standby => self.leader_name().replacen("consumer", "standby", 1),
            Purpose::Apply | Purpose::Load | Purpose::Heartbeat => self.leader_name(),
        };
        let options = self.options.clone().application_name(&name);
        let connect = tokio::time::timeout(Duration::from_secs(15), PgConnection::connect_with(&options)).await;
        let connect = connect.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let mut connection = connect.map_err(target("cannot connect"))?;
        let mut settings = service::session::pinned_settings_sql();
        // Progress commits with the rows and Kafka has the events: a commit lost in a crash is applied again.
        settings.push_str("SET synchronous_commit = off;");
        // What the lane writes passes the fence that keeps the application out.
        let _ = write!(settings, "SET {} = {};", fence::PASS, quote_literal(migration_of(&self.lane)));
        if purpose == Purpose::Apply {
            // Keys are found by their index however small the table was when the statement was planned, and statements
            // with arrays as parameters gain nothing from being planned anew each time.
            settings.push_str("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;");
        }
        run(&mut connection, &settings).await.map_err(target("the session's settings are refused"))?;
        if matches!(purpose, Purpose::Apply | Purpose::Load) {
            replica_role(&mut connection).await?;
        }
        Ok(connection)
    }
}

/// Triggers and foreign keys fired on the source already; where the role may, they are off here.
async fn replica_role(connection: &mut PgConnection) -> Result<(), Error> {
    match run(connection, "SET session_replication_role = replica").await {
        Ok(()) => Ok(()),
        Err(error) if code(&error).as_deref() == Some("42501") => {
            crate::observe::replica_role_not_granted();
            Ok(())
        }
        Err(source) => Err(Error::Target { what: "session_replication_role cannot be set".into(), source }),
    }
}

/// Runs statements by the simple protocol, in one round trip.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}

/// How our transactions are marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marking {
    /// The session has a replication origin.
    Origin,
    /// Each transaction begins with a message.
    Message,
}

impl Marking {
    /// Opens a transaction. Deferrable constraints wait for its end, as they may have on the source.
    pub fn begin(&self, lane: &str) -> String {
        match self {
            Marking::Origin => "BEGIN; SET CONSTRAINTS ALL DEFERRED".to_owned(),
            Marking::Message => format!(
                "BEGIN; SELECT pg_catalog.pg_logical_emit_message(true, '{}', {}); SET CONSTRAINTS ALL DEFERRED",
                changelog::origin::MESSAGE_PREFIX,
                changelog::table::quote_literal(lane)
            ),
        }
    }
}

/// Sets up a replication origin for the session if the role may.
///
/// # Errors
/// `Target` if the session is lost.
pub async fn mark(connection: &mut PgConnection, lane: &str) -> Result<Marking, Error> {
    let name = changelog::table::quote_literal(&changelog::origin::origin_name(lane));
    let sql = format!(
        "DO $$ BEGIN IF pg_catalog.pg_replication_origin_oid({name}) IS NULL THEN \
         PERFORM pg_catalog.pg_replication_origin_create({name}); END IF; END $$; \
         SELECT pg_catalog.pg_replication_origin_session_setup({name})"
    );
    match run(connection, &sql).await {
        Ok(()) => Ok(Marking::Origin),
        Err(error) if code(&error).is_some() && !crate::error::transient(&error) => {
            crate::observe::origin_not_granted(&error);
            Ok(Marking::Message)
        }
        Err(source) => Err(Error::Target { what: "the replication origin cannot be set up".into(), source }),
    }
}

/// The lane's row as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRow {
    pub system_identifier: String,
    pub timeline: i32,
    pub slot: String,
    pub consistent_point: Lsn,
    pub applied: Applied,
    /// `None` until the backfill is loaded and indexed.
    pub exact_from: Option<Lsn>,
    pub phase: String,
}

/// Makes the schema `dflux`.
///
/// # Errors
/// `Target`.
pub async fn make_schema(connection: &mut PgConnection) -> Result<(), Error> {
    let there = "SELECT pg_catalog.to_regclass('dflux.divergence') IS NOT NULL";
    let there: bool = sqlx::query_scalar(there).fetch_one(&mut *connection).await.map_err(target("cannot be asked"))?;
    if there {
        return Ok(());
    }
    let sql = format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({}); {}; COMMIT", schema::DDL_LOCK, schema::DDL);
    run(connection, &sql).await.map_err(target("the schema dflux cannot be made"))
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    text.and_then(|text| text.parse().ok())
}

/// # Errors
/// `Target`.
pub async fn lane_row(connection: &mut PgConnection, lane: &str) -> Result<Option<LaneRow>, Error> {
    let sql = "SELECT system_identifier, timeline, slot, consistent_point::text, commit_lsn::text, ordinal, part, \
               exact_from::text, coalesce(phase, '') FROM dflux.lane WHERE lane = $1 AND system_identifier IS NOT NULL";
    let row = sqlx::query(sql).bind(lane).fetch_optional(connection).await.map_err(target("dflux.lane"))?;
    let Some(row) = row else { return Ok(None) };
    let read = || -> Result<LaneRow, sqlx::Error> {
        let commit_lsn = lsn(row.try_get(4)?).unwrap_or_default();
        let ordinal: i64 = row.try_get::<Option<i64>, _>(5)?.unwrap_or(-1);
        let part: i32 = row.try_get::<Option<i32>, _>(6)?.unwrap_or(0);
        // An ordinal below 0: a marker was reached, and no change of its transaction.
        let applied = match u64::try_from(ordinal) {
            Ok(ordinal) => Applied::through(Position { commit_lsn, ordinal, part: part.max(0) as u32 }),
            Err(_) => Applied::before(commit_lsn),
        };
        Ok(LaneRow {
            system_identifier: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
            timeline: row.try_get::<Option<i32>, _>(1)?.unwrap_or(0),
            slot: row.try_get::<Option<String>, _>(2)?.unwrap_or_default(),
            consistent_point: lsn(row.try_get(3)?).unwrap_or_default(),
            applied,
            exact_from: lsn(row.try_get(7)?),
            phase: row.try_get(8)?,
        })
    };
    read().map(Some).map_err(target("dflux.lane"))
}

/// Fills the lane's row from the birth.
///
/// # Errors
/// `Target`, `Fenced`.
pub async fn begin_lane(connection: &mut PgConnection, lane: &str, epoch: i64, birth: &Birth) -> Result<(), Error> {
    let sql = "UPDATE dflux.lane SET system_identifier = $3, timeline = $4, slot = $5, consistent_point = $6::pg_lsn, \
               commit_lsn = $6::pg_lsn, ordinal = -1, part = 0, phase = 'loading' WHERE lane = $1 AND epoch = $2";
    let done = sqlx::query(sql)
        .bind(lane)
        .bind(epoch)
        .bind(&birth.system_identifier)
        .bind(birth.timeline)
        .bind(&birth.slot)
        .bind(birth.consistent_point.to_string())
        .execute(connection)
        .await
        .map_err(target("dflux.lane"))?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Fenced { lane: lane.to_owned(), epoch }) }
}

/// # Errors
/// `Target`, `Fenced`.
pub async fn set_phase(
    connection: &mut PgConnection,
    lane: &str,
    epoch: i64,
    phase: &str,
    exact_from: Option<Lsn>,
) -> Result<(), Error> {
    let sql = "UPDATE dflux.lane SET phase = $3, exact_from = coalesce($4::pg_lsn, exact_from), error = NULL, \
               error_hint = NULL WHERE lane = $1 AND epoch = $2";
    let done = sqlx::query(sql)
        .bind(lane)
        .bind(epoch)
        .bind(phase)
        .bind(exact_from.map(|lsn| lsn.to_string()))
        .execute(connection)
        .await
        .map_err(target("dflux.lane"))?;
    crate::observe::phase(phase);
    if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Fenced { lane: lane.to_owned(), epoch }) }
}

/// Writes why the lane stands still. The row's error is the last one, whoever met it.
///
/// # Errors
/// `Target`.
pub async fn record_error(
    connection: &mut PgConnection,
    lane: &str,
    epoch: i64,
    text: &str,
    hint: Option<&str>,
) -> Result<(), Error> {
    let sql = "UPDATE dflux.lane SET phase = 'stopped', error = $3, error_hint = $4 WHERE lane = $1 AND epoch = $2";
    let query = sqlx::query(sql).bind(lane).bind(epoch).bind(text).bind(hint);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.lane"))
}

/// Counts a transaction that was not the application's, in the transaction that passes it.
///
/// # Errors
/// `Target`.
pub async fn rogue(connection: &mut PgConnection, lane: &str, table: &TableName, at: Position) -> Result<(), Error> {
    let sql = "WITH told AS (INSERT INTO dflux.divergence (lane, schema_name, table_name, commit_lsn, ordinal, op) \
               VALUES ($1, $2, $3, $4::pg_lsn, $5, 'rogue')) UPDATE dflux.lane SET diverged = diverged + 1 WHERE lane = $1";
    let query = sqlx::query(sql).bind(lane).bind(&table.schema).bind(&table.name);
    let query = query.bind(at.commit_lsn.to_string()).bind(at.ordinal as i64);
    query.execute(connection).await.map(|_| ()).map_err(target("dflux.divergence"))
}
