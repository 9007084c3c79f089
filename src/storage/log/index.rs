//! Finds the position of an entry in the segments: a sparse index, small however long the log
//! grows.
//!
//! The log is covered by *extents*. An extent names the record of its first entry, `first_index`;
//! reading from there, frame after frame, yields the entries up to the next extent's first index,
//! in order. Invariants: an extent never crosses into another segment, and every replaced suffix
//! begins a new one, so replaced entries are never read. Otherwise a new one begins every
//! [`EXTENT_STRIDE_BYTES`]: 32 bytes of memory for that much log.

use super::error::LogError;
use crate::model::LogIndex;

/// Approximate number of bytes of log that one extent covers.
pub(super) const EXTENT_STRIDE_BYTES: u64 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub first_index: LogIndex,
    pub segment: u64,
    /// The position in the segment of the record of `first_index`.
    pub offset: u64,
    /// The position at which the payload of that record's frame ends.
    pub payload_end: u64,
}

/// The positions of all durable entries.
#[derive(Debug)]
pub(super) struct PositionIndex {
    /// The first index kept.
    pub first_index: LogIndex,
    /// The last durable index; `first_index - 1` if there is none.
    pub last_index: LogIndex,
    extents: Vec<Extent>,
}

impl PositionIndex {
    pub fn new(first_index: LogIndex) -> PositionIndex {
        PositionIndex {
            first_index,
            last_index: first_index.saturating_sub(1),
            extents: Vec::new(),
        }
    }

    /// Drops the extents before `first_index`, with which `segment` begins.
    pub fn compact(&mut self, first_index: LogIndex, segment: u64) {
        self.first_index = first_index;
        self.extents.retain(|extent| extent.segment >= segment);
    }

    /// Adds a frame: `entries` are (index, position within the frame), contiguous, and replace
    /// everything from the first on. Those before the first index kept are skipped: a kept segment
    /// may begin with entries that replace some of a deleted one.
    pub fn add_frame(
        &mut self,
        segment: u64,
        frame_offset: u64,
        payload_end: u64,
        entries: &[(LogIndex, u64)],
    ) {
        let Some(&(first, _)) = entries.first() else { return };
        // Recovery has checked what it read from disk, and the writer what it was given.
        assert!(
            first <= self.last_index + 1,
            "entries from {first} on are added to a log that ends at {}",
            self.last_index
        );
        let replaces = first <= self.last_index;
        if replaces {
            let keep = self.extents.partition_point(|extent| extent.first_index < first);
            self.extents.truncate(keep);
        }
        for (expected, &(index, position)) in (first..).zip(entries) {
            assert_eq!(index, expected, "the entries of a frame have a gap");
            self.last_index = index;
            if index < self.first_index {
                continue;
            }
            let offset = frame_offset + position;
            let covered = self.extents.last().is_some_and(|last| {
                last.segment == segment && offset - last.offset < EXTENT_STRIDE_BYTES
            });
            if !covered || (replaces && index == first.max(self.first_index)) {
                self.extents.push(Extent { first_index: index, segment, offset, payload_end });
            }
        }
    }

    /// Checks that entries from `low` on, before `high`, can be read.
    pub fn check_holds(&self, low: LogIndex, high: LogIndex) -> Result<(), LogError> {
        let (first, last) = (self.first_index, self.last_index);
        if low < first || low > last || low >= high {
            return Err(LogError::OutOfRange { index: low, first, last });
        }
        Ok(())
    }

    /// Returns at most `count` extents from the one that contains `index` on, each with the index
    /// at which it ends (exclusive).
    pub fn find(&self, index: LogIndex, count: usize) -> Vec<(Extent, LogIndex)> {
        let start = self.extents.partition_point(|extent| extent.first_index <= index);
        let Some(start) = start.checked_sub(1) else { return Vec::new() };
        let ends = self.extents[start + 1..].iter().map(|extent| extent.first_index);
        let ends = ends.chain([self.last_index + 1]);
        self.extents[start..].iter().copied().zip(ends).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_suffix_is_never_found_again() {
        let mut index = PositionIndex::new(1);
        index.add_frame(1, 4096, 4200, &[(1, 40), (2, 70), (3, 90)]);
        index.add_frame(1, 4200, 4300, &[(4, 40), (5, 70)]);
        assert_eq!(index.find(1, 9).len(), 1, "small frames share an extent");
        index.add_frame(1, 4304, 4400, &[(3, 40)]);
        assert_eq!(index.last_index, 3);
        let found = index.find(2, 9);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0.offset, found[0].1), (4136, 3));
        assert_eq!((found[1].0.offset, found[1].1), (4344, 4));
        index.add_frame(2, 4096, 4200, &[(1, 40)]);
        assert_eq!(index.find(1, 9).len(), 1);
        assert_eq!(index.find(1, 9)[0].0.segment, 2);
    }

    #[test]
    fn a_compacted_index_knows_nothing_of_what_it_forgot() {
        let mut index = PositionIndex::new(1);
        index.add_frame(1, 4096, 4200, &[(1, 40), (2, 70)]);
        index.add_frame(2, 4096, 4200, &[(3, 40), (4, 70)]);
        index.compact(3, 2);
        assert_eq!((index.first_index, index.last_index), (3, 4));
        let found = index.find(3, 9);
        assert_eq!((found.len(), found[0].0.segment), (1, 2));

        // Read back, the kept segment begins by replacing entries of the deleted one.
        let mut index = PositionIndex::new(3);
        index.add_frame(2, 4096, 4200, &[(1, 40)]);
        assert_eq!(index.last_index, 1);
        index.add_frame(2, 4200, 4300, &[(2, 40), (3, 70), (4, 90)]);
        let found = index.find(3, 9);
        assert_eq!((found.len(), found[0].0.offset, found[0].1), (1, 4270, 5));
    }

    #[test]
    fn extents_are_sparse_and_stay_within_their_segment() {
        let mut index = PositionIndex::new(1);
        for batch in 0..1000 {
            let offset = 4096 + batch * 1024;
            index.add_frame(1, offset, offset + 1000, &[(batch + 1, 40)]);
        }
        assert_eq!(index.find(1, usize::MAX).len(), 1000 / 64 + 1);
        index.add_frame(2, 4096, 5000, &[(1001, 40)]);
        let found = index.find(1000, 9);
        assert_eq!(found.last().map(|(extent, end)| (extent.segment, *end)), Some((2, 1002)));
        assert!(PositionIndex::new(5).find(5, 9).is_empty());
    }
}
