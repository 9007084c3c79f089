//! A server that is broken or hostile: what it sends may cost it its connections, and nothing else.
//!
//! The attacker takes the third server's place on the network. Two kinds of attack: random
//! messages, plausible enough to get past the first checks, against which no server may panic; and
//! each known trick by itself, through which the group must keep every promise.

use std::panic::{AssertUnwindSafe, catch_unwind};

use acervo::model::{
    Action, ClientId, Command, Del, EncodedWrite, FeatureLevel, LeaseAnswer, LeaseId,
    LeaseQuestion, LogEntry, NodeId, OpResult, ReleaseVersion, RequestId, SnapshotId, Timestamp,
    WriteAnswer, WriteOp,
};
use acervo::node::{CheckedMessage, Input};
use acervo::wire::message::{RaftBody, RaftMessage, Reply, Role, ServerMessage, SnapshotOutcome};
use bytes::Bytes;

use crate::campaign::{describe, make_peace};
use crate::checker::{Verdict, Violation, ensure};
use crate::clients::Memory;
use crate::rng::Rng;
use crate::server::node_id;
use crate::trace::Trace;
use crate::world::{MILLISECOND, SECOND, Setup, World};

/// The server whose place the attacker takes.
const ATTACKER: usize = 2;

/// What no leader has said.
fn anything_done() -> Reply {
    let timestamp = Timestamp::default();
    Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous: None, txn: None })
}

/// A group with some writes in its log.
fn whole(setup: Setup) -> Result<World, Violation> {
    let mut world = World::new(setup, Trace::default());
    let client = world.add_client(Memory::Session, 16, 10 * SECOND);
    let writes: Vec<usize> =
        (0..10).map(|n| world.put(client, None, "k", &n.to_string())).collect();
    let done = world.run_until(10 * SECOND, |world| {
        writes.iter().all(|write| world.ended(*write))
            && world.servers.iter().all(|server| server.disk.hard_state().admitted)
    })?;
    ensure!(done, "the group does not come up");
    Ok(world)
}

/// A group of which two servers are left, with some writes in their logs.
fn besieged(setup: Setup) -> Result<World, Violation> {
    let honest = setup.honest;
    // The attack itself is no honest server's; the rules are checked again once it is over.
    let mut world = whole(Setup { honest: true, ..setup })?;
    world.crash(ATTACKER)?;
    world.setup.honest = honest;
    Ok(world)
}

fn attack(world: &mut World, victim: usize, message: ServerMessage) -> Verdict {
    attack_as(world, ATTACKER, victim, message)
}

/// The attacker speaks in the name of any server.
fn attack_as(world: &mut World, name: usize, victim: usize, message: ServerMessage) -> Verdict {
    // As it would come from the wire.
    let frame = rmp_serde::to_vec(&message).map_err(|error| Violation(error.to_string()))?;
    let message = rmp_serde::from_slice(&frame).map_err(|error| Violation(error.to_string()))?;
    match CheckedMessage::new(message) {
        Ok(message) => world.input(victim, Input::Message { from: node_id(name), message }),
        Err(reason) => world.disconnect(victim, node_id(name), reason),
    }
}

fn raft(victim: usize, term: u64, body: RaftBody) -> ServerMessage {
    let (from, to) = (node_id(ATTACKER), node_id(victim));
    ServerMessage::Raft(RaftMessage { from, to, term, body })
}

/// A number that is near something that matters, or far from everything.
fn number(rng: &mut Rng, near: u64) -> u64 {
    match rng.below(8) {
        0 => rng.next_u64(),
        1 => u64::MAX - rng.below(3),
        2 => rng.below(3),
        _ => (near + rng.below(8)).saturating_sub(4),
    }
}

/// A well-formed command of the attacker's own. (What does not decode is for the state machine to
/// refuse; the core carries it unread.)
fn command(rng: &mut Rng) -> Command {
    let request = RequestId {
        client: ClientId(1),
        sequence: 1 + rng.below(9),
        answered_below: 1,
        begun: Timestamp::ZERO,
    };
    let op = WriteOp::Del(Del {
        key: Bytes::from_static(b"k"),
        tells_previous: false,
        keeps_history: false,
    });
    // Now and then beyond what any clock says.
    let timestamp = if rng.chance(100) { rng.next_u64() as i64 } else { rng.below(1 << 51) as i64 };
    Command::write(Timestamp(timestamp), request, op)
}

fn random_message(rng: &mut Rng, world: &World, victim: usize) -> ServerMessage {
    let status = world.servers[victim].process.as_ref().map(|process| process.status.clone());
    let (term, last, commit) =
        status.map_or((1, 1, 1), |status| (status.term, status.last_index, status.commit));
    let term_near = term;
    let mut index = || number(rng, last);
    let (previous_index, any_index) = (index(), index());
    let context = match rng.below(3) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"?"),
        _ => Bytes::from(rng.below(16).to_be_bytes().to_vec()),
    };
    let body = match rng.below(9) {
        0 | 1 => {
            let mut at = previous_index;
            let previous_term = number(rng, term_near);
            let entries = (0..rng.below(5))
                .map(|_| {
                    at = if rng.chance(900) { at.wrapping_add(1) } else { number(rng, last) };
                    let term = number(rng, term_near);
                    let data = if rng.chance(300) { Bytes::new() } else { command(rng).encode() };
                    LogEntry { term, index: at, data }
                })
                .collect();
            RaftBody::Append { previous_index, previous_term, commit: any_index, entries }
        }
        2 => RaftBody::AppendReply {
            index: previous_index,
            commit: any_index,
            reject_hint: rng.chance(500).then(|| (any_index, number(rng, term_near))),
            snapshot_wanted: rng.chance(200).then_some(any_index),
        },
        3 => RaftBody::Heartbeat { commit: any_index, context },
        4 => RaftBody::HeartbeatReply { commit: any_index, context },
        5 | 6 => RaftBody::Vote {
            pre: rng.chance(500),
            last_index: previous_index,
            last_term: number(rng, term_near),
            commit: number(rng, commit),
            commit_term: number(rng, term_near),
            transfer: rng.chance(300),
        },
        7 => RaftBody::VoteReply {
            pre: rng.chance(500),
            reject: rng.chance(500),
            commit: number(rng, commit),
            commit_term: number(rng, term_near),
        },
        _ => RaftBody::TimeoutNow,
    };
    let mut message = RaftMessage {
        from: node_id(ATTACKER),
        to: node_id(victim),
        term: number(rng, term_near),
        body,
    };
    if rng.chance(50) {
        message.from = NodeId(rng.below(5));
    }
    if rng.chance(50) {
        message.to = NodeId(rng.below(5));
    }
    let id = rng.below(40);
    match rng.below(30) {
        26 => ServerMessage::Snapshot {
            id,
            key: rng.chance(500).then(|| rng.next_u64()),
            snapshot: SnapshotId { leader_term: number(rng, term_near), index: any_index, term: 1 },
            timestamp: Timestamp(rng.next_u64() as i64),
            hash: rng.below(2),
        },
        27 => ServerMessage::SnapshotChunk { id, sequence: rng.below(3), data: Bytes::new() },
        28 => ServerMessage::SnapshotEnd { id, chunks: rng.below(3) },
        29 => {
            use SnapshotOutcome::{Complete, Failed, Key, Receiving};
            let outcome = [Receiving, Complete, Failed, Key(id)][rng.index(4)];
            ServerMessage::SnapshotAnswer { id, stored: number(rng, 3), outcome }
        }
        18 => {
            let leases = (0..rng.below(3)).map(LeaseId).collect();
            let list = LeaseQuestion::List { after: rng.chance(500).then_some(LeaseId(id)) };
            let keep_alive = LeaseQuestion::KeepAlive(leases);
            let question = if rng.chance(500) { keep_alive } else { list };
            ServerMessage::Leases { id, question }
        }
        19 => {
            let left = (0..rng.below(3)).map(Some).collect();
            ServerMessage::LeasesOk { id, answer: LeaseAnswer::KeptAlive(left) }
        }
        20 => ServerMessage::LogTerm { id, index: any_index },
        21 => ServerMessage::LogTermOk { id, term: rng.chance(700).then_some(id) },
        22 => ServerMessage::About { wall_us: rng.next_u64() as i64, level: number(rng, 1) as u32 },
        23 => ServerMessage::StateHashAt { id, index: any_index },
        24 => ServerMessage::StateHashOk { id, hash: rng.chance(700).then(|| rng.next_u64()) },
        25 => ServerMessage::Disk { full: rng.chance(500) },
        0 => ServerMessage::ReadIndex { id },
        1 => ServerMessage::ReadIndexOk { id, index: any_index },
        2 => ServerMessage::StateHash { index: any_index, hash: rng.next_u64() },
        3 => ServerMessage::Forwarded { id, reply: rng.chance(500).then_some(anything_done()) },
        4 => ServerMessage::Forward {
            id,
            client: ([127, 0, 0, 1], 1).into(),
            write: EncodedWrite::new(
                RequestId {
                    client: ClientId(rng.below(3)),
                    sequence: number(rng, 5),
                    answered_below: number(rng, 5),
                    begun: Timestamp(number(rng, 5) as i64),
                },
                WriteOp::Del(Del {
                    key: Bytes::from(vec![0; rng.index(3)]),
                    tells_previous: rng.chance(500),
                    keeps_history: rng.chance(500),
                }),
            ),
        },
        _ => ServerMessage::Raft(message),
    }
}

/// Random messages at one server. It may be misled; it must not fall over, nor pull the others
/// down: once it is gone they go on.
fn random_attack(seed: u64) -> Verdict {
    let mut world = besieged(Setup { honest: false, ..Setup::calm(seed) })?;
    let mut rng = Rng::new(seed ^ 0x6861_636b);
    let victim = rng.index(2);
    let bystander = 1 - victim;
    for _ in 0..300 {
        let message = random_message(&mut rng, &world, victim);
        attack(&mut world, victim, message)?;
        // Several may come in one segment, before the server works out what follows.
        if rng.chance(500) {
            world.run_for(rng.range(0..=20 * MILLISECOND))?;
        }
    }
    world.crash(victim)?;
    world.start(ATTACKER)?;
    let client = world.add_client(Memory::Session, 4, 5 * SECOND);
    let write = world.put(client, Some(bystander), "k", "after");
    let alive = world.run_until(60 * SECOND, |world| world.ended(write))?;
    ensure!(alive, "the others do not go on: {:?}", world.statuses().collect::<Vec<_>>());
    Ok(())
}

#[test]
fn random_messages_never_bring_a_server_down_nor_stop_the_others() {
    let seeds = match std::env::var("ACERVO_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("ACERVO_SEED is a number");
            seed..=seed
        }
        Err(_) => 1..=100,
    };
    for seed in seeds {
        let reason = match catch_unwind(AssertUnwindSafe(|| random_attack(seed))) {
            Ok(Ok(())) => continue,
            Ok(Err(Violation(reason))) => reason,
            Err(panic) => describe(panic.as_ref()),
        };
        panic!(
            "seed {seed}: {reason}\nreplay: ACERVO_SEED={seed} cargo test --test simulation hostile"
        );
    }
}

/// Plays one trick on both servers, again and again, and checks that the group keeps its promises
/// meanwhile and afterwards. Answers how often the attacker was accused.
fn play(trick: impl Fn(&World, usize) -> ServerMessage) -> usize {
    let play = || -> Result<usize, Violation> {
        let mut world = besieged(Setup::calm(1))?;
        let client = world.add_client(Memory::Session, 16, 10 * SECOND);
        for round in 0..50 {
            world.put(client, None, "k", &format!("under attack {round}"));
            for victim in [0, 1] {
                let message = trick(&world, victim);
                world.setup.honest = false;
                attack(&mut world, victim, message)?;
                world.flush(victim)?;
                world.setup.honest = true;
            }
            world.run_for(20 * MILLISECOND)?;
        }
        let accusations = std::mem::take(&mut world.accusations);
        ensure!(
            accusations.iter().all(|(_, accused, _)| *accused == ATTACKER),
            "the innocent are accused: {accusations:?}"
        );
        make_peace(&mut world)?;
        Ok(accusations.len())
    };
    play().unwrap_or_else(|Violation(reason)| panic!("{reason}"))
}

fn standing(world: &World, server: usize) -> (u64, u64, Role) {
    let status = &world.servers[server].process.as_ref().expect("it runs").status;
    (status.term, status.last_index, status.role)
}

#[test]
fn a_heartbeat_that_commits_what_nobody_has_is_refused() {
    assert!(
        play(|world, victim| {
            let (term, last_index, _) = standing(world, victim);
            let body = RaftBody::Heartbeat { commit: last_index + 100, context: Bytes::new() };
            raft(victim, term, body)
        }) > 0
    );
}

#[test]
fn entries_with_a_gap_are_refused() {
    assert!(
        play(|world, victim| {
            let (term, last, _) = standing(world, victim);
            let entry = |index| LogEntry { term, index, data: Bytes::new() };
            let entries = vec![entry(last + 1), entry(last + 3)];
            let body =
                RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
            raft(victim, term, body)
        }) > 0
    );
}

#[test]
fn a_second_leader_of_the_term_is_refused() {
    assert!(
        play(|world, victim| {
            let (term, last, _) = standing(world, victim);
            let entries = vec![LogEntry { term, index: last + 1, data: Bytes::new() }];
            let body = RaftBody::Append {
                previous_index: last,
                previous_term: term,
                commit: last + 1,
                entries,
            };
            raft(victim, term, body)
        }) > 0
    );
}

#[test]
fn terms_that_no_election_reaches_are_refused() {
    let votes = |term| {
        move |world: &World, victim: usize| {
            let (_, last_index, _) = standing(world, victim);
            let body = RaftBody::Vote {
                pre: false,
                last_index: last_index + 100,
                last_term: term,
                commit: 0,
                commit_term: 0,
                transfer: true,
            };
            raft(victim, term, body)
        }
    };
    assert!(play(votes(u64::MAX)) > 0);
    assert!(play(votes(u64::MAX - 1)) > 0);
}

#[test]
fn an_order_to_campaign_from_anyone_but_the_leader_is_ignored() {
    play(|world, victim| {
        let (term, ..) = standing(world, victim);
        raft(victim, term, RaftBody::TimeoutNow)
    });
}

#[test]
fn an_acknowledgement_beyond_the_log_is_refused() {
    assert!(
        play(|world, victim| {
            let (term, last_index, _) = standing(world, victim);
            let index = last_index + 100;
            raft(
                victim,
                term,
                RaftBody::AppendReply {
                    index,
                    commit: index,
                    reject_hint: None,
                    snapshot_wanted: None,
                },
            )
        }) > 0
    );
}

#[test]
fn a_message_in_another_servers_name_is_refused() {
    assert!(
        play(|world, victim| {
            let (term, ..) = standing(world, victim);
            let body = RaftBody::Heartbeat { commit: 0, context: Bytes::new() };
            let (from, to) = (node_id(1 - victim), node_id(victim));
            ServerMessage::Raft(RaftMessage { from, to, term, body })
        }) > 0
    );
}

#[test]
fn rehearsals_of_votes_depose_nobody() {
    play(|world, victim| {
        let (term, last_index, _) = standing(world, victim);
        let body = RaftBody::Vote {
            pre: true,
            last_index: last_index + 100,
            last_term: term,
            commit: 0,
            commit_term: 0,
            transfer: false,
        };
        raft(victim, term + 1, body)
    });
}

#[test]
fn answers_to_questions_that_nobody_asked_are_ignored() {
    play(|_, _| ServerMessage::ReadIndexOk { id: 1, index: u64::MAX });
    play(|_, _| {
        let reply = Some(anything_done());
        ServerMessage::Forwarded { id: 1, reply }
    });
}

/// What a server says that nobody asked, or in a term far ahead, as the forger has it of this
/// victim.
fn forgeries(term: u64, last_index: u64) -> Vec<(&'static str, u64, RaftBody)> {
    let ahead = term + (1 << 32);
    let reply = |pre, reject| RaftBody::VoteReply { pre, reject, commit: 0, commit_term: 0 };
    let vote = |pre, transfer| RaftBody::Vote {
        pre,
        last_index: last_index + 100,
        last_term: term,
        commit: 0,
        commit_term: 0,
        transfer,
    };
    let acknowledged = |index, reject_hint| RaftBody::AppendReply {
        index,
        commit: 0,
        reject_hint,
        snapshot_wanted: None,
    };
    let heartbeat_reply = RaftBody::HeartbeatReply { commit: 0, context: Bytes::new() };
    let heartbeat = RaftBody::Heartbeat { commit: 0, context: Bytes::new() };
    let append = RaftBody::Append {
        previous_index: last_index + 100,
        previous_term: term,
        commit: 0,
        entries: Vec::new(),
    };
    let other_first = RaftBody::Append {
        previous_index: 0,
        previous_term: 0,
        commit: 0,
        entries: vec![LogEntry { term: term + 1, index: 1, data: Bytes::new() }],
    };
    vec![
        ("REPLICATION that contradicts a committed entry", term + 1, other_first),
        ("HEARTBEAT_OK", ahead, heartbeat_reply),
        ("REPLICATION_OK of a later term", ahead, acknowledged(0, None)),
        ("refusal of a later term", ahead, acknowledged(last_index, Some((0, 0)))),
        ("REPLICATION_OK for what it was never sent", term, acknowledged(last_index, None)),
        ("granted vote", ahead, reply(false, false)),
        ("refused vote", ahead, reply(false, true)),
        ("granted rehearsal", ahead, reply(true, false)),
        ("refused rehearsal", ahead, reply(true, true)),
        ("HEARTBEAT of a later term", ahead, heartbeat),
        ("REPLICATION of a later term", ahead, append),
        ("vote request", ahead, vote(false, false)),
        ("vote request of a hand-over", ahead, vote(false, true)),
        ("rehearsal", ahead, vote(true, false)),
        ("order to campaign", ahead, RaftBody::TimeoutNow),
    ]
}

/// The forger plays its trick on one server, leaves, and the true server takes its place again.
fn forger_leaves(seed: u64, trick: usize, victims: &[usize]) -> Verdict {
    let mut world = besieged(Setup::calm(seed))?;
    let client = world.add_client(Memory::Session, 16, 10 * SECOND);
    for round in 0..20 {
        world.put(client, None, "k", &format!("under attack {round}"));
        for victim in victims.iter().copied() {
            let (term, last_index, _) = standing(&world, victim);
            let (_, term, body) = forgeries(term, last_index).swap_remove(trick);
            world.setup.honest = false;
            attack(&mut world, victim, raft(victim, term, body))?;
            world.flush(victim)?;
            world.setup.honest = true;
        }
        world.run_for(50 * MILLISECOND)?;
    }
    world.accusations.clear();
    world.start(ATTACKER)?;
    make_peace(&mut world)?;
    // Nothing of it was written down to come back.
    for server in 0..world.servers.len() {
        world.crash(server)?;
        world.start(server)?;
        world.run_for(2 * SECOND)?;
    }
    make_peace(&mut world)?;
    let accusations = std::mem::take(&mut world.accusations);
    ensure!(accusations.is_empty(), "true servers are accused: {accusations:?}");
    Ok(())
}

#[test]
fn nothing_a_forger_does_outlasts_its_leaving() {
    for (trick, (name, ..)) in forgeries(1, 1).into_iter().enumerate() {
        for (seed, victims) in [(1, &[0][..]), (2, &[1]), (3, &[0, 1])] {
            forger_leaves(seed, trick, victims).unwrap_or_else(|Violation(reason)| {
                panic!("{name} to {victims:?} (seed {seed}): {reason}")
            });
        }
    }
}

/// The forger speaks as a server that is up, on a connection of its own, and leaves without anybody
/// losing a link; nobody writes meanwhile.
fn forger_speaks_beside(seed: u64, trick: usize, name: usize, victim: usize) -> Verdict {
    let mut world = whole(Setup::calm(seed))?;
    world.run_for(SECOND)?;
    for _ in 0..3 {
        let (term, last_index, _) = standing(&world, victim);
        let (_, term, body) = forgeries(term, last_index).swap_remove(trick);
        let (from, to) = (node_id(name), node_id(victim));
        let message = ServerMessage::Raft(RaftMessage { from, to, term, body });
        world.setup.honest = false;
        attack_as(&mut world, name, victim, message)?;
        world.flush(victim)?;
        world.setup.honest = true;
        world.run_for(10 * MILLISECOND)?;
    }
    world.run_for(2 * SECOND)?;
    let client = world.add_client(Memory::Session, 16, 10 * SECOND);
    for server in 0..world.servers.len() {
        for linearizable in [false, true] {
            let read = world.read(client, Some(server), Bytes::from_static(b"k"), linearizable);
            let ended = world.run_until(SECOND, |world| world.ended(read))?;
            let errors = &world.operations[read].errors;
            ensure!(ended && errors.is_empty(), "a read at {} met {errors:?}", node_id(server));
        }
    }
    make_peace(&mut world)
}

#[test]
fn nothing_a_forger_says_beside_a_server_that_is_up_outlasts_its_leaving() {
    for (trick, (said, ..)) in forgeries(1, 1).into_iter().enumerate() {
        for (name, victim) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
            forger_speaks_beside(1, trick, name, victim).unwrap_or_else(|Violation(reason)| {
                panic!("{said} as {} to {}: {reason}", node_id(name), node_id(victim))
            });
        }
    }
}

/// What a forger says in the leader's name to a follower, in one segment.
fn in_the_leaders_name(
    seed: u64,
    messages: impl Fn(NodeId, NodeId, u64, u64) -> Vec<ServerMessage>,
) -> Result<(World, usize), Violation> {
    let mut world = whole(Setup::calm(seed))?;
    world.run_for(SECOND)?;
    let roles = (0..3).map(|server| (server, standing(&world, server).2));
    let (leaders, followers): (Vec<_>, Vec<_>) = roles.partition(|(_, role)| *role == Role::Leader);
    let (leader, victim) = (leaders[0].0, followers[0].0);
    let (term, last_index, _) = standing(&world, victim);
    world.setup.honest = false;
    for message in messages(node_id(leader), node_id(victim), term, last_index) {
        attack_as(&mut world, leader, victim, message)?;
    }
    world.flush(victim)?;
    Ok((world, victim))
}

/// An entry that is not durable yet, the order to campaign, and the vote that decides: the library
/// once made a leader of it, and aborted.
#[test]
fn a_vote_that_comes_with_the_order_to_campaign_counts_for_nothing() {
    let segment = |from, to, term, last_index| {
        let entries = vec![LogEntry { term, index: last_index + 1, data: Bytes::new() }];
        let append = RaftBody::Append {
            previous_index: last_index,
            previous_term: term,
            commit: last_index,
            entries,
        };
        let vote = RaftBody::VoteReply { pre: false, reject: false, commit: 0, commit_term: 0 };
        let bodies = [(term, append), (term, RaftBody::TimeoutNow), (term + 1, vote)];
        let message = |(term, body)| ServerMessage::Raft(RaftMessage { from, to, term, body });
        bodies.into_iter().map(message).collect()
    };
    let (world, victim) =
        in_the_leaders_name(3, segment).unwrap_or_else(|Violation(reason)| panic!("{reason}"));
    assert_eq!(standing(&world, victim).2, Role::Candidate, "it campaigns, and nobody voted");
}

/// It once replaced store and log by what the forger said, for good; and such a server, with the
/// longest log, could be elected and replace everybody's.
#[test]
fn a_snapshot_is_taken_from_nobody_who_does_not_know_the_receivers_key() {
    let segment = |key| {
        move |_, _, term, last_index| {
            let index = last_index + 1_000_000;
            let snapshot = SnapshotId { leader_term: term, index, term };
            // One that the receiver might take.
            let timestamp = Timestamp(2_000_000_000_000_000);
            vec![
                ServerMessage::Snapshot { id: 9, key, snapshot, timestamp, hash: 0 },
                ServerMessage::SnapshotChunk { id: 9, sequence: 0, data: Bytes::new() },
                ServerMessage::SnapshotEnd { id: 9, chunks: 1 },
            ]
        }
    };
    for key in [None, Some(0), Some(9)] {
        let run = || -> Verdict {
            let (mut world, victim) = in_the_leaders_name(4, segment(key))?;
            world.setup.honest = true;
            let (_, before, _) = standing(&world, victim);
            world.run_for(2 * SECOND)?;
            let (_, after, _) = standing(&world, victim);
            ensure!(after < before + 100, "the log went from {before} to {after}");
            make_peace(&mut world)
        };
        run().unwrap_or_else(|Violation(reason)| panic!("with {key:?}: {reason}"));
    }
}

#[test]
fn answers_to_nothing_raise_no_term() {
    let mut world = besieged(Setup::calm(1)).unwrap_or_else(|Violation(reason)| panic!("{reason}"));
    for victim in [0, 1] {
        let (term, last_index, role) = standing(&world, victim);
        for (name, later, body) in forgeries(term, last_index) {
            let is_answer =
                matches!(body, RaftBody::HeartbeatReply { .. } | RaftBody::VoteReply { .. })
                    || (role != Role::Leader && matches!(body, RaftBody::AppendReply { .. }));
            if is_answer {
                let message = raft(victim, later, body);
                attack(&mut world, victim, message)
                    .unwrap_or_else(|Violation(reason)| panic!("{reason}"));
                world.flush(victim).unwrap_or_else(|Violation(reason)| panic!("{reason}"));
                assert_eq!(standing(&world, victim).0, term, "{name} raised the term");
            }
        }
    }
}

#[test]
fn a_replicated_timestamp_that_would_end_all_order_is_refused() {
    assert!(
        play(|world, victim| {
            let (term, last, _) = standing(world, victim);
            let request = RequestId {
                client: ClientId(1),
                sequence: 1,
                answered_below: 1,
                begun: Timestamp::ZERO,
            };
            let op = WriteOp::Del(Del {
                key: Bytes::from_static(b"k"),
                tells_previous: false,
                keeps_history: false,
            });
            let data = Command::write(Timestamp(i64::MAX), request, op).encode();
            let entries = vec![LogEntry { term: term + 1, index: last + 1, data }];
            let body =
                RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
            raft(victim, term + 1, body)
        }) > 0
    );
}

/// It could not be applied: each follower that took it stopped, at every start again.
#[test]
fn replicated_timestamps_that_do_not_rise_are_refused() {
    let accused = play(|world, victim| {
        let (term, last, _) = standing(world, victim);
        let request = RequestId {
            client: ClientId(1),
            sequence: 1,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Del(Del {
            key: Bytes::from_static(b"k"),
            tells_previous: false,
            keeps_history: false,
        });
        let data = Command::write(Timestamp(1), request, op).encode();
        let entries = vec![LogEntry { term: term + 1, index: last + 1, data }];
        let body =
            RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
        raft(victim, term + 1, body)
    });
    assert!(accused > 0);
}

/// An entry that nobody commits, in the leader's name and far ahead of all clocks. Whatever the
/// true leader sends after it has lower timestamps, and a follower that stored that stopped when
/// it was to apply it, at every start again.
#[test]
fn nothing_is_stored_that_could_not_be_applied_after_a_forged_timestamp() {
    let forged = |from, to, term, last: u64| {
        let request = RequestId {
            client: ClientId(1),
            sequence: 1,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Del(Del {
            key: Bytes::from_static(b"k"),
            tells_previous: false,
            keeps_history: false,
        });
        // Ten years after the simulated servers' clocks.
        let data = Command::write(Timestamp(2_000_000_000_000_000), request, op).encode();
        let entries = vec![LogEntry { term, index: last + 1, data }];
        let body =
            RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
        vec![ServerMessage::Raft(RaftMessage { from, to, term, body })]
    };
    let run = || -> Verdict {
        let (mut world, victim) = in_the_leaders_name(5, forged)?;
        let client = world.add_client(Memory::Session, 16, 10 * SECOND);
        let others: Vec<usize> = (0..3).filter(|server| *server != victim).collect();
        for round in 0..20 {
            let write = world.put(client, Some(others[round % 2]), "k", &round.to_string());
            let ended = world.run_until(10 * SECOND, |world| world.ended(write))?;
            ensure!(ended, "the others do not go on: {:?}", world.operations[write].errors);
        }
        let told = |(accuser, _, why): &(usize, usize, String)| {
            *accuser == victim && why.contains("timestamps of a REPLICATION do not rise")
        };
        ensure!(world.accusations.iter().any(told), "accused: {:?}", world.accusations);
        Ok(())
    };
    run().unwrap_or_else(|Violation(reason)| panic!("{reason}"));
}

/// It would stand still for ever, and nothing would grow old any more.
#[test]
fn a_replicated_time_of_the_logs_clock_that_would_end_all_ageing_is_refused() {
    let accused = play(|world, victim| {
        let (term, last, _) = standing(world, victim);
        let request = RequestId {
            client: ClientId(1),
            sequence: 1,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Del(Del {
            key: Bytes::from_static(b"k"),
            tells_previous: false,
            keeps_history: false,
        });
        let timestamp = Timestamp(world.now_of(victim).wall_us);
        let clock_us = i64::MAX as u64;
        let command = Command { clock_us, ..Command::write(timestamp, request, op) };
        let entries = vec![LogEntry { term: term + 1, index: last + 1, data: command.encode() }];
        let body =
            RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
        raft(victim, term + 1, body)
    });
    assert!(accused > 0);
}

/// It cannot be stored: a server that knows no such level would never start again.
#[test]
fn a_level_that_nobody_knows_is_refused() {
    let accused = play(|world, victim| {
        let (term, last, _) = standing(world, victim);
        let timestamp = Timestamp(world.now_of(victim).wall_us);
        let level = FeatureLevel { level: 99, release: ReleaseVersion(99, 0, 0) };
        let command = Command { timestamp, clock_us: 0, action: Action::Level(level) };
        let entries = vec![LogEntry { term: term + 1, index: last + 1, data: command.encode() }];
        let body =
            RaftBody::Append { previous_index: last, previous_term: term, commit: 0, entries };
        raft(victim, term + 1, body)
    });
    assert!(accused > 0);
}

/// Two forged messages, in the names of servers whose links nobody lost, once stopped all writes
/// for good.
#[test]
fn forged_full_disks_keep_nobody_from_writing() {
    let run = || -> Verdict {
        let mut world = whole(Setup::calm(8))?;
        world.run_for(SECOND)?;
        for victim in 0..3 {
            for from in (0..3).filter(|from| *from != victim) {
                let message =
                    CheckedMessage::new(ServerMessage::Disk { full: true }).map_err(Violation)?;
                world.input(victim, Input::Message { from: node_id(from), message })?;
            }
        }
        world.run_for(3 * SECOND)?;
        let client = world.add_client(Memory::Session, 16, 10 * SECOND);
        for server in 0..3 {
            let write = world.put(client, Some(server), "k", "v");
            let ended = world.run_until(2 * SECOND, |world| world.ended(write))?;
            let operation = &world.operations[write];
            ensure!(ended && operation.errors.is_empty(), "it met {:?}", operation.errors);
        }
        make_peace(&mut world)
    };
    run().unwrap_or_else(|Violation(reason)| panic!("{reason}"));
}

/// The forger says of one server's state, in both others' names, what it is not, and leaves;
/// nothing is written any more that would be compared.
#[test]
fn forged_hashes_keep_no_server_from_being_read() {
    let run = || -> Verdict {
        for victim in 0..3 {
            let mut world = besieged(Setup::calm(7))?;
            world.start(ATTACKER)?;
            world.run_for(2 * SECOND)?;
            let index = world.checker.last_index() / 8 * 8;
            ensure!(index > 0, "too little was written");
            for from in (0..3).filter(|from| *from != victim) {
                let message = ServerMessage::StateHash { index, hash: 5 };
                let message = CheckedMessage::new(message).map_err(Violation)?;
                world.input(victim, Input::Message { from: node_id(from), message })?;
            }
            for _ in 0..50 {
                world.run_for(20 * MILLISECOND)?;
                let process = world.servers[victim].process.as_ref();
                let distrust = process.map(|process| process.status.distrust);
                ensure!(distrust == Some(None), "{victim} believes it: {distrust:?}");
            }
            make_peace(&mut world)?;
        }
        Ok(())
    };
    run().unwrap_or_else(|Violation(reason)| panic!("{reason}"));
}
