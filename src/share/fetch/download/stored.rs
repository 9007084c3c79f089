//! The chunks of the file that are on the disk, and whom they are from.
//!
//! Rule: a chunk is here when it has been verified in the partial file, and no longer once it was
//! found changed. The set is shared with whoever offers the part to others.

use std::sync::Arc;

use crate::share::chunks::{ChunkSet, SharedChunks};
use crate::share::content::{chunk_count, chunk_len};

#[derive(Debug)]
pub struct StoredChunks {
    /// The length of the whole file in bytes.
    size: u64,
    chunks: Arc<SharedChunks>,
    kept_bytes: u64,
    fetched_bytes: u64,
}

impl StoredChunks {
    pub(super) fn new(size: u64) -> StoredChunks {
        let chunks = Arc::new(SharedChunks::new(ChunkSet::empty(chunk_count(size))));
        StoredChunks { size, chunks, kept_bytes: 0, fetched_bytes: 0 }
    }

    pub fn chunks(&self) -> &Arc<SharedChunks> {
        &self.chunks
    }

    /// The bytes of all chunks that are stored.
    pub fn bytes(&self) -> u64 {
        // All chunks have the same length but for the last.
        let last = chunk_count(self.size).saturating_sub(1);
        let full = chunk_len(0, self.size) as u64;
        let missing =
            if self.chunks.contains(last) { full - chunk_len(last, self.size) as u64 } else { 0 };
        (self.chunks.count() * full).saturating_sub(missing)
    }

    /// The bytes of chunks that an earlier download has left, each counted when it was found good.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// The bytes of chunks that have come from sources. One that was fetched twice counts twice.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }

    pub(super) fn is_whole(&self) -> bool {
        self.chunks.count() == chunk_count(self.size)
    }

    /// A chunk that an earlier download has left is good.
    pub(super) fn kept(&mut self, index: u64) {
        self.chunks.insert(index);
        self.kept_bytes += chunk_len(index, self.size) as u64;
    }

    /// A chunk that a source has sent was verified and written.
    pub(super) fn fetched(&mut self, index: u64) {
        self.chunks.insert(index);
        self.fetched_bytes += chunk_len(index, self.size) as u64;
    }

    /// Another program has changed a chunk since it was stored.
    pub(super) fn changed(&mut self, index: u64) {
        self.chunks.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BYTES;

    #[test]
    fn bytes_are_those_of_the_chunks_that_are_there() {
        let chunk = CHUNK_BYTES as u64;
        let mut stored = StoredChunks::new(2 * chunk + 5);
        stored.kept(2);
        assert_eq!((stored.bytes(), stored.kept_bytes()), (5, 5));
        stored.fetched(0);
        stored.changed(2);
        assert_eq!((stored.bytes(), stored.fetched_bytes()), (chunk, chunk));
        stored.fetched(2);
        stored.fetched(1);
        assert!(stored.is_whole());
        assert_eq!((stored.bytes(), stored.fetched_bytes()), (2 * chunk + 5, 2 * chunk + 5));
        assert_eq!(StoredChunks::new(0).bytes(), 0);
    }
}
