//! What probably happened to values that differ: an explanation, never a judgement. Pure.
//!
//! [`hypotheses`] looks at one value and yields every cause that fits, the most specific first. A column is then explained by
//! the few causes that fit most of its rows ([`column::of`]): one value alone is often ambiguous (1234.57 for 1234.5678 is
//! rounded to two places, or went through a float4), a hundred of them are not.
//! No value may be in a cause's words: only shapes of it, as digits, lengths and seconds.

mod arrays;
mod binary;
pub mod column;
mod json;
mod numbers;
mod others;
mod texts;
mod times;
pub mod words;

use crate::definition::BaseType;

pub use times::micros as micros_of;

/// Fits every pair.
pub const DIFFERS: &str = "value_differs";

/// A cause with its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    pub name: &'static str,
    /// Words before a number, the number, words behind it.
    pub detail: (&'static str, Option<i64>, &'static str),
}

impl From<&'static str> for Cause {
    fn from(name: &'static str) -> Cause {
        Cause { name, detail: ("", None, "") }
    }
}

impl Cause {
    fn with(name: &'static str, before: &'static str, number: i64, after: &'static str) -> Cause {
        Cause { name, detail: (before, Some(number), after) }
    }

    fn saying(name: &'static str, words: &'static str) -> Cause {
        Cause { name, detail: (words, None, "") }
    }
}

/// What a column is on the two sides.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    pub source: &'a BaseType,
    pub target: &'a BaseType,
    /// Labels of an enum on the source, in order.
    pub labels: &'a [String],
}

/// The beginning of a value as text, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    pub start: &'a str,
    /// In characters, of the whole.
    pub length: u64,
}

impl<'a> Text<'a> {
    pub fn whole(text: &'a str) -> Text<'a> {
        Text { start: text, length: text.chars().count() as u64 }
    }

    fn is_whole(&self) -> bool {
        self.start.chars().count() as u64 >= self.length
    }
}

/// A value as it was read: its beginning, and its length in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub start: String,
    pub length: u64,
}

impl Read {
    pub fn text(&self) -> Text<'_> {
        Text { start: &self.start, length: self.length }
    }
}

/// The causes that fit, the most specific first; never empty.
pub fn hypotheses(kind: Kind<'_>, source: Option<Text<'_>>, target: Option<Text<'_>>) -> Vec<Cause> {
    let mut causes = match (source, target) {
        (Some(source), Some(target)) => of_values(kind, source, target),
        (Some(source), None) => {
            of_null(kind, source, ["empty_became_null", "json_null_became_null", "value_became_null"])
        }
        (None, Some(target)) => {
            of_null(kind, target, ["null_became_empty", "null_became_json_null", "null_became_value"])
        }
        (None, None) => Vec::new(),
    };
    causes.push(DIFFERS.into());
    causes
}

fn of_null(kind: Kind<'_>, text: Text<'_>, [empty, json_null, value]: [&'static str; 3]) -> Vec<Cause> {
    let json = matches!(kind.source.name.as_str(), "json" | "jsonb");
    vec![match text.start {
        "" => empty.into(),
        "null" if json => json_null.into(),
        "NULL" | "null" | "\\N" | "None" | "nil" if value == "null_became_value" => "null_became_text".into(),
        _ => value.into(),
    }]
}

fn of_values(kind: Kind<'_>, source: Text<'_>, target: Text<'_>) -> Vec<Cause> {
    let (a, b) = (source.start, target.start);
    if a == b {
        return texts::beyond(source, target);
    }
    // Of a value that was cut here only its beginning can be parsed.
    let whole = source.is_whole() && target.is_whole();
    let name = kind.source.name.as_str();
    match name {
        _ if name.starts_with('_') && whole => arrays::of(kind, a, b),
        "int2" | "int4" | "int8" | "oid" | "numeric" | "float4" | "float8" => numbers::of(name, a, b),
        "money" => numbers::of_money(a, b),
        "timestamptz" | "timestamp" | "date" | "time" | "timetz" => times::of(name, a, b),
        "interval" => times::of_intervals(a, b),
        "json" | "jsonb" if whole => json::of(a, b),
        "bytea" => binary::of(source, target),
        "bool" => others::of_booleans(a, b),
        "uuid" => others::of_uuids(a, b),
        "inet" | "cidr" => others::of_addresses(a, b),
        "bit" | "varbit" => others::of_bits(a, b),
        _ if kind.source.kind == "e" => others::of_enums(kind.labels, a, b),
        _ if kind.source.kind == "r" || kind.source.kind == "m" => others::of_ranges(a, b),
        _ => texts::of(source, target),
    }
}

#[cfg(test)]
mod tests;
