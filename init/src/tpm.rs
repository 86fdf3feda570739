//! The machine's TPM, as the vault uses it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use alknet_provisioning::UpdatePrograms;
use alknet_tpm::predict::{ImageUpdate, ProgramUpdate};
use alknet_tpm::{
    AddSlotError, ExpectedPcrs, PcrChoice, StorageKey, Tpm, TpmError, TpmPin, TpmSource, choose,
};
use alknet_vault::slots::{Kek, OpenAlkv, SlotId, Tpm2Params};

use crate::log::InitLog;

/// The file with the kernel's command line.
const COMMAND_LINE: &str = "/proc/cmdline";
/// The word of the command line that names the storage key of the TPM.
const REQUIRED: &str = "alknet.tpm=";
/// The folder in which the firmware says whether it enforces signatures.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// Whether slots stay closed until the machine restarts.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The TPM of this machine, to open a slot or to make one. A slot that was made after the TPM was
/// closed would be for a PCR that no start has.
pub(crate) fn open() -> Result<Tpm<File>, TpmError> {
    if is_closed() {
        return Err(TpmError::Closed);
    }
    connect()
}

/// Whether [`open`] refuses until the machine restarts.
pub(crate) fn is_closed() -> bool {
    // The flag guards no other memory.
    IS_CLOSED.load(Ordering::Relaxed)
}

/// Makes [`open`] refuse from now on. [`close`] makes the TPM refuse as well.
pub(crate) fn begin_closing() {
    IS_CLOSED.store(true, Ordering::Relaxed);
}

/// Makes the TPM open nothing for any program until the machine restarts. Blocks on the TPM.
pub(crate) fn close() -> Result<(), TpmError> {
    match connect() {
        Ok(mut tpm) => tpm.close_slots(),
        // A machine without a TPM has nothing that could still open.
        Err(TpmError::Absent | TpmError::Unsupported(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The TPM of this machine. If the image names one, it must be that one.
pub(crate) fn connect() -> Result<Tpm<File>, TpmError> {
    let line = std::fs::read_to_string(COMMAND_LINE).map_err(TpmError::Transport)?;
    let required = required(&line)?;
    let tpm = Tpm::open()?;
    Ok(match required {
        Some(key) => tpm.require(key),
        None => tpm,
    })
}

/// The storage key that a command line names. An administrator who builds the image for one machine
/// puts it there.
fn required(line: &str) -> Result<Option<StorageKey>, TpmError> {
    let mut keys = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(REQUIRED));
    let key = keys.next().map(str::parse).transpose()?;
    // With two, the one that counts would depend on the reader.
    match keys.next() {
        None => Ok(key),
        Some(_) => Err(TpmError::BadStorageKey),
    }
}

/// The storage key of the TPM.
pub(crate) fn storage_key() -> Result<StorageKey, TpmError> {
    connect()?.storage_key()
}

/// Whether the TPM can keep a key for what was booted. A TPM that this program cannot use is an
/// answer, and the log has the reason. A failure that may pass is not: a machine that has a TPM
/// must not end up without it.
///
/// # Errors
/// The TPM is there and refuses. An attacker who had the machine in hand can cause that, with a
/// password of the owner, or by a start that nothing measures.
pub(crate) fn is_usable(log: &InitLog) -> Result<bool, TpmError> {
    let sealed = seal(None).map(drop);
    if let Err(error @ TpmError::Unsupported(_)) = &sealed {
        log.warn(format_args!("the TPM is not used: {error}"));
    }
    usable(sealed)
}

fn usable(sealed: Result<(), TpmError>) -> Result<bool, TpmError> {
    match sealed {
        Ok(()) => Ok(true),
        Err(TpmError::Absent | TpmError::Unsupported(_)) => Ok(false),
        Err(error @ (TpmError::NotMeasured(_) | TpmError::OwnerPassword)) => Err(error),
        // The TPM is busy or silent for the moment: PID 1 tries the slot, and the first boot waits
        // if that fails.
        Err(_) => Ok(true),
    }
}

/// Seals a new key to what the machine booted, and to a PIN if there is one.
pub(crate) fn seal(pin: Option<&TpmPin>) -> Result<(Kek, Tpm2Params), TpmError> {
    let mut tpm = open()?;
    let kek = alknet_tpm::new_kek()?;
    let params = tpm.seal(&kek, &choice(), ExpectedPcrs::Current, pin)?;
    Ok((kek, params))
}

/// Adds a slot for the next program, which is started in the place of the one that runs.
pub(crate) fn add_slot_for(
    vault: &mut OpenAlkv,
    programs: &UpdatePrograms,
    pin: Option<&TpmPin>,
) -> Result<SlotId, AddSlotError> {
    let loader = programs.loader.as_deref();
    let update = ProgramUpdate {
        loaders: loader.as_slice(),
        running: &programs.started,
        next: &programs.next,
    };
    open()?.add_slot_for(vault, &choice(), &update, pin)
}

/// Adds a slot for the next image of an update. It opens without a person.
pub(crate) fn add_slot_for_image(
    vault: &mut OpenAlkv,
    update: &ImageUpdate<'_>,
) -> Result<SlotId, AddSlotError> {
    open()?.add_slot_for_image(vault, &choice(), update, None)
}

/// Replaces a slot by one for what was booted.
pub(crate) fn renew_slot(
    vault: &mut OpenAlkv,
    id: SlotId,
    pin: Option<&TpmPin>,
) -> Result<SlotId, AddSlotError> {
    open()?.renew_slot(vault, id, &choice(), pin)
}

fn choice() -> PcrChoice {
    choose(Path::new(EFI_VARIABLES))
}

/// A key source for slots of type `tpm2`.
pub(crate) fn source(pin: Option<TpmPin>) -> Result<TpmSource<File>, TpmError> {
    Ok(TpmSource::new(open()?, pin))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attacker who had the machine in hand before its first start sets a password in the TPM,
    /// or switches measuring off, so that a vault is made that the TPM does not protect.
    #[test]
    fn a_tpm_that_refuses_is_not_taken_for_an_absent_one() {
        for refuses in [TpmError::OwnerPassword, TpmError::NotMeasured(4)] {
            assert!(usable(Err(refuses)).is_err(), "the machine waits");
        }
        for absent in [TpmError::Absent, TpmError::Unsupported("1.2")] {
            assert!(matches!(usable(Err(absent)), Ok(false)));
        }
        for passing in [Ok(()), Err(TpmError::Unanswered)] {
            assert!(matches!(usable(passing), Ok(true)));
        }
    }

    #[test]
    fn the_command_line_names_one_storage_key_or_none() {
        let name = "0123456789abcdef".repeat(4);
        let word = format!("alknet.tpm={name}");
        assert_eq!(required("quiet panic=10\n").expect("none"), None);
        let key = required(&format!("quiet {word} panic=10\n")).expect("a name");
        assert_eq!(key.map(|key| key.to_string()), Some(name.clone()));
        for bad in [
            "alknet.tpm=".to_owned(),
            word[..word.len() - 1].to_owned(),
            format!("{word}0"),
            word.to_uppercase().replace("ALKNET.TPM", "alknet.tpm"),
            format!("{word} quiet {word}"),
        ] {
            let refused = required(&bad);
            assert!(matches!(refused, Err(TpmError::BadStorageKey)), "{bad}");
        }
    }
}
