//! The vault in use: the one that opened since this machine started.
//!
//! A vault's id, slots and generation lie in the clear, and a vault that an attacker made with the
//! same id and a higher generation opens like any other. PID 1 therefore keeps the fingerprint of
//! the vault that opened, over a lock as well, and compares it with that of whatever the disk
//! answers later: only a vault of the same words has it. PID 1 forgets it with the vault
//! ([`VaultHandle::forget`]), and when this machine makes a vault for a blank disk.

use alknet_vault::slots::OpenAlkv;

use super::VaultHandle;

/// What to do if the disk answers with something else.
const HINT: &str = "put the disk back that the machine was started with, and type what opens the vault; or restart the \
                    machine, if this disk is to count";
/// Like `HINT`, if no mistake of the owner explains it.
const HINT_FORGED: &str = "another person can write to this disk: put back what it had, and type what opens the vault; \
                           until then type no words here and paste no configuration";

/// Why a vault that opened is not the one in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotInUse {
    #[error("the vault on the disk is another one than this machine opened")]
    Another,
    #[error("the vault on the disk is forged: it has the id of the one in use and other words")]
    Forged,
    #[error("the vault on the disk is older than the one that this machine opened")]
    Older,
}

impl NotInUse {
    /// What its owner can do.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Another | Self::Older => HINT,
            Self::Forged => HINT_FORGED,
        }
    }
}

impl VaultHandle {
    /// Refuses an opened vault that is not the vault in use, or is an older copy of it: the disk
    /// may answer a running machine with anything. Derives a key, which takes milliseconds.
    ///
    /// # Errors
    /// The reason. It is an error as well if no vault is in use.
    pub(crate) fn check_in_use(&self, open: &OpenAlkv) -> Result<(), NotInUse> {
        // A vault whose fingerprint cannot be derived is refused below, as one of other words.
        let fingerprint = open.fingerprint().ok();
        let state = self.state();
        let alkv = open.alkv();
        if state.vault != Some(alkv.uuid()) {
            return Err(NotInUse::Another);
        }
        // The id is no secret, so a vault made elsewhere can have it. The fingerprint is derived
        // from the words.
        if state.fingerprint.is_none() || state.fingerprint != fingerprint {
            return Err(NotInUse::Forged);
        }
        if alkv.generation() < state.generation {
            return Err(NotInUse::Older);
        }
        Ok(())
    }

    /// Refuses an opened vault, for a disk whose data are closed, if a vault of other words opened
    /// since this machine started. The data decide which copy is the newest.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check_words(&self, open: &OpenAlkv) -> Result<(), NotInUse> {
        // As above.
        let fingerprint = open.fingerprint().ok();
        let state = self.state();
        if state.fingerprint.is_none() || state.fingerprint == fingerprint {
            return Ok(());
        }
        if state.vault == Some(open.alkv().uuid()) {
            return Err(NotInUse::Forged);
        }
        Err(NotInUse::Another)
    }
}
