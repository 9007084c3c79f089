//! The service Watch of etcd's interface.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Status, Streaming};

use super::super::interface::etcd::etcdserverpb::watch_server::Watch;
use super::super::interface::etcd::etcdserverpb::{WatchRequest, WatchResponse};
use super::{Answer, EtcdServices, not_yet};

#[tonic::async_trait]
impl Watch for EtcdServices {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        Err(not_yet("watches"))
    }
}
