//! Every type through both paths: present before the backfill, and inserted, updated and deleted in the stream; as column, as
//! key (or, where no key can be, as a row that is found by its whole image), as array, as domain and in a composite. The text
//! and the binary form of each value are compared by PostgreSQL's own output and send functions.
//!
//! Two tables for each type: `c_NAME` (id, the value, an array of it, a domain over it, an array of the domain, a composite
//! with it) and `k_NAME` (the value, a number), whose key is the value.

use std::fmt::Write as _;

use changelog::table::quote_literal;
use tests::postgres::{Options, Server};
use tests::sql::Session;

use crate::moving::{Moving, rows_sql};

/// What is tried of one type.
struct Case {
    /// Also the name of its tables.
    name: &'static str,
    sql_type: &'static str,
    values: &'static [&'static str],
    /// Whether a btree index can order it.
    key: bool,
    /// The first version of the source that has it.
    since: u16,
}

const fn case(name: &'static str, sql_type: &'static str, values: &'static [&'static str]) -> Case {
    Case { name, sql_type, values, key: true, since: 14 }
}

/// Of a type without a btree order.
const fn unordered(name: &'static str, sql_type: &'static str, values: &'static [&'static str]) -> Case {
    Case { key: false, ..case(name, sql_type, values) }
}

const fn since(version: u16, case: Case) -> Case {
    Case { since: version, ..case }
}

const SETUP: &str = "
    CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION seg; CREATE EXTENSION isn;
    CREATE SCHEMA \"Ext.1\"; CREATE EXTENSION citext SCHEMA \"Ext.1\";
    CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"', 'Happy', 'null', '');
    CREATE TYPE inner_row AS (t text, n numeric, f float8);
    CREATE TYPE outer_row AS (i inner_row, a inner_row[], m mood, \"Odd. Name\" int);
    CREATE TYPE textrange AS RANGE (subtype = text, collation = \"C\");
    CREATE DOMAIN five AS varchar(5) CHECK (VALUE <> 'never');
    CREATE DOMAIN five_more AS five CHECK (length(VALUE) < 5);
    CREATE DOMAIN cents AS numeric(12,2); CREATE DOMAIN price AS cents CHECK (VALUE <> -1);
    CREATE DOMAIN pair AS inner_row CHECK ((VALUE).t <> 'never');
    CREATE DOMAIN ints AS int[] CHECK (array_length(VALUE, 1) < 9);
    CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";

const DIGITS: &str = "123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890";

const CASES: &[Case] = &[
    case("bool", "bool", &["t", "f"]),
    case("int2", "int2", &["-32768", "-1", "0", "32767"]),
    case("int4", "int4", &["-2147483648", "0", "2147483647"]),
    case("int8", "int8", &["-9223372036854775808", "0", "9223372036854775807"]),
    case(
        "numeric",
        "numeric",
        &["NaN", "Infinity", "-Infinity", "0", "0.000", "1.0", "-1.50", "1e-1000", "1e1000", "-1e131071", DIGITS],
    ),
    case("numeric_10_4", "numeric(10,4)", &["NaN", "0", "-0.0001", "999999.9999", "1.5"]),
    case("numeric_1000_500", "numeric(1000,500)", &["1e499", "-1e-500", "0", "12.34"]),
    since(15, case("numeric_3_m2", "numeric(3,-2)", &["12300", "-99900", "0"])),
    since(15, case("numeric_2_5", "numeric(2,5)", &["0.00012", "-0.00099", "0"])),
    case("float4", "float4", &["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1", "16777217"]),
    case(
        "float8",
        "float8",
        &["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.30000000000000004", "1e22"],
    ),
    case("money", "money", &["-92233720368547758.08", "92233720368547758.07", "0.01", "1234567.89"]),
    case(
        "date",
        "date",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "0044-03-15 BC",
            "0001-01-01",
            "2000-02-29",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
        ],
    ),
    case("time", "time", &["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.1"]),
    case("time_3", "time(3)", &["23:59:59.999", "24:00:00", "01:02:03.4"]),
    case("timetz", "timetz", &["24:00:00+15:59:59", "00:00:00-15:59:59", "12:34:56.789+05:30", "12:34:56.789-00"]),
    case(
        "timestamp",
        "timestamp",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "0001-12-31 23:59:59.999999 BC",
            "0001-01-01",
            "1970-01-01 00:00:00.000001",
            "9999-12-31 23:59:59.999999",
            "10000-01-01",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    case("timestamp_0", "timestamp(0)", &["1999-12-31 23:59:59.5", "infinity"]),
    case(
        "timestamptz",
        "timestamptz",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00+00 BC",
            "0001-01-01 00:00:00+00",
            "1883-11-18 12:03:57-04:56:02",
            "2024-06-30 12:34:56.789+05:30",
            "294276-12-31 23:59:59.999999+00",
        ],
    ),
    case(
        "interval",
        "interval",
        &[
            "1 year -2 mons +3 days -04:05:06.789",
            "-1 year +2 mons -3 days +04:05:06.000001",
            "178000000 years",
            "2147483647 days",
            "-00:00:00.000001",
            "0",
            "13 mons -400 days",
        ],
    ),
    since(
        15,
        case(
            "interval_far",
            "interval",
            &["-178956970 years -8 mons", "-2147483648 days", "2562047788:00:54.775807", "-2562047788:00:54.775807"],
        ),
    ),
    case("interval_ym", "interval year to month", &["5 years -3 mons", "-1 mon"]),
    since(17, case("interval_inf", "interval", &["infinity", "-infinity", "1 day"])),
    case("bit_1", "bit(1)", &["0", "1"]),
    case("bit_9", "bit(9)", &["101010101", "000000000", "111111111"]),
    case("varbit", "varbit", &["", "1", "0000000000000", "11111111111111111"]),
    case("varbit_4", "varbit(4)", &["", "1010"]),
    case("bytea", "bytea", &["", "\\x00", "\\x00ff5c27220a0d09", "\\x5c78"]),
    case(
        "text",
        "text",
        &[
            "",
            " ",
            "NULL",
            "\\N",
            "\\.",
            "\\",
            "~",
            "a\tb\nc\rd\u{b}e\u{8}f\u{c}",
            "it's \"quoted\" {a,b} (x)",
            "\u{1}\u{7f}",
            "ä😀\u{301}\u{fffd}\u{10ffff}",
            "__debezium_unavailable_value",
            "$1 %s {} \u{feff}",
        ],
    ),
    case("text_folded", "text COLLATE folded", &["abc", "Straße", "É", ""]),
    case("varchar_5", "varchar(5)", &["", "abcde", "ab   ", "äöü😀 "]),
    case("char_5", "char(5)", &["", "ab", "abcde", " a b", "ä"]),
    case("bpchar", "bpchar", &["", "ab", "ab    ", "trailing  "]),
    case("name", "name", &["", "a", "Name with \"quotes\" and dots. of sixty-three bytes ------------ü"]),
    case("one_char", "\"char\"", &["", "a", "\\", " ", "'"]),
    case("uuid", "uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    unordered(
        "json",
        "json",
        &[" {\"b\" : 1,\n \"a\":1e400, \"a\": 2 } ", "\"\\u0000 \\ud800 \\/\"", "null", "[]", "1.0", "-0.0e-99999"],
    ),
    case(
        "jsonb",
        "jsonb",
        &[
            "{\"b\": 123456789012345678901234567890.12345678901234567890, \"a\": 1e-300, \"c\": -0.00}",
            "\"\\\" \\\\ \\/ \\b \\u00e9 \\ud83d\\ude00 \\u0001\"",
            "null",
            "[]",
            "{}",
            "[1.10, 1.1, null, {\"\": \"\"}]",
            "1e1000",
        ],
    ),
    unordered("jsonpath", "jsonpath", &["$.\"a b\"[*] ? (@ > 1.50 && !(@ == \"x\"))", "strict $.a.**{2 to last}"]),
    unordered(
        "xml",
        "xml",
        &[
            "<a b=\"1\">x &lt; y</a>",
            "text <b/> more",
            "",
            "<?xml version=\"1.0\" standalone=\"yes\"?><r/>",
            "<![CDATA[ <raw> ]]><!-- c -->",
            " <a/> ",
        ],
    ),
    case("inet", "inet", &["1.2.3.4", "1.2.3.4/24", "0.0.0.0/0", "::1", "::ffff:1.2.3.4/128", "2001:db8::1/64"]),
    case("cidr", "cidr", &["10.0.0.0/8", "1.2.3.4/32", "::/0", "2001:db8::/32"]),
    case("macaddr", "macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
    case("macaddr8", "macaddr8", &["08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"]),
    unordered("point", "point", &["(1.5,-0)", "(NaN,Infinity)", "(1e-300,0.1)"]),
    unordered("line", "line", &["{1,-1,0}", "{0.1,0.2,0.3}"]),
    unordered("lseg", "lseg", &["[(0,0),(1,0.1)]"]),
    unordered("box", "box", &["(2,2),(0,0.1)"]),
    unordered("path", "path", &["[(0,0),(1,1),(2,0)]", "((0,0),(1,1),(2,0))"]),
    unordered("polygon", "polygon", &["((0,0),(1,1),(2,0.30000000000000004))"]),
    unordered("circle", "circle", &["<(1,2),3>", "<(0,0),0>"]),
    case("int4range", "int4range", &["empty", "[1,5)", "(,)", "[,7)", "[7,)"]),
    case("int8range", "int8range", &["empty", "[-9223372036854775808,5)"]),
    case("numrange", "numrange", &["empty", "[1.10,2.0]", "(-Infinity,NaN)", "(,)"]),
    case("tsrange", "tsrange", &["empty", "[-infinity,infinity]", "(0044-03-15 BC,2024-01-01 12:00:00.5)"]),
    case("tstzrange", "tstzrange", &["empty", "[2024-01-01 00:00:00+05:30,infinity)"]),
    case("daterange", "daterange", &["empty", "[-infinity,2024-01-01)", "[2024-01-01,infinity]"]),
    case("textrange", "textrange", &["empty", "[\"a,b\",\"c\"\"d\"]", "(,\"\\\\\")", "[\"\",\"\"]"]),
    case("int4multirange", "int4multirange", &["{}", "{[1,3),[5,7)}", "{(,)}"]),
    case("nummultirange", "nummultirange", &["{}", "{[1.10,2.0],(3,NaN]}"]),
    case("tstzmultirange", "tstzmultirange", &["{[2024-01-01 00:00:00+05:30,2024-01-02),[infinity,infinity]}"]),
    case("textmultirange", "textmultirange", &["{}", "{[\"a,b\",\"c\"\"d\"],[x,)}"]),
    case(
        "int_array",
        "int[]",
        &["{}", "{1,NULL,3}", "{{1,2},{3,NULL}}", "[0:1]={1,2}", "[-2:-1][5:6]={{1,2},{3,4}}", "{{{1}},{{2}}}"],
    ),
    case(
        "text_array",
        "text[]",
        &["{}", "{NULL,\"NULL\",\"\",\"a,b\",\"\\\"q\\\"\",\"{x}\",\"\\\\\",\" \"}", "[3:4]={a,b}"],
    ),
    case("numeric_array", "numeric(10,2)[]", &["{NaN,1,NULL}", "[0:0]={1.5}"]),
    case("char_array", "char(3)[]", &["{a,\"b \",NULL}"]),
    case("timestamptz_array", "timestamptz[]", &["{infinity,\"0044-03-15 00:00:00+00 BC\",NULL}"]),
    case("mood", "mood", &["sad", "it's \"ok\"", "Happy", "null", ""]),
    case(
        "inner_row",
        "inner_row",
        &["(,,)", "(\"\",NaN,-0)", "(\"a,b \"\"q\"\" \\\\ (x)\",1.10,Infinity)", "(null,0,1e-300)"],
    ),
    unordered(
        "outer_row",
        "outer_row",
        &[r#"("(""a,""""b"",1.0,NaN)","{""(x,1,2)"",NULL}",Happy,7)"#, "(,,,)", "(\"(,,)\",{},null,-1)"],
    ),
    case("five", "five", &["", "abcde", "a    "]),
    case("five_more", "five_more", &["", "abc", "a   "]),
    case("price", "price", &["NaN", "0.00", "1234567890.12"]),
    case("pair", "pair", &["(a,1.50,-0)", "(\"\",,)"]),
    case("ints", "ints", &["{1,NULL}", "[5:6]={1,2}"]),
    unordered("tsvector", "tsvector", &["", "'a b':1A,2B 'c' '''q''':16383", "'\\\\':3"]),
    unordered("tsquery", "tsquery", &["", "'a b' & !( 'c' <2> 'd':*AB ) | '''q'''"]),
    case("pg_lsn", "pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    case("oid", "oid", &["0", "4294967295"]),
    unordered("xid", "xid", &["0", "4294967295"]),
    case("xid8", "xid8", &["0", "18446744073709551615"]),
    unordered("cid", "cid", &["0", "4294967295"]),
    case("tid", "tid", &["(0,1)", "(4294967295,65535)"]),
    unordered("int2vector", "int2vector", &["", "1 -2 3"]),
    case("oidvector", "oidvector", &["", "1 4294967295"]),
    case("regtype", "regtype", &["integer", "-", "timestamp with time zone"]),
    case("regclass", "regclass", &["pg_class", "4294967295"]),
    case("regproc", "regproc", &["now", "-"]),
    unordered("pg_snapshot", "pg_snapshot", &["10:20:10,14,15"]),
    unordered("txid_snapshot", "txid_snapshot", &["10:20:10,14,15"]),
    unordered("refcursor", "refcursor", &["it's"]),
    unordered("aclitem", "aclitem", &["postgres=r*w/postgres", "=r/postgres"]),
    case("hstore", "hstore", &["", "a=>NULL, \"b c\"=>\"d\\\"e\", \"\"=>\"\", \"NULL\"=>\"NULL\"", "\"\\\\\"=>\"=>\""]),
    case("citext", "\"Ext.1\".citext", &["", "AbC", "it's \"q\"", "Ä"]),
    case("ltree", "ltree", &["", "Top.Science.a_1"]),
    unordered("lquery", "lquery", &["Top.*{1,2}.!a|b*@"]),
    unordered("ltxtquery", "ltxtquery", &["a & !b*@"]),
    case("cube", "cube", &["(1,2),(3,0.1)", "(NaN)", "()"]),
    case("seg", "seg", &["1.50", "1.5 .. 2.50", "~2", "<3"]),
    case("isbn13", "isbn13", &["978-0-11-000533-1"]),
];

impl Case {
    /// The type without its collation, which a cast does not take.
    fn plain(&self) -> &str {
        self.sql_type.split(" COLLATE").next().unwrap_or_default()
    }

    fn literal(&self, value: &str) -> String {
        format!("{}::{}", quote_literal(value), self.plain())
    }

    fn tables(&self) -> String {
        let (name, sql_type) = (self.name, self.sql_type);
        let plain = self.plain();
        let (collation, constraint) =
            (sql_type.strip_prefix(plain).unwrap_or_default(), if self.key { " PRIMARY KEY" } else { "" });
        format!(
            "CREATE DOMAIN d_{name} AS {sql_type}; CREATE TYPE r_{name} AS (a {sql_type}, b {sql_type});
             CREATE TABLE c_{name} (id int PRIMARY KEY, v {sql_type}, a {plain}[]{collation}, d d_{name}, da d_{name}[], r r_{name});
             CREATE TABLE k_{name} (v {sql_type}{constraint}, n int);"
        )
    }

    /// A row of `c_NAME` for each value, and one of nulls.
    fn rows(&self, first_id: usize) -> String {
        let (name, last) = (self.name, self.values.len() - 1);
        let mut sql = format!("INSERT INTO c_{name} (id) VALUES ({first_id});");
        for (at, value) in self.values.iter().enumerate() {
            let (one, other) = (self.literal(value), self.literal(self.values[last - at]));
            // An array of arrays is an array.
            let array = if self.sql_type.ends_with("[]") {
                one.clone()
            } else {
                format!("ARRAY[{one}, NULL::{}, {other}]", self.plain())
            };
            let _ = write!(
                sql,
                "INSERT INTO c_{name} VALUES ({}, {one}, {array}, {one}, ARRAY[{other}::d_{name}, {one}::d_{name}], \
                 ROW({one}, {other}));",
                first_id + at + 1
            );
        }
        sql
    }

    /// A row of `k_NAME` for each value; one equal to another stands once.
    fn keys(&self, number: u32) -> String {
        let values = self.values.iter().map(|value| {
            format!("INSERT INTO k_{} VALUES ({}, {number}) ON CONFLICT DO NOTHING;", self.name, self.literal(value))
        });
        values.collect()
    }

    /// Every value once more by an insert, once by an update, some deleted; keys changed, freed and taken again.
    fn changes(&self) -> String {
        let (name, count) = (self.name, self.values.len());
        let mut sql = format!(
            "{} UPDATE c_{name} AS t SET (v, a, d, da, r) = (SELECT o.v, o.a, o.d, o.da, o.r FROM c_{name} o \
             WHERE o.id = (t.id + 1) % {} + 100) WHERE t.id < 100;
             DELETE FROM c_{name} WHERE id > 100 AND id % 3 = 0; BEGIN; UPDATE k_{name} SET n = n + 1; COMMIT;",
            self.rows(100),
            count + 1
        );
        let (first, last) = (self.literal(self.values[0]), self.literal(self.values[count - 1]));
        if self.key {
            let _ = write!(
                sql,
                "DELETE FROM k_{name} WHERE v = {first}; {taken} \
                 BEGIN; DELETE FROM k_{name}; {again} UPDATE k_{name} SET n = -n; COMMIT; DELETE FROM k_{name} WHERE v = {first};",
                taken = if count > 1 {
                    format!(
                        "UPDATE k_{name} SET v = {first}, n = 7 WHERE v = {last}; INSERT INTO k_{name} VALUES ({last}, 8) ON CONFLICT DO NOTHING;"
                    )
                } else {
                    String::new()
                },
                again = self.keys(3),
            );
        } else {
            let _ = write!(
                sql,
                "DELETE FROM k_{name} WHERE v::text = ({last})::text; {} UPDATE k_{name} SET n = n * 2 WHERE n > 1; \
                 DELETE FROM k_{name} WHERE n = 2 AND v::text = ({first})::text;",
                self.keys(1)
            );
        }
        sql
    }

    /// The type's send function applied to an expression that yields a value; `None` where there is none, or where the form
    /// names OIDs of types (arrays, rows), which are each database's own.
    fn send(&self, source: &Session) -> Option<(String, String)> {
        let query = format!(
            "SELECT p.oid::regproc, p.proargtypes[0]::regtype \
             FROM pg_type t JOIN pg_proc p ON p.oid = t.typsend WHERE t.oid = {}::regtype",
            quote_literal(self.plain())
        );
        let row = source.rows(&query).unwrap().pop()?;
        let function = row[0].clone()?;
        let argument =
            row[1].clone().filter(|name| !name.starts_with("any")).unwrap_or_else(|| self.plain().to_owned());
        (!matches!(function.as_str(), "array_send" | "record_send")).then_some((function, argument))
    }

    /// Every value by its output function and, where it has one, by its send function.
    fn comparisons(&self, source: &Session) -> Vec<String> {
        let name = self.name;
        let mut queries = vec![rows_sql(&format!("c_{name}")), rows_sql(&format!("k_{name}"))];
        if let Some((function, argument)) = self.send(source) {
            let send = |expression: &str| format!("{function}(({expression})::{argument})");
            let each = |array: &str| {
                format!(
                    "(SELECT array_agg({} ORDER BY o) FROM unnest(t.{array}) WITH ORDINALITY AS u(x, o))",
                    send("x")
                )
            };
            let columns = [send("v"), each("a"), send("d"), each("da"), send("(r).a"), send("(r).b")];
            queries.push(format!("SELECT id, {} FROM c_{name} t ORDER BY id", columns.join(", ")));
            queries.push(format!("SELECT {}, n FROM k_{name} ORDER BY 1, 2", send("v")));
        }
        queries
    }
}

/// The whole matrix between two servers. `prepared`: by `dflux prepare`, else by the same DDL.
fn matrix(label: &str, versions: (u16, u16), prepared: bool) {
    let server =
        |version: u16, side: &str| Server::start(Options::new(&format!("{label}{side}")).version(version)).unwrap();
    let (source, target) = (server(versions.0, "source"), server(versions.1, "target"));
    let mut moving = Moving::between(label, &source, &target);
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.since <= versions.0).collect();
    let ddl: String = [SETUP.to_owned()].into_iter().chain(cases.iter().map(|case| case.tables())).collect();
    moving.source.run(&ddl).unwrap();
    for case in &cases {
        moving.source.run(&(case.rows(0) + &case.keys(1))).unwrap_or_else(|failure| panic!("{}: {failure}", case.name));
    }
    if prepared {
        moving.prepare();
    } else {
        moving.target.run(&ddl).unwrap();
    }
    moving.start();
    let comparisons: Vec<String> = cases.iter().flat_map(|case| case.comparisons(&moving.source)).collect();
    moving.caught_up();
    moving.assert_same(&comparisons);
    for case in &cases {
        moving.source.run(&case.changes()).unwrap_or_else(|failure| panic!("{}: {failure}", case.name));
    }
    moving.caught_up();
    moving.assert_same(&comparisons);
}

#[test]
fn every_type_arrives_as_it_was_from_15_to_15() {
    matrix("types15", (15, 15), true);
}

#[test]
fn every_type_arrives_as_it_was_from_14_to_18() {
    matrix("types1418", (14, 18), true);
}

#[test]
fn every_type_arrives_as_it_was_from_18_to_18() {
    matrix("types18", (18, 18), false);
}

#[test]
fn an_enum_value_that_is_added_while_the_lane_runs_arrives_once_the_target_has_it() {
    let mut moving = Moving::shared("enums");
    moving
        .source
        .run(
            "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN feeling AS mood; CREATE TYPE felt AS (m mood, at int);
             CREATE TABLE t (id int PRIMARY KEY, m mood, a mood[], d feeling, f felt); CREATE TABLE k (m mood PRIMARY KEY, n int); CREATE TABLE b (m mood);
             INSERT INTO t VALUES (1, 'sad', '{happy,NULL}', 'sad', '(sad,1)'); INSERT INTO k VALUES ('sad', 1); INSERT INTO b VALUES ('sad'), ('sad')",
        )
        .unwrap();
    moving.prepare();
    moving.start();
    for (value, place) in [("so-so", "AFTER 'sad'"), ("it''s \"new\"", "BEFORE 'sad'")] {
        let added = format!("ALTER TYPE mood ADD VALUE '{value}' {place}");
        moving.target.run(&added).unwrap();
        moving.source.run(&added).unwrap();
        moving
            .source
            .run(&format!(
                "UPDATE t SET m = '{value}', a = ARRAY['{value}', NULL, 'sad']::mood[], d = '{value}', f = ROW('{value}', 2); INSERT INTO t (id, m) VALUES (length('{value}'), '{value}');
                 INSERT INTO k VALUES ('{value}', 3); UPDATE k SET n = n + 1; INSERT INTO b VALUES ('{value}'), ('{value}'); DELETE FROM b WHERE ctid = (SELECT max(ctid) FROM b)"
            ))
            .unwrap();
        moving.caught_up();
        moving.assert_same([rows_sql("t"), rows_sql("k"), rows_sql("b"), "SELECT m, n FROM k ORDER BY m".to_owned()]);
    }
}
