//! The versions of a session by the names that a script gives them.

use std::collections::BTreeMap;

/// Which version has which name.
#[derive(Debug, Default)]
pub struct Names {
    known: BTreeMap<String, i64>,
    /// Every name is taken for some version: to read a script without running it.
    any: bool,
}

impl Names {
    pub fn any() -> Names {
        Names { any: true, ..Names::default() }
    }

    /// A version as scripts write it: `v1`, `v1-1`, `v1+1`, or a number.
    pub fn version(&self, text: &str) -> Result<i64, String> {
        let none = || format!("'{text}' is no version");
        if !text.starts_with('v') {
            return text.parse().map_err(|_| none());
        }
        let (name, offset) = text.split_at(text.find(['-', '+']).unwrap_or(text.len()));
        let offset = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| none())? };
        match self.known.get(name) {
            Some(version) => Ok(version + offset),
            None if self.any && is_name(name) => Ok(0),
            None => Err(format!("'{name}' is not known here")),
        }
    }

    /// Names a version that was written, or finds it to be the one that has the name. One that is
    /// new is greater than all before: that is so in every script, and no script has to say it.
    pub fn bind(&mut self, name: &str, version: i64) -> Result<(), String> {
        if !is_name(name) {
            return Err(format!("'{name}' is no name of a version"));
        }
        if let Some(known) = self.known.get(name) {
            let message = || format!("{} was written, and not {name}", self.show(version));
            return (*known == version).then_some(()).ok_or_else(message);
        }
        if let Some((greatest, last)) = self.known.iter().max_by_key(|(_, version)| **version)
            && version <= *last
        {
            return Err(format!("{} was written after {greatest}", self.show(version)));
        }
        self.known.insert(name.to_owned(), version);
        Ok(())
    }

    /// The name of a version, or its number.
    pub fn show(&self, version: i64) -> String {
        let name = self.known.iter().find(|(_, known)| **known == version);
        name.map_or_else(|| version.to_string(), |(name, _)| name.clone())
    }
}

/// `v` and a number.
pub fn is_name(text: &str) -> bool {
    text.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
