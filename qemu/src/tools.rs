//! Where QEMU, its firmware and the cache are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names another QEMU than `qemu-system-x86_64` of the path.
pub const QEMU_VARIABLE: &str = "ALKNET_QEMU";

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

/// The same that knows Secure Boot, and keeps its variables from whatever runs. The templates have no keys.
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

/// The cache all commands of the project share; `None` without a home.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("ALKNET_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("alknet")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/alknet")))
}

/// UEFI firmware, which knows Secure Boot if it is to, and the template of its variables.
pub(crate) fn firmware(secure: bool) -> Result<(&'static Path, &'static Path)> {
    let known: &[(&str, &str)] = if secure { &SECURE_FIRMWARE } else { &FIRMWARE };
    let there = known
        .iter()
        .map(|(code, vars)| (Path::new(*code), Path::new(*vars)));
    let mut there = there.filter(|(code, vars)| code.exists() && vars.exists());
    there.next().ok_or_else(|| Error::Missing {
        what: "UEFI firmware for QEMU",
        path: PathBuf::from(known[0].0),
        hint: "install the package ovmf",
    })
}
