//! Measures the rate of a flow of bytes, and limits it.
//!
//! Both types are pure: the caller passes the current time.

use std::time::{Duration, Instant};

/// Token bucket: tokens accrue at the configured rate up to the burst size, and one is taken for
/// each byte that moves.
///
/// Taking more than is available leaves a debt, which later accrual pays off. So the long-term
/// average keeps to the rate even if the size of a transfer is known only afterwards, as it is for
/// a read from a socket.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// Starts full. `rate` is in bytes a second; a rate or burst of 0 counts as 1.
    pub fn new(rate: u64, burst: u64, now: Instant) -> TokenBucket {
        let burst = burst.max(1) as f64;
        TokenBucket { rate: rate.max(1) as f64, burst, tokens: burst, at: now }
    }

    /// Bytes that may move now; 0 while there is a debt.
    pub fn available(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
        // Casting a negative float to u64 gives 0, which is what a debt allows.
        self.tokens as u64
    }

    /// Takes tokens for bytes that have moved.
    pub fn take(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

/// Exponentially weighted average of a flow, in bytes a second. What was received one time constant
/// ago has the weight 1/e.
#[derive(Clone, Debug)]
pub struct RateMeter {
    constant: Duration,
    rate: f64,
    pending: u64,
    at: Option<Duration>,
}

impl RateMeter {
    pub fn new(constant: Duration) -> RateMeter {
        RateMeter { constant, rate: 0.0, pending: 0, at: None }
    }

    /// Records that `bytes` more have arrived by `now`, a duration since any fixed start that never
    /// goes back. Call it with 0 bytes as well: otherwise a flow that has stopped keeps its rate.
    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.pending = self.pending.saturating_add(bytes);
        let Some(at) = self.at else {
            self.at = Some(now);
            return;
        };
        let passed = now.saturating_sub(at);
        // Calls in quick succession are accumulated, since a rate over a few microseconds is noise.
        if passed < self.constant / 20 {
            return;
        }
        let current = self.pending as f64 / passed.as_secs_f64();
        let weight = 1.0 - (-passed.as_secs_f64() / self.constant.as_secs_f64()).exp();
        // The first interval has no earlier rate to be averaged with.
        let weight = if self.rate == 0.0 { 1.0 } else { weight };
        self.rate += weight * (current - self.rate);
        self.pending = 0;
        self.at = Some(now);
    }

    /// The average in bytes a second.
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
                // Takes more than is available, and so leaves a debt.
                bucket.take(120_000);
                moved += 120_000;
            }
        }
        let expected = ms * 1000;
        assert!(moved <= expected + 50_000 + 120_000, "{moved} of {expected}");
        // A pause longer than the burst lasts loses the tokens that did not fit.
        assert!(moved >= expected * 9 / 10, "{moved} of {expected}");
    }

    #[test]
    fn a_bucket_ignores_time_that_goes_backwards() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(1000, 100, start);
        bucket.take(100);
        assert_eq!(bucket.available(start - Duration::from_secs(5)), 0);
        assert_eq!(bucket.available(start), 0);
        assert_eq!(bucket.available(start + Duration::from_millis(50)), 50);
    }

    #[test]
    fn a_meter_follows_a_rate_and_its_end() {
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
