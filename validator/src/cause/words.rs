//! What each cause is in an operator's words: the one source of them, for the page and for the README's table of causes. Pure.
//!
//! Words say what happened to the target, as seen from the source, and never how it was found.

/// Causes that belong together: one line of the README's table.
pub type Group = &'static [(&'static str, &'static str)];

/// In the order of the README.
pub const GROUPS: &[Group] = &[
    &[
        ("missing_row", "a row is lost"),
        ("extra_row", "a row was added"),
        ("duplicate_row", "a row is there more than once"),
        ("rows_differ", "the numbers of rows differ and no row could be named"),
    ],
    &[("key_changed", "a row stands under another key and is equal otherwise")],
    &[
        ("columns_swapped", "two columns have each other's values"),
        ("swapped_between_rows", "values stand in other rows"),
        ("shifted_by_a_row", "each value stands in its neighbour's row"),
        ("one_value_in_all_rows", "all values became one"),
    ],
    &[
        ("value_became_null", "a value became null"),
        ("null_became_value", "null became a value"),
        ("null_became_default", "null became the column's default"),
        ("null_became_one_value", "null became the same value everywhere"),
    ],
    &[
        ("empty_became_null", "the empty text became null"),
        ("null_became_empty", "null became the empty text"),
        ("value_became_empty", "a value became the empty text"),
        ("null_became_text", r"null became a word for it (`NULL`, `\N`)"),
    ],
    &[
        ("decimal_through_float4", "a decimal was stored as a 4-byte float and lost digits"),
        ("decimal_through_float8", "a decimal was stored as an 8-byte float and lost digits"),
        ("double_through_float4", "an 8-byte float was stored as a 4-byte one"),
        ("integer_through_double", "a large integer went through a float and lost its last digits"),
    ],
    &[
        ("fifteen_digits", "an 8-byte float was printed with 15 digits, too few to give it back"),
        ("six_digits", "a 4-byte float was printed with 6 digits, too few to give it back"),
    ],
    &[
        ("rounded", "rounded to fewer places"),
        ("places_cut_off", "decimal places were cut off"),
        ("scale_lost", "zeros at the end of a decimal are lost"),
        ("scale_added", "zeros were added at the end of a decimal"),
        ("precision_lost", "only about six digits are still right"),
    ],
    &[
        ("negative_zero", "0 and -0 were exchanged"),
        ("sign_changed", "the sign changed"),
        ("multiplied", "multiplied by a power of ten, as with money in cents"),
        ("wrapped_around", "too large for the integer type, and wrapped around"),
        ("clamped", "too large for the integer type, and held at its limit"),
    ],
    &[
        ("nan_lost", "NaN became something else"),
        ("infinity_lost", "infinity became something else"),
        ("not_a_finite_number", "a number became NaN or infinity"),
        ("date_became_infinity", "a date became infinity"),
    ],
    &[
        ("constant_offset", "all examined rows are off by the same amount"),
        ("daylight_saving_offset", "off by an hour, only in summer"),
        ("time_zone_offset", "off by a time zone's winter and summer offsets"),
    ],
    &[
        ("time_shifted", "a time was shifted"),
        ("day_shifted", "a date was shifted by days"),
        ("day_and_month_swapped", "day and month were exchanged"),
        ("year_changed", "the year changed"),
        ("century_changed", "the century changed"),
        ("bc_lost", "a year before Christ became one after"),
        ("became_1970", "a time became the beginning of 1970"),
    ],
    &[
        ("time_truncated", "a time was cut to milliseconds, seconds, minutes or days"),
        ("time_rounded", "a time was rounded to milliseconds, seconds, minutes or days"),
    ],
    &[
        ("time_zone_dropped", "the zone of a time is lost"),
        ("time_zone_changed", "the zone of a time changed, and the instant with it"),
        ("time_zone_normalised", "the same instant in another zone"),
        (
            "interval_normalised",
            "an interval was rewritten: 24 hours and a day, or 30 days and a month, are not the same",
        ),
    ],
    &[
        ("nfc_became_nfd", "accented letters were taken apart (Unicode NFC became NFD)"),
        ("nfd_became_nfc", "accented letters were put together (Unicode NFD became NFC)"),
        ("unicode_normalization", "the same text in another normal form of Unicode"),
        ("compatibility_characters_replaced", "ligatures and the like were replaced (NFKC)"),
        ("accents_lost", "accents are lost"),
    ],
    &[
        ("utf8_read_as_latin1", "UTF-8 was decoded as Latin-1, once or twice"),
        ("utf8_read_as_windows1252", "UTF-8 was decoded as Windows-1252, once or twice"),
        ("mojibake_repaired", "the source holds a wrongly decoded text, and the target the right one"),
    ],
    &[
        ("characters_replaced", "characters became question marks or replacement characters"),
        ("characters_lost", "characters are lost"),
        ("beyond_bmp_lost", "emoji and other characters beyond U+FFFF are lost"),
        ("invisible_characters_lost", "invisible characters are lost"),
        ("control_characters_lost", "control characters are lost"),
        ("typographic_characters_replaced", "typographic quotes and dashes became plain ones"),
        ("byte_order_mark_added", "a byte order mark was added"),
    ],
    &[
        ("case_changed", "upper and lower case changed"),
        ("truncated", "the end was cut off"),
        ("beginning_lost", "the beginning is lost"),
        ("text_appended", "something was appended"),
        ("line_ends_changed", "line ends changed between CRLF and LF"),
    ],
    &[
        ("trailing_blanks_lost", "blanks at the end are lost"),
        ("leading_blanks_lost", "blanks at the beginning are lost"),
        ("blanks_lost", "blanks are lost"),
        ("blanks_padded", "padded with blanks"),
        ("blanks_collapsed", "several blanks became one"),
    ],
    &[
        ("quotes_doubled", "quotes were doubled"),
        ("quotes_halved", "doubled quotes were halved"),
        ("quotes_lost", "quotes are lost"),
        ("quotes_added", "quotes were added"),
        ("quotes_escaped", "quotes were escaped"),
        ("backslashes_doubled", "backslashes were doubled"),
        ("backslashes_halved", "doubled backslashes were halved"),
        ("backslashes_lost", "backslashes are lost"),
    ],
    &[
        ("html_escaped", "encoded for HTML"),
        ("html_unescaped", "decoded from HTML"),
        ("url_encoded", "encoded for a URL"),
    ],
    &[
        ("json_numbers_rounded", "numbers within a document lost digits"),
        ("json_number_scale", "numbers within a document have other zeros at the end"),
        ("json_number_changed", "numbers within a document changed"),
        ("json_number_became_text", "numbers within a document became texts"),
    ],
    &[
        ("json_reformatted", "the same document with other blanks"),
        ("json_escapes_changed", "the same document with other escapes"),
        ("json_key_order", "members of a document are in another order"),
        ("json_duplicate_keys_lost", "repeated members of a document are lost"),
        ("json_elements_reordered", "elements of a document's list are in another order"),
        ("json_null_members_lost", "members of a document that are null are lost"),
        ("json_encoded_twice", "a document became a text that holds the document"),
    ],
    &[("json_null_became_null", "JSON's null became SQL's"), ("null_became_json_null", "SQL's null became JSON's")],
    &[
        ("bytea_text_kept", "the text of bytes (hex, escape format or base64) was kept as bytes"),
        ("bytea_reencoded", "bytes were taken for text and converted"),
        ("bytea_padded", "zero bytes were added at the end"),
        ("bytes_appended", "bytes were appended"),
        ("trailing_zero_bytes_lost", "zero bytes at the end are lost"),
        ("byte_order_changed", "bytes are in the reverse order"),
    ],
    &[
        ("enum_label_moved", "a label became its neighbour in the order of labels"),
        ("enum_label_changed", "a label became another"),
    ],
    &[
        ("array_bounds_changed", "an array counts from another number"),
        ("array_dimensions_changed", "an array lost or gained a dimension"),
        ("array_nulls_lost", "nulls within an array are lost"),
        ("array_null_became_text", "null within an array became a word"),
        ("array_order_changed", "elements of an array are in another order"),
        ("array_duplicates_lost", "repeated elements of an array are lost"),
        ("array_truncated", "the end of an array was cut off"),
        ("array_emptied", "an array was emptied"),
        ("array_element_changed", "an element of an array changed"),
        ("array_quoting_changed", "elements of an array gained or lost quotes"),
    ],
    &[
        ("boolean_inverted", "true and false were exchanged"),
        ("boolean_as_text", "a boolean became a text or a number"),
    ],
    &[
        ("uuid_byte_order", "a uuid's bytes are in another order, as Windows stores a GUID"),
        ("uuid_notation", "a uuid is written otherwise"),
        ("uuid_zeroed", "a uuid became zero"),
    ],
    &[
        ("inet_mask_lost", "an address lost its mask"),
        ("inet_mask_changed", "an address has another mask"),
        ("inet_host_bits_lost", "an address became its network"),
        ("inet_family_changed", "IPv4 and IPv6 were exchanged"),
    ],
    &[
        ("bits_padded", "bits were added"),
        ("leading_bits_lost", "bits at the beginning are lost"),
        ("bit_order_changed", "bits are in the reverse order"),
    ],
    &[
        ("range_bounds_changed", "a range's end became inclusive or exclusive"),
        ("range_emptied", "a range was emptied"),
        ("range_end_lost", "a range lost an end"),
        ("range_end_added", "an open range got an end"),
        ("range_moved", "a range was moved"),
    ],
    &[("value_differs", "the value differs, and nothing that is known explains it")],
    &[("divergence", "changes found no row in the target, as the consumer counted")],
    &[
        ("distribution_shifted", "the distribution of the values shifted"),
        ("characters_shifted", "the texts consist of other kinds of characters"),
        ("distinct_values_changed", "there are more or fewer different values"),
    ],
    &[
        ("null_rate", "there are more or fewer nulls"),
        ("empty_rate", "there are more or fewer empty values"),
        ("nan_rate", "there are more or fewer NaN"),
        ("infinity_rate", "there are more or fewer infinities"),
    ],
    &[
        ("table_missing", "the table is not in the target"),
        ("table_extra", "the table is only in the target"),
        ("partition_missing", "the target divides the table otherwise"),
        ("kind_differs", "it is another kind of table"),
        ("persistence_differs", "it is unlogged or temporary on one side only"),
        ("row_security_differs", "row security is switched on on one side only"),
        ("comment_differs", "the comment differs"),
    ],
    &[
        ("column_missing", "the column is not in the target"),
        ("column_extra", "the column is only in the target"),
        ("type_differs", "the column has another type"),
        ("type_modifier_differs", "the column has another length or precision"),
        ("nullability_differs", "NOT NULL is on one side only"),
        ("collation_differs", "the column has another collation"),
        ("default_collation_differs", "the databases have other default collations"),
        ("encoding_differs", "the databases have other encodings"),
        ("enum_labels_differ", "the enum has other labels"),
        ("enum_order_differs", "the enum's labels are in another order"),
    ],
    &[
        ("default_lost", "the default is lost"),
        ("default_differs", "the default differs"),
        ("identity_lost", "the column is no identity any more"),
        ("generated_column_lost", "the column is not generated any more"),
        ("generation_differs", "the column is generated otherwise"),
        ("sequence_behind", "the sequence would give values again that the source has given"),
        ("sequence_missing", "the sequence is not in the target"),
    ],
    &[("primary_key_differs", "the primary key differs")],
    OBJECTS[0],
    OBJECTS[1],
    OBJECTS[2],
    OBJECTS[3],
    OBJECTS[4],
    OBJECTS[5],
    OBJECTS[6],
    &[
        ("index_invalid", "an index is not valid: its building failed"),
        ("foreign_key_not_validated", "a foreign key is not validated"),
        ("check_not_validated", "a check is not validated"),
        ("trigger_enabled_differs", "a trigger is switched on or off on one side only"),
    ],
];

macro_rules! objects {
    ($(($name:literal, $words:literal)),+) => {
        const OBJECTS: &[Group] = &[$(&[
            (concat!($name, "_missing"), concat!($words, " is missing")),
            (concat!($name, "_extra"), concat!($words, " is only in the target")),
            (concat!($name, "_differs"), concat!($words, " differs")),
        ]),+];
    };
}

objects! {
    ("index", "an index"),
    ("check", "a check"),
    ("unique", "a unique constraint"),
    ("foreign_key", "a foreign key"),
    ("exclusion", "an exclusion constraint"),
    ("trigger", "a trigger"),
    ("policy", "a policy")
}

/// Of one cause; none if it is not known here.
pub fn of(cause: &str) -> Option<&'static str> {
    GROUPS.iter().copied().flatten().find(|(name, _)| *name == cause).map(|(_, words)| *words)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use super::*;

    /// The table of causes as the README has it.
    fn table() -> String {
        let mut table = String::from("| cause | what happened |\n|---|---|\n");
        for group in GROUPS {
            let names: Vec<String> = group.iter().map(|(name, _)| format!("`{name}`")).collect();
            let words: Vec<&str> = group.iter().map(|(_, words)| *words).collect();
            let _ = writeln!(table, "| {} | {} |", names.join(", "), words.join("; "));
        }
        table
    }

    #[test]
    fn the_readme_has_these_words() {
        let readme = include_str!("../../../README.md");
        let at = readme.find("| cause | what happened |").expect("the README has a table of causes");
        let written: String =
            readme[at..].lines().take_while(|line| line.starts_with('|')).map(|line| line.to_owned() + "\n").collect();
        assert!(written == table(), "the README's table of causes should be:\n{}", table());
    }

    #[test]
    fn every_cause_is_explained_once_and_briefly() {
        let all: Vec<(&str, &str)> = GROUPS.iter().copied().flatten().copied().collect();
        let names: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), all.len());
        for (name, words) in all {
            assert!(words.len() < 120 && !words.contains('|') && !words.ends_with('.'), "{name}: {words}");
        }
        assert_eq!(of("trigger_extra"), Some("a trigger is only in the target"));
        assert_eq!(of("nothing_such"), None);
    }

    /// Names of causes stand in the code as literals of several words; each that the code can say must be explained here.
    #[test]
    fn every_cause_that_the_code_names_is_explained() {
        let code = [
            include_str!("arrays.rs"),
            include_str!("binary.rs"),
            include_str!("column.rs"),
            include_str!("json.rs"),
            include_str!("numbers.rs"),
            include_str!("others.rs"),
            include_str!("texts.rs"),
            include_str!("times.rs"),
            include_str!("mod.rs"),
            include_str!("../depth.rs"),
        ];
        let literals = code
            .iter()
            .flat_map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().split('"').skip(1).step_by(2));
        let looks_like_one = |text: &&str| {
            text.contains('_')
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && !text.starts_with('_')
        };
        let unexplained: BTreeSet<&str> = literals.filter(looks_like_one).filter(|name| of(name).is_none()).collect();
        assert!(unexplained.is_empty(), "{unexplained:?}");
    }
}
