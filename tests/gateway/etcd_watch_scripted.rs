//! The service Watch of etcd's interface, before a server that shows what a script says: what
//! happens at real ones too seldom to wait for it.

use std::sync::{Arc, Mutex};

use acervo::client::{Row, Timestamp, Version};
use acervo::gateway::interface::etcd::etcdserverpb::kv_client::KvClient;
use acervo::gateway::interface::etcd::etcdserverpb::watch_request::RequestUnion;
use acervo::gateway::interface::etcd::etcdserverpb::{WatchCreateRequest, WatchProgressRequest};
use acervo::model::KeyChange;
use acervo::wire::message::{Message, Reply, Request as AcervoRequest, WatchFrame};

use crate::etcd_site::{put, revision};
use crate::etcd_watch::{of_key, of_prefix, runtime, told, watching};
use crate::fake_server::{FakeServer, Link, missing, write_ok};
use crate::site::{channel, waiting};
use crate::support::gateway::Gateway;

/// What a scripted server shows of a watch.
fn show(link: &Link, body: WatchFrame) {
    link.send(&Message::Watched { watch: 1, body });
}

fn events(changes: Vec<KeyChange>, up_to: i64, continues: bool) -> WatchFrame {
    WatchFrame::Events { changes, up_to: Timestamp(up_to), continues }
}

fn change(at: i64, key: &'static str) -> KeyChange {
    let at = Timestamp(at);
    let written = Some(Version { timestamp: at, value: "v".into(), facts: None });
    KeyChange { at, key: key.into(), written, previous: None }
}

/// When whatever is written at a scripted server was written.
const WRITTEN_AT: i64 = 25;

/// A gateway before a server that shows each watch this.
fn scripted(
    script: impl Fn(&Link) + Send + Sync + 'static,
) -> (FakeServer, tempfile::TempDir, Gateway) {
    let server = FakeServer::start(move |id, request, link| match request {
        AcervoRequest::Watch(request) => {
            link.reply(id, Reply::WatchOk { after: request.after.unwrap_or(Timestamp(10)) });
            script(link);
        }
        // Whether the past was compacted.
        AcervoRequest::Get(_) => link.reply(id, missing(1)),
        AcervoRequest::Write(_) => link.reply(id, write_ok(WRITTEN_AT, None)),
        _ => {}
    });
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&dir, &server.address.to_string(), &[]);
    (server, dir, gateway)
}

#[test]
fn a_past_that_is_gone_ends_a_watch_and_says_where_it_may_begin_again() {
    let (_server, _dir, gateway) = scripted(|link| {
        let found = Some(Version { timestamp: Timestamp(9), value: "v".into(), facts: None });
        let rows = vec![Row { key: "k".into(), found }];
        show(link, WatchFrame::Reset { rows, at: Timestamp(50), begins: true, continues: false });
    });
    let runtime = runtime();
    let mut stream = watching(&runtime, &gateway);
    stream.begins(WatchCreateRequest { start_revision: 3, ..of_key("k") });
    let ended = stream.next();
    assert_eq!((ended.watch_id, ended.canceled, ended.compact_revision), (0, true, 50));
    assert_eq!(ended.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    // The stream stays.
    assert_eq!(stream.begins(WatchCreateRequest { watch_id: 5, ..of_key("k") }), 5);
}

/// The library tells it in pieces, of which the last may have nothing.
#[test]
fn a_revision_that_comes_in_pieces_is_one_answer() {
    let (_server, _dir, gateway) = scripted(|link| {
        show(link, events(vec![change(20, "k1"), change(21, "k1")], 20, true));
        show(link, events(vec![change(21, "k2")], 20, true));
        show(link, events(Vec::new(), 21, false));
        show(link, events(vec![change(22, "k1")], 22, false));
    });
    let runtime = runtime();
    let mut stream = watching(&runtime, &gateway);
    stream.begins(of_prefix("k"));
    let told_events = stream.events(4);
    let revisions: Vec<i64> = told_events.iter().map(|(_, event)| told(event).2).collect();
    assert_eq!(revisions, [20, 21, 21, 22]);
    assert_eq!(told_events[1].0, told_events[2].0, "a revision is not cut");
}

/// A client goes on behind the revision of a progress answer: what was not told by then is lost.
#[test]
fn progress_tells_no_revision_whose_events_wait_for_the_rest_of_a_later_one() {
    let shown_on = Arc::new(Mutex::new(None));
    let watched = Arc::clone(&shown_on);
    let (_server, _dir, gateway) = scripted(move |link| {
        *watched.lock().unwrap() = Some(link.clone());
        // All of 20, and the beginning of 21.
        show(link, events(vec![change(20, "k1"), change(21, "k1")], 20, true));
    });
    let runtime = runtime();
    let mut stream = watching(&runtime, &gateway);
    stream.begins(of_prefix("k"));
    // So the gateway has told more than the watch has been shown.
    let written = runtime.block_on(async {
        let mut client = KvClient::new(channel(&gateway).await);
        client.put(waiting(put("other", "v"))).await.unwrap().into_inner()
    });
    assert_eq!(revision(&written.header), WRITTEN_AT);
    // Each of them waits for what will not come in time.
    (0..3).for_each(|_| stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})));
    for _ in 0..3 {
        let progress = stream.next();
        assert_eq!((progress.watch_id, progress.events.len()), (-1, 0), "no event was told before");
        let progress = revision(&progress.header);
        assert!(progress < 20, "{progress} is said to have been shown");
    }
    let link = shown_on.lock().unwrap().clone().unwrap();
    show(&link, events(vec![change(21, "k2")], 21, false));
    let revisions: Vec<i64> = stream.events(3).iter().map(|(_, event)| told(event).2).collect();
    assert_eq!(revisions, [20, 21, 21]);
}
