//! Opens the vault once more, for a change of it.

use alknet_provisioning::MediaSecrets;
use alknet_vault::SecretStr;
use alknet_vault::audit::AuditEvent;
use alknet_vault::slots::{Alkv, OpenAlkv, SlotError, SlotId, SlotType, UnlockKey, memory_cap_kib};

use super::{
    Attempt, CommandContext, CommandPrompt, CommandSession, NeedInput, find, has_passphrase,
    has_pin, on_disk,
};
use crate::data;
use crate::vault::open::{UNATTENDED, by_passphrase, memory_kib, seed_for, unattended};
use crate::vault::tpm_unlock;

impl CommandSession {
    /// The vault, opened by an unattended slot, or else by the passphrase or PIN that the user
    /// typed.
    pub(super) fn opened(&mut self, place: &CommandContext<'_>) -> Attempt<&mut OpenAlkv> {
        if self.open.is_none() {
            self.open = match by_itself(place, self.without_shares)? {
                Some(open) => Some(open),
                None => Some(self.typed_open(place)?),
            };
        }
        self.held(place)
    }

    /// The vault, opened by a passphrase or a PIN, whatever else opened it before.
    pub(super) fn opened_by_typing(
        &mut self,
        place: &CommandContext<'_>,
    ) -> Attempt<&mut OpenAlkv> {
        if !self.open.as_ref().is_some_and(was_typed) {
            self.open = Some(self.typed_open(place)?);
        }
        self.held(place)
    }

    /// Refuses a vault that is not the one in use. An older copy that an attacker puts back while
    /// the machine runs may have slots that the owner removed, and another vault has those of the
    /// attacker that made it, also under the id of this one.
    fn held(&mut self, place: &CommandContext<'_>) -> Attempt<&mut OpenAlkv> {
        let open = self.open.as_mut();
        let open = open.ok_or_else(|| NeedInput::refused("the vault is not open"))?;
        let in_use = place.vault.check_in_use(open);
        in_use.map_err(|which| NeedInput::refused(format_args!("{which}; {}", which.hint())))?;
        Ok(open)
    }

    fn typed_open(&mut self, place: &CommandContext<'_>) -> Attempt<OpenAlkv> {
        let found = data::copies(place.device).load()?;
        let found = found.ok_or(SlotError::Nothing)?;
        // The vault that opened before says what can be typed. Without one, the copy on the disk
        // says it.
        let alkv = self.open.as_ref().map_or(&found.newest, OpenAlkv::alkv);
        let (passphrase, pin) = (has_passphrase(alkv), has_pin(alkv));
        if !passphrase {
            if !pin {
                return Err(NeedInput::refused(
                    "nothing here opens the vault for a change; attach the medium that opens it",
                ));
            }
            // The PIN is taken, so that PID 1 asks again for a wrong one and does not try it twice:
            // the TPM counts.
            let Some(pin) = self.typed.pin.take() else {
                return Err(NeedInput::wants(CommandPrompt::Pin));
            };
            return tpm_unlock::with_pin(&found, &pin)
                .map_err(|why| NeedInput::Wants(CommandPrompt::Pin, why));
        }
        let Some(passphrase) = self.typed.opening.take() else {
            return Err(NeedInput::wants(CommandPrompt::Passphrase));
        };
        by_passphrase(&found, &passphrase, place.vault, |_| true)
            .map_err(|error| retry_or_refuse(error, CommandPrompt::Passphrase))
    }

    /// What the user typed for a slot, if it opened the slot.
    pub(super) fn of_slot(&self, id: SlotId) -> Result<SecretStr, String> {
        let mut given = self.typed.of_slots.iter();
        let given = given.find(|given| given.id == id && given.is_right);
        let secret = given.and_then(|given| given.secret.as_ref());
        let secret = secret.ok_or_else(|| "nothing was typed for it".to_owned())?;
        Ok(SecretStr::from(secret.expose()))
    }

    /// Whether the passphrase that the user typed for a slot opens it. `false` if the user has
    /// none.
    pub(super) fn slot_by_typing(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
        or_lose: bool,
    ) -> Attempt<bool> {
        self.slot_by(
            place,
            id,
            CommandPrompt::PassphraseOf { id, or_lose },
            |alkv, typed| {
                let mut key = UnlockKey::Passphrase {
                    passphrase: typed,
                    cap_kib: memory_cap_kib(memory_kib()),
                };
                place.vault.wait_for_turn();
                match alkv.open(id, &mut key) {
                    Ok(open) => {
                        place.vault.was_right();
                        Ok(open)
                    }
                    Err(error) => {
                        place.vault.was_wrong(super::name(&find(alkv, id)?));
                        Err(retry_or_refuse(
                            error,
                            CommandPrompt::PassphraseOf { id, or_lose },
                        ))
                    }
                }
            },
        )
    }

    /// Like `slot_by_typing`, with a PIN. The TPM counts wrong ones.
    pub(super) fn slot_by_pin(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
        or_lose: bool,
    ) -> Attempt<bool> {
        self.slot_by(
            place,
            id,
            CommandPrompt::PinOf { id, or_lose },
            |alkv, typed| {
                let slot = find(alkv, id)?;
                tpm_unlock::slot_with_pin(alkv, &slot, typed).map_err(|why| {
                    let failed = AuditEvent::UnlockFailed(super::name(&slot));
                    place.vault.events().add(failed);
                    NeedInput::Wants(CommandPrompt::PinOf { id, or_lose }, why)
                })
            },
        )
    }

    fn slot_by(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
        want: CommandPrompt,
        open: impl FnOnce(&Alkv, &SecretStr) -> Attempt<OpenAlkv>,
    ) -> Attempt<bool> {
        let given = self.typed.of_slots.iter().position(|given| given.id == id);
        let Some(at) = given else {
            return Err(NeedInput::wants(want));
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
                // A wrong one is forgotten, so that the next attempt asks again.
                self.typed.of_slots.remove(at);
                Err(halt)
            }
        }
    }
}

/// Opens the vault by an unattended slot. PID 1 first asks nodes that have a share of the key,
/// unless the user goes on `without_shares`.
pub(super) fn by_itself(
    place: &CommandContext<'_>,
    without_shares: bool,
) -> Attempt<Option<OpenAlkv>> {
    let found = data::copies(place.device).load()?;
    let found = found.ok_or(SlotError::Nothing)?;
    let slots = found.newest.slots();
    let mut kinds = slots.iter().map(|slot| slot.kind());
    let media = if kinds.any(|kind| kind == SlotType::Provisioning) {
        place.sources.secrets()
    } else {
        MediaSecrets::default()
    };
    for kind in UNATTENDED {
        let mut of_kind = slots.iter().filter(|slot| slot.kind() == kind);
        if of_kind.any(|slot| !tpm_unlock::wants_pin(slot))
            // A slot that does not open now is no error: the next kind may open.
            && let Ok(open) = unattended(&found, kind, place.vault, &media)
        {
            return Ok(Some(open));
        }
    }
    // Trying their slots made the requests for shares.
    if !without_shares && place.vault.escrow().has_unasked() {
        return Err(NeedInput::wants(CommandPrompt::Share));
    }
    Ok(None)
}

/// Whether a typed passphrase or PIN opened it.
fn was_typed(open: &OpenAlkv) -> bool {
    let mut slots = open.alkv().slots().iter();
    let by = slots.find(|slot| slot.id() == open.opened_by());
    by.is_some_and(|slot| !slot.kind().is_unattended() || tpm_unlock::wants_pin(slot))
}

/// PID 1 asks again after a wrong key. Any other error refuses the command.
fn retry_or_refuse(error: SlotError, again: CommandPrompt) -> NeedInput {
    match error {
        SlotError::WrongKey(_) => NeedInput::Wants(again, "that passphrase is wrong".to_owned()),
        other => other.into(),
    }
}

/// Whether an unattended slot opens now.
pub(super) fn opens_by_itself(
    place: &CommandContext<'_>,
    id: SlotId,
    kind: SlotType,
) -> Attempt<()> {
    let alkv = on_disk(place)?;
    let media = place.sources.secrets();
    let opened = match kind {
        SlotType::None => alkv.open(id, &mut UnlockKey::Stored),
        SlotType::Provisioning => {
            let seed = seed_for(&media, &alkv, id);
            let seed = seed.ok_or_else(|| {
                NeedInput::refused("no medium with a seed.key of this vault is there")
            })?;
            alkv.open(id, &mut UnlockKey::Seed(seed))
        }
        SlotType::Tpm2 => {
            let mut tpm = crate::tpm::source(None).map_err(NeedInput::refused)?;
            let opened = alkv.open(id, &mut UnlockKey::Source(kind, &mut tpm));
            if let (Err(_), Some(error)) = (&opened, tpm.take_error()) {
                return Err(NeedInput::refused(error));
            }
            opened
        }
        other => {
            let text = format!("slots of type {} cannot be tried here", other.name());
            return Err(NeedInput::Refused(text));
        }
    };
    opened.map(drop).map_err(NeedInput::refused)
}
