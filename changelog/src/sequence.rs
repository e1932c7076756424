//! Sequences: which belong to a migration, how they are read, how they travel, and where a target's must stand.
//!
//! Logical decoding carries no values of sequences. So whoever reads them on the source writes them into its WAL, as a
//! message that passes through the slot like any marker: that gives them a position in the lane, and with it resumption,
//! order and proof of arrival for nothing.
//!
//! ```text
//!  LIST, read_sql ─> Sequence ─> announce ─> WAL ─> announced ─> LaneRecord::Sequences ─> advance ─> setval
//! ```
//! Between two readings more values are drawn, and rows that have them arrive. Therefore a target's sequence is kept ahead by a
//! margin. It is a copy's safety, not its truth: a switch sets the values exactly, behind its fence, from the same reading.

use serde::{Deserialize, Serialize};

use crate::avro::{Reader, put_boolean, put_bytes, put_long};
use crate::{Error, TableName};

/// So many are read by one statement: each holds a lock of the server's table until the statement ends.
pub const READ_MAX: usize = 50;
/// So many stand in one announcement.
pub const ANNOUNCED_MAX: usize = 500;

/// A sequence of the source as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    pub last_value: i64,
    /// Whether `last_value` was drawn, and not only stands to be the next.
    pub is_called: bool,
    pub increment: i64,
    pub min: i64,
    pub max: i64,
    /// Values that a session draws at once.
    pub cache: i64,
    pub cycle: bool,
}

impl Sequence {
    pub fn name(&self) -> TableName {
        TableName::new(self.schema.clone(), self.name.clone())
    }

    pub fn value(&self) -> Value {
        Value { last_value: self.last_value, is_called: self.is_called }
    }
}

/// What [`LIST`] says of a sequence: everything but its value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Listed {
    pub schema: String,
    pub name: String,
    pub increment: i64,
    pub min: i64,
    pub max: i64,
    pub cache: i64,
    pub cycle: bool,
    /// Whether our user may read its value.
    pub readable: bool,
    /// Whether a column owns it: then it lives and dies with that column's table.
    pub owned: bool,
    /// The tables of which a column owns it or has it in its default, and the partitioned tables above those.
    pub ties: Vec<(String, String)>,
}

impl Listed {
    pub fn name(&self) -> TableName {
        TableName::new(self.schema.clone(), self.name.clone())
    }

    pub fn with(&self, value: Value) -> Sequence {
        Sequence {
            schema: self.schema.clone(),
            name: self.name.clone(),
            last_value: value.last_value,
            is_called: value.is_called,
            increment: self.increment,
            min: self.min,
            max: self.max,
            cache: self.cache,
            cycle: self.cycle,
        }
    }
}

/// Every sequence of the database but system's, dflux's and extensions' own: one row each, the JSON of a [`Listed`]. Reads
/// the catalog alone and takes no lock of a sequence.
pub const LIST: &str = "SELECT pg_catalog.json_build_object('schema', n.nspname, 'name', c.relname, \
    'increment', s.seqincrement, 'min', s.seqmin, 'max', s.seqmax, 'cache', s.seqcache, 'cycle', s.seqcycle, \
    'readable', pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT'), \
    'owned', EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
      AND d.objid = c.oid AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjsubid > 0 \
      AND d.deptype IN ('a', 'i')), \
    'ties', coalesce((SELECT pg_catalog.json_agg(pg_catalog.json_build_array(tn.nspname, t.relname)) \
      FROM (SELECT d.refobjid AS oid FROM pg_catalog.pg_depend d \
          WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid \
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
        UNION SELECT a.adrelid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid \
          WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid) AS tied \
        CROSS JOIN LATERAL (SELECT tied.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_ancestors(tied.oid) p) AS up \
        JOIN pg_catalog.pg_class t ON t.oid = up.oid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace), '[]'))::text \
    FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid \
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'dflux') \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
        AND d.objid = c.oid AND d.deptype = 'e') \
    ORDER BY n.nspname, c.relname";

/// Names of all tables, for [`selected`]: one row, the JSON of a `Vec<(String, String)>`.
pub const TABLES: &str = "SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(n.nspname, c.relname)), '[]')::text \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'dflux')";

/// Those that belong to a migration, which are those that `dflux prepare` makes: of the migrated tables' columns, wherever
/// they live, and what no column owns in the schemas of these tables, unless it is excluded by its own name. `migrates` and
/// `excludes` are the patterns' answers on a schema and a name.
pub fn selected(
    listed: Vec<Listed>,
    tables: &[(String, String)],
    migrates: impl Fn(&str, &str) -> bool,
    excludes: impl Fn(&str, &str) -> bool,
) -> Vec<Listed> {
    let schemas: std::collections::HashSet<&str> =
        tables.iter().filter(|(schema, table)| migrates(schema, table)).map(|(schema, _)| schema.as_str()).collect();
    let belongs = |sequence: &Listed| {
        sequence.ties.iter().any(|(schema, table)| migrates(schema, table))
            || (!sequence.owned
                && schemas.contains(sequence.schema.as_str())
                && !excludes(&sequence.schema, &sequence.name))
    };
    listed.into_iter().filter(belongs).collect()
}

/// A statement that yields for each of at most [`READ_MAX`] sequences its index, `last_value` (int8) and `is_called`.
///
/// A sequence is read as a table: that takes the lightest lock there is, and says of a sequence that was never called where
/// it stands, both of which `pg_sequences` does not before version 18.
pub fn read_sql<'a>(names: impl IntoIterator<Item = &'a TableName>) -> String {
    let one = |(at, name): (usize, &TableName)| {
        format!("SELECT {at}::pg_catalog.int4, last_value, is_called FROM {}", name.quoted())
    };
    names.into_iter().enumerate().map(one).collect::<Vec<_>>().join(" UNION ALL ")
}

const ANNOUNCEMENT: &str = "sequences ";

#[derive(Serialize, Deserialize)]
struct Announcement<'a> {
    lane: std::borrow::Cow<'a, str>,
    sequences: std::borrow::Cow<'a, [Sequence]>,
}

/// The content of the marker that carries values of sequences through the slot. Every slot of the database sees it, so it
/// names its lane (`<migration>/<lane>`).
pub fn announce(lane: &str, sequences: &[Sequence]) -> String {
    let announcement = Announcement { lane: lane.into(), sequences: sequences.into() };
    let json = serde_json::to_string(&announcement).expect("texts and numbers are always JSON");
    let mut content = ANNOUNCEMENT.to_owned();
    for character in json.chars() {
        match character {
            // A message's content is in the encoding of the database, whichever that is.
            '\u{80}'.. => {
                let units =
                    character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
                content.push_str(&units);
            }
            _ => content.push(character),
        }
    }
    content
}

/// The lane and the values that a marker's content announces; `None` for a marker that is none of [`announce`].
pub fn announced(content: &str) -> Option<(String, Vec<Sequence>)> {
    let json = content.strip_prefix(ANNOUNCEMENT)?;
    let announcement: Announcement<'_> = serde_json::from_str(json).ok()?;
    Some((announcement.lane.into_owned(), announcement.sequences.into_owned()))
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub last_value: i64,
    pub is_called: bool,
}

/// A target's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub value: Value,
    pub increment: i64,
    pub min: i64,
    pub max: i64,
}

/// Why a target's sequence cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the source's counts by {source_increment}, the target's by {target_increment}: the other way")]
    Direction { source_increment: i64, target_increment: i64 },
    #[error("the source's is at {value}, outside of the target's MINVALUE {min} to MAXVALUE {max}")]
    OutOfBounds { value: i64, min: i64, max: i64 },
}

fn order(increment: i64, value: Value) -> (i128, bool) {
    (i128::from(value.last_value) * i128::from(increment.signum()), value.is_called)
}

fn check(source: &Sequence, target: &Held) -> Result<(), Unfit> {
    if source.increment.signum() != target.increment.signum() {
        return Err(Unfit::Direction { source_increment: source.increment, target_increment: target.increment });
    }
    if !(target.min..=target.max).contains(&source.last_value) {
        return Err(Unfit::OutOfBounds { value: source.last_value, min: target.min, max: target.max });
    }
    Ok(())
}

/// Whether a target's sequence would give values that the source's has given. One that cycles gives them again anyway.
pub fn is_behind(source: &Sequence, target: &Held) -> bool {
    match check(source, target) {
        Ok(()) => !source.cycle && order(source.increment, target.value) < order(source.increment, source.value()),
        Err(_) => true,
    }
}

/// Where the target's sequence is to be set, or `None` if it stands there or further: it never goes back.
///
/// Ahead of the source's by the largest of `margin_rows` values, one session's cache, and twice `growth` (what the source's has
/// gained between the last two readings); in steps of its increment; by at most half of what is left, so that a small
/// sequence is not used up by its margin. One that cycles is set exactly, forwards or back: it has no ahead.
///
/// # Errors
/// The two are no longer the same sequence.
pub fn advance(source: &Sequence, target: &Held, margin_rows: u64, growth: u64) -> Result<Option<Value>, Unfit> {
    check(source, target)?;
    if source.cycle {
        return Ok(Some(source.value()).filter(|value| *value != target.value));
    }
    let (step, last) = (i128::from(source.increment.unsigned_abs()), i128::from(source.last_value));
    let ascends = source.increment > 0;
    let end = if ascends { source.max.min(target.max) } else { source.min.max(target.min) };
    let room = (i128::from(end) - last).abs();
    let margin = (i128::from(margin_rows).max(i128::from(source.cache)) * step).max(2 * i128::from(growth));
    let ahead = margin.min(room / 2) / step.max(1) * step;
    let place = if ascends { last + ahead } else { last - ahead };
    let value = Value {
        last_value: i64::try_from(place).unwrap_or(source.last_value),
        is_called: source.is_called || ahead > 0,
    };
    Ok(Some(value).filter(|value| order(source.increment, *value) > order(source.increment, target.value)))
}

pub(crate) fn put(out: &mut Vec<u8>, sequence: &Sequence) {
    put_bytes(out, sequence.schema.as_bytes());
    put_bytes(out, sequence.name.as_bytes());
    put_long(out, sequence.last_value);
    put_boolean(out, sequence.is_called);
    for number in [sequence.increment, sequence.min, sequence.max, sequence.cache] {
        put_long(out, number);
    }
    put_boolean(out, sequence.cycle);
}

pub(crate) fn take(reader: &mut Reader<'_>) -> Result<Sequence, Error> {
    Ok(Sequence {
        schema: reader.string()?.to_owned(),
        name: reader.string()?.to_owned(),
        last_value: reader.long()?,
        is_called: reader.boolean()?,
        increment: reader.long()?,
        min: reader.long()?,
        max: reader.long()?,
        cache: reader.long()?,
        cycle: reader.boolean()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(last_value: i64, increment: i64) -> Sequence {
        let (min, max) = if increment > 0 { (1, i64::MAX) } else { (i64::MIN, -1) };
        Sequence {
            schema: "s".into(),
            name: "q".into(),
            last_value,
            is_called: true,
            increment,
            min,
            max,
            cache: 1,
            cycle: false,
        }
    }

    fn held(source: &Sequence, last_value: i64, is_called: bool) -> Held {
        let value = Value { last_value, is_called };
        Held { value, increment: source.increment, min: source.min, max: source.max }
    }

    fn set(source: &Sequence, last_value: i64, growth: u64) -> Option<i64> {
        advance(source, &held(source, last_value, true), 1_000, growth).unwrap().map(|value| value.last_value)
    }

    #[test]
    fn a_target_is_set_ahead_in_its_direction_and_never_back() {
        assert_eq!(set(&sequence(500, 1), 1, 0), Some(1_500));
        assert_eq!(set(&sequence(500, 10), 1, 0), Some(10_500));
        assert_eq!(set(&sequence(-500, -2), -1, 0), Some(-2_500));
        assert_eq!(set(&sequence(500, 1), 1, 40_000), Some(80_500), "it grows faster than the margin");
        let cached = Sequence { cache: 5_000, ..sequence(500, 1) };
        assert_eq!(set(&cached, 1, 0), Some(5_500));
        assert_eq!(set(&sequence(500, 1), 1_500, 0), None);
        assert_eq!(set(&sequence(500, 1), 9_000, 0), None, "the source's was restarted");
        assert_eq!(set(&sequence(-500, -1), -9_000, 0), None);
    }

    #[test]
    fn a_margin_takes_at_most_half_of_what_is_left() {
        let small = Sequence { max: 109, ..sequence(9, 1) };
        assert_eq!(set(&small, 1, 0), Some(59));
        let by_ten = Sequence { max: 109, increment: 10, ..sequence(9, 1) };
        assert_eq!(set(&by_ten, 1, 0), Some(59), "in steps of its own");
        let used_up = Sequence { max: 109, ..sequence(109, 1) };
        assert_eq!(set(&used_up, 1, 0), Some(109));
        let all = Sequence { min: i64::MIN, ..sequence(i64::MIN, 1) };
        assert_eq!(advance(&all, &held(&all, i64::MIN, false), u64::MAX, u64::MAX).unwrap().unwrap().last_value, -1);
    }

    #[test]
    fn one_that_cycles_is_set_exactly() {
        let cycling = Sequence { cycle: true, max: 10, ..sequence(3, 1) };
        assert_eq!(set(&cycling, 9, 0), Some(3));
        assert_eq!(set(&cycling, 3, 0), None);
        assert!(!is_behind(&cycling, &held(&cycling, 1, true)));
    }

    #[test]
    fn one_that_is_another_sequence_on_the_target_is_named_and_not_set() {
        let source = sequence(500, 1);
        let down = Held { increment: -1, ..held(&source, 1, true) };
        assert!(matches!(advance(&source, &down, 1, 0), Err(Unfit::Direction { .. })));
        let narrow = Held { max: 100, ..held(&source, 1, true) };
        assert!(matches!(advance(&source, &narrow, 1, 0), Err(Unfit::OutOfBounds { value: 500, min: 1, max: 100 })));
        assert!(is_behind(&source, &down) && is_behind(&source, &narrow));
    }

    #[test]
    fn behind_is_what_would_give_a_value_again() {
        let source = sequence(500, 1);
        assert!(is_behind(&source, &held(&source, 499, true)));
        assert!(is_behind(&source, &held(&source, 500, false)));
        assert!(!is_behind(&source, &held(&source, 500, true)));
        let fresh = Sequence { is_called: false, ..sequence(1, 1) };
        assert!(!is_behind(&fresh, &held(&fresh, 1, false)));
    }

    #[test]
    fn an_announcement_is_read_back_and_another_marker_is_none() {
        let odd = Sequence { schema: "S \"q\"".into(), name: "a.b'ñ😀".into(), ..sequence(i64::MIN, -7) };
        let content = announce("m/forward", std::slice::from_ref(&odd));
        assert!(content.is_ascii(), "{content}");
        assert_eq!(announced(&content), Some(("m/forward".to_owned(), vec![odd])));
        for other in ["", "barrier 7", "sequences ", "sequences {}", "sequences of events"] {
            assert_eq!(announced(other), None, "{other}");
        }
    }

    #[test]
    fn sequences_follow_their_tables_and_others_their_schema() {
        let listed = |schema: &str, name: &str, owned: bool, ties: &[(&str, &str)]| Listed {
            schema: schema.into(),
            name: name.into(),
            increment: 1,
            min: 1,
            max: 9,
            cache: 1,
            cycle: false,
            readable: true,
            owned,
            ties: ties.iter().map(|(schema, table)| ((*schema).into(), (*table).into())).collect(),
        };
        let all = vec![
            listed("public", "moved_id_seq", true, &[("public", "moved")]),
            listed("public", "left_id_seq", true, &[("public", "left")]),
            listed("elsewhere", "by_default", false, &[("public", "moved")]),
            listed("public", "lone", false, &[]),
            listed("public", "lone_left", false, &[]),
            listed("elsewhere", "lone", false, &[]),
            listed("public", "of_part", true, &[("parts", "p1"), ("public", "moved")]),
        ];
        let tables = [("public".to_owned(), "moved".to_owned()), ("elsewhere".to_owned(), "x".to_owned())];
        let excludes = |schema: &str, name: &str| schema == "public" && name.ends_with("left");
        let migrates = |schema: &str, name: &str| schema == "public" && !excludes(schema, name);
        let kept: Vec<String> =
            selected(all, &tables, migrates, excludes).iter().map(|sequence| sequence.name().to_string()).collect();
        assert_eq!(
            kept,
            ["public.moved_id_seq", "elsewhere.by_default", "public.lone", "public.of_part"].map(str::to_owned)
        );
    }

    proptest! {
        /// Whatever the numbers: within both bounds, a multiple of the step ahead, not behind, and the second time nothing is left to do.
        #[test]
        fn a_set_value_is_within_bounds_and_setting_it_again_changes_nothing(
            last_value: i64, held_value: i64, called: bool, held_called: bool,
            increment in prop_oneof![1..1_000_i64, -1_000..-1_i64, Just(i64::MAX), Just(i64::MIN)],
            cache in 1..100_i64, margin in 0..1_000_000_u64, growth: u64,
        ) {
            let source = Sequence {
                is_called: called, cache, min: i64::MIN, max: i64::MAX, ..sequence(last_value, increment)
            };
            let before = held(&source, held_value, held_called);
            let after = match advance(&source, &before, margin, growth).unwrap() {
                Some(value) => Held { value, ..before },
                None => before,
            };
            prop_assert!(!is_behind(&source, &after));
            prop_assert!(order(increment, after.value) >= order(increment, before.value));
            prop_assert_eq!(advance(&source, &after, margin, growth).unwrap(), None);
            if after != before {
                let ahead = i128::from(after.value.last_value) - i128::from(last_value);
                prop_assert_eq!(ahead % i128::from(increment), 0);
            }
        }
    }
}
