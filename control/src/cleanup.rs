//! `dflux cleanup`: removes what dflux made and nothing else: slot, publication, replica identities, topics, subjects, the
//! schema `dflux`; of a target that follows, only that schema. The migrated tables stay. Idempotent; each thing is said.
//!
//! The order is chosen so that no moment makes a write of the application fail (identities after the publication), and so that what
//! tells what is ours (`dflux.source_change`) goes last.

use std::time::{Duration, Instant};

use changelog::table::quote_identifier;
use changelog::{Lane, TableName, Topics};
use futures_util::TryStreamExt;
use producer::source::schema_trigger;
use service::Config;
use service::registry::RegistryClient;
use tokio_postgres::error::SqlState;

use crate::error::Exit;
use crate::prepare::source::failed;
use crate::topics::Kafka;
use crate::{Database, Error};

/// How long a service that was told to end may take.
const ENDING: Duration = Duration::from_secs(10);
const LOOKS_EVERY: Duration = Duration::from_millis(200);
/// Subjects that the registry is asked at once to delete.
const DELETED_TOGETHER: usize = 8;

/// What is there to remove.
#[derive(Debug, Default)]
struct Found {
    slots: Vec<String>,
    /// Whether the publication is there; dropped only if dflux wrote down that it made it.
    publication: Option<Made>,
    identities: Vec<Changed>,
    trigger: bool,
    topics: Vec<String>,
    /// Whether the target has the schema, and whether other migrations have rows in it.
    schema: bool,
    shared: bool,
    origins: Vec<String>,
}

/// Who made a thing, by `dflux.source_change`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Ours,
    /// It was there before, or nothing is written down of it.
    Unknown,
}

#[derive(Clone, Debug)]
struct Changed {
    table: TableName,
    before: String,
}

/// # Errors
/// `Unconfirmed` without `confirmed`, after saying what would be removed; `SlotInUse` while a producer runs.
pub async fn run(config: &Config, confirmed: bool) -> Result<Exit, Error> {
    let source = Database::connect("source", &config.source.url).await?;
    let target = Database::connect("target", &config.target.url).await?;
    let kafka = Kafka::new(&config.kafka);
    let found = find(config, (&source, &target), &kafka).await?;
    let lines = found.lines(config);
    if found.publication == Some(Made::Unknown) {
        let name = &config.migration.publication;
        println!("source: publication {name} stays: dflux has not written down that it made it");
        println!("hint: DROP PUBLICATION {} on the source if nothing needs it", quote_identifier(name));
    }
    if lines.is_empty() {
        println!("nothing of migration {} is left", config.migration.name);
        return Ok(Exit::Done);
    }
    if !confirmed {
        println!("would remove:");
        lines.iter().for_each(|line| println!("  {line}"));
        return Err(Error::Unconfirmed);
    }
    idle(&source, &found.slots).await?;
    if found.schema {
        consumer_gone(config, &target).await?;
    }
    for slot in &found.slots {
        source.execute("dropping the slot", "SELECT pg_catalog.pg_drop_replication_slot($1)", &[slot]).await?;
        println!("source: slot {slot} dropped");
    }
    if found.trigger {
        schema_trigger::remove(&source.client, &config.migration.name).await.map_err(failed)?;
        println!("source: event trigger \"{}\" removed", schema_trigger::called(&config.migration.name));
    }
    if found.publication == Some(Made::Ours) {
        let name = quote_identifier(&config.migration.publication);
        source.batch("dropping the publication", &format!("DROP PUBLICATION IF EXISTS {name}")).await?;
        println!("source: publication {} dropped", config.migration.publication);
    }
    if !found.identities.is_empty() {
        restore_identities(config, (&source, &target), None).await?;
    }
    remove_topics(config, &kafka, &found.topics).await?;
    remove_schema(config, &target, &found).await?;
    Ok(Exit::Done)
}

impl Found {
    fn lines(&self, config: &Config) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.slots.iter().map(|slot| format!("source: slot {slot}")));
        if self.trigger {
            lines.push(format!("source: event trigger \"{}\"", schema_trigger::called(&config.migration.name)));
        }
        if self.publication == Some(Made::Ours) {
            lines.push(format!("source: publication {}", config.migration.publication));
        }
        let identity = |c: &Changed| format!("source: REPLICA IDENTITY FULL of {} (before: {})", c.table, c.before);
        lines.extend(self.identities.iter().map(identity));
        lines.extend(self.topics.iter().map(|topic| format!("Kafka: topic {topic} and its schemas in the registry")));
        lines.extend(self.origins.iter().map(|origin| format!("target: replication origin {origin}")));
        if self.schema {
            let what = if self.shared { "rows of this migration in schema dflux" } else { "schema dflux" };
            lines.push(format!("target: {what}"));
        }
        lines
    }
}

async fn find(config: &Config, (source, target): (&Database, &Database), kafka: &Kafka) -> Result<Found, Error> {
    let migration = &config.migration;
    let mut found = Found { schema: target.has("dflux.source_change").await?, ..Found::default() };
    // What is on the source and in Kafka belongs to the target that does not follow.
    if !config.target.follows {
        on_source(config, source, &mut found).await?;
        let owned = [Lane::Forward, Lane::Reverse].map(|lane| Topics::new(&migration.name, lane));
        let topics = kafka.cluster().await?.topics.into_keys();
        found.topics = topics.filter(|topic| owned.iter().any(|topics| topics.owns(topic))).collect();
    }
    if found.schema {
        found.identities = identities(config, target, None).await?;
        let sql = "SELECT EXISTS (SELECT FROM dflux.source_change WHERE migration = $1 AND kind = 'publication' AND table_name = $2)";
        let row = target.row("what was made", sql, &[&migration.name, &migration.publication]).await?;
        if target.get(&row, 0)? {
            found.publication = found.publication.map(|_| Made::Ours);
        }
        let lane = format!("{}/", migration.name);
        let sql = "SELECT EXISTS (SELECT FROM dflux.lane WHERE NOT starts_with(lane, $1)
            UNION ALL SELECT FROM dflux.schema_step WHERE migration <> $2
            UNION ALL SELECT FROM dflux.source_change WHERE migration <> $2)
            OR to_regclass('dflux.source_table') IS NOT NULL";
        let row = target.row("other migrations", sql, &[&lane, &migration.name]).await?;
        found.shared = target.get(&row, 0)?;
        let sql =
            "SELECT roname::text FROM pg_catalog.pg_replication_origin WHERE starts_with(roname, 'dflux ' || $1::text)";
        let rows = target.rows("its replication origins", sql, &[&lane]).await?;
        found.origins = rows.iter().map(|row| target.get(row, 0)).collect::<Result<_, _>>()?;
    }
    Ok(found)
}

async fn on_source(config: &Config, source: &Database, found: &mut Found) -> Result<(), Error> {
    let migration = &config.migration;
    // Temporary slots of the backfill go with their session.
    let sql = "SELECT slot_name::text FROM pg_catalog.pg_replication_slots
        WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = pg_catalog.current_database() AND NOT temporary";
    let slots = source.rows("its slots", sql, &[&migration.slot]).await?;
    found.slots = slots.iter().map(|row| source.get(row, 0)).collect::<Result<_, _>>()?;
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)";
    let publication = source.row("its publications", sql, &[&migration.publication]).await?;
    found.publication = source.get::<bool>(&publication, 0)?.then_some(Made::Unknown);
    found.trigger = schema_trigger::installed(&source.client, &migration.name).await.map_err(failed)?;
    Ok(())
}

/// A slot that is read cannot be dropped, and dropping topics under a running producer would only make it fail. A producer
/// that has just ended is given a moment.
async fn idle(source: &Database, slots: &[String]) -> Result<(), Error> {
    let sql = "SELECT slot_name::text, active_pid FROM pg_catalog.pg_replication_slots
        WHERE slot_name = ANY ($1) AND active_pid IS NOT NULL";
    let ends = Instant::now() + ENDING;
    loop {
        let rows = source.rows("who uses the slot", sql, &[&slots]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        if Instant::now() >= ends {
            return Err(Error::SlotInUse { slot: source.get(row, 0)?, pid: source.get(row, 1)? });
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

/// As `idle`, for the consumer's session on the target.
async fn consumer_gone(config: &Config, target: &Database) -> Result<(), Error> {
    let sql =
        "SELECT l.lane, l.backend_pid FROM dflux.lane l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.backend_pid
        WHERE starts_with(l.lane, $1) AND l.heartbeat_at > now() - interval '1 minute'
          AND a.datname = current_database()";
    let lane = format!("{}/", config.migration.name);
    let ends = Instant::now() + ENDING;
    loop {
        let rows = target.rows("who applies", sql, &[&lane]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        if Instant::now() >= ends {
            return Err(Error::LaneInUse { lane: target.get(row, 0)?, pid: target.get(row, 1)? });
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

async fn identities(config: &Config, target: &Database, ids: Option<&[i64]>) -> Result<Vec<Changed>, Error> {
    let sql = "SELECT DISTINCT ON (schema_name, table_name) schema_name, table_name, coalesce(before, '')
        FROM dflux.source_change WHERE migration = $1 AND kind = 'replica_identity'
          AND ($2::bigint[] IS NULL OR id = ANY ($2)) ORDER BY schema_name, table_name, id";
    let rows = target.rows("what was changed", sql, &[&config.migration.name, &ids]).await?;
    rows.iter()
        .map(|row| {
            Ok(Changed {
                table: TableName::new(target.get::<String>(row, 0)?, target.get::<String>(row, 1)?),
                before: target.get(row, 2)?,
            })
        })
        .collect()
}

/// Gives tables the replica identity that they had. `ids` are rows of `dflux.source_change`, all of the migration if none.
///
/// A table that somebody has changed since, or that another publication needs as it is, stays as it is.
///
/// # Errors
/// `Sql`.
pub async fn restore_identities(
    config: &Config,
    (source, target): (&Database, &Database),
    ids: Option<&[i64]>,
) -> Result<(), Error> {
    for changed in identities(config, target, ids).await? {
        let table = &changed.table;
        let sql = "SELECT c.relreplident = 'f', EXISTS (
              SELECT FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
              WHERE t.schemaname = $2 AND t.tablename = $3 AND (p.pubupdate OR p.pubdelete) AND p.pubname <> $4)
            FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1::text)";
        let parameters: [crate::database::Parameter<'_>; 4] =
            [&table.quoted(), &table.schema, &table.name, &config.migration.publication];
        let rows = source.rows("its replica identity", sql, &parameters).await?;
        let Some(row) = rows.first() else { continue };
        let (full, needed): (bool, bool) = (source.get(row, 0)?, source.get(row, 1)?);
        if !full {
            continue;
        }
        if needed {
            println!("source: {table} keeps REPLICA IDENTITY FULL: another publication publishes it");
            continue;
        }
        // An index that was named and served for nothing identified as little as the default.
        let identity = if changed.before == "nothing" { "NOTHING" } else { "DEFAULT" };
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '5s'; ALTER TABLE ONLY {} REPLICA IDENTITY {identity}; COMMIT",
            table.quoted()
        );
        source.transaction(&format!("restoring the replica identity of {table}"), &sql).await?;
        println!("source: {table} has REPLICA IDENTITY {identity} again");
    }
    Ok(())
}

async fn remove_topics(config: &Config, kafka: &Kafka, topics: &[String]) -> Result<(), Error> {
    let registry = &RegistryClient::new(&config.registry.url);
    let of_pieces =
        [Lane::Forward, Lane::Reverse].map(|lane| Topics::new(&config.migration.name, lane).piece_subject());
    let subjects = topics.iter().flat_map(|topic| ["key", "value"].map(|suffix| format!("{topic}-{suffix}")));
    let subjects = subjects.chain(of_pieces);
    // A registry takes some milliseconds for each, and thousands of tables have as many subjects twice.
    let subjects = futures_util::stream::iter(subjects.map(Ok::<_, Error>));
    let delete = |subject: String| async move { Ok(registry.delete_subject(&subject).await?) };
    subjects.try_for_each_concurrent(DELETED_TOGETHER, delete).await?;
    kafka.delete(topics).await?;
    topics.iter().for_each(|topic| println!("Kafka: topic {topic} and its schemas removed"));
    Ok(())
}

async fn remove_schema(config: &Config, target: &Database, found: &Found) -> Result<(), Error> {
    for origin in &found.origins {
        let sql = "SELECT pg_catalog.pg_replication_origin_drop($1)";
        match target.execute("dropping the origin", sql, &[origin]).await {
            Ok(_) => println!("target: replication origin {origin} dropped"),
            // Origins belong to the whole server: another database of it is a target of this migration too.
            Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::OBJECT_IN_USE) => {
                println!("target: replication origin {origin} stays: a consumer of another database uses it");
            }
            Err(error) => return Err(error),
        }
    }
    if !found.schema {
        return Ok(());
    }
    if !found.shared {
        target.batch("dropping the schema dflux", "DROP SCHEMA IF EXISTS dflux CASCADE").await?;
        println!("target: schema dflux dropped");
        return Ok(());
    }
    let lane = format!("{}/", config.migration.name);
    for table in
        ["chunk", "incomplete", "offset_hint", "table_state", "table_schema", "table_identity", "divergence", "lane"]
    {
        let sql = format!("DELETE FROM dflux.{table} WHERE starts_with(lane, $1)");
        target.execute("forgetting the migration", &sql, &[&lane]).await?;
    }
    for table in ["schema_step", "source_change"] {
        let sql = format!("DELETE FROM dflux.{table} WHERE migration = $1");
        target.execute("forgetting the migration", &sql, &[&config.migration.name]).await?;
    }
    println!("target: rows of migration {} in schema dflux removed", config.migration.name);
    Ok(())
}
