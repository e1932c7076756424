//! `Lsn`: a byte position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A byte position in the WAL, printed as PostgreSQL prints it: `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before every valid position.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to this position, 0 if it is not ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Lsn(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| Error::Lsn(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_prints_and_parses_as_postgresql_does() {
        for (number, text) in [(0, "0/0"), (0x16_B374_D848, "16/B374D848"), (u64::MAX, "FFFFFFFF/FFFFFFFF")] {
            assert_eq!(Lsn(number).to_string(), text);
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(number));
        }
        for bad in ["", "1", "/", "1/", "g/1", "1/1FFFFFFFF", "1/1/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
