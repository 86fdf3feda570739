//! What a folder of objects asks of the disk beside reads.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// How bytes and names get to the disk, and how the bytes of a removed file are freed. Tests take the place of the
/// system, to record these calls or to let them fail.
pub trait ObjectDisk: fmt::Debug + Send + Sync + 'static {
    /// Writes bytes at an offset of a file.
    ///
    /// # Errors
    /// The disk is full or fails. A part of the bytes may be written.
    fn write_at(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Gives a file another name, and takes that name from what had it.
    ///
    /// # Errors
    /// The disk is full or fails. The file has its former name then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Takes its name from a file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the disk fails.
    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    /// Returns when the content and the metadata of a file are on the disk.
    ///
    /// # Errors
    /// The disk fails. The system may report a loss only once, so a file whose sync failed is given up.
    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Returns when the content of a file is on the disk, with its length.
    ///
    /// # Errors
    /// As for [`sync_file`](Self::sync_file).
    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Returns when the names in a folder are on the disk.
    ///
    /// # Errors
    /// The folder cannot be opened, or the disk fails.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        alknet_durable::sync_folder(folder)
    }

    /// Closes the last descriptor of a file without a name, which frees its bytes. No lock of the folder is held.
    fn free(&self, removed: File) {
        drop(removed);
    }
}

/// The disk of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemObjectDisk;

impl ObjectDisk for SystemObjectDisk {}

/// Opens a stored file to read it. A program with access to the folder may have put something else in its place: a link
/// is not followed, and a pipe is not waited for.
///
/// # Errors
/// [`ErrorKind::InvalidData`] for what is no regular file, and the errors of the system.
pub(crate) fn open_object(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(no_regular_file());
        }
        file => file?,
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(no_regular_file()),
    }
}

fn no_regular_file() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it is no regular file")
}

/// A descriptor that keeps the bytes of a file from being freed when its name goes. To free the blocks of a long file
/// takes the file system seconds, and the caller holds a lock meanwhile. `None` where the file cannot be opened: its bytes
/// are freed with the name then.
pub(crate) fn hold_bytes(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    // It gives no access to the content, so that the permission bits of the file do not matter.
    let options = options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    options.open(path).ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// The system cannot sync a pipe and a folder of `/proc`, and says so: without the calls, both would succeed.
    #[test]
    fn the_disk_of_the_system_syncs() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let pipe = File::from(OwnedFd::from(reader));
        let kind = |synced: io::Result<()>| synced.expect_err("it is no file").kind();
        assert_eq!(
            kind(SystemObjectDisk.sync_file(&pipe)),
            ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(SystemObjectDisk.sync_data(&pipe)),
            ErrorKind::InvalidInput
        );
        let folder = SystemObjectDisk.sync_folder(Path::new("/proc/self"));
        assert_eq!(kind(folder), ErrorKind::InvalidInput);
        let dir = tempfile::tempdir().expect("writable");
        SystemObjectDisk.sync_folder(dir.path()).expect("a folder");
        let file = File::create(dir.path().join("file")).expect("writable");
        SystemObjectDisk.sync_file(&file).expect("a file");
        SystemObjectDisk.sync_data(&file).expect("a file");
    }
}
