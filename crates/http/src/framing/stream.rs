//! One stream of HTTP/2, which ends if its client does not receive the response.
//!
//! The library waits for room in the client's windows for as long as the connection lasts. A response that the client
//! does not receive would stay in memory for as long, while other streams of the connection go on.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::Sleep;

thread_local! {
    /// The deadline of the stream that this thread polls.
    static POLLED: RefCell<Option<Arc<WriteDeadline>>> = const { RefCell::new(None) };
}

/// The start of the times below.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The deadline by which the client must receive something.
#[derive(Debug, Default)]
pub(super) struct WriteDeadline {
    /// Milliseconds since [`START`], plus one; 0 while there is no deadline.
    ms: AtomicU64,
}

impl WriteDeadline {
    /// The deadline of the stream whose response is being made on this thread.
    pub(super) fn polled() -> Option<Arc<Self>> {
        POLLED.with_borrow(Clone::clone)
    }

    pub(super) fn set(&self, at: Instant) {
        let since = at.saturating_duration_since(*START).as_millis();
        let ms = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        self.ms.store(ms, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.ms.store(0, Ordering::Release);
    }

    fn get(&self) -> Option<Instant> {
        let ms = self.ms.load(Ordering::Acquire).checked_sub(1)?;
        START.checked_add(Duration::from_millis(ms))
    }
}

/// Runs the streams of a connection.
#[derive(Clone, Debug)]
pub(super) struct H2StreamExecutor(TokioExecutor);

impl H2StreamExecutor {
    pub(super) fn new() -> Self {
        LazyLock::force(&START);
        Self(TokioExecutor::new())
    }
}

impl<F> Executor<F> for H2StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.execute(DeadlineTask {
            stream: Box::pin(stream),
            until: Arc::default(),
            alarm: None,
        });
    }
}

/// A stream until it ends or its client misses the deadline.
struct DeadlineTask<F> {
    stream: Pin<Box<F>>,
    until: Arc<WriteDeadline>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for DeadlineTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // The deadline is restored after the poll, because another stream may be polled within this one.
        let before = POLLED.replace(Some(Arc::clone(&self.until)));
        let polled = self.stream.as_mut().poll(cx);
        POLLED.set(before);
        if polled.is_ready() {
            return Poll::Ready(());
        }
        // The loop ends only when the timer is registered for the current deadline: the body may have moved it since
        // the last poll.
        while let Some(until) = self.until.get() {
            let until = tokio::time::Instant::from_std(until);
            let alarm = self
                .alarm
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if alarm.deadline() != until {
                alarm.as_mut().reset(until);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self
                .until
                .get()
                .is_some_and(|until| until <= Instant::now())
            {
                tracing::debug!("a stream of HTTP/2 ended: its answer is not taken");
                // Dropping the stream resets it.
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}
