//! File names from the network: checked once, where they come in, and never paths.

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::limits;

/// The name of a shared file: UTF-8, 1 to [`limits::FILE_NAME_BYTES_MAX`] bytes, no separators of
/// any system, no control characters, not `.` or `..`, none of the names that the machine keeps for
/// itself, nothing that ends in `.part`. Whoever holds one may join it to a folder.
///
/// What is reserved is up to the machine that decodes the name: one that Windows alone could not
/// store, such as `12:30:05.mkv` or `con.txt`, is a name everywhere else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct FileName(String);

/// Why a name is not one for a shared file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NameError {
    #[error("a file name cannot be empty")]
    Empty,
    /// Longer than [`limits::FILE_NAME_BYTES_MAX`]: its length in bytes.
    #[error("a file name has at most 255 bytes, not {0}")]
    TooLong(usize),
    /// A character that separates folders on some system.
    #[error("a file name cannot hold {0:?}: it would be a path")]
    Separator(char),
    /// A control character, which a terminal would take for a command.
    #[error("a file name cannot hold control characters")]
    Control,
    /// A name with a meaning of its own on some system.
    #[error("this file name is reserved by the system")]
    Reserved,
    /// The suffix of files that are still arriving.
    #[error("a name that ends in .part is kept for files that are still arriving")]
    Partial,
}

impl FileName {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<FileName, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > limits::FILE_NAME_BYTES_MAX {
            return Err(NameError::TooLong(name.len()));
        }
        if let Some(found) = name.chars().find(|c| matches!(c, '/' | '\\')) {
            return Err(NameError::Separator(found));
        }
        if name.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        if name == "." || name == ".." || cfg!(windows) && is_reserved_on_windows(name) {
            return Err(NameError::Reserved);
        }
        if name.to_ascii_lowercase().ends_with(".part") {
            return Err(NameError::Partial);
        }
        Ok(FileName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, and how else systems store what looks the same: with its accents in their letters
    /// (NFC) as keyboards type them, or behind them (NFD).
    pub fn spellings(&self) -> Vec<FileName> {
        let mut spellings = vec![self.clone()];
        for other in [self.0.nfc().collect::<String>(), self.0.nfd().collect()] {
            // One that became too long is nobody's.
            if let Ok(other) = FileName::new(&other)
                && !spellings.contains(&other)
            {
                spellings.push(other);
            }
        }
        spellings
    }
}

/// What Windows keeps for devices (with any extension), what it would cut off, and what means
/// something else to it.
fn is_reserved_on_windows(name: &str) -> bool {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|rest| matches!(rest.as_bytes(), [b'0'..=b'9']))
    };
    name.contains(['<', '>', ':', '"', '|', '?', '*'])
        || name.ends_with(['.', ' '])
        || DEVICES.contains(&&*stem)
        || numbered("com")
        || numbered("lpt")
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        FileName::new(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_accents_has_the_spellings_of_other_systems() {
        let spellings = |name: &str| -> Vec<String> {
            let name = FileName::new(name).unwrap();
            name.spellings().iter().map(|name| name.as_str().to_owned()).collect()
        };
        let (composed, decomposed) = ("caf\u{e9}.txt", "cafe\u{301}.txt");
        assert_eq!(spellings("film.mkv"), ["film.mkv"]);
        assert_eq!(spellings(composed), [composed, decomposed]);
        assert_eq!(spellings(decomposed), [decomposed, composed]);
        // As long as a name may be, until its accents are letters of their own.
        let long = "\u{e9}".repeat(limits::FILE_NAME_BYTES_MAX / 2);
        assert_eq!(spellings(&long), [&long[..]]);
    }

    #[test]
    fn a_name_is_never_a_path_and_else_what_the_machine_can_store() {
        for bad in ["", ".", "..", "/", "../x", "a/b", "a\\b", "a\0b", "a\nb", "x.part", "X.PART"] {
            assert!(FileName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["...", "a.", "a ", " ", ".a", "~", "-rf", "$HOME", "e\u{301}"] {
            assert!(FileName::new(good).is_ok(), "{good:?}");
        }
        let windows =
            ["12:30:05.mkv", "con", "Con.txt", "nul", "com1.log", "lpt9", "a.", "a ", "who?"];
        for name in windows {
            assert!(is_reserved_on_windows(name), "{name}");
            assert_eq!(FileName::new(name).is_err(), cfg!(windows), "{name}");
        }
        for name in ["conx", "com", "com10", "a.con", "aux-1"] {
            assert!(!is_reserved_on_windows(name), "{name}");
        }
    }
}
