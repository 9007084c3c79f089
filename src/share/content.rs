//! What names a content and proves its pieces: BLAKE3's own tree, cut at chunks.
//!
//! A content is hashed in chunks of [`CHUNK_BYTES`]. Each chunk is a whole subtree of BLAKE3's binary
//! tree (the paper's section 2.1: a left subtree always holds the largest power of two that leaves
//! something for the right), so the tree above the chunks gives exactly `b3sum` of the whole file:
//!
//! ```text
//!                  content id (root)
//!                 /                 \
//!              parent              chunk 2
//!             /      \            (may be short)
//!        chunk 0    chunk 1
//! ```
//!
//! - A content of one chunk has no tree above it: its only chunk hash *is* the content id.
//! - A content of no bytes has no chunks: its id is the hash of nothing.
//! - The size is not hashed, but the length of every chunk is, within its own hash: a list of chunk
//!   hashes that gives the right id under a wrong size is a list that no bytes of that size match.
//!
//! Everything here is pure. Who reads files, and on which thread, is the business of others.

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};

use crate::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use crate::model::{ChunkHash, ContentId};

/// How many chunks a content of `size` bytes has.
pub const fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES as u64)
}

/// The length in bytes of chunk `index` of a content of `size` bytes; 0 past its end.
pub const fn chunk_len(index: u64, size: u64) -> usize {
    let rest = size.saturating_sub(chunk_offset(index));
    if rest < CHUNK_BYTES as u64 { rest as usize } else { CHUNK_BYTES }
}

/// Where in its content chunk `index` begins.
pub const fn chunk_offset(index: u64) -> u64 {
    index.saturating_mul(CHUNK_BYTES as u64)
}

/// The hash of the bytes of chunk `index` of a content of `size` bytes. `None` when they are not as
/// many as that chunk has.
pub fn hash_chunk(index: u64, size: u64, bytes: &[u8]) -> Option<ChunkHash> {
    // An empty subtree, or one longer than its place in the tree allows, would make BLAKE3 panic.
    if bytes.is_empty() || bytes.len() != chunk_len(index, size) {
        return None;
    }
    if chunk_count(size) == 1 {
        return Some(ChunkHash(*blake3::hash(bytes).as_bytes()));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(chunk_offset(index)).update(bytes);
    Some(ChunkHash(hasher.finalize_non_root()))
}

/// A content's size and the hashes of its chunks, as many as it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    size: u64,
    chunks: Vec<ChunkHash>,
    content: ContentId,
}

/// Why a list of chunk hashes is not the manifest that was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than a shared file may have.
    #[error("a shared file has at most {FILE_BYTES_MAX} bytes, not {0}")]
    TooLarge(u64),
    /// Not one hash for each chunk.
    #[error("{size} bytes have {expected} chunks, not {found}")]
    Count {
        /// Bytes.
        size: u64,
        /// Chunks they make.
        expected: u64,
        /// Hashes there are.
        found: usize,
    },
    /// The hashes belong to something else.
    #[error("the chunk hashes are those of content {found}, not of {expected}")]
    Content {
        /// Wanted.
        expected: ContentId,
        /// Given.
        found: ContentId,
    },
}

impl Manifest {
    /// The manifest of a content whose chunks have been hashed, in order.
    ///
    /// # Errors
    ///
    /// The content is larger than may be shared, or there is not one hash for each chunk.
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

    /// The manifest that somebody gave for a content that is known by its id.
    ///
    /// # Errors
    ///
    /// Those of [`Manifest::new`], or the hashes do not give that id.
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

    /// The manifest of bytes that are in memory.
    ///
    /// # Errors
    ///
    /// They are more than may be shared.
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

    /// The hash of each chunk, in order.
    pub fn chunks(&self) -> &[ChunkHash] {
        &self.chunks
    }

    /// The hash of the whole content: what names it.
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// Whether these are the bytes of chunk `index`.
    pub fn matches(&self, index: u64, bytes: &[u8]) -> bool {
        let expected = usize::try_from(index).ok().and_then(|index| self.chunks.get(index));
        expected.is_some() && hash_chunk(index, self.size, bytes).as_ref() == expected
    }
}

/// The root of the tree over chunk hashes, as many as the content has chunks. Over the hashes of whole subtrees of equal
/// size, which is a power of two, it is the same; only the last one may be of fewer chunks.
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

/// The hash of the subtree over some of the chunks. There is none over no chunk: then it is one that fits nowhere.
pub fn subtree_hash(chunks: &[ChunkHash]) -> ChunkHash {
    match chunks {
        [] => ChunkHash(root_of(chunks).0),
        _ => ChunkHash(subtree(chunks)),
    }
}

/// The chaining value of the subtree over some of the chunks, at least one.
fn subtree(chunks: &[ChunkHash]) -> ChainingValue {
    match chunks {
        [only] => only.0,
        _ => {
            // Halves at the least: the recursion is as deep as the tree, 20 for the largest file.
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
        // Lists of any length, without the bytes: chunks of 1 KiB make the same shape of tree.
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
    fn a_list_is_taken_only_for_the_content_it_makes() {
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
    fn extreme_places_do_not_overflow() {
        assert_eq!(chunk_len(u64::MAX, u64::MAX), 0);
        assert_eq!(chunk_len(0, u64::MAX), CHUNK_BYTES);
        assert_eq!(chunk_count(u64::MAX), 1 << 44);
        assert_eq!(hash_chunk(u64::MAX, u64::MAX, &[1]), None);
    }
}
