//! What a PUT costs, and the least it could cost here.
//!
//! Three real servers with real syncs under both acknowledgement rules, and in the same run the
//! [`floor`]: the same two hops as bare echo with an `fdatasync` at every server. 1, 8 and 64
//! clients with one PUT under way each, 100-byte values over 100,000 keys, all sent to the leader,
//! so that both make the same hops. One generator drives them all. Criterion's times are per
//! operation of the whole load; after each, a line on standard error gives operations a second and
//! latencies.
//!
//! `cargo bench --bench put_replication`; add `-- --test` for a quick run of everything.

mod floor;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use acervo::bench::load;
use acervo::bench::{
    Distribution, Measured, Mix, Pace, Plan, Protocol, StoreLoad, StoreProtocol, Until,
};
use criterion::{Criterion, Throughput};
use floor::{Echo, File, Floor};
use hdrhistogram::Histogram;
use support::Group;

const PUTS: StoreLoad = StoreLoad {
    mix: Mix::Put,
    linearizable: false,
    distribution: Distribution::Uniform,
    keys: 100_000,
    value_bytes: 100,
};
const CLIENTS: [usize; 3] = [1, 8, 64];

#[derive(Clone, Copy)]
enum Subject {
    Floor { name: &'static str, followers_needed: usize, file: File },
    Acervo { name: &'static str, ack: &'static str },
}

/// The floors between the others, so that a change of the machine's mood shows.
const SUBJECTS: [Subject; 5] = [
    Subject::Floor { name: "floor_one_follower", followers_needed: 1, file: File::Appended },
    Subject::Acervo { name: "ack_majority", ack: "majority" },
    Subject::Floor { name: "floor_both_followers", followers_needed: 2, file: File::Appended },
    Subject::Acervo { name: "ack_all", ack: "all" },
    Subject::Floor { name: "floor_both_prepared_file", followers_needed: 2, file: File::Prepared },
];

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == floor::ARGUMENT) {
        floor::serve(arguments);
    }
    let mut criterion = Criterion::default().configure_from_args();
    for clients in CLIENTS {
        let mut bench = criterion.benchmark_group(format!("put/{clients}_clients"));
        bench.sample_size(10).measurement_time(Duration::from_secs(5));
        bench.throughput(Throughput::Elements(1));
        for subject in SUBJECTS {
            measure(&mut bench, clients, subject);
        }
        bench.finish();
    }
    criterion.final_summary();
}

type Bench<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn measure(bench: &mut Bench<'_>, clients: usize, subject: Subject) {
    let name = match subject {
        Subject::Floor { name, .. } | Subject::Acervo { name, .. } => name,
    };
    // Started when criterion first asks, so that a filter on the command line starts nothing else.
    let mut running: Option<Running> = None;
    let mut seen = Seen::default();
    bench.bench_function(name, |bencher| {
        let running = running.get_or_insert_with(|| Running::start(subject));
        bencher.iter_custom(|requests| {
            let measured = running.load(clients, requests);
            seen.add(&measured);
            measured.elapsed
        });
    });
    if running.is_some() {
        seen.print(name, clients);
    }
}

/// Three servers of one kind.
enum Running {
    Floor(Floor),
    Acervo { _group: Group, leader: SocketAddr },
}

impl Running {
    fn start(subject: Subject) -> Running {
        match subject {
            Subject::Floor { followers_needed, file, .. } => {
                Running::Floor(Floor::start(followers_needed, file))
            }
            Subject::Acervo { ack, .. } => {
                let group = Group::start(3, &["--console", "off", "--ack", ack]);
                group.client().put("warm", "up").expect("the group takes writes");
                let leader = group.addresses()[group.leader()];
                Running::Acervo { _group: group, leader }
            }
        }
    }

    /// `requests` in all; the time from the first to the last.
    fn load(&self, clients: usize, requests: u64) -> Measured {
        let (target, protocol): (SocketAddr, &mut dyn Protocol) = match self {
            Running::Floor(floor) => (floor.leader, &mut Echo),
            Running::Acervo { leader, .. } => {
                let mut random = rand::make_rng();
                (*leader, &mut StoreProtocol::new(PUTS, clients, 1, &mut random))
            }
        };
        let plan = Plan {
            clients,
            pipeline: 1,
            targets: vec![target],
            pace: Pace::Closed,
            until: Until::Requests(requests),
            seed: requests,
        };
        let measured = load::run(&plan, protocol, None).expect("the load runs");
        assert!(measured.errors.is_empty(), "requests failed: {:?}", measured.errors);
        measured
    }
}

/// All loads of one subject together.
#[derive(Default)]
struct Seen {
    latencies_ns: Option<Histogram<u64>>,
    elapsed: Duration,
    generator_busy: Duration,
}

impl Seen {
    fn add(&mut self, measured: &Measured) {
        self.elapsed += measured.elapsed;
        self.generator_busy += measured.generator_busy.unwrap_or_default();
        match &mut self.latencies_ns {
            Some(all) => all.add(&measured.latencies_ns).expect("all have the same bounds"),
            None => self.latencies_ns = Some(measured.latencies_ns.clone()),
        }
    }

    fn print(&self, name: &str, clients: usize) {
        let Some(latencies) = &self.latencies_ns else { return };
        let us = |share: f64| latencies.value_at_quantile(share) as f64 / 1e3;
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        eprintln!(
            "{name:<26} {clients:>2} clients {:>8.0} a second   p50 {:>7.1} µs  p99 {:>8.1}  p99.9 \
             {:>8.1}   generator {:.0} %",
            latencies.len() as f64 / seconds,
            us(0.5),
            us(0.99),
            us(0.999),
            self.generator_busy.as_secs_f64() / seconds * 100.0,
        );
    }
}
