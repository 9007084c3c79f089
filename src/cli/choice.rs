//! In which order `acervo fetch` tries the contents that peers share under one name.
//!
//! Peers may share different files under the same name, and some may lie. What peers at most IP
//! addresses have comes first, since addresses are dearer than peers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::limits::origin_of;
use crate::model::ContentId;
use crate::text::counted;
use crate::wire::share::Source;

/// The beginning of a hash fits more than one content.
#[derive(Debug, thiserror::Error)]
#[error("--content {0} fits several contents of that name: give more digits")]
pub struct AmbiguousContent(String);

/// A content that a name stands for, with those who have it.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) content: ContentId,
    /// The peers that announced it, whatever size they tell.
    pub(super) sources: Vec<Source>,
}

impl Choice {
    /// The sizes that are told of it. A content has one size; a peer that tells another lies.
    pub(super) fn sizes(&self) -> BTreeSet<u64> {
        self.sources.iter().map(|source| source.size).collect()
    }

    /// At how many IP addresses it is, as quotas count them: whoever has one may call itself many
    /// peers.
    fn origins(&self) -> usize {
        let origins = self.sources.iter().map(|source| origin_of(source.address.ip()));
        origins.collect::<HashSet<IpAddr>>().len()
    }
}

/// Number of peers and addresses that have the content, and its hash, for a person.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = counted(self.sources.len() as u64, "peer", "peers");
        let addresses = counted(self.origins() as u64, "IP address", "IP addresses");
        write!(f, "{peers} at {addresses}, {}", self.content)
    }
}

/// The contents to fetch, one in place of the other, the first one first: those that peers at most
/// IP addresses have, and of equals those that most peers have; or only the one whose hash begins
/// like `wanted`.
pub(super) fn choices(
    found: Vec<Source>,
    wanted: Option<&str>,
) -> Result<Vec<Choice>, AmbiguousContent> {
    let mut contents: BTreeMap<ContentId, Vec<Source>> = BTreeMap::new();
    for source in found {
        contents.entry(source.content).or_default().push(source);
    }
    if let Some(hash) = wanted {
        contents.retain(|content, _| content.to_string().starts_with(hash));
        if contents.len() > 1 {
            return Err(AmbiguousContent(hash.to_owned()));
        }
    }
    let choices = contents.into_iter().map(|(content, sources)| Choice { content, sources });
    let mut choices: Vec<Choice> = choices.collect();
    choices.sort_by_cached_key(|choice| Reverse((choice.origins(), choice.sources.len())));
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PeerId;

    /// Content, size, the last byte of the IP address, and how many peers are there.
    fn chosen(all: &[(u8, u64, u8, u16)], wanted: Option<&str>) -> Vec<(u8, Vec<u64>)> {
        let each = |(what, size, ip, peers): &(u8, u64, u8, u16)| {
            let (content, size, ip) = (ContentId([*what; 32]), *size, *ip);
            (1..=*peers).map(move |port| Source {
                peer: PeerId(1),
                address: ([127, 0, 0, ip], port).into(),
                size,
                content,
            })
        };
        let choices = choices(all.iter().flat_map(each).collect(), wanted).unwrap();
        let told = choices.iter().map(|choice| (choice.content.0[0], choice.sizes()));
        told.map(|(content, sizes)| (content, sizes.into_iter().collect())).collect()
    }

    #[test]
    fn the_content_that_most_have_comes_first_with_every_size_that_is_told() {
        let found = [(1, 10, 1, 2), (2, 20, 1, 3)];
        assert_eq!(chosen(&found, None), [(2, vec![20]), (1, vec![10])]);
        // A liar who tells another size of it hides nobody, and takes its content no vote.
        let found = [(1, 10, 1, 1), (1, 99, 1, 1), (2, 20, 1, 1)];
        assert_eq!(chosen(&found, None)[0], (1, vec![10, 99]));
        let hash = ContentId([1; 32]).to_string();
        let found = [(1, 10, 1, 1), (1, 99, 1, 2), (2, 5, 1, 9)];
        assert_eq!(chosen(&found, Some(&hash)), [(1, vec![10, 99])]);
        assert!(choices(Vec::new(), None).unwrap().is_empty());
    }

    /// Four peers at one IP address beat three at three.
    #[test]
    fn whoever_calls_itself_many_at_one_address_has_one_vote() {
        let honest = [(1, 10, 1, 1), (1, 10, 2, 1), (1, 10, 3, 1)];
        let found = [&honest[..], &[(2, 5, 9, 4)]].concat();
        assert_eq!(chosen(&found, None), [(1, vec![10]), (2, vec![5])]);
        let found = [&honest[..], &[(2, 5, 8, 200), (2, 5, 9, 200)]].concat();
        assert_eq!(chosen(&found, None)[0].0, 1);
    }

    #[test]
    fn the_beginning_of_a_hash_that_fits_several_is_refused() {
        let source = |what| Source {
            peer: PeerId(1),
            address: ([127, 0, 0, 1], 1).into(),
            size: 1,
            content: ContentId([what; 32]),
        };
        let several = choices(vec![source(1), source(2)], Some(""));
        assert!(matches!(several, Err(AmbiguousContent(_))));
    }
}
