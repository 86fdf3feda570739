//! Credentials of a node without a vault. `alknet credential` keeps them sealed in the state folder, and
//! `alknet serve` opens them there.
//!
//! The sealed values are in one file, and the key that seals them in another one beside the key of the node. The node's
//! own key does not seal them: it may be replaced while the node runs, and its old one is deleted.

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

/// Longest value in bytes: twice the longest that goes into a header, and enough for any private key.
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 10;
/// Most credentials of a state folder: as many as a configuration may have.
const ENTRIES_MAX: usize = 256;
/// Folder of the sealed values below the state folder. Nothing else lies in it, so that each change in it is one of a
/// credential.
const FOLDER: &str = "credentials";
/// File of the sealed values in it.
const SEALED_FILE: &str = "sealed.json";
/// The key that seals them, beside the key of the node.
const KEY_FILE: &str = "identity/credentials.key";
/// What the sealing key is derived for, so that the bytes of the file are no other key.
const PURPOSE: &str = "credentials";
/// What labels of sealed values begin with, as those of a vault.
const KIND: &str = "cred";
/// Permission bits of both files.
const MODE: u32 = 0o600;
/// Permission bits of folders that are made here.
const FOLDER_MODE: u32 = 0o700;

/// Where the credentials of one state folder are.
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

/// What is in the folder. The values stay sealed until each is asked for.
pub(crate) struct LocalCredentials {
    sealed: SealedFile,
    /// Absent while there is nothing to open.
    key: Option<RecordKey>,
    path: PathBuf,
}

impl CredentialFolder {
    /// Those of this state folder.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
        }
    }

    /// The state folder.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The file whose change is a change of a credential. It is missing until the first one is set.
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

    /// Makes the folder of that file, for its owner alone, if it is missing.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make_private(&self.state_dir.join(FOLDER))
    }

    /// Reads what is there; without the file that is nothing.
    ///
    /// # Errors
    /// A file cannot be read, belongs to another user, may be read by others, is damaged, of a newer version, or sealed
    /// under another key. The message names the file.
    pub(crate) fn read(&self) -> Result<LocalCredentials, CommandError> {
        let path = self.file();
        let sealed = file::read(&path)?.unwrap_or_default();
        let key = match sealed.entries.is_empty() {
            true => None,
            false => Some(self.key_of(&sealed, &path)?),
        };
        Ok(LocalCredentials { sealed, key, path })
    }

    /// Seals a value and keeps it, durably, in the place of the one before it. Returns whether there was one.
    ///
    /// # Errors
    /// The name or the value is outside its limits, there is no room for another credential, a file cannot be written,
    /// and as [`read`](Self::read). No message repeats the value.
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

    /// Forgets a credential, durably. Returns whether there was one.
    ///
    /// # Errors
    /// The file cannot be written, and as [`read`](Self::read).
    pub(crate) fn remove(&self, name: &str) -> Result<bool, CommandError> {
        let _lock = self.lock()?;
        let mut found = self.read()?;
        if found.sealed.entries.remove(name).is_none() {
            return Ok(false);
        }
        file::write(&found.path, &found.sealed)?;
        Ok(true)
    }

    /// One change at a time: until the file is dropped. Readers need no lock, since each change replaces the file as a
    /// whole.
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

    /// The key that sealed what is in a file.
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

    /// The key for the first credential: that of the file, or a new one where the file is missing.
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
    /// Names, each with the time when its value was set, in seconds since 1970.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        let entries = self.sealed.entries.iter();
        entries.map(|(name, entry)| (name.as_str(), entry.set_s))
    }

    /// Opens a value; `None` if it was not set.
    ///
    /// # Errors
    /// It does not open. The message says what to do, and nothing of the value.
    pub(crate) fn open(&self, name: &str) -> Option<Result<SecretBytes, String>> {
        let entry = self.sealed.entries.get(name)?;
        let opened = self.key.as_ref().and_then(|key| {
            // One form, read by those who define it.
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

/// What of a configuration uses a credential, for people: `import forge`, `operation js/mint`.
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
/// It is no name of a credential. The message does not repeat it: it may be a value in the wrong place.
pub(crate) fn check_name(name: &str) -> Result<(), CommandError> {
    match is_credential_name(name) {
        true => Ok(()),
        false => Err(CommandError::usage(
            "this is no name of a credential: use 1 to 32 of a-z, 0-9 and '-', a letter first",
        )),
    }
}

fn check_value(value: &[u8]) -> Result<(), CommandError> {
    if value.is_empty() {
        return Err(CommandError::usage(
            "the value is empty: write it to standard input",
        ));
    }
    if value.len() > VALUE_BYTES_MAX {
        let text = format!("the value is longer than {VALUE_BYTES_MAX} bytes");
        return Err(CommandError::usage(text));
    }
    Ok(())
}

/// What a value is bound to: with another name or another time it does not open.
fn label(name: &str, set_s: u64) -> Result<BlobLabel, CommandError> {
    let label = format!("{KIND}:{name}/{set_s}").parse();
    label.map_err(CommandError::local)
}

fn record_of(blob: &SealedBlob) -> Result<EncryptedData, CommandError> {
    serde_json::from_str(&blob.to_json()).map_err(CommandError::local)
}

fn load_key(path: &Path) -> Result<Option<RecordKey>, CommandError> {
    if !file::is_private(path)? {
        return Ok(None);
    }
    let key = NodeKey::load(path).map_err(CommandError::local)?;
    Ok(key.map(|key| RecordKey::derive(key.seed(), PURPOSE)))
}

fn make_private(folder: &Path) -> io::Result<()> {
    let mut make = DirBuilder::new();
    make.recursive(true).mode(FOLDER_MODE).create(folder)
}

#[cfg(test)]
mod tests;
