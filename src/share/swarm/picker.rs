//! Which of the missing chunks to ask a source for: the rarest first.
//!
//! Missing chunks are kept in buckets by how many sources have them, so that the rarest are found
//! without looking at the others, and a change of one chunk costs the same however many there are.
//! Sources that have everything make all chunks equally less rare and are not counted.
//!
//! Among equally rare chunks a source goes on with the one after its last, so that disks at both
//! ends read and write in order; else it begins somewhere at random, so that several downloads of
//! the same content take different parts and have something to give each other.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::share::chunks::ChunkSet;

/// A chunk that is not missing has no place in any bucket.
const NOWHERE: u32 = u32::MAX;

/// The missing chunks. A content has at most 2²⁰ chunks, see
/// [`FILE_BYTES_MAX`](crate::limits::FILE_BYTES_MAX): numbers of 32 bits hold them.
#[derive(Debug)]
pub(super) struct Picker {
    /// How many of the sources that have a part have each chunk.
    rarity: Vec<u16>,
    /// Where in the bucket of its rarity each chunk is.
    place: Vec<u32>,
    /// By rarity.
    buckets: Vec<Vec<u32>>,
    missing: u64,
    random: SmallRng,
}

impl Picker {
    /// Nothing of `chunks` chunks is missing yet.
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

    /// How many chunks are missing.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// Chunk `index` is missing (again).
    pub(super) fn put(&mut self, index: u64) {
        if self.place[index as usize] == NOWHERE {
            self.enter(index as u32);
            self.missing += 1;
        }
    }

    /// Chunk `index` is missing no more.
    pub(super) fn take(&mut self, index: u64) {
        if self.place[index as usize] != NOWHERE {
            self.leave(index as u32);
            self.missing -= 1;
        }
    }

    /// One more source with a part of the content has chunk `index`.
    pub(super) fn more(&mut self, index: u64) {
        self.change_rarity(index, |rarity| rarity.saturating_add(1));
    }

    /// One fewer.
    pub(super) fn fewer(&mut self, index: u64) {
        self.change_rarity(index, |rarity| rarity.saturating_sub(1));
    }

    /// A chunk for a source that has `have` (all when absent) and was last asked for the one before
    /// `next`. It is missing no more. `None`: the source has nothing that is missing.
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
    fn the_rarest_go_first() {
        let mut picker = picker(6);
        [0, 1, 1, 2, 2, 2, 3, 4, 5, 5].into_iter().for_each(|index| picker.more(index));
        picker.fewer(1);
        // 0, 1, 3 and 4 are had once, 5 twice, 2 thrice.
        let order: Vec<u64> = std::iter::from_fn(|| picker.pick(None, 99)).collect();
        let mut rarest = order[..4].to_vec();
        rarest.sort_unstable();
        assert_eq!((&rarest[..], &order[4..]), (&[0, 1, 3, 4][..], &[5, 2][..]));
        assert_eq!(picker.missing(), 0);
    }

    #[test]
    fn a_source_is_asked_in_order_where_it_makes_no_difference_and_only_for_what_it_has() {
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
        picker.put(41);
        assert_eq!(picker.missing(), 79);
        assert_eq!(picker.pick(Some(&have), 0), Some(41));
    }
}
