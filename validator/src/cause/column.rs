//! A column's differing values together: which few causes explain most of them, and what only several rows can show. Pure.

use std::collections::{BTreeMap, HashMap};

use super::times::{self, Moment};
use super::{Cause, DIFFERS, Kind, Text, hypotheses};

/// One value that differs.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub source: Option<Text<'a>>,
    pub target: Option<Text<'a>>,
}

/// What is known of the column beside the values that differ.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub kind: Kind<'a>,
    /// Default expressions of both sides.
    pub defaults: [Option<&'a str>; 2],
    /// A value of the column is equal on both sides somewhere.
    pub some_equal: bool,
}

/// Some of the rows, and what explains them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub name: &'static str,
    pub detail: Option<String>,
    /// Places in the given rows.
    pub rows: Vec<usize>,
}

/// Causes that say little, so that what several rows show is better.
fn weak(name: &str) -> bool {
    const WEAK: [&str; 15] = [
        DIFFERS,
        "time_shifted",
        "day_shifted",
        "time_zone_changed",
        "sign_changed",
        "multiplied",
        "null_became_value",
        "value_became_null",
        "enum_label_changed",
        "enum_label_moved",
        "range_moved",
        "json_number_changed",
        "precision_lost",
        "text_appended",
        "array_element_changed",
    ];
    WEAK.contains(&name)
}

/// Every row in exactly one of the explanations, the one with most rows first.
pub fn of(facts: Facts<'_>, rows: &[Row<'_>]) -> Vec<Explained> {
    let possible: Vec<Vec<Cause>> = rows.iter().map(|row| hypotheses(facts.kind, row.source, row.target)).collect();
    let strong = |causes: &Vec<Cause>| causes.iter().any(|cause| !weak(cause.name));
    let mostly_strong = possible.iter().filter(|causes| strong(causes)).count() * 2 > rows.len();
    if !mostly_strong && let Some((name, detail)) = together(facts, rows) {
        return vec![Explained { name, detail, rows: (0..rows.len()).collect() }];
    }
    cover(&possible)
}

/// The cause that fits most rows takes them, then the next, until none is left.
fn cover(possible: &[Vec<Cause>]) -> Vec<Explained> {
    let mut left: Vec<usize> = (0..possible.len()).collect();
    let mut explained = Vec::new();
    while !left.is_empty() {
        let mut fitting: HashMap<(&str, &str, &str), (usize, usize)> = HashMap::new();
        for at in &left {
            for (rank, cause) in possible[*at].iter().enumerate().filter(|(_, cause)| cause.name != DIFFERS) {
                let (count, best) = fitting.entry((cause.name, cause.detail.0, cause.detail.2)).or_insert((0, rank));
                *count += 1;
                *best = (*best).min(rank);
            }
        }
        let most = fitting.into_iter().max_by_key(|(key, (count, rank))| (*count, std::cmp::Reverse((*rank, *key))));
        let Some((key, _)) = most else {
            explained.push(plain(possible, std::mem::take(&mut left)));
            break;
        };
        let fits = |at: &usize| possible[*at].iter().find(|c| (c.name, c.detail.0, c.detail.2) == key).copied();
        let (rows, others): (Vec<usize>, Vec<usize>) = left.iter().partition(|at| fits(at).is_some());
        left = others;
        let causes: Vec<Cause> = rows.iter().filter_map(fits).collect();
        explained.push(Explained { name: causes[0].name, detail: detail(&causes), rows });
    }
    explained.sort_by_key(|part| std::cmp::Reverse(part.rows.len()));
    explained
}

fn plain(possible: &[Vec<Cause>], rows: Vec<usize>) -> Explained {
    let causes: Vec<Cause> = rows.iter().filter_map(|at| possible[*at].last().copied()).collect();
    Explained { name: DIFFERS, detail: detail(&causes), rows }
}

/// The common words, with the least and the greatest of their numbers.
fn detail(causes: &[Cause]) -> Option<String> {
    let (before, _, after) = causes.first()?.detail;
    let numbers = causes.iter().filter_map(|cause| cause.detail.1);
    match (numbers.clone().min(), numbers.max()) {
        (Some(least), Some(most)) if least == most => Some(format!("{before}{least}{after}")),
        (Some(least), Some(most)) => Some(format!("{before}{least} to {most}{after}")),
        _ if before.is_empty() => None,
        _ => Some(before.to_owned()),
    }
}

/// What only several rows together show.
fn together(facts: Facts<'_>, rows: &[Row<'_>]) -> Option<(&'static str, Option<String>)> {
    let start = |text: &Option<Text<'_>>| text.map(|text| text.start.to_owned());
    let source: Vec<Option<String>> = rows.iter().map(|row| start(&row.source)).collect();
    let target: Vec<Option<String>> = rows.iter().map(|row| start(&row.target)).collect();
    if let Some(found) = defaulted(facts, &source, &target) {
        return Some(found);
    }
    if rows.len() < 2 {
        return None;
    }
    if let Some(found) = offset(facts, rows) {
        return Some(found);
    }
    for (words, ahead, behind) in
        [("down, with its neighbours' values", &source, &target), ("up, with its neighbours' values", &target, &source)]
    {
        let moved = ahead.iter().zip(&behind[1..]).filter(|(a, b)| a == b).count();
        if rows.len() >= 3 && moved * 10 >= (rows.len() - 1) * 9 {
            return Some(("shifted_by_a_row", Some(words.to_owned())));
        }
    }
    let sorted = |values: &[Option<String>]| {
        let mut values = values.to_vec();
        values.sort_unstable();
        values
    };
    // Of two values in all rows, an exchange is an inversion as well.
    let boolean = facts.kind.source.name == "bool";
    if !boolean && sorted(&source) == sorted(&target) {
        return Some(("swapped_between_rows", None));
    }
    let mut found = sorted(&target);
    found.dedup();
    let mut wanted = sorted(&source);
    wanted.dedup();
    if rows.len() >= 3 && found.len() == 1 && wanted.len() > 1 && found[0].is_some() {
        return Some(("one_value_in_all_rows", Some(format!("on all {} rows examined", rows.len()))));
    }
    None
}

/// Nulls that became a default, or one and the same value.
fn defaulted(
    facts: Facts<'_>,
    source: &[Option<String>],
    target: &[Option<String>],
) -> Option<(&'static str, Option<String>)> {
    if source.iter().any(Option::is_some) {
        return None;
    }
    let first = target.first()?.as_ref().filter(|_| target.iter().all(|value| *value == target[0]))?;
    let literal = |expression: &str| {
        let bare = expression.split("::").next().unwrap_or(expression);
        bare.trim_matches('\'').to_owned()
    };
    let is_default = facts.defaults.iter().flatten().any(|expression| literal(expression) == *first);
    if is_default {
        return Some(("null_became_default", None));
    }
    (target.len() >= 2 && !first.is_empty()).then_some(("null_became_one_value", None))
}

/// Times, dates or numbers that are all off alike.
fn offset(facts: Facts<'_>, rows: &[Row<'_>]) -> Option<(&'static str, Option<String>)> {
    let texts = rows.iter().map(|row| row.source.zip(row.target)).collect::<Option<Vec<_>>>()?;
    let count = rows.len();
    match facts.kind.source.name.as_str() {
        "timestamptz" | "timestamp" | "date" | "time" | "timetz" => {
            let shifts = texts.iter().map(|(a, b)| times::shift(a.start, b.start)).collect::<Option<Vec<_>>>()?;
            if shifts.iter().all(|shift| *shift == shifts[0]) && shifts[0] != 0 {
                let hour = shifts[0].abs() == 3_600_000_000;
                let moments = texts.iter().filter_map(|(a, _)| Moment::parse(a.start));
                let summer = moments.clone().count() == count && moments.into_iter().all(|moment| moment.summer().0);
                if hour && summer && facts.some_equal {
                    return Some((
                        "daylight_saving_offset",
                        Some(format!("one hour, only in summer: {count} rows examined")),
                    ));
                }
                return Some((
                    "constant_offset",
                    Some(format!("of {} on all {count} rows examined", clock(shifts[0]))),
                ));
            }
            seasons(&texts, &shifts)
        }
        "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" if count >= 3 => {
            let difference =
                |(a, b): &(Text<'_>, Text<'_>)| Some(b.start.parse::<f64>().ok()? - a.start.parse::<f64>().ok()?);
            let differences = texts.iter().map(difference).collect::<Option<Vec<f64>>>()?;
            let alike = |other: &f64| (other - differences[0]).abs() <= differences[0].abs() * 1e-9;
            (differences[0] != 0.0 && differences.iter().all(alike))
                .then(|| ("constant_offset", Some(format!("the same difference on all {count} rows examined"))))
        }
        _ => None,
    }
}

/// Two offsets an hour apart, the one in winter and the other in summer: a local time taken for another.
fn seasons(texts: &[(Text<'_>, Text<'_>)], shifts: &[i64]) -> Option<(&'static str, Option<String>)> {
    let mut by_shift: BTreeMap<i64, Vec<(bool, bool)>> = BTreeMap::new();
    for ((source, _), shift) in texts.iter().zip(shifts) {
        by_shift.entry(*shift).or_default().push(Moment::parse(source.start)?.summer());
    }
    let of = by_shift.into_iter().collect::<Vec<_>>();
    let [(a, of_a), (b, of_b)] = of.as_slice() else { return None };
    let (winter, summer) = if of_a.iter().any(|(_, surely)| *surely) { (of_b, of_a) } else { (of_a, of_b) };
    let fits = winter.iter().all(|(_, surely)| !surely) && summer.iter().all(|(perhaps, _)| *perhaps);
    (b - a == 3_600_000_000 && fits).then(|| {
        let of = |season: &[(bool, bool)]| clock(if std::ptr::eq(season, of_a.as_slice()) { *a } else { *b });
        let words = format!("of {} in winter and {} in summer", of(winter), of(summer));
        ("time_zone_offset", Some(words))
    })
}

/// `-h:mm:ss` of microseconds.
fn clock(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let (seconds, fraction) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    let days = seconds / 86_400;
    let (hours, rest) = (seconds % 86_400 / 3600, seconds % 3600);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
    match days {
        0 => format!("{sign}{hours}:{:02}:{:02}{fraction}", rest / 60, rest % 60),
        _ if rest == 0 && hours == 0 && fraction.is_empty() => format!("{sign}{days} days"),
        _ => format!("{sign}{days} days {hours}:{:02}:{:02}{fraction}", rest / 60, rest % 60),
    }
}

/// Two columns of one row that have each other's values.
pub fn exchanged(a: &Row<'_>, b: &Row<'_>) -> bool {
    a.source == b.target && b.source == a.target
}
