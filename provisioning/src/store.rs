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
/// The one before it.
pub(crate) const LAST_GOOD: &str = "config.last-good.toml";
/// The document last taken from a medium, to know one that is still in place.
pub(crate) const APPLIED: &str = "provisioned.toml";
/// A copy of that, once the credentials that came with it were looked at.
const SETTLED: &str = "provisioned-credentials.toml";

pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
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
        self.put(APPLIED, document)
    }

    /// Puts a correct document in place; the live one, if correct, becomes the last good.
    pub(crate) fn keep(&self, document: &[u8]) -> Result<(), ProvisioningError> {
        self.create_dir()?;
        let live = self.read(LIVE).ok().flatten();
        // Already in place when the power was cut between the last two steps.
        if live.as_deref() != Some(document) {
            let correct = live.filter(|live| NodeConfig::parse(live).is_ok());
            if let Some(correct) = correct {
                self.put(LAST_GOOD, &correct)?;
            }
            self.put(LIVE, document)?;
        }
        Ok(())
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
