//! Fetches the list of chunk hashes of a content from its sources and verifies it.
//!
//! A list comes from one source, so that it is known who lied if it is wrong. It comes in pages of
//! a fixed length, so that a source cannot send hashes one by one. If the first source does not
//! answer at once, others are asked at the same time, at intervals that shrink if none is about to
//! finish. The first complete list that is right counts. When the maximum number of lists is under
//! way and none is done, the slowest is replaced by a source that has not been asked: soon at
//! first, and after twice as long each time that all sources have had their turn.
//!
//! Rule: a source that sends bytes is not late, however long a page takes; and an answer counts
//! only for the page it was requested for.
//!
//! The module is pure: time comes from outside.

use std::time::Duration;

use crate::limits;
use crate::model::{ChunkHash, ContentId};
use crate::share::content::{Manifest, chunk_count};
use crate::share::swarm::SourceId;

/// When nobody has given all chunk hashes this long after the first source was asked, another is
/// asked beside it, and so on as long as one of them will be done with its page soon.
const HASHES_SECOND_AFTER: Duration = Duration::from_millis(250);
/// When no list will be done with its page soon, the next source is asked this long after the last
/// one: a hundred that say nothing are gone through in some seconds.
const HASHES_NEXT_AFTER: Duration = Duration::from_millis(25);
/// Sources that are asked for chunk hashes at once.
const HASH_LISTS_MAX: usize = 16;
/// Memory that the lists under way take together. It lets fewer sources be asked at once for long
/// lists, but never fewer than two, so that a silent one delays no other.
const HASH_LISTS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// When as many sources are asked as may be, another takes the place of the slowest of those that
/// have had this time. It doubles when all known sources have had it, so that one that needs longer
/// is waited for in the end.
const HASHES_REPLACE_AFTER_MIN: Duration = Duration::from_millis(250);
/// Up to this the time doubles that a source has before another takes its place.
const HASHES_REPLACE_AFTER_MAX: Duration = Duration::from_secs(4);

/// A source that sends a page of chunk hashes more slowly than
/// [`SOURCE_RATE_MIN`](limits::SOURCE_RATE_MIN) over this time is left if there are others.
const HASHES_TIMEOUT: Duration = Duration::from_secs(2);
/// A page is nearly complete when at the present rate it takes no longer than this.
const HASHES_PAGE_SOON: Duration = Duration::from_secs(1);

/// The incomplete lists of chunk hashes of one content.
#[derive(Debug)]
pub(super) struct HashLists {
    content: ContentId,
    size: u64,
    lists_max: usize,
    lists: Vec<HashList>,
    /// When the last list was started, or was due to be started.
    begun: Duration,
    /// The number of lists that have been replaced.
    replacements: u32,
    /// The id after the source asked last, so that all sources have their turn.
    next: usize,
    /// The source whose list was replaced by the last call of [`HashLists::next`].
    replaced: Option<SourceId>,
    /// When a list last grew beyond `known`.
    progress_at: Duration,
    /// The largest number of hashes that any source has given.
    known: u64,
}

#[derive(Debug)]
struct HashList {
    source: SourceId,
    begun: Duration,
    /// Start of the interval over which `new_bytes` are counted.
    looked: Duration,
    new_bytes: u64,
    /// Bytes received of the outstanding page.
    page_bytes: u64,
    hashes: Vec<ChunkHash>,
}

impl HashList {
    fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begun)
    }

    /// The average rate since it was started, in bytes a second.
    fn pace(&self, now: Duration) -> f64 {
        let bytes = (self.hashes.len() * size_of::<ChunkHash>()) as u64 + self.page_bytes;
        bytes as f64 / self.age(now).as_secs_f64().max(0.001)
    }
}

/// The result of taking a page.
#[derive(Debug)]
pub(super) enum PageOutcome {
    /// Request the next page, which begins with this chunk.
    More(u64),
    /// The list is complete and right.
    Whole(Manifest),
    /// The page or the list is wrong: the source has to be banned.
    Wrong,
    /// The page is not the outstanding one of a list.
    Late,
}

impl HashLists {
    pub(super) fn new(content: ContentId, size: u64) -> HashLists {
        let list_bytes = chunk_count(size).max(1) as usize * size_of::<ChunkHash>();
        let lists_max = (HASH_LISTS_BYTES_MAX / list_bytes).clamp(2, HASH_LISTS_MAX);
        HashLists {
            content,
            size,
            lists_max,
            lists: Vec::new(),
            begun: Duration::ZERO,
            replacements: 0,
            next: 0,
            replaced: None,
            progress_at: Duration::ZERO,
            known: 0,
        }
    }

    /// When a source last gave a page that no source had given before. Otherwise any number of
    /// sources could keep a download waiting: each would give the first page and leave.
    pub(super) fn progress_at(&self) -> Duration {
        self.progress_at
    }

    /// The manifest of a content that needs no list, because it has at most one chunk. `None` for
    /// larger contents, and for an empty one whose id is not the hash of nothing.
    pub(super) fn without_asking(content: ContentId, size: u64) -> Option<Manifest> {
        let chunks = match chunk_count(size) {
            0 => Vec::new(),
            1 => vec![ChunkHash(content.0)],
            _ => return None,
        };
        Manifest::verified(content, size, chunks).ok()
    }

    /// Records bytes received from a source.
    pub(super) fn received(&mut self, source: SourceId, bytes: u64) {
        if let Some(list) = self.lists.iter_mut().find(|list| list.source == source) {
            list.new_bytes += bytes;
            list.page_bytes += bytes;
        }
    }

    /// Sources that send a page too slowly. Their lists go on until they are lost
    /// ([`HashLists::lost`]).
    pub(super) fn late(&mut self, now: Duration) -> Vec<SourceId> {
        let mut late = Vec::new();
        for list in &mut self.lists {
            let passed = now.saturating_sub(list.looked);
            if passed < HASHES_TIMEOUT {
                continue;
            }
            if (list.new_bytes as f64) < limits::SOURCE_RATE_MIN as f64 * passed.as_secs_f64() {
                late.push(list.source);
            }
            (list.looked, list.new_bytes) = (now, 0);
        }
        late
    }

    /// Takes the source whose list the last call of [`HashLists::next`] has replaced.
    pub(super) fn take_replaced(&mut self) -> Option<SourceId> {
        self.replaced.take()
    }

    /// The source to request the first page from now, if any is due. `ready` are the connected
    /// sources in rising order, `known` is the number of all sources. To be called until it returns
    /// `None`.
    pub(super) fn next(
        &mut self,
        ready: &[SourceId],
        known: usize,
        now: Duration,
    ) -> Option<SourceId> {
        let is_first = self.lists.is_empty();
        let is_hopeful = self.lists.len() == 1 || self.is_any_done_soon(now);
        let pause = if is_hopeful { HASHES_SECOND_AFTER } else { HASHES_NEXT_AFTER };
        let due = self.begun + pause;
        let is_full = self.lists.len() >= self.lists_max;
        let slowest = self.slowest(known, now).filter(|_| is_full);
        let is_due = is_first || due <= now && (!is_full || slowest.is_some());
        let is_asked = |id: &SourceId| self.lists.iter().any(|list| list.source == *id);
        let free = || ready.iter().filter(|id| !is_asked(id)).copied();
        let source = free().find(|id| id.0 >= self.next).or_else(|| free().next());
        let source = source.filter(|_| is_due)?;
        if let Some(at) = slowest {
            self.replacements += 1;
            self.replaced = Some(self.lists.swap_remove(at).source);
        }
        self.lists.push(HashList {
            source,
            begun: now,
            looked: now,
            new_bytes: 0,
            page_bytes: 0,
            hashes: Vec::new(),
        });
        // After a pause several may be due at once, but no more than within one tick.
        let oldest = now.saturating_sub(limits::SHARE_TICK);
        self.begun = if is_first { now } else { due.clamp(oldest, now) };
        self.next = source.0 + 1;
        Some(source)
    }

    /// Whether some list's page will be complete soon, at its present rate.
    fn is_any_done_soon(&self, now: Duration) -> bool {
        let chunks = chunk_count(self.size);
        self.lists.iter().any(|list| {
            let rest = chunks.saturating_sub(list.hashes.len() as u64);
            let page =
                rest.min(limits::HASHES_PER_FRAME_MAX as u64) * size_of::<ChunkHash>() as u64;
            list.pace(now) * HASHES_PAGE_SOON.as_secs_f64() >= page as f64
        })
    }

    /// The slowest of the lists that have had their time. The fastest of all is never replaced.
    fn slowest(&self, known: usize, now: Duration) -> Option<usize> {
        let rounds = self.replacements.checked_div(known as u32).unwrap_or(0);
        let time = HASHES_REPLACE_AFTER_MIN.saturating_mul(2_u32.saturating_pow(rounds));
        let time = time.min(HASHES_REPLACE_AFTER_MAX);
        let pace = |at: &usize| self.lists[*at].pace(now);
        let fastest = (0..self.lists.len()).max_by(|a, b| pace(a).total_cmp(&pace(b)))?;
        (0..self.lists.len())
            .filter(|at| *at != fastest && self.lists[*at].age(now) >= time)
            // Of equally slow lists the oldest, so that each is replaced in turn.
            .min_by(|a, b| {
                pace(a).total_cmp(&pace(b)).then(self.lists[*a].begun.cmp(&self.lists[*b].begun))
            })
    }

    /// The connection with a source is closed.
    pub(super) fn lost(&mut self, source: SourceId) {
        self.lists.retain(|list| list.source != source);
    }

    /// Takes the page that was requested from a source with `first`.
    pub(super) fn take(
        &mut self,
        source: SourceId,
        first: u64,
        page: &[ChunkHash],
        now: Duration,
    ) -> PageOutcome {
        let is_awaited =
            |list: &HashList| list.source == source && list.hashes.len() as u64 == first;
        let Some(at) = self.lists.iter().position(is_awaited) else {
            return PageOutcome::Late;
        };
        let list = &mut self.lists[at];
        let expected = chunk_count(self.size);
        let rest = expected - list.hashes.len() as u64;
        if page.len() as u64 != rest.min(limits::HASHES_PER_FRAME_MAX as u64) {
            self.lists.swap_remove(at);
            return PageOutcome::Wrong;
        }
        list.hashes.extend_from_slice(page);
        (list.looked, list.new_bytes, list.page_bytes) = (now, 0, 0);
        let have = list.hashes.len() as u64;
        if have < expected {
            if have > self.known {
                (self.progress_at, self.known) = (now, have);
            }
            return PageOutcome::More(have);
        }
        let list = self.lists.swap_remove(at);
        match Manifest::verified(self.content, self.size, list.hashes) {
            Ok(manifest) => PageOutcome::Whole(manifest),
            Err(_) => PageOutcome::Wrong,
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

    /// A manifest of two pages of hashes, without the content's bytes.
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
            assert_eq!(lists.next(&ids([source]), 2, ms(0)), Some(SourceId(source)));
            lists
        };
        let mut lists = begin(0);
        assert!(matches!(lists.take(SourceId(1), 0, first, ms(1)), PageOutcome::Late));
        assert!(matches!(lists.take(SourceId(0), 0, first, ms(1)), PageOutcome::More(4096)));
        assert_eq!(lists.progress_at(), ms(1));
        let mut wrong = second.to_vec();
        wrong[1].0[0] ^= 1;
        assert!(matches!(lists.take(SourceId(0), 4096, &wrong, ms(2)), PageOutcome::Wrong));
        assert!(matches!(lists.take(SourceId(0), 4096, second, ms(3)), PageOutcome::Late));

        for dribble in [&first[..0], &first[..1], &first[..4095]] {
            let mut lists = begin(1);
            assert!(matches!(lists.take(SourceId(1), 0, dribble, ms(1)), PageOutcome::Wrong));
        }
        let mut lists = begin(2);
        assert!(matches!(lists.take(SourceId(2), 0, first, ms(1)), PageOutcome::More(4096)));
        let many = [second, second].concat();
        assert!(matches!(lists.take(SourceId(2), 4096, &many, ms(1)), PageOutcome::Wrong));

        let mut lists = begin(3);
        assert!(matches!(lists.take(SourceId(3), 0, first, ms(1)), PageOutcome::More(4096)));
        match lists.take(SourceId(3), 4096, second, ms(1)) {
            PageOutcome::Whole(whole) => assert_eq!(whole, manifest),
            other => panic!("{other:?}"),
        }
    }

    /// A hundred sources that send nothing, or a page just before they would be late, and an honest
    /// one. Once it took up to 17 seconds until that was asked.
    #[test]
    fn a_source_slow_with_hashes_does_not_delay_the_others_lists() {
        let manifest = two_pages();
        for (dribbles, honest) in [(false, 0), (false, 17), (false, 100), (true, 11), (true, 100)] {
            let mut lists = HashLists::new(manifest.content(), manifest.size());
            let mut ready = ids(0..101);
            let mut now = ms(0);
            let mut pages: Vec<(Duration, SourceId, usize)> = Vec::new();
            'time: loop {
                now += ms(10);
                assert!(now < ms(4_000), "{honest} is not asked in time");
                for late in lists.late(now) {
                    lists.lost(late);
                    ready.retain(|id| *id != late);
                }
                while let Some(source) = lists.next(&ready, 101, now) {
                    if source.0 == honest {
                        break 'time;
                    }
                    let page_at = now + HASHES_TIMEOUT - ms(10);
                    pages.extend(dribbles.then_some((page_at, source, 0)));
                }
                for (at, source, first) in &mut pages {
                    if *at <= now && *first == 0 {
                        *first = HASHES_PER_FRAME_MAX;
                        lists.take(*source, 0, &manifest.chunks()[..*first], now);
                    }
                }
            }
        }
    }

    #[test]
    fn a_source_that_answers_at_once_is_asked_alone() {
        let manifest = Manifest::of_bytes(&vec![5; 4 * CHUNK_BYTES + 1]).unwrap();
        let mut lists = HashLists::new(manifest.content(), manifest.size());
        assert_eq!(lists.next(&[], 2, ms(0)), None);
        assert_eq!(lists.next(&ids([3, 4]), 2, ms(0)), Some(SourceId(3)));
        assert_eq!(lists.next(&ids([3, 4]), 2, ms(0)), None);
        lists.lost(SourceId(3));
        assert_eq!(lists.next(&ids([3, 4]), 2, ms(1)), Some(SourceId(4)));
        assert!(matches!(
            lists.take(SourceId(4), 0, manifest.chunks(), ms(2)),
            PageOutcome::Whole(_)
        ));
    }

    /// Once a lone source that hesitated over its second page was asked for the first again. Its
    /// answer for the second was taken for the first, and the source was banned.
    #[test]
    fn a_lone_source_may_be_slow_with_its_list() {
        let manifest = two_pages();
        let (first, second) = manifest.chunks().split_at(HASHES_PER_FRAME_MAX);
        let mut lists = HashLists::new(manifest.content(), manifest.size());
        let only = SourceId(0);
        assert_eq!(lists.next(&[only], 1, ms(0)), Some(only));
        // It takes twenty seconds for a page and is never silent.
        let page_bytes = size_of_val(first) as u64;
        for at in 1..=200 {
            lists.received(only, page_bytes / 200);
            assert_eq!(lists.late(ms(100 * at)), [], "at {at}");
            assert_eq!(lists.next(&[only], 1, ms(100 * at)), None);
        }
        assert!(matches!(lists.take(only, 0, first, ms(20_000)), PageOutcome::More(4096)));
        // It is reported late, and is not dropped because it is the only source.
        assert_eq!(lists.late(ms(22_000)), [only]);
        assert_eq!(lists.late(ms(22_100)), []);
        assert_eq!(lists.next(&[only], 1, ms(22_100)), None, "it is asked already");
        // Another source is asked as well. An answer to an earlier request harms neither.
        let other = SourceId(1);
        assert_eq!(lists.next(&[only, other], 2, ms(22_200)), Some(other));
        assert!(matches!(lists.take(only, 0, first, ms(22_300)), PageOutcome::Late));
        assert!(matches!(lists.take(other, 4096, second, ms(22_300)), PageOutcome::Late));
        assert!(matches!(lists.take(only, 4096, second, ms(22_400)), PageOutcome::Whole(_)));
    }

    #[test]
    fn a_content_of_one_chunk_needs_no_list() {
        let of = |bytes: &[u8]| {
            let manifest = Manifest::of_bytes(bytes).unwrap();
            HashLists::without_asking(manifest.content(), manifest.size()) == Some(manifest)
        };
        assert!(of(b"") && of(b"x") && of(&vec![1; CHUNK_BYTES]));
        assert!(!of(&vec![1; CHUNK_BYTES + 1]));
        assert_eq!(HashLists::without_asking(ContentId([7; 32]), 0), None);
    }
}
