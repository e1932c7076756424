//! `dflux resync TABLE`: asks for a table to be built again, while the rest keeps flowing. From the source: the request is a record in
//! the ledger, and the producer's new copy reaches every target. From the topics: it is a row in this target. The services do the
//! rest, whenever they run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::ledger::{self, ResyncRequested};
use changelog::{Lane as Direction, LedgerRecord, TableName, Topics};
use producer::backfill::ledger::Ledger;
use producer::source::catalog;
use service::registry::RegistryClient;
use service::{Config, Hint};

use crate::error::Exit;
use crate::status::{lane, loaded};
use crate::topics::Kafka;
use crate::{Database, Error, tables};

const LOOKS_EVERY: Duration = Duration::from_millis(500);

/// Where the table's rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Source,
    Topics,
}

/// # Errors
/// A refusal when the table is not part of a running migration, or is being built already; `ResyncSlow` after `wait` without it being
/// live again.
pub async fn run(config: &Config, argument: &str, from: From, wait: Option<Duration>) -> Result<Exit, Error> {
    let target = Database::connect("target", &config.target.url).await?;
    // A table that is not in the migration is refused as such, whether there is a lane or not.
    let published = match from {
        From::Source => Some(published(config, argument).await?),
        From::Topics => None,
    };
    if lane::read(&target, config).await?.is_none() {
        return Err(Error::NoLane { migration: config.migration.name.clone(), what: "resync" });
    }
    let kafka = Kafka::new(&config.kafka);
    let topic = Topics::new(&config.migration.name, Direction::Forward).ledger();
    if !kafka.cluster().await?.topics.contains_key(&topic) {
        return Err(Error::NoTopic { topic });
    }
    let records = kafka.ledger(&topic).await?;
    let (table, generation) = match published {
        Some(table) => {
            let generation = Ledger::of(records).next_generation();
            ask_producer(config, &kafka, &topic, (&table.name, table.oid, generation)).await?;
            println!("requested: {} is read again as generation {generation}", table.name);
            (table.name.clone(), generation)
        }
        None => {
            let (table, generation) = copied(&records, argument)?;
            fits(config, &target, (&table, generation), &records).await?;
            ask_consumer(config, &target, (&table, generation)).await?;
            println!("requested: {table} is replayed from the topics, from the copy of generation {generation} on");
            (table, generation)
        }
    };
    match wait {
        Some(limit) => rejoined(config, &target, &table, generation, limit).await?,
        None => println!("dflux status --watch shows how far it is"),
    }
    Ok(Exit::Done)
}

async fn ask_producer(
    config: &Config,
    kafka: &Kafka,
    topic: &str,
    (table, oid, generation): (&TableName, u32, u32),
) -> Result<(), Error> {
    let registry = RegistryClient::new(&config.registry.url);
    let schema = registry.register(&format!("{topic}-value"), ledger::SCHEMA).await?;
    let token = uuid::Uuid::new_v4().simple().to_string();
    let record = LedgerRecord::ResyncRequested(ResyncRequested { table: table.clone(), generation, oid, token });
    let mut value = Vec::new();
    record.encode(schema, &mut value);
    kafka.put(topic, &record.key(), &value).await
}

async fn ask_consumer(config: &Config, target: &Database, (table, generation): (&TableName, u32)) -> Result<(), Error> {
    let lane = changelog::origin::lane_name(&config.migration.name, Direction::Forward);
    let sql = "INSERT INTO dflux.table_state AS held (lane, schema_name, table_name, generation, state)
        VALUES ($1, $2, $3, $4, 'requested') ON CONFLICT (lane, schema_name, table_name)
        DO UPDATE SET generation = excluded.generation, state = excluded.state WHERE held.state = 'live'";
    let generation = i32::try_from(generation).unwrap_or(i32::MAX);
    let parameters: [crate::database::Parameter<'_>; 4] = [&lane, &table.schema, &table.name, &generation];
    match target.execute("asking for a replay", sql, &parameters).await? {
        0 => Err(Error::Resyncing { table: table.clone() }),
        _ => Ok(()),
    }
}

/// A copy from before a change of the table would be loaded into a table that is like it no more.
async fn fits(
    config: &Config,
    target: &Database,
    (table, generation): (&TableName, u32),
    records: &[LedgerRecord],
) -> Result<(), Error> {
    let lane = changelog::origin::lane_name(&config.migration.name, Direction::Forward);
    let sql = "SELECT changed_lsn::text FROM dflux.table_schema
        WHERE (lane, schema_name, table_name) = ($1, $2, $3) AND changed_lsn IS NOT NULL";
    let rows = target.rows("the changes of the table", sql, &[&lane, &table.schema, &table.name]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let changed: changelog::Lsn = target.get::<String>(row, 0)?.parse().unwrap_or_default();
    let copied = records.iter().filter_map(|record| match record {
        LedgerRecord::TableCopied(copied) if copied.table == *table && copied.generation == generation => {
            Some(copied.snapshot_lsn)
        }
        _ => None,
    });
    match copied.max() {
        Some(copied) if copied < changed => Err(Error::CopyOutdated { table: table.clone(), changed }),
        _ => Ok(()),
    }
}

/// The newest whole copy of a table that lies in the topics. Pure.
fn copied(records: &[LedgerRecord], argument: &str) -> Result<(TableName, u32), Error> {
    let copies = || {
        records.iter().filter_map(|record| match record {
            LedgerRecord::TableCopied(copied) => Some((&copied.table, copied.generation)),
            _ => None,
        })
    };
    let full = |table: &TableName| table.to_string() == argument || table.quoted() == argument;
    let mut named: BTreeSet<&TableName> = copies().map(|(table, _)| table).collect();
    let exact = named.iter().any(|table| full(table));
    named.retain(|table| if exact { full(table) } else { table.name == argument });
    let table = match (named.first(), named.len()) {
        (None, _) => return Err(Error::NotCopied { table: argument.to_owned() }),
        (Some(table), 1) => (*table).clone(),
        (Some(_), count) => return Err(Error::AmbiguousTable { name: argument.to_owned(), count }),
    };
    let newest = copies().filter(|(of, _)| **of == table).map(|(_, generation)| generation).max().unwrap_or(0);
    Ok((table, newest))
}

/// The table as it is published: a partition's is its partitioned table.
///
/// # Errors
/// `NoTable`, `NotSelected`, `Source`.
pub async fn published(config: &Config, argument: &str) -> Result<Arc<catalog::Table>, Error> {
    let source = Database::connect("source", &config.source.url).await?;
    let all = tables::read(&source).await?;
    let mut table = tables::find(&all, &config.migration, argument)?;
    let known = catalog::all_tables(&source.client)
        .await
        .map_err(|error| Error::Source { hint: error.hint(), source: Box::new(error) })?;
    let selection = catalog::select(&known, &config.migration);
    loop {
        if let Some(published) = selection.published.iter().find(|published| published.name == table.name) {
            return Ok(published.clone());
        }
        let above = table.parent.and_then(|oid| all.iter().find(|table| table.oid == oid));
        table = above.ok_or_else(|| Error::NotSelected {
            table: table.name.clone(),
            migration: config.migration.name.clone(),
        })?;
    }
}

async fn rejoined(
    config: &Config,
    target: &Database,
    table: &TableName,
    generation: u32,
    limit: Duration,
) -> Result<(), Error> {
    let ends = Instant::now() + limit;
    loop {
        let held = loaded(target, &config.migration.name).await?;
        for held in held.get(table).into_iter().flatten().filter(|held| held.generation >= generation) {
            match (&held.error, held.state.as_str()) {
                (Some(error), _) => {
                    return Err(Error::ResyncFailed { table: table.clone(), error: error.clone() });
                }
                (None, "gone") => return Err(Error::ResyncGone { table: table.clone() }),
                (None, "live") => {
                    println!("done: {table} is live again");
                    return Ok(());
                }
                _ => {}
            }
        }
        if Instant::now() >= ends {
            return Err(Error::ResyncSlow { table: table.clone(), generation, seconds: limit.as_secs() });
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;
    use changelog::ledger::TableCopied;

    use super::*;

    #[test]
    fn a_replay_begins_with_the_newest_whole_copy_of_a_table_that_the_topics_hold() {
        let copied_as = |schema: &str, name: &str, generation| {
            let table = TableName::new(schema, name);
            LedgerRecord::TableCopied(TableCopied { table, generation, chunks: 1, row_count: 0, snapshot_lsn: Lsn(1) })
        };
        let asked = LedgerRecord::ResyncRequested(ResyncRequested {
            table: TableName::new("a", "t"),
            generation: 2,
            oid: 0,
            token: String::new(),
        });
        let records =
            [copied_as("a", "t", 0), copied_as("a", "t", 1), asked, copied_as("b", "t", 0), copied_as("b", "u", 0)];
        assert_eq!(copied(&records, "a.t").unwrap(), (TableName::new("a", "t"), 1));
        assert_eq!(copied(&records, "\"b\".\"t\"").unwrap(), (TableName::new("b", "t"), 0));
        assert_eq!(copied(&records, "u").unwrap(), (TableName::new("b", "u"), 0));
        assert!(matches!(copied(&records, "t"), Err(Error::AmbiguousTable { count: 2, .. })));
        assert!(matches!(copied(&records, "v"), Err(Error::NotCopied { .. })));
    }
}
