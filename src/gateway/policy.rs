//! What holds for every call, whichever operation it is: its deadline, its place, the bytes that it
//! may make the gateway hold, and how long a request may take to arrive.
//!
//! Places and bytes are shared by all connections (see `accounting`). A call keeps its place, and
//! is charged for its answer, until the last byte of the answer has been sent or dropped: HTTP/2
//! keeps for as long as its client likes what that does not read.
//!
//! The transport knows deadlines too, but reports a missed one as CANCELLED, ends nobody's stream
//! at it, and calls an overlong message OUT_OF_RANGE. Clients of other gRPC servers expect
//! DEADLINE_EXCEEDED; an overlong message is INVALID_ARGUMENT like all that no repetition can make
//! right, so that RESOURCE_EXHAUSTED means that there is too much to do, or no room on a disk.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::accounting::{Account, Call, Pool, Turn};
use super::etcd::json::JsonCall;
use super::etcd::{EtcdError, overlong};
use super::translate::{no_room, status};
use super::turns::Usage;
use crate::client::ClientError;
use crate::limits;

/// A call's request has to be whole within this time, or, of a stream of requests, the next one: 4
/// MiB over a line of three megabits a second.
const GATEWAY_MESSAGE_TIMEOUT: Duration = Duration::from_secs(12);

/// The header by which a client says how long it waits.
const GRPC_TIMEOUT: &str = "grpc-timeout";
const GRPC_STATUS: &str = "grpc-status";
/// OUT_OF_RANGE, which no operation here answers: only the transport, to an overlong message.
const OUT_OF_RANGE: &str = "11";
/// A byte of a request is held twice: as it came, and as it is sent to a server.
const REQUEST_WEIGHT: usize = 2;

/// What was granted to a call; among the extensions of its request. Clones are the same grant.
#[derive(Clone, Debug)]
pub(super) struct CallLimits {
    /// When it has to be over, if its client said so.
    deadline: Option<Instant>,
    is_write: bool,
    /// Its place among the calls under way, until the last clone is dropped.
    call: Arc<Call>,
}

impl CallLimits {
    /// Those of a request.
    ///
    /// # Errors
    /// None were made, since it did not come through [`CallPolicy`].
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<CallLimits, Status> {
        let granted = request.extensions().get().cloned();
        granted.ok_or_else(|| Status::internal("the call was made without the gateway's limits"))
    }

    /// How much work the call's connection has made.
    pub(super) fn usage(&self) -> &Usage {
        self.call.usage()
    }

    /// Where the call comes from, as quotas count it.
    pub(super) fn origin(&self) -> IpAddr {
        self.call.origin()
    }

    /// Waits for a part of the call's work, until its deadline.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match self.deadline {
            None => work.await,
            Some(deadline) => timeout_at(deadline, work).await.map_err(|_| self.late())?,
        }
    }

    /// When the call has to be over, if its client said so.
    pub(super) fn deadline(&self) -> Option<std::time::Instant> {
        self.deadline.map(Instant::into_std)
    }

    /// What the call is told whose request to the group has failed. Requests end at the call's
    /// deadline, too, and then it is that what the call has missed.
    pub(super) fn failed(&self, error: &ClientError) -> Status {
        self.late_by_now().unwrap_or_else(|| status(error))
    }

    /// What the call is told if its deadline has passed.
    pub(super) fn late_by_now(&self) -> Option<Status> {
        self.deadline.filter(|deadline| *deadline <= Instant::now()).map(|_| self.late())
    }

    /// What the call is told that is not over by its deadline.
    fn late(&self) -> Status {
        Status::deadline_exceeded(match self.is_write {
            false => "the call's deadline has passed",
            true => "the call's deadline has passed; the write may still take effect",
        })
    }

    /// Counts the bytes of what a server has answered until the call's own answer has taken their
    /// place; `false` when they are too many and have to be dropped.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.call.hold(bytes)
    }

    /// Whether what a server has answered may be kept, for a client to ask where it comes in: many
    /// answers may come before the first is dealt with. `hold` counts its bytes. Of a call that is
    /// over nothing is kept.
    pub(super) fn room(
        &self,
        hold: impl Fn(&Call, usize) -> bool + Send + Sync + 'static,
    ) -> impl Fn(usize) -> bool + Send + Sync + 'static {
        let call = Arc::downgrade(&self.call);
        move |bytes| call.upgrade().is_some_and(|call| hold(&call, bytes))
    }

    /// As [`CallLimits::room`], for a call that holds all that it reads until it has read the
    /// last of it.
    pub(super) fn room_for_all(&self) -> impl Fn(usize) -> bool + Send + Sync + 'static {
        let read = AtomicUsize::new(0);
        self.room(move |call, bytes| {
            call.hold(read.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes))
        })
    }

    /// Counts bytes that the call makes the gateway hold until it ends.
    ///
    /// # Errors
    /// They are too many: it may be tried again.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Status> {
        match self.call.charge(bytes) {
            true => Ok(()),
            false => Err(no_room(false)),
        }
    }

    /// As [`CallLimits::charge`], for text that is made of what the call has answered.
    ///
    /// # Errors
    /// They are too many: of a write, that only its answer is lost.
    pub(super) fn charge_text(&self, bytes: usize) -> Result<(), Status> {
        match self.call.charge(bytes) {
            true => Ok(()),
            false => Err(no_room(self.is_write)),
        }
    }

    /// Such text has been sent, or dropped.
    pub(super) fn release_text(&self, bytes: usize) {
        self.call.release(bytes);
        self.call.turn(Turn::Client);
    }

    /// What was charged for is gone before the call is.
    pub(super) fn release(&self, bytes: usize) {
        self.call.release(bytes);
    }

    /// Counts what a call whose answer is a stream holds of it at once, as far as that is more than
    /// it has held so far.
    ///
    /// # Errors
    /// They are too many: of a read, that it may be tried again; of a write that is `done`, that
    /// only its answer is lost.
    pub(super) fn hold_page(&self, bytes: usize, done: bool) -> Result<(), Status> {
        match self.call.hold_page(bytes) {
            true => Ok(()),
            false => Err(no_room(self.is_write && done)),
        }
    }
}

/// What a call is told whose request does not come.
pub(super) fn too_slow() -> Status {
    let seconds = GATEWAY_MESSAGE_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!(
        "the request, or the next of a stream, took over {seconds} s"
    ))
}

/// Where a request's body stands between the messages of which it is made: each has five bytes
/// before it, the last four of which say how long it is.
#[derive(Debug, Default)]
struct Framing {
    prefix: Vec<u8>,
    /// Bytes of the present message that are still to come.
    left: usize,
}

impl Framing {
    /// How many bytes the messages have that begin in these bytes. Room for a message is made when
    /// it begins, so that is when it has to be charged for. An overlong one is refused as soon as
    /// that.
    fn announced(&mut self, mut bytes: &[u8]) -> usize {
        let mut announced = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let (_, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= bytes.len() - rest.len();
                bytes = rest;
                continue;
            }
            let (prefix, rest) = bytes.split_at((5 - self.prefix.len()).min(bytes.len()));
            self.prefix.extend(prefix);
            bytes = rest;
            if let [_, a, b, c, d] = self.prefix[..] {
                self.prefix.clear();
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                announced += 5 + self.left.min(limits::GATEWAY_MESSAGE_BYTES_MAX);
            }
        }
        announced
    }
}

/// A request's body that has to come in time, and is charged to its call.
struct RequestBody {
    inner: Body,
    call: Arc<Call>,
    /// None of a request that is text, and no sequence of messages.
    framing: Option<Framing>,
    /// Runs since something was waited for.
    timer: Option<Pin<Box<Sleep>>>,
    timing: RequestTiming,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestTiming {
    /// [`GATEWAY_MESSAGE_TIMEOUT`] for all of it.
    Whole,
    /// As long for each frame of it.
    EachFrame,
    /// No time at all: its client may think between two questions.
    Endless,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if this.timing == RequestTiming::EachFrame {
                    this.timer = None;
                }
                // A dialogue's requests are answered and gone one by one.
                if let Some(bytes) = frame.data_ref()
                    && this.timing != RequestTiming::Endless
                {
                    let framing = this.framing.as_mut();
                    let announced = framing.map_or(bytes.len(), |framing| framing.announced(bytes));
                    if !this.call.charge_request(REQUEST_WEIGHT * announced) {
                        return Poll::Ready(Some(Err(no_room(false))));
                    }
                }
                if this.inner.is_end_stream() {
                    this.call.turn(Turn::Gateway);
                }
            }
            Poll::Ready(_) => this.call.turn(Turn::Gateway),
            Poll::Pending if this.timing == RequestTiming::Endless => {}
            Poll::Pending => {
                let start = || Box::pin(sleep(GATEWAY_MESSAGE_TIMEOUT));
                if this.timer.get_or_insert_with(start).as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Err(too_slow())));
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body, charged to its call piece by piece.
struct AnswerBody {
    /// `None` when there is no more of it.
    inner: Option<Body>,
    call: CallLimits,
}

/// A piece of an answer that the transport holds until it is sent.
struct HeldBytes {
    bytes: Bytes,
    call: Arc<Call>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.call.release(self.bytes.len());
        self.call.turn(Turn::Client);
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Pending => {
                self.call.call.turn(Turn::Gateway);
                return Poll::Pending;
            }
            end => return end,
        };
        self.call.call.turn(Turn::Client);
        let frame = match frame.into_data() {
            Ok(bytes) => match self.call.call.charge_answer(bytes.len()) {
                true => {
                    let call = Arc::clone(&self.call.call);
                    Frame::data(Bytes::from_owner(HeldBytes { bytes, call }))
                }
                false => {
                    let status = no_room(self.call.is_write);
                    self.inner = None;
                    let mut trailers = HeaderMap::new();
                    status.add_header(&mut trailers)?;
                    Frame::trailers(trailers)
                }
            },
            Err(other) => other,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// What kind of a call a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    pool: Pool,
    timing: RequestTiming,
    is_write: bool,
    /// It is one of etcd's interface, which has texts of its own.
    is_etcd: bool,
}

/// etcd's services, and which of their operations write.
const ETCD_SERVICES: [(&str, &[&str]); 8] = [
    ("/etcdserverpb.KV", &["Put", "DeleteRange", "Txn", "Compact"]),
    ("/etcdserverpb.Watch", &[]),
    ("/etcdserverpb.Lease", &["LeaseGrant", "LeaseRevoke"]),
    ("/etcdserverpb.Cluster", &[]),
    ("/etcdserverpb.Maintenance", &[]),
    ("/etcdserverpb.Auth", &[]),
    ("/v3lockpb.Lock", &["Lock", "Unlock"]),
    ("/v3electionpb.Election", &["Campaign", "Proclaim", "Resign"]),
];

impl Kind {
    fn of(path: &str) -> Kind {
        let (service, operation) = path.rsplit_once('/').unwrap_or_default();
        if let Some((_, writes)) = ETCD_SERVICES.iter().find(|(name, _)| *name == service) {
            // Clients of etcd keep these open for as long as they run.
            let (pool, timing) = match operation {
                "Watch" | "LeaseKeepAlive" => (Pool::Stream, RequestTiming::Endless),
                _ => (Pool::Store, RequestTiming::Whole),
            };
            let is_write = writes.contains(&operation);
            return Kind { pool, timing, is_write, is_etcd: true };
        }
        let is_reflection = service.starts_with("/grpc.reflection.");
        let is_auxiliary = is_reflection || service == "/grpc.health.v1.Health";
        let timing = match operation {
            // Its client may think between two questions.
            _ if is_reflection => RequestTiming::Endless,
            "GetAll" | "PutAll" | "DelAll" => RequestTiming::EachFrame,
            _ => RequestTiming::Whole,
        };
        Kind {
            pool: if is_auxiliary { Pool::Auxiliary } else { Pool::Store },
            timing,
            is_write: !is_auxiliary && !operation.starts_with("Get"),
            is_etcd: false,
        }
    }
}

/// Puts the call policy around a service.
#[derive(Clone)]
pub(super) struct CallPolicy;

impl<S> Layer<S> for CallPolicy {
    type Service = PolicyService<S>;

    fn layer(&self, inner: S) -> PolicyService<S> {
        PolicyService { inner }
    }
}

/// A service under the call policy.
#[derive(Clone)]
pub(super) struct PolicyService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for PolicyService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Kind { pool, timing, is_write, is_etcd } = Kind::of(request.uri().path());
        let is_text = request.extensions().get::<JsonCall>().is_some();
        // Of a stream of requests, too, the text has to come as a whole.
        let timing = if is_text { RequestTiming::Whole } else { timing };
        let account = request.extensions().get::<Account>();
        let Some(call) = account.and_then(|account| account.begin(pool)) else {
            let busy = match is_etcd {
                true => EtcdError::TooManyRequests.into(),
                false => Status::resource_exhausted(
                    "this gateway, or this connection, has too many calls under way: try again \
                     later",
                ),
            };
            return Box::pin(async move { Ok(busy.into_http()) });
        };
        let deadline =
            time_left(request.headers()).and_then(|left| Instant::now().checked_add(left));
        let call = CallLimits { deadline, is_write, call: Arc::new(call) };
        request.extensions_mut().insert(call.clone());
        let request = request.map(|inner| {
            let call = Arc::clone(&call.call);
            let framing = (!is_text).then(Framing::default);
            Body::new(RequestBody { inner, call, framing, timer: None, timing })
        });
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answering = async { Ok(answering.await) };
            let mut answer = match call.within(answering).await {
                Ok(answer) if is_etcd => answer.map(rename_overlong_of_etcd)?,
                Ok(answer) => answer.map(rename_overlong)?,
                Err(missed) => missed.into_http(),
            };
            // What a stream of requests has brought is kept for as long as its rows are being read.
            if timing == RequestTiming::Whole {
                call.call.release_request();
            }
            call.call.turn(Turn::Client);
            if is_text {
                // Its text is charged to it.
                answer.extensions_mut().insert(call.clone());
            }
            Ok(answer.map(|inner| Body::new(AnswerBody { inner: Some(inner), call })))
        })
    }
}

fn rename_overlong(mut answer: Response<Body>) -> Response<Body> {
    if let Some(status) = answer.headers_mut().get_mut(GRPC_STATUS)
        && status.as_bytes() == OUT_OF_RANGE.as_bytes()
    {
        *status = i32::from(tonic::Code::InvalidArgument).into();
    }
    answer
}

fn rename_overlong_of_etcd(answer: Response<Body>) -> Response<Body> {
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() == tonic::Code::OutOfRange => overlong(status).into_http(),
        _ => answer,
    }
}

/// How long the client waits, if it said so in a form that the protocol knows: up to eight digits
/// and a unit.
fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    // Eight digits of hours fit.
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::accounting::tests::AMPLE;
    use super::super::accounting::{AccountLimits, Accounts};
    use super::super::interface::PREVIOUS_UNREAD;
    use super::*;

    /// The next piece of an answer.
    trait NextFrame {
        async fn frame(self) -> Result<Frame<Bytes>, Status>;
    }

    impl NextFrame for Body {
        async fn frame(mut self) -> Result<Frame<Bytes>, Status> {
            let next = |cx: &mut Context<'_>| http_body::Body::poll_frame(Pin::new(&mut self), cx);
            std::future::poll_fn(next).await.expect("there is a piece")
        }
    }

    /// A body of one piece, and no status after it.
    fn one_piece(bytes: Bytes) -> Body {
        struct OnePiece(Option<Bytes>);

        impl http_body::Body for OnePiece {
            type Data = Bytes;
            type Error = Status;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }

        Body::new(OnePiece(Some(bytes)))
    }

    fn left(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, text.parse().unwrap());
        time_left(&headers)
    }

    /// Answers when and as it is told, and shows what it was given.
    struct Inner<F>(F);

    impl<F, A> Service<Request<Body>> for Inner<F>
    where
        F: Fn(Request<Body>) -> A,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        type Response = Response<Body>;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let answer = (self.0)(request);
            Box::pin(async { Ok(answer.await) })
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(work)
    }

    fn account(limits: AccountLimits) -> Account {
        Accounts::new(limits).open([10, 0, 0, 1].into()).unwrap()
    }

    fn request(account: &Account, path: &str, timeout: &str) -> Request<Body> {
        let path = format!("/project.KeyValueStore/{path}");
        let request = Request::builder().uri(path).header(GRPC_TIMEOUT, timeout);
        request.extension(account.clone()).body(Body::empty()).unwrap()
    }

    fn status(answer: &Response<Body>) -> Status {
        Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::ok(""))
    }

    #[test]
    fn a_missed_deadline_is_deadline_exceeded_and_only_a_write_may_take_effect() {
        let account = account(AMPLE);
        for (path, is_write) in [("Get", false), ("GetAll", false), ("Put", true), ("Del", true)] {
            let mut service = CallPolicy.layer(Inner(|_| std::future::pending::<Response<Body>>()));
            let missed =
                block_on(async { service.call(request(&account, path, "1m")).await }).unwrap();
            let missed = status(&missed);
            assert_eq!(missed.code(), tonic::Code::DeadlineExceeded);
            assert_eq!(missed.message().contains("write"), is_write, "{missed}");
        }
    }

    #[test]
    fn a_call_keeps_its_place_until_its_answer_is_gone() {
        let account = account(AccountLimits { store_calls_max: 0, ..AMPLE });
        let mut service = CallPolicy
            .layer(Inner(|_| std::future::ready(Response::new(one_piece(Bytes::from("answer"))))));
        let mut call = || block_on(service.call(request(&account, "Get", "60S"))).unwrap();
        let first = call();
        assert_eq!(status(&first).code(), tonic::Code::Ok);
        assert_eq!(status(&call()).code(), tonic::Code::ResourceExhausted);
        // The transport holds what its client has no window for.
        let piece = block_on(first.into_body().frame()).unwrap();
        assert_eq!(status(&call()).code(), tonic::Code::ResourceExhausted);
        drop(piece);
        assert_eq!(status(&call()).code(), tonic::Code::Ok);
    }

    #[test]
    fn an_answer_too_many_is_refused_but_never_looks_like_a_write_undone() {
        let account = account(AccountLimits { bytes_max: 2_000, own_bytes: 10, ..AMPLE });
        let answer = || std::future::ready(Response::new(one_piece(vec![0; 900].into())));
        let mut service = CallPolicy.layer(Inner(|_| answer()));
        let mut frame = |path: &str| {
            let answer = block_on(service.call(request(&account, path, "60S"))).unwrap();
            block_on(answer.into_body().frame()).unwrap()
        };
        let unread = frame("Get");
        assert!(unread.is_data());
        for (path, code) in [("Get", tonic::Code::ResourceExhausted), ("Put", tonic::Code::Unknown)]
        {
            let trailers = frame(path).into_trailers().unwrap();
            let status = Status::from_header_map(&trailers).unwrap();
            assert_eq!(status.code(), code, "{status}");
            let is_done = status.metadata().contains_key(PREVIOUS_UNREAD);
            assert_eq!(is_done, path == "Put", "{status}");
        }
        drop(unread);
        assert!(frame("Put").is_data());
    }

    #[test]
    fn what_servers_answered_is_charged_until_the_client_has_room_for_its_answer() {
        let account = account(AccountLimits { bytes_max: 2_000, own_bytes: 10, ..AMPLE });
        let held = |request: Request<Body>| {
            let call = request.extensions().get::<CallLimits>().unwrap().clone();
            std::future::ready(match call.hold(900) {
                true => Response::new(one_piece(vec![0; 900].into())),
                false => no_room(false).into_http(),
            })
        };
        let mut service = CallPolicy.layer(Inner(held));
        let mut get = || block_on(service.call(request(&account, "Get", "60S"))).unwrap();
        // Nobody has asked for its bytes: HTTP/2 does not while its client has no window.
        let unread = get();
        assert_eq!(status(&unread).code(), tonic::Code::Ok);
        assert_eq!(status(&get()).code(), tonic::Code::ResourceExhausted);
        let piece = block_on(unread.into_body().frame()).unwrap();
        assert!(piece.is_data(), "it is charged once");
        drop(piece);
        assert_eq!(status(&get()).code(), tonic::Code::Ok);
    }

    #[test]
    fn the_other_services_have_places_of_their_own_and_streams_are_known() {
        let account = account(AccountLimits { store_calls_max: 0, ..AMPLE });
        let open = ["/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/Info"];
        let open = open.map(|path| account.begin(Kind::of(path).pool).unwrap());
        assert!(account.begin(Kind::of("/project.KeyValueStore/Get").pool).is_some());
        drop(open);
        // Etcd's clients keep these open, and make other calls beside them.
        for path in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"] {
            let Kind { pool, timing, is_etcd, .. } = Kind::of(path);
            assert_eq!((pool, timing, is_etcd), (Pool::Stream, RequestTiming::Endless, true));
        }
        // Whatever streams requests in the interface has a time for each.
        let interface = include_str!("../../proto/project.proto");
        let rpcs = interface.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        let mut streams = 0;
        for rpc in rpcs {
            let (name, rest) = rpc.split_once('(').unwrap();
            let kind = Kind::of(&format!("/project.KeyValueStore/{}", name.trim()));
            let is_stream = kind.timing == RequestTiming::EachFrame;
            assert_eq!(is_stream, rest.trim().starts_with("stream "), "{rpc}");
            assert_eq!(kind.is_write, !name.starts_with("Get"), "{rpc}");
            streams += usize::from(is_stream);
        }
        assert_eq!(streams, 3);
    }

    #[test]
    fn etcds_services_are_known_with_what_they_write_and_which_streams_stay_open() {
        let files = [
            include_str!("../../proto/etcd/rpc.proto"),
            include_str!("../../proto/etcd/lock.proto"),
            include_str!("../../proto/etcd/election.proto"),
        ];
        let (mut services, mut writes, mut open) = (0, 0, Vec::new());
        for file in files {
            let (mut package, mut service) = ("", "");
            for line in file.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("package ") {
                    package = name.trim_end_matches(';');
                } else if let Some(name) = line.strip_prefix("service ") {
                    service = name.trim_end_matches(" {");
                    services += 1;
                } else if let Some(rpc) = line.strip_prefix("rpc ") {
                    let (name, rest) = rpc.split_once('(').unwrap();
                    let kind = Kind::of(&format!("/{package}.{service}/{name}"));
                    assert!(kind.is_etcd, "{rpc}");
                    writes += usize::from(kind.is_write);
                    let is_open = kind.timing == RequestTiming::Endless;
                    assert_eq!(is_open, rest.starts_with("stream "), "{rpc}");
                    open.extend(is_open.then_some(name));
                }
            }
        }
        assert_eq!(services, ETCD_SERVICES.len());
        let listed = ETCD_SERVICES.iter().map(|(_, writes)| writes.len());
        assert_eq!(writes, listed.sum::<usize>(), "each that is listed is there");
        assert_eq!(open, ["Watch", "LeaseKeepAlive"]);
    }

    #[test]
    fn etcd_is_told_in_its_own_words_what_the_gateway_refuses() {
        let account = account(AccountLimits { store_calls_max: 0, ..AMPLE });
        let etcd = || {
            let request = Request::builder().uri("/etcdserverpb.KV/Range");
            request.extension(account.clone()).body(Body::empty()).unwrap()
        };
        let told = |status: fn() -> Status| {
            let answer = move |_: Request<Body>| std::future::ready(status().into_http::<Body>());
            block_on(CallPolicy.layer(Inner(answer)).call(etcd())).unwrap()
        };
        let long = self::status(&told(|| Status::out_of_range("too long")));
        assert_eq!(long.code(), tonic::Code::InvalidArgument);
        assert_eq!(long.message(), "etcdserver: request is too large");
        let compacted = self::status(&told(|| EtcdError::Compacted.into()));
        assert_eq!(compacted.code(), tonic::Code::OutOfRange);
        let _only_place = account.begin(Pool::Store).unwrap();
        let busy = self::status(&told(|| Status::ok("")));
        assert_eq!(busy.message(), "etcdserver: too many requests");
    }

    #[test]
    fn an_overlong_message_is_an_invalid_argument() {
        let mut service = CallPolicy
            .layer(Inner(|_| std::future::ready(Status::out_of_range("too long").into_http())));
        let answer = block_on(service.call(request(&account(AMPLE), "Put", "60S"))).unwrap();
        assert_eq!(status(&answer).code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_message_is_charged_for_when_it_begins_however_its_bytes_come() {
        let message = |length: u32, bytes: &[u8]| [&[0][..], &length.to_be_bytes(), bytes].concat();
        let bytes = [message(3, b"abc"), message(0, b""), message(300, &[7; 300])].concat();
        for piece in [1, 2, 5, 7, bytes.len()] {
            let mut framing = Framing::default();
            let announced: usize = bytes.chunks(piece).map(|part| framing.announced(part)).sum();
            assert_eq!(announced, bytes.len(), "in pieces of {piece}");
        }
        let mut framing = Framing::default();
        assert_eq!(framing.announced(&message(1000, b"a")), 1005);
        assert_eq!(framing.announced(&[7; 999]), 0);
        let most = 5 + limits::GATEWAY_MESSAGE_BYTES_MAX;
        assert_eq!(framing.announced(&message(u32::MAX, b"a")), most);
    }

    #[test]
    fn a_deadline_is_up_to_eight_digits_and_a_unit() {
        assert_eq!(left("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(left("2M"), Some(Duration::from_secs(120)));
        assert_eq!(left("3S"), Some(Duration::from_secs(3)));
        assert_eq!(left("00000004m"), Some(Duration::from_millis(4)));
        assert_eq!(left("5u"), Some(Duration::from_micros(5)));
        assert_eq!(left("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(left("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1SS"] {
            assert_eq!(left(wrong), None, "{wrong}");
        }
        assert_eq!(time_left(&HeaderMap::new()), None);
    }
}
