//! How long Acervo takes to be there: launched, after the death of its leader, opened with what it
//! has stored, and brought up to date by the others.
//!
//! `cargo bench --bench peers -- recovery` prints two tables. Times are by the clock and from the
//! outside: a server is up to date when it shows the last value that was written. Each is taken
//! several times on one group, and the medians are shown, with the least and the greatest.
//!
//! What it leaves out: other systems, which are started in ways too different to be compared.

use std::path::Path;
use std::time::{Duration, Instant};

use acervo::bench::Until;
use acervo::client::{Client, Timing};
use clap::Args;

use super::dialects::PeerOp;
use super::support::{self, Group};
use super::systems::{PeerData, Running, System};
use super::table::{grouped, spread, thousands};
use super::{FILL_CLIENTS, FILL_PIPELINE, Outcome, driver, plan};

/// Writes that a server misses before it catches up.
const MISSED_WRITES: u64 = 200_000;
/// How long anything here may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How often a server is asked whether it is up to date.
const POLL: Duration = Duration::from_millis(2);
const FLAGS: [&str; 4] = ["--console", "off", "--ack", "all"];
const LAST_KEY: &str = "the last key";

#[derive(Args)]
pub struct RecoveryArgs {
    /// Launches, and deaths of a leader
    #[arg(long, default_value_t = 15)]
    launches: usize,
    /// Measurements at each number of keys
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Numbers of keys, of 100 bytes each
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000, 10_000_000])]
    keys: Vec<u64>,
}

pub fn run(args: &RecoveryArgs, is_test: bool) -> Outcome<()> {
    let (launches, rounds, keys) = match is_test {
        true => (1, 1, &[1_000][..]),
        false => (args.launches, args.rounds, &args.keys[..]),
    };
    let mut launched = Vec::new();
    let mut elected = Vec::new();
    for _ in 0..launches {
        let (launch, election) = launch_and_kill()?;
        launched.push(launch);
        elected.push(election);
    }
    println!("\n| what | median (range), ms |\n| --- | --- |");
    println!("| three servers launched to the first PUT_OK | {} |", milliseconds(launched));
    println!("| leader killed to the next PUT_OK | {} |", milliseconds(elected));
    println!(
        "\n| keys | MB a data directory | opened after kill -9, ms | {} missed writes caught up, \
         ms | blank server up to date, ms | its peak memory, MB |\n|{}",
        grouped(missed(is_test)),
        " --- |".repeat(6)
    );
    for keys in keys {
        measure_keys(*keys, rounds, missed(is_test))?;
    }
    Ok(())
}

fn missed(is_test: bool) -> u64 {
    if is_test { 1_000 } else { MISSED_WRITES }
}

fn milliseconds(times: Vec<Duration>) -> String {
    let values = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    match spread(values) {
        Some((median, least, most)) => {
            let [median, least, most] = [median, least, most].map(thousands);
            format!("{median} ({least}–{most})")
        }
        None => String::new(),
    }
}

/// A client that asks again where nobody listens yet, after pauses of 4 to 100 ms, which are part
/// of what is measured, as they are for users.
fn client(group: &Group, at: Option<usize>) -> Outcome<Client> {
    let servers = match at {
        Some(at) => vec![group.servers[at].address],
        None => group.addresses(),
    };
    let timing = Timing { reach_timeout: TIMEOUT, ..Timing::default() };
    Ok(Client::builder(servers).timing(timing).request_timeout(TIMEOUT).build()?)
}

fn launch_and_kill() -> Outcome<(Duration, Duration)> {
    let mut group = Group::prepare(3, &FLAGS);
    let begun = Instant::now();
    (0..3).for_each(|at| group.start_server(at));
    let client = client(&group, None)?;
    client.put("a", "b")?;
    let launched = begun.elapsed();
    let leader = group.leader();
    group.kill(leader);
    let begun = Instant::now();
    client.put("a", "c")?;
    Ok((launched, begun.elapsed()))
}

/// Waits until a server shows this value as the last one.
fn shows(group: &Group, at: usize, value: &str) -> Outcome<()> {
    let deadline = Instant::now() + TIMEOUT;
    let client = client(group, Some(at))?;
    while client.get(LAST_KEY)?.value() != Some(value.as_bytes()) {
        if Instant::now() > deadline {
            return Err(format!("server {at} is not up to date after {TIMEOUT:?}").into());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn measure_keys(keys: u64, rounds: usize, missed_writes: u64) -> Outcome<()> {
    let mut running = Running::start(System::Acervo { is_ack_all: true })?;
    let data = PeerData { keys, value_bytes: 100 };
    super::fill(&running, data)?;
    let mut directory_bytes = 0;
    let (mut opened, mut caught_up, mut built) = (Vec::new(), Vec::new(), Vec::new());
    let mut peak_bytes = 0;
    for round in 0..rounds {
        let leader = running.leader()?;
        let group = running.group_mut()?;
        let at = (0..3).find(|at| group.servers[*at].address != leader).unwrap_or(0);
        let writer = client(group, None)?;
        let mut last = format!("opened {round}");
        writer.put(LAST_KEY, &last)?;
        shows(group, at, &last)?;
        group.kill(at);
        let begun = Instant::now();
        group.start_server(at);
        shows(group, at, &last)?;
        opened.push(begun.elapsed());
        directory_bytes = bytes_below(&group.data_dir(at))?;

        group.kill(at);
        overwrite(&running, data, missed_writes)?;
        let group = running.group_mut()?;
        last = format!("caught up {round}");
        writer.put(LAST_KEY, &last)?;
        let begun = Instant::now();
        group.start_server(at);
        shows(group, at, &last)?;
        caught_up.push(begun.elapsed());

        group.kill(at);
        std::fs::remove_dir_all(group.data_dir(at))?;
        last = format!("blank {round}");
        writer.put(LAST_KEY, &last)?;
        let begun = Instant::now();
        group.start_server(at);
        shows(group, at, &last)?;
        built.push(begun.elapsed());
        peak_bytes = peak_bytes.max(support::memory(group.pid(at), "VmHWM"));
    }
    println!(
        "| {} | {} | {} | {} | {} | {} |",
        grouped(keys),
        thousands(directory_bytes as f64 / 1e6),
        milliseconds(opened),
        milliseconds(caught_up),
        milliseconds(built),
        thousands(peak_bytes as f64 / 1e6)
    );
    Ok(())
}

/// Writes keys again, at the leader, while a server is away.
fn overwrite(running: &Running, data: PeerData, writes: u64) -> Outcome<()> {
    let leader = running.leader()?;
    let mut dialect = running.dialect(PeerOp::Put, data, FILL_CLIENTS, FILL_PIPELINE);
    let plan = plan(leader, FILL_CLIENTS, FILL_PIPELINE, Until::Requests(writes), 0);
    let measured = driver::run(&plan, &[leader], dialect.as_mut(), || ())?;
    match measured.most_frequent_error() {
        Some(code) => Err(format!("{} writes failed with {code}", measured.failures()).into()),
        None => Ok(()),
    }
}

/// The bytes of all files below a folder.
fn bytes_below(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Files of a running server come and go.
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += bytes_below(&entry.path()).unwrap_or(0),
            Ok(found) => bytes += found.len(),
            Err(_) => {}
        }
    }
    Ok(bytes)
}
