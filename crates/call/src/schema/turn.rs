//! Work that occupies a processor for long, beside the threads that serve.

use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::sync::lock;

/// Checks that wait for their turn, at most: each holds a thread.
pub(super) const WAITING_MAX: usize = 64;

static TURNS: LazyLock<Turns> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Turns {
        state: Mutex::default(),
        // Half of the processors are left to everything else.
        most: (processors / 2).max(1),
        ended: Condvar::new(),
    }
});

/// Does `work` where tasks of the runtime go on meanwhile: another thread takes the place of this one.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // A runtime of one thread has no other, and outside of one nothing waits.
        _ => work(),
    }
}

struct Turns {
    state: Mutex<State>,
    most: usize,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
}

/// The right to occupy a processor, until this is dropped.
pub(super) struct Turn(&'static Turns);

impl Turn {
    /// Waits for a turn; `None` where `most` wait already.
    pub(super) fn wait(most: usize) -> Option<Self> {
        let turns = &*TURNS;
        let mut state = lock(&turns.state);
        if state.running >= turns.most && state.waiting >= most {
            return None;
        }
        state.waiting += 1;
        while state.running >= turns.most {
            let woken = turns.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.running += 1;
        Some(Self(turns))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.0.state).running -= 1;
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_are_served_meanwhile() {
        let (ask, asked) = std::sync::mpsc::channel();
        let (done, heard) = tokio::sync::oneshot::channel();
        let works = tokio::spawn(async move {
            aside(|| {
                let _turn = Turn::wait(usize::MAX);
                // Ends only once another task of this one thread has run.
                asked.recv()
            })
        });
        tokio::spawn(async move {
            let _ = ask.send(());
            let _ = done.send(());
        });
        heard.await.expect("the other task ran");
        works.await.expect("no panic").expect("it was asked");
    }

    #[test]
    fn no_more_wait_than_may() {
        let all: Vec<_> = (0..TURNS.most).map(|_| Turn::wait(usize::MAX)).collect();
        assert!(Turn::wait(0).is_none());
        drop(all);
        assert!(Turn::wait(usize::MAX).is_some());
    }
}
