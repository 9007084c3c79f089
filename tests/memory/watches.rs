//! What many watches of one client cost its process and its server: one connection, and no thread.

use std::fs;
use std::time::{Duration, Instant};

use acervo::Client;
use acervo::client::{KeyRange, Watch, WatchOptions};

use crate::alone;
use crate::support::{Group, PATIENCE};

/// Threads of this process that belong to a client.
fn client_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("acervo-")).count()
}

#[test]
fn a_thousand_watches_take_one_connection_and_no_thread_more() {
    let _alone = alone();
    let group = Group::start(1, &[]);
    let address = group.addresses()[0];
    let client = Client::connect([address]).unwrap();
    client.put("k", "v").unwrap();
    let connections = || client.status(address).unwrap().client_connections;
    let (threads_before, connections_before) = (client_threads(), connections());
    let mut watches: Vec<Watch> = (0..1_000)
        .map(|number| {
            let key = format!("w/{number}");
            client.watch(KeyRange::between(&key, &key).unwrap(), WatchOptions::default()).unwrap()
        })
        .collect();
    assert_eq!(client_threads(), threads_before);
    assert_eq!(connections(), connections_before + 1);
    client.put("w/999", "v").unwrap();
    watches[999].next_within(PATIENCE).expect("an event in time").unwrap();
    drop(watches);
    let deadline = Instant::now() + PATIENCE;
    while connections() != connections_before {
        assert!(Instant::now() < deadline, "the connection of the watches is still there");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
