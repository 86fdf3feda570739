//! The disks below some devices, and what sysfs says of them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::health::HealthReport;
use super::{ata, flash, nvme};
use crate::control::DiskHealthFacts;

/// Devices on devices that are followed: a file system on an encrypted partition of a disk has three.
const DEPTH_MAX: usize = 8;
/// Characters of a serial number that are shown: enough to find the disk in a machine, and not enough to claim its
/// guarantee.
const SERIAL_END_CHARS: usize = 4;
/// Most characters of a model's name: NVMe has the longest, with 40.
const MODEL_CHARS_MAX: usize = 40;
/// Bytes before the serial number in the page 80h of the vital product data (SPC-4, section 7.8.15).
const SERIAL_PAGE_HEADER: usize = 4;
/// What the kernel's ATA layer calls the vendor of each of its disks.
const ATA_VENDOR: &str = "ATA";

/// The names of the disks below these devices, each of which is a name below `/dev`.
pub(crate) fn disks_of(sys: &Path, devices: &[String]) -> BTreeSet<String> {
    let mut disks = BTreeSet::new();
    for device in devices {
        follow(sys, device, 0, &mut disks);
    }
    disks
}

fn follow(sys: &Path, name: &str, depth: usize, into: &mut BTreeSet<String>) {
    let folder = class(sys, name);
    let slaves = names_in(&folder.join("slaves"));
    if depth < DEPTH_MAX && !slaves.is_empty() {
        for slave in &slaves {
            follow(sys, slave, depth + 1, into);
        }
        return;
    }
    // The folder of a disk contains those of its partitions.
    let Ok(real) = fs::canonicalize(&folder) else {
        return;
    };
    let disk = match real.join("partition").exists() {
        true => real.parent().and_then(Path::file_name),
        false => real.file_name(),
    };
    into.extend(disk.and_then(|disk| disk.to_str()).map(str::to_owned));
}

/// Reads what these disks and the kernel say of them. Waits for the disks.
pub(crate) fn read_disks(sys: &Path, dev: &Path, disks: &BTreeSet<String>) -> Vec<DiskHealthFacts> {
    let file_systems = file_system_errors(sys);
    let read = disks.iter().map(|name| {
        let errors = file_systems.iter().filter(|(disk, _)| disk == name);
        let errors: Vec<u64> = errors.map(|(_, errors)| *errors).collect();
        let mut facts = read_disk(sys, dev, name);
        facts.filesystem_errors = (!errors.is_empty()).then(|| errors.iter().sum());
        facts
    });
    read.collect()
}

/// How a disk is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskKind {
    Ata,
    Flash,
    Nvme,
    Other,
}

impl DiskKind {
    fn detect(name: &str, vendor: Option<&str>) -> Self {
        match vendor {
            _ if name.starts_with("nvme") => Self::Nvme,
            _ if name.starts_with("mmcblk") => Self::Flash,
            Some(ATA_VENDOR) if name.starts_with("sd") => Self::Ata,
            _ => Self::Other,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ata => "sata",
            Self::Flash => "flash",
            Self::Nvme => "nvme",
            Self::Other => "other",
        }
    }
}

fn read_disk(sys: &Path, dev: &Path, name: &str) -> DiskHealthFacts {
    let folder = class(sys, name);
    let device = folder.join("device");
    let kind = DiskKind::detect(name, text(&device.join("vendor")).as_deref());
    let model_file = match kind {
        DiskKind::Flash => "name",
        _ => "model",
    };
    let serial = text(&device.join("serial"))
        .or_else(|| text(&folder.join("serial")))
        .or_else(|| serial_of_page(&fs::read(device.join("vpd_pg80")).ok()?));
    let mut facts = DiskHealthFacts {
        name: name.to_owned(),
        kind: kind.name().to_owned(),
        model: text(&device.join(model_file)).map(|it| it.chars().take(MODEL_CHARS_MAX).collect()),
        serial_end: serial.and_then(|serial| serial_end(&serial)),
        kernel_errors: text(&device.join("ioerr_cnt")).and_then(|it| hexadecimal(&it)),
        ..DiskHealthFacts::default()
    };
    report(kind, &dev.join(name), &device).add_to(&mut facts);
    facts
}

/// Asks the disk. One that cannot be asked has an empty report.
fn report(kind: DiskKind, path: &Path, device: &Path) -> HealthReport {
    match kind {
        DiskKind::Ata => open(path).map(|disk| ata::read(&disk)).unwrap_or_default(),
        DiskKind::Flash => flash::read(device),
        DiskKind::Nvme => {
            let log = open(path).and_then(|disk| nvme::read_log(&disk));
            log.map(|log| nvme::parse(&log)).unwrap_or_default()
        }
        DiskKind::Other => HealthReport::default(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Without the flag the kernel would wait for a medium.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The errors that the kernel recorded in each mounted ext4 file system, by its disk.
fn file_system_errors(sys: &Path) -> Vec<(String, u64)> {
    let folder = sys.join("fs/ext4");
    let mut found = Vec::new();
    for name in names_in(&folder) {
        let errors = text(&folder.join(&name).join("errors_count"));
        let Some(errors) = errors.and_then(|text| text.parse().ok()) else {
            continue;
        };
        let disks = disks_of(sys, &[name]);
        found.extend(disks.into_iter().map(|disk| (disk, errors)));
    }
    found
}

/// The serial number in the page 80h of the vital product data.
fn serial_of_page(page: &[u8]) -> Option<String> {
    let length = usize::from(*page.get(SERIAL_PAGE_HEADER - 1)?);
    let serial = page.get(SERIAL_PAGE_HEADER..)?;
    let serial = &serial[..length.min(serial.len())];
    plain(&String::from_utf8_lossy(serial))
}

/// The end of a serial number.
fn serial_end(serial: &str) -> Option<String> {
    let plain: Vec<char> = serial.chars().filter(char::is_ascii_alphanumeric).collect();
    let end = &plain[plain.len().saturating_sub(SERIAL_END_CHARS)..];
    (!end.is_empty()).then(|| end.iter().collect())
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn text(path: &Path) -> Option<String> {
    plain(&fs::read_to_string(path).ok()?)
}

/// The text without spaces around it and without characters that a disk's maker had no reason to use. `None` if nothing is
/// left.
fn plain(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let is_plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    let text: String = text.chars().filter(is_plain).collect();
    (!text.is_empty()).then_some(text)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

fn class(sys: &Path, name: &str) -> PathBuf {
    sys.join("class/block").join(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/sys` with a disk `nvme0n1` of two partitions, of which the second one is encrypted, and a stick.
    fn sys() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path();
        let put = |name: &str, text: &str| {
            let file = path.join(name);
            fs::create_dir_all(file.parent().expect("below the root")).expect("writable");
            fs::write(file, text).expect("writable");
        };
        put("devices/nvme0n1/nvme0n1p1/partition", "1\n");
        put("devices/nvme0n1/nvme0n1p2/partition", "2\n");
        put("devices/sda/sda1/partition", "1\n");
        put("devices/nvme0n1/device/model", "Example 970   \n");
        put("devices/nvme0n1/device/serial", "S4EV-000012AB \n");
        put("devices/sda/device/vendor", "ATA     \n");
        put("devices/sda/device/model", "Example SSD\n");
        put("devices/sda/device/ioerr_cnt", "0x1f\n");
        put("devices/dm-0/dm/name", "alknet-data\n");
        put("fs/ext4/dm-0/errors_count", "3\n");
        put("fs/ext4/features/lazy_itable_init", "");
        fs::create_dir_all(path.join("devices/dm-0/slaves/nvme0n1p2")).expect("writable");
        fs::write(
            path.join("devices/sda/device/vpd_pg80"),
            b"\x00\x80\x00\x08 SN-9876xxxx",
        )
        .expect("writable");
        fs::create_dir_all(path.join("class/block")).expect("writable");
        for device in [
            "nvme0n1",
            "nvme0n1/nvme0n1p1",
            "nvme0n1/nvme0n1p2",
            "sda",
            "sda/sda1",
            "dm-0",
        ] {
            let name = device.rsplit('/').next().expect("a name");
            let link = path.join("class/block").join(name);
            symlink(path.join("devices").join(device), link).expect("writable");
        }
        root
    }

    fn found(root: &Path, devices: &[&str]) -> Vec<String> {
        let devices: Vec<String> = devices.iter().map(|it| (*it).to_owned()).collect();
        disks_of(root, &devices).into_iter().collect()
    }

    #[test]
    fn disks_are_found_below_partitions_and_encryption() {
        let root = sys();
        assert_eq!(found(root.path(), &["nvme0n1p1", "dm-0"]), ["nvme0n1"]);
        assert_eq!(found(root.path(), &["sda1", "sda"]), ["sda"]);
        assert_eq!(found(root.path(), &["dm-0", "sda1"]), ["nvme0n1", "sda"]);
        assert_eq!(found(root.path(), &["gone"]), [""; 0]);
    }

    #[test]
    fn other_disks_are_not_read() {
        let root = sys();
        let only = disks_of(root.path(), &["nvme0n1p1".to_owned()]);
        let read = read_disks(root.path(), Path::new("/nowhere"), &only);
        let names: Vec<_> = read.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["nvme0n1"]);
        let disk = &read[0];
        assert_eq!(disk.kind, "nvme");
        assert_eq!(disk.model.as_deref(), Some("Example 970"));
        assert_eq!(disk.serial_end.as_deref(), Some("12AB"));
        assert_eq!(disk.filesystem_errors, Some(3));
        // There is no such device to ask.
        assert_eq!(disk.health, "unknown");
    }

    #[test]
    fn a_sata_disk_has_its_serial_number_in_a_page() {
        let root = sys();
        let read = read_disk(root.path(), Path::new("/nowhere"), "sda");
        assert_eq!(read.kind, "sata");
        assert_eq!(read.serial_end.as_deref(), Some("9876"));
        assert_eq!(read.kernel_errors, Some(31));
        assert_eq!(read.filesystem_errors, None);
        assert_eq!(DiskKind::detect("sdb", Some("QEMU")), DiskKind::Other);
        assert_eq!(DiskKind::detect("vda", None), DiskKind::Other);
    }

    #[test]
    fn a_page_and_a_text_of_a_device_are_not_trusted() {
        for page in [
            &b""[..],
            b"\x00\x80\x00",
            b"\x00\x80\x00\xff",
            b"\x00\x80\x00\x00abc",
        ] {
            assert_eq!(serial_of_page(page), None, "{page:?}");
        }
        let page = serial_of_page(b"\x00\x80\x00\xffA\x1b[2JB");
        assert_eq!(page.as_deref(), Some("A[2JB"));
        assert_eq!(serial_end("…--"), None);
        assert_eq!(serial_end("1"), Some("1".to_owned()));
    }
}
