//! What is read is what was printed, and what cannot be read is told with its place.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::client::KeyRange;
use crate::limits::{KEY_BYTES_MAX, TRANSACTION_DEPTH_MAX};
use crate::model::{Comparison, LeaseId, Relation, Test, Timestamp, TxnKeys, TxnOp};
use crate::text::is_printable;

fn read_text(text: &str) -> Result<Txn, String> {
    read(&mut text.as_bytes()).map_err(|error| error.to_string())
}

fn json_of(txn: &Txn) -> String {
    serde_json::to_string(&object_of(txn)).unwrap()
}

fn one(key: &'static str, test: Test) -> Comparison {
    Comparison { keys: TxnKeys::One(Bytes::from(key)), test }
}

fn range(range: KeyRange, test: Test) -> Comparison {
    let (from, to) = range.ends();
    Comparison { keys: TxnKeys::Range { from, to }, test }
}

fn put(key: &'static str, value: &'static str) -> TxnOp {
    TxnOp::Put { key: key.into(), value: value.into(), tells_previous: false, lease: None }
}

fn get(key: &'static str) -> TxnOp {
    TxnOp::Get { key: key.into() }
}

/// Every kind of line, as it is printed.
const WHOLE: &str = "\
if
  version of account:ana = 1795224871548738
  created of k > 5
  count of k < 10
  lease of k != 7
  value of k = 'two words'
  k exists
  lock is absent
  count of a to z > 3
  count of m to .. = 0
  value of prefix user: != \"\\xff\\x0a\"
  version of .. to .. < 9
then
  put account:ana 90
  put lock '' telling previous
  get k
  getrange a to z
  getrange prefix user: limit 10 reverse keys only
  getrange .. to m count only
  del k
  del k2 keeping history telling previous
  if
    'to' exists
  then
    delrange a to b telling previous
  end
else
  delrange prefix x keeping history
  if
  end
";

fn whole() -> Txn {
    let at = Timestamp;
    let get_range = |range: KeyRange, rows_max| {
        let (from, to) = range.ends();
        let (keys_only, reverse, counts_only) = (false, false, false);
        TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only }
    };
    let mut limited = get_range(KeyRange::prefix("user:").unwrap(), 10);
    let TxnOp::Range { keys_only, reverse, .. } = &mut limited else { panic!("{limited:?}") };
    (*keys_only, *reverse) = (true, true);
    let mut counted = get_range(KeyRange::ending_at("m").unwrap(), NO_LIMIT);
    let TxnOp::Range { counts_only, .. } = &mut counted else { panic!("{counted:?}") };
    *counts_only = true;
    let (user, user_end) = KeyRange::prefix("x").unwrap().ends();
    Txn {
        compare: vec![
            one("account:ana", Test::Version(Relation::Equal, at(1_795_224_871_548_738))),
            one("k", Test::Created(Relation::Greater, at(5))),
            one("k", Test::Count(Relation::Less, 10)),
            one("k", Test::Lease(Relation::NotEqual, 7)),
            one("k", Test::Value(Relation::Equal, "two words".into())),
            one("k", Test::Created(Relation::NotEqual, at(0))),
            one("lock", Test::Created(Relation::Equal, at(0))),
            range(KeyRange::between("a", "z").unwrap(), Test::Count(Relation::Greater, 3)),
            range(KeyRange::starting_at("m").unwrap(), Test::Count(Relation::Equal, 0)),
            range(
                KeyRange::prefix("user:").unwrap(),
                Test::Value(Relation::NotEqual, Bytes::from_static(b"\xff\n")),
            ),
            range(KeyRange::all(), Test::Version(Relation::Less, at(9))),
        ],
        then: vec![
            put("account:ana", "90"),
            TxnOp::Put { key: "lock".into(), value: "".into(), tells_previous: true, lease: None },
            get("k"),
            get_range(KeyRange::between("a", "z").unwrap(), NO_LIMIT),
            limited,
            counted,
            TxnOp::Del { key: "k".into(), keeps_history: false, tells_previous: false },
            TxnOp::Del { key: "k2".into(), keeps_history: true, tells_previous: true },
            TxnOp::Txn(Box::new(Txn {
                compare: vec![one("to", Test::Created(Relation::NotEqual, at(0)))],
                then: vec![TxnOp::DelRange {
                    from: "a".into(),
                    to: "b".into(),
                    keeps_history: false,
                    tells_previous: true,
                }],
                or_else: Vec::new(),
            })),
        ],
        or_else: vec![
            TxnOp::DelRange {
                from: user,
                to: user_end,
                keeps_history: true,
                tells_previous: false,
            },
            TxnOp::Txn(Box::default()),
        ],
    }
}

#[test]
fn every_kind_of_line_is_read_and_printed() {
    assert_eq!(read_text(WHOLE).unwrap(), whole());
    assert_eq!(print(&whole()), WHOLE);
}

#[test]
fn how_lines_are_laid_out_means_nothing() {
    let plain = "if\n  k is absent\n  l exists\nthen\n  put k v\n  if\n    m exists\n  then\n    \
                 get m\n  end\nelse\n  get k\n";
    let txn = read_text(plain).unwrap();
    for text in [
        "if k is absent\nl exists\nthen put k v\nif m exists\nthen get m\nend\nelse get k",
        "\u{feff}# first\r\n\r\nif k is absent # it is free\r\n\tl exists\r\nthen\r\nput k v\r\n\
         if m exists\r\nthen get m\r\nend\r\nelse\r\nget k\r\n",
        "if \"k\" is absent\n 'l' exists\nthen put 'k' \\x76",
    ] {
        let read = read_text(text).unwrap();
        assert_eq!(read.compare, txn.compare, "{text}");
        assert_eq!(read.then[0], txn.then[0], "{text}");
    }
    // A section that has nothing may be left out.
    assert_eq!(read_text("then put k v").unwrap().then, [put("k", "v")]);
    assert_eq!(read_text("if k exists\nelse put k v").unwrap().or_else, [put("k", "v")]);
}

#[test]
fn a_key_may_be_any_word_and_is_quoted_where_it_would_be_taken_for_another() {
    let txn = read_text("if value of value = value\nthen put put if\nget 'prefix'\nget end");
    let txn = txn.unwrap();
    assert_eq!(txn.compare, [one("value", Test::Value(Relation::Equal, "value".into()))]);
    assert_eq!(txn.then, [put("put", "if"), get("prefix"), get("end")]);
    assert_eq!(read_text(&print(&txn)).unwrap(), txn);
    let quoted = read_text("if count of 'prefix' = 1\ncount of '..' = 1\n'if' exists").unwrap();
    let keys: Vec<_> = quoted.compare.into_iter().map(|comparison| comparison.keys).collect();
    assert_eq!(keys, ["prefix", "..", "if"].map(|key| TxnKeys::One(key.into())));
}

#[test]
fn what_is_wrong_is_told_with_line_and_column() {
    let long = format!("then\nget {}", "k".repeat(KEY_BYTES_MAX + 1));
    let deep = "then\n".to_owned() + &"if\nthen\n".repeat(TRANSACTION_DEPTH_MAX);
    let deepest = 2 * TRANSACTION_DEPTH_MAX;
    for (text, place, reason) in [
        ("", "line 1, column 1", "there is no transaction"),
        ("# nothing\n\n", "line 3, column 1", "there is no transaction"),
        ("put k v", "line 1, column 1", "begins with 'if', 'then' or 'else'"),
        ("if\n  version k = 5", "line 2, column 3", "a comparison"),
        ("if\n  version of k == 5", "line 2, column 16", "one of =, !=, < and >"),
        ("if\n  version of k = five", "line 2, column 18", "a version number"),
        ("if\n  version of k = -1", "line 2, column 18", "a version number"),
        ("if\n  version of k = '5'", "line 2, column 18", "a version number"),
        ("if\n  version of k =", "line 2, column 17", "a version number"),
        ("if\n  version of k = 99999999999999999999", "line 2, column 18", "a version number"),
        ("if\n  size of k = 5", "line 2, column 3", "and nothing else"),
        ("if\n  k is there", "line 2, column 8", "'absent' is expected"),
        ("if\n  k exists now", "line 2, column 12", "the end of the line"),
        ("if\n  count of .. = 5", "line 2, column 12", "needs a 'to'"),
        ("if\n  count of prefix = 5", "line 2, column 21", "one of =, !=, < and >"),
        ("if k exists\nif k exists", "line 2, column 1", "the comparisons have begun"),
        ("then\n  get", "line 2, column 6", "a key is expected"),
        ("then\n  get ''", "line 2, column 7", "the key is empty"),
        ("then\n  get k v", "line 2, column 9", "the end of the line"),
        ("then\n  put k", "line 2, column 8", "a value is expected"),
        ("then\n  put k v quietly", "line 2, column 11", "the end of the line"),
        ("then\n  put k v telling", "line 2, column 18", "'previous' is expected"),
        ("then\n  get 'k", "line 2, column 7", "this quote has no end"),
        ("then\n  incr k", "line 2, column 3", "this is no operation"),
        ("then\n  'get' k", "line 2, column 3", "this is no operation"),
        ("then\n  getrange a z", "line 2, column 14", "'to' is expected"),
        ("then\n  getrange", "line 2, column 11", "a range"),
        ("then\n  getrange a to z limit ten", "line 2, column 25", "a number of rows"),
        ("then\n  getrange a to z keys only count only", "line 2, column 29", "the end of"),
        ("then\n  del k telling previous keeping history", "line 2, column 26", "the end of"),
        ("then get k\nthen get k", "line 2, column 1", "has a 'then' or an 'else' already"),
        ("else get k\nthen get k", "line 2, column 1", "has a 'then' or an 'else' already"),
        ("else get k\nelse get k", "line 2, column 1", "has an 'else' already"),
        ("then get k\nend", "line 2, column 1", "none is open here"),
        ("then\nif k exists\nget k", "line 3, column 1", "a comparison"),
        ("then\nif k exists\nthen get k", "line 3, column 1", "begins in line 2 has no 'end'"),
        (&long, "line 2, column 5", "4097 bytes"),
        (&deep, &format!("line {deepest}, column 1"), "at most 8 deep"),
    ] {
        let error = read_text(text).unwrap_err();
        assert!(error.contains(&format!("{place}: ")), "{text}: {error}");
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn what_is_not_utf_8_is_told_with_its_place() {
    let error = read(&mut &b"then\n  put \xc3\xa7 \xff"[..]).unwrap_err().to_string();
    assert!(error.contains("line 2, column 9: this is not UTF-8"), "{error}");
}

#[test]
fn a_text_without_an_end_is_not_read_to_its_end() {
    let error = read(&mut io::repeat(b'#')).unwrap_err();
    assert!(matches!(error, TxnInputError::TooLong), "{error}");
}

#[test]
fn the_json_form_has_the_same_parts() {
    let txn = whole();
    assert_eq!(read_text(&json_of(&txn)).unwrap(), txn);
    let short = read_text("if count of k < 9\nthen put k v\nif\nend").unwrap();
    assert_eq!(
        json_of(&short),
        r#"{"if":[{"key":"k","fact":"count","relation":"<","number":9}],"#.to_owned()
            + r#""then":[{"op":"put","key":"k","value":"v"},"#
            + r#"{"op":"txn","if":[],"then":[],"else":[]}],"else":[]}"#
    );
}

#[test]
fn json_that_is_no_transaction_is_told_with_what_is_wrong() {
    let nested = "{".to_owned()
        + &r#""then":[{"op":"txn","#.repeat(TRANSACTION_DEPTH_MAX)
        + r#""if":[]"#
        + &"}]".repeat(TRANSACTION_DEPTH_MAX)
        + "}";
    for (text, reason) in [
        ("{", "line 1 column 1"),
        (r#"{"then":[{"op":"get"}]}"#, "then[0]: it has no key"),
        (r#"{"then":[{"op":"get","key":""}]}"#, "then[0]: the key is empty"),
        (r#"{"then":[{"op":"get","key":"k","key_hex":"00"}]}"#, "both key and key_hex"),
        (r#"{"then":[{"op":"put","key":"k","value_hex":"0"}]}"#, "value_hex is not hexadecimal"),
        (r#"{"then":[{"op":"get","key":"k","value":"v"}]}"#, "unknown field `value`"),
        (r#"{"then":[{"op":"incr","key":"k"}]}"#, "unknown variant `incr`"),
        (r#"{"do":[]}"#, "unknown field `do`"),
        // Whoever forgets an end does not mean every key.
        (r#"{"then":[{"op":"delrange"}]}"#, "then[0]: it has no from"),
        (r#"{"then":[{"op":"delrange","from":"a"}]}"#, "then[0]: it has no to"),
        (r#"{"else":[{"op":"getrange","from":"a","to":"b","prefix":"c"}]}"#, "else[0]: it has a"),
        (
            r#"{"if":[{"key":"k","fact":"size","relation":"=","number":1}]}"#,
            "if[0]: its fact is none of",
        ),
        (r#"{"if":[{"key":"k","fact":"count","relation":"~","number":1}]}"#, "its relation is"),
        (r#"{"if":[{"key":"k","fact":"count","relation":"="}]}"#, "it has no number"),
        (r#"{"if":[{"key":"k","fact":"value","relation":"="}]}"#, "it has no value"),
        (
            r#"{"if":[{"key":"k","fact":"count","relation":"=","number":1,"value":"v"}]}"#,
            "only 'value' takes a value",
        ),
        (
            r#"{"if":[{"key":"k","fact":"version","relation":"=","number":9223372036854775808}]}"#,
            "no version is so great",
        ),
        (r#"{"then":[{"op":"txn","then":[{"op":"get"}]}]}"#, "then[0].then[0]: it has no key"),
        (&nested, "at most 8 deep"),
    ] {
        let error = read_text(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    let words = proptest::sample::select(&parse::KEYWORDS[..]);
    prop_oneof![
        "[a-z:/]{1,6}".prop_map(Bytes::from),
        vec(any::<u8>(), 1..8).prop_map(Bytes::from),
        words.prop_map(Bytes::from),
    ]
}

fn ends() -> impl Strategy<Value = (Bytes, Bytes)> {
    prop_oneof![
        (key(), key()).prop_map(|(from, to)| KeyRange::between(from, to)),
        key().prop_map(KeyRange::prefix),
        key().prop_map(KeyRange::starting_at),
        key().prop_map(KeyRange::ending_at),
        Just(Ok(KeyRange::all())),
    ]
    .prop_map(|range| range.unwrap().ends())
}

fn comparison() -> impl Strategy<Value = Comparison> {
    let keys = prop_oneof![
        key().prop_map(TxnKeys::One),
        ends().prop_map(|(from, to)| TxnKeys::Range { from, to }),
    ];
    let relation = proptest::sample::select(&parse::RELATIONS[..]).prop_map(|(_, it)| it);
    let number = prop_oneof![Just(0), 0..=i64::MAX as u64];
    (keys, relation, number, 0..5, vec(any::<u8>(), 0..8)).prop_map(
        |(keys, relation, number, fact, value)| {
            let version = Timestamp(number as i64);
            let test = match fact {
                0 => Test::Version(relation, version),
                1 => Test::Created(relation, version),
                2 => Test::Count(relation, number),
                3 => Test::Lease(relation, number),
                _ => Test::Value(relation, value.into()),
            };
            Comparison { keys, test }
        },
    )
}

fn plain_op() -> impl Strategy<Value = TxnOp> {
    let options = any::<(bool, bool)>();
    prop_oneof![
        key().prop_map(|key| TxnOp::Get { key }),
        (key(), vec(any::<u8>(), 0..8), any::<bool>(), option::of(any::<u64>())).prop_map(
            |(key, value, tells_previous, lease)| {
                let (value, lease) = (value.into(), lease.map(LeaseId));
                TxnOp::Put { key, value, tells_previous, lease }
            }
        ),
        (key(), options).prop_map(|(key, (keeps_history, tells_previous))| {
            TxnOp::Del { key, keeps_history, tells_previous }
        }),
        (ends(), options).prop_map(|((from, to), (keeps_history, tells_previous))| {
            TxnOp::DelRange { from, to, keeps_history, tells_previous }
        }),
        (ends(), option::of(any::<u32>()), any::<bool>(), 0..3).prop_map(
            |((from, to), limit, reverse, shown)| TxnOp::Range {
                from,
                to,
                rows_max: limit.unwrap_or(NO_LIMIT),
                keys_only: shown == 1,
                reverse,
                counts_only: shown == 2,
            }
        ),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let of = |op: BoxedStrategy<TxnOp>| {
        let parts = (vec(comparison(), 0..3), vec(op.clone(), 0..4), vec(op, 0..4));
        parts.prop_map(|(compare, then, or_else)| Txn { compare, then, or_else })
    };
    let op = plain_op().boxed().prop_recursive(3, 24, 4, move |inside| {
        prop_oneof![plain_op(), of(inside).prop_map(|txn| TxnOp::Txn(Box::new(txn)))].boxed()
    });
    of(op.boxed())
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(txn in txn()) {
        let text = print(&txn);
        prop_assert!(text.chars().all(|next| is_printable(next) || next == '\n'), "{}", text);
        let read = read_text(&text);
        prop_assert_eq!(read.as_ref(), Ok(&txn), "{}", text);
        let json = json_of(&txn);
        let read = read_text(&json);
        prop_assert_eq!(read.as_ref(), Ok(&txn), "{}", json);
    }

    /// Whatever is cut off or put in, there is an answer, and an error names a place in the text.
    #[test]
    fn a_broken_text_is_read_or_refused_with_a_place(
        txn in txn(), at in any::<proptest::sample::Index>(), put_in in "[ -~\n]{0,3}",
        drop in 0..4_usize,
    ) {
        let text: Vec<char> = print(&txn).chars().collect();
        let at = at.index(text.len() + 1);
        let rest = &text[(at + drop).min(text.len())..];
        let broken: String = text[..at].iter().chain(put_in.chars().collect::<Vec<_>>().iter())
            .chain(rest).collect();
        if let Err(TxnInputError::Text(error)) = read(&mut broken.as_bytes()) {
            let lines: Vec<&str> = broken.split('\n').collect();
            prop_assert!(1 <= error.line && error.line <= lines.len(), "{}", error);
            let columns = lines[error.line - 1].chars().count();
            prop_assert!(1 <= error.column && error.column <= columns + 1, "{}", error);
        }
    }
}
