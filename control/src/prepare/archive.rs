//! `pg_restore --verbose`'s text, cut into the entries of the archive's table of contents. Pure.
//!
//! The text says of each entry its number, the catalog and OID of the object on the source, and the numbers of the entries
//! that it depends on. OIDs tell us the table of an index or a constraint without parsing any SQL.

use crate::Error;

const MARK: &str = "\n--\n-- TOC entry ";

/// One object of the dump with the SQL that makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub id: u32,
    /// `pg_class` is 1259, `pg_constraint` 2606, `pg_trigger` 2620; 0 where the entry is no object of its own.
    pub class: u32,
    pub oid: u32,
    pub depends_on: Vec<u32>,
    pub name: String,
    /// `TABLE`, `CONSTRAINT`, `FK CONSTRAINT`, `INDEX` …
    pub kind: String,
    /// Empty for what is in no schema.
    pub schema: String,
    pub sql: String,
}

impl Entry {
    /// `TABLE public.orders`, for messages.
    pub fn title(&self) -> String {
        let dot = if self.schema.is_empty() { "" } else { "." };
        format!("{} {}{dot}{}", self.kind, self.schema, self.name)
    }
}

/// Cuts the text. The preamble and what stands after the last entry are left away.
///
/// # Errors
/// `Archive` for text of another form: better nothing than half a schema.
pub fn parse(text: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for block in text.split(MARK).skip(1) {
        let entry = block_entry(block).ok_or_else(|| Error::Archive {
            program: "pg_restore",
            message: block.lines().take(4).collect::<Vec<_>>().join(" | "),
        })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn block_entry(block: &str) -> Option<Entry> {
    let mut entry = Entry::default();
    let (first, mut rest) = block.split_once('\n')?;
    // "218 (class 1259 OID 16390)"
    let numbers = first.strip_suffix(')')?;
    let (id, object) = numbers.split_once(" (class ")?;
    let (class, oid) = object.split_once(" OID ")?;
    (entry.id, entry.class, entry.oid) = (id.parse().ok()?, class.parse().ok()?, oid.parse().ok()?);
    loop {
        let (line, after) = rest.split_once('\n')?;
        rest = after;
        if let Some(list) = line.strip_prefix("-- Dependencies: ") {
            entry.depends_on = list.split_whitespace().map(|id| id.parse().ok()).collect::<Option<_>>()?;
        } else if let Some(header) = line.strip_prefix("-- Name: ") {
            // From the right: a name may hold what looks like the next field, those after it may not.
            let (header, _owner) = header.rsplit_once("; Owner: ")?;
            let (header, schema) = header.rsplit_once("; Schema: ")?;
            let (name, kind) = header.rsplit_once("; Type: ")?;
            entry.name = name.to_owned();
            entry.kind = kind.to_owned();
            entry.schema = if schema == "-" { String::new() } else { schema.to_owned() };
        } else if line == "--" {
            break;
        }
        // Other lines ("-- Data Pos: 0") say nothing that we need.
    }
    if entry.kind.is_empty() {
        return None;
    }
    entry.sql = statements(rest);
    Some(entry)
}

/// Without the settings that pg_restore writes before the next entry, and without the end of the dump.
fn statements(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let ours = |line: &str| {
        line.is_empty()
            || line.starts_with("SET default_tablespace =")
            || line.starts_with("SET default_table_access_method =")
            || line.starts_with("-- Completed on ")
            || line == "-- PostgreSQL database dump complete"
            || line == "--"
            || line.starts_with("\\unrestrict ")
    };
    while lines.last().is_some_and(|line| ours(line)) {
        lines.pop();
    }
    let first = lines.iter().position(|line| !line.is_empty()).unwrap_or(lines.len());
    lines[first..].join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const TEXT: &str = "--
-- PostgreSQL database dump
--

\\restrict abc

SET statement_timeout = 0;

--
-- TOC entry 2 (class 3079 OID 16385)
-- Name: hstore; Type: EXTENSION; Schema: -; Owner: -
-- Data Pos: 0
--

CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- TOC entry 222 (class 1259 OID 16562)
-- Dependencies: 2 2 5
-- Name: Odd; Type: name; Type: TABLE; Schema: public; Owner: -
-- Data Pos: 0
--

CREATE TABLE public.\"Odd; Type: name\" (
    a integer

);


-- Completed on 2026-11-22 19:48:29 UTC

--
-- PostgreSQL database dump complete
--

\\unrestrict abc
";

    #[test]
    fn the_text_of_pg_restore_is_cut_into_entries() {
        let entries = parse(TEXT).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].sql, "CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;");
        assert_eq!(entries[0].title(), "EXTENSION hstore");
        let table = &entries[1];
        assert_eq!((table.id, table.class, table.oid), (222, 1259, 16562));
        assert_eq!(table.depends_on, [2, 2, 5]);
        assert_eq!((table.name.as_str(), table.kind.as_str()), ("Odd; Type: name", "TABLE"));
        assert_eq!(table.sql, "CREATE TABLE public.\"Odd; Type: name\" (\n    a integer\n\n);");
    }

    #[test]
    fn text_of_another_form_is_an_error_and_no_panic() {
        for broken in ["x", "1 (class 2 OID 3)\n", "1 (class a OID 3)\n--\n", "1 (class 2 OID 3)\n-- Name: a\n--\n"] {
            assert!(parse(&format!("{MARK}{broken}")).is_err(), "{broken}");
        }
        assert!(parse("").unwrap().is_empty());
    }
}
