//! The file system of the data: it is formatted, repaired, mounted, grown to its device and
//! unmounted.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::erase::erase;
use super::ext4::{self, Ext4Superblock, FilesystemContent};
use super::find::DataDevice;
use super::prepared::{PreparedData, read_only};
use super::{device, random_uuid, refuse, sealed, unknown_content, unreadable};
use crate::{
    control::{DataState, MachineDiagnostic},
    log::InitLog,
};

/// Mount point of the data partition.
const DATA: &str = "/data";

/// A block device with a file system for the data.
pub(super) struct DataVolume {
    pub(super) path: PathBuf,
    /// Name of the underlying device.
    pub(super) on: String,
    /// Cipher of the data. `None` if they are not encrypted.
    pub(super) cipher: Option<String>,
    pub(super) vault_at: Option<PathBuf>,
}

impl DataVolume {
    pub(super) fn plain(found: &DataDevice) -> Self {
        Self {
            path: device(found.name()),
            on: found.name().to_owned(),
            cipher: None,
            vault_at: None,
        }
    }
}

/// Unmounts the data, or makes them read-only if a process still uses them.
pub(crate) fn close() -> io::Result<()> {
    let outcome = match umount2(DATA, MntFlags::empty()) {
        Ok(()) => {
            // A failure to forget the key does not keep a machine from going down.
            return sealed::close();
        }
        // A process still has a file open. On a read-only file system, everything is on the disk
        // when the machine stops.
        Err(Errno::EBUSY) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, DATA, None::<&str>, flags, None::<&str>)
        }
        // Nothing is mounted. The kernel has the key all the same, if the partition was decrypted
        // and its file system is damaged.
        Err(Errno::EINVAL) => return sealed::close(),
        other => other,
    };
    Ok(outcome?)
}

/// Unmounts the data and erases the device.
pub(crate) fn erase_data(device: &Path) -> io::Result<()> {
    // There is no read-only fallback: a process that still writes would write over the erased
    // device.
    umount2(DATA, MntFlags::empty())?;
    sealed::close()?;
    erase(device)
}

pub(super) fn format(
    found: &DataDevice,
    file: &File,
    bytes: u64,
    log: &InitLog,
) -> Result<Ext4Superblock, Box<MachineDiagnostic>> {
    if bytes < ext4::TEMPLATE_BYTES {
        return refuse(
            "data-too-small",
            format!("the data disk {} has {} MiB", found.name(), bytes >> 20),
            "give it at least 128 MiB and reboot",
        );
    }
    log.info(format_args!(
        "formatting the blank data disk {}",
        found.name()
    ));
    let outcome = ext4::format(file).and_then(|()| ext4::probe(file, bytes));
    match outcome {
        Ok(FilesystemContent::Ext4(known)) => Ok(known),
        Ok(_) => unreadable(
            found,
            &io::Error::other("what was written does not read back"),
        ),
        Err(error) => unreadable(found, &error),
    }
}

pub(super) fn repair(
    found: &DataDevice,
    file: &File,
    bytes: u64,
    log: &InitLog,
) -> Result<Ext4Superblock, Box<MachineDiagnostic>> {
    match ext4::repair_super(file).and_then(|()| ext4::probe(file, bytes)) {
        // The write was torn because the machine stopped while the file system was mounted.
        Ok(FilesystemContent::Ext4(known)) => {
            log.warn(format_args!(
                "superblock of {} was torn, repaired",
                found.name()
            ));
            Ok(Ext4Superblock {
                clean: false,
                ..known
            })
        }
        Ok(_) => unknown_content(found),
        Err(error) => unreadable(found, &error),
    }
}

pub(super) fn mount_data(
    volume: &DataVolume,
    known: &Ext4Superblock,
    bytes: u64,
    log: &InitLog,
) -> Result<PreparedData, Box<MachineDiagnostic>> {
    // Before the mount, which writes: a sealed file system that is refused stays as it was.
    refuse_sealed_errors(volume, known)?;
    let mut prepared = PreparedData {
        state_dir: DATA.into(),
        state: DataState {
            mode: "mounted".to_owned(),
            device: Some(format!("/dev/{}", volume.on)),
            cipher: volume.cipher.clone(),
            clean: Some(known.clean),
            ..DataState::default()
        },
        problems: Vec::new(),
        waiting: None,
        vault_at: volume.vault_at.clone(),
        vault: None,
    };
    let mounted = match mount_at(volume, MsFlags::empty()) {
        Err(error) if !known.clean => {
            log.warn(format_args!(
                "{} cannot be mounted ({error}): its journal is replayed first",
                volume.on
            ));
            replay(volume).and_then(|()| mount_at(volume, MsFlags::empty()))
        }
        mounted => mounted,
    };
    if let Err(error) = mounted {
        return refuse(
            "data-damaged",
            format!("the data disk {} cannot be mounted: {error}", volume.on),
            match &volume.cipher {
                Some(_) => {
                    "repair it elsewhere with cryptsetup and e2fsck, or reset the machine at the console (v)"
                }
                None => {
                    "repair it elsewhere with e2fsck, or blank its first 16 MiB to start afresh"
                }
            },
        );
    }
    // The journal's replay may have recorded errors.
    let errors = reread(volume, bytes).unwrap_or_else(|error| {
        log.warn(format_args!(
            "whether errors are recorded in {} is not known: {error}",
            volume.on
        ));
        known.clone()
    });
    if errors.bytes != known.bytes
        && let Err(error) = mount_again(volume)
    {
        return refuse(
            "data-damaged",
            format!(
                "the data disk {} cannot be mounted again: {error}",
                volume.on
            ),
            "reboot; if that does not help, repair it elsewhere with e2fsck",
        );
    }
    refuse_sealed_errors(volume, &errors)?;
    // A damaged file system may lose new data, or suffer more damage from writes.
    if let Some(why) = recorded_errors(&errors) {
        remount_read_only(log);
        read_only(&mut prepared, why);
        return Ok(prepared);
    }
    // The data are there all the same, and the next start tries to grow them again.
    if let Err(error) = personalise(&errors, bytes, log) {
        log.warn(format_args!("cannot grow the data file system: {error}"));
    }
    Ok(prepared)
}

/// The errors that the kernel recorded in a file system and that no check has repaired. A power cut
/// leaves none: the journal's replay settles what it interrupted.
fn recorded_errors(known: &Ext4Superblock) -> Option<String> {
    let is_damaged = known.damaged || known.errors > 0;
    is_damaged.then(|| format!("{} errors are recorded in it", known.errors.max(1)))
}

/// Refuses an encrypted file system with recorded errors. An attacker who has the disk can cause
/// such errors without the key, by overwriting blocks, and choose thereby which files can be read.
fn refuse_sealed_errors(
    volume: &DataVolume,
    known: &Ext4Superblock,
) -> Result<(), Box<MachineDiagnostic>> {
    match (&volume.cipher, recorded_errors(known)) {
        (Some(_), Some(why)) => refuse(
            "data-damaged",
            format!(
                "the file system of the encrypted data disk {} is damaged: {why}",
                volume.on
            ),
            "repair it elsewhere with cryptsetup and e2fsck -f, and reboot; or reset the machine at the console (v)",
        ),
        _ => Ok(()),
    }
}

/// Mounts the file system a second time. The kernel counts its groups before it replays the
/// journal. If the power failed while it grew, the replay finishes the growth and the count is
/// wrong: the kernel then finds no free block.
fn mount_again(volume: &DataVolume) -> io::Result<()> {
    umount2(DATA, MntFlags::empty())?;
    mount_at(volume, MsFlags::empty())
}

/// Mounts the file system read-only once, which replays its journal. The kernel checks the
/// descriptors of all groups before the replay. If the power failed between a superblock that
/// counts new groups and the block that describes them, it refuses to mount what the replay would
/// repair. It mounts such a file system read-only.
fn replay(volume: &DataVolume) -> io::Result<()> {
    mount_at(volume, MsFlags::MS_RDONLY)?;
    Ok(umount2(DATA, MntFlags::empty())?)
}

fn mount_at(volume: &DataVolume, extra: MsFlags) -> io::Result<()> {
    // The image has the folder, and an initramfs of other authors may not.
    if !Path::new(DATA).is_dir() {
        fs::create_dir(DATA)?;
    }
    // Nothing on the partition is executed or grants rights: a foreign disk may have any content.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    let source = &volume.path;
    let options = Some("errors=remount-ro");
    Ok(mount(
        Some(source),
        DATA,
        Some("ext4"),
        flags | extra,
        options,
    )?)
}

fn reread(volume: &DataVolume, bytes: u64) -> io::Result<Ext4Superblock> {
    let file = File::open(&volume.path)?;
    match ext4::probe(&file, bytes)? {
        FilesystemContent::Ext4(known) => Ok(known),
        _ => Err(io::Error::other("its superblock does not read back")),
    }
}

fn remount_read_only(log: &InitLog) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, DATA, None::<&str>, flags, None::<&str>) {
        log.error(format_args!("cannot make {DATA} read-only: {error}"));
    }
}

/// Grows the file system to its device, and gives a new one its own identifier.
fn personalise(known: &Ext4Superblock, bytes: u64, log: &InitLog) -> io::Result<()> {
    let whole_blocks = bytes / ext4::BLOCK_BYTES as u64 * ext4::BLOCK_BYTES as u64;
    let folder = File::open(DATA)?;
    // The template's identifier is the same on every machine. A file system keeps its own.
    if known.template_uuid {
        ext4::set_uuid(&folder, random_uuid()?)?;
    }
    if known.bytes < whole_blocks {
        ext4::grow(&folder, whole_blocks)?;
        log.info(format_args!(
            "data file system grown to {} MiB",
            bytes >> 20
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(cipher: Option<&str>) -> DataVolume {
        DataVolume {
            path: "/dev/null".into(),
            on: "vda3".to_owned(),
            cipher: cipher.map(str::to_owned),
            vault_at: None,
        }
    }

    /// `clean` says whether the file system was unmounted, or whether the power failed.
    fn superblock(clean: bool, errors: u32, damaged: bool) -> Ext4Superblock {
        Ext4Superblock {
            bytes: ext4::TEMPLATE_BYTES,
            clean,
            errors,
            damaged,
            template_uuid: false,
        }
    }

    #[test]
    fn recorded_errors_close_a_sealed_partition_and_make_a_plain_one_read_only() {
        let (sealed, plain) = (volume(Some("aes-xts-plain64")), volume(None));
        for (clean, errors, damaged, told) in [
            (true, 0, false, None),
            // A power cut.
            (false, 0, false, None),
            (true, 2, false, Some("2 errors are recorded in it")),
            (true, 0, true, Some("1 errors are recorded in it")),
            (false, 3, true, Some("3 errors are recorded in it")),
        ] {
            let known = superblock(clean, errors, damaged);
            assert_eq!(recorded_errors(&known).as_deref(), told);
            let refused = refuse_sealed_errors(&plain, &known);
            assert!(refused.is_ok(), "a plain partition: {refused:?}");
            let refused = refuse_sealed_errors(&sealed, &known).err();
            assert_eq!(refused.is_some(), told.is_some(), "{refused:?}");
            let is_told = refused.as_ref().is_none_or(|refused| {
                let end = told.unwrap_or_default();
                refused.code == "data-damaged"
                    && refused.text.ends_with(end)
                    && refused.hint.contains("e2fsck -f")
            });
            assert!(is_told, "{refused:?}");
        }
    }
}
