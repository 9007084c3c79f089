//! How long to wait before dialling again: exponential, with jitter.
//!
//! The random numbers come from outside, so that waits are repeatable in tests and in the
//! simulator.

use std::time::Duration;

/// Waits that double from a minimum to a maximum while dialling keeps failing.
///
/// Each wait is drawn from the upper half of the present step, so that servers that lost the same
/// server at the same moment do not all dial it at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    /// A back-off between `min` and `max`; a `max` below `min` counts as `min`.
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min), step: min }
    }

    /// The wait after one more failure. `random` is any uniformly drawn number.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.max);
        let half = step / 2;
        let jitter_us = (step - half).as_micros().min(u128::from(u64::MAX)) as u64;
        half + Duration::from_micros(random % jitter_us.saturating_add(1))
    }

    /// Notes that dialling has succeeded, so that the next failure starts from the minimum.
    pub fn reset(&mut self) {
        self.step = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_millis(500);

    #[test]
    fn waits_double_to_the_maximum_and_start_again() {
        let mut backoff = Backoff::new(MIN, MAX);
        // The top of the jitter range of each step is the step itself.
        let tops: Vec<u128> = [10_000, 20_000, 40_000, 80_000, 160_000, 250_000, 250_000]
            .into_iter()
            .map(|top_of_range| backoff.next_wait(top_of_range).as_millis())
            .collect();
        assert_eq!(tops, [20, 40, 80, 160, 320, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.next_wait(0), MIN / 2);
    }

    #[test]
    fn a_wait_stays_in_the_upper_half_of_its_step() {
        for random in [0, 1, 9_999, 10_000, 10_001, u64::MAX] {
            let wait = Backoff::new(MIN, MAX).next_wait(random);
            assert!(wait >= MIN / 2 && wait <= MIN, "{wait:?} for {random}");
        }
    }

    #[test]
    fn degenerate_bounds_do_not_panic() {
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).next_wait(9), Duration::ZERO);
        assert!(Backoff::new(Duration::MAX, MIN).next_wait(u64::MAX) >= Duration::MAX / 2);
    }
}
