//! Which method of etcd's services a path of the JSON interface names.
//!
//! The paths are those that etcd's own gateway serves; its interface files have them as
//! annotations. `/v3beta` is the name that they had before `/v3`, and clients that are some years
//! old still try it.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, MethodDescriptor};
use tonic::codegen::http::uri::PathAndQuery;

use crate::gateway::interface::etcd;

/// What comes before a path of [`METHODS`].
const PREFIXES: [&str; 2] = ["/v3", "/v3beta"];

/// The paths, and the service and method that each stands for. Some methods have two.
const METHODS: [(&str, &str, &str); 49] = [
    ("/kv/range", "etcdserverpb.KV", "Range"),
    ("/kv/put", "etcdserverpb.KV", "Put"),
    ("/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/watch", "etcdserverpb.Watch", "Watch"),
    ("/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("/cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("/cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("/cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("/cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("/maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("/maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("/maintenance/hash", "etcdserverpb.Maintenance", "HashKV"),
    ("/maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    ("/maintenance/transfer-leadership", "etcdserverpb.Maintenance", "MoveLeader"),
    ("/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("/auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("/auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("/auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("/auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/election/leader", "v3electionpb.Election", "Leader"),
    ("/election/observe", "v3electionpb.Election", "Observe"),
    ("/election/resign", "v3electionpb.Election", "Resign"),
];

/// A method as JSON clients call it.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct JsonMethod {
    /// Where gRPC clients call it.
    pub grpc_path: PathAndQuery,
    pub descriptor: MethodDescriptor,
}

/// The methods by the paths of the JSON interface.
#[derive(Debug)]
pub(in crate::gateway) struct JsonMethods(HashMap<&'static str, JsonMethod>);

impl JsonMethods {
    /// Those of the interface that this program was built with.
    ///
    /// # Errors
    /// The interface's description is not sound, or lacks a method: a fault of the build.
    pub fn new() -> Result<JsonMethods, String> {
        let pool = DescriptorPool::decode(etcd::FILE_DESCRIPTOR_SET)
            .map_err(|error| format!("etcd's interface is not sound: {error}"))?;
        let mut methods = HashMap::new();
        for (path, service, name) in METHODS {
            let descriptor = pool
                .get_service_by_name(service)
                .and_then(|service| service.methods().find(|method| method.name() == name))
                .ok_or_else(|| format!("etcd's interface has no {service}/{name}"))?;
            let grpc_path = PathAndQuery::try_from(format!("/{service}/{name}"))
                .map_err(|error| format!("{service}/{name} is no path: {error}"))?;
            methods.insert(path, JsonMethod { grpc_path, descriptor });
        }
        Ok(JsonMethods(methods))
    }

    /// The method that a path names.
    pub fn find(&self, path: &str) -> Option<&JsonMethod> {
        let after = |prefix: &&str| path.strip_prefix(*prefix).filter(|rest| rest.starts_with('/'));
        self.0.get(PREFIXES.iter().find_map(after)?)
    }
}
