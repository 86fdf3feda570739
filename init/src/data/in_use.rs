//! Opens the vault of a device whose data are in use once more, after it was locked, or to end its
//! first boot.
//!
//! An attacker who controls the disk can make it answer differently than at the start of the
//! machine: with slots that the vault does not have, with an older copy, or with another vault,
//! which may have the same id. An opened vault counts only if it has the words of the vault in use
//! and is not older. A vault that does not open changes nothing.

use std::path::Path;

use alknet_vault::slots::{FirstBootPermissions, OpenAlkv};

use super::{DataAccess, copies};
use crate::log::InitLog;
use crate::media::VaultMedia;
use crate::vault::generations::{self, GenerationLedger};
use crate::vault::{self, NotInUse, VaultHandle, VaultWait};

/// Opens the vault of a device again, whose data are mounted at `state_dir`. It also withdraws the
/// permissions of the first boot in `ended`, if they could not be withdrawn before: the vault may
/// open only by a typed secret or by another node's share. If they cannot be withdrawn now, that is
/// logged, and the vault is open all the same.
///
/// # Errors
/// Nothing opens the vault now, or the disk answers with another vault or an older copy. The vault
/// stays locked, and its known state stays as it was.
pub(crate) fn reopen(
    device: &Path,
    state_dir: &Path,
    ended: FirstBootPermissions,
    access: DataAccess<'_>,
) -> Result<(), VaultWait> {
    let DataAccess {
        vault, offer, log, ..
    } = access;
    // The typed secret may be right, and the disk may answer correctly next time.
    let ask = vault.asks();
    let gone = |why: String| VaultWait::new(ask, "vault-locked", why, NotInUse::Another.hint());
    let found = copies(device).load();
    let found = found.map_err(|error| gone(error.to_string()))?;
    let found = found.ok_or_else(|| gone("there is no vault any more".to_owned()))?;
    let media = VaultMedia::secrets_for(&found.newest);
    let permits = |open: &OpenAlkv| {
        vault.check_in_use(open).map_err(|which| match which {
            NotInUse::Another | NotInUse::Forged => {
                VaultWait::new(ask, "vault-locked", which.to_string(), which.hint())
            }
            NotInUse::Older => {
                VaultWait::new(ask, generations::VAULT_OLD, which.to_string(), which.hint())
            }
        })?;
        // Words on a medium are for a start. Now there is a console.
        let proof = || generations::is_proven(&found, open, offer, vault, || false);
        let checked = access.ledger(device, state_dir).check(open, false, proof);
        checked.map_err(|waiting| generations::unproven(waiting, offer))
    };
    let mut open = vault::open(&found, vault, offer, &media, log, &permits)?;
    match withdraw(&mut open, ended, device, &access.ledger(device, state_dir)) {
        Ok(()) => vault.settle(&open),
        Err(error) => log.error(format_args!(
            "that the first boot has ended cannot be noted in the vault: {error}"
        )),
    }
    Ok(())
}

/// Withdraws permissions of the first boot in an open vault, and writes the vault if it changed.
fn withdraw(
    open: &mut OpenAlkv,
    ended: FirstBootPermissions,
    device: &Path,
    ledger: &GenerationLedger<'_>,
) -> Result<(), String> {
    let changed = open.conclude(ended).map_err(|error| error.to_string())?;
    if changed {
        let saved = copies(device).save(open);
        saved.map_err(|error| error.to_string())?;
        // An older copy of the vault permits more, so the ledger records this one.
        ledger.note(open);
    }
    Ok(())
}

/// Withdraws permissions of the first boot in the vault of a device, whose data are mounted at
/// `state_dir`. Returns what is still permitted.
///
/// # Errors
/// The vault does not open without a typed secret, cannot be written, or the disk answers with
/// another vault or an older copy.
pub(crate) fn conclude(
    device: &Path,
    state_dir: &Path,
    ended: FirstBootPermissions,
    vault: &VaultHandle,
    log: &InitLog,
) -> Result<FirstBootPermissions, String> {
    let mut copies = copies(device);
    let found = copies.load().map_err(|error| error.to_string())?;
    let found = found.ok_or_else(|| "there is no vault any more".to_owned())?;
    let media = VaultMedia::secrets_for(&found.newest);
    vault::conclude(&found, ended, vault, &media, |open| {
        copies.save(open)?;
        // An older copy of the vault permits more, so the ledger records this one.
        let ledger = GenerationLedger {
            device,
            vault,
            log,
            state_dir,
        };
        ledger.note(open);
        Ok(())
    })
}
