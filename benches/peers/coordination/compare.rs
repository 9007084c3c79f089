//! Compare-and-set: a write that takes effect only if its key has the version that its client saw
//! last.
//!
//! Each of 64 clients writes a key of its own: plainly, and then under that comparison, which holds
//! every time. Key, value and all else are the same, so that the comparison is what differs. Then
//! all of them compare one key: of those who saw the same version one succeeds, and the others
//! learn the new version with the refusal and try again. etcd is asked for the same: PUT, and TXN
//! with a comparison of the revision and a GET in the other branch.

use std::time::Duration;

use acervo::bench::{Answer, OpKind, Until};
use acervo::client::{Comparison, Timestamp, Txn, TxnOp};
use acervo::model::{Put, TxnResult, WriteAnswer, WriteOp};
use bytes::Bytes;

use super::writers::{AcervoOps, AcervoWriters, EtcdCalls, EtcdWriters, WRITTEN};
use super::{ACERVO, Extent, Rounds, Target, print_row};
use crate::driver::{Dialect, Framed};
use crate::grpc::{bytes_of, number_of, protobuf_bytes, protobuf_number};
use crate::systems::{PeerData, Running, System};
use crate::{Outcome, drive, fill, plan};

const CLIENTS: usize = 64;
const VALUE_BYTES: usize = 100;

/// What a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnWrite {
    /// Its own key, whatever that has.
    Plain,
    /// Its own key, if that has the version that it saw last.
    Compared,
    /// The key of all clients, under the same condition.
    ComparedByAll,
}

impl OwnWrite {
    /// One of the keys that are there.
    fn key(self, client: usize) -> String {
        let number = if self == OwnWrite::ComparedByAll { 0 } else { client };
        format!("bench-{number:08}")
    }
}

/// The rates of a system, of all rounds.
#[derive(Default)]
struct SystemRates {
    plain: Rounds,
    compared: Rounds,
    ratio: Rounds,
    attempts: Rounds,
    successes: Rounds,
    p99_ms: Rounds,
}

pub fn run(extent: &Extent) -> Outcome<()> {
    let mut acervo = SystemRates::default();
    let mut etcd = SystemRates::default();
    let mut beside_etcd = Rounds::default();
    let (mut as_etcd, mut as_etcd_beside) = (SystemRates::default(), Rounds::default());
    let has_etcd = System::Etcd.version().map_err(|reason| eprintln!("no etcd: {reason}")).is_ok();
    for round in 0..extent.rounds {
        let (ours, ours_foreign) = measure_round(ACERVO, round, extent, &mut acervo)?;
        let (asked, asked_foreign) =
            measure_round(System::AcervoAsEtcd, round, extent, &mut as_etcd)?;
        if !has_etcd {
            continue;
        }
        // What another program cannot do here ends its round and no other.
        match measure_round(System::Etcd, round, extent, &mut etcd) {
            Ok((theirs, foreign)) => {
                beside_etcd.add(ours / theirs, foreign.max(ours_foreign));
                as_etcd_beside.add(asked / theirs, foreign.max(asked_foreign));
            }
            Err(error) => eprintln!("round {round}, etcd: {error}"),
        }
    }
    let none = Target::None;
    print_row("64 clients, each its own key: PUT", &acervo.plain, " a second", none);
    print_row("the same: compare-and-set", &acervo.compared, " a second", none);
    print_row("p99 of that", &acervo.p99_ms, " ms", none);
    print_row("beside PUT", &acervo.ratio, " ×", Target::AtLeast(0.8));
    print_row("etcd: PUT", &etcd.plain, " a second", none);
    print_row("etcd: compare-and-set", &etcd.compared, " a second", none);
    print_row("p99 of that", &etcd.p99_ms, " ms", none);
    print_row("Acervo's beside etcd's", &beside_etcd, " ×", Target::AtLeast(3.0));
    print_row("Acervo, asked as etcd is: PUT", &as_etcd.plain, " a second", none);
    print_row("compare-and-set", &as_etcd.compared, " a second", none);
    print_row("beside etcd's", &as_etcd_beside, " ×", Target::AtLeast(2.0));
    print_row("64 clients, one key: attempts", &acervo.attempts, " a second", none);
    print_row("successes among them", &acervo.successes, " a second", none);
    print_row("etcd: attempts", &etcd.attempts, " a second", none);
    print_row("successes among them", &etcd.successes, " a second", none);
    Ok(())
}

/// A round with a system: its rate of comparisons, and the share of the machine that others took.
fn measure_round(
    system: System,
    round: usize,
    extent: &Extent,
    rates: &mut SystemRates,
) -> Outcome<(f64, f64)> {
    let running = Running::start(system)?;
    let data = PeerData { keys: extent.keys, value_bytes: VALUE_BYTES };
    fill(&running, data).map_err(|error| format!("{error}: {}", running.last_words()))?;
    let order = match round % 2 {
        0 => [OwnWrite::Plain, OwnWrite::Compared],
        _ => [OwnWrite::Compared, OwnWrite::Plain],
    };
    let (mut plain, mut compared, mut foreign) = (0.0, 0.0, 0.0_f64);
    for write in order.into_iter().chain([OwnWrite::ComparedByAll]) {
        let leader = running.leader()?;
        let mut dialect: Box<dyn Dialect> = match system {
            System::Etcd | System::AcervoAsEtcd => {
                let writes = OwnWrites::new(write, 0_u64);
                Box::new(EtcdWriters::new(writes, CLIENTS, leader))
            }
            _ => {
                let writes = OwnWrites::new(write, Timestamp::ZERO);
                Box::new(Framed(AcervoWriters::new(writes, CLIENTS)))
            }
        };
        let measured = Duration::from_secs_f64(extent.seconds);
        let until = Until::Time { warm_up: measured / 5, measured };
        let plan = plan(leader, CLIENTS, 1, until, round as u64);
        let (seen, used) = drive(&running, &plan, &[leader], dialect.as_mut())?;
        let p99_ms = seen.latencies_ns.value_at_quantile(0.99) as f64 / 1e6;
        eprintln!(
            "round {round}  {} {write:?}: {:.0} a second, p99 {p99_ms:.2} ms, {} of {} did not \
             hold, {} failed, others {:.0} %",
            system.name(),
            seen.per_second(),
            seen.empty,
            seen.operations,
            seen.failures(),
            used.foreign * 100.0
        );
        if seen.failures() > 0 {
            return Err(format!("{write:?} fails: {:?}", seen.errors).into());
        }
        // A client's first comparison tells it which version there is.
        if write != OwnWrite::ComparedByAll && seen.empty > CLIENTS as u64 {
            return Err(format!("{} comparisons of a client's own key fail", seen.empty).into());
        }
        if write != OwnWrite::ComparedByAll {
            foreign = foreign.max(used.foreign);
        }
        let done = seen.operations - seen.empty;
        let done_per_second = seen.per_second() * done as f64 / seen.operations.max(1) as f64;
        match write {
            OwnWrite::Plain => {
                plain = seen.per_second();
                rates.plain.add(plain, used.foreign);
            }
            OwnWrite::Compared => {
                compared = done_per_second;
                rates.compared.add(compared, used.foreign);
                rates.p99_ms.add(p99_ms, used.foreign);
            }
            OwnWrite::ComparedByAll => {
                rates.attempts.add(seen.per_second(), used.foreign);
                rates.successes.add(done_per_second, used.foreign);
            }
        }
    }
    rates.ratio.add(compared / plain, foreign);
    Ok((compared, foreign))
}

const DID_NOT_HOLD: Answer = Answer::Empty(OpKind::Update);

/// The writes of all clients, whose keys have versions of this type.
struct OwnWrites<V> {
    write: OwnWrite,
    value: Bytes,
    /// The version of its key that each client saw last.
    seen: Vec<V>,
}

impl<V: Clone> OwnWrites<V> {
    fn new(write: OwnWrite, before_all: V) -> OwnWrites<V> {
        let value = (0..VALUE_BYTES).map(|at| b'a' + (at * 7 % 26) as u8).collect();
        OwnWrites { write, value, seen: vec![before_all; CLIENTS] }
    }
}

impl AcervoOps for OwnWrites<Timestamp> {
    fn op(&mut self, client: usize) -> WriteOp {
        let key = Bytes::from(self.write.key(client));
        let value = self.value.clone();
        if self.write == OwnWrite::Plain {
            return Put { key, value, tells_previous: false }.into();
        }
        let is_seen = Comparison::version(&key).equals(self.seen[client]);
        Txn::when(is_seen).then(TxnOp::put(&key, value)).or_else(TxnOp::get(&key)).into()
    }

    fn learn(&mut self, client: usize, answer: &WriteAnswer) -> Answer {
        match answer.txn.as_deref() {
            None if self.write == OwnWrite::Plain => WRITTEN,
            None => Answer::Failed("NO_RESULT"),
            Some(txn) if txn.succeeded => {
                self.seen[client] = answer.timestamp;
                WRITTEN
            }
            Some(txn) => {
                self.seen[client] = match txn.results.as_deref() {
                    Some([TxnResult::Get(Some(found))]) => found.timestamp,
                    _ => Timestamp::ZERO,
                };
                DID_NOT_HOLD
            }
        }
    }
}

impl EtcdCalls for OwnWrites<u64> {
    fn path(&self) -> &'static str {
        match self.write {
            OwnWrite::Plain => "/etcdserverpb.KV/Put",
            OwnWrite::Compared | OwnWrite::ComparedByAll => "/etcdserverpb.KV/Txn",
        }
    }

    fn message(&mut self, client: usize) -> Vec<u8> {
        let key = self.write.key(client);
        let mut put = Vec::new();
        protobuf_bytes(1, key.as_bytes(), &mut put);
        protobuf_bytes(2, &self.value, &mut put);
        if self.write == OwnWrite::Plain {
            return put;
        }
        // The comparison is of what is equal, which is the default, and of the last revision.
        let mut compare = Vec::new();
        protobuf_number(2, 2, &mut compare);
        protobuf_bytes(3, key.as_bytes(), &mut compare);
        protobuf_number(6, self.seen[client], &mut compare);
        let (mut get, mut success, mut failure) = (Vec::new(), Vec::new(), Vec::new());
        protobuf_bytes(1, key.as_bytes(), &mut get);
        protobuf_bytes(2, &put, &mut success);
        protobuf_bytes(1, &get, &mut failure);
        let mut txn = Vec::new();
        for (field, part) in [(1, &compare), (2, &success), (3, &failure)] {
            protobuf_bytes(field, part, &mut txn);
        }
        txn
    }

    fn learn(&mut self, client: usize, message: &[u8]) -> Answer {
        if self.write == OwnWrite::Plain {
            return WRITTEN;
        }
        match etcd_learns(message) {
            Some((answer, revision)) => {
                self.seen[client] = revision;
                answer
            }
            None => Answer::Failed("NO_RESULT"),
        }
    }
}

/// What a TXN has come to, and the revision of the key that its client has seen with it.
fn etcd_learns(message: &[u8]) -> Option<(Answer, u64)> {
    if number_of(message, 2) == 1 {
        return Some((WRITTEN, number_of(bytes_of(message, 1)?, 3)));
    }
    // One response, of a read, its first key, and the revision of that.
    let read = bytes_of(bytes_of(message, 3)?, 1)?;
    Some((DID_NOT_HOLD, number_of(bytes_of(read, 2)?, 3)))
}
