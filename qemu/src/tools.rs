//! The paths of QEMU, its firmware and the cache.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// The variable that names another QEMU than `qemu-system-x86_64` of the path.
pub const QEMU_VARIABLE: &str = "ALKNET_QEMU";

/// The variable that names a folder with UEFI firmware under Debian's file names, which takes
/// precedence over that of the system.
pub const FIRMWARE_VARIABLE: &str = "ALKNET_QEMU_FIRMWARE";

/// UEFI firmware: code, and the template of its variables. Debian first, then Fedora and Arch.
const FIRMWARE: [(&str, &str); 4] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

/// Firmware that also knows Secure Boot, and protects its variables from what runs. The templates
/// have no keys.
const SECURE_FIRMWARE: [(&str, &str); 3] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

/// The emulator.
pub(crate) fn qemu() -> OsString {
    env::var_os(QEMU_VARIABLE).unwrap_or_else(|| "qemu-system-x86_64".into())
}

/// The cache that all commands of the project share. `None` without a home.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("ALKNET_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("alknet")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/alknet")))
}

/// What the emulator says about its version.
pub(crate) fn program_version() -> Result<String> {
    let output = Command::new(qemu()).arg("--version").output();
    let answer = output.map_err(Error::io("asking QEMU for its version"))?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// The version of the emulator, and the firmware files.
pub fn version() -> Result<String> {
    let mut version = program_version()?;
    for secure in [false, true] {
        let Ok(UefiFirmware { code, .. }) = firmware(secure) else {
            continue;
        };
        let Ok(file) = fs::metadata(&code) else {
            continue;
        };
        // An update of the firmware changes these, and its file has no version.
        let changed = file.modified().ok();
        version.push_str(&format!("{} {} {changed:?}\n", code.display(), file.len()));
    }
    Ok(version)
}

/// Whether the emulator has this device.
pub(crate) fn has_device(name: &str) -> Result<bool> {
    // The list of all devices would load every module, of another QEMU too, at which it ends. The status is 0 whether
    // there is such a device or not.
    let output = Command::new(qemu())
        .args(["-device", &format!("{name},help")])
        .output();
    let answer = output.map_err(Error::io("asking QEMU for a device"))?;
    let options = String::from_utf8_lossy(&answer.stdout);
    Ok(options.starts_with(&format!("{name} options")))
}

/// UEFI firmware.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UefiFirmware {
    pub(crate) code: PathBuf,
    /// The variables at the first start.
    pub(crate) template: PathBuf,
}

/// UEFI firmware, with Secure Boot if `secure`.
pub(crate) fn firmware(secure: bool) -> Result<UefiFirmware> {
    let named = env::var_os(FIRMWARE_VARIABLE).filter(|folder| !folder.is_empty());
    firmware_in(named.map(PathBuf::from).as_deref(), secure)
}

/// The same, from the folder `named` and no other if there is one.
fn firmware_in(named: Option<&Path>, secure: bool) -> Result<UefiFirmware> {
    let known: &[(&str, &str)] = if secure { &SECURE_FIRMWARE } else { &FIRMWARE };
    let at = |path: &str| match named {
        Some(folder) => folder.join(Path::new(path).file_name().unwrap_or_default()),
        None => PathBuf::from(path),
    };
    let mut there = known.iter().map(|(code, template)| UefiFirmware {
        code: at(code),
        template: at(template),
    });
    // The code and the variables have to be of one build: half of a pair starts no machine.
    let found = there.find(|firmware| firmware.code.exists() && firmware.template.exists());
    found.ok_or_else(|| Error::Missing {
        what: "UEFI firmware for QEMU",
        path: at(known[0].0),
        hint: match named {
            Some(_) => {
                "name another folder in ALKNET_QEMU_FIRMWARE, or none for that of the system"
            }
            None => "install the package ovmf",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_in_a_named_folder_is_the_only_one_taken() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let error = firmware_in(Some(dir.path()), true).expect_err("nothing is there");
        let said = error.to_string();
        assert!(said.contains(FIRMWARE_VARIABLE), "{said}");
        for name in ["OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"] {
            fs::write(dir.path().join(name), name).expect("the folder is ours");
        }
        let found = firmware_in(Some(dir.path()), true).expect("it is there");
        assert_eq!(found.code, dir.path().join("OVMF_CODE_4M.secboot.fd"));
        assert_eq!(found.template, dir.path().join("OVMF_VARS_4M.fd"));
        assert!(firmware_in(Some(dir.path()), false).is_err());
    }
}
