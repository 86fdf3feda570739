//! The vault of a machine whose next start is a trial: it has to open for the next program as it opened for this one.

use std::path::PathBuf;
use std::sync::Arc;

use alknet_vault::slots::SlotType;

use crate::log::InitLog;
use crate::machine::commands::AUDIT_DIR;
use crate::media::SystemSources;
use crate::update::{RefusalCode, SystemProgram, UpdateRefusal, UpdateSystem};
use crate::vault::{
    CommandContext, LOCKED, VaultHandle, add_program_slot, program_slots, remove_program_slots,
};

/// The vault of the machine, for a thread that puts a version on trial.
pub(super) struct TrialVault {
    pub(super) device: Option<PathBuf>,
    pub(super) state_dir: PathBuf,
    pub(super) vault: Arc<VaultHandle>,
    pub(super) log: InitLog,
}

impl TrialVault {
    /// Acts on the vault, if the machine has one on a data disk.
    fn with<T>(&self, act: impl FnOnce(&CommandContext<'_>) -> T) -> Option<T> {
        let device = self.device.as_deref()?;
        let audit = self.state_dir.join(AUDIT_DIR);
        Some(act(&CommandContext {
            audit: &audit,
            device,
            vault: &self.vault,
            log: &self.log,
            state_dir: &self.state_dir,
            sources: &SystemSources,
        }))
    }

    /// Makes the TPM open the vault for the program that goes on trial. Where only the TPM opens the vault without a
    /// person, and it would not, the update is refused: the machine would wait for a person for half an hour, and return.
    pub(super) fn prepare(
        &self,
        measure: impl FnOnce() -> Result<SystemProgram, UpdateRefusal>,
    ) -> Result<(), UpdateRefusal> {
        let prepared = self.with(|place| {
            let slots = program_slots(place).map_err(|why| locked(&why))?;
            if !slots.is_unattended {
                return Ok(());
            }
            if !self.vault.is_open() {
                return Err(locked(LOCKED));
            }
            let programs = measure()?;
            add_program_slot(place, &programs.update())
                .map(drop)
                .map_err(|why| unpredictable(&why))
        });
        match prepared {
            Some(Err(refusal)) if refusal.code == RefusalCode::Unverified => Err(refusal),
            Some(Err(refusal)) if !self.is_opened_by_tpm() => {
                self.log.warn(format_args!(
                    "the TPM will not open the vault for the next version, and another slot has to: {refusal}"
                ));
                Ok(())
            }
            Some(prepared) => prepared,
            None => Ok(()),
        }
    }

    /// Whether the TPM opened the vault at this start, without a person, or the vault is closed and it may do so.
    fn is_opened_by_tpm(&self) -> bool {
        let by = self.vault.opened_by();
        by.is_none_or(|by| by == (SlotType::Tpm2, false))
    }

    /// Removes the slots of the TPM for a program that is not wanted any more. Returns how many there were.
    pub(super) fn remove_unwanted(&self, system: &UpdateSystem) -> Result<usize, String> {
        let removed = self.with(|place| {
            let programs = system.measured_unwanted();
            match programs.map_err(|refusal| refusal.text)? {
                Some(programs) => remove_program_slots(place, &programs.next, &programs.running),
                None => Ok(0),
            }
        });
        removed.unwrap_or(Ok(0))
    }
}

fn locked(why: &str) -> UpdateRefusal {
    let text = format_args!(
        "the vault has to be open, so that the TPM can open it for the next version: {why}"
    );
    UpdateRefusal::new(RefusalCode::Locked, text)
}

fn unpredictable(why: &str) -> UpdateRefusal {
    let text = format_args!(
        "the TPM would not open the vault for the next version: {why}; at the machine, add a passphrase or a PIN, and type \
         it after the update"
    );
    UpdateRefusal::new(RefusalCode::Unpredictable, text)
}
