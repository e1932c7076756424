//! The tables of the schema `dflux` in the target: the lane's progress and everything that must commit with the rows.
//!
//! Idempotent: each statement may run again. `control` and `validator` only read these tables, except the rows that
//! `dflux prepare` writes (`schema_step`, `source_change`).

/// Run as one batch under a transaction-level advisory lock, because `IF NOT EXISTS` does not guard against two at once.
pub const DDL: &str = r#"
CREATE SCHEMA IF NOT EXISTS dflux;
CREATE TABLE IF NOT EXISTS dflux.lane (
    lane text PRIMARY KEY,
    system_identifier text, timeline int, slot text, consistent_point pg_lsn,
    commit_lsn pg_lsn, ordinal bigint, part int,
    epoch bigint NOT NULL DEFAULT 0, backend_pid int, instance text, heartbeat_at timestamptz,
    phase text, exact_from pg_lsn,
    marker_emitted_at timestamptz, marker_decoded_at timestamptz, marker_received_at timestamptz, marker_applied_at timestamptz,
    changes_applied bigint NOT NULL DEFAULT 0, transactions_applied bigint NOT NULL DEFAULT 0,
    error text, error_hint text, diverged bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE IF NOT EXISTS dflux.chunk (
    lane text, schema_name text, table_name text, generation int, chunk int,
    attempt int, snapshot_lsn pg_lsn, exact_snapshot bool, row_count bigint, loaded_at timestamptz,
    PRIMARY KEY (lane, schema_name, table_name, generation, chunk)
);
CREATE TABLE IF NOT EXISTS dflux.incomplete (
    lane text, schema_name text, table_name text, key text[], asked_at timestamptz,
    PRIMARY KEY (lane, schema_name, table_name, key)
);
CREATE TABLE IF NOT EXISTS dflux.offset_hint (
    lane text, topic text, kafka_partition int, next_offset bigint, commit_lsn pg_lsn, ordinal bigint, part int,
    PRIMARY KEY (lane, topic, kafka_partition)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS dflux.table_state (
    lane text, schema_name text, table_name text, generation int, state text, replay_from pg_lsn,
    next_generation int, error text, rewritten_lsn pg_lsn, PRIMARY KEY (lane, schema_name, table_name)
);
DO $$ BEGIN
    -- Made by an earlier version. Asked first: ADD COLUMN IF NOT EXISTS locks the table even where it has nothing to do.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'dflux.table_state'::pg_catalog.regclass AND attname = 'error') THEN
        ALTER TABLE dflux.table_state ADD COLUMN next_generation int, ADD COLUMN error text;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'dflux.table_state'::pg_catalog.regclass AND attname = 'rewritten_lsn') THEN
        ALTER TABLE dflux.table_state ADD COLUMN rewritten_lsn pg_lsn;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'dflux.incomplete'::pg_catalog.regclass AND attname = 'asked_at') THEN
        ALTER TABLE dflux.incomplete ADD COLUMN asked_at timestamptz;
    END IF;
END $$;
CREATE TABLE IF NOT EXISTS dflux.table_schema (
    lane text, schema_name text, table_name text, schema_id int, commit_lsn pg_lsn, ordinal bigint, part int,
    changed_lsn pg_lsn, PRIMARY KEY (lane, schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS dflux.rewritten (
    lane text, schema_name text, table_name text, commit_lsn pg_lsn, PRIMARY KEY (lane, schema_name, table_name, commit_lsn)
);
CREATE TABLE IF NOT EXISTS dflux.table_identity (
    lane text, schema_name text, table_name text, source_oid bigint, generation int, PRIMARY KEY (lane, schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS dflux.schema_step (
    id bigserial PRIMARY KEY, migration text, kind text, schema_name text, table_name text, name text,
    statement text, needs text[], done_at timestamptz, error text
);
CREATE TABLE IF NOT EXISTS dflux.source_change (
    id bigserial PRIMARY KEY, migration text, kind text, schema_name text, table_name text, before text,
    at timestamptz DEFAULT now()
);
CREATE TABLE IF NOT EXISTS dflux.divergence (
    id bigserial PRIMARY KEY, lane text, schema_name text, table_name text,
    commit_lsn pg_lsn, ordinal bigint, op text, key_hash text, at timestamptz DEFAULT now()
);
"#;

/// Key of the advisory lock that guards the DDL: "dflux" in ASCII.
pub const DDL_LOCK: i64 = 0x64_66_6c_75_78;
