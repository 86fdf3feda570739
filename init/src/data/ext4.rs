//! The file system of the data partition: it is recognised, made from a template, repaired after a
//! torn write of its superblock, grown, and checked for recorded errors.
//!
//! There is no mkfs here: the build made an empty file system of 128 MiB and kept its few blocks
//! that are not zero. The superblock is written last, after everything else is on stable storage,
//! so that a power cut leaves either no file system or a whole one.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::errno::Errno;

use crate::little_endian::u32_at;

/// Size of the template's file system, and so of the smallest data partition.
pub(crate) const TEMPLATE_BYTES: u64 = 128 << 20;
/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Number of bytes that must be zero for a partition to count as blank.
pub(crate) const BLANK_BYTES: usize = 1 << 20;
/// Unit in which disks write: a power cut tears a write at a multiple of it.
const SECTOR_BYTES: usize = 512;
/// The block of the template with its group's descriptor.
const DESCRIPTORS_BLOCK: usize = 1;
/// Position of the superblock in block 0.
const SUPER_AT: usize = 1024;
/// Bytes of a superblock.
const SUPER_BYTES: usize = 1024;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const INCOMPAT_RECOVER: u32 = 4;

const BLKZEROOUT: libc::c_ulong = 0x127f;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
const EXT4_IOC_SETFSUUID: libc::c_ulong = 0x4008_662c;

static TEMPLATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/template.bin"));

/// Content of a partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FilesystemContent {
    /// Blank: it may be formatted.
    Blank,
    /// A file system.
    Ext4(Ext4Superblock),
    /// An interrupted formatting of this program: it may be formatted again.
    HalfFormatted,
    /// An encrypted volume.
    Luks2,
    /// A file system of this program whose superblock is valid except for its checksum: a torn
    /// write.
    TornSuper,
    /// Data of another system, or a damaged file system.
    Unknown,
}

/// The fields of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ext4Superblock {
    /// Size of the file system.
    pub(crate) bytes: u64,
    /// Whether it was unmounted in order.
    pub(crate) clean: bool,
    /// Number of errors that the kernel recorded in it.
    pub(crate) errors: u32,
    /// Whether it has the mark of errors that were not repaired.
    pub(crate) damaged: bool,
    /// Whether its identifier is still that of the template.
    pub(crate) template_uuid: bool,
}

/// Identifies the content of a partition of `bytes` bytes.
pub(crate) fn probe(file: &File, bytes: u64) -> io::Result<FilesystemContent> {
    let head_bytes = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(BLANK_BYTES);
    let mut block = vec![0; BLOCK_BYTES.min(head_bytes)];
    // One block is read first: at most starts it suffices, and a slow disk need not read the rest
    // of a megabyte.
    file.read_exact_at(&mut block, 0)?;
    if let Some(content) = recognise(&block) {
        return Ok(content);
    }
    let mut head = vec![0; head_bytes];
    file.read_exact_at(&mut head, 0)?;
    Ok(if head.iter().all(|byte| *byte == 0) {
        FilesystemContent::Blank
    } else if is_half_template(&head) {
        FilesystemContent::HalfFormatted
    } else {
        FilesystemContent::Unknown
    })
}

/// Identifies the content by its first block alone. `None` for a torn superblock of the template:
/// the rest of the formatting decides then.
fn recognise(block: &[u8]) -> Option<FilesystemContent> {
    if block.starts_with(b"LUKS\xba\xbe\0\x02") {
        return Some(FilesystemContent::Luks2);
    }
    let bytes = block.get(SUPER_AT..SUPER_AT + SUPER_BYTES)?;
    // s_magic of the superblock (Documentation/filesystems/ext4/super.rst).
    if bytes[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    if checksum_holds(bytes) {
        return Some(FilesystemContent::Ext4(Ext4Superblock::parse(bytes)));
    }
    // An interrupted formatting has a torn superblock as well.
    if is_half_template(block) {
        return None;
    }
    Some(if is_ours(bytes) {
        FilesystemContent::TornSuper
    } else {
        FilesystemContent::Unknown
    })
}

impl Ext4Superblock {
    fn parse(bytes: &[u8]) -> Self {
        let blocks = u64::from(u32_at(bytes, 0x04)) | u64::from(u32_at(bytes, 0x150)) << 32;
        // The shift comes from the disk, so it may be too large.
        let block_bytes = 1024_u64.checked_shl(u32_at(bytes, 0x18)).unwrap_or(0);
        let state = u16::from_le_bytes([bytes[0x3a], bytes[0x3b]]);
        let recover = u32_at(bytes, 0x60) & INCOMPAT_RECOVER != 0;
        Self {
            bytes: blocks.saturating_mul(block_bytes),
            clean: state & STATE_CLEAN != 0 && !recover,
            errors: u32_at(bytes, 0x194),
            damaged: state & STATE_ERRORS != 0,
            template_uuid: bytes[0x68..0x78] == template_super()[0x68..0x78],
        }
    }
}

/// Whether every sector is zero or the template's: an interrupted formatting of this program.
fn is_half_template(head: &[u8]) -> bool {
    let mut expected = vec![0; head.len()];
    for (number, block) in template() {
        if let Some(slot) = expected.get_mut(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES) {
            slot.copy_from_slice(block);
        }
    }
    let sectors = head.chunks(SECTOR_BYTES).zip(expected.chunks(SECTOR_BYTES));
    sectors
        .into_iter()
        .all(|(found, ours)| found == ours || found.iter().all(|byte| *byte == 0))
}

/// Whether the geometry is that of the template, which a file system never changes.
fn is_ours(bytes: &[u8]) -> bool {
    let ours = template_super();
    // Block sizes and groups. Revision to hash seed, without the state. Inode and descriptor sizes.
    let fixed = [0x14..0x2c, 0x4c..0x5e, 0x64..0x68, 0xec..0x100];
    // A mounted file system has this flag, and the template does not.
    let incompat = u32_at(bytes, 0x60) & !INCOMPAT_RECOVER;
    fixed
        .into_iter()
        .all(|range| bytes[range.clone()] == ours[range])
        && incompat == u32_at(ours, 0x60) & !INCOMPAT_RECOVER
}

/// Recomputes the checksum of a [`FilesystemContent::TornSuper`]. Each of its sectors has either
/// the old or the new state, and the journal's replay settles the difference.
pub(crate) fn repair_super(file: &File) -> io::Result<()> {
    let mut bytes = vec![0; SUPER_BYTES];
    file.read_exact_at(&mut bytes, SUPER_AT as u64)?;
    let sum = crc32c(&bytes[..SUPER_BYTES - 4]);
    bytes[SUPER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&bytes, SUPER_AT as u64)?;
    file.sync_all()
}

/// Writes the empty file system. The caller has found the partition blank or half formatted, and at
/// least [`TEMPLATE_BYTES`] large.
pub(crate) fn format(file: &File) -> io::Result<()> {
    // A journal of an earlier use must not be replayed. Blocks that the file system does not use
    // stay as they are: writing all 128 MiB takes a slow card ten seconds, and a sealed partition
    // encrypts each of them.
    for used in used() {
        zero(file, used)?;
    }
    // Block 0 is written last: without its superblock, no program mounts a half-written file
    // system.
    for (number, block) in template().filter(|(number, _)| *number != 0) {
        file.write_all_at(block, (number * BLOCK_BYTES) as u64)?;
    }
    // The disk may write in any order: everything else has to be durable before the superblock.
    file.sync_all()?;
    for (_, block) in template().filter(|(number, _)| *number == 0) {
        file.write_all_at(block, 0)?;
    }
    file.sync_all()
}

/// Ranges of bytes that the template's file system uses: metadata, the journal and directories. All
/// of it lies in one block group, and the group's bitmap names the blocks.
fn used() -> Vec<Range<u64>> {
    let block = |searched: usize| template().find(|(number, _)| *number == searched);
    let bitmap = block(DESCRIPTORS_BLOCK)
        .and_then(|(_, descriptor)| block(u32_at(descriptor, 0) as usize))
        .map_or(&[][..], |(_, bitmap)| bitmap);
    let mut used: Vec<Range<u64>> = Vec::new();
    for number in 0..TEMPLATE_BYTES / BLOCK_BYTES as u64 {
        let byte = usize::try_from(number / 8).unwrap_or(usize::MAX);
        // Without a bitmap, every block counts as used.
        if bitmap
            .get(byte)
            .is_some_and(|byte| byte >> (number % 8) & 1 == 0)
        {
            continue;
        }
        let bytes = number * BLOCK_BYTES as u64..(number + 1) * BLOCK_BYTES as u64;
        match used.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => used.push(bytes),
        }
    }
    used
}

fn zero(file: &File, bytes: Range<u64>) -> io::Result<()> {
    let range = [bytes.start, bytes.end - bytes.start];
    // SAFETY: the ioctl reads the two numbers behind the pointer, which outlive the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) };
    if outcome == 0 {
        return Ok(());
    }
    // Regular files, which tests format, do not have the ioctl.
    let chunk = vec![0; BLANK_BYTES];
    for at in bytes.clone().step_by(BLANK_BYTES) {
        let left = usize::try_from(bytes.end - at)
            .unwrap_or(usize::MAX)
            .min(BLANK_BYTES);
        file.write_all_at(&chunk[..left], at)?;
    }
    Ok(())
}

/// Grows the mounted file system below `folder` to `bytes`, rounded down to whole blocks.
pub(crate) fn grow(folder: &File, bytes: u64) -> io::Result<()> {
    let blocks = bytes / BLOCK_BYTES as u64;
    // SAFETY: the ioctl reads the number behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(folder.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    Ok(Errno::result(outcome).map(drop)?)
}

/// Gives the mounted file system below `folder` its own identifier.
pub(crate) fn set_uuid(folder: &File, uuid: [u8; 16]) -> io::Result<()> {
    /// `struct fsuuid` of the kernel's ext4.
    #[repr(C)]
    struct FsUuidRequest {
        bytes: u32,
        flags: u32,
        uuid: [u8; 16],
    }
    let request = FsUuidRequest {
        bytes: 16,
        flags: 0,
        uuid,
    };
    // SAFETY: the ioctl reads the structure behind the pointer, which outlives the call.
    let outcome =
        unsafe { libc::ioctl(folder.as_raw_fd(), EXT4_IOC_SETFSUUID, &raw const request) };
    Ok(Errno::result(outcome).map(drop)?)
}

fn template() -> impl Iterator<Item = (usize, &'static [u8])> {
    TEMPLATE.chunks_exact(4 + BLOCK_BYTES).map(|record| {
        let (number, block) = record.split_at(4);
        (u32_at(number, 0) as usize, block)
    })
}

fn template_super() -> &'static [u8] {
    &TEMPLATE[4 + SUPER_AT..][..SUPER_BYTES]
}

fn checksum_holds(bytes: &[u8]) -> bool {
    // A file system without this feature has no checksum.
    let has_checksum = u32_at(bytes, 0x64) & 0x400 != 0;
    !has_checksum || crc32c(&bytes[..SUPER_BYTES - 4]) == u32_at(bytes, SUPER_BYTES - 4)
}

/// CRC-32C in ext4's variant: seeded with ones, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sparse(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(bytes).expect("a sparse file");
        file
    }

    fn formatted() -> tempfile::NamedTempFile {
        let file = sparse(TEMPLATE_BYTES);
        format(file.as_file()).expect("writable");
        file
    }

    fn content(file: &tempfile::NamedTempFile) -> FilesystemContent {
        let bytes = file.as_file().metadata().expect("the file is there").len();
        probe(file.as_file(), bytes).expect("readable")
    }

    #[test]
    fn what_is_written_satisfies_e2fsck() {
        let file = formatted();
        let output = Command::new("e2fsck")
            .args(["-fn"])
            .arg(file.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("e2fsck is installed (package e2fsprogs)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        let FilesystemContent::Ext4(found) = content(&file) else {
            panic!("an ext4 file system");
        };
        assert_eq!(found.bytes, TEMPLATE_BYTES);
        assert!(found.clean && !found.damaged && found.template_uuid);
        assert_eq!(found.errors, 0);
    }

    #[test]
    fn blank_is_blank_and_anything_else_is_not() {
        let file = sparse(2 << 20);
        assert_eq!(content(&file), FilesystemContent::Blank);
        file.as_file()
            .write_all_at(b"x", (1 << 20) - 1)
            .expect("writable");
        assert_eq!(content(&file), FilesystemContent::Unknown);
        for bytes in [0, 1, 511, 1024, 2048, 4095] {
            assert_eq!(content(&sparse(bytes)), FilesystemContent::Blank);
        }
    }

    #[test]
    fn luks_is_recognised() {
        let file = sparse(2 << 20);
        file.as_file()
            .write_all_at(b"LUKS\xba\xbe\0\x02", 0)
            .expect("writable");
        assert_eq!(content(&file), FilesystemContent::Luks2);
    }

    #[test]
    fn a_formatting_cut_anywhere_is_begun_again() {
        let whole = std::fs::read(formatted().path()).expect("readable");
        let sectors: Vec<usize> = (0..BLANK_BYTES / SECTOR_BYTES)
            .filter(|at| {
                whole[at * SECTOR_BYTES..][..SECTOR_BYTES]
                    .iter()
                    .any(|b| *b != 0)
            })
            .collect();
        // Tests every prefix, and everything but one sector: writes may be lost or reordered.
        for skipped in &sectors {
            for keep in [|at: usize, cut: usize| at < cut, |at, cut| at != cut] {
                let file = sparse(TEMPLATE_BYTES);
                for at in sectors.iter().filter(|at| keep(**at, *skipped)) {
                    let from = at * SECTOR_BYTES;
                    file.as_file()
                        .write_all_at(&whole[from..from + SECTOR_BYTES], from as u64)
                        .expect("writable");
                }
                let found = content(&file);
                // A whole superblock is written only after everything else was flushed.
                let flushed = *skipped >= BLOCK_BYTES / SECTOR_BYTES;
                let acceptable = matches!(
                    found,
                    FilesystemContent::HalfFormatted | FilesystemContent::Blank
                ) || flushed && matches!(found, FilesystemContent::Ext4(_));
                assert!(acceptable, "sector {skipped}: {found:?}");
            }
        }
    }

    #[test]
    fn a_torn_superblock_is_recognised_and_repaired() {
        let file = formatted();
        // The state after some use: a mount count and its own identifier. Only the first sector
        // reached the disk.
        file.as_file()
            .write_all_at(&[7; 16], 1024 + 0x68)
            .expect("writable");
        file.as_file()
            .write_all_at(&[9, 0], 1024 + 0x34)
            .expect("writable");
        assert_eq!(content(&file), FilesystemContent::TornSuper);
        repair_super(file.as_file()).expect("writable");
        assert!(matches!(content(&file), FilesystemContent::Ext4(found) if !found.template_uuid));
    }

    #[test]
    fn a_foreign_superblock_is_not_repaired() {
        let file = formatted();
        file.as_file()
            .write_all_at(&[1], 1024 + 0x18)
            .expect("writable");
        file.as_file()
            .write_all_at(&[9, 0], 1024 + 0x34)
            .expect("writable");
        assert_eq!(content(&file), FilesystemContent::Unknown);
    }

    #[test]
    fn an_old_journal_is_gone_after_formatting() {
        let file = sparse(TEMPLATE_BYTES);
        // The journal is by far the longest used range.
        let used = used();
        let longest = used.iter().max_by_key(|used| used.end - used.start);
        let longest = longest.expect("something is used");
        let middle = longest.start.midpoint(longest.end);
        file.as_file()
            .write_all_at(b"old journal", middle)
            .expect("writable");
        format(file.as_file()).expect("writable");
        let mut found = [0; 11];
        file.as_file()
            .read_exact_at(&mut found, middle)
            .expect("readable");
        assert_eq!(found, [0; 11]);
    }

    #[test]
    fn a_disk_full_of_old_data_is_formatted_without_writing_all_of_it() {
        let used: u64 = used().iter().map(|used| used.end - used.start).sum();
        assert!((16 << 20..24 << 20).contains(&used), "{used}");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let old = vec![0xa5; 1 << 20];
        for at in (0..TEMPLATE_BYTES).step_by(1 << 20) {
            file.as_file().write_all_at(&old, at).expect("writable");
        }
        format(file.as_file()).expect("writable");
        let checked = Command::new("e2fsck")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["-f", "-n"])
            .arg(file.path())
            .output()
            .expect("e2fsck is there, as mke2fs is");
        assert!(checked.status.success(), "{checked:?}");
        let mut last = [0; 16];
        let at = TEMPLATE_BYTES - 16;
        file.as_file()
            .read_exact_at(&mut last, at)
            .expect("readable");
        assert_eq!(last, [0xa5; 16]);
    }

    #[test]
    fn the_error_count_and_the_state_are_read() {
        let file = formatted();
        file.as_file()
            .write_all_at(&[STATE_ERRORS as u8, 0], 1024 + 0x3a)
            .expect("writable");
        file.as_file()
            .write_all_at(&[3, 0, 0, 0], 1024 + 0x194)
            .expect("writable");
        repair_super(file.as_file()).expect("writable");
        let FilesystemContent::Ext4(found) = content(&file) else {
            panic!("an ext4 file system");
        };
        assert!(found.damaged && !found.clean);
        assert_eq!(found.errors, 3);
    }
}
