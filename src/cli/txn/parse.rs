//! The text of a transaction, read line by line.

use bytes::Bytes;

use super::words::{Word, words};
use super::{NO_LIMIT, TxnTextError};
use crate::client::{ClientError, KeyRange};
use crate::limits::{TRANSACTION_DEPTH_MAX, VALUE_BYTES_MAX};
use crate::model::{
    Comparison, LeaseId, Relation, Test, Timestamp, Txn, TxnKeys, TxnOp, check_key,
};

/// The words that mean something where they stand unquoted.
#[rustfmt::skip]
pub(super) const KEYWORDS: [&str; 33] = [
    "if", "then", "else", "end", "of", "to", "prefix", "..", "version", "created", "count",
    "lease", "value", "=", "!=", "<", ">", "exists", "is", "absent", "get", "getrange", "put",
    "del", "delrange", "limit", "reverse", "keys", "only", "telling", "previous", "keeping",
    "history",
];

/// The relations between what a key has and what it is compared with, as they are written.
pub(super) const RELATIONS: [(&str, Relation); 4] = [
    ("=", Relation::Equal),
    ("!=", Relation::NotEqual),
    ("<", Relation::Less),
    (">", Relation::Greater),
];

/// Reads a transaction.
///
/// # Errors
/// What is wrong in the first line that has something wrong, and where.
pub(super) fn parse(text: &str) -> Result<Txn, TxnTextError> {
    let mut parser = Parser { open: vec![Open::new(1, Section::Start)] };
    let mut line = 0;
    for text in text.split('\n') {
        line += 1;
        let words = words(line, text.strip_suffix('\r').unwrap_or(text))?;
        parser.line(Line { line, words: &words, next: 0, end: text.chars().count() + 1 })?;
    }
    parser.finish(line)
}

/// The part of a transaction to which a line belongs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    /// Nothing has begun yet.
    Start,
    If,
    Then,
    Else,
}

/// A transaction that is not read to its end.
struct Open {
    line: usize,
    section: Section,
    txn: Txn,
}

impl Open {
    fn new(line: usize, section: Section) -> Open {
        Open { line, section, txn: Txn::default() }
    }

    fn add(&mut self, op: TxnOp) {
        match self.section {
            Section::Then => self.txn.then.push(op),
            Section::Else => self.txn.or_else.push(op),
            Section::Start | Section::If => panic!("an operation outside of a branch: {op:?}"),
        }
    }
}

struct Parser {
    /// Those that are open, the outermost first; never empty.
    open: Vec<Open>,
}

impl Parser {
    fn innermost(&mut self) -> &mut Open {
        let Some(innermost) = self.open.last_mut() else { panic!("no transaction is open") };
        innermost
    }

    /// Takes a line, or what stands behind the word that begins a section.
    fn line(&mut self, mut line: Line<'_>) -> Result<(), TxnTextError> {
        let Some(first) = line.peek() else { return Ok(()) };
        let section = self.innermost().section;
        if line.take("if") {
            match section {
                Section::Start => self.innermost().section = Section::If,
                Section::If => return Err(wrong(line.line, first, "the comparisons have begun")),
                Section::Then | Section::Else if self.open.len() == TRANSACTION_DEPTH_MAX => {
                    let reason = format!("transactions lie at most {TRANSACTION_DEPTH_MAX} deep");
                    return Err(wrong(line.line, first, &reason));
                }
                Section::Then | Section::Else => self.open.push(Open::new(line.line, Section::If)),
            }
            return self.line(line);
        }
        for (word, begins, reason) in [
            ("then", Section::Then, "this transaction has a 'then' or an 'else' already"),
            ("else", Section::Else, "this transaction has an 'else' already"),
        ] {
            if line.take(word) {
                if section >= begins {
                    let more = "a transaction inside begins with 'if'";
                    return Err(wrong(line.line, first, &format!("{reason}; {more}")));
                }
                self.innermost().section = begins;
                return self.line(line);
            }
        }
        if line.take("end") {
            line.ends()?;
            if self.open.len() == 1 {
                let reason = "'end' ends a transaction inside, and none is open here";
                return Err(wrong(line.line, first, reason));
            }
            let Some(inside) = self.open.pop() else { panic!("no transaction is open") };
            self.innermost().add(TxnOp::Txn(Box::new(inside.txn)));
            return Ok(());
        }
        match section {
            Section::Start => {
                Err(wrong(line.line, first, "a transaction begins with 'if', 'then' or 'else'"))
            }
            Section::If => {
                let comparison = line.comparison()?;
                self.innermost().txn.compare.push(comparison);
                line.ends()
            }
            Section::Then | Section::Else => {
                let op = line.operation()?;
                self.innermost().add(op);
                Ok(())
            }
        }
    }

    /// The transaction, when the text has ended with this line.
    fn finish(mut self, line: usize) -> Result<Txn, TxnTextError> {
        let Open { section, txn, line: begun } = match self.open.pop() {
            Some(open) => open,
            None => panic!("no transaction is open"),
        };
        let reason = match section {
            Section::Start => {
                "there is no transaction: it begins with 'if', 'then' or 'else'".into()
            }
            _ if self.open.is_empty() => return Ok(txn),
            _ => format!("the transaction that begins in line {begun} has no 'end'"),
        };
        Err(TxnTextError { line, column: 1, reason })
    }
}

fn wrong(line: usize, word: &Word, reason: &str) -> TxnTextError {
    TxnTextError { line, column: word.column, reason: reason.to_owned() }
}

/// A line, word by word.
#[derive(Clone, Copy)]
struct Line<'a> {
    line: usize,
    words: &'a [Word],
    /// Index of the next word.
    next: usize,
    /// The column behind the last character.
    end: usize,
}

impl<'a> Line<'a> {
    fn peek(&self) -> Option<&'a Word> {
        self.words.get(self.next)
    }

    /// Takes the next word if it is this one of the language.
    fn take(&mut self, keyword: &str) -> bool {
        let is_it = self.peek().is_some_and(|word| word.is(keyword));
        self.next += usize::from(is_it);
        is_it
    }

    /// An error at the next word, or at the end of the line.
    fn expected(&self, what: &str) -> TxnTextError {
        let column = self.peek().map_or(self.end, |word| word.column);
        TxnTextError { line: self.line, column, reason: format!("{what} is expected here") }
    }

    fn need(&mut self, keyword: &str) -> Result<(), TxnTextError> {
        let taken = self.take(keyword);
        taken.then_some(()).ok_or_else(|| self.expected(&format!("'{keyword}'")))
    }

    /// Any word, quoted or not.
    fn word(&mut self, what: &str) -> Result<&'a Word, TxnTextError> {
        let word = self.peek().ok_or_else(|| self.expected(what))?;
        self.next += 1;
        Ok(word)
    }

    fn ends(&self) -> Result<(), TxnTextError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("the end of the line")),
        }
    }

    fn key(&mut self) -> Result<Bytes, TxnTextError> {
        let word = self.word("a key")?;
        let key = Bytes::copy_from_slice(&word.bytes);
        check_key(&key).map_err(|why| wrong(self.line, word, &why.to_string()))?;
        Ok(key)
    }

    fn value(&mut self) -> Result<Bytes, TxnTextError> {
        let word = self.word("a value")?;
        if word.bytes.len() > VALUE_BYTES_MAX {
            let reason = ClientError::ValueTooLong(word.bytes.len()).to_string();
            return Err(wrong(self.line, word, &reason));
        }
        Ok(Bytes::copy_from_slice(&word.bytes))
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, TxnTextError> {
        let word = self.word(what)?;
        let is_number = word.is_bare && word.bytes.iter().all(u8::is_ascii_digit);
        let text = str::from_utf8(&word.bytes).ok().filter(|_| is_number);
        let number = text.and_then(|text| text.parse().ok());
        number.ok_or_else(|| wrong(self.line, word, &format!("{what} is expected here")))
    }

    /// A key, or a range.
    fn keys(&mut self) -> Result<TxnKeys, TxnTextError> {
        let is_one = |next: Option<&Word>| !next.is_some_and(|next| next.is("to"));
        match self.peek() {
            Some(first) if !first.is("prefix") && is_one(self.words.get(self.next + 1)) => {
                if first.is("..") {
                    let reason = "'..' is an open end, and needs a 'to' behind it";
                    return Err(wrong(self.line, first, reason));
                }
                self.key().map(TxnKeys::One)
            }
            _ => self.range().map(TxnKeys::from),
        }
    }

    /// `A to B` or `prefix P`.
    fn range(&mut self) -> Result<KeyRange, TxnTextError> {
        let Some(first) = self.peek() else {
            return Err(self.expected("a range, A to B or prefix P,"));
        };
        let line = self.line;
        if self.take("prefix") {
            let prefix = self.word("a prefix, '' for every key,")?;
            let range = KeyRange::prefix(&prefix.bytes);
            return range.map_err(|why| wrong(line, prefix, &why.to_string()));
        }
        let from = if self.take("..") { None } else { Some(self.key()?) };
        self.need("to")?;
        let to = if self.take("..") { None } else { Some(self.key()?) };
        let range = match (from, to) {
            (Some(from), Some(to)) => KeyRange::between(from, to),
            (Some(from), None) => KeyRange::starting_at(from),
            (None, Some(to)) => KeyRange::ending_at(to),
            (None, None) => Ok(KeyRange::all()),
        };
        range.map_err(|why| wrong(line, first, &why.to_string()))
    }

    fn relation(&mut self) -> Result<Relation, TxnTextError> {
        let found = RELATIONS.iter().find(|(sign, _)| self.take(sign));
        found.map(|(_, relation)| *relation).ok_or_else(|| self.expected("one of =, !=, < and >"))
    }

    fn comparison(&mut self) -> Result<Comparison, TxnTextError> {
        let is_of = self.words.get(self.next + 1).is_some_and(|word| word.is("of"));
        if !is_of {
            return self.existence();
        }
        let fact = self.word("a fact")?;
        let is = |name: &str| fact.is(name);
        self.need("of")?;
        if !["version", "created", "count", "lease", "value"].into_iter().any(is) {
            let reason = "a key has a version, created, count, lease and value, and nothing else";
            return Err(wrong(self.line, fact, reason));
        }
        let keys = self.keys()?;
        let relation = self.relation()?;
        let test = if is("value") {
            Test::Value(relation, self.value()?)
        } else if is("version") {
            Test::Version(relation, Timestamp(self.version()?))
        } else if is("created") {
            Test::Created(relation, Timestamp(self.version()?))
        } else if is("count") {
            Test::Count(relation, self.number("a number of writes")?)
        } else {
            Test::Lease(relation, self.number("a lease's number")?)
        };
        Ok(Comparison { keys, test })
    }

    fn version(&mut self) -> Result<i64, TxnTextError> {
        self.number("a version number, such as getrange prints,")
    }

    /// `K exists` or `K is absent`.
    fn existence(&mut self) -> Result<Comparison, TxnTextError> {
        let key = self.key()?;
        let relation = if self.take("exists") {
            Relation::NotEqual
        } else if self.take("is") {
            self.need("absent")?;
            Relation::Equal
        } else {
            let what = "a comparison, version of K = N, value of K = V, K exists or K is absent,";
            self.next = self.next.saturating_sub(1);
            return Err(self.expected(what));
        };
        Ok(Comparison { keys: TxnKeys::One(key), test: Test::Created(relation, Timestamp::ZERO) })
    }

    fn operation(&mut self) -> Result<TxnOp, TxnTextError> {
        let name = self.word("an operation")?;
        if name.is("get") {
            let key = self.key()?;
            self.ends()?;
            Ok(TxnOp::Get { key })
        } else if name.is("getrange") {
            self.get_range()
        } else if name.is("put") {
            let (key, value) = (self.key()?, self.value()?);
            let lease = match self.take_two("with", "lease")? {
                true => Some(LeaseId(self.number("a lease's number")?)),
                false => None,
            };
            let tells_previous = self.take_two("telling", "previous")?;
            self.ends()?;
            Ok(TxnOp::Put { key, value, tells_previous, lease })
        } else if name.is("del") {
            let key = self.key()?;
            let (keeps_history, tells_previous) = self.removal()?;
            Ok(TxnOp::Del { key, keeps_history, tells_previous })
        } else if name.is("delrange") {
            let (from, to) = self.range()?.ends();
            let (keeps_history, tells_previous) = self.removal()?;
            Ok(TxnOp::DelRange { from, to, keeps_history, tells_previous })
        } else {
            let reason = "this is no operation: get, getrange, put, del, delrange, or 'if' for a \
                          transaction inside";
            Err(wrong(self.line, name, reason))
        }
    }

    /// An option of two words.
    fn take_two(&mut self, first: &str, second: &str) -> Result<bool, TxnTextError> {
        let is_there = self.take(first);
        if is_there {
            self.need(second)?;
        }
        Ok(is_there)
    }

    /// The options of a removal: whether it keeps the history, and tells what there was.
    fn removal(&mut self) -> Result<(bool, bool), TxnTextError> {
        let keeps_history = self.take_two("keeping", "history")?;
        let tells_previous = self.take_two("telling", "previous")?;
        self.ends()?;
        Ok((keeps_history, tells_previous))
    }

    fn get_range(&mut self) -> Result<TxnOp, TxnTextError> {
        let (from, to) = self.range()?.ends();
        let rows_max = match self.take("limit") {
            true => self.number("a number of rows")?,
            false => NO_LIMIT,
        };
        let reverse = self.take("reverse");
        let keys_only = self.take_two("keys", "only")?;
        let counts_only = !keys_only && self.take_two("count", "only")?;
        self.ends()?;
        Ok(TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only })
    }
}
