//! Two registries over one store in memory, of which one is held up before any of its calls to the
//! store while the other does something about the same peer, or while leases end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::client::{ClientError, Facts};
use crate::model::{Row, Timestamp, Version};

/// A version of a key: a value with its lease, or a tombstone.
type Stored = (Timestamp, Option<(Bytes, Option<LeaseId>)>);
type Interruption = (usize, Box<dyn FnOnce() + Send>);

/// When a write takes effect whose answer is lost.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Never,
    AtOnce,
    /// Before the call that is so many calls later.
    Later(usize),
}

/// What the group has.
#[derive(Clone, Debug, Default)]
struct State {
    /// The versions of each key, oldest first.
    versions: BTreeMap<String, Vec<Stored>>,
    leases: BTreeSet<LeaseId>,
    last: i64,
}

impl State {
    fn next(&mut self) -> Timestamp {
        self.last += 1;
        Timestamp(self.last)
    }

    fn row(&self, key: &str, at: Option<Timestamp>) -> Row {
        let found = self.versions.get(key).and_then(|versions| {
            let known = versions.iter().rfind(|(version, _)| at.is_none_or(|at| *version <= at));
            let (timestamp, stored) = known?;
            let (value, lease) = stored.clone()?;
            let facts = Some(Facts { created: *timestamp, count: 1, lease });
            Some(Version { timestamp: *timestamp, value, facts })
        });
        Row { key: key.to_owned().into(), found }
    }

    fn rows(&self, from: &[u8], to: &[u8], at: Option<Timestamp>) -> Vec<Row> {
        let keys = self.versions.keys().filter(|key| (from..=to).contains(&key.as_bytes()));
        keys.map(|key| self.row(key, at)).filter(|row| row.found.is_some()).collect()
    }

    fn put(&mut self, key: String, value: Vec<u8>, lease: Option<LeaseId>) {
        let at = Timestamp(self.last);
        self.versions.entry(key).or_default().push((at, Some((value.into(), lease))));
    }

    fn write_if(
        &mut self,
        key: &str,
        condition: Condition,
        puts: Vec<LeasedRow>,
        removes: Vec<String>,
    ) -> Option<Timestamp> {
        let newest = self.row(key, None).timestamp();
        let holds = match condition {
            Condition::Absent => newest.is_none(),
            Condition::Version(version) => newest == Some(version),
        };
        if !holds || !puts.iter().all(|row| self.leases.contains(&row.lease)) {
            return None;
        }
        let at = self.next();
        removes.iter().for_each(|key| drop(self.versions.remove(key)));
        puts.into_iter().for_each(|row| self.put(row.key, row.value, Some(row.lease)));
        Some(at)
    }

    fn end(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease) {
            let at = self.next();
            for versions in self.versions.values_mut() {
                let newest = versions.last().and_then(|(_, stored)| stored.as_ref());
                if newest.is_some_and(|(_, of)| *of == Some(lease)) {
                    versions.push((at, None));
                }
            }
        }
    }
}

/// One registry's way to the store.
#[derive(Default)]
struct MapStore {
    group: Arc<Mutex<State>>,
    calls: AtomicUsize,
    /// What happens before the call of this number.
    interruption: Mutex<Option<Interruption>>,
    /// The number of the write whose answer is lost.
    lost: Mutex<Option<(usize, Effect)>>,
    /// The number of the last call that kept leases alive.
    kept_alive_at: AtomicUsize,
    /// Whether the disk has no room, so that nothing can be stored.
    is_full: AtomicBool,
}

impl MapStore {
    fn called(&self) -> MutexGuard<'_, State> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let due = self.interruption.lock().unwrap().take_if(|(at, _)| *at == call);
        if let Some((_, interrupt)) = due {
            interrupt();
        }
        self.group.lock().unwrap()
    }

    fn refused<T>(message: String) -> Result<T> {
        let server = "127.0.0.1:1".parse().unwrap();
        Err(DirectoryError::Store(ClientError::Invalid { server, message }))
    }

    /// Refuses what a server with a full disk refuses, or would take for a faulty request.
    fn check(&self, puts: usize, removes: &[String]) -> Result<()> {
        if let Some(key) = removes.iter().find(|key| key.len() > limits::KEY_BYTES_MAX) {
            return MapStore::refused(format!("a key of {} bytes is too long", key.len()));
        }
        if puts + removes.len() > 3 * limits::STORE_FILES_PER_WRITE + 1 {
            return MapStore::refused(format!("{} keys are too many", puts + removes.len()));
        }
        if self.is_full.load(Ordering::Relaxed) && puts > 0 {
            return MapStore::refused("the disk is full".to_owned());
        }
        Ok(())
    }

    fn written<T>(&self, write: impl FnOnce(&mut State) -> T + Send + 'static) -> Result<T> {
        let mut group = self.called();
        let call = self.calls.load(Ordering::Relaxed) - 1;
        let mut lost = self.lost.lock().unwrap();
        let Some((_, effect)) = lost.take_if(|(at, _)| *at == call) else {
            return Ok(write(&mut group));
        };
        match effect {
            Effect::Never => {}
            Effect::AtOnce => drop(write(&mut group)),
            Effect::Later(calls) => {
                let group = Arc::clone(&self.group);
                let apply = move || drop(write(&mut group.lock().unwrap()));
                *self.interruption.lock().unwrap() = Some((call + calls, Box::new(apply)));
            }
        }
        Err(DirectoryError::Store(ClientError::Ended))
    }
}

impl RowStore for MapStore {
    fn get_all(&self, keys: impl Iterator<Item = String>) -> Result<Vec<Row>> {
        let group = self.called();
        Ok(keys.map(|key| group.row(&key, None)).collect())
    }

    fn range(
        &self,
        from: &str,
        to: &[u8],
        options: ReadOptions,
    ) -> Result<impl Iterator<Item = Result<Row>>> {
        Ok(self.called().rows(from.as_bytes(), to, options.at).into_iter().map(Ok))
    }

    fn rows(&self, from: &str, to: &[u8], options: ReadOptions) -> Result<(Vec<Row>, Timestamp)> {
        let group = self.called();
        Ok((group.rows(from.as_bytes(), to, options.at), Timestamp(group.last)))
    }

    fn trim(&self, key: &str) -> Result<()> {
        if let Some(versions) = self.called().versions.get_mut(key) {
            versions.drain(..versions.len() - 1);
        }
        Ok(())
    }

    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<LeasedRow>,
        removes: Vec<String>,
    ) -> Result<Option<Timestamp>> {
        self.check(puts.len(), &removes)?;
        let key = key.to_owned();
        self.written(move |group| group.write_if(&key, condition, puts, removes))
    }

    fn grant(&self, _: Duration) -> Result<LeaseId> {
        self.check(1, &[])?;
        self.written(|group| {
            let lease = LeaseId(group.next().0 as u64);
            group.leases.insert(lease);
            lease
        })
    }

    fn keep_alive(&self, leases: &[LeaseId]) -> Result<Vec<bool>> {
        let group = self.called();
        let call = self.calls.load(Ordering::Relaxed) - 1;
        self.kept_alive_at.store(call, Ordering::Relaxed);
        Ok(leases.iter().map(|lease| group.leases.contains(lease)).collect())
    }

    fn revoke(&self, lease: LeaseId) -> Result<()> {
        // The tombstones of its keys take room.
        self.check(1, &[])?;
        self.written(move |group| group.end(lease))
    }
}

type Registry = Arc<StoreDirectory<MapStore>>;

const PEER: PeerId = PeerId(7);
const SILENCE: Duration = Duration::from_secs(600);

fn registry(group: &Arc<Mutex<State>>) -> Registry {
    let store = MapStore { group: Arc::clone(group), ..MapStore::default() };
    Arc::new(StoreDirectory::new(store, IndexLimits::default(), SILENCE))
}

fn member(session: u64) -> Member {
    Member { peer: PEER, session }
}

fn content(number: u8) -> ContentId {
    ContentId([number; 32])
}

fn files(numbers: &[u8]) -> Vec<FileEntry> {
    let file = |number: &u8| FileEntry {
        name: FileName::new(&format!("file-{number}")).unwrap(),
        size: u64::from(*number),
        content: content(*number),
    };
    numbers.iter().map(file).collect()
}

/// The address, and the secret that all connections of the peer have.
fn place() -> PeerEndpoint {
    let address = SocketAddr::from(([10, 0, 0, 1], 5000));
    PeerEndpoint { address, origin: address.ip(), key: 3 }
}

fn join(registry: &Registry, session: u64, numbers: &[u8]) -> Result<()> {
    registry.join(member(session), place(), files(numbers))
}

/// Scans, and removes what is to be removed.
fn scan(registry: &Registry) -> Result<()> {
    registry.scan()?.into_iter().try_for_each(|(peer, _)| registry.remove_silent(peer))
}

/// The leases end that none of these registries keeps alive.
fn time_passes(registries: &[&Registry]) {
    let kept = |of: &&Registry| of.state().leases(Instant::now());
    let kept: Vec<LeaseId> = registries.iter().flat_map(kept).flat_map(|(_, of)| of).collect();
    let mut group = registries[0].store.group.lock().unwrap();
    let leases = group.leases.clone();
    leases.into_iter().filter(|lease| !kept.contains(lease)).for_each(|lease| group.end(lease));
}

fn all_leases_end(registry: &Registry) {
    let mut group = registry.store.group.lock().unwrap();
    let leases = group.leases.clone();
    leases.into_iter().for_each(|lease| group.end(lease));
}

/// The numbers of the peer's files, once everything that belongs together is there, and with leases
/// that there are; `None` without the peer's row.
fn settled(group: &State) -> Option<Vec<u8>> {
    let rows = |prefix: &str| group.rows(prefix.as_bytes(), &end(prefix), None);
    let decoded = |row: &Row| value::<FileRow>(row.value()).unwrap();
    let by_peer: Vec<FileRow> = rows("share/file/").iter().map(decoded).collect();
    let by_name: Vec<FileRow> = rows(NAMES).iter().map(decoded).collect();
    let parts = rows("share/part/").len();
    assert_eq!(by_peer, by_name, "{group:?}");
    assert_eq!(rows("share/content/").len(), by_peer.len() + parts, "{group:?}");
    for row in rows("share/") {
        let lease = row.found.unwrap().facts.unwrap().lease.unwrap();
        assert!(group.leases.contains(&lease), "{:?}: {group:?}", row.key);
    }
    let Some(peer) = rows(PEERS).pop() else {
        assert!(by_peer.is_empty() && parts == 0, "rows of no peer: {group:?}");
        return None;
    };
    let peer: PeerRow = value(peer.value()).unwrap();
    assert_eq!(peer.files, by_peer.len() as u64, "{peer:?}");
    assert_eq!(peer.bytes, by_peer.iter().map(|file| file.size).sum::<u64>(), "{peer:?}");
    assert!(peer.offered, "{peer:?}");
    Some(by_peer.iter().map(|file| file.size as u8).collect())
}

/// Like [`settled`], and there are neither tombstones nor versions that were overwritten.
fn settled_without_past(group: &State) -> Option<Vec<u8>> {
    for (key, versions) in &group.versions {
        let stays = versions.len() == 1 && versions[0].1.is_some();
        assert!(stays, "{key} has a past: {versions:?}");
    }
    settled(group)
}

/// What one of the registries does about the peer; what it answers, as text.
type Act = fn(&Registry) -> String;

/// What the peer's registry does, which it has joined in session 1 with files 1 to 3.
const OWNER: [(&str, Act); 6] = [
    ("joins again", |of| shown(join(of, 1, &[2, 3, 4]))),
    ("joins again over another connection", |of| shown(join(of, 2, &[1, 2]))),
    ("updates", |of| shown(of.update(member(1), files(&[5]), &[files(&[1])[0].name.clone()]))),
    ("fetches", |of| shown(of.fetching(member(1), content(9), 9))),
    ("has fetched", |of| shown(of.fetched(member(1), content(8)))),
    ("leaves", |of| shown(of.leave(member(1)))),
];

/// What another registry does about the same peer.
const OTHER: [(&str, Act); 3] = [
    ("takes the peer over", |of| shown(join(of, 11, &[6, 7]))),
    ("finds that all leases have ended", |of| {
        all_leases_end(of);
        shown(scan(of))
    }),
    ("takes it over and loses it", |of| {
        let joined = shown(join(of, 11, &[6, 7]));
        shown(of.leave(member(11)));
        joined
    }),
];

fn shown<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.map_or_else(|error| error.to_string(), |answer| format!("{answer:?}"))
}

/// A registry at which the peer has joined, another one, and their store.
fn joined() -> (Arc<Mutex<State>>, Registry, Registry) {
    let group = Arc::new(Mutex::new(State::default()));
    let [owner, other] = [0, 1].map(|_| registry(&group));
    join(&owner, 1, &[1, 2, 3]).unwrap();
    assert!(owner.fetching(member(1), content(8), 8).unwrap());
    [&owner, &other].into_iter().for_each(|registry| scan(registry).unwrap());
    owner.store.calls.store(0, Ordering::Relaxed);
    (group, owner, other)
}

/// Whichever call to the store a registry is held up before (as if it was stopped there), and
/// whatever another does meanwhile: nothing is left that belongs to nobody, the peer is with one
/// registry at most, and every other one tells it to join again.
#[test]
fn of_two_registries_that_interfere_one_has_the_peer_and_all_of_its_rows() {
    for (owns, act) in OWNER {
        for (interferes, interfere) in OTHER {
            for call in 0.. {
                let (group, owner, other) = joined();
                let meanwhile = Arc::clone(&other);
                let interrupt = Box::new(move || drop(interfere(&meanwhile)));
                *owner.store.interruption.lock().unwrap() = Some((call, interrupt));
                let answer = act(&owner);
                let held_up = owner.store.interruption.lock().unwrap().is_none();
                let case = format!("it {owns} ({answer}), before call {call} another {interferes}");
                // What a peer that was told nothing finds out by itself.
                for registry in [&owner, &other] {
                    scan(registry).unwrap();
                }
                let has = |registry: &Registry, sessions: &[u64]| {
                    sessions.iter().any(|of| registry.heartbeat(member(*of)).unwrap())
                };
                let held = [has(&owner, &[1, 2]), has(&other, &[11])];
                time_passes(&[&owner, &other]);
                let left = settled(&group.lock().unwrap());
                assert_eq!(left.is_some(), held != [false; 2], "{case}: {held:?}");
                assert_ne!(held, [true; 2], "{case}");
                let registry = [&owner, &other][usize::from(held[1])];
                if let Some(left) = left {
                    let row = registry.scanned_peers(NEWEST).unwrap().peers[0].1;
                    assert_eq!(row.row.registry, registry.id, "{case}");
                    let member = member(row.row.session);
                    assert!(registry.fetching(member, content(4), 4).unwrap(), "{case}: {left:?}");
                    assert!(held[0] || left == [6, 7], "{case}: {left:?}");
                }
                if !held_up {
                    break;
                }
            }
        }
    }
}

/// Nobody knows whether such a write has taken effect. It is not tried under another condition, and
/// the peer joins again.
#[test]
fn a_write_whose_answer_is_lost_leaves_nothing_behind() {
    for (does, act) in OWNER {
        let effects = (1..12).map(Effect::Later).chain([Effect::Never, Effect::AtOnce]);
        for (call, effect) in (0..12).flat_map(|call| effects.clone().map(move |of| (call, of))) {
            let (group, owner, _) = joined();
            *owner.store.lost.lock().unwrap() = Some((call, effect));
            let case = format!("it {does}, call {call}, takes effect: {effect:?}");
            let answer = act(&owner);
            let case = format!("{case} ({answer})");
            if owner.store.lost.lock().unwrap().take().is_some() {
                // It made no write with that number.
                continue;
            }
            // A connection over which nothing is known any more ends; the peer has another one.
            scan(&owner).unwrap();
            join(&owner, 3, &[2, 5]).unwrap();
            scan(&owner).unwrap();
            time_passes(&[&owner]);
            assert_eq!(settled(&group.lock().unwrap()), Some(vec![2, 5]), "{case}");
            assert!(owner.heartbeat(member(3)).unwrap(), "{case}");
            owner.leave(member(3)).unwrap();
            (0..12).for_each(|_| scan(&owner).unwrap());
            time_passes(&[&owner]);
            assert_eq!(settled(&group.lock().unwrap()), None, "{case}");
        }
    }
}

/// Once it first marked the peer's row as one that is not offered, for which there was no room.
#[test]
fn a_peer_leaves_also_when_the_disk_is_full() {
    let (group, owner, other) = joined();
    for registry in [&owner, &other] {
        registry.store.is_full.store(true, Ordering::Relaxed);
    }
    owner.leave(member(1)).unwrap();
    assert!(!owner.heartbeat(member(1)).unwrap(), "it is gone");
    let leases = {
        let group = group.lock().unwrap();
        assert_eq!(group.row(&peer_key(PEER), None).found, None);
        group.leases.clone()
    };
    // Once there is room, the leases end, which nobody keeps alive any more.
    for registry in [&owner, &other] {
        registry.store.is_full.store(false, Ordering::Relaxed);
        scan(registry).unwrap();
    }
    leases.into_iter().for_each(|lease| group.lock().unwrap().end(lease));
    assert_eq!(settled(&group.lock().unwrap()), None);
}

/// Once such rows were taken for contents that the peer downloads, and keys that are too long, or
/// more than one write may have, were to be removed with it: its removal and its next JOIN failed,
/// each time anew.
#[test]
fn rows_of_others_among_a_peers_downloads_are_left_alone() {
    let (group, owner, _) = joined();
    let prefix = parts_prefix(PEER);
    let long = "x".repeat(limits::KEY_BYTES_MAX - prefix.len());
    let mut foreign: Vec<String> = [&long, "", "file", &content(0xab).to_string().to_uppercase()]
        .map(|rest| format!("{prefix}{rest}"))
        .into();
    foreign.push(format!("{}/x", keys_of_part(PEER, content(1))[1]));
    let put = |key: String, value: Vec<u8>| {
        let mut group = group.lock().unwrap();
        group.next();
        group.put(key, value, None);
    };
    foreign.iter().for_each(|key| put(key.clone(), b"?".to_vec()));
    // And more downloads than any registry accepts, which could be this one's.
    let hash = |number: u32| ContentId(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let parts = 0..2 * limits::STORE_FILES_PER_WRITE as u32;
    let keys = parts.flat_map(|number| keys_of_part(PEER, hash(number)));
    keys.for_each(|key| put(key, encode(&ContentRow { size: 1 })));

    join(&owner, 2, &[1, 2]).unwrap();
    owner.leave(member(2)).unwrap();
    let mut left = group.lock().unwrap();
    let mut is_left = |key: &String| left.versions.remove(key).is_some();
    foreign.iter().for_each(|key| assert!(is_left(key), "{key} is not ours"));
    assert_eq!(settled_without_past(&left), None);
}

/// Once the second removal was taken for the first, and left the peer's row where it was.
#[test]
fn a_peer_that_joins_and_leaves_again_while_its_first_removal_is_under_way_is_gone() {
    during_each_call_of_a_leave(
        |registry| {
            join(registry, 2, &[2, 3]).unwrap();
            registry.leave(member(2)).unwrap();
        },
        |group, _| assert_eq!(settled_without_past(group), None),
    );
}

#[test]
fn a_peer_that_joins_anew_while_it_is_removed_keeps_its_rows() {
    during_each_call_of_a_leave(
        |registry| join(registry, 2, &[2, 3]).unwrap(),
        |group, registry| {
            assert_eq!(settled(group), Some(vec![2, 3]));
            assert!(registry.heartbeat(member(2)).unwrap());
        },
    );
}

/// Once such a JOIN went on with the leases of the files that it found, which were being ended.
#[test]
fn a_join_that_was_broken_off_while_the_peer_is_removed_takes_no_leases_along() {
    for lost in 0..10 {
        during_each_call_of_a_leave(
            move |registry| {
                let calls = registry.store.calls.load(Ordering::Relaxed);
                *registry.store.lost.lock().unwrap() = Some((calls + lost, Effect::AtOnce));
                let _ = join(registry, 2, &[2, 3]);
                *registry.store.lost.lock().unwrap() = None;
                join(registry, 3, &[2, 3]).unwrap();
            },
            |group, registry| {
                assert_eq!(settled(group), Some(vec![2, 3]));
                assert!(registry.heartbeat(member(3)).unwrap());
            },
        );
    }
}

/// Has a peer leave, and does something at its registry before each call that this makes to the
/// store. What is to hold after that holds also when scans have had their turn.
fn during_each_call_of_a_leave(
    act: impl Fn(&Registry) + Clone + Send + 'static,
    holds: fn(&State, &Registry),
) {
    for call in 0.. {
        let (group, owner, _) = joined();
        let (meanwhile, act) = (Arc::clone(&owner), act.clone());
        let interrupt = Box::new(move || act(&meanwhile));
        *owner.store.interruption.lock().unwrap() = Some((call, interrupt));
        owner.leave(member(1)).unwrap();
        if owner.store.interruption.lock().unwrap().take().is_some() {
            assert!(call > 2, "a removal reads and writes");
            return;
        }
        for _ in 0..3 {
            let left = group.lock().unwrap().clone();
            holds(&left, &owner);
            scan(&owner).unwrap();
        }
    }
}

/// Whatever a removal that was broken off has left, the leases' end removes it, and the next scan
/// its past: of its own registry, or of any other.
#[test]
fn a_removal_that_fails_is_ended_by_the_leases() {
    for call in 0..8 {
        for is_dead in [false, true] {
            let (group, owner, other) = joined();
            *owner.store.lost.lock().unwrap() = Some((call, Effect::Never));
            let _ = owner.leave(member(1));
            // Unless that call was no write.
            *owner.store.lost.lock().unwrap() = None;
            time_passes(&[&owner, &other]);
            scan(if is_dead { &other } else { &owner }).unwrap();
            let left = settled_without_past(&group.lock().unwrap());
            assert_eq!(left, None, "call {call}, dead: {is_dead}");
        }
    }
}

#[test]
fn of_a_registry_that_is_dead_nothing_is_left_and_nobody_finds_its_peers() {
    let (group, _dead, other) = joined();
    let name = files(&[1])[0].name.clone();
    assert_eq!(other.search(&name).unwrap().len(), 1);
    time_passes(&[&other]);
    assert_eq!(other.search(&name).unwrap(), []);
    scan(&other).unwrap();
    assert_eq!(settled_without_past(&group.lock().unwrap()), None);
    assert!(group.lock().unwrap().versions.is_empty());
}

/// So many that one lease has no room for them.
const MANY: usize = 5200;

fn many() -> Vec<FileEntry> {
    let file =
        |number| FileEntry { name: of_many(number), size: 1, content: content(number as u8) };
    (0..MANY).map(file).collect()
}

fn of_many(number: usize) -> FileName {
    FileName::new(&format!("many-{number}")).unwrap()
}

/// The number of files of [`many`] that a search finds, the first and the last of which are with
/// different leases.
fn found_of_many(registry: &Registry) -> usize {
    let is_found = |number: &usize| !registry.search(&of_many(*number)).unwrap().is_empty();
    [0, MANY - 1].iter().filter(|number| is_found(number)).count()
}

/// As an operator does, or a client that guesses ids.
#[test]
fn a_peer_of_which_one_of_several_leases_is_revoked_is_not_shown_in_part() {
    for revoked in 0..2 {
        let (group, owner, _) = joined();
        assert!(owner.update(member(1), many(), &[]).unwrap());
        assert_eq!(found_of_many(&owner), 2);
        let leases = group.lock().unwrap().leases.clone();
        assert_eq!(leases.len(), 2, "one has no room for so many files");
        owner.store.revoke(*leases.iter().nth(revoked).unwrap()).unwrap();
        scan(&owner).unwrap();
        assert!(!owner.heartbeat(member(1)).unwrap(), "it is to join again");
        assert_eq!(found_of_many(&owner), 0);
        join(&owner, 2, &[1, 2]).unwrap();
        time_passes(&[&owner]);
        assert_eq!(settled(&group.lock().unwrap()), Some(vec![1, 2]), "lease {revoked}");
    }
}

/// Its registry is dead, and its time is over at just this moment.
#[test]
fn a_lease_that_ends_while_its_peer_is_taken_over_is_not_counted_on() {
    for ended in 0..2 {
        for call in 0.. {
            let (group, owner, other) = joined();
            assert!(owner.update(member(1), many(), &[]).unwrap());
            let lease = *group.lock().unwrap().leases.iter().nth(ended).unwrap();
            other.store.calls.store(0, Ordering::Relaxed);
            other.store.kept_alive_at.store(usize::MAX, Ordering::Relaxed);
            let ends = Arc::clone(&group);
            let interrupt = Box::new(move || ends.lock().unwrap().end(lease));
            *other.store.interruption.lock().unwrap() = Some((call, interrupt));
            let joined = other.join(member(11), place(), many());
            if call > other.store.kept_alive_at.load(Ordering::Relaxed) {
                assert!(call > 2, "it reads what there is first");
                break;
            }
            // If it was refused it comes again.
            let joined = joined.or_else(|_| other.join(member(11), place(), many()));
            joined.unwrap();
            assert_eq!(found_of_many(&other), 2, "lease {ended}, call {call}");
            scan(&other).unwrap();
            assert!(other.heartbeat(member(11)).unwrap(), "lease {ended}, call {call}");
            time_passes(&[&other]);
            assert_eq!(settled(&group.lock().unwrap()).unwrap().len(), MANY);
        }
    }
}

/// Its leases were its registry's to end once, and are the other's now.
#[test]
fn a_peer_that_changes_its_registry_takes_its_leases_along() {
    let (group, owner, other) = joined();
    let leases = group.lock().unwrap().leases.clone();
    join(&other, 11, &[1, 2, 3]).unwrap();
    assert_eq!(group.lock().unwrap().leases, leases);
    owner.leave(member(1)).unwrap();
    scan(&owner).unwrap();
    time_passes(&[&owner, &other]);
    assert_eq!(settled_without_past(&group.lock().unwrap()), Some(vec![1, 2, 3]));
    assert!(other.heartbeat(member(11)).unwrap() && !owner.heartbeat(member(1)).unwrap());
}
