//! The two clocks of the log: the hybrid logical clock that stamps writes, and the one by which they grow old.
//!
//! Stamps are made after Kulkarni et al., "Logical Physical Clocks": a stamp is the machine's clock when that moves
//! forward and the last stamp plus one when it does not. Order never depends on the machine's clock.

use super::core::micros;
use crate::limits;
use crate::model::Timestamp;

/// Issues strictly increasing timestamps, all of them after [`Timestamp::FIRST`].
#[derive(Debug)]
pub(super) struct HybridClock {
    last: Timestamp,
}

impl Default for HybridClock {
    fn default() -> HybridClock {
        HybridClock { last: Timestamp::FIRST }
    }
}

impl HybridClock {
    /// Takes note of a timestamp that exists already, in the log or in the store.
    pub fn observe(&mut self, timestamp: Timestamp) {
        self.last = self.last.max(timestamp);
    }

    /// The last timestamp issued or observed.
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// The next timestamp, given what the machine's clock says.
    pub fn next(&mut self, wall_us: i64) -> Timestamp {
        // At i64::MAX microseconds, some 292,000 years from now, order would end.
        self.last = Timestamp(wall_us.max(self.last.0.saturating_add(1)));
        self.last
    }
}

/// The log's own clock, as far as this node knows it: how many microseconds leaders have led.
///
/// Every node goes on from what it last saw in the log by its machine's monotonic clock, and each step of that
/// counts for no more than [`limits::LOG_CLOCK_STEP_MAX`], so that a machine that was asleep, or whose clock
/// leaps, makes nothing old.
#[derive(Debug)]
pub(super) struct LogTime {
    log_us: u64,
    /// The machine's clock when it was last looked at.
    seen_us: Option<u64>,
}

impl LogTime {
    /// Goes on from what the log has reached.
    pub fn new(log_us: u64) -> LogTime {
        LogTime { log_us, seen_us: None }
    }

    /// Time passes; often, since what passes at once counts for little.
    pub fn pass(&mut self, monotonic_us: u64) {
        let seen_us = self.seen_us.replace(monotonic_us).unwrap_or(monotonic_us);
        let passed_us = monotonic_us.saturating_sub(seen_us);
        self.log_us = self.log_us.saturating_add(passed_us.min(micros(limits::LOG_CLOCK_STEP_MAX)));
    }

    /// Takes note of what the log has reached.
    pub fn observe(&mut self, log_us: u64) {
        self.log_us = self.log_us.max(log_us);
    }

    /// What a command is given now.
    pub fn now_us(&self) -> u64 {
        self.log_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_leap_makes_the_log_older_than_a_step() {
        let step_us = micros(limits::LOG_CLOCK_STEP_MAX);
        let mut time = LogTime::new(100);
        time.pass(7_000_000);
        assert_eq!(time.now_us(), 100, "where it began says nothing");
        time.pass(7_000_020);
        time.pass(7_000_010);
        assert_eq!(time.now_us(), 120);
        time.pass(7_000_000 + 7_200_000_000);
        assert_eq!(time.now_us(), 120 + step_us);
        time.observe(50);
        time.observe(10_000_000_000);
        time.pass(7_000_001 + 7_200_000_000);
        assert_eq!(time.now_us(), 10_000_000_001);
    }

    #[test]
    fn stamps_rise_whatever_the_clock_does() {
        let mut clock = HybridClock::default();
        assert!(clock.next(-7) > Timestamp::FIRST, "also before 1970");
        clock.observe(Timestamp(50));
        let stamps: Vec<i64> =
            [100, 100, 40, -7, 101, 200].into_iter().map(|wall| clock.next(wall).0).collect();
        assert_eq!(stamps, [100, 101, 102, 103, 104, 200]);
    }
}
