//! Which entries of a dump belong to the migration: the selected tables, what they need, and what lives beside them. Pure.
//!
//! Kept is what the selected tables depend on, and every object of their schemas; left out is what belongs to tables that are
//! not moved, and whatever depends on something that is left out (a foreign key to such a table, a view over it).

use std::collections::{HashMap, HashSet};

use changelog::fence;
use producer::source::schema_trigger;

use super::archive::Entry;

const PG_CLASS: u32 = 1259;

/// What the source's catalog adds to the archive.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// OIDs of the tables that are moved.
    pub selected: HashSet<u32>,
    /// Schemas of these tables.
    pub schemas: HashSet<String>,
    /// Extensions that the target does not offer.
    pub missing_extensions: HashSet<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub kept: Vec<Entry>,
    /// Titles, for the report.
    pub left_out: Vec<String>,
}

/// Decides for the whole archive, pre-data and post-data together; the order is kept.
pub fn select(entries: Vec<Entry>, world: &World) -> Selection {
    let places: HashMap<u32, usize> = entries.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
    let needed = needed_by(&entries, &places, |entry| is_table(entry) && world.selected.contains(&entry.oid));
    let mut dropped: HashSet<u32> = entries
        .iter()
        .filter(|entry| !needed.contains(&entry.id) && unwanted(entry, world))
        .map(|entry| entry.id)
        .collect();
    spread(&entries, &needed, &mut dropped);
    let kept = needed_by(&entries, &places, |entry| {
        needed.contains(&entry.id) || (!dropped.contains(&entry.id) && lives_here(entry, world))
    });
    let mut selection = Selection::default();
    // Comments and attachments are entries of their own without an object; they follow what they speak of.
    let spoken_of = |entry: &Entry| entry.depends_on.iter().all(|id| kept.contains(id) || !places.contains_key(id));
    for entry in entries {
        let follows = entry.class == 0 && !entry.depends_on.is_empty();
        let keep = !dropped.contains(&entry.id) && if follows { spoken_of(&entry) } else { kept.contains(&entry.id) };
        if keep {
            selection.kept.push(entry);
        } else if dropped.contains(&entry.id) && entry.kind != "COMMENT" && world.schemas.contains(&entry.schema) {
            selection.left_out.push(entry.title());
        }
    }
    selection
}

fn is_table(entry: &Entry) -> bool {
    entry.class == PG_CLASS && entry.kind == "TABLE"
}

/// Whether the entry itself is no part of the migration, whatever depends on it.
fn unwanted(entry: &Entry, world: &World) -> bool {
    match entry.kind.as_str() {
        "TABLE" => !world.selected.contains(&entry.oid),
        "EXTENSION" => world.missing_extensions.contains(&entry.name),
        // They point to other servers, with passwords; foreign tables hold no rows of this database.
        "FOREIGN TABLE" | "FOREIGN DATA WRAPPER" | "SERVER" | "USER MAPPING" => true,
        "PUBLICATION" | "PUBLICATION TABLE" | "PUBLICATION TABLES IN SCHEMA" | "SUBSCRIPTION" => true,
        // Ours would be made on the target by itself; the others are the database's, not the schema's.
        "DATABASE" | "DATABASE PROPERTIES" | "ACL" | "DEFAULT ACL" | "SECURITY LABEL" => true,
        "SCHEMA" => entry.name == "dflux",
        "TRIGGER" => entry.name.ends_with(&format!(" {}", fence::TRIGGER)),
        "EVENT TRIGGER" => entry.name.starts_with(schema_trigger::NAME_PREFIX),
        _ => false,
    }
}

fn lives_here(entry: &Entry, world: &World) -> bool {
    match entry.kind.as_str() {
        "SCHEMA" => world.schemas.contains(&entry.name),
        _ => entry.schema.is_empty() || world.schemas.contains(&entry.schema),
    }
}

/// The entries that satisfy `root`, and all that they depend on.
fn needed_by(entries: &[Entry], places: &HashMap<u32, usize>, root: impl Fn(&Entry) -> bool) -> HashSet<u32> {
    let mut open: Vec<u32> = entries.iter().filter(|entry| root(entry)).map(|entry| entry.id).collect();
    let mut found: HashSet<u32> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let Some(place) = places.get(&id) else { continue };
        for dependency in &entries[*place].depends_on {
            if places.contains_key(dependency) && found.insert(*dependency) {
                open.push(*dependency);
            }
        }
    }
    found
}

/// What depends on something dropped is dropped, but for what the selected tables need.
fn spread(entries: &[Entry], needed: &HashSet<u32>, dropped: &mut HashSet<u32>) {
    loop {
        let more: Vec<u32> = entries
            .iter()
            .filter(|entry| !dropped.contains(&entry.id) && !needed.contains(&entry.id))
            .filter(|entry| entry.depends_on.iter().any(|id| dropped.contains(id)))
            .map(|entry| entry.id)
            .collect();
        if more.is_empty() {
            return;
        }
        dropped.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, kind: &str, schema: &str, name: &str, depends_on: &[u32]) -> Entry {
        let class = if matches!(kind, "COMMENT" | "INDEX ATTACH" | "TABLE ATTACH") { 0 } else { PG_CLASS };
        Entry {
            id,
            class,
            oid: 1000 + id,
            depends_on: depends_on.to_vec(),
            name: name.into(),
            kind: kind.into(),
            schema: schema.into(),
            sql: String::new(),
        }
    }

    fn kept(entries: Vec<Entry>, world: &World) -> Vec<u32> {
        select(entries, world).kept.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn what_hangs_on_a_table_that_stays_behind_is_left_out_and_what_a_moved_one_needs_comes_along() {
        let entries = vec![
            entry(1, "SCHEMA", "", "other", &[]),
            entry(2, "SCHEMA", "", "types", &[]),
            entry(3, "TYPE", "types", "mood", &[2]),
            entry(4, "TYPE", "types", "unused", &[2]),
            entry(5, "TABLE", "public", "moved", &[3]),
            entry(6, "TABLE", "public", "left", &[]),
            entry(7, "TABLE", "other", "left", &[1]),
            entry(8, "VIEW", "public", "over_both", &[5, 6]),
            entry(9, "VIEW", "public", "over_moved", &[5]),
            entry(10, "COMMENT", "public", "TABLE moved", &[5]),
            entry(11, "COMMENT", "public", "TABLE left", &[6]),
            entry(12, "FUNCTION", "public", "f()", &[]),
            entry(13, "CONSTRAINT", "public", "left left_pkey", &[6]),
            entry(14, "FK CONSTRAINT", "public", "moved fk", &[5, 13]),
            entry(15, "INDEX", "public", "i", &[5]),
        ];
        let world = World {
            selected: HashSet::from([1005]),
            schemas: HashSet::from(["public".to_owned()]),
            missing_extensions: HashSet::new(),
        };
        let selection = select(entries.clone(), &world);
        assert_eq!(kept(entries, &world), [2, 3, 5, 9, 10, 12, 15]);
        assert!(selection.left_out.contains(&"FK CONSTRAINT public.moved fk".to_owned()), "{:?}", selection.left_out);
        assert!(selection.left_out.contains(&"VIEW public.over_both".to_owned()));
    }

    #[test]
    fn an_extension_that_the_target_lacks_takes_what_depends_on_it_along() {
        let entries = vec![
            entry(1, "EXTENSION", "", "rare", &[]),
            entry(2, "FUNCTION", "public", "uses_rare()", &[1]),
            entry(3, "TABLE", "public", "t", &[]),
            entry(4, "COMMENT", "", "EXTENSION rare", &[1]),
        ];
        let world = World {
            selected: HashSet::from([1003]),
            schemas: HashSet::from(["public".to_owned()]),
            missing_extensions: HashSet::from(["rare".to_owned()]),
        };
        assert_eq!(kept(entries, &world), [3]);
    }
}
