//! Transactions as text and as JSON: what `acervo txn` reads, and prints again with `--check`.
//!
//! The text has one comparison or operation a line. A word is quoted as in a shell, so that keys
//! and values may have any bytes (`words`). Three words begin a section: `if` the comparisons,
//! `then` the operations for when all of them hold, `else` those for when one does not.
//!
//! ```text
//! # Ten from one account to the other, if nobody has been faster.
//! if
//!   version of account:ana = 1795224871548738
//!   account:bia exists
//! then
//!   put account:ana 90
//!   put account:bia 110
//! else
//!   get account:ana
//! ```
//!
//! Among operations, `if` begins a transaction inside, which goes on to its `end`; how lines are
//! indented means nothing. The first line of a section may stand behind its word.
//!
//! | a comparison | holds if |
//! | --- | --- |
//! | `version of KEYS = N`, and so `created`, `count`, `lease` | the number is N, 0 for no key |
//! | `value of KEYS = V` | the value is V; of a key that does not exist it never holds |
//! | `KEY exists`, `KEY is absent` | the key exists, or does not |
//!
//! In the place of `=` stands one of `!=`, `<` and `>`. KEYS are a key, or a range: `A to B`, both
//! included, with `..` for an open end, or `prefix P`. Of a range it has to hold for every key.
//!
//! | an operation | answers |
//! | --- | --- |
//! | `get KEY` | version and value |
//! | `getrange RANGE`, perhaps with `limit N`, `reverse`, `keys only`, `count only` | a row a key |
//! | `put KEY VALUE`, perhaps `with lease N`, `telling previous` | the version |
//! | `del KEY`, perhaps `keeping history`, `telling previous` | the version |
//! | `delrange RANGE`, likewise | how many keys there were |
//!
//! The JSON form has the same parts under the same names (`json`).
//!
//! What is left out: whether a transaction is one that a group takes, such as that no key is
//! written twice, is checked with the model's own types, wherever a transaction comes from. Only
//! what belongs to one place of the text, such as the length of a key, is checked here, to tell
//! the place.

mod answer;
mod json;
mod parse;
mod print;
#[cfg(test)]
mod tests;
mod words;

use std::io::{self, Read};

pub use self::answer::print_answer;
pub(super) use self::answer::{answer_object, branch};
pub(super) use self::json::object_of;
pub(super) use self::print::print;
use crate::limits::TRANSACTION_BYTES_MAX;
use crate::model::Txn;

/// The longest text that is read: every byte of the largest transaction as an escape of four, and
/// as much again for everything else, comments included.
const TXN_TEXT_BYTES_MAX: usize = 8 * TRANSACTION_BYTES_MAX;

/// The `rows_max` of a range whose rows nobody limits: the transaction's own limits end it.
const NO_LIMIT: u32 = u32::MAX;

/// What is wrong with a text, and where. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct TxnTextError {
    line: usize,
    column: usize,
    /// What is wrong there, as a clause.
    reason: String,
}

/// Why what was read is no transaction.
#[derive(Debug, thiserror::Error)]
pub enum TxnInputError {
    /// The input could not be read.
    #[error("the transaction could not be read: {0}")]
    Io(#[from] io::Error),
    /// The text is longer than any transaction needs.
    #[error("the transaction is longer than {TXN_TEXT_BYTES_MAX} bytes, more than a group takes")]
    TooLong,
    /// The text, or its encoding, has an error in one place.
    #[error("the transaction cannot be understood: {0}")]
    Text(#[from] TxnTextError),
    /// The text is no JSON, or JSON of something else; the parser tells where.
    #[error("the transaction's JSON cannot be used: {0}")]
    Json(serde_json::Error),
    /// One part of the JSON is not what it should be.
    #[error("the transaction's JSON cannot be used: {0}")]
    JsonPart(String),
}

/// Reads a transaction to the end of the input: as JSON if it begins like an object, and else as
/// text.
///
/// # Errors
/// See [`TxnInputError`].
pub fn read(input: &mut dyn Read) -> Result<Txn, TxnInputError> {
    let mut text = Vec::new();
    input.take(TXN_TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    if text.len() > TXN_TEXT_BYTES_MAX {
        return Err(TxnInputError::TooLong);
    }
    let text = String::from_utf8(text).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let valid = String::from_utf8_lossy(valid);
        let line = valid.split('\n').count();
        let column = valid.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        let reason = "this is not UTF-8: write other bytes as \\xNN".to_owned();
        TxnTextError { line, column, reason }
    })?;
    // Some editors begin a file so.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match text.trim_start().starts_with('{') {
        true => json::parse_json(text),
        false => Ok(parse::parse(text)?),
    }
}
