//! How long a group of real processes gives no answer when one of its servers is killed, frozen or
//! cut off.
//!
//! The tests assert that writes go on and that everybody is in sync again afterwards. The time is
//! for a quiet machine: `ACERVO_FAILOVER_ROUNDS=11` repeats each case, and prints the medians with
//! `--nocapture`:
//!
//! ```text
//! ACERVO_FAILOVER_ROUNDS=11 \
//!     cargo test --release --test server failover:: -- --nocapture --test-threads=1
//! ```
//!
//! Cutting a server off takes network namespaces, and so root, which `ACERVO_FAILOVER_CUT=1` says
//! that there is:
//!
//! ```text
//! unshare --net --mount sh -c 'ip link set lo up; \
//!     ACERVO_FAILOVER_CUT=1 ACERVO_FAILOVER_ROUNDS=11 \
//!     cargo test --release --offline --test server failover:: -- --nocapture --test-threads=1'
//! ```
//!
//! To reach on a quiet machine: follower killed 150 ms, leader killed, frozen or cut off 600 ms,
//! healing 500 ms.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use acervo::client::Effect;
use rustix::process::Signal;

use crate::support::{Group, eventually};

const FLAGS: [&str; 2] = ["--console", "off"];

fn rounds() -> usize {
    let rounds = std::env::var("ACERVO_FAILOVER_ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse().expect("ACERVO_FAILOVER_ROUNDS is a number"))
}

/// Makes trouble while a client writes one thing after the other. The longest time between two of
/// its answers from then on, until `answers` more have come after `after`, which may make an end to
/// the trouble.
fn outage(
    group: &mut Group,
    trouble: impl FnOnce(&mut Group),
    after: impl FnOnce(&mut Group),
    answers: usize,
) -> Duration {
    let client = group.client();
    let answered = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let count = || answered.lock().unwrap().len();
    let struck = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // On a busy machine an election may outlast what a write is given.
                match client.put("k", "v") {
                    Ok(_) => answered.lock().unwrap().push(Instant::now()),
                    Err(error) => assert!(error.effect() != Effect::Done, "{error}"),
                }
            }
        });
        eventually("writes are answered", || (count() > 50).then_some(()));
        trouble(group);
        after(group);
        let struck = Instant::now();
        let before = count();
        eventually("writes go on", || (count() > before + answers).then_some(()));
        stop.store(true, Ordering::Relaxed);
        struck
    });
    let answered = answered.into_inner().unwrap();
    let since = answered.iter().rposition(|at| *at < struck).unwrap_or(0);
    let gaps = answered[since..].windows(2).map(|pair| pair[1] - pair[0].max(struck));
    gaps.max().unwrap()
}

fn print_median(case: &str, mut outages: Vec<Duration>) {
    outages.sort_unstable();
    println!(
        "{case}: median {:?}, worst {:?} of {}",
        outages[outages.len() / 2],
        outages[outages.len() - 1],
        outages.len()
    );
}

#[test]
fn writes_go_on_when_a_follower_or_the_leader_is_killed_or_frozen() {
    let mut group = Group::start(3, &FLAGS);
    for case in ["follower killed", "follower frozen", "leader killed", "leader frozen"] {
        let mut outages = Vec::new();
        for _ in 0..rounds() {
            let leader = group.leader_of_all();
            let victim = if case.starts_with("leader") { leader } else { (leader + 1) % 3 };
            let killed = case.ends_with("killed");
            let strike = |group: &mut Group| match killed {
                true => group.kill(victim),
                false => group.signal(victim, Signal::STOP),
            };
            outages.push(outage(&mut group, strike, |_| {}, 50));
            match killed {
                true => group.start_server(victim),
                false => group.signal(victim, Signal::CONT),
            }
        }
        print_median(case, outages);
    }
    group.leader_of_all();
}

/// A network of the tests' own: a bridge, and each server in a namespace with one leg on it.
struct Bridged;

impl Bridged {
    const BRIDGE: &str = "acervo-br";

    fn ip(line: &str) {
        let done = Command::new("ip").args(line.split(' ')).status().expect("ip is installed");
        assert!(done.success(), "ip {line}");
    }

    fn start(group: &mut Group) -> Bridged {
        let bridge = Bridged::BRIDGE;
        Bridged::ip(&format!("link add {bridge} type bridge"));
        Bridged::ip(&format!("addr add 10.77.0.254/24 dev {bridge}"));
        Bridged::ip(&format!("link set {bridge} up"));
        for at in 0..group.servers.len() {
            let ip = format!("10.77.0.{}", at + 1);
            Bridged::ip(&format!("netns add acervo{at}"));
            Bridged::ip(&format!("link add acervo{at} type veth peer name eth0 netns acervo{at}"));
            Bridged::ip(&format!("link set acervo{at} master {bridge} up"));
            Bridged::ip(&format!("-n acervo{at} addr add {ip}/24 dev eth0"));
            Bridged::ip(&format!("-n acervo{at} link set eth0 up"));
            Bridged::ip(&format!("-n acervo{at} link set lo up"));
            group.servers[at].address = format!("{ip}:10097").parse().unwrap();
        }
        for at in 0..group.servers.len() {
            let name = format!("acervo{at}");
            group.start_server_from_shell(at, &["ip", "netns", "exec", &name], "true");
        }
        Bridged
    }

    /// What is sent to and from the server vanishes without a word.
    fn cut(at: usize) {
        Bridged::ip(&format!("link set acervo{at} nomaster"));
    }

    fn heal(at: usize) {
        Bridged::ip(&format!("link set acervo{at} master {}", Bridged::BRIDGE));
    }

    /// Servers that are apart do not reach each other, but clients reach them.
    fn set_apart(at: usize, apart: bool) {
        let isolated = if apart { "on" } else { "off" };
        Bridged::ip(&format!("link set acervo{at} type bridge_slave isolated {isolated}"));
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        for line in ["netns del acervo0", "netns del acervo1", "netns del acervo2"] {
            let _ = Command::new("ip").args(line.split(' ')).status();
        }
        let _ = Command::new("ip").args(["link", "del", Bridged::BRIDGE]).status();
    }
}

#[test]
fn writes_go_on_when_servers_are_cut_off_and_when_a_cut_heals() {
    if std::env::var_os("ACERVO_FAILOVER_CUT").is_none() {
        return;
    }
    let mut group = Group::prepare(3, &FLAGS);
    let _network = Bridged::start(&mut group);
    let (client, addresses) = (group.client(), group.addresses());
    for case in ["follower cut off", "leader cut off", "everybody cut off, from healing on"] {
        let mut outages = Vec::new();
        for _ in 0..rounds() {
            let leader = group.leader_of_all();
            let victim = match case {
                "follower cut off" => Some((leader + 1) % 3),
                "leader cut off" => Some(leader),
                _ => None,
            };
            let strike = |_: &mut Group| match victim {
                Some(victim) => Bridged::cut(victim),
                None => {
                    (0..3).for_each(|at| Bridged::set_apart(at, true));
                    eventually("everybody has noticed", || {
                        let follows_nobody = |address| {
                            client.status(address).is_ok_and(|status| status.leader.is_none())
                        };
                        addresses.iter().all(|address| follows_nobody(*address)).then_some(())
                    });
                }
            };
            let mend = |_: &mut Group| {
                if victim.is_none() {
                    (0..3).for_each(|at| Bridged::set_apart(at, false));
                }
            };
            outages.push(outage(&mut group, strike, mend, 50));
            victim.into_iter().for_each(Bridged::heal);
        }
        print_median(case, outages);
    }
}
