//! The code behind an operation.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use alknet_core::BoxFuture;
use futures_util::{Stream, StreamExt};

use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::context::Ctx;
use crate::error::CallError;

/// The events of a subscription. Dropping it cancels the work behind it.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// Answers once: queries and mutations.
///
/// The node polls the future once where it read the request, so the future must not block. The node drops it when the
/// caller aborts, the deadline passes or the connection ends. A panic inside becomes `INTERNAL` for this request and
/// affects no other.
pub trait OnceHandler: Send + Sync + 'static {
    /// Starts the work.
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxFuture<'static, Result<CallOutput, CallError>>;
}

/// Yields events: subscriptions. An error ends the subscription.
pub trait StreamHandler: Send + Sync + 'static {
    /// Starts the work.
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxStream<Result<SubscriptionItem, CallError>>;
}

/// A handler of either kind; the registry checks it against the operation's type when it is built.
#[derive(Clone)]
pub enum HandlerKind {
    /// For queries and mutations.
    Once(Arc<dyn OnceHandler>),
    /// For subscriptions.
    Stream(Arc<dyn StreamHandler>),
}

impl HandlerKind {
    /// A query or mutation from an async function.
    pub fn once<F, Fut, T>(function: F) -> Self
    where
        F: Fn(CallBody, Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, CallError>> + Send + 'static,
        T: Into<CallOutput> + 'static,
    {
        Self::Once(Arc::new(OnceFn(function)))
    }

    /// A subscription from a function that returns a stream.
    pub fn stream<F, S, T>(function: F) -> Self
    where
        F: Fn(CallBody, Ctx) -> S + Send + Sync + 'static,
        S: Stream<Item = Result<T, CallError>> + Send + 'static,
        T: Into<SubscriptionItem> + 'static,
    {
        Self::Stream(Arc::new(StreamFn(function)))
    }
}

impl fmt::Debug for HandlerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once(_) => "Once",
            Self::Stream(_) => "Stream",
        })
    }
}

/// What a subscription does when its reader is slower than its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSlow {
    /// Keep at most this many events, drop the oldest, and report the number with the next one.
    DropOldest(usize),
    /// End with `OVERLOADED`.
    Fail,
    /// Do not poll the source meanwhile.
    #[default]
    Pause,
}

struct OnceFn<F>(F);

impl<F, Fut, T> OnceHandler for OnceFn<F>
where
    F: Fn(CallBody, Ctx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, CallError>> + Send + 'static,
    T: Into<CallOutput> + 'static,
{
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxFuture<'static, Result<CallOutput, CallError>> {
        let answer = (self.0)(input, ctx);
        Box::pin(async move { answer.await.map(Into::into) })
    }
}

struct StreamFn<F>(F);

impl<F, S, T> StreamHandler for StreamFn<F>
where
    F: Fn(CallBody, Ctx) -> S + Send + Sync + 'static,
    S: Stream<Item = Result<T, CallError>> + Send + 'static,
    T: Into<SubscriptionItem> + 'static,
{
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxStream<Result<SubscriptionItem, CallError>> {
        Box::pin((self.0)(input, ctx).map(|item| item.map(Into::into)))
    }
}
