//! The firmware's boot entries, changed as an operating system or a person in the firmware's setup
//! changes them.

use std::path::Path;
use std::process::Command;

use crate::error::Result;
use crate::secure_boot::{python, run};

/// A program with the library of virt-firmware, which has no command for this.
const PROGRAM: &str = include_str!("boot_entry.py");

/// Gives the boot entries for disks this command line, which firmware passes to what it starts.
/// `variables` come from a machine that was started before, whose firmware wrote the entries.
/// `packages` is the folder in which Python finds virt-firmware.
///
/// # Errors
/// The package is missing, or the variables have no such entry.
pub fn set_command_line(variables: &Path, packages: &Path, line: &str) -> Result<()> {
    let mut command: Command = python(packages);
    command.args(["-c", PROGRAM]).arg(variables).arg(line);
    run(command, "virt-firmware")
}
