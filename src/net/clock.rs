//! The time in which this process ran.

use std::time::{Duration, Instant};

/// A clock that stands still while the process is stopped, or the machine asleep: so that nobody's silence counts in
/// which nobody could have been heard. Whoever has one looks at it in every turn, so of a longer gap between two looks
/// only the usual is counted.
#[derive(Debug)]
pub struct RunClock {
    /// What of a gap is counted at most; all of it when absent.
    turn_max: Option<Duration>,
    seen: Instant,
    /// What was not counted.
    skipped: Duration,
}

impl RunClock {
    /// A clock that shows `now` at `now`.
    pub fn new(turn_max: Option<Duration>, now: Instant) -> RunClock {
        RunClock { turn_max, seen: now, skipped: Duration::ZERO }
    }

    /// What it shows at `now`. A time before one that it was asked for takes nothing back.
    pub fn at(&mut self, now: Instant) -> Instant {
        let gap = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        self.skipped += self.turn_max.map_or(Duration::ZERO, |max| gap.saturating_sub(max));
        // No more was skipped than has passed since it began.
        self.seen - self.skipped
    }

    /// The system's time at which it was looked at last.
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
