//! A group with a gateway before it, and clients of etcd's services, called as if they were
//! synchronous.

use std::future::Future;

use acervo::gateway::interface::etcd::etcdserverpb::kv_client::KvClient;
use acervo::gateway::interface::etcd::etcdserverpb::lease_client::LeaseClient;
use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use acervo::gateway::interface::etcd::mvccpb::KeyValue;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::site::{channel, waiting};
use crate::support::Group;
use crate::support::gateway::Gateway;

/// A revision that no store has reached.
pub const FUTURE: i64 = 1 << 52;

pub struct EtcdSite {
    pub runtime: Runtime,
    pub group: Group,
    pub gateway: Gateway,
    channel: Channel,
}

impl EtcdSite {
    pub fn start() -> EtcdSite {
        let group = Group::start(3, &["--console", "off"]);
        let gateway = Gateway::start(&group.dir, &group.list(), &[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = runtime.block_on(channel(&gateway));
        EtcdSite { runtime, group, gateway, channel }
    }

    /// For one more client on the same connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }

    /// Waits for an answer.
    pub fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(answer).map(Response::into_inner)
    }

    pub fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.call(self.kv().range(waiting(request)))
    }

    pub fn put(&self, request: PutRequest) -> Result<PutResponse, Status> {
        self.call(self.kv().put(waiting(request)))
    }

    pub fn delete(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        self.call(self.kv().delete_range(waiting(request)))
    }

    pub fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.call(self.kv().txn(waiting(request)))
    }

    /// Writes and says at which revision.
    pub fn write(&self, key: &'static str, value: &'static str) -> i64 {
        revision(&self.put(put(key, value)).unwrap().header)
    }

    /// What a key has.
    pub fn get(&self, key: &'static str) -> Option<KeyValue> {
        self.range(one(key)).unwrap().kvs.pop()
    }

    /// Grants a lease of a minute.
    pub fn lease(&self) -> i64 {
        let mut client = LeaseClient::new(self.channel());
        let grant = LeaseGrantRequest { ttl: 60, id: 0 };
        self.call(client.lease_grant(waiting(grant))).unwrap().id
    }
}

pub fn one(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}

pub fn from_to(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest { range_end: range_end.into(), ..one(key) }
}

pub fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

pub fn delete(key: &'static str, range_end: &'static str) -> DeleteRangeRequest {
    let (key, range_end) = (key.into(), range_end.into());
    DeleteRangeRequest { key, range_end, prev_kv: true }
}

pub fn op(op: Op) -> RequestOp {
    RequestOp { request: Some(op) }
}

pub fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

/// The keys of rows, one behind the other.
pub fn keys(kvs: &[KeyValue]) -> String {
    kvs.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()).collect()
}

/// Checks an error's code and text, which clients of etcd compare.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}
