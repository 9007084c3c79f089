//! Getting the chunk hashes of a content from a source, and knowing that they are right.

use std::time::Instant;

use crate::limits;
use crate::share::content::{Manifest, chunk_count};
use crate::share::swarm::SourceId;
use crate::share::types::{ChunkHash, ContentId};

/// A list of chunk hashes that is being put together, all of it from one source, so that it is known
/// who lies if it is wrong.
#[derive(Debug)]
pub(super) struct HashList {
    content: ContentId,
    size: u64,
    asked: Option<Asked>,
    hashes: Vec<ChunkHash>,
}

#[derive(Debug)]
struct Asked {
    source: SourceId,
    at: Instant,
}

/// What came of some hashes.
#[derive(Debug)]
pub(super) enum Step {
    /// Ask the source for those from here on.
    More(u64),
    /// That was all of them, and they are right.
    Whole(Manifest),
    /// The source lies: leave it and ask another.
    Wrong,
}

impl HashList {
    pub(super) fn new(content: ContentId, size: u64) -> HashList {
        HashList { content, size, asked: None, hashes: Vec::new() }
    }

    /// The manifest, where it needs no list: of nothing, and of one chunk. `None` for a content of no
    /// bytes that claims another hash than nothing has.
    pub(super) fn without_asking(content: ContentId, size: u64) -> Option<Manifest> {
        let chunks = match chunk_count(size) {
            0 => Vec::new(),
            1 => vec![ChunkHash(content.0)],
            _ => return None,
        };
        Manifest::verified(content, size, chunks).ok()
    }

    /// Who is being asked.
    pub(super) fn asked(&self) -> Option<SourceId> {
        self.asked.as_ref().map(|asked| asked.source)
    }

    /// Whether the one who is asked takes too long.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        let waited = |asked: &Asked| now.saturating_duration_since(asked.at);
        self.asked.as_ref().is_some_and(|asked| waited(asked) >= limits::HASHES_TIMEOUT)
    }

    /// Begins anew with another source.
    pub(super) fn ask(&mut self, source: SourceId, now: Instant) {
        self.hashes = Vec::new();
        self.asked = Some(Asked { source, at: now });
    }

    /// Nobody is asked any more.
    pub(super) fn give_up(&mut self) {
        self.hashes = Vec::new();
        self.asked = None;
    }

    /// Takes what the source that is asked says.
    pub(super) fn take(&mut self, hashes: &[ChunkHash], now: Instant) -> Step {
        let expected = chunk_count(self.size);
        let have = (self.hashes.len() + hashes.len()) as u64;
        if hashes.is_empty() || have > expected {
            return Step::Wrong;
        }
        self.hashes.extend_from_slice(hashes);
        if let Some(asked) = &mut self.asked {
            asked.at = now;
        }
        if have < expected {
            return Step::More(have);
        }
        let list = std::mem::take(&mut self.hashes);
        match Manifest::verified(self.content, self.size, list) {
            Ok(manifest) => Step::Whole(manifest),
            Err(_) => Step::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BYTES;

    #[test]
    fn a_list_comes_in_parts_and_counts_only_when_it_is_right() {
        let manifest = Manifest::of_bytes(&vec![5; 4 * CHUNK_BYTES + 1]).unwrap();
        let (hashes, now) = (manifest.chunks(), Instant::now());
        let mut list = HashList::new(manifest.content(), manifest.size());
        list.ask(SourceId(0), now);
        assert!(matches!(list.take(&hashes[..2], now), Step::More(2)));
        let mut wrong = hashes[2..].to_vec();
        wrong[1].0[0] ^= 1;
        assert!(matches!(list.take(&wrong, now), Step::Wrong));

        list.ask(SourceId(1), now);
        assert!(matches!(list.take(&hashes[..4], now), Step::More(4)));
        assert!(!list.is_late(now));
        let later = now + limits::HASHES_TIMEOUT;
        assert!(list.is_late(later));
        match list.take(&hashes[4..], later) {
            Step::Whole(whole) => assert_eq!(whole, manifest),
            other => panic!("{other:?}"),
        }
        list.ask(SourceId(2), now);
        assert!(matches!(list.take(&[], now), Step::Wrong));
        list.ask(SourceId(3), now);
        let many = vec![hashes[0]; 6];
        assert!(matches!(list.take(&many, now), Step::Wrong));
    }

    #[test]
    fn small_contents_need_no_list() {
        let of = |bytes: &[u8]| {
            let manifest = Manifest::of_bytes(bytes).unwrap();
            HashList::without_asking(manifest.content(), manifest.size()) == Some(manifest)
        };
        assert!(of(b"") && of(b"x") && of(&vec![1; CHUNK_BYTES]));
        assert!(!of(&vec![1; CHUNK_BYTES + 1]));
        assert_eq!(HashList::without_asking(ContentId([7; 32]), 0), None);
    }
}
