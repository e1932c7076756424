//! PostgreSQL's text form to typed values and back, under the pinned session settings (ISO dates, UTC, hex bytea).
//!
//! Strict by design: a parser takes only the very text that its formatter gives back, so that a value is either carried
//! typed and restored to the letter, or carried as text (`Value::Exact`). Nothing is ever approximated.

use std::fmt::Write as _;

use crate::table::{Kind, Value};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0_i64, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar (Howard Hinnant's algorithm, days_from_civil).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year (of the era before: 0 is 1 BC), month and day of days since 1970-01-01 (civil_from_days of the same).
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// `YYYY-MM-DD` of the years 1 to 9999, as days since 1970-01-01.
pub fn parse_date(text: &[u8]) -> Option<i32> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text else { return None };
    let (year, month, day) = (digits(&[y1, y2, y3, y4])?, digits(&[m1, m2])?, digits(&[d1, d2])?);
    if year == 0 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    (civil_from_days(days) == (year, month, day)).then_some(days as i32)
}

/// Days since 1970-01-01 of the years 1 to 9999 as `YYYY-MM-DD`.
pub fn format_date(days: i32, out: &mut String) {
    let (year, month, day) = civil_from_days(i64::from(days));
    let _ = write!(out, "{year:04}-{month:02}-{day:02}");
}

/// `HH:MM:SS[.ffffff]` (no trailing zeros) as microseconds since midnight. Not 24:00:00, which most languages' time types
/// cannot hold: their Avro readers would fail.
pub fn parse_time(text: &[u8]) -> Option<i64> {
    let (clock, fraction) = text.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *clock else { return None };
    let (hour, minute, second) = (digits(&[h1, h2])?, digits(&[m1, m2])?, digits(&[s1, s2])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = match fraction {
        [] => 0,
        [b'.', decimals @ ..] if (1..=6).contains(&decimals.len()) && decimals.last() != Some(&b'0') => {
            digits(decimals)? * 10_i64.pow(6 - decimals.len() as u32)
        }
        _ => return None,
    };
    let total = ((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + micros;
    (total < MICROS_PER_DAY).then_some(total)
}

/// Microseconds since midnight as PostgreSQL prints a time.
pub fn format_time(micros: i64, out: &mut String) {
    let seconds = micros / MICROS_PER_SECOND;
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = micros % MICROS_PER_SECOND;
    if fraction != 0 {
        let decimals = format!("{fraction:06}");
        let _ = write!(out, ".{}", decimals.trim_end_matches('0'));
    }
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` of the years 1 to 9999, as microseconds since 1970-01-01 00:00.
pub fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (separator, time) = rest.split_first()?;
    let micros = parse_time(time)?;
    if *separator != b' ' {
        return None;
    }
    Some(i64::from(parse_date(date)?) * MICROS_PER_DAY + micros)
}

/// The inverse of [`parse_timestamp`].
pub fn format_timestamp(micros: i64, out: &mut String) {
    format_date(micros.div_euclid(MICROS_PER_DAY) as i32, out);
    out.push(' ');
    format_time(micros.rem_euclid(MICROS_PER_DAY), out);
}

/// A timestamp with the suffix `+00`: the sessions run in UTC.
pub fn parse_timestamptz(text: &[u8]) -> Option<i64> {
    parse_timestamp(text.strip_suffix(b"+00")?)
}

/// The inverse of [`parse_timestamptz`].
pub fn format_timestamptz(micros: i64, out: &mut String) {
    format_timestamp(micros, out);
    out.push_str("+00");
}

/// `\x…` as PostgreSQL prints bytea with `bytea_output = hex`; appends the bytes to `out`.
pub fn parse_bytea(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let hex = text.strip_prefix(b"\\x")?;
    if hex.len() % 2 != 0 {
        return None;
    }
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    out.reserve(hex.len() / 2);
    for pair in hex.chunks_exact(2) {
        out.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Some(())
}

/// The inverse of [`parse_bytea`].
pub fn format_bytea(bytes: &[u8], out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + bytes.len() * 2);
    out.push_str("\\x");
    for byte in bytes {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
}

/// Whether this is a uuid as PostgreSQL prints it.
pub fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
}

/// A decimal number with exactly `scale` digits after the point, as big-endian two's complement of value * 10^scale.
pub fn parse_decimal(text: &[u8], scale: u16, out: &mut Vec<u8>) -> Option<()> {
    let (negative, unsigned) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let scale = usize::from(scale);
    let whole_length = if scale == 0 { unsigned.len() } else { unsigned.len().checked_sub(scale + 1)? };
    let (whole, rest) = unsigned.split_at(whole_length);
    let fraction = if scale == 0 { rest } else { rest.strip_prefix(b".")? };
    let canonical = match whole {
        [] => false,
        [b'0'] => true,
        [b'0', ..] => false,
        _ => true,
    };
    if !canonical || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let zero = whole.iter().chain(fraction).all(|digit| *digit == b'0');
    if negative && zero {
        return None;
    }
    let magnitude = magnitude_of(whole.iter().chain(fraction));
    append_twos_complement(&magnitude, negative, out);
    Some(())
}

/// Big-endian magnitude of decimal digits. Up to 38 digits by machine arithmetic; beyond, schoolbook: PostgreSQL's declared
/// precision ends at 1,000.
fn magnitude_of<'a>(decimal: impl Iterator<Item = &'a u8> + Clone) -> Vec<u8> {
    if decimal.clone().count() <= 38 {
        let number = decimal.fold(0_u128, |number, digit| number * 10 + u128::from(digit - b'0'));
        return number.to_be_bytes().to_vec();
    }
    let mut magnitude: Vec<u8> = Vec::new(); // little-endian while it grows
    for digit in decimal {
        let mut carry = u32::from(digit - b'0');
        for byte in &mut magnitude {
            let product = u32::from(*byte) * 10 + carry;
            *byte = (product & 0xff) as u8;
            carry = product >> 8;
        }
        if carry > 0 {
            magnitude.push(carry as u8);
        }
    }
    magnitude.reverse();
    magnitude
}

fn append_twos_complement(magnitude: &[u8], negative: bool, out: &mut Vec<u8>) {
    let start = magnitude.iter().position(|byte| *byte != 0).unwrap_or(magnitude.len());
    let significant = &magnitude[start..];
    let from = out.len();
    out.push(0); // room for the sign bit; removed below where it is not needed
    out.extend_from_slice(significant);
    if negative {
        negate(&mut out[from..]);
    }
    // Shortest form: a leading byte that only repeats the sign of the next is dropped.
    let sign_byte = if negative { 0xff } else { 0 };
    let redundant = out.len() - from > 1 && out[from] == sign_byte && (out[from + 1] & 0x80 == sign_byte & 0x80);
    if redundant {
        out.remove(from);
    }
}

fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        let (sum, overflow) = (!*byte).overflowing_add(u8::from(carry));
        *byte = sum;
        carry = overflow;
    }
}

/// The inverse of [`parse_decimal`].
pub fn format_decimal(bytes: &[u8], scale: u16, out: &mut String) {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let decimal = if bytes.len() <= 16 {
        let mut padded = if negative { [0xff_u8; 16] } else { [0_u8; 16] };
        padded[16 - bytes.len()..].copy_from_slice(bytes);
        i128::from_be_bytes(padded).unsigned_abs().to_string()
    } else {
        let mut magnitude = bytes.to_vec();
        if negative {
            negate(&mut magnitude);
        }
        decimal_of(magnitude)
    };
    if negative {
        out.push('-');
    }
    let scale = usize::from(scale);
    if scale == 0 {
        out.push_str(&decimal);
        return;
    }
    let padded = format!("{decimal:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    out.push_str(whole);
    out.push('.');
    out.push_str(fraction);
}

fn decimal_of(mut magnitude: Vec<u8>) -> String {
    const STEP: u64 = 1_000_000_000;
    let mut groups = Vec::new();
    while magnitude.iter().any(|byte| *byte != 0) {
        let mut remainder = 0_u64;
        for byte in &mut magnitude {
            let dividend = remainder << 8 | u64::from(*byte);
            *byte = (dividend / STEP) as u8;
            remainder = dividend % STEP;
        }
        groups.push(remainder);
    }
    let mut text = groups.pop().unwrap_or(0).to_string();
    for group in groups.into_iter().rev() {
        let _ = write!(text, "{group:09}");
    }
    text
}

/// Appends a value as text that the type's input function reads back exactly. False for null and for a value that was not
/// sent: nothing is appended.
pub fn format_value(value: &Value<'_>, kind: Kind, out: &mut String) -> bool {
    match value {
        Value::Null | Value::Unchanged => return false,
        Value::Boolean(value) => out.push(if *value { 't' } else { 'f' }),
        Value::Int(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Long(number) => {
            let _ = write!(out, "{number}");
        }
        // The shortest digits that give the same number back; PostgreSQL reads NaN and inf as Rust writes them.
        Value::Float(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Double(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Decimal(bytes) => {
            let scale = if let Kind::Decimal { scale, .. } = kind { scale } else { 0 };
            format_decimal(bytes, scale, out);
        }
        Value::Text(text) | Value::Uuid(text) | Value::Exact(text) => out.push_str(text),
        Value::Bytes(bytes) => format_bytea(bytes, out),
        Value::Date(days) => format_date(*days, out),
        Value::Time(micros) => format_time(*micros, out),
        Value::TimestampTz(micros) => format_timestamptz(*micros, out),
        Value::Timestamp(micros) => format_timestamp(*micros, out),
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn formatted(format: impl FnOnce(&mut String)) -> String {
        let mut text = String::new();
        format(&mut text);
        text
    }

    #[test]
    fn ordinary_values_are_restored_to_the_letter() {
        for text in ["0001-01-01", "1969-12-31", "1970-01-01", "2000-02-29", "9999-12-31"] {
            let days = parse_date(text.as_bytes()).unwrap();
            assert_eq!(formatted(|out| format_date(days, out)), text);
        }
        assert_eq!(parse_date(b"1970-01-02"), Some(1));
        for text in ["00:00:00", "23:59:59.999999", "12:00:00.1"] {
            let micros = parse_time(text.as_bytes()).unwrap();
            assert_eq!(formatted(|out| format_time(micros, out)), text);
        }
        for text in ["1969-12-31 23:59:59.999999+00", "0001-01-01 00:00:00+00", "2024-06-30 12:34:56.000001+00"] {
            let micros = parse_timestamptz(text.as_bytes()).unwrap();
            assert_eq!(formatted(|out| format_timestamptz(micros, out)), text);
        }
    }

    #[test]
    fn values_that_the_typed_form_cannot_hold_are_refused() {
        for text in ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "2023-02-29", "0000-01-01", ""] {
            assert_eq!(parse_date(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_time(b"24:00:00"), None);
        for text in ["2024-01-01 24:00:00", "2024-01-01 00:00:00.10", "2024-01-01T00:00:00", "2024-01-01 00:00:00 BC"] {
            assert_eq!(parse_timestamp(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_timestamptz(b"2024-01-01 00:00:00+05:30"), None);
        let mut out = Vec::new();
        for (text, scale) in
            [("NaN", 2), ("Infinity", 2), ("1.1", 2), ("1", 2), ("-0.00", 2), ("01.00", 2), (".10", 2), ("1e5", 0)]
        {
            assert_eq!(parse_decimal(text.as_bytes(), scale, &mut out), None, "{text}");
        }
    }

    #[test]
    fn decimals_use_the_shortest_twos_complement() {
        for (text, bytes) in [
            ("0", vec![0]),
            ("127", vec![0x7f]),
            ("128", vec![0, 0x80]),
            ("-1", vec![0xff]),
            ("-128", vec![0x80]),
            ("-129", vec![0xff, 0x7f]),
            ("256", vec![1, 0]),
            ("-256", vec![0xff, 0]),
        ] {
            let mut out = Vec::new();
            parse_decimal(text.as_bytes(), 0, &mut out).unwrap();
            assert_eq!(out, bytes, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_decimal_round_trips(negative: bool, whole in "0|[1-9][0-9]{0,80}", fraction in "[0-9]{0,60}") {
            let nonzero = whole.bytes().chain(fraction.bytes()).any(|digit| digit != b'0');
            let sign = if negative && nonzero { "-" } else { "" };
            let point = if fraction.is_empty() { "" } else { "." };
            let text = format!("{sign}{whole}{point}{fraction}");
            let mut bytes = Vec::new();
            parse_decimal(text.as_bytes(), fraction.len() as u16, &mut bytes).unwrap();
            prop_assert_eq!(formatted(|out| format_decimal(&bytes, fraction.len() as u16, out)), text);
        }

        #[test]
        fn every_ordinary_timestamp_round_trips(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let text = formatted(|out| format_timestamp(micros, out));
            prop_assert_eq!(parse_timestamp(text.as_bytes()), Some(micros));
        }

        #[test]
        fn every_byte_string_round_trips(bytes: Vec<u8>) {
            let text = formatted(|out| format_bytea(&bytes, out));
            let mut out = Vec::new();
            parse_bytea(text.as_bytes(), &mut out).unwrap();
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn parsers_take_only_what_their_formatters_give(text in "[-0-9:. +]{0,32}") {
            if let Some(micros) = parse_timestamptz(text.as_bytes()) {
                prop_assert_eq!(formatted(|out| format_timestamptz(micros, out)), text.clone());
            }
            let mut bytes = Vec::new();
            if parse_decimal(text.as_bytes(), 2, &mut bytes).is_some() {
                prop_assert_eq!(formatted(|out| format_decimal(&bytes, 2, out)), text);
            }
        }
    }
}
