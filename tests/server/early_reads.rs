//! What lies between "stored" and "applied", seen from outside: a read of what was just written is
//! answered rather than refused, one of what may never come is refused and not kept, and writers
//! cannot run ahead of the state machine for ever.

use acervo::limits;
use acervo::model::{PutAll, Timestamp, WriteOp};
use acervo::wire::message::{GetRequest, Message, ReadAt, Reply, Request};
use bytes::Bytes;
use rustix::process::Signal;

use crate::support::raw::{Raw, frame_of, get, one_server, put, status};
use crate::support::{Group, eventually};

/// A read that demands a state at least as new as `timestamp`, as somebody does who has seen it.
fn get_since(key: &[u8], timestamp: Timestamp) -> Request {
    let key = Bytes::copy_from_slice(key);
    let (read_at, session) = (ReadAt::Newest { seen: Some(timestamp) }, Some(timestamp));
    Request::Get(GetRequest { key, read_at, session, linearizable: false, facts: false })
}

fn reply(raw: &mut Raw) -> (u64, Reply) {
    match raw.receive() {
        Some(Message::Reply { id, body }) => (id, body),
        other => panic!("no reply but {other:?}"),
    }
}

fn ask(raw: &mut Raw, id: u64, body: Request) -> Reply {
    raw.send(&Message::Request { id, body });
    let (answered, reply) = reply(raw);
    assert_eq!(answered, id);
    reply
}

/// Also while the state machine is busy with a long write for longer than a read waits for it: what
/// was written last is in the log, and the read asks for nothing else.
#[test]
fn a_read_right_behind_its_write_is_answered_where_the_write_was() {
    let (_group, address, witness) = one_server();
    let mut raw = Raw::client(address);
    let mut busy = Raw::client(address);
    const ROUNDS: u64 = 300;
    for round in 1..=ROUNDS {
        if round % 100 == 0 {
            busy.send(&Message::Request { id: round, body: put_many(round) });
        }
        let value = round.to_string().into_bytes();
        let written = match ask(&mut raw, 2 * round, put(round, b"k", value.clone())) {
            Reply::WriteOk(answer) => answer.timestamp,
            other => panic!("not written but {other:?}"),
        };
        // PUT_OK says that it is stored; it is applied a moment later.
        match ask(&mut raw, 2 * round + 1, get_since(b"k", written)) {
            Reply::GetOk { found: Some(got), .. } => {
                assert_eq!((&got.value[..], got.timestamp), (&value[..], written));
            }
            other => panic!("round {round}: no value but {other:?}"),
        }
    }
    witness.finish();
}

#[test]
fn a_read_of_what_is_never_committed_waits_a_moment_and_is_refused_then() {
    // One worker, so that reads are answered in the order in which they are given to it.
    let group = Group::start(3, &["--console", "off", "--workers", "1"]);
    let client = group.client();
    client.put("k", "old").unwrap();
    let leader = group.leader();
    let address = group.addresses()[leader];
    let known = status(address);
    for at in (0..3).filter(|at| *at != leader) {
        group.signal(at, Signal::STOP);
    }
    // It gets into the leader's log and no further.
    let mut writer = Raw::client(address);
    writer.send(&Message::Request { id: 1, body: put(1, b"k", b"new".to_vec()) });
    eventually("the write is in the log", || {
        (status(address).last_index > known.last_index).then_some(())
    });

    let mut raw = Raw::client(address);
    // Past all that is applied, and not past what is in the log. Then one past everything, and a
    // plain one.
    let in_log = Timestamp(known.applied_timestamp.0 + 1);
    let nowhere = Timestamp(i64::MAX);
    let requests =
        [(1, get_since(b"k", in_log)), (2, get_since(b"k", nowhere)), (3, get(b"k", false))];
    let frames = requests.map(|(id, body)| frame_of(&Message::Request { id, body }));
    raw.bytes(&frames.concat());
    let answers = [(); 3].map(|()| reply(&mut raw));
    let order = answers.each_ref().map(|(id, _)| *id);
    assert_eq!(order, [2, 3, 1], "what may still come is waited for, and nobody waits behind it");
    for (id, answer) in &answers {
        match answer {
            Reply::GetOk { found: Some(got), .. } if *id == 3 => assert_eq!(got.value, "old"),
            Reply::TryOtherServerOrLater { applied, .. } if *id != 3 => assert!(*applied < in_log),
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[test]
fn writers_do_not_run_ahead_of_the_state_machine_by_more_than_the_bound() {
    // Without syncs the log is as fast as it gets.
    let group = Group::start(1, &["--console", "off", "--sync", "off"]);
    let address = group.addresses()[0];
    group.client().put("first", "write").unwrap();
    let before = status(address).applied;
    const WRITERS: u64 = 8;
    const PIECES: u64 = 3;
    let window = limits::REQUESTS_PER_CONNECTION_MAX as u64;
    assert!(WRITERS * window >= 2 * limits::APPLY_LAG_ENTRIES_MAX);
    let mut writers: Vec<Raw> = (0..WRITERS).map(|_| Raw::client(address)).collect();
    let (mut busy, mut watcher) = (Raw::client(address), Raw::client(address));
    let (mut acknowledged, mut furthest) = (0, 0);
    for piece in 0..PIECES {
        // One entry that the state machine is busy with while the log takes all the others.
        busy.send(&Message::Request { id: piece, body: put_many(piece + 1) });
        for (number, raw) in writers.iter_mut().enumerate() {
            let first = piece * window + 1;
            let frames = (0..window).map(|n| {
                let body = put_by(number, first + n, first, &format!("{number}/{piece}/{n}"));
                frame_of(&Message::Request { id: n, body })
            });
            raw.bytes(&frames.collect::<Vec<_>>().concat());
        }
        for raw in &mut writers {
            for _ in 0..window {
                match reply(raw).1 {
                    Reply::WriteOk(_) => acknowledged += 1,
                    other => panic!("not written but {other:?}"),
                }
            }
            // Every write acknowledged so far is an entry; what is not applied of them runs ahead.
            let Reply::StatusOk(status) = ask(&mut watcher, 1, Request::Status) else {
                panic!("no status");
            };
            let ahead = (before + acknowledged).saturating_sub(status.applied);
            furthest = furthest.max(ahead);
            assert!(ahead <= limits::APPLY_LAG_ENTRIES_MAX, "{ahead} entries");
        }
        let written = reply(&mut busy).1;
        assert!(!matches!(written, Reply::Error(_)), "{written:?}");
    }
    println!("at most {furthest} acknowledged writes were not applied");
    eventually("all is applied in the end", || {
        (status(address).applied >= before + acknowledged).then_some(())
    });
}

/// As many keys as one write may have, of a client of its own.
fn put_many(sequence: u64) -> Request {
    let Request::Write(mut write) = put(sequence, b"k", vec![]) else {
        unreachable!("a put is a write")
    };
    let key = |n: usize| (Bytes::from(format!("many/{n}")), Bytes::from_static(b"v"));
    write.request.client.0 += 1_000;
    write.op =
        WriteOp::PutAll(PutAll { pairs: (0..limits::TRANSACTION_KEYS_MAX).map(key).collect() });
    Request::Write(write)
}

/// A write of one of several clients.
fn put_by(number: usize, sequence: u64, answered_below: u64, key: &str) -> Request {
    let Request::Write(mut write) = put(sequence, key.as_bytes(), vec![1; 64]) else {
        unreachable!("a put is a write")
    };
    write.request.client.0 += 1 + number as u64;
    write.request.answered_below = answered_below;
    Request::Write(write)
}
