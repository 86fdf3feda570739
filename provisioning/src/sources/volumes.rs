//! Volumes: NoCloud volumes, labelled `cidata` or `CIDATA`, with `meta-data` and `user-data` as
//! cloud-init defines them, and the boot partition, which users open on a laptop after flashing.
//! Only volumes with one of these labels are mounted.

use std::path::{Path, PathBuf};

use alknet_core::config::CONFIG_BYTES_MAX;

use super::{SourceContents, of_volume, unreadable};
use crate::label::{FileSystem, volume_label};
use crate::mount::{Mounter, devices};
use crate::secrets::SECRET_BYTES_MAX;
use crate::{ConfigOrigin, ProvisioningError, SourceDiagnostic, SourcePaths, file};

/// The names of a volume's files.
#[derive(Debug)]
pub(crate) struct VolumeFileNames {
    pub(crate) document: &'static str,
    pub(crate) words: &'static str,
    pub(crate) seed_key: &'static str,
}

const NOCLOUD: VolumeFileNames = VolumeFileNames {
    document: "user-data",
    words: "vault.words",
    seed_key: "seed.key",
};

const BOOT: VolumeFileNames = VolumeFileNames {
    document: "alknet.toml",
    words: "alknet/vault.words",
    seed_key: "alknet/seed.key",
};

/// The label of the boot partition in this project's images.
const BOOT_LABEL: &str = "ALKESP";

#[derive(Clone, Copy, PartialEq, Eq)]
enum VolumeKind {
    NoCloud,
    Boot,
}

impl VolumeKind {
    fn source(self, device: String) -> ConfigOrigin {
        match self {
            Self::NoCloud => ConfigOrigin::NoCloud { device },
            Self::Boot => ConfigOrigin::BootPartition { device },
        }
    }

    const fn names(self) -> &'static VolumeFileNames {
        match self {
            Self::NoCloud => &NOCLOUD,
            Self::Boot => &BOOT,
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::NoCloud => "write the NoCloud volume again",
            Self::Boot => "check the boot partition, or flash the image again",
        }
    }
}

/// NoCloud volumes, then boot partitions. Each kind is in the order of device names.
pub(super) fn find(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    problems: &mut Vec<SourceDiagnostic>,
) -> Vec<SourceContents> {
    let mut offers = Vec::new();
    for volume in labelled(paths) {
        let source = volume.source();
        let LabelledVolume {
            kind,
            device,
            file_system,
            ..
        } = volume;
        match read(
            kind,
            &source,
            &device,
            file_system,
            paths,
            mounter,
            problems,
        ) {
            Ok(offer) => offers.extend(offer),
            Err(error) => problems.push(unreadable(&source, error, kind.hint())),
        }
    }
    offers
}

/// A volume with one of this project's labels.
pub(crate) struct LabelledVolume {
    kind: VolumeKind,
    pub(crate) name: String,
    pub(crate) device: PathBuf,
    pub(crate) file_system: FileSystem,
}

impl LabelledVolume {
    pub(crate) fn source(&self) -> ConfigOrigin {
        self.kind.source(self.name.clone())
    }

    pub(crate) fn is_boot(&self) -> bool {
        self.kind == VolumeKind::Boot
    }
}

/// Volumes with one of this project's labels: NoCloud volumes, then boot partitions.
pub(crate) fn labelled(paths: &SourcePaths) -> Vec<LabelledVolume> {
    let labelled = |name: String| {
        // sysfs writes a `/` in a device's name as `!`.
        let device = paths.dev.join(name.replace('!', "/"));
        let (kind, file_system) = kind(&device)?;
        Some(LabelledVolume {
            kind,
            name,
            device,
            file_system,
        })
    };
    let mut found: Vec<_> = devices(paths).into_iter().filter_map(labelled).collect();
    // The sort is stable, so the order of names remains within a kind.
    found.sort_by_key(LabelledVolume::is_boot);
    found
}

/// A volume that a key can be put on.
pub(crate) struct WritableVolume {
    pub(crate) source: ConfigOrigin,
    pub(crate) device: PathBuf,
    pub(crate) seed_key: &'static str,
    pub(crate) is_boot: bool,
}

/// Labelled volumes with FAT.
pub(crate) fn writable(paths: &SourcePaths) -> Vec<WritableVolume> {
    let fat = |volume: LabelledVolume| {
        // A CD cannot be written.
        (volume.file_system == FileSystem::Vfat).then(|| WritableVolume {
            source: volume.source(),
            seed_key: volume.kind.names().seed_key,
            is_boot: volume.is_boot(),
            device: volume.device,
        })
    };
    labelled(paths).into_iter().filter_map(fat).collect()
}

fn kind(device: &Path) -> Option<(VolumeKind, FileSystem)> {
    let mut opened = file::open_device(device).ok()?;
    // An unreadable device is not a medium. The code that needs the device reports the error.
    let found = volume_label(&mut opened).ok()??;
    let kind = match (found.label.as_str(), found.file_system) {
        // FAT labels are in capitals, and cloud-init accepts both.
        ("cidata" | "CIDATA", _) => VolumeKind::NoCloud,
        // Firmware starts only from FAT, so another file system with this label is not the boot
        // partition.
        (BOOT_LABEL, FileSystem::Vfat) => VolumeKind::Boot,
        _ => return None,
    };
    Some((kind, found.file_system))
}

fn read(
    kind: VolumeKind,
    source: &ConfigOrigin,
    device: &Path,
    file_system: FileSystem,
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    problems: &mut Vec<SourceDiagnostic>,
) -> Result<Option<SourceContents>, ProvisioningError> {
    let mounted = mounter
        .mount(device, file_system, &paths.mount_point)
        .map_err(|source| ProvisioningError::Mount {
            device: device.to_owned(),
            source,
        })?;
    let root = mounted.root();
    let names = kind.names();
    let mut offer = SourceContents {
        source: source.clone(),
        document: of_volume(root, names.document, CONFIG_BYTES_MAX)?,
        words: of_volume(root, names.words, SECRET_BYTES_MAX)?,
        seed_key: of_volume(root, names.seed_key, SECRET_BYTES_MAX)?,
        names: Some(names),
        volume: Some((device.to_owned(), file_system)),
    };
    let has_secrets = offer.words.is_some() || offer.seed_key.is_some();
    if kind == VolumeKind::NoCloud {
        let meta_data = of_volume(root, "meta-data", CONFIG_BYTES_MAX)?;
        // A drive that only opens the vault is not an incomplete NoCloud volume.
        let is_key_only = has_secrets && meta_data.is_none() && offer.document.is_none();
        if !is_key_only {
            missing(
                device,
                meta_data.is_none(),
                offer.document.is_none(),
                problems,
            );
        }
        ignored(device, root, problems);
        // Without it cloud-init would not accept the volume either.
        if meta_data.is_none() {
            offer.document = None;
        }
    }
    let is_something = offer.document.is_some() || has_secrets;
    Ok(is_something.then_some(offer))
}

fn missing(device: &Path, meta_data: bool, user_data: bool, problems: &mut Vec<SourceDiagnostic>) {
    for (name, is_missing) in [("meta-data", meta_data), ("user-data", user_data)] {
        if is_missing {
            problems.push(SourceDiagnostic::new(
                "nocloud-incomplete",
                format!(
                    "{}: the NoCloud volume has no {name}, and its settings are not used",
                    device.display()
                ),
                format!("add {name}; both files must be there, meta-data may be empty"),
            ));
        }
    }
}

fn ignored(device: &Path, root: &Path, problems: &mut Vec<SourceDiagnostic>) {
    for name in ["network-config", "vendor-data"] {
        if root.join(name).symlink_metadata().is_ok() {
            problems.push(SourceDiagnostic::new(
                "nocloud-ignored",
                format!("{}: {name} is not read", device.display()),
                "put its settings into user-data (docs/configuration.md)",
            ));
        }
    }
}
