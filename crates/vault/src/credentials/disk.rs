//! Files that are written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::CredentialsError;
use crate::derive::KeyVersion;
use crate::json;

/// Suffix of files that are being written.
pub(super) const NEW: &str = ".new";

const FORMAT: u64 = 1;
/// Longest `current` that is read, in bytes.
const CURRENT_BYTES_MAX: usize = 256;

/// The lock of a directory; functions that write require it.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    /// Closing the file releases the lock.
    _file: File,
}

impl DirectoryLock {
    pub(super) fn exclusive(dir: &Path) -> Result<Self, CredentialsError> {
        Self::open_with_lock(dir, File::lock)
    }

    pub(super) fn shared(dir: &Path) -> Result<Self, CredentialsError> {
        Self::open_with_lock(dir, File::lock_shared)
    }

    fn open_with_lock(
        dir: &Path,
        lock: fn(&File) -> std::io::Result<()>,
    ) -> Result<Self, CredentialsError> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // The lock has a file of its own: other files are replaced, and a lock would stay with the old inode
        // (flock(2)).
        let file = options.mode(0o600).open(&path);
        let file = file.map_err(CredentialsError::io(&path))?;
        lock(&file).map_err(CredentialsError::io(&path))?;
        Ok(Self { _file: file })
    }
}

/// The set of records that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CurrentSet {
    pub(super) set: u64,
    /// Oldest key version of its records.
    pub(super) version: KeyVersion,
}

impl CurrentSet {
    pub(super) const FIRST: Self = Self {
        set: 1,
        version: KeyVersion::FIRST,
    };

    pub(super) fn read(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let path = dir.join("current");
        let Some(bytes) = read(&path, CURRENT_BYTES_MAX)? else {
            return Ok(None);
        };
        let foreign = || CredentialsError::foreign(&path);
        let value = json::parse_canonical(&bytes).ok_or_else(foreign)?;
        match value["credentials"].as_u64() {
            Some(FORMAT) => {}
            Some(other) => return Err(CredentialsError::Newer(other)),
            None => return Err(foreign()),
        }
        let number = |name: &str| value[name].as_u64();
        let version = number("version").and_then(|version| u32::try_from(version).ok());
        let current = Self {
            set: number("set").ok_or_else(foreign)?,
            version: version.and_then(KeyVersion::new).ok_or_else(foreign)?,
        };
        // The file must be exactly what this program writes, so that damage cannot pass as a version.
        if current.text().as_bytes() == bytes {
            Ok(Some(current))
        } else {
            Err(foreign())
        }
    }

    pub(super) fn write(self, dir: &Path, locked: &DirectoryLock) -> Result<(), CredentialsError> {
        replace(&dir.join("current"), self.text().as_bytes(), locked)
    }

    fn text(self) -> String {
        let value = json!({
            "credentials": FORMAT,
            "set": self.set,
            "version": self.version.number(),
        });
        json::canonical(&value).unwrap_or_default()
    }
}

/// Makes a directory that only its owner can read, if it does not exist.
pub(super) fn make_dir(path: &Path) -> Result<(), CredentialsError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(CredentialsError::io(path))?;
    // A new directory is durable once its parent is synced (fsync(2)).
    path.parent().map_or(Ok(()), sync_dir)
}

/// Returns when the names of the directory are on the disk.
pub(super) fn sync_dir(path: &Path) -> Result<(), CredentialsError> {
    // The parent of a bare name is the current directory.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(CredentialsError::io(path))
}

/// The content of the file; `None` if it does not exist. This program writes no file of more than `most` bytes, so a
/// longer one is foreign.
pub(super) fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, CredentialsError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CredentialsError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(most as u64 + 1).read_to_end(&mut bytes);
    read.map_err(CredentialsError::io(path))?;
    if bytes.len() > most {
        return Err(CredentialsError::foreign(path));
    }
    Ok(Some(bytes))
}

/// Writes a file of a set that does not count yet.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    let io = CredentialsError::io(path);
    let mut options = OpenOptions::new();
    // A file of this name may be left from a write that a power cut interrupted.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(&io)?;
    file.write_all(bytes).map_err(&io)?;
    file.sync_all().map_err(&io)
}

/// Replaces a file atomically, and returns once the new content is on the disk.
pub(super) fn replace(
    path: &Path,
    bytes: &[u8],
    _: &DirectoryLock,
) -> Result<(), CredentialsError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(NEW);
    let fresh = PathBuf::from(fresh);
    write_new(&fresh, bytes)?;
    fs::rename(&fresh, path).map_err(CredentialsError::io(path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file; returns whether it existed.
pub(super) fn remove(path: &Path, _: &DirectoryLock) -> Result<bool, CredentialsError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CredentialsError::io(path)(error)),
    }
}
