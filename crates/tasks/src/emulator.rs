//! The QEMU of the tests, newer than Debian 12's: before 9.1 it can change a guest's flags where an instruction that
//! writes memory and flags faults, which ended some guests' kernels. It uses the libraries that the system's QEMU
//! needs, and its iPXE.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::{self, SourcePin};
use crate::{cached, third_party};

/// The packages, by their names in `sources.toml`: program, modules, data, and the firmware of a BIOS.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// The command in the folder.
const COMMAND: &str = "qemu-system-x86_64";

/// Starts the program with its own modules and data, wherever the folder is.
const LAUNCHER: &str = "\
#!/bin/sh
here=$(dirname \"$0\")
export QEMU_MODULE_DIR=\"$here/usr/lib/x86_64-linux-gnu/qemu\"
exec \"$here/usr/bin/qemu-system-x86_64\" -L \"$here/usr/share/qemu\" -L \"$here/usr/share/seabios\" \\
    -L /usr/lib/ipxe/qemu \"$@\"
";

/// A command like the system's `qemu-system-x86_64`, and newer.
pub(crate) fn ensure(cx: &XtaskContext) -> Result<PathBuf> {
    let mut packages = Vec::new();
    for name in PACKAGES {
        packages.push(sources::obtain(cx, name)?);
    }
    let folder = folder(cx, packages.iter().map(|package| &package.pin));
    let command = folder.join(COMMAND);
    if command.exists() {
        return Ok(command);
    }
    let scratch = ScratchFolder::new(cx.cache(), "qemu-")?;
    let fresh = scratch.path().join("qemu");
    for package in &packages {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&package.path).arg(&fresh);
        cx.run(&mut unpack, "unpack QEMU", COMMAND)?;
    }
    let settle = || -> io::Result<()> {
        write_launcher(&fresh.join(COMMAND))?;
        cached::settle(&fresh, &folder)
    };
    settle().map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(command)
}

/// The folder in the cache with the command of [`ensure`], whether it exists or not.
pub(crate) fn pinned(cx: &XtaskContext) -> Result<PathBuf> {
    let pins = PACKAGES.iter().map(|name| sources::likely(cx, name));
    let pins: Vec<SourcePin> = pins.collect::<Result<_>>()?;
    Ok(folder(cx, &pins))
}

fn folder<'a>(cx: &XtaskContext, pins: impl IntoIterator<Item = &'a SourcePin>) -> PathBuf {
    third_party::parts_folder(cx, "qemu", pins, [LAUNCHER])
}

fn write_launcher(path: &Path) -> io::Result<()> {
    fs::write(path, LAUNCHER)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that tidies the cache removes what is not listed.
    #[test]
    fn the_folder_of_qemu_is_kept() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(cache.path());
        let kept = pinned(&cx).expect("all packages are pinned");
        let all = third_party::pinned(&cx).expect("all sources are pinned");
        assert!(all.contains(&kept), "{} is not kept", kept.display());
        let mut pins = Vec::new();
        for name in PACKAGES {
            pins.push(sources::likely(&cx, name).expect("pinned"));
        }
        pins.reverse();
        assert_ne!(folder(&cx, &pins), kept, "other packages");
    }
}
