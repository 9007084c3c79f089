//! The thread of a client, and what holds of calls when it is held up or is not there.

use std::sync::mpsc;
use std::task::{Context, Wake, Waker};

use super::*;
use crate::client::Client;

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

#[test]
fn a_call_says_why_it_could_not_begin() {
    let mut client = Client::connect([nobody()]).unwrap();
    client.get("k").unwrap_err();
    let inner = Arc::get_mut(&mut client.inner).unwrap();
    // As in a child of the process that has the thread.
    inner.driver.way.get_mut().unwrap().process = 0;
    assert_eq!(client.get("k").unwrap_err(), ClientError::Forked(0));
}

#[test]
fn a_call_ends_although_what_is_done_with_another_answer_blocks() {
    let timeout = Duration::from_millis(50);
    let client = Client::builder([nobody()]).request_timeout(timeout).build().unwrap();
    let (go_on, blocked) = mpsc::channel::<()>();
    let (began, begun) = mpsc::channel();
    let block = async move {
        began.send(()).unwrap();
        blocked.recv().unwrap_err();
    };
    client.inner.driver.spawn(block).unwrap();
    begun.recv().unwrap();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(client.put("k", "v")));
    let put = end.recv_timeout(Duration::from_secs(60)).expect("the call ends");
    let error = put.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert_eq!(error.effect(), crate::model::Effect::MayBeDone);
    drop(go_on);
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("whoever waits");
    }
}

#[test]
fn a_waker_that_panics_harms_nobody_else() {
    let client = Client::connect([nobody()]).unwrap();
    let (waker, mut future) =
        (Waker::from(Arc::new(Panics)), Box::pin(client.get_as("k".into(), Default::default())));
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    // It ends by the same thread, which is still there.
    for _ in 0..2 {
        let error = client.get("k").unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}
