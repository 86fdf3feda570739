//! The verbs of key slots, and the status of a vault.

use std::cell::OnceCell;
use std::path::Path;

use alknet_vault::audit::AuditEvent;
use alknet_vault::credentials::VaultCredentials;
use alknet_vault::slots::{
    Alkv, Consent, KeySlot, SlotError, SlotId, SlotParams, SlotType, UnlockKey, VaultCopyId,
};
use alknet_vault::{SecretStr, VaultError};
use serde_json::{Value, json};

use crate::args::{
    CostArgs, DirArgs, RekeyArgs, SlotArg, SlotSetArgs, VaultOpenArgs, VaultStatusArgs,
};
use crate::new::{chosen_cost, new_secret, new_slot, write_file};
use crate::progress::ProgressMessage;
use crate::recorder::name_of;
use crate::vault_dir::{OpenVaultDir, VaultDir, cap_kib};
use crate::verbs::SlotVerb;
use crate::{VaultCli, VaultCliError};

impl VaultCli<'_> {
    pub(crate) fn slot(&mut self, verb: SlotVerb) -> Result<(), VaultCliError> {
        match verb {
            SlotVerb::Add {
                kind,
                out,
                open,
                cost,
            } => self.slot_add(kind, out.as_deref(), &open, cost),
            SlotVerb::List(vault_dir) => self.slot_list(&vault_dir),
            SlotVerb::Remove {
                id,
                i_have_the_mnemonic,
                open,
            } => self.slot_rm(id, consent(i_have_the_mnemonic), &open),
            SlotVerb::Set { id, set } => self.slot_set(id, &set),
            SlotVerb::Test { id, open } => self.slot_test(id, &open),
        }
    }

    pub(crate) fn status(&mut self, args: &VaultStatusArgs) -> Result<(), VaultCliError> {
        if args.node.is_some() {
            let text =
                "this program reads directories only; to ask a node, use 'alknet vault status'";
            return Err(VaultCliError::Usage(text.to_owned()));
        }
        let here = Path::new(".");
        // The status needs no key, so it can be read while another command holds the lock.
        let vault_dir = VaultDir::unlocked(args.dir.as_deref().unwrap_or(here));
        let found = vault_dir.load()?;
        let alkv = &found.newest;
        let records = vault_dir.records()?;
        let records = records.as_ref().map(in_use).transpose()?;
        let (version, count) = records.unwrap_or((2, 0));
        let damaged = match found.damaged {
            Some(VaultCopyId::A) => Some("A"),
            Some(VaultCopyId::B) => Some("B"),
            None => None,
        };
        let mut value = json!({
            "vault": alkv.uuid().to_string(),
            "state": "locked",
            "device": alkv.device().number(),
            "generation": alkv.generation(),
            "sealed": alkv.is_sealed(),
            "key_version": version,
            "records": count,
            "slots": slots_value(alkv),
        });
        value["damaged_copy"] = damaged.into();
        let mut text = format!(
            "vault       {}\nstate       locked\ndevice      {}\ngeneration  {}\n\
             key version {version}\nrecords     {count}\n{}",
            alkv.uuid(),
            alkv.device(),
            alkv.generation(),
            slots_text(alkv),
        );
        if let Some(copy) = damaged {
            text +=
                &format!("\ncopy {copy} is damaged; it is written again when the vault is opened");
        }
        if !alkv.is_sealed() {
            text += "\nUNSEALED: its key lies beside it; for development only";
        }
        self.print(&value, &text)
    }

    fn slot_set(&mut self, id: Option<SlotId>, args: &SlotSetArgs) -> Result<(), VaultCliError> {
        let mut opened = OpenVaultDir::open_typed(&args.open, id, self.ask)?;
        let cost = chosen_cost(args.cost)?;
        let passphrase = new_secret(self.ask, "new passphrase")?;
        // A passphrase slot has no seed, so the cell stays empty.
        let none = OnceCell::new();
        let (old, id) = (opened.alkv.opened_by(), opened.alkv.alkv().uuid());
        let slow = ProgressMessage::new("making the slot");
        let slot = new_slot(SlotArg::Passphrase, Some(&passphrase), &none, id, cost)?;
        let removed = find(opened.alkv.alkv(), old)?;
        let new = opened.alkv.replace(old, slot, Consent::None)?;
        drop(slow);
        let added = find(opened.alkv.alkv(), new)?;
        opened.save(AuditEvent::SlotAdded(name_of(&added)))?;
        // The removal is recorded once the vault without the slot is on the disk.
        opened.record(AuditEvent::SlotRemoved(name_of(&removed)));
        opened.finish()?;
        let value = json!({ "slot": new.number(), "was": old.number() });
        self.print(&value, &format!("slot {new} in the place of slot {old}"))
    }

    pub(crate) fn rekey(&mut self, args: &RekeyArgs) -> Result<(), VaultCliError> {
        let mut opened = OpenVaultDir::open(&args.open, self.ask)?;
        let vault_dir = &opened.vault_dir;
        let seed = vault_dir.seed_key(args.open.seed_key.as_deref())?;
        let slots: Vec<_> = opened.alkv.alkv().slots().to_vec();
        let remaining = slots.iter().filter(|slot| !args.lose.contains(&slot.id()));
        let mut typed = Vec::new();
        for slot in remaining
            .clone()
            .filter(|slot| slot.kind() == SlotType::Passphrase)
        {
            let what = format!("passphrase of slot {}", slot.id());
            typed.push((slot.id(), self.ask.secret(&what)?));
        }
        let mut keys = Vec::new();
        for slot in remaining {
            let key = match (slot.kind(), &seed) {
                (SlotType::None, _) => UnlockKey::Stored,
                (SlotType::Provisioning, Some(seed)) => UnlockKey::Seed(seed),
                (SlotType::Passphrase, _) => match typed.iter().find(|(id, _)| *id == slot.id()) {
                    Some((_, passphrase)) => passphrase_key(passphrase),
                    None => continue,
                },
                _ => continue,
            };
            keys.push((slot.id(), key));
        }
        let slow = ProgressMessage::new("wrapping the new key");
        let consent = consent(args.i_have_the_mnemonic);
        let next = opened.alkv.rekey(&mut keys, &args.lose, consent)?;
        drop(slow);
        // The passphrases are wiped before the vault is written.
        drop(keys);
        opened.alkv = next;
        opened.save(AuditEvent::Rekeyed)?;
        for lost in slots.iter().filter(|slot| args.lose.contains(&slot.id())) {
            opened.record(AuditEvent::SlotRemoved(name_of(lost)));
        }
        let generation = opened.alkv.alkv().generation();
        opened.finish()?;
        let lost: Vec<_> = args.lose.iter().map(|id| id.number()).collect();
        let value = json!({ "generation": generation, "lost": lost });
        self.print(&value, &format!("generation {generation}"))
    }

    fn slot_add(
        &mut self,
        kind: SlotArg,
        out: Option<&Path>,
        open: &VaultOpenArgs,
        cost: CostArgs,
    ) -> Result<(), VaultCliError> {
        if out.is_some() && kind != SlotArg::Provisioning {
            return Err(VaultCliError::Usage(
                "--out is for provisioning slots".to_owned(),
            ));
        }
        let mut opened = OpenVaultDir::open(open, self.ask)?;
        let own = opened.vault_dir.path("seed.key");
        let out = out.unwrap_or(&own);
        // An existing seed may open another slot, so it is never overwritten.
        if kind == SlotArg::Provisioning && out.exists() {
            let text = format!(
                "{} is there already; name another with --out",
                out.display()
            );
            return Err(VaultCliError::Denied(text));
        }
        let (typed, cost) = match kind {
            SlotArg::Passphrase => {
                let cost = chosen_cost(cost)?;
                (Some(new_secret(self.ask, "new passphrase")?), cost)
            }
            _ => (None, alknet_vault::slots::Argon2Params::DEFAULT),
        };
        let seed = OnceCell::new();
        let slow = ProgressMessage::new("making the slot");
        let vault = opened.alkv.alkv().uuid();
        let slot = new_slot(kind, typed.as_ref(), &seed, vault, cost)?;
        let id = opened.alkv.add(slot)?;
        drop(slow);
        // The key file is written before the vault, because a slot without its key could not be
        // opened.
        if let Some(seed) = seed.get() {
            write_file(out, seed.to_text().expose().as_bytes(), 0o600)?;
        }
        let added = find(opened.alkv.alkv(), id)?;
        opened.save(AuditEvent::SlotAdded(name_of(&added)))?;
        opened.finish()?;
        let value = json!({ "slot": id.number(), "type": added.kind().name() });
        self.print(&value, &format!("slot {id}, {}", added.kind().name()))
    }

    fn slot_list(&mut self, vault_dir: &DirArgs) -> Result<(), VaultCliError> {
        let found = VaultDir::unlocked(&vault_dir.dir).load()?;
        let value = json!({ "slots": slots_value(&found.newest) });
        self.print(&value, &slots_text(&found.newest))
    }

    fn slot_rm(
        &mut self,
        id: SlotId,
        consent: Consent,
        open: &VaultOpenArgs,
    ) -> Result<(), VaultCliError> {
        let mut opened = OpenVaultDir::open(open, self.ask)?;
        let removed = find(opened.alkv.alkv(), id)?;
        opened.alkv.remove(id, consent)?;
        opened.save(AuditEvent::SlotRemoved(name_of(&removed)))?;
        opened.finish()?;
        self.print(
            &json!({ "removed": id.number() }),
            &format!("slot {id} is gone"),
        )
    }

    fn slot_test(&mut self, id: Option<SlotId>, open: &VaultOpenArgs) -> Result<(), VaultCliError> {
        if open.passphrase_stdin {
            self.ask.use_stdin();
        }
        let vault_dir = VaultDir::existing(&open.vault_dir.dir)?;
        let found = vault_dir.load()?;
        let seed = vault_dir.seed_key(open.seed_key.as_deref())?;
        let wanted = |slot: &&KeySlot| id.is_none_or(|id| slot.id() == id);
        let slots: Vec<_> = found.newest.slots().iter().filter(wanted).collect();
        if let (Some(id), true) = (id, slots.is_empty()) {
            return Err(SlotError::NoSuchSlot(id).into());
        }
        let mut tested = Vec::new();
        for slot in slots {
            let passphrase;
            let mut key = match (slot.kind(), &seed) {
                (SlotType::None, _) => UnlockKey::Stored,
                (SlotType::Provisioning, Some(seed)) => UnlockKey::Seed(seed),
                (SlotType::Passphrase, _) => {
                    let what = format!("passphrase of slot {}", slot.id());
                    passphrase = self.ask.secret(&what)?;
                    passphrase_key(&passphrase)
                }
                // Without a slot number, only the slots are tested that this computer can open.
                _ if id.is_none() => continue,
                (kind, _) => {
                    let text = format!("nothing here opens a slot of type {}", kind.name());
                    return Err(VaultCliError::Locked(text));
                }
            };
            let slow = ProgressMessage::new("opening the slot");
            // Opening derives the key but changes neither the vault nor its log.
            found.newest.open(slot.id(), &mut key)?;
            drop(slow);
            tested.push(slot);
        }
        let value: Vec<_> = tested.iter().map(|slot| slot.id().number()).collect();
        let text: Vec<_> = tested
            .iter()
            .map(|slot| format!("slot {}, {}: opens", slot.id(), slot.kind().name()))
            .collect();
        self.print(&json!({ "opens": value }), &text.join("\n"))
    }
}

fn consent(given: bool) -> Consent {
    match given {
        true => Consent::HaveTheWords,
        false => Consent::None,
    }
}

fn passphrase_key(passphrase: &SecretStr) -> UnlockKey<'_> {
    UnlockKey::Passphrase {
        passphrase,
        cap_kib: cap_kib(),
    }
}

fn find(alkv: &Alkv, id: SlotId) -> Result<KeySlot, VaultError> {
    let slot = alkv.slots().iter().find(|slot| slot.id() == id);
    Ok(slot.cloned().ok_or(SlotError::NoSuchSlot(id))?)
}

fn in_use(records: &VaultCredentials) -> Result<(u32, usize), VaultCliError> {
    let version = records.versions()?.current.number();
    Ok((version, records.list()?.len()))
}

fn slots_value(alkv: &Alkv) -> Value {
    let slot = |slot: &KeySlot| {
        let mut value = json!({
            "id": slot.id().number(),
            "type": slot.kind().name(),
            "unattended": slot.kind().is_unattended(),
        });
        if let SlotParams::Passphrase { argon2, .. } = slot.params() {
            value["memory_kib"] = argon2.kib().into();
            value["passes"] = argon2.passes().into();
        }
        value
    };
    alkv.slots().iter().map(slot).collect()
}

fn slots_text(alkv: &Alkv) -> String {
    let line = |slot: &KeySlot| {
        let more = match slot.params() {
            SlotParams::Passphrase { argon2, .. } => {
                format!(" ({} MiB, {} passes)", argon2.kib() >> 10, argon2.passes())
            }
            _ => String::new(),
        };
        format!("slot {}, {}{more}", slot.id(), slot.kind().name())
    };
    let lines: Vec<_> = alkv.slots().iter().map(line).collect();
    lines.join("\n")
}
