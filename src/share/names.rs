//! File names from the network: checked once, where they come in, and never paths.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;

/// The name of a shared file: UTF-8, 1 to [`limits::FILE_NAME_BYTES_MAX`] bytes, no separators of any
/// system, no control characters, none of the names that mean something else (`.`, `..`, `CON`, …),
/// nothing that ends in `.part`. Whoever holds one may join it to a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct FileName(String);

/// Why a name is not one for a shared file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a file name cannot be empty")]
    Empty,
    /// Too long.
    #[error("a file name has at most 255 bytes, not {0}")]
    TooLong(usize),
    /// `/`, `\` or `:`.
    #[error("a file name cannot hold {0:?}: it would be a path")]
    Separator(char),
    /// A control character.
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
        if let Some(found) = name.chars().find(|c| matches!(c, '/' | '\\' | ':')) {
            return Err(NameError::Separator(found));
        }
        if name.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        if is_reserved(name) {
            return Err(NameError::Reserved);
        }
        if name.to_ascii_lowercase().ends_with(".part") {
            return Err(NameError::Partial);
        }
        Ok(FileName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `.`, `..`, what Windows keeps for devices (with any extension), and what it would cut off.
fn is_reserved(name: &str) -> bool {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|rest| matches!(rest.as_bytes(), [b'0'..=b'9']))
    };
    name.ends_with(['.', ' ']) || DEVICES.contains(&&*stem) || numbered("com") || numbered("lpt")
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
