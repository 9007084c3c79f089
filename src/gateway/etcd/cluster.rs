//! The service Cluster of etcd's interface: which servers there are.
//!
//! The servers are those that the gateway was started with. All of them are reached by etcd's
//! clients through the gateway, so that its own address is the client URL of each. Membership does
//! not change while a group runs, and what would change it says so.

use tonic::{Request, Response, Status};

use super::super::interface::etcd::etcdserverpb::cluster_server::Cluster;
use super::super::interface::etcd::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use super::super::policy::CallLimits;
use super::errors::failed;
use super::header::member_id;
use super::{Answer, EtcdServices};
use crate::client::ServerStatus;

/// What is said of every change of the members.
fn fixed() -> Status {
    Status::unimplemented(
        "the servers of a group are those of its configuration: stop them all, and start them with \
         another --servers",
    )
}

impl EtcdServices {
    /// Asks any server to describe itself and its group.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(super) async fn any_status(&self, call: &CallLimits) -> Result<ServerStatus, Status> {
        let client = self.calls().client(call);
        let status = self.calls().in_turn(call, client.any_status()).await;
        let status = status.map_err(|error| failed(call, &error))?;
        self.learn(&status);
        Ok(status)
    }

    /// The ids of all servers, with their addresses.
    pub(super) fn member_ids(&self, status: &ServerStatus) -> Vec<(u64, String)> {
        let addresses = self.calls().servers().into_iter().map(|server| server.to_string());
        addresses.map(|address| (member_id(status.cluster, &address), address)).collect()
    }

    /// Lists the servers.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn list_members(
        &self,
        call: &CallLimits,
    ) -> Result<MemberListResponse, Status> {
        let status = self.any_status(call).await?;
        let members = self.member_ids(&status).into_iter().map(|(id, address)| Member {
            id,
            peer_ur_ls: vec![format!("http://{address}")],
            client_ur_ls: vec![self.client_url().to_owned()],
            name: address,
            is_learner: false,
        });
        let header = Some(self.headers().now());
        Ok(MemberListResponse { header, members: members.collect() })
    }
}

#[tonic::async_trait]
impl Cluster for EtcdServices {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Answer<MemberAddResponse> {
        Err(fixed())
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Answer<MemberRemoveResponse> {
        Err(fixed())
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Answer<MemberUpdateResponse> {
        Err(fixed())
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Answer<MemberListResponse> {
        let call = CallLimits::of(&request)?;
        self.list_members(&call).await.map(Response::new)
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Answer<MemberPromoteResponse> {
        Err(fixed())
    }
}
