//! The source's event trigger: a statement that changes a published table says so in its own transaction.
//!
//! ```text
//!  ALTER TABLE … ─> ddl_command_end ─> dflux."<migration>"() ─> pg_logical_emit_message ─> WAL ─> [`told`]
//!                                         └ dflux.source_table: what each published table was like
//! ```
//! The message lies in the WAL between the changes before and behind the statement, with the tables described as they are
//! there; a session of ours would see the catalog of some later time. It needs a superuser to be made. Without it, or
//! where it fails, a change is known by the rows that follow.
//!
//! It never makes a statement of the application fail: what goes wrong in it is logged on the source, and that is all. Nor does it
//! anything to who reads the source beside us: its tables are unlogged, so that no publication FOR ALL TABLES has them. A server
//! that has crashed finds them empty, and fills them at the next change, which is then known by its rows.

use changelog::table::{quote_identifier, quote_literal};
use serde::Deserialize;
use service::session::PINNED_SETTINGS;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::catalog::{Table, USER_TABLES};
use super::description::{self, Answers, described};
use super::rows;
use crate::assemble::SCHEMA_PREFIX;
use crate::error::Error;

const DOING: &str = "make the event trigger";

/// Statements by which a table can be made, changed, renamed or dropped. ALTER PUBLICATION: what is published changes.
const TAGS: [&str; 13] = [
    "CREATE TABLE",
    "ALTER TABLE",
    "DROP TABLE",
    "ALTER SCHEMA",
    "DROP SCHEMA",
    "DROP OWNED",
    "DROP EXTENSION",
    "ALTER TYPE",
    "DROP TYPE",
    "ALTER DOMAIN",
    "DROP DOMAIN",
    "CREATE SCHEMA",
    "ALTER PUBLICATION",
];

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
    let trigger = quote_identifier(&format!("dflux {migration}"));
    let publication = quote_literal(publication);
    let tags: Vec<String> = TAGS.iter().map(|tag| quote_literal(tag)).collect();
    // Locks of a session that changes a published table keep others from changing it; so no two write one row of ours.
    let published = format!(
        "SELECT l.prrelid AS relid FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel l ON l.prpubid = p.oid \
         WHERE p.pubname = {publication}"
    );
    let description = description::json("subject.relid");
    let secret = format!(
        "INSERT INTO dflux.source_migration VALUES ({name}, pg_catalog.gen_random_uuid()) ON CONFLICT DO NOTHING;"
    );
    let sync = format!(
        "DELETE FROM dflux.source_table r WHERE r.migration = {name} AND r.relid NOT IN ({published});
        INSERT INTO dflux.source_table (migration, relid, description) SELECT {name}, subject.relid, {description} \
            FROM ({published}) AS subject ON CONFLICT DO NOTHING;"
    );
    format!(
        "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '5s';{local}
CREATE SCHEMA IF NOT EXISTS dflux;
CREATE UNLOGGED TABLE IF NOT EXISTS dflux.source_migration (migration text PRIMARY KEY, secret text NOT NULL);
{secret}
CREATE UNLOGGED TABLE IF NOT EXISTS dflux.source_table (migration text, relid oid, description json NOT NULL, PRIMARY KEY (migration, relid));
{sync}
CREATE OR REPLACE FUNCTION {function}() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER{printing} AS $dflux$
DECLARE
    listed pg_catalog.oid[]; made pg_catalog.oid[]; told pg_catalog.json; leaf pg_catalog.oid; filled boolean;
BEGIN
    {secret}
    IF FOUND THEN
        {sync}
    END IF;
    SELECT coalesce(pg_catalog.array_agg(d.objid), '{{}}'),
        coalesce(pg_catalog.array_agg(d.objid) FILTER (WHERE d.command_tag = 'CREATE TABLE'), '{{}}')
        INTO listed, made FROM pg_catalog.pg_event_trigger_ddl_commands() d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND NOT d.in_extension;
    -- A table that is attached while it is empty is as one that is made in its place.
    IF pg_catalog.current_query() ILIKE '%attach%' THEN
        FOR leaf IN SELECT t.relid FROM pg_catalog.unnest(listed) l (oid), pg_catalog.pg_partition_tree(l.oid) t
            WHERE t.isleaf AND t.level > 0 LOOP
            EXECUTE 'SELECT EXISTS (SELECT FROM ' || leaf::pg_catalog.regclass || ')' INTO filled;
            IF NOT filled THEN made := made || leaf; END IF;
        END LOOP;
    END IF;
    WITH RECURSIVE below (relid) AS (
        SELECT pg_catalog.unnest(listed) UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.relid
    ), known AS (
        SELECT r.relid, r.description FROM dflux.source_table r WHERE r.migration = {name}
    ), subject AS (
        SELECT k.relid, k.description AS before, c.oid IS NOT NULL AS there FROM known k
            LEFT JOIN pg_catalog.pg_class c ON c.oid = k.relid LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE k.relid IN (SELECT b.relid FROM below b)
                OR (n.nspname, c.relname) IS DISTINCT FROM (k.description #>> '{{tables,0,1}}', k.description #>> '{{tables,0,2}}')
        UNION ALL
        SELECT c.oid, NULL, true FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = ANY (made) AND c.relispartition AND c.relkind IN ('r', 'p') AND {USER_TABLES}
                AND pg_catalog.pg_partition_root(c.oid) IN (SELECT k.relid FROM known k) AND c.oid NOT IN (SELECT k.relid FROM known k)
    ), change AS (
        SELECT subject.relid, subject.before, CASE WHEN subject.there THEN {description} END AS after FROM subject
    )
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object('oid', x.relid, 'before', x.before, 'after', x.after)) INTO told
        FROM change x WHERE x.before::pg_catalog.text IS DISTINCT FROM x.after::pg_catalog.text;
    IF told IS NOT NULL THEN
        PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}', pg_catalog.json_build_object('lane', {lane},
            'secret', (SELECT m.secret FROM dflux.source_migration m WHERE m.migration = {name}), 'statement', pg_catalog.left(coalesce(pg_catalog.current_query(), ''), 65536), 'tables', told)::pg_catalog.text);
        -- Decoding gives a message the end of its WAL record as its place, which is the beginning of the next: a row there, of the
        -- transaction around this block, might come before it.
        PERFORM pg_catalog.pg_logical_emit_message(true, '{SCHEMA_PREFIX}.end', '');
        DELETE FROM dflux.source_table r USING pg_catalog.json_array_elements(told) t
            WHERE r.migration = {name} AND r.relid = (t ->> 'oid')::pg_catalog.oid AND t ->> 'after' IS NULL;
        UPDATE dflux.source_table r SET description = t -> 'after' FROM pg_catalog.json_array_elements(told) t
            WHERE r.migration = {name} AND r.relid = (t ->> 'oid')::pg_catalog.oid AND t ->> 'after' IS NOT NULL;
    END IF;
    IF TG_TAG = 'ALTER PUBLICATION' THEN
        {sync}
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'dflux: a change of tables of migration {escaped} was not told: %', SQLERRM;
END $dflux$;
DO $dflux$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtfoid = {function_literal}::pg_catalog.regprocedure) THEN
        CREATE EVENT TRIGGER {trigger} ON ddl_command_end WHEN TAG IN ({tags}) EXECUTE FUNCTION {function}();
    END IF;
END $dflux$;
COMMIT",
        local = settings("SET LOCAL", ";"),
        printing = settings("SET", ""),
        lane = quote_literal(lane),
        escaped = migration.replace('%', "%%").replace('\'', "''"),
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
         WHERE evtfoid = pg_catalog.to_regprocedure({function}) AND evtenabled IN ('O', 'A')"
    );
    Ok(!rows(client, "look for the event trigger", &sql).await?.is_empty())
}

/// What its messages know, and nobody who may only write: `pg_logical_emit_message` is open to everybody, and what is told is done
/// on the target. None if there is no event trigger, or our user may not read it.
///
/// # Errors
/// `Source`.
pub async fn secret(client: &Client, migration: &str) -> Result<Option<String>, Error> {
    let sql = format!("SELECT secret FROM dflux.source_migration WHERE migration = {}", quote_literal(migration));
    let answer = client.simple_query(&sql).await;
    match answer {
        Ok(messages) => Ok(messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })),
        Err(error) => match error.code() {
            Some(&(SqlState::INSUFFICIENT_PRIVILEGE | SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME)) => {
                Ok(None)
            }
            _ => Err(Error::source("read what the event trigger knows")(error)),
        },
    }
}

/// Removes it, and what no other migration needs of what it uses. False if it was not there.
///
/// # Errors
/// `Source`.
pub async fn remove(client: &Client, migration: &str) -> Result<bool, Error> {
    let doing = "remove the event trigger";
    let there = rows(client, doing, "SELECT 1 WHERE pg_catalog.to_regclass('dflux.source_table') IS NOT NULL").await?;
    if there.is_empty() {
        return Ok(false);
    }
    let name = quote_literal(migration);
    let sql = format!(
        "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '5s';
         DROP FUNCTION IF EXISTS dflux.{}() CASCADE;
         DELETE FROM dflux.source_table WHERE migration = {name};
         DELETE FROM dflux.source_migration WHERE migration = {name};
         DO $dflux$ BEGIN
             IF NOT EXISTS (SELECT FROM dflux.source_migration) THEN
                 DROP TABLE dflux.source_table, dflux.source_migration;
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = 'dflux'::pg_catalog.regnamespace) THEN
                     DROP SCHEMA dflux;
                 END IF;
             END IF;
         END $dflux$;
         COMMIT",
        quote_identifier(migration)
    );
    let Err(error) = client.batch_execute(&sql).await else { return Ok(true) };
    client.batch_execute("ROLLBACK").await.map_err(Error::source("end a transaction"))?;
    Err(Error::source(doing)(error))
}

/// What one message tells.
#[derive(Debug)]
pub struct Told {
    pub lane: String,
    /// To be compared with [`secret`].
    pub secret: String,
    pub statement: String,
    pub changes: Vec<Changed>,
}

/// One table as it was, if it was published, and as it is, if it is still there. One that was not published is a new partition of
/// one that is.
#[derive(Debug)]
pub struct Changed {
    pub before: Option<Table>,
    pub after: Option<Table>,
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
}

/// # Errors
/// Why it is no message of the event trigger.
pub fn told(content: &[u8]) -> Result<Told, String> {
    let message: Message = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let table = |answers: Option<Answers>| -> Result<Option<Table>, String> {
        let Some(answers) = answers else { return Ok(None) };
        Ok(described(&answers).map_err(|error| error.to_string())?.into_iter().next())
    };
    let changed = |told: Described| Ok(Changed { before: table(told.before)?, after: table(told.after)? });
    let changes = message.tables.into_iter().map(changed).collect::<Result<_, String>>()?;
    Ok(Told { lane: message.lane, secret: message.secret, statement: message.statement, changes })
}
