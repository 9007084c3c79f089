//! Sections of files: bytes with a checksum that covers where they belong.
//!
//! ```text
//! section := bytes | CRC-32 over (file number u64, position u64, bytes)
//! ```
//!
//! Blocks, indexes, filters and footers are sections. As the checksum covers the file's number and
//! the position in it, a section that a disk returns in the place of another is found. All numbers
//! in files are little-endian and of fixed length: they are a few bytes of a row, and are read
//! without a branch.
//!
//! What it leaves out: reading and writing files. Everything here is pure, and any bytes may be
//! given to it.

const CHECKSUM_BYTES: usize = 4;

/// Why bytes of a file are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SectionError {
    #[error("it does not match its checksum")]
    Checksum,
    /// The checksum matches, so the file is of another release, or was written by a fault of ours.
    #[error("{0}")]
    Encoding(&'static str),
}

/// The place that a section belongs to: a file's number, and the position of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub file: u64,
    pub position: u64,
}

/// The checksum of bytes at a place.
pub(super) fn checksum(place: Place, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.file.to_le_bytes());
    hasher.update(&place.position.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Makes the bytes from `start` on a section, which will be written at `place`.
pub(super) fn seal(place: Place, bytes: &mut Vec<u8>, start: usize) {
    let sum = checksum(place, &bytes[start..]);
    bytes.extend_from_slice(&sum.to_le_bytes());
}

/// The bytes of a section that was read at `place`.
///
/// # Errors
///
/// [`SectionError::Checksum`].
pub(super) fn open(place: Place, section: &[u8]) -> Result<&[u8], SectionError> {
    let (bytes, sum) =
        section.split_last_chunk::<CHECKSUM_BYTES>().ok_or(SectionError::Checksum)?;
    match checksum(place, bytes) == u32::from_le_bytes(*sum) {
        true => Ok(bytes),
        false => Err(SectionError::Checksum),
    }
}

/// Takes fields from the front of bytes; `None` if there are too few left.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.chunk().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A key with its length before it, as [`put_key`] writes it.
    pub fn key(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u16()?;
        self.bytes(usize::from(bytes))
    }
}

/// Appends a key with its length before it. An over-long key is a fault of the caller: the longest
/// key of a user takes less than a sixth of this, with every byte escaped.
pub(super) fn put_key(key: &[u8], out: &mut Vec<u8>) {
    let bytes = u16::try_from(key.len());
    let Ok(bytes) = bytes else { panic!("a row's key of {} bytes", key.len()) };
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { file: 7, position: 4096 };

    #[test]
    fn a_section_opens_in_its_own_place_alone_and_with_none_of_its_bits_flipped() {
        let mut bytes = b"before".to_vec();
        bytes.extend_from_slice(b"a section");
        seal(PLACE, &mut bytes, 6);
        let mut section = bytes.split_off(6);
        assert_eq!(open(PLACE, &section), Ok(&b"a section"[..]));
        let elsewhere = [
            Place { file: 8, ..PLACE },
            Place { position: 8192, ..PLACE },
            Place { file: 4096, position: 7 },
        ];
        for place in elsewhere {
            assert_eq!(open(place, &section), Err(SectionError::Checksum), "{place:?}");
        }
        for bit in 0..section.len() * 8 {
            section[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(PLACE, &section), Err(SectionError::Checksum), "bit {bit}");
            section[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..section.len() {
            assert_eq!(open(PLACE, &section[..length]), Err(SectionError::Checksum));
        }
    }

    #[test]
    fn fields_are_read_as_they_were_put_and_never_past_the_end() {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&2u16.to_le_bytes());
        bytes.extend_from_slice(&3u32.to_le_bytes());
        bytes.extend_from_slice(&4u64.to_le_bytes());
        put_key(b"key", &mut bytes);
        let mut fields = Fields(&bytes);
        assert_eq!((fields.u8(), fields.u16(), fields.u32()), (Some(1), Some(2), Some(3)));
        assert_eq!((fields.u64(), fields.key()), (Some(4), Some(&b"key"[..])));
        assert!(fields.0.is_empty() && fields.u8().is_none());
        assert_eq!(Fields(&[3, 0, b'k']).key(), None);
        assert_eq!(Fields(b"key").bytes(4), None);
    }
}
