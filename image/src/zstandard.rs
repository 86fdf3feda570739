//! One frame of Zstandard (RFC 8878), which the kernel's initramfs unpacker reads.

use alknet_delta::FrameRecipe;

/// What follows in an initramfs begins at a multiple of so many bytes.
const ALIGNMENT: usize = 4;

/// Compresses into one frame, and pads it with zeros, which the kernel skips, so that something may
/// follow.
pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    // A machine that makes the program from a delta compresses by the same recipe.
    FrameRecipe::INITRAMFS.compress(data, &mut frame).expect(
        "the recipe is in range, the files of an image are below its limits, and there is memory",
    );
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
