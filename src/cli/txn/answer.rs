//! What came of a transaction, as lines of text and as a JSON object.
//!
//! Both follow the operations of the branch that was done, in their order. Columns and fields are
//! those with which the commands for the same operations print what they answer.

use std::io::{self, BufWriter, Write};

use serde_json::json;

use super::super::output::Object;
use crate::client::{Row, Timestamp, Txn, TxnDone, TxnOp, TxnOutput, Version};
use crate::limits::OUTPUT_BUFFER_BYTES;
use crate::text::escape;

/// The name of the branch that was done.
pub(in crate::cli) fn branch(succeeded: bool) -> &'static str {
    if succeeded { "then" } else { "else" }
}

/// The operations of the branch that was done.
fn ops(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded { &txn.then } else { &txn.or_else }
}

/// Prints the branch that was done with the version, and then what each of its operations has
/// answered.
///
/// # Errors
/// Those of the output.
pub fn print_answer(out: &mut dyn Write, txn: &Txn, done: &TxnDone) -> io::Result<()> {
    let TxnDone { timestamp, succeeded, results, .. } = done;
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, out);
    writeln!(out, "{}\t{timestamp}", branch(*succeeded))?;
    let mut printer = LinePrinter { out: &mut out, timestamp: *timestamp };
    printer.results("", ops(txn, *succeeded), results)?;
    out.flush()
}

/// Prints results as lines of text.
struct LinePrinter<'a> {
    out: &'a mut dyn Write,
    /// The version of what the transaction has written.
    timestamp: Timestamp,
}

impl LinePrinter<'_> {
    fn results(&mut self, indent: &str, ops: &[TxnOp], results: &[TxnOutput]) -> io::Result<()> {
        ops.iter().zip(results).try_for_each(|(op, result)| self.result(indent, op, result))
    }

    fn result(&mut self, indent: &str, op: &TxnOp, result: &TxnOutput) -> io::Result<()> {
        match (op, result) {
            (TxnOp::Get { key }, TxnOutput::Get(found)) => {
                let (version, value) = version_and_value(found.as_ref());
                writeln!(self.out, "{indent}get\t{}\t{version}\t{}", escape(key), escape(value))
            }
            (TxnOp::Put { key, tells_previous, .. }, TxnOutput::Put { previous }) => {
                self.written(indent, "put", key, previous.as_ref(), *tells_previous)
            }
            (TxnOp::Del { key, tells_previous, .. }, TxnOutput::Del { previous }) => {
                self.written(indent, "del", key, previous.as_ref(), *tells_previous)
            }
            (TxnOp::Range { .. }, TxnOutput::Range { rows, count, has_more }) => {
                for row in rows {
                    let (version, value) = version_and_value(row.found.as_ref());
                    let (key, value) = (escape(&row.key), escape(value));
                    writeln!(self.out, "{indent}getrange\t{key}\t{version}\t{value}")?;
                }
                let more = if *has_more { "\tmore" } else { "" };
                writeln!(self.out, "{indent}count\t{count}{more}")
            }
            (TxnOp::DelRange { tells_previous, .. }, TxnOutput::DelRange { removed, rows }) => {
                for row in rows {
                    self.written(indent, "delrange", &row.key, row.found.as_ref(), true)?;
                }
                // Rows that found no room in the answer.
                let is_cut = *tells_previous && (rows.len() as u64) < *removed;
                let more = if is_cut { "\tmore" } else { "" };
                writeln!(self.out, "{indent}count\t{removed}{more}")
            }
            (TxnOp::Txn(txn), TxnOutput::Txn { succeeded, results }) => {
                writeln!(self.out, "{indent}txn\t{}", branch(*succeeded))?;
                self.results(&format!("{indent}  "), ops(txn, *succeeded), results)
            }
            _ => unreachable!("the client has seen to it that {result:?} is of {op:?}"),
        }
    }

    /// A line of a write: as that of `put`, or as one of `putall` where it tells what there was.
    fn written(
        &mut self,
        indent: &str,
        name: &str,
        key: &[u8],
        previous: Option<&Version>,
        tells_previous: bool,
    ) -> io::Result<()> {
        write!(self.out, "{indent}{name}\t{}\t{}", escape(key), self.timestamp)?;
        if tells_previous {
            let (version, value) = version_and_value(previous);
            write!(self.out, "\t{version}\t{}", escape(value))?;
        }
        writeln!(self.out)
    }
}

/// The version and value that are printed; of nothing, 0 and an empty one.
fn version_and_value(found: Option<&Version>) -> (Timestamp, &[u8]) {
    found.map_or((Timestamp::ZERO, &[]), |found| (found.timestamp, &found.value[..]))
}

/// The same as an object.
pub(in crate::cli) fn answer_object(txn: &Txn, done: &TxnDone) -> Object {
    let TxnDone { timestamp, succeeded, results, server } = done;
    let object = Object::default().with("branch", json!(branch(*succeeded)));
    let object = object.timestamp("timestamp", *timestamp).with("server", json!(server));
    object.list("results", result_objects(ops(txn, *succeeded), results))
}

fn result_objects(ops: &[TxnOp], results: &[TxnOutput]) -> impl Iterator<Item = Object> {
    ops.iter().zip(results).map(|(op, result)| result_object(op, result))
}

fn result_object(op: &TxnOp, result: &TxnOutput) -> Object {
    let named = |name: &str| Object::default().with("op", json!(name));
    match (op, result) {
        (TxnOp::Get { key }, TxnOutput::Get(found)) => {
            found_object(named("get").bytes("key", key), found.as_ref(), true)
        }
        (TxnOp::Put { key, tells_previous, .. }, TxnOutput::Put { previous }) => {
            with_previous(named("put").bytes("key", key), previous.as_ref(), *tells_previous)
        }
        (TxnOp::Del { key, tells_previous, .. }, TxnOutput::Del { previous }) => {
            with_previous(named("del").bytes("key", key), previous.as_ref(), *tells_previous)
        }
        (
            TxnOp::Range { keys_only, counts_only, .. },
            TxnOutput::Range { rows, count, has_more },
        ) => {
            let row = |Row { key, found }: &Row| {
                found_object(Object::default().bytes("key", key), found.as_ref(), !keys_only)
            };
            let object = named("getrange").with("count", json!(count));
            let object = object.with("more", json!(has_more));
            match counts_only {
                true => object,
                false => object.list("rows", rows.iter().map(row)),
            }
        }
        (TxnOp::DelRange { tells_previous, .. }, TxnOutput::DelRange { removed, rows }) => {
            let row = |Row { key, found }: &Row| {
                with_previous(Object::default().bytes("key", key), found.as_ref(), true)
            };
            let object = named("delrange").with("count", json!(removed));
            let has_more = (rows.len() as u64) < *removed;
            match tells_previous {
                true => {
                    let object = object.with("more", json!(has_more));
                    object.list("rows", rows.iter().map(row))
                }
                false => object,
            }
        }
        (TxnOp::Txn(txn), TxnOutput::Txn { succeeded, results }) => {
            let object = named("txn").with("branch", json!(branch(*succeeded)));
            object.list("results", result_objects(ops(txn, *succeeded), results))
        }
        _ => unreachable!("the client has seen to it that {result:?} is of {op:?}"),
    }
}

/// What was found of a key, with the fields of a row.
fn found_object(object: Object, found: Option<&Version>, has_value: bool) -> Object {
    let version = found.map_or(Timestamp::ZERO, |found| found.timestamp);
    let object = object.with("found", json!(found.is_some())).timestamp("timestamp", version);
    let object = object.facts(found);
    match has_value {
        true => object.value("value", found.map(|found| &found.value[..])),
        false => object,
    }
}

/// What a write has replaced or removed, if it tells that.
fn with_previous(object: Object, previous: Option<&Version>, tells_previous: bool) -> Object {
    if !tells_previous {
        return object;
    }
    let version = previous.map_or(Timestamp::ZERO, |previous| previous.timestamp);
    let object = object.with("found", json!(previous.is_some()));
    let object = object.timestamp("old_timestamp", version);
    object.value("old_value", previous.map(|previous| &previous.value[..]))
}
