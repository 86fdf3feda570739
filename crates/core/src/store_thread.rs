//! A thread that makes the changes of one store.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::handler::BoxFuture;

type StoreJob = Box<dyn FnOnce() + Send>;

/// Runs work that waits for a disk, one piece after the other, on a thread that has no other work. Peers make the node
/// work on the runtime's threads for blocking work as well: if these are all in use, a change of rights must not wait
/// for them.
#[derive(Debug)]
pub struct StoreThread {
    name: &'static str,
    /// `None` if the system refused the thread; the next piece of work tries again.
    jobs: Mutex<Option<Sender<StoreJob>>>,
}

impl StoreThread {
    /// Starts the thread, which ends when this value is dropped and all its work is done. The name has at most 15
    /// bytes.
    #[must_use]
    pub fn start(name: &'static str) -> Self {
        Self {
            name,
            jobs: Mutex::new(spawn(name).ok()),
        }
    }

    /// Runs `work` after all work before it. It runs to its end even if the caller drops the future.
    ///
    /// # Errors
    /// The system refuses the thread, or `work` has panicked.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let (answer, done) = oneshot::channel();
        let sent = self.send(Box::new(move || {
            // The caller need not wait for the answer.
            let _ = answer.send(work());
        }));
        Box::pin(async move {
            sent?;
            let ended = |_| io::Error::other("a change of the store ended without a result");
            done.await.map_err(ended)
        })
    }

    fn send(&self, job: StoreJob) -> io::Result<()> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match jobs.take() {
            Some(sender) => sender,
            None => spawn(self.name)?,
        };
        let ended = |_| io::Error::other("the thread of the store has ended");
        jobs.insert(sender).send(job).map_err(ended)
    }
}

fn spawn(name: &str) -> io::Result<Sender<StoreJob>> {
    let (sender, jobs): (_, Receiver<StoreJob>) = mpsc::channel();
    let work = move || {
        for job in jobs {
            // A panic was reported by its hook, and ends this piece of work only: others wait behind it.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_in_order_and_after_a_panic() {
        let thread = StoreThread::start("test");
        let (sent, order) = mpsc::channel();
        let last = sent.clone();
        // The future is dropped, and the work is done all the same.
        drop(thread.run(move || sent.send(1)));
        thread
            .run(move || last.send(2))
            .await
            .expect("it runs")
            .expect("the test waits");
        assert_eq!(order.iter().collect::<Vec<_>>(), [1, 2]);
        let failed: io::Result<()> = thread.run(|| panic!("on purpose")).await;
        assert!(failed.is_err());
        assert_eq!(thread.run(|| 3).await.expect("the thread goes on"), 3);
    }
}
