//! Events of a subscription of this side, between their stream and the subscriber.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::backpressure::{RequesterSource, UnreadBytes, UnreadQuota};
use crate::body::CallBody;
use crate::connection::UnreadReservation;
use crate::credit::{CreditGrant, SubscriptionCredit};
use crate::error::{CallError, ErrorCode};
use crate::limits::{
    OVERLOAD_RETRY_MS, READ_STEP_BYTES, STREAM_EVENTS_BYTES, WINDOW_FORWARDED_MAX,
};
use crate::request_bytes::{GrowLimit, RequestBytes, Requester};

/// One event of a subscription, as its subscriber sees it.
#[derive(Clone, Debug)]
pub struct SubscriptionEvent {
    /// The value.
    pub output: CallBody,
    /// Events left out before this one because the reader was slow.
    pub dropped: u64,
    /// The cursor to resume after it, for resumable operations.
    pub cursor: Option<CallBody>,
}

impl SubscriptionEvent {
    /// A copy in memory of its own: a short frame is a part of a longer read, and keeps all of it.
    fn apart(self) -> Self {
        let copy = |part: &Bytes| Bytes::copy_from_slice(part);
        let cursor = |cursor: &CallBody| CallBody::from_parts(copy(cursor.raw()), Bytes::new());
        Self {
            output: CallBody::from_parts(copy(self.output.raw()), copy(self.output.tail())),
            dropped: self.dropped,
            cursor: self.cursor.as_ref().map(cursor),
        }
    }
}

/// What a subscriber receives.
#[derive(Debug)]
pub(crate) enum Delivery {
    End(Result<(), CallError>),
    /// The reservation counts the event as waiting until the subscriber takes it.
    Event(Box<SubscriptionEvent>, UnreadReservation),
}

/// How much may wait for a subscriber.
#[derive(Debug)]
pub(crate) enum BufferCapacity {
    /// This many events for this node itself, which takes them.
    Own(usize),
    /// Events that this node passes on to a requester, which need not take them. They count for that requester.
    Passed {
        waiting: Arc<UnreadBytes>,
        granted: Arc<CreditGrant>,
    },
}

impl BufferCapacity {
    /// The capacity for events that come by this credit and that this node passes on.
    pub(crate) fn passed(
        all: &Arc<RequestBytes>,
        to: &Requester,
        credit: &SubscriptionCredit,
    ) -> Self {
        let to = to.clone();
        let source: Arc<RequesterSource> = Arc::new(move || to.clone());
        Self::Passed {
            waiting: Arc::new(UnreadBytes::shared(UnreadQuota::new(all, &source), None)),
            granted: Arc::clone(credit.granted()),
        }
    }

    /// The account that passed-on events count in.
    pub(crate) fn waiting(&self) -> Option<&Arc<UnreadBytes>> {
        match self {
            Self::Own(_) => None,
            Self::Passed { waiting, .. } => Some(waiting),
        }
    }
}

/// The events that a subscriber has yet to take.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionBuffer {
    tx: mpsc::Sender<Delivery>,
    /// Bytes of the events.
    waiting: Arc<UnreadBytes>,
    when_full: BufferFullPolicy,
}

#[derive(Clone, Debug)]
enum BufferFullPolicy {
    /// From so many bytes on the stream reads no further event.
    Wait(usize),
    /// The subscription ends. A subscriber that stops reading would block the answers of others: unread bytes of one
    /// stream take the room of the whole connection.
    End(Arc<CreditGrant>),
}

impl SubscriptionBuffer {
    /// A buffer for a subscription on a stream of its own, or on one that has others.
    pub(super) fn new(
        capacity: BufferCapacity,
        is_single_call: bool,
    ) -> (Self, mpsc::Receiver<Delivery>) {
        let (events, waiting, when_full) = match capacity {
            // A slow subscriber must not block a stream that carries answers to others: there credit limits the
            // number of events.
            BufferCapacity::Own(events) => {
                let most = if is_single_call {
                    STREAM_EVENTS_BYTES
                } else {
                    usize::MAX
                };
                (events.max(1), Arc::default(), BufferFullPolicy::Wait(most))
            }
            // One slot more than there is credit for, for the end.
            BufferCapacity::Passed { waiting, granted } => {
                let events = WINDOW_FORWARDED_MAX as usize + 1;
                (events, waiting, BufferFullPolicy::End(granted))
            }
        };
        let (tx, rx) = mpsc::channel(events);
        let buffer = Self {
            tx,
            waiting,
            when_full,
        };
        (buffer, rx)
    }

    /// Passes an event on, with the bytes that `making` counted: once the subscriber has room, or now.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room now, and waiting would block other calls: the subscription is over.
    pub(super) async fn put(
        &self,
        event: SubscriptionEvent,
        bytes: usize,
        making: PartialEvent,
    ) -> Result<(), CallError> {
        match &self.when_full {
            BufferFullPolicy::Wait(most) => {
                tokio::select! {
                    biased;
                    () = self.waiting.wait_below(*most) => {}
                    // A subscriber that has left never makes room.
                    () = self.tx.closed() => {}
                }
                let claim = UnreadReservation::new(&self.waiting, bytes);
                let _ = self.tx.send(delivery(event, claim)).await;
                Ok(())
            }
            BufferFullPolicy::End(granted) => self.pass(event, bytes, making, granted),
        }
    }

    fn pass(
        &self,
        event: SubscriptionEvent,
        bytes: usize,
        making: PartialEvent,
        granted: &CreditGrant,
    ) -> Result<(), CallError> {
        let mut claim = making.made(&self.waiting);
        let others = self.waiting.bytes().saturating_sub(claim.bytes());
        // The stream reads a peer that knows nothing of credit while little waits.
        let much = !granted.spend() && others >= STREAM_EVENTS_BYTES;
        // The last slot is for the end.
        if much || self.tx.capacity() <= 1 {
            return Err(overloaded("more events come than are taken: read them"));
        }
        // The reservation of the incomplete event may be smaller than the whole one.
        if !grow(&mut claim, self.waiting.bytes(), bytes) {
            return Err(no_capacity());
        }
        let event = match bytes < READ_STEP_BYTES {
            true => event.apart(),
            false => event,
        };
        // A subscriber that has left gets nothing; the peer gets an abort when the subscription is dropped.
        let _ = self.tx.try_send(delivery(event, claim));
        Ok(())
    }

    /// Counts `more` events as expected, where this node passes events on.
    pub(super) fn grant(&self, more: u32) -> bool {
        match &self.when_full {
            BufferFullPolicy::Wait(_) => false,
            BufferFullPolicy::End(granted) => {
                granted.add(more);
                true
            }
        }
    }

    pub(super) async fn end(&self, end: Result<(), CallError>) {
        match self.when_full {
            BufferFullPolicy::Wait(_) => drop(self.tx.send(Delivery::End(end)).await),
            BufferFullPolicy::End(_) => self.end_now(end),
        }
    }

    /// Does not wait: a subscriber whose channel is full sees it end without a terminal event, which means the same.
    pub(super) fn end_now(&self, end: Result<(), CallError>) {
        drop(self.tx.try_send(Delivery::End(end)));
    }
}

fn delivery(event: SubscriptionEvent, claim: UnreadReservation) -> Delivery {
    Delivery::Event(Box::new(event), claim)
}

/// Bytes of an incomplete event, on the stream of a subscription that this node passes on.
#[derive(Debug, Default)]
pub(crate) struct PartialEvent(Option<UnreadReservation>);

impl PartialEvent {
    /// Counts so many bytes of it among those that wait. `false` where there is no room.
    pub(crate) fn count(&mut self, waiting: &Arc<UnreadBytes>, bytes: usize) -> bool {
        let claim = self
            .0
            .get_or_insert_with(|| UnreadReservation::claimed(waiting, 0));
        bytes <= claim.bytes() || grow(claim, waiting.bytes(), bytes)
    }

    /// The reservation with its bytes so far, if it is an event of this subscription.
    fn made(self, waiting: &Arc<UnreadBytes>) -> UnreadReservation {
        let claim = self.0.filter(|claim| claim.is_of(waiting));
        claim.unwrap_or_else(|| UnreadReservation::claimed(waiting, 0))
    }
}

/// Grows a claim to the length of its event, where so many bytes wait, its own included. `false` where there is no
/// room.
fn grow(claim: &mut UnreadReservation, waiting: usize, bytes: usize) -> bool {
    let fit = match waiting <= claim.bytes() {
        true => GrowLimit::First,
        false => GrowLimit::Half,
    };
    claim.resize(bytes, fit)
}

/// The error of a subscription whose waiting events are too many.
pub(super) fn no_capacity() -> CallError {
    overloaded(
        "too many bytes of events wait to be read on all connections of the caller, or of all callers: read them",
    )
}

fn overloaded(message: &str) -> CallError {
    let error = CallError::new(ErrorCode::Overloaded, message);
    error.with_retry_after_ms(OVERLOAD_RETRY_MS)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::limits::WINDOW_FORWARDED;

    fn event() -> SubscriptionEvent {
        SubscriptionEvent {
            output: CallBody::null(),
            dropped: 0,
            cursor: None,
        }
    }

    /// An event that did not count before it was complete.
    fn whole() -> PartialEvent {
        PartialEvent::default()
    }

    /// Without the bound, each of many subscriptions would hold sixteen of the longest frames.
    #[tokio::test]
    async fn events_wait_at_the_peer_while_many_bytes_of_them_wait_here() {
        let (buffer, mut events) = SubscriptionBuffer::new(BufferCapacity::Own(16), true);
        let put = buffer.put(event(), STREAM_EVENTS_BYTES, whole()).await;
        put.expect("this node takes it");
        let mut more = pin!(buffer.put(event(), 1, whole()));
        assert!(futures_util::poll!(more.as_mut()).is_pending());
        assert!(matches!(events.recv().await, Some(Delivery::Event(..))));
        more.await.expect("there is room");
        assert!(matches!(events.recv().await, Some(Delivery::Event(..))));
        // A subscriber that has left blocks no other.
        let put = buffer.put(event(), STREAM_EVENTS_BYTES, whole()).await;
        put.expect("this node takes it");
        drop(events);
        buffer
            .put(event(), 1, whole())
            .await
            .expect("nothing else is counted");
    }

    /// The capacity of one identity, on a node that has room for 1 MiB.
    fn passed(
        all: &Arc<RequestBytes>,
        id: &str,
    ) -> (
        SubscriptionBuffer,
        mpsc::Receiver<Delivery>,
        SubscriptionCredit,
    ) {
        let requester = Requester::Known(id.parse().expect("a peer id"));
        let credit = SubscriptionCredit::fitting();
        let (buffer, events) =
            SubscriptionBuffer::new(BufferCapacity::passed(all, &requester, &credit), true);
        (buffer, events, credit)
    }

    async fn refused(put: impl Future<Output = Result<(), CallError>>) {
        let error = put.await.expect_err("there is no room");
        assert_eq!(error.code, ErrorCode::Overloaded);
        assert!(error.retryable && error.retry_after_ms.is_some());
    }

    #[tokio::test]
    async fn forwarded_events_count_for_the_peer_that_waits_for_them() {
        const LONG: usize = 100 << 10;
        let all = Arc::new(RequestBytes::new(1 << 20));
        // A quarter of everything, which is half of an identity's share: the rest is for the answers that it reads.
        let eve = [(); 8].map(|()| passed(&all, "eve"));
        let mut taken = 0;
        for (buffer, ..) in &eve {
            match buffer.put(event(), LONG, whole()).await {
                Ok(()) => taken += 1,
                Err(error) => assert_eq!(error.code, ErrorCode::Overloaded),
            }
        }
        assert_eq!(taken, 2);
        let counted = all.usage().0;
        assert!(counted <= 256 << 10, "{counted}");
        // Incomplete events count as well.
        let mut making = PartialEvent::default();
        assert!(!making.count(&eve[7].0.waiting, LONG));
        // The buffer does not look up short events in the account, and others find room.
        eve[7].0.put(event(), 100, whole()).await.expect("short");
        let (ada, mut events, _credit) = passed(&all, "ada");
        ada.put(event(), LONG, whole())
            .await
            .expect("there is room for others");
        let mut making = PartialEvent::default();
        assert!(making.count(&ada.waiting, LONG / 2));
        drop(making);
        assert!(matches!(events.recv().await, Some(Delivery::Event(..))));
        drop((eve, ada, events));
        assert_eq!(all.usage().0, 0);
    }

    /// Another claim in between would take the room of a counted event.
    #[tokio::test]
    async fn an_event_that_was_counted_in_the_making_keeps_its_room() {
        let all = Arc::new(RequestBytes::new(1 << 20));
        let (buffer, mut events, _credit) = passed(&all, "eve");
        // It is not the only event, for which there would be room in any case.
        let (other, others, _other_credit) = passed(&all, "eve");
        let put = other.put(event(), 50 << 10, whole()).await;
        put.expect("there is room");
        let mut making = PartialEvent::default();
        assert!(making.count(&buffer.waiting, 100 << 10));
        assert!(making.count(&buffer.waiting, 200 << 10));
        // Two others leave no requester room for as much, nor for half of it.
        let crowd = ["ada", "mallory"].map(|id| {
            let requester = Requester::Known(id.parse().expect("a peer id"));
            assert!(all.grow(&requester, 256 << 10, GrowLimit::Wholly), "{id}");
            requester
        });
        assert!(!PartialEvent::default().count(&buffer.waiting, 100 << 10));
        let put = buffer.put(event(), 200 << 10, making).await;
        put.expect("it is counted");
        crowd
            .iter()
            .for_each(|requester| all.shrink(requester, 256 << 10));
        // No byte counts twice, and none for longer than the event lives.
        assert_eq!(buffer.waiting.bytes(), 200 << 10);
        assert!(matches!(events.recv().await, Some(Delivery::Event(..))));
        drop(others);
        assert_eq!((buffer.waiting.bytes(), all.usage().0), (0, 0));
    }

    /// Otherwise a peer that leaves answers unread would end the subscriptions of every peer whose events are long.
    #[tokio::test]
    async fn one_event_of_a_requester_has_room_whatever_others_have() {
        const LONG: usize = 300 << 10;
        let all = Arc::new(RequestBytes::new(1 << 20));
        // Three quarters: of the rest no other requester has more than a thirty-second.
        let crowd = [("ada", 512 << 10), ("mallory", 256 << 10)].map(|(id, bytes)| {
            let requester = Requester::Known(id.parse().expect("a peer id"));
            assert!(all.grow(&requester, bytes, GrowLimit::Wholly), "{id}");
            (requester, bytes)
        });
        let (buffer, mut events, _credit) = passed(&all, "eve");
        let (other, _others, _other_credit) = passed(&all, "eve");
        for _ in 0..2 {
            // The event comes in parts.
            let mut making = PartialEvent::default();
            assert!(making.count(&buffer.waiting, LONG / 3));
            assert!(making.count(&buffer.waiting, LONG / 2));
            let put = buffer.put(event(), LONG, making).await;
            put.expect("there is room for one");
            // A second event of the same requester has no room, on either subscription.
            assert!(!PartialEvent::default().count(&buffer.waiting, LONG / 3));
            assert!(!PartialEvent::default().count(&other.waiting, LONG / 3));
            assert!(matches!(events.recv().await, Some(Delivery::Event(..))));
        }
        for (requester, bytes) in &crowd {
            all.shrink(requester, *bytes);
        }
        assert_eq!(all.usage().0, 0);
    }

    /// Its reader has stopped, but the stream still reads.
    #[tokio::test]
    async fn a_peer_that_knows_no_credit_is_read_until_much_waits() {
        let all = Arc::new(RequestBytes::new(64 << 20));
        let (buffer, mut events, _credit) = passed(&all, "eve");
        for _ in 0..WINDOW_FORWARDED {
            let put = buffer.put(event(), STREAM_EVENTS_BYTES, whole()).await;
            put.expect("it was asked for");
        }
        refused(buffer.put(event(), 1, whole())).await;
        while let Ok(Delivery::Event(..)) = events.try_recv() {}
        // With few events their bytes count, and with short ones their number; the end always has room.
        let mut puts = 0;
        while buffer.put(event(), 1, whole()).await.is_ok() {
            puts += 1;
        }
        assert_eq!(puts, WINDOW_FORWARDED_MAX);
        buffer.end(Err(no_capacity())).await;
        for _ in 0..puts {
            assert!(matches!(events.try_recv(), Ok(Delivery::Event(..))));
        }
        assert!(matches!(events.try_recv(), Ok(Delivery::End(Err(_)))));
    }

    /// A short event of a long read would keep all of that read in memory.
    #[tokio::test]
    async fn a_short_event_is_kept_in_memory_of_its_own() {
        let came = Bytes::from(vec![b'1'; READ_STEP_BYTES]);
        let part = |range: std::ops::Range<usize>| came.slice(range);
        let event = SubscriptionEvent {
            output: CallBody::from_parts(part(0..10), part(10..20)),
            dropped: 3,
            cursor: Some(CallBody::from_parts(part(20..30), part(10..20))),
        };
        let all = Arc::new(RequestBytes::new(1 << 20));
        let (buffer, mut events, _credit) = passed(&all, "eve");
        buffer.put(event, 30, whole()).await.expect("there is room");
        assert!(came.is_unique(), "nothing of it is kept");
        let Some(Delivery::Event(kept, _)) = events.recv().await else {
            panic!("the event waits");
        };
        assert_eq!(
            (kept.output.raw(), kept.output.tail()),
            (&part(0..10), &part(10..20))
        );
        assert_eq!(kept.dropped, 3);
        let cursor = kept.cursor.as_ref().expect("it has one");
        assert_eq!(cursor.raw(), &part(20..30));
    }
}
