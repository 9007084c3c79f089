//! etcd's KV service, but for transactions: a case for each rule of how etcd behaves, group rules
//! in tables.

use acervo::gateway::interface::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use acervo::gateway::interface::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, PutRequest, RangeRequest, TxnRequest,
};
use tonic::Code;

use crate::etcd_site::{EtcdSite, FUTURE, delete, from_to, keys, one, op, put, refused, revision};
use crate::site::waiting;
use crate::support::{eventually, patient_client};

#[test]
fn a_key_has_its_revisions_version_and_lease() {
    let site = EtcdSite::start();
    let first = site.write("k", "1");
    let second = site.write("k", "2");
    assert!(0 < first && first < second && second < 1 << 53);
    let row = site.get("k").unwrap();
    assert_eq!((row.create_revision, row.mod_revision, row.version), (first, second, 2));
    assert_eq!((&row.value[..], row.lease), (&b"2"[..], 0));

    // With a lease, and without it again.
    let lease = site.lease();
    site.put(PutRequest { lease, ..put("k", "3") }).unwrap();
    assert_eq!(site.get("k").unwrap().lease, lease);
    site.put(PutRequest { ignore_lease: true, ..put("k", "4") }).unwrap();
    let row = site.get("k").unwrap();
    assert_eq!((row.lease, &row.value[..]), (lease, &b"4"[..]));
    site.put(PutRequest { ignore_value: true, lease, ..put("k", "") }).unwrap();
    let row = site.get("k").unwrap();
    assert_eq!((row.lease, &row.value[..], row.version), (lease, &b"4"[..], 5));
    site.write("k", "5");
    assert_eq!(site.get("k").unwrap().lease, 0);

    let put_over = site.put(PutRequest { prev_kv: true, ..put("k", "6") }).unwrap();
    let previous = put_over.prev_kv.unwrap();
    assert_eq!((&previous.value[..], previous.version), (&b"5"[..], 6));
    let fresh = site.put(PutRequest { prev_kv: true, ..put("new", "1") }).unwrap();
    assert_eq!(fresh.prev_kv, None);

    let invalid = |request, text| refused(site.put(request), Code::InvalidArgument, text);
    invalid(put("", "1"), "etcdserver: key is not provided");
    let keep_value = PutRequest { ignore_value: true, ..put("none", "") };
    let keep_lease = PutRequest { ignore_lease: true, ..put("none", "1") };
    invalid(keep_value.clone(), "etcdserver: key not found");
    invalid(keep_lease.clone(), "etcdserver: key not found");
    invalid(PutRequest { value: "1".into(), ..keep_value }, "etcdserver: value is provided");
    invalid(PutRequest { lease, ..keep_lease }, "etcdserver: lease is provided");
    let unknown = site.put(PutRequest { lease: 4711, ..put("none", "1") });
    refused(unknown, Code::NotFound, "etcdserver: requested lease not found");
    assert_eq!(site.get("none"), None, "nothing was written");

    // As long as etcd takes, and longer: by etcd's own limit, and by that of the transport.
    for (bytes, is_taken) in [(1 << 20, true), (1700 << 10, false), (3 << 20, false)] {
        let long = PutRequest { value: vec![7; bytes].into(), ..put("long", "") };
        match is_taken {
            true => assert!(site.put(long).is_ok()),
            false => invalid(long, "etcdserver: request is too large"),
        }
    }
}

#[test]
fn a_range_shows_what_its_options_ask_for() {
    let site = EtcdSite::start();
    // Versions 2, 1, 3; created in the order b, c, a.
    let created_b = site.write("b", "z");
    site.write("c", "y");
    let created_a = site.write("a", "x");
    site.write("c", "y");
    site.write("c", "y");
    let newest = site.write("b", "z");
    let all = || from_to("a", "d");

    let sorted = |order: SortOrder, target: SortTarget, limit| RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        limit,
        ..all()
    };
    use SortOrder::{Ascend, Descend, None as Unsorted};
    let table = [
        ("all, in the order of their keys", all(), "abc", 3, false),
        ("the end is left out", from_to("a", "c"), "ab", 2, false),
        ("from a key on", from_to("b", "\0"), "bc", 2, false),
        ("everything", from_to("\0", "\0"), "abc", 3, false),
        ("an end below the key", from_to("b", "a"), "", 0, false),
        ("a limit", RangeRequest { limit: 2, ..all() }, "ab", 3, true),
        ("a limit that is not reached", RangeRequest { limit: 3, ..all() }, "abc", 3, false),
        ("descending keys", sorted(Descend, SortTarget::Key, 0), "cba", 3, false),
        ("descending keys, a limit", sorted(Descend, SortTarget::Key, 1), "c", 3, true),
        ("by version", sorted(Ascend, SortTarget::Version, 0), "abc", 3, false),
        ("by version, descending", sorted(Descend, SortTarget::Version, 2), "cb", 3, true),
        ("by creation", sorted(Ascend, SortTarget::Create, 0), "bca", 3, false),
        ("by modification", sorted(Descend, SortTarget::Mod, 0), "bca", 3, false),
        ("by value", sorted(Ascend, SortTarget::Value, 0), "acb", 3, false),
        ("by value without an order", sorted(Unsorted, SortTarget::Value, 0), "acb", 3, false),
        ("counted only", RangeRequest { count_only: true, ..all() }, "", 3, false),
        (
            "counted only, a limit",
            RangeRequest { count_only: true, limit: 1, ..all() },
            "",
            3,
            false,
        ),
        ("not before", RangeRequest { min_mod_revision: newest, ..all() }, "b", 3, false),
        ("not after", RangeRequest { max_mod_revision: created_a, ..all() }, "a", 3, false),
        (
            "created not before",
            RangeRequest { min_create_revision: created_a, ..all() },
            "a",
            3,
            false,
        ),
        (
            "created not after",
            RangeRequest { max_create_revision: created_b, ..all() },
            "b",
            3,
            false,
        ),
        ("serializable", RangeRequest { serializable: true, ..all() }, "abc", 3, false),
        ("of then", RangeRequest { revision: created_b, ..all() }, "b", 1, false),
    ];
    for (what, request, expected, count, more) in table {
        let answer = site.range(request).unwrap();
        assert_eq!(
            (keys(&answer.kvs).as_str(), answer.count, answer.more),
            (expected, count, more),
            "{what}"
        );
        assert!(revision(&answer.header) >= newest, "{what}");
    }

    let keys_only = site.range(RangeRequest { keys_only: true, ..all() }).unwrap();
    assert!(keys_only.kvs.iter().all(|row| row.value.is_empty() && row.version > 0));
    let nothing = site.range(one("nothing")).unwrap();
    assert_eq!((nothing.count, nothing.kvs.len(), nothing.more), (0, 0, false));

    refused(site.range(one("")), Code::InvalidArgument, "etcdserver: key is not provided");
    let future = site.range(RangeRequest { revision: FUTURE, ..all() });
    let text = "etcdserver: mvcc: required revision is a future revision";
    refused(future, Code::OutOfRange, text);
}

#[test]
fn deletions_leave_the_past_and_those_of_nothing_make_no_revision() {
    let site = EtcdSite::start();
    let before = ["a", "b", "c"].map(|key| site.write(key, "1"))[2];
    let nothing = site.delete(delete("x", "z")).unwrap();
    assert_eq!((nothing.deleted, nothing.prev_kvs.len()), (0, 0));
    assert_eq!(revision(&nothing.header), before, "nothing has changed");
    let backwards = site.delete(delete("c", "a")).unwrap();
    assert_eq!(backwards.deleted, 0);

    let deleted = site.delete(delete("a", "c")).unwrap();
    assert_eq!((deleted.deleted, keys(&deleted.prev_kvs).as_str()), (2, "ab"));
    let at = revision(&deleted.header);
    assert!(at > before);
    assert_eq!(keys(&site.range(from_to("a", "z")).unwrap().kvs), "c");
    let then = RangeRequest { revision: before, ..from_to("a", "z") };
    assert_eq!(keys(&site.range(then).unwrap().kvs), "abc");

    // It comes into being anew.
    let again = site.write("a", "2");
    let row = site.get("a").unwrap();
    assert_eq!((row.create_revision, row.version), (again, 1));

    let without = DeleteRangeRequest { prev_kv: false, ..delete("c", "") };
    let deleted = site.delete(without).unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (1, 0));
    refused(site.delete(delete("", "")), Code::InvalidArgument, "etcdserver: key is not provided");
}

#[test]
fn revisions_never_go_back_and_a_read_never_promises_more_than_it_shows() {
    let site = EtcdSite::start();
    let mut last = 0;
    for round in 0..20 {
        let written = site.write("k", "v");
        for serializable in [false, true] {
            let answer = site.range(RangeRequest { serializable, ..one("k") }).unwrap();
            let told = revision(&answer.header);
            assert!(written <= told && last <= told, "round {round}: {last}, {written}, {told}");
            assert_eq!(answer.kvs[0].mod_revision, written);
            last = told;
        }
    }
    // The gateway asks servers once a second, and may have asked first before they had a leader.
    eventually("the header is whole", || {
        let header = site.range(one("k")).unwrap().header.unwrap();
        let is_whole = header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0;
        is_whole.then_some(())
    });
}

#[test]
fn a_group_without_a_majority_is_unavailable_in_etcds_words() {
    let mut site = EtcdSite::start();
    site.write("k", "v");
    for server in [0, 1] {
        site.group.kill(server);
    }
    for answer in [site.range(one("k")).map(drop), site.put(put("k", "w")).map(drop)] {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let texts = ["etcdserver: no leader", "etcdserver: request timed out"];
        assert!(texts.contains(&status.message()), "{status}");
    }
}

#[test]
fn what_lies_below_a_compaction_is_not_told_any_more() {
    let site = EtcdSite::start();
    let compact = |revision| {
        let compaction = CompactionRequest { revision, physical: false };
        site.call(site.kv().compact(waiting(compaction)))
    };
    let [first, second, third] = ["1", "2", "3"].map(|value| site.write("k", value));
    let at = |revision| {
        let asked = site.range(RangeRequest { revision, ..one("k") });
        asked.map(|range| range.kvs[0].value.clone())
    };
    assert_eq!(at(first).unwrap(), "1");
    let answer = compact(second).unwrap();
    assert!(revision(&answer.header) >= third);

    let compacted = "etcdserver: mvcc: required revision has been compacted";
    refused(at(first), Code::OutOfRange, compacted);
    assert_eq!(at(second).unwrap(), "2", "the revision itself can be read");
    assert_eq!(at(third).unwrap(), "3");
    let mut maintenance = MaintenanceClient::new(site.channel());
    let mut hash = |revision| site.call(maintenance.hash_kv(waiting(HashKvRequest { revision })));
    refused(hash(first), Code::OutOfRange, compacted);
    assert_eq!(hash(third).unwrap().compact_revision, second);

    for again in [second, first, -1] {
        refused(compact(again), Code::OutOfRange, compacted);
    }
    let future = "etcdserver: mvcc: required revision is a future revision";
    refused(compact(FUTURE), Code::OutOfRange, future);
    compact(third).unwrap();
    refused(at(second), Code::OutOfRange, compacted);
}

/// Long keys, as one transaction looks through so many bytes of keys.
#[test]
fn a_range_that_is_too_long_for_one_transaction_is_deleted_in_pieces() {
    let site = EtcdSite::start();
    let client = patient_client(site.group.addresses());
    let long = "k".repeat(3_900);
    for part in 0..3 {
        let pairs = (0..1_600).map(|number| (format!("d/{part}{number:04}{long}"), "v"));
        client.put_all(pairs).unwrap();
    }
    let before = site.write("other", "v");
    let whole = DeleteRangeRequest { prev_kv: false, ..delete("d/", "d0") };
    let ops = vec![op(Op::RequestDeleteRange(whole.clone()))];
    let as_one = site.txn(TxnRequest { success: ops, ..TxnRequest::default() });
    assert_eq!(as_one.unwrap_err().code(), Code::InvalidArgument, "a transaction is one change");
    let mut kv = site.kv().max_decoding_message_size(64 << 20);
    let with_previous = DeleteRangeRequest { prev_kv: true, ..whole.clone() };
    let done = site.call(kv.delete_range(waiting(with_previous))).unwrap();
    assert_eq!((done.deleted, done.prev_kvs.len()), (4_800, 4_800));
    assert!(done.prev_kvs.iter().all(|row| row.value == "v" && row.mod_revision < before));
    assert!(done.prev_kvs.is_sorted_by(|row, next| row.key < next.key));
    assert_eq!(site.range(from_to("d/", "d0")).unwrap().count, 0);
    assert!(site.get("other").is_some());
    let past = RangeRequest { revision: before, count_only: true, ..from_to("d/", "d0") };
    assert_eq!(site.range(past).unwrap().count, 4_800, "their past can still be read");
    assert_eq!(site.delete(whole.clone()).unwrap().deleted, 0);
    // What is deleted has not left the disk, and lies between those that are there.
    for key in ["d/0", "d/1", "d/2", "d/3"] {
        site.write(key, "v");
    }
    assert_eq!(site.delete(whole).unwrap().deleted, 4);
    assert_eq!(site.range(from_to("d/", "d0")).unwrap().count, 0);
}
