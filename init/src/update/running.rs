//! What runs: the version of the image, and the boot slot that it was started from. The record never says that: a loader
//! that cannot write starts another slot than the record names.

use std::fs;
use std::path::Path;

use alknet_boot_state::BootSlot;

/// The version of the image, which its build puts beside the binary.
const VERSION_FILE: &str = "/version";
/// Most bytes of it.
const VERSION_BYTES_MAX: usize = 100;
/// The word of the kernel's command line by which GRUB names the slot.
const SLOT_WORD: &str = "alknet.slot=";
/// The vendor of the variables that systemd's loader interface defines.
const LOADER_VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Variables in which systemd-stub and loaders name the program that was started, the more exact one first.
const IMAGE_VARIABLES: [&str; 2] = ["StubImageIdentifier", "LoaderImageIdentifier"];
/// Variables with the GUID of the partition that it was started from.
const PARTITION_VARIABLES: [&str; 2] = ["LoaderDevicePartUUID", "StubDevicePartUUID"];
/// Most bytes of such a variable.
const VARIABLE_BYTES_MAX: u64 = 4 << 10;
/// Bytes of attributes before the value in Linux' file system of variables.
const ATTRIBUTE_BYTES: usize = 4;

/// The version of the image that runs.
#[must_use]
pub(crate) fn image_version() -> String {
    version_in(Path::new(VERSION_FILE)).unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

fn version_in(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_~".contains(&byte);
    let is_valid = (1..=VERSION_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
    is_valid.then(|| text.to_owned())
}

/// The slot that runs. `None` if the machine was started in another way: by a hypervisor, from a CD, over the network.
pub(super) fn slot(command_line: &str, efi_variables: &Path) -> Option<BootSlot> {
    let mut words = command_line.split_whitespace();
    if let Some(letter) = words.find_map(|word| word.strip_prefix(SLOT_WORD)) {
        let slots = BootSlot::ALL.into_iter();
        return slots.into_iter().find(|slot| slot.letter() == letter);
    }
    let mut images = IMAGE_VARIABLES.iter();
    let images = images.find_map(|name| variable(efi_variables, name));
    images.and_then(|path| slot_of_path(&path))
}

/// The GUID of the boot partition that firmware started the machine from.
pub(super) fn boot_partition(efi_variables: &Path) -> Option<String> {
    let mut names = PARTITION_VARIABLES.iter();
    names.find_map(|name| variable(efi_variables, name))
}

/// The slot whose program has this path. Firmware writes names as the directory has them or as it was asked for them.
fn slot_of_path(path: &str) -> Option<BootSlot> {
    let path = path.replace('/', "\\");
    let is_program = |slot: &BootSlot| {
        let program = super::disk::slot_path(*slot);
        path.eq_ignore_ascii_case(&program)
    };
    BootSlot::ALL.into_iter().find(is_program)
}

/// The text in a variable of firmware.
fn variable(folder: &Path, name: &str) -> Option<String> {
    let path = folder.join(format!("{name}-{LOADER_VENDOR}"));
    if fs::metadata(&path).ok()?.len() > VARIABLE_BYTES_MAX {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let units = bytes.get(ATTRIBUTE_BYTES..)?.chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, name: &str, text: &str) {
        let mut bytes = vec![7, 0, 0, 0];
        bytes.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        let path = folder.join(format!("{name}-{LOADER_VENDOR}"));
        fs::write(path, bytes).expect("writable");
    }

    #[test]
    fn the_command_line_names_the_slot_before_firmware_does() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let slot = |line| slot(line, dir.path());
        assert_eq!(slot("quiet panic=10\n"), None);
        assert_eq!(slot("quiet alknet.slot=b\n"), Some(BootSlot::B));
        put(dir.path(), "LoaderImageIdentifier", r"\EFI\ALKNET\B.EFI");
        assert_eq!(slot("quiet"), Some(BootSlot::B));
        put(dir.path(), "StubImageIdentifier", r"\efi\alknet\a.efi");
        assert_eq!(slot("quiet"), Some(BootSlot::A), "the stub knows better");
        assert_eq!(slot("alknet.slot=b"), Some(BootSlot::B));
        assert_eq!(slot("alknet.slot=c"), None, "a later loader");
    }

    #[test]
    fn a_program_elsewhere_is_no_slot() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for path in [
            r"\EFI\BOOT\BOOTX64.EFI",
            r"\OTHER\EFI\ALKNET\A.EFI",
            r"\EFI\ALKNET\A.EFI.EFI",
            "",
        ] {
            put(dir.path(), "StubImageIdentifier", path);
            assert_eq!(slot("", dir.path()), None, "{path}");
        }
        put(dir.path(), "StubImageIdentifier", "/EFI/ALKNET/A.EFI");
        assert_eq!(slot("", dir.path()), Some(BootSlot::A));
        put(dir.path(), "LoaderDevicePartUUID", "AB-CD");
        assert_eq!(boot_partition(dir.path()).as_deref(), Some("AB-CD"));
        let long = "x".repeat(VARIABLE_BYTES_MAX as usize);
        put(dir.path(), "LoaderDevicePartUUID", &long);
        assert_eq!(boot_partition(dir.path()), None);
    }

    #[test]
    fn the_version_of_the_image_counts_if_it_is_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("version");
        assert_eq!(version_in(&path), None);
        for (text, version) in [
            ("1.2.3\n", Some("1.2.3")),
            ("", None),
            ("1.2.3 x", None),
            ("1\u{1b}[2J", None),
        ] {
            fs::write(&path, text).expect("writable");
            assert_eq!(version_in(&path).as_deref(), version, "{text:?}");
        }
    }
}
