//! The result of a job, which comes later.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::error::StoreError;

/// The result of a job of the writer or of a reader. Await it, or [`wait`](Self::wait) for it. The job runs either way.
#[derive(Debug)]
#[must_use = "a write is durable only once its result is there"]
pub struct StoreReply<T>(ReplyState<T>);

#[derive(Debug)]
enum ReplyState<T> {
    Pending(oneshot::Receiver<Result<T, StoreError>>),
    /// The job was not taken. `None` after the error was handed over.
    Refused(Option<StoreError>),
}

impl<T> StoreReply<T> {
    pub(super) const fn pending(receiver: oneshot::Receiver<Result<T, StoreError>>) -> Self {
        Self(ReplyState::Pending(receiver))
    }

    pub(super) const fn refused(error: StoreError) -> Self {
        Self(ReplyState::Refused(Some(error)))
    }

    /// Blocks until the result is there.
    ///
    /// # Errors
    /// The error of the job.
    ///
    /// # Panics
    /// On a thread of an asynchronous runtime: await the value there.
    pub fn wait(self) -> Result<T, StoreError> {
        match self.0 {
            ReplyState::Pending(receiver) => {
                // The sender is dropped without a result only if the thread ended before the job
                // ran.
                receiver.blocking_recv().unwrap_or(Err(StoreError::Closed))
            }
            ReplyState::Refused(error) => Err(error.unwrap_or(StoreError::Closed)),
        }
    }
}

impl<T> Future for StoreReply<T> {
    type Output = Result<T, StoreError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            ReplyState::Pending(receiver) => {
                let received = Pin::new(receiver).poll(context);
                received.map(|it| it.unwrap_or(Err(StoreError::Closed)))
            }
            ReplyState::Refused(error) => {
                Poll::Ready(Err(error.take().unwrap_or(StoreError::Closed)))
            }
        }
    }
}
