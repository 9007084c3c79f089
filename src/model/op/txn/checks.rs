//! What can be told of a transaction without a store: that it is within its limits, that its
//! comparisons can hold, and that no path through its branches writes a key twice.

use bytes::Bytes;

use super::{Comparison, Relation, Test, Txn, TxnKeys, TxnOp};
use crate::limits::{TRANSACTION_DEPTH_MAX, TRANSACTION_LOOKS_MAX, TRANSACTIONS_WITHIN_MAX};
use crate::model::Timestamp;

/// Refuses a transaction that can never be carried out.
///
/// # Errors
/// One sentence for a person.
pub(super) fn check(txn: &Txn) -> Result<(), String> {
    let depth = depth(txn);
    if depth > TRANSACTION_DEPTH_MAX {
        return Err(format!(
            "the transaction nests {depth} deep and at most {TRANSACTION_DEPTH_MAX} is allowed: \
             make it flatter"
        ));
    }
    let transactions = txn.transactions();
    if transactions > TRANSACTIONS_WITHIN_MAX {
        return Err(format!(
            "the transaction is made of {transactions} and at most {TRANSACTIONS_WITHIN_MAX} are \
             allowed: make it several transactions"
        ));
    }
    let looks = looks(txn);
    if looks > TRANSACTION_LOOKS_MAX {
        return Err(format!(
            "the transaction compares, reads and removes ranges {looks} times and at most \
             {TRANSACTION_LOOKS_MAX} are allowed: make it several transactions"
        ));
    }
    check_parts(txn)?;
    let written = written(txn).map_err(|key| {
        format!(
            "the transaction writes the key {} twice on a path through its branches: write it once",
            shown(key)
        )
    });
    written.map(drop)
}

/// How deep transactions nest, 1 where none is within another.
fn depth(txn: &Txn) -> usize {
    let within = txn.ops().map(|op| match op {
        TxnOp::Txn(txn) => depth(txn),
        _ => 0,
    });
    1 + within.max().unwrap_or(0)
}

/// How often it looks into the store, on all paths together.
fn looks(txn: &Txn) -> usize {
    let done = txn.ops().map(|op| match op {
        TxnOp::Get { .. } | TxnOp::Range { .. } | TxnOp::DelRange { .. } => 1,
        TxnOp::Put { tells_previous, .. } | TxnOp::Del { tells_previous, .. } => {
            usize::from(*tells_previous)
        }
        TxnOp::Txn(txn) => looks(txn),
    });
    txn.compare.len() + done.sum::<usize>()
}

fn check_parts(txn: &Txn) -> Result<(), String> {
    txn.compare.iter().try_for_each(check_comparison)?;
    txn.ops().try_for_each(|op| match op {
        TxnOp::Range { rows_max: 0, counts_only: false, from, to, .. } => Err(format!(
            "the range from {} to {} is asked for no rows: ask for at least one, or only for \
             their number",
            shown(from),
            shown(to)
        )),
        TxnOp::Txn(txn) => check_parts(txn),
        _ => Ok(()),
    })
}

fn check_comparison(Comparison { keys, test }: &Comparison) -> Result<(), String> {
    if let TxnKeys::Range { from, to } = keys
        && from > to
    {
        return Err(format!(
            "the range from {} to {} ends before it begins: it compares nothing",
            shown(from),
            shown(to)
        ));
    }
    let (what, least, relation) = match test {
        Test::Version(relation, timestamp) => {
            ("version", timestamp.cmp(&Timestamp::ZERO), relation)
        }
        Test::Created(relation, timestamp) => {
            ("created version", timestamp.cmp(&Timestamp::ZERO), relation)
        }
        Test::Count(relation, count) => ("count", count.cmp(&0), relation),
        Test::Lease(relation, lease) => ("lease", lease.cmp(&0), relation),
        Test::Value(Relation::Less, value) if value.is_empty() => {
            return Err("no value is less than an empty one: this comparison never holds".into());
        }
        Test::Value(..) => return Ok(()),
    };
    if least.is_lt() {
        return Err(format!("no key has a negative {what}: compare with 0 or more"));
    }
    if least.is_eq() && *relation == Relation::Less {
        return Err(format!("no key has a {what} less than 0: this comparison never holds"));
    }
    Ok(())
}

/// A range of keys, both ends included.
type Ends<'a> = (&'a Bytes, &'a Bytes);

/// What a transaction writes, as ranges in order that do not touch, or a key that it writes twice
/// on one path. Its branches are never both done, so that each may write the same.
fn written(txn: &Txn) -> Result<Vec<Ends<'_>>, &Bytes> {
    let mut all = written_in(&txn.then)?;
    all.extend(written_in(&txn.or_else)?);
    Ok(union(all))
}

/// What the operations of one branch write, all of which may be done.
fn written_in(branch: &[TxnOp]) -> Result<Vec<Ends<'_>>, &Bytes> {
    let mut all: Vec<Ends<'_>> = Vec::new();
    for op in branch {
        match op {
            TxnOp::Put { key, .. } | TxnOp::Del { key, .. } => all.push((key, key)),
            TxnOp::DelRange { from, to, .. } if from <= to => all.push((from, to)),
            TxnOp::Get { .. } | TxnOp::Range { .. } | TxnOp::DelRange { .. } => {}
            TxnOp::Txn(txn) => all.extend(written(txn)?),
        }
    }
    all.sort_unstable();
    // Each operation has ranges that do not touch, so that two which do are of two operations.
    match all.windows(2).find(|pair| pair[1].0 <= pair[0].1) {
        Some(pair) => Err(pair[1].0),
        None => Ok(all),
    }
}

/// The same keys in ranges that do not touch.
fn union(mut ranges: Vec<Ends<'_>>) -> Vec<Ends<'_>> {
    ranges.sort_unstable();
    let mut all: Vec<Ends<'_>> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match all.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => all.push((from, to)),
        }
    }
    all
}

/// The beginning of a key, for a sentence.
fn shown(key: &Bytes) -> String {
    const BYTES_MAX: usize = 64;
    let head = key[..key.len().min(BYTES_MAX)].escape_ascii();
    let rest = if key.len() > BYTES_MAX { "…" } else { "" };
    format!("\"{head}{rest}\"")
}
