//! A medium with ISO 9660 that starts as a CD and, written to a drive, as a disk, under UEFI and
//! under a BIOS.
//!
//! xorriso writes the file system, the partition table and El Torito's catalogue. The EFI system
//! partition is ours: firmware and GRUB read the EFI program there, whichever way the medium is
//! attached.
//!
//! The medium also has what a machine needs to [install](crate::install) itself onto a disk.
//!
//! The partition is a file of the ISO file system. El Torito counts sectors in 16 bits, so firmware
//! takes a partition of more than 32 MiB to end where that file system ends.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::disk;
use crate::error::ImageError;
use crate::grub::NOTICE_FILE;
use crate::ids::BuildIds;
use crate::install::{self, InstallFiles, MEDIUM_LABEL, SYSTEM_FILE};
use crate::manifest::ManifestSource;
use crate::out::at;
use crate::tool::ImageTool;
use crate::virtual_disk::RawDisk;

const XORRISO: ImageTool = ImageTool {
    name: "xorriso",
    package: "xorriso",
    fallback: None,
};
/// 1980-01-01 in seconds since 1970, the time of everything on the medium: the first day that FAT
/// knows.
const FIRST_DAY_SECS: &str = "315532800";
/// The same for xorriso's option.
const FIRST_DAY: &str = "1980010100000000";
/// Bytes that are free on the EFI system partition, for a configuration.
const ROOM_BYTES: u64 = 1 << 20;

/// The tool for the manifest: its version, and the hash of its file.
pub(crate) fn tool() -> Option<ManifestSource> {
    XORRISO.source()
}

/// What the medium is made of.
#[derive(Debug)]
pub(crate) struct IsoMedium<'a> {
    pub(crate) uki: &'a [u8],
    /// GRUB's core image for a CD.
    pub(crate) core: &'a [u8],
    /// GRUB's first sector for a medium that is a CD and a disk.
    pub(crate) hybrid_sector: &'a [u8],
    /// GRUB's licence, which lies on the medium.
    pub(crate) notice: &'a str,
    pub(crate) ids: &'a BuildIds,
    /// The disk of the form `raw`, whose EFI program is `uki`.
    pub(crate) disk: &'a RawDisk,
    /// The version of the image.
    pub(crate) version: &'a str,
}

/// Writes the medium to `output`.
pub(crate) fn write(medium: &IsoMedium<'_>, output: &Path) -> Result<(), ImageError> {
    let dir = output.parent().unwrap_or_else(|| Path::new("."));
    let staging = tempfile::Builder::new()
        // The folder is beside the output, where no other user can change it, and in whose file
        // system the medium can be renamed.
        .prefix(".iso-")
        .tempdir_in(dir)
        .map_err(at(dir))?;
    stage(medium, staging.path()).map_err(at(dir))?;
    let disk_id = medium.ids.uuid("iso").to_string();
    XORRISO.run(output, |command| {
        command
            // Settings of the user or the machine would change the bytes.
            .args(["-no_rc", "-as", "mkisofs", "-quiet", "-o", "medium.iso"])
            .args(["-V", MEDIUM_LABEL, "-r", "-J"])
            .args(["--set_all_file_dates", FIRST_DAY])
            .args(["--gpt_disk_guid", &disk_id])
            .args(["-b", "boot/eltorito.img", "-no-emul-boot"])
            .args(["-boot-load-size", "4", "-boot-info-table"])
            .args(["--grub2-boot-info", "--grub2-mbr", "hybrid.img"])
            .args(["-eltorito-alt-boot", "-e", SYSTEM_FILE, "-no-emul-boot"])
            // On a drive the EFI system partition is the second partition of a GPT.
            .args(["-efi-boot-part", "--efi-boot-image"])
            .arg("tree")
            // Paths in arguments could begin with what xorriso takes for the name of a drive.
            .current_dir(staging.path())
            // The specification of this variable: https://reproducible-builds.org.
            .env("SOURCE_DATE_EPOCH", FIRST_DAY_SECS)
            .env("TZ", "UTC");
    })?;
    fs::rename(staging.path().join("medium.iso"), output).map_err(at(output))
}

fn stage(medium: &IsoMedium<'_>, folder: &Path) -> io::Result<()> {
    let tree = folder.join("tree");
    let boot = tree.join("boot");
    fs::create_dir_all(&boot)?;
    fs::write(boot.join("eltorito.img"), medium.core)?;
    fs::write(tree.join(NOTICE_FILE), medium.notice)?;
    fs::write(folder.join("hybrid.img"), medium.hybrid_sector)?;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let system = options.open(tree.join(SYSTEM_FILE))?;
    disk::write_system_image(&system, medium.uki, ROOM_BYTES, medium.ids)?;
    let files = InstallFiles::new(medium.disk, &system, medium.version)?;
    install::write(&files, &tree)
}
