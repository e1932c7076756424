//! Topic names: injective, and legal for Kafka.
//!
//! Kafka takes `[a-zA-Z0-9._-]`, at most 249 bytes, and treats `.` and `_` as the same character in metric names, so
//! that two topics that differ only there collide. An escape keeps names apart: a lower-case letter and a digit stand for
//! themselves; every other byte (upper case, dot, dash, UTF-8) becomes `-` and two hexadecimal digits. The dot only
//! separates the parts. `_` stands for itself in a table's name, which comes last, and is escaped in a migration's and a
//! schema's: so the first `.` or `_` after the prefix always ends the schema, also where Kafka folds the two. Case is escaped because many file systems under Kafka do not tell it apart. A name that is too long keeps its head and
//! gets a hash of the whole.

use std::fmt;

use crate::TableName;

const TOPIC_BYTES_MAX: usize = 249;

/// One direction of flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// From the source to the target.
    Forward,
    /// From the target back to the source, for a rollback.
    Reverse,
}

impl Lane {
    pub fn name(self) -> &'static str {
        match self {
            Lane::Forward => "forward",
            Lane::Reverse => "reverse",
        }
    }

    /// The configured name of a slot or a publication as this lane's.
    pub fn own(self, configured: &str) -> String {
        match self {
            Lane::Forward => configured.to_owned(),
            Lane::Reverse => format!("{configured}_reverse"),
        }
    }

    /// The one that flows the other way.
    pub fn other(self) -> Lane {
        match self {
            Lane::Forward => Lane::Reverse,
            Lane::Reverse => Lane::Forward,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The topics of one lane of one migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

impl Topics {
    pub fn new(migration: &str, lane: Lane) -> Topics {
        Topics { prefix: format!("{}.{}", escape(migration, Underscore::Escaped), lane.name()) }
    }

    /// Change events of one table.
    pub fn table(&self, table: &TableName) -> String {
        let schema = escape(&table.schema, Underscore::Escaped);
        bounded(format!("{}.{schema}.{}", self.prefix, escape(&table.name, Underscore::Kept)))
    }

    /// Birth record, manifests and markers; one partition.
    pub fn transactions(&self) -> String {
        bounded(format!("{}-transactions", self.prefix))
    }

    /// Blocks of rows of the backfill.
    pub fn snapshot(&self) -> String {
        bounded(format!("{}-snapshot", self.prefix))
    }

    /// What was planned and copied, and where it lies; compacted, one partition.
    pub fn ledger(&self) -> String {
        bounded(format!("{}-ledger", self.prefix))
    }

    /// Under which the schema of pieces is registered. Beside the topics' own: a piece is no version of an event.
    pub fn piece_subject(&self) -> String {
        format!("{}-piece", self.transactions())
    }

    /// Whether a topic belongs to this lane, for listing and cleanup.
    pub fn owns(&self, topic: &str) -> bool {
        topic
            .strip_prefix(self.prefix.as_str())
            .is_some_and(|rest| rest.starts_with('.') || matches!(rest, "-transactions" | "-snapshot" | "-ledger"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Underscore {
    Kept,
    Escaped,
}

fn escape(name: &str, underscore: Underscore) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => escaped.push(char::from(byte)),
            b'_' if underscore == Underscore::Kept => escaped.push('_'),
            other => escaped.push_str(&format!("-{other:02x}")),
        }
    }
    escaped
}

fn bounded(name: String) -> String {
    if name.len() <= TOPIC_BYTES_MAX {
        return name;
    }
    let hash = fnv128(name.as_bytes());
    // The head is ASCII by construction, so any byte is a character boundary.
    format!("{}-h{hash:032x}", &name[..TOPIC_BYTES_MAX - 34])
}

/// FNV-1a, 128 bits: names are not adversarial, and 128 bits make an accident impossible in practice.
fn fnv128(bytes: &[u8]) -> u128 {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in bytes {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_that_differ_only_in_what_kafka_folds_stay_apart() {
        let topics = Topics::new("m", Lane::Forward);
        let long = "é".repeat(31);
        let names = [
            ("a.b", "c"),
            ("a", "b.c"),
            ("a_b", "c"),
            ("a", "b_c"),
            ("A", "b"),
            ("a", "B"),
            ("a", "b"),
            ("a-2e", "b"),
            ("a.", "b"),
            ("é", "b"),
            (long.as_str(), long.as_str()),
            (long.as_str(), "é"),
        ];
        let mut folded = HashSet::new();
        for (schema, name) in names {
            let topic = topics.table(&TableName::new(schema, name));
            assert!(topic.len() <= TOPIC_BYTES_MAX, "{topic}");
            assert!(topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{topic}");
            assert!(topics.owns(&topic));
            assert!(folded.insert(topic.to_lowercase().replace('.', "_")), "{topic} stands for two tables");
        }
        assert_eq!(topics.table(&TableName::new("public", "pgbench_accounts")), "m.forward.public.pgbench_accounts");
    }

    #[test]
    fn two_long_names_with_one_head_stay_apart() {
        let topics = Topics::new(&"M".repeat(63), Lane::Forward);
        let name = |tail: &str| TableName::new("É".repeat(31), format!("{}{tail}", "É".repeat(30)));
        let (first, second) = (topics.table(&name("a")), topics.table(&name("b")));
        assert_eq!(first.len(), TOPIC_BYTES_MAX);
        assert_ne!(first, second);
    }

    #[test]
    fn a_lane_owns_only_its_own_topics() {
        let topics = Topics::new("m", Lane::Forward);
        assert!(topics.owns("m.forward-ledger"));
        assert!(!topics.owns("m.reverse-ledger"));
        assert!(!topics.owns("m2.forward.public.t"));
        assert!(!topics.owns("m.forwarder.public.t"));
        assert!(!Topics::new("m", Lane::Forward).owns(&Topics::new("m.forward", Lane::Forward).transactions()));
    }
}
