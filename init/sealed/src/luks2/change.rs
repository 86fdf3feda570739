//! Changes of key slots. The order of writes makes them safe at a power cut: first the new key
//! material goes to unused room, then the header names it, and then the old material is wiped.

use std::{iter, ops::Range};

use crate::disk::{BlockStorage, noise};
use crate::error::SealedError;
use crate::limits::{AREA_BYTES, BINARY_BYTES, DATA_AT, SLOTS_MAX, VAULT_A_AT, WIPE_BYTES};
use crate::luks2::area::seal;
use crate::luks2::header::{LuksHeader, SALT, check_phrase, random};
use crate::luks2::json::{KeyslotInfo, LuksMetadata};
use crate::luks2::parts::{LuksSlot, parse_slot, slot_value};
use crate::secret::VolumeKey;

impl LuksHeader {
    /// Makes `phrase` open the key slot `number`, which is created if it does not exist, and wipes
    /// the old key material. The data stay as they are. After a power cut, either the old or the
    /// new phrase opens the slot.
    pub fn set_phrase(
        &mut self,
        disk: &impl BlockStorage,
        number: u32,
        phrase: &[u8],
        key: &VolumeKey,
    ) -> Result<(), SealedError> {
        check_phrase(phrase)?;
        self.segment()?;
        if number >= SLOTS_MAX {
            return Err(SealedError::NoSlot(number));
        }
        // A phrase for another volume key would open nothing, and the old phrase would be lost.
        self.recognise(key)?;
        // Both copies must be whole before one of them is overwritten.
        self.repair(disk)?;
        // The new material never overwrites the old: until the header names the new one, the old
        // phrase has to open the slot.
        let at = self.free_area()?;
        let value = slot_value(key.expose().len(), &random::<SALT>()?, at);
        let slot = parse_slot(&value).map_err(SealedError::Unsupported)?;
        let before = self.metadata.clone();
        self.metadata.put_slot(number, value);
        let written = self.check_fits().and_then(|()| {
            write_area(disk, &slot, phrase, key)?;
            disk.flush().map_err(SealedError::io("write"))
        });
        // The header was not written, so its copy in memory goes back as well.
        if let Err(error) = written {
            self.metadata = before;
            return Err(error);
        }
        let old = old_area(&before, number);
        self.store(disk)?;
        self.wipe(disk, old)
    }

    /// Removes the key slot `number` and wipes its key material. The last slot that opens the data
    /// stays.
    pub fn remove_slot(
        &mut self,
        disk: &impl BlockStorage,
        number: u32,
    ) -> Result<(), SealedError> {
        self.segment()?;
        let slots = self.slots();
        let openable = |slot: &&KeyslotInfo| slot.unsupported.is_none();
        if !slots.iter().any(|slot| slot.number == number) {
            return Err(SealedError::NoSlot(number));
        }
        let mut others = slots.iter().filter(openable);
        if !others.any(|slot| slot.number != number) {
            return Err(SealedError::LastSlot(number));
        }
        // Both copies must be whole before one of them is overwritten.
        self.repair(disk)?;
        self.check_fits()?;
        let old = old_area(&self.metadata, number);
        self.metadata.take_slot(number);
        self.store(disk)?;
        self.wipe(disk, old)
    }

    /// Position for another area: the first gap between the used ones that is large enough.
    fn free_area(&self) -> Result<u64, SealedError> {
        let gaps = self.gaps()?;
        let gap = gaps
            .into_iter()
            .find(|gap| gap.end - gap.start >= AREA_BYTES);
        gap.map(|gap| gap.start).ok_or(SealedError::NoRoom)
    }

    /// The unused parts of the room for key slots, in whole pages, up to the data or the vault.
    fn gaps(&self) -> Result<Vec<Range<u64>>, SealedError> {
        let segment = self.segment()?;
        let mut room = self.metadata.keyslots_area(self.binary.bytes);
        let end = if segment.offset == DATA_AT {
            VAULT_A_AT
        } else {
            segment.offset
        };
        room.end = room.end.min(end);
        let areas: Option<Vec<_>> = self.metadata.areas().map(|(_, area)| area).collect();
        let mut areas = areas.ok_or(SealedError::Unsupported("a key slot has no area"))?;
        areas.sort_by_key(|area| area.start);
        let mut gaps = Vec::new();
        let mut free = room.start;
        let end = room.end..room.end;
        for area in areas.into_iter().chain(iter::once(end)) {
            if area.start > free {
                gaps.push(free..area.start.min(room.end));
            }
            free = free.max(area.end.next_multiple_of(BINARY_BYTES as u64));
        }
        gaps.retain(|gap| gap.start < gap.end);
        Ok(gaps)
    }

    /// Overwrites the area of a removed slot, and what a power cut left in unused room.
    fn wipe(&self, disk: &impl BlockStorage, old: Option<Range<u64>>) -> Result<(), SealedError> {
        let near = self.metadata.keyslots_area(self.binary.bytes).start + WIPE_BYTES;
        for gap in self.gaps()? {
            let near = gap.start..gap.end.min(near);
            let old = old.clone().unwrap_or(0..0);
            let old = old.start.max(gap.start)..old.end.min(gap.end);
            for part in [near, old] {
                if part.start < part.end {
                    noise(disk, part.start, part.end - part.start)
                        .map_err(SealedError::io("wipe a key slot of"))?;
                }
            }
        }
        disk.flush().map_err(SealedError::io("wipe a key slot of"))
    }
}

/// Writes the key material of `slot`.
pub(super) fn write_area(
    disk: &impl BlockStorage,
    slot: &LuksSlot,
    phrase: &[u8],
    key: &VolumeKey,
) -> Result<(), SealedError> {
    check_phrase(phrase)?;
    let material = seal(slot, phrase, key)?;
    disk.write(&material, slot.area.start)
        .map_err(SealedError::io("write"))
}

fn old_area(metadata: &LuksMetadata, number: u32) -> Option<Range<u64>> {
    let name = number.to_string();
    let mut areas = metadata.areas();
    areas.find(|(slot, _)| *slot == name)?.1
}
