//! What proves that the owner of a vault wants an older copy of it, and what the machine asks for until then.

use alknet_tpm::TpmError;
use alknet_vault::slots::{LoadedCopies, OpenAlkv, SlotType};

use crate::vault::open::by_passphrase;
use crate::vault::{
    UnlockCredentials, UnlockPrompt, VaultHandle, VaultWait, opening_slot, tpm_unlock,
};

/// Code of the problem of an older copy, and of a copy whose age is unknown.
pub(crate) const VAULT_OLD: &str = "vault-old";

/// Whether a person at the machine, or a medium with the words, proves that the vault's owner opens it. A typed
/// secret proves something only if the console had said before that the copy is older: at each start the owner of a
/// vault that opens by typing types the same secret. It may also open the other copy on the disk, which an attacker
/// may have made, so that copy must have the words of the vault that opened.
pub(crate) fn is_proven(
    found: &LoadedCopies,
    open: &OpenAlkv,
    offer: &UnlockCredentials,
    vault: &VaultHandle,
    medium_has_words: impl FnOnce() -> bool,
) -> bool {
    // Slots that need no person came first, so the passphrase may not have been tried.
    let passphrase = || {
        let typed = offer.passphrase.as_ref();
        typed.is_some_and(|typed| {
            by_passphrase(found, typed, vault, |opened| have_same_words(opened, open)).is_ok()
        })
    };
    let pin = || {
        let typed = offer.pin.as_ref();
        typed.is_some_and(|typed| {
            tpm_unlock::with_pin(found, typed).is_ok_and(|opened| have_same_words(&opened, open))
        })
    };
    let typed = || is_opened_by_typing(open) || passphrase() || pin();
    (offer.knows_of_age && typed()) || medium_has_words()
}

/// Whether the slot that opened the vault needed a typed secret.
fn is_opened_by_typing(open: &OpenAlkv) -> bool {
    let slots = open.alkv().slots().iter();
    opening_slot(open).is_some_and(|by| {
        let mut slots = slots.filter(|slot| slot.id() == by.id);
        by.kind == SlotType::Passphrase || slots.any(tpm_unlock::wants_pin)
    })
}

/// Whether two opened vaults are of one node. The ids that they state prove nothing.
pub(super) fn have_same_words(one: &OpenAlkv, other: &OpenAlkv) -> bool {
    match (one.fingerprint(), other.fingerprint()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Adds what a typed secret did to the reason for which a copy stays closed.
pub(crate) fn unproven(mut waiting: VaultWait, offer: &UnlockCredentials) -> VaultWait {
    let problem = &mut waiting.problem;
    if problem.code != VAULT_OLD || (offer.passphrase.is_none() && offer.pin.is_none()) {
        return waiting;
    }
    // A vault without a slot of a passphrase or a PIN opens by nothing typed.
    problem.text = match offer.knows_of_age || waiting.ask == UnlockPrompt::Nothing {
        true => format!("what was typed does not open it; {}", problem.text),
        false => format!(
            "{}; type it once more if this copy is to count",
            problem.text
        ),
    };
    waiting
}

/// What the owner of the vault can type.
fn prompt(open: &OpenAlkv) -> UnlockPrompt {
    let slots = open.alkv().slots();
    if slots.iter().any(tpm_unlock::wants_pin) {
        UnlockPrompt::Pin
    } else if slots.iter().any(|slot| slot.kind() == SlotType::Passphrase) {
        UnlockPrompt::Passphrase
    } else {
        UnlockPrompt::Nothing
    }
}

/// The wait for the owner of an older copy.
pub(super) fn old(open: &OpenAlkv, why: &str) -> VaultWait {
    let ask = prompt(open);
    let hint = match ask {
        UnlockPrompt::Nothing => {
            "put the newest disk back; or attach a medium with the words of this node (vault.words) \
             and restart, if this one is to count"
        }
        _ => "put the newest disk back; or type what opens the vault, if this one is to count",
    };
    let text = format!("the vault stays closed: {why}");
    VaultWait::new(ask, VAULT_OLD, text, hint).for_good()
}

/// The wait for a TPM that does not say how old the disk is, or for the owner of the vault.
pub(super) fn unknown(open: &OpenAlkv, error: &TpmError) -> VaultWait {
    let ask = prompt(open);
    let hint = match ask {
        UnlockPrompt::Nothing => "it is tried again",
        _ => "restart the machine; or type what opens the vault, if this disk is to count",
    };
    let text = format!("whether the disk is the newest one is not known: {error}");
    let waiting = VaultWait::new(ask, VAULT_OLD, text, hint);
    VaultWait {
        // A vault that opened by itself does so again, and the TPM may answer then. Without the typed secret another
        // attempt would only ask for it.
        retries: !is_opened_by_typing(open),
        ..waiting
    }
}
