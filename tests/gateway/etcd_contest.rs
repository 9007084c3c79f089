//! etcd's services Lock and Election.

use std::pin::{Pin, pin};
use std::time::Duration;

use acervo::client::{KeyRange, Timestamp};
use acervo::gateway::interface::etcd::etcdserverpb::lease_client::LeaseClient;
use acervo::gateway::interface::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use acervo::gateway::interface::etcd::etcdserverpb::{DefragmentRequest, LeaseTimeToLiveRequest};
use acervo::gateway::interface::etcd::v3electionpb::election_client::ElectionClient;
use acervo::gateway::interface::etcd::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use acervo::gateway::interface::etcd::v3lockpb::lock_client::LockClient;
use acervo::gateway::interface::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use acervo::limits;
use acervo::model::ReadView;
use acervo::wire::message::{ErrorCode, Reply, Request as AcervoRequest};
use futures_util::FutureExt;
use futures_util::future::select_all;
use rustix::process::Signal;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::etcd_site::{EtcdSite, from_to, refused, revision};
use crate::fake_server::{FakeServer, error};
use crate::site::{channel, waiting, within};
use crate::support::gateway::Gateway;
use crate::support::{eventually, patient_client};

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

/// Its caller keeps the lease alive, and others would wait behind a key that nobody waits for.
#[test]
fn a_lock_that_waits_when_its_gateway_stops_leaves_no_key() {
    let mut site = EtcdSite::start();
    let (first, second) = (site.lease(), site.lease());
    let lock = |lease| LockRequest { name: "m".into(), lease };
    let mut client = LockClient::new(site.channel());
    site.call(client.lock(waiting(lock(first)))).unwrap();
    let group = patient_client(site.group.addresses());
    let keys = || group.scan(KeyRange::between("m/", "m0").unwrap(), Default::default()).count();
    let (mut waiter, mut stop) = (LockClient::new(site.channel()), Some(&site.gateway));
    let ended = site.runtime.block_on(async {
        let mut waits = pin!(waiter.lock(waiting(lock(second))));
        loop {
            let soon = tokio::time::sleep(Duration::from_millis(20));
            tokio::select! {
                ended = &mut waits => return ended,
                () = soon => if keys() == 2 && let Some(gateway) = stop.take() {
                    gateway.signal(Signal::TERM);
                }
            }
        }
    });
    refused(ended.map(drop), Code::Unavailable, "etcdserver: server stopped");
    drop((client, waiter));
    assert!(site.gateway.wait().success());
    assert_eq!(keys(), 1, "only the holder's is left");
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

type Locking = Pin<Box<dyn Future<Output = Result<Response<LockResponse>, Status>>>>;

/// Calls for one lock, which are sent when they are polled for the first time.
fn locks(channel: &Channel, count: usize) -> Vec<Locking> {
    let lock = |_| {
        let mut client = LockClient::new(channel.clone());
        let request = waiting(LockRequest { name: "m".into(), lease: 7 });
        async move { client.lock(request).await }.boxed_local()
    };
    (0..count).map(lock).collect()
}

/// Waits until everything has come that was sent on this connection before.
async fn has_come(channel: &Channel) {
    let mut client = MaintenanceClient::new(channel.clone());
    client.defragment(waiting(DefragmentRequest {})).await.unwrap();
}

/// A gateway before this server, and a runtime for its clients.
fn before(server: &FakeServer) -> (tempfile::TempDir, Gateway, tokio::runtime::Runtime) {
    let dir = tempfile::tempdir().unwrap();
    // Longer than anything is waited for here.
    let gateway = Gateway::start(&dir, &server.address.to_string(), &["--timeout", "1h"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    (dir, gateway, runtime)
}

/// One that answers nothing but the greeting.
fn silent_server() -> FakeServer {
    FakeServer::start(|_, _, _| {})
}

/// Whoever begins locks and resets them at once had the gateway write for each, past everybody's
/// turn.
#[test]
fn locks_that_are_given_up_before_their_turn_have_written_nothing() {
    let server = silent_server();
    let (_dir, gateway, runtime) = before(&server);
    runtime.block_on(async {
        let channels = [channel(&gateway).await, channel(&gateway).await, channel(&gateway).await];
        for _ in 0..4 {
            let mut given_up: Vec<Locking> =
                channels.iter().flat_map(|channel| locks(channel, 100)).collect();
            for lock in &mut given_up {
                assert!(lock.now_or_never().is_none());
            }
            for channel in &channels {
                has_come(channel).await;
            }
            drop(given_up);
            for channel in &channels {
                has_come(channel).await;
            }
        }
    });
    let is_write = |request: &&AcervoRequest| matches!(request, AcervoRequest::Write(_));
    let writes = server.requests().iter().filter(is_write).count();
    assert!((1..=limits::GATEWAY_REQUESTS_MAX).contains(&writes), "{writes} writes");
}

#[test]
fn one_address_cannot_take_all_places_of_those_that_wait() {
    let server = silent_server();
    let (_dir, gateway, runtime) = before(&server);
    runtime.block_on(async {
        let mut calls = Vec::new();
        for _ in 0..5 {
            let channel = channel(&gateway).await;
            let mut more = locks(&channel, 100);
            for lock in &mut more {
                assert!(lock.now_or_never().is_none());
            }
            has_come(&channel).await;
            calls.append(&mut more);
        }
        // The server answers nobody, so whoever is answered is refused.
        let (answer, _, _others) = select_all(calls).await;
        refused(answer, Code::ResourceExhausted, "etcdserver: too many requests");
        let elsewhere = Endpoint::from_shared(gateway.url()).unwrap();
        let elsewhere = elsewhere.local_address(Some([127, 0, 0, 2].into()));
        let elsewhere = elsewhere.connect().await.unwrap();
        let mut other = locks(&elsewhere, 1).remove(0);
        assert!((&mut other).now_or_never().is_none());
        has_come(&elsewhere).await;
        assert!(other.now_or_never().is_none(), "it waits for its turn");
    });
}

/// What is UNAVAILABLE clients of etcd ask again a hundred times.
#[test]
fn an_election_that_no_server_will_ever_show_ends_with_an_error_that_says_so() {
    let server = FakeServer::start(|id, request, link| match request {
        AcervoRequest::Page(_) => {
            let view = ReadView::as_of(Timestamp(9));
            link.reply(id, Reply::PageOk { rows: Vec::new(), view, next: None });
        }
        AcervoRequest::Watch(_) => link.reply(id, error(ErrorCode::Invalid, "no such watch")),
        _ => {}
    });
    let (_dir, gateway, runtime) = before(&server);
    let status = runtime.block_on(async {
        let mut client = ElectionClient::new(channel(&gateway).await);
        let observed = client.observe(waiting(LeaderRequest { name: "e".into() })).await;
        observed.unwrap().into_inner().message().await.unwrap_err()
    });
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}
