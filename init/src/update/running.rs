//! The boot partition that the machine was started from. Which slot of it runs is said by
//! [`alknet_provisioning::running_slot`], and never by the record: a loader that cannot write starts another slot than
//! the record names.

use std::fs;
use std::path::Path;

/// The vendor of the variables that systemd's loader interface defines.
const LOADER_VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Variables with the GUID of the partition that it was started from.
const PARTITION_VARIABLES: [&str; 2] = ["LoaderDevicePartUUID", "StubDevicePartUUID"];
/// Most bytes of such a variable.
const VARIABLE_BYTES_MAX: u64 = 4 << 10;
/// The attributes of a variable of this start, before the value in Linux' file system of variables: access for boot
/// services and at run time. One that outlives a start (`NON_VOLATILE`) may be of a stick that started the machine once.
const ATTRIBUTES: [u8; 4] = [6, 0, 0, 0];

/// The GUID of the boot partition that firmware started the machine from.
pub(super) fn boot_partition(efi_variables: &Path) -> Option<String> {
    let mut names = PARTITION_VARIABLES.iter();
    names.find_map(|name| variable(efi_variables, name))
}

/// The text in a variable of firmware.
fn variable(folder: &Path, name: &str) -> Option<String> {
    let path = folder.join(format!("{name}-{LOADER_VENDOR}"));
    if fs::metadata(&path).ok()?.len() > VARIABLE_BYTES_MAX {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let units = bytes.strip_prefix(&ATTRIBUTES)?.chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, name: &str, text: &str) {
        put_as(folder, name, text, ATTRIBUTES);
    }

    fn put_as(folder: &Path, name: &str, text: &str, attributes: [u8; 4]) {
        let mut bytes = attributes.to_vec();
        bytes.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        let path = folder.join(format!("{name}-{LOADER_VENDOR}"));
        fs::write(path, bytes).expect("writable");
    }

    #[test]
    fn firmware_names_the_partition_in_few_bytes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(boot_partition(dir.path()), None);
        put(dir.path(), "LoaderDevicePartUUID", "AB-CD");
        assert_eq!(boot_partition(dir.path()).as_deref(), Some("AB-CD"));
        // A stick that started the machine once can leave a variable that stays.
        put_as(dir.path(), "LoaderDevicePartUUID", "EF", [7, 0, 0, 0]);
        assert_eq!(boot_partition(dir.path()), None);
        put(dir.path(), "StubDevicePartUUID", "01");
        assert_eq!(boot_partition(dir.path()).as_deref(), Some("01"));
        fs::remove_file(
            dir.path()
                .join(format!("StubDevicePartUUID-{LOADER_VENDOR}")),
        )
        .expect("written");
        let long = "x".repeat(VARIABLE_BYTES_MAX as usize);
        put(dir.path(), "LoaderDevicePartUUID", &long);
        assert_eq!(boot_partition(dir.path()), None);
    }
}
