//! EFI programs on media: the one that the machine starts, and one that it is to start next.

use std::io::Read;
use std::path::Path;

use crate::mount::Mounter;
use crate::sources::{LabelledVolume, labelled};
use crate::{ProvisioningError, SourcePaths, file};

/// Bytes of an EFI program: a third of the boot partition, which is what the image's may have.
pub const PROGRAM_BYTES_MAX: u64 = (256 << 20) / 3;
/// Where firmware finds a program without a boot entry (UEFI, section 3.5.1.1).
const STARTED: &str = if cfg!(target_arch = "aarch64") {
    "EFI/BOOT/BOOTAA64.EFI"
} else {
    "EFI/BOOT/BOOTX64.EFI"
};
/// The name of a program that is to be started in its place, in the root of a volume.
pub const NEXT: &str = "alknet-next.efi";

/// The programs of an update.
#[derive(Debug)]
pub struct UpdatePrograms {
    /// What firmware starts from the boot partition.
    pub started: Vec<u8>,
    /// The one that is to be put in its place.
    pub next: Vec<u8>,
    /// The block device that it lies on.
    pub next_from: String,
}

/// Reads the program that firmware starts from the boot partition, and the file [`NEXT`] of the only volume that has one:
/// a NoCloud volume or a boot partition. Blocks on disks.
///
/// # Errors
/// `AmbiguousProgram` where several volumes have [`NEXT`], `NoProgram` where one of them is missing, `TooLarge`, and those of volumes that cannot be read.
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
            // An attached medium would decide which program the vault opens for.
            let volumes = vec![other, volume.name.clone()];
            return Err(ProvisioningError::AmbiguousProgram {
                name: NEXT,
                volumes,
            });
        }
        next = Some((program, volume.name.clone()));
    }
    let missing = |name, place| ProvisioningError::NoProgram { name, place };
    let place = "the boot partition, or of an attached volume with the label CIDATA";
    let (next, next_from) = next.ok_or_else(|| missing(NEXT, place))?;
    let mut started = None;
    // Firmware starts from the boot partition: a program of that name elsewhere is not what runs.
    for volume in volumes.iter().filter(|volume| volume.is_boot()) {
        started = find(volume, STARTED)?;
        if started.is_some() {
            break;
        }
    }
    Ok(UpdatePrograms {
        started: started.ok_or_else(|| missing(STARTED, "the boot partition"))?,
        next,
        next_from,
    })
}

/// The content of a regular file; `None` where there is no file.
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
    // Before the reading, which takes long on a slow medium.
    if metadata.len() > PROGRAM_BYTES_MAX {
        return Err(too_large());
    }
    let mut content = Vec::new();
    // A file system that states another size does not make it more.
    let mut bounded = opened.take(PROGRAM_BYTES_MAX + 1);
    bounded.read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > PROGRAM_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Some(content))
}
