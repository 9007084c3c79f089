//! Long answers: whole, from one state, no faster than they are read, and ended when nobody reads.

use std::time::Duration;

use tonic::Code;

use crate::proxy::Proxy;
use crate::site::{Site, key, key_at, pair, range, waiting, within};
use crate::support::Group;
use crate::support::gateway::Gateway;

const MANY: usize = 100_000;

fn name(at: usize) -> String {
    format!("key-{at:06}")
}

/// Writes keys of about 100 bytes, values included, all at one version.
fn fill(site: &Site, count: usize) -> i64 {
    let mut last = 0;
    for piece in (0..count).collect::<Vec<_>>().chunks(50_000) {
        let pairs = piece.iter().map(|at| pair(&name(*at), &format!("{at:0>90}"))).collect();
        last = site.put_all(pairs).unwrap()[0].ver;
    }
    last
}

#[test]
fn a_hundred_thousand_keys_come_whole_in_order_and_from_one_state() {
    let site = Site::start();
    let ver = fill(&site, MANY);
    let (first, last) = (name(0), name(MANY - 1));
    let all = || range(key(&first), key(&last));
    // While it is read, keys before and behind the reader change and go.
    let rows = site.runtime.block_on(async {
        let mut client = site.client.clone();
        let mut rows = client.get_range(waiting(all())).await.unwrap().into_inner();
        let mut read = Vec::new();
        while let Some(row) = rows.message().await.unwrap() {
            read.push(row);
            if read.len() == 10 {
                client.put(waiting(pair(&name(5), "new"))).await.unwrap();
                client.put(waiting(pair(&name(MANY - 5), "new"))).await.unwrap();
                client.del(waiting(key(&name(MANY - 7)))).await.unwrap();
                let gone = range(key(&name(60_000)), key(&name(70_000)));
                drop(client.del_range(waiting(gone)).await.unwrap());
            }
        }
        read
    });
    assert_eq!(rows.len(), MANY);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!((&*row.key, &*row.val), (&*name(at), &*format!("{at:0>90}")));
        assert!(row.ver <= ver);
    }
    let now = site.get_range(all()).unwrap();
    assert_eq!(now.len(), MANY - 1 - 10_001);
    let removed = site.del_range(range(key_at(&first, 1), key(&last))).unwrap();
    assert_eq!(removed, now, "what is removed is told, however much it is");
    assert_eq!(site.get_range(all()).unwrap(), []);
}

/// A gateway whose servers' words are counted, and what a whole read of its keys takes.
fn counted() -> (Site, Proxy, u64) {
    let group = Group::start(3, &["--console", "off"]);
    let proxy = Proxy::start(&group.addresses());
    let gateway = Gateway::start(&group.dir, &proxy.list(), &[]);
    let site = Site::of(group, gateway);
    fill(&site, MANY);
    let before = proxy.said();
    read_all(&site);
    let whole = proxy.said() - before;
    assert!(whole > 9_000_000, "{whole}");
    (site, proxy, whole)
}

fn read_all(site: &Site) {
    let rows = site.get_range(range(key(&name(0)), key(&name(MANY)))).unwrap();
    assert_eq!(rows.len(), MANY);
}

#[test]
fn a_stream_that_is_not_read_or_was_cancelled_reads_no_more_pages() {
    let (site, proxy, whole) = counted();
    let before = proxy.said();
    // One stream is left lying, the other dropped, which resets it.
    let asked = || waiting(range(key(&name(0)), key(&name(MANY))));
    let lying = site.runtime.block_on(async {
        let mut client = site.client.clone();
        let mut lying = client.get_range(asked()).await.unwrap().into_inner();
        lying.message().await.unwrap().unwrap();
        let mut dropped = client.get_range(asked()).await.unwrap().into_inner();
        dropped.message().await.unwrap().unwrap();
        lying
    });
    // As long as this takes, the two had time to run on.
    read_all(&site);
    let (said, wanted) = (proxy.said() - before, whole);
    assert!(said < wanted + whole / 2, "{said} bytes were read where {wanted} were wanted");
    drop(lying);
}

#[test]
fn a_deadline_ends_a_stream_with_deadline_exceeded() {
    let site = Site::start();
    fill(&site, MANY);
    // Long enough for the first row on a busy machine; all that is waited for here is its passing.
    let deadline = Duration::from_secs(3);
    let status = site.runtime.block_on(async {
        let over = tokio::time::Instant::now() + deadline;
        let mut client = site.client.clone();
        let asked = within(range(key(&name(0)), key(&name(MANY))), deadline);
        let mut rows = client.get_range(asked).await.unwrap().into_inner();
        rows.message().await.unwrap().unwrap();
        tokio::time::sleep_until(over).await;
        loop {
            match rows.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream went on past its deadline"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[test]
fn a_request_stream_that_never_ends_is_ended_by_its_deadline() {
    let site = Site::start();
    let status = site.runtime.block_on(async {
        let endless = futures_util::StreamExt::chain(
            futures_util::stream::iter([key("a")]),
            futures_util::stream::pending(),
        );
        let mut client = site.client.clone();
        client.del_all(within(endless, Duration::from_millis(100))).await.unwrap_err()
    });
    // This client looks at its own clock, too, and calls it by another name.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
}
