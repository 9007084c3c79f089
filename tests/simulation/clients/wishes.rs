//! What clients think of doing: all operations of the store, mostly sensible ones.

use acervo::model::{
    Barrier, Condition, Del, DelAll, DelRange, History, PageOf, Put, PutAll, PutIf, ReadView,
    SetHistory, Timestamp, Trim, WriteIf, WriteOp,
};
use acervo::wire::message::{GetRequest, PageRequest, PageView, ReadAt};
use bytes::Bytes;

use super::{Longer, Memory, Question};
use crate::world::{Event, MILLISECOND, World};

/// Keys that are written, and some more that are only asked for.
const KEYS_WRITTEN: u64 = 6;
const KEYS: u64 = 8;

impl World {
    /// A client thinks of something to do.
    pub fn think(&mut self, client: usize) {
        let state = &mut self.clients[client];
        if state.wishes == 0 {
            return;
        }
        if state.under_way < state.pipeline {
            state.wishes -= 1;
            match self.rng.below(100) {
                0..50 => {
                    let op = self.wish_to_write(client);
                    self.write(client, None, op);
                }
                50..80 => self.wish_to_get(client),
                _ => self.wish_for_pages(client),
            }
        }
        let delay_us = self.rng.range(MILLISECOND..=100 * MILLISECOND);
        self.after(delay_us, Event::Think { client });
    }

    fn any_key(&mut self, of: u64) -> Bytes {
        // One that cannot exist, now and then.
        if self.rng.chance(3) {
            return Bytes::new();
        }
        Bytes::from(format!("key-{}", self.rng.below(of)))
    }

    /// In any order, some perhaps twice, perhaps none.
    fn any_keys(&mut self, of: u64) -> Vec<Bytes> {
        (0..self.rng.below(5)).map(|_| self.any_key(of)).collect()
    }

    /// Usually the right way round.
    fn any_range(&mut self) -> (Bytes, Bytes) {
        let (from, to) = (self.any_key(KEYS), self.any_key(KEYS));
        if from > to && self.rng.chance(900) { (to, from) } else { (from, to) }
    }

    fn wish_to_write(&mut self, client: usize) -> WriteOp {
        let value = |part: usize, id: u64| {
            Bytes::from(format!("{client}/{id}{}", ["", "b", "c", "d"][part]))
        };
        let id = self.clients[client].writes_begun + 1;
        let tells_previous = self.rng.chance(600);
        match self.rng.below(100) {
            0..12 => {
                let key = self.any_key(KEYS_WRITTEN);
                let condition = self.any_condition(client, &key);
                PutIf { key, value: value(0, id), condition }.into()
            }
            12..20 => {
                let key = self.any_key(KEYS_WRITTEN);
                let condition = self.any_condition(client, &key);
                let keys = self.any_keys(KEYS_WRITTEN).into_iter().enumerate();
                let puts = keys.map(|(part, key)| (key, value(part, id))).collect();
                let removes = self.any_keys(KEYS);
                WriteIf { key, condition, puts, removes }.into()
            }
            20..45 => WriteOp::Put(Put {
                key: self.any_key(KEYS_WRITTEN),
                value: value(0, id),
                tells_previous,
            }),
            45..65 => {
                let keys = self.any_keys(KEYS_WRITTEN).into_iter().enumerate();
                WriteOp::PutAll(PutAll {
                    pairs: keys.map(|(part, key)| (key, value(part, id))).collect(),
                })
            }
            65..74 => WriteOp::Del(Del { key: self.any_key(KEYS), tells_previous }),
            74..80 => WriteOp::DelAll(DelAll { keys: self.any_keys(KEYS) }),
            80..86 => {
                let (from, to) = self.any_range();
                WriteOp::DelRange(DelRange { from, to })
            }
            86..96 => WriteOp::Trim(Trim { key: self.any_key(KEYS), tells_previous }),
            96..99 => WriteOp::Barrier(Barrier {}),
            _ => WriteOp::SetHistory(SetHistory { history: self.any_history() }),
        }
    }

    /// Often one that holds, as far as this client knows.
    fn any_condition(&mut self, client: usize, key: &Bytes) -> Condition {
        let seen = self.clients[client].seen.get(key).copied();
        match seen.filter(|seen| *seen > Timestamp::ZERO && self.rng.chance(800)) {
            Some(seen) => Condition::Version(seen),
            None => Condition::Absent,
        }
    }

    fn any_history(&mut self) -> History {
        self.rng.pick(&[
            History::All,
            History::For { age_us: 500 * MILLISECOND },
            History::For { age_us: 4000 * MILLISECOND },
            History::Versions { count: 1 },
            History::Versions { count: 3 },
        ])
    }

    /// A version that was, one that this client knows, or one that may still be to come.
    fn any_version(&mut self, client: usize) -> Timestamp {
        let session = self.clients[client].session.0;
        if session == 0 {
            return Timestamp::ZERO;
        }
        let back_us = self.rng.pick(&[0, 1, 100 * MILLISECOND, 2000 * MILLISECOND]);
        match self.rng.below(10) {
            0 => Timestamp(session + self.rng.range(1..=50 * MILLISECOND) as i64),
            1 => Timestamp(1),
            _ => Timestamp(session - self.rng.range(0..=back_us) as i64),
        }
    }

    fn wish_to_get(&mut self, client: usize) {
        let key = self.any_key(KEYS);
        if self.rng.chance(700) {
            let linearizable = self.rng.chance(400);
            self.read(client, None, key, linearizable);
            return;
        }
        let at = self.any_version(client);
        let (read_at, linearizable) = (ReadAt::Version(at), self.rng.chance(200));
        let session = Some(self.clients[client].session);
        let facts = self.rng.chance(500);
        let get = GetRequest { key, read_at, session, linearizable, facts };
        self.begin(client, None, Question::Get(get));
    }

    fn wish_for_pages(&mut self, client: usize) {
        let of = match self.rng.below(10) {
            0..6 => {
                let (from, to) = self.any_range();
                match self.rng.chance(300) {
                    true => PageOf::RangeReverse { from, to },
                    false => PageOf::Range { from, to },
                }
            }
            6..8 => PageOf::Keys { keys: self.any_keys(KEYS) },
            _ => PageOf::Versions { key: self.any_key(KEYS) },
        };
        let at = self.rng.chance(300).then(|| self.any_version(client));
        let linearizable = self.rng.chance(300);
        let session = Some(self.clients[client].session);
        self.begin_pages(client, of, PageView::First { at, session, linearizable });
    }

    fn begin_pages(&mut self, client: usize, of: PageOf, view: PageView) {
        let rows_max = self.rng.range(0..=4) as u32;
        let keys_only = self.rng.chance(200);
        let page = PageRequest { of: of.clone(), view, rows_max, keys_only };
        let operation = self.plan(client, None, Question::Page(page));
        self.operations[operation].longer = Some(Longer { of, shows: None, rows: Vec::new() });
        self.send_attempt(operation);
    }

    /// After a write on many keys a client may look at what they had before.
    pub(super) fn look_back(&mut self, client: usize, op: &WriteOp, written: Timestamp) {
        let of = match op {
            WriteOp::PutAll(PutAll { pairs }) => {
                PageOf::Keys { keys: pairs.iter().map(|(key, _)| key.clone()).collect() }
            }
            WriteOp::DelAll(DelAll { keys }) => PageOf::Keys { keys: keys.clone() },
            WriteOp::DelRange(DelRange { from, to }) => {
                PageOf::Range { from: from.clone(), to: to.clone() }
            }
            _ => return,
        };
        let before = ReadView::before(written);
        if self.clients[client].memory == Memory::Session && self.rng.chance(700) {
            self.begin_pages(client, of, PageView::Next(before));
        }
    }
}
