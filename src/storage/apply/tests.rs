//! The state machine: a log applied in any pieces leaves the same state, and sessions apply once.

mod costs;
mod transactions;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::engine::Direction;
use super::super::memory::MemoryEngine;
use super::super::reads::{PageLimits, StoreReadError};
use super::*;
use crate::model::{
    Barrier, ClientId, Compact, Condition, Del, DelAll, DelRange, Facts, History, OpResult, PageOf,
    Previous, Put, PutAll, PutIf, ReleaseVersion, SetHistory, Trim, Txn, TxnOp, TxnResult,
};

/// A log under construction: one write after another, each with its own sequence.
#[derive(Default)]
struct Script {
    entries: Vec<LogEntry>,
}

impl Script {
    /// The next entry is no client's.
    fn act(&mut self, action: Action) {
        let timestamp = Timestamp(self.next_timestamp());
        self.push(Command { timestamp, clock_us: 0, action }.encode());
    }

    fn push(&mut self, data: Bytes) {
        self.entries.push(LogEntry { term: 1, index: self.entries.len() as u64 + 1, data });
    }

    fn next_timestamp(&self) -> i64 {
        (self.entries.len() as i64 + 1) * 10
    }

    fn write(&mut self, op: WriteOp) {
        let sequence = self.entries.len() as u64 + 1;
        self.write_as(sequence, op);
    }

    fn write_as(&mut self, sequence: u64, op: WriteOp) {
        let request =
            RequestId { client: ClientId(7), sequence, answered_below: 1, begun: Timestamp::ZERO };
        let timestamp = Timestamp(self.next_timestamp());
        let action = Action::Write { request, op };
        self.push(Command { timestamp, clock_us: 0, action }.encode());
    }

    fn put(&mut self, key: &'static str, value: &'static str) {
        self.write(WriteOp::Put(Put {
            key: Bytes::from(key),
            value: Bytes::from(value),
            tells_previous: true,
        }));
    }

    fn del_keeping_history(&mut self, key: &'static str) {
        let (key, tells_previous) = (Bytes::from(key), true);
        self.write(WriteOp::Del(Del { key, tells_previous, keeps_history: true }));
    }

    fn trim(&mut self, key: &'static str) {
        self.write(WriteOp::Trim(Trim { key: Bytes::from(key), tells_previous: true }));
    }

    fn del(&mut self, key: &'static str) {
        self.write(WriteOp::Del(Del {
            key: Bytes::from(key),
            tells_previous: true,
            keeps_history: false,
        }));
    }
}

fn machine() -> (Arc<MemoryEngine>, StateMachine) {
    let engine = Arc::new(MemoryEngine::new());
    let machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
    (engine, machine)
}

fn answer(write: &AppliedWrite) -> &WriteAnswer {
    let WriteFate::Answered(answer) = &write.fate else { panic!("{write:?}") };
    answer
}

/// The version that each write was told its key had; 0 for none.
fn previous(writes: &[AppliedWrite]) -> Vec<i64> {
    let version = |write| match answer(write).previous.as_ref().unwrap() {
        Previous::Absent => 0,
        Previous::Value { timestamp, .. } => timestamp.0,
    };
    writes.iter().map(version).collect()
}

fn value(machine: &StateMachine, key: &str) -> Option<(i64, Vec<u8>)> {
    let found = machine.store().get(key.as_bytes()).unwrap();
    found.map(|version| (version.timestamp.0, version.value.to_vec()))
}

#[test]
fn the_newest_version_is_read_and_a_delete_removes_all() {
    let mut script = Script::default();
    script.put("k", "one");
    script.put("k", "two");
    script.put("l", "other");
    script.del("k");
    script.del("k");
    script.put("k", "three");
    let expected = [0, 10, 0, 20, 0, 0];
    // In one batch and in one batch each: what a batch holds is seen through.
    for step in [1, 2, 3, 6] {
        let (_, mut machine) = machine();
        let mut outcomes = Vec::new();
        for entries in script.entries.chunks(step) {
            outcomes.extend(machine.apply_answering(entries).unwrap().writes);
            if machine.applied().index == 2 {
                assert_eq!(value(&machine, "k"), Some((20, b"two".to_vec())));
            }
            if machine.applied().index == 4 {
                assert_eq!(value(&machine, "k"), None);
            }
        }
        assert_eq!(previous(&outcomes), expected, "batches of {step}");
        assert_eq!(value(&machine, "k"), Some((60, b"three".to_vec())));
        assert_eq!(value(&machine, "l"), Some((30, b"other".to_vec())));
        assert_eq!(value(&machine, "m"), None);
    }
}

/// With which version the key came into being, and how many it has had since then.
fn facts(machine: &StateMachine, key: &str) -> Option<(i64, u64)> {
    let facts = machine.store().get(key.as_bytes()).unwrap()?.facts.unwrap();
    assert_eq!(facts.lease, None);
    Some((facts.created.0, facts.count))
}

/// They are the same wherever a PUT finds those of the version before: in its own batch, among the
/// newest versions that are known, or in the engine.
#[test]
fn the_facts_of_a_key_count_from_the_write_that_created_it() {
    type Step<'a> = (&'a dyn Fn(&mut Script), Option<(i64, u64)>);
    let mut script = Script::default();
    let steps: [Step<'_>; 9] = [
        (&|script| script.put("k", "one"), Some((10, 1))),
        (&|script| script.put("k", "two"), Some((10, 2))),
        (&|script| script.del("k"), None),
        (&|script| script.put("k", "three"), Some((40, 1))),
        (&|script| script.put("k", "four"), Some((40, 2))),
        (&|script| script.trim("k"), Some((40, 2))),
        (&|script| script.put("k", "five"), Some((40, 3))),
        (&|script| script.del_keeping_history("k"), None),
        (&|script| script.put("k", "six"), Some((90, 1))),
    ];
    steps.iter().for_each(|(step, _)| step(&mut script));
    for newest_bytes_max in [0, usize::MAX] {
        for size in 1..=steps.len() {
            let (_, mut machine) = machine();
            machine.set_newest_bytes_max(newest_bytes_max);
            for (number, entries) in (1..).zip(script.entries.chunks(size)) {
                machine.apply(entries).unwrap();
                let (_, expected) = steps[(number * size).min(steps.len()) - 1];
                assert_eq!(facts(&machine, "k"), expected, "batches of {size}, {number}");
            }
        }
    }
}

/// The versions of a key that are listed, and what it had at each time.
fn past(machine: &StateMachine, key: &'static str) -> (Vec<i64>, Vec<Option<i64>>) {
    let store = machine.store();
    let of = PageOf::Versions { key: Bytes::from(key) };
    let now = ReadView::as_of(machine.applied().timestamp);
    let page = store.first_page(&of, now, PageLimits::default()).unwrap();
    let listed = page.rows.iter().map(|row| row.timestamp().unwrap().0).collect();
    let at = |time| store.get_at(key.as_bytes(), Timestamp(time)).unwrap();
    let times = (10..=now.at.0).step_by(10);
    (listed, times.map(|time| at(time).map(|version| version.timestamp.0)).collect())
}

#[test]
fn a_deletion_keeps_the_history_until_that_is_removed() {
    let removals: [&dyn Fn(&mut Script); 3] =
        [&|script| script.del("k"), &|script| script.trim("k"), &|script| {
            script.write(WriteOp::DelRange(DelRange {
                from: Bytes::from("a"),
                to: Bytes::from("z"),
                keeps_history: false,
            }))
        }];
    for (removal, remove) in removals.iter().enumerate() {
        let (engine, mut machine) = machine();
        let mut script = Script::default();
        script.put("k", "one");
        script.put("k", "two");
        script.del_keeping_history("k");
        script.del_keeping_history("k");
        let applied = machine.apply_answering(&script.entries).unwrap();
        assert_eq!(previous(&applied.writes), [0, 10, 20, 0]);
        assert_eq!(past(&machine, "k"), (vec![20, 10], vec![Some(10), Some(20), None, None]));

        remove(&mut script);
        machine.apply(&script.entries[4..]).unwrap();
        assert_eq!(past(&machine, "k"), (vec![], vec![None; 5]), "removal {removal}");
        script.act(Action::GarbageCollection(GarbageCollection::Removed {
            before_us: u64::MAX,
            rows_max: 100,
            bytes_max: u64::MAX,
        }));
        script.act(Action::GarbageCollection(GarbageCollection::Removed {
            before_us: u64::MAX,
            rows_max: 100,
            bytes_max: u64::MAX,
        }));
        machine.apply(&script.entries[5..]).unwrap();
        let mut rows = 0;
        let mut count = |_: &[u8], _: &[u8]| {
            rows += 1;
            std::ops::ControlFlow::Continue(())
        };
        engine.scan(&keys::all_versions(), Direction::Forward, &mut count).unwrap();
        assert_eq!(rows, 0, "a tombstone that hides nothing goes, too: removal {removal}");
    }
}

/// By the group's limit, whatever a release would take, alone and in a transaction.
#[test]
fn a_range_that_keeps_history_has_a_limit_of_its_own() {
    let limits = StateLimits {
        kept_removal_rows_max: 3,
        removal_scan_rows_max: 0,
        ..StateLimits::default()
    };
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), limits).unwrap();
    let mut script = Script::default();
    ["a", "b", "c", "d"].iter().for_each(|key| script.put(key, "v"));
    let from = Bytes::from("a");
    let alone = |to: &'static str| {
        DelRange { from: from.clone(), to: Bytes::from(to), keeps_history: true }.into()
    };
    let within = |to: &'static str| {
        let (to, keeps_history, tells_previous) = (Bytes::from(to), true, true);
        let op = TxnOp::DelRange { from: from.clone(), to, keeps_history, tells_previous };
        WriteOp::from(Txn { then: vec![op], ..Txn::default() })
    };
    let mut result_of = |machine: &mut StateMachine, op: WriteOp| {
        script.write(op);
        let next = machine.applied().index as usize;
        let applied = machine.apply_answering(&script.entries[next..]).unwrap();
        answer(applied.writes.last().unwrap()).clone()
    };
    for op in [alone("d"), within("d")] {
        let refused = result_of(&mut machine, op.clone());
        assert_eq!(refused.result, OpResult::TooLong, "{op:?}");
        assert!(op.may_come_to(OpResult::TooLong) && op.adds_data());
    }
    assert!(value(&machine, "a").is_some(), "nothing was done");
    let deleted = result_of(&mut machine, within("c"));
    assert_eq!(deleted.result, OpResult::Txn { branches: 1 });
    let told = deleted.txn.unwrap().results.unwrap();
    assert!(matches!(&told[..], [TxnResult::DelRange { removed: 3, rows }] if rows.len() == 3));
    assert_eq!(value(&machine, "c"), None);
    let before = Timestamp(deleted.timestamp.0 - 1);
    assert!(machine.store().get_at(b"c", before).unwrap().is_some(), "its past is there");
    // Those that are deleted count until they have left the disk.
    assert_eq!(result_of(&mut machine, alone("d")).result, OpResult::TooLong);
    let rest = DelRange { from: Bytes::from("b"), to: Bytes::from("d"), keeps_history: true };
    assert_eq!(result_of(&mut machine, rest.into()).result, OpResult::Done);
    assert_eq!(value(&machine, "d"), None);
}

#[test]
fn a_noop_advances_the_index_and_nothing_else() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    script.put("k", "v");
    script.push(Bytes::new());
    assert_eq!(machine.apply(&script.entries[..1]).unwrap().writes.len(), 1);
    let before = machine.applied();
    let summary = MachineSummary { level: 1, ..MachineSummary::default() };
    let nothing = Applied { summary, ..Applied::default() };
    assert_eq!(machine.apply(&script.entries[1..]).unwrap(), nothing);
    assert_eq!(machine.applied(), AppliedPoint { index: 2, ..before });
    assert_eq!(machine.store().applied(), machine.applied());
    assert_eq!(machine.store().applying_timestamp(), before.timestamp);
}

/// A leader that was busy with one long entry was taken for one whose disk hangs, and gave the
/// leadership away.
#[test]
fn whoever_watches_sees_that_a_long_entry_gets_on() {
    let mut script = Script::default();
    let pairs: Vec<_> =
        (0..100u8).map(|number| (Bytes::from(vec![number]), Bytes::from_static(b"v"))).collect();
    script.write(WriteOp::PutAll(PutAll { pairs }));
    let (_engine, mut machine) = machine();
    let before = machine.store().steps();
    machine.apply(&script.entries).unwrap();
    let steps = machine.store().steps() - before;
    assert!(steps >= 200, "each of a hundred rows is made, and stored: {steps}");
}

#[test]
fn a_repeated_write_changes_no_version() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    let put = |value| {
        WriteOp::Put(Put {
            key: Bytes::from("k"),
            value: Bytes::from_static(value),
            tells_previous: true,
        })
    };
    script.write_as(1, put(b"first"));
    script.write_as(1, put(b"first"));
    script.write_as(
        2,
        WriteOp::Del(Del { key: Bytes::from("k"), tells_previous: true, keeps_history: false }),
    );
    script.write_as(1, put(b"first"));
    let outcomes = machine.apply(&script.entries).unwrap();
    let timestamps: Vec<_> =
        outcomes.writes.iter().map(|write| answer(write).timestamp.0).collect();
    assert_eq!(timestamps, [10, 10, 30, 10]);
    assert_eq!(value(&machine, "k"), None, "the late retry did not undo the delete");
}

/// A retry of a conditional write is told what came of the first, whatever has been written since,
/// and also by a server that was restarted.
#[test]
fn a_condition_is_judged_once() {
    let (engine, mut machine) = machine();
    let put_if = |value: &'static str, condition| -> WriteOp {
        PutIf { key: Bytes::from("k"), value: Bytes::from(value), condition }.into()
    };
    let holds = || put_if("second", Condition::Version(Timestamp(10)));
    let fails = || put_if("third", Condition::Absent);
    let told = |machine: &mut StateMachine, script: &Script| {
        let next = machine.applied().index as usize;
        let applied = machine.apply_answering(&script.entries[next..]).unwrap();
        answer(applied.writes.last().unwrap()).clone()
    };
    let mut script = Script::default();
    script.put("k", "first");
    script.write_as(100, holds());
    let done = WriteAnswer::of(WriteOutcome { timestamp: Timestamp(20), result: OpResult::Done });
    assert_eq!(told(&mut machine, &script), done);
    script.write_as(101, fails());
    let newest = Some(Timestamp(20));
    let result = OpResult::ConditionFailed { newest };
    let value = Some(Bytes::from("second"));
    let facts = Facts { created: Timestamp(10), count: 2, lease: None };
    let previous = Some(Previous::Value { timestamp: Timestamp(20), facts, value });
    let failed = WriteAnswer { timestamp: Timestamp(30), result, previous, txn: None };
    assert_eq!(told(&mut machine, &script), failed);
    // Now the one would not hold any more, and the other would.
    script.del("k");
    machine.apply(&script.entries[3..]).unwrap();
    for round in 0..2 {
        script.write_as(100, holds());
        assert_eq!(told(&mut machine, &script), done, "round {round}");
        script.write_as(101, fails());
        assert_eq!(told(&mut machine, &script), failed, "round {round}");
        machine.checkpoint().unwrap();
        machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
    }
    assert_eq!(super::tests::value(&machine, "k"), None, "nothing was written again");
}

/// What a release has compiled in counts only until the group has settled on something, and comes
/// back with it.
#[test]
fn replicas_of_other_releases_go_by_the_groups_rules() {
    let engines = [Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new())];
    let own = [StateLimits::default(), StateLimits { sessions_max: 1, ..Default::default() }];
    let limits = StateLimits { sessions_max: 2, ..Default::default() };
    let rules = GroupRules { limits, history: History::All };
    let mut script = Script::default();
    script.act(Action::Rules(rules));
    script.act(Action::Rules(GroupRules { limits: own[1], history: History::All }));
    for client in 1..=3 {
        let request = RequestId {
            client: ClientId(client),
            sequence: 1,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op =
            WriteOp::Put(Put { key: Bytes::from("k"), value: Bytes::new(), tells_previous: true });
        let timestamp = Timestamp(script.next_timestamp());
        script.push(Command::write(timestamp, request, op).encode());
    }
    let known = |machine: &mut StateMachine, entry: &LogEntry| {
        let applied = machine.apply(std::slice::from_ref(entry)).unwrap();
        assert_eq!(applied.summary.rules, Some(rules));
        applied.writes[0].fate != WriteFate::UnknownSession
    };
    let mut states = Vec::new();
    for (engine, own) in engines.iter().zip(own) {
        let mut machine = StateMachine::open(engine.clone(), own).unwrap();
        machine.apply(&script.entries).unwrap();
        machine.checkpoint().unwrap();
        let mut machine = StateMachine::open(engine.clone(), own).unwrap();
        for (client, remembered) in [(2, true), (1, false)] {
            let request = RequestId {
                client: ClientId(client),
                sequence: 2,
                answered_below: 1,
                begun: Timestamp::ZERO,
            };
            let timestamp = Timestamp(machine.applied().timestamp.0 + 1);
            let data = Command::write(timestamp, request, WriteOp::Barrier(Barrier {})).encode();
            let entry = LogEntry { term: 1, index: machine.applied().index + 1, data };
            assert_eq!(known(&mut machine, &entry), remembered, "of client {client}");
        }
        states.push(machine.applied());
    }
    assert_eq!(states[0], states[1]);
}

/// A piece of compaction that was under way when the history was changed removes nothing that is to
/// be kept.
#[test]
fn no_compaction_by_an_old_rule_follows_a_new_one() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    (0..4).for_each(|_| script.put("k", "v"));
    script.write(WriteOp::SetHistory(SetHistory { history: History::Versions { count: 3 } }));
    for (count, left) in [(1, 4), (3, 3)] {
        let compaction = GarbageCollection::History {
            history: History::Versions { count },
            as_of_us: u64::MAX,
            rows_max: 100,
            bytes_max: u64::MAX,
        };
        // One piece for the walk, and one for what is due.
        (0..2).for_each(|_| script.act(Action::GarbageCollection(compaction)));
        machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
        let read_view = crate::model::ReadView::as_of(Timestamp(i64::MAX));
        let of = crate::model::PageOf::Versions { key: Bytes::from("k") };
        let page = machine.store().page(&of, read_view, Default::default()).unwrap();
        assert_eq!(page.rows.len(), left);
    }
}

fn compacted(error: StoreReadError) -> Timestamp {
    match error {
        StoreReadError::Compacted { version } => version,
        error => panic!("refused, but because {error}"),
    }
}

/// Refused is what is below the greatest version that was compacted, wherever the state comes from.
#[test]
fn reads_below_what_was_compacted_are_refused_before_and_after_it_is_gone() {
    let (engine, mut machine) = machine();
    let mut script = Script::default();
    (0..4).for_each(|_| script.put("k", "v"));
    machine.apply(&script.entries).unwrap();
    let listed = |machine: &StateMachine| {
        let of = PageOf::Versions { key: Bytes::from("k") };
        let now = ReadView::as_of(machine.applied().timestamp);
        machine.store().first_page(&of, now, PageLimits::default()).unwrap().rows
    };
    let versions = [10, 20, 30, 40];
    let compact = |version: i64| WriteOp::from(Compact { version: Timestamp(version) });
    let check = |machine: &StateMachine, from: i64, left: usize| {
        let store = machine.store();
        let all = || PageOf::Range { from: Bytes::from("a"), to: Bytes::from("z") };
        let now = store.applied().timestamp;
        for at in [1, from - 1] {
            let at = Timestamp(at);
            assert_eq!(compacted(store.get_at(b"k", at).unwrap_err()), Timestamp(from));
            let view = ReadView { at, removals_up_to: now };
            let most = PageLimits::default();
            for page in [store.page(&all(), view, most), store.first_page(&all(), view, most)] {
                assert_eq!(compacted(page.unwrap_err()), Timestamp(from));
            }
        }
        assert!(store.get_at(b"k", Timestamp(from)).unwrap().is_some(), "as of that very version");
        assert!(store.get(b"k").unwrap().is_some());
        let newest = store.newest_page(&all(), Timestamp(1), PageLimits::default());
        assert!(newest.is_ok(), "a read of the newest state that began before");
        assert_eq!(listed(machine).len(), left, "the list shows what is left");
    };
    // An earlier one does nothing, and one of the future ends nothing that is to come.
    for (asked, from) in [(versions[2], versions[2]), (versions[1], versions[2])] {
        script.write(compact(asked));
        machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
        check(&machine, from, 4);
    }
    let before = machine.applied().hash;
    script.write(compact(i64::MAX));
    machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
    let last = machine.applied().timestamp.0;
    check(&machine, last, 4);
    assert_ne!(machine.applied().hash, before);

    machine.checkpoint().unwrap();
    let mut machine = StateMachine::open(engine, StateLimits::default()).unwrap();
    check(&machine, last, 4);
    let piece =
        GarbageCollection::Compacted { as_of_us: u64::MAX, rows_max: 2, bytes_max: u64::MAX };
    let mut pieces = 0;
    while machine.summary().compacted_due_us.is_some() {
        script.act(Action::GarbageCollection(piece));
        machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
        pieces += 1;
        assert!(pieces < 20, "it comes to no end");
    }
    assert!(pieces > 1, "a piece has a bound");
    check(&machine, last, 1);

    script.put("k", "w");
    machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
    assert_eq!(machine.summary().compacted_due_us, None, "what is later is not compacted");
    script.write(compact(i64::MAX));
    machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
    assert!(machine.summary().compacted_due_us.is_some());
}

/// A read of the newest state goes on, and what a write has removed is told, though all of it is
/// compacted meanwhile.
#[test]
fn what_was_the_newest_state_is_read_on_after_a_compaction_until_it_is_gone() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    ["a", "b", "c"].into_iter().for_each(|key| script.put(key, "v"));
    script.write(DelAll { keys: vec![Bytes::from("b")], keeps_history: true }.into());
    machine.apply(&script.entries).unwrap();
    let deleted = machine.applied().timestamp;
    let all = PageOf::Range { from: Bytes::from("a"), to: Bytes::from("z") };
    let one = PageLimits { rows: 1, ..PageLimits::default() };
    assert_eq!(machine.store().newest_page(&all, deleted, one).unwrap().rows.len(), 1);
    script.write(Compact { version: Timestamp(i64::MAX) }.into());
    machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
    let page = |machine: &StateMachine, view| {
        let page = machine.store().page(&all, view, PageLimits::default());
        page.map(|page| page.rows.into_iter().map(|row| row.key).collect::<Vec<_>>())
    };
    assert_eq!(page(&machine, ReadView::as_of(deleted)).unwrap(), ["a", "c"]);
    assert_eq!(page(&machine, ReadView::before(deleted)).unwrap(), ["a", "b", "c"]);
    let past = ReadView { at: Timestamp(deleted.0 - 1), removals_up_to: deleted };
    compacted(page(&machine, past).unwrap_err());

    while machine.summary().compacted_due_us.is_some() {
        script.act(Action::GarbageCollection(GarbageCollection::Compacted {
            as_of_us: u64::MAX,
            rows_max: 100,
            bytes_max: u64::MAX,
        }));
        machine.apply(&script.entries[machine.applied().index as usize..]).unwrap();
    }
    let gone = page(&machine, ReadView::before(deleted)).unwrap_err();
    assert!(matches!(gone, StoreReadError::Expired), "{gone}");
}

fn level(level: u32) -> FeatureLevel {
    FeatureLevel { level, release: ReleaseVersion(0, level as u16, 7) }
}

fn release(known: u32) -> Release {
    Release { level: level(known), ..Release::default() }
}

#[test]
fn a_level_that_a_release_does_not_know_stops_it_and_harms_nothing() {
    let engine = Arc::new(MemoryEngine::new());
    let mut machine = StateMachine::open(engine.clone(), release(3)).unwrap();
    let mut script = Script::default();
    script.put("k", "v");
    let of_first = machine.apply(&script.entries).unwrap().summary.level;
    assert_eq!(of_first, FeatureLevel::FIRST.level);
    for raised in [3, 2] {
        script.act(Action::Level(level(raised)));
    }
    let applied = machine.apply(&script.entries[1..]).unwrap();
    assert_eq!(applied.summary.level, 3, "it never falls");
    let told = "the group is at feature level 3, and this release (0.2.7) knows levels up to 2: \
                run release 0.3.7 or a newer one";

    let mut older = StateMachine::open(Arc::new(MemoryEngine::new()), release(2)).unwrap();
    older.apply(&script.entries[..1]).unwrap();
    let before = older.applied();
    assert_eq!(older.apply(&script.entries[1..]).unwrap_err().to_string(), told);
    assert_eq!(older.store().applied(), before);

    machine.checkpoint().unwrap();
    drop(machine);
    for _ in 0..2 {
        let opened =
            StateMachine::open(engine.clone(), release(2)).map(|machine| machine.applied());
        assert_eq!(opened.unwrap_err().to_string(), told, "the release before was run again");
    }
    let machine = StateMachine::open(engine, release(4)).unwrap();
    assert_eq!(machine.summary().level, 3);
}

/// Replicas that go by different rules are found out before the rules have shown.
#[test]
fn the_hash_covers_rules_and_level() {
    let mut hashes = std::collections::BTreeSet::new();
    let rules = |count| {
        let history = History::Versions { count };
        Action::Rules(GroupRules { limits: StateLimits::default(), history })
    };
    let set = |count| WriteOp::SetHistory(SetHistory { history: History::Versions { count } });
    for (founded, raised) in [(rules(1), 2), (rules(2), 2), (rules(1), 3)] {
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), release(3)).unwrap();
        let mut script = Script::default();
        script.act(founded);
        script.act(Action::Level(level(raised)));
        machine.apply(&script.entries).unwrap();
        hashes.insert(machine.applied().hash);
        script.write_as(1, set(7));
        machine.apply(&script.entries[2..]).unwrap();
        hashes.insert(machine.applied().hash);
    }
    assert_eq!(hashes.len(), 5, "two differ by what was set later, and then no more");
}

/// A refusal was once remembered as the outcome of its request: every retry of it was refused
/// again, for ever, long after there was room.
#[test]
fn a_range_that_was_refused_is_removed_when_it_is_asked_for_again() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    let keys = 0..=limits::REMOVAL_SCAN_ROWS_MAX;
    let pairs: Vec<(Bytes, Bytes)> =
        keys.map(|key| (Bytes::from(format!("{key:06}")), Bytes::from("v"))).collect();
    for _ in 0..=limits::RANGE_REMOVALS_MAX {
        script.write(WriteOp::PutAll(PutAll { pairs: pairs.clone() }));
        script.write(WriteOp::DelRange(DelRange {
            from: Bytes::new(),
            to: Bytes::from("9"),
            keeps_history: false,
        }));
    }
    let refused_sequence = script.entries.len() as u64;
    let applied = machine.apply(&script.entries).unwrap();
    let refusals: Vec<_> =
        applied.writes.iter().map(|write| write.fate == WriteFate::Refused).collect();
    assert_eq!(refusals.iter().filter(|refused| **refused).count(), 1);
    assert_eq!(refusals.last(), Some(&true));
    assert!(value(&machine, "000000").is_some(), "nothing of it was done");

    while machine.summary().oldest_removal_us.is_some() {
        let removed =
            GarbageCollection::Removed { before_us: u64::MAX, rows_max: 1024, bytes_max: u64::MAX };
        let timestamp = Timestamp(script.next_timestamp());
        script.push(
            Command { timestamp, clock_us: 0, action: Action::GarbageCollection(removed) }.encode(),
        );
        machine.apply(script.entries.last().map(std::slice::from_ref).unwrap()).unwrap();
    }
    script.write_as(
        refused_sequence,
        WriteOp::DelRange(DelRange {
            from: Bytes::new(),
            to: Bytes::from("9"),
            keeps_history: false,
        }),
    );
    let applied = machine.apply(script.entries.last().map(std::slice::from_ref).unwrap()).unwrap();
    answer(&applied.writes[0]);
    assert_eq!(value(&machine, "000000"), None);
}

#[test]
fn what_cannot_be_applied_is_a_typed_error_and_final() {
    let bad = |entry: LogEntry| {
        let (_, mut machine) = machine();
        let mut script = Script::default();
        script.put("k", "v");
        machine.apply(&script.entries).unwrap();
        let error = machine.apply(&[entry]).unwrap_err();
        assert_eq!(machine.store().applied().index, 1);
        script.put("k", "w");
        assert!(matches!(machine.apply(&script.entries[1..]), Err(ApplyError::Poisoned)));
        assert!(matches!(machine.checkpoint(), Err(ApplyError::Poisoned)));
        error
    };
    let garbage = LogEntry { term: 1, index: 2, data: Bytes::from_static(b"garbage and more") };
    assert!(matches!(bad(garbage.clone()), ApplyError::Undecodable { index: 2, .. }));
    let gap = bad(LogEntry { index: 3, ..garbage });
    assert!(matches!(gap, ApplyError::OutOfOrder { expected: 2, found: 3 }));
    let mut early = Script::default();
    early.put("k", "v");
    let stale = bad(LogEntry { index: 2, ..early.entries[0].clone() });
    assert!(matches!(stale, ApplyError::TimestampOrder { index: 2, .. }));
    // It says what to do: the log is read again at every start.
    assert!(stale.to_string().contains("start on an empty one"), "{stale}");
}

#[test]
fn a_seal_is_due_by_entries_by_bytes_and_by_time() {
    let (_, mut machine) = machine();
    let interval_us = limits::SEAL_INTERVAL.as_micros() as u64;
    assert!(!machine.needs_seal(u64::MAX, limits::SEAL_BYTES), "nothing to save");
    let noop = |index| LogEntry { term: 1, index, data: Bytes::new() };
    machine.apply(&[noop(1)]).unwrap();
    assert!(!machine.needs_seal(5, limits::SEAL_BYTES), "the interval begins here");
    assert!(!machine.needs_seal(4 + interval_us, limits::SEAL_BYTES));
    assert!(machine.needs_seal(5 + interval_us, limits::SEAL_BYTES));
    machine.checkpoint().unwrap();
    assert_eq!(machine.durable_index(), 1);
    assert!(!machine.needs_seal(u64::MAX, limits::SEAL_BYTES));

    let (_, mut machine) = self::machine();
    let many: Vec<_> = (1..=limits::SEAL_ENTRIES).map(noop).collect();
    let (last, most) = many.split_last().unwrap();
    machine.apply(most).unwrap();
    assert!(!machine.needs_seal(0, limits::SEAL_BYTES));
    machine.apply(std::slice::from_ref(last)).unwrap();
    assert!(machine.needs_seal(0, limits::SEAL_BYTES));

    let (_, mut machine) = self::machine();
    let value = Bytes::from(vec![0; limits::SEAL_BYTES as usize]);
    let mut script = Script::default();
    script.write(WriteOp::Put(Put { key: Bytes::from("k"), value, tells_previous: true }));
    machine.apply(&script.entries).unwrap();
    assert!(machine.needs_seal(0, limits::SEAL_BYTES));
}

/// Rows that another format has otherwise were taken for damage: the store of a newer release would
/// have been set aside and rebuilt.
#[test]
fn a_state_of_another_format_is_refused_whatever_its_other_rows_are() {
    let other = Bytes::from_static(b"as a later release has it");
    let format = STATE_FORMAT_VERSION + 1;
    for (name, value) in [
        (META_FORMAT, Bytes::copy_from_slice(&format.to_le_bytes())),
        (META_APPLIED, other.clone()),
        (META_LEVEL, other.clone()),
        (META_CLOCK, other),
    ] {
        let engine = Arc::new(MemoryEngine::new());
        let mut batch = WriteBatch::default();
        batch.put(keys::meta(META_FORMAT), Bytes::copy_from_slice(&format.to_le_bytes()));
        batch.put(keys::meta(name), value);
        engine.write_durably(&batch).unwrap();
        let told = ApplyError::OtherFormat(format).to_string();
        assert_eq!(stored_point(&*engine).unwrap_err().to_string(), told, "{name}");
        let opened = StateMachine::open(engine, StateLimits::default());
        assert_eq!(opened.map(drop).unwrap_err().to_string(), told, "{name}");
    }
}

/// One step of a random history, over few keys and few clients, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, client: u64, sequence: u64 },
    Del { key: u8, client: u64, sequence: u64 },
    Noop,
    Crash,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let ids = (0..4u8, 1..4u64, 1..12u64);
    prop_oneof![
        6 => ids.clone().prop_map(|(key, client, sequence)| Step::Put { key, client, sequence }),
        2 => ids.prop_map(|(key, client, sequence)| Step::Del { key, client, sequence }),
        1 => Just(Step::Noop),
        1 => Just(Step::Crash),
        1 => Just(Step::Checkpoint),
    ]
}

proptest! {
    /// One machine runs without interruption; the other crashes, replays the log from its last
    /// checkpoint, and must agree with the first on everything, always. Both agree with a model.
    #[test]
    fn replay_after_a_crash_gives_the_same_state(steps in prop::collection::vec(step(), 1..60)) {
        let (_, mut steady) = machine();
        let (engine, mut crashing) = machine();
        let mut script = Script::default();
        let mut model: BTreeMap<Bytes, (Timestamp, Bytes)> = BTreeMap::new();
        let mut seen: BTreeMap<(u64, u64), WriteOutcome> = BTreeMap::new();
        for step in steps {
            let (op, client, sequence) = match step {
                Step::Crash => {
                    engine.crash();
                    crashing = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
                    let kept = crashing.applied().index as usize;
                    crashing.apply(&script.entries[kept..]).unwrap();
                    prop_assert_eq!(crashing.applied(), steady.applied());
                    continue;
                }
                Step::Checkpoint => {
                    crashing.checkpoint().unwrap();
                    prop_assert_eq!(crashing.durable_index(), steady.applied().index);
                    continue;
                }
                Step::Noop => {
                    script.push(Bytes::new());
                    let entry = &script.entries[script.entries.len() - 1..];
                    prop_assert_eq!(steady.apply(entry).unwrap(), crashing.apply(entry).unwrap());
                    continue;
                }
                Step::Put { key, client, sequence } => {
                    let (key, value) = (Bytes::from(vec![key]), Bytes::from(sequence.to_string()));
                    (WriteOp::Put(Put { key, value, tells_previous: true }), client, sequence)
                }
                Step::Del { key, client, sequence } => {
                    let key = Bytes::from(vec![key]);
                    let del = Del { key, tells_previous: true, keeps_history: false };
                    (del.into(), client, sequence)
                }
            };
            let timestamp = Timestamp(script.next_timestamp());
            let expected = *seen.entry((client, sequence)).or_insert_with(|| {
                match &op {
                    WriteOp::Put(Put { key, value, .. }) => {
                        model.insert(key.clone(), (timestamp, value.clone()));
                    }
                    WriteOp::Del(Del { key, .. }) => drop(model.remove(key)),
                    other => panic!("no step does {other:?}"),
                }
                WriteOutcome { timestamp, result: OpResult::Done }
            });
            let (client, begun) = (ClientId(client), Timestamp::ZERO);
            let request = RequestId { client, sequence, answered_below: 0, begun };
            script.push(Command::write(timestamp, request, op).encode());
            let entry = &script.entries[script.entries.len() - 1..];
            let outcomes = steady.apply(entry).unwrap();
            prop_assert_eq!(answer(&outcomes.writes[0]).outcome(), expected);
            prop_assert_eq!(&outcomes, &crashing.apply(entry).unwrap());
            prop_assert_eq!(crashing.applied(), steady.applied());
            for key in 0..4u8 {
                let found = crashing.store().get(&[key]).unwrap();
                let found = found.map(|version| (version.timestamp, version.value));
                prop_assert_eq!(found.as_ref(), model.get(&[key][..]));
            }
        }
    }
}
