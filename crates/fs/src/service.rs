//! The store of a node: opened when it is first used, kept in order, and closed at the shutdown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alknet_call::{CallError, ErrorCode};
use alknet_store::limits::DAMAGED_CONTENTS_COUNTED_MAX;
use alknet_store::{
    FileStoreOptions, Store, StoreError, StoreOpenError, StoreRepair, StoreRepairError,
    repair_store,
};
use tokio::sync::watch;

use crate::blobs::{BlobFetches, BlobPeers};
use crate::chores::{self, StopSignal};
use crate::error::FsError;
use crate::lease::{LeaseCount, StoreLease};
use crate::limits::{CLOSE_WAIT, COPY_AGE_DAYS_MAX, FETCH_TIME, OPEN_RETRY};
use crate::sync::SyncRecords;
use crate::watches::WatchCount;

/// The file of names in the folder of a store.
const NAMES: &str = "fs.db";

/// Why the files of a node are not served, or not as they should be. The node serves everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsProblem {
    /// `files-content-damaged`, `files-damaged`, `files-newer`, `files-uncopied` or `files-unusable`.
    pub code: &'static str,
    /// What is wrong, with the path of the file.
    pub text: String,
    /// What to do.
    pub hint: &'static str,
}

/// The files of a node. Clones share them.
///
/// Nothing is opened or started until a request needs the store, or [`start`](Self::start) finds that there is one.
#[derive(Clone, Debug)]
pub struct FsService(Arc<ServiceInner>);

pub(crate) struct ServiceInner {
    folder: PathBuf,
    options: FileStoreOptions,
    /// Locked for moments only.
    state: Mutex<ServiceState>,
    /// Held by the one call that opens or repairs the store.
    opening: Mutex<()>,
    /// Whether the next opening makes a new store beside a damaged one.
    begins_again: AtomicBool,
    leases: Arc<LeaseCount>,
    watches: Arc<WatchCount>,
    /// Contents that come from peers.
    fetches: Arc<BlobFetches>,
    peers: OnceLock<Arc<dyn BlobPeers>>,
    /// How long a read waits for a content from peers.
    fetch_time: OnceLock<Duration>,
    /// How the last sessions with peers ended.
    sync_records: SyncRecords,
    /// Held during one step of a collection, so that two of them do not get into each other's way.
    collecting: Mutex<()>,
    /// Whether the daily copies of the file of names are old.
    lacks_copy: AtomicBool,
    stop: Arc<StopSignal>,
    keeper_thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether subscriptions have to end.
    closing: watch::Sender<bool>,
    /// Says `true` once the store was opened.
    opened: watch::Sender<bool>,
}

enum ServiceState {
    /// After a shutdown.
    Closed,
    Failed {
        error: StoreOpenError,
        since: Instant,
    },
    Open(Store),
    Unopened,
}

impl FsService {
    /// The files in a folder, which need not exist. Does nothing yet.
    #[must_use]
    pub fn new(folder: &Path, options: FileStoreOptions) -> Self {
        Self(Arc::new(ServiceInner {
            folder: folder.to_owned(),
            options,
            state: Mutex::new(ServiceState::Unopened),
            opening: Mutex::default(),
            begins_again: AtomicBool::new(false),
            leases: Arc::default(),
            watches: Arc::default(),
            fetches: Arc::default(),
            peers: OnceLock::new(),
            fetch_time: OnceLock::new(),
            sync_records: SyncRecords::default(),
            collecting: Mutex::default(),
            lacks_copy: AtomicBool::new(false),
            stop: Arc::default(),
            keeper_thread: Mutex::default(),
            closing: watch::channel(false).0,
            opened: watch::channel(false).0,
        }))
    }

    /// Opens the store in the background if there is one, so that its problems are known and its chores are done. A node
    /// whose files were never used pays one look at the folder.
    pub fn start(&self) {
        if self.0.folder.exists() {
            self.start_keeper();
        }
    }

    /// What keeps the files from being served or from being safe. Does not block on the disk.
    #[must_use]
    pub fn problems(&self) -> Vec<FsProblem> {
        let problem = match &*self.state() {
            ServiceState::Failed { error, .. } => Some(problem_of(error)),
            ServiceState::Open(store) if store.db().is_damaged() => Some(FsProblem {
                code: "files-damaged",
                text: "a page of the file of names is damaged".to_owned(),
                hint: "restart the node, which checks the file and sets it aside, and call fs/repair",
            }),
            ServiceState::Closed | ServiceState::Open(_) | ServiceState::Unopened => None,
        };
        let opened = match &*self.state() {
            ServiceState::Open(store) => Some(store.db().damaged_contents()),
            _ => None,
        };
        let damaged = opened.filter(|count| *count > 0).map(damaged_contents);
        let is_uncopied = opened.is_some() && self.0.lacks_copy.load(Ordering::Relaxed);
        let uncopied = is_uncopied.then(|| FsProblem {
            code: "files-uncopied",
            text: format!(
                "the file of names has no copy of today or the {COPY_AGE_DAYS_MAX} days before"
            ),
            hint: "make room on the disk, or call fs/backup when few requests write; the log says why the copies failed",
        });
        problem.into_iter().chain(damaged).chain(uncopied).collect()
    }

    /// The store for a request. The first one opens it on a thread that may block.
    ///
    /// # Errors
    /// `UNAVAILABLE` while it cannot be opened.
    pub async fn lease(&self) -> Result<StoreLease, FsError> {
        if let Some(lease) = self.opened()? {
            return Ok(lease);
        }
        let service = self.clone();
        blocking(move || service.open()).await
    }

    /// The same for a request of an identity: its reads leave readers to others.
    pub(crate) async fn lease_for(&self, identity: &str) -> Result<StoreLease, FsError> {
        Ok(self.lease().await?.reading_as(identity))
    }

    /// The same on a thread that may block.
    pub(crate) fn open_for(&self, identity: &str) -> Result<StoreLease, FsError> {
        Ok(self.open()?.reading_as(identity))
    }

    /// The store on a thread that may block.
    ///
    /// # Errors
    /// As for [`lease`](Self::lease).
    pub fn open(&self) -> Result<StoreLease, FsError> {
        if let Some(lease) = self.opened()? {
            return Ok(lease);
        }
        let _turn = locked(&self.0.opening);
        // Another request may have opened it meanwhile.
        if let Some(lease) = self.opened()? {
            return Ok(lease);
        }
        let mut options = self.0.options.clone();
        options.db.begin_again |= self.0.begins_again.load(Ordering::Relaxed);
        match Store::open(&self.0.folder, options) {
            Ok(store) => self.take_open(store),
            Err(error) => {
                let problem = problem_of(&error);
                tracing::error!("{}: {}; {}", problem.code, problem.text, problem.hint);
                let since = Instant::now();
                self.change_state(ServiceState::Failed { error, since });
                Err(FsError::Unserved)
            }
        }
    }

    fn take_open(&self, store: Store) -> Result<StoreLease, FsError> {
        self.0.begins_again.store(false, Ordering::Relaxed);
        let lease = StoreLease::new(store.clone(), &self.0.leases);
        if !self.change_state(ServiceState::Open(store)) {
            // The node shuts down. The lease closes the store again, on this thread.
            return Err(FsError::Unserved);
        }
        self.start_keeper();
        self.0.opened.send_replace(true);
        Ok(lease)
    }

    /// Resolves when the store has been opened for the first time.
    pub(crate) async fn first_opening(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.opened.subscribe().wait_for(|opened| *opened).await;
    }

    /// The store if it is open, `None` if it is worth an attempt to open it.
    pub(crate) fn opened(&self) -> Result<Option<StoreLease>, FsError> {
        match &*self.state() {
            ServiceState::Open(store) => {
                let lease = StoreLease::new(store.clone(), &self.0.leases);
                Ok(Some(lease))
            }
            ServiceState::Unopened => Ok(None),
            // What the system refused may be possible by now. A damaged or newer file stays what it is.
            ServiceState::Failed {
                error: StoreOpenError::Unusable { .. },
                since,
            } if since.elapsed() >= OPEN_RETRY => Ok(None),
            ServiceState::Failed { .. } | ServiceState::Closed => Err(FsError::Unserved),
        }
    }

    /// Puts a repaired file of names in the place of a damaged one, or lets the next request begin again with an empty
    /// store. Blocks.
    ///
    /// # Errors
    /// The store is served, so that there is nothing to repair; or the repair fails, and everything is as before.
    pub fn repair(&self, begin_again: bool) -> Result<Option<StoreRepair>, FsError> {
        let _turn = locked(&self.0.opening);
        let is_damaged = matches!(
            &*self.state(),
            ServiceState::Failed {
                error: StoreOpenError::Damaged { .. },
                ..
            }
        );
        if !is_damaged {
            let text = "the file of names is not set aside as damaged; there is nothing to repair";
            return Err(CallError::new(ErrorCode::Conflict, text).into());
        }
        let repaired = if begin_again {
            self.0.begins_again.store(true, Ordering::Relaxed);
            None
        } else {
            let names = self.0.folder.join(NAMES);
            Some(repair_store(&names, &self.0.options.db).map_err(of_repair)?)
        };
        self.change_state(ServiceState::Unopened);
        Ok(repaired)
    }

    /// Ends the chores and the subscriptions, waits for the requests that use the store, and closes it. Later requests get
    /// `UNAVAILABLE`.
    pub async fn shutdown(&self) {
        self.0.closing.send_replace(true);
        let service = self.clone();
        let closed = tokio::task::spawn_blocking(move || service.close()).await;
        if let Err(error) = closed {
            tracing::error!("the store of files was not closed in order: {error}");
        }
    }

    fn close(&self) {
        self.0.stop.stop();
        let keeper_thread = locked(&self.0.keeper_thread).take();
        if keeper_thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the chores of the store of files ended with a panic");
        }
        let before = std::mem::replace(&mut *self.state(), ServiceState::Closed);
        self.0.leases.wait(CLOSE_WAIT);
        // The last clone, unless a request took too long: this closes the file of names.
        drop(before);
    }

    /// Subscriptions end when this says `true`.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.0.closing.subscribe()
    }

    /// Gives the service the peers from which it fetches contents. The first call counts; without one, no content is fetched.
    pub fn set_peers(&self, peers: Arc<dyn BlobPeers>) {
        self.0.peers.get_or_init(|| peers);
    }

    /// Lets a read wait this long for a content from peers, in place of [`FETCH_TIME`]. The first call counts.
    pub fn set_fetch_time(&self, time: Duration) {
        self.0.fetch_time.get_or_init(|| time);
    }

    pub(crate) fn fetch_time(&self) -> Duration {
        self.0.fetch_time.get().copied().unwrap_or(FETCH_TIME)
    }

    pub(crate) fn sync_records(&self) -> &SyncRecords {
        &self.0.sync_records
    }

    pub(crate) fn peers(&self) -> Option<Arc<dyn BlobPeers>> {
        self.0.peers.get().map(Arc::clone)
    }

    pub(crate) fn fetches(&self) -> &Arc<BlobFetches> {
        &self.0.fetches
    }

    pub(crate) fn watches(&self) -> &Arc<WatchCount> {
        &self.0.watches
    }

    /// The turn of a step of a collection. Blocks while another step is under way.
    pub(crate) fn collecting(&self) -> MutexGuard<'_, ()> {
        locked(&self.0.collecting)
    }

    /// Notes whether the daily copies are old.
    pub(crate) fn note_copies(&self, lacks_copy: bool) {
        self.0.lacks_copy.store(lacks_copy, Ordering::Relaxed);
    }

    /// Lets the thread of the chores never start: a test does them itself.
    #[cfg(test)]
    pub(crate) fn stop_keeper(&self) {
        self.0.stop.stop();
    }

    /// The folder of the store.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    pub(crate) const fn of_inner(inner: Arc<ServiceInner>) -> Self {
        Self(inner)
    }

    /// Starts the thread of the chores, once.
    fn start_keeper(&self) {
        let mut keeper_thread = locked(&self.0.keeper_thread);
        if keeper_thread.is_some() || self.0.stop.is_stopped() {
            return;
        }
        match chores::start(Arc::downgrade(&self.0), Arc::clone(&self.0.stop)) {
            Ok(started) => *keeper_thread = Some(started),
            Err(error) => tracing::error!("the chores of the store of files do not run: {error}"),
        }
    }

    /// Sets the state, and returns whether it was set: a closed service stays closed.
    fn change_state(&self, state: ServiceState) -> bool {
        let mut current = self.state();
        if matches!(*current, ServiceState::Closed) {
            return false;
        }
        let before = std::mem::replace(&mut *current, state);
        drop(current);
        drop(before);
        true
    }

    fn state(&self) -> MutexGuard<'_, ServiceState> {
        locked(&self.0.state)
    }
}

impl Drop for ServiceInner {
    fn drop(&mut self) {
        // Not joined: the thread itself may drop the last clone.
        self.stop.stop();
    }
}

impl fmt::Debug for ServiceInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceInner")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Runs work that blocks on the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FsError> + Send + 'static,
) -> Result<T, FsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(StoreError::Panicked(error.to_string()).into()),
    }
}

/// What is behind these locks is replaced as a whole, so that a panic leaves nothing half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn problem_of(error: &StoreOpenError) -> FsProblem {
    let text = format!("files are not served: {error}");
    match error {
        StoreOpenError::Damaged { .. } => FsProblem {
            code: "files-damaged",
            text,
            hint: "call fs/repair, which takes the newest good copy and the events after it; contents are whole; \
                   everything else is served",
        },
        StoreOpenError::Newer { .. } => FsProblem {
            code: "files-newer",
            text,
            hint: "run the newer version of alknet again, which wrote the file; everything else is served",
        },
        _ => FsProblem {
            code: "files-unusable",
            text,
            hint: "correct what the text names; the next request tries again; everything else is served",
        },
    }
}

/// The problem of contents that proved damaged or lost. It names no files: who may read the problems need not have a right
/// in their buckets.
fn damaged_contents(count: u64) -> FsProblem {
    let contents = match count {
        1 => "1 content of files is".to_owned(),
        DAMAGED_CONTENTS_COUNTED_MAX.. => format!("{count} contents of files or more are"),
        _ => format!("{count} contents of files are"),
    };
    FsProblem {
        code: "files-content-damaged",
        text: format!("{contents} damaged or lost on the disk; reads of them fail"),
        hint: "check the disk; store the files again, or read them where their bucket is synchronised, which fetches them \
               from a peer; alknet fs verify and the events blob.bad of fs/watch name them; the problem ends with the last \
               one that is whole again, or deleted and collected",
    }
}

fn of_repair(error: StoreRepairError) -> FsError {
    // In the log with its paths; the caller gets what it can do.
    tracing::error!("the file of names was not repaired: {error}");
    match error {
        StoreRepairError::NotDamaged => {
            let text = "there is no damaged file of names";
            CallError::new(ErrorCode::Conflict, text).into()
        }
        StoreRepairError::NoCopy { rejected } => FsError::NoCopy {
            rejected: rejected.len(),
        },
        StoreRepairError::Store(error) => error.into(),
        _ => FsError::Unserved,
    }
}
