//! A Bloom filter over the keys of a table, so that a lookup skips tables without its key.
//!
//! ```text
//! filter := part*                     all of them of 64 lines, but for the last
//! part   := line* in a section        a line is 64 bytes, one line of the processor's cache
//! ```
//!
//! A lookup needs one part, which is read and cached by itself. The filters of ten million keys do
//! not fit into the cache together; as wholes, each lookup that missed one read up to a mebibyte.
//!
//! A key is added as [`keys::in_filter`](crate::storage::keys::in_filter) has it, without its
//! timestamp, so that a search for the newest version of a key is answered, which knows none. A key
//! chooses one line and six bits in it, so a lookup costs one miss of the cache at most (Putze,
//! Sanders, Singler 2007, "Cache-, Hash- and Space-Efficient Bloom Filters"). With ten bits a key,
//! about one lookup in seventy of an absent key says "maybe".
//!
//! A filter may say "maybe" for a key that was never added, and never "no" for one that was. The
//! hash is not keyed: whoever chooses keys so that they collide makes reads of absent keys look
//! into tables in vain, as if there were no filter, and no more.
//!
//! The hash is a part of the format: it must not change while there are tables.

use super::section::SectionError;

const LINE_BYTES: usize = 64;
/// A page of the disk.
const PART_LINES: usize = 64;
const CHECKSUM_BYTES: usize = 4;
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

    /// The parts of the filter, one after the other, and begins the next one.
    pub fn finish(&mut self) -> Vec<Vec<u8>> {
        let lines = lines(self.hashes.len());
        let mut bytes = vec![0; lines * LINE_BYTES];
        for hash in self.hashes.drain(..) {
            let (line, bits) = place(hash, lines);
            let line = &mut bytes[line * LINE_BYTES..][..LINE_BYTES];
            bits.for_each(|bit| line[bit / 8] |= 1 << (bit % 8));
        }
        bytes.chunks(PART_LINES * LINE_BYTES).map(<[u8]>::to_vec).collect()
    }
}

/// The number of lines of a filter of so many keys.
fn lines(keys: usize) -> usize {
    (keys * BITS_PER_KEY).div_ceil(LINE_BITS as usize).max(1)
}

/// How a filter lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilterLayout {
    lines: usize,
}

impl FilterLayout {
    /// The layout of a filter of so many bytes, checksums included; `None` if none has so many.
    pub fn of(bytes: u64) -> Option<FilterLayout> {
        let bytes = usize::try_from(bytes).ok()?;
        let parts = bytes.div_ceil(PART_LINES * LINE_BYTES + CHECKSUM_BYTES);
        let lines_bytes = bytes.checked_sub(parts * CHECKSUM_BYTES)?;
        let layout = FilterLayout { lines: lines_bytes / LINE_BYTES };
        let is_whole = layout.lines > 0 && lines_bytes.is_multiple_of(LINE_BYTES);
        (is_whole && layout.parts() == parts).then_some(layout)
    }

    pub fn parts(self) -> usize {
        self.lines.div_ceil(PART_LINES)
    }

    /// Where a part begins in the filter, and its bytes with the checksum.
    pub fn extent(self, part: usize) -> (u64, u64) {
        let lines = (self.lines - part * PART_LINES).min(PART_LINES);
        let start = part * (PART_LINES * LINE_BYTES + CHECKSUM_BYTES);
        (start as u64, (lines * LINE_BYTES + CHECKSUM_BYTES) as u64)
    }

    /// The part that knows of a key.
    pub fn part_of(self, key: &[u8]) -> usize {
        place(hash(key), self.lines).0 / PART_LINES
    }
}

/// A part of a filter in memory.
pub(super) struct FilterPart {
    lines: Box<[[u8; LINE_BYTES]]>,
}

impl FilterPart {
    /// Decodes bytes whose checksum was right.
    ///
    /// # Errors
    ///
    /// [`SectionError::Encoding`].
    pub fn decode(bytes: &[u8]) -> Result<FilterPart, SectionError> {
        match bytes.as_chunks() {
            (lines, []) if !lines.is_empty() => Ok(FilterPart { lines: lines.into() }),
            _ => Err(SectionError::Encoding("the filter is not of whole lines")),
        }
    }

    /// The bytes of memory that the part takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<FilterPart>() + self.lines.len() * LINE_BYTES
    }

    /// Whether the key, of which this part of the filter knows, may have been added; if false, it
    /// was not.
    pub fn may_have(&self, key: &[u8], layout: FilterLayout) -> bool {
        let (line, mut bits) = place(hash(key), layout.lines);
        // A part has as many lines as its layout says: its bytes were read by it.
        let line = &self.lines[line % PART_LINES];
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

    /// The parts of a filter, and how they lie.
    struct Filter(Vec<FilterPart>, FilterLayout);

    impl Filter {
        fn may_have(&self, key: &[u8]) -> bool {
            self.0[self.1.part_of(key)].may_have(key, self.1)
        }
    }

    fn filter(keys: &[Vec<u8>]) -> Filter {
        let mut builder = FilterBuilder::default();
        keys.iter().for_each(|key| builder.add(key));
        let parts = builder.finish();
        let bytes: usize = parts.iter().map(|part| part.len() + CHECKSUM_BYTES).sum();
        let layout = FilterLayout::of(bytes as u64).unwrap();
        assert_eq!(layout.parts(), parts.len());
        let mut end = 0;
        for (at, part) in parts.iter().enumerate() {
            assert_eq!(layout.extent(at), (end, (part.len() + CHECKSUM_BYTES) as u64));
            end += layout.extent(at).1;
        }
        Filter(parts.iter().map(|part| FilterPart::decode(part).unwrap()).collect(), layout)
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
            match FilterPart::decode(&bytes) {
                Ok(part) => {
                    let layout = FilterLayout::of((bytes.len() + CHECKSUM_BYTES) as u64).unwrap();
                    _ = part.may_have(&key, layout);
                }
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

    #[test]
    fn only_whole_lines_in_parts_are_a_filter() {
        let part = (PART_LINES * LINE_BYTES + CHECKSUM_BYTES) as u64;
        for bytes in [0, 4, 67, 69, part - 1, part + 1, part + 4, part + 64, u64::MAX] {
            assert_eq!(FilterLayout::of(bytes), None, "{bytes}");
        }
        for (bytes, lines) in [(68, 1), (part, PART_LINES), (part + 68, PART_LINES + 1)] {
            assert_eq!(FilterLayout::of(bytes), Some(FilterLayout { lines }));
        }
    }

    /// The hash is a part of the format.
    #[test]
    fn the_bytes_of_a_filter_stay_as_they_are() {
        let mut builder = FilterBuilder::default();
        builder.add(b"a");
        builder.add(b"several words of a key");
        let sum = crc32fast::hash(&builder.finish().concat());
        assert_eq!(sum, 0x852d_884a, "{sum:#010x}");
    }
}
