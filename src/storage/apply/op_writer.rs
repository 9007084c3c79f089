//! What operations change of the store: its versions, its removals, and the history that the group
//! keeps.
//!
//! Every change of one operation bears the timestamp of its write. The rule for what a removal
//! reaches is in [`removals`]; what operations mean is theirs to say (`model::op`).

use bytes::Bytes;

use super::{ApplyError, META_RULES, StateMachine, encode_fact};
use crate::model::{
    Facts, GroupRules, History, KeyState, LeaseEvent, LeaseGrant, LeaseId, LeaseName, LeaseState,
    OpResult, Previous, RangeDeletion, ReadView, StoreChanges, Timestamp, Txn, TxnAnswer,
    TxnDecision, TxnFound, TxnFoundKeys, TxnLimits, TxnRange, TxnReads,
};
use crate::storage::changes::Changes;
use crate::storage::garbage_collection::{self, Horizon};
use crate::storage::keys;
use crate::storage::leases::{self, LeaseRoom};
use crate::storage::removals::{self, PendingRemovals};
use crate::storage::txn_reads::TxnReader;
use crate::storage::version_row::StoredVersion;
use crate::storage::versions::Reader;

/// One operation's hands in the store.
pub(super) struct OpWriter<'m, 'c, 'v> {
    machine: &'m mut StateMachine,
    changes: &'c mut Changes<'v>,
    timestamp: Timestamp,
    /// Whether it has removed something, or changed what is to be removed: what is left to do in
    /// the background is then to be read anew.
    removes: bool,
}

impl<'m, 'c, 'v> OpWriter<'m, 'c, 'v> {
    /// For the operation of the write at `timestamp`, on top of `changes`.
    pub(super) fn new(
        machine: &'m mut StateMachine,
        changes: &'c mut Changes<'v>,
        timestamp: Timestamp,
    ) -> OpWriter<'m, 'c, 'v> {
        OpWriter { machine, changes, timestamp, removes: false }
    }

    /// Whether the operation has removed something.
    pub(super) fn removes(&self) -> bool {
        self.removes
    }

    /// The newest version of a key, where `row` would be that of its version of this write.
    fn before(&self, key: &[u8], row: &Bytes) -> Result<Option<KeyState>, ApplyError> {
        let newest = self.changes.newest(key, row, &self.machine.shared.newest)?;
        // Entries are stamped in their order, so that only a damaged row can say that.
        match newest.is_none_or(|newest| newest.version < self.timestamp) {
            true => Ok(newest),
            false => Err(ApplyError::Damaged("a version from after the write that is applied")),
        }
    }
}

impl StoreChanges for OpWriter<'_, '_, '_> {
    type Error = ApplyError;

    fn newest(&self, key: &[u8]) -> Result<Option<KeyState>, ApplyError> {
        self.before(key, &keys::version(key, self.timestamp))
    }

    fn put_with(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), ApplyError> {
        let row = self.changes.version_row(self.timestamp, key);
        let before = self.before(key, &row)?.map(|before| before.facts);
        let left = before.and_then(|before| before.lease).filter(|left| lease != Some(*left));
        if let Some(left) = left {
            leases::detach(self.changes, left, key)?;
        }
        if let Some(lease) = lease {
            leases::attach(self.changes, lease, key)?;
        }
        let facts = Facts { lease, ..Facts::following(before, self.timestamp) };
        let stored = StoredVersion::Value { facts, value }.encode(self.timestamp);
        self.changes.put_version(self.timestamp, key, row, stored);
        if self.machine.history() != History::All {
            self.machine.left.history_due.get_or_insert(self.timestamp);
        }
        Ok(())
    }

    fn lease_refuses(
        &self,
        lease: LeaseId,
        keys: &[&Bytes],
    ) -> Result<Option<OpResult>, ApplyError> {
        let limits = self.machine.shared.limits();
        let keys = keys.iter().map(|key| &key[..]);
        Ok(match leases::room_for(self.changes, lease, keys, &limits)? {
            LeaseRoom::Enough => None,
            LeaseRoom::NoLease => Some(OpResult::NoLease),
            LeaseRoom::Full => Some(OpResult::LeaseFull),
        })
    }

    fn delete(&mut self, key: &Bytes, keeps_history: bool) -> Result<(), ApplyError> {
        self.removes = true;
        removals::delete(self.changes, self.timestamp, key, keeps_history)
    }

    fn delete_range(
        &mut self,
        from: &Bytes,
        to: &Bytes,
        keeps_history: bool,
    ) -> Result<RangeDeletion, ApplyError> {
        self.removes = true;
        let limits = self.machine.shared.limits();
        removals::delete_range(self.changes, self.timestamp, from, to, keeps_history, &limits)
    }

    fn trim(&mut self, key: &Bytes) -> Result<(), ApplyError> {
        self.removes = true;
        removals::trim(self.changes, self.timestamp, key)
    }

    fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    fn decide(&self, txn: &Txn) -> Result<Option<TxnDecision>, ApplyError> {
        let rows = self.changes.rows();
        let newest = TxnReader::deciding(Reader::newest(&rows, self.changes.ranges()));
        let limits = TxnLimits::of(&self.machine.shared.limits());
        txn.decide(&NewestReads { newest, writer: self }, self.timestamp, limits)
    }

    fn set_history(&mut self, history: History) -> Result<(), ApplyError> {
        self.removes = true;
        garbage_collection::change_history(self.changes, self.machine.history(), history)?;
        // The group's rules come before every write, but in tests.
        if let Some(rules) = &self.machine.rules {
            self.changes.delete(keys::meta(META_RULES), &encode_fact(rules));
        }
        let rules = GroupRules { limits: self.machine.shared.limits(), history };
        self.changes.put(keys::meta(META_RULES), encode_fact(&rules));
        self.machine.rules = Some(rules);
        Ok(())
    }

    fn compact(&mut self, version: Timestamp) -> Result<(), ApplyError> {
        self.removes = true;
        let version = version.min(self.timestamp);
        self.machine.compacted = garbage_collection::compact(self.changes, version)?;
        Ok(())
    }

    fn grant_lease(&mut self, grant: &LeaseGrant) -> Result<OpResult, ApplyError> {
        let name = LeaseName { id: grant.id_at(self.timestamp), granted: self.timestamp };
        if leases::find(self.changes, name.id)?.is_some() {
            return Ok(OpResult::LeaseExists);
        }
        if self.machine.leases >= self.machine.shared.limits().leases_max as usize {
            return Ok(OpResult::TooManyLeases);
        }
        let state = LeaseState { name, ttl_ms: grant.ttl_ms, rest_ms: grant.ttl_ms };
        leases::add(self.changes, state)?;
        self.machine.leases += 1;
        self.machine.lease_events.push(LeaseEvent::Is(state));
        Ok(OpResult::Done)
    }

    fn end_lease(&mut self, id: LeaseId, keys_max: Option<u32>) -> Result<OpResult, ApplyError> {
        let Some(lease) = leases::find(self.changes, id)? else {
            return Ok(OpResult::NoLease);
        };
        if keys_max.is_some_and(|most| lease.keys > most) {
            return Ok(OpResult::TooLong);
        }
        self.removes = true;
        leases::end(self.changes, self.timestamp, &lease)?;
        self.machine.lease_ended(lease.state.name);
        Ok(OpResult::Done)
    }
}

/// What a transaction that is applied sees.
struct NewestReads<'a, 'w, 'm, 'c, 'v> {
    newest: TxnReader<'a>,
    writer: &'w OpWriter<'m, 'c, 'v>,
}

impl TxnReads for NewestReads<'_, '_, '_, '_, '_> {
    type Error = ApplyError;

    /// Often known without the engine.
    fn state(&self, key: &[u8]) -> Result<Option<KeyState>, ApplyError> {
        self.writer.newest(key)
    }

    fn version(&self, key: &[u8], value_bytes_max: usize) -> Result<Option<TxnFound>, ApplyError> {
        self.newest.version(key, value_bytes_max)
    }

    fn keys(&self, wanted: TxnRange<'_>) -> Result<TxnFoundKeys, ApplyError> {
        self.newest.keys(wanted)
    }
}

/// What a transaction tells that was the write at `written` and took these branches: the same for
/// its retries, but that it leaves out everything when what was before may be off the disk by now.
pub(super) fn txn_answer(
    changes: &Changes<'_>,
    txn: &Txn,
    branches: u64,
    written: Timestamp,
    limits: TxnLimits,
) -> Result<TxnAnswer, ApplyError> {
    let before = ReadView::before(written);
    let rows = changes.rows();
    if Horizon::read(&rows)?.is_past(before, false) {
        return Ok(TxnAnswer::without_results(branches));
    }
    let pending = PendingRemovals { keys: true, ranges: changes.ranges().clone() };
    let reader = TxnReader::telling(Reader::new(&rows, before, pending));
    txn.answer(branches, &reader, written, limits)
}

/// What a key had just before the write at `written`, which is applied: the same for its retries.
/// Without the value when it is too long to be sent unasked; `None` when it may be off the disk by
/// now.
pub(super) fn previous(
    changes: &Changes<'_>,
    key: &[u8],
    written: Timestamp,
) -> Result<Option<Previous>, ApplyError> {
    let before = ReadView::before(written);
    let rows = changes.rows();
    if Horizon::read(&rows)?.is_past(before, false) {
        return Ok(None);
    }
    let pending = PendingRemovals { keys: true, ranges: changes.ranges().clone() };
    let found = Reader::new(&rows, before, pending).get_with(key, |value| {
        let is_small = value.bytes() <= crate::limits::READ_SMALL_BYTES_MAX;
        is_small.then(|| value.read()).transpose()
    })?;
    let Some((KeyState { version: timestamp, facts }, value)) = found else {
        return Ok(Some(Previous::Absent));
    };
    if timestamp > before.at {
        return Err(ApplyError::Damaged("a version"));
    }
    Ok(Some(Previous::Value { timestamp, facts, value }))
}
