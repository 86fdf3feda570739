//! Writes several frames of HTTP/2 at a time.
//!
//! The library flushes after each frame of data, and writes a frame in two parts. Each part would become a TLS record
//! and a system call of its own, although all that is ready could be sent at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::limits::GATHERED_BYTES;

/// A first part longer than this means that much more follows.
const MUCH: usize = 4 << 10;

/// A stream whose flushes wait until [`drive`] has seen whether more is written.
pub(super) struct CoalescingStream<W>(Arc<Mutex<CoalescingBuffer<W>>>);

struct CoalescingBuffer<W> {
    stream: W,
    bytes: Vec<u8>,
    /// The bytes that are already written.
    written: usize,
    /// Whether the buffered bytes must be flushed.
    flush: bool,
}

impl<W> Clone for CoalescingStream<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: AsyncWrite + Unpin> CoalescingStream<W> {
    pub(super) fn new(stream: W) -> Self {
        Self(Arc::new(Mutex::new(CoalescingBuffer {
            stream,
            bytes: Vec::new(),
            written: 0,
            flush: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, CoalescingBuffer<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Polls the future that writes to `stream`, and flushes afterwards.
pub(super) async fn drive<F: Future, W: AsyncWrite + Unpin>(
    mut writing: Pin<&mut F>,
    stream: &CoalescingStream<W>,
) -> F::Output {
    std::future::poll_fn(|cx| {
        let ended = writing.as_mut().poll(cx);
        // If the flush fails, reading and writing fail too and report the error.
        let _ = stream.lock().poll_flushed(cx);
        ended
    })
    .await
}

impl<W: AsyncWrite + Unpin> CoalescingBuffer<W> {
    fn poll_put(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= GATHERED_BYTES {
            ready!(self.poll_drained(cx))?;
        }
        let mut put = 0;
        for part in parts {
            let room = GATHERED_BYTES - self.bytes.len();
            // A buffer that grows step by step would be copied several times, so it gets its full size at once.
            if self.bytes.is_empty() && part.len() > MUCH {
                self.bytes.reserve_exact(GATHERED_BYTES);
            }
            let part = &part[..room.min(part.len())];
            self.bytes.extend_from_slice(part);
            put += part.len();
        }
        Poll::Ready(Ok(put))
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let left = &self.bytes[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        // An idle connection uses no buffer memory.
        self.bytes = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flush {
            ready!(self.poll_drained(cx))?;
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for CoalescingStream<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_put(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_put(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().flush = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pending = self.lock();
        ready!(pending.poll_drained(cx))?;
        Pin::new(&mut pending.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A stream that tells how often it was written to, and takes nothing while it is full.
    #[derive(Default)]
    struct WriteRecorder {
        writes: Vec<usize>,
        flushes: usize,
        full: bool,
    }

    impl AsyncWrite for WriteRecorder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.full {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.writes.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Frames as the library writes them.
    async fn frames(mut stream: CoalescingStream<WriteRecorder>, frames: usize) {
        for _ in 0..frames {
            stream.write_all(&[0; 1024]).await.expect("it is written");
            stream
                .write_all(&[0; 15 << 10])
                .await
                .expect("and the rest");
            stream.flush().await.expect("and flushed");
        }
    }

    #[tokio::test]
    async fn what_is_ready_at_once_is_written_at_once() {
        let stream = CoalescingStream::new(WriteRecorder::default());
        drive(pin!(frames(stream.clone(), 3)), &stream).await;
        {
            let pending = stream.lock();
            assert_eq!(pending.stream.writes, [48 << 10]);
            assert_eq!(pending.stream.flushes, 1);
            assert_eq!(pending.bytes.capacity(), 0, "nothing is held");
        }
        drive(pin!(frames(stream.clone(), 9)), &stream).await;
        let pending = stream.lock();
        assert_eq!(pending.stream.writes[1..], [64 << 10, 64 << 10, 16 << 10]);
    }

    #[tokio::test]
    async fn what_is_not_taken_is_held_within_bounds() {
        let stream = CoalescingStream::new(WriteRecorder::default());
        stream.lock().stream.full = true;
        let mut writing = pin!(frames(stream.clone(), 100));
        {
            let mut driven = pin!(drive(writing.as_mut(), &stream));
            for _ in 0..3 {
                assert!(futures_util::poll!(driven.as_mut()).is_pending());
            }
        }
        assert_eq!(stream.lock().bytes.len(), GATHERED_BYTES);
        stream.lock().stream.full = false;
        drive(writing, &stream).await;
        let written: usize = stream.lock().stream.writes.iter().sum();
        assert_eq!(written, 100 * (16 << 10));
    }

    #[tokio::test]
    async fn everything_comes_in_order_and_before_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let stream = CoalescingStream::new(ours);
        let text: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let write = async {
            let mut stream = stream.clone();
            for part in text.chunks(7919) {
                stream.write_all(part).await.expect("it is written");
                stream.flush().await.expect("and flushed");
            }
            stream.shutdown().await.expect("and ended");
        };
        let mut read = Vec::new();
        let reading = theirs.read_to_end(&mut read);
        let write = pin!(write);
        let (_, taken) = tokio::join!(drive(write, &stream), reading);
        assert!(taken.is_ok());
        assert_eq!(read, text);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_an_error() {
        let (ours, theirs) = tokio::io::duplex(1000);
        drop(theirs);
        let stream = CoalescingStream::new(ours);
        let write = async {
            let mut stream = stream.clone();
            stream.write_all(&[0; GATHERED_BYTES + 1]).await
        };
        assert!(drive(pin!(write), &stream).await.is_err());
    }
}
