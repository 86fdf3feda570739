//! The data partition: it is found, formatted on the first boot, checked, mounted and grown. A
//! machine that has none, or none that it can use, says why and serves nothing: with a new key, it
//! would be another node. Only a node that is configured as stateless serves from memory.

mod conclude;
mod counting_tpms;
mod earlier;
mod erase;
mod ext4;
mod find;
mod gpt;
mod image_guids;
mod in_use;
mod keyslots;
mod partition;
mod prepared;
mod sealed;
mod volume;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use alknet_vault::audit::AuditEvent;

use crate::{
    control::MachineDiagnostic,
    install,
    log::InitLog,
    media::VaultMedia,
    vault::{UnlockCredentials, VaultHandle, VaultWait, generations::GenerationLedger},
};
use ext4::FilesystemContent;
use find::DataDevice;
use gpt::GptError;
use image_guids::ImageGuids;
pub(crate) use partition::partition_guid;
use prepared::{foreign_name, locked, make_tree, stateless};
use volume::{DataVolume, mount_data};

pub(crate) use conclude::{conclude, contradiction, note_key};
pub(crate) use counting_tpms::{TPMS_MAX, counted_by, set_counted_by};
pub(crate) use erase::{erase, mark_erasing, reset_uncounted};
pub(crate) use find::LABEL;
pub(crate) use in_use::{conclude as conclude_vault, reopen};
pub(crate) use keyslots::DataPartitionKeys;
#[cfg(test)]
pub(crate) use keyslots::tests as keyslot_tests;
pub(crate) use prepared::{PreparedData, refresh};
pub use sealed::SEALED_BYTES_MIN;
pub(crate) use sealed::copies;
pub(crate) use volume::{close, erase_data};

/// Maximum time for a disk on a slow bus to appear.
const APPEAR_MAX: Duration = Duration::from_secs(3);
/// Like `APPEAR_MAX`, for a drive at USB that has announced itself.
const USB_DRIVE_MAX: Duration = Duration::from_secs(8);
/// How often PID 1 looks for the disk.
const APPEAR_POLL: Duration = Duration::from_millis(50);
/// Code of the problem of a machine without a disk for its data.
pub(crate) const MISSING: &str = "data-missing";
/// User and group of the node.
pub(crate) const NODE_UID: u32 = 1000;

/// What the data partition is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataAccess<'a> {
    pub(crate) vault: &'a VaultHandle,
    pub(crate) offer: &'a UnlockCredentials,
    pub(crate) log: &'a InitLog,
    /// Whether a blank disk becomes this machine's. See
    /// [`UpdateStart::takes_blank_disk`](crate::update::UpdateStart::takes_blank_disk).
    pub(crate) takes_blank: bool,
}

impl<'a> DataAccess<'a> {
    /// Refuses a blank disk that must not become this machine's.
    fn take_blank(&self, found: &DataDevice) -> Result<(), DataError> {
        if self.takes_blank {
            return Ok(());
        }
        let waiting = VaultWait::from_diagnostic(problem(
            MISSING,
            format!(
                "the data disk {} is blank, and this version is or may be on trial: the data that were open before it \
                 are on another disk",
                found.name()
            ),
            "attach the disk with the data and the one with the boot slots, and detach copies of them; from a trial the \
             machine returns to the version before by itself",
        ));
        Err(DataError::Waiting(Box::new(waiting), None))
    }

    /// The ledger of a device's vault, whose data are at `state_dir`.
    fn ledger(&self, device: &'a Path, state_dir: &'a Path) -> GenerationLedger<'a> {
        GenerationLedger {
            device,
            vault: self.vault,
            log: self.log,
            state_dir,
        }
    }
}

/// Why there are no data.
enum DataError {
    /// A problem that only a user can solve.
    Problem(Box<MachineDiagnostic>),
    /// A problem that may end by itself, and the device of the vault, if there is one.
    Waiting(Box<VaultWait>, Option<PathBuf>),
}

impl From<Box<MachineDiagnostic>> for DataError {
    fn from(problem: Box<MachineDiagnostic>) -> Self {
        Self::Problem(problem)
    }
}

/// Prepares the data. Blocks as long as the disk takes, so PID 1's loop must not call it.
pub(crate) fn prepare(access: DataAccess<'_>) -> PreparedData {
    let sys = Path::new("/sys");
    let log = access.log;
    // An earlier attempt of this boot may have panicked and left a mount. In most cases it did not.
    if let Err(error) = close() {
        log.warn(format!(
            "what an earlier attempt left open cannot be closed: {error}"
        ));
    }
    // The administrator expects the node on a disk. One that served from the medium would be another node.
    if let Some(problem) = install::refusal() {
        let waiting = VaultWait::from_diagnostic(problem.clone()).for_good();
        return close_all(waiting, None, access.vault);
    }
    let opened = match locate(sys, log) {
        Ok(found) => open(sys, &found, access),
        Err(problem) => without_disk(*problem, access),
    };
    let closed = match opened {
        Ok(mut prepared) => match foreign_name(&prepared.state_dir) {
            None => {
                complete(&mut prepared);
                return prepared;
            }
            Some(name) => {
                let waiting = foreign(&prepared.state_dir, name).for_good();
                (waiting, prepared.vault_at.take())
            }
        },
        Err(DataError::Problem(problem)) => (VaultWait::from_diagnostic(*problem).for_good(), None),
        Err(DataError::Waiting(waiting, vault_at)) => (*waiting, vault_at),
    };
    let mut prepared = close_all(closed.0, closed.1, access.vault);
    // The first problem says why nothing is served.
    prepared.problems.extend(erase::uncounted());
    prepared.problems.extend(earlier::kept_data_problem());
    prepared
}

/// The wait of data with something else in the place of a folder that PID 1 and the node use.
fn foreign(state_dir: &Path, name: &str) -> VaultWait {
    VaultWait::from_diagnostic(problem(
        "data-damaged",
        format!("{}/{name} is no folder", state_dir.display()),
        "another system wrote to the disk: examine it at another machine, and remove what is in the place of the folder",
    ))
}

/// Makes the folders of the opened data, and adds problems.
fn complete(prepared: &mut PreparedData) {
    prepared.problems.extend(erase::uncounted());
    prepared.problems.extend(earlier::kept_data_problem());
    // A read-only partition has its folders already, and its problem is listed.
    if prepared.state.mode != "read-only"
        && let Err(error) = make_tree(&prepared.state_dir)
    {
        prepared.problems.push(problem(
            "data-unwritable",
            format!(
                "cannot make the folders of {}: {error}",
                prepared.state_dir.display()
            ),
            "free space on the data disk, or replace it",
        ));
    }
    refresh(prepared);
}

/// Closes everything that was opened: wipes the seed, unmounts the data, and makes the kernel
/// forget their key.
fn close_all(waiting: VaultWait, vault_at: Option<PathBuf>, vault: &VaultHandle) -> PreparedData {
    // Only an open vault has a log for this event.
    if vault.is_open() {
        vault.events().add(AuditEvent::Locked { hard: true });
    }
    vault.close();
    // The words of a closed vault are neither shown nor written by the next vault that opens.
    vault.forget_words();
    // In most cases nothing is mounted.
    if let Err(error) = close() {
        tracing::debug!(%error, "the data partition stays mounted");
    }
    locked(waiting, vault_at)
}

/// A machine without a disk for its data serves only if its configuration says that it is
/// stateless.
fn without_disk(
    problem: MachineDiagnostic,
    access: DataAccess<'_>,
) -> Result<PreparedData, DataError> {
    let waits = |waiting| DataError::Waiting(Box::new(waiting), None);
    if problem.code == MISSING {
        let media = VaultMedia::read_first(access.offer.pasted.as_ref()).map_err(waits)?;
        if media.stateless {
            return Ok(stateless());
        }
    }
    // A user may attach or detach a disk at any time.
    Err(waits(VaultWait::from_diagnostic(problem)))
}

fn problem(code: &str, text: String, hint: &str) -> MachineDiagnostic {
    MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

fn refuse<T>(code: &str, text: String, hint: &str) -> Result<T, Box<MachineDiagnostic>> {
    Err(Box::new(problem(code, text, hint)))
}

/// Waits for drives at USB that have announced themselves: a configuration, words or a seed key may be on one of them,
/// and the sources are read once.
pub(crate) fn wait_for_usb_drives(sys: &Path, log: &InitLog) {
    let begun = Instant::now();
    while find::is_usb_drive_starting(sys) {
        if begun.elapsed() >= USB_DRIVE_MAX {
            log.warn("a drive at USB has no disk yet: the machine goes on without it");
            return;
        }
        std::thread::sleep(APPEAR_POLL);
    }
}

/// Finds the device with the data, and waits for it if it may still appear.
fn locate(sys: &Path, log: &InitLog) -> Result<DataDevice, Box<MachineDiagnostic>> {
    let mut attempted = BTreeSet::new();
    locate_with(sys, || partition::repair_tables(sys, &mut attempted, log))
}

/// The same, where `repair` repairs partition tables, has the kernel read them, and returns whether one was repaired.
fn locate_with(
    sys: &Path,
    mut repair: impl FnMut() -> bool,
) -> Result<DataDevice, Box<MachineDiagnostic>> {
    let begun = Instant::now();
    loop {
        if let Some(one) = find_one(sys)? {
            return Ok(one);
        }
        // The kernel has read a partition table again, and the partition may be there now.
        if repair() {
            continue;
        }
        let starts = find::is_usb_drive_starting(sys) && begun.elapsed() < USB_DRIVE_MAX;
        if !starts && (begun.elapsed() >= APPEAR_MAX || !find::may_appear(sys)) {
            // The kernel has also read the tables that were right. At its first read the disk may have failed.
            return find_one(sys)?.map_or_else(missing, Ok);
        }
        std::thread::sleep(APPEAR_POLL);
    }
}

/// The device with the data, if it is there now.
fn find_one(sys: &Path) -> Result<Option<DataDevice>, Box<MachineDiagnostic>> {
    let found = find::scan(sys);
    match find::choose(&found) {
        Ok(one) => Ok(one.cloned()),
        Err(names) => refuse(
            "data-ambiguous",
            format!(
                "several disks call themselves {}: {}",
                LABEL,
                names.join(", ")
            ),
            "detach all but one; none was touched",
        ),
    }
}

/// The refusal of a machine that has no device with the data.
fn missing<T>() -> Result<T, Box<MachineDiagnostic>> {
    refuse(
        MISSING,
        format!(
            "no partition labelled {0} and no disk with serial {0}",
            LABEL
        ),
        "attach a disk with that serial, or say node.stateless = true in the configuration; nothing is served until \
         then",
    )
}

fn open(sys: &Path, found: &DataDevice, access: DataAccess<'_>) -> Result<PreparedData, DataError> {
    let log = access.log;
    let image_guids = grow(sys, found, log)?;
    let file = match open_rw(found.name()) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            return open_protected(found, access, &error);
        }
        opened => opened.or_else(|error| unreadable(found, &error))?,
    };
    let bytes = size(&file).or_else(|error| unreadable(found, &error))?;
    let disk = sealed::DataBlockDevice {
        found,
        file: &file,
        bytes,
        image_guids,
    };
    // The sealed partition is checked before ext4: a vault must not be taken for a blank or foreign
    // partition.
    if let Some(prepared) = sealed::open(&disk, access)? {
        return Ok(prepared);
    }
    let content = ext4::probe(&file, bytes).or_else(|error| unreadable(found, &error))?;
    let known = match content {
        FilesystemContent::Ext4(known) => known,
        FilesystemContent::TornSuper => volume::repair(found, &file, bytes, log)?,
        FilesystemContent::Blank => match sealed::first(&disk, access)? {
            Some(prepared) => return Ok(prepared),
            None => volume::format(found, &file, bytes, log)?,
        },
        // An interrupted formatting of this program has nothing of value.
        FilesystemContent::HalfFormatted => {
            access.take_blank(found)?;
            volume::format(found, &file, bytes, log)?
        }
        FilesystemContent::Luks2 | FilesystemContent::Unknown => {
            return unknown_content(found).map_err(DataError::from);
        }
    };
    // The kernel does not mount a device that is open for writing.
    drop(file);
    Ok(mount_data(&DataVolume::plain(found), &known, bytes, log)?)
}

/// Grows a data partition to the end of its disk. Returns whether the disk keeps the GUIDs of the image, or may keep them.
fn grow(
    sys: &Path,
    found: &DataDevice,
    log: &InitLog,
) -> Result<ImageGuids, Box<MachineDiagnostic>> {
    let DataDevice::Partition { name, disk } = found else {
        return Ok(ImageGuids::Absent);
    };
    let grown = partition::grow(sys, name, disk, log);
    match grown.outcome {
        Ok(()) => {}
        // The next step would take an earlier vault for the one of this machine.
        Err(GptError::EarlierVault(error)) => return unreadable(found, &error),
        // The data are there all the same, and the next boot tries to grow the partition again.
        Err(error) => log.warn(format_args!("cannot grow the data partition: {error}")),
    }
    Ok(grown.image_guids)
}

/// A disk behind SCSI or USB that refuses writes, which the kernel does not open for them. A blank one holds nothing that
/// a stateless node would hide, so such a node serves.
fn open_protected(
    found: &DataDevice,
    access: DataAccess<'_>,
    refused: &io::Error,
) -> Result<PreparedData, DataError> {
    let content = File::open(device(found.name()))
        .and_then(|file| size(&file).and_then(|bytes| ext4::probe(&file, bytes)));
    if matches!(content, Ok(FilesystemContent::Blank)) {
        let media = VaultMedia::read_first(access.offer.pasted.as_ref());
        let media = media.map_err(|waiting| DataError::Waiting(Box::new(waiting), None))?;
        if media.stateless {
            access.log.info(
                "the data disk refuses writes and is blank: this node is configured to be stateless",
            );
            return Ok(stateless());
        }
    }
    Ok(unreadable(found, refused)?)
}

fn unreadable<T>(found: &DataDevice, error: &io::Error) -> Result<T, Box<MachineDiagnostic>> {
    refuse(
        "data-unreadable",
        format!("the data disk {} cannot be read: {error}", found.name()),
        "check the disk and its cabling, or replace it, and reboot",
    )
}

fn unknown_content<T>(found: &DataDevice) -> Result<T, Box<MachineDiagnostic>> {
    refuse(
        "data-damaged",
        format!(
            "the data disk {} is neither blank nor a file system known here",
            found.name()
        ),
        "repair it elsewhere with e2fsck, or blank its first 16 MiB to start afresh; nothing was \
         written to it",
    )
}

pub(crate) fn size(mut file: &File) -> io::Result<u64> {
    use io::Seek;
    file.seek(io::SeekFrom::End(0))
}

fn open_rw(name: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(device(name))
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Version 4, RFC 9562, in the byte order of ext4.
fn random_uuid() -> io::Result<[u8; 16]> {
    Ok(uuid::Builder::from_random_bytes(random()?)
        .into_uuid()
        .into_bytes())
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs, os::unix::fs::symlink};

    use super::*;

    /// The disk failed when the kernel read its table first, and no slow bus is there. The table is right, so nothing is
    /// repaired, but the kernel reads it again.
    #[test]
    fn a_partition_that_the_kernel_finds_at_its_second_read_is_found() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let class = root.path().join("class/block");
        fs::create_dir_all(&class).expect("writable");
        let reads = Cell::new(0);
        let read_again = || {
            reads.set(reads.get() + 1);
            let device = root.path().join("devices/sda/sda3");
            fs::create_dir_all(&device).expect("writable");
            fs::write(device.join("partition"), "3\n").expect("writable");
            let uevent = format!("PARTNAME={LABEL}\n");
            fs::write(device.join("uevent"), uevent).expect("writable");
            symlink(&device, class.join("sda3")).expect("writable");
            false
        };
        let missing = locate_with(root.path(), || false);
        assert_eq!(missing.expect_err("no partition").code, MISSING);
        let found = locate_with(root.path(), read_again);
        let expected = DataDevice::Partition {
            name: "sda3".to_owned(),
            disk: "sda".to_owned(),
        };
        assert_eq!(found.ok(), Some(expected));
        assert_eq!(reads.get(), 1);
    }
}
