//! The service Lock of etcd's interface: a lock is a key that has had its turn ([`contest`]).
//!
//! [`contest`]: super::contest

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::super::interface::etcd::etcdserverpb::DeleteRangeRequest;
use super::super::interface::etcd::v3lockpb::lock_server::Lock;
use super::super::interface::etcd::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse,
};
use super::super::policy::CallLimits;
use super::{Answer, EtcdServices};

impl EtcdServices {
    /// Waits until the caller has the lock.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn take_lock(
        &self,
        call: &CallLimits,
        LockRequest { name, lease }: LockRequest,
    ) -> Result<LockResponse, Status> {
        let (place, at) = self.contend(call, &name, &Bytes::new(), lease).await?;
        let (header, key) = (Some(self.headers().at(at)), place.key.clone());
        place.keep();
        Ok(LockResponse { header, key })
    }

    /// Gives a lock up. One that is lost is given up already.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn give_lock_up(
        &self,
        call: &CallLimits,
        UnlockRequest { key }: UnlockRequest,
    ) -> Result<UnlockResponse, Status> {
        let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        let header = self.delete_keys(call, delete).await?.header;
        Ok(UnlockResponse { header })
    }
}

#[tonic::async_trait]
impl Lock for EtcdServices {
    async fn lock(&self, request: Request<LockRequest>) -> Answer<LockResponse> {
        let call = CallLimits::of(&request)?;
        self.take_lock(&call, request.into_inner()).await.map(Response::new)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Answer<UnlockResponse> {
        let call = CallLimits::of(&request)?;
        self.give_lock_up(&call, request.into_inner()).await.map(Response::new)
    }
}
