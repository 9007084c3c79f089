//! What holds for every call, whichever operation it is: its deadline, how many there may be, and how long a
//! request may take to arrive.
//!
//! Places are shared. Every connection has one of its own; of the others it gets one more as long as it has fewer
//! than are left, so that nobody ever has them all. The health service has its own, so that a load balancer hears
//! the truth of a gateway that is full.
//!
//! The transport knows deadlines too, but reports a missed one as CANCELLED, ends nobody's stream at
//! it, and calls an overlong message OUT_OF_RANGE. Clients of other gRPC servers expect what is done
//! here: DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::incoming::Peer;
use crate::limits;

/// The header by which a client says how long it waits.
const GRPC_TIMEOUT: &str = "grpc-timeout";
const GRPC_STATUS: &str = "grpc-status";
/// OUT_OF_RANGE, which no operation here answers: only the transport, to an overlong message.
const OUT_OF_RANGE: &str = "11";

/// What was granted to a call; among the extensions of its request. Clones are the same grant.
#[derive(Clone, Debug)]
pub(super) struct CallLimits {
    /// When it has to be over, if its client said so.
    deadline: Option<Instant>,
    /// Its place among the calls under way, until the last clone is dropped.
    _place: Arc<Place>,
}

impl CallLimits {
    /// Those of a request. None were made when it did not come through [`CallPolicy`].
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Option<CallLimits> {
        request.extensions().get().cloned()
    }

    /// Waits for a part of the call's work, until its deadline.
    pub(super) async fn within<T>(
        call: Option<&CallLimits>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match call.and_then(|call| call.deadline) {
            None => work.await,
            Some(deadline) => timeout_at(deadline, work).await.map_err(|_| missed())?,
        }
    }
}

/// What a call is told that is not over by its deadline.
fn missed() -> Status {
    Status::deadline_exceeded("the call's deadline has passed; a write may still take effect")
}

/// What a call is told whose request does not come.
pub(super) fn too_slow() -> Status {
    let seconds = limits::GATEWAY_MESSAGE_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!(
        "the request, or the next of a stream, took over {seconds} s"
    ))
}

/// The places that calls share, beside the one that each connection has.
#[derive(Debug)]
struct Places {
    max: usize,
    taken: Mutex<usize>,
}

/// One place, given back when it is dropped.
struct Place {
    peer: Option<Peer>,
    shared: Option<Arc<Places>>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Places {
    fn new(max: usize) -> Arc<Places> {
        Arc::new(Places { max, taken: Mutex::new(0) })
    }

    fn taken(&self) -> MutexGuard<'_, usize> {
        // A number is always whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a call that came over `peer`'s connection.
    fn take(self: &Arc<Places>, peer: Option<Peer>) -> Option<Place> {
        let others = peer.as_ref().map(Peer::call_begins);
        let mut place = Place { peer, shared: None };
        if others == Some(0) {
            return Some(place);
        }
        let mut taken = self.taken();
        // Whoever comes over no connection that is known has no others.
        if others.unwrap_or_default() >= self.max - *taken {
            return None;
        }
        *taken += 1;
        place.shared = Some(Arc::clone(self));
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            peer.call_ends();
        }
        if let Some(shared) = &self.shared {
            *shared.taken() -= 1;
        }
    }
}

/// A request's body that has to come in time.
struct TimelyBody {
    inner: Body,
    /// Runs since something was waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// The time is for each frame, and not for all of it.
    is_stream: bool,
}

impl http_body::Body for TimelyBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(_))) if self.is_stream => self.timer = None,
            Poll::Ready(_) => {}
            Poll::Pending => {
                let start = || Box::pin(sleep(limits::GATEWAY_MESSAGE_TIMEOUT));
                if self.timer.get_or_insert_with(start).as_mut().poll(cx).is_ready() {
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

/// What kind of a call a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A call of one request, which has to be whole in time.
    Single,
    /// A stream of requests, each of which has its time.
    Streaming,
    /// A dialogue: its client may think.
    Dialogue,
    /// The health service's, of one request.
    Health,
}

impl Kind {
    fn of(path: &str) -> Kind {
        match path.rsplit_once('/') {
            Some(("/project.KeyValueStore", "GetAll" | "PutAll" | "DelAll")) => Kind::Streaming,
            Some(("/grpc.health.v1.Health", _)) => Kind::Health,
            Some((service, _)) if service.starts_with("/grpc.reflection.") => Kind::Dialogue,
            _ => Kind::Single,
        }
    }
}

/// Puts the call policy around a service.
#[derive(Clone)]
pub(super) struct CallPolicy {
    calls: Arc<Places>,
    health: Arc<Places>,
}

impl CallPolicy {
    /// With room for so many calls at once, and for so many of the health service.
    pub(super) fn new(calls_max: usize, health_max: usize) -> CallPolicy {
        CallPolicy { calls: Places::new(calls_max), health: Places::new(health_max) }
    }
}

impl<S> Layer<S> for CallPolicy {
    type Service = PolicyService<S>;

    fn layer(&self, inner: S) -> PolicyService<S> {
        PolicyService { inner, policy: self.clone() }
    }
}

/// A service under the call policy.
#[derive(Clone)]
pub(super) struct PolicyService<S> {
    inner: S,
    policy: CallPolicy,
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
        let kind = Kind::of(request.uri().path());
        let places = match kind {
            Kind::Health => &self.policy.health,
            Kind::Single | Kind::Streaming | Kind::Dialogue => &self.policy.calls,
        };
        let Some(place) = places.take(request.extensions().get::<Peer>().cloned()) else {
            let busy = Status::resource_exhausted(
                "this gateway, or this connection, has too many calls under way: try again later",
            );
            return Box::pin(async move { Ok(busy.into_http()) });
        };
        let deadline =
            time_left(request.headers()).and_then(|left| Instant::now().checked_add(left));
        let call = CallLimits { deadline, _place: Arc::new(place) };
        request.extensions_mut().insert(call.clone());
        let request = match kind {
            Kind::Dialogue => request,
            Kind::Single | Kind::Health => request.map(|body| timely(body, false)),
            Kind::Streaming => request.map(|body| timely(body, true)),
        };
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answering = async { Ok(answering.await) };
            match CallLimits::within(Some(&call), answering).await {
                Ok(answer) => answer.map(rename_overlong),
                Err(missed) => Ok(missed.into_http()),
            }
        })
    }
}

fn timely(body: Body, is_stream: bool) -> Body {
    Body::new(TimelyBody { inner: body, timer: None, is_stream })
}

fn rename_overlong(mut answer: Response<Body>) -> Response<Body> {
    if let Some(status) = answer.headers_mut().get_mut(GRPC_STATUS)
        && status.as_bytes() == OUT_OF_RANGE.as_bytes()
    {
        *status = i32::from(tonic::Code::ResourceExhausted).into();
    }
    answer
}

/// How long the client waits, if it said so in a form that the protocol knows: up to eight digits and
/// a unit.
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
    use super::*;

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

    fn request(timeout: &str) -> Request<Body> {
        Request::builder().header(GRPC_TIMEOUT, timeout).body(Body::empty()).unwrap()
    }

    fn code(answer: &Response<Body>) -> tonic::Code {
        Status::from_header_map(answer.headers()).map_or(tonic::Code::Ok, |status| status.code())
    }

    #[test]
    fn a_missed_deadline_is_deadline_exceeded() {
        let mut service =
            CallPolicy::new(1, 1).layer(Inner(|_| std::future::pending::<Response<Body>>()));
        let answer = block_on(async { service.call(request("1m")).await }).unwrap();
        assert_eq!(code(&answer), tonic::Code::DeadlineExceeded);
    }

    #[test]
    fn one_call_too_many_is_refused_and_a_stream_keeps_its_place() {
        let mut service = CallPolicy::new(1, 1).layer(Inner(|request: Request<Body>| {
            let call = request.extensions().get::<CallLimits>().cloned();
            let mut answer = Response::new(Body::empty());
            answer.extensions_mut().insert(call);
            std::future::ready(answer)
        }));
        let mut call = || block_on(service.call(request("60S"))).unwrap();
        let first = call();
        assert_eq!(code(&first), tonic::Code::Ok);
        assert_eq!(code(&call()), tonic::Code::ResourceExhausted);
        drop(first);
        assert_eq!(code(&call()), tonic::Code::Ok);
    }

    #[test]
    fn the_health_service_has_places_of_its_own_and_streams_are_known() {
        let mut service = CallPolicy::new(0, 1)
            .layer(Inner(|_| std::future::ready(Response::new(Body::empty()))));
        let mut call = |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            code(&block_on(service.call(request)).unwrap())
        };
        assert_eq!(call("/project.KeyValueStore/Get"), tonic::Code::ResourceExhausted);
        assert_eq!(call("/grpc.health.v1.Health/Check"), tonic::Code::Ok);
        // Whatever streams requests in the interface has a time for each.
        let interface = include_str!("../../proto/project.proto");
        let rpcs = interface.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        let mut streams = 0;
        for rpc in rpcs {
            let (name, rest) = rpc.split_once('(').unwrap();
            let kind = Kind::of(&format!("/project.KeyValueStore/{}", name.trim()));
            assert_eq!(kind == Kind::Streaming, rest.trim().starts_with("stream "), "{rpc}");
            streams += usize::from(kind == Kind::Streaming);
        }
        assert_eq!(streams, 3);
    }

    #[test]
    fn an_overlong_message_is_resource_exhausted() {
        let mut service = CallPolicy::new(1, 1)
            .layer(Inner(|_| std::future::ready(Status::out_of_range("too long").into_http())));
        let answer = block_on(service.call(request("60S"))).unwrap();
        assert_eq!(code(&answer), tonic::Code::ResourceExhausted);
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
