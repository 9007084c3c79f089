//! Answers as they arrive at a client: each is checked against everything that the client had
//! witnessed before, and remembered.

use crate::model::{Model, leave_out_values, named_keys};
use crate::plain_transactions::carry_out;
use acervo::model::{
    Barrier, Del, DelAll, DelRange, Effect, LogIndex, OpResult, Operation as _, PageNext, PageOf,
    ReadView, RequestId, Row, Timestamp, TxnAnswer, Version, WriteAnswer, WriteOp,
};
use acervo::wire::message::{
    ErrorCode, ErrorReply, GetRequest, PageRequest, PageView, ReadAt, Reply, TxnRequest,
    WriteRequest,
};
use bytes::Bytes;

use super::{Attempt, Longer, Outcome, Question};
use crate::checker::{Verdict, Violation, ensure};
use crate::reads::PageAnswer;
use crate::server::node_id;
use crate::world::{Event, MILLISECOND, World};

/// The version as of which a page is asked for, where not for the newest state.
fn page_at(PageRequest { of, view, .. }: &PageRequest) -> Option<Timestamp> {
    match (of, view) {
        (PageOf::Versions { .. }, _) => None,
        (_, PageView::First { at, .. }) => *at,
        // What was the newest state is gone on with.
        (_, PageView::Next(ReadView { at, removals_up_to })) if at == removals_up_to => None,
        (_, PageView::Next(ReadView { at, .. })) => Some(*at),
    }
}

impl World {
    pub fn answer(&mut self, attempt: usize, reply: Reply, read_at: LogIndex) -> Verdict {
        // Read from the log of a server before any has applied it: what it should be is known a
        // little later.
        if self.setup.honest && read_at > self.checker.last_index() {
            self.after(MILLISECOND, Event::Answer { attempt, reply, read_at });
            return Ok(());
        }
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
            (Question::Write(write), Reply::WriteOk(answer)) => {
                self.write_ended(operation, &write, answer)
            }
            (Question::Get(get), Reply::GetOk { found, as_of }) => {
                self.read_ended(operation, &get, found, as_of, read_at)
            }
            (Question::Page(page), Reply::PageOk { rows, view, next }) => {
                self.page_ended(operation, &page, PageAnswer { rows, view, next }, read_at)
            }
            (Question::Txn(txn), Reply::TxnOk { answer, as_of }) => {
                self.txn_ended(operation, &txn, &answer, as_of, read_at)
            }
            (
                Question::Get(_) | Question::Page(_) | Question::Txn(_),
                Reply::TryOtherServerOrLater { .. },
            ) => self.came_too_early(operation, attempt),
            (_, Reply::Error(error)) => self.refused(operation, attempt, error, read_at),
            (question, reply) => {
                Err(Violation(format!("{} answers {question:?} with {reply:?}", node_id(server))))
            }
        }
    }

    /// The server has not applied enough for a read.
    fn came_too_early(&mut self, operation: usize, attempt: usize) -> Verdict {
        let asked = &self.operations[operation];
        let (client, session) = (asked.client, self.clients[asked.client].session);
        let (at, linearizable) = match &asked.question {
            Question::Get(GetRequest { read_at: ReadAt::Version(at), linearizable, .. }) => {
                (Some(*at), *linearizable)
            }
            Question::Get(GetRequest { linearizable, .. }) => (None, *linearizable),
            Question::Page(PageRequest { view, .. }) => match *view {
                PageView::First { at, linearizable, .. } => (at, linearizable),
                PageView::Next(ReadView { at, .. }) => (Some(at), false),
            },
            Question::Txn(TxnRequest { linearizable, .. }) => (None, *linearizable),
            Question::Write(_) => return Ok(()),
        };
        if at > Some(session) && asked.current == Some(attempt) {
            // Perhaps nothing is written there yet: a mark tells, as in the library.
            self.end(operation, Outcome::Refused(ErrorCode::Expired));
            self.write(client, None, WriteOp::Barrier(Barrier {}));
            return Ok(());
        }
        let question = &self.operations[operation].question;
        ensure!(!linearizable || at.is_some(), "refused as going back: {question:?}");
        self.retry_if_current(operation, attempt, 50 * MILLISECOND);
        Ok(())
    }

    fn refused(
        &mut self,
        operation: usize,
        attempt: usize,
        error: ErrorReply,
        read_at: LogIndex,
    ) -> Verdict {
        let ErrorReply { code, effect, .. } = error;
        let asked = &mut self.operations[operation];
        asked.errors.push((self.now_us, code));
        let ended = asked.ended.is_some();
        let question = self.operations[operation].question.clone();
        if let Question::Write(write) = &question {
            match effect {
                // Some clients take the first server's word for it.
                Effect::NotDone
                    if !ended && self.asked_once(operation) && self.gives_up_after(code) =>
                {
                    let RequestId { client, sequence, .. } = write.request;
                    self.checker.not_done(client, sequence)?;
                    let client = self.operations[operation].client;
                    self.wrote(client, write.request);
                    self.end(operation, Outcome::Refused(code));
                    return Ok(());
                }
                Effect::Done => {
                    let RequestId { client, sequence, .. } = write.request;
                    self.checker.done(client, sequence);
                }
                Effect::NotDone | Effect::MayBeDone => {}
            }
            if code == ErrorCode::DiskFull {
                let adds =
                    matches!(write.op, WriteOp::Put(_) | WriteOp::PutAll(_) | WriteOp::PutIf(_))
                        || matches!(&write.op, WriteOp::PutSequential(_))
                        || matches!(&write.op, WriteOp::LeaseGrant(_) | WriteOp::LeaseRevoke(_))
                        || matches!(
                            &write.op,
                            WriteOp::Del(Del { keeps_history: true, .. })
                                | WriteOp::DelAll(DelAll { keeps_history: true, .. })
                                | WriteOp::DelRange(DelRange { keeps_history: true, .. })
                        )
                        || matches!(&write.op, WriteOp::Txn(txn) if txn.adds_data());
                ensure!(adds, "refused for want of room: {write:?}");
            }
            let no_majority = code == ErrorCode::NoMajority;
            ensure!(
                !no_majority || effect == Effect::NotDone,
                "NO_MAJORITY of a write that may have taken effect"
            );
        }
        match (code, &question) {
            (ErrorCode::Unconfirmed, Question::Write(_)) => {
                ensure!(effect != Effect::NotDone, "unconfirmed, and not done");
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                return Ok(());
            }
            (ErrorCode::DiskFull, Question::Write(_))
            | (ErrorCode::NoMajority | ErrorCode::Busy { .. } | ErrorCode::ShuttingDown, _) => {
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                return Ok(());
            }
            // A leader that does not trust its own state cannot say what such a write came to.
            (ErrorCode::Internal, Question::Write(write)) if depends_on_state(&write.op) => {
                ensure!(effect == Effect::MayBeDone, "{write:?} may well be done");
                ensure!(self.leader_in_doubt, "{write:?} at a leader in no doubt");
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                return Ok(());
            }
            // A server that does not trust its own state: another one answers.
            (ErrorCode::Internal, Question::Get(_) | Question::Page(_) | Question::Txn(_)) => {
                self.retry_if_current(operation, attempt, 50 * MILLISECOND);
                return Ok(());
            }
            // A late duplicate of a write that was answered long ago may well be stale.
            (ErrorCode::StaleRequest, _) if ended => return Ok(()),
            (ErrorCode::StaleRequest, Question::Write(write)) => {
                self.checker.forgotten(write)?;
            }
            (ErrorCode::UnknownSession { .. }, _) if ended => return Ok(()),
            (ErrorCode::UnknownSession { begin_anew_at }, Question::Write(write)) => {
                let request = write.request;
                ensure!(
                    begin_anew_at > request.begun,
                    "with {begin_anew_at} nobody begins anew: {write:?}"
                );
                let client = self.operations[operation].client;
                let begun = self.rng.chance(900).then_some(begin_anew_at);
                self.begin_anew(client, request.client, begun);
                let asked = &mut self.operations[operation];
                if asked.sent == 1 && !asked.renewed {
                    let applied = self.checker.written(request.client, request.sequence);
                    ensure!(applied.is_none(), "{write:?} was refused as unknown: {applied:?}");
                    let asked = &mut self.operations[operation];
                    (asked.sent, asked.renewed) = (0, true);
                    if let Question::Write(write) = &mut asked.question {
                        write.request.sequence = 0;
                    }
                    self.retry_later(operation, 20 * MILLISECOND);
                    return Ok(());
                }
            }
            (ErrorCode::Expired, Question::Page(page)) => self.checker.expired(page, read_at)?,
            (ErrorCode::Compacted { version }, Question::Get(GetRequest { read_at: at, .. })) => {
                let at = match at {
                    ReadAt::Version(at) => Some(*at),
                    ReadAt::Newest { .. } => None,
                };
                self.checker.compacted(at, version, read_at)?;
            }
            (ErrorCode::Compacted { version }, Question::Page(page)) => {
                self.checker.compacted(page_at(page), version, read_at)?;
            }
            (ErrorCode::Invalid, question) if question.is_invalid() => {}
            (_, question) => {
                return Err(Violation(format!("{question:?} was refused with {code:?}")));
            }
        }
        if let Question::Write(write) = &question {
            let (request, client) = (write.request, self.operations[operation].client);
            self.wrote(client, request);
        }
        self.end(operation, Outcome::Refused(code));
        Ok(())
    }

    fn gives_up_after(&mut self, code: ErrorCode) -> bool {
        match code {
            ErrorCode::NoMajority | ErrorCode::DiskFull => self.rng.chance(500),
            ErrorCode::Busy { .. } | ErrorCode::ShuttingDown => self.rng.chance(200),
            _ => false,
        }
    }

    fn asked_once(&self, operation: usize) -> bool {
        self.operations[operation].asked == 1
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
        answer: WriteAnswer,
    ) -> Verdict {
        let WriteAnswer { timestamp, result, previous, txn } = answer;
        let RequestId { client, sequence, .. } = write.request;
        self.checker.answered(client, sequence, timestamp)?;
        let written = self.checker.written(client, sequence);
        // What is told before it is applied is told without what was before, and so is what a
        // leader tells that doubts its state.
        let expected = written.and_then(|written| written.previous.clone());
        let is_withheld = self.leader_in_doubt && previous.is_none();
        // A retry may come when what was before is off the disk.
        let is_withheld = is_withheld || previous.is_none() && self.checker.is_off_the_disk(write);
        ensure!(
            previous == expected || is_withheld,
            "{write:?} was told {previous:?}, applied as {written:?}"
        );
        let expected = written.and_then(|written| written.txn.as_ref());
        let is_late = self.checker.is_off_the_disk(write);
        let without = expected.map(|answer| TxnAnswer { results: None, ..answer.clone() });
        ensure!(
            txn.as_deref() == expected || is_late && txn.as_deref() == without.as_ref(),
            "{write:?} was told {txn:?}, applied as {written:?}"
        );
        // Whether a condition holds is known only when the write is applied.
        let is_conditional = matches!(
            write.op,
            WriteOp::PutIf(_) | WriteOp::Txn(_) | WriteOp::LeaseGrant(_) | WriteOp::LeaseRevoke(_)
        );
        ensure!(!is_conditional || written.is_some(), "{write:?} was answered, not applied");
        let result_expected = written.map_or(OpResult::Done, |written| written.result);
        ensure!(result == result_expected, "{write:?} came to {result:?}, applied as {written:?}");
        let looked_at = written.and_then(|written| written.looked_at.clone());
        let keys = match (&write.op, written) {
            (WriteOp::PutIf(_) | WriteOp::Txn(_) | WriteOp::LeaseRevoke(_), Some(written)) => {
                written.keys.clone()
            }
            (WriteOp::PutSequential(sequential), _) => vec![sequential.key(timestamp)],
            (
                WriteOp::Trim(_)
                | WriteOp::Barrier(_)
                | WriteOp::SetHistory(_)
                | WriteOp::Compact(_),
                _,
            ) => Vec::new(),
            (WriteOp::DelRange(_), written) => {
                let keys = written.map(|written| written.keys.clone());
                keys.ok_or_else(|| Violation(format!("{write:?} was answered, not applied")))?
            }
            (named, _) => named_keys(named),
        };
        if self.end(operation, Outcome::Written(timestamp)) {
            let asked = self.operations[operation].client;
            self.wrote(asked, write.request);
            self.leave_copy(asked, write);
            let state = &mut self.clients[asked];
            state.session = state.session.max(timestamp);
            for key in &keys {
                state.learn(key, timestamp, timestamp);
                state.witness(key, timestamp);
            }
            if let Some((key, version)) = looked_at {
                match result {
                    OpResult::ConditionFailed { newest: Some(newest) } => {
                        state.learn(&key, newest, timestamp);
                    }
                    _ => state.saw_nothing(&key, timestamp),
                }
                state.witness(&key, version);
            }
            self.look_back(asked, &write.op, timestamp);
        }
        Ok(())
    }

    fn read_ended(
        &mut self,
        operation: usize,
        get: &GetRequest,
        found: Option<Version>,
        as_of: Timestamp,
        read_at: LogIndex,
    ) -> Verdict {
        let version = self.checker.got(get, found.clone(), as_of, read_at)?;
        let newest = matches!(get.read_at, ReadAt::Newest { .. });
        if newest {
            self.does_not_go_back(operation, &get.key, version)?;
        }
        let timestamp = found.as_ref().map(|version| version.timestamp);
        let value = found.map(|version| version.value);
        if self.end(operation, Outcome::Found(value)) {
            let asked = &mut self.operations[operation];
            let state = &mut self.clients[asked.client];
            if newest {
                asked.versions.push((get.key.clone(), version));
                state.session = state.session.max(as_of);
                match timestamp {
                    Some(timestamp) => state.learn(&get.key, timestamp, as_of),
                    None => state.saw_nothing(&get.key, as_of),
                }
                state.witness(&get.key, version);
            }
        }
        Ok(())
    }

    /// A transaction that only reads shows one state as it is.
    fn txn_ended(
        &mut self,
        operation: usize,
        request: &TxnRequest,
        answer: &TxnAnswer,
        as_of: Timestamp,
        read_at: LogIndex,
    ) -> Verdict {
        let model = &self.checker.model;
        let moment = model.moment(read_at);
        ensure!(as_of == moment.timestamp, "{request:?} at {as_of}, not {}", moment.timestamp);
        ensure!(Some(as_of) >= request.session, "{request:?} was answered by a state of {as_of}");
        let (_, expected) = carry_out(&request.txn, &mut moment.newest(), Timestamp::ZERO);
        ensure!(*answer == expected, "{request:?} was told {answer:?}, not {expected:?}");
        let mut versions = Vec::new();
        for key in named_keys(&WriteOp::Txn(request.txn.clone())) {
            let version = model.changed(&key, read_at);
            self.does_not_go_back(operation, &key, version)?;
            versions.push((key, version));
        }
        if self.end(operation, Outcome::Transacted(as_of)) {
            let asked = &mut self.operations[operation];
            let state = &mut self.clients[asked.client];
            state.session = state.session.max(as_of);
            for (key, version) in &versions {
                state.witness(key, *version);
                match moment_version(&self.checker.model, key, read_at) {
                    Some(timestamp) => state.learn(key, timestamp, as_of),
                    None => state.saw_nothing(key, as_of),
                }
            }
            asked.versions = versions;
            asked.read_txn = Some(answer.clone());
        }
        Ok(())
    }

    fn page_ended(
        &mut self,
        operation: usize,
        page: &PageRequest,
        answer: PageAnswer,
        read_at: LogIndex,
    ) -> Verdict {
        self.checker.paged(page, &answer, read_at)?;
        let newest = matches!(page.view, PageView::First { at: None, .. })
            && !matches!(page.of, PageOf::Versions { .. });
        let mut versions = Vec::new();
        if newest {
            for key in self.covered(page, &answer) {
                let version = self.checker.model.changed(&key, read_at);
                self.does_not_go_back(operation, &key, version)?;
                versions.push((key, version));
            }
        }
        if !self.end(operation, Outcome::Paged(answer.rows.len())) {
            return Ok(());
        }
        let asked = &mut self.operations[operation];
        let state = &mut self.clients[asked.client];
        let seen = answer.view.removals_up_to;
        state.session = state.session.max(seen);
        for (key, version) in &versions {
            let row = answer.rows.iter().find(|row| row.key == *key);
            match row.and_then(Row::timestamp) {
                Some(timestamp) => state.learn(key, timestamp, seen),
                None => state.saw_nothing(key, seen),
            }
            state.witness(key, *version);
        }
        asked.versions = versions;
        self.go_on(operation, page, answer)
    }

    /// The keys that a page says something about, be it that they are not there.
    fn covered(&self, page: &PageRequest, answer: &PageAnswer) -> Vec<Bytes> {
        match (&page.of, &answer.next) {
            (PageOf::Keys { keys }, Some(PageNext::Skip(count))) => {
                keys.iter().take(*count as usize).cloned().collect()
            }
            (PageOf::Keys { keys }, _) => keys.clone(),
            (PageOf::Range { from, to }, next) => {
                let before = |key: &Bytes| match next {
                    Some(PageNext::From(next)) => key < next,
                    _ => true,
                };
                let known = self.checker.model.known_keys();
                known.filter(|key| from <= *key && *key <= to && before(key)).cloned().collect()
            }
            (PageOf::RangeReverse { from, to }, next) => {
                let behind = |key: &Bytes| match next {
                    Some(PageNext::To(next)) => key > next,
                    _ => true,
                };
                let known = self.checker.model.known_keys();
                known.filter(|key| from <= *key && *key <= to && behind(key)).cloned().collect()
            }
            (PageOf::Versions { .. } | PageOf::Lease { .. }, _) => Vec::new(),
        }
    }

    fn does_not_go_back(&self, operation: usize, key: &Bytes, version: Timestamp) -> Verdict {
        let asked = &self.operations[operation];
        let witnessed = asked.witnessed.get(key).copied().unwrap_or_default();
        ensure!(
            version >= witnessed,
            "{:?} went back to {version} of {key:?} from {witnessed} witnessed before",
            asked.question
        );
        Ok(())
    }

    /// The next page, if there is one; else all pages together must show one state.
    fn go_on(&mut self, operation: usize, page: &PageRequest, answer: PageAnswer) -> Verdict {
        let asked = &mut self.operations[operation];
        let client = asked.client;
        let Some(mut longer) = asked.longer.take() else { return Ok(()) };
        let PageAnswer { rows, view, next } = answer;
        longer.rows.extend(rows);
        let mut view = *longer.shows.get_or_insert(view);
        let Some(next) = next else { return self.read_through(&longer, page) };
        let mut of = page.of.clone();
        match (next, &mut of) {
            (PageNext::From(next), PageOf::Range { from, .. }) => *from = next,
            (PageNext::To(next), PageOf::RangeReverse { to, .. }) => *to = next,
            (PageNext::Skip(count), PageOf::Keys { keys }) => drop(keys.drain(..count as usize)),
            (PageNext::At(next), PageOf::Versions { .. }) => view.at = next,
            (next, of) => return Err(Violation(format!("{next:?} does not go on with {of:?}"))),
        }
        let next_page = PageRequest { of, view: PageView::Next(view), ..*page };
        let next_operation = self.plan(client, None, Question::Page(next_page));
        self.operations[next_operation].longer = Some(longer);
        let delay_us = self.rng.pick(&[0, 0, 10, 300]) * MILLISECOND;
        self.after(delay_us, crate::world::Event::Retry { operation: next_operation });
        Ok(())
    }

    fn read_through(&self, longer: &Longer, last: &PageRequest) -> Verdict {
        let Longer { of, shows, rows } = longer;
        let Some(ReadView { at, removals_up_to: seen }) = *shows else { return Ok(()) };
        let mut expected = self.checker.model.seen_from(seen).rows(of, at);
        if last.keys_only {
            leave_out_values(&mut expected);
        }
        let moment = self.checker.model.moment(self.checker.last_index());
        // What was swept before its first page may be missing.
        let exact = at >= moment.swept && !matches!(of, PageOf::Versions { .. });
        ensure!(
            *rows == expected || !exact,
            "{of:?} as of {at}, seen from {seen}, came to {rows:?}, not {expected:?}: {last:?}"
        );
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
            Reply::WriteOk(WriteAnswer { timestamp, .. }) => {
                if let Question::Write(write) = &self.operations[operation].question {
                    let (request, client) = (write.request, self.operations[operation].client);
                    self.wrote(client, request);
                }
                self.end(operation, Outcome::Written(timestamp));
            }
            Reply::GetOk { found, .. } => {
                self.end(operation, Outcome::Found(found.map(|version| version.value)));
            }
            _ => self.retry_if_current(operation, attempt, 50 * MILLISECOND),
        }
        Ok(())
    }
}

/// The newest version that a key had once `index` was applied.
fn moment_version(model: &Model, key: &Bytes, index: LogIndex) -> Option<Timestamp> {
    model.moment(index).get(key, Timestamp(i64::MAX)).timestamp()
}

/// Whether what a write comes to is not known before it is applied.
fn depends_on_state(op: &WriteOp) -> bool {
    use WriteOp::{DelRange, LeaseGrant, LeaseRevoke, PutIf, Txn};
    matches!(op, PutIf(_) | DelRange(_) | Txn(_) | LeaseGrant(_) | LeaseRevoke(_))
}
