//! Memory for the keys of new rows, side by side in pieces: one allocation for hundreds of short
//! keys, where each had two of its own.
//!
//! A piece stays as long as a row in it does. Rows that are written one after the other are let go
//! of together, with their memory table, so that a piece outlives its time by little.

use bytes::{Bytes, BytesMut};

/// Bytes of a piece. A longer key is a piece of its own.
const PIECE_BYTES: usize = 4096;

/// Makes the keys of rows.
#[derive(Debug, Default)]
pub(super) struct RowBuffer {
    /// What is left of the piece at hand.
    piece: BytesMut,
    key: Vec<u8>,
}

impl RowBuffer {
    /// The key that `put` appends to an empty buffer.
    pub fn row(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        self.key.clear();
        put(&mut self.key);
        if self.piece.capacity() < self.key.len() {
            self.piece = BytesMut::with_capacity(PIECE_BYTES.max(self.key.len()));
        }
        self.piece.extend_from_slice(&self.key);
        self.piece.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_as_they_were_made_whatever_their_lengths() {
        let mut buffer = RowBuffer::default();
        let lengths = [0, 1, 20, PIECE_BYTES - 30, 9, 8, PIECE_BYTES, 1, PIECE_BYTES + 1, 2];
        let rows = lengths.map(|length| buffer.row(|out| out.extend(vec![length as u8; length])));
        for (row, length) in rows.iter().zip(lengths) {
            assert_eq!(row[..], vec![length as u8; length]);
        }
    }
}
