//! One entry of `[databases]` in PgBouncer's configuration, found and rewritten as PgBouncer itself reads the file; every other
//! byte stays. Pure.
//!
//! The rules are those of PgBouncer's loader: a line is a section, a comment, `%include`, or `name = value` with the value to the
//! end of the line; the value is `key=value` pairs with single quotes around what holds spaces. An included file is a file of its
//! own: the configuration names the one with the entry.

use std::ops::Range;

use super::address::{Address, PORT_DEFAULT};

/// What is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The section has no such entry. `*` is none: it stands for all that are not named.
    NoEntry,
    Line {
        line: usize,
        reason: String,
    },
}

/// An entry and its place in the text.
#[derive(Debug)]
pub struct Entry {
    name: String,
    line: usize,
    value: Range<usize>,
    pairs: Vec<Pair>,
}

#[derive(Debug)]
struct Pair {
    key: String,
    value: String,
    /// Of the value in the text, quotes and all.
    place: Range<usize>,
}

impl Entry {
    /// # Errors
    /// When it is not there, there twice, or not to be understood.
    pub fn find(text: &str, database: &str) -> Result<Entry, Fault> {
        let (mut found, mut section, mut at) = (None, String::new(), 0);
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let (begins, number) = (at, index + 1);
            at += line.len();
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';', '%']) {
                continue;
            }
            if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = name.to_owned();
                continue;
            }
            if section != "databases" {
                continue;
            }
            let Some((name, value)) = name_and_value(line) else { continue };
            if name != database {
                continue;
            }
            let fault = |reason: &str| Fault::Line { line: number, reason: reason.to_owned() };
            if found.is_some() {
                return Err(fault(&format!("a second entry {database}")));
            }
            let value = begins + value.start..begins + value.end;
            let pairs = pairs(&text[value.clone()], value.start)
                .ok_or_else(|| fault("the entry is not pairs of key=value, with ' around what has spaces"))?;
            found = Some(Entry { name, line: number, value, pairs });
        }
        found.ok_or(Fault::NoEntry)
    }

    fn get(&self, key: &str) -> Option<&Pair> {
        // PgBouncer goes through them in turn: the last one counts.
        self.pairs.iter().rev().find(|pair| pair.key == key)
    }

    pub fn address(&self) -> Address {
        let get = |key: &str| self.get(key).map(|pair| pair.value.clone());
        Address {
            host: get("host"),
            port: get("port").unwrap_or_else(|| PORT_DEFAULT.to_owned()),
            database: get("dbname").unwrap_or_else(|| self.name.clone()),
            user: get("user"),
            password: get("password"),
        }
    }

    /// The entry's own text without what could be a password: tells its states apart.
    pub fn without_password(&self) -> String {
        let shown = self.pairs.iter().filter(|pair| pair.key != "password");
        shown.map(|pair| format!("{}={:?} ", pair.key, pair.value)).collect()
    }

    /// The whole text with the entry sending its clients to `address`. User and password are changed where the entry has them
    /// already, and not added: they would become those of every client.
    ///
    /// # Errors
    /// When a part cannot be written in such a file.
    pub fn rewritten(&self, text: &str, address: &Address) -> Result<String, Fault> {
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        let mut appended = String::new();
        let mut set = |key: &str, value: Option<&str>, absent_means: Option<&str>| {
            let Some(value) = value else { return Ok(()) };
            let Some(pair) = self.get(key) else {
                if absent_means != Some(value) {
                    appended.push_str(&format!(" {key}={}", quoted(value).map_err(|reason| self.fault(reason))?));
                }
                return Ok(());
            };
            if pair.value != value {
                edits.push((pair.place.clone(), quoted(value).map_err(|reason| self.fault(reason))?));
            }
            Ok(())
        };
        set("host", address.host.as_deref(), None)?;
        set("port", Some(&address.port), Some(PORT_DEFAULT))?;
        set("dbname", Some(&address.database), Some(&self.name))?;
        if self.get("user").is_some() {
            set("user", address.user.as_deref(), None)?;
        }
        if self.get("password").is_some() {
            set("password", address.password.as_deref(), None)?;
        }
        edits.push((self.value.end..self.value.end, appended));
        edits.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
        let mut text = text.to_owned();
        for (place, new) in edits {
            text.replace_range(place, &new);
        }
        Ok(text)
    }

    fn fault(&self, reason: String) -> Fault {
        Fault::Line { line: self.line, reason }
    }
}

/// The name, and the place of the value in the line.
fn name_and_value(line: &str) -> Option<(String, Range<usize>)> {
    let begins = line.len() - line.trim_start().len();
    let rest = &line[begins..];
    let (name, used) = match rest.chars().next()? {
        quote @ ('\'' | '"') => {
            // A doubled quote stands for one.
            let mut name = String::new();
            let mut characters = rest.char_indices().skip(1).peekable();
            let end = loop {
                let (at, character) = characters.next()?;
                if character != quote {
                    name.push(character);
                } else if characters.next_if(|(_, next)| *next == quote).is_some() {
                    name.push(quote);
                } else {
                    break at + 1;
                }
            };
            (name, end)
        }
        _ => {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_.-*".contains(c)).unwrap_or(rest.len());
            (rest[..end].to_owned(), end)
        }
    };
    let blanks = [' ', '\t'];
    let after = rest[used..].trim_start_matches(blanks).strip_prefix('=')?.trim_start_matches(blanks);
    let start = line.len() - after.len();
    Some((name, start..start + after.trim_end().len()))
}

fn pairs(text: &str, offset: usize) -> Option<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches(' ');
    while !rest.is_empty() {
        let end = rest.find(['=', ' '])?;
        let key = rest[..end].to_owned();
        let after = rest[end..].trim_start_matches(' ').strip_prefix('=')?.trim_start_matches(' ');
        let start = text.len() - after.len();
        let (value, length) = value(after)?;
        if key.is_empty() || value.is_empty() {
            return None;
        }
        pairs.push(Pair { key, value, place: offset + start..offset + start + length });
        rest = after[length..].trim_start_matches(' ');
    }
    Some(pairs)
}

/// The value at the beginning of the text, and its length there.
fn value(text: &str) -> Option<(String, usize)> {
    let Some(inner) = text.strip_prefix('\'') else {
        let end = text.find(' ').unwrap_or(text.len());
        return Some((text[..end].to_owned(), end));
    };
    let mut value = String::new();
    let mut characters = inner.char_indices().peekable();
    loop {
        match characters.next()? {
            (_, '\'') if characters.next_if(|(_, next)| *next == '\'').is_some() => value.push('\''),
            (at, '\'') => return Some((value, at + 2)),
            (_, character) => value.push(character),
        }
    }
}

fn quoted(value: &str) -> Result<String, String> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err("a part of the new address is empty or has control characters".into());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-,:/[]%".contains(c);
    Ok(if value.chars().all(plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) })
}

#[cfg(test)]
#[path = "ini_tests.rs"]
mod tests;
