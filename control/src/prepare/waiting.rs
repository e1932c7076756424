//! The steps of `dflux.schema_step` that are not done, and what each of them waits for: the rows and the key of every table that
//! it needs, or a right of the target's user. Nothing that is not built goes unsaid.

use std::collections::BTreeMap;

use service::Config;

use super::steps::{Kind, enables_row_security};
use crate::{Database, Error};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: i64,
    pub kind: String,
    pub schema: String,
    pub table: String,
    pub name: String,
    pub statement: String,
    /// Quoted names.
    pub needs: Vec<String>,
    /// Row security of its table is forced on the owner too, and our user does not pass it by.
    pub subject: bool,
}

impl Waiting {
    pub fn title(&self) -> String {
        format!("{}.{} {}", self.schema, self.table, self.name)
    }
}

/// Why a table's steps cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    Absent,
    NotCopied,
    BeingRead,
    NoKey,
}

impl Obstacle {
    fn from_name(name: &str) -> Option<Obstacle> {
        match name {
            "absent" => Some(Obstacle::Absent),
            "not copied" => Some(Obstacle::NotCopied),
            "being read" => Some(Obstacle::BeingRead),
            "no key" => Some(Obstacle::NoKey),
            _ => None,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Obstacle::Absent => "is on the target no more, and not selected on the source",
            Obstacle::NotCopied => "has no rows on the target yet",
            Obstacle::BeingRead => "is being read again",
            Obstacle::NoKey => "has no key on the target yet",
        }
    }

    /// The command that removes it. `table` is its quoted name.
    pub fn hint(self, table: &str) -> String {
        match self {
            Obstacle::Absent => {
                let literal = changelog::table::quote_literal(table);
                format!("DELETE FROM dflux.schema_step WHERE {literal} = ANY (needs) on the target")
            }
            Obstacle::NotCopied | Obstacle::NoKey => {
                format!("dflux resync {} --wait, then dflux prepare", argument(table))
            }
            Obstacle::BeingRead => "dflux status --watch shows how far it is; then dflux prepare".into(),
        }
    }
}

/// A quoted name as an argument of a command: bare where it needs no quotes.
pub fn argument(quoted: &str) -> String {
    let bare = quoted.replace("\".\"", ".");
    let bare = bare.trim_matches('"');
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
    if bare.chars().all(plain) && bare.matches('.').count() == 1 { bare.to_owned() } else { format!("'{quoted}'") }
}

/// What is to be done with a step now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Run,
    /// The table, by its quoted name, and what is in the way.
    Table(String, Obstacle),
    /// It would fire on what the lane applies: that takes the right to set `session_replication_role`.
    Fires,
    /// It would hide rows from the lane, or refuse them.
    Hides,
}

/// What the user of the target may do.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    pub replicate: bool,
}

/// Pure.
pub fn judge(step: &Waiting, rights: Rights, obstacles: &BTreeMap<String, Obstacle>) -> Verdict {
    if let Some((table, obstacle)) = step.needs.iter().find_map(|need| obstacles.get_key_value(need)) {
        return Verdict::Table(table.clone(), *obstacle);
    }
    if step.kind == Kind::Key.name() {
        // The consumer's: it is to be built, or its table would have an obstacle.
        return Verdict::Table(changelog::TableName::new(&*step.schema, &*step.table).quoted(), Obstacle::NoKey);
    }
    if enables_row_security(&step.statement) {
        return if step.subject { Verdict::Hides } else { Verdict::Run };
    }
    if step.kind == Kind::Cutover.name() && !rights.replicate { Verdict::Fires } else { Verdict::Run }
}

/// Everything that is not done, in the order of the dump.
///
/// # Errors
/// `Sql`.
pub async fn steps(target: &Database, config: &Config) -> Result<Vec<Waiting>, Error> {
    let sql = "SELECT s.id, s.kind, coalesce(s.schema_name, ''), coalesce(s.table_name, ''), coalesce(s.name, ''), s.statement,
        coalesce(s.needs, '{}'), coalesce(c.relforcerowsecurity, false) AND NOT (r.rolsuper OR r.rolbypassrls)
      FROM dflux.schema_step s JOIN pg_catalog.pg_roles r ON r.rolname = current_user
        LEFT JOIN pg_catalog.pg_class c
          ON c.oid = to_regclass(quote_ident(s.schema_name) || '.' || quote_ident(nullif(s.table_name, '')))
      WHERE s.migration = $1 AND s.done_at IS NULL ORDER BY s.id";
    let rows = target.rows("the steps that wait", sql, &[&config.migration.name]).await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                id: target.get(row, 0)?,
                kind: target.get(row, 1)?,
                schema: target.get(row, 2)?,
                table: target.get(row, 3)?,
                name: target.get(row, 4)?,
                statement: target.get(row, 5)?,
                needs: target.get(row, 6)?,
                subject: target.get(row, 7)?,
            })
        })
        .collect()
}

/// What stands in the way of these tables, all by their quoted names. A partition has what its partitioned
/// table has; a partitioned table that is copied by its partitions has what all of them have.
///
/// # Errors
/// `Sql`.
pub async fn obstacles(
    target: &Database,
    config: &Config,
    tables: &[&String],
) -> Result<BTreeMap<String, Obstacle>, Error> {
    let sql = "WITH copied AS (
        SELECT DISTINCT to_regclass(quote_ident(schema_name) || '.' || quote_ident(table_name))::oid AS oid
        FROM dflux.chunk WHERE lane = $1),
      unread AS (
        SELECT to_regclass(quote_ident(schema_name) || '.' || quote_ident(table_name))::oid AS oid
        FROM dflux.table_state WHERE lane = $1 AND state <> 'live'),
      unkeyed AS (
        SELECT DISTINCT to_regclass(quote_ident(schema_name) || '.' || quote_ident(nullif(table_name, '')))::oid AS oid
        FROM dflux.schema_step WHERE migration = $2 AND kind = 'key' AND done_at IS NULL),
      needed AS (SELECT DISTINCT name, to_regclass(name)::oid AS oid FROM unnest($3::text[]) AS name)
      SELECT n.name, CASE
        WHEN n.oid IS NULL THEN 'absent'
        WHEN NOT EXISTS (SELECT FROM copied WHERE oid = n.oid OR oid IN (SELECT relid FROM pg_partition_ancestors(n.oid)))
          AND (NOT EXISTS (SELECT FROM pg_partition_tree(n.oid) WHERE isleaf AND relid <> n.oid) OR EXISTS (
            SELECT FROM pg_partition_tree(n.oid) WHERE isleaf AND relid NOT IN (SELECT oid FROM copied WHERE oid IS NOT NULL)))
          THEN 'not copied'
        WHEN EXISTS (SELECT FROM unread WHERE oid IN (SELECT n.oid UNION ALL SELECT relid FROM pg_partition_ancestors(n.oid)
          UNION ALL SELECT relid FROM pg_partition_tree(n.oid))) THEN 'being read'
        WHEN EXISTS (SELECT FROM unkeyed WHERE oid IN (SELECT n.oid UNION ALL SELECT relid FROM pg_partition_ancestors(n.oid)
          UNION ALL SELECT relid FROM pg_partition_tree(n.oid))) THEN 'no key'
        ELSE '' END
      FROM needed n";
    let lane = format!("{}/forward", config.migration.name);
    let rows = target.rows("what the steps wait for", sql, &[&lane, &config.migration.name, &tables]).await?;
    let mut obstacles = BTreeMap::new();
    for row in &rows {
        if let Some(obstacle) = Obstacle::from_name(target.get(row, 1)?) {
            obstacles.insert(target.get(row, 0)?, obstacle);
        }
    }
    Ok(obstacles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_for_the_shell_only_where_it_must_be() {
        assert_eq!(argument("\"public\".\"later\""), "public.later");
        assert_eq!(argument("\"public\".\"La ter\""), "'\"public\".\"La ter\"'");
        assert_eq!(argument("\"a.b\".\"c\""), "'\"a.b\".\"c\"'");
    }

    #[test]
    fn a_step_is_run_only_when_nothing_that_it_needs_is_missing() {
        let step = |kind: Kind, statement: &str| Waiting {
            id: 1,
            kind: kind.name().into(),
            schema: "public".into(),
            table: "t".into(),
            name: "x".into(),
            statement: statement.into(),
            needs: vec!["\"public\".\"t\"".into(), "\"public\".\"u\"".into()],
            subject: true,
        };
        let (all, none) = (Rights { replicate: true }, Rights { replicate: false });
        let free = BTreeMap::new();
        let of_u = BTreeMap::from([("\"public\".\"u\"".to_owned(), Obstacle::NoKey)]);
        let on_u = Verdict::Table("\"public\".\"u\"".into(), Obstacle::NoKey);
        let on_t = Verdict::Table("\"public\".\"t\"".into(), Obstacle::NoKey);
        let (row_security, index) = ("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;", "CREATE INDEX x …;");
        for (kind, statement, rights, obstacles, verdict) in [
            (Kind::Post, index, none, &free, Verdict::Run),
            (Kind::Post, index, all, &of_u, on_u.clone()),
            (Kind::Cutover, index, all, &free, Verdict::Run),
            (Kind::Cutover, index, none, &free, Verdict::Fires),
            (Kind::Cutover, index, none, &of_u, on_u),
            (Kind::Cutover, row_security, all, &free, Verdict::Hides),
            (Kind::Key, index, all, &free, on_t),
        ] {
            assert_eq!(judge(&step(kind, statement), rights, obstacles), verdict, "{kind:?} {statement}");
        }
        let passes = Waiting { subject: false, ..step(Kind::Cutover, row_security) };
        assert_eq!(judge(&passes, none, &free), Verdict::Run);
    }
}
