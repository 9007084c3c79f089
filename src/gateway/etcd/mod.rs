//! etcd's v3 interface, on the gateway's port, beside the course's.
//!
//! A revision is a version of the store: its timestamp, so that revisions rise and are not dense.
//! The services are one plain struct, [`EtcdServices`], whose methods take a message and the limits
//! of their call; what makes gRPC of them stands below each, so that another way in can call the
//! same.
//!
//! How it is cut: `header` is what every answer begins with; `errors` has etcd's codes and texts,
//! and what the client library's errors become; `kv`, `range` and `txn` are the store; `lease`,
//! `watch`, `lock` and `election` are coordination; `cluster`, `maintenance` and `auth` are what is
//! asked of an etcd beside that. docs/ETCD.md lists every departure from etcd.
//!
//! Invariants:
//! - It is made of calls of the client library and keeps nothing of the store. Alarms, which are a
//!   note of one operator to another, live in the process.
//! - An answer's revision is one at which the answer is true, and a call never tells a lower one
//!   than was told, by any call, before it began.
//! - UNAVAILABLE is never said of what does not pass by itself: etcd's clients ask again a hundred
//!   times.

mod auth;
mod cluster;
mod contest;
mod delete;
mod election;
mod errors;
mod header;
pub(super) mod json;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod range;
mod txn;
mod waiting;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as watch_channel;
use tonic::service::Routes;
use tonic::{Response, Status};

pub(super) use self::errors::{EtcdError, overlong};
use self::header::Headers;
use self::maintenance::Alarms;
use self::waiting::{Waiting, WaitingPlace};
use super::calls::Calls;
use super::interface::etcd::etcdserverpb::auth_server::AuthServer;
use super::interface::etcd::etcdserverpb::cluster_server::ClusterServer;
use super::interface::etcd::etcdserverpb::kv_server::KvServer;
use super::interface::etcd::etcdserverpb::lease_server::LeaseServer;
use super::interface::etcd::etcdserverpb::maintenance_server::MaintenanceServer;
use super::interface::etcd::etcdserverpb::watch_server::WatchServer;
use super::interface::etcd::v3electionpb::election_server::ElectionServer;
use super::interface::etcd::v3lockpb::lock_server::LockServer;
use super::policy::CallLimits;
use crate::client::ServerStatus;

/// The release of etcd whose interface this is, as clients compare it with what they need.
pub(super) const ETCD_VERSION: &str = "3.5.0";
/// A longer message is refused, as etcd's servers do by default: 1.5 MiB of a request, and half a
/// mebibyte for what gRPC puts around it.
const ETCD_MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The same for services whose messages have keys and ids and no values: two keys and what is
/// around them. Of streams that stay open it is what each may make the gateway hold uncharged.
const ETCD_SHORT_MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// etcd's services. Clones share everything.
#[derive(Clone)]
pub(super) struct EtcdServices(Arc<EtcdState>);

struct EtcdState {
    calls: Calls,
    headers: Headers,
    alarms: Alarms,
    /// Places of those that wait for others.
    waiting: Waiting,
    /// Whether the gateway is told to stop.
    stopping: watch_channel::Sender<bool>,
    /// Where clients reach the gateway.
    client_url: String,
    watch_progress_interval: Duration,
}

type Answer<T> = Result<Response<T>, Status>;

impl EtcdServices {
    /// Those of a gateway that listens on this address.
    pub(super) fn new(
        calls: Calls,
        address: SocketAddr,
        watch_progress_interval: Duration,
    ) -> EtcdServices {
        EtcdServices(Arc::new(EtcdState {
            calls,
            headers: Headers::default(),
            alarms: Alarms::default(),
            waiting: Waiting::default(),
            stopping: watch_channel::Sender::new(false),
            client_url: format!("http://{address}"),
            watch_progress_interval,
        }))
    }

    /// How often a watch that asks for it is told how far it is, where it is told nothing else.
    fn watch_progress_interval(&self) -> Duration {
        self.0.watch_progress_interval
    }

    fn calls(&self) -> &Calls {
        &self.0.calls
    }

    fn headers(&self) -> &Headers {
        &self.0.headers
    }

    fn alarms(&self) -> &Alarms {
        &self.0.alarms
    }

    /// A place among those that wait for others, for a call that has brought so many bytes.
    ///
    /// # Errors
    /// There is none left for its address.
    fn place_to_wait(&self, call: &CallLimits, bytes: usize) -> Result<WaitingPlace, Status> {
        let place = self.0.waiting.take(call.origin(), bytes);
        place.ok_or_else(|| EtcdError::TooManyRequests.into())
    }

    /// Ends what has no end of its own and what waits for others, with an error that says so.
    pub(super) fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Waits until what locks and campaigns that were given up have written is taken back, so that
    /// nobody waits behind them.
    pub(super) async fn left(&self) {
        self.0.waiting.left().await;
    }

    /// Waits until the gateway is told to stop.
    async fn stopped(&self) {
        // The sender is there for as long as this is.
        let _ = self.0.stopping.subscribe().wait_for(|is_stopping| *is_stopping).await;
    }

    fn client_url(&self) -> &str {
        &self.0.client_url
    }

    /// Takes note of what a server has told of its group.
    pub(super) fn learn(&self, status: &ServerStatus) {
        self.headers().learn(status);
    }

    /// Serves everything as gRPC, too.
    pub(super) fn add_to(&self, routes: Routes) -> Routes {
        let (max, short_max) = (ETCD_MESSAGE_BYTES_MAX, ETCD_SHORT_MESSAGE_BYTES_MAX);
        routes
            .add_service(KvServer::new(self.clone()).max_decoding_message_size(max))
            .add_service(WatchServer::new(self.clone()).max_decoding_message_size(short_max))
            .add_service(LeaseServer::new(self.clone()).max_decoding_message_size(short_max))
            .add_service(LockServer::new(self.clone()).max_decoding_message_size(short_max))
            .add_service(ElectionServer::new(self.clone()).max_decoding_message_size(max))
            .add_service(ClusterServer::new(self.clone()).max_decoding_message_size(short_max))
            .add_service(MaintenanceServer::new(self.clone()).max_decoding_message_size(short_max))
            .add_service(AuthServer::new(self.clone()).max_decoding_message_size(short_max))
    }
}

/// What is not there, and a sentence that says so.
fn not_yet(what: &str) -> Status {
    Status::unimplemented(format!("this server of etcd's interface has no {what}"))
}
