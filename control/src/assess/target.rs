//! What the target server must offer: version, encoding, rights, extensions, room, and tables that fit if they are there.

use std::collections::{BTreeMap, HashMap};

use changelog::TableName;
use service::Config;

use super::source::{Server, listed};
use crate::finding::{Findings, Severity};
use crate::tables::Table;
use crate::{Database, Error};

/// The lane of this migration as the target knows it: whether it was ever started.
///
/// # Errors
/// `Sql`.
pub async fn lane_slot(target: &Database, config: &Config) -> Result<Option<String>, Error> {
    if !target.has("dflux.lane").await? {
        return Ok(None);
    }
    let lane = format!("{}/forward", config.migration.name);
    let rows = target.rows("its lanes", "SELECT coalesce(slot, '') FROM dflux.lane WHERE lane = $1", &[&lane]).await?;
    rows.first().map(|row| target.get(row, 0)).transpose()
}

/// Two servers side by side. Pure.
pub fn compare(source: &Server, target: &Server, findings: &mut Findings) {
    if target.major() < source.major() {
        findings.blocker(
            "target_version",
            format!("the target is PostgreSQL {}, older than the source ({})", target.major(), source.major()),
            format!("upgrade the target to PostgreSQL {} or later", source.major()),
        );
    }
    if target.encoding != source.encoding && target.encoding != "UTF8" {
        findings.blocker(
            "encoding",
            format!(
                "the target's encoding is {} and the source's {}: some text would not fit",
                target.encoding, source.encoding
            ),
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 on the target, and name it in [target] url",
        );
    } else if target.encoding != source.encoding {
        findings.note("encoding", format!("text is converted from {} to UTF8", source.encoding), "");
    }
    let locale = |server: &Server| format!("{} / {} (provider {})", server.collate, server.ctype, server.provider);
    if (&target.collate, &target.ctype, &target.provider) != (&source.collate, &source.ctype, &source.provider) {
        findings.warning(
            "collation",
            format!("text is ordered by {} on the source and by {} on the target: queries that order or compare text may answer differently", locale(source), locale(target)),
            format!("CREATE DATABASE … LC_COLLATE '{}' LC_CTYPE '{}' TEMPLATE template0 on the target, or accept it", source.collate, source.ctype),
        );
    }
}

/// Rights of our user on the target.
///
/// # Errors
/// `Sql`.
pub async fn privileges(target: &Database, findings: &mut Findings) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.quote_ident(current_user), r.rolsuper,
        pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
        pg_catalog.quote_ident(pg_catalog.current_database()),
        pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_create(text)', 'EXECUTE')
          AND pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_session_setup(text)', 'EXECUTE')
          AND pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_oid(text)', 'EXECUTE'),
        pg_catalog.current_setting('wal_level'), pg_catalog.current_setting('max_connections')::bigint,
        pg_catalog.pg_is_in_recovery()
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = target.row("its user's privileges", sql, &[]).await?;
    let (user, database): (String, String) = (target.get(&row, 0)?, target.get(&row, 3)?);
    if target.get::<bool>(&row, 7)? {
        findings.blocker(
            "target_standby",
            "the target is a standby and takes no writes",
            "name the primary in [target] url",
        );
    }
    if !target.get::<bool>(&row, 2)? {
        findings.blocker(
            "target_privilege_create",
            format!("user {user} may not make a schema in database {database} of the target"),
            format!("GRANT CREATE ON DATABASE {database} TO {user} on the target"),
        );
    }
    if !target.may_replicate().await? {
        findings.warning(
            "target_replication_role",
            format!("user {user} may not set session_replication_role on the target: triggers, rules and foreign keys are not built there before the cutover, because they would fire on what the lane applies"),
            target.replicate_hint().await?,
        );
    }
    if !target.get::<bool>(&row, 4)? {
        findings.warning(
            "target_replication_origin",
            format!("user {user} may not use replication origins on the target: applied transactions are marked by a message instead"),
            format!("GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text), pg_replication_origin_session_setup(text) TO {user} on the target"),
        );
    }
    let level: String = target.get(&row, 5)?;
    if level != "logical" {
        findings.warning(
            "target_wal_level",
            format!("wal_level of the target is {level}: no way back after the cutover, because the reverse lane needs logical"),
            "ALTER SYSTEM SET wal_level = 'logical' on the target, then restart it before the migration",
        );
    }
    Ok(())
}

/// Extensions of the source that the target does not offer. One whose types the selected tables use is a blocker.
///
/// # Errors
/// `Sql`.
pub async fn extensions(
    source: &Database,
    target: &Database,
    selected: &[&Table],
    findings: &mut Findings,
) -> Result<(), Error> {
    let sql = "SELECT e.extname::text, e.extversion, EXISTS (
          SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.refobjid = e.oid
              AND d.objid IN (t.oid, t.typelem, t.typbasetype) AND d.deptype = 'e'
              AND d.refclassid = 'pg_catalog.pg_extension'::regclass
          WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped)
      FROM pg_catalog.pg_extension e WHERE e.extname <> 'plpgsql' ORDER BY 1";
    let oids: Vec<u32> = selected.iter().map(|table| table.oid).collect();
    let installed = source.rows("its extensions", sql, &[&oids]).await?;
    let offered = target
        .rows("its extensions", "SELECT name::text, version FROM pg_catalog.pg_available_extension_versions", &[])
        .await?;
    let mut versions: HashMap<String, Vec<String>> = HashMap::new();
    for row in &offered {
        versions.entry(target.get(row, 0)?).or_default().push(target.get(row, 1)?);
    }
    for row in &installed {
        let (name, version, used): (String, String, bool) =
            (source.get(row, 0)?, source.get(row, 1)?, source.get(row, 2)?);
        match versions.get(&name) {
            None if used => findings.blocker(
                "extension",
                format!("extension {name} {version} is not available on the target, and selected tables use its types"),
                format!("install the package of {name} on the target's server"),
            ),
            None => findings.warning(
                "extension",
                format!(
                    "extension {name} {version} is not available on the target: it and what depends on it are left out"
                ),
                format!("install the package of {name} on the target's server before dflux prepare"),
            ),
            Some(offered) if !offered.contains(&version) => findings.warning(
                "extension",
                format!(
                    "extension {name} is version {version} on the source; the target offers {}",
                    offered.join(", ")
                ),
                format!("check that {name} of the target reads what {version} writes"),
            ),
            Some(_) => {}
        }
    }
    Ok(())
}

/// A column as far as it must be equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// With its modifier, as `format_type` says it.
    pub type_name: String,
    pub generated: bool,
}

/// Columns by table, in order.
///
/// # Errors
/// `Sql`.
pub async fn columns(database: &Database, tables: &[&TableName]) -> Result<BTreeMap<TableName, Vec<Column>>, Error> {
    let sql =
        "SELECT n.nspname::text, c.relname::text, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
        a.attgenerated <> '' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN unnest($1::text[], $2::text[]) AS wanted (s, t) ON wanted.s = n.nspname AND wanted.t = c.relname
      WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v', 'm') ORDER BY 1, 2, a.attnum";
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let mut columns: BTreeMap<TableName, Vec<Column>> = BTreeMap::new();
    for row in database.rows("its columns", sql, &[&schemas, &names]).await? {
        let table = TableName::new(database.get::<String>(&row, 0)?, database.get::<String>(&row, 1)?);
        let column = Column {
            name: database.get(&row, 2)?,
            type_name: database.get(&row, 3)?,
            generated: database.get(&row, 4)?,
        };
        columns.entry(table).or_default().push(column);
    }
    Ok(columns)
}

/// Tables that the target has already must have the source's columns. What they lack beside a running lane may be on its way, and
/// the lane itself refuses what does not fit. Pure.
pub fn shapes(
    source: &BTreeMap<TableName, Vec<Column>>,
    target: &BTreeMap<TableName, Vec<Column>>,
    running: bool,
    findings: &mut Findings,
) {
    let severity = if running { Severity::Warning } else { Severity::Blocker };
    for (table, wanted) in source {
        let Some(held) = target.get(table) else { continue };
        for column in wanted {
            let name = changelog::table::quote_identifier(&column.name);
            match held.iter().find(|held| held.name == column.name) {
                None => findings.add(
                    severity,
                    "target_table",
                    format!("table {table} of the target lacks column {} {}", column.name, column.type_name),
                    format!("ALTER TABLE {} ADD COLUMN {name} {} on the target, or DROP TABLE it and let dflux prepare make it", table.quoted(), column.type_name),
                ),
                Some(held) if held.type_name != column.type_name => findings.add(
                    severity,
                    "target_table",
                    format!("column {} of table {table} is {} on the target and {} on the source", column.name, held.type_name, column.type_name),
                    format!("ALTER TABLE {} ALTER COLUMN {name} TYPE {} on the target", table.quoted(), column.type_name),
                ),
                Some(_) => {}
            }
        }
        for column in held.iter().filter(|held| !held.generated && wanted.iter().all(|w| w.name != held.name)) {
            findings.warning(
                "target_table",
                format!(
                    "table {table} of the target has a column {} that the source lacks: it keeps its default",
                    column.name
                ),
                format!(
                    "ALTER TABLE {} DROP COLUMN {} on the target, or accept it",
                    table.quoted(),
                    changelog::table::quote_identifier(&column.name)
                ),
            );
        }
    }
}

/// Rows in target tables before the lane was born would meet the backfill's.
///
/// # Errors
/// `Sql`.
pub async fn empty(target: &Database, tables: &[&TableName], findings: &mut Findings) -> Result<(), Error> {
    let mut filled = Vec::new();
    for table in tables {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", table.quoted());
        match target.client.query_one(&sql, &[]).await {
            Ok(row) if target.get::<bool>(&row, 0)? => filled.push(*table),
            Ok(_) => {}
            Err(error) => {
                findings.failed("target_table", &target.failed(&format!("{table} cannot be read"), error), None)
            }
        }
    }
    if !filled.is_empty() {
        findings.blocker(
            "target_rows",
            format!("tables of the target hold rows already: {}", listed(filled.iter().map(ToString::to_string))),
            format!(
                "TRUNCATE {} on the target",
                filled.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ")
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_table_that_lacks_a_column_or_has_another_type_is_a_blocker_before_the_lane_runs() {
        let column = |name: &str, kind: &str| Column { name: name.into(), type_name: kind.into(), generated: false };
        let table = TableName::new("public", "t");
        let source = BTreeMap::from([(table.clone(), vec![column("a", "integer"), column("b", "text")])]);
        let check_beside = |held: Vec<Column>, running: bool| {
            let mut findings = Findings::default();
            shapes(&source, &BTreeMap::from([(table.clone(), held)]), running, &mut findings);
            findings.sorted()
        };
        let check = |held: Vec<Column>| check_beside(held, false);
        assert!(check(vec![column("b", "text"), column("a", "integer")]).is_empty());
        assert!(check(vec![column("a", "integer")])[0].text.contains("lacks column b text"));
        assert!(check(vec![column("a", "bigint"), column("b", "text")])[0].text.contains("is bigint on the target"));
        let extra = check(vec![column("a", "integer"), column("b", "text"), column("c", "text")]);
        assert_eq!(crate::finding::blockers(&extra), 0);
        assert_eq!(extra.len(), 1);
        let running = check_beside(vec![column("a", "bigint")], true);
        assert_eq!((crate::finding::blockers(&running), running.len()), (0, 2));
    }

    #[test]
    fn an_older_target_or_an_encoding_that_cannot_hold_everything_is_a_blocker() {
        let server = |version, encoding: &str| Server {
            version_number: version,
            encoding: encoding.into(),
            collate: "C".into(),
            ctype: "C".into(),
            provider: "c".into(),
            idle_slot_timeout: String::new(),
        };
        let check = |source: &Server, target: &Server| {
            let mut findings = Findings::default();
            compare(source, target, &mut findings);
            crate::finding::blockers(findings.list())
        };
        assert_eq!(check(&server(150_001, "UTF8"), &server(180_000, "UTF8")), 0);
        assert_eq!(check(&server(160_001, "UTF8"), &server(150_000, "UTF8")), 1);
        assert_eq!(check(&server(150_001, "UTF8"), &server(150_000, "LATIN1")), 1);
        assert_eq!(check(&server(150_001, "LATIN1"), &server(150_000, "UTF8")), 0);
    }
}
