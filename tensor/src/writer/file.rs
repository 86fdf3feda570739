//! A file that is written whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Result, TensorError};
use crate::writer::{ContainerWriter, WriteSummary};

/// Permission bits of a new file, before the process's umask clears some of them.
const MODE: u32 = 0o666;

/// A temporary file beside its target. If it is dropped before [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins the file that will become `path`.
    ///
    /// # Errors
    /// `E_IO` if no file can be made in the folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        // The temporary file lies in the target's folder, because rename(2) does not work across file systems.
        let made = tempfile::Builder::new()
            .prefix(".alknet-")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(folder(&path));
        match made {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(TensorError::io(
                format_args!("make a file beside {}", path.display()),
                error,
            )),
        }
    }

    /// Syncs the file to the disk, renames it to its target, and syncs the folder.
    ///
    /// # Errors
    /// `E_IO`.
    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let commit = || -> io::Result<()> {
            self.file.as_file().sync_all()?;
            self.file.persist(&path)?;
            File::open(folder(&path))?.sync_all()
        };
        commit().map_err(|error| TensorError::io(format_args!("write {}", path.display()), error))
    }
}

/// The folder of a path.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.as_file_mut().seek(to)
    }
}

impl ContainerWriter<'_, AtomicFile> {
    /// Begins a metatensor that will become the file `path`.
    ///
    /// # Errors
    /// `E_IO` if no file can be made in the folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        AtomicFile::create(path).map(Self::new)
    }

    /// Writes the file and syncs it to the disk before it gets its name.
    ///
    /// # Errors
    /// The errors of [`ContainerWriter::finish`]. The temporary file is removed, and an existing file of that name
    /// stays.
    pub fn save(self) -> Result<WriteSummary> {
        let (written, file) = self.finish()?;
        file.commit()?;
        Ok(written)
    }
}
