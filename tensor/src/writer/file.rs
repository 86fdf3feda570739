//! A file that is there whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Result, TensorError};
use crate::writer::{ContainerWriter, WriteSummary};

/// Permission bits of a new file, before the process's mask takes from them.
const MODE: u32 = 0o666;

/// A file beside the one it is to become. Dropped before [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins what is to become `path`.
    ///
    /// # Errors
    /// `E_IO`: nothing can be made in its folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
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

    /// Has the system put it on the disk, gives it its name, and has that put on the disk.
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

/// The folder a path lies in.
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
    /// A metatensor that is to become the file `path`.
    ///
    /// # Errors
    /// `E_IO`: nothing can be made in its folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        AtomicFile::create(path).map(Self::new)
    }

    /// Writes the file, has the system put it on the disk, and only then gives it its name.
    ///
    /// # Errors
    /// As [`ContainerWriter::finish`]. Nothing is left behind, and a file that had the name keeps it.
    pub fn save(self) -> Result<WriteSummary> {
        let (written, file) = self.finish()?;
        file.commit()?;
        Ok(written)
    }
}
