//! Acervo beside etcd, ZooKeeper and Redis, and the floor under them all.
//!
//! Three servers of each system that is installed, from Debian's packages, on this machine, every
//! write synced before it is answered. One generator for all ([`driver`]), 100-byte values over
//! 100,000 keys. Rounds are interleaved, each on fresh data. What else the machine does meanwhile
//! is measured, and measurements in which others took more than [`FOREIGN_MAX`] of it are left out
//! of the medians, unless there are no others. Processor time is that of all servers together.
//!
//! `cargo bench --bench peers` prints one table at the end, and the single measurements on the way
//! to standard error. `-- --test` makes a quick run of everything. `-- growth` measures Acervo
//! alone against the number of clients, keys and servers and the size of values ([`growth`]),
//! `-- recovery` how long it takes to start, to elect and to catch up ([`recovery`]),
//! `-- coordination` transactions and what else programs coordinate themselves by
//! ([`coordination`]).
//! `-- --help` tells how to choose systems, rounds and times.

mod coordination;
mod dialects;
mod driver;
#[path = "../floor/mod.rs"]
mod floor;
mod growth;
mod grpc;
mod machine;
mod recovery;
#[path = "../../tests/support/mod.rs"]
mod support;
mod systems;
mod table;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use acervo::bench::{Measured, Pace, Plan, Until};
use clap::{Parser, Subcommand};
use dialects::PeerOp;
use driver::Dialect;
use machine::{Accounts, Used};
use systems::{PeerData, Running, System};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Share of the machine that others may take while something is measured.
const FOREIGN_MAX: f64 = 0.15;
/// Clients that write the keys before anything is measured, and what each has under way.
const FILL_CLIENTS: usize = 64;
const FILL_PIPELINE: usize = 8;
/// Bytes of values that are under way while keys are written: a leader refuses more than it has
/// room for.
const FILL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a system may take until it takes its first write.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures Acervo beside etcd, ZooKeeper and Redis.
#[derive(Parser)]
struct PeersArgs {
    #[command(subcommand)]
    command: Option<PeersCommand>,
    /// A quick run of everything, whose figures mean nothing
    #[arg(long, global = true)]
    test: bool,
    /// Rounds, each with every system
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Which systems, by name: acervo, acervo-majority, redis, zookeeper, etcd, acervo-as-etcd,
    /// floor-both, floor-one
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Which workloads, by name: put1, put64, put1024, get64, get64x16, getlin64
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Keys that are written before
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum PeersCommand {
    /// Acervo against clients, values, keys, versions and servers
    Growth(growth::GrowthArgs),
    /// Acervo's starts, elections and catching up
    Recovery(recovery::RecoveryArgs),
    /// Compare-and-set, watches and leases, beside plain writes and etcd
    Coordination(coordination::CoordinationArgs),
}

/// A workload: which requests, of how many clients, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) op: PeerOp,
    pub(crate) clients: usize,
    pub(crate) pipeline: usize,
    /// All clients are connected to the leader, and not to all servers in turn.
    pub(crate) at_leader: bool,
}

const fn workload(
    name: &'static str,
    title: &'static str,
    op: PeerOp,
    clients: usize,
    pipeline: usize,
) -> Workload {
    let at_leader = !matches!(op, PeerOp::Get);
    Workload { name, title, op, clients, pipeline, at_leader }
}

pub(crate) const WORKLOADS: [Workload; 6] = [
    workload("put1", "1 client, PUT", PeerOp::Put, 1, 1),
    workload("put64", "64 clients, PUT", PeerOp::Put, 64, 1),
    workload("put1024", "1,024 clients, PUT", PeerOp::Put, 1024, 1),
    workload("get64", "64 clients, GET over three servers", PeerOp::Get, 64, 1),
    workload("get64x16", "the same, 16 requests each", PeerOp::Get, 64, 16),
    workload("getlin64", "64 clients, linearizable GET", PeerOp::GetLinearizable, 64, 1),
];

/// What one measurement has found.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) system: System,
    pub(crate) workload: &'static str,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) server_us: f64,
    pub(crate) generator_us: f64,
    pub(crate) foreign: f64,
    pub(crate) failures: u64,
    /// Memory of all servers when it ended.
    pub(crate) memory_bytes: usize,
}

impl Figures {
    /// Whether others left it enough of the machine.
    pub(crate) fn is_clean(&self) -> bool {
        self.foreign <= FOREIGN_MAX
    }
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == floor::ARGUMENT) {
        floor::serve(arguments);
    }
    let mut args = PeersArgs::parse();
    if args.test {
        (args.rounds, args.seconds, args.keys) = (1, 0.2, 2_000);
    }
    support::allow_open_files(8192);
    match &args.command {
        Some(PeersCommand::Growth(growth)) => growth::run(growth, args.test),
        Some(PeersCommand::Recovery(recovery)) => recovery::run(recovery, args.test),
        Some(PeersCommand::Coordination(coordination)) => {
            coordination::run(coordination, args.test)
        }
        None => compare(&args),
    }
}

fn compare(args: &PeersArgs) -> Outcome<()> {
    let mut systems = Vec::new();
    let mut versions = Vec::new();
    for system in System::ALL.into_iter().filter(|system| is_chosen(&args.systems, system.name())) {
        match system.version() {
            Ok(version) => {
                versions.push(format!("{}: {version}", system.title()));
                systems.push(system);
            }
            Err(reason) => eprintln!("{} is not measured: {reason}", system.title()),
        }
    }
    let chosen: Vec<Workload> =
        WORKLOADS.into_iter().filter(|work| is_chosen(&args.workloads, work.name)).collect();
    let mut all = Vec::new();
    for round in 1..=args.rounds {
        for system in &systems {
            if let Err(error) = measure_system(*system, &chosen, args, round, &mut all) {
                // What another program cannot do here ends its round and no other.
                if !system.is_of_others() {
                    return Err(error);
                }
                eprintln!("round {round}, {}: {error}", system.title());
            }
        }
    }
    table::print(&all, &systems, &chosen, args.rounds);
    println!("\n{}.", versions.join("; "));
    Ok(())
}

fn is_chosen(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|chosen| chosen == name)
}

fn measure_system(
    system: System,
    workloads: &[Workload],
    args: &PeersArgs,
    round: usize,
    all: &mut Vec<Figures>,
) -> Outcome<()> {
    let data = PeerData { keys: args.keys, value_bytes: 100 };
    let running = Running::start(system)?;
    fill(&running, data).map_err(|error| format!("{error}: {}", running.last_words()))?;
    for workload in workloads.iter().filter(|work| system.offers(work.op)) {
        if workload.pipeline > 1 && !system.pipelines() {
            continue;
        }
        let measured = Duration::from_secs_f64(args.seconds);
        match measure(&running, workload, data, measured, round as u64) {
            Ok(figures) => {
                eprintln!("round {round}  {}", table::line(&figures));
                all.push(figures);
            }
            Err(error) if system.is_of_others() => {
                eprintln!("round {round}  {} {}: {error}", system.name(), workload.name);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes every key once, as soon as the system takes writes.
pub(crate) fn fill(running: &Running, data: PeerData) -> Outcome<()> {
    if !running.system.offers(PeerOp::Fill) {
        return Ok(());
    }
    let deadline = Instant::now() + READY_TIMEOUT;
    let first = PeerData { keys: 1, ..data };
    while let Err(error) = fill_from(running, first, 1, 1) {
        if Instant::now() > deadline {
            return Err(format!("it takes no writes: {error}").into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let under_way = (FILL_BYTES_MAX / data.value_bytes).clamp(1, FILL_CLIENTS * FILL_PIPELINE);
    let clients = under_way.min(FILL_CLIENTS);
    fill_from(running, data, clients, under_way / clients)
}

fn fill_from(running: &Running, data: PeerData, clients: usize, pipeline: usize) -> Outcome<()> {
    let leader = running.leader()?;
    let mut dialect = running.dialect(PeerOp::Fill, data, clients, pipeline);
    let plan = plan(leader, clients, pipeline, Until::Requests(data.keys), 0);
    let measured = driver::run(&plan, &[leader], dialect.as_mut(), || ())?;
    match measured.most_frequent_error() {
        // ZooKeeper creates the first key twice.
        Some(_) if measured.failures() <= 1 && data.keys > 1 => Ok(()),
        Some(code) => Err(format!("{} writes failed with {code}", measured.failures()).into()),
        None => Ok(()),
    }
}

/// What all loads here have in common: closed, and to the generator one connection a client.
fn plan(target: SocketAddr, clients: usize, pipeline: usize, until: Until, seed: u64) -> Plan {
    Plan { clients, pipeline, targets: vec![target], pace: Pace::Closed, until, seed }
}

/// One measurement, after a fifth of its time as warm-up.
pub(crate) fn measure(
    running: &Running,
    workload: &Workload,
    data: PeerData,
    measured: Duration,
    seed: u64,
) -> Outcome<Figures> {
    let leader = running.leader()?;
    let at = if workload.at_leader { vec![leader] } else { running.addresses.clone() };
    let Workload { op, clients, pipeline, .. } = *workload;
    let mut dialect = running.dialect(op, data, clients, pipeline);
    let until = Until::Time { warm_up: measured / 5, measured };
    let plan = plan(leader, clients, pipeline, until, seed);
    let (seen, used) = drive(running, &plan, &at, dialect.as_mut())?;
    Ok(figures(running, workload, &seen, &used))
}

/// Puts a load on these servers, and accounts for the time in which it is measured.
fn drive(
    running: &Running,
    plan: &Plan,
    at: &[SocketAddr],
    dialect: &mut dyn Dialect,
) -> Outcome<(Measured, Used)> {
    let servers = running.servers();
    let mut before = Accounts::now(&servers);
    let seen = driver::run(plan, at, dialect, || before = Accounts::now(&servers))?;
    let used = before.since(&servers);
    Ok((seen, used))
}

fn figures(running: &Running, workload: &Workload, seen: &Measured, used: &Used) -> Figures {
    let us = |share: f64| seen.latencies_ns.value_at_quantile(share) as f64 / 1e3;
    let a_request = |seconds: f64| seconds * 1e6 / seen.operations.max(1) as f64;
    let memory = running.servers().into_iter().map(|process| support::memory(process, "VmRSS"));
    Figures {
        system: running.system,
        workload: workload.name,
        per_second: seen.per_second(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        server_us: a_request(used.servers_s),
        generator_us: a_request(used.generator_s),
        foreign: used.foreign,
        failures: seen.failures() + seen.empty,
        memory_bytes: memory.sum(),
    }
}
