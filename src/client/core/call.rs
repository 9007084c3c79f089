//! What the core has of a call: what it is told when the call begins, and where the call stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::error::{ClientError, ServerFailure};
use super::super::timing::Timing;
use super::attempts::{Attempts, Rules};
use super::verdict::Verdict;
use crate::limits::{
    CLIENT_CONSOLE_HEDGE_FACTOR, CLIENT_LINE_BYTES_PER_S_MIN, CLIENT_LINE_BYTES_PER_S_USUAL,
    CLIENT_MUTE_TIMEOUT, CLIENT_WRITE_GREETING_FACTOR, CLIENT_WRITE_HEDGE_FACTOR,
    CLIENT_WRITE_MUTE_FACTOR, CLIENT_WRITE_SLOW_FACTOR,
};
use crate::model::{Effect, RequestId};
use crate::wire::message::{Reply, Request};

/// A call's number, chosen by whoever begins it and never used again. Numbers rise roughly in the
/// order in which calls begin.
pub(in crate::client) type CallId = u64;

/// Is told of each server that a call of a console has passed over.
pub(in crate::client) type Report = Arc<dyn Fn(ServerFailure) + Send + Sync>;

/// How long a call goes on.
#[derive(Clone)]
pub(in crate::client) enum Retry {
    /// Round after round, until its deadline.
    UntilDeadline,
    /// Until each server has been asked once.
    EachServerOnce,
    /// Each server once, for a person: whoever could not be reached, is leaving, or says nothing is
    /// reported, and so has longer to say something.
    Console(Report),
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Target {
    /// Any server, at random among the healthy ones.
    AnyServer,
    /// Likewise, but the one first that is thought to lead, which orders writes by itself.
    LeaderFirst,
    /// The server at this place alone.
    Server(usize),
}

/// What the core has to know of a call.
pub(in crate::client) struct CallSpec {
    pub(in crate::client) target: Target,
    pub(in crate::client) retry: Retry,
    /// Its requests carry an identity, by which servers recognise copies of them.
    pub(in crate::client) is_write: bool,
    /// About how much memory one of its requests takes.
    pub(in crate::client) request_bytes: usize,
    /// When it ends at the latest.
    pub(in crate::client) deadline: Duration,
    /// The whole time it had, for its error.
    pub(in crate::client) timeout: Duration,
}

/// What a call asks, and what becomes of the answers.
pub(in crate::client) trait Exchange: Send {
    /// The request of one attempt. A write gets the identity that it is to carry.
    fn request(&mut self, attempt: u64, identity: Option<RequestId>) -> Request;

    /// What the reply to that attempt means. With [`Verdict::Done`] the exchange keeps the answer
    /// until its end.
    fn judge(&mut self, attempt: u64, server: SocketAddr, reply: Reply) -> Verdict<()>;

    /// No reply to that attempt will be judged.
    fn forget(&mut self, attempt: u64);

    /// The call is over: with the answer that was kept, or with an error.
    fn end(self: Box<Self>, result: Result<(), ClientError>);
}

/// One attempt that is under way.
pub(super) struct Flight {
    pub(super) server: usize,
    pub(super) attempt: u64,
    /// The id under which its request has left, if it has.
    pub(super) request_id: Option<u64>,
    /// Which of the call's claims it needs in order to leave; of a read, and of a copy that is sent
    /// once more on a new connection, none.
    pub(super) claim: Option<u64>,
    /// The connection was open before the request, and it has not been sent once more on a new one.
    pub(super) was_kept: bool,
}

/// A call that is not over.
pub(super) struct Call {
    pub(super) exchange: Box<dyn Exchange>,
    pub(super) spec: CallSpec,
    /// `None` while it waits for room.
    pub(super) attempts: Option<Attempts>,
    pub(super) identity: Option<RequestId>,
    /// It has got a second identity.
    pub(super) is_renewed: bool,
    pub(super) flights: Vec<Flight>,
    pub(super) attempts_made: u64,
    /// Of a write: for each claim of its copies under way, and for the last one, whether one of
    /// them has left.
    pub(super) claims: BTreeMap<u64, bool>,
    /// Of a write: what is known of the effect of the attempts that have ended.
    pub(super) effect: Option<Effect>,
    /// When it is next looked at.
    pub(super) timer: Duration,
}

impl Call {
    pub(super) fn raise(&mut self, effect: Effect) {
        if let Some(known) = &mut self.effect {
            *known = effect.max(*known);
        }
    }

    /// Claims one more copy. With `instead` it replaces the others, none of which is needed once it
    /// has left.
    pub(super) fn claim(&mut self, instead: bool) -> u64 {
        let last = self.claims.last_key_value().map(|(claim, has_left)| (*claim, *has_left));
        let (last, has_left) = last.unwrap_or((0, true));
        let flights = &self.flights;
        self.claims.retain(|claim, _| {
            *claim == last || flights.iter().any(|flight| flight.claim == Some(*claim))
        });
        // A copy that has left cannot be taken back.
        if instead && !has_left {
            return last;
        }
        self.claims.insert(last + 1, false);
        last + 1
    }

    pub(super) fn take_flight(&mut self, attempt: u64) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.attempt == attempt)?;
        Some(self.flights.swap_remove(at))
    }
}

/// An answer that is arriving may stand still for this many times the time after which a read is
/// hedged: longer than a network takes to send again what it has lost.
const CLIENT_REPLY_STALL_FACTOR: u32 = 10;

/// How long so many bytes are on a line that takes so many a second.
pub(super) fn line_time(bytes: usize, bytes_per_s: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)
}

/// How a call is tried.
pub(super) fn rules(spec: &CallSpec, timing: &Timing) -> Rules {
    let hedge = timing.hedge_delay;
    let (greeting, silence, slow, mute) = match (&spec.retry, spec.target) {
        (Retry::Console(_), _) => {
            let patience = hedge * CLIENT_CONSOLE_HEDGE_FACTOR;
            (patience, patience, None, None)
        }
        (_, Target::LeaderFirst) => {
            let (greeting, silence) = (CLIENT_WRITE_GREETING_FACTOR, CLIENT_WRITE_HEDGE_FACTOR);
            let mute = CLIENT_MUTE_TIMEOUT * CLIENT_WRITE_MUTE_FACTOR;
            let slow = hedge * CLIENT_WRITE_SLOW_FACTOR;
            (hedge * greeting, hedge * silence, Some(slow), Some(mute))
        }
        (_, Target::AnyServer | Target::Server(_)) => {
            (hedge, hedge, Some(hedge), Some(CLIENT_MUTE_TIMEOUT))
        }
    };
    let usual = line_time(spec.request_bytes, CLIENT_LINE_BYTES_PER_S_USUAL);
    let slowest = line_time(spec.request_bytes, CLIENT_LINE_BYTES_PER_S_MIN);
    let (silence, slow) = (silence + usual, slow.map(|slow| slow + usual));
    let mute = mute.map(|mute| mute + slowest);
    Rules {
        one_round: !matches!(spec.retry, Retry::UntilDeadline),
        greeting,
        silence,
        slow,
        spares_copies: spec.is_write,
        stall: hedge * CLIENT_REPLY_STALL_FACTOR,
        mute,
        reach: timing.reach_timeout,
        deadline: spec.deadline,
        timeout: spec.timeout,
    }
}

pub(super) fn timed_out(spec: &CallSpec, last: &str) -> ClientError {
    let (timeout, last) = (spec.timeout, last.to_owned());
    ClientError::TimedOut { timeout, last, effect: None }
}
