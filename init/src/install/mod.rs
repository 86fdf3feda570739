//! Installs the image from its medium onto a disk, because the configuration on a medium orders it.
//!
//! An order ends the start: the machine restarts or powers off once the disk is written. A machine that could not carry
//! out its order opens no data and starts no node, because the administrator expects the node on the disk, and a node
//! that serves from the medium in its place would be another one, with another key.

mod content;
mod error;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use alknet_image::{MEDIUM_LABEL, MediumDisk};
use alknet_image_write::{
    DiskFacts, DiskTarget, FlashOptions, FlashStep, ImageSource, PlacedFile, SystemFolders, flash,
};
use alknet_provisioning::{
    AfterInstall, ConfigOrigin, FileSystem, InstallOrder, InstallRequest, KernelMounter, Mounter,
    SourcePaths, install_request, medium_devices, running_slot,
};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub(crate) use self::error::InstallError;
use crate::{
    control::{MachineDiagnostic, PowerAction},
    data::{LABEL, SEALED_BYTES_MIN},
    media,
    version::image_version,
};
use content::{DiskUse, HEAD_BYTES};

/// Bytes that a disk must have before the first boot: 257 MiB before the data partition, 144 MiB of it with a vault,
/// and the copy of the partition table at the end, rounded up.
pub const DRIVE_BYTES_MIN: u64 = (257 << 20) + SEALED_BYTES_MIN + (1 << 20);
/// How long PID 1 feeds the watchdog meanwhile. The image has 272 MiB, which are written and read back: ten minutes at
/// 1 MB/s, the slowest stick.
pub(crate) const INSTALL_MAX: Duration = Duration::from_secs(1800);

/// Where the medium is mounted.
const MOUNT_POINT: &str = "/run/alknet/medium";
/// The place of the configuration on the EFI system partition, where the installed machine looks for it.
const DOCUMENT: &str = "alknet.toml";
/// The file beside it that says which order was carried out.
const MARK: &str = "alknet/installed";
/// After so many bytes the console says how far the work is.
const TOLD_BYTES: u64 = 64 << 20;

/// Why this machine serves nothing, if it could not carry out an order.
static REFUSAL: OnceLock<MachineDiagnostic> = OnceLock::new();

/// Keeps the data of this start closed.
pub(crate) fn refuse(error: &InstallError) {
    // A start has one order, so nothing was set before.
    let _ = REFUSAL.set(error.diagnostic());
}

/// Why the data of this start stay closed.
pub(crate) fn refusal() -> Option<&'static MachineDiagnostic> {
    REFUSAL.get()
}

/// An order to install, on a machine that was started from the medium.
#[derive(Debug)]
pub(crate) struct InstallJob {
    /// The kernel's names of the devices with a medium.
    media: Vec<String>,
    request: InstallRequest,
}

impl InstallJob {
    /// The order of this start. `None` on every machine that was not started from the medium, or has no order. Blocks
    /// on disks.
    pub(crate) fn find() -> Option<Self> {
        let paths = SourcePaths::system();
        // A machine that was started from a disk has a system, whatever medium is attached.
        if running_slot(&paths).is_some() {
            return None;
        }
        let media = medium_devices(&paths, MEDIUM_LABEL);
        if media.is_empty() {
            return None;
        }
        let _alone = media::alone();
        let request = install_request(&paths, &KernelMounter, &media)?;
        Some(Self { media, request })
    }

    /// Writes the disk, reads it back, and returns what the machine does now. Blocks for minutes.
    pub(crate) fn run(&self, say: &mut dyn FnMut(String)) -> Result<PowerAction, InstallError> {
        // Before the first read of a medium, which may be slow or broken.
        say(format!(
            "found an order to install: {}",
            self.request.source
        ));
        let order = self.order()?;
        let medium = self.medium()?;
        let folders = SystemFolders::default();
        let all = DiskFacts::all(&folders).map_err(InstallError::Disks)?;
        let disk = chosen(&all, order, medium)?;
        check_source(&folders.sys, disk, &self.request.source)?;
        let _media = media::alone();
        let (from, at) = (device(medium), Path::new(MOUNT_POINT));
        let mounted = KernelMounter
            .mount(&from, FileSystem::Iso9660, at)
            .map_err(unreadable(medium))?;
        let image = running_image(medium, mounted.root())?;
        self.check_content(disk, order, medium, mounted.root())?;
        let target = DiskTarget::disk(&device(&disk.name), &folders);
        let target = target.map_err(InstallError::Disk)?;
        // Another disk may have taken the name meanwhile.
        if target.facts().proof() != order.disk {
            return Err(InstallError::missing(order, &all));
        }
        let version = image.version();
        say(format!(
            "installing version {version} from {medium} onto {}",
            disk.description()
        ));
        self.write(image, &target, say)?;
        let then = match order.then {
            AfterInstall::Poweroff => PowerAction::Poweroff,
            AfterInstall::Restart => PowerAction::Reboot,
        };
        say(format!(
            "installed onto {}; take the medium out, so that the machine starts from the disk",
            disk.name
        ));
        Ok(then)
    }

    /// The device with the medium. The machine does not know from which of several it was started, and an attacker could
    /// have left one with another program.
    fn medium(&self) -> Result<&str, InstallError> {
        match &self.media[..] {
            [medium] => Ok(medium),
            media => Err(InstallError::SeveralMedia {
                media: media.to_vec(),
            }),
        }
    }

    fn order(&self) -> Result<&InstallOrder, InstallError> {
        let order = self.request.order.as_ref();
        order.map_err(|mistakes| InstallError::Order {
            origin: self.request.source.to_string(),
            mistakes: mistakes.clone(),
        })
    }

    /// Refuses a disk that is in use, unless the order permits to overwrite it.
    fn check_content(
        &self,
        disk: &DiskFacts,
        order: &InstallOrder,
        medium: &str,
        root: &Path,
    ) -> Result<(), InstallError> {
        let mut head = vec![0; HEAD_BYTES];
        let mut image = MediumDisk::open(root).map_err(unreadable(medium))?;
        image.read_exact(&mut head).map_err(unreadable(medium))?;
        let failed = |source| InstallError::Unreadable {
            disk: disk.name.clone(),
            source,
        };
        let file = File::open(device(&disk.name)).map_err(failed)?;
        let found = content::judge(&file, disk.bytes, &head, &self.marks()).map_err(failed)?;
        let found = match found {
            DiskUse::Installed => {
                let image = MediumDisk::open(root).and_then(MediumDisk::parts);
                let expected = image.map_err(unreadable(medium))?;
                content::installed(&file, disk.bytes, &expected).map_err(failed)?
            }
            found => found,
        };
        check_use(found, disk, order)
    }

    fn write(
        &self,
        image: MediumDisk,
        target: &DiskTarget,
        say: &mut dyn FnMut(String),
    ) -> Result<(), InstallError> {
        let (bytes, sha256) = (image.disk_bytes(), image.sha256().to_owned());
        let mut source = ImageSource::new(Box::new(image), Some(bytes))?;
        let files = self.files();
        let options = FlashOptions {
            sha256: Some(sha256),
            files: &files,
        };
        let mut told = None;
        flash(&mut source, target, &options, &mut |step| {
            let line = progress(step, bytes);
            if line != told {
                line.iter().for_each(|line| say(line.clone()));
                told = line;
            }
        })?;
        Ok(())
    }

    /// The files for the EFI system partition.
    fn files(&self) -> Vec<PlacedFile> {
        let placed = |path: &str, content: &[u8]| PlacedFile {
            path: path.to_owned(),
            content: Zeroizing::new(content.to_vec()),
        };
        let [mark, _] = self.marks();
        let mut files = vec![placed(MARK, mark.as_bytes())];
        let document = &self.request.document;
        // The installed machine would report an empty document as a mistake.
        if !document.trim_ascii().is_empty() {
            files.push(placed(DOCUMENT, document));
        }
        files
    }

    /// What names the order: the hash of the table `[install]`, which is written to the disk. Versions until 2026-11-27
    /// wrote the second one, the hash of the document with the table.
    fn marks(&self) -> [String; 2] {
        let of = |bytes: &[u8]| HEXLOWER.encode(&Sha256::digest(bytes)) + "\n";
        [of(&self.request.table), of(&self.request.with_order)]
    }
}

fn unreadable(medium: &str) -> impl FnOnce(std::io::Error) -> InstallError + use<> {
    let medium = medium.to_owned();
    move |source| InstallError::Medium { medium, source }
}

/// The image on the medium. It is the one that runs: with another one, the administrator would get another version than
/// the console shows.
fn running_image(medium: &str, root: &Path) -> Result<MediumDisk, InstallError> {
    let image = MediumDisk::open(root).map_err(unreadable(medium))?;
    let running = image_version();
    match image.version() == running {
        true => Ok(image),
        false => Err(InstallError::OtherVersion {
            medium: image.version().to_owned(),
            running: running.to_owned(),
        }),
    }
}

/// Refuses an order that lies on the disk that it names. It was placed there with the configuration of that disk, and
/// would erase the disk at each start from a medium.
fn check_source(sys: &Path, disk: &DiskFacts, source: &ConfigOrigin) -> Result<(), InstallError> {
    let (ConfigOrigin::BootPartition { device } | ConfigOrigin::NoCloud { device }) = source else {
        return Ok(());
    };
    // sysfs writes a `/` in a device's name as `!`.
    let name = disk.name.replace('/', "!");
    let is_on_disk = *device == name || sys.join("block").join(&name).join(device).exists();
    match is_on_disk {
        true => Err(InstallError::OrderOnDisk {
            disk: disk.name.clone(),
            origin: source.to_string(),
        }),
        false => Ok(()),
    }
}

/// Refuses what is on a disk, unless the order permits to overwrite it.
fn check_use(found: DiskUse, disk: &DiskFacts, order: &InstallOrder) -> Result<(), InstallError> {
    let name = disk.name.clone();
    // The data of a node may have a whole disk, which is found by its serial number.
    let is_data_disk = disk.serial.as_deref() == Some(LABEL);
    let found = match found {
        DiskUse::Used if is_data_disk => DiskUse::Node,
        found => found,
    };
    match found {
        DiskUse::Blank => Ok(()),
        DiskUse::Installed => Err(InstallError::Installed { disk: name }),
        DiskUse::Changed => Err(InstallError::Changed { disk: name }),
        DiskUse::Node if order.erase && order.erase_node => Ok(()),
        DiskUse::Node => Err(InstallError::NodeData { disk: name }),
        DiskUse::Used if order.erase => Ok(()),
        DiskUse::Used => Err(InstallError::NotEmpty { disk: name }),
    }
}

/// The disk that the order names.
fn chosen<'d>(
    all: &'d [DiskFacts],
    order: &InstallOrder,
    medium: &str,
) -> Result<&'d DiskFacts, InstallError> {
    let named: Vec<_> = all.iter().filter(|it| it.proof() == order.disk).collect();
    let disk = match named[..] {
        [] => return Err(InstallError::missing(order, all)),
        [disk] => disk,
        _ => {
            return Err(InstallError::Ambiguous {
                wanted: order.disk.clone(),
                disks: named.iter().map(|it| it.name.clone()).collect(),
            });
        }
    };
    if disk.name == medium {
        return Err(InstallError::IsMedium {
            disk: disk.name.clone(),
        });
    }
    match disk.bytes < DRIVE_BYTES_MIN {
        true => Err(InstallError::TooSmall {
            disk: disk.name.clone(),
            bytes: disk.bytes,
        }),
        false => Ok(disk),
    }
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

/// A line for the console, which changes a few times in all.
fn progress(step: FlashStep, total: u64) -> Option<String> {
    let whole = total >> 20;
    let so_far = |bytes: u64| (bytes / TOLD_BYTES * TOLD_BYTES) >> 20;
    match step {
        FlashStep::Writing { bytes, .. } => {
            Some(format!("{} of {whole} MiB are written", so_far(bytes)))
        }
        FlashStep::Reading { bytes, .. } => {
            Some(format!("{} of {whole} MiB are read back", so_far(bytes)))
        }
        FlashStep::Finishing => Some("the partition table is being written".to_owned()),
        _ => None,
    }
}
