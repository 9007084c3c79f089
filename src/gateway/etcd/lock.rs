//! The service Lock of etcd's interface.

use tonic::Request;

use super::super::interface::etcd::v3lockpb::lock_server::Lock;
use super::super::interface::etcd::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Lock for EtcdServices {
    async fn lock(&self, _: Request<LockRequest>) -> Answer<LockResponse> {
        Err(not_yet("locks"))
    }

    async fn unlock(&self, _: Request<UnlockRequest>) -> Answer<UnlockResponse> {
        Err(not_yet("locks"))
    }
}
