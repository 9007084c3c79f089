//! What operators ask of an etcd: members, status, hashes, alarms, and that there are no users.

use acervo::gateway::interface::etcd::etcdserverpb::auth_client::AuthClient;
use acervo::gateway::interface::etcd::etcdserverpb::cluster_client::ClusterClient;
use acervo::gateway::interface::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use acervo::gateway::interface::etcd::etcdserverpb::{
    AlarmRequest, AuthEnableRequest, AuthStatusRequest, AuthUserAddRequest, AuthUserListRequest,
    AuthenticateRequest, DefragmentRequest, HashKvRequest, HashRequest, MemberAddRequest,
    MemberListRequest, MoveLeaderRequest, SnapshotRequest, StatusRequest,
};
use tonic::Code;

use crate::etcd_site::{EtcdSite, FUTURE, delete, refused};
use crate::site::waiting;

#[test]
fn members_are_the_servers_and_one_of_them_leads() {
    let site = EtcdSite::start();
    site.write("k", "v");
    let mut cluster = ClusterClient::new(site.channel());
    let list = MemberListRequest::default();
    let members = site.call(cluster.member_list(waiting(list))).unwrap().members;
    let addresses: Vec<String> = site.group.addresses().iter().map(ToString::to_string).collect();
    let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = addresses.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for member in &members {
        assert!(member.id != 0 && !member.is_learner, "{member:?}");
        assert_eq!(member.peer_ur_ls, [format!("http://{}", member.name)]);
        assert_eq!(member.client_ur_ls, [site.gateway.url()]);
    }
    let mut maintenance = MaintenanceClient::new(site.channel());
    let status = site.call(maintenance.status(waiting(StatusRequest {}))).unwrap();
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let header = status.header.unwrap();
    assert!(ids.contains(&status.leader), "{status:?}");
    assert_eq!(header.member_id, status.leader, "the leader is described");
    assert!(status.raft_index > 0 && status.raft_applied_index > 0 && status.raft_term > 0);
    assert!(status.version.split('.').all(|part| part.parse::<u32>().is_ok()), "{status:?}");
    assert!(status.errors.is_empty());

    // To itself leadership has been moved already.
    let mut move_to =
        |target_id| site.call(maintenance.move_leader(waiting(MoveLeaderRequest { target_id })));
    assert!(move_to(status.leader).is_ok());
    refused(move_to(4711), Code::FailedPrecondition, "etcdserver: bad leader transferee");
    let other = ids.iter().find(|id| **id != status.leader).unwrap();
    assert_eq!(move_to(*other).unwrap_err().code(), Code::Unimplemented);
    let add = site.call(cluster.member_add(waiting(MemberAddRequest::default())));
    assert_eq!(add.unwrap_err().code(), Code::Unimplemented);
    let mut snapshot = MaintenanceClient::new(site.channel());
    let snapshot = site.call(snapshot.snapshot(waiting(SnapshotRequest {}))).map(drop);
    assert_eq!(snapshot.unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn hashes_follow_what_the_store_has_and_alarms_are_stored_and_listed() {
    let site = EtcdSite::start();
    let mut client = MaintenanceClient::new(site.channel());
    let first = site.write("k", "1");
    let mut hash_at = |revision| site.call(client.hash_kv(waiting(HashKvRequest { revision })));
    let before = hash_at(0).unwrap().hash;
    let second = site.write("k", "2");
    assert_ne!(hash_at(0).unwrap().hash, before);
    site.delete(delete("k", "")).unwrap();
    assert_eq!(hash_at(first).unwrap().hash, before, "the past stays as it was");
    assert_eq!(hash_at(second - 1).unwrap().hash, before);
    let text = "etcdserver: mvcc: required revision is a future revision";
    refused(hash_at(FUTURE), Code::OutOfRange, text);
    assert!(site.call(client.hash(waiting(HashRequest {}))).is_ok());
    assert!(site.call(client.defragment(waiting(DefragmentRequest {}))).is_ok());

    let (get, activate, deactivate, none, no_space, corrupt) = (0, 1, 2, 0, 1, 2);
    // Of members that there are not there would be any number.
    let mut invented = |member_id| {
        let request = AlarmRequest { action: activate, member_id, alarm: no_space };
        site.call(client.alarm(waiting(request)))
    };
    for id in 1..40 {
        refused(invented(id), Code::NotFound, "etcdserver: member not found");
    }
    let id = site.call(client.status(waiting(StatusRequest {}))).unwrap().leader;
    let mut alarm = |action, alarm| {
        let request = AlarmRequest { action, member_id: id, alarm };
        let answer = site.call(client.alarm(waiting(request))).unwrap();
        answer.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect::<Vec<_>>()
    };
    assert_eq!(alarm(get, none), []);
    assert_eq!(alarm(activate, no_space), [(id, no_space)]);
    assert_eq!(alarm(activate, corrupt), [(id, corrupt)]);
    assert_eq!(alarm(get, none), [(id, no_space), (id, corrupt)]);
    assert_eq!(alarm(get, corrupt), [(id, corrupt)]);
    assert_eq!(alarm(deactivate, no_space), [(id, no_space)]);
    assert_eq!(alarm(deactivate, no_space), []);
    assert_eq!(alarm(get, none), [(id, corrupt)]);
    site.write("k", "an alarm keeps nobody from writing");
}

#[test]
fn there_are_no_users_and_authentication_is_off() {
    let site = EtcdSite::start();
    let mut client = AuthClient::new(site.channel());
    let status = site.call(client.auth_status(waiting(AuthStatusRequest {}))).unwrap();
    assert!(!status.enabled);
    let token = site.call(client.authenticate(waiting(AuthenticateRequest::default())));
    refused(token, Code::FailedPrecondition, "etcdserver: authentication is not enabled");
    let enabled = site.call(client.auth_enable(waiting(AuthEnableRequest {})));
    refused(enabled, Code::FailedPrecondition, "etcdserver: root user does not exist");
    let users = site.call(client.user_list(waiting(AuthUserListRequest {}))).unwrap();
    assert!(users.users.is_empty());
    let add = |name: &str| AuthUserAddRequest { name: name.into(), ..Default::default() };
    let nobody = site.call(client.user_add(waiting(add(""))));
    refused(nobody, Code::InvalidArgument, "etcdserver: user name is empty");
    let somebody = site.call(client.user_add(waiting(add("ana"))));
    assert_eq!(somebody.unwrap_err().code(), Code::Unimplemented);
}
