//! A download that is not complete yet: a file beside its target.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_tensor::{Hash, TensorError, TensorErrorCode};
use blake3::Hasher;

use super::{ClientError, local};
use crate::limits::BLOCK_BYTES;

/// Hex digits of the content's hash in the file's name.
const DIGITS: usize = 16;

/// A file that this process has locked. It stays if an attempt fails, and the next attempt
/// continues it.
#[derive(Debug)]
pub(super) struct PartialDownload {
    file: File,
    path: PathBuf,
}

impl PartialDownload {
    /// Opens what earlier attempts fetched for `target` of the content that `hash` names.
    pub(super) fn open(target: &Path, hash: &Hash) -> Result<Self, ClientError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let hex = hash.to_hex();
        let digits = hex.get(..DIGITS).unwrap_or_default();
        let path = folder(target).join(format!(".{name}.{digits}.part"));
        let mut options = OpenOptions::new();
        let opened = options
            .read(true)
            .write(true)
            .create(true)
            // The bytes of an earlier attempt are what this one continues.
            .truncate(false)
            .open(&path);
        let file = opened.map_err(local(path.display()))?;
        // Two processes that fetch the same file would write into each other's bytes.
        file.try_lock().map_err(|error| {
            let what = format!("{}: {error}; is it being fetched already?", path.display());
            ClientError::Local(TensorError::new(TensorErrorCode::Io, what))
        })?;
        Ok(Self { file, path })
    }

    /// The file's path, for errors.
    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(super) fn len(&self) -> Result<u64, ClientError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(self.failed())?.len())
    }

    /// Reads bytes that were fetched.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }

    /// Cuts the file to `len` bytes.
    pub(super) fn cut(&self, len: u64) -> Result<(), ClientError> {
        self.file.set_len(len).map_err(self.failed())
    }

    /// Compares bytes with their hash, because the disk may have changed them between two attempts.
    /// If they differ, the file is removed.
    pub(super) fn expect(&self, range: Range<u64>, hash: &Hash) -> Result<(), ClientError> {
        let mut hasher = Hasher::new();
        let mut piece = vec![0; BLOCK_BYTES];
        let mut at = range.start;
        while at < range.end {
            // At most a block, so the cast keeps the value.
            let len = (range.end - at).min(BLOCK_BYTES as u64) as usize;
            let read = self.file.read_exact_at(&mut piece[..len], at);
            read.map_err(self.failed())?;
            hasher.update(&piece[..len]);
            at += len as u64;
        }
        if hasher.finalize() == *hash {
            return Ok(());
        }
        // A next attempt must not continue bytes that are damaged.
        self.remove()?;
        let what = format!("{} is not what was fetched; run it again", self.shown());
        Err(ClientError::Local(TensorError::new(
            TensorErrorCode::Hash,
            what,
        )))
    }

    /// Renames the file to its target, once its content is on the disk.
    pub(super) fn name(self, target: &Path) -> Result<(), ClientError> {
        self.file.sync_all().map_err(self.failed())?;
        std::fs::rename(&self.path, target).map_err(local(target.display()))?;
        // The new name is on the disk only once its folder is (fsync(2)).
        let folder = folder(target);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(local(folder.display()))
    }

    pub(super) fn remove(&self) -> Result<(), ClientError> {
        std::fs::remove_file(&self.path).map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> ClientError + use<> {
        let shown = self.shown();
        move |error| local(shown)(error)
    }
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        // `parent` of a bare file name is the empty path, which open(2) does not take.
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
