//! The partition table of a disk, and the kernel's knowledge of it: repaired if it is torn, and
//! grown to the disk's end.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use nix::errno::Errno;

use super::image_guids::ImageGuids;
use super::{device, earlier, find, gpt, open_rw, random, size};
use crate::log::InitLog;

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Repairs torn partition tables. The kernel hides the partitions of a disk whose primary table is
/// torn, and its backup brings them back. Returns whether the kernel has read a disk again.
///
/// The names of the disks that it wrote to, or tried to, are added to `attempted`. Disks that are named there are skipped: such
/// a disk may have lost what it took, and the search for the data would not end. A disk that could not be opened is not
/// among them: it may only have been slow.
pub(super) fn repair_tables(sys: &Path, attempted: &mut BTreeSet<String>, log: &InitLog) -> bool {
    let repair = |name: &str| match is_of_this_system(name) {
        Ok(true) => Some(repair_table(name, log)),
        Ok(false) => None,
        Err(error) => {
            log.warn(format_args!("partition table of {name}: {error}"));
            None
        }
    };
    repair_each(find::disks(sys), attempted, log, repair)
}

/// What a disk and the kernel made of the repair of a table.
struct TableRepair {
    /// Whether the table was not as it should be. An error says that one copy of it may still not be.
    changed: Result<bool, gpt::GptError>,
    /// Whether the kernel has read the table since.
    reread: io::Result<()>,
}

/// Calls `repair` for the `disks` that are not in `attempted`, until the kernel has read a table again that was not as it
/// should be. `repair` returns `None` for a disk of another system, and an error for one to which it wrote nothing.
fn repair_each(
    disks: Vec<String>,
    attempted: &mut BTreeSet<String>,
    log: &InitLog,
    repair: impl Fn(&str) -> Option<io::Result<TableRepair>>,
) -> bool {
    disks.into_iter().any(|name| {
        if attempted.contains(&name) {
            return false;
        }
        let repaired = match repair(&name) {
            None => return false,
            Some(Ok(repaired)) => repaired,
            Some(Err(error)) => {
                log.warn(format_args!("partition table of {name}: {error}"));
                return false;
            }
        };
        match (&repaired.changed, &repaired.reread) {
            (Ok(false), Ok(())) => return false,
            (Ok(true), Ok(())) => log.warn(format_args!("partition table of {name} repaired")),
            (Err(error), _) => log.warn(format_args!("partition table of {name}: {error}")),
            (Ok(_), Err(error)) => log.warn(format_args!("partition table of {name}: {error}")),
        }
        attempted.insert(name);
        // With one copy repaired the kernel finds the partition, although the other copy has failed.
        repaired.reread.is_ok()
    })
}

/// Whether a copy of the table on a disk has the data partition. A disk of another system is never written to, even if its
/// table is damaged.
fn is_of_this_system(name: &str) -> io::Result<bool> {
    // Both are opened read-only, because most disks at which this looks belong to other systems.
    let path = device(name);
    let (file, access) = (File::open(&path)?, gpt::DirectDisk::open_read_only(&path)?);
    Ok(gpt::names(&geometry(&file, &access)?, find::LABEL))
}

/// Corrects the table of a disk, and has the kernel read it again.
fn repair_table(name: &str, log: &InitLog) -> io::Result<TableRepair> {
    let disk = WritableDisk::open(name)?;
    let settled = disk.settle(name, log)?;
    // The kernel reads the table also after an error: the primary may be whole, and the disk does not keep the backup.
    // SAFETY: the ioctl takes no argument.
    let outcome = unsafe { libc::ioctl(disk.file.as_raw_fd(), BLKRRPART) };
    let reread = Errno::result(outcome).map(drop).map_err(io::Error::from);
    let placement = settled.placement;
    Ok(TableRepair {
        changed: placement.map(|placement| !placement.changes.is_empty()),
        reread,
    })
}

/// What became of the partition table of a disk.
pub(super) struct GrownPartition {
    /// Whether the disk still has the GUIDs of the image.
    pub(super) image_guids: ImageGuids,
    /// Why its table is not as it should be, or the kernel does not know the new end.
    pub(super) outcome: Result<(), gpt::GptError>,
}

/// Corrects the partition table, and reports the new end to the kernel.
pub(super) fn grow(sys: &Path, name: &str, disk_name: &str, log: &InitLog) -> GrownPartition {
    let opened = WritableDisk::open(disk_name);
    let settled = opened.and_then(|disk| Ok((disk.settle(disk_name, log)?, disk)));
    let (settled, disk) = match settled {
        Ok(settled) => settled,
        // Nothing is known of its GUIDs.
        Err(error) => {
            return GrownPartition {
                image_guids: ImageGuids::Present,
                outcome: Err(error.into()),
            };
        }
    };
    let outcome = settled.placement.and_then(|placement| {
        for change in &placement.changes {
            log.info(format_args!("partition table of {disk_name}: {change}"));
        }
        // sysfs counts units of 512 bytes, whatever the size of the disk's sectors.
        let known = fs::read_to_string(sys.join("class/block").join(name).join("size"))?;
        if known.trim().parse() != Ok(placement.length / 512) {
            resize(&disk.file, &placement)?;
        }
        Ok(())
    });
    GrownPartition {
        image_guids: settled.image_guids,
        outcome,
    }
}

/// A disk that is open for writing.
struct WritableDisk {
    /// For questions and orders to the kernel.
    file: File,
    /// For the table.
    access: gpt::DirectDisk,
}

impl WritableDisk {
    fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            file: open_rw(name)?,
            access: gpt::DirectDisk::open(&device(name))?,
        })
    }

    /// Corrects the table, and says in the log what the disk had before, and which blocks it does not give.
    fn settle(&self, name: &str, log: &InitLog) -> io::Result<gpt::SettledTable> {
        let geometry = geometry(&self.file, &self.access)?;
        let settled = gpt::settle(&geometry, find::LABEL, random);
        for block in &settled.unreadable {
            log.warn(format_args!(
                "partition table of {name}: {block}; it is taken for a block without a table"
            ));
        }
        if let Ok(placement) = &settled.placement {
            earlier::say(name, placement.earlier, log);
        }
        Ok(settled)
    }
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
    let access = gpt::DirectDisk::open_read_only(device).ok()?;
    let guid = gpt::partition_guid(&geometry(&file, &access).ok()?, start)?;
    Some(guid.to_string())
}

/// The disk in `file`, which is read and written by `access`.
fn geometry<'a>(file: &File, access: &'a dyn gpt::DiskAccess) -> io::Result<gpt::GptDisk<'a>> {
    let mut sector: libc::c_int = 0;
    // SAFETY: the ioctl writes one int behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector) };
    Errno::result(outcome)?;
    let sector = u64::try_from(sector).unwrap_or(0).max(512);
    Ok(gpt::GptDisk {
        access,
        sector,
        sectors: size(file)? / sector,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The attack: the only disk takes each write to its partition table and loses it, so each search finds something to repair.
    #[test]
    fn a_search_repairs_each_disk_once() {
        let log = InitLog::default();
        let calls = RefCell::new(Vec::new());
        let repair = |name: &str| {
            calls.borrow_mut().push(name.to_owned());
            match name {
                "sda" => None,
                "sdb" => Some(Ok(TableRepair {
                    changed: Err(gpt::GptError::NotKept(1)),
                    reread: Err(io::ErrorKind::ResourceBusy.into()),
                })),
                _ => Some(Ok(TableRepair {
                    changed: Ok(name != "sdd"),
                    reread: Ok(()),
                })),
            }
        };
        let mut attempted = BTreeSet::new();
        let disks = ["sda", "sdb", "sdc", "sdd"].map(str::to_owned);
        let mut search = || repair_each(disks.to_vec(), &mut attempted, &log, repair);
        let found = [(); 4].map(|()| search());
        assert_eq!(found, [true, false, false, false]);
        // A disk on which nothing was written is looked at again: it may have become another one.
        let expected = [
            "sda", "sdb", "sdc", "sda", "sdd", "sda", "sdd", "sda", "sdd",
        ];
        assert_eq!(calls.take(), expected);
    }

    /// The only disk has a primary that was repaired and a backup that takes no write. A search that does not look for the
    /// partition again would end without the data.
    #[test]
    fn a_table_that_the_kernel_has_read_again_is_searched_although_its_other_copy_failed() {
        let log = InitLog::default();
        let calls = RefCell::new(0);
        let repair = |_: &str| {
            *calls.borrow_mut() += 1;
            Some(Ok(TableRepair {
                changed: Err(gpt::GptError::NotKept(1)),
                reread: Ok(()),
            }))
        };
        let mut attempted = BTreeSet::new();
        let mut search = || repair_each(vec!["sda".to_owned()], &mut attempted, &log, repair);
        assert_eq!([search(), search()], [true, false]);
        assert_eq!(calls.take(), 1, "the disk fails again each time");
    }

    /// A disk does not answer when it is opened, and does so at the next search.
    #[test]
    fn a_disk_that_could_not_be_opened_is_tried_again() {
        let log = InitLog::default();
        let is_slow = RefCell::new(true);
        let repair = |_: &str| {
            Some(match is_slow.replace(false) {
                true => Err(io::Error::from(Errno::EIO)),
                false => Ok(TableRepair {
                    changed: Ok(true),
                    reread: Ok(()),
                }),
            })
        };
        let mut attempted = BTreeSet::new();
        let mut search = || repair_each(vec!["sda".to_owned()], &mut attempted, &log, repair);
        assert_eq!([search(), search(), search()], [false, true, false]);
    }
}
