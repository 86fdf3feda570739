//! The TPM as a key source of the vault.

use std::fs::File;
use std::io::{Read, Write};

use alknet_vault::slots::{Kek, KekError, KekRequest, KekSource, SlotParams};

use crate::{Tpm, TpmError, TpmPin};

/// Answers for slots of type `tpm2`.
#[derive(Debug)]
pub struct TpmSource<T> {
    tpm: Tpm<T>,
    pin: Option<TpmPin>,
    error: Option<TpmError>,
}

impl TpmSource<File> {
    /// A source with the TPM of this machine.
    ///
    /// # Errors
    /// The errors of [`Tpm::open`].
    pub fn open(pin: Option<TpmPin>) -> Result<Self, TpmError> {
        Tpm::open().map(|tpm| Self::new(tpm, pin))
    }
}

impl<T> TpmSource<T> {
    /// A source with this TPM, and the PIN that a person typed.
    #[must_use]
    pub fn new(tpm: Tpm<T>, pin: Option<TpmPin>) -> Self {
        let error = None;
        Self { tpm, pin, error }
    }

    /// Sets another PIN for the next attempt.
    pub fn set_pin(&mut self, pin: Option<TpmPin>) {
        self.pin = pin;
    }

    /// The last refusal in full: how many attempts are left, or how long to wait.
    pub fn take_error(&mut self) -> Option<TpmError> {
        self.error.take()
    }

    /// The TPM.
    pub fn tpm(&mut self) -> &mut Tpm<T> {
        &mut self.tpm
    }
}

impl<T: Read + Write> KekSource for TpmSource<T> {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let SlotParams::Tpm2(params) = request.params else {
            return Err(KekError::Failed("the slot is of another type".into()));
        };
        // Otherwise the caller would show the refusal of an earlier slot.
        self.error = None;
        self.tpm.unseal(params, self.pin.as_ref()).map_err(|error| {
            let short = KekError::from(&error);
            self.error = Some(error);
            short
        })
    }
}
