//! Answers as they arrive at a client: each is checked against everything that the client had
//! witnessed before, and remembered.

use acervo::command::WriteOp;
use acervo::types::{LogIndex, RequestId, Timestamp};
use acervo::wire::message::{
    ErrorCode, GetRequest, PageNext, PageOf, PageRequest, Previous, Reply, Row, WriteRequest,
};
use bytes::Bytes;

use super::{Attempt, Operation, Outcome, Question, keys};
use crate::checker::{Verdict, Violation, ensure};
use crate::machine::{newest, previous_of};
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
                if matches!(write.op, WriteOp::Put { .. }) && !write.previous =>
            {
                self.write_ended(operation, &write, timestamp, None)
            }
            (Question::Write(write), Reply::WriteOk { timestamp, previous })
                if write.previous && previous.is_some() == write.op.key().is_some() =>
            {
                self.write_ended(operation, &write, timestamp, previous)
            }
            // The answer to a page that has come already.
            (Question::Page(_), _) if self.operations[operation].current != Some(attempt) => Ok(()),
            (Question::Page(page), Reply::PageOk { rows, at, seen, next }) => {
                self.page_came(operation, page, rows, (at, seen), next)
            }
            (Question::Page(page), Reply::TryOtherServerOrLater { .. }) => {
                ensure!(!page.linearizable, "{} refused {page:?} as going back", node_id(server));
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                Ok(())
            }
            (Question::Page(page), Reply::Error(error)) if error.code == ErrorCode::Expired => {
                let purged = self.checker.purged();
                ensure!(
                    page.seen > Timestamp::ZERO && page.seen < purged,
                    "{page:?} is called too old, purged up to {purged}"
                );
                self.end(operation, Outcome::Expired);
                Ok(())
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
            // What its key had before has been purged meanwhile.
            ErrorCode::StaleRequest if self.checker.purged() > Timestamp::ZERO => {
                self.end(operation, Outcome::Expired);
                Ok(())
            }
            ErrorCode::StaleRequest
            | ErrorCode::Invalid
            | ErrorCode::Expired
            | ErrorCode::Internal => {
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
        previous: Option<Previous>,
    ) -> Verdict {
        let RequestId { client, sequence, .. } = write.request;
        self.checker.answered(client, sequence, timestamp)?;
        if let (Some(told), Some(key)) = (&previous, write.op.key()) {
            let before = self.checker.state_seen(Timestamp(timestamp.0 - 1));
            let had = previous_of(&before, key);
            ensure!(*told == had, "{write:?} was told {told:?}, the key had {had:?}");
        }
        if !self.end(operation, Outcome::Written(timestamp)) {
            return Ok(());
        }
        let applied = self.checker.written(client, sequence).is_some();
        let state = &mut self.clients[self.operations[operation].client];
        state.unanswered.remove(&sequence);
        state.session = state.session.max(timestamp);
        for key in keys_of(&write.op) {
            match write.op {
                // A trim makes no version: by its time the key could not be read.
                WriteOp::Trim { .. } => {
                    match previous.as_ref().map_or(Timestamp::ZERO, |kept| kept.timestamp) {
                        Timestamp::ZERO => state.miss(&key, timestamp),
                        kept => state.learn(&key, kept, timestamp),
                    }
                }
                _ => state.learn(&key, timestamp, timestamp),
            }
            match write.op {
                WriteOp::Put { .. } | WriteOp::PutAll { .. } => state.witness(&key, timestamp),
                _ if applied => state.witness(&key, self.checker.changed(&key, timestamp)),
                _ => {}
            }
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
        let (past, _) = self.operations[operation].asked;
        let state = self.checker.state_at(read_at);
        let held = newest(&state, &get.key, past.unwrap_or(Timestamp(i64::MAX)));
        let told = value.as_ref().map(|value| (timestamp, value));
        ensure!(held == told, "{get:?} was answered {told:?} from a state that has {held:?}");
        if let Some(past) = past {
            ensure!(past <= as_of, "{get:?} was answered by who has nothing past {as_of}");
            if self.end(operation, Outcome::Found(value)) {
                let state = &mut self.clients[self.operations[operation].client];
                state.session = state.session.max(as_of);
            }
            return Ok(());
        }
        let version = self.checker.changed(&get.key, self.checker.time_at(read_at));
        ensure!(version <= as_of, "{get:?} saw {version}, past its as-of {as_of}");
        self.goes_not_back(operation, &get.key, version)?;
        if self.end(operation, Outcome::Found(value)) {
            self.operations[operation].versions.push((get.key.clone(), version));
            let state = &mut self.clients[self.operations[operation].client];
            state.learn(&get.key, timestamp, as_of);
            if timestamp == Timestamp::ZERO {
                state.miss(&get.key, as_of);
            }
            state.witness(&get.key, version);
        }
        Ok(())
    }

    fn goes_not_back(&self, operation: usize, key: &Bytes, version: Timestamp) -> Verdict {
        let Operation { witnessed, question, .. } = &self.operations[operation];
        let witnessed = witnessed.get(key).copied().unwrap_or_default();
        ensure!(
            version >= witnessed,
            "{question:?} showed {key:?} as of {version}, witnessed before was {witnessed}"
        );
        Ok(())
    }

    /// A page is kept, and the next one asked of another server; after the last, all are compared with
    /// the one state that they should show.
    fn page_came(
        &mut self,
        operation: usize,
        mut page: PageRequest,
        rows: Vec<Row>,
        (at, seen): (Timestamp, Timestamp),
        next: Option<PageNext>,
    ) -> Verdict {
        let (past, _) = self.operations[operation].asked;
        ensure!(at == past.unwrap_or(seen) && at <= seen, "{page:?} shows {at}, seen {seen}");
        ensure!([Timestamp::ZERO, seen].contains(&page.seen), "{page:?} was seen from {seen}");
        ensure!(rows.len() <= page.rows_max as usize, "{page:?} has {} rows", rows.len());
        let asked = &mut self.operations[operation];
        asked.rows.extend(rows);
        if let Some(next) = next {
            match (&mut page.of, next) {
                (PageOf::Range { from, .. }, PageNext::From(next)) => *from = next,
                (PageOf::Keys { keys }, PageNext::Skip(count)) => {
                    drop(keys.drain(..count as usize))
                }
                (of, next) => return Err(Violation(format!("{of:?} goes on at {next:?}"))),
            }
            asked.question = Question::Page(PageRequest { at, seen, linearizable: false, ..page });
            self.send_attempt(operation);
            return Ok(());
        }
        let state = self.checker.state_seen(seen);
        let shown = |key: &Bytes| match newest(&state, key, at) {
            Some((timestamp, value)) => (key.clone(), Some(value.clone()), timestamp),
            None => (key.clone(), None, Timestamp::ZERO),
        };
        let first = &asked.first;
        let expected: Vec<_> = match first {
            Question::Page(PageRequest { of: PageOf::Keys { keys }, .. }) => {
                keys.iter().map(shown).collect()
            }
            _ => {
                let keys = state.keys().filter(|key| first.shows(key));
                keys.map(shown).filter(|(_, value, _)| value.is_some()).collect()
            }
        };
        let told: Vec<_> = std::mem::take(&mut asked.rows)
            .into_iter()
            .map(|Row { key, value, timestamp }| (key, value, timestamp))
            .collect();
        ensure!(told == expected, "{first:?} as of {at}, {seen} showed {told:?}, not {expected:?}");
        let client = asked.client;
        let versions: Vec<(Bytes, Timestamp)> = keys()
            .filter(|key| first.shows(key))
            .map(|key| (key.clone(), self.checker.changed(&key, seen)))
            .collect();
        self.end(operation, Outcome::Listed);
        self.clients[client].session = self.clients[client].session.max(seen);
        if past.is_some() {
            return Ok(());
        }
        for (key, version) in &versions {
            self.goes_not_back(operation, key, *version)?;
            let state = &mut self.clients[client];
            match told.iter().find(|(shown, value, _)| shown == key && value.is_some()) {
                Some((_, _, timestamp)) => state.learn(key, *timestamp, seen),
                None => state.miss(key, seen),
            }
            state.witness(key, *version);
        }
        self.operations[operation].versions = versions;
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
            Reply::PutOk { timestamp } | Reply::WriteOk { timestamp, .. } => {
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

/// Those of the clients' keys that a write is about.
fn keys_of(op: &WriteOp) -> Vec<Bytes> {
    match op {
        WriteOp::DelRange { from, to } => keys().filter(|key| from <= key && key <= to).collect(),
        op => op.pairs().map(|(key, _)| key.clone()).collect(),
    }
}
