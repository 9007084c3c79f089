//! etcd's services Lock and Election.

use std::time::Duration;

use acervo::gateway::interface::etcd::etcdserverpb::LeaseTimeToLiveRequest;
use acervo::gateway::interface::etcd::etcdserverpb::lease_client::LeaseClient;
use acervo::gateway::interface::etcd::v3electionpb::election_client::ElectionClient;
use acervo::gateway::interface::etcd::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use acervo::gateway::interface::etcd::v3lockpb::lock_client::LockClient;
use acervo::gateway::interface::etcd::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Code;

use crate::etcd_site::{EtcdSite, from_to, refused, revision};
use crate::site::{waiting, within};
use crate::support::eventually;

#[test]
fn a_lock_is_taken_waited_for_and_handed_over_in_turn() {
    let site = EtcdSite::start();
    let (first, second) = (site.lease(), site.lease());
    let lock = |lease| LockRequest { name: "m".into(), lease };
    let mut client = LockClient::new(site.channel());
    let held = site.call(client.lock(waiting(lock(first)))).unwrap();
    assert_eq!(held.key, format!("m/{first:x}"));
    assert!(revision(&held.header) > 0);
    let again = site.call(client.lock(waiting(lock(first)))).unwrap();
    assert_eq!(again.key, held.key, "whoever has it gets it at once");

    let mut waiter = LockClient::new(site.channel());
    site.runtime.block_on(async {
        let next = tokio::spawn(async move { waiter.lock(waiting(lock(second))).await });
        let queue = || async { site.kv().range(waiting(from_to("m/", "m0"))).await.unwrap() };
        while queue().await.into_inner().count < 2 {}
        assert!(!next.is_finished(), "the first still holds it");
        let unlock = UnlockRequest { key: held.key.clone() };
        client.unlock(waiting(unlock.clone())).await.unwrap();
        let next = next.await.unwrap().unwrap().into_inner();
        assert_eq!(next.key, format!("m/{second:x}"));
        // What is given up already is no error.
        client.unlock(waiting(unlock)).await.unwrap();
    });
}

#[test]
fn a_lock_without_a_lease_has_one_of_a_minute_and_a_call_given_up_leaves_no_key() {
    let site = EtcdSite::start();
    let lock = |lease| LockRequest { name: "m".into(), lease };
    let mut client = LockClient::new(site.channel());
    let held = site.call(client.lock(waiting(lock(0)))).unwrap();
    let own = std::str::from_utf8(&held.key[2..]).unwrap();
    let id = i64::from_str_radix(own, 16).unwrap();
    let mut leases = LeaseClient::new(site.channel());
    let show = LeaseTimeToLiveRequest { id, keys: true };
    let shown = site.call(leases.lease_time_to_live(waiting(show))).unwrap();
    assert_eq!((shown.granted_ttl, shown.keys.as_slice()), (60, &[held.key.clone()][..]));

    let unknown = site.call(client.lock(waiting(lock(4711))));
    refused(unknown, Code::NotFound, "etcdserver: requested lease not found");

    // Each waits until its deadline, and then its key goes: with its own lease, and with another.
    let lease = site.lease();
    for lease in [0, lease] {
        let late = site.call(client.lock(within(lock(lease), Duration::from_millis(500))));
        // Its client may notice first, and then calls it cancelled.
        let code = late.unwrap_err().code();
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&code), "{code:?}");
        let only_the_holder =
            || (site.range(from_to("m/", "m0")).unwrap().count == 1).then_some(());
        eventually("the key of the call given up is gone", only_the_holder);
    }
    let show = LeaseTimeToLiveRequest { id: lease, keys: true };
    let shown = site.call(leases.lease_time_to_live(waiting(show))).unwrap();
    assert!(shown.ttl > 0, "the caller's lease is left alone");
}

#[test]
fn whoever_campaigns_leads_in_turn_and_everybody_can_see_it() {
    let site = EtcdSite::start();
    let (first, second) = (site.lease(), site.lease());
    let campaign = |lease, value: &'static str| CampaignRequest {
        name: "e".into(),
        lease,
        value: value.into(),
    };
    let leader = || {
        let mut client = ElectionClient::new(site.channel());
        let answer = site.call(client.leader(waiting(LeaderRequest { name: "e".into() })))?;
        Ok::<_, tonic::Status>(answer.kv.unwrap())
    };
    refused(leader(), Code::Unknown, "election: no leader");

    let mut client = ElectionClient::new(site.channel());
    let won = site.call(client.campaign(waiting(campaign(first, "ana")))).unwrap();
    let ana = won.leader.unwrap();
    assert_eq!((&ana.name[..], &ana.key[..]), (&b"e"[..], format!("e/{first:x}").as_bytes()));
    assert_eq!(ana.lease, first);
    let row = leader().unwrap();
    assert_eq!((&row.value[..], row.create_revision, row.lease), (&b"ana"[..], ana.rev, first));

    // Whoever leads and campaigns with another value leads with that.
    let again = site.call(client.campaign(waiting(campaign(first, "ana 2")))).unwrap();
    assert_eq!(again.leader.unwrap(), ana);
    assert_eq!(leader().unwrap().value, "ana 2");

    let proclaim = |leader: LeaderKey, value: &'static str| ProclaimRequest {
        leader: Some(leader),
        value: value.into(),
    };
    site.call(client.proclaim(waiting(proclaim(ana.clone(), "ana 3")))).unwrap();
    let other = LeaderKey { rev: ana.rev - 1, ..ana.clone() };
    let refusal = site.call(client.proclaim(waiting(proclaim(other, "nobody"))));
    refused(refusal, Code::Unknown, "election: not leader");
    let nobody = ProclaimRequest { leader: None, value: "x".into() };
    let refusal = site.call(client.proclaim(waiting(nobody)));
    refused(refusal, Code::Unknown, "\"leader\" field must be provided");

    let (mut waiter, mut observer) =
        (ElectionClient::new(site.channel()), ElectionClient::new(site.channel()));
    site.runtime.block_on(async {
        let observe = LeaderRequest { name: "e".into() };
        let mut seen = observer.observe(waiting(observe)).await.unwrap().into_inner();
        let mut next_value = async || {
            let answer = seen.message().await.unwrap().unwrap();
            assert!(revision(&answer.header) > 0);
            answer.kv.unwrap().value
        };
        assert_eq!(next_value().await, "ana 3");
        let bia = tokio::spawn(async move {
            waiter.campaign(waiting(campaign(second, "bia"))).await.unwrap().into_inner()
        });
        let queue = || async { site.kv().range(waiting(from_to("e/", "e0"))).await.unwrap() };
        while queue().await.into_inner().count < 2 {}
        let resign = ResignRequest { leader: Some(ana) };
        client.resign(waiting(resign.clone())).await.unwrap();
        assert_eq!(next_value().await, "bia");
        assert_eq!(bia.await.unwrap().leader.unwrap().lease, second);
        client.resign(waiting(resign)).await.unwrap();
    });
    assert_eq!(
        leader().unwrap().value,
        "bia",
        "who has resigned already takes nothing from others"
    );
}
