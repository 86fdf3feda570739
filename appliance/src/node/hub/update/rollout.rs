//! The update of a hub's workers, ring after ring.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_core::PeerId;
use futures_util::{StreamExt, stream};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::bundle::{HubBundle, HubBundleError};
use super::worker::{WorkerCaller, WorkerUpdate};

/// The rings that a rollout has unless it is asked for others: one worker, five, and all others.
const RINGS: [RingSize; 3] = [RingSize::Workers(1), RingSize::Workers(5), RingSize::All];
/// The word for all workers that are left.
const ALL: &str = "all";
/// Workers at once unless others are asked for.
const AT_ONCE: usize = 4;
/// Most rings.
pub(super) const RINGS_MAX: usize = 16;
/// Most workers at once.
pub(super) const AT_ONCE_MAX: usize = 64;
/// How long a worker may take from its start until it is confirmed, unless another time is asked for, in seconds.
pub(super) const LIMIT_S: u64 = 900;
/// The longest such time.
pub(super) const LIMIT_S_MAX: u64 = 86_400;
/// The file of the last rollout.
const ROLLOUT_FILE: &str = "rollout.json";

/// How many workers a ring has: a number in JSON, or the word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingSize {
    /// This many of the workers that are left.
    Workers(usize),
    /// All that are left.
    All,
}

impl Serialize for RingSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Workers(size) => size.serialize(serializer),
            Self::All => serializer.serialize_str(ALL),
        }
    }
}

impl<'de> Deserialize<'de> for RingSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match (size, value.as_str()) {
            (Some(size), _) if size > 0 => Ok(Self::Workers(size)),
            (_, Some(ALL)) => Ok(Self::All),
            _ => Err(D::Error::custom(
                "a ring is a number of workers, or \"all\"",
            )),
        }
    }
}

/// How a rollout goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RolloutPlan {
    pub(super) rings: Vec<RingSize>,
    pub(super) at_once: usize,
    /// How long a worker may take until it is confirmed.
    pub(super) limit: Duration,
    /// How often the hub asks a worker that restarts.
    pub(super) poll: Duration,
}

impl Default for RolloutPlan {
    fn default() -> Self {
        Self {
            rings: RINGS.to_vec(),
            at_once: AT_ONCE,
            limit: Duration::from_secs(LIMIT_S),
            poll: Duration::from_secs(5),
        }
    }
}

/// What became of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RolloutTurn {
    /// Its turn has not come, and does not come after a failure.
    Waits,
    /// It gets the bundle.
    Sending,
    /// It starts the version, and has to prove it.
    Starting,
    /// It runs the version, and has confirmed it.
    Confirmed,
    /// The version is staged, and its start needs a person at the machine.
    WaitsForPerson,
    /// The version is staged, and the worker lets its hub start one only at another time of day.
    WaitsForWindow,
    /// It does not want the bundle: it runs the version already, or does not let its hub offer updates.
    Skipped,
    /// It did not come back confirmed, or refused the bundle.
    Failed,
}

/// A worker in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WorkerRow {
    pub(super) peer: PeerId,
    /// Counted from 1.
    pub(super) ring: usize,
    pub(super) state: RolloutTurn,
    /// Why it failed or was skipped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
}

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RolloutState {
    Running,
    /// Every worker had its turn, and none failed.
    Done,
    /// A worker failed; those whose turn had not come are left alone.
    Failed,
    /// An administrator stopped it.
    Stopped,
    /// The hub restarted meanwhile. It does not go on by itself.
    Interrupted,
}

/// A rollout, as its file and `hub/update_status` have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RolloutReport {
    pub(super) version: String,
    pub(super) by: String,
    pub(super) state: RolloutState,
    pub(super) workers: Vec<WorkerRow>,
}

/// Why a rollout does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RolloutError {
    /// The hub has no bundle.
    NoBundle,
    NoWorkers,
    /// The caller agreed to the start of another bundle.
    OtherBundle,
    /// The last piece of another bundle has come, or the bundle is being removed.
    Replacing,
    Running,
}

impl fmt::Display for RolloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBundle => "the hub has no bundle: send one first",
            Self::NoWorkers => {
                "no worker that is connected lets this hub offer updates: write update = true into its [[join]]"
            }
            Self::OtherBundle => {
                "another bundle took the place of the one that was to start: 'hub/update_status' shows which"
            }
            Self::Replacing => "the bundle is being replaced or removed: try again in a while",
            Self::Running => "workers are being updated: 'hub/update_status' shows how far it is",
        })
    }
}

impl From<RolloutError> for CallError {
    fn from(error: RolloutError) -> Self {
        let code = match error {
            RolloutError::NoWorkers => ErrorCode::NotFound,
            _ => ErrorCode::Conflict,
        };
        Self::new(code, error.to_string())
    }
}

/// The right to replace the bundle. No rollout begins until it is dropped.
pub(super) struct BundleClaim(Rollouts);

impl Drop for BundleClaim {
    fn drop(&mut self) {
        self.0.0.claims.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The last rollout of a hub. Clones share it.
#[derive(Clone)]
pub(super) struct Rollouts(Arc<RolloutsInner>);

struct RolloutsInner {
    file: PathBuf,
    report: Mutex<Option<RolloutReport>>,
    /// How many [`BundleClaim`]s there are. It rises only while `report` is locked.
    claims: AtomicUsize,
    stop: AtomicBool,
}

impl Rollouts {
    /// The last rollout, by its file. One that ran when the hub ended is shown as interrupted.
    pub(super) fn open(folder: &Path) -> Self {
        let file = folder.join(ROLLOUT_FILE);
        let mut report = read_report(&file).unwrap_or_else(|error| {
            tracing::warn!(%error, "the state of the last update of workers cannot be read");
            None
        });
        if let Some(report) = &mut report
            && report.state == RolloutState::Running
        {
            report.state = RolloutState::Interrupted;
        }
        Self(Arc::new(RolloutsInner {
            file,
            report: Mutex::new(report),
            claims: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }))
    }

    /// The last rollout.
    pub(super) fn report(&self) -> Option<RolloutReport> {
        self.lock().clone()
    }

    pub(super) fn is_running(&self) -> bool {
        is_running(self.lock().as_ref())
    }

    /// Keeps rollouts from beginning while the bundle is replaced.
    ///
    /// # Errors
    /// `InUse`: one has begun, and reads the bundle.
    pub(super) fn claim_bundle(&self) -> Result<BundleClaim, HubBundleError> {
        // The check and the claim are under the lock of `begin`, so that of both only one succeeds.
        let report = self.lock();
        if is_running(report.as_ref()) {
            return Err(HubBundleError::InUse);
        }
        self.0.claims.fetch_add(1, Ordering::SeqCst);
        Ok(BundleClaim(self.clone()))
    }

    /// No further worker begins. Those that have begun go on.
    pub(super) fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }

    /// Begins a rollout to these workers, in this order. `choose` returns the bundle, and is called once no other one can
    /// take its place any more. The future that is returned does the rest.
    pub(super) fn begin(
        &self,
        (choose, path): (&dyn Fn() -> Result<HubBundle, RolloutError>, PathBuf),
        workers: Vec<PeerId>,
        (plan, by): (RolloutPlan, String),
        calls: Arc<dyn WorkerCaller>,
    ) -> Result<impl Future<Output = ()> + Send + use<>, RolloutError> {
        if workers.is_empty() {
            return Err(RolloutError::NoWorkers);
        }
        let rows = in_rings(workers, &plan.rings);
        let bundle = {
            // The check and the entry are under one lock, so that of two calls at a time only one begins.
            let mut report = self.lock();
            if is_running(report.as_ref()) {
                return Err(RolloutError::Running);
            }
            if self.0.claims.load(Ordering::SeqCst) > 0 {
                return Err(RolloutError::Replacing);
            }
            // A claim has to wait for the lock, and is refused then.
            let bundle = choose()?;
            *report = Some(RolloutReport {
                version: bundle.version.clone(),
                by,
                state: RolloutState::Running,
                workers: rows.clone(),
            });
            self.0.stop.store(false, Ordering::Relaxed);
            bundle
        };
        self.save();
        let update = WorkerUpdate {
            calls,
            bundle,
            path,
            limit: plan.limit,
            poll: plan.poll,
        };
        Ok(self.clone().run(rows, plan.at_once, update))
    }

    async fn run(self, rows: Vec<WorkerRow>, at_once: usize, update: WorkerUpdate) {
        let mut rings: BTreeMap<usize, Vec<PeerId>> = BTreeMap::new();
        for row in rows {
            rings.entry(row.ring).or_default().push(row.peer);
        }
        for workers in rings.into_values() {
            // A worker whose turn comes after a failure does not begin; those that have begun go on to their end.
            let turns = stream::iter(workers).map(|worker| {
                let (rollouts, update) = (self.clone(), update.clone());
                async move {
                    if rollouts.may_begin() {
                        rollouts.turn(&worker, &update).await;
                    }
                }
            });
            turns
                // With 0 the stream would take no worker, and never end.
                .buffer_unordered(at_once.max(1))
                .for_each(async |()| ())
                .await;
        }
        let is_stopped = self.0.stop.load(Ordering::Relaxed);
        let mut report = self.lock();
        if let Some(report) = report.as_mut() {
            let has = |state| report.workers.iter().any(|row| row.state == state);
            // A stop that came when every worker had begun has stopped nothing.
            report.state = match (
                has(RolloutTurn::Failed),
                has(RolloutTurn::Waits) && is_stopped,
            ) {
                (true, _) => RolloutState::Failed,
                (false, true) => RolloutState::Stopped,
                (false, false) => RolloutState::Done,
            };
            tracing::info!(version = report.version, state = ?report.state, "hub.update");
        }
        drop(report);
        self.save();
    }

    async fn turn(&self, worker: &PeerId, update: &WorkerUpdate) {
        let note = |state| self.note(worker, state, "");
        let (state, reason) = update.run(worker, note).await;
        if state == RolloutTurn::Failed {
            tracing::warn!(%worker, reason, "hub.update failed");
        }
        self.note(worker, state, &reason);
    }

    fn may_begin(&self) -> bool {
        if self.0.stop.load(Ordering::Relaxed) {
            return false;
        }
        let report = self.lock();
        let mut rows = report.iter().flat_map(|report| &report.workers);
        !rows.any(|row| row.state == RolloutTurn::Failed)
    }

    fn note(&self, worker: &PeerId, state: RolloutTurn, reason: &str) {
        let mut report = self.lock();
        let mut rows = report.iter_mut().flat_map(|report| &mut report.workers);
        if let Some(row) = rows.find(|row| row.peer == *worker) {
            row.state = state;
            reason.clone_into(&mut row.reason);
        }
        drop(report);
        self.save();
    }

    /// Writes the file. The rollout does not depend on it: after a restart the hub would not know that it was
    /// interrupted.
    fn save(&self) {
        let Some(report) = self.report() else { return };
        let written = serde_json::to_vec(&report)
            .map_err(io::Error::other)
            .and_then(|text| alknet_durable::replace(&self.0.file, &text, 0o600));
        if let Err(error) = written {
            tracing::warn!(%error, "the state of an update of workers cannot be kept");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<RolloutReport>> {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_running(report: Option<&RolloutReport>) -> bool {
    report.is_some_and(|report| report.state == RolloutState::Running)
}

/// What the file of a rollout says. `None` if there was no rollout.
pub(super) fn read_report(file: &Path) -> io::Result<Option<RolloutReport>> {
    match fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The workers with their rings. Workers beyond the last ring make one of their own.
fn in_rings(workers: Vec<PeerId>, sizes: &[RingSize]) -> Vec<WorkerRow> {
    let mut left = workers.into_iter();
    let mut rows = Vec::new();
    for (index, size) in sizes.iter().chain([&RingSize::All]).enumerate() {
        let size = match size {
            RingSize::Workers(size) => *size,
            RingSize::All => usize::MAX,
        };
        rows.extend(left.by_ref().take(size).map(|peer| WorkerRow {
            peer,
            ring: index + 1,
            state: RolloutTurn::Waits,
            reason: String::new(),
        }));
    }
    rows
}
