//! What a comparison asks one database, inside its snapshot.

use std::collections::HashMap;

use changelog::table::TableName;
use changelog::{Lsn, Position};

use crate::Error;
use crate::canonical::Layout;
use crate::cause::Read;
use crate::compare::{Aggregates, Buckets, Counts, RowHash, modular};
use crate::session::{Session, Statement, statement};
use crate::settle::SourceSnapshot;
use crate::statistics::SampledRow;

/// Rows given as text: for each field of a layout that is given, one list with a text or null per row.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Indexes of the fields, in the order of `columns`.
    pub fields: Vec<usize>,
    pub columns: Vec<Vec<Option<String>>>,
}

impl Given {
    pub fn new(fields: Vec<usize>, rows: impl Iterator<Item = Vec<Option<String>>>) -> Given {
        let mut columns: Vec<Vec<Option<String>>> = fields.iter().map(|_| Vec::new()).collect();
        for row in rows {
            for (column, value) in columns.iter_mut().zip(row) {
                column.push(value);
            }
        }
        Given { fields, columns }
    }

    pub fn is_empty(&self) -> bool {
        self.columns.first().is_none_or(Vec::is_empty)
    }

    /// `unnest($n::text[], …) WITH ORDINALITY AS e(e0, …, o)`, its parameters from `$first` on.
    pub fn relation(&self, first: usize) -> String {
        self.relation_with(first, &[])
    }

    /// The same with further text columns of these names after the fields.
    pub fn relation_with(&self, first: usize, more: &[&str]) -> String {
        let count = self.fields.len() + more.len();
        let parameters: Vec<String> = (first..first + count).map(|number| format!("${number}::text[]")).collect();
        let names: Vec<String> =
            self.fields.iter().map(|at| format!("e{at}")).chain(more.iter().map(|name| (*name).to_owned())).collect();
        format!("unnest({}) WITH ORDINALITY AS e({}, o)", parameters.join(", "), names.join(", "))
    }

    pub fn bind(&self, mut statement: Statement) -> Statement {
        for column in &self.columns {
            statement = statement.bind(column.clone());
        }
        statement
    }
}

/// Rows of a table: a condition over `t`, and keys (as text) that the rows must have, or must not have.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    pub condition: &'a str,
    pub keys: Option<(&'a Given, Membership)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    Only,
    Without,
}

impl Selection<'_> {
    fn sql(&self, layout: &Layout, first: usize) -> String {
        let Some((keys, membership)) = self.keys else { return layout.rows(self.condition) };
        let not = if membership == Membership::Without { "NOT " } else { "" };
        let same = layout.same_key(|at| layout.stored(at));
        let condition =
            format!("{} AND {not}EXISTS (SELECT FROM {} WHERE {same})", self.condition, keys.relation(first));
        layout.rows(&condition)
    }

    fn bind(&self, statement: Statement) -> Statement {
        match self.keys {
            Some((keys, _)) => keys.bind(statement),
            None => statement,
        }
    }
}

/// Takes the snapshot: what it sees, and a WAL position behind everything that it sees.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn position(source: &mut Session) -> Result<(SourceSnapshot, Lsn), Error> {
    let doing = "opening a snapshot";
    // The snapshot is taken before the statement runs, so the position is read after it.
    let sql = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text";
    let row = source.row(doing, statement(sql.into())).await?;
    let (snapshot, written): (String, String) = (source.get(doing, &row, 0)?, source.get(doing, &row, 1)?);
    let snapshot = snapshot.parse().map_err(|what| source.unexpected(doing, what))?;
    let written = written.parse().map_err(|error: changelog::Error| source.unexpected(doing, error.to_string()))?;
    Ok((snapshot, written))
}

/// A query over `part (oid, relkind)`: a table, and its partitions at every level. (`pg_partition_tree` has no row of a table that is
/// neither.)
fn of_parts(query: &str, table: &TableName) -> Statement {
    let sql = format!(
        "WITH RECURSIVE part (oid, relkind) AS ( \
           SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = $1 AND c.relname = $2 \
           UNION ALL SELECT c.oid, c.relkind FROM part p JOIN pg_inherits i ON i.inhparent = p.oid \
           JOIN pg_class c ON c.oid = i.inhrelid WHERE p.relkind = 'p') {query}"
    );
    statement(sql).bind(table.schema.clone()).bind(table.name.clone())
}

/// Whether the table's file, or each of its partitions', is still the one that the snapshot's catalog names: a table that
/// was truncated or rewritten under a snapshot reads as empty without any error.
///
/// # Errors
/// `Database`; also when the table is gone.
pub async fn same_file(session: &mut Session, table: &TableName) -> Result<bool, Error> {
    let doing = format!("looking at the file of {table}");
    // Only relations of kind r have a file of rows.
    let sql = "SELECT bool_and(p.relkind <> 'r' OR coalesce(c.relfilenode = pg_relation_filenode(c.oid), false)) \
               FROM part p JOIN pg_class c ON c.oid = p.oid";
    let rows = session.rows(&doing, of_parts(sql, table)).await?;
    match rows.first() {
        Some(row) => Ok(session.get::<Option<bool>>(&doing, row, 0)?.unwrap_or(false)),
        None => Ok(false),
    }
}

/// OIDs and files of a table and its partitions: they change when it is rewritten, or another takes its name.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn files(session: &mut Session, table: &TableName) -> Result<String, Error> {
    let doing = format!("looking at the file of {table}");
    let sql = "SELECT coalesce(string_agg(oid || ':' || coalesce(pg_relation_filenode(oid), 0), ' ' ORDER BY oid), '') FROM part";
    let row = session.row(&doing, of_parts(sql, table)).await?;
    session.get(&doing, &row, 0)
}

fn parse_aggregates(
    session: &Session,
    doing: &str,
    row: &sqlx::postgres::PgRow,
    layout: &Layout,
) -> Result<Scanned, Error> {
    let rows: i64 = session.get(doing, row, 0)?;
    let number = |at: usize| {
        let text: Option<&str> = session.get(doing, row, at)?;
        modular(text).ok_or_else(|| session.unexpected(doing, "a sum that is not a whole number".into()))
    };
    let sums: Result<Vec<u64>, Error> = (0..layout.scanned().len()).map(|at| number(at + 4)).collect();
    let counts: Vec<i64> = session.get(doing, row, 2)?;
    let counted = |four: &[i64]| {
        let count = |at: usize| four.get(at).copied().unwrap_or(0).max(0) as u64;
        Counts { nulls: count(0), empty: count(1), nan: count(2), infinite: count(3) }
    };
    let counts = counts.chunks(4).map(counted).collect();
    let sample = match session.get::<Option<&str>>(doing, row, 3)? {
        Some(json) => sampled(json).map_err(|error| session.unexpected(doing, error.to_string()))?,
        None => Vec::new(),
    };
    let aggregates = Aggregates { rows: rows.max(0) as u64, key: number(1)?, sums: sums?, counts };
    Ok(Scanned { aggregates, sample })
}

/// What one scan of a range yields.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    pub aggregates: Aggregates,
    pub sample: Vec<SampledRow>,
}

fn sampled(json: &str) -> Result<Vec<SampledRow>, serde_json::Error> {
    type Row = (i64, Vec<Option<String>>, Vec<Option<u64>>);
    let rows: Vec<Row> = serde_json::from_str(json)?;
    let row = |(key_hash, starts, lengths)| SampledRow { key_hash, values: read(starts, lengths) };
    Ok(rows.into_iter().map(row).collect())
}

/// Texts with their lengths.
fn read(starts: Vec<Option<String>>, lengths: Vec<Option<u64>>) -> Vec<Option<Read>> {
    let one =
        |(start, length): (Option<String>, Option<u64>)| start.map(|start| Read { start, length: length.unwrap_or(0) });
    starts.into_iter().zip(lengths).map(one).collect()
}

/// Count, sums, counts and sample of the selected rows.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn aggregates(session: &mut Session, layout: &Layout, selection: &Selection<'_>) -> Result<Scanned, Error> {
    let doing = format!("summing rows of {}", layout.table);
    let sql = layout.aggregates(&selection.sql(layout, 1));
    let row = session.row(&doing, selection.bind(statement(sql))).await?;
    parse_aggregates(session, &doing, &row, layout)
}

/// Count and sums of rows that are given, read through the input functions of this server's types.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn given_aggregates(session: &mut Session, layout: &Layout, rows: &Given) -> Result<Aggregates, Error> {
    let doing = format!("summing row images of {}", layout.table);
    let sql = layout.aggregates(&layout.given_rows(&rows.relation(1)));
    let row = session.row(&doing, rows.bind(statement(sql))).await?;
    Ok(parse_aggregates(session, &doing, &row, layout)?.aggregates)
}

/// The hashes of whole rows that are given, of a keyless table.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn given_hashes(session: &mut Session, layout: &Layout, rows: &Given) -> Result<Vec<i64>, Error> {
    let doing = format!("hashing row images of {}", layout.table);
    let sql = format!("SELECT s.kh FROM ({}) AS s", layout.given_rows(&rows.relation(1)));
    let found = session.rows(&doing, rows.bind(statement(sql))).await?;
    found.iter().map(|row| session.get(&doing, row, 0)).collect()
}

/// Which of the given keys are in a range: their places from 0.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn keys_within(
    session: &mut Session,
    layout: &Layout,
    keys: &Given,
    condition: &str,
) -> Result<Vec<usize>, Error> {
    let doing = format!("placing keys of {}", layout.table);
    let sql = format!("SELECT e.o FROM {} WHERE {condition} ORDER BY e.o", keys.relation(1));
    let rows = session.rows(&doing, keys.bind(statement(sql))).await?;
    let place = |row| Ok(session.get::<i64>(&doing, row, 0)?.max(1) as usize - 1);
    rows.iter().map(place).collect()
}

/// One row that was checked against the image of its newest event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Place of the image, from 0.
    pub place: usize,
    pub found: bool,
    /// Indexes into the summed columns whose value is not the image's.
    pub differing: Vec<usize>,
}

/// Compares the stored rows with images: `images` gives all fields, `flags` one character for each summed column, `=` where
/// the column is to be compared.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn check_images(
    session: &mut Session,
    layout: &Layout,
    images: &Given,
    flags: Vec<String>,
) -> Result<Vec<Checked>, Error> {
    let doing = format!("checking rows of {} against their newest events", layout.table);
    let stored: Vec<String> = (0..layout.fields.len()).map(|at| format!("{} AS c{at}", layout.stored(at))).collect();
    let judged: Vec<String> = layout
        .summed()
        .iter()
        .enumerate()
        .map(|(nth, at)| {
            let base = &layout.fields[*at].base;
            let (held, wanted) = (
                crate::canonical::text_of(base, &format!("v.c{at}")),
                crate::canonical::text_of(base, &layout.given(*at)),
            );
            format!(
                "CASE WHEN substr(e.flags, {}, 1) <> '=' THEN '=' WHEN ({held}) COLLATE \"C\" IS NOT DISTINCT FROM \
                 ({wanted}) COLLATE \"C\" THEN '=' ELSE 'x' END",
                nth + 1
            )
        })
        .collect();
    let judged = if judged.is_empty() { "''".to_owned() } else { judged.join(" || ") };
    let sql = format!(
        "SELECT e.o, v.found IS NOT NULL, {judged} FROM {} LEFT JOIN LATERAL (SELECT true AS found, {} FROM {} AS t \
         WHERE {}) AS v ON true",
        images.relation_with(1, &["flags"]),
        stored.join(", "),
        layout.relation(),
        layout.same_key(|at| layout.stored(at))
    );
    let bound = images.bind(statement(sql)).bind(flags);
    let rows = session.rows(&doing, bound).await?;
    let mut checked = Vec::with_capacity(rows.len());
    for row in &rows {
        let (place, found, judged): (i64, bool, String) =
            (session.get(&doing, row, 0)?, session.get(&doing, row, 1)?, session.get(&doing, row, 2)?);
        let differing = judged.bytes().enumerate().filter(|(_, byte)| *byte == b'x').map(|(at, _)| at).collect();
        checked.push(Checked { place: place.max(1) as usize - 1, found, differing });
    }
    Ok(checked)
}

/// Rows and sums by bucket.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn buckets(session: &mut Session, layout: &Layout, selection: &Selection<'_>) -> Result<Buckets, Error> {
    let doing = format!("summing rows of {} by bucket", layout.table);
    let sql = layout.buckets(&selection.sql(layout, 1));
    let rows = session.rows(&doing, selection.bind(statement(sql))).await?;
    let mut buckets = Buckets::new();
    for row in &rows {
        let (bucket, count): (i64, i64) = (session.get(&doing, row, 0)?, session.get(&doing, row, 1)?);
        let sum = modular(session.get(&doing, row, 2)?)
            .ok_or_else(|| session.unexpected(&doing, "a sum that is not a whole number".into()))?;
        buckets.insert(bucket, (count.max(0) as u64, sum));
    }
    Ok(buckets)
}

/// The hashes of all selected rows in these buckets.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn row_hashes(
    session: &mut Session,
    layout: &Layout,
    selection: &Selection<'_>,
    buckets: &[i64],
) -> Result<Vec<RowHash>, Error> {
    let doing = format!("reading row hashes of {}", layout.table);
    let sql = layout.row_hashes(&selection.sql(layout, 2));
    let rows = session.rows(&doing, selection.bind(statement(sql).bind(buckets.to_vec()))).await?;
    let hash = |row| {
        Ok(RowHash {
            key_hash: session.get(&doing, row, 0)?,
            hashes: session.get(&doing, row, 1)?,
            key: session.get(&doing, row, 2)?,
        })
    };
    rows.iter().map(hash).collect()
}

/// The columns of rows with these key hashes, as text, each cut to its first characters, with its whole length.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn values(
    session: &mut Session,
    layout: &Layout,
    condition: &str,
    hashes: &[i64],
) -> Result<HashMap<i64, Vec<Option<Read>>>, Error> {
    let doing = format!("reading rows of {}", layout.table);
    let sql = layout.values(&layout.rows(condition), VALUE_CHARACTERS_MAX, hashes.len() * 2 + 10);
    let rows = session.rows(&doing, statement(sql).bind(hashes.to_vec())).await?;
    let values = |row| {
        let (starts, lengths): (Vec<Option<String>>, Vec<Option<i64>>) =
            (session.get(&doing, row, 1)?, session.get(&doing, row, 2)?);
        let lengths = lengths.into_iter().map(|length| length.map(|length| length.max(0) as u64)).collect();
        Ok((session.get(&doing, row, 0)?, read(starts, lengths)))
    };
    rows.iter().map(values).collect()
}

/// Enough of a value to explain how it differs.
const VALUE_CHARACTERS_MAX: usize = 1000;

/// Bytes of the table's files, its partitions' included: how many rows it may have, also before the first ANALYZE.
///
/// # Errors
/// `Database`, `Answer`.
pub async fn bytes(session: &mut Session, table: &TableName) -> Result<u64, Error> {
    let doing = format!("asking for the size of {table}");
    let sql = "SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM part";
    let row = session.row(&doing, of_parts(sql, table)).await?;
    Ok(session.get::<i64>(&doing, &row, 0)?.max(0) as u64)
}

/// Whether an applied position is behind everything that a source snapshot sees.
pub fn covers(applied: Position, written: Lsn) -> bool {
    applied.commit_lsn >= written
}
