//! How long the versions of a key are kept that newer ones have replaced.

use serde::{Deserialize, Serialize};

use crate::limits;

/// How long versions are kept that newer ones have replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// All of them, for ever.
    #[default]
    #[serde(rename = "ALL")]
    All,
    /// As long as a read as of this many microseconds ago may ask for them.
    #[serde(rename = "FOR")]
    For {
        /// Of the log's own time.
        age_us: u64,
    },
    /// This many newest versions of each key.
    #[serde(rename = "VERSIONS")]
    Versions {
        /// The newest one counts, so it is at least 1.
        count: u32,
    },
}

impl History {
    /// Whether there is such a history: something is kept of it, and a number that is not absurd.
    pub fn can_be_kept(self) -> bool {
        match self {
            History::All => true,
            History::For { age_us } => (1..=i64::MAX as u64).contains(&age_us),
            History::Versions { count } => (1..=limits::HISTORY_VERSIONS_MAX).contains(&count),
        }
    }
}

/// As the command line reads it: `all`, `24h`, `10`.
impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(u64, &str); 5] = [
            (86_400_000_000, "d"),
            (3_600_000_000, "h"),
            (60_000_000, "m"),
            (1_000_000, "s"),
            (1_000, "ms"),
        ];
        match self {
            History::All => f.write_str("all"),
            History::For { age_us } => {
                let whole = |unit: &&(u64, &str)| *age_us > 0 && age_us.is_multiple_of(unit.0);
                let (unit_us, name) = UNITS.iter().find(whole).copied().unwrap_or((1, "us"));
                write!(f, "{}{name}", age_us / unit_us)
            }
            History::Versions { count } => write!(f, "{count}"),
        }
    }
}
