//! Keys, values and pairs from the command line and from standard input.
//!
//! What is read is bounded: a value by what any server takes, lines by their length, lists by what
//! one write can hold.

use std::ffi::OsStr;
use std::io::{self, BufRead};

use serde::Deserialize;

use crate::client::ClientError;
use crate::limits::{TRANSACTION_BYTES_MAX, TRANSACTION_KEYS_MAX, VALUE_BYTES_MAX};
use crate::text::{LineError, escape, parse_hex, read_line, unescape};

/// The argument that stands for standard input.
const STANDARD_INPUT: &[u8] = b"-";

/// Why an argument, or what standard input has, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The system could not read standard input.
    #[error("standard input could not be read: {}", explain(.0))]
    Io(#[from] io::Error),
    /// A line of standard input cannot be used.
    #[error("line {number} of standard input cannot be used: {error}")]
    Line {
        /// The number of the line, from 1.
        number: u64,
        /// What is wrong with the line, as a clause.
        error: LineError,
    },
    /// A line of standard input is not a pair.
    #[error(
        "line {number} of standard input is not a pair: {reason}; write \
         {{\"key\":\"K\",\"value\":\"V\"}}, or key_hex and value_hex for what is not text"
    )]
    PairLine {
        /// The line's number, from 1.
        number: u64,
        /// What is missing or wrong, as a clause.
        reason: String,
    },
    /// An argument is not a pair of key and value.
    #[error("'{0}' is not a pair: write KEY=VALUE, or - for JSON lines on standard input")]
    Pair(String),
    /// The list is longer than one write, or one read, can hold.
    #[error(transparent)]
    TooMuch(#[from] ClientError),
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        // What stands in the place of a stream that the process was started without is a directory,
        // too.
        io::ErrorKind::IsADirectory => "it is closed, or a folder".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads arguments, escaped ones or others, and standard input where they say so.
pub(super) struct ArgumentReader<'a> {
    stdin: &'a mut dyn BufRead,
    escaped: bool,
    /// Lines of standard input read so far.
    lines: u64,
}

type Pair = (Vec<u8>, Vec<u8>);

impl<'a> ArgumentReader<'a> {
    pub(super) fn new(stdin: &'a mut dyn BufRead, escaped: bool) -> ArgumentReader<'a> {
        ArgumentReader { stdin, escaped, lines: 0 }
    }

    fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        if self.escaped { unescape(bytes) } else { bytes.to_vec() }
    }

    /// A value, from standard input for `-`: all of it, but no more than tells that it is too long.
    pub(super) fn value(&mut self, argument: &OsStr) -> Result<Vec<u8>, InputError> {
        if argument.as_encoded_bytes() != STANDARD_INPUT {
            return Ok(self.bytes(argument.as_encoded_bytes()));
        }
        let mut value = Vec::new();
        let bound = VALUE_BYTES_MAX as u64 + 1;
        io::Read::read_to_end(&mut io::Read::take(&mut *self.stdin, bound), &mut value)?;
        Ok(value)
    }

    /// Keys, lines of standard input in the place of `-`.
    pub(super) fn keys(
        &mut self,
        arguments: &[impl AsRef<OsStr>],
    ) -> Result<Vec<Vec<u8>>, InputError> {
        let mut keys = Vec::new();
        let mut bound = Bound::default();
        for argument in arguments.iter().map(AsRef::as_ref) {
            if argument.as_encoded_bytes() != STANDARD_INPUT {
                keys.push(bound.add_key(self.bytes(argument.as_encoded_bytes()))?);
                continue;
            }
            while let Some(line) = self.line()? {
                keys.push(bound.add_key(self.bytes(line.as_bytes()))?);
            }
        }
        Ok(keys)
    }

    /// Pairs, JSON lines of standard input in the place of `-`.
    pub(super) fn pairs(
        &mut self,
        arguments: &[impl AsRef<OsStr>],
    ) -> Result<Vec<Pair>, InputError> {
        let mut pairs = Vec::new();
        let mut bound = Bound::default();
        for argument in arguments.iter().map(|argument| argument.as_ref().as_encoded_bytes()) {
            if argument != STANDARD_INPUT {
                let at = argument.iter().position(|byte| *byte == b'=');
                let at = at.ok_or_else(|| InputError::Pair(escape(argument).to_string()))?;
                let (key, value) = (&argument[..at], &argument[at + 1..]);
                pairs.push(bound.add_pair((self.bytes(key), self.bytes(value)))?);
                continue;
            }
            while let Some(line) = self.line()? {
                let number = self.lines;
                // Some editors begin a file so.
                let line = line.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(&line);
                let pair = serde_json::from_str::<PairLine>(line)
                    .map_err(|error| error.to_string())
                    .and_then(PairLine::into_pair)
                    .map_err(|reason| InputError::PairLine { number, reason })?;
                pairs.push(bound.add_pair(pair)?);
            }
        }
        Ok(pairs)
    }

    /// The next line that is not empty.
    fn line(&mut self) -> Result<Option<String>, InputError> {
        loop {
            self.lines += 1;
            let number = self.lines;
            match read_line(self.stdin) {
                Ok(Some(line)) if line.is_empty() => {}
                Ok(line) => return Ok(line),
                Err(LineError::Io(error)) => return Err(error.into()),
                Err(error) => return Err(InputError::Line { number, error }),
            }
        }
    }
}

/// Keeps a list within what one write can hold.
#[derive(Default)]
struct Bound {
    keys: usize,
    bytes: usize,
}

impl Bound {
    fn add_key(&mut self, key: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        self.add(key.len()).map(|()| key)
    }

    fn add_pair(&mut self, pair: Pair) -> Result<Pair, ClientError> {
        self.add(pair.0.len() + pair.1.len()).map(|()| pair)
    }

    fn add(&mut self, bytes: usize) -> Result<(), ClientError> {
        self.keys += 1;
        self.bytes += bytes;
        if self.keys > TRANSACTION_KEYS_MAX {
            return Err(ClientError::TooManyKeys(self.keys));
        }
        if self.bytes > TRANSACTION_BYTES_MAX {
            return Err(ClientError::TooManyBytes(self.bytes));
        }
        Ok(())
    }
}

/// A pair as rows are printed in JSON, whose other fields do not matter.
#[derive(Deserialize)]
struct PairLine {
    key: Option<String>,
    key_hex: Option<String>,
    value: Option<String>,
    value_hex: Option<String>,
}

impl PairLine {
    fn into_pair(self) -> Result<Pair, String> {
        Ok((one_of("key", self.key, self.key_hex)?, one_of("value", self.value, self.value_hex)?))
    }
}

/// The bytes that one of two fields has: as text, or in hexadecimal.
pub(super) fn one_of(
    name: &str,
    text: Option<String>,
    hex: Option<String>,
) -> Result<Vec<u8>, String> {
    match (text, hex) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(hex)) => {
            parse_hex(&hex).ok_or_else(|| format!("{name}_hex is not hexadecimal"))
        }
        (None, None) => Err(format!("it has no {name}")),
        (Some(_), Some(_)) => Err(format!("it has both {name} and {name}_hex")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(arguments: &[&str], stdin: &str) -> Result<Vec<Pair>, String> {
        let mut stdin = stdin.as_bytes();
        ArgumentReader::new(&mut stdin, true).pairs(arguments).map_err(|error| error.to_string())
    }

    fn pair(key: &[u8], value: &[u8]) -> Pair {
        (key.to_vec(), value.to_vec())
    }

    #[test]
    fn pairs_are_cut_at_the_first_equals_sign_or_are_json_lines() {
        let lines = concat!(
            r#"{"key":"b","found":true,"timestamp":5,"value":"2"}"#,
            "\n\n",
            r#"{"key_hex":"00fF","value_hex":""}"#,
            "\r\n"
        );
        let expected = [
            pair(b"a", b"1=1"),
            pair(b"b", b"2"),
            pair(b"\0\xff", b""),
            pair(b"c=", b""),
            pair(b"", b"x"),
        ];
        let given = pairs(&["a=1=1", "-", r"c\x3d=", "=x"], lines);
        assert_eq!(given.as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_pair() {
        let given = pairs(&["-"], "\u{feff}{\"key\":\"a\",\"value\":\"1\"}\n");
        assert_eq!(given.as_deref(), Ok(&[pair(b"a", b"1")][..]));
    }

    #[test]
    fn what_is_no_pair_says_where() {
        assert!(pairs(&["a=1", "b"], "").unwrap_err().starts_with("'b' is not a pair"));
        let lines = [
            ("{}", "it has no key"),
            (r#"{"key":"a"}"#, "it has no value"),
            (r#"{"key":"a","value":null}"#, "it has no value"),
            (r#"{"key":"a","value_hex":"0g"}"#, "value_hex is not hexadecimal"),
            (r#"{"key":"a","value_hex":"000"}"#, "value_hex is not hexadecimal"),
            (r#"{"key":"a","key_hex":"61","value":""}"#, "it has both key and key_hex"),
            ("a=1", "expected value"),
            (r#"{"key":"a","value":5}"#, "invalid type"),
        ];
        for (line, reason) in lines {
            let error =
                pairs(&["-"], &format!("{{\"key\":\"k\",\"value\":\"v\"}}\n{line}")).unwrap_err();
            assert!(error.starts_with("line 2 of standard input is not a pair: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn keys_are_lines_and_their_number_has_a_limit() {
        let mut stdin = &b"a b\n\nc\\x00\n"[..];
        let keys = ArgumentReader::new(&mut stdin, true).keys(&["x", "-"]).unwrap();
        assert_eq!(keys, [&b"x"[..], b"a b", b"c\0"]);
        let mut stdin = &b"c\\x00\n"[..];
        let keys = ArgumentReader::new(&mut stdin, false).keys(&["-"]).unwrap();
        assert_eq!(keys, [br"c\x00"]);

        let many = "k\n".repeat(TRANSACTION_KEYS_MAX + 1);
        let error = ArgumentReader::new(&mut many.as_bytes(), false).keys(&["-"]).unwrap_err();
        assert!(matches!(error, InputError::TooMuch(ClientError::TooManyKeys(_))));
        let line = format!("{{\"key\":\"k\",\"value\":\"{}\"}}\n", "v".repeat(1 << 20));
        let error = pairs(&["-"], &line.repeat(9)).unwrap_err();
        assert!(error.contains("bytes are too many at once"), "{error}");
    }

    #[test]
    fn a_value_that_is_too_long_is_not_read_to_its_end() {
        let mut stdin = io::BufReader::new(io::repeat(b'v'));
        let value = ArgumentReader::new(&mut stdin, true).value(OsStr::new("-")).unwrap();
        assert_eq!(value.len(), VALUE_BYTES_MAX + 1);
        let mut raw = &b"\\x41"[..];
        assert_eq!(ArgumentReader::new(&mut raw, true).value(OsStr::new("-")).unwrap(), br"\x41");
    }
}
