//! In which order requests of the console go, and how many are under way.
//!
//! Requests of one key go one after the other, as they were typed: at servers chosen at random a
//! later PUT would often be ordered before an earlier one, and a GET that was pasted behind a PUT
//! would miss it. Requests of different keys do not wait for each other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::explain::{Rendered, explain, render};
use crate::client::sync::{lock, wait};
use crate::client::{Ask, Client};
use crate::limits::CONSOLE_GET_HELD_MAX;
use crate::prompt::Screen;

/// A request, and its place among those that are not answered.
pub(super) struct Asked {
    pub(super) client: Client,
    pub(super) ask: Ask,
    pub(super) under_way: UnderWay,
}

/// The requests of the console that are under way or wait for others of their keys.
///
/// A GET does not wait for ever: behind a PUT that has been under way for [`CONSOLE_GET_HELD_MAX`]
/// it goes all the same, so that whoever waits for a server that is late can see what each has
/// meanwhile.
#[derive(Default)]
pub(super) struct Order {
    state: Mutex<OrderState>,
    /// Signalled when a GET begins to wait behind a PUT.
    held: Condvar,
}

#[derive(Default)]
struct OrderState {
    /// The keys with a request under way.
    keys: HashMap<Bytes, KeyOrder>,
    /// A thread looks after the GETs that wait behind PUTs.
    is_watched: bool,
}

/// The requests of one key.
#[derive(Default)]
struct KeyOrder {
    /// Since when a PUT has been under way.
    put_since: Option<Instant>,
    get_is_under_way: bool,
    /// In the order in which they were typed.
    waiting: VecDeque<Asked>,
}

impl KeyOrder {
    /// When the first request that waits may be sent although a PUT is under way, if it is a GET.
    fn held_until(&self) -> Option<Instant> {
        let is_get = matches!(self.waiting.front()?.ask, Ask::Get { .. });
        let until = self.put_since? + CONSOLE_GET_HELD_MAX;
        (is_get && !self.get_is_under_way).then_some(until)
    }

    /// Takes the first request that waits, if it may be sent now, and counts it as under way.
    fn take_next(&mut self, now: Instant) -> Option<Asked> {
        let is_free = self.put_since.is_none() && !self.get_is_under_way;
        if !is_free && self.held_until().is_none_or(|until| now < until) {
            return None;
        }
        let next = self.waiting.pop_front()?;
        match next.ask {
            Ask::Put { .. } => self.put_since = Some(now),
            Ask::Get { .. } => self.get_is_under_way = true,
        }
        Some(next)
    }

    fn is_idle(&self) -> bool {
        self.put_since.is_none() && !self.get_is_under_way && self.waiting.is_empty()
    }
}

impl Order {
    pub(super) fn submit(self: &Arc<Order>, asked: Asked, screen: &Arc<dyn Screen>) {
        let key = asked.ask.key().clone();
        lock(&self.state).keys.entry(key.clone()).or_default().waiting.push_back(asked);
        self.advance(&key, screen);
    }

    /// Sends those of a key's requests that may be sent now.
    fn advance(self: &Arc<Order>, key: &Bytes, screen: &Arc<dyn Screen>) {
        while let Some(next) = self.take_next(key, screen) {
            self.send(next, screen);
        }
    }

    fn take_next(self: &Arc<Order>, key: &Bytes, screen: &Arc<dyn Screen>) -> Option<Asked> {
        let mut state = lock(&self.state);
        let of_key = state.keys.get_mut(key)?;
        let next = of_key.take_next(Instant::now());
        if of_key.is_idle() {
            state.keys.remove(key);
        } else if next.is_none() && of_key.held_until().is_some() {
            self.held.notify_one();
            if !std::mem::replace(&mut state.is_watched, true) {
                let (order, screen) = (Arc::clone(self), Arc::clone(screen));
                let thread = thread::Builder::new().name("acervo-order".to_owned());
                // Without it the GET waits for the PUT.
                state.is_watched = thread.spawn(move || order.watch(&screen)).is_ok();
            }
        }
        next
    }

    /// Sends each GET that has waited long enough, until none waits behind a PUT.
    fn watch(self: &Arc<Order>, screen: &Arc<dyn Screen>) {
        let mut state = lock(&self.state);
        loop {
            let held = state.keys.iter().filter_map(|(key, of)| Some((of.held_until()?, key)));
            let Some((until, key)) = held.min() else {
                state.is_watched = false;
                return;
            };
            state = match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => wait(&self.held, state, left),
                _ => {
                    let key = key.clone();
                    drop(state);
                    self.advance(&key, screen);
                    lock(&self.state)
                }
            };
        }
    }

    fn send(self: &Arc<Order>, asked: Asked, screen: &Arc<dyn Screen>) {
        let Asked { client, ask, under_way } = asked;
        let turn = Turn { ask: ask.clone(), order: Arc::clone(self), screen: Arc::clone(screen) };
        let (shown_on, asked) = (Arc::clone(screen), ask.clone());
        let report = move |event| {
            match render(&asked, &event) {
                Rendered::Event(line) => shown_on.event(&line),
                Rendered::Remark(line) => shown_on.remark(&line),
            }
            // Held until the last report, and given back when this closure goes.
            let _ = (&turn, &under_way);
        };
        if let Err(error) = client.submit(ask, report) {
            screen.say(&explain(&error));
        }
    }
}

/// A request's turn; when it goes, the next ones of its key are sent.
struct Turn {
    ask: Ask,
    order: Arc<Order>,
    screen: Arc<dyn Screen>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let key = self.ask.key();
        if let Some(of_key) = lock(&self.order.state).keys.get_mut(key) {
            match self.ask {
                Ask::Put { .. } => of_key.put_since = None,
                Ask::Get { .. } => of_key.get_is_under_way = false,
            }
        }
        self.order.advance(key, &self.screen);
    }
}

/// Counts the requests under way.
#[derive(Default)]
pub(super) struct RequestCount {
    count: Mutex<u64>,
    fewer: Condvar,
}

pub(super) struct UnderWay(Arc<RequestCount>);

impl RequestCount {
    pub(super) fn begin(pending: &Arc<RequestCount>) -> UnderWay {
        *lock(&pending.count) += 1;
        UnderWay(Arc::clone(pending))
    }

    pub(super) fn count(&self) -> u64 {
        *lock(&self.count)
    }

    /// Waits until fewer than `most` are under way. Those of one key end one after the other, each
    /// in its own time: so the time begins anew whenever one has ended.
    pub(super) fn wait_below(&self, most: u64, timeout: Duration) {
        let mut count = lock(&self.count);
        let (mut fewest, mut deadline) = (*count, Instant::now() + timeout);
        while *count >= most {
            if *count < fewest {
                (fewest, deadline) = (*count, Instant::now() + timeout);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            count = wait(&self.fewer, count, left);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.fewer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::DEFAULT_SERVERS;

    /// What may go of a key's requests, and when.
    #[test]
    fn requests_of_one_key_go_in_order_and_a_get_waits_for_a_put_only_so_long() {
        let client = Client::builder(DEFAULT_SERVERS).build().unwrap();
        let mut key = KeyOrder::default();
        for number in 0..2 {
            let value = Bytes::from(format!("{number}"));
            for ask in [Ask::Put { key: "k".into(), value }, Ask::Get { key: "k".into() }] {
                let under_way = RequestCount::begin(&Arc::default());
                key.waiting.push_back(Asked { client: client.clone(), ask, under_way });
            }
        }
        let start = Instant::now();
        let next = |key: &mut KeyOrder, at: Duration| {
            key.take_next(start + at).map(|asked| matches!(asked.ask, Ask::Get { .. }))
        };
        let (short, long) = (CONSOLE_GET_HELD_MAX - Duration::from_millis(1), CONSOLE_GET_HELD_MAX);
        assert_eq!(next(&mut key, Duration::ZERO), Some(false));
        assert_eq!(key.held_until(), Some(start + long));
        assert_eq!(next(&mut key, short), None);
        // A PUT that lasts does not keep its GET for ever.
        assert_eq!(next(&mut key, long), Some(true));
        // A PUT waits for both, however long.
        assert_eq!((next(&mut key, 9 * long), key.held_until()), (None, None));
        key.put_since = None;
        assert_eq!(next(&mut key, 9 * long), None);
        key.get_is_under_way = false;
        assert_eq!(next(&mut key, 9 * long), Some(false));
        assert_eq!(next(&mut key, 9 * long), None);
        // One that is answered does not, either.
        key.put_since = None;
        assert_eq!(next(&mut key, 9 * long), Some(true));
        assert!(!key.is_idle());
        key.get_is_under_way = false;
        assert!(key.is_idle());
    }
}
