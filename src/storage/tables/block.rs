//! A block of rows: the piece of a table that is read, checked and cached as one.
//!
//! ```text
//! block := row* in a section, one row or more, in ascending order of keys
//! row   := key length u16 | key | kind u8 | value length u32 | value
//! value := the bytes (kind 0) | a reference into a value segment (kind 1) | nothing (kind 2)
//! reference := file u64 | position u64 | length u32 | checksum u32 | head, filled up with zeroes
//! ```
//!
//! A block is decoded once, when it is read: the checksum, then every row, whose beginning is
//! noted. So the table of offsets at the end of the blocks of other engines is not stored; it
//! could only contradict the rows. From then on every row is reached in one step, in both
//! directions, and nothing that is done with a block can fail.
//!
//! Keys are stored whole. Prefixes that neighbours share are a fifth of a row with a value of 100
//! bytes; leaving them out would make steps backwards go forwards from a restart point and copy
//! each key, in exchange for a part of what the caches hold.
//!
//! A delete marker is a row of its own: it hides the row of the same key in older runs.

use std::cmp::Ordering;
use std::ops::Range;

use super::section::{self, Fields, Place, SectionError, put_key};
use crate::storage::engine::{VALUE_HEAD_BYTES, head_of};

const INLINE: u8 = 0;
const LONG: u8 = 1;
const DELETED: u8 = 2;

/// Bytes of a row without its key and value.
const ROW_HEADER_BYTES: usize = 2 + 1 + 4;
const VALUE_REF_BYTES: usize = 8 + 8 + 4 + 4 + VALUE_HEAD_BYTES;

/// Where a long value is stored, the checksum of its bytes in their place, and the first of them,
/// so that what they tell costs no look at the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValueRef {
    pub place: Place,
    pub bytes: u32,
    pub checksum: u32,
    /// The first bytes of the value, filled up with zeroes.
    pub padded_head: [u8; VALUE_HEAD_BYTES],
}

/// The state of a row in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableValue<'a> {
    Inline(&'a [u8]),
    Long(ValueRef),
    /// The row is removed, and so are all its states in older runs.
    Deleted,
}

impl TableValue<'_> {
    /// The length of the value; `None` if the row is removed.
    pub fn bytes(self) -> Option<usize> {
        match self {
            TableValue::Inline(value) => Some(value.len()),
            TableValue::Long(value) => Some(value.bytes as usize),
            TableValue::Deleted => None,
        }
    }
}

impl ValueRef {
    /// The reference to a value that is stored at a place.
    pub fn new(place: Place, value: &[u8]) -> ValueRef {
        let Ok(bytes) = u32::try_from(value.len()) else {
            panic!("a row's value of {} bytes", value.len());
        };
        let (mut padded_head, head) = ([0; VALUE_HEAD_BYTES], head_of(value));
        padded_head[..head.len()].copy_from_slice(head);
        ValueRef { place, bytes, checksum: section::checksum(place, value), padded_head }
    }

    /// The first bytes of the value.
    pub fn head(&self) -> &[u8] {
        &self.padded_head[..VALUE_HEAD_BYTES.min(self.bytes as usize)]
    }

    /// Whether this is the value that the reference refers to.
    pub fn is_of(&self, value: &[u8]) -> bool {
        section::checksum(self.place, value) == self.checksum && head_of(value) == self.head()
    }

    fn encode(self) -> [u8; VALUE_REF_BYTES] {
        let mut bytes = [0; VALUE_REF_BYTES];
        bytes[..8].copy_from_slice(&self.place.file.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.place.position.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[24..].copy_from_slice(&self.padded_head);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<ValueRef> {
        let mut fields = Fields(bytes);
        let place = Place { file: fields.u64()?, position: fields.u64()? };
        let (bytes, checksum) = (fields.u32()?, fields.u32()?);
        let padded_head = fields.bytes(VALUE_HEAD_BYTES)?.try_into().ok()?;
        let value = ValueRef { place, bytes, checksum, padded_head };
        fields.0.is_empty().then_some(value)
    }
}

/// Collects the rows of one block after the other.
#[derive(Default)]
pub(super) struct BlockBuilder {
    rows: Vec<u8>,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    /// Adds a row, whose key is greater than those before it in the block.
    pub fn add(&mut self, key: &[u8], value: TableValue<'_>) {
        assert!(
            self.rows.is_empty() || *self.last_key < *key,
            "the row {key:?} after {:?}",
            self.last_key
        );
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        let reference;
        let (kind, value) = match value {
            TableValue::Inline(value) => (INLINE, value),
            TableValue::Long(value) => {
                reference = value.encode();
                (LONG, &reference[..])
            }
            TableValue::Deleted => (DELETED, &[][..]),
        };
        let Ok(value_bytes) = u32::try_from(value.len()) else {
            panic!("a row's value of {} bytes", value.len());
        };
        self.rows.reserve(ROW_HEADER_BYTES + key.len() + value.len());
        put_key(key, &mut self.rows);
        self.rows.push(kind);
        self.rows.extend_from_slice(&value_bytes.to_le_bytes());
        self.rows.extend_from_slice(value);
    }

    /// Bytes of the rows so far.
    pub fn bytes(&self) -> usize {
        self.rows.len()
    }

    /// The key of the row that was added last.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Appends the block, which will be written at `place`, and begins the next one.
    pub fn finish(&mut self, place: Place, out: &mut Vec<u8>) {
        assert!(!self.rows.is_empty(), "a block without rows at {place:?}");
        let start = out.len();
        out.append(&mut self.rows);
        section::seal(place, out, start);
    }
}

/// Rows in ascending order of keys, at least one, counted from 0.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    rows: Box<[RowPosition]>,
}

#[derive(Clone, Copy, Debug)]
struct RowPosition {
    /// Where the row begins in the block's bytes.
    start: u32,
    /// The first row behind this one whose key differs in more than its last eight bytes, or the
    /// number of rows: where the next key begins, if this is the row of a version.
    family_end: u32,
}

/// Bytes of a key in which the rows of a family differ.
const OWN_BYTES: usize = 8;

/// What the keys of a family have in common, besides their length.
fn family(key: &[u8]) -> &[u8] {
    &key[..key.len().saturating_sub(OWN_BYTES)]
}

impl Block {
    /// Checks and decodes what was read at `place`. The bytes are not copied.
    ///
    /// # Errors
    ///
    /// [`SectionError`].
    pub fn decode(place: Place, bytes: Vec<u8>) -> Result<Block, SectionError> {
        let rows = section::open(place, &bytes)?;
        if u32::try_from(rows.len()).is_err() {
            return Err(SectionError::Encoding("the block is longer than any that is written"));
        }
        let mut positions: Vec<RowPosition> = Vec::new();
        let mut fields = Fields(rows);
        let mut last_key = None::<&[u8]>;
        // Where the family of the last row begins.
        let mut family_start = 0;
        while !fields.0.is_empty() {
            let start = (rows.len() - fields.0.len()) as u32;
            let (key, _) = decode_row(&mut fields)
                .ok_or(SectionError::Encoding("a row of the block is not in the encoding"))?;
            if last_key.is_some_and(|last| last >= key) {
                return Err(SectionError::Encoding("the rows of the block are not in order"));
            }
            let family_end = positions.len() as u32;
            if last_key.is_some_and(|last| last.len() != key.len() || family(last) != family(key)) {
                positions[family_start..].iter_mut().for_each(|row| row.family_end = family_end);
                family_start = positions.len();
            }
            positions.push(RowPosition { start, family_end });
            last_key = Some(key);
        }
        if positions.is_empty() {
            return Err(SectionError::Encoding("the block has no rows"));
        }
        let rows = positions.len() as u32;
        positions[family_start..].iter_mut().for_each(|row| row.family_end = rows);
        Ok(Block { rows: positions.into(), bytes: bytes.into() })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The bytes of memory that the block takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Block>() + self.bytes.len() + self.rows.len() * size_of::<RowPosition>()
    }

    /// The first row whose key is not less than `key`, or the number of rows if there is none. The
    /// row before it is the last one whose key is less.
    pub fn seek(&self, key: &[u8]) -> usize {
        self.search(0..self.rows(), key)
    }

    /// The first of some rows whose key is not less than `key`, or the end of them. It costs a look
    /// at one row of each family on the way.
    pub fn seek_within(&self, rows: Range<usize>, key: &[u8]) -> usize {
        let Range { start: mut low, end } = rows;
        while low < end {
            let at = self.key(low);
            if at >= key {
                break;
            }
            let family_end = (self.rows[low].family_end as usize).min(end);
            // A greater key that begins otherwise is behind all of the family.
            low = match key.starts_with(family(at)) {
                true => self.search(low + 1..family_end, key),
                false => family_end,
            };
            if low < family_end {
                break;
            }
        }
        low
    }

    /// The first of some rows whose key is not less than `key`, or the end of them.
    fn search(&self, rows: Range<usize>, key: &[u8]) -> usize {
        let Range { start: mut low, end: mut high } = rows;
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return middle,
                Ordering::Greater => high = middle,
            }
        }
        low
    }

    pub fn key(&self, row: usize) -> &[u8] {
        match self.fields(row).key() {
            Some(key) => key,
            None => panic!("row {row} of {} was decoded before", self.rows()),
        }
    }

    pub fn value(&self, row: usize) -> TableValue<'_> {
        match decode_row(&mut self.fields(row)) {
            Some((_, value)) => value,
            None => panic!("row {row} of {} was decoded before", self.rows()),
        }
    }

    fn fields(&self, row: usize) -> Fields<'_> {
        Fields(&self.bytes[self.rows[row].start as usize..])
    }
}

fn decode_row<'a>(fields: &mut Fields<'a>) -> Option<(&'a [u8], TableValue<'a>)> {
    let (key, kind, value_bytes) = (fields.key()?, fields.u8()?, fields.u32()?);
    let value = fields.bytes(usize::try_from(value_bytes).ok()?)?;
    let value = match kind {
        INLINE => TableValue::Inline(value),
        LONG => TableValue::Long(ValueRef::decode(value)?),
        DELETED if value.is_empty() => TableValue::Deleted,
        _ => return None,
    };
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { file: 3, position: 77 };

    #[derive(Clone, Debug)]
    enum Owned {
        Inline(Vec<u8>),
        Long(ValueRef),
        Deleted,
    }

    impl Owned {
        fn borrowed(&self) -> TableValue<'_> {
            match self {
                Owned::Inline(value) => TableValue::Inline(value),
                Owned::Long(value) => TableValue::Long(*value),
                Owned::Deleted => TableValue::Deleted,
            }
        }
    }

    fn value() -> impl Strategy<Value = Owned> {
        let place = (any::<u64>(), any::<u64>());
        let fields = (place, any::<u32>(), any::<u32>(), any::<[u8; VALUE_HEAD_BYTES]>());
        let long = fields.prop_map(|(place, bytes, checksum, padded_head)| {
            let place = Place { file: place.0, position: place.1 };
            Owned::Long(ValueRef { place, bytes, checksum, padded_head })
        });
        prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..30).prop_map(Owned::Inline),
            1 => long,
            1 => Just(Owned::Deleted),
        ]
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(255), 97..100u8], 0..4)
    }

    fn rows() -> impl Strategy<Value = BTreeMap<Vec<u8>, Owned>> {
        prop::collection::btree_map(key(), value(), 1..20)
    }

    fn encode(rows: &BTreeMap<Vec<u8>, Owned>) -> Vec<u8> {
        let (mut builder, mut out) = (BlockBuilder::default(), Vec::new());
        rows.iter().for_each(|(key, value)| builder.add(key, value.borrowed()));
        builder.finish(PLACE, &mut out);
        assert_eq!(builder.bytes(), 0, "the next block begins");
        out
    }

    proptest! {
        #[test]
        fn a_block_has_the_rows_that_were_added_and_finds_them(
            rows in rows(),
            wanted in prop::collection::vec(key(), 1..10),
        ) {
            let block = Block::decode(PLACE, encode(&rows)).unwrap();
            prop_assert_eq!(block.rows(), rows.len());
            for (at, (key, value)) in rows.iter().enumerate() {
                prop_assert_eq!((block.key(at), block.value(at)), (&key[..], value.borrowed()));
                prop_assert_eq!(block.seek(key), at);
            }
            for key in wanted {
                let before = rows.range(..key.clone()).count();
                prop_assert_eq!(block.seek(&key), before);
                for start in 0..=rows.len() {
                    for end in start..=rows.len() {
                        let found = block.seek_within(start..end, &key);
                        prop_assert_eq!(found, before.clamp(start, end));
                    }
                }
            }
        }

        /// The checksum is made right, so that it is the rows that are judged.
        #[test]
        fn any_bytes_are_a_block_or_a_typed_error(
            mut bytes in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..80),
        ) {
            section::seal(PLACE, &mut bytes, 0);
            if let Ok(block) = Block::decode(PLACE, bytes) {
                for row in 0..block.rows() {
                    let _ = block.value(row);
                    prop_assert_eq!(block.seek(block.key(row)), row);
                }
            }
        }

        #[test]
        fn rows_with_a_changed_byte_are_a_block_or_a_typed_error(
            rows in rows(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = encode(&rows);
            bytes.truncate(bytes.len() - 4);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            section::seal(PLACE, &mut bytes, 0);
            if let Ok(block) = Block::decode(PLACE, bytes) {
                (0..block.rows()).for_each(|row| _ = block.value(row));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let rows = [(&b"a"[..], &b"1"[..]), (b"b", b"22"), (b"c", b"")];
        let rows = rows.map(|(key, value)| (key.to_vec(), Owned::Inline(value.to_vec())));
        let sound = encode(&rows.into());
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = Block::decode(PLACE, bytes).unwrap_err();
            assert_eq!(error, SectionError::Checksum, "bit {bit}");
        }
        for length in 0..sound.len() {
            assert!(Block::decode(PLACE, sound[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn rows_out_of_order_twice_or_none_are_refused() {
        let encode = |keys: &[&[u8]]| {
            let mut bytes = Vec::new();
            for key in keys {
                let mut builder = BlockBuilder::default();
                builder.add(key, TableValue::Deleted);
                bytes.append(&mut builder.rows);
            }
            section::seal(PLACE, &mut bytes, 0);
            Block::decode(PLACE, bytes)
        };
        assert_eq!(encode(&[b"a", b"b"]).unwrap().rows(), 2);
        for keys in [&[&b"b"[..], b"a"][..], &[b"a", b"a"], &[]] {
            assert!(matches!(encode(keys), Err(SectionError::Encoding(_))), "{keys:?}");
        }
    }
}
