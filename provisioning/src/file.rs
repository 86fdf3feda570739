//! Reads files from media and other sources outside the node, and replaces files atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::ProvisioningError;

/// The content of a regular file, cut off one byte after `limit`, so that the caller notices a
/// longer file. `None` if the file does not exist. Never blocks on a pipe or a terminal, and does
/// not follow a link in the last component.
pub(crate) fn read_bounded(
    path: &Path,
    limit: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>, ProvisioningError> {
    let failed = |source| ProvisioningError::Read {
        path: path.to_owned(),
        source,
    };
    let not_a_file = || ProvisioningError::NotAFile {
        path: path.to_owned(),
    };
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        // A link or a socket instead of a file is not a hardware fault of the medium.
        Err(error) if is_special(&error) => return Err(not_a_file()),
        Err(error) => return Err(failed(error)),
    };
    // A folder or a device can be opened for reading too.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(not_a_file());
    }
    read_from(&file, limit).map(Some).map_err(failed)
}

/// The content of an open file, cut off one byte after `limit`.
pub(crate) fn read_from(file: &File, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // A buffer that grows leaves old copies in memory, and they may be secret.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 2));
    // One byte more than the limit, so that the caller sees that the file is longer.
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens for reading without waiting and without following a link.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Opens a block device, or a file used as one. Without O_NONBLOCK, so that a drive without a
/// medium is an error. Otherwise the open would succeed, and each read would make many kernel
/// messages.
pub(crate) fn open_device(path: &Path) -> io::Result<File> {
    let kind = fs::symlink_metadata(path)?.file_type();
    // Opening a character device, such as a tape or a terminal, can have effects.
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
}

/// Makes a folder that only root can enter, if it does not exist.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces `path` by a file that only root can read. A power cut leaves the old or the new file.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    alknet_durable::replace(path, content, 0o600)
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

/// A link, a socket, or a device without a driver.
fn is_special(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LIMIT: usize = 4096;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("plain"), b"x").expect("a writable directory");
        symlink(at("plain"), at("link")).expect("a writable directory");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");

        let read = |path: &Path| {
            let read = read_bounded(path, LIMIT).expect("no error");
            read.map(|bytes| bytes.to_vec())
        };
        assert_eq!(read(&at("plain")), Some(b"x".to_vec()));
        assert_eq!(read(&at("absent")), None);
        assert_eq!(read(&at("plain/below")), None);
        for special in [
            at("link"),
            at("pipe"),
            at("socket"),
            dir.path().into(),
            "/dev/null".into(),
        ] {
            let result = read_bounded(&special, LIMIT);
            let refused = matches!(result, Err(ProvisioningError::NotAFile { .. }));
            assert!(refused, "{special:?}: {result:?}");
        }
    }

    #[test]
    fn endless_files_are_cut_off_after_the_limit() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("long");
        fs::write(&path, vec![b'#'; LIMIT * 4]).expect("a writable directory");
        let read = read_bounded(&path, LIMIT)
            .expect("readable")
            .expect("there");
        assert_eq!(read.len(), LIMIT + 1);
    }
}
