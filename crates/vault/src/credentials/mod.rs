//! Sealed records in a directory: secrets from outside that a node or an operator keeps.
//!
//! ```text
//! lock       whoever changes something holds a lock on it
//! current    {"credentials":1,"set":3,"version":4}
//! set-3/     one file for each record, called by the SHA-256 of its label:
//!            the label, a line end, the record's JSON form, a line end
//! ```
//!
//! Every file is written beside its place and moved there, so that a power cut leaves the old or the
//! new. A rotation writes a whole new set and then moves `current`: before that moment every record has
//! its old version, after it every one the new. What an interrupted one left is removed by the next that
//! opens the directory, and the rotation is run again.
//!
//! Every process that reads the directory reads the labels. The vault does not notice that a record was
//! put back to an older one of the same version.

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

/// Why a record was not kept, found or rotated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file that this program did not write, or that was damaged.
    #[error("{0} is no file of sealed records")]
    Foreign(String),
    /// As many records as there may be.
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
    /// Of a later program.
    #[error("the records have format {0}; this program knows 1")]
    Newer(u64),
    /// No record of that label.
    #[error("there is no record {0}")]
    NotFound(BlobLabel),
    /// The vault did not seal or open one.
    #[error("{label}: {source}")]
    Record {
        /// Label of the record.
        label: BlobLabel,
        /// Error that caused this one.
        source: VaultError,
    },
    /// A version that is older than that of the set.
    #[error("key version {version} is older than {oldest}, to which the records were rotated")]
    TooOld {
        /// Version of the key.
        version: KeyVersion,
        /// What there is.
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

/// What is known of a record without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialEntry {
    /// What it is called.
    pub label: BlobLabel,
    /// Which key it is sealed with.
    pub version: KeyVersion,
}

/// The records of one directory. Several processes may have it: changes wait for each other.
#[derive(Debug)]
pub struct VaultCredentials {
    dir: PathBuf,
}

impl VaultCredentials {
    /// The records in `dir`, which is made if it is not there. Ends what a power cut interrupted.
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

    /// What the last rotation left: new records are sealed with that version and older ones are not
    /// there. For [`Vault::use_versions`].
    pub fn versions(&self) -> Result<KeyVersions, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let version = self.current()?.version;
        Ok(KeyVersions {
            current: version,
            oldest: version,
        })
    }

    /// Keeps a record, in the place of the one of the same label.
    pub fn put(&self, label: &BlobLabel, blob: &SealedBlob) -> Result<(), CredentialsError> {
        let locked = DirectoryLock::exclusive(&self.dir)?;
        let current = self.current()?;
        if blob.key_version() < current.version {
            return Err(CredentialsError::TooOld {
                version: blob.key_version(),
                oldest: current.version,
            });
        }
        let set = self.set(current.set);
        let path = set.join(file_name(label));
        // Replacing a record is possible also where there are as many as may be.
        if !path.exists() && names(&set)?.len() >= MAX_CREDENTIALS {
            return Err(CredentialsError::Full);
        }
        disk::replace(&path, text_of(label, blob).as_bytes(), &locked)
    }

    /// The record of that label.
    pub fn get(&self, label: &BlobLabel) -> Result<SealedBlob, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let path = self.set(self.current()?.set).join(file_name(label));
        match disk::read(&path, FILE_BYTES_MAX)? {
            None => Err(CredentialsError::NotFound(label.clone())),
            Some(bytes) => match parse(&bytes) {
                // The name in the file must be the one asked for: an attacker may exchange files.
                Some((found, blob)) if found == *label => Ok(blob),
                _ => Err(CredentialsError::foreign(&path)),
            },
        }
    }

    /// Every record, by label.
    pub fn list(&self) -> Result<Vec<CredentialEntry>, CredentialsError> {
        let _locked = DirectoryLock::shared(&self.dir)?;
        let records = self.records(self.current()?.set)?;
        let entry = |(label, blob): (BlobLabel, SealedBlob)| CredentialEntry {
            label,
            version: blob.key_version(),
        };
        Ok(records.into_iter().map(entry).collect())
    }

    /// Removes a record, also a damaged one.
    pub fn remove(&self, label: &BlobLabel) -> Result<(), CredentialsError> {
        let locked = DirectoryLock::exclusive(&self.dir)?;
        let path = self.set(self.current()?.set).join(file_name(label));
        match disk::remove(&path, &locked)? {
            true => Ok(()),
            false => Err(CredentialsError::NotFound(label.clone())),
        }
    }

    /// Seals every record again, under the key of `to`, all or none; answers how many there are. The
    /// vault must still open the older ones. Afterwards [`Vault::use_versions`] with what
    /// [`VaultCredentials::versions`] says forbids them.
    pub fn rotate_to(&self, vault: &Vault, to: KeyVersion) -> Result<usize, CredentialsError> {
        self.rotate_in_steps(to, &mut |label, blob| vault.rewrap(label, blob, to))
    }

    /// Puts every record, opened by one vault and sealed by the other, into another directory, all or
    /// none; what that had is gone. Answers how many there are.
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

    /// Writes a whole set, and makes it the one that counts.
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
        // What an earlier rotation left half written must not become part of this one.
        self.remove_other_sets(current.set)?;
        let set = self.set(next.set);
        disk::make_dir(&set)?;
        for (label, blob) in records {
            disk::write_new(&set.join(file_name(label)), text_of(label, blob).as_bytes())?;
        }
        // Every file and name of the set is on the disk before `current` points to it.
        disk::sync_dir(&set)?;
        next.write(&self.dir, locked)?;
        // What fails here, the next that opens the directory does.
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

/// The names in a directory, without those of files that are being written.
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
