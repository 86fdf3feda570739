//! Reuses the memory of request futures.
//!
//! A request's future has some KiB. If it is allocated and freed a hundred thousand times a second, the memory goes
//! back to the allocator's central pool each time and comes from there again. So each thread keeps a few allocations.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use http::Response;
use tokio_util::sync::ReusableBoxFuture;

/// The most free slots that a thread keeps for the next requests.
const SLOTS_MAX: usize = 16;

type PooledResponse = Result<Response<Body>, Infallible>;
type RequestFutureBox = ReusableBoxFuture<'static, PooledResponse>;

thread_local! {
    static SLOTS: RefCell<Vec<RequestFutureBox>> = const { RefCell::new(Vec::new()) };
}

/// The future of one request, in a slot that an earlier request may have used.
pub(super) struct PooledRequestTask {
    slot: Option<RequestFutureBox>,
    done: bool,
}

impl PooledRequestTask {
    pub(super) fn new(work: impl Future<Output = PooledResponse> + Send + 'static) -> Self {
        let free = SLOTS.with_borrow_mut(Vec::pop);
        let slot = match free {
            Some(mut slot) => {
                slot.set(work);
                slot
            }
            None => ReusableBoxFuture::new(work),
        };
        Self {
            slot: Some(slot),
            done: false,
        }
    }
}

impl Future for PooledRequestTask {
    type Output = PooledResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PooledResponse> {
        let Some(slot) = &mut self.slot else {
            return Poll::Pending;
        };
        let answer = ready!(slot.poll(cx));
        self.done = true;
        Poll::Ready(answer)
    }
}

impl Drop for PooledRequestTask {
    fn drop(&mut self) {
        // An unfinished future is dropped with its slot, so that nothing of it stays.
        let Some(slot) = self.slot.take().filter(|_| self.done) else {
            return;
        };
        // A thread that ends has already dropped its slots.
        let _ = SLOTS.try_with(|slots| {
            let mut slots = slots.borrow_mut();
            if slots.len() < SLOTS_MAX {
                slots.push(slot);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn free_slots() -> usize {
        SLOTS.with_borrow(Vec::len)
    }

    #[tokio::test]
    async fn a_place_is_used_again_and_what_was_not_done_is_not_kept() {
        let held = Arc::new(());
        let work = |holds: Arc<()>, ends: bool| {
            PooledRequestTask::new(async move {
                if !ends {
                    std::future::pending::<()>().await;
                }
                drop(holds);
                Ok(Response::new(Body::empty()))
            })
        };
        for _ in 0..2 {
            assert!(work(Arc::clone(&held), true).await.is_ok());
            assert_eq!(free_slots(), 1);
        }
        let mut waiting = work(Arc::clone(&held), false);
        assert_eq!(free_slots(), 0, "it has the slot");
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(Arc::strong_count(&held), 2);
        drop(waiting);
        assert_eq!(Arc::strong_count(&held), 1, "it is let go of at once");
        assert_eq!(free_slots(), 0);
        let all: Vec<_> = (0..SLOTS_MAX + 4)
            .map(|_| work(Arc::clone(&held), true))
            .collect();
        for each in all {
            assert!(each.await.is_ok());
        }
        assert_eq!(free_slots(), SLOTS_MAX);
    }
}
