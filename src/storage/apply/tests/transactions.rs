//! Transactions in the state machine: applied once, told alike whoever asks again, and bounded.

use super::*;
use crate::model::{
    Comparison, GarbageCollection, OpResult, PutSequential, Relation, Test, Txn, TxnAnswer,
    TxnKeys, TxnOp, TxnResult,
};

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn get(name: &'static str) -> TxnOp {
    TxnOp::Get { key: key(name) }
}

fn put(name: &'static str, value: &'static str) -> TxnOp {
    TxnOp::Put { key: key(name), value: key(value), tells_previous: true, lease: None }
}

fn del_range(from: &'static str, to: &'static str) -> TxnOp {
    let (from, to) = (key(from), key(to));
    TxnOp::DelRange { from, to, keeps_history: false, tells_previous: true }
}

/// What reads as of each time find once a transaction has done this to keys of which one has a
/// value and the other was deleted keeping its history.
fn pasts_after(op: TxnOp) -> [Vec<Option<i64>>; 2] {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    script.put("deleted", "one");
    script.put("valued", "two");
    script.del_keeping_history("deleted");
    script.write(then([op]).into());
    machine.apply(&script.entries).unwrap();
    ["deleted", "valued"].map(|key| past(&machine, key).1)
}

#[test]
fn a_transaction_keeps_or_removes_the_history_of_what_it_deletes() {
    let (kept, gone) = (vec![Some(10), Some(10), None, None], vec![None; 4]);
    let (valued, valued_gone) = (vec![None, Some(20), Some(20), None], vec![None; 4]);
    let unchanged = vec![None, Some(20), Some(20), Some(20)];
    let del =
        |name, keeps_history| TxnOp::Del { key: key(name), keeps_history, tells_previous: false };
    let range = |keeps_history| {
        let (from, to) = (key("a"), key("z"));
        TxnOp::DelRange { from, to, keeps_history, tells_previous: false }
    };
    assert_eq!(pasts_after(del("valued", true)), [kept.clone(), valued.clone()]);
    assert_eq!(pasts_after(del("valued", false)), [kept.clone(), valued_gone.clone()]);
    assert_eq!(pasts_after(del("deleted", true)), [kept.clone(), unchanged.clone()]);
    assert_eq!(pasts_after(del("deleted", false)), [gone, unchanged]);
    assert_eq!(pasts_after(range(true)), [kept.clone(), valued]);
    // Unlike the operation, a range of a transaction is of the keys that have a value.
    assert_eq!(pasts_after(range(false)), [kept, valued_gone]);
}

fn then(ops: impl IntoIterator<Item = TxnOp>) -> Txn {
    Txn { then: ops.into_iter().collect(), ..Txn::default() }
}

/// If the key has this version.
fn if_version(name: &'static str, version: i64, txn: Txn) -> Txn {
    let test = Test::Version(Relation::Equal, Timestamp(version));
    Txn { compare: vec![Comparison { keys: TxnKeys::One(key(name)), test }], ..txn }
}

fn told(machine: &mut StateMachine, script: &Script) -> WriteAnswer {
    let next = machine.applied().index as usize;
    let applied = machine.apply_answering(&script.entries[next..]).unwrap();
    answer(applied.writes.last().unwrap()).clone()
}

fn results(answer: &WriteAnswer) -> &[TxnResult] {
    let txn = answer.txn.as_ref().expect("it is told");
    txn.results.as_ref().expect("the results are known")
}

#[test]
fn a_retry_is_told_the_same_whatever_was_written_since_and_after_a_restart() {
    let (engine, mut machine) = machine();
    let moved = if_version(
        "a",
        10,
        Txn {
            then: vec![put("a", "9"), get("a"), put("b", "1"), del_range("c", "d")],
            or_else: vec![get("b"), put("else", "")],
            ..Txn::default()
        },
    );
    let mut script = Script::default();
    script.put("a", "10");
    script.put("c", "gone");
    script.write_as(100, moved.clone().into());
    let first = told(&mut machine, &script);
    assert_eq!((first.timestamp, first.result), (Timestamp(30), OpResult::Txn { branches: 1 }));
    let [TxnResult::Put { previous }, TxnResult::Get(Some(seen)), _, removed] = results(&first)
    else {
        panic!("{first:?}")
    };
    assert_eq!(previous.as_ref().unwrap().value, Some(key("10")));
    assert_eq!((seen.timestamp, seen.facts.created), (Timestamp(30), Timestamp(10)));
    assert_eq!((seen.facts.count, seen.value.clone()), (2, Some(key("9"))));
    assert!(matches!(removed, TxnResult::DelRange { removed: 1, rows } if rows.len() == 1));
    script.write_as(101, moved.clone().into());
    let second = told(&mut machine, &script);
    assert_eq!(second.result, OpResult::Txn { branches: 0 });
    let [TxnResult::Get(Some(seen)), TxnResult::Put { previous: None }] = results(&second) else {
        panic!("{second:?}")
    };
    assert_eq!(seen.timestamp, Timestamp(30));
    // Now neither would take the branch that it took, nor find what it found.
    script.del("a");
    script.del("b");
    script.put("c", "again");
    for round in 0..2 {
        script.write_as(100, moved.clone().into());
        assert_eq!(told(&mut machine, &script), first, "round {round}");
        script.write_as(101, moved.clone().into());
        assert_eq!(told(&mut machine, &script), second, "round {round}");
        machine.checkpoint().unwrap();
        machine = StateMachine::open(engine.clone(), StateLimits::default()).unwrap();
    }
    assert_eq!(value(&machine, "a"), None, "nothing was written again");
    assert_eq!(value(&machine, "else"), Some((40, Vec::new())));
    // Whoever answers nobody reads nothing, and comes to the same.
    let (_, mut follower) = super::machine();
    let quiet = follower.apply(&script.entries).unwrap();
    assert!(quiet.writes.iter().all(|write| answer(write).txn.is_none()));
    assert_eq!(follower.applied(), machine.applied());
}

#[test]
fn a_retry_that_comes_very_late_keeps_its_branch() {
    let (_, mut machine) = machine();
    let txn = if_version("a", 10, then([put("a", "2")]));
    let mut script = Script::default();
    script.put("a", "1");
    script.write_as(100, txn.clone().into());
    script.put("a", "3");
    script.del("a");
    machine.apply(&script.entries).unwrap();
    let (before_us, rows_max, bytes_max) = (u64::MAX, 100, 1_000);
    let removed = GarbageCollection::Removed { before_us, rows_max, bytes_max };
    script.act(Action::GarbageCollection(removed));
    script.write_as(100, txn.into());
    let late = told(&mut machine, &script);
    assert_eq!((late.timestamp, late.result), (Timestamp(20), OpResult::Txn { branches: 1 }));
    assert_eq!(late.txn.as_deref(), Some(&TxnAnswer { succeeded: true, results: None }));
}

#[test]
fn what_looks_at_too_much_does_nothing_and_is_told_so_again() {
    let limits = StateLimits {
        transaction_rows_max: 3,
        transaction_compared_bytes_max: 4,
        ..StateLimits::default()
    };
    let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), limits).unwrap();
    let mut script = Script::default();
    ["a", "b", "c", "d"].iter().for_each(|name| script.put(name, "1234"));
    script.del("b");
    let all = || TxnKeys::Range { from: key("a"), to: key("d") };
    let compare = |keys, test| Txn { compare: vec![Comparison { keys, test }], ..Txn::default() };
    let more = Test::Count(Relation::Greater, 0);
    let greater = |value| Test::Value(Relation::Greater, key(value));
    let too_long = [
        then([put("e", ""), del_range("a", "d")]),
        Txn { then: vec![put("e", "")], ..compare(all(), more.clone()) },
        then([put("e", ""), TxnOp::Txn(Box::new(compare(all(), more)))]),
        then([
            put("e", ""),
            TxnOp::Txn(Box::new(compare(
                TxnKeys::Range { from: key("a"), to: key("c") },
                greater("0"),
            ))),
        ]),
    ];
    for (txn, sequence) in too_long.iter().zip(100..) {
        script.write_as(sequence, txn.clone().into());
        let refused = told(&mut machine, &script);
        assert_eq!((refused.result, refused.txn), (OpResult::TooLong, None), "{txn:?}");
    }
    assert_eq!(value(&machine, "e"), None);
    // A removed key counts where something is decided, and not where it is only told.
    let whole = then([
        put("f", ""),
        TxnOp::Range {
            from: key("a"),
            to: key("d"),
            rows_max: 9,
            keys_only: true,
            reverse: false,
            counts_only: false,
        },
    ]);
    script.write_as(200, whole.into());
    let read = told(&mut machine, &script);
    let [_, TxnResult::Range { rows, has_more: false, .. }] = results(&read) else {
        panic!("{read:?}")
    };
    assert_eq!(rows.len(), 3, "of a, c and d");
    // As much as may be is told, though the removal's own rows lie above what it has removed; and
    // the same when what it removed was written again.
    let most = || then([del_range("a", "c"), put("g", "")]);
    script.write_as(300, most().into());
    let first = told(&mut machine, &script);
    assert_eq!(first.result, OpResult::Txn { branches: 1 });
    let [TxnResult::DelRange { removed: 2, rows }, _] = results(&first) else {
        panic!("{first:?}")
    };
    assert_eq!(rows.len(), 2);
    ["a", "aa", "b", "c"].iter().for_each(|name| script.put(name, "1234"));
    script.write_as(300, most().into());
    assert_eq!(told(&mut machine, &script), first);
    script.write(Txn { then: vec![put("h", "")], ..compare(all(), greater("0")) }.into());
    assert_eq!(told(&mut machine, &script).result, OpResult::TooLong);
    for (txn, sequence) in too_long.iter().zip(100..) {
        script.write_as(sequence, txn.clone().into());
        assert_eq!(told(&mut machine, &script).result, OpResult::TooLong, "{txn:?} again");
    }
}

/// A small entry may ask for a mebibyte, and thousands of them are applied at once.
#[test]
fn what_transactions_tell_at_once_is_bounded() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    let long = Bytes::from(vec![7; limits::TRANSACTION_RESULT_BYTES_MAX]);
    script.write(WriteOp::Put(Put { key: key("long"), value: long, tells_previous: false }));
    for _ in 0..100 {
        script.write(then([put("k", ""), get("long"), get("long")]).into());
    }
    let applied = machine.apply_answering(&script.entries).unwrap();
    let (told, untold): (Vec<_>, Vec<_>) =
        applied.writes[1..].iter().map(answer).partition(|answer| !answer.is_untold());
    assert_eq!((told.len(), untold.len()), (8, 92));
    for answer in &told {
        assert_eq!(answer.txn.as_ref().unwrap().bytes(), limits::TRANSACTION_RESULT_BYTES_MAX);
        let [_, TxnResult::Get(Some(first)), TxnResult::Get(Some(second))] = results(answer) else {
            panic!("{answer:?}")
        };
        assert!(first.value.is_some() && second.value.is_none(), "a value that finds no room");
        assert_eq!((first.timestamp, second.timestamp), (Timestamp(10), Timestamp(10)));
    }
    // Whoever asks again is told as much as others.
    script.write_as(script.entries.len() as u64, then([put("k", "")]).into());
    let again = self::told(&mut machine, &script);
    assert_eq!((again.timestamp, again.is_untold()), (untold[91].timestamp, false));
}

#[test]
fn sequential_keys_stand_in_the_order_of_their_writes() {
    let (_, mut machine) = machine();
    let mut script = Script::default();
    for value in ["first", "second"] {
        script.write(PutSequential { prefix: key("q/"), value: key(value) }.into());
    }
    machine.apply(&script.entries).unwrap();
    let keys = ["q/00000000000000000010", "q/00000000000000000020"];
    assert_eq!(value(&machine, keys[0]), Some((10, b"first".to_vec())));
    assert_eq!(value(&machine, keys[1]), Some((20, b"second".to_vec())));
}
