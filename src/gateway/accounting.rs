//! What every connection of the gateway holds, and which one gives way when there is too little for
//! all.
//!
//! Three things are limited, each for a connection, for an origin (an IP address) and for the
//! gateway:
//!
//! - *Connections.* One more takes the place of a connection whose client has ended its half, which
//!   nobody has read yet; of one that has not made a call yet, if there are many of those; of one
//!   whose origin has many; of the one that has been idle for longest, of its own origin or of one
//!   that has more; or at last of one that is owed an answer, if its origin would keep as many as
//!   the other gets. Origins with a few have as many as anybody. So an origin makes room for others
//!   and for its own, whoever calls again and again keeps nobody out, and where each has a few
//!   nobody is cut off in a call while others are idle.
//! - *Calls.* Every connection has a place for one call to the store, one for a call to the
//!   services beside it (health, reflection), and one for a stream without an end (a watch). Of the
//!   shared places it gets one more while it, and its origin, has fewer than are left, so that
//!   nobody ever has them all.
//! - *Bytes* of requests that have come, and of answers that have not gone. Every connection has an
//!   allowance of its own; of the shared bytes it gets more while it, and its origin, would hold no
//!   more than are left.
//!
//! A call is either the gateway's turn, which has to answer, or the client's, which has to send the
//! rest of its request or to read its answer. A connection is idle when no call to the store is the
//! gateway's turn and its client has taken no part of an answer for a while. A call is stalled when
//! it has been the client's turn for that long; its connection gives way to whoever finds the
//! places of calls, or the bytes, used up. To somebody who holds less a connection gives way much
//! sooner, if the gateway owes it nothing: whoever asks for least goes first. So unread answers and
//! unfinished requests cost nobody anything as long as there is enough for all, and keep nobody out
//! when there is not.

mod books;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::net::TcpStream;

pub(super) use self::books::{AccountLimits, Pool, Turn};
use self::books::{Books, Displaced, Eviction, Opened, Silence};
use super::turns::{self, Usage};
use crate::limits::origin_of;
use crate::net::ConnectionId;

/// Every connection that is open, with what it holds. Clones share everything.
#[derive(Clone)]
pub(super) struct Accounts(Arc<Mutex<Books>>);

/// The account of one connection; among the extensions of its requests. Clones are the same
/// account.
#[derive(Clone)]
pub(super) struct Account(Arc<AccountState>);

struct AccountState {
    id: ConnectionId,
    origin: IpAddr,
    /// A request has come.
    has_called: AtomicBool,
    /// Calls of it that are under way.
    calls: AtomicUsize,
    /// Bytes that have come since the last request began, while no call was under way.
    head_bytes: AtomicUsize,
    eviction: Arc<Eviction>,
    silence: Arc<Silence>,
    usage: Usage,
    accounts: Accounts,
}

/// One call under way, until it is dropped.
pub(super) struct Call {
    account: Account,
    number: u64,
    /// What is charged for its request, as far as it can be released before the call ends.
    request_bytes: AtomicUsize,
    /// What is charged for an answer of the servers of which the call's own answer has not been
    /// made yet.
    held_bytes: AtomicUsize,
    /// The most that is charged for a piece of a longer answer.
    page_bytes: AtomicUsize,
}

impl Accounts {
    pub(super) fn new(limits: AccountLimits) -> Accounts {
        Accounts(Arc::new(Mutex::new(Books::new(limits))))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Their methods leave them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an account for a connection from `ip`, if there is room or can be made.
    pub(super) fn open(&self, ip: IpAddr) -> Option<Account> {
        let mut displaced = Displaced::default();
        let opened = self.books().open(ip, &mut displaced);
        displaced.wake();
        let Opened { id, eviction, silence, usage } = opened?;
        Some(Account(Arc::new(AccountState {
            id,
            origin: origin_of(ip),
            has_called: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            head_bytes: AtomicUsize::new(0),
            eviction,
            silence,
            usage,
            accounts: self.clone(),
        })))
    }
}

impl Drop for AccountState {
    fn drop(&mut self) {
        self.accounts.books().forget(self.id);
    }
}

impl Account {
    /// Tells which connection it is the account of.
    pub(super) fn is_of(&self, stream: &Arc<TcpStream>) {
        self.0.accounts.books().is_of(self.0.id, stream);
    }

    /// Whether the connection is to end, to make room for others. Wakes its task when that becomes
    /// so.
    pub(super) fn is_displaced(&self, waker: &Waker) -> bool {
        self.0.eviction.is_displaced(waker)
    }

    /// Tells whether the connection waits for its turn to be read.
    pub(super) fn waits_for_its_turn(&self, waits: bool) {
        self.0.silence.set(!waits);
    }

    /// How much work the connection has made.
    pub(super) fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// Whether a request has come.
    pub(super) fn has_called(&self) -> bool {
        self.0.has_called.load(Ordering::Acquire)
    }

    /// So many bytes have come; how many there are of a request that has not begun yet.
    pub(super) fn received(&self, bytes: usize) -> usize {
        if self.0.calls.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        self.0.head_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// A request has come; whether it is the first.
    fn has_come(&self) -> bool {
        self.usage().add(turns::GATEWAY_CALL_WORK_BYTES);
        self.0.head_bytes.store(0, Ordering::Relaxed);
        !self.0.has_called.swap(true, Ordering::AcqRel)
    }

    /// A request has come that is answered without a call.
    pub(super) fn asked(&self) {
        if self.has_come() {
            self.0.accounts.books().settle(self.0.id);
        }
    }

    /// Begins a call at the client's turn, if there is a place for it.
    pub(super) fn begin(&self, pool: Pool) -> Option<Call> {
        let is_first = self.has_come();
        let mut displaced = Displaced::default();
        let number = self.0.accounts.books().begin(self.0.id, pool, is_first, &mut displaced);
        displaced.wake();
        let (account, [request_bytes, held_bytes, page_bytes]) = (self.clone(), Default::default());
        number.map(|number| {
            account.0.calls.fetch_add(1, Ordering::Relaxed);
            Call { account, number, request_bytes, held_bytes, page_bytes }
        })
    }
}

impl Call {
    /// How much work the connection has made.
    pub(super) fn usage(&self) -> &Usage {
        self.account.usage()
    }

    /// Where its connection comes from.
    pub(super) fn origin(&self) -> IpAddr {
        self.account.0.origin
    }

    fn books(&self) -> (MutexGuard<'_, Books>, ConnectionId) {
        (self.account.0.accounts.books(), self.account.0.id)
    }

    /// Counts bytes that the call makes the gateway hold; `false` when it must not.
    pub(super) fn charge(&self, bytes: usize) -> bool {
        let mut displaced = Displaced::default();
        let fits = {
            let (mut books, id) = self.books();
            books.charge(id, self.number, bytes, &mut displaced)
        };
        displaced.wake();
        fits
    }

    /// Bytes are gone that were charged; what is left of them goes with the call.
    pub(super) fn release(&self, bytes: usize) {
        let (mut books, id) = self.books();
        books.release(id, Some(self.number), bytes);
    }

    /// As [`Call::charge`], for bytes of the request.
    pub(super) fn charge_request(&self, bytes: usize) -> bool {
        let fits = self.charge(bytes);
        if fits {
            self.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// The request has been dealt with, and nothing of it is kept.
    pub(super) fn release_request(&self) {
        self.release(self.request_bytes.swap(0, Ordering::Relaxed));
    }

    /// As [`Call::charge`], for an answer of the servers, as far as that is longer than what is
    /// held already: a call holds one at a time. It stays charged until the call's own answer,
    /// which is made when its client has room for it, is charged in its stead.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.charge_up_to(&self.held_bytes, bytes)
    }

    /// As [`Call::hold`], for a piece of a longer answer: it stays charged, for the next one, until
    /// the call ends.
    pub(super) fn hold_page(&self, bytes: usize) -> bool {
        self.charge_up_to(&self.page_bytes, bytes)
    }

    fn charge_up_to(&self, charged: &AtomicUsize, bytes: usize) -> bool {
        let before = charged.fetch_max(bytes, Ordering::Relaxed);
        let fits = self.charge(bytes.saturating_sub(before));
        if !fits {
            charged.store(before, Ordering::Relaxed);
        }
        fits
    }

    /// As [`Call::charge`], for a piece of the call's own answer: only what it has more than what
    /// was held for it.
    pub(super) fn charge_answer(&self, bytes: usize) -> bool {
        let held = self.held_bytes.swap(0, Ordering::Relaxed);
        if held > bytes {
            self.release(held - bytes);
        }
        self.charge(bytes.saturating_sub(held))
    }

    /// Says whose turn it is from now on; also that a part of an answer was taken, when it is the
    /// client's again.
    pub(super) fn turn(&self, turn: Turn) {
        let (mut books, id) = self.books();
        books.turn(id, self.number, turn);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.account.0.calls.fetch_sub(1, Ordering::Relaxed);
        let (mut books, id) = self.books();
        books.end(id, self.number);
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests;
