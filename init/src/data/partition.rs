//! The partition table of a disk, and the kernel's knowledge of it: repaired if it is torn, and
//! grown to the disk's end.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use nix::errno::Errno;

use super::{device, earlier, find, gpt, open_rw, random, size};
use crate::log::InitLog;

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Repairs torn partition tables. The kernel hides the partitions of a disk whose primary table is
/// torn, and its backup brings them back. Returns whether the kernel has read a disk again.
pub(super) fn repair_tables(sys: &Path, log: &InitLog) -> bool {
    find::disks(sys).into_iter().any(|name| {
        let repaired = repair_table(&name, log);
        match &repaired {
            Ok(true) => log.warn(format_args!("partition table of {name} repaired")),
            Ok(false) => {}
            Err(error) => log.warn(format_args!("partition table of {name}: {error}")),
        }
        matches!(repaired, Ok(true))
    })
}

fn repair_table(name: &str, log: &InitLog) -> Result<bool, gpt::GptError> {
    // The file is opened read-only, because most of these disks belong to other systems.
    let reader = File::open(device(name))?;
    let geometry = disk(&reader)?;
    // A disk of another system is never written to, even if its table is damaged.
    if !gpt::names(&geometry, find::LABEL) {
        return Ok(false);
    }
    let file = open_rw(name)?;
    let settled = gpt::settle(&disk(&file)?, find::LABEL, random)?;
    earlier::say(name, settled.earlier, log);
    // SAFETY: the ioctl takes no argument.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART) };
    Errno::result(outcome).map_err(io::Error::from)?;
    Ok(!settled.changes.is_empty())
}

/// Corrects the partition table, and reports the new end to the kernel.
pub(super) fn grow(
    sys: &Path,
    name: &str,
    disk_name: &str,
    log: &InitLog,
) -> Result<(), gpt::GptError> {
    let file = open_rw(disk_name)?;
    let settled = gpt::settle(&disk(&file)?, find::LABEL, random)?;
    for change in &settled.changes {
        log.info(format_args!("partition table of {disk_name}: {change}"));
    }
    earlier::say(disk_name, settled.earlier, log);
    // sysfs counts units of 512 bytes, whatever the size of the disk's sectors.
    let known = fs::read_to_string(sys.join("class/block").join(name).join("size"))?;
    if known.trim().parse() != Ok(settled.length / 512) {
        resize(&file, &settled)?;
    }
    Ok(())
}

fn resize(disk: &File, settled: &gpt::GptPlacement) -> io::Result<()> {
    /// `struct blkpg_partition` of the kernel.
    #[repr(C)]
    struct BlkpgPartition {
        start: i64,
        length: i64,
        number: libc::c_int,
        device_name: [u8; 64],
        volume_name: [u8; 64],
    }
    /// `struct blkpg_ioctl_arg` of the kernel.
    #[repr(C)]
    struct BlkpgRequest {
        operation: libc::c_int,
        flags: libc::c_int,
        bytes: libc::c_int,
        data: *const BlkpgPartition,
    }
    let partition = BlkpgPartition {
        start: i64::try_from(settled.start).map_err(io::Error::other)?,
        length: i64::try_from(settled.length).map_err(io::Error::other)?,
        number: i32::try_from(settled.number).map_err(io::Error::other)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let request = BlkpgRequest {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        bytes: size_of::<BlkpgPartition>() as libc::c_int,
        data: &raw const partition,
    };
    // SAFETY: the ioctl reads both structures, which outlive the call.
    let outcome = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const request) };
    Ok(Errno::result(outcome).map(drop)?)
}

/// The GUID of the partition of the disk `device` that begins at the byte `start`, from the table on the disk.
pub(crate) fn partition_guid(device: &Path, start: u64) -> Option<String> {
    let file = File::open(device).ok()?;
    let guid = gpt::partition_guid(&disk(&file).ok()?, start)?;
    Some(guid.to_string())
}

fn disk(file: &File) -> io::Result<gpt::GptDisk<'_>> {
    let mut sector: libc::c_int = 0;
    // SAFETY: the ioctl writes one int behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector) };
    Errno::result(outcome)?;
    let sector = u64::try_from(sector).unwrap_or(0).max(512);
    Ok(gpt::GptDisk {
        file,
        sector,
        sectors: size(file)? / sector,
    })
}
