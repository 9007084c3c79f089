//! A Bloom filter over the keys of a table, so that a lookup skips tables without its key.
//!
//! ```text
//! filter := line* in a section        a line is 64 bytes, one line of the processor's cache
//! ```
//!
//! A key is added as [`keys::without_timestamp`](crate::storage::keys::without_timestamp), so that
//! a search for the newest version of a key is answered, which knows no timestamp. A key chooses
//! one line and six bits in it, so a lookup costs one miss of the cache at most (Putze, Sanders,
//! Singler 2007, "Cache-, Hash- and Space-Efficient Bloom Filters"). With ten bits a key, about
//! one lookup in seventy of an absent key says "maybe".
//!
//! A filter may say "maybe" for a key that was never added, and never "no" for one that was. The
//! hash is not keyed: whoever chooses keys so that they collide makes reads of absent keys look
//! into tables in vain, as if there were no filter, and no more.
//!
//! The hash is a part of the format: it must not change while there are tables.

use super::section::SectionError;

const LINE_BYTES: usize = 64;
const LINE_BITS: u64 = 8 * LINE_BYTES as u64;
/// Twelve bits would halve the wrong answers and cost a fifth more memory for all keys; the block
/// that a wrong answer costs is often in the cache.
const BITS_PER_KEY: usize = 10;
const PROBES: u32 = 6;
/// Bits of the hash by which a probe chooses a bit of its line.
const PROBE_BITS: u32 = LINE_BITS.trailing_zeros();

/// The fractional parts of the square roots of 2, 3 and 5, made odd: numbers without a pattern.
const FACTORS: [u64; 3] = [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b];

/// Collects the hashes of keys, eight bytes each.
#[derive(Default)]
pub(super) struct FilterBuilder {
    hashes: Vec<u64>,
}

impl FilterBuilder {
    /// Adds a key. Keys come in order, so that one that comes several times is added once.
    pub fn add(&mut self, key: &[u8]) {
        let hash = hash(key);
        if self.hashes.last() != Some(&hash) {
            self.hashes.push(hash);
        }
    }

    /// The bytes of the filter of the keys so far.
    pub fn bytes(&self) -> usize {
        lines(self.hashes.len()) * LINE_BYTES
    }

    /// The filter, and begins the next one.
    pub fn finish(&mut self) -> Vec<u8> {
        let lines = lines(self.hashes.len());
        let mut bytes = vec![0; lines * LINE_BYTES];
        for hash in self.hashes.drain(..) {
            let (line, bits) = place(hash, lines);
            let line = &mut bytes[line * LINE_BYTES..][..LINE_BYTES];
            bits.for_each(|bit| line[bit / 8] |= 1 << (bit % 8));
        }
        bytes
    }
}

/// The number of lines of a filter of so many keys.
fn lines(keys: usize) -> usize {
    (keys * BITS_PER_KEY).div_ceil(LINE_BITS as usize).max(1)
}

/// A filter in memory.
pub(super) struct Filter {
    lines: Box<[[u8; LINE_BYTES]]>,
}

impl Filter {
    /// Decodes bytes whose checksum was right.
    ///
    /// # Errors
    ///
    /// [`SectionError::Encoding`].
    pub fn decode(bytes: &[u8]) -> Result<Filter, SectionError> {
        match bytes.as_chunks() {
            (lines, []) if !lines.is_empty() => Ok(Filter { lines: lines.into() }),
            _ => Err(SectionError::Encoding("the filter is not of whole lines")),
        }
    }

    /// The bytes of memory that the filter takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Filter>() + self.lines.len() * LINE_BYTES
    }

    /// Whether the key may have been added; if false, it was not.
    pub fn may_have(&self, key: &[u8]) -> bool {
        let (line, mut bits) = place(hash(key), self.lines.len());
        let line = &self.lines[line];
        bits.all(|bit| line[bit / 8] & 1 << (bit % 8) != 0)
    }
}

/// The line and the bits in it that a hash chooses.
fn place(hash: u64, lines: usize) -> (usize, impl Iterator<Item = usize>) {
    // Scales the hash to the number of lines without a division (Lemire 2016).
    let line = ((u128::from(hash) * lines as u128) >> u64::BITS) as usize;
    // The line uses the upper bits, so the probes use a further hash: else keys of one line would
    // often share bits in it.
    let bits = fold(hash, FACTORS[2]);
    let bit = move |probe| (bits >> (probe * PROBE_BITS)) % LINE_BITS;
    (line, (0..PROBES).map(move |probe| bit(probe) as usize))
}

/// A hash by multiplication and folding of eight bytes at a time, as in wyhash.
fn hash(key: &[u8]) -> u64 {
    let (words, rest) = key.as_chunks::<8>();
    let start = FACTORS[0] ^ key.len() as u64;
    let hash =
        words.iter().fold(start, |hash, word| fold(hash ^ u64::from_le_bytes(*word), FACTORS[1]));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(hash ^ u64::from_le_bytes(last), FACTORS[1]), FACTORS[0])
}

/// Both halves of the product, laid over each other.
fn fold(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> u64::BITS) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(keys: &[Vec<u8>]) -> Filter {
        let mut builder = FilterBuilder::default();
        keys.iter().for_each(|key| builder.add(key));
        Filter::decode(&builder.finish()).unwrap()
    }

    proptest! {
        #[test]
        fn a_key_that_was_added_is_never_denied(
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..300),
        ) {
            let filter = filter(&keys);
            prop_assert!(keys.iter().all(|key| filter.may_have(key)));
        }

        #[test]
        fn any_bytes_are_a_filter_or_a_typed_error(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            key in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            match Filter::decode(&bytes) {
                Ok(filter) => _ = filter.may_have(&key),
                Err(error) => prop_assert!(matches!(error, SectionError::Encoding(_))),
            }
        }
    }

    /// Keys that differ in few bits, as users number them.
    #[test]
    fn few_absent_keys_are_not_denied() {
        let key = |number: u32| format!("user:{number:08}").into_bytes();
        for count in [1, 50, 2_000, 50_000] {
            let filter = filter(&(0..count).map(key).collect::<Vec<_>>());
            let asked = 50_000;
            let maybe = (count..count + asked).filter(|number| filter.may_have(&key(*number)));
            let maybe = maybe.count() as u32;
            assert!(maybe < asked / 50, "{maybe} of {asked} beside {count} keys");
        }
    }

    /// The hash is a part of the format.
    #[test]
    fn the_bytes_of_a_filter_stay_as_they_are() {
        let mut builder = FilterBuilder::default();
        builder.add(b"a");
        builder.add(b"several words of a key");
        let sum = crc32fast::hash(&builder.finish());
        assert_eq!(sum, 0x852d_884a, "{sum:#010x}");
    }
}
