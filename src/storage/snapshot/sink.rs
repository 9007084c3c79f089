//! The receiving end of a snapshot: chunks into a store under construction.

use std::sync::Arc;

use bytes::Bytes;

use super::chunk;
use super::{SnapshotChunk, SnapshotError, StagingArea};
use crate::model::{AppliedPoint, FeatureLevel};
use crate::storage::apply::{self, ApplyError, MetaRow};
use crate::storage::changes::state_row_hash;
use crate::storage::engine::{Engine, EngineError, StoreBuilder};
use crate::storage::hash::{StateHash, row_hash};
use crate::storage::keys::{self, KeySpace};
use crate::storage::leases::StoredLease;
use crate::storage::sessions;
use crate::storage::version_row::StoredVersion;

/// A snapshot that is being received. One at a time; dropping it removes the store under
/// construction.
pub struct SnapshotSink {
    /// `None` once the snapshot is finished.
    staging: Option<Box<dyn StagingArea>>,
    /// `None` after a failure.
    store: Option<Box<dyn StoreBuilder>>,
    point: AppliedPoint,
    /// The newest level that this release knows.
    known: FeatureLevel,
    next_sequence: u64,
    received: Received,
}

/// The state as of the rows received so far.
#[derive(Clone, Default)]
struct Received {
    last_key: Bytes,
    has_format: bool,
    hash: StateHash,
    /// Of the change rows that the versions are to have, without those that have come.
    unmatched: StateHash,
    point: AppliedPoint,
    level: Option<FeatureLevel>,
}

/// A complete and durable snapshot beside the store. Dropping this does not remove it, because the
/// log may rely on it already.
pub struct StagedSnapshot {
    staging: Box<dyn StagingArea>,
    point: AppliedPoint,
}

impl SnapshotSink {
    /// Begins to receive the snapshot of the state at `point`, in
    /// [`DataDir::staging`](crate::storage::datadir::DataDir::staging) or another staging area.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Engine`].
    pub fn create(
        staging: impl StagingArea + 'static,
        point: AppliedPoint,
    ) -> Result<SnapshotSink, ApplyError> {
        let store = staging.begin()?;
        Ok(SnapshotSink {
            staging: Some(Box::new(staging)),
            store: Some(store),
            point,
            known: FeatureLevel::NEWEST,
            next_sequence: 0,
            received: Received::default(),
        })
    }

    /// The same sink for a release that knows another feature level.
    #[must_use]
    pub fn knowing(mut self, known: FeatureLevel) -> SnapshotSink {
        self.known = known;
        self
    }

    /// Adds the next chunk. It writes to the disk, so it must not be called on the event loop.
    ///
    /// # Errors
    ///
    /// Any [`SnapshotError`]; each says whether anything was changed.
    pub fn push(&mut self, chunk: &SnapshotChunk) -> Result<(), SnapshotError> {
        let Some(store) = &mut self.store else { return Err(SnapshotError::Stopped) };
        let sequence = chunk.sequence;
        if sequence != self.next_sequence {
            return Err(SnapshotError::OutOfSequence {
                expected: self.next_sequence,
                found: sequence,
            });
        }
        let rows =
            chunk::open(sequence, &chunk.data).ok_or(SnapshotError::Checksum { sequence })?;
        let mut received = self.received.clone();
        let mut checked = Vec::new();
        for row in rows {
            let malformed = |detail| SnapshotError::Malformed { sequence, detail };
            let (key, value) = row.ok_or(malformed("a row is cut short"))?;
            let taken = received.take(&key, &value);
            // Rows of a group at an unknown level may not be decodable, so this is reported first.
            if let Some(level) = received.level.filter(|level| level.level > self.known.level) {
                return Err(SnapshotError::UnknownLevel { level, known: self.known });
            }
            taken.map_err(malformed)?;
            checked.push((key, value));
        }
        if let Err(error) = checked.iter().try_for_each(|(key, value)| store.add(key, value)) {
            self.store = None;
            return Err(error.into());
        }
        self.received = received;
        self.next_sequence += 1;
        Ok(())
    }

    /// Checks that the rows are those of the announced state and makes them durable.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Mismatch`], [`SnapshotError::Engine`], [`SnapshotError::Stopped`]; the
    /// snapshot is then gone.
    pub fn finish(mut self) -> Result<StagedSnapshot, SnapshotError> {
        let store = self.store.take().ok_or(SnapshotError::Stopped)?;
        let point = self.point;
        let Received { last_key, has_format, hash, unmatched, point: found, .. } = &self.received;
        // Only of a blank store there is nothing to be read.
        let is_readable = *has_format || last_key.is_empty();
        let is_matched = *unmatched == StateHash::default();
        if *found != point || hash.0 != point.hash || !is_readable || !is_matched {
            return Err(SnapshotError::Mismatch { index: point.index });
        }
        store.finish()?;
        let Some(staging) = self.staging.take() else { return Err(SnapshotError::Stopped) };
        match staging.complete() {
            Ok(()) => Ok(StagedSnapshot { staging, point }),
            Err(error) => {
                staging.abandon();
                Err(error.into())
            }
        }
    }
}

impl Drop for SnapshotSink {
    fn drop(&mut self) {
        self.store = None;
        if let Some(staging) = self.staging.take() {
            staging.abandon();
        }
    }
}

fn change_hash(row: &[u8]) -> u64 {
    row_hash(b"change", &[row])
}

impl Received {
    /// Adds a row, whose key must be greater than that of the row before.
    fn take(&mut self, key: &Bytes, value: &Bytes) -> Result<(), &'static str> {
        if *key <= self.last_key {
            return Err("its rows are not in the order of their keys");
        }
        self.last_key = key.clone();
        match keys::space(key) {
            Some(KeySpace::Versions) => {
                let (key_of, at) =
                    keys::decode_version(key).map_err(|_| "a version's key cannot be read")?;
                StoredVersion::decode(value, at).map_err(|_| "a version cannot be read")?;
                self.unmatched.add(change_hash(&keys::change(at, &key_of)));
                self.hash.add(state_row_hash(key, value));
            }
            Some(KeySpace::Sessions) => {
                sessions::add_stored(&mut self.hash, key, value)
                    .ok_or("a session cannot be read")?;
            }
            Some(KeySpace::Meta) => match apply::decode_meta(key, value) {
                Some(MetaRow::Format) => self.has_format = true,
                Some(MetaRow::Applied(point)) => self.point = point,
                Some(MetaRow::Level(level)) => {
                    self.level = Some(level);
                    self.hash.add(state_row_hash(key, value));
                }
                Some(MetaRow::KnownSince(time)) => self.hash.add(sessions::known_since_hash(time)),
                Some(MetaRow::Rules | MetaRow::Compaction) => {
                    self.hash.add(state_row_hash(key, value))
                }
                Some(MetaRow::Other) => {}
                None => return Err("a fact about the store cannot be read"),
            },
            Some(KeySpace::Removals) => {
                keys::decode_removal(key).map_err(|_| "a removal's key cannot be read")?;
                self.hash.add(state_row_hash(key, value));
            }
            Some(KeySpace::Ranges) => {
                keys::decode_range(key).map_err(|_| "the removal of a range cannot be read")?;
                self.hash.add(state_row_hash(key, value));
            }
            Some(KeySpace::Queue) => {
                keys::decode_queued(key).map_err(|_| "a removal by time cannot be read")?;
                self.hash.add(state_row_hash(key, value));
            }
            Some(KeySpace::Changes) => {
                keys::decode_change(key).map_err(|_| "a change's key cannot be read")?;
                if !value.is_empty() {
                    return Err("the row of a change has a value");
                }
                self.unmatched.subtract(change_hash(key));
            }
            Some(KeySpace::Leases) => {
                let id = keys::decode_lease(key).map_err(|_| "a lease's key cannot be read")?;
                StoredLease::decode(id, value).ok_or("a lease cannot be read")?;
                self.hash.add(state_row_hash(key, value));
            }
            Some(KeySpace::LeaseKeys) => {
                keys::decode_lease_key(key).map_err(|_| "a key of a lease cannot be read")?;
                self.hash.add(state_row_hash(key, value));
            }
            None => return Err("a row is of no known kind"),
        }
        Ok(())
    }
}

impl StagedSnapshot {
    /// The state that it contains.
    pub fn point(&self) -> AppliedPoint {
        self.point
    }

    /// Removes the snapshot, which is not of use any more.
    pub fn discard(self) {
        self.staging.discard();
    }

    /// Makes the snapshot the store in use.
    pub(in crate::storage) fn promote(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.staging.promote()
    }

    /// The former store was retired: removes what is left of it, if nobody reads it any more.
    pub(in crate::storage) fn tidy(self) {
        self.staging.tidy();
    }
}
