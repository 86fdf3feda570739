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
use crate::{cached, digest, sources};

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
    let pins = packages.iter().map(|package| package.pin.sha256.as_bytes());
    let key = digest::key(pins.chain([LAUNCHER.as_bytes()]));
    let folder = cx.cache().join("tools").join(format!("qemu-{key}"));
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

fn write_launcher(path: &Path) -> io::Result<()> {
    fs::write(path, LAUNCHER)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}
