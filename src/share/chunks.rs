//! Sets of chunk numbers: which chunks of a content a peer has.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A set of chunk numbers below a fixed count, stored as one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSet {
    words: Vec<u64>,
    chunks: u64,
    count: u64,
}

impl ChunkSet {
    pub fn empty(chunks: u64) -> ChunkSet {
        ChunkSet { words: vec![0; chunks.div_ceil(64) as usize], chunks, count: 0 }
    }

    pub fn full(chunks: u64) -> ChunkSet {
        let mut words = vec![u64::MAX; chunks.div_ceil(64) as usize];
        if let (Some(last), used @ 1..) = (words.last_mut(), chunks % 64) {
            *last = (1 << used) - 1;
        }
        ChunkSet { words, chunks, count: chunks }
    }

    /// How many chunks the content has, whether they are in the set or not.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// How many chunks are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_full(&self) -> bool {
        self.count == self.chunks
    }

    pub fn contains(&self, index: u64) -> bool {
        index < self.chunks && self.words[(index / 64) as usize] >> (index % 64) & 1 == 1
    }

    /// Adds a chunk and returns whether it was absent. A chunk beyond the content is not added.
    pub fn insert(&mut self, index: u64) -> bool {
        let new = index < self.chunks && !self.contains(index);
        if new {
            self.words[(index / 64) as usize] |= 1 << (index % 64);
            self.count += 1;
        }
        new
    }

    /// Removes a chunk and returns whether it was present.
    pub fn remove(&mut self, index: u64) -> bool {
        let there = self.contains(index);
        if there {
            self.words[(index / 64) as usize] &= !(1 << (index % 64));
            self.count -= 1;
        }
        there
    }

    /// Adds the run of `length` chunks from `first` and returns true, if all of them are chunks of
    /// the content and none is in the set yet; otherwise changes nothing and returns false. So the
    /// work that a peer's message causes is bounded by the number of chunks that it newly
    /// announces.
    pub fn insert_run(&mut self, first: u64, length: u64) -> bool {
        let Some(end) = first.checked_add(length).filter(|end| *end <= self.chunks) else {
            return false;
        };
        if let Some(known) = (first..end).find(|index| !self.insert(*index)) {
            (first..known).for_each(|index| {
                self.remove(index);
            });
            return false;
        }
        true
    }

    /// The chunks of this set that are not in `other`. Both have to be of the same content.
    pub fn without(&self, other: &ChunkSet) -> ChunkSet {
        let mut rest = self.clone();
        for (word, other) in rest.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
        rest.count = rest.words.iter().map(|word| u64::from(word.count_ones())).sum();
        rest
    }

    /// The set as ascending runs of (first chunk, number of chunks). No two runs are adjacent.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (base, word) in (0..).step_by(64).zip(&self.words) {
            let mut at = 0;
            while at < 64 && word >> at != 0 {
                let skipped = (word >> at).trailing_zeros();
                let length = (word >> (at + skipped)).trailing_ones();
                let first = base + u64::from(at + skipped);
                match runs.last_mut() {
                    Some((start, count)) if *start + *count == first => *count += u64::from(length),
                    _ => runs.push((first, u64::from(length))),
                }
                at += skipped + length;
            }
        }
        runs
    }
}

/// A [`ChunkSet`] that one thread extends while other threads read it.
#[derive(Debug)]
pub struct SharedChunks {
    set: Mutex<ChunkSet>,
}

impl SharedChunks {
    pub fn new(set: ChunkSet) -> SharedChunks {
        SharedChunks { set: Mutex::new(set) }
    }

    pub fn insert(&self, index: u64) {
        self.lock().insert(index);
    }

    pub fn remove(&self, index: u64) {
        self.lock().remove(index);
    }

    pub fn contains(&self, index: u64) -> bool {
        self.lock().contains(index)
    }

    pub fn count(&self) -> u64 {
        self.lock().count()
    }

    /// A copy of the set as it is now.
    pub fn snapshot(&self) -> ChunkSet {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ChunkSet> {
        // No method panics half-way through a change, so a poisoned set is still consistent.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_cross_words_and_end_where_the_content_does() {
        let mut set = ChunkSet::empty(200);
        assert_eq!(set.runs(), []);
        assert!(set.insert_run(60, 70));
        set.insert(199);
        set.insert(0);
        assert!(!set.insert_run(198, u64::MAX) && !set.insert_run(198, 2) && !set.contains(198));
        assert!(set.insert_run(198, 1));
        assert!(!set.insert(200) && !set.insert(u64::MAX) && !set.contains(u64::MAX));
        assert_eq!(set.runs(), [(0, 1), (60, 70), (198, 2)]);
        assert_eq!(ChunkSet::full(128).runs(), [(0, 128)]);
        assert!(ChunkSet::full(0).is_full());
    }

    proptest! {
        #[test]
        fn a_set_contains_what_was_inserted_and_is_equal_to_the_set_of_its_runs(
            chunks in 0u64..300,
            changes in prop::collection::vec((0u64..310, any::<bool>()), 0..400),
        ) {
            let mut set = ChunkSet::empty(chunks);
            let mut model = std::collections::BTreeSet::new();
            for (index, add) in changes {
                let changed = if add { set.insert(index) } else { set.remove(index) };
                let expected =
                    index < chunks && if add { model.insert(index) } else { model.remove(&index) };
                prop_assert_eq!(changed, expected);
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            let mut again = ChunkSet::empty(chunks);
            for (first, length) in set.runs() {
                prop_assert!(again.insert_run(first, length));
            }
            prop_assert_eq!(&again, &set);
            let odd = model.iter().copied().filter(|index| index % 2 == 1);
            let mut odds = ChunkSet::empty(chunks);
            odd.clone().for_each(|index| { odds.insert(index); });
            let mut evens = set.without(&odds);
            prop_assert_eq!(evens.count() + odds.count(), set.count());
            odd.for_each(|index| { evens.insert(index); });
            prop_assert_eq!(evens, set);
        }
    }
}
