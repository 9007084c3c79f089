//! What is refused, and with which status.

use acervo::limits::{KEY_BYTES_MAX, TRANSACTION_KEYS_MAX};
use futures_util::stream;
use tonic::{Code, Status};

use crate::site::{Site, key, key_at, pair, range, row, waiting};

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, word: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(word), "{status}");
}

#[test]
fn a_key_that_cannot_be_is_an_invalid_argument() {
    let site = Site::start();
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for (wrong, word) in [("", "empty"), (&*long, "4096")] {
        let code = Code::InvalidArgument;
        refused(site.get(key(wrong)), code, word);
        refused(site.put(pair(wrong, "v")), code, word);
        refused(site.del(key(wrong)), code, word);
        refused(site.trim(key_at(wrong, 1)), code, word);
        refused(site.get_range(range(key(wrong), key("z"))), code, word);
        refused(site.get_range(range(key("a"), key(wrong))), code, word);
        refused(site.del_range(range(key("a"), key(wrong))), code, word);
        refused(site.get_all(vec![key("a"), key(wrong)]), code, word);
        refused(site.del_all(vec![key("a"), key(wrong)]), code, word);
        refused(site.put_all(vec![pair("a", "v"), pair(wrong, "v")]), code, word);
    }
    assert_eq!(site.get(key("a")).unwrap(), row("a", "", 0), "all or none");
    let no_ends = acervo::gateway::interface::KeyRange::default();
    refused(site.get_range(no_ends.clone()), Code::InvalidArgument, "empty");
    refused(site.del_range(no_ends), Code::InvalidArgument, "empty");
    let longest = "k".repeat(KEY_BYTES_MAX);
    let ver = site.write(&longest, "v");
    assert_eq!(site.get(key(&longest)).unwrap(), row(&longest, "v", ver));
}

#[test]
fn values_of_a_mebibyte_travel_and_longer_ones_are_refused() {
    let site = Site::start();
    let big = "é".repeat(512 * 1024);
    assert_eq!(big.len(), 1024 * 1024);
    let ver = site.write("a", &big);
    assert_eq!(site.get(key("a")).unwrap(), row("a", &big, ver));
    let replaced = site.put(pair("a", "small")).unwrap();
    assert_eq!((replaced.old_val, replaced.old_ver), (big.clone(), ver));

    let vers = site.put_all(["b", "c", "d"].map(|key| pair(key, &big)).to_vec()).unwrap();
    let rows = site.get_range(range(key("b"), key("d"))).unwrap();
    assert_eq!(rows, ["b", "c", "d"].map(|key| row(key, &big, vers[0].ver)));
    let removed = site.del_range(range(key("b"), key("d"))).unwrap();
    assert_eq!(removed, rows);

    refused(site.put(pair("k", &"v".repeat(big.len() + 1))), Code::InvalidArgument, "1048576");
    assert_eq!(site.get(key("k")).unwrap(), row("k", "", 0));
}

#[test]
fn messages_over_four_mebibytes_are_refused() {
    let site = Site::start();
    let huge = "v".repeat(4 * 1024 * 1024);
    refused(site.put(pair("k", &huge)), Code::InvalidArgument, "4194304");
    let pairs = vec![pair("a", "v"), pair("k", &huge)];
    refused(site.put_all(pairs), Code::InvalidArgument, "4194304");
    assert_eq!(site.get_all(vec![key("a"), key("k")]).unwrap(), [row("a", "", 0), row("k", "", 0)]);
}

#[test]
fn more_than_one_transaction_holds_is_refused_whole_with_the_limit_named() {
    let site = Site::start();
    let most = TRANSACTION_KEYS_MAX.to_string();
    let keys = |count: usize| (0..count).map(|at| key(&format!("{at}"))).collect::<Vec<_>>();
    refused(site.del_all(keys(TRANSACTION_KEYS_MAX + 1)), Code::InvalidArgument, &most);
    refused(site.get_all(keys(TRANSACTION_KEYS_MAX + 1)), Code::InvalidArgument, &most);
    let big = "v".repeat(1024 * 1024);
    let pairs: Vec<_> = (0..9).map(|at| pair(&format!("{at}"), &big)).collect();
    refused(site.put_all(pairs), Code::InvalidArgument, "8392704");
    assert_eq!(site.get_range(range(key("0"), key("9"))).unwrap(), []);
}

#[test]
fn what_is_not_text_fails_reads_in_plain_words_and_writes_not_at_all() {
    let site = Site::start();
    let native = site.group.client();
    native.put("bytes", b"a\xffb").unwrap();
    native.put(b"key\xff", "v").unwrap();
    let code = Code::FailedPrecondition;
    refused(site.get(key("bytes")), code, "\"bytes\" is not UTF-8");
    refused(site.get_all(vec![key("bytes")]), code, "bytes");
    refused(site.get_range(range(key("k"), key("l"))), code, "key\\xff");
    // The write is done: it must not look failed.
    let replaced = site.put(pair("bytes", "text")).unwrap();
    assert_eq!(replaced.old_val, "a\u{fffd}b");
    assert_eq!(site.get(key("bytes")).unwrap().val, "text");
    let removed = site.del_range(range(key("k"), key("l"))).unwrap();
    assert_eq!((&*removed[0].key, &*removed[0].val), ("key\u{fffd}", "v"));
    // The native client has seen nothing of what the gateway did.
    assert_eq!(native.get_linearizable(b"key\xff").unwrap().found, None);
}

#[test]
fn a_request_that_is_no_message_is_an_error_and_the_connection_goes_on() {
    let site = Site::start();
    // Field 1 of length 1 that is not UTF-8; a length beyond the end; a field of no type.
    for garbage in [&b"\x0a\x01\xff"[..], b"\x0a\x7f", b"\x0f"] {
        for path in ["Get", "Put", "GetRange"] {
            let status = site.runtime.block_on(raw::call(&site, path, garbage)).unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{path} {garbage:?}: {status}");
        }
    }
    let status = site.runtime.block_on(raw::call(&site, "Find", b"")).unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let requests = waiting(stream::iter([key("a")]));
    let answer = site.runtime.block_on(site.client.clone().get_all(requests));
    assert!(answer.is_ok(), "{answer:?}");
}

/// Calls with whatever bytes for a message.
mod raw {
    use bytes::{Buf, BufMut, Bytes};
    use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::{Request, Status};

    use crate::site::{Site, channel};

    pub async fn call(site: &Site, method: &str, message: &'static [u8]) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(channel(&site.gateway).await);
        client.ready().await.unwrap();
        let path = format!("/project.KeyValueStore/{method}").parse::<PathAndQuery>().unwrap();
        let message = Request::new(Bytes::from_static(message));
        let answer = client.server_streaming(message, path, Raw).await?;
        answer.into_inner().message().await.map(drop)
    }

    struct Raw;

    impl Codec for Raw {
        type Encode = Bytes;
        type Decode = Bytes;
        type Encoder = Raw;
        type Decoder = Raw;

        fn encoder(&mut self) -> Raw {
            Raw
        }

        fn decoder(&mut self) -> Raw {
            Raw
        }
    }

    impl Encoder for Raw {
        type Item = Bytes;
        type Error = Status;

        fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
            out.put(item);
            Ok(())
        }
    }

    impl Decoder for Raw {
        type Item = Bytes;
        type Error = Status;

        fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
            Ok(Some(from.copy_to_bytes(from.remaining())))
        }
    }
}
