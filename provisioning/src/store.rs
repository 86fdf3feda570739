//! The configuration on the data partition. Every change is made of whole files put in place by
//! rename, in an order in which a power cut at any point leaves a correct configuration.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use alknet_core::config::{CONFIG_BYTES_MAX, NodeConfig};

use crate::{ProvisioningError, file};

/// The live configuration.
pub(crate) const LIVE: &str = "config.toml";
/// A copy of it, for a start that finds the live one damaged. It is never an earlier document: damage to a block of a
/// sealed disk, which takes no key, would bring back what the last change took away.
pub(crate) const LAST_GOOD: &str = "config.last-good.toml";
/// The document last taken from a medium, to know one that is still in place.
pub(crate) const APPLIED: &str = "provisioned.toml";
/// A copy of that, once the credentials that came with it were looked at.
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

    /// The document last taken from a medium. One that cannot be read counts as none: the medium
    /// is then taken again.
    pub(crate) fn last_applied(&self) -> Option<Vec<u8>> {
        self.read(APPLIED).ok().flatten()
    }

    /// Puts a document from a medium in place.
    pub(crate) fn apply(&self, document: &[u8]) -> Result<(), ProvisioningError> {
        self.keep(document)?;
        // Last: a start that finds the power gone in between takes the same document once more.
        self.put(APPLIED, document)
    }

    /// Puts a correct document in place, and then its copy.
    pub(crate) fn keep(&self, document: &[u8]) -> Result<(), ProvisioningError> {
        self.create_dir()?;
        [LIVE, LAST_GOOD]
            .into_iter()
            .try_for_each(|name| self.put_other(name, document))
    }

    /// Makes the copy say what the live document says, which was found correct: the power may have been cut between
    /// the two, or a program that kept the document before have written it.
    pub(crate) fn copy_live(&self) -> Result<(), ProvisioningError> {
        match self.read(LIVE)? {
            Some(live) => self.put_other(LAST_GOOD, &live),
            None => Ok(()),
        }
    }

    /// Puts a document in place where another one is.
    fn put_other(&self, name: &str, document: &[u8]) -> Result<(), ProvisioningError> {
        let found = self.read(name).ok().flatten();
        if found.as_deref() == Some(document) {
            // The same bytes are not written again: flash wears, and a write can be cut short.
            return Ok(());
        }
        self.put(name, document)
    }

    /// Whether the live document is correct.
    pub(crate) fn has_correct(&self) -> bool {
        let live = self.read(LIVE).ok().flatten();
        live.is_some_and(|live| NodeConfig::parse(&live).is_ok())
    }

    /// Whether that document is the live one.
    pub(crate) fn is_live(&self, document: &[u8]) -> bool {
        let live = self.read(LIVE).ok().flatten();
        live.is_some_and(|live| live == document)
    }

    /// Whether nothing that came with the document last taken from a medium is still to be looked at.
    /// Where none was taken nothing is.
    pub(crate) fn is_settled(&self) -> bool {
        let Some(applied) = self.last_applied() else {
            return true;
        };
        let settled = self.read(SETTLED).ok().flatten();
        settled.is_some_and(|settled| settled == applied)
    }

    /// Notes that everything was looked at.
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
