//! Scripts run through a back end, and answers held against what was expected.

use std::fmt::Write as _;

use acervo::text::escape;
use bytes::Bytes;

use crate::language::{Expected, ExpectedRow, Op};
use crate::names::{Names, is_name};
use crate::script::{Prompt, Script, Step};

/// A row of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: Bytes,
    pub held: Option<(Bytes, i64)>,
    /// The version that came with nothing, where the back end tells one.
    pub nothing_at: Option<i64>,
    /// The version that was written.
    pub new: Option<i64>,
}

/// What a back end answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Rows(Vec<Row>),
    /// The lines that tell what came of a transaction.
    Lines(Vec<String>),
    Error(String),
}

/// What a shell command leaves.
#[derive(Debug)]
pub struct Left {
    pub status: i32,
    pub out: Vec<u8>,
    pub err: String,
}

/// Something that scripts can be run through. Its store is empty when a script begins.
pub trait BackEnd {
    fn name(&self) -> &'static str;

    fn ask(&mut self, op: &Op) -> Answer;

    /// Carries out a transaction, given as `acervo txn` reads it.
    fn transact(&mut self, _text: &str) -> Answer {
        Answer::Error(format!("{} has no transactions", self.name()))
    }

    /// Asks a server to which nothing of what is written here has come.
    fn ask_behind(&mut self, _op: &Op) -> Answer {
        Answer::Error(format!("{} has no server that is behind", self.name()))
    }

    /// Runs a command line in a shell that knows `acervo`.
    fn shell(&mut self, _line: &str) -> Result<Left, String> {
        Err(format!("{} has no shell", self.name()))
    }

    /// What stands for `<NAME>` in a command line, beside versions, which `version` finds.
    fn placeholder(
        &self,
        _name: &str,
        _version: &dyn Fn(&str) -> Result<i64, String>,
    ) -> Option<String> {
        None
    }
}

impl Row {
    pub fn new(key: Bytes, held: Option<(Bytes, i64)>) -> Row {
        Row { key, held, nothing_at: None, new: None }
    }
}

/// Runs a script up to its first failure, which says where, what was expected and what came.
pub fn run(script: &Script, back_end: &mut dyn BackEnd) -> Result<(), String> {
    let mut names = Names::default();
    for step in &script.steps {
        let outcome = match step.prompt {
            Prompt::Shell => shell_step(step, back_end, &mut names),
            Prompt::Store | Prompt::Behind => store_step(step, back_end, &mut names),
        };
        outcome.map_err(|failure| {
            let (name, line, through) = (&script.name, step.line, back_end.name());
            let failure = failure.trim_end().replace('\n', "\n    ");
            format!("{name}:{line}: {} (through {through})\n    {failure}", step.command)
        })?;
    }
    Ok(())
}

fn store_step(step: &Step, back_end: &mut dyn BackEnd, names: &mut Names) -> Result<(), String> {
    if let Some(text) = step.transaction() {
        return txn_step(step, &text, back_end, names);
    }
    let op = step.op(names)?;
    let answer = match step.prompt {
        Prompt::Behind => back_end.ask_behind(&op),
        _ => back_end.ask(&op),
    };
    // A name that the answer gives is known to what stands below it.
    if let Answer::Rows(rows) = &answer {
        for (line, row) in step.expected(&Names::any())?.iter().zip(rows) {
            if let (Expected::Row(ExpectedRow { new: Some(name), .. }), Some(new)) = (line, row.new)
            {
                names.bind(name, new)?;
            }
        }
    }
    let mut rows = Vec::new();
    let mut error = None;
    for expected in step.expected(names)? {
        match expected {
            Expected::None => {}
            Expected::Row(row) => rows.push(row),
            Expected::Error(text) => error = Some(text),
            Expected::Less(one, other) if one < other => {}
            Expected::Less(one, other) => {
                return Err(format!("{one} is not less than {other}"));
            }
        }
    }
    let fits = match (&answer, &error) {
        (Answer::Error(message), Some(text)) => message.contains(text),
        (Answer::Rows(got), None) => {
            let nothing = op.version_of_nothing();
            let pairs = rows.iter().zip(got);
            rows.len() == got.len()
                && pairs.clone().all(|(row, got)| row_fits(row, got, nothing, names))
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(difference(&rows, error.as_deref(), &answer, &op, names)) }
}

fn row_fits(expected: &ExpectedRow, got: &Row, nothing: i64, names: &Names) -> bool {
    let new = expected.new.as_ref().map(|name| names.version(name));
    let nothing_fits = match (&got.held, expected.nothing_at, got.nothing_at) {
        (Some(_), ..) | (None, None, None) => true,
        (None, expected, got) => got == Some(expected.unwrap_or(nothing)),
    };
    expected.key == got.key
        && expected.held == got.held
        && nothing_fits
        && new.transpose().is_ok_and(|new| new == got.new)
}

/// How many rows of a long answer a failure shows.
const ROWS_SHOWN: usize = 6;

fn difference(
    expected: &[ExpectedRow],
    error: Option<&str>,
    answer: &Answer,
    op: &Op,
    names: &Names,
) -> String {
    let nothing = op.version_of_nothing();
    let (mut text, verb) = (String::new(), |is_past| if is_past { "was" } else { "=" });
    let is_past = expected.first().is_some_and(|row| row.is_past);
    let from = match answer {
        Answer::Rows(got) => {
            let same = expected.iter().zip(got);
            same.take_while(|(row, got)| row_fits(row, got, nothing, names)).count()
        }
        Answer::Lines(_) | Answer::Error(_) => 0,
    };
    let skipped =
        if from > 0 { format!(" (after {from} rows as expected)") } else { String::new() };
    writeln!(text, "expected{skipped}:").unwrap();
    match error {
        Some(error) => writeln!(text, "    error: {error}").unwrap(),
        None if from == expected.len() => text.push_str("    nothing more\n"),
        None => {
            for row in expected[from..].iter().take(ROWS_SHOWN) {
                let new = row.new.as_ref().and_then(|name| names.version(name).ok());
                let shown =
                    show(&row.key, verb(row.is_past), &row.held, row.nothing_at, new, names);
                writeln!(text, "    {shown}").unwrap();
            }
        }
    }
    text.push_str("got:\n");
    match answer {
        Answer::Error(message) => writeln!(text, "    error: {message}").unwrap(),
        Answer::Lines(lines) => writeln!(text, "    {}", lines.join("\n    ")).unwrap(),
        Answer::Rows(rows) if from == rows.len() => text.push_str("    nothing more\n"),
        Answer::Rows(rows) => {
            for row in rows[from..].iter().take(ROWS_SHOWN) {
                let shown =
                    show(&row.key, verb(is_past), &row.held, row.nothing_at, row.new, names);
                writeln!(text, "    {shown}").unwrap();
            }
        }
    }
    text
}

fn show(
    key: &[u8],
    verb: &str,
    held: &Option<(Bytes, i64)>,
    nothing_at: Option<i64>,
    new: Option<i64>,
    names: &Names,
) -> String {
    let key = escape(key);
    let mut text = match (held, nothing_at) {
        (Some((value, version)), _) => {
            let version = names.show(*version);
            format!("{key} {verb} \"{}\" @{version}", escape(&value[..value.len().min(60)]))
        }
        (None, Some(at)) => format!("{key} {verb} nothing @{}", names.show(at)),
        (None, None) => format!("{key} {verb} nothing"),
    };
    if let Some(new) = new {
        write!(text, " -> {}", names.show(new)).unwrap();
    }
    text
}

/// A transaction, whose answer is lines as the command prints them.
fn txn_step(
    step: &Step,
    text: &str,
    back_end: &mut dyn BackEnd,
    names: &mut Names,
) -> Result<(), String> {
    let text = fill_in(text, back_end, names)?;
    let answer = back_end.transact(&text);
    let expected = &step.expected;
    let fits = match &answer {
        Answer::Error(message) => expected.first().is_some_and(|line| {
            line.strip_prefix("error: ").is_some_and(|wanted| message.contains(wanted))
        }),
        Answer::Lines(lines) => lines_fit(expected, lines, names),
        Answer::Rows(_) => false,
    };
    if fits {
        return Ok(());
    }
    let wanted = expected.join("\n    ");
    Err(format!(
        "expected:\n    {wanted}\ngot:\n    {}",
        match answer {
            Answer::Error(message) => format!("error: {message}"),
            Answer::Lines(lines) => lines.join("\n    "),
            Answer::Rows(rows) => format!("{rows:?}"),
        }
    ))
}

fn lines_fit(expected: &[String], got: &[String], names: &mut Names) -> bool {
    let mut pairs = expected.iter().zip(got);
    expected.len() == got.len()
        && pairs.all(|(line, got)| line_fits(line, got, names).unwrap_or(false))
}

fn shell_step(step: &Step, back_end: &mut dyn BackEnd, names: &mut Names) -> Result<(), String> {
    let command = fill_in(&step.command, back_end, names)?;
    let left = back_end.shell(&command)?;
    let text = String::from_utf8(left.out).map_err(|_| "it prints what is not UTF-8")?;
    let got = shown_lines(&text);
    let (status, lines) = match step.expected.split_last() {
        Some((last, lines)) if last.starts_with("exit ") => (&last["exit ".len()..], lines),
        _ => ("0", &step.expected[..]),
    };
    let fits = lines_fit(lines, &got, names) && status == left.status.to_string();
    if fits {
        return Ok(());
    }
    let (wanted, got) = (lines.join("\n    "), got.join("\n    "));
    let (actual, err) = (left.status, left.err.trim_end());
    Err(format!(
        "expected, with status {status}:\n    {wanted}\ngot, with status {actual}:\n    {got}\n\
         and on standard error:\n    {err}"
    ))
}

/// Lines as scripts have them, with `\t` for a tab.
pub fn shown_lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.replace('\t', r"\t")).collect()
}

/// Puts versions, and what else has a name, in the place of `<NAME>`.
fn fill_in(command: &str, back_end: &dyn BackEnd, names: &Names) -> Result<String, String> {
    let mut pieces = command.split('<');
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // One between two words compares them.
        if piece.starts_with(' ') {
            filled = filled + "<" + piece;
            continue;
        }
        let (name, rest) = piece.split_once('>').ok_or("'<' stands before a name and '>'")?;
        filled += &match back_end.placeholder(name, &|name| names.version(name)) {
            Some(text) => text,
            None => names.version(name)?.to_string(),
        };
        filled += rest;
    }
    Ok(filled)
}

/// Holds a printed line against one in which `<v1>` stands for a version, new or known, and `<any>`
/// for whatever is there.
fn line_fits(expected: &str, got: &str, names: &mut Names) -> Result<bool, String> {
    let mut pieces = expected.split('<');
    let Some(mut rest) = got.strip_prefix(pieces.next().unwrap_or_default()) else {
        return Ok(false);
    };
    for piece in pieces {
        let (name, literal) = piece.split_once('>').ok_or("'<' stands before a name and '>'")?;
        let end = if literal.is_empty() { Some(rest.len()) } else { rest.find(literal) };
        let Some(end) = end else { return Ok(false) };
        let (found, after) = rest.split_at(end);
        rest = &after[literal.len()..];
        if name == "any" {
            continue;
        }
        let Ok(version) = found.parse() else { return Ok(false) };
        if is_name(name) {
            names.bind(name, version)?;
        } else if names.version(name)? != version {
            return Ok(false);
        }
    }
    Ok(rest.is_empty())
}
