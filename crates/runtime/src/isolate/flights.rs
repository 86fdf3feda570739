//! What a script waits for: answers of the host, items of subscriptions, tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::LocalBoxFuture;

use crate::error::OpError;
use crate::host::{Items, Reply};
use crate::isolate::shared::Settle;
use crate::limits::UNACKNOWLEDGED;

/// What arrives. `None` is the end of a subscription.
pub(crate) type Arrival = Result<Option<Reply>, OpError>;

pub(crate) struct Flight {
    pub(crate) settle: Settle,
    state: State,
}

enum State {
    Running(LocalBoxFuture<'static, Arrival>),
    /// Waits for the next item of this subscription.
    Item(Rc<RefCell<Subscription>>),
    Arrived(Arrival),
}

/// An open subscription with the items that came before the script asked for them.
pub(crate) struct Subscription {
    items: Option<Items>,
    buffer: VecDeque<Result<Reply, OpError>>,
}

/// All of them, by the order in which they started.
pub(crate) struct Flights {
    ordered: bool,
    next: u64,
    running: BTreeMap<u64, Flight>,
    pub(crate) subscriptions: BTreeMap<u32, Rc<RefCell<Subscription>>>,
    next_subscription: u32,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Flights {
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

    pub(crate) fn start(&mut self, settle: Settle, work: LocalBoxFuture<'static, Arrival>) -> u64 {
        self.push(Flight {
            settle,
            state: State::Running(work),
        })
    }

    /// Drops what waits for an answer: its call is aborted, its promise is the caller's to settle.
    pub(crate) fn cancel(&mut self, id: u64) -> Option<Flight> {
        self.running.remove(&id)
    }

    /// Drops all of them.
    pub(crate) fn cancel_all(&mut self) -> Vec<Flight> {
        self.subscriptions.clear();
        std::mem::take(&mut self.running).into_values().collect()
    }

    pub(crate) fn subscribe(&mut self, items: Items) -> u32 {
        self.next_subscription += 1;
        let subscription = Subscription {
            items: Some(items),
            buffer: VecDeque::new(),
        };
        let id = self.next_subscription;
        self.subscriptions
            .insert(id, Rc::new(RefCell::new(subscription)));
        id
    }

    /// Waits for the next item; `false` when the subscription was closed.
    pub(crate) fn pull(&mut self, subscription: u32, settle: Settle) -> Result<u64, Settle> {
        match self.subscriptions.get(&subscription).cloned() {
            Some(open) => Ok(self.push(Flight {
                settle,
                state: State::Item(open),
            })),
            None => Err(settle),
        }
    }

    /// Drops a subscription, which aborts it.
    pub(crate) fn unsubscribe(&mut self, subscription: u32) {
        self.subscriptions.remove(&subscription);
    }

    /// The next arrival that the script may see.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Settle, Arrival)> {
        for subscription in self.subscriptions.values() {
            subscription.borrow_mut().fill(cx);
        }
        for flight in self.running.values_mut() {
            flight.advance(cx);
        }
        let arrived = |flight: &Flight| matches!(flight.state, State::Arrived(_));
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
            Some(Flight {
                settle,
                state: State::Arrived(arrival),
            }) => Poll::Ready((settle, arrival)),
            _ => Poll::Pending,
        }
    }

    fn push(&mut self, flight: Flight) -> u64 {
        self.next += 1;
        self.running.insert(self.next, flight);
        self.next
    }
}

impl Flight {
    fn advance(&mut self, cx: &mut Context<'_>) {
        let arrival = match &mut self.state {
            State::Arrived(_) => return,
            State::Running(work) => work.as_mut().poll(cx),
            State::Item(subscription) => subscription.borrow_mut().take(),
        };
        if let Poll::Ready(arrival) = arrival {
            self.state = State::Arrived(arrival);
        }
    }
}

impl Subscription {
    /// Takes what the host has, up to what the script may leave waiting.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while self.buffer.len() < UNACKNOWLEDGED {
            let Some(items) = &mut self.items else { return };
            match Pin::new(items).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(item)) => {
                    let failed = item.is_err();
                    self.buffer.push_back(item);
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
