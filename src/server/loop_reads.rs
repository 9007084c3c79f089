//! How many reads the event loop answers by itself before it looks at its sockets again.
//!
//! A GET that needs no disk is answered where it came in: the way to a worker and back costs more
//! than the answer. Rule: what such answers take of one iteration is bounded in their number, their
//! bytes and their time, and what comes beyond goes to the workers as every other read does. So
//! they make the loop's longest stall longer by about [`LOOP_READ_TIME`] at most, however many
//! clients ask.

use std::time::{Duration, Instant};

/// Reads answered in one iteration: as many as come from all clients of a busy server at once.
const LOOP_READS_MAX: usize = 512;
/// Bytes of their values, which are copied.
const LOOP_READ_BYTES_MAX: usize = 1024 * 1024;
/// Time that they take: half of what a stage of the loop has.
const LOOP_READ_TIME: Duration = Duration::from_millis(1);
/// The clock is looked at once for so many reads: one of them takes some microseconds.
const READS_PER_LOOK: usize = 16;

/// What is left for reads in the present iteration of the loop.
#[derive(Debug)]
pub(super) struct LoopReads {
    reads: usize,
    bytes: usize,
    /// When the first of them was answered.
    began: Option<Instant>,
}

impl Default for LoopReads {
    fn default() -> LoopReads {
        LoopReads { reads: LOOP_READS_MAX, bytes: LOOP_READ_BYTES_MAX, began: None }
    }
}

#[cfg(test)]
impl LoopReads {
    /// The loop leaves every read to the workers.
    pub fn none() -> LoopReads {
        LoopReads { reads: 0, bytes: 0, began: None }
    }
}

impl LoopReads {
    /// A new iteration begins.
    pub fn renew(&mut self) {
        if self.began.is_some() {
            *self = LoopReads::default();
        }
    }

    /// The longest value that the loop may answer a read with now; `None` if a worker is to.
    /// `now` is asked for the time when it is needed.
    pub fn value_bytes_max(&mut self, now: impl FnOnce() -> Instant) -> Option<usize> {
        let is_look_due = self.began.is_none() || self.reads.is_multiple_of(READS_PER_LOOK);
        if self.reads > 0 && is_look_due {
            let now = now();
            let began = *self.began.get_or_insert(now);
            if now.saturating_duration_since(began) >= LOOP_READ_TIME {
                self.reads = 0;
            }
        }
        (self.reads > 0 && self.bytes > 0).then_some(self.bytes)
    }

    /// A read was tried, and answered with so many bytes if it was.
    pub fn tried(&mut self, bytes: usize) {
        self.reads = self.reads.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iteration_has_so_many_reads_so_many_bytes_and_so_much_time() {
        let start = Instant::now();
        let mut reads = LoopReads::default();
        for _ in 0..LOOP_READS_MAX {
            assert_eq!(reads.value_bytes_max(|| start), Some(LOOP_READ_BYTES_MAX));
            reads.tried(0);
        }
        assert_eq!(reads.value_bytes_max(|| start), None, "so many");
        reads.renew();
        reads.value_bytes_max(|| start).unwrap();
        reads.tried(LOOP_READ_BYTES_MAX - 1);
        assert_eq!(reads.value_bytes_max(|| start), Some(1));
        reads.tried(1);
        assert_eq!(reads.value_bytes_max(|| start), None, "so many bytes");
        reads.renew();
        let mut answered = 0;
        while reads.value_bytes_max(|| start + answered * Duration::from_micros(50)).is_some() {
            reads.tried(0);
            answered += 1;
        }
        let most = LOOP_READ_TIME.as_micros() as u32 / 50;
        assert!((most..most + READS_PER_LOOK as u32).contains(&answered), "{answered}");
    }
}
