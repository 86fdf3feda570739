//! Limits how slowly bodies of requests may arrive.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use alknet_core::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::limits::{BODY_BYTES_PER_SECOND, HttpTimeouts};

/// The reason why the node ends a body early.
#[derive(Debug, thiserror::Error)]
#[error("the body comes too slowly")]
struct SlowBodyError;

/// Whether a body broke off because it was too slow.
pub(crate) fn is_slow(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<SlowBodyError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A body that ends with an error if its sender is too slow, whatever reads it. Most bodies are complete when they
/// are read, so the time counts only while the reader has to wait.
pub(super) struct TimedBody<B> {
    body: B,
    idle: Duration,
    grace: Duration,
    have: u64,
    /// How long the reader has waited in total.
    waited: Duration,
    /// Since when the reader waits, and the limit for that.
    since: Option<Instant>,
    limit: Option<Pin<Box<Sleep>>>,
}

impl<B> TimedBody<B> {
    pub(super) fn new(body: B, patience: HttpTimeouts) -> Self {
        Self {
            body,
            idle: patience.body_idle,
            grace: patience.body_grace,
            have: 0,
            waited: Duration::ZERO,
            since: None,
            limit: None,
        }
    }

    /// Resolves when no bytes arrived for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.idle;
        let limit = self
            .limit
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            limit.as_mut().reset(now + idle);
        }
        limit.as_mut().poll(cx)
    }

    /// Counts bytes that arrived.
    fn count(&mut self, bytes: usize) -> Result<(), SlowBodyError> {
        self.have += bytes as u64;
        // The bytes were ready without a wait, so the sender was not slow.
        let Some(since) = self.since.take() else {
            return Ok(());
        };
        self.waited += since.elapsed();
        let due = self.waited.as_millis() * u128::from(BODY_BYTES_PER_SECOND) / 1000;
        if self.waited > self.grace && u128::from(self.have) < due {
            return Err(SlowBodyError);
        }
        Ok(())
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return self.poll_late(cx).map(|()| Some(Err(SlowBodyError.into())));
        };
        let counted = frame.map(|frame| -> Result<Frame<Bytes>, BoxError> {
            let frame = frame.map_err(Into::<BoxError>::into)?;
            self.count(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        });
        Poll::Ready(counted)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use alknet_test_support::deadline;
    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Long enough for a piece that is ready.
    fn moment() -> Duration {
        deadline(Duration::from_millis(20))
    }

    /// What a body of these pieces comes to.
    async fn read(
        pieces: impl futures_util::Stream<Item = Bytes> + Send + 'static,
        (body_idle, body_grace): (Duration, Duration),
    ) -> Result<Bytes, axum::Error> {
        let pieces = pieces.map(Ok::<_, std::io::Error>);
        let patience = HttpTimeouts {
            body_idle,
            body_grace,
            ..HttpTimeouts::default()
        };
        let body = TimedBody::new(axum::body::Body::from_stream(pieces), patience);
        // As it is handed on: boxed, and its error within another.
        let read = axum::body::Body::new(body).collect().await;
        read.map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn what_is_there_already_is_not_timed() {
        let pieces = stream::iter(vec![Bytes::from_static(b"x"); 100]);
        let read = read(pieces, (Duration::ZERO, Duration::ZERO)).await;
        assert_eq!(read.expect("nothing was waited for").len(), 100);
    }

    #[tokio::test]
    async fn what_does_not_come_ends() {
        let pieces = stream::iter([Bytes::from_static(b"x")]).chain(stream::pending());
        let error = read(pieces, (moment(), LONG)).await.expect_err("no end");
        assert!(is_slow(&error), "{error}");
    }

    /// A byte now and then, so that it never pauses for long.
    #[tokio::test]
    async fn what_drips_ends() {
        let pieces = stream::repeat(Bytes::from_static(b"x")).then(|byte| async {
            tokio::time::sleep(moment()).await;
            byte
        });
        let error = read(pieces, (LONG, 4 * moment()))
            .await
            .expect_err("no end");
        assert!(is_slow(&error), "{error}");
    }

    /// Like `what_drips_ends`, but a thousand times as much each time.
    #[tokio::test]
    async fn what_comes_fast_enough_may_take_its_time() {
        let piece = Bytes::from(vec![b'x'; 64 << 10]);
        let pieces = stream::iter(vec![piece; 10]).then(|piece| async {
            tokio::time::sleep(moment()).await;
            piece
        });
        let read = read(pieces, (LONG, 4 * moment())).await;
        assert_eq!(read.expect("it is fast enough").len(), 10 * (64 << 10));
    }

    #[tokio::test]
    async fn what_breaks_off_is_not_slow() {
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        let body = axum::body::Body::from_stream(broken);
        let body = TimedBody::new(body, HttpTimeouts::default());
        let error = body.collect().await.expect_err("it breaks off");
        assert!(!is_slow(&*error), "{error}");
    }
}
