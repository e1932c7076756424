//! The source's sequences: those that the migration keeps in step, and those whose values our user may not read.

use changelog::sequence::Listed;
use producer::source::sequences;
use service::Config;

use super::source::{every, listed};
use crate::finding::Findings;
use crate::prepare::source::failed;
use crate::{Database, Error};

/// Schemas and names of all sequences, for the patterns that exclude some.
///
/// # Errors
/// `Sql`.
pub async fn names(source: &Database) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S'";
    let rows = source.rows("its sequences", sql, &[]).await?;
    rows.iter().map(|row| Ok((source.get(row, 0)?, source.get(row, 1)?))).collect()
}

/// # Errors
/// `Sql`, `Source`.
pub async fn followed(source: &Database, config: &Config, findings: &mut Findings) -> Result<(), Error> {
    let all = sequences::list(&source.client, &config.migration).await.map_err(failed)?;
    if all.is_empty() {
        return Ok(());
    }
    findings.note(
        "sequences",
        format!(
            "{} sequence(s): the lane keeps the target's ahead of them, by at least {} values as a rule",
            all.len(),
            config.consumer.sequence_margin
        ),
        "",
    );
    let unreadable: Vec<&Listed> = all.iter().filter(|sequence| !sequence.readable).collect();
    if !unreadable.is_empty() {
        let row = source.row("its user", "SELECT pg_catalog.quote_ident(current_user)", &[]).await?;
        let user: String = source.get(&row, 0)?;
        findings.blocker(
            "privilege_sequences",
            format!(
                "user {user} may not read the values of {}: after a switch the target would give values again",
                listed(unreadable.iter().map(|sequence| sequence.name().to_string()))
            ),
            format!(
                "GRANT SELECT ON SEQUENCE {} TO {user} on the source (and USAGE on the schema), or add it to [migration] exclude if no column owns it",
                every(unreadable.iter().map(|sequence| sequence.name().quoted()))
            ),
        );
    }
    Ok(())
}
