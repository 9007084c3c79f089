//! Picks the rarest of the missing chunks that a source has.
//!
//! Missing chunks are kept in buckets by the number of sources that have them. So the rarest are
//! found without looking at the others, and changing one chunk takes constant time. Sources that
//! have the whole content make every chunk equally less rare and are not counted.
//!
//! Among equally rare chunks a source continues with the chunk after its previous one, so that the
//! disks at both ends read and write sequentially. Otherwise it starts at a random chunk, so that
//! several downloads of one content fetch different parts and can serve each other.
//!
//! Rule: a chunk is in exactly one bucket while it is missing, at the position recorded for it, and
//! in none otherwise.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::share::chunks::ChunkSet;

/// The position of a chunk that is not missing.
const NOWHERE: u32 = u32::MAX;

/// The missing chunks. A content has at most 2²⁰ chunks
/// ([`FILE_BYTES_MAX`](crate::limits::FILE_BYTES_MAX)), so 32 bits are enough for a chunk's number.
#[derive(Debug)]
pub(super) struct Picker {
    /// For each chunk, how many of the sources with a part of the content have it.
    rarity: Vec<u16>,
    /// For each chunk, its position in the bucket of its rarity, or [`NOWHERE`].
    place: Vec<u32>,
    /// For each rarity, the missing chunks of that rarity, in no order.
    buckets: Vec<Vec<u32>>,
    missing: u64,
    random: SmallRng,
}

impl Picker {
    /// No chunk is missing at first.
    pub(super) fn new(chunks: u64, seed: u64) -> Picker {
        let chunks = chunks as usize;
        Picker {
            rarity: vec![0; chunks],
            place: vec![NOWHERE; chunks],
            buckets: vec![Vec::new()],
            missing: 0,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// Chunk `index` has become missing.
    pub(super) fn put(&mut self, index: u64) {
        let place = self.place[index as usize];
        assert_eq!(place, NOWHERE, "chunk {index} is missing already");
        self.enter(index as u32);
        self.missing += 1;
    }

    /// Chunk `index` is not missing any more.
    fn take(&mut self, index: u64) {
        self.leave(index as u32);
        self.missing -= 1;
    }

    /// One more source with a part of the content has chunk `index`.
    pub(super) fn more(&mut self, index: u64) {
        self.change_rarity(index, |rarity| rarity + 1);
    }

    /// One fewer source with a part of the content has chunk `index`.
    pub(super) fn fewer(&mut self, index: u64) {
        let rarity = self.rarity[index as usize];
        assert!(rarity > 0, "no source has chunk {index}");
        self.change_rarity(index, |rarity| rarity - 1);
    }

    /// Picks a chunk for a source that has `have` (`None` for the whole content) and was last asked
    /// for the chunk before `next`. The chunk is not missing any more. Returns `None` if the source
    /// has no missing chunk.
    pub(super) fn pick(&mut self, have: Option<&ChunkSet>, next: u64) -> Option<u64> {
        let has = |index: u32| have.is_none_or(|set| set.contains(u64::from(index)));
        for rarity in 0..self.buckets.len() {
            let bucket = &self.buckets[rarity];
            if bucket.is_empty() {
                continue;
            }
            let is_here = |index: u64| {
                let index = index as usize;
                index < self.place.len()
                    && self.place[index] != NOWHERE
                    && usize::from(self.rarity[index]) == rarity
            };
            let found = if is_here(next) && has(next as u32) {
                Some(next as u32)
            } else {
                let start = self.random.random_range(0..bucket.len());
                let (before, after) = bucket.split_at(start);
                after.iter().chain(before).copied().find(|index| has(*index))
            };
            if let Some(index) = found {
                self.take(u64::from(index));
                return Some(u64::from(index));
            }
        }
        None
    }

    fn change_rarity(&mut self, index: u64, change: impl FnOnce(u16) -> u16) {
        let chunk = index as usize;
        let is_missing = self.place[chunk] != NOWHERE;
        if is_missing {
            self.leave(index as u32);
        }
        self.rarity[chunk] = change(self.rarity[chunk]);
        if is_missing {
            self.enter(index as u32);
        }
    }

    fn enter(&mut self, index: u32) {
        let rarity = usize::from(self.rarity[index as usize]);
        if self.buckets.len() <= rarity {
            self.buckets.resize_with(rarity + 1, Vec::new);
        }
        let bucket = &mut self.buckets[rarity];
        self.place[index as usize] = bucket.len() as u32;
        bucket.push(index);
    }

    fn leave(&mut self, index: u32) {
        let bucket = &mut self.buckets[usize::from(self.rarity[index as usize])];
        let place = self.place[index as usize] as usize;
        assert_eq!(bucket.get(place), Some(&index), "chunk {index} is at its place");
        self.place[index as usize] = NOWHERE;
        bucket.swap_remove(place);
        if let Some(moved) = bucket.get(place) {
            self.place[*moved as usize] = place as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker(chunks: u64) -> Picker {
        let mut picker = Picker::new(chunks, 1);
        (0..chunks).for_each(|index| picker.put(index));
        picker
    }

    #[test]
    fn the_rarest_chunks_are_requested_first() {
        let mut picker = picker(6);
        [0, 1, 1, 2, 2, 2, 3, 4, 5, 5].into_iter().for_each(|index| picker.more(index));
        picker.fewer(1);
        // Chunks 0, 1, 3 and 4 are at one source each, 5 at two, 2 at three.
        let order: Vec<u64> = std::iter::from_fn(|| picker.pick(None, 99)).collect();
        let mut rarest = order[..4].to_vec();
        rarest.sort_unstable();
        assert_eq!((&rarest[..], &order[4..]), (&[0, 1, 3, 4][..], &[5, 2][..]));
        assert_eq!(picker.missing(), 0);
    }

    #[test]
    fn equally_rare_chunks_are_requested_in_order_of_those_a_source_has() {
        let mut picker = picker(100);
        let mut have = ChunkSet::empty(100);
        assert!(have.insert_run(40, 20));
        (40..60).for_each(|index| picker.more(index));
        assert_eq!(picker.pick(None, 7), Some(7));
        assert_eq!(picker.pick(None, 8), Some(8));
        assert_eq!(picker.pick(Some(&have), 41), Some(41));
        let mut rest: Vec<u64> = std::iter::from_fn(|| picker.pick(Some(&have), 0)).collect();
        rest.sort_unstable();
        let expected: Vec<u64> = (40..60).filter(|index| *index != 41).collect();
        assert_eq!(rest, expected);
        picker.put(41);
        assert_eq!(picker.missing(), 79);
        assert_eq!(picker.pick(Some(&have), 0), Some(41));
    }
}
