//! Random programs against the gateway and a real etcd, whose answers are compared one by one.
//!
//! A program is some dozens of calls of KV, Lease and Watch on a handful of keys, drawn from a
//! seed. Revisions of Acervo's are sparse, so both sides' are mapped to the ranks of the program's
//! writes, and ids of leases that the servers draw to the order of their grants (`sides`). Whatever
//! else differs ends the test, unless docs/ETCD.md lists it: then it is one of the named exceptions
//! (`exceptions`, and where `except` is called).
//!
//! `ACERVO_ETCD_CALLS` says how many calls are compared: some hundreds unless it is set. A failure
//! prints what was asked until then and `ACERVO_SEED`, which runs that program alone.

mod exceptions;
mod numbers;
mod program;
mod run;
mod sides;
mod watches;

use std::collections::BTreeMap;

use self::program::Draw;
use self::run::Run;
use self::sides::{Side, Sides};
use crate::etcd_process::{Etcd, is_installed};
use crate::support::Group;
use crate::support::gateway::Gateway;

/// Calls of one program: few enough to be read when they fail.
const CALLS_PER_PROGRAM: usize = 60;
/// Calls of a run of all tests.
const CALLS: usize = 1200;
/// So many programs that fail end a run: one that fails says nothing of the next.
const FAILURES_MAX: u32 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("the variable is a number"))
}

#[test]
fn random_programs_are_answered_as_by_etcd() {
    if !is_installed("etcd") {
        return;
    }
    let calls = number("ACERVO_ETCD_CALLS").map_or(CALLS, |calls| calls as usize);
    let one = number("ACERVO_SEED");
    let first = one.unwrap_or_else(|| rand::random_range(0..1 << 48));
    let programs = if one.is_some() { 1 } else { calls.div_ceil(CALLS_PER_PROGRAM) as u64 };

    let group = Group::start(1, &["--console", "off"]);
    let gateway = Gateway::start(&group.dir, &group.list(), &[]);
    let etcd = Etcd::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let acervo = Side::of("Acervo", gateway.url()).await;
        let etcd = Side::of("etcd", format!("http://{}", etcd.address)).await;
        let mut sides = Sides { acervo, etcd, excepted: BTreeMap::new() };
        let mut failures = 0;
        for seed in first..first + programs {
            let mut run = Run::begin(&mut sides).await.expect("stores that are empty");
            if let Err(why) = run.calls(&mut Draw::of(seed), CALLS_PER_PROGRAM).await {
                for (at, call) in run.asked.iter().enumerate() {
                    println!("{at}: {call:?}");
                }
                println!("{why}\nreplay with ACERVO_SEED={seed}\n");
                failures += 1;
                assert!(failures < FAILURES_MAX, "{failures} programs are answered otherwise");
            }
        }
        println!(
            "{} calls of {programs} programs; exceptions: {:?}",
            programs as usize * CALLS_PER_PROGRAM,
            sides.excepted
        );
        assert_eq!(failures, 0, "programs are answered otherwise");
    });
}
