//! Getting the chunk hashes of a content from its sources, and knowing that they are right. Pure: time comes from outside.
//!
//! A list comes from one source, so that it is known who lies if it is wrong. It comes in pages, and every page is as long
//! as it may be, so that nobody can dribble hashes. Who does not answer at once costs a moment: another source is
//! asked beside it, a few at a time, and the first whole list that is right counts. When all of these go on
//! and none is done, the slowest makes room for one that was not asked.

use std::time::Duration;

use crate::limits;
use crate::share::content::{Manifest, chunk_count};
use crate::share::swarm::SourceId;
use crate::share::types::{ChunkHash, ContentId};

/// The lists of chunk hashes of one content that are being put together.
#[derive(Debug)]
pub(super) struct HashLists {
    content: ContentId,
    size: u64,
    lists_max: usize,
    lists: Vec<List>,
    /// When the last of them was begun.
    begun: Duration,
    /// The source after the one asked last, so that all have their turn.
    next: usize,
}

#[derive(Debug)]
struct List {
    source: SourceId,
    begun: Duration,
    /// When the page that is awaited was asked for.
    asked: Duration,
    hashes: Vec<ChunkHash>,
}

/// What came of some hashes.
#[derive(Debug)]
pub(super) enum Step {
    /// Ask the source for those from here on.
    More(u64),
    /// That was all of them, and they are right.
    Whole(Manifest),
    /// The source lies: leave it.
    Wrong,
    /// Nobody waits for them any more.
    Late,
}

impl HashLists {
    pub(super) fn new(content: ContentId, size: u64) -> HashLists {
        let list_bytes = chunk_count(size).max(1) as usize * size_of::<ChunkHash>();
        let lists_max =
            (limits::HASH_LISTS_BYTES_MAX / list_bytes).clamp(2, limits::HASH_LISTS_MAX);
        HashLists { content, size, lists_max, lists: Vec::new(), begun: Duration::ZERO, next: 0 }
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

    /// Sources that take too long over a page. They are asked no more.
    pub(super) fn take_late(&mut self, now: Duration) -> Vec<SourceId> {
        let is_late = |list: &mut List| now.saturating_sub(list.asked) >= limits::HASHES_TIMEOUT;
        self.lists.extract_if(.., is_late).map(|list| list.source).collect()
    }

    /// Whom to ask for the first page now, if anybody, among these, in rising order.
    pub(super) fn next(&mut self, ready: &[SourceId], now: Duration) -> Option<SourceId> {
        let waited = now.saturating_sub(self.begun) >= limits::HASHES_SECOND_AFTER;
        let is_full = self.lists.len() >= self.lists_max;
        let slowest = self.slowest(now).filter(|_| is_full);
        let is_due = self.lists.is_empty() || waited && (!is_full || slowest.is_some());
        let is_asked = |id: &SourceId| self.lists.iter().any(|list| list.source == *id);
        let free = || ready.iter().filter(|id| !is_asked(id)).copied();
        let source = free().find(|id| id.0 >= self.next).or_else(|| free().next());
        let source = source.filter(|_| is_due)?;
        if let Some(at) = slowest {
            self.lists.swap_remove(at);
        }
        self.lists.push(List { source, begun: now, asked: now, hashes: Vec::new() });
        self.begun = now;
        self.next = source.0 + 1;
        Some(source)
    }

    /// The slowest of the lists that have had their time. The fastest of all goes on in any case.
    fn slowest(&self, now: Duration) -> Option<usize> {
        let age = |list: &List| now.saturating_sub(list.begun);
        let pace = |at: &usize| {
            let list = &self.lists[*at];
            list.hashes.len() as f64 / age(list).as_secs_f64().max(0.001)
        };
        let fastest = (0..self.lists.len()).max_by(|a, b| pace(a).total_cmp(&pace(b)))?;
        let had_time = |at: &usize| age(&self.lists[*at]) >= limits::HASHES_REPLACE_AFTER;
        (0..self.lists.len())
            .filter(|at| *at != fastest && had_time(at))
            .min_by(|a, b| pace(a).total_cmp(&pace(b)))
    }

    /// A source is gone.
    pub(super) fn lost(&mut self, source: SourceId) {
        self.lists.retain(|list| list.source != source);
    }

    /// Takes a page from a source.
    pub(super) fn take(&mut self, source: SourceId, page: &[ChunkHash], now: Duration) -> Step {
        let Some(at) = self.lists.iter().position(|list| list.source == source) else {
            return Step::Late;
        };
        let list = &mut self.lists[at];
        let expected = chunk_count(self.size);
        let rest = expected - list.hashes.len() as u64;
        if page.len() as u64 != rest.min(limits::HASHES_PER_FRAME_MAX as u64) {
            self.lists.swap_remove(at);
            return Step::Wrong;
        }
        list.hashes.extend_from_slice(page);
        list.asked = now;
        let have = list.hashes.len() as u64;
        if have < expected {
            return Step::More(have);
        }
        let list = self.lists.swap_remove(at);
        match Manifest::verified(self.content, self.size, list.hashes) {
            Ok(manifest) => Step::Whole(manifest),
            Err(_) => Step::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CHUNK_BYTES, HASHES_PER_FRAME_MAX};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ids(ids: impl IntoIterator<Item = usize>) -> Vec<SourceId> {
        ids.into_iter().map(SourceId).collect()
    }

    /// A content of two pages and its hashes, without its bytes.
    fn two_pages() -> Manifest {
        let count = HASHES_PER_FRAME_MAX as u64 + 9;
        let hashes = (0..count).map(|i| ChunkHash(*blake3::hash(&i.to_le_bytes()).as_bytes()));
        Manifest::new(count * CHUNK_BYTES as u64, hashes.collect()).unwrap()
    }

    #[test]
    fn a_list_comes_in_whole_pages_and_counts_only_when_it_is_right() {
        let manifest = two_pages();
        let (first, second) = manifest.chunks().split_at(HASHES_PER_FRAME_MAX);
        let begin = |source: usize| {
            let mut lists = HashLists::new(manifest.content(), manifest.size());
            assert_eq!(lists.next(&ids([source]), ms(0)), Some(SourceId(source)));
            lists
        };
        let mut lists = begin(0);
        assert!(matches!(lists.take(SourceId(1), first, ms(1)), Step::Late));
        assert!(matches!(lists.take(SourceId(0), first, ms(1)), Step::More(4096)));
        let mut wrong = second.to_vec();
        wrong[1].0[0] ^= 1;
        assert!(matches!(lists.take(SourceId(0), &wrong, ms(2)), Step::Wrong));
        assert!(matches!(lists.take(SourceId(0), second, ms(3)), Step::Late));

        for dribble in [&first[..0], &first[..1], &first[..4095]] {
            let mut lists = begin(1);
            assert!(matches!(lists.take(SourceId(1), dribble, ms(1)), Step::Wrong));
        }
        let mut lists = begin(2);
        assert!(matches!(lists.take(SourceId(2), first, ms(1)), Step::More(4096)));
        let many = [second, second].concat();
        assert!(matches!(lists.take(SourceId(2), &many, ms(1)), Step::Wrong));

        let mut lists = begin(3);
        assert!(matches!(lists.take(SourceId(3), first, ms(1)), Step::More(4096)));
        match lists.take(SourceId(3), second, ms(1)) {
            Step::Whole(whole) => assert_eq!(whole, manifest),
            other => panic!("{other:?}"),
        }
    }

    /// Thirty sources that greet and say nothing, or give a page just before they would be late, and one that is honest.
    #[test]
    fn whoever_is_slow_with_hashes_does_not_hide_the_others() {
        let manifest = two_pages();
        for (dribbles, honest) in [(false, 0), (false, 17), (false, 30), (true, 11), (true, 30)] {
            let mut lists = HashLists::new(manifest.content(), manifest.size());
            let mut ready = ids(0..31);
            let mut now = ms(0);
            let mut pages: Vec<(Duration, SourceId, usize)> = Vec::new();
            'time: loop {
                now += ms(10);
                assert!(now < ms(12_000), "{honest} is not asked in time");
                for late in lists.take_late(now) {
                    ready.retain(|id| *id != late);
                }
                if let Some(source) = lists.next(&ready, now) {
                    if source.0 == honest {
                        break 'time;
                    }
                    let page_at = now + limits::HASHES_TIMEOUT - ms(10);
                    pages.extend(dribbles.then_some((page_at, source, 0)));
                }
                for (at, source, first) in &mut pages {
                    if *at <= now && *first == 0 {
                        *first = HASHES_PER_FRAME_MAX;
                        lists.take(*source, &manifest.chunks()[..*first], now);
                    }
                }
            }
        }
    }

    #[test]
    fn one_who_answers_at_once_is_asked_alone() {
        let manifest = Manifest::of_bytes(&vec![5; 4 * CHUNK_BYTES + 1]).unwrap();
        let mut lists = HashLists::new(manifest.content(), manifest.size());
        assert_eq!(lists.next(&[], ms(0)), None);
        assert_eq!(lists.next(&ids([3, 4]), ms(0)), Some(SourceId(3)));
        assert_eq!(lists.next(&ids([3, 4]), ms(0)), None);
        lists.lost(SourceId(3));
        assert_eq!(lists.next(&ids([3, 4]), ms(1)), Some(SourceId(4)));
        assert!(matches!(lists.take(SourceId(4), manifest.chunks(), ms(2)), Step::Whole(_)));
    }

    #[test]
    fn small_contents_need_no_list() {
        let of = |bytes: &[u8]| {
            let manifest = Manifest::of_bytes(bytes).unwrap();
            HashLists::without_asking(manifest.content(), manifest.size()) == Some(manifest)
        };
        assert!(of(b"") && of(b"x") && of(&vec![1; CHUNK_BYTES]));
        assert!(!of(&vec![1; CHUNK_BYTES + 1]));
        assert_eq!(HashLists::without_asking(ContentId([7; 32]), 0), None);
    }
}
