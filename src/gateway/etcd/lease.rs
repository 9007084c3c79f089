//! The service Lease of etcd's interface.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Status, Streaming};

use super::super::interface::etcd::etcdserverpb::lease_server::Lease;
use super::super::interface::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Lease for EtcdServices {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, _: Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        Err(not_yet("leases"))
    }

    async fn lease_revoke(&self, _: Request<LeaseRevokeRequest>) -> Answer<LeaseRevokeResponse> {
        Err(not_yet("leases"))
    }

    async fn lease_keep_alive(
        &self,
        _: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        Err(not_yet("leases"))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        Err(not_yet("leases"))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Answer<LeaseLeasesResponse> {
        Err(not_yet("leases"))
    }
}
