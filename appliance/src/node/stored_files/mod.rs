//! Files that the configuration names and that an administrator stores by operations: static sites,
//! certificates with their keys, certificates of authorities, OpenAPI documents. A sealed appliance
//! gets them in no other way.
//!
//! `docs/stored-files.md` is the page for administrators.

mod error;
mod ops;
mod quota;
mod site;
mod store;
mod uploads;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alknet_call::RegistryBuilder;
use alknet_core::config::{ConfigWarning, NodeConfig, StoredFileName};
use alknet_init::control::{MachineDiagnostic, MachineFacts};

use super::reload::Reloader;
use error::FileStoreError;
use store::FileStore;
use uploads::{FileUploads, UPLOAD_IDLE};

/// Folder of the store, below the node's state directory.
const FOLDER: &str = "state/files";
/// Data mode of a machine that loses its data at a restart.
const VOLATILE: &str = "volatile";
/// Code of the problem that the store cannot be opened.
const FILES_UNUSABLE: &str = "stored-files-unusable";
/// Code of the problem that the configuration names a file that is not stored.
const FILE_MISSING: &str = "stored-file-missing";

/// The stored files of a node. Clones share them.
#[derive(Clone)]
pub(crate) struct StoredFiles(Arc<StoredFilesParts>);

struct StoredFilesParts {
    /// The store, or why it cannot be opened.
    store: Result<FileStore, String>,
    /// Folder of the store, even if it cannot be opened.
    folder: PathBuf,
    uploads: Arc<FileUploads>,
    /// The files that the running node was started with, and uses until its next start.
    started: Vec<(String, StoredFileName)>,
    /// Whether the files survive the next start of the machine.
    are_kept: bool,
}

impl StoredFiles {
    /// Opens the store of the node with this state directory. A node that cannot open it serves
    /// everything else.
    pub(crate) fn open(state_dir: &Path, config: &NodeConfig, facts: &MachineFacts) -> Self {
        let folder = state_dir.join(FOLDER);
        let store = FileStore::open(folder.clone());
        let store = store.map_err(|error| format!("{}: {error}", folder.display()));
        if let Err(error) = &store {
            tracing::warn!("{FILES_UNUSABLE}: {error}");
        }
        Self(Arc::new(StoredFilesParts {
            store,
            folder,
            uploads: FileUploads::new(UPLOAD_IDLE),
            started: config.stored_files(),
            are_kept: facts.data.mode != VOLATILE,
        }))
    }

    /// Adds the operations to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder, reloader: &Arc<Reloader>) {
        builder.add(ops::store(self, reloader));
        builder.add(ops::list(self, reloader));
        builder.add(ops::remove(self, reloader));
    }

    /// The folder below which imports read documents by their names.
    pub(crate) fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// A copy of `config` that has the path of each stored file instead of its name, for parts that
    /// open paths.
    pub(crate) fn located(&self, config: &NodeConfig) -> NodeConfig {
        let mut located = config.clone();
        located.locate_stored_files(|name| {
            let path = self.0.folder.join(name.kind().name()).join(name.name());
            path.display().to_string()
        });
        located
    }

    /// The problems of an unusable store, or of files that `config` names and that are not stored.
    pub(crate) fn problems(&self, config: &NodeConfig) -> Vec<MachineDiagnostic> {
        if let Err(error) = &self.0.store {
            return vec![MachineDiagnostic {
                code: FILES_UNUSABLE.to_owned(),
                text: format!("no file can be stored: {error}"),
                hint: "correct what the text names and restart the node; everything else is served"
                    .to_owned(),
            }];
        }
        let missing = self.missing(config).into_iter();
        missing
            .map(|(key, name)| MachineDiagnostic {
                code: FILE_MISSING.to_owned(),
                text: format!("{key} names {name}, which is not stored here"),
                hint: format!("store it with 'alknet file add {name}', or change {key}"),
            })
            .collect()
    }

    /// Like `problems`, as warnings, for the administrator who sends `config`.
    pub(super) fn warnings(&self, config: &NodeConfig) -> Vec<ConfigWarning> {
        let missing = self.missing(config).into_iter();
        missing
            .map(|(key, name)| ConfigWarning {
                id: key,
                what: format!(
                    "{name} is not stored on this node; 'alknet file add {name}' stores it"
                ),
            })
            .collect()
    }

    fn missing(&self, config: &NodeConfig) -> Vec<(String, StoredFileName)> {
        let named = config.stored_files().into_iter();
        let is_missing = |name: &StoredFileName| match &self.0.store {
            Ok(store) => !store.has(name),
            Err(_) => true,
        };
        named.filter(|(_, name)| is_missing(name)).collect()
    }

    fn store(&self) -> Result<&FileStore, FileStoreError> {
        let store = self.0.store.as_ref();
        store.map_err(|why| FileStoreError::Unusable(why.clone()))
    }

    /// Keys that name a file, in the configuration in force and in the one that the node was
    /// started with.
    fn users(&self, name: &StoredFileName, current: &NodeConfig) -> FileUsers {
        let keys = |named: &[(String, StoredFileName)]| {
            let named = named.iter().filter(|(_, other)| other == name);
            named.map(|(key, _)| key.clone()).collect()
        };
        FileUsers {
            in_force: keys(&current.stored_files()),
            // The running process was started with the file, and may read it again.
            running: keys(&self.0.started),
        }
    }
}

/// Keys that name one file.
struct FileUsers {
    in_force: Vec<String>,
    running: Vec<String>,
}

impl FileUsers {
    /// Why the file has to stay, if a key names it.
    fn reason(&self) -> Option<String> {
        match (self.in_force.as_slice(), self.running.as_slice()) {
            ([], []) => None,
            ([], running) => Some(format!(
                "the running node was started with it as {}: restart the node first",
                running.join(", ")
            )),
            (in_force, _) => Some(format!(
                "the configuration names it as {}: take it out there first",
                in_force.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests;
