//! The bytes of a delta.
//!
//! ```text
//! 0   16 bytes  "alknet-delta" and three zeros and the number of the form, 1
//! 16  u32 LE    version number of the compressing library
//! 20  u64 LE    bytes of the running program before its initial file system: the first part of the base
//! 28  u64 LE    bytes of its file /init: the second part of the base
//! 36  u64 LE    bytes of the new program
//! 44            one zstd frame of items
//! ```
//!
//! An item begins with a byte:
//!
//! ```text
//! 0  the end
//! 1  a group: varint number of pieces, then of each piece varint (bytes * 2 + 1 if it is a copy), and of a copy
//!    zigzag varint of its place less the end of the copy before; then the differences of all copies, one byte for
//!    each of theirs, and then the bytes of all other pieces
//! 2  a frame begins: window, hash, chain, search and match as a byte each, u16 LE target length, a byte of strategy,
//!    u64 LE bytes of content
//! 3  the frame ends
//! ```
//!
//! Differences and other bytes are apart, because most differences are zeros and compress to nothing beside each other.

use std::io::{self, ErrorKind, Read, Write};

use crate::recipe::FrameRecipe;

/// The first bytes of a delta of this form.
pub(crate) const MAGIC: &[u8; 16] = b"alknet-delta\0\0\0\x01";

/// The first byte of an item.
pub(crate) const END: u8 = 0;
pub(crate) const GROUP: u8 = 1;
pub(crate) const FRAME_BEGINS: u8 = 2;
pub(crate) const FRAME_ENDS: u8 = 3;

/// What stands before the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeltaHeader {
    pub(crate) library: u32,
    pub(crate) program_bytes: u64,
    pub(crate) init_bytes: u64,
    pub(crate) result_bytes: u64,
}

impl DeltaHeader {
    pub(crate) fn write(&self, output: &mut dyn Write) -> io::Result<()> {
        output.write_all(MAGIC)?;
        output.write_all(&self.library.to_le_bytes())?;
        for bytes in [self.program_bytes, self.init_bytes, self.result_bytes] {
            output.write_all(&bytes.to_le_bytes())?;
        }
        Ok(())
    }

    /// `None` if the file begins in another way.
    pub(crate) fn read(input: &mut dyn Read) -> io::Result<Option<Self>> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Ok(None);
        }
        let mut library = [0; 4];
        input.read_exact(&mut library)?;
        Ok(Some(Self {
            library: u32::from_le_bytes(library),
            program_bytes: read_u64(input)?,
            init_bytes: read_u64(input)?,
            result_bytes: read_u64(input)?,
        }))
    }
}

pub(crate) fn read_u64(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn read_byte(input: &mut dyn Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A number in groups of seven bits, the lowest first.
pub(crate) fn read_varint(input: &mut dyn Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = read_byte(input)?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(io::Error::new(
        ErrorKind::InvalidData,
        "a number has more than 64 bits",
    ))
}

pub(crate) fn put_varint(output: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        output.push(number as u8 | 0x80);
        number >>= 7;
    }
    output.push(number as u8);
}

/// A signed number as an unsigned one: small ones stay small.
pub(crate) const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

pub(crate) const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

impl FrameRecipe {
    pub(crate) fn put(&self, output: &mut Vec<u8>) {
        output.extend([
            self.window_log,
            self.hash_log,
            self.chain_log,
            self.search_log,
            self.min_match,
        ]);
        output.extend(self.target_length.to_le_bytes());
        output.push(self.strategy);
    }

    pub(crate) fn read(input: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        let [
            window_log,
            hash_log,
            chain_log,
            search_log,
            min_match,
            low,
            high,
            strategy,
        ] = bytes;
        Ok(Self {
            window_log,
            hash_log,
            chain_log,
            search_log,
            min_match,
            target_length: u16::from_le_bytes([low, high]),
            strategy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(number in any::<u64>(), signed in any::<i64>()) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            prop_assert_eq!(read_varint(&mut &*bytes).expect("whole"), number);
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }

    #[test]
    fn a_number_without_an_end_is_refused() {
        for wrong in [&[0xff; 11][..], &[0xff; 3], &[]] {
            assert!(read_varint(&mut &*wrong).is_err(), "{wrong:?}");
        }
        let mut most = [0xff; 10];
        most[9] = 1;
        assert_eq!(read_varint(&mut &most[..]).expect("64 bits"), u64::MAX);
        most[9] = 2;
        assert!(read_varint(&mut &most[..]).is_err());
    }

    #[test]
    fn a_header_and_a_recipe_come_back() {
        let header = DeltaHeader {
            library: 10_507,
            program_bytes: 1,
            init_bytes: 2,
            result_bytes: 3,
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes).expect("into memory");
        assert_eq!(bytes.len(), 44);
        let read = DeltaHeader::read(&mut &*bytes).expect("whole");
        assert_eq!(read, Some(header));
        bytes[15] = 2;
        assert_eq!(DeltaHeader::read(&mut &*bytes).expect("whole"), None);
        let mut bytes = Vec::new();
        FrameRecipe::INITRAMFS.put(&mut bytes);
        let read = FrameRecipe::read(&mut &*bytes).expect("whole");
        assert_eq!(read, FrameRecipe::INITRAMFS);
    }
}
