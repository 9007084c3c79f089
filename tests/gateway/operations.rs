//! The table of SPEC B, row by row, and the rules under it.

use acervo::gateway::interface::conditional::conditional_store_client::ConditionalStoreClient;
use acervo::gateway::interface::conditional::{PutIfReply, PutIfRequest};
use tonic::{Code, Response};

use crate::site::{Site, key, key_at, pair, put_row, range, row};

#[test]
fn put_tells_the_old_value_and_version_and_get_reads_as_of_any() {
    let site = Site::start();
    let first = site.put(pair("k", "one")).unwrap();
    assert_eq!(first, put_row("k", "", 0, first.ver));
    assert!(first.ver > 0);
    let second = site.put(pair("k", "")).unwrap();
    assert_eq!(second, put_row("k", "one", first.ver, second.ver));
    assert!(second.ver > first.ver);
    let third = site.put(pair("k", "three")).unwrap();
    assert_eq!(third, put_row("k", "", second.ver, third.ver), "an empty value is a value");

    assert_eq!(site.get(key("k")).unwrap(), row("k", "three", third.ver));
    for newest in [0, -1, i64::MIN, third.ver, third.ver + 1, i64::MAX] {
        assert_eq!(
            site.get(key_at("k", newest)).unwrap(),
            row("k", "three", third.ver),
            "{newest}"
        );
    }
    for as_of_second in [second.ver, third.ver - 1] {
        assert_eq!(site.get(key_at("k", as_of_second)).unwrap(), row("k", "", second.ver));
    }
    assert_eq!(site.get(key_at("k", first.ver)).unwrap(), row("k", "one", first.ver));
}

#[test]
fn not_found_gives_the_key_an_empty_value_and_the_version_asked_for() {
    let site = Site::start();
    assert_eq!(site.get(key("none")).unwrap(), row("none", "", 0));
    assert_eq!(site.get(key_at("none", 0)).unwrap(), row("none", "", 0));
    assert_eq!(site.get(key_at("none", 77)).unwrap(), row("none", "", 77));
    let ver = site.write("k", "v");
    assert_eq!(site.get(key_at("k", ver - 1)).unwrap(), row("k", "", ver - 1), "before it was");
    // A version given where it means nothing is ignored.
    assert_eq!(site.del(key_at("none", 77)).unwrap(), row("none", "", 0));
    assert_eq!(site.trim(key_at("none", 77)).unwrap(), row("none", "", 0));
    let keys = vec![key("none"), key_at("k", ver - 1)];
    assert_eq!(
        site.get_all(keys).unwrap(),
        [row("none", "", ver - 1), row("k", "", ver - 1)],
        "the greatest version given is asked of all"
    );
    assert_eq!(site.get_all(vec![key("none")]).unwrap(), [row("none", "", 0)]);
    assert_eq!(site.del_all(vec![key_at("none", 9)]).unwrap(), [row("none", "", 0)]);
    assert_eq!(site.get_range(range(key("x"), key("z"))).unwrap(), []);
}

#[test]
fn a_range_holds_both_ends_in_key_order_as_of_the_greater_version() {
    let site = Site::start();
    let a = site.write("a", "1");
    let c = site.write("c", "1");
    let b = site.write("b", "1");
    // Bytewise: upper case first, what is longer after its beginning, other alphabets last.
    let [upper, longer, accent] = ["B", "bb", "ç"].map(|key| site.write(key, "1"));
    let c2 = site.write("c", "2");

    let all = [
        row("B", "1", upper),
        row("a", "1", a),
        row("b", "1", b),
        row("bb", "1", longer),
        row("c", "2", c2),
        row("ç", "1", accent),
    ];
    assert_eq!(site.get_range(range(key("B"), key("ç"))).unwrap(), all);
    assert_eq!(site.get_range(range(key("a"), key("c"))).unwrap(), all[1..5]);
    assert_eq!(site.get_range(range(key("aa"), key("bz"))).unwrap(), all[2..4]);
    assert_eq!(site.get_range(range(key("b"), key("b"))).unwrap(), all[2..3]);
    assert_eq!(site.get_range(range(key("c"), key("a"))).unwrap(), [], "the wrong way round");

    let then = [row("a", "1", a), row("b", "1", b), row("c", "1", c)];
    for (fr, to) in [(b, 0), (0, b), (a, b), (b, a), (b, b)] {
        let asked = range(key_at("a", fr), key_at("z", to));
        assert_eq!(site.get_range(asked).unwrap(), then, "as of {fr} and {to}");
    }
    let asked = range(key_at("a", c), key("z"));
    assert_eq!(site.get_range(asked).unwrap(), [row("a", "1", a), row("c", "1", c)]);
}

#[test]
fn many_keys_are_read_in_the_order_asked_as_of_the_greatest_version() {
    let site = Site::start();
    let [a, b] = ["a", "b"].map(|key| site.write(key, "1"));
    let b2 = site.write("b", "2");
    let asked = vec![key("b"), key("none"), key("a"), key("b")];
    let (newest, none, first) = (row("b", "2", b2), row("none", "", 0), row("a", "1", a));
    assert_eq!(site.get_all(asked).unwrap(), [newest.clone(), none, first.clone(), newest]);
    let asked = vec![key_at("b", a), key_at("a", b), key("b")];
    assert_eq!(site.get_all(asked).unwrap(), [row("b", "1", b), first, row("b", "1", b)]);
    assert_eq!(site.get_all(vec![]).unwrap(), []);
}

#[test]
fn many_values_are_written_at_one_version() {
    let site = Site::start();
    let old = site.write("b", "old");
    let replies = site.put_all(vec![pair("c", "3"), pair("b", "2"), pair("a", "")]).unwrap();
    let ver = replies[0].ver;
    assert!(ver > old);
    assert_eq!(
        replies,
        [put_row("c", "", 0, ver), put_row("b", "old", old, ver), put_row("a", "", 0, ver)]
    );
    let written = [row("a", "", ver), row("b", "2", ver), row("c", "3", ver)];
    assert_eq!(site.get_range(range(key("a"), key("c"))).unwrap(), written);
    let before = range(key_at("a", ver - 1), key("c"));
    assert_eq!(site.get_range(before).unwrap(), [row("b", "old", old)], "all or none");

    let twice = site.put_all(vec![pair("t", "1"), pair("t", "2")]).unwrap();
    assert_eq!(twice.len(), 2, "one row a pair");
    assert_eq!(site.get(key("t")).unwrap(), row("t", "2", twice[0].ver), "the last one counts");
    assert_eq!(site.put_all(vec![]).unwrap(), []);
}

#[test]
fn del_removes_every_version_and_tells_the_newest() {
    let site = Site::start();
    let first = site.write("k", "1");
    let second = site.write("k", "2");
    assert_eq!(site.del(key_at("k", first)).unwrap(), row("k", "2", second));
    assert_eq!(site.get(key("k")).unwrap(), row("k", "", 0));
    assert_eq!(site.get(key_at("k", first)).unwrap(), row("k", "", first), "history too");
    assert_eq!(site.del(key("k")).unwrap(), row("k", "", 0));
    let again = site.put(pair("k", "3")).unwrap();
    assert_eq!(again, put_row("k", "", 0, again.ver));
}

#[test]
fn delrange_and_delall_tell_what_was_there() {
    let site = Site::start();
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|key| site.write(key, key));
    let removed = site.del_range(range(key_at("b", 1), key("c"))).unwrap();
    assert_eq!(removed, [row("b", "b", b), row("c", "c", c)], "both ends included");
    assert_eq!(site.del_range(range(key("b"), key("c"))).unwrap(), []);
    assert_eq!(site.del_range(range(key("z"), key("a"))).unwrap(), [], "the wrong way round");
    let removed = site.del_all(vec![key("e"), key("b"), key_at("a", 1)]).unwrap();
    assert_eq!(removed, [row("e", "e", e), row("b", "", 0), row("a", "a", a)]);
    assert_eq!(site.get_range(range(key("a"), key("z"))).unwrap(), [row("d", "d", d)]);
    assert_eq!(site.get(key_at("b", b)).unwrap(), row("b", "", b), "history too");
    assert_eq!(site.del_all(vec![]).unwrap(), []);
}

#[test]
fn trim_keeps_the_newest_and_tells_it() {
    let site = Site::start();
    let first = site.write("k", "1");
    let second = site.write("k", "2");
    assert_eq!(site.trim(key_at("k", first)).unwrap(), row("k", "2", second));
    assert_eq!(site.get(key("k")).unwrap(), row("k", "2", second));
    assert_eq!(site.get(key_at("k", first)).unwrap(), row("k", "", first), "trimmed away");
    assert_eq!(site.trim(key("k")).unwrap(), row("k", "2", second), "again changes nothing");
}

#[test]
fn any_text_is_a_key_and_a_value() {
    let site = Site::start();
    let texts = ["\0", "!", ",", ";", ":", "\n", "a\0b", "\u{10ffff}", "née 北京"];
    for text in texts {
        let ver = site.write(text, text);
        assert_eq!(site.get(key(text)).unwrap(), row(text, text, ver));
        assert_eq!(site.get_range(range(key(text), key(text))).unwrap(), [row(text, text, ver)]);
    }
}

#[test]
fn two_hundred_puts_on_one_key_make_two_hundred_rising_versions() {
    let site = Site::start();
    let replies = site.runtime.block_on(async {
        let puts: Vec<_> = (0..200)
            .map(|at| {
                let mut client = site.client.clone();
                let request = crate::site::waiting(pair("k", &at.to_string()));
                tokio::spawn(async move { (at, client.put(request).await) })
            })
            .collect();
        let mut replies = Vec::new();
        for put in puts {
            let (at, reply) = put.await.unwrap();
            replies.push((reply.unwrap().into_inner(), at.to_string()));
        }
        replies
    });
    let mut replies = replies;
    replies.sort_by_key(|(reply, _)| reply.ver);
    let mut before = row("k", "", 0);
    for (reply, val) in replies {
        assert!(reply.ver > before.ver, "{reply:?} after {before:?}");
        assert_eq!(reply, put_row("k", &before.val, before.ver, reply.ver), "each replaced one");
        before = row("k", &val, reply.ver);
        assert_eq!(site.get(key_at("k", before.ver)).unwrap(), before);
    }
    assert_eq!(site.get(key("k")).unwrap(), before);
}

#[test]
fn what_is_written_through_one_gateway_is_seen_at_once_through_another() {
    let site = Site::start();
    let other = crate::support::gateway::Gateway::start(&site.group.dir, &site.group.list(), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(crate::site::connect(&other));
    // A gateway each to write and to read, turn about.
    let read = |request| {
        let mut client = client.clone();
        runtime.block_on(async move { client.get(crate::site::waiting(request)).await })
    };
    for at in 0..100 {
        let (name, val) = (format!("k{}", at % 3), at.to_string());
        let ver = site.write(&name, &val);
        assert_eq!(read(key(&name)).unwrap().into_inner(), row(&name, &val, ver));
        assert_eq!(read(key_at(&name, ver)).unwrap().into_inner(), row(&name, &val, ver));
        if at % 10 == 9 {
            site.del(key(&name)).unwrap();
            assert_eq!(read(key(&name)).unwrap().into_inner(), row(&name, "", 0));
        }
    }
}

#[test]
fn a_write_under_a_condition_is_done_if_the_key_is_as_it_was_seen() {
    let site = Site::start();
    let url = site.gateway.url();
    let mut client = site.runtime.block_on(ConditionalStoreClient::connect(url)).unwrap();
    let mut put_if = |key: &str, val: &str, if_ver| {
        let request = PutIfRequest { key: key.into(), val: val.into(), if_ver };
        site.runtime.block_on(client.put_if(request)).map(Response::into_inner)
    };
    let first = put_if("k", "one", None).unwrap();
    assert_eq!(first, PutIfReply { stored: true, ver: first.ver, ..PutIfReply::default() });
    assert_eq!(site.get(key("k")).unwrap(), row("k", "one", first.ver));
    let found = |val: &str, ver| PutIfReply {
        found_val: val.into(),
        found_ver: ver,
        ..PutIfReply::default()
    };
    assert_eq!(put_if("k", "two", None).unwrap(), found("one", first.ver));
    assert_eq!(put_if("k", "two", Some(first.ver - 1)).unwrap(), found("one", first.ver));
    assert_eq!(site.get(key("k")).unwrap(), row("k", "one", first.ver), "nothing was written");
    let second = put_if("k", "two", Some(first.ver)).unwrap();
    assert!(second.stored && second.ver > first.ver, "{second:?}");
    site.del(key("k")).unwrap();
    assert_eq!(put_if("k", "three", Some(second.ver)).unwrap(), found("", 0));
    assert!(put_if("k", "three", None).unwrap().stored);
    for (key, if_ver) in [("", None), ("k", Some(0)), ("k", Some(-1))] {
        let refused = put_if(key, "v", if_ver).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{key} {if_ver:?}: {refused}");
    }
}
