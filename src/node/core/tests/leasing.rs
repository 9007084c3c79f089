//! Leases in a group of cores: who answers, when a lease ends, and what a change of leader does.

use super::*;
use crate::model::{LeaseAnswer, LeaseGrant, LeaseId, LeaseName, LeaseRevoke, LeaseState};
use crate::node::config::LeaseNotes;
use crate::wire::message::{RaftBody, RaftMessage};

const SECOND: u64 = 1_000_000;
/// The greatest number leads first.
const LEADER: usize = 2;
/// The TTL of the leases here whose remaining time is noted.
const NOTED_TTL_MS: u64 = 20_000;
/// Shorter leases are not.
pub(super) const NOTES: LeaseNotes = LeaseNotes {
    ttl_min: Duration::from_millis(NOTED_TTL_MS),
    step_min: Duration::from_secs(5),
    step_max: Duration::from_secs(3600),
};

/// What a state machine tells of leases, when it has applied this.
pub(super) fn lease_events(command: &Command) -> Vec<LeaseEvent> {
    match &command.action {
        Action::Write { op: WriteOp::LeaseGrant(grant), .. } => {
            let (id, granted) = (grant.id_at(command.timestamp), command.timestamp);
            let (name, ttl_ms) = (LeaseName { id, granted }, grant.ttl_ms);
            vec![LeaseEvent::Is(LeaseState { name, ttl_ms, rest_ms: ttl_ms })]
        }
        Action::Leases(record) => {
            let rest = |(name, rest_ms): &(LeaseName, u64)| {
                LeaseEvent::Is(LeaseState { name: *name, ttl_ms: NOTED_TTL_MS, rest_ms: *rest_ms })
            };
            let ends = record.ends.iter().copied().map(LeaseEvent::Ended);
            ends.chain(record.rests.iter().map(rest)).collect()
        }
        _ => Vec::new(),
    }
}

impl Group {
    fn grant(&mut self, ttl_ms: u64) -> LeaseId {
        let grant = LeaseGrant { id: Some(LeaseId(7)), ttl_ms };
        let token = self.write(LEADER, 1, 1, grant.into());
        self.settle();
        assert!(matches!(self.replies[&token], Reply::WriteOk(_)), "{:?}", self.replies[&token]);
        LeaseId(7)
    }

    fn ask(&mut self, at: usize, request: u64, question: LeaseQuestion) -> RequestToken {
        let token = RequestToken { connection: 99, request };
        let client = ([127, 0, 0, 1], 9).into();
        self.inbox.push_back((at, Input::Leases { token, client, question }));
        self.settle();
        token
    }

    fn keep_alive(&mut self, at: usize, request: u64, id: LeaseId) -> RequestToken {
        self.ask(at, request, LeaseQuestion::KeepAlive(vec![id]))
    }

    fn left_ms(&self, token: RequestToken) -> Option<u64> {
        match &self.replies[&token] {
            Reply::LeasesOk(LeaseAnswer::KeptAlive(left)) => left[0],
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, us: u64) {
        let until_us = self.now.monotonic_us + us;
        while self.now.monotonic_us < until_us {
            self.tick();
        }
    }
}

#[test]
fn a_lease_is_kept_alive_through_any_server_and_ends_when_nobody_does() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    for (request, at) in [(1, LEADER), (2, 0), (3, 1)] {
        group.run(9 * SECOND);
        let token = group.keep_alive(at, request, id);
        assert_eq!(group.left_ms(token), Some(10_000));
    }
    group.run(9 * SECOND);
    let shown = group.ask(0, 4, LeaseQuestion::Show(id));
    let Reply::LeasesOk(LeaseAnswer::Leases { leases, has_more: false }) = &group.replies[&shown]
    else {
        panic!("{:?}", group.replies[&shown]);
    };
    assert_eq!((leases[0].name.id, leases[0].ttl_ms), (id, 10_000));
    assert!((900..=1_000).contains(&leases[0].left_ms), "{leases:?}: to look keeps nothing alive");
    group.run(SECOND + SECOND / 10);
    for (request, at) in [(5, LEADER), (6, 0)] {
        let token = group.keep_alive(at, request, id);
        assert_eq!(group.left_ms(token), None);
    }
}

/// Applying a transaction of a hundred thousand puts takes seconds, in which a short lease ended
/// that its holder had asked to be kept alive in time, or whose holder gave it up without an
/// answer.
#[test]
fn a_lease_that_runs_is_kept_alive_while_a_long_write_is_applied() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(2_000);
    group.withheld = Some(Vec::new());
    group.put(LEADER, 2);
    group.settle();
    for (request, at) in [(3, LEADER), (4, 0), (5, 1), (6, LEADER)] {
        group.run(SECOND);
        let token = group.keep_alive(at, request, id);
        assert_eq!(group.left_ms(token), Some(2_000));
    }
    let listed = group.ask(LEADER, 7, LeaseQuestion::List { after: None });
    let unknown = group.keep_alive(0, 8, LeaseId(99));
    let waits = |group: &Group, token| !group.replies.contains_key(&token);
    assert!(waits(&group, listed) && waits(&group, unknown), "one may be granted there");
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    group.tick();
    assert!(!waits(&group, listed));
    assert_eq!(group.left_ms(unknown), None);
}

/// A revoke that is ordered, and not applied, may end the lease.
#[test]
fn a_lease_does_not_end_while_a_request_to_keep_it_alive_waits() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(2_000);
    group.run(SECOND);
    group.withheld = Some(Vec::new());
    // In this group it comes to nothing.
    group.write(LEADER, 2, 2, LeaseRevoke { id, keys_max: None }.into());
    group.settle();
    let token = group.keep_alive(LEADER, 3, id);
    group.run(3 * SECOND);
    assert!(!group.replies.contains_key(&token), "the revoke is not applied");
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    group.tick();
    assert_eq!(group.left_ms(token), Some(2_000));
    group.run(2 * SECOND + SECOND / 4);
    let token = group.keep_alive(LEADER, 4, id);
    assert_eq!(group.left_ms(token), None, "nobody has kept it alive since");
}

/// An earlier leader may have ordered the lease's end in what it has not applied.
#[test]
fn a_leader_that_has_not_applied_the_first_entry_of_its_term_keeps_nothing_alive() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    group.withheld = Some(Vec::new());
    group.deaf = Some(LEADER);
    let leads = |node: &Node| node.status().role == Role::Leader;
    while group.nodes[LEADER].status().role == Role::Leader || !group.nodes.iter().any(leads) {
        group.tick();
    }
    group.deaf = None;
    let leader = group.nodes.iter().position(leads).unwrap();
    let token = group.keep_alive(leader, 1, id);
    group.run(SECOND);
    assert!(leads(&group.nodes[leader]) && !group.replies.contains_key(&token));
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    group.tick();
    assert_eq!(group.left_ms(token), Some(10_000));
}

#[test]
fn a_leader_that_is_cut_off_keeps_nothing_alive() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    group.run(SECOND);
    group.cut = true;
    let token = group.keep_alive(LEADER, 1, id);
    let passed_on = group.keep_alive(0, 2, id);
    group.tick();
    assert!(!group.replies.contains_key(&token) && !group.replies.contains_key(&passed_on));
    group.run(6 * SECOND);
    for token in [token, passed_on] {
        let Reply::Error(error) = &group.replies[&token] else { panic!("{token:?}") };
        assert_eq!(error.code, ErrorCode::NoMajority);
    }
}

#[test]
fn a_question_that_is_lost_is_asked_again() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    group.deaf = Some(LEADER);
    let token = group.keep_alive(0, 1, id);
    assert!(!group.replies.contains_key(&token));
    group.deaf = None;
    group.run(SECOND);
    assert_eq!(group.left_ms(token), Some(10_000));
}

#[test]
fn the_next_leader_gives_a_lease_its_whole_time_and_answers_what_waited() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    group.run(9 * SECOND);
    group.deaf = Some(LEADER);
    let waits = group.keep_alive(LEADER, 1, id);
    // It hears nobody, and steps down; the others elect one of them.
    group.run(SECOND);
    group.deaf = None;
    while !group.replies.contains_key(&waits) {
        group.tick();
    }
    assert_eq!(group.left_ms(waits), Some(10_000), "at the next leader");
    group.run(9 * SECOND);
    let token = group.keep_alive(0, 2, id);
    assert_eq!(group.left_ms(token), Some(10_000));
    group.run(11 * SECOND);
    let token = group.keep_alive(0, 3, id);
    assert_eq!(group.left_ms(token), None);
}

/// The driver hands over everything that has come at once, and flushes the node then. So a server
/// may be elected, take in what another one passes on to the leader, and be deposed, all of which
/// shows only at the flush. It passed on what had been passed on to it: a broken invariant.
#[test]
fn what_came_to_a_leader_of_a_moment_is_left_to_those_who_ask_it() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(10_000);
    group.cut = true;
    while group.nodes[0].status().role != Role::Candidate {
        group.tick_of(0..1);
    }
    let term = group.nodes[0].status().term;
    let hears = |from: u64, term, body| {
        let (from, to) = (NodeId(from), NodeId(1));
        let message = ServerMessage::Raft(RaftMessage { from, to, term, body });
        Input::Message { from, message: CheckedMessage::new(message).unwrap() }
    };
    let vote = |pre, term| {
        hears(2, term, RaftBody::VoteReply { pre, reject: false, commit: 0, commit_term: 0 })
    };
    group.inbox.push_back((0, vote(true, term + 1)));
    group.settle();
    assert_eq!(group.nodes[0].status().term, term + 1, "it asks for votes");
    let mut out = Vec::new();
    let now = group.now;
    group.nodes[0].handle(now, vote(false, term + 1), &mut out);
    assert_eq!(group.nodes[0].status().role, Role::Leader);
    let message = ServerMessage::Leases { id: 5, question: LeaseQuestion::KeepAlive(vec![id]) };
    let message = CheckedMessage::new(message).unwrap();
    group.nodes[0].handle(now, Input::Message { from: NodeId(2), message }, &mut out);
    let heartbeat = RaftBody::Heartbeat { commit: 0, context: Bytes::new() };
    group.nodes[0].handle(now, hears(3, term + 2, heartbeat), &mut out);
    group.nodes[0].flush(now, &mut out);
    assert_eq!(group.nodes[0].status().leader, Some(NodeId(3)));
    let passes_on = |output: &Output| {
        matches!(output, Output::Send { message: ServerMessage::Leases { .. }, .. })
    };
    assert!(!out.iter().any(passes_on), "{out:?}");
}

/// A lease has been noted, so that its keep-alive is answered when that is taken back in the log. A
/// leader that was asked to stop took nothing back, and its clients had no answer.
#[test]
fn a_leader_that_is_to_stop_answers_the_keep_alives_under_way() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(NOTED_TTL_MS);
    group.run(NOTED_TTL_MS * 1_000 * 2 / 3);
    let token = RequestToken { connection: 99, request: 1 };
    let (client, question) = (([127, 0, 0, 1], 9).into(), LeaseQuestion::KeepAlive(vec![id]));
    group.inbox.push_back((LEADER, Input::Leases { token, client, question }));
    group.inbox.push_back((LEADER, Input::Stop));
    group.settle();
    (0..5).for_each(|_| group.tick());
    assert_eq!(group.left_ms(token), Some(NOTED_TTL_MS));
    assert_ne!(group.nodes[LEADER].status().role, Role::Leader, "it has nothing left to do");
}

/// Every key that goes with a lease takes some room and gives none back.
#[test]
fn while_disks_are_full_no_lease_ends_and_those_that_are_over_may_be_kept_alive() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(2_000);
    (0..3).for_each(|at| disk_is(&mut group, at, DiskSpace::Full));
    for request in 1..3 {
        group.run(10 * SECOND);
        let token = group.keep_alive(1, request, id);
        assert_eq!(group.left_ms(token), Some(2_000));
    }
    let revoke = group.write(LEADER, 7, 2, LeaseRevoke { id, keys_max: None }.into());
    group.settle();
    let Reply::Error(error) = &group.replies[&revoke] else { panic!("it is revoked") };
    assert_eq!(error.code, ErrorCode::DiskFull);
    (0..3).for_each(|at| disk_is(&mut group, at, DiskSpace::Ample));
    group.run(SECOND);
    let shown = group.ask(0, 4, LeaseQuestion::Show(id));
    assert!(matches!(&group.replies[&shown],
        Reply::LeasesOk(LeaseAnswer::Leases { leases, .. }) if leases.len() == 1));
    group.run(SECOND + SECOND / 10);
    let token = group.keep_alive(1, 5, id);
    assert_eq!(group.left_ms(token), None);
}

/// One address took all leases of the group, for up to a year, and nobody else was granted any.
#[test]
fn an_address_is_granted_no_more_leases_than_it_leaves_to_others() {
    let mut group = Group::new(3, AckPolicy::All);
    group.state_limits = StateLimits { leases_max: 100, ..StateLimits::default() };
    group.tick();
    let mut number = 0;
    let mut grant = |group: &mut Group, ip: [u8; 4]| {
        number += 1;
        let grant = LeaseGrant { id: None, ttl_ms: 10_000 };
        let token = group.write_from(ip, 7, 0, (number, number), grant.into());
        group.settle();
        match &group.replies[&token] {
            Reply::WriteOk(_) => true,
            Reply::Error(error) => {
                assert!(matches!(error.code, ErrorCode::Busy { .. }), "{error:?}");
                assert_eq!(error.effect, Effect::NotDone);
                false
            }
            other => panic!("{other:?}"),
        }
    };
    let mut granted = 0;
    while grant(&mut group, [10, 0, 0, 1]) {
        granted += 1;
    }
    assert_eq!(granted, (100 - 100 / 16) / 2);
    assert!(grant(&mut group, [10, 0, 0, 2]) && !grant(&mut group, [10, 0, 0, 1]));
    group.run(11 * SECOND);
    assert!(grant(&mut group, [10, 0, 0, 1]), "all of them have ended");
}
