//! The newest versions of keys, kept in memory for those who read them.
//!
//! Nearly every read asks for the newest version of a key. The engine looks in memory tables, in
//! filters and in blocks for it; here it is one look-up. So does every write, for the facts of its
//! key. What a read has found is kept, and what a write has made.
//!
//! Rule: what is told here of a key is what a read of the newest state finds, at any moment. So
//! what a batch changes is replaced before the engine writes it ([`NewestVersions::begin`]), and
//! not told until the batch is visible ([`NewestVersions::finish`]): the versions of a batch are
//! later than all others. A reader adds what it has found only if no batch was under way from
//! before its view was taken until now ([`Permit`]).
//!
//! Left out: keys without a value, versions in the past, and values that are so long that looking
//! for them is not what they cost.

use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::engine::WriteBatch;
use super::keys;
use super::version_row::{RowPrefix, StoredVersion};
use super::versions::shown_version;
use crate::model::{KeyState, Timestamp, Version};

/// As much as a hundred thousand keys with values of 100 bytes take.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longer values are not kept: reading them costs more than looking for them.
const VALUE_BYTES_MAX: usize = 1024;
/// Parts that grow and are swept by themselves, so that neither takes longer than some hundred
/// microseconds.
const SHARDS: usize = 64;
/// What an entry takes besides its bytes, about: its place in a table that is three quarters full.
const ENTRY_BYTES: usize = 40;
/// Rows of a batch that are handled before the lock is given back for a moment: readers do not
/// wait for it, and would find nothing here meanwhile.
const ROWS_PER_LOCK: usize = 128;
const TIMESTAMP_BYTES: usize = 8;

/// Newest versions, for readers on any thread and one writer.
pub(super) struct NewestVersions {
    held: Mutex<Held>,
    /// Clients choose the keys.
    hashes: RandomState,
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
    /// By the hash of the key. Of two keys with the same hash the later one stays.
    entries: HashMap<u64, Entry, BuildHasherDefault<HashOfKey>>,
    bytes: usize,
}

/// The newest version of a key, in one allocation: its timestamp, the key, and its row.
struct Entry {
    bytes: Box<[u8]>,
    key_bytes: u32,
    /// Read since the shard was last swept.
    is_used: bool,
}

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

/// The hash of a key as it is.
#[derive(Default)]
struct HashOfKey(u64);

impl Hasher for HashOfKey {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Entry {
    /// The newest version of `key`: what its row holds.
    fn new(key: &[u8], timestamp: Timestamp, stored: [&[u8]; 2]) -> Option<Entry> {
        let key_bytes = u32::try_from(key.len()).ok()?;
        let [prefix, value] = stored;
        let bytes = [&timestamp.0.to_le_bytes(), key, prefix, value].concat().into_boxed_slice();
        Some(Entry { bytes, key_bytes, is_used: false })
    }

    /// Replaces the version of the same key by a later one.
    fn replace(&mut self, timestamp: Timestamp, stored: &[u8]) {
        if self.key_and_row().1.len() == stored.len() {
            let row_at = self.bytes.len() - stored.len();
            self.bytes[..TIMESTAMP_BYTES].copy_from_slice(&timestamp.0.to_le_bytes());
            self.bytes[row_at..].copy_from_slice(stored);
            return;
        }
        let (key, _) = self.key_and_row();
        let parts = [&timestamp.0.to_le_bytes(), key, stored];
        self.bytes = parts.concat().into_boxed_slice();
    }

    /// Of a version that a read has shown.
    fn of_version(key: &[u8], version: &Version) -> Option<Entry> {
        let Version { timestamp, value, facts } = version;
        let prefix = RowPrefix::new((*facts)?, *timestamp);
        let is_kept = value.len() <= VALUE_BYTES_MAX;
        is_kept.then(|| Entry::new(key, *timestamp, [prefix.bytes(), value]))?
    }

    fn memory_bytes(&self) -> usize {
        ENTRY_BYTES + self.bytes.len()
    }

    fn key_and_row(&self) -> (&[u8], &[u8]) {
        self.bytes[TIMESTAMP_BYTES..].split_at(self.key_bytes as usize)
    }

    fn is_of(&self, key: &[u8]) -> bool {
        self.key_and_row().0 == key
    }

    /// The version, and its value.
    fn version(&self) -> Option<(KeyState, &[u8])> {
        let (timestamp, (_, stored)) = (self.timestamp(), self.key_and_row());
        match StoredVersion::decode(stored, timestamp) {
            Ok(StoredVersion::Value { facts, value }) => {
                Some((KeyState { version: timestamp, facts }, value))
            }
            Ok(StoredVersion::Tombstone { .. }) | Err(_) => None,
        }
    }

    fn timestamp(&self) -> Timestamp {
        let timestamp = self.bytes.first_chunk().copied().unwrap_or_default();
        Timestamp(i64::from_le_bytes(timestamp))
    }
}

/// Whether the row of a version has a value, and one that is kept.
fn is_kept(stored: &[u8], timestamp: Timestamp) -> bool {
    match StoredVersion::decode(stored, timestamp) {
        Ok(StoredVersion::Value { value, .. }) => value.len() <= VALUE_BYTES_MAX,
        Ok(StoredVersion::Tombstone { .. }) | Err(_) => false,
    }
}

impl Shard {
    /// Replaces what is known of a key by its version of a batch, or by nothing.
    fn write(&mut self, hash: u64, key: &[u8], timestamp: Timestamp, stored: Option<&[u8]>) {
        match self.entries.entry(hash) {
            hash_map::Entry::Occupied(mut known) if known.get().is_of(key) => {
                // What was before the newest version goes, which nobody sees.
                if timestamp < known.get().timestamp() {
                    return;
                }
                self.bytes -= known.get().memory_bytes();
                match stored {
                    Some(stored) => {
                        known.get_mut().replace(timestamp, stored);
                        self.bytes += known.get().memory_bytes();
                    }
                    None => drop(known.remove()),
                }
            }
            _ => {
                let entry = stored.and_then(|stored| Entry::new(key, timestamp, [&[], stored]));
                if let Some(entry) = entry {
                    self.insert(hash, entry);
                }
            }
        }
    }

    fn insert(&mut self, hash: u64, entry: Entry) {
        self.bytes += entry.memory_bytes();
        if let Some(before) = self.entries.insert(hash, entry) {
            self.bytes -= before.memory_bytes();
        }
    }

    /// Makes some room for more, if there are more than `bytes_max`: first what nobody has read
    /// since the last time goes, and then anything.
    fn sweep(&mut self, bytes_max: usize) {
        if self.bytes <= bytes_max {
            return;
        }
        let most = bytes_max / 8 * 7;
        for _ in 0..2 {
            let bytes = &mut self.bytes;
            self.entries.retain(|_, entry| {
                if *bytes <= most || std::mem::take(&mut entry.is_used) {
                    return true;
                }
                *bytes -= entry.memory_bytes();
                false
            });
        }
    }
}

impl Held {
    fn shard(&mut self, hash: u64) -> &mut Shard {
        // Other bits than those by which the shard's own table places it.
        &mut self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// Changes the shard of a hash, which may have too much then.
    fn change(&mut self, hash: u64, change: impl FnOnce(&mut Shard)) {
        let bytes_max = self.bytes_max / SHARDS;
        let shard = self.shard(hash);
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
        NewestVersions { held: Mutex::new(held), hashes: RandomState::new() }
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
        let hash = self.hashes.hash_one(key);
        let Ok(mut held) = self.held.try_lock() else { return Newest::Unknown(None) };
        let told_up_to = held.told_up_to;
        if let Some(entry) = held.shard(hash).entries.get_mut(&hash)
            && entry.is_of(key)
            && let Some((state, value)) = entry.version()
        {
            if value.len() > value_bytes_max || state.version > told_up_to {
                return Newest::Unknown(None);
            }
            let value = Bytes::copy_from_slice(value);
            entry.is_used = true;
            return Newest::Known(shown_version(state, value));
        }
        let generation = held.generation;
        Newest::Unknown(generation.is_multiple_of(2).then_some(Permit { generation }))
    }

    /// The newest version of a key as of the last batch that was finished, for the thread that
    /// makes the next one; `None` if it is not known.
    pub fn state(&self, key: &[u8]) -> Option<KeyState> {
        let hash = self.hashes.hash_one(key);
        let mut held = self.held();
        let entry = held.shard(hash).entries.get_mut(&hash).filter(|entry| entry.is_of(key))?;
        entry.is_used = true;
        entry.version().map(|(state, _)| state)
    }

    /// Adds what a view shows that was taken since there was the permit. Never waits.
    pub fn add(&self, permit: Permit, key: &[u8], version: &Version) {
        let Some(entry) = Entry::of_version(key, version) else { return };
        let hash = self.hashes.hash_one(key);
        if let Ok(mut held) = self.held.try_lock()
            && held.generation == permit.generation
        {
            // Read from the store before the first batch, it may be the latest.
            held.told_up_to = held.told_up_to.max(version.timestamp);
            held.change(hash, |shard| shard.insert(hash, entry));
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
                let Ok(timestamp) = keys::decode_version_to(row, &mut key) else { continue };
                let hash = self.hashes.hash_one(&key[..]);
                let stored = stored.map(|stored| &stored[..]);
                let stored = stored.filter(|stored| is_kept(stored, timestamp));
                last = last.max(timestamp);
                held.change(hash, |shard| shard.write(hash, &key, timestamp, stored));
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

    /// No method leaves it inconsistent where it can panic, so a poisoned lock is ignored.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Facts;

    fn version(timestamp: i64, value: &[u8]) -> Version {
        let timestamp = Timestamp(timestamp);
        let facts = Some(Facts::following(None, timestamp));
        Version { timestamp, value: Bytes::copy_from_slice(value), facts }
    }

    /// A value that came into being with its version.
    fn new(timestamp: i64, value: &[u8]) -> StoredVersion<'_> {
        StoredVersion::Value { facts: Facts::following(None, Timestamp(timestamp)), value }
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
        for key in [&b"put"[..], b"never read"] {
            assert_eq!(known(&versions, key), Some(version(7, b"new")));
        }
        for key in [&b"del"[..], b"gone", b"deleted", b"never there"] {
            assert_eq!(known(&versions, key), None);
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
        assert!(entries > bytes_max / 152 / 2, "{entries}");
        let stayed = hot.iter().filter(|key| known(&versions, *key).is_some()).count();
        assert!(stayed > hot.len() / 2, "{stayed}");
        versions.set_bytes_max(0);
        add(&versions, b"k", &version(1, b"v"));
        versions.finish(versions.begin(&batch(&[(b"k", 2, Some(new(2, b"v")))]), false));
        assert_eq!(known(&versions, b"k"), None);
    }
}
