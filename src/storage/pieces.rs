//! Cuts long values into pieces that fill the engine's pages.
//!
//! redb gives a row that does not fit into a page a page of its own, whose size is a power of two:
//! a value of 66,000 bytes takes 131,072. A row that fills more than half of a page takes a whole
//! one. So a long value is cut into pieces that fill large pages, then pages, and the rest into
//! small pieces, of which several fit into one page.

/// Bytes of the engine's pages.
const PAGE_BYTES: usize = 4096;
const LARGE_PAGE_BYTES: usize = 64 * 1024;
/// Upper bound of the bytes that the engine adds to a row in a page of its own.
const PAGE_OVERHEAD_BYTES: usize = 48;
/// Bytes of a full piece, by its size class.
const PIECE_BYTES: [usize; SIZES] =
    [LARGE_PAGE_BYTES - PAGE_OVERHEAD_BYTES, PAGE_BYTES - PAGE_OVERHEAD_BYTES, SMALL_BYTES];
/// Four small pieces fit into a page, with the bytes that the engine adds.
const SMALL_BYTES: usize = 1000;
/// A row up to this length, with its key, is not cut: four of them fit into a page. Of longer rows
/// three fit, which would take a third more than their bytes.
const ROW_BYTES_MAX: usize = 990;

/// The number of size classes of pieces.
pub(super) const SIZES: usize = 3;

const SHORT: u8 = 0;
const LONG: u8 = 1;
const NUMBER_BITS: u32 = 16;

/// A row's value as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredValue<'a> {
    Short(&'a [u8]),
    /// A reference to the value's pieces.
    Long {
        /// The number under which its pieces are stored.
        id: u64,
        /// The length of the value.
        len: usize,
    },
}

/// The position of one piece in its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValuePiece {
    /// The index of its size class.
    pub size: usize,
    /// The place among the value's pieces, from 0.
    pub number: u64,
    /// The position in the value at which it begins.
    pub start: usize,
    /// The position in the value at which it ends.
    pub end: usize,
}

/// Whether a value is stored in pieces.
pub(super) fn is_long(key_bytes: usize, value_bytes: usize) -> bool {
    // With a long key, the row stays long anyway, so a short value is not worth a piece.
    key_bytes + value_bytes > ROW_BYTES_MAX && value_bytes > ROW_BYTES_MAX / 2
}

/// The pieces of a value of `len` bytes, in order.
pub(super) fn layout(len: usize) -> impl Iterator<Item = ValuePiece> {
    let (mut start, mut number) = (0, 0);
    std::iter::from_fn(move || {
        let left = len - start;
        let whole = PIECE_BYTES[..SIZES - 1].iter().position(|bytes| left >= *bytes);
        let (size, bytes) = match whole {
            Some(size) => (size, PIECE_BYTES[size]),
            // Small pieces of equal length waste less of a page than full ones and a short rest.
            None => (SIZES - 1, left.div_ceil(left.div_ceil(SMALL_BYTES).max(1))),
        };
        let piece = ValuePiece { size, number, start, end: start + bytes };
        (start, number) = (piece.end, number + 1);
        (left > 0).then_some(piece)
    })
}

/// The key of a piece in its table.
pub(super) fn key(id: u64, number: u64) -> u64 {
    id << NUMBER_BITS | number
}

/// The number of the value that a piece belongs to.
pub(super) fn id_of(key: u64) -> u64 {
    key >> NUMBER_BITS
}

/// Writes the contents of the row of a value that is not cut to `stored`.
pub(super) fn encode_short(value: &[u8], stored: &mut Vec<u8>) {
    stored.clear();
    stored.push(SHORT);
    stored.extend_from_slice(value);
}

/// The contents of the row of a value in pieces.
pub(super) fn encode_long(id: u64, len: usize) -> Vec<u8> {
    let mut stored = vec![LONG];
    stored.extend_from_slice(&id.to_be_bytes());
    stored.extend_from_slice(&(len as u64).to_be_bytes());
    stored
}

impl<'a> StoredValue<'a> {
    /// `None` if the contents are not of this encoding.
    pub fn decode(stored: &'a [u8]) -> Option<StoredValue<'a>> {
        match stored.split_first()? {
            (&SHORT, value) => Some(StoredValue::Short(value)),
            (&LONG, rest) => {
                let (id, len) = rest.split_first_chunk::<8>()?;
                let len = u64::from_be_bytes(len.try_into().ok()?);
                let len = usize::try_from(len).ok().filter(|len| *len <= u32::MAX as usize)?;
                Some(StoredValue::Long { id: u64::from_be_bytes(*id), len })
            }
            _ => None,
        }
    }

    /// The number under which its pieces are stored, if it has any, and its length.
    pub fn kept(self) -> (Option<u64>, usize) {
        match self {
            StoredValue::Short(value) => (None, value.len()),
            StoredValue::Long { id, len } => (Some(id), len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_in_order_without_gaps_and_few() {
        for len in (1..200_000).step_by(37).chain([8 * 1024 * 1024]) {
            let pieces: Vec<ValuePiece> = layout(len).collect();
            assert_eq!(pieces[0].start, 0);
            assert_eq!(pieces[pieces.len() - 1].end, len);
            for (number, piece) in pieces.iter().enumerate() {
                assert_eq!(piece.number, number as u64);
                assert!(piece.start < piece.end);
            }
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(pieces.windows(2).all(|pair| pair[0].size <= pair[1].size));
            assert!(pieces.len() <= len / PIECE_BYTES[0] + 16 + 5, "{len}: {}", pieces.len());
        }
        assert_eq!(layout(0).count(), 0);
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let mut stored = Vec::new();
        for value in [&b"value"[..], b""] {
            encode_short(value, &mut stored);
            assert_eq!(StoredValue::decode(&stored), Some(StoredValue::Short(value)));
        }
        assert_eq!(
            StoredValue::decode(&encode_long(7, 9999)),
            Some(StoredValue::Long { id: 7, len: 9999 })
        );
        for damaged in [&b""[..], b"\x02", b"\x01short", &[LONG; 17], &[LONG; 18]] {
            assert_eq!(StoredValue::decode(damaged), None);
        }
        assert_eq!(id_of(key(7, 3)), 7);
    }
}
