//! Two registries over one store in memory, of which one is held up before any of its calls to the
//! store while the other does something about the same peer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::client::ClientError;
use crate::model::{Row, Timestamp, Version};

/// The versions of each key, oldest first.
type Versions = BTreeMap<String, Vec<(Timestamp, Bytes)>>;
type Interruption = (usize, Box<dyn FnOnce() + Send>);

/// When a write takes effect whose answer is lost.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Never,
    AtOnce,
    /// Before the call that is so many calls later.
    Later(usize),
}

/// One registry's way to the store.
#[derive(Default)]
struct MapStore {
    versions: Arc<Mutex<Versions>>,
    calls: AtomicUsize,
    /// What happens before the call of this number.
    interruption: Mutex<Option<Interruption>>,
    /// The number of the write whose answer is lost.
    lost: Mutex<Option<(usize, Effect)>>,
    /// Whether the disk has no room, so that nothing can be stored.
    is_full: AtomicBool,
}

impl MapStore {
    fn called(&self) -> MutexGuard<'_, Versions> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let due = self.interruption.lock().unwrap().take_if(|(at, _)| *at == call);
        if let Some((_, interrupt)) = due {
            interrupt();
        }
        self.versions.lock().unwrap()
    }

    /// Refuses what a server with a full disk refuses, or would take for a faulty request.
    fn check(&self, puts: &[(String, Vec<u8>)], removes: &[String]) -> Result<()> {
        let server = "127.0.0.1:1".parse().unwrap();
        let error =
            |message: String| Err(DirectoryError::Store(ClientError::Invalid { server, message }));
        if let Some(key) = removes.iter().find(|key| key.len() > limits::KEY_BYTES_MAX) {
            return error(format!("a key of {} bytes is too long", key.len()));
        }
        if puts.len() + removes.len() > 3 * limits::STORE_FILES_PER_WRITE + 1 {
            return error(format!("{} keys are too many", puts.len() + removes.len()));
        }
        if self.is_full.load(Ordering::Relaxed) && !puts.is_empty() {
            return error("the disk is full".to_owned());
        }
        Ok(())
    }

    fn rows(versions: &Versions, from: &[u8], to: &[u8]) -> Vec<Row> {
        let rows = versions.iter().filter(|(key, _)| (from..=to).contains(&key.as_bytes()));
        rows.map(|(key, versions)| row(key.clone(), versions.last())).collect()
    }
}

fn version((timestamp, value): &(Timestamp, Bytes)) -> Version {
    Version { timestamp: *timestamp, value: value.clone(), facts: None }
}

fn row(key: String, newest: Option<&(Timestamp, Bytes)>) -> Row {
    Row { key: key.into(), found: newest.map(version) }
}

fn write_if(
    versions: &mut Versions,
    key: &str,
    condition: Condition,
    puts: Vec<(String, Vec<u8>)>,
    removes: Vec<String>,
) -> Option<Timestamp> {
    let newest = versions.get(key).and_then(|versions| versions.last()).map(|(at, _)| *at);
    let holds = match condition {
        Condition::Absent => newest.is_none(),
        Condition::Version(version) => newest == Some(version),
    };
    holds.then(|| write(versions, puts, removes))
}

fn write(versions: &mut Versions, puts: Vec<(String, Vec<u8>)>, removes: Vec<String>) -> Timestamp {
    let last = versions.values().flatten().map(|(at, _)| at.0).max();
    let now = Timestamp(last.unwrap_or_default() + 1);
    removes.iter().for_each(|key| drop(versions.remove(key)));
    for (key, value) in puts {
        versions.entry(key).or_default().push((now, value.into()));
    }
    now
}

impl RowStore for MapStore {
    fn get(&self, key: &str) -> Result<Option<Version>> {
        Ok(self.called().get(key).and_then(|versions| versions.last()).map(version))
    }

    fn get_all(&self, keys: impl Iterator<Item = String>) -> Result<Vec<Row>> {
        let versions = self.called();
        let newest = |key: &String| versions.get(key).and_then(|versions| versions.last()).cloned();
        Ok(keys.map(|key| row(key.clone(), newest(&key).as_ref())).collect())
    }

    fn range(
        &self,
        from: &str,
        to: &[u8],
        _: ReadOptions,
    ) -> Result<impl Iterator<Item = Result<Row>>> {
        Ok(MapStore::rows(&self.called(), from.as_bytes(), to).into_iter().map(Ok))
    }

    fn put(&self, key: &str, value: Vec<u8>) -> Result<()> {
        let puts = vec![(key.to_owned(), value)];
        self.check(&puts, &[])?;
        write(&mut self.called(), puts, vec![]);
        Ok(())
    }

    fn trim(&self, key: &str) -> Result<()> {
        if let Some(versions) = self.called().get_mut(key) {
            versions.drain(..versions.len() - 1);
        }
        Ok(())
    }

    fn write_if(
        &self,
        key: &str,
        condition: Condition,
        puts: Vec<(String, Vec<u8>)>,
        removes: Vec<String>,
    ) -> Result<Option<Timestamp>> {
        self.check(&puts, &removes)?;
        let mut versions = self.called();
        let call = self.calls.load(Ordering::Relaxed) - 1;
        let mut lost = self.lost.lock().unwrap();
        let Some((_, effect)) = lost.take_if(|(at, _)| *at == call) else {
            return Ok(write_if(&mut versions, key, condition, puts, removes));
        };
        match effect {
            Effect::Never => {}
            Effect::AtOnce => drop(write_if(&mut versions, key, condition, puts, removes)),
            Effect::Later(calls) => {
                let (versions, key) = (Arc::clone(&self.versions), key.to_owned());
                let apply = move || {
                    write_if(&mut versions.lock().unwrap(), &key, condition, puts, removes);
                };
                *self.interruption.lock().unwrap() = Some((call + calls, Box::new(apply)));
            }
        }
        Err(DirectoryError::Store(ClientError::Ended))
    }
}

type Registry = Arc<StoreDirectory<MapStore>>;

const PEER: PeerId = PeerId(7);
const SILENCE: Duration = Duration::from_secs(600);

fn registry(versions: &Arc<Mutex<Versions>>) -> Registry {
    let store = MapStore { versions: Arc::clone(versions), ..MapStore::default() };
    let registry = StoreDirectory::new(store, IndexLimits::default(), SILENCE);
    registry.write_heartbeat().unwrap();
    Arc::new(registry)
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

/// Joins from one of two addresses with the secret that all connections of the peer have.
fn join(registry: &Registry, session: u64, numbers: &[u8]) -> Result<()> {
    let address = SocketAddr::from(([10, 0, 0, 1], 5000));
    let place = PeerEndpoint { address, origin: address.ip(), key: 3 };
    registry.join(member(session), place, files(numbers))
}

/// Scans, and removes what is orphaned.
fn scan(registry: &Registry) -> Result<()> {
    registry.scan()?.into_iter().try_for_each(|(peer, _)| registry.remove_silent(peer))
}

/// The numbers of the peer's files, once everything that belongs together is there; `None` without
/// the peer's row.
fn settled(versions: &Versions) -> Option<Vec<u8>> {
    let rows = |prefix: &str| MapStore::rows(versions, prefix.as_bytes(), &end(prefix));
    let decoded = |row: &Row| value::<FileRow>(row.value()).unwrap();
    let by_peer: Vec<FileRow> = rows("share/file/").iter().map(decoded).collect();
    let by_name: Vec<FileRow> = rows(NAMES).iter().map(decoded).collect();
    let parts = rows("share/part/").len();
    assert_eq!(by_peer, by_name, "{versions:?}");
    assert_eq!(rows("share/content/").len(), by_peer.len() + parts, "{versions:?}");
    for (key, versions) in versions {
        assert_eq!(versions.len(), 1, "{key} keeps versions that were overwritten");
    }
    let peer = rows(PEERS).pop();
    let cleanup = rows(CLEANUPS).pop();
    assert_eq!(peer.is_some(), cleanup.is_some(), "{versions:?}");
    let Some(peer) = peer else {
        assert!(by_peer.is_empty() && parts == 0, "rows of no peer: {versions:?}");
        return None;
    };
    let peer: PeerRow = value(peer.value()).unwrap();
    assert_eq!(peer.files, by_peer.len() as u64, "{peer:?}");
    assert_eq!(peer.bytes, by_peer.iter().map(|file| file.size).sum::<u64>(), "{peer:?}");
    assert!(peer.offered, "{peer:?}");
    Some(by_peer.iter().map(|file| file.size as u8).collect())
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
    ("believes its registry dead", |of| {
        of.store
            .versions
            .lock()
            .unwrap()
            .retain(|key, _| !key.starts_with(REGISTRIES) || *key == registry_key(of.id));
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
fn joined() -> (Arc<Mutex<Versions>>, Registry, Registry) {
    let versions = Arc::new(Mutex::new(Versions::new()));
    let [owner, other] = [0, 1].map(|_| registry(&versions));
    join(&owner, 1, &[1, 2, 3]).unwrap();
    assert!(owner.fetching(member(1), content(8), 8).unwrap());
    owner.store.calls.store(0, Ordering::Relaxed);
    (versions, owner, other)
}

/// Whichever call to the store a registry is held up before (as if it was stopped there), and
/// whatever another does meanwhile: nothing is left that belongs to nobody, the peer is with one
/// registry at most, and every other one tells it to join again.
#[test]
fn of_two_registries_that_interfere_one_has_the_peer_and_all_of_its_rows() {
    for (owns, act) in OWNER {
        for (interferes, interfere) in OTHER {
            for call in 0.. {
                let (versions, owner, other) = joined();
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
                let left = settled(&versions.lock().unwrap());
                assert_eq!(left.is_some(), held != [false; 2], "{case}: {held:?}");
                assert_ne!(held, [true; 2], "{case}");
                let registry = [&owner, &other][usize::from(held[1])];
                if let Some(left) = left {
                    let row = registry.peer_rows(PEERS, NEWEST).unwrap()[0].1;
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
            let (versions, owner, _) = joined();
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
            assert_eq!(settled(&versions.lock().unwrap()), Some(vec![2, 5]), "{case}");
            assert!(owner.heartbeat(member(3)).unwrap(), "{case}");
            owner.leave(member(3)).unwrap();
            (0..12).for_each(|_| scan(&owner).unwrap());
            assert_eq!(settled(&versions.lock().unwrap()), None, "{case}");
        }
    }
}

#[test]
fn a_registry_that_goes_on_keeps_its_row_from_those_who_believed_it_dead() {
    let (versions, owner, other) = joined();
    let key = registry_key(owner.id);
    let dead = other.store.get(&key).unwrap().unwrap().timestamp;
    owner.write_heartbeat().unwrap();
    let remove = other.store.write_if(&key, Condition::Version(dead), vec![], vec![key.clone()]);
    assert_eq!(remove.unwrap(), None);
    assert!(versions.lock().unwrap().contains_key(&key));
}

/// Once it first marked the peer's row as one that is not offered, for which there was no room.
#[test]
fn a_peer_leaves_also_when_the_disk_is_full() {
    let (versions, owner, other) = joined();
    for registry in [&owner, &other] {
        registry.store.is_full.store(true, Ordering::Relaxed);
    }
    owner.leave(member(1)).unwrap();
    assert_eq!(settled(&versions.lock().unwrap()), None);
}

/// Once such rows were taken for contents that the peer downloads, and keys that are too long, or
/// more than one write may have, were to be removed with it: its removal and its next JOIN failed,
/// each time anew.
#[test]
fn rows_of_others_among_a_peers_downloads_are_left_alone() {
    let (versions, owner, _) = joined();
    let prefix = parts_prefix(PEER);
    let long = "x".repeat(limits::KEY_BYTES_MAX - prefix.len());
    let mut foreign: Vec<String> = [&long, "", "file", &content(0xab).to_string().to_uppercase()]
        .map(|rest| format!("{prefix}{rest}"))
        .into();
    foreign.push(format!("{}/x", keys_of_part(PEER, content(1))[1]));
    let puts = foreign.iter().map(|key| (key.clone(), b"?".to_vec())).collect();
    write(&mut versions.lock().unwrap(), puts, vec![]);
    // And more downloads than any registry accepts, which could be this one's.
    let hash = |number: u32| ContentId(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let parts = 0..2 * limits::STORE_FILES_PER_WRITE as u32;
    let puts = parts.flat_map(|number| keys_of_part(PEER, hash(number)));
    let puts = puts.map(|key| (key, encode(&ContentRow { size: 1 }))).collect();
    write(&mut versions.lock().unwrap(), puts, vec![]);

    join(&owner, 2, &[1, 2]).unwrap();
    owner.leave(member(2)).unwrap();
    let mut left = versions.lock().unwrap();
    foreign.iter().for_each(|key| assert!(left.remove(key).is_some(), "{key} is not ours"));
    assert_eq!(settled(&left), None);
}

/// Once the second removal was taken for the first, and left the peer's row where it was.
#[test]
fn a_peer_that_joins_and_leaves_again_while_its_first_removal_is_under_way_is_gone() {
    during_each_call_of_a_leave(
        |registry| {
            join(registry, 2, &[2, 3]).unwrap();
            registry.leave(member(2)).unwrap();
        },
        |versions, _| assert_eq!(settled(versions), None),
    );
}

#[test]
fn a_peer_that_joins_anew_while_it_is_removed_keeps_its_rows() {
    during_each_call_of_a_leave(
        |registry| join(registry, 2, &[2, 3]).unwrap(),
        |versions, registry| {
            assert_eq!(settled(versions), Some(vec![2, 3]));
            assert!(registry.heartbeat(member(2)).unwrap());
        },
    );
}

/// Has a peer leave, and does something at its registry before each call that this makes to the
/// store. What is to hold after that holds also when scans have had their turn.
fn during_each_call_of_a_leave(act: fn(&Registry), holds: fn(&Versions, &Registry)) {
    for call in 0.. {
        let (versions, owner, _) = joined();
        let meanwhile = Arc::clone(&owner);
        let interrupt = Box::new(move || act(&meanwhile));
        *owner.store.interruption.lock().unwrap() = Some((call, interrupt));
        owner.leave(member(1)).unwrap();
        if owner.store.interruption.lock().unwrap().take().is_some() {
            assert!(call > 2, "a removal reads and writes");
            return;
        }
        for _ in 0..3 {
            let versions = versions.lock().unwrap().clone();
            holds(&versions, &owner);
            scan(&owner).unwrap();
        }
    }
}

/// Whatever a removal that was broken off has left, the next scan removes it: of its own registry,
/// or of any if that is dead.
#[test]
fn a_removal_that_fails_is_ended_by_the_next_scan() {
    for call in 0..8 {
        for is_dead in [false, true] {
            let (versions, owner, other) = joined();
            *owner.store.lost.lock().unwrap() = Some((call, Effect::Never));
            let _ = owner.leave(member(1));
            // Unless that call was no write.
            *owner.store.lost.lock().unwrap() = None;
            scan(&other).unwrap();
            let sweeper = match is_dead {
                true => {
                    versions.lock().unwrap().remove(&registry_key(owner.id));
                    &other
                }
                false => &owner,
            };
            scan(sweeper).unwrap();
            assert_eq!(settled(&versions.lock().unwrap()), None, "call {call}, dead: {is_dead}");
        }
    }
}
