//! What the wire promises whatever arrives: any split of a stream gives the same messages, and
//! garbage gives an error, never a panic and never an allocation for what was only announced.
//!
//! Random cases print their seed when they fail; `ACERVO_SEED` replays it.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};

use acervo::limits::{FRAME_BUFFER_BYTES_MIN, FRAME_HEADER_BYTES, SERVER_FRAME_BYTES_MAX};
use acervo::model::{
    Barrier, ChunkHash, ClientId, ClusterId, Compact, Comparison, Condition, ContentId, Del,
    DelAll, DelRange, Effect, EncodedWrite, Facts, FileEntry, FileName, History, KeyChange,
    KeyInterval, LeaseAnswer, LeaseGrant, LeaseId, LeaseName, LeaseQuestion, LeaseRevoke,
    LeaseShown, LogEntry, NodeId, OpResult, PageNext, PageOf, PeerId, Previous, Put, PutAll, PutIf,
    PutSequential, ReadView, Relation, RequestId, Row, SetHistory, SnapshotId, Test, Timestamp,
    Trim, Txn, TxnAnswer, TxnKeys, TxnOp, TxnResult, TxnRow, TxnVersion, Version, WriteAnswer,
    WriteOp,
};
use acervo::wire::codec::{self, CodecError};
use acervo::wire::frame::{Deframer, FrameError};
use acervo::wire::message::*;
use acervo::wire::share::*;
use acervo::wire::watched::EncodedWatchFrame;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> TestCaseResult) {
    let seed = match std::env::var("ACERVO_SEED") {
        Ok(text) => text.parse().expect("ACERVO_SEED is a number"),
        Err(_) => std::hash::RandomState::new().build_hasher().finish(),
    };
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let mut runner = TestRunner::new_with_rng(
        Config { failure_persistence: None, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes),
    );
    if let Err(failure) = runner.run(&strategy, test) {
        panic!("{failure}\nreplay with ACERVO_SEED={seed}");
    }
}

// ---- every message there is ---------------------------------------------------------------

fn blob() -> impl Strategy<Value = Bytes> {
    prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 200..400)].prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<u64>().prop_map(NodeId)
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
        .prop_flat_map(|ip| any::<u16>().prop_map(move |port| SocketAddr::new(ip, port)))
}

fn previous() -> impl Strategy<Value = Previous> {
    prop_oneof![
        Just(Previous::Absent),
        (timestamp(), facts(), option::of(blob()))
            .prop_map(|(timestamp, facts, value)| { Previous::Value { timestamp, facts, value } }),
    ]
}

fn comparison() -> impl Strategy<Value = Comparison> {
    let keys = prop_oneof![
        blob().prop_map(TxnKeys::One),
        (blob(), blob()).prop_map(|(from, to)| TxnKeys::Range { from, to }),
    ];
    let relation = prop_oneof![
        Just(Relation::Equal),
        Just(Relation::NotEqual),
        Just(Relation::Less),
        Just(Relation::Greater),
    ];
    let test = (relation, timestamp(), any::<u64>(), blob(), 0..5usize).prop_map(
        |(relation, timestamp, number, value, which)| match which {
            0 => Test::Version(relation, timestamp),
            1 => Test::Created(relation, timestamp),
            2 => Test::Count(relation, number),
            3 => Test::Lease(relation, number),
            _ => Test::Value(relation, value),
        },
    );
    (keys, test).prop_map(|(keys, test)| Comparison { keys, test })
}

/// Any that can be decoded, whether it can be carried out or not.
fn txn() -> impl Strategy<Value = Txn> {
    let leaf = (blob(), blob(), any::<u32>(), any::<[bool; 3]>(), 0..5usize).prop_map(
        |(key, other, number, [first, second, third], which)| match which {
            0 => TxnOp::Get { key },
            1 => TxnOp::Range {
                from: key,
                to: other,
                rows_max: number,
                keys_only: first,
                reverse: second,
                counts_only: third,
            },
            2 => TxnOp::Put {
                key,
                value: other,
                tells_previous: first,
                lease: third.then_some(LeaseId(7)),
            },
            3 => TxnOp::Del { key, keeps_history: first, tells_previous: second },
            _ => TxnOp::DelRange {
                from: key,
                to: other,
                keeps_history: first,
                tells_previous: second,
            },
        },
    );
    let txn = |op: BoxedStrategy<TxnOp>| {
        (vec(comparison(), 0..3), vec(op.clone(), 0..3), vec(op, 0..3))
            .prop_map(|(compare, then, or_else)| Txn { compare, then, or_else })
    };
    let ops =
        leaf.prop_recursive(3, 12, 3, move |op| txn(op).prop_map(|txn| TxnOp::Txn(Box::new(txn))));
    (vec(comparison(), 0..3), vec(ops.clone(), 0..3), vec(ops, 0..3))
        .prop_map(|(compare, then, or_else)| Txn { compare, then, or_else })
}

fn txn_answer() -> impl Strategy<Value = TxnAnswer> {
    let facts = (timestamp(), any::<u64>(), option::of(any::<u64>().prop_map(LeaseId)))
        .prop_map(|(created, count, lease)| Facts { created, count, lease });
    let found = (timestamp(), facts, option::of(blob()))
        .prop_map(|(timestamp, facts, value)| TxnVersion { timestamp, facts, value });
    let found = found.boxed();
    let rows = vec((blob(), found.clone()).prop_map(|(key, found)| TxnRow { key, found }), 0..4);
    let leaf = (option::of(found), rows, any::<u64>(), any::<bool>(), 0..5usize).prop_map(
        |(found, rows, count, has_more, which)| match which {
            0 => TxnResult::Get(found),
            1 => TxnResult::Range { rows, count, has_more },
            2 => TxnResult::Put { previous: found },
            3 => TxnResult::Del { previous: found },
            _ => TxnResult::DelRange { removed: count, rows },
        },
    );
    let answer = |result: BoxedStrategy<TxnResult>| {
        (any::<bool>(), option::of(vec(result, 0..3)))
            .prop_map(|(succeeded, results)| TxnAnswer { succeeded, results })
    };
    let results =
        leaf.prop_recursive(3, 12, 3, move |result| answer(result).prop_map(TxnResult::Txn));
    (any::<bool>(), option::of(vec(results, 0..3)))
        .prop_map(|(succeeded, results)| TxnAnswer { succeeded, results })
}

fn op_result() -> impl Strategy<Value = OpResult> {
    prop_oneof![
        Just(OpResult::Done),
        option::of(timestamp()).prop_map(|newest| OpResult::ConditionFailed { newest }),
        any::<u64>().prop_map(|branches| OpResult::Txn { branches }),
        Just(OpResult::TooLong),
    ]
}

fn write_request() -> impl Strategy<Value = WriteRequest> {
    let op = prop_oneof![
        (blob(), blob()).prop_map(|(key, value)| WriteOp::Put(Put {
            key,
            value,
            tells_previous: true
        })),
        vec((blob(), blob()), 0..5).prop_map(|pairs| WriteOp::PutAll(PutAll { pairs })),
        (blob(), any::<bool>()).prop_map(|(key, keeps_history)| {
            WriteOp::Del(Del { key, tells_previous: true, keeps_history })
        }),
        (vec(blob(), 0..5), any::<bool>())
            .prop_map(|(keys, keeps_history)| WriteOp::DelAll(DelAll { keys, keeps_history })),
        (blob(), blob(), any::<bool>()).prop_map(|(from, to, keeps_history)| {
            WriteOp::DelRange(DelRange { from, to, keeps_history })
        }),
        blob().prop_map(|key| WriteOp::Trim(Trim { key, tells_previous: true })),
        Just(WriteOp::Barrier(Barrier {})),
        (blob(), blob(), option::of(timestamp())).prop_map(|(key, value, version)| {
            let condition = version.map_or(Condition::Absent, Condition::Version);
            WriteOp::PutIf(PutIf { key, value, condition })
        }),
        any::<u64>().prop_filter_map("a history", |number| {
            history(number).map(|history| WriteOp::SetHistory(SetHistory { history }))
        }),
        (blob(), blob()).prop_map(|(prefix, value)| PutSequential { prefix, value }.into()),
        timestamp().prop_map(|version| Compact { version }.into()),
        txn().prop_map(WriteOp::Txn),
        (option::of(lease_id()), any::<u64>())
            .prop_map(|(id, ttl_ms)| LeaseGrant { id, ttl_ms }.into()),
        (lease_id(), prop::option::of(any::<u32>())).prop_map(|(id, keys_max)| LeaseRevoke {
            id,
            keys_max
        }
        .into()),
    ];
    (any::<[u64; 3]>(), timestamp(), op).prop_map(
        |([client, sequence, answered_below], begun, op)| WriteRequest {
            request: RequestId { client: ClientId(client), sequence, answered_below, begun },
            op,
        },
    )
}

fn lease_id() -> impl Strategy<Value = LeaseId> {
    any::<u64>().prop_map(LeaseId)
}

fn lease_question() -> impl Strategy<Value = LeaseQuestion> {
    prop_oneof![
        vec(lease_id(), 0..5).prop_map(LeaseQuestion::KeepAlive),
        lease_id().prop_map(LeaseQuestion::Show),
        option::of(lease_id()).prop_map(|after| LeaseQuestion::List { after }),
    ]
}

fn lease_answer() -> impl Strategy<Value = LeaseAnswer> {
    let lease = (lease_id(), timestamp(), any::<[u64; 2]>()).prop_map(
        |(id, granted, [ttl_ms, left_ms])| {
            let name = LeaseName { id, granted };
            LeaseShown { name, ttl_ms, left_ms }
        },
    );
    prop_oneof![
        vec(any::<Option<u64>>(), 0..5).prop_map(LeaseAnswer::KeptAlive),
        (vec(lease, 0..5), any::<bool>())
            .prop_map(|(leases, has_more)| LeaseAnswer::Leases { leases, has_more }),
    ]
}

fn page_request() -> impl Strategy<Value = PageRequest> {
    let of = prop_oneof![
        (blob(), blob()).prop_map(|(from, to)| PageOf::Range { from, to }),
        (blob(), blob()).prop_map(|(from, to)| PageOf::RangeReverse { from, to }),
        vec(blob(), 0..5).prop_map(|keys| PageOf::Keys { keys }),
        blob().prop_map(|key| PageOf::Versions { key }),
        (any::<u64>(), blob()).prop_map(|(id, from)| PageOf::Lease { lease: LeaseId(id), from }),
    ];
    let view = prop_oneof![
        (option::of(timestamp()), option::of(timestamp()), any::<bool>())
            .prop_map(|(at, session, linearizable)| PageView::First { at, session, linearizable }),
        read_view().prop_map(PageView::Next),
    ];
    (of, view, any::<bool>(), any::<u32>())
        .prop_map(|(of, view, keys_only, rows_max)| PageRequest { of, view, rows_max, keys_only })
}

fn facts() -> impl Strategy<Value = Facts> {
    let lease = option::of(any::<u64>().prop_map(LeaseId));
    (timestamp(), any::<u64>(), lease).prop_map(|(created, count, lease)| Facts {
        created,
        count,
        lease,
    })
}

fn version() -> impl Strategy<Value = Version> {
    (timestamp(), blob(), option::of(facts())).prop_map(|(timestamp, value, facts)| Version {
        timestamp,
        value,
        facts,
    })
}

fn read_view() -> impl Strategy<Value = ReadView> {
    (timestamp(), timestamp()).prop_map(|(at, removals_up_to)| ReadView { at, removals_up_to })
}

fn request() -> impl Strategy<Value = Request> {
    let read_at = prop_oneof![
        option::of(timestamp()).prop_map(|seen| ReadAt::Newest { seen }),
        timestamp().prop_map(ReadAt::Version),
    ];
    prop_oneof![
        write_request().prop_map(Request::Write),
        (blob(), read_at, option::of(timestamp()), any::<(bool, bool)>()).prop_map(
            |(key, read_at, session, (linearizable, facts))| {
                Request::Get(GetRequest { key, read_at, session, linearizable, facts })
            }
        ),
        page_request().prop_map(Request::Page),
        (txn(), option::of(timestamp()), any::<bool>()).prop_map(|(txn, session, linearizable)| {
            Request::Txn(TxnRequest { txn, session, linearizable })
        }),
        (any::<u64>(), key_interval(), option::of(timestamp()), any::<bool>(), any::<u32>())
            .prop_map(|(watch, range, after, tells_previous, credit_bytes)| {
                Request::Watch(WatchRequest { watch, range, after, tells_previous, credit_bytes })
            }),
        any::<u64>().prop_map(|watch| Request::Unwatch { watch }),
        Just(Request::Status),
        lease_question().prop_map(Request::Leases),
    ]
}

fn key_interval() -> impl Strategy<Value = KeyInterval> {
    (blob(), blob()).prop_map(|(from, to)| KeyInterval { from, to })
}

fn row() -> impl Strategy<Value = Row> {
    (blob(), option::of(version())).prop_map(|(key, found)| Row { key, found })
}

fn watch_frame() -> impl Strategy<Value = WatchFrame> {
    let change = (timestamp(), blob(), option::of(version()), option::of(previous()))
        .prop_map(|(at, key, written, previous)| KeyChange { at, key, written, previous });
    prop_oneof![
        (vec(change, 0..5), timestamp(), any::<bool>()).prop_map(|(changes, up_to, continues)| {
            WatchFrame::Events { changes, up_to, continues }
        }),
        (vec(row(), 0..5), timestamp(), any::<(bool, bool)>()).prop_map(
            |(rows, at, (begins, continues))| WatchFrame::Reset { rows, at, begins, continues }
        ),
    ]
}

fn watch_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), watch_frame()).prop_map(|(watch, body)| Message::Watched { watch, body }),
        (timestamp(), vec(any::<u64>(), 0..5))
            .prop_map(|(up_to, behind)| Message::WatchProgress { up_to, behind }),
        any::<(u64, u32)>().prop_map(|(watch, bytes)| Message::WatchCredit { watch, bytes }),
    ]
}

fn page_ok() -> impl Strategy<Value = Reply> {
    let next = prop_oneof![
        blob().prop_map(PageNext::From),
        blob().prop_map(PageNext::To),
        any::<u32>().prop_map(PageNext::Skip),
        timestamp().prop_map(PageNext::At),
    ];
    (vec(row(), 0..5), read_view(), option::of(next)).prop_map(|(rows, view, next)| Reply::PageOk {
        rows,
        view,
        next,
    })
}

fn status() -> impl Strategy<Value = ServerStatus> {
    let role = prop_oneof![Just(Role::Leader), Just(Role::Follower), Just(Role::Candidate)];
    (text(), any::<[u64; 8]>(), role, option::of(text()), vec(text(), 0..4), any::<[u32; 2]>())
        .prop_map(|(address, numbers, role, leader, in_sync, connections)| ServerStatus {
            version: address.clone(),
            warnings: in_sync.clone(),
            address,
            node: NodeId(numbers[0]),
            cluster: ClusterId(numbers[1]),
            role,
            leader,
            term: numbers[2],
            commit: numbers[3],
            applied: numbers[4],
            applied_timestamp: Timestamp(numbers[5] as i64),
            last_index: numbers[5],
            full_disks: in_sync.clone(),
            in_sync,
            client_connections: connections[0],
            server_connections: connections[1],
            uptime_ms: numbers[6],
            longest_stall_us: numbers[7],
            disk_bytes: numbers[7].checked_sub(1),
            store_rows: numbers[6],
            leases: numbers[7] as u32,
            level: numbers[6] as u32,
            history: history(numbers[5]),
        })
}

fn reply() -> impl Strategy<Value = Reply> {
    let code = prop_oneof![
        Just(ErrorCode::NoMajority),
        Just(ErrorCode::Unconfirmed),
        any::<u32>().prop_map(|retry_after_ms| ErrorCode::Busy { retry_after_ms }),
        Just(ErrorCode::ShuttingDown),
        Just(ErrorCode::Invalid),
        Just(ErrorCode::StaleRequest),
        timestamp().prop_map(|begin_anew_at| ErrorCode::UnknownSession { begin_anew_at }),
        Just(ErrorCode::Expired),
        timestamp().prop_map(|version| ErrorCode::Compacted { version }),
        Just(ErrorCode::Internal),
    ];
    let effect = prop_oneof![Just(Effect::NotDone), Just(Effect::MayBeDone), Just(Effect::Done)];
    prop_oneof![
        (timestamp(), op_result(), option::of(previous()), option::of(txn_answer())).prop_map(
            |(timestamp, result, previous, txn)| {
                let txn = txn.map(Box::new);
                Reply::WriteOk(WriteAnswer { timestamp, result, previous, txn })
            }
        ),
        (txn_answer(), timestamp()).prop_map(|(answer, as_of)| Reply::TxnOk { answer, as_of }),
        page_ok(),
        (option::of(version()), timestamp())
            .prop_map(|(found, as_of)| Reply::GetOk { found, as_of }),
        (option::of(timestamp()), timestamp()).prop_map(|(timestamp, applied)| {
            Reply::TryOtherServerOrLater { timestamp, applied }
        }),
        timestamp().prop_map(|after| Reply::WatchOk { after }),
        Just(Reply::UnwatchOk {}),
        status().prop_map(|status| Reply::StatusOk(Box::new(status))),
        lease_answer().prop_map(Reply::LeasesOk),
        (timestamp(), 0..4usize).prop_map(|(timestamp, result)| {
            use OpResult::*;
            let result = [LeaseExists, TooManyLeases, NoLease, LeaseFull][result];
            Reply::WriteOk(WriteAnswer { timestamp, result, previous: None, txn: None })
        }),
        (code, text(), effect).prop_map(|(code, message, effect)| {
            Reply::Error(ErrorReply { code, message, effect })
        }),
    ]
}

fn raft_body() -> impl Strategy<Value = RaftBody> {
    let entry = (any::<[u64; 2]>(), blob()).prop_map(|([term, index], data)| LogEntry {
        term,
        index,
        data,
    });
    prop_oneof![
        (any::<[u64; 3]>(), vec(entry, 0..5)).prop_map(
            |([previous_index, previous_term, commit], entries)| RaftBody::Append {
                previous_index,
                previous_term,
                commit,
                entries
            }
        ),
        (any::<[u64; 2]>(), any::<Option<(u64, u64)>>(), any::<Option<u64>>()).prop_map(
            |([index, commit], reject_hint, snapshot_wanted)| RaftBody::AppendReply {
                index,
                commit,
                reject_hint,
                snapshot_wanted
            }
        ),
        (any::<u64>(), blob())
            .prop_map(|(commit, context)| RaftBody::Heartbeat { commit, context }),
        (any::<u64>(), blob())
            .prop_map(|(commit, context)| RaftBody::HeartbeatReply { commit, context }),
        (any::<[bool; 2]>(), any::<[u64; 4]>()).prop_map(
            |([pre, transfer], [last_index, last_term, commit, commit_term])| RaftBody::Vote {
                pre,
                last_index,
                last_term,
                commit,
                commit_term,
                transfer
            }
        ),
        (any::<[bool; 2]>(), any::<[u64; 2]>()).prop_map(
            |([pre, reject], [commit, commit_term])| RaftBody::VoteReply {
                pre,
                reject,
                commit,
                commit_term
            }
        ),
        Just(RaftBody::TimeoutNow),
    ]
}

fn history(number: u64) -> Option<History> {
    Some(match number % 4 {
        0 => return None,
        1 => History::All,
        2 => History::For { age_us: number },
        _ => History::Versions { count: number as u32 },
    })
}

fn peer_message() -> impl Strategy<Value = ServerMessage> {
    prop_oneof![
        (node(), node(), any::<u64>(), raft_body()).prop_map(|(from, to, term, body)| {
            ServerMessage::Raft(RaftMessage { from, to, term, body })
        }),
        (any::<u64>(), address(), write_request()).prop_map(|(id, client, write)| {
            let write = EncodedWrite::new(write.request, write.op);
            ServerMessage::Forward { id, client, write }
        }),
        (any::<u64>(), option::of(reply()))
            .prop_map(|(id, reply)| ServerMessage::Forwarded { id, reply }),
        any::<u64>().prop_map(|id| ServerMessage::ReadIndex { id }),
        (any::<u64>(), lease_question())
            .prop_map(|(id, question)| ServerMessage::Leases { id, question }),
        (any::<u64>(), lease_answer())
            .prop_map(|(id, answer)| ServerMessage::LeasesOk { id, answer }),
        any::<[u64; 2]>().prop_map(|[id, index]| ServerMessage::ReadIndexOk { id, index }),
        any::<[u64; 2]>().prop_map(|[index, hash]| ServerMessage::StateHash { index, hash }),
        any::<[u64; 2]>().prop_map(|[id, index]| ServerMessage::StateHashAt { id, index }),
        (any::<u64>(), any::<Option<u64>>())
            .prop_map(|(id, hash)| ServerMessage::StateHashOk { id, hash }),
        any::<[u64; 2]>().prop_map(|[id, index]| ServerMessage::LogTerm { id, index }),
        (any::<u64>(), any::<Option<u64>>())
            .prop_map(|(id, term)| ServerMessage::LogTermOk { id, term }),
        (any::<i64>(), any::<u32>())
            .prop_map(|(wall_us, level)| ServerMessage::About { wall_us, level }),
        any::<bool>().prop_map(|full| ServerMessage::Disk { full }),
        (any::<[u64; 5]>(), any::<Option<u64>>(), any::<i64>()).prop_map(
            |([id, leader_term, index, term, hash], key, at)| {
                let snapshot = SnapshotId { leader_term, index, term };
                ServerMessage::Snapshot { id, key, snapshot, timestamp: Timestamp(at), hash }
            },
        ),
        (any::<[u64; 2]>(), blob()).prop_map(|([id, sequence], data)| {
            ServerMessage::SnapshotChunk { id, sequence, data }
        }),
        any::<[u64; 2]>().prop_map(|[id, chunks]| ServerMessage::SnapshotEnd { id, chunks }),
        (any::<[u64; 3]>(), 0..4usize).prop_map(|([id, stored, key], outcome)| {
            use SnapshotOutcome::*;
            let outcome = [Receiving, Complete, Failed, Key(key)][outcome];
            ServerMessage::SnapshotAnswer { id, stored, outcome }
        }),
    ]
}

// ---- the share's --------------------------------------------------------------------------

fn file_name() -> impl Strategy<Value = FileName> {
    // Not every character sequence is a name; most of these are.
    "[a-zA-Z0-9é🎬_\\-. ]{0,40}[a-z0-9]".prop_filter_map("a name", |name| FileName::new(&name).ok())
}

fn content() -> impl Strategy<Value = ContentId> {
    any::<[u8; 32]>().prop_map(ContentId)
}

fn file_entry() -> impl Strategy<Value = FileEntry> {
    (file_name(), any::<u64>(), content()).prop_map(|(name, size, content)| FileEntry {
        name,
        size,
        content,
    })
}

fn peer_id() -> impl Strategy<Value = PeerId> {
    any::<u64>().prop_map(PeerId)
}

fn registry_request() -> impl Strategy<Value = RegistryRequest> {
    use RegistryRequest::*;
    let ends = (any::<bool>(), any::<u64>(), any::<bool>());
    let join = (peer_id(), address(), vec(file_entry(), 0..5), any::<u32>(), ends);
    prop_oneof![
        join.prop_map(|(peer, address, files, part, (last, secret, shares))| Join {
            peer,
            address,
            files,
            part,
            last,
            secret,
            shares
        }),
        file_name().prop_map(|name| Search { name }),
        (vec(file_entry(), 0..5), vec(file_name(), 0..5))
            .prop_map(|(added, removed)| Update { added, removed }),
        content().prop_map(|content| SearchContent { content }),
        (content(), any::<u64>()).prop_map(|(content, size)| Fetching { content, size }),
        content().prop_map(|content| Fetched { content }),
        Just(KeepAlive),
        Just(Leave),
        option::of(peer_id()).prop_map(|after| Peers { after }),
        option::of(file_name()).prop_map(|after| Files { after }),
    ]
}

fn registry_reply() -> impl Strategy<Value = RegistryReply> {
    let source = (peer_id(), address(), any::<u64>(), content())
        .prop_map(|(peer, address, size, content)| Source { peer, address, size, content });
    let peer = (peer_id(), address(), any::<[u64; 3]>()).prop_map(
        |(peer, address, [files, bytes, silent_ms])| PeerSummary {
            peer,
            address,
            files,
            bytes,
            silent_ms,
        },
    );
    let file = (file_entry(), any::<u32>()).prop_map(|(file, peers)| FileSummary { file, peers });
    prop_oneof![
        Just(RegistryReply::JoinOk),
        vec(source, 0..5).prop_map(RegistryReply::Sources),
        Just(RegistryReply::UpdateOk),
        Just(RegistryReply::AliveOk),
        Just(RegistryReply::LeaveOk),
        (vec(peer, 0..5), any::<bool>())
            .prop_map(|(peers, more)| RegistryReply::Peers { peers, more }),
        (vec(file, 0..5), any::<bool>())
            .prop_map(|(files, more)| RegistryReply::Files { files, more }),
        Just(RegistryReply::NotJoined),
        any::<u32>().prop_map(|retry_after_ms| RegistryReply::IdTaken { retry_after_ms }),
        (text(), option::of(any::<u32>()))
            .prop_map(|(message, retry_after_ms)| RegistryReply::Error { message, retry_after_ms }),
    ]
}

fn peer_request() -> impl Strategy<Value = PeerRequest> {
    use PeerRequest::*;
    prop_oneof![
        file_name().prop_map(|name| Find { name }),
        (content(), any::<u64>()).prop_map(|(content, first)| Hashes { content, first }),
        content().prop_map(|content| Watch { content }),
        (content(), any::<u64>()).prop_map(|(content, index)| Chunk { content, index }),
        any::<u64>().prop_map(|request| Cancel { request }),
        (content(), any::<u64>()).prop_map(|(content, index)| Doubt { content, index }),
    ]
}

fn peer_reply() -> impl Strategy<Value = PeerReply> {
    let code = prop_oneof![
        Just(DenialCode::NotFound),
        Just(DenialCode::Busy),
        Just(DenialCode::Changed),
        Just(DenialCode::Unreadable),
        Just(DenialCode::Invalid),
    ];
    prop_oneof![
        file_entry().prop_map(PeerReply::Found),
        vec(any::<[u8; 32]>().prop_map(ChunkHash), 0..5)
            .prop_map(|hashes| PeerReply::Hashes { hashes }),
        vec(any::<(u64, u64)>(), 0..5).prop_map(|runs| PeerReply::Have { runs }),
        any::<u32>().prop_map(|length| PeerReply::Chunk { length }),
        (code, text()).prop_map(|(code, message)| PeerReply::Denied { code, message }),
    ]
}

fn share_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), registry_request()).prop_map(|(id, body)| Message::Registry { id, body }),
        (any::<u64>(), registry_reply()).prop_map(|(id, body)| Message::RegistryReply { id, body }),
        (any::<u64>(), peer_request()).prop_map(|(id, body)| Message::Share { id, body }),
        (any::<u64>(), peer_reply()).prop_map(|(id, body)| Message::ShareReply { id, body }),
    ]
}

fn cluster() -> impl Strategy<Value = ClusterId> {
    any::<u64>().prop_map(ClusterId)
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![
        option::of(cluster()).prop_map(|cluster| HelloRole::Client { cluster }),
        Just(HelloRole::Share),
        (cluster(), node(), any::<u64>(), 0..2usize).prop_map(
            |(cluster, node, incarnation, channel)| {
                let channel = Channel::ALL[channel];
                HelloRole::Server { cluster, node, incarnation, channel }
            }
        ),
    ];
    prop_oneof![
        (any::<u32>(), role).prop_map(|(protocol, role)| Message::Hello(Hello { protocol, role })),
        (any::<u32>(), cluster(), node(), any::<[u64; 3]>(), option::of(node()), timestamp())
            .prop_map(|(protocol, cluster, node, numbers, first_leader, applied_timestamp)| {
                let [incarnation, last_index, term] = numbers;
                Message::Welcome(Welcome {
                    protocol,
                    cluster,
                    node,
                    incarnation,
                    last_index,
                    term,
                    first_leader,
                    applied_timestamp,
                })
            }),
        (any::<u32>(), option::of(any::<u64>())).prop_map(|(protocol, peer)| {
            Message::ShareWelcome { protocol, peer: peer.map(PeerId) }
        }),
        text().prop_map(|reason| Message::Refused { reason }),
        (any::<u64>(), request()).prop_map(|(id, body)| Message::Request { id, body }),
        (any::<u64>(), reply()).prop_map(|(id, body)| Message::Reply { id, body }),
        any::<u64>().prop_map(|nonce| Message::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Message::Pong { nonce }),
        watch_message(),
        peer_message().prop_map(Message::Server),
        share_message(),
        share_message(),
        share_message(),
    ]
}

// ---- messages and frames ------------------------------------------------------------------

fn encoded(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, SERVER_FRAME_BYTES_MAX, &mut frame).unwrap();
    frame
}

fn body(message: &Message) -> Vec<u8> {
    encoded(message)[FRAME_HEADER_BYTES..].to_vec()
}

#[test]
fn every_message_survives_its_encoding() {
    check(message(), |message| {
        let frame = encoded(&message);
        let (header, body) = frame.split_first_chunk().unwrap();
        prop_assert_eq!(u32::from_be_bytes(*header) as usize, body.len());
        prop_assert_eq!(codec::decode(body).unwrap(), message);
        Ok(())
    });
}

/// What is encoded once for many watches is in the frame of each what it is where it is encoded for
/// one, also with values that are not copied.
#[test]
fn a_frame_of_a_watch_is_the_same_whether_or_not_others_are_shown_it() {
    let long = prop_oneof![9 => 0..100usize, 3 => 4_000..5_000usize, 1 => 15_000..40_000usize];
    check((watch_frame(), vec(any::<u64>(), 1..4), long), |(mut shown, watches, long)| {
        if let WatchFrame::Events { changes, .. } = &mut shown
            && let Some(version) = changes.iter_mut().find_map(|change| change.written.as_mut())
        {
            version.value = vec![7; long].into();
        }
        let once = EncodedWatchFrame::new(shown.clone()).unwrap();
        prop_assert_eq!(once.credit_bytes(), shown.credit_bytes());
        for watch in watches.into_iter().chain([0, 127, 128, u64::MAX]) {
            let mut frame = b"before".to_vec();
            let rest = once.put(watch, &mut frame).unwrap();
            rest.iter().for_each(|piece| frame.extend_from_slice(piece));
            let body = shown.clone();
            prop_assert_eq!(&frame[6..], encoded(&Message::Watched { watch, body }));
        }
        Ok(())
    });
}

#[test]
fn any_split_of_a_stream_gives_the_same_messages() {
    let stream_and_cuts = (vec(message(), 1..12), vec(any::<prop::sample::Index>(), 0..40));
    check(stream_and_cuts, |(messages, cuts)| {
        let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();

        let mut deframer = Deframer::new(SERVER_FRAME_BYTES_MAX);
        let mut received = Vec::new();
        for piece in cuts.windows(2) {
            deframer.push(&stream[piece[0]..piece[1]]);
            while let Some(body) = deframer.next_frame().unwrap() {
                received.push(codec::decode(body).unwrap());
            }
        }
        prop_assert_eq!(received, messages);
        prop_assert_eq!(deframer.buffered_bytes(), 0);
        Ok(())
    });
}

/// Long enough to fill the deframer's buffer many times over, so that frames begin anywhere in it.
#[test]
fn any_split_of_a_long_stream_gives_the_same_frames() {
    let length = prop_oneof![4 => 1..200usize, 2 => 1..6_000usize, 1 => 1..200_000usize];
    let steps = vec(prop_oneof![1..50usize, 1..5_000usize, 1..100_000usize], 1..20);
    check((vec(length, 1..60), steps), |(lengths, steps)| {
        let bodies: Vec<Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(n, length)| (0..*length).map(|i| (i * 7 + n) as u8).collect())
            .collect();
        let mut stream = Vec::new();
        for body in &bodies {
            stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
            stream.extend_from_slice(body);
        }
        let mut deframer = Deframer::new(200_000);
        let mut expected = bodies.iter();
        let mut rest = &stream[..];
        // As an event loop does it: read what there is room for, then take every whole frame.
        for step in steps.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let spare = deframer.spare();
            let read = spare.len().min(*step).min(rest.len());
            spare[..read].copy_from_slice(&rest[..read]);
            deframer.commit(read);
            rest = &rest[read..];
            while let Some(body) = deframer.next_frame().unwrap() {
                prop_assert!(Some(body) == expected.next().map(Vec::as_slice));
            }
        }
        prop_assert!(expected.next().is_none());
        Ok(())
    });
}

#[test]
fn a_stream_fed_a_byte_at_a_time_gives_the_same_messages() {
    check(vec(message(), 1..4), |messages| {
        let mut deframer = Deframer::new(SERVER_FRAME_BYTES_MAX);
        let mut received = Vec::new();
        for byte in messages.iter().flat_map(encoded) {
            deframer.push(&[byte]);
            if let Some(body) = deframer.next_frame().unwrap() {
                received.push(codec::decode(body).unwrap());
            }
        }
        prop_assert_eq!(received, messages);
        Ok(())
    });
}

#[test]
fn frames_left_unread_are_still_whole() {
    check((vec(message(), 1..12), 1..600usize), |(messages, step)| {
        let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
        let mut deframer = Deframer::new(SERVER_FRAME_BYTES_MAX);
        let mut received = Vec::new();
        // At most one frame is taken a push, so that several wait and the buffer is moved.
        for piece in stream.chunks(step) {
            deframer.push(piece);
            if let Some(body) = deframer.next_frame().unwrap() {
                received.push(codec::decode(body).unwrap());
            }
        }
        while let Some(body) = deframer.next_frame().unwrap() {
            received.push(codec::decode(body).unwrap());
        }
        prop_assert_eq!(received, messages);
        Ok(())
    });
}

// ---- garbage ------------------------------------------------------------------------------

#[test]
fn garbage_never_panics_and_never_costs_more_than_it_brought() {
    check((vec(vec(any::<u8>(), 0..300), 0..20), 0..2000usize), |(pieces, cap)| {
        let mut deframer = Deframer::new(cap);
        let mut sent = 0;
        'stream: for piece in pieces {
            sent += piece.len();
            deframer.push(&piece);
            loop {
                match deframer.next_frame() {
                    Ok(Some(body)) => drop(codec::decode(body)),
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(deframer.next_frame(), Err(error));
                        break 'stream;
                    }
                }
            }
            prop_assert!(deframer.memory_bytes() <= (2 * sent).max(FRAME_BUFFER_BYTES_MIN));
        }
        Ok(())
    });
}

#[test]
fn a_damaged_message_never_panics() {
    let damage = vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    check((message(), damage, any::<prop::sample::Index>()), |(message, damage, cut)| {
        let mut bytes = body(&message);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        drop(codec::decode(&bytes));
        drop(codec::decode(&bytes[..cut.index(bytes.len())]));
        Ok(())
    });
}

#[test]
fn a_truncated_message_is_an_error() {
    check((message(), any::<prop::sample::Index>()), |(message, cut)| {
        let bytes = body(&message);
        prop_assert!(codec::decode(&bytes[..cut.index(bytes.len())]).is_err());
        Ok(())
    });
}

#[test]
fn a_length_over_the_cap_is_rejected_before_anything_is_allocated_for_it() {
    check((1..=SERVER_FRAME_BYTES_MAX, any::<u32>()), |(cap, announced)| {
        let mut deframer = Deframer::new(cap);
        deframer.push(&announced.to_be_bytes());
        let announced = announced as usize;
        match deframer.next_frame() {
            Err(FrameError::Empty) => prop_assert_eq!(announced, 0),
            Err(error) => {
                prop_assert!(announced > cap);
                prop_assert_eq!(error, FrameError::TooLong { announced, cap });
            }
            Ok(frame) => {
                prop_assert!(frame.is_none() && (1..=cap).contains(&announced));
            }
        }
        deframer.spare();
        prop_assert!(deframer.memory_bytes() <= FRAME_BUFFER_BYTES_MIN);
        Ok(())
    });
}

#[test]
fn anything_behind_a_message_is_an_error() {
    check((message(), vec(any::<u8>(), 1..50)), |(message, tail)| {
        let mut bytes = body(&message);
        bytes.extend(tail);
        prop_assert!(matches!(codec::decode(&bytes), Err(CodecError::TrailingBytes)));
        Ok(())
    });
}

/// `{"name": [` with the array's length still to come.
fn opening(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x81, 0xa0 | name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

#[test]
fn deep_nesting_is_an_error_even_on_a_small_stack() {
    let array = |depth| vec![0x91; depth];
    let map = |depth: usize| [0x81, 0xa1, b'x'].repeat(depth);
    let mut bodies = vec![array(100_000), map(100_000)];
    // Where a number, a string, bytes or a structure is expected.
    for prefix in ["PING", "REFUSED", "HELLO", "REQUEST", "SERVER"] {
        bodies.push([opening(prefix), array(100_000)].concat());
        bodies.push([opening(prefix), map(100_000)].concat());
    }
    // In place of a log entry's bytes, at the deepest spot a message has.
    let entries = [
        &opening("SERVER")[..],
        &opening("RAFT"),
        &[0x94, 1, 1, 1],
        &opening("REPLICATION"),
        &[0x94, 0, 0, 0, 0x91, 0x93, 1, 1],
    ]
    .concat();
    bodies.push([entries.clone(), array(100_000)].concat());
    bodies.push([entries, map(100_000)].concat());
    // A structure sent as a map may hold fields nobody knows, which are skipped, nesting and all.
    let unknown_field = [&opening("HELLO")[..], &[0x81, 0xa1, b'?']].concat();
    bodies.push([unknown_field, array(100_000)].concat());

    let thread = std::thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(move || bodies.iter().map(|body| codec::decode(body).is_err()).collect::<Vec<_>>());
    let refused = thread.unwrap().join().unwrap();
    assert!(refused.iter().all(|refused| *refused), "{refused:?}");
}

#[test]
fn announced_sizes_without_the_bytes_are_errors() {
    const HUGE: [u8; 4] = [0x80, 0, 0, 0];
    let entries = [
        &opening("SERVER")[..],
        &opening("RAFT"),
        &[0x94, 1, 1, 1],
        &opening("REPLICATION"),
        &[0x94, 0, 0, 0],
    ]
    .concat();
    let in_sync_of_strings = opening("REFUSED");
    for (prefix, marker) in [
        (entries.clone(), 0xdd),                              // 2³¹ entries
        ([&entries[..], &[0x91, 0x93, 1, 1]].concat(), 0xc6), // an entry of 2³¹ bytes
        ([&entries[..], &[0x91, 0x93, 1, 1]].concat(), 0xdd), // the same as an array
        ([&in_sync_of_strings[..], &[0x91]].concat(), 0xdb),  // a string of 2³¹ bytes
        (Vec::new(), 0xdf),                                   // a map of 2³¹ variants
    ] {
        let body = [&prefix[..], &[marker], &HUGE].concat();
        let error = codec::decode(&body).unwrap_err();
        assert!(matches!(error, CodecError::Decode(_) | CodecError::TooMany(_)), "{body:x?}");
    }
}

/// Counts what is read from it.
struct Counting<'a> {
    rest: &'a [u8],
    read_bytes: usize,
}

impl std::io::Read for Counting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = std::io::Read::read(&mut self.rest, out)?;
        self.read_bytes += count;
        Ok(count)
    }
}

/// A list of `count` times `element` where a message has one, and how much of the message stands
/// before it.
fn lists(count: u32, element: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let request = |body: &[u8]| [&opening("REQUEST")[..1 + 8], &[0x92, 7], body].concat();
    let write = |op: &str| {
        let op = [&opening(op)[..], &[0x91]].concat();
        request(&[&opening("WRITE")[..], &[0x93, 0x94, 1, 1, 1, 1], &op].concat())
    };
    let keys = [&opening("PAGE")[..], &[0x96], &opening("KEYS"), &[0x91]].concat();
    let append = [
        &opening("SERVER")[..],
        &opening("RAFT"),
        &[0x94, 1, 1, 1],
        &opening("REPLICATION"),
        &[0x94, 0, 0, 0],
    ]
    .concat();
    let rows = [&opening("REPLY")[..], &[0x92, 7], &opening("PAGE_OK"), &[0x94]].concat();
    let watched = |frame: &str, fields: u8| {
        let frame = [&opening(frame)[..], &[0x90 + fields]].concat();
        [&opening("WATCHED")[..], &[0x92, 7], &frame].concat()
    };
    let heads = [
        ("PUT_ALL", write("PUT_ALL")),
        ("DEL_ALL", write("DEL_ALL")),
        ("KEYS", request(&keys)),
        ("REPLICATION", append),
        ("PAGE_OK", rows),
        ("EVENTS", watched("EVENTS", 3)),
        ("RESET", watched("RESET", 4)),
    ];
    let list = [&[0xdd][..], &count.to_be_bytes(), &element.repeat(count as usize)].concat();
    heads.map(|(name, head)| (name, [head, list.clone()].concat())).into()
}

/// Two million empty pairs fit a frame. They are refused for their number, which stands before
/// them.
#[test]
fn a_list_that_is_too_long_is_refused_before_anything_of_it_is_read() {
    let empty_pair = [0x92, 0xc4, 0, 0xc4, 0];
    for (name, body) in lists(1_900_000, &empty_pair) {
        let mut reader = Counting { rest: &body, read_bytes: 0 };
        let error = rmp_serde::from_read::<_, Message>(&mut reader).unwrap_err().to_string();
        assert!(error.contains("a list announces 1900000 elements"), "{name}: {error}");
        assert!(reader.read_bytes < 64, "{name}: {} bytes were read", reader.read_bytes);
        match codec::decode(&body) {
            Err(CodecError::TooMany(reason)) => assert!(reason.len() < 100, "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
        let id = matches!(name, "PUT_ALL" | "DEL_ALL" | "KEYS").then_some(7);
        assert_eq!(codec::request_id(&body), id, "{name}");
    }
}

#[test]
fn a_name_that_is_a_path_is_an_error_wherever_it_stands() {
    let good = FileName::new("aXb").unwrap();
    let file = FileEntry { name: good.clone(), size: 1, content: ContentId([1; 32]) };
    let peer = PeerId(1);
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let files = vec![file.clone()];
    let messages = [
        Message::Registry {
            id: 1,
            body: RegistryRequest::Join {
                peer,
                address,
                files,
                part: 0,
                last: true,
                secret: 1,
                shares: true,
            },
        },
        Message::Registry { id: 1, body: RegistryRequest::Search { name: good.clone() } },
        Message::Registry { id: 1, body: RegistryRequest::Files { after: Some(good.clone()) } },
        Message::Share { id: 1, body: PeerRequest::Find { name: good } },
        Message::ShareReply { id: 1, body: PeerReply::Found(file) },
    ];
    for message in messages {
        let mut bytes = body(&message);
        assert!(codec::decode(&bytes).is_ok());
        let place = bytes.windows(3).position(|name| name == b"aXb").unwrap();
        for bad in [b'/', b'\\', 0, b'\n', 0x1b, 0x7f] {
            bytes[place + 1] = bad;
            assert!(codec::decode(&bytes).is_err(), "{message:?} with {bad:#x}");
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_an_error() {
    let valid = body(&Message::Refused { reason: "ab".into() });
    assert!(codec::decode(&valid).is_ok());
    let mut invalid = valid;
    *invalid.last_mut().unwrap() = 0xff;
    assert!(matches!(codec::decode(&invalid), Err(CodecError::Decode(_))));
}

#[test]
fn unknown_variants_and_missing_or_extra_fields_are_errors() {
    assert!(codec::decode(&[opening("NONSENSE"), vec![0x91, 1]].concat()).is_err());
    assert!(codec::decode(&[opening("PING"), vec![0x90]].concat()).is_err());
    assert!(codec::decode(&[opening("PING"), vec![0x92, 1, 1]].concat()).is_err());
    assert!(codec::decode(&[]).is_err());
}

#[test]
fn bytes_travel_as_bin() {
    let entry = LogEntry { term: 1, index: 1, data: Bytes::from(vec![0xab; 300]) };
    let append =
        RaftBody::Append { previous_index: 0, previous_term: 0, commit: 0, entries: vec![entry] };
    let message = Message::Server(ServerMessage::Raft(RaftMessage {
        from: NodeId(1),
        to: NodeId(2),
        term: 1,
        body: append,
    }));
    let body = body(&message);
    let bin16 = [&[0xc5, 0x01, 0x2c][..], &[0xab; 300]].concat();
    assert!(body.windows(bin16.len()).any(|window| window == bin16));
}

#[test]
fn a_message_over_the_cap_is_not_encoded_and_leaves_no_trace() {
    check((message(), vec(any::<u8>(), 0..20)), |(message, before)| {
        let length = body(&message).len();
        let mut out = before.clone();
        match codec::encode(&message, length - 1, &mut out) {
            Err(CodecError::TooLong { bytes, cap }) => {
                prop_assert_eq!((bytes, cap), (length, length - 1));
            }
            other => prop_assert!(false, "{:?}", other),
        }
        prop_assert_eq!(&out, &before);
        codec::encode(&message, length, &mut out).unwrap();
        prop_assert_eq!(out.len(), before.len() + FRAME_HEADER_BYTES + length);
        Ok(())
    });
}
