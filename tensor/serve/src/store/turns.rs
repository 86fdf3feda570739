//! Turns for work that costs a whole file, or much memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use alknet_core::PeerId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Lets one request at a time do work that reads a whole file, or takes much memory. Requests wait as futures and take
/// no thread, so that readers cannot take all threads for work that blocks. The identities take turns: each has one
/// request in the queue, however many it makes.
#[derive(Debug, Default)]
pub(crate) struct StoreTurns {
    queue: Arc<AsyncMutex<()>>,
    /// By identity, the lock of the request that is in the queue.
    own: Mutex<HashMap<PeerId, Weak<AsyncMutex<()>>>>,
}

/// The right to do the work. The working thread holds it, so that it lasts until the work ends, even if the client goes
/// away meanwhile.
#[derive(Debug)]
pub(crate) struct StoreTurn {
    _queue: OwnedMutexGuard<()>,
    _own: OwnedMutexGuard<()>,
}

impl StoreTurns {
    /// Waits for the turn of this identity.
    pub(crate) async fn turn(&self, who: &PeerId) -> StoreTurn {
        let own = self.own(who).lock_owned().await;
        // The lock is fair (first in, first out), so one identity waits for at most one request of each other one.
        let queue = Arc::clone(&self.queue).lock_owned().await;
        StoreTurn {
            _queue: queue,
            _own: own,
        }
    }

    fn own(&self, who: &PeerId) -> Arc<AsyncMutex<()>> {
        let mut table = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // Peers come and go; an entry that no request uses would stay in memory for each of them.
        table.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = table.get(who).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::new(()));
        table.insert(who.clone(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn peer(name: &str) -> PeerId {
        name.parse().expect("a name")
    }

    /// Eve asks for eight trees before Ada asks for one.
    #[tokio::test]
    async fn a_reader_of_many_trees_lets_others_take_their_turn() {
        let builds = Arc::new(StoreTurns::default());
        let first = builds.turn(&peer("bob")).await;
        let (sent, mut order) = mpsc::unbounded_channel();
        let mut waiting = Vec::new();
        for name in ["eve"; 8].into_iter().chain(["ada"]) {
            let (builds, sent) = (Arc::clone(&builds), sent.clone());
            waiting.push(tokio::spawn(async move {
                let _turn = builds.turn(&peer(name)).await;
                sent.send(name).expect("the test waits");
            }));
            // Each has its place before the next one asks.
            tokio::task::yield_now().await;
        }
        drop((first, sent));
        let mut names = Vec::new();
        while let Some(name) = order.recv().await {
            names.push(name);
        }
        assert_eq!(names[..2], ["eve", "ada"], "{names:?}");
        assert_eq!(names.len(), 9);
        for task in waiting {
            task.await.expect("it ended");
        }
        drop(builds.turn(&peer("bob")).await);
        // Only the entry of the last one may be left.
        assert!(builds.own.lock().expect("no panic").len() <= 1);
    }

    /// A request that its client gives up leaves the queue.
    #[tokio::test]
    async fn a_request_that_is_given_up_takes_no_turn() {
        let builds = Arc::new(StoreTurns::default());
        let held = builds.turn(&peer("bob")).await;
        for _ in 0..3 {
            let waits = Arc::clone(&builds);
            let waits = tokio::spawn(async move { waits.turn(&peer("eve")).await });
            tokio::task::yield_now().await;
            waits.abort();
            assert!(waits.await.is_err());
        }
        drop(held);
        drop(builds.turn(&peer("eve")).await);
    }
}
