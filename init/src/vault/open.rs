//! Opening a vault that is there: by what needs nobody first, then by what somebody typed.

use std::time::Duration;

use alknet_provisioning::Secrets;
use alknet_vault::SecretStr;
use alknet_vault::audit::{Event, SlotName};
use alknet_vault::slots::{Found, Key, OpenAlkv, SlotError, SlotParams, SlotType, memory_cap_kib};

use super::{Ask, Keeper, Offer, Waiting};
use crate::{log::Log, stage::boot_ms, tpm};

/// In which order slots are tried that need nobody.
pub(super) const UNATTENDED: [SlotType; 3] =
    [SlotType::Tpm2, SlotType::Provisioning, SlotType::None];

/// Opens `found`, and puts its words where the node finds them.
pub(crate) fn open(
    found: &Found,
    keeper: &Keeper,
    offer: &Offer,
    media: &Secrets,
    log: &Log,
) -> Result<OpenAlkv, Waiting> {
    keeper.note(&found.newest);
    let slots = |kind| {
        let mut slots = found.newest.slots().iter();
        slots.find(move |slot| slot.kind() == kind)
    };
    let mut refusals = Vec::new();
    for kind in UNATTENDED {
        let Some(slot) = slots(kind) else { continue };
        if matches!(slot.params(), SlotParams::Tpm2(params) if params.pin()) {
            refusals.push("tpm2: it needs a PIN".to_owned());
            continue;
        }
        match unattended(found, kind, media) {
            Ok(opened) => return admitted(opened, keeper, log),
            Err(why) => {
                let id = slot.id();
                keeper.refused_once(SlotName { kind, id });
                refusals.push(format!("{}: {why}", kind.name()));
            }
        }
    }
    let typed = slots(SlotType::Passphrase);
    if let (Some(_), Some(passphrase)) = (typed, &offer.passphrase) {
        match by_passphrase(found, passphrase, keeper) {
            Ok(opened) => return admitted(opened, keeper, log),
            Err(SlotError::WrongKey(_)) => refusals = vec!["that passphrase is wrong".to_owned()],
            Err(error) => refusals = vec![error.to_string()],
        }
    }
    let mut waiting = waiting(typed.is_some(), &refusals);
    waiting.retries |= slots(SlotType::Provisioning).is_some();
    Err(waiting)
}

/// Opens it by what somebody typed, which waits where wrong passphrases came before, and is written
/// down where it is wrong.
pub(super) fn by_passphrase(
    found: &Found,
    passphrase: &SecretStr,
    keeper: &Keeper,
) -> Result<OpenAlkv, SlotError> {
    keeper.wait_for_turn();
    let mut key = Key::Passphrase {
        passphrase,
        cap_kib: memory_cap_kib(memory_kib()),
    };
    let opened = found.open(&mut key);
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

fn waiting(typed: bool, refusals: &[String]) -> Waiting {
    let why = if refusals.is_empty() {
        "the vault is locked".to_owned()
    } else {
        format!("the vault is locked: {}", refusals.join("; "))
    };
    if typed {
        let hint = "type the passphrase on the console";
        return Waiting::new(Ask::Passphrase, "vault-locked", why, hint);
    }
    let hint = "attach the medium that opens it; it is tried again by itself. Without it only a \
                factory reset and the words help";
    Waiting::new(Ask::Nothing, "vault-locked", why, hint)
}

pub(super) fn unattended(
    found: &Found,
    kind: SlotType,
    media: &Secrets,
) -> Result<OpenAlkv, String> {
    let opened = match kind {
        SlotType::Tpm2 => {
            let mut tpm = tpm::source().map_err(|error| error.to_string())?;
            let opened = found.open(&mut Key::Source(kind, &mut tpm));
            if let (Err(_), Some(error)) = (&opened, tpm.take_error()) {
                return Err(error.to_string());
            }
            opened
        }
        SlotType::Provisioning => {
            let seed = media.seed_key_of(found.newest.uuid());
            let seed = seed.ok_or_else(|| "no medium with its seed.key is attached".to_owned())?;
            found.open(&mut Key::Seed(seed))
        }
        _ => found.open(&mut Key::Stored),
    };
    opened.map_err(|error: SlotError| error.to_string())
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

impl Keeper {
    /// Waits as long as the next passphrase has to.
    pub(super) fn wait_for_turn(&self) {
        let wait = self.state().attempts.wait(now());
        std::thread::sleep(wait);
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
