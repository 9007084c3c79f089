//! The worked examples of `docs/PROTOCOL.md` are what the codec says and reads.
//!
//! An example is a fenced block whose info string is `frame` and the example's name. Each line is
//! bytes in hexadecimal, then optionally a semicolon and a comment. The block is one whole frame.

use std::collections::BTreeMap;

use acervo::limits::{FRAME_HEADER_BYTES, HELLO_FRAME_BYTES_MAX};
use acervo::model::{
    Barrier, ClientId, ClusterId, Comparison, Condition, ContentId, Del, Effect, EncodedWrite,
    Facts, FileEntry, FileName, KeyChange, KeyInterval, LEASES_PER_REQUEST_MAX, LogEntry, NodeId,
    OpResult, PageNext, PageOf, PeerId, Previous, Put, PutAll, PutIf, ReadView, Relation,
    RequestId, Row, Test, Timestamp, Txn, TxnAnswer, TxnKeys, TxnOp, TxnResult, TxnRow, TxnVersion,
    Version, WriteAnswer, WriteOp,
};
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::*;
use acervo::wire::share::*;
use bytes::Bytes;

const DOCUMENT: &str = include_str!("../../docs/PROTOCOL.md");

/// What the server of the examples says when it greets, and what their client begins with.
const BEGUN: Timestamp = Timestamp(1_699_999_999_000_000);

fn written(timestamp: Timestamp, previous: Option<Previous>) -> Reply {
    Reply::WriteOk(WriteAnswer { timestamp, result: OpResult::Done, previous, txn: None })
}

/// What the document says each example is.
fn examples() -> Vec<(&'static str, Message)> {
    let request = |sequence, answered_below| RequestId {
        client: ClientId(0x0123_4567_89ab_cdef),
        sequence,
        answered_below,
        begun: BEGUN,
    };
    let put = WriteRequest {
        request: request(1, 1),
        op: WriteOp::Put(Put {
            key: Bytes::from_static(b"lua"),
            value: Bytes::from_static(b"cheia"),
            tells_previous: false,
        }),
    };
    let pair = |key: &'static str, value: &'static str| (Bytes::from(key), Bytes::from(value));
    let both = WriteOp::PutAll(PutAll { pairs: vec![pair("lua", "nova"), pair("sol", "")] });
    let del = WriteOp::Del(Del {
        key: Bytes::from_static(b"lua"),
        tells_previous: true,
        keeps_history: false,
    });
    let put_if = PutIf {
        key: Bytes::from_static(b"lua"),
        value: Bytes::from_static(b"cheia"),
        condition: Condition::Version(Timestamp(1_700_000_000_000_016)),
    };
    let write =
        |sequence, op| Request::Write(WriteRequest { request: request(sequence, sequence), op });
    let page = |of, view| Request::Page(PageRequest { of, view, rows_max: 2, keys_only: false });
    let as_of = |timestamp| ReadView::as_of(Timestamp(timestamp));
    let range = |from: &'static str| PageOf::Range { from: from.into(), to: "sol".into() };
    let created = |timestamp| Facts { created: timestamp, count: 1, lease: None };
    let row = |key: &'static str, value: &'static str, facts: Facts, timestamp| Row {
        key: key.into(),
        found: Some(Version { timestamp, value: value.into(), facts: Some(facts) }),
    };
    let stamp = Timestamp(1_700_000_000_000_000);
    let second = Facts { count: 2, ..created(stamp) };
    let lua = || Bytes::from_static(b"lua");
    let test = Test::Count(Relation::Equal, 0);
    let put_lua =
        TxnOp::Put { key: lua(), value: "cheia".into(), tells_previous: false, lease: None };
    let create = Txn {
        compare: vec![Comparison { keys: TxnKeys::One(lua()), test }],
        then: vec![put_lua],
        or_else: vec![TxnOp::Get { key: lua() }],
    };
    let range_read = TxnOp::Range {
        from: "a".into(),
        to: "sol".into(),
        rows_max: 2,
        keys_only: false,
        reverse: false,
        counts_only: false,
    };
    let listing = Txn { then: vec![range_read], ..Txn::default() };
    let made = Timestamp(stamp.0 + 80);
    let found = TxnVersion {
        timestamp: made,
        facts: Facts { created: made, count: 1, lease: None },
        value: Some("cheia".into()),
    };
    let rows = vec![TxnRow { key: lua(), found }];
    let listed = TxnResult::Range { rows, count: 1, has_more: false };
    let film = FileEntry {
        name: FileName::new("lua.mp4").expect("a name"),
        size: 3,
        content: ContentId(*blake3::hash(b"lua").as_bytes()),
    };
    let peer = PeerId(0x0123_4567_89ab_cdef);
    let address = "127.0.0.1:5000".parse().expect("an address");
    vec![
        (
            "hello-share",
            Message::Hello(Hello { protocol: PROTOCOL_VERSION, role: HelloRole::Share }),
        ),
        ("welcome-share", Message::ShareWelcome { protocol: PROTOCOL_VERSION, peer: Some(peer) }),
        (
            "join",
            Message::Registry {
                id: 1,
                body: RegistryRequest::Join {
                    peer,
                    address,
                    files: vec![film.clone()],
                    part: 0,
                    last: true,
                    secret: 1,
                    shares: true,
                },
            },
        ),
        ("join-ok", Message::RegistryReply { id: 1, body: RegistryReply::JoinOk }),
        (
            "search",
            Message::Registry { id: 2, body: RegistryRequest::Search { name: film.name.clone() } },
        ),
        (
            "sources",
            Message::RegistryReply {
                id: 2,
                body: RegistryReply::Sources(vec![Source {
                    peer,
                    address,
                    size: film.size,
                    content: film.content,
                }]),
            },
        ),
        ("find", Message::Share { id: 1, body: PeerRequest::Find { name: film.name.clone() } }),
        ("found", Message::ShareReply { id: 1, body: PeerReply::Found(film.clone()) }),
        (
            "chunk",
            Message::Share { id: 2, body: PeerRequest::Chunk { content: film.content, index: 0 } },
        ),
        ("chunk-ok", Message::ShareReply { id: 2, body: PeerReply::Chunk { length: 3 } }),
        ("hello", Message::Hello(Hello { protocol: PROTOCOL_VERSION, role: HelloRole::CLIENT })),
        (
            "welcome",
            Message::Welcome(Welcome {
                protocol: PROTOCOL_VERSION,
                cluster: ClusterId(0x7bf6_1c00_d1ce_f00d),
                node: NodeId(2),
                incarnation: 0x05ca_1e00_0000_0003,
                last_index: 41,
                term: 3,
                first_leader: None,
                applied_timestamp: BEGUN,
            }),
        ),
        (
            "watch",
            Message::Request {
                id: 9,
                body: Request::Watch(WatchRequest {
                    watch: 1,
                    range: KeyInterval { from: "lua".into(), to: "sol".into() },
                    after: Some(stamp),
                    tells_previous: false,
                    credit_bytes: 65_536,
                }),
            },
        ),
        ("watch-ok", Message::Reply { id: 9, body: Reply::WatchOk { after: stamp } }),
        (
            "events",
            Message::Watched {
                watch: 1,
                body: WatchFrame::Events {
                    changes: vec![KeyChange {
                        at: Timestamp(1_700_000_000_000_016),
                        key: "lua".into(),
                        written: None,
                        previous: None,
                    }],
                    up_to: Timestamp(1_700_000_000_000_016),
                    continues: false,
                },
            },
        ),
        (
            "reset",
            Message::Watched {
                watch: 1,
                body: WatchFrame::Reset {
                    rows: vec![Row {
                        key: "lua".into(),
                        found: Some(Version {
                            timestamp: Timestamp(1_700_000_000_000_024),
                            value: "nova".into(),
                            facts: Some(Facts {
                                created: Timestamp(1_700_000_000_000_024),
                                count: 1,
                                lease: None,
                            }),
                        }),
                    }],
                    at: Timestamp(1_700_000_000_000_032),
                    begins: true,
                    continues: false,
                },
            },
        ),
        ("watch-credit", Message::WatchCredit { watch: 1, bytes: 67 }),
        (
            "watch-progress",
            Message::WatchProgress { up_to: Timestamp(1_700_000_000_000_016), behind: vec![2] },
        ),
        ("put", Message::Request { id: 1, body: Request::Write(put.clone()) }),
        ("put-ok", Message::Reply { id: 1, body: written(stamp, None) }),
        (
            "get",
            Message::Request {
                id: 2,
                body: Request::Get(GetRequest {
                    key: Bytes::from_static(b"lua"),
                    read_at: ReadAt::Newest { seen: Some(stamp) },
                    session: Some(stamp),
                    linearizable: false,
                    facts: true,
                }),
            },
        ),
        (
            "get-ok",
            Message::Reply {
                id: 2,
                body: Reply::GetOk {
                    found: Some(Version {
                        timestamp: stamp,
                        value: Bytes::from_static(b"cheia"),
                        facts: Some(created(stamp)),
                    }),
                    as_of: Timestamp(stamp.0 + 5),
                },
            },
        ),
        ("get-null", Message::Reply { id: 3, body: Reply::GetOk { found: None, as_of: stamp } }),
        ("putall", Message::Request { id: 6, body: write(2, both) }),
        ("putall-ok", Message::Reply { id: 6, body: written(Timestamp(stamp.0 + 16), None) }),
        (
            "before",
            Message::Request {
                id: 7,
                body: page(
                    PageOf::Keys { keys: vec!["lua".into(), "sol".into()] },
                    PageView::Next(as_of(stamp.0 + 15)),
                ),
            },
        ),
        (
            "before-ok",
            Message::Reply {
                id: 7,
                body: Reply::PageOk {
                    rows: vec![
                        row("lua", "cheia", created(stamp), stamp),
                        Row { key: "sol".into(), found: None },
                    ],
                    view: as_of(stamp.0 + 15),
                    next: None,
                },
            },
        ),
        (
            "page",
            Message::Request {
                id: 8,
                body: page(
                    range("a"),
                    PageView::First {
                        at: None,
                        session: Some(Timestamp(stamp.0 + 16)),
                        linearizable: false,
                    },
                ),
            },
        ),
        (
            "page-ok",
            Message::Reply {
                id: 8,
                body: Reply::PageOk {
                    rows: vec![row("lua", "nova", second, Timestamp(stamp.0 + 16))],
                    view: as_of(stamp.0 + 32),
                    next: Some(PageNext::From("mar".into())),
                },
            },
        ),
        (
            "page-next",
            Message::Request {
                id: 9,
                body: page(range("mar"), PageView::Next(as_of(stamp.0 + 32))),
            },
        ),
        ("del", Message::Request { id: 10, body: write(3, del) }),
        (
            "del-ok",
            Message::Reply {
                id: 10,
                body: written(
                    Timestamp(stamp.0 + 48),
                    Some(Previous::Value {
                        timestamp: Timestamp(stamp.0 + 16),
                        facts: second,
                        value: Some(Bytes::from_static(b"nova")),
                    }),
                ),
            },
        ),
        ("put-if", Message::Request { id: 12, body: write(5, put_if.into()) }),
        (
            "put-if-failed",
            Message::Reply {
                id: 12,
                body: Reply::WriteOk(WriteAnswer {
                    timestamp: Timestamp(stamp.0 + 64),
                    result: OpResult::ConditionFailed { newest: None },
                    previous: Some(Previous::Absent),
                    txn: None,
                }),
            },
        ),
        ("txn", Message::Request { id: 13, body: write(6, create.into()) }),
        (
            "txn-ok",
            Message::Reply {
                id: 13,
                body: Reply::WriteOk(WriteAnswer {
                    timestamp: Timestamp(stamp.0 + 80),
                    result: OpResult::Txn { branches: 1 },
                    previous: None,
                    txn: Some(Box::new(TxnAnswer {
                        succeeded: true,
                        results: Some(vec![TxnResult::Put { previous: None }]),
                    })),
                }),
            },
        ),
        (
            "txn-read",
            Message::Request {
                id: 14,
                body: Request::Txn(TxnRequest {
                    txn: listing,
                    session: Some(Timestamp(stamp.0 + 80)),
                    linearizable: true,
                }),
            },
        ),
        (
            "txn-read-ok",
            Message::Reply {
                id: 14,
                body: Reply::TxnOk {
                    answer: TxnAnswer { succeeded: true, results: Some(vec![listed]) },
                    as_of: Timestamp(stamp.0 + 96),
                },
            },
        ),
        ("barrier", Message::Request { id: 11, body: write(4, WriteOp::Barrier(Barrier {})) }),
        (
            "error",
            Message::Reply {
                id: 4,
                body: Reply::Error(ErrorReply {
                    code: ErrorCode::Busy { retry_after_ms: 50 },
                    message: "busy".to_owned(),
                    effect: Effect::NotDone,
                }),
            },
        ),
        ("status", Message::Request { id: 5, body: Request::Status }),
        ("ping", Message::Ping { nonce: 7 }),
        (
            "hello-server",
            Message::Hello(Hello {
                protocol: PROTOCOL_VERSION,
                role: HelloRole::Server {
                    cluster: ClusterId(0x7bf6_1c00_d1ce_f00d),
                    node: NodeId(1),
                    incarnation: 0x05ca_1e00_0000_0001,
                    channel: Channel::Bulk,
                },
            }),
        ),
        (
            "forward",
            Message::Server(ServerMessage::Forward {
                id: 9,
                client: "127.0.0.1:50000".parse().expect("an address"),
                write: EncodedWrite::new(put.request, put.op),
            }),
        ),
        (
            "replication",
            Message::Server(ServerMessage::Raft(RaftMessage {
                from: NodeId(1),
                to: NodeId(2),
                term: 3,
                body: RaftBody::Append {
                    previous_index: 41,
                    previous_term: 3,
                    commit: 41,
                    entries: vec![LogEntry { term: 3, index: 42, data: Bytes::new() }],
                },
            })),
        ),
    ]
}

/// The frames written out in the document, by name.
fn documented() -> BTreeMap<&'static str, Vec<u8>> {
    let mut frames = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```frame ") else {
            continue;
        };
        let bytes = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .flat_map(|line| line.split(';').next().unwrap_or_default().split_whitespace())
            .map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: {byte}")))
            .collect();
        assert!(frames.insert(name, bytes).is_none(), "two examples are called {name}");
    }
    frames
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_documents_bytes_are_what_the_codec_writes() {
    let documented = documented();
    for (name, message) in examples() {
        let mut frame = Vec::new();
        codec::encode(&message, HELLO_FRAME_BYTES_MAX, &mut frame).expect("it fits");
        let shown = documented.get(name).unwrap_or_else(|| panic!("no {name}: {}", hex(&frame)));
        assert_eq!(hex(shown), hex(&frame), "{name}");
    }
}

#[test]
fn the_documents_bytes_are_what_the_codec_reads() {
    let mut documented = documented();
    for (name, message) in examples() {
        let shown = documented.remove(name).unwrap_or_else(|| panic!("no {name}"));
        let mut deframer = Deframer::new(HELLO_FRAME_BYTES_MAX);
        deframer.push(&shown);
        let body = deframer.next_frame().expect("a good length").expect("a whole frame");
        assert_eq!(body.len(), shown.len() - FRAME_HEADER_BYTES, "{name}");
        assert_eq!(codec::decode(body).expect("a message"), message, "{name}");
    }
    assert!(documented.is_empty(), "nobody checks {:?}", documented.keys());
}

#[test]
fn the_documents_limits_are_the_codes() {
    use acervo::limits;
    for (what, value) in [
        ("key", limits::KEY_BYTES_MAX),
        ("value", limits::VALUE_BYTES_MAX_DEFAULT),
        ("frame before the greeting", limits::HELLO_FRAME_BYTES_MAX),
        ("frame from a client", limits::client_frame_bytes_max(limits::VALUE_BYTES_MAX)),
        ("frame between servers", limits::SERVER_FRAME_BYTES_MAX),
        ("requests under way", limits::REQUESTS_PER_CONNECTION_MAX),
        ("requests under way in all", limits::REQUESTS_MAX),
        ("clients of a server", limits::CONNECTIONS_MAX),
        ("remembered replies", limits::SESSION_REPLIES_MAX),
        ("nesting", limits::MESSAGE_DEPTH_MAX),
        ("nesting of transactions", limits::TRANSACTION_DEPTH_MAX),
        ("transactions in one", limits::TRANSACTIONS_WITHIN_MAX),
        ("comparisons, reads and removed ranges of a transaction", limits::TRANSACTION_LOOKS_MAX),
        ("rows of a transaction", limits::TRANSACTION_ROWS_MAX),
        ("compared bytes of a transaction", limits::TRANSACTION_COMPARED_BYTES_MAX),
        ("bytes of an answer to a transaction", limits::TRANSACTION_RESULT_BYTES_MAX),
        ("keys of a write", limits::TRANSACTION_KEYS_MAX),
        ("bytes of a write", limits::TRANSACTION_BYTES_MAX),
        ("rows of a page", limits::PAGE_ROWS_MAX),
        ("bytes of a page", limits::PAGE_BYTES_MAX),
        ("previous value", limits::READ_SMALL_BYTES_MAX),
        ("leases of a group", limits::LEASES_MAX),
        ("keys of a lease", limits::LEASE_KEYS_MAX),
        ("leases of a question", LEASES_PER_REQUEST_MAX),
        ("removed ranges", limits::RANGE_REMOVALS_MAX),
        ("watch credit", limits::WATCH_CREDIT_BYTES_MAX as usize),
        ("file name", limits::FILE_NAME_BYTES_MAX),
        ("frame to or from a registry", limits::REGISTRY_FRAME_BYTES_MAX),
        ("frame between peers", limits::SHARE_FRAME_BYTES_MAX),
        ("request between peers", limits::SHARE_REQUEST_BYTES_MAX),
        ("peers of a registry", limits::REGISTRY_PEERS_MAX),
        ("peers from one IP address", limits::REGISTRY_PEERS_PER_ORIGIN_MAX),
        ("files of all peers from one IP address", limits::REGISTRY_FILES_PER_ORIGIN_MAX),
        ("files of a peer", limits::FILES_PER_PEER_MAX),
        ("files of all peers", limits::REGISTRY_FILES_MAX),
        ("sources in an answer", limits::SOURCES_PER_ANSWER_MAX),
        ("chunks that one peer has asked for and not got", limits::CHUNK_REQUESTS_PER_PEER_MAX),
        ("contents that one peer watches", limits::WATCHES_PER_PEER_MAX),
        ("connections to a peer", limits::SHARE_CONNECTIONS_MAX),
        ("hashes in one `HASHES_OK`", limits::HASHES_PER_FRAME_MAX),
        ("chunk", limits::CHUNK_BYTES),
    ] {
        let row = format!("| {what} | {value} |");
        assert!(DOCUMENT.contains(&row), "the table has no row {row:?}");
    }
}
