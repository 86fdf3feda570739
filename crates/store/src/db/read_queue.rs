//! Reads that wait for a thread. Identities take turns, and none has more threads than its share: otherwise the long reads
//! of one client would keep all others waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::readers::ReadJob;
use crate::error::StoreError;
use crate::limits::{
    READERS, READERS_PER_IDENTITY, READS_QUEUED_MAX, READS_QUEUED_PER_IDENTITY_MAX,
};

/// The identity that a read counts for. `None` for what the store and the node read for themselves.
pub(super) type ReadOwner = Option<Arc<str>>;

/// The queue of all reading threads.
pub(super) struct ReadQueue {
    state: Mutex<ReadQueueState>,
    changed: Condvar,
}

struct ReadQueueState {
    /// The reads of each owner that has any.
    owners: HashMap<ReadOwner, OwnedReads>,
    /// Owners whose next read may begin, in the order of their turns.
    turns: VecDeque<ReadOwner>,
    /// Reads of all owners that wait.
    waiting: usize,
    is_closed: bool,
}

/// The reads of one owner.
#[derive(Default)]
struct OwnedReads {
    waiting: VecDeque<ReadJob>,
    running: usize,
    /// Whether the owner is among the turns.
    has_turn: bool,
}

/// A read that a thread runs. It counts until it is dropped.
pub(super) struct RunningRead<'q> {
    queue: &'q ReadQueue,
    owner: ReadOwner,
}

impl ReadQueue {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(ReadQueueState {
                owners: HashMap::new(),
                turns: VecDeque::new(),
                waiting: 0,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a read behind those of its owner.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if too many wait. It is refused and does not wait: the caller may be a task of the runtime.
    pub(super) fn push(&self, owner: &ReadOwner, job: ReadJob) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(StoreError::Closed);
        }
        if state.waiting >= READS_QUEUED_MAX {
            return Err(StoreError::Busy("too many reads wait"));
        }
        let own = state.owners.entry(owner.clone()).or_default();
        if owner.is_some() && own.waiting.len() >= READS_QUEUED_PER_IDENTITY_MAX {
            return Err(StoreError::Busy("too many reads of the identity wait"));
        }
        own.waiting.push_back(job);
        state.waiting += 1;
        if state.give_turn(owner) {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The next read; waits until there is one. `None` once the queue is closed and empty.
    pub(super) fn next_read(&self) -> Option<(ReadJob, RunningRead<'_>)> {
        let mut state = self.lock();
        loop {
            if let Some((owner, job)) = state.begin() {
                // The owner may have a further read, which comes behind those of all others.
                if state.give_turn(&owner) {
                    self.changed.notify_one();
                }
                return Some((job, RunningRead { queue: self, owner }));
            }
            if state.is_closed && state.waiting == 0 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no further reads. Those that wait are still run.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// No code that can panic runs between two changes that belong together.
    fn lock(&self) -> MutexGuard<'_, ReadQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadQueueState {
    /// Begins the read whose turn it is.
    fn begin(&mut self) -> Option<(ReadOwner, ReadJob)> {
        let owner = self.turns.pop_front()?;
        let own = self.owners.get_mut(&owner)?;
        own.has_turn = false;
        let job = own.waiting.pop_front()?;
        own.running += 1;
        self.waiting -= 1;
        Some((owner, job))
    }

    /// Gives an owner a turn if it has a read that may begin. Returns whether it got one.
    fn give_turn(&mut self, owner: &ReadOwner) -> bool {
        let Some(own) = self.owners.get_mut(owner) else {
            return false;
        };
        let share = match owner {
            Some(_) => READERS_PER_IDENTITY,
            None => READERS,
        };
        let gets_turn = !own.has_turn && !own.waiting.is_empty() && own.running < share;
        if gets_turn {
            own.has_turn = true;
            self.turns.push_back(owner.clone());
        }
        gets_turn
    }
}

impl Drop for RunningRead<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(own) = state.owners.get_mut(&self.owner) {
            own.running -= 1;
            // Identities come and go; an empty entry would stay in memory for each of them.
            if own.running == 0 && own.waiting.is_empty() {
                state.owners.remove(&self.owner);
            }
        }
        let has_turn = state.give_turn(&self.owner);
        if state.is_closed {
            // The other threads may wait for the end of this read.
            self.queue.changed.notify_all();
        } else if has_turn {
            self.queue.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    fn owner(name: &str) -> ReadOwner {
        Some(name.into())
    }

    /// A read that says its name when it is dropped unrun.
    struct NamedRead(Sender<&'static str>, &'static str);

    impl Drop for NamedRead {
        fn drop(&mut self) {
            self.0.send(self.1).expect("the test waits");
        }
    }

    fn job(names: &Sender<&'static str>, name: &'static str) -> ReadJob {
        let named = NamedRead(names.clone(), name);
        Box::new(move |_| drop(named))
    }

    #[test]
    fn identities_take_turns_and_have_two_threads_each() {
        let (names, begun) = channel();
        let queue = ReadQueue::new();
        for name in ["a1", "a2", "a3", "a4"] {
            queue.push(&owner("a"), job(&names, name)).expect("room");
        }
        queue.push(&owner("b"), job(&names, "b1")).expect("room");
        queue.push(&None, job(&names, "n1")).expect("room");
        let begin = || {
            let (job, running) = queue.next_read().expect("one may begin");
            drop(job);
            (begun.recv().expect("a name"), running)
        };
        let running = [(); 4].map(|()| begin());
        let order = running.each_ref().map(|(name, _)| *name);
        assert_eq!(order, ["a1", "b1", "n1", "a2"]);
        // Both threads of this identity are taken: its other reads wait, and those of others do not.
        queue.push(&owner("c"), job(&names, "c1")).expect("room");
        let (name, of_c) = begin();
        assert_eq!(name, "c1");
        assert!(queue.lock().turns.is_empty());
        drop((running, of_c));
        let (name, last) = begin();
        assert_eq!(name, "a3");
        drop(last);
        assert_eq!(begin().0, "a4");
        let state = queue.lock();
        assert!(state.owners.is_empty() && state.waiting == 0);
    }

    #[test]
    fn an_identity_cannot_fill_the_queue() {
        let (names, _begun) = channel();
        let queue = ReadQueue::new();
        for _ in 0..READS_QUEUED_PER_IDENTITY_MAX {
            queue.push(&owner("a"), job(&names, "a")).expect("room");
        }
        let more = queue.push(&owner("a"), job(&names, "a"));
        assert!(matches!(more, Err(StoreError::Busy(_))));
        queue.push(&owner("b"), job(&names, "b")).expect("room");
        let waiting = queue.lock().waiting;
        for _ in waiting..READS_QUEUED_MAX {
            queue.push(&None, job(&names, "n")).expect("room");
        }
        let more = queue.push(&owner("c"), job(&names, "c"));
        assert!(matches!(more, Err(StoreError::Busy(_))));
    }

    #[test]
    fn a_closed_queue_ends_behind_its_last_read() {
        let (names, _begun) = channel();
        let queue = ReadQueue::new();
        queue.push(&owner("a"), job(&names, "a1")).expect("room");
        queue.close();
        let more = queue.push(&owner("a"), job(&names, "a2"));
        assert_eq!(more, Err(StoreError::Closed));
        assert!(queue.next_read().is_some());
        assert!(queue.next_read().is_none());
    }
}
