//! Where docs/ETCD.md says that Acervo departs from etcd. Each departure that a program can meet is
//! one named exception, and nothing else is excepted.

use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::response_op::Response as OpAnswer;
use acervo::gateway::interface::etcd::etcdserverpb::{
    RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, WatchResponse,
};
use tonic::{Code, Status};

use super::program::{FUTURE, Known};

/// "Comparisons of transactions within see what was done before them."
const COMPARE_WITHIN: &str = "comparison-within-sees-what-was-done";
/// "A key that is deleted twice on a path through a transaction, or put and deleted by two
/// transactions within it: INVALID_ARGUMENT, a sentence."
const WRITTEN_TWICE: &str = "what-is-written-twice-is-refused";
/// "A put of a key that the same branch deletes with all keys from one on: `duplicate key given in
/// txn request`."
const DELETED_TO_THE_END: &str = "put-and-deleted-to-the-end-is-refused";
/// "A negative revision of a Range within a transaction means the newest."
const NEGATIVE: &str = "negative-revision-within";
/// "A Range as of a revision that cannot be read, within a transaction, is an error on whichever
/// branch it stands."
const UNREADABLE: &str = "unreadable-revision-on-a-branch";

/// "A transaction that names a lease that there is not, and keeps a part of what a missing key has,
/// on another path or the same: which of both is said."
pub const WHICH_IS_MISSING: &str = "which-is-missing-key-or-lease";
/// "Headers of operations within a transaction all tell the transaction's revision."
pub const HEADERS_WITHIN: &str = "headers-within-tell-the-transactions-revision";

/// "The last answer of a watch whose past is gone tells a revision, and says why."
pub const ANSWER_OF_THE_GONE: &str = "last-answer-of-a-watch-whose-past-is-gone";

/// "The id of a watch whose past is gone is free again."
pub const ID_OF_THE_GONE: &str = "id-of-a-watch-whose-past-is-gone";

/// A half-open range of keys, as requests name it.
struct Span<'a> {
    from: &'a [u8],
    end: &'a [u8],
}

impl<'a> Span<'a> {
    fn has(&self, key: &[u8]) -> bool {
        match self.end {
            [] => key == self.from,
            [0] => key >= self.from,
            end => key >= self.from && key < end,
        }
    }

    fn meets(&self, other: &Span<'a>) -> bool {
        (self.has(other.from) && other.has(other.from))
            || (other.has(self.from) && self.has(self.from))
    }
}

fn ops(branch: &[RequestOp]) -> impl Iterator<Item = &Op> {
    branch.iter().filter_map(|op| op.request.as_ref())
}

/// All operations, those of transactions within and of both branches included.
fn each_op<'a>(txn: &'a TxnRequest, show: &mut dyn FnMut(&'a Op)) {
    for op in ops(&txn.success).chain(ops(&txn.failure)) {
        show(op);
        if let Op::RequestTxn(txn) = op {
            each_op(txn, show);
        }
    }
}

/// A transaction that neither side is asked for, because they would come to different states: one
/// within it compares what an operation before it may have written, or etcd may refuse it.
pub fn not_asked(txn: &TxnRequest) -> Option<&'static str> {
    let mut is_negative = false;
    each_op(txn, &mut |op| {
        is_negative |= matches!(op, Op::RequestRange(range) if range.revision < 0);
    });
    if is_negative {
        return Some(NEGATIVE);
    }
    let mut is_met = false;
    for branch in [&txn.success, &txn.failure] {
        compare_written(branch, &mut Vec::new(), &mut is_met);
    }
    is_met.then_some(COMPARE_WITHIN)
}

/// Goes through a branch in order; `written` is what has been written on the way.
fn compare_written<'a>(branch: &'a [RequestOp], written: &mut Vec<Span<'a>>, is_met: &mut bool) {
    for op in ops(branch) {
        match op {
            Op::RequestRange(_) => {}
            Op::RequestPut(put) => written.push(Span { from: &put.key, end: &[] }),
            Op::RequestDeleteRange(delete) => {
                written.push(Span { from: &delete.key, end: &delete.range_end });
            }
            Op::RequestTxn(txn) => {
                for compare in &txn.compare {
                    let compared = Span { from: &compare.key, end: &compare.range_end };
                    *is_met |= written.iter().any(|span| span.meets(&compared));
                }
                compare_written(&txn.success, written, is_met);
                // Of the other branch's way what the first has written is not before it; that it
                // may count as such excepts a little more.
                compare_written(&txn.failure, written, is_met);
            }
        }
    }
}

/// A transaction that Acervo has refused and etcd is not asked for, because it would carry it out.
pub fn only_refused(
    txn: &TxnRequest,
    answer: &Result<TxnResponse, Status>,
    known: Known,
) -> Option<&'static str> {
    let status = answer.as_ref().err()?;
    let (mut put, mut deleted) = (Vec::new(), Vec::new());
    each_op(txn, &mut |op| match op {
        Op::RequestPut(one) => put.push(Span { from: &one.key, end: &[] }),
        Op::RequestDeleteRange(one) => deleted.push(Span { from: &one.key, end: &one.range_end }),
        Op::RequestRange(_) | Op::RequestTxn(_) => {}
    });
    if status.code() == Code::InvalidArgument && status.message().contains("twice on a path") {
        let is_met = deleted
            .iter()
            .enumerate()
            .any(|(at, span)| deleted[at + 1..].iter().chain(&put).any(|other| span.meets(other)));
        return is_met.then_some(WRITTEN_TWICE);
    }
    if status.message() == "etcdserver: duplicate key given in txn request" {
        let is_met =
            deleted.iter().any(|span| span.end == [0] && put.iter().any(|other| span.meets(other)));
        return is_met.then_some(DELETED_TO_THE_END);
    }
    let text = match status.code() {
        Code::OutOfRange => status.message(),
        _ => return None,
    };
    let mut is_named = false;
    each_op(txn, &mut |op| {
        if let Op::RequestRange(range) = op {
            is_named |= match text {
                "etcdserver: mvcc: required revision is a future revision" => {
                    range.revision >= FUTURE
                }
                "etcdserver: mvcc: required revision has been compacted" => {
                    range.revision > 0 && range.revision < known.compacted
                }
                _ => false,
            };
        }
    });
    (is_named && !is_certain(txn)).then_some(UNREADABLE)
}

/// Whether all there is are ranges that are read in any case, so that etcd refuses them as well.
fn is_certain(txn: &TxnRequest) -> bool {
    txn.compare.is_empty()
        && txn.failure.is_empty()
        && ops(&txn.success).all(|op| matches!(op, Op::RequestRange(_)))
}

/// Whether both sides have refused a transaction, one because a key is missing that keeps a part of
/// what it has, the other because a lease is, where it names both.
pub fn is_either_missing(
    txn: &TxnRequest,
    acervo: &Result<TxnResponse, Status>,
    etcd: &Result<TxnResponse, Status>,
) -> bool {
    let (mut keeps, mut names_lease) = (false, false);
    each_op(txn, &mut |op| {
        if let Op::RequestPut(put) = op {
            keeps |= put.ignore_value || put.ignore_lease;
            names_lease |= put.lease != 0;
        }
    });
    let (Err(acervo), Err(etcd)) = (acervo, etcd) else { return false };
    keeps
        && names_lease
        && acervo.message() == "etcdserver: key not found"
        && etcd.message() == "etcdserver: requested lease not found"
}

/// The header of an operation's own answer.
fn header_within(answer: &mut ResponseOp) -> Option<&mut ResponseHeader> {
    match answer.response.as_mut()? {
        OpAnswer::ResponseRange(range) => range.header.as_mut(),
        OpAnswer::ResponsePut(put) => put.header.as_mut(),
        OpAnswer::ResponseDeleteRange(delete) => delete.header.as_mut(),
        OpAnswer::ResponseTxn(txn) => txn.header.as_mut(),
    }
}

/// Has etcd's headers within a transaction tell what ours tell where etcd's are of the state before
/// the transaction's first write, or of a transaction within, which tells none; whether there was
/// one.
pub fn even_headers_within(acervo: &mut TxnResponse, etcd: &mut TxnResponse) -> bool {
    let revision = etcd.header.map_or(0, |header| header.revision);
    even_within(&mut acervo.responses, &mut etcd.responses, revision)
}

fn even_within(acervo: &mut [ResponseOp], etcd: &mut [ResponseOp], revision: i64) -> bool {
    let mut is_evened = false;
    for (acervo, etcd) in std::iter::zip(acervo, etcd) {
        let ours = header_within(acervo).map(|header| header.revision);
        if let Some(theirs) = header_within(etcd)
            && ours == Some(revision)
            && (theirs.revision == 0 || theirs.revision + 1 == revision)
        {
            theirs.revision = revision;
            is_evened = true;
        }
        if let (Some(OpAnswer::ResponseTxn(acervo)), Some(OpAnswer::ResponseTxn(etcd))) =
            (&mut acervo.response, &mut etcd.response)
        {
            is_evened |= even_within(&mut acervo.responses, &mut etcd.responses, revision);
        }
    }
    is_evened
}

/// Has the answer of etcd that ends a watch because its past is compacted say what ours says, where
/// it says nothing; whether it did.
pub fn even_answer_of_the_gone(acervo: &WatchResponse, etcd: &mut WatchResponse) -> bool {
    let is_met = etcd.canceled
        && etcd.compact_revision > 0
        && etcd.cancel_reason.is_empty()
        && etcd.header.is_some_and(|header| header.revision == 0)
        && acervo.cancel_reason == "etcdserver: mvcc: required revision has been compacted";
    if is_met {
        (etcd.header, etcd.cancel_reason) = (acervo.header, acervo.cancel_reason.clone());
    }
    is_met
}
