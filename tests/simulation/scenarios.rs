//! Directed tests: one rule each, on a group that is otherwise well.

use std::time::Duration;

use acervo::limits::{self, NodeLimits};
use acervo::model::{
    Del, DiskSpace, History, KeyInterval, PageOf, ReadView, SetHistory, Timestamp, WriteOp,
};
use acervo::node::config::{AckPolicy, Distrust};
use acervo::node::eligibility::Ineligible;
use acervo::node::garbage_collection::GarbageCollectionConfig;
use acervo::node::{CheckedMessage, ConsoleEvent, Input, NoLeader, Notice};
use acervo::server::snapshots::TransferLimits;
use acervo::storage::reads::PageLimits;
use acervo::wire::message::{ErrorCode, Role, ServerMessage};
use bytes::Bytes;

use crate::campaign::make_peace;
use crate::checker::Violation;
use crate::clients::{Memory, Outcome};
use crate::nemesis::{Fault, HungFiles};
use crate::network::Quality;
use crate::server::node_id;
use crate::trace::Trace;
use crate::world::{MILLISECOND, SECOND, Setup, World};

/// A group that has just been born, whole and in sync, and one patient client.
fn group(setup: Setup) -> World {
    let mut world = World::new(setup, Trace::default());
    world.add_client(Memory::Session, 64, 60 * SECOND);
    let born = run_until(&mut world, 30 * SECOND, |world| {
        world.statuses().any(|(_, status)| status.in_sync.len() == 3)
            && world.statuses().all(|(_, status)| status.commit > 0)
            && world.servers.iter().all(|server| server.disk.hard_state().admitted)
    });
    assert!(born, "the group is not born");
    world
}

fn run_until(world: &mut World, limit_us: u64, done: impl FnMut(&World) -> bool) -> bool {
    world.run_until(limit_us, done).unwrap_or_else(|Violation(reason)| panic!("{reason}"))
}

fn run_for(world: &mut World, duration_us: u64) {
    run_until(world, duration_us, |_| false);
}

/// Waits for an operation's end; how long it took, in microseconds.
fn answered_within(world: &mut World, operation: usize, limit_us: u64) -> u64 {
    let began_us = world.operations[operation].began_us;
    assert!(run_until(world, limit_us, |world| world.ended(operation)), "no answer in time");
    world.now_us - began_us
}

fn put(world: &mut World, server: usize, value: &str) -> usize {
    world.put(0, Some(server), "k", value)
}

fn other_than(a: usize, b: usize) -> usize {
    3 - a - b
}

fn close(mut world: World) {
    make_peace(&mut world).unwrap_or_else(|Violation(reason)| panic!("{reason}"));
}

#[test]
fn the_named_leader_leads_first_whichever_it_is() {
    for first_leader in 0..3 {
        for seed in 1..=5 {
            let world = group(Setup { first_leader, ..Setup::calm(seed) });
            assert_eq!(world.leader(), Some(first_leader));
            assert_eq!(world.checker.terms_led(), 1);
            close(world);
        }
    }
}

#[test]
fn a_put_shows_the_lines_of_a6_where_they_belong() {
    let mut world = group(Setup::calm(1));
    let write = put(&mut world, 1, "v");
    answered_within(&mut world, write, SECOND);
    run_for(&mut world, 100 * MILLISECOND);
    let lines = |server: usize| {
        let process = world.servers[server].process.as_ref().unwrap();
        process.console.iter().map(|event| match event {
            ConsoleEvent::Put { .. } => "PUT",
            ConsoleEvent::Forwarding { .. } => "FORWARDING",
            ConsoleEvent::Replication { .. } => "REPLICATION",
            ConsoleEvent::PutOk { .. } => "PUT_OK",
            ConsoleEvent::Get { .. } => "GET",
        })
    };
    assert_eq!(lines(0).collect::<Vec<_>>(), ["PUT", "PUT_OK"]);
    assert_eq!(lines(1).collect::<Vec<_>>(), ["FORWARDING", "REPLICATION"]);
    assert_eq!(lines(2).collect::<Vec<_>>(), ["REPLICATION"]);
    close(world);
}

#[test]
fn a_leader_cut_off_in_mid_write_steps_down_and_the_write_happens_once_through_the_next() {
    let mut world = group(Setup::calm(2));
    world.isolate(0);
    let write = put(&mut world, 0, "v");
    let elected = run_until(&mut world, 5 * SECOND, |world| {
        world.statuses().any(|(server, status)| server != 0 && status.role == Role::Leader)
    });
    assert!(elected, "nobody takes over");
    let stepped_down = run_until(&mut world, 5 * SECOND, |world| {
        world.statuses().all(|(server, status)| server != 0 || status.role != Role::Leader)
    });
    assert!(stepped_down, "the old leader does not notice");
    world.heal_partitions();
    // The client's one attempt, at the old leader, is still open: its answer comes through there.
    answered_within(&mut world, write, 5 * SECOND);
    assert_eq!(world.operations[write].errors, []);
    assert!(matches!(world.outcome(write), Some(Outcome::Written(_))));
    close(world);
}

#[test]
fn a_write_forwarded_to_a_leader_that_dies_is_answered_through_the_next_one() {
    let mut world = group(Setup::calm(3));
    let write = put(&mut world, 1, "v");
    let forwarded = run_until(&mut world, SECOND, |world| {
        let console = &world.servers[0].process.as_ref().unwrap().console;
        console.iter().any(|event| matches!(event, ConsoleEvent::Put { .. }))
    });
    assert!(forwarded);
    world.crash(0).unwrap();
    answered_within(&mut world, write, 5 * SECOND);
    assert_eq!(world.operations[write].errors, [], "the server hides the failure");
    close(world);
}

/// Only the link on which the leader answers breaks, so that the server that waits never sees its
/// own go down.
#[test]
fn a_forwarded_write_whose_answer_is_lost_with_a_link_is_passed_on_again_at_once() {
    for seed in 200..220 {
        let mut world = group(Setup::calm(seed));
        for (from, to) in [(0, 1), (1, 0)] {
            let write = put(&mut world, 1, "v");
            let delay_us = world.rng.range(100..=900);
            run_for(&mut world, delay_us);
            world.reset_link(from, to);
            let took_us = answered_within(&mut world, write, 20 * SECOND);
            assert!(took_us < SECOND, "seed {seed}: {took_us} µs");
            assert_eq!(world.operations[write].errors, [], "seed {seed}");
            run_for(&mut world, SECOND);
        }
        close(world);
    }
}

/// The first end-to-end tests killed the leader right after the first acknowledged write. The third
/// server had not been admitted by then, so nobody could be elected until the old leader returned.
#[test]
fn a_group_that_has_acknowledged_a_write_survives_its_first_leader_at_once() {
    for seed in 0..50 {
        let setup = Setup { ack: AckPolicy::Majority, ..Setup::calm(1_000 + seed) };
        let mut world = World::new(setup, Trace::default());
        world.add_client(Memory::Session, 64, 60 * SECOND);
        let led = run_until(&mut world, 10 * SECOND, |world| {
            world.statuses().any(|(_, status)| status.role == Role::Leader)
        });
        assert!(led, "seed {seed}");
        let first = put(&mut world, 0, "first");
        answered_within(&mut world, first, 10 * SECOND);
        world.crash(0).unwrap();
        let second = put(&mut world, 1, "second");
        answered_within(&mut world, second, 5 * SECOND);
        assert!(matches!(world.outcome(second), Some(Outcome::Written(_))), "seed {seed}");
        close(world);
    }
}

/// How long an election time-out is, the shortest.
const ELECTION_US: u64 = limits::ELECTION_TICKS as u64 * limits::TICK.as_micros() as u64;

#[test]
fn a_dead_follower_delays_writes_once_and_only_briefly() {
    let mut world = group(Setup::calm(4));
    // The group's birth is over: everybody has taken part and the leader knows it.
    run_for(&mut world, SECOND);
    // Cut off, not crashed: nothing tells the leader that it is gone.
    world.cut(0, 2);
    world.cut(2, 0);
    world.cut(2, 1);
    world.cut(1, 2);
    let first = put(&mut world, 0, "first");
    let first_us = answered_within(&mut world, first, 10 * SECOND);
    assert!(first_us < ELECTION_US + 100 * MILLISECOND, "{first_us} µs");
    for _ in 0..10 {
        let next = put(&mut world, 0, "next");
        let next_us = answered_within(&mut world, next, 10 * SECOND);
        assert!(next_us < 100 * MILLISECOND, "{next_us} µs");
    }
    close(world);
}

#[test]
fn a_slow_follower_leaves_the_set_in_sync_and_returns_when_it_has_caught_up() {
    let mut world = group(Setup::calm(5));
    world.servers[2].sync_us_max = 10 * SECOND;
    for server in [0, 1] {
        let write = put(&mut world, server, "v");
        answered_within(&mut world, write, 10 * SECOND);
    }
    let noticed = |world: &World, wanted: fn(&Notice) -> bool| {
        world.servers[0].process.as_ref().unwrap().notices.iter().any(wanted)
    };
    assert!(noticed(
        &world,
        |notice| matches!(notice, Notice::OutOfSync { server } if server.0 == 3)
    ));
    world.servers[2].sync_us_max = 400;
    let returned = run_until(&mut world, 15 * SECOND, |world| {
        noticed(world, |notice| matches!(notice, Notice::InSync { server } if server.0 == 3))
    });
    assert!(returned, "the set stays small");
    close(world);
}

#[test]
fn under_ack_majority_a_slow_follower_delays_nobody() {
    let mut world = group(Setup { ack: AckPolicy::Majority, ..Setup::calm(6) });
    world.servers[2].sync_us_max = 10 * SECOND;
    let write = put(&mut world, 1, "v");
    let took_us = answered_within(&mut world, write, SECOND);
    assert!(took_us < 100 * MILLISECOND, "{took_us} µs");
    close(world);
}

#[test]
fn put_ok_waits_for_a_server_that_stores_late_on_purpose() {
    let late = Duration::from_secs(10);
    let mut world = group(Setup {
        in_sync_timeout: Duration::from_secs(30),
        replication_delay: vec![Duration::ZERO, Duration::ZERO, late],
        ..Setup::calm(7)
    });
    let key = Bytes::from_static(b"k");
    let first = put(&mut world, 0, "old");
    answered_within(&mut world, first, 15 * SECOND);
    let second = put(&mut world, 0, "new");
    run_for(&mut world, SECOND);
    let fresh = world.read(0, Some(0), key.clone(), false);
    answered_within(&mut world, fresh, SECOND);
    assert_eq!(world.outcome(fresh), Some(&Outcome::Found(Some(Bytes::from_static(b"new")))));
    // Having seen the new version, the client is not shown the old one: the late server refuses
    // and another answers.
    let again = world.read(0, Some(2), key, false);
    answered_within(&mut world, again, SECOND);
    assert_eq!(world.outcome(again), Some(&Outcome::Found(Some(Bytes::from_static(b"new")))));
    assert!(!world.ended(second));
    let took_us = answered_within(&mut world, second, 15 * SECOND);
    let late_us = late.as_micros() as u64;
    assert!((late_us..late_us + SECOND).contains(&took_us), "{took_us} µs");
    close(world);
}

#[test]
fn without_a_majority_writes_and_linearizable_reads_fail_in_bounded_time() {
    for (survivor, seed) in [(0, 8), (1, 9)] {
        let mut world = group(Setup::calm(seed));
        for server in (0..3).filter(|server| *server != survivor) {
            world.crash(server).unwrap();
        }
        let noticed = run_until(&mut world, 2 * SECOND, |world| {
            world.statuses().all(|(_, status)| status.leader.is_none())
        });
        assert!(noticed, "survivor {survivor} does not notice that it is alone");
        let write = put(&mut world, survivor, "v");
        let read = world.read(0, Some(survivor), Bytes::from_static(b"k"), true);
        let bound_us = (limits::COMMIT_TIMEOUT * 2).as_micros() as u64 + SECOND;
        let refused = run_until(&mut world, bound_us, |world| {
            let refused = |operation: usize| {
                let errors = &world.operations[operation].errors;
                errors.first().is_some_and(|(_, code)| *code == ErrorCode::NoMajority)
            };
            refused(write) && refused(read)
        });
        let errors = [write, read].map(|operation| &world.operations[operation].errors);
        assert!(refused, "no NO_MAJORITY at survivor {survivor}: {errors:?}");
        close(world);
    }
}

#[test]
fn a_clock_an_hour_behind_does_not_take_a_new_leaders_versions_back() {
    let mut world = group(Setup::calm(10));
    let before = put(&mut world, 0, "before");
    answered_within(&mut world, before, SECOND);
    for server in [1, 2] {
        world.servers[server].clock_offset_us = -3600 * SECOND as i64;
    }
    world.crash(0).unwrap();
    let after = put(&mut world, 1, "after");
    answered_within(&mut world, after, 5 * SECOND);
    let (Some(Outcome::Written(earlier)), Some(Outcome::Written(later))) =
        (world.outcome(before), world.outcome(after))
    else {
        panic!("not written");
    };
    assert!(later > earlier);
    close(world);
}

#[test]
fn a_server_that_lost_its_directory_does_not_vote_before_it_has_caught_up() {
    let mut world = group(Setup::calm(11));
    // Only 1 and 2 have the write; then 2 forgets it, and 1 is away.
    world.crash(2).unwrap();
    let write = put(&mut world, 0, "precious");
    answered_within(&mut world, write, 10 * SECOND);
    world.wipe(1).unwrap();
    world.crash(0).unwrap();
    world.start(1).unwrap();
    world.start(2).unwrap();
    run_for(&mut world, 10 * SECOND);
    assert_eq!(world.leader(), None, "a majority without the write elected a leader");
    assert!(!world.servers[1].disk.hard_state().admitted);
    world.start(0).unwrap();
    let caught_up =
        run_until(&mut world, 10 * SECOND, |world| world.servers[1].disk.hard_state().admitted);
    assert!(caught_up, "it is never admitted again");
    close(world);
}

#[test]
fn a_server_that_lost_its_directory_gives_no_majority_to_a_deposed_leader() {
    let mut world = group(Setup::calm(12));
    // 1 sleeps while 2 and 3 depose it and acknowledge a write; then the new leader's directory is
    // lost, and of the two that could tell it so only the sleeper is in reach.
    world.pause(0, 4 * SECOND);
    let deposed = run_until(&mut world, 3 * SECOND, |world| {
        world.statuses().any(|(server, status)| server != 0 && status.role == Role::Leader)
    });
    assert!(deposed, "nobody takes over");
    let leader = world.leader().filter(|leader| *leader != 0);
    let leader = leader.or_else(|| {
        let mut others = world.statuses().filter(|(server, _)| *server != 0);
        others.find(|(_, status)| status.role == Role::Leader).map(|(server, _)| server)
    });
    let leader = leader.unwrap();
    let write = put(&mut world, leader, "precious");
    // The sleeper may still count as in sync with the new leader, for one time-out.
    answered_within(&mut world, write, 3 * SECOND);
    let witness = other_than(0, leader);
    world.isolate(witness);
    world.wipe(leader).unwrap();
    world.start(leader).unwrap();
    // 1 wakes, still the leader of its old term as far as it knows, and gets a write.
    let attempt = put(&mut world, 0, "usurper");
    run_for(&mut world, 10 * SECOND);
    // Its client may have given up after a refusal.
    let ended = &world.operations[attempt].ended;
    let acknowledged = matches!(ended, Some((_, Outcome::Written(_))));
    assert!(!acknowledged, "a deposed leader acknowledged a write");
    world.heal_partitions();
    answered_within(&mut world, attempt, 20 * SECOND);
    close(world);
}

#[test]
fn a_first_leader_that_lost_its_directory_does_not_found_the_group_anew() {
    let mut world = group(Setup::calm(13));
    world.crash(2).unwrap();
    let write = put(&mut world, 0, "precious");
    answered_within(&mut world, write, 10 * SECOND);
    world.wipe(0).unwrap();
    world.crash(1).unwrap();
    world.start(0).unwrap();
    world.start(2).unwrap();
    run_for(&mut world, 10 * SECOND);
    assert_eq!(world.leader(), None);
    world.start(1).unwrap();
    close(world);
}

/// Servers 2 and 3 were told 2, and founded the group while 1, which was told otherwise, was out of
/// reach. Then 3 lost its directory, and 1 and 3 took the lowest of those named that was up for the
/// first leader.
#[test]
fn a_group_is_not_founded_twice_when_another_directory_than_the_first_leaders_is_lost() {
    for (told, founder, lost, seed) in
        [([0, 1, 1], 1, 2, 80), ([0, 2, 2], 2, 1, 81), ([2, 1, 1], 1, 2, 82)]
    {
        let absent = other_than(founder, lost);
        let setup = Setup { told: told.to_vec(), first_leader: founder, ..Setup::calm(seed) };
        let mut world = World::new(setup, Trace::default());
        world.add_client(Memory::Session, 64, 60 * SECOND);
        world.isolate(absent);
        let led = run_until(&mut world, 10 * SECOND, |world| world.leader() == Some(founder));
        assert!(led, "told {told:?}: a majority was told {founder}");
        let write = put(&mut world, founder, "precious");
        answered_within(&mut world, write, 10 * SECOND);
        world.crash(absent).unwrap();
        world.wipe(lost).unwrap();
        world.crash(founder).unwrap();
        world.heal_partitions();
        world.start(lost).unwrap();
        world.start(absent).unwrap();
        run_for(&mut world, 10 * SECOND);
        assert_eq!(world.leader(), None, "told {told:?}: founded anew");
        let reason = |world: &World| world.statuses().find_map(|(_, status)| status.no_leader);
        assert!(reason(&world).is_some(), "told {told:?}: it does not say why");
        // What the lost directory held is not known, so nobody guesses with the founder back
        // either.
        world.start(founder).unwrap();
        run_for(&mut world, 5 * SECOND);
        assert_eq!(world.leader(), None);
        assert_eq!(reason(&world), Some(NoLeader::Blank { blank: 2, full: 1, needed: 2 }));
    }
}

#[test]
fn servers_that_were_told_three_first_leaders_wait_for_each_other_and_say_for_whom() {
    for (told, seed) in [([0, 1, 2], 84), ([2, 0, 1], 85)] {
        let setup = Setup { told: told.to_vec(), first_leader: 0, ..Setup::calm(seed) };
        let mut world = World::new(setup, Trace::default());
        world.add_client(Memory::Session, 64, 60 * SECOND);
        world.isolate(1);
        run_for(&mut world, 5 * SECOND);
        assert_eq!(world.leader(), None);
        let process = world.servers[0].process.as_ref().unwrap();
        let waits = |notice: &&Notice| match notice {
            Notice::NoLeader { reason: NoLeader::DifferentFirstLeaders { missing, .. } } => {
                missing.0 == 2
            }
            _ => false,
        };
        assert_eq!(process.notices.iter().filter(waits).count(), 1);
        world.heal_partitions();
        let led = run_until(&mut world, 5 * SECOND, |world| world.leader() == Some(0));
        assert!(led, "told {told:?}: all are up");
        close(world);
    }
}

/// Whoever has as much as the leader was ordered to take over, and did nothing if it may not lead;
/// nobody else was tried before the leader gave up.
#[test]
fn a_leader_that_stops_hands_over_to_the_next_where_one_may_not_lead() {
    for unable in [1, 2] {
        let mut world = group(Setup::calm(86));
        let reason = Ineligible::StoreDamaged;
        world.input(unable, Input::Eligibility { reason, holds: true }).unwrap();
        run_for(&mut world, SECOND);
        world.stop(0).unwrap();
        let able = other_than(0, unable);
        let led = led_by_another(&mut world, 0, 2 * ELECTION_US);
        assert_eq!(led, able, "sooner than the leader would have given up");
        world.input(unable, Input::Eligibility { reason, holds: false }).unwrap();
        close(world);
    }
}

/// A round was thrown away when it took longer than 200 milliseconds, and begun anew, for ever.
#[test]
fn linearizable_reads_are_confirmed_however_long_that_takes() {
    let mut world = group(Setup::calm(87));
    let write = put(&mut world, 0, "v");
    answered_within(&mut world, write, SECOND);
    for delay_us in [(90 * MILLISECOND, 110 * MILLISECOND), (150 * MILLISECOND, 250 * MILLISECOND)]
    {
        world.setup.quality = Quality { delay_us, ..Quality::GOOD };
        let quality = world.setup.quality;
        world.network.links().for_each(|link| link.quality = quality);
        run_for(&mut world, 2 * SECOND);
        for server in 0..3 {
            let read = world.read(0, Some(server), Bytes::from_static(b"k"), true);
            // Two round trips at a follower.
            let took_us = answered_within(&mut world, read, 5 * delay_us.1);
            assert_eq!(world.operations[read].errors, [], "{took_us} µs");
        }
    }
    world.setup.quality = Quality::GOOD;
    close(world);
}

#[test]
fn a_leader_that_is_asked_to_stop_hands_over_and_loses_no_write() {
    let mut world = group(Setup::calm(14));
    let writes: Vec<usize> = (0..20).map(|n| put(&mut world, n % 3, &n.to_string())).collect();
    run_for(&mut world, MILLISECOND);
    world.stop(0).unwrap();
    let began_us = world.now_us;
    let gone = run_until(&mut world, 5 * SECOND, |world| world.servers[0].process.is_none());
    assert!(gone, "it does not stop");
    assert!(world.now_us - began_us < 2 * SECOND, "it waits for nothing");
    // Sooner than any election time-out could have brought it about.
    let succeeded = run_until(&mut world, 100 * MILLISECOND, |world| world.leader().is_some());
    assert!(succeeded, "nobody leads when it goes");
    for write in writes {
        answered_within(&mut world, write, 5 * SECOND);
    }
    assert_eq!(world.nemesis.overdue_stops, 0);
    close(world);
}

#[test]
fn a_follower_far_behind_is_caught_up_from_disk() {
    let mut world = group(Setup { fetch_failures: 300, ..Setup::calm(15) });
    world.crash(2).unwrap();
    for round in 0..30 {
        let batch: Vec<usize> =
            (0..40).map(|n| put(&mut world, 0, &format!("{round}/{n}"))).collect();
        for write in batch {
            answered_within(&mut world, write, 5 * SECOND);
        }
    }
    // A restart empties what the leader kept in memory.
    world.crash(0).unwrap();
    world.start(0).unwrap();
    world.start(2).unwrap();
    close(world);
}

/// A group whose third server has lost its directory and is behind the log, which is cut at every
/// chance.
fn group_with_a_blank_server(setup: Setup) -> World {
    let mut world = group(Setup { checkpoints: 1_000, compactions: 1_000, ..setup });
    world.crash(2).unwrap();
    for round in 0..20 {
        let batch: Vec<usize> = (0..10)
            .map(|n| world.put(0, Some(0), &format!("k{}", 10 * round + n), &"v".repeat(100)))
            .collect();
        for write in batch {
            answered_within(&mut world, write, 5 * SECOND);
        }
    }
    world.wipe(2).unwrap();
    assert!(world.servers[0].disk.entry(1).is_none(), "the log was never cut");
    // A server that came late to the birth may have needed one.
    world.snapshots = (0, 0);
    world
}

/// Starts the blank server and goes on writing until it has all there is.
fn rejoin_while_writes_go_on(world: &mut World) {
    world.start(2).unwrap();
    let began_us = world.now_us;
    loop {
        let key = format!("m{}", world.operations.len() % 100);
        let write = world.put(0, Some(0), &key, "meanwhile");
        answered_within(world, write, 5 * SECOND);
        run_for(world, 2 * MILLISECOND);
        let in_sync = world.statuses().any(|(_, status)| status.in_sync.len() == 3);
        if in_sync && world.servers[2].disk.hard_state().admitted {
            return;
        }
        assert!(world.now_us - began_us < 60 * SECOND, "it never rejoins");
    }
}

/// Twenty pieces a second: the transfer takes seconds, in which hundreds of writes come and go.
fn slow_transfer(seed: u64) -> Setup {
    let transfers = TransferLimits { chunk_bytes_max: 500, ..TransferLimits::default() };
    Setup { piece_us_max: 100 * MILLISECOND, transfers, ..Setup::calm(seed) }
}

#[test]
fn a_blank_server_needs_one_snapshot_while_writes_go_on_and_the_log_is_cut() {
    for seed in 20..30 {
        let mut world = group_with_a_blank_server(slow_transfer(seed));
        rejoin_while_writes_go_on(&mut world);
        assert_eq!(world.snapshots, (1, 1), "seed {seed}: prepared and installed");
        // Once the receiver has caught up the log is as short as before.
        run_for(&mut world, SECOND);
        let last_write = put(&mut world, 0, "last");
        answered_within(&mut world, last_write, SECOND);
        run_for(&mut world, SECOND);
        let disk = &world.servers[0].disk;
        assert!(disk.entry(disk.last_index().saturating_sub(100)).is_none(), "seed {seed}");
        close(world);
    }
}

#[test]
fn busy_workers_delay_a_snapshot_and_do_not_break_it() {
    let mut world = group_with_a_blank_server(slow_transfer(30));
    world.start(2).unwrap();
    let begun = run_until(&mut world, 10 * SECOND, |world| world.snapshots.0 == 1);
    assert!(begun, "no snapshot is prepared");
    for _ in 0..5 {
        world.servers[0].workers_busy_until_us = world.now_us + 200 * MILLISECOND;
        run_for(&mut world, 300 * MILLISECOND);
    }
    rejoin_while_writes_go_on(&mut world);
    assert_eq!(world.snapshots, (1, 1), "prepared and installed");
    close(world);
}

/// A log that may not grow any longer is cut before the receiver has it all: it is sent snapshots
/// at a bounded rate, until writes pause for long enough.
#[test]
fn a_receiver_that_is_too_slow_for_the_log_that_may_be_kept_gets_there_when_writes_pause() {
    let mut world = group_with_a_blank_server(Setup { held_entries_max: 60, ..slow_transfer(31) });
    world.start(2).unwrap();
    for _ in 0..5_000 {
        let key = format!("m{}", world.operations.len() % 100);
        let write = world.put(0, Some(0), &key, "meanwhile");
        answered_within(&mut world, write, 5 * SECOND);
        run_for(&mut world, 2 * MILLISECOND);
    }
    let (prepared, _) = world.snapshots;
    assert!((2..20).contains(&prepared), "{prepared} snapshots were prepared");
    let caught_up =
        run_until(&mut world, 60 * SECOND, |world| world.servers[2].disk.hard_state().admitted);
    assert!(caught_up, "it never rejoins");
    close(world);
}

/// It went on growing until the disk was full, up to an eighth of it.
#[test]
fn the_log_that_is_kept_for_a_receiver_gives_way_on_a_disk_that_is_getting_full() {
    let mut world = group_with_a_blank_server(slow_transfer(33));
    world.start(2).unwrap();
    let begun = run_until(&mut world, 10 * SECOND, |world| world.snapshots.0 == 1);
    assert!(begun, "no snapshot is prepared");
    let write_some = |world: &mut World| {
        for n in 0..200 {
            let write = world.put(0, Some(0), &format!("m{}", n % 100), "meanwhile");
            answered_within(world, write, 5 * SECOND);
        }
    };
    let is_kept = |world: &World| {
        let disk = &world.servers[0].disk;
        disk.entry(disk.last_index() - 100).is_some()
    };
    write_some(&mut world);
    assert!(is_kept(&world), "there is room for it");
    assert_eq!(world.snapshots, (1, 0), "it is still on its way");
    world.disk_is(0, DiskSpace::Low).unwrap();
    assert!(!is_kept(&world), "most of it goes at once");
    write_some(&mut world);
    run_for(&mut world, SECOND);
    assert!(!is_kept(&world), "and is not kept any more");
    // The receiver gets another snapshot, when there is room again at the latest.
    world.disk_is(0, DiskSpace::Ample).unwrap();
    rejoin_while_writes_go_on(&mut world);
    close(world);
}

/// Committed entries are kept in memory until they are applied. A leader whose store hung took ever
/// more of them.
#[test]
fn a_leader_whose_store_hangs_refuses_writes_before_its_memory_is_full() {
    let limits = NodeLimits { unapplied_bytes_max: 20_000, ..NodeLimits::default() };
    let mut world = group(Setup { ack: AckPolicy::Majority, limits, ..Setup::calm(32) });
    // A client's session is open once its first write has been applied.
    let first = world.put(0, Some(0), "first", "v");
    answered_within(&mut world, first, SECOND);
    world.servers[0].apply_us_max = 100_000 * SECOND;
    let value = "v".repeat(1_000);
    let mut writes = Vec::new();
    for n in 0..60 {
        writes.push(world.put(0, Some(0), &format!("k{n}"), &value));
        run_for(&mut world, 10 * MILLISECOND);
    }
    let busy = |world: &World, writes: &[usize]| {
        let errors = |write: &&usize| {
            let errors = &world.operations[**write].errors;
            errors.iter().any(|(_, code)| matches!(code, ErrorCode::Busy { .. }))
        };
        writes.iter().filter(errors).count()
    };
    // The simulation's rule on what is held has seen all of them.
    assert!(busy(&world, &writes[..15]) == 0, "the first ones fit");
    assert!(busy(&world, &writes) > 30, "{} of 60 were refused", busy(&world, &writes));
    let commit = world.statuses().next().unwrap().1.commit;
    assert!((15..25).contains(&commit), "{commit} entries are committed");
    // What its applier was handed is lost with the process, and applied by the next.
    world.crash(0).unwrap();
    world.servers[0].apply_us_max = 200;
    world.start(0).unwrap();
    close(world);
}

#[test]
fn a_group_of_one_needs_nobody() {
    let replication_delay = vec![Duration::ZERO];
    let mut world =
        World::new(Setup { servers: 1, replication_delay, ..Setup::calm(17) }, Trace::default());
    world.add_client(Memory::Session, 4, 5 * SECOND);
    let write = put(&mut world, 0, "v");
    answered_within(&mut world, write, 5 * SECOND);
    world.crash(0).unwrap();
    world.start(0).unwrap();
    close(world);
}

#[test]
fn every_kind_of_fault_strikes_in_a_campaign() {
    let mut world = World::new(Setup::calm(16), Trace::default());
    world.add_client(Memory::PerKey, 4, 3 * SECOND);
    world.unleash(Fault::ALL.to_vec(), 300 * MILLISECOND);
    run_for(&mut world, 60 * SECOND);
    assert_eq!(world.nemesis.struck.len(), Fault::ALL.len());
    close(world);
}

/// Waits until a server that is not `than` leads, and says which.
fn led_by_another(world: &mut World, than: usize, limit_us: u64) -> usize {
    let led = run_until(world, limit_us, |world| {
        world.leader().is_some_and(|leader| leader != than)
            && world.statuses().all(|(at, status)| at != than || status.role != Role::Leader)
    });
    assert!(led, "nobody takes over");
    world.leader().unwrap()
}

/// A leader whose disk hung went on leading, and every write failed for as long as it did.
#[test]
fn a_leader_whose_disk_hangs_hands_over_and_stays_away_until_it_answers() {
    let stall_us = limits::STALL_TIMEOUT.as_micros() as u64;
    for (seed, files) in [(30, HungFiles::Log), (31, HungFiles::Store), (32, HungFiles::Both)] {
        for ack in [AckPolicy::All, AckPolicy::Majority] {
            let mut world = group(Setup { ack, ..Setup::calm(seed) });
            run_for(&mut world, SECOND);
            world.hang_disk(0, files, 60 * SECOND);
            let began_us = world.now_us;
            let writes: Vec<usize> =
                (0..20).map(|n| put(&mut world, n % 3, &n.to_string())).collect();
            // The store has twice as long as the log.
            let next = led_by_another(&mut world, 0, 2 * stall_us + 500 * MILLISECOND);
            assert!(world.now_us - began_us > stall_us, "it gives up too soon");
            // The rest is what a new leader waits for one that it takes for being in sync.
            for write in writes {
                answered_within(&mut world, write, limits::COMMIT_TIMEOUT.as_micros() as u64);
            }
            // Whatever becomes of the others, it does not lead.
            let patience_us = 20 * SECOND;
            world.pause(next, SECOND);
            let waited_us = world.now_us + patience_us;
            let led = run_until(&mut world, patience_us, |world| {
                world.statuses().any(|(at, status)| at == 0 && status.role != Role::Follower)
            });
            assert!(!led && world.now_us == waited_us, "it campaigns though its disk hangs");
            world.mend_disk(0);
            let well = run_until(&mut world, SECOND, |world| {
                world.statuses().all(|(_, status)| status.ineligible.is_empty())
            });
            assert!(well, "its disk answers and it says that it may not lead");
            close(world);
        }
    }
}

#[test]
fn a_leader_whose_store_is_damaged_hands_over_at_once_and_votes_on() {
    let mut world = group(Setup::calm(33));
    run_for(&mut world, SECOND);
    let writes: Vec<usize> = (0..20).map(|n| put(&mut world, n % 3, &n.to_string())).collect();
    run_for(&mut world, MILLISECOND);
    let reason = Ineligible::StoreDamaged;
    world.input(0, Input::Eligibility { reason, holds: true }).unwrap();
    let second = led_by_another(&mut world, 0, 100 * MILLISECOND);
    for write in writes {
        answered_within(&mut world, write, SECOND);
        assert_eq!(world.operations[write].errors, []);
    }
    // Its log is whole, so its vote counts: without it the third could not be elected.
    world.crash(second).unwrap();
    let third = led_by_another(&mut world, 0, 2 * SECOND);
    assert_eq!(third, other_than(0, second));
    // Alone with a server that is blank or away it would be the only one, and still is not elected.
    world.crash(third).unwrap();
    world.start(second).unwrap();
    let behind = run_until(&mut world, 5 * SECOND, |world| world.leader() == Some(0));
    assert!(!behind, "a damaged server leads");
    world.input(0, Input::Eligibility { reason, holds: false }).unwrap();
    close(world);
}

#[test]
fn a_leader_that_may_not_lead_steps_down_though_nobody_can_take_over() {
    let mut world = group(Setup::calm(34));
    world.crash(1).unwrap();
    world.crash(2).unwrap();
    run_for(&mut world, 50 * MILLISECOND);
    assert_eq!(world.leader(), Some(0));
    let reason = Ineligible::StoreDamaged;
    world.input(0, Input::Eligibility { reason, holds: true }).unwrap();
    // It tries whoever it has a link to first, and a broken one may be noticed late.
    let left = run_until(&mut world, 5 * SECOND, |world| world.leader().is_none());
    assert!(left, "it leads on");
    world.input(0, Input::Eligibility { reason, holds: false }).unwrap();
    close(world);
}

/// It went on following the dead leader, and answered writes as if the group had too many.
#[test]
fn a_server_that_may_not_campaign_forgets_a_leader_that_is_gone() {
    let mut world = group(Setup::calm(36));
    let reason = Ineligible::StoreDamaged;
    world.input(2, Input::Eligibility { reason, holds: true }).unwrap();
    world.crash(0).unwrap();
    world.crash(1).unwrap();
    let forgotten = run_until(&mut world, 5 * SECOND, |world| {
        world.statuses().all(|(_, status)| status.leader.is_none())
    });
    assert!(forgotten, "it follows a leader that is gone");
    world.input(2, Input::Eligibility { reason, holds: false }).unwrap();
    close(world);
}

/// One disk under all servers: nobody is better off, and an election would only be one more thing
/// to wait for.
#[test]
fn a_stall_of_every_disk_at_once_deposes_nobody() {
    let mut world = group(Setup::calm(35));
    run_for(&mut world, SECOND);
    let stall_us = limits::STALL_TIMEOUT.as_micros() as u64;
    for server in 0..3 {
        world.hang_disk(server, HungFiles::Both, stall_us * 3 / 2);
    }
    let write = put(&mut world, 1, "v");
    answered_within(&mut world, write, 2 * stall_us);
    assert_eq!(world.leader(), Some(0));
    assert_eq!(world.checker.terms_led(), 1);
    close(world);
}

#[test]
fn a_follower_that_is_killed_delays_writes_no_longer_than_its_connection_takes_to_break() {
    for seed in 0..20 {
        let mut world = group(Setup::calm(40 + seed));
        run_for(&mut world, SECOND);
        world.crash(2).unwrap();
        let write = put(&mut world, 0, "v");
        let noticed = run_until(&mut world, ELECTION_US + 100 * MILLISECOND, |world| {
            world.statuses().any(|(_, status)| status.in_sync.len() == 2)
        });
        assert!(noticed, "seed {seed}");
        // A client's own connection may take thirty.
        assert!(run_until(&mut world, 65 * MILLISECOND, |world| world.ended(write)), "seed {seed}");
        close(world);
    }
}

/// A new leader took whoever it had a link to for being in sync: one that was blank, or frozen.
#[test]
fn after_a_change_of_leader_in_sync_is_what_was_confirmed_in_its_term() {
    let mut world = group(Setup::calm(60));
    run_for(&mut world, SECOND);
    // 3 is blank, and its disk hangs: it answers, and can store nothing.
    world.wipe(2).unwrap();
    world.start(2).unwrap();
    world.hang_disk(2, HungFiles::Both, 60 * SECOND);
    run_for(&mut world, 300 * MILLISECOND);
    let write = put(&mut world, 0, "before");
    answered_within(&mut world, write, SECOND);
    world.crash(0).unwrap();
    run_for(&mut world, 200 * MILLISECOND);
    world.start(0).unwrap();
    let led = led_by_another(&mut world, 2, 3 * SECOND);
    let write = put(&mut world, led, "after");
    let took_us = answered_within(&mut world, write, 3 * SECOND);
    assert!(took_us < 100 * MILLISECOND, "{took_us} µs");
    for (server, status) in world.statuses() {
        assert!(!status.in_sync.iter().any(|node| node.0 == 3), "{server}: {status:?}");
    }
    world.mend_disk(2);
    let returned = run_until(&mut world, 10 * SECOND, |world| {
        world.statuses().any(|(_, status)| status.in_sync.len() == 3)
    });
    assert!(returned, "it is never in sync again");
    close(world);
}

/// The leader's own disk was waited for without a bound.
#[test]
fn under_ack_all_no_write_waits_without_a_bound_for_the_leaders_own_disk() {
    // So long a stall is no reason to hand over here.
    let stall_timeout = Duration::from_secs(100);
    let mut world = group(Setup { stall_timeout, ..Setup::calm(61) });
    run_for(&mut world, SECOND);
    // A client's first write waits to be applied, and that waits for the log.
    let write = put(&mut world, 0, "first");
    answered_within(&mut world, write, SECOND);
    world.hang_disk(0, HungFiles::Log, 60 * SECOND);
    let write = put(&mut world, 0, "second");
    let timeout_us = limits::IN_SYNC_TIMEOUT_DEFAULT.as_micros() as u64;
    answered_within(&mut world, write, timeout_us + 100 * MILLISECOND);
    assert!(matches!(world.outcome(write), Some(Outcome::Written(_))));
    assert_eq!(world.leader(), Some(0));
    close(world);
}

/// Answers to heartbeats waited behind the disk, so that slow disks at the followers deposed a
/// leader that was well.
#[test]
fn slow_disks_at_the_followers_depose_nobody() {
    let mut world = group(Setup { ack: AckPolicy::Majority, ..Setup::calm(62) });
    run_for(&mut world, SECOND);
    for server in [1, 2] {
        world.servers[server].sync_us_max = 1500 * MILLISECOND;
    }
    for round in 0..10 {
        let write = put(&mut world, round % 3, "v");
        answered_within(&mut world, write, 4 * SECOND);
        assert_eq!(world.operations[write].errors, []);
    }
    assert_eq!(world.leader(), Some(0));
    assert_eq!(world.checker.terms_led(), 1);
    close(world);
}

/// Microseconds until writes through each server are answered, from now.
fn recovery_us(world: &mut World, through: impl Iterator<Item = usize>) -> u64 {
    let began_us = world.now_us;
    let writes: Vec<usize> = through.map(|server| put(world, server, "v")).collect();
    for write in &writes {
        answered_within(world, *write, 10 * SECOND);
    }
    let ended = writes.iter().map(|write| world.operations[*write].ended.as_ref().unwrap().0);
    ended.max().unwrap() - began_us
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_leader_that_is_gone_is_replaced_and_a_cut_heals_within_an_election() {
    let mut medians = Vec::new();
    for case in ["killed", "frozen", "cut off", "all cut off"] {
        let times = (0..40).map(|seed| {
            let mut world = group(Setup::calm(100 + seed));
            run_for(&mut world, SECOND);
            match case {
                "killed" => world.crash(0).unwrap(),
                "frozen" => world.pause(0, 20 * SECOND),
                "cut off" => world.isolate(0),
                _ => {
                    (0..3).for_each(|server| world.isolate(server));
                    run_for(&mut world, 5 * SECOND);
                    world.heal_partitions();
                    return recovery_us(&mut world, 0..3);
                }
            }
            recovery_us(&mut world, 1..3)
        });
        medians.push((case, median(times.collect())));
    }
    for (case, median_us) in &medians {
        let bound_us = if *case == "all cut off" { 500 } else { 600 } * MILLISECOND;
        assert!(*median_us <= bound_us, "{case}: {medians:?}");
    }
    println!("{medians:?}");
}

#[test]
fn a_write_that_nobody_took_is_said_not_to_be_done() {
    let mut world = group(Setup::calm(63));
    for server in [1, 2] {
        world.crash(server).unwrap();
    }
    run_for(&mut world, 3 * SECOND);
    let write = put(&mut world, 0, "v");
    let refused =
        run_until(&mut world, 7 * SECOND, |world| !world.operations[write].errors.is_empty());
    assert!(refused);
    assert_eq!(world.operations[write].errors[0].1, ErrorCode::NoMajority);
    close(world);
}

#[test]
fn a_write_that_was_passed_on_is_never_said_to_lack_a_majority() {
    let mut world = group(Setup::calm(64));
    world.cut(1, 0);
    world.cut(2, 0);
    let write = put(&mut world, 0, "v");
    let refused =
        run_until(&mut world, 20 * SECOND, |world| !world.operations[write].errors.is_empty());
    assert!(refused);
    assert_eq!(world.operations[write].errors[0].1, ErrorCode::Unconfirmed);
    close(world);
}

#[test]
fn a_leader_whose_state_is_damaged_hands_over_and_gets_it_back() {
    for seed in 40..46 {
        let mut world =
            group(Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(seed) });
        for number in 0..60 {
            let write = put(&mut world, 0, &number.to_string());
            answered_within(&mut world, write, 5 * SECOND);
        }
        world.rot(0).unwrap();
        let began_us = world.now_us;
        let handed_over = run_until(&mut world, 5 * SECOND, |world| {
            world.leader().is_some_and(|leader| leader != 0)
        });
        assert!(handed_over, "seed {seed}: nobody takes over");
        assert!(world.now_us - began_us < 200 * MILLISECOND, "seed {seed}: nobody had to time out");
        let lost = run_until(&mut world, 5 * SECOND, |world| world.servers[0].store_lost);
        assert!(lost, "seed {seed}: the log was to be too short");
        let rebuilt = run_until(&mut world, 20 * SECOND, |world| {
            let process = world.servers[0].process.as_ref();
            process.is_some_and(|process| process.notices.contains(&Notice::StoreRebuilt))
        });
        assert!(rebuilt, "seed {seed}: it does not get its state back");
        close(world);
    }
}

/// No other server's log goes back far enough, and nobody writes: the snapshot is of the very point
/// that is committed everywhere.
#[test]
fn a_damaged_state_comes_back_in_an_idle_group() {
    let mut world = group(Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(47) });
    for number in 0..60 {
        let write = put(&mut world, 1, &number.to_string());
        answered_within(&mut world, write, 5 * SECOND);
    }
    run_for(&mut world, SECOND);
    world.crash(2).unwrap();
    world.rot(2).unwrap();
    assert!(world.servers[2].store_lost);
    world.start(2).unwrap();
    let rebuilt = run_until(&mut world, 20 * SECOND, |world| !world.servers[2].store_lost);
    assert!(rebuilt);
    close(world);
}

#[test]
fn a_server_without_its_state_votes_and_neither_leads_nor_answers_reads() {
    let mut world = group(Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(48) });
    for number in 0..60 {
        let write = put(&mut world, 0, &number.to_string());
        answered_within(&mut world, write, 5 * SECOND);
    }
    run_for(&mut world, SECOND);
    // The other two are away, so nobody can send it anything.
    for server in [0, 1, 2] {
        world.crash(server).unwrap();
    }
    world.rot(2).unwrap();
    world.start(2).unwrap();
    let read = world.read(0, Some(2), Bytes::from_static(b"k"), false);
    run_for(&mut world, SECOND);
    assert!(world.operations[read].errors.iter().any(|(_, code)| *code == ErrorCode::Internal));
    // With its vote the one that has a state is elected, though it might have campaigned first.
    world.start(0).unwrap();
    let led = run_until(&mut world, 10 * SECOND, |world| world.leader().is_some());
    assert!(led && world.leader() == Some(0));
    answered_within(&mut world, read, 10 * SECOND);
    close(world);
}

/// The leader can commit nothing without the server that waits for its snapshot, which stores
/// nothing meanwhile: it must not be asked for a snapshot of what is not committed.
#[test]
fn a_server_gets_its_state_back_from_a_leader_that_needs_it_for_its_majority() {
    for seed in 60..80 {
        let setup = Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(seed) };
        let mut world = group(Setup { ack: AckPolicy::Majority, ..setup });
        for number in 0..60 {
            let write = put(&mut world, 0, &number.to_string());
            answered_within(&mut world, write, 5 * SECOND);
        }
        world.crash(2).unwrap();
        world.rot(1).unwrap();
        let mut writes = Vec::new();
        let mut rebuilt = false;
        for round in 0..1_000 {
            writes.push(put(&mut world, 0, &"v".repeat(100)));
            // Acknowledgements are lost with the link. So would the snapshot be, were it to go on.
            if round < 50 && world.rng.chance(200) {
                world.reset_link(1, 0);
            }
            run_for(&mut world, 20 * MILLISECOND);
            let process = world.servers[1].process.as_ref();
            rebuilt |=
                process.is_some_and(|process| process.notices.contains(&Notice::StoreRebuilt));
            if rebuilt {
                break;
            }
        }
        assert!(rebuilt, "seed {seed}: it does not get its state back");
        for write in writes {
            answered_within(&mut world, write, 20 * SECOND);
        }
        close(world);
    }
}

/// It has to store the log up to the leader's term before it may ask for a snapshot. Nothing of
/// that can be applied, and it must not fill the room for what is not applied.
#[test]
fn a_server_without_its_state_stores_more_of_the_log_than_may_wait_to_be_applied() {
    let limits =
        NodeLimits { unapplied_bytes_max: 1_000, append_bytes_max: 200, ..NodeLimits::default() };
    let setup = Setup { compactions: 1_000, checkpoints: 1_000, limits, ..Setup::calm(56) };
    let mut world = group(Setup { ack: AckPolicy::Majority, ..setup });
    let write_some = |world: &mut World| {
        for number in 0..60 {
            let write = put(world, 0, &number.to_string());
            answered_within(world, write, 5 * SECOND);
        }
    };
    write_some(&mut world);
    run_for(&mut world, SECOND);
    world.crash(1).unwrap();
    world.rot(1).unwrap();
    assert!(world.servers[1].store_lost);
    world.setup.compactions = 0;
    write_some(&mut world);
    world.crash(0).unwrap();
    world.start(1).unwrap();
    let led = run_until(&mut world, 10 * SECOND, |world| world.leader() == Some(2));
    assert!(led, "nobody takes over");
    let rebuilt = run_until(&mut world, 20 * SECOND, |world| !world.servers[1].store_lost);
    assert!(rebuilt, "it does not get its state back");
    world.start(0).unwrap();
    close(world);
}

/// A server's word about its state is lost with its process. In a group in which nobody writes
/// there was no other.
#[test]
fn a_dispute_is_decided_in_an_idle_group() {
    for (wrong, right, seed) in [(0, 1, 54), (1, 0, 55)] {
        // Whoever starts again has nothing to apply, and so no state in between to speak of.
        let setup = Setup { checkpoints: 1_000, ..Setup::calm(seed) };
        let mut world = group(Setup { ack: AckPolicy::Majority, ..setup });
        world.crash(2).unwrap();
        world.nemesis.struck.insert(Fault::Diverge, 1);
        world.servers[wrong].process.as_mut().unwrap().skew = 1;
        let distrusts = |world: &World, server: usize| {
            world.statuses().any(|(at, status)| at == server && status.distrust.is_some())
        };
        while !distrusts(&world, right) {
            let write = put(&mut world, 0, "v");
            answered_within(&mut world, write, 5 * SECOND);
        }
        // What it has on its disk is right. It is back before anybody is elected, after which all
        // would compare.
        world.crash(wrong).unwrap();
        world.servers[wrong].saved_skew = 0;
        world.start(wrong).unwrap();
        let decided = run_until(&mut world, 10 * SECOND, |world| {
            world.statuses().count() == 2
                && world.statuses().all(|(_, status)| status.distrust.is_none())
                && world.leader().is_some()
        });
        assert!(decided, "seed {seed}: nobody knows who is right");
        world.start(2).unwrap();
        close(world);
    }
}

#[test]
fn a_replica_that_diverges_is_found_stops_serving_and_is_rebuilt_also_when_it_leads() {
    for (victim, seed) in [(0, 50), (1, 51), (2, 52)] {
        let mut world =
            group(Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(seed) });
        for number in 0..30 {
            let write = put(&mut world, 0, &number.to_string());
            answered_within(&mut world, write, 5 * SECOND);
        }
        world.nemesis.struck.insert(Fault::Diverge, 1);
        world.servers[victim].process.as_mut().unwrap().skew = 1;
        let life = world.servers[victim].life;
        for number in 0..30 {
            let write = put(&mut world, 1, &number.to_string());
            answered_within(&mut world, write, 10 * SECOND);
        }
        let restarted = run_until(&mut world, 10 * SECOND, |world| {
            world.servers[victim].life > life && world.servers[victim].process.is_some()
        });
        assert!(restarted, "it goes on with another state than the others");
        let rebuilt = run_until(&mut world, 20 * SECOND, |world| {
            !world.servers[victim].store_lost && world.servers[victim].process.is_some()
        });
        assert!(rebuilt);
        close(world);
    }
}

/// What is said once may be lost with its link, or contradicted by a forger; so it is said again
/// and again.
#[test]
fn full_disks_are_told_again_and_again_until_there_is_room() {
    let refused = |world: &mut World, server: usize, when: &str| {
        let write = put(world, server, "v");
        let met = run_until(world, 3 * SECOND, |world| !world.operations[write].errors.is_empty());
        assert!(met, "{when}: it is taken");
        assert_eq!(world.operations[write].errors[0].1, ErrorCode::DiskFull, "{when}");
    };
    let mut world = group(Setup::calm(85));
    let leader = world.leader().unwrap();
    let followers: Vec<usize> = (0..3).filter(|server| *server != leader).collect();
    for follower in &followers {
        world.disk_is(*follower, DiskSpace::Full).unwrap();
    }
    run_for(&mut world, 100 * MILLISECOND);
    refused(&mut world, leader, "two of three are full");
    for follower in &followers {
        let message = CheckedMessage::new(ServerMessage::Disk { full: false }).unwrap();
        let from = node_id(*follower);
        world.input(leader, Input::Message { from, message }).unwrap();
    }
    run_for(&mut world, 2 * SECOND);
    refused(&mut world, leader, "a forger has said that there is room");
    for follower in &followers {
        world.reset_links(*follower, leader);
    }
    run_for(&mut world, 2 * SECOND);
    let leader = world.leader().unwrap();
    refused(&mut world, leader, "the links are new");
    for server in 0..3 {
        world.disk_is(server, DiskSpace::Ample).unwrap();
    }
    run_for(&mut world, 100 * MILLISECOND);
    let write = put(&mut world, leader, "v");
    answered_within(&mut world, write, SECOND);
    assert!(world.operations[write].errors.is_empty(), "it was told that there is room again");
    close(world);
}

/// The verdict was once lost with the process: whoever was killed between it and the rebuilding
/// trusted its state again, and served it until somebody asked.
#[test]
fn a_replica_that_was_refuted_and_is_killed_at_any_moment_never_serves_that_state_again() {
    let mut rebuilt_late = 0;
    for step in 0..24 {
        let setup = Setup { compactions: 1_000, checkpoints: 1_000, ..Setup::calm(300 + step) };
        let mut world = group(Setup { ack: AckPolicy::Majority, ..setup });
        for number in 0..30 {
            let write = put(&mut world, 0, &number.to_string());
            answered_within(&mut world, write, 5 * SECOND);
        }
        let victim = step as usize % 3;
        world.nemesis.struck.insert(Fault::Diverge, 1);
        world.servers[victim].process.as_mut().unwrap().skew = 1;
        let mut refuted = false;
        while !refuted {
            world.put(0, Some(1), "k", "v");
            refuted =
                run_until(&mut world, 20 * MILLISECOND, |world| world.servers[victim].refuted);
        }
        // It hands over meanwhile, ends, and is started again.
        run_for(&mut world, step * step * 50);
        world.crash(victim).unwrap();
        world.start(victim).unwrap();
        rebuilt_late += u64::from(world.servers[victim].store_lost);
        // In an idle group, in which nobody would ask.
        let read = world.read(0, Some(victim), Bytes::from_static(b"k"), false);
        let linearizable = world.read(0, Some(victim), Bytes::from_static(b"k"), true);
        answered_within(&mut world, read, 20 * SECOND);
        answered_within(&mut world, linearizable, 20 * SECOND);
        assert!(!world.servers[victim].is_wrong(), "step {step}: it has what was refuted");
        close(world);
    }
    assert!(rebuilt_late > 10, "{rebuilt_late}");
}

/// Its data directory may be on a full or a broken disk, and its log on another one.
#[test]
fn a_leader_that_was_refuted_hands_over_and_ends_though_its_disk_does_not_take_the_verdict_in() {
    let mut world = group(Setup { checkpoints: 1_000, ..Setup::calm(87) });
    world.nemesis.struck.insert(Fault::Diverge, 1);
    let leader = world.leader().unwrap();
    world.servers[leader].process.as_mut().unwrap().skew = 1;
    world.servers[leader].verdict_hung_until_us = u64::MAX;
    let life = world.servers[leader].life;
    let is_refuted = |world: &World| {
        world
            .statuses()
            .any(|(at, status)| at == leader && status.distrust == Some(Distrust::Refuted))
    };
    while !is_refuted(&world) {
        world.put(0, Some(1), "k", "v");
        run_until(&mut world, MILLISECOND, is_refuted);
    }
    led_by_another(&mut world, leader, 100 * MILLISECOND);
    let write = put(&mut world, leader, "v");
    answered_within(&mut world, write, SECOND);
    assert_eq!(world.servers[leader].life, life, "it waits for the verdict");
    let ended = run_until(&mut world, 10 * SECOND, |world| world.servers[leader].life > life);
    assert!(ended, "it waits for ever");
    world.servers[leader].verdict_hung_until_us = 0;
    close(world);
}

/// Two of three contradict each other and nobody can decide, so neither is read; what a key had
/// before a write would be read all the same.
#[test]
fn a_leader_that_doubts_its_state_does_writes_and_does_not_tell_what_was_before() {
    let setup = Setup { checkpoints: 1_000, ..Setup::calm(88) };
    let mut world = group(Setup { ack: AckPolicy::Majority, ..setup });
    world.crash(2).unwrap();
    world.nemesis.struck.insert(Fault::Diverge, 1);
    world.servers[1].process.as_mut().unwrap().skew = 1;
    while !world.leader_in_doubt {
        let write = put(&mut world, 0, "v");
        answered_within(&mut world, write, 5 * SECOND);
    }
    for server in [0, 1] {
        // Told something, the simulation would object.
        let key = Bytes::from_static(b"k");
        let del = WriteOp::Del(Del { key, tells_previous: true, keeps_history: false });
        let write = world.write(0, Some(server), del);
        answered_within(&mut world, write, 5 * SECOND);
        assert_eq!(world.operations[write].errors, []);
    }
    world.start(2).unwrap();
    close(world);
}

/// It ended as soon as it was asked for its vote, and did not give it. Where a link between the two
/// others was not up yet, as in a group that has just begun, its successor was not elected, and the
/// group waited for an election time-out.
#[test]
fn a_leader_that_stops_is_followed_by_another_one_in_the_next_term() {
    for seed in 500..560 {
        let setup = Setup { sync_us_max: [400, 20_000][seed as usize % 2], ..Setup::calm(seed) };
        let mut world = group(setup);
        let writes: Vec<usize> = (0..20).map(|n| put(&mut world, n % 3, &n.to_string())).collect();
        run_for(&mut world, seed % 20 * MILLISECOND);
        let term = |world: &World| world.statuses().map(|(_, status)| status.term).max().unwrap();
        let (leader, before) = (world.leader().unwrap(), term(&world));
        world.stop(leader).unwrap();
        led_by_another(&mut world, leader, 2 * SECOND);
        assert_eq!(term(&world), before + 1, "seed {seed}: it was fought for");
        for write in writes {
            answered_within(&mut world, write, 5 * SECOND);
        }
        close(world);
    }
}

/// Both had everything once and know it, so nobody takes the group for a new one; the third one may
/// still have what was acknowledged.
#[test]
fn two_servers_that_lost_what_they_had_found_no_new_group() {
    for seed in 80..84 {
        let mut world = group(Setup::calm(seed));
        let write = put(&mut world, 0, "v");
        answered_within(&mut world, write, 5 * SECOND);
        run_for(&mut world, SECOND);
        for server in 0..3 {
            world.crash(server).unwrap();
        }
        for server in [0, 1] {
            world.lose_data(server).unwrap();
            world.start(server).unwrap();
        }
        let led = run_until(&mut world, 10 * SECOND, |world| world.leader().is_some());
        assert!(!led, "seed {seed}: a new group is born, and serves without what was acknowledged");
        let said = |world: &World, at: usize| {
            let process = world.servers[at].process.as_ref().unwrap();
            process.notices.iter().any(|notice| {
                matches!(notice, Notice::NoLeader { reason: NoLeader::Blank { full: 0, .. } })
            })
        };
        assert!(said(&world, 0) && said(&world, 1), "seed {seed}: nobody says why");
        world.start(2).unwrap();
        let led = run_until(&mut world, 10 * SECOND, |world| world.leader().is_some());
        assert!(!led, "seed {seed}: one of three decides");
        assert!(world.servers[2].disk.last_index() >= 2, "seed {seed}: the last copy is there");
    }
}

/// One is brought up to date by the others, also the one that was to lead first.
#[test]
fn a_server_that_lost_what_it_had_is_admitted_when_it_has_caught_up() {
    for lost in 0..3 {
        let mut world = group(Setup::calm(90 + lost as u64));
        let write = put(&mut world, 0, "v");
        answered_within(&mut world, write, 5 * SECOND);
        run_for(&mut world, SECOND);
        world.lose_data(lost).unwrap();
        world.start(lost).unwrap();
        let admitted = run_until(&mut world, 10 * SECOND, |world| {
            world.servers[lost].disk.hard_state().admitted
        });
        assert!(admitted);
        close(world);
    }
}

fn levels(world: &World) -> Vec<u32> {
    world.statuses().map(|(_, status)| status.level).collect()
}

#[test]
fn the_level_rises_when_every_server_knows_it_and_a_release_that_does_not_cannot_come_back() {
    // By the log, and by snapshots.
    for (compactions, seed) in [(0, 81), (1_000, 82)] {
        let checkpoints = compactions.max(50);
        let mut world = group(Setup { compactions, checkpoints, ..Setup::calm(seed) });
        let write = |world: &mut World, number: u64| {
            let written = put(world, 0, &number.to_string());
            answered_within(world, written, 10 * SECOND);
        };
        for server in [2, 0, 1] {
            run_for(&mut world, 5 * SECOND);
            assert_eq!(levels(&world), [1, 1, 1], "before {server} is brought up to date");
            world.crash(server).unwrap();
            world.servers[server].upgrades = 1;
            world.start(server).unwrap();
            write(&mut world, server as u64);
        }
        assert!(run_until(&mut world, 10 * SECOND, |world| levels(world) == [2, 2, 2]));
        (10..60).for_each(|number| write(&mut world, number));

        // One that is set up anew, with the release of before.
        world.wipe(2).unwrap();
        world.servers[2].upgrades = 0;
        world.setup.outdated = Some(2);
        world.start(2).unwrap();
        (60..90).for_each(|number| write(&mut world, number));
        run_for(&mut world, 10 * SECOND);
        let status = &world.servers[2].process.as_ref().expect("it did not fall over").status;
        assert!(status.level == 1 && status.applied.index < 20, "{status:?}");
        let told = |(at, _, reason): &(usize, usize, String)| {
            *at == 2 && reason.contains("level 2") && reason.contains("run release 0.2.0 or")
        };
        let accusations = std::mem::take(&mut world.accusations);
        assert!(compactions > 0 || !accusations.is_empty());
        assert!(accusations.iter().all(told), "{accusations:?}");
        world.crash(2).unwrap();
        world.servers[2].upgrades = 1;
        world.setup.outdated = None;
        world.start(2).unwrap();
        close(world);
    }
}

#[test]
fn one_server_that_is_down_or_does_not_know_it_holds_the_level_back() {
    let mut world = group(Setup::calm(83));
    for server in [0, 1] {
        world.crash(server).unwrap();
        world.servers[server].upgrades = 2;
        world.start(server).unwrap();
        run_for(&mut world, 2 * SECOND);
    }
    run_for(&mut world, 20 * SECOND);
    assert_eq!(levels(&world), [1, 1, 1]);
    world.crash(2).unwrap();
    run_for(&mut world, 20 * SECOND);
    assert_eq!(levels(&world), [1, 1], "one that is down may not know it");
    world.servers[2].upgrades = 1;
    world.start(2).unwrap();
    assert!(run_until(&mut world, 10 * SECOND, |world| levels(world) == [2, 2, 2]));
    close(world);
}

#[test]
fn the_history_is_the_groups_whoever_leads_and_however_servers_were_started() {
    let mut world = group(Setup {
        garbage_collection: GarbageCollectionConfig::new(History::All),
        ..Setup::calm(84)
    });
    for value in ["one", "two", "three"] {
        let written = put(&mut world, 0, value);
        answered_within(&mut world, written, SECOND);
    }
    let history = History::Versions { count: 2 };
    let set = world.write(0, Some(2), WriteOp::SetHistory(SetHistory { history }));
    answered_within(&mut world, set, SECOND);
    run_for(&mut world, SECOND);
    let kept = |world: &World| world.statuses().all(|(_, status)| status.history == Some(history));
    assert!(kept(&world));
    let leader = world.leader().unwrap();
    world.crash(leader).unwrap();
    assert!(run_until(&mut world, 10 * SECOND, |world| world.leader().is_some()));
    world.start(leader).unwrap();
    assert!(run_until(&mut world, 200 * SECOND, |world| versions(world, leader) == 2));
    assert!(kept(&world));
    close(world);
}

const HOUR: u64 = 3600 * SECOND;

/// The versions of "k" that server `at` has.
fn versions(world: &World, at: usize) -> usize {
    let store = world.servers[at].process.as_ref().unwrap().machine.store();
    let of = PageOf::Versions { key: Bytes::from_static(b"k") };
    let read_view = ReadView::as_of(Timestamp(i64::MAX));
    store.page(&of, read_view, PageLimits::default()).unwrap().rows.len()
}

/// A leap of the leader's clock by two hours once made versions that were seconds old older than an
/// hour, and put removals off for two hours afterwards.
#[test]
fn a_leap_of_the_leaders_clock_destroys_no_history_and_puts_no_removal_off() {
    let history = History::For { age_us: HOUR };
    let mut world = group(Setup {
        garbage_collection: GarbageCollectionConfig::new(history),
        ..Setup::calm(71)
    });
    for value in ["one", "two", "three"] {
        let written = put(&mut world, 0, value);
        answered_within(&mut world, written, SECOND);
    }
    let leader = world.leader().unwrap();
    world.servers[leader].clock_offset_us = 2 * HOUR as i64;
    let written = put(&mut world, 0, "four");
    answered_within(&mut world, written, SECOND);
    run_for(&mut world, 30 * SECOND);
    assert_eq!(versions(&world, leader), 4);

    // Back again, the timestamps stand still for two hours, and what is removed leaves all the
    // same.
    world.servers[leader].clock_offset_us = 0;
    let removed = world.write(
        0,
        Some(leader),
        WriteOp::Del(Del {
            key: Bytes::from_static(b"k"),
            tells_previous: false,
            keeps_history: false,
        }),
    );
    answered_within(&mut world, removed, SECOND);
    let pending = |world: &World| {
        let servers = world.servers.iter().filter_map(|server| server.process.as_ref());
        servers.filter(|process| process.machine.summary().oldest_removal_us.is_some()).count()
    };
    run_for(&mut world, 30 * SECOND);
    assert_eq!(pending(&world), 3, "not before its grace is over");
    assert!(run_until(&mut world, 60 * SECOND, |world| pending(world) == 0));
    close(world);
}

/// Sweeps went through the whole store every ten seconds, for ever.
#[test]
fn an_idle_group_writes_nothing() {
    let history = History::For { age_us: 90 * SECOND };
    let mut world = group(Setup {
        garbage_collection: GarbageCollectionConfig::new(history),
        ..Setup::calm(72)
    });
    for value in ["one", "two", "three"] {
        let written = put(&mut world, 0, value);
        answered_within(&mut world, written, SECOND);
    }
    let leader = world.leader().unwrap();
    // It is looked through once, and then when the first and the second are old enough.
    assert!(run_until(&mut world, 200 * SECOND, |world| versions(world, leader) == 1));
    run_for(&mut world, 30 * SECOND);
    let last_index = world.checker.last_index();
    assert!(last_index < 20, "{last_index} entries");
    run_for(&mut world, 600 * SECOND);
    assert_eq!(world.checker.last_index(), last_index);
    close(world);
}

#[test]
fn a_leader_whose_clock_is_far_from_the_others_says_so() {
    let mut world = group(Setup::calm(73));
    let said = |world: &World| {
        let servers = world.servers.iter().filter_map(|server| server.process.as_ref());
        let is_apart = |notice: &&Notice| matches!(notice, Notice::ClockApart { .. });
        servers.flat_map(|process| process.notices.iter()).filter(is_apart).count()
    };
    let leader = world.leader().unwrap();
    let follower = (leader + 1) % 3;
    world.servers[follower].clock_offset_us = HOUR as i64;
    run_for(&mut world, 10 * SECOND);
    assert_eq!(said(&world), 0, "the leader's own clock is right");
    world.servers[follower].clock_offset_us = 0;
    world.servers[leader].clock_offset_us = -(HOUR as i64);
    run_for(&mut world, 10 * SECOND);
    assert_eq!(said(&world), 1, "once");
    let apart = |world: &World| {
        world.servers[leader].process.as_ref().and_then(|process| process.node.clock_apart_us())
    };
    assert!(apart(&world).is_some_and(|ahead_us| ahead_us > (HOUR - SECOND) as i64));
    world.servers[leader].clock_offset_us = 0;
    run_for(&mut world, 10 * SECOND);
    assert_eq!(apart(&world), None);
    close(world);
}

/// Everybody watches at a server of his own, and one server is cut off, be it the leader. Its
/// watchers are sent away and see what the others do; those of the others stay where they are.
#[test]
fn whoever_watches_at_a_server_that_is_cut_off_goes_on_at_another() {
    for (seed, lonely) in (70..76).zip([0, 1, 2].into_iter().cycle()) {
        let mut world = group(Setup::calm(seed));
        let range = || KeyInterval { from: "a".into(), to: "z".into() };
        (0..3).for_each(|server| world.add_steady_watcher(range(), server));
        assert!(run_until(&mut world, SECOND, World::watchers_are_whole));
        world.isolate(lonely);
        let others = (0..3).filter(|server| *server != lonely);
        let elected = |world: &World| {
            world.statuses().any(|(at, status)| at != lonely && status.role == Role::Leader)
        };
        assert!(run_until(&mut world, 5 * SECOND, elected), "nobody takes over");
        let write = put(&mut world, (lonely + 1) % 3, "v");
        answered_within(&mut world, write, 5 * SECOND);
        let limit_us = world.setup.cut_off_us + 2 * SECOND;
        let shown = run_until(&mut world, limit_us, World::watchers_are_whole);
        assert!(shown, "a watcher stays at {lonely}, which is cut off");
        assert_eq!(world.watchers[lonely].sent_away, 1);
        for server in others {
            assert_eq!(world.watchers[server].sent_away, 0, "{server} has a leader");
        }
        world.heal_partitions();
        close(world);
    }
}

/// Nobody has a leader: watchers go from one server to the next, some seconds each, and see what is
/// written when the group is well again.
#[test]
fn watchers_of_a_group_without_a_leader_go_round_without_haste() {
    let mut world = group(Setup::calm(77));
    world.add_steady_watcher(KeyInterval { from: "a".into(), to: "z".into() }, 0);
    (0..3).for_each(|server| world.isolate(server));
    run_for(&mut world, 60 * SECOND);
    let sent_away = world.watchers[0].sent_away;
    assert!((5..=60).contains(&sent_away), "{sent_away} times in a minute");
    world.heal_partitions();
    let write = put(&mut world, 0, "v");
    answered_within(&mut world, write, 10 * SECOND);
    assert!(run_until(&mut world, SECOND, World::watchers_are_whole));
    close(world);
}

/// A server that is late has a leader, and is left alone.
#[test]
fn whoever_watches_at_a_server_that_lags_stays_there() {
    let mut world = group(Setup::calm(78));
    world.add_steady_watcher(KeyInterval { from: "a".into(), to: "z".into() }, 2);
    world.hang_disk(2, HungFiles::Store, 60 * SECOND);
    let write = put(&mut world, 0, "v");
    answered_within(&mut world, write, 10 * SECOND);
    run_for(&mut world, 10 * SECOND);
    assert_eq!(world.watchers[0].sent_away, 0);
    world.mend_disk(2);
    assert!(run_until(&mut world, 5 * SECOND, World::watchers_are_whole));
    assert_eq!(world.watchers[0].sent_away, 0);
    close(world);
}
