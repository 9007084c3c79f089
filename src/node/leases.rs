//! When leases end: how long each has left, as the leader counts it.
//!
//! Every node knows all leases, from what its state machine tells it. Only a leader counts, from
//! when it has applied the first entry of its own term. Then it knows every lease that was granted
//! and every end that was ordered before, and gives each lease its whole TTL again, or what an
//! earlier leader has noted that it has left.
//!
//! Rule: **a lease is not ended before its TTL has passed since it was granted, or since the
//! request was sent that kept it alive last and was answered.** Why it holds:
//!
//! - *Leaders.* A keep-alive is answered when the leader has been confirmed as leader after the
//!   request came (`node::lease_questions`). So the next leader, if there is one, was elected
//!   later, and begins to count later still. Ends that an earlier leader has ordered are either
//!   applied before that, or in no log that can win.
//! - *What is not applied.* A leader that is confirmed and counts may answer before it has applied
//!   what is committed. Everything of earlier terms is applied, and all other entries are its own:
//!   so it knows of each lease whether an end or a revoke of it is on the way, from when it has
//!   proposed it. If one of the leases that are named has such an entry before it, is unknown (it
//!   may be granted by an entry to come) or is noted to have less left, the request waits until
//!   everything is applied that was committed before it was confirmed.
//! - *Clocks.* Time is the driver's monotonic time, of which no step counts for more than
//!   [`STEP_MAX`]. A leader that was stopped for a minute, with the keep-alives of that minute in
//!   its sockets, finds its leases with as much time left as before, but for one step. Timestamps
//!   and the log's clock leap and are not used.
//! - *Stalls.* A keep-alive waits until its leader is confirmed, and some until it has applied what
//!   was committed before: seconds, where a long write is applied. So no lease is ended while a
//!   request to keep it alive is held, and each of these is answered or given up in bounded time.
//! - *Notes.* The remaining time of a long lease that nobody keeps alive is noted in the log now
//!   and then, or it would live for ever through a series of elections. What is noted holds for the
//!   next leader. So a keep-alive of such a lease is answered when the note has been taken back in
//!   the log. A lease that is kept alive every third of its TTL is rarely noted.
//!
//! Leases end by an entry of the log, one at a time under way, which names as many as are due. A
//! lease of which an end is under way is neither alive nor gone: who asks waits for the entry.
//! While disks are full none ends, and one whose time is over may still be kept alive.
//!
//! It leaves out who asks (`node::lease_questions`) and what ending a lease does to its keys
//! (`storage::leases`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use super::clock::micros;
use super::lease_shares::LeaseShares;
use crate::limits::origin_of;
use crate::model::{
    LEASES_PER_PAGE_MAX, LEASES_PER_RECORD_MAX, LeaseAnswer, LeaseEvent, LeaseId, LeaseName,
    LeaseQuestion, LeaseRecord, LeaseShown, LeaseState, LogIndex, Timestamp,
};

/// A step of the monotonic clock counts for no more than this: a tick is 20 ms, and a busy event
/// loop is stalled for some of them. A quarter of the shortest TTL, so that no pause costs a lease
/// more than that.
const STEP_MAX: Duration = Duration::from_millis(250);

/// Which leases have their remaining time noted, and how often.
#[derive(Clone, Copy, Debug)]
pub struct LeaseNotes {
    /// Leases of a shorter TTL are never noted: elections do not go on for long enough to matter.
    pub ttl_min: Duration,
    /// The remaining time is noted when it is less by half a TTL than what is noted, so that a
    /// lease which is kept alive is rarely noted; but by no less than this …
    pub step_min: Duration,
    /// … and by no more: a lease of a year does not begin anew with each leader.
    pub step_max: Duration,
}

impl LeaseNotes {
    /// Those of servers; simulations note more, of which they see something.
    pub const DEFAULT: LeaseNotes = LeaseNotes {
        ttl_min: Duration::from_secs(5 * 60),
        step_min: Duration::from_secs(5 * 60),
        step_max: Duration::from_secs(3600),
    };
}

impl Default for LeaseNotes {
    fn default() -> LeaseNotes {
        LeaseNotes::DEFAULT
    }
}

/// Stale entries of the heap that are kept beside as many as there are leases.
const STALE_WAKES_MAX: usize = 1024;

/// Leases that are looked at in one flush, in about a millisecond; the next ones in the next one.
const LOOKS_MAX: usize = 4096;

/// A lease whose time is over is looked at again after this while somebody asks to keep it alive:
/// soon beside its TTL, and later than the next flush.
const ASKED_WAIT: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has time left, as far as the leader has looked.
    Running,
    /// Its time is over, and its end is to be proposed.
    Over,
    /// Its end is in the log and not applied.
    Ending,
}

#[derive(Debug)]
struct Lease {
    granted: Timestamp,
    ttl_us: u64,
    /// What the next leader gives it.
    noted_us: u64,
    /// When it ends, in [`Leases::time_us`]; of a leader that counts.
    deadline_us: u64,
    /// When the leader is to look at it next: its one entry of the heap that counts.
    wake_us: u64,
    stage: Stage,
    /// It is among [`Leases::over`], though it may have been kept alive since.
    is_listed: bool,
    /// A remaining time of less than the TTL is to be noted, or in the log and not applied.
    is_being_noted: bool,
    /// A note is to be taken back, or that is in the log and not applied.
    is_being_renewed: bool,
}

impl Lease {
    fn new(state: &LeaseState) -> Lease {
        let ttl_us = state.ttl_ms.saturating_mul(1_000);
        Lease {
            granted: state.name.granted,
            ttl_us,
            noted_us: state.rest_ms.saturating_mul(1_000).min(ttl_us),
            deadline_us: 0,
            wake_us: 0,
            stage: Stage::Running,
            is_listed: false,
            is_being_noted: false,
            is_being_renewed: false,
        }
    }

    fn begin(&mut self, time_us: u64, notes: LeaseNotes) {
        self.deadline_us = time_us.saturating_add(self.noted_us);
        (self.stage, self.is_listed) = (Stage::Running, false);
        (self.is_being_noted, self.is_being_renewed) = (false, false);
        self.wake_us = self.next_wake_us(time_us, notes);
    }

    /// When its remaining time is to be noted; `None` if not before something else happens.
    fn note_due_us(&self, notes: LeaseNotes) -> Option<u64> {
        if self.ttl_us < micros(notes.ttl_min) || self.is_being_noted || self.is_being_renewed {
            return None;
        }
        let step_us = (self.ttl_us / 2).clamp(micros(notes.step_min), micros(notes.step_max));
        Some(self.deadline_us.saturating_sub(self.noted_us).saturating_add(step_us))
    }

    fn next_wake_us(&self, time_us: u64, notes: LeaseNotes) -> u64 {
        let look_again_us = time_us.saturating_add(micros(notes.step_min));
        self.note_due_us(notes).unwrap_or(look_again_us).min(self.deadline_us)
    }

    /// Notes that its time is over. It is listed once, however often that is while none may end.
    fn is_over(&mut self, id: LeaseId, over: &mut Vec<LeaseId>) {
        self.stage = Stage::Over;
        if !std::mem::replace(&mut self.is_listed, true) {
            over.push(id);
        }
    }

    /// Whether the next leader may give it less than its whole TTL.
    fn has_note(&self) -> bool {
        self.noted_us < self.ttl_us || self.is_being_noted
    }
}

/// All leases of the group, and at a leader the time that each has left.
#[derive(Debug, Default)]
pub(super) struct Leases {
    notes: LeaseNotes,
    known: BTreeMap<LeaseId, Lease>,
    /// Monotonic time, of which no step counts for more than [`STEP_MAX`].
    time_us: u64,
    /// The machine's monotonic clock when it was last read.
    last_us: Option<u64>,
    /// This node leads and has applied the first entry of its term.
    is_counting: bool,
    /// When to look at leases. Entries that are not a lease's `wake_us` are stale.
    wakes: BinaryHeap<Reverse<(u64, LeaseId)>>,
    /// Leases that are [`Stage::Over`], or were.
    over: Vec<LeaseId>,
    /// Leases whose remaining time is to be noted.
    low: Vec<LeaseId>,
    /// Leases that were kept alive and whose note is to be taken back.
    renewed: Vec<LeaseId>,
    /// The record that this leader has proposed and that is not applied.
    under_way: Option<(LogIndex, LeaseRecord)>,
    /// The entries of this leader that are not applied and may revoke a lease, in their order; and
    /// of each such lease the last one.
    revokes: VecDeque<(LogIndex, LeaseId)>,
    last_revokes: HashMap<LeaseId, LogIndex>,
    /// What this leader has granted to each origin.
    shares: LeaseShares,
}

impl Leases {
    /// Those that the state machine has.
    pub fn new(states: &[LeaseState], notes: LeaseNotes) -> Leases {
        let known = states.iter().map(|state| (state.name.id, Lease::new(state))).collect();
        Leases { notes, known, ..Leases::default() }
    }

    /// Notes the machine's monotonic time. To be called often, because a long step counts for
    /// little.
    pub fn advance(&mut self, monotonic_us: u64) {
        let last_us = self.last_us.replace(monotonic_us).unwrap_or(monotonic_us);
        self.time_us += monotonic_us.saturating_sub(last_us).min(micros(STEP_MAX));
    }

    /// The number of leases that have not ended.
    pub fn count(&self) -> u32 {
        // As many as the group may have, which is a u32.
        self.known.len() as u32
    }

    /// Whether this leader counts.
    pub fn is_counting(&self) -> bool {
        self.is_counting
    }

    /// This node leads and has applied everything of earlier terms.
    pub fn begin_counting(&mut self) {
        assert!(!self.is_counting && self.under_way.is_none(), "a leader counts already");
        self.is_counting = true;
        let (time_us, notes) = (self.time_us, self.notes);
        self.known.values_mut().for_each(|lease| lease.begin(time_us, notes));
        self.rebuild_wakes();
    }

    /// This node does not lead any more, or in another term.
    pub fn lost_leadership(&mut self) {
        self.is_counting = false;
        self.forget_plans();
    }

    fn forget_plans(&mut self) {
        self.wakes.clear();
        self.over.clear();
        self.low.clear();
        self.renewed.clear();
        self.under_way = None;
        self.revokes.clear();
        self.last_revokes.clear();
        self.shares = LeaseShares::default();
    }

    /// Whether this leader grants another lease to whoever has this address, where there may be
    /// `most`.
    pub fn may_grant(&self, address: IpAddr, most: usize) -> bool {
        self.shares.may_grant(origin_of(address), self.known.len(), most)
    }

    /// This leader has proposed to grant a lease to whoever has this address, in the entry at
    /// `index`, later than all before.
    pub fn grant_proposed(&mut self, name: LeaseName, address: IpAddr, index: LogIndex) {
        self.shares.proposed(index, name, origin_of(address));
    }

    /// This leader has proposed to revoke a lease, in the entry at `index`, later than all before.
    /// There may be no lease of that id, now or then.
    pub fn revoke_proposed(&mut self, id: LeaseId, index: LogIndex) {
        self.revokes.push_back((index, id));
        self.last_revokes.insert(id, index);
    }

    /// Notes what the entries up to `index` have changed. Returns whether a record of this leader
    /// was among them: what waited for it may be answered.
    pub fn applied(&mut self, index: LogIndex, events: &[LeaseEvent]) -> bool {
        for event in events {
            match event {
                LeaseEvent::Replaced => {
                    assert!(!self.is_counting, "a leader's state is replaced");
                    self.known.clear();
                }
                LeaseEvent::Is(state) => self.set(state),
                LeaseEvent::Ended(name) => {
                    let is_it = |lease: &Lease| lease.granted == name.granted;
                    if self.known.get(&name.id).is_some_and(is_it) {
                        self.known.remove(&name.id);
                        self.shares.ended(*name);
                    }
                }
            }
        }
        let known = &self.known;
        let granted = |name: LeaseName| known.get(&name.id).map(|lease| lease.granted);
        self.shares.applied(index, |name| granted(name) == Some(name.granted));
        while let Some((revoke, id)) = self.revokes.pop_front_if(|(revoke, _)| *revoke <= index) {
            if self.last_revokes.get(&id) == Some(&revoke) {
                self.last_revokes.remove(&id);
            }
        }
        let Some((_, record)) = self.under_way.take_if(|(proposed, _)| *proposed <= index) else {
            return false;
        };
        for name in record.ends {
            // It had too many keys to go with the others.
            if let Some(lease) = named(&mut self.known, name) {
                lease.is_over(name.id, &mut self.over);
            }
        }
        for (name, rest_ms) in record.rests {
            if let Some(lease) = named(&mut self.known, name) {
                lease.is_being_noted = false;
                // A keep-alive that came after a note was proposed still waits for its own entry.
                lease.is_being_renewed &= rest_ms.saturating_mul(1_000) < lease.ttl_us;
            }
        }
        true
    }

    fn set(&mut self, state: &LeaseState) {
        if let Some(lease) = named(&mut self.known, state.name) {
            lease.noted_us = Lease::new(state).noted_us;
            return;
        }
        let mut lease = Lease::new(state);
        if self.is_counting {
            lease.begin(self.time_us, self.notes);
            self.wakes.push(Reverse((lease.wake_us, state.name.id)));
        }
        self.known.insert(state.name.id, lease);
        // Leases that are granted and revoked leave stale entries for as long as they would have
        // lived.
        if self.wakes.len() > 2 * self.known.len() + STALE_WAKES_MAX {
            self.rebuild_wakes();
        }
    }

    fn rebuild_wakes(&mut self) {
        let running = self.known.iter().filter(|(_, lease)| lease.stage == Stage::Running);
        self.wakes = running.map(|(id, lease)| Reverse((lease.wake_us, *id))).collect();
    }

    /// Answers a question that was confirmed. `is_applied` says whether everything is applied that
    /// was committed before that. Without an answer the question waits until that is so, and if it
    /// is, until a record of this leader is applied.
    pub fn answer(&mut self, question: &LeaseQuestion, is_applied: bool) -> Option<LeaseAnswer> {
        assert!(self.is_counting, "a node that does not count answers {question:?}");
        match question {
            LeaseQuestion::KeepAlive(ids) => {
                let may_answer = is_applied || ids.iter().all(|id| self.is_running(*id));
                let left = if may_answer { self.keep_alive(ids) } else { None };
                left.map(LeaseAnswer::KeptAlive)
            }
            _ if !is_applied => None,
            LeaseQuestion::Show(id) => {
                let leases = self.shown((Bound::Included(*id), Bound::Included(*id)));
                Some(LeaseAnswer::Leases { leases, has_more: false })
            }
            LeaseQuestion::List { after } => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let mut leases = self.shown((from, Bound::Unbounded));
                let has_more = leases.len() > LEASES_PER_PAGE_MAX;
                leases.truncate(LEASES_PER_PAGE_MAX);
                Some(LeaseAnswer::Leases { leases, has_more })
            }
        }
    }

    /// Leases of a range, one more than a page may have at most.
    fn shown(&self, range: (Bound<LeaseId>, Bound<LeaseId>)) -> Vec<LeaseShown> {
        let found = self.known.range(range).take(LEASES_PER_PAGE_MAX + 1);
        found
            .map(|(id, lease)| LeaseShown {
                name: LeaseName { id: *id, granted: lease.granted },
                ttl_ms: lease.ttl_us / 1_000,
                left_ms: lease.deadline_us.saturating_sub(self.time_us) / 1_000,
            })
            .collect()
    }

    /// Whether there is this lease, and no entry of the log ends it.
    fn is_running(&self, id: LeaseId) -> bool {
        let is_ending = |lease: &Lease| lease.stage == Stage::Ending;
        self.known.get(&id).is_some_and(|lease| !is_ending(lease))
            && !self.last_revokes.contains_key(&id)
    }

    /// Gives leases their whole time again; how long each has left, in milliseconds, and `None` for
    /// one that is gone.
    fn keep_alive(&mut self, ids: &[LeaseId]) -> Option<Vec<Option<u64>>> {
        let mut left = Vec::with_capacity(ids.len());
        let mut waits = false;
        for id in ids {
            let Some(lease) = self.known.get_mut(id) else {
                left.push(None);
                continue;
            };
            if lease.stage == Stage::Ending {
                waits = true;
                continue;
            }
            lease.deadline_us = self.time_us.saturating_add(lease.ttl_us);
            if lease.stage == Stage::Over {
                lease.stage = Stage::Running;
                lease.wake_us = lease.next_wake_us(self.time_us, self.notes);
                self.wakes.push(Reverse((lease.wake_us, *id)));
            }
            if lease.has_note() && !lease.is_being_renewed {
                lease.is_being_renewed = true;
                self.renewed.push(*id);
            }
            waits |= lease.is_being_renewed;
            left.push(Some(lease.ttl_us / 1_000));
        }
        (!waits).then_some(left)
    }

    /// The record to propose now, if one is due and none is under way. What is in it has to be
    /// given back, to [`proposed`](Leases::proposed) or [`refused`](Leases::refused). Unless leases
    /// `may_end` those that are over wait, and may still be kept alive. `is_asked` tells of which
    /// leases a request to keep them alive is held: they do not end now.
    pub fn next_record(
        &mut self,
        may_end: bool,
        is_asked: impl Fn(LeaseId) -> bool,
    ) -> Option<LeaseRecord> {
        if !self.is_counting || self.under_way.is_some() {
            return None;
        }
        self.look(&is_asked);
        let mut record = LeaseRecord::default();
        let known = &mut self.known;
        let mut most = if may_end { LEASES_PER_RECORD_MAX } else { 0 };
        // Those that are asked for are stepped over: what is in front of others does not keep them.
        let mut ends = |id: &LeaseId| {
            let is_taken = most > 0 && !is_asked(*id);
            most -= usize::from(is_taken);
            is_taken
        };
        let reach = if may_end { self.over.len() } else { 0 };
        for id in self.over.extract_if(..reach, |id| ends(id)) {
            // Some were kept alive meanwhile, or revoked.
            let Some(lease) = known.get_mut(&id) else { continue };
            lease.is_listed = false;
            if lease.stage == Stage::Over {
                lease.stage = Stage::Ending;
                record.ends.push(LeaseName { id, granted: lease.granted });
            }
        }
        // What was kept alive comes first, since somebody waits for it.
        let mut room = LEASES_PER_RECORD_MAX;
        let first = ..self.renewed.len().min(room);
        // Of one that ends nothing is noted, unless its end comes to nothing.
        let is_ending = |id: &LeaseId| known.get(id).is_some_and(|l| l.stage == Stage::Ending);
        let renewed: Vec<_> = self.renewed.extract_if(first, |id| !is_ending(id)).collect();
        for id in renewed {
            if let Some(lease) = known.get(&id).filter(|lease| lease.is_being_renewed) {
                let name = LeaseName { id, granted: lease.granted };
                record.rests.push((name, lease.ttl_us / 1_000));
            }
        }
        room -= record.rests.len();
        let time_us = self.time_us;
        for id in self.low.extract_if(..self.low.len().min(room), |_| true) {
            if let Some(lease) = known.get_mut(&id)
                && lease.is_being_noted
            {
                if lease.is_being_renewed || lease.stage != Stage::Running {
                    // Nothing of it is in the log. A renewal that is to come says the same.
                    lease.is_being_noted = false;
                    continue;
                }
                let rest_us = lease.deadline_us.saturating_sub(time_us).min(lease.ttl_us);
                record.rests.push((LeaseName { id, granted: lease.granted }, rest_us / 1_000));
            }
        }
        (!record.is_empty()).then_some(record)
    }

    /// Looks at the leases whose time that is.
    fn look(&mut self, is_asked: impl Fn(LeaseId) -> bool) {
        for _ in 0..LOOKS_MAX {
            let is_due = |wake: &Reverse<(u64, LeaseId)>| wake.0.0 <= self.time_us;
            if !self.wakes.peek().is_some_and(is_due) {
                return;
            }
            let Some(Reverse((wake_us, id))) = self.wakes.pop() else { return };
            let Some(lease) = self.known.get_mut(&id) else { continue };
            if lease.wake_us != wake_us || lease.stage != Stage::Running {
                continue;
            }
            if lease.deadline_us <= self.time_us && is_asked(id) {
                lease.wake_us = self.time_us + micros(ASKED_WAIT);
                self.wakes.push(Reverse((lease.wake_us, id)));
                continue;
            }
            if lease.deadline_us <= self.time_us {
                lease.is_over(id, &mut self.over);
                continue;
            }
            if lease.note_due_us(self.notes).is_some_and(|due_us| due_us <= self.time_us) {
                lease.is_being_noted = true;
                self.low.push(id);
            }
            lease.wake_us = lease.next_wake_us(self.time_us, self.notes);
            assert!(lease.wake_us > self.time_us, "{id} is looked at again at once: {lease:?}");
            self.wakes.push(Reverse((lease.wake_us, id)));
        }
    }

    /// Notes that a record was proposed, as the entry at `index`.
    pub fn proposed(&mut self, index: LogIndex, record: LeaseRecord) {
        assert!(self.under_way.is_none(), "{record:?} is proposed beside {:?}", self.under_way);
        self.under_way = Some((index, record));
    }

    /// The proposal was refused for want of room; it is repeated.
    pub fn refused(&mut self, record: LeaseRecord) {
        for name in record.ends {
            if let Some(lease) = named(&mut self.known, name) {
                lease.is_over(name.id, &mut self.over);
            }
        }
        for (name, _) in record.rests {
            let Some(lease) = named(&mut self.known, name) else { continue };
            match lease.is_being_renewed {
                true => self.renewed.push(name.id),
                false => self.low.push(name.id),
            }
        }
    }
}

/// The very lease of this name, if it has not ended.
fn named(known: &mut BTreeMap<LeaseId, Lease>, name: LeaseName) -> Option<&mut Lease> {
    known.get_mut(&name.id).filter(|lease| lease.granted == name.granted)
}

#[cfg(test)]
mod tests;
