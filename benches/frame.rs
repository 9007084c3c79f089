//! What a message costs on its way into and out of a frame.

use acervo::limits::{VALUE_BYTES_MAX_DEFAULT, client_frame_bytes_max};
use acervo::model::{ClientId, Put, RequestId, Timestamp, WriteOp};
use acervo::wire::codec;
use acervo::wire::frame::Deframer;
use acervo::wire::message::{Message, Request, WriteRequest};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const CAP: usize = client_frame_bytes_max(VALUE_BYTES_MAX_DEFAULT);

fn put(value_bytes: usize) -> Message {
    Message::Request {
        id: 1_000,
        body: Request::Write(WriteRequest {
            request: RequestId {
                client: ClientId(0x1234_5678_9abc_def0),
                sequence: 1_000,
                answered_below: 990,
                begun: Timestamp::ZERO,
            },
            op: WriteOp::Put(Put {
                key: Bytes::from_static(b"a key of usual length"),
                value: Bytes::from(vec![b'v'; value_bytes]),
                tells_previous: false,
            }),
        }),
    }
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for value_bytes in [100, 64 * 1024] {
        let message = put(value_bytes);
        let mut frame = Vec::new();
        codec::encode(&message, CAP, &mut frame).expect("the message fits a frame");
        group.throughput(Throughput::Bytes(frame.len() as u64));

        let mut out = Vec::with_capacity(frame.len());
        group.bench_function(BenchmarkId::new("encode_put", value_bytes), |b| {
            b.iter(|| {
                out.clear();
                codec::encode(black_box(&message), CAP, &mut out)
            });
        });

        let mut deframer = Deframer::new(CAP);
        group.bench_function(BenchmarkId::new("deframe_and_decode_put", value_bytes), |b| {
            b.iter(|| {
                deframer.push(black_box(&frame));
                deframer.next_frame().ok().flatten().map(codec::decode)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
