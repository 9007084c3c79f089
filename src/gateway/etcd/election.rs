//! The service Election of etcd's interface.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Status};

use super::super::interface::etcd::v3electionpb::election_server::Election;
use super::super::interface::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Election for EtcdServices {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(&self, _: Request<CampaignRequest>) -> Answer<CampaignResponse> {
        Err(not_yet("elections"))
    }

    async fn proclaim(&self, _: Request<ProclaimRequest>) -> Answer<ProclaimResponse> {
        Err(not_yet("elections"))
    }

    async fn leader(&self, _: Request<LeaderRequest>) -> Answer<LeaderResponse> {
        Err(not_yet("elections"))
    }

    async fn observe(&self, _: Request<LeaderRequest>) -> Answer<Self::ObserveStream> {
        Err(not_yet("elections"))
    }

    async fn resign(&self, _: Request<ResignRequest>) -> Answer<ResignResponse> {
        Err(not_yet("elections"))
    }
}
