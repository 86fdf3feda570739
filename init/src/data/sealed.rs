//! The data partition, encrypted: made at the first boot, opened by the vault that lies in the gap of
//! its own header.
//!
//! The order at the first boot is what makes a power cut harmless. The two copies of the vault come
//! first; the file system is written through the mapping next, with a key that only memory has; the
//! header that gives the key back comes last. A header is therefore a promise that everything behind
//! it is whole. A vault without a header is that of a first boot that was cut short only if it says so itself
//! ([`FirstBootPermissions::partition`](alknet_vault::slots::FirstBootPermissions)), and its TPM, where it has one, has counted nothing since it
//! was made: else an attacker blanked the header, and nothing is opened.

use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::path::{Path, PathBuf};

use alknet_core::config::VaultInit;
use alknet_sealed::limits::{DATA_AT, VAULT_A_AT, VAULT_B_AT};
use alknet_sealed::{
    DmError, DmRemoval, NewHeader, PartitionContent as Sealing, SealedError, SealedPartition,
    SealedSummary, SectorCipher, VolumeKey, VolumeOptions,
};
use alknet_vault::VaultError;
use alknet_vault::slots::{
    FileCopyStorage, LoadedCopies as VaultFound, OpenAlkv, SlotError, VaultCopies, luks_phrase,
};

use super::counting_tpms::{counted_by, set_counted_by};
use super::erase::{end_erasing, noted_uncounted, recall};
use super::ext4::{self, FilesystemContent};
use super::find::DataDevice;
use super::keyslots::{BY_VAULT, BY_WORDS, DataPartitionKeys, unlock_with};
use super::prepared::stateless;
use super::volume::{DataVolume, mount_data, repair};
use super::{DataAccess, DataError, PreparedData, device, refuse, unreadable};
use crate::log::InitLog;
use crate::media::{SystemSources, VaultMedia};
use crate::vault::{
    self, FirstBoot, NotInUse, UnlockPrompt, VaultHandle, VaultMediaAccess, VaultWait,
};

/// The device that holds the data.
pub(super) struct DataBlockDevice<'a> {
    pub(super) found: &'a DataDevice,
    pub(super) file: &'a File,
    pub(super) bytes: u64,
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

/// Both copies of the vault of a device.
pub(crate) fn copies(device: &Path) -> VaultCopies<FileCopyStorage> {
    VaultCopies::new(
        FileCopyStorage::at(device, VAULT_A_AT),
        FileCopyStorage::at(device, VAULT_B_AT),
    )
}

/// The kernel forgets the key of the data.
pub(super) fn close() -> io::Result<()> {
    match alknet_sealed::close(&VolumeOptions::default().name, DmRemoval::Now) {
        Ok(_) => Ok(()),
        // A partition that is not sealed has no mapping.
        Err(SealedError::Dm(DmError::NotFound(_))) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Opens a sealed partition, or goes on with a first boot that was cut short; `None` where it is
/// neither.
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
        // Too small for a header and a vault: only a plain file system can be there.
        Sealing::Unsealed if disk.bytes < DATA_AT => return Ok(None),
        Sealing::Unsealed => false,
    };
    let content = ext4::probe(disk.file, disk.bytes);
    let content = content.or_else(|error| unreadable(disk.found, &error))?;
    // A plain file system, whatever a file of it holds where a vault would be.
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
            let open = unlock(disk, &found, access, DiskHead::Blank)?;
            write_again(disk, &found, &open, access.log);
            access
                .log
                .warn("the first boot was cut short: it is ended with the same vault");
            show_again(disk, &open, access)?;
            let made = make(disk, open, access);
            made.map(Some).map_err(|stop| closed(disk, stop))
        }
        Ok(Some(_)) => Err(waits(disk, overwritten(disk.found.name()))),
        // The vault comes first: this is no work of ours.
        Ok(None) if half => first(disk, access),
        Ok(None) => Ok(None),
        Err(stop) if half || content == FilesystemContent::Blank => Err(stop),
        // What another system wrote over both.
        Err(_) => Ok(None),
    }
}

/// What is before the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskHead {
    /// Nothing, or a part of what a first boot writes there.
    Blank,
    /// A header.
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
        Ok(None) => return foreign(disk),
        // cryptsetup fills the room for key slots, where ours has the vault, with noise.
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
    // Before the vault opens: the same key decrypts the blocks of one file as a file system of their own.
    if !sealed.segment().map_err(failed)?.is_standard() {
        return Err(waits(disk, moved(disk.found.name())));
    }
    let mut open = unlock(disk, &found, access, DiskHead::Sealed)?;
    let (key, by) = volume_key(disk, &sealed, &open, access)?;
    let options = fresh_mapping();
    let mapped = sealed.map(&key, &options).map_err(failed)?;
    let mut prepared = mount(disk, &mapped, access)?;
    newest(disk, &prepared.state_dir, &found, &open, access)?;
    // An older copy of the vault has gone no further: neither do its words go anywhere, nor does the header or the other
    // copy change.
    write_again(disk, &found, &open, access.log);
    if open.pending().partition {
        // The power went between the header and the end of the first boot.
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
/// before: each change raises its generation, which tells an older copy from the newest.
fn cover(
    disk: &DataBlockDevice<'_>,
    state_dir: &Path,
    open: &mut OpenAlkv,
    access: DataAccess<'_>,
) {
    let DataAccess { keeper, offer, log } = access;
    if !vault::cover(open, keeper, offer, log) {
        return;
    }
    match disk.copies().save(open) {
        Ok(()) => access.ledger(&disk.path(), state_dir).note(open),
        Err(error) => log.error(format_args!("the vault cannot be written: {error}")),
    }
}

/// An older copy that was put back is closed again, unless its owner shows that it is wanted.
fn newest(
    disk: &DataBlockDevice<'_>,
    state_dir: &Path,
    found: &VaultFound,
    open: &OpenAlkv,
    access: DataAccess<'_>,
) -> Result<(), DataError> {
    let DataAccess { keeper, log, .. } = access;
    let device = disk.path();
    let ledger = access.ledger(&device, state_dir);
    let checked = ledger.check(open, false, || is_proven(found, open, access));
    checked.map_err(|waiting| {
        keeper.close();
        if let Err(error) = super::close() {
            log.error(format_args!("the data stays mounted: {error}"));
        }
        waits(disk, unproven(waiting, access))
    })
}

/// Whether what was typed, or a medium, shows that the owner of this vault wants this copy.
fn is_proven(found: &VaultFound, open: &OpenAlkv, access: DataAccess<'_>) -> bool {
    let medium_has_words = || {
        let secrets = SystemSources.secrets();
        let mut words = secrets.words.iter().chain(&secrets.other_words);
        words.any(|words| words.entropy == *open.entropy())
    };
    vault::generations::is_proven(found, open, access.offer, access.keeper, medium_has_words)
}

/// Why it stays closed, after what was typed for it.
fn unproven(mut waiting: VaultWait, access: DataAccess<'_>) -> VaultWait {
    if access.offer.passphrase.is_some() || access.offer.pin.is_some() {
        let why = &waiting.problem.text;
        waiting.problem.text = format!("what was typed does not open it; {why}");
    }
    waiting
}

/// Ends a change of the master key that a power cut interrupted. What it costs is spent only where
/// there is more than the two key slots of a partition that is as it should be; where it fails, the
/// next start tries again.
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
    /// What its words derive.
    Words,
}

/// By the vault's own secret, else by what its words derive, which also opens after a new vault was made of the
/// same words.
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
    let recovery = recovery(disk, access.keeper)?;
    // That the vault's own secret does not open it is what is wrong: the first error says so.
    let Ok((_, key)) = unlock_with(sealed, &recovery, |slot| slot != BY_WORDS) else {
        return Err(sealed_problem(disk, &error));
    };
    Ok((key, OpenedBy::Words))
}

/// Has the vault open again the data partition that its words opened.
fn renew(sealed: &mut SealedPartition<File>, key: &VolumeKey, open: &OpenAlkv, log: &InitLog) {
    let own = luks_phrase(&open.data_secret());
    match sealed.set_phrase(BY_VAULT, own.expose().as_bytes(), key) {
        Ok(()) => log.warn("the words opened the data partition; the vault opens it again now"),
        Err(error) => log.error(format_args!(
            "the data partition keeps an old key slot: {error}"
        )),
    }
}

/// The first boot; `None` where the configuration wants no vault.
pub(super) fn first(
    disk: &DataBlockDevice<'_>,
    access: DataAccess<'_>,
) -> Result<Option<PreparedData>, DataError> {
    recall(&disk.path());
    let pasted = access.offer.pasted.as_ref();
    let media = VaultMedia::read(pasted).map_err(|waiting| waits(disk, waiting))?;
    if media.stateless {
        access
            .log
            .info("the data disk is blank and stays so: this node is configured to be stateless");
        return Ok(Some(stateless()));
    }
    if media.vault.init == VaultInit::Off {
        return Ok(None);
    }
    if disk.bytes < DATA_AT + ext4::TEMPLATE_BYTES {
        return Ok(refuse(
            "data-too-small",
            format!(
                "the data disk {} has {} MiB",
                disk.found.name(),
                disk.bytes >> 20
            ),
            "give it at least 144 MiB and reboot",
        )?);
    }
    let first = FirstBoot {
        config: &media.vault,
        from: &media.from,
        media: &media.secrets,
        offer: access.offer,
        name: media.name.as_deref(),
        escrow: access.keeper.escrow(),
    };
    let made = vault::create(&first, access.log).map_err(|waiting| waits(disk, waiting))?;
    // Written and read back before anything is encrypted by it: no data may lie under a vault that does not open.
    let written = disk.copies().create(made.open());
    match written.and_then(|()| disk.copies().load()) {
        Ok(Some(_)) => {}
        Ok(None) => return vault_problem(disk, &SlotError::Nothing),
        Err(error) => return vault_problem(disk, &error),
    }
    let open = access
        .keeper
        .adopt(made, &media.vault.words_to)
        .map_err(|waiting| waits(disk, waiting))?;
    let made = make(disk, open, access);
    made.map(Some).map_err(|stop| closed(disk, stop))
}

/// The owner did not see the words that this machine made before the power went. Others came from the owner.
fn show_again(
    disk: &DataBlockDevice<'_>,
    open: &OpenAlkv,
    access: DataAccess<'_>,
) -> Result<(), DataError> {
    if !open.pending().words {
        access.keeper.words_are_kept();
        return Ok(());
    }
    let pasted = access.offer.pasted.as_ref();
    let media = VaultMedia::read(pasted).map_err(|waiting| waits(disk, waiting))?;
    let words = open.entropy().phrase();
    let shown = access.keeper.present(words, &media.vault.words_to);
    shown.map_err(|waiting| waits(disk, waiting))
}

/// Key, mapping, file system, and the header last.
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
        recovery(disk, access.keeper)?,
    );
    let vault = open.alkv().uuid().to_string();
    let uuid = super::random_uuid().or_else(|error| unreadable(disk.found, &error))?;
    let new = NewHeader {
        uuid: uuid::Uuid::from_bytes(uuid),
        vault: &vault,
        cipher,
        phrases: &[own.expose().as_bytes(), words.expose().as_bytes()],
    };
    // Formatting takes the memo of the disk before, which was erased.
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
        // Before the header, which says that the partition is finished.
        file.sync_all()
    });
    formatted.or_else(|error| unreadable(disk.found, &error))?;
    // The header last: until it is there, a power cut leaves a first boot that the next start goes on with.
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

/// The default name, free of what an attempt of this boot left that went no further.
fn fresh_mapping() -> VolumeOptions {
    let options = VolumeOptions::default();
    // Most often there is no such mapping; one that is in use makes the next step fail.
    let _ = alknet_sealed::close(&options.name, DmRemoval::Now);
    options
}

/// The vault of a disk, if one was ever finished there.
fn vault_of(disk: &DataBlockDevice<'_>) -> Result<Option<VaultFound>, DataError> {
    match disk.copies().load() {
        Ok(found) => Ok(found),
        Err(error) => vault_problem(disk, &error),
    }
}

/// Opens the vault. One that says that its partition was finished, or of which the TPM shows that, is not opened for a
/// partition that has no header, nor one of other words than opened since this machine started: its words go nowhere then, and nothing is written.
fn unlock(
    disk: &DataBlockDevice<'_>,
    found: &VaultFound,
    access: DataAccess<'_>,
    front: DiskHead,
) -> Result<OpenAlkv, DataError> {
    let media = VaultMedia::secrets_for(&found.newest);
    let DataAccess { keeper, offer, log } = access;
    let permits = |open: &OpenAlkv| {
        keeper.check_words(open).map_err(another)?;
        match front {
            DiskHead::Blank if !open.pending().partition => Err(blanked(disk.found.name())),
            DiskHead::Blank => {
                let proof = || is_proven(found, open, access);
                let checked = vault::generations::check_first_boot(open, log, proof);
                checked.map_err(|waiting| unproven(waiting, access))
            }
            DiskHead::Sealed => Ok(()),
        }
    };
    keeper.note(&found.newest);
    let opened = vault::open(found, keeper, offer, &media, log, &permits);
    opened.map_err(|waiting| waits(disk, waiting))
}

/// Writes a vault that opened over a copy of it that is damaged or says something else. It is the newest: an older one
/// that opened instead would take the place of the newest.
fn write_again(disk: &DataBlockDevice<'_>, found: &VaultFound, open: &OpenAlkv, log: &InitLog) {
    if found.damaged.is_none() && found.other.is_none() {
        return;
    }
    match disk.copies().save(open) {
        Ok(()) => log.warn("a copy of the vault was damaged or old, and is written again"),
        Err(error) => log.error(format_args!("the vault cannot be written: {error}")),
    }
}

/// What the words give LUKS.
fn recovery(
    disk: &DataBlockDevice<'_>,
    keeper: &VaultHandle,
) -> Result<alknet_vault::SecretStr, DataError> {
    let secret = keeper.vault().recovery_secret();
    let secret = secret.map_err(|error| waits(disk, not_open(&error)))?;
    Ok(luks_phrase(&secret))
}

fn waits(disk: &DataBlockDevice<'_>, waiting: VaultWait) -> DataError {
    DataError::Waiting(Box::new(waiting), Some(disk.path()))
}

/// What went wrong on a disk whose vault is there: the console can reset it.
fn closed(disk: &DataBlockDevice<'_>, stop: DataError) -> DataError {
    match stop {
        DataError::Problem(problem) => waits(disk, VaultWait::from_diagnostic(*problem).for_good()),
        waiting @ DataError::Waiting(..) => waiting,
    }
}

fn not_open(error: &VaultError) -> VaultWait {
    let text = format!("the vault was locked meanwhile: {error}");
    VaultWait::new(
        UnlockPrompt::Nothing,
        "vault-locked",
        text,
        "it is tried again",
    )
}

/// Another vault opened since this machine started. The disk with that one opens as soon as it is back.
fn another(which: NotInUse) -> VaultWait {
    let text = which.to_string();
    VaultWait::new(UnlockPrompt::Nothing, "vault-locked", text, which.hint())
}

/// The vault opened, and says that there was a header.
fn blanked(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} was blanked or half overwritten after this machine had \
         finished it; its vault stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// There is a vault behind something that this machine does not write there.
fn overwritten(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} was overwritten; its vault is still there, and stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// The header places the data elsewhere than this machine does.
fn moved(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} places the data where this machine does not put them; its \
         vault stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// What to do where the header is gone.
const HINT_HEADER: &str = "nothing was written to it; put back a copy of its first 16 MiB, or reset the machine at \
                           the console (v) and use the words";

/// Another system's: the console does not reset what this machine did not make.
fn foreign<T>(disk: &DataBlockDevice<'_>) -> Result<T, DataError> {
    let problem = super::problem(
        "data-locked",
        format!(
            "the data disk {} is encrypted, and no vault is in its header",
            disk.found.name()
        ),
        "attach a blank disk, or open it elsewhere with cryptsetup; nothing was written to it",
    );
    let waiting = VaultWait::from_diagnostic(problem).for_good();
    Err(DataError::Waiting(Box::new(waiting), None))
}

fn damaged<T>(disk: &DataBlockDevice<'_>) -> Result<T, DataError> {
    Ok(refuse(
        "data-damaged",
        format!(
            "the data disk {} was decrypted, and no file system known here is in it",
            disk.found.name()
        ),
        "repair it elsewhere with cryptsetup and e2fsck; nothing was written to it",
    )?)
}

/// There is a vault, and it cannot be read. Nothing is served: a key made instead would be another
/// node's.
fn vault_problem<T>(disk: &DataBlockDevice<'_>, error: &SlotError) -> Result<T, DataError> {
    let text = format!("the vault of {}: {error}", disk.found.name());
    let hint = "nothing was overwritten; put back a copy of the first 16 MiB, or reset the machine at \
                the console (v) and use the words";
    let waiting = VaultWait::new(UnlockPrompt::Nothing, "vault-damaged", text, hint);
    Err(waits(disk, waiting.for_good()))
}

/// The same for a partition that cannot be opened.
fn sealed_problem(disk: &DataBlockDevice<'_>, error: &SealedError) -> DataError {
    let text = format!("the encrypted data disk {}: {error}", disk.found.name());
    let hint = "nothing was written to it; repair it elsewhere with cryptsetup, or reset the machine \
                at the console (v)";
    let waiting = VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, hint);
    waits(disk, waiting.for_good())
}
