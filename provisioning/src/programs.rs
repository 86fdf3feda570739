//! EFI programs on media: the one that the machine starts now, and one to start next.

use std::io::Read;
use std::path::Path;

use alknet_boot_state::BootSlot;

use crate::mount::Mounter;
use crate::slot::running_slot;
use crate::sources::{LabelledVolume, labelled};
use crate::{ProvisioningError, SourcePaths, file};

/// Most bytes of an EFI program: a third of the boot partition, which is also the limit for the
/// image's program.
pub const PROGRAM_BYTES_MAX: u64 = (256 << 20) / 3;
/// Where firmware finds a program without a boot entry (UEFI, section 3.5.1.1): the loader, or the program itself on a
/// medium with one program.
const FIRST: &str = if cfg!(target_arch = "aarch64") {
    "EFI/BOOT/BOOTAA64.EFI"
} else {
    "EFI/BOOT/BOOTX64.EFI"
};
/// The name, in the root of a volume, of the program to start next.
pub const NEXT: &str = "alknet-next.efi";

/// The programs of an update.
#[derive(Debug)]
pub struct UpdatePrograms {
    /// The program that firmware starts first, if that one starts the others.
    pub loader: Option<Vec<u8>>,
    /// The program that runs, as the boot partition has it.
    pub started: Vec<u8>,
    /// The program that will replace it.
    pub next: Vec<u8>,
    /// The block device with the next program.
    pub next_from: String,
}

/// Reads the program that runs and its loader from the boot partition, and the file [`NEXT`] of the
/// only volume that has one, which may be a NoCloud volume or a boot partition. Blocks on disks.
///
/// # Errors
/// `AmbiguousProgram` if several volumes have [`NEXT`], `NoProgram` if one of the programs is
/// missing, `TooLarge`, and errors of unreadable volumes.
pub fn programs(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
) -> Result<UpdatePrograms, ProvisioningError> {
    let volumes = labelled(paths);
    let find = |volume: &LabelledVolume, name: &str| {
        let mounted = mounter
            .mount(&volume.device, volume.file_system, &paths.mount_point)
            .map_err(|source| ProvisioningError::Mount {
                device: volume.device.clone(),
                source,
            })?;
        read(&mounted.root().join(name))
    };
    let mut next: Option<(Vec<u8>, String)> = None;
    for volume in &volumes {
        let Some(program) = find(volume, NEXT)? else {
            continue;
        };
        if let Some((_, other)) = next {
            // Otherwise an attached medium could decide which program the vault opens for.
            let volumes = vec![other, volume.name.clone()];
            return Err(ProvisioningError::AmbiguousProgram {
                name: NEXT,
                volumes,
            });
        }
        next = Some((program, volume.name.clone()));
    }
    let missing = |name, volume| ProvisioningError::NoProgram { name, volume };
    let volume = "the boot partition, or of an attached volume with the label CIDATA";
    let (next, next_from) = next.ok_or_else(|| missing(NEXT, volume))?;
    let slot = running_slot(paths);
    let name = slot.map_or(FIRST, slot_path);
    // Firmware starts from the boot partition, so a program of this name elsewhere is not the
    // running one.
    for volume in volumes.iter().filter(|volume| volume.is_boot()) {
        let Some(started) = find(volume, name)? else {
            continue;
        };
        let loader = match slot {
            Some(_) => {
                let loader = find(volume, FIRST)?;
                Some(loader.ok_or_else(|| missing(FIRST, "the boot partition"))?)
            }
            None => None,
        };
        return Ok(UpdatePrograms {
            loader,
            started,
            next,
            next_from,
        });
    }
    Err(missing(name, "the boot partition"))
}

/// The program of a slot, from the root of the boot partition.
const fn slot_path(slot: BootSlot) -> &'static str {
    match slot {
        BootSlot::A => "EFI/ALKNET/A.EFI",
        BootSlot::B => "EFI/ALKNET/B.EFI",
    }
}

/// The content of a regular file. `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ProvisioningError> {
    let failed = |source| ProvisioningError::Read {
        path: path.to_owned(),
        source,
    };
    let opened = match file::open(path) {
        Ok(opened) => opened,
        Err(error) if file::is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = opened.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let path = path.to_owned();
        return Err(ProvisioningError::NotAFile { path });
    }
    let too_large = || ProvisioningError::TooLarge {
        path: path.to_owned(),
        limit: PROGRAM_BYTES_MAX,
    };
    // Checked before reading, which is slow on some media.
    if metadata.len() > PROGRAM_BYTES_MAX {
        return Err(too_large());
    }
    let mut content = Vec::new();
    // The limit applies even if the file system reports a smaller size.
    let mut bounded = opened.take(PROGRAM_BYTES_MAX + 1);
    bounded.read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > PROGRAM_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Some(content))
}
