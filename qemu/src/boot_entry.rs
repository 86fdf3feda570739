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

/// A file on the second partition of a disk.
#[derive(Clone, Debug)]
pub struct BootPartitionFile<'a> {
    /// The identity of the partition, such as `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`.
    pub partition: &'a str,
    /// The first block of the partition, and how many it has, of 512 bytes.
    pub blocks: (u64, u64),
    /// The file, such as `\EFI\ALKNET\A.EFI`.
    pub path: &'a str,
}

/// Makes the boot entries for disks start this file, with this command line.
///
/// # Errors
/// The errors of [`set_command_line`].
pub fn set_boot_file(
    variables: &Path,
    packages: &Path,
    file: &BootPartitionFile<'_>,
    line: &str,
) -> Result<()> {
    let mut command: Command = python(packages);
    let (first, count) = file.blocks;
    let (first, count) = (first.to_string(), count.to_string());
    command.args(["-c", PROGRAM]).arg(variables);
    command.args([line, file.partition, &first, &count, file.path]);
    run(command, "virt-firmware")
}
