//! The partition table of a disk, and the kernel's knowledge of it: repaired if it is torn, and
//! grown to the disk's end.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
    thread,
    time::Duration,
};

use nix::errno::Errno;

use super::image_guids::ImageGuids;
use super::{device, earlier, find, gpt, open_rw, random, size};
use crate::log::InitLog;

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// How often the kernel is asked to read a table again.
const READS_MAX: u32 = 10;
/// The pause between two of these orders.
const READ_PAUSE: Duration = Duration::from_millis(50);

/// Repairs torn partition tables. The kernel hides the partitions of a disk whose primary table is
/// torn, and its backup brings them back. The kernel also reads a table again that is right, because the disk may have
/// failed before. Returns whether the kernel has read one again that was not right.
///
/// The names of the disks that it wrote to, or tried to, are added to `attempted`. Disks that are named there are skipped: such
/// a disk may have lost what it took, and the search for the data would not end. A disk that could not be opened is not
/// among them: it may only have been slow.
pub(super) fn repair_tables(sys: &Path, attempted: &mut BTreeSet<String>, log: &InitLog) -> bool {
    let repair = |name: &str| match is_of_this_system(name) {
        Ok(true) => Some(WritableDisk::open(name).and_then(|disk| {
            let order = || read_partitions(&disk.file);
            repair_table(&disk, name, log, order)
        })),
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

/// Corrects the table of a disk, and has the kernel read it again by `order`.
fn repair_table(
    disk: &WritableDisk,
    name: &str,
    log: &InitLog,
    order: impl FnMut() -> io::Result<()>,
) -> io::Result<TableRepair> {
    let placement = disk.settle(name, log)?.placement;
    Ok(TableRepair {
        changed: placement.map(|placement| !placement.changes.is_empty()),
        // Also after an error: the primary may be whole, and the disk does not keep the backup.
        reread: reread(order),
    })
}

/// Gives the `order` to read a table again until the kernel follows it, a few times: the kernel refuses while a partition
/// of the disk is open, or the disk may be slow. The table is not written again.
fn reread(mut order: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut reads_left = READS_MAX;
    loop {
        reads_left -= 1;
        match order() {
            Err(_) if reads_left > 0 => thread::sleep(READ_PAUSE),
            outcome => return outcome,
        }
    }
}

/// Has the kernel read the table of a disk again.
fn read_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    let outcome = unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) };
    Ok(Errno::result(outcome).map(drop)?)
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
    access: Box<dyn gpt::DiskAccess>,
    /// Bytes of a logical sector.
    sector: u64,
}

impl WritableDisk {
    fn open(name: &str) -> io::Result<Self> {
        let file = open_rw(name)?;
        Ok(Self {
            access: Box::new(gpt::DirectDisk::open(&device(name))?),
            sector: sector_bytes(&file)?,
            file,
        })
    }

    /// Corrects the table, and says in the log what the disk had before, and which blocks it does not give.
    fn settle(&self, name: &str, log: &InitLog) -> io::Result<gpt::SettledTable> {
        let disk = gpt::GptDisk {
            access: self.access.as_ref(),
            sector: self.sector,
            sectors: size(&self.file)? / self.sector,
        };
        let settled = gpt::settle(&disk, find::LABEL, random);
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
    let sector = sector_bytes(file)?;
    Ok(gpt::GptDisk {
        access,
        sector,
        sectors: size(file)? / sector,
    })
}

/// Bytes of a logical sector of a disk.
fn sector_bytes(file: &File) -> io::Result<u64> {
    let mut sector: libc::c_int = 0;
    // SAFETY: the ioctl writes one int behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector) };
    Errno::result(outcome)?;
    Ok(u64::try_from(sector).unwrap_or(0).max(512))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::data::gpt::tests::{IMAGE_BYTES, SECTOR, image};

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

    /// A disk in a file, from which a machine was started.
    fn started_disk(file: &tempfile::NamedTempFile) -> WritableDisk {
        let reopen = || file.reopen().expect("the file is there");
        let disk = WritableDisk {
            file: reopen(),
            access: Box::new(reopen()),
            sector: SECTOR,
        };
        let settled = disk.settle("sda", &InitLog::default());
        let placement = settled.expect("readable").placement.expect("a table");
        assert!(!placement.changes.is_empty(), "the GUIDs of the image");
        disk
    }

    /// The primary is torn. The kernel is busy at the first orders to read the table that was repaired, which is not written
    /// again for them.
    #[test]
    fn the_kernel_reads_a_repaired_table_although_it_is_busy_at_first() {
        let file = image(IMAGE_BYTES);
        let disk = started_disk(&file);
        let header = || {
            let mut header = [0; SECTOR as usize];
            let read = disk.file.read_exact_at(&mut header, SECTOR);
            read.expect("readable");
            header
        };
        let whole = header();
        let torn = disk.file.write_all_at(&[0; SECTOR as usize], SECTOR);
        torn.expect("writable");
        let log = InitLog::default();
        let orders = Cell::new(0);
        let order = || {
            assert_eq!(header(), whole, "the primary is whole before");
            orders.set(orders.get() + 1);
            match orders.get() {
                1 | 2 => Err(io::ErrorKind::ResourceBusy.into()),
                _ => Ok(()),
            }
        };
        let repair = |_: &str| Some(repair_table(&disk, "sda", &log, order));
        let mut attempted = BTreeSet::new();
        let mut search = || repair_each(vec!["sda".to_owned()], &mut attempted, &log, repair);
        assert_eq!([search(), search()], [true, false]);
        assert_eq!(orders.get(), 3);
    }

    /// The table was right, and the kernel could not read it at first.
    #[test]
    fn the_kernel_reads_a_table_that_is_right_without_a_write() {
        let file = image(IMAGE_BYTES);
        let disk = started_disk(&file);
        let before = fs::read(file.path()).expect("readable");
        let mut orders = 0;
        let repaired = repair_table(&disk, "sda", &InitLog::default(), || {
            orders += 1;
            Ok(())
        });
        let repaired = repaired.expect("readable");
        assert_eq!(orders, 1, "the kernel is ordered to read the table");
        assert!(matches!(repaired.changed, Ok(false)));
        assert!(repaired.reread.is_ok());
        assert_eq!(fs::read(file.path()).expect("readable"), before);
    }

    /// The attack: a disk that the kernel never reads. The start of the machine must not wait for it without an end.
    #[test]
    fn a_disk_that_the_kernel_does_not_read_is_given_up() {
        let file = image(IMAGE_BYTES);
        let disk = started_disk(&file);
        let mut orders = 0;
        let repaired = repair_table(&disk, "sda", &InitLog::default(), || {
            orders += 1;
            Err(Errno::EIO.into())
        });
        assert!(repaired.expect("readable").reread.is_err());
        assert_eq!(orders, READS_MAX);
    }
}
