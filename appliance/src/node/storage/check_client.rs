//! Requests to PID 1 for a check of the machine's storage.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_init::control::{InitMessage, MachineDiagnostic, StorageFacts};
use tokio::sync::{mpsc, oneshot};

/// How long a request waits for PID 1, ms: it reads both programs from a disk that may be slow.
pub(super) const ANSWER_TIMEOUT_MS: u32 = 600_000;

/// What PID 1 found.
type CheckedStorage = (StorageFacts, Vec<MachineDiagnostic>);

/// The requests that wait for an answer.
#[derive(Default)]
struct WaitingChecks {
    last: u64,
    open: HashMap<u64, oneshot::Sender<CheckedStorage>>,
}

/// The way to PID 1.
pub(super) struct StorageCheckClient {
    /// `None` on an ordinary host.
    to_init: Option<mpsc::Sender<InitMessage>>,
    waiting: Mutex<WaitingChecks>,
}

impl StorageCheckClient {
    pub(super) fn new(to_init: Option<mpsc::Sender<InitMessage>>) -> Self {
        Self {
            to_init,
            waiting: Mutex::default(),
        }
    }

    /// Hands an answer of PID 1 to the request of this number.
    pub(super) fn checked(&self, n: u64, found: CheckedStorage) {
        // A request whose caller went away is not there any more.
        if let Some(request) = self.lock().open.remove(&n) {
            request.send(found).ok();
        }
    }

    /// Has PID 1 check the storage, and waits for what it finds. An ordinary host looks after its disks itself, so there
    /// is nothing to find.
    pub(super) async fn ask(&self, by: &str) -> Result<CheckedStorage, CallError> {
        let Some(to_init) = &self.to_init else {
            return Ok(CheckedStorage::default());
        };
        let (sender, answer) = oneshot::channel();
        let n = {
            let mut waiting = self.lock();
            waiting.open.retain(|_, sender| !sender.is_closed());
            waiting.last += 1;
            let n = waiting.last;
            waiting.open.insert(n, sender);
            n
        };
        let by = by.to_owned();
        let sent = to_init.send(InitMessage::CheckStorage { n, by }).await;
        sent.map_err(|_| no_answer("does not listen"))?;
        let timeout = Duration::from_millis(ANSWER_TIMEOUT_MS.into());
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) => Err(no_answer("gave no answer")),
            Err(_) => Err(no_answer("did not answer in time")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, WaitingChecks> {
        // The table is whole after any panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_answer(what: &str) -> CallError {
    CallError::new(
        ErrorCode::Unavailable,
        format!("PID 1 of this machine {what}"),
    )
}
