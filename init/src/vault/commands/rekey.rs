//! A new master key: for the vault, and with it for the data partition.

use std::fs::File;

use alknet_provisioning::Secrets;
use alknet_sealed::Sealed;
use alknet_tpm::TpmSource;
use alknet_vault::SecretStr;
use alknet_vault::audit::Event;
use alknet_vault::slots::{
    Alkv, Key, OpenAlkv, RekeyError, Slot, SlotId, SlotType, change_master_key, memory_cap_kib,
};

use super::{Attempt, Halt, Place, Session, name, newest};
use crate::data::{self, DataKeys};
use crate::tpm;
use crate::vault::by_tpm;
use crate::vault::open::memory_kib;

/// What opens the slots that stay.
struct Keys {
    media: Secrets,
    typed: Vec<(SlotId, SecretStr)>,
    tpms: Vec<(SlotId, TpmSource<File>)>,
}

impl Session {
    pub(super) fn rekey(&mut self, place: &Place<'_>) -> Attempt<Vec<String>> {
        let alkv = newest(place)?;
        let mut keys = self.keys(place, &alkv)?;
        if keys.typed.is_empty() && super::has_passphrase(&alkv) {
            // All of them would be lost.
            self.authorised(place)?;
        }
        let mut keep = keys.list(&alkv);
        // A key that is there and does not fit is as good as none.
        keep.retain_mut(|(id, key)| {
            if matches!(key, Key::Passphrase { .. }) {
                return true;
            }
            let opened = alkv.open(*id, key);
            opened.is_ok_and(|open| {
                self.open.get_or_insert(open);
                true
            })
        });
        let is_kept = |slot: &&Slot| keep.iter().any(|(id, _)| *id == slot.id());
        let lost: Vec<&Slot> = alkv.slots().iter().filter(|slot| !is_kept(slot)).collect();
        let lose: Vec<SlotId> = lost.iter().map(|slot| slot.id()).collect();
        if keep.is_empty() {
            return Err(Halt::refused("no slot opens: a new key would be nobody's"));
        }
        self.confirmed(&warning(&alkv, &lose), "REKEY")?;
        let consent = self.consent();
        let Some(old) = &self.open else {
            return Err(Halt::refused("the vault is not open"));
        };
        let next = old.rekey(&mut keep, &lose, consent)?;
        change(place, old, &next)?;
        place.keeper.note(next.alkv());
        let events = place.keeper.events();
        events.add(Event::Rekeyed);
        lost.iter()
            .for_each(|slot| events.add(Event::SlotRemoved(name(slot))));
        place.log.warn("the vault has a new master key");
        Ok(vec![
            "The vault has a new master key.".to_owned(),
            "The words, and what is derived from them, are the same.".to_owned(),
        ])
    }

    /// What opens the slots: on media, in TPMs, and typed, which is asked for.
    fn keys(&mut self, place: &Place<'_>, alkv: &Alkv) -> Attempt<Keys> {
        let of_kind = |kind| alkv.slots().iter().filter(move |slot| slot.kind() == kind);
        let mut typed = Vec::new();
        for slot in of_kind(SlotType::Passphrase) {
            self.slot_by_typing(place, slot.id(), true)?;
        }
        for given in self.typed.of_slots.iter().filter(|given| given.is_right) {
            if let Some(passphrase) = &given.passphrase {
                typed.push((given.id, SecretStr::from(passphrase.expose())));
            }
        }
        // One with a PIN is lost: it is made anew once the vault has its new key.
        let tpms = of_kind(SlotType::Tpm2).filter(|slot| !by_tpm::wants_pin(slot));
        let with_source = |slot: &Slot| Some((slot.id(), tpm::source(None).ok()?));
        Ok(Keys {
            media: place.sources.secrets(),
            typed,
            tpms: tpms.filter_map(with_source).collect(),
        })
    }
}

impl Keys {
    fn list(&mut self, alkv: &Alkv) -> Vec<(SlotId, Key<'_>)> {
        let cap_kib = memory_cap_kib(memory_kib());
        let mut list = Vec::new();
        for slot in alkv.slots() {
            match slot.kind() {
                SlotType::None => list.push((slot.id(), Key::Stored)),
                SlotType::Provisioning => {
                    let seed = self.media.seed_key_of(alkv.uuid());
                    list.extend(seed.map(|seed| (slot.id(), Key::Seed(seed))));
                }
                _ => {}
            }
        }
        for (id, passphrase) in &self.typed {
            let key = Key::Passphrase {
                passphrase,
                cap_kib,
            };
            list.push((*id, key));
        }
        for (id, source) in &mut self.tpms {
            list.push((*id, Key::Source(SlotType::Tpm2, source)));
        }
        list
    }
}

/// Writes it: the partition's new key slot, the copies, and what is not needed any more.
fn change(place: &Place<'_>, old: &OpenAlkv, next: &OpenAlkv) -> Attempt<()> {
    let file = File::options().read(true).write(true).open(place.device);
    let file = file.map_err(Halt::refused)?;
    let bytes = data::size(&file).map_err(Halt::refused)?;
    let mut sealed = Sealed::load(file, bytes).map_err(Halt::refused)?;
    let mut keys = DataKeys::of(&mut sealed);
    let mut copies = data::copies(place.device);
    change_master_key(&mut copies, &mut keys, old, next).map_err(|error| match error {
        RekeyError::Vault(error) => error.into(),
        error => Halt::Refused(format!("{error}; the next start ends it or takes it back")),
    })
}

fn warning(alkv: &Alkv, lose: &[SlotId]) -> Vec<String> {
    let mut lines = vec![
        "A new master key makes old copies of the vault, and keys of slots that are".to_owned(),
        "gone, worth nothing for what comes after. Words and data stay.".to_owned(),
        String::new(),
    ];
    let of = |slot: &Slot| format!("slot {} ({})", slot.id(), slot.kind().name());
    for slot in alkv.slots() {
        let fate = if lose.contains(&slot.id()) {
            "is LOST: nothing here opens it"
        } else {
            "stays"
        };
        lines.push(format!("{} {fate}", of(slot)));
    }
    lines
}
