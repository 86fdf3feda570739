//! The command for a new master key, of the vault and with it of the data partition.

use std::fs::File;

use alknet_provisioning::MediaSecrets;
use alknet_sealed::SealedPartition;
use alknet_tpm::TpmSource;
use alknet_vault::audit::AuditEvent;
use alknet_vault::slots::{
    Alkv, Kek, KekError, KekRequest, KekSource, KeySlot, OpenAlkv, RekeyError, SlotId, SlotParams,
    SlotType, UnlockKey, change_master_key, memory_cap_kib,
};
use alknet_vault::{SecretArr, SecretStr};

use super::{Attempt, CommandContext, CommandPrompt, CommandSession, NeedInput, name, on_disk};
use crate::data::{self, DataPartitionKeys};
use crate::tpm;
use crate::vault::open::{memory_kib, seed_for};
use crate::vault::tpm_unlock;

/// The keys of the slots that stay.
struct RekeyKeys {
    media: MediaSecrets,
    typed: Vec<(SlotId, SecretStr)>,
    tpms: Vec<(SlotId, TpmSource<File>)>,
    shares: Vec<(SlotId, ShareKekSource)>,
}

/// The share that another node gave for one slot.
struct ShareKekSource(SecretArr<32>);

impl KekSource for ShareKekSource {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let SlotParams::Kms(params) = request.params else {
            return Err(KekError::Absent);
        };
        Ok(params.kek(&self.0, request.vault))
    }
}

/// A slot that nothing here opens, and why.
type Lost = (SlotId, String);

impl CommandSession {
    pub(super) fn rekey(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        let alkv = on_disk(place)?;
        let (mut keys, mut lost) = self.keys(place, &alkv)?;
        lost.extend(self.tried(&mut keys, &alkv));
        let mut keep = keys.list(&alkv);
        let is_lost = |id: SlotId| lost.iter().any(|(lost, _)| *lost == id);
        keep.retain(|(id, _)| !is_lost(*id));
        if keep.is_empty() {
            return Err(NeedInput::refused(
                "no slot opens, so no slot could hold a new key",
            ));
        }
        if !lost.is_empty() {
            // Losing slots needs the same proof as removing them one by one.
            self.authorised(place)?;
        }
        self.confirmed(&warning(&alkv, &lost), "REKEY")?;
        let consent = self.consent();
        let old = self.opened(place)?;
        // The user confirmed the change of the copy on the disk. Changing another copy would lose
        // slots.
        if *old.alkv() != alkv {
            return Err(NeedInput::refused(
                "the two copies on the disk differ; restart the machine",
            ));
        }
        let lose: Vec<SlotId> = lost.iter().map(|(id, _)| *id).collect();
        let next = old.rekey(&mut keep, &lose, consent)?;
        change(place, old, &next)?;
        place.ledger().note(&next);
        let events = place.vault.events();
        events.add(AuditEvent::Rekeyed);
        let gone = alkv.slots().iter().filter(|slot| is_lost(slot.id()));
        gone.for_each(|slot| events.add(AuditEvent::SlotRemoved(name(slot))));
        place.log.warn("the vault has a new master key");
        Ok(vec![
            "The vault has a new master key.".to_owned(),
            "The words, and what is derived from them, are the same.".to_owned(),
        ])
    }

    /// The keys of the slots: on media, in TPMs, at other nodes, and typed. Also the slots without
    /// a key.
    fn keys(&mut self, place: &CommandContext<'_>, alkv: &Alkv) -> Attempt<(RekeyKeys, Vec<Lost>)> {
        let mut keys = RekeyKeys {
            media: place.sources.secrets(),
            typed: Vec::new(),
            tpms: Vec::new(),
            shares: Vec::new(),
        };
        let mut lost = Vec::new();
        for slot in alkv.slots() {
            let id = slot.id();
            let found = match slot.params() {
                SlotParams::Passphrase { .. } => self
                    .typed_for(place, slot)?
                    .map(|passphrase| keys.typed.push((id, passphrase))),
                SlotParams::Tpm2(_) => self
                    .tpm_for(place, slot)?
                    .map(|source| keys.tpms.push((id, source))),
                SlotParams::Kms(_) => self
                    .share_for(place, slot)?
                    .map(|share| keys.shares.push((id, share))),
                SlotParams::Provisioning if seed_for(&keys.media, alkv, id).is_none() => {
                    Err("no medium with its seed.key is attached".to_owned())
                }
                _ => Ok(()),
            };
            lost.extend(found.err().map(|why| (id, why)));
        }
        Ok((keys, lost))
    }

    /// The passphrase that the user typed for a slot. The console asks for it.
    fn typed_for(
        &mut self,
        place: &CommandContext<'_>,
        slot: &KeySlot,
    ) -> Attempt<Result<SecretStr, String>> {
        if !self.slot_by_typing(place, slot.id(), true)? {
            return Ok(Err("its passphrase was not typed".to_owned()));
        }
        Ok(self.of_slot(slot.id()))
    }

    /// The TPM, with the PIN that the user typed if the slot needs one.
    fn tpm_for(
        &mut self,
        place: &CommandContext<'_>,
        slot: &KeySlot,
    ) -> Attempt<Result<TpmSource<File>, String>> {
        let mut pin = None;
        if tpm_unlock::wants_pin(slot) {
            if let Err(error) = tpm_unlock::check(slot) {
                return Ok(Err(error.to_string()));
            }
            if !self.slot_by_pin(place, slot.id(), true)? {
                return Ok(Err("its PIN was not typed".to_owned()));
            }
            pin = match self.of_slot(slot.id()) {
                Ok(typed) => Some(typed),
                Err(why) => return Ok(Err(why)),
            };
        }
        let source = tpm_unlock::pin(pin.as_ref()).map(tpm::source);
        Ok(source.and_then(|source| source.map_err(|error| error.to_string())))
    }

    /// The share that another node gave. A helper asks for it.
    fn share_for(
        &mut self,
        place: &CommandContext<'_>,
        slot: &KeySlot,
    ) -> Attempt<Result<ShareKekSource, String>> {
        let (id, SlotParams::Kms(params)) = (slot.id(), slot.params()) else {
            return Ok(Err("it is no slot of another node's".to_owned()));
        };
        if let Some((_, share)) = self.shares.iter().find(|(known, _)| *known == id) {
            return Ok(Ok(ShareKekSource(SecretArr::copy_of(share.expose()))));
        }
        match place.vault.escrow().take_share(params) {
            Ok(share) => {
                // The next attempt gets it from here, so the other node is asked once.
                self.shares.push((id, SecretArr::copy_of(share.expose())));
                Ok(Ok(ShareKekSource(share)))
            }
            Err(none) if none.was_requested || self.without_shares => Ok(Err(none.why)),
            Err(_) => Err(NeedInput::wants(CommandPrompt::Share)),
        }
    }

    /// Tries every key but the typed ones, which were tried as they were typed. A key that is there
    /// and does not open its slot counts as missing.
    fn tried(&mut self, keys: &mut RekeyKeys, alkv: &Alkv) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (id, mut key) in keys.list(alkv) {
            if matches!(key, UnlockKey::Passphrase { .. }) {
                continue;
            }
            match alkv.open(id, &mut key) {
                Ok(open) => {
                    self.open.get_or_insert(open);
                }
                Err(error) => lost.push((id, error.to_string())),
            }
        }
        // The TPM's error says more than that there is no key.
        for (id, source) in &mut keys.tpms {
            let known = lost.iter_mut().find(|(lost, _)| lost == id);
            if let Some(((_, why), error)) = known.zip(source.take_error()) {
                *why = error.to_string();
            }
        }
        lost
    }
}

impl RekeyKeys {
    fn list(&mut self, alkv: &Alkv) -> Vec<(SlotId, UnlockKey<'_>)> {
        let cap_kib = memory_cap_kib(memory_kib());
        let mut list = Vec::new();
        for slot in alkv.slots() {
            match slot.kind() {
                SlotType::None => list.push((slot.id(), UnlockKey::Stored)),
                SlotType::Provisioning => {
                    let seed = seed_for(&self.media, alkv, slot.id());
                    list.extend(seed.map(|seed| (slot.id(), UnlockKey::Seed(seed))));
                }
                _ => {}
            }
        }
        for (id, passphrase) in &self.typed {
            let key = UnlockKey::Passphrase {
                passphrase,
                cap_kib,
            };
            list.push((*id, key));
        }
        for (id, source) in &mut self.tpms {
            list.push((*id, UnlockKey::Source(SlotType::Tpm2, source)));
        }
        for (id, share) in &mut self.shares {
            list.push((*id, UnlockKey::Source(SlotType::Kms, share)));
        }
        list
    }
}

/// Writes the change: the partition's new key slot, the copies, and the removal of what is not
/// needed any more.
fn change(place: &CommandContext<'_>, old: &OpenAlkv, next: &OpenAlkv) -> Attempt<()> {
    let file = File::options().read(true).write(true).open(place.device);
    let file = file.map_err(NeedInput::refused)?;
    let bytes = data::size(&file).map_err(NeedInput::refused)?;
    let mut sealed = SealedPartition::load(file, bytes).map_err(NeedInput::refused)?;
    let mut keys = DataPartitionKeys::for_partition(&mut sealed);
    let mut copies = data::copies(place.device);
    change_master_key(&mut copies, &mut keys, old, next).map_err(|error| match error {
        RekeyError::Vault(error) => error.into(),
        error => NeedInput::Refused(format!("{error}; the next start ends it or takes it back")),
    })
}

fn warning(alkv: &Alkv, lost: &[Lost]) -> Vec<String> {
    let mut lines = vec![
        "A new master key makes old copies of the vault, and keys of slots that are".to_owned(),
        "gone, worth nothing for what comes after. Words and data stay.".to_owned(),
        String::new(),
    ];
    for slot in alkv.slots() {
        let what = format!("slot {} ({})", slot.id(), slot.kind().name());
        match lost.iter().find(|(id, _)| *id == slot.id()) {
            Some((_, why)) => lines.push(format!("{what} is LOST: {why}")),
            None => lines.push(format!("{what} stays")),
        }
    }
    lines
}
