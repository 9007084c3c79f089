//! A snapshot is streamed: what it costs in memory, at either end, does not grow with the store.
//! Nor does it cost the values of a store to count its keys.
//!
//! `ACERVO_SNAPSHOT_MIB` says how much is in the store; 2048 is worth the minutes it takes. Without
//! it, it is as much as the log needs to be shortened, which is more than the bound, too.

use std::time::{Duration, Instant};

use acervo::limits;
use acervo::model::{PageNext, PageOf};
use acervo::wire::message::{Message, PageRequest, PageView, Reply, Request};

use crate::support::raw::{Raw, frame_of};
use crate::support::{Group, PATIENCE, eventually, memory, resident};

const MIB: usize = 1024 * 1024;
const VALUE_BYTES: usize = MIB / 4;
/// What a server may grow by while it sends a snapshot or takes one in: the engine's two caches (32
/// MiB), pieces on their way (4 of half a MiB at each of three stations), what the log's writer and
/// the replication queues hold of the writes that go on, and the allocator's fragments.
const GROWTH_BYTES_MAX: usize = 64 * MIB;

/// How much is stored at least.
fn store_bytes() -> usize {
    std::env::var("ACERVO_SNAPSHOT_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(160) * MIB
}

#[test]
fn a_snapshot_of_any_size_costs_neither_end_more_than_a_bound() {
    let _alone = crate::alone();
    let mut group = Group::start(3, &["--console", "off"]);
    let client = group.client();
    client.put("first", "write").unwrap();
    let late = (group.leader() + 1) % 3;
    group.kill(late);
    std::fs::remove_dir_all(group.data_dir(late)).unwrap();

    // No two alike, so that nothing on the way can save room.
    let value = |number: usize| {
        let seed = blake3::hash(&number.to_le_bytes());
        let mut value = vec![0; VALUE_BYTES];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut value);
        value
    };
    let mut count = 0;
    let others = [(late + 1) % 3, (late + 2) % 3];
    let shortened = |at: &usize| group.log(*at).contains("the log now begins");
    while count * VALUE_BYTES < store_bytes() || !others.iter().all(shortened) {
        client.put(format!("big-{count:06}"), value(count)).unwrap();
        count += 1;
        assert!(count * VALUE_BYTES < store_bytes() + 1024 * MIB, "the log never shrinks");
    }

    let leader = group.leader();
    let sender_before = resident(group.pid(leader));
    group.start_server(late);
    let address = group.servers[late].address;
    eventually("the late server is up", || client.status(address).ok());
    let receiver_before = resident(group.pid(late));
    let began = Instant::now();
    let patience = PATIENCE + Duration::from_millis((store_bytes() / MIB * 100) as u64);
    let mut writes = 0;
    while !group.log(late).contains("the snapshot to log index") {
        assert!(began.elapsed() < patience, "the snapshot never comes");
        // Writes go on.
        client.put("meanwhile", writes.to_string()).unwrap();
        writes += 1;
    }
    let streamed = began.elapsed();
    let sender = memory(group.pid(leader), "VmHWM").saturating_sub(sender_before);
    let receiver = memory(group.pid(late), "VmHWM").saturating_sub(receiver_before);
    println!(
        "{} MiB in {streamed:.1?}, {writes} writes meanwhile: the sender, at {} MiB, grew by {} \
         MiB, the receiver, at {} MiB, by {} MiB",
        count * VALUE_BYTES / MIB,
        sender_before / MIB,
        sender / MIB,
        receiver_before / MIB,
        receiver / MIB
    );
    assert!(count * VALUE_BYTES > 2 * GROWTH_BYTES_MAX, "or the bound says nothing");
    assert!(sender < GROWTH_BYTES_MAX, "the sender grew by {sender} bytes");
    assert!(receiver < GROWTH_BYTES_MAX, "the receiver grew by {receiver} bytes");

    let reader = group.client_of(late);
    for number in [0, count / 2, count - 1] {
        let got = reader.get(format!("big-{number:06}")).unwrap().found;
        assert!(got.is_some_and(|got| got.value == value(number)), "big-{number:06}");
    }

    let before = memory(group.pid(late), "VmHWM");
    let mut raw = Raw::client(address);
    for of in [range("big-", "big-z"), range_reverse("big-", "big-z")] {
        let (keys, bytes) = count_keys(&mut raw, of);
        assert_eq!(keys, count);
        assert!(bytes < KEY_REPLY_BYTES_MAX * count, "{bytes} bytes tell of {count} keys");
    }
    let grown = memory(group.pid(late), "VmHWM") - before;
    assert!(grown < GROWTH_BYTES_MAX, "the server grew by {grown} bytes to tell of {count} keys");
}

/// What a page without values has of a key, at most: the key, the version, and the names and
/// lengths around them.
const KEY_REPLY_BYTES_MAX: usize = 64;

fn range(from: &'static str, to: &'static str) -> PageOf {
    PageOf::Range { from: from.into(), to: to.into() }
}

fn range_reverse(from: &'static str, to: &'static str) -> PageOf {
    PageOf::RangeReverse { from: from.into(), to: to.into() }
}

/// How many keys a range has, and how many bytes came to tell of them.
fn count_keys(raw: &mut Raw, of: PageOf) -> (usize, usize) {
    let (mut of, first) = (of, PageView::First { at: None, session: None, linearizable: false });
    let mut view = first;
    let (mut keys, mut bytes) = (0, 0);
    loop {
        let (rows_max, keys_only) = (limits::PAGE_ROWS_MAX as u32, true);
        let page = PageRequest { of: of.clone(), view, rows_max, keys_only };
        raw.send(&Message::Request { id: 1, body: Request::Page(page) });
        let reply = raw.receive().expect("the server answers");
        bytes += frame_of(&reply).len();
        let Message::Reply { body: Reply::PageOk { rows, view: shown, next }, .. } = reply else {
            panic!("no page but {reply:?}")
        };
        view = PageView::Next(shown);
        keys += rows.len();
        assert!(rows.iter().all(|row| row.value() == Some(&[])), "{rows:?}");
        match (next, &mut of) {
            (None, _) => return (keys, bytes),
            (Some(PageNext::From(next)), PageOf::Range { from, .. }) => *from = next,
            (Some(PageNext::To(next)), PageOf::RangeReverse { to, .. }) => *to = next,
            (next, of) => panic!("{next:?} does not go on with {of:?}"),
        }
    }
}
