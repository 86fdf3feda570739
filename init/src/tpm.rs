//! The machine's TPM, as the vault uses it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use alknet_tpm::predict::Update;
use alknet_tpm::{AddSlotError, Expected, PcrChoice, Pin, Tpm, TpmError, TpmSource, choose};
use alknet_vault::slots::{Kek, OpenAlkv, SlotId, Tpm2Params};

use crate::log::Log;

/// Where the firmware says whether it enforces signatures.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// Whether slots stay closed until the machine restarts.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The TPM of this machine, to open a slot or to make one: what was made after it was closed would be for a PCR that no
/// start has.
pub(crate) fn open() -> Result<Tpm<File>, TpmError> {
    if is_closed() {
        return Err(TpmError::Closed);
    }
    connect()
}

/// Whether [`open`] refuses until the machine restarts.
pub(crate) fn is_closed() -> bool {
    IS_CLOSED.load(Ordering::Relaxed)
}

/// From now on [`open`] refuses; [`close`] has the TPM do so as well.
pub(crate) fn begin_closing() {
    IS_CLOSED.store(true, Ordering::Relaxed);
}

/// Has the TPM open nothing until the machine restarts, for no program. Blocks on the TPM.
pub(crate) fn close() -> Result<(), TpmError> {
    match connect() {
        Ok(mut tpm) => tpm.close_slots(),
        Err(TpmError::Absent | TpmError::Unsupported(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The TPM of this machine.
pub(crate) fn connect() -> Result<Tpm<File>, TpmError> {
    Tpm::open()
}

/// Whether this machine has one.
pub(crate) fn is_there() -> bool {
    connect().is_ok()
}

/// Whether it can keep a key for what was booted. What stands in the way for good is an answer, and said;
/// what may pass is not: a machine that has a TPM must not end up without.
pub(crate) fn is_usable(log: &Log) -> bool {
    match seal(None) {
        Ok(_) => true,
        Err(TpmError::Absent) => false,
        Err(
            error @ (TpmError::NotMeasured(_) | TpmError::OwnerPassword | TpmError::Unsupported(_)),
        ) => {
            log.warn(format_args!("the TPM is not used: {error}"));
            false
        }
        Err(_) => true,
    }
}

/// Seals a new key to what the machine booted, and to a PIN if there is one.
pub(crate) fn seal(pin: Option<&Pin>) -> Result<(Kek, Tpm2Params), TpmError> {
    let mut tpm = open()?;
    let kek = alknet_tpm::new_kek()?;
    let params = tpm.seal(&kek, &choice(), Expected::Current, pin)?;
    Ok((kek, params))
}

/// Adds a slot for `next`, which is to be started in the place of `started`.
pub(crate) fn add_slot_for(
    vault: &mut OpenAlkv,
    started: &[u8],
    next: &[u8],
    pin: Option<&Pin>,
) -> Result<SlotId, AddSlotError> {
    let update = Update {
        // The boot partition has none: firmware starts the image.
        loaders: &[],
        running: started,
        next,
    };
    open()?.add_slot_for(vault, &choice(), &update, pin)
}

/// Puts a slot for what was booted in the place of another.
pub(crate) fn renew_slot(
    vault: &mut OpenAlkv,
    id: SlotId,
    pin: Option<&Pin>,
) -> Result<SlotId, AddSlotError> {
    open()?.renew_slot(vault, id, &choice(), pin)
}

fn choice() -> PcrChoice {
    choose(Path::new(EFI_VARIABLES))
}

/// Answers for slots of type `tpm2`.
pub(crate) fn source(pin: Option<Pin>) -> Result<TpmSource<File>, TpmError> {
    Ok(TpmSource::new(open()?, pin))
}
