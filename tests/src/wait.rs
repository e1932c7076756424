//! Waiting for a condition with a deadline. The only place of the harness that sleeps: a test never sleeps to let
//! something happen, it says what must have happened and by when.

use std::time::{Duration, Instant};

use crate::{Failure, Result};

const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
const PAUSE_MAX_CLOSE: Duration = Duration::from_millis(10);

/// Asks until the answer is `Ok`. An `Err` is the reason why it is not so yet; the last one stands in the failure.
///
/// # Errors
/// `Failure::Deadline` when `limit` has passed.
pub fn until<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    ask: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    asking(what, limit, PAUSE_MAX, ask)
}

/// As `until`, asking every few milliseconds: for a moment that is measured.
///
/// # Errors
/// `Failure::Deadline` when `limit` has passed.
pub fn closely<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    ask: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    asking(what, limit, PAUSE_MAX_CLOSE, ask)
}

fn asking<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    pause_max: Duration,
    mut ask: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let began = Instant::now();
    let mut pause = PAUSE_FIRST;
    loop {
        let reason = match ask() {
            Ok(answer) => return Ok(answer),
            Err(reason) => reason,
        };
        if began.elapsed() >= limit {
            return Err(Failure::Deadline {
                what: what.to_owned(),
                seconds: limit.as_secs(),
                last: reason.to_string(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(pause_max);
    }
}

/// Lets time pass where time itself is meant: between the transactions of a paced load, up to the seeded moment of a
/// fault. Never to let something happen: that is what `until` is for.
pub fn pace(pause: Duration) {
    std::thread::sleep(pause);
}

/// Asks until the answer is true.
///
/// # Errors
/// `Failure::Deadline` when `limit` has passed.
pub fn until_true(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || if ask() { Ok(()) } else { Err("no") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_ends_at_its_deadline_with_the_last_reason() {
        let mut asked = 0;
        let outcome = until::<(), _>("the moon", Duration::from_millis(20), || {
            asked += 1;
            Err(format!("asked {asked} times"))
        });
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("the moon") && text.contains(&format!("asked {asked} times")), "{text}");
    }

    #[test]
    fn a_condition_that_holds_at_last_gives_its_answer() {
        let mut asked = 0;
        let answer = until("counting", Duration::from_secs(5), || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err("not yet") }
        });
        assert_eq!(answer.unwrap(), 3);
    }
}
