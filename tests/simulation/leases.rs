//! Holders of leases, and what must hold of leases.
//!
//! A holder grants itself a lease, keeps it alive through any server for as long as it likes, and
//! then revokes it or lets it end. Rules, by the simulator's own time:
//!
//! - no entry ends a lease before its TTL has passed since it was granted, or since its holder sent
//!   the keep-alive that was answered last;
//! - a lease that nobody keeps alive ends, once a majority is well, in its TTL and some seconds;
//! - a lease is said to be gone only when it is.

use std::collections::BTreeMap;

use acervo::model::{
    Action, LeaseAnswer, LeaseEvent, LeaseGrant, LeaseId, LeaseName, LeaseQuestion, LeaseRecord,
    LeaseRevoke, LeaseState, OpResult, Timestamp, WriteOp,
};
use acervo::node::config::NodeStatus;
use acervo::node::{Input, RequestToken};
use acervo::wire::message::{ErrorCode, Reply, Role};

use crate::checker::{Verdict, ensure};
use crate::clients::Memory;
use crate::world::{Event, MILLISECOND, SECOND, World};

/// Names the holders' questions at servers; clients' connections are smaller numbers.
pub const HOLDERS_CONNECTION: u64 = u64::MAX - 1;
/// Ids that holders choose, so that they are granted again and again.
const CHOSEN_IDS: u64 = 4;
/// How much longer than its TTL a lease may live in peace: an election, and what has piled up.
const END_SLACK_US: u64 = 25 * SECOND;

/// Whoever has a lease, or is to have one.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// Under whose identity it writes.
    client: usize,
    stage: Stage,
    /// How many leases it may still wish for.
    wishes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Idle,
    /// This operation grants it.
    Granting {
        operation: usize,
        id: Option<LeaseId>,
        ttl_us: u64,
    },
    Holding {
        name: LeaseName,
        ttl_us: u64,
        until_us: u64,
    },
    /// This operation ends it.
    Revoking {
        operation: usize,
    },
    /// Just when its time is over, it is revoked and its id is granted again, more than once and
    /// without a pause: an end that the leader has ordered meanwhile is about a lease before.
    Regranting {
        id: LeaseId,
        from_us: u64,
        times: u32,
    },
}

/// A question that was sent, and not answered or lost.
pub struct Asked {
    name: LeaseName,
    sent_us: u64,
    /// The contender for a lock that asks.
    rival: Option<usize>,
}

/// A lease that is, as the one history has it.
#[derive(Clone, Copy, Debug)]
struct Alive {
    ttl_us: u64,
    /// When it was last granted or kept alive, for certain.
    since_us: u64,
}

/// All leases of the one history.
#[derive(Default)]
pub struct LeaseBook {
    alive: BTreeMap<LeaseName, Alive>,
    /// When leases ended because their time was over, and how long it was.
    ended: BTreeMap<LeaseName, (u64, u64)>,
    /// When their time was over at the earliest.
    over_us: BTreeMap<LeaseName, u64>,
    /// How often each id was granted.
    grants: BTreeMap<LeaseId, u64>,
    pub granted: u64,
    pub kept_alive: u64,
}

impl LeaseBook {
    /// A replica is the first to apply an entry that changes leases like this; `record`: it is the
    /// leader's own.
    pub fn changed(&mut self, now_us: u64, events: &[LeaseEvent], record: bool) -> Verdict {
        for event in events {
            match event {
                LeaseEvent::Is(LeaseState { name, ttl_ms, .. }) => {
                    let ttl_us = ttl_ms * 1_000;
                    if self.alive.insert(*name, Alive { ttl_us, since_us: now_us }).is_none() {
                        self.granted += 1;
                        *self.grants.entry(name.id).or_default() += 1;
                    }
                }
                LeaseEvent::Ended(name) => {
                    let Some(Alive { ttl_us, since_us }) = self.alive.remove(name) else {
                        continue;
                    };
                    if record {
                        ensure!(
                            now_us >= since_us + ttl_us,
                            "lease {name} of {ttl_us} µs ends {} µs after it was alive",
                            now_us - since_us
                        );
                        self.ended.insert(*name, (now_us, ttl_us));
                        self.over_us.insert(*name, since_us + ttl_us);
                    }
                }
                LeaseEvent::Replaced => {}
            }
        }
        Ok(())
    }

    /// A holder is told that the keep-alive of `sent_us` has been heard.
    fn kept_alive(&mut self, name: LeaseName, sent_us: u64) -> Verdict {
        self.kept_alive += 1;
        if let Some(alive) = self.alive.get_mut(&name) {
            alive.since_us = alive.since_us.max(sent_us);
        }
        // The answer may be about another lease, where the id was granted again.
        let is_only = self.grants.get(&name.id) == Some(&1);
        if let Some((ended_us, ttl_us)) = self.ended.get(&name).filter(|_| is_only) {
            ensure!(
                *ended_us >= sent_us + ttl_us,
                "lease {name} of {ttl_us} µs was kept alive at {sent_us} and ended at {ended_us}"
            );
        }
        Ok(())
    }

    /// When an end can have been ordered at the earliest that is in the history.
    pub fn over_us(&self, name: LeaseName) -> u64 {
        self.over_us.get(&name).copied().unwrap_or(0)
    }

    /// When the time of a lease is over, if nobody keeps it alive any more.
    fn over_at_us(&self, name: LeaseName) -> Option<u64> {
        self.alive.get(&name).map(|alive| alive.since_us + alive.ttl_us)
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    /// The longest time of those that are.
    fn ttl_us_max(&self) -> u64 {
        self.alive.values().map(|alive| alive.ttl_us).max().unwrap_or(0)
    }
}

/// The leases of the model: which there are, by their ids.
#[derive(Clone, Debug, Default)]
pub struct ModelLeases(BTreeMap<LeaseId, LeaseName>);

impl ModelLeases {
    /// Grants one at a time; what the write comes to.
    pub fn grant(&self, grant: &LeaseGrant, at: Timestamp, most: u32) -> OpResult {
        match self.0.contains_key(&grant.id_at(at)) {
            true => OpResult::LeaseExists,
            false if self.0.len() >= most as usize => OpResult::TooManyLeases,
            false => OpResult::Done,
        }
    }

    pub fn has(&self, id: LeaseId) -> bool {
        self.0.contains_key(&id)
    }

    pub fn add(&mut self, name: LeaseName) {
        self.0.insert(name.id, name);
    }

    pub fn remove(&mut self, id: LeaseId) -> Option<LeaseName> {
        self.0.remove(&id)
    }

    /// Applies the leader's record; the leases that have ended.
    pub fn apply(&mut self, record: &LeaseRecord) -> Vec<LeaseName> {
        let is_there = |name: &&LeaseName| self.0.get(&name.id) == Some(*name);
        let ended: Vec<LeaseName> = record.ends.iter().filter(is_there).copied().collect();
        for name in &ended {
            self.0.remove(&name.id);
        }
        ended
    }

    /// What an entry has changed: the leases that were granted, and those that ended.
    pub fn changes_since(&self, before: &ModelLeases, action: &Action) -> Vec<LeaseEvent> {
        let ended = before.0.values().filter(|name| !self.is(**name));
        let mut events: Vec<LeaseEvent> = ended.copied().map(LeaseEvent::Ended).collect();
        if let Action::Write { op: WriteOp::LeaseGrant(grant), .. } = action {
            let granted = self.0.values().filter(|name| !before.is(**name));
            let (ttl_ms, rest_ms) = (grant.ttl_ms, grant.ttl_ms);
            events.extend(
                granted.map(|name| LeaseEvent::Is(LeaseState { name: *name, ttl_ms, rest_ms })),
            );
        }
        events
    }

    /// Those that there are, some that may be, and one that never is.
    pub fn ids(&self) -> Vec<LeaseId> {
        let some = (1..=3).chain([1_000_000]).map(LeaseId);
        self.0.keys().copied().chain(some).collect()
    }

    /// Whether there is this very lease.
    pub fn is(&self, name: LeaseName) -> bool {
        self.0.get(&name.id) == Some(&name)
    }
}

impl World {
    /// Lets somebody hold one lease after the other.
    pub fn add_holder(&mut self, wishes: usize) {
        let client = self.add_client(Memory::Session, 8, 6 * SECOND);
        self.holders.push(Holder { client, stage: Stage::Idle, wishes });
        let holder = self.holders.len() - 1;
        self.after(0, Event::Hold { holder });
    }

    /// Nobody wishes for a lease, or keeps one alive, any more.
    pub fn let_leases_end(&mut self) {
        for holder in &mut self.holders {
            holder.wishes = 0;
            if let Stage::Holding { until_us, .. } = &mut holder.stage {
                *until_us = 0;
            }
        }
    }

    /// All leases end, once nobody keeps one alive.
    pub fn leases_end(&mut self) -> Verdict {
        let patience_us = self.checker.leases.ttl_us_max() + END_SLACK_US;
        let ended = self.run_until(patience_us, |world| world.checker.leases.is_empty())?;
        ensure!(ended, "leases live on that nobody keeps alive");
        Ok(())
    }

    /// A holder does the next thing.
    pub fn hold(&mut self, holder: usize) {
        let Holder { client, stage, wishes, .. } = self.holders[holder];
        let next = match stage {
            Stage::Idle if wishes == 0 => return,
            Stage::Idle => {
                self.holders[holder].wishes -= 1;
                let id = self.rng.chance(300).then(|| LeaseId(1 + self.rng.below(CHOSEN_IDS)));
                let ttl_ms = self.rng.pick(&[1_000, 1_300, 2_000, 4_000]);
                let operation = self.write(client, None, LeaseGrant { id, ttl_ms }.into());
                Stage::Granting { operation, id, ttl_us: ttl_ms * 1_000 }
            }
            Stage::Granting { operation, id, ttl_us } if self.ended(operation) => {
                match self.came_to(operation) {
                    Some((granted, OpResult::Done)) => {
                        let id = id.unwrap_or(LeaseId(granted.0 as u64));
                        let name = LeaseName { id, granted };
                        // In peace nobody keeps one alive any more.
                        let longest_us = if wishes > 0 { 8 * SECOND } else { 0 };
                        let until_us = self.now_us + self.rng.range(0..=longest_us);
                        Stage::Holding { name, ttl_us, until_us }
                    }
                    _ => Stage::Idle,
                }
            }
            Stage::Holding { until_us, name, .. }
                if until_us <= self.now_us
                    && wishes > 0
                    && name.id.0 <= CHOSEN_IDS
                    && self.rng.chance(700) =>
            {
                let over_us = self.checker.leases.over_at_us(name).unwrap_or(self.now_us);
                let from_us = over_us.saturating_sub(self.rng.range(0..=40 * MILLISECOND));
                Stage::Regranting { id: name.id, from_us, times: 8 }
            }
            Stage::Regranting { times: 0, .. } => Stage::Idle,
            Stage::Regranting { from_us, .. } if self.now_us < from_us => stage,
            Stage::Regranting { id, from_us, times } => {
                // Through one server, which orders them as they come.
                let server = self.leader();
                self.write(client, server, LeaseRevoke { id, keys_max: Some(64) }.into());
                let ttl_ms = self.rng.pick(&[1_000, 2_000]);
                self.write(client, server, LeaseGrant { id: Some(id), ttl_ms }.into());
                Stage::Regranting { id, from_us, times: times - 1 }
            }
            Stage::Holding { until_us, name, .. } if until_us <= self.now_us => {
                match self.rng.chance(300) && wishes > 0 {
                    true => {
                        let keys_max = self.rng.pick(&[None, Some(64)]);
                        let revoke = LeaseRevoke { id: name.id, keys_max };
                        let operation = self.write(client, None, revoke.into());
                        Stage::Revoking { operation }
                    }
                    false => Stage::Idle,
                }
            }
            Stage::Holding { name, .. } => {
                self.ask_lease(name);
                stage
            }
            Stage::Revoking { operation } if self.ended(operation) => Stage::Idle,
            waiting => waiting,
        };
        self.holders[holder].stage = next;
        let pause_us = match next {
            Stage::Holding { ttl_us, .. } => self.rng.range(ttl_us / 8..=ttl_us / 2),
            Stage::Regranting { from_us, .. } if self.now_us < from_us => from_us - self.now_us,
            Stage::Regranting { .. } => self.rng.range(MILLISECOND..=20 * MILLISECOND),
            _ => self.rng.range(MILLISECOND..=200 * MILLISECOND),
        };
        self.after(pause_us, Event::Hold { holder });
    }

    /// Keeps a lease alive, through any server.
    fn ask_lease(&mut self, name: LeaseName) {
        let server = self.rng.index(self.servers.len());
        self.ask_lease_at(server, name, 0, None);
    }

    /// Keeps the lease of a contender for a lock alive, through any server.
    pub fn ask_lease_of_rival(&mut self, name: LeaseName, rival: usize) {
        let server = self.rng.index(self.servers.len());
        self.ask_lease_at(server, name, 0, Some(rival));
    }

    fn ask_lease_at(
        &mut self,
        server: usize,
        name: LeaseName,
        pause_us: u64,
        rival: Option<usize>,
    ) {
        let request = self.lease_questions.len() as u64;
        let sent_us = self.now_us + pause_us;
        self.lease_questions.push(Some(Asked { name, sent_us, rival }));
        let token = RequestToken { connection: HOLDERS_CONNECTION, request };
        let delay_us = pause_us + self.rng.range(30..=2 * MILLISECOND);
        self.after(delay_us, Event::LeaseQuestion { server, token });
    }

    /// A server begins to lead: some holders ask at the worst moment, which by chance they seldom
    /// do. Where another server has not noticed, they keep their leases alive there a last time;
    /// and those whose leases have just ended ask the new leader, which may not have applied that.
    pub fn ask_changing_leaders(&mut self, leader: usize) {
        let is_late = |ended_us: u64| ended_us + 3 * SECOND >= self.now_us;
        let ended = self.checker.leases.ended.iter();
        let ended: Vec<LeaseName> =
            ended.filter(|(_, (at_us, _))| is_late(*at_us)).map(|(name, _)| *name).collect();
        for name in ended {
            for _ in 0..3 {
                let pause_us = self.rng.range(0..=100 * MILLISECOND);
                self.ask_lease_at(leader, name, pause_us, None);
            }
        }
        let is_deposed = |(server, status): &(usize, &NodeStatus)| {
            *server != leader && status.role == Role::Leader
        };
        let Some((deposed, _)) = self.statuses().find(is_deposed) else { return };
        for holder in 0..self.holders.len() {
            let Stage::Holding { name, .. } = self.holders[holder].stage else { continue };
            if self.rng.chance(500) {
                let pause_us = self.rng.range(0..=600 * MILLISECOND);
                self.ask_lease_at(deposed, name, pause_us, None);
                self.holders[holder].stage = Stage::Idle;
            }
        }
    }

    /// The question arrives at its server.
    pub fn lease_question(&mut self, server: usize, token: RequestToken) -> Verdict {
        let Some(Asked { name, .. }) = &self.lease_questions[token.request as usize] else {
            return Ok(());
        };
        let question = LeaseQuestion::KeepAlive(vec![name.id]);
        let Some(process) = &mut self.servers[server].process else { return Ok(()) };
        process.owed.insert(token, self.now_us);
        let client = ([127, 0, 0, 4], 9).into();
        self.input(server, Input::Leases { token, client, question })
    }

    /// A server answers it; the answer takes its way.
    pub fn lease_replied(&mut self, token: RequestToken, reply: Reply) {
        let delay_us = self.rng.range(30..=30 * MILLISECOND);
        self.after(delay_us, Event::LeaseAnswer { token, reply });
    }

    /// The holder has the answer.
    pub fn lease_answer(&mut self, token: RequestToken, reply: Reply) -> Verdict {
        let Some(asked) = self.lease_questions[token.request as usize].take() else {
            return Ok(());
        };
        let Asked { name, sent_us, rival } = asked;
        if let (Some(rival), Reply::LeasesOk(LeaseAnswer::KeptAlive(left))) = (rival, &reply) {
            let is_there = left.iter().any(Option::is_some);
            self.rival_lease_answer(rival, name, sent_us, is_there);
        }
        match reply {
            Reply::LeasesOk(LeaseAnswer::KeptAlive(left)) => match left[..] {
                [Some(left_ms)] if self.checker.model.leases.is(name) => {
                    let ttl_us = self.checker.leases.alive.get(&name).map(|alive| alive.ttl_us);
                    ensure!(ttl_us == Some(left_ms * 1_000), "{name} has {left_ms} ms left");
                    self.checker.leases.kept_alive(name, sent_us)?;
                }
                // The lease has ended since, or there is another one of that id.
                [Some(_)] => self.checker.leases.kept_alive(name, sent_us)?,
                [None] => {
                    let is_there = self.checker.model.leases.is(name);
                    ensure!(!is_there, "{name} is said to be gone, and is not");
                }
                _ => ensure!(false, "a question about one lease is answered with {left:?}"),
            },
            Reply::Error(error) => {
                let expected = matches!(
                    error.code,
                    ErrorCode::NoMajority
                        | ErrorCode::Busy { .. }
                        | ErrorCode::ShuttingDown
                        | ErrorCode::Internal
                );
                ensure!(expected, "a question about a lease was refused: {error:?}");
            }
            other => ensure!(false, "a question about a lease is answered with {other:?}"),
        }
        Ok(())
    }
}
