//! Transactions on a store that is a map, compared with what they come to when they are carried out
//! plainly.

use std::convert::Infallible;

use proptest::prelude::*;

use self::transactions::{State, TxnMaker, bits, carry_out};
use super::*;
use crate::limits::{
    TRANSACTION_DEPTH_MAX, TRANSACTION_LOOKS_MAX, TRANSACTION_ROWS_MAX, TRANSACTIONS_WITHIN_MAX,
};
use crate::model::{self, Facts, KeyState, LeaseId};

#[path = "../../../../tests/support/transactions.rs"]
mod transactions;

/// One state, every row of which is a key with a value.
struct MapReads<'a>(&'a State);

impl TxnReads for MapReads<'_> {
    type Error = Infallible;

    fn state(&self, key: &[u8]) -> Result<Option<KeyState>, Infallible> {
        Ok(self.0.get(key).map(|(state, _)| *state))
    }

    fn version(&self, key: &[u8], value_bytes_max: usize) -> Result<Option<TxnFound>, Infallible> {
        Ok(self.0.get(key).map(|(state, value)| TxnFound {
            state: *state,
            value_bytes: value.len(),
            value: (value.len() <= value_bytes_max).then(|| value.clone()),
        }))
    }

    fn keys(&self, wanted: TxnRange<'_>) -> Result<TxnFoundKeys, Infallible> {
        let TxnRange { from, to, reverse, keys_max, rows_max, bytes_max: _ } = wanted;
        assert!(from <= to && keys_max > 0 && rows_max > 0, "{wanted:?}");
        let in_range = self.0.iter().filter(|(key, _)| from <= &key[..] && &key[..] <= to);
        let mut keys: Vec<_> = in_range.map(|(key, (state, _))| (key.clone(), *state)).collect();
        if reverse {
            keys.reverse();
        }
        let most = keys_max.min(rows_max);
        let is_whole = keys.len() <= most;
        keys.truncate(most);
        Ok(TxnFoundKeys { rows: keys.len(), keys, is_whole })
    }
}

const NO_LIMITS: TxnLimits = TxnLimits {
    rows: usize::MAX,
    kept_rows: usize::MAX,
    compared_bytes: usize::MAX,
    result_bytes: usize::MAX,
};
const AT: Timestamp = Timestamp(1_000);

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

/// Keys with one version each: the first at 10, the second at 20, and so on.
fn state(rows: &[(&'static str, &'static str)]) -> State {
    let rows = rows.iter().zip(1..).map(|((name, value), number)| {
        let version = Timestamp(10 * number);
        let facts = Facts { created: version, count: 1, lease: None };
        (key(name), (KeyState { version, facts }, key(value)))
    });
    rows.collect()
}

fn write(decision: &TxnDecision, state: &mut State) {
    for (key, write) in &decision.writes {
        match write {
            TxnWrite::Put { value, lease } => {
                let before = state.get(key).map(|(state, _)| state.facts);
                let facts = Facts { lease: *lease, ..Facts::following(before, AT) };
                state.insert(key.clone(), (KeyState { version: AT, facts }, value.clone()));
            }
            TxnWrite::Del { .. } => drop(state.remove(key)),
        }
    }
}

fn decide(txn: &Txn, state: &State, limits: TxnLimits) -> Option<TxnDecision> {
    let Ok(decision) = txn.decide(&MapReads(state), AT, limits);
    decision
}

/// What a transaction comes to, and the state after it.
fn done(txn: &Txn, state: &State) -> (TxnAnswer, State) {
    assert_eq!(txn.check(), Ok(()), "{txn:?}");
    let decision = decide(txn, state, NO_LIMITS).expect("nothing is limited");
    let Ok(answer) = txn.answer(decision.branches, &MapReads(state), AT, NO_LIMITS);
    let mut after = state.clone();
    write(&decision, &mut after);
    (answer, after)
}

fn put(name: &'static str, value: &'static str) -> TxnOp {
    TxnOp::Put { key: key(name), value: key(value), tells_previous: true, lease: None }
}

fn del(name: &'static str) -> TxnOp {
    TxnOp::Del { key: key(name), keeps_history: false, tells_previous: true }
}

fn del_range(from: &'static str, to: &'static str) -> TxnOp {
    let (from, to) = (key(from), key(to));
    TxnOp::DelRange { from, to, keeps_history: false, tells_previous: false }
}

fn get(name: &'static str) -> TxnOp {
    TxnOp::Get { key: key(name) }
}

fn range(from: &'static str, to: &'static str, rows_max: u32) -> TxnOp {
    let (from, to) = (key(from), key(to));
    let (keys_only, reverse, counts_only) = (false, false, false);
    TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only }
}

fn within(txn: Txn) -> TxnOp {
    TxnOp::Txn(Box::new(txn))
}

fn when(name: &'static str, test: Test) -> Comparison {
    Comparison { keys: TxnKeys::One(key(name)), test }
}

fn then(ops: impl IntoIterator<Item = TxnOp>) -> Txn {
    Txn { then: ops.into_iter().collect(), ..Txn::default() }
}

/// The value of what an operation tells of one key.
fn value(result: &TxnResult) -> Option<&[u8]> {
    match result {
        TxnResult::Get(found)
        | TxnResult::Put { previous: found }
        | TxnResult::Del { previous: found } => found.as_ref()?.value.as_deref(),
        other => panic!("{other:?} is not of one key"),
    }
}

fn results(answer: &TxnAnswer) -> &[TxnResult] {
    answer.results.as_ref().expect("the results are told")
}

#[test]
fn each_operation_sees_those_before_it() {
    let before = state(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let txn = then([
        put("a", "10"),
        get("a"),
        del("b"),
        get("b"),
        put("bb", "new"),
        range("a", "z", 9),
        range("a", "z", 2),
    ]);
    let (answer, after) = done(&txn, &before);
    let told = results(&answer);
    assert_eq!(value(&told[0]), Some(&b"1"[..]));
    assert_eq!(value(&told[1]), Some(&b"10"[..]));
    let TxnResult::Get(Some(found)) = &told[1] else { panic!("{told:?}") };
    assert_eq!((found.timestamp, found.facts.count), (AT, 2));
    assert_eq!(found.facts.created, Timestamp(10));
    assert_eq!((value(&told[2]), value(&told[3])), (Some(&b"2"[..]), None));
    for (result, keys, more) in [(&told[5], "a bb c", false), (&told[6], "a bb", true)] {
        let TxnResult::Range { rows, count, has_more } = result else { panic!("{result:?}") };
        let found: Vec<_> = rows.iter().map(|row| str::from_utf8(&row.key).unwrap()).collect();
        assert_eq!((found.join(" ").as_str(), *has_more), (keys, more));
        assert_eq!(*count, rows.len() as u64);
    }
    assert_eq!(after.keys().cloned().collect::<Vec<_>>(), ["a", "bb", "c"]);
}

#[test]
fn a_key_without_a_value_is_0_and_no_comparison_of_its_value_holds() {
    use Relation::*;
    let before = state(&[("a", "1"), ("b", "1")]);
    let holds = |comparison: &Comparison| {
        let txn = Txn { compare: vec![comparison.clone()], ..then([put("x", "")]) };
        done(&txn, &before).0.succeeded
    };
    let of_nothing = [
        (Test::Version(Equal, Timestamp(0)), true),
        (Test::Version(NotEqual, Timestamp(0)), false),
        (Test::Version(Less, Timestamp(1)), true),
        (Test::Created(Equal, Timestamp(0)), true),
        (Test::Created(Greater, Timestamp(0)), false),
        (Test::Count(Equal, 0), true),
        (Test::Count(Less, 1), true),
        (Test::Lease(Equal, 0), true),
        (Test::Lease(NotEqual, 0), false),
        (Test::Value(Equal, Bytes::new()), false),
        (Test::Value(NotEqual, key("1")), false),
        (Test::Value(Less, key("1")), false),
        (Test::Value(Greater, Bytes::new()), false),
    ];
    for (test, expected) in of_nothing {
        let empty = TxnKeys::Range { from: key("c"), to: key("d") };
        for keys in [TxnKeys::One(key("none")), empty] {
            let comparison = Comparison { keys, test: test.clone() };
            assert_eq!(holds(&comparison), expected, "{comparison:?}");
        }
    }
    let all = |test| Comparison { keys: TxnKeys::Range { from: key("a"), to: key("c") }, test };
    for (comparison, expected) in [
        (when("a", Test::Version(Equal, Timestamp(10))), true),
        (when("b", Test::Created(Greater, Timestamp(10))), true),
        (when("b", Test::Value(Equal, key("1"))), true),
        (when("b", Test::Value(Equal, key("12"))), false),
        (when("b", Test::Value(NotEqual, key("12"))), true),
        (when("b", Test::Value(Less, key("12"))), true),
        (all(Test::Version(Less, Timestamp(20))), false),
        (all(Test::Version(Less, Timestamp(21))), true),
        (all(Test::Count(Equal, 1)), true),
        (all(Test::Value(Equal, key("1"))), true),
    ] {
        assert_eq!(holds(&comparison), expected, "{comparison:?}");
    }
    assert!(done(&then([put("x", "")]), &before).0.succeeded, "nothing to compare holds");
}

#[test]
fn nested_transactions_compare_what_was_done_before_them() {
    let before = state(&[("a", "1")]);
    let inner = Txn {
        compare: vec![when("a", Test::Value(Relation::Equal, key("2")))],
        then: vec![put("b", "then")],
        or_else: vec![put("b", "else")],
    };
    let outer = Txn {
        compare: vec![when("none", Test::Count(Relation::Greater, 0))],
        then: vec![within(then([put("c", "")]))],
        or_else: vec![put("a", "2"), within(inner), get("b")],
    };
    let (answer, after) = done(&outer, &before);
    assert!(!answer.succeeded);
    let told = results(&answer);
    let TxnResult::Txn(within) = &told[1] else { panic!("{told:?}") };
    assert!(within.succeeded);
    assert_eq!(value(&told[2]), Some(&b"then"[..]));
    assert_eq!(after[&key("b")].1, key("then"));
    let decision = decide(&outer, &before, NO_LIMITS).unwrap();
    assert_eq!(decision.branches, 0b100, "of the whole, of the one not done, of the one done");
    assert!(outer.may_come_to(OpResult::Txn { branches: 0b111 }));
    assert!(!outer.may_come_to(OpResult::Txn { branches: 0b1000 }));
    assert!(outer.may_come_to(OpResult::TooLong) && !outer.may_come_to(OpResult::Done));
}

#[test]
fn what_would_be_wrong_in_part_does_nothing_and_reads_end_early() {
    let before = state(&[("a", "1"), ("b", "22"), ("c", "3")]);
    let limits = |rows, compared_bytes| TxnLimits { rows, compared_bytes, ..NO_LIMITS };
    let decided = |txn: &Txn, limits| decide(txn, &before, limits).is_some();
    let removal = then([del_range("a", "c")]);
    assert!(decided(&removal, limits(3, 0)) && !decided(&removal, limits(2, 0)));
    let keys = TxnKeys::Range { from: key("a"), to: key("c") };
    let test = Test::Count(Relation::Greater, 0);
    let compared = Txn { compare: vec![Comparison { keys, test }], ..removal.clone() };
    assert!(decided(&compared, limits(6, 0)) && !decided(&compared, limits(5, 0)), "together");
    let value = |relation, value| when("b", Test::Value(relation, key(value)));
    for (comparison, bytes) in [
        (value(Relation::Equal, "22"), 2),
        (value(Relation::NotEqual, "33"), 2),
        (value(Relation::Greater, "1"), 2),
        (value(Relation::Equal, "333"), 0),
        (value(Relation::NotEqual, "1"), 0),
    ] {
        let txn = Txn { compare: vec![comparison], ..then([put("x", "")]) };
        assert!(decided(&txn, limits(0, bytes)), "{txn:?}");
        assert!(bytes == 0 || !decided(&txn, limits(0, bytes - 1)), "{txn:?}");
    }

    let reads = then([range("a", "c", 9), get("b")]);
    let read = |limits| {
        let Ok(answer) = reads.read(&MapReads(&before), limits);
        let answer = answer.expect("reads end early");
        assert!(answer.bytes() <= limits.result_bytes, "{answer:?}");
        let told = results(&answer);
        let TxnResult::Range { rows, has_more, .. } = &told[0] else { panic!("{told:?}") };
        let values = rows.iter().filter(|row| row.found.value.is_some()).count();
        (rows.len(), values, *has_more, self::value(&told[1]).is_some())
    };
    let told = |result_bytes| read(TxnLimits { result_bytes, ..NO_LIMITS });
    assert_eq!(told(9), (3, 3, false, true));
    assert_eq!(told(8), (3, 3, false, false));
    assert_eq!(told(6), (3, 2, false, false), "a value that finds no room is left out");
    assert_eq!(told(2), (1, 1, true, false));
    assert_eq!(told(0), (0, 0, true, false));
    assert_eq!(read(limits(2, 0)), (2, 2, true, true));
    assert_eq!(read(limits(0, 0)), (0, 0, true, true));
}

/// Where what was before cannot be looked through any more.
#[test]
fn an_answer_keeps_its_branch_where_its_results_are_not_known() {
    let before = state(&[("a", "1"), ("b", "2")]);
    let txn = then([del_range("a", "b")]);
    let limits = TxnLimits { rows: 1, ..NO_LIMITS };
    for branches in [0, 1] {
        let Ok(answer) = txn.answer(branches, &MapReads(&before), AT, limits);
        let results = (branches == 0).then(Vec::new);
        assert_eq!(answer, TxnAnswer { succeeded: branches == 1, results });
        assert!(txn.fits(&answer));
    }
}

fn nested(depth: usize, innermost: Txn) -> Txn {
    (1..depth).fold(innermost, |txn, _| then([within(txn)]))
}

#[test]
fn what_can_never_be_carried_out_is_refused_in_one_sentence() {
    use Relation::{Equal, Less};
    let put = || put("k", "v");
    let compared = |comparison| Txn { compare: vec![comparison], ..then([put()]) };
    let wrong_way = TxnKeys::Range { from: key("b"), to: key("a") };
    let many = |count| (1..count).map(|_| get("g")).chain([put()]).collect::<Vec<_>>();
    let rows = |rows_max| then([range("a", "b", rows_max), put()]);
    let (both, deep) = (TRANSACTIONS_WITHIN_MAX, TRANSACTION_DEPTH_MAX);
    let broad = |count| then((1..count).map(|_| within(then([get("a")]))).chain([put()]));
    let refused = [
        (nested(deep + 1, then([put()])), "nests 9 deep"),
        (broad(both + 1), "is made of 65"),
        (then(many(TRANSACTION_LOOKS_MAX + 1)), "1001 times"),
        (compared(Comparison { keys: wrong_way, test: Test::Count(Equal, 0) }), "before it begins"),
        (compared(when("k", Test::Version(Equal, Timestamp(-1)))), "negative version"),
        (compared(when("k", Test::Created(Less, Timestamp(0)))), "created version less than 0"),
        (compared(when("k", Test::Count(Less, 0))), "count less than 0"),
        (compared(when("k", Test::Lease(Less, 0))), "lease less than 0"),
        (compared(when("k", Test::Value(Less, Bytes::new()))), "less than an empty one"),
        (rows(0), "no rows"),
        (then([get("a")]), "writes nothing"),
        (then([put(), put()]), "writes the key \"k\" twice"),
    ];
    for (txn, sentence) in refused {
        let error = txn.check().expect_err(sentence);
        assert!(error.contains(sentence) && !error.contains('\n'), "{error}");
        // What only reads is asked for as a read.
        assert_eq!(txn.check_read().is_ok(), !txn.writes(), "{txn:?}");
        let inner = Txn { or_else: vec![within(txn.clone())], ..then([put()]) };
        assert_eq!(inner.check().is_ok(), sentence == "writes nothing", "{inner:?}");
    }
    let taken = [
        nested(deep, then([put()])),
        broad(both),
        then(many(TRANSACTION_LOOKS_MAX)),
        rows(1),
        compared(when("k", Test::Version(Equal, Timestamp(0)))),
    ];
    for txn in taken {
        assert_eq!(txn.check(), Ok(()));
    }
    assert!(then([put()]).check_read().unwrap_err().contains("as a WRITE"));
    assert_eq!(then([get("a")]).check_read(), Ok(()));
}

#[test]
fn a_key_is_written_once_on_each_path() {
    let either = |one: TxnOp, other: TxnOp| within(Txn { or_else: vec![other], ..then([one]) });
    let taken = [
        then([either(put("a", "1"), put("a", "2"))]),
        then([either(put("a", "1"), put("b", "2")), put("c", "3")]),
        then([del_range("a", "c"), put("d", "1")]),
        then([del_range("c", "a"), put("b", "1"), del_range("c", "c")]),
        then([either(del_range("a", "c"), del_range("b", "d")), del_range("e", "f")]),
    ];
    for txn in taken {
        assert_eq!(txn.check(), Ok(()), "{txn:?}");
    }
    let refused = [
        then([put("a", "1"), del("a")]),
        then([either(put("a", "1"), put("b", "2")), put("b", "3")]),
        then([put("b", "3"), either(put("a", "1"), either(get("b"), del("b")))]),
        then([del_range("a", "c"), put("b", "1")]),
        then([del_range("a", "c"), del_range("c", "d")]),
        then([put("c", ""), del_range("a", "b"), del_range("bb", "d")]),
        then([either(del_range("a", "c"), del_range("b", "d")), put("d", "")]),
    ];
    for txn in refused {
        assert!(txn.check().is_err_and(|error| error.contains("twice")), "{txn:?}");
        let or_else = Txn { or_else: txn.then, ..Txn::default() };
        assert!(or_else.check().is_err(), "{or_else:?}");
    }
}

#[test]
fn its_shape_tells_what_it_may_cost() {
    let shape = |txn: Txn| model::OpShape::of(&txn.into());
    let cas = Txn {
        compare: vec![when("k", Test::Value(Relation::Equal, key("old")))],
        ..then([put("k", "new!")])
    };
    let of_cas = shape(cas.clone());
    let told_rows = limits::TRANSACTION_RESULT_BYTES_MAX / VALUE_BYTES_PER_ROW;
    assert_eq!((of_cas.keys, of_cas.work_rows, of_cas.bytes), (2, 2 + told_rows, 9));
    assert_eq!((of_cas.value_bytes_max, of_cas.adds_data), (4, true));
    assert_eq!((of_cas.known_at_commit, of_cas.depends_on_state), (None, true));
    let of_range = shape(then([range("a", "b", 5), del("a")]));
    let range_rows = TRANSACTION_ROWS_MAX + told_rows;
    assert_eq!((of_range.work_rows, of_range.adds_data), (3 + range_rows, false));
    // A range of one key is as short as a key: etcd's clients name keys so, and their transactions
    // waited for each other, each for the disks.
    let one_key = |keeps_history| TxnOp::DelRange {
        from: key("k"),
        to: key("k"),
        keeps_history,
        tells_previous: false,
    };
    let one = Comparison {
        keys: TxnKeys::Range { from: key("k"), to: key("k") },
        ..when("k", Test::Count(Relation::Equal, 1))
    };
    let short = |ops| shape(Txn { compare: vec![one.clone()], ..then(ops) });
    for ops in [vec![range("k", "k", 5)], vec![one_key(true)], vec![one_key(false)]] {
        let rows = short(ops.clone()).work_rows;
        assert!(rows <= 6 + told_rows, "{ops:?} counts as {rows} rows");
    }
    let keeping = TxnOp::Del { key: key("a"), keeps_history: true, tells_previous: false };
    assert!(shape(then([keeping])).adds_data, "what it keeps takes room");
    // Nine hundred of these in half a megabyte had a leader read fourteen gigabytes at once.
    let less =
        Txn { compare: vec![when("k", Test::Value(Relation::Less, key("b")))], ..cas.clone() };
    let compared_rows = limits::TRANSACTION_COMPARED_BYTES_MAX / VALUE_BYTES_PER_ROW;
    assert_eq!(shape(nested(2, less)).work_rows, 2 + compared_rows + told_rows);
    let of_removal = shape(nested(3, then([del_range("a", "b"), del_range("c", "d")])));
    assert_eq!(of_removal.work_rows, 4 + TRANSACTION_ROWS_MAX);
    let keeping = TxnOp::DelRange {
        from: key("a"),
        to: key("b"),
        keeps_history: true,
        tells_previous: false,
    };
    let of_keeping = shape(then([keeping]));
    assert_eq!(of_keeping.work_rows, 2 + limits::KEPT_REMOVAL_ROWS_MAX);
    let of_empty_key = shape(nested(2, then([put("", "")])));
    assert!(of_empty_key.check_keys().is_err());
    assert!(cas.memory_bytes() >= 9 + 4 * limits::ELEMENT_OVERHEAD_BYTES);
}

#[test]
fn decoding_is_bounded_whatever_the_bytes_announce() {
    let encoded = |txn: &Txn| rmp_serde::to_vec(txn).unwrap();
    let decoded = |bytes: &[u8]| rmp_serde::from_slice::<Txn>(bytes);
    let deepest = nested(TRANSACTION_DEPTH_MAX, then([put("k", "v"), range("a", "b", 1)]));
    assert_eq!(decoded(&encoded(&deepest)).unwrap(), deepest);
    let deeper = decoded(&encoded(&then([within(deepest)]))).unwrap_err().to_string();
    assert!(deeper.contains("nest at most 8 deep"), "{deeper}");
    // Lists within lists, none of which is too long by itself.
    let half = limits::TRANSACTION_KEYS_MAX / 2;
    let gets = || (0..half).map(|_| TxnOp::Get { key: Bytes::new() });
    let fits = then(gets().chain([within(then(gets().skip(1)))]));
    assert_eq!(decoded(&encoded(&fits)).unwrap(), fits);
    let too_many = then(gets().chain([within(then(gets()))]));
    let error = decoded(&encoded(&too_many)).unwrap_err().to_string();
    assert!(error.contains("a list announces"), "{error}");
    // Announced, and nothing behind it.
    let announced = b"\x93\xdd\xff\xff\xff\xff";
    let error = decoded(announced).unwrap_err().to_string();
    assert!(error.contains("a list announces 4294967295"), "{error}");
    for bytes in
        [&b"\x92\x90\x90"[..], b"\x93\x90\x91\xa3GET\x90", b"\x93\x90\x91\x81\xa3NOT\x90\x90"]
    {
        assert!(decoded(bytes).is_err());
    }
}

/// A transaction and a state, from numbers as random ones.
fn any_txn(seed: u64) -> (Txn, State) {
    let mut last = seed | 1;
    let mut pick = move |most: usize| {
        last ^= last << 13;
        last ^= last >> 7;
        last ^= last << 17;
        (last % most as u64) as usize
    };
    let keys: Vec<_> = (b'a'..b'h').map(|byte| Bytes::from(vec![byte])).collect();
    let values: Vec<_> = ["", "1", "2", "22"].map(key).into();
    let mut before = State::new();
    for key in &keys {
        if pick(3) > 0 {
            let created = 10 + pick(5) as i64;
            let version = Timestamp(created + pick(3) as i64);
            let (count, value) = (1 + pick(3) as u64, values[pick(values.len())].clone());
            let facts = Facts { created: Timestamp(created), count, lease: None };
            before.insert(key.clone(), (KeyState { version, facts }, value));
        }
    }
    let versions: Vec<_> = (10..17).map(Timestamp).collect();
    let mut numbers = 0..;
    let mut value = || Bytes::from(format!("new{}", numbers.next().unwrap_or(0)));
    let mut maker = TxnMaker {
        pick: &mut pick,
        keys: &keys,
        versions: &versions,
        value: &mut value,
        values: &values,
        keeps_history: true,
        leases: &[LeaseId(1), LeaseId(2)],
        only_reads: seed.is_multiple_of(4),
    };
    (maker.fit(4), before)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// What is decided, told and written, the first time and again.
    #[test]
    fn evaluation_comes_to_what_carrying_it_out_plainly_does(seed: u64) {
        let (txn, before) = any_txn(seed);
        let mut after = before.clone();
        let (branches, expected) = carry_out(&txn, &mut after, AT);
        prop_assert!(txn.fits(&expected));
        if !txn.writes() {
            prop_assert_eq!(txn.check_read(), Ok(()));
            let Ok(answer) = txn.read(&MapReads(&before), NO_LIMITS);
            prop_assert_eq!(answer, Some(expected));
            return Ok(());
        }
        prop_assert_eq!(txn.check(), Ok(()));
        let decision = decide(&txn, &before, NO_LIMITS).unwrap();
        prop_assert_eq!(decision.branches, bits(&branches));
        let result = OpResult::Txn { branches: decision.branches };
        prop_assert!(txn.may_come_to(result));
        let mut written = before.clone();
        write(&decision, &mut written);
        prop_assert_eq!(written, after);
        let Ok(answer) = txn.answer(decision.branches, &MapReads(&before), AT, NO_LIMITS);
        prop_assert_eq!(answer, expected);
        let bytes = rmp_serde::to_vec(&txn).unwrap();
        prop_assert_eq!(rmp_serde::from_slice::<Txn>(&bytes).unwrap(), txn);
    }

    /// Whatever the limits are: what is decided within them is what is decided without, and what
    /// is told is a part of all that there is to tell.
    #[test]
    fn limits_make_nothing_wrong(seed: u64, rows in 0..12usize, bytes in 0..12usize) {
        let (txn, before) = any_txn(seed);
        let limits =
            TxnLimits { rows, kept_rows: rows, compared_bytes: bytes, result_bytes: bytes };
        let reads = MapReads(&before);
        if !txn.writes() {
            let Ok(answer) = txn.read(&reads, limits);
            prop_assert!(answer.is_none_or(|answer| txn.fits(&answer) && answer.bytes() <= bytes));
            return Ok(());
        }
        let whole = decide(&txn, &before, NO_LIMITS).unwrap();
        if let Some(decision) = decide(&txn, &before, limits) {
            prop_assert_eq!(&decision, &whole);
        }
        let Ok(answer) = txn.answer(whole.branches, &reads, AT, limits);
        prop_assert!(txn.fits(&answer) && answer.bytes() <= bytes);
        prop_assert_eq!(answer.succeeded, whole.branches & 1 == 1);
    }
}

#[test]
fn a_sequential_key_ends_in_its_version() {
    let put = model::PutSequential { prefix: key("q/"), value: key("v") };
    assert_eq!(put.key(Timestamp(1_700_000_000_000_001)), "q/00001700000000000001");
    assert!(put.key(Timestamp(i64::MAX)) > put.key(Timestamp(9)));
    let longest = vec![b'p'; limits::KEY_BYTES_MAX - 20];
    let with = |prefix: Vec<u8>| model::PutSequential { prefix: prefix.into(), value: key("") };
    assert_eq!(with(longest.clone()).check(), Ok(()));
    assert_eq!(with(longest.clone()).key(Timestamp(1)).len(), limits::KEY_BYTES_MAX);
    assert!(with([&longest[..], b"p"].concat()).check().unwrap_err().contains("20 digits"));
}
