//! The one thread that writes, with its group commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use rusqlite::{Connection, params};
use tokio::sync::{oneshot, watch};

use super::log::StoreLog;
use super::open::{self, LOG};
use super::quarantine;
use super::readers::ReadWatch;
use super::schema::META_CLOCK;
use super::space::SpaceWatch;
use super::transaction::WriteTransaction;
use crate::clock::{HybridClock, TimeSource};
use crate::error::StoreError;
use crate::limits::{GROUP_JOBS_MAX, GROUP_TIME_MAX};

/// What a power cut may take of an acknowledged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: the log is on the disk before the acknowledgement.
    #[default]
    Full,
    /// The last writes. What stays is a state that the store once had.
    Normal,
}

impl Durability {
    /// The name in the bucket's row.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
        }
    }

    /// The value with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Full, Self::Normal]
            .into_iter()
            .find(|it| it.name() == name)
    }

    const fn synchronous(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

/// A job whose result has a type of its own.
pub(super) trait WriteJob: Send {
    /// Runs the job and holds its result back. The writer runs it a second time if the transaction of its group fails.
    fn run(&mut self, transaction: &mut WriteTransaction<'_>) -> Result<(), StoreError>;

    /// Sends the result, or the failure of the transaction in its place.
    fn answer(self: Box<Self>, failure: Option<StoreError>);
}

/// A job, and where its result goes.
pub(super) struct ReplyingJob<T, F> {
    pub(super) work: F,
    pub(super) result: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> WriteJob for ReplyingJob<T, F>
where
    T: Send,
    F: FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, transaction: &mut WriteTransaction<'_>) -> Result<(), StoreError> {
        // The result of the first run belongs to a transaction that was rolled back.
        self.result = None;
        self.result = Some((self.work)(transaction)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failure: Option<StoreError>) {
        let Self { result, reply, .. } = *self;
        let result = match failure {
            Some(error) => Err(error),
            None => result.ok_or(StoreError::Closed),
        };
        // A caller that dropped its reply does not need the result.
        reply.send(result).ok();
    }
}

/// A job in the queue.
pub(super) struct QueuedJob {
    pub(super) job: Box<dyn WriteJob>,
    pub(super) durability: Durability,
}

/// A job that ran in the transaction that is open.
struct RunJob {
    job: Box<dyn WriteJob>,
    failure: Option<StoreError>,
}

/// What the thread has beside the connection.
pub(super) struct WriterSetup {
    pub(super) jobs: Receiver<QueuedJob>,
    pub(super) last_event: watch::Sender<i64>,
    pub(super) is_damaged: Arc<AtomicBool>,
    pub(super) damaged_contents: Arc<AtomicU64>,
    pub(super) time: Arc<dyn TimeSource>,
    pub(super) space: Arc<SpaceWatch>,
    pub(super) reads: Arc<ReadWatch>,
    pub(super) clock: HybridClock,
    /// Whether the file was closed in order before this start.
    pub(super) was_clean: bool,
    /// The file.
    pub(super) path: PathBuf,
}

/// The thread: runs jobs until every sender of the queue is dropped, and then closes the file in order.
pub(super) fn run(connection: Connection, setup: WriterSetup) {
    let WriterSetup {
        jobs,
        last_event,
        is_damaged,
        damaged_contents,
        time,
        space,
        reads,
        clock,
        was_clean,
        path,
    } = setup;
    let log = quarantine::with(&path, LOG);
    let mut writer = Writer {
        connection: &connection,
        transaction: WriteTransaction::new(&connection, time, clock),
        durability: Durability::Full,
        jobs,
        last_event,
        is_damaged: &is_damaged,
        damaged_contents: &damaged_contents,
        space: &space,
        log: StoreLog::new(&connection, log, reads, was_clean),
    };
    writer.serve();
    // A log with a hole is emptied before the mark: a start that finds the mark does not look for what is missing.
    let is_whole = !writer.log.is_suspect() || writer.log.check().is_ok();
    drop(writer);
    // The next start checks a file without the mark.
    if is_whole
        && !is_damaged.load(Ordering::Relaxed)
        && let Err(error) = close(&connection)
    {
        tracing::warn!(%error, "the file of names was not closed in order");
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "the file of names was not closed");
    }
}

fn close(connection: &Connection) -> rusqlite::Result<()> {
    // The sync of the mark also takes the writes of groups without a sync to the disk.
    connection.pragma_update(None, "synchronous", Durability::Full.synchronous())?;
    open::mark_clean(connection)
}

struct Writer<'c> {
    connection: &'c Connection,
    transaction: WriteTransaction<'c>,
    /// The present setting of the connection.
    durability: Durability,
    jobs: Receiver<QueuedJob>,
    last_event: watch::Sender<i64>,
    is_damaged: &'c AtomicBool,
    damaged_contents: &'c AtomicU64,
    space: &'c SpaceWatch,
    log: StoreLog<'c>,
}

impl Writer<'_> {
    fn serve(&mut self) {
        let mut next = None;
        // A job that needs a sync was taken from the queue already, so it goes first: the order of
        // the jobs stays.
        while let Some(first) = next.take().or_else(|| self.jobs.recv().ok()) {
            next = self.run_group(first);
            self.log.keep_short();
        }
    }

    /// Runs a job, and the jobs that wait behind it, in one transaction. Returns a job that needs another one.
    ///
    /// The writer never waits for further jobs: while the disk syncs one group, the next one gathers in the queue.
    fn run_group(&mut self, first: QueuedJob) -> Option<QueuedJob> {
        let durability = first.durability;
        if let Err(error) = self.begin(durability) {
            first.job.answer(Some(self.noted(error)));
            return None;
        }
        // The first job of a group waits for the last one, so a busy queue must not make the group
        // grow without end.
        let end = Instant::now() + GROUP_TIME_MAX;
        let mut group = Vec::new();
        let mut next = Some(first.job);
        let mut left = None;
        while let Some(mut job) = next.take() {
            let failure = self.run_one(&mut *job).err();
            group.push(RunJob { job, failure });
            let is_full = group.len() >= GROUP_JOBS_MAX || Instant::now() >= end;
            if is_full || self.connection.is_autocommit() {
                break;
            }
            match self.jobs.try_recv() {
                // A transaction without a sync acknowledges nothing that asks for one.
                Ok(queued)
                    if durability == Durability::Normal && queued.durability != durability =>
                {
                    left = Some(queued);
                }
                Ok(queued) => next = Some(queued.job),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
            }
        }
        self.finish_group(group, durability);
        left
    }

    fn finish_group(&mut self, group: Vec<RunJob>, durability: Durability) {
        // SQLite ends the whole transaction where it cannot go on, as on a full disk.
        let committed = if self.connection.is_autocommit() {
            let cause = group.last().and_then(|it| it.failure.clone());
            Err(cause.unwrap_or(StoreError::Closed))
        } else {
            self.commit()
        };
        let is_alone = group.len() == 1;
        for RunJob { job, failure } in group {
            match &committed {
                Ok(()) => job.answer(failure),
                Err(error) if is_alone => {
                    job.answer(Some(failure.unwrap_or_else(|| error.clone())))
                }
                // What one job asks of a full disk is no reason to refuse the others.
                Err(_) if failure.is_none() => self.run_alone(job, durability),
                Err(_) => job.answer(failure),
            }
        }
    }

    /// Runs a job of a failed group again, in a transaction of its own.
    fn run_alone(&mut self, mut job: Box<dyn WriteJob>, durability: Durability) {
        let begun = self.begin(durability);
        let run = begun.and_then(|()| self.run_one(&mut *job));
        let committed = run.and_then(|()| self.commit());
        if committed.is_err() {
            self.roll_back();
        }
        job.answer(committed.err().map(|error| self.noted(error)));
    }

    /// Runs a job so that an error or a panic takes back what the job wrote, and nothing else.
    fn run_one(&mut self, job: &mut dyn WriteJob) -> Result<(), StoreError> {
        self.connection.execute_batch("SAVEPOINT job")?;
        // Set aside, because a job that is taken back must not announce its events, and those of
        // earlier jobs stay.
        let events_before = self.transaction.take_last_event();
        let transaction = &mut self.transaction;
        transaction.begin_job();
        let run = catch_unwind(AssertUnwindSafe(|| job.run(transaction)));
        let run = run.unwrap_or_else(|payload| Err(StoreError::panicked(&*payload)));
        self.transaction.end_job();
        let event = self.transaction.take_last_event();
        let end = match run {
            Ok(()) => self.connection.execute_batch("RELEASE job"),
            // The error may have ended the transaction, and the savepoint with it.
            Err(_) if self.connection.is_autocommit() => Ok(()),
            Err(_) => self
                .connection
                .execute_batch("ROLLBACK TO job; RELEASE job"),
        };
        let last = if run.is_ok() {
            event.or(events_before)
        } else {
            events_before
        };
        if let Some(id) = last {
            self.transaction.note_event(id);
        }
        let result = run.and_then(|()| Ok(end?));
        result.map_err(|error| self.noted(error))
    }

    fn begin(&mut self, durability: Durability) -> Result<(), StoreError> {
        match self.log.check() {
            // The pages of the log need room in the file, which the reserve file has.
            Err(StoreError::NoSpace) => {
                self.space.check_low();
                self.log.check()?;
            }
            checked => checked?,
        }
        // SQLite refuses this setting inside a transaction, so it is set between two of them.
        if self.durability != durability {
            let name = durability.synchronous();
            self.connection.pragma_update(None, "synchronous", name)?;
            self.durability = durability;
        }
        // Before the first job: events and times of a transaction that failed are not announced.
        self.transaction.take_last_event();
        self.transaction.take_last_time();
        // Measured once for a group: its jobs see the same answer, and one call of the system
        // serves them all.
        self.transaction.set_space_low(self.space.check_low());
        // A transaction that takes the write lock at its first write can be refused in the middle.
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Commits, and then announces the last event: a consumer that reads at once finds it. So it is with the number of
    /// damaged contents.
    fn commit(&mut self) -> Result<(), StoreError> {
        let committed = self.try_commit();
        if let Err(error) = committed {
            self.roll_back();
            return Err(self.noted(error));
        }
        if let Some(id) = self.transaction.take_last_event() {
            self.last_event.send_replace(id);
        }
        match self.transaction.take_damage_count() {
            Ok(Some(count)) => self.damaged_contents.store(count, Ordering::Relaxed),
            Ok(None) => {}
            // The jobs are committed, and their callers need not know. The number of before stays until the next change.
            Err(error) => drop(self.noted(error)),
        }
        Ok(())
    }

    fn try_commit(&mut self) -> Result<(), StoreError> {
        if let Some(time) = self.transaction.take_last_time() {
            // In the same transaction: after a power cut the clock must not repeat a value that a
            // durable commit has.
            let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
            let time = time.to_bytes();
            self.transaction.execute(put, params![META_CLOCK, time])?;
        }
        let committed = self.connection.execute_batch("COMMIT");
        if let Err(error) = &committed {
            self.log.note_failure(error);
        }
        Ok(committed?)
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction of the file of names cannot be rolled back");
        }
    }

    /// Remembers that the file is damaged, so that the next start checks it, or that the disk is full.
    fn noted(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Damaged(_)) {
            self.is_damaged.store(true, Ordering::Relaxed);
        }
        if matches!(error, StoreError::NoSpace) {
            // The disk may have filled within the transaction. The caller's next deletion needs
            // the room of the reserve file.
            self.space.check_low();
        }
        error
    }
}
