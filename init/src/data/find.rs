//! Finds the block device of the data by its label or serial, never by its order.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// GPT partition label and disk serial of the data.
pub(crate) const LABEL: &str = "alk-data";

/// Bytes of the head of a page of facts about a SCSI device (SPC-4, section 7.8.1).
const PAGE_HEAD_BYTES: usize = 4;

/// A block device with the label or serial of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataDevice {
    /// A whole disk, by its serial.
    Disk { name: String },
    /// A partition, by its label, and the disk that has it.
    Partition { name: String, disk: String },
}

impl DataDevice {
    /// Name of the device below `/dev`.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Disk { name } | Self::Partition { name, .. } => name,
        }
    }
}

/// Chooses among several. A whole disk was attached on purpose and wins over a partition that came
/// with the image. Two of the same kind are ambiguous, and a guess could write to the wrong disk.
pub(crate) fn choose(found: &[DataDevice]) -> Result<Option<&DataDevice>, Vec<String>> {
    let is_disk = |one: &&DataDevice| matches!(one, DataDevice::Disk { .. });
    let disks: Vec<_> = found.iter().filter(is_disk).collect();
    let of_a_kind = if disks.is_empty() {
        found.iter().collect()
    } else {
        disks
    };
    match of_a_kind[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => Err(of_a_kind.iter().map(|one| one.name().to_owned()).collect()),
    }
}

/// Every block device below `sys` with the label or serial of the data.
pub(crate) fn scan(sys: &Path) -> Vec<DataDevice> {
    devices(sys)
        .into_iter()
        .filter_map(|name| identify(sys, name))
        .collect()
}

/// Whole disks below `sys`.
pub(crate) fn disks(sys: &Path) -> Vec<String> {
    let mut names = devices(sys);
    names.retain(|name| !class(sys, name).join("partition").exists());
    names
}

/// Drivers of SCSI hosts that find their disks before PID 1 starts: the kernel waits for them.
const SETTLED_HOSTS: [&str; 2] = ["ahci", "ata_piix"];

/// Class of USB interfaces to drives (USB Mass Storage Class Specification Overview 1.4, section 2).
const USB_MASS_STORAGE: &str = "08";

/// Whether a disk may still appear: a host on this machine finds its disks after PID 1 has started.
pub(crate) fn may_appear(sys: &Path) -> bool {
    let mut hosts = ["scsi_host", "nvme", "mmc_host"].iter().flat_map(|name| {
        let hosts = fs::read_dir(sys.join("class").join(name));
        hosts.into_iter().flatten().flatten()
    });
    hosts.any(|host| !is_settled(&host.path())) || usb_devices(sys).next().is_some()
}

/// Whether a drive at USB has announced itself and has no disk yet: the kernel waits for a second before it asks the
/// drive what it is, because many drives do not answer earlier.
pub(crate) fn is_usb_drive_starting(sys: &Path) -> bool {
    usb_devices(sys).any(|interface| {
        let class = fs::read_to_string(interface.join("bInterfaceClass"));
        class.is_ok_and(|class| class.trim() == USB_MASS_STORAGE) && !has_disk(&interface)
    })
}

/// USB's hubs, devices and interfaces.
fn usb_devices(sys: &Path) -> impl Iterator<Item = PathBuf> {
    let devices = fs::read_dir(sys.join("bus/usb/devices"));
    let devices = devices.into_iter().flatten().flatten();
    devices.map(|device| device.path())
}

/// Whether a disk is below a USB interface: `host0/target0:0:0/0:0:0:0/block`.
fn has_disk(interface: &Path) -> bool {
    let below = |folder: PathBuf, name: &'static str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let entries = entries.filter(move |it| it.file_name().to_string_lossy().starts_with(name));
        entries.map(|entry| entry.path())
    };
    below(interface.to_owned(), "host")
        .flat_map(|host| below(host, "target"))
        .flat_map(|target| below(target, ""))
        .any(|unit| unit.join("block").exists())
}

fn is_settled(host: &Path) -> bool {
    let driver = fs::read_to_string(host.join("proc_name"));
    driver.is_ok_and(|driver| SETTLED_HOSTS.contains(&driver.trim()))
}

fn devices(sys: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(sys.join("class/block")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            // These are devices that this machine makes itself, and optical drives. They never have
            // the data.
            !["loop", "ram", "zram", "sr", "dm-"]
                .iter()
                .any(|not| name.starts_with(not))
        })
        .collect();
    // The kernel lists devices in no order, and messages name them.
    names.sort();
    names
}

fn identify(sys: &Path, name: String) -> Option<DataDevice> {
    let folder = class(sys, &name);
    if folder.join("partition").exists() {
        let uevent = fs::read_to_string(folder.join("uevent")).ok()?;
        let label = uevent
            .lines()
            .find_map(|line| line.strip_prefix("PARTNAME="))?;
        let disk = parent(&folder).ok()?;
        return (label == LABEL).then_some(DataDevice::Partition { name, disk });
    }
    let is_named = |file: &str, serial_at: usize| {
        let content = fs::read(folder.join(file)).unwrap_or_default();
        let serial = content.get(serial_at..).map(<[u8]>::trim_ascii);
        serial == Some(LABEL.as_bytes())
    };
    // virtio has the serial in the disk's folder, and NVMe in the device's. SCSI and SATA disks have
    // it in the page "Unit Serial Number" (SPC-4, section 7.8.16), behind the head of the page.
    let named = is_named("serial", 0)
        || is_named("device/serial", 0)
        || is_named("device/vpd_pg80", PAGE_HEAD_BYTES);
    named.then_some(DataDevice::Disk { name })
}

fn class(sys: &Path, name: &str) -> PathBuf {
    sys.join("class/block").join(name)
}

/// The disk of a partition: its folder contains that of the partition.
fn parent(folder: &Path) -> io::Result<String> {
    let real = fs::canonicalize(folder)?;
    let name = real
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/sys` with these disks (name, serial) and partitions (disk, name, label).
    fn sys(disks: &[(&str, &str)], partitions: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        let class = root.path().join("class/block");
        fs::create_dir_all(&class).expect("writable");
        for (name, serial) in disks {
            let device = root.path().join("devices").join(name);
            fs::create_dir_all(&device).expect("writable");
            fs::write(device.join("serial"), serial).expect("writable");
            symlink(&device, class.join(name)).expect("writable");
        }
        for (disk, name, label) in partitions {
            let device = root.path().join("devices").join(disk).join(name);
            fs::create_dir_all(&device).expect("writable");
            fs::write(device.join("partition"), "3\n").expect("writable");
            let uevent = format!("DEVNAME={name}\nDEVTYPE=partition\nPARTN=3\nPARTNAME={label}\n");
            fs::write(device.join("uevent"), uevent).expect("writable");
            symlink(&device, class.join(name)).expect("writable");
        }
        root
    }

    #[test]
    fn a_serial_or_a_label_is_found_and_nothing_else() {
        let root = sys(
            &[
                ("vda", "root"),
                ("vdb", "alk-data"),
                ("loop0", "alk-data"),
                ("vdc", ""),
            ],
            &[("vda", "vda1", "alk-esp"), ("vda", "vda3", "alk-data")],
        );
        let found = scan(root.path());
        let partition = DataDevice::Partition {
            name: "vda3".to_owned(),
            disk: "vda".to_owned(),
        };
        let disk = DataDevice::Disk {
            name: "vdb".to_owned(),
        };
        assert_eq!(found, [partition, disk.clone()]);
        assert_eq!(choose(&found), Ok(Some(&disk)));
        assert_eq!(disks(root.path()), ["vda", "vdb", "vdc"]);
    }

    #[test]
    fn a_disk_of_scsi_or_sata_has_its_serial_in_a_page() {
        let root = sys(&[("sda", ""), ("sdb", ""), ("sdc", "")], &[]);
        let page = |name: &str, content: &[u8]| {
            let folder = root.path().join("devices").join(name).join("device");
            fs::create_dir_all(&folder).expect("writable");
            fs::write(folder.join("vpd_pg80"), content).expect("writable");
        };
        page("sda", b"\0\x80");
        // SATA fills the field with blanks.
        page("sdb", b"\0\x80\0\x14alk-data            ");
        page("sdc", b"\0\x80\0\x09alk-data2");
        let disk = DataDevice::Disk {
            name: "sdb".to_owned(),
        };
        assert_eq!(scan(root.path()), [disk]);
    }

    #[test]
    fn two_of_a_kind_are_ambiguous() {
        let root = sys(&[("vda", "alk-data"), ("vdb", "alk-data\n")], &[]);
        let names = choose(&scan(root.path())).expect_err("two disks").join(" ");
        assert_eq!(names, "vda vdb");
    }

    #[test]
    fn an_empty_machine_has_none() {
        let root = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(choose(&scan(root.path())), Ok(None));
        assert!(!may_appear(root.path()));
    }

    #[test]
    fn a_disk_may_appear_where_a_slow_bus_is() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(root.path().join("class/scsi_host")).expect("writable");
        assert!(!may_appear(root.path()));
        let host = |name: &str, driver: &str| {
            let folder = root.path().join("class/scsi_host").join(name);
            fs::create_dir_all(&folder).expect("writable");
            fs::write(folder.join("proc_name"), driver).expect("writable");
        };
        host("host0", "ahci\n");
        assert!(!may_appear(root.path()), "the kernel waited for SATA");
        host("host1", "virtio_scsi\n");
        assert!(may_appear(root.path()));
    }

    #[test]
    fn a_drive_at_usb_is_waited_for_until_it_has_a_disk() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let sys = root.path();
        let interface = |name: &str, class: &str| {
            let folder = sys.join("bus/usb/devices").join(name);
            fs::create_dir_all(&folder).expect("writable");
            fs::write(folder.join("bInterfaceClass"), class).expect("writable");
            folder
        };
        assert!(!may_appear(sys) && !is_usb_drive_starting(sys));
        interface("1-1:1.0", "03\n");
        assert!(may_appear(sys), "a drive beside the keyboard may be slow");
        assert!(!is_usb_drive_starting(sys));
        let drive = interface("2-1:1.0", "08\n");
        assert!(is_usb_drive_starting(sys));
        let unit = drive.join("host0/target0:0:0/0:0:0:0");
        fs::create_dir_all(&unit).expect("writable");
        assert!(is_usb_drive_starting(sys));
        fs::create_dir(unit.join("block")).expect("writable");
        assert!(!is_usb_drive_starting(sys));
    }
}
