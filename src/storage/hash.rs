//! A hash of the whole replicated state, kept up to date row by row.
//!
//! It is the sum, modulo 2⁶⁴, of a hash of each row. The sum does not depend on order, so a change
//! costs one addition or subtraction, and it is equal on two replicas if and only if (up to chance)
//! their rows are. It detects replicas that have diverged; it is no defence against rows that were
//! chosen to collide.

/// The sum of the hashes of all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateHash(pub u64);

impl StateHash {
    /// Adds the hash of a row.
    pub fn add(&mut self, row: u64) {
        self.0 = self.0.wrapping_add(row);
    }

    /// Subtracts the hash of a row.
    pub fn subtract(&mut self, row: u64) {
        self.0 = self.0.wrapping_sub(row);
    }
}

/// Bytes of a row that are hashed as one piece: a key and a value of some hundred bytes.
const PIECE_BYTES: usize = 512;

/// The hash of one row. `parts` are hashed as one string: the caller guarantees that different rows
/// of a kind yield different strings.
pub(super) fn row_hash(kind: &[u8], parts: &[&[u8]]) -> u64 {
    // Most rows are short, and hashed faster as one piece.
    let (mut piece, mut filled) = ([0; PIECE_BYTES], 0);
    let mut hasher = blake3::Hasher::new();
    let length = [kind.len() as u8];
    for part in [&length[..], kind].iter().chain(parts) {
        if part.len() > piece.len() - filled {
            hasher.update(&piece[..filled]).update(part);
            filled = 0;
            continue;
        }
        piece[filled..filled + part.len()].copy_from_slice(part);
        filled += part.len();
    }
    hasher.update(&piece[..filled]);
    let hash = hasher.finalize();
    hash.as_bytes().iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The hash of a row of a few numbers, for rows that change with every write: the finalizer of
/// SplitMix64 (Steele, Lea, Flood 2014), word by word. `kind` distinguishes the kinds of rows.
pub(super) fn words_hash(kind: u64, words: &[u64]) -> u64 {
    words.iter().fold(mix(kind), |hash, word| mix(hash ^ word))
}

fn mix(word: u64) -> u64 {
    let mut mixed = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn order_does_not_matter_and_rows_do() {
        let (a, b) = (row_hash(b"x", &[b"a"]), row_hash(b"x", &[b"b"]));
        let (mut one, mut other) = (StateHash::default(), StateHash::default());
        one.add(a);
        one.add(b);
        other.add(b);
        other.add(a);
        assert_eq!(one, other);
        one.subtract(b);
        assert_ne!(one, other);
        assert_ne!(row_hash(b"x", &[b"a"]), row_hash(b"y", &[b"a"]));
    }

    /// Pieces are not seen in it: servers of all releases agree about it.
    #[test]
    fn the_hash_of_a_row_is_that_of_its_bytes_in_order() {
        for lengths in [[0, 0], [1, 0], [30, 100], [500, 7], [600, 8], [8, 600], [700, 700]] {
            let parts = lengths.map(|length| vec![7; length]);
            let together = [&b"\x03row"[..], &parts[0], &parts[1]].concat();
            let hash = blake3::hash(&together);
            let first = u64::from_be_bytes(*hash.as_bytes().first_chunk().unwrap());
            assert_eq!(row_hash(b"row", &[&parts[0], &parts[1]]), first, "{lengths:?}");
        }
    }

    #[test]
    fn words_and_their_places_matter() {
        let rows: [(u64, &[u64]); 7] = [
            (1, &[]),
            (1, &[0]),
            (1, &[0, 0]),
            (1, &[0, 1]),
            (1, &[1, 0]),
            (2, &[0, 1]),
            (2, &[1 << 63, 1]),
        ];
        let hashes: HashSet<u64> =
            rows.iter().map(|(kind, words)| words_hash(*kind, words)).collect();
        assert_eq!(hashes.len(), rows.len());
    }
}
