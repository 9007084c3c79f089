//! The bytes of a chunk.
//!
//! ```text
//! chunk := rows; crc u32, little-endian, over the sequence (u64, little-endian) and the rows
//! row   := shared | suffix bytes | value bytes | suffix | value
//! ```
//!
//! A row's key is the first `shared` bytes of the key before it in the same chunk, then the suffix.
//! Numbers are written in groups of seven bits, the lowest first, all but the last with the high
//! bit set.

use bytes::{Buf, Bytes};

const CRC_BYTES: usize = 4;

/// ChunkRows on their way into a chunk.
#[derive(Default)]
pub(super) struct ChunkBuilder {
    bytes: Vec<u8>,
    last_key: Vec<u8>,
}

impl ChunkBuilder {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The key put last; empty when there is none.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// The chunk's size were it finished after another row, at most.
    pub fn len_with(&self, key: &[u8], value: &[u8]) -> usize {
        const NUMBERS_BYTES_MAX: usize = 3 * 10;
        self.bytes.len() + NUMBERS_BYTES_MAX + key.len() + value.len() + CRC_BYTES
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        for number in [shared, key.len() - shared, value.len()] {
            put_number(&mut self.bytes, number);
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
    Some(ChunkRows { left: data.slice(..rows.len()), last_key: Vec::new() })
}

/// Gives the rows of a chunk; ends after the first that cannot be read, which is `None`.
pub(super) struct ChunkRows {
    left: Bytes,
    last_key: Vec<u8>,
}

impl ChunkRows {
    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        let shared = get_number(&mut self.left)?;
        let suffix_bytes = get_number(&mut self.left)?;
        let value_bytes = get_number(&mut self.left)?;
        let announced = suffix_bytes.checked_add(value_bytes)?;
        if shared > self.last_key.len() || announced > self.left.len() {
            return None;
        }
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

fn put_number(out: &mut Vec<u8>, number: usize) {
    let mut left = number as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn get_number(bytes: &mut Bytes) -> Option<usize> {
    let mut number = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if byte < 0x80 {
            // Bits that were shifted out make it another number.
            return (number >> shift == bits).then(|| usize::try_from(number).ok()).flatten();
        }
    }
    None
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

        #[test]
        fn numbers_come_back(number in any::<usize>()) {
            let mut out = Vec::new();
            put_number(&mut out, number);
            prop_assert_eq!(get_number(&mut out.into()), Some(number));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let mut endless = Bytes::from_static(&[0xff; 20]);
        assert_eq!(get_number(&mut endless), None);
        let mut large = Bytes::from([&[0xff; 9][..], &[0x7f]].concat());
        assert_eq!(get_number(&mut large), None);
        assert_eq!(get_number(&mut Bytes::from_static(&[0x80])), None);
    }
}
