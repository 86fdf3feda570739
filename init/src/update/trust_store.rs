//! What the machine trusts and has seen of update metadata: a file on the data partition, or memory on a machine without
//! one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_update::{ReleaseVersion, UpdateError, UpdateTrust};

use super::anchor::UpdateAnchor;
use super::refusal::UpdateRefusal;

/// Name of the file in the folder of updates.
const FILE: &str = "trust.json";

/// Where the trust is kept.
#[derive(Clone, Debug)]
pub(crate) struct TrustStore {
    /// `None` on a machine that keeps nothing.
    path: Option<PathBuf>,
    /// What a machine that keeps nothing has seen since its start.
    memory: Arc<Mutex<Option<UpdateTrust>>>,
}

impl TrustStore {
    /// The store in a folder, or in memory.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self {
            path: folder.map(|folder| folder.join(FILE)),
            memory: Arc::default(),
        }
    }

    /// Whether a restart forgets it.
    pub(super) fn is_volatile(&self) -> bool {
        self.path.is_none()
    }

    pub(super) fn load(&self, anchor: &UpdateAnchor) -> Result<UpdateTrust, UpdateRefusal> {
        let anchor = anchor.trust()?;
        match &self.path {
            Some(path) => Ok(UpdateTrust::load(path, anchor)?),
            None => {
                let known = self.memory().clone();
                Ok(known.unwrap_or_else(|| UpdateTrust::new(anchor)))
            }
        }
    }

    /// Keeps the trust after a verification, also a failed one.
    pub(super) fn save(&self, trust: &UpdateTrust) -> Result<(), UpdateError> {
        match &self.path {
            Some(path) => trust.save(path),
            None => {
                *self.memory() = Some(trust.clone());
                Ok(())
            }
        }
    }

    /// The oldest version that may run. `None` as well if nothing is trusted.
    pub(super) fn floor(&self, anchor: &UpdateAnchor) -> Option<ReleaseVersion> {
        self.load(anchor).ok()?.floor().cloned()
    }

    fn memory(&self) -> MutexGuard<'_, Option<UpdateTrust>> {
        // The value is replaced as a whole, so it is whole after any panic.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
