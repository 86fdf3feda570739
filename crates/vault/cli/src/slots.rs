//! The slots of a vault, and how it is.

use std::cell::OnceCell;
use std::path::Path;

use alknet_vault::audit::Event;
use alknet_vault::credentials::Credentials;
use alknet_vault::slots::{
    Alkv, Consent, CopyId, Key, Slot, SlotError, SlotId, SlotParams, SlotType,
};
use alknet_vault::{SecretStr, VaultError};
use serde_json::{Value, json};

use crate::args::{CostArgs, DirArgs, OpenArgs, PasswdArgs, RekeyArgs, SlotArg, StatusArgs};
use crate::new::{chosen_cost, new_secret, new_slot, write_file};
use crate::place::{Opened, Place, cap_kib};
use crate::progress::Slow;
use crate::recorder::name_of;
use crate::verbs::SlotVerb;
use crate::{Cli, CliError};

impl Cli<'_> {
    pub(crate) fn slot(&mut self, verb: SlotVerb) -> Result<(), CliError> {
        match verb {
            SlotVerb::Add {
                kind,
                out,
                open,
                cost,
            } => self.slot_add(kind, out.as_deref(), &open, cost),
            SlotVerb::List(place) => self.slot_list(&place),
            SlotVerb::Rm {
                id,
                i_have_the_mnemonic,
                open,
            } => self.slot_rm(id, consent(i_have_the_mnemonic), &open),
            SlotVerb::Test { id, open } => self.slot_test(id, &open),
        }
    }

    pub(crate) fn status(&mut self, args: &StatusArgs) -> Result<(), CliError> {
        if args.node.is_some() {
            let text = "nodes are asked by the whole program; this one looks into directories";
            return Err(CliError::Usage(text.to_owned()));
        }
        let place = Place::look(&args.place.dir);
        let found = place.load()?;
        let alkv = &found.newest;
        let records = place.records()?;
        let records = records.as_ref().map(in_use).transpose()?;
        let (version, count) = records.unwrap_or((2, 0));
        let damaged = match found.damaged {
            Some(CopyId::A) => Some("A"),
            Some(CopyId::B) => Some("B"),
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

    pub(crate) fn passwd(&mut self, args: &PasswdArgs) -> Result<(), CliError> {
        let mut opened = Opened::open_typed(&args.open, args.slot, self.ask)?;
        let cost = chosen_cost(args.cost)?;
        let passphrase = new_secret(self.ask, "new passphrase")?;
        let none = OnceCell::new();
        let (old, id) = (opened.alkv.opened_by(), opened.alkv.alkv().uuid());
        let slow = Slow::new("making the slot");
        let slot = new_slot(SlotArg::Passphrase, Some(&passphrase), &none, id, cost)?;
        let removed = find(opened.alkv.alkv(), old)?;
        let new = opened.alkv.replace(old, slot, Consent::None)?;
        drop(slow);
        let added = find(opened.alkv.alkv(), new)?;
        opened.save(Event::SlotAdded(name_of(&added)))?;
        opened.record(Event::SlotRemoved(name_of(&removed)));
        opened.finish()?;
        let value = json!({ "slot": new.number(), "was": old.number() });
        self.print(&value, &format!("slot {new} in the place of slot {old}"))
    }

    pub(crate) fn rekey(&mut self, args: &RekeyArgs) -> Result<(), CliError> {
        let mut opened = Opened::open(&args.open, self.ask)?;
        let place = &opened.place;
        let seed = place.seed_key(args.open.seed_key.as_deref())?;
        let slots: Vec<_> = opened.alkv.alkv().slots().to_vec();
        let kept = slots.iter().filter(|slot| !args.lose.contains(&slot.id()));
        let mut typed = Vec::new();
        for slot in kept
            .clone()
            .filter(|slot| slot.kind() == SlotType::Passphrase)
        {
            let what = format!("passphrase of slot {}", slot.id());
            typed.push((slot.id(), self.ask.secret(&what)?));
        }
        let mut keys = Vec::new();
        for slot in kept {
            let key = match (slot.kind(), &seed) {
                (SlotType::None, _) => Key::Stored,
                (SlotType::Provisioning, Some(seed)) => Key::Seed(seed),
                (SlotType::Passphrase, _) => match typed.iter().find(|(id, _)| *id == slot.id()) {
                    Some((_, passphrase)) => passphrase_key(passphrase),
                    None => continue,
                },
                _ => continue,
            };
            keys.push((slot.id(), key));
        }
        let slow = Slow::new("wrapping the new key");
        let consent = consent(args.i_have_the_mnemonic);
        let next = opened.alkv.rekey(&mut keys, &args.lose, consent)?;
        drop(slow);
        drop(keys);
        opened.alkv = next;
        opened.save(Event::Rekeyed)?;
        for lost in slots.iter().filter(|slot| args.lose.contains(&slot.id())) {
            opened.record(Event::SlotRemoved(name_of(lost)));
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
        open: &OpenArgs,
        cost: CostArgs,
    ) -> Result<(), CliError> {
        if out.is_some() && kind != SlotArg::Provisioning {
            return Err(CliError::Usage(
                "--out is for provisioning slots".to_owned(),
            ));
        }
        let mut opened = Opened::open(open, self.ask)?;
        let own = opened.place.path("seed.key");
        let out = out.unwrap_or(&own);
        if kind == SlotArg::Provisioning && out.exists() {
            let text = format!(
                "{} is there already; name another with --out",
                out.display()
            );
            return Err(CliError::Denied(text));
        }
        let (typed, cost) = match kind {
            SlotArg::Passphrase => {
                let cost = chosen_cost(cost)?;
                (Some(new_secret(self.ask, "new passphrase")?), cost)
            }
            _ => (None, alknet_vault::slots::Argon2Params::DEFAULT),
        };
        let seed = OnceCell::new();
        let slow = Slow::new("making the slot");
        let vault = opened.alkv.alkv().uuid();
        let slot = new_slot(kind, typed.as_ref(), &seed, vault, cost)?;
        let id = opened.alkv.add(slot)?;
        drop(slow);
        if let Some(seed) = seed.get() {
            write_file(out, seed.to_text().expose().as_bytes(), 0o600)?;
        }
        let added = find(opened.alkv.alkv(), id)?;
        opened.save(Event::SlotAdded(name_of(&added)))?;
        opened.finish()?;
        let value = json!({ "slot": id.number(), "type": added.kind().name() });
        self.print(&value, &format!("slot {id}, {}", added.kind().name()))
    }

    fn slot_list(&mut self, place: &DirArgs) -> Result<(), CliError> {
        let found = Place::look(&place.dir).load()?;
        let value = json!({ "slots": slots_value(&found.newest) });
        self.print(&value, &slots_text(&found.newest))
    }

    fn slot_rm(&mut self, id: SlotId, consent: Consent, open: &OpenArgs) -> Result<(), CliError> {
        let mut opened = Opened::open(open, self.ask)?;
        let removed = find(opened.alkv.alkv(), id)?;
        opened.alkv.remove(id, consent)?;
        opened.save(Event::SlotRemoved(name_of(&removed)))?;
        opened.finish()?;
        self.print(
            &json!({ "removed": id.number() }),
            &format!("slot {id} is gone"),
        )
    }

    fn slot_test(&mut self, id: Option<SlotId>, open: &OpenArgs) -> Result<(), CliError> {
        if open.passphrase_stdin {
            self.ask.use_stdin();
        }
        let place = Place::existing(&open.place.dir)?;
        let found = place.load()?;
        let seed = place.seed_key(open.seed_key.as_deref())?;
        let asked = |slot: &&Slot| id.is_none_or(|id| slot.id() == id);
        let slots: Vec<_> = found.newest.slots().iter().filter(asked).collect();
        if let (Some(id), true) = (id, slots.is_empty()) {
            return Err(SlotError::NoSuchSlot(id).into());
        }
        let mut tested = Vec::new();
        for slot in slots {
            let passphrase;
            let mut key = match (slot.kind(), &seed) {
                (SlotType::None, _) => Key::Stored,
                (SlotType::Provisioning, Some(seed)) => Key::Seed(seed),
                (SlotType::Passphrase, _) => {
                    let what = format!("passphrase of slot {}", slot.id());
                    passphrase = self.ask.secret(&what)?;
                    passphrase_key(&passphrase)
                }
                // Of all slots, those are tested that can be.
                _ if id.is_none() => continue,
                (kind, _) => {
                    let text = format!("nothing here opens a slot of type {}", kind.name());
                    return Err(CliError::Locked(text));
                }
            };
            let slow = Slow::new("opening the slot");
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

fn passphrase_key(passphrase: &SecretStr) -> Key<'_> {
    Key::Passphrase {
        passphrase,
        cap_kib: cap_kib(),
    }
}

fn find(alkv: &Alkv, id: SlotId) -> Result<Slot, VaultError> {
    let slot = alkv.slots().iter().find(|slot| slot.id() == id);
    Ok(slot.cloned().ok_or(SlotError::NoSuchSlot(id))?)
}

fn in_use(records: &Credentials) -> Result<(u32, usize), CliError> {
    let version = records.versions()?.current.number();
    Ok((version, records.list()?.len()))
}

fn slots_value(alkv: &Alkv) -> Value {
    let slot = |slot: &Slot| {
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
    let line = |slot: &Slot| {
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
