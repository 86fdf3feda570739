use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::limits::{ARGON2_FLOOR_KIB, COPY_BYTES};
use crate::slots::copies::tests::{MemoryCopyStorage, SharedCopies, memory};
use crate::slots::tests::{development, one};
use crate::slots::{
    Argon2Params, Kek, KekError, KekRequest, KekSource, KmsParams, SeedKey, SlotType,
};

const fn id(number: u32) -> SlotId {
    SlotId(number)
}

struct FixedKekSource;

impl KekSource for FixedKekSource {
    fn kek(&mut self, _: KekRequest<'_>) -> Result<Kek, KekError> {
        Ok(one())
    }
}

/// Slots: 0 none, 1 provisioning, 2 passphrase, 3 kms.
fn full(passphrase: &SecretStr) -> (OpenAlkv, SeedKey) {
    let mut open = development();
    let seed = SeedKey::generate(open.alkv().uuid()).expect("random bytes");
    open.add(NewSlot::Provisioning(&seed)).expect("added");
    let typed = NewSlot::Passphrase {
        passphrase,
        cost: Argon2Params::FLOOR,
        cap_kib: ARGON2_FLOOR_KIB,
    };
    open.add(typed).expect("added");
    let peer = format!("ed25519:{}", "0f".repeat(32));
    let at = vec!["a:1".to_owned()];
    let kms = KmsParams::new(peer, at, "a".to_owned(), [5; 32], [6; 32]).expect("in range");
    open.add(NewSlot::Kms(kms, &one())).expect("added");
    (open, seed)
}

fn typed(passphrase: &SecretStr) -> UnlockKey<'_> {
    UnlockKey::Passphrase {
        passphrase,
        cap_kib: ARGON2_FLOOR_KIB,
    }
}

#[test]
fn slots_whose_keys_are_there_stay_and_open_the_new_vault() {
    let passphrase = SecretStr::from("right");
    let (old, seed) = full(&passphrase);
    let mut source = FixedKekSource;
    let mut keys = [
        (id(0), UnlockKey::Stored),
        (id(1), UnlockKey::Seed(&seed)),
        (id(2), typed(&passphrase)),
        (id(3), UnlockKey::Source(SlotType::Kms, &mut source)),
    ];
    let next = old.rekey(&mut keys, &[], Consent::None).expect("re-keyed");
    assert_eq!(next.alkv().generation(), old.alkv().generation() + 1);
    assert_eq!(next.alkv().uuid(), old.alkv().uuid());
    assert_ne!(next.data_secret(), old.data_secret());
    assert_eq!(
        next.data_phrases().expect("words")[1].expose(),
        old.data_phrases().expect("words")[1].expose()
    );
    let read = Alkv::parse(next.alkv().to_text().as_bytes()).expect("its own");
    for (slot, key) in &mut keys {
        let again = read.open(*slot, key).expect("opened");
        assert_eq!(again.entropy(), old.entropy());
        assert_eq!(again.data_secret(), next.data_secret());
    }
    // The key that lies beside is another, and what the old file gives opens nothing of the new.
    let stored = |alkv: &Alkv| match alkv.slots()[0].params() {
        SlotParams::None { kek } => Kek::copy_of(kek),
        other => panic!("{other:?}"),
    };
    let (before, after) = (stored(old.alkv()), stored(next.alkv()));
    assert!(before != after);
    assert!(read.slots()[0].unwrap(read.uuid(), &before).is_err());
}

#[test]
fn slots_without_a_key_are_named_or_nothing_is_done() {
    let passphrase = SecretStr::from("right");
    let (old, seed) = full(&passphrase);
    let slot_error = |outcome: Result<OpenAlkv, VaultError>| match outcome {
        Err(VaultError::Slot(error)) => error,
        other => panic!("{other:?}"),
    };
    let mut keys = [(id(1), UnlockKey::Seed(&seed))];
    let error = slot_error(old.rekey(&mut keys, &[id(3)], Consent::None));
    assert!(
        matches!(&error, SlotError::Unnamed(ids) if *ids == [id(0), id(2)]),
        "{error}"
    );
    assert!(error.to_string().contains("0, 2"), "{error}");
    let all = [id(0), id(2), id(3)];
    let error = slot_error(old.rekey(&mut keys, &all, Consent::None));
    assert!(matches!(error, SlotError::LastInteractive(lost) if lost == id(2)));
    let error = slot_error(old.rekey(&mut keys, &[id(0), id(2), id(3), id(9)], Consent::None));
    assert!(matches!(error, SlotError::NoSuchSlot(none) if none == id(9)));
    let error = slot_error(old.rekey(&mut keys, &[id(0), id(1), id(2), id(3)], Consent::None));
    assert!(matches!(error, SlotError::BadParams(_)));
    let every = [id(0), id(1), id(2), id(3)];
    let error = slot_error(old.rekey(&mut [], &every, Consent::HaveTheWords));
    assert!(matches!(error, SlotError::LastSlot(_)));
    let wrong = SecretStr::from("wrong");
    let mut keys = [(id(1), UnlockKey::Seed(&seed)), (id(2), typed(&wrong))];
    let error = slot_error(old.rekey(&mut keys, &[id(0), id(3)], Consent::None));
    assert!(matches!(error, SlotError::WrongKey(_)));
    let mut keys = [(id(1), UnlockKey::Seed(&seed))];
    let next = old
        .rekey(&mut keys, &all, Consent::HaveTheWords)
        .expect("re-keyed");
    assert_eq!(next.alkv().slots().len(), 1);
    assert_eq!(next.opened_by(), id(1));
    assert!(next.alkv().is_sealed());
}

/// A partition in memory that opens by so many phrases, and power that ends after so many steps.
struct MemoryKeyslots {
    opens_by: Vec<String>,
    steps: Rc<Cell<usize>>,
}

impl MemoryKeyslots {
    fn step(&self) -> Result<(), &'static str> {
        let left = self.steps.get().checked_sub(1).ok_or("no power")?;
        self.steps.set(left);
        Ok(())
    }
}

impl DataKeyslots for MemoryKeyslots {
    type Error = &'static str;

    fn add(&mut self, with: &SecretStr, new: &SecretStr) -> Result<(), &'static str> {
        assert!(self.opens_by.iter().any(|phrase| phrase == with.expose()));
        self.step()?;
        if !self.opens_by.iter().any(|phrase| phrase == new.expose()) {
            self.opens_by.push(new.expose().to_owned());
        }
        // On the disk, and the caller did not hear of it.
        self.step()
    }

    fn keep_only(&mut self, keep: &[SecretStr]) -> Result<(), &'static str> {
        assert!(
            self.opens_by
                .iter()
                .any(|phrase| phrase == keep[0].expose())
        );
        while let Some(at) = self
            .opens_by
            .iter()
            .position(|phrase| keep.iter().all(|kept| kept.expose() != phrase))
        {
            self.step()?;
            self.opens_by.remove(at);
        }
        self.step()
    }
}

fn phrases(open: &OpenAlkv) -> Vec<String> {
    let phrases = open.data_phrases().expect("words");
    phrases
        .iter()
        .map(|phrase| phrase.expose().to_owned())
        .collect()
}

/// What the next start does.
fn start(copies: &mut VaultCopies<MemoryCopyStorage>, data: &mut MemoryKeyslots) -> OpenAlkv {
    let found = copies.load().expect("a good copy").expect("a vault");
    let open = found.open(&mut UnlockKey::Stored).expect("opened");
    let own = phrases(&open);
    assert!(
        data.opens_by.contains(&own[0]),
        "the data partition does not open"
    );
    settle(copies, data, &open).expect("there is power");
    let mut left = data.opens_by.clone();
    left.sort_by_key(|phrase| *phrase != own[0]);
    assert_eq!(left, own);
    let found = copies.load().expect("good").expect("a vault");
    assert!(found.other.is_none() && found.damaged.is_none());
    open
}

/// Changes the key with so much power, starts again, and says which secret it has then.
fn interrupted(steps: usize, bytes: usize, older: bool) -> bool {
    let (mut copies, held, power): (_, SharedCopies, _) = memory();
    let mut old = development();
    copies.create(&old).expect("written");
    if older {
        // The save before was interrupted as well: B is a generation behind.
        let behind = held[1].borrow().clone();
        old.add(NewSlot::None).expect("added");
        old.remove(id(1), Consent::None).expect("removed");
        copies.save(&old).expect("written");
        *held[1].borrow_mut() = behind;
    }
    let left = Rc::new(Cell::new(usize::MAX));
    let mut data = MemoryKeyslots {
        opens_by: phrases(&old),
        steps: Rc::clone(&left),
    };
    let next = old
        .rekey(&mut [(id(0), UnlockKey::Stored)], &[], Consent::None)
        .expect("re-keyed");
    left.set(steps);
    power.set(bytes);
    let done = change_master_key(&mut copies, &mut data, &old, &next).is_ok();
    left.set(usize::MAX);
    power.set(usize::MAX);
    let after = start(&mut copies, &mut data);
    let is_new = after.data_secret() == next.data_secret();
    assert!(is_new || after.data_secret() == old.data_secret());
    assert!(
        is_new || after.alkv() == old.alkv(),
        "an older vault came back"
    );
    assert!(is_new || !done);
    // Whatever was left, it can be done again.
    let mut keys = [(id(0), UnlockKey::Stored)];
    let again = after
        .rekey(&mut keys, &[], Consent::None)
        .expect("re-keyed");
    change_master_key(&mut copies, &mut data, &after, &again).expect("changed");
    assert_eq!(start(&mut copies, &mut data).alkv(), again.alkv());
    is_new
}

#[test]
fn power_that_ends_in_any_step_leaves_a_vault_that_opens_the_data() {
    for older in [false, true] {
        let mut outcomes = Vec::new();
        // Two steps of adding, then the copies, then two of removing.
        for steps in 0..=4 {
            outcomes.push(interrupted(steps, usize::MAX, older));
        }
        assert_eq!(outcomes, [false, false, true, true, true]);
        let text = 700;
        let places = (0..text)
            .step_by(41)
            .chain([COPY_BYTES - 1, COPY_BYTES, COPY_BYTES + 1])
            .chain((0..text).step_by(97).map(|at| COPY_BYTES + at))
            .chain([2 * COPY_BYTES - 1]);
        for bytes in places {
            let is_new = interrupted(usize::MAX, bytes, older);
            assert!(is_new || bytes < COPY_BYTES, "{bytes}");
        }
    }
}

#[test]
fn a_copy_that_is_newer_is_not_overwritten_by_a_new_key() {
    let (mut copies, _, _) = memory();
    let old = development();
    copies.create(&old).expect("written");
    let mut keys = [(id(0), UnlockKey::Stored)];
    let next = old.rekey(&mut keys, &[], Consent::None).expect("re-keyed");
    let mut twin = old
        .alkv()
        .open(id(0), &mut UnlockKey::Stored)
        .expect("opened");
    twin.add(NewSlot::None).expect("added");
    copies.save(&twin).expect("written");
    // Both are the second generation; the one on the disk is genuine.
    assert!(matches!(copies.save(&next), Err(SlotError::Stale)));
}
