//! Limits the length of HTTP/3 frames. The library buffers every frame other than DATA until it is complete, whatever
//! length the frame declares.

use crate::limits::HEADER_BYTES_MAX;

/// The most bytes of a frame that the library buffers. A client whose field section is too long gets a status for it
/// if the frame is not much longer.
const FRAME_BYTES_MAX: u64 = 2 * HEADER_BYTES_MAX as u64;

/// A control stream (RFC 9114 section 6.2.1), which is the only unidirectional stream of a client that consists of
/// frames.
const CONTROL: u64 = 0;
/// The frame whose payload the library passes on as it arrives (RFC 9114 section 7.2.1).
const DATA: u64 = 0;

/// What the parser expects next.
#[derive(Clone, Copy)]
enum H3ParserState {
    Stream,
    Kind,
    Length(u64),
    Payload(u64),
    Anything,
}

/// An integer of one to eight bytes (RFC 9000 section 16), as far as it has arrived.
#[derive(Default)]
struct PartialVarint {
    bytes: [u8; 8],
    have: usize,
}

impl PartialVarint {
    fn take(&mut self, data: &mut &[u8]) -> Option<u64> {
        while let Some((byte, rest)) = data.split_first() {
            self.bytes[self.have] = *byte;
            self.have += 1;
            *data = rest;
            // The two highest bits give the length (RFC 9000 section 16).
            let len = 1 << (self.bytes[0] >> 6);
            if self.have == len {
                self.have = 0;
                self.bytes[0] &= 0x3f;
                return Some(
                    self.bytes[..len]
                        .iter()
                        .fold(0, |all, byte| all << 8 | u64::from(*byte)),
                );
            }
        }
        None
    }
}

/// Parses the frames that the library reads.
pub(super) struct H3FrameBounds {
    next: H3ParserState,
    number: PartialVarint,
}

impl H3FrameBounds {
    /// For a stream that begins with a frame, or else with the stream's type.
    pub(super) fn new(request: bool) -> Self {
        let next = if request {
            H3ParserState::Kind
        } else {
            H3ParserState::Stream
        };
        Self {
            next,
            number: PartialVarint::default(),
        }
    }

    /// Whether no frame that begins in `data` is too long.
    pub(super) fn accepts(&mut self, mut data: &[u8]) -> bool {
        loop {
            self.next = match self.next {
                H3ParserState::Anything => return true,
                H3ParserState::Payload(left) if left > data.len() as u64 => {
                    self.next = H3ParserState::Payload(left - data.len() as u64);
                    return true;
                }
                H3ParserState::Payload(left) => {
                    data = &data[left as usize..];
                    H3ParserState::Kind
                }
                next => {
                    let Some(number) = self.number.take(&mut data) else {
                        return true;
                    };
                    match next {
                        H3ParserState::Stream if number != CONTROL => H3ParserState::Anything,
                        H3ParserState::Length(kind) if kind != DATA && number > FRAME_BYTES_MAX => {
                            return false;
                        }
                        H3ParserState::Length(_) => H3ParserState::Payload(number),
                        H3ParserState::Kind => H3ParserState::Length(number),
                        _ => H3ParserState::Kind,
                    }
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number in its longest form.
    fn long(number: u64) -> Vec<u8> {
        (number | 0xc0 << 56).to_be_bytes().to_vec()
    }

    fn frame(kind: u64, says: u64, payload: &[u8]) -> Vec<u8> {
        [&long(kind)[..], &long(says), payload].concat()
    }

    /// What a stream comes to, in one piece and byte by byte.
    fn accepts(request: bool, stream: &[u8]) -> bool {
        let whole = H3FrameBounds::new(request).accepts(stream);
        let mut bounds = H3FrameBounds::new(request);
        let pieces = stream.iter().all(|byte| bounds.accepts(&[*byte]));
        assert_eq!(whole, pieces);
        whole
    }

    #[test]
    fn frames_are_bounded_and_bodies_are_not() {
        let head = frame(1, 3, b"abc");
        assert!(accepts(
            true,
            &[&head[..], &frame(DATA, 1 << 40, b"x")].concat()
        ));
        assert!(accepts(true, &frame(1, FRAME_BYTES_MAX, b"x")));
        assert!(!accepts(true, &frame(1, FRAME_BYTES_MAX + 1, b"")));
        let unknown = frame(0x21, 1 << 40, b"");
        let behind = [&head[..], &frame(DATA, 2, b"xy"), &unknown].concat();
        assert!(!accepts(true, &behind));
        let control = [&[0, 4, 0][..], &unknown].concat();
        assert!(!accepts(false, &control));
        assert!(
            accepts(false, &[&[0x21][..], &unknown].concat()),
            "no frames"
        );
    }

    #[test]
    fn short_numbers_are_read_as_they_are_written() {
        // Two bytes: a kind of 0x4000 | 1 is 1, and 0x7fff is 16383.
        assert!(accepts(true, &[0x40, 0x01, 0x7f, 0xff, b'x']));
        // Four bytes: 0x00010001 is 65537.
        assert!(!accepts(true, &[0x01, 0x80, 0x01, 0x00, 0x01]));
    }
}
