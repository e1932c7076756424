//! Byte strings, printed in hex. Pure.

use super::{Cause, Text};

fn bytes(text: &str) -> Option<Vec<u8>> {
    let hex = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    hex.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

pub fn of(source: Text<'_>, target: Text<'_>) -> Vec<Cause> {
    let (Some(a), Some(b)) = (bytes(source.start), bytes(target.start)) else { return Vec::new() };
    let mut causes = Vec::new();
    if b.is_empty() {
        causes.push("value_became_empty".into());
    }
    let hex: String = a.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(&b).into_owned();
    if text.trim_start_matches("\\x").trim_start_matches("0x").eq_ignore_ascii_case(&hex) {
        causes.push(Cause::saying("bytea_text_kept", "hex digits kept as bytes"));
    } else if !text.is_empty() && text.replace('\n', "") == base64(&a) {
        causes.push(Cause::saying("bytea_text_kept", "base64 kept as bytes"));
    } else if text == escaped(&a, false) || text == escaped(&a, true) {
        causes.push(Cause::saying("bytea_text_kept", "escape format kept as bytes"));
    }
    if !a.is_ascii() && String::from_utf8_lossy(&a).as_bytes() == b {
        causes.push(Cause::saying("bytea_reencoded", "bytes that are no UTF-8 replaced"));
    }
    if !a.is_ascii() && a.iter().map(|byte| char::from(*byte)).collect::<String>().as_bytes() == b {
        causes.push(Cause::saying("bytea_reencoded", "from Latin-1 to UTF-8"));
    }
    let trimmed = a.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    if a[..trimmed] == b[..] && a.len() > b.len() {
        causes.push(Cause::with("trailing_zero_bytes_lost", "", (a.len() - trimmed) as i64, " bytes"));
    } else if a.starts_with(&b) && !b.is_empty() {
        let at_zero = a.get(b.len()) == Some(&0) && !b.contains(&0);
        causes.push(if at_zero {
            Cause::saying("truncated", "at the first zero byte")
        } else {
            // Two characters of `\x` and two for each byte.
            Cause::with("truncated", "to ", (target.length as i64 - 2) / 2, " bytes")
        });
    } else if b.starts_with(&a) {
        let padded = b[a.len()..].iter().all(|byte| *byte == 0 || *byte == b' ');
        causes.push(Cause::with(
            if padded { "bytea_padded" } else { "bytes_appended" },
            "with ",
            (b.len() - a.len()) as i64,
            " bytes",
        ));
    }
    let mut reversed = a.clone();
    reversed.reverse();
    if reversed == b && a != b {
        causes.push("byte_order_changed".into());
    }
    if a.iter().filter(|byte| **byte != b'\r').eq(b.iter().filter(|byte| **byte != b'\r')) {
        causes.push(Cause::saying("line_ends_changed", "CRLF and LF"));
    }
    causes
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let at = |place: usize| u32::from(part.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= part.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// PostgreSQL's escape format, by its `encode`, or by the output function, which escapes control characters as well.
fn escaped(bytes: &[u8], output: bool) -> String {
    let one = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        0x20..=0x7e => char::from(*byte).to_string(),
        0x01..=0x7f if !output => char::from(*byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    bytes.iter().map(one).collect()
}
