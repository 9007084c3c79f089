//! Contenders against a model of the store, whose every state is remembered: what each reads and is
//! shown comes as late, and in such an order, as a seed has it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::model::{Facts, KeyChange, Version};

const NAME: &str = "n";

fn name() -> ContestName {
    ContestName::new(NAME.as_bytes()).unwrap()
}

fn row(key: &str, created: i64) -> Row {
    let facts = Facts { created: Timestamp(created), count: 1, lease: None };
    let (timestamp, facts) = (Timestamp(created), Some(facts));
    let found = Some(Version { timestamp, value: Bytes::new(), facts });
    Row { key: Bytes::copy_from_slice(key.as_bytes()), found }
}

#[test]
fn a_name_leaves_room_for_its_keys_and_is_not_mixed_up_with_longer_ones() {
    let longest = vec![b'n'; NAME_BYTES_MAX];
    let longest = ContestName::new(&longest).unwrap();
    assert_eq!(longest.key(LeaseId(u64::MAX)).len(), KEY_BYTES_MAX);
    assert!(longest.range().is_ok());
    let too_long = vec![b'n'; NAME_BYTES_MAX + 1];
    let error = ContestName::new(&too_long).unwrap_err();
    assert_eq!(error, ClientError::NameTooLong(NAME_BYTES_MAX + 1));
    assert_eq!(ContestName::new(b""), Err(ClientError::NameEmpty));

    assert_eq!(name().key(LeaseId(0xabc)), "n/abc");
    assert!(name().has(b"n/abc") && name().has(b"n/whatever"));
    for other in ["n", "n/", "n/abc/def", "m/abc", "nn/abc"] {
        assert!(!name().has(other.as_bytes()), "{other}");
    }
}

#[test]
fn it_waits_for_the_one_before_it_and_then_looks_again() {
    let mut contender = Contender::new(name(), LeaseId(0xc));
    assert_eq!(contender.entered(Timestamp(30), Some(LeaseId(0xc))), Step::Look);
    let shown = [("n/a", 20), ("n/b", 10), ("n/c", 30), ("n/d", 40), ("n/a/a", 25)];
    shown.iter().for_each(|(key, created)| contender.row(&row(key, *created)));
    let watch = Step::Watch { key: "n/a".into(), after: Timestamp(50) };
    assert_eq!(contender.looked(Timestamp(50)), watch);

    let change = |written: Option<Row>| WatchEvent::Changed {
        version: Timestamp(60),
        changes: vec![KeyChange {
            at: Timestamp(60),
            key: "n/a".into(),
            written: written.and_then(|row| row.found),
            previous: None,
        }],
        continues: false,
    };
    assert_eq!(contender.ahead(&change(Some(row("n/a", 20)))), None, "it has another value");
    assert_eq!(contender.ahead(&change(None)), Some(Step::Look));
    assert_eq!(contender.ahead(&change(None)), None, "it is known");
    // That one gave up out of turn; the first is still there.
    [("n/b", 10), ("n/c", 30)].iter().for_each(|(key, created)| contender.row(&row(key, *created)));
    let watch = Step::Watch { key: "n/b".into(), after: Timestamp(70) };
    assert_eq!(contender.looked(Timestamp(70)), watch);
    // It went, and somebody has put the same key anew.
    let mut event = change(Some(row("n/b", 65)));
    if let WatchEvent::Changed { changes, .. } = &mut event {
        changes[0].key = "n/b".into();
    }
    assert_eq!(contender.ahead(&event), Some(Step::Look));
    contender.row(&row("n/c", 30));
    assert_eq!(contender.looked(Timestamp(90)), Step::Hold { fence: Timestamp(30) });
}

#[test]
fn whose_own_key_has_gone_is_told_so() {
    let lease = LeaseId(0xc);
    let entered = || {
        let mut contender = Contender::new(name(), lease);
        contender.entered(Timestamp(30), Some(lease));
        contender
    };
    let mut contender = entered();
    contender.row(&row("n/a", 20));
    assert_eq!(contender.looked(Timestamp(50)), Step::Lose);
    // Somebody else has put it since.
    let mut contender = entered();
    contender.row(&row("n/c", 40));
    assert_eq!(contender.looked(Timestamp(50)), Step::Lose);
    // A state from before it came is no answer.
    assert_eq!(entered().looked(Timestamp(29)), Step::Look);
    // There was a key of that name which does not go with the lease.
    assert_eq!(Contender::new(name(), lease).entered(Timestamp(3), None), Step::Lose);
}

#[test]
fn a_reset_of_a_watch_tells_whether_the_key_is_there_when_it_is_whole() {
    let reset = |rows: &[Row], begins, continues| WatchEvent::Reset {
        version: Timestamp(50),
        rows: rows.to_vec(),
        begins,
        continues,
    };
    let mut key = WatchedKey::new("n/a".into(), Timestamp(20));
    assert!(!key.has_gone(&reset(&[row("n/a", 20)], true, false)));
    assert!(key.has_gone(&reset(&[row("n/a", 30)], true, false)));
    assert!(!key.has_gone(&reset(&[row("n/a", 20)], true, true)));
    assert!(!key.has_gone(&reset(&[], false, false)));
    // One that broke off, and began anew.
    assert!(!key.has_gone(&reset(&[row("n/a", 20)], true, true)));
    assert!(!key.has_gone(&reset(&[], true, true)));
    assert!(key.has_gone(&reset(&[], false, false)));
}

/// With which version each key came into being.
type State = BTreeMap<Bytes, Timestamp>;

/// Every state that there was; each write makes one, whose version is its place.
struct Store(Vec<State>);

impl Store {
    fn newest(&self) -> &State {
        self.0.last().unwrap()
    }

    fn write(&mut self, key: &Bytes, is_there: bool) -> Timestamp {
        let version = Timestamp(self.0.len() as i64);
        let mut state = self.newest().clone();
        match is_there {
            true => drop(state.entry(key.clone()).or_insert(version)),
            false => drop(state.remove(key)),
        }
        self.0.push(state);
        version
    }

    /// The next change of a key after a version, or a reset that skips some.
    fn event(&self, random: &mut StdRng, key: &Bytes, after: Timestamp) -> Option<WatchEvent> {
        let of = |at: usize| self.0[at].get(key).copied();
        if random.random_ratio(1, 10) {
            let at = self.0.len() - 1;
            let rows = of(at).map(|created| row(str::from_utf8(key).unwrap(), created.0));
            let (rows, version) = (rows.into_iter().collect(), Timestamp(at as i64));
            return Some(WatchEvent::Reset { version, rows, begins: true, continues: false });
        }
        let changed = (after.0 as usize + 1..self.0.len()).find(|at| of(*at) != of(at - 1))?;
        let version = Timestamp(changed as i64);
        let written = of(changed).map(|created| row(str::from_utf8(key).unwrap(), created.0));
        let written = written.and_then(|row| row.found);
        let changes = vec![KeyChange { at: version, key: key.clone(), written, previous: None }];
        Some(WatchEvent::Changed { version, changes, continues: false })
    }
}

/// A contender with what its owner keeps for it.
struct Actor {
    contender: Contender,
    fence: Timestamp,
    own: WatchedKey,
    own_after: Timestamp,
    /// The key before its own as it watches it, and how far.
    ahead: Option<(Bytes, Timestamp)>,
    step: Step,
}

impl Actor {
    fn enter(store: &mut Store, id: u64) -> Actor {
        let mut contender = Contender::new(name(), LeaseId(id));
        let fence = store.write(&contender.key().clone(), true);
        let step = contender.entered(fence, Some(LeaseId(id)));
        let own = contender.own(fence);
        Actor { contender, fence, own, own_after: fence, ahead: None, step }
    }

    fn is_alive(&self, store: &Store) -> bool {
        store.newest().get(self.contender.key()) == Some(&self.fence)
    }

    /// Does one thing that its owner is to do, if there is any.
    fn turn(&mut self, store: &Store, random: &mut StdRng, lags: bool) -> bool {
        if random.random_bool(0.3)
            && let Some(event) = store.event(random, self.own.key(), self.own_after)
        {
            let before = std::mem::replace(&mut self.own_after, event.version());
            if self.own.has_gone(&event) {
                self.step = self.contender.lost();
            }
            return before != self.own_after;
        }
        match self.step.clone() {
            Step::Look => {
                let newest = store.0.len() - 1;
                let oldest = if lags { self.fence.0 as usize } else { newest };
                let at = random.random_range(oldest..=newest);
                for (key, created) in &store.0[at] {
                    self.contender.row(&row(str::from_utf8(key).unwrap(), created.0));
                }
                self.step = self.contender.looked(Timestamp(at as i64));
                if let Step::Watch { key, after } = &self.step {
                    self.ahead = Some((key.clone(), *after));
                }
                true
            }
            Step::Watch { key, .. } => {
                let Some((_, after)) = &mut self.ahead else { panic!("{key:?} is not watched") };
                let Some(event) = store.event(random, &key, *after) else { return false };
                let before = std::mem::replace(after, event.version());
                if let Some(step) = self.contender.ahead(&event) {
                    (self.step, self.ahead) = (step, None);
                    return true;
                }
                before != event.version()
            }
            Step::Hold { .. } | Step::Lose => false,
        }
    }
}

struct Contest {
    store: Store,
    actors: Vec<Actor>,
    /// The fences of those who held while their keys were there.
    held: Vec<Timestamp>,
}

impl Contest {
    /// Lets one do something, and checks who holds.
    fn turn(&mut self, random: &mut StdRng, lags: bool) -> bool {
        if self.actors.is_empty() {
            return false;
        }
        let at = random.random_range(0..self.actors.len());
        let actor = &mut self.actors[at];
        let has_done = actor.turn(&self.store, random, lags);
        if matches!(actor.step, Step::Hold { .. })
            && actor.is_alive(&self.store)
            && self.held.last() != Some(&actor.fence)
        {
            assert!(self.held.last() < Some(&actor.fence), "{:?}, {actor:?}", self.held);
            self.held.push(actor.fence);
        }
        let holds =
            |actor: &&Actor| matches!(actor.step, Step::Hold { .. }) && actor.is_alive(&self.store);
        let holders: Vec<&Actor> = self.actors.iter().filter(holds).collect();
        assert!(holders.len() <= 1, "all of these hold: {holders:?}");
        has_done
    }

    /// A key goes; at most one of those who are there waits for that.
    fn remove(&mut self, key: &Bytes) {
        let created = self.store.newest().get(key);
        let waits = |actor: &&Actor| match &actor.contender.stage {
            Stage::Waiting { ahead, .. } => {
                ahead.key == key && Some(&ahead.created) == created && actor.is_alive(&self.store)
            }
            _ => false,
        };
        let waiting: Vec<&Actor> = self.actors.iter().filter(waits).collect();
        assert!(waiting.len() <= 1, "all of these wait for {key:?}: {waiting:?}");
        self.store.write(key, false);
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} in {:?}", self.contender.key(), self.fence, self.step)
    }
}

fn contest(seed: u64) {
    let random = &mut StdRng::seed_from_u64(seed);
    let lags = random.random_bool(0.5);
    let store = Store(vec![State::new(), State::new()]);
    let mut contest = Contest { store, actors: Vec::new(), held: Vec::new() };
    for _ in 0..400 {
        match random.random_range(0..20) {
            0 if contest.actors.len() < 8 => {
                // Ids, and so keys, are in another order than their versions.
                let id = random.random_range(1..1_000);
                if !contest.store.newest().contains_key(&name().key(LeaseId(id))) {
                    contest.actors.push(Actor::enter(&mut contest.store, id));
                }
            }
            // A lease ends, or somebody gives up, or deletes a key.
            1 if !contest.store.newest().is_empty() => {
                let at = random.random_range(0..contest.store.newest().len());
                let key = contest.store.newest().keys().nth(at).unwrap().clone();
                contest.remove(&key);
                // And puts one of that name again.
                if random.random_ratio(1, 4) {
                    contest.store.write(&key, true);
                }
            }
            2 => {
                let holds = |actor: &Actor| matches!(actor.step, Step::Hold { .. });
                if let Some(at) = contest.actors.iter().position(holds) {
                    let key = contest.actors[at].contender.key().clone();
                    if contest.actors[at].is_alive(&contest.store) {
                        contest.remove(&key);
                    }
                    contest.actors.remove(at);
                }
            }
            _ => drop(contest.turn(random, lags)),
        }
    }
    // Keys that nobody has any more would be waited for.
    let keys: Vec<Bytes> = contest.store.newest().keys().cloned().collect();
    for key in keys {
        let has = |actor: &Actor| *actor.contender.key() == key && actor.is_alive(&contest.store);
        if !contest.actors.iter().any(has) {
            contest.remove(&key);
        }
    }
    // From here on each leaves when it has held.
    let mut turns = 0;
    while !contest.actors.is_empty() {
        turns += 1;
        assert!(turns < 20_000, "these wait for ever: {:?}", contest.actors);
        contest.turn(random, lags);
        let is_over = |actor: &Actor| match actor.step {
            Step::Lose => true,
            Step::Hold { .. } => contest.held.last() == Some(&actor.fence),
            _ => false,
        };
        if let Some(at) = contest.actors.iter().position(is_over) {
            let actor = &contest.actors[at];
            let (key, is_alive) = (actor.contender.key().clone(), actor.is_alive(&contest.store));
            if is_alive {
                contest.remove(&key);
            }
            contest.actors.remove(at);
        }
    }
}

/// In any order of what happens: at most one holds whose key is there, they come to hold in the
/// order in which they came, one waits for each key, and nobody waits for ever.
#[test]
fn one_holds_at_a_time_and_everybody_has_a_turn() {
    let given = std::env::var("ACERVO_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = given.map_or(0..2_000, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let caught = std::panic::catch_unwind(|| contest(seed));
        assert!(caught.is_ok(), "seed {seed}: replay with ACERVO_SEED={seed}");
    }
}
