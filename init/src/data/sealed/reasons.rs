//! Why a sealed partition stays closed, in words for its owner.

use alknet_sealed::SealedError;
use alknet_vault::VaultError;
use alknet_vault::slots::SlotError;

use super::DataBlockDevice;
use crate::data::{DataError, problem, refuse};
use crate::vault::{NotInUse, UnlockPrompt, VaultWait};

/// What to do if the header is lost.
const HINT_HEADER: &str = "nothing was written to it; put back a copy of its first 16 MiB, or reset the machine at \
                           the console (v) and use the words";

pub(super) fn waits(disk: &DataBlockDevice<'_>, waiting: VaultWait) -> DataError {
    DataError::Waiting(Box::new(waiting), Some(disk.path()))
}

/// The wait of a disk that has a vault, which the console can reset.
pub(super) fn closed(disk: &DataBlockDevice<'_>, stop: DataError) -> DataError {
    match stop {
        DataError::Problem(problem) => waits(disk, VaultWait::from_diagnostic(*problem).for_good()),
        waiting @ DataError::Waiting(..) => waiting,
    }
}

pub(super) fn not_open(error: &VaultError) -> VaultWait {
    let text = format!("the vault was locked meanwhile: {error}");
    VaultWait::new(
        UnlockPrompt::Nothing,
        "vault-locked",
        text,
        "it is tried again",
    )
}

/// Another vault has opened since this machine started. Its disk opens as soon as it is back.
pub(super) fn another(which: NotInUse) -> VaultWait {
    let text = which.to_string();
    VaultWait::new(UnlockPrompt::Nothing, "vault-locked", text, which.hint())
}

/// The vault opened, and it says that there was a header.
pub(super) fn blanked(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} was blanked or half overwritten after this machine had \
         finished it; its vault stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// There is a vault behind content that this machine does not write.
pub(super) fn overwritten(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} was overwritten; its vault is still there, and stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// The header names another position of the data than this machine uses.
pub(super) fn moved(name: &str) -> VaultWait {
    let text = format!(
        "the header of the encrypted data disk {name} places the data where this machine does not put them; its \
         vault stays closed"
    );
    VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, HINT_HEADER).for_good()
}

/// The data of another system: the console does not reset a disk that this machine did not make.
pub(super) fn foreign<T>(disk: &DataBlockDevice<'_>) -> Result<T, DataError> {
    let problem = problem(
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

pub(super) fn damaged<T>(disk: &DataBlockDevice<'_>) -> Result<T, DataError> {
    Ok(refuse(
        "data-damaged",
        format!(
            "the data disk {} was decrypted, and no file system known here is in it",
            disk.found.name()
        ),
        "repair it elsewhere with cryptsetup and e2fsck; nothing was written to it",
    )?)
}

/// The wait of a vault that cannot be read. Nothing is served: with a new key, this would be another node.
pub(super) fn vault_problem<T>(
    disk: &DataBlockDevice<'_>,
    error: &SlotError,
) -> Result<T, DataError> {
    let text = format!("the vault of {}: {error}", disk.found.name());
    let hint = "nothing was overwritten; put back a copy of the first 16 MiB, or reset the machine at \
                the console (v) and use the words";
    let waiting = VaultWait::new(UnlockPrompt::Nothing, "vault-damaged", text, hint);
    Err(waits(disk, waiting.for_good()))
}

/// Like `vault_problem`, for a partition that cannot be opened.
pub(super) fn sealed_problem(disk: &DataBlockDevice<'_>, error: &SealedError) -> DataError {
    let text = format!("the encrypted data disk {}: {error}", disk.found.name());
    let hint = "nothing was written to it; repair it elsewhere with cryptsetup, or reset the machine \
                at the console (v)";
    let waiting = VaultWait::new(UnlockPrompt::Nothing, "data-damaged", text, hint);
    waits(disk, waiting.for_good())
}
