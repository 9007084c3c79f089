//! Counts the checks of a partial file: of what an earlier download has left, and of the whole file
//! when another program may have changed it.
//!
//! Rule: within one round every chunk is handed out once and reported once. A round ends when all
//! chunks have been reported.

use super::disk::CheckRange;

/// How often a download checks its whole file again because another program may have changed it:
/// whoever opens it once costs one check, two when that goes on meanwhile. A program that never
/// stops writing is told of instead.
pub(super) const PART_RECHECKS_MAX: u32 = 5;

/// The progress of the rounds. Before the first [`PartCheck::start`] no round is under way.
#[derive(Debug)]
pub(super) struct PartCheck {
    chunks: u64,
    /// The most chunks that one job checks.
    per_job: u64,
    /// The most jobs outstanding at once: one for each worker and one that waits.
    jobs_max: usize,
    /// The first chunk that has not been handed out in this round.
    next: u64,
    /// The number of chunks that have been reported in this round.
    checked: u64,
    jobs: usize,
    rechecks: u32,
}

impl PartCheck {
    pub(super) fn new(chunks: u64, per_job: u64, workers: usize) -> PartCheck {
        let jobs_max = workers + 1;
        PartCheck { chunks, per_job, jobs_max, next: chunks, checked: chunks, jobs: 0, rechecks: 0 }
    }

    /// Starts a round over all chunks.
    pub(super) fn start(&mut self) {
        assert_eq!((self.jobs, self.checked), (0, self.chunks), "a round is under way");
        (self.next, self.checked) = (0, 0);
    }

    /// Starts a round because another program may have changed the file. Returns false if that has
    /// happened too often: a program that never stops writing must not keep a download from ending.
    pub(super) fn start_again(&mut self) -> bool {
        if self.rechecks == PART_RECHECKS_MAX {
            return false;
        }
        self.rechecks += 1;
        self.start();
        true
    }

    /// The chunks that the next job is to check, if one may be started now. Jobs that store chunks
    /// do not count here, or they could keep checks from starting for as long as chunks arrive.
    pub(super) fn next(&self) -> Option<CheckRange> {
        let left = self.chunks - self.next;
        let range = CheckRange { first: self.next, count: self.per_job.min(left) };
        (left > 0 && self.jobs < self.jobs_max).then_some(range)
    }

    /// The job that [`PartCheck::next`] has named was started.
    pub(super) fn started(&mut self, range: CheckRange) {
        assert_eq!(Some(range), self.next(), "checks are started in order");
        self.next += range.count;
        self.jobs += 1;
        self.check_sums();
    }

    /// A job has ended. Returns whether that ends the round.
    pub(super) fn ended(&mut self, range: CheckRange) -> bool {
        assert!(self.jobs > 0, "no check of {range:?} is outstanding");
        self.jobs -= 1;
        self.checked += range.count;
        self.check_sums();
        self.checked == self.chunks
    }

    /// The number of chunks that have been checked in this round.
    pub(super) fn checked(&self) -> u64 {
        self.checked
    }

    fn check_sums(&self) {
        let outstanding = self.next - self.checked;
        assert!(
            self.checked <= self.next
                && self.next <= self.chunks
                && (outstanding == 0) == (self.jobs == 0),
            "{self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_hands_out_every_chunk_once_and_ends_with_the_last_report() {
        let mut check = PartCheck::new(10, 4, 1);
        assert_eq!(check.next(), None, "no round is under way");
        check.start();
        let mut started = Vec::new();
        while let Some(range) = check.next() {
            check.started(range);
            started.push(range);
        }
        assert_eq!(started.len(), 2, "one for the worker, one that waits");
        assert!(!check.ended(started[1]));
        let last = check.next().unwrap();
        assert_eq!((last.first, last.count), (8, 2));
        check.started(last);
        assert!(!check.ended(started[0]));
        assert_eq!(check.checked(), 8);
        assert!(check.ended(last));
        assert_eq!(check.next(), None);
    }

    #[test]
    fn a_file_is_checked_again_a_limited_number_of_times() {
        let mut check = PartCheck::new(1, 1, 1);
        for round in 0..=PART_RECHECKS_MAX {
            assert_eq!(check.start_again(), round < PART_RECHECKS_MAX);
            if let Some(range) = check.next() {
                check.started(range);
                assert!(check.ended(range));
            }
        }
    }
}
