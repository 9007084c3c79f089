//! What a gateway carries: 64 unary calls under way at once over real HTTP/2.
//!
//! Three real servers with real syncs, one real gateway, 100-byte values over 100,000 keys, all of
//! them written before, and the calls made by the generated client, over one connection and over
//! 64. Everything shares the machine. Criterion's times are per call of the whole load.
//!
//! `cargo bench --bench gateway`; add `-- --test` for a quick run of everything.
//! `GATEWAY_ACK=majority` measures the acknowledgement rule that etcd has.

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acervo::gateway::interface::key_value_store_client::KeyValueStoreClient;
use acervo::gateway::interface::{KeyRequest, KeyValueRequest};
use criterion::{Criterion, Throughput};
use rand::RngExt;
use support::Group;
use support::gateway::Gateway;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const VALUE_BYTES: usize = 100;
const KEYS: u64 = 100_000;
const CALLS_AT_ONCE: usize = 64;
/// Keys written at once before measuring.
const FILL_KEYS: usize = 50_000;

type Client = KeyValueStoreClient<Channel>;

#[derive(Clone, Copy)]
enum Call {
    Put,
    Get,
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut running = None;
    for (name, call) in [("put", Call::Put), ("get", Call::Get)] {
        let mut bench = criterion.benchmark_group(format!("gateway/{name}/64_calls"));
        bench.sample_size(10).measurement_time(Duration::from_secs(5));
        bench.throughput(Throughput::Elements(1));
        for connections in [1, CALLS_AT_ONCE] {
            let mut clients = None;
            bench.bench_function(format!("{connections}_connections"), |bencher| {
                // Started when criterion first asks, so that a filter starts nothing else.
                let running = running.get_or_insert_with(Running::start);
                let clients = clients.get_or_insert_with(|| running.connect(connections));
                bencher.iter_custom(|calls| running.load(clients, call, calls));
            });
        }
        bench.finish();
    }
    criterion.final_summary();
}

struct Running {
    runtime: Runtime,
    gateway: Gateway,
    _group: Group,
}

impl Running {
    fn start() -> Running {
        let ack = std::env::var("GATEWAY_ACK").unwrap_or_else(|_| "all".to_owned());
        let group = Group::start(3, &["--console", "off", "--ack", &ack]);
        let (client, value) = (group.client(), [b'v'; VALUE_BYTES]);
        for first in (0..KEYS).step_by(FILL_KEYS) {
            let pairs = (first..first + FILL_KEYS as u64).map(|at| (key(at), value));
            client.put_all(pairs).expect("the group takes writes");
        }
        let gateway = Gateway::start(&group.dir, &group.list(), &[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Running { runtime: runtime.expect("a runtime"), gateway, _group: group }
    }

    fn connect(&self, connections: usize) -> Vec<Client> {
        let connect = async || {
            let endpoint = Endpoint::from_shared(self.gateway.url()).expect("a URL");
            KeyValueStoreClient::new(endpoint.connect().await.expect("the gateway accepts"))
        };
        self.runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..connections {
                clients.push(connect().await);
            }
            clients
        })
    }

    /// Makes so many calls; the time from the first to the last.
    fn load(&self, clients: &[Client], call: Call, calls: u64) -> Duration {
        let left = Arc::new(AtomicU64::new(calls));
        self.runtime.block_on(async {
            let started = Instant::now();
            let callers: Vec<_> = (0..CALLS_AT_ONCE)
                .map(|at| {
                    let client = clients[at % clients.len()].clone();
                    tokio::spawn(make_calls(client, call, Arc::clone(&left)))
                })
                .collect();
            for caller in callers {
                caller.await.expect("a caller ends well");
            }
            started.elapsed()
        })
    }
}

fn key(at: u64) -> String {
    format!("bench-{at}")
}

async fn make_calls(mut client: Client, call: Call, left: Arc<AtomicU64>) {
    let one_less = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        let key = key(rand::rng().random_range(0..KEYS));
        match call {
            Call::Put => {
                let request = KeyValueRequest { key, val: "v".repeat(VALUE_BYTES) };
                client.put(request).await.expect("the write is done");
            }
            Call::Get => {
                client.get(KeyRequest { key, ver: None }).await.expect("the read is answered");
            }
        }
    }
}
