//! A transaction as text, in the form that [`parse`](super::parse()) reads back as the same.

use std::fmt::{self, Write as _};

use super::NO_LIMIT;
use super::parse::{KEYWORDS, RELATIONS};
use super::words::Quoted;
use crate::client::KeyRange;
use crate::model::{Comparison, Relation, Test, Timestamp, Txn, TxnKeys, TxnOp};

/// The text of a transaction, each line with its end.
pub(in crate::cli) fn print(txn: &Txn) -> String {
    let mut text = String::new();
    // A string takes whatever is written.
    let _ = print_at(&mut text, 0, txn);
    text
}

/// Prints the sections, indented by so many steps. That of the comparisons is there in any case,
/// since it begins a transaction inside another.
fn print_at(out: &mut String, depth: usize, txn: &Txn) -> fmt::Result {
    let outer = Indent(depth);
    let inner = Indent(depth + 1);
    writeln!(out, "{outer}if")?;
    for comparison in &txn.compare {
        writeln!(out, "{inner}{}", Line(comparison))?;
    }
    for (section, ops) in [("then", &txn.then), ("else", &txn.or_else)] {
        if ops.is_empty() {
            continue;
        }
        writeln!(out, "{outer}{section}")?;
        for op in ops {
            match op {
                TxnOp::Txn(inside) => {
                    print_at(out, depth + 1, inside)?;
                    writeln!(out, "{inner}end")?;
                }
                op => writeln!(out, "{inner}{}", Line(op))?,
            }
        }
    }
    Ok(())
}

/// Two spaces for each step.
struct Indent(usize);

impl fmt::Display for Indent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:1$}", "", 2 * self.0)
    }
}

fn quoted(bytes: &[u8]) -> Quoted<'_> {
    Quoted { bytes, keywords: &KEYWORDS }
}

/// One comparison or operation.
struct Line<'a, T>(&'a T);

impl fmt::Display for Line<'_, Comparison> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { keys, test } = self.0;
        let (fact, relation, operand): (_, _, &dyn fmt::Display) = match (keys, test) {
            (TxnKeys::One(key), Test::Created(Relation::NotEqual, Timestamp::ZERO)) => {
                return write!(f, "{} exists", quoted(key));
            }
            (TxnKeys::One(key), Test::Created(Relation::Equal, Timestamp::ZERO)) => {
                return write!(f, "{} is absent", quoted(key));
            }
            (_, Test::Version(relation, version)) => ("version", relation, version),
            (_, Test::Created(relation, version)) => ("created", relation, version),
            (_, Test::Count(relation, count)) => ("count", relation, count),
            (_, Test::Lease(relation, lease)) => ("lease", relation, lease),
            (_, Test::Value(relation, value)) => ("value", relation, &quoted(value)),
        };
        write!(f, "{fact} of {} {} {operand}", Keys::of(keys), sign(*relation))
    }
}

/// How a relation is written.
pub(super) fn sign(relation: Relation) -> &'static str {
    match RELATIONS.iter().find(|(_, known)| *known == relation) {
        Some((sign, _)) => sign,
        None => panic!("no sign is known of {relation:?}"),
    }
}

/// Keys as a comparison or an operation names them.
#[derive(Clone, Copy)]
enum Keys<'a> {
    One(&'a [u8]),
    Range(&'a [u8], &'a [u8]),
}

impl Keys<'_> {
    fn of(keys: &TxnKeys) -> Keys<'_> {
        match keys {
            TxnKeys::One(key) => Keys::One(key),
            TxnKeys::Range { from, to } => Keys::Range(from, to),
        }
    }
}

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = match *self {
            Keys::One(key) => return write!(f, "{}", quoted(key)),
            Keys::Range(from, to) => (from, to),
        };
        if let Some(prefix) = KeyRange::prefix_of(from, to) {
            return write!(f, "prefix {}", quoted(prefix));
        }
        let (first, last) = KeyRange::all().ends();
        match from == first {
            true => f.write_str("..")?,
            false => write!(f, "{}", quoted(from))?,
        }
        match to == last {
            true => f.write_str(" to .."),
            false => write!(f, " to {}", quoted(to)),
        }
    }
}

impl fmt::Display for Line<'_, TxnOp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = |f: &mut fmt::Formatter<'_>, is_on: bool, words: &str| match is_on {
            true => f.write_str(words),
            false => Ok(()),
        };
        match self.0 {
            TxnOp::Get { key } => write!(f, "get {}", quoted(key)),
            TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only } => {
                write!(f, "getrange {}", Keys::Range(from, to))?;
                if *rows_max != NO_LIMIT {
                    write!(f, " limit {rows_max}")?;
                }
                option(f, *reverse, " reverse")?;
                option(f, *keys_only && !counts_only, " keys only")?;
                option(f, *counts_only, " count only")
            }
            TxnOp::Put { key, value, tells_previous, lease } => {
                write!(f, "put {} {}", quoted(key), quoted(value))?;
                if let Some(lease) = lease {
                    write!(f, " with lease {lease}")?;
                }
                option(f, *tells_previous, " telling previous")
            }
            TxnOp::Del { key, keeps_history, tells_previous } => {
                write!(f, "del {}", quoted(key))?;
                option(f, *keeps_history, " keeping history")?;
                option(f, *tells_previous, " telling previous")
            }
            TxnOp::DelRange { from, to, keeps_history, tells_previous } => {
                write!(f, "delrange {}", Keys::Range(from, to))?;
                option(f, *keeps_history, " keeping history")?;
                option(f, *tells_previous, " telling previous")
            }
            // What is inside has lines of its own.
            TxnOp::Txn(_) => f.write_str("if"),
        }
    }
}
