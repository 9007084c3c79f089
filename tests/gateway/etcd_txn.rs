//! etcd's transactions: comparisons, what is refused before anything runs, and what operations
//! tell.

use acervo::gateway::interface::etcd::etcdserverpb::compare::{
    CompareResult, CompareTarget, TargetUnion,
};
use acervo::gateway::interface::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::response_op::Response as OpAnswer;
use acervo::gateway::interface::etcd::etcdserverpb::{
    Compare, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};
use tonic::Code;

use crate::abuse::peak_memory_mib;
use crate::etcd_site::{EtcdSite, FUTURE, delete, from_to, keys, one, op, put, refused, revision};
use crate::support::patient_client;

fn compare(key: &'static str, result: CompareResult, what: TargetUnion) -> Compare {
    let target = match what {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        range_end: Default::default(),
        target_union: Some(what),
    }
}

/// The same, with what it names for another question.
fn as_if(target: CompareTarget, compare: Compare) -> Compare {
    Compare { target: target.into(), ..compare }
}

fn puts(key: &'static str, value: &'static str) -> Op {
    Op::RequestPut(put(key, value))
}

fn all_of(ops: impl IntoIterator<Item = Op>) -> TxnRequest {
    TxnRequest { success: ops.into_iter().map(op).collect(), ..TxnRequest::default() }
}

fn if_then(compare: Compare, then: Op, or_else: Op) -> TxnRequest {
    TxnRequest { compare: vec![compare], success: vec![op(then)], failure: vec![op(or_else)] }
}

fn ranges(answer: &TxnResponse) -> Vec<&RangeResponse> {
    let ranges = answer.responses.iter().filter_map(|answer| match &answer.response {
        Some(OpAnswer::ResponseRange(range)) => Some(range),
        _ => None,
    });
    ranges.collect()
}

#[test]
fn comparisons_hold_as_in_etcd() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
    let site = EtcdSite::start();
    let lease = site.lease();
    let created = site.write("k", "a");
    let request = PutRequest { lease, ..put("k", "m") };
    let newest = revision(&site.put(request).unwrap().header);
    site.write("l", "n");
    let value = |text: &'static str| Value(text.into());
    let range = |compare: Compare, range_end: &'static str| Compare {
        range_end: range_end.into(),
        ..compare
    };
    let table = [
        (compare("k", Equal, Version(2)), true),
        (compare("k", Less, Version(2)), false),
        (compare("k", Greater, Version(1)), true),
        (compare("k", NotEqual, Version(2)), false),
        (compare("k", Equal, CreateRevision(created)), true),
        (compare("k", Greater, CreateRevision(created)), false),
        (compare("k", Equal, ModRevision(newest)), true),
        (compare("k", Less, ModRevision(newest)), false),
        (compare("k", Equal, Lease(lease)), true),
        (compare("l", Equal, Lease(0)), true),
        (compare("k", Equal, value("m")), true),
        (compare("k", Less, value("n")), true),
        (compare("k", Greater, value("m")), false),
        (compare("k", NotEqual, value("m")), false),
        (compare("k", Less, value("")), false),
        // Of what is not there numbers are 0, and no comparison of the value holds.
        (compare("none", Equal, Version(0)), true),
        (compare("none", Equal, CreateRevision(0)), true),
        (compare("none", Less, ModRevision(1)), true),
        (compare("none", Less, ModRevision(0)), false),
        (compare("none", Equal, Lease(0)), true),
        (compare("none", Equal, value("")), false),
        (compare("none", NotEqual, value("x")), false),
        // No number is negative.
        (compare("k", Greater, Version(-1)), true),
        (compare("k", NotEqual, ModRevision(-1)), true),
        (compare("k", Equal, CreateRevision(-1)), false),
        (compare("k", Less, Version(-1)), false),
        // A number or value of another kind than is asked for counts as none.
        (as_if(CompareTarget::Version, compare("k", Equal, ModRevision(1))), false),
        (as_if(CompareTarget::Version, compare("none", Equal, ModRevision(7))), true),
        (as_if(CompareTarget::Lease, compare("none", Equal, value("v"))), true),
        (as_if(CompareTarget::Value, compare("k", Greater, Version(9))), true),
        (as_if(CompareTarget::Value, compare("k", Equal, Version(0))), false),
        (Compare { target_union: None, ..compare("k", NotEqual, value("v")) }, true),
        // Every key of a range.
        (range(compare("k", Greater, value("a")), "m"), true),
        (range(compare("k", Greater, value("m")), "m"), false),
        (range(compare("k", Greater, Version(0)), "\0"), true),
        (range(compare("x", Equal, Version(0)), "z"), true),
        (range(compare("x", Equal, value("a")), "z"), false),
        (range(compare("z", Equal, Version(0)), "x"), true),
        (range(compare("z", Greater, Version(0)), "x"), false),
        (range(compare("z", Equal, value("a")), "x"), false),
    ];
    for (comparison, holds) in table {
        let range = || Op::RequestRange(one("k"));
        let read = site.txn(if_then(comparison.clone(), range(), range())).unwrap();
        assert_eq!(read.succeeded, holds, "{comparison:?}");
        // The same where it decides about a write.
        let written =
            site.txn(if_then(comparison.clone(), puts("w", "1"), puts("w", "2"))).unwrap();
        assert_eq!(written.succeeded, holds, "{comparison:?}");
        let value = site.get("w").unwrap().value;
        assert_eq!(value, if holds { "1" } else { "2" }, "{comparison:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let site = EtcdSite::start();
    let delete_of = |key, end| Op::RequestDeleteRange(delete(key, end));
    let within = |txn: TxnRequest| Op::RequestTxn(txn);
    let many = |count: usize| all_of((0..count).map(|_| Op::RequestRange(one("k"))));
    let compares = TxnRequest {
        compare: vec![compare("k", CompareResult::Equal, TargetUnion::Version(0)); 129],
        ..TxnRequest::default()
    };
    let no_key = compare("", CompareResult::Equal, TargetUnion::Version(0));
    let failure = |txn: TxnRequest| TxnRequest { failure: txn.success, ..TxnRequest::default() };
    let (too_many, twice) = (
        "etcdserver: too many operations in txn request",
        "etcdserver: duplicate key given in txn request",
    );
    let table = [
        (many(129), too_many),
        (failure(many(129)), too_many),
        (compares, too_many),
        // What is within another has room for what the one around it leaves.
        (all_of([within(many(128))]), too_many),
        (all_of([puts("k", "1"), puts("k", "2")]), twice),
        (failure(all_of([puts("k", "1"), puts("k", "2")])), twice),
        (all_of([puts("k", "1"), delete_of("a", "z")]), twice),
        (all_of([delete_of("k", ""), puts("k", "1")]), twice),
        (
            all_of([delete_of("a", "c"), delete_of("j", "l"), delete_of("b", "d"), puts("k", "1")]),
            twice,
        ),
        (all_of([within(all_of([delete_of("j", "l")])), puts("k", "1")]), twice),
        (all_of([puts("k", "1"), within(all_of([puts("k", "2")]))]), twice),
        (
            all_of([within(all_of([puts("k", "1")])), within(failure(all_of([puts("k", "2")])))]),
            twice,
        ),
        (all_of([puts("", "1")]), "etcdserver: key is not provided"),
        (all_of([Op::RequestRange(one(""))]), "etcdserver: key is not provided"),
        (all_of([delete_of("", "")]), "etcdserver: key is not provided"),
        (if_then(no_key, puts("k", "1"), puts("k", "1")), "etcdserver: key is not provided"),
        (
            all_of([
                puts("j", "1"),
                Op::RequestPut(PutRequest { ignore_value: true, ..put("k", "1") }),
            ]),
            "etcdserver: value is provided",
        ),
        (
            all_of([
                puts("j", "1"),
                Op::RequestPut(PutRequest { ignore_value: true, ..put("k", "") }),
            ]),
            "etcdserver: key not found",
        ),
    ];
    for (request, text) in table {
        refused(site.txn(request), Code::InvalidArgument, text);
    }
    let future = Op::RequestRange(RangeRequest { revision: FUTURE, ..one("k") });
    refused(
        site.txn(all_of([puts("k", "1"), future])),
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    let unknown = Op::RequestPut(PutRequest { lease: 4711, ..put("k", "1") });
    refused(
        site.txn(all_of([puts("j", "1"), unknown])),
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    assert_eq!(site.range(from_to("\0", "\0")).unwrap().count, 0, "nothing was written");

    // A key may be put by both branches, and what is missing does no harm where it is not done.
    let missing = Op::RequestPut(PutRequest { ignore_value: true, ..put("missing", "") });
    let absent = compare("k", CompareResult::Equal, TargetUnion::Version(0));
    let done = site.txn(if_then(absent, puts("k", "1"), missing)).unwrap();
    assert!(done.succeeded && site.get("k").is_some());
}

#[test]
fn operations_see_those_before_them_and_tell_what_they_did() {
    let site = EtcdSite::start();
    let first = ["a", "b", "c"].map(|key| site.write(key, "1"))[0];
    let sorted = RangeRequest {
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Mod.into(),
        limit: 2,
        ..from_to("a", "z")
    };
    let request = all_of([
        Op::RequestPut(PutRequest { prev_kv: true, ..put("a", "2") }),
        Op::RequestRange(sorted.clone()),
        Op::RequestDeleteRange(delete("b", "c")),
        Op::RequestRange(RangeRequest { limit: 1, ..from_to("a", "z") }),
        Op::RequestRange(RangeRequest { revision: first, ..from_to("a", "z") }),
        Op::RequestRange(RangeRequest { count_only: true, ..from_to("a", "z") }),
        Op::RequestTxn(if_then(
            compare("c", CompareResult::Equal, TargetUnion::Version(1)),
            puts("d", "1"),
            puts("e", "1"),
        )),
        Op::RequestRange(from_to("z", "a")),
    ]);
    let done = site.txn(request).unwrap();
    let at = revision(&done.header);
    let answers: Vec<&OpAnswer> =
        done.responses.iter().map(|answer| answer.response.as_ref().unwrap()).collect();
    let [
        OpAnswer::ResponsePut(PutResponse { prev_kv: Some(previous), header: put_header }),
        OpAnswer::ResponseRange(newest),
        OpAnswer::ResponseDeleteRange(DeleteRangeResponse { deleted: 1, prev_kvs, .. }),
        OpAnswer::ResponseRange(cut),
        OpAnswer::ResponseRange(then),
        OpAnswer::ResponseRange(counted),
        OpAnswer::ResponseTxn(within),
        OpAnswer::ResponseRange(backwards),
    ] = answers[..]
    else {
        panic!("{done:?}");
    };
    assert_eq!(previous.value, "1");
    let header = put_header.unwrap();
    assert_eq!((header.revision, header.cluster_id, header.member_id), (at, 0, 0));
    assert_eq!((keys(&newest.kvs).as_str(), newest.count, newest.more), ("ac", 3, true));
    assert_eq!((newest.kvs[0].mod_revision, &newest.kvs[0].value[..]), (at, &b"2"[..]));
    assert_eq!(keys(prev_kvs), "b");
    assert_eq!((keys(&cut.kvs).as_str(), cut.count, cut.more), ("a", 2, true));
    assert_eq!((keys(&then.kvs).as_str(), then.count), ("a", 1));
    assert_eq!((counted.kvs.len(), counted.count), (0, 2));
    assert!(within.succeeded && within.responses.len() == 1);
    assert_eq!(backwards.count, 0);
    // One revision for all, and the past is still there.
    let now = site.range(RangeRequest { min_mod_revision: at, ..from_to("a", "z") }).unwrap();
    assert_eq!(keys(&now.kvs), "ad");
    let before = RangeRequest { revision: at - 1, ..from_to("a", "z") };
    assert_eq!(keys(&site.range(before).unwrap().kvs), "abc");
}

#[test]
fn a_transaction_that_only_reads_writes_nothing() {
    let site = EtcdSite::start();
    let written = site.write("k", "v");
    for _ in 0..3 {
        let done =
            site.txn(all_of([Op::RequestRange(one("k")), Op::RequestRange(one("l"))])).unwrap();
        assert_eq!(revision(&done.header), written);
        let [found, missing] = ranges(&done)[..] else { panic!("{done:?}") };
        assert_eq!((found.count, missing.count), (1, 0));
    }
    assert!(site.txn(TxnRequest::default()).unwrap().succeeded, "nothing at all");
}

#[test]
fn keys_that_keep_their_value_keep_the_newest_whoever_writes_meanwhile() {
    let site = EtcdSite::start();
    let lease = site.lease();
    site.write("k", "0");
    // Each call of the one side reads and writes under the condition that nothing has changed.
    let keep = PutRequest { ignore_value: true, lease, ..put("k", "") };
    let (mut keeping, mut writing) = (site.kv(), site.kv());
    site.runtime.block_on(async {
        for _ in 0..20 {
            let (kept, written) = tokio::join!(
                keeping.put(crate::site::waiting(keep.clone())),
                writing.put(crate::site::waiting(put("k", "1"))),
            );
            kept.unwrap();
            written.unwrap();
        }
    });
    let row = site.get("k").unwrap();
    assert_eq!((row.version, &row.value[..]), (41, &b"1"[..]), "no write is lost");
}

/// A hundred kilobytes of such a request made the gateway hold gigabytes.
#[test]
fn ranges_of_the_past_that_are_told_again_and_again_are_counted_before_they_are_made() {
    let site = EtcdSite::start();
    let client = patient_client(site.group.addresses());
    let pairs = (0..4_000).map(|number| (format!("k{number:04}"), "v"));
    let at = client.put_all(pairs).unwrap().timestamp.0;
    let past =
        Op::RequestRange(RangeRequest { revision: at, keys_only: true, ..from_to("a", "z") });
    let within = Op::RequestTxn(all_of(vec![past; 64]));
    let status = site.txn(all_of(vec![within; 63])).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let peak = peak_memory_mib(&site.gateway);
    assert!(peak < 512, "{peak} MiB were held");
}
