//! Leases in a group of cores: who answers, when a lease ends, and what a change of leader does.

use super::*;
use crate::model::{LeaseAnswer, LeaseGrant, LeaseId, LeaseName, LeaseState};

const SECOND: u64 = 1_000_000;
/// The greatest number leads first.
const LEADER: usize = 2;

/// What a state machine tells of leases, when it has applied this.
pub(super) fn lease_events(command: &Command) -> Vec<LeaseEvent> {
    match &command.action {
        Action::Write { op: WriteOp::LeaseGrant(grant), .. } => {
            let (id, granted) = (grant.id_at(command.timestamp), command.timestamp);
            let (name, ttl_ms) = (LeaseName { id, granted }, grant.ttl_ms);
            vec![LeaseEvent::Is(LeaseState { name, ttl_ms, rest_ms: ttl_ms })]
        }
        Action::Leases(record) => record.ends.iter().copied().map(LeaseEvent::Ended).collect(),
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
/// that its holder had asked to be kept alive in time.
#[test]
fn a_lease_does_not_end_while_a_request_to_keep_it_alive_waits_for_a_long_write() {
    let mut group = Group::new(3, AckPolicy::All);
    group.tick();
    let id = group.grant(2_000);
    group.run(SECOND);
    group.withheld = Some(Vec::new());
    group.put(LEADER, 2);
    group.settle();
    let token = group.keep_alive(LEADER, 3, id);
    group.run(3 * SECOND);
    assert!(!group.replies.contains_key(&token), "the write before it is not applied");
    let withheld = group.withheld.take().unwrap();
    group.inbox.extend(withheld);
    group.settle();
    group.tick();
    assert_eq!(group.left_ms(token), Some(2_000));
    group.run(2 * SECOND + SECOND / 4);
    let token = group.keep_alive(LEADER, 4, id);
    assert_eq!(group.left_ms(token), None, "nobody has kept it alive since");
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
