//! The bytes of a chunk.
//!
//! ```text
//! chunk := rows; crc u32, little-endian, over the sequence (u64, little-endian) and the rows
//! row   := shared | suffix bytes | value bytes | suffix | value
//! ```
//!
//! A row's key is the first `shared` bytes of the key before it in the same chunk, then the suffix.
//! Numbers are those of `storage::varint`.
//!
//! Keys that share what is before them take more memory than room in the chunk. So a receiver
//! bounds the length of a key and what all rows take, and a sender stays far below that.

use bytes::Bytes;

use crate::limits;
use crate::storage::keys::ROW_KEY_BYTES_MAX;
use crate::storage::varint::{VARINT_BYTES_MAX, get_varint, put_varint};

const CRC_BYTES: usize = 4;
/// Bytes of memory that a row takes besides its key and value, about.
const ROW_OVERHEAD_BYTES: usize = 100;
/// The most memory that the rows of a chunk may take: what the longest frame takes, which is many
/// times as much as a sender puts into a chunk, and more than the longest row.
const UNPACKED_BYTES_MAX: usize = limits::SERVER_FRAME_BYTES_MAX;
const _: () = assert!(
    ROW_OVERHEAD_BYTES + ROW_KEY_BYTES_MAX + limits::VALUE_BYTES_MAX < UNPACKED_BYTES_MAX * 3 / 4
);

/// ChunkRows on their way into a chunk.
#[derive(Default)]
pub(super) struct ChunkBuilder {
    bytes: Vec<u8>,
    last_key: Vec<u8>,
    /// The memory that its rows take at the receiver.
    unpacked_bytes: usize,
}

/// The memory that a row takes at the receiver, about.
fn unpacked_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    ROW_OVERHEAD_BYTES + key_bytes + value_bytes
}

impl ChunkBuilder {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The key put last; empty when there is none.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Whether the chunk would have at most `bytes_max` bytes with another row, and few enough when
    /// it is unpacked.
    pub fn has_room(&self, key: &[u8], value: &[u8], bytes_max: usize) -> bool {
        let unpacked = self.unpacked_bytes + unpacked_bytes(key.len(), value.len());
        self.len_with(key, value) <= bytes_max && unpacked <= UNPACKED_BYTES_MAX / 2
    }

    /// The chunk's size were it finished after another row, at most.
    fn len_with(&self, key: &[u8], value: &[u8]) -> usize {
        const NUMBERS_BYTES_MAX: usize = 3 * VARINT_BYTES_MAX;
        self.bytes.len() + NUMBERS_BYTES_MAX + key.len() + value.len() + CRC_BYTES
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.unpacked_bytes += unpacked_bytes(key.len(), value.len());
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        for number in [shared, key.len() - shared, value.len()] {
            put_varint(&mut self.bytes, number as u64);
        }
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(value);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
    }

    pub fn finish(mut self, sequence: u64) -> Bytes {
        let crc = checksum(sequence, &self.bytes);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes.into()
    }
}

/// The rows of a chunk; `None` when it does not match its checksum.
pub(super) fn open(sequence: u64, data: &Bytes) -> Option<ChunkRows> {
    let (rows, crc) = data.split_last_chunk::<CRC_BYTES>()?;
    if checksum(sequence, rows) != u32::from_le_bytes(*crc) {
        return None;
    }
    let left = data.slice(..rows.len());
    Some(ChunkRows { left, last_key: Vec::new(), room_bytes: UNPACKED_BYTES_MAX })
}

/// Gives the rows of a chunk; ends after the first that cannot be read, which is `None`.
pub(super) struct ChunkRows {
    left: Bytes,
    last_key: Vec<u8>,
    /// The memory that further rows may take.
    room_bytes: usize,
}

impl ChunkRows {
    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        let shared = get_length(&mut self.left)?;
        let suffix_bytes = get_length(&mut self.left)?;
        let value_bytes = get_length(&mut self.left)?;
        let announced = suffix_bytes.checked_add(value_bytes)?;
        if shared > self.last_key.len() || announced > self.left.len() {
            return None;
        }
        // Neither overflows: each is at most as long as what was received.
        let key_bytes = shared + suffix_bytes;
        if key_bytes > ROW_KEY_BYTES_MAX {
            return None;
        }
        self.room_bytes = self.room_bytes.checked_sub(unpacked_bytes(key_bytes, value_bytes))?;
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&self.left.split_to(suffix_bytes));
        let value = self.left.split_to(value_bytes);
        Some((Bytes::copy_from_slice(&self.last_key), value))
    }
}

impl Iterator for ChunkRows {
    type Item = Option<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let row = self.take();
        if row.is_none() {
            self.left.clear();
        }
        Some(row)
    }
}

fn checksum(sequence: u64, rows: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(rows);
    hasher.finalize()
}

/// A length, as far as it can be one here.
fn get_length(bytes: &mut Bytes) -> Option<usize> {
    get_varint(bytes).and_then(|length| usize::try_from(length).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), len)
    }

    proptest! {
        #[test]
        fn rows_come_back(rows in prop::collection::vec((bytes(0..6), bytes(0..300)), 0..20)) {
            let mut chunk = ChunkBuilder::default();
            for (key, value) in &rows {
                let most = chunk.len_with(key, value);
                chunk.put(key, value);
                prop_assert!(chunk.bytes.len() + CRC_BYTES <= most);
            }
            let data = chunk.finish(7);
            let found: Option<Vec<_>> = open(7, &data).unwrap().collect();
            let found: Vec<_> =
                found.unwrap().into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(found, rows);
            prop_assert!(open(8, &data).is_none(), "the sequence counts");
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(rows in bytes(0..40)) {
            let is_valid = |(rows, crc): (&[u8], &[u8])| checksum(0, rows).to_le_bytes() == crc;
            prop_assert!(open(0, &rows.clone().into()).is_none()
                || is_valid(rows.split_at(rows.len() - CRC_BYTES)));
            let crc = checksum(0, &rows).to_le_bytes();
            let data = Bytes::from([&rows[..], &crc].concat());
            let read = open(0, &data).unwrap();
            prop_assert!(read.count() <= rows.len());
        }
    }

    /// Three hundred kilobytes unpacked to a gigabyte: thousands of keys that share a quarter of a
    /// megabyte.
    #[test]
    fn a_chunk_that_unpacks_to_more_than_it_may_is_refused() {
        let count = |key_bytes: usize, rows: u32| {
            let mut chunk = ChunkBuilder::default();
            for row in 0..rows {
                chunk.put(&[&vec![7; key_bytes - 4][..], &row.to_be_bytes()].concat(), b"v");
            }
            let data = chunk.finish(0);
            let read: Vec<_> = open(0, &data).unwrap().collect();
            (read.len() as u32, read.iter().all(Option::is_some))
        };
        assert_eq!(count(ROW_KEY_BYTES_MAX, 1000), (1000, true));
        assert_eq!(count(ROW_KEY_BYTES_MAX + 1, 1000), (1, false));
        let most = (UNPACKED_BYTES_MAX / (ROW_OVERHEAD_BYTES + ROW_KEY_BYTES_MAX + 1)) as u32;
        assert_eq!(count(ROW_KEY_BYTES_MAX, most), (most, true));
        assert_eq!(count(ROW_KEY_BYTES_MAX, most + 9), (most + 1, false));
    }

    /// Of rows whose keys share much, an honest sender puts no more into a chunk than of others.
    #[test]
    fn a_sender_counts_rows_as_they_are_unpacked() {
        let mut chunk = ChunkBuilder::default();
        let key = [7; 4000];
        while chunk.has_room(&key, b"v", 1 << 20) {
            chunk.put(&key, b"v");
        }
        assert!(chunk.bytes.len() < 20_000, "{}", chunk.bytes.len());
        let data = chunk.finish(0);
        assert!(open(0, &data).unwrap().all(|row| row.is_some()), "its receiver takes it");
    }
}
