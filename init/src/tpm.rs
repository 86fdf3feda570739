//! The machine's TPM, as the vault uses it.

use std::fs::File;
use std::path::Path;

use alknet_tpm::{Expected, Pin, TpmError, TpmSource, choose};
use alknet_vault::slots::{Kek, Tpm2Params};

use crate::log::Log;

/// Where the firmware says whether it enforces signatures.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// Whether this machine has one.
pub(crate) fn is_there() -> bool {
    alknet_tpm::Tpm::open().is_ok()
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
    let mut tpm = alknet_tpm::Tpm::open()?;
    let choice = choose(Path::new(EFI_VARIABLES));
    let kek = alknet_tpm::new_kek()?;
    let params = tpm.seal(&kek, &choice, Expected::Current, pin)?;
    Ok((kek, params))
}

/// Answers for slots of type `tpm2`.
pub(crate) fn source(pin: Option<Pin>) -> Result<TpmSource<File>, TpmError> {
    TpmSource::open(pin)
}
