//! What a PUT costs: three real servers, real syncs, one loopback.
//!
//! `cargo bench --bench put_replication` measures one client with one PUT at a time, and 8 and 64
//! clients at once, under both acknowledgement rules. Latencies are per PUT; for several clients
//! divide by their number, or read the throughput.

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acervo::Client;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::Group;

/// Values of this many bytes over this many keys.
const VALUE_BYTES: usize = 100;
const KEYS: u64 = 100_000;

fn put_replication(criterion: &mut Criterion) {
    for ack in ["all", "majority"] {
        let servers = Group::start(3, &["--console", "off", "--ack", ack]);
        servers.client().put("warm", "up").expect("the group takes writes");
        let mut bench = criterion.benchmark_group(format!("put_replication/ack_{ack}"));
        bench.sample_size(10).measurement_time(Duration::from_secs(8));
        bench.throughput(Throughput::Elements(1));
        for clients in [1, 8, 64] {
            let connected: Vec<Client> = (0..clients).map(|_| servers.client()).collect();
            bench.bench_function(format!("{clients}_clients"), |bencher| {
                bencher.iter_custom(|puts| put_concurrently(&connected, puts));
            });
        }
        bench.finish();
    }
}

/// `puts` PUTs in all, shared out among the clients, one at a time each; the time from the first to
/// the last.
fn put_concurrently(clients: &[Client], puts: u64) -> Duration {
    static NEXT_KEY: AtomicU64 = AtomicU64::new(0);
    let left = AtomicU64::new(puts);
    let ready = Barrier::new(clients.len() + 1);
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| {
                let value = [b'v'; VALUE_BYTES];
                ready.wait();
                while left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    // A step that visits all keys in an order that is not theirs.
                    let key = NEXT_KEY.fetch_add(7919, Ordering::Relaxed) % KEYS;
                    client.put(format!("key-{key}"), value).expect("a PUT is acknowledged");
                }
            });
        }
        ready.wait();
        Instant::now()
    })
    .elapsed()
}

criterion_group!(benches, put_replication);
criterion_main!(benches);
