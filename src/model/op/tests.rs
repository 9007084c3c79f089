//! Operations on a store that is a map.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::txn::TxnWrite;
use super::*;
use crate::limits;
use crate::model::Facts;

/// Leases that the store in memory takes.
const LEASES_MAX: usize = 3;

/// The newest versions, and what was asked for besides.
#[derive(Default)]
struct MapStore {
    now: i64,
    newest: BTreeMap<Bytes, (KeyState, Bytes)>,
    history: Option<History>,
    compacted: Timestamp,
    refuses_ranges: bool,
    leases: BTreeMap<LeaseId, u64>,
}

impl StoreChanges for MapStore {
    type Error = Infallible;

    fn newest(&self, key: &[u8]) -> Result<Option<KeyState>, Infallible> {
        Ok(self.newest.get(key).map(|(state, _)| *state))
    }

    fn put_with(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        _lease: Option<LeaseId>,
    ) -> Result<(), Infallible> {
        let (version, before) = (Timestamp(self.now), self.newest.get(key).map(|(state, _)| state));
        assert!(
            before.is_none_or(|before| before.version < version),
            "{key:?} was written twice at {version}"
        );
        let facts = Facts::following(before.map(|before| before.facts), version);
        self.newest.insert(key.clone(), (KeyState { version, facts }, value.clone()));
        Ok(())
    }

    fn delete(&mut self, key: &Bytes, _keeps_history: bool) -> Result<(), Infallible> {
        self.newest.remove(key);
        Ok(())
    }

    fn delete_range(
        &mut self,
        from: &Bytes,
        to: &Bytes,
        keeps_history: bool,
    ) -> Result<RangeDeletion, Infallible> {
        Ok(match (self.refuses_ranges, keeps_history) {
            (true, true) => RangeDeletion::TooLong,
            (true, false) => RangeDeletion::TooManyRanges,
            (false, _) => {
                self.newest.retain(|key, _| key < from || to < key);
                RangeDeletion::Done
            }
        })
    }

    fn trim(&mut self, _key: &Bytes) -> Result<(), Infallible> {
        Ok(())
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// Transactions have tests of their own.
    fn decide(&self, txn: &Txn) -> Result<Option<TxnDecision>, Infallible> {
        let writes = txn.then.iter().filter_map(|op| match op {
            TxnOp::Put { key, value, lease, .. } => {
                Some((key.clone(), TxnWrite::Put { value: value.clone(), lease: *lease }))
            }
            _ => None,
        });
        let (branches, writes) = (1, writes.collect());
        Ok((!self.refuses_ranges).then_some(TxnDecision { branches, writes }))
    }

    fn set_history(&mut self, history: History) -> Result<(), Infallible> {
        self.history = Some(history);
        Ok(())
    }

    fn compact(&mut self, version: Timestamp) -> Result<(), Infallible> {
        self.compacted = self.compacted.max(version.min(Timestamp(self.now)));
        Ok(())
    }

    fn lease_refuses(&self, id: LeaseId, _: &[&Bytes]) -> Result<Option<OpResult>, Infallible> {
        Ok((!self.leases.contains_key(&id)).then_some(OpResult::NoLease))
    }

    fn grant_lease(&mut self, grant: &LeaseGrant) -> Result<OpResult, Infallible> {
        let id = grant.id_at(Timestamp(self.now));
        match self.leases.len() {
            _ if self.leases.contains_key(&id) => return Ok(OpResult::LeaseExists),
            LEASES_MAX => return Ok(OpResult::TooManyLeases),
            _ => self.leases.insert(id, grant.ttl_ms),
        };
        Ok(OpResult::Done)
    }

    /// None has a key here.
    fn end_lease(&mut self, id: LeaseId, _keys_max: Option<u32>) -> Result<OpResult, Infallible> {
        Ok(match self.leases.remove(&id) {
            Some(_) => OpResult::Done,
            None => OpResult::NoLease,
        })
    }
}

impl MapStore {
    fn apply(&mut self, op: impl Into<WriteOp>) -> OpApplied {
        self.now += 10;
        let Ok(applied) = op.into().apply(self);
        applied
    }

    fn shown(&self) -> String {
        let show = |(key, (state, value)): (&Bytes, &(KeyState, Bytes))| {
            let [key, value] =
                [key, value].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            format!("{key}={value}@{}", state.version)
        };
        self.newest.iter().map(show).collect::<Vec<_>>().join(" ")
    }
}

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn put(name: &'static str, value: &'static str) -> Put {
    Put { key: key(name), value: key(value), tells_previous: false }
}

/// One of each, with whatever it may tell and without.
fn all() -> Vec<WriteOp> {
    let mut all = vec![
        PutAll { pairs: vec![(key("a"), key("1")), (key("b"), key("2")), (key("a"), key("3"))] }
            .into(),
        DelAll { keys: vec![key("a"), key("a"), key("none")], keeps_history: false }.into(),
        DelRange { from: key("a"), to: key("b"), keeps_history: false }.into(),
        Barrier {}.into(),
        SetHistory { history: History::Versions { count: 2 } }.into(),
        LeaseGrant { id: None, ttl_ms: 1_000 }.into(),
        LeaseRevoke { id: LeaseId(7), keys_max: Some(3) }.into(),
        Compact { version: Timestamp(7) }.into(),
    ];
    for tells_previous in [false, true] {
        all.push(Put { tells_previous, ..put("a", "4") }.into());
        all.push(Del { key: key("a"), tells_previous, keeps_history: false }.into());
        all.push(Trim { key: key("a"), tells_previous }.into());
    }
    for condition in [Condition::Absent, Condition::Version(Timestamp(10))] {
        all.push(PutIf { key: key("a"), value: key("5"), condition }.into());
    }
    all
}

#[test]
fn what_is_known_at_commit_is_what_applying_comes_to() {
    for op in all() {
        for filled in [false, true] {
            let mut store = MapStore { refuses_ranges: filled, ..MapStore::default() };
            if filled {
                store.apply(put("a", "0"));
            }
            let known = op.known_at_commit();
            let applied = store.apply(op.clone());
            if let Some(result) = known {
                assert_eq!(applied, OpApplied::Result(result), "{op:?}");
                assert_eq!(op.tells_before(result), None, "{op:?} tells what only the store knows");
            }
        }
    }
}

#[test]
fn operations_change_what_they_name() {
    let mut store = MapStore::default();
    for (op, then) in [
        (put("a", "1").into(), "a=1@10"),
        (all()[0].clone(), "a=3@20 b=2@20"),
        (Del { key: key("b"), tells_previous: true, keeps_history: false }.into(), "a=3@20"),
        (put("b", "").into(), "a=3@20 b=@40"),
        (Barrier {}.into(), "a=3@20 b=@40"),
        (DelAll { keys: vec![key("b"), key("c")], keeps_history: false }.into(), "a=3@20"),
        (put("c", "5").into(), "a=3@20 c=5@70"),
        (DelRange { from: key("b"), to: key("d"), keeps_history: false }.into(), "a=3@20"),
    ] as [(WriteOp, &str); 8]
    {
        assert_eq!(store.apply(op.clone()), OpApplied::Result(OpResult::Done));
        assert_eq!(store.shown(), then, "after {op:?}");
    }
    store.refuses_ranges = true;
    assert_eq!(
        store.apply(DelRange { from: key("a"), to: key("b"), keeps_history: false }),
        OpApplied::Refused
    );
    assert_eq!(store.shown(), "a=3@20", "nothing was done");
    let keeping = DelRange { from: key("a"), to: key("b"), keeps_history: true };
    assert_eq!(store.apply(keeping.clone()), OpApplied::Result(OpResult::TooLong));
    assert_eq!(store.shown(), "a=3@20", "nothing was done");
    let forgetting = DelRange { keeps_history: false, ..keeping.clone() };
    assert!(keeping.adds_data() && !forgetting.adds_data(), "what is kept takes room");
    assert!(keeping.may_come_to(OpResult::TooLong) && !forgetting.may_come_to(OpResult::TooLong));
    let history = History::Versions { count: 3 };
    store.apply(SetHistory { history });
    assert_eq!(store.history, Some(history));
    for (version, compacted) in [(15, 15), (7, 15), (1_000, store.now + 30)] {
        store.apply(Compact { version: Timestamp(version) });
        assert_eq!(store.compacted, Timestamp(compacted), "after {version}");
    }
}

#[test]
fn a_condition_is_about_the_newest_version_and_a_failed_one_changes_nothing() {
    let put_if = |condition| PutIf { key: key("a"), value: key("new"), condition };
    let failed = |newest| OpApplied::Result(OpResult::ConditionFailed { newest });
    let done = OpApplied::Result(OpResult::Done);
    let at = |version| Condition::Version(Timestamp(version));
    let mut store = MapStore::default();
    assert_eq!(store.apply(put_if(at(5))), failed(None));
    assert_eq!(store.shown(), "");
    assert_eq!(store.apply(put_if(Condition::Absent)), done);
    assert_eq!(store.shown(), "a=new@20");
    for condition in [Condition::Absent, at(10), at(30)] {
        let op = put_if(condition);
        assert_eq!(store.apply(op.clone()), failed(Some(Timestamp(20))), "{condition:?}");
        let result = OpResult::ConditionFailed { newest: Some(Timestamp(20)) };
        assert_eq!(op.tells_before(result), Some(&key("a")));
        assert_eq!(store.shown(), "a=new@20");
    }
    assert_eq!(store.apply(put_if(at(20))), done);
    assert_eq!(store.shown(), "a=new@60");
    store.apply(Del { key: key("a"), tells_previous: false, keeps_history: false });
    assert_eq!(store.apply(put_if(at(60))), failed(None), "it was removed since");
    assert_eq!(store.apply(put_if(Condition::Absent)), done);
    assert!(put_if(at(0)).check().is_err() && put_if(at(1)).check().is_ok());
}

#[test]
fn what_is_no_version_is_not_compacted() {
    for (version, is_one) in [(-1, false), (0, false), (1, true), (i64::MAX, true)] {
        let compact = WriteOp::from(Compact { version: Timestamp(version) });
        assert_eq!(compact.check().is_ok(), is_one, "{version}");
    }
}

#[test]
fn a_history_that_cannot_be_kept_is_refused() {
    assert_eq!(SetHistory { history: History::All }.check(), Ok(()));
    let nothing = SetHistory { history: History::Versions { count: 0 } };
    assert!(WriteOp::from(nothing).check().unwrap_err().contains("cannot be kept"));
}

#[test]
fn a_result_is_read_back_and_is_short() {
    let newest = Some(Timestamp(i64::MAX));
    let failed = [None, newest].map(|newest| OpResult::ConditionFailed { newest });
    let txn = OpResult::Txn { branches: u64::MAX };
    for result in [OpResult::Done, failed[0], failed[1], txn, OpResult::TooLong] {
        let mut bytes = Vec::new();
        result.encode(&mut bytes);
        assert!(bytes.len() <= RESULT_BYTES_MAX);
        let mut rest = &bytes[..];
        assert_eq!(OpResult::decode(&mut rest), Some(result));
        assert_eq!(rest, b"");
    }
    assert_eq!(OpResult::decode(&mut &b"\xff"[..]), None);
    assert_eq!(OpResult::decode(&mut &b""[..]), None);
}

#[test]
fn a_lease_is_granted_once_until_it_is_revoked() {
    let mut store = MapStore::default();
    let grant = |id: Option<u64>| LeaseGrant { id: id.map(LeaseId), ttl_ms: 1_000 };
    let revoke = |id| LeaseRevoke { id: LeaseId(id), keys_max: None };
    assert_eq!(store.apply(grant(None)), OpApplied::Result(OpResult::Done));
    assert!(store.leases.contains_key(&LeaseId(10)), "its id is the version of the write");
    assert_eq!(store.apply(grant(Some(7))), OpApplied::Result(OpResult::Done));
    assert_eq!(store.apply(grant(Some(7))), OpApplied::Result(OpResult::LeaseExists));
    assert_eq!(store.apply(grant(None)), OpApplied::Result(OpResult::Done));
    assert_eq!(store.apply(grant(None)), OpApplied::Result(OpResult::TooManyLeases));
    assert_eq!(store.apply(revoke(7)), OpApplied::Result(OpResult::Done));
    assert_eq!(store.apply(revoke(7)), OpApplied::Result(OpResult::NoLease));
    assert_eq!(store.apply(grant(Some(7))), OpApplied::Result(OpResult::Done));
    for result in [OpResult::LeaseExists, OpResult::TooManyLeases, OpResult::NoLease] {
        assert!(!result.has_taken_effect());
    }
    // Only one that is to find few keys is short.
    let few = LeaseRevoke { id: LeaseId(7), keys_max: Some(64) };
    assert_eq!((few.scanned_rows_max(), few.may_come_to(OpResult::TooLong)), (64, true));
    let all = revoke(7);
    assert!(all.scanned_rows_max() > limits::SHORT_WRITE_ROWS_MAX);
    assert!(!all.may_come_to(OpResult::TooLong));
}

#[test]
fn a_lease_of_no_id_or_of_an_absurd_time_is_refused() {
    let check = |id, ttl_ms| LeaseGrant { id, ttl_ms }.check();
    assert_eq!(check(None, 10_000), Ok(()));
    assert_eq!(check(Some(LeaseId(u64::MAX - 1)), 10_000), Ok(()));
    assert!(check(Some(LeaseId(0)), 10_000).is_err());
    assert!(check(Some(LeaseId::NOBODYS), 10_000).is_err());
    for ttl_ms in [0, 999, 100 * 366 * 24 * 3_600_000] {
        assert!(check(None, ttl_ms).is_err(), "{ttl_ms}");
    }
}
