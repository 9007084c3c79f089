//! The service Maintenance of etcd's interface.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Status};

use super::super::interface::etcd::etcdserverpb::maintenance_server::Maintenance;
use super::super::interface::etcd::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Maintenance for EtcdServices {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, _: Request<AlarmRequest>) -> Answer<AlarmResponse> {
        Err(not_yet("maintenance"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        Err(not_yet("maintenance"))
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Answer<DefragmentResponse> {
        Err(not_yet("maintenance"))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Answer<HashResponse> {
        Err(not_yet("maintenance"))
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Answer<HashKvResponse> {
        Err(not_yet("maintenance"))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        Err(not_yet("maintenance"))
    }

    async fn move_leader(&self, _: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        Err(not_yet("maintenance"))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        Err(not_yet("maintenance"))
    }
}
