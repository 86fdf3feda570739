//! What a script waits for: answers of the host, items of subscriptions, and tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::LocalBoxFuture;

use crate::error::OpError;
use crate::host::{Items, OpReply};
use crate::isolate::shared::PromiseSettler;
use crate::limits::UNACKNOWLEDGED;

/// An arrival. `None` is the end of a subscription.
pub(crate) type Arrival = Result<Option<OpReply>, OpError>;

pub(crate) struct PendingHostCall {
    pub(crate) settle: PromiseSettler,
    state: PendingCallState,
}

enum PendingCallState {
    Running(LocalBoxFuture<'static, Arrival>),
    /// Waits for the next item of this subscription.
    Item(Rc<RefCell<PendingSubscription>>),
    Arrived(Arrival),
}

/// An open subscription, with the items that arrived before the script asked for them.
pub(crate) struct PendingSubscription {
    items: Option<Items>,
    buffer: VecDeque<Result<OpReply, OpError>>,
}

/// All waiting calls, in the order in which they started.
pub(crate) struct PendingHostCalls {
    ordered: bool,
    next: u64,
    running: BTreeMap<u64, PendingHostCall>,
    pub(crate) subscriptions: BTreeMap<u32, Rc<RefCell<PendingSubscription>>>,
    next_subscription: u32,
}

impl fmt::Debug for PendingHostCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingHostCalls")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl PendingHostCalls {
    pub(crate) const fn new(ordered: bool) -> Self {
        Self {
            ordered,
            next: 0,
            running: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            next_subscription: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.running.clear();
        self.subscriptions.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(crate) fn start(
        &mut self,
        settle: PromiseSettler,
        work: LocalBoxFuture<'static, Arrival>,
    ) -> u64 {
        self.push(PendingHostCall {
            settle,
            state: PendingCallState::Running(work),
        })
    }

    /// Removes a waiting call, which aborts it; the caller must settle its promise.
    pub(crate) fn cancel(&mut self, id: u64) -> Option<PendingHostCall> {
        self.running.remove(&id)
    }

    /// Removes all waiting calls.
    pub(crate) fn cancel_all(&mut self) -> Vec<PendingHostCall> {
        self.subscriptions.clear();
        std::mem::take(&mut self.running).into_values().collect()
    }

    pub(crate) fn subscribe(&mut self, items: Items) -> u32 {
        self.next_subscription += 1;
        let subscription = PendingSubscription {
            items: Some(items),
            buffer: VecDeque::new(),
        };
        let id = self.next_subscription;
        self.subscriptions
            .insert(id, Rc::new(RefCell::new(subscription)));
        id
    }

    /// Waits for the next item; returns the settler if the subscription was closed.
    pub(crate) fn pull(
        &mut self,
        subscription: u32,
        settle: PromiseSettler,
    ) -> Result<u64, PromiseSettler> {
        match self.subscriptions.get(&subscription).cloned() {
            Some(open) => Ok(self.push(PendingHostCall {
                settle,
                state: PendingCallState::Item(open),
            })),
            None => Err(settle),
        }
    }

    /// Removes a subscription, which aborts it.
    pub(crate) fn unsubscribe(&mut self, subscription: u32) {
        self.subscriptions.remove(&subscription);
    }

    /// The next arrival that the script may see.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(PromiseSettler, Arrival)> {
        // Every call is polled even if another one has arrived: otherwise it would not wake the
        // task.
        for subscription in self.subscriptions.values() {
            subscription.borrow_mut().fill(cx);
        }
        for flight in self.running.values_mut() {
            flight.advance(cx);
        }
        let arrived =
            |flight: &PendingHostCall| matches!(flight.state, PendingCallState::Arrived(_));
        // Only the oldest call may arrive, so that a replay sees the same order.
        let next = if self.ordered {
            self.running
                .iter()
                .next()
                .filter(|(_, flight)| arrived(flight))
        } else {
            self.running.iter().find(|(_, flight)| arrived(flight))
        };
        let flight = next
            .map(|(id, _)| *id)
            .and_then(|id| self.running.remove(&id));
        match flight {
            Some(PendingHostCall {
                settle,
                state: PendingCallState::Arrived(arrival),
            }) => Poll::Ready((settle, arrival)),
            _ => Poll::Pending,
        }
    }

    fn push(&mut self, flight: PendingHostCall) -> u64 {
        self.next += 1;
        self.running.insert(self.next, flight);
        self.next
    }
}

impl PendingHostCall {
    fn advance(&mut self, cx: &mut Context<'_>) {
        let arrival = match &mut self.state {
            PendingCallState::Arrived(_) => return,
            PendingCallState::Running(work) => work.as_mut().poll(cx),
            PendingCallState::Item(subscription) => subscription.borrow_mut().take(),
        };
        if let Poll::Ready(arrival) = arrival {
            self.state = PendingCallState::Arrived(arrival);
        }
    }
}

impl PendingSubscription {
    /// Takes the host's items, up to the number that the script may leave waiting.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while self.buffer.len() < UNACKNOWLEDGED {
            let Some(items) = &mut self.items else { return };
            match Pin::new(items).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(item)) => {
                    let failed = item.is_err();
                    self.buffer.push_back(item);
                    // An error is the last item.
                    if failed {
                        self.items = None;
                    }
                }
                Poll::Ready(None) => self.items = None,
            }
        }
    }

    fn take(&mut self) -> Poll<Arrival> {
        match self.buffer.pop_front() {
            Some(item) => Poll::Ready(item.map(Some)),
            None if self.items.is_none() => Poll::Ready(Ok(None)),
            None => Poll::Pending,
        }
    }
}
