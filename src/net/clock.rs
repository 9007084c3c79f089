//! Time without that in which the process was stopped.
//!
//! Rule: of a gap between two turns of the loop only so much counts as a loop needs, so that a
//! process that was stopped, or whose machine slept, takes nobody for silent whom it could not have
//! heard.

use std::time::{Duration, Instant};

/// A monotonic clock that counts at most `turn_max` of the time between two readings. It is read in
/// every turn of a loop.
#[derive(Debug)]
pub struct RunClock {
    /// The most that counts of the time between two readings; `None` counts all of it.
    turn_max: Option<Duration>,
    seen: Instant,
    /// The time that was not counted so far.
    skipped: Duration,
}

impl RunClock {
    /// A clock that shows `now` at `now`.
    pub fn new(turn_max: Option<Duration>, now: Instant) -> RunClock {
        RunClock { turn_max, seen: now, skipped: Duration::ZERO }
    }

    /// The time it shows at `now`, which never goes back, even if `now` does.
    pub fn at(&mut self, now: Instant) -> Instant {
        let gap = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        self.skipped += self.turn_max.map_or(Duration::ZERO, |max| gap.saturating_sub(max));
        // No more was skipped than has passed since it began.
        self.seen - self.skipped
    }

    /// The system's monotonic time at which it was last read.
    pub(super) fn seen(&self) -> Instant {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A download that was stopped for longer than its patience gave up as soon as it went on.
    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut clock = RunClock::new(Some(second), start);
        for turn in 1..=30 {
            let now = start + turn * second / 10;
            assert_eq!(clock.at(now), now);
        }
        let stopped = start + 3 * second + 3600 * second;
        assert_eq!(clock.at(stopped), start + 4 * second);
        assert_eq!(clock.at(stopped + second / 10), start + 41 * second / 10);
        // A turn that began earlier takes nothing back.
        assert_eq!(clock.at(start), start + 41 * second / 10);

        let mut strict = RunClock::new(None, start);
        assert_eq!(strict.at(stopped), stopped);
    }
}
