//! Opens an existing vault: first by its unattended slots, then by what the user typed.

use std::time::Duration;

use alknet_provisioning::MediaSecrets;
use alknet_tpm::TpmError;
use alknet_vault::SecretStr;
use alknet_vault::audit::{AuditEvent, SlotName};
use alknet_vault::slots::{
    Alkv, FirstBootPermissions, LoadedCopies, OpenAlkv, SeedKey, SlotError, SlotId, SlotType,
    UnlockKey, memory_cap_kib,
};

use super::{UnlockCredentials, UnlockPrompt, VaultHandle, VaultWait, tpm_unlock};
use crate::{log::InitLog, stage::boot_ms, tpm};

/// The order in which PID 1 tries unattended slots.
pub(super) const UNATTENDED: [SlotType; 4] = [
    SlotType::Tpm2,
    SlotType::Provisioning,
    SlotType::Kms,
    SlotType::None,
];

/// Opens `found`, and puts its words where the node finds them if `permits` accepts the vault's
/// content. Otherwise they go nowhere.
pub(crate) fn open(
    found: &LoadedCopies,
    vault: &VaultHandle,
    offer: &UnlockCredentials,
    media: &MediaSecrets,
    log: &InitLog,
    permits: &dyn Fn(&OpenAlkv) -> Result<(), VaultWait>,
) -> Result<OpenAlkv, VaultWait> {
    let admitted = |opened: OpenAlkv| {
        permits(&opened)?;
        admitted(opened, vault, log)
    };
    let slots = |kind| {
        let slots = found.newest.slots().iter();
        slots.filter(move |slot| slot.kind() == kind)
    };
    let mut refusals = Vec::new();
    for kind in UNATTENDED {
        let Some(slot) = slots(kind).find(|slot| !tpm_unlock::wants_pin(slot)) else {
            continue;
        };
        match unattended(found, kind, vault, media) {
            Ok(opened) => return admitted(opened),
            Err((why, counts)) => {
                let id = slot.id();
                if counts {
                    vault.refused_once(SlotName { kind, id });
                }
                refusals.push(format!("{}: {why}", kind.name()));
            }
        }
    }
    let by_pin = slots(SlotType::Tpm2).find(|slot| tpm_unlock::wants_pin(slot));
    if let (Some(slot), Some(pin)) = (by_pin, &offer.pin) {
        match tpm_unlock::with_pin(found, pin) {
            Ok(opened) => return admitted(opened),
            Err(why) => {
                let (kind, id) = (SlotType::Tpm2, slot.id());
                let name = SlotName { kind, id };
                vault.events().add(AuditEvent::UnlockFailed(name));
                // The user wants the reason that is about the input.
                refusals = vec![why];
            }
        }
    }
    let typed = slots(SlotType::Passphrase).next();
    if let (Some(_), Some(passphrase)) = (typed, &offer.passphrase) {
        match by_passphrase(found, passphrase, vault, |_| true) {
            Ok(opened) => return admitted(opened),
            Err(SlotError::WrongKey(_)) => refusals = vec!["that passphrase is wrong".to_owned()],
            Err(error) => refusals = vec![error.to_string()],
        }
    }
    let pin = match by_pin.map(|slot| (slot, tpm_unlock::obstacle(&found.newest))) {
        None => PinEntry::No,
        Some((_, None)) => PinEntry::Now,
        Some((slot, Some(error))) => {
            let (kind, id) = (SlotType::Tpm2, slot.id());
            vault.refused_once(SlotName { kind, id });
            let why = error.to_string();
            if !refusals.contains(&why) {
                refusals.push(why);
            }
            match error {
                TpmError::LockedOut(_) => PinEntry::Later,
                _ => PinEntry::No,
            }
        }
    };
    let mut waiting = waiting(typed.is_some(), pin, offer, &refusals);
    let kms = slots(SlotType::Kms).next().is_some();
    waiting.retries |= kms || slots(SlotType::Provisioning).next().is_some();
    if kms && waiting.ask == UnlockPrompt::Nothing {
        waiting.problem.hint = HINT_KMS.to_owned();
    } else if tpm::is_closed() && waiting.ask == UnlockPrompt::Nothing {
        waiting.problem.hint = HINT_CLOSED.to_owned();
    }
    Err(waiting)
}

/// What to do if another node keeps a share of the key, and nothing can be typed.
const HINT_KMS: &str = "the node that keeps a share of the key is asked again by itself; an administrator \
                        of it sees who waits with 'alknet escrow list'";

/// What to do if the TPM opens it, and nothing can be typed.
const HINT_CLOSED: &str = "restart the machine";

/// Opens it by a typed passphrase. Waits first if wrong passphrases came before, and counts a wrong
/// one. The passphrase of a vault that does not count (`counts`) is wrong.
pub(super) fn by_passphrase(
    found: &LoadedCopies,
    passphrase: &SecretStr,
    vault: &VaultHandle,
    counts: impl FnOnce(&OpenAlkv) -> bool,
) -> Result<OpenAlkv, SlotError> {
    vault.wait_for_turn();
    let mut key = UnlockKey::Passphrase {
        passphrase,
        cap_kib: memory_cap_kib(memory_kib()),
    };
    let opened = found.open(&mut key).and_then(|open| match counts(&open) {
        true => Ok(open),
        false => Err(SlotError::WrongKey(open.opened_by())),
    });
    let kind = SlotType::Passphrase;
    let slot = found.newest.slots().iter().find(|slot| slot.kind() == kind);
    match (&opened, slot) {
        (Ok(_), _) => vault.was_right(),
        (Err(_), Some(slot)) => vault.was_wrong(SlotName {
            kind,
            id: slot.id(),
        }),
        // Without a slot of a passphrase there was nothing to guess.
        (Err(_), None) => {}
    }
    opened
}

/// Whether the user can type a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PinEntry {
    Later,
    No,
    Now,
}

fn waiting(
    passphrase: bool,
    pin: PinEntry,
    offer: &UnlockCredentials,
    refusals: &[String],
) -> VaultWait {
    let why = if refusals.is_empty() {
        "the vault is locked".to_owned()
    } else {
        format!("the vault is locked: {}", refusals.join("; "))
    };
    let new = |ask, hint| VaultWait::new(ask, "vault-locked", why.clone(), hint);
    match (pin, passphrase) {
        // The console asks again for the passphrase after a wrong one.
        (PinEntry::Now, true) if offer.passphrase.is_some() => {
            let hint = "type the passphrase on the console, or Enter for the PIN";
            new(UnlockPrompt::Passphrase, hint).with_other_way()
        }
        (PinEntry::Now, true) => {
            let hint = "type the PIN on the console, or Enter for the passphrase";
            new(UnlockPrompt::Pin, hint).with_other_way()
        }
        (PinEntry::Now, false) => new(UnlockPrompt::Pin, "type the PIN on the console"),
        (_, true) => new(
            UnlockPrompt::Passphrase,
            "type the passphrase on the console",
        ),
        (PinEntry::Later, false) => {
            let hint =
                "leave the machine on until the TPM takes a PIN again, then type it on the console";
            new(UnlockPrompt::Pin, hint)
        }
        (PinEntry::No, false) => {
            let hint = "attach the medium that opens it; it is tried again by itself. Without it only \
                        a factory reset and the words help";
            new(UnlockPrompt::Nothing, hint)
        }
    }
}

/// Opens by the unattended slots of one kind. Otherwise the reason, and whether it is worth a line
/// of the vault's log.
pub(super) fn unattended(
    found: &LoadedCopies,
    kind: SlotType,
    vault: &VaultHandle,
    media: &MediaSecrets,
) -> Result<OpenAlkv, (String, bool)> {
    let opened = match kind {
        SlotType::Kms => {
            let mut source = vault.escrow().source();
            let opened = found.open(&mut UnlockKey::Source(kind, &mut source));
            // A node that no helper asked yet has refused nothing.
            if let Err(SlotError::Kek { .. }) = opened {
                return Err((source.refusals(), source.was_refused()));
            }
            opened
        }
        SlotType::Tpm2 => return tpm_unlock::unattended(found).map_err(|why| (why, true)),
        SlotType::Provisioning => {
            let mut refused = None;
            for seed in media.seed_keys_of(found.newest.uuid()) {
                match found.open(&mut UnlockKey::Seed(&seed.key)) {
                    Ok(open) => return Ok(open),
                    // The message that an attacker changed the vault is worth more than the one
                    // that a key is another's.
                    Err(error) if matches!(refused, Some(SlotError::Tampered)) => drop(error),
                    Err(error) => refused = Some(error),
                }
            }
            let why = refused.map_or_else(
                || "no medium with its seed.key is attached".to_owned(),
                |error| error.to_string(),
            );
            return Err((why, true));
        }
        _ => found.open(&mut UnlockKey::Stored),
    };
    opened.map_err(|error: SlotError| (error.to_string(), true))
}

/// The key of a medium for this slot: the one that opens it, or else any that names the vault,
/// which an attacker can write.
pub(super) fn seed_for<'a>(
    media: &'a MediaSecrets,
    alkv: &Alkv,
    slot: SlotId,
) -> Option<&'a SeedKey> {
    let keys = || media.seed_keys_of(alkv.uuid()).map(|found| &found.key);
    let opens = |key: &&SeedKey| alkv.open(slot, &mut UnlockKey::Seed(key)).is_ok();
    keys().find(opens).or_else(|| keys().next())
}

fn admitted(opened: OpenAlkv, vault: &VaultHandle, log: &InitLog) -> Result<OpenAlkv, VaultWait> {
    if let Err(error) = vault.admit(&opened) {
        let hint = "restart the machine";
        let text = format!("the vault cannot be opened: {error}");
        return Err(VaultWait::new(
            UnlockPrompt::Nothing,
            "vault-locked",
            text,
            hint,
        ));
    }
    if let Some(slot) = super::opening_slot(&opened) {
        log.info(format_args!(
            "the vault was opened by its slot {} ({})",
            slot.id.number(),
            slot.kind.name()
        ));
        vault.events().add(AuditEvent::Unlocked(slot));
    }
    Ok(opened)
}

/// Withdraws permissions of the first boot in the vault on a device. For that PID 1 opens the vault
/// once more: by its master key, which is kept until the first configuration is stored, or by a
/// slot that needs no typing. Returns what the vault still permits.
///
/// # Errors
/// Neither opens it now, or the disk answers with another vault or an older copy, or it cannot be
/// written. The next start tries again.
pub(crate) fn conclude(
    found: &LoadedCopies,
    ended: FirstBootPermissions,
    vault: &VaultHandle,
    media: &MediaSecrets,
    save: impl FnOnce(&OpenAlkv) -> Result<(), SlotError>,
) -> Result<FirstBootPermissions, String> {
    let mut open = reopened(found, vault, media)?;
    let in_use = vault.check_in_use(&open);
    in_use.map_err(|error| error.to_string())?;
    let changed = open.conclude(ended).map_err(|error| error.to_string())?;
    if changed {
        save(&open).map_err(|error| error.to_string())?;
    }
    Ok(open.pending())
}

/// Opens a vault without typed input, or returns the reason.
fn reopened(
    found: &LoadedCopies,
    vault: &VaultHandle,
    media: &MediaSecrets,
) -> Result<OpenAlkv, String> {
    if let Some(open) = vault.open_by_master_key(&found.newest) {
        return Ok(open);
    }
    let slots = found.newest.slots();
    let mut refusals = Vec::new();
    // PID 1 does not ask another node for its share just for this.
    for kind in UNATTENDED.into_iter().filter(|kind| *kind != SlotType::Kms) {
        let mut of_kind = slots.iter().filter(|slot| slot.kind() == kind);
        if of_kind.all(tpm_unlock::wants_pin) {
            continue;
        }
        match unattended(found, kind, vault, media) {
            Ok(open) => return Ok(open),
            Err((why, _)) => refusals.push(format!("{}: {why}", kind.name())),
        }
    }
    if refusals.is_empty() {
        refusals.push("no slot of it opens by itself".to_owned());
    }
    Err(refusals.join("; "))
}

impl VaultHandle {
    /// Waits as long as the next passphrase has to.
    pub(super) fn wait_for_turn(&self) {
        let wait = self.state().attempts.wait(now());
        std::thread::sleep(wait);
    }

    /// Counts wrong attempts from before this machine started.
    pub(super) fn recall_wrong(&self, wrong: u32) {
        self.state().attempts.recall(wrong, now());
    }

    #[cfg(test)]
    pub(super) fn wrong_count(&self) -> u32 {
        self.state().attempts.wrong_count()
    }

    /// Counts an input that is not what the console asked for, and that is the secret of no slot.
    pub(super) fn guessed_wrong(&self) {
        self.state().attempts.failed(now());
    }

    pub(super) fn was_right(&self) {
        self.state().attempts.succeeded();
    }

    pub(super) fn was_wrong(&self, slot: SlotName) {
        self.state().attempts.failed(now());
        self.events().add(AuditEvent::UnlockFailed(slot));
    }

    /// Records the refusal of a slot once, however often the slot is tried.
    fn refused_once(&self, slot: SlotName) {
        let mut state = self.state();
        if state.refused.contains(&slot) {
            return;
        }
        state.refused.push(slot);
        drop(state);
        self.events().add(AuditEvent::UnlockFailed(slot));
    }
}

fn now() -> Duration {
    Duration::from_millis(boot_ms())
}

/// Memory of the machine in KiB, from the first line of `/proc/meminfo`.
pub(super) fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = total.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use alknet_vault::SecretStr;

    use super::*;
    use crate::vault::WordsSource;

    #[test]
    fn what_is_asked_is_what_would_help() {
        let none = UnlockCredentials::default();
        let typed = UnlockCredentials {
            passphrase: Some(SecretStr::from("wrong")),
            ..UnlockCredentials::default()
        };
        for (passphrase, pin, offer, ask, other_way) in [
            (false, PinEntry::No, &none, UnlockPrompt::Nothing, false),
            (true, PinEntry::No, &none, UnlockPrompt::Passphrase, false),
            (false, PinEntry::Now, &none, UnlockPrompt::Pin, false),
            (true, PinEntry::Now, &none, UnlockPrompt::Pin, true),
            // The console does not ask for something else after a wrong passphrase, which the TPM
            // would count.
            (true, PinEntry::Now, &typed, UnlockPrompt::Passphrase, true),
            (
                true,
                PinEntry::Later,
                &none,
                UnlockPrompt::Passphrase,
                false,
            ),
            (false, PinEntry::Later, &none, UnlockPrompt::Pin, false),
        ] {
            let waiting = waiting(passphrase, pin, offer, &["why".to_owned()]);
            assert_eq!((waiting.ask, waiting.other_way), (ask, other_way));
            assert!(waiting.problem.text.ends_with(": why"));
            assert_eq!(waiting.retries, ask == UnlockPrompt::Nothing);
        }
    }

    #[test]
    fn what_a_new_vault_is_made_of_is_kept_from_question_to_question() {
        let secret = |text: &str| Some(SecretStr::from(text));
        let tried = UnlockCredentials {
            passphrase: secret("wrong"),
            new_passphrase: secret("new"),
            pin: secret("1"),
            knows_of_age: true,
            new_pin: secret("2"),
            words: Some(WordsSource::Make),
            pasted: None,
        };
        let mut offer = UnlockCredentials {
            new_pin: secret("3"),
            ..UnlockCredentials::default()
        };
        offer.take_back(tried);
        assert!(offer.passphrase.is_none() && offer.pin.is_none() && !offer.knows_of_age);
        assert!(offer.words.is_some() && offer.new_passphrase.is_some());
        let pin = offer.new_pin.as_ref().expect("typed last");
        assert_eq!(pin.expose(), "3");
        // They stay until no answer follows for too long.
        assert!(offer.forget_new());
        assert!(offer.words.is_none() && offer.new_passphrase.is_none() && offer.new_pin.is_none());
        assert!(!offer.forget_new());
    }
}
