//! How answers are printed: lines of text that can be cut and searched, or JSON objects.

use std::io::{self, BufWriter, Write};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::args::Format;
use super::at::time_of;
use super::outcome::CommandError;
use crate::client::{Row, Rows, Version};
use crate::limits::OUTPUT_BUFFER_BYTES;
use crate::model::Timestamp;
use crate::text::{escape, is_printable};

/// The kind of rows, which decides their columns.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// A read, as of a version if one was asked for.
    Read { at: Option<Timestamp> },
    /// The values that keys had before a write, and the version of the write.
    Before { timestamp: Timestamp },
    /// The versions of a key, down to one if not to the oldest.
    History { since: Option<Timestamp> },
}

impl Shape {
    /// The version that a row is printed with: where there is none, the one that was asked for, or
    /// 0.
    fn version(self, row: &Row) -> Timestamp {
        row.timestamp().unwrap_or_else(|| match self {
            Shape::Read { at } => version_asked(at),
            Shape::Before { .. } | Shape::History { .. } => Timestamp::ZERO,
        })
    }
}

/// How much is printed of each row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// All columns of each row.
    Whole,
    /// The key of each row, or the version where the rows are versions of one key.
    Keys,
    /// Only the number of rows.
    Count,
}

/// The version that is printed for what was not found: the one that was asked for, or 0.
pub(super) fn version_asked(at: Option<Timestamp>) -> Timestamp {
    at.unwrap_or_default().max(Timestamp::ZERO)
}

/// A JSON object, its fields in the order they are added.
#[derive(Default)]
pub(super) struct Object {
    fields: Vec<(String, Field)>,
}

/// What a field of an object has. A [`Value`] alone would forget the order of the fields in it.
#[derive(Serialize)]
#[serde(untagged)]
enum Field {
    Value(Value),
    Objects(Vec<Object>),
}

impl Object {
    pub(super) fn with(mut self, name: impl Into<String>, value: Value) -> Object {
        self.fields.push((name.into(), Field::Value(value)));
        self
    }

    pub(super) fn list(mut self, name: &str, objects: impl Iterator<Item = Object>) -> Object {
        self.fields.push((name.to_owned(), Field::Objects(objects.collect())));
        self
    }

    /// A string when it is UTF-8, else hexadecimal under another name.
    pub(super) fn bytes(self, name: &str, bytes: &[u8]) -> Object {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.with(name, json!(text)),
            Err(_) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                self.with(format!("{name}_hex"), json!(hex))
            }
        }
    }

    pub(super) fn value(self, name: &str, value: Option<&[u8]>) -> Object {
        match value {
            Some(value) => self.bytes(name, value),
            None => self.with(name, Value::Null),
        }
    }

    pub(super) fn timestamp(self, name: &str, timestamp: Timestamp) -> Object {
        self.with(name, json!(timestamp.0))
    }

    /// The facts of a key, all 0 where it does not exist.
    pub(super) fn facts(self, found: Option<&Version>) -> Object {
        let facts = found.and_then(|version| version.facts);
        let lease = facts.and_then(|facts| facts.lease).map_or(0, |lease| lease.0);
        self.timestamp("created", facts.map_or(Timestamp::ZERO, |facts| facts.created))
            .with("count", json!(facts.map_or(0, |facts| facts.count)))
            .with("lease", json!(lease))
    }

    /// The version that was asked for, if one was.
    pub(super) fn at(self, at: Option<Timestamp>) -> Object {
        match at {
            Some(at) => self.timestamp("at", at),
            None => self,
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.fields.iter().map(|(name, value)| (name, value)))
    }
}

/// Prints an object and a line end. What is not printable, which stands in strings only, is written
/// as an escape, so that a terminal takes nothing for a command, and no text poses as another.
pub(super) fn print_json(out: &mut dyn Write, object: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(object)?;
    let mut rest = &text[..];
    while let Some(at) = rest.find(|character| !is_printable(character)) {
        out.write_all(&rest.as_bytes()[..at])?;
        let character = rest[at..].chars().next().unwrap_or_default();
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}")?;
        }
        rest = &rest[at + character.len_utf8()..];
    }
    writeln!(out, "{rest}")
}

/// Prints rows as they come, and returns how many had a value. What came before an error is
/// printed.
pub(super) fn print_rows(
    out: &mut dyn Write,
    format: Format,
    shape: Shape,
    shown: Shown,
    rows: Rows,
) -> Result<u64, CommandError> {
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, out);
    let rows = if shown == Shown::Whole { rows } else { rows.keys_only() };
    let is_history = matches!(shape, Shape::History { .. });
    let mut found = 0;
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                out.flush().map_err(CommandError::Output)?;
                return Err(error.into());
            }
        };
        if matches!(shape, Shape::History { since: Some(since) } if row.timestamp() < Some(since)) {
            break;
        }
        found += u64::from(row.found.is_some());
        match (shown, format) {
            (Shown::Count, _) => Ok(()),
            (Shown::Keys, Format::Text) if is_history => writeln!(out, "{}", shape.version(&row)),
            (Shown::Keys, Format::Json) if is_history => {
                let version = shape.version(&row);
                print_json(&mut out, &Object::default().timestamp("timestamp", version))
            }
            (Shown::Keys, Format::Text) => writeln!(out, "{}", escape(&row.key)),
            (Shown::Keys, Format::Json) => {
                print_json(&mut out, &Object::default().bytes("key", &row.key))
            }
            (Shown::Whole, Format::Text) => print_line(&mut out, shape, &row),
            (Shown::Whole, Format::Json) => print_json(&mut out, &object(shape, &row)),
        }
        .map_err(CommandError::Output)?;
    }
    match (shown, format) {
        (Shown::Count, Format::Text) => writeln!(out, "{found}"),
        (Shown::Count, Format::Json) => print_json(&mut out, &json!({ "count": found })),
        _ => Ok(()),
    }
    .map_err(CommandError::Output)?;
    out.flush().map_err(CommandError::Output)?;
    Ok(found)
}

fn print_line(out: &mut dyn Write, shape: Shape, row: &Row) -> io::Result<()> {
    let (key, value) = (escape(&row.key), escape(row.value().unwrap_or_default()));
    let version = shape.version(row);
    match shape {
        Shape::Read { .. } => writeln!(out, "{key}\t{version}\t{value}"),
        Shape::Before { timestamp } => writeln!(out, "{key}\t{timestamp}\t{version}\t{value}"),
        Shape::History { .. } => {
            let time = time_of(version).unwrap_or_else(|| "-".to_owned());
            writeln!(out, "{version}\t{time}\t{value}")
        }
    }
}

fn object(shape: Shape, row: &Row) -> Object {
    let (found, value, version) = (row.found.is_some(), row.value(), shape.version(row));
    let object = Object::default().bytes("key", &row.key).with("found", json!(found));
    match shape {
        Shape::Read { at } => object
            .timestamp("timestamp", version)
            .facts(row.found.as_ref())
            .value("value", value)
            .at(at),
        Shape::Before { timestamp } => object
            .timestamp("timestamp", timestamp)
            .timestamp("old_timestamp", version)
            .value("old_value", value),
        Shape::History { .. } => object
            .timestamp("timestamp", version)
            .with("time", json!(time_of(version)))
            .facts(row.found.as_ref())
            .value("value", value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_nothing_that_a_terminal_would_obey_and_reads_back_the_same() {
        let text = "a\u{1b}[2J\u{7f}\u{9b}2J\u{9d}\u{202e}txt.exe\u{feff}\n\tç ok \u{1f600}";
        let mut out = Vec::new();
        print_json(&mut out, &Object::default().bytes("value", text.as_bytes())).unwrap();
        let line = String::from_utf8(out).unwrap();
        assert!(line.trim_end_matches('\n').chars().all(is_printable), "{line:?}");
        assert!(line.contains("ç ok \u{1f600}"), "what is printable stays: {line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["value"], text);
    }
}
