//! Files that are whole or not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::CredentialsError;
use crate::derive::KeyVersion;
use crate::json;

/// How files are called until they are whole.
pub(super) const NEW: &str = ".new";

const FORMAT: u64 = 1;
/// Bytes of `current`.
const CURRENT_BYTES_MAX: usize = 256;

/// Held while something is read or changed; without it nothing here writes.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    /// Unlocked when it is closed.
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
        // The lock is on a file of its own: the others are replaced, and a lock stays with the old inode.
        let file = options.mode(0o600).open(&path);
        let file = file.map_err(CredentialsError::io(&path))?;
        lock(&file).map_err(CredentialsError::io(&path))?;
        Ok(Self { _file: file })
    }
}

/// Which set counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CurrentSet {
    pub(super) set: u64,
    /// No record of it is older.
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

/// A directory that only its owner reads, if it is not there yet.
pub(super) fn make_dir(path: &Path) -> Result<(), CredentialsError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(CredentialsError::io(path))?;
    // A new directory is durable once its parent is.
    path.parent().map_or(Ok(()), sync_dir)
}

/// Returns when the names in it are on the disk.
pub(super) fn sync_dir(path: &Path) -> Result<(), CredentialsError> {
    // The parent of a plain name is the directory this program is in.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    synced.map_err(CredentialsError::io(path))
}

/// The content of the file; `None` if it does not exist. A file of more than `most` bytes was not
/// written here.
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

/// A file in a set that does not count yet.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    let io = CredentialsError::io(path);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(&io)?;
    file.write_all(bytes).map_err(&io)?;
    file.sync_all().map_err(&io)
}

/// The file as it was or as it shall be, whatever happens, and as it shall be when this returns.
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

/// Answers whether it was there.
pub(super) fn remove(path: &Path, _: &DirectoryLock) -> Result<bool, CredentialsError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CredentialsError::io(path)(error)),
    }
}
