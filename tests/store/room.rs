//! What is removed gives its room on the disk back, without further writes, also where there is
//! hardly any left.
//!
//! Left out: the grace before removed versions are deleted, and who asks for that.

use std::sync::Arc;

use acervo::model::{
    Action, ClientId, Command, DelRange, GarbageCollection, History, LogEntry, PutAll, RequestId,
    SetHistory, StateLimits, Timestamp, WriteOp,
};
use acervo::storage::apply::StateMachine;
use acervo::storage::engine::Engine;
use acervo::storage::tables::{TableEngine, TablesOptions};
use bytes::Bytes;

use crate::log_disk::{Faults, SimDisk};

/// A table is a hundredth of what the test stores.
const OPTIONS: TablesOptions = TablesOptions {
    memory_table_bytes: 1,
    block_bytes: 1 << 10,
    fan: 4,
    small_run_bytes: 16 << 10,
    table_bytes: 32 << 10,
    merge_step_rows: 100,
    long_value_bytes: 500,
    cache_bytes: 1 << 20,
    open_files_max: 4,
};
const KEYS: u32 = 1_000;

struct Server {
    disk: SimDisk,
    engine: Arc<TableEngine>,
    machine: StateMachine,
    index: u64,
}

impl Server {
    fn new(options: TablesOptions) -> Server {
        let disk = SimDisk::new();
        let engine = Arc::new(TableEngine::open(Arc::new(disk.clone()), options).unwrap());
        let limits = StateLimits { removal_grace_us: 0, ..StateLimits::default() };
        let machine = StateMachine::open(engine.clone(), limits).unwrap();
        Server { disk, engine, machine, index: 0 }
    }

    fn apply(&mut self, action: Action) {
        self.index += 1;
        let index = self.index;
        let command = Command { timestamp: Timestamp(index as i64), clock_us: index, action };
        self.machine.apply(&[LogEntry { term: 1, index, data: command.encode() }]).unwrap();
    }

    fn write(&mut self, op: WriteOp) {
        let request = RequestId {
            client: ClientId(1),
            sequence: self.index + 1,
            answered_below: self.index + 1,
            begun: Timestamp::ZERO,
        };
        self.apply(Action::Write { request, op });
    }

    fn put_all_keys(&mut self, round: u8, value_bytes: usize) {
        for first in (0..KEYS).step_by(100) {
            let value = Bytes::from(vec![round; value_bytes]);
            let pairs = (first..first + 100).map(|number| (key(number), value.clone())).collect();
            self.write(WriteOp::PutAll(PutAll { pairs }));
        }
    }

    /// Compacts the history until nothing is due.
    fn compact(&mut self, history: History, rows_max: u32) {
        let (as_of_us, bytes_max) = (self.index, u64::MAX);
        let piece = GarbageCollection::History { history, as_of_us, rows_max, bytes_max };
        while self.machine.summary().history_due_us.is_some_and(|due| due <= as_of_us) {
            self.apply(Action::GarbageCollection(piece));
        }
    }

    /// Seals, and works until there is nothing to do.
    fn settle(&mut self) {
        self.machine.checkpoint().unwrap();
        while self.engine.work().unwrap() {}
    }

    fn stored_bytes(&self) -> usize {
        self.disk.files().iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

fn key(number: u32) -> Bytes {
    Bytes::from(format!("key {number:06}"))
}

/// Removes nine keys of ten, or all but the newest version of each.
fn removed_gives_room_back(value_bytes: usize, removes_history: bool) {
    let mut server = Server::new(OPTIONS);
    for round in 1..=4 {
        server.put_all_keys(round, value_bytes);
        server.settle();
    }
    let before = server.stored_bytes();
    // What is removed is written first, and then a merge of everything at once would not fit.
    let disk_bytes_max = Some(before * 3 / 2);
    server.disk.set_faults(Faults { disk_bytes_max, ..Faults::default() });
    if removes_history {
        let history = History::Versions { count: 1 };
        server.write(WriteOp::SetHistory(SetHistory { history }));
        server.compact(history, 500);
    } else {
        let (from, to) = (key(KEYS / 10), key(KEYS));
        server.write(WriteOp::DelRange(DelRange { from, to, keeps_history: false }));
        let (before_us, rows_max, bytes_max) = (server.index, 500, u64::MAX);
        while server.machine.summary().oldest_removal_us.is_some() {
            server.apply(Action::GarbageCollection(GarbageCollection::Removed {
                before_us,
                rows_max,
                bytes_max,
            }));
        }
    }
    server.settle();
    let (after, rows) = (server.stored_bytes(), server.engine.rows());
    let stays = if removes_history { 4 } else { 10 };
    assert!(after < before / stays * 3 / 2, "{after} of {before} bytes are left in {rows} rows");
    for number in (0..KEYS).step_by(17) {
        let found = server.machine.store().get(&key(number)).unwrap().map(|found| found.value);
        let is_left = removes_history || number < KEYS / 10;
        assert_eq!(found, is_left.then(|| vec![4; value_bytes].into()), "{number}");
    }
}

#[test]
fn removed_keys_give_their_room_back_on_a_disk_that_is_nearly_full() {
    removed_gives_room_back(100, false);
}

#[test]
fn removed_history_gives_its_room_back_on_a_disk_that_is_nearly_full() {
    removed_gives_room_back(100, true);
}

#[test]
fn removed_long_values_give_their_room_back_on_a_disk_that_is_nearly_full() {
    removed_gives_room_back(2_000, false);
    removed_gives_room_back(2_000, true);
}

/// Rows that are ordered by time leave markers at their front, which no merge has dropped yet.
#[test]
fn collecting_garbage_does_not_step_over_what_was_collected_before() {
    let mut server = Server::new(TablesOptions { cache_bytes: 0, ..OPTIONS });
    let history = History::Versions { count: 1 };
    server.write(WriteOp::SetHistory(SetHistory { history }));
    server.compact(history, 500);
    for round in 0..10 {
        server.put_all_keys(round, 0);
        server.machine.checkpoint().unwrap();
    }
    server.compact(history, 500);
    server.machine.checkpoint().unwrap();
    let pairs = vec![(key(0), Bytes::new())];
    server.write(WriteOp::PutAll(PutAll { pairs }));
    server.disk.set_faults(Faults::default());
    server.compact(history, 500);
    let reads = server.disk.reads();
    // A walk over the markers would read hundreds of blocks, and several times.
    assert!(reads < 600, "{reads} reads for a single version");
}

#[test]
fn a_merge_without_room_is_begun_again_less_and_less_often() {
    let mut server = Server::new(TablesOptions { cache_bytes: 0, ..OPTIONS });
    for round in 1..=4 {
        server.put_all_keys(round, 100);
        server.machine.checkpoint().unwrap();
    }
    let tables = |server: &Server| {
        let names = server.disk.files().into_iter().map(|(name, _)| name);
        names.filter(|name| name.ends_with(".table")).collect::<Vec<_>>()
    };
    let before = tables(&server);
    let nothing_more = Faults { disk_bytes_max: Some(1), ..Faults::default() };
    server.disk.set_faults(nothing_more);
    let mut steps = 0;
    for _ in 0..400 {
        steps += u32::from(server.engine.work().unwrap());
    }
    assert_eq!(tables(&server), before, "what was given up leaves nothing");
    assert!((1..100).contains(&steps), "{steps} steps of merges that do not fit");
    server.disk.set_faults(Faults::default());
    (0..400).for_each(|_| _ = server.engine.work().unwrap());
    assert_ne!(tables(&server), before, "with room it is merged");
}
