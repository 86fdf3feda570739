//! The body of a response, read as it arrives.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::connection::HttpClientConnection;
use crate::error::HttpError;
use crate::limits::{BODY_GROWTH_BYTES, BODY_GROWTH_PART};
use crate::origin::HttpOrigin;
use crate::pool::HttpConnectionPool;

/// The body of a response. If it is dropped before its end, the client abandons the rest.
pub struct ResponseBody {
    inner: Incoming,
    origin: HttpOrigin,
    /// The connection, which returns to the pool once the body has ended.
    connection: Option<(HttpClientConnection, Arc<HttpConnectionPool>)>,
    idle: Duration,
    silence: Pin<Box<Sleep>>,
    whole: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl ResponseBody {
    pub(crate) fn new(
        inner: Incoming,
        origin: HttpOrigin,
        connection: HttpClientConnection,
        pool: Arc<HttpConnectionPool>,
        idle: Duration,
    ) -> Self {
        let mut body = Self {
            inner,
            origin,
            connection: Some((connection, pool)),
            idle,
            silence: Box::pin(sleep(idle)),
            whole: None,
        };
        if body.inner.is_end_stream() {
            body.release();
        }
        body
    }

    /// Ends the body `whole` after `started`.
    pub(crate) fn bounded(mut self, started: Instant, whole: Option<Duration>) -> Self {
        self.whole = whole.map(|whole| (Box::pin(sleep_until(started + whole)), whole));
        self
    }

    /// The whole body, if it has at most `max` bytes.
    ///
    /// # Errors
    /// The body is longer, too late, or breaks off.
    pub async fn collect_bounded(self, max: usize) -> Result<Bytes, HttpError> {
        self.collect_counted(max, |_| true).await
    }

    /// Like `collect_bounded`. Each time the body needs more memory, `has_capacity` gets the bytes that it will have,
    /// and returns whether it may have them.
    ///
    /// # Errors
    /// The errors of `collect_bounded`, and [`NoRoom`](HttpError::NoRoom) once `has_capacity` refuses.
    pub async fn collect_counted(
        mut self,
        max: usize,
        mut has_capacity: impl FnMut(usize) -> bool + Send,
    ) -> Result<Bytes, HttpError> {
        // A length that the server announces is refused before any byte is read.
        if self.inner.size_hint().lower() > max as u64 {
            return Err(HttpError::TooLong(max));
        }
        let announced = self.inner.size_hint().upper();
        let announced = announced.and_then(|bytes| usize::try_from(bytes).ok());
        let longest = announced.map_or(max, |bytes| bytes.min(max));
        let mut whole: Vec<u8> = Vec::new();
        while let Some(frame) = self.frame().await {
            // Trailers are no part of the body.
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            if data.len() > max - whole.len() {
                return Err(HttpError::TooLong(max));
            }
            let needed = whole.len() + data.len();
            // Most bodies have a single frame, which needs no copy.
            let is_all = whole.is_empty() && self.is_end_stream();
            let capacity = match is_all {
                true => needed,
                false => capacity_for(needed, whole.capacity(), longest),
            };
            if !has_capacity(capacity) {
                return Err(HttpError::NoRoom);
            }
            if is_all {
                return Ok(data);
            }
            whole.reserve_exact(capacity - whole.len());
            whole.extend_from_slice(&data);
        }
        Ok(whole.into())
    }

    fn release(&mut self) {
        if let Some((connection, pool)) = self.connection.take() {
            pool.put(self.origin.clone(), connection);
        }
    }
}

/// The new capacity of a body's buffer that has `capacity` bytes, needs `needed`, and may need `longest`. Doubling it
/// could use twice the memory of the body; growing by each frame would copy a long body too often.
fn capacity_for(needed: usize, capacity: usize, longest: usize) -> usize {
    if needed <= capacity {
        return capacity;
    }
    let step = (capacity / BODY_GROWTH_PART).max(BODY_GROWTH_BYTES);
    (capacity + step).min(longest).max(needed)
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        // The limit is checked before the body is polled: a body that always has more data ready would otherwise
        // never be late.
        if let Some((late, limit)) = &mut this.whole
            && late.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(HttpError::TimedOut(*limit))));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Each frame restarts the limit of silence; the limit of the whole body runs on.
                this.silence.as_mut().reset(Instant::now() + this.idle);
                if this.inner.is_end_stream() {
                    this.release();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(source))) => {
                this.connection = None;
                let origin = this.origin.to_string();
                Poll::Ready(Some(Err(HttpError::Broken { origin, source })))
            }
            Poll::Ready(None) => {
                this.release();
                Poll::Ready(None)
            }
            Poll::Pending => match this.silence.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(HttpError::Idle(this.idle)))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseBody({})", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a piece, as TLS has them at most.
    const PIECE: usize = 16 << 10;

    /// Capacities of the buffer of a body of so many bytes that comes in pieces.
    fn capacities(bytes: usize, longest: usize) -> Vec<usize> {
        let mut capacity = 0;
        let pieces = (PIECE..=bytes).step_by(PIECE);
        let each = pieces.map(|needed| {
            capacity = capacity_for(needed, capacity, longest);
            assert!(needed <= capacity);
            capacity
        });
        each.collect()
    }

    #[test]
    fn a_buffer_grows_by_what_is_needed_and_not_by_doubling() {
        const LONGEST: usize = 16 << 20;
        for bytes in [1 << 20, 4 << 20, (4 << 20) + PIECE, LONGEST] {
            let each = capacities(bytes, LONGEST);
            let last = each.last().copied().expect("it has pieces");
            assert!(last - bytes <= bytes / 8 + BODY_GROWTH_BYTES, "{last}");
            // Each time it is copied.
            let mut grown = each;
            grown.dedup();
            assert!(grown.len() <= 48, "{}", grown.len());
        }
    }

    #[test]
    fn a_length_that_was_announced_bounds_the_buffer_and_costs_nothing_by_itself() {
        let announced = (3 << 20) + 5 * PIECE;
        let each = capacities(announced, announced);
        assert!(each[0] <= BODY_GROWTH_BYTES, "{}", each[0]);
        assert_eq!(each.last(), Some(&announced));
        // One that was wrong is no bound.
        assert_eq!(capacity_for(100, 10, 50), 100);
    }
}
