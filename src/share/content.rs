//! Names a content and verifies its pieces with BLAKE3's own tree, cut at chunk boundaries.
//!
//! A content is hashed in chunks of [`CHUNK_BYTES`]. Each chunk is a whole subtree of BLAKE3's
//! binary tree (section 2.1 of the paper: a left subtree holds the largest power of two of leaves
//! that leaves at least one for the right). So the tree above the chunks gives exactly the `b3sum`
//! of the whole file:
//!
//! ```text
//!                  content id (root)
//!                 /                 \
//!              parent              chunk 2
//!             /      \            (may be short)
//!        chunk 0    chunk 1
//! ```
//!
//! - A content of one chunk has no tree above it: the hash of its chunk is the content id.
//! - A content of no bytes has no chunks: its id is the hash of nothing.
//! - The size is not hashed. The length of each chunk is, within the chunk's own hash. So a list of
//!   chunk hashes may give the right id under a wrong size, but no bytes of that size match it.
//!
//! Rule: this module is pure. Reading files, and choosing the thread for it, is left to callers.

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};

use crate::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use crate::model::{ChunkHash, ContentId};

/// A chunk is hashed in multiples of so many bytes while it is received: a subtree that takes some
/// ten microseconds and is wide enough for every vector unit.
const HASH_STEP_BYTES: usize = 64 * 1024;

pub const fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES as u64)
}

/// The length in bytes of chunk `index` of a content of `size` bytes; 0 if there is no such chunk.
pub const fn chunk_len(index: u64, size: u64) -> usize {
    let rest = size.saturating_sub(chunk_offset(index));
    if rest < CHUNK_BYTES as u64 { rest as usize } else { CHUNK_BYTES }
}

/// The byte offset at which chunk `index` begins.
pub const fn chunk_offset(index: u64) -> u64 {
    index.saturating_mul(CHUNK_BYTES as u64)
}

/// The hash of chunk `index` of a content of `size` bytes, or `None` if `bytes` has not exactly the
/// length of that chunk.
pub fn hash_chunk(index: u64, size: u64, bytes: &[u8]) -> Option<ChunkHash> {
    ChunkHasher::new(index, size).finish(bytes)
}

/// Hashes a chunk while it is being received, so that each part of it is still in the processor's
/// cache. The bytes stay with the caller, who shows all that has come so far each time.
#[derive(Clone, Debug)]
pub struct ChunkHasher {
    hasher: blake3::Hasher,
    /// The chunk's length in bytes.
    length: usize,
    /// How many of its bytes are hashed.
    hashed: usize,
    /// Whether it is the only chunk of its content, whose hash is the content id.
    is_only: bool,
}

impl ChunkHasher {
    pub fn new(index: u64, size: u64) -> ChunkHasher {
        let mut hasher = blake3::Hasher::new();
        let length = chunk_len(index, size);
        // The offset of no chunk may be more than BLAKE3's tree allows.
        if length > 0 {
            hasher.set_input_offset(chunk_offset(index));
        }
        ChunkHasher { hasher, length, hashed: 0, is_only: chunk_count(size) == 1 }
    }

    /// Hashes what has come since the last call. `bytes` is the chunk from its start as far as it
    /// has come. Its last few kilobytes may be left for later, since whole subtrees of BLAKE3 are
    /// hashed several times faster.
    pub fn advance(&mut self, bytes: &[u8]) {
        let end = bytes.len().min(self.length);
        self.hash_to(bytes, end - end % HASH_STEP_BYTES);
    }

    /// The hash of the chunk, or `None` if `bytes` has not exactly its length.
    pub fn finish(mut self, bytes: &[u8]) -> Option<ChunkHash> {
        // BLAKE3 panics on an empty subtree and on one longer than its position in the tree allows.
        if bytes.is_empty() || bytes.len() != self.length {
            return None;
        }
        self.hash_to(bytes, bytes.len());
        Some(ChunkHash(match self.is_only {
            true => *self.hasher.finalize().as_bytes(),
            false => self.hasher.finalize_non_root(),
        }))
    }

    fn hash_to(&mut self, bytes: &[u8], end: usize) {
        if end > self.hashed {
            self.hasher.update(&bytes[self.hashed..end]);
            self.hashed = end;
        }
    }
}

/// A content's size, the hash of each of its chunks, and the content id that these give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    size: u64,
    chunks: Vec<ChunkHash>,
    content: ContentId,
}

/// Why a list of chunk hashes is not the expected manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The content is larger than a shared file may be.
    #[error("a shared file has at most {FILE_BYTES_MAX} bytes, not {0}")]
    TooLarge(u64),
    /// There is not exactly one hash for each chunk.
    #[error("{size} bytes have {expected} chunks, not {found}")]
    Count {
        /// The content's size in bytes.
        size: u64,
        /// The number of chunks of a content of that size.
        expected: u64,
        /// The number of hashes in the list.
        found: usize,
    },
    /// The hashes give another content id.
    #[error("the chunk hashes are those of content {found}, not of {expected}")]
    Content {
        /// The content id that was asked for.
        expected: ContentId,
        /// The content id that the hashes give.
        found: ContentId,
    },
}

impl Manifest {
    /// The manifest of a content whose chunks have been hashed, in order.
    ///
    /// # Errors
    /// The content is larger than may be shared, or there is not exactly one hash for each chunk.
    pub fn new(size: u64, chunks: Vec<ChunkHash>) -> Result<Manifest, ManifestError> {
        if size > FILE_BYTES_MAX {
            return Err(ManifestError::TooLarge(size));
        }
        let expected = chunk_count(size);
        if chunks.len() as u64 != expected {
            return Err(ManifestError::Count { size, expected, found: chunks.len() });
        }
        let content = root_of(&chunks);
        Ok(Manifest { size, chunks, content })
    }

    /// The manifest that somebody else sent for a content whose id is known.
    ///
    /// # Errors
    /// Those of [`Manifest::new`], or the hashes give another content id.
    pub fn verified(
        content: ContentId,
        size: u64,
        chunks: Vec<ChunkHash>,
    ) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::new(size, chunks)?;
        if manifest.content != content {
            return Err(ManifestError::Content { expected: content, found: manifest.content });
        }
        Ok(manifest)
    }

    /// The manifest of bytes in memory.
    ///
    /// # Errors
    /// There are more bytes than a shared file may have.
    #[cfg(any(test, feature = "internals"))]
    pub fn of_bytes(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let size = bytes.len() as u64;
        let chunks = (0..).zip(bytes.chunks(CHUNK_BYTES));
        Manifest::new(size, chunks.filter_map(|(i, chunk)| hash_chunk(i, size, chunk)).collect())
    }

    /// The content's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn chunks(&self) -> &[ChunkHash] {
        &self.chunks
    }

    pub fn content(&self) -> ContentId {
        self.content
    }

    pub fn matches(&self, index: u64, bytes: &[u8]) -> bool {
        self.has(index, hash_chunk(index, self.size, bytes))
    }

    /// Whether this is the hash of chunk `index`.
    pub fn has(&self, index: u64, hash: Option<ChunkHash>) -> bool {
        let expected = usize::try_from(index).ok().and_then(|index| self.chunks.get(index));
        expected.is_some() && hash.as_ref() == expected
    }
}

/// The root of the tree over the hashes of a content's chunks. The same algorithm serves for the
/// hashes of larger subtrees, if all of them cover the same power of two of chunks; only the last
/// may cover fewer.
pub fn root_of(chunks: &[ChunkHash]) -> ContentId {
    match chunks {
        [] => ContentId(*blake3::hash(&[]).as_bytes()),
        [only] => ContentId(only.0),
        _ => {
            let (left, right) = chunks.split_at(left_count(chunks.len()));
            let root = hazmat::merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
            ContentId(*root.as_bytes())
        }
    }
}

/// The hash of the subtree over some of the chunks. Without chunks there is no such subtree, and
/// the result is a hash that matches no subtree.
pub fn subtree_hash(chunks: &[ChunkHash]) -> ChunkHash {
    match chunks {
        [] => ChunkHash(root_of(chunks).0),
        _ => ChunkHash(subtree(chunks)),
    }
}

/// The chaining value of the subtree over at least one chunk.
fn subtree(chunks: &[ChunkHash]) -> ChainingValue {
    match chunks {
        [only] => only.0,
        _ => {
            // Each step halves the list, so the recursion is at most 20 deep for the largest file.
            let (left, right) = chunks.split_at(left_count(chunks.len()));
            hazmat::merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// How many of `count` chunks, at least two, are in the left subtree.
fn left_count(count: usize) -> usize {
    count.div_ceil(2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(b"content").finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_manifest_gives_the_plain_hash_of_the_whole_for_sizes_around_every_boundary() {
        let chunk = CHUNK_BYTES;
        let all = bytes(9 * chunk + 7);
        let mut sizes = vec![0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 4097];
        for count in 1..=9 {
            sizes.extend([-1025, -1024, -1, 0, 1, 1024, 1025].map(|d| count * chunk as i64 + d));
        }
        for size in sizes.into_iter().map(|size| (size as usize).min(all.len())) {
            let whole = &all[..size];
            let manifest = Manifest::of_bytes(whole).unwrap();
            assert_eq!(manifest.content().0, *blake3::hash(whole).as_bytes(), "{size} bytes");
            assert_eq!(manifest.size(), size as u64);
            assert_eq!(manifest.chunks().len() as u64, chunk_count(size as u64));
            for (index, piece) in (0..).zip(whole.chunks(chunk)) {
                assert!(manifest.matches(index, piece), "chunk {index} of {size} bytes");
            }
        }
    }

    #[test]
    fn the_tree_over_many_chunks_is_blake3s_own() {
        // Lists of many lengths without the bytes: leaves of 1 KiB make a tree of the same shape.
        for count in (2..=70).chain([127, 128, 129, 255, 256, 257, 1000]) {
            let all = bytes(count * 1024 - 5);
            let hashes: Vec<ChunkHash> = (0..)
                .zip(all.chunks(1024))
                .map(|(i, piece)| {
                    let mut hasher = blake3::Hasher::new();
                    hasher.set_input_offset(i * 1024).update(piece);
                    ChunkHash(hasher.finalize_non_root())
                })
                .collect();
            assert_eq!(root_of(&hashes).0, *blake3::hash(&all).as_bytes(), "{count} leaves");
        }
    }

    #[test]
    fn a_chunk_that_is_hashed_as_it_comes_has_the_hash_of_the_whole() {
        let all = bytes(2 * CHUNK_BYTES + 70_001);
        for size in [all.len(), CHUNK_BYTES, 70_001, 5] {
            let whole = &all[..size];
            for (index, chunk) in (0..).zip(whole.chunks(CHUNK_BYTES)) {
                for step in [1000, 65_536, 99_991, CHUNK_BYTES] {
                    let mut hasher = ChunkHasher::new(index, size as u64);
                    for end in (0..chunk.len()).step_by(step) {
                        hasher.advance(&chunk[..end]);
                    }
                    let expected = hash_chunk(index, size as u64, chunk);
                    assert!(expected.is_some());
                    assert_eq!(hasher.finish(chunk), expected, "{index} of {size}, by {step}");
                }
            }
        }
        // More than the chunk is its affair no more, and its hash is only that of the whole.
        let mut hasher = ChunkHasher::new(2, all.len() as u64);
        hasher.advance(&all);
        assert_eq!(hasher.finish(&all), None);
    }

    #[test]
    fn chunks_of_other_places_lengths_or_bytes_do_not_match() {
        let all = bytes(3 * CHUNK_BYTES + 10);
        let manifest = Manifest::of_bytes(&all).unwrap();
        let piece = |i: usize| &all[i * CHUNK_BYTES..all.len().min((i + 1) * CHUNK_BYTES)];
        assert!(!manifest.matches(1, piece(0)));
        assert!(!manifest.matches(0, &piece(0)[1..]));
        assert!(!manifest.matches(0, &all[..CHUNK_BYTES + 1]));
        assert!(!manifest.matches(3, &[]));
        assert!(!manifest.matches(4, &[]));
        assert!(!manifest.matches(u64::MAX, piece(3)));
        let mut flipped = piece(2).to_vec();
        flipped[77] ^= 0x10;
        assert!(!manifest.matches(2, &flipped));
    }

    #[test]
    fn a_hash_list_is_accepted_only_for_its_own_content() {
        let all = bytes(2 * CHUNK_BYTES + 1);
        let manifest = Manifest::of_bytes(&all).unwrap();
        let (content, size) = (manifest.content(), manifest.size());
        let list = manifest.chunks().to_vec();
        assert_eq!(Manifest::verified(content, size, list.clone()), Ok(manifest));

        let mut swapped = list.clone();
        swapped.swap(0, 1);
        let error = Manifest::verified(content, size, swapped).unwrap_err();
        assert!(matches!(error, ManifestError::Content { .. }));
        assert_eq!(
            Manifest::verified(content, size, list[..2].to_vec()),
            Err(ManifestError::Count { size, expected: 3, found: 2 })
        );
        let huge = FILE_BYTES_MAX + 1;
        assert_eq!(Manifest::verified(content, huge, list), Err(ManifestError::TooLarge(huge)));
    }

    #[test]
    fn extreme_chunk_indexes_do_not_overflow() {
        assert_eq!(chunk_len(u64::MAX, u64::MAX), 0);
        assert_eq!(chunk_len(0, u64::MAX), CHUNK_BYTES);
        assert_eq!(chunk_count(u64::MAX), 1 << 44);
        assert_eq!(hash_chunk(u64::MAX, u64::MAX, &[1]), None);
    }
}
