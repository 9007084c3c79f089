//! Rates: measured, and kept to. Time comes from outside.

use std::time::{Duration, Instant};

/// A limit on bytes a second: tokens come in at the rate, up to a burst, and are taken as bytes move.
///
/// Taking may leave a debt, so that what could not be foreseen (how much a read brings) is made up
/// for by waiting afterwards. The average stays at the rate.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket for `rate` bytes a second, at least one, that holds `burst` bytes.
    pub fn new(rate: u64, burst: u64, now: Instant) -> TokenBucket {
        let burst = burst.max(1) as f64;
        TokenBucket { rate: rate.max(1) as f64, burst, tokens: burst, at: now }
    }

    /// Bytes that may move now; none while there is a debt.
    pub fn available(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
        // A cast of a negative number gives zero.
        self.tokens as u64
    }

    /// These have moved.
    pub fn take(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

/// The rate of a flow of late, in bytes a second: an average in which what was a time constant ago
/// counts for 1/e.
#[derive(Clone, Debug)]
pub struct RateMeter {
    constant: Duration,
    rate: f64,
    pending: u64,
    at: Option<Duration>,
}

impl RateMeter {
    /// A meter with this time constant.
    pub fn new(constant: Duration) -> RateMeter {
        RateMeter { constant, rate: 0.0, pending: 0, at: None }
    }

    /// `bytes` more have come by `now`, a time since any one beginning that does not go back. Call it
    /// now and then with none, too: time in which nothing comes counts.
    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.pending = self.pending.saturating_add(bytes);
        let Some(at) = self.at else {
            self.at = Some(now);
            return;
        };
        let passed = now.saturating_sub(at);
        // Calls in quick succession are gathered: a rate over nearly no time is noise.
        if passed < self.constant / 20 {
            return;
        }
        let current = self.pending as f64 / passed.as_secs_f64();
        let weight = 1.0 - (-passed.as_secs_f64() / self.constant.as_secs_f64()).exp();
        // The first interval has no past to be averaged with.
        let weight = if self.rate == 0.0 { 1.0 } else { weight };
        self.rate += weight * (current - self.rate);
        self.pending = 0;
        self.at = Some(now);
    }

    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_its_rate_over_any_pattern_of_use() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1_000_000, 50_000, start);
        let mut moved = 0;
        let mut steps = [1u64, 7, 20, 3, 25, 11].into_iter().cycle();
        let mut ms = 0;
        while ms < 10_000 {
            ms += steps.next().unwrap();
            if bucket.available(start + Duration::from_millis(ms)) > 0 {
                // More than is there: a debt.
                bucket.take(120_000);
                moved += 120_000;
            }
        }
        let expected = ms * 1000;
        assert!(moved <= expected + 50_000 + 120_000, "{moved} of {expected}");
        // Pauses longer than the burst lasts lose what would not have fit.
        assert!(moved >= expected * 9 / 10, "{moved} of {expected}");
    }

    #[test]
    fn a_bucket_does_not_mind_time_that_goes_back() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(1000, 100, start);
        bucket.take(100);
        assert_eq!(bucket.available(start - Duration::from_secs(5)), 0);
        assert_eq!(bucket.available(start), 0);
        assert_eq!(bucket.available(start + Duration::from_millis(50)), 50);
    }

    #[test]
    fn a_meter_follows_a_flow_and_its_end() {
        let mut meter = RateMeter::new(Duration::from_secs(1));
        for ms in (0..5_000).step_by(10) {
            meter.add(20_000, Duration::from_millis(ms));
        }
        assert!((meter.rate() / 2_000_000.0 - 1.0).abs() < 0.05, "{}", meter.rate());
        for ms in (5_000..10_000).step_by(100) {
            meter.add(0, Duration::from_millis(ms));
        }
        assert!(meter.rate() < 40_000.0, "{}", meter.rate());
    }
}
