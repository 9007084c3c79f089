//! A group of cores with perfect network and disks: what must hold when nothing goes wrong. The
//! simulator in `tests/` covers the rest.

mod leasing;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::super::config::{AckPolicy, Distrust, NodeConfig};
use super::super::garbage_collection::GarbageCollectionConfig;
use super::super::*;
use super::*;
use crate::limits;
use crate::model::{
    Action, Barrier, ClientId, Command, Condition, Del, DelRange, DiskSpace, Effect, GroupRules,
    History, OpResult, Put, PutAll, PutIf, Recovered, Release, RequestId, SetHistory, StateLimits,
    Timestamp, Txn, TxnOp, WriteAnswer, WriteFate, WriteOp, WriteOutcome,
};
use crate::wire::message::{ErrorCode, ErrorReply, Role};

/// What a state machine has to say that has applied its group's rules.
fn summary(limits: StateLimits) -> MachineSummary {
    let rules = Some(GroupRules { limits, history: History::All });
    MachineSummary { rules, ..MachineSummary::default() }
}

struct Group {
    nodes: Vec<Node>,
    inbox: VecDeque<(usize, Input)>,
    replies: HashMap<RequestToken, Reply>,
    ready_reads: Vec<RequestToken>,
    applied: Vec<AppliedPoint>,
    /// Where news of what is applied goes instead of the inbox, when set.
    withheld: Option<Vec<(usize, Input)>>,
    /// What the state machines say of the group's limits.
    state_limits: StateLimits,
    /// What servers send to each other is lost.
    cut: bool,
    /// What is sent to this server is lost.
    deaf: Option<usize>,
    /// What the state machines come to with every write.
    result: OpResult,
    /// Where reasons to disconnect a server go; nobody is to give any when it is not set.
    accusations: Option<Vec<String>>,
    now: Now,
}

impl Group {
    fn new(size: u64, ack: AckPolicy) -> Group {
        Group::told(&vec![size; size as usize], size as usize, ack)
    }

    /// A group whose servers are told different first leaders, and the first so many of them up.
    fn told(first_leaders: &[u64], up: usize, ack: AckPolicy) -> Group {
        Group::within(limits::NodeLimits::default(), first_leaders, up, ack)
    }

    fn within(
        limits: limits::NodeLimits,
        first_leaders: &[u64],
        up: usize,
        ack: AckPolicy,
    ) -> Group {
        let ids: Vec<NodeId> = (1..=first_leaders.len() as u64).map(NodeId).collect();
        let node = |id: &NodeId| {
            let config = NodeConfig {
                node: *id,
                nodes: ids.clone(),
                names: ids.iter().map(|id| format!("server-{id}")).collect(),
                first_leader: NodeId(first_leaders[id.0 as usize - 1]),
                ack,
                in_sync_timeout: Duration::from_secs(2),
                cut_off_timeout: limits::CUT_OFF_TIMEOUT,
                stall_timeout: crate::limits::STALL_TIMEOUT,
                election_ticks: Some(15 + id.0 as usize),
                value_bytes_max: 100,
                replication_delay: Duration::ZERO,
                console: false,
                garbage_collection: GarbageCollectionConfig::new(History::All),
                limits,
                state_hash_every: 4,
                release: Release::default(),
                level_settled: limits::LEVEL_SETTLED,
                lease_notes: leasing::NOTES,
                first_question: id.0 * 1000,
            };
            Node::new(config, Recovered::default()).unwrap()
        };
        let mut group = Group {
            nodes: ids[..up].iter().map(node).collect(),
            inbox: VecDeque::new(),
            replies: HashMap::new(),
            ready_reads: Vec::new(),
            applied: vec![AppliedPoint::default(); ids.len()],
            withheld: None,
            state_limits: StateLimits::default(),
            cut: false,
            deaf: None,
            result: OpResult::Done,
            accusations: None,
            now: Now { monotonic_us: 1, wall_us: 1_000_000 },
        };
        for at in 0..up {
            for server in ids[..up].iter().filter(|p| **p != ids[at]) {
                let first_leader = Some(NodeId(first_leaders[server.0 as usize - 1]));
                let (last_index, term) = (0, 0);
                let greeted = Input::LinkUp { server: *server, last_index, term, first_leader };
                group.inbox.push_back((at, greeted));
            }
        }
        group.settle();
        group
    }

    fn settle(&mut self) {
        loop {
            let mut out = Vec::new();
            while let Some((at, input)) = self.inbox.pop_front() {
                self.nodes[at].handle(self.now, input, &mut out);
                self.carry_out(at, std::mem::take(&mut out));
            }
            for at in 0..self.nodes.len() {
                self.nodes[at].flush(self.now, &mut out);
                self.carry_out(at, std::mem::take(&mut out));
            }
            if self.inbox.is_empty() {
                return;
            }
        }
    }

    fn tick(&mut self) {
        self.tick_of(0..self.nodes.len());
    }

    fn tick_of(&mut self, nodes: std::ops::Range<usize>) {
        self.now.monotonic_us += 20_000;
        self.inbox.extend(nodes.map(|at| (at, Input::Tick)));
        self.settle();
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        let from = NodeId(at as u64 + 1);
        for output in out {
            match output {
                Output::Send { to, message } => {
                    let to = to.0 as usize - 1;
                    if to < self.nodes.len() && !self.cut && self.deaf != Some(to) {
                        let message = CheckedMessage::new(message).unwrap();
                        self.inbox.push_back((to, Input::Message { from, message }));
                    }
                }
                Output::Persist(batch) => {
                    self.inbox.push_back((at, Input::Persisted { number: batch.number }));
                }
                Output::Apply { entries, .. } => {
                    let point = &mut self.applied[at];
                    let mut outcomes = Vec::new();
                    let mut leases = Vec::new();
                    for entry in entries {
                        assert_eq!(entry.index, point.index + 1);
                        point.index = entry.index;
                        if let Some(command) = Command::decode(&entry.data).unwrap() {
                            assert!(command.timestamp > point.timestamp);
                            point.timestamp = command.timestamp;
                            leases.extend(leasing::lease_events(&command));
                            let Action::Write { request, .. } = command.action else { continue };
                            outcomes.push(AppliedWrite {
                                index: entry.index,
                                term: entry.term,
                                fate: WriteFate::Answered(WriteAnswer::of(WriteOutcome {
                                    timestamp: command.timestamp,
                                    result: self.result,
                                })),
                                newest_sequence: request.sequence,
                            });
                        }
                    }
                    let point = *point;
                    let summary = summary(self.state_limits);
                    let news = (at, Input::Applied { outcomes, point, summary, leases });
                    match &mut self.withheld {
                        Some(withheld) => withheld.push(news),
                        None => self.inbox.push_back(news),
                    }
                }
                Output::Reply { token, reply } => {
                    assert!(self.replies.insert(token, reply).is_none(), "one answer a request");
                }
                Output::ReadReady { token } => self.ready_reads.push(token),
                Output::Disconnect { reason, .. } => match &mut self.accusations {
                    Some(accusations) => accusations.push(reason),
                    None => panic!("{reason}"),
                },
                Output::Notice(_) | Output::CutOff | Output::Stopped => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn put(&mut self, at: usize, request: u64) -> RequestToken {
        let op = WriteOp::Put(Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            tells_previous: false,
        });
        self.write(at, request, request, op)
    }

    /// Each server has one client, whose write number `sequence` this is.
    fn write(&mut self, at: usize, request: u64, sequence: u64, op: WriteOp) -> RequestToken {
        self.write_of(at as u64, at, (request, sequence), op)
    }

    /// A write of any client through server `at`.
    fn write_of(
        &mut self,
        client: u64,
        at: usize,
        request: (u64, u64),
        op: WriteOp,
    ) -> RequestToken {
        self.write_from([127, 0, 0, 1], client, at, request, op)
    }

    /// A write of any client, whose address is `ip`, through server `at`.
    fn write_from(
        &mut self,
        ip: [u8; 4],
        client: u64,
        at: usize,
        (request, sequence): (u64, u64),
        op: WriteOp,
    ) -> RequestToken {
        let token = RequestToken { connection: client, request };
        let request = RequestId {
            client: ClientId(client),
            sequence,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let client = (ip, 9).into();
        let write = EncodedWrite::new(request, op);
        self.inbox.push_back((at, Input::Write { token, client, write }));
        token
    }
}

#[test]
fn the_named_leader_leads_first_and_any_server_takes_writes_and_linearizable_reads() {
    for size in [1, 3, 5] {
        for ack in [AckPolicy::All, AckPolicy::Majority] {
            let mut group = Group::new(size, ack);
            group.tick();
            let last = size as usize - 1;
            assert_eq!(group.nodes[last].status().role, Role::Leader, "group of {size}");
            assert_eq!(group.nodes[last].status().term, 1);
            group.tick();
            let tokens: Vec<_> = (0..size as usize).map(|at| group.put(at, 1)).collect();
            let read = RequestToken { connection: 0, request: 99 };
            group.inbox.push_back((
                0,
                Input::Read { token: read, condition: ReadCondition::Linearizable },
            ));
            group.settle();
            for token in tokens {
                assert!(matches!(group.replies[&token], Reply::WriteOk(_)));
            }
            assert_eq!(group.ready_reads, [read]);
            for _ in 0..5 {
                group.tick();
            }
            assert!(group.applied.iter().all(|p| *p == group.applied[0]), "{:?}", group.applied);
            assert_eq!(group.nodes[last].status().in_sync.len(), size as usize);
        }
    }
}

#[test]
fn only_a_put_that_is_certain_to_be_new_is_answered_before_it_is_applied() {
    for ack in [AckPolicy::All, AckPolicy::Majority] {
        let mut group = Group::new(3, ack);
        group.tick();
        let first = group.put(2, 1);
        group.settle();
        assert!(group.replies.contains_key(&first));
        group.withheld = Some(Vec::new());
        let key = Bytes::from_static(b"k");
        let put =
            WriteOp::Put(Put { key: key.clone(), value: Bytes::new(), tells_previous: false });
        let certain = group.put(2, 2);
        let later = [
            group.write(2, 3, 2, put),
            group.write(
                2,
                4,
                4,
                WriteOp::Del(Del { key, tells_previous: true, keeps_history: false }),
            ),
            group.put(1, 1),
        ];
        group.settle();
        assert!(matches!(group.replies[&certain], Reply::WriteOk(_)));
        assert!(later.iter().all(|token| !group.replies.contains_key(token)));
        assert!(group.nodes[2].awaits_application());
        let withheld = group.withheld.take().unwrap();
        group.inbox.extend(withheld);
        group.settle();
        assert!(later.iter().all(|token| group.replies.contains_key(token)));
        assert!(!group.nodes[2].awaits_application());
    }
}

#[test]
fn a_plain_read_waits_for_what_is_in_the_log_and_for_nothing_else() {
    let mut group = Group::new(3, AckPolicy::Majority);
    group.tick();
    group.put(2, 1);
    group.settle();
    group.withheld = Some(Vec::new());
    let put = group.put(2, 2);
    group.settle();
    let written = match &group.replies[&put] {
        Reply::WriteOk(answer) => answer.timestamp,
        other => panic!("not written but {other:?}"),
    };
    let node = &group.nodes[2];
    assert!(node.reaches_soon(written), "it is in the log");
    assert!(!node.reaches_soon(Timestamp(written.0 + 1)), "nobody knows whether that comes");
    let token = |request| RequestToken { connection: 0, request };
    let condition = ReadCondition::Applied(written);
    group.inbox.push_back((2, Input::Read { token: token(98), condition }));
    group.settle();
    assert!(group.ready_reads.is_empty() && group.nodes[2].awaits_application());
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    assert_eq!(group.ready_reads, [token(98)]);
    group.inbox.push_back((2, Input::Read { token: token(99), condition }));
    group.settle();
    assert_eq!(group.ready_reads, [token(98), token(99)], "it is applied");
}

/// The write that server `at` had from its client as its first one comes again, by way of another
/// server or of the same.
fn again(group: &mut Group, at: usize, by: usize, request: u64) -> RequestToken {
    let token = RequestToken { connection: by as u64, request };
    let id = RequestId {
        client: ClientId(at as u64),
        sequence: 1,
        answered_below: 1,
        begun: Timestamp::ZERO,
    };
    let op = WriteOp::Put(Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        tells_previous: false,
    });
    let client = ([127, 0, 0, 1], 10).into();
    let write = EncodedWrite::new(id, op);
    group.inbox.push_back((by, Input::Write { token, client, write }));
    token
}

/// A client that hears nothing sends its write by way of other servers, too. Each copy was ordered,
/// shown and replicated.
#[test]
fn a_copy_of_a_write_that_is_under_way_or_was_just_done_is_not_ordered_again() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let leader = 2;
    let warm_up = group.put(1, 1);
    group.settle();
    assert!(group.replies.contains_key(&warm_up));
    group.withheld = Some(Vec::new());
    let before = group.nodes[leader].status().last_index;
    let mut tokens = vec![group.put(0, 1)];
    // Before it was ordered, after it was, by each server; and twice by the same.
    tokens.push(again(&mut group, 0, 1, 10));
    tokens.push(again(&mut group, 0, leader, 10));
    group.settle();
    for by in [0, 1, leader] {
        tokens.push(again(&mut group, 0, by, 11));
        group.settle();
    }
    let last_index = |group: &Group| group.nodes[leader].status().last_index;
    assert_eq!(last_index(&group), before + 1);
    assert!(tokens.iter().all(|token| !group.replies.contains_key(token)));
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    // When it is done.
    for by in [0, 1, leader] {
        tokens.push(again(&mut group, 0, by, 12));
        group.settle();
    }
    assert_eq!(last_index(&group), before + 1);
    let answers: Vec<&Reply> = tokens.iter().map(|token| &group.replies[token]).collect();
    assert!(matches!(answers[0], Reply::WriteOk(_)), "{answers:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert!(group.nodes.iter().all(|node| node.writes.is_empty()));
    assert_eq!(group.nodes.iter().map(|node| node.writes.len()).sum::<usize>(), 0, "origins");
}

/// Copies from a client of the leader and from other servers wait for one write when the leadership
/// is lost.
#[test]
fn whoever_waits_for_a_write_is_answered_by_the_next_leader() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let leader = 2;
    let copies = [group.put(leader, 1), again(&mut group, leader, 0, 10)];
    // It has the copy, and what it sends from now on is lost.
    while let Some((at, input)) = group.inbox.pop_front() {
        let mut out = Vec::new();
        group.nodes[at].handle(group.now, input, &mut out);
        group.nodes[at].flush(group.now, &mut out);
        group.cut = at == leader;
        group.carry_out(at, out);
        group.cut = false;
    }
    assert_eq!(group.nodes[leader].writes.len(), 2, "the copy waits with the first");
    group.cut = true;
    (0..100).find(|_| {
        group.tick_of(leader..leader + 1);
        group.nodes[leader].status().role != Role::Leader
    });
    group.cut = false;
    // The server that passed the copy on hears nothing of it, so its link breaks.
    group.inbox.push_back((0, Input::LinkDown { server: NodeId(3) }));
    let up = Input::LinkUp { server: NodeId(3), last_index: 0, term: 0, first_leader: None };
    group.inbox.push_back((0, up));
    (0..100).for_each(|_| group.tick());
    let answers: Vec<&Reply> = copies.iter().map(|token| &group.replies[token]).collect();
    assert!(matches!(answers[0], Reply::WriteOk(_)), "{answers:?}");
    assert!(matches!(answers[1], Reply::WriteOk(_)), "{answers:?}");
}

/// The timestamp of a write that came again was told as the refuted state's sessions had it.
#[test]
fn what_a_refuted_state_says_of_writes_is_not_told_and_the_next_leader_says_it() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let leader = 2;
    let first = group.put(leader, 1);
    group.settle();
    assert!(group.replies.contains_key(&first));
    // Its outcome is known when it is applied, and the other's when it is committed.
    group.withheld = Some(Vec::new());
    let del = WriteOp::Del(Del {
        key: Bytes::from_static(b"k"),
        tells_previous: true,
        keeps_history: false,
    });
    let writes = [group.write(leader, 2, 2, del), group.put(leader, 3)];
    group.nodes[leader].consistency.refute();
    group.settle();
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    let told_by_it = group.applied[leader].timestamp;
    assert!(writes.iter().all(|write| !group.replies.contains_key(write)), "it is told");
    group.inbox.push_back((leader, Input::HandOver));
    (0..50).for_each(|_| group.tick());
    assert_ne!(group.nodes[leader].status().role, Role::Leader);
    for write in writes {
        match &group.replies[&write] {
            // The state machine of this test applies a write as often as it comes.
            Reply::WriteOk(WriteAnswer { timestamp, .. }) => {
                assert!(*timestamp > told_by_it, "{timestamp:?} is what the refuted state said");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn followers_hear_of_a_commit_at_once_without_another_write() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    group.put(2, 1);
    group.settle();
    let commit = group.nodes[2].status().commit;
    assert_eq!(group.nodes[0].status().commit, commit);
    assert_eq!(group.nodes[1].status().commit, commit);
    assert_eq!(group.nodes[2].flush_due_us(), None);
}

#[test]
fn a_stopping_leader_hands_over_and_its_follower_serves() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    group.inbox.push_back((2, Input::Stop));
    group.settle();
    group.tick();
    assert_ne!(group.nodes[2].status().role, Role::Leader);
    let leader = group.nodes[2].status().leader.expect("someone took over").0 as usize - 1;
    let token = group.put(leader, 1);
    let refused = group.put(2, 2);
    group.settle();
    assert!(matches!(group.replies[&token], Reply::WriteOk(_)));
    assert!(matches!(&group.replies[&refused], Reply::Error(_)));
}

#[test]
fn requests_that_break_the_limits_are_refused_and_nothing_else_happens() {
    let mut group = Group::new(1, AckPolicy::All);
    group.tick();
    let request = |sequence| RequestId {
        client: ClientId(1),
        sequence,
        answered_below: 1,
        begun: Timestamp::ZERO,
    };
    let put = |key: &[u8], value: &[u8]| {
        WriteOp::Put(Put {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            tells_previous: false,
        })
    };
    let set = |history| WriteOp::SetHistory(SetHistory { history });
    let bad = [
        (request(1), put(b"", b"v")),
        (request(1), put(&vec![b'k'; limits::KEY_BYTES_MAX + 1], b"v")),
        (request(1), put(b"k", &[0; 101])),
        (request(0), put(b"k", b"v")),
        (RequestId { answered_below: 3, ..request(2) }, put(b"k", b"v")),
        (request(1), set(History::Versions { count: 0 })),
        (request(1), set(History::Versions { count: limits::HISTORY_VERSIONS_MAX + 1 })),
        (request(1), set(History::For { age_us: 0 })),
        (request(1), set(History::For { age_us: 1 << 63 })),
    ];
    let before = group.applied[0];
    for (at, (request, op)) in bad.into_iter().enumerate() {
        let token = RequestToken { connection: 0, request: at as u64 };
        let write = EncodedWrite::new(request, op);
        let client = ([127, 0, 0, 1], 9).into();
        group.inbox.push_back((0, Input::Write { token, client, write }));
        group.settle();
        let Reply::Error(error) = &group.replies[&token] else { panic!("case {at} was taken") };
        assert_eq!(error.code, crate::wire::message::ErrorCode::Invalid, "{}", error.message);
    }
    assert_eq!(group.applied[0], before);
}

#[test]
fn servers_that_are_told_different_first_leaders_agree_on_one_whoever_is_up() {
    let waits_for = |node| NoLeader::NotBegun { first_leader: NodeId(node) };
    let differ = |one, another| NoLeader::DifferentFirstLeaders {
        one: NodeId(one),
        another: NodeId(another),
        missing: NodeId(3),
    };
    let cases = [
        (&[1, 2, 3][..], 3, Ok(1)),
        (&[2, 1, 1], 3, Ok(1)),
        (&[3, 3, 2], 3, Ok(3)),
        (&[2, 2, 1], 2, Ok(2)),
        (&[2, 3, 3], 2, Err(differ(2, 3))),
        (&[1, 2, 1], 2, Err(differ(1, 2))),
        (&[3, 3, 3], 2, Err(waits_for(3))),
    ];
    for (told, up, leads) in cases {
        let mut group = Group::told(told, up, AckPolicy::Majority);
        (0..100).for_each(|_| group.tick());
        for node in &group.nodes {
            let status = node.status();
            assert_eq!(status.leader, leads.ok().map(NodeId), "told {told:?}");
            assert_eq!(status.no_leader, leads.err(), "told {told:?}");
        }
    }
}

#[test]
fn who_is_waited_for_is_named_in_the_error_of_a_write() {
    for (told, waits_for) in [
        (&[3, 3, 3], "begins with server-3, which has not been up"),
        (&[1, 2, 2], "and server-3 is not up"),
    ] {
        let mut group = Group::told(told, 2, AckPolicy::Majority);
        let token = group.put(0, 1);
        (0..300).for_each(|_| group.tick());
        let Some(Reply::Error(error)) = group.replies.get(&token) else { panic!("no error") };
        assert!(error.message.contains(waits_for), "{}", error.message);
        assert!(error.message.contains("--leader"), "{}", error.message);
        assert!(error.message.contains("2 of 3 servers answer"), "{}", error.message);
    }
}

/// A leader proposes a write, loses the leadership and wins it back with the write in its log.
/// Because its store was behind it said that nothing had been done.
#[test]
fn a_write_that_an_earlier_leadership_proposed_is_never_said_not_to_be_done() {
    let limits = limits::NodeLimits { unapplied_bytes_max: 1, ..Default::default() };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    group.cut = true;
    let write = group.put(2, 1);
    let led = |group: &Group| group.nodes[2].status().role == Role::Leader;
    (0..100).find(|_| {
        group.tick();
        !led(&group)
    });
    assert!(!led(&group), "it does not notice that it is alone");
    // The others have given up on it too.
    (0..20).for_each(|_| group.tick());
    assert!(!group.replies.contains_key(&write), "its time was over too soon");
    group.cut = false;
    let led_again = (0..100).any(|_| {
        group.tick_of(2..3);
        led(&group)
    });
    assert!(led_again && group.nodes[2].status().term > 1);
    (0..10).for_each(|_| group.tick());
    let reply = group.replies.get(&write);
    assert!(matches!(reply, Some(Reply::WriteOk(_))), "{reply:?}");
}

#[test]
fn long_writes_take_turns_and_short_ones_of_other_clients_go_past_them() {
    let limits = limits::NodeLimits {
        short_write_rows_max: 1,
        long_write_rows_max: 3,
        ..Default::default()
    };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    for at in 0..3 {
        group.put(at, 1);
    }
    group.settle();
    let long = |keys: u8| {
        let pairs = (0..keys).map(|key| (Bytes::from(vec![key]), Bytes::new())).collect();
        WriteOp::PutAll(PutAll { pairs })
    };
    let made = |group: &Group, token| match &group.replies[&token] {
        Reply::WriteOk(WriteAnswer { timestamp, .. }) => *timestamp,
        other => panic!("not written but {other:?}"),
    };
    let proposed = |group: &Group| group.nodes[2].status().last_index;
    // One comes alone, however long it is, and while none is applied no other long one.
    for keys in [2, 9] {
        let before = proposed(&group);
        let number = u64::from(keys);
        group.withheld = Some(Vec::new());
        let first = group.write(0, number, number, long(keys));
        group.settle();
        let second = group.write(1, number, number, long(2));
        let behind = group.put(1, number + 1);
        let short = group.put(2, number);
        group.settle();
        assert_eq!(proposed(&group), before + 2, "the first, and the short one of somebody else");
        assert!([second, behind].iter().all(|token| !group.replies.contains_key(token)));
        let short = made(&group, short);
        let value = Bytes::from_static(b"v");
        assert_eq!(group.nodes[2].unapplied_put(short, b"k"), Some((before + 2, value)));
        assert_eq!(group.nodes[2].unapplied_put(short, b"l"), None);
        let withheld = group.withheld.take().unwrap();
        group.inbox.extend(withheld);
        group.settle();
        assert_eq!(proposed(&group), before + 4);
        assert!(made(&group, first) < short);
        assert!(made(&group, second) < made(&group, behind), "in the order of their client");
        assert_eq!(group.nodes[2].unapplied_put(short, b"k"), None, "the store has it now");
    }
}

/// A write of a few hundred keys counted for nothing, nor did the removal of a range, which names
/// two keys and may scan a thousand: hundreds of them from one client lay before everybody's reads.
#[test]
fn writes_that_are_long_together_take_turns_by_what_they_look_at() {
    let several = |key: &'static str| {
        let pairs = (0..3u8).map(|number| (Bytes::from(format!("{key}{number}")), Bytes::new()));
        WriteOp::PutAll(PutAll { pairs: pairs.collect() })
    };
    let range = |key: &'static str| {
        WriteOp::DelRange(DelRange {
            from: Bytes::from(key),
            to: Bytes::from(key),
            keeps_history: false,
        })
    };
    let ops: [&dyn Fn(&'static str) -> WriteOp; 2] = [&several, &range];
    let rows_max = [(10, 7), (10_000, 2 * (2 + limits::REMOVAL_SCAN_ROWS_MAX) + 1)];
    for (op, (short_write_rows_max, long_write_rows_max)) in ops.into_iter().zip(rows_max) {
        // The same if each of them is long by itself.
        for short_write_rows_max in [short_write_rows_max, 2] {
            let limits = limits::NodeLimits {
                short_write_rows_max,
                long_write_rows_max,
                ..Default::default()
            };
            let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
            group.tick();
            (0..3).for_each(|at| _ = group.put(at, 1));
            group.settle();
            let proposed = |group: &Group| group.nodes[2].status().last_index;
            let before = proposed(&group);
            group.withheld = Some(Vec::new());
            let mut made = Vec::new();
            for (client, key) in (10..).zip(["a", "b", "c", "d"]) {
                made.push(group.write_of(client, 2, (1, 1), op(key)));
            }
            let behind = group.write_of(13, 2, (2, 2), WriteOp::Barrier(Barrier {}));
            let other = group.write_of(14, 2, (1, 1), WriteOp::Barrier(Barrier {}));
            group.settle();
            assert_eq!(proposed(&group), before + 3, "two of four, and the short one of another");
            let withheld = group.withheld.take().unwrap();
            group.inbox.extend(withheld);
            group.settle();
            assert_eq!(proposed(&group), before + 6, "the others, and what is behind one of them");
            let timestamps: Vec<Timestamp> = made
                .iter()
                .chain([&behind])
                .map(|token| match &group.replies[token] {
                    Reply::WriteOk(WriteAnswer { timestamp, .. }) => *timestamp,
                    other => panic!("not written but {other:?}"),
                })
                .collect();
            assert!(timestamps.is_sorted(), "in the order in which they came: {timestamps:?}");
            assert!(group.replies.contains_key(&other));
        }
    }
}

/// One client that sent one long write after another left the others nothing: reads of the newest
/// state, and writes of new sessions, wait until what is before them is applied.
#[test]
fn after_a_long_write_others_find_the_way_free_for_a_while() {
    let limits = limits::NodeLimits {
        short_write_rows_max: 1,
        long_write_rows_max: 3,
        ..Default::default()
    };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    for at in 0..3 {
        group.put(at, 1);
    }
    group.settle();
    let long = |keys: u8| {
        let pairs = (0..keys).map(|key| (Bytes::from(vec![key]), Bytes::new())).collect();
        WriteOp::PutAll(PutAll { pairs })
    };
    let took = 4;
    for (number, others_ask) in [(2, false), (3, true), (4, false)] {
        group.withheld = Some(Vec::new());
        group.write(0, number, number, long(9));
        group.settle();
        let next = group.write(1, number, number, long(2));
        if others_ask {
            group.put(2, number);
        }
        (0..took).for_each(|_| group.tick());
        let withheld = group.withheld.take().unwrap();
        group.inbox.extend(withheld);
        group.settle();
        assert_eq!(!group.replies.contains_key(&next), others_ask, "whether the next one rests");
        let rest = took * limits::LONG_WRITE_REST_TIMES;
        (0..rest - 1).for_each(|_| group.tick());
        assert_eq!(!group.replies.contains_key(&next), others_ask, "it still does");
        (0..2).for_each(|_| group.tick());
        assert!(group.replies.contains_key(&next), "its turn comes");
    }
}

/// An address with a thousand connections, each of which wrote all the time, was before everybody
/// else, at the leader and at the others.
#[test]
fn a_write_waits_for_one_turn_of_each_other_origin_and_not_for_all_that_they_write() {
    for at in [2, 0] {
        let limits = limits::NodeLimits {
            append_bytes_max: 1,
            propose_writes_max: 4,
            forward_bytes_max: 8,
            ..Default::default()
        };
        let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
        group.tick();
        group.put(2, 1);
        group.settle();
        let crowd: Vec<_> = (100..140)
            .map(|client| group.write_from([10, 0, 0, 1], client, at, (1, 1), put_k()))
            .collect();
        let lone = group.write_from([10, 0, 0, 2], 200, at, (1, 1), put_k());
        group.settle();
        let timestamp = |token| match &group.replies[token] {
            Reply::WriteOk(WriteAnswer { timestamp, .. }) => *timestamp,
            other => panic!("not written but {other:?}"),
        };
        let before = crowd.iter().filter(|token| timestamp(token) < timestamp(&lone)).count();
        assert!(before <= 8, "server {at}: {before} writes of the crowd are before the other one");
        assert!(crowd.iter().is_sorted_by_key(timestamp), "those of one origin keep their order");
    }
}

fn put_k() -> WriteOp {
    WriteOp::Put(Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        tells_previous: false,
    })
}

/// One address had all the room for writes, and everybody else's were refused.
#[test]
fn what_one_origin_has_under_way_leaves_room_for_others() {
    let limits = limits::NodeLimits { pending_writes_max: 8, ..Default::default() };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    group.cut = true;
    let crowd: Vec<_> = (100..120)
        .map(|client| group.write_from([10, 0, 0, 1], client, 2, (1, 1), put_k()))
        .collect();
    let others =
        [200, 201, 202].map(|client| group.write_from([10, 0, 0, 2], client, 2, (1, 1), put_k()));
    group.settle();
    let is_busy = |token: &RequestToken| {
        let busy = |error: &ErrorReply| matches!(error.code, ErrorCode::Busy { .. });
        matches!(&group.replies.get(token), Some(Reply::Error(error)) if busy(error))
    };
    assert_eq!(crowd.iter().filter(|token| !is_busy(token)).count(), 6);
    assert_eq!(others.iter().map(is_busy).collect::<Vec<_>>(), [false, false, true]);
}

/// Each of them is long, also one of an empty range, and waited for the answer to the one before.
#[test]
fn a_follower_has_long_writes_in_the_leaders_hands_up_to_what_is_let_in_there() {
    let limits = limits::NodeLimits {
        short_write_rows_max: 1,
        long_write_rows_max: 7,
        ..Default::default()
    };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    group.put(0, 1);
    group.settle();
    group.cut = true;
    for client in 10..15 {
        let pairs = (0..3).map(|number| (Bytes::from(vec![client, number]), Bytes::new()));
        let long = WriteOp::PutAll(PutAll { pairs: pairs.collect() });
        group.write_of(client.into(), 0, (1, 1), long);
    }
    group.settle();
    assert_eq!(group.nodes[0].forwarded().long, 2, "of three rows each");
}

/// The second one took what a server may forward, and kept everybody at that server waiting behind
/// it.
#[test]
fn a_long_write_that_waits_for_its_turn_keeps_no_other_client_of_a_follower_waiting() {
    let limits = limits::NodeLimits {
        short_write_rows_max: 1,
        long_write_rows_max: 3,
        forward_bytes_max: 8,
        ..Default::default()
    };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    group.put(0, 1);
    group.settle();
    let before = group.nodes[2].status().last_index;
    let long = |key: u8| {
        let pairs = (0..9).map(|number| (Bytes::from(vec![key, number]), Bytes::new())).collect();
        WriteOp::PutAll(PutAll { pairs })
    };
    let put = || {
        WriteOp::Put(Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            tells_previous: false,
        })
    };
    group.withheld = Some(Vec::new());
    let mut made = vec![group.write_of(10, 0, (1, 1), long(1))];
    group.settle();
    made.push(group.write_of(11, 0, (1, 1), long(2)));
    made.push(group.write_of(11, 0, (2, 2), put()));
    made.push(group.write_of(12, 0, (1, 1), long(3)));
    made.push(group.write_of(13, 0, (1, 1), put()));
    group.settle();
    assert_eq!(group.nodes[2].status().last_index, before + 2, "the first and the short one");
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    let timestamps: Vec<Timestamp> = made
        .iter()
        .map(|token| match &group.replies[token] {
            Reply::WriteOk(WriteAnswer { timestamp, .. }) => *timestamp,
            other => panic!("not written but {other:?}"),
        })
        .collect();
    assert!(timestamps[1] < timestamps[2], "in the order of their client: {timestamps:?}");
    assert!(timestamps[4] < timestamps[1], "{timestamps:?}");
}

/// Only the long ones had the time for that. The short one was refused, and came again behind those
/// that came later.
#[test]
fn what_waits_at_a_follower_behind_a_long_write_of_its_client_has_as_long_as_that() {
    let limits = limits::NodeLimits {
        short_write_rows_max: 1,
        long_write_rows_max: 3,
        ..Default::default()
    };
    let mut group = Group::within(limits, &[3, 3, 3], 3, AckPolicy::Majority);
    group.tick();
    group.put(0, 1);
    group.settle();
    let long = || {
        let pairs = (0..9).map(|number| (Bytes::from(vec![number]), Bytes::new())).collect();
        WriteOp::PutAll(PutAll { pairs })
    };
    let put = || {
        WriteOp::Put(Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            tells_previous: false,
        })
    };
    group.withheld = Some(Vec::new());
    group.write_of(10, 0, (1, 1), long());
    group.settle();
    let waiting = [
        group.write_of(11, 0, (1, 1), long()),
        group.write_of(11, 0, (2, 2), put()),
        group.write_of(11, 0, (3, 3), put()),
    ];
    group.settle();
    let ticks = (limits::COMMIT_TIMEOUT + Duration::from_secs(1)).as_millis() / 20;
    for _ in 0..ticks {
        group.tick();
        let replies = waiting.map(|token| group.replies.get(&token));
        assert!(replies.iter().all(Option::is_none), "{replies:?}");
    }
}

/// It waits for a moment before it is sent again, and a later one of its client was sent at once.
#[test]
fn no_write_goes_past_one_of_its_client_that_is_to_be_forwarded_again() {
    let mut group = Group::new(3, AckPolicy::Majority);
    group.tick();
    group.put(0, 1);
    group.settle();
    group.cut = true;
    let first = group.put(0, 2);
    group.settle();
    // Whatever its number is: each server's begin behind a thousand of its own.
    for id in 0..2_000 {
        let message = CheckedMessage::new(ServerMessage::Forwarded { id, reply: None }).unwrap();
        group.inbox.push_back((0, Input::Message { from: NodeId(3), message }));
    }
    group.settle();
    group.cut = false;
    let second = group.put(0, 3);
    group.settle();
    assert!([first, second].iter().all(|token| !group.replies.contains_key(token)));
    (0..10).for_each(|_| group.tick());
    let made = [first, second].map(|token| match &group.replies[&token] {
        Reply::WriteOk(WriteAnswer { timestamp, .. }) => *timestamp,
        other => panic!("{other:?}"),
    });
    assert!(made[0] < made[1], "{made:?}");
}

/// Tells a server how much room there is on its disk.
fn disk_is(group: &mut Group, at: usize, space: DiskSpace) {
    group.inbox.push_back((at, Input::DiskSpace(space)));
    group.settle();
}

/// A put and a removal through server `at`: why the put was refused, if it was. The removal never
/// is.
fn refused(group: &mut Group, at: usize, request: u64) -> Option<String> {
    let put = group.put(at, request);
    let del = WriteOp::Del(Del {
        key: Bytes::from_static(b"k"),
        tells_previous: true,
        keeps_history: false,
    });
    let del = group.write(at, request + 1, request + 1, del);
    (0..10).for_each(|_| group.tick());
    assert!(matches!(group.replies[&del], Reply::WriteOk(_)), "{:?}", group.replies[&del]);
    match &group.replies[&put] {
        Reply::WriteOk(_) => None,
        Reply::Error(error) if error.code == ErrorCode::DiskFull => {
            assert_eq!(error.effect, Effect::NotDone);
            Some(error.message.clone())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_adds_to_the_store_is_refused_while_no_majority_has_room_and_removals_never() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    assert_eq!(refused(&mut group, 0, 1), None);
    let (leader, others) = (2, [0, 1]);
    others.into_iter().for_each(|at| disk_is(&mut group, at, DiskSpace::Full));
    let told = |group: &Group| {
        let told = (0..3).map(|at| group.nodes[at].status().full_disks);
        told.collect::<Vec<_>>()
    };
    assert_eq!(told(&group), vec![vec![NodeId(1), NodeId(2)]; 3], "by every server");
    let why = refused(&mut group, 0, 3).unwrap();
    assert!(why.contains("the disk of server 1 and of server 2 is nearly full"), "{why}");
    disk_is(&mut group, 0, DiskSpace::Low);
    assert_eq!(refused(&mut group, 1, 1), None);
    assert!(told(&group).iter().all(Vec::is_empty), "one full disk of three keeps nobody");
    assert_eq!(group.nodes[leader].status().role, Role::Leader);
    (0..3).for_each(|at| disk_is(&mut group, at, DiskSpace::Full));
    assert!(
        refused(&mut group, 1, 3).unwrap().contains("server 1 and of server 2 and of server 3")
    );
    disk_is(&mut group, leader, DiskSpace::Ample);
    assert!(refused(&mut group, 1, 5).is_some());
    (0..3).for_each(|at| disk_is(&mut group, at, DiskSpace::Ample));
    assert_eq!(refused(&mut group, 1, 7), None);

    // A server that comes into reach later hears of it, too.
    others.into_iter().for_each(|at| disk_is(&mut group, at, DiskSpace::Full));
    for server in [NodeId(1), NodeId(2)] {
        let up = Input::LinkUp { server, last_index: 0, term: 0, first_leader: None };
        let came = Input::LinkUp { server: NodeId(3), last_index: 0, term: 0, first_leader: None };
        group.inbox.push_back((leader, Input::LinkDown { server }));
        group.inbox.push_back((leader, up));
        group.inbox.push_back((server.0 as usize - 1, came));
    }
    group.settle();
    assert!(refused(&mut group, 1, 9).is_some());

    // One that is out of reach stores nothing: what one full disk takes then comes out of its
    // reserve.
    disk_is(&mut group, 0, DiskSpace::Ample);
    assert_eq!(refused(&mut group, 1, 11), None);
    for at in [1, leader] {
        group.inbox.push_back((at, Input::LinkDown { server: NodeId(1) }));
    }
    group.settle();
    let why = refused(&mut group, 1, 13).unwrap();
    assert!(why.contains("the disk of server 2 is nearly full"), "{why}");
    assert_eq!(group.nodes[leader].status().full_disks, vec![NodeId(2)]);
    disk_is(&mut group, 1, DiskSpace::Low);
    assert_eq!(refused(&mut group, 1, 15), None);
}

#[test]
fn a_leader_without_room_hands_over_to_a_server_with_room_and_nothing_is_refused_meanwhile() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    assert_eq!(group.nodes[2].status().role, Role::Leader);
    disk_is(&mut group, 1, DiskSpace::Full);
    disk_is(&mut group, 2, DiskSpace::Full);
    assert!(refused(&mut group, 2, 1).is_some(), "only one of three has room");
    assert_eq!(group.nodes[0].status().role, Role::Leader);

    disk_is(&mut group, 1, DiskSpace::Ample);
    disk_is(&mut group, 0, DiskSpace::Full);
    assert_eq!(refused(&mut group, 1, 1), None);
    assert_eq!(group.nodes[1].status().role, Role::Leader);

    // Where nobody has room, the leader leads the removals.
    disk_is(&mut group, 1, DiskSpace::Exhausted);
    let term = group.nodes[1].status().term;
    (0..2 * limits::DISK_HANDOVER_AGAIN_TICKS).for_each(|_| group.tick());
    assert!(refused(&mut group, 1, 3).is_some());
    assert_eq!(group.nodes[1].status().term, term);
}

#[test]
fn a_follower_without_room_takes_no_entries_and_catches_up_when_there_is_some() {
    let mut group = Group::new(3, AckPolicy::Majority);
    group.tick();
    group.inbox.push_back((0, Input::DiskSpace(DiskSpace::Exhausted)));
    group.settle();
    let before = group.nodes[0].status().last_index;
    let put = group.put(2, 1);
    (0..10).for_each(|_| group.tick());
    assert!(matches!(group.replies[&put], Reply::WriteOk(_)));
    assert_eq!(group.nodes[0].status().last_index, before);
    assert_eq!(group.nodes[0].status().role, Role::Follower);
    group.inbox.push_back((0, Input::DiskSpace(DiskSpace::Low)));
    (0..10).for_each(|_| group.tick());
    assert!(group.nodes[0].status().last_index > before);
    assert_eq!(group.applied[0], group.applied[2]);
}

/// Says it to the first server in another's name.
fn forge(group: &mut Group, from: u64, message: ServerMessage) {
    let message = CheckedMessage::new(message).unwrap();
    group.inbox.push_back((0, Input::Message { from: NodeId(from), message }));
}

/// Two forged messages once made a server throw its state away, or its log, and one made it serve
/// no reads.
#[test]
fn what_forgers_say_of_states_and_logs_outlasts_nothing_and_refutes_nobody() {
    let mut group = Group::new(3, AckPolicy::All);
    (1..=9).for_each(|request| {
        group.put(0, request);
        group.settle();
    });
    group.accusations = Some(Vec::new());
    let term = group.nodes[0].status().term;
    for from in [2, 3] {
        forge(&mut group, from, ServerMessage::StateHash { index: 4, hash: 7 });
        let entry = LogEntry { term: term + 1, index: 2, data: Bytes::new() };
        let body = RaftBody::Append {
            previous_index: 1,
            previous_term: group.nodes[0].term_at(1).unwrap(),
            commit: 0,
            entries: vec![entry],
        };
        let (to, term) = (NodeId(1), term + 1);
        let raft = RaftMessage { from: NodeId(from), to, term, body };
        forge(&mut group, from, ServerMessage::Raft(raft));
    }
    // As who does not see the questions would guess.
    for (from, id) in [2, 3].into_iter().flat_map(|from| (0..9).map(move |id| (from, id))) {
        forge(&mut group, from, ServerMessage::StateHashOk { id, hash: Some(7) });
        forge(&mut group, from, ServerMessage::LogTermOk { id, term: Some(term + 1) });
    }
    // Nothing that throws something away was asked for, or this would have panicked.
    group.settle();
    assert_eq!(group.accusations.take().unwrap(), [""; 0], "those in whose names it was said");
    assert_eq!(group.nodes[0].status().distrust, None);
    (0..50).for_each(|_| group.tick());
    assert_eq!(group.nodes[0].status().distrust, None);
}

/// A write that changed nothing was once reported as done when leadership was lost between its
/// commit and its answer: two clients held one lock.
#[test]
fn a_condition_that_failed_is_never_reported_as_done() {
    let mut group = Group::told(&[1, 1, 1], 3, AckPolicy::All);
    group.tick();
    group.put(0, 1);
    group.settle();
    assert_eq!(group.nodes[0].status().in_sync.len(), 3);
    // Committed and applied, and not stored by a server in sync.
    (group.deaf, group.result) = (Some(1), OpResult::ConditionFailed { newest: None });
    let write = group.write(0, 2, 2, lock());
    group.settle();
    assert!(!group.replies.contains_key(&write));
    group.cut = true;
    let body = RaftBody::Heartbeat { commit: 0, context: Bytes::new() };
    let (from, to, term) = (NodeId(3), NodeId(1), group.nodes[0].status().term + 1);
    forge(&mut group, 3, ServerMessage::Raft(RaftMessage { from, to, term, body }));
    group.settle();
    assert_eq!(group.nodes[0].status().role, Role::Follower);
    (0..1_000).for_each(|_| group.tick_of(0..1));
    match &group.replies[&write] {
        Reply::Error(error) => {
            assert_eq!((error.code, error.effect), (ErrorCode::Unconfirmed, Effect::MayBeDone));
        }
        told => panic!("{told:?}"),
    }
}

fn lock() -> WriteOp {
    WriteOp::PutIf(PutIf {
        key: Bytes::from_static(b"lock"),
        value: Bytes::from_static(b"mine"),
        condition: Condition::Absent,
    })
}

/// A conditional write reads the state that it is judged by: a leader whose state was in dispute
/// once gave a lock that another client had.
#[test]
fn a_leader_in_dispute_tells_no_result_that_its_state_decided() {
    let mut group = Group::told(&[2, 2, 2], 3, AckPolicy::Majority);
    group.tick();
    group.put(1, 1);
    group.settle();
    // The third server, which could decide, hears of nothing.
    group.deaf = Some(2);
    group.applied[0].hash = 7;
    (2..=9).for_each(|sequence| {
        group.put(1, sequence);
        group.settle();
    });
    (0..50).for_each(|_| group.tick_of(0..2));
    assert_eq!(group.nodes[1].status().role, Role::Leader);
    assert_eq!(group.nodes[1].status().distrust, Some(Distrust::Disputed));
    let (conditional, plain) = (group.write(1, 10, 10, lock()), group.put(1, 11));
    group.settle();
    assert!(!group.replies.contains_key(&conditional), "it waits until somebody can tell");
    assert!(matches!(group.replies[&plain], Reply::WriteOk(_)), "{:?}", group.replies[&plain]);
    (0..1_000).for_each(|_| group.tick_of(0..2));
    match &group.replies[&conditional] {
        Reply::Error(error) => {
            assert_eq!((error.code, error.effect), (ErrorCode::Internal, Effect::MayBeDone));
        }
        told => panic!("{told:?}"),
    }
}

/// Each REPLICATION of a term that was over moved a leader's clock by up to a hundred years, though
/// nothing of it was stored: after some three thousand of them no write had a later stamp than the
/// one before.
#[test]
fn what_is_not_stored_does_not_move_the_clock() {
    let mut group = Group::new(3, AckPolicy::All);
    group.put(0, 1);
    group.settle();
    let leader = group.nodes.iter().position(|node| node.status().role == Role::Leader).unwrap();
    let status = group.nodes[leader].status();
    let wall_us = group.now.wall_us;
    let century_us = micros(limits::TIMESTAMP_LEAP_MAX) as i64;
    for number in 1..9 {
        let (client, begun) = (ClientId(9), Timestamp::ZERO);
        let request = RequestId { client, sequence: number, answered_below: 1, begun };
        let stamp = Timestamp(wall_us + century_us * number as i64);
        let data = Command::write(stamp, request, WriteOp::Barrier(Barrier {})).encode();
        let (term, index) = (status.term - 1, status.last_index + 1);
        let body = RaftBody::Append {
            previous_index: status.last_index,
            previous_term: status.term,
            commit: 0,
            entries: vec![LogEntry { term, index, data }],
        };
        let (from, to) = (NodeId((leader as u64 + 1) % 3 + 1), NodeId(leader as u64 + 1));
        let raft = RaftMessage { from, to, term, body };
        let message = CheckedMessage::new(ServerMessage::Raft(raft)).unwrap();
        group.accusations = Some(Vec::new());
        group.inbox.push_back((leader, Input::Message { from, message }));
        group.settle();
    }
    let put = group.put(0, 2);
    (0..20).for_each(|_| group.tick());
    let Reply::WriteOk(WriteAnswer { timestamp, .. }) = &group.replies[&put] else {
        panic!("it is not written")
    };
    assert!(timestamp.0 < wall_us + century_us / 2, "{timestamp:?}");
}

/// An entry that counts as committed raised the bound by a hundred years, and so did the next:
/// after some three thousand of them there was no timestamp left for any write.
#[test]
fn forged_timestamps_that_are_applied_lead_no_further_than_one_leap() {
    let mut group = Group::new(3, AckPolicy::All);
    group.put(0, 1);
    group.settle();
    let leader = group.nodes.iter().position(|node| node.status().role == Role::Leader).unwrap();
    let victim = (leader + 1) % 3;
    let leap_us = micros(limits::TIMESTAMP_LEAP_MAX) as i64;
    let latest_us = group.now.wall_us + leap_us;
    // What is sent to the victim, and whether it takes it: a leap, a little more as a true leader
    // adds it to its last timestamp, and another leap.
    for (ahead_us, clock_us, takes) in [
        (latest_us - 1000, 0, true),
        (latest_us + 1_000_000, 0, true),
        (latest_us + leap_us / 2, 0, false),
        (latest_us + 2_000_000, latest_us as u64 - 1000, true),
        (latest_us + 4_000_000, latest_us as u64 + leap_us as u64 / 2, false),
    ] {
        let status = group.nodes[victim].status();
        let (client, begun) = (ClientId(9), Timestamp::ZERO);
        let request = RequestId { client, sequence: 1, answered_below: 1, begun };
        let barrier = WriteOp::Barrier(Barrier {});
        let command = Command::write(Timestamp(ahead_us), request, barrier);
        let data = Command { clock_us, ..command }.encode();
        let index = status.last_index + 1;
        let body = RaftBody::Append {
            previous_index: status.last_index,
            previous_term: status.term,
            commit: index,
            entries: vec![LogEntry { term: status.term, index, data }],
        };
        let (from, to) = (NodeId(leader as u64 + 1), NodeId(victim as u64 + 1));
        let raft = RaftMessage { from, to, term: status.term, body };
        let message = CheckedMessage::new(ServerMessage::Raft(raft)).unwrap();
        group.accusations = Some(Vec::new());
        // Nothing that it answers reaches the others.
        group.cut = true;
        group.inbox.push_back((victim, Input::Message { from, message }));
        group.settle();
        let accusations = group.accusations.take().unwrap();
        assert_eq!(accusations.is_empty(), takes, "{ahead_us} {clock_us}: {accusations:?}");
        let applied = group.nodes[victim].status().applied;
        assert_eq!(applied.timestamp == Timestamp(ahead_us), takes, "{applied:?}");
    }
}

/// The others refused what it stamped, and nothing behind that was ever committed, also after the
/// clock was set right.
#[test]
fn a_leader_whose_clock_leaps_stamps_nothing_that_the_others_refuse() {
    let mut group = Group::new(3, AckPolicy::Majority);
    group.put(2, 1);
    (0..100).for_each(|_| group.tick());
    let leader = group.nodes.iter().position(|node| node.status().role == Role::Leader).unwrap();
    let right = group.now;
    for (request, years) in [(2, 150), (3, 90), (4, 5_000), (5, 140), (6, 5_001)] {
        // The last ones come when no other server's clock is known.
        for server in [1, 2, 3]
            .map(NodeId)
            .into_iter()
            .filter(|server| request >= 5 && *server != NodeId(leader as u64 + 1))
        {
            let up = Input::LinkUp { server, last_index: 0, term: 0, first_leader: None };
            let mut out = Vec::new();
            for input in [Input::LinkDown { server }, up] {
                group.nodes[leader].handle(group.now, input, &mut out);
            }
            group.carry_out(leader, out);
        }
        group.settle();
        let put = group.put(leader, request);
        let (at, input) = group.inbox.pop_front().unwrap();
        let year_us = micros(limits::TIMESTAMP_LEAP_MAX) as i64 / 100;
        let leapt = Now { wall_us: right.wall_us + years * year_us, ..right };
        let mut out = Vec::new();
        group.nodes[at].handle(leapt, input, &mut out);
        group.nodes[at].flush(leapt, &mut out);
        group.carry_out(at, out);
        group.settle();
        assert!(matches!(group.replies[&put], Reply::WriteOk(_)), "{:?}", group.replies.get(&put));
    }
}

/// The log had begun anew after it by the time that the store refused it: the server stopped.
#[test]
fn a_snapshot_that_is_older_than_the_state_or_of_no_time_is_not_taken() {
    let mut group = Group::new(3, AckPolicy::All);
    group.put(0, 1);
    group.settle();
    (0..5).for_each(|_| group.tick());
    let leader = group.nodes.iter().position(|node| node.status().role == Role::Leader).unwrap();
    let (follower, from) = ((leader + 1) % 3, NodeId(leader as u64 + 1));
    let status = group.nodes[follower].status();
    let snapshot =
        SnapshotId { leader_term: status.term, index: status.last_index + 1000, term: status.term };
    let applied = status.applied.timestamp;
    let far = Timestamp(group.now.wall_us + 2 * micros(limits::TIMESTAMP_LEAP_MAX) as i64);
    let now = group.now;
    let node = &mut group.nodes[follower];
    for (timestamp, wanted) in [(applied, true), (Timestamp(applied.0 - 1), false), (far, false)] {
        let found = node.wants_snapshot(now, from, snapshot, timestamp);
        assert_eq!(found, wanted, "{timestamp:?} beside {applied:?}");
    }
    // More may have been applied since it was offered.
    let mut out = Vec::new();
    let timestamp = Timestamp(applied.0 - 1);
    node.handle(now, Input::SnapshotReceived { from, snapshot, timestamp }, &mut out);
    assert!(matches!(out[..], [Output::DiscardSnapshot]), "{out:?}");
}

#[test]
fn a_level_is_proposed_when_all_have_told_it_and_only_then() {
    let mut group = Group::new(3, AckPolicy::All);
    group.put(0, 1);
    group.settle();
    let last_index = |group: &Group| group.nodes[2].status().last_index;
    let before = last_index(&group);
    for node in &mut group.nodes {
        node.config.release.level.level = 2;
    }
    // The last server is played by somebody who says otherwise now and then.
    let settled = limits::LEVEL_SETTLED.as_millis() as u64 / 20;
    for round in 0..4 * settled {
        if round % (settled / 2) == 0 {
            let message = ServerMessage::About { wall_us: 0, level: 1 };
            let message = CheckedMessage::new(message).unwrap();
            group.inbox.push_back((2, Input::Message { from: NodeId(1), message }));
        }
        group.tick();
    }
    assert_eq!(last_index(&group), before);
    (0..2 * settled).for_each(|_| group.tick());
    assert_eq!(last_index(&group), before + 1, "once");
}

/// What becomes of a REPLICATION that holds a write, where it is decoded.
fn check(op: WriteOp) -> Result<(), String> {
    let (client, begun) = (ClientId(9), Timestamp::ZERO);
    let request = RequestId { client, sequence: 1, answered_below: 1, begun };
    let data = Command::write(Timestamp(5), request, op).encode();
    let entries = vec![LogEntry { term: 1, index: 1, data }];
    let body = RaftBody::Append { previous_index: 0, previous_term: 0, commit: 0, entries };
    let raft = RaftMessage { from: NodeId(1), to: NodeId(2), term: 1, body };
    CheckedMessage::new(ServerMessage::Raft(raft)).map(drop)
}

/// A key has one version at one timestamp.
#[test]
fn an_entry_with_a_transaction_that_breaks_a_rule_is_not_taken() {
    let put = |key: &'static str| TxnOp::Put {
        key: Bytes::from(key),
        value: Bytes::new(),
        tells_previous: false,
        lease: None,
    };
    let txn = |then: Vec<TxnOp>| Txn { then, ..Txn::default() };
    let deepest = (1..limits::TRANSACTION_DEPTH_MAX)
        .fold(txn(vec![put("k")]), |inner, _| txn(vec![TxnOp::Txn(Box::new(inner))]));
    let deeper = txn(vec![TxnOp::Txn(Box::new(deepest.clone()))]);
    for (txn, is_good) in [
        (txn(vec![put("k"), put("l")]), true),
        (txn(vec![put("k"), put("k")]), false),
        (txn(vec![put("k"), put("")]), false),
        (txn(vec![TxnOp::Get { key: Bytes::from("k") }]), false),
        (deepest, true),
        (deeper, false),
    ] {
        assert_eq!(check(txn.clone().into()).is_ok(), is_good, "{txn:?}");
    }
}

/// Such an entry was applied, and its server ended when the store was to hold it, at each start.
#[test]
fn an_entry_with_a_key_that_cannot_exist_is_not_taken() {
    for (length, is_good) in
        [(0, false), (1, true), (limits::KEY_BYTES_MAX, true), (limits::KEY_BYTES_MAX + 1, false)]
    {
        let (key, value) = (Bytes::from(vec![0; length]), Bytes::from_static(b"v"));
        let pair = |key: &Bytes| (key.clone(), value.clone());
        let condition = Condition::Absent;
        let ops: [WriteOp; 4] = [
            Put { key: key.clone(), value: value.clone(), tells_previous: false }.into(),
            PutIf { key: key.clone(), value: value.clone(), condition }.into(),
            PutAll { pairs: vec![pair(&Bytes::from_static(b"good")), pair(&key)] }.into(),
            Del { key: key.clone(), tells_previous: false, keeps_history: false }.into(),
        ];
        for op in ops {
            assert_eq!(check(op.clone()).is_ok(), is_good, "{op:?}");
        }
    }
}
