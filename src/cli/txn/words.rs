//! The words of a line, by the quoting rules of a shell.
//!
//! Blanks separate words, and `#` where a word could begin makes the rest of the line a comment.
//! Between single quotes everything stands for itself. Elsewhere, between double quotes too, a
//! backslash stands before a sign that is meant as it is, and `\xNN` is one byte. A shell drops a
//! backslash before a letter in silence, or keeps it; here it is an error, since whoever writes
//! `\n` means a line end.

use std::fmt;
use std::str::Chars;

use super::TxnTextError;
use crate::text::is_printable;

/// A word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// What it stands for, without quotes and escapes.
    pub(super) bytes: Vec<u8>,
    /// Nothing of it was quoted or escaped, so that it may be a word of the language.
    pub(super) is_bare: bool,
    /// The column at which it begins.
    pub(super) column: usize,
}

impl Word {
    /// Whether it is this word of the language.
    pub(super) fn is(&self, keyword: &str) -> bool {
        self.is_bare && self.bytes == keyword.as_bytes()
    }
}

/// Takes a line apart.
///
/// # Errors
/// A quote without an end, and an escape that is none.
pub(super) fn words(line: usize, text: &str) -> Result<Vec<Word>, TxnTextError> {
    let mut scanner = Scanner { line, column: 1, rest: text.chars() };
    let mut words = Vec::new();
    loop {
        match scanner.peek() {
            None | Some('#') => return Ok(words),
            Some(' ' | '\t') => drop(scanner.next()),
            Some(_) => words.push(scanner.word()?),
        }
    }
}

/// Goes through a line, character by character.
struct Scanner<'a> {
    line: usize,
    /// Of the next character.
    column: usize,
    rest: Chars<'a>,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.column += usize::from(next.is_some());
        next
    }

    fn wrong(&self, column: usize, reason: &str) -> TxnTextError {
        TxnTextError { line: self.line, column, reason: reason.to_owned() }
    }

    fn word(&mut self) -> Result<Word, TxnTextError> {
        let mut word = Word { bytes: Vec::new(), is_bare: true, column: self.column };
        while let Some(first) = self.peek().filter(|next| !matches!(next, ' ' | '\t')) {
            word.is_bare &= !matches!(first, '\'' | '"' | '\\');
            match first {
                '\'' | '"' => self.quoted(&mut word.bytes)?,
                '\\' => self.escape(&mut word.bytes)?,
                _ => self.literal(&mut word.bytes),
            }
        }
        Ok(word)
    }

    /// What stands between two quotes, of which the first comes next.
    fn quoted(&mut self, bytes: &mut Vec<u8>) -> Result<(), TxnTextError> {
        let column = self.column;
        let quote = self.next();
        loop {
            match self.peek() {
                None => return Err(self.wrong(column, "this quote has no end")),
                next if next == quote => {
                    self.next();
                    return Ok(());
                }
                Some('\\') if quote == Some('"') => self.escape(bytes)?,
                Some(_) => self.literal(bytes),
            }
        }
    }

    fn literal(&mut self, bytes: &mut Vec<u8>) {
        if let Some(next) = self.next() {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// What an escape stands for, whose backslash comes next.
    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), TxnTextError> {
        let column = self.column;
        self.next();
        match self.next() {
            Some('x') => {
                let mut digit = || self.next().and_then(|digit| digit.to_digit(16));
                match (digit(), digit()) {
                    // Two digits of four bits each.
                    (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
                    _ => {
                        let reason = "behind \\x come two hexadecimal digits, as in \\x0a";
                        return Err(self.wrong(column, reason));
                    }
                }
            }
            Some(sign) if sign.is_ascii_punctuation() || matches!(sign, ' ' | '\t') => {
                bytes.push(sign as u8);
            }
            Some(_) => {
                let reason = "this is no escape: write \\xNN for a byte, \\\\ for a backslash, or \
                              put the word in single quotes, where a backslash stands for itself";
                return Err(self.wrong(column, reason));
            }
            None => return Err(self.wrong(column, "a backslash ends the line")),
        }
        Ok(())
    }
}

/// Bytes as a word that reads back as them, and never as one of these words of the language.
pub(super) struct Quoted<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) keywords: &'a [&'a str],
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = str::from_utf8(self.bytes);
        match text {
            Ok(text) if is_plain(text) && !self.keywords.contains(&text) => f.write_str(text),
            Ok(text) if text.chars().all(|next| is_printable(next) && next != '\'') => {
                write!(f, "'{text}'")
            }
            _ => {
                f.write_str("\"")?;
                for chunk in self.bytes.utf8_chunks() {
                    for next in chunk.valid().chars() {
                        match next {
                            '"' | '\\' => write!(f, "\\{next}")?,
                            _ if is_printable(next) => write!(f, "{next}")?,
                            _ => escape_bytes(f, next.encode_utf8(&mut [0; 4]).as_bytes())?,
                        }
                    }
                    escape_bytes(f, chunk.invalid())?;
                }
                f.write_str("\"")
            }
        }
    }
}

/// Whether a text needs no quotes.
fn is_plain(text: &str) -> bool {
    let needs_none = |next: char| next.is_alphanumeric() || "_-./:,@%+=!<>~".contains(next);
    !text.is_empty() && text.chars().all(|next| is_printable(next) && needs_none(next))
}

fn escape_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(line: &str) -> Vec<Vec<u8>> {
        words(1, line).unwrap().into_iter().map(|word| word.bytes).collect()
    }

    fn error_of(line: &str) -> (usize, String) {
        let error = words(1, line).unwrap_err();
        (error.column, error.reason)
    }

    #[test]
    fn words_are_separated_and_quoted_as_in_a_shell() {
        assert_eq!(bytes_of("  put\tk  v "), [b"put", &b"k"[..], b"v"]);
        assert_eq!(bytes_of(r#"'a b' "c d" e\ f"#), [b"a b", b"c d", b"e f"]);
        assert_eq!(bytes_of(r#"a'b'"c"\'d"#), [b"abc'd"]);
        assert_eq!(bytes_of(r#"'' """#), [b"", b""]);
        assert_eq!(bytes_of(r#"'\x41"\' "\"\\'\x41""#), [&br#"\x41"\"#[..], br#""\'A"#]);
        assert_eq!(bytes_of(r"\xff\x00 \#"), [&b"\xff\0"[..], b"#"]);
        assert_eq!(bytes_of("coração 日"), ["coração".as_bytes(), "日".as_bytes()]);
    }

    #[test]
    fn a_comment_begins_where_a_word_could() {
        assert_eq!(bytes_of("# nothing 'here"), Vec::<Vec<u8>>::new());
        assert_eq!(bytes_of("get a#b # the rest"), [b"get", &b"a#b"[..]]);
        assert_eq!(bytes_of("get '#'"), [&b"get"[..], b"#"]);
    }

    #[test]
    fn what_is_no_word_is_told_with_its_column() {
        let cases = [
            ("get 'a", 5, "this quote has no end"),
            ("çã \"b", 4, "this quote has no end"),
            (r"put k \n", 7, "no escape"),
            (r#"put k "a\n""#, 9, "no escape"),
            (r"\xg0", 1, "two hexadecimal digits"),
            (r"\x4", 1, "two hexadecimal digits"),
            (r"a\", 2, "ends the line"),
        ];
        for (line, column, reason) in cases {
            let (found, said) = error_of(line);
            assert_eq!(found, column, "{line}");
            assert!(said.contains(reason), "{line}: {said}");
        }
    }

    #[test]
    fn only_what_needs_quotes_gets_them() {
        let quoted = |bytes: &[u8]| Quoted { bytes, keywords: &["to", ".."] }.to_string();
        assert_eq!(quoted(b"user:1/a-b_c=d"), "user:1/a-b_c=d");
        assert_eq!(quoted("maçã".as_bytes()), "maçã");
        assert_eq!(quoted(b"a b"), "'a b'");
        assert_eq!(quoted(b""), "''");
        assert_eq!(quoted(b"to"), "'to'");
        assert_eq!(quoted(b".."), "'..'");
        assert_eq!(quoted(br"a\x41"), r"'a\x41'");
        assert_eq!(quoted(b"it's"), r#""it's""#);
        assert_eq!(quoted(b"\xff\n\"'"), r#""\xff\x0a\"'""#);
        assert_eq!(quoted("\u{202e}".as_bytes()), r#""\xe2\x80\xae""#);
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back(words_meant in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..9),
                any::<String>().prop_map(String::into_bytes),
                "[a-z '\"\\\\#]{0,6}".prop_map(String::into_bytes)], 0..6)) {
            let line: Vec<String> = words_meant.iter()
                .map(|bytes| Quoted { bytes, keywords: &["if"] }.to_string()).collect();
            let line = line.join(" ");
            prop_assert!(line.chars().all(is_printable), "{line}");
            let read = words(1, &line).unwrap();
            prop_assert!(read.iter().all(|word| !word.is("if")));
            let read: Vec<Vec<u8>> = read.into_iter().map(|word| word.bytes).collect();
            prop_assert_eq!(read, words_meant);
        }

        #[test]
        fn any_line_is_words_or_an_error_within_it(line in any::<String>()) {
            if let Err(error) = words(1, &line) {
                prop_assert!(1 <= error.column && error.column <= line.chars().count());
            }
        }
    }
}
