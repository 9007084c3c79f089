//! The service Watch: any number of watches on one stream, each a watch of the client library.
//!
//! - *Requests of a stream are done one after the other*, since many clients know by their order
//!   which answer belongs to which. Events of other watches come between.
//! - *All changes of one revision come in one answer*: etcd's clients take a revision that they
//!   have seen for done. The library may give them out in pieces, which are gathered (`session`);
//!   more than there is room for ends the watch, with a sentence that says so, unless its client
//!   takes fragments.
//! - *Nobody is waited for.* An answer is made when the transport asks for one, which it does when
//!   its client has room. What waits meanwhile waits in the library, within the credit of its
//!   watch; a stream that is dropped, because its client is gone, ends all its watches.
//! - *A past that is gone* ends a watch of etcd's, whose client has to read the state itself: where
//!   the library tells a reset, the answer names the revision from which a watch may begin again.
//!
//! A progress answer tells a revision up to which all watches of the stream have been shown
//! everything. Servers tell how far they have come about once a second, so it is waited for a
//! moment until that is as far as anything this gateway has told.

mod session;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, AbortHandle, Abortable, SelectAll};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, sleep};
use tonic::{Request, Status, Streaming};

use self::session::{WatchSession, WatchShown};
use super::super::interface::etcd::etcdserverpb::watch_request::RequestUnion;
use super::super::interface::etcd::etcdserverpb::watch_server::Watch;
use super::super::interface::etcd::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::super::policy::CallLimits;
use super::errors::{EtcdError, failed};
use super::range::KeySpan;
use super::{Answer, EtcdServices, overlong};
use crate::client::{ClientError, Timestamp};

/// Watches of one stream. Clients that have more open another one.
const WATCHES_PER_STREAM_MAX: usize = 8 * 1024;
/// What a watch takes in memory besides its keys, here and in the library, about: of a connection's
/// share of the gateway's bytes there is room for some ten thousand.
const WATCH_BYTES: usize = 4 * 1024;
/// How long a request for progress waits until its watches have come as far as anything that was
/// told: servers say how far they are about once a second.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests for progress of one stream that are waited for at once; more of them are answered with
/// the last of these. Each is answered within [`PROGRESS_TIMEOUT`].
const PROGRESS_REQUESTS_MAX: usize = 64;
/// How often it looks.
const PROGRESS_LOOK_INTERVAL: Duration = Duration::from_millis(20);

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answers = Messages<WatchResponse>;

#[tonic::async_trait]
impl Watch for EtcdServices {
    type WatchStream = Answers;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        let call = CallLimits::of(&request)?;
        let answers = self.watch_stream(call, request.into_inner());
        Ok(tonic::Response::new(answers))
    }
}

impl EtcdServices {
    /// The answers to a stream of requests about watches.
    pub(super) fn watch_stream(
        &self,
        call: CallLimits,
        requests: impl Stream<Item = Result<WatchRequest, Status>> + Send + 'static,
    ) -> Answers {
        let stream = WatchStream {
            services: self.clone(),
            call,
            requests: Some(Box::pin(requests)),
            creating: None,
            sessions: SelectAll::new(),
            watches: BTreeMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            progress: VecDeque::new(),
        };
        // An error is the last thing that a stream tells.
        Box::pin(stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            let call = stream.call.clone();
            match call.within(stream.next_answer()).await {
                Ok(Some(answer)) => Some((Ok(answer), Some(stream))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }))
    }
}

/// One stream of requests and answers.
struct WatchStream {
    services: EtcdServices,
    call: CallLimits,
    /// `None` once the client has ended its half.
    requests: Option<Messages<WatchRequest>>,
    /// The watch that is being begun. No other request is looked at meanwhile.
    creating: Option<Pin<Box<dyn Future<Output = Created> + Send>>>,
    sessions: SelectAll<Abortable<Pin<Box<dyn Stream<Item = WatchResponse> + Send>>>>,
    watches: BTreeMap<i64, OpenWatch>,
    next_id: i64,
    ready: VecDeque<WatchResponse>,
    /// In the order in which they were asked for.
    progress: VecDeque<ProgressWanted>,
}

/// A watch of the stream.
struct OpenWatch {
    abort: AbortHandle,
    shown: Arc<WatchShown>,
    charged_bytes: usize,
}

struct ProgressWanted {
    /// How far all watches are to have come.
    revision: Timestamp,
    /// By then it is told how far they are.
    until: Instant,
}

/// What comes of a request to begin a watch.
struct Created {
    id: i64,
    begun: Result<WatchSession, ClientError>,
    charged_bytes: usize,
}

impl WatchStream {
    /// The next answer; `None` when there will never be another.
    async fn next_answer(&mut self) -> Result<Option<WatchResponse>, Status> {
        loop {
            if let Some(answer) = self.ready.pop_front() {
                return Ok(Some(answer));
            }
            let is_over = self.requests.is_none() && self.creating.is_none();
            if is_over && self.watches.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                created = next_created(&mut self.creating) => self.created(created)?,
                request = next_request(&mut self.requests), if self.creating.is_none() => {
                    match request.transpose().map_err(overlong)? {
                        Some(request) => self.requested(request)?,
                        None => self.requests = None,
                    }
                }
                Some(answer) = self.sessions.next(), if !self.sessions.is_empty() => {
                    if answer.canceled {
                        self.forget(answer.watch_id);
                    }
                    self.ready.push_back(answer);
                }
                () = sleep(PROGRESS_LOOK_INTERVAL), if !self.progress.is_empty() => {}
                () = self.services.stopped() => return Err(EtcdError::Stopped.into()),
            }
            self.tell_progress();
        }
    }

    fn requested(&mut self, request: WatchRequest) -> Result<(), Status> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => {
                // One that there is not is passed over, as by etcd.
                if self.forget(cancel.watch_id) {
                    let header = Some(self.services.headers().now());
                    let watch_id = cancel.watch_id;
                    let answer =
                        WatchResponse { header, watch_id, canceled: true, ..Default::default() };
                    self.ready.push_back(answer);
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                let revision = self.services.headers().told();
                let until = Instant::now() + PROGRESS_TIMEOUT;
                if self.progress.len() >= PROGRESS_REQUESTS_MAX {
                    self.progress.pop_back();
                }
                self.progress.push_back(ProgressWanted { revision, until });
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins a watch, or refuses it.
    fn create(&mut self, request: WatchCreateRequest) -> Result<(), Status> {
        // Without a key it is all keys from the first on, or that one.
        let first = Bytes::from_static(&[0]);
        let key = if request.key.is_empty() { &first } else { &request.key };
        let range = KeySpan::of(key, &request.range_end)
            .and_then(|span| span.map(|span| span.range()).transpose());
        let range = match range {
            Ok(Some(range)) => range,
            Ok(None) => {
                self.refuse("mvcc: watcher range is empty");
                return Ok(());
            }
            Err(status) => {
                self.refuse(status.message());
                return Ok(());
            }
        };
        let Some(id) = self.draw_id(request.watch_id) else {
            self.refuse("mvcc: duplicate watch ID provided on the WatchStream");
            return Ok(());
        };
        let charged_bytes = WATCH_BYTES + 2 * (request.key.len() + request.range_end.len());
        if self.watches.len() >= WATCHES_PER_STREAM_MAX || self.call.charge(charged_bytes).is_err()
        {
            self.refuse(EtcdError::TooManyRequests.text());
            return Ok(());
        }
        let (services, call) = (self.services.clone(), self.call.clone());
        self.creating = Some(Box::pin(async move {
            let client = services.calls().watcher(&call);
            let begun = WatchSession::begin(services, call, client, id, range, &request).await;
            Created { id, begun, charged_bytes }
        }));
        Ok(())
    }

    /// The id of a new watch: the one that is asked for, or the next that is free. `None`: it is
    /// taken.
    fn draw_id(&mut self, asked: i64) -> Option<i64> {
        if asked != 0 {
            return (!self.watches.contains_key(&asked)).then_some(asked);
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// Tells that a watch was not begun.
    fn refuse(&mut self, reason: &str) {
        self.ready.push_back(WatchResponse {
            header: Some(self.services.headers().now()),
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        });
    }

    fn created(&mut self, created: Created) -> Result<(), Status> {
        self.creating = None;
        let Created { id, begun, charged_bytes } = created;
        let session = match begun {
            Ok(session) => session,
            Err(ClientError::TooManyWatches) => {
                self.call.release(charged_bytes);
                self.refuse(EtcdError::TooManyRequests.text());
                return Ok(());
            }
            Err(error) => return Err(failed(&self.call, &error)),
        };
        let headers = self.services.headers();
        let begins_after = session.begins_after();
        let header = begins_after.map_or_else(|| headers.now(), |after| headers.at(after));
        self.ready.push_back(WatchResponse {
            header: Some(header),
            watch_id: id,
            created: true,
            ..Default::default()
        });
        let (abort, registration) = AbortHandle::new_pair();
        let shown = Arc::clone(&session.shown);
        self.watches.insert(id, OpenWatch { abort, shown, charged_bytes });
        let answers = stream::unfold(session, |mut session| async move {
            session.next_answer().await.map(|answer| (answer, session))
        });
        self.sessions.push(Abortable::new(Box::pin(answers), registration));
        Ok(())
    }

    /// A watch is over. `false`: there is none.
    fn forget(&mut self, id: i64) -> bool {
        let Some(watch) = self.watches.remove(&id) else { return false };
        watch.abort.abort();
        self.call.release(watch.charged_bytes);
        true
    }

    /// Tells how far all watches are, as often as that is wanted and they are far enough, or it is
    /// time.
    fn tell_progress(&mut self) {
        while let Some(wanted) = self.progress.front() {
            let Some(told) = self.progress_for(wanted) else { return };
            self.progress.pop_front();
            self.ready.extend(told);
        }
    }

    /// What whoever asked for progress is told, which may be nothing; `None` if it is too early.
    fn progress_for(&self, wanted: &ProgressWanted) -> Option<Option<WatchResponse>> {
        let headers = self.services.headers();
        // A watch of the future has been shown all of the present.
        let told = headers.told();
        let shown = self.watches.values().map(|watch| watch.shown.up_to());
        let least = shown.min().unwrap_or(Some(told)).map(|least| least.min(told));
        let is_time = Instant::now() >= wanted.until;
        if least < Some(wanted.revision) && !is_time {
            return None;
        }
        // As etcd, it says nothing of watches of which it is not known.
        Some(least.map(|revision| {
            let header = Some(headers.at(revision));
            WatchResponse { header, watch_id: -1, ..Default::default() }
        }))
    }
}

/// Completes the beginning of a watch, if one is under way.
async fn next_created(
    creating: &mut Option<Pin<Box<dyn Future<Output = Created> + Send>>>,
) -> Created {
    match creating {
        Some(creating) => creating.await,
        None => std::future::pending().await,
    }
}

/// The next request; `None` when the client has ended its half.
async fn next_request<S: Stream + Unpin>(requests: &mut Option<S>) -> Option<S::Item> {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}
