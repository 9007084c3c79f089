//! The time of a download: that in which this process ran.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::limits;

/// How long a download has run. While its process is stopped, or the machine asleep, nobody's silence counts: its loop
/// wakes at least every [`limits::SHARE_TICK`], so of a longer gap between two turns only the usual is counted.
#[derive(Debug)]
pub(super) struct Clock {
    seen: Cell<Instant>,
    elapsed: Cell<Duration>,
}

impl Clock {
    pub(super) fn new(now: Instant) -> Clock {
        Clock { seen: Cell::new(now), elapsed: Cell::new(Duration::ZERO) }
    }

    /// How long it had run by `now`. To be asked in every turn.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.seen.get());
        self.seen.set(self.seen.get().max(now));
        self.elapsed.set(self.elapsed.get() + gap.min(limits::FETCH_TURN_MAX));
        self.elapsed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A download that was stopped for longer than its patience gave up as soon as it went on.
    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let start = Instant::now();
        let clock = Clock::new(start);
        let second = Duration::from_secs(1);
        for turn in 1..=30 {
            assert_eq!(clock.elapsed(start + turn * second / 10), turn * second / 10);
        }
        let stopped = start + 3 * second + 3600 * second;
        assert_eq!(clock.elapsed(stopped), 3 * second + limits::FETCH_TURN_MAX);
        assert_eq!(clock.elapsed(stopped + second / 10), 31 * second / 10 + limits::FETCH_TURN_MAX);
        // A turn that began earlier takes nothing back.
        assert_eq!(clock.elapsed(start), 31 * second / 10 + limits::FETCH_TURN_MAX);
    }
}
