//! What a client has seen: the timestamps by which it never reads backwards (SPEC A4).
//!
//! Three kinds are kept. A *key timestamp* is the newest version of a key this client has written
//! or read, deletions included. A *floor* is how far the state had come that said a key does not
//! exist; a key's timestamp cannot stand for it, because a later version of the key may be older
//! than other keys' writes in that state. The *session* timestamp is the greatest of them all.
//!
//! Memory is bounded: keys live in two generations of equal size. When the young one is full, by
//! number or bytes, the old one is given up, and the greatest timestamp in it becomes a floor for
//! every key that is not remembered, so that forgetting never weakens the promise.

use std::collections::HashMap;
use std::mem;

use bytes::Bytes;

use crate::model::Timestamp;

/// How far the promise never to read backwards reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Causality {
    /// Over all keys: a server answers only when it has applied everything this client has seen.
    #[default]
    Session,
    /// Over each key by itself, as the console shows it.
    PerKey,
}

/// Bytes of the keys whose timestamps a client remembers one by one.
const CLIENT_SEEN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a GET sends, and what its answer is judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Floors {
    /// The greatest version seen of the key.
    pub(super) key: Option<Timestamp>,
    /// The server must have applied everything up to here.
    pub(super) applied: Option<Timestamp>,
}

/// An answer to a GET.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// The version of the value; `None` for no such key.
    pub(super) version: Option<Timestamp>,
    /// The state that says so holds nothing past this point.
    pub(super) as_of: Timestamp,
}

/// What is to be done with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// It may be handed out, and is recorded.
    New,
    /// While it was on its way, another thread was given something newer. Asking again with the
    /// floors of now settles it.
    Overtaken,
    /// It is older than the server was asked to be, so asking that one again would go on for ever.
    Stale,
}

#[derive(Clone, Copy, Debug)]
struct KeySeen {
    timestamp: Option<Timestamp>,
    /// A state that does not have the key any more is this new. Never below `base`.
    floor: Option<Timestamp>,
    /// [`Seen::forgotten`] when the key was last new here: what was known of it before lies within.
    base: Option<Timestamp>,
}

impl KeySeen {
    fn greatest(self) -> Option<Timestamp> {
        self.timestamp.max(self.floor)
    }
}

/// The timestamps, key by key, that the client must not go back behind; `None` is less than any.
pub(super) struct Seen {
    causality: Causality,
    generation_keys_max: usize,
    generation_bytes_max: usize,
    young: HashMap<Bytes, KeySeen>,
    /// Of the young generation's keys.
    young_bytes: usize,
    old: HashMap<Bytes, KeySeen>,
    /// Not below any timestamp ever forgotten.
    forgotten: Option<Timestamp>,
    /// The floor of every key.
    everywhere: Option<Timestamp>,
    session: Option<Timestamp>,
}

impl Seen {
    /// Remembers up to `keys_max` keys (at least 2) one by one.
    pub(super) fn new(causality: Causality, keys_max: usize, session: Option<Timestamp>) -> Seen {
        Seen {
            causality,
            generation_keys_max: (keys_max / 2).max(1),
            generation_bytes_max: CLIENT_SEEN_BYTES_MAX / 2,
            young: HashMap::new(),
            young_bytes: 0,
            old: HashMap::new(),
            forgotten: None,
            everywhere: None,
            session,
        }
    }

    pub(super) fn session(&self) -> Option<Timestamp> {
        self.session
    }

    /// Takes over what another client has seen, or what has nothing to do with any key.
    pub(super) fn raise_session(&mut self, session: Option<Timestamp>) {
        self.session = self.session.max(session);
    }

    fn known(&self, key: &[u8]) -> KeySeen {
        let remembered = self.young.get(key).or_else(|| self.old.get(key)).copied();
        remembered.unwrap_or_else(|| self.unknown())
    }

    fn unknown(&self) -> KeySeen {
        KeySeen { timestamp: None, floor: self.forgotten, base: self.forgotten }
    }

    /// What a GET of `key` must send now.
    pub(super) fn floors(&self, key: &[u8]) -> Floors {
        let known = self.known(key);
        let applied = match self.causality {
            Causality::Session => self.session,
            Causality::PerKey => known.floor.max(self.everywhere),
        };
        Floors { key: known.timestamp, applied }
    }

    /// Records what concerns any number of keys in a state that holds nothing past `timestamp`.
    pub(super) fn saw(&mut self, timestamp: Timestamp) {
        self.raise_session(Some(timestamp));
        self.everywhere = self.everywhere.max(Some(timestamp));
    }

    /// Records that versions of `key` are gone, says a state that holds nothing past `as_of`.
    pub(super) fn absent(&mut self, key: &Bytes, as_of: Timestamp) {
        self.raise_session(Some(as_of));
        self.update(key, |seen| seen.floor = seen.floor.max(Some(as_of)));
    }

    /// Records a write of `key` acknowledged at `timestamp`.
    pub(super) fn wrote(&mut self, key: &Bytes, timestamp: Timestamp) {
        self.raise_session(Some(timestamp));
        self.update(key, |seen| seen.timestamp = seen.timestamp.max(Some(timestamp)));
    }

    /// Records an answer to a GET of `key` that sent `sent`, unless it must not be handed out.
    pub(super) fn accept(&mut self, key: &Bytes, sent: Floors, answer: Answered) -> Judged {
        let Answered { version, as_of } = answer;
        // Of a key that does not exist only the state can be as new as its last version.
        let reached = version.or(Some(as_of));
        if reached < sent.key || Some(as_of) < sent.applied {
            return Judged::Stale;
        }
        let known = self.known(key);
        match version {
            Some(timestamp) => {
                // Older than a state that did not have the key any more, as far as one can tell,
                // unless the server was asked to be past that state.
                let before_removal = version < known.floor && sent.applied < known.floor;
                if version < known.timestamp || before_removal {
                    return Judged::Overtaken;
                }
                self.wrote(key, timestamp);
            }
            None => {
                if sent.key < known.timestamp || sent.applied < known.base {
                    return Judged::Overtaken;
                }
                self.absent(key, as_of);
            }
        }
        Judged::New
    }

    fn update(&mut self, key: &Bytes, change: impl FnOnce(&mut KeySeen)) {
        if let Some(seen) = self.young.get_mut(key.as_ref()) {
            return change(seen);
        }
        let unknown = self.unknown();
        let mut seen = self.old.remove(key.as_ref()).unwrap_or(unknown);
        change(&mut seen);
        if self.young.len() >= self.generation_keys_max
            || self.young_bytes + key.len() > self.generation_bytes_max
        {
            self.young_bytes = 0;
            let given_up = mem::replace(&mut self.old, mem::take(&mut self.young));
            let greatest = given_up.values().filter_map(|seen| seen.greatest()).max();
            self.forgotten = self.forgotten.max(greatest);
        }
        self.young_bytes += key.len();
        self.young.insert(key.clone(), seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: Bytes = Bytes::from_static(b"k");

    fn seen(causality: Causality) -> Seen {
        Seen::new(causality, 8, None)
    }

    fn at(timestamp: i64) -> Option<Timestamp> {
        Some(Timestamp(timestamp))
    }

    /// Zero stands for none.
    fn floors(key: i64, applied: i64) -> Floors {
        let [key, applied] = [key, applied].map(|floor| at(floor).filter(|floor| floor.0 > 0));
        Floors { key, applied }
    }

    /// A value of this version, of a state that holds nothing past 50.
    fn value(version: i64) -> Answered {
        Answered { version: at(version), as_of: Timestamp(50) }
    }

    /// No such key, says a state that holds nothing past this point.
    fn missing(as_of: i64) -> Answered {
        Answered { version: None, as_of: Timestamp(as_of) }
    }

    #[test]
    fn a_new_client_asks_for_nothing() {
        let nothing = Floors { key: None, applied: None };
        assert_eq!(seen(Causality::Session).floors(b"k"), nothing);
        assert_eq!(seen(Causality::PerKey).floors(b"k"), nothing);
    }

    #[test]
    fn a_session_covers_every_key_and_per_key_covers_one() {
        for (causality, other) in [(Causality::Session, 10), (Causality::PerKey, 0)] {
            let mut seen = seen(causality);
            seen.wrote(&K, Timestamp(10));
            assert_eq!(seen.floors(b"k").key, at(10));
            assert_eq!(seen.floors(b"other"), floors(0, other));
        }
    }

    #[test]
    fn a_missing_key_asks_for_a_state_as_new_but_not_for_a_version() {
        let mut seen = seen(Causality::PerKey);
        seen.wrote(&K, Timestamp(5));
        assert_eq!(seen.accept(&K, floors(5, 0), missing(9)), Judged::New);
        assert_eq!(seen.floors(b"k"), floors(5, 9));
        // Written again at 7, which that state may have missed: fine from a server past 9.
        assert_eq!(seen.accept(&K, floors(5, 9), value(7)), Judged::New);
        assert_eq!(seen.floors(b"k"), floors(7, 9));
        assert_eq!(seen.session(), at(9));
    }

    #[test]
    fn an_answer_overtaken_by_a_newer_one_is_not_handed_out() {
        let mut seen = seen(Causality::Session);
        let sent = seen.floors(b"k");
        assert_eq!(seen.accept(&K, sent, value(9)), Judged::New);
        assert_eq!(seen.accept(&K, sent, value(7)), Judged::Overtaken);
        assert_eq!(seen.accept(&K, sent, missing(7)), Judged::Overtaken);
        assert_eq!(seen.accept(&K, sent, value(9)), Judged::New);

        let sent = seen.floors(b"k");
        assert_eq!(seen.accept(&K, sent, missing(20)), Judged::New);
        assert_eq!(seen.accept(&K, sent, value(9)), Judged::Overtaken);
        assert_eq!(seen.accept(&K, sent, missing(15)), Judged::New);
        assert_eq!(seen.session(), at(20));
    }

    #[test]
    fn an_answer_of_a_state_that_is_older_than_asked_for_is_not_handed_out() {
        for causality in [Causality::Session, Causality::PerKey] {
            let mut seen = seen(causality);
            seen.wrote(&K, Timestamp(5));
            seen.saw(Timestamp(20));
            let sent = seen.floors(b"k");
            assert_eq!(sent, floors(5, 20));
            assert_eq!(seen.accept(&K, sent, missing(19)), Judged::Stale);
            let behind = Answered { version: at(5), as_of: Timestamp(19) };
            assert_eq!(seen.accept(&K, sent, behind), Judged::Stale);
            assert_eq!(seen.accept(&K, sent, value(4)), Judged::Stale);
            assert_eq!(seen.session(), at(20), "nothing is recorded of them");
            assert_eq!(seen.accept(&K, sent, missing(20)), Judged::New);
        }
        // No state was asked for, and the version says enough.
        let mut seen = seen(Causality::PerKey);
        seen.wrote(&K, Timestamp(5));
        assert_eq!(seen.accept(&K, floors(5, 0), missing(4)), Judged::Stale);
        assert_eq!(seen.accept(&K, floors(5, 0), missing(5)), Judged::New);
    }

    #[test]
    fn what_was_seen_of_many_keys_at_once_is_a_floor_for_each() {
        let mut seen = seen(Causality::PerKey);
        seen.wrote(&K, Timestamp(5));
        seen.saw(Timestamp(20));
        assert_eq!((seen.floors(b"k"), seen.floors(b"other")), (floors(5, 20), floors(0, 20)));
        assert_eq!(seen.session(), at(20));
        // A trim, or a version that is gone, moves the key's floor and not its timestamp.
        seen.absent(&K, Timestamp(30));
        assert_eq!((seen.floors(b"k"), seen.floors(b"other")), (floors(5, 30), floors(0, 20)));
        // A barrier is a timestamp and no more.
        seen.raise_session(at(40));
        assert_eq!(seen.floors(b"k"), floors(5, 30));
    }

    #[test]
    fn forgetting_a_key_keeps_the_promise() {
        let mut seen = Seen::new(Causality::PerKey, 4, None);
        for time in 1..=100 {
            seen.wrote(&Bytes::from(format!("k{time}")), Timestamp(time));
        }
        assert!(seen.young.len() + seen.old.len() <= 4);
        assert_eq!(seen.floors(b"k100").key, at(100));
        let forgotten = seen.floors(b"k1");
        assert_eq!(forgotten.key, None);
        assert!(forgotten.applied >= at(96), "{forgotten:?}");
        // A key in use stays remembered, whatever else passes by.
        for time in 101..=200 {
            seen.wrote(&K, Timestamp(time));
            seen.wrote(&Bytes::from(format!("k{time}")), Timestamp(time));
        }
        assert_eq!(seen.floors(b"k").key, at(200));
    }

    #[test]
    fn long_keys_are_forgotten_by_their_bytes() {
        let mut seen = Seen::new(Causality::PerKey, 1_000_000, None);
        let key = |time: i64| Bytes::from(format!("{time:0>4096}"));
        let count = (2 * CLIENT_SEEN_BYTES_MAX / 4096) as i64;
        (1..=count).for_each(|time| seen.wrote(&key(time), Timestamp(time)));
        let remembered = seen.young.keys().chain(seen.old.keys());
        assert!(remembered.map(Bytes::len).sum::<usize>() <= CLIENT_SEEN_BYTES_MAX);
        assert_eq!(seen.floors(&key(count)).key, at(count));
        assert!(seen.floors(&key(1)).applied >= at(1), "forgetting keeps the promise");
    }

    #[test]
    fn an_answer_under_way_while_its_key_was_forgotten_is_not_handed_out() {
        let mut seen = Seen::new(Causality::PerKey, 2, None);
        let sent = seen.floors(b"k");
        seen.wrote(&K, Timestamp(9));
        for time in [10, 11, 12] {
            seen.wrote(&Bytes::from(format!("k{time}")), Timestamp(time));
        }
        assert_eq!(seen.floors(b"k").key, None);
        assert_eq!(seen.accept(&K, sent, value(7)), Judged::Overtaken);
        assert_eq!(seen.accept(&K, sent, missing(20)), Judged::Overtaken);
        let sent = seen.floors(b"k");
        assert_eq!(seen.accept(&K, sent, value(9)), Judged::New);
    }
}
