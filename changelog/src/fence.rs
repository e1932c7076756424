//! What the fence of a database is called, which keeps the application's writes out: `dflux` sets it up and moves it, the consumer's
//! sessions pass it.

use crate::table::{quote_identifier, quote_literal};

/// What its triggers are called.
pub const TRIGGER: &str = "dflux fence";
/// A session whose value of this setting is the migration's name passes.
pub const PASS: &str = "dflux.applier";
/// First half of its advisory locks' keys. The second is the sequence's OID for its writers, 0 for who moves it.
pub const LOCK_CLASS: i32 = 0x6466_6c78;
/// These bits of the sequence's value are 0 while it is open; above them is the epoch.
pub const MODE_BITS: i64 = 7;

/// Its sequence and its function, without the schema `dflux`.
pub fn name(migration: &str) -> String {
    format!("fence {migration}")
}

/// The same as SQL writes it.
pub fn quoted(migration: &str) -> String {
    format!("dflux.{}", quote_identifier(&name(migration)))
}

/// A statement for a transaction that is open: true, until it ends, where the application may write to this database.
pub fn open_sql(migration: &str) -> String {
    let sequence = format!("pg_catalog.to_regclass({})", quote_literal(&quoted(migration)));
    format!(
        "SELECT coalesce((SELECT pg_catalog.pg_sequence_last_value({sequence}) & {MODE_BITS} = 0 \
         FROM pg_catalog.pg_advisory_xact_lock_shared({LOCK_CLASS}, 0) WHERE {sequence} IS NOT NULL), false)"
    )
}
