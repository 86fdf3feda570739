//! Credentials of a node without a vault. `alknet credential` seals them in the state directory, and
//! `alknet serve` opens them there.
//!
//! The sealed values are in one file, and the key that seals them is in another one beside the key
//! of the node. The node's own key does not seal them, because the administrator can replace it
//! while the node runs, and its old key is then deleted.

mod file;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use alknet_core::EncryptedData;
use alknet_core::config::{NodeConfig, is_credential_name};
use alknet_tls::NodeKey;
use alknet_vault::{BlobLabel, RecordKey, SealedBlob, SecretBytes};

use crate::cli::CommandError;

use file::{SealedEntry, SealedFile};

/// Maximum length of a value in bytes: twice the longest that fits into a header, and enough for
/// any private key.
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 10;
/// Maximum number of credentials in a state directory, which is also that of a configuration.
const ENTRIES_MAX: usize = 256;
/// Folder of the sealed values below the state directory. It has no other files, so that each change
/// in it is a change of a credential.
const FOLDER: &str = "credentials";
/// File of the sealed values in that folder.
const SEALED_FILE: &str = "sealed.json";
/// Path of the sealing key, beside the key of the node.
const KEY_FILE: &str = "identity/credentials.key";
/// Purpose for which the sealing key is derived, so that the seed in the file serves as no other
/// key.
const PURPOSE: &str = "credentials";
/// Prefix of the labels of sealed values, as in a vault.
const KIND: &str = "cred";
/// Permission bits of both files.
const MODE: u32 = 0o600;
/// Permission bits of the folders that this module makes.
const FOLDER_MODE: u32 = 0o700;

/// The credentials folder of one state directory.
#[derive(Clone, Debug)]
pub(crate) struct CredentialFolder {
    state_dir: PathBuf,
}

/// Which file of sealed values is in place. Each change puts another file there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedFileVersion {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970, as the file system counts them.
    changed: (i64, i64),
}

/// Content of the folder. Each value stays sealed until a caller opens it.
pub(crate) struct LocalCredentials {
    sealed: SealedFile,
    /// `None` while there is no sealed value to open.
    key: Option<RecordKey>,
    path: PathBuf,
}

impl CredentialFolder {
    /// The credentials of this state directory.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
        }
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Path of the file whose change is a change of a credential. The file is missing until the
    /// first credential is set.
    pub(crate) fn file(&self) -> PathBuf {
        self.state_dir.join(FOLDER).join(SEALED_FILE)
    }

    /// Which file is in place; `None` without one, and for one that cannot be looked at.
    pub(crate) fn version(&self) -> Option<SealedFileVersion> {
        let found = std::fs::metadata(self.file()).ok()?;
        Some(SealedFileVersion {
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Makes the folder of that file if it is missing. Only its owner may read it.
    ///
    /// # Errors
    /// The errors of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make_private(&self.state_dir.join(FOLDER))
    }

    /// Reads the folder. A missing file counts as an empty one.
    ///
    /// # Errors
    /// A file cannot be read, belongs to another user, may be read by others, is damaged, has a
    /// newer format, or is sealed under another key. The message names the file.
    pub(crate) fn read(&self) -> Result<LocalCredentials, CommandError> {
        let path = self.file();
        let sealed = file::read(&path)?.unwrap_or_default();
        let key = match sealed.entries.is_empty() {
            true => None,
            false => Some(self.key_of(&sealed, &path)?),
        };
        Ok(LocalCredentials { sealed, key, path })
    }

    /// Seals a value and stores it durably, in place of the value before it. Returns whether there
    /// was one.
    ///
    /// # Errors
    /// The name or the value is outside its limits, the folder has the maximum number of
    /// credentials, a file cannot be written, and those of [`read`](Self::read). No message repeats
    /// the value.
    pub(crate) fn set(&self, name: &str, value: &[u8], now_s: u64) -> Result<bool, CommandError> {
        check_name(name)?;
        check_value(value)?;
        let _lock = self.lock()?;
        let mut found = self.read()?;
        let is_new = !found.sealed.entries.contains_key(name);
        if is_new && found.sealed.entries.len() >= ENTRIES_MAX {
            return Err(CommandError::usage(format!(
                "{} has {ENTRIES_MAX} credentials already: remove one",
                found.path.display()
            )));
        }
        let key = match found.key.take() {
            Some(key) => key,
            None => self.first_key()?,
        };
        let sealed = key.seal(&label(name, now_s)?, value);
        let record = record_of(&sealed.map_err(CommandError::local)?)?;
        found.sealed.key = key.fingerprint();
        let entry = SealedEntry {
            set_s: now_s,
            record,
        };
        found.sealed.entries.insert(name.to_owned(), entry);
        file::write(&found.path, &found.sealed)?;
        Ok(!is_new)
    }

    /// Removes a credential durably. Returns whether it was there.
    ///
    /// # Errors
    /// The file cannot be written, and those of [`read`](Self::read).
    pub(crate) fn remove(&self, name: &str) -> Result<bool, CommandError> {
        let _lock = self.lock()?;
        let mut found = self.read()?;
        if found.sealed.entries.remove(name).is_none() {
            return Ok(false);
        }
        file::write(&found.path, &found.sealed)?;
        Ok(true)
    }

    /// Locks the folder against other writers until the returned file is dropped. Readers need no
    /// lock, because each change replaces the file as a whole.
    fn lock(&self) -> Result<File, CommandError> {
        let folder = self.state_dir.join(FOLDER);
        let lock = || {
            self.make()?;
            let open = File::open(&folder)?;
            open.lock()?;
            Ok::<File, io::Error>(open)
        };
        lock().map_err(|error| {
            CommandError::local(format!("cannot lock {}: {error}", folder.display()))
        })
    }

    /// The key that sealed the values of a file.
    fn key_of(&self, sealed: &SealedFile, path: &Path) -> Result<RecordKey, CommandError> {
        let (key_path, shown) = (self.state_dir.join(KEY_FILE), path.display());
        let again = format!("remove {shown} and set each of its credentials again");
        let Some(key) = load_key(&key_path)? else {
            return Err(CommandError::local(format!(
                "{} is missing, and {shown} is sealed under it: put it back, or {again}",
                key_path.display()
            )));
        };
        if key.fingerprint() != sealed.key {
            return Err(CommandError::local(format!(
                "{shown} is sealed under another key than {}, as if one of the two came from another folder: put the \
                 right one back, or {again}",
                key_path.display()
            )));
        }
        Ok(key)
    }

    /// The key for the first credential: the stored one, or a new one if the key file is missing.
    fn first_key(&self) -> Result<RecordKey, CommandError> {
        let path = self.state_dir.join(KEY_FILE);
        if let Some(key) = load_key(&path)? {
            return Ok(key);
        }
        let folder = path.parent().unwrap_or(&self.state_dir);
        make_private(folder).map_err(|error| {
            CommandError::local(format!("cannot make {}: {error}", folder.display()))
        })?;
        let made = NodeKey::generate().map_err(CommandError::local)?;
        made.store(&path).map_err(CommandError::local)?;
        Ok(RecordKey::derive(made.seed(), PURPOSE))
    }
}

impl LocalCredentials {
    /// Names of the credentials, each with the time when its value was set, in seconds since 1970.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        let entries = self.sealed.entries.iter();
        entries.map(|(name, entry)| (name.as_str(), entry.set_s))
    }

    /// Opens a value. Returns `None` if it was not set.
    ///
    /// # Errors
    /// The value does not open. The message says what to do, and repeats nothing of the value.
    pub(crate) fn open(&self, name: &str) -> Option<Result<SecretBytes, String>> {
        let entry = self.sealed.entries.get(name)?;
        let opened = self.key.as_ref().and_then(|key| {
            // The vault's parser reads the JSON form that the record has in the file.
            let text = serde_json::to_string(&entry.record).ok()?;
            let blob = SealedBlob::from_json(&text).ok()?;
            key.open(&label(name, entry.set_s).ok()?, &blob).ok()
        });
        Some(opened.ok_or_else(|| {
            format!(
                "its entry in {} does not open: it was changed, or sealed under another name",
                self.path.display()
            )
        }))
    }
}

/// The entries of a configuration that use a credential, for people: `import forge`, `operation
/// js/mint`.
pub(crate) fn uses(config: &NodeConfig, name: &str) -> Vec<String> {
    let imports = config.http.import.iter();
    let imports = imports.filter(|it| it.credential.as_deref() == Some(name));
    let imports = imports.map(|it| format!("import {}", it.namespace));
    let operations = config.operations.iter();
    let operations = operations.filter(|it| it.capabilities.iter().any(|one| one == name));
    let operations = operations.map(|it| format!("operation {}", it.name));
    imports.chain(operations).collect()
}

/// Checks a name that a person typed.
///
/// # Errors
/// The name is not valid. The message does not repeat it: the person may have typed the value where
/// the name belongs.
pub(crate) fn check_name(name: &str) -> Result<(), CommandError> {
    match is_credential_name(name) {
        true => Ok(()),
        false => Err(CommandError::usage(
            "this is no name of a credential: use 1 to 32 of a-z, 0-9 and '-', a letter first",
        )),
    }
}

/// What is said of an empty value, with the commands that give one.
pub(crate) fn empty_value(name: &str) -> String {
    format!(
        "the value is empty: type it at a terminal after 'alknet credential set {name}', or have it read from a file: \
         'alknet credential set {name} <FILE'"
    )
}

fn check_value(value: &[u8]) -> Result<(), CommandError> {
    if value.is_empty() {
        return Err(CommandError::usage(empty_value("NAME")));
    }
    if value.len() > VALUE_BYTES_MAX {
        let text = format!("the value is longer than {VALUE_BYTES_MAX} bytes");
        return Err(CommandError::usage(text));
    }
    Ok(())
}

/// The label that a value is sealed under. It does not open under another name or time.
fn label(name: &str, set_s: u64) -> Result<BlobLabel, CommandError> {
    let label = format!("{KIND}:{name}/{set_s}").parse();
    label.map_err(CommandError::local)
}

fn record_of(blob: &SealedBlob) -> Result<EncryptedData, CommandError> {
    serde_json::from_str(&blob.to_json()).map_err(CommandError::local)
}

fn load_key(path: &Path) -> Result<Option<RecordKey>, CommandError> {
    // The permissions are checked before the key is loaded, so that a key which another user can
    // read is never used.
    if !file::is_private(path)? {
        return Ok(None);
    }
    let key = NodeKey::load(path).map_err(CommandError::local)?;
    Ok(key.map(|key| RecordKey::derive(key.seed(), PURPOSE)))
}

fn make_private(folder: &Path) -> io::Result<()> {
    let mut make = DirBuilder::new();
    // The mode is given to `mkdir`, so that the folder never exists with wider permissions.
    make.recursive(true).mode(FOLDER_MODE).create(folder)
}

#[cfg(test)]
mod tests;
