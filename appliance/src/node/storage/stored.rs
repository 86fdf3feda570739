//! The check of the stored files that have a hash, which are those of the tensor store.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_init::control::MachineDiagnostic;
use alknet_tensor::FileId;
use alknet_tensor_serve::{StoreScrubReport, StoredFileScrub, TensorStore};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::node::log;

/// When the files are read for the first time after the node's start, and how often from then on. Each time begins later by
/// a random part of a quarter of it.
const FIRST_AFTER: Duration = Duration::from_secs(1_800);
const EVERY: Duration = Duration::from_secs(7 * 86_400);
const JITTER_PART: u32 = 4;
/// Bytes of a piece, and the pause behind it: they bound how much a check takes of the disk and of the processor.
const PIECE_BYTES: u64 = 4 << 20;
const PIECE_PAUSE: Duration = Duration::from_secs(1);
/// The pause if a person has asked for the check.
const PIECE_PAUSE_ASKED: Duration = Duration::from_millis(100);
/// Damaged files that the problem names.
const NAMED_MAX: usize = 4;

/// The check of the stored files.
pub(super) struct StoredFilesCheck {
    /// `None` if the store cannot be opened.
    store: Option<Arc<TensorStore>>,
    state: Mutex<StoredCheckState>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct StoredCheckState {
    /// What the check under way has found so far.
    running: Option<StoreScrubReport>,
    /// What the last one found.
    last: StoreScrubReport,
    /// When that one ended.
    checked: Option<String>,
    /// Why the store could not be read.
    failed: Option<String>,
}

impl StoredFilesCheck {
    pub(super) fn new(store: Option<Arc<TensorStore>>) -> Self {
        Self {
            store,
            state: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// Begins a check, unless one is under way.
    pub(super) fn check_now(&self) {
        let mut state = self.lock();
        // The report is set here already, so that a caller who asks for the state at once sees a check under way.
        if self.store.is_some() && state.running.is_none() {
            state.running = Some(StoreScrubReport::default());
            self.wanted.notify_one();
        }
    }

    /// Checks the files again and again.
    pub(super) async fn keep_checked(&self) {
        let Some(store) = &self.store else {
            return;
        };
        let mut pause = FIRST_AFTER;
        loop {
            let due = Instant::now() + delayed(pause);
            let is_asked = tokio::select! {
                () = tokio::time::sleep_until(due) => false,
                () = self.wanted.notified() => true,
            };
            let pause_ms = match is_asked {
                true => PIECE_PAUSE_ASKED,
                false => PIECE_PAUSE,
            };
            self.check(store, PIECE_BYTES, pause_ms).await;
            pause = EVERY;
        }
    }

    /// Reads all files once.
    pub(super) async fn check(&self, store: &Arc<TensorStore>, bytes: u64, pause: Duration) {
        let mut scrub = StoredFileScrub::default();
        self.lock().running = Some(StoreScrubReport::default());
        let ended = loop {
            let store = Arc::clone(store);
            let work = tokio::task::spawn_blocking(move || {
                let more = store.scrub(&mut scrub, bytes);
                (scrub, more)
            });
            let more;
            (scrub, more) = match work.await {
                Ok(done) => done,
                Err(error) => break Err(io::Error::other(error)),
            };
            self.lock().running = Some(scrub.report().clone());
            match more {
                Ok(true) => tokio::time::sleep(pause).await,
                Ok(false) => break Ok(scrub.report().clone()),
                Err(error) => break Err(error),
            }
        };
        self.end(ended);
    }

    fn end(&self, ended: io::Result<StoreScrubReport>) {
        let mut state = self.lock();
        state.running = None;
        state.checked = log::now();
        match ended {
            Ok(report) => {
                tracing::info!(
                    files = report.files,
                    damaged = report.damaged_files,
                    "the stored files were checked"
                );
                state.last = report;
                state.failed = None;
            }
            Err(error) => {
                tracing::warn!(%error, "the stored files are not checked");
                state.failed = Some(error.to_string());
            }
        }
    }

    /// The check under way, else the last one.
    pub(super) fn shown(&self) -> Value {
        let state = self.lock();
        let report = state.running.as_ref().unwrap_or(&state.last);
        let damaged: Vec<_> = report.damaged.iter().map(ToString::to_string).collect();
        json!({
            "running": state.running.is_some(),
            "files": report.files,
            "bytes": report.bytes,
            "damaged": damaged,
            "damaged_files": report.damaged_files,
            "checked": state.checked,
            "failed": state.failed,
        })
    }

    /// The problem that stored files are damaged. It stays while the next check has found less, and ends with that check.
    pub(super) fn problem(&self) -> Option<MachineDiagnostic> {
        let state = self.lock();
        let running = state.running.as_ref();
        let report = running.filter(|it| it.damaged_files > state.last.damaged_files);
        let report = report.unwrap_or(&state.last);
        if report.damaged_files == 0 {
            return None;
        }
        let paths = self.store.as_ref().map(|store| store.paths());
        let paths = paths.unwrap_or_default();
        let name = |id: &FileId| {
            let mut leading = paths.iter().filter(|(_, to)| to == id);
            let path = leading.next().map(|(path, _)| path.as_str().to_owned());
            path.unwrap_or_else(|| id.to_string())
        };
        let names: Vec<_> = report.damaged.iter().take(NAMED_MAX).map(name).collect();
        let more = match report.damaged_files.saturating_sub(names.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(MachineDiagnostic {
            code: "stored-damaged".to_owned(),
            text: format!(
                "the disk has other bytes of stored files than were stored: {}{more}",
                names.join(", ")
            ),
            hint: "remove them, or store them again by 'alknet tensor push', and run 'alknet disk check'; if it happens again, \
                   replace the disk"
                .to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, StoredCheckState> {
        // The values are replaced as a whole, so they are whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time later than this one by a random part. Nodes that start together do not check together.
fn delayed(after: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without a random byte the nodes check together, which only costs time.
    let part = getrandom::fill(&mut byte).map_or(0, |()| u32::from(byte[0]));
    after + after / JITTER_PART * part / 256
}
