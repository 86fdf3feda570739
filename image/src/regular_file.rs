//! Reads regular files, and disks, of folders in which another user may have put a pipe, a device or an endless file.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use thiserror::Error;

/// Why a file was not read. The caller's message names the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegularFileError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is a folder, a pipe, a socket or a device, or a link to one.
    #[error("it is no regular file; name another one")]
    NotRegular,
    /// It is longer than the caller's limit.
    #[error("it is {bytes} bytes, beyond {bytes_max}; name another file")]
    TooLong {
        /// Its length in bytes, or the part of it that was read.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
}

impl From<RegularFileError> for io::Error {
    fn from(error: RegularFileError) -> Self {
        match error {
            RegularFileError::Unreadable(source) => source,
            error => Self::other(error),
        }
    }
}

/// The content of a regular file of at most `bytes_max` bytes. A link to one is followed. Nothing else is opened: an
/// open of a watchdog starts it, an open of a pipe waits for another process, and a device may have no end.
///
/// ```
/// use alknet_image::{RegularFileError, read_regular};
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("1.root.json");
/// std::fs::write(&file, "{}")?;
/// assert_eq!(read_regular(&file, 2)?, b"{}");
/// let refused = read_regular(&file, 1);
/// assert!(matches!(refused, Err(RegularFileError::TooLong { bytes: 2, .. })));
/// let refused = read_regular("/dev/zero".as_ref(), 2);
/// assert!(matches!(refused, Err(RegularFileError::NotRegular)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// It is no regular file, is too long, or cannot be read.
pub fn read_regular(path: &Path, bytes_max: u64) -> Result<Vec<u8>, RegularFileError> {
    let file = open_regular(path)?;
    let check_length = |bytes: u64| match bytes > bytes_max {
        true => Err(RegularFileError::TooLong { bytes, bytes_max }),
        false => Ok(()),
    };
    // The size is checked before the file is read, which would fill the memory, and once more: the file may grow.
    check_length(file.metadata().map_err(RegularFileError::Unreadable)?.len())?;
    let mut content = Vec::new();
    let mut file = file.take(bytes_max.saturating_add(1));
    file.read_to_end(&mut content)
        .map_err(RegularFileError::Unreadable)?;
    check_length(content.len() as u64)?;
    Ok(content)
}

/// Opens a regular file to read it. A link to one is followed. Nothing else is opened, whatever another process puts in
/// its place meanwhile: an open of a watchdog starts it, and an open of a pipe waits for another process.
///
/// ```
/// use alknet_image::{RegularFileError, open_regular};
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("alknet_0.1.0.raw");
/// std::fs::write(&file, "disk")?;
/// assert_eq!(open_regular(&file)?.metadata()?.len(), 4);
/// let refused = open_regular("/dev/zero".as_ref());
/// assert!(matches!(refused, Err(RegularFileError::NotRegular)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// It is no regular file, or cannot be opened, for example because `/proc` is not mounted.
pub fn open_regular(path: &Path) -> Result<File, RegularFileError> {
    open_after(path, |kind| kind.is_file(), || ())
}

/// Does the same for a regular file or a block device: a disk, or a copy of one.
///
/// ```
/// use alknet_image::{RegularFileError, open_regular_or_disk};
///
/// let folder = tempfile::tempdir()?;
/// let copy = folder.path().join("copy.raw");
/// std::fs::write(&copy, "disk")?;
/// assert_eq!(open_regular_or_disk(&copy)?.metadata()?.len(), 4);
/// let refused = open_regular_or_disk("/dev/zero".as_ref());
/// assert!(matches!(refused, Err(RegularFileError::NotRegular)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// It is neither, or cannot be opened, for example because `/proc` is not mounted.
pub fn open_regular_or_disk(path: &Path) -> Result<File, RegularFileError> {
    open_after(path, |kind| kind.is_file() || kind.is_block_device(), || ())
}

/// Opens a file of a kind that `is_permitted`. `looked` is called between the look at the kind and the open, where a
/// test changes the folder.
fn open_after(
    path: &Path,
    is_permitted: impl FnOnce(FileType) -> bool,
    looked: impl FnOnce(),
) -> Result<File, RegularFileError> {
    let open = |path: &Path, flags| {
        // The standard library adds O_CLOEXEC.
        let mut options = File::options();
        options.read(true).custom_flags(flags).open(path)
    };
    // open(2), O_PATH: the descriptor stays with this file, and the file itself is not opened.
    let found = open(path, libc::O_PATH).map_err(RegularFileError::Unreadable)?;
    // proc(5): this name leads to the file of the descriptor, and not to what has its path now. Without /proc the
    // function refuses the file, because an open by the path could reach a device.
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    let unreadable = |error: io::Error| {
        RegularFileError::Unreadable(match error.kind() {
            io::ErrorKind::NotFound => io::Error::other("it takes /proc, which is not mounted"),
            _ => error,
        })
    };
    // Linux before 3.6 does not answer fstat(2) for such a descriptor.
    let kind = fs::metadata(&name).map_err(unreadable)?.file_type();
    if !is_permitted(kind) {
        return Err(RegularFileError::NotRegular);
    }
    looked();
    // O_NONBLOCK: the open does not wait for the end of a lease (fcntl(2), F_SETLEASE) of the file's owner. A disk has
    // no lease, and with the flag the kernel would not look whether a drive has a medium.
    let flags = match kind.is_block_device() {
        true => 0,
        false => libc::O_NONBLOCK,
    };
    open(name.as_ref(), flags).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// The kernel reports each open of the pipe, so the test does not depend on what an open of it causes.
    #[test]
    fn what_is_no_regular_file_is_not_even_opened() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [pipe, link] = ["pipe", "link"].map(|name| folder.path().join(name));
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        symlink(&pipe, &link).expect("the folder is ours");
        let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opened
            .add_watch(&pipe, AddWatchFlags::IN_OPEN)
            .expect("it is there");
        for path in [&pipe, &link] {
            let refused = read_regular(path, 1).expect_err("it is a pipe");
            assert!(matches!(refused, RegularFileError::NotRegular), "{refused}");
            let events = opened.read_events().map(|events| events.len());
            assert_eq!(events, Err(Errno::EAGAIN), "{}", path.display());
        }
        // The watch does report an open.
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(&pipe).expect("it waits for no writer");
        assert!(opened.read_events().is_ok_and(|events| !events.is_empty()));
    }

    /// The attack: the link leads to a regular file while the command looks, and to a watchdog when it opens.
    #[test]
    fn what_takes_the_place_of_a_regular_file_after_the_look_is_not_opened() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [file, pipe, link] = ["file", "pipe", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "12345").expect("the folder is ours");
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        symlink(&file, &link).expect("the folder is ours");
        let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opened
            .add_watch(&pipe, AddWatchFlags::IN_OPEN)
            .expect("it is there");
        let swap = || {
            fs::remove_file(&link).expect("it is there");
            symlink(&pipe, &link).expect("the folder is ours");
        };
        let opened_before = open_after(&link, |kind| kind.is_file(), swap);
        let mut file = opened_before.expect("it was a regular file");
        let events = opened.read_events().map(|events| events.len());
        assert_eq!(events, Err(Errno::EAGAIN), "the pipe was opened");
        let mut content = String::new();
        file.read_to_string(&mut content).expect("readable");
        assert_eq!(content, "12345");
        let refused = open_regular(&link).expect_err("it is a pipe now");
        assert!(matches!(refused, RegularFileError::NotRegular), "{refused}");
    }

    /// The same for the second kind of `open_regular_or_disk`. A test has no disk, so a pipe is the kind that is
    /// permitted.
    #[test]
    fn what_takes_the_place_of_another_permitted_kind_after_the_look_is_not_opened() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [first, second, link] =
            ["first", "second", "link"].map(|name| folder.path().join(name));
        for pipe in [&first, &second] {
            mkfifo(pipe, Mode::S_IRWXU).expect("the folder is ours");
        }
        symlink(&first, &link).expect("the folder is ours");
        let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opened
            .add_watch(&second, AddWatchFlags::IN_OPEN)
            .expect("it is there");
        let swap = || {
            fs::remove_file(&link).expect("it is there");
            symlink(&second, &link).expect("the folder is ours");
        };
        let pipe = open_after(&link, |kind| kind.is_fifo(), swap).expect("it is permitted");
        let events = opened.read_events().map(|events| events.len());
        assert_eq!(events, Err(Errno::EAGAIN), "the second pipe was opened");
        let number = |about: fs::Metadata| about.ino();
        let found = pipe.metadata().map(number).expect("it is open");
        let expected = fs::metadata(&first).map(number).expect("it is there");
        assert_eq!(found, expected);
        let refused = open_regular_or_disk(&link).expect_err("it is a pipe");
        assert!(matches!(refused, RegularFileError::NotRegular), "{refused}");
    }

    #[test]
    fn a_regular_file_is_read_up_to_its_limit_and_through_a_link() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "12345").expect("the folder is ours");
        symlink(&file, &link).expect("the folder is ours");
        for path in [&file, &link] {
            assert_eq!(read_regular(path, 5).expect("it fits"), b"12345");
            let refused = read_regular(path, 4).expect_err("too long");
            let said = "it is 5 bytes, beyond 4; name another file";
            assert_eq!(refused.to_string(), said);
        }
        let absent = read_regular(&folder.path().join("absent"), 4).expect_err("nothing is there");
        assert!(
            matches!(absent, RegularFileError::Unreadable(_)),
            "{absent}"
        );
        let other = read_regular(folder.path(), 4).expect_err("a folder");
        assert!(matches!(other, RegularFileError::NotRegular), "{other}");
    }
}
