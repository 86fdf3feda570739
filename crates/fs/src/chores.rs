//! What the store needs from time to time, on one thread: sweeps, the daily copy, the reserve file, collections, checks.
//!
//! Each chore is done in short steps with pauses, so that requests wait for one step at most.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alknet_store::{ContentScrub, GarbageCollection, Store, StoreError};

use crate::limits::{
    CHORE_RETRY, COLLECT_DELAY, COLLECT_PERIOD, COPY_PERIOD, OPEN_RETRY, ROW_SWEEP_PERIOD,
    ROW_SWEEP_STEP, SCRUB_BYTES_PER_SECOND, SCRUB_PERIOD, SCRUB_STEP_BYTES, SESSION_SWEEP_PERIOD,
    STEP_PAUSE,
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
            let pause = keeper.run_due(&FsService::of_inner(inner));
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
}

impl Chore {
    const ALL: [Self; 8] = [
        Self::Verify,
        Self::SweepSessions,
        Self::PruneOutbox,
        Self::SweepLocks,
        Self::KeepReserve,
        Self::CopyDaily,
        Self::Collect,
        Self::Scrub,
    ];

    /// Time from the opening to the first step.
    const fn delay(self) -> Duration {
        match self {
            Self::Collect => COLLECT_DELAY,
            Self::SweepSessions => SESSION_SWEEP_PERIOD,
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
}

impl Housekeeper {
    const fn new() -> Self {
        Self {
            due: None,
            collection: None,
            scrub: None,
        }
    }

    /// Does one step of each chore that is due. Returns the time until the next one is.
    fn run_due(&mut self, service: &FsService) -> Duration {
        let Ok(store) = service.open() else {
            // Positions of a store that was repaired or begun again lead nowhere.
            *self = Self::new();
            return OPEN_RETRY;
        };
        let now = Instant::now();
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
                store.db().copy_daily()?;
                Ok(COPY_PERIOD)
            }
            Chore::Collect => self.collect(service, store),
            Chore::Scrub => self.scrub(service, store),
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
            return Ok(pause_for(step.bytes));
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
    use super::*;

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
    fn a_stopped_thread_waits_no_more() {
        let stop = StopSignal::default();
        assert!(!stop.wait(Duration::ZERO));
        stop.stop();
        assert!(stop.wait(Duration::MAX) && stop.is_stopped());
    }
}
