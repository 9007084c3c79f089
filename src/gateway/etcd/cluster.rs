//! The service Cluster of etcd's interface.

use tonic::Request;

use super::super::interface::etcd::etcdserverpb::cluster_server::Cluster;
use super::super::interface::etcd::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Cluster for EtcdServices {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Answer<MemberAddResponse> {
        Err(not_yet("membership changes"))
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Answer<MemberRemoveResponse> {
        Err(not_yet("membership changes"))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Answer<MemberUpdateResponse> {
        Err(not_yet("membership changes"))
    }

    async fn member_list(&self, _: Request<MemberListRequest>) -> Answer<MemberListResponse> {
        Err(not_yet("membership changes"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Answer<MemberPromoteResponse> {
        Err(not_yet("membership changes"))
    }
}
