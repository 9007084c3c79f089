//! The sentences in which the core refuses a request or reports that it was not confirmed.
//!
//! Each says what is known of the request's effect, and what the user can do.

use super::config::Distrust;
use crate::limits;
use crate::model::{Effect, Timestamp};
use crate::text::counted;
use crate::wire::message::{ErrorCode, ErrorReply, Reply};

/// When a client may ask again for a lease that was refused because its address has its share: they
/// end when others let them, and not because a queue empties.
const LEASES_RETRY_AFTER_MS: u32 = 1_000;

/// What a node knows of the group when a request was not confirmed in time.
pub(super) struct GroupState {
    /// The number of servers that answer, this one included.
    pub answering: usize,
    /// The size of the group.
    pub servers: usize,
    /// The sentence on why no leader can be elected although enough servers are up, if that is so.
    pub no_leader: Option<String>,
}

impl GroupState {
    /// The size of a majority.
    fn needed(&self) -> usize {
        self.servers / 2 + 1
    }

    /// A clause that says how many servers answer.
    fn clause(&self) -> String {
        let verb = if self.servers == 1 { "answers" } else { "answer" };
        let servers = counted(self.servers as u64, "server", "servers");
        format!("{} of {servers} {verb}", self.answering)
    }

    /// The reply to a read that was not confirmed in time.
    pub fn no_majority(&self) -> Reply {
        let (answers, needed) = (self.clause(), self.needed());
        let message = if let Some(reason) = &self.no_leader {
            format!("no majority: {reason}")
        } else if self.answering < needed {
            format!(
                "no majority: {answers} and {needed} are needed: \
                 start the others, then try again"
            )
        } else {
            format!("no majority agreed in time although {answers}: try again")
        };
        error(ErrorCode::NoMajority, &message)
    }

    /// The reply to a write that was not confirmed in time; it says what is known of its effect.
    pub fn not_confirmed(&self, effect: Effect) -> Reply {
        let (answers, needed) = (self.clause(), self.needed());
        if let (Effect::NotDone, Some(reason)) = (effect, &self.no_leader) {
            let message = format!("nothing was done: {answers}, but {reason}");
            return Reply::Error(ErrorReply::not_done(ErrorCode::NoMajority, message));
        }
        let (code, message) = match effect {
            Effect::NotDone if self.answering < needed => (
                ErrorCode::NoMajority,
                format!(
                    "no majority: {answers} and {needed} are needed: nothing was done; \
                     start the others, then try again"
                ),
            ),
            Effect::NotDone => (
                ErrorCode::NoMajority,
                format!(
                    "no leader took the write in time although {answers}: \
                     nothing was done; try again"
                ),
            ),
            Effect::MayBeDone => (
                ErrorCode::Unconfirmed,
                format!(
                    "the write was not confirmed in time, {answers}: it may have taken \
                     effect, or may yet; read the key before you write it again"
                ),
            ),
            Effect::Done => (
                ErrorCode::Unconfirmed,
                format!(
                    "the write is done, a majority has stored it, but not every server in sync is \
                     known to have ({answers}): do not repeat it"
                ),
            ),
        };
        Reply::Error(ErrorReply { effect, ..ErrorReply::not_done(code, message) })
    }
}

/// A reply to a request that had no effect.
pub(super) fn error(code: ErrorCode, message: &str) -> Reply {
    Reply::Error(ErrorReply::not_done(code, message.to_owned()))
}

/// A reply that asks the client to repeat the request after [`limits::BUSY_RETRY_AFTER_MS`].
pub(super) fn busy(message: &str) -> Reply {
    let code = ErrorCode::Busy { retry_after_ms: limits::BUSY_RETRY_AFTER_MS };
    error(code, &format!("{message}: try again in a moment"))
}

/// The reply to a grant of a lease whose origin has its share of them.
pub(super) fn over_share_of_leases() -> Reply {
    let code = ErrorCode::Busy { retry_after_ms: LEASES_RETRY_AFTER_MS };
    let message = "so many of the group's leases are of this address that the rest is left to \
                   others: revoke some, or let some end";
    error(code, message)
}

pub(super) fn shutting_down() -> Reply {
    error(ErrorCode::ShuttingDown, "this server is stopping: ask another one")
}

/// The reply to a write whose result depends on the state, which this server does not trust: what
/// it came to is not known here.
pub(super) fn result_in_doubt(distrust: Distrust) -> Reply {
    let message = format!("this server cannot say what the write came to ({distrust}): ask again");
    let not_done = ErrorReply::not_done(ErrorCode::Internal, message);
    Reply::Error(ErrorReply { effect: Effect::MayBeDone, ..not_done })
}

/// The reply that refuses a read because this server does not trust its state.
pub fn not_to_be_read(distrust: Distrust) -> Reply {
    error(ErrorCode::Internal, &format!("this server cannot be read ({distrust}): ask another one"))
}

/// The answer to a write that was refused because its session is not known. Only if it was
/// never sent on before (`resent`) is it known that it was not applied. Its client then begins
/// a new session at `applied`, the timestamp of the last write applied, which is not before the
/// last write of any session that was dropped.
pub(super) fn unknown_session(resent: bool, applied: Timestamp) -> Reply {
    let message = "what this client wrote before is forgotten, and so is whether this write \
                   was applied: read the key to see what it holds";
    let (code, effect) = match resent {
        true => (ErrorCode::StaleRequest, Effect::MayBeDone),
        false => (ErrorCode::UnknownSession { begin_anew_at: applied }, Effect::NotDone),
    };
    Reply::Error(ErrorReply { code, message: message.to_owned(), effect })
}
