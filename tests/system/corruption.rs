//! The catalogue of corruptions: each is made by the SQL that a careless migration would run, on a real server, and must be
//! caught at its level, with its cause named and its row found.
//!
//! Long, because it is one table. All cases share one pair of databases: in schema `public` the target is corrupted, in
//! `control` nothing is, and in `alike` both sides are corrupted in the same way, which is no difference.

use std::sync::OnceLock;

use serde_json::Value as Json;
use tests::services;
use tests::sql::Session;
use tests::stack::Migration;

/// A table `T (i int PRIMARY KEY, v <kind>, w text)` of 200 rows, and what is done to it.
struct Case {
    name: &'static str,
    kind: &'static str,
    /// Of row `i`.
    value: &'static str,
    /// Further SQL for both sides.
    also: &'static str,
    /// SQL for the corrupted side.
    inject: &'static str,
    /// Level, column, cause and one key of what is found; all of levels 0 to 2, and what is wanted of 3 to 5.
    expected: &'static [(u8, &'static str, &'static str, &'static str)],
}

macro_rules! corruptions {
    ($($name:ident: $kind:literal, $value:literal $(, also $also:literal)?; $inject:literal => $($expected:expr),+;)+) => {
        const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            kind: $kind,
            value: $value,
            also: concat!($($also)?),
            inject: $inject,
            expected: &[$($expected),+],
        }),+];
        $(#[test]
        fn $name() {
            caught(stringify!($name));
        })+
    };
}

corruptions! {
    // Numbers.
    decimal_stored_as_float4: "numeric", "i * 1234.56789 / 7"; "UPDATE T SET v = v::float4::numeric WHERE i IN (7, 8)" => (2, "v", "decimal_through_float4", "7");
    decimal_stored_as_float8: "numeric", "i + 0.12345678901234567891"; "UPDATE T SET v = v::float8::numeric" => (2, "v", "decimal_through_float8", "3");
    integer_through_a_double: "int8", "9007199254740993 + 2 * i"; "UPDATE T SET v = v::float8::int8" => (2, "v", "integer_through_double", "1");
    fifteen_digit_floats: "float8", "i / 3.0::float8"; "UPDATE T SET v = v::numeric::float8 WHERE i % 3 = 1" => (2, "v", "fifteen_digits", "1");
    double_stored_as_float4: "float8", "i / 3.0::float8"; "UPDATE T SET v = v::float4::float8 WHERE i = 7" => (2, "v", "double_through_float4", "7");
    scale_trimmed: "numeric", "i + 0.10"; "UPDATE T SET v = trim_scale(v)" => (2, "v", "scale_lost", "5");
    rounded_to_two_places: "numeric", "i * 1.23456"; "UPDATE T SET v = round(v, 2) WHERE i < 40" => (2, "v", "rounded", "3");
    cut_to_two_places: "numeric", "i * 1.2399"; "UPDATE T SET v = trunc(v, 2) WHERE i < 4" => (2, "v", "places_cut_off", "3");
    negative_zero_gained: "float8", "CASE WHEN i = 5 THEN 0 ELSE i END"; "UPDATE T SET v = '-0' WHERE i = 5" => (2, "v", "negative_zero", "5");
    nan_became_zero: "numeric", "CASE WHEN i % 50 = 0 THEN 'NaN' ELSE i::numeric END"; "UPDATE T SET v = 0 WHERE v = 'NaN'" => (2, "v", "nan_lost", "50"), (4, "v", "nan_rate", "");
    infinity_became_a_number: "float8", "CASE WHEN i % 50 = 0 THEN '-Infinity' ELSE i::float8 END"; "UPDATE T SET v = -1e308 WHERE v = '-Infinity'" => (2, "v", "infinity_lost", "50"), (4, "v", "infinity_rate", "");
    money_times_a_hundred: "money", "i::money"; "UPDATE T SET v = v * 100" => (2, "v", "multiplied", "5"), (3, "v", "distribution_shifted", "");
    sign_lost: "int4", "-i"; "UPDATE T SET v = abs(v)" => (2, "v", "sign_changed", "5"), (3, "v", "distribution_shifted", "");
    integer_wrapped: "int8", "70000 + i"; "UPDATE T SET v = v % 65536" => (2, "v", "wrapped_around", "5");
    integer_clamped: "int4", "32000 + 10 * i"; "UPDATE T SET v = least(v, 32767) WHERE i > 150" => (2, "v", "clamped", "151");
    numbers_off_by_a_constant: "int4", "i * i"; "UPDATE T SET v = v + 7 WHERE i IN (3, 4, 5)" => (2, "v", "constant_offset", "4");
    a_number_changed: "int4", "i * i"; "UPDATE T SET v = 77 WHERE i = 3" => (2, "v", "value_differs", "3");
    // Times.
    times_off_by_5_30: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '37 hours'"; "UPDATE T SET v = v + interval '5:30'" => (2, "v", "constant_offset", "1");
    times_off_in_summer: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '43 hours'"; "UPDATE T SET v = (v AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'Etc/GMT-1'" => (2, "v", "daylight_saving_offset", "51");
    local_times_taken_for_utc: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '43 hours'"; "UPDATE T SET v = (v AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'UTC'" => (2, "v", "time_zone_offset", "1");
    one_time_shifted: "timestamp", "'2024-01-01'::timestamp + i * interval '1 minute'"; "UPDATE T SET v = v - interval '1 hour' WHERE i = 9" => (2, "v", "time_shifted", "9");
    microseconds_lost: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '1.234567 seconds'"; "UPDATE T SET v = date_trunc('milliseconds', v)" => (2, "v", "time_truncated", "9");
    seconds_cut_off: "timestamp", "'2024-01-01'::timestamp + i * interval '1.634567 seconds'"; "UPDATE T SET v = date_trunc('second', v)" => (2, "v", "time_truncated", "9");
    rounded_to_seconds: "timestamp", "'2024-01-01'::timestamp + i * interval '1.634567 seconds'"; "UPDATE T SET v = v::timestamp(0)" => (2, "v", "time_rounded", "9");
    time_of_day_lost: "timestamp", "'2024-01-01'::timestamp + i * interval '7 hours 11 minutes'"; "UPDATE T SET v = v::date" => (2, "v", "time_truncated", "9");
    dates_off_by_a_day: "date", "'2024-01-01'::date + i"; "UPDATE T SET v = v - 1" => (2, "v", "constant_offset", "9");
    one_date_off_by_a_day: "date", "'2024-01-01'::date + i"; "UPDATE T SET v = v - 1 WHERE i = 4" => (2, "v", "day_shifted", "4");
    before_christ_lost: "date", "'0044-03-15 BC'::date + i"; "UPDATE T SET v = to_date(to_char(v, 'YYYY-MM-DD'), 'YYYY-MM-DD') WHERE i < 4" => (2, "v", "bc_lost", "3");
    infinite_date_lost: "timestamptz", "CASE WHEN i % 50 = 0 THEN 'infinity' ELSE '2024-01-01'::timestamp + i * interval '1 hour' END"; "UPDATE T SET v = '9999-12-31+00' WHERE v = 'infinity'" => (2, "v", "infinity_lost", "50"), (4, "v", "infinity_rate", "");
    day_and_month_exchanged: "date", "'2024-01-01'::date + i"; "UPDATE T SET v = to_date(to_char(v, 'DD-MM-YYYY'), 'MM-DD-YYYY') WHERE i IN (33, 34)" => (2, "v", "day_and_month_swapped", "33");
    century_changed: "date", "'1924-01-01'::date + i"; "UPDATE T SET v = v + interval '100 years' WHERE i < 9" => (2, "v", "century_changed", "3");
    dates_became_1970: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '37 hours'"; "UPDATE T SET v = to_timestamp(0) WHERE i < 4" => (2, "v", "became_1970", "3");
    hours_became_days: "interval", "make_interval(hours => 24 * i)"; "UPDATE T SET v = justify_hours(v)" => (2, "v", "interval_normalised", "3");
    days_became_months: "interval", "make_interval(days => 30 * i)"; "UPDATE T SET v = justify_days(v)" => (2, "v", "interval_normalised", "3");
    time_zone_of_time_normalised: "timetz", "'12:00:00+05:30'::timetz"; "UPDATE T SET v = v AT TIME ZONE 'UTC' WHERE i = 4" => (2, "v", "time_zone_normalised", "4");
    // Texts.
    nfc_became_nfd: "text", "'Zoë ' || i"; "UPDATE T SET v = normalize(v, NFD)" => (2, "v", "nfc_became_nfd", "3");
    nfd_became_nfc: "text", "normalize('Zoë ' || i, NFD)"; "UPDATE T SET v = normalize(v, NFC)" => (2, "v", "nfd_became_nfc", "3");
    ligatures_taken_apart: "text", "'ﬁn ' || i"; "UPDATE T SET v = normalize(v, NFKC)" => (2, "v", "compatibility_characters_replaced", "3");
    utf8_read_as_latin1: "text", "'Zoë ' || i"; "UPDATE T SET v = convert_from(convert_to(v, 'UTF8'), 'LATIN1')" => (2, "v", "utf8_read_as_latin1", "3"), (3, "v", "characters_shifted", "");
    utf8_read_as_windows1252: "text", "'10 € ' || i"; "UPDATE T SET v = convert_from(convert_to(v, 'UTF8'), 'WIN1252')" => (2, "v", "utf8_read_as_windows1252", "3");
    utf8_read_as_latin1_twice: "text", "'Zoë ' || i"; "UPDATE T SET v = convert_from(convert_to(convert_from(convert_to(v, 'UTF8'), 'LATIN1'), 'UTF8'), 'LATIN1')" => (2, "v", "utf8_read_as_latin1", "3");
    replaced_by_question_marks: "text", "'süß ' || i"; "UPDATE T SET v = translate(v, 'üß', '??')" => (2, "v", "characters_replaced", "3");
    replaced_by_the_replacement_character: "text", "'süß ' || i"; "UPDATE T SET v = translate(v, 'üß', U&'\\FFFD\\FFFD')" => (2, "v", "characters_replaced", "3");
    emoji_lost: "text", "'smile 😀 ' || i"; "UPDATE T SET v = replace(v, '😀', '')" => (2, "v", "beyond_bmp_lost", "3");
    accents_stripped: "text", "'Zoë ' || i"; "UPDATE T SET v = translate(v, 'ë', 'e')" => (2, "v", "accents_lost", "3");
    case_folded: "text", "'Code ' || i"; "UPDATE T SET v = lower(v)" => (2, "v", "case_changed", "3");
    trailing_blanks_trimmed: "text", "i || '  '"; "UPDATE T SET v = rtrim(v)" => (2, "v", "trailing_blanks_lost", "3");
    padded_with_blanks: "varchar(40)", "'x' || i"; "UPDATE T SET v = rpad(v, 20)" => (2, "v", "blanks_padded", "3");
    leading_blanks_trimmed: "text", "'  ' || i"; "UPDATE T SET v = ltrim(v)" => (2, "v", "leading_blanks_lost", "3");
    truncated_to_five: "text", "'some text ' || i"; "UPDATE T SET v = left(v, 5)" => (2, "v", "truncated", "3"), (3, "v", "distribution_shifted", "");
    truncated_far_behind: "text", "repeat(i || ' ', 2000)"; "UPDATE T SET v = left(v, 3000) WHERE i = 100" => (2, "v", "truncated", "100");
    changed_far_behind: "text", "repeat(i || ' ', 2000)"; "UPDATE T SET v = overlay(v PLACING '#' FROM 3500) WHERE i = 100" => (2, "v", "value_differs", "100");
    line_ends_changed: "text", "E'a\\r\\nb' || i"; "UPDATE T SET v = replace(v, E'\\r', '')" => (2, "v", "line_ends_changed", "3");
    control_characters_stripped: "text", "E'a\\u0001b' || i"; "UPDATE T SET v = replace(v, E'\\u0001', '')" => (2, "v", "control_characters_lost", "3");
    zero_width_characters_stripped: "text", "U&'a\\200Bb' || i"; "UPDATE T SET v = replace(v, U&'\\200B', '')" => (2, "v", "invisible_characters_lost", "3");
    quotes_doubled: "text", "'it''s ' || i"; "UPDATE T SET v = replace(v, '''', '''''')" => (2, "v", "quotes_doubled", "3");
    backslashes_stripped: "text", "'a\\b' || i"; "UPDATE T SET v = replace(v, '\\', '')" => (2, "v", "backslashes_lost", "3");
    html_escaped: "text", "'<b> & ' || i"; "UPDATE T SET v = replace(replace(replace(v, '&', '&amp;'), '<', '&lt;'), '>', '&gt;')" => (2, "v", "html_escaped", "3");
    url_encoded: "text", "'a b/c' || i"; "UPDATE T SET v = 'a%20b%2Fc' || i" => (2, "v", "url_encoded", "3");
    empty_became_null: "text", "CASE WHEN i % 10 = 0 THEN '' ELSE 'x' || i END"; "UPDATE T SET v = NULL WHERE v = ''" => (2, "v", "empty_became_null", "10"), (4, "v", "null_rate", ""), (4, "v", "empty_rate", "");
    null_became_empty: "text", "CASE WHEN i % 10 > 0 THEN 'x' || i END"; "UPDATE T SET v = '' WHERE v IS NULL" => (2, "v", "null_became_empty", "10"), (4, "v", "null_rate", ""), (4, "v", "empty_rate", "");
    null_became_the_default: "text", "CASE WHEN i % 10 > 0 THEN 'x' || i END", also "ALTER TABLE T ALTER v SET DEFAULT 'none'"; "UPDATE T SET v = 'none' WHERE v IS NULL" => (2, "v", "null_became_default", "10"), (4, "v", "null_rate", "");
    null_became_a_word: "text", "CASE WHEN i % 10 > 0 THEN 'x' || i END"; "UPDATE T SET v = 'NULL' WHERE v IS NULL" => (2, "v", "null_became_text", "10");
    null_became_zero: "int4", "nullif(i % 10, 0)"; "UPDATE T SET v = 0 WHERE v IS NULL" => (2, "v", "null_became_one_value", "10");
    value_became_null: "int4", "i"; "UPDATE T SET v = NULL WHERE i = 10" => (2, "v", "value_became_null", "10"), (4, "v", "null_rate", "");
    padding_of_char_lost: "bpchar", "'p' || i || '  '"; "UPDATE T SET v = rtrim(v::text)" => (2, "v", "trailing_blanks_lost", "10");
    // Documents.
    jsonb_numbers_rounded: "jsonb", "jsonb_build_object('n', 12345678901234567890 + i)"; "UPDATE T SET v = jsonb_build_object('n', (v->>'n')::float8::numeric)" => (2, "v", "json_numbers_rounded", "3");
    jsonb_number_scale_lost: "jsonb", "jsonb_build_object('n', i + 0.10)"; "UPDATE T SET v = jsonb_build_object('n', trim_scale((v->>'n')::numeric))" => (2, "v", "json_number_scale", "3");
    json_reformatted: "json", "('{\"a\":' || i || '}')::json"; "UPDATE T SET v = v::jsonb::text::json" => (2, "v", "json_reformatted", "3");
    json_keys_sorted: "json", "('{\"b\":1,\"a\":' || i || '}')::json"; "UPDATE T SET v = v::jsonb::text::json" => (2, "v", "json_key_order", "3");
    json_duplicate_keys_lost: "json", "('{\"a\":0,\"a\":' || i || '}')::json"; "UPDATE T SET v = v::jsonb::text::json" => (2, "v", "json_duplicate_keys_lost", "3");
    json_null_became_null: "jsonb", "CASE WHEN i % 10 = 0 THEN 'null' ELSE to_jsonb(i) END"; "UPDATE T SET v = NULL WHERE v = 'null'" => (2, "v", "json_null_became_null", "10"), (4, "v", "null_rate", "");
    json_encoded_twice: "jsonb", "jsonb_build_object('n', i)"; "UPDATE T SET v = to_jsonb(v::text)" => (2, "v", "json_encoded_twice", "3");
    // Bytes.
    bytea_kept_as_hex: "bytea", "sha256(i::text::bytea)"; "UPDATE T SET v = convert_to(encode(v, 'hex'), 'UTF8')" => (2, "v", "bytea_text_kept", "3");
    bytea_kept_as_base64: "bytea", "sha256(i::text::bytea)"; "UPDATE T SET v = convert_to(encode(v, 'base64'), 'UTF8')" => (2, "v", "bytea_text_kept", "3");
    bytea_kept_as_escapes: "bytea", "sha256(i::text::bytea)"; "UPDATE T SET v = convert_to(encode(v, 'escape'), 'UTF8')" => (2, "v", "bytea_text_kept", "3");
    bytea_truncated: "bytea", "sha256(i::text::bytea)"; "UPDATE T SET v = substr(v, 1, 16)" => (2, "v", "truncated", "3");
    bytea_ended_at_zero: "bytea", "convert_to('abc', 'UTF8') || '\\x00'::bytea || convert_to(i::text, 'UTF8')"; "UPDATE T SET v = substr(v, 1, 3)" => (2, "v", "truncated", "3");
    // Other types.
    enum_label_moved: "mood", "(ARRAY['sad', 'ok', 'happy'])[1 + i % 3]::mood"; "UPDATE T SET v = 'ok' WHERE i IN (3, 6)" => (2, "v", "enum_label_moved", "3");
    array_bounds_lost: "int[]", "('[0:1]={' || i || ',2}')::int[]"; "UPDATE T SET v = ARRAY(SELECT unnest(v))" => (2, "v", "array_bounds_changed", "3");
    array_flattened: "int[]", "ARRAY[[i, 2], [3, 4]]"; "UPDATE T SET v = ARRAY(SELECT unnest(v))" => (2, "v", "array_dimensions_changed", "3");
    array_nulls_lost: "text[]", "ARRAY['x', NULL, 'y' || i]"; "UPDATE T SET v = array_remove(v, NULL)" => (2, "v", "array_nulls_lost", "3");
    array_nulls_became_text: "text[]", "ARRAY['x', NULL, 'y' || i]"; "UPDATE T SET v = array_replace(v, NULL, 'NULL')" => (2, "v", "array_null_became_text", "3");
    array_order_lost: "text[]", "ARRAY['z', 'y' || i]"; "UPDATE T SET v = ARRAY(SELECT x FROM unnest(v) AS x ORDER BY x)" => (2, "v", "array_order_changed", "3");
    array_element_changed: "text[]", "ARRAY['z', 'y' || i]"; "UPDATE T SET v[1] = 'Z' WHERE i = 3" => (2, "v", "array_element_changed", "3");
    array_emptied: "int[]", "ARRAY[i]"; "UPDATE T SET v = '{}' WHERE i < 20" => (2, "v", "array_emptied", "3"), (4, "v", "empty_rate", "");
    booleans_inverted: "boolean", "i % 3 = 0"; "UPDATE T SET v = NOT v" => (2, "v", "boolean_inverted", "3"), (3, "v", "distribution_shifted", "");
    uuid_as_guid: "uuid", "md5(i::text)::uuid"; "UPDATE T SET v = regexp_replace(v::text, '^(..)(..)(..)(..)-(..)(..)-(..)(..)', '\\4\\3\\2\\1-\\6\\5-\\8\\7')::uuid" => (2, "v", "uuid_byte_order", "3");
    inet_mask_lost: "inet", "('10.0.0.' || i || '/24')::inet"; "UPDATE T SET v = host(v)::inet" => (2, "v", "inet_mask_lost", "3");
    bits_padded: "varbit", "i::bit(8)::varbit"; "UPDATE T SET v = v || B'000'" => (2, "v", "bits_padded", "3");
    range_bounds_changed: "numrange", "numrange(i, i + 10)"; "UPDATE T SET v = numrange(lower(v), upper(v), '[]')" => (2, "v", "range_bounds_changed", "3");
    // Rows.
    rows_lost: "int4", "i"; "DELETE FROM T WHERE i IN (5, 6)" => (1, "-", "missing_row", "6");
    rows_added: "int4", "i"; "INSERT INTO T VALUES (1000, 1, 'w')" => (1, "-", "extra_row", "1000");
    rows_doubled: "int4", "i"; "ALTER TABLE T DROP CONSTRAINT T_pkey; INSERT INTO T SELECT * FROM T WHERE i = 7" => (1, "-", "duplicate_row", "7"), (0, "-", "primary_key_differs", "");
    key_changed: "text", "md5(i::text)"; "UPDATE T SET i = i + 1000 WHERE i IN (9, 10)" => (1, "i", "key_changed", "9");
    values_exchanged_between_rows: "text", "md5(i::text)"; "UPDATE T SET v = md5((25 - i)::text) WHERE i IN (12, 13)" => (2, "v", "swapped_between_rows", "12");
    columns_exchanged: "text", "md5(i::text)"; "UPDATE T SET (v, w) = (w, v) WHERE i < 20" => (2, "v", "columns_swapped", "3"), (2, "w", "columns_swapped", "3");
    column_shifted_by_a_row: "text", "md5(i::text)"; "UPDATE T SET v = md5((i - 1)::text) WHERE i > 1" => (2, "v", "shifted_by_a_row", "3");
    one_value_in_all_rows: "text", "md5(i::text)"; "UPDATE T SET v = 'the same'" => (2, "v", "one_value_in_all_rows", "3"), (3, "v", "distinct_values_changed", "");
    // Schema.
    default_lost: "int4", "i", also "ALTER TABLE T ALTER v SET DEFAULT 7"; "ALTER TABLE T ALTER v DROP DEFAULT" => (0, "v", "default_lost", "");
    default_changed: "int4", "i", also "ALTER TABLE T ALTER v SET DEFAULT 7"; "ALTER TABLE T ALTER v SET DEFAULT 8" => (0, "v", "default_differs", "");
    identity_lost: "int4", "i", also "ALTER TABLE T ALTER v SET NOT NULL; ALTER TABLE T ALTER v ADD GENERATED ALWAYS AS IDENTITY"; "ALTER TABLE T ALTER v DROP IDENTITY" => (0, "v", "identity_lost", "");
    generated_column_lost: "int4", "i", also "ALTER TABLE T ADD g int GENERATED ALWAYS AS (v * 2) STORED"; "ALTER TABLE T ALTER g DROP EXPRESSION" => (0, "g", "generated_column_lost", "");
    not_null_lost: "int4", "i", also "ALTER TABLE T ALTER v SET NOT NULL"; "ALTER TABLE T ALTER v DROP NOT NULL" => (0, "v", "nullability_differs", "");
    integer_widened: "int4", "i"; "ALTER TABLE T ALTER v TYPE int8" => (0, "v", "type_differs", "");
    length_shortened: "varchar(40)", "'x' || i"; "ALTER TABLE T ALTER v TYPE varchar(20)" => (0, "v", "type_modifier_differs", "");
    time_zone_of_column_dropped: "timestamptz", "'2024-01-01+00'::timestamptz + i * interval '1 hour'"; "ALTER TABLE T ALTER v TYPE timestamp USING v AT TIME ZONE 'Asia/Kolkata'" => (0, "v", "type_differs", ""), (2, "v", "constant_offset", "3");
    collation_changed: "text", "'x' || i", also "ALTER TABLE T ALTER v TYPE text COLLATE \"C\""; "ALTER TABLE T ALTER v TYPE text COLLATE \"POSIX\"" => (0, "v", "collation_differs", "");
    column_lost: "int4", "i"; "ALTER TABLE T DROP w" => (0, "w", "column_missing", "");
    column_added: "int4", "i"; "ALTER TABLE T ADD x int" => (0, "x", "column_extra", "");
    check_lost: "int4", "i", also "ALTER TABLE T ADD CONSTRAINT T_c CHECK (v > 0)"; "ALTER TABLE T DROP CONSTRAINT T_c" => (0, "-", "check_missing", "");
    unique_lost: "int4", "i", also "ALTER TABLE T ADD CONSTRAINT T_u UNIQUE (v)"; "ALTER TABLE T DROP CONSTRAINT T_u" => (0, "-", "unique_missing", "");
    foreign_key_lost: "int4", "i", also "ALTER TABLE T ADD CONSTRAINT T_f FOREIGN KEY (v) REFERENCES T (i)"; "ALTER TABLE T DROP CONSTRAINT T_f" => (0, "-", "foreign_key_missing", "");
    foreign_key_not_validated: "int4", "i", also "ALTER TABLE T ADD CONSTRAINT T_f FOREIGN KEY (v) REFERENCES T (i)"; "ALTER TABLE T DROP CONSTRAINT T_f; ALTER TABLE T ADD CONSTRAINT T_f FOREIGN KEY (v) REFERENCES T (i) NOT VALID" => (0, "-", "foreign_key_not_validated", "");
    index_lost: "int4", "i", also "CREATE INDEX T_i ON T (v)"; "DROP INDEX T_i" => (0, "-", "index_missing", "");
    index_invalid: "int4", "i", also "CREATE INDEX T_i ON T (v)"; "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'T_i'::regclass" => (0, "-", "index_invalid", "");
    trigger_lost: "int4", "i", also "CREATE TRIGGER T_t BEFORE UPDATE ON T FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"; "DROP TRIGGER T_t ON T" => (0, "-", "trigger_missing", "");
    trigger_disabled: "int4", "i", also "CREATE TRIGGER T_t BEFORE UPDATE ON T FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"; "ALTER TABLE T DISABLE TRIGGER T_t" => (0, "-", "trigger_enabled_differs", "");
    row_security_lost: "int4", "i", also "ALTER TABLE T ENABLE ROW LEVEL SECURITY; CREATE POLICY T_p ON T USING (v > 0)"; "ALTER TABLE T DISABLE ROW LEVEL SECURITY; DROP POLICY T_p ON T" => (0, "-", "row_security_differs", ""), (0, "-", "policy_missing", "");
    became_unlogged: "int4", "i"; "ALTER TABLE T SET UNLOGGED" => (0, "-", "persistence_differs", "");
    enum_labels_reordered: "T_e", "CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END::T_e"; "CREATE TYPE T_n AS ENUM ('b', 'a'); ALTER TABLE T ALTER v TYPE T_n USING v::text::T_n; DROP TYPE T_e; ALTER TYPE T_n RENAME TO T_e" => (0, "v", "enum_order_differs", "");
    sequence_fell_behind: "int4", "i", also "CREATE SEQUENCE T_s OWNED BY T.v; SELECT setval('T_s', 500)"; "SELECT setval('T_s', 100)" => (0, "-", "sequence_behind", "");
}

/// SQL about `T`, the case's table.
fn of_table(sql: &str, name: &str) -> String {
    let mut words = String::new();
    let mut before = ' ';
    let characters: Vec<char> = sql.chars().collect();
    for (at, c) in characters.iter().enumerate() {
        let after = characters.get(at + 1).copied().unwrap_or(' ');
        let word = |c: char| c.is_alphanumeric() || c == '$';
        if *c == 'T' && !word(before) && before != '_' && !word(after) {
            words.push_str(name);
        } else {
            words.push(*c);
        }
        before = *c;
    }
    words
}

fn build(session: &Session, schema: &str, inject: bool) {
    let mut sql = format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path TO {schema}; SET TimeZone TO 'UTC';
         CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE TYPE enum_labels_reordered_e AS ENUM ('a', 'b');"
    );
    for Case { name, kind, value, also, inject: injected, .. } in CASES {
        sql.push_str(&of_table(
            &format!(
                "CREATE TABLE T (i int PRIMARY KEY, v {kind}, w text);
                 INSERT INTO T SELECT i, {value}, 'w' || i FROM generate_series(1, 200) AS i; {also};"
            ),
            name,
        ));
        if inject {
            sql.push_str(&of_table(&format!("{injected};\n"), name));
        }
    }
    session.run(&sql).unwrap();
}

/// The databases, and the reports on each schema.
pub(super) struct Checked {
    pub(super) migration: Migration,
    pub(super) public: (i32, Json),
    control: (i32, Json),
    alike: (i32, Json),
}

pub(super) fn checked() -> &'static Checked {
    static CHECKED: OnceLock<Checked> = OnceLock::new();
    CHECKED.get_or_init(|| {
        let migration = Migration::shared("corruption").unwrap();
        let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
        for (schema, of_source, of_target) in
            [("public", false, true), ("control", false, false), ("alike", true, true)]
        {
            build(&source, schema, of_source);
            build(&target, schema, of_target);
        }
        let public = check(&migration, "public", &[]);
        let control = check(&migration, "control", &[]);
        let alike = check(&migration, "alike", &[]);
        Checked { migration, public, control, alike }
    })
}

fn check(migration: &Migration, schema: &str, arguments: &[&str]) -> (i32, Json) {
    // Each check has a configuration and a report of its own, because tests run side by side.
    static CHECKS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = CHECKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut config: toml::Table = std::fs::read_to_string(migration.config()).unwrap().parse().unwrap();
    let tables = toml::Value::Array(vec![format!("{schema}.*").into()]);
    config["migration"].as_table_mut().unwrap().insert("tables".into(), tables);
    let path = migration.folder.join(format!("check-{number}.toml"));
    std::fs::write(&path, config.to_string()).unwrap();
    let json = migration.folder.join(format!("report-{number}.json"));
    let fixed = ["check".to_owned(), "--json".to_owned(), json.display().to_string()];
    let said =
        services::run("validator", &path, fixed.into_iter().chain(arguments.iter().map(|a| (*a).to_owned()))).unwrap();
    let code = said.code.unwrap();
    let text = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("code {code}: {}{}", said.stdout, said.stderr));
    (code, serde_json::from_str(&text).unwrap())
}

fn table<'a>(report: &'a Json, name: &str) -> &'a Json {
    report["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap()
}

/// Findings that are no notes, as level, column, cause and keys.
fn found(report: &Json, name: &str) -> Vec<(u64, String, String, Vec<String>)> {
    let findings = table(report, name)["findings"].as_array().unwrap();
    let one = |finding: &Json| {
        let text = |field: &str| finding[field].as_str().unwrap_or("-").to_owned();
        let key = |key: &Json| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        let keys = finding["keys"].as_array().unwrap().iter().map(key).collect();
        (finding["level"].as_u64().unwrap(), text("column"), text("cause"), keys)
    };
    findings.iter().filter(|finding| finding["note"] != true).map(one).collect()
}

fn caught(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let (code, report) = &checked().public;
    assert_eq!(*code, 1);
    let findings = found(report, &format!("public.{name}"));
    for (level, column, cause, key) in case.expected {
        let alike = |(of_level, of_column, of_cause, keys): &(u64, String, String, Vec<String>)| {
            of_level == &u64::from(*level)
                && of_column == column
                && of_cause == cause
                && (key.is_empty() || keys.iter().any(|known| known == key))
        };
        assert!(findings.iter().any(alike), "{level} {column} {cause} {key} is not among {findings:?}");
    }
    // Nothing else is wrong with the table.
    let proved = findings.iter().filter(|(level, ..)| *level <= 2).count();
    let expected = case.expected.iter().filter(|(level, ..)| *level <= 2).count();
    assert_eq!(proved, expected, "{findings:?}");
}

/// What is wrong with a report that should have nothing.
fn wrong((code, report): &(i32, Json)) -> Vec<String> {
    let tables = report["tables"].as_array().unwrap();
    let bad =
        tables.iter().filter(|table| table["verdict"] != "match" || !table["records"].as_array().unwrap().is_empty());
    let line = |table: &Json| format!("{}: {} {}", table["table"], table["reason"], table["findings"]);
    let mut lines: Vec<String> = bad.map(line).collect();
    if *code != 0 || tables.len() < CASES.len() {
        lines.push(format!("code {code}, {} tables", tables.len()));
    }
    lines
}

#[test]
fn control_tables_without_a_corruption_have_no_finding() {
    let lines = wrong(&checked().control);
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}

#[test]
fn control_values_that_look_corrupted_on_both_sides_are_no_finding() {
    let lines = wrong(&checked().alike);
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}

#[test]
fn details_say_how_much_and_no_value() {
    let (_, report) = &checked().public;
    for (name, detail) in [
        ("times_off_by_5_30", "of 5:30:00 on all 200 rows examined"),
        ("local_times_taken_for_utc", "of 1:00:00 in winter and 2:00:00 in summer"),
        ("truncated_to_five", "to 5 characters"),
        ("truncated_far_behind", "to 3000 characters"),
        ("rounded_to_two_places", "to 2 places"),
        ("scale_trimmed", "1 zeros at the end"),
        ("columns_exchanged", "with column w"),
        ("utf8_read_as_latin1_twice", "twice"),
        ("money_times_a_hundred", "by 10 to the power of 2"),
    ] {
        let findings = table(report, &format!("public.{name}"))["findings"].as_array().unwrap();
        assert!(findings.iter().any(|finding| finding["detail"] == detail), "{name}: {findings:#?}");
    }
}

#[test]
fn records_of_differing_values_are_masked_unless_they_are_asked_for() {
    let Checked { migration, public: (_, report), .. } = checked();
    let records = |report: &Json| table(report, "public.case_folded")["records"].as_array().unwrap().clone();
    let masked = records(report);
    assert_eq!(masked.len(), 200);
    let third = |records: &[Json]| records.iter().find(|record| record["key"] == "3").unwrap().clone();
    let record = third(&masked);
    assert_eq!(
        (&record["column"], &record["cause"], &record["differs_at"]),
        (&"v".into(), &"case_changed".into(), &0.into())
    );
    assert_eq!(record["source"], serde_json::json!({"kind": "text", "length": 6}));
    assert!(!report.to_string().contains("Code 3"), "a value is in a report that masks them");
    let (_, shown) = check(migration, "public", &["--table", "public.case_folded", "--show-values"]);
    let record = third(&records(&shown));
    assert_eq!((&record["source"]["text"], &record["target"]["text"]), (&"Code 3".into(), &"code 3".into()));
}

#[test]
fn statistics_of_every_column_are_reported_for_both_sides() {
    let (_, report) = &checked().public;
    let column = |name: &str| table(report, &format!("public.{name}"))["columns"][1].clone();
    let money = column("money_times_a_hundred");
    assert_eq!((&money["column"], &money["type_name"]), (&"v".into(), &"money".into()));
    let distribution = &money["distribution"];
    assert_eq!(
        (&distribution["source"]["maximum"], &distribution["target"]["maximum"]),
        (&200.0.into(), &20000.0.into())
    );
    assert!(
        distribution["ks"].as_f64().unwrap() > 0.9 && distribution["psi"].as_f64().unwrap() > 0.25,
        "{distribution:#}"
    );
    let bins =
        |side: &str| distribution["histogram"][side].as_array().unwrap().iter().filter_map(Json::as_u64).sum::<u64>();
    assert_eq!((bins("source"), bins("target")), (200, 200));
    let edges = distribution["histogram"]["edges"].as_array().unwrap().len();
    assert_eq!(edges, distribution["histogram"]["source"].as_array().unwrap().len() + 1);
    let nulls = &column("empty_became_null")["counted"];
    assert_eq!((&nulls["source"]["nulls"], &nulls["target"]["nulls"]), (&0.into(), &20.into()));
    assert_eq!((&nulls["source"]["empty"], &nulls["source"]["rows"]), (&20.into(), &200.into()));
    let enums = &column("enum_label_moved")["distribution"];
    assert_eq!(enums["histogram"]["labels"], serde_json::json!(["sad", "ok", "happy"]));
    assert_eq!(table(report, "public.case_folded")["records_sampled"], 200);
}

#[test]
fn a_check_without_column_sums_is_no_proof_and_finds_what_the_others_see() {
    let migration = &checked().migration;
    for levels in ["0,1", "3,5", "4", "0"] {
        let (code, report) = check(migration, "control", &["--table", "control.case_folded", "--levels", levels]);
        assert_eq!((code, report["verdict"].as_str()), (2, Some("inconclusive")), "{levels}: {report:#}");
    }
    let (code, _) = check(migration, "control", &["--table", "control.case_folded", "--levels", "2"]);
    assert_eq!(code, 0);
    for (levels, name, level, cause) in [
        ("5", "case_folded", 5, "case_changed"),
        ("5", "rows_lost", 5, "missing_row"),
        ("4", "empty_became_null", 4, "null_rate"),
        ("3", "money_times_a_hundred", 3, "distribution_shifted"),
        ("1", "rows_lost", 1, "missing_row"),
        ("0", "index_lost", 0, "index_missing"),
    ] {
        let name = format!("public.{name}");
        let (code, report) = check(migration, "public", &["--table", &name, "--levels", levels]);
        let findings = found(&report, &name);
        assert_eq!(code, 1, "{levels}: {report:#}");
        assert!(findings.iter().any(|(of, _, named, _)| (*of, named.as_str()) == (level, cause)), "{findings:?}");
        assert!(findings.iter().all(|(of, ..)| *of == level), "another level spoke: {findings:?}");
    }
}
