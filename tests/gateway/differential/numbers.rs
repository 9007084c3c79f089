//! The numbers of a message that differ by nature, so that they can be mapped.
//!
//! A program and its answers have *ranks* in the place of revisions: its first write has 1, its
//! second 2. Leases that the servers name have numbers in the order in which they were granted.

use acervo::gateway::interface::etcd::etcdserverpb::compare::TargetUnion;
use acervo::gateway::interface::etcd::etcdserverpb::request_op::Request as Op;
use acervo::gateway::interface::etcd::etcdserverpb::response_op::Response as OpAnswer;
use acervo::gateway::interface::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchResponse,
};
use acervo::gateway::interface::etcd::mvccpb::{Event, KeyValue};

/// What a number of a message stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// A revision that a request names, or a header.
    Revision,
    /// A revision at which a key was written: it is exactly that of a write.
    Written,
    Lease,
}

/// What is done with each number of a message.
pub type Map<'a> = dyn FnMut(Number, &mut i64) + 'a;

/// A message whose numbers can be mapped.
pub trait Numbers {
    fn map(&mut self, map: &mut Map);

    /// The header of an answer, which is of this call, and not of an operation within.
    fn header(&mut self) -> Option<&mut Option<ResponseHeader>> {
        None
    }
}

macro_rules! numbers {
    ($($message:ident ($($field:ident: $number:ident),*);)*) => {
        $(impl Numbers for $message {
            #[allow(unused_variables, reason = "some messages have no such number")]
            fn map(&mut self, map: &mut Map) {
                $(map(Number::$number, &mut self.$field);)*
            }
        })*
    };
}

numbers! {
    RangeRequest (
        revision: Revision, min_mod_revision: Revision, max_mod_revision: Revision,
        min_create_revision: Revision, max_create_revision: Revision
    );
    PutRequest (lease: Lease);
    DeleteRangeRequest ();
    CompactionRequest (revision: Revision);
    LeaseGrantRequest (id: Lease);
    LeaseRevokeRequest (id: Lease);
    LeaseTimeToLiveRequest (id: Lease);
    LeaseKeepAliveRequest (id: Lease);
    LeaseLeasesRequest ();
    WatchCreateRequest (start_revision: Revision);
    KeyValue (create_revision: Written, mod_revision: Written, lease: Lease);
}

macro_rules! answers {
    ($($message:ident, $answer:ident, $map:ident => $body:expr;)*) => {
        $(impl Numbers for $message {
            fn map(&mut self, $map: &mut Map) {
                let $answer = self;
                if let Some(header) = &mut $answer.header {
                    $map(Number::Revision, &mut header.revision);
                }
                $body
            }

            fn header(&mut self) -> Option<&mut Option<ResponseHeader>> {
                Some(&mut self.header)
            }
        })*
    };
}

answers! {
    RangeResponse, answer, map => answer.kvs.iter_mut().for_each(|row| row.map(map));
    PutResponse, answer, map => answer.prev_kv.iter_mut().for_each(|row| row.map(map));
    DeleteRangeResponse, answer, map => answer.prev_kvs.iter_mut().for_each(|row| row.map(map));
    TxnResponse, answer, map => answer.responses.iter_mut().for_each(|one| one.map(map));
    CompactionResponse, answer, _map => ();
    LeaseGrantResponse, answer, map => map(Number::Lease, &mut answer.id);
    LeaseRevokeResponse, answer, _map => ();
    LeaseTimeToLiveResponse, answer, map => map(Number::Lease, &mut answer.id);
    LeaseKeepAliveResponse, answer, map => map(Number::Lease, &mut answer.id);
    LeaseLeasesResponse, answer, map => {
        answer.leases.iter_mut().for_each(|lease| map(Number::Lease, &mut lease.id));
    };
    WatchResponse, answer, map => {
        map(Number::Revision, &mut answer.compact_revision);
        answer.events.iter_mut().for_each(|event| event.map(map));
    };
}

impl Numbers for Event {
    fn map(&mut self, map: &mut Map) {
        self.kv.iter_mut().chain(&mut self.prev_kv).for_each(|row| row.map(map));
    }
}

impl Numbers for TxnRequest {
    fn map(&mut self, map: &mut Map) {
        for compare in &mut self.compare {
            match &mut compare.target_union {
                Some(TargetUnion::CreateRevision(at) | TargetUnion::ModRevision(at)) => {
                    map(Number::Revision, at);
                }
                Some(TargetUnion::Lease(lease)) => map(Number::Lease, lease),
                Some(TargetUnion::Version(_) | TargetUnion::Value(_)) | None => {}
            }
        }
        self.success.iter_mut().chain(&mut self.failure).for_each(|op| op.map(map));
    }
}

impl Numbers for RequestOp {
    fn map(&mut self, map: &mut Map) {
        match &mut self.request {
            Some(Op::RequestRange(range)) => range.map(map),
            Some(Op::RequestPut(put)) => put.map(map),
            Some(Op::RequestDeleteRange(delete)) => delete.map(map),
            Some(Op::RequestTxn(txn)) => txn.map(map),
            None => {}
        }
    }
}

impl Numbers for ResponseOp {
    fn map(&mut self, map: &mut Map) {
        match &mut self.response {
            Some(OpAnswer::ResponseRange(range)) => range.map(map),
            Some(OpAnswer::ResponsePut(put)) => put.map(map),
            Some(OpAnswer::ResponseDeleteRange(delete)) => delete.map(map),
            Some(OpAnswer::ResponseTxn(txn)) => txn.map(map),
            None => {}
        }
    }
}
