//! A hash of the whole replicated state, kept up to date row by row.
//!
//! The sum, modulo 2⁶⁴, of a hash of each row: independent of order, so that a change costs one
//! addition or subtraction, and equal on two replicas exactly when (up to chance) their rows are.
//! It finds replicas that went apart; it is no defence against rows chosen to collide.

/// The sum over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateHash(pub u64);

impl StateHash {
    /// Takes a row in.
    pub fn add(&mut self, row: u64) {
        self.0 = self.0.wrapping_add(row);
    }

    /// Takes a row out.
    pub fn subtract(&mut self, row: u64) {
        self.0 = self.0.wrapping_sub(row);
    }
}

/// The hash of one row. `parts` are hashed as one string: the caller sees to it that different
/// rows of a kind give different strings.
pub(super) fn row_hash(kind: &[u8], parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind.len() as u8]).update(kind);
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    hash.as_bytes().iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The hash of a row of few numbers, for those that change with every write: the finaliser of
/// SplitMix64 (Steele, Lea, Flood 2014), word after word. `kind` keeps the kinds of rows apart.
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
