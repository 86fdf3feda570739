//! What the kernel says about a block device, in sysfs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Bytes of the unit in which sysfs counts, whatever the disk's own is.
const SECTOR_BYTES: u64 = 512;
/// Longest attribute that is read, in bytes: sysfs has at most a page.
const ATTRIBUTE_BYTES_MAX: usize = 4096;
/// Bytes before the serial number in a disk's vital product data (SPC-4 section 7.8.15).
const VPD_HEAD_BYTES: usize = 4;
/// Files with the serial number of a disk, below its folder: of virtio and device mapper, of SCSI, NVMe and MMC.
const SERIAL_FILES: [&str; 2] = ["serial", "device/serial"];
/// Files with a number that names the disk in the whole world, where it has no serial number.
const WWID_FILES: [&str; 3] = ["device/wwid", "wwid", "device/cid"];

/// How the names of block devices begin that are no disks.
const NO_DISKS: [&str; 7] = ["dm-", "fd", "loop", "md", "ram", "sr", "zram"];

/// The folders in which the kernel says what it knows. A test may have folders of its own.
#[derive(Clone, Debug)]
pub struct SystemFolders {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for SystemFolders {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
        }
    }
}

/// What a disk is, for a person who has to recognise it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskFacts {
    /// The kernel's name, such as `sda`; of a file its path.
    pub name: String,
    /// Size in bytes; 0 of a file, which grows.
    pub bytes: u64,
    /// The model, with its maker if it says one.
    pub model: Option<String>,
    /// The serial number, or what names the disk in its place.
    pub serial: Option<String>,
    /// Whether it takes no writes.
    pub is_read_only: bool,
}

impl DiskFacts {
    /// What names this disk and no other on this computer: its serial number, or else its model and size.
    #[must_use]
    pub fn proof(&self) -> String {
        match &self.serial {
            Some(serial) => serial.clone(),
            None => {
                let model = self.model.as_deref().unwrap_or(&self.name);
                format!("{model} {}", self.bytes)
            }
        }
    }

    /// The disk for a person: its name, model and size.
    #[must_use]
    pub fn description(&self) -> String {
        let model = self.model.as_deref().unwrap_or("unknown model");
        format!("{} ({model}, {} bytes)", self.name, self.bytes)
    }

    /// Every disk of the computer that has a medium, sorted by name, without optical drives and devices that the kernel
    /// makes of memory, files or other devices. A disk that vanishes meanwhile is left out.
    ///
    /// # Errors
    /// The kernel's list cannot be read.
    pub fn all(folders: &SystemFolders) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folders.sys.join("block"))? {
            let folder = entry?.path();
            let name = name_of(&folder);
            if NO_DISKS.iter().any(|not| name.starts_with(not)) {
                continue;
            }
            // The entry is a link, and the folders above it name the device that the disk is in.
            let facts = fs::canonicalize(&folder).and_then(|folder| Self::read(&folder));
            all.extend(facts.ok().filter(|facts| facts.bytes > 0));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Reads them from the folder of a disk in sysfs.
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        let sectors = fs::read_to_string(folder.join("size"))?;
        let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
        let model = ["device/model", "device/name"].into_iter();
        let model = model.filter_map(|file| text(&folder.join(file))).next();
        let maker = text(&folder.join("device/vendor"));
        Ok(Self {
            name: name_of(folder),
            bytes: sectors * SECTOR_BYTES,
            model: match (maker, model) {
                // libata puts its own name in the place of the maker.
                (Some(maker), Some(model)) if maker != "ATA" && !maker.starts_with("0x") => {
                    Some(format!("{maker} {model}"))
                }
                (_, model) => model,
            },
            serial: serial(folder),
            is_read_only: text(&folder.join("ro")).is_some_and(|it| it == "1"),
        })
    }
}

/// The folder of the block device with these numbers in sysfs.
pub(crate) fn device_folder(folders: &SystemFolders, device: u64) -> io::Result<PathBuf> {
    let numbers = format!("{}:{}", major(device), minor(device));
    fs::canonicalize(folders.sys.join("dev/block").join(numbers))
}

/// The numbers of the block device at a path, if it is one.
pub(crate) fn block_device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

/// The kernel's name of the device whose folder it is.
pub(crate) fn name_of(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default();
    // sysfs writes an exclamation mark for the slash of names such as cciss/c0d0.
    name.to_string_lossy().replace('!', "/")
}

/// An attribute's text, if it has one.
pub(crate) fn text(path: &Path) -> Option<String> {
    let mut raw = fs::read(path).ok()?;
    raw.truncate(ATTRIBUTE_BYTES_MAX);
    let text = String::from_utf8_lossy(&raw);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    // Control characters of a disk would act on the terminal on which the text is shown.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

fn serial(folder: &Path) -> Option<String> {
    let plain = SERIAL_FILES
        .iter()
        .find_map(|file| text(&folder.join(file)));
    let product_data = || {
        let raw = fs::read(folder.join("device/vpd_pg80")).ok()?;
        let text = String::from_utf8_lossy(raw.get(VPD_HEAD_BYTES..)?).into_owned();
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let worldwide = || WWID_FILES.iter().find_map(|file| text(&folder.join(file)));
    plain
        .or_else(product_data)
        .or_else(|| usb_serial(folder))
        .or_else(worldwide)
}

/// The serial number of the USB device that the disk is in. Many sticks have no other.
fn usb_serial(folder: &Path) -> Option<String> {
    let usb = folder.ancestors().skip(1);
    let mut usb = usb.filter(|above| above.join("idVendor").exists());
    text(&usb.next()?.join("serial"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = dir.path().join("usb1/1-1/host0/block/sda");
        fs::create_dir_all(folder.join("device")).expect("creatable");
        fs::write(folder.join("size"), "2048\n").expect("writable");
        for (file, content) in files {
            fs::write(folder.join(file), content).expect("writable");
        }
        (dir, folder)
    }

    #[test]
    fn each_kind_of_disk_says_its_serial_number_elsewhere() {
        let vpd = b"\0\x80\0\x08  WD-7890";
        for (files, expected) in [
            (&[("serial", &b"alk-data\n"[..])][..], "alk-data"),
            (&[("device/serial", b"S4EVNX0N  \n")], "S4EVNX0N"),
            (&[("device/vpd_pg80", vpd)], "WD-7890"),
            (&[("device/wwid", b"naa.5000c500\n")], "naa.5000c500"),
            (
                &[("device/wwid", b"naa.5000c500\n"), ("device/vpd_pg80", vpd)],
                "WD-7890",
            ),
        ] {
            let (_dir, folder) = disk(files);
            let facts = DiskFacts::read(&folder).expect("readable");
            assert_eq!(facts.serial.as_deref(), Some(expected));
            assert_eq!(facts.proof(), expected);
            assert_eq!((facts.name.as_str(), facts.bytes), ("sda", 1 << 20));
        }
    }

    #[test]
    fn all_disks_are_listed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folders = SystemFolders {
            sys: dir.path().to_owned(),
            proc: dir.path().to_owned(),
        };
        for (name, sectors, serial) in [
            ("vdb", "4096\n", "second"),
            ("vda", "2048\n", "first"),
            ("sr0", "2048\n", "a CD"),
            ("loop0", "2048\n", "a file"),
            ("mmcblk0", "0\n", "no card"),
        ] {
            let device = dir.path().join("devices/pci0").join(name);
            fs::create_dir_all(&device).expect("creatable");
            fs::write(device.join("size"), sectors).expect("writable");
            fs::write(device.join("serial"), serial).expect("writable");
            let list = dir.path().join("block");
            fs::create_dir_all(&list).expect("creatable");
            std::os::unix::fs::symlink(&device, list.join(name)).expect("creatable");
        }
        let all = DiskFacts::all(&folders).expect("readable");
        let all: Vec<_> = all
            .iter()
            .map(|it| (it.name.as_str(), it.proof()))
            .collect();
        let expected = [("vda", "first".to_owned()), ("vdb", "second".to_owned())];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_stick_without_a_number_of_its_own_has_that_of_its_usb_device() {
        let (dir, folder) = disk(&[]);
        let usb = dir.path().join("usb1/1-1");
        fs::write(usb.join("idVendor"), "0781\n").expect("writable");
        fs::write(usb.join("serial"), "4C53\n").expect("writable");
        let facts = DiskFacts::read(&folder).expect("readable");
        assert_eq!(facts.serial.as_deref(), Some("4C53"));
    }

    #[test]
    fn without_any_number_model_and_size_name_the_disk() {
        let (_dir, folder) = disk(&[
            ("device/vendor", b"Generic \n"),
            ("device/model", b"Flash\x1b[2J Disk\n"),
        ]);
        let facts = DiskFacts::read(&folder).expect("readable");
        assert_eq!(facts.proof(), "Generic Flash[2J Disk 1048576");
        let (_dir, folder) = disk(&[("device/vendor", b"ATA\n"), ("device/model", b"ST4000\n")]);
        let facts = DiskFacts::read(&folder).expect("readable");
        assert_eq!(facts.model.as_deref(), Some("ST4000"));
        let (_dir, folder) = disk(&[]);
        let facts = DiskFacts::read(&folder).expect("readable");
        assert_eq!(facts.proof(), "sda 1048576");
    }
}
