//! The source's event trigger: a statement that changes a published table says so in its own transaction.
//!
//! ```text
//!  ALTER TABLE … ─> ddl_command_end ─> dflux."<migration>"() ─> pg_logical_emit_message ─> WAL ─> [`told`]
//!        └────────> table_rewrite ──────────┴ dflux.source_table: what each published table was like
//! ```
//! The message lies in the WAL between the changes before and behind the statement, with the tables described as they are
//! there; a session of ours would see the catalog of some later time. It needs a superuser to be made. Without it, or
//! where it fails, a change is known by the rows that follow.
//!
//! It never makes a statement of the application fail, nor wait for more than a moment: what goes wrong in it is logged on the
//! source, and that is all. Nor does it anything to who reads the source beside us: its table is unlogged, so that no publication
//! FOR ALL TABLES has it, and everybody may read it, so that any owner's pg_dump passes. A server that has crashed finds it empty,
//! and fills it at the next change, which is then known by its rows. What is secret is an option of a user mapping, which the
//! catalog keeps and shows to its user alone.

use changelog::table::{quote_identifier, quote_literal};
use serde::Deserialize;
use service::session::PINNED_SETTINGS;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{Table, USER_TABLES};
use super::description::{self, Answers, described};
use super::rows;
use crate::assemble::SCHEMA_PREFIX;
use crate::error::Error;

const DOING: &str = "make the event trigger";

/// Statements by which a table can be made, changed, renamed or dropped. ALTER PUBLICATION: what is published changes.
const TAGS: [&str; 12] = [
    "CREATE TABLE",
    "ALTER TABLE",
    "DROP TABLE",
    "ALTER SCHEMA",
    "ALTER TYPE",
    "DROP SCHEMA",
    "DROP OWNED",
    "DROP EXTENSION",
    "DROP TYPE",
    "DROP DOMAIN",
    "CREATE SCHEMA",
    "ALTER PUBLICATION",
];

/// What begins the names of our event triggers: of every migration's.
pub const NAME_PREFIX: &str = "dflux ";

/// What the migration's is called.
pub fn called(migration: &str) -> String {
    format!("{NAME_PREFIX}{migration}")
}

/// The same of the one that hears of values that are computed anew for the type of a column.
fn called_rewrite(migration: &str) -> String {
    format!("{NAME_PREFIX}rewrite {migration}")
}

/// Settings that decide how a value is printed, or whose a name is.
fn settings(set: &str, end: &str) -> String {
    let printing = |name: &str| !name.ends_with("timeout") && name != "client_encoding" && name != "row_security";
    let settings = PINNED_SETTINGS.iter().filter(|(name, _)| printing(name));
    settings.map(|(name, value)| format!(" {set} {name} = {}{end}", quote_literal(value))).collect()
}

/// One batch; idempotent.
fn install_sql(migration: &str, lane: &str, publication: &str) -> String {
    let name = quote_literal(migration);
    let function = format!("dflux.{}", quote_identifier(migration));
    let publication = quote_literal(publication);
    let tags: Vec<String> = TAGS.iter().map(|tag| quote_literal(tag)).collect();
    let published = format!(
        "SELECT l.prrelid AS relid FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel l ON l.prpubid = p.oid \
         WHERE p.pubname = {publication}"
    );
    let description = description::json("subject.relid");
    // The event trigger and the foreign server have one name.
    let called = called(migration);
    let secret = secret_sql("pg_catalog.pg_user_mapping", "m.umserver = s.oid", migration);
    let sync = format!(
        "DELETE FROM dflux.source_table r WHERE r.migration = {name} AND r.relid NOT IN ({published});
        INSERT INTO dflux.source_table (migration, relid, description) SELECT {name}, subject.relid, {description} \
            FROM ({published}) AS subject ON CONFLICT DO NOTHING;"
    );
    format!(
        "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '5s';{local}
CREATE SCHEMA IF NOT EXISTS dflux;
CREATE UNLOGGED TABLE IF NOT EXISTS dflux.source_table (migration text, relid oid, description json NOT NULL,
    rewritten boolean NOT NULL DEFAULT false, PRIMARY KEY (migration, relid));
DO $dflux$ BEGIN
    -- What another role owns could do as a superuser what that role likes.
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'dflux' AND nspowner <> current_user::pg_catalog.regrole)
        OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = 'dflux.source_table'::pg_catalog.regclass
            AND (relowner <> current_user::pg_catalog.regrole OR relhastriggers OR relhasrules)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the schema dflux or its table source_table is not of ' || current_user;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_data_wrapper WHERE fdwname = 'dflux') THEN
        CREATE FOREIGN DATA WRAPPER dflux;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server WHERE srvname = {called_literal}) THEN
        CREATE SERVER {quoted} FOREIGN DATA WRAPPER dflux;
    END IF;
    -- Made by an earlier version.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'dflux.source_table'::pg_catalog.regclass AND attname = 'rewritten') THEN
        ALTER TABLE dflux.source_table ADD COLUMN rewritten boolean NOT NULL DEFAULT false;
    END IF;
    IF {secret} IS NULL THEN
        EXECUTE pg_catalog.format('CREATE USER MAPPING FOR CURRENT_USER SERVER %I OPTIONS (secret %L)', {called_literal}, pg_catalog.gen_random_uuid());
    END IF;
END $dflux$;
GRANT USAGE ON SCHEMA dflux TO PUBLIC;
GRANT SELECT ON dflux.source_table TO PUBLIC;
{sync}
CREATE OR REPLACE FUNCTION {function}() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER{printing} AS $dflux$
DECLARE
    listed pg_catalog.oid[]; made pg_catalog.oid[]; told pg_catalog.json; leaf pg_catalog.oid; filled boolean; context text;
BEGIN
    IF TG_EVENT = 'table_rewrite' THEN
        -- 4: a column's values; the others are a default, and how rows are stored.
        IF pg_catalog.pg_event_trigger_table_rewrite_reason() & 4 = 0 THEN RETURN; END IF;
        listed := ARRAY(SELECT pg_catalog.pg_event_trigger_table_rewrite_oid() UNION SELECT a.relid
            FROM pg_catalog.pg_partition_ancestors(pg_catalog.pg_event_trigger_table_rewrite_oid()) a (relid));
        BEGIN
            IF pg_catalog.current_setting('transaction_isolation') = 'serializable' THEN
                RAISE EXCEPTION 'the transaction is serializable';
            END IF;
            -- Told at the end of the statement, with what else it does.
            UPDATE dflux.source_table r SET rewritten = true WHERE r.migration = {name} AND r.relid = ANY (listed);
            IF NOT FOUND AND NOT EXISTS (SELECT FROM dflux.source_table r WHERE r.migration = {name}) THEN
                RAISE EXCEPTION 'the server has crashed';
            END IF;
        EXCEPTION WHEN OTHERS THEN
            SELECT pg_catalog.json_agg(pg_catalog.json_build_object('oid', x.relid, 'before', x.now, 'after', x.now, 'rewritten', true)) INTO told
                FROM (SELECT subject.relid, {description} AS now FROM ({published}) AS subject WHERE subject.relid = ANY (listed)) x;
            IF told IS NOT NULL THEN
                PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}', pg_catalog.convert_to(pg_catalog.json_build_object('lane', {lane},
                    'secret', {secret}, 'statement', '', 'tables', told)::pg_catalog.text, 'UTF8'));
                PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}.end', '');
            END IF;
        END;
        RETURN;
    END IF;
    -- Our table would make serializable transactions of the application conflict that have nothing to do with each other.
    IF pg_catalog.current_setting('transaction_isolation') = 'serializable' THEN
        RAISE EXCEPTION 'the transaction is serializable';
    END IF;
    IF NOT EXISTS (SELECT FROM dflux.source_table r WHERE r.migration = {name}) THEN
        {sync}
    END IF;
    GET DIAGNOSTICS context = PG_CONTEXT;
    SELECT coalesce(pg_catalog.array_agg(d.objid), '{{}}'),
        coalesce(pg_catalog.array_agg(d.objid) FILTER (WHERE d.command_tag = 'CREATE TABLE'), '{{}}')
        INTO listed, made FROM pg_catalog.pg_event_trigger_ddl_commands() d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND NOT d.in_extension;
    -- A table that is attached while it is empty is as one that is made in its place.
    IF pg_catalog.current_query() ILIKE '%attach%' THEN
        FOR leaf IN SELECT t.relid FROM pg_catalog.unnest(listed) l (oid), pg_catalog.pg_partition_tree(l.oid) t
            JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE t.isleaf AND t.level > 0 AND c.relkind = 'r'
            -- What is attached now is locked as nothing else below it is.
            AND EXISTS (SELECT FROM pg_catalog.pg_locks k WHERE k.locktype = 'relation' AND k.pid = pg_catalog.pg_backend_pid()
                AND k.relation = t.relid AND k.mode = 'AccessExclusiveLock') LOOP
            EXECUTE 'SELECT EXISTS (SELECT FROM ' || leaf::pg_catalog.regclass || ')' INTO filled;
            IF NOT filled THEN made := made || leaf; END IF;
        END LOOP;
    END IF;
    WITH RECURSIVE below (relid) AS (
        SELECT pg_catalog.unnest(listed) UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.relid
    ), known AS (
        SELECT r.relid, r.description, r.rewritten FROM dflux.source_table r WHERE r.migration = {name}
    ), subject AS (
        SELECT k.relid, k.description AS before, c.oid IS NOT NULL AS there, k.rewritten FROM known k
            LEFT JOIN pg_catalog.pg_class c ON c.oid = k.relid LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            -- Of thousands of tables only those are looked at that the statement can concern.
            WHERE k.rewritten OR k.relid IN (SELECT b.relid FROM below b) OR (TG_TAG LIKE 'DROP%' AND c.oid IS NULL)
                OR (TG_TAG = 'ALTER SCHEMA' AND n.nspname IS DISTINCT FROM k.description #>> '{{tables,0,1}}')
        UNION ALL
        SELECT c.oid, NULL, true, false FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = ANY (made) AND c.relispartition AND c.relkind IN ('r', 'p') AND {USER_TABLES}
                AND pg_catalog.pg_partition_root(c.oid) IN (SELECT k.relid FROM known k) AND c.oid NOT IN (SELECT k.relid FROM known k)
    ), change AS (
        SELECT subject.relid, subject.rewritten, subject.before, CASE WHEN subject.there THEN {description} END AS after FROM subject
    )
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object('oid', x.relid, 'before', x.before, 'after', x.after,
            'rewritten', x.rewritten)) INTO told
        FROM change x WHERE x.rewritten OR x.before::pg_catalog.text IS DISTINCT FROM x.after::pg_catalog.text;
    IF told IS NOT NULL THEN
        -- A message's bytes are sent as they are, whatever the server's encoding is.
        PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}', pg_catalog.convert_to(pg_catalog.json_build_object('lane', {lane},
            'secret', {secret}, 'statement', CASE WHEN pg_catalog.strpos(context, E'\\n') = 0
                AND pg_catalog.octet_length(pg_catalog.current_query()) <= 16384 THEN pg_catalog.current_query() ELSE '' END,
            'tables', told)::pg_catalog.text, 'UTF8'));
        -- Decoding gives a message the end of its WAL record as its place, which is the beginning of the next: a row there, of the
        -- transaction around this block, might come before it.
        PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}.end', '');
        DELETE FROM dflux.source_table r USING pg_catalog.json_array_elements(told) t
            WHERE r.migration = {name} AND r.relid = (t ->> 'oid')::pg_catalog.oid AND t ->> 'after' IS NULL;
        UPDATE dflux.source_table r SET description = t -> 'after', rewritten = false FROM pg_catalog.json_array_elements(told) t
            WHERE r.migration = {name} AND r.relid = (t ->> 'oid')::pg_catalog.oid AND t ->> 'after' IS NOT NULL;
    END IF;
    IF TG_TAG = 'ALTER PUBLICATION' THEN
        {sync}
    END IF;
EXCEPTION WHEN OTHERS THEN
    -- What was told before holds no longer.
    PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}', '');
    PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}.end', '');
    RAISE LOG 'dflux: a change of tables of migration {escaped} was not told: %', SQLERRM;
END $dflux$;
DO $dflux$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE (evtfoid, evtevent) = ({function_literal}::pg_catalog.regprocedure, 'table_rewrite')) THEN
        CREATE EVENT TRIGGER {rewrite} ON table_rewrite EXECUTE FUNCTION {function}();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE (evtfoid, evtevent) = ({function_literal}::pg_catalog.regprocedure, 'ddl_command_end')) THEN
        CREATE EVENT TRIGGER {quoted} ON ddl_command_end WHEN TAG IN ({tags}) EXECUTE FUNCTION {function}();
    END IF;
    -- Also where a session calls itself a replica.
    ALTER EVENT TRIGGER {rewrite} ENABLE ALWAYS;
    ALTER EVENT TRIGGER {quoted} ENABLE ALWAYS;
END $dflux$;
COMMIT",
        local = settings("SET LOCAL", ";"),
        printing = settings("SET", "") + " SET lock_timeout = '1s'",
        lane = quote_literal(lane),
        escaped = migration.replace('%', "%%").replace('\'', "''"),
        called_literal = quote_literal(&called),
        quoted = quote_identifier(&called),
        rewrite = quote_identifier(&called_rewrite(migration)),
        function_literal = quote_literal(&format!("{function}()")),
        tags = tags.join(", "),
    )
}

/// Makes it, or makes it anew, after the publication. False if the user may not.
///
/// # Errors
/// `Source`.
pub async fn install(client: &Client, migration: &str, lane: &str, publication: &str) -> Result<bool, Error> {
    let Err(error) = client.batch_execute(&install_sql(migration, lane, publication)).await else { return Ok(true) };
    client.batch_execute("ROLLBACK").await.map_err(Error::source("end a transaction"))?;
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        _ => Err(Error::source(DOING)(error)),
    }
}

/// Whether it is there and enabled.
///
/// # Errors
/// `Source`.
pub async fn installed(client: &Client, migration: &str) -> Result<bool, Error> {
    let function = quote_literal(&format!("dflux.{}()", quote_identifier(migration)));
    let sql = format!(
        "SELECT 1 FROM pg_catalog.pg_event_trigger \
         WHERE evtfoid = pg_catalog.to_regprocedure({function}) AND evtevent = 'ddl_command_end' AND evtenabled IN ('O', 'A')"
    );
    Ok(!rows(client, "look for the event trigger", &sql).await?.is_empty())
}

/// Whether the event trigger is there and has told of every name that a published table has now.
///
/// # Errors
/// `Source`.
pub async fn told_all(client: &Client, migration: &str) -> Result<bool, Error> {
    if !installed(client, migration).await? {
        return Ok(false);
    }
    let sql = format!(
        "SELECT 1 FROM dflux.source_table r JOIN pg_catalog.pg_class c ON c.oid = r.relid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE r.migration = {} \
         AND (r.description #>> '{{tables,0,1}}', r.description #>> '{{tables,0,2}}') IS DISTINCT FROM (n.nspname::text, c.relname::text)",
        quote_literal(migration)
    );
    Ok(rows(client, "compare what the event trigger has told", &sql).await?.is_empty())
}

/// The option of the migration's user mapping, as the superuser or as its user reads it. Null where there is none.
fn secret_sql(mappings: &str, joined: &str, migration: &str) -> String {
    format!(
        "(SELECT max(o.option_value) FROM {mappings} m JOIN pg_catalog.pg_foreign_server s ON {joined}, \
         pg_catalog.pg_options_to_table(m.umoptions) o WHERE s.srvname = {} AND o.option_name = 'secret')",
        quote_literal(&called(migration))
    )
}

/// What its messages know, and nobody who may only write: `pg_logical_emit_message` is open to everybody, and what is told is done
/// on the target. None if there is no event trigger, or it is not our user's.
///
/// # Errors
/// `Source`.
pub async fn secret(client: &Client, migration: &str) -> Result<Option<String>, Error> {
    let secret = secret_sql("pg_catalog.pg_user_mappings", "m.srvid = s.oid", migration);
    let answer = rows(client, "read what the event trigger knows", &format!("SELECT {secret}")).await?;
    Ok(answer.first().and_then(|row| row.get(0)).map(str::to_owned))
}

/// Removes it, and what no other migration needs of what it uses.
///
/// # Errors
/// `Source`.
pub async fn remove(client: &Client, migration: &str) -> Result<(), Error> {
    let doing = "remove the event trigger";
    let there = rows(client, doing, "SELECT 1 WHERE pg_catalog.to_regclass('dflux.source_table') IS NOT NULL").await?;
    if there.is_empty() {
        return Ok(());
    }
    let name = quote_literal(migration);
    let sql = format!(
        "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '5s';
         DROP FUNCTION IF EXISTS dflux.{}() CASCADE;
         DELETE FROM dflux.source_table WHERE migration = {name};
         DROP SERVER IF EXISTS {} CASCADE;
         DO $dflux$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
                 WHERE w.fdwname = 'dflux') THEN
                 DROP FOREIGN DATA WRAPPER IF EXISTS dflux;
                 DROP TABLE dflux.source_table;
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = 'dflux'::pg_catalog.regnamespace) THEN
                     DROP SCHEMA dflux;
                 END IF;
             END IF;
         END $dflux$;
         COMMIT",
        quote_identifier(migration),
        quote_identifier(&called(migration)),
    );
    let Err(error) = client.batch_execute(&sql).await else { return Ok(()) };
    client.batch_execute("ROLLBACK").await.map_err(Error::source("end a transaction"))?;
    Err(Error::source(doing)(error))
}

/// What one message tells.
#[derive(Debug)]
pub struct Told {
    pub lane: String,
    /// To be compared with [`secret`].
    pub secret: String,
    /// What the session sent; empty if it was long, or the change was made within something that it called.
    pub statement: String,
    pub changes: Vec<Changed>,
}

/// One table as it was, if it was published, and as it is, if it is still there. One that was not published is a new partition of
/// one that is.
#[derive(Debug)]
pub struct Changed {
    pub before: Option<Table>,
    pub after: Option<Table>,
    /// Its rows were written anew for the type of a column, perhaps with other values and the type as it was.
    pub rewritten: bool,
}

#[derive(Deserialize)]
struct Message {
    lane: String,
    secret: String,
    statement: String,
    tables: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    before: Option<Answers>,
    after: Option<Answers>,
    #[serde(default)]
    rewritten: bool,
}

/// # Errors
/// Why it is no message of the event trigger.
pub fn told(content: &[u8]) -> Result<Told, String> {
    let message: Message = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let table = |answers: Option<Answers>| -> Result<Option<Table>, String> {
        let Some(answers) = answers else { return Ok(None) };
        Ok(described(&answers).map_err(|error| error.to_string())?.into_iter().next())
    };
    let changed = |told: Described| {
        Ok(Changed { before: table(told.before)?, after: table(told.after)?, rewritten: told.rewritten })
    };
    let changes = message.tables.into_iter().map(changed).collect::<Result<_, String>>()?;
    Ok(Told { lane: message.lane, secret: message.secret, statement: message.statement, changes })
}
