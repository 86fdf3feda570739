//! Opening a vault that is there: by what needs nobody first, then by what somebody typed.

use std::time::Duration;

use alknet_provisioning::Secrets;
use alknet_vault::audit::{Event, SlotName};
use alknet_vault::slots::{Found, Key, OpenAlkv, SlotError, SlotParams, SlotType, memory_cap_kib};

use super::{Ask, Keeper, Offer, Waiting};
use crate::{log::Log, stage::boot_ms, tpm};

/// In which order slots are tried that need nobody.
const UNATTENDED: [SlotType; 4] = [
    SlotType::Tpm2,
    SlotType::Provisioning,
    SlotType::Kms,
    SlotType::None,
];

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
        match unattended(found, kind, keeper, media) {
            Ok(opened) => return admitted(opened, keeper, log),
            Err((why, counts)) => {
                let id = slot.id();
                if counts {
                    keeper.refused_once(SlotName { kind, id });
                }
                refusals.push(format!("{}: {why}", kind.name()));
            }
        }
    }
    let typed = slots(SlotType::Passphrase);
    if let (Some(slot), Some(passphrase)) = (typed, &offer.passphrase) {
        std::thread::sleep(keeper.wait());
        let cap_kib = memory_cap_kib(memory_kib());
        let mut key = Key::Passphrase {
            passphrase,
            cap_kib,
        };
        match found.open(&mut key) {
            Ok(opened) => {
                keeper.state().attempts.succeeded();
                return admitted(opened, keeper, log);
            }
            Err(error) => {
                keeper.wrong();
                let kind = SlotType::Passphrase;
                let id = slot.id();
                keeper
                    .events()
                    .add(Event::UnlockFailed(SlotName { kind, id }));
                refusals = vec![match error {
                    SlotError::WrongKey(_) => "that passphrase is wrong".to_owned(),
                    other => other.to_string(),
                }];
            }
        }
    }
    let mut waiting = waiting(typed.is_some(), &refusals);
    waiting.retries |= slots(SlotType::Provisioning).is_some() || slots(SlotType::Kms).is_some();
    if slots(SlotType::Kms).is_some() && waiting.ask == Ask::Nothing {
        waiting.problem.hint = HINT_KMS.to_owned();
    }
    Err(waiting)
}

/// What to do where another node keeps a share of the key, and nothing can be typed.
const HINT_KMS: &str = "the node that keeps a share of the key is asked again by itself; an administrator \
                        of it sees who waits with 'alknet escrow list'";

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

/// Else why not, and whether that is worth a line of the vault's log.
fn unattended(
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
        SlotType::Tpm2 => {
            let mut tpm = tpm::source().map_err(|error| (error.to_string(), true))?;
            let opened = found.open(&mut Key::Source(kind, &mut tpm));
            if let (Err(_), Some(error)) = (&opened, tpm.take_error()) {
                return Err((error.to_string(), true));
            }
            opened
        }
        SlotType::Provisioning => {
            let seed = media.seed_key_of(found.newest.uuid());
            let seed = seed.ok_or_else(|| {
                let why = "no medium with its seed.key is attached";
                (why.to_owned(), true)
            })?;
            found.open(&mut Key::Seed(seed))
        }
        _ => found.open(&mut Key::Stored),
    };
    opened.map_err(|error: SlotError| (error.to_string(), true))
}

fn admitted(opened: OpenAlkv, keeper: &Keeper, log: &Log) -> Result<OpenAlkv, Waiting> {
    if let Err(error) = keeper.admit(&opened) {
        let hint = "restart the machine";
        let text = format!("the vault cannot be opened: {error}");
        return Err(Waiting::new(Ask::Nothing, "vault-locked", text, hint));
    }
    if let Some(kind) = super::slot_type(&opened) {
        let id = opened.opened_by();
        log.info(format_args!(
            "the vault was opened by its slot {} ({})",
            id.number(),
            kind.name()
        ));
        keeper.events().add(Event::Unlocked(SlotName { kind, id }));
    }
    Ok(opened)
}

impl Keeper {
    /// How long the next passphrase waits.
    fn wait(&self) -> Duration {
        self.state().attempts.wait(now())
    }

    fn wrong(&self) {
        self.state().attempts.failed(now());
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
