//! A machine's disks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::controller::{DiskController, DiskFormat};
use crate::error::{Error, Result};
use crate::record::DiskRecorder;

/// Serial number by which the node finds its data disk.
pub const DATA_SERIAL: &str = "alk-data";

/// The smallest hole of a file system.
const PAGE_BYTES: usize = 4096;
const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A disk, by virtio unless it is put [on](Self::on) another controller.
#[derive(Clone, Debug)]
pub struct VirtioDisk {
    pub(crate) backing: Backing,
    pub(crate) controller: DiskController,
    pub(crate) format: DiskFormat,
    pub(crate) read_only: bool,
    pub(crate) serial: Option<String>,
    pub(crate) plugged: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Backing {
    File(PathBuf),
    Recorder(PathBuf),
    Snapshot(PathBuf),
    Unreadable(PathBuf),
}

impl VirtioDisk {
    /// An image, written in place. It is raw unless it has another [`format`](Self::format).
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::with(Backing::File(path.into()))
    }

    /// An image that stays as it is: the guest's writes are lost when the machine ends.
    pub fn snapshot(path: impl Into<PathBuf>) -> Self {
        Self::with(Backing::Snapshot(path.into()))
    }

    /// A raw image that cannot be read: the guest gets an I/O error for every read.
    pub fn unreadable(path: impl Into<PathBuf>) -> Self {
        Self::with(Backing::Unreadable(path.into()))
    }

    /// A disk whose writes are recorded, for power cuts.
    pub fn recorded(recorder: &DiskRecorder) -> Self {
        Self::with(Backing::Recorder(recorder.socket().to_owned()))
    }

    /// Hangs the disk on another controller than virtio's. Not on microvm.
    #[must_use]
    pub fn on(mut self, controller: DiskController) -> Self {
        self.controller = controller;
        self
    }

    /// Sets the format of the image.
    #[must_use]
    pub fn format(mut self, format: DiskFormat) -> Self {
        self.format = format;
        self
    }

    /// Forbids the guest to write.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Sets the serial number that the guest sees, at most 20 characters (virtio).
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// Keeps the disk out until [`Vm::plug_disk`](crate::Vm::plug_disk), with a slot that waits for
    /// it. Virtio only, and not on microvm.
    #[must_use]
    pub fn unplugged(mut self) -> Self {
        self.plugged = false;
        self
    }

    /// Makes it the node's data disk.
    #[must_use]
    pub fn data(self) -> Self {
        self.serial(DATA_SERIAL)
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.backing {
            Backing::File(path)
            | Backing::Recorder(path)
            | Backing::Snapshot(path)
            | Backing::Unreadable(path) => Some(path),
        }
    }

    /// The same disk without the path of its file.
    pub(crate) fn anywhere(&self) -> Self {
        let anywhere = PathBuf::from("/disk");
        let backing = match &self.backing {
            Backing::File(_) => Backing::File(anywhere),
            Backing::Recorder(_) => Backing::Recorder(anywhere),
            Backing::Snapshot(_) => Backing::Snapshot(anywhere),
            Backing::Unreadable(_) => Backing::Unreadable(anywhere),
        };
        Self {
            backing,
            ..self.clone()
        }
    }

    fn with(backing: Backing) -> Self {
        Self {
            backing,
            controller: DiskController::VirtioBlk,
            format: DiskFormat::Raw,
            read_only: false,
            serial: None,
            plugged: true,
        }
    }
}

/// Makes a blank sparse image of `bytes`.
pub fn blank(path: &Path, bytes: u64) -> Result<()> {
    // The file is sparse: a block takes space once it is written.
    let make = || File::create(path)?.set_len(bytes);
    make().map_err(Error::io(format!("making the disk {}", path.display())))
}

/// Copies an image without filling its holes. Pages of zeros become holes.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_sparse(from, to).map_err(Error::io(format!(
        "copying the disk {} to {}",
        from.display(),
        to.display()
    )))
}

/// A checksum of a file. It misses one damage in 2⁶⁴, and does not resist forgery. Holes are not
/// read.
pub fn checksum(path: &Path) -> Result<u64> {
    checksum_sparse(path).map_err(Error::io(format!("reading {}", path.display())))
}

/// The content of an image, page by page, without pages of zeros. Pages that lie apart have one
/// page of zeros between them here.
pub fn content(path: &Path) -> Result<Vec<u8>> {
    content_sparse(path).map_err(Error::io(format!("reading {}", path.display())))
}

fn content_sparse(path: &Path) -> io::Result<Vec<u8>> {
    let (mut content, mut end) = (Vec::new(), 0);
    each_page(&File::open(path)?, |at, page| {
        // A hole counts as one page of zeros, so that "ab" before and after a hole is not one text.
        if at != end {
            content.extend(ZEROES);
        }
        content.extend_from_slice(page);
        end = at + page.len() as u64;
        Ok(())
    })?;
    Ok(content)
}

fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (source, target) = (File::open(from)?, File::create(to)?);
    target.set_len(source.metadata()?.len())?;
    each_page(&source, |at, page| target.write_all_at(page, at))
}

fn checksum_sparse(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let mut sum = file.metadata()?.len();
    // Each step can be undone, so a later step does not cancel a difference.
    let mut add = |word: u64| {
        sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 32;
    };
    each_page(&file, |at, page| {
        add(at);
        for word in page.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            add(u64::from_le_bytes(bytes));
        }
        Ok(())
    })?;
    Ok(sum)
}

/// Calls `page` with the offset and the bytes of each page that is not all zeros.
fn each_page(file: &File, mut page: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    use nix::unistd::{Whence, lseek64};
    let mut at = 0_i64;
    loop {
        let start = match lseek64(file, at, Whence::SeekData) {
            Ok(start) => start,
            // There are no data after `at`: only a hole is left.
            Err(nix::Error::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = lseek64(file, start, Whence::SeekHole)?;
        each_page_of(file, start.cast_unsigned()..at.cast_unsigned(), &mut page)?;
    }
}

fn each_page_of(
    file: &File,
    range: Range<u64>,
    page: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let want = want.min(buffer.len());
        file.read_exact_at(&mut buffer[..want], at)?;
        for bytes in buffer[..want].chunks(PAGE_BYTES) {
            if bytes != &ZEROES[..bytes.len()] {
                page(at, bytes)?;
            }
            at += bytes.len() as u64;
        }
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
        let zeroes = vec![0; 16 << 20];
        file.write_all_at(&zeroes, 40 << 20).expect("just made");
        copy(&from, &to).expect("both are ours");
        let sum = |path: &Path| checksum(path).expect("it is there");
        assert_eq!(sum(&from), sum(&to), "the holes are others");
        let changed = File::options().write(true).open(&from);
        let changed = changed.expect("just made");
        changed.write_all_at(b"m", 34 << 20).expect("just made");
        assert_ne!(sum(&from), sum(&to));
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
    fn what_lies_apart_on_a_disk_is_apart_in_its_content() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let path = dir.path().join("disk");
        blank(&path, 64 << 20).expect("the directory is ours");
        let of = |path: &Path| -> Vec<u8> { content(path).expect("it is there") };
        assert!(of(&path).is_empty());
        let file = File::options().write(true).open(&path).expect("just made");
        let page = PAGE_BYTES as u64;
        for (at, byte) in [(0, b'a'), (page, b'b'), (1000 * page, b'c')] {
            file.write_all_at(&[byte; PAGE_BYTES], at)
                .expect("just made");
        }
        let parts = [
            [b'a'; PAGE_BYTES],
            [b'b'; PAGE_BYTES],
            ZEROES,
            [b'c'; PAGE_BYTES],
        ];
        assert!(of(&path) == parts.concat(), "other pages, or another order");
    }

    #[test]
    fn a_disk_that_is_not_there_is_named() {
        let error =
            copy(Path::new("/nowhere/disk"), Path::new("/dev/null")).expect_err("not there");
        assert!(error.to_string().contains("/nowhere/disk"), "{error}");
    }
}
