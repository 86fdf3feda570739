//! The configuration on the data partition. Every change replaces whole files by rename, in an
//! order that leaves a correct configuration after a power cut at any point.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use alknet_core::config::{CONFIG_BYTES_MAX, NodeConfig};

use crate::{ProvisioningError, file};

/// The live configuration.
pub(crate) const LIVE: &str = "config.toml";
/// A copy of the live configuration, for a start that finds that one damaged. It is never an older
/// document: otherwise an attacker without a key could damage a block of a sealed disk to undo the
/// last change.
pub(crate) const LAST_GOOD: &str = "config.last-good.toml";
/// The document last taken from a medium, to recognise it if the medium is still attached.
pub(crate) const APPLIED: &str = "provisioned.toml";
/// A copy of that document, written after its credentials were processed.
const SETTLED: &str = "provisioned-credentials.toml";

pub(crate) struct StoredConfig {
    dir: PathBuf,
}

impl StoredConfig {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ProvisioningError> {
        let read = file::read_bounded(&self.dir.join(name), CONFIG_BYTES_MAX)?;
        Ok(read.map(|bytes| bytes.to_vec()))
    }

    /// The document last taken from a medium. `None` if it cannot be read, and then the medium is
    /// taken again.
    pub(crate) fn last_applied(&self) -> Option<Vec<u8>> {
        self.read(APPLIED).ok().flatten()
    }

    /// Stores a document from a medium.
    pub(crate) fn apply(&self, document: &[u8]) -> Result<(), ProvisioningError> {
        self.store_document(document)?;
        // Written last: if the power was lost before, the next start takes the same document again.
        self.put(APPLIED, document)
    }

    /// Stores a correct document, and then its copy.
    pub(crate) fn store_document(&self, document: &[u8]) -> Result<(), ProvisioningError> {
        self.create_dir()?;
        [LIVE, LAST_GOOD]
            .into_iter()
            .try_for_each(|name| self.put_other(name, document))
    }

    /// Updates the copy to the live document, which was found correct. They may differ after a
    /// power cut between the two writes, or if an older program stored the previous document.
    pub(crate) fn copy_live(&self) -> Result<(), ProvisioningError> {
        match self.read(LIVE)? {
            Some(live) => self.put_other(LAST_GOOD, &live),
            None => Ok(()),
        }
    }

    /// Replaces a document, if it is different.
    fn put_other(&self, name: &str, document: &[u8]) -> Result<(), ProvisioningError> {
        let found = self.read(name).ok().flatten();
        if found.as_deref() == Some(document) {
            // The same bytes are not written again, because flash wears and a write can be
            // interrupted.
            return Ok(());
        }
        self.put(name, document)
    }

    /// Whether the live document is correct.
    pub(crate) fn has_correct(&self) -> bool {
        let live = self.read(LIVE).ok().flatten();
        live.is_some_and(|live| NodeConfig::parse(&live).is_ok())
    }

    /// Whether `document` is the live one.
    pub(crate) fn is_live(&self, document: &[u8]) -> bool {
        let live = self.read(LIVE).ok().flatten();
        live.is_some_and(|live| live == document)
    }

    /// Whether all credentials that came with the last medium's document were processed. True if no
    /// document was taken.
    pub(crate) fn is_settled(&self) -> bool {
        let Some(applied) = self.last_applied() else {
            return true;
        };
        let settled = self.read(SETTLED).ok().flatten();
        settled.is_some_and(|settled| settled == applied)
    }

    /// Records that they were processed.
    pub(crate) fn settle(&self) -> Result<(), ProvisioningError> {
        match self.last_applied() {
            Some(applied) if !self.is_settled() => self.put(SETTLED, &applied),
            _ => Ok(()),
        }
    }

    fn create_dir(&self) -> Result<(), ProvisioningError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        made.map_err(|source| self.failed(&self.dir, source))
    }

    fn put(&self, name: &str, content: &[u8]) -> Result<(), ProvisioningError> {
        let path = self.dir.join(name);
        file::replace(&path, content).map_err(|source| self.failed(&path, source))
    }

    fn failed(&self, path: &Path, source: io::Error) -> ProvisioningError {
        ProvisioningError::Write {
            path: path.to_owned(),
            source,
        }
    }
}
