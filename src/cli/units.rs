//! Durations and sizes as people type them: `10s`, `500ms`, `1MiB`.

use std::time::Duration;

use crate::limits::{FLAG_DURATION_MAX, HISTORY_VERSIONS_MAX};
use crate::model::History;

/// Why a duration or a size was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is no number followed by a unit.
    #[error("'{0}' is not a duration: write a whole number and a unit, such as 500ms, 10s or 2m")]
    Duration(String),
    /// The duration is longer than a day.
    #[error("'{0}' is too long: at most {max} hours", max = FLAG_DURATION_MAX.as_secs() / 3600)]
    DurationTooLong(String),
    /// The text is no number, or its unit is unknown.
    #[error("'{0}' is not a size: write a whole number of bytes, or one with KiB, MiB or GiB")]
    Size(String),
    /// The text does not say how much history to keep.
    #[error(
        "'{0}' is not a history: write 'all', a duration such as 24h or 30d, or how many versions \
         of a key are kept, from 1 to {HISTORY_VERSIONS_MAX}"
    )]
    History(String),
    /// The text is no size a second.
    #[error("'{0}' is not a rate: write a size a second, such as 500KiB/s or 20MiB/s")]
    Rate(String),
}

/// Reads a history: `all`, a duration (days as `d`, too), or a number of versions.
pub fn parse_history(text: &str) -> Result<History, UnitError> {
    let wrong = || UnitError::History(text.to_owned());
    if text == "all" {
        return Ok(History::All);
    }
    let (digits, unit) = split_number(text);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match unit {
        "" => {
            let count = u32::try_from(number).map_err(|_| wrong())?;
            Some(History::Versions { count }).filter(|history| history.can_be_kept())
        }
        unit => {
            let age_us = number.checked_mul(unit_us(unit).ok_or_else(wrong)?);
            age_us.map(|age_us| History::For { age_us }).filter(|history| history.can_be_kept())
        }
    }
    .ok_or_else(wrong)
}

fn unit_us(unit: &str) -> Option<u64> {
    Some(match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    })
}

/// Reads a duration: a whole number and `us`, `ms`, `s`, `m`, `h` or `d`; a bare `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    match parse_any_duration(text)? {
        duration if duration > FLAG_DURATION_MAX => {
            Err(UnitError::DurationTooLong(text.to_owned()))
        }
        duration => Ok(duration),
    }
}

/// Reads a duration of any length, such as a lease may have.
pub fn parse_any_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let too_long = || UnitError::DurationTooLong(text.to_owned());
    let (digits, unit) = split_number(text);
    if digits.is_empty() {
        return Err(wrong());
    }
    let unit_us = match unit {
        "" if digits.bytes().all(|digit| digit == b'0') => 1,
        unit => unit_us(unit).ok_or_else(wrong)?,
    };
    // Only digits are left, so a number that does not parse is one too large for the type.
    let number: u64 = digits.parse().map_err(|_| too_long())?;
    Ok(Duration::from_micros(number.checked_mul(unit_us).ok_or_else(too_long)?))
}

/// Reads a size in bytes: a whole number, alone or with `B`, `KiB`, `MiB` or `GiB`.
pub fn parse_size(text: &str) -> Result<usize, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let (digits, unit) = split_number(text);
    let unit_bytes: usize = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: usize = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit_bytes).ok_or_else(wrong)
}

/// Reads a rate in bytes a second: a size and `/s`, not zero.
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    let size = text.strip_suffix("/s").and_then(|size| parse_size(size).ok());
    match size {
        Some(bytes @ 1..) => Ok(bytes as u64),
        Some(0) | None => Err(UnitError::Rate(text.to_owned())),
    }
}

fn split_number(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let good = [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("7us", Duration::from_micros(7)),
            ("500ms", Duration::from_millis(500)),
            ("10s", Duration::from_secs(10)),
            ("2m", Duration::from_secs(120)),
            ("24h", FLAG_DURATION_MAX),
        ];
        for (text, duration) in good {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
        for text in ["", "s", "10", "10 s", "-1s", "1.5s", "10w", "1e3s", "１s", "ms10"] {
            assert_eq!(parse_duration(text), Err(UnitError::Duration(text.to_owned())), "{text}");
        }
        for text in ["25h", "18446744073709551615h", "99999999999999999999999s"] {
            let expected = Err(UnitError::DurationTooLong(text.to_owned()));
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("1B/s"), Ok(1));
        assert_eq!(parse_rate("500KiB/s"), Ok(500 << 10));
        for text in ["", "/s", "20MiB", "0/s", "20MiB/m", "20 MiB/s"] {
            assert_eq!(parse_rate(text), Err(UnitError::Rate(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("1000", 1000),
            ("3B", 3),
            ("64KiB", 65536),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "1 MiB",
            "1mb",
            "-1",
            "1.5MiB",
            "99999999999999999999",
            "18446744073709551615KiB",
        ] {
            assert_eq!(parse_size(text), Err(UnitError::Size(text.to_owned())), "{text}");
        }
    }
}
