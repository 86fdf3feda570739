//! Whether the computer uses a disk: mounts, swap, and devices that are made of it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::FlashError;
use crate::facts::{SystemFolders, block_device, name_of, text};

/// Places of which at least one is on the disk that the system runs from.
const SYSTEM_PLACES: [&str; 5] = ["/", "/boot", "/boot/efi", "/efi", "/usr"];
/// Devices upon devices that are followed, such as an encrypted volume in a volume group on a RAID.
const DEPTH_MAX: usize = 16;

/// The devices that hold data of one disk: itself, its partitions, and everything that is made of them.
#[derive(Debug, Default)]
struct DeviceTree {
    /// Major and minor number, as `8:1`.
    numbers: BTreeSet<String>,
    /// Paths by which the tables of mounts and swap may name them.
    paths: BTreeSet<String>,
    /// Names of the devices that are made of the disk.
    holders: BTreeSet<String>,
}

/// A row of the table of mounts.
struct MountRow {
    number: String,
    mount_point: String,
    source: String,
}

/// Refuses a disk that is mounted, swapped to, or a part of another device.
pub(crate) fn refuse_used(folders: &SystemFolders, disk: &Path) -> Result<(), FlashError> {
    let open = |path: PathBuf| move |source| FlashError::Open { path, source };
    let name = name_of(disk);
    let mut tree = DeviceTree::default();
    tree.collect(folders, disk, 0)
        .map_err(open(disk.to_owned()))?;
    let mounts = folders.proc.join("self/mountinfo");
    let table = fs::read_to_string(&mounts).map_err(open(mounts.clone()))?;
    let rows = table.lines().filter_map(mount_row);
    let mount_points: Vec<String> = rows
        .filter(|row| tree.has(row))
        .map(|row| row.mount_point)
        .collect();
    if mount_points
        .iter()
        .any(|mount_point| SYSTEM_PLACES.contains(&mount_point.as_str()))
    {
        return Err(FlashError::SystemDisk {
            disk: name,
            mount_points,
        });
    }
    if !mount_points.is_empty() {
        return Err(FlashError::Mounted {
            disk: name,
            mount_points,
        });
    }
    let swaps = folders.proc.join("swaps");
    let table = match fs::read_to_string(&swaps) {
        // A kernel without swap has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(open(swaps))?,
    };
    let rows = table.lines().skip(1);
    let devices = rows.filter_map(|row| row.split_whitespace().next());
    let devices: Vec<String> = devices
        .filter(|device| tree.paths.contains(*device))
        .map(str::to_owned)
        .collect();
    if !devices.is_empty() {
        return Err(FlashError::Swap { devices });
    }
    match tree.holders.is_empty() {
        true => Ok(()),
        false => Err(FlashError::Held {
            disk: name,
            holders: tree.holders.into_iter().collect(),
        }),
    }
}

impl DeviceTree {
    fn collect(&mut self, folders: &SystemFolders, device: &Path, depth: usize) -> io::Result<()> {
        let name = name_of(device);
        self.paths.insert(format!("/dev/{name}"));
        self.numbers.extend(text(&device.join("dev")));
        if let Some(mapped) = text(&device.join("dm/name")) {
            self.paths.insert(format!("/dev/mapper/{mapped}"));
        }
        if depth > DEPTH_MAX {
            return Err(io::Error::other("devices are stacked too deep"));
        }
        for below in fs::read_dir(device)? {
            let below = below?.path();
            // A folder of a partition has a file of this name, and no other folder has.
            if below.join("partition").exists() {
                self.collect(folders, &below, depth + 1)?;
            }
        }
        let holders = match fs::read_dir(device.join("holders")) {
            Ok(holders) => holders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for holder in holders {
            let holder = holder?;
            self.holders.insert(name_of(&holder.path()));
            let folder = folders.sys.join("class/block").join(holder.file_name());
            self.collect(folders, &fs::canonicalize(folder)?, depth + 1)?;
        }
        Ok(())
    }

    /// Whether a mount is of one of the devices. File systems of several devices have numbers of their own, and name
    /// one of their devices as the source.
    fn has(&self, row: &MountRow) -> bool {
        let is_same = || {
            let number = block_device(Path::new(&row.source))?;
            let number = format!(
                "{}:{}",
                nix::sys::stat::major(number),
                nix::sys::stat::minor(number)
            );
            Some(self.numbers.contains(&number))
        };
        self.numbers.contains(&row.number)
            || self.paths.contains(&row.source)
            || is_same().unwrap_or(false)
    }
}

/// A row of proc(5), `/proc/pid/mountinfo`.
fn mount_row(line: &str) -> Option<MountRow> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let number = before.next()?.to_owned();
    let mount_point = unescaped(before.nth(1)?);
    let source = unescaped(after.split(' ').nth(1)?);
    Some(MountRow {
        number,
        mount_point,
        source,
    })
}

/// Spaces, tabs, line breaks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A computer with the disks sda (two partitions, the second in the volume group of dm-0) and sdb (empty).
    struct Computer {
        dir: tempfile::TempDir,
        folders: SystemFolders,
    }

    impl Computer {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let folders = SystemFolders {
                sys: dir.path().join("sys"),
                proc: dir.path().join("proc"),
            };
            let computer = Self { dir, folders };
            computer.device("sda", "8:0", None);
            computer.device("sda/sda1", "8:1", Some("1"));
            computer.device("sda/sda2", "8:2", Some("2"));
            computer.device("sdb", "8:16", None);
            computer.device("dm-0", "253:0", None);
            computer.table("self/mountinfo", "");
            computer.table("swaps", "Filename Type Size Used Priority\n");
            computer
        }

        fn folder(&self, device: &str) -> PathBuf {
            self.folders.sys.join("devices/block").join(device)
        }

        fn device(&self, device: &str, number: &str, partition: Option<&str>) {
            let folder = self.folder(device);
            fs::create_dir_all(folder.join("holders")).expect("creatable");
            fs::write(folder.join("dev"), number).expect("writable");
            if let Some(partition) = partition {
                fs::write(folder.join("partition"), partition).expect("writable");
            }
            let class = self.folders.sys.join("class/block");
            fs::create_dir_all(&class).expect("creatable");
            symlink(&folder, class.join(name_of(&folder))).expect("creatable");
        }

        fn hold(&self, device: &str, holder: &str) {
            let link = self.folder(device).join("holders").join(holder);
            symlink(self.folder(holder), link).expect("creatable");
        }

        fn table(&self, file: &str, text: &str) {
            let path = self.folders.proc.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("creatable");
            fs::write(path, text).expect("writable");
        }

        fn refusal(&self, disk: &str) -> Option<FlashError> {
            assert!(self.dir.path().exists());
            refuse_used(&self.folders, &self.folder(disk)).err()
        }
    }

    #[test]
    fn a_disk_that_is_used_for_nothing_is_taken() {
        assert!(Computer::new().refusal("sda").is_none());
    }

    #[test]
    fn mounts_of_partitions_are_named_with_their_places() {
        let computer = Computer::new();
        computer.table(
            "self/mountinfo",
            "22 1 0:5 / /dev rw - devtmpfs udev rw\n\
             29 1 8:1 / /mnt/two\\040words rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             30 1 8:2 / /srv rw - ext4 /dev/sda2 rw\n",
        );
        let Some(FlashError::Mounted { disk, mount_points }) = computer.refusal("sda") else {
            panic!("it is mounted");
        };
        assert_eq!(
            (disk.as_str(), mount_points),
            ("sda", vec!["/mnt/two words".into(), "/srv".into()])
        );
        assert!(computer.refusal("sdb").is_none());
    }

    #[test]
    fn the_disk_of_the_system_is_called_so_also_below_a_volume_group() {
        let computer = Computer::new();
        computer.hold("sda/sda2", "dm-0");
        computer.table(
            "self/mountinfo",
            "29 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n",
        );
        let refused = computer.refusal("sda").expect("the system runs from it");
        assert!(
            matches!(refused, FlashError::SystemDisk { .. }),
            "{refused}"
        );
        assert!(computer.refusal("sdb").is_none());
    }

    #[test]
    fn a_file_system_of_several_devices_is_known_by_its_source() {
        let computer = Computer::new();
        computer.table(
            "self/mountinfo",
            "29 1 0:31 /@ / rw - btrfs /dev/sda2 rw,subvol=/@\n",
        );
        let refused = computer.refusal("sda").expect("the system runs from it");
        assert!(
            matches!(refused, FlashError::SystemDisk { .. }),
            "{refused}"
        );
    }

    #[test]
    fn swap_is_named() {
        let computer = Computer::new();
        computer.table(
            "swaps",
            "Filename Type Size Used Priority\n/dev/sda1 partition 1000 0 -2\n",
        );
        let refused = computer.refusal("sda").expect("swap is on it");
        assert!(
            refused.to_string().contains("swaps to /dev/sda1"),
            "{refused}"
        );
        assert!(computer.refusal("sdb").is_none());
    }

    #[test]
    fn a_device_that_is_made_of_the_disk_is_named() {
        let computer = Computer::new();
        computer.hold("sda/sda2", "dm-0");
        let refused = computer.refusal("sda").expect("a volume is on it");
        assert!(
            refused.to_string().contains("sda is a part of dm-0"),
            "{refused}"
        );
    }

    #[test]
    fn a_computer_that_does_not_say_its_mounts_gets_nothing_written() {
        let computer = Computer::new();
        fs::remove_file(computer.folders.proc.join("self/mountinfo")).expect("it exists");
        let refused = computer.refusal("sdb").expect("unknown mounts");
        assert!(matches!(refused, FlashError::Open { .. }), "{refused}");
    }

    #[test]
    fn a_computer_that_does_not_say_its_swap_gets_nothing_written() {
        let computer = Computer::new();
        let swaps = computer.folders.proc.join("swaps");
        fs::remove_file(&swaps).expect("it is there");
        assert!(computer.refusal("sdb").is_none(), "a kernel without swap");
        fs::create_dir(&swaps).expect("creatable");
        let refused = computer.refusal("sdb").expect("it cannot be read");
        assert!(matches!(refused, FlashError::Open { .. }), "{refused}");
    }

    #[test]
    fn escapes_of_the_table_of_mounts_are_undone() {
        for (text, meant) in [
            ("a\\040b", "a b"),
            ("a\\134b", "a\\b"),
            ("a\\x", "a\\x"),
            ("", ""),
        ] {
            assert_eq!(unescaped(text), meant);
        }
    }
}
