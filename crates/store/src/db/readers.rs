//! The pool of connections that read, and the watch over the time of each read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, InterruptHandle};

use super::read_queue::{ReadOwner, ReadQueue};
use super::transaction::ReadTransaction;
use crate::error::StoreError;

/// Pause between interruptions of one read. An interruption has no effect between two statements.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(100);

/// A read, which contains its panics and sends its result itself. The error is why it cannot begin.
pub(super) type ReadJob = Box<dyn FnOnce(Result<&ReadTransaction<'_>, StoreError>) + Send>;

/// Threads with one connection each, and one that watches them.
pub(super) struct ReaderPool {
    jobs: Arc<ReadQueue>,
    readers: Vec<JoinHandle<()>>,
    watch: Arc<ReadWatch>,
    watcher: Option<JoinHandle<()>>,
}

/// When each read has to end.
pub(super) struct ReadWatch {
    state: Mutex<WatchState>,
    changed: Condvar,
    time_max: Duration,
}

struct WatchState {
    reads: Vec<WatchedRead>,
    /// A copy of the file that is being made. It has no time limit.
    copy: Option<InterruptHandle>,
    /// Whether the watcher waits without a limit.
    is_idle: bool,
    is_closed: bool,
}

/// The read that one thread runs at the moment.
struct WatchedRead {
    interrupt: InterruptHandle,
    /// `None` while the thread runs no read.
    deadline: Option<Instant>,
}

impl ReaderPool {
    pub(super) fn start(
        connections: Vec<Connection>,
        time_max: Duration,
        is_damaged: &Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let jobs = Arc::new(ReadQueue::new());
        let reads = connections.iter().map(|connection| WatchedRead {
            interrupt: connection.get_interrupt_handle(),
            deadline: None,
        });
        let watch = Arc::new(ReadWatch {
            state: Mutex::new(WatchState {
                reads: reads.collect(),
                copy: None,
                is_idle: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
            time_max,
        });
        // From here on a failure drops the pool, which ends the threads that have begun.
        let mut pool = Self {
            jobs: Arc::clone(&jobs),
            readers: Vec::new(),
            watch: Arc::clone(&watch),
            watcher: None,
        };
        for (index, connection) in connections.into_iter().enumerate() {
            let reader = Reader {
                index,
                jobs: Arc::clone(&jobs),
                watch: Arc::clone(&watch),
                is_damaged: Arc::clone(is_damaged),
            };
            let thread = thread::Builder::new().name(format!("fs-read-{index}"));
            pool.readers
                .push(thread.spawn(move || reader.serve(&connection))?);
        }
        let thread = thread::Builder::new().name("fs-read-watch".to_owned());
        pool.watcher = Some(thread.spawn(move || watch.serve())?);
        Ok(pool)
    }

    pub(super) const fn watch(&self) -> &Arc<ReadWatch> {
        &self.watch
    }

    pub(super) fn send(&self, owner: &ReadOwner, job: ReadJob) -> Result<(), StoreError> {
        self.jobs.push(owner, job)
    }
}

impl Drop for ReaderPool {
    fn drop(&mut self) {
        self.jobs.close();
        // Before the watcher ends: without it, a long read would keep the store from closing beyond
        // its time limit.
        for reader in self.readers.drain(..) {
            join(reader);
        }
        lock(&self.watch.state).is_closed = true;
        self.watch.changed.notify_all();
        self.watcher.take().into_iter().for_each(join);
    }
}

/// Waits for a thread. The last handle of the store may be dropped by a job, on the thread itself.
pub(super) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() {
        // Its panic was reported where it happened.
        thread.join().ok();
    }
}

struct Reader {
    index: usize,
    jobs: Arc<ReadQueue>,
    watch: Arc<ReadWatch>,
    is_damaged: Arc<AtomicBool>,
}

impl Reader {
    fn serve(&self, connection: &Connection) {
        let transaction = ReadTransaction::new(connection);
        while let Some((job, running)) = self.jobs.next_read() {
            self.run(&transaction, job);
            drop(running);
        }
    }

    fn run(&self, transaction: &ReadTransaction<'_>, job: ReadJob) {
        let connection = transaction.connection();
        transaction.set_deadline(Some(self.watch.begin(self.index)));
        // One transaction, so that all queries of the job see one state while the writer goes on.
        let begun = connection.execute_batch("BEGIN");
        let begun = begun.map(|()| transaction).map_err(StoreError::from);
        job(begun);
        // Before the rollback below, so that the watcher cannot interrupt it.
        self.watch.end(self.index);
        transaction.set_deadline(None);
        if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a read of the file of names does not end");
            if matches!(StoreError::from(error), StoreError::Damaged(_)) {
                self.is_damaged.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl ReadWatch {
    fn begin(&self, index: usize) -> Instant {
        let deadline = Instant::now() + self.time_max;
        let mut state = lock(&self.state);
        if let Some(read) = state.reads.get_mut(index) {
            read.deadline = Some(deadline);
        }
        // Every read has the same time, so a watcher that waits for an earlier read wakes up soon enough.
        if state.is_idle {
            self.changed.notify_all();
        }
        deadline
    }

    /// Ends the reads that are under way, and a copy: the log cannot be emptied beyond the state that they see.
    pub(super) fn cut(&self) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        for deadline in state
            .reads
            .iter_mut()
            .filter_map(|read| read.deadline.as_mut())
        {
            *deadline = now.min(*deadline);
        }
        if let Some(copy) = &state.copy {
            copy.interrupt();
        }
        self.changed.notify_all();
    }

    /// Makes a copy, which [`cut`](Self::cut) ends.
    pub(super) fn run_copy<T>(&self, connection: &Connection, copy: impl FnOnce() -> T) -> T {
        lock(&self.state).copy = Some(connection.get_interrupt_handle());
        let result = copy();
        lock(&self.state).copy = None;
        result
    }

    fn end(&self, index: usize) {
        if let Some(read) = lock(&self.state).reads.get_mut(index) {
            read.deadline = None;
        }
    }

    fn serve(&self) {
        let mut state = lock(&self.state);
        while !state.is_closed {
            let now = Instant::now();
            let is_late = |read: &&WatchedRead| read.deadline.is_some_and(|end| end <= now);
            let mut late = state.reads.iter().filter(is_late).peekable();
            let is_one_late = late.peek().is_some();
            // With the lock held: the thread cannot begin another read meanwhile.
            late.for_each(|read| read.interrupt.interrupt());
            let next = state.reads.iter().filter_map(|read| read.deadline).min();
            let wait = match next {
                _ if is_one_late => Some(INTERRUPT_AGAIN),
                Some(next) => Some(next.saturating_duration_since(now)),
                None => None,
            };
            state = match wait {
                Some(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    state.is_idle = true;
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
            state.is_idle = false;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half changed: each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
