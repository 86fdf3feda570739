//! Decodes frames from any pieces that the socket gives, and encodes them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cbor;
use crate::WorkerFrameError;
use crate::limits::{ENVELOPE_NESTING_MAX, FRAME_BYTES_MAX, FRAME_FDS_MAX};

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// The content of a frame: the message, and the number of its descriptors.
#[derive(Serialize, Deserialize)]
struct FrameEnvelope<M> {
    /// Absent if it is zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    fds: usize,
    m: M,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Encodes a frame with `message`, with which `fds` descriptors travel.
///
/// # Errors
/// The frame would be longer than a frame may be, or have more descriptors.
pub fn encode<M: Serialize>(message: &M, fds: usize) -> Result<Vec<u8>, WorkerFrameError> {
    if fds > FRAME_FDS_MAX {
        return Err(WorkerFrameError::TooManyDescriptors);
    }
    let mut frame = vec![0; LENGTH_BYTES];
    cbor::write(&FrameEnvelope { fds, m: message }, &mut frame)?;
    let bytes = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(bytes).ok();
    let Some(length) = length.filter(|_| bytes <= FRAME_BYTES_MAX) else {
        return Err(WorkerFrameError::TooLong(bytes));
    };
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Collects bytes and returns whole messages.
///
/// Descriptors arrive in the order of their frames, but the kernel may hand over the bytes of several frames with the
/// descriptors of the last one. Hence each frame says how many it has, and takes them from the front.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// The part of `bytes` that was decoded.
    read: usize,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Adds the bytes and descriptors of one read.
    ///
    /// # Errors
    /// More descriptors wait than two frames could have. No honest peer is that far ahead, because one read ends at
    /// the first frame that has some.
    pub fn push(
        &mut self,
        bytes: &[u8],
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), WorkerFrameError> {
        // Decoded bytes are removed once per read, and not after each frame.
        if self.read > 0 {
            self.bytes.drain(..self.read);
            self.read = 0;
        }
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        // A peer could send descriptors that no frame names, and use up those of this process.
        if self.fds.len() > 2 * FRAME_FDS_MAX {
            return Err(WorkerFrameError::TooManyDescriptors);
        }
        Ok(())
    }

    /// The next whole message with its descriptors, if the decoder has one.
    ///
    /// # Errors
    /// The bytes are no message. The channel cannot be used after that.
    #[allow(clippy::should_implement_trait)] // not an iterator: the kind of message is the caller's
    pub fn next<M: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, WorkerFrameError> {
        let waiting = &self.bytes[self.read..];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else {
            return self.between(waiting.is_empty());
        };
        let length = u32::from_le_bytes(*length) as usize;
        // Every message has content, and empty frames would cost the reader time without end.
        if length == 0 {
            return Err(WorkerFrameError::Empty);
        }
        // The length is checked before the body arrives: the buffer must not grow to a length that a peer chose.
        if length > FRAME_BYTES_MAX {
            return Err(WorkerFrameError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let FrameEnvelope { fds, m } = cbor::read(frame, ENVELOPE_NESTING_MAX)?;
        self.read += LENGTH_BYTES + length;
        if fds > FRAME_FDS_MAX {
            return Err(WorkerFrameError::TooManyDescriptors);
        }
        if fds > self.fds.len() {
            let came = self.fds.len();
            return Err(WorkerFrameError::Descriptors {
                declared: fds,
                came,
            });
        }
        Ok(Some((m, self.fds.drain(..fds).collect())))
    }

    /// Checks the state between frames. Descriptors belong to the first byte of a frame: if no frame has begun, those
    /// that wait belong to none.
    fn between<M>(&self, nothing_begun: bool) -> Result<Option<M>, WorkerFrameError> {
        if nothing_begun && !self.fds.is_empty() {
            let came = self.fds.len();
            return Err(WorkerFrameError::Descriptors { declared: 0, came });
        }
        Ok(None)
    }

    /// Checks that the peer may close the channel here.
    ///
    /// # Errors
    /// The channel ended inside a frame.
    pub fn end(&self) -> Result<(), WorkerFrameError> {
        if self.bytes.len() > self.read {
            return Err(WorkerFrameError::Cut);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{CborBody, FromWorkerMessage, ToWorkerMessage};

    fn descriptor() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("a descriptor")
    }

    fn tell(sid: u64, bytes: usize) -> FromWorkerMessage {
        let body = CborBody::from_cbor(vec![7; bytes]);
        FromWorkerMessage::Tell { sid, body }
    }

    #[test]
    fn messages_come_out_of_any_pieces() {
        let mut wire = Vec::new();
        for sid in 0..20 {
            wire.extend(encode(&tell(sid, 100 * sid as usize), 0).expect("a frame"));
        }
        for piece in [1, 3, 7, 1000, wire.len()] {
            let mut decoder = Decoder::default();
            let mut next = 0;
            for bytes in wire.chunks(piece) {
                decoder.push(bytes, []).expect("no descriptors");
                while let Some((message, fds)) =
                    decoder.next::<FromWorkerMessage>().expect("a message")
                {
                    assert_eq!(message, tell(next, 100 * next as usize));
                    assert!(fds.is_empty());
                    next += 1;
                }
            }
            assert_eq!(next, 20);
            decoder.end().expect("nothing is left");
        }
    }

    #[test]
    fn a_frame_is_as_long_as_it_may_be_and_no_longer() {
        let overhead = encode(&tell(0, 1 << 19), 0).expect("a frame").len() - (1 << 19);
        let longest = FRAME_BYTES_MAX + LENGTH_BYTES - overhead;
        let frame = encode(&tell(0, longest), 0).expect("exactly the limit");
        let mut decoder = Decoder::default();
        decoder.push(&frame, []).expect("no descriptors");
        assert!(
            decoder
                .next::<FromWorkerMessage>()
                .expect("whole")
                .is_some()
        );
        let over = encode(&tell(0, longest + 1), 0);
        assert!(matches!(over, Err(WorkerFrameError::TooLong(_))));
        let mut decoder = Decoder::default();
        let length = u32::try_from(FRAME_BYTES_MAX + 1).expect("small");
        decoder
            .push(&length.to_le_bytes(), [])
            .expect("no descriptors");
        let refused = decoder.next::<FromWorkerMessage>();
        assert!(
            matches!(refused, Err(WorkerFrameError::TooLong(_))),
            "refused by its length alone"
        );
    }

    #[test]
    fn descriptors_go_with_the_frames_that_name_them() {
        let mut wire = encode(&tell(1, 0), 0).expect("a frame");
        wire.extend(encode(&tell(2, 0), 2).expect("a frame"));
        let mut decoder = Decoder::default();
        decoder
            .push(&wire, [descriptor(), descriptor()])
            .expect("few");
        let (_, fds) = decoder
            .next::<FromWorkerMessage>()
            .expect("sound")
            .expect("whole");
        assert_eq!(fds.len(), 0);
        let (_, fds) = decoder
            .next::<FromWorkerMessage>()
            .expect("sound")
            .expect("whole");
        assert_eq!(fds.len(), 2);
        assert!(
            decoder
                .next::<FromWorkerMessage>()
                .expect("sound")
                .is_none()
        );
    }

    #[test]
    fn descriptors_too_many_or_too_few_are_refused() {
        assert!(encode(&tell(1, 0), FRAME_FDS_MAX).is_ok());
        let over = encode(&tell(1, 0), FRAME_FDS_MAX + 1);
        assert!(matches!(over, Err(WorkerFrameError::TooManyDescriptors)));

        let mut decoder = Decoder::default();
        let frame = encode(&tell(1, 0), 2).expect("a frame");
        decoder.push(&frame, [descriptor()]).expect("few");
        let short = decoder.next::<FromWorkerMessage>();
        assert!(matches!(
            short,
            Err(WorkerFrameError::Descriptors {
                declared: 2,
                came: 1
            })
        ));

        let mut decoder = Decoder::default();
        let frame = encode(&tell(1, 0), 0).expect("a frame");
        decoder.push(&frame, [descriptor()]).expect("few");
        assert!(
            decoder
                .next::<FromWorkerMessage>()
                .expect("sound")
                .is_some()
        );
        let unclaimed = decoder.next::<FromWorkerMessage>();
        assert!(matches!(
            unclaimed,
            Err(WorkerFrameError::Descriptors {
                declared: 0,
                came: 1
            })
        ));

        let mut decoder = Decoder::default();
        let many = (0..=2 * FRAME_FDS_MAX).map(|_| descriptor());
        assert!(decoder.push(&[], many).is_err());
    }

    #[test]
    fn an_end_inside_a_frame_is_no_end() {
        let frame = encode(&tell(1, 10), 0).expect("a frame");
        let mut decoder = Decoder::default();
        decoder.push(&frame[..frame.len() - 1], []).expect("few");
        assert!(
            decoder
                .next::<FromWorkerMessage>()
                .expect("sound")
                .is_none()
        );
        assert!(matches!(decoder.end(), Err(WorkerFrameError::Cut)));
        let mut decoder = Decoder::default();
        decoder.push(&[0; 4], []).expect("few");
        assert!(matches!(
            decoder.next::<FromWorkerMessage>(),
            Err(WorkerFrameError::Empty)
        ));
    }

    proptest! {
        #[test]
        fn anything_at_all_is_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut framed = u32::try_from(bytes.len()).expect("short").to_le_bytes().to_vec();
            framed.extend(&bytes);
            let mut decoder = Decoder::default();
            decoder.push(&framed, []).expect("no descriptors");
            // Either direction, and without the length: no panic is all that is asked.
            let _ = decoder.next::<FromWorkerMessage>();
            let mut decoder = Decoder::default();
            decoder.push(&bytes, []).expect("no descriptors");
            while let Ok(Some(_)) = decoder.next::<ToWorkerMessage>() {}
        }

        #[test]
        fn a_flipped_byte_is_a_message_or_an_error(at in 0_usize..60, value in any::<u8>()) {
            let message = ToWorkerMessage::Invoke {
                sid: 1,
                id: 2,
                op: "fs/read".to_owned(),
                input: crate::FrameBlob::Inline(CborBody::from_cbor(vec![0xf6])),
            };
            let mut frame = encode(&message, 0).expect("a frame");
            let at = at % frame.len();
            frame[at] = value;
            let mut decoder = Decoder::default();
            decoder.push(&frame, []).expect("no descriptors");
            let _ = decoder.next::<ToWorkerMessage>();
        }
    }
}
