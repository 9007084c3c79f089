//! Answers as they arrive at a client: each is checked against everything that the client had
//! witnessed before, and remembered.

use acervo::command::WriteOp;
use acervo::types::{LogIndex, RequestId, Timestamp};
use acervo::wire::message::{ErrorCode, GetRequest, Reply, WriteRequest};
use bytes::Bytes;

use super::{Attempt, Outcome, Question};
use crate::checker::{Verdict, Violation, ensure};
use crate::server::node_id;
use crate::world::{MILLISECOND, World};

impl World {
    /// An answer arrives.
    pub fn answer(&mut self, attempt: usize, reply: Reply, read_at: LogIndex) -> Verdict {
        let Attempt { operation, server, .. } = self.attempts[attempt];
        let now_us = self.now_us;
        self.trace.note(now_us, || {
            let question = &self.operations[operation].question;
            format!("client told by {}: {question:?}: {reply:?}", server + 1)
        });
        if !self.setup.honest {
            return self.finish_unchecked(operation, attempt, reply);
        }
        match (self.operations[operation].question.clone(), reply) {
            (Question::Write(write), Reply::PutOk { timestamp })
                if matches!(write.op, WriteOp::Put { .. }) =>
            {
                self.write_ended(operation, &write, timestamp, None)
            }
            (Question::Write(write), Reply::DelOk { timestamp, existed })
                if matches!(write.op, WriteOp::Del { .. }) =>
            {
                self.write_ended(operation, &write, timestamp, Some(existed))
            }
            (Question::Get(get), Reply::GetOk { value, timestamp, as_of }) => {
                self.read_ended(operation, &get, value, timestamp, as_of, read_at)
            }
            (Question::Get(get), Reply::TryOtherServerOrLater { .. }) => {
                ensure!(
                    !get.linearizable,
                    "{} refused the linearizable {get:?} as going back",
                    node_id(server)
                );
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                Ok(())
            }
            (_, Reply::Error(error)) => self.refused(operation, attempt, error.code),
            (question, reply) => {
                Err(Violation(format!("{} answers {question:?} with {reply:?}", node_id(server))))
            }
        }
    }

    fn refused(&mut self, operation: usize, attempt: usize, code: ErrorCode) -> Verdict {
        let asked = &mut self.operations[operation];
        asked.errors.push((self.now_us, code));
        let ended = asked.ended.is_some();
        match code {
            ErrorCode::NoMajority | ErrorCode::Busy | ErrorCode::ShuttingDown => {
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                Ok(())
            }
            // A late duplicate of a write that was answered long ago may well be stale.
            ErrorCode::StaleRequest if ended => Ok(()),
            ErrorCode::StaleRequest | ErrorCode::Invalid | ErrorCode::Internal => {
                let question = &self.operations[operation].question;
                Err(Violation(format!("{question:?} was refused with {code:?}")))
            }
        }
    }

    fn retry_if_current(&mut self, operation: usize, attempt: usize, delay_us_max: u64) {
        if self.operations[operation].current == Some(attempt) {
            self.retry_later(operation, delay_us_max);
        }
    }

    fn write_ended(
        &mut self,
        operation: usize,
        write: &WriteRequest,
        timestamp: Timestamp,
        existed: Option<bool>,
    ) -> Verdict {
        let RequestId { client, sequence, .. } = write.request;
        self.checker.answered(client, sequence, timestamp)?;
        if let Some(existed) = existed {
            let written = self.checker.written(client, sequence);
            ensure!(
                written.is_some_and(|written| written.existed == existed),
                "{write:?} acknowledged with {existed}, applied as {written:?}"
            );
        }
        if self.end(operation, Outcome::Written(timestamp)) {
            let state = &mut self.clients[self.operations[operation].client];
            state.unanswered.remove(&sequence);
            state.learn(write.op.key(), timestamp, timestamp);
            state.witness(write.op.key(), timestamp);
        }
        Ok(())
    }

    fn read_ended(
        &mut self,
        operation: usize,
        get: &GetRequest,
        value: Option<Bytes>,
        timestamp: Timestamp,
        as_of: Timestamp,
        read_at: LogIndex,
    ) -> Verdict {
        let version = self.checker.version_at(&get.key, read_at);
        let held = version.and_then(|version| Some((version.timestamp, version.value.clone()?)));
        let told = value.clone().map(|value| (timestamp, value));
        ensure!(held == told, "{get:?} was answered {told:?} from a state that has {held:?}");
        let version = version.map_or(Timestamp::ZERO, |version| version.timestamp);
        ensure!(version <= as_of, "{get:?} saw {version}, past its as-of {as_of}");
        let asked = &self.operations[operation];
        ensure!(
            version >= asked.witnessed,
            "{get:?} went back to {version} from {} witnessed before",
            asked.witnessed
        );
        if self.end(operation, Outcome::Found(value)) {
            self.operations[operation].version = version;
            let state = &mut self.clients[self.operations[operation].client];
            state.learn(&get.key, timestamp, as_of);
            if timestamp == Timestamp::ZERO {
                let absent = state.absent.entry(get.key.clone()).or_default();
                *absent = as_of.max(*absent);
            }
            state.witness(&get.key, version);
        }
        Ok(())
    }

    /// Ends an operation; false when it had ended before.
    fn end(&mut self, operation: usize, outcome: Outcome) -> bool {
        let asked = &mut self.operations[operation];
        if asked.ended.is_some() {
            return false;
        }
        asked.ended = Some((self.now_us, outcome));
        asked.current = None;
        self.clients[asked.client].under_way -= 1;
        true
    }

    fn finish_unchecked(&mut self, operation: usize, attempt: usize, reply: Reply) -> Verdict {
        match reply {
            Reply::PutOk { timestamp } | Reply::DelOk { timestamp, .. } => {
                self.end(operation, Outcome::Written(timestamp));
            }
            Reply::GetOk { value, .. } => {
                self.end(operation, Outcome::Found(value));
            }
            _ => self.retry_if_current(operation, attempt, 50 * MILLISECOND),
        }
        Ok(())
    }
}
