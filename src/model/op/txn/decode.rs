//! Decodes transactions within bounds: all their lists together have at most
//! [`TRANSACTION_KEYS_MAX`] elements, and they nest at most [`TRANSACTION_DEPTH_MAX`] deep,
//! whatever the bytes announce.
//!
//! A bound for each list alone is not enough: a frame has room for a million small operations, in
//! lists within lists, and memory for them is taken before anybody can check them. And whoever
//! decodes a log has a stack that ends.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, SeqAccess, VariantAccess,
    Visitor,
};

use super::{Comparison, Txn, TxnOp};
use crate::limits::{TRANSACTION_DEPTH_MAX, TRANSACTION_KEYS_MAX};
use crate::model::bounded::{RESERVED_MAX, TOO_DEEP, TOO_MANY};

impl<'de> Deserialize<'de> for Txn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Txn, D::Error> {
        let elements_left = Cell::new(TRANSACTION_KEYS_MAX);
        TxnSeed { elements_left: &elements_left, depth: 1 }.deserialize(deserializer)
    }
}

/// Decodes a transaction that stands so deep, with what is left of the elements.
#[derive(Clone, Copy)]
struct TxnSeed<'a> {
    elements_left: &'a Cell<usize>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for TxnSeed<'_> {
    type Value = Txn;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Txn, D::Error> {
        if self.depth > TRANSACTION_DEPTH_MAX {
            return Err(D::Error::custom(format_args!(
                "{TOO_DEEP}{TRANSACTION_DEPTH_MAX} deep and these nest deeper"
            )));
        }
        deserializer.deserialize_tuple(3, self)
    }
}

impl<'de> Visitor<'de> for TxnSeed<'_> {
    type Value = Txn;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a transaction, which is a list of three")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Txn, A::Error> {
        let TxnSeed { elements_left, depth } = self;
        let comparisons = List { elements_left, element: PhantomData::<Comparison> };
        let ops = List { elements_left, element: OpSeed { elements_left, depth } };
        let missing = |at| A::Error::invalid_length(at, &"a transaction of three fields");
        Ok(Txn {
            compare: fields.next_element_seed(comparisons)?.ok_or_else(|| missing(0))?,
            then: fields.next_element_seed(ops)?.ok_or_else(|| missing(1))?,
            or_else: fields.next_element_seed(ops)?.ok_or_else(|| missing(2))?,
        })
    }
}

/// Decodes a list, whose elements count.
#[derive(Clone, Copy)]
struct List<'a, S> {
    elements_left: &'a Cell<usize>,
    element: S,
}

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for List<'_, S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for List<'_, S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} elements", self.elements_left.get())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let too_many = |count: usize| {
            A::Error::custom(format_args!(
                "{TOO_MANY}{count} elements and all those of a transaction may have \
                 {TRANSACTION_KEYS_MAX}"
            ))
        };
        let announced = list.size_hint().unwrap_or(0);
        if announced > self.elements_left.get() {
            return Err(too_many(announced));
        }
        let mut elements = Vec::with_capacity(announced.min(RESERVED_MAX));
        while let Some(element) = list.next_element_seed(self.element)? {
            let left = self.elements_left.get().checked_sub(1);
            self.elements_left.set(left.ok_or_else(|| too_many(elements.len() + 1))?);
            elements.push(element);
        }
        Ok(elements)
    }
}

/// Decodes an operation of a transaction that stands so deep.
#[derive(Clone, Copy)]
struct OpSeed<'a> {
    elements_left: &'a Cell<usize>,
    depth: usize,
}

#[derive(serde::Deserialize)]
#[serde(variant_identifier)]
enum OpKind {
    #[serde(rename = "GET")]
    Get,
    #[serde(rename = "RANGE")]
    Range,
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "DEL")]
    Del,
    #[serde(rename = "DEL_RANGE")]
    DelRange,
    #[serde(rename = "TXN")]
    Txn,
}

impl<'de> DeserializeSeed<'de> for OpSeed<'_> {
    type Value = TxnOp;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TxnOp, D::Error> {
        const KINDS: &[&str] = &["GET", "RANGE", "PUT", "DEL", "DEL_RANGE", "TXN"];
        deserializer.deserialize_enum("TxnOp", KINDS, self)
    }
}

impl<'de> Visitor<'de> for OpSeed<'_> {
    type Value = TxnOp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an operation of a transaction")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, op: A) -> Result<TxnOp, A::Error> {
        let (kind, fields) = op.variant::<OpKind>()?;
        Ok(match kind {
            OpKind::Get => {
                let (key,): (Bytes,) = fields.newtype_variant()?;
                TxnOp::Get { key }
            }
            OpKind::Range => {
                let (from, to, rows_max, keys_only, reverse, counts_only) =
                    fields.newtype_variant()?;
                TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only }
            }
            OpKind::Put => {
                let (key, value, tells_previous, lease) = fields.newtype_variant()?;
                TxnOp::Put { key, value, tells_previous, lease }
            }
            OpKind::Del => {
                let (key, keeps_history, tells_previous) = fields.newtype_variant()?;
                TxnOp::Del { key, keeps_history, tells_previous }
            }
            OpKind::DelRange => {
                let (from, to, keeps_history, tells_previous) = fields.newtype_variant()?;
                TxnOp::DelRange { from, to, keeps_history, tells_previous }
            }
            OpKind::Txn => {
                let within = TxnSeed { elements_left: self.elements_left, depth: self.depth + 1 };
                TxnOp::Txn(Box::new(fields.newtype_variant_seed(within)?))
            }
        })
    }
}
