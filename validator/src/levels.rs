//! Which levels a check runs. Pure.

use std::str::FromStr;

/// 0 schema and types, 1 rows, 2 column sums, 3 distributions, 4 null rates, 5 records in depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels([bool; 6]);

impl Levels {
    pub const ALL: Levels = Levels([true; 6]);

    pub fn has(self, level: u8) -> bool {
        self.0.get(usize::from(level)).copied().unwrap_or(false)
    }

    /// Whether equality can be proved: samples and counts prove nothing.
    pub fn prove(self) -> bool {
        self.has(2)
    }

    /// Whether rows are sampled.
    pub fn sample(self) -> bool {
        self.has(3) || self.has(5)
    }
}

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Levels, String> {
        let mut levels = [false; 6];
        for part in text.split(',') {
            let level = part.trim().parse::<usize>().ok().filter(|level| *level < levels.len());
            levels[level.ok_or_else(|| format!("{part:?} is no level: 0 to 5, separated by commas"))?] = true;
        }
        Ok(Levels(levels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_from_a_list() {
        assert_eq!("0,1,2,3,4,5".parse(), Ok(Levels::ALL));
        let some: Levels = "1, 4".parse().unwrap();
        assert!(some.has(1) && some.has(4) && !some.has(2) && !some.prove() && !some.sample());
        assert!("6".parse::<Levels>().is_err() && "".parse::<Levels>().is_err());
    }
}
