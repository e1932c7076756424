//! What `prepare` changes on the source: replica identities and the publication. The producer's own code makes both; here it
//! is written down first and undone on failure.

use changelog::TableName;
use changelog::table::quote_identifier;
use producer::source::{catalog, publication, schema_trigger};
use service::config::Migration;
use service::{Config, Hint};

use crate::{Database, Error};

/// Commands that CREATE TABLE … PARTITION OF counts between the table's columns and its place under its parent; a table that
/// is attached has more, or another transaction. The same in versions 14 to 18.
const COMMANDS_OF_A_BIRTH: u32 = 2;

/// What this run wrote down.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Rows of `dflux.source_change`.
    ids: Vec<i64>,
    /// The publication was there before.
    had_publication: bool,
}

/// The producer's error with its hint.
pub(crate) fn failed(error: producer::error::Error) -> Error {
    let hint = error.hint();
    Error::Source { source: Box::new(error), hint }
}

/// Makes the schema `dflux` on the target and writes down what will be changed on the source, and what was there before: nothing by a
/// target that follows.
///
/// # Errors
/// `Sql`, `Source`.
pub async fn record(config: &Config, (source, target): (&Database, &Database)) -> Result<Recorded, Error> {
    let migration = &config.migration;
    let ddl = format!(
        "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({}); SET LOCAL client_min_messages = warning; {}; COMMIT",
        consumer::schema::DDL_LOCK,
        consumer::schema::DDL
    );
    target.transaction("the schema dflux cannot be made", &ddl).await?;
    if config.target.follows {
        return Ok(Recorded { ids: Vec::new(), had_publication: true });
    }
    let all = catalog::all_tables(&source.client).await.map_err(failed)?;
    let selection = catalog::select(&all, migration);
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)";
    let row = source.row("its publications", sql, &[&migration.publication]).await?;
    let had_publication = source.get(&row, 0)?;
    let mut recorded = Recorded { ids: Vec::new(), had_publication };
    for table in &selection.need_full {
        let change = Change {
            kind: "replica_identity",
            schema: &table.name.schema,
            table: &table.name.name,
            before: table.identity.name(),
        };
        recorded.ids.extend(insert(target, &migration.name, &change).await?);
    }
    if !had_publication {
        let change = Change { kind: "publication", schema: "", table: &migration.publication, before: "" };
        recorded.ids.extend(insert(target, &migration.name, &change).await?);
    }
    // The producer makes the slot; that it is ours is written down here, where somebody can see it.
    let change = Change { kind: "slot", schema: "", table: &migration.slot, before: "" };
    recorded.ids.extend(insert(target, &migration.name, &change).await?);
    Ok(recorded)
}

struct Change<'a> {
    kind: &'static str,
    schema: &'a str,
    table: &'a str,
    before: &'a str,
}

/// The first record of a thing stands: a second run would see what the first one made as what was there before.
async fn insert(target: &Database, migration: &str, change: &Change<'_>) -> Result<Option<i64>, Error> {
    let sql = "INSERT INTO dflux.source_change (migration, kind, schema_name, table_name, before)
        SELECT $1::text, $2::text, $3::text, $4::text, $5::text WHERE NOT EXISTS (SELECT FROM dflux.source_change
          WHERE migration = $1 AND kind = $2 AND schema_name = $3 AND table_name = $4) RETURNING id";
    let parameters: [crate::database::Parameter<'_>; 5] =
        [&migration, &change.kind, &change.schema, &change.table, &change.before];
    let rows = target.rows("writing down what is changed", sql, &parameters).await?;
    rows.first().map(|row| target.get(row, 0)).transpose()
}

/// # Errors
/// `Source` with the producer's words and hint.
pub async fn change(config: &Config, source: &Database) -> Result<publication::Prepared, Error> {
    publication::prepare(&source.client, &config.migration, &config.migration.publication).await.map_err(failed)
}

/// Makes the event trigger, where the user may.
///
/// # Errors
/// `Source`.
pub async fn tell_changes(config: &Config, source: &Database) -> Result<(), Error> {
    let Migration { name, publication, .. } = &config.migration;
    let lane = changelog::origin::lane_name(name, changelog::Lane::Forward);
    let before = schema_trigger::installed(&source.client, name).await.map_err(failed)?;
    let made = schema_trigger::install(&source.client, name, &lane, publication).await.map_err(failed)?;
    match (before, made) {
        (true, _) => {}
        (false, true) => {
            println!(
                "source: event trigger \"{}\" made: changes of tables are told as they happen",
                schema_trigger::called(name)
            )
        }
        (false, false) => println!(
            "source: only a superuser may make an event trigger: a change of a table is known by the rows that follow it"
        ),
    }
    Ok(())
}

pub fn say(config: &Config, changed: &publication::Prepared) {
    for identity in &changed.identities {
        println!("source: {} has REPLICA IDENTITY FULL now (was {})", identity.table, identity.before.name());
    }
    let (name, tables) = (&config.migration.publication, changed.selection.published.len());
    if changed.publication_created {
        println!("source: publication {name} made, {tables} table(s)");
    } else if !changed.added.is_empty() {
        println!("source: {} table(s) added to publication {name}", changed.added.len());
    }
    for (table, reason) in &changed.selection.left_out {
        println!("source: {table} is left out: {reason}");
    }
}

/// Names partitions that may hold rows which they had before they were attached: the stream has none of those. One that was
/// made in its place has had none; that its catalog rows were written by one statement shows it (their xmin and their cmin).
///
/// # Errors
/// `Sql`.
pub async fn say_filled(source: &Database, joined: &[TableName]) -> Result<(), Error> {
    for partition in joined {
        let sql = format!(
            "SELECT r.root::text FROM pg_catalog.pg_inherits i
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.inhrelid AND a.attnum = -6,
              LATERAL (SELECT pg_catalog.pg_partition_root(i.inhrelid) AS root) r
            WHERE i.inhrelid = to_regclass($1::text)
              AND NOT (i.xmin = a.xmin AND i.cmin::text::bigint - a.cmin::text::bigint = {COMMANDS_OF_A_BIRTH})
              AND EXISTS (SELECT FROM {})",
            partition.quoted()
        );
        let rows = source.rows("how a partition came to its table", &sql, &[&partition.quoted()]).await?;
        if let Some(row) = rows.first() {
            let root: String = source.get(row, 0)?;
            println!(
                "source: {partition} was attached to {root}: rows that it had before are not on the target\nhint: dflux resync {root}"
            );
        }
    }
    Ok(())
}

/// Takes back what this run changed, and forgets it.
///
/// # Errors
/// `Sql`; what is left stands in `dflux.source_change`, for `dflux cleanup`.
pub async fn undo(
    config: &Config,
    (source, target): (&Database, &Database),
    recorded: &Recorded,
    made_schema: bool,
) -> Result<(), Error> {
    if !recorded.had_publication {
        let sql = format!("DROP PUBLICATION IF EXISTS {}", quote_identifier(&config.migration.publication));
        source.batch("dropping the publication", &sql).await?;
    }
    crate::cleanup::restore_identities(config, (source, target), Some(&recorded.ids)).await?;
    let sql = "DELETE FROM dflux.source_change WHERE id = ANY ($1)";
    target.execute("forgetting what was changed", sql, &[&recorded.ids]).await?;
    if made_schema {
        target.batch("dropping the schema dflux", "DROP SCHEMA IF EXISTS dflux CASCADE").await?;
    }
    Ok(())
}
