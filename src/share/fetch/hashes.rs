//! Getting the chunk hashes of a content from its sources, and knowing that they are right. Pure: time comes from outside.
//!
//! A list comes from one source, so that it is known who lies if it is wrong. It comes in pages, and every page is as long
//! as it may be, so that nobody can dribble hashes. Who does not answer at once costs a moment: another source is
//! asked beside it, and more of them, the faster the less comes, and the first whole list that is right counts. When all
//! of these go on and none is done, the slowest makes room for one that was not asked: at first soon, and when all have
//! had that time, after twice as long, and so on. Whoever gives bytes is not late, however long a
//! page takes; and an answer counts for the page that it was asked for, never for another.

use std::time::Duration;

use crate::limits;
use crate::model::{ChunkHash, ContentId};
use crate::share::content::{Manifest, chunk_count};
use crate::share::swarm::SourceId;

/// The lists of chunk hashes of one content that are being put together.
#[derive(Debug)]
pub(super) struct HashLists {
    content: ContentId,
    size: u64,
    lists_max: usize,
    lists: Vec<HashList>,
    /// When the last of them was begun, or was due to be.
    begun: Duration,
    /// How many have made room for others.
    replacements: u32,
    /// The source after the one asked last, so that all have their turn.
    next: usize,
    /// The source whose list has made room for another one.
    replaced: Option<SourceId>,
}

#[derive(Debug)]
struct HashList {
    source: SourceId,
    begun: Duration,
    /// When it was last looked at whether bytes come, or a page was asked for, and how many have come since.
    looked: Duration,
    new_bytes: u64,
    /// Bytes of the page that is awaited.
    page_bytes: u64,
    hashes: Vec<ChunkHash>,
}

impl HashList {
    fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begun)
    }

    /// Bytes a second that have come of it so far.
    fn pace(&self, now: Duration) -> f64 {
        let bytes = (self.hashes.len() * size_of::<ChunkHash>()) as u64 + self.page_bytes;
        bytes as f64 / self.age(now).as_secs_f64().max(0.001)
    }
}

/// What came of some hashes.
#[derive(Debug)]
pub(super) enum PageOutcome {
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
        HashLists {
            content,
            size,
            lists_max,
            lists: Vec::new(),
            begun: Duration::ZERO,
            replacements: 0,
            next: 0,
            replaced: None,
        }
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

    /// So many bytes have come from a source.
    pub(super) fn received(&mut self, source: SourceId, bytes: u64) {
        if let Some(list) = self.lists.iter_mut().find(|list| list.source == source) {
            list.new_bytes += bytes;
            list.page_bytes += bytes;
        }
    }

    /// Sources that give next to nothing of a page. They are awaited until they are left ([`HashLists::lost`]).
    pub(super) fn late(&mut self, now: Duration) -> Vec<SourceId> {
        let mut late = Vec::new();
        for list in &mut self.lists {
            let passed = now.saturating_sub(list.looked);
            if passed < limits::HASHES_TIMEOUT {
                continue;
            }
            if (list.new_bytes as f64) < limits::SOURCE_RATE_MIN as f64 * passed.as_secs_f64() {
                late.push(list.source);
            }
            (list.looked, list.new_bytes) = (now, 0);
        }
        late
    }

    /// The source whose list the last call of [`HashLists::next`] has replaced.
    pub(super) fn take_replaced(&mut self) -> Option<SourceId> {
        self.replaced.take()
    }

    /// Whom to ask for the first page now, if anybody, among these, in rising order, of so many that are known. To be
    /// called until there is none.
    pub(super) fn next(
        &mut self,
        ready: &[SourceId],
        known: usize,
        now: Duration,
    ) -> Option<SourceId> {
        let is_first = self.lists.is_empty();
        let is_hopeful = self.lists.len() == 1 || self.is_any_done_soon(now);
        let pause =
            if is_hopeful { limits::HASHES_SECOND_AFTER } else { limits::HASHES_NEXT_AFTER };
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
        // Several are due when this was not asked for a while, but none for the time before.
        let oldest = now.saturating_sub(limits::SHARE_TICK);
        self.begun = if is_first { now } else { due.clamp(oldest, now) };
        self.next = source.0 + 1;
        Some(source)
    }

    /// Whether some list's page will be whole soon, if it goes on as it did.
    fn is_any_done_soon(&self, now: Duration) -> bool {
        let chunks = chunk_count(self.size);
        self.lists.iter().any(|list| {
            let rest = chunks.saturating_sub(list.hashes.len() as u64);
            let page =
                rest.min(limits::HASHES_PER_FRAME_MAX as u64) * size_of::<ChunkHash>() as u64;
            list.pace(now) * limits::HASHES_PAGE_SOON.as_secs_f64() >= page as f64
        })
    }

    /// The slowest of the lists that have had their time. The fastest of all goes on in any case.
    fn slowest(&self, known: usize, now: Duration) -> Option<usize> {
        let rounds = self.replacements.checked_div(known as u32).unwrap_or(0);
        let time = limits::HASHES_REPLACE_AFTER_MIN.saturating_mul(2_u32.saturating_pow(rounds));
        let time = time.min(limits::HASHES_REPLACE_AFTER_MAX);
        let pace = |at: &usize| self.lists[*at].pace(now);
        let fastest = (0..self.lists.len()).max_by(|a, b| pace(a).total_cmp(&pace(b)))?;
        (0..self.lists.len())
            .filter(|at| *at != fastest && self.lists[*at].age(now) >= time)
            // Of equals the oldest, or some would stay.
            .min_by(|a, b| {
                pace(a).total_cmp(&pace(b)).then(self.lists[*a].begun.cmp(&self.lists[*b].begun))
            })
    }

    /// A source is gone.
    pub(super) fn lost(&mut self, source: SourceId) {
        self.lists.retain(|list| list.source != source);
    }

    /// Takes from a source the page that it was asked for with `first`.
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
            assert_eq!(lists.next(&ids([source]), 2, ms(0)), Some(SourceId(source)));
            lists
        };
        let mut lists = begin(0);
        assert!(matches!(lists.take(SourceId(1), 0, first, ms(1)), PageOutcome::Late));
        assert!(matches!(lists.take(SourceId(0), 0, first, ms(1)), PageOutcome::More(4096)));
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

    /// A hundred sources that greet and say nothing, or give a page just before they would be late, and one that is
    /// honest: it was asked after up to 17 seconds.
    #[test]
    fn whoever_is_slow_with_hashes_does_not_hide_the_others() {
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
                    let page_at = now + limits::HASHES_TIMEOUT - ms(10);
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
    fn one_who_answers_at_once_is_asked_alone() {
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

    /// A lone source that hesitated over its second page was asked for the first again; what came for the second was taken
    /// for the first, and the source for a liar.
    #[test]
    fn a_lone_source_may_hesitate_and_be_slow() {
        let manifest = two_pages();
        let (first, second) = manifest.chunks().split_at(HASHES_PER_FRAME_MAX);
        let mut lists = HashLists::new(manifest.content(), manifest.size());
        let only = SourceId(0);
        assert_eq!(lists.next(&[only], 1, ms(0)), Some(only));
        // Twenty seconds over a page, and never silent.
        let page_bytes = size_of_val(first) as u64;
        for at in 1..=200 {
            lists.received(only, page_bytes / 200);
            assert_eq!(lists.late(ms(100 * at)), [], "at {at}");
            assert_eq!(lists.next(&[only], 1, ms(100 * at)), None);
        }
        assert!(matches!(lists.take(only, 0, first, ms(20_000)), PageOutcome::More(4096)));
        // It is said to be late, and is not left, since there is no other.
        assert_eq!(lists.late(ms(22_000)), [only]);
        assert_eq!(lists.late(ms(22_100)), []);
        assert_eq!(lists.next(&[only], 1, ms(22_100)), None, "it is asked already");
        // Another one is asked beside it; an answer to an earlier question is nobody's fault.
        let other = SourceId(1);
        assert_eq!(lists.next(&[only, other], 2, ms(22_200)), Some(other));
        assert!(matches!(lists.take(only, 0, first, ms(22_300)), PageOutcome::Late));
        assert!(matches!(lists.take(other, 4096, second, ms(22_300)), PageOutcome::Late));
        assert!(matches!(lists.take(only, 4096, second, ms(22_400)), PageOutcome::Whole(_)));
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
