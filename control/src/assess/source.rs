//! What the source server must offer. Each query is one check or a few that share a row; none changes anything.

use service::Config;

use crate::finding::Findings;
use crate::tables::{self, Table};
use crate::{Database, Error};

/// The versions whose WAL and catalogs this dflux knows.
pub const VERSIONS: std::ops::RangeInclusive<i32> = 14..=18;
/// The stream, and a temporary slot for tables without a key and for tables that are added later.
const SLOTS_NEEDED: i64 = 2;
const SENDERS_NEEDED: i64 = 2;
/// A transaction older than this delays the slot for everybody who waits for it.
const LONG_TRANSACTION_SECONDS: f64 = 60.0;
const LISTED_MAX: usize = 5;

/// What the source says of itself, as far as other checks need it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    pub version_number: i32,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    pub provider: String,
    pub idle_slot_timeout: String,
}

impl Server {
    pub fn major(&self) -> i32 {
        self.version_number / 10_000
    }
}

const LOCALE: &str =
    "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_encoding_to_char(d.encoding)::text,
    d.datcollate::text, d.datctype::text, coalesce(pg_catalog.to_jsonb(d)->>'datlocprovider', 'c'),
    coalesce(pg_catalog.to_jsonb(d)->>'datcollversion', ''),
    coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), ''),
    pg_catalog.current_setting('server_version')
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// Version, encoding and collation of either database; a collation whose library has changed is a warning.
///
/// # Errors
/// `Sql`.
pub async fn server(database: &Database, findings: &mut Findings) -> Result<Server, Error> {
    let row = database.row("its version and encoding", LOCALE, &[]).await?;
    let get = |column| database.get::<String>(&row, column);
    let server = Server {
        version_number: database.get(&row, 0)?,
        encoding: get(1)?,
        collate: get(2)?,
        ctype: get(3)?,
        provider: get(4)?,
        idle_slot_timeout: get(6)?,
    };
    let (role, version, recorded) = (database.role, get(7)?, get(5)?);
    if !VERSIONS.contains(&server.major()) {
        let (least, most) = (VERSIONS.start(), VERSIONS.end());
        findings.blocker(
            "version",
            format!("the {role} is PostgreSQL {version}; dflux knows {least} to {most}"),
            format!("upgrade the {role} to PostgreSQL {least} to {most}"),
        );
    }
    if server.major() >= 15 && !recorded.is_empty() {
        let sql = "SELECT coalesce(pg_catalog.pg_database_collation_actual_version(oid), ''), datname::text
            FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";
        let row = database.row("its collation's version", sql, &[]).await?;
        let (actual, name): (String, String) = (database.get(&row, 0)?, database.get(&row, 1)?);
        if actual != recorded {
            findings.warning(
                "collation_version",
                format!("the {role}'s default collation was version {recorded} when the database was made and is {actual} now: its text indexes may be out of order"),
                format!("REINDEX DATABASE {0}; ALTER DATABASE {0} REFRESH COLLATION VERSION on the {role}", changelog::table::quote_identifier(&name)),
            );
        }
    }
    Ok(server)
}

/// wal_level, slots, senders, limits on retained WAL, time-outs, and the rights of our user.
///
/// # Errors
/// `Sql`.
pub async fn replication(source: &Database, config: &Config, findings: &mut Findings) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.current_setting('wal_level'), pg_catalog.current_setting('max_replication_slots')::bigint,
        (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name <> $1),
        pg_catalog.current_setting('max_wal_senders')::bigint,
        (SELECT count(*) FROM pg_catalog.pg_stat_replication r
          WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_name = $1)),
        (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
        (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
        pg_catalog.pg_is_in_recovery()";
    let row = source.row("its replication settings", sql, &[&config.migration.slot]).await?;
    let number = |column| source.get::<i64>(&row, column);
    let level: String = source.get(&row, 0)?;
    if level != "logical" {
        findings.blocker(
            "wal_level",
            format!("wal_level of the source is {level}, and must be logical"),
            "ALTER SYSTEM SET wal_level = 'logical' on the source, then restart it",
        );
    }
    if source.get::<bool>(&row, 7)? {
        findings.blocker(
            "standby",
            "the source is a standby: neither a publication nor a replica identity can be made there",
            "name the primary in [source] url",
        );
    }
    let (slots, used) = (number(1)?, number(2)?);
    if slots - used < SLOTS_NEEDED {
        let free = (slots - used).max(0);
        findings.blocker(
            "replication_slots",
            format!("{used} of {slots} replication slots of the source are in use; {SLOTS_NEEDED} are needed, {free} are free"),
            format!("ALTER SYSTEM SET max_replication_slots = {} on the source, then restart it", used + SLOTS_NEEDED),
        );
    }
    let (senders, sending) = (number(3)?, number(4)?);
    if senders - sending < SENDERS_NEEDED {
        findings.blocker(
            "wal_senders",
            format!("{sending} of {senders} WAL senders of the source are in use; {SENDERS_NEEDED} are needed"),
            format!("ALTER SYSTEM SET max_wal_senders = {} on the source, then restart it", sending + SENDERS_NEEDED),
        );
    }
    let keep_megabytes = number(5)?;
    if keep_megabytes >= 0 {
        findings.warning(
            "max_slot_wal_keep_size",
            format!("the source drops a slot that is more than {keep_megabytes} MB of WAL behind: an outage of Kafka longer than that ends the migration"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1, or the plan's figure below; SELECT pg_reload_conf()",
        );
    }
    let timeout = number(6)?;
    if (1..10_000).contains(&timeout) {
        findings.warning(
            "wal_sender_timeout",
            format!("wal_sender_timeout of the source is {timeout} ms: a short pause of the network ends the stream"),
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf()",
        );
    }
    Ok(())
}

/// PostgreSQL 18 drops slots that nobody reads.
pub fn idle_timeout(server: &Server, findings: &mut Findings) {
    if !matches!(server.idle_slot_timeout.as_str(), "" | "0") {
        findings.warning(
            "idle_replication_slot_timeout",
            format!(
                "the source drops a slot that was not read for {}: a producer that is down longer ends the migration",
                server.idle_slot_timeout
            ),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()",
        );
    }
}

/// # Errors
/// `Sql`.
pub async fn privileges(source: &Database, selected: &[&Table], findings: &mut Findings) -> Result<(), Error> {
    // Managed services give the right to replicate by membership in a role of their own.
    let sql = "SELECT pg_catalog.quote_ident(current_user), r.rolsuper, r.rolreplication
          OR EXISTS (SELECT FROM pg_catalog.pg_roles m WHERE m.rolname IN ('rds_replication', 'cloudsqlreplica')
            AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')),
        pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
        pg_catalog.quote_ident(pg_catalog.current_database())
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = source.row("its user's privileges", sql, &[]).await?;
    let (user, superuser): (String, bool) = (source.get(&row, 0)?, source.get(&row, 1)?);
    let (replicates, creates): (bool, bool) = (source.get(&row, 2)?, source.get(&row, 3)?);
    let database: String = source.get(&row, 4)?;
    if !superuser {
        findings.note(
            "event_trigger",
            format!("{user} is no superuser and may make no event trigger: a change of a table is known by the rows that follow it, and a table that is renamed or dropped is not known"),
            "nothing; or a superuser's [source] url, for dflux prepare and the producer alike",
        );
    }
    if !superuser && !replicates {
        findings.blocker(
            "privilege_replication",
            format!("user {user} of the source may not replicate"),
            format!("ALTER ROLE {user} REPLICATION on the source"),
        );
    }
    if !superuser && !creates {
        findings.blocker(
            "privilege_create",
            format!("user {user} may not make a publication in database {database} of the source"),
            format!("GRANT CREATE ON DATABASE {database} TO {user} on the source"),
        );
    }
    let unreadable: Vec<&&Table> = selected.iter().filter(|table| !table.readable).collect();
    if !unreadable.is_empty() {
        findings.blocker(
            "privilege_select",
            format!("user {user} may not read {}", listed(unreadable.iter().map(|t| t.name.to_string()))),
            format!(
                "GRANT USAGE ON SCHEMA … TO {user}; GRANT SELECT ON {} TO {user} on the source",
                every(unreadable.iter().map(|t| t.name.quoted()))
            ),
        );
    }
    let foreign: Vec<&&Table> = selected.iter().filter(|table| !table.owned).collect();
    if !superuser && !foreign.is_empty() {
        findings.blocker(
            "privilege_owner",
            format!(
                "user {user} does not own {}: only an owner may publish a table or set its replica identity",
                listed(foreign.iter().map(|t| t.name.to_string()))
            ),
            format!(
                "GRANT the owning role TO {user}, or ALTER TABLE {} OWNER TO {user} on the source",
                foreign[0].name.quoted()
            ),
        );
    }
    Ok(())
}

/// What an open transaction, a prepared one, and large objects mean.
///
/// # Errors
/// `Sql`.
pub async fn activity(source: &Database, findings: &mut Findings) -> Result<(), Error> {
    let sql =
        "SELECT count(*), coalesce(max(extract(epoch FROM pg_catalog.clock_timestamp() - xact_start)), 0)::float8,
        coalesce((pg_catalog.array_agg(pid ORDER BY xact_start))[1], 0),
        (SELECT count(*) FROM pg_catalog.pg_prepared_xacts),
        coalesce((SELECT pg_catalog.min(gid) FROM pg_catalog.pg_prepared_xacts), '')
      FROM pg_catalog.pg_stat_activity
      WHERE xact_start IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'
        AND pg_catalog.clock_timestamp() - xact_start > pg_catalog.make_interval(secs => $1)";
    let row = source.row("its open transactions", sql, &[&LONG_TRANSACTION_SECONDS]).await?;
    let (long, oldest, pid): (i64, f64, i32) = (source.get(&row, 0)?, source.get(&row, 1)?, source.get(&row, 2)?);
    if long > 0 {
        findings.warning(
            "long_transactions",
            format!("{long} transaction(s) are open for more than {LONG_TRANSACTION_SECONDS} s, the oldest for {oldest:.0} s (process {pid}): the slot can be made only when they have ended"),
            format!("let it end, or SELECT pg_terminate_backend({pid}) on the source"),
        );
    }
    let (prepared, gid): (i64, String) = (source.get(&row, 3)?, source.get(&row, 4)?);
    if prepared > 0 {
        findings.blocker(
            "prepared_transactions",
            format!(
                "{prepared} prepared transaction(s) are open on the source: the slot cannot be made while they are"
            ),
            format!(
                "COMMIT PREPARED {0} or ROLLBACK PREPARED {0} on the source",
                changelog::table::quote_literal(&gid)
            ),
        );
    }
    Ok(())
}

/// Large objects, by OID: nothing else names them.
///
/// # Errors
/// `Sql`.
pub async fn large_objects(source: &Database, findings: &mut Findings) -> Result<(), Error> {
    let sql = "SELECT oid FROM pg_catalog.pg_largeobject_metadata ORDER BY oid";
    let rows = source.rows("its large objects", sql, &[]).await?;
    let oids = rows.iter().map(|row| source.get::<u32>(row, 0)).collect::<Result<Vec<u32>, Error>>()?;
    let Some(first) = oids.first() else { return Ok(()) };
    findings.warning(
        "large_objects",
        format!(
            "{} large object(s) are on the source: logical decoding does not carry them, they are not migrated: {}",
            oids.len(),
            listed(oids.iter().map(u32::to_string))
        ),
        format!(
            "move them into bytea columns before: UPDATE … SET content = lo_get(reference); or copy them while writes are stopped, under their OIDs: on the source SELECT encode(lo_get({first}), 'hex'), on the target SELECT lo_from_bytea({first}, decode('…', 'hex'))"
        ),
    );
    Ok(())
}

/// A slot of our name that is there already. `ours`: the target knows a lane of this slot, or follows.
///
/// # Errors
/// `Sql`.
pub async fn slot(source: &Database, config: &Config, ours: bool, findings: &mut Findings) -> Result<(), Error> {
    let slot = &config.migration.slot;
    let sql = "SELECT coalesce(plugin::text, ''), active, coalesce(active_pid, 0), coalesce(database::text, ''),
        pg_catalog.current_database()::text, coalesce(wal_status, '') FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
    if let Some(row) = source.rows("its replication slots", sql, &[slot]).await?.first() {
        let (plugin, active, pid): (String, bool, i32) =
            (source.get(row, 0)?, source.get(row, 1)?, source.get(row, 2)?);
        let (held, here, status): (String, String, String) =
            (source.get(row, 3)?, source.get(row, 4)?, source.get(row, 5)?);
        if plugin != "pgoutput" || held != here {
            findings.blocker(
                "slot",
                format!("slot {slot} exists and is another's: plugin `{plugin}`, database `{held}`"),
                "choose another name in [migration] slot",
            );
        } else if status == "lost" {
            findings.blocker(
                "slot",
                format!("slot {slot} is lost: the source has removed WAL that it needed"),
                "dflux cleanup --yes, raise max_slot_wal_keep_size, then begin anew",
            );
        } else if active && !ours {
            findings.blocker("slot", format!("slot {slot} is in use by process {pid} of the source, and the target knows no migration that it belongs to"), "choose another name in [migration] slot; for a further target of the migration that uses it, set follows = true in [target]");
        } else {
            let who = if active { format!(" and in use by process {pid}") } else { String::new() };
            findings.note("slot", format!("slot {slot} exists{who}: the migration goes on from it"), "");
        }
    }
    Ok(())
}

/// What the catalog says of each table that is named: identities, kinds that cannot be moved, columns that need words. Pure.
pub fn kinds(all: &[Table], config: &Config, findings: &mut Findings) {
    let named = tables::named(all, &config.migration);
    let names = |test: &dyn Fn(&Table) -> bool| -> Vec<&Table> { named.iter().copied().filter(|t| test(t)).collect() };
    let show = |tables: &[&Table]| listed(tables.iter().map(|t| t.name.to_string()));
    let unlogged = names(&|t| t.movable() && t.unlogged);
    if !unlogged.is_empty() {
        findings.blocker(
            "unlogged_tables",
            format!("unlogged, so their changes are not in the WAL: {}", show(&unlogged)),
            format!(
                "ALTER TABLE {} SET LOGGED on the source, or add it to [migration] exclude",
                unlogged[0].name.quoted()
            ),
        );
    }
    let foreign = names(&|t| t.kind == 'f');
    if !foreign.is_empty() {
        findings.warning(
            "foreign_tables",
            format!("foreign tables hold no rows of this database and are not migrated: {}", show(&foreign)),
            "make them on the target by hand, or add them to [migration] exclude",
        );
    }
    let unpublishable = names(&|t| t.movable() && !t.unlogged && t.unpublishable());
    if !unpublishable.is_empty() {
        findings.blocker(
            "virtual_columns",
            format!(
                "published with REPLICA IDENTITY FULL, which they have or need, their virtual generated columns would make PostgreSQL refuse UPDATE and DELETE: {}",
                show(&unpublishable)
            ),
            format!(
                "ALTER TABLE {0} ADD PRIMARY KEY (…), or ALTER TABLE {0} REPLICA IDENTITY DEFAULT if it has one; or make the column STORED; or add it to [migration] exclude",
                unpublishable[0].name.quoted()
            ),
        );
    }
    let identity = names(&|t| t.movable() && !t.unlogged && t.lacks_identity() && !t.unpublishable());
    if !identity.is_empty() {
        findings.note(
            "replica_identity",
            format!("no primary key or replica identity: dflux prepare sets REPLICA IDENTITY FULL, dflux cleanup restores it: {}", show(&identity)),
            format!("nothing; or, for less WAL, add a primary key: ALTER TABLE {} ADD PRIMARY KEY (…)", identity[0].name.quoted()),
        );
    }
    let views = names(&|t| t.kind == 'm');
    if !views.is_empty() {
        findings.note(
            "materialized_views",
            format!(
                "materialized views are made on the target and filled by dflux prepare after the catch-up: {}",
                show(&views)
            ),
            "REFRESH MATERIALIZED VIEW on the target after the cutover",
        );
    }
    let generated = names(&|t| t.movable() && t.generated_columns > 0);
    if !generated.is_empty() {
        findings.note(
            "generated_columns",
            format!("the target computes the generated columns of {}", show(&generated)),
            "",
        );
    }
    let references = names(&|t| t.movable() && t.oid_columns > 0);
    if !references.is_empty() {
        findings.warning(
            "oid_columns",
            format!(
                "columns of type oid or lo may refer to large objects, which are not migrated: {}",
                show(&references)
            ),
            "see large_objects; ignore it where these columns refer to something else",
        );
    }
}

/// Patterns that name nothing, or stand there twice. A sequence is excluded by its name too. Pure.
pub fn patterns(all: &[Table], sequences: &[(String, String)], config: &Config, findings: &mut Findings) {
    let migration = &config.migration;
    let mut seen = std::collections::HashSet::new();
    for pattern in &migration.tables {
        if !seen.insert(pattern) {
            findings.warning("pattern", format!("[migration] tables names `{pattern}` twice"), "remove one of them");
            continue;
        }
        let alone =
            service::config::Migration { tables: vec![pattern.clone()], exclude: Vec::new(), ..migration.clone() };
        if tables::named(all, &alone).is_empty() {
            let what = if pattern.contains('*') {
                format!("the pattern `{pattern}` selects no table")
            } else {
                format!("table {pattern} is not in the source database")
            };
            findings.blocker(
                "pattern",
                what,
                "correct [migration] tables (`schema.table`, case matters), or remove it",
            );
        }
    }
    for pattern in &migration.exclude {
        let alone =
            service::config::Migration { tables: vec![pattern.clone()], exclude: Vec::new(), ..migration.clone() };
        let sequence = sequences.iter().any(|(schema, name)| alone.selects(schema, name));
        if tables::named(all, &alone).is_empty() && !sequence {
            findings.warning(
                "pattern",
                format!("[migration] exclude: `{pattern}` excludes nothing"),
                "correct it, or remove it",
            );
        }
    }
    if tables::selected(all, migration).is_empty() && findings.list().iter().all(|f| f.check != "pattern") {
        findings.blocker(
            "pattern",
            "everything that [migration] tables selects is excluded",
            "correct [migration] exclude",
        );
    }
}

/// A few of them, and how many more.
pub fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(LISTED_MAX);
    let shown = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

pub fn every(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
