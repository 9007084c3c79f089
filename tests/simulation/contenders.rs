//! Programs that contend for one lock, through all faults, and what must hold of them.
//!
//! Each does what the library's state machine says ([`acervo::client::contender`]), with questions
//! and watches that are lost and late. It judges by its own clock whether its lease is valid, from
//! when it sent what was answered; some hold for a while and leave, some write to their key
//! meanwhile, some give up before it is their turn, and some are never heard of again. Rules, by
//! the simulator's own time:
//!
//! - no two hold at once, as each judges for itself;
//! - the fences of those who come to hold rise;
//! - no two with a valid lease wait for the same key;
//! - once a majority is well, everybody who waits has his turn.

use acervo::client::WatchEvent;
use acervo::client::contender::{Contender, ContestName, Step, WatchedKey};
use acervo::model::{
    Comparison, LeaseGrant, LeaseName, OpResult, Row, Timestamp, Txn, TxnAnswer, TxnOp, TxnResult,
    TxnRow, TxnVersion, Version,
};

use crate::checker::{Verdict, ensure};
use crate::clients::{Memory, Outcome};
use crate::world::{Event, MILLISECOND, SECOND, World};

/// Behind all keys that others write.
const NAME: &[u8] = b"~lock";
/// How long the last one may have to wait in peace for each of those before him: their leases, an
/// election, and what has piled up.
const TURN_US: u64 = 30 * SECOND;

/// In how many of a thousand moments one that waits gives up: about once in two seconds.
const GIVES_UP: u64 = 10;

/// A program that wants the lock.
pub struct Rival {
    /// Under whose identity it writes.
    client: usize,
    /// How often it may still want the lock.
    wishes: usize,
    stage: RivalStage,
}

enum RivalStage {
    Idle,
    /// This operation grants its lease.
    Granting {
        operation: usize,
        asked_us: u64,
        ttl_us: u64,
    },
    /// This one puts its key.
    Entering {
        operation: usize,
        lease: RivalLease,
        contender: Box<Contender>,
    },
    Contending(Box<Contending>),
    /// This one removes its key.
    Leaving {
        operation: usize,
    },
}

#[derive(Clone, Copy)]
struct RivalLease {
    name: LeaseName,
    ttl_us: u64,
    /// Until when it has been kept alive for certain.
    valid_until_us: u64,
    /// When to ask for it again.
    due_us: u64,
    /// A server has said that it is gone.
    is_gone: bool,
}

struct Contending {
    contender: Contender,
    fence: Timestamp,
    lease: RivalLease,
    step: Step,
    /// The read that is under way.
    look: Option<usize>,
    own: WatchedKey,
    /// The watcher of its own key.
    own_watcher: usize,
    /// That of the key before it.
    ahead_watcher: Option<usize>,
    /// Since when it holds, and until when it wants to.
    holds_until_us: Option<u64>,
    /// A write to its key that is under way.
    rewriting: Option<usize>,
}

impl Contending {
    fn is_valid(&self, now_us: u64) -> bool {
        !self.lease.is_gone && now_us < self.lease.valid_until_us
    }
}

/// What all contenders have come to.
#[derive(Default)]
pub struct ContestBook {
    last_fence: Timestamp,
    pub held: u64,
    pub waited: u64,
}

fn name() -> ContestName {
    match ContestName::new(NAME) {
        Ok(name) => name,
        Err(error) => panic!("{error}"),
    }
}

/// The rows of a transaction that reads one range.
fn rows_of(answer: &TxnAnswer) -> Vec<Row> {
    let Some([TxnResult::Range { rows, has_more: false, .. }]) = answer.results.as_deref() else {
        panic!("{answer:?} has not all contenders");
    };
    let of = |TxnRow { key, found }: &TxnRow| {
        let TxnVersion { timestamp, facts, value } = found.clone();
        let found = Version { timestamp, value: value.unwrap_or_default(), facts: Some(facts) };
        Row { key: key.clone(), found: Some(found) }
    };
    rows.iter().map(of).collect()
}

impl World {
    /// Lets somebody want the lock again and again.
    pub fn add_rival(&mut self, wishes: usize) {
        let client = self.add_client(Memory::Session, 8, 6 * SECOND);
        self.rivals.push(Rival { client, wishes, stage: RivalStage::Idle });
        let rival = self.rivals.len() - 1;
        self.after(0, Event::Contend { rival });
    }

    /// Nobody wants the lock any more, who does not wait for it already, and whoever has it leaves.
    pub fn let_rivals_end(&mut self) {
        for rival in &mut self.rivals {
            rival.wishes = 0;
            if let RivalStage::Contending(contending) = &mut rival.stage
                && contending.holds_until_us.is_some()
            {
                contending.holds_until_us = Some(0);
            }
        }
    }

    /// All who wait have their turn, in their order.
    pub fn rivals_end(&mut self) -> Verdict {
        let patience_us = TURN_US * (1 + self.rivals.len() as u64);
        let is_idle = |rival: &Rival| matches!(rival.stage, RivalStage::Idle);
        let ended = self.run_until(patience_us, |world| world.rivals.iter().all(is_idle))?;
        let stands = |rival: &Rival| match &rival.stage {
            RivalStage::Contending(contending) => format!("{:?}", contending.contender),
            _ => String::new(),
        };
        let standing: Vec<String> = self.rivals.iter().map(stands).collect();
        ensure!(ended, "some wait for the lock for ever: {standing:?}");
        Ok(())
    }

    /// A contender does the next thing.
    pub fn contend(&mut self, rival: usize) -> Verdict {
        let Rival { client, wishes, .. } = self.rivals[rival];
        let stage = std::mem::replace(&mut self.rivals[rival].stage, RivalStage::Idle);
        let next = match stage {
            RivalStage::Idle if wishes == 0 => return Ok(()),
            RivalStage::Idle => {
                self.rivals[rival].wishes -= 1;
                let ttl_ms = self.rng.pick(&[1_000, 2_000, 4_000]);
                let grant = LeaseGrant { id: None, ttl_ms };
                let operation = self.write(client, None, grant.into());
                let (asked_us, ttl_us) = (self.now_us, ttl_ms * 1_000);
                RivalStage::Granting { operation, asked_us, ttl_us }
            }
            RivalStage::Granting { operation, asked_us, ttl_us } if self.ended(operation) => {
                match self.came_to(operation) {
                    Some((granted, OpResult::Done)) => {
                        let id = acervo::model::LeaseId(granted.0 as u64);
                        let lease = RivalLease {
                            name: LeaseName { id, granted },
                            ttl_us,
                            valid_until_us: asked_us + ttl_us,
                            due_us: asked_us + ttl_us / 3,
                            is_gone: false,
                        };
                        let contender = Box::new(Contender::new(name(), id));
                        let entering = contender.entering(b"");
                        let operation = self.write(client, None, entering.into());
                        RivalStage::Entering { operation, lease, contender }
                    }
                    _ => RivalStage::Idle,
                }
            }
            RivalStage::Entering { operation, lease, contender } if self.ended(operation) => {
                match self.came_to(operation) {
                    Some((version, OpResult::Txn { branches: 1 })) => {
                        self.entered(*contender, lease, version)
                    }
                    _ => RivalStage::Idle,
                }
            }
            RivalStage::Contending(contending) => self.contends(rival, contending)?,
            RivalStage::Leaving { operation } if self.ended(operation) => RivalStage::Idle,
            waiting => waiting,
        };
        self.rivals[rival].stage = next;
        let pause_us = self.rng.range(MILLISECOND..=40 * MILLISECOND);
        self.after(pause_us, Event::Contend { rival });
        Ok(())
    }

    fn entered(
        &mut self,
        mut contender: Contender,
        lease: RivalLease,
        fence: Timestamp,
    ) -> RivalStage {
        let step = contender.entered(fence, Some(lease.name.id));
        let own = contender.own(fence);
        let own_watcher = self.add_watcher_of(own.key().clone(), fence);
        RivalStage::Contending(Box::new(Contending {
            contender,
            fence,
            lease,
            step,
            look: None,
            own,
            own_watcher,
            ahead_watcher: None,
            holds_until_us: None,
            rewriting: None,
        }))
    }

    fn contends(
        &mut self,
        rival: usize,
        mut contending: Box<Contending>,
    ) -> Result<RivalStage, crate::checker::Violation> {
        let client = self.rivals[rival].client;
        let events = self.take_told(contending.own_watcher);
        let has_gone = events.iter().any(|event| contending.own.has_gone(event));
        if has_gone || !contending.is_valid(self.now_us) {
            contending.step = contending.contender.lost();
        } else if contending.lease.due_us <= self.now_us {
            contending.lease.due_us = self.now_us + contending.lease.ttl_us / 6;
            self.ask_lease_of_rival(contending.lease.name, rival);
        }
        let next = match contending.step.clone() {
            Step::Look => match contending.look {
                None => {
                    contending.look = Some(self.read_contenders(client));
                    None
                }
                Some(operation) if self.ended(operation) => {
                    contending.look = None;
                    Some(match self.outcome(operation) {
                        Some(Outcome::Transacted(as_of)) => {
                            let (as_of, answer) = (*as_of, self.txn_answer(operation));
                            rows_of(&answer).iter().for_each(|row| contending.contender.row(row));
                            contending.contender.looked(as_of)
                        }
                        _ => contending.contender.look(contending.fence),
                    })
                }
                Some(_) => None,
            },
            Step::Watch { key, after } => match contending.ahead_watcher {
                None => {
                    self.waits_alone(rival, &key)?;
                    self.contests.waited += 1;
                    contending.ahead_watcher = Some(self.add_watcher_of(key, after));
                    None
                }
                // Whoever is behind it must not take that for its own turn.
                Some(_) if self.rivals[rival].wishes > 0 && self.rng.chance(GIVES_UP) => {
                    return Ok(self.leaves(client, &contending));
                }
                Some(watcher) => {
                    let events: Vec<WatchEvent> = self.take_told(watcher);
                    let mut steps =
                        events.iter().filter_map(|event| contending.contender.ahead(event));
                    let next = steps.next();
                    if next.is_some() {
                        self.end_watcher(watcher);
                        contending.ahead_watcher = None;
                    }
                    next
                }
            },
            Step::Hold { fence } => match contending.holds_until_us {
                None => {
                    self.holds_alone(rival, fence)?;
                    let in_peace = self.rivals[rival].wishes == 0;
                    let longest_us = if in_peace { 0 } else { SECOND };
                    let until_us = self.now_us + self.rng.range(0..=longest_us);
                    contending.holds_until_us = Some(until_us);
                    None
                }
                Some(until_us) if until_us <= self.now_us => {
                    // Some are never heard of again.
                    if self.rng.chance(300) {
                        self.end_watchers(&contending);
                        return Ok(RivalStage::Idle);
                    }
                    return Ok(self.leaves(client, &contending));
                }
                Some(_) => {
                    let is_writing =
                        contending.rewriting.is_some_and(|operation| !self.ended(operation));
                    if !is_writing && self.rng.chance(100) {
                        let key = contending.own.key().clone();
                        let own = Comparison::created(&key).equals(fence);
                        let put = TxnOp::put_with_lease(&key, b"again", contending.lease.name.id);
                        let operation = self.write(client, None, Txn::when(own).then(put).into());
                        contending.rewriting = Some(operation);
                    }
                    None
                }
            },
            Step::Lose => {
                self.end_watchers(&contending);
                return Ok(RivalStage::Idle);
            }
        };
        if let Some(step) = next {
            contending.step = step;
        }
        Ok(RivalStage::Contending(contending))
    }

    /// A contender removes its key.
    fn leaves(&mut self, client: usize, contending: &Contending) -> RivalStage {
        self.end_watchers(contending);
        let key = contending.own.key().clone();
        let own = Comparison::created(&key).equals(contending.fence);
        let del = TxnOp::Del { key, keeps_history: false, tells_previous: false };
        let operation = self.write(client, None, Txn::when(own).then(del).into());
        RivalStage::Leaving { operation }
    }

    fn end_watchers(&mut self, contending: &Contending) {
        self.end_watcher(contending.own_watcher);
        if let Some(watcher) = contending.ahead_watcher {
            self.end_watcher(watcher);
        }
    }

    /// Reads all contenders, linearizably.
    fn read_contenders(&mut self, client: usize) -> usize {
        let range = match name().range() {
            Ok(range) => range,
            Err(error) => panic!("{error}"),
        };
        self.read_at_once(client, Txn::default().then(TxnOp::range(range, 1_000)))
    }

    /// The others that contend, with a lease that is valid as they judge.
    fn valid_others(&self, rival: usize) -> impl Iterator<Item = &Contending> {
        let others = self.rivals.iter().enumerate().filter(move |(other, _)| *other != rival);
        others.filter_map(move |(_, other)| match &other.stage {
            RivalStage::Contending(contending) if contending.is_valid(self.now_us) => {
                Some(&**contending)
            }
            _ => None,
        })
    }

    /// Somebody comes to hold.
    fn holds_alone(&mut self, rival: usize, fence: Timestamp) -> Verdict {
        for other in self.valid_others(rival) {
            ensure!(
                other.holds_until_us.is_none(),
                "{fence} holds the lock, and so does {}",
                other.fence
            );
        }
        let last = self.contests.last_fence;
        ensure!(fence > last, "{fence} holds the lock after {last}");
        self.contests.last_fence = fence;
        self.contests.held += 1;
        Ok(())
    }

    /// Somebody begins to wait for a key.
    fn waits_alone(&self, rival: usize, ahead: &[u8]) -> Verdict {
        for other in self.valid_others(rival) {
            let waits = matches!(&other.step, Step::Watch { key, .. } if key == ahead);
            ensure!(!waits, "two wait for {ahead:?}");
        }
        Ok(())
    }

    /// A rival is told of its lease, of which it had asked at this time.
    pub fn rival_lease_answer(
        &mut self,
        rival: usize,
        name: LeaseName,
        sent_us: u64,
        is_there: bool,
    ) {
        let RivalStage::Contending(contending) = &mut self.rivals[rival].stage else { return };
        let lease = &mut contending.lease;
        if lease.name != name {
            return;
        }
        if !is_there {
            lease.is_gone = true;
            return;
        }
        lease.valid_until_us = lease.valid_until_us.max(sent_us + lease.ttl_us);
        lease.due_us = sent_us + lease.ttl_us / 3;
    }
}
