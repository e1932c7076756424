//! How fast the backfill may read, and why it waits. Pure: the caller brings the time, the lag and the bytes.
//!
//! What is let through is paid off at the limit's rate, and the next may come when the one before is paid: a bucket that may
//! run into debt by one block. So any limit works with any size of block, and the average over time is the limit exactly.
//! Rejected: a bucket that must be full enough before; a limit below one block would stop it for ever.

use std::time::Duration;

/// What was not used of the limit is kept for so long.
const CREDIT: Duration = Duration::from_secs(1);
/// Throttling that has not made anybody wait for so long has ended: without it every block would begin and end it.
const QUIET: Duration = Duration::from_secs(5);

/// What the configuration says. 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub bytes_per_second: u64,
    pub lag_seconds: u64,
}

/// Why something waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// More than `bytes_per_second`.
    Rate,
    /// The stream is behind by more than `lag_seconds`.
    Lag,
}

impl Reason {
    /// The key of the configuration that sets the limit.
    pub fn key(self) -> &'static str {
        match self {
            Reason::Rate => "producer.backfill_bytes_per_second",
            Reason::Lag => "producer.backfill_lag_seconds",
        }
    }
}

/// The answer to somebody who wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Go,
    /// Ask again after this at the latest, or at any time before. `None`: only the lag decides.
    Wait(Option<Duration>),
}

/// A state that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Begins(Reason),
    Ends(Reason),
}

/// Times are since any moment, and never go back.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    /// When everything that was let through is paid off.
    paid_at: Duration,
    /// When somebody last waited for the rate; `None` while it is not throttling.
    rate_waited_at: Option<Duration>,
    lag_waited_at: Option<Duration>,
}

impl Pace {
    pub fn new(limits: Limits) -> Pace {
        Pace { limits, paid_at: Duration::ZERO, rate_waited_at: None, lag_waited_at: None }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Sets other limits. What is not paid yet is paid at the new rate. False if they are the same.
    pub fn change(&mut self, now: Duration, limits: Limits) -> bool {
        let debt = self.paid_at.saturating_sub(now).as_nanos();
        let bytes = debt * u128::from(self.limits.bytes_per_second) / NANOS;
        let changed = self.limits != limits;
        self.limits = limits;
        self.paid_at = self.paid_at.min(now) + self.price(u64::try_from(bytes).unwrap_or(u64::MAX));
        changed
    }

    /// Whether `bytes` may be read now, while the stream is behind by `lag`. With `Go` they are counted.
    pub fn turn(&mut self, now: Duration, lag: Duration, bytes: u64, notices: &mut Vec<Notice>) -> Turn {
        let behind = self.limits.lag_seconds > 0 && lag > Duration::from_secs(self.limits.lag_seconds);
        let unpaid = self.paid_at.checked_sub(now).filter(|unpaid| !unpaid.is_zero());
        note(&mut self.lag_waited_at, now, behind, self.limits.lag_seconds > 0, Reason::Lag, notices);
        note(&mut self.rate_waited_at, now, unpaid.is_some(), self.limits.bytes_per_second > 0, Reason::Rate, notices);
        if behind || unpaid.is_some() {
            return Turn::Wait(unpaid.filter(|_| !behind));
        }
        self.paid_at = self.paid_at.max(now.saturating_sub(CREDIT)) + self.price(bytes);
        Turn::Go
    }

    /// Nobody wants anything more.
    pub fn end(&mut self, notices: &mut Vec<Notice>) {
        notices.extend(self.lag_waited_at.take().map(|_| Notice::Ends(Reason::Lag)));
        notices.extend(self.rate_waited_at.take().map(|_| Notice::Ends(Reason::Rate)));
    }

    /// How long it takes to pay for `bytes`.
    fn price(&self, bytes: u64) -> Duration {
        match u128::from(self.limits.bytes_per_second) {
            0 => Duration::ZERO,
            // A block at one byte a second is days; whatever is longer than u64 holds (584 years) is no time.
            rate => Duration::from_nanos(u64::try_from(u128::from(bytes) * NANOS / rate).unwrap_or(u64::MAX)),
        }
    }
}

const NANOS: u128 = 1_000_000_000;

/// `limited`: there is such a limit at all; without it its throttling ends at once.
fn note(
    waited_at: &mut Option<Duration>,
    now: Duration,
    waits: bool,
    limited: bool,
    reason: Reason,
    notices: &mut Vec<Notice>,
) {
    match *waited_at {
        None if waits => notices.push(Notice::Begins(reason)),
        Some(at) if !waits && (!limited || now.saturating_sub(at) >= QUIET) => {
            notices.push(Notice::Ends(reason));
            *waited_at = None;
        }
        None | Some(_) => {}
    }
    if waits {
        *waited_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_LAG: Duration = Duration::ZERO;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limits(bytes_per_second: u64, lag_seconds: u64) -> Limits {
        Limits { bytes_per_second, lag_seconds }
    }

    fn turn(pace: &mut Pace, now: Duration, lag: Duration, bytes: u64) -> Turn {
        pace.turn(now, lag, bytes, &mut Vec::new())
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut pace = Pace::new(limits(0, 0));
        for _block in 0..100 {
            assert_eq!(turn(&mut pace, NO_LAG, seconds(1_000), u64::MAX), Turn::Go);
        }
    }

    #[test]
    fn a_block_larger_than_the_limit_goes_and_the_next_waits_until_it_is_paid() {
        let mut pace = Pace::new(limits(100, 0));
        assert_eq!(turn(&mut pace, seconds(10), NO_LAG, 1_100), Turn::Go);
        assert_eq!(turn(&mut pace, seconds(10), NO_LAG, 1), Turn::Wait(Some(seconds(10))));
        assert_eq!(turn(&mut pace, seconds(19), NO_LAG, 1), Turn::Wait(Some(seconds(1))));
        assert_eq!(turn(&mut pace, seconds(20), NO_LAG, 1), Turn::Go);
    }

    #[test]
    fn what_waits_is_let_go_when_the_limit_is_raised_or_taken_away() {
        let mut pace = Pace::new(limits(1, 0));
        assert_eq!(turn(&mut pace, seconds(1), NO_LAG, 1_001), Turn::Go);
        assert_eq!(turn(&mut pace, seconds(1), NO_LAG, 1), Turn::Wait(Some(seconds(1_000))));
        assert!(pace.change(seconds(1), limits(100, 0)));
        assert_eq!(turn(&mut pace, seconds(1), NO_LAG, 1), Turn::Wait(Some(seconds(10))));
        assert!(!pace.change(seconds(1), limits(100, 0)));
        assert_eq!(turn(&mut pace, seconds(1), NO_LAG, 1), Turn::Wait(Some(seconds(10))));
        assert!(pace.change(seconds(1), limits(0, 0)));
        assert_eq!(turn(&mut pace, seconds(1), NO_LAG, 1), Turn::Go);
    }

    #[test]
    fn a_lag_above_its_limit_makes_it_wait_whatever_the_rate() {
        let mut pace = Pace::new(limits(0, 10));
        assert_eq!(turn(&mut pace, seconds(1), seconds(10), 1), Turn::Go);
        assert_eq!(turn(&mut pace, seconds(1), seconds(11), 1), Turn::Wait(None));
        assert!(pace.change(seconds(1), limits(0, 20)));
        assert_eq!(turn(&mut pace, seconds(1), seconds(11), 1), Turn::Go);
    }

    #[test]
    fn throttling_begins_and_ends_once_however_many_blocks_wait() {
        let (mut pace, mut notices) = (Pace::new(limits(100, 10)), Vec::new());
        for second in 10..20 {
            pace.turn(seconds(second), NO_LAG, 100, &mut notices);
            pace.turn(seconds(second), NO_LAG, 100, &mut notices);
        }
        assert_eq!(notices, [Notice::Begins(Reason::Rate)]);
        pace.turn(seconds(20), seconds(11), 100, &mut notices);
        assert_eq!(notices[1..], [Notice::Begins(Reason::Lag)]);
        pace.turn(seconds(30), NO_LAG, 100, &mut notices);
        assert_eq!(notices[2..], [Notice::Ends(Reason::Lag), Notice::Ends(Reason::Rate)]);
        pace.turn(seconds(30), NO_LAG, 10_000, &mut notices);
        pace.turn(seconds(30), NO_LAG, 100, &mut notices);
        pace.end(&mut notices);
        pace.end(&mut notices);
        assert_eq!(notices[4..], [Notice::Begins(Reason::Rate), Notice::Ends(Reason::Rate)]);
    }

    #[test]
    fn throttling_ends_at_once_when_its_limit_is_taken_away() {
        let (mut pace, mut notices) = (Pace::new(limits(1, 0)), Vec::new());
        pace.turn(seconds(1), NO_LAG, 1_000, &mut notices);
        pace.turn(seconds(1), NO_LAG, 1_000, &mut notices);
        pace.change(seconds(1), limits(0, 0));
        pace.turn(seconds(1), NO_LAG, 1_000, &mut notices);
        assert_eq!(notices, [Notice::Begins(Reason::Rate), Notice::Ends(Reason::Rate)]);
    }

    proptest! {
        #[test]
        fn whoever_asks_and_when_no_more_is_let_through_than_the_limit_its_credit_and_one_block(
            rate in 1_u64..1_000_000,
            asked in prop::collection::vec((0_u64..3_000, 0_u64..400_000), 1..200),
        ) {
            let mut pace = Pace::new(limits(rate, 0));
            let (begin, mut now, mut passed) = (seconds(100), seconds(100), 0);
            for (millis, bytes) in asked {
                now += Duration::from_millis(millis);
                if turn(&mut pace, now, NO_LAG, bytes) == Turn::Go {
                    let allowed = (now - begin + CREDIT).as_secs_f64() * rate as f64;
                    prop_assert!(passed as f64 <= allowed * 1.000_001 + 1.0, "{passed} bytes, {allowed} allowed");
                    passed += bytes;
                }
            }
        }

        #[test]
        fn whoever_asks_when_told_always_goes(rate in 1_u64..u64::MAX, blocks in prop::collection::vec(0_u64..400_000, 1..50)) {
            let (mut pace, mut now) = (Pace::new(limits(rate, 0)), seconds(100));
            for bytes in blocks {
                if let Turn::Wait(unpaid) = turn(&mut pace, now, NO_LAG, bytes) {
                    now += unpaid.unwrap();
                    prop_assert_eq!(turn(&mut pace, now, NO_LAG, bytes), Turn::Go);
                }
            }
        }
    }
}
