//! The three-valued verdict, and the error that is never a match. Pure.

use serde::Serialize;

/// What is known of a table, or of the whole. The order is that of [`Verdict::worst`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything was compared and is equal.
    Match,
    /// Something could not be compared; the reason says why.
    Inconclusive,
    /// The check itself failed.
    Error,
    /// A difference is proved; whatever else could not be compared does not unprove it.
    Mismatch,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Match => "match",
            Verdict::Mismatch => "mismatch",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Error => "error",
        }
    }

    /// The process's exit code, and the value of the metric.
    pub fn code(self) -> u8 {
        match self {
            Verdict::Match => 0,
            Verdict::Mismatch => 1,
            Verdict::Inconclusive => 2,
            Verdict::Error => 3,
        }
    }

    pub fn worst(self, other: Verdict) -> Verdict {
        self.max(other)
    }

    /// Of the parts of a whole; a whole without parts was not compared, so it does not match.
    pub fn of(parts: impl IntoIterator<Item = Verdict>) -> Verdict {
        parts.into_iter().max().unwrap_or(Verdict::Inconclusive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_whose_every_part_matches_is_a_match() {
        use Verdict::{Error, Inconclusive, Match, Mismatch};
        for (parts, whole) in [
            (vec![], Inconclusive),
            (vec![Match, Match], Match),
            (vec![Match, Inconclusive], Inconclusive),
            (vec![Match, Error, Inconclusive], Error),
            (vec![Inconclusive, Mismatch, Error], Mismatch),
        ] {
            assert_eq!(Verdict::of(parts.clone()), whole, "{parts:?}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let codes = [Verdict::Match, Verdict::Mismatch, Verdict::Inconclusive, Verdict::Error].map(Verdict::code);
        assert_eq!(codes, [0, 1, 2, 3]);
    }
}
