//! The canonical form: SQL expressions whose text is equal exactly when two values are the same, and the keyed hashes over it.
//!
//! The validator's own code and not the consumer's: a conversion that is wrong in both would prove itself right. Pure.
//!
//! - Text, because it is what both servers print under pinned settings; where a setting would still speak in the text
//!   (time zone, interval style, currency) a form that depends on none is taken instead.
//! - Numeric keeps its display scale and float its sign of zero: 1.10 is not 1.1 and -0 is not 0. What differs only so is
//!   named as such (`cause`), but it differs.
//! - A value's hash is seeded with the hash of its row's key: values swapped between two rows change the sum. Sums are
//!   modulo 2^64 and never XOR, which equal pairs would leave.
//! - A null has a hash of its own, of a seed that no value has: it differs from '' and from every text.
//! - Always `COLLATE "C"`: under a nondeterministic collation PostgreSQL hashes the sort key, which folds different texts.

use changelog::table::{TableName, quote_identifier, quote_literal};

use crate::definition::BaseType;

/// XORed into a column's seed for its nulls. Columns are numbered from 0 and are at most 1,600.
const NULL_SEED: i64 = 1 << 40;
/// Hashes of rows are gathered in so many buckets when a range differs.
pub const BUCKETS: i64 = 1024;
/// A fixed text whose hash both servers must agree on.
pub const PROBE_TEXT: &str = "dflux 0123456789 äöü 漢字 😀";

/// How a server hashes a text to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashLane {
    /// `hashtextextended`: fast; not promised to be the same in every version, so it is probed on both servers.
    Extended,
    /// The first 64 bits of an md5 over UTF-8: four times dearer, the same everywhere, whatever the encoding.
    Md5,
}

impl HashLane {
    /// The hash of a text expression under a bigint seed; null of null.
    pub fn of(self, text: &str, seed: &str) -> String {
        match self {
            HashLane::Extended => format!("pg_catalog.hashtextextended(({text}) COLLATE \"C\", {seed})"),
            HashLane::Md5 => format!(
                "('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.convert_to(({seed})::text || ':' || ({text}), \
                 'UTF8')), 16))::\"pg_catalog\".\"bit\"(64)::bigint"
            ),
        }
    }

    /// A query for two fixed hashes in this lane.
    pub fn probe(self) -> String {
        let text = quote_literal(PROBE_TEXT);
        format!("SELECT {}, {}", self.of(&format!("{text}::text"), "42"), self.of("''::text", "-7"))
    }
}

/// The canonical text of an expression of this type; null of null.
pub fn text_of(base: &BaseType, expression: &str) -> String {
    match (base.schema.as_str(), base.name.as_str()) {
        // Independent of TimeZone.
        ("pg_catalog", "timestamptz") => format!("(({expression}) AT TIME ZONE 'UTC')::text"),
        // Months, days and microseconds apart; independent of IntervalStyle.
        ("pg_catalog", "interval") => {
            format!("pg_catalog.encode(pg_catalog.interval_send({expression}), 'hex')")
        }
        // Independent of lc_monetary.
        ("pg_catalog", "money") => format!("pg_catalog.encode(pg_catalog.cash_send({expression}), 'hex')"),
        // The cast to text strips the blanks that the type's own output keeps.
        ("pg_catalog", "bpchar") => format!("pg_catalog.textin(pg_catalog.bpcharout({expression}))"),
        ("pg_catalog", _) => format!("({expression})::text"),
        // An extension may define a cast to text that loses something; the output function must not.
        _ => format!("pg_catalog.textin({}({expression}))", base.output),
    }
}

/// What a person reads in a report, and what is fed back through the type's input function: the output function's text.
pub fn printed(base: &BaseType, expression: &str) -> String {
    match (base.schema.as_str(), base.name.as_str()) {
        ("pg_catalog", "bpchar") => format!("pg_catalog.textin(pg_catalog.bpcharout({expression}))"),
        ("pg_catalog", _) => format!("({expression})::text"),
        _ => format!("pg_catalog.textin({}({expression}))", base.output),
    }
}

/// What a scan yields beside the count and the sum of the key hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The keyed sum of each column.
    pub sums: bool,
    /// Nulls, empty values, NaN and infinities of each column.
    pub counts: bool,
    /// The rows whose key hash has none of these bits.
    pub sample: Option<i64>,
}

/// Characters of a value of the sample.
const SAMPLE_CHARACTERS_MAX: usize = 500;

/// One column of a comparison, as one of the two servers knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub base: BaseType,
}

/// What one server is asked about a table: the columns that both sides have, in the same order on both, with the types of
/// this side. In the queries column `i` is called `c<i>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub table: TableName,
    pub fields: Vec<Field>,
    /// Indexes into `fields`, in key order; empty for a keyless table.
    pub key: Vec<usize>,
    /// On this side its rows are its partitions'.
    pub partitioned: bool,
    pub lane: HashLane,
    pub scan: Scan,
}

impl Layout {
    pub fn keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// What its rows are selected from. Tables that inherit from it without being partitions are tables of their own.
    pub fn relation(&self) -> String {
        let only = if self.partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.table.quoted())
    }

    /// `SELECT … AS c0, … FROM table t WHERE …`, not flattened by the planner, with the row's key hash as `kh`.
    pub fn rows(&self, condition: &str) -> String {
        let columns: Vec<String> = (0..self.fields.len())
            .map(|at| format!("t.{} AS c{at}", quote_identifier(&self.fields[at].name)))
            .collect();
        let from = format!("SELECT {} FROM {} AS t WHERE {condition}", columns.join(", "), self.relation());
        self.hashed(&from)
    }

    /// The same for rows that are given as text: `relation` yields `e0 … en`, typed here through each type's input.
    pub fn given_rows(&self, relation: &str) -> String {
        let columns: Vec<String> = (0..self.fields.len()).map(|at| format!("{} AS c{at}", self.given(at))).collect();
        self.hashed(&format!("SELECT {} FROM {relation}", columns.join(", ")))
    }

    fn hashed(&self, from: &str) -> String {
        let all: Vec<String> = (0..self.fields.len()).map(|at| format!("r.c{at}")).collect();
        format!("SELECT {}, {} AS kh FROM ({from}) AS r OFFSET 0", all.join(", "), self.key_hash("r.c"))
    }

    /// Column `e<at>` of texts as a value of the column's type. No modifier: a cast with one would truncate silently.
    pub fn given(&self, at: usize) -> String {
        format!("e.e{at}::{}", self.fields[at].base.quoted())
    }

    /// The hash of a row's key; of a keyless row, of its whole image. `prefix` and a number name a column.
    pub fn key_hash(&self, prefix: &str) -> String {
        let canonical = |at: &usize| text_of(&self.fields[*at].base, &format!("{prefix}{at}"));
        match self.key.as_slice() {
            [only] => self.lane.of(&canonical(only), "0"),
            [] => {
                // Each part with its length, so that ('a', 'bc') is not ('ab', 'c').
                let parts: Vec<String> = (0..self.fields.len())
                    .map(|at| {
                        let text = canonical(&at);
                        format!("coalesce(pg_catalog.length({text})::text || ':' || {text}, 'n')")
                    })
                    .collect();
                self.lane.of(&joined(&parts), "0")
            }
            several => {
                let parts: Vec<String> = several
                    .iter()
                    .map(|at| {
                        let text = canonical(at);
                        format!("pg_catalog.length({text})::text || ':' || {text}")
                    })
                    .collect();
                self.lane.of(&joined(&parts), "0")
            }
        }
    }

    /// The hash of one value, keyed by its row. In a keyless table it is not: the row's own hash is.
    pub fn value_hash(&self, at: usize) -> String {
        let text = text_of(&self.fields[at].base, &format!("s.c{at}"));
        let (value, null) = if self.keyless() {
            (at.to_string(), (at as i64 | NULL_SEED).to_string())
        } else {
            (format!("s.kh # {at}"), format!("s.kh # {}", at as i64 | NULL_SEED))
        };
        format!("coalesce({}, {})", self.lane.of(&text, &value), self.lane.of("''::text", &null))
    }

    /// Columns with a sum of their own: all but the key's, whose sum is that of the key hashes.
    pub fn summed(&self) -> Vec<usize> {
        (0..self.fields.len()).filter(|at| !self.key.contains(at)).collect()
    }

    /// Columns that a scan sums.
    pub fn scanned(&self) -> Vec<usize> {
        if self.scan.sums { self.summed() } else { Vec::new() }
    }

    /// `count, sum of key hashes, counts as a list, sample as json, sum per scanned column` over rows that [`Layout::rows`] or
    /// [`Layout::given_rows`] yield. A filter keeps the sample's texts from being made for the other rows.
    pub fn aggregates(&self, rows: &str) -> String {
        let sums: Vec<String> =
            self.scanned().iter().map(|at| format!(", sum({})::text", self.value_hash(*at))).collect();
        let counts: Vec<String> =
            if self.scan.counts { (0..self.fields.len()).flat_map(|at| self.counts(at)).collect() } else { Vec::new() };
        let sample = match self.scan.sample {
            None => "NULL::text".to_owned(),
            Some(mask) => {
                let (starts, lengths) = self.texts(SAMPLE_CHARACTERS_MAX);
                format!(
                    "(pg_catalog.json_agg(pg_catalog.json_build_array(s.kh, {starts}, {lengths})) \
                     FILTER (WHERE s.kh & {mask} = 0))::text"
                )
            }
        };
        format!(
            "SELECT count(*)::bigint, sum(s.kh)::text, ARRAY[{}]::bigint[], {sample}{} FROM ({rows}) AS s",
            counts.join(", "),
            sums.concat()
        )
    }

    /// Aggregates in the order of [`crate::compare::Counts`]; 0 for what the type does not have.
    fn counts(&self, at: usize) -> [String; 4] {
        let (column, base) = (format!("s.c{at}"), &self.fields[at].base);
        let counted = |condition: String| format!("count(*) FILTER (WHERE {condition})");
        let none = || "0".to_owned();
        let own = base.schema == "pg_catalog";
        let empty = match base.name.as_str() {
            "text" | "varchar" | "bpchar" | "bytea" if own => counted(format!("pg_catalog.octet_length({column}) = 0")),
            name if own && name.starts_with('_') => counted(format!("pg_catalog.cardinality({column}) = 0")),
            _ => none(),
        };
        let (nan, infinite) = match base.name.as_str() {
            "float4" | "float8" | "numeric" if own => {
                (counted(format!("{column} = 'NaN'")), counted(format!("{column} IN ('Infinity', '-Infinity')")))
            }
            "timestamp" | "timestamptz" | "date" if own => {
                (none(), counted(format!("NOT pg_catalog.isfinite({column})")))
            }
            _ => (none(), none()),
        };
        [format!("count(*) - count({column})"), empty, nan, infinite]
    }

    /// The first characters of every column of `s`, and their whole lengths, as two lists.
    fn texts(&self, characters_max: usize) -> (String, String) {
        let texts: Vec<String> =
            (0..self.fields.len()).map(|at| printed(&self.fields[at].base, &format!("s.c{at}"))).collect();
        let starts: Vec<String> =
            texts.iter().map(|text| format!("pg_catalog.left({text}, {characters_max})")).collect();
        let lengths: Vec<String> = texts.iter().map(|text| format!("pg_catalog.length({text})")).collect();
        (format!("ARRAY[{}]::text[]", starts.join(", ")), format!("ARRAY[{}]::bigint[]", lengths.join(", ")))
    }

    /// `bucket, count, sum over all columns` for each bucket of key hashes that has rows.
    pub fn buckets(&self, rows: &str) -> String {
        let mut sums: Vec<String> = vec!["sum(s.kh)".into()];
        if !self.keyless() {
            sums.extend(self.summed().iter().map(|at| format!("sum({})", self.value_hash(*at))));
        }
        format!(
            "SELECT (s.kh & {})::bigint, count(*)::bigint, ({})::text FROM ({rows}) AS s GROUP BY 1",
            BUCKETS - 1,
            sums.join(" + ")
        )
    }

    /// `kh, hashes of the summed columns, key as text` for each row whose bucket is in `$1`.
    pub fn row_hashes(&self, rows: &str) -> String {
        let hashes: Vec<String> = self.summed().iter().map(|at| self.value_hash(*at)).collect();
        let hashes = if self.keyless() { String::new() } else { hashes.join(", ") };
        format!(
            "SELECT s.kh, ARRAY[{hashes}]::bigint[], ARRAY[{}]::text[] FROM ({rows}) AS s WHERE (s.kh & {}) = ANY ($1)",
            self.key_texts("s.c").join(", "),
            BUCKETS - 1
        )
    }

    /// `kh, the first characters of every column, their lengths, key as text` for each row whose key hash is in `$1`, at most
    /// `rows_max` rows.
    pub fn values(&self, rows: &str, characters_max: usize, rows_max: usize) -> String {
        let (starts, lengths) = self.texts(characters_max);
        format!("SELECT s.kh, {starts}, {lengths} FROM ({rows}) AS s WHERE s.kh = ANY ($1) LIMIT {rows_max}")
    }

    /// The key columns as text that their input functions read back.
    pub fn key_texts(&self, prefix: &str) -> Vec<String> {
        self.key.iter().map(|at| printed(&self.fields[*at].base, &format!("{prefix}{at}"))).collect()
    }

    /// Whether a row `left<at>` has the key that is given as text in `e`.
    pub fn same_key(&self, left: impl Fn(usize) -> String) -> String {
        let parts: Vec<String> =
            self.key.iter().map(|at| same(&self.fields[*at].base, &left(*at), &self.given(*at))).collect();
        parts.join(" AND ")
    }

    /// A column of the stored table.
    pub fn stored(&self, at: usize) -> String {
        format!("t.{}", quote_identifier(&self.fields[at].name))
    }
}

/// Whether two expressions of a type are the same key.
pub fn same(base: &BaseType, left: &str, right: &str) -> String {
    if base.compares_without_search_path() {
        return format!("{left} = {right}");
    }
    // The type's own operator is in a schema that the pinned search_path does not hold.
    format!("{} = {}", text_of(base, left), text_of(base, right))
}

fn joined(parts: &[String]) -> String {
    parts.join(" || ',' || ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(schema: &str, name: &str) -> BaseType {
        BaseType { schema: schema.into(), name: name.into(), output: format!("{schema}.{name}_out"), kind: "b".into() }
    }

    fn layout(columns: &[(&str, &str)], key: &[usize]) -> Layout {
        let fields =
            columns.iter().map(|(name, kind)| Field { name: (*name).into(), base: base("pg_catalog", kind) }).collect();
        let table = TableName::new("public", "t");
        let scan = Scan { sums: true, counts: true, sample: Some(7) };
        Layout { table, fields, key: key.to_vec(), partitioned: false, lane: HashLane::Extended, scan }
    }

    #[test]
    fn no_form_depends_on_a_session_setting_that_could_move() {
        assert!(text_of(&base("pg_catalog", "timestamptz"), "x").contains("AT TIME ZONE 'UTC'"));
        assert!(text_of(&base("pg_catalog", "interval"), "x").contains("interval_send"));
        assert!(text_of(&base("pg_catalog", "money"), "x").contains("cash_send"));
    }

    #[test]
    fn blanks_of_a_padded_text_are_kept_and_a_foreign_cast_to_text_is_not_trusted() {
        assert!(text_of(&base("pg_catalog", "bpchar"), "x").contains("bpcharout(x)"));
        assert_eq!(text_of(&base("public", "citext"), "x"), "pg_catalog.textin(public.citext_out(x))");
    }

    #[test]
    fn every_value_is_hashed_under_the_seed_of_its_rows_key() {
        let layout = layout(&[("id", "int8"), ("v", "text")], &[0]);
        assert_eq!(layout.summed(), [1]);
        let sql = layout.aggregates(&layout.rows("true"));
        assert!(sql.contains("hashtextextended(((s.c1)::text) COLLATE \"C\", s.kh # 1)"), "{sql}");
        assert!(sql.contains("hashtextextended(((r.c0)::text) COLLATE \"C\", 0) AS kh"), "{sql}");
        assert!(!sql.contains("bit_xor"), "{sql}");
    }

    #[test]
    fn the_parts_of_a_composite_key_carry_their_lengths() {
        let layout = layout(&[("a", "text"), ("b", "text"), ("c", "text")], &[0, 1]);
        let hash = layout.key_hash("r.c");
        assert!(hash.contains("length((r.c0)::text)::text || ':' ||"), "{hash}");
        assert!(hash.contains("length((r.c1)::text)::text || ':' ||") && !hash.contains("r.c2"), "{hash}");
    }

    #[test]
    fn a_row_without_a_key_is_hashed_whole_and_its_nulls_are_marked() {
        let layout = layout(&[("a", "text"), ("b", "int4")], &[]);
        let hash = layout.key_hash("r.c");
        assert!(hash.contains("r.c0") && hash.contains("r.c1") && hash.matches("'n')").count() == 2, "{hash}");
        assert_eq!(layout.summed(), [0, 1]);
    }

    #[test]
    fn a_partitioned_table_is_read_with_its_partitions_and_no_other_with_what_inherits_from_it() {
        let mut layout = layout(&[("id", "int8")], &[0]);
        assert!(layout.rows("true").contains("FROM ONLY \"public\".\"t\" AS t"));
        layout.partitioned = true;
        assert!(layout.rows("true").contains("FROM \"public\".\"t\" AS t"));
    }

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let mut layout = layout(&[("a\"b", "text")], &[0]);
        layout.table = TableName::new("S", "x\"; DROP TABLE y; --");
        let sql = layout.rows("true");
        assert!(sql.contains("t.\"a\"\"b\" AS c0") && sql.contains("\"S\".\"x\"\"; DROP TABLE y; --\""), "{sql}");
    }
}
