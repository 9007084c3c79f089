//! The mixes of requests that a load can be made of.

use super::OpKind;
use super::zipfian::Distribution;

/// A mix of requests. The lettered ones are the core workloads of YCSB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Writes, of keys drawn at random.
    Put,
    /// Writes of one key after the other, so that each has been written after as many requests as
    /// there are keys.
    Fill,
    /// Reads without a minimum timestamp: what is measured is the server, and not how often a
    /// client meets one that lags.
    Get,
    /// Pages of 1,000 keys.
    Range,
    /// Half reads, half updates.
    YcsbA,
    /// 95 % reads, 5 % updates.
    YcsbB,
    /// Reads of popular keys.
    YcsbC,
    /// 95 % reads, mostly of what was inserted last, 5 % inserts.
    YcsbD,
    /// 95 % scans of up to 100 keys, 5 % inserts.
    YcsbE,
    /// Half reads, half reads that are followed by a write of the same key.
    YcsbF,
}

impl Mix {
    /// The mixes that a bench can measure; a fill prepares one.
    pub const CHOICES: [Mix; 9] = [
        Mix::Put,
        Mix::Get,
        Mix::Range,
        Mix::YcsbA,
        Mix::YcsbB,
        Mix::YcsbC,
        Mix::YcsbD,
        Mix::YcsbE,
        Mix::YcsbF,
    ];

    /// The name by which it is chosen and reported.
    pub fn name(self) -> &'static str {
        match self {
            Mix::Put => "put",
            Mix::Fill => "fill",
            Mix::Get => "get",
            Mix::Range => "range",
            Mix::YcsbA => "ycsb-a",
            Mix::YcsbB => "ycsb-b",
            Mix::YcsbC => "ycsb-c",
            Mix::YcsbD => "ycsb-d",
            Mix::YcsbE => "ycsb-e",
            Mix::YcsbF => "ycsb-f",
        }
    }

    /// The kinds of its requests, with the percentage of each; the sum is 100.
    pub fn kinds(self) -> &'static [(OpKind, u32)] {
        match self {
            Mix::Put | Mix::Fill => &[(OpKind::Update, 100)],
            Mix::Get | Mix::YcsbC => &[(OpKind::Read, 100)],
            Mix::Range => &[(OpKind::Scan, 100)],
            Mix::YcsbA => &[(OpKind::Read, 50), (OpKind::Update, 50)],
            Mix::YcsbB => &[(OpKind::Read, 95), (OpKind::Update, 5)],
            Mix::YcsbD => &[(OpKind::Read, 95), (OpKind::Insert, 5)],
            Mix::YcsbE => &[(OpKind::Scan, 95), (OpKind::Insert, 5)],
            Mix::YcsbF => &[(OpKind::Read, 50), (OpKind::ReadModifyWrite, 50)],
        }
    }

    /// The distribution of its keys where none is asked for.
    pub fn distribution(self) -> Distribution {
        match self {
            Mix::Put | Mix::Fill | Mix::Get | Mix::Range => Distribution::Uniform,
            Mix::YcsbD => Distribution::Latest,
            Mix::YcsbA | Mix::YcsbB | Mix::YcsbC | Mix::YcsbE | Mix::YcsbF => Distribution::Zipfian,
        }
    }

    /// Whether some of its requests read.
    pub fn reads(self) -> bool {
        self.kinds().iter().any(|(kind, _)| !matches!(kind, OpKind::Update | OpKind::Insert))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentages_of_a_mix_are_all_of_it() {
        for mix in Mix::CHOICES.into_iter().chain([Mix::Fill]) {
            let all: u32 = mix.kinds().iter().map(|(_, percent)| percent).sum();
            assert_eq!(all, 100, "{}", mix.name());
        }
    }
}
