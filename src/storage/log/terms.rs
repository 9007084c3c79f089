//! The terms of the log's entries, as runs of equal terms: few, however long the log is.

use crate::model::{LogIndex, Term};

/// The first index and the term of each run, from the entry before the log's first one on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TermRuns {
    /// (First index of the run, term), in order.
    runs: Vec<(LogIndex, Term)>,
}

impl TermRuns {
    /// A log without entries; the entry before `first_index` had `previous_term`.
    pub fn new(first_index: LogIndex, previous_term: Term) -> TermRuns {
        let previous = (first_index > 1).then_some((first_index - 1, previous_term));
        TermRuns { runs: previous.into_iter().collect() }
    }

    /// Notes the term of an entry, which follows the last one or replaces a suffix.
    pub fn push(&mut self, index: LogIndex, term: Term) {
        while self.runs.last().is_some_and(|(first, _)| *first >= index) {
            self.runs.pop();
        }
        if self.runs.last().is_none_or(|(_, last)| *last != term) {
            self.runs.push((index, term));
        }
    }

    /// The term of an entry; 0 before the first run.
    pub fn term_at(&self, index: LogIndex) -> Term {
        let end = self.runs.partition_point(|(first, _)| *first <= index);
        end.checked_sub(1).map_or(0, |run| self.runs[run].1)
    }

    /// The runs of the entries `first_index` to `last_index`; the first run begins with
    /// `first_index`.
    pub fn within(&self, first_index: LogIndex, last_index: LogIndex) -> Vec<(LogIndex, Term)> {
        if first_index > last_index {
            return Vec::new();
        }
        let later = self.runs.iter().filter(|(first, _)| *first > first_index).copied();
        [(first_index, self.term_at(first_index))].into_iter().chain(later).collect()
    }

    /// Drops the terms of the entries before `first_index - 1`.
    pub fn compact(&mut self, first_index: LogIndex) {
        let end = self.runs.partition_point(|(first, _)| *first < first_index);
        self.runs.drain(..end.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_before_the_first_entry_outlives_compaction() {
        let mut terms = TermRuns::new(1, 0);
        assert_eq!((terms.term_at(0), terms.within(1, 0)), (0, vec![]));
        for (index, term) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 5)] {
            terms.push(index, term);
        }
        assert_eq!(terms.within(1, 6), [(1, 1), (3, 2), (6, 5)]);
        terms.compact(5);
        assert_eq!(terms.term_at(4), 2);
        assert_eq!(terms.within(5, 6), [(5, 2), (6, 5)]);
        terms.compact(6);
        assert_eq!((terms.term_at(5), terms.term_at(6)), (2, 5));
        terms.push(6, 7);
        assert_eq!(terms.within(6, 6), [(6, 7)]);
        terms.compact(7);
        assert_eq!((terms.term_at(6), terms.within(7, 6)), (7, vec![]));
    }

    #[test]
    fn a_run_that_replaces_reaches_back() {
        let mut terms = TermRuns::new(11, 2);
        assert_eq!(terms.term_at(10), 2);
        terms.push(5, 3);
        (6..13).for_each(|index| terms.push(index, 3));
        assert_eq!((terms.term_at(10), terms.within(11, 12)), (3, vec![(11, 3)]));
    }
}
