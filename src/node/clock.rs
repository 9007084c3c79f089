//! The hybrid logical clock that stamps writes.
//!
//! After Kulkarni et al., "Logical Physical Clocks": a stamp is the machine's clock when that moves
//! forward and the last stamp plus one when it does not. Order never depends on the machine's clock.

use crate::types::Timestamp;

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

    /// The newest timestamp there can be by now, given what the machine's clock says.
    pub fn newest(&self, wall_us: i64) -> Timestamp {
        Timestamp(wall_us.max(self.last.0))
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

#[cfg(test)]
mod tests {
    use super::*;

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
