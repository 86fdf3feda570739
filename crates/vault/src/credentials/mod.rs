//! Sealed records in a directory: secrets from outside that a node or an administrator stores.
//!
//! ```text
//! lock       a process that changes something holds a lock on it
//! current    {"credentials":1,"set":3,"version":4}
//! set-3/     one file for each record, called by the SHA-256 of its label:
//!            the label, a line end, the record's JSON form, a line end
//! ```
//!
//! Every file is written beside its target and renamed, so a power cut leaves the old or the new content. A rotation
//! writes a whole new set and then replaces `current`: before that moment every record has the old version, after it
//! every one has the new. The next process that opens the directory removes what an interrupted rotation left, and
//! the rotation has to be run again.
//!
//! Every process that can read the directory can read the labels. The vault does not notice if a record is replaced
//! by an older one of the same version.

mod disk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use thiserror::Error;

use crate::blob::{BlobLabel, SealedBlob};
use crate::crypto;
use crate::derive::KeyVersion;
use crate::error::VaultError;
use crate::limits::{MAX_BLOB_JSON_BYTES, MAX_CREDENTIALS, MAX_LABEL_BYTES};
use crate::vault::{KeyVersions, Vault};
use disk::{CurrentSet, DirectoryLock};

/// Bytes of one record's file.
const FILE_BYTES_MAX: usize = MAX_LABEL_BYTES + MAX_BLOB_JSON_BYTES + 2;

/// Why a record was not stored, found or rotated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// This program did not write the file, or the file is damaged.
    #[error("{0} is no file of sealed records")]
    Foreign(String),
    /// The directory has the maximum number of records.
    #[error("there are {} records, more are not possible", MAX_CREDENTIALS)]
    Full,
    /// A file could not be read or written.
    #[error("{file} cannot be used ({source})")]
    Io {
        /// Path of the file.
        file: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A later program wrote the directory.
    #[error("the records have format {0}; this program knows 1")]
    Newer(u64),
    /// The directory has no record with that label.
    #[error("there is no record {0}")]
    NotFound(BlobLabel),
    /// The vault refused to seal or open a record.
    #[error("{label}: {source}")]
    Record {
        /// Label of the record.
        label: BlobLabel,
        /// Error that caused this one.
        source: VaultError,
    },
    /// The version is older than that of the set.
    #[error("key version {version} is older than {oldest}, to which the records were rotated")]
    TooOld {
        /// Version of the key.
        version: KeyVersion,
        /// The version of the set.
        oldest: KeyVersion,
    },
}

impl CredentialsError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let file = path.display().to_string();
        move |source| {
            let file = file.clone();
            Self::Io { file, source }
        }
    }

    fn foreign(path: &Path) -> Self {
        Self::Foreign(path.display().to_string())
    }
}

/// A record's properties that are known without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialEntry {
    /// The record's label.
    pub label: BlobLabel,
    /// The version of its key.
    pub version: KeyVersion,
}

/// The records of one directory. Several processes may use it: their changes wait for each other.
#[derive(Debug)]
pub struct VaultCredentials {
    dir: PathBuf,
}

impl VaultCredentials {
    /// Opens the records in `dir`, which is made if it does not exist. Removes what a power cut left half done.
    pub fn open(dir: &Path) -> Result<Self, CredentialsError> {
        disk::make_dir(dir)?;
        let store = Self {
            dir: dir.to_owned(),
        };
        let locked = DirectoryLock::exclusive(dir)?;
        let current = match CurrentSet::read(dir)? {
            Some(current) => current,
            None => {
                let first = CurrentSet::FIRST;
                disk::make_dir(&store.set(first.set))?;
                first.write(dir, &locked)?;
                first
            }
        };
        store.remove_other_sets(current.set)?;
        Ok(store)
    }

    /// The versions after the last rotation: new records are sealed with this version, and no record is older. For
    /// [`Vault::use_versions`].
    pub fn versions(&self) -> Result<KeyVersions, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let version = self.current()?.version;
        Ok(KeyVersions {
            current: version,
            oldest: version,
        })
    }

    /// Stores a record, and replaces the one with the same label.
    pub fn put(&self, label: &BlobLabel, blob: &SealedBlob) -> Result<(), CredentialsError> {
        let locked = DirectoryLock::exclusive(&self.dir)?;
        let current = self.current()?;
        // After a rotation the old keys count as leaked, so nothing sealed under them comes back.
        if blob.key_version() < current.version {
            return Err(CredentialsError::TooOld {
                version: blob.key_version(),
                oldest: current.version,
            });
        }
        let set = self.set(current.set);
        let path = set.join(file_name(label));
        // At the limit, an existing record can still be replaced.
        if !path.exists() && names(&set)?.len() >= MAX_CREDENTIALS {
            return Err(CredentialsError::Full);
        }
        disk::replace(&path, text_of(label, blob).as_bytes(), &locked)
    }

    /// The record with that label.
    pub fn get(&self, label: &BlobLabel) -> Result<SealedBlob, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let path = self.set(self.current()?.set).join(file_name(label));
        match disk::read(&path, FILE_BYTES_MAX)? {
            None => Err(CredentialsError::NotFound(label.clone())),
            Some(bytes) => match parse(&bytes) {
                // The label in the file must be the requested one, because an attacker may exchange files.
                Some((found, blob)) if found == *label => Ok(blob),
                _ => Err(CredentialsError::foreign(&path)),
            },
        }
    }

    /// Every record, sorted by label.
    pub fn list(&self) -> Result<Vec<CredentialEntry>, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let records = self.records(self.current()?.set)?;
        let entry = |(label, blob): (BlobLabel, SealedBlob)| CredentialEntry {
            label,
            version: blob.key_version(),
        };
        Ok(records.into_iter().map(entry).collect())
    }

    /// Removes a record, even a damaged one.
    pub fn remove(&self, label: &BlobLabel) -> Result<(), CredentialsError> {
        let locked = DirectoryLock::exclusive(&self.dir)?;
        let path = self.set(self.current()?.set).join(file_name(label));
        match disk::remove(&path, &locked)? {
            true => Ok(()),
            false => Err(CredentialsError::NotFound(label.clone())),
        }
    }

    /// Seals every record again under the key of `to`, all or none; returns their number. The vault must still open
    /// the older ones. Afterwards [`Vault::use_versions`] with [`VaultCredentials::versions`] refuses them.
    pub fn rotate_to(&self, vault: &Vault, to: KeyVersion) -> Result<usize, CredentialsError> {
        self.rotate_in_steps(to, &mut |label, blob| vault.rewrap(label, blob, to))
    }

    /// Opens every record with one vault, seals it with the other, and stores all of them in another directory, all
    /// or none; records that were there are removed. Returns their number.
    pub fn hand_over(
        &self,
        from: &Vault,
        to: &Vault,
        other: &Self,
    ) -> Result<usize, CredentialsError> {
        let records = {
            let _locked = DirectoryLock::shared(&self.dir)?;
            self.records(self.current()?.set)?
        };
        let mut moved = Vec::with_capacity(records.len());
        for (label, blob) in records {
            let blob = from.hand_over(to, &label, &blob);
            let blob = blob.map_err(|source| CredentialsError::Record {
                label: label.clone(),
                source,
            })?;
            moved.push((label, blob));
        }
        let locked = DirectoryLock::exclusive(&other.dir)?;
        let current = other.current()?;
        // The other directory may already refuse older versions.
        let version = to.versions().current.max(current.version);
        other.replace_set(current, version, &moved, &locked)?;
        Ok(moved.len())
    }

    fn rotate_in_steps(
        &self,
        to: KeyVersion,
        rewrap: &mut dyn FnMut(&BlobLabel, &SealedBlob) -> Result<SealedBlob, VaultError>,
    ) -> Result<usize, CredentialsError> {
        let locked = DirectoryLock::exclusive(&self.dir)?;
        let current = self.current()?;
        if to < current.version {
            return Err(CredentialsError::TooOld {
                version: to,
                oldest: current.version,
            });
        }
        let mut records = self.records(current.set)?;
        for (label, blob) in &mut records {
            *blob = rewrap(label, blob).map_err(|source| CredentialsError::Record {
                label: label.clone(),
                source,
            })?;
        }
        self.replace_set(current, to, &records, &locked)?;
        Ok(records.len())
    }

    /// Writes a whole set, and makes it the current one.
    fn replace_set(
        &self,
        current: CurrentSet,
        version: KeyVersion,
        records: &[(BlobLabel, SealedBlob)],
        locked: &DirectoryLock,
    ) -> Result<(), CredentialsError> {
        let next = CurrentSet {
            set: current.set + 1,
            version,
        };
        // Files that an earlier rotation left must not become a part of this set.
        self.remove_other_sets(current.set)?;
        let set = self.set(next.set);
        disk::make_dir(&set)?;
        for (label, blob) in records {
            disk::write_new(&set.join(file_name(label)), text_of(label, blob).as_bytes())?;
        }
        // Every file and name of the set is on the disk before `current` points to it.
        disk::sync_dir(&set)?;
        next.write(&self.dir, locked)?;
        // If this fails, the next process that opens the directory removes the other sets.
        self.remove_other_sets(next.set)
    }

    fn current(&self) -> Result<CurrentSet, CredentialsError> {
        let current = CurrentSet::read(&self.dir)?;
        current.ok_or_else(|| CredentialsError::foreign(&self.dir))
    }

    fn set(&self, number: u64) -> PathBuf {
        self.dir.join(format!("set-{number}"))
    }

    fn records(&self, set: u64) -> Result<Vec<(BlobLabel, SealedBlob)>, CredentialsError> {
        let set = self.set(set);
        let names = names(&set)?;
        if names.len() > MAX_CREDENTIALS {
            return Err(CredentialsError::Full);
        }
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            let path = set.join(&name);
            let bytes = disk::read(&path, FILE_BYTES_MAX)?.unwrap_or_default();
            let record = parse(&bytes).filter(|(label, _)| file_name(label) == name);
            records.push(record.ok_or_else(|| CredentialsError::foreign(&path))?);
        }
        records.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(records)
    }

    fn remove_other_sets(&self, current: u64) -> Result<(), CredentialsError> {
        let own = format!("set-{current}");
        for name in names(&self.dir)? {
            if name.starts_with("set-") && name != own {
                let path = self.dir.join(name);
                fs::remove_dir_all(&path).map_err(CredentialsError::io(&path))?;
            }
        }
        Ok(())
    }
}

/// The names in a directory, except files that are being written.
fn names(dir: &Path) -> Result<Vec<String>, CredentialsError> {
    let io = CredentialsError::io(dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(&io)? {
        let name = entry.map_err(&io)?.file_name();
        let name = name
            .into_string()
            .map_err(|_| CredentialsError::foreign(dir))?;
        if !name.ends_with(disk::NEW) {
            names.push(name);
        }
    }
    Ok(names)
}

fn file_name(label: &BlobLabel) -> String {
    // Labels may have characters that file names must not have, such as a slash.
    HEXLOWER.encode(&crypto::sha256(label.as_str().as_bytes()))
}

fn text_of(label: &BlobLabel, blob: &SealedBlob) -> String {
    format!("{label}\n{}\n", blob.to_json())
}

fn parse(bytes: &[u8]) -> Option<(BlobLabel, SealedBlob)> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (label, json) = text.split_once('\n')?;
    let (label, blob) = (label.parse().ok()?, SealedBlob::from_json(json).ok()?);
    (text_of(&label, &blob).as_bytes() == bytes).then_some((label, blob))
}

#[cfg(test)]
mod tests;
