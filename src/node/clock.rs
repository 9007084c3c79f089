//! The two clocks of the log: the hybrid logical clock that gives writes their timestamps, and the
//! log's clock, by which versions and sessions grow old.
//!
//! The hybrid clock follows Kulkarni et al., "Logical Physical Clocks": a timestamp is the
//! machine's clock if that is greater than the last timestamp, and the last timestamp plus one if
//! not. So the order of timestamps never depends on the machine's clock.

use std::time::Duration;

use crate::model::Timestamp;

/// The log's own clock, by which removals, versions and sessions grow old, runs no further than
/// this at once, however far a machine's clock leaps. Longer than a busy event loop is stalled.
const LOG_CLOCK_STEP_MAX: Duration = Duration::from_secs(1);

/// Issues strictly increasing timestamps, all of them after [`Timestamp::ZERO`].
#[derive(Debug, Default)]
pub(super) struct HybridClock {
    last: Timestamp,
}

impl HybridClock {
    /// Notes a timestamp that exists in the log or in the store: all later ones are greater.
    pub fn observe(&mut self, timestamp: Timestamp) {
        self.last = self.last.max(timestamp);
    }

    /// The last timestamp issued or observed.
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// Issues the next timestamp; `wall_us` is the machine's clock. `None` at i64::MAX
    /// microseconds, some 292,000 years from now, where order ends.
    pub fn next(&mut self, wall_us: i64) -> Option<Timestamp> {
        self.last = Timestamp(wall_us.max(self.last.0.checked_add(1)?));
        Some(self.last)
    }
}

/// The log's clock, as far as this node knows it: for how many microseconds leaders have led.
///
/// Every node advances it from the last value in the log by its machine's monotonic clock. Each
/// step counts for at most [`LOG_CLOCK_STEP_MAX`], so that no version or session expires
/// because a machine was suspended or its clock leapt.
#[derive(Debug)]
pub(super) struct LogTime {
    log_us: u64,
    /// The machine's monotonic clock when it was last read.
    last_us: Option<u64>,
}

impl LogTime {
    /// Starts at the value that the log has reached.
    pub fn new(log_us: u64) -> LogTime {
        LogTime { log_us, last_us: None }
    }

    /// Advances the clock to the machine's time. To be called often, because a long step counts for
    /// little.
    pub fn advance(&mut self, monotonic_us: u64) {
        let last_us = self.last_us.replace(monotonic_us).unwrap_or(monotonic_us);
        let passed_us = monotonic_us.saturating_sub(last_us);
        self.log_us = self.log_us.saturating_add(passed_us.min(micros(LOG_CLOCK_STEP_MAX)));
    }

    /// Notes a value in the log.
    pub fn observe(&mut self, log_us: u64) {
        self.log_us = self.log_us.max(log_us);
    }

    /// The value for a command that is proposed now.
    pub fn now_us(&self) -> u64 {
        self.log_us
    }
}

/// A duration in microseconds, in which the core counts time.
pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_leap_advances_the_log_by_more_than_a_step() {
        let step_us = micros(LOG_CLOCK_STEP_MAX);
        let mut time = LogTime::new(100);
        time.advance(7_000_000);
        assert_eq!(time.now_us(), 100, "where it began says nothing");
        time.advance(7_000_020);
        time.advance(7_000_010);
        assert_eq!(time.now_us(), 120);
        time.advance(7_000_000 + 7_200_000_000);
        assert_eq!(time.now_us(), 120 + step_us);
        time.observe(50);
        time.observe(10_000_000_000);
        time.advance(7_000_001 + 7_200_000_000);
        assert_eq!(time.now_us(), 10_000_000_001);
    }

    #[test]
    fn timestamps_rise_whatever_the_clock_does() {
        let mut clock = HybridClock::default();
        assert!(clock.next(-7) > Some(Timestamp::ZERO), "also before 1970");
        clock.observe(Timestamp(50));
        let walls = [100, 100, 40, -7, 101, 200].into_iter();
        let stamps: Vec<i64> = walls.map(|wall| clock.next(wall).unwrap().0).collect();
        assert_eq!(stamps, [100, 101, 102, 103, 104, 200]);
        clock.observe(Timestamp(i64::MAX));
        assert_eq!(clock.next(300), None, "no timestamp is given twice");
    }
}
