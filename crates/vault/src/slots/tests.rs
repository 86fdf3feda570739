use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::limits::{ARGON2_FLOOR_KIB, COPY_BYTES, MAX_SLOTS};
use crate::{Entropy, Index, SecretArr, SecretStr, VaultError};

const CAP: u32 = ARGON2_FLOOR_KIB;

fn new() -> NewVault {
    NewVault::new(
        Entropy::from_bytes(&[5; 32]).expect("32 bytes"),
        1_767_225_600,
    )
}

fn development() -> OpenAlkv {
    OpenAlkv::create(new(), NewSlot::None).expect("made")
}

fn typed(passphrase: &SecretStr) -> NewSlot<'_> {
    NewSlot::Passphrase {
        passphrase,
        cost: Argon2Params::FLOOR,
        cap_kib: CAP,
    }
}

fn tpm() -> Tpm2Params {
    Tpm2Params::new(vec![1; 90], vec![2; 160], vec![7, 11], [3; 32], true).expect("in range")
}

fn kms() -> KmsParams {
    let peer = format!("ed25519:{}", "ab".repeat(32));
    KmsParams::new(peer, "node-7".to_owned()).expect("in range")
}

fn one() -> Kek {
    SecretArr::copy_of(&[1; 32])
}

/// A vault with a slot of every type.
fn full() -> (OpenAlkv, SeedKey) {
    let mut open = development();
    let seed = SeedKey::generate(open.alkv().uuid()).expect("random bytes");
    open.add(NewSlot::Provisioning(&seed)).expect("added");
    open.add(typed(&"right".into())).expect("added");
    open.add(NewSlot::Tpm2(tpm(), &one())).expect("added");
    open.add(NewSlot::Kms(kms(), &one())).expect("added");
    (open, seed)
}

/// What keeps a key and answers for slots that say what is expected.
struct Keeper(Result<[u8; 32], KekError>);

impl KekSource for Keeper {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        match request.params {
            SlotParams::Tpm2(params) => assert_eq!(*params, tpm()),
            SlotParams::Kms(params) => assert_eq!(*params, kms()),
            other => panic!("{other:?}"),
        }
        self.0.clone().map(|kek| Kek::copy_of(&kek))
    }
}

#[test]
fn every_type_of_slot_opens_the_same_vault() {
    let (open, seed) = full();
    let alkv = Alkv::parse(open.alkv().to_text().as_bytes()).expect("our own");
    assert_eq!(&alkv, open.alkv());
    assert_eq!(alkv.generation(), 5);
    assert!(!alkv.is_sealed());
    let right = SecretStr::from("right");
    let mut keeper = Keeper(Ok([1; 32]));
    let mut other = Keeper(Ok([1; 32]));
    let keys = [
        Key::Stored,
        Key::Seed(&seed),
        Key::Passphrase {
            passphrase: &right,
            cap_kib: CAP,
        },
        Key::Source(SlotType::Tpm2, &mut keeper),
        Key::Source(SlotType::Kms, &mut other),
    ];
    for (slot, mut key) in alkv.slots().iter().zip(keys) {
        assert!(key.fits(slot.kind()));
        let again = alkv.open(slot.id(), &mut key).expect("opened");
        assert_eq!(again.entropy(), open.entropy());
        assert_eq!(again.opened_by(), slot.id());
        assert_eq!(again.data_secret(), open.data_secret());
        assert_eq!(again.created_s(), 1_767_225_600);
    }
    assert_eq!(luks_phrase(&open.data_secret()).expose().len(), 43);
}

#[test]
fn wrong_keys_are_told_apart_from_what_is_missing() {
    let (open, seed) = full();
    let alkv = open.alkv();
    let id = SlotId::new;
    let wrong = SecretStr::from("wrong");
    let mut typed = Key::Passphrase {
        passphrase: &wrong,
        cap_kib: CAP,
    };
    assert!(matches!(
        alkv.open(id(2), &mut typed),
        Err(SlotError::WrongKey(_))
    ));
    assert!(matches!(
        alkv.open(id(0), &mut typed),
        Err(SlotError::WrongType(_))
    ));
    assert!(matches!(
        alkv.open(id(9), &mut typed),
        Err(SlotError::NoSuchSlot(_))
    ));
    for error in [
        KekError::Absent,
        KekError::LockedOut,
        KekError::Refused,
        KekError::WrongPin,
    ] {
        let mut keeper = Keeper(Err(error.clone()));
        let got = alkv.open(id(3), &mut Key::Source(SlotType::Tpm2, &mut keeper));
        assert!(matches!(got, Err(SlotError::Kek { source, .. }) if source == error));
    }
    let mut keeper = Keeper(Ok([2; 32]));
    let got = alkv.open(id(4), &mut Key::Source(SlotType::Kms, &mut keeper));
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
    let got = alkv.open(id(4), &mut Key::Source(SlotType::Tpm2, &mut keeper));
    assert!(matches!(got, Err(SlotError::WrongType(_))));
    let other = development();
    let got = other.alkv().open(id(0), &mut Key::Seed(&seed));
    assert!(matches!(got, Err(SlotError::WrongType(_))));
    let mut other = development();
    let error = other
        .add(NewSlot::Provisioning(&seed))
        .expect_err("of another vault");
    assert!(matches!(error, VaultError::Slot(SlotError::OtherVault(of)) if of == alkv.uuid()));
}

#[test]
fn every_flipped_bit_is_refused() {
    let (open, _) = full();
    let good = open.alkv().to_text().into_bytes();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let opened = Alkv::parse(&bad).and_then(|alkv| alkv.open(SlotId::new(0), &mut Key::Stored));
        assert!(
            opened.is_err(),
            "bit {bit}: {}",
            String::from_utf8_lossy(&bad)
        );
    }
}

#[test]
fn parameters_of_a_slot_cannot_be_exchanged() {
    let (mut open, seed) = full();
    // A slot under another number, and one whose parameters were changed, do not open by themselves.
    open.alkv.slots[1].id = SlotId::new(7);
    let got = open.alkv.open(SlotId::new(7), &mut Key::Seed(&seed));
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
    let changed = Tpm2Params::new(vec![1; 90], vec![2; 160], vec![7], [3; 32], true);
    open.alkv.slots[3].params = SlotParams::Tpm2(changed.expect("in range"));
    struct Any;
    impl KekSource for Any {
        fn kek(&mut self, _: KekRequest<'_>) -> Result<Kek, KekError> {
            Ok(one())
        }
    }
    let got = open
        .alkv
        .open(SlotId::new(3), &mut Key::Source(SlotType::Tpm2, &mut Any));
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
}

#[test]
fn words_with_a_passphrase_and_a_device_are_kept() {
    let vault = NewVault {
        passphrase: "Zürich \"\\".into(),
        device: Index::new(3).expect("small"),
        ..new()
    };
    let open = OpenAlkv::create(vault, NewSlot::None).expect("made");
    assert_eq!(open.alkv().device().number(), 3);
    let again = open
        .alkv()
        .open(SlotId::new(0), &mut Key::Stored)
        .expect("opened");
    assert_eq!(again.passphrase().expose(), "Zürich \"\\");
    assert!(!format!("{open:?}").contains("rich"));
}

#[test]
fn slots_have_a_least_and_a_most() {
    let mut open = development();
    let error = open
        .remove(SlotId::new(0), Consent::HaveTheWords)
        .expect_err("the last");
    assert!(matches!(error, VaultError::Slot(SlotError::LastSlot(_))));
    while open.alkv().slots().len() < MAX_SLOTS {
        open.add(NewSlot::None).expect("added");
    }
    let error = open.add(NewSlot::None).expect_err("too many");
    assert!(matches!(error, VaultError::Slot(SlotError::Full)));
    let id = open
        .replace(SlotId::new(3), NewSlot::None, Consent::None)
        .expect("a full vault changes its slots as well");
    assert_eq!(id.number(), MAX_SLOTS as u32);
    open.remove(id, Consent::None).expect("removed");
    open.add(NewSlot::None).expect("added");
    let ids: BTreeSet<_> = open.alkv().slots().iter().map(Slot::id).collect();
    assert_eq!(ids.len(), MAX_SLOTS);
    assert!(Alkv::parse(open.alkv().to_text().as_bytes()).is_ok());
}

#[test]
fn the_last_slot_to_type_into_goes_only_with_the_words_at_hand() {
    let (mut open, _) = full();
    let id = SlotId::new(2);
    let error = open
        .remove(id, Consent::None)
        .expect_err("the last interactive");
    assert!(matches!(
        error,
        VaultError::Slot(SlotError::LastInteractive(_))
    ));
    let new = open
        .replace(id, typed(&"other".into()), Consent::None)
        .expect("replaced");
    let right = SecretStr::from("right");
    let other = SecretStr::from("other");
    let mut key = Key::Passphrase {
        passphrase: &right,
        cap_kib: CAP,
    };
    assert!(matches!(
        open.alkv().open(new, &mut key),
        Err(SlotError::WrongKey(_))
    ));
    let mut key = Key::Passphrase {
        passphrase: &other,
        cap_kib: CAP,
    };
    assert!(open.alkv().open(new, &mut key).is_ok());
    open.remove(new, Consent::HaveTheWords).expect("removed");
    open.remove(SlotId::new(0), Consent::None).expect("removed");
    assert!(open.alkv().is_sealed());
    let error = open.add(typed(&SecretStr::empty())).expect_err("empty");
    assert!(matches!(error, VaultError::Slot(SlotError::BadParams(_))));
}

#[test]
fn the_largest_vault_fits_a_copy() {
    let mut open = development();
    let part = || vec![0; crate::limits::MAX_TPM_PART_BYTES];
    let all: Vec<_> = (0..24).collect();
    for _ in 1..MAX_SLOTS {
        let params = Tpm2Params::new(part(), part(), all.clone(), [0; 32], true);
        open.add(NewSlot::Tpm2(params.expect("in range"), &one()))
            .expect("fits");
    }
    let mut copies = memory();
    copies.0.create(&open).expect("written");
}

#[test]
fn parameters_out_of_range_are_refused() {
    let tpm = |public: usize, pcrs: &[u8]| {
        Tpm2Params::new(vec![0; public], vec![0; 9], pcrs.to_vec(), [0; 32], false).is_ok()
    };
    let most = crate::limits::MAX_TPM_PART_BYTES;
    assert!(tpm(1, &[0]) && tpm(most, &[0, 23]));
    assert!(!tpm(0, &[0]) && !tpm(most + 1, &[0]));
    assert!(!tpm(1, &[]) && !tpm(1, &[24]) && !tpm(1, &[7, 7]) && !tpm(1, &[11, 7]));
    let kms = |peer: &str, key: &str| KmsParams::new(peer.to_owned(), key.to_owned()).is_ok();
    let peer = format!("ed25519:{}", "0f".repeat(32));
    assert!(kms(&peer, "a") && !kms(&peer, "") && !kms(&peer, "a b") && !kms("ed25519:0f", "a"));
    assert!(!kms(&peer.to_uppercase(), "a") && !kms(&peer, &"a".repeat(256)));
    assert_eq!(memory_cap_kib(1 << 20), 256 << 10);
    assert_eq!(memory_cap_kib(u64::MAX), ARGON2_MAX_KIB);
}

#[test]
fn a_seed_key_is_one_line_for_one_vault() {
    let uuid = development().alkv().uuid();
    let seed = SeedKey::generate(uuid).expect("random bytes");
    let text = seed.to_text();
    assert!(text.expose().starts_with(&format!("alknet-seed-1 {uuid} ")));
    assert!(text.expose().ends_with("=\n"));
    let again = SeedKey::parse(&format!("\r\n {}\n", text.expose())).expect("our own");
    assert_eq!(again.vault(), uuid);
    assert_eq!(again.to_text().expose(), text.expose());
    assert!(!format!("{seed:?}").contains(&text.expose()[51..80]));
    let line = text.expose().trim();
    for bad in [
        "",
        "alknet-seed-1",
        &line[..line.len() - 1],
        &line.replace("seed-1", "seed-2"),
        &line.to_uppercase(),
        &format!("{line} x"),
        &line.replace(' ', "  "),
    ] {
        assert!(
            matches!(SeedKey::parse(bad), Err(SlotError::BadSeedKey)),
            "{bad}"
        );
    }
}

/// A copy in memory, and power that ends after so many bytes.
struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    power: Rc<Cell<usize>>,
}

impl Area for Memory {
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

type Held = [Rc<RefCell<Vec<u8>>>; 2];

fn memory() -> (Copies<Memory>, Held, Rc<Cell<usize>>) {
    let held: Held = Default::default();
    let power = Rc::new(Cell::new(usize::MAX));
    let area = |at: usize| Memory {
        bytes: Rc::clone(&held[at]),
        power: Rc::clone(&power),
    };
    (Copies::new(area(0), area(1)), held.clone(), power)
}

fn found(copies: &mut Copies<impl Area>) -> Found {
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
        let again = found.open(&mut Key::Stored).expect("opened");
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

#[test]
fn a_flipped_byte_costs_one_copy_and_two_cost_the_vault() {
    let (mut copies, held, _) = memory();
    let mut open = development();
    copies.create(&open).expect("written");
    open.add(NewSlot::None).expect("added");
    for at in 0..COPY_BYTES {
        held[0].borrow_mut()[at] ^= 0xff;
        let one = found(&mut copies);
        assert_eq!(
            (one.damaged, one.newest.generation()),
            (Some(CopyId::A), 1),
            "byte {at}"
        );
        held[1].borrow_mut()[at] ^= 0xff;
        assert!(
            matches!(copies.load(), Err(SlotError::Corrupt)),
            "byte {at}"
        );
        if at % 4096 == 5 {
            let before = held.clone().map(|copy| copy.borrow().clone());
            assert!(matches!(copies.save(&open), Err(SlotError::Corrupt)));
            assert!(matches!(copies.create(&open), Err(SlotError::Corrupt)));
            assert_eq!(before, held.clone().map(|copy| copy.borrow().clone()));
        }
        held[0].borrow_mut()[at] ^= 0xff;
        let one = found(&mut copies);
        assert_eq!(one.damaged, Some(CopyId::B), "byte {at}");
        held[1].borrow_mut()[at] ^= 0xff;
    }
    assert!(found(&mut copies).open(&mut Key::Stored).is_ok());
}

/// A copy as somebody makes it who knows the format but no key.
fn forge(held: &Held, at: usize, change: impl FnOnce(&mut Alkv)) {
    let bytes = held[at].borrow().clone();
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("a line end");
    let mut alkv = Alkv::parse(&bytes[..end]).expect("our own");
    change(&mut alkv);
    let text = alkv.to_text();
    let hash = data_encoding::HEXLOWER.encode(&crate::crypto::sha256(text.as_bytes()));
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
        let got = both.newest.open(SlotId::new(0), &mut Key::Stored);
        assert!(matches!(got, Err(SlotError::Tampered)));
        let again = both.open(&mut Key::Stored).expect("the other opens");
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
                .open(&mut Key::Stored)
                .expect("opened")
                .alkv(),
            open.alkv()
        );
        forge(&held, 0, |alkv| alkv.generation = 99);
        forge(&held, 1, |alkv| alkv.generation = 99);
        let got = found(&mut copies).open(&mut Key::Stored);
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
        .open(SlotId::new(0), &mut Key::Stored)
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
    let mut copies = Copies::new(FileArea::file(&paths[0]), FileArea::file(&paths[1]));
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
    assert_eq!(found(&mut copies).damaged, Some(CopyId::A));
    copies.save(&open).expect("repaired");
    assert_eq!(found(&mut copies).damaged, None);
    std::fs::write(&paths[1], "short").expect("written");
    assert_eq!(found(&mut copies).damaged, Some(CopyId::B));
    copies.save(&open).expect("repaired");
    assert_eq!(found(&mut copies).damaged, None);
}

#[test]
fn two_places_of_one_device_hold_the_copies_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    std::fs::write(&path, vec![0xee_u8; 4096]).expect("written");
    let at = |place: u64| FileArea::at(&path, 4096 + place * COPY_BYTES as u64);
    let mut copies = Copies::new(at(0), at(1));
    copies.create(&development()).expect("written");
    assert_eq!(found(&mut copies).damaged, None);
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(bytes.len(), 4096 + 2 * COPY_BYTES);
    assert!(bytes[..4096].iter().all(|byte| *byte == 0xee));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_changed_file_is_an_error_and_never_a_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let mut text = TEXT.with(Clone::clone);
        let good = text.clone();
        for (at, byte, how) in edits {
            let at = at.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        let opened = Alkv::parse(&text).and_then(|alkv| alkv.open(SlotId::new(0), &mut Key::Stored));
        prop_assert!(opened.is_err() || text == good);
    }

    #[test]
    fn any_text_is_a_seed_key_or_an_error(text in any::<String>(), tail in "[ -~]{0,90}") {
        let _ = SeedKey::parse(&text);
        let _ = SeedKey::parse(&format!("alknet-seed-1 {tail}"));
    }
}

thread_local! {
    static TEXT: Vec<u8> = full().0.alkv().to_text().into_bytes();
}
