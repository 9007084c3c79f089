//! Leases as commands and programs meet them, against real servers: some are stopped and killed.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use acervo::client::{LeaseId, Txn, TxnOp};
use acervo::model::{LeaseAnswer, LeaseQuestion};
use acervo::wire::message::{Reply, Request};
use rustix::process::Signal;
use serde_json::json;

use crate::fake_server::FakeServer;
use crate::one_shot::run;
use crate::support::{Group, eventually};

/// Long enough for whatever a busy machine does between two commands.
const LONG: &str = "1h";

#[test]
fn a_lease_is_granted_shown_kept_alive_and_revoked_with_its_keys() {
    let group = Group::start(3, &["--console", "off"]);
    let servers = group.list();
    let granted = run(&servers, &["lease", "grant", LONG]);
    let id = granted.version().to_string();
    let named = run(&servers, &["lease", "grant", "366d", "--id", "7", "--json"]).json();
    assert_eq!((&named["lease"], &named["ttl_ms"]), (&json!(7), &json!(366_u64 * 24 * 3_600_000)));
    let again = run(&servers, &["lease", "grant", LONG, "--id", "7"]);
    assert_eq!((again.status, again.text()), (1, ""));
    assert!(again.err.starts_with("acervo: there is a lease 7"), "{}", again.err);

    for (key, lease) in [("a", &id[..]), ("b", &id), ("c", "7")] {
        run(&servers, &["put", key, "v", "--lease", lease]).version();
    }
    run(&servers, &["put", "b", "v"]).version();
    let none = run(&servers, &["put", "d", "v", "--lease", "8"]);
    assert_eq!((none.status, none.text()), (1, ""));
    assert_eq!(
        none.err,
        "acervo: lease 8: there is no such lease (any more): nothing was written\n"
    );

    let listed = run(&servers, &["lease", "list"]);
    let ids: Vec<&str> = listed.rows().iter().map(|row| row[0]).collect();
    assert_eq!(ids, ["7", &id]);
    let shown = run(&servers, &["lease", "show", &id, "--json"]).json();
    assert_eq!((&shown["lease"], &shown["ttl_ms"]), (&json!(granted.version()), &json!(3_600_000)));
    assert_eq!(shown["granted"], json!(granted.version()));
    assert_eq!(shown["keys"], json!([{"key": "a"}]));
    let shown = run(&servers, &["lease", "show", "7"]);
    assert_eq!(shown.text().lines().skip(1).collect::<Vec<_>>(), ["c"]);
    let kept = run(&servers, &["lease", "keep-alive", &id, "--once"]);
    assert_eq!((kept.status, kept.text()), (0, &format!("{id}\t3600s\n")[..]));

    let revoked = run(&servers, &["lease", "revoke", &id]).version();
    assert!(revoked > granted.version());
    assert_eq!(run(&servers, &["get", "a"]).status, 1, "it went with its lease");
    for key in ["b", "c"] {
        assert_eq!(run(&servers, &["get", key]).text(), "v");
    }
    for command in [&["revoke"][..], &["show"], &["keep-alive"]] {
        let gone = run(&servers, &[&["lease"], command, &[&id]].concat());
        assert_eq!((gone.status, gone.text()), (1, ""));
        assert_eq!(gone.err, format!("acervo: there is no lease {id}\n"));
    }
}

#[test]
fn a_time_or_an_id_that_no_lease_can_have_is_refused() {
    let nobody = "127.0.0.1:1";
    for arguments in [["0s", "1"], ["999ms", "1"], ["100000d", "1"], ["10", "1"], ["10s", "0"]] {
        let [ttl, id] = arguments;
        let refused = run(nobody, &["lease", "grant", ttl, "--id", id]);
        assert_eq!((refused.status, refused.text()), (2, ""), "{arguments:?}");
    }
}

/// A server that is silent for a while, and then knows no such lease any more.
#[test]
fn keep_alive_goes_on_over_failures_until_the_lease_is_gone() {
    let asked = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, request, link| {
        assert!(matches!(request, Request::Leases(LeaseQuestion::KeepAlive(_))), "{request:?}");
        let left = match asked.fetch_add(1, Ordering::Relaxed) {
            0 | 4 => Some(3_000),
            1..=3 => return,
            _ => None,
        };
        link.reply(id, Reply::LeasesOk(LeaseAnswer::KeptAlive(vec![left])));
    });
    let servers = server.address.to_string();
    let ran = run(&servers, &["lease", "keep-alive", "7", "--timeout", "200ms"]);
    assert_eq!((ran.status, ran.text()), (1, "7\t3s\n7\t3s\n"), "{}", ran.err);
    let said: Vec<&str> = ran.err.lines().collect();
    assert!(said[0].starts_with("acervo: lease 7 was not kept alive: "), "{}", ran.err);
    assert_eq!(said[1..], ["acervo: there is no lease 7"], "one remark for all failures");
}

#[test]
fn keep_alive_ends_when_nobody_has_answered_for_the_whole_time_of_the_lease() {
    let asked = AtomicUsize::new(0);
    let server = FakeServer::start(move |id, _, link| {
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            link.reply(id, Reply::LeasesOk(LeaseAnswer::KeptAlive(vec![Some(1_000)])));
        }
    });
    let servers = server.address.to_string();
    let ran = run(&servers, &["lease", "keep-alive", "7", "--timeout", "200ms"]);
    assert_eq!((ran.status, ran.text()), (3, "7\t1s\n"), "{}", ran.err);
    let last = ran.err.lines().last().unwrap();
    let said = "acervo: lease 7 was not kept alive for its whole TTL of 1s, and may have ended: ";
    assert!(last.starts_with(said), "{}", ran.err);
}

/// Servers that die and servers that are stopped for a while take nothing from a lease that is kept
/// alive, and one that is not ends all the same.
#[test]
fn a_lease_outlives_its_leaders_for_as_long_as_it_is_kept_alive() {
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let lease = client.lease(Duration::from_secs(5)).unwrap();
    client.put_with_lease("k", "v", lease.id()).unwrap();
    for round in 0..2 {
        let leader = group.leader();
        if round == 0 {
            group.kill(leader);
        } else {
            group.signal(leader, Signal::STOP);
        }
        // One of the same time, which nobody keeps alive, is granted later and ends.
        let other = client.grant_lease(lease.ttl(), None).unwrap().id;
        eventually("a lease ends", || client.lease_shown(other).unwrap().is_none().then_some(()));
        assert!(!lease.is_lost());
        assert_eq!(client.get("k").unwrap().value(), Some(&b"v"[..]));
        if round == 0 {
            group.start_server(leader);
        } else {
            group.signal(leader, Signal::CONT);
        }
    }
    let id: LeaseId = lease.id();
    drop(lease);
    eventually("the lease ends", || client.get("k").unwrap().value().is_none().then_some(()));
    assert_eq!(client.lease_shown(id).unwrap(), None);
}

#[test]
fn whoever_has_lost_a_lease_is_told() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let lease = client.lease(Duration::from_secs(3)).unwrap();
    assert!(!lease.wait_lost(Duration::from_millis(10)));
    client.revoke_lease(lease.id()).unwrap().unwrap();
    assert!(lease.wait_lost(Duration::from_secs(60)) && lease.is_lost());
    assert_eq!(lease.revoke().unwrap(), None);
    // Who gives it up has told whoever waits, once for all.
    let lease = client.lease(Duration::from_secs(3600)).unwrap();
    let lost = lease.lost();
    drop(lease.lost());
    assert!(lease.revoke().unwrap().is_some());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::pin!(lost).poll(&mut context).is_ready());
    // And where no server answers any more, by its own clock.
    let lease = client.lease(Duration::from_secs(3)).unwrap();
    (0..3).for_each(|at| group.signal(at, Signal::STOP));
    assert!(lease.wait_lost(Duration::from_secs(60)));
    (0..3).for_each(|at| group.signal(at, Signal::CONT));
}

/// Nothing was answered before the transaction was applied, and programs gave their leases up.
#[test]
fn a_short_lease_is_kept_alive_beside_a_transaction_that_takes_longer_to_apply() {
    let group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    let long = |_| client.grant_lease(Duration::from_secs(3_600), None).unwrap().id;
    let long: Vec<LeaseId> = (0..8).map(long).collect();
    let puts = (0..8 * 10_000).map(|number: usize| {
        TxnOp::put_with_lease(format!("key-{number}"), b"v", long[number % 8])
    });
    let short = client.lease(Duration::from_secs(2)).unwrap();
    client.txn(puts.fold(Txn::default(), Txn::then)).unwrap();
    assert!(!short.is_lost());
    assert!(short.revoke().unwrap().is_some(), "it has ended");
}
