//! Each family by its table: type, source, target, the first cause and its detail.

use super::column::{Explained, Facts, Row};
use super::*;

fn base(name: &str) -> BaseType {
    let kind = if name.ends_with("range") { "r" } else { "b" };
    BaseType { schema: "pg_catalog".into(), name: name.into(), kind: kind.into(), ..BaseType::default() }
}

fn first(name: &str, source: Option<&str>, target: Option<&str>) -> (String, String) {
    let base = base(name);
    let kind = Kind { source: &base, target: &base, labels: &[] };
    let cause = hypotheses(kind, source.map(Text::whole), target.map(Text::whole))[0];
    let (before, number, after) = cause.detail;
    (cause.name.to_owned(), format!("{before}{}{after}", number.map_or_else(String::new, |number| number.to_string())))
}

#[test]
fn each_value_has_the_cause_that_an_operator_would_name() {
    let cases = [
        ("numeric", "1.50", "1.5", "scale_lost", "1 zeros at the end"),
        ("numeric", "0.00", "0", "scale_lost", "2 zeros at the end"),
        ("numeric", "12345678901234567890.12", "12345678901234567000", "decimal_through_float8", "5 digits lost"),
        ("numeric", "1234.56789", "1234.5679", "decimal_through_float4", "2 digits lost"),
        ("numeric", "1.25", "1.3", "rounded", "to 1 places"),
        ("numeric", "1.29", "1.2", "places_cut_off", "behind 1 places"),
        ("numeric", "9.99", "10", "rounded", "to 0 places"),
        ("numeric", "0.005", "0.00", "places_cut_off", "behind 2 places"),
        ("numeric", "12.50", "1250", "multiplied", "by 10 to the power of 2"),
        ("numeric", "NaN", "0", "nan_lost", ""),
        ("numeric", "1.5", "2.5", "value_differs", ""),
        ("int8", "9007199254740993", "9007199254740992", "integer_through_double", "1 digits lost"),
        ("int8", "4294967297", "1", "wrapped_around", "at 32 bits"),
        ("int4", "70000", "32767", "clamped", "to 16 bits"),
        ("int4", "5", "-5", "sign_changed", ""),
        ("float8", "0", "-0", "negative_zero", ""),
        ("float8", "-0", "0", "negative_zero", ""),
        ("float8", "0.30000000000000004", "0.3", "fifteen_digits", ""),
        ("float8", "0.1234567891234", "0.12345679", "double_through_float4", "6 digits lost"),
        ("float8", "Infinity", "1e308", "infinity_lost", ""),
        ("money", "$1,234.50", "$123,450.00", "multiplied", "by 10 to the power of 2"),
        (
            "timestamptz",
            "2024-01-01 00:00:00.123457+00",
            "2024-01-01 00:00:00.123+00",
            "time_truncated",
            "to milliseconds",
        ),
        ("timestamptz", "2024-01-01 00:00:00.6+00", "2024-01-01 00:00:01+00", "time_rounded", "to seconds"),
        ("timestamptz", "2024-01-01 00:00:00+00", "2024-01-01 05:30:00+00", "time_shifted", "by 19800 s"),
        ("timestamptz", "2024-01-01 00:00:00+00", "2024-01-01 00:00:00", "time_zone_dropped", ""),
        ("timestamptz", "infinity", "294276-12-31 00:00:00+00", "infinity_lost", ""),
        ("timestamp", "0044-03-15 00:00:00 BC", "0044-03-15 00:00:00", "bc_lost", ""),
        ("timestamp", "2024-02-03 10:11:12", "2024-02-03 00:00:00", "time_truncated", "to days"),
        ("date", "2024-03-31", "2024-03-30", "day_shifted", "by -1 days"),
        ("date", "2024-03-05", "2024-05-03", "day_and_month_swapped", ""),
        ("date", "1924-03-05", "2024-03-05", "century_changed", ""),
        ("timetz", "12:00:00+05:30", "06:30:00+00", "time_zone_normalised", ""),
        ("interval", "24:00:00", "1 day", "interval_normalised", "24 hours and days"),
        ("interval", "1 mon", "30 days", "interval_normalised", "months and days"),
        (
            "interval",
            "1 year 2 mons -3 days +04:05:06.7",
            "1 year 2 mons -3 days +04:05:06",
            "time_truncated",
            "to seconds",
        ),
        ("text", "é", "e\u{301}", "nfc_became_nfd", ""),
        ("text", "e\u{301}", "é", "nfd_became_nfc", ""),
        ("text", "ﬁn", "fin", "compatibility_characters_replaced", ""),
        ("text", "Zoë", "Zoe", "accents_lost", ""),
        ("text", "Zoë", "ZoÃ«", "utf8_read_as_latin1", ""),
        ("text", "10 €", "10 â‚¬", "utf8_read_as_windows1252", ""),
        ("text", "ë", "Ã\u{83}Â«", "utf8_read_as_latin1", "twice"),
        ("text", "süß", "s??", "characters_replaced", "by '?'"),
        ("text", "süß", "s????", "characters_replaced", "by one mark a byte"),
        ("text", "süß", "s\u{fffd}\u{fffd}", "characters_replaced", "by U+FFFD"),
        ("text", "a😀b", "ab", "beyond_bmp_lost", ""),
        ("text", "a😀b", "a", "beyond_bmp_lost", ""),
        ("text", "a\u{200b}b", "ab", "invisible_characters_lost", ""),
        ("text", "Abc", "abc", "case_changed", "to lower case"),
        ("text", "abc  ", "abc", "trailing_blanks_lost", "2 blanks"),
        ("text", "abc", "abc  ", "blanks_padded", "2 blanks at the end"),
        ("text", "  abc", "abc", "leading_blanks_lost", "2 blanks"),
        ("text", "a  b", "a b", "blanks_collapsed", ""),
        ("text", "abcdef", "abc", "truncated", "to 3 characters"),
        ("text", "a\r\nb", "a\nb", "line_ends_changed", "CRLF to LF"),
        ("text", "a\u{1}b", "ab", "control_characters_lost", ""),
        ("text", "it's", "it''s", "quotes_doubled", ""),
        ("text", "a\\\\b", "a\\b", "backslashes_halved", ""),
        ("text", "a<b & c", "a&lt;b &amp; c", "html_escaped", ""),
        ("text", "a b/c", "a%20b%2Fc", "url_encoded", ""),
        ("text", "ab", "ba", "value_differs", ""),
        ("json", "{\"a\":1}", "{\"a\": 1}", "json_reformatted", ""),
        ("json", "{\"b\":1,\"a\":2}", "{\"a\":2,\"b\":1}", "json_key_order", ""),
        ("json", "{\"a\":1,\"a\":2}", "{\"a\":2}", "json_duplicate_keys_lost", ""),
        ("jsonb", "{\"a\": 1.00}", "{\"a\": 1}", "json_number_scale", ""),
        ("jsonb", "[12345678901234567890]", "[12345678901234567000]", "json_numbers_rounded", ""),
        ("jsonb", "[1]", "[2]", "json_number_changed", ""),
        ("jsonb", "{\"a\": 1, \"b\": null}", "{\"a\": 1}", "json_null_members_lost", ""),
        ("jsonb", "{\"a\": 1}", "\"{\\\"a\\\": 1}\"", "json_encoded_twice", ""),
        ("bytea", "\\x0102", "\\x30313032", "bytea_text_kept", "hex digits kept as bytes"),
        ("bytea", "\\x0102", "\\x5c7830313032", "bytea_text_kept", "hex digits kept as bytes"),
        ("bytea", "\\x010203", "\\x41514944", "bytea_text_kept", "base64 kept as bytes"),
        ("bytea", "\\x0102", "\\x5c3030315c303032", "bytea_text_kept", "escape format kept as bytes"),
        ("bytea", "\\x010203", "\\x0102", "truncated", "to 2 bytes"),
        ("bytea", "\\x010003", "\\x01", "truncated", "at the first zero byte"),
        ("bytea", "\\xff01", "\\xefbfbd01", "bytea_reencoded", "bytes that are no UTF-8 replaced"),
        ("bytea", "\\x00", "\\x01", "value_differs", ""),
        ("_int4", "[0:1]={1,2}", "{1,2}", "array_bounds_changed", ""),
        ("_int4", "{{1,2},{3,4}}", "{1,2,3,4}", "array_dimensions_changed", ""),
        ("_text", "{a,NULL,b}", "{a,b}", "array_nulls_lost", ""),
        ("_text", "{a,NULL}", "{a,\"NULL\"}", "array_null_became_text", ""),
        ("_text", "{a,b}", "{b,a}", "array_order_changed", ""),
        ("_text", "{a,b}", "{a,B}", "array_element_changed", "case_changed"),
        ("_text", "{a,b,c}", "{a,b}", "array_truncated", "to 2 elements"),
        ("bool", "t", "f", "boolean_inverted", ""),
        ("bool", "t", "Y", "boolean_as_text", ""),
        (
            "uuid",
            "00112233-4455-6677-8899-aabbccddeeff",
            "33221100-5544-7766-8899-aabbccddeeff",
            "uuid_byte_order",
            "the first three groups, as in a GUID",
        ),
        ("inet", "10.0.0.1/8", "10.0.0.1", "inet_mask_lost", ""),
        ("cidr", "10.1.0.0/16", "10.0.0.0/16", "inet_host_bits_lost", ""),
        ("varbit", "101", "00000101", "bits_padded", "on the left with 5 zeros"),
        ("int4range", "[1,5)", "[1,5]", "range_bounds_changed", ""),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|(kind, source, target, name, detail)| {
            let found = first(kind, Some(source), Some(target));
            let expected = ((*name).to_owned(), (*detail).to_owned());
            if found == expected { String::new() } else { format!("{kind}: {source:?}, {target:?}: {found:?}") }
        })
        .filter(|line| !line.is_empty())
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(first("text", None, Some("")).0, "null_became_empty");
    assert_eq!(first("text", Some(""), None).0, "empty_became_null");
    assert_eq!(first("text", Some("x"), None).0, "value_became_null");
    assert_eq!(first("text", None, Some("NULL")).0, "null_became_text");
    assert_eq!(first("jsonb", Some("null"), None).0, "json_null_became_null");
}

#[test]
fn a_value_cut_for_reading_is_explained_by_its_length() {
    let base = base("text");
    let kind = Kind { source: &base, target: &base, labels: &[] };
    let part = |length| Some(Text { start: "abc", length });
    assert_eq!(hypotheses(kind, part(9), part(5))[0], Cause::with("truncated", "to ", 5, " characters"));
    assert_eq!(hypotheses(kind, part(9), part(9))[0].name, DIFFERS);
}

fn column(
    name: &str,
    some_equal: bool,
    pairs: &[(Option<&str>, Option<&str>)],
) -> Vec<(String, Option<String>, usize)> {
    let base = base(name);
    let kind = Kind { source: &base, target: &base, labels: &[] };
    let row = |(source, target): &(Option<&'static str>, Option<&'static str>)| Row {
        source: source.map(Text::whole),
        target: target.map(Text::whole),
    };
    // The texts of a test live as long as it needs them.
    let leaked: Vec<(Option<&'static str>, Option<&'static str>)> = pairs
        .iter()
        .map(|(a, b)| {
            let keep = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
            (a.map(keep), b.map(keep))
        })
        .collect();
    let rows: Vec<Row<'_>> = leaked.iter().map(row).collect();
    let facts = Facts { kind, defaults: [Some("'none'::text"), None], some_equal };
    let simple = |part: Explained| (part.name.to_owned(), part.detail, part.rows.len());
    super::column::of(facts, &rows).into_iter().map(simple).collect()
}

#[test]
fn what_most_rows_have_in_common_is_named_before_what_one_row_looks_like() {
    // 1234.57 alone could be rounded; with 0.123457 it went through a float4.
    let found =
        column("numeric", true, &[(Some("1234.5678"), Some("1234.57")), (Some("0.12345678"), Some("0.123457"))]);
    assert_eq!((found.len(), found[0].0.as_str()), (1, "decimal_through_float4"), "{found:?}");
    let found = column(
        "numeric",
        true,
        &[(Some("1.239"), Some("1.24")), (Some("1234.5678"), Some("1234.57")), (Some("7.777777"), Some("7.78"))],
    );
    assert_eq!(found[0], ("rounded".into(), Some("to 2 places".into()), 3), "{found:?}");
}

#[test]
fn offsets_are_told_from_daylight_saving_and_from_zones() {
    let shifted = [
        (Some("2024-01-01 00:00:00"), Some("2024-01-01 05:30:00")),
        (Some("2024-07-01 00:00:00"), Some("2024-07-01 05:30:00")),
    ];
    let found = column("timestamp", true, &shifted);
    assert_eq!(found, [("constant_offset".into(), Some("of 5:30:00 on all 2 rows examined".into()), 2)]);
    let summer = [
        (Some("2024-06-01 00:00:00"), Some("2024-06-01 01:00:00")),
        (Some("2024-07-01 00:00:00"), Some("2024-07-01 01:00:00")),
    ];
    assert_eq!(column("timestamp", true, &summer)[0].0, "daylight_saving_offset");
    assert_eq!(column("timestamp", false, &summer)[0].0, "constant_offset");
    let berlin = [
        (Some("2024-01-01 00:00:00"), Some("2024-01-01 01:00:00")),
        (Some("2024-07-01 00:00:00"), Some("2024-07-01 02:00:00")),
    ];
    let found = column("timestamp", true, &berlin);
    assert_eq!(
        (found[0].0.as_str(), found[0].1.as_deref()),
        ("time_zone_offset", Some("of 1:00:00 in winter and 2:00:00 in summer"))
    );
}

#[test]
fn what_only_several_rows_show_is_seen() {
    let swapped = [(Some("x"), Some("y")), (Some("y"), Some("x"))];
    assert_eq!(column("text", true, &swapped)[0].0, "swapped_between_rows");
    let moved = [(Some("q"), Some("p")), (Some("r"), Some("q")), (Some("s"), Some("r")), (Some("t"), Some("s"))];
    assert_eq!(column("text", true, &moved)[0].0, "shifted_by_a_row");
    assert_eq!(column("text", true, &[(None, Some("none"))])[0].0, "null_became_default");
    assert_eq!(column("text", true, &[(None, Some("a")), (None, Some("a"))])[0].0, "null_became_one_value");
    assert_eq!(
        column("text", true, &[(Some("p"), Some("z")), (Some("q"), Some("z")), (Some("r"), Some("z"))])[0].0,
        "one_value_in_all_rows"
    );
    assert_eq!(column("bool", true, &[(Some("t"), Some("f")), (Some("f"), Some("t"))])[0].0, "boolean_inverted");
    assert_eq!(
        column("int4", true, &[(Some("1"), Some("4")), (Some("7"), Some("10")), (Some("20"), Some("23"))])[0].0,
        "constant_offset"
    );
    assert_eq!(column("text", true, &[(Some("x"), Some("q"))])[0].0, "value_differs");
}

#[test]
fn every_cause_is_in_the_readme() {
    let readme = include_str!("../../../README.md");
    let sources = [
        include_str!("arrays.rs"),
        include_str!("binary.rs"),
        include_str!("column.rs"),
        include_str!("json.rs"),
        include_str!("mod.rs"),
        include_str!("numbers.rs"),
        include_str!("others.rs"),
        include_str!("texts.rs"),
        include_str!("times.rs"),
    ];
    let name = |word: &&str| {
        word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let names = sources.iter().flat_map(|text| text.split('"').skip(1).step_by(2)).filter(name);
    let missing: Vec<&str> = names.filter(|name| !readme.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
