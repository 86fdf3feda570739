//! The machine's TPM, as the vault uses it.

use std::fs::File;
use std::path::Path;

use alknet_tpm::{Expected, TpmError, TpmSource, choose};
use alknet_vault::slots::{Kek, Tpm2Params};

/// Where the firmware says whether it enforces signatures.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// Whether this machine has one.
pub(crate) fn is_there() -> bool {
    alknet_tpm::Tpm::open().is_ok()
}

/// Seals a new key to what the machine booted.
pub(crate) fn seal() -> Result<(Kek, Tpm2Params), TpmError> {
    let mut tpm = alknet_tpm::Tpm::open()?;
    let choice = choose(Path::new(EFI_VARIABLES));
    let kek = alknet_tpm::new_kek()?;
    let params = tpm.seal(&kek, &choice, Expected::Current, None)?;
    Ok((kek, params))
}

/// Answers for slots of type `tpm2`.
pub(crate) fn source() -> Result<TpmSource<File>, TpmError> {
    TpmSource::open(None)
}
