//! Frames: `u32` big-endian length, then the body. No I/O, no clock.

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::limits::{FRAME_BYTES_MAX, FRAME_GROWTH_BYTES};

/// Bytes of the length field.
const HEADER_BYTES: usize = 4;
/// First byte of a mixed frame.
const MIXED: u8 = 1;
/// Bytes before the envelope of a mixed frame: the mark and the envelope's length.
const MIXED_HEADER_BYTES: usize = 5;

/// Cuts a byte stream into frame bodies.
///
/// Frames that lie within one chunk are slices of it. The reader collects others in steps of at most 64 KiB as their
/// bytes arrive, whatever length was announced.
///
/// ```
/// use alknet_call::{Envelope, EventKind, FrameReader, encode_event};
///
/// let frame = encode_event(EventKind::Responded, "1", r#"{"output":7}"#);
/// let mut reader = FrameReader::new();
/// // The bytes of a stream come in pieces of any length.
/// reader.push(frame.slice(..3));
/// assert!(reader.next_frame(1024)?.is_none());
/// reader.push(frame.slice(3..));
/// let body = reader.next_frame(1024)?.expect("the whole frame has come");
/// let event = Envelope::parse(&body, 8)?;
/// assert_eq!((event.kind, &*event.id), (EventKind::Responded, "1"));
/// # Ok::<(), alknet_call::CallFrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameReader {
    chunk: Bytes,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    body_len: Option<usize>,
    body: Vec<Vec<u8>>,
    body_have: usize,
}

impl FrameReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes. Call [`next_frame`](Self::next_frame) until it yields nothing before pushing more.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            self.chunk = [self.chunk.as_ref(), chunk.as_ref()].concat().into();
        }
    }

    /// The next whole frame body of at most `max` bytes.
    ///
    /// # Errors
    /// An empty or over-long frame; the stream is of no use afterwards.
    pub fn next_frame(&mut self, max: usize) -> Result<Option<Bytes>, CallFrameError> {
        let Some(len) = self.length(max)? else {
            return Ok(None);
        };
        // The whole body lies in the chunk: no copy is needed.
        if self.body_have == 0 && self.chunk.len() >= len {
            self.restart();
            return Ok(Some(self.chunk.split_to(len)));
        }
        self.collect(len);
        Ok((self.body_have == len).then(|| self.take_body(len)))
    }

    /// Whether a frame has begun and not ended.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.header_len > 0 || !self.chunk.is_empty()
    }

    /// Bytes held for an incomplete frame.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.chunk.len() + self.body.iter().map(Vec::capacity).sum::<usize>()
    }

    fn length(&mut self, max: usize) -> Result<Option<usize>, CallFrameError> {
        if let Some(len) = self.body_len {
            return Ok(Some(len));
        }
        let take = (HEADER_BYTES - self.header_len).min(self.chunk.len());
        self.header[self.header_len..self.header_len + take].copy_from_slice(&self.chunk[..take]);
        self.chunk.advance(take);
        self.header_len += take;
        // The rest of the length is still on its way.
        if self.header_len < HEADER_BYTES {
            return Ok(None);
        }
        let len = u32::from_be_bytes(self.header) as usize;
        let max = max.min(FRAME_BYTES_MAX);
        match len {
            0 => Err(CallFrameError::Empty),
            // Checked before a single byte of the body is stored.
            _ if len > max => Err(CallFrameError::TooLong { len, max }),
            _ => {
                self.body_len = Some(len);
                Ok(Some(len))
            }
        }
    }

    fn collect(&mut self, len: usize) {
        while self.body_have < len && !self.chunk.is_empty() {
            let full = self.body.last().is_none_or(|s| s.len() == s.capacity());
            if full {
                // An announced length alone reserves no memory: the peer may never send the bytes.
                let step = (len - self.body_have).min(FRAME_GROWTH_BYTES);
                self.body.push(Vec::with_capacity(step));
            }
            let Some(segment) = self.body.last_mut() else {
                return;
            };
            let take = (segment.capacity() - segment.len())
                .min(self.chunk.len())
                .min(len - self.body_have);
            segment.extend_from_slice(&self.chunk[..take]);
            self.chunk.advance(take);
            self.body_have += take;
        }
    }

    fn take_body(&mut self, len: usize) -> Bytes {
        let mut segments = std::mem::take(&mut self.body);
        self.restart();
        match segments.pop() {
            // A frame within one segment moves out without a copy.
            Some(only) if segments.is_empty() => only.into(),
            last => {
                let mut body = Vec::with_capacity(len);
                segments.iter().for_each(|s| body.extend_from_slice(s));
                last.iter().for_each(|s| body.extend_from_slice(s));
                body.into()
            }
        }
    }

    fn restart(&mut self) {
        self.header_len = 0;
        self.body_len = None;
        self.body_have = 0;
    }
}

/// The two forms of a frame body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBody {
    /// The envelope: a JSON object.
    pub envelope: Bytes,
    /// Binary data of a mixed frame, which `{"$bin":[offset,length]}` in the payload points into.
    pub tail: Option<Bytes>,
}

impl FrameBody {
    /// Tells a JSON body from a mixed one.
    ///
    /// # Errors
    /// The body is neither.
    pub fn parse(mut body: Bytes) -> Result<Self, CallFrameError> {
        match body.first() {
            Some(b'{') => Ok(Self {
                envelope: body,
                tail: None,
            }),
            Some(&MIXED) if body.len() > MIXED_HEADER_BYTES => {
                body.advance(1);
                let len = body.get_u32() as usize;
                // The peer chose both lengths: the inner one may exceed the frame.
                if len > body.len() {
                    return Err(CallFrameError::Mixed);
                }
                let envelope = body.split_to(len);
                if envelope.first() != Some(&b'{') {
                    return Err(CallFrameError::Mixed);
                }
                Ok(Self {
                    envelope,
                    tail: Some(body),
                })
            }
            Some(&MIXED) => Err(CallFrameError::Mixed),
            _ => Err(CallFrameError::Kind),
        }
    }
}

/// Appends a frame to `out`; `body` writes the bytes after the length.
///
/// Returns the length of the body.
pub(crate) fn append_frame(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    body(out);
    let len = out.len() - start - HEADER_BYTES;
    patch(out, start, len);
    len
}

/// Appends a mixed frame without its last `tail` bytes, which the caller appends.
///
/// Returns the length of the body, those bytes included.
pub(crate) fn append_mixed(
    out: &mut Vec<u8>,
    tail: usize,
    envelope: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = out.len();
    let head = append_frame(out, |out| {
        out.push(MIXED);
        append_frame(out, envelope);
    });
    patch(out, start, head + tail);
    head + tail
}

/// Writes a length field. Frames over 4 GiB cannot come about: limits end at 64 MiB, and the caller cuts a longer
/// frame off again before it leaves.
fn patch(out: &mut [u8], at: usize, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    out[at..at + HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
}

/// A fault of the framing or the envelope; the peer sees code 5.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallFrameError {
    /// An object names a member twice.
    #[error("an object names a member twice")]
    Duplicate,
    /// Length zero.
    #[error("a frame has at least one byte")]
    Empty,
    /// An id outside its grammar.
    #[error("an id has 1 to 64 visible ASCII characters")]
    Id,
    /// No JSON object, or `type` or `id` is missing.
    #[error("the envelope is no JSON object with 'type' and 'id': {0}")]
    Json(String),
    /// A first byte that is neither `{` nor 01.
    #[error("a frame body starts with '{{' or 01")]
    Kind,
    /// A mixed frame whose parts do not add up.
    #[error("the parts of a mixed frame do not add up")]
    Mixed,
    /// Too many nested arrays and objects.
    #[error("more than {0} nested arrays and objects")]
    Nesting(usize),
    /// Longer than the receiver takes.
    #[error("a frame of {len} bytes where at most {max} are taken")]
    TooLong {
        /// The announced length.
        len: usize,
        /// The receiver's limit.
        max: usize,
    },
    /// Not UTF-8.
    #[error("the envelope is not UTF-8")]
    Utf8,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_frame(&mut out, |out| out.extend_from_slice(body));
        out
    }

    fn drain(reader: &mut FrameReader) -> Vec<Bytes> {
        std::iter::from_fn(|| reader.next_frame(FRAME_BYTES_MAX).expect("well formed")).collect()
    }

    /// The frames in `pieces`, how they ended, and whether the reader holds an unfinished one.
    fn read(pieces: &[&[u8]]) -> (Vec<Bytes>, Option<CallFrameError>, bool) {
        let mut reader = FrameReader::new();
        let mut frames = Vec::new();
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece));
            loop {
                match reader.next_frame(30) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    // A reader that failed is of no further use: no test checks whether it is partial.
                    Err(error) => return (frames, Some(error), false),
                }
            }
        }
        (frames, None, reader.is_partial())
    }

    #[test]
    fn a_length_costs_nothing_until_bytes_arrive() {
        let mut reader = FrameReader::new();
        reader.push(Bytes::copy_from_slice(&(64u32 << 20).to_be_bytes()));
        assert_eq!(reader.next_frame(FRAME_BYTES_MAX), Ok(None));
        assert_eq!(reader.held_bytes(), 0);
        reader.push(Bytes::from_static(b"{"));
        assert_eq!(reader.next_frame(FRAME_BYTES_MAX), Ok(None));
        assert!(reader.held_bytes() <= FRAME_GROWTH_BYTES);
        assert!(reader.is_partial());
    }

    #[test]
    fn limits_hold_to_the_byte() {
        for (len, max, good) in [(0u32, 9, false), (9, 9, true), (10, 9, false)] {
            let mut reader = FrameReader::new();
            reader.push(Bytes::copy_from_slice(&len.to_be_bytes()));
            assert_eq!(reader.next_frame(max).is_ok(), good, "{len}");
        }
        let mut reader = FrameReader::new();
        reader.push(Bytes::from_static(&[0xff; 4]));
        assert!(reader.next_frame(usize::MAX).is_err());
    }

    #[test]
    fn whole_frames_are_slices_of_their_chunk() {
        let chunk: Bytes = [framed(b"{1}"), framed(b"{2}")].concat().into();
        let range = chunk.as_ptr_range();
        let mut reader = FrameReader::new();
        reader.push(chunk);
        for frame in drain(&mut reader) {
            assert!(range.contains(&frame.as_ptr()));
        }
        assert!(!reader.is_partial());
    }

    #[test]
    fn mixed_bodies_split_and_bad_ones_are_refused() {
        let mut frame = Vec::new();
        let len = append_mixed(&mut frame, 4, |out| out.extend_from_slice(b"{}"));
        frame.extend_from_slice(b"tail");
        let mut reader = FrameReader::new();
        reader.push(frame.into());
        let body = drain(&mut reader).swap_remove(0);
        assert_eq!(body.len(), len);
        let parsed = FrameBody::parse(body.clone()).expect("well formed");
        assert_eq!(parsed.envelope, "{}");
        assert_eq!(parsed.tail.as_deref(), Some(&b"tail"[..]));
        for cut in 0..7 {
            assert!(FrameBody::parse(Bytes::copy_from_slice(&body[..cut])).is_err());
        }
        for bad in [&b"[]"[..], b"\xef\xbb\xbf{}", b" {}", b"\x02{}", b""] {
            assert_eq!(
                FrameBody::parse(Bytes::copy_from_slice(bad)),
                Err(CallFrameError::Kind)
            );
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..6),
            cuts in prop::collection::vec(1usize..40, 1..60),
        ) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
            let mut rest = &bytes[..];
            let mut reader = FrameReader::new();
            let mut got = Vec::new();
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                reader.push(Bytes::copy_from_slice(head));
                got.extend(drain(&mut reader));
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, bodies);
            prop_assert!(!reader.is_partial());
        }

        /// Wherever the bytes are cut, the same frames come out, and the same error.
        #[test]
        fn every_split_point_reads_alike(
            lengths in prop::collection::vec(0u32..40, 1..5),
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            for (n, length) in lengths.iter().enumerate() {
                let at = (n * 20).min(bytes.len());
                drop(bytes.splice(at..at, length.to_be_bytes()));
            }
            let whole = read(&[&bytes]);
            for at in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(at);
                prop_assert_eq!(&read(&[head, tail]), &whole);
            }
            let bytewise: Vec<_> = bytes.chunks(1).collect();
            prop_assert_eq!(read(&bytewise), whole);
        }

        #[test]
        fn every_truncation_waits(body in prop::collection::vec(any::<u8>(), 1..200)) {
            let bytes = framed(&body);
            for end in 1..bytes.len() {
                let mut reader = FrameReader::new();
                reader.push(Bytes::copy_from_slice(&bytes[..end]));
                prop_assert_eq!(reader.next_frame(FRAME_BYTES_MAX), Ok(None));
                prop_assert!(reader.is_partial());
            }
        }

        #[test]
        fn mixed_bodies_round_trip_and_are_bounded(
            members in "[a-z0-9:,\"{} ]{0,40}",
            tail in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let envelope = format!("{{{members}}}");
            let mut frame = Vec::new();
            let head = |out: &mut Vec<u8>| out.extend_from_slice(envelope.as_bytes());
            append_mixed(&mut frame, tail.len(), head);
            frame.extend_from_slice(&tail);
            let body = frame.split_off(HEADER_BYTES);
            let parsed = FrameBody::parse(body.clone().into()).expect("well formed");
            prop_assert_eq!(&parsed.envelope[..], envelope.as_bytes());
            prop_assert_eq!(parsed.tail.as_deref(), Some(&tail[..]));
            for end in 0..body.len() {
                // A frame with less of its tail is another frame; one with less of the rest is not valid.
                let cut = FrameBody::parse(Bytes::copy_from_slice(&body[..end]));
                let whole = MIXED_HEADER_BYTES + envelope.len();
                prop_assert_eq!(cut.is_ok(), end >= whole, "{}", end);
            }
        }

        #[test]
        fn any_bytes_end_in_frames_or_an_error(bytes: Vec<u8>) {
            let mut reader = FrameReader::new();
            reader.push(bytes.into());
            while let Ok(Some(frame)) = reader.next_frame(1 << 16) {
                let _ = FrameBody::parse(frame);
            }
        }
    }

    #[test]
    fn large_frames_are_put_together() {
        let body: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let bytes = framed(&body);
        let mut reader = FrameReader::new();
        let mut got = Vec::new();
        for chunk in bytes.chunks(1337) {
            reader.push(Bytes::copy_from_slice(chunk));
            got.extend(drain(&mut reader));
        }
        assert_eq!(got, [body]);
    }
}
