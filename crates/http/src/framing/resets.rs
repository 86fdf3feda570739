//! Limits how often a client of HTTP/2 resets streams (CVE-2023-44487). The library limits only the resets of streams
//! that it has not accepted yet, and not their rate.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, ReadBuf};

use crate::limits::{RESETS_BURST, RESETS_PER_SECOND};

/// Bytes of a connection's preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's header (RFC 9113 section 4.1).
const HEAD_BYTES: usize = 9;
/// RST_STREAM (RFC 9113 section 6.4).
const RST_STREAM: u8 = 3;

/// A connection's reader, which fails if the client resets streams too often.
pub(super) struct ResetLimitedStream<R> {
    stream: R,
    frames: H2FrameScanner,
    resets: ResetBudget,
}

impl<R> ResetLimitedStream<R> {
    pub(super) fn new(stream: R) -> Self {
        Self {
            stream,
            frames: H2FrameScanner::new(),
            resets: ResetBudget::new(Instant::now()),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for ResetLimitedStream<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let resets = self.frames.read(&buffer.filled()[before..]);
        if resets > 0 && !self.resets.allow(resets, Instant::now()) {
            return Poll::Ready(Err(io::Error::other("streams are reset too often")));
        }
        Poll::Ready(Ok(()))
    }
}

/// Finds the headers of frames in the bytes that the connection reads.
struct H2FrameScanner {
    /// Bytes before the next header.
    skip: usize,
    head: [u8; HEAD_BYTES],
    have: usize,
}

impl H2FrameScanner {
    fn new() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
        }
    }

    /// The number of frames that reset a stream and whose header ends in `data`.
    fn read(&mut self, mut data: &[u8]) -> u32 {
        let mut resets = 0;
        while !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = &data[skipped..];
            let part = data.len().min(HEAD_BYTES - self.have);
            self.head[self.have..self.have + part].copy_from_slice(&data[..part]);
            self.have += part;
            data = &data[part..];
            if self.have == HEAD_BYTES {
                let [a, b, c, kind, ..] = self.head;
                resets += u32::from(kind == RST_STREAM);
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
            }
        }
        resets
    }
}

/// The resets that the client may still do.
struct ResetBudget {
    left: f64,
    at: Instant,
}

impl ResetBudget {
    fn new(now: Instant) -> Self {
        Self {
            left: f64::from(RESETS_BURST),
            at: now,
        }
    }

    fn allow(&mut self, resets: u32, now: Instant) -> bool {
        let passed = now.duration_since(self.at).as_secs_f64();
        // The budget refills with time, so only the average rate is limited.
        let more = passed * f64::from(RESETS_PER_SECOND);
        self.left = (self.left + more).min(f64::from(RESETS_BURST)) - f64::from(resets);
        self.at = now;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn resets_are_counted_however_the_bytes_come() {
        let mut text = vec![b'x'; PREFACE_BYTES];
        for frames in [
            frame(4, &[]),
            frame(3, &[0; 4]),
            // Bytes like a RST_STREAM in the payload of another frame do not count.
            frame(0, &frame(3, &[0; 4]).repeat(100)),
            frame(3, &[0; 4]),
            frame(1, &[3; 5]),
            frame(3, &[0; 4]),
        ] {
            text.extend(frames);
        }
        for size in [1, 2, 7, 9, 10, 64, text.len()] {
            let mut frames = H2FrameScanner::new();
            let found: u32 = text.chunks(size).map(|part| frames.read(part)).sum();
            assert_eq!(found, 3, "in pieces of {size}");
        }
    }

    #[test]
    fn a_burst_is_allowed_and_more_is_not() {
        let start = Instant::now();
        let mut resets = ResetBudget::new(start);
        assert!(resets.allow(RESETS_BURST, start));
        assert!(!resets.allow(1, start));
        let mut resets = ResetBudget::new(start);
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            assert!(resets.allow(RESETS_PER_SECOND, now), "the average");
        }
        let mut resets = ResetBudget::new(start);
        let refused = (0..1000).find(|second| {
            let now = start + Duration::from_secs(*second);
            !resets.allow(RESETS_PER_SECOND + 1, now)
        });
        assert!(refused.is_some(), "more than the average");
    }
}
