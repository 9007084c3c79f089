//! Liveness: while a majority of servers that are well is connected, every write through one of
//! them is answered within a bounded time, and without an error, whatever happens to the rest.
//!
//! In each seed one trouble after the other befalls a minority, which has the leader in it more
//! often than not. The troubles that leave a server half alive matter most: a disk that hangs under
//! a process that goes on speaking.

use std::time::Duration;

use acervo::limits;
use acervo::model::NodeId;
use acervo::node::config::AckPolicy;

use crate::campaign::{describe, make_peace};
use crate::checker::{Verdict, Violation, ensure};
use crate::clients::{Memory, Outcome};
use crate::nemesis::HungFiles;
use crate::rng::Rng;
use crate::server::{node_id, position};
use crate::trace::Trace;
use crate::world::{MILLISECOND, SECOND, Setup, World};

/// Seeds of an ordinary test run.
const SEEDS_DEFAULT: u64 = 80;
/// What an election may take, with some ill luck, and the machinery.
const ELECTION_US_MAX: u64 = 2 * SECOND;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Its log does not answer.
    HungLog,
    /// Its state machine does not.
    HungStore,
    HungDisk,
    /// Its log is slow.
    SlowDisk,
    /// Its process is frozen.
    Frozen,
    /// It is cut off without a word.
    CutOff,
    Killed,
    /// Its links to and from others break again and again, one direction at a time or both.
    Resets,
}

const TROUBLES: [Trouble; 8] = [
    Trouble::HungLog,
    Trouble::HungStore,
    Trouble::HungDisk,
    Trouble::SlowDisk,
    Trouble::Frozen,
    Trouble::CutOff,
    Trouble::Killed,
    Trouble::Resets,
];

fn befall(world: &mut World, server: usize, trouble: Trouble, duration_us: u64) -> Verdict {
    match trouble {
        Trouble::HungLog => world.hang_disk(server, HungFiles::Log, duration_us),
        Trouble::HungStore => world.hang_disk(server, HungFiles::Store, duration_us),
        Trouble::HungDisk => world.hang_disk(server, HungFiles::Both, duration_us),
        Trouble::SlowDisk => world.servers[server].sync_us_max = SECOND,
        Trouble::Frozen => world.pause(server, duration_us),
        Trouble::CutOff => world.isolate(server),
        Trouble::Killed => world.crash(server)?,
        // See `disturb`.
        Trouble::Resets => {}
    }
    Ok(())
}

/// Breaks a link of every server that has this trouble.
fn disturb(world: &mut World, troubles: &[(NodeId, Trouble)]) {
    for (node, trouble) in troubles {
        if let (Trouble::Resets, Some(server)) = (trouble, position(*node, world.servers.len())) {
            let other = world.other_than(server);
            match world.rng.index(3) {
                0 => world.reset_links(server, other),
                1 => world.reset_link(server, other),
                _ => world.reset_link(other, server),
            }
        }
    }
}

fn mend(world: &mut World, server: usize) -> Verdict {
    world.mend_disk(server);
    world.servers[server].sync_us_max = world.setup.sync_us_max;
    world.heal_partitions();
    world.start(server)
}

/// Everybody is in sync, and may vote: a newborn group's servers are admitted a moment after their
/// first entry.
fn is_whole(world: &World) -> bool {
    let all = world.servers.len();
    world.statuses().any(|(_, status)| status.in_sync.len() == all)
        && world.servers.iter().all(|server| server.disk.hard_state().admitted)
}

fn run(seed: u64, trace: Trace) -> Verdict {
    // The plan's chance is not the world's.
    let mut rng = Rng::new(seed ^ 0x6c69_7665);
    let servers = rng.pick(&[3, 3, 5]);
    let stall_timeout = Duration::from_millis(rng.pick(&[200, 600, 2000]));
    let in_sync_timeout = Duration::from_millis(rng.pick(&[300, 2000]));
    let setup = Setup {
        servers,
        first_leader: rng.index(servers),
        replication_delay: vec![Duration::ZERO; servers],
        ack: rng.pick(&[AckPolicy::All, AckPolicy::Majority]),
        in_sync_timeout,
        stall_timeout,
        sync_us_max: rng.pick(&[300, 5_000]),
        apply_us_max: rng.pick(&[100, 2_000]),
        ..Setup::calm(seed)
    };
    // A store has twice the stall time-out.
    let noticed = 2 * stall_timeout + in_sync_timeout;
    let bound_us = noticed.as_micros() as u64 + ELECTION_US_MAX;
    assert!(2 * stall_timeout < limits::COMMIT_TIMEOUT);
    let mut world = World::new(setup, trace);
    let client = world.add_client(Memory::Session, 64, 600 * SECOND);
    for _ in 0..4 {
        let whole = world.run_until(20 * SECOND, is_whole)?;
        ensure!(whole, "the group is not whole again after all troubles have ended");
        let mut victims: Vec<usize> =
            world.leader().filter(|_| rng.chance(700)).into_iter().collect();
        while victims.len() < (servers - 1) / 2 {
            let server = rng.index(servers);
            if !victims.contains(&server) {
                victims.push(server);
            }
        }
        let duration_us = rng.range(100 * MILLISECOND..=2 * bound_us);
        let until_us = world.now_us + duration_us;
        let mut troubles = Vec::new();
        for victim in &victims {
            let trouble = rng.pick(&TROUBLES);
            troubles.push((node_id(*victim), trouble));
            befall(&mut world, *victim, trouble, duration_us)?;
        }
        while world.now_us < until_us {
            let well = (0..servers).filter(|server| !victims.contains(server));
            let writes: Vec<usize> = well
                .map(|server| world.put(client, Some(server), "k", &world.now_us.to_string()))
                .collect();
            // Writes are on their way when links break.
            world.run_for(rng.range(0..=3 * MILLISECOND))?;
            disturb(&mut world, &troubles);
            let all = |world: &World| writes.iter().all(|write| world.ended(*write));
            let answered = world.run_until(bound_us, all)?;
            ensure!(answered, "a write waits for more than {bound_us} µs under {troubles:?}");
            for write in writes {
                let errors = &world.operations[write].errors;
                ensure!(errors.is_empty(), "a write met {errors:?} under {troubles:?}");
                let written = matches!(world.outcome(write), Some(Outcome::Written(_)));
                ensure!(written, "a write was not done under {troubles:?}");
            }
            world.run_for(rng.range(MILLISECOND..=300 * MILLISECOND))?;
        }
        for victim in victims {
            mend(&mut world, victim)?;
        }
    }
    make_peace(&mut world)
}

fn run_caught(seed: u64, trace: Trace) -> Result<(), String> {
    let run = std::panic::AssertUnwindSafe(|| run(seed, trace));
    match std::panic::catch_unwind(run) {
        Ok(verdict) => verdict.map_err(|Violation(reason)| reason),
        Err(panic) => Err(describe(panic.as_ref())),
    }
}

#[test]
fn writes_are_answered_in_bounded_time_while_a_majority_is_well() {
    if let Some(seed) = std::env::var("ACERVO_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let trace = Trace::on();
        let result = run_caught(seed, trace.clone());
        println!("{}", trace.tail());
        return assert_eq!(result, Ok(()), "seed {seed}");
    }
    let seeds = std::env::var("ACERVO_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let failures: Vec<String> = (1..=seeds.unwrap_or(SEEDS_DEFAULT))
        .filter_map(|seed| {
            let reason = run_caught(seed, Trace::default()).err()?;
            Some(format!("seed {seed}: {reason}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
}
