//! Subscriptions: items from the handler, events to the peer, at the peer's pace.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};

use crate::body::{Body, Item};
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::{BoxStream, OnSlow, StreamHandler};
use crate::limits::{LANE_QUEUE_BYTES, SUBSCRIPTION_QUEUE_BYTES};
use crate::request::{CreditWindow, InFlight, Request, panicked};
use crate::standing;

/// Where the events of a subscription go, at its own pace.
pub(crate) trait Reader: Sync {
    /// Whether it takes one now.
    fn is_open(&self) -> bool;

    /// Resolves when it may take one.
    fn wait_open(&self) -> impl Future<Output = ()> + Send;

    /// Whether nobody is there any more.
    fn is_gone(&self) -> bool;

    /// Gives it one.
    fn give(&self, item: Item, dropped: u64) -> Given;
}

/// What became of an event.
pub(crate) enum Given {
    /// It could not be taken after all, and is to be given again once the reader is open.
    Not(Item),
    /// Nothing more is to be given: nobody is there, or the event was not fit.
    Over,
    Taken,
}

/// Runs a subscription in a task of its own.
pub(crate) fn start(in_flight: InFlight, handler: Arc<dyn StreamHandler>, input: Body) {
    let request = Arc::clone(in_flight.request());
    let task = tokio::spawn(run(in_flight, handler, input));
    request.set_task(task.abort_handle());
}

async fn run(in_flight: InFlight, handler: Arc<dyn StreamHandler>, input: Body) {
    let request = in_flight.request();
    match follow(request, request.as_ref(), handler, input).await {
        Ok(()) => request.complete(),
        Err(error) => request.fail(error),
    }
}

/// Passes on what the handler yields until it ends, its deadline passes or the right to it is gone.
pub(crate) async fn follow(
    request: &Arc<Request>,
    reader: &impl Reader,
    handler: Arc<dyn StreamHandler>,
    input: Body,
) -> Result<(), CallError> {
    let work = async {
        let items = handler.call(input, Ctx::request(request));
        pump(request, reader, items).await
    };
    let work = async {
        tokio::select! {
            biased;
            error = standing::withdrawn(request) => Err(error),
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

/// Items read ahead of the peer, by the operation's policy.
struct Ahead {
    items: VecDeque<Item>,
    dropped: u64,
    policy: OnSlow,
}

impl Ahead {
    fn may_read(&self, open: bool) -> bool {
        match self.policy {
            OnSlow::Pause => self.items.is_empty() && open,
            OnSlow::DropOldest(_) => true,
            OnSlow::Fail => self.items.is_empty(),
        }
    }

    fn put(&mut self, item: Item, open: bool) -> Result<(), CallError> {
        match self.policy {
            OnSlow::Fail if !open => {
                return Err(CallError::new(
                    ErrorCode::Overloaded,
                    "the reader is too slow for this subscription",
                ));
            }
            OnSlow::DropOldest(most) if self.items.len() >= most.max(1) => {
                let oldest = self.items.pop_front();
                self.dropped += 1 + oldest.map_or(0, |item| item.dropped);
            }
            _ => {}
        }
        self.items.push_back(item);
        Ok(())
    }
}

async fn pump(
    request: &Request,
    reader: &impl Reader,
    mut items: BoxStream<Result<Item, CallError>>,
) -> Result<(), CallError> {
    let mut ahead = Ahead {
        items: VecDeque::new(),
        dropped: 0,
        policy: request.operation().on_slow,
    };
    let mut ended = false;
    loop {
        // A source that is always ready must not keep its worker from everybody else.
        tokio::task::coop::consume_budget().await;
        let open = reader.is_open();
        if open && let Some(item) = ahead.items.pop_front() {
            let before = std::mem::take(&mut ahead.dropped);
            let dropped = before + item.dropped;
            match reader.give(item, dropped) {
                Given::Not(item) => {
                    ahead.dropped = before;
                    ahead.items.push_front(item);
                }
                // Either the terminal error was sent in its place, or nobody is there to read one.
                Given::Over => return Err(CallError::unavailable("the stream is gone")),
                Given::Taken => {}
            }
            continue;
        }
        if ended && ahead.items.is_empty() {
            return Ok(());
        }
        if reader.is_gone() {
            return Err(CallError::unavailable("the stream is gone"));
        }
        let read = !ended && ahead.may_read(open);
        tokio::select! {
            biased;
            () = reader.wait_open(), if !open => {}
            item = next(request, &mut items), if read => match item? {
                Some(item) => ahead.put(item, reader.is_open())?,
                None => ended = true,
            },
        }
    }
}

/// The next item; an error when the requester's idle time passes without one.
async fn next(
    request: &Request,
    items: &mut BoxStream<Result<Item, CallError>>,
) -> Result<Option<Item>, CallError> {
    let item = match request.head.idle {
        Some(idle) => tokio::time::timeout(idle, items.next())
            .await
            .map_err(|_| CallError::new(ErrorCode::Timeout, "no event for as long as asked"))?,
        None => items.next().await,
    };
    item.transpose()
}

impl Reader for Request {
    fn is_open(&self) -> bool {
        let credit = self.credit.as_ref();
        credit.is_none_or(CreditWindow::is_open) && has_room(self) && self.link().is_read()
    }

    async fn wait_open(&self) {
        if let Some(credit) = &self.credit {
            credit.wait().await;
        }
        self.lane().out.wait_room(|_| has_room(self)).await;
        self.link().wait_until_read().await;
    }

    fn is_gone(&self) -> bool {
        self.lane().out.is_ended()
    }

    fn give(&self, item: Item, dropped: u64) -> Given {
        let given = self.event(item, dropped);
        if let (Given::Taken, Some(credit)) = (&given, &self.credit) {
            credit.spend();
        }
        given
    }
}

fn has_room(request: &Request) -> bool {
    request.queued_bytes() < SUBSCRIPTION_QUEUE_BYTES
        && request.lane().out.backlog() < LANE_QUEUE_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn ahead(policy: OnSlow) -> Ahead {
        Ahead {
            items: VecDeque::new(),
            dropped: 0,
            policy,
        }
    }

    fn number(item: &Item) -> u64 {
        match &item.output {
            crate::body::Output::Value(value) => value.as_u64().expect("a number"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_paused_source_is_not_asked_and_a_strict_one_fails() {
        let mut pause = ahead(OnSlow::Pause);
        assert!(pause.may_read(true) && !pause.may_read(false));
        pause.put(Item::from(Value::from(1)), true).expect("kept");
        assert!(!pause.may_read(true), "one item ahead at most");
        let mut strict = ahead(OnSlow::Fail);
        assert!(strict.may_read(false));
        let refused = strict.put(Item::from(Value::from(1)), false);
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
            let (mut read, mut sent, mut told, mut last) = (0, 0, 0, 0);
            for step in steps {
                if step {
                    read += 1;
                    let mut item = Item::from(Value::from(read));
                    item.dropped = left_out;
                    prop_assert!(ahead.may_read(false));
                    prop_assert!(ahead.put(item, false).is_ok());
                } else if let Some(item) = ahead.items.pop_front() {
                    prop_assert!(number(&item) > last, "in order");
                    last = number(&item);
                    told += std::mem::take(&mut ahead.dropped) + item.dropped;
                    sent += 1;
                }
                prop_assert!(ahead.items.len() <= most.max(1));
            }
            let kept = ahead.items.len() as u64;
            let ever = read + read * left_out;
            prop_assert_eq!(sent + told + ahead.dropped + kept + kept * left_out, ever);
        }
    }
}
