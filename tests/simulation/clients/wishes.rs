//! What clients think of doing: all operations of the store, mostly sensible ones.

use acervo::model::{
    Barrier, Compact, Comparison, Condition, Del, DelAll, DelRange, History, PageOf, Put, PutAll,
    PutIf, PutSequential, ReadView, Relation, SetHistory, Test, Timestamp, Trim, Txn, TxnKeys,
    TxnOp, WriteOp,
};
use acervo::wire::message::{GetRequest, PageRequest, PageView, ReadAt, TxnRequest};
use bytes::Bytes;

use crate::plain_transactions::TxnMaker;

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
                50..75 => self.wish_to_get(client),
                75..83 => self.wish_to_read_at_once(client),
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
            12..34 => self.any_txn(client, false).into(),
            34..50 => WriteOp::Put(Put {
                key: self.any_key(KEYS_WRITTEN),
                value: value(0, id),
                tells_previous,
            }),
            50..65 => {
                let keys = self.any_keys(KEYS_WRITTEN).into_iter().enumerate();
                WriteOp::PutAll(PutAll {
                    pairs: keys.map(|(part, key)| (key, value(part, id))).collect(),
                })
            }
            65..74 => {
                let keeps_history = self.rng.chance(500);
                WriteOp::Del(Del { key: self.any_key(KEYS), tells_previous, keeps_history })
            }
            74..80 => {
                let keeps_history = self.rng.chance(500);
                WriteOp::DelAll(DelAll { keys: self.any_keys(KEYS), keeps_history })
            }
            80..86 => {
                let ((from, to), keeps_history) = (self.any_range(), self.rng.chance(500));
                WriteOp::DelRange(DelRange { from, to, keeps_history })
            }
            86..96 => WriteOp::Trim(Trim { key: self.any_key(KEYS), tells_previous }),
            96 => {
                let prefix = Bytes::from_static(b"key-4/");
                PutSequential { prefix, value: value(0, id) }.into()
            }
            97 => WriteOp::Barrier(Barrier {}),
            // Rarely, or nobody would read the past any more.
            98 if self.rng.chance(500) => {
                let version = self.any_version(client).max(Timestamp(1));
                Compact { version }.into()
            }
            98 => WriteOp::Barrier(Barrier {}),
            _ => WriteOp::SetHistory(SetHistory { history: self.any_history() }),
        }
    }

    /// A transaction, often one whose comparisons hold, as far as this client knows: of versions
    /// of several keys, in any order, with reads and transactions within.
    fn any_txn(&mut self, client: usize, only_reads: bool) -> Txn {
        let keys: Vec<_> = (0..KEYS).map(|key| Bytes::from(format!("key-{key}"))).collect();
        let state = &self.clients[client];
        let versions: Vec<_> = state.seen.values().copied().collect();
        let id = state.writes_begun + 1;
        let values: Vec<_> =
            (1..=id.min(4)).map(|n| Bytes::from(format!("{client}/{n}"))).collect();
        let mut parts = 0..;
        let mut value =
            || Bytes::from(format!("{client}/{id}t{}", parts.next().unwrap_or_default()));
        let leases = self.checker.model.leases.ids();
        let rng = &mut self.rng;
        let mut pick = |most: usize| rng.index(most);
        let mut maker = TxnMaker {
            pick: &mut pick,
            keys: &keys,
            versions: &versions,
            value: &mut value,
            values: &values,
            keeps_history: true,
            leases: &leases,
            only_reads,
        };
        let mut txn = maker.fit(3);
        if self.rng.chance(500) {
            txn.compare.clear();
            for _ in 0..self.rng.range(1..=3) {
                let key = keys[self.rng.index(keys.len())].clone();
                let seen = self.clients[client].seen.get(&key).copied();
                let test = Test::Version(Relation::Equal, seen.unwrap_or(Timestamp::ZERO));
                txn.compare.push(Comparison { keys: TxnKeys::One(key), test });
            }
        }
        // What breaks a rule, now and then.
        match self.rng.below(200) {
            0 => txn.then.push(TxnOp::Get { key: Bytes::new() }),
            1 if !only_reads => {
                let key = keys[0].clone();
                let put =
                    TxnOp::Put { key, value: Bytes::new(), tells_previous: false, lease: None };
                txn.or_else.extend([put.clone(), put]);
            }
            _ => {}
        }
        txn
    }

    fn wish_to_read_at_once(&mut self, client: usize) {
        let txn = self.any_txn(client, true);
        let linearizable = self.rng.chance(500);
        let session = Some(self.clients[client].session);
        let request = TxnRequest { txn, session, linearizable };
        self.begin(client, None, Question::Txn(request));
    }

    /// Begins a transaction that only reads, linearizably.
    pub fn read_at_once(&mut self, client: usize, txn: Txn) -> usize {
        let session = Some(self.clients[client].session);
        let request = TxnRequest { txn, session, linearizable: true };
        self.begin(client, None, Question::Txn(request))
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
            WriteOp::DelAll(DelAll { keys, .. }) => PageOf::Keys { keys: keys.clone() },
            WriteOp::DelRange(DelRange { from, to, .. }) => {
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
