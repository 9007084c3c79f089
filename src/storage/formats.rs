//! What is on the disk, byte for byte, beside the versions of the formats.
//!
//! A directory that another build wrote is told apart by those versions alone. So whoever changes
//! what is stored, a field of a struct that goes into a row included, finds these tests failing,
//! and raises the version.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::{STATE_FORMAT_VERSION, StateMachine};
use super::engine::{Direction, Engine};
use super::memory::MemoryEngine;
use super::{keys, log};
use crate::model::{
    Action, Barrier, ClientId, Command, Compact, Comparison, Condition, Del, DelAll, DelRange,
    FeatureLevel, GarbageCollection, GroupRules, History, LeaseGrant, LeaseId, LeaseName,
    LeaseRecord, LeaseRevoke, LogEntry, Put, PutAll, PutIf, PutSequential, Relation, Release,
    ReleaseVersion, RequestId, SetHistory, StateLimits, Test, Timestamp, Trim, Txn, TxnKeys, TxnOp,
    WriteOp,
};

/// The limits of one group. Those that a release gives new groups may change, and no format with
/// them.
const LIMITS: StateLimits = StateLimits {
    removal_scan_rows_max: 1024,
    kept_removal_rows_max: 131_072,
    range_removals_max: 64,
    removal_grace_us: 60_000_000,
    session_expiry_us: 90_000_000_000,
    sessions_max: 65_536,
    session_replies_max: 2_048,
    session_replies_total_max: 262_144,
    transaction_rows_max: 10_000,
    transaction_compared_bytes_max: 16 * 1024 * 1024,
    leases_max: 262_144,
    lease_keys_max: 16_384,
};

/// Bytes as text: what is printable as it is, the rest in hexadecimal.
pub(super) fn shown(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => text.push(char::from(*byte)),
            _ => write!(text, "<{byte:02x}>").unwrap(),
        }
        text
    })
}

/// A store that has a row of every kind in every form that it can have, if not all at once.
struct Kept {
    engine: Arc<MemoryEngine>,
    machine: StateMachine,
    last: u64,
    /// The client that writes.
    client: ClientId,
    listing: String,
    listed: BTreeSet<String>,
}

impl Kept {
    fn apply(&mut self, action: Action) {
        self.last += 1;
        let (timestamp, clock_us) = (Timestamp(self.last as i64 * 10), self.last * 10);
        let data = Command { timestamp, clock_us, action }.encode();
        self.machine.apply(&[LogEntry { term: 1, index: self.last, data }]).unwrap();
    }

    fn write(&mut self, op: WriteOp) {
        let request = RequestId {
            client: self.client,
            sequence: self.last + 1,
            answered_below: self.last.saturating_sub(1),
            begun: Timestamp::ZERO,
        };
        self.apply(Action::Write { request, op });
    }

    fn put(&mut self, key: &'static str) {
        self.write(WriteOp::Put(Put {
            key: Bytes::from(key),
            value: Bytes::from("value"),
            tells_previous: false,
        }));
    }

    fn del(&mut self, key: &'static str) {
        self.write(WriteOp::Del(Del {
            key: Bytes::from(key),
            tells_previous: false,
            keeps_history: false,
        }));
    }

    fn del_keeping_history(&mut self, key: &'static str) {
        let (key, tells_previous) = (Bytes::from(key), false);
        self.write(WriteOp::Del(Del { key, tells_previous, keeps_history: true }));
    }

    fn compact(&mut self, history: History, rows_max: u32) {
        let (as_of_us, bytes_max) = (self.last * 10, 1_000);
        self.apply(Action::GarbageCollection(GarbageCollection::History {
            history,
            as_of_us,
            rows_max,
            bytes_max,
        }));
    }

    /// Lists the rows that have not been listed as they are.
    fn list(&mut self, title: &str) {
        self.machine.checkpoint().unwrap();
        writeln!(self.listing, "{title}").unwrap();
        let view = self.engine.view().unwrap();
        let Kept { listing, listed, .. } = self;
        view.scan(&keys::all(), Direction::Forward, &mut |row, value| {
            let line = format!("    {} = {}\n", shown(row), shown(value));
            if listed.insert(line.clone()) {
                listing.push_str(&line);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }
}

#[test]
fn the_rows_of_the_store_are_those_of_its_format() {
    let limits = StateLimits {
        removal_scan_rows_max: 0,
        removal_grace_us: 0,
        session_replies_max: 2,
        sessions_max: 1,
        ..LIMITS
    };
    let engine = Arc::new(MemoryEngine::new());
    let level = FeatureLevel { level: 2, release: ReleaseVersion(0, 1, 0) };
    let machine = StateMachine::open(engine.clone(), Release { level, limits }).unwrap();
    let (client, listing) = (ClientId(0x0102_0304_0506_0708), String::new());
    let mut kept = Kept { engine, machine, last: 0, client, listing, listed: BTreeSet::new() };
    writeln!(kept.listing, "format {STATE_FORMAT_VERSION}").unwrap();
    kept.apply(Action::Level(level));
    let history = History::Versions { count: 1 };
    kept.apply(Action::Rules(GroupRules { limits, history }));
    ["k", "l", "l", "m", "n", "p"].iter().for_each(|key| kept.put(key));
    kept.del("k");
    kept.del_keeping_history("p");
    kept.write(WriteOp::Trim(Trim { key: Bytes::from("l"), tells_previous: false }));
    kept.write(WriteOp::DelRange(DelRange {
        from: Bytes::from("m"),
        to: Bytes::from("n"),
        keeps_history: false,
    }));
    kept.list(
        "removals of a key, of its older versions and of a range, a deletion that keeps history, \
         and a pass that has not begun",
    );
    let removed =
        GarbageCollection::Removed { before_us: kept.last * 10, rows_max: 100, bytes_max: 1_000 };
    kept.apply(Action::GarbageCollection(removed));
    (0..3).for_each(|_| kept.put("o"));
    kept.compact(history, 3);
    kept.list("a purge, and a pass within a key");
    (0..3).for_each(|_| kept.compact(history, 100));
    (0..3).for_each(|_| kept.put("o"));
    kept.compact(history, 2);
    kept.list("a later pass within a key");
    kept.client = ClientId(9);
    kept.write(WriteOp::SetHistory(SetHistory { history: History::For { age_us: 3_600 } }));
    kept.write(
        PutIf { key: Bytes::from("o"), value: Bytes::new(), condition: Condition::Absent }.into(),
    );
    kept.list("a session in the place of another, and another history");
    kept.write(LeaseGrant { id: Some(LeaseId(7)), ttl_ms: 1_000 }.into());
    let (key, value, lease) = (Bytes::from("p"), Bytes::from("v"), Some(LeaseId(7)));
    let put = TxnOp::Put { key, value, tells_previous: false, lease };
    kept.write(WriteOp::Txn(Txn { then: vec![put], ..Txn::default() }));
    kept.list("a lease with a key");
    let version = Timestamp(kept.last as i64 * 10);
    kept.write(Compact { version }.into());
    kept.list("what was compacted, and a pass that has not begun");
    let as_of_us = kept.last * 10;
    let piece = GarbageCollection::Compacted { as_of_us, rows_max: 1, bytes_max: 1_000 };
    kept.apply(Action::GarbageCollection(piece));
    kept.list("a pass over what was compacted");
    compare("state.txt", &kept.listing, "STATE_FORMAT_VERSION in src/storage/apply.rs");
}

/// Compares what is written with what a file says is written in the version in its first line.
pub(super) fn compare(file: &str, listing: &str, version: &str) {
    let path = format!("{}/src/storage/formats/{file}", env!("CARGO_MANIFEST_DIR"));
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        listing == expected,
        "what is stored has changed: raise {version}, if it is still that in {path}, and let that \
         file hold this:\n{listing}"
    );
}

/// A transaction that has every kind of comparison and operation.
fn every_part() -> Txn {
    let key = || Bytes::from("k");
    let tests = [
        Test::Version(Relation::Equal, Timestamp(8)),
        Test::Created(Relation::NotEqual, Timestamp(8)),
        Test::Count(Relation::Less, 5),
        Test::Lease(Relation::Greater, 0),
        Test::Value(Relation::Equal, Bytes::from("v")),
    ];
    let one = |test| Comparison { keys: TxnKeys::One(key()), test };
    let range = TxnKeys::Range { from: key(), to: key() };
    let all = Comparison { keys: range, test: Test::Count(Relation::Equal, 0) };
    let (from, to) = (key(), key());
    let (rows_max, keys_only, reverse, counts_only) = (5, true, false, true);
    let del_range =
        TxnOp::DelRange { from: key(), to: key(), keeps_history: true, tells_previous: false };
    let nested = Txn { or_else: vec![del_range], ..Txn::default() };
    let lease = Some(LeaseId(7));
    Txn {
        compare: tests.map(one).into_iter().chain([all]).collect(),
        then: vec![
            TxnOp::Get { key: key() },
            TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only },
            TxnOp::Put { key: key(), value: Bytes::from("v"), tells_previous: true, lease },
        ],
        or_else: vec![
            TxnOp::Del { key: key(), keeps_history: true, tells_previous: false },
            TxnOp::Txn(Box::new(nested)),
        ],
    }
}

#[test]
fn the_commands_in_the_log_are_those_of_its_format() {
    let key = || Bytes::from("k");
    let value = Bytes::from("v");
    let history = History::For { age_us: 3_600 };
    let request = RequestId {
        client: ClientId(0x0102_0304_0506_0708),
        sequence: 300,
        answered_below: 7,
        begun: Timestamp(9),
    };
    let put_if = |condition| PutIf { key: key(), value: Bytes::from("v"), condition }.into();
    let ops = [
        WriteOp::Put(Put { key: key(), value: value.clone(), tells_previous: true }),
        WriteOp::PutAll(PutAll { pairs: vec![(key(), value)] }),
        WriteOp::Del(Del { key: key(), tells_previous: true, keeps_history: false }),
        WriteOp::DelAll(DelAll { keys: vec![key()], keeps_history: false }),
        WriteOp::DelRange(DelRange { from: key(), to: key(), keeps_history: false }),
        WriteOp::Trim(Trim { key: key(), tells_previous: true }),
        WriteOp::Barrier(Barrier {}),
        put_if(Condition::Absent),
        put_if(Condition::Version(Timestamp(8))),
        WriteOp::SetHistory(SetHistory { history }),
        WriteOp::PutSequential(PutSequential { prefix: key(), value: Bytes::from("v") }),
        WriteOp::Txn(every_part()),
        LeaseGrant { id: Some(LeaseId(7)), ttl_ms: 1_000 }.into(),
        LeaseRevoke { id: LeaseId(7), keys_max: None }.into(),
        LeaseRevoke { id: LeaseId(7), keys_max: Some(64) }.into(),
        Compact { version: Timestamp(8) }.into(),
    ];
    let lease = LeaseName { id: LeaseId(7), granted: Timestamp(8) };
    let (rows_max, bytes_max) = (5, 6);
    let histories = [History::All, history, History::Versions { count: 2 }];
    let compaction =
        |history| GarbageCollection::History { history, as_of_us: 4, rows_max, bytes_max };
    let actions = ops
        .map(|op| Action::Write { request, op })
        .into_iter()
        .chain([Action::GarbageCollection(GarbageCollection::Removed {
            before_us: 4,
            rows_max,
            bytes_max,
        })])
        .chain(histories.map(|history| Action::GarbageCollection(compaction(history))))
        .chain([Action::GarbageCollection(GarbageCollection::Compacted {
            as_of_us: 4,
            rows_max,
            bytes_max,
        })])
        .chain([
            Action::Rules(GroupRules { limits: LIMITS, history }),
            Action::Level(FeatureLevel { level: 2, release: ReleaseVersion(0, 1, 0) }),
            Action::Leases(LeaseRecord { ends: vec![lease], rests: vec![(lease, 900)] }),
        ]);

    let mut listing = format!("format {}\n", log::FORMAT_VERSION);
    for action in actions {
        let command = Command { timestamp: Timestamp(1_000), clock_us: 2_000, action };
        writeln!(listing, "    {}", shown(&command.encode())).unwrap();
    }
    compare("commands.txt", &listing, "FORMAT_VERSION in src/storage/log/format.rs");
}
