//! A future beside a busy one in the same task.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is polled only after something woke it.
///
/// A future that waits in one task with a busy one, as in `select!`, is polled each time that the other makes a step,
/// and searches the queue for its entry each time. This one knows that nothing has happened.
pub struct PollOnWake<F> {
    future: Pin<Box<F>>,
    flag: Arc<WakeFlag>,
    waker: Waker,
    /// The waker that the flag wakes, to compare it without a lock.
    task: Option<Waker>,
}

struct WakeFlag {
    is_set: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl WakeFlag {
    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_set.store(true, Ordering::SeqCst);
        // The lock is released before the task wakes: another thread may poll the task at once, and takes the lock.
        let task = self.task().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> PollOnWake<F> {
    /// The first poll always reaches the future.
    pub fn new(future: F) -> Self {
        let flag = Arc::new(WakeFlag {
            is_set: AtomicBool::new(true),
            task: Mutex::new(None),
        });
        Self {
            future: Box::pin(future),
            waker: Waker::from(Arc::clone(&flag)),
            flag,
            task: None,
        }
    }
}

impl<F: Future> Future for PollOnWake<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this
            .task
            .as_ref()
            .is_some_and(|task| task.will_wake(cx.waker()))
        {
            // The waker is stored before the flag is read: `wake_by_ref` sets the flag first and then reads which
            // task to wake.
            this.task = Some(cx.waker().clone());
            this.flag.task().clone_from(&this.task);
        }
        // A read comes first: most polls find nothing, and a swap would write to the shared cache line each time.
        if !this.flag.is_set.load(Ordering::SeqCst)
            || !this.flag.is_set.swap(false, Ordering::SeqCst)
        {
            return Poll::Pending;
        }
        this.future
            .as_mut()
            .poll(&mut Context::from_waker(&this.waker))
    }
}

impl<F> std::fmt::Debug for PollOnWake<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PollOnWake").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use alknet_test_support::deadline;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_something_happened_and_not_else() {
        let (tell, mut told) = oneshot::channel::<u32>();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let mut poll_on_wake = PollOnWake::new(std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut told).poll(cx)
        }));
        let busy = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = &mut poll_on_wake => panic!("nothing was reported"),
            () = busy => {}
        }
        assert_eq!(polls.load(Ordering::SeqCst), 1);
        let teller = tokio::spawn(async move {
            // The task that waits is polled first.
            tokio::task::yield_now().await;
            tell.send(7)
        });
        // In another task, whose waker is another.
        let told = tokio::spawn(poll_on_wake).await.expect("no panic");
        assert_eq!(told, Ok(7));
        assert!(teller.await.is_ok_and(|sent| sent.is_ok()));
        assert!(polls.load(Ordering::SeqCst) <= 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost() {
        for _ in 0..2000 {
            let (tell, told) = oneshot::channel();
            let waiting = tokio::spawn(PollOnWake::new(told));
            let teller = tokio::spawn(async move { tell.send(()) });
            let told = tokio::time::timeout(deadline(Duration::from_secs(60)), waiting).await;
            assert!(told.expect("it is woken").expect("no panic").is_ok());
            assert!(teller.await.is_ok_and(|sent| sent.is_ok()));
        }
    }
}
