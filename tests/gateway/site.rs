//! A group with a gateway before it, and one gRPC client, called as if it were synchronous.

use std::time::Duration;

use acervo::gateway::interface::key_value_store_client::KeyValueStoreClient;
use acervo::gateway::interface::{
    KeyRange, KeyRequest, KeyValueRequest, KeyValueVersionReply, PutReply,
};
use futures_util::stream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::support::gateway::Gateway;
use crate::support::{Group, PATIENCE};

pub type Client = KeyValueStoreClient<Channel>;

/// What is asked for, as of the newest.
pub fn key(key: &str) -> KeyRequest {
    KeyRequest { key: key.into(), ver: None }
}

/// What is asked for, as of a version.
pub fn key_at(key: &str, ver: i64) -> KeyRequest {
    KeyRequest { key: key.into(), ver: Some(ver) }
}

pub fn pair(key: &str, val: &str) -> KeyValueRequest {
    KeyValueRequest { key: key.into(), val: val.into() }
}

pub fn range(fr: KeyRequest, to: KeyRequest) -> KeyRange {
    KeyRange { fr: Some(fr), to: Some(to) }
}

/// A reply, for comparison.
pub fn row(key: &str, val: &str, ver: i64) -> KeyValueVersionReply {
    KeyValueVersionReply { key: key.into(), val: val.into(), ver }
}

/// A reply to a write, for comparison.
pub fn put_row(key: &str, old_val: &str, old_ver: i64, ver: i64) -> PutReply {
    PutReply { key: key.into(), old_val: old_val.into(), old_ver, ver }
}

pub struct Site {
    pub runtime: Runtime,
    pub group: Group,
    pub gateway: Gateway,
    pub client: Client,
}

impl Site {
    pub fn start() -> Site {
        Site::before(Group::start(3, &["--console", "off"]))
    }

    pub fn before(group: Group) -> Site {
        let gateway = Gateway::start(&group.dir, &group.list(), &[]);
        Site::of(group, gateway)
    }

    pub fn of(group: Group, gateway: Gateway) -> Site {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(connect(&gateway));
        Site { runtime, group, gateway, client }
    }

    fn call<T>(
        &self,
        call: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let answer = self.runtime.block_on(call(self.client.clone()));
        answer.map(Response::into_inner)
    }

    fn call_many<T>(
        &self,
        call: impl AsyncFnOnce(Client) -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Vec<T>, Status> {
        self.runtime.block_on(async {
            let mut replies = call(self.client.clone()).await?.into_inner();
            let mut all = Vec::new();
            while let Some(reply) = replies.message().await? {
                all.push(reply);
            }
            Ok(all)
        })
    }

    pub fn get(&self, request: KeyRequest) -> Result<KeyValueVersionReply, Status> {
        self.call(async |mut client| client.get(waiting(request)).await)
    }

    pub fn del(&self, request: KeyRequest) -> Result<KeyValueVersionReply, Status> {
        self.call(async |mut client| client.del(waiting(request)).await)
    }

    pub fn trim(&self, request: KeyRequest) -> Result<KeyValueVersionReply, Status> {
        self.call(async |mut client| client.trim(waiting(request)).await)
    }

    pub fn put(&self, request: KeyValueRequest) -> Result<PutReply, Status> {
        self.call(async |mut client| client.put(waiting(request)).await)
    }

    pub fn get_range(&self, request: KeyRange) -> Result<Vec<KeyValueVersionReply>, Status> {
        self.call_many(async |mut client| client.get_range(waiting(request)).await)
    }

    pub fn del_range(&self, request: KeyRange) -> Result<Vec<KeyValueVersionReply>, Status> {
        self.call_many(async |mut client| client.del_range(waiting(request)).await)
    }

    pub fn get_all(&self, keys: Vec<KeyRequest>) -> Result<Vec<KeyValueVersionReply>, Status> {
        self.call_many(async |mut client| client.get_all(waiting(stream::iter(keys))).await)
    }

    pub fn del_all(&self, keys: Vec<KeyRequest>) -> Result<Vec<KeyValueVersionReply>, Status> {
        self.call_many(async |mut client| client.del_all(waiting(stream::iter(keys))).await)
    }

    pub fn put_all(&self, pairs: Vec<KeyValueRequest>) -> Result<Vec<PutReply>, Status> {
        self.call_many(async |mut client| client.put_all(waiting(stream::iter(pairs))).await)
    }

    /// Writes and says at which version.
    pub fn write(&self, key: &str, val: &str) -> i64 {
        self.put(pair(key, val)).unwrap().ver
    }
}

pub async fn connect(gateway: &Gateway) -> Client {
    KeyValueStoreClient::new(channel(gateway).await)
}

pub async fn channel(gateway: &Gateway) -> Channel {
    Endpoint::from_shared(gateway.url()).unwrap().connect().await.unwrap()
}

/// A client that reads of an answer its headers and status, and never has room for a byte between
/// them.
pub async fn connect_without_window(gateway: &Gateway) -> Client {
    let endpoint = Endpoint::from_shared(gateway.url()).unwrap();
    let channel = endpoint.initial_stream_window_size(0).connect().await.unwrap();
    KeyValueStoreClient::new(channel)
}

/// With a deadline, so that nothing is waited for in vain.
pub fn waiting<T>(message: T) -> Request<T> {
    within(message, PATIENCE)
}

pub fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}
