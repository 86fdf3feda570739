//! Subscriptions: items from the handler, events to the peer, at the peer's pace.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};

use crate::body::{CallBody, SubscriptionItem};
use crate::connection::UnreadReservation;
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::{BoxStream, OnSlow, StreamHandler};
use crate::limits::{LANE_QUEUE_BYTES, SUBSCRIPTION_QUEUE_BYTES};
use crate::request::{CreditWindow, InFlight, InboundRequest, panicked};
use crate::request_grant;

/// The reader of a subscription's events, at its own pace.
pub(crate) trait EventSink: Sync {
    /// Whether it takes an event now.
    fn is_open(&self) -> bool;

    /// Resolves when it may take an event.
    fn wait_open(&self) -> impl Future<Output = ()> + Send;

    /// Whether the reader is gone.
    fn is_gone(&self) -> bool;

    /// Counts an event of so many bytes as one that waits for the reader.
    fn count_unread(&self, _bytes: usize) -> Option<UnreadReservation> {
        None
    }

    /// Whether another may wait for it.
    fn may_keep(&self) -> bool {
        true
    }

    /// Resolves when another may wait.
    fn wait_keep(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Gives it an event.
    fn give(&self, item: SubscriptionItem, dropped: u64) -> EventSinkResult;
}

/// The outcome for an event.
pub(crate) enum EventSinkResult {
    /// The reader did not take it after all: the pump gives it again once the reader is open.
    Not(SubscriptionItem),
    /// The pump gives nothing more: the reader is gone, or the event was not valid.
    Over,
    Taken,
}

/// Runs a subscription in a task of its own.
pub(crate) fn start(in_flight: InFlight, handler: Arc<dyn StreamHandler>, input: CallBody) {
    let request = Arc::clone(in_flight.request());
    let task = tokio::spawn(run(in_flight, handler, input));
    request.set_task(task.abort_handle());
}

async fn run(in_flight: InFlight, handler: Arc<dyn StreamHandler>, input: CallBody) {
    let request = in_flight.request();
    match follow(request, request.as_ref(), handler, input).await {
        Ok(()) => request.complete(),
        Err(error) => request.fail(error),
    }
}

/// Passes on what the handler yields until it ends, its deadline passes or the right to it is gone.
pub(crate) async fn follow(
    request: &Arc<InboundRequest>,
    reader: &impl EventSink,
    handler: Arc<dyn StreamHandler>,
    input: CallBody,
) -> Result<(), CallError> {
    let work = async {
        let items = handler.call(input, Ctx::request(request));
        pump(request, reader, items).await
    };
    let work = async {
        tokio::select! {
            biased;
            // First: an event that is ready as well is not the requester's any more.
            error = request_grant::withdrawn(request) => Err(error),
            outcome = work => outcome,
        }
    };
    let work = AssertUnwindSafe(work).catch_unwind();
    let outcome = match request.deadline() {
        Some(deadline) => tokio::time::timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Ok(Err(CallError::timeout()))),
        None => work.await,
    };
    outcome.unwrap_or_else(|_| Err(panicked(request, &request.operation().spec.name)))
}

/// An item, and the bytes that it counts for.
struct BufferedItem {
    item: SubscriptionItem,
    _claim: Option<UnreadReservation>,
}

impl BufferedItem {
    fn new(item: SubscriptionItem, reader: &impl EventSink) -> Self {
        let claim = reader.count_unread(item.output.kept_bytes());
        Self {
            item,
            _claim: claim,
        }
    }
}

/// Items read ahead of the peer, by the operation's policy.
struct ReadAhead {
    items: VecDeque<BufferedItem>,
    dropped: u64,
    policy: OnSlow,
}

impl ReadAhead {
    fn may_read(&self, open: bool) -> bool {
        match self.policy {
            OnSlow::Pause => self.items.is_empty() && open,
            OnSlow::DropOldest(_) => true,
            OnSlow::Fail => self.items.is_empty(),
        }
    }

    fn put(&mut self, item: BufferedItem, open: bool) -> Result<(), CallError> {
        match self.policy {
            OnSlow::Fail if !open => {
                return Err(CallError::new(
                    ErrorCode::Overloaded,
                    "the reader is too slow for this subscription",
                ));
            }
            // A policy of no events at all would never give one.
            OnSlow::DropOldest(most) if self.items.len() >= most.max(1) => self.drop_oldest(),
            _ => {}
        }
        self.items.push_back(item);
        Ok(())
    }

    /// Drops all items but the newest while too much waits for the reader, where the policy allows that.
    fn shrink(&mut self, reader: &impl EventSink) {
        if matches!(self.policy, OnSlow::DropOldest(_)) {
            while self.items.len() > 1 && !reader.may_keep() {
                self.drop_oldest();
            }
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.items.pop_front();
        self.dropped += 1 + oldest.map_or(0, |buffered| buffered.item.dropped);
    }
}

async fn pump(
    request: &InboundRequest,
    reader: &impl EventSink,
    mut items: BoxStream<Result<SubscriptionItem, CallError>>,
) -> Result<(), CallError> {
    let mut ahead = ReadAhead {
        items: VecDeque::new(),
        dropped: 0,
        policy: request.operation().on_slow,
    };
    let mut ended = false;
    loop {
        // A source that is always ready must not keep its worker from all other tasks.
        tokio::task::coop::consume_budget().await;
        let open = reader.is_open();
        if open && let Some(BufferedItem { item, .. }) = ahead.items.pop_front() {
            let before = std::mem::take(&mut ahead.dropped);
            let dropped = before + item.dropped;
            match reader.give(item, dropped) {
                EventSinkResult::Not(item) => {
                    // The event stays in the buffer, and its drops are reported with it.
                    ahead.dropped = before;
                    ahead.items.push_front(BufferedItem::new(item, reader));
                }
                // Either the node sent the terminal error in its place, or the reader is gone.
                EventSinkResult::Over => return Err(CallError::unavailable("the stream is gone")),
                EventSinkResult::Taken => {}
            }
            continue;
        }
        if ended && ahead.items.is_empty() {
            return Ok(());
        }
        if reader.is_gone() {
            return Err(CallError::unavailable("the stream is gone"));
        }
        let wanted = !ended && ahead.may_read(open);
        // Dropping keeps the bytes bounded: such a source runs on.
        let drops = matches!(ahead.policy, OnSlow::DropOldest(_));
        let read = wanted && (drops || reader.may_keep());
        tokio::select! {
            biased;
            () = reader.wait_open(), if !open => {}
            () = reader.wait_keep(), if wanted && !read => {}
            item = next(request, &mut items), if read => match item? {
                Some(item) => {
                    ahead.put(BufferedItem::new(item, reader), reader.is_open())?;
                    ahead.shrink(reader);
                }
                // Buffered items still go out before the end.
                None => ended = true,
            },
        }
    }
}

/// The next item; an error when the requester's idle time passes without one.
async fn next(
    request: &InboundRequest,
    items: &mut BoxStream<Result<SubscriptionItem, CallError>>,
) -> Result<Option<SubscriptionItem>, CallError> {
    let item = match request.head.idle {
        Some(idle) => tokio::time::timeout(idle, items.next())
            .await
            .map_err(|_| CallError::new(ErrorCode::Timeout, "no event for as long as asked"))?,
        None => items.next().await,
    };
    item.transpose()
}

impl EventSink for InboundRequest {
    fn is_open(&self) -> bool {
        let credit = self.credit.as_ref();
        let is_read = self.connection_state().is_read() && !self.is_starved();
        credit.is_none_or(CreditWindow::is_open) && has_capacity(self) && is_read
    }

    async fn wait_open(&self) {
        if let Some(credit) = &self.credit {
            credit.wait().await;
        }
        self.stream()
            .out
            .wait_for_capacity(|_| has_capacity(self))
            .await;
        self.connection_state().wait_until_read().await;
        self.wait_fed().await;
    }

    fn is_gone(&self) -> bool {
        self.stream().out.is_ended()
    }

    fn count_unread(&self, bytes: usize) -> Option<UnreadReservation> {
        Some(UnreadReservation::new(
            &self.connection_state().ahead,
            bytes,
        ))
    }

    fn may_keep(&self) -> bool {
        self.connection_state().may_keep()
    }

    async fn wait_keep(&self) {
        self.connection_state().wait_keep().await;
    }

    fn give(&self, item: SubscriptionItem, dropped: u64) -> EventSinkResult {
        let given = self.event(item, dropped);
        if let (EventSinkResult::Taken, Some(credit)) = (&given, &self.credit) {
            credit.spend();
        }
        given
    }
}

fn has_capacity(request: &InboundRequest) -> bool {
    request.queued_bytes() < SUBSCRIPTION_QUEUE_BYTES
        && request.stream().out.backlog() < LANE_QUEUE_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::backpressure::UnreadBytes;
    use crate::body::CallOutput;

    fn ahead(policy: OnSlow) -> ReadAhead {
        ReadAhead {
            items: VecDeque::new(),
            dropped: 0,
            policy,
        }
    }

    fn buffered(item: SubscriptionItem) -> BufferedItem {
        BufferedItem { item, _claim: None }
    }

    /// The reader of a connection whose peer takes nothing.
    struct StalledSink(Arc<UnreadBytes>);

    impl EventSink for StalledSink {
        fn is_open(&self) -> bool {
            false
        }

        async fn wait_open(&self) {
            std::future::pending().await
        }

        fn is_gone(&self) -> bool {
            false
        }

        fn count_unread(&self, bytes: usize) -> Option<UnreadReservation> {
            Some(UnreadReservation::new(&self.0, bytes))
        }

        fn may_keep(&self) -> bool {
            self.0.bytes() < 1000
        }

        fn give(&self, item: SubscriptionItem, _: u64) -> EventSinkResult {
            EventSinkResult::Not(item)
        }
    }

    /// However many items the policy of each subscription keeps.
    #[test]
    fn what_is_kept_for_a_connection_is_bounded_by_its_bytes() {
        let reader = StalledSink(Arc::default());
        let mut all: Vec<_> = (0..8).map(|_| ahead(OnSlow::DropOldest(1000))).collect();
        for n in 0..200 {
            let ahead = &mut all[n % 8];
            let item = SubscriptionItem::from(CallOutput::Raw(vec![b'1'; 100].into()));
            ahead
                .put(BufferedItem::new(item, &reader), false)
                .expect("kept");
            ahead.shrink(&reader);
            assert!(reader.0.bytes() <= 1000 + 8 * 100, "{n}");
        }
        let of = |it: &ReadAhead| it.dropped + it.items.len() as u64;
        assert_eq!(
            all.iter().map(of).sum::<u64>(),
            200,
            "what is left out is counted"
        );
        all.clear();
        assert_eq!(reader.0.bytes(), 0);
    }

    fn number(item: &SubscriptionItem) -> u64 {
        match &item.output {
            CallOutput::Value(value) => value.as_u64().expect("a number"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_paused_source_is_not_asked_and_a_strict_one_fails() {
        let mut pause = ahead(OnSlow::Pause);
        assert!(pause.may_read(true) && !pause.may_read(false));
        pause
            .put(buffered(Value::from(1).into()), true)
            .expect("kept");
        assert!(!pause.may_read(true), "one item ahead at most");
        let mut strict = ahead(OnSlow::Fail);
        assert!(strict.may_read(false));
        let refused = strict.put(buffered(Value::from(1).into()), false);
        assert_eq!(refused.expect_err("slow").code, ErrorCode::Overloaded);
    }

    proptest! {
        /// Steps are reads from the source (`true`) and sends to the peer, in any order.
        #[test]
        fn whatever_is_not_sent_is_counted(
            most in 0usize..5,
            steps in prop::collection::vec(any::<bool>(), 0..60),
            left_out in 0u64..3,
        ) {
            let mut ahead = ahead(OnSlow::DropOldest(most));
            let (mut read, mut sent, mut reported, mut last) = (0, 0, 0, 0);
            for step in steps {
                if step {
                    read += 1;
                    let mut item = SubscriptionItem::from(Value::from(read));
                    item.dropped = left_out;
                    prop_assert!(ahead.may_read(false));
                    prop_assert!(ahead.put(buffered(item), false).is_ok());
                } else if let Some(BufferedItem { item, .. }) = ahead.items.pop_front() {
                    prop_assert!(number(&item) > last, "in order");
                    last = number(&item);
                    reported += std::mem::take(&mut ahead.dropped) + item.dropped;
                    sent += 1;
                }
                prop_assert!(ahead.items.len() <= most.max(1));
            }
            let buffered = ahead.items.len() as u64;
            let ever = read + read * left_out;
            prop_assert_eq!(sent + reported + ahead.dropped + buffered + buffered * left_out, ever);
        }
    }
}
