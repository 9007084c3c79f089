//! Leases in the store: which there are, and which keys go with each.
//!
//! Two kinds of rows record them, and the state's hash covers both:
//!
//! - one *by lease*, with what [`LeaseState`] says and the number of the rows of the other kind;
//! - one *by lease and key* for each key that was put with the lease. Rule: there is one for every
//!   key whose newest version names the lease in its facts. There may be more, of keys that went
//!   with a long range, which nobody looks through; so the facts decide, and the rows only
//!   find. Such a row goes when garbage collection deletes the version that named the lease.
//!
//! All keys of a lease go at once, so what they may take is bounded: a long key counts as several
//! ([`weight`]).
//!
//! When a lease ends, all its keys get a tombstone at the version of the entry that ended it, which
//! keeps their history, and its rows go, in one version.
//!
//! It leaves out when a lease ends, which the leader decides (`node::leases`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::changes::Changes;
use super::keys::{self, RowRange};
use super::removals;
use super::rows::Rows;
use super::versions::{PageLimits, Reader, shown_version};
use crate::model::{LeaseId, LeaseName, LeaseState, Row, StateLimits, Timestamp};

/// Bytes of a key that count as one of the keys that a lease may have. When a lease ends, each key
/// is in memory three times before it is in the store's: in the row that is deleted, in that of the
/// tombstone, and in that of the change. So [`LEASE_KEYS_MAX`](crate::limits::LEASE_KEYS_MAX) of
/// them take some 25 MiB. It is a part of what entries mean, like [`StateLimits`].
const BYTES_PER_KEY: usize = 512;

/// What a key counts for among the keys of a lease.
fn weight(key: &[u8]) -> u32 {
    // A key has 1 byte to 4 KiB.
    key.len().div_ceil(BYTES_PER_KEY).max(1) as u32
}

const DAMAGED: ApplyError = ApplyError::Damaged("a lease");
const DAMAGED_KEYS: ApplyError = ApplyError::Damaged("the keys of a lease");

/// A lease as its row holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredLease {
    pub state: LeaseState,
    /// The sum of the weights of its rows by key.
    pub keys: u32,
}

impl StoredLease {
    /// `granted i64 | ttl_ms u64 | rest_ms u64 | keys u32`, little-endian.
    pub fn encode(&self) -> Bytes {
        let LeaseState { name, ttl_ms, rest_ms } = self.state;
        let mut out = Vec::with_capacity(28);
        out.put_i64_le(name.granted.0);
        out.put_u64_le(ttl_ms);
        out.put_u64_le(rest_ms);
        out.put_u32_le(self.keys);
        out.into()
    }

    pub fn decode(id: LeaseId, mut value: &[u8]) -> Option<StoredLease> {
        let granted = Timestamp(value.try_get_i64_le().ok()?);
        let ttl_ms = value.try_get_u64_le().ok()?;
        let rest_ms = value.try_get_u64_le().ok()?;
        let keys = value.try_get_u32_le().ok()?;
        let name = LeaseName { id, granted };
        let stored = StoredLease { state: LeaseState { name, ttl_ms, rest_ms }, keys };
        (value.is_empty() && rest_ms <= ttl_ms).then_some(stored)
    }
}

/// The leases that a batch has changed, whose own rows are written when the batch is whole: a
/// hundred thousand keys that are put with one lease change its row once.
#[derive(Debug, Default)]
pub(super) struct ChangedLeases {
    by_id: BTreeMap<LeaseId, ChangedLease>,
}

/// What an id stands for.
#[derive(Debug)]
struct ChangedLease {
    /// In the rows, as long as the batch is not whole.
    before: Option<StoredLease>,
    now: Option<StoredLease>,
}

/// The lease of an id, if there is one.
pub(super) fn find(changes: &Changes<'_>, id: LeaseId) -> Result<Option<StoredLease>, ApplyError> {
    match changes.leases.by_id.get(&id) {
        Some(changed) => Ok(changed.now),
        None => stored(changes, id),
    }
}

/// The lease that an id has in the rows.
fn stored(changes: &Changes<'_>, id: LeaseId) -> Result<Option<StoredLease>, ApplyError> {
    let Some(value) = changes.rows().get(&keys::lease(id))? else { return Ok(None) };
    StoredLease::decode(id, &value).map(Some).ok_or(DAMAGED)
}

/// Notes what an id stands for from now on.
fn set(changes: &mut Changes<'_>, id: LeaseId, now: Option<StoredLease>) -> Result<(), ApplyError> {
    if let Some(changed) = changes.leases.by_id.get_mut(&id) {
        changed.now = now;
        return Ok(());
    }
    let before = stored(changes, id)?;
    changes.leases.by_id.insert(id, ChangedLease { before, now });
    Ok(())
}

/// Writes the rows of the leases that the batch has changed, which is whole.
pub(super) fn write_changed(changes: &mut Changes<'_>) {
    for (id, ChangedLease { before, now }) in std::mem::take(&mut changes.leases.by_id) {
        if before == now {
            continue;
        }
        if let Some(before) = before {
            changes.delete(keys::lease(id), &before.encode());
        }
        if let Some(now) = now {
            changes.put(keys::lease(id), now.encode());
        }
    }
}

/// All leases, by their ids.
pub(super) fn read_all(rows: &dyn Rows) -> Result<Vec<LeaseState>, ApplyError> {
    let mut found = Ok(Vec::new());
    rows.visit(&keys::leases(), &mut |row, value| {
        let stored = keys::decode_lease(row).ok().and_then(|id| StoredLease::decode(id, value));
        match (stored, &mut found) {
            (Some(stored), Ok(found)) => {
                found.push(stored.state);
                ControlFlow::Continue(())
            }
            _ => {
                found = Err(DAMAGED);
                ControlFlow::Break(())
            }
        }
    })?;
    found
}

/// Adds a lease of an id that no lease has.
pub(super) fn add(changes: &mut Changes<'_>, state: LeaseState) -> Result<(), ApplyError> {
    set(changes, state.name.id, Some(StoredLease { state, keys: 0 }))
}

/// Notes how long a lease has left; the lease as it is then. `None` if it has ended.
pub(super) fn note_rest(
    changes: &mut Changes<'_>,
    name: LeaseName,
    rest_ms: u64,
) -> Result<Option<LeaseState>, ApplyError> {
    let Some(lease) = find(changes, name.id)?.filter(|lease| lease.state.name == name) else {
        return Ok(None);
    };
    let state = LeaseState { rest_ms: rest_ms.min(lease.state.ttl_ms), ..lease.state };
    set(changes, name.id, Some(StoredLease { state, ..lease }))?;
    Ok(Some(state))
}

/// Whether keys can be put with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseRoom {
    Enough,
    /// There is no such lease.
    NoLease,
    /// The lease would have more keys than it may have, or longer ones.
    Full,
}

/// Whether all these keys, which differ, can be put with a lease.
pub(super) fn room_for<'k>(
    changes: &Changes<'_>,
    id: LeaseId,
    keys: impl IntoIterator<Item = &'k [u8]>,
    limits: &StateLimits,
) -> Result<LeaseRoom, ApplyError> {
    let Some(lease) = find(changes, id)? else { return Ok(LeaseRoom::NoLease) };
    let rows = changes.rows();
    let mut count = lease.keys;
    for key in keys {
        if rows.get(&keys::lease_key(id, key))?.is_none() {
            count = count.saturating_add(weight(key));
        }
    }
    Ok(if count <= limits.lease_keys_max { LeaseRoom::Enough } else { LeaseRoom::Full })
}

/// Notes that the newest version of a key names the lease, which has room for it.
pub(super) fn attach(changes: &mut Changes<'_>, id: LeaseId, key: &[u8]) -> Result<(), ApplyError> {
    let row = keys::lease_key(id, key);
    if changes.rows().get(&row)?.is_some() {
        return Ok(());
    }
    let Some(lease) = find(changes, id)? else {
        panic!("a key is put with lease {id}, which was not looked for");
    };
    changes.put(row, Bytes::new());
    set(changes, id, Some(StoredLease { keys: lease.keys + weight(key), ..lease }))
}

/// Notes that the newest version of a key, which named the lease, is followed by one that does not.
pub(super) fn detach(changes: &mut Changes<'_>, id: LeaseId, key: &[u8]) -> Result<(), ApplyError> {
    // A key that names a lease which has ended went with it.
    let lease = find(changes, id)?.ok_or(DAMAGED)?;
    let row = keys::lease_key(id, key);
    if changes.rows().get(&row)?.is_none() {
        return Err(DAMAGED);
    }
    let keys = lease.keys.checked_sub(weight(key)).ok_or(DAMAGED)?;
    changes.delete(row, b"");
    set(changes, id, Some(StoredLease { keys, ..lease }))
}

/// Notes that a version of a key which named the lease is gone for good. If it went with a long
/// range, nobody has told the lease yet.
pub(super) fn version_gone(
    changes: &mut Changes<'_>,
    id: LeaseId,
    key: &[u8],
) -> Result<(), ApplyError> {
    if changes.rows().get(&keys::lease_key(id, key))?.is_none() {
        return Ok(());
    }
    let newest = Reader::newest(&changes.rows(), changes.ranges()).state(key)?;
    match newest.is_some_and(|newest| newest.facts.lease == Some(id)) {
        true => Ok(()),
        false => detach(changes, id, key),
    }
}

/// A page of the keys of a lease, from `from` on, as the reader shows them; and where the next one
/// begins. A key whose version there does not name the lease is left out.
pub(super) fn page(
    reader: &Reader<'_>,
    rows: &dyn Rows,
    id: LeaseId,
    from: &[u8],
    limits: PageLimits,
) -> Result<(Vec<Row>, Option<Bytes>), ApplyError> {
    let range = RowRange { start: keys::lease_key(id, from), end: keys::lease_keys(id).end };
    let most = limits.rows.max(1);
    let mut found = Vec::new();
    rows.visit(&range, &mut |row, _| {
        found.push(Bytes::copy_from_slice(row));
        if found.len() <= most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let (mut shown, mut bytes) = (Vec::new(), 0);
    for (count, row) in found.iter().enumerate() {
        let (_, key) = keys::decode_lease_key(row).map_err(|_| DAMAGED)?;
        let mut is_full = count == most;
        let version = reader.get_with(key, |value| {
            if value.facts.lease != Some(id) {
                return Ok(None);
            }
            bytes += key.len() + limits.shown_bytes(value);
            is_full |= bytes > limits.bytes && !shown.is_empty();
            if is_full { Ok(None) } else { limits.shown(value).map(Some) }
        })?;
        if is_full {
            return Ok((shown, Some(Bytes::copy_from_slice(key))));
        }
        if let Some((state, Some(value))) = version {
            let found = Some(shown_version(state, value));
            shown.push(Row { key: Bytes::copy_from_slice(key), found });
        }
    }
    Ok((shown, None))
}

/// Ends a lease: deletes its keys, of which none may have a version of `now`, and its rows.
pub(super) fn end(
    changes: &mut Changes<'_>,
    now: Timestamp,
    lease: &StoredLease,
) -> Result<(), ApplyError> {
    let id = lease.state.name.id;
    let mut found: Vec<Bytes> = Vec::new();
    changes.rows().visit(&keys::lease_keys(id), &mut |row, _| {
        found.push(Bytes::copy_from_slice(row));
        ControlFlow::Continue(())
    })?;
    let mut left = lease.keys;
    for row in found {
        let (_, key) = keys::decode_lease_key(&row).map_err(|_| DAMAGED)?;
        left = left.checked_sub(weight(key)).ok_or(DAMAGED_KEYS)?;
        let newest = Reader::newest(&changes.rows(), changes.ranges()).state(key)?;
        // One that went with a long range may have come back without the lease.
        if newest.is_some_and(|newest| newest.facts.lease == Some(id)) {
            removals::delete_present(changes, now, key);
        }
        changes.delete(row, b"");
    }
    if left > 0 {
        return Err(DAMAGED_KEYS);
    }
    set(changes, id, None)
}

#[cfg(test)]
mod tests;
