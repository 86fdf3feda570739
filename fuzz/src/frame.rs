//! The frame codec: however the bytes are cut, the same frames come out.

use alknet_call::limits::{FRAME_BYTES_MAX, FRAME_GROWTH_BYTES};
use alknet_call::{CallFrameError, FrameReader};
use bytes::Bytes;

/// Bytes of the length field.
const HEADER_BYTES: usize = 4;

/// The first byte is the limit in units of 16 bytes, or no limit for 0; the low four bits of the second say how many
/// of the next bytes are sizes of pieces. The rest is the stream.
pub fn frame(data: &[u8]) -> bool {
    let [limit, count, rest @ ..] = data else {
        return false;
    };
    let max = match usize::from(*limit) {
        0 => FRAME_BYTES_MAX,
        limit => limit * 16,
    };
    let (sizes, stream) = rest.split_at(usize::from(count & 15).min(rest.len()));
    let expected = reference(stream, max);
    assert_eq!(read(stream, max, &[]), expected, "whole");
    assert_eq!(read(stream, max, &[1]), expected, "byte by byte");
    assert_eq!(read(stream, max, sizes), expected, "in pieces of {sizes:?}");
    matches!(expected, (frames, Ok(_)) if !frames.is_empty())
}

/// Frames, and then the bytes of an unfinished one or an error.
type FrameOutcome = (Vec<Bytes>, Result<usize, CallFrameError>);

/// The same in the simplest way.
fn reference(mut stream: &[u8], max: usize) -> FrameOutcome {
    let mut frames = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER_BYTES>() {
        let len = u32::from_be_bytes(*header) as usize;
        if len == 0 {
            return (frames, Err(CallFrameError::Empty));
        }
        if len > max {
            return (frames, Err(CallFrameError::TooLong { len, max }));
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else {
            break;
        };
        frames.push(Bytes::copy_from_slice(frame));
        stream = rest;
    }
    (frames, Ok(stream.len()))
}

/// Pushes pieces of `sizes`, over and over; all at once where the list is empty.
fn read(stream: &[u8], max: usize, sizes: &[u8]) -> FrameOutcome {
    let mut reader = FrameReader::new();
    let mut frames: Vec<Bytes> = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes
            .next()
            .map_or(rest.len(), |size| usize::from(*size).max(1));
        let (piece, left) = rest.split_at(size.min(rest.len()));
        rest = left;
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.next_frame(max) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(reader.held_bytes() <= stream.len() + FRAME_GROWTH_BYTES);
    }
    let done: usize = frames.iter().map(|frame| HEADER_BYTES + frame.len()).sum();
    let unfinished = stream.len() - done;
    assert_eq!(reader.is_partial(), unfinished > 0);
    (frames, Ok(unfinished))
}
