//! How an operation follows another that yields events.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

use crate::body::{CallBody, SubscriptionItem};
use crate::compose::child::{ChildCallGuard, aborted};
use crate::context::Ctx;
use crate::error::CallError;
use crate::handler::StreamHandler;
use crate::request;

/// The events of a followed operation. Dropping the stream ends the work behind it.
pub type Followed = Pin<Box<dyn Stream<Item = Result<CallBody, CallError>> + Send>>;

type Events = Pin<Box<dyn Stream<Item = Result<SubscriptionItem, CallError>> + Send>>;

/// One subscription in the tree of calls.
struct ChildSubscription {
    running: ChildCallGuard,
    events: Events,
}

impl ChildCallGuard {
    /// Yields what the handler yields, until its deadline passes or a token stops it. The stream polls for the next
    /// event when the reader took the one before: it keeps nothing for slow readers.
    pub(crate) fn follow(self, handler: Arc<dyn StreamHandler>, input: CallBody) -> Followed {
        let child = Arc::clone(self.child());
        // The handler's own code runs before it returns a stream, and may panic there as well.
        let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let events = handler.call(input, Ctx::child(Arc::clone(&child)));
            let caught = AssertUnwindSafe(events).catch_unwind();
            let (root, name) = (Arc::clone(&child.root), child.operation.spec.name.clone());
            caught.map(move |event| event.unwrap_or_else(|_| Err(request::panicked(&root, &name))))
        }));
        let events: Events = match started {
            Ok(events) => Box::pin(events),
            Err(_) => {
                let error = request::panicked(&child.root, &child.operation.spec.name);
                Box::pin(futures_util::stream::once(async move { Err(error) }))
            }
        };
        let following = ChildSubscription {
            running: self,
            events,
        };
        Box::pin(futures_util::stream::unfold(
            Some(following),
            |following| async move {
                let mut following = following?;
                let event = following.next().await?;
                // An error is the last item.
                let rest = event.is_ok().then_some(following);
                Some((event, rest))
            },
        ))
    }
}

impl ChildSubscription {
    async fn next(&mut self) -> Option<Result<CallBody, CallError>> {
        let child = Arc::clone(self.running.child());
        let next = async {
            match child.deadline {
                Some(deadline) => within(deadline, self.events.next()).await,
                None => self.events.next().await,
            }
        };
        let event = match child.tokens.run().run_until_cancelled(next).await {
            Some(Some(event)) => event,
            Some(None) => return None,
            // The tree was aborted while the source was silent.
            None => Err(aborted()),
        };
        let event = event.inspect_err(|error| child.note(error));
        let checked = event.and_then(|item| child.checked(item.output));
        Some(
            child
                .settled(checked)
                .map(CallBody::from)
                .map_err(|error| child.visible(error)),
        )
    }
}

async fn within(
    deadline: Instant,
    next: impl Future<Output = Option<Result<SubscriptionItem, CallError>>>,
) -> Option<Result<SubscriptionItem, CallError>> {
    timeout_at(deadline, next)
        .await
        .unwrap_or_else(|_| Some(Err(CallError::timeout())))
}
