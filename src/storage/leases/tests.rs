//! Leases in a state machine, applied in any pieces, opened again and taken in by another server.

use std::sync::Arc;

use super::super::apply::{Applied, StateMachine};
use super::super::engine::Engine;
use super::super::memory::MemoryEngine;
use super::super::rows::ViewRows;
use super::*;
use crate::model::{
    Action, AppliedWrite, ClientId, Command, Del, DelRange, GarbageCollection, History, LeaseEvent,
    LeaseGrant, LeaseRecord, LeaseRevoke, LogEntry, OpResult, PageNext, PageOf, Put, ReadView,
    RequestId, SetHistory, Txn, TxnOp, WriteFate, WriteOp,
};

/// A log under construction.
#[derive(Default)]
struct Script {
    entries: Vec<LogEntry>,
}

impl Script {
    /// The next entry, whose timestamp is ten times its index.
    fn act(&mut self, action: Action) {
        let index = self.entries.len() as u64 + 1;
        let timestamp = Timestamp(index as i64 * 10);
        let data = Command { timestamp, clock_us: 0, action }.encode();
        self.entries.push(LogEntry { term: 1, index, data });
    }

    fn write(&mut self, op: impl Into<WriteOp>) {
        let sequence = self.entries.len() as u64 + 1;
        let (client, begun) = (ClientId(7), Timestamp::ZERO);
        let request = RequestId { client, sequence, answered_below: 1, begun };
        self.act(Action::Write { request, op: op.into() });
    }

    fn grant(&mut self, id: Option<u64>, ttl_ms: u64) {
        self.write(LeaseGrant { id: id.map(LeaseId), ttl_ms });
    }

    fn revoke(&mut self, id: u64) {
        self.write(LeaseRevoke { id: LeaseId(id), keys_max: None });
    }
}

const LIMITS: StateLimits = StateLimits {
    leases_max: 3,
    lease_keys_max: 4,
    transaction_rows_max: 100,
    transaction_compared_bytes_max: 1_000,
    removal_scan_rows_max: 1024,
    kept_removal_rows_max: 1024,
    range_removals_max: 64,
    removal_grace_us: 60_000_000,
    session_expiry_us: 90_000_000_000,
    sessions_max: 10,
    session_replies_max: 100,
    session_replies_total_max: 100,
};

fn machine() -> (Arc<MemoryEngine>, StateMachine) {
    let engine = Arc::new(MemoryEngine::new());
    let machine = StateMachine::open(engine.clone(), LIMITS).unwrap();
    (engine, machine)
}

fn name(id: u64, granted: i64) -> LeaseName {
    LeaseName { id: LeaseId(id), granted: Timestamp(granted) }
}

fn state(id: u64, granted: i64, ttl_ms: u64, rest_ms: u64) -> LeaseState {
    LeaseState { name: name(id, granted), ttl_ms, rest_ms }
}

/// What the writes came to, and what is told of leases, whatever the pieces are.
fn apply(script: &Script, step: usize) -> (Vec<OpResult>, Vec<LeaseEvent>, StateMachine) {
    let (_, mut machine) = machine();
    let (mut results, mut events) = (Vec::new(), Vec::new());
    for entries in script.entries.chunks(step) {
        let Applied { writes, leases, .. } = machine.apply(entries).unwrap();
        for write in writes {
            let WriteFate::Answered(answer) = write.fate else { panic!("{write:?}") };
            results.push(answer.result);
        }
        events.extend(leases);
    }
    (results, events, machine)
}

#[test]
fn leases_come_and_go_and_the_core_is_told() {
    let mut script = Script::default();
    script.grant(None, 1_000);
    script.grant(Some(7), 2_000);
    script.grant(Some(7), 3_000);
    script.grant(None, 4_000);
    script.grant(None, 5_000);
    script.revoke(7);
    script.revoke(7);
    script.grant(Some(7), 6_000);
    // The first end names an earlier lease of that id.
    let ends = vec![name(7, 20), name(10, 10), name(99, 1)];
    let rests = vec![(name(10, 10), 5), (name(40, 40), 3_000), (name(7, 80), 9_000)];
    script.act(Action::Leases(LeaseRecord { ends, rests }));
    let (exists, none) = (OpResult::LeaseExists, OpResult::NoLease);
    let (done, full) = (OpResult::Done, OpResult::TooManyLeases);
    for step in [1, 2, 3, 9] {
        let (results, events, machine) = apply(&script, step);
        assert_eq!(results, [done, done, exists, done, full, done, none, done], "pieces of {step}");
        let expected = [
            LeaseEvent::Is(state(10, 10, 1_000, 1_000)),
            LeaseEvent::Is(state(7, 20, 2_000, 2_000)),
            LeaseEvent::Is(state(40, 40, 4_000, 4_000)),
            LeaseEvent::Ended(name(7, 20)),
            LeaseEvent::Is(state(7, 80, 6_000, 6_000)),
            LeaseEvent::Ended(name(10, 10)),
            LeaseEvent::Is(state(40, 40, 4_000, 3_000)),
            LeaseEvent::Is(state(7, 80, 6_000, 6_000)),
        ];
        assert_eq!(events, expected, "pieces of {step}");
        let left = [state(7, 80, 6_000, 6_000), state(40, 40, 4_000, 3_000)];
        assert_eq!(machine.leases().unwrap(), left);
    }
}

#[test]
fn replicas_agree_and_a_state_machine_that_is_opened_again_knows_its_leases() {
    let mut script = Script::default();
    (1..=3).for_each(|_| script.grant(None, 1_000));
    script.revoke(20);
    let hashes: Vec<u64> =
        [1, 2, 4].into_iter().map(|step| apply(&script, step).2.applied().hash).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let (engine, mut machine) = machine();
    machine.apply(&script.entries).unwrap();
    machine.checkpoint().unwrap();
    let leases = machine.leases().unwrap();
    assert_eq!(leases.len(), 2);
    drop(machine);
    let mut machine = StateMachine::open(engine, LIMITS).unwrap();
    assert_eq!(machine.leases().unwrap(), leases);
    // It has counted them, too.
    script.grant(None, 1_000);
    script.grant(None, 1_000);
    let writes = machine.apply(&script.entries[4..]).unwrap().writes;
    let fates: Vec<_> = writes.into_iter().map(|write| write.fate).collect();
    let result = |fate: &WriteFate| match fate {
        WriteFate::Answered(answer) => answer.result,
        other => panic!("{other:?}"),
    };
    assert_eq!(result(&fates[0]), OpResult::Done);
    assert_eq!(result(&fates[1]), OpResult::TooManyLeases);
}

#[test]
fn what_is_no_lease_is_damage() {
    let lease = StoredLease { state: state(7, 80, 6_000, 5_000), keys: 3 };
    let value = lease.encode();
    assert_eq!(StoredLease::decode(LeaseId(7), &value), Some(lease));
    for cut in 0..value.len() {
        assert_eq!(StoredLease::decode(LeaseId(7), &value[..cut]), None);
    }
    let longer = [&value[..], &[0]].concat();
    assert_eq!(StoredLease::decode(LeaseId(7), &longer), None);
    let more = StoredLease { state: state(7, 80, 6_000, 6_001), keys: 3 };
    assert_eq!(StoredLease::decode(LeaseId(7), &more.encode()), None, "more than its time");
}

// ---- keys ---------------------------------------------------------------------------------

/// A state machine whose keys are put with leases, one entry after the other.
struct Keys {
    engine: Arc<MemoryEngine>,
    machine: StateMachine,
    script: Script,
}

impl Keys {
    fn new() -> Keys {
        Keys::within(LIMITS)
    }

    fn within(limits: StateLimits) -> Keys {
        let engine = Arc::new(MemoryEngine::new());
        let machine = StateMachine::open(engine.clone(), limits).unwrap();
        Keys { engine, machine, script: Script::default() }
    }

    /// Applies what has been added to the log.
    fn apply(&mut self) -> Applied {
        let done = self.machine.applied().index as usize;
        self.machine.apply_answering(&self.script.entries[done..]).unwrap()
    }

    fn write(&mut self, op: impl Into<WriteOp>) -> OpResult {
        self.script.write(op);
        match &self.apply().writes[..] {
            [AppliedWrite { fate: WriteFate::Answered(answer), .. }] => answer.result,
            other => panic!("{other:?}"),
        }
    }

    fn grant(&mut self, id: u64) {
        let grant = LeaseGrant { id: Some(LeaseId(id)), ttl_ms: 1_000 };
        assert_eq!(self.write(grant), OpResult::Done);
    }

    fn put_all(&mut self, keys: &[&'static str], lease: Option<u64>) -> OpResult {
        let lease = lease.map(LeaseId);
        let put = |key: &&'static str| TxnOp::Put {
            key: Bytes::from(*key),
            value: Bytes::from("v"),
            tells_previous: false,
            lease,
        };
        self.write(Txn { then: keys.iter().map(put).collect(), ..Txn::default() })
    }

    fn put(&mut self, key: &'static str, lease: Option<u64>) {
        assert_eq!(self.put_all(&[key], lease), OpResult::Txn { branches: 1 });
    }

    fn plain_put(&mut self, key: &'static str) {
        let (key, value) = (Bytes::from(key), Bytes::from("v"));
        assert_eq!(self.write(Put { key, value, tells_previous: false }), OpResult::Done);
    }

    fn collect(&mut self, piece: GarbageCollection) {
        self.script.act(Action::GarbageCollection(piece));
        self.apply();
    }

    fn end(&mut self, id: u64) {
        assert_eq!(self.write(LeaseRevoke { id: LeaseId(id), keys_max: None }), OpResult::Done);
    }

    /// The keys that have a value, each with its lease.
    fn shown(&self, names: &[&str]) -> Vec<String> {
        let store = self.machine.store();
        let lease = |name: &&str| {
            let facts = store.get(name.as_bytes()).unwrap()?.facts.unwrap();
            Some(format!("{name}:{}", facts.lease.map_or(0, |lease| lease.0)))
        };
        names.iter().filter_map(lease).collect()
    }

    /// The number of rows that a lease has, as it is written down and as they are.
    fn counted(&self, id: u64) -> (u32, u32) {
        let view = self.engine.view().unwrap();
        let rows = ViewRows(&*view);
        let mut count = 0;
        let mut each = |_: &[u8], _: &[u8]| {
            count += 1;
            ControlFlow::Continue(())
        };
        rows.visit(&keys::lease_keys(LeaseId(id)), &mut each).unwrap();
        let id = LeaseId(id);
        let row = rows.get(&keys::lease(id)).unwrap();
        let keys = row.map_or(0, |row| StoredLease::decode(id, &row).unwrap().keys);
        (keys, count)
    }
}

#[test]
fn the_keys_of_a_lease_go_with_it_in_one_version_and_no_others() {
    let mut keys = Keys::new();
    keys.grant(7);
    keys.grant(8);
    for (key, lease) in [("a", Some(7)), ("b", Some(7)), ("c", Some(8)), ("d", None)] {
        keys.put(key, lease);
    }
    // A put without a lease takes a key out, one with another lease takes it over.
    keys.put("e", Some(7));
    keys.plain_put("e");
    keys.put("f", Some(7));
    keys.put("f", Some(8));
    keys.put("a", Some(7));
    assert_eq!((keys.counted(7), keys.counted(8)), ((2, 2), (2, 2)));
    let names = ["a", "b", "c", "d", "e", "f"];
    assert_eq!(keys.shown(&names), ["a:7", "b:7", "c:8", "d:0", "e:0", "f:8"]);
    keys.end(7);
    assert_eq!(keys.shown(&names), ["c:8", "d:0", "e:0", "f:8"]);
    assert_eq!((keys.counted(7), keys.counted(8)), ((0, 0), (2, 2)));
    keys.end(8);
    assert_eq!(keys.shown(&names), ["d:0", "e:0"]);
}

#[test]
fn a_key_that_was_deleted_leaves_its_lease_whatever_deleted_it() {
    for is_long in [false, true] {
        let removal_scan_rows_max = if is_long { 1 } else { 1024 };
        deleted_keys_leave(StateLimits { removal_scan_rows_max, ..LIMITS }, is_long);
    }
}

/// `is_long`: a range of two keys is too long to be looked through.
fn deleted_keys_leave(limits: StateLimits, is_long: bool) {
    let mut keys = Keys::within(limits);
    keys.grant(7);
    for key in ["a", "b", "c", "d"] {
        keys.put(key, Some(7));
    }
    let del = || Del { key: Bytes::from("a"), tells_previous: false, keeps_history: false };
    keys.write(del());
    keys.write(del());
    assert_eq!(keys.counted(7), (3, 3));
    let (from, to) = (Bytes::from("b"), Bytes::from("c"));
    keys.write(DelRange { from, to, keeps_history: false });
    assert_eq!(keys.counted(7), if is_long { (3, 3) } else { (1, 1) });
    // They come back, one with the lease and two without.
    keys.put("b", Some(7));
    keys.plain_put("c");
    keys.plain_put("a");
    let (counted, rows) = keys.counted(7);
    assert_eq!(counted, rows);
    assert_eq!(keys.shown(&["a", "b", "c", "d"]), ["a:0", "b:7", "c:0", "d:7"]);
    keys.end(7);
    assert_eq!(keys.shown(&["a", "b", "c", "d"]), ["a:0", "c:0"]);
    assert_eq!(keys.counted(7), (0, 0));
    // An id that is granted again has no keys of the lease before.
    keys.grant(7);
    keys.end(7);
    assert_eq!(keys.shown(&["a", "b", "c", "d"]), ["a:0", "c:0"]);
}

#[test]
fn the_keys_of_a_lease_that_ended_keep_their_history() {
    // By the operation of a client, and by an entry of the leader.
    for is_revoked in [true, false] {
        let mut keys = Keys::new();
        keys.grant(7);
        keys.plain_put("a");
        keys.put("a", Some(7));
        keys.put("b", Some(7));
        let before = keys.machine.applied().timestamp;
        match is_revoked {
            true => keys.end(7),
            false => {
                let ends = keys.machine.leases().unwrap().iter().map(|state| state.name).collect();
                keys.script.act(Action::Leases(LeaseRecord { ends, rests: Vec::new() }));
                keys.apply();
            }
        }
        let store = keys.machine.store();
        for key in ["a", "b"] {
            let key = key.as_bytes();
            assert_eq!(store.get(key).unwrap(), None);
            let past = store.get_at(key, before).unwrap().unwrap();
            assert_eq!(past.facts.unwrap().lease, Some(LeaseId(7)));
            assert!(store.get_at(key, keys.machine.applied().timestamp).unwrap().is_none());
        }
        // Whoever writes the key next begins its history anew, and without a lease.
        keys.plain_put("a");
        let facts = keys.machine.store().get(b"a").unwrap().unwrap().facts.unwrap();
        assert_eq!((facts.count, facts.lease), (1, None));
    }
}

#[test]
fn the_keys_of_a_lease_are_shown_in_pages() {
    let mut keys = Keys::new();
    keys.grant(7);
    keys.grant(8);
    for (key, lease) in [("a", 7), ("b", 7), ("c", 8), ("d", 7), ("e", 7)] {
        keys.put(key, Some(lease));
    }
    let then = keys.machine.applied().timestamp;
    keys.plain_put("b");
    keys.plain_put("f");
    let shown = |keys: &Keys, at, most| {
        let (mut of, mut names) = (PageOf::Lease { lease: LeaseId(7), from: Bytes::new() }, vec![]);
        loop {
            let page = keys.machine.store().page(&of, ReadView::as_of(at), most).unwrap();
            assert!(page.rows.len() <= most.rows);
            names.extend(page.rows.into_iter().map(|row| row.key));
            match (page.next, &mut of) {
                (Some(PageNext::From(next)), PageOf::Lease { from, .. }) => *from = next,
                (next, _) => return next.is_none().then_some(names),
            }
        }
    };
    for rows in 1..5 {
        let most = PageLimits { rows, ..PageLimits::default() };
        let now = keys.machine.applied().timestamp;
        assert_eq!(shown(&keys, now, most).unwrap(), ["a", "d", "e"]);
        assert_eq!(shown(&keys, then, most).unwrap(), ["a", "d", "e"], "b has left it");
        assert_eq!(shown(&keys, Timestamp(30), most).unwrap(), ["a"], "as of then");
        let small = PageLimits { bytes: 1, ..most };
        assert_eq!(shown(&keys, now, small).unwrap(), ["a", "d", "e"]);
    }
    keys.end(7);
    assert!(shown(&keys, then, PageLimits::default()).unwrap().is_empty());
}

#[test]
fn a_put_with_a_lease_that_does_not_take_it_does_nothing() {
    let mut keys = Keys::new();
    assert_eq!(keys.put_all(&["a"], Some(7)), OpResult::NoLease);
    keys.grant(7);
    assert_eq!(keys.put_all(&["a", "b", "c", "d", "e"], Some(7)), OpResult::LeaseFull);
    assert!(keys.shown(&["a", "b", "c", "d", "e"]).is_empty() && keys.counted(7) == (0, 0));
    assert_eq!(keys.put_all(&["a", "b", "c"], Some(7)), OpResult::Txn { branches: 1 });
    assert_eq!(keys.put_all(&["a", "b", "d"], Some(7)), OpResult::Txn { branches: 1 });
    assert_eq!(keys.put_all(&["a", "e"], Some(7)), OpResult::LeaseFull);
    keys.plain_put("a");
    assert_eq!(keys.put_all(&["e"], Some(7)), OpResult::Txn { branches: 1 });
    keys.end(7);
    assert_eq!(keys.put_all(&["a"], Some(7)), OpResult::NoLease);
    assert_eq!(keys.shown(&["a", "b", "c", "d", "e"]), ["a:0"]);
    // What only the branch that is not taken would put is not asked about.
    let put = |lease| TxnOp::Put {
        key: Bytes::from("x"),
        value: Bytes::new(),
        tells_previous: false,
        lease,
    };
    let (then, or_else) = (vec![put(None)], vec![put(Some(LeaseId(7)))]);
    let txn = Txn { compare: Vec::new(), then, or_else };
    assert_eq!(keys.write(txn), OpResult::Txn { branches: 1 });
}

#[test]
fn ends_of_leases_with_many_keys_are_left_to_other_entries() {
    let mut keys = Keys::new();
    for (id, names) in [(1, &["a", "b", "c"][..]), (2, &["d", "e"]), (3, &["f"])] {
        keys.grant(id);
        assert_eq!(keys.put_all(names, Some(id)), OpResult::Txn { branches: 1 });
    }
    let states = keys.machine.leases().unwrap();
    let ends: Vec<LeaseName> = states.iter().map(|state| state.name).collect();
    let end = |keys: &mut Keys| {
        keys.script.act(Action::Leases(LeaseRecord { ends: ends.clone(), rests: Vec::new() }));
        let events = keys.apply().leases;
        let id = |event: &LeaseEvent| match event {
            LeaseEvent::Ended(name) => name.id.0,
            other => panic!("{other:?}"),
        };
        events.iter().map(id).collect::<Vec<_>>()
    };
    // Four keys go at once at most.
    assert_eq!(end(&mut keys), [1, 3]);
    assert_eq!(keys.shown(&["a", "b", "c", "d", "e", "f"]), ["d:2", "e:2"]);
    assert_eq!(end(&mut keys), [2]);
    assert_eq!(end(&mut keys), Vec::<u64>::new());
    assert!(keys.shown(&["a", "b", "c", "d", "e", "f"]).is_empty());
}

/// They were counted as long as the lease lived, so that it took no keys any more.
#[test]
fn keys_that_went_with_a_long_range_leave_the_lease_when_their_versions_are_collected() {
    // By collection of removals alone, and by compaction that comes to some versions first.
    for compacts in [false, true] {
        let mut keys =
            Keys::within(StateLimits { removal_scan_rows_max: 1, removal_grace_us: 0, ..LIMITS });
        keys.grant(7);
        for key in ["a", "b", "c", "d"] {
            keys.put(key, Some(7));
        }
        let (from, to) = (Bytes::from("a"), Bytes::from("d"));
        keys.write(DelRange { from, to, keeps_history: false });
        assert_eq!(keys.put_all(&["e"], Some(7)), OpResult::LeaseFull);
        // One comes back with the lease, and two without, of which one is deleted once more.
        keys.put("b", Some(7));
        keys.plain_put("c");
        keys.plain_put("d");
        let del = Del { key: Bytes::from("d"), tells_previous: false, keeps_history: false };
        assert_eq!(keys.write(del), OpResult::Done);
        assert_eq!(keys.counted(7), (4, 4));
        let (rows_max, bytes_max) = (1, 1 << 20);
        if compacts {
            let history = History::Versions { count: 1 };
            keys.write(SetHistory { history });
            for _ in 0..20 {
                let as_of_us = keys.machine.applied().timestamp.0 as u64;
                keys.collect(GarbageCollection::History { history, as_of_us, rows_max, bytes_max });
            }
        }
        for _ in 0..60 {
            let before_us = u64::MAX / 2;
            keys.collect(GarbageCollection::Removed { before_us, rows_max, bytes_max });
        }
        assert_eq!(keys.counted(7), (1, 1), "compacts: {compacts}");
        assert_eq!(keys.put_all(&["e", "f", "g"], Some(7)), OpResult::Txn { branches: 1 });
        assert_eq!(keys.put_all(&["h"], Some(7)), OpResult::LeaseFull);
        keys.end(7);
        assert_eq!(keys.shown(&["a", "b", "c", "d", "e", "f", "g"]), ["c:0"]);
        assert_eq!(keys.counted(7), (0, 0));
    }
}

/// All keys of a lease go at once, and are in memory together.
#[test]
fn long_keys_count_as_several_of_those_that_a_lease_may_have() {
    let mut keys = Keys::new();
    keys.grant(7);
    let [long, other] = ["l", "m"].map(|key| &*key.repeat(1025).leak());
    assert_eq!(keys.put_all(&[long], Some(7)), OpResult::Txn { branches: 1 });
    assert_eq!(keys.counted(7), (3, 1));
    assert_eq!(keys.put_all(&[other], Some(7)), OpResult::LeaseFull);
    assert_eq!(keys.put_all(&[long, "a"], Some(7)), OpResult::Txn { branches: 1 });
    assert_eq!(keys.put_all(&["b"], Some(7)), OpResult::LeaseFull);
    keys.plain_put(long);
    assert_eq!(keys.counted(7), (1, 1));
    assert_eq!(keys.put_all(&[other], Some(7)), OpResult::Txn { branches: 1 });
    keys.end(7);
    assert_eq!(keys.shown(&["a", "b", long, other]), [format!("{long}:0")]);
}

#[test]
fn a_lease_with_more_keys_than_are_expected_does_not_end() {
    let mut keys = Keys::new();
    keys.grant(7);
    assert_eq!(keys.put_all(&["a", "b"], Some(7)), OpResult::Txn { branches: 1 });
    let revoke = |keys_max| LeaseRevoke { id: LeaseId(7), keys_max };
    assert_eq!(keys.write(revoke(Some(1))), OpResult::TooLong);
    assert_eq!(
        (keys.counted(7), keys.shown(&["a", "b"])),
        ((2, 2), vec!["a:7".into(), "b:7".into()])
    );
    assert_eq!(keys.write(revoke(Some(2))), OpResult::Done);
    assert!(keys.shown(&["a", "b"]).is_empty());
    assert_eq!(keys.write(revoke(Some(2))), OpResult::NoLease);
}
