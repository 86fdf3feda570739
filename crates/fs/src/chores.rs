//! What the store needs from time to time, on one thread: sweeps, the daily copy, the reserve file, collections, checks,
//! free pages.
//!
//! Each chore is done in short steps with pauses, so that requests wait for one step at most.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alknet_store::{
    ContentScrub, ContentScrubStep, CopyOutcome, GarbageCollection, Store, StoreError,
};

use crate::limits::{
    CHORE_RETRY, COLLECT_DELAY, COLLECT_PERIOD, COPY_AGE_DAYS_MAX, COPY_PERIOD, OPEN_RETRY,
    ROW_SWEEP_PERIOD, ROW_SWEEP_STEP, SCRUB_BYTES_PER_SECOND, SCRUB_PERIOD, SCRUB_STEP_BYTES,
    SESSION_SWEEP_PERIOD, STEP_PAUSE, VACUUM_PERIOD,
};
use crate::service::{FsService, ServiceInner};

/// The file beside the names whose time says when all contents were checked. It is lost with no harm.
const SCRUBBED: &str = "scrubbed";

/// Tells the thread to end.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    pub(crate) fn stop(&self) {
        *self
            .is_stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self
            .is_stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this long at most, and returns whether the thread has to end.
    fn wait(&self, time: Duration) -> bool {
        let locked = self
            .is_stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(locked, time, |is_stopped| !*is_stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Starts the thread. It ends with the signal, or with the last clone of the service.
pub(crate) fn start(
    service: Weak<ServiceInner>,
    stop: Arc<StopSignal>,
) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name("fs-chores".to_owned());
    thread.spawn(move || {
        let mut keeper = Housekeeper::new();
        loop {
            let Some(inner) = service.upgrade() else {
                return;
            };
            let pause = keeper.run_due(&FsService::of_inner(inner), Instant::now());
            if stop.wait(pause) {
                return;
            }
        }
    })
}

/// A chore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chore {
    /// Reads what the last start left unverified.
    Verify,
    /// Ends write sessions that their clients left.
    SweepSessions,
    /// Removes events that are older than the outbox keeps them.
    PruneOutbox,
    /// Removes locks that have ended.
    SweepLocks,
    /// Makes the reserve file again after the disk was full.
    KeepReserve,
    /// Copies the file of names once a day.
    CopyDaily,
    /// Removes what no name needs.
    Collect,
    /// Reads all contents.
    Scrub,
    /// Gives free pages of the file of names back to the file system.
    Vacuum,
}

impl Chore {
    const ALL: [Self; 9] = [
        Self::Verify,
        Self::SweepSessions,
        Self::PruneOutbox,
        Self::SweepLocks,
        Self::KeepReserve,
        Self::CopyDaily,
        Self::Collect,
        Self::Scrub,
        Self::Vacuum,
    ];

    /// Time from the opening to the first step.
    const fn delay(self) -> Duration {
        match self {
            Self::Collect => COLLECT_DELAY,
            Self::SweepSessions => SESSION_SWEEP_PERIOD,
            Self::Vacuum => VACUUM_PERIOD,
            _ => STEP_PAUSE,
        }
    }
}

/// The chores of an open store, each with the time of its next step.
struct Housekeeper {
    /// `None` until the store is open.
    due: Option<[(Chore, Instant); Chore::ALL.len()]>,
    collection: Option<GarbageCollection>,
    scrub: Option<ContentScrub>,
    /// Whether the last try of the daily copy was a second one.
    is_copy_retried: bool,
}

impl Housekeeper {
    const fn new() -> Self {
        Self {
            due: None,
            collection: None,
            scrub: None,
            is_copy_retried: false,
        }
    }

    /// Does one step of each chore that is due at this time. Returns the time until the next one is.
    fn run_due(&mut self, service: &FsService, now: Instant) -> Duration {
        let Ok(store) = service.open() else {
            // Positions of a store that was repaired or begun again lead nowhere.
            *self = Self::new();
            return OPEN_RETRY;
        };
        let mut due = self
            .due
            .unwrap_or_else(|| Chore::ALL.map(|chore| (chore, now + chore.delay())));
        for (chore, at) in &mut due {
            if *at > now {
                continue;
            }
            let pause = self.step(*chore, service, &store).unwrap_or_else(|error| {
                tracing::warn!(?chore, %error, "a chore of the store of files failed");
                CHORE_RETRY
            });
            *at = Instant::now() + pause;
        }
        self.due = Some(due);
        let next = due.iter().map(|(_, at)| *at).min().unwrap_or(now);
        next.saturating_duration_since(Instant::now())
            .max(STEP_PAUSE)
    }

    /// Does one step. Returns the time until the next one.
    fn step(
        &mut self,
        chore: Chore,
        service: &FsService,
        store: &Store,
    ) -> Result<Duration, StoreError> {
        match chore {
            Chore::Verify => verify(store),
            Chore::SweepSessions => {
                let swept = store.sessions().sweep()?;
                if swept > 0 {
                    tracing::info!(sessions = swept, "write sessions without a client ended");
                }
                Ok(SESSION_SWEEP_PERIOD)
            }
            Chore::PruneOutbox => {
                let step = store.write(|tx| tx.prune_outbox(ROW_SWEEP_STEP)).wait()?;
                Ok(pause_after(step.is_done))
            }
            Chore::SweepLocks => {
                let step = store.write(|tx| tx.sweep_locks(ROW_SWEEP_STEP)).wait()?;
                store.write(|tx| tx.sweep_shares(ROW_SWEEP_STEP)).wait()?;
                if step.is_done {
                    store.content().sweep_partials()?;
                }
                Ok(pause_after(step.is_done))
            }
            Chore::KeepReserve => {
                store.db().keep_reserve()?;
                Ok(COPY_PERIOD)
            }
            Chore::CopyDaily => {
                let copied = store.db().copy_daily();
                // Also after a failure: that is when the copies get old.
                service.note_copies(store.db().lacks_copy(COPY_AGE_DAYS_MAX)?);
                self.after_copy(copied)
            }
            Chore::Collect => self.collect(service, store),
            Chore::Scrub => self.scrub(service, store),
            Chore::Vacuum => {
                // It leaves a store alone that requests write to.
                store.db().vacuum_step()?;
                Ok(VACUUM_PERIOD)
            }
        }
    }

    /// The time until the next look at the daily copy.
    fn after_copy(
        &mut self,
        copied: Result<CopyOutcome, StoreError>,
    ) -> Result<Duration, StoreError> {
        match copied {
            // Writes filled the log while the copy was made. They may be fewer a little later; after that the disk gets a
            // rest, because each try reads the whole file.
            Err(StoreError::TimedOut) => {
                self.is_copy_retried = !self.is_copy_retried;
                tracing::warn!("the daily copy of the file of names gave way to writes");
                Ok(match self.is_copy_retried {
                    true => CHORE_RETRY,
                    false => COPY_PERIOD,
                })
            }
            copied => {
                self.is_copy_retried = false;
                copied.map(|_| COPY_PERIOD)
            }
        }
    }

    fn collect(&mut self, service: &FsService, store: &Store) -> Result<Duration, StoreError> {
        let collection = self.collection.get_or_insert_default();
        let turn = service.collecting();
        let progress = store.collect_step(collection)?;
        drop(turn);
        if !collection.is_done() {
            return Ok(STEP_PAUSE);
        }
        self.collection = None;
        tracing::info!(
            rows = progress.rows,
            contents = progress.contents,
            bytes = progress.bytes,
            "a collection of files ended"
        );
        Ok(COLLECT_PERIOD)
    }

    fn scrub(&mut self, service: &FsService, store: &Store) -> Result<Duration, StoreError> {
        let file = service.folder().join(SCRUBBED);
        if self.scrub.is_none() {
            let left = time_to_scrub(&std::fs::read_to_string(&file).unwrap_or_default());
            if !left.is_zero() {
                return Ok(left);
            }
        }
        let scrub = self.scrub.get_or_insert_default();
        let step = store.content().scrub_step(scrub, SCRUB_STEP_BYTES)?;
        if !step.is_done {
            return Ok(pause_of_scrub(&step));
        }
        self.scrub = None;
        // Without the file the next start checks again, which costs time only.
        if let Err(error) = std::fs::write(&file, unix_seconds().to_string()) {
            tracing::warn!("the time of the check of all contents is not kept: {error}");
        }
        Ok(SCRUB_PERIOD)
    }
}

/// Verifies on what the last start left, at the rate of a check.
fn verify(store: &Store) -> Result<Duration, StoreError> {
    if store.is_verified() {
        // A start is the only time when there is something to verify.
        return Ok(SCRUB_PERIOD);
    }
    let step = store.verify_step(SCRUB_STEP_BYTES)?;
    Ok(pause_for(step.bytes))
}

const fn pause_after(is_done: bool) -> Duration {
    match is_done {
        true => ROW_SWEEP_PERIOD,
        false => STEP_PAUSE,
    }
}

/// The time in which a check at its rate reads this much.
fn pause_for(bytes: u64) -> Duration {
    let micros = bytes.saturating_mul(1_000_000) / SCRUB_BYTES_PER_SECOND;
    Duration::from_micros(micros).max(STEP_PAUSE)
}

/// The time until the next step of a check of all contents. One that gave way to callers waits as long as one that has read:
/// with the shortest pause, the steps that may be left out in a row would be over in a moment, and callers stay longer.
fn pause_of_scrub(step: &ContentScrubStep) -> Duration {
    match step.is_paused {
        true => pause_for(SCRUB_STEP_BYTES),
        false => pause_for(step.bytes),
    }
}

/// Time until the next check of all contents, by the file that the last one left.
fn time_to_scrub(scrubbed: &str) -> Duration {
    let Ok(last) = scrubbed.trim().parse::<u64>() else {
        return Duration::ZERO;
    };
    let passed = Duration::from_secs(unix_seconds().saturating_sub(last));
    SCRUB_PERIOD.saturating_sub(passed)
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use alknet_store::limits::VACUUM_PAGES;
    use alknet_store::{
        Durability, FileStoreOptions, NewBucket, NewJob, QueueName, SpaceSource, StoreCopy,
        StoreDbOptions, StoreSpace, TimeSource,
    };
    use tempfile::TempDir;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A clock and a disk that a test sets.
    #[derive(Debug)]
    struct TestSystem {
        unix_ms: AtomicU64,
        free: AtomicU64,
    }

    impl TimeSource for TestSystem {
        fn unix_ms(&self) -> u64 {
            self.unix_ms.load(Ordering::SeqCst)
        }
    }

    impl SpaceSource for TestSystem {
        fn measure(&self, _: &Path) -> io::Result<StoreSpace> {
            Ok(StoreSpace {
                total: 1 << 30,
                free: self.free.load(Ordering::SeqCst),
            })
        }
    }

    /// A service with the bucket `docs`, whose chores the test does itself.
    fn service() -> (TempDir, Arc<TestSystem>, FsService) {
        let dir = tempfile::tempdir().expect("writable");
        let system = Arc::new(TestSystem {
            unix_ms: AtomicU64::new(1_800_000_000_000),
            free: AtomicU64::new(1 << 30),
        });
        let options = FileStoreOptions {
            db: StoreDbOptions {
                time: Arc::clone(&system) as Arc<dyn TimeSource>,
                space: Arc::clone(&system) as Arc<dyn SpaceSource>,
                ..StoreDbOptions::default()
            },
            ..FileStoreOptions::default()
        };
        let service = FsService::new(&dir.path().join("fs"), options);
        service.stop_keeper();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let store = service.open().expect("a store");
        let created = store.write(move |tx| tx.create_bucket(&new));
        created.wait().expect("free");
        drop(store);
        (dir, system, service)
    }

    #[test]
    fn free_pages_go_back_once_a_minute() {
        let (_dir, _, service) = service();
        let store = service.open().expect("a store");
        let bucket = store.read(|tx| Ok(tx.bucket_by_name(&"docs".parse()?)?.id));
        let bucket = bucket.wait().expect("a bucket");
        let queue = move || QueueName::parse(bucket, "q").expect("a name");
        let payload = "x".repeat(60_000);
        for _ in 0..100 {
            let job = NewJob::new(queue(), &payload);
            let enqueued = store
                .db()
                .write_with(Durability::Normal, move |tx| tx.enqueue(&job));
            enqueued.wait().expect("room");
        }
        let acknowledged = store.write(move |tx| {
            for job in tx.claim_jobs(&queue(), 100, DAY)? {
                tx.acknowledge_job(&job.claim)?;
            }
            Ok(())
        });
        acknowledged.wait().expect("its own jobs");
        let first = store.db().vacuum_step().expect("readable");
        assert!(first.free > 4 * VACUUM_PAGES, "{first:?}");
        let mut keeper = Housekeeper::new();
        let now = Instant::now();
        keeper.run_due(&service, now);
        keeper.run_due(&service, now + VACUUM_PERIOD);
        let second = store.db().vacuum_step().expect("readable");
        assert!(second.free + 2 * VACUUM_PAGES <= first.free, "{second:?}");
    }

    #[test]
    fn a_copy_that_gave_way_to_writes_is_tried_once_more_before_the_hour() {
        let mut keeper = Housekeeper::new();
        let gave_way = || Err(StoreError::TimedOut);
        for _ in 0..2 {
            assert_eq!(keeper.after_copy(gave_way()), Ok(CHORE_RETRY));
            assert_eq!(keeper.after_copy(gave_way()), Ok(COPY_PERIOD));
        }
        assert_eq!(keeper.after_copy(gave_way()), Ok(CHORE_RETRY));
        let copy = StoreCopy {
            path: "fs.db.copy-2027-01-15".into(),
            day: "2027-01-15".to_owned(),
        };
        let made = keeper.after_copy(Ok(CopyOutcome::Made(copy)));
        assert_eq!(made, Ok(COPY_PERIOD));
        assert_eq!(keeper.after_copy(gave_way()), Ok(CHORE_RETRY));
        let failed = keeper.after_copy(Err(StoreError::NoSpace));
        assert_eq!(failed, Err(StoreError::NoSpace));
    }

    #[test]
    fn old_copies_are_a_problem_until_one_is_made() {
        let (_dir, system, service) = service();
        let store = service.open().expect("a store");
        let mut keeper = Housekeeper::new();
        let mut codes = |days: u32, free: u64| {
            let passed = u64::from(days) * 24 * 60 * 60 * 1000;
            system.unix_ms.fetch_add(passed, Ordering::SeqCst);
            system.free.store(free, Ordering::SeqCst);
            let copied = keeper.step(Chore::CopyDaily, &service, &store);
            assert_eq!(copied.is_ok(), free > 0, "{copied:?}");
            let problems = service.problems().into_iter();
            problems.map(|problem| problem.code).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(codes(0, 1 << 30), none);
        assert_eq!(codes(2, 0), none);
        assert_eq!(codes(1, 0), ["files-uncopied"]);
        assert_eq!(codes(0, 1 << 30), none);
    }

    #[test]
    fn a_check_keeps_to_its_rate_and_its_period() {
        let second = pause_for(SCRUB_BYTES_PER_SECOND);
        assert_eq!(second, Duration::from_secs(1));
        assert_eq!(pause_for(0), STEP_PAUSE);
        assert_eq!(time_to_scrub(""), Duration::ZERO);
        assert_eq!(time_to_scrub("0\n"), Duration::ZERO);
        assert!(!time_to_scrub(&unix_seconds().to_string()).is_zero());
    }

    #[test]
    fn a_check_that_gives_way_waits_as_long_as_one_that_reads() {
        let (_dir, _, service) = service();
        let store = service.open().expect("a store");
        let mut keeper = Housekeeper::new();
        let mut step = || keeper.step(Chore::Scrub, &service, &store);
        assert_eq!(step(), Ok(STEP_PAUSE), "there is nothing to read");
        let bytes = usize::try_from(SCRUB_STEP_BYTES).expect("small") + 1;
        let mut staged = store.stage().expect("room");
        staged.write_at(0, &vec![7; bytes]).expect("room");
        assert_eq!(step(), Ok(Duration::from_millis(200)));
        // The caller is gone, and the check comes to its end.
        assert_eq!(step(), Ok(SCRUB_PERIOD));
    }

    #[test]
    fn a_stopped_thread_waits_no_more() {
        let stop = StopSignal::default();
        assert!(!stop.wait(Duration::ZERO));
        stop.stop();
        assert!(stop.wait(Duration::MAX) && stop.is_stopped());
    }
}
