//! A transaction as JSON: an object with the lists `if`, `then` and `else`, which may be left out.
//!
//! ```text
//! {"if":   [{"key":"stock","fact":"count","relation":"<","number":9},
//!           {"prefix":"order:","fact":"value","relation":"!=","value":"open"}],
//!  "then": [{"op":"put","key":"stock","value":"3"},
//!           {"op":"txn","if":[],"then":[{"op":"get","key":"stock"}]}],
//!  "else": [{"op":"getrange","from":"order:","to":null,"limit":10}]}
//! ```
//!
//! Bytes that are not UTF-8 stand in hexadecimal under the same name with `_hex` behind it, as in
//! the rows that commands print. Of a range both ends are given, null for an open one, or a prefix:
//! an end that is forgotten does not remove everything.

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::super::input::one_of;
use super::super::output::Object;
use super::parse::RELATIONS;
use super::print::sign;
use super::{NO_LIMIT, TxnInputError};
use crate::client::{ClientError, KeyRange};
use crate::limits::{TRANSACTION_DEPTH_MAX, VALUE_BYTES_MAX};
use crate::model::{Comparison, LeaseId, Test, Timestamp, Txn, TxnKeys, TxnOp, check_key};

/// Reads a transaction.
///
/// # Errors
/// What is wrong first, with line and column where the text is no such JSON, and else with the part
/// that it is in.
pub(super) fn parse_json(text: &str) -> Result<Txn, TxnInputError> {
    let form: TxnForm = serde_json::from_str(text).map_err(TxnInputError::Json)?;
    form.into_txn("", 1).map_err(TxnInputError::JsonPart)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TxnForm {
    #[serde(default, rename = "if")]
    compare: Vec<ComparisonForm>,
    #[serde(default)]
    then: Vec<OpForm>,
    #[serde(default, rename = "else")]
    or_else: Vec<OpForm>,
}

/// A field that may be left out, be null, or have a value.
type Nullable<T> = Option<Option<T>>;

/// That a field is there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nullable<String>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComparisonForm {
    key: Option<String>,
    key_hex: Option<String>,
    #[serde(default, deserialize_with = "present")]
    from: Nullable<String>,
    from_hex: Option<String>,
    #[serde(default, deserialize_with = "present")]
    to: Nullable<String>,
    to_hex: Option<String>,
    prefix: Option<String>,
    prefix_hex: Option<String>,
    fact: String,
    relation: String,
    number: Option<u64>,
    value: Option<String>,
    value_hex: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "op")]
enum OpForm {
    #[serde(rename = "get")]
    Get(GetForm),
    #[serde(rename = "getrange")]
    GetRange(GetRangeForm),
    #[serde(rename = "put")]
    Put(PutForm),
    #[serde(rename = "del")]
    Del(DelForm),
    #[serde(rename = "delrange")]
    DelRange(DelRangeForm),
    #[serde(rename = "txn")]
    Txn(TxnForm),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetForm {
    key: Option<String>,
    key_hex: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetRangeForm {
    #[serde(default, deserialize_with = "present")]
    from: Nullable<String>,
    from_hex: Option<String>,
    #[serde(default, deserialize_with = "present")]
    to: Nullable<String>,
    to_hex: Option<String>,
    prefix: Option<String>,
    prefix_hex: Option<String>,
    limit: Option<u32>,
    #[serde(default)]
    reverse: bool,
    #[serde(default)]
    keys_only: bool,
    #[serde(default)]
    count_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutForm {
    key: Option<String>,
    key_hex: Option<String>,
    value: Option<String>,
    value_hex: Option<String>,
    lease: Option<u64>,
    #[serde(default)]
    tell_previous: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DelForm {
    key: Option<String>,
    key_hex: Option<String>,
    #[serde(default)]
    keep_history: bool,
    #[serde(default)]
    tell_previous: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DelRangeForm {
    #[serde(default, deserialize_with = "present")]
    from: Nullable<String>,
    from_hex: Option<String>,
    #[serde(default, deserialize_with = "present")]
    to: Nullable<String>,
    to_hex: Option<String>,
    prefix: Option<String>,
    prefix_hex: Option<String>,
    #[serde(default)]
    keep_history: bool,
    #[serde(default)]
    tell_previous: bool,
}

fn key_of(text: Option<String>, hex: Option<String>) -> Result<Bytes, String> {
    let key = Bytes::from(one_of("key", text, hex)?);
    check_key(&key).map_err(|why| why.to_string())?;
    Ok(key)
}

fn value_of(text: Option<String>, hex: Option<String>) -> Result<Bytes, String> {
    let value = one_of("value", text, hex)?;
    match value.len() {
        length if length > VALUE_BYTES_MAX => Err(ClientError::ValueTooLong(length).to_string()),
        _ => Ok(value.into()),
    }
}

/// The fields of a range, whatever object they are in.
struct RangeForm {
    from: (Nullable<String>, Option<String>),
    to: (Nullable<String>, Option<String>),
    prefix: (Option<String>, Option<String>),
}

impl RangeForm {
    fn is_empty(&self) -> bool {
        self.from == (None, None) && self.to == (None, None) && self.prefix == (None, None)
    }

    fn into_range(self) -> Result<KeyRange, String> {
        let RangeForm { from, to, prefix } = self;
        let range = if prefix == (None, None) {
            match (end_of("from", from)?, end_of("to", to)?) {
                (Some(from), Some(to)) => KeyRange::between(from, to),
                (Some(from), None) => KeyRange::starting_at(from),
                (None, Some(to)) => KeyRange::ending_at(to),
                (None, None) => Ok(KeyRange::all()),
            }
        } else if from == (None, None) && to == (None, None) {
            KeyRange::prefix(one_of("prefix", prefix.0, prefix.1)?)
        } else {
            return Err("it has a prefix as well as ends".to_owned());
        };
        range.map_err(|why| why.to_string())
    }
}

/// The end of a range; `None` for an open one.
fn end_of(
    name: &str,
    (text, hex): (Nullable<String>, Option<String>),
) -> Result<Option<Vec<u8>>, String> {
    match text {
        Some(None) if hex.is_none() => Ok(None),
        text => one_of(name, text.flatten(), hex).map(Some),
    }
}

impl TxnForm {
    /// The transaction that it is, which stands in this part of the whole, so deep.
    fn into_txn(self, part: &str, depth: usize) -> Result<Txn, String> {
        if depth > TRANSACTION_DEPTH_MAX {
            return Err(format!("{part}: transactions lie at most {TRANSACTION_DEPTH_MAX} deep"));
        }
        let at = |section: &str, index: usize| format!("{part}{section}[{index}]");
        let compare = self.compare.into_iter().enumerate().map(|(index, form)| {
            form.into_comparison().map_err(|why| format!("{}: {why}", at("if", index)))
        });
        let compare = compare.collect::<Result<_, String>>()?;
        let ops = |section: &str, forms: Vec<OpForm>| -> Result<Vec<TxnOp>, String> {
            let forms = forms.into_iter().enumerate();
            forms.map(|(index, form)| form.into_op(&at(section, index), depth)).collect()
        };
        Ok(Txn { compare, then: ops("then", self.then)?, or_else: ops("else", self.or_else)? })
    }
}

impl ComparisonForm {
    fn into_comparison(self) -> Result<Comparison, String> {
        let range = RangeForm {
            from: (self.from, self.from_hex),
            to: (self.to, self.to_hex),
            prefix: (self.prefix, self.prefix_hex),
        };
        let keys = match range.is_empty() {
            true => TxnKeys::One(key_of(self.key, self.key_hex)?),
            false if self.key.is_some() || self.key_hex.is_some() => {
                return Err("it has a key as well as a range".to_owned());
            }
            false => range.into_range()?.into(),
        };
        let relation = RELATIONS.iter().find(|(sign, _)| *sign == self.relation);
        let relation = relation.ok_or("its relation is none of =, !=, < and >")?.1;
        let (number, has_value) = (self.number, self.value.is_some() || self.value_hex.is_some());
        if self.fact == "value" {
            if number.is_some() {
                return Err("a value is compared with a value, and not with a number".to_owned());
            }
            let test = Test::Value(relation, value_of(self.value, self.value_hex)?);
            return Ok(Comparison { keys, test });
        }
        if has_value {
            return Err(format!("its fact is '{}', and only 'value' takes a value", self.fact));
        }
        let number = number.ok_or("it has no number")?;
        let version = || i64::try_from(number).map(Timestamp).map_err(|_| "no version is so great");
        let test = match &self.fact[..] {
            "version" => Test::Version(relation, version()?),
            "created" => Test::Created(relation, version()?),
            "count" => Test::Count(relation, number),
            "lease" => Test::Lease(relation, number),
            _ => {
                let known = "version, created, count, lease and value";
                return Err(format!("its fact is none of {known}"));
            }
        };
        Ok(Comparison { keys, test })
    }
}

impl OpForm {
    fn into_op(self, part: &str, depth: usize) -> Result<TxnOp, String> {
        let inside = |why: String| format!("{part}: {why}");
        match self {
            OpForm::Txn(form) => {
                let txn = form.into_txn(&format!("{part}."), depth + 1)?;
                Ok(TxnOp::Txn(Box::new(txn)))
            }
            other => other.into_plain_op().map_err(inside),
        }
    }

    fn into_plain_op(self) -> Result<TxnOp, String> {
        match self {
            OpForm::Get(form) => Ok(TxnOp::Get { key: key_of(form.key, form.key_hex)? }),
            OpForm::GetRange(form) => {
                let range = RangeForm {
                    from: (form.from, form.from_hex),
                    to: (form.to, form.to_hex),
                    prefix: (form.prefix, form.prefix_hex),
                };
                let (from, to) = range.into_range()?.ends();
                let GetRangeForm { reverse, keys_only, count_only: counts_only, .. } = form;
                let rows_max = form.limit.unwrap_or(NO_LIMIT);
                Ok(TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only })
            }
            OpForm::Put(form) => Ok(TxnOp::Put {
                key: key_of(form.key, form.key_hex)?,
                value: value_of(form.value, form.value_hex)?,
                tells_previous: form.tell_previous,
                lease: form.lease.map(LeaseId),
            }),
            OpForm::Del(form) => Ok(TxnOp::Del {
                key: key_of(form.key, form.key_hex)?,
                keeps_history: form.keep_history,
                tells_previous: form.tell_previous,
            }),
            OpForm::DelRange(form) => {
                let range = RangeForm {
                    from: (form.from, form.from_hex),
                    to: (form.to, form.to_hex),
                    prefix: (form.prefix, form.prefix_hex),
                };
                let (from, to) = range.into_range()?.ends();
                let (keeps_history, tells_previous) = (form.keep_history, form.tell_previous);
                Ok(TxnOp::DelRange { from, to, keeps_history, tells_previous })
            }
            OpForm::Txn(_) => unreachable!("transactions inside are read with their depth"),
        }
    }
}

/// The object of a transaction.
pub(in crate::cli) fn object_of(txn: &Txn) -> Object {
    with_sections(Object::default(), txn)
}

fn with_sections(object: Object, txn: &Txn) -> Object {
    let object = object.list("if", txn.compare.iter().map(comparison));
    let object = object.list("then", txn.then.iter().map(operation));
    object.list("else", txn.or_else.iter().map(operation))
}

fn comparison(Comparison { keys, test }: &Comparison) -> Object {
    let object = match keys {
        TxnKeys::One(key) => Object::default().bytes("key", key),
        TxnKeys::Range { from, to } => range(Object::default(), from, to),
    };
    let (fact, relation, number) = match test {
        Test::Version(relation, version) => ("version", relation, json!(version.0)),
        Test::Created(relation, version) => ("created", relation, json!(version.0)),
        Test::Count(relation, count) => ("count", relation, json!(count)),
        Test::Lease(relation, lease) => ("lease", relation, json!(lease)),
        Test::Value(relation, value) => {
            let object = object.with("fact", json!("value"));
            return object.with("relation", json!(sign(*relation))).bytes("value", value);
        }
    };
    let object = object.with("fact", json!(fact)).with("relation", json!(sign(*relation)));
    object.with("number", number)
}

fn range(object: Object, from: &[u8], to: &[u8]) -> Object {
    if let Some(prefix) = KeyRange::prefix_of(from, to) {
        return object.bytes("prefix", prefix);
    }
    let (first, last) = KeyRange::all().ends();
    let object = object.value("from", Some(from).filter(|from| *from != first));
    object.value("to", Some(to).filter(|to| *to != last))
}

fn operation(op: &TxnOp) -> Object {
    let named = |name: &str| Object::default().with("op", json!(name));
    let option = |object: Object, name: &str, is_on: bool| match is_on {
        true => object.with(name, Value::Bool(true)),
        false => object,
    };
    match op {
        TxnOp::Get { key } => named("get").bytes("key", key),
        TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only } => {
            let mut object = range(named("getrange"), from, to);
            if *rows_max != NO_LIMIT {
                object = object.with("limit", json!(rows_max));
            }
            let object = option(object, "reverse", *reverse);
            option(option(object, "keys_only", *keys_only), "count_only", *counts_only)
        }
        TxnOp::Put { key, value, tells_previous, lease } => {
            let mut object = named("put").bytes("key", key).bytes("value", value);
            if let Some(lease) = lease {
                object = object.with("lease", json!(lease.0));
            }
            option(object, "tell_previous", *tells_previous)
        }
        TxnOp::Del { key, keeps_history, tells_previous } => {
            let object = option(named("del").bytes("key", key), "keep_history", *keeps_history);
            option(object, "tell_previous", *tells_previous)
        }
        TxnOp::DelRange { from, to, keeps_history, tells_previous } => {
            let object = range(named("delrange"), from, to);
            let object = option(object, "keep_history", *keeps_history);
            option(object, "tell_previous", *tells_previous)
        }
        TxnOp::Txn(txn) => with_sections(named("txn"), txn),
    }
}
