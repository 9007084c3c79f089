//! The service KV: puts and compaction; reads, deletions and transactions are in `range`, `delete`
//! and `txn`.
//!
//! A plain put is a write of the store. Everything else that a put can ask for (a lease, what was
//! there before) is what a transaction tells, so that it is one.

use prost::Message;
use tonic::{Request, Response, Status};

use super::super::interface::etcd::etcdserverpb::kv_server::Kv;
use super::super::interface::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use super::super::policy::CallLimits;
use super::errors::{EtcdError, failed};
use super::txn::check_put;
use super::{Answer, EtcdServices};
use crate::client::Timestamp;

/// Bytes of a request at most, as etcd's servers have it by default.
const ETCD_REQUEST_BYTES_MAX: usize = 3 * 512 * 1024;

/// Refuses a request that etcd would refuse for its length.
///
/// # Errors
/// Etcd's.
pub(super) fn check_length(request: &impl Message) -> Result<(), Status> {
    match request.encoded_len() > ETCD_REQUEST_BYTES_MAX {
        true => Err(EtcdError::TooLarge.into()),
        false => Ok(()),
    }
}

impl EtcdServices {
    /// Writes a key.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn put_key(
        &self,
        call: &CallLimits,
        request: PutRequest,
    ) -> Result<PutResponse, Status> {
        check_length(&request)?;
        check_put(&request)?;
        let PutRequest { lease, prev_kv, ignore_value, ignore_lease, .. } = request;
        if lease != 0 || prev_kv || ignore_value || ignore_lease {
            return self.put_by_txn(call, request).await;
        }
        let client = self.calls().client(call);
        let put = self.calls().in_turn(call, client.put(&request.key, &request.value)).await;
        let put = put.map_err(|error| failed(call, &error))?;
        let header = Some(self.headers().at(put.timestamp));
        Ok(PutResponse { header, prev_kv: None })
    }

    /// Ends reads as of revisions below one. What only they would show is removed in the
    /// background, whether that is waited for or not: etcd's clients wait for its disk, of which
    /// nothing is promised here.
    async fn compact_up_to(
        &self,
        call: &CallLimits,
        revision: Timestamp,
    ) -> Result<ResponseHeader, Status> {
        let is_below = |compacted: Option<Timestamp>| compacted.is_some_and(|at| revision <= at);
        if revision < Timestamp::ZERO || is_below(self.compacted_revision(call).await?) {
            return Err(EtcdError::Compacted.into());
        }
        if revision > self.newest_revision(call).await? {
            return Err(EtcdError::FutureRevision.into());
        }
        if revision > Timestamp::ZERO {
            let client = self.calls().client(call);
            let compacted = self.calls().in_turn(call, client.compact(revision)).await;
            compacted.map_err(|error| failed(call, &error))?;
        }
        Ok(self.headers().now())
    }
}

#[tonic::async_trait]
impl Kv for EtcdServices {
    async fn range(&self, request: Request<RangeRequest>) -> Answer<RangeResponse> {
        let call = CallLimits::of(&request)?;
        self.read_range(&call, request.into_inner(), &mut 0).await.map(Response::new)
    }

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let call = CallLimits::of(&request)?;
        self.put_key(&call, request.into_inner()).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Answer<DeleteRangeResponse> {
        let call = CallLimits::of(&request)?;
        self.delete_keys(&call, request.into_inner()).await.map(Response::new)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Answer<TxnResponse> {
        let call = CallLimits::of(&request)?;
        let request = request.into_inner();
        check_length(&request)?;
        self.run_txn(&call, request).await.map(Response::new)
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        let call = CallLimits::of(&request)?;
        let header = self.compact_up_to(&call, Timestamp(request.into_inner().revision)).await?;
        Ok(Response::new(CompactionResponse { header: Some(header) }))
    }
}
