//! The gateway: the store's operations for any gRPC client (SPEC B1), and for those of etcd (SPEC
//! E).
//!
//! A gateway keeps nothing. It translates calls into requests of the [client
//! library](crate::client) and answers back, so that any number of gateways can stand beside one
//! another, in front of one group. Every read is linearizable: a write acknowledged through one
//! gateway, or to any other client of the group, is seen at once through every other one. Servers
//! confirm such reads in batches, so that this costs little when there is much to do.
//!
//! How it is cut: [`interface`] is what `build.rs` makes of `proto/project.proto`; `service` is the
//! nine operations; `translate` is what their messages and errors mean; `calls` makes the requests
//! to the group, and `clients` sends them; `rows` turns long reads into streams; `gather` takes
//! request streams in; `policy` is what holds for every call (deadlines, limits); `incoming` is
//! what holds for every connection; `accounting` is what all of them share; `health` tells load
//! balancers whether to send anyone here. [`etcd`] is etcd's interface, on top of the same.
//!
//! Invariants:
//! - Nothing grows with what a client asks for: a stream holds one chunk of rows, whoever reads
//!   slowly is waited for by nobody, and request streams are gathered within the limits of one
//!   transaction.
//! - A write that was sent is never reported as undone: after a deadline, or when servers are lost,
//!   the error says that it may have taken effect.
//! - Nobody waits on a thread of their own: one thread has all connections and calls, and the three
//!   clients get their turns on it (`clients`).
//! - Whoever has a connection can make a call, and a connection that does nothing keeps nobody out:
//!   connections, calls and bytes are shared (`accounting`), what is waited for has a time, and
//!   what was given up keeps neither a place nor a request. Health and reflection stand beside all
//!   this.
//!
//! What it leaves out: encryption and authentication (keep the port private, or put a proxy before
//! it), compression, and bytes that are not UTF-8, which this interface's strings cannot carry.

mod accounting;
mod calls;
mod clients;
mod etcd;
mod gather;
mod health;
mod incoming;
pub mod interface;
mod policy;
mod rows;
mod service;
mod translate;
mod turns;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::transport::Server;

use self::accounting::AccountLimits;
use self::calls::Calls;
use self::etcd::EtcdServices;
use self::etcd::json::{JsonAnswers, JsonMethods, JsonRequests};
use self::interface::conditional::{self, conditional_store_server::ConditionalStoreServer};
use self::interface::key_value_store_server::KeyValueStoreServer;
use self::policy::CallPolicy;
use self::service::Gateway;
use crate::client::{Client, ClientError};
use crate::limits;
use crate::net::LocalPort;
use crate::process;
use crate::process::files::{self, TooFewFiles};

/// Calls that a client has reset before the gateway has looked at them, of one connection; with one
/// more it ends.
const GATEWAY_RESETS_PENDING_MAX: usize = 64;
/// A longer message to health or reflection is refused: they name a service or a symbol.
const GATEWAY_AUXILIARY_MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// Bytes that a gRPC client may send on one call before the gateway has taken them.
const GATEWAY_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of one call's HTTP/2 headers.
const GATEWAY_HEADERS_BYTES_MAX: u32 = 8 * 1024;
/// How often a quiet gRPC connection is asked whether its client is there.
const GATEWAY_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a server that ends waits for the gateway beside it to send its last answers. Streams
/// that have no end of their own are cut off.
const GATEWAY_LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where gRPC clients connect. Port 0 takes a free one, which the log names.
    pub listen: SocketAddr,
    /// The servers of the group, as the client library takes them.
    pub servers: Vec<SocketAddr>,
    /// The whole time of one request to the group; a call's own deadline may be shorter.
    pub request_timeout: Duration,
    /// How often a watch of etcd's interface that asks for it is told how far it is, where it is
    /// told nothing else.
    pub watch_progress_interval: Duration,
    /// The server that is in this process, with its port within it.
    pub local: Option<(SocketAddr, LocalPort)>,
    /// The most connections that clients may have.
    pub connections_max: usize,
}

/// Why a gateway could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; choose another with --port or --listen")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The servers cannot be used.
    #[error(transparent)]
    Servers(#[from] ClientError),
    /// The interface's description cannot be served.
    #[error("the interface cannot be described: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The description of etcd's interface lacks something.
    #[error("{0}")]
    Interface(String),
    /// The system allows too few open files.
    #[error(transparent)]
    TooFewFiles(#[from] TooFewFiles),
    /// The transport gave up for a reason that is not a single connection's.
    #[error("the gateway cannot go on: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The system refused threads, signals or timers.
    #[error("the gateway cannot start: {0}")]
    System(io::Error),
}

/// Runs a gateway until it is [told to stop](process::stop_signals), then answers what is under way
/// and returns.
///
/// # Errors
/// See [`GatewayError`].
pub fn run(mut config: GatewayConfig) -> Result<(), GatewayError> {
    config.connections_max = config.connections_max.min(files::room(0)?.accepted_max);
    BoundGateway::bind(config)?.run(std::future::pending())
}

/// A gateway on a thread of its own, beside a server in the same process. Dropping it stops it.
pub struct GatewayThread {
    /// Dropped to stop it.
    stop: Option<oneshot::Sender<()>>,
    ended: crossbeam_channel::Receiver<()>,
}

impl GatewayThread {
    /// Listens, and serves on a thread from now on.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub fn start(config: GatewayConfig) -> Result<GatewayThread, GatewayError> {
        let bound = BoundGateway::bind(config)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = crossbeam_channel::bounded(0);
        let run = move || {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = bound.run(stopped) {
                log::error!("the gateway has ended, and its server goes on: {error}");
            }
            drop(end);
        };
        let thread = thread::Builder::new().name("acervo-gateway".to_owned());
        thread.spawn(run).map_err(GatewayError::System)?;
        Ok(GatewayThread { stop: Some(stop), ended })
    }
}

impl Drop for GatewayThread {
    /// Gives it a moment to send what it has: its server has answered everything.
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.ended.recv_timeout(GATEWAY_LAST_ANSWERS_TIMEOUT);
    }
}

/// A gateway that has its address and serves nobody yet.
struct BoundGateway {
    config: GatewayConfig,
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl BoundGateway {
    /// Listens, so that clients that come now are served when it runs.
    fn bind(config: GatewayConfig) -> Result<BoundGateway, GatewayError> {
        let bind = || {
            // The standard library sets SO_REUSEADDR, so that a port is free once its last user is
            // gone.
            let listener = std::net::TcpListener::bind(config.listen)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) =
            bind().map_err(|error| GatewayError::Listen { address: config.listen, error })?;
        Ok(BoundGateway { config, listener, address })
    }

    /// Serves until the process is [told to stop](process::stop_signals), or `stopped` is over,
    /// then answers what is under way and returns.
    fn run(self, stopped: impl Future<Output = ()>) -> Result<(), GatewayError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(GatewayError::System)?;
        runtime.block_on(serve(self, stopped))
    }
}

async fn serve(bound: BoundGateway, stopped: impl Future<Output = ()>) -> Result<(), GatewayError> {
    let BoundGateway { config, listener, address } = bound;
    // Before anything is said to be ready, so that no signal from then on is missed.
    let signals = process::stop_signals().into_iter().map(SignalKind::from_raw).map(signal);
    let mut signals: Vec<Signal> =
        signals.collect::<Result<_, _>>().map_err(GatewayError::System)?;
    let client = || {
        let servers = config.servers.iter().copied();
        let client = Client::builder(servers).request_timeout(config.request_timeout);
        match &config.local {
            Some((server, port)) => client.local(*server, port.clone()).build_driven(),
            None => client.build_driven(),
        }
    };
    let [first, second, third] = [client()?, client()?, client()?];
    let clients: [Client; limits::GATEWAY_CLIENTS] = [first.0, second.0, third.0];
    for driven in [first.1, second.1, third.1] {
        tokio::spawn(async move {
            if let Err(error) = clients::drive(driven).await {
                log::error!("the gateway cannot reach its group any more: {error}");
            }
        });
    }
    let calls = Calls::new(&clients);
    let listener = TcpListener::from_std(listener).map_err(GatewayError::System)?;

    let (reporter, health) = tonic_health::server::health_reporter();
    let etcd = EtcdServices::new(calls.clone(), address, config.watch_progress_interval);
    let watch = tokio::spawn(health::watch(reporter.clone(), clients, etcd.clone()));
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(interface::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(conditional::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(interface::etcd::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let gateway = Arc::new(Gateway::new(calls));
    let message_max = limits::GATEWAY_MESSAGE_BYTES_MAX;
    let store = KeyValueStoreServer::from_arc(Arc::clone(&gateway));
    let conditional = ConditionalStoreServer::from_arc(gateway);

    let auxiliary_max = GATEWAY_AUXILIARY_MESSAGE_BYTES_MAX;
    let account_limits = AccountLimits::new(config.connections_max);
    let routes = Routes::new(store.max_decoding_message_size(message_max))
        .add_service(conditional.max_decoding_message_size(message_max))
        .add_service(health.max_decoding_message_size(auxiliary_max))
        .add_service(describe().build_v1()?.max_decoding_message_size(auxiliary_max))
        .add_service(describe().build_v1alpha()?.max_decoding_message_size(auxiliary_max));
    let (stop, told_to_stop) = oneshot::channel::<()>();
    let json = JsonMethods::new().map_err(GatewayError::Interface)?;
    let serving = Server::builder()
        .max_concurrent_streams(limits::GATEWAY_CALLS_PER_CONNECTION_MAX)
        .initial_stream_window_size(GATEWAY_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::GATEWAY_CONNECTION_WINDOW_BYTES)
        .http2_max_pending_accept_reset_streams(Some(GATEWAY_RESETS_PENDING_MAX))
        .http2_max_header_list_size(GATEWAY_HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(GATEWAY_PING_INTERVAL))
        .http2_keepalive_timeout(Some(incoming::GATEWAY_PING_TIMEOUT))
        // For the JSON interface.
        .accept_http1(true)
        .layer(JsonAnswers::new(json))
        .layer(CallPolicy)
        .layer(JsonRequests)
        .add_routes(etcd.add_to(routes))
        .serve_with_incoming_shutdown(incoming::connections(listener, account_limits), async {
            // The sender lives until it sends.
            let _ = told_to_stop.await;
        });
    log::info!("serving gRPC on {address}");

    let signalled = async {
        let any = |cx: &mut Context<'_>| match signals
            .iter_mut()
            .any(|signal| signal.poll_recv(cx).is_ready())
        {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        tokio::select! {
            () = std::future::poll_fn(any) => {}
            () = stopped => {}
        }
        log::info!("stopping: no new calls are taken");
        watch.abort();
        health::stopping(&reporter).await;
        etcd.stop();
        let _ = stop.send(());
        tokio::time::sleep(limits::SHUTDOWN_GRACE).await;
    };
    let serving = async {
        serving.await?;
        etcd.left().await;
        Ok(())
    };
    tokio::select! {
        result = serving => result,
        () = signalled => {
            log::warn!("stopping now: some calls are still without an answer");
            Ok(())
        }
    }
}
