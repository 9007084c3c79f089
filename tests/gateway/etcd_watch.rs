//! The service Watch of etcd's interface, by a generated client: a case a rule. Writes are made by
//! the client library, beside the gateway.

use std::collections::BTreeSet;
use std::time::Duration;

use acervo::client::{Client, Timestamp};
use acervo::gateway::interface::etcd::etcdserverpb::watch_client::WatchClient;
use acervo::gateway::interface::etcd::etcdserverpb::watch_create_request::FilterType;
use acervo::gateway::interface::etcd::etcdserverpb::watch_request::RequestUnion;
use acervo::gateway::interface::etcd::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use acervo::gateway::interface::etcd::mvccpb::Event;
use acervo::gateway::interface::etcd::mvccpb::event::EventType;
use bytes::Bytes;
use futures_util::stream;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::site::channel;
use crate::support::gateway::Gateway;
use crate::support::{Group, PATIENCE, eventually, patient_client};

/// A group, a gateway, and a runtime for its clients.
struct World {
    group: Group,
    gateway: Gateway,
    runtime: Runtime,
    client: Client,
}

/// One stream of watches.
pub struct Watching<'a> {
    runtime: &'a Runtime,
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl World {
    fn start(servers: usize) -> World {
        World::with_flags(servers, &[])
    }

    fn with_flags(servers: usize, flags: &[&str]) -> World {
        let group = Group::start(servers, &["--console", "off"]);
        let gateway = Gateway::start(&group.dir, &group.list(), flags);
        let client = patient_client(group.addresses());
        World { gateway, runtime: runtime(), client, group }
    }

    fn stream(&self) -> Watching<'_> {
        watching(&self.runtime, &self.gateway)
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        self.client.put(key, value).unwrap().timestamp.0
    }

    fn delete(&self, key: &str) -> i64 {
        self.client.del_keeping_history(key).unwrap().timestamp.0
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn watching<'a>(runtime: &'a Runtime, gateway: &Gateway) -> Watching<'a> {
    let (requests, queued) = mpsc::unbounded_channel();
    let answers = runtime.block_on(async {
        let mut client =
            WatchClient::new(channel(gateway).await).max_decoding_message_size(64 << 20);
        let queued = stream::unfold(queued, |mut queued: mpsc::UnboundedReceiver<_>| async move {
            queued.recv().await.map(|request| (request, queued))
        });
        let mut request = tonic::Request::new(queued);
        // Go's WithRequireLeader sends it.
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        client.watch(request).await.unwrap().into_inner()
    });
    Watching { runtime, requests, answers }
}

impl Watching<'_> {
    pub fn send(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).unwrap();
    }

    /// The next answer, whatever it is.
    pub fn next(&mut self) -> WatchResponse {
        let next = async { timeout(PATIENCE, self.answers.message()).await };
        let answer = self.runtime.block_on(next).expect("an answer in time");
        answer.expect("the stream goes on").expect("the stream goes on")
    }

    /// The error with which the stream ends.
    pub fn ends(&mut self) -> tonic::Status {
        let next = async { timeout(PATIENCE, self.answers.message()).await };
        let answer = self.runtime.block_on(next).expect("an end in time");
        answer.expect_err("the stream ends")
    }

    fn asks(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request));
        let created = self.next();
        assert!(created.created && created.events.is_empty(), "{created:?}");
        created
    }

    /// The id of a watch that begins.
    pub fn begins(&mut self, request: WatchCreateRequest) -> i64 {
        let created = self.asks(request);
        assert!(!created.canceled, "{created:?}");
        assert!(created.header.expect("a header").revision > 0);
        created.watch_id
    }

    fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    /// So many events, with the answer that each came in.
    pub fn events(&mut self, count: usize) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        for answer in 0.. {
            if events.len() >= count {
                break;
            }
            let WatchResponse { canceled, created, events: more, .. } = self.next();
            assert!(!canceled && !created, "an answer without events among them");
            events.extend(more.into_iter().map(|event| (answer, event)));
        }
        events
    }
}

pub fn of_key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from(key.to_owned()), ..WatchCreateRequest::default() }
}

pub fn of_prefix(prefix: &str) -> WatchCreateRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    WatchCreateRequest { range_end: end.into(), ..of_key(prefix) }
}

pub fn told(event: &Event) -> (EventType, String, i64) {
    let kv = event.kv.as_ref().expect("an event has a key");
    (event.r#type(), String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision)
}

fn keys(events: &[(usize, Event)]) -> Vec<String> {
    events.iter().map(|(_, event)| told(event).1).collect()
}

#[test]
fn watches_of_a_stream_have_numbers_of_their_own_and_begin_in_order() {
    let world = World::start(1);
    let mut stream = world.stream();
    let ids: Vec<i64> = (0..2).map(|_| stream.begins(of_key("k"))).collect();
    assert_eq!(ids, [0, 1]);
    assert_eq!(stream.begins(WatchCreateRequest { watch_id: 7, ..of_key("k") }), 7);
    let refused = stream.asks(WatchCreateRequest { watch_id: 7, ..of_key("k") });
    assert_eq!((refused.watch_id, refused.canceled), (-1, true));
    assert_eq!(refused.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = WatchCreateRequest { range_end: Bytes::from("a"), ..of_key("k") };
    let refused = stream.asks(empty);
    assert_eq!((refused.watch_id, refused.canceled), (-1, true));
    assert_eq!(refused.cancel_reason, "mvcc: watcher range is empty");
    // Each is told each change.
    let at = world.put("k", "v");
    let of: BTreeSet<i64> = (0..3)
        .map(|_| {
            let answer = stream.next();
            assert_eq!(told(&answer.events[0]), (EventType::Put, "k".to_owned(), at));
            answer.watch_id
        })
        .collect();
    assert_eq!(of, [0, 1, 7].into());
    // One that is cancelled is told nothing more, and the others are.
    stream.cancel(77);
    stream.cancel(1);
    let cancelled = stream.next();
    assert_eq!((cancelled.watch_id, cancelled.canceled), (1, true));
    assert_eq!((&*cancelled.cancel_reason, cancelled.compact_revision), ("", 0));
    world.put("k", "w");
    let of: BTreeSet<i64> = (0..2).map(|_| stream.next().watch_id).collect();
    assert_eq!(of, [0, 7].into());
    assert_eq!(stream.begins(of_key("k")), 2, "a number is not drawn twice");
}

#[test]
fn a_watch_from_now_on_begins_behind_the_revision_of_its_answer() {
    let world = World::start(3);
    for _ in 0..5 {
        let mut stream = world.stream();
        let before = world.put("k", "before");
        let created = stream.asks(of_key("k"));
        let at = world.put("k", "after");
        let events = stream.events(1);
        let first = told(&events[0].1).2;
        let revision = created.header.unwrap().revision;
        assert!(first > revision && (first == before || first == at), "{before} {revision} {at}");
    }
}

#[test]
fn a_watch_of_the_past_is_told_every_change_as_it_was() {
    let world = World::start(1);
    let lease = world.client.grant_lease(Duration::from_secs(600), None).unwrap().id;
    let first = world.put("w/a", "1");
    let second = world.client.put_with_lease("w/a", "2", lease).unwrap().timestamp.0;
    world.put("x", "elsewhere");
    let deleted = world.delete("w/a");
    let third = world.put("w/a", "3");
    let mut stream = world.stream();
    stream.begins(WatchCreateRequest { start_revision: first, ..of_prefix("w/") });
    let events: Vec<Event> = stream.events(4).into_iter().map(|(_, event)| event).collect();
    let shown: Vec<_> = events.iter().map(told).collect();
    let a = || "w/a".to_owned();
    let right = [
        (EventType::Put, a(), first),
        (EventType::Put, a(), second),
        (EventType::Delete, a(), deleted),
        (EventType::Put, a(), third),
    ];
    assert_eq!(shown, right);
    let facts = |event: &Event| {
        let kv = event.kv.clone().unwrap();
        (kv.create_revision, kv.version, kv.lease, String::from_utf8(kv.value.to_vec()).unwrap())
    };
    assert_eq!(facts(&events[0]), (first, 1, 0, "1".to_owned()));
    assert_eq!(facts(&events[1]), (first, 2, lease.0.cast_signed(), "2".to_owned()));
    assert_eq!(facts(&events[2]), (0, 0, 0, String::new()), "a deletion has a key and a revision");
    assert_eq!(facts(&events[3]), (third, 1, 0, "3".to_owned()));
    assert!(events.iter().all(|event| event.prev_kv.is_none()), "nobody has asked for it");
    // From the middle on, and from what has not been written.
    stream.begins(WatchCreateRequest { start_revision: deleted, ..of_prefix("w/") });
    assert_eq!(told(&stream.events(2)[0].1).2, deleted);
    let mut late = world.stream();
    late.begins(WatchCreateRequest { start_revision: third + 1_000_000, ..of_prefix("w/") });
    world.put("w/a", "too early");
    stream.events(2);
    let after = eventually("a second passes", || {
        let at = world.put("w/b", "4");
        (at >= third + 1_000_000).then_some(at)
    });
    assert_eq!(told(&late.events(1)[0].1), (EventType::Put, "w/b".to_owned(), after));
}

#[test]
fn previous_values_and_filters() {
    let world = World::start(1);
    let long = "l".repeat(100_000);
    let first = world.put("k", &long);
    let second = world.put("k", "2");
    let deleted = world.delete("k");
    let from = |request| WatchCreateRequest { start_revision: first, ..request };
    let mut stream = world.stream();
    stream.begins(from(WatchCreateRequest { prev_kv: true, ..of_key("k") }));
    let events = stream.events(3);
    let previous: Vec<Option<(i64, i64, Vec<u8>)>> = events
        .iter()
        .map(|(_, event)| {
            let kv = event.prev_kv.as_ref()?;
            Some((kv.mod_revision, kv.version, kv.value.to_vec()))
        })
        .collect();
    let right = [None, Some((first, 1, long.into_bytes())), Some((second, 2, b"2".to_vec()))];
    assert_eq!(previous, right);
    let without = |filter: FilterType| WatchCreateRequest {
        filters: vec![filter.into()],
        ..from(of_key("k"))
    };
    let mut deletions = world.stream();
    deletions.begins(without(FilterType::Noput));
    assert_eq!(told(&deletions.events(1)[0].1), (EventType::Delete, "k".to_owned(), deleted));
    let mut puts = world.stream();
    puts.begins(without(FilterType::Nodelete));
    let events = puts.events(2);
    assert!(events.iter().all(|(_, event)| event.r#type() == EventType::Put), "{events:?}");
}

#[test]
fn ranges_are_etcds() {
    let world = World::start(1);
    let before = world.put("first", "");
    for key in ["a", "b", "b\0", "c"] {
        world.put(key, "");
    }
    let end = |key: &'static str, end: &'static [u8]| WatchCreateRequest {
        range_end: Bytes::from_static(end),
        start_revision: before + 1,
        ..of_key(key)
    };
    let cases = [
        (end("b", b""), &["b"][..]),
        (end("a", b"b"), &["a"]),
        (end("a", b"b\0"), &["a", "b"]),
        (end("a", b"c"), &["a", "b", "b\0"]),
        (end("b\0", b"\0"), &["b\0", "c"]),
        (end("", b"\0"), &["a", "b", "b\0", "c"]),
        (end("\0", b"\0"), &["a", "b", "b\0", "c"]),
    ];
    for (request, right) in cases {
        let mut stream = world.stream();
        stream.begins(request.clone());
        assert_eq!(keys(&stream.events(right.len())), right, "{request:?}");
    }
}

#[test]
fn what_one_revision_has_changed_comes_in_one_answer_or_in_fragments() {
    let world = World::start(1);
    let value = vec![b'v'; 30_000];
    let pairs: Vec<(String, &[u8])> =
        (0..100).map(|number| (format!("w/{number:03}"), &value[..])).collect();
    let mut whole = world.stream();
    whole.begins(of_prefix("w/"));
    let mut pieces = world.stream();
    pieces.begins(WatchCreateRequest { fragment: true, ..of_prefix("w/") });
    let at = world.client.put_all(pairs).unwrap().timestamp.0;
    let answer = whole.next();
    assert_eq!((answer.events.len(), answer.fragment), (100, false));
    assert!(answer.events.iter().all(|event| told(event).2 == at));
    assert_eq!(answer.header.unwrap().revision, at);
    let mut seen = Vec::new();
    for number in 0.. {
        let WatchResponse { events, fragment, .. } = pieces.next();
        let bytes: usize = events.iter().map(|event| event.kv.as_ref().unwrap().value.len()).sum();
        assert!(!events.is_empty() && bytes < 2 << 20, "{bytes} bytes at once");
        seen.extend(events.iter().map(|event| told(event).1));
        if !fragment {
            assert!(number > 0, "it was to be cut");
            break;
        }
    }
    let right: Vec<String> = (0..100).map(|number| format!("w/{number:03}")).collect();
    assert_eq!(seen, right);
}

#[test]
fn progress_tells_up_to_where_all_watches_of_a_stream_are() {
    let world = World::with_flags(1, &["--watch-progress-interval", "50ms"]);
    let mut stream = world.stream();
    let quiet = stream.begins(WatchCreateRequest { progress_notify: true, ..of_key("quiet") });
    let at = world.put("other", "v");
    let revision = loop {
        let answer = stream.next();
        assert_eq!((answer.watch_id, answer.events.len(), answer.canceled), (quiet, 0, false));
        let revision = answer.header.unwrap().revision;
        if revision >= at {
            break revision;
        }
    };
    // Without being asked it is told by watches that want it, and by no others.
    let mut asking = world.stream();
    (0..3).for_each(|_| _ = asking.begins(of_key("quiet")));
    let newest = world.put("quiet", "v");
    (0..3).for_each(|_| assert_eq!(asking.next().events.len(), 1));
    asking.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    let answer = asking.next();
    assert_eq!((answer.watch_id, answer.events.len(), answer.created), (-1, 0, false));
    assert!(answer.header.unwrap().revision >= newest.max(revision));
}

#[test]
fn a_request_that_is_too_long_ends_its_stream_with_etcds_words() {
    let world = World::start(1);
    let mut stream = world.stream();
    stream.send(RequestUnion::CreateRequest(of_key(&"k".repeat(17 * 1024))));
    let ended = stream.ends();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
}

#[test]
fn a_gateway_that_is_told_to_stop_ends_idle_watches_and_does_not_wait_for_them() {
    let mut world = World::start(1);
    let mut stream = watching(&world.runtime, &world.gateway);
    stream.begins(of_key("quiet"));
    world.gateway.signal(Signal::TERM);
    let ended = stream.ends();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: server stopped"));
    drop(stream);
    // A client that stands still keeps its connection open, which the gateway would wait for.
    drop(world.runtime);
    assert!(world.gateway.wait().success());
    let log = world.gateway.log();
    assert!(!log.contains("without an answer"), "{log}");
}

#[test]
fn a_client_that_reads_nothing_stops_only_its_own_watches() {
    let world = World::start(1);
    let mut idle = world.stream();
    idle.begins(of_prefix("w/"));
    let mut taken = world.stream();
    taken.begins(of_prefix("w/"));
    let value = "v".repeat(100_000);
    for number in 0..60 {
        world.put(&format!("w/{number:02}"), &value);
        assert_eq!(taken.events(1).len(), 1);
    }
    let right: Vec<String> = (0..60).map(|number| format!("w/{number:02}")).collect();
    assert_eq!(keys(&idle.events(60)), right, "what it did not read is still there");
}

#[test]
fn watches_end_with_their_stream() {
    let world = World::start(1);
    let address = world.group.addresses()[0];
    let connections = || world.client.status(address).unwrap().client_connections;
    let mut stream = world.stream();
    // Until the gateway has all connections that it has by itself.
    eventually("the gateway knows its group", || {
        let created = stream.asks(of_key("k"));
        (created.header.unwrap().cluster_id != 0).then_some(())
    });
    let watched = connections();
    drop(stream);
    // The gateway's connection that carries watches ends some seconds after the last one.
    eventually("the gateway watches no more", || (connections() < watched).then_some(()));
}

#[test]
fn a_watch_goes_on_when_servers_are_killed() {
    let mut world = World::start(3);
    let addresses = world.group.addresses();
    // A first write waits until all servers have taken part in the group. Before that it may need
    // the one that is killed.
    world.put("before", "1");
    let mut requests = Vec::new();
    {
        let mut stream = watching(&world.runtime, &world.gateway);
        stream.begins(of_key("k"));
        for round in 0..3 {
            world.group.kill(round);
            let at = patient_client(addresses.clone()).put("k", round.to_string()).unwrap();
            let events = stream.events(1);
            assert_eq!(told(&events[0].1).2, at.timestamp.0);
            requests.push(events);
            world.group.start_server(round);
            world.group.wait_until_listening(round);
        }
    }
    assert_eq!(requests.len(), 3);
}

#[test]
fn a_watch_from_below_a_compaction_is_told_where_it_may_begin() {
    let world = World::start(3);
    let [first, second, third] = ["1", "2", "3"].map(|value| world.put("k", value));
    world.client.compact(Timestamp(second)).unwrap();
    let mut stream = world.stream();
    stream.begins(WatchCreateRequest { start_revision: first, ..of_key("k") });
    let ended = stream.next();
    assert_eq!((ended.canceled, ended.compact_revision), (true, second), "{ended:?}");
    assert_eq!(ended.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    stream.begins(WatchCreateRequest { start_revision: second, ..of_key("k") });
    let revisions: Vec<i64> = stream.events(2).iter().map(|(_, event)| told(event).2).collect();
    assert_eq!(revisions, [second, third]);
}

/// Sixty megabytes of previous values go at once.
#[test]
fn a_revision_that_is_too_long_ends_its_watch_unless_that_takes_fragments() {
    let world = World::start(1);
    let value = vec![b'v'; 15_000];
    let mut last = 0;
    for part in 0..8 {
        let keys = (0..500).map(|number| (format!("w/{part}{number:03}"), &value[..]));
        last = world.client.put_all(keys).unwrap().timestamp.0;
    }
    let with_previous =
        || WatchCreateRequest { prev_kv: true, start_revision: last + 1, ..of_prefix("w/") };
    let mut whole = world.stream();
    whole.begins(with_previous());
    let mut pieces = world.stream();
    pieces.begins(WatchCreateRequest { fragment: true, ..with_previous() });
    let at = world.client.del_range("w/", "w0").unwrap().timestamp.0;
    let mut seen = 0;
    loop {
        let WatchResponse { events, fragment, canceled, .. } = pieces.next();
        assert!(!canceled && !events.is_empty());
        assert!(events.iter().all(|event| told(event).2 == at && event.prev_kv.is_some()));
        seen += events.len();
        if !fragment {
            break;
        }
    }
    assert_eq!(seen, 4_000);
    let ended = whole.next();
    assert_eq!((ended.canceled, ended.events.len(), ended.compact_revision), (true, 0, 0));
    let reason = ended.cancel_reason;
    assert!(reason.starts_with(&format!("revision {at} has changed more")), "{reason}");
    assert_eq!(whole.begins(WatchCreateRequest { watch_id: 3, ..of_key("k") }), 3);
}
