//! Key ranges: half-open on the left, without gaps, the first and the last without an end, so that no row of either side
//! is outside of all of them. Boundaries are keys of the source; any key is a valid boundary, so they need no snapshot.
//!
//! A range means the same rows on both sides only if both order the key alike. Texts are ordered by their collation, whose
//! rules change with its provider's version: where these are not known to be equal, the table is one range.

use std::sync::Arc;

use changelog::table::quote_literal;

use crate::Error;
use crate::canonical::{Layout, printed, same};
use crate::definition::TableDefinition;
use crate::session::{Session, statement};

/// Rows with a key above `after` and at or below `through`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub after: Option<Vec<String>>,
    pub through: Option<Vec<String>>,
    /// What it was planned for.
    pub rows: u64,
    /// Only rows with one of these keys.
    pub keys: Option<Arc<[Vec<String>]>>,
}

impl Range {
    pub fn everything(&self) -> bool {
        self.after.is_none() && self.through.is_none() && self.keys.is_none()
    }

    /// Rows with one of these keys.
    pub fn of(keys: &[Vec<String>]) -> Range {
        Range { rows: keys.len() as u64, keys: Some(keys.into()), ..Range::default() }
    }

    /// As a condition over the key; `column` says how column `at` is called.
    pub fn condition(&self, layout: &Layout, column: impl Fn(usize) -> String) -> String {
        let columns: Vec<String> = layout.key.iter().map(|at| column(*at)).collect();
        let literals = |key: &[String]| {
            let typed = |(at, text): (&usize, &String)| {
                format!("{}::{}", quote_literal(text), layout.fields[*at].base.quoted())
            };
            layout.key.iter().zip(key).map(typed).collect::<Vec<_>>().join(", ")
        };
        let compared = |operator: &str, key: &[String]| match columns.as_slice() {
            [only] => format!("{only} {operator} {}", literals(key)),
            several => format!("({}) {operator} ({})", several.join(", "), literals(key)),
        };
        let ends = [
            self.after.as_deref().map(|key| compared(">", key)),
            self.through.as_deref().map(|key| compared("<=", key)),
        ];
        let keys = self.keys.as_deref().map(|keys| {
            let list = |place: usize| {
                let texts: Vec<String> =
                    keys.iter().filter_map(|key| key.get(place)).map(|text| quote_literal(text)).collect();
                format!("ARRAY[{}]::text[]", texts.join(","))
            };
            let lists: Vec<String> = (0..layout.key.len()).map(list).collect();
            let names: Vec<String> = (0..layout.key.len()).map(|place| format!("g{place}")).collect();
            let same = layout.key.iter().enumerate().map(|(place, at)| {
                let base = &layout.fields[*at].base;
                same(base, &column(*at), &format!("g.g{place}::{}", base.quoted()))
            });
            let same = same.collect::<Vec<_>>().join(" AND ");
            format!("EXISTS (SELECT FROM unnest({}) AS g({}) WHERE {same})", lists.join(", "), names.join(", "))
        });
        let ends: Vec<String> = ends.into_iter().flatten().chain(keys).collect();
        if ends.is_empty() { "true".into() } else { ends.join(" AND ") }
    }
}

/// Whether both sides order the key alike.
pub fn orders_agree(source: &TableDefinition, target: &TableDefinition) -> bool {
    !source.key.is_empty()
        && source.key.iter().all(|name| {
            let (Some(a), Some(b)) = (source.column(name), target.column(name)) else { return false };
            a.base.compares_without_search_path()
                && (&a.base.schema, &a.base.name, &a.labels) == (&b.base.schema, &b.base.name, &b.labels)
                && a.order.is_some()
                && a.order == b.order
        })
}

/// Hands out the ranges of one table.
#[derive(Debug)]
pub struct Planner {
    after: Option<Vec<String>>,
    finished: bool,
    /// Parts of ranges that were too busy, to be done first.
    parts: Vec<Range>,
    rows: u64,
    /// Whether the table may be cut at all.
    divisible: bool,
}

impl Planner {
    pub fn new(rows: u64, divisible: bool) -> Planner {
        Planner { after: None, finished: false, parts: Vec::new(), rows, divisible }
    }

    /// Of these ranges and no others.
    pub fn of(parts: Vec<Range>) -> Planner {
        Planner { after: None, finished: true, parts, rows: 0, divisible: false }
    }

    /// The next range; none when all were handed out.
    ///
    /// # Errors
    /// `Database`.
    pub async fn next(&mut self, source: &mut Session, layout: &Layout) -> Result<Option<Range>, Error> {
        if let Some(part) = self.parts.pop() {
            return Ok(Some(part));
        }
        if self.finished {
            return Ok(None);
        }
        let mut range = Range { after: self.after.take(), through: None, rows: self.rows, keys: None };
        if self.divisible {
            range.through = boundary(source, layout, &range, self.rows).await?;
        }
        self.after.clone_from(&range.through);
        self.finished = range.through.is_none();
        Ok(Some(range))
    }

    /// Cuts a range in two that will be handed out; false if it cannot be cut.
    ///
    /// # Errors
    /// `Database`.
    pub async fn split(&mut self, source: &mut Session, layout: &Layout, range: &Range) -> Result<bool, Error> {
        let half = range.rows / 2;
        if !self.divisible || half < crate::config::CHUNK_ROWS_MIN {
            return Ok(false);
        }
        let Some(middle) = boundary(source, layout, range, half).await? else { return Ok(false) };
        let lower = Range { after: range.after.clone(), through: Some(middle.clone()), rows: half, keys: None };
        self.parts.push(Range { after: Some(middle), through: range.through.clone(), rows: half, keys: None });
        self.parts.push(lower);
        Ok(true)
    }
}

/// The key of the `rows`th row of a range; none if it has fewer.
async fn boundary(
    source: &mut Session,
    layout: &Layout,
    range: &Range,
    rows: u64,
) -> Result<Option<Vec<String>>, Error> {
    let doing = format!("cutting {} into ranges", layout.table);
    let stored: Vec<String> = layout.key.iter().map(|at| layout.stored(*at)).collect();
    let texts: Vec<String> =
        layout.key.iter().map(|at| printed(&layout.fields[*at].base, &layout.stored(*at))).collect();
    let sql = format!(
        "SELECT ARRAY[{}]::text[] FROM {} AS t WHERE {} ORDER BY {} OFFSET {} LIMIT 1",
        texts.join(", "),
        layout.relation(),
        range.condition(layout, |at| layout.stored(at)),
        stored.join(", "),
        rows.saturating_sub(1)
    );
    let found = source.rows(&doing, statement(sql)).await?;
    found.first().map(|row| source.get::<Vec<String>>(&doing, row, 0)).transpose()
}

#[cfg(test)]
mod tests {
    use changelog::TableName;

    use super::*;
    use crate::canonical::{Field, HashLane};
    use crate::definition::BaseType;

    #[test]
    fn ranges_meet_without_gap_or_overlap() {
        let base = |name: &str| BaseType { schema: "pg_catalog".into(), name: name.into(), ..BaseType::default() };
        let field = |name: &str, kind: &str| Field { name: name.into(), base: base(kind) };
        let layout = Layout {
            table: TableName::new("public", "t"),
            fields: vec![field("a", "int8"), field("b", "text")],
            key: vec![0, 1],
            partitioned: false,
            lane: HashLane::Extended,
            scan: crate::canonical::Scan { sums: true, counts: false, sample: None },
        };
        let key = vec!["7".to_owned(), "it's".to_owned()];
        let first = Range { after: None, through: Some(key.clone()), rows: 1, keys: None };
        let last = Range { after: Some(key.clone()), through: None, rows: 1, keys: None };
        let named = |at| format!("c{at}");
        assert_eq!(
            first.condition(&layout, named),
            "(c0, c1) <= ('7'::\"pg_catalog\".\"int8\", 'it''s'::\"pg_catalog\".\"text\")"
        );
        assert!(last.condition(&layout, named).starts_with("(c0, c1) > ("));
        assert_eq!(Range::default().condition(&layout, named), "true");
        assert_eq!(
            Range::of(&[key]).condition(&layout, named),
            "EXISTS (SELECT FROM unnest(ARRAY['7']::text[], ARRAY['it''s']::text[]) AS g(g0, g1) \
             WHERE c0 = g.g0::\"pg_catalog\".\"int8\" AND c1 = g.g1::\"pg_catalog\".\"text\")"
        );
    }
}
