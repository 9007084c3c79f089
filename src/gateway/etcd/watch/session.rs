//! One watch of a stream: what the library tells of it, put together to answers.
//!
//! Rule: an answer has whole revisions, unless its client takes fragments. What is put together is
//! one revision, or a few small ones that are there already, and is charged to the call beyond a
//! mebibyte; a revision that there is no room for ends the watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until};

use super::super::super::interface::etcd::etcdserverpb::watch_create_request::FilterType;
use super::super::super::interface::etcd::etcdserverpb::{WatchCreateRequest, WatchResponse};
use super::super::super::interface::etcd::mvccpb::event::EventType;
use super::super::super::interface::etcd::mvccpb::{Event, KeyValue};
use super::super::super::policy::CallLimits;
use super::super::EtcdServices;
use super::super::errors::EtcdError;
use super::super::range::key_value;
use crate::client::{
    AsyncClient, ClientError, KeyRange, ReadOptions, Timestamp, Version, Watch, WatchEvent,
    WatchOptions, WatchProgress,
};
use crate::model::{KeyChange, Previous};

/// Events of several revisions go out together up to here, if they are there already.
const ANSWER_BYTES: usize = 64 * 1024;
/// A fragment of a revision has no more than this, or is one longer event: well below the two
/// mebibytes that clients of etcd expect of an answer.
const FRAGMENT_BYTES_MAX: usize = 1024 * 1024;
/// A revision with more than this is told in fragments, or not at all: it is all in memory at once,
/// and charged to its call beyond a mebibyte. It is sixteen times what etcd takes in one request.
const REVISION_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What an event takes besides its key and values.
const EVENT_BYTES: usize = 64;
/// No revision is being put together.
const NOTHING_HELD: i64 = i64::MAX;

/// How far a watch has been shown everything.
pub(super) struct WatchShown {
    progress: WatchProgress,
    /// The revision of which something was taken from the library and is in no answer yet.
    held: AtomicI64,
}

impl WatchShown {
    pub(super) fn up_to(&self) -> Option<Timestamp> {
        let held = self.held.load(Ordering::Relaxed);
        self.progress.up_to().map(|up_to| up_to.min(Timestamp(held - 1)))
    }
}

/// One watch of a stream.
pub(super) struct WatchSession {
    services: EtcdServices,
    call: CallLimits,
    client: AsyncClient,
    watch: Watch,
    pub(super) shown: Arc<WatchShown>,
    id: i64,
    /// Nothing up to here is told: of a watch from now on, what was told before it began.
    floor: Timestamp,
    begins_now: bool,
    no_put: bool,
    no_delete: bool,
    previous: bool,
    fragments: bool,
    /// When it tells how far it is, if it has told nothing by then.
    notifies_at: Option<Instant>,
    /// Events that are to be told in the next answer.
    events: Vec<Event>,
    /// Of these, those of revisions that are whole.
    whole: usize,
    bytes: usize,
    charged_bytes: usize,
    revision: Timestamp,
    /// Events whose previous value is to be read.
    unread: Vec<usize>,
    ready: VecDeque<WatchResponse>,
    is_over: bool,
}

/// What is done with what the library tells.
enum Step {
    /// More is to be gathered.
    More,
    /// A revision is whole.
    Whole,
    /// The watch is over, and this is said of it.
    Over { compact_revision: i64, reason: String },
}

impl WatchSession {
    pub(super) async fn begin(
        services: EtcdServices,
        call: CallLimits,
        client: AsyncClient,
        id: i64,
        range: KeyRange,
        request: &WatchCreateRequest,
    ) -> Result<WatchSession, ClientError> {
        let after = (request.start_revision > 0).then(|| Timestamp(request.start_revision - 1));
        let options = WatchOptions { after, previous: request.prev_kv };
        // A server may have begun it before what this gateway has told.
        let floor = if after.is_none() { services.headers().told() } else { Timestamp::ZERO };
        let watch = client.watch(range, options).await?;
        let shown =
            Arc::new(WatchShown { progress: watch.progress(), held: AtomicI64::new(NOTHING_HELD) });
        let has = |filter: FilterType| request.filters.contains(&(filter as i32));
        let interval = services.watch_progress_interval();
        let compacted = match after {
            // Where nobody tells, the watch goes on as far as its changes are there.
            Some(_) => services.compacted_revision(&call).await.unwrap_or_default(),
            None => None,
        };
        let mut session = WatchSession {
            services,
            call,
            client,
            watch,
            shown,
            id,
            floor,
            begins_now: after.is_none(),
            no_put: has(FilterType::Noput),
            no_delete: has(FilterType::Nodelete),
            previous: request.prev_kv,
            fragments: request.fragment,
            notifies_at: request.progress_notify.then(|| Instant::now() + interval),
            events: Vec::new(),
            whole: 0,
            bytes: 0,
            charged_bytes: 0,
            revision: Timestamp::ZERO,
            unread: Vec::new(),
            ready: VecDeque::new(),
            is_over: false,
        };
        if let Some(compacted) = compacted.filter(|at| request.start_revision < at.0) {
            session.end(compacted.0, EtcdError::Compacted.text().to_owned());
        }
        Ok(session)
    }

    /// Says that the watch is over, and why.
    fn end(&mut self, compact_revision: i64, cancel_reason: String) {
        self.ready.push_back(WatchResponse {
            header: Some(self.services.headers().now()),
            watch_id: self.id,
            canceled: true,
            compact_revision,
            cancel_reason,
            ..Default::default()
        });
        self.is_over = true;
    }

    /// The revision behind which a watch from now on begins.
    pub(super) fn begins_after(&self) -> Option<Timestamp> {
        let up_to = self.shown.up_to().filter(|_| self.begins_now)?;
        Some(up_to.max(self.floor))
    }

    /// The next answer of this watch; `None` when it is over.
    pub(super) async fn next_answer(&mut self) -> Option<WatchResponse> {
        loop {
            if let Some(answer) = self.ready.pop_front() {
                if self.ready.is_empty() && self.events.is_empty() {
                    self.shown.held.store(NOTHING_HELD, Ordering::Relaxed);
                }
                self.notifies_at = self
                    .notifies_at
                    .map(|_| Instant::now() + self.services.watch_progress_interval());
                return Some(answer);
            }
            if self.is_over {
                return None;
            }
            let event = tokio::select! {
                event = self.watch.next_event() => event,
                () = until(self.notifies_at) => {
                    self.notify();
                    continue;
                }
            };
            let mut step = self.take(event);
            while matches!(step, Step::Whole) && self.bytes < ANSWER_BYTES {
                // What is there already goes out with it.
                match self.watch.next_event().now_or_never() {
                    Some(event) => step = self.take(event),
                    None => break,
                }
            }
            match step {
                Step::More if self.fragments => self.flush(false).await,
                Step::More => {}
                Step::Whole => self.flush(true).await,
                Step::Over { compact_revision, reason } => {
                    self.events.truncate(self.whole);
                    self.unread.retain(|at| *at < self.whole);
                    self.flush(true).await;
                    self.end(compact_revision, reason);
                }
            }
        }
    }

    /// Tells how far the watch is, where nothing else was told.
    fn notify(&mut self) {
        let interval = self.services.watch_progress_interval();
        self.notifies_at = Some(Instant::now() + interval);
        let headers = self.services.headers();
        if let Some(up_to) = self.shown.up_to() {
            let header = Some(headers.at(up_to.min(headers.told())));
            let watch_id = self.id;
            self.ready.push_back(WatchResponse { header, watch_id, ..Default::default() });
        }
    }

    /// Takes what the library tells.
    fn take(&mut self, event: Option<Result<WatchEvent, ClientError>>) -> Step {
        match event {
            Some(Ok(WatchEvent::Changed { version, changes, continues })) => {
                // In the same poll as the event was taken, so that nobody is told more meanwhile,
                // and the least of those that are gathered: none of them has been told.
                self.shown.held.fetch_min(version.0, Ordering::Relaxed);
                self.revision = version;
                changes.into_iter().for_each(|change| self.add(change));
                if let Some(reason) = self.is_too_much() {
                    return Step::Over { compact_revision: 0, reason };
                }
                if continues {
                    return Step::More;
                }
                self.whole = self.events.len();
                Step::Whole
            }
            Some(Ok(WatchEvent::Reset { version, .. })) => Step::Over {
                compact_revision: version.0.max(1),
                reason: EtcdError::Compacted.text().to_owned(),
            },
            Some(Err(error)) => Step::Over { compact_revision: 0, reason: error.to_string() },
            None => {
                let reason = "the watch has ended".to_owned();
                Step::Over { compact_revision: 0, reason }
            }
        }
    }

    fn add(&mut self, change: KeyChange) {
        let is_left_out = if change.written.is_some() { self.no_put } else { self.no_delete };
        if is_left_out || change.at <= self.floor {
            return;
        }
        if self.previous
            && let Some(Previous::Value { value: None, .. }) = &change.previous
        {
            self.unread.push(self.events.len());
        }
        let event = event(change);
        self.bytes += bytes_of(&event);
        self.events.push(event);
    }

    /// Why so much is not held, if it is too much.
    fn is_too_much(&mut self) -> Option<String> {
        if self.fragments {
            return None;
        }
        let charged = self.bytes.saturating_sub(FRAGMENT_BYTES_MAX);
        let more = charged.saturating_sub(self.charged_bytes);
        if self.bytes <= REVISION_BYTES_MAX && (more == 0 || self.call.charge(more).is_ok()) {
            self.charged_bytes += more;
            return None;
        }
        Some(format!(
            "revision {} has changed more than this gateway can hold to tell it at once ({} bytes \
             so far, at most {REVISION_BYTES_MAX}): watch with fragments, or fewer keys",
            self.revision.0, self.bytes
        ))
    }

    /// Makes answers of the events that were gathered. Unless they are the last of their revision,
    /// what makes no whole fragment is kept.
    async fn flush(&mut self, is_last: bool) {
        self.read_previous().await;
        // One is kept, so that the last answer of a revision is never without events.
        while self.fragments && self.bytes > FRAGMENT_BYTES_MAX && self.events.len() > 1 {
            let mut bytes = 0;
            let fits = |event: &&Event| {
                bytes += bytes_of(event);
                bytes <= FRAGMENT_BYTES_MAX
            };
            let count = self.events.iter().take_while(fits).count();
            self.tell(count.clamp(1, self.events.len() - 1), true);
        }
        if is_last {
            self.tell(self.events.len(), false);
            self.call.release(std::mem::take(&mut self.charged_bytes));
        }
    }

    /// Tells the first events that were gathered.
    fn tell(&mut self, count: usize, fragment: bool) {
        let rest = self.events.split_off(count);
        let events = std::mem::replace(&mut self.events, rest);
        self.bytes = self.events.iter().map(bytes_of).sum();
        self.whole = self.whole.saturating_sub(count);
        let Some(last) = events.last().and_then(|last| last.kv.as_ref()) else {
            if self.events.is_empty() && self.ready.is_empty() {
                self.shown.held.store(NOTHING_HELD, Ordering::Relaxed);
            }
            return;
        };
        self.ready.push_back(WatchResponse {
            header: Some(self.services.headers().at(Timestamp(last.mod_revision))),
            watch_id: self.id,
            events,
            fragment,
            ..Default::default()
        });
    }

    /// Reads previous values that are too long to be told with their change. One that is gone is
    /// not told, as etcd does not tell one that is compacted; nor is what there is no room for.
    async fn read_previous(&mut self) {
        for at in std::mem::take(&mut self.unread) {
            let has_room = self.bytes <= REVISION_BYTES_MAX;
            let Some(event) = self.events.get_mut(at) else { continue };
            let (Some(kv), Some(mut previous)) = (&event.kv, event.prev_kv.take()) else {
                continue;
            };
            if !has_room {
                continue;
            }
            let before = Some(Timestamp(kv.mod_revision - 1));
            let options = ReadOptions { at: before, ..ReadOptions::default() };
            // Beside everybody else's requests, and charged like what servers answer to those.
            let read = self.client.read(&kv.key, options);
            let read = self.services.calls().in_turn(&self.call, read).await;
            let found = read.ok().and_then(|got| got.found);
            if let Some(found) = found.filter(|found| found.timestamp.0 == previous.mod_revision)
                && self.call.charge(found.value.len()).is_ok()
            {
                self.charged_bytes += found.value.len();
                self.bytes += found.value.len();
                previous.value = found.value;
                event.prev_kv = Some(previous);
            }
        }
    }
}

impl Drop for WatchSession {
    fn drop(&mut self) {
        self.call.release(self.charged_bytes);
    }
}

/// Waits until then; for ever, if that is never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What etcd's clients are told of a change.
fn event(change: KeyChange) -> Event {
    let KeyChange { at, key, written, previous } = change;
    let prev_kv = match previous {
        Some(Previous::Value { timestamp, facts, value }) => {
            let (value, facts) = (value.unwrap_or_default(), Some(facts));
            Some(key_value(key.clone(), Version { timestamp, value, facts }))
        }
        Some(Previous::Absent) | None => None,
    };
    match written {
        Some(written) => {
            let kv = Some(key_value(key, written));
            Event { r#type: EventType::Put.into(), kv, prev_kv }
        }
        None => {
            let kv = KeyValue { key, mod_revision: at.0, ..KeyValue::default() };
            Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv }
        }
    }
}

fn bytes_of(event: &Event) -> usize {
    let of = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    EVENT_BYTES + of(&event.kv) + of(&event.prev_kv)
}
