//! Who leads, as the events of a watch tell it: a state machine without I/O.
//!
//! It keeps every contender for the name in the order in which they come to lead, so that it knows
//! the next leader when one has gone, and misses none however short it led. Who leads is asked only
//! between two writes: within one, a key may have gone whose successor is still to be told.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::client::contender::ContestName;
use crate::client::{ClientError, WatchEvent};
use crate::model::{Facts, Row, Timestamp, Version};

/// Bytes of the keys and values of all contenders for a name that are held in memory. Values are to
/// be addresses and names, of which this is some hundred thousand.
const CONTENDERS_BYTES_MAX: usize = 64 << 20;

/// Somebody who leads, as others can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The key that stands for the leader.
    pub key: Bytes,
    /// What the leader has proclaimed last.
    pub value: Bytes,
    /// The leader's fencing token: greater than that of everybody who led before.
    pub fence: Timestamp,
    /// The version of the value.
    pub timestamp: Timestamp,
    /// What that version says of the key: its lease among others.
    pub facts: Option<Facts>,
}

/// All contenders for a name.
pub struct LeaderBook {
    name: ContestName,
    /// In the order in which they lead.
    contenders: BTreeMap<(Timestamp, Bytes), Version>,
    /// With which version the key of each came into being.
    created: HashMap<Bytes, Timestamp>,
    bytes: usize,
    /// All of a write, or of a reset, has been seen.
    is_settled: bool,
    /// Who was told last to lead; `None` before anything was told.
    told: Option<Option<Leader>>,
}

impl LeaderBook {
    /// Those of the name, of which none is known yet.
    pub fn new(name: ContestName) -> LeaderBook {
        LeaderBook {
            name,
            contenders: BTreeMap::new(),
            created: HashMap::new(),
            bytes: 0,
            is_settled: true,
            told: None,
        }
    }

    /// A row of a read of all keys of the name.
    ///
    /// # Errors
    /// [`ClientError::NoRoom`].
    pub fn row(&mut self, row: Row) -> Result<(), ClientError> {
        self.now_has(row.key, row.found)
    }

    /// An event of a watch of all keys of the name.
    ///
    /// # Errors
    /// [`ClientError::NoRoom`].
    pub fn take(&mut self, event: WatchEvent) -> Result<(), ClientError> {
        match event {
            WatchEvent::Changed { changes, continues, .. } => {
                for change in changes {
                    self.now_has(change.key, change.written)?;
                }
                self.is_settled = !continues;
            }
            WatchEvent::Reset { rows, begins, continues, .. } => {
                if begins {
                    self.contenders.clear();
                    self.created.clear();
                    self.bytes = 0;
                }
                for row in rows {
                    self.now_has(row.key, row.found)?;
                }
                self.is_settled = !continues;
            }
        }
        Ok(())
    }

    fn now_has(&mut self, key: Bytes, found: Option<Version>) -> Result<(), ClientError> {
        if !self.name.has(&key) {
            return Ok(());
        }
        if let Some(created) = self.created.remove(&key) {
            let before = self.contenders.remove(&(created, key.clone()));
            self.bytes -= before.map_or(0, |before| key.len() + before.value.len());
        }
        let Some(found) = found else { return Ok(()) };
        self.bytes += key.len() + found.value.len();
        if self.bytes > CONTENDERS_BYTES_MAX {
            return Err(ClientError::NoRoom(self.bytes));
        }
        let created = found.facts.map_or(found.timestamp, |facts| facts.created);
        self.created.insert(key.clone(), created);
        self.contenders.insert((created, key), found);
        Ok(())
    }

    /// Who leads, says all that has come.
    pub fn leader(&self) -> Option<Leader> {
        let ((fence, key), version) = self.contenders.first_key_value()?;
        let Version { timestamp, value, facts } = version.clone();
        Some(Leader { key: key.clone(), value, fence: *fence, timestamp, facts })
    }

    /// Who leads, if that is another than was told last, or tells another value.
    pub fn settled(&mut self) -> Option<Option<Leader>> {
        let leader = self.is_settled.then(|| self.leader())?;
        if self.told.as_ref() == Some(&leader) {
            return None;
        }
        self.told = Some(leader.clone());
        Some(leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::KeyChange;

    fn version(created: i64, at: i64, value: &'static str) -> Version {
        let facts = Facts { created: Timestamp(created), count: 1, lease: None };
        let value = Bytes::from_static(value.as_bytes());
        Version { timestamp: Timestamp(at), value, facts: Some(facts) }
    }

    fn change(key: &'static str, written: Option<Version>) -> KeyChange {
        let key = Bytes::from_static(key.as_bytes());
        KeyChange { at: Timestamp(0), key, written, previous: None }
    }

    fn changed(changes: Vec<KeyChange>, continues: bool) -> WatchEvent {
        WatchEvent::Changed { version: Timestamp(0), changes, continues }
    }

    /// The values of the leaders that an event makes known.
    fn told(book: &mut LeaderBook, event: WatchEvent) -> Option<Option<Bytes>> {
        book.take(event).unwrap();
        book.settled().map(|leader| leader.map(|leader| leader.value))
    }

    fn some(value: &'static str) -> Option<Option<Bytes>> {
        Some(Some(Bytes::from_static(value.as_bytes())))
    }

    #[test]
    fn each_leader_and_each_of_its_values_is_told_once() {
        let mut book = LeaderBook::new(ContestName::new(b"n").unwrap());
        assert_eq!(book.settled(), Some(None), "nobody leads");
        assert_eq!(book.settled(), None);
        let mut event = |changes| told(&mut book, changed(changes, false));
        assert_eq!(event(vec![change("n/b", Some(version(5, 5, "bia")))]), some("bia"));
        // Who comes later waits, in whatever order the keys are.
        assert_eq!(event(vec![change("n/a", Some(version(6, 6, "ana")))]), None);
        assert_eq!(event(vec![change("n/x/c", Some(version(1, 1, "other name")))]), None);
        assert_eq!(event(vec![change("n/b", Some(version(5, 7, "bia 2")))]), some("bia 2"));
        assert_eq!(event(vec![change("n/a", Some(version(6, 8, "ana 2")))]), None);
        assert_eq!(event(vec![change("n/b", None)]), some("ana 2"));
        assert_eq!(event(vec![change("n/a", None)]), Some(None));
    }

    #[test]
    fn nobody_is_told_before_a_write_or_a_reset_is_whole() {
        let mut book = LeaderBook::new(ContestName::new(b"n").unwrap());
        book.row(Row { key: "n/a".into(), found: Some(version(1, 1, "ana")) }).unwrap();
        assert!(book.settled().is_some());
        assert_eq!(told(&mut book, changed(vec![change("n/a", None)], true)), None);
        let rest = vec![change("n/b", Some(version(2, 2, "bia")))];
        assert_eq!(told(&mut book, changed(rest, false)), some("bia"));

        let reset = |rows, begins, continues| WatchEvent::Reset {
            version: Timestamp(9),
            rows,
            begins,
            continues,
        };
        assert_eq!(told(&mut book, reset(vec![], true, true)), None);
        let row = Row { key: "n/b".into(), found: Some(version(2, 2, "bia")) };
        assert_eq!(told(&mut book, reset(vec![row], false, false)), None, "she still leads");
        assert_eq!(told(&mut book, reset(vec![], true, false)), Some(None));
    }

    #[test]
    fn more_than_fits_in_memory_is_an_error() {
        let mut book = LeaderBook::new(ContestName::new(b"n").unwrap());
        let value = Bytes::from(vec![0; 1 << 20]);
        let mut put = |key: usize| {
            let found = Some(Version { value: value.clone(), ..version(1, 1, "") });
            book.row(Row { key: format!("n/{key}").into(), found })
        };
        // The same one again takes the room that it had.
        (0..63).chain(0..63).for_each(|key| put(key).unwrap());
        assert!(matches!(put(64), Ok(()) | Err(ClientError::NoRoom(_))));
        assert!(matches!(put(65), Err(ClientError::NoRoom(_))));
    }
}
