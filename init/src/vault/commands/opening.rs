//! Opening the vault once more, for a change of it.

use alknet_provisioning::Secrets;
use alknet_vault::SecretStr;
use alknet_vault::audit::Event;
use alknet_vault::slots::{Alkv, Key, OpenAlkv, SlotError, SlotId, SlotType, memory_cap_kib};

use super::{Attempt, Halt, Place, Session, Want, find, has_passphrase, has_pin, on_disk};
use crate::data;
use crate::vault::by_tpm;
use crate::vault::open::{UNATTENDED, by_passphrase, memory_kib, seed_for, unattended};

impl Session {
    /// The vault, by what needs nobody, else by the passphrase that was typed.
    pub(super) fn opened(&mut self, place: &Place<'_>) -> Attempt<&mut OpenAlkv> {
        if self.open.is_none() {
            self.open = match by_itself(place, self.without_shares)? {
                Some(open) => Some(open),
                None => Some(self.typed_open(place)?),
            };
        }
        self.held(place)
    }

    /// The same by a passphrase or a PIN, whatever else opened it.
    pub(super) fn opened_by_typing(&mut self, place: &Place<'_>) -> Attempt<&mut OpenAlkv> {
        if !self.open.as_ref().is_some_and(was_typed) {
            self.open = Some(self.typed_open(place)?);
        }
        self.held(place)
    }

    /// An older copy that is put back while the machine runs may have slots that its owner removed, and another vault
    /// those of the attacker that made it, also under the id of this one.
    fn held(&mut self, place: &Place<'_>) -> Attempt<&mut OpenAlkv> {
        let open = self.open.as_mut();
        let open = open.ok_or_else(|| Halt::refused("the vault is not open"))?;
        let in_use = place.keeper.check_in_use(open);
        in_use.map_err(|which| Halt::refused(format_args!("{which}; {}", which.hint())))?;
        Ok(open)
    }

    fn typed_open(&mut self, place: &Place<'_>) -> Attempt<OpenAlkv> {
        let found = data::copies(place.device).load()?;
        let found = found.ok_or(SlotError::Nothing)?;
        // What opened before says what can be typed; else it is tried.
        let alkv = self.open.as_ref().map_or(&found.newest, OpenAlkv::alkv);
        let (passphrase, pin) = (has_passphrase(alkv), has_pin(alkv));
        if !passphrase {
            if !pin {
                return Err(Halt::refused(
                    "nothing here opens the vault for a change; attach the medium that opens it",
                ));
            }
            let Some(pin) = self.typed.pin.take() else {
                return Err(Halt::wants(Want::Pin));
            };
            return by_tpm::with_pin(&found, &pin).map_err(|why| Halt::Wants(Want::Pin, why));
        }
        let Some(passphrase) = self.typed.opening.take() else {
            return Err(Halt::wants(Want::Passphrase));
        };
        by_passphrase(&found, &passphrase, place.keeper, |_| true)
            .map_err(|error| wrong(error, Want::Passphrase))
    }

    /// What was typed for a slot, which opened it.
    pub(super) fn of_slot(&self, id: SlotId) -> Result<SecretStr, String> {
        let mut given = self.typed.of_slots.iter();
        let given = given.find(|given| given.id == id && given.is_right);
        let secret = given.and_then(|given| given.secret.as_ref());
        let secret = secret.ok_or_else(|| "nothing was typed for it".to_owned())?;
        Ok(SecretStr::from(secret.expose()))
    }

    /// Whether the passphrase that was typed for a slot opens it; `false` where somebody has nothing to
    /// type.
    pub(super) fn slot_by_typing(
        &mut self,
        place: &Place<'_>,
        id: SlotId,
        or_lose: bool,
    ) -> Attempt<bool> {
        self.slot_by(
            place,
            id,
            Want::PassphraseOf { id, or_lose },
            |alkv, typed| {
                let mut key = Key::Passphrase {
                    passphrase: typed,
                    cap_kib: memory_cap_kib(memory_kib()),
                };
                place.keeper.wait_for_turn();
                match alkv.open(id, &mut key) {
                    Ok(open) => {
                        place.keeper.was_right();
                        Ok(open)
                    }
                    Err(error) => {
                        place.keeper.was_wrong(super::name(&find(alkv, id)?));
                        Err(wrong(error, Want::PassphraseOf { id, or_lose }))
                    }
                }
            },
        )
    }

    /// The same with a PIN. The TPM counts wrong ones.
    pub(super) fn slot_by_pin(
        &mut self,
        place: &Place<'_>,
        id: SlotId,
        or_lose: bool,
    ) -> Attempt<bool> {
        self.slot_by(place, id, Want::PinOf { id, or_lose }, |alkv, typed| {
            let slot = find(alkv, id)?;
            by_tpm::slot_with_pin(alkv, &slot, typed).map_err(|why| {
                let failed = Event::UnlockFailed(super::name(&slot));
                place.keeper.events().add(failed);
                Halt::Wants(Want::PinOf { id, or_lose }, why)
            })
        })
    }

    fn slot_by(
        &mut self,
        place: &Place<'_>,
        id: SlotId,
        want: Want,
        open: impl FnOnce(&Alkv, &SecretStr) -> Attempt<OpenAlkv>,
    ) -> Attempt<bool> {
        let given = self.typed.of_slots.iter().position(|given| given.id == id);
        let Some(at) = given else {
            return Err(Halt::wants(want));
        };
        let given = &self.typed.of_slots[at];
        let Some(typed) = &given.secret else {
            return Ok(false);
        };
        if given.is_right {
            return Ok(true);
        }
        match open(&on_disk(place)?, typed) {
            Ok(open) => {
                self.typed.of_slots[at].is_right = true;
                self.open.get_or_insert(open);
                Ok(true)
            }
            Err(halt) => {
                self.typed.of_slots.remove(at);
                Err(halt)
            }
        }
    }
}

/// The vault by a slot that needs nobody. Other nodes that have a share of the key are asked first, unless
/// somebody goes on `without_shares`.
fn by_itself(place: &Place<'_>, without_shares: bool) -> Attempt<Option<OpenAlkv>> {
    let found = data::copies(place.device).load()?;
    let found = found.ok_or(SlotError::Nothing)?;
    let slots = found.newest.slots();
    let mut kinds = slots.iter().map(|slot| slot.kind());
    let media = if kinds.any(|kind| kind == SlotType::Provisioning) {
        place.sources.secrets()
    } else {
        Secrets::default()
    };
    for kind in UNATTENDED {
        let mut of_kind = slots.iter().filter(|slot| slot.kind() == kind);
        if of_kind.any(|slot| !by_tpm::wants_pin(slot))
            && let Ok(open) = unattended(&found, kind, place.keeper, &media)
        {
            return Ok(Some(open));
        }
    }
    // Trying their slots was asking for them.
    if !without_shares && place.keeper.escrow().has_unasked() {
        return Err(Halt::wants(Want::Share));
    }
    Ok(None)
}

/// Whether somebody typed what opened it.
fn was_typed(open: &OpenAlkv) -> bool {
    let mut slots = open.alkv().slots().iter();
    let by = slots.find(|slot| slot.id() == open.opened_by());
    by.is_some_and(|slot| !slot.kind().is_unattended() || by_tpm::wants_pin(slot))
}

/// A key that does not fit is asked for again; anything else is told.
fn wrong(error: SlotError, again: Want) -> Halt {
    match error {
        SlotError::WrongKey(_) => Halt::Wants(again, "that passphrase is wrong".to_owned()),
        other => other.into(),
    }
}

/// Whether a slot that needs nobody opens now.
pub(super) fn opens_by_itself(place: &Place<'_>, id: SlotId, kind: SlotType) -> Attempt<()> {
    let alkv = on_disk(place)?;
    let media = place.sources.secrets();
    let opened = match kind {
        SlotType::None => alkv.open(id, &mut Key::Stored),
        SlotType::Provisioning => {
            let seed = seed_for(&media, &alkv, id);
            let seed = seed
                .ok_or_else(|| Halt::refused("no medium with a seed.key of this vault is there"))?;
            alkv.open(id, &mut Key::Seed(seed))
        }
        SlotType::Tpm2 => {
            let mut tpm = crate::tpm::source(None).map_err(Halt::refused)?;
            let opened = alkv.open(id, &mut Key::Source(kind, &mut tpm));
            if let (Err(_), Some(error)) = (&opened, tpm.take_error()) {
                return Err(Halt::refused(error));
            }
            opened
        }
        other => {
            let text = format!("slots of type {} cannot be tried here", other.name());
            return Err(Halt::Refused(text));
        }
    };
    opened.map(drop).map_err(Halt::refused)
}
