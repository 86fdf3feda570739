use std::cell::Cell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use alknet_sealed::limits::DATA_AT;
use alknet_vault::Entropy;
use alknet_vault::slots::{
    Consent, FirstBootPermissions, NewSlot, NewVault, Tpm2Params, UnlockKey, VaultId,
};

use super::proof::have_same_words;
use super::tpm::{answered, unless_none_has_to, within};
use super::*;
use crate::data::keyslot_tests;

#[test]
fn a_count_that_the_disk_does_not_have_makes_it_old() {
    for (noted, index, fit) in [
        (Some(7), TpmCounterIndex::Count(7), NoteFit::Same),
        (Some(8), TpmCounterIndex::Count(7), NoteFit::Behind),
        (Some(6), TpmCounterIndex::Count(7), NoteFit::Old),
        (None, TpmCounterIndex::Count(7), NoteFit::Old),
        (Some(7), TpmCounterIndex::Absent, NoteFit::Old),
    ] {
        assert_eq!(NoteFit::compare(noted, index), fit, "{noted:?} {index:?}");
    }
}

/// An attacker needs no secret to undefine the index of the counter and to define another at its
/// handle.
#[test]
fn without_a_counter_no_disk_is_the_newest() {
    for (noted, index, fit) in [
        (None, TpmCounterIndex::Absent, NoteFit::Old),
        (None, TpmCounterIndex::Foreign, NoteFit::Unknown),
        (Some(7), TpmCounterIndex::Foreign, NoteFit::Unknown),
    ] {
        assert_eq!(NoteFit::compare(noted, index), fit, "{noted:?} {index:?}");
    }
}

/// A machine without a TPM, with a file as disk.
struct LedgerMachine {
    dir: tempfile::TempDir,
    vault: VaultHandle,
    log: InitLog,
}

impl LedgerMachine {
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            vault: VaultHandle::new().expect("memory"),
            log: InitLog::default(),
        };
        let disk = File::create_new(machine.device()).expect("a new file");
        disk.set_len(DATA_AT).expect("a sparse file");
        machine
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Does what a start, or a change of the vault, does with the ledger of this machine.
    fn with<R>(&self, work: impl FnOnce(GenerationLedger<'_>) -> R) -> R {
        work(GenerationLedger {
            device: &self.device(),
            vault: &self.vault,
            log: &self.log,
            state_dir: self.dir.path(),
        })
    }

    fn noted(&self) -> GenerationNote {
        note::read_if_whole(self.dir.path(), &self.log).expect("it was written")
    }

    /// The problems that it reports.
    fn problem_codes(&self) -> Vec<String> {
        let problems = self.vault.uncounted().into_iter();
        problems.map(|problem| problem.code).collect()
    }
}

fn tpm(of: &str) -> String {
    of.repeat(32)
}

/// The note of a copy of the disk that an attacker has: `tpm` counted that vault.
fn noted(vault: &OpenAlkv, tpm: &str, count: u64) -> GenerationNote {
    GenerationNote {
        vault: vault.alkv().uuid().to_string(),
        generation: vault.alkv().generation(),
        counted: Some(TpmCount {
            tpm: tpm.to_owned(),
            count,
        }),
        owed: Vec::new(),
    }
}

/// A slot of the TPM with this storage key, as far as it can be read.
fn slot(tpm: &str) -> Tpm2Params {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        [&length[..], bytes].concat()
    };
    let policy = [3; 32];
    // A keyed hash of SHA-256: fixed to its TPM and parent, by policy, without lockout.
    let template = [
        &[0, 0x08, 0, 0x0b, 0, 0, 0x04, 0x92][..],
        &sized(&policy),
        &[0, 0x10],
    ];
    let area = [&template.concat()[..], &sized(&[5; 32])].concat();
    let digest = HEXLOWER.decode(tpm.as_bytes());
    let name = [&[0, 0x0b][..], &digest.expect("a storage key")].concat();
    let public = [sized(&area), sized(&name)].concat();
    Tpm2Params::new(public, sized(&[6; 9]), vec![4, 11], policy, false).expect("in range")
}

/// An attacker types a passphrase of the attacker's own vault, or a PIN for a slot that the
/// machine's TPM made for it.
#[test]
fn a_vault_of_the_same_id_has_the_same_words_only_if_it_has_them() {
    let made = |id, words: [u8; 32]| {
        let words = Entropy::from_bytes(&words).expect("32 bytes");
        let open = OpenAlkv::create_as(id, NewVault::new(words, 0), |_| Ok(NewSlot::None));
        open.expect("made")
    };
    let [id, other] = [(); 2].map(|()| VaultId::generate().expect("random bytes"));
    let open = made(id, [7; 32]);
    let slot = open.alkv().slots()[0].id();
    let again = open
        .alkv()
        .open(slot, &mut UnlockKey::Stored)
        .expect("its key");
    assert!(have_same_words(&open, &again));
    assert!(
        have_same_words(&open, &made(other, [7; 32])),
        "of the same words"
    );
    assert!(!have_same_words(&open, &made(id, [8; 32])), "it is forged");
}

/// The owner removes the last slot of the TPM, and an attacker puts a copy of the disk from before
/// back.
#[test]
fn a_removal_of_the_last_slot_of_the_tpm_is_counted() {
    let machine = LedgerMachine::new();
    let vault = keyslot_tests::vault();
    let counter = Cell::new(7);
    let before = noted(&vault, &tpm("ab"), counter.get());
    let write = |former: &GenerationNote, answers: bool| {
        let retire = |_: &str| {
            counter.set(counter.get() + u64::from(answers));
            answers.then_some(()).ok_or(TpmError::Absent)
        };
        let told = machine.with(|ledger| {
            let mut presence = TpmPresence::Unbound;
            ledger.write(vault.alkv(), &[], &mut presence, Some(former), retire)
        });
        (machine.noted(), told)
    };
    // Until the TPM has counted it, each start tries.
    let (unanswered, told) = write(&before, false);
    assert_eq!(
        unanswered.owed,
        [PendingTpmCount::from(
            before.counted.clone().expect("it was counted")
        )]
    );
    assert_eq!(told.len(), 1, "{told:?}");
    let (after, told) = write(&unanswered, true);
    assert!(after.tpms().is_empty() && told.is_empty(), "{told:?}");
    let of_copy = before.count_of(&tpm("ab"));
    let index = TpmCounterIndex::Count(counter.get());
    assert_eq!(NoteFit::compare(of_copy, index), NoteFit::Old);
    write(&after, true);
    assert_eq!(counter.get(), 8, "once");
}

/// The attacker switches the TPM off in the firmware, and the owner removes the slot of the TPM
/// that seems broken. With the TPM on again, a copy of the disk from before would be as new as the
/// TPM knows.
#[test]
fn a_removal_without_the_tpm_is_pending_and_reported_until_counted() {
    let machine = LedgerMachine::new();
    let vault = keyslot_tests::vault();
    let own = tpm("ab");
    let copy = noted(&vault, &own, 7);
    note::write(machine.dir.path(), &copy).expect("writable");
    // `note` asks the machine's TPM, which is absent.
    machine.with(|ledger| ledger.note(&vault));
    assert_eq!(machine.noted().count_of(&own), Some(7));
    assert_eq!(machine.problem_codes(), ["vault-uncounted"]);
    assert_eq!(
        data::counted_by(&machine.device()),
        [own.as_str()],
        "for a reset"
    );

    // Each start reports it, and tries again.
    machine.vault.set_uncounted(Vec::new());
    let checked = machine.with(|ledger| ledger.check(&vault, false, || false));
    checked.expect("it is the newest");
    assert_eq!(machine.problem_codes(), ["vault-uncounted"]);
    assert_eq!(machine.noted().count_of(&own), Some(7));
    let told = machine.with(|ledger| {
        let former = machine.noted();
        let retire = |tpm: &str| (tpm == own).then_some(()).ok_or(TpmError::OtherTpm);
        let mut presence = TpmPresence::Unbound;
        ledger.write(vault.alkv(), &[], &mut presence, Some(&former), retire)
    });
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(machine.noted().tpms(), [""; 0]);
    assert_eq!(data::counted_by(&machine.device()), [""; 0]);
    machine
        .with(|ledger| ledger.check(&vault, false, || false))
        .expect("it is the newest");
    assert_eq!(machine.problem_codes(), [""; 0]);
}

/// An attacker puts the vault of the first boot beside the newest data, and spoils the block with
/// the note of the newest one.
#[test]
fn a_spoilt_note_makes_no_vault_the_newest_without_proof() {
    let machine = LedgerMachine::new();
    let first = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
    };
    let first = OpenAlkv::create(first, NewSlot::None).expect("made");
    let later = keyslot_tests::vault();
    for vault in [&first, &later] {
        machine
            .with(|ledger| ledger.check(vault, true, || false))
            .expect("it was just made");
        fs::write(note::path(machine.dir.path()), "spoilt").expect("writable");
        let refused = machine.with(|ledger| ledger.check(vault, false, || false));
        let waiting = refused.expect_err("it may be an older one");
        assert_eq!(waiting.problem.code, "vault-old");
        assert!(
            waiting.problem.text.contains("vault-newest.json"),
            "{}",
            waiting.problem.text
        );
        machine
            .with(|ledger| ledger.check(vault, false, || true))
            .expect("its owner wants it");
        machine
            .with(|ledger| ledger.check(vault, false, || false))
            .expect("it is noted again");
    }
}

/// An attacker has a copy of the vault from the first boot of an earlier node of these words, and
/// puts it beside the data of the node that its owner made from them after a reset.
#[test]
fn data_of_another_vault_had_their_first_boot() {
    let machine = LedgerMachine::new();
    let early = early(None);
    let vault = keyslot_tests::vault();
    machine
        .with(|ledger| ledger.check(&vault, true, || false))
        .expect("it was just made");
    for (pending, text) in [(true, "of a first boot"), (false, "of a later one")] {
        let mut copy = reread(&early);
        if !pending {
            copy.conclude(FirstBootPermissions::ALL)
                .expect("random bytes");
        }
        let refused = machine.with(|ledger| ledger.check(&copy, false, || false));
        let waiting = refused.expect_err(text);
        assert_eq!(waiting.problem.code, "vault-old");
        let why = &waiting.problem.text;
        assert!(why.contains("the data beside the vault"), "{why}");
    }
    let noted = machine.noted();
    assert_eq!(noted.vault, vault.alkv().uuid().to_string(), "as before");
    machine
        .with(|ledger| ledger.check(&early, false, || true))
        .expect("its owner wants it");
    machine
        .with(|ledger| ledger.check(&early, false, || false))
        .expect("it counts from now on");
}

/// The vault of a first boot that has not ended, with a slot of the TPM that had counted so far.
fn early(first_count: Option<FirstCount>) -> OpenAlkv {
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        first_count,
        ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
    };
    let mut early = OpenAlkv::create(vault, NewSlot::None).expect("made");
    if let Some(first) = first_count {
        let kek = alknet_tpm::new_kek().expect("random bytes");
        let slot = slot(&HEXLOWER.encode(&first.tpm));
        early.add(NewSlot::Tpm2(slot, &kek)).expect("added");
    }
    early
}

/// The same vault, opened from its copy on the disk.
fn reread(open: &OpenAlkv) -> OpenAlkv {
    let alkv = Alkv::parse(open.alkv().to_text().as_bytes()).expect("our own");
    let id = alkv.slots()[0].id();
    alkv.open(id, &mut UnlockKey::Stored)
        .expect("its key lies beside it")
}

/// An attacker puts a copy of the vault from its first boot back, and blanks the header or takes
/// the data from then as well.
#[test]
fn a_copy_from_a_first_boot_is_recognised_by_the_tpm_counter() {
    // Before the header, and between that and the note, where the erasure of the disk before may
    // have to be counted first.
    for (index, blank, sealed) in [
        (TpmCounterIndex::Count(7), None, None),
        (TpmCounterIndex::Count(8), Some(PAST), None),
        // The note beside the data, and the end of the first boot.
        (TpmCounterIndex::Count(9), Some(PAST), Some(PAST)),
        (TpmCounterIndex::Count(6), Some(PAST), Some(PAST)),
        (TpmCounterIndex::Absent, Some(PAST), Some(PAST)),
        (TpmCounterIndex::Foreign, Some(FOREIGN), Some(FOREIGN)),
    ] {
        assert_eq!(is_past(7, index, 0), blank, "{index:?}");
        assert_eq!(is_past(7, index, FIRST_NOTE_RISES_MAX), sealed, "{index:?}");
    }
}

/// The attacker switches that TPM off, and another slot opens the vault: there is nothing to
/// compare with.
#[test]
fn a_copy_from_a_first_boot_stays_closed_while_its_tpm_is_away() {
    let machine = LedgerMachine::new();
    let first = FirstCount {
        tpm: [0xab; 32],
        count: 7,
    };
    let counted = early(Some(first));
    let sealed = |vault: &OpenAlkv, is_proven: bool| {
        machine.with(|ledger| ledger.check(vault, false, || is_proven))
    };
    let blank =
        |vault: &OpenAlkv, is_proven: bool| check_first_boot(vault, &machine.log, || is_proven);
    for check in [&sealed as &dyn Fn(&OpenAlkv, bool) -> _, &blank] {
        // Another test of this process may be asking the TPM.
        let most = Duration::from_secs(60);
        alknet_test_support::eventually("it stays closed", most, || {
            let refused: Result<(), VaultWait> = check(&counted, false);
            let why = refused.expect_err("it may be an older one").problem.text;
            why.contains(ELSEWHERE).then_some(())
        });
        assert!(note::read(machine.dir.path()).expect("readable").is_none());
    }
    assert!(blank(&counted, true).is_ok(), "its owner wants it");
    // Earlier vaults, and those that no TPM counts.
    assert!(blank(&early(None), false).is_ok());
    assert!(sealed(&early(None), false).is_ok());
    // Once the partition is finished, the note beside the data says it.
    let mut finished = reread(&counted);
    finished
        .conclude(FirstBootPermissions::ALL)
        .expect("random bytes");
    assert_eq!(finished.first_count(), None);
}

/// An attacker between a machine and its TPM puts an older copy of the disk in, lets the TPM open the vault, and answers
/// from then on as a TPM that the machine does not support.
#[test]
fn a_tpm_that_opened_the_vault_and_is_away_then_proves_no_disk_the_newest() {
    let machine = LedgerMachine::new();
    let own = tpm("cd");
    let kek = alknet_tpm::new_kek().expect("random bytes");
    let words = Entropy::from_bytes(&[7; 32]).expect("32 bytes");
    let new = NewVault::new(words, 0);
    let by_tpm = OpenAlkv::create(new, NewSlot::Tpm2(slot(&own), &kek)).expect("made");
    note::write(machine.dir.path(), &noted(&by_tpm, &own, 7)).expect("writable");
    let check = |made: bool, is_proven: bool| {
        machine.with(|ledger| ledger.check(&by_tpm, made, || is_proven))
    };
    // Another test of this process may be asking the TPM.
    let most = Duration::from_secs(60);
    alknet_test_support::eventually("it stays closed", most, || {
        let refused = check(false, false).expect_err("it may be an older one");
        assert_eq!(refused.problem.code, VAULT_OLD);
        let why = TpmError::Absent.to_string();
        refused.problem.text.contains(&why).then_some(())
    });
    check(false, true).expect("its owner wants it");
    check(true, false).expect("it was just made");
}

/// The same if the slot of the TPM stays, and the passphrase is changed or another slot goes.
#[test]
fn a_change_without_the_tpm_is_pending_and_a_start_alone_is_no_change() {
    let machine = LedgerMachine::new();
    let mut vault = keyslot_tests::vault();
    let own = tpm("cd");
    let kek = alknet_tpm::new_kek().expect("random bytes");
    vault.add(NewSlot::Tpm2(slot(&own), &kek)).expect("added");
    assert_eq!(tpms_of(vault.alkv()), [own.as_str()]);
    let copy = noted(&vault, &own, 7);
    note::write(machine.dir.path(), &copy).expect("writable");
    let start = |vault: &OpenAlkv| {
        // Another test of this process may be asking the TPM.
        let most = Duration::from_secs(60);
        alknet_test_support::eventually("it is the newest", most, || {
            let checked = machine.with(|ledger| ledger.check(vault, false, || false));
            checked.map_err(|waiting| waiting.problem.text)
        });
    };
    start(&vault);
    assert_eq!(machine.noted(), copy, "the TPM is not owed a start");
    assert_eq!(machine.problem_codes(), [""; 0]);

    let other = vault.add(NewSlot::None).expect("added");
    vault.remove(other, Consent::None).expect("two are left");
    machine.with(|ledger| ledger.note(&vault));
    let owed = machine.noted();
    assert_eq!(owed.generation, vault.alkv().generation());
    assert_eq!(
        owed.owed,
        [PendingTpmCount::from(copy.counted.expect("it was counted"))]
    );
    assert_eq!(machine.problem_codes(), ["vault-uncounted"]);
    // A start without the TPM changes nothing of that, and reports it.
    machine.vault.set_uncounted(Vec::new());
    start(&vault);
    assert_eq!(machine.noted(), owed);
    assert_eq!(machine.problem_codes(), ["vault-uncounted"]);
    // With the TPM it is not settled: the note agrees with the TPM, and so does that of the copy.
    assert_eq!(
        NoteFit::compare(owed.count_of(&own), TpmCounterIndex::Count(7)),
        NoteFit::Same
    );
}

/// A new vault on a disk that was erased while the TPM was absent. Each start reports what the disk
/// says of it.
#[test]
fn a_reset_that_was_not_counted_is_noted_beside_the_new_data() {
    let machine = LedgerMachine::new();
    let vault = keyslot_tests::vault();
    let former = [tpm("ab"), tpm("cd")];
    data::set_counted_by(&machine.device(), &former).expect("writable");
    for made in [true, false] {
        machine.vault.set_uncounted(Vec::new());
        let checked = machine.with(|ledger| ledger.check(&vault, made, || made));
        checked.expect("it is the newest");
        assert_eq!(machine.problem_codes(), ["reset-uncounted"; 2]);
        assert_eq!(machine.noted().tpms(), former);
        assert_eq!(data::counted_by(&machine.device()), former);
    }
    let left = machine.with(|ledger| {
        let note = machine.noted();
        let retire = |tpm: &str| (tpm == former[0]).then_some(()).ok_or(TpmError::OtherTpm);
        let mut presence = TpmPresence::Unbound;
        ledger.write(vault.alkv(), &[], &mut presence, Some(&note), retire)
    });
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(data::counted_by(&machine.device()), former[1..]);
}

/// A note that is too long would count as no note.
#[test]
fn the_tpms_that_owe_for_longest_are_forgotten() {
    let vault = keyslot_tests::vault();
    let mut note = noted(&vault, &tpm("ab"), 7);
    let owed = |number| PendingTpmCount {
        tpm: format!("{number:064x}"),
        count: None,
    };
    note.owed = (0..data::TPMS_MAX).map(owed).collect();
    note.bound();
    assert_eq!(note.tpms().len(), data::TPMS_MAX);
    assert_eq!(note.owed[0], owed(1));
}

/// The power may have failed between the note of a copy and the counter: then the note is one ahead
/// of the TPM.
#[test]
fn a_copy_from_before_a_reset_is_old_even_where_it_is_one_ahead() {
    let (before, after) = (7, 7 + 2);
    for noted in [before, before + 1] {
        assert_eq!(
            NoteFit::compare(Some(noted), TpmCounterIndex::Count(after)),
            NoteFit::Old
        );
    }
}

/// No other request counts beside it: a new vault's counter would rise behind its note when the TPM
/// answers.
#[test]
fn a_tpm_that_hangs_holds_no_erasure_up() {
    static UNANSWERED: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicBool = AtomicBool::new(false);
    let (end, ended) = mpsc::channel::<()>();
    let hangs = move || {
        let _ = ended.recv();
        Ok(())
    };
    let asked = within(Duration::from_millis(1), &UNANSWERED, hangs);
    assert!(matches!(asked, Err(TpmError::Transport(_))), "{asked:?}");
    let most = alknet_test_support::deadline(Duration::from_secs(60));
    // A panic of the request would look like a missing request.
    let again = within(most, &UNANSWERED, || {
        ASKED.store(true, Ordering::SeqCst);
        Ok(())
    });
    assert!(matches!(again, Err(TpmError::Transport(_))), "{again:?}");
    assert!(!ASKED.load(Ordering::SeqCst), "one question at a time");
    assert!(answered(&UNANSWERED).is_err());
    drop(end);
    alknet_test_support::eventually("the TPM answers", most, || answered(&UNANSWERED).is_ok());
    assert!(within(most, &UNANSWERED, || Ok(())).is_ok());
    assert!(answered(&UNANSWERED).is_ok());
}

/// An attacker with a copy of the disk takes the TPM away for the time of the reset.
#[test]
fn a_tpm_that_is_absent_has_not_counted_a_vault_that_it_opened() {
    for none in [
        || TpmError::Absent,
        || TpmError::Unsupported("1.2"),
        || TpmError::ForeignStorageKey,
    ] as [fn() -> TpmError; 3]
    {
        assert!(unless_none_has_to(Err(none()), false).is_ok());
        assert!(unless_none_has_to(Err(none()), true).is_err());
    }
    let silent = || Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
    assert!(unless_none_has_to(silent(), false).is_err());
    assert!(unless_none_has_to(Ok(()), true).is_ok());
}

/// What the first version stored. It has no number, and no room for additions.
#[test]
fn the_first_format_of_the_note_is_read() {
    const SAMPLE: &str = r#"{"vault":"f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff","generation":7,"counted":{"tpm":"000b11","count":9},"owed":[{"tpm":"000b22","count":3},{"tpm":"000b33"}]}"#;
    let state = tempfile::tempdir().expect("a temporary directory");
    let path = note::path(state.path());
    fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
    fs::write(&path, SAMPLE).expect("writable");
    let read = note::read(state.path()).expect("readable").expect("a note");
    assert_eq!(read.vault, "f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff");
    assert_eq!((read.generation, read.count_of("000b11")), (7, Some(9)));
    assert_eq!(read.count_of("000b22"), Some(3));
    assert_eq!(read.tpms(), ["000b11", "000b22", "000b33"]);
    note::write(state.path(), &read).expect("writable");
    assert_eq!(fs::read_to_string(&path).expect("readable"), SAMPLE);
    let later = SAMPLE.replace(r#","generation""#, r#","later":1,"generation""#);
    fs::write(&path, later).expect("writable");
    assert!(note::read(state.path()).is_err());
}
