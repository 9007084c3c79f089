//! The newest versions of keys, kept in memory for those who read and write them.
//!
//! Nearly every read asks for the newest version of a key, and every write for the facts of it. The
//! engine looks in memory tables, in filters and in blocks for that; here it is one look-up. What a
//! read has found is kept with its value, and what a write has made without, unless there is a
//! value of the key already: a value that nobody reads is not worth its copy. So facts are known of
//! more keys than values are.
//!
//! Rule: what is told here of a key is what a read of the newest state finds, at any moment. So
//! what a batch changes is replaced before the engine writes it ([`NewestVersions::begin`]), and
//! not told until the batch is visible ([`NewestVersions::finish`]): the versions of a batch are
//! later than all others. A reader adds what it has found only if no batch was under way from
//! before its view was taken until now ([`Permit`]).
//!
//! A key is known by its fingerprint alone, 128 bits of SipHash under secret numbers that each
//! process draws: that two of a million keys have the same one is less likely than one in 10^26,
//! and nobody can look for two. Keys themselves would be a third of the memory, and looking at them
//! a second place in memory to wait for with every write.
//!
//! Left out: keys without a value, versions in the past, and values that are so long that looking
//! for them is not what they cost.

use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::engine::WriteBatch;
use super::keys;
use super::version_row::StoredVersion;
use super::versions::shown_version;
use crate::model::{Facts, KeyState, LeaseId, Timestamp, Version};

/// As much as a hundred thousand keys with values of 100 bytes take.
const BYTES_MAX: usize = 20 * 1024 * 1024;
/// Longer values are not kept: reading them costs more than looking for them.
const VALUE_BYTES_MAX: usize = 1024;
/// Parts that grow and are swept by themselves, so that neither takes longer than some hundred
/// microseconds.
const SHARDS: usize = 64;
/// What an entry takes besides its value: its place in a table that is three quarters full.
const ENTRY_BYTES: usize = (size_of::<(u64, Entry)>() + 1) * 4 / 3;
/// Rows of a batch that are handled before the lock is given back for a moment: readers do not
/// wait for it, and would find nothing here meanwhile.
const ROWS_PER_LOCK: usize = 128;

/// Newest versions, for readers on any thread and one writer.
pub(super) struct NewestVersions {
    held: Mutex<Held>,
    /// Clients choose the keys, so each half of a fingerprint has a secret number of its own.
    hashes: [RandomState; 2],
}

struct Held {
    shards: Vec<Shard>,
    bytes_max: usize,
    /// Counts the beginnings and the ends of batches: odd while one is being written.
    generation: u64,
    /// Later versions are of the batch that is being written, and not told yet.
    told_up_to: Timestamp,
}

#[derive(Default)]
struct Shard {
    /// By the first half of the fingerprint. Of two keys that share it the later one stays.
    entries: HashMap<u64, Entry, BuildHasherDefault<FirstHalf>>,
    bytes: usize,
}

/// What a key is known by.
#[derive(Clone, Copy)]
struct Fingerprint {
    first: u64,
    second: u64,
}

/// The newest version of a key. With its half of the fingerprint it fills a line of the
/// processor's cache.
struct Entry {
    /// The second half of the fingerprint.
    second: u64,
    version: Timestamp,
    created: Timestamp,
    /// The lease's number, 0 for none, as in the rows of versions.
    lease: u64,
    /// `None` until somebody has read it, and for one that is too long to be kept.
    value: Option<Box<[u8]>>,
    count: u32,
    /// Looked for since the shard was last swept.
    is_used: bool,
}

const _: () = assert!(size_of::<(u64, Entry)>() == 64, "an entry fills a line of the cache");

/// What a look-up of [`NewestVersions`] tells.
pub(super) enum Newest {
    Known(Version),
    /// It is to be read from the engine, and may be added then, if there is a permit.
    Unknown(Option<Permit>),
}

/// That a view which is taken later shows the state that is known here, as long as no batch begins.
pub(super) struct Permit {
    generation: u64,
}

/// A batch that is being written.
#[must_use]
pub(super) struct Begun {
    /// Its last version that is kept.
    last: Timestamp,
}

/// A half of a fingerprint as it is.
#[derive(Default)]
struct FirstHalf(u64);

impl Hasher for FirstHalf {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Entry {
    /// Without a value; `None` for a key that was written more often than an entry can say.
    fn new(second: u64, KeyState { version, facts }: KeyState) -> Option<Entry> {
        let Facts { created, count, lease } = facts;
        let (count, lease) = (u32::try_from(count).ok()?, lease.map_or(0, |lease| lease.0));
        Some(Entry { second, version, created, lease, value: None, count, is_used: false })
    }

    fn state(&self) -> KeyState {
        let lease = (self.lease != 0).then_some(LeaseId(self.lease));
        let facts = Facts { created: self.created, count: self.count.into(), lease };
        KeyState { version: self.version, facts }
    }

    /// Gives the next version of the key the place of the value that there was, if any.
    fn take_over(&mut self, before: Entry, value: &[u8]) {
        let Some(mut place) = before.value.filter(|_| value.len() <= VALUE_BYTES_MAX) else {
            return;
        };
        match place.len() == value.len() {
            true => place.copy_from_slice(value),
            false => place = value.into(),
        }
        self.value = Some(place);
    }

    fn memory_bytes(&self) -> usize {
        ENTRY_BYTES + self.value.as_ref().map_or(0, |value| value.len())
    }
}

/// What a sweep takes, one after the other, until there is room.
#[derive(Clone, Copy)]
enum Sweep {
    /// Values that nobody has looked for.
    UnusedValues,
    /// All of what nobody has looked for.
    Unused,
    Values,
    Everything,
}

impl Shard {
    /// Replaces what is known of a key by its version of a batch, or by nothing.
    fn write(
        &mut self,
        Fingerprint { first, second }: Fingerprint,
        version: Timestamp,
        written: Option<(KeyState, &[u8])>,
    ) {
        let entry = written.and_then(|(state, _)| Entry::new(second, state));
        match self.entries.entry(first) {
            hash_map::Entry::Occupied(mut known) if known.get().second == second => {
                // What was before the newest version goes, which nobody sees.
                if version < known.get().version {
                    return;
                }
                self.bytes -= known.get().memory_bytes();
                match (entry, written) {
                    (Some(mut entry), Some((_, value))) => {
                        entry.is_used = true;
                        let before = known.insert(entry);
                        let entry = known.get_mut();
                        entry.take_over(before, value);
                        self.bytes += entry.memory_bytes();
                    }
                    _ => drop(known.remove()),
                }
            }
            _ => {
                if let Some(entry) = entry {
                    self.insert(first, entry);
                }
            }
        }
    }

    fn insert(&mut self, first: u64, entry: Entry) {
        self.bytes += entry.memory_bytes();
        if let Some(before) = self.entries.insert(first, entry) {
            self.bytes -= before.memory_bytes();
        }
    }

    /// Makes some room for more, if there are more than `bytes_max`. Facts stay longer than values:
    /// they are smaller, and save a write as much as a value saves a read.
    fn sweep(&mut self, bytes_max: usize) {
        if self.bytes <= bytes_max {
            return;
        }
        let most = bytes_max / 8 * 7;
        for sweep in [Sweep::UnusedValues, Sweep::Unused, Sweep::Values, Sweep::Everything] {
            let bytes = &mut self.bytes;
            self.entries.retain(|_, entry| {
                if *bytes <= most {
                    return true;
                }
                *bytes -= entry.memory_bytes();
                let stays = match sweep {
                    Sweep::UnusedValues => {
                        entry.value = entry.value.take().filter(|_| entry.is_used);
                        true
                    }
                    Sweep::Unused => std::mem::take(&mut entry.is_used),
                    Sweep::Values => {
                        entry.value = None;
                        true
                    }
                    Sweep::Everything => false,
                };
                *bytes += if stays { entry.memory_bytes() } else { 0 };
                stays
            });
        }
    }
}

impl Held {
    fn shard(&mut self, first: u64) -> &mut Shard {
        // Other bits than those by which the shard's own table places it.
        &mut self.shards[(first >> 32) as usize % SHARDS]
    }

    /// What is known of a key, also of the batch that is being written.
    fn find(&mut self, Fingerprint { first, second }: Fingerprint) -> Option<&mut Entry> {
        let entry = self.shard(first).entries.get_mut(&first)?;
        (entry.second == second).then_some(entry)
    }

    /// Changes the shard of a key, which may have too much then.
    fn change(&mut self, first: u64, change: impl FnOnce(&mut Shard)) {
        let bytes_max = self.bytes_max / SHARDS;
        let shard = self.shard(first);
        change(shard);
        shard.sweep(bytes_max);
    }

    /// Takes everything out, to be dropped without the lock.
    fn take_all(&mut self) -> Vec<Shard> {
        std::mem::replace(&mut self.shards, shards())
    }
}

fn shards() -> Vec<Shard> {
    std::iter::repeat_with(Shard::default).take(SHARDS).collect()
}

impl Default for NewestVersions {
    fn default() -> NewestVersions {
        let (generation, told_up_to) = (0, Timestamp(i64::MIN));
        let held = Held { shards: shards(), bytes_max: BYTES_MAX, generation, told_up_to };
        NewestVersions { held: Mutex::new(held), hashes: [RandomState::new(), RandomState::new()] }
    }
}

impl NewestVersions {
    /// Replaces the most bytes that are kept.
    #[cfg(any(test, feature = "internals"))]
    pub fn set_bytes_max(&self, bytes_max: usize) {
        let mut held = self.held();
        held.bytes_max = bytes_max;
        drop(held.take_all());
    }

    /// The newest version of a key, if it is known and has at most so many bytes. Never waits.
    pub fn get(&self, key: &[u8], value_bytes_max: usize) -> Newest {
        let fingerprint = self.fingerprint(key);
        let Ok(mut held) = self.held.try_lock() else { return Newest::Unknown(None) };
        let (generation, told_up_to) = (held.generation, held.told_up_to);
        if let Some(entry) = held.find(fingerprint) {
            entry.is_used = true;
            if let Some(value) = &entry.value {
                if value.len() > value_bytes_max || entry.version > told_up_to {
                    return Newest::Unknown(None);
                }
                return Newest::Known(shown_version(entry.state(), Bytes::copy_from_slice(value)));
            }
        }
        Newest::Unknown(generation.is_multiple_of(2).then_some(Permit { generation }))
    }

    /// The newest version of a key as of the last batch that was finished, for the thread that
    /// makes the next one; `None` if it is not known.
    pub fn state(&self, key: &[u8]) -> Option<KeyState> {
        let fingerprint = self.fingerprint(key);
        let mut held = self.held();
        held.find(fingerprint).map(|entry| entry.state())
    }

    /// Adds what a view shows that was taken since there was the permit. Never waits.
    pub fn add(&self, permit: Permit, key: &[u8], version: &Version) {
        let Version { timestamp, value, facts } = version;
        let Some(facts) = facts.filter(|_| value.len() <= VALUE_BYTES_MAX) else { return };
        let Fingerprint { first, second } = self.fingerprint(key);
        let state = KeyState { version: *timestamp, facts };
        let Some(mut entry) = Entry::new(second, state) else { return };
        entry.value = Some(value[..].into());
        if let Ok(mut held) = self.held.try_lock()
            && held.generation == permit.generation
        {
            // Read from the store before the first batch, it may be the latest.
            held.told_up_to = held.told_up_to.max(*timestamp);
            held.change(first, |shard| shard.insert(first, entry));
        }
    }

    /// Replaces what a batch changes, which is about to be written, or takes everything out.
    pub fn begin(&self, batch: &WriteBatch, everything: bool) -> Begun {
        let mut held = self.held();
        assert!(held.generation.is_multiple_of(2), "two batches at once");
        held.generation += 1;
        let mut last = held.told_up_to;
        if everything {
            let all = held.take_all();
            drop(held);
            drop(all);
            return Begun { last };
        }
        if held.bytes_max == 0 {
            return Begun { last };
        }
        drop(held);
        let versions = keys::all_versions();
        let mut rows = batch.range(&versions).peekable();
        let (mut key, mut of_last) = (Vec::new(), &[][..]);
        while rows.peek().is_some() {
            let mut held = self.held();
            for (row, stored) in rows.by_ref().take(ROWS_PER_LOCK) {
                batch.step();
                // The newest of a key comes first, and decides.
                let of_row = keys::version_prefix(row);
                if std::mem::replace(&mut of_last, of_row) == of_row {
                    continue;
                }
                let Ok(version) = keys::decode_version_to(row, &mut key) else { continue };
                let written = stored.and_then(|stored| written(stored, version));
                let fingerprint = self.fingerprint(&key);
                last = last.max(version);
                held.change(fingerprint.first, |shard| {
                    shard.write(fingerprint, version, written);
                });
            }
        }
        Begun { last }
    }

    /// The batch, or whatever was to come, is visible. It is not called if that has failed: then
    /// nothing of it is ever told, and nothing is added any more.
    pub fn finish(&self, Begun { last }: Begun) {
        let mut held = self.held();
        held.told_up_to = last;
        held.generation += 1;
    }

    fn fingerprint(&self, key: &[u8]) -> Fingerprint {
        let [first, second] = &self.hashes;
        Fingerprint { first: first.hash_one(key), second: second.hash_one(key) }
    }

    /// No method leaves it inconsistent where it can panic, so a poisoned lock is ignored.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a row says of its version, unless it is a tombstone's.
fn written(stored: &[u8], version: Timestamp) -> Option<(KeyState, &[u8])> {
    match StoredVersion::decode(stored, version) {
        Ok(StoredVersion::Value { facts, value }) => Some((KeyState { version, facts }, value)),
        Ok(StoredVersion::Tombstone { .. }) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(timestamp: i64, value: &[u8]) -> Version {
        let timestamp = Timestamp(timestamp);
        let facts = Some(Facts::following(None, timestamp));
        Version { timestamp, value: Bytes::copy_from_slice(value), facts }
    }

    /// A value that came into being with its version.
    fn new(timestamp: i64, value: &[u8]) -> StoredVersion<'_> {
        StoredVersion::Value { facts: Facts::following(None, Timestamp(timestamp)), value }
    }

    fn state(timestamp: i64) -> KeyState {
        let version = Timestamp(timestamp);
        KeyState { version, facts: Facts::following(None, version) }
    }

    fn known(versions: &NewestVersions, key: &[u8]) -> Option<Version> {
        match versions.get(key, usize::MAX) {
            Newest::Known(version) => Some(version),
            Newest::Unknown(_) => None,
        }
    }

    fn permit(versions: &NewestVersions) -> Option<Permit> {
        match versions.get(b"nobody has this key", usize::MAX) {
            Newest::Known(version) => panic!("{version:?}"),
            Newest::Unknown(permit) => permit,
        }
    }

    fn add(versions: &NewestVersions, key: &[u8], version: &Version) {
        versions.add(permit(versions).unwrap(), key, version);
    }

    fn batch(rows: &[(&[u8], i64, Option<StoredVersion<'_>>)]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, timestamp, stored) in rows {
            let row = keys::version(key, Timestamp(*timestamp));
            match stored {
                Some(stored) => batch.put(row, stored.encode(Timestamp(*timestamp))),
                None => batch.delete(row),
            }
        }
        batch
    }

    #[test]
    fn what_a_batch_changes_is_unknown_until_it_is_visible() {
        let versions = NewestVersions::default();
        for key in [&b"put"[..], b"del", b"gone", b"swept", b"other"] {
            add(&versions, key, &version(5, b"old"));
        }
        let batch = batch(&[
            (b"put", 7, Some(new(7, b"new"))),
            (b"put", 6, Some(new(6, b"between"))),
            (b"del", 7, Some(StoredVersion::Tombstone { keeps_history: true })),
            (b"gone", 5, None),
            (b"swept", 4, None),
            (b"never read", 7, Some(new(7, b"new"))),
            (b"never read", 6, Some(new(6, b"between"))),
            (b"deleted", 7, Some(StoredVersion::Tombstone { keeps_history: true })),
            (b"deleted", 6, Some(new(6, b"between"))),
            (b"never there", 7, None),
        ]);
        let begun = versions.begin(&batch, false);
        for key in [&b"put"[..], b"del", b"gone"] {
            assert_eq!(known(&versions, key), None);
        }
        let old = Some(version(5, b"old"));
        assert_eq!(known(&versions, b"swept"), old, "its newest version stays");
        assert_eq!(known(&versions, b"other"), old);
        assert!(permit(&versions).is_none(), "a view may be of before or after");
        versions.finish(begun);
        assert_eq!(known(&versions, b"put"), Some(version(7, b"new")));
        assert_eq!(known(&versions, b"never read"), None, "nobody has asked for its value");
        for key in [&b"put"[..], b"never read"] {
            assert_eq!(versions.state(key), Some(state(7)));
        }
        for key in [&b"del"[..], b"gone", b"deleted", b"never there"] {
            assert_eq!(known(&versions, key), None);
            assert_eq!(versions.state(key), None);
        }
        assert_eq!(known(&versions, b"other"), old);
    }

    #[test]
    fn what_was_read_before_a_batch_is_not_added_after_it() {
        let versions = NewestVersions::default();
        let nothing = WriteBatch::default();
        for ends in [false, true] {
            let permit = permit(&versions).unwrap();
            let begun = versions.begin(&nothing, false);
            if ends {
                versions.finish(begun);
                versions.add(permit, b"k", &version(1, b"old"));
                assert_eq!(known(&versions, b"k"), None);
            } else {
                versions.add(permit, b"k", &version(1, b"old"));
                assert_eq!(known(&versions, b"k"), None);
                versions.finish(begun);
            }
        }
        add(&versions, b"k", &version(1, b"v"));
        let begun = versions.begin(&nothing, true);
        assert_eq!(known(&versions, b"k"), None);
        versions.finish(begun);
        assert_eq!(known(&versions, b"k"), None, "everything is to be read again");
    }

    #[test]
    fn a_long_value_is_not_kept_and_a_longer_one_than_asked_for_not_given() {
        let versions = NewestVersions::default();
        add(&versions, b"long", &version(1, &[0; VALUE_BYTES_MAX + 1]));
        assert_eq!(known(&versions, b"long"), None);
        add(&versions, b"k", &version(1, &[0; VALUE_BYTES_MAX]));
        assert!(matches!(versions.get(b"k", VALUE_BYTES_MAX - 1), Newest::Unknown(None)));
        assert!(matches!(versions.get(b"k", VALUE_BYTES_MAX), Newest::Known(_)));
        let long = vec![1; VALUE_BYTES_MAX + 1];
        let long = batch(&[(b"k", 2, Some(new(2, &long)))]);
        versions.finish(versions.begin(&long, false));
        assert_eq!(known(&versions, b"k"), None);
        assert_eq!(versions.state(b"k"), Some(state(2)));
        for value in [&b"short"[..], b"other", b"a longer one"] {
            add(&versions, b"k", &version(3, b"v"));
            let next = batch(&[(b"k", 4, Some(new(4, value)))]);
            versions.finish(versions.begin(&next, false));
            assert_eq!(known(&versions, b"k"), Some(version(4, value)));
        }
    }

    #[test]
    fn all_facts_of_a_key_are_kept() {
        let versions = NewestVersions::default();
        for (count, lease) in [(1, None), (2, Some(LeaseId(u64::MAX))), (u32::MAX.into(), None)] {
            let facts = Facts { created: Timestamp(3), count, lease };
            let written = StoredVersion::Value { facts, value: b"v" };
            versions.finish(versions.begin(&batch(&[(b"k", 9, Some(written))]), false));
            let expected = KeyState { version: Timestamp(9), facts };
            assert_eq!(versions.state(b"k"), Some(expected));
        }
        let facts = Facts { created: Timestamp(3), count: 1 << 32, lease: None };
        let written = StoredVersion::Value { facts, value: b"v" };
        versions.finish(versions.begin(&batch(&[(b"k", 9, Some(written))]), false));
        assert_eq!(versions.state(b"k"), None, "it is to be read");
    }

    #[test]
    fn what_is_read_stays_and_the_bytes_stay_within_their_bound() {
        let versions = NewestVersions::default();
        let bytes_max = 64 * 1024;
        versions.set_bytes_max(bytes_max);
        let hot: Vec<[u8; 4]> = (0..32u32).map(u32::to_be_bytes).collect();
        let value = [7; 100];
        for key in 0..5_000u32 {
            for hot in &hot {
                if known(&versions, hot).is_none() {
                    add(&versions, hot, &version(1, &value));
                }
            }
            add(&versions, &(1_000 + key).to_be_bytes(), &version(2, &value));
            let held = versions.held();
            let bytes: usize = held.shards.iter().map(|shard| shard.bytes).sum();
            assert!(bytes <= bytes_max, "{bytes}");
        }
        let entries = versions.held().shards.iter().map(|shard| shard.entries.len()).sum::<usize>();
        assert!(entries > bytes_max / (ENTRY_BYTES + 100) / 2, "{entries}");
        let stayed = hot.iter().filter(|key| known(&versions, *key).is_some()).count();
        assert!(stayed > hot.len() / 2, "{stayed}");
        versions.set_bytes_max(0);
        add(&versions, b"k", &version(1, b"v"));
        versions.finish(versions.begin(&batch(&[(b"k", 2, Some(new(2, b"v")))]), false));
        assert_eq!(known(&versions, b"k"), None);
        assert_eq!(versions.state(b"k"), None);
    }

    /// What was written and not read takes no place from values that are read, and facts stay when
    /// values go.
    #[test]
    fn facts_stay_longer_than_values() {
        let versions = NewestVersions::default();
        let keys: Vec<[u8; 4]> = (0..1_000u32).map(u32::to_be_bytes).collect();
        versions.set_bytes_max(SHARDS * 60 * ENTRY_BYTES);
        for key in &keys {
            add(&versions, key, &version(1, &[7; 1_000]));
        }
        let with_value = keys.iter().filter(|key| known(&versions, *key).is_some()).count();
        let with_facts = keys.iter().filter(|key| versions.state(*key).is_some()).count();
        assert!((1..500).contains(&with_value), "{with_value}");
        assert_eq!(with_facts, keys.len());
    }
}
