//! A leader's leases in virtual time, by themselves and against a plain model of them.

use std::collections::btree_map::Entry;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;
const TICK: u64 = 20_000;

fn state(id: u64, ttl_s: u64) -> LeaseState {
    let name = LeaseName { id: LeaseId(id), granted: Timestamp(id as i64 * 10) };
    LeaseState { name, ttl_ms: ttl_s * 1_000, rest_ms: ttl_s * 1_000 }
}

/// A leader and its state machine, which applies what is proposed when it is told to.
struct Leader {
    leases: Leases,
    now_us: u64,
    index: LogIndex,
    /// Records that were proposed, by this or an earlier leader, and are not applied.
    log: Vec<(LogIndex, LeaseRecord)>,
    /// The disks have room for the ends of leases.
    may_end: bool,
}

impl Leader {
    fn of(states: &[LeaseState]) -> Leader {
        let mut leases = Leases::new(states, LeaseNotes::DEFAULT);
        leases.advance(0);
        leases.begin_counting();
        Leader { leases, now_us: 0, index: 1, log: Vec::new(), may_end: true }
    }

    /// Ticks until this time, and proposes what is due.
    fn run_to(&mut self, until_us: u64) {
        while self.now_us < until_us {
            self.now_us = (self.now_us + TICK).min(until_us);
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.leases.advance(self.now_us);
        if let Some(record) = self.leases.next_record(self.may_end, |_| false) {
            self.index += 1;
            self.leases.proposed(self.index, record.clone());
            self.log.push((self.index, record));
        }
    }

    /// Applies everything that was proposed; the leases that have ended.
    fn apply(&mut self) -> Vec<u64> {
        let mut ended = Vec::new();
        for (index, record) in std::mem::take(&mut self.log) {
            let mut events = Vec::new();
            for name in record.ends {
                ended.push(name.id.0);
                events.push(LeaseEvent::Ended(name));
            }
            for (name, rest_ms) in record.rests {
                if let Some(lease) = self.leases.known.get(&name.id) {
                    let ttl_ms = lease.ttl_us / 1_000;
                    events.push(LeaseEvent::Is(LeaseState { name, ttl_ms, rest_ms }));
                }
            }
            self.leases.applied(index, &events);
        }
        ended
    }

    fn keep_alive(&mut self, ids: &[u64]) -> Option<Vec<Option<u64>>> {
        let ids = ids.iter().map(|id| LeaseId(*id)).collect();
        match self.leases.answer(&LeaseQuestion::KeepAlive(ids), true)? {
            LeaseAnswer::KeptAlive(left) => Some(left),
            other => panic!("{other:?}"),
        }
    }

    /// Another leader, or the same one again, that knows what is applied here.
    fn elect(&mut self) {
        self.leases.lost_leadership();
        self.log.clear();
        self.leases.begin_counting();
    }
}

#[test]
fn a_lease_ends_when_its_time_is_over_and_no_tick_before() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 20)]);
    leader.run_to(10 * SECOND - 1);
    assert!(leader.log.is_empty());
    leader.run_to(10 * SECOND);
    assert_eq!(leader.apply(), [1]);
    leader.run_to(19 * SECOND);
    assert_eq!(leader.keep_alive(&[2, 1]), Some(vec![Some(20_000), None]));
    leader.run_to(38 * SECOND);
    assert!(leader.apply().is_empty());
    leader.run_to(40 * SECOND);
    assert_eq!(leader.apply(), [2]);
}

#[test]
fn whoever_asks_about_a_lease_that_is_ending_waits_for_the_end() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 20)]);
    leader.run_to(10 * SECOND);
    assert_eq!(leader.keep_alive(&[2]), Some(vec![Some(20_000)]));
    assert_eq!(leader.keep_alive(&[1, 2]), None, "neither alive nor gone");
    let shown = leader.leases.answer(&LeaseQuestion::List { after: None }, true);
    let shows = |id, ttl_ms, left_ms| LeaseShown { name: state(id, 0).name, ttl_ms, left_ms };
    let leases = vec![shows(1, 10_000, 0), shows(2, 20_000, 20_000)];
    assert_eq!(shown, Some(LeaseAnswer::Leases { leases, has_more: false }));
    assert_eq!(leader.apply(), [1]);
    assert_eq!(leader.keep_alive(&[1, 2]), Some(vec![None, Some(20_000)]));
    let shown = leader.leases.answer(&LeaseQuestion::Show(LeaseId(1)), true);
    assert_eq!(shown, Some(LeaseAnswer::Leases { leases: vec![], has_more: false }));
}

/// Whoever waits for a long write to be applied may not get an answer before his time is over.
#[test]
fn before_everything_is_applied_only_leases_that_run_for_certain_are_kept_alive() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 20), state(3, 1_000)]);
    let early = |leader: &mut Leader, ids: &[u64]| {
        let ids = ids.iter().map(|id| LeaseId(*id)).collect();
        match leader.leases.answer(&LeaseQuestion::KeepAlive(ids), false)? {
            LeaseAnswer::KeptAlive(left) => Some(left),
            other => panic!("{other:?}"),
        }
    };
    leader.run_to(9 * SECOND);
    assert_eq!(early(&mut leader, &[1, 2]), Some(vec![Some(10_000), Some(20_000)]));
    leader.run_to(18 * SECOND);
    assert!(leader.log.is_empty(), "the first one was kept alive");
    assert_eq!(early(&mut leader, &[1, 4]), None, "the last one may be granted and not applied");
    assert_eq!(leader.leases.answer(&LeaseQuestion::List { after: None }, false), None);
    leader.run_to(19 * SECOND);
    assert_eq!(early(&mut leader, &[2, 1]), None, "the end of the first is ordered");
    assert_eq!(leader.apply(), [1]);
    // A revoke that is ordered and not applied ends a lease that is still known.
    leader.leases.revoke_proposed(LeaseId(2), 20);
    leader.leases.revoke_proposed(LeaseId(2), 21);
    assert_eq!(early(&mut leader, &[2]), None);
    leader.leases.applied(20, &[]);
    assert_eq!(early(&mut leader, &[2]), None);
    assert_eq!(early(&mut leader, &[3]), Some(vec![Some(1_000_000)]));
    leader.leases.applied(21, &[]);
    assert_eq!(early(&mut leader, &[2]), Some(vec![Some(20_000)]), "they came to nothing");
    leader.run_to(40 * SECOND);
    assert_eq!(leader.apply(), [2]);
    leader.run_to(600 * SECOND);
    assert!(leader.apply().is_empty());
    assert_eq!(early(&mut leader, &[3]), None, "it is noted to have less left");
}

/// A lease that is over again and again meanwhile is listed once.
#[test]
fn while_none_may_end_leases_live_on_and_may_be_kept_alive() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 10)]);
    leader.may_end = false;
    for round in 1..=3 {
        leader.run_to(round * 20 * SECOND);
        assert!(leader.log.is_empty());
        assert_eq!(leader.leases.over.len(), 2, "in round {round}");
        assert_eq!(leader.keep_alive(&[1]), Some(vec![Some(10_000)]));
    }
    leader.may_end = true;
    leader.tick();
    assert_eq!(leader.apply(), [2]);
    leader.run_to(70 * SECOND);
    assert_eq!(leader.apply(), [1]);
}

/// One record ended a lease and noted how long it has left.
#[test]
fn of_a_lease_that_ends_nothing_is_noted() {
    let mut leader = Leader::of(&[state(5, 301)]);
    leader.run_to(300 * SECOND);
    assert_eq!(leader.keep_alive(&[5]), None, "a note of its rest is to be taken back");
    leader.run_to(600 * SECOND + 750_000);
    assert!(leader.apply().is_empty(), "the note is applied");
    leader.now_us += 250_000;
    leader.tick();
    let (_, record) = leader.log.last().unwrap();
    assert_eq!((record.ends.len(), &record.rests[..]), (1, &[][..]));
    assert_eq!(leader.apply(), [5]);
    assert_eq!(leader.keep_alive(&[5]), Some(vec![None]));
}

/// A leader that was stopped finds keep-alives in its sockets that it could not hear.
#[test]
fn a_pause_takes_no_time_from_a_lease() {
    let mut leader = Leader::of(&[state(1, 10)]);
    leader.run_to(9 * SECOND);
    leader.now_us += 3_600 * SECOND;
    leader.tick();
    assert!(leader.log.is_empty(), "a leap of the clock ends nothing");
    assert!(leader.keep_alive(&[1]).is_some());
    leader.run_to(leader.now_us + 9 * SECOND);
    assert!(leader.log.is_empty());
    leader.run_to(leader.now_us + SECOND);
    assert_eq!(leader.apply(), [1], "it ends in time all the same");
}

#[test]
fn a_new_leader_gives_each_lease_its_whole_time() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 10)]);
    leader.run_to(9 * SECOND);
    leader.elect();
    leader.run_to(18 * SECOND);
    assert!(leader.log.is_empty());
    assert!(leader.keep_alive(&[2]).is_some());
    leader.run_to(19 * SECOND);
    assert_eq!(leader.log[0].1.ends, [state(1, 10).name]);
    // What it has ordered is in no log that wins.
    leader.elect();
    leader.run_to(28 * SECOND);
    assert!(leader.log.is_empty());
    leader.run_to(29 * SECOND);
    let mut ended = leader.apply();
    ended.sort_unstable();
    assert_eq!(ended, [1, 2]);
}

#[test]
fn a_lease_whose_end_is_refused_or_put_off_ends_later() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 10)]);
    leader.run_to(10 * SECOND - 1);
    leader.now_us += 1;
    leader.leases.advance(leader.now_us);
    let record = leader.leases.next_record(true, |_| false).unwrap();
    assert_eq!(record.ends, [state(1, 10).name, state(2, 10).name]);
    leader.leases.refused(record);
    // One that is kept alive meanwhile is not in the next record.
    assert!(leader.keep_alive(&[2]).is_some());
    let record = leader.leases.next_record(true, |_| false).unwrap();
    assert_eq!(record.ends, [state(1, 10).name]);
    leader.leases.proposed(5, record);
    assert_eq!(leader.leases.next_record(true, |_| false), None, "one is under way");
    assert!(!leader.leases.applied(4, &[]));
    assert!(leader.leases.applied(5, &[]), "it had too many keys to go with others");
    let record = leader.leases.next_record(true, |_| false).unwrap();
    assert_eq!(record.ends, [state(1, 10).name]);
}

#[test]
fn a_lease_that_is_asked_to_be_kept_alive_does_not_end_until_that_is_answered_or_given_up() {
    let mut leader = Leader::of(&[state(1, 10), state(2, 10)]);
    leader.run_to(10 * SECOND - 1);
    for time_us in [10 * SECOND, 12 * SECOND] {
        leader.now_us = time_us;
        leader.leases.advance(time_us);
        assert_eq!(leader.leases.next_record(true, |_| true), None);
    }
    let record = leader.leases.next_record(true, |id| id == LeaseId(1)).unwrap_or_default();
    assert!(record.ends.iter().all(|name| name.id == LeaseId(2)), "{record:?}");
    leader.leases.refused(record);
    leader.run_to(13 * SECOND);
    let mut ended = leader.apply();
    ended.sort_unstable();
    assert_eq!(ended, [1, 2]);
}

/// Those that were asked for were in front of all others, as many as a record takes, and no lease
/// behind them ended.
#[test]
fn leases_that_are_asked_for_do_not_keep_others_from_ending() {
    let many = LEASES_PER_RECORD_MAX as u64;
    let states: Vec<_> = (1..=many + 2).map(|id| state(id, 10)).collect();
    let mut leader = Leader::of(&states);
    leader.run_to(10 * SECOND - 1);
    leader.now_us += 1;
    leader.leases.advance(leader.now_us);
    let is_asked = |id: LeaseId| id.0 <= many;
    let record = leader.leases.next_record(true, is_asked).unwrap();
    let ends: Vec<_> = record.ends.iter().map(|name| name.id.0).collect();
    assert_eq!(ends, [many + 1, many + 2]);
}

#[test]
fn an_id_that_was_granted_again_is_another_lease() {
    let mut leader = Leader::of(&[state(1, 10)]);
    leader.run_to(10 * SECOND);
    let [(index, record)] = &leader.log[..] else { panic!("{:?}", leader.log) };
    let (index, ends) = (*index, record.ends.clone());
    let revoked = LeaseEvent::Ended(ends[0]);
    let name = LeaseName { granted: Timestamp(77), ..ends[0] };
    let granted = LeaseEvent::Is(LeaseState { name, ..state(1, 10) });
    assert!(!leader.leases.applied(index - 1, &[revoked, granted]));
    leader.log.clear();
    assert!(leader.leases.applied(index, &[]));
    assert_eq!(leader.keep_alive(&[1]), Some(vec![Some(10_000)]));
    leader.leases.applied(index + 1, &[revoked]);
    assert!(leader.keep_alive(&[1]).unwrap()[0].is_some(), "that was the earlier one");
}

#[test]
fn what_a_long_lease_has_left_is_noted_and_taken_back_when_it_is_kept_alive() {
    let hour = 3_600 * SECOND;
    let mut leader = Leader::of(&[state(1, 3_600), state(2, 60)]);
    leader.run_to(hour / 2);
    let noted = |leader: &mut Leader| -> Vec<(u64, u64)> {
        let log = std::mem::take(&mut leader.log);
        let rests = log.iter().flat_map(|(_, record)| &record.rests);
        let rests = rests.map(|(name, rest_ms)| (name.id.0, rest_ms / 1_000)).collect();
        leader.log = log;
        rests
    };
    assert_eq!(noted(&mut leader), [], "the short one has ended, which is under way");
    assert_eq!(leader.apply(), [2]);
    leader.run_to(hour / 2 + SECOND);
    assert_eq!(noted(&mut leader), [(1, 1_799)]);
    leader.apply();
    leader.elect();
    let left_us = leader.leases.known[&LeaseId(1)].deadline_us - leader.now_us;
    assert_eq!(left_us / SECOND, 1_799, "so the next leader goes on from there");
    assert_eq!(leader.keep_alive(&[1]), None, "the next leader would give it less");
    leader.tick();
    assert_eq!(noted(&mut leader), [(1, 3_600)]);
    assert_eq!(leader.keep_alive(&[1]), None);
    leader.apply();
    assert_eq!(leader.keep_alive(&[1]), Some(vec![Some(3_600_000)]));
    let kept_us = leader.now_us;
    leader.elect();
    leader.run_to(kept_us + hour / 2 - SECOND);
    assert_eq!(noted(&mut leader), []);
}

/// A keep-alive that comes while a note is on its way into the log must not be lost with it.
#[test]
fn a_keep_alive_waits_for_a_note_that_is_under_way_to_be_taken_back() {
    let mut leader = Leader::of(&[state(1, 3_600)]);
    leader.run_to(1_800 * SECOND);
    assert_eq!(leader.log.len(), 1);
    assert_eq!(leader.keep_alive(&[1]), None);
    leader.apply();
    assert_eq!(leader.keep_alive(&[1]), None);
    leader.tick();
    assert_eq!(leader.log[0].1.rests, [(state(1, 3_600).name, 3_600_000)]);
    leader.apply();
    assert!(leader.keep_alive(&[1]).is_some());
}

#[test]
fn a_list_goes_on_where_the_page_before_ended() {
    let all = LEASES_PER_PAGE_MAX as u64 + 5;
    let states: Vec<LeaseState> = (1..=all).map(|id| state(id, 10)).collect();
    let mut leader = Leader::of(&states);
    let mut after = None;
    let mut ids = Vec::new();
    loop {
        let question = LeaseQuestion::List { after };
        let answer = leader.leases.answer(&question, true).unwrap();
        assert!(answer.answers(&question));
        let LeaseAnswer::Leases { leases, has_more } = answer else { panic!("{answer:?}") };
        assert!(leases.len() <= LEASES_PER_PAGE_MAX);
        ids.extend(leases.iter().map(|lease| lease.name.id.0));
        after = ids.last().map(|id| LeaseId(*id));
        if !has_more {
            break;
        }
    }
    assert_eq!(ids, (1..=all).collect::<Vec<_>>());
}

#[test]
fn leases_that_come_and_go_leave_nothing_behind() {
    let mut leader = Leader::of(&[]);
    for id in 1..10_000 {
        let granted = state(id, 3_600);
        leader.leases.applied(id, &[LeaseEvent::Is(granted), LeaseEvent::Ended(granted.name)]);
    }
    assert!(leader.leases.wakes.len() <= STALE_WAKES_MAX + 2, "{}", leader.leases.wakes.len());
}

/// What may befall a leader and its leases.
#[derive(Clone, Debug)]
enum Step {
    Grant(u64, u64),
    KeepAlive(u64),
    Run(u64),
    Pause(u64),
    Apply,
    Elect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = 0..6_u64;
    let ttl_s = prop_oneof![1..20_u64, 300..2_000_u64];
    let step = prop_oneof![
        2 => (id.clone(), ttl_s).prop_map(|(id, ttl_s)| Step::Grant(id, ttl_s)),
        4 => id.prop_map(Step::KeepAlive),
        6 => prop_oneof![0..3_000_u64, 0..600_000_u64].prop_map(Step::Run),
        1 => (0..7_200_000_u64).prop_map(Step::Pause),
        4 => Just(Step::Apply),
        1 => Just(Step::Elect),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Whatever happens, in any order: no lease ends before its time has passed since it was
    /// granted or last said to be alive, as the driver's own clock counts without its pauses, and
    /// each ends soon after it would with the greatest time that any leader may give it.
    #[test]
    fn no_lease_ends_early_and_each_ends(steps in steps()) {
        let mut leader = Leader::of(&[]);
        // Of each lease: its name, its time, and since when it has it, in time without pauses.
        let mut alive: BTreeMap<u64, (LeaseState, u64)> = BTreeMap::new();
        let mut paused_us = 0;
        let mut version = 0;
        for step in steps {
            let heard_us = leader.now_us - paused_us;
            match step {
                Step::Grant(id, ttl_s) => {
                    if let Entry::Vacant(free) = alive.entry(id) {
                        version += 1;
                        let name = LeaseName { id: LeaseId(id), granted: Timestamp(version) };
                        let granted = LeaseState { name, ..state(id, ttl_s) };
                        leader.leases.applied(0, &[LeaseEvent::Is(granted)]);
                        free.insert((granted, heard_us));
                    }
                }
                Step::KeepAlive(id) => match leader.keep_alive(&[id]).as_deref() {
                    Some([Some(left_ms)]) => {
                        let lease = alive.get_mut(&id).expect("a lease that is alive");
                        prop_assert_eq!(*left_ms, lease.0.ttl_ms);
                        lease.1 = heard_us;
                    }
                    Some(_) => prop_assert!(!alive.contains_key(&id)),
                    None => {}
                },
                Step::Run(ms) => leader.run_to(leader.now_us + ms * 1_000),
                Step::Pause(ms) => {
                    leader.now_us += ms * 1_000;
                    paused_us += (ms * 1_000).saturating_sub(micros(STEP_MAX));
                    leader.tick();
                }
                Step::Apply => {
                    for id in leader.apply() {
                        let (lease, since_us) = alive.remove(&id).expect("it ends once");
                        let heard_us = leader.now_us - paused_us;
                        prop_assert!(
                            heard_us >= since_us + lease.ttl_ms * 1_000,
                            "{:?} ends {} ms after it was alive",
                            lease,
                            (heard_us - since_us) / 1_000
                        );
                    }
                }
                Step::Elect => leader.elect(),
            }
        }
        // Whatever is left ends within its time, and what the records take.
        let last_us = alive.values().map(|(lease, _)| lease.ttl_ms * 1_000).max().unwrap_or(0);
        let until_us = leader.now_us + last_us;
        while leader.now_us < until_us + SECOND {
            leader.apply();
            leader.run_to((leader.now_us + SECOND / 2).max(leader.now_us + last_us / 20));
        }
        // A note may have been under way when the last ones were due.
        for _ in 0..3 {
            leader.apply();
            leader.run_to(leader.now_us + TICK);
        }
        prop_assert!(leader.leases.known.is_empty(), "{:?}", leader.leases.known);
    }
}
