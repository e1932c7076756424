//! Texts: encodings, normal forms, blanks, lengths, quoting. Pure.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

use super::{Cause, Text};

/// Two values whose read beginnings are equal.
pub fn beyond(source: Text<'_>, target: Text<'_>) -> Vec<Cause> {
    if target.length < source.length {
        return vec![Cause::with("truncated", "to ", target.length as i64, " characters")];
    }
    vec![Cause::with(super::DIFFERS, "beyond the first ", source.start.chars().count() as i64, " characters")]
}

pub fn of(source: Text<'_>, target: Text<'_>) -> Vec<Cause> {
    let (a, b) = (source.start, target.start);
    if b.is_empty() {
        return vec!["value_became_empty".into()];
    }
    let mut causes = Vec::new();
    of_encodings(a, b, &mut causes);
    of_lost_characters(a, b, &mut causes);
    of_blanks(a, b, &mut causes);
    of_quoting(a, b, &mut causes);
    of_normal_forms(a, b, &mut causes);
    if a.to_lowercase() == b.to_lowercase() || a.to_uppercase() == b.to_uppercase() {
        let case = if b == a.to_lowercase() {
            "to lower case"
        } else if b == a.to_uppercase() {
            "to upper case"
        } else {
            "here and there"
        };
        causes.push(Cause::saying("case_changed", case));
    }
    of_lengths(source, target, &mut causes);
    if ["true", "t", "1", "y", "yes"].contains(&b) && ["true", "t", "1", "y", "yes"].contains(&a) {
        causes.push("boolean_as_text".into());
    }
    causes
}

fn of_normal_forms(a: &str, b: &str, causes: &mut Vec<Cause>) {
    if a.is_ascii() && b.is_ascii() {
        return;
    }
    let canonical = a.nfc().eq(b.nfc());
    if canonical && b.nfd().eq(b.chars()) {
        causes.push("nfc_became_nfd".into());
    } else if canonical && b.nfc().eq(b.chars()) {
        causes.push("nfd_became_nfc".into());
    } else if canonical {
        causes.push("unicode_normalization".into());
    } else if a.nfkc().eq(b.nfkc()) {
        causes.push("compatibility_characters_replaced".into());
    } else if a.nfd().filter(|c| !is_combining_mark(*c)).eq(b.chars()) {
        causes.push("accents_lost".into());
    }
}

/// Bytes of UTF-8 each taken for a character.
fn misread(text: &str, windows: bool) -> String {
    text.bytes().map(|byte| if windows { of_windows_1252(byte) } else { char::from(byte) }).collect()
}

/// 0x80 to 0x9F in Windows-1252; what it leaves free stands for itself, as browsers have it.
fn of_windows_1252(byte: u8) -> char {
    const HIGH: [u16; 32] = [
        0x20AC, 0x81, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,
        0x017D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A,
        0x0153, 0x9D, 0x017E, 0x0178,
    ];
    match byte {
        0x80..=0x9F => char::from_u32(u32::from(HIGH[usize::from(byte - 0x80)])).unwrap_or('\u{fffd}'),
        _ => char::from(byte),
    }
}

fn of_encodings(a: &str, b: &str, causes: &mut Vec<Cause>) {
    if a.is_ascii() || b.is_ascii() {
        return;
    }
    for (name, windows) in [("utf8_read_as_latin1", false), ("utf8_read_as_windows1252", true)] {
        let once = misread(a, windows);
        if once == b {
            return causes.push(name.into());
        }
        if misread(&once, windows) == b {
            return causes.push(Cause::saying(name, "twice"));
        }
        if misread(b, windows) == a {
            return causes.push(Cause::saying("mojibake_repaired", "the source holds the misread text"));
        }
    }
}

fn of_lost_characters(a: &str, b: &str, causes: &mut Vec<Cause>) {
    let without = |lost: &dyn Fn(char) -> bool| a.chars().filter(|c| !lost(*c)).eq(b.chars());
    if a.chars().any(|c| c > '\u{ffff}') {
        let replaced = |c: char| if c > '\u{ffff}' { None } else { Some(c) };
        let replaced_by = |mark: &str| {
            let text: String = a.chars().map(|c| replaced(c).map_or_else(|| mark.to_owned(), String::from)).collect();
            text == b
        };
        let cut = a.split(|c| c > '\u{ffff}').next() == Some(b);
        if ["", "?", "??", "????", "\u{fffd}", "\u{fffd}\u{fffd}"].iter().any(|mark| replaced_by(mark)) || cut {
            causes.push("beyond_bmp_lost".into());
        }
    }
    if a.chars().count() == b.chars().count() {
        for (mark, words) in [('?', "by '?'"), ('\u{fffd}', "by U+FFFD"), ('\u{1a}', "by the substitute character")] {
            if a.chars().zip(b.chars()).all(|(a, b)| a == b || (!a.is_ascii() && b == mark)) {
                causes.push(Cause::saying("characters_replaced", words));
            }
        }
    } else {
        // One mark for each byte of a character that is not ASCII.
        for mark in ['?', '\u{fffd}'] {
            let marked: String =
                a.chars().flat_map(|c| if c.is_ascii() { vec![c] } else { vec![mark; c.len_utf8()] }).collect();
            if marked == b {
                causes.push(Cause::saying("characters_replaced", "by one mark a byte"));
            }
        }
    }
    let invisible =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}' | '\u{202a}'..='\u{202e}');
    if without(&invisible) {
        causes.push("invisible_characters_lost".into());
    }
    if !a.is_ascii() && without(&|c| !c.is_ascii()) {
        causes.push(Cause::saying("characters_lost", "all that are not ASCII"));
    }
    if a == b.trim_start_matches('\u{feff}') {
        causes.push("byte_order_mark_added".into());
    }
    let returns = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n");
    if returns(a) == returns(b) {
        let words = if b.contains("\r\n") {
            "LF to CRLF"
        } else if a.contains("\r\n") {
            "CRLF to LF"
        } else {
            "CR and LF"
        };
        causes.push(Cause::saying("line_ends_changed", words));
    } else if without(&|c| c.is_control()) || without(&|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        causes.push("control_characters_lost".into());
    }
    let plain = |text: &str| {
        text.chars()
            .map(|c| match c {
                '\u{2018}' | '\u{2019}' => '\'',
                '\u{201c}' | '\u{201d}' => '"',
                '\u{2013}' | '\u{2014}' => '-',
                '\u{a0}' => ' ',
                other => other,
            })
            .collect::<String>()
    };
    if !a.is_ascii() && plain(a) == b {
        causes.push("typographic_characters_replaced".into());
    }
}

fn of_blanks(a: &str, b: &str, causes: &mut Vec<Cause>) {
    let count = |more: &str, less: &str| (more.chars().count() - less.chars().count()) as i64;
    if a.trim_end() == b {
        causes.push(Cause::with("trailing_blanks_lost", "", count(a, b), " blanks"));
    } else if b.trim_end() == a {
        causes.push(Cause::with("blanks_padded", "", count(b, a), " blanks at the end"));
    } else if a.trim_start() == b {
        causes.push(Cause::with("leading_blanks_lost", "", count(a, b), " blanks"));
    } else if b.trim_start() == a {
        causes.push(Cause::with("blanks_padded", "", count(b, a), " blanks in front"));
    } else if a.trim() == b {
        causes.push(Cause::saying("blanks_lost", "at both ends"));
    } else if a.split_whitespace().eq(b.split_whitespace()) {
        causes.push("blanks_collapsed".into());
    }
}

fn of_quoting(a: &str, b: &str, causes: &mut Vec<Cause>) {
    if a.replace('\'', "''") == b || a.replace('"', "\"\"") == b {
        causes.push("quotes_doubled".into());
    } else if a == b.replace('\'', "''") || a == b.replace('"', "\"\"") {
        causes.push("quotes_halved".into());
    } else if a.replace('\\', "\\\\") == b {
        causes.push("backslashes_doubled".into());
    } else if a == b.replace('\\', "\\\\") {
        causes.push("backslashes_halved".into());
    } else if a.replace(['\'', '"'], "") == b {
        causes.push("quotes_lost".into());
    } else if a.replace('\\', "") == b {
        causes.push("backslashes_lost".into());
    } else if a.replace('\'', "\\'") == b || a.replace('"', "\\\"") == b {
        causes.push(Cause::saying("quotes_escaped", "by backslashes"));
    } else if format!("\"{a}\"") == b || format!("'{a}'") == b {
        causes.push("quotes_added".into());
    }
    let unescaped = |text: &str| {
        let names = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&#x27;", "'"), ("&apos;", "'")];
        names.iter().fold(text.to_owned(), |text, (name, plain)| text.replace(name, plain)).replace("&amp;", "&")
    };
    if unescaped(b) == a {
        causes.push("html_escaped".into());
    } else if unescaped(a) == b {
        causes.push("html_unescaped".into());
    }
    let percent = |text: &str, plus: bool| {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            b' ' if plus => "+".into(),
            _ => format!("%{byte:02X}"),
        };
        text.bytes().map(byte).collect::<String>()
    };
    if percent(a, true) == b || percent(a, false) == b {
        causes.push("url_encoded".into());
    }
}

fn of_lengths(source: Text<'_>, target: Text<'_>, causes: &mut Vec<Cause>) {
    let (a, b) = (source.start, target.start);
    if a.starts_with(b) {
        // A limit in bytes ends inside a character; a common one is seen by its number.
        let bytes = b.len() as i64;
        let limits = [255, 256, 1000, 2000, 4000];
        causes.push(if !b.is_ascii() && limits.iter().any(|limit| (limit - 3..=*limit).contains(&bytes)) {
            Cause::with("truncated", "to ", bytes, " bytes")
        } else {
            Cause::with("truncated", "to ", target.length as i64, " characters")
        });
    } else if a.ends_with(b) {
        causes.push(Cause::with(
            "beginning_lost",
            "of ",
            (a.chars().count() - b.chars().count()) as i64,
            " characters",
        ));
    } else if b.starts_with(a) && b.len() > a.len() {
        causes.push(Cause::with("text_appended", "of ", (b.chars().count() - a.chars().count()) as i64, " characters"));
    }
}
