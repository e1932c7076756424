//! Row security: policies that hide rows from the user that reads or writes, or refuse them. Our sessions switch `row_security`
//! off, so that it is an error and no silent gap; here it is known before. A superuser, a role with BYPASSRLS, and an owner on
//! whom it is not forced are not subject to it.

use changelog::TableName;

use super::source::listed;
use crate::finding::Findings;
use crate::{Database, Error};

/// # Errors
/// `Sql`.
pub async fn reading(source: &Database, published: &[&TableName], findings: &mut Findings) -> Result<(), Error> {
    let active = active(source, published).await?;
    if let Some(first) = active.first() {
        let user = user(source).await?;
        findings.blocker(
            "row_security",
            format!("row security applies to user {user} of the source, and PostgreSQL refuses to copy: {}", all(&active)),
            format!(
                "ALTER ROLE {user} BYPASSRLS on the source; or, for an owner, ALTER TABLE {} NO FORCE ROW LEVEL SECURITY",
                first.quoted()
            ),
        );
    }
    Ok(())
}

/// Tables that the target has already; and those that it gets, where row security would be forced on their owner.
///
/// # Errors
/// `Sql`.
pub async fn writing(
    (source, target): (&Database, &Database),
    tables: &[&TableName],
    findings: &mut Findings,
) -> Result<(), Error> {
    let user = user(target).await?;
    let active = active(target, tables).await?;
    if let Some(first) = active.first() {
        findings.blocker(
            "target_row_security",
            format!("row security applies to user {user} of the target, and PostgreSQL refuses COPY into: {}", all(&active)),
            format!(
                "ALTER ROLE {user} BYPASSRLS on the target; or, for an owner, ALTER TABLE {} NO FORCE ROW LEVEL SECURITY",
                first.quoted()
            ),
        );
    }
    let sql = "SELECT rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let bypasses: bool = target.get(&target.row("its user", sql, &[]).await?, 0)?;
    let forced = named(source, tables, "c.relrowsecurity AND c.relforcerowsecurity").await?;
    if !bypasses && !forced.is_empty() {
        findings.warning(
            "target_row_security",
            format!("row security is forced on the owner of {}: it is not switched on there before the cutover, because it would apply to user {user} of the target", all(&forced)),
            format!("ALTER ROLE {user} BYPASSRLS on the target, or accept it"),
        );
    }
    Ok(())
}

fn all(tables: &[TableName]) -> String {
    listed(tables.iter().map(ToString::to_string))
}

async fn user(database: &Database) -> Result<String, Error> {
    let row = database.row("its user", "SELECT pg_catalog.quote_ident(current_user)", &[]).await?;
    database.get(&row, 0)
}

/// Those to whose rows the policies apply for our user.
async fn active(database: &Database, tables: &[&TableName]) -> Result<Vec<TableName>, Error> {
    named(database, tables, "pg_catalog.row_security_active(c.oid)").await
}

async fn named(database: &Database, tables: &[&TableName], condition: &str) -> Result<Vec<TableName>, Error> {
    let sql = format!(
        "SELECT w.s, w.t FROM unnest($1::text[], $2::text[]) AS w (s, t)
           JOIN pg_catalog.pg_class c ON c.oid = to_regclass(quote_ident(w.s) || '.' || quote_ident(w.t))
         WHERE {condition} ORDER BY 1, 2"
    );
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = database.rows("row security", &sql, &[&schemas, &names]).await?;
    let table = |row| Ok(TableName::new(database.get::<String>(row, 0)?, database.get::<String>(row, 1)?));
    rows.iter().map(table).collect()
}
