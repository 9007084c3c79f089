//! etcd's JSON interface over HTTP/1.1, byte for byte as its clients write and read it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::{Group, PATIENCE};

/// A group, and a gateway before it that is asked in JSON.
struct JsonSite {
    group: Group,
    gateway: Gateway,
}

/// An answer's head, and what its body is read from.
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: BufReader<TcpStream>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (is, value) = line.split_once(':')?;
            is.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The next piece of a body that is sent in chunks; `None` at its end.
    fn chunk(&mut self) -> Option<String> {
        assert_eq!(self.header("transfer-encoding"), Some("chunked"));
        let mut line = String::new();
        self.body.read_line(&mut line).unwrap();
        let length =
            usize::from_str_radix(line.trim(), 16).expect("a chunk begins with its length");
        let mut chunk = vec![0; length + 2];
        self.body.read_exact(&mut chunk).unwrap();
        chunk.truncate(length);
        (length > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    /// The next line of a stream.
    fn line(&mut self) -> Value {
        let chunk = self.chunk().expect("the stream goes on");
        assert!(chunk.ends_with('\n'), "{chunk:?}");
        serde_json::from_str(&chunk).unwrap_or_else(|error| panic!("{chunk:?}: {error}"))
    }

    fn text(mut self) -> String {
        if self.header("transfer-encoding").is_some() {
            return std::iter::from_fn(|| self.chunk()).collect();
        }
        let length = self.header("content-length").expect("it has a length").parse().unwrap();
        let mut body = vec![0; length];
        self.body.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }

    fn json(self) -> (u16, Value) {
        let status = self.status;
        assert_eq!(self.header("content-type"), Some("application/json"));
        let text = self.text();
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}")))
    }
}

impl JsonSite {
    fn start() -> JsonSite {
        let group = Group::start(3, &["--console", "off"]);
        let gateway = Gateway::start(&group.dir, &group.list(), &[]);
        JsonSite { group, gateway }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let url = self.gateway.url();
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut body = BufReader::new(stream);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(body.read_line(&mut line).unwrap(), 0, "the answer has a head");
            match line.trim_end() {
                "" => break,
                line => headers.push(line.to_owned()),
            }
        }
        let status = headers[0].split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, headers, body }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask("POST", path, &body.to_string()).json()
    }

    fn done(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    fn refused(&self, path: &str, body: &str, status: u16, code: i32) -> String {
        let (told, answer) = self.ask("POST", path, body).json();
        assert_eq!((told, &answer["code"]), (status, &json!(code)), "{path} {body}: {answer}");
        assert_eq!(answer["error"], answer["message"]);
        answer["message"].as_str().unwrap().to_owned()
    }
}

fn number(value: &Value) -> i64 {
    value.as_str().expect("a number of 64 bits is a string").parse().unwrap()
}

#[test]
fn keys_are_in_base64_and_long_numbers_strings() {
    let site = JsonSite::start();
    let put = site.done("/v3/kv/put", &json!({"key": "Zm9v", "value": "YmFy"}));
    let revision = number(&put["header"]["revision"]);
    assert!(put["header"]["cluster_id"].is_string() && put.get("prev_kv").is_none(), "{put}");

    for path in ["/v3/kv/range", "/v3beta/kv/range"] {
        let got = site.done(path, &json!({"key": "Zm9v", "serializable": false}));
        assert_eq!(got["count"], "1");
        let expected = json!([{
            "key": "Zm9v", "value": "YmFy", "version": "1",
            "create_revision": revision.to_string(), "mod_revision": revision.to_string(),
        }]);
        assert_eq!(got["kvs"], expected);
    }
    // What has its default is left out.
    let none = site.done("/v3/kv/range", &json!({"key": "bm9uZQ=="}));
    assert_eq!(none.as_object().unwrap().keys().collect::<Vec<_>>(), ["header"]);

    // Numbers as numbers or as strings, names in either case, enums by name, unknown fields.
    for limit in [json!(1), json!("1")] {
        let asked = json!({
            "key": "AA==", "rangeEnd": "AA==", "limit": limit, "sort_order": "DESCEND",
            "sortTarget": "MOD", "keysOnly": true, "unknown": {"a": [1]},
        });
        let got = site.done("/v3/kv/range", &asked);
        assert_eq!(got["kvs"][0].get("value"), None, "{got}");
        assert_eq!(got["kvs"][0]["key"], "Zm9v");
    }
    let deleted = site.done("/v3/kv/deleterange", &json!({"key": "Zm9v", "prev_kv": true}));
    assert_eq!(
        (&deleted["deleted"], &deleted["prev_kvs"][0]["value"]),
        (&json!("1"), &json!("YmFy"))
    );
}

#[test]
fn a_leader_key_is_taken_and_kept_as_patroni_does() {
    let site = JsonSite::start();
    let lease = site.done("/v3/lease/grant", &json!({"TTL": 30}));
    assert_eq!(lease["TTL"], "30");
    let id = lease["ID"].clone();
    let take = |value: &str, lease: &Value| {
        json!({
            "compare": [{"key": "bGVhZGVy", "target": "CREATE", "create_revision": "0"}],
            "success": [{"requestPut": {"key": "bGVhZGVy", "value": value, "lease": lease}}],
            "failure": [{"request_range": {"key": "bGVhZGVy"}}],
        })
    };
    let taken = site.done("/v3/kv/txn", &take("YQ==", &id));
    assert_eq!(taken["succeeded"], true, "{taken}");
    let lost = site.done("/v3/kv/txn", &take("Yg==", &id));
    assert_eq!(lost.get("succeeded"), None, "{lost}");
    let held = &lost["responses"][0]["response_range"]["kvs"][0];
    assert_eq!((&held["value"], &held["lease"]), (&json!("YQ=="), &id));

    let mut kept = site.ask("POST", "/v3/lease/keepalive", &json!({"ID": id}).to_string());
    assert_eq!(kept.status, 200);
    let line = kept.line();
    assert_eq!((&line["result"]["ID"], &line["result"]["TTL"]), (&id, &json!("30")));
    let mut unknown = site.ask("POST", "/v3/lease/keepalive", r#"{"ID":"4711"}"#);
    let line = unknown.line();
    assert_eq!((&line["result"]["ID"], line["result"].get("TTL")), (&json!("4711"), None));

    for (path, shown) in [("/v3/lease/timetolive", "keys"), ("/v3/kv/lease/timetolive", "keys")] {
        let told = site.done(path, &json!({"ID": id, "keys": true}));
        assert_eq!(told[shown], json!(["bGVhZGVy"]), "{told}");
    }
    assert_eq!(site.done("/v3/lease/leases", &json!({}))["leases"], json!([{"ID": id}]));
    site.done("/v3/kv/lease/revoke", &json!({"ID": id}));
    assert_eq!(site.done("/v3/kv/range", &json!({"key": "bGVhZGVy"})).get("kvs"), None);
    let gone = site.refused("/v3/lease/revoke", &json!({"ID": id}).to_string(), 404, 5);
    assert_eq!(gone, "etcdserver: requested lease not found");
}

#[test]
fn errors_have_etcds_texts_and_an_http_status_by_their_code() {
    let site = JsonSite::start();
    let empty = "etcdserver: key is not provided";
    assert_eq!(site.refused("/v3/kv/put", "{}", 400, 3), empty);
    assert_eq!(site.refused("/v3/kv/put", "", 400, 3), empty, "nothing is no field");
    let future = json!({"key": "YQ==", "revision": (1_i64 << 52).to_string()}).to_string();
    assert_eq!(
        site.refused("/v3/kv/range", &future, 400, 11),
        "etcdserver: mvcc: required revision is a future revision"
    );
    let no_lease = json!({"key": "YQ==", "value": "YQ==", "lease": "4711"}).to_string();
    assert_eq!(
        site.refused("/v3/kv/put", &no_lease, 404, 5),
        "etcdserver: requested lease not found"
    );
    for (bad, says) in [
        ("{", "EOF"),
        ("[]", "expected"),
        (r#"{"key": 7}"#, "expected"),
        (r#"{"key": "%%"}"#, "base64"),
        (r#"{"key": "YQ=="} {"key": "YQ=="}"#, "more than one object"),
        (r#"{"key": "YQ==", "limit": "many"}"#, "invalid"),
        (&format!("{}{}", r#"{"success": ["#.repeat(300), "{}"), ""),
    ] {
        let said = site.refused("/v3/kv/range", bad, 400, 3);
        assert!(said.contains(says), "{bad}: {said}");
    }
    let objects = format!(r#"{{"compare": [{}]}}"#, vec!["{}"; 9_000].join(","));
    let said = site.refused("/v3/kv/txn", &objects, 400, 3);
    assert!(said.contains("objects"), "{said}");
    let long = json!({"key": "YQ==", "value": "A".repeat(5 << 20)}).to_string();
    assert_eq!(site.refused("/v3/kv/put", &long, 400, 3), "etcdserver: request is too large");

    let missing = site.ask("POST", "/v3/kv/nothing", "{}");
    assert_eq!((missing.status, &missing.text()[..]), (404, "Not Found\n"));
    let got = site.ask("GET", "/v3/kv/range", "");
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
    let posted = site.ask("POST", "/version", "{}");
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET")));
}

#[test]
fn version_and_health_are_told_to_who_asks() {
    let mut site = JsonSite::start();
    let (status, version) = site.ask("GET", "/version", "").json();
    assert_eq!(status, 200);
    for name in ["etcdserver", "etcdcluster"] {
        let numbers = version[name].as_str().unwrap().split('.').map(str::parse::<u32>);
        assert_eq!(numbers.filter(Result::is_ok).count(), 3, "{version}");
    }
    let healthy = json!({"health": "true", "reason": ""});
    assert_eq!(site.ask("GET", "/health", "").json(), (200, healthy));
    for at in 0..3 {
        site.group.kill(at);
    }
    let (status, health) = site.ask("GET", "/health", "").json();
    assert_eq!((status, &health["health"]), (503, &json!("false")), "{health}");
}

#[test]
fn a_connection_may_ask_again_and_a_slow_text_ends() {
    let site = JsonSite::start();
    let url = site.gateway.url();
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..20 {
        stream.write_all(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut piece = [0; 512];
            let bytes = stream.read(&mut piece).unwrap();
            assert_ne!(bytes, 0, "the connection is kept");
            answer.extend(&piece[..bytes]);
        }
    }
    // A text that is announced and never comes has the time of every request.
    let head = b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head).unwrap();
    stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(15))).unwrap();
    let mut answer = [0; 512];
    let bytes = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..bytes]);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
}

/// Nobody was charged for some hundred kilobytes of it on each connection.
#[test]
fn a_head_that_does_not_end_is_not_taken_for_long() {
    let site = JsonSite::start();
    let url = site.gateway.url();
    let connect = || {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let ask = |stream: &mut TcpStream, padding: usize| {
        let padding = "a".repeat(padding);
        let head = format!("GET /version HTTP/1.1\r\nHost: a\r\nX-Padding: {padding}\r\n\r\n");
        // Where the gateway has gone in the middle of it, what it has said tells.
        let _ = stream.write_all(head.as_bytes());
        let (mut answer, mut piece) = (Vec::new(), [0; 512]);
        while !answer.ends_with(b"}") {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(bytes) => answer.extend(&piece[..bytes]),
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let mut many_heads = connect();
    for _ in 0..10 {
        assert!(ask(&mut many_heads, 6_000).contains("200 OK"), "each of them is short");
    }
    assert!(!ask(&mut connect(), 100_000).contains("200 OK"));
    assert!(!ask(&mut many_heads, 100_000).contains("200 OK"), "nor after others");
}
