//! A map for what a service knows about its connections, by their ids.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::connections::ConnectionId;

/// A map from [`ConnectionId`] for what is looked up with every frame: nobody outside chooses ids,
/// so they need no hash that withstands an attacker.
///
/// It is a hash map and no table by slot, because a slot may have its next connection before the
/// service was told of the end of the last one.
pub type ConnectionMap<T> = HashMap<ConnectionId, T, BuildHasherDefault<IdHasher>>;

/// Mixes the two halves of an id as MurmurHash3 mixes its last 64 bits (Appleby).
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = self.0.rotate_left(32) ^ u64::from(number);
    }

    fn finish(&self) -> u64 {
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn ids_of_one_slot_are_told_apart_and_hashes_are_spread() {
        let mut map = ConnectionMap::default();
        let (first, second) = (ConnectionId::from_u64(7), ConnectionId::from_u64(1 << 32 | 7));
        map.insert(first, "first");
        map.insert(second, "second");
        assert_eq!((map.remove(&first), map.remove(&second)), (Some("first"), Some("second")));

        let hasher = BuildHasherDefault::<IdHasher>::default();
        let ids = (0..64).flat_map(|slot| (0..64).map(move |generation| generation << 32 | slot));
        let hashes: Vec<u64> = ids.map(|id| hasher.hash_one(ConnectionId::from_u64(id))).collect();
        // Both ends of a hash are used by the standard map. Of 4,096 thrown into 4,096 places,
        // about 63 % are hit by a good hash.
        for part in [|hash: &u64| hash % 4096, |hash: &u64| hash >> 52] {
            let places: HashSet<u64> = hashes.iter().map(part).collect();
            assert!(places.len() > 2000, "{}", places.len());
        }
    }
}
