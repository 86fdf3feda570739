//! What the machine trusts and has seen of update metadata: a file on the data partition, or memory on a machine without
//! one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_update::{ReleaseVersion, UpdateError, UpdateTrust};

use super::anchor::UpdateAnchor;
use super::refusal::{RefusalCode, UpdateRefusal};

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

    /// The oldest version that may run, whatever keys count now. A file that cannot be read may forbid any version, so it
    /// is an error.
    pub(super) fn floor(&self) -> Result<Option<ReleaseVersion>, UpdateRefusal> {
        match &self.path {
            Some(path) => UpdateTrust::read_floor(path).map_err(|error| {
                let text = format_args!(
                    "{error}; the oldest version that may run is in this file, so no version goes on trial without it"
                );
                UpdateRefusal::new(RefusalCode::TrustDamaged, text)
            }),
            None => Ok(self.memory().as_ref().and_then(|trust| trust.floor().cloned())),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Option<UpdateTrust>> {
        // The value is replaced as a whole, so it is whole after any panic.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
