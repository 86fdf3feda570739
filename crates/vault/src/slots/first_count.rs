//! The counter of a TPM when the vault was made. It is stored in the encrypted payload for as long as the data
//! partition may be formatted with the vault.

use data_encoding::HEXLOWER;
use serde::Deserialize;

/// The counter of a TPM when the vault was made. A copy of the vault from its first boot never changes, but the TPM
/// has counted on once that boot has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstCount {
    /// The digest that is the name of the TPM's storage key.
    pub tpm: [u8; 32],
    /// The value of the counter.
    pub count: u64,
}

/// The form in the payload: `{"count","tpm"}`, with `tpm` in hex.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstCountForm<'a> {
    count: u64,
    tpm: &'a str,
}

impl FirstCount {
    /// `None` if the name is not 32 bytes in lower-case hex.
    pub(super) fn read(form: &FirstCountForm<'_>) -> Option<Self> {
        let tpm = HEXLOWER.decode(form.tpm.as_bytes()).ok()?;
        Some(Self {
            tpm: tpm.try_into().ok()?,
            count: form.count,
        })
    }

    pub(super) fn text(&self) -> String {
        let tpm = HEXLOWER.encode(&self.tpm);
        format!("{{\"count\":{},\"tpm\":\"{tpm}\"}}", self.count)
    }
}
