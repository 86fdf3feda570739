//! The raw disk in the containers that hypervisors and clouds take.
//!
//! Each writer fixes every field that other programs fill with a time or a random number, so two builds give the same
//! bytes. Blocks that have zeros alone are left out wherever the format can leave them out.

pub(crate) mod aws;
pub(crate) mod gce;
pub(crate) mod ova;
pub(crate) mod qcow2;
pub(crate) mod vhd;
pub(crate) mod vhdx;
pub(crate) mod vmdk;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use uuid::Uuid;

use self::vhdx::VhdxIds;
use self::vmdk::VmdkKind;
use crate::disk::LBA_BYTES;

/// What file systems give a file at a time.
const PAGE_BYTES: usize = 4096;

/// A container of a disk, for [`write_virtual_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualDiskFormat {
    /// QEMU's, version 3.
    Qcow2,
    /// Microsoft's fixed disk.
    Vhd,
    /// Hyper-V's disk of its second generation.
    Vhdx,
    /// VMware's sparse disk, which a hypervisor can write to.
    VmdkSparse,
    /// VMware's compressed disk for an import.
    VmdkStream,
}

impl VirtualDiskFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Qcow2,
        Self::Vhd,
        Self::Vhdx,
        Self::VmdkSparse,
        Self::VmdkStream,
    ];
}

/// Writes the disk in `raw`, of whole blocks of 512 bytes, to the empty file `output`. The identifiers in it are fixed:
/// [`build`](crate::build) derives those of an image from its content. Holes of `raw` count as zeros and are not read.
///
/// # Errors
/// A file cannot be read or written.
///
/// # Panics
/// The disk does not have whole blocks.
pub fn write_virtual_disk(format: VirtualDiskFormat, raw: File, output: &File) -> io::Result<()> {
    const ID: Uuid = Uuid::from_u128(1);
    let disk = RawDisk::sparse(raw)?;
    let vmdk = |kind| vmdk::write(output, &disk, kind, "disk.vmdk", 1);
    match format {
        VirtualDiskFormat::Qcow2 => qcow2::write(output, &disk),
        VirtualDiskFormat::Vhd => vhd::write(output, &disk, ID),
        VirtualDiskFormat::Vhdx => {
            let ids = VhdxIds {
                file: ID,
                data: ID,
                disk: ID,
            };
            vhdx::write(output, &disk, ids)
        }
        VirtualDiskFormat::VmdkSparse => vmdk(VmdkKind::MonolithicSparse),
        VirtualDiskFormat::VmdkStream => vmdk(VmdkKind::StreamOptimized),
    }
}

/// A finished raw disk.
#[derive(Debug)]
pub(crate) struct RawDisk {
    file: File,
    bytes: u64,
    /// Parts that are known to have zeros alone.
    holes: Vec<Range<u64>>,
}

impl RawDisk {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        assert_eq!(bytes % LBA_BYTES, 0, "a disk has whole blocks");
        Ok(Self {
            file,
            bytes,
            holes: Vec::new(),
        })
    }

    /// Like `new`, and knows the holes of the file. A build does not use it: file systems have reported holes where
    /// data had just been written.
    pub(crate) fn sparse(file: File) -> io::Result<Self> {
        let mut disk = Self::new(file)?;
        disk.holes = holes(&disk.file, disk.bytes)?;
        Ok(disk)
    }

    /// The disk as a file.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Size in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of units of `unit` bytes; the last one may be longer than what is left of the disk.
    pub(crate) const fn units(&self, unit: u64) -> u64 {
        self.bytes.div_ceil(unit)
    }

    /// Reads one unit, with zeros behind the end of the disk. `None` if it has zeros alone.
    pub(crate) fn unit(&self, unit: u64, index: u64) -> io::Result<Option<Vec<u8>>> {
        let at = unit * index;
        let parts = self.data(at..self.bytes.min(at + unit));
        if parts.is_empty() {
            return Ok(None);
        }
        let mut content = vec![0; to_usize(unit)];
        for part in parts {
            let place = to_usize(part.start - at)..to_usize(part.end - at);
            self.file.read_exact_at(&mut content[place], part.start)?;
        }
        Ok((!is_zero(&content)).then_some(content))
    }

    /// The parts of a range that are in no hole.
    fn data(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut from = range.start;
        for hole in &self.holes {
            let end = hole.start.min(range.end);
            if from < end {
                parts.push(from..end);
            }
            from = from.max(hole.end);
        }
        if from < range.end {
            parts.push(from..range.end);
        }
        parts
    }

    /// Which units have another byte than zero.
    pub(crate) fn used(&self, unit: u64) -> io::Result<Vec<bool>> {
        (0..self.units(unit))
            .map(|index| Ok(self.unit(unit, index)?.is_some()))
            .collect()
    }
}

/// The parts of a file of so many bytes in which nothing was written.
fn holes(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let end = i64::try_from(bytes).map_err(io::Error::other)?;
    let mut holes = Vec::new();
    let mut at = 0;
    while at < end {
        let data = match lseek64(file, at, Whence::SeekData) {
            // There are no data behind `at`.
            Err(Errno::ENXIO) => end,
            found => found?,
        };
        if data > at {
            holes.push(at.cast_unsigned()..data.cast_unsigned());
        }
        at = match data < end {
            true => lseek64(file, data, Whence::SeekHole)?,
            false => end,
        };
    }
    Ok(holes)
}

/// Writes to a part of a new file. Pages of zeros stay holes.
fn write_data(file: &File, content: &[u8], at: u64) -> io::Result<()> {
    for (page, place) in content.chunks(PAGE_BYTES).zip((at..).step_by(PAGE_BYTES)) {
        if !is_zero(page) {
            file.write_all_at(page, place)?;
        }
    }
    Ok(())
}

/// Whether the bytes are zeros alone. A comparison of pages takes a fraction of the time of a look at each byte.
fn is_zero(content: &[u8]) -> bool {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut pages = content.chunks(PAGE_BYTES);
    pages.all(|page| page == &ZEROS[..page.len()])
}

/// A number of bytes in memory.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("images are built on 64-bit machines")
}

/// Writes fields of a header, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct HeaderBytes(pub(crate) Vec<u8>);

impl HeaderBytes {
    pub(crate) fn put(&mut self, field: &[u8]) -> &mut Self {
        self.0.extend_from_slice(field);
        self
    }

    /// The header, with zeros up to `bytes`.
    pub(crate) fn padded(&mut self, bytes: usize) -> Vec<u8> {
        assert!(self.0.len() <= bytes, "the header is fixed");
        let mut header = std::mem::take(&mut self.0);
        header.resize(bytes, 0);
        header
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn units_of_zeros_are_left_out_and_the_last_one_is_filled() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[0; 1024]).expect("writable");
        file.write_all(&[7; 512]).expect("writable");
        let disk = RawDisk::new(file).expect("readable");
        assert_eq!(disk.units(1024), 2);
        assert_eq!(disk.used(1024).expect("readable"), [false, true]);
        let last = disk.unit(1024, 1).expect("readable").expect("not zeros");
        assert_eq!((last[511], last[512], last.len()), (7, 0, 1024));
    }
    #[test]
    fn a_byte_other_than_zero_is_found_at_every_place() {
        let mut content = vec![0; 4096 + 512];
        assert!(is_zero(&content) && is_zero(&[]));
        for at in [0, 4095, 4096, 4607] {
            content[at] = 1;
            assert!(!is_zero(&content), "{at}");
            content[at] = 0;
        }
    }

    #[test]
    fn pages_of_zeros_are_not_written() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(20_000).expect("writable");
        let mut content = vec![0; 3 * PAGE_BYTES + 10];
        content[PAGE_BYTES] = 1;
        content[3 * PAGE_BYTES + 9] = 2;
        write_data(&file, &content, 1000).expect("writable");
        let mut read = vec![9; 20_000];
        file.read_exact_at(&mut read, 0).expect("readable");
        let end = 1000 + content.len();
        assert!(read[1000..end] == content);
        assert!(is_zero(&read[..1000]) && is_zero(&read[end..]));
    }

    /// A file in memory has holes on every computer.
    #[test]
    fn a_disk_whose_holes_are_known_is_the_same_disk() {
        let file = memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
        let file = File::from(file);
        let bytes = (3 << 20) + 1024;
        file.set_len(bytes).expect("a sparse file");
        let empty = RawDisk::sparse(file.try_clone().expect("a descriptor")).expect("readable");
        assert_eq!(empty.holes.first(), Some(&(0..bytes)));
        // Over the border of a unit, and the last byte.
        for (content, at) in [(&[7; 5][..], (1 << 20) - 3), (&[9][..], bytes - 1)] {
            file.write_all_at(content, at).expect("writable");
        }
        let sparse = RawDisk::sparse(file.try_clone().expect("a descriptor")).expect("readable");
        let whole = RawDisk::new(file).expect("readable");
        assert_eq!((sparse.holes.len(), whole.holes.len()), (2, 0));
        for unit in [512, 64 << 10, 1 << 20] {
            assert_eq!(
                sparse.used(unit).expect("readable"),
                whole.used(unit).expect("readable")
            );
            for index in 0..whole.units(unit) {
                let units = [&sparse, &whole].map(|it| it.unit(unit, index).expect("readable"));
                assert!(units[0] == units[1], "{unit} {index}");
            }
        }
    }
}
