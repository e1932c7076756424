//! What probably happened to a value that differs: an explanation, never a judgement. Pure.

use changelog::text::{parse_timestamp, parse_timestamptz};

use crate::definition::BaseType;

/// A cause and, where it has a parameter, the parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    pub name: &'static str,
    pub detail: Option<String>,
}

impl From<&'static str> for Cause {
    fn from(name: &'static str) -> Cause {
        Cause { name, detail: None }
    }
}

/// The two texts of one value, and what only a server could say of them.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    pub source: Option<&'a str>,
    pub target: Option<&'a str>,
    /// Equal under Unicode NFC.
    pub same_normalized: bool,
}

/// The cause that fits, or `value_differs`.
pub fn of(base: &BaseType, pair: Pair<'_>) -> Cause {
    let (source, target) = match (pair.source, pair.target) {
        (Some(""), None) | (None, Some("")) => return "null_vs_empty".into(),
        (Some(_), None) => return "value_became_null".into(),
        (None, Some(_)) => return "null_became_value".into(),
        (None, None) => return "value_differs".into(),
        (Some(source), Some(target)) => (source, target),
    };
    match base.name.as_str() {
        "numeric" => of_numbers(source, target),
        "float4" | "float8" => of_floats(source, target),
        "timestamptz" | "timestamp" => of_timestamps(source, target),
        "json" | "jsonb" => of_json(source, target),
        "text" | "varchar" | "bpchar" | "citext" | "name" => of_texts(source, target, pair.same_normalized),
        _ => "value_differs".into(),
    }
}

/// Sign, digits and exponent of a decimal without what only shows its scale; none for NaN and infinity.
fn significant(text: &str) -> Option<(bool, String, i32)> {
    let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let kept = digits.trim_end_matches('0');
    let exponent = exponent.checked_add(i32::try_from(digits.len() - kept.len()).ok()?)?;
    let kept = kept.trim_start_matches('0');
    if kept.is_empty() { Some((false, String::new(), 0)) } else { Some((negative, kept.to_owned(), exponent)) }
}

fn of_numbers(source: &str, target: &str) -> Cause {
    let (Some(wanted), Some(found)) = (significant(source), significant(target)) else { return "value_differs".into() };
    if wanted == found {
        return "scale_lost".into();
    }
    if near(source, target) { "precision_lost".into() } else { "value_differs".into() }
}

fn of_floats(source: &str, target: &str) -> Cause {
    let zero = |text: &str| matches!(text, "0" | "-0");
    if zero(source) && zero(target) {
        return "negative_zero".into();
    }
    if near(source, target) { "precision_lost".into() } else { "value_differs".into() }
}

/// Equal in about six digits, which is what a float4 keeps.
fn near(source: &str, target: &str) -> bool {
    let (Ok(a), Ok(b)) = (source.parse::<f64>(), target.parse::<f64>()) else { return false };
    a.is_finite() && b.is_finite() && (a - b).abs() <= a.abs().max(b.abs()) * 1e-6
}

fn of_timestamps(source: &str, target: &str) -> Cause {
    let micros = |text: &str| parse_timestamptz(text.as_bytes()).or_else(|| parse_timestamp(text.as_bytes()));
    let (Some(a), Some(b)) = (micros(source), micros(target)) else { return "value_differs".into() };
    let shift = b - a;
    let quarter_hour = 900_000_000;
    if shift != 0 && shift % quarter_hour == 0 && shift.abs() <= 26 * 4 * quarter_hour {
        return Cause { name: "timestamp_shifted", detail: Some(format!("by {} s", shift / 1_000_000)) };
    }
    if shift.abs() < 1_000_000 && (b % 1_000 == 0 || b % 1_000_000 == 0) {
        return "precision_lost".into();
    }
    "value_differs".into()
}

fn of_json(source: &str, target: &str) -> Cause {
    let compact = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    if compact(source) == compact(target) {
        return "json_rewritten".into();
    }
    match (serde_json::from_str::<serde_json::Value>(source), serde_json::from_str::<serde_json::Value>(target)) {
        (Ok(a), Ok(b)) if without_numbers(&a) == without_numbers(&b) => "json_number".into(),
        _ => "value_differs".into(),
    }
}

fn without_numbers(json: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match json {
        Value::Number(_) => Value::from(0),
        Value::Array(items) => items.iter().map(without_numbers).collect(),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), without_numbers(value))).collect(),
        other => other.clone(),
    }
}

fn of_texts(source: &str, target: &str, same_normalized: bool) -> Cause {
    if same_normalized {
        return "unicode_normalization".into();
    }
    if source.trim_end_matches(' ') == target.trim_end_matches(' ') {
        return "padding".into();
    }
    if !target.is_empty() && source.starts_with(target) {
        return "truncated".into();
    }
    if source.to_lowercase() == target.to_lowercase() {
        return "case_changed".into();
    }
    let lost = |c: char| c == '?' || c == '\u{fffd}';
    let same_or_lost = |(a, b): (char, char)| a == b || (!a.is_ascii() && lost(b));
    if source.chars().count() == target.chars().count() && source.chars().zip(target.chars()).all(same_or_lost) {
        return "encoding_lost".into();
    }
    "value_differs".into()
}

/// Values of one column by row, source and target: whether the same values are there in other rows.
pub fn swapped(pairs: &[(Option<String>, Option<String>)]) -> bool {
    let mut source: Vec<&Option<String>> = pairs.iter().map(|(source, _)| source).collect();
    let mut target: Vec<&Option<String>> = pairs.iter().map(|(_, target)| target).collect();
    source.sort_unstable();
    target.sort_unstable();
    pairs.len() > 1 && source == target
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(name: &str, source: Option<&str>, target: Option<&str>) -> Cause {
        let base = BaseType { schema: "pg_catalog".into(), name: name.into(), ..BaseType::default() };
        of(&base, Pair { source, target, same_normalized: false })
    }

    #[test]
    fn common_corruptions_are_recognised() {
        for (kind, source, target, expected) in [
            ("numeric", "1.50", "1.5", "scale_lost"),
            ("numeric", "0.00", "0", "scale_lost"),
            ("numeric", "12345678901234567890.12", "12345678901234567000", "precision_lost"),
            ("numeric", "1.5", "2.5", "value_differs"),
            ("numeric", "NaN", "0", "value_differs"),
            ("float8", "0", "-0", "negative_zero"),
            ("float8", "0.30000000000000004", "0.3", "precision_lost"),
            ("timestamptz", "2024-01-01 00:00:00.123457+00", "2024-01-01 00:00:00.123+00", "precision_lost"),
            ("text", "abc", "abc  ", "padding"),
            ("text", "abcdef", "abc", "truncated"),
            ("text", "Abc", "abc", "case_changed"),
            ("text", "süß", "s??", "encoding_lost"),
            ("text", "ab", "ba", "value_differs"),
            ("jsonb", "{\"a\": 1.00}", "{\"a\": 1}", "json_number"),
            ("json", "{\"a\":1}", "{\"a\": 1}", "json_rewritten"),
            ("bytea", "\\x00", "\\x01", "value_differs"),
        ] {
            assert_eq!(cause(kind, Some(source), Some(target)).name, expected, "{kind} {source} {target}");
        }
        assert_eq!(cause("text", None, Some("")).name, "null_vs_empty");
        assert_eq!(cause("text", Some("x"), None).name, "value_became_null");
        let shifted = cause("timestamptz", Some("2024-01-01 00:00:00+00"), Some("2024-01-01 05:30:00+00"));
        assert_eq!((shifted.name, shifted.detail.as_deref()), ("timestamp_shifted", Some("by 19800 s")));
    }

    #[test]
    fn values_that_stand_in_each_others_rows_are_swapped() {
        let pair = |a: &str, b: &str| (Some(a.to_owned()), Some(b.to_owned()));
        assert!(swapped(&[pair("x", "y"), pair("y", "x")]));
        assert!(!swapped(&[pair("x", "y"), pair("y", "z")]));
        assert!(!swapped(&[pair("x", "x")]));
    }
}
