//! etcd's leases: granted, kept alive, described, revoked, ended.

use acervo::gateway::interface::etcd::etcdserverpb::lease_client::LeaseClient;
use acervo::gateway::interface::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest,
};
use futures_util::stream;
use tonic::Code;
use tonic::transport::Channel;

use crate::etcd_site::{EtcdSite, put, refused, revision};
use crate::site::waiting;
use crate::support::eventually;

const NO_LEASE: &str = "etcdserver: requested lease not found";

fn leases(site: &EtcdSite) -> LeaseClient<Channel> {
    LeaseClient::new(site.channel())
}

#[test]
fn a_lease_is_granted_described_and_revoked_with_its_keys() {
    let site = EtcdSite::start();
    let grant = |ttl, id| {
        let mut client = leases(&site);
        site.call(client.lease_grant(waiting(LeaseGrantRequest { ttl, id })))
    };
    let show = |id, keys| {
        let mut client = leases(&site);
        site.call(client.lease_time_to_live(waiting(LeaseTimeToLiveRequest { id, keys }))).unwrap()
    };
    let revoke = |id| {
        let mut client = leases(&site);
        site.call(client.lease_revoke(waiting(LeaseRevokeRequest { id })))
    };
    // Short times are raised, and what is longer than a group allows is cut.
    for (asked, granted) in [(100, 100), (1, 2), (0, 2), (-7, 2), (8_000_000_000, 366 * 24 * 3600)]
    {
        let answer = grant(asked, 0).unwrap();
        assert_eq!(answer.ttl, granted, "{asked}");
        assert!(answer.id > 0 && revision(&answer.header) > 0);
        revoke(answer.id).unwrap();
    }
    refused(grant(9_000_000_001, 0), Code::OutOfRange, "etcdserver: too large lease TTL");

    // Puts that find nothing to keep are made under this one, and must come to nothing.
    assert_eq!(grant(100, -1).unwrap_err().code(), Code::InvalidArgument);
    let keep = PutRequest { ignore_value: true, ..put("absent", "") };
    refused(site.put(keep), Code::InvalidArgument, "etcdserver: key not found");
    assert_eq!(site.get("absent"), None);

    assert_eq!(grant(100, 0x1234).unwrap().id, 0x1234);
    refused(grant(100, 0x1234), Code::FailedPrecondition, "etcdserver: lease already exists");
    for key in ["b", "a"] {
        site.put(PutRequest { lease: 0x1234, ..put(key, "1") }).unwrap();
    }
    let shown = show(0x1234, true);
    assert_eq!((shown.id, shown.granted_ttl), (0x1234, 100));
    assert!((90..=100).contains(&shown.ttl), "{shown:?}");
    assert_eq!(shown.keys, ["a", "b"]);
    assert!(show(0x1234, false).keys.is_empty());
    let other = grant(100, 0).unwrap().id;
    let mut client = leases(&site);
    let all = site.call(client.lease_leases(waiting(LeaseLeasesRequest {}))).unwrap();
    let mut ids: Vec<i64> = all.leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0x1234, other]);

    let at = revision(&revoke(0x1234).unwrap().header);
    assert_eq!((site.get("a"), site.get("b")), (None, None));
    assert!(at > 0);
    refused(revoke(0x1234), Code::NotFound, NO_LEASE);
    refused(revoke(0), Code::NotFound, NO_LEASE);
    let gone = show(0x1234, true);
    assert_eq!((gone.id, gone.ttl, gone.granted_ttl, gone.keys.len()), (0x1234, -1, 0, 0));
}

#[test]
fn a_lease_lives_as_long_as_it_is_kept_alive_and_no_longer() {
    let site = EtcdSite::start();
    let mut client = leases(&site);
    let grant = LeaseGrantRequest { ttl: 2, id: 0 };
    let lease = site.call(client.lease_grant(waiting(grant))).unwrap().id;
    site.put(PutRequest { lease, ..put("k", "1") }).unwrap();
    // Several requests on one stream, one of them for a lease that there is not.
    let requests = [lease, 4711, lease].map(|id| LeaseKeepAliveRequest { id });
    let answers = site.runtime.block_on(async {
        let mut stream =
            client.lease_keep_alive(waiting(stream::iter(requests))).await.unwrap().into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            assert!(revision(&answer.header) > 0);
            answers.push((answer.id, answer.ttl));
        }
        answers
    });
    assert_eq!(answers, [(lease, 2), (4711, 0), (lease, 2)]);
    eventually("the lease ends", || site.get("k").is_none().then_some(()));
}
