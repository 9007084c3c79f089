//! The service KV but for its reads and transactions: puts, deletions, compaction.

use tonic::Request;

use super::super::interface::etcd::etcdserverpb::kv_server::Kv;
use super::super::interface::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Kv for EtcdServices {
    async fn range(&self, _: Request<RangeRequest>) -> Answer<RangeResponse> {
        Err(not_yet("Range"))
    }

    async fn put(&self, _: Request<PutRequest>) -> Answer<PutResponse> {
        Err(not_yet("Put"))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Answer<DeleteRangeResponse> {
        Err(not_yet("DeleteRange"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Answer<TxnResponse> {
        Err(not_yet("Txn"))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        Err(not_yet("compaction"))
    }
}
