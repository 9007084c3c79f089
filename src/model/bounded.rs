//! Lists whose announced length is checked before anything of them is read.
//!
//! MessagePack announces how many elements a list has. A frame of nine megabytes has room for two
//! million empty pairs, and a decoder that visits them only to find that they are too many has
//! spent a quarter of a second on a refusal. So every list that travels between clients and
//! servers has a most, and one that announces more is refused at its header. A list that is within
//! its bound may still be long: `server::decoding` sees to it that it is not read on the event
//! loop.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::{LEASES_PER_RECORD_MAX, LEASES_PER_REQUEST_MAX};
use crate::limits;

/// How the error of a list that is too long begins, by which `wire::codec` knows it.
pub(crate) const TOO_MANY: &str = "a list announces ";

/// How the error of transactions that nest too deep begins, which is treated alike.
pub(crate) const TOO_DEEP: &str = "transactions nest at most ";

/// Elements for which memory is reserved before they have come: what is announced is not believed
/// beyond this.
pub(crate) const RESERVED_MAX: usize = 4096;

struct List<T> {
    most: usize,
    element: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} elements", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let most = self.most;
        let announced = list.size_hint().unwrap_or(0);
        let too_many = |count: usize| {
            A::Error::custom(format_args!("{TOO_MANY}{count} elements and may have {most}"))
        };
        if announced > most {
            return Err(too_many(announced));
        }
        let mut elements = Vec::with_capacity(announced.min(RESERVED_MAX));
        while let Some(element) = list.next_element()? {
            // Only a format that announces nothing gets here.
            if elements.len() == most {
                return Err(too_many(most + 1));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    most: usize,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(List { most, element: PhantomData })
}

/// The keys, or the keys and values, of one request.
pub(crate) fn keys<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::TRANSACTION_KEYS_MAX)
}

/// The same where there may be no list.
pub(crate) fn optional_keys<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    struct OptionalKeys<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OptionalKeys<T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or none")
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, list: D) -> Result<Self::Value, D::Error> {
            keys(list).map(Some)
        }
    }
    deserializer.deserialize_option(OptionalKeys(PhantomData))
}

/// The rows of one page.
pub(crate) fn rows<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::PAGE_ROWS_MAX)
}

/// The entries of one REPLICATION.
pub(crate) fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::APPEND_ENTRIES_MAX)
}

/// The leases that an entry of the log ends, or whose remaining time it notes.
pub(crate) fn recorded_leases<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, LEASES_PER_RECORD_MAX)
}

/// The leases that one request names, or its answer tells of.
pub(crate) fn leases<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, LEASES_PER_REQUEST_MAX)
}

/// The watches of one connection.
pub(crate) fn watches<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::WATCHES_PER_CONNECTION_MAX)
}

/// The servers of a group.
pub(crate) fn servers<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::SERVERS_MAX)
}

/// The files, or the names of files, in one message of a peer to its registry. A name of one byte
/// takes thirty times as much memory as it takes on the wire.
pub(crate) fn files<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list(deserializer, limits::FILES_PER_PEER_MAX)
}
