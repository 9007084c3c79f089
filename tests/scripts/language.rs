//! What the lines of a script say: operations, and rows of answers.

use std::iter::Peekable;
use std::vec;

use acervo::text::unescape;
use bytes::Bytes;

use crate::names::Names;

/// A key, and as of which version it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub key: Bytes,
    pub at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Get(Asked),
    GetRange(Asked, Asked),
    GetAll(Vec<Asked>),
    Put(Bytes, Bytes),
    PutAll(Vec<(Bytes, Bytes)>),
    Del(Asked),
    DelRange(Asked, Asked),
    DelAll(Vec<Asked>),
    Trim(Asked),
}

/// A line of an expected answer.
#[derive(Debug)]
pub enum Expected {
    None,
    /// `error: TEXT`: it is refused, and the reason has this in it.
    Error(String),
    Less(i64, i64),
    Row(ExpectedRow),
}

/// What a row of an answer should be.
#[derive(Debug)]
pub struct ExpectedRow {
    pub key: Bytes,
    /// `was`: what there was before the write, rather than what there is.
    pub is_past: bool,
    pub held: Option<(Bytes, i64)>,
    /// The version that comes with `nothing`, where the script says it.
    pub nothing_at: Option<i64>,
    /// The name of the version that was written.
    pub new: Option<String>,
}

impl Op {
    pub fn parse(line: &str, names: &Names) -> Result<Op, String> {
        Cursor::new(&expand(line)?.join(" "), names)?.op()
    }

    /// Whether its rows are what there was before it.
    pub fn tells_the_past(&self) -> bool {
        !matches!(self, Op::Get(_) | Op::GetRange(..) | Op::GetAll(_) | Op::Trim(_))
    }

    pub fn makes_a_version(&self) -> bool {
        matches!(self, Op::Put(..) | Op::PutAll(_))
    }

    /// The keys it asks for or removes.
    fn asked(&self) -> Vec<&Asked> {
        match self {
            Op::Get(one) | Op::Del(one) | Op::Trim(one) => vec![one],
            Op::GetRange(from, to) | Op::DelRange(from, to) => vec![from, to],
            Op::GetAll(keys) | Op::DelAll(keys) => keys.iter().collect(),
            Op::Put(..) | Op::PutAll(_) => Vec::new(),
        }
    }

    /// The version that comes back with what is not found: the greatest that is asked of a read, or
    /// 0.
    pub fn version_of_nothing(&self) -> i64 {
        let is_read = matches!(self, Op::Get(_) | Op::GetRange(..) | Op::GetAll(_));
        let asked = self.asked().into_iter().filter_map(|asked| asked.at).filter(|_| is_read);
        asked.max().unwrap_or(0).max(0)
    }

    /// The version, for whatever has only one to give to a read and none to a write.
    pub fn at(&self) -> Result<Option<i64>, String> {
        let given: Vec<i64> = self.asked().into_iter().filter_map(|asked| asked.at).collect();
        match (&given[..], self.tells_the_past() || matches!(self, Op::Trim(_))) {
            ([], _) => Ok(None),
            ([one], false) => Ok(Some(*one)),
            ([..], false) => Err("only the gateway takes a version with each key".into()),
            ([..], true) => Err("only the gateway takes a version with a removal".into()),
        }
    }
}

impl Expected {
    /// Reads a line of an answer: several rows, where it has a sequence in it.
    pub fn parse(line: &str, names: &Names) -> Result<Vec<Expected>, String> {
        expand_line(line)?.iter().map(|line| expected(line, names)).collect()
    }
}

fn expected(line: &str, names: &Names) -> Result<Expected, String> {
    if line == "none" {
        return Ok(Expected::None);
    }
    if let Some(text) = line.strip_prefix("error: ") {
        return Ok(Expected::Error(text.to_owned()));
    }
    if let Some((one, other)) = line.split_once(" < ") {
        return Ok(Expected::Less(names.version(one)?, names.version(other)?));
    }
    Cursor::new(line, names)?.row().map(Expected::Row)
}

/// Replaces what is in braces: `{x*3}` is `xxx`, and `k{08..10}` the words `k08 k09 k10`.
fn expand(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    for word in line.split(' ') {
        words.extend(expand_line(word)?);
    }
    Ok(words)
}

/// The same with all of the text in each.
fn expand_line(line: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = line.split_once('{') else { return Ok(vec![line.to_owned()]) };
    let braces = || format!("'{line}' has braces that are neither {{A..B}} nor {{X*N}}");
    let (inside, after) = rest.split_once('}').ok_or_else(braces)?;
    let pieces: Vec<String> = if let Some((first, last)) = inside.split_once("..") {
        let width = first.len();
        let number = |text: &str| text.parse::<usize>().map_err(|_| braces());
        (number(first)?..=number(last)?).map(|n| format!("{n:0width$}")).collect()
    } else {
        let (text, count) = inside.split_once('*').ok_or_else(braces)?;
        vec![text.repeat(count.parse().map_err(|_| braces())?)]
    };
    Ok(pieces.iter().map(|piece| format!("{before}{piece}{after}")).collect())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Bare(String),
    Quoted(String),
    Equals,
    At,
}

fn tokens(line: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let token;
        (token, rest) = match first {
            '=' => (Token::Equals, &rest[1..]),
            '@' => (Token::At, &rest[1..]),
            '"' => {
                let (text, rest) = rest[1..].split_once('"').ok_or("a quote has no end")?;
                (Token::Quoted(text.to_owned()), rest)
            }
            _ => {
                let end = rest.find([' ', '=', '@', '"']).unwrap_or(rest.len());
                (Token::Bare(rest[..end].to_owned()), &rest[end..])
            }
        };
        tokens.push(token);
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// Reads a line word by word.
struct Cursor<'a> {
    tokens: Peekable<vec::IntoIter<Token>>,
    names: &'a Names,
}

impl<'a> Cursor<'a> {
    fn new(line: &str, names: &'a Names) -> Result<Cursor<'a>, String> {
        Ok(Cursor { tokens: tokens(line)?.into_iter().peekable(), names })
    }

    /// Takes the next word if it is this one.
    fn take(&mut self, wanted: &Token) -> bool {
        self.tokens.next_if_eq(wanted).is_some()
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.take(&Token::Bare(word.to_owned()))
    }

    fn need(&mut self, wanted: Token) -> Result<(), String> {
        let taken = self.take(&wanted);
        taken
            .then_some(())
            .ok_or_else(|| format!("{wanted:?} is expected before {:?}", self.tokens.peek()))
    }

    fn bytes(&mut self) -> Result<Bytes, String> {
        match self.tokens.next() {
            Some(Token::Bare(text) | Token::Quoted(text)) => Ok(unescape(text.as_bytes()).into()),
            other => Err(format!("a key or a value is expected instead of {other:?}")),
        }
    }

    fn version(&mut self) -> Result<i64, String> {
        match self.tokens.next() {
            Some(Token::Bare(text)) => self.names.version(&text),
            other => Err(format!("a version is expected instead of {other:?}")),
        }
    }

    fn is_at_end(&mut self) -> bool {
        self.tokens.peek().is_none()
    }

    fn asked(&mut self) -> Result<Asked, String> {
        let key = self.bytes()?;
        let at = if self.take_word("at") { Some(self.version()?) } else { None };
        Ok(Asked { key, at })
    }

    fn many<T>(&mut self, one: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut all = vec![one(self)?];
        while !self.is_at_end() {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn pair(&mut self) -> Result<(Bytes, Bytes), String> {
        let key = self.bytes()?;
        self.need(Token::Equals)?;
        Ok((key, self.bytes()?))
    }

    fn op(mut self) -> Result<Op, String> {
        let Some(Token::Bare(name)) = self.tokens.next() else {
            return Err("a command is expected".into());
        };
        let op = match &name[..] {
            "get" => Op::Get(self.asked()?),
            "getrange" => Op::GetRange(self.asked()?, self.asked()?),
            "getall" => Op::GetAll(self.many(Self::asked)?),
            "put" => Op::Put(self.bytes()?, self.bytes()?),
            "putall" => Op::PutAll(self.many(Self::pair)?),
            "del" => Op::Del(self.asked()?),
            "delrange" => Op::DelRange(self.asked()?, self.asked()?),
            "delall" => Op::DelAll(self.many(Self::asked)?),
            "trim" => Op::Trim(self.asked()?),
            _ => return Err(format!("'{name}' is no command")),
        };
        match self.tokens.next() {
            None => Ok(op),
            Some(more) => Err(format!("{more:?} is too much")),
        }
    }

    fn row(mut self) -> Result<ExpectedRow, String> {
        let key = self.bytes()?;
        let is_past = self.take_word("was");
        if !is_past {
            self.need(Token::Equals)?;
        }
        let (held, nothing_at) = if self.take_word("nothing") {
            (None, if self.take(&Token::At) { Some(self.version()?) } else { None })
        } else {
            let value = self.bytes()?;
            self.need(Token::At)?;
            (Some((value, self.version()?)), None)
        };
        let new = match (self.take_word("->"), self.tokens.next()) {
            (true, Some(Token::Bare(name))) => Some(name),
            (false, None) => None,
            (_, other) => return Err(format!("{other:?} does not belong there")),
        };
        match self.tokens.next() {
            None => Ok(ExpectedRow { key, is_past, held, nothing_at, new }),
            Some(more) => Err(format!("{more:?} is too much")),
        }
    }
}
