//! Chooses which sources and contents an answer names when there are more than it may name.
//!
//! Rule: peers choose their ids, and one host may run many peers. So the choice is a random sample
//! in which no IP address has more than a few sources.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::limits::{self, origin_of};
use crate::model::{ContentId, FileEntry, FileName};
use crate::wire::share::{FileSummary, Source};

/// Of one content and one IP address, this many sources are in an answer, a sample: who is at one
/// address may call itself many, and whoever asks again gets others.
pub(super) const SOURCES_PER_ORIGIN_MAX: usize = 16;

/// The rows of one name in a listing: the most offered contents first, up to the limit.
pub fn summaries(
    name: &FileName,
    holders: HashMap<(ContentId, u64), u32>,
) -> impl Iterator<Item = FileSummary> {
    let mut rows: Vec<_> = holders.into_iter().collect();
    rows.sort_unstable_by_key(|((content, size), peers)| {
        (std::cmp::Reverse(*peers), *content, *size)
    });
    rows.truncate(limits::CONTENTS_PER_NAME_LISTED_MAX);
    rows.into_iter().map(move |((content, size), peers)| {
        let name = name.clone();
        FileSummary { file: FileEntry { name, size, content }, peers }
    })
}

/// Sorts the sources of a name, those of the most offered content first and then by peer id, and
/// cuts the list to an answer's limit. Among the sources of one content the cut is a random sample,
/// since peers choose their ids. The most offered content is the one at most IP addresses, since
/// one host may run many peers; then the one at most peers.
pub fn most_offered_first(sources: Vec<Source>, seed: u64) -> Vec<Source> {
    let mut sources = few_of_each_origin(sources, &mut SmallRng::seed_from_u64(seed));
    let mut offers: HashMap<ContentId, (HashSet<IpAddr>, usize)> = HashMap::new();
    for source in &sources {
        let (origins, peers) = offers.entry(source.content).or_default();
        origins.insert(origin_of(source.address.ip()));
        *peers += 1;
    }
    let by_content = |source: &Source| {
        let offers = offers.get(&source.content);
        let count = offers.map(|(origins, peers)| (origins.len(), *peers));
        (std::cmp::Reverse(count), source.content)
    };
    if sources.len() > limits::SOURCES_PER_ANSWER_MAX {
        // The sort is stable, so the sources of one content stay shuffled.
        sources.sort_by_key(by_content);
        sources.truncate(limits::SOURCES_PER_ANSWER_MAX);
    }
    sources.sort_by_key(|source| (by_content(source), source.peer));
    sources
}

/// Joins sources that have the whole content and those that have a part, in this order and by peer
/// id, and cuts the list to an answer's limit. The cut is a random sample, since peers choose their
/// ids.
pub fn whole_first(whole: Vec<Source>, parts: Vec<Source>, seed: u64) -> Vec<Source> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut sample = |sources: Vec<Source>, room: usize| {
        let mut sources = few_of_each_origin(sources, &mut random);
        sources.truncate(room);
        sources.sort_by_key(|source| source.peer);
        sources
    };
    let mut sources = sample(whole, limits::SOURCES_PER_ANSWER_MAX);
    let room = limits::SOURCES_PER_ANSWER_MAX - sources.len();
    sources.extend(sample(parts, room));
    sources
}

/// Shuffles sources, and keeps for each content one at each socket address and a few at each IP
/// address, so that one host that runs many peers does not hide the others.
fn few_of_each_origin(mut sources: Vec<Source>, random: &mut SmallRng) -> Vec<Source> {
    sources.shuffle(random);
    let mut addresses = HashSet::new();
    let mut origins: HashMap<(ContentId, IpAddr), usize> = HashMap::new();
    sources.retain(|source| {
        let origin = (source.content, origin_of(source.address.ip()));
        let of_origin = origins.entry(origin).or_default();
        let is_kept = *of_origin < SOURCES_PER_ORIGIN_MAX
            && addresses.insert((source.content, source.address));
        *of_origin += usize::from(is_kept);
        is_kept
    });
    sources
}
