//! An etcd as one end of a migration: any of its servers, by its own interface.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::{Change, MigrationError, News, Page, Sink, Source, TELL_INTERVAL, Told};
use crate::gateway::interface::etcd::etcdserverpb::kv_client::KvClient;
use crate::gateway::interface::etcd::etcdserverpb::watch_client::WatchClient;
use crate::gateway::interface::etcd::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse, request_op, watch_request,
};
use crate::gateway::interface::etcd::mvccpb::event::EventType;
use crate::gateway::interface::etcd::mvccpb::{Event, KeyValue};

/// Keys of the first page; the later ones are as long as their bytes allow.
const FIRST_PAGE_KEYS: i64 = 64;
/// Keys of a page.
const PAGE_KEYS_MAX: i64 = 2_000;
/// Bytes that a page is to have, by the length of the keys and values of the one before.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of an answer, past which it is refused: etcd cuts none, and a page may have longer values
/// than the one before. Then fewer keys are asked for.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The whole time of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the next server is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Requests to a watch that the connection has not taken yet: it is asked how far it is once a
/// second, and not again before it has taken that.
const WATCH_REQUESTS_MAX: usize = 2;

/// Where a server of an etcd listens.
#[derive(Clone, Debug)]
pub struct EtcdEndpoint {
    endpoint: Endpoint,
    /// As it was typed.
    name: String,
}

impl FromStr for EtcdEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<EtcdEndpoint, String> {
        const EXAMPLE: &str = "write HOST:PORT, such as 127.0.0.1:2379";
        let name = text.trim().to_owned();
        if name.starts_with("https://") {
            return Err("TLS is not supported: give an address without it, http://HOST:PORT".into());
        }
        let address = name.strip_prefix("http://").unwrap_or(&name);
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.trim_end_matches('/').parse::<u16>().is_ok()
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        match endpoint {
            Ok(endpoint) if has_port => {
                let endpoint = endpoint.connect_timeout(CALL_TIMEOUT).tcp_nodelay(true);
                Ok(EtcdEndpoint { endpoint, name })
            }
            _ => Err(EXAMPLE.to_owned()),
        }
    }
}

pub(super) struct Etcd {
    servers: Vec<(String, Channel)>,
    prefix: Bytes,
    timeout: Duration,
    /// The key after the last that was read.
    next_key: Option<Bytes>,
    page_keys: i64,
    watch: Option<Followed>,
    /// The first revision that was not told yet, once changes are followed.
    next_revision: i64,
    /// What has come and was not told yet, in its order.
    news: std::collections::VecDeque<News>,
}

/// A watch that is open.
struct Followed {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Etcd {
    pub(super) fn new(endpoints: Vec<EtcdEndpoint>, prefix: Bytes, timeout: Duration) -> Etcd {
        let servers = endpoints
            .into_iter()
            .map(|EtcdEndpoint { endpoint, name }| (name, endpoint.connect_lazy()))
            .collect();
        Etcd {
            servers,
            prefix,
            timeout,
            next_key: None,
            page_keys: FIRST_PAGE_KEYS,
            watch: None,
            next_revision: 0,
            news: std::collections::VecDeque::new(),
        }
    }

    /// The keys that are copied, as etcd names a range.
    fn range(&self) -> (Bytes, Bytes) {
        let from = match self.prefix.is_empty() {
            true => Bytes::from_static(&[0]),
            false => self.prefix.clone(),
        };
        (from, range_end(&self.prefix))
    }

    /// Asks one server after the other until one answers or refuses, or the time is over.
    async fn ask<T, F>(&self, ask: impl Fn(Channel) -> F) -> Result<T, MigrationError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let until = Instant::now() + self.timeout;
        for (endpoint, channel) in self.servers.iter().cycle() {
            let answer = timeout(CALL_TIMEOUT, ask(channel.clone())).await;
            let error = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable(format!("no answer for {CALL_TIMEOUT:?}")),
            };
            let (endpoint, reason) = (endpoint.clone(), error.message().to_owned());
            if error.code() == Code::OutOfRange && reason.contains("compacted") {
                return Err(MigrationError::Compacted);
            }
            if !is_away(&error) {
                return Err(MigrationError::Refused { endpoint, reason });
            }
            if until <= Instant::now() {
                let timeout = self.timeout;
                return Err(MigrationError::Unreachable { endpoint, timeout, reason });
            }
            log::info!("etcd at {endpoint} does not answer: {reason}");
            sleep(RETRY_PAUSE).await;
        }
        unreachable!("there is a server, and so there is always one more attempt")
    }

    async fn read(&mut self, at: i64) -> Result<Page, MigrationError> {
        let (first, range_end) = self.range();
        let request = RangeRequest {
            key: self.next_key.clone().unwrap_or(first),
            range_end,
            revision: at,
            limit: self.page_keys,
            ..RangeRequest::default()
        };
        let answer = self
            .ask(|channel| {
                let request = request.clone();
                async move {
                    let client = KvClient::new(channel);
                    let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
                    Ok(client.range(request).await?.into_inner())
                }
            })
            .await;
        let answer = match answer {
            // More than an answer may have: fewer keys are asked for.
            Err(MigrationError::Refused { reason, .. })
                if reason.contains("too large") && self.page_keys > 1 =>
            {
                self.page_keys = (self.page_keys / 4).max(1);
                return Ok(Page::default());
            }
            answer => answer?,
        };
        let mut page = Page { is_last: !answer.more, ..Page::default() };
        if let Some(last) = answer.kvs.last() {
            self.next_key = Some([&last.key[..], &[0]].concat().into());
        }
        let keys = answer.kvs.len().max(1);
        let mut bytes = 0;
        for found in answer.kvs {
            bytes += found.key.len() + found.value.len();
            match value(&found) {
                Some(value) => page.changes.push(Change { key: found.key, value: Some(value) }),
                None => page.leased += 1,
            }
        }
        let fitting = PAGE_BYTES / (bytes / keys).max(1);
        self.page_keys = i64::try_from(fitting).unwrap_or(PAGE_KEYS_MAX).clamp(1, PAGE_KEYS_MAX);
        Ok(page)
    }

    async fn next_news(&mut self, at: i64) -> Result<News, MigrationError> {
        self.next_revision = self.next_revision.max(at + 1);
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            if self.watch.is_none() {
                self.watch = Some(self.follow().await?);
            }
            let Some(watch) = &mut self.watch else { continue };
            match timeout(TELL_INTERVAL, watch.responses.message()).await {
                // It is asked how far it is; while it has not taken that, it is not asked again.
                Err(_) => {
                    let progress = WatchProgressRequest {};
                    let request = watch_request::RequestUnion::ProgressRequest(progress);
                    let _ = watch.requests.try_send(WatchRequest { request_union: Some(request) });
                }
                Ok(Ok(Some(response))) => self.take(response)?,
                Ok(Ok(None)) => self.watch = None,
                Ok(Err(status)) => {
                    log::info!("the watch of etcd has ended: {}", status.message());
                    self.watch = None;
                }
            }
        }
    }

    /// Begins to watch, from where the last watch has ended.
    async fn follow(&self) -> Result<Followed, MigrationError> {
        let (key, range_end) = self.range();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.next_revision,
            ..WatchCreateRequest::default()
        };
        self.ask(|channel| {
            let create = create.clone();
            async move {
                let (requests, mut taken) = mpsc::channel(WATCH_REQUESTS_MAX);
                let request = watch_request::RequestUnion::CreateRequest(create);
                let created = requests.try_send(WatchRequest { request_union: Some(request) });
                created.expect("the first of several fits");
                let taken = stream::poll_fn(move |cx| taken.poll_recv(cx));
                let client = WatchClient::new(channel);
                let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
                let responses = client.watch(taken).await?.into_inner();
                Ok(Followed { requests, responses })
            }
        })
        .await
    }

    /// Takes what the watch says. The events of one revision come together.
    fn take(&mut self, response: WatchResponse) -> Result<(), MigrationError> {
        if response.compact_revision > 0 {
            return Err(MigrationError::Compacted);
        }
        if response.canceled {
            let (endpoint, reason) = (self.servers[0].0.clone(), response.cancel_reason);
            return Err(MigrationError::Refused { endpoint, reason });
        }
        let up_to = match response.events.last().and_then(|event| event.kv.as_ref()) {
            Some(last) => last.mod_revision,
            None if response.created => return Ok(()),
            None => response.header.map_or(0, |header| header.revision),
        };
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let mut events = response.events;
        while let Some(first) = events.first().map(revision) {
            let others = events.iter().position(|event| revision(event) != first);
            let rest = events.split_off(others.unwrap_or(events.len()));
            let changes = events.into_iter().filter_map(change).collect();
            self.news.push_back(News::Changed(changes));
            self.next_revision = self.next_revision.max(first + 1);
            events = rest;
        }
        self.news.push_back(News::UpTo(up_to));
        Ok(())
    }
}

/// Whether it may go better with another server, or later.
fn is_away(error: &Status) -> bool {
    let of_transport = std::error::Error::source(error).is_some();
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
    of_transport || codes.contains(&error.code())
}

/// The first key behind all that begin with this; etcd's sign for no end where there is none.
fn range_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

/// The value of a key, if it is one that is copied.
fn value(found: &KeyValue) -> Option<Bytes> {
    (found.lease == 0).then(|| found.value.clone())
}

fn change(event: Event) -> Option<Change> {
    let is_put = event.r#type() == EventType::Put;
    let kv = event.kv?;
    let value = value(&kv).filter(|_| is_put);
    Some(Change { key: kv.key, value })
}

impl Source for Etcd {
    fn moment(&mut self) -> Told<'_, i64> {
        Box::pin(async {
            let (key, range_end) = self.range();
            let request = RangeRequest { key, range_end, limit: 1, ..RangeRequest::default() };
            let request = RangeRequest { keys_only: true, ..request };
            let answer = self
                .ask(|channel| {
                    let request = request.clone();
                    async move { Ok(KvClient::new(channel).range(request).await?.into_inner()) }
                })
                .await?;
            Ok(answer.header.map_or(0, |header| header.revision))
        })
    }

    fn page(&mut self, at: i64) -> Told<'_, Page> {
        Box::pin(self.read(at))
    }

    fn next(&mut self, at: i64) -> Told<'_, News> {
        Box::pin(self.next_news(at))
    }
}

impl Sink for Etcd {
    fn write(&self, changes: Vec<Change>) -> Told<'_, ()> {
        let success = changes.into_iter().map(|Change { key, value }| {
            let request = match value {
                Some(value) => {
                    let put = PutRequest { key, value, ..PutRequest::default() };
                    request_op::Request::RequestPut(put)
                }
                None => {
                    let del = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
                    request_op::Request::RequestDeleteRange(del)
                }
            };
            RequestOp { request: Some(request) }
        });
        let request = TxnRequest { success: success.collect(), ..TxnRequest::default() };
        Box::pin(async move {
            self.ask(|channel| {
                let request = request.clone();
                async move { KvClient::new(channel).txn(request).await.map(drop) }
            })
            .await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_begin_so() {
        let end = |prefix: &[u8]| range_end(prefix).to_vec();
        assert_eq!(end(b"a"), b"b");
        assert_eq!(end(b"a/\xff"), b"a0");
        assert_eq!(end(b"\xff\xff"), [0], "to the end");
        assert_eq!(end(b""), [0]);
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        let name = |text: &str| text.parse::<EtcdEndpoint>().map(|endpoint| endpoint.name);
        for right in ["127.0.0.1:2379", "http://etcd-1:2379", "[::1]:2379", " etcd:2379 "] {
            assert_eq!(name(right).unwrap(), right.trim());
        }
        for wrong in ["", "etcd", ":2379", "etcd:", "etcd:port", "http://", "a b:1"] {
            assert!(name(wrong).unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
        assert!(name("https://etcd:2379").unwrap_err().contains("TLS"));
    }
}
