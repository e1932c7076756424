//! `dflux resync TABLE`: asks for a table to be read again, while the rest keeps flowing. The request is a record in the
//! ledger; producer and consumer do the rest, whenever they run.

use std::time::{Duration, Instant};

use changelog::ledger::{self, ResyncRequested};
use changelog::{Lane as Direction, LedgerRecord, TableName, Topics};
use producer::source::catalog;
use service::registry::RegistryClient;
use service::{Config, Hint};

use crate::error::Exit;
use crate::status::progress::next_generation;
use crate::status::{lane, loaded};
use crate::topics::Kafka;
use crate::{Database, Error, tables};

const LOOKS_EVERY: Duration = Duration::from_millis(500);

/// # Errors
/// A refusal when the table is not part of a running migration; `ResyncSlow` after `wait` without it being live again.
pub async fn run(config: &Config, argument: &str, wait: Option<Duration>) -> Result<Exit, Error> {
    let source = Database::connect("source", &config.source.url).await?;
    let table = published(config, &source, argument).await?;
    let target = Database::connect("target", &config.target.url).await?;
    if lane::read(&target, config).await?.is_none() {
        return Err(Error::NoLane { migration: config.migration.name.clone(), what: "resync" });
    }
    let kafka = Kafka::new(&config.kafka);
    let topic = Topics::new(&config.migration.name, Direction::Forward).ledger();
    if !kafka.cluster().await?.topics.contains_key(&topic) {
        return Err(Error::NoTopic { topic });
    }
    let generation = next_generation(&kafka.ledger(&topic).await?, &table);
    let registry = RegistryClient::new(&config.registry.url);
    let schema = registry.register(&format!("{topic}-value"), ledger::SCHEMA).await?;
    let record = LedgerRecord::ResyncRequested(ResyncRequested { table: table.clone(), generation });
    let mut value = Vec::new();
    record.encode(schema, &mut value);
    kafka.put(&topic, &record.key(), &value).await?;
    println!("requested: {table} is read again as generation {generation}");
    match wait {
        Some(limit) => rejoined(config, &target, &table, generation, limit).await?,
        None => println!("dflux status --watch shows how far it is"),
    }
    Ok(Exit::Done)
}

/// The table under the name that it is published by: a partition's is its partitioned table.
async fn published(config: &Config, source: &Database, argument: &str) -> Result<TableName, Error> {
    let all = tables::read(source).await?;
    let mut table = tables::find(&all, &config.migration, argument)?;
    let known = catalog::all_tables(&source.client)
        .await
        .map_err(|error| Error::Source { hint: error.hint(), source: Box::new(error) })?;
    let selection = catalog::select(&known, &config.migration);
    loop {
        if selection.published.iter().any(|published| published.name == table.name) {
            return Ok(table.name.clone());
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
        let of_table = held.get(table).into_iter().flatten();
        if of_table.clone().any(|held| held.generation >= generation && held.state == "live") {
            println!("done: {table} is live again");
            return Ok(());
        }
        if Instant::now() >= ends {
            return Err(Error::ResyncSlow { table: table.clone(), generation, seconds: limit.as_secs() });
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}
