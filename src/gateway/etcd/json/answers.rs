//! Makes JSON of what gRPC answers, and answers the questions that are none of gRPC's.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use prost_reflect::MessageDescriptor;
use serde_json::json;
use tonic::body::Body;
use tonic::codegen::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use tonic::codegen::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::methods::{JsonMethod, JsonMethods};
use super::transcode::JsonAnswer;
use super::{JsonCall, transcode};
use crate::gateway::accounting::Account;
use crate::gateway::etcd::ETCD_VERSION;
use crate::gateway::policy::CallLimits;

/// The key that is read to tell whether the group answers; etcd's own clients ask for it, too.
const HEALTH_QUESTION: &str = r#"{"key":"aGVhbHRo"}"#;
const HEALTH_QUESTION_PATH: &str = "/v3/kv/range";

/// Puts what turns answers into JSON, for those who have asked in it, around everything.
#[derive(Clone)]
pub(in crate::gateway) struct JsonAnswers(Arc<JsonMethods>);

impl JsonAnswers {
    /// Those of requests for these methods.
    pub fn new(methods: JsonMethods) -> JsonAnswers {
        JsonAnswers(Arc::new(methods))
    }
}

impl<S> Layer<S> for JsonAnswers {
    type Service = JsonAnswersService<S>;

    fn layer(&self, inner: S) -> JsonAnswersService<S> {
        JsonAnswersService { inner, methods: Arc::clone(&self.0) }
    }
}

/// Everything below, for callers of both kinds.
#[derive(Clone)]
pub(in crate::gateway) struct JsonAnswersService<S> {
    inner: S,
    methods: Arc<JsonMethods>,
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for JsonAnswersService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            return Box::pin(self.inner.call(request));
        }
        match request.uri().path() {
            "/version" => at_once(&request, only_read(&request, StatusCode::OK, version())),
            "/health" => self.health(request),
            path => match self.methods.find(path).cloned() {
                Some(method) if request.method() == Method::POST => {
                    let answering = self.inner.call(as_grpc(request, &method));
                    Box::pin(async move { Ok(in_json(answering.await?, &method).await) })
                }
                Some(_) => at_once(&request, not_allowed("POST")),
                None => at_once(&request, text(StatusCode::NOT_FOUND, "Not Found\n")),
            },
        }
    }
}

impl<S> JsonAnswersService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    /// Whether the group answers a read that is confirmed. Who may not read has an answer, too.
    fn health(&mut self, request: Request<Body>) -> Answering<S::Error> {
        let Some(method) = self.methods.find(HEALTH_QUESTION_PATH).cloned() else {
            return at_once(&request, text(StatusCode::NOT_FOUND, "Not Found\n"));
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return at_once(&request, not_allowed("GET"));
        }
        let question = request.map(|_| Body::new(Full::from(HEALTH_QUESTION)));
        let answering = self.inner.call(as_grpc(question, &method));
        Box::pin(async move {
            Ok(match whole(answering.await?).await {
                Err(status) if status.code() != Code::PermissionDenied => object(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &json!({"health": "false", "reason": status.message()}),
                ),
                Ok(_) | Err(_) => object(StatusCode::OK, &json!({"health": "true", "reason": ""})),
            })
        })
    }
}

/// The request as the services below know it: of gRPC, but for its text.
fn as_grpc(mut request: Request<Body>, method: &JsonMethod) -> Request<Body> {
    *request.uri_mut() = Uri::from(method.grpc_path.clone());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    request.extensions_mut().insert(JsonCall { method: method.descriptor.clone() });
    request
}

/// The answer of gRPC to a method's call, in JSON.
async fn in_json(answer: Response<Body>, method: &JsonMethod) -> Response<Body> {
    let output = method.descriptor.output();
    if method.descriptor.is_server_streaming() {
        if let Some(status) = Status::from_header_map(answer.headers()).filter(is_failure) {
            return failure(&status);
        }
        return match answer.extensions().get::<CallLimits>().cloned() {
            Some(call) => stream(answer.into_body(), output, call),
            None => failure(&Status::internal("the answer came without its call's limits")),
        };
    }
    let call = answer.extensions().get::<CallLimits>().cloned();
    let told = match (whole(answer).await, call) {
        (Ok((message, held)), Some(call)) => text_of(&output, message, held, call).await,
        (Ok(_), None) => Err(Status::internal("the answer came without its call's limits")),
        (Err(status), _) => Err(status),
    };
    match told {
        Ok(told) => kind(StatusCode::OK, JSON, Body::new(Full::new(Bytes::from_owner(told)))),
        Err(status) => failure(&status),
    }
}

/// An answer's text. The pieces that it came in are held until it is made, and others go on
/// meanwhile.
async fn text_of(
    output: &MessageDescriptor,
    message: Bytes,
    held: Vec<Bytes>,
    call: CallLimits,
) -> Result<JsonText, Status> {
    let mut text = JsonText::new(call);
    let mut answer = JsonAnswer::begin(output, message, &mut text.json)?;
    while !answer.go_on(&mut text.json)? {
        text.charge()?;
        tokio::task::yield_now().await;
    }
    text.charge()?;
    drop(held);
    Ok(text)
}

fn is_failure(status: &Status) -> bool {
    status.code() != Code::Ok
}

/// The one message of an answer, with the pieces that it came in.
async fn whole(answer: Response<Body>) -> Result<(Bytes, Vec<Bytes>), Status> {
    if let Some(status) = Status::from_header_map(answer.headers()).filter(is_failure) {
        return Err(status);
    }
    let mut body = answer.into_body();
    let (mut received, mut held) = (BytesMut::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(bytes) => {
                received.extend_from_slice(&bytes);
                held.push(bytes);
            }
            Err(other) => {
                let trailers = other.trailers_ref();
                let status = trailers.and_then(Status::from_header_map);
                if let Some(status) = status.filter(is_failure) {
                    return Err(status);
                }
            }
        }
    }
    let message = transcode::take_message(&mut received)?;
    Ok((message.ok_or_else(|| Status::internal("an answer has no message"))?, held))
}

/// Text that an answer is made, charged to its call as long as its client does not take it: it may
/// be several times as long as the answer was.
struct JsonText {
    json: Vec<u8>,
    charged: usize,
    call: CallLimits,
}

impl JsonText {
    fn new(call: CallLimits) -> JsonText {
        JsonText { json: Vec::new(), charged: 0, call }
    }

    /// Charges what was added.
    fn charge(&mut self) -> Result<(), Status> {
        self.call.charge_text(self.json.len() - self.charged)?;
        self.charged = self.json.len();
        Ok(())
    }
}

impl AsRef<[u8]> for JsonText {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

impl Drop for JsonText {
    fn drop(&mut self) {
        self.call.release_text(self.charged);
    }
}

/// A stream of messages as lines of JSON.
struct JsonLines {
    /// `None` when there is no more of it.
    inner: Option<Body>,
    output: MessageDescriptor,
    call: CallLimits,
    received: BytesMut,
    /// The pieces of which a part has been received and not told.
    held: Vec<Bytes>,
    lines: VecDeque<Bytes>,
}

fn stream(inner: Body, output: MessageDescriptor, call: CallLimits) -> Response<Body> {
    let lines = JsonLines {
        inner: Some(inner),
        output,
        call,
        received: BytesMut::new(),
        held: Vec::new(),
        lines: VecDeque::new(),
    };
    kind(StatusCode::OK, JSON, Body::new(lines))
}

impl JsonLines {
    /// Makes lines of the messages that have come.
    fn received(&mut self, bytes: Bytes) -> Result<(), Status> {
        self.received.extend_from_slice(&bytes);
        self.held.push(bytes);
        while let Some(message) = transcode::take_message(&mut self.received)? {
            let mut text = JsonText::new(self.call.clone());
            text.json.extend_from_slice(br#"{"result":"#);
            let mut answer = JsonAnswer::begin(&self.output, message, &mut text.json)?;
            while !answer.go_on(&mut text.json)? {}
            text.json.extend_from_slice(b"}\n");
            text.charge()?;
            self.lines.push_back(Bytes::from_owner(text));
        }
        // The last piece may have the beginning of the next message.
        let kept = usize::from(!self.received.is_empty());
        if kept == 0 || !self.lines.is_empty() {
            self.held.drain(..self.held.len() - kept);
        }
        Ok(())
    }

    fn fail(&mut self, status: &Status) {
        self.inner = None;
        let error = json!({"error": {
            "grpc_code": i32::from(status.code()),
            "http_code": http_status(status.code()).as_u16(),
            "message": status.message(),
            "http_status": http_status(status.code()).canonical_reason().unwrap_or_default(),
        }});
        self.lines.push_back(format!("{error}\n").into());
    }
}

impl http_body::Body for JsonLines {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(line))));
            }
            let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
            let told = match ready!(Pin::new(inner).poll_frame(cx)) {
                None => {
                    self.inner = None;
                    Ok(())
                }
                Some(Err(status)) => Err(status),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.received(bytes),
                    Err(other) => {
                        let trailers = other.trailers_ref();
                        let status = trailers.and_then(Status::from_header_map);
                        status.filter(is_failure).map_or(Ok(()), Err)
                    }
                },
            };
            if let Err(status) = told {
                self.fail(&status);
            }
        }
    }
}

const JSON: &str = "application/json";

fn kind(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn object(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    kind(status, JSON, Body::new(Full::from(value.to_string())))
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    kind(status, "text/plain; charset=utf-8", Body::new(Full::from(text)))
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// An answer to those who only read.
fn only_read(
    request: &Request<Body>,
    status: StatusCode,
    value: serde_json::Value,
) -> Response<Body> {
    match *request.method() {
        Method::GET | Method::HEAD => object(status, &value),
        _ => not_allowed("GET"),
    }
}

fn version() -> serde_json::Value {
    let (series, _) = ETCD_VERSION.rsplit_once('.').unwrap_or((ETCD_VERSION, ""));
    json!({"etcdserver": ETCD_VERSION, "etcdcluster": format!("{series}.0")})
}

/// A call's error, as etcd's gateway tells it.
fn failure(status: &Status) -> Response<Body> {
    let message = status.message();
    let code = i32::from(status.code());
    let told = json!({"error": message, "code": code, "message": message});
    object(http_status(status.code()), &told)
}

/// The HTTP status that etcd's gateway gives to a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An answer to a request that is no call.
fn at_once<E: Send + 'static>(request: &Request<Body>, answer: Response<Body>) -> Answering<E> {
    if let Some(account) = request.extensions().get::<Account>() {
        account.asked();
    }
    Box::pin(async move { Ok(answer) })
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use prost::Message;

    use super::*;
    use crate::gateway::accounting::tests::AMPLE;
    use crate::gateway::accounting::{AccountLimits, Accounts};
    use crate::gateway::interface::etcd::etcdserverpb::RangeResponse;
    use crate::gateway::interface::etcd::mvccpb::KeyValue;
    use crate::gateway::policy::CallPolicy;

    /// Answers every call of gRPC with a range of so many small rows.
    #[derive(Clone)]
    struct Rows(usize);

    impl Service<Request<Body>> for Rows {
        type Response = Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let row = KeyValue { key: "k".into(), create_revision: 1 << 50, ..Default::default() };
            let message = RangeResponse { kvs: vec![row; self.0], ..Default::default() };
            let message = message.encode_to_vec();
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(message.len() as u32);
            framed.put_slice(&message);
            std::future::ready(Ok(Response::new(Body::new(Full::new(framed.freeze())))))
        }
    }

    /// What is told of so many rows to who asks on a connection.
    fn asked(account: &Account, rows: usize, method: Method, path: &str) -> Response<Body> {
        let methods = JsonMethods::new().unwrap();
        let mut service = JsonAnswers::new(methods).layer(CallPolicy.layer(Rows(rows)));
        let request = Request::builder().method(method).uri(path).extension(account.clone());
        let request = request.body(Body::empty()).unwrap();
        block_on(service.call(request)).unwrap()
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(work)
    }

    #[test]
    fn the_text_of_an_answer_is_charged_until_it_is_taken() {
        let accounts = Accounts::new(AccountLimits { bytes_max: 200_000, own_bytes: 0, ..AMPLE });
        let account = accounts.open([10, 0, 0, 1].into()).unwrap();
        let ask = |rows| asked(&account, rows, Method::POST, "/v3/kv/range");
        // Some 70 bytes a row, of which protobuf has 14.
        let taken = |answer: Response<Body>| {
            assert_eq!(answer.status(), StatusCode::OK);
            let text = block_on(answer.into_body().collect()).unwrap().to_bytes();
            serde_json::from_slice::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(taken(ask(1_000))["kvs"].as_array().unwrap().len(), 1_000);
        let unread = ask(1_000);
        assert_eq!(ask(1_000).status(), StatusCode::TOO_MANY_REQUESTS, "there is room for one");
        drop(unread);
        taken(ask(1_000));
        assert_eq!(ask(3_000).status(), StatusCode::TOO_MANY_REQUESTS, "it is too long");
    }

    /// Such a connection was cut off 30 s after it had come, in the middle of a request.
    #[test]
    fn who_asks_for_what_is_no_call_has_asked() {
        for (method, path) in [
            (Method::GET, "/version"),
            (Method::POST, "/version"),
            (Method::PUT, "/health"),
            (Method::GET, "/v3/kv/range"),
            (Method::GET, "/nothing"),
        ] {
            let account = Accounts::new(AMPLE).open([10, 0, 0, 1].into()).unwrap();
            assert!(!account.has_called());
            asked(&account, 0, method, path);
            assert!(account.has_called(), "{path}");
        }
    }
}
