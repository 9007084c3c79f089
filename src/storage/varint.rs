//! Numbers in as few bytes as they need: groups of seven bits, the lowest first, all but the last
//! with the high bit set.
//!
//! Decoding refuses a number that does not fit 64 bits. It takes forms that are longer than needed,
//! which encoding never writes.

use bytes::{Buf, BufMut};

/// Bytes of the greatest number.
pub(super) const VARINT_BYTES_MAX: usize = 10;

pub(super) fn put_varint(out: &mut impl BufMut, number: u64) {
    let mut left = number;
    while left >= 0x80 {
        out.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    out.put_u8(left as u8);
}

pub(super) fn get_varint(bytes: &mut impl Buf) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if byte < 0x80 {
            // Bits that were shifted out make it another number.
            return (number >> shift == bits).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(number in any::<u64>(), bits in 0u32..64) {
            let (number, mut out) = (number >> bits, Vec::new());
            put_varint(&mut out, number);
            prop_assert!(out.len() <= VARINT_BYTES_MAX);
            prop_assert_eq!(get_varint(&mut &out[..]), Some(number));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(get_varint(&mut &[0xff; 20][..]), None);
        let large = [&[0xff; 9][..], &[0x7f]].concat();
        assert_eq!(get_varint(&mut &large[..]), None);
        assert_eq!(get_varint(&mut &[0x80][..]), None);
        assert_eq!(get_varint(&mut &b""[..]), None);
    }
}
