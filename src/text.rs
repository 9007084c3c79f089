//! Escaping of untrusted bytes for terminals and log lines, and reading of lines with a bound.
//!
//! The escape is reversible: printable UTF-8 stands as it is, every other byte becomes `\xNN` (two
//! lower-case hexadecimal digits), and a backslash is doubled only where it would otherwise be read
//! as the start of an escape, that is before another backslash, before an escaped byte, and before
//! `x` with two hexadecimal digits. Reading back, `\\` is one backslash, `\xNN` one byte, and a
//! backslash before anything else stands for itself.
//!
//! Beside it, lines as they are typed or piped in, with a bound on their length.

use std::fmt;
use std::io::{self, BufRead};

use crate::limits::{INPUT_LINE_BYTES_MAX, REASON_BYTES_MAX};

/// Shows `bytes` escaped, without allocating.
pub fn escape(bytes: &[u8]) -> Escaped<'_> {
    Escaped(bytes)
}

/// The [`Display`](fmt::Display) form made by [`escape`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A backslash waits here until what follows tells whether it must be doubled.
        let mut backslash = false;
        for chunk in self.0.utf8_chunks() {
            let text = chunk.valid();
            // Printable text is written in runs, which matters for values of a megabyte.
            let (mut run, mut previous) = (0, '\0');
            for (at, character) in text.char_indices() {
                let after = at + character.len_utf8();
                let joins = || text[after..].chars().next().is_some_and(is_pictograph);
                let printable = is_printable(character)
                    || character == JOINER && is_pictograph(previous) && joins();
                previous = character;
                if character != '\\' && printable && !backslash {
                    continue;
                }
                f.write_str(&text[run..at])?;
                run = after;
                if backslash {
                    let escape_follows = character == '\\'
                        || !printable
                        || (character == 'x' && starts_with_two_hex_digits(&text[after..]));
                    f.write_str(if escape_follows { "\\\\" } else { "\\" })?;
                    backslash = false;
                }
                if character == '\\' {
                    backslash = true;
                } else if printable {
                    run = at;
                } else {
                    let mut utf8 = [0; 4];
                    write_bytes(f, character.encode_utf8(&mut utf8).as_bytes())?;
                }
            }
            f.write_str(&text[run..])?;
            if !chunk.invalid().is_empty() {
                if std::mem::take(&mut backslash) {
                    f.write_str("\\\\")?;
                }
                write_bytes(f, chunk.invalid())?;
            }
        }
        if backslash {
            f.write_str("\\")?;
        }
        Ok(())
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

fn starts_with_two_hex_digits(text: &str) -> bool {
    matches!(text.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}

/// The character that joins several pictures to one, as the members of a family. Anywhere else it
/// is invisible.
const JOINER: char = '\u{200d}';

/// Whether a character can be joined to others: pictures, skin colours, and what makes a picture of
/// a sign.
fn is_pictograph(character: char) -> bool {
    matches!(character, '\u{2190}'..='\u{2bff}' | '\u{fe0f}' | '\u{1f000}'..='\u{1faff}')
}

/// Whether a character is shown as it is. Control characters are not, nor are the invisible ones
/// that break a line or turn the direction of writing, by which one text can pose as another.
pub(crate) fn is_printable(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A number and what it counts, in the form that goes with it.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Reads what [`escape`] wrote, and what people write like it.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [b'\\', b'\\', rest @ ..] => {
                bytes.push(b'\\');
                rest
            }
            [b'\\', b'x', high, low, rest @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                bytes.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
            [] => return bytes,
        }
    }
}

/// Reads bytes in hexadecimal, two digits each.
pub fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    Some(pairs.iter().map(|[high, low]| hex_digit(*high) << 4 | hex_digit(*low)).collect())
}

/// The value of a hexadecimal digit; the caller has checked that it is one.
fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20).wrapping_sub(b'a').wrapping_add(10),
    }
}

/// Why a line could not be used. The next line can still be read, except after an IO error.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The system could not read the input.
    #[error("the input could not be read: {0}")]
    Io(#[from] io::Error),
    /// The line is longer than the limit; the rest of it was skipped.
    #[error("a line is longer than {INPUT_LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The line is not UTF-8.
    #[error("a line is not UTF-8")]
    NotUtf8,
}

/// Reads one line, without its end (`\n` or `\r\n`). `None` is the end of the input.
///
/// # Errors
/// See [`LineError`].
pub fn read_line(input: &mut dyn BufRead) -> Result<Option<String>, LineError> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut read = false;
    loop {
        let piece = match input.fill_buf() {
            Ok(piece) => piece,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let end = piece.iter().position(|byte| *byte == b'\n');
        let used = end.unwrap_or(piece.len());
        too_long |= line.len() + used > INPUT_LINE_BYTES_MAX;
        if !too_long {
            line.extend_from_slice(&piece[..used]);
        }
        let ended = end.is_some() || piece.is_empty();
        read |= !piece.is_empty();
        input.consume(used + usize::from(end.is_some()));
        if ended {
            break;
        }
    }
    if too_long {
        return Err(LineError::TooLong);
    }
    if !read {
        return Ok(None);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map(Some).map_err(|_| LineError::NotUtf8)
}

/// A reason to refuse a connection, fit for a log and for a frame: it may hold what someone sent.
pub(crate) fn sentence(reason: &str) -> String {
    // An escape is never shorter than what it stands for, so what lies beyond this many bytes of
    // the reason cannot show: it is cut off before it is escaped, however long it is.
    let shown = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX + 4)];
    let mut sentence = escape(shown.as_bytes()).to_string();
    if sentence.len() > REASON_BYTES_MAX {
        sentence.truncate(sentence.floor_char_boundary(REASON_BYTES_MAX - 3));
        sentence.push_str("...");
    }
    sentence
}

/// Whether the terminal takes letters only, as `TERM` says: control sequences would be shown as
/// signs. A terminal that is not named may be any.
pub fn is_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(bytes: &[u8]) -> String {
        escape(bytes).to_string()
    }

    #[test]
    fn only_one_is_singular() {
        let english = [0, 1, 2, 11, 21, 1_001].map(|number| counted(number, "key is", "keys are"));
        let expected =
            ["0 keys are", "1 key is", "2 keys are", "11 keys are", "21 keys are", "1001 keys are"];
        assert_eq!(english, expected);
        let portuguese = [0, 1, 2].map(|number| counted(number, "servidor", "servidores"));
        assert_eq!(portuguese, ["0 servidores", "1 servidor", "2 servidores"]);
    }

    #[test]
    fn pictures_that_are_joined_are_printed_and_nothing_else_is_joined() {
        let family =
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{2764}\u{fe0f}\u{200d}\u{1f525}";
        assert_eq!(escape(family.as_bytes()).to_string(), family);
        for posing in ["a\u{200d}b", "\u{1f468}\u{200d}", "\u{1f468}\u{200d}a", "\u{200d}\u{1f468}"]
        {
            let shown = escape(posing.as_bytes()).to_string();
            assert!(shown.contains(r"\xe2\x80\x8d"), "{shown}");
            assert_eq!(unescape(shown.as_bytes()), posing.as_bytes());
        }
    }

    #[test]
    fn printable_text_is_untouched() {
        for text in ["", "k", "olá, coração", "日本", "a b", r"C:\dir\new", r"\", "e\u{301}"] {
            assert_eq!(escaped(text.as_bytes()), text);
        }
    }

    #[test]
    fn other_bytes_are_hexadecimal() {
        assert_eq!(escaped(b"a\0b\n\x7f"), r"a\x00b\x0a\x7f");
        assert_eq!(escaped(b"\xff\xfeok\xc3"), r"\xff\xfeok\xc3");
        assert_eq!(escaped("\u{85}\u{202e}x".as_bytes()), r"\xc2\x85\xe2\x80\xaex");
    }

    #[test]
    fn a_backslash_is_doubled_only_where_it_matters() {
        assert_eq!(escaped(br"\x41"), r"\\x41");
        assert_eq!(escaped(br"\x4"), r"\x4");
        assert_eq!(escaped(b"\\\n"), r"\\\x0a");
        assert_eq!(escaped(b"\\\xff"), r"\\\xff");
        assert_eq!(escaped(br"\\"), r"\\\");
    }

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        assert_eq!(unescape(br"a\x00\\x41\q\x4g\X41\"), b"a\0\\x41\\q\\x4g\\X41\\");
        assert_eq!(unescape(b"\xff\\xFE"), b"\xff\xfe");
    }

    #[test]
    fn lines_end_as_on_any_system_and_bad_ones_are_skipped() {
        let long = vec![b'a'; INPUT_LINE_BYTES_MAX + 1];
        let input = [b"one\r\n\n\xff\n", &long[..], b"\nlast"].concat();
        let mut input = &input[..];
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("one"));
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some(""));
        assert!(matches!(read_line(&mut input), Err(LineError::NotUtf8)));
        assert!(matches!(read_line(&mut input), Err(LineError::TooLong)));
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("last"));
        assert_eq!(read_line(&mut input).unwrap(), None);
    }

    proptest! {
        #[test]
        fn it_is_reversible_and_printable(pieces in proptest::collection::vec(
            prop_oneof![Just(b"\\".to_vec()), Just(b"x".to_vec()), Just(b"4f".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..4)], 0..12)) {
            let bytes = pieces.concat();
            let text = escaped(&bytes);
            prop_assert!(text.chars().all(|c| is_printable(c) || c == JOINER), "{text:?}");
            prop_assert_eq!(unescape(text.as_bytes()), bytes);
        }
    }

    #[test]
    fn a_reason_is_one_short_printable_line() {
        assert_eq!(sentence("no room"), "no room");
        assert_eq!(sentence("unknown `\x1b[2J\n`"), r"unknown `\x1b[2J\x0a`");
        let long = sentence(&"ã".repeat(10_000));
        assert!(long.len() <= REASON_BYTES_MAX && long.ends_with("ã..."), "{long}");
    }
}
