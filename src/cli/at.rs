//! `--at`: a version, or a time that is one.
//!
//! A version is a time in microseconds since the Unix epoch, so that to read as of a time is to
//! read as of a version. What is relative to now becomes one when the command runs.

use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp as Time};

use crate::model::Timestamp;

/// The value of `--at`.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// A version; zero or less means the newest.
    Version(Timestamp),
    /// A time in the past, as a negative span from when the command runs.
    Ago(Span),
    /// The moment in which the command runs.
    Now,
}

/// Why an `--at` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtError {
    /// Neither a version nor a time.
    #[error(
        "'{0}' is neither a version nor a time: write a version number, a time such as \
         2026-11-20T12:00:00Z, how long ago, such as '10m ago', or 'now'"
    )]
    NotUnderstood(String),
    /// A number that looks like seconds or milliseconds.
    #[error(
        "'{0}' looks like {1} since 1970, and versions count microseconds: append {2}, as `date \
         +%s%6N` does"
    )]
    OtherUnit(String, &'static str, &'static str),
    /// A time before 1970, from which versions are counted.
    #[error("'{0}' is before 1970 and so before every version")]
    BeforeEpoch(String),
}

impl FromStr for At {
    type Err = AtError;

    fn from_str(text: &str) -> Result<At, AtError> {
        let wrong = || AtError::NotUnderstood(text.to_owned());
        let trimmed = text.trim();
        if trimmed == "now" {
            return Ok(At::Now);
        }
        if trimmed.ends_with("ago") {
            let span: Span = trimmed.parse().map_err(|_| wrong())?;
            return Ok(At::Ago(span));
        }
        if trimmed.strip_prefix('-').unwrap_or(trimmed).bytes().all(|byte| byte.is_ascii_digit()) {
            let version: i64 = trimmed.parse().map_err(|_| wrong())?;
            // From 1973 on. Taken for microseconds they would all be on the first days of 1970,
            // when there is nothing.
            return match version {
                SECONDS_MIN..SECONDS_MAX => {
                    Err(AtError::OtherUnit(trimmed.to_owned(), "seconds", "000000"))
                }
                SECONDS_MAX..MILLISECONDS_MAX => {
                    Err(AtError::OtherUnit(trimmed.to_owned(), "milliseconds", "000"))
                }
                _ => Ok(At::Version(Timestamp(version))),
            };
        }
        let time: Time = match trimmed.parse() {
            Ok(time) => time,
            // What people write for the end of time is past the calendar's by a day, wherever on
            // Earth it is.
            Err(_) if is_end_of_time(trimmed) => Time::MAX,
            Err(_) => return Err(wrong()),
        };
        Ok(At::Version(version(time).ok_or_else(|| AtError::BeforeEpoch(text.to_owned()))?))
    }
}

/// Numbers from here on are taken for seconds, of 1973 and later.
const SECONDS_MIN: i64 = 100_000_000;
/// Seconds end here, in the year 5138, where the milliseconds of 1973 begin.
const SECONDS_MAX: i64 = 100_000_000_000;
/// Milliseconds end here, where the versions of 1973 begin.
const MILLISECONDS_MAX: i64 = 100_000_000_000_000;

/// Whether it is a time on the last two days that can be written.
fn is_end_of_time(text: &str) -> bool {
    let rest = ["9999-12-30", "9999-12-31"].iter().find_map(|day| text.strip_prefix(day));
    rest.is_some_and(|rest| format!("9999-12-29{rest}").parse::<Time>().is_ok())
}

impl At {
    /// The version it means at this moment. Units from days up are those of the calendar, in UTC.
    ///
    /// # Errors
    /// [`AtError::BeforeEpoch`].
    pub fn resolve(self, now: Time) -> Result<Timestamp, AtError> {
        let (time, shown) = match self {
            At::Version(version) => return Ok(version),
            At::Now => (Some(now), "now".to_owned()),
            At::Ago(span) => {
                let then = now.to_zoned(TimeZone::UTC).checked_add(span);
                (then.ok().map(|then| then.timestamp()), format!("{span:#}"))
            }
        };
        time.and_then(version).ok_or(AtError::BeforeEpoch(shown))
    }
}

/// The version that a time is. Zero would mean the newest.
fn version(time: Time) -> Option<Timestamp> {
    Some(Timestamp(time.as_microsecond())).filter(|version| *version > Timestamp::ZERO)
}

/// The time that a version is, in RFC 3339; `None` for one that is past the end of the calendar.
pub fn time_of(version: Timestamp) -> Option<String> {
    Time::from_microsecond(version.0).ok().map(|time| format!("{time:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version of the time 2026-11-20T12:00:00Z.
    const NOON: i64 = 1_795_176_000_000_000;

    fn at(text: &str) -> Result<i64, AtError> {
        let now = Time::from_microsecond(NOON).unwrap();
        text.parse::<At>()?.resolve(now).map(|version| version.0)
    }

    #[test]
    fn versions_times_and_how_long_ago() {
        let good = [
            ("1795224871548738", 1_795_224_871_548_738),
            ("0", 0),
            ("-1", -1),
            ("5", 5),
            ("9999-12-31T23:59:59Z", Time::MAX.as_microsecond()),
            ("2026-11-20T12:00:00Z", NOON),
            ("2026-11-20T12:00:00.000001Z", NOON + 1),
            ("2026-11-20T09:00:00-03:00", NOON),
            ("2026-11-20 14:30:00+02:30", NOON),
            ("now", NOON),
            ("0s ago", NOON),
            ("10m ago", NOON - 600_000_000),
            ("10 minutes ago", NOON - 600_000_000),
            ("2h ago", NOON - 7_200_000_000),
            ("1h 30m ago", NOON - 5_400_000_000),
            ("1h30m ago", NOON - 5_400_000_000),
            ("1d ago", NOON - 86_400_000_000),
            (" 1 week ago ", NOON - 7 * 86_400_000_000),
        ];
        for (text, version) in good {
            assert_eq!(at(text), Ok(version), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        let long = "9".repeat(30);
        let wrong = [
            "",
            "-",
            "yesterday",
            "10m",
            "ago",
            "-10m ago",
            "10x ago",
            "2026-11-20",
            "2026-11-20T12:00:00",
            "2026-13-20T12:00:00Z",
            "12:00",
            "1.5",
            "+5",
            &long,
        ];
        for text in wrong {
            assert_eq!(at(text), Err(AtError::NotUnderstood(text.to_owned())), "{text}");
        }
        for text in ["1795224871", "1795224871548"] {
            assert!(matches!(at(text), Err(AtError::OtherUnit(..))), "{text}");
        }
        for text in ["1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "90 years ago"] {
            assert!(matches!(at(text), Err(AtError::BeforeEpoch(_))), "{text}");
        }
    }

    #[test]
    fn a_version_is_a_time() {
        assert_eq!(time_of(Timestamp(NOON)).as_deref(), Some("2026-11-20T12:00:00.000000Z"));
        assert_eq!(time_of(Timestamp(i64::MAX)), None);
        assert_eq!(at(&time_of(Timestamp(NOON + 7)).unwrap()), Ok(NOON + 7));
    }
}
