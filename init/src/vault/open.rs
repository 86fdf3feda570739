//! Opening a vault that is there: by what needs nobody first, then by what somebody typed.

use std::time::Duration;

use alknet_provisioning::Secrets;
use alknet_tpm::TpmError;
use alknet_vault::SecretStr;
use alknet_vault::audit::{Event, SlotName};
use alknet_vault::slots::{
    Alkv, Found, Key, OpenAlkv, Pending, SeedKey, SlotError, SlotId, SlotType, memory_cap_kib,
};

use super::{Ask, Keeper, Offer, Waiting, by_tpm};
use crate::{log::Log, stage::boot_ms, tpm};

/// In which order slots are tried that need nobody.
pub(super) const UNATTENDED: [SlotType; 4] = [
    SlotType::Tpm2,
    SlotType::Provisioning,
    SlotType::Kms,
    SlotType::None,
];

/// Opens `found`, and puts its words where the node finds them if `permits` what it says inside: else they go nowhere.
pub(crate) fn open(
    found: &Found,
    keeper: &Keeper,
    offer: &Offer,
    media: &Secrets,
    log: &Log,
    permits: &dyn Fn(&OpenAlkv) -> Result<(), Waiting>,
) -> Result<OpenAlkv, Waiting> {
    let admitted = |opened: OpenAlkv| {
        permits(&opened)?;
        admitted(opened, keeper, log)
    };
    let slots = |kind| {
        let slots = found.newest.slots().iter();
        slots.filter(move |slot| slot.kind() == kind)
    };
    let mut refusals = Vec::new();
    for kind in UNATTENDED {
        let Some(slot) = slots(kind).find(|slot| !by_tpm::wants_pin(slot)) else {
            continue;
        };
        match unattended(found, kind, keeper, media) {
            Ok(opened) => return admitted(opened),
            Err((why, counts)) => {
                let id = slot.id();
                if counts {
                    keeper.refused_once(SlotName { kind, id });
                }
                refusals.push(format!("{}: {why}", kind.name()));
            }
        }
    }
    let by_pin = slots(SlotType::Tpm2).find(|slot| by_tpm::wants_pin(slot));
    if let (Some(slot), Some(pin)) = (by_pin, &offer.pin) {
        match by_tpm::with_pin(found, pin) {
            Ok(opened) => return admitted(opened),
            Err(why) => {
                let (kind, id) = (SlotType::Tpm2, slot.id());
                let name = SlotName { kind, id };
                keeper.events().add(Event::UnlockFailed(name));
                refusals = vec![why];
            }
        }
    }
    let typed = slots(SlotType::Passphrase).next();
    if let (Some(_), Some(passphrase)) = (typed, &offer.passphrase) {
        match by_passphrase(found, passphrase, keeper, |_| true) {
            Ok(opened) => return admitted(opened),
            Err(SlotError::WrongKey(_)) => refusals = vec!["that passphrase is wrong".to_owned()],
            Err(error) => refusals = vec![error.to_string()],
        }
    }
    let pin = match by_pin.map(|slot| (slot, by_tpm::obstacle(&found.newest))) {
        None => Typing::No,
        Some((_, None)) => Typing::Now,
        Some((slot, Some(error))) => {
            let (kind, id) = (SlotType::Tpm2, slot.id());
            keeper.refused_once(SlotName { kind, id });
            let why = error.to_string();
            if !refusals.contains(&why) {
                refusals.push(why);
            }
            match error {
                TpmError::LockedOut(_) => Typing::Later,
                _ => Typing::No,
            }
        }
    };
    let mut waiting = waiting(typed.is_some(), pin, offer, &refusals);
    let kms = slots(SlotType::Kms).next().is_some();
    waiting.retries |= kms || slots(SlotType::Provisioning).next().is_some();
    if kms && waiting.ask == Ask::Nothing {
        waiting.problem.hint = HINT_KMS.to_owned();
    } else if tpm::is_closed() && waiting.ask == Ask::Nothing {
        waiting.problem.hint = HINT_CLOSED.to_owned();
    }
    Err(waiting)
}

/// What to do where another node keeps a share of the key, and nothing can be typed.
const HINT_KMS: &str = "the node that keeps a share of the key is asked again by itself; an administrator \
                        of it sees who waits with 'alknet escrow list'";

/// What to do where the TPM opens it, and nothing can be typed.
const HINT_CLOSED: &str = "restart the machine";

/// Opens it by what somebody typed, which waits where wrong passphrases came before, and is written
/// down where it is wrong. A passphrase of a vault that does not count (`counts`) is wrong.
pub(super) fn by_passphrase(
    found: &Found,
    passphrase: &SecretStr,
    keeper: &Keeper,
    counts: impl FnOnce(&OpenAlkv) -> bool,
) -> Result<OpenAlkv, SlotError> {
    keeper.wait_for_turn();
    let mut key = Key::Passphrase {
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
        (Ok(_), _) => keeper.was_right(),
        (Err(_), Some(slot)) => keeper.was_wrong(SlotName {
            kind,
            id: slot.id(),
        }),
        (Err(_), None) => {}
    }
    opened
}

/// Whether somebody can type a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typing {
    Later,
    No,
    Now,
}

fn waiting(passphrase: bool, pin: Typing, offer: &Offer, refusals: &[String]) -> Waiting {
    let why = if refusals.is_empty() {
        "the vault is locked".to_owned()
    } else {
        format!("the vault is locked: {}", refusals.join("; "))
    };
    let new = |ask, hint| Waiting::new(ask, "vault-locked", why.clone(), hint);
    match (pin, passphrase) {
        // Who typed a passphrase is asked for it again.
        (Typing::Now, true) if offer.passphrase.is_some() => {
            let hint = "type the passphrase on the console, or Enter for the PIN";
            new(Ask::Passphrase, hint).with_other_way()
        }
        (Typing::Now, true) => {
            let hint = "type the PIN on the console, or Enter for the passphrase";
            new(Ask::Pin, hint).with_other_way()
        }
        (Typing::Now, false) => new(Ask::Pin, "type the PIN on the console"),
        (_, true) => new(Ask::Passphrase, "type the passphrase on the console"),
        (Typing::Later, false) => {
            let hint =
                "leave the machine on until the TPM takes a PIN again, then type it on the console";
            new(Ask::Pin, hint)
        }
        (Typing::No, false) => {
            let hint = "attach the medium that opens it; it is tried again by itself. Without it only \
                        a factory reset and the words help";
            new(Ask::Nothing, hint)
        }
    }
}

/// Else why not, and whether that is worth a line of the vault's log.
pub(super) fn unattended(
    found: &Found,
    kind: SlotType,
    keeper: &Keeper,
    media: &Secrets,
) -> Result<OpenAlkv, (String, bool)> {
    let opened = match kind {
        SlotType::Kms => {
            let mut source = keeper.escrow().source();
            let opened = found.open(&mut Key::Source(kind, &mut source));
            // Whom nobody has asked yet has refused nothing.
            if let Err(SlotError::Kek { .. }) = opened {
                return Err((source.refusals(), source.was_refused()));
            }
            opened
        }
        SlotType::Tpm2 => return by_tpm::unattended(found).map_err(|why| (why, true)),
        SlotType::Provisioning => {
            let mut refused = None;
            for seed in media.seed_keys_of(found.newest.uuid()) {
                match found.open(&mut Key::Seed(&seed.key)) {
                    Ok(open) => return Ok(open),
                    // That an attacker changed the vault is worth more than that a key is another's.
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
        _ => found.open(&mut Key::Stored),
    };
    opened.map_err(|error: SlotError| (error.to_string(), true))
}

/// The key of a medium for this slot: the one that opens it, else any that names the vault, which anybody can write.
pub(super) fn seed_for<'a>(media: &'a Secrets, alkv: &Alkv, slot: SlotId) -> Option<&'a SeedKey> {
    let keys = || media.seed_keys_of(alkv.uuid()).map(|found| &found.key);
    let opens = |key: &&SeedKey| alkv.open(slot, &mut Key::Seed(key)).is_ok();
    keys().find(opens).or_else(|| keys().next())
}

fn admitted(opened: OpenAlkv, keeper: &Keeper, log: &Log) -> Result<OpenAlkv, Waiting> {
    if let Err(error) = keeper.admit(&opened) {
        let hint = "restart the machine";
        let text = format!("the vault cannot be opened: {error}");
        return Err(Waiting::new(Ask::Nothing, "vault-locked", text, hint));
    }
    if let Some(slot) = super::opening_slot(&opened) {
        log.info(format_args!(
            "the vault was opened by its slot {} ({})",
            slot.id.number(),
            slot.kind.name()
        ));
        keeper.events().add(Event::Unlocked(slot));
    }
    Ok(opened)
}

/// Withdraws permissions of the first boot in the vault on a device, which is opened once more for that: by its master
/// key, which is kept until the first configuration is stored, or by a slot that needs no typing. Answers what the vault
/// still permits.
///
/// # Errors
/// Neither opens it now, or the disk answers with another vault or an older copy, or it cannot be written. The next
/// start tries again.
pub(crate) fn conclude(
    found: &Found,
    ended: Pending,
    keeper: &Keeper,
    media: &Secrets,
    save: impl FnOnce(&OpenAlkv) -> Result<(), SlotError>,
) -> Result<Pending, String> {
    let mut open = reopened(found, keeper, media)?;
    let in_use = keeper.check_in_use(&open);
    in_use.map_err(|error| error.to_string())?;
    let changed = open.conclude(ended).map_err(|error| error.to_string())?;
    if changed {
        save(&open).map_err(|error| error.to_string())?;
    }
    Ok(open.pending())
}

/// Opens a vault without anything typed, or says why not.
fn reopened(found: &Found, keeper: &Keeper, media: &Secrets) -> Result<OpenAlkv, String> {
    if let Some(open) = keeper.open_by_master_key(&found.newest) {
        return Ok(open);
    }
    let slots = found.newest.slots();
    let mut refusals = Vec::new();
    // Another node is not asked for its share just for this.
    for kind in UNATTENDED.into_iter().filter(|kind| *kind != SlotType::Kms) {
        let mut of_kind = slots.iter().filter(|slot| slot.kind() == kind);
        if of_kind.all(by_tpm::wants_pin) {
            continue;
        }
        match unattended(found, kind, keeper, media) {
            Ok(open) => return Ok(open),
            Err((why, _)) => refusals.push(format!("{}: {why}", kind.name())),
        }
    }
    if refusals.is_empty() {
        refusals.push("no slot of it opens by itself".to_owned());
    }
    Err(refusals.join("; "))
}

impl Keeper {
    /// Waits as long as the next passphrase has to.
    pub(super) fn wait_for_turn(&self) {
        let wait = self.state().attempts.wait(now());
        std::thread::sleep(wait);
    }

    /// So many attempts were wrong before this machine started.
    pub(super) fn recall_wrong(&self, wrong: u32) {
        self.state().attempts.recall(wrong, now());
    }

    #[cfg(test)]
    pub(super) fn wrong(&self) -> u32 {
        self.state().attempts.wrong()
    }

    /// Somebody typed something else than what was asked for, and it is no slot's.
    pub(super) fn guessed_wrong(&self) {
        self.state().attempts.failed(now());
    }

    pub(super) fn was_right(&self) {
        self.state().attempts.succeeded();
    }

    pub(super) fn was_wrong(&self, slot: SlotName) {
        self.state().attempts.failed(now());
        self.events().add(Event::UnlockFailed(slot));
    }

    /// A slot that does not open is tried again and again, and written down once.
    fn refused_once(&self, slot: SlotName) {
        let mut state = self.state();
        if state.refused.contains(&slot) {
            return;
        }
        state.refused.push(slot);
        drop(state);
        self.events().add(Event::UnlockFailed(slot));
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
    use crate::vault::Words;

    #[test]
    fn what_is_asked_is_what_would_help() {
        let none = Offer::default();
        let typed = Offer {
            passphrase: Some(SecretStr::from("wrong")),
            ..Offer::default()
        };
        for (passphrase, pin, offer, ask, other_way) in [
            (false, Typing::No, &none, Ask::Nothing, false),
            (true, Typing::No, &none, Ask::Passphrase, false),
            (false, Typing::Now, &none, Ask::Pin, false),
            (true, Typing::Now, &none, Ask::Pin, true),
            // Who typed a passphrase is not asked for something else, which the TPM would count.
            (true, Typing::Now, &typed, Ask::Passphrase, true),
            (true, Typing::Later, &none, Ask::Passphrase, false),
            (false, Typing::Later, &none, Ask::Pin, false),
        ] {
            let waiting = waiting(passphrase, pin, offer, &["why".to_owned()]);
            assert_eq!((waiting.ask, waiting.other_way), (ask, other_way));
            assert!(waiting.problem.text.ends_with(": why"));
            assert_eq!(waiting.retries, ask == Ask::Nothing);
        }
    }

    #[test]
    fn what_a_new_vault_is_made_of_is_kept_from_question_to_question() {
        let secret = |text: &str| Some(SecretStr::from(text));
        let tried = Offer {
            passphrase: secret("wrong"),
            new_passphrase: secret("new"),
            pin: secret("1"),
            new_pin: secret("2"),
            words: Some(Words::Make),
            pasted: None,
        };
        let mut offer = Offer {
            new_pin: secret("3"),
            ..Offer::default()
        };
        offer.keep(tried);
        assert!(offer.passphrase.is_none() && offer.pin.is_none());
        assert!(offer.words.is_some() && offer.new_passphrase.is_some());
        let pin = offer.new_pin.as_ref().expect("typed last");
        assert_eq!(pin.expose(), "3");
        // Until no answer follows for too long.
        assert!(offer.forget_new());
        assert!(offer.words.is_none() && offer.new_passphrase.is_none() && offer.new_pin.is_none());
        assert!(!offer.forget_new());
    }
}
