//! Texts from the databases, made fit to be looked at: what cannot be seen is named, and what differs is marked. Pure.
//!
//! Names and values may hold anything, so that none may be put on the page but through here and maud, which escapes it.

use maud::{Markup, html};
use serde_json::Value as Json;

use crate::report::RecordValue;

/// Characters of a value before the difference and from it on.
const BEFORE_MAX: usize = 40;
const FROM_MAX: usize = 160;
/// Code points named below a difference that the eye may not see.
const POINTS_MAX: usize = 4;

/// Not seen, or moving what stands around it: controls, directions, joiners, and what no text should have.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e0fff}')
}

fn point(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

fn seen(c: char, within_difference: bool, into: &mut String) {
    match c {
        ' ' if within_difference => into.push('␣'),
        '\u{a0}' if within_difference => into.push_str("⟨U+00A0⟩"),
        '\n' => into.push('⏎'),
        '\r' => into.push('␍'),
        '\t' => into.push('⇥'),
        c if is_invisible(c) => into.push_str(&format!("⟨{}⟩", point(c))),
        c => into.push(c),
    }
}

/// A name or a text in which everything can be seen.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| seen(c, false, &mut out));
    out
}

/// The same, cut.
pub fn brief(text: &str, characters_max: usize) -> String {
    let whole = shown(text);
    if whole.chars().count() <= characters_max {
        return whole;
    }
    whole.chars().take(characters_max.saturating_sub(1)).chain(['…']).collect()
}

/// A key of one column as its text, of several in parentheses.
pub fn key(key: &Json) -> String {
    match key {
        Json::Null => "null".into(),
        Json::String(text) => brief(text, 120),
        Json::Array(parts) => {
            let parts: Vec<String> =
                parts.iter().map(|part| part.as_str().map_or_else(|| "null".into(), |part| brief(part, 80))).collect();
            format!("({})", parts.join(", "))
        }
        other => other.to_string(),
    }
}

/// A sentence begins with a capital.
pub fn sentence(words: &str) -> String {
    let mut characters = words.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// An argument of a shell.
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// What the two sides of a record hold, the difference marked.
pub fn compared(
    source: Option<&RecordValue>,
    target: Option<&RecordValue>,
    differs_at: Option<u64>,
) -> (Markup, Markup) {
    let texts = source.and_then(|value| value.text.as_deref()).zip(target.and_then(|value| value.text.as_deref()));
    let Some((of_source, of_target)) = texts else { return (alone(source), alone(target)) };
    let (a, b): (Vec<char>, Vec<char>) = (of_source.chars().collect(), of_target.chars().collect());
    let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let is_whole = |value: Option<&RecordValue>, kept: &[char]| {
        value.and_then(|value| value.length).is_none_or(|length| length <= kept.len() as u64)
    };
    let both_whole = is_whole(source, &a) && is_whole(target, &b);
    if common == a.len() && common == b.len() {
        let at = differs_at.map_or_else(String::new, |at| format!(" from character {} on", at + 1));
        let note = format!("differs{at}, behind what is kept here");
        return (beginning(&a, &note), beginning(&b, &note));
    }
    let room = a.len().min(b.len()) - common;
    let tail =
        if both_whole { a.iter().rev().zip(b.iter().rev()).take(room).take_while(|(a, b)| a == b).count() } else { 0 };
    let middle = |kept: &[char]| (common, kept.len() - tail);
    let points = points(&a[common..a.len() - tail], &b[common..b.len() - tail]);
    let side = |kept: &[char], whole: bool, points: Option<&String>| marked(kept, middle(kept), whole, points);
    (
        side(&a, is_whole(source, &a), points.as_ref().map(|(a, _)| a)),
        side(&b, is_whole(target, &b), points.as_ref().map(|(_, b)| b)),
    )
}

/// Code points of the two differences, if the eye could miss it.
fn points(source: &[char], target: &[char]) -> Option<(String, String)> {
    let plain = |c: &char| (' '..='~').contains(c);
    if source.iter().chain(target).take(2 * POINTS_MAX).all(plain) {
        return None;
    }
    let named = |side: &[char]| {
        let more = if side.len() > POINTS_MAX { " …" } else { "" };
        side.iter().take(POINTS_MAX).map(|c| point(*c)).collect::<Vec<String>>().join(" ") + more
    };
    Some((named(source), named(target)))
}

fn written(characters: &[char], within_difference: bool) -> String {
    let mut out = String::new();
    characters.iter().for_each(|c| seen(*c, within_difference, &mut out));
    out
}

fn beginning(kept: &[char], note: &str) -> Markup {
    let cut = kept.len().min(BEFORE_MAX);
    html! { code.value { (written(&kept[..cut], false)) "…" } span.note { (note) } }
}

fn marked(kept: &[char], (from, to): (usize, usize), whole: bool, points: Option<&String>) -> Markup {
    let start = from.saturating_sub(BEFORE_MAX);
    let end = kept.len().min(from + FROM_MAX);
    let to = to.min(end).max(from);
    html! {
        code.value {
            @if start > 0 { "…" }
            (written(&kept[start..from], false))
            @if to > from { mark { (written(&kept[from..to], true)) } } @else { mark.gap title="nothing stands here" { "‸" } }
            (written(&kept[to..end], false))
            @if end < kept.len() || !whole { "…" }
        }
        @if let Some(points) = points.filter(|points| !points.is_empty()) { span.note { (points) } }
    }
}

/// A masked value, null, or a value without its twin.
fn alone(value: Option<&RecordValue>) -> Markup {
    let Some(value) = value else { return html! { span.absent { "–" } } };
    let length = value.length.map(|length| super::number::counted(length, "character", "characters"));
    html! {
        @match (&value.text, length) {
            (Some(text), _) => code.value { (brief(text, BEFORE_MAX + FROM_MAX)) },
            (None, Some(length)) => span.masked { (shown(&value.kind)) ", " (length) },
            (None, None) => span.absent { (shown(&value.kind)) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> RecordValue {
        RecordValue { kind: "text".into(), length: Some(text.chars().count() as u64), text: Some(text.into()) }
    }

    fn both(source: &str, target: &str) -> (String, String) {
        let (a, b) = compared(Some(&value(source)), Some(&value(target)), None);
        (a.into_string(), b.into_string())
    }

    #[test]
    fn what_differs_is_marked_and_what_cannot_be_seen_is_named() {
        assert_eq!(both("Code 3", "code 3").0, "<code class=\"value\"><mark>C</mark>ode 3</code>");
        assert!(both("a  ", "a").0.contains("a<mark>␣␣</mark>"));
        assert!(both("a  ", "a").1.contains("a<mark class=\"gap\""));
        let (composed, apart) = both("Zo\u{eb}", "Zoe\u{308}");
        assert!(composed.contains("U+00EB") && apart.contains("U+0065 U+0308"), "{apart}");
        assert!(both("a\u{202e}b", "ab").0.contains("⟨U+202E⟩"));
    }

    #[test]
    fn a_value_cannot_write_html() {
        let (a, b) = both("</script><script>alert(1)</script>", "<b onclick='x'>");
        assert!(!(a + &b).contains("<b ") && !both("<script>", "x").0.contains("<script"));
    }

    #[test]
    fn a_long_value_is_shown_around_its_difference() {
        let long = "x".repeat(400);
        let (a, _) = both(&format!("{long}a{long}"), &format!("{long}b{long}"));
        assert!(a.contains("…") && a.contains("<mark>a</mark>") && a.chars().count() < 300, "{a}");
        let cut = |text: &str| RecordValue { length: Some(9_000), ..value(text) };
        let (a, _) = compared(Some(&cut(&long)), Some(&cut(&long)), Some(3499));
        assert!(a.into_string().contains("from character 3500 on"));
    }

    #[test]
    fn a_masked_value_is_its_kind_and_length() {
        let masked = RecordValue { text: None, ..value("secret") };
        let null = RecordValue { kind: "null".into(), length: None, text: None };
        let (a, b) = compared(Some(&masked), Some(&null), Some(0));
        assert_eq!(
            (a.into_string(), b.into_string()),
            ("<span class=\"masked\">text, 6 characters</span>".into(), "<span class=\"absent\">null</span>".into())
        );
    }

    #[test]
    fn an_argument_is_one_word_for_a_shell() {
        assert_eq!(
            (quoted("public.orders"), quoted("public.it's; rm")),
            ("public.orders".into(), r"'public.it'\''s; rm'".into())
        );
    }
}
