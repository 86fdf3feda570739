//! The encrypted data partition: it is made at the first boot, and opened by the vault in the gap of its own
//! header.
//!
//! The order of the first boot makes a power cut harmless. The two copies of the vault are written first. Then the
//! file system is written through the mapping, with a key that is only in memory. The header, which returns the
//! key, is written last. A header is therefore a promise that everything behind it is whole. A vault without a
//! header belongs to an interrupted first boot only if it says so itself
//! ([`FirstBootPermissions::partition`](alknet_vault::slots::FirstBootPermissions)) and its TPM, if it has one, has
//! counted nothing since it was made. Otherwise an attacker blanked the header, and nothing is opened.

mod reasons;

use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::path::{Path, PathBuf};

use alknet_core::config::VaultInit;
use alknet_sealed::limits::{DATA_AT, VAULT_A_AT, VAULT_B_AT};
use alknet_sealed::{
    DmError, DmRemoval, NewHeader, PartitionContent as Sealing, SealedError, SealedPartition,
    SealedSummary, SectorCipher, VolumeKey, VolumeOptions,
};
use alknet_vault::slots::{
    FileCopyStorage, LoadedCopies as VaultFound, OpenAlkv, SlotError, VaultCopies, luks_phrase,
};

use super::counting_tpms::{counted_by, set_counted_by};
use super::earlier::unasked;
use super::erase::{end_erasing, noted_uncounted, recall};
use super::ext4::{self, FilesystemContent};
use super::find::DataDevice;
use super::image_guids::ImageGuids;
use super::keyslots::{BY_VAULT, BY_WORDS, DataPartitionKeys, unlock_with};
use super::prepared::stateless;
use super::volume::{DataVolume, mount_data, repair};
use super::{DataAccess, DataError, PreparedData, device, refuse, unreadable};
use crate::log::InitLog;
use crate::media::{SystemSources, VaultMedia};
use crate::vault::{self, FirstBoot, VaultHandle, VaultMediaAccess, generations};
use reasons::{
    another, blanked, closed, damaged, foreign, moved, not_open, overwritten, sealed_problem,
    vault_problem, waits,
};

/// Smallest data partition with a vault: the vault and its header, and the smallest file system.
pub const SEALED_BYTES_MIN: u64 = DATA_AT + ext4::TEMPLATE_BYTES;

/// The device with the data.
pub(super) struct DataBlockDevice<'a> {
    pub(super) found: &'a DataDevice,
    pub(super) file: &'a File,
    pub(super) bytes: u64,
    /// Whether its disk keeps the GUIDs of the image.
    pub(super) image_guids: ImageGuids,
}

impl DataBlockDevice<'_> {
    fn path(&self) -> PathBuf {
        device(self.found.name())
    }

    fn copies(&self) -> VaultCopies<FileCopyStorage> {
        copies(&self.path())
    }

    fn file(&self) -> Result<File, DataError> {
        let again = self.file.try_clone();
        Ok(again.or_else(|error| unreadable(self.found, &error))?)
    }
}

/// Both copies of the vault on a device.
pub(crate) fn copies(device: &Path) -> VaultCopies<FileCopyStorage> {
    VaultCopies::new(
        FileCopyStorage::at(device, VAULT_A_AT),
        FileCopyStorage::at(device, VAULT_B_AT),
    )
}

/// Closes the mapping, so that the kernel forgets the key of the data.
pub(super) fn close() -> io::Result<()> {
    match alknet_sealed::close(&VolumeOptions::default().name, DmRemoval::Now) {
        Ok(_) => Ok(()),
        // A partition that is not sealed has no mapping.
        Err(SealedError::Dm(DmError::NotFound(_))) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Opens a sealed partition, or continues an interrupted first boot. Returns `None` if it is neither.
pub(super) fn open(
    disk: &DataBlockDevice<'_>,
    access: DataAccess<'_>,
) -> Result<Option<PreparedData>, DataError> {
    let sealing = SealedPartition::probe(disk.file, disk.bytes).or_else(|error| match &error {
        SealedError::Io { source, .. } => Ok(unreadable(disk.found, source)?),
        _ => Err(sealed_problem(disk, &error)),
    });
    let half = match sealing? {
        Sealing::Damaged(error) => return Err(sealed_problem(disk, &error)),
        Sealing::Erasing => {
            access
                .log
                .warn("a factory reset was cut short: it is ended");
            end_erasing(&disk.path()).or_else(|error| unreadable(disk.found, &error))?;
            return Ok(None);
        }
        Sealing::HalfFormatted => true,
        Sealing::Sealed(header) => {
            let opened = open_sealed(disk, &header, access);
            return opened.map(Some).map_err(|stop| closed(disk, stop));
        }
        // A partition that is too small for a header and a vault can only have a plain file system.
        Sealing::Unsealed if disk.bytes < DATA_AT => return Ok(None),
        Sealing::Unsealed => false,
    };
    let content = ext4::probe(disk.file, disk.bytes);
    let content = content.or_else(|error| unreadable(disk.found, &error))?;
    // This is a plain file system, whatever a file of it has at the position of a vault.
    if !half
        && matches!(
            content,
            FilesystemContent::Ext4(_) | FilesystemContent::TornSuper
        )
    {
        return Ok(None);
    }
    match vault_of(disk) {
        Ok(Some(found)) if half || content == FilesystemContent::Blank => {
            access.take_blank(disk.found)?;
            // It may be one that the disk had before the image was written.
            disk.image_guids.permit_vault(disk.found)?;
            let open = unlock(disk, &found, access, DiskHead::Blank)?;
            write_again(disk, &found, &open, access.log);
            access
                .log
                .warn("the first boot was cut short: it is ended with the same vault");
            show_again(disk, &open, access)?;
            let unasked = unasked(disk.found.name(), open.alkv(), access);
            let mut made = make(disk, open, access).map_err(|stop| closed(disk, stop))?;
            made.problems.extend(unasked);
            Ok(Some(made))
        }
        Ok(Some(_)) => Err(waits(disk, overwritten(disk.found.name()))),
        // The first boot writes the vault first, so this partition is not its work.
        Ok(None) if half => first(disk, access),
        Ok(None) => Ok(None),
        Err(stop) if half || content == FilesystemContent::Blank => Err(stop),
        // Another system wrote over header and vault.
        Err(_) => Ok(None),
    }
}

/// What is before the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskHead {
    /// Nothing, or a part of what a first boot writes there.
    Blank,
    /// A LUKS2 header.
    Sealed,
}

fn open_sealed(
    disk: &DataBlockDevice<'_>,
    header: &SealedSummary,
    access: DataAccess<'_>,
) -> Result<PreparedData, DataError> {
    let failed = |error: SealedError| sealed_problem(disk, &error);
    let found = match disk.copies().load() {
        Ok(Some(found)) => found,
        // Without a token of this program in the header, another system made the partition. With one, the vault was
        // erased, and the owner can reset the machine and use the words.
        Ok(None) if header.vault.is_none() => return foreign(disk),
        Ok(None) => return vault_problem(disk, &SlotError::Corrupt),
        // cryptsetup fills the room for key slots with noise, where this program has the vault.
        Err(SlotError::Corrupt) if header.vault.is_none() => return foreign(disk),
        Err(error) => return vault_problem(disk, &error),
    };
    let mut sealed = SealedPartition::load(disk.file()?, disk.bytes).map_err(failed)?;
    match sealed.repaired() {
        Ok(None) => {}
        Ok(Some(_)) => access
            .log
            .warn("a copy of the data partition's header was damaged, and is written again"),
        Err(error) => access.log.error(format_args!(
            "a copy of the data partition's header is damaged: {error}"
        )),
    }
    // The segment is checked before the vault opens: the same key would decrypt the blocks of one file as a file
    // system.
    if !sealed.segment().map_err(failed)?.is_standard() {
        return Err(waits(disk, moved(disk.found.name())));
    }
    let mut open = unlock(disk, &found, access, DiskHead::Sealed)?;
    let (key, by) = volume_key(disk, &sealed, &open, access)?;
    let options = fresh_mapping();
    let mapped = sealed.map(&key, &options).map_err(failed)?;
    let mut prepared = mount(disk, &mapped, access)?;
    newest(disk, &prepared.state_dir, &found, &open, access)?;
    // An older copy of the vault has been refused above: its words are not used, and neither the header nor the
    // other copy changes.
    write_again(disk, &found, &open, access.log);
    if open.pending().partition {
        // The power failed between the header and the end of the first boot.
        show_again(disk, &open, access)?;
    }
    if by == OpenedBy::Words {
        renew(&mut sealed, &key, &open, access.log);
    }
    settle(disk, &mut sealed, &open, access.log);
    cover(disk, &prepared.state_dir, &mut open, access);
    prepared.vault = Some(open);
    Ok(prepared)
}

/// Replaces slots that open under any command line from beside the image. The vault was found to be the newest
/// before: each change increments its generation, which distinguishes an older copy from the newest.
fn cover(
    disk: &DataBlockDevice<'_>,
    state_dir: &Path,
    open: &mut OpenAlkv,
    access: DataAccess<'_>,
) {
    let DataAccess {
        vault, offer, log, ..
    } = access;
    if !vault::cover(open, vault, offer, log) {
        return;
    }
    match disk.copies().save(open) {
        Ok(()) => access.ledger(&disk.path(), state_dir).note(open),
        Err(error) => log.error(format_args!("the vault cannot be written: {error}")),
    }
}

/// Closes an older copy of the vault that was put back, unless its owner proves that this is intended.
fn newest(
    disk: &DataBlockDevice<'_>,
    state_dir: &Path,
    found: &VaultFound,
    open: &OpenAlkv,
    access: DataAccess<'_>,
) -> Result<(), DataError> {
    let DataAccess { vault, log, .. } = access;
    let device = disk.path();
    let ledger = access.ledger(&device, state_dir);
    let checked = ledger.check(open, false, || is_proven(found, open, access));
    checked.map_err(|waiting| {
        vault.close();
        if let Err(error) = super::close() {
            log.error(format_args!("the data stays mounted: {error}"));
        }
        waits(disk, generations::unproven(waiting, access.offer))
    })
}

/// Whether a typed secret, or a medium, proves that the owner of this vault wants this copy.
fn is_proven(found: &VaultFound, open: &OpenAlkv, access: DataAccess<'_>) -> bool {
    let medium_has_words = || {
        let secrets = SystemSources.secrets();
        let mut words = secrets.words.iter().chain(&secrets.other_words);
        words.any(|words| words.entropy == *open.entropy())
    };
    generations::is_proven(found, open, access.offer, access.vault, medium_has_words)
}

/// Finishes an interrupted change of the master key. It does the work only if there are more than the two key slots
/// of a settled partition. If it fails, the next start tries again.
fn settle(
    disk: &DataBlockDevice<'_>,
    sealed: &mut SealedPartition<File>,
    open: &OpenAlkv,
    log: &InitLog,
) {
    let mut keys = DataPartitionKeys::for_partition(sealed);
    if !keys.are_too_many() {
        return;
    }
    match alknet_vault::slots::settle(&mut disk.copies(), &mut keys, open) {
        Ok(()) => log.warn("a change of the master key was cut short: it is ended"),
        Err(error) => log.error(format_args!(
            "a change of the master key was cut short, and cannot be ended: {error}"
        )),
    }
}

/// What opened the data partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenedBy {
    /// The vault's own secret.
    Vault,
    /// The secret that its words derive.
    Words,
}

/// Opens the data with the vault's own secret, or else with the secret of its words, which also opens after a new
/// vault was made of the same words.
fn volume_key(
    disk: &DataBlockDevice<'_>,
    sealed: &SealedPartition,
    open: &OpenAlkv,
    access: DataAccess<'_>,
) -> Result<(VolumeKey, OpenedBy), DataError> {
    let own = luks_phrase(&open.data_secret());
    let error = match unlock_with(sealed, &own, |slot| slot == BY_WORDS) {
        Ok((_, key)) => return Ok((key, OpenedBy::Vault)),
        Err(error) => error,
    };
    let recovery = recovery(disk, access.vault)?;
    // The first error says what is wrong: the vault's own secret does not open the partition.
    let Ok((_, key)) = unlock_with(sealed, &recovery, |slot| slot != BY_WORDS) else {
        return Err(sealed_problem(disk, &error));
    };
    Ok((key, OpenedBy::Words))
}

/// Makes the vault open the data partition again that its words opened.
fn renew(sealed: &mut SealedPartition<File>, key: &VolumeKey, open: &OpenAlkv, log: &InitLog) {
    let own = luks_phrase(&open.data_secret());
    match sealed.set_phrase(BY_VAULT, own.expose().as_bytes(), key) {
        Ok(()) => log.warn("the words opened the data partition; the vault opens it again now"),
        Err(error) => log.error(format_args!(
            "the data partition keeps an old key slot: {error}"
        )),
    }
}

/// Runs the first boot. Returns `None` if the configuration wants no vault.
pub(super) fn first(
    disk: &DataBlockDevice<'_>,
    access: DataAccess<'_>,
) -> Result<Option<PreparedData>, DataError> {
    recall(&disk.path());
    access.take_blank(disk.found)?;
    let pasted = access.offer.pasted.as_ref();
    let media = VaultMedia::read_first(pasted).map_err(|waiting| waits(disk, waiting))?;
    first_with(disk, &media, access)
}

/// Runs the first boot as the media ask for it. Returns `None` if the configuration wants no vault.
fn first_with(
    disk: &DataBlockDevice<'_>,
    media: &VaultMedia,
    access: DataAccess<'_>,
) -> Result<Option<PreparedData>, DataError> {
    if media.stateless {
        access
            .log
            .info("the data disk is blank and stays so: this node is configured to be stateless");
        return Ok(Some(stateless()));
    }
    if media.vault.init == VaultInit::Off {
        return Ok(None);
    }
    // A node without state, and one without a vault, need no disk that is this machine's alone.
    disk.image_guids.permit_vault(disk.found)?;
    if disk.bytes < SEALED_BYTES_MIN {
        return Ok(refuse(
            "data-too-small",
            format!(
                "the data disk {} has {} MiB",
                disk.found.name(),
                disk.bytes >> 20
            ),
            &format!("give it at least {} MiB and reboot", SEALED_BYTES_MIN >> 20),
        )?);
    }
    let first = FirstBoot {
        config: &media.vault,
        from: &media.from,
        media: &media.secrets,
        offer: access.offer,
        name: media.name.as_deref(),
        escrow: access.vault.escrow(),
    };
    let made = vault::create(&first, access.log).map_err(|waiting| waits(disk, waiting))?;
    // The vault is written and read back before anything is encrypted: no data may depend on a vault that does not
    // open.
    let written = disk.copies().create(made.open());
    match written.and_then(|()| disk.copies().load()) {
        Ok(Some(_)) => {}
        Ok(None) => return vault_problem(disk, &SlotError::Nothing),
        Err(error) => return vault_problem(disk, &error),
    }
    let open = access
        .vault
        .adopt(made, &media.vault.words_to)
        .map_err(|waiting| waits(disk, waiting))?;
    let made = make(disk, open, access);
    made.map(Some).map_err(|stop| closed(disk, stop))
}

/// Shows words again that this machine made and that its owner did not see before the power failed. The owner has
/// all other words.
fn show_again(
    disk: &DataBlockDevice<'_>,
    open: &OpenAlkv,
    access: DataAccess<'_>,
) -> Result<(), DataError> {
    if !open.pending().words {
        access.vault.words_are_kept();
        return Ok(());
    }
    let pasted = access.offer.pasted.as_ref();
    let media = VaultMedia::read(pasted).map_err(|waiting| waits(disk, waiting))?;
    let words = open.entropy().phrase();
    let shown = access.vault.present(words, &media.vault.words_to);
    shown.map_err(|waiting| waits(disk, waiting))
}

/// Makes the key, the mapping and the file system, and writes the header last.
fn make(
    disk: &DataBlockDevice<'_>,
    open: OpenAlkv,
    access: DataAccess<'_>,
) -> Result<PreparedData, DataError> {
    let failed = |error: SealedError| sealed_problem(disk, &error);
    let cipher = SectorCipher::for_this_machine();
    access.log.info(format_args!(
        "encrypting the blank data disk {} with {}",
        disk.found.name(),
        cipher.name()
    ));
    let (own, words) = (
        luks_phrase(&open.data_secret()),
        recovery(disk, access.vault)?,
    );
    let vault = open.alkv().uuid().to_string();
    let uuid = super::random_uuid().or_else(|error| unreadable(disk.found, &error))?;
    let new = NewHeader {
        uuid: uuid::Uuid::from_bytes(uuid),
        vault: &vault,
        cipher,
        phrases: &[own.expose().as_bytes(), words.expose().as_bytes()],
    };
    // Formatting overwrites the memo of the erased disk, so it is read first.
    let (device, uncounted) = (disk.path(), counted_by(&disk.path()));
    let prepared = SealedPartition::prepare(disk.file()?, disk.bytes, &new).map_err(failed)?;
    if !uncounted.is_empty() {
        let kept = set_counted_by(&device, &uncounted);
        kept.or_else(|error| unreadable(disk.found, &error))?;
    }
    let mapped = prepared.map(&fresh_mapping()).map_err(failed)?;
    let formatted = FileOptions::new()
        .read(true)
        .write(true)
        .open(mapped.path());
    let formatted = formatted.and_then(|file| {
        ext4::format(&file)?;
        // The file system is synced before the header, which says that the partition is finished.
        file.sync_all()
    });
    formatted.or_else(|error| unreadable(disk.found, &error))?;
    // The header is last: until it is there, the next start continues the first boot.
    prepared.finish().map_err(failed)?;
    let mut prepared = mount(disk, &mapped, access)?;
    let ledger = access.ledger(&device, &prepared.state_dir);
    let made = ledger.check(&open, true, || true);
    made.map_err(|waiting| waits(disk, waiting))?;
    if !uncounted.is_empty() {
        noted_uncounted();
    }
    prepared.vault = Some(open);
    Ok(prepared)
}

fn mount(
    disk: &DataBlockDevice<'_>,
    mapped: &alknet_sealed::OpenVolume,
    access: DataAccess<'_>,
) -> Result<PreparedData, DataError> {
    let volume = DataVolume {
        path: mapped.path().to_owned(),
        on: disk.found.name().to_owned(),
        cipher: Some(mapped.cipher().name().to_owned()),
        vault_at: Some(disk.path()),
    };
    let probed = FileOptions::new().read(true).write(true).open(&volume.path);
    let probed = probed.and_then(|file| Ok((ext4::probe(&file, mapped.bytes())?, file)));
    let known = match probed.or_else(|error| unreadable(disk.found, &error))? {
        (FilesystemContent::Ext4(known), _) => known,
        (FilesystemContent::TornSuper, file) => {
            repair(disk.found, &file, mapped.bytes(), access.log)?
        }
        _ => return damaged(disk),
    };
    Ok(mount_data(&volume, &known, mapped.bytes(), access.log)?)
}

/// Options with the default name, after a mapping of an earlier attempt of this boot was closed.
fn fresh_mapping() -> VolumeOptions {
    let options = VolumeOptions::default();
    // In most cases there is no such mapping. If one is in use, the next step fails.
    let _ = alknet_sealed::close(&options.name, DmRemoval::Now);
    options
}

/// The vault of a disk, if one was ever completed there.
fn vault_of(disk: &DataBlockDevice<'_>) -> Result<Option<VaultFound>, DataError> {
    match disk.copies().load() {
        Ok(found) => Ok(found),
        Err(error) => vault_problem(disk, &error),
    }
}

/// Opens the vault. For a partition without a header it refuses a vault that says that its partition was finished,
/// or whose TPM shows that. It also refuses a vault with other words than the one that opened since this machine
/// started. The words of a refused vault are not used, and nothing is written.
fn unlock(
    disk: &DataBlockDevice<'_>,
    found: &VaultFound,
    access: DataAccess<'_>,
    front: DiskHead,
) -> Result<OpenAlkv, DataError> {
    let media = VaultMedia::secrets_for(&found.newest);
    let DataAccess {
        vault, offer, log, ..
    } = access;
    let permits = |open: &OpenAlkv| {
        vault.check_words(open).map_err(another)?;
        match front {
            DiskHead::Blank if !open.pending().partition => Err(blanked(disk.found.name())),
            DiskHead::Blank => {
                let proof = || is_proven(found, open, access);
                let checked = generations::check_first_boot(open, log, proof);
                checked.map_err(|waiting| generations::unproven(waiting, access.offer))
            }
            DiskHead::Sealed => Ok(()),
        }
    };
    vault.note(&found.newest);
    let opened = vault::open(found, vault, offer, &media, log, &permits);
    opened.map_err(|waiting| waits(disk, waiting))
}

/// Writes an opened vault over a copy that is damaged or differs. The vault is the newest: an older one that opened
/// instead would replace it.
fn write_again(disk: &DataBlockDevice<'_>, found: &VaultFound, open: &OpenAlkv, log: &InitLog) {
    if found.damaged.is_none() && found.other.is_none() {
        return;
    }
    match disk.copies().save(open) {
        Ok(()) => log.warn("a copy of the vault was damaged or old, and is written again"),
        Err(error) => log.error(format_args!("the vault cannot be written: {error}")),
    }
}

/// The LUKS phrase of the words.
fn recovery(
    disk: &DataBlockDevice<'_>,
    vault: &VaultHandle,
) -> Result<alknet_vault::SecretStr, DataError> {
    let secret = vault.vault().recovery_secret();
    let secret = secret.map_err(|error| waits(disk, not_open(&error)))?;
    Ok(luks_phrase(&secret))
}

#[cfg(test)]
mod tests;
