use std::cell::{Cell, RefCell};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use super::*;
use crate::limits::{MAX_SLOTS, MAX_TPM_PART_BYTES};
use crate::slots::tests::{development, one};
use crate::slots::{Consent, NewSlot, SlotId, Tpm2Params};

/// A copy in memory, and power that ends after so many bytes.
pub(in crate::slots) struct MemoryCopyStorage {
    bytes: Rc<RefCell<Vec<u8>>>,
    power: Rc<Cell<usize>>,
}

impl CopyStorage for MemoryCopyStorage {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.bytes.borrow().clone())
    }

    fn write(&mut self, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.borrow_mut();
        bytes.resize(COPY_BYTES, 0);
        let written = new.len().min(self.power.get());
        bytes[..written].copy_from_slice(&new[..written]);
        self.power.set(self.power.get() - written);
        if written < new.len() {
            Err(io::Error::other("no power"))
        } else {
            Ok(())
        }
    }
}

pub(in crate::slots) type SharedCopies = [Rc<RefCell<Vec<u8>>>; 2];

pub(in crate::slots) fn memory() -> (
    VaultCopies<MemoryCopyStorage>,
    SharedCopies,
    Rc<Cell<usize>>,
) {
    let held: SharedCopies = Default::default();
    let power = Rc::new(Cell::new(usize::MAX));
    let area = |at: usize| MemoryCopyStorage {
        bytes: Rc::clone(&held[at]),
        power: Rc::clone(&power),
    };
    (VaultCopies::new(area(0), area(1)), held.clone(), power)
}

fn found(copies: &mut VaultCopies<impl CopyStorage>) -> LoadedCopies {
    let found = copies.load().expect("a good copy");
    found.expect("there is a vault")
}

#[test]
fn power_that_ends_at_any_byte_leaves_a_good_copy() {
    let (mut copies, held, power) = memory();
    let mut open = development();
    copies.create(&open).expect("written");
    // Of another length, so that the end of the old text shows behind the new one.
    open.add(NewSlot::None).expect("added");
    copies.save(&open).expect("written");
    open.remove(SlotId::new(1), Consent::None).expect("removed");
    let before = held.clone().map(|copy| copy.borrow().clone());
    copies.save(&open).expect("written");
    let after = held.clone().map(|copy| copy.borrow().clone());
    // Both copies were of one generation, so A is written first, then B.
    let (old, new) = (before.concat(), after.concat());
    let mut states = 0;
    for cut in 0..2 * COPY_BYTES {
        // A byte that was the same before leaves the state of the cut before it.
        if cut > 0 && old[cut - 1] == new[cut - 1] {
            continue;
        }
        states += 1;
        for (copy, bytes) in held.iter().zip(&before) {
            copy.borrow_mut().clone_from(bytes);
        }
        power.set(cut);
        assert!(copies.save(&open).is_err(), "cut at {cut}");
        let found = found(&mut copies);
        let again = found.open(&mut UnlockKey::Stored).expect("opened");
        assert_eq!(again.entropy(), open.entropy());
        let generation = again.alkv().generation();
        assert!(
            generation == 2 || generation == 3,
            "cut at {cut}: {generation}"
        );
        if cut >= COPY_BYTES {
            assert_eq!(generation, 3, "cut at {cut}");
        }
        power.set(usize::MAX);
        copies.save(&open).expect("written after all");
        assert_eq!(held.clone().map(|copy| copy.borrow().clone()), after);
    }
    assert!(states > 500, "{states}");
}

#[test]
fn power_that_ends_while_the_first_vault_is_made_leaves_none_or_all() {
    let open = development();
    let text = open.alkv().to_text().len();
    for cut in (0..text + 70).chain([
        COPY_BYTES - 1,
        COPY_BYTES,
        COPY_BYTES + 9,
        2 * COPY_BYTES - 1,
    ]) {
        let (mut copies, _, power) = memory();
        power.set(cut);
        assert!(copies.create(&open).is_err());
        power.set(usize::MAX);
        if cut < text + 66 {
            assert!(matches!(copies.load(), Ok(None)), "cut at {cut}");
            copies.create(&open).expect("made after all");
        } else {
            assert_eq!(
                found(&mut copies).damaged.is_some(),
                cut < COPY_BYTES + text + 66
            );
            assert!(matches!(copies.create(&open), Err(SlotError::Exists)));
            copies.save(&open).expect("repaired");
        }
        assert_eq!(found(&mut copies).damaged, None);
    }
}

/// A disk writes the sectors of one write in any order.
#[test]
fn a_first_copy_that_lacks_sectors_is_no_vault_yet() {
    let mut open = development();
    while open.alkv().to_text().len() < 4 * SECTOR_BYTES {
        open.add(NewSlot::None).expect("added");
    }
    let whole = image(open.alkv()).expect("it fits");
    let used = (open.alkv().to_text().len() + TRAILER).div_ceil(SECTOR_BYTES);
    let all = (1_u32 << used) - 1;
    for there in 0..=all {
        let (mut copies, held, _) = memory();
        let mut torn = whole.clone();
        for (number, sector) in torn.chunks_mut(SECTOR_BYTES).enumerate().take(used) {
            if there & 1 << number == 0 {
                sector.fill(0);
            }
        }
        held[0].replace(torn.clone());
        if there == all {
            assert_eq!(found(&mut copies).damaged, Some(VaultCopyId::B));
            continue;
        }
        assert!(matches!(copies.load(), Ok(None)), "{there:b}");
        // Nothing begins the second copy before the first is whole.
        held[1].replace(torn);
        let both = copies.load();
        assert!(
            there == 0 || matches!(both, Err(SlotError::Corrupt)),
            "{there:b}"
        );
        held[1].borrow_mut().fill(0);
        held[0].borrow_mut()[(used - 1) * SECTOR_BYTES + 5] = 7;
        assert!(
            matches!(copies.load(), Err(SlotError::Corrupt)),
            "{there:b}"
        );
        held[0].borrow_mut().fill(0);
        copies.create(&open).expect("made after all");
    }
}

#[test]
fn a_flipped_byte_costs_one_copy_and_two_cost_the_vault() {
    let (mut copies, held, _) = memory();
    let mut open = development();
    copies.create(&open).expect("written");
    open.add(NewSlot::None).expect("added");
    let text = held[0].borrow().iter().position(|byte| *byte == b'\n');
    let text = text.expect("a line end");
    // Behind the text and its sum every byte is as the next one.
    let padding = (text + 256..COPY_BYTES).step_by(29);
    for at in (0..text + 256).chain(padding).chain([COPY_BYTES - 1]) {
        held[0].borrow_mut()[at] ^= 0xff;
        let one = found(&mut copies);
        assert_eq!(
            (one.damaged, one.newest.generation()),
            (Some(VaultCopyId::A), 1),
            "byte {at}"
        );
        held[1].borrow_mut()[at] ^= 0xff;
        assert!(
            matches!(copies.load(), Err(SlotError::Corrupt)),
            "byte {at}"
        );
        if at % 128 == 5 {
            let before = held.clone().map(|copy| copy.borrow().clone());
            assert!(matches!(copies.save(&open), Err(SlotError::Corrupt)));
            assert!(matches!(copies.create(&open), Err(SlotError::Corrupt)));
            assert_eq!(before, held.clone().map(|copy| copy.borrow().clone()));
        }
        held[0].borrow_mut()[at] ^= 0xff;
        let one = found(&mut copies);
        assert_eq!(one.damaged, Some(VaultCopyId::B), "byte {at}");
        held[1].borrow_mut()[at] ^= 0xff;
    }
    assert!(found(&mut copies).open(&mut UnlockKey::Stored).is_ok());
}

/// A copy as an attacker makes it who knows the format but no key.
fn forge(held: &SharedCopies, at: usize, change: impl FnOnce(&mut Alkv)) {
    let bytes = held[at].borrow().clone();
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("a line end");
    let mut alkv = Alkv::parse(&bytes[..end]).expect("our own");
    change(&mut alkv);
    let text = alkv.to_text();
    let hash = HEXLOWER.encode(&crypto::sha256(text.as_bytes()));
    let mut bytes = format!("{text}\n{hash}\n").into_bytes();
    bytes.resize(COPY_BYTES, 0);
    *held[at].borrow_mut() = bytes;
}

#[test]
fn a_forged_copy_is_noticed_and_the_other_is_used_and_kept() {
    for at in [0, 1] {
        let (mut copies, held, power) = memory();
        let mut open = development();
        copies.create(&open).expect("written");
        forge(&held, at, |alkv| alkv.generation = 99);
        let both = found(&mut copies);
        assert_eq!(both.newest.generation(), 99);
        let got = both.newest.open(SlotId::new(0), &mut UnlockKey::Stored);
        assert!(matches!(got, Err(SlotError::Tampered)));
        let again = both.open(&mut UnlockKey::Stored).expect("the other opens");
        assert_eq!(again.alkv().generation(), 1);
        open.add(NewSlot::None).expect("added");
        // Power ends within the first write: the genuine copy is not the one that it was in.
        power.set(100);
        assert!(copies.save(&open).is_err());
        power.set(usize::MAX);
        assert_eq!(found(&mut copies).newest.generation(), 1);
        copies.save(&open).expect("written");
        assert_eq!(
            found(&mut copies)
                .open(&mut UnlockKey::Stored)
                .expect("opened")
                .alkv(),
            open.alkv()
        );
        forge(&held, 0, |alkv| alkv.generation = 99);
        forge(&held, 1, |alkv| alkv.generation = 99);
        let got = found(&mut copies).open(&mut UnlockKey::Stored);
        assert!(matches!(got, Err(SlotError::Tampered)));
    }
}

#[test]
fn only_the_vault_that_was_read_is_written_again() {
    let (mut copies, held, _) = memory();
    let mut open = development();
    assert!(matches!(copies.load(), Ok(None)));
    assert!(matches!(copies.save(&open), Err(SlotError::Nothing)));
    copies.create(&open).expect("written");
    assert!(matches!(copies.save(&development()), Err(SlotError::Stale)));
    let mut twin = open
        .alkv()
        .open(SlotId::new(0), &mut UnlockKey::Stored)
        .expect("opened");
    open.add(NewSlot::None).expect("added");
    copies.save(&open).expect("written");
    assert!(matches!(copies.save(&twin), Err(SlotError::Stale)));
    twin.add(NewSlot::None).expect("added");
    assert!(matches!(copies.save(&twin), Err(SlotError::Stale)));
    let newer = open.alkv().to_text().replace("\"alkv\":1", "\"alkv\":2");
    assert!(matches!(
        Alkv::parse(newer.as_bytes()),
        Err(SlotError::Newer(2))
    ));
    copies.erase().expect("erased");
    assert!(
        held.iter()
            .all(|copy| copy.borrow().iter().all(|byte| *byte == 0))
    );
    assert!(matches!(copies.load(), Ok(None)));
}

#[test]
fn files_are_laid_out_once_and_overwritten_in_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = ["vault.a", "vault.b"].map(|name| dir.path().join(name));
    let mut copies = VaultCopies::new(
        FileCopyStorage::file(&paths[0]),
        FileCopyStorage::file(&paths[1]),
    );
    let mut open = development();
    copies.create(&open).expect("written");
    let state = || {
        paths.clone().map(|path| {
            let meta = std::fs::metadata(path).expect("a file");
            (meta.ino(), meta.len(), meta.mode() & 0o777)
        })
    };
    let before = state();
    assert!(
        before
            .iter()
            .all(|(_, len, mode)| (*len, *mode) == (COPY_BYTES as u64, 0o600))
    );
    open.add(NewSlot::None).expect("added");
    copies.save(&open).expect("written");
    assert_eq!(before, state());
    std::fs::remove_file(&paths[0]).expect("removed");
    assert_eq!(found(&mut copies).damaged, Some(VaultCopyId::A));
    copies.save(&open).expect("repaired");
    assert_eq!(found(&mut copies).damaged, None);
    std::fs::write(&paths[1], "short").expect("written");
    assert_eq!(found(&mut copies).damaged, Some(VaultCopyId::B));
    copies.save(&open).expect("repaired");
    assert_eq!(found(&mut copies).damaged, None);
}

#[test]
fn two_places_of_one_device_hold_the_copies_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    std::fs::write(&path, vec![0xee_u8; 4096]).expect("written");
    let at = |place: u64| FileCopyStorage::at(&path, 4096 + place * COPY_BYTES as u64);
    let mut copies = VaultCopies::new(at(0), at(1));
    copies.create(&development()).expect("written");
    assert_eq!(found(&mut copies).damaged, None);
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(bytes.len(), 4096 + 2 * COPY_BYTES);
    assert!(bytes[..4096].iter().all(|byte| *byte == 0xee));
}

#[test]
fn the_largest_vault_fits_a_copy() {
    let mut open = development();
    let part = || vec![0; MAX_TPM_PART_BYTES];
    let all: Vec<_> = (0..24).collect();
    for _ in 1..MAX_SLOTS {
        let params = Tpm2Params::new(part(), part(), all.clone(), [0; 32], true);
        let params = params.and_then(|params| params.with_values(vec![[0; 32]; all.len()]));
        open.add(NewSlot::Tpm2(params.expect("in range"), &one()))
            .expect("fits");
    }
    let mut copies = memory();
    copies.0.create(&open).expect("written");
}
