//! The core without a client, among servers that say what a test has them say.

use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::client::call::{CallFuture, Overdue};
use crate::client::sync::lock;
use crate::limits::CLIENT_MUTE_TIMEOUT;
use crate::model::{NodeId, ReadView, RequestId};
use crate::wire::message::{PROTOCOL_VERSION, Welcome};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1024 * 1024;

/// What became of calls, by their numbers.
type Results = Arc<Mutex<Vec<(CallId, Result<(), ClientError>)>>>;

/// A call that takes any reply but a page.
struct Plain {
    id: CallId,
    results: Results,
    /// The attempts that it keeps something of.
    kept: Arc<Mutex<Vec<u64>>>,
}

impl Exchange for Plain {
    fn request(&mut self, attempt: u64, _: Option<RequestId>) -> Request {
        lock(&self.kept).push(attempt);
        Request::Status
    }

    fn judge(&mut self, attempt: u64, _: SocketAddr, reply: Reply) -> Verdict<()> {
        lock(&self.kept).retain(|kept| *kept != attempt);
        match reply {
            Reply::PageOk { .. } => judge_unexpected(),
            _ => Verdict::Done(()),
        }
    }

    fn forget(&mut self, attempt: u64) {
        lock(&self.kept).retain(|kept| *kept != attempt);
    }

    fn end(self: Box<Self>, result: Result<(), ClientError>) {
        lock(&self.results).push((self.id, result));
    }
}

struct World {
    core: Core,
    now: Duration,
    calls: CallId,
    results: Results,
    kept: Arc<Mutex<Vec<u64>>>,
    /// How the calls are tried that begin, and by whom.
    retry: Retry,
    target: Target,
    /// Servers take what is sent.
    is_taken: bool,
    /// What has left for servers since this was looked at last.
    sent: Vec<(usize, Message)>,
}

impl World {
    fn new(servers: u16) -> World {
        let address = |server: u16| SocketAddr::from(([127, 0, 0, 1], 1 + server));
        let config = CoreConfig { timing: Timing::default(), client: ClientId(1), seed: 1 };
        let core = Core::new((0..servers).map(address).collect(), config);
        let (results, kept) = (Arc::default(), Arc::default());
        let (now, target) = (Duration::ZERO, Target::AnyServer);
        let retry = Retry::UntilDeadline;
        World {
            core,
            now,
            calls: 0,
            results,
            kept,
            retry,
            target,
            is_taken: true,
            sent: Vec::new(),
        }
    }

    /// Servers greet at once, and say nothing more by themselves.
    fn settle(&mut self) {
        self.core.resume(self.now);
        self.core.poll(self.now);
        while let Some(output) = self.core.take_output() {
            match output {
                Output::Dial(server) => {
                    self.core.connected(server);
                    let welcome = Welcome {
                        protocol: PROTOCOL_VERSION,
                        cluster: ClusterId(7),
                        node: NodeId(1 + server as u64),
                        incarnation: 1,
                        last_index: 0,
                        term: 1,
                        first_leader: None,
                        applied_timestamp: Timestamp::ZERO,
                    };
                    self.hear(server, &Message::Welcome(welcome));
                }
                Output::Send { server, message } => {
                    if self.is_taken {
                        self.core.queued(server, 0);
                    }
                    self.sent.push((server, message));
                }
                Output::Resume(promise) => promise.keep(Ok(())),
                Output::End { exchange, result } => exchange.end(result),
                _ => {}
            }
        }
        self.core.check();
    }

    /// A server says something.
    fn hear(&mut self, server: usize, message: &Message) {
        let mut frame = Vec::new();
        codec::encode(message, MIB, &mut frame).unwrap();
        self.core.frame(self.now, server, &frame[4..]);
    }

    fn begin(&mut self, is_write: bool, request_bytes: usize) -> CallId {
        self.calls += 1;
        let id = self.calls;
        let (results, kept) = (Arc::clone(&self.results), Arc::clone(&self.kept));
        let target = match self.target {
            Target::AnyServer if is_write => Target::LeaderFirst,
            target => target,
        };
        let timeout = 10 * SECOND;
        let (retry, deadline) = (self.retry.clone(), self.now + timeout);
        let spec = CallSpec { target, retry, is_write, request_bytes, deadline, timeout };
        self.core.begin(self.now, id, spec, Box::new(Plain { id, results, kept }));
        self.settle();
        id
    }

    /// The requests that have left since this was asked last: for whom, and their ids.
    fn take_requests(&mut self) -> Vec<(usize, u64)> {
        let sent = std::mem::take(&mut self.sent).into_iter();
        sent.filter_map(|(server, message)| match message {
            Message::Request { id, .. } => Some((server, id)),
            _ => None,
        })
        .collect()
    }

    fn reply(&mut self, (server, id): (usize, u64), body: Reply) {
        self.hear(server, &Message::Reply { id, body });
        self.settle();
    }

    /// Goes on for so long; whoever says something says it every 20 ms.
    fn pass(&mut self, time: Duration, says: impl Fn(usize) -> Option<Message>) {
        let until = self.now + time;
        while self.now < until {
            self.now += 20 * MS;
            for server in 0..self.core.servers.len() {
                if self.core.links[server].is_open()
                    && let Some(message) = says(server)
                {
                    self.hear(server, &message);
                }
            }
            self.settle();
        }
    }
}

fn pong(_: usize) -> Option<Message> {
    Some(Message::Pong { nonce: 0 })
}

fn page() -> Reply {
    Reply::PageOk { rows: Vec::new(), view: ReadView::as_of(Timestamp(1)), next: None }
}

#[test]
fn a_read_passes_long_writes_that_hang_and_no_write_passes_another() {
    let mut world = World::new(1);
    for _ in 0..9 {
        world.begin(true, 8 * MIB);
    }
    world.begin(true, 1);
    world.take_requests();
    let read = world.begin(false, 100);
    let requests = world.take_requests();
    assert_eq!(requests.len(), 1, "the read leaves, and the short write does not");
    world.reply(requests[0], done());
    assert_eq!(*lock(&world.results), [(read, Ok(()))]);
}

/// A reply that ends a call well.
fn done() -> Reply {
    let error = crate::wire::message::ErrorReply::not_done(ErrorCode::Internal, String::new());
    Reply::Error(error)
}

#[test]
fn nothing_is_to_be_done_for_calls_that_were_dropped() {
    let mut world = World::new(3);
    for is_write in [true, false] {
        world.begin(is_write, 100);
    }
    world.core.abandon();
    assert_eq!(world.core.next_at(), None);
    world.now += 60 * SECOND;
    world.settle();
    // It works as on its first day.
    world.take_requests();
    world.begin(true, 100);
    assert_eq!(world.take_requests().len(), 1);
}

#[test]
fn a_write_that_was_answered_with_something_else_may_be_done() {
    let mut world = World::new(1);
    world.retry = Retry::EachServerOnce;
    world.begin(true, 100);
    let requests = world.take_requests();
    world.reply(requests[0], page());
    let results = lock(&world.results);
    let (_, Err(error)) = &results[0] else { panic!("{results:?}") };
    assert_eq!(error.effect(), Effect::MayBeDone);
}

#[test]
fn what_given_up_writes_leave_in_the_queues_of_servers_that_take_nothing_is_bounded() {
    let mut world = World::new(3);
    world.is_taken = false;
    for _ in 0..40 {
        let write = world.begin(true, 4 * MIB);
        world.pass(SECOND, pong);
        world.core.cancel(world.now, write);
        world.settle();
    }
    let left = world.take_requests().len();
    assert!(left > 0 && left * 4 * MIB <= CLIENT_QUEUED_BYTES_MAX, "{left} have left");
    // They take something again.
    let write = world.begin(true, 4 * MIB);
    world.pass(SECOND, pong);
    assert_eq!(world.take_requests(), []);
    (0..3).for_each(|server| world.core.queued(server, 0));
    world.settle();
    let requests = world.take_requests();
    assert_eq!(requests.len(), 1, "one copy is enough");
    world.reply(requests[0], done());
    assert_eq!(*lock(&world.results), [(write, Ok(()))]);
}

#[test]
fn a_server_that_takes_nothing_and_floods_gets_no_more_than_it_is_to_take() {
    let mut world = World::new(1);
    world.is_taken = false;
    world.begin(false, 100);
    world.take_requests();
    for nonce in 0..100_000 {
        world.hear(0, &Message::Ping { nonce });
    }
    world.settle();
    assert!(world.sent.len() <= CLIENT_QUEUED_BYTES_PAUSE / SMALL_BYTES);
    world.core.queued(0, 0);
    world.sent.clear();
    world.hear(0, &Message::Ping { nonce: 1 });
    world.settle();
    assert_eq!(world.sent.len(), 1);
}

/// A value that took longer than the silence time-out to send never got there.
#[test]
fn a_long_request_has_the_time_that_it_takes_on_a_slow_line() {
    let mut world = World::new(3);
    world.begin(true, MIB);
    assert_eq!(world.take_requests().len(), 1);
    world.pass(SECOND, |_| None);
    assert_eq!(world.take_requests(), [], "no second copy goes over the same line");
    // The system takes what it has room for, which says nothing of the line.
    world.core.heard(world.now, 0);
    // Then it goes to the others, too, and nobody's connection is given up.
    world.pass(8 * SECOND, |_| None);
    assert!(world.take_requests().len() >= 2, "beside probes");
    assert!(world.core.links.iter().all(Link::is_open), "it may not have arrived yet");
}

/// Whoever gave it up left nothing on the line, one would have thought.
#[test]
fn what_was_given_up_is_on_the_line_all_the_same() {
    let mut world = World::new(1);
    let long = world.begin(true, MIB);
    world.take_requests();
    world.pass(SECOND, |_| None);
    world.core.cancel(world.now, long);
    let read = world.begin(false, 100);
    let requests = world.take_requests();
    // The answer to a PING that was sent before.
    world.hear(0, &Message::Pong { nonce: 0 });
    world.pass(8 * SECOND, |_| None);
    assert!(world.core.links[0].is_open(), "the read is behind a long value");
    world.reply(requests[0], done());
    assert_eq!(*lock(&world.results), [(read, Ok(()))]);
    // It has come to the other end, so that silence is silence now.
    world.begin(false, 100);
    world.pass(4 * SECOND, |_| None);
    assert!(!world.core.links[0].is_open());
}

#[test]
fn a_read_whose_answer_is_arriving_is_asked_of_nobody_else_and_its_server_is_well() {
    let mut world = World::new(3);
    let read = world.begin(false, 100);
    let requests = world.take_requests();
    let (server, id) = requests[0];
    // A value of a megabyte over a line of 128 KiB a second.
    let mut bytes = 0;
    while bytes < MIB {
        world.pass(20 * MS, |_| None);
        bytes += 2600;
        world.core.heard(world.now, server);
        world.core.arrives(world.now, server, id, bytes);
        world.settle();
        // A probe of nobody is due either.
        assert_eq!(world.take_requests(), []);
    }
    assert!(world.now > CLIENT_MUTE_TIMEOUT && world.core.health.is_healthy(server));
    world.reply((server, id), done());
    assert_eq!(*lock(&world.results), [(read, Ok(()))]);
}

#[test]
fn a_read_whose_answer_stands_still_or_comes_in_crumbs_goes_to_another_server() {
    for crumb in [0, 10] {
        let mut world = World::new(2);
        world.begin(false, 100);
        let requests = world.take_requests();
        let (server, id) = requests[0];
        let (mut bytes, mut asked) = (10_000, Vec::new());
        while asked.is_empty() {
            world.core.arrives(world.now, server, id, bytes);
            bytes += crumb;
            if crumb > 0 {
                world.core.heard(world.now, server);
            }
            world.pass(20 * MS, |_| None);
            asked = world.take_requests();
            assert!(world.now < 2 * SECOND, "it is asked of nobody else");
        }
        assert!(world.now >= 500 * MS, "a lost segment comes once more before that");
        assert_ne!(asked[0].0, server);
    }
}

/// Reads of long values at the same time: each had its answer from every server.
#[test]
fn a_read_behind_a_long_answer_to_another_one_is_not_asked_again_before_its_turn() {
    let mut world = World::new(2);
    // Who has been overtaken is asked last.
    let reads = [world.begin(false, 100), world.begin(false, 100), world.begin(false, 100)];
    let requests = world.take_requests();
    let (server, first) = requests[0];
    let behind = requests[1..].iter().find(|(of, _)| *of == server);
    let other = 1 - server;
    for (at, request) in requests.iter().enumerate() {
        if request.0 == other {
            world.reply(*request, done());
            assert!(lock(&world.results).iter().any(|(id, _)| *id == reads[at]));
        }
    }
    let Some(behind) = behind else { panic!("another seed: {requests:?}") };
    let mut bytes = 0;
    for _ in 0..100 {
        world.pass(20 * MS, |_| None);
        bytes += 2600;
        world.core.heard(world.now, server);
        world.core.arrives(world.now, server, first, bytes);
        world.settle();
        assert_eq!(world.take_requests(), []);
    }
    world.reply((server, first), done());
    world.reply(*behind, done());
    assert_eq!(lock(&world.results).len(), 3);
}

#[test]
fn nothing_is_kept_of_attempts_that_have_ended() {
    let mut world = World::new(1);
    let write = world.begin(true, 100);
    for _ in 0..30 {
        assert_eq!(world.take_requests().len(), 1);
        assert_eq!(lock(&world.kept).len(), 1);
        assert!(world.core.calls[&write].claims.len() <= 2);
        world.hear(0, &Message::Pong { nonce: 0 });
        let broken = Loss::Broken { reason: "reset".to_owned(), ended: false };
        world.core.lost(world.now, 0, broken);
        world.pass(120 * MS, |_| None);
    }
}

#[test]
fn a_server_that_owes_the_answer_to_a_probe_is_not_probed_again() {
    let mut world = World::new(2);
    world.target = Target::Server(0);
    world.retry = Retry::EachServerOnce;
    world.begin(false, 100);
    let requests = world.take_requests();
    world.reply(requests[0], page());
    // It counts as unhealthy now. Somebody else is at work.
    world.target = Target::Server(1);
    world.begin(false, 100);
    world.pass(9 * SECOND, pong);
    let probes = world.take_requests().into_iter().filter(|(server, _)| *server == 0);
    assert_eq!(probes.count(), 1);
}

#[test]
fn a_pause_ends_when_between_half_of_its_time_and_all_of_it_is_over() {
    let mut world = World::new(1);
    let longest = 100 * MS;
    for _ in 0..20 {
        let (promise, slot) = Promise::new();
        world.core.pause(world.now, longest, promise);
        let overdue = Overdue::of_pause(None, longest);
        let mut pause = pin!(CallFuture { slot, id: 0, overdue, inbox: None });
        let mut poll = || pause.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let until = world.core.next_at().expect("somebody waits");
        assert!(world.now + longest / 2 <= until && until <= world.now + longest, "{until:?}");
        world.now = until - Duration::from_nanos(1);
        world.settle();
        assert_eq!(poll(), Poll::Pending);
        world.now = until;
        world.settle();
        assert_eq!(poll(), Poll::Ready(Ok(())));
    }
}

#[test]
fn whoever_pauses_does_not_wait_for_a_core_that_is_abandoned() {
    let mut world = World::new(1);
    let (promise, slot) = Promise::new();
    world.core.pause(world.now, SECOND, promise);
    let overdue = Overdue::of_pause(None, SECOND);
    let pause = pin!(CallFuture { slot, id: 0, overdue, inbox: None });
    world.core.abandon();
    let poll = pause.poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(poll, Poll::Ready(Err(ClientError::Ended)));
}
