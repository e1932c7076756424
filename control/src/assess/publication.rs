//! What is published: a publication of our name that is there already, and what a publication does not carry. The producer's
//! own rules judge both, so that nothing passes here that stops it later.

use changelog::TableName;
use changelog::table::quote_identifier;
use producer::source::catalog::{self, TableKind};
use producer::source::publication;
use service::{Config, Hint};

use super::row_security;
use super::source::listed;
use crate::finding::Findings;
use crate::prepare::source::failed;
use crate::tables::{self, Table};
use crate::{Database, Error};

/// # Errors
/// `Sql`, `Source`.
pub async fn existing(source: &Database, config: &Config, all: &[Table], findings: &mut Findings) -> Result<(), Error> {
    let name = &config.migration.publication;
    let quoted = quote_identifier(name);
    let other = "or another name in [migration] publication";
    if publishes_schemas(source, name).await? {
        findings.blocker(
            "publication",
            format!(
                "publication {name} is FOR TABLES IN SCHEMA: writes to a table created later without a key would fail"
            ),
            format!("DROP PUBLICATION {quoted} on the source if nothing else needs it, {other}"),
        );
        return Ok(());
    }
    let published = match publication::published(&source.client, name).await {
        Ok(Some(published)) => published,
        Ok(None) => return Ok(()),
        Err(error @ producer::Error::PublicationAltered { .. }) => {
            findings.blocker("publication", error.to_string(), error.hint().unwrap_or_default());
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    let foreign = foreign(&published, all, config);
    if foreign.is_empty() {
        findings.note("publication", format!("publication {name} exists; the migration uses it"), "");
        return Ok(());
    }
    findings.blocker(
        "publication",
        format!(
            "publication {name} publishes what [migration] tables and exclude do not select: {}",
            listed(foreign.iter().map(ToString::to_string))
        ),
        format!(
            "ALTER PUBLICATION {quoted} DROP TABLE {} on the source, {other}",
            foreign.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ")
        ),
    );
    Ok(())
}

/// The catalog of such publications came with version 15.
async fn publishes_schemas(source: &Database, name: &str) -> Result<bool, Error> {
    if !source.has("pg_catalog.pg_publication_namespace").await? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n
        JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid WHERE p.pubname = $1)";
    let row = source.row("its publications", sql, &[&name]).await?;
    source.get(&row, 0)
}

/// Published tables that the migration does not move. Pure.
fn foreign<'a>(published: &'a [TableName], all: &[Table], config: &Config) -> Vec<&'a TableName> {
    let named = tables::named(all, &config.migration);
    published.iter().filter(|table| !named.iter().any(|named| named.name == **table)).collect()
}

/// What follows from how the tables are published: a TRUNCATE of one partition is not sent where its partitioned table is
/// published as one; and what is published is what is read.
///
/// # Errors
/// `Sql`, `Source`.
pub async fn selected(source: &Database, config: &Config, findings: &mut Findings) -> Result<(), Error> {
    let all = catalog::all_tables(&source.client).await.map_err(failed)?;
    let published = catalog::select(&all, &config.migration).published;
    let names: Vec<&TableName> = published.iter().map(|table| &table.name).collect();
    row_security::reading(source, &names, findings).await?;
    let roots = published.iter().filter(|table| table.kind == TableKind::Partitioned).map(|table| &table.name);
    let roots: Vec<&TableName> = roots.collect();
    if let Some(first) = roots.first() {
        findings.warning(
            "partition_truncate",
            format!(
                "PostgreSQL does not send a TRUNCATE of a single partition, and the target would keep its rows: {}",
                listed(roots.iter().map(ToString::to_string))
            ),
            format!("TRUNCATE the whole table, or DELETE; after a TRUNCATE of a partition: dflux resync {first}"),
        );
    }
    Ok(())
}
