//! Waiting between attempts: exponential, bounded, and ended by a shutdown.

use std::time::Duration;

use crate::Shutdown;

/// Delays of 50 ms, doubling up to `max`.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub fn new(max: Duration) -> Backoff {
        Backoff { next: Duration::from_millis(50).min(max), max }
    }

    /// After a success the next failure waits little again.
    pub fn reset(&mut self) {
        self.next = Duration::from_millis(50).min(self.max);
    }

    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay
    }

    /// Waits; false if the process is to stop.
    pub async fn wait(&mut self, shutdown: &Shutdown) -> bool {
        let delay = self.next_delay();
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = shutdown.wait() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_bound_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(150));
        let delays: Vec<u128> = (0..4).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays, [50, 100, 150, 150]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_millis(), 50);
    }
}
