//! The gRPC interface, through a gateway in front of three servers.

use acervo::gateway::interface::key_value_store_client::KeyValueStoreClient;
use acervo::gateway::interface::{
    KeyRange, KeyRequest, KeyValueRequest, KeyValueVersionReply, PutReply,
};
use acervo::text::escape;
use bytes::Bytes;
use futures_util::stream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::language::{Asked, Op};
use crate::run::{Answer, BackEnd, Left, Row};

use crate::servers::Servers;
use crate::shell;
use crate::support::PATIENCE;
use crate::support::gateway::Gateway;

pub struct Interface {
    runtime: Runtime,
    client: KeyValueStoreClient<Channel>,
    gateway: Gateway,
    servers: String,
}

impl Interface {
    pub fn start(servers: &Servers) -> Interface {
        let gateway = Gateway::start(&servers.group.dir, &servers.group.list(), &[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(gateway.url()).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Interface {
            runtime,
            client: KeyValueStoreClient::new(channel),
            gateway,
            servers: servers.group.list(),
        }
    }
}

impl BackEnd for Interface {
    fn name(&self) -> &'static str {
        "the gateway"
    }

    fn ask(&mut self, op: &Op) -> Answer {
        let answered = match message(op) {
            Ok(message) => self.runtime.block_on(call(&mut self.client, message, op)),
            Err(error) => return Answer::Error(error),
        };
        match answered {
            Ok(rows) => Answer::Rows(rows),
            Err(status) => Answer::Error(format!("{}: {}", code_name(&status), status.message())),
        }
    }

    fn shell(&mut self, line: &str) -> Result<Left, String> {
        shell::run(line, &self.servers, Some(self.gateway.address))
    }
}

/// An operation as the interface says it.
enum Message {
    Get(KeyRequest),
    GetRange(KeyRange),
    GetAll(Vec<KeyRequest>),
    Put(KeyValueRequest),
    PutAll(Vec<KeyValueRequest>),
    Del(KeyRequest),
    DelRange(KeyRange),
    DelAll(Vec<KeyRequest>),
    Trim(KeyRequest),
}

fn message(op: &Op) -> Result<Message, String> {
    let text = |bytes: &Bytes| {
        let text = String::from_utf8(bytes.to_vec());
        text.map_err(|_| format!("gRPC cannot carry \"{}\"", escape(bytes)))
    };
    let key = |asked: &Asked| Ok::<_, String>(KeyRequest { key: text(&asked.key)?, ver: asked.at });
    let keys = |asked: &[Asked]| asked.iter().map(key).collect::<Result<Vec<_>, _>>();
    let range = |fr: &Asked, to: &Asked| {
        Ok::<_, String>(KeyRange { fr: Some(key(fr)?), to: Some(key(to)?) })
    };
    let pair = |key: &Bytes, value: &Bytes| {
        Ok::<_, String>(KeyValueRequest { key: text(key)?, val: text(value)? })
    };
    Ok(match op {
        Op::Get(asked) => Message::Get(key(asked)?),
        Op::GetRange(fr, to) => Message::GetRange(range(fr, to)?),
        Op::GetAll(asked) => Message::GetAll(keys(asked)?),
        Op::Put(key, value) => Message::Put(pair(key, value)?),
        Op::PutAll(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| pair(key, value));
            Message::PutAll(pairs.collect::<Result<_, _>>()?)
        }
        Op::Del(asked) => Message::Del(key(asked)?),
        Op::DelRange(fr, to) => Message::DelRange(range(fr, to)?),
        Op::DelAll(asked) => Message::DelAll(keys(asked)?),
        Op::Trim(asked) => Message::Trim(key(asked)?),
    })
}

async fn call(
    client: &mut KeyValueStoreClient<Channel>,
    message: Message,
    op: &Op,
) -> Result<Vec<Row>, Status> {
    // Nothing found is an empty value at the version asked for. An empty value that was written at
    // exactly that version looks the same, in this interface.
    let asked = op.version_of_nothing();
    let value = |reply| value_row(reply, asked);
    Ok(match message {
        Message::Get(key) => vec![value(client.get(waiting(key)).await?.into_inner())],
        Message::Del(key) => vec![value(client.del(waiting(key)).await?.into_inner())],
        Message::Trim(key) => vec![value(client.trim(waiting(key)).await?.into_inner())],
        Message::Put(pair) => vec![put_row(client.put(waiting(pair)).await?.into_inner())],
        Message::GetRange(range) => all(client.get_range(waiting(range)).await?, found_row).await?,
        Message::DelRange(range) => all(client.del_range(waiting(range)).await?, found_row).await?,
        Message::GetAll(keys) => {
            all(client.get_all(waiting(stream::iter(keys))).await?, value).await?
        }
        Message::DelAll(keys) => {
            all(client.del_all(waiting(stream::iter(keys))).await?, value).await?
        }
        Message::PutAll(pairs) => {
            all(client.put_all(waiting(stream::iter(pairs))).await?, put_row).await?
        }
    })
}

/// With a deadline, so that nothing is waited for in vain.
fn waiting<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

async fn all<T>(
    replies: Response<Streaming<T>>,
    row: impl Fn(T) -> Row,
) -> Result<Vec<Row>, Status> {
    let (mut replies, mut rows) = (replies.into_inner(), Vec::new());
    while let Some(reply) = replies.message().await? {
        rows.push(row(reply));
    }
    Ok(rows)
}

/// A row of a range, where what is not found has none.
fn found_row(reply: KeyValueVersionReply) -> Row {
    Row::new(reply.key.into(), Some((reply.val.into(), reply.ver)))
}

fn value_row(reply: KeyValueVersionReply, asked: i64) -> Row {
    if !reply.val.is_empty() || reply.ver != asked {
        return found_row(reply);
    }
    Row { nothing_at: Some(reply.ver), ..Row::new(reply.key.into(), None) }
}

fn put_row(reply: PutReply) -> Row {
    let PutReply { key, old_val, old_ver, ver } = reply;
    let old = KeyValueVersionReply { key, val: old_val, ver: old_ver };
    Row { new: Some(ver), ..value_row(old, 0) }
}

/// As gRPC writes it: `INVALID_ARGUMENT`.
fn code_name(status: &Status) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", status.code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}
