//! One frame of Zstandard (RFC 8878), which the kernel's initramfs unpacker reads.

use zstd::bulk::Compressor;

/// Within one part in a hundred of the next five levels, in an eighth of their time.
const LEVEL: i32 = 12;
/// What follows in an initramfs begins at a multiple of so many bytes.
const ALIGNMENT: usize = 4;

/// Compresses into one frame, and pads it with zeros, which the kernel skips, so that something may
/// follow.
pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    let mut frame = Compressor::new(LEVEL)
        .and_then(|mut compressor| compressor.compress(data))
        .expect("the level exists, and as much memory as it takes");
    frame.resize(frame.len().next_multiple_of(ALIGNMENT), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    proptest! {
        #[test]
        fn any_data_comes_back_and_something_may_follow(
            data in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let frame = frame(&data);
            prop_assert_eq!(frame.len() % ALIGNMENT, 0);
            let mut decoder = zstd::Decoder::new(&frame[..]).expect("a frame").single_frame();
            let mut back = Vec::new();
            decoder.read_to_end(&mut back).expect("it unpacks");
            prop_assert_eq!(back, data);
        }
    }
}
