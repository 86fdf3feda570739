//! The file of names: one thread that writes, and a few that read.

mod copies;
mod job;
mod log;
mod open;
mod quarantine;
mod read_queue;
mod readers;
mod repair;
mod reply;
mod schema;
mod space;
mod statements;
mod tail;
mod transaction;
mod vacuum;
mod writer;

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use crate::clock::{HybridClock, SystemTimeSource, TimeSource};
use crate::error::StoreError;
use crate::limits::{READ_TIME_MAX, READERS, WRITES_QUEUED_MAX};
use read_queue::ReadOwner;
use readers::{ReadJob, ReaderPool};
use space::SpaceWatch;
use vacuum::VacuumClock;
use writer::{QueuedJob, ReplyingJob, WriterSetup};

pub use copies::{CopyOutcome, StoreCopy, store_copies};
pub use open::StoreOpenError;
pub use repair::{StoreRepair, StoreRepairError, repair_store};
pub use reply::StoreReply;
pub(crate) use schema::{META_EVENTS_PRUNED, META_LAST_JOB, META_SWEEP_HELD};
pub use schema::{STORE_APPLICATION_ID, STORE_SCHEMA_VERSION};
pub use space::{SpaceSource, StoreSpace, SystemSpaceSource};
pub use tail::LostEvent;
pub use transaction::{ReadTransaction, WriteTransaction};
pub(crate) use transaction::{from_sql, to_sql, to_sql_option};
pub use vacuum::VacuumStep;
pub use writer::Durability;

/// How a store is opened.
#[derive(Clone)]
pub struct StoreDbOptions {
    /// The node's part of timestamps. `None` takes the first bytes of the store's identity.
    pub node: Option<[u8; 8]>,
    /// Where the store takes the time from.
    pub time: Arc<dyn TimeSource>,
    /// Where the store learns how much room there is.
    pub space: Arc<dyn SpaceSource>,
    /// Makes a new file although a damaged one lies aside and no file took its place.
    pub begin_again: bool,
    /// Longest time of one read.
    pub read_time_max: Duration,
}

impl Default for StoreDbOptions {
    fn default() -> Self {
        Self {
            node: None,
            time: Arc::new(SystemTimeSource),
            space: Arc::new(SystemSpaceSource),
            begin_again: false,
            read_time_max: READ_TIME_MAX,
        }
    }
}

impl fmt::Debug for StoreDbOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreDbOptions")
            .field("node", &self.node)
            .field("begin_again", &self.begin_again)
            .field("read_time_max", &self.read_time_max)
            .finish_non_exhaustive()
    }
}

/// The open store. Clones share it, and the last one that is dropped closes it: that waits for the jobs in the queue, and
/// blocks on the disk.
#[derive(Clone)]
pub struct StoreDb {
    inner: Arc<StoreDbInner>,
    /// Whose the reads of this handle are.
    reader: ReadOwner,
}

struct StoreDbInner {
    path: PathBuf,
    store_id: [u8; 16],
    was_clean: bool,
    quarantined: Vec<PathBuf>,
    is_damaged: Arc<AtomicBool>,
    damaged_contents: Arc<AtomicU64>,
    last_event: watch::Receiver<i64>,
    time: Arc<dyn TimeSource>,
    space: Arc<SpaceWatch>,
    /// Held while a copy of the file is made.
    copying: Mutex<()>,
    /// Jobs that were given to the writer so far.
    writes: AtomicU64,
    vacuum: VacuumClock,
    /// `None` only while the value is dropped.
    jobs: Option<SyncSender<QueuedJob>>,
    writer: Option<JoinHandle<()>>,
    readers: Option<ReaderPool>,
    /// Held until the writer has ended.
    _lock: File,
}

impl StoreDb {
    /// Opens the file at `path`, or makes it; the folder has to be there. Blocks on the disk, and after a start that did
    /// not end in order for as long as the check of the whole file takes.
    ///
    /// # Errors
    /// [`StoreOpenError`] says what is wrong with the file, and what became of it.
    pub fn open(path: &Path, options: StoreDbOptions) -> Result<Self, StoreOpenError> {
        let opened = open::open(path, options.begin_again)?;
        let unusable = |reason: String| StoreOpenError::Unusable {
            path: path.to_owned(),
            reason,
        };
        let connections = (0..READERS).map(|_| open::open_reader(path));
        let connections = connections.collect::<rusqlite::Result<Vec<_>>>();
        let connections = connections.map_err(|error| unusable(error.to_string()))?;
        let is_damaged = Arc::new(AtomicBool::new(false));
        let readers = ReaderPool::start(connections, options.read_time_max, &is_damaged);
        let readers = readers.map_err(|error| unusable(error.to_string()))?;
        // Timestamps of two stores must differ even in the same millisecond, and the identity is
        // random.
        let [a, b, c, d, e, f, g, h, ..] = opened.store_id;
        let mut clock = HybridClock::new(options.node.unwrap_or([a, b, c, d, e, f, g, h]));
        if let Some(last) = opened.last_time {
            // The clock of the system may have been set back a little since: new commits would lose against
            // older ones in a merge. One that was far ahead is left by the first value.
            clock.resume(last);
        }
        let (jobs, receiver) = sync_channel(WRITES_QUEUED_MAX);
        let (sender, last_event) = watch::channel(opened.last_event);
        let damaged_contents = Arc::new(AtomicU64::new(opened.damaged_contents));
        let space = Arc::new(SpaceWatch::new(path, options.space));
        let setup = WriterSetup {
            jobs: receiver,
            last_event: sender,
            is_damaged: Arc::clone(&is_damaged),
            damaged_contents: Arc::clone(&damaged_contents),
            time: Arc::clone(&options.time),
            space: Arc::clone(&space),
            reads: Arc::clone(readers.watch()),
            clock,
            was_clean: opened.was_clean,
            path: path.to_owned(),
        };
        let connection = opened.connection;
        let thread = thread::Builder::new().name("fs-write".to_owned());
        let writer = thread.spawn(move || writer::run(connection, setup));
        let writer = writer.map_err(|error| unusable(error.to_string()))?;
        let inner = Arc::new(StoreDbInner {
            path: path.to_owned(),
            store_id: opened.store_id,
            was_clean: opened.was_clean,
            quarantined: opened.quarantined,
            is_damaged,
            damaged_contents,
            last_event,
            time: options.time,
            space,
            copying: Mutex::default(),
            writes: AtomicU64::new(0),
            vacuum: VacuumClock::default(),
            jobs: Some(jobs),
            writer: Some(writer),
            readers: Some(readers),
            _lock: opened.lock,
        });
        Ok(Self {
            inner,
            reader: None,
        })
    }

    /// The same store, with a handle whose reads count for an identity: they have
    /// [`READERS_PER_IDENTITY`](crate::limits::READERS_PER_IDENTITY) threads at most.
    #[must_use]
    pub fn reading_as(&self, identity: &str) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            reader: Some(identity.into()),
        }
    }

    /// Runs a job in the next transaction, durable when its result is there. The job may run twice: what it did the first
    /// time was taken back then.
    pub fn write<T, F>(&self, work: F) -> StoreReply<T>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_with(Durability::Full, work)
    }

    /// Runs a job in the next transaction. With [`Durability::Normal`] a power cut can take a job whose result was there.
    pub fn write_with<T, F>(&self, durability: Durability, work: F) -> StoreReply<T>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let job = Box::new(ReplyingJob {
            work,
            result: None,
            reply,
        });
        let queued = QueuedJob { job, durability };
        self.inner.writes.fetch_add(1, Ordering::Relaxed);
        let sent = match &self.inner.jobs {
            // Refused instead of waiting: the caller may be a task of the runtime, which must not
            // block.
            Some(jobs) => jobs.try_send(queued).map_err(|refused| match refused {
                TrySendError::Full(_) => StoreError::Busy("too many writes wait"),
                TrySendError::Disconnected(_) => StoreError::Closed,
            }),
            None => Err(StoreError::Closed),
        };
        match sent {
            Ok(()) => StoreReply::pending(receiver),
            Err(error) => StoreReply::refused(error),
        }
    }

    /// Runs a read on one of the reading threads, in the turn of the handle's identity. It sees one state of the store, and
    /// all writes whose result was there before. It ends with [`StoreError::TimedOut`] at its time limit.
    pub fn read<T, F>(&self, work: F) -> StoreReply<T>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let is_damaged = Arc::clone(&self.inner.is_damaged);
        let job: ReadJob = Box::new(move |transaction| {
            // A panic would end the thread, and after four of them the store would serve no read
            // until the next start.
            let run = catch_unwind(AssertUnwindSafe(|| transaction.and_then(work)));
            let result = run.unwrap_or_else(|payload| Err(StoreError::panicked(&*payload)));
            if matches!(result, Err(StoreError::Damaged(_))) {
                is_damaged.store(true, Ordering::Relaxed);
            }
            // A caller that dropped its reply does not need the result.
            reply.send(result).ok();
        });
        let readers = self.inner.readers.as_ref().ok_or(StoreError::Closed);
        match readers.and_then(|readers| readers.send(&self.reader, job)) {
            Ok(()) => StoreReply::pending(receiver),
            Err(error) => StoreReply::refused(error),
        }
    }

    /// A connection of the caller's own, for a read that must not wait behind others. Blocks.
    pub(crate) fn own_reader(&self) -> Result<OwnReader, StoreError> {
        Ok(OwnReader(open::open_reader(&self.inner.path)?))
    }

    /// The number of the last event that is durable. It changes after each commit with events that follows this call.
    #[must_use]
    pub fn last_event(&self) -> watch::Receiver<i64> {
        let mut last_event = self.inner.last_event.clone();
        // The one that is cloned has seen no event, so that each wait for a change would end at once.
        last_event.mark_unchanged();
        last_event
    }

    /// The time of the store, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        self.inner.time.unix_ms()
    }

    /// The random identity of the store, made with its file.
    #[must_use]
    pub fn store_id(&self) -> [u8; 16] {
        self.inner.store_id
    }

    /// Whether the store was closed in order before this start. Otherwise the content of its last writes is to be
    /// verified.
    #[must_use]
    pub fn was_closed_in_order(&self) -> bool {
        self.inner.was_clean
    }

    /// Damaged files that earlier starts set aside, oldest first.
    #[must_use]
    pub fn quarantined_files(&self) -> &[PathBuf] {
        &self.inner.quarantined
    }

    /// Whether a page of the file proved damaged since the start.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.inner.is_damaged.load(Ordering::Relaxed)
    }

    /// Contents that proved damaged or lost and were not stored again, up to
    /// [`DAMAGED_CONTENTS_COUNTED_MAX`](crate::limits::DAMAGED_CONTENTS_COUNTED_MAX). A write that changes their number has
    /// its result after the change. Does not block.
    #[must_use]
    pub fn damaged_contents(&self) -> u64 {
        self.inner.damaged_contents.load(Ordering::Relaxed)
    }
}

/// A connection that reads on the thread of its owner, without a time limit.
pub(crate) struct OwnReader(Connection);

impl OwnReader {
    /// Runs one read. It sees one state of the store, and all writes whose result was there before.
    pub(crate) fn read<T>(
        self,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // The transaction ends with the connection.
        self.0.execute_batch("BEGIN")?;
        work(&ReadTransaction::new(&self.0))
    }
}

impl Drop for StoreDbInner {
    fn drop(&mut self) {
        // The writer is the last to close the file: only then SQLite empties and removes the log.
        self.readers = None;
        self.jobs = None;
        self.writer.take().into_iter().for_each(readers::join);
    }
}

impl fmt::Debug for StoreDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreDb")
            .field("path", &self.inner.path)
            .field("is_damaged", &self.is_damaged())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
