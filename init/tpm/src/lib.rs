//! A TPM 2.0 as the vault needs it: a key that only this machine gets back, and only after it started
//! what it was sealed for.
//!
//! ```no_run
//! use alknet_tpm::{ExpectedPcrs, Tpm, choose};
//! use alknet_vault::slots::Kek;
//!
//! let mut tpm = Tpm::open()?;
//! let choice = choose("/sys/firmware/efi/efivars".as_ref());
//! let kek = alknet_tpm::new_kek()?;
//! let slot = tpm.seal(&kek, &choice, ExpectedPcrs::Current, None)?;
//! assert_eq!(tpm.unseal(&slot, None)?, kek);
//! # Ok::<(), alknet_tpm::TpmError>(())
//! ```
//!
//! Everything that is secret crosses the bus encrypted, in sessions whose key only the TPM's storage
//! key can find ([`Tpm::seal`]). Every answer that matters is authenticated by the same key. What the
//! next image will measure is computed from its bytes ([`predict`]), and a vault gets a slot for it
//! ([`Tpm::add_slot_for`]). A counter that never falls is for
//! noticing old data ([`Tpm::counter`]).
//!
//! Synchronous, over anything that is read from and written to. The wire format is that of the TPM 2.0
//! library specification, parts 1 to 3.

#![forbid(unsafe_code)]

mod channel;
mod choice;
mod codes;
mod counter;
mod crypto;
mod driver;
mod error;
pub mod limits;
mod pcr;
pub mod predict;
mod primary;
mod seal;
mod session;
mod slots;
mod source;
mod tpm;
mod wire;

pub use choice::{PcrChoice, choose};
pub use error::{Lockout, TpmError};
pub use pcr::{ExpectedPcrs, PcrValues};
pub use primary::StorageKey;
pub use seal::TpmPin;
pub use slots::AddSlotError;
pub use source::TpmSource;
pub use tpm::Tpm;

/// Makes a key to seal.
///
/// # Errors
/// `NoRandomness`.
pub fn new_kek() -> Result<alknet_vault::slots::Kek, TpmError> {
    let bytes = wire::WipedBuffer(crypto::random()?);
    Ok(alknet_vault::slots::Kek::copy_of(&bytes.0))
}
