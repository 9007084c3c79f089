//! Watches of both sides, and what each was shown.
//!
//! Beside the watches of a program each side has a *witness*, a stream of its own that watches
//! every key from the program's first write on. What it shows up to a write that ends a comparison
//! is the history, by which it is known how many events each other watch has to show.

use std::time::Duration;

use acervo::gateway::interface::etcd::etcdserverpb::watch_client::WatchClient;
use acervo::gateway::interface::etcd::etcdserverpb::watch_create_request::FilterType;
use acervo::gateway::interface::etcd::etcdserverpb::watch_request::RequestUnion;
use acervo::gateway::interface::etcd::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use acervo::gateway::interface::etcd::mvccpb::Event;
use acervo::gateway::interface::etcd::mvccpb::event::EventType;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::sides::Side;
use crate::support::PATIENCE;

/// How long nothing may be shown beyond what is expected.
const UNEXPECTED: Duration = Duration::from_millis(1);

/// One stream of watches at one side.
pub struct WatchStream {
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    /// Events that were shown, in order, by the id of their watch.
    shown: Vec<(i64, Event)>,
    /// The revision of the last event of each answer, by the id of its watch.
    last: Vec<(i64, i64)>,
    /// Answers that are about a watch as a whole.
    said: Vec<WatchResponse>,
}

impl WatchStream {
    pub fn of(side: &Side) -> WatchStream {
        let (requests, queued) = mpsc::unbounded_channel();
        let queued = stream::unfold(queued, |mut queued: mpsc::UnboundedReceiver<_>| async move {
            queued.recv().await.map(|request| (request, queued))
        });
        let (told, answers) = mpsc::unbounded_channel();
        let mut client = WatchClient::new(side.channel());
        // Etcd says nothing at all, not even that the call goes on, before it answers a request.
        tokio::spawn(async move {
            let mut messages = match client.watch(queued).await {
                Ok(messages) => messages.into_inner(),
                Err(status) => return drop(told.send(Err(status))),
            };
            while let Some(message) = messages.message().await.transpose() {
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        let (shown, last, said) = (Vec::new(), Vec::new(), Vec::new());
        WatchStream { requests, answers, shown, last, said }
    }

    pub fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request));
    }

    pub fn cancel(&self, request: WatchCancelRequest) {
        self.send(RequestUnion::CancelRequest(request));
    }

    fn send(&self, request: RequestUnion) {
        // A stream that has ended shows so when its answers are read.
        let _ = self.requests.send(WatchRequest { request_union: Some(request) });
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// There is none in time, or one that no watch may show.
    async fn take(&mut self, side: &Side, within: Duration) -> Result<(), String> {
        let name = side.name;
        let next = timeout(within, self.answers.recv()).await;
        let answer = next.map_err(|_| format!("{name} shows nothing more"))?;
        let answer = answer.ok_or_else(|| format!("{name} ends the stream"))?;
        let answer = answer.map_err(|status| format!("{name} ends the stream: {status}"))?;
        let answer = side.ranked(answer);
        let id = answer.watch_id;
        if answer.created || answer.canceled {
            self.said.push(answer);
            return Ok(());
        }
        let at = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let (Some(first), Some(last)) = (answer.events.first(), answer.events.last()) else {
            // How far it is.
            return Ok(());
        };
        let before = self.last.iter().rev().find(|(watch, _)| *watch == id);
        if before.is_some_and(|(_, before)| at(first) <= *before) {
            return Err(format!(
                "{name} shows revision {} of watch {id} in two answers",
                at(first)
            ));
        }
        self.last.push((id, at(last)));
        self.shown.extend(answer.events.into_iter().map(|event| (id, event)));
        Ok(())
    }

    /// The next answer about a watch as a whole.
    pub async fn said(&mut self, side: &Side) -> Result<WatchResponse, String> {
        while self.said.is_empty() {
            self.take(side, PATIENCE).await?;
        }
        Ok(self.said.remove(0))
    }

    /// The first events of a watch, as many as are expected; no longer kept.
    pub async fn events(
        &mut self,
        side: &Side,
        id: i64,
        count: usize,
    ) -> Result<Vec<Event>, String> {
        while self.shown.iter().filter(|(watch, _)| *watch == id).count() < count {
            self.take(side, PATIENCE).await.map_err(|why| {
                let shown: Vec<&Event> =
                    self.shown.iter().filter(|(watch, _)| *watch == id).map(|(_, e)| e).collect();
                format!("{why} of watch {id}, and {count} events are expected, not {shown:?}")
            })?;
        }
        let mut events = Vec::new();
        self.shown.retain(|(watch, event)| {
            if *watch == id {
                events.push(event.clone());
            }
            *watch != id
        });
        Ok(events)
    }

    /// All events up to one that ends a comparison.
    pub async fn history(&mut self, side: &Side, rank: i64) -> Result<Vec<Event>, String> {
        let at = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        while self.shown.last().is_none_or(|(_, event)| at(event) < rank) {
            self.take(side, PATIENCE).await?;
        }
        Ok(self.shown.drain(..).map(|(_, event)| event).collect())
    }

    /// Takes what is there already, which may be more than is expected.
    pub async fn drain(&mut self, side: &Side) -> Result<(), String> {
        loop {
            match self.take(side, UNEXPECTED).await {
                Ok(()) => {}
                Err(why) if why.ends_with("nothing more") => return Ok(()),
                Err(why) => return Err(why),
            }
        }
    }
}

/// A watch that both sides have begun.
#[derive(Debug)]
pub struct Watched {
    pub id: i64,
    request: WatchCreateRequest,
    /// It shows what was written from this rank on.
    next: i64,
    /// Whether it began with what was written before it, and has shown nothing yet.
    is_behind: bool,
}

impl Watched {
    /// One that was begun when this was the newest write.
    pub fn of(id: i64, request: WatchCreateRequest, newest: i64) -> Watched {
        let next = if request.start_revision > 0 { request.start_revision } else { newest + 1 };
        let is_behind = next <= newest;
        Watched { id, request, next, is_behind }
    }

    /// Whether etcd may still be about to look at what is below a revision that is compacted, where
    /// it would end the watch: it does so some ten times a second, and nothing tells when.
    pub fn may_look_below(&self, revision: i64) -> bool {
        self.is_behind && self.request.start_revision <= revision
    }

    /// What it has to show of the history that it has not shown.
    pub fn expected(&mut self, history: &[Event], newest: i64) -> Vec<Event> {
        let events = history.iter().filter(|event| self.shows(event)).cloned();
        let events = events.map(|mut event| {
            if !self.request.prev_kv {
                event.prev_kv = None;
            }
            event
        });
        let events: Vec<Event> = events.collect();
        self.is_behind &= events.is_empty();
        self.next = self.next.max(newest + 1);
        events
    }

    fn shows(&self, event: &Event) -> bool {
        let Some(kv) = &event.kv else { return false };
        let filter = match event.r#type() {
            EventType::Put => FilterType::Noput,
            EventType::Delete => FilterType::Nodelete,
        };
        let first = if self.request.key.is_empty() { &[0][..] } else { &self.request.key[..] };
        let is_within = match &self.request.range_end[..] {
            [] => kv.key == first,
            [0] => &kv.key[..] >= first,
            end => &kv.key[..] >= first && &kv.key[..] < end,
        };
        is_within
            && kv.mod_revision >= self.next
            && !self.request.filters.contains(&(filter as i32))
    }
}

/// Puts the events of each revision into the order of their keys: "Order of events in a
/// transaction: by key".
pub fn in_order(events: &mut [Event]) {
    events.sort_by(|one, other| {
        let of = |event: &Event| event.kv.clone().map(|kv| (kv.mod_revision, kv.key));
        of(one).cmp(&of(other))
    });
}
