//! The LZ4 legacy frame, the only one that the kernel's initramfs unpacker reads.

use lz4::block::{CompressionMode, compress};

/// The first four bytes of a legacy frame, little-endian.
const MAGIC: u32 = 0x184c_2102;
/// Every block but the last holds this many bytes before compression. The format fixes it.
const BLOCK_BYTES: usize = 8 << 20;
/// The level of `lz4 -9`. Higher ones cost seconds for less than one part in a hundred.
const LEVEL: i32 = 9;

/// Compresses into one legacy frame.
pub(crate) fn legacy_frame(data: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    for block in data.chunks(BLOCK_BYTES) {
        let packed = compress(block, Some(CompressionMode::HIGHCOMPRESSION(LEVEL)), false)
            .expect("LZ4 refuses only blocks beyond 2 GiB, and these are 8 MiB");
        out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&packed);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unpack(frame: &[u8]) -> Vec<u8> {
        let mut rest = frame
            .strip_prefix(&MAGIC.to_le_bytes())
            .expect("opens with the magic");
        let mut out = Vec::new();
        while let Some((size, tail)) = rest.split_first_chunk() {
            let size = u32::from_le_bytes(*size) as usize;
            let block = lz4::block::decompress(&tail[..size], Some(BLOCK_BYTES as i32));
            out.extend(block.expect("a block unpacks"));
            rest = &tail[size..];
        }
        out
    }

    #[test]
    fn data_beyond_one_block_comes_back_whole() {
        let data: Vec<u8> = (0..BLOCK_BYTES + 77).map(|i| (i / 1000) as u8).collect();
        assert_eq!(unpack(&legacy_frame(&data)), data);
    }

    proptest! {
        #[test]
        fn any_data_comes_back(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(unpack(&legacy_frame(&data)), data);
        }
    }
}
