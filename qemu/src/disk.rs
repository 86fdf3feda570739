//! A machine's disks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::record::Recorder;

/// Serial number by which the node finds its data disk.
pub const DATA_SERIAL: &str = "alk-data";

/// A virtio disk.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(crate) backing: Backing,
    pub(crate) read_only: bool,
    pub(crate) serial: Option<String>,
    pub(crate) plugged: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Backing {
    File(PathBuf),
    Recorder(PathBuf),
    Snapshot(PathBuf),
}

impl Disk {
    /// A raw image, written in place.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::with(Backing::File(path.into()))
    }

    /// A raw image that stays as it is: what the guest writes is lost when the machine ends.
    pub fn snapshot(path: impl Into<PathBuf>) -> Self {
        Self::with(Backing::Snapshot(path.into()))
    }

    /// A disk whose writes are recorded, for power cuts.
    pub fn recorded(recorder: &Recorder) -> Self {
        Self::with(Backing::Recorder(recorder.socket().to_owned()))
    }

    /// The guest may not write.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Serial number the guest sees, at most 20 characters (virtio).
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// Not there until [`Vm::plug_disk`](crate::Vm::plug_disk); a slot waits for it. Not on microvm.
    #[must_use]
    pub fn unplugged(mut self) -> Self {
        self.plugged = false;
        self
    }

    /// The node's data disk.
    #[must_use]
    pub fn data(self) -> Self {
        self.serial(DATA_SERIAL)
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.backing {
            Backing::File(path) | Backing::Recorder(path) | Backing::Snapshot(path) => Some(path),
        }
    }

    fn with(backing: Backing) -> Self {
        Self {
            backing,
            read_only: false,
            serial: None,
            plugged: true,
        }
    }
}

/// Makes a blank sparse image of `bytes`.
pub fn blank(path: &Path, bytes: u64) -> Result<()> {
    let make = || File::create(path)?.set_len(bytes);
    make().map_err(Error::io(format!("making the disk {}", path.display())))
}

/// Copies an image without filling its holes.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_sparse(from, to).map_err(Error::io(format!(
        "copying the disk {} to {}",
        from.display(),
        to.display()
    )))
}

fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    use nix::unistd::{Whence, lseek64};
    let (source, target) = (File::open(from)?, File::create(to)?);
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0_i64;
    loop {
        let start = match lseek64(&source, at, Whence::SeekData) {
            Ok(start) => start,
            // No data after `at`: only a hole is left.
            Err(nix::Error::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek64(&source, start, Whence::SeekHole)?;
        copy_range(&source, &target, start.cast_unsigned(), end.cast_unsigned())?;
        at = end;
    }
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = source.read_at(&mut buffer[..want], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_keeps_its_holes() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        blank(&from, 64 << 20).expect("the directory is ours");
        let file = File::options().write(true).open(&from).expect("just made");
        file.write_all_at(b"middle", 33 << 20).expect("just made");
        copy(&from, &to).expect("both are ours");
        let copied = File::open(&to).expect("just copied");
        let mut bytes = [0; 6];
        copied
            .read_exact_at(&mut bytes, 33 << 20)
            .expect("it is long enough");
        let metadata = copied.metadata().expect("it is open");
        assert_eq!((&bytes, metadata.len()), (b"middle", 64 << 20));
        assert!(
            metadata.blocks() * 512 < 8 << 20,
            "{} blocks",
            metadata.blocks()
        );
    }

    #[test]
    fn a_disk_that_is_not_there_is_named() {
        let error =
            copy(Path::new("/nowhere/disk"), Path::new("/dev/null")).expect_err("not there");
        assert!(error.to_string().contains("/nowhere/disk"), "{error}");
    }
}
