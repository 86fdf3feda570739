//! Where the work of requests lies.
//!
//! It has some KiB. Asked for and given back a hundred thousand times a second, such a piece of memory goes
//! all the way back to the allocator's stock each time, and comes from there again. So a thread keeps a few.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use http::Response;
use tokio_util::sync::ReusableBoxFuture;

/// Places that a thread keeps for the next requests.
const KEPT: usize = 16;

type PooledResponse = Result<Response<Body>, Infallible>;
type RequestFutureBox = ReusableBoxFuture<'static, PooledResponse>;

thread_local! {
    static PLACES: RefCell<Vec<RequestFutureBox>> = const { RefCell::new(Vec::new()) };
}

/// The work of one request, in a place that was another's before.
pub(super) struct PooledRequestTask {
    place: Option<RequestFutureBox>,
    done: bool,
}

impl PooledRequestTask {
    pub(super) fn new(work: impl Future<Output = PooledResponse> + Send + 'static) -> Self {
        let kept = PLACES.with_borrow_mut(Vec::pop);
        let place = match kept {
            Some(mut place) => {
                place.set(work);
                place
            }
            None => ReusableBoxFuture::new(work),
        };
        Self {
            place: Some(place),
            done: false,
        }
    }
}

impl Future for PooledRequestTask {
    type Output = PooledResponse;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PooledResponse> {
        let Some(place) = &mut self.place else {
            return Poll::Pending;
        };
        let answer = ready!(place.poll(cx));
        self.done = true;
        Poll::Ready(answer)
    }
}

impl Drop for PooledRequestTask {
    fn drop(&mut self) {
        // What was not done is dropped with its place: nothing of it stays.
        let Some(place) = self.place.take().filter(|_| self.done) else {
            return;
        };
        // A thread that ends keeps nothing.
        let _ = PLACES.try_with(|places| {
            let mut places = places.borrow_mut();
            if places.len() < KEPT {
                places.push(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn kept() -> usize {
        PLACES.with_borrow(Vec::len)
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
            assert_eq!(kept(), 1);
        }
        let mut waiting = work(Arc::clone(&held), false);
        assert_eq!(kept(), 0, "it has the place");
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(Arc::strong_count(&held), 2);
        drop(waiting);
        assert_eq!(Arc::strong_count(&held), 1, "it is let go of at once");
        assert_eq!(kept(), 0);
        let all: Vec<_> = (0..KEPT + 4)
            .map(|_| work(Arc::clone(&held), true))
            .collect();
        for each in all {
            assert!(each.await.is_ok());
        }
        assert_eq!(kept(), KEPT);
    }
}
