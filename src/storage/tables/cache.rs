//! One bounded cache for the blocks, indexes and parts of filters of all tables.
//!
//! It keeps what is used again with CLOCK: a hand goes round, takes the mark from entries that were
//! used since it last came by, and evicts one that has none. That is nearly as good as evicting the
//! least recently used, and a hit only sets a mark. Keys are spread over shards with a lock each,
//! so that readers seldom wait for each other; a lock is held for a look-up, and never while a disk
//! is read.
//!
//! Two readers that miss the same entry both read it, and the later one finds it there. Entries of
//! files that are gone are not looked for: nobody asks for them, so the hand evicts them.
//!
//! What it leaves out: merges and scrubbing, which read every block once. They look here and add
//! nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::block::Block;
use super::filter::FilterPart;
use super::section::Place;
use super::table::TableIndex;

/// An entry may take a whole shard: of 16 MiB each has 2, and a table ends when its index has half
/// of that.
const SHARDS: usize = 8;

/// A part of a table in memory.
#[derive(Clone)]
pub(super) enum Cached {
    Block(Arc<Block>),
    Index(Arc<TableIndex>),
    Filter(Arc<FilterPart>),
}

impl Cached {
    fn memory_bytes(&self) -> usize {
        size_of::<CacheEntry>()
            + match self {
                Cached::Block(block) => block.memory_bytes(),
                Cached::Index(index) => index.memory_bytes(),
                Cached::Filter(filter) => filter.memory_bytes(),
            }
    }
}

pub(super) struct TableCache {
    shards: Vec<Mutex<CacheShard>>,
}

struct CacheShard {
    bytes_max: usize,
    bytes: usize,
    positions: HashMap<Place, usize>,
    /// In no order, without gaps.
    entries: Vec<CacheEntry>,
    hand: usize,
}

struct CacheEntry {
    place: Place,
    cached: Cached,
    /// Used since the hand came by.
    is_used: bool,
}

impl TableCache {
    pub fn new(bytes_max: usize) -> TableCache {
        let shard = || {
            Mutex::new(CacheShard {
                bytes_max: bytes_max / SHARDS,
                bytes: 0,
                positions: HashMap::new(),
                entries: Vec::new(),
                hand: 0,
            })
        };
        TableCache { shards: (0..SHARDS).map(|_| shard()).collect() }
    }

    pub fn get(&self, place: Place) -> Option<Cached> {
        let mut shard = self.shard(place);
        let position = *shard.positions.get(&place)?;
        let entry = &mut shard.entries[position];
        entry.is_used = true;
        Some(entry.cached.clone())
    }

    /// Adds an entry, unless it is larger than a shard.
    pub fn add(&self, place: Place, cached: Cached) {
        self.shard(place).add(place, cached);
    }

    /// The bytes of all entries.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().bytes).sum()
    }

    fn shard(&self, place: Place) -> MutexGuard<'_, CacheShard> {
        // Neighbours in a file go to different shards.
        let mixed = (place.file ^ place.position).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let shard = &self.shards[(mixed >> 32) as usize % SHARDS];
        // No method leaves a shard inconsistent where it can panic, so a poisoned lock is ignored.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheShard {
    fn add(&mut self, place: Place, cached: Cached) {
        let bytes = cached.memory_bytes();
        if bytes > self.bytes_max || self.positions.contains_key(&place) {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            self.evict();
        }
        self.bytes += bytes;
        self.positions.insert(place, self.entries.len());
        self.entries.push(CacheEntry { place, cached, is_used: false });
    }

    /// Removes one entry; there must be one.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let entry = &mut self.entries[self.hand];
            if !std::mem::replace(&mut entry.is_used, false) {
                break;
            }
            self.hand += 1;
        }
        let gone = self.entries.swap_remove(self.hand);
        self.bytes -= gone.cached.memory_bytes();
        self.positions.remove(&gone.place);
        if let Some(moved) = self.entries.get(self.hand) {
            self.positions.insert(moved.place, self.hand);
        }
        // The entry that was moved here was added last: the hand goes on behind it.
        self.hand += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::tables::block::{BlockBuilder, TableValue};

    fn block(place: Place, value_bytes: usize) -> Cached {
        let (mut builder, mut bytes) = (BlockBuilder::default(), Vec::new());
        builder.add(b"key", TableValue::Inline(&vec![place.position as u8; value_bytes]));
        builder.finish(place, &mut bytes);
        Cached::Block(Arc::new(Block::decode(place, bytes).unwrap()))
    }

    fn first_byte(cached: &Cached) -> Option<u8> {
        match cached {
            Cached::Block(block) => match block.value(0) {
                TableValue::Inline(value) => value.first().copied(),
                _ => None,
            },
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn it_returns_what_was_added_and_stays_within_its_bound(
            steps in prop::collection::vec((0..40u64, 1..400usize, any::<bool>()), 1..300),
            bytes_max in 0..20_000usize,
        ) {
            let cache = TableCache::new(bytes_max);
            for (position, value_bytes, adds) in steps {
                let place = Place { file: position % 3, position };
                if adds {
                    cache.add(place, block(place, value_bytes));
                }
                if let Some(cached) = cache.get(place) {
                    prop_assert_eq!(first_byte(&cached), Some(position as u8));
                }
                prop_assert!(cache.bytes() <= bytes_max);
            }
        }
    }

    #[test]
    fn what_is_used_again_outlives_what_is_used_once() {
        let cache = TableCache::new(SHARDS * 4096);
        let hot = Place { file: 1, position: 0 };
        cache.add(hot, block(hot, 100));
        for position in 1..10_000 {
            let place = Place { file: 2, position };
            cache.add(place, block(place, 100));
            assert!(cache.get(hot).is_some(), "after {position} others");
        }
        assert!(cache.bytes() > SHARDS * 2048, "it is used to the full");
    }
}
