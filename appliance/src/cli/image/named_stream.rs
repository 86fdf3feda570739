//! Pipes and character devices that a person names on the command line, as an output or as an input.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

/// The bits by which users other than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a folder in which users may rename and remove only their own files.
const STICKY: u32 = 0o1000;
/// How many links the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// Opens a pipe or a character device with these options. An open of a pipe waits for its other end. `None` if a regular
/// file is there, or nothing.
///
/// Refused is what another user may have put there: an open of a watchdog starts it, and a pipe may have no other end.
pub(super) fn open_stream(path: &Path, options: &mut OpenOptions) -> io::Result<Option<File>> {
    let mut looking = File::options();
    // open(2), O_PATH: the descriptor stays with this file, and the file itself is not opened.
    let looking = looking.read(true).custom_flags(OFlag::O_PATH.bits());
    let found = match looking.open(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // proc(5): this name leads to the file of the descriptor, and not to what has its path now.
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    let about = fs::metadata(&name)?;
    let kind = about.file_type();
    if kind.is_file() {
        return Ok(None);
    }
    if !kind.is_fifo() && !kind.is_char_device() {
        return Err(io::Error::other(
            "it is a folder, a socket or a disk; name another one",
        ));
    }
    // An ordinary user can make pipes and links, and no devices.
    let is_device = kind.is_char_device() && is_same(&about, &fs::symlink_metadata(path)?);
    if !is_device && !is_safe(path, &about)? {
        return Err(io::Error::other(
            "it is a pipe or a link, and another user may have put it there; name one in a folder to which only you can \
             write",
        ));
    }
    // A terminal does not become that of this process.
    let options = options.custom_flags(OFlag::O_NOCTTY.bits());
    options.open(name).map(Some)
}

/// Whether only this user and root can have put each link there that leads from the path to the file that was found, and
/// the file itself, and can put another one there.
fn is_safe(path: &Path, found: &Metadata) -> io::Result<bool> {
    let mut path = path.to_owned();
    for _ in 0..=LINKS_MAX {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let named = fs::symlink_metadata(&path)?;
        if !is_safe_in(folder, &named)? {
            return Ok(false);
        }
        // The links of proc(5) lead to the files that a process has open, such as that of /dev/stdout. What they say is
        // no path.
        if !named.is_symlink() || statfs(folder)?.filesystem_type() == PROC_SUPER_MAGIC {
            return Ok(is_same(found, &fs::metadata(&path)?));
        }
        path = folder.join(fs::read_link(&path)?);
    }
    Ok(false)
}

/// The same for one file of a folder: a link, a pipe or a device.
fn is_safe_in(folder: &Path, named: &Metadata) -> io::Result<bool> {
    let folder = fs::metadata(folder)?;
    let user = nix::unistd::geteuid().as_raw();
    let is_own = |about: &Metadata| about.uid() == user || about.uid() == 0;
    let is_sticky = folder.mode() & STICKY != 0;
    let is_closed = folder.mode() & OTHERS_WRITE == 0 || is_sticky;
    // A terminal belongs to the user who has logged in there.
    let is_device = named.file_type().is_char_device();
    Ok(is_own(&folder) && is_closed && (is_own(named) || is_device))
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
