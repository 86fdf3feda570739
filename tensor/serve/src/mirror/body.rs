//! The body of an HTTP response that sends a part of a file.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use alknet_core::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::handler::{Next, read_on};
use crate::part::FilePart;
use crate::pending::ResponsePermit;

/// A part, block by block: one block is read ahead while another is sent, and no more until the
/// connection polls.
pub(super) struct MirrorBody {
    next: Option<Next>,
    left: u64,
    /// The id of the request, for the log.
    request_id: Arc<str>,
    _flight: ResponsePermit,
}

impl MirrorBody {
    pub(super) fn new(part: FilePart, flight: ResponsePermit, request_id: Arc<str>) -> Self {
        Self {
            left: part.head.len,
            next: Some(read_on(part)),
            request_id,
            _flight: flight,
        }
    }
}

impl Body for MirrorBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let read = ready!(next.as_mut().poll(cx)).and_then(|(part, block)| Ok((part, block?)));
        self.next = None;
        match read {
            Ok((part, Some(block))) => {
                self.left = self.left.saturating_sub(block.len() as u64);
                self.next = (self.left > 0).then(|| read_on(part));
                Poll::Ready(Some(Ok(Frame::data(block))))
            }
            Ok((_, None)) => Poll::Ready(None),
            Err(error) => {
                let (id, code) = (&self.request_id, error.code());
                tracing::warn!("{id}: a tensor was not served to its end: {code}: {error}");
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
