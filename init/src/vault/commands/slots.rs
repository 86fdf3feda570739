//! The commands that list, add, remove and try slots.

use alknet_provisioning::{NEXT, PutSeedKeyError, UpdatePrograms};
use alknet_tpm::TpmPin;
use alknet_tpm::predict::file_digest;
use alknet_vault::audit::AuditEvent;
use alknet_vault::slots::{
    Alkv, Argon2Params, Consent, KeySlot, NewSlot, SeedKey, SlotId, SlotParams, SlotType,
    UnlockKey, memory_cap_kib,
};
use data_encoding::HEXLOWER;

use super::{
    Attempt, CommandContext, CommandPrompt, CommandSession, NeedInput, find, name, on_disk,
    opening, save,
};
use crate::tpm;
use crate::vault::first_boot::cost;
use crate::vault::open::memory_kib;
use crate::vault::tpm_unlock;

impl CommandSession {
    pub(super) fn slot_add(
        &mut self,
        place: &CommandContext<'_>,
        kind: SlotType,
    ) -> Attempt<Vec<String>> {
        self.authorised(place)?;
        match kind {
            SlotType::None => {
                self.confirmed(
                    &["A copy of the disk will have the keys: for development only."],
                    "UNSEAL",
                )?;
                self.add(place, NewSlot::None)
            }
            SlotType::Passphrase => self.add_passphrase(place),
            SlotType::Provisioning => self.add_provisioning(place),
            SlotType::Tpm2 => self.add_tpm2(place, None),
            other => Err(NeedInput::Refused(format!(
                "slots of type {} are not made at the console",
                other.name()
            ))),
        }
    }

    pub(super) fn slot_add_pin(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        self.authorised(place)?;
        let pin = self.new_pin(true)?;
        self.add_tpm2(place, pin.as_ref())
    }

    /// Adds a slot for the program that is to be started next. The slot of the running image stays:
    /// the way back is open until it is removed.
    pub(super) fn slot_add_next(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        self.authorised(place)?;
        let programs = place.sources.programs().map_err(NeedInput::refused)?;
        self.agreed_to(&programs)?;
        // A user who opened the vault by a PIN does not want the next image to open it without one.
        let wants_pin = super::has_pin(self.opened(place)?.alkv());
        let pin = self.new_pin(wants_pin)?;
        let open = self.opened(place)?;
        let id = tpm::add_slot_for(open, &programs, pin.as_ref()).map_err(NeedInput::refused)?;
        let added = find(open.alkv(), id)?;
        save(place, open)?;
        place
            .vault
            .events()
            .add(AuditEvent::SlotAdded(name(&added)));
        let text = format!(
            "slot {id} (tpm2) was added to the vault: it opens once {NEXT} ({}) was started in the place \
             of what runs",
            programs.next_from
        );
        place.log.info(&text);
        Ok(vec![text])
    }

    /// Shows for which program the vault will open. PID 1 reads the file again after the answer and
    /// compares it with what was shown, as a medium may be exchanged meanwhile.
    fn agreed_to(&mut self, programs: &UpdatePrograms) -> Attempt<()> {
        let digest = file_digest(&programs.next);
        if *self.typed.next.get_or_insert(digest) != digest {
            let text =
                format!("{NEXT} is another program than the one that was shown; begin again");
            return Err(NeedInput::refused(text));
        }
        let lines = [
            "The TPM will open the vault for this program; without a PIN it needs no person:"
                .to_owned(),
            format!(
                "{NEXT} of {}, {} bytes, SHA-256",
                programs.next_from,
                programs.next.len()
            ),
            HEXLOWER.encode(&digest),
        ];
        self.confirmed(&lines, "ADD")
    }

    /// Makes a slot for the running image, in place of a slot that stays shut or is not wanted any
    /// more.
    pub(super) fn slot_renew(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
    ) -> Attempt<Vec<String>> {
        self.authorised(place)?;
        let old = find(self.opened(place)?.alkv(), id)?;
        let pin = self.new_pin(tpm_unlock::wants_pin(&old))?;
        let open = self.opened(place)?;
        let new = tpm::renew_slot(open, id, pin.as_ref()).map_err(NeedInput::refused)?;
        let added = find(open.alkv(), new)?;
        save(place, open)?;
        let events = place.vault.events();
        events.add(AuditEvent::SlotAdded(name(&added)));
        events.add(AuditEvent::SlotRemoved(name(&old)));
        let text = format!("slot {new} (tpm2) is for what runs, in the place of slot {id}");
        place.log.info(&text);
        Ok(vec![text])
    }

    /// The PIN that the user typed twice, if one is wanted.
    fn new_pin(&mut self, is_wanted: bool) -> Attempt<Option<TpmPin>> {
        if !is_wanted {
            return Ok(None);
        }
        let Some(pin) = self.typed.new.take() else {
            return Err(NeedInput::wants(CommandPrompt::NewPin));
        };
        let pin = TpmPin::new(pin)
            .map_err(|error| NeedInput::Wants(CommandPrompt::NewPin, error.to_string()))?;
        Ok(Some(pin))
    }

    fn add_tpm2(
        &mut self,
        place: &CommandContext<'_>,
        pin: Option<&TpmPin>,
    ) -> Attempt<Vec<String>> {
        let sealed = tpm::seal(pin);
        let (kek, params) = sealed.map_err(|error| {
            NeedInput::Refused(format!("the TPM does not take the key: {error}"))
        })?;
        self.add(place, NewSlot::Tpm2(params, &kek))
    }

    fn add(&mut self, place: &CommandContext<'_>, slot: NewSlot<'_>) -> Attempt<Vec<String>> {
        let open = self.opened(place)?;
        let id = open.add(slot)?;
        let added = find(open.alkv(), id)?;
        save(place, open)?;
        place
            .vault
            .events()
            .add(AuditEvent::SlotAdded(name(&added)));
        let text = format!("slot {id} ({}) was added to the vault", added.kind().name());
        place.log.info(&text);
        Ok(vec![text])
    }

    fn add_passphrase(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        let Some(passphrase) = self.typed.new.take() else {
            return Err(NeedInput::wants(CommandPrompt::NewPassphrase));
        };
        let (cost, cap_kib) = affordable()?;
        let slot = NewSlot::Passphrase {
            passphrase: &passphrase,
            cost,
            cap_kib,
        };
        self.add(place, slot)
    }

    /// Puts the key on a medium first: without its key on a medium, a slot would be useless. It is
    /// always a new key: the id of the vault is no secret, and an attacker who wrote a key that
    /// names it knows that key.
    fn add_provisioning(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        let media = place.sources.secrets();
        let alkv = self.opened(place)?.alkv();
        let vault = alkv.uuid();
        let mut opened = None;
        for found in media.seed_keys_of(vault) {
            let opens = |slot: &&KeySlot| {
                let mut key = UnlockKey::Seed(&found.key);
                slot.kind() == SlotType::Provisioning && alkv.open(slot.id(), &mut key).is_ok()
            };
            let Some(slot) = alkv.slots().iter().find(opens) else {
                let text = format!(
                    "{} has a seed.key that names this vault and opens no slot of it, so another person may have \
                     written it; delete it there, or take that medium away",
                    found.source
                );
                return Err(NeedInput::Refused(text));
            };
            opened = Some(slot.id());
        }
        if let Some(id) = opened {
            let text = format!("the medium that is attached opens slot {id} already");
            return Err(NeedInput::Refused(text));
        }
        let seed = SeedKey::generate(vault)?;
        let put = place.sources.put(&seed, self.typed.confirmed);
        let source = match put {
            Ok(source) => source,
            Err(PutSeedKeyError::OnlyBoot(source)) => {
                let lines = [
                    format!(
                        "There is no other drive: the key would lie on the boot partition, {source}."
                    ),
                    "Where that is on the disk of the data, a copy of it has both.".to_owned(),
                ];
                self.confirmed(&lines, "BOOT")?;
                return Err(NeedInput::Refused("the boot partition is gone".to_owned()));
            }
            Err(error) => return Err(NeedInput::refused(error)),
        };
        let mut lines = self.add(place, NewSlot::Provisioning(&seed))?;
        lines.push(format!("its seed.key is on {source}"));
        Ok(lines)
    }

    pub(super) fn slot_remove(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
    ) -> Attempt<Vec<String>> {
        // A user who removes the passphrase cannot be asked for it afterwards.
        self.authorised(place)?;
        let consent = self.consent();
        let open = self.opened(place)?;
        let removed = find(open.alkv(), id)?;
        open.remove(id, consent)?;
        save(place, open)?;
        place
            .vault
            .events()
            .add(AuditEvent::SlotRemoved(name(&removed)));
        let text = format!("slot {id} ({}) was removed", removed.kind().name());
        place.log.info(&text);
        let old = "An old copy of the vault still opens by it; rekey makes such copies worthless.";
        Ok(vec![text, old.to_owned()])
    }

    pub(super) fn slot_test(
        &mut self,
        place: &CommandContext<'_>,
        id: SlotId,
    ) -> Attempt<Vec<String>> {
        let slot = find(&on_disk(place)?, id)?;
        match slot.kind() {
            SlotType::Passphrase => {
                if !self.slot_by_typing(place, id, false)? {
                    return Ok(vec![format!("slot {id} was not tried")]);
                }
            }
            SlotType::Tpm2 if tpm_unlock::wants_pin(&slot) => {
                tpm_unlock::check(&slot).map_err(NeedInput::refused)?;
                if !self.slot_by_pin(place, id, false)? {
                    return Ok(vec![format!("slot {id} was not tried")]);
                }
            }
            kind => opening::opens_by_itself(place, id, kind)?,
        }
        Ok(vec![format!("slot {id} ({}) opens", slot.kind().name())])
    }

    /// Replaces the passphrase that was typed by a new one, in one change of the vault.
    pub(super) fn slot_set(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        if !super::has_passphrase(&on_disk(place)?) {
            let text = "no slot is opened by a passphrase; 'slot add passphrase' makes one";
            return Err(NeedInput::refused(text));
        }
        self.opened_by_typing(place)?;
        let Some(passphrase) = self.typed.new.take() else {
            return Err(NeedInput::wants(CommandPrompt::NewPassphrase));
        };
        // This follows the opening by the typed one: Argon2id is measured only for a user who may
        // change it.
        let (cost, cap_kib) = affordable()?;
        let open = self.opened_by_typing(place)?;
        let old = open.opened_by();
        let removed = find(open.alkv(), old)?;
        let slot = NewSlot::Passphrase {
            passphrase: &passphrase,
            cost,
            cap_kib,
        };
        // One change: between a removal and an addition the vault might open by nothing.
        let new = open.replace(old, slot, Consent::None)?;
        let added = find(open.alkv(), new)?;
        save(place, open)?;
        let events = place.vault.events();
        events.add(AuditEvent::SlotAdded(name(&added)));
        events.add(AuditEvent::SlotRemoved(name(&removed)));
        let text = format!("the passphrase was changed: slot {new} in the place of slot {old}");
        place.log.info(&text);
        Ok(vec![text])
    }
}

/// The Argon2id cost that a passphrase may have on this machine, and the memory that it may use.
fn affordable() -> Attempt<(Argon2Params, u32)> {
    let cap_kib = memory_cap_kib(memory_kib());
    Ok((cost(cap_kib)?, cap_kib))
}

/// One line for each slot, with a mark at the one that opened the vault.
pub(super) fn lines(alkv: &Alkv, opened_by: Option<SlotId>) -> Vec<String> {
    let line = |slot: &KeySlot| {
        let more = match slot.params() {
            SlotParams::Kms(params) => format!("by {}", params.peer()),
            SlotParams::None { .. } => "the key lies beside it: UNSEALED".to_owned(),
            SlotParams::Passphrase { argon2, .. } => {
                format!("{} MiB, {} passes", argon2.kib() >> 10, argon2.passes())
            }
            SlotParams::Provisioning => "by the seed.key of a medium".to_owned(),
            SlotParams::Tpm2(params) => {
                let pcrs: Vec<String> = params.pcrs().iter().map(u8::to_string).collect();
                let pin = if params.pin() { ", and a PIN" } else { "" };
                format!("PCR {}{pin}", pcrs.join(" and "))
            }
            _ => String::new(),
        };
        let mark = if opened_by == Some(slot.id()) {
            "; opened the vault"
        } else {
            ""
        };
        format!(
            "slot {:<2} {:<12} {more}{mark}",
            slot.id().number(),
            slot.kind().name()
        )
    };
    alkv.slots().iter().map(line).collect()
}
