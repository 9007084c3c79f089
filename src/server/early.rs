//! Reads of what this server has in its log and has not applied yet.
//!
//! A write is acknowledged when it is committed, and applied a moment later; at a follower, when it
//! hears of the commit. A client that reads what it has just written would be refused in between
//! (SPEC A4), and would go from server to server for nothing. So a read whose timestamp is in this
//! server's log waits until the state machine has come there, and after
//! [`EARLY_READ_WAIT`] judged by what is there then. What is not in
//! the log is not worth waiting for: such a read is judged at once.
//!
//! How many wait is bounded by the requests that clients may have under way. This part is
//! bookkeeping without a clock, which the event loop and the simulator drive alike; `R` is whatever
//! the driver needs to answer a read.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::Timestamp;

/// A read that asks for what this server has in its log and has not applied yet is held this long,
/// a tick more at most; then it is judged by what is applied.
const EARLY_READ_WAIT: Duration = Duration::from_millis(40);

/// Reads that wait for a state, by its timestamp.
#[derive(Debug)]
pub struct EarlyReads<R> {
    by_timestamp: BTreeMap<Timestamp, Vec<WaitingRead<R>>>,
}

#[derive(Debug)]
struct WaitingRead<R> {
    read: R,
    until_us: u64,
}

impl<R> Default for EarlyReads<R> {
    fn default() -> EarlyReads<R> {
        EarlyReads { by_timestamp: BTreeMap::new() }
    }
}

impl<R> EarlyReads<R> {
    /// Whether no read waits.
    pub fn is_empty(&self) -> bool {
        self.by_timestamp.is_empty()
    }

    /// Takes in a read that asks for the state at `wanted`, where the state machine stands at
    /// `applied` and the log reaches to `newest`. Gives it back when it is to be judged at once.
    pub fn hold(
        &mut self,
        now_us: u64,
        wanted: Timestamp,
        applied: Timestamp,
        newest: Timestamp,
        read: R,
    ) -> Option<R> {
        if wanted <= applied || wanted > newest {
            return Some(read);
        }
        let until_us = now_us + EARLY_READ_WAIT.as_micros() as u64;
        self.by_timestamp.entry(wanted).or_default().push(WaitingRead { read, until_us });
        None
    }

    /// Takes the reads that can be answered now that everything up to `applied` is applied.
    pub fn take_reached(&mut self, applied: Timestamp) -> Vec<R> {
        let mut reached = Vec::new();
        while let Some(first) = self.by_timestamp.first_entry()
            && *first.key() <= applied
        {
            reached.extend(first.remove().into_iter().map(|waiting| waiting.read));
        }
        reached
    }

    /// Takes the reads whose time has passed, which are judged by what is applied.
    pub fn take_overdue(&mut self, now_us: u64) -> Vec<R> {
        let mut overdue = Vec::new();
        self.by_timestamp.retain(|_, reads| {
            let late = reads.extract_if(.., |waiting| waiting.until_us <= now_us);
            overdue.extend(late.map(|waiting| waiting.read));
            !reads.is_empty()
        });
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_held_until_its_state_is_reached_or_its_time_is_up() {
        let wait_us = EARLY_READ_WAIT.as_micros() as u64;
        let (start_us, later_us) = (1_000, 1_000 + wait_us / 2);
        let mut early = EarlyReads::default();
        let mut hold = |at_us, wanted, read: u64| {
            early.hold(at_us, Timestamp(wanted), Timestamp(5), Timestamp(30), read)
        };
        assert_eq!(hold(start_us, 5, 7), Some(7), "the state is there");
        assert_eq!(hold(start_us, 31, 8), Some(8), "the log is not");
        assert_eq!(hold(start_us, 10, 1), None);
        assert_eq!(hold(later_us, 20, 2), None);
        assert_eq!(hold(start_us, 30, 3), None);
        assert_eq!(hold(later_us, 10, 4), None);
        assert!(early.take_reached(Timestamp(9)).is_empty());
        assert_eq!(early.take_reached(Timestamp(10)), [1, 4]);
        assert!(early.take_overdue(later_us).is_empty());
        assert_eq!(early.take_overdue(start_us + wait_us), [3]);
        assert_eq!(early.take_reached(Timestamp(20)), [2]);
        assert!(early.is_empty());
    }
}
