//! etcd's JSON interface: `POST /v3/kv/range` and the others, and what it answers to `GET` at
//! `/version` and `/health`.
//!
//! A request becomes one of gRPC ([`methods`], [`transcode`]), is answered by the same services
//! under the same policy, and its answer becomes JSON. So no service knows of it. There are two
//! layers, because the policy has to lie between them: [`JsonAnswers`] is around it, so that what
//! the policy refuses is told in JSON, too; [`JsonRequests`] is within, so that the text of a
//! request is charged to its call, and has to come in time, like any request.
//!
//! An answer of one message comes whole, with an HTTP status by its code. A stream is one object a
//! line for as long as it lasts, over HTTP/1.1 in chunks; an error ends it with a line of its own.
//!
//! What it leaves out: the requests of a stream are read to their end before the first is carried
//! out, as all known clients send them.

mod answers;
mod methods;
mod requests;
mod transcode;

pub(in crate::gateway) use self::answers::JsonAnswers;
pub(in crate::gateway) use self::methods::JsonMethods;
pub(in crate::gateway) use self::requests::JsonRequests;

use prost_reflect::MethodDescriptor;

/// That a request is JSON; among its extensions, from [`JsonAnswers`] on.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct JsonCall {
    method: MethodDescriptor,
}
