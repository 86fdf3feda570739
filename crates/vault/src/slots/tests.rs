use std::collections::BTreeSet;

use data_encoding::BASE64;
use proptest::prelude::*;

use super::*;
use crate::limits::{ARGON2_FLOOR_KIB, MAX_KMS_ADDRESSES, MAX_SLOTS};
use crate::secret::SecretBytes;
use crate::slots::open::VaultContents;
use crate::{Entropy, PathIndex, SecretArr, SecretStr, VaultError};

const CAP: u32 = ARGON2_FLOOR_KIB;

pub(super) fn new() -> NewVault {
    NewVault::new(
        Entropy::from_bytes(&[5; 32]).expect("32 bytes"),
        1_767_225_600,
    )
}

pub(super) fn development() -> OpenAlkv {
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
    let params = Tpm2Params::new(vec![1; 90], vec![2; 160], vec![7, 11], [3; 32], true);
    let params = params.and_then(|params| params.with_values(vec![[4; 32], [5; 32]]));
    params.expect("in range")
}

fn kms() -> KmsParams {
    let peer = format!("ed25519:{}", "ab".repeat(32));
    let addresses = vec!["hub.example.org:443".to_owned()];
    KmsParams::new(peer, addresses, "node-7".to_owned(), [5; 32], [6; 32]).expect("in range")
}

pub(super) fn one() -> Kek {
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
struct ExpectingKekSource(Result<[u8; 32], KekError>);

impl KekSource for ExpectingKekSource {
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
    let mut source = ExpectingKekSource(Ok([1; 32]));
    let mut other = ExpectingKekSource(Ok([1; 32]));
    let keys = [
        UnlockKey::Stored,
        UnlockKey::Seed(&seed),
        UnlockKey::Passphrase {
            passphrase: &right,
            cap_kib: CAP,
        },
        UnlockKey::Source(SlotType::Tpm2, &mut source),
        UnlockKey::Source(SlotType::Kms, &mut other),
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

/// An attacker who writes to a disk copies the id of its vault, and claims any generation.
#[test]
fn a_forged_vault_has_another_fingerprint_whatever_it_claims() {
    let of = |open: &OpenAlkv| open.fingerprint().expect("derived");
    let (open, _) = full();
    let own = of(&open);
    let id = open.alkv().uuid();
    let made = |vault: NewVault| {
        let open = OpenAlkv::create_as(id, vault, |_| Ok(NewSlot::None));
        open.expect("made")
    };
    // Whatever lies around the words.
    let again = made(new());
    assert_ne!(again.alkv(), open.alkv());
    assert_eq!(of(&again), own);
    assert_eq!(of(&development()), own, "of another id");
    let mut keep = [(again.opened_by(), UnlockKey::Stored)];
    let rekeyed = again.rekey(&mut keep, &[], Consent::None);
    let rekeyed = rekeyed.expect("its key lies beside it");
    assert_ne!(rekeyed.data_secret(), again.data_secret());
    assert_eq!(of(&rekeyed), own);

    let words = Entropy::from_bytes(&[6; 32]).expect("32 bytes");
    let mut forged = made(NewVault::new(words, 0));
    while forged.alkv().generation() <= open.alkv().generation() {
        forged.add(NewSlot::None).expect("there is room");
    }
    assert_ne!(of(&forged), own);
    let passphrase = NewVault {
        passphrase: SecretStr::from("more"),
        ..new()
    };
    assert_ne!(of(&made(passphrase)), own);
    let device = NewVault {
        device: PathIndex::new(1).expect("small"),
        ..new()
    };
    assert_ne!(of(&made(device)), own);
}

#[test]
fn wrong_keys_and_missing_slots_give_different_errors() {
    let (open, seed) = full();
    let alkv = open.alkv();
    let id = SlotId::new;
    let wrong = SecretStr::from("wrong");
    let mut typed = UnlockKey::Passphrase {
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
        let mut source = ExpectingKekSource(Err(error.clone()));
        let got = alkv.open(id(3), &mut UnlockKey::Source(SlotType::Tpm2, &mut source));
        assert!(matches!(got, Err(SlotError::Kek { source, .. }) if source == error));
    }
    let mut source = ExpectingKekSource(Ok([2; 32]));
    let got = alkv.open(id(4), &mut UnlockKey::Source(SlotType::Kms, &mut source));
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
    let got = alkv.open(id(4), &mut UnlockKey::Source(SlotType::Tpm2, &mut source));
    assert!(matches!(got, Err(SlotError::WrongType(_))));
    let other = development();
    let got = other.alkv().open(id(0), &mut UnlockKey::Seed(&seed));
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
        let opened =
            Alkv::parse(&bad).and_then(|alkv| alkv.open(SlotId::new(0), &mut UnlockKey::Stored));
        assert!(
            opened.is_err(),
            "bit {bit}: {}",
            String::from_utf8_lossy(&bad)
        );
    }
}

#[test]
fn a_slot_of_a_tpm_may_leave_out_what_it_was_sealed_to() {
    let plain = Tpm2Params::new(vec![1; 90], vec![2; 160], vec![7, 11], [3; 32], false);
    let mut open = development();
    let plain = NewSlot::Tpm2(plain.expect("in range"), &one());
    open.add(plain).expect("added");
    let text = open.alkv().to_text();
    assert!(!text.contains("values"));
    let read = Alkv::parse(text.as_bytes()).expect("our own");
    assert_eq!(&read, open.alkv());
    // One value for two PCRs, one that is cut short, and none.
    let public = BASE64.encode(&[1; 90]);
    for values in [
        BASE64.encode(&[4; 32]),
        BASE64.encode(&[4; 33]),
        String::new(),
    ] {
        let text = text.replacen(
            &format!("\"public\":\"{public}\""),
            &format!("\"public\":\"{public}\",\"values\":\"{values}\""),
            1,
        );
        assert!(text.contains("values"));
        assert!(Alkv::parse(text.as_bytes()).is_err(), "{values}");
    }
}

#[test]
fn parameters_of_a_slot_cannot_be_exchanged() {
    let (mut open, seed) = full();
    // A slot under another number, and one whose parameters were changed, do not open by themselves.
    open.alkv.slots[1].id = SlotId::new(7);
    let got = open.alkv.open(SlotId::new(7), &mut UnlockKey::Seed(&seed));
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
    let changed = Tpm2Params::new(vec![1; 90], vec![2; 160], vec![7], [3; 32], true);
    open.alkv.slots[3].params = SlotParams::Tpm2(changed.expect("in range"));
    struct AnyKekSource;
    impl KekSource for AnyKekSource {
        fn kek(&mut self, _: KekRequest<'_>) -> Result<Kek, KekError> {
            Ok(one())
        }
    }
    let got = open.alkv.open(
        SlotId::new(3),
        &mut UnlockKey::Source(SlotType::Tpm2, &mut AnyKekSource),
    );
    assert!(matches!(got, Err(SlotError::WrongKey(_))));
}

#[test]
fn words_with_a_passphrase_and_a_device_are_kept() {
    let vault = NewVault {
        passphrase: "Zürich \"\\".into(),
        device: PathIndex::new(3).expect("small"),
        ..new()
    };
    let open = OpenAlkv::create(vault, NewSlot::None).expect("made");
    assert_eq!(open.alkv().device().number(), 3);
    let again = open
        .alkv()
        .open(SlotId::new(0), &mut UnlockKey::Stored)
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
    let ids: BTreeSet<_> = open.alkv().slots().iter().map(KeySlot::id).collect();
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
    let mut key = UnlockKey::Passphrase {
        passphrase: &right,
        cap_kib: CAP,
    };
    assert!(matches!(
        open.alkv().open(new, &mut key),
        Err(SlotError::WrongKey(_))
    ));
    let mut key = UnlockKey::Passphrase {
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
fn parameters_out_of_range_are_refused() {
    let tpm = |public: usize, pcrs: &[u8]| {
        Tpm2Params::new(vec![0; public], vec![0; 9], pcrs.to_vec(), [0; 32], false).is_ok()
    };
    let most = crate::limits::MAX_TPM_PART_BYTES;
    assert!(tpm(1, &[0]) && tpm(most, &[0, 23]));
    assert!(!tpm(0, &[0]) && !tpm(most + 1, &[0]));
    assert!(!tpm(1, &[]) && !tpm(1, &[24]) && !tpm(1, &[7, 7]) && !tpm(1, &[11, 7]));
    for count in [0, 1, 3] {
        let values = self::tpm().with_values(vec![[0; 32]; count]);
        assert!(matches!(values, Err(SlotError::BadParams(_))), "{count}");
    }
    let made = |peer: &str, at: &[&str], key: &str| {
        let at = at.iter().map(|&one| one.to_owned()).collect();
        KmsParams::new(peer.to_owned(), at, key.to_owned(), [1; 32], [2; 32]).is_ok()
    };
    let kms = |peer: &str, key: &str| made(peer, &["a:1"], key);
    let peer = format!("ed25519:{}", "0f".repeat(32));
    assert!(made(&peer, &["a:1"; MAX_KMS_ADDRESSES], "a"));
    assert!(!made(&peer, &[], "a") && !made(&peer, &["a:1"; MAX_KMS_ADDRESSES + 1], "a"));
    assert!(
        !made(&peer, &["a b"], "a") && !made(&peer, &["k@a:1"], "a") && !made(&peer, &[""], "a")
    );
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
        let opened = Alkv::parse(&text).and_then(|alkv| alkv.open(SlotId::new(0), &mut UnlockKey::Stored));
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

/// The key of a slot of type `kms`, computed by Python's standard library alone:
///
/// ```python
/// import hmac
/// share, half, salt = bytes(range(32)), bytes(range(32, 64)), bytes(range(0xf0, 0x100))
/// prk = hmac.digest(salt, share + half, "sha256")
/// print(hmac.digest(prk, b"alknet/vault/slot/kms" + b"\x01", "sha256").hex())
/// ```
#[test]
fn two_halves_make_the_key_that_python_makes() {
    let bytes = |from: u8| std::array::from_fn::<u8, 32, _>(|n| from + n as u8);
    let vault = "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff";
    let vault: VaultId = vault.parse().expect("an id");
    let key = |share, half| {
        let peer = format!("ed25519:{}", "ab".repeat(32));
        let at = vec!["a:1".to_owned()];
        let params = KmsParams::new(peer, at, "a".to_owned(), [9; 32], half).expect("in range");
        params.kek(&SecretArr::copy_of(&share), vault)
    };
    let made = key(bytes(0), bytes(32));
    assert_eq!(
        data_encoding::HEXLOWER.encode(made.expose()),
        "3ed7a59972bc81f6a806d730980ed02f5da7c639e28a49a2aa6cc76ef0fb00fe"
    );
    assert_ne!(made, key(bytes(32), bytes(0)), "which half is which counts");
    let shown = format!("{:?}", kms());
    assert!(
        !shown.contains("[5, 5") && !shown.contains("[6, 6"),
        "{shown}"
    );
}

#[test]
fn what_a_first_boot_permits_is_withdrawn_once_and_outlives_everything_else() {
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        ..new()
    };
    let mut open = OpenAlkv::create(vault, NewSlot::None).expect("made");
    let read = |open: &OpenAlkv| {
        let alkv = Alkv::parse(open.alkv().to_text().as_bytes()).expect("our own");
        let id = alkv.slots()[0].id();
        alkv.open(id, &mut UnlockKey::Stored)
            .expect("opened")
            .pending()
    };
    assert_eq!(read(&open), FirstBootPermissions::ALL);
    let words = FirstBootPermissions {
        words: true,
        ..FirstBootPermissions::default()
    };
    let generation = open.alkv().generation();
    assert!(open.conclude(words).expect("random bytes"));
    assert_eq!(open.alkv().generation(), generation + 1);
    assert_eq!(read(&open), FirstBootPermissions::ALL.without(words));
    assert!(!open.conclude(words).expect("nothing to do"));
    assert_eq!(open.alkv().generation(), generation + 1, "nothing changed");
    // A new master key does not give it back.
    let id = open.alkv().slots()[0].id();
    let next = open.rekey(&mut [(id, UnlockKey::Stored)], &[], Consent::None);
    assert_eq!(
        read(&next.expect("one slot")),
        FirstBootPermissions::ALL.without(words)
    );
    assert!(
        open.conclude(FirstBootPermissions::ALL)
            .expect("random bytes")
    );
    assert!(read(&open).is_empty());
}

/// It is of use as long as the partition may be formatted; without it a program from before there was one reads the
/// payload.
#[test]
fn what_a_tpm_had_counted_when_the_vault_was_made_is_kept_until_the_partition_is_finished() {
    let first = FirstCount {
        tpm: [0xa5; 32],
        count: u64::MAX,
    };
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        passphrase: "TREZOR".into(),
        first_count: Some(first),
        ..new()
    };
    let mut open = OpenAlkv::create(vault, NewSlot::None).expect("made");
    let read = |open: &OpenAlkv| {
        let alkv = Alkv::parse(open.alkv().to_text().as_bytes()).expect("our own");
        let id = alkv.slots()[0].id();
        let open = alkv.open(id, &mut UnlockKey::Stored).expect("opened");
        assert_eq!(open.passphrase().expose(), "TREZOR");
        open.first_count()
    };
    assert_eq!(read(&open), Some(first));
    let others = FirstBootPermissions::ALL.without(FirstBootPermissions {
        partition: true,
        ..FirstBootPermissions::default()
    });
    assert!(open.conclude(others).expect("random bytes"));
    assert_eq!(read(&open), Some(first));
    let id = open.alkv().slots()[0].id();
    let next = open.rekey(&mut [(id, UnlockKey::Stored)], &[], Consent::None);
    assert_eq!(read(&next.expect("one slot")), Some(first));
    assert!(
        open.conclude(FirstBootPermissions::ALL)
            .expect("random bytes")
    );
    assert_eq!((open.first_count(), read(&open)), (None, None));
}

/// A payload is authenticated: only a changed program writes such a one.
#[test]
fn a_count_of_no_tpm_is_no_payload() {
    for (tpm, is_one) in [
        ("a5".repeat(32), true),
        ("A5".repeat(32), false),
        ("a5".repeat(31), false),
    ] {
        let text = format!(
            "{{\"created\":1,\"entropy\":\"{}\",\"first_count\":{{\"count\":7,\"tpm\":\"{tpm}\"}}}}",
            BASE64.encode(&[7; 32])
        );
        let read = VaultContents::read(&SecretBytes::from_vec(text.into_bytes()));
        assert_eq!(read.is_ok(), is_one, "{tpm}");
    }
}

#[test]
fn a_payload_that_names_nothing_permits_nothing() {
    // As every program wrote it before there were permissions.
    assert!(development().pending().is_empty());
    for (names, expected) in [
        (&["partition"][..], true),
        (&["words", "configuration"], true),
        (&["partition", "partition"], false),
        (&["everything"], false),
    ] {
        assert_eq!(
            FirstBootPermissions::from_names(names).is_some(),
            expected,
            "{names:?}"
        );
    }
}

/// The file has no room for additions: each needs a new format.
#[test]
fn the_first_format_of_a_vault_opens() {
    const SAMPLE: &str = r#"{"alkv":1,"device":0,"gen":1,"mac":"dCdReV2F+85CPDM8CHm/hQAu5vi7+OdV/+QK22AS/bU=","payload":"QUxLMQEBAAAAAAACAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKita+FUIFdSgwp+yBMRS6ESzhOWlhShzwhIEqw1uIXPMwC1tGPJbbcPZXzmeO3zlrM782tB7eAiWCGBezyrghwZcIjdKQh0F4/5rrlFBf3WR5+XSndOPgaz9mDsuvErxXA==","slots":[{"id":0,"params":{"kek":"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="},"type":"none","wrap":"ICEiIyQlJicoKSor11SHgT3zUVfgq4y4UAzxlCE9L76aNhk4T8DQBsEBJMwbAIYDStIu8gduGZ7h5zkc"}],"uuid":"f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff"}"#;
    let alkv = Alkv::parse(SAMPLE.as_bytes()).expect("the first format");
    assert_eq!(alkv.to_text(), SAMPLE);
    let slot = alkv.slots().first().expect("a slot").id();
    let open = alkv.open(slot, &mut UnlockKey::Stored).expect("opened");
    let words = Entropy::from_bytes(&[5; 32]).expect("32 bytes");
    assert_eq!(open.entropy(), &words);
    assert_eq!(open.created_s(), 1_767_225_600);
    let later = SAMPLE.replace(r#","mac":"#, r#","later":1,"mac":"#);
    let refused = Alkv::parse(later.as_bytes());
    assert!(matches!(refused, Err(SlotError::Form(_))), "{refused:?}");
}
